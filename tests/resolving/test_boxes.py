"""Many boxes of a variable at once: empty ones, and boxes with steps.

The oracle is a plain loop of NumPy slices.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import oracle
import pandas as pd
import pytest
import strategies
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import open_h5

import xref
from xref.errors import SelectionError

numbers = itertools.count()

thorough = settings(
    max_examples=settings.default.max_examples // 2,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for the files of all examples."""
    return tmp_path_factory.mktemp("boxes")


@st.composite
def axis_slices(draw: st.DrawFn, extent: int) -> slice:
    """Start, stop and step of an axis; a start and a stop may be equal, up to the extent."""
    start = draw(st.integers(0, extent))
    stop = draw(st.one_of(st.just(start), st.integers(start, extent)))
    return slice(start, stop, draw(st.integers(1, 4)))


@st.composite
def tables(draw: st.DrawFn) -> tuple[strategies.TargetMetadata, list[tuple[slice, ...]]]:
    """A dataset, and boxes of it."""
    target = draw(strategies.targets())
    box = st.tuples(*(axis_slices(n) for n in target.shape))
    return target, draw(st.lists(box, min_size=1, max_size=8))


def columns_of(boxes: list[tuple[slice, ...]], attribute: str) -> np.ndarray:
    rows = [[getattr(s, attribute) for s in box] for box in boxes]
    return np.array(rows, dtype=np.int64).reshape(len(boxes), len(boxes[0]))


def sizes_of(boxes: list[tuple[slice, ...]]) -> np.ndarray:
    rows = [[len(range(s.start, s.stop, s.step)) for s in box] for box in boxes]
    return np.array(rows, dtype=np.int64).reshape(len(boxes), len(boxes[0]))


def plain(values: Any) -> Any:
    return oracle.plain(np.asarray(values))


@thorough
@given(drawn=tables(), by_size=st.booleans())
def test_boxes_equal_a_loop_of_slices(
    folder: Path,
    drawn: tuple[strategies.TargetMetadata, list[tuple[slice, ...]]],
    by_size: bool,
) -> None:
    target, boxes = drawn
    path = folder / f"{next(numbers)}.h5"
    with h5py.File(path, "w") as file:
        dataset = target.create(file, "t")
        whole = dataset[()] if not dataset.dtype.hasobject else np.asarray(dataset[()])
    expected = [np.asarray(whole[box]) for box in boxes]
    start, stop, step = (columns_of(boxes, name) for name in ("start", "stop", "step"))
    end = {"shape": sizes_of(boxes)} if by_size else {"stop": stop}
    with open_h5(path) as ds:
        regions = ds["t"].h5ref.regions(start, **end, step=step)
        table = regions.h5ref.table()
        check_regions(regions, expected)
        assert (xref.from_table(table).data == regions.data).all()
        np.testing.assert_array_equal(table["npoints"], [e.size for e in expected])
        if start.shape[1]:
            np.testing.assert_array_equal(table["start"], start)
        if (step == 1).all():
            assert "stride" not in table
            assert (ds["t"].h5ref.regions(start, **end).data == regions.data).all()


def check_regions(regions: xr.DataArray, expected: list[np.ndarray]) -> None:
    """Compare every way to resolve regions with the expected values of each."""
    for (_, one), want in zip(regions.h5ref.items(), expected, strict=True):
        assert one.shape == want.shape
        assert plain(one) == plain(want)
    ragged = regions.h5ref.resolve("ragged")
    flat = [value for want in expected for value in plain(want.ravel())]
    assert plain(oracle.values_of(ragged)) == flat
    shapes = ragged["row_shape"].values.tolist()
    assert [tuple(n for n in shape if n >= 0) for shape in shapes] == [
        want.shape for want in expected
    ]
    assert ragged["row_size"].values.tolist() == [want.size for want in expected]
    sizes = regions.h5ref.map(np.size, dtype=int)
    assert sizes.values.tolist() == [want.size for want in expected]
    padded = regions.h5ref.resolve("pad")
    values, valid = oracle.values_of(padded).values, padded["valid"].values
    for row, want in enumerate(expected):
        corner = tuple(slice(0, n) for n in want.shape)
        assert plain(values[row][corner]) == plain(want)
        assert valid[row].sum() == want.size
        assert valid[row][corner].all()
    if len({want.shape for want in expected}) == 1:
        stacked = regions.h5ref.resolve(chunks=1)
        assert plain(stacked) == plain(np.stack(expected))
    if expected[0].dtype.kind in "iuf":
        check_statistics(regions, [want.astype("f8") for want in expected])


def check_statistics(regions: xr.DataArray, expected: list[np.ndarray]) -> None:
    assert regions.h5ref.count().values.tolist() == [w.size for w in expected]
    sums = regions.h5ref.sum().values
    np.testing.assert_allclose(sums, [w.sum() for w in expected], rtol=1e-2)
    for name in ("min", "max", "mean", "std"):
        found = getattr(regions.h5ref, name)().values.astype("f8")
        wanted = [getattr(w, name)() if w.size else np.nan for w in expected]
        np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-2)


@thorough
@given(drawn=tables())
def test_boxes_are_stored_as_h5py_reads_them(
    folder: Path, drawn: tuple[strategies.TargetMetadata, list[tuple[slice, ...]]]
) -> None:
    target, boxes = drawn
    path, written = (folder / f"{next(numbers)}.h5" for _ in range(2))
    with h5py.File(path, "w") as file:
        dataset = target.create(file, "t")
        expected = [oracle.plain(np.asarray(dataset[box]).ravel()) for box in boxes]
    start, stop, step = (columns_of(boxes, name) for name in ("start", "stop", "step"))
    with open_h5(path) as ds:
        regions = ds["t"].h5ref.regions(start, stop=stop, step=step)
        stored = xr.Dataset({"refs": regions.variable})
        xref.to_hdf5(stored, written, on_missing="copy")
    with h5py.File(written) as file, open_h5(written) as ds:
        for k, reference in enumerate(file["refs"][()]):
            found = oracle.answer(file[reference], reference)
            assert oracle.plain(found.values) == expected[k]
            one = ds["refs"].values[k]
            assert oracle.plain(one.resolve().values.ravel()) == expected[k]
            assert one.selection.kind in ("hyperslab", "none", "all")
            size = boxes[k] and sizes_of([boxes[k]]).prod()
            assert boxes[k] == () or (one.selection.kind == "none") == (size == 0)


def units(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["q"] = np.arange(10.0)
        file["n"] = np.arange(10)
        file["image"] = np.arange(40).reshape(10, 4)
        time = file.create_dataset("time", data=np.arange(10))
        time.attrs["units"] = "days since 2000-01-01"
        file.create_dataset("grown", data=np.arange(5), maxshape=(None,), chunks=(2,))


EDGES = {"start": [[0], [3], [3], [10]], "stop": [[3], [3], [5], [10]]}


def test_empty_boxes_have_no_elements_and_missing_statistics(tmp_path: Path) -> None:
    units(tmp_path / "u.h5")
    with open_h5(tmp_path / "u.h5") as ds:
        boxes = ds["q"].h5ref.regions(**EDGES)
        for name, expected in (
            ("count", [3, 0, 2, 0]),
            ("sum", [3.0, 0.0, 7.0, 0.0]),
            ("mean", [1.0, np.nan, 3.5, np.nan]),
            ("min", [0.0, np.nan, 3.0, np.nan]),
            ("max", [2.0, np.nan, 4.0, np.nan]),
        ):
            np.testing.assert_array_equal(getattr(boxes.h5ref, name)().values, expected)
        integers = ds["n"].h5ref.regions(**EDGES)
        np.testing.assert_array_equal(integers.h5ref.max(), [2.0, np.nan, 4.0, np.nan])
        dates = ds["time"].h5ref.regions(**EDGES).h5ref.max().values
        assert np.isnat(dates).tolist() == [False, True, False, True]
        starts = boxes.h5ref.resolve("ragged")["phony_dim_0_start"]
        assert starts.values.tolist() == [0, 3, 3, 10]


def test_empty_boxes_keep_their_shape_until_they_are_stored(tmp_path: Path) -> None:
    units(tmp_path / "u.h5")
    with open_h5(tmp_path / "u.h5") as ds:
        boxes = ds["image"].h5ref.regions([[3, 0], [10, 0]], (0, 4))
        assert boxes.h5ref.resolve().shape == (2, 0, 4)
        assert boxes.h5ref.table()["shape"].values.tolist() == [[0, 4], [0, 4]]
        one = ds["image"].h5ref.region_reference(np.s_[3:3, 0:4])
        assert one == boxes.values[0]
        assert (one.shape, one.size, one.bounds) == ((0, 4), 0, None)
        assert one.resolve().shape == (0, 4)
        assert ds["image"].h5ref.region_reference([], [0, 1, 3]).shape == (0, 3)
        xref.to_hdf5(ds[["image"]].assign(boxes=boxes), tmp_path / "stored.h5")
    with open_h5(tmp_path / "stored.h5") as ds:
        assert ds["boxes"].h5ref.table()["selection"].values.tolist() == ["none", "none"]
        assert ds["boxes"].h5ref.resolve().shape == (2, 0, 0)
        assert ds["boxes"].h5ref.count().values.tolist() == [0, 0]


def test_boxes_of_scalars_and_of_datasets_without_elements(tmp_path: Path) -> None:
    path = tmp_path / "odd.h5"
    with h5py.File(path, "w") as file:
        file["scalar"] = 5
        file["empty"] = np.zeros((0, 3))
    with open_h5(path) as ds:
        boxes = ds["scalar"].h5ref.regions(np.zeros((3, 0)), np.zeros((3, 0)))
        assert boxes.h5ref.resolve().values.tolist() == [5, 5, 5]
        none = ds["empty"].h5ref.regions([[0, 0], [0, 3]], stop=[[0, 2], [0, 3]])
        assert none.h5ref.resolve("ragged")["row_shape"].values.tolist() == [[0, 2], [0, 0]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"start": [1, 5], "stop": [1, 3]},
            r"box 1 of 'q' has start \[5\], stop \[3\]: .*stop",
        ),
        ({"start": [1, 5], "shape": [0, -1]}, "box 1 .* size"),
        ({"start": [1, 11], "shape": 0}, "box 1 .* beyond"),
        ({"start": [1, 11], "stop": [1, 11]}, "box 1 .* beyond"),
        ({"start": [1, -1], "shape": 1}, "box 1 .* start is at least 0"),
        ({"start": [1, 5], "shape": 2, "step": 0}, "box 0 .* step is at least 1"),
        ({"start": [1, 5], "shape": 2, "step": [1, -2]}, "box 1 .* step is at least 1"),
        ({"start": [1, 5], "shape": 3, "step": 3}, r"box 1 .* step \[3\]: .*beyond"),
        ({"start": [1, 5], "shape": 3, "step": 2**62}, "box 0 .* beyond"),
        ({"start": [[1], [9]], "stop": [[8], [7]], "step": [[9], [5]]}, "box 1 .* stop"),
        ({"start": [[[1], [9]]], "shape": 2}, "box 0, 1 .* beyond"),
    ],
)
def test_boxes_that_do_not_fit_are_named(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    units(tmp_path / "u.h5")
    with (
        open_h5(tmp_path / "u.h5") as ds,
        pytest.raises(SelectionError, match=f"u.h5: {message}.*shape of 'q' is"),
    ):
        ds["q"].h5ref.regions(**given)


@pytest.mark.parametrize(
    ("error", "given"),
    [
        (TypeError, {"start": [0.5], "shape": 1}),
        (TypeError, {"start": [np.nan], "shape": 1}),
        (TypeError, {"start": [np.inf], "shape": 1}),
        (TypeError, {"start": [0], "stop": [1e30]}),
        (TypeError, {"start": np.array([2**64 - 1], dtype="u8"), "shape": 1}),
        (ValueError, {"start": [[1, 2]], "shape": 1}),
        (KeyError, {"start": {"other": [1]}, "shape": 1}),
        (KeyError, {"start": xr.Dataset({"other_start": ("k", [1])}), "shape": 1}),
        (ValueError, {"start": [1, 2, 3], "shape": [1, 2]}),
    ],
)
def test_errors_about_tables_of_boxes_name_the_file(
    tmp_path: Path, error: type[Exception], given: dict[str, Any]
) -> None:
    units(tmp_path / "u.h5")
    with open_h5(tmp_path / "u.h5") as ds, pytest.raises(error) as caught:
        ds["q"].h5ref.regions(**given)
    assert str(caught.value.args[0]).startswith(f"{tmp_path / 'u.h5'}: ")


def test_variables_that_are_no_part_of_a_dataset_are_refused_with_the_file(
    tmp_path: Path,
) -> None:
    units(tmp_path / "u.h5")
    with open_h5(tmp_path / "u.h5") as ds:
        picked = ds["q"].isel({ds["q"].dims[0]: xr.DataArray([[1, 3], [2, 4]])})
        for array in (picked, ds["q"].load()[2:5]):
            with pytest.raises(TypeError, match=r"u\.h5: .*'q'"):
                array.h5ref.regions([[0] * array.ndim], 1)


def test_a_step_is_given_like_a_shape(tmp_path: Path) -> None:
    units(tmp_path / "u.h5")
    with open_h5(tmp_path / "u.h5") as ds:
        image, start = ds["image"], [[0, 0], [3, 1]]
        image = image.rename(dict(zip(image.dims, "yx", strict=True)))
        values = image.values
        for step in (
            (3, 2),
            [[3, 2], [3, 2]],
            {"y": 3, "x_step": 2},
            pd.Series([3, 2], ["y", "x"]),
        ):
            boxes = image.h5ref.regions(start, (2, 2), step=step)
            resolved = boxes.h5ref.resolve().values
            np.testing.assert_array_equal(resolved[0], values[0:4:3, 0:3:2])
            np.testing.assert_array_equal(resolved[1], values[3:7:3, 1:4:2])
        table = pd.DataFrame({"y_start": [0, 5], "y_stop": [5, 9], "y_step": [2, 3]})
        a, b = image.h5ref.regions(table, stop=table, step=table).values
        np.testing.assert_array_equal(a.resolve(), values[0:5:2])
        np.testing.assert_array_equal(b.resolve(), values[5:9:3])
        both = image.h5ref.regions(start, (2, 1), step=2)
        assert both.values[0].selection.count == (2, 1)
        with pytest.raises(KeyError, match="z_step"):
            image.h5ref.regions(start, (2, 2), step={"z_step": 1})


def test_boxes_with_steps_are_columns_in_the_table_and_in_files(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    units(tmp_path / "u.h5")
    with open_h5(tmp_path / "u.h5") as ds:
        starts = np.arange(5)
        boxes = ds["q"].h5ref.regions(starts, 3, step=[1, 2, 2, 1, 2])
        assert boxes.data.columns.regions.points.size == 0
        table = boxes.h5ref.table()
        assert table["count"].values.ravel().tolist() == [1, 3, 3, 1, 3]
        assert table["stride"].values.ravel().tolist() == [1, 2, 2, 1, 2]
        assert table["block"].values.ravel().tolist() == [3, 1, 1, 3, 1]
        table.to_netcdf(tmp_path / "table.nc", engine="h5netcdf")
        xref.to_hdf5(ds[["q"]].assign(boxes=boxes), tmp_path / "stored.h5")
        with xr.open_dataset(tmp_path / "table.nc", engine="h5netcdf") as stored:
            assert (xref.from_table(stored).data == boxes.data).all()
    with h5py.File(tmp_path / "stored.h5") as file:
        for k, reference in enumerate(file["boxes"]):
            step = [1, 2, 2, 1, 2][k]
            assert file["q"][reference].tolist() == list(range(k, k + 3 * step, step))
            space = h5py.h5r.get_region(reference, file["q"].id)
            assert space.is_regular_hyperslab()


def test_boxes_of_a_variable_that_grew_reach_to_its_present_extent(tmp_path: Path) -> None:
    units(tmp_path / "u.h5")
    with h5py.File(tmp_path / "u.h5", "a") as file:
        file["grown"].resize((8,))
    with open_h5(tmp_path / "u.h5") as ds:
        assert ds["grown"].h5ref.regions([8], 0).h5ref.count().values.tolist() == [0]
        with pytest.raises(SelectionError, match="beyond"):
            ds["grown"].h5ref.regions([9], 0)


def test_a_table_with_empty_boxes_of_many_files_comes_back(tmp_path: Path) -> None:
    tables = []
    for k in range(3):
        units(tmp_path / f"{k}.h5")
        with open_h5(tmp_path / f"{k}.h5") as ds:
            tables.append(ds["q"].h5ref.regions([k, 5], stop=[k, 7]).h5ref.table())
    back = xref.from_table(xr.concat(tables, "region"))
    assert back.h5ref.count().values.tolist() == [0, 2] * 3
    starts = back.h5ref.resolve("ragged")["phony_dim_0_start"].values
    assert starts.tolist() == [0, 5, 1, 5, 2, 5]


def test_row_shape_tells_axes_of_length_one_from_missing_axes(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    path = tmp_path / "mixed.h5"
    with h5py.File(path, "w") as file:
        image = file.create_dataset("image", data=np.arange(40.0).reshape(10, 4))
        line = file.create_dataset("line", data=np.arange(10.0))
        scalar = file.create_dataset("scalar", data=5.0)
        references = [
            image.regionref[2:5, 1],
            line.regionref[:4],
            None,
            scalar.regionref[()],
            image.regionref[3:3],
        ]
        strategies.write_references(file, "refs", references)
    with open_h5(path) as ds:
        ragged = ds["refs"].h5ref.resolve("ragged", on_null="fill")
        expected = [[3, 1], [4, -1], [-1, -1], [-1, -1], [0, 0]]
        assert ragged["row_shape"].values.tolist() == expected
        assert ragged["row_size"].values.tolist() == [3, 4, 0, 1, 0]
        assert "-1" in ragged["row_shape"].attrs["comment"]
        ragged.to_netcdf(tmp_path / "ragged.nc", engine="h5netcdf")
        xref.to_hdf5(ragged, tmp_path / "ragged.h5")
    for name, engine in (("ragged.nc", "h5netcdf"), ("ragged.h5", "h5ref")):
        with xr.open_dataset(tmp_path / name, engine=engine) as back:
            assert back["row_shape"].dtype == np.int64
            assert back["row_shape"].values.tolist() == expected
            assert "-1" in back["row_shape"].attrs["comment"]
