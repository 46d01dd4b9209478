"""Coordinates of the selected elements: of samples, of points, of elements with gaps.

The oracle is the positions that HDF5 selects (`oracle.positions`), and NumPy's index of the
whole coordinate with them.
"""

from __future__ import annotations

import io
import itertools
import pickle
import warnings
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import oracle
import pytest
import strategies
import xarray as xr
from h5py import h5r
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import open_h5
from strategies import everything, hyperslabs, listed_points, nothing, write_references

import xref
from xref.errors import UnreadableMemberWarning
from xref.selections import element_positions

numbers = itertools.count()

thorough = settings(
    max_examples=settings.default.max_examples // 2,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for the files of all examples."""
    return tmp_path_factory.mktemp("coords")


def places(dataset: h5py.Dataset, region: Any) -> np.ndarray:
    """Return the position of each element that a region or object reference selects."""
    space = dataset.id.get_space()
    if isinstance(region, h5py.RegionReference):
        space = h5r.get_region(region, dataset.id)
    flat = oracle.positions(space)
    if not dataset.shape:
        return np.zeros((len(flat), 0), dtype=np.int64)
    return np.stack(np.unravel_index(flat, dataset.shape), axis=1)


# --- positions ---------------------------------------------------------------------------


@thorough
@given(drawn=strategies.files(n_targets=2), chunks=st.sampled_from([None, 1, 3, "auto"]))
def test_positions_of_samples_equal_those_of_hdf5(
    folder: Path, drawn: strategies.Drawn, chunks: Any
) -> None:
    path = folder / f"{next(numbers)}.h5"
    drawn.write(path)
    rank = max((len(drawn.targets[t].shape) for t, _ in drawn.references), default=0)
    parts: list[np.ndarray] = []
    with h5py.File(path) as file:
        for reference in np.asarray(file["refs"][()], dtype=object).ravel():
            if reference:
                parts.append(places(file[reference], reference))
    filled = [np.pad(f, ((0, 0), (0, rank - f.shape[1])), constant_values=-1) for f in parts]
    whole = np.concatenate([np.zeros((0, rank), dtype=np.int64), *filled])
    with open_h5(path) as ds:
        refs = ds["refs"]
        ragged = refs.h5ref.resolve("ragged", on_null="fill", chunks=chunks)
        coords = [c for c in ragged.coords.values() if c.dims == ("sample",)]
        used = max((found.shape[1] for found in parts), default=0)
        assert len(coords) <= used
        for axis, coord in enumerate(coords):
            assert coord.dtype == np.int64
            np.testing.assert_array_equal(coord.values, whole[:, axis])
        for rest in range(len(coords), used):
            assert (whole[:, rest] == -1).all()
        if refs.data.is_region:
            for one, found in zip((r for r in refs.values.ravel() if r), parts, strict=True):
                check_one_result(one.resolve(), found)


def check_one_result(result: xr.DataArray, found: np.ndarray) -> None:
    """Compare the positions of a single result with those of its elements."""
    rank = found.shape[1]
    for axis in range(rank):
        name, along = f"phony_dim_{axis}", found[:, axis]
        if result.ndim == rank and rank > 1:
            along = np.unique(along)
        if name in result.coords:
            np.testing.assert_array_equal(result[name].values, along)
            assert name not in result.indexes
        else:  # a box needs no positions
            assert result.ndim == rank
            start = int(result[f"{name}_start"])
            assert not len(found) or along.tolist() == list(range(start, start + len(along)))


@thorough
@given(data=st.data())
def test_positions_of_a_part_of_the_elements_are_a_part_of_the_positions(
    data: st.DataObject,
) -> None:
    shape = data.draw(strategies.shapes(empty=False).filter(bool))
    selected = [data.draw(strategies.selections(shape, nulls=False)) for _ in range(3)]
    with h5py.File("part", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("d", shape, "i1")
        regions = [strategies.select(dataset, one) for one in selected]
        found = [places(dataset, region) for region in regions]
        write_references(file, "refs", regions)
        file.flush()
        image = io.BytesIO(file.id.get_file_image())
    with xr.open_dataset(image, engine="h5ref") as ds:
        table = ds["refs"].data.columns.regions.bound_to(shape, str)
        first = np.array([data.draw(st.integers(0, len(f))) for f in found])
        count = np.array(
            [data.draw(st.integers(0, len(f) - k)) for f, k in zip(found, first, strict=True)]
        )
        for axis in range(-1, len(shape)):
            parts = [
                f[k : k + n, axis] if axis >= 0 else np.full(n, -1)
                for f, k, n in zip(found, first, count, strict=True)
            ]
            got = element_positions(table, np.full(3, axis), first, count)
            np.testing.assert_array_equal(got, np.concatenate(parts))


# --- values of coordinates ---------------------------------------------------------------

EXTENT = (6, 5)
KINDS: dict[str, tuple[dict[str, Any], ...]] = {
    # Two datasets of one coordinate, that of each of two targets.
    "floats": ({"data": np.arange(6) * 0.5}, {"data": np.arange(6, dtype="f4") + 100}),
    "packed": (
        {"data": np.arange(6, dtype="i2"), "scale_factor": 0.5},
        {"data": np.arange(6, dtype="i2"), "scale_factor": 0.25, "add_offset": 3.0},
    ),
    "times": (
        {"data": np.arange(6), "units": "days since 2000-01-01"},
        {"data": np.arange(6) * 1.5, "units": "hours since 2010-01-01"},
    ),
    "integers": (
        {"data": np.arange(6, dtype="i2")},
        {"data": np.arange(6, dtype="i8") * 10**12},
    ),
    "bytes": ({"data": np.array(list("abcdef"), "S1")}, {"data": np.array(["long"] * 6, "S5")}),
    "text": (
        {"data": np.array(list("uvwxyz"), dtype=object), "dtype": h5py.string_dtype()},
        {"data": np.array([f"Tag {k} ä" for k in range(6)], dtype=object)},
    ),
}


def write_target(file: h5py.File, k: int, kind: str) -> h5py.Dataset:
    """Write a target of dimensions y and x, the coordinates y, lat(y, x) and height."""
    group = file.create_group(f"g{k}")
    options = dict(KINDS[kind][k])
    data = options.pop("data")
    dtype = h5py.string_dtype() if data.dtype == object else None
    options.pop("dtype", None)
    y = group.create_dataset("y", data=data, dtype=dtype)
    y.attrs.update(options)
    x = group.create_dataset("x", data=np.zeros(5))  # a dimension without values
    x.make_scale("This is a netCDF dimension but not a netCDF variable.         5")
    y.make_scale("y")
    image = group.create_dataset("image", data=np.arange(30.0).reshape(EXTENT) + 100 * k)
    lat = group.create_dataset("lat", data=np.arange(30).reshape(EXTENT) * 10 + k)
    for dataset in (image, lat):
        dataset.dims[0].attach_scale(y)
        dataset.dims[1].attach_scale(x)
    group["height"] = 2.0 + k
    image.attrs["coordinates"] = "lat height"
    return image


MASK = np.add.outer(np.arange(6), np.arange(5)) % 4 == 1
SELECTIONS: dict[str, Any] = {
    "box": np.s_[1:4, 2:5],
    "strided": np.s_[0:6:2, 1:5:3],
    "list": np.s_[[0, 2, 5], :],
    "mask": MASK,
    "points": listed_points([[5, 0], [0, 4], [5, 0]]),
    "union": hyperslabs(((0, 0), (2, 2)), ((3, 1), (3, 4))),
    "all": everything,
    "none": nothing,
}


def write_selections(path: Path, kind: str, names: list[str]) -> list[tuple[int, np.ndarray]]:
    """Write references to two targets; return target and positions of each, null is last."""
    with h5py.File(path, "w") as file:
        images = [write_target(file, k, kind) for k in range(2)]
        regions: list[Any] = []
        expected = []
        for k, name in itertools.product(range(2), names):
            regions.append(strategies.make_region(images[k], SELECTIONS[name]))
            expected.append((k, places(images[k], regions[-1])))
        write_references(file, "refs", [*regions, None])
    return expected


def whole_coordinates(path: Path) -> list[dict[str, np.ndarray]]:
    """Return the coordinates of both targets, as xarray decodes them."""
    found = []
    for k in range(2):
        with open_h5(path, group=f"g{k}") as ds:
            lat, height = ds["lat"].values, ds["height"].values
            found.append({"y": ds["y"].values, "lat": lat, "height": height})
    return found


@pytest.mark.parametrize("chunks", [None, 2, "auto", {"sample": 7}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_coordinates_of_their_own_target(
    tmp_path: Path, kind: str, chunks: Any
) -> None:
    path = tmp_path / "c.h5"
    expected = write_selections(path, kind, list(SELECTIONS))
    whole = whole_coordinates(path)
    with open_h5(path) as ds:
        ragged = ds["refs"].h5ref.resolve("ragged", on_null="fill", chunks=chunks)
        parts = {"y": [], "x": [], "lat": []}
        for k, found in expected:
            parts["y"].append(whole[k]["y"][found[:, 0]])
            parts["x"].append(found[:, 1])
            parts["lat"].append(whole[k]["lat"][found[:, 0], found[:, 1]])
        for name, values in parts.items():
            coord = ragged[name]
            assert coord.dims == ("sample",)
            assert (
                (coord.chunks == oracle.values_of(ragged).chunks)
                if chunks
                else coord.chunks is None
            )
            wanted = np.concatenate(values)
            assert coord.values.tolist() == wanted.tolist()
            assert coord[7:40:3].values.tolist() == wanted[7:40:3].tolist()
        assert ragged["x"].dtype == np.int64
        assert ragged["height"].dims == ds["refs"].dims
        heights = [whole[k]["height"] for k, _ in expected]
        assert ragged["height"].values[:-1].tolist() == heights
        assert np.isnan(ragged["height"].values[-1])
        again = pickle.loads(pickle.dumps(ragged))
        xr.testing.assert_identical(again.compute(), ragged.compute())
        assert not any("sample" in i for i in ragged.indexes)


def test_coordinates_of_samples_are_read_when_they_are_used(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_selections(path, "floats", list(SELECTIONS))
    with open_h5(path) as ds:
        references = xref.ReferenceArray.from_references(ds["refs"].values[:-1])
        valid = ds["refs"][:-1].copy(data=references)
        with xref.count_reads() as reads:
            ragged = valid.h5ref.resolve("ragged", chunks=3)
            assert ragged["y"].chunks == ragged["x"].chunks == oracle.values_of(ragged).chunks
            assert len(ragged["y"].chunks[0]) > 3
            ragged["x"].data.compute()  # positions need no values
            assert reads.nbytes == 0
            ragged["y"].data[:2].compute()
            assert 0 < reads.nbytes <= 8 * 6


def test_stacked_points_tell_which_elements_they_are(tmp_path: Path) -> None:
    path = tmp_path / "p.h5"
    with h5py.File(path, "w") as file:
        image = file.create_dataset("image", data=np.arange(30.0).reshape(EXTENT))
        line = file.create_dataset("line", data=np.arange(9.0))
        points = [[5, 0], [0, 4], [5, 0]], [[1, 1], [2, 2], [3, 3]]
        regions = [strategies.make_region(image, listed_points(p)) for p in points]
        write_references(file, "refs", [*regions, None])
        short = strategies.make_region(image, listed_points([[4, 4]]))
        write_references(file, "unequal", [regions[0], short])
        write_references(file, "listed", [line.regionref[[0, 3, 4]], line.regionref[2:5]])
        write_references(file, "same", [line.regionref[0:9:4]] * 2)
        write_references(file, "boxes", [line.regionref[0:2], line.regionref[4:6]])
    with open_h5(path) as ds:
        refs = ds["refs"].rename({ds["refs"].dims[0]: "roi"})
        stacked = refs.h5ref.resolve(on_null="fill")
        assert stacked["phony_dim_0"].dims == ("roi", "point")
        assert stacked["phony_dim_0"].values.tolist() == [[5, 0, 5], [1, 2, 3], [-1, -1, -1]]
        assert stacked["phony_dim_1"].values.tolist() == [[0, 4, 0], [1, 2, 3], [-1, -1, -1]]
        one = refs[1].item().resolve()
        assert one["phony_dim_1"].dims == ("point",)
        assert one["phony_dim_1"].values.tolist() == [1, 2, 3]
        names = {ds[name].dims[0]: "roi" for name in ("unequal",)}
        padded = ds["unequal"].rename(names).h5ref.resolve("pad")
        assert padded["phony_dim_0"].values.tolist() == [[5, 0, 5], [4, -1, -1]]
        listed = ds["listed"].rename({ds["listed"].dims[0]: "roi"}).h5ref.resolve()
        assert listed["phony_dim_0"].dims == ("roi", "phony_dim_0")
        assert listed["phony_dim_0"].values.tolist() == [[0, 3, 4], [2, 3, 4]]
        same = ds["same"].rename({ds["same"].dims[0]: "roi"}).h5ref.resolve()
        assert same["phony_dim_0"].dims == ("phony_dim_0",)
        assert same["phony_dim_0"].values.tolist() == [0, 4, 8]
        # Without an index, results are combined by order and not by label.
        a, b = (ds["listed"].values[k].resolve() for k in range(2))
        assert (a - b).values.tolist() == [-2.0, 0.0, 0.0]
        boxes = ds["boxes"].rename({ds["boxes"].dims[0]: "roi"}).h5ref.resolve()
        assert "phony_dim_0" not in boxes.coords


def test_points_of_several_targets_have_the_coordinates_of_each(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    expected = write_selections(path, "times", ["points"])
    whole = whole_coordinates(path)
    with open_h5(path) as ds:
        refs = ds["refs"].rename({ds["refs"].dims[0]: "roi"})
        stacked = refs[:2].h5ref.resolve()
        for k, found in expected:
            times = whole[k]["y"][found[:, 0]]
            np.testing.assert_array_equal(stacked["y"][k], times)
            lat = whole[k]["lat"][found[:, 0], found[:, 1]]
            np.testing.assert_array_equal(stacked["lat"][k], lat)
        assert np.isnat(refs.h5ref.resolve(on_null="fill")["y"].values[-1]).all()


def test_names_of_the_references_win(tmp_path: Path) -> None:
    path = tmp_path / "names.h5"
    with h5py.File(path, "w") as file:
        for name, n in (("y", 6), ("sample", 5), ("roi", 2)):
            file[name] = np.arange(n) + 0.5
            file[name].make_scale(name)
        image = file.create_dataset("image", data=np.arange(30.0).reshape(EXTENT))
        image.dims[0].attach_scale(file["y"])
        image.dims[1].attach_scale(file["sample"])
        refs = write_references(
            file, "refs", [image.regionref[0, 1:3], image.regionref[2, 0:2]]
        )
        refs.dims[0].attach_scale(file["roi"])
        refs.attrs["coordinates"] = "y"
        axis = file.create_dataset("axis", data=np.arange(6.0))
        axis.make_scale("axis")
        write_references(file, "along", [axis.regionref[1:3]])
    with open_h5(path) as ds:
        own = ds["refs"].assign_coords(y=("roi", [7, 8])).h5ref.resolve("ragged")
        assert own["y"].values.tolist() == [7, 8]
        assert own["sample_1"].values.tolist() == [1.5, 2.5, 0.5, 1.5]
        assert own["image"].dims == ("sample",)
        renamed = ds["refs"].rename(roi="y").h5ref.resolve("ragged")
        assert renamed["y_1"].dims == ("sample",)
        assert renamed["y_1"].values.tolist() == [0.5, 0.5, 2.5, 2.5]
        scale = ds["along"].h5ref.resolve("ragged")
        assert scale["axis"].values.tolist() == [1.0, 2.0]
        assert scale["axis_1"].values.tolist() == [1, 2]  # positions: it has no coordinate
        assert "axis_1" not in scale["row_shape"].dims
        listed = xref.ReferenceArray.from_references(
            [ds["axis"].h5ref.region_reference([0, 1, k]) for k in (3, 4)]
        )
        refs = ds["along"].isel({ds["along"].dims[0]: [0, 0]}).copy(data=listed)
        assert refs.h5ref.resolve()["axis_2"].values.tolist() == [[0, 1, 3], [0, 1, 4]]
        assert refs.h5ref.resolve("pad")["axis_2"].values.tolist() == [[0, 1, 3], [0, 1, 4]]


def test_targets_with_other_dimensions_share_the_names_that_all_have(tmp_path: Path) -> None:
    path = tmp_path / "dims.h5"
    with h5py.File(path, "w") as file:
        for name, n in (("y", 6), ("x", 5), ("lat", 6)):
            file[name] = np.arange(n) * 10.0
            file[name].make_scale(name)
        one = file.create_dataset("one", data=np.arange(30.0).reshape(EXTENT))
        other = file.create_dataset("other", data=np.arange(30.0).reshape(5, 6))
        line = file.create_dataset("line", data=np.arange(5.0))
        for dataset, names in ((one, "yx"), (other, ("x", "lat")), (line, "x")):
            for axis, name in enumerate(names):
                dataset.dims[axis].attach_scale(file[name])
        regions = [one.regionref[1:3, 2], other.regionref[4, 3:5], line.regionref[1:2]]
        write_references(file, "refs", regions)
    with open_h5(path) as ds:
        refs = ds["refs"].rename({ds["refs"].dims[0]: "roi"})
        ragged = refs.h5ref.resolve("ragged")
        assert ragged["x"].values.tolist() == [20.0, 20.0, 40.0, 40.0, 10.0]
        # The first axis that not all targets have: y of one, lat of the other, none of a line.
        assert ragged["phony_dim_0"].values.tolist() == [1, 2, 3, 4, -1]


@pytest.mark.parametrize(
    ("scale", "problem"),
    [
        (np.arange(3.0), "shape (3,), its axes have (5,)"),
        (np.zeros((5, 2)), "shape (5, 2), and lies along 1 axes"),
        ("references", "holds references"),
    ],
    ids=["short", "two axes", "references"],
)
def test_a_coordinate_that_does_not_fit_is_left_out_with_a_warning(
    tmp_path: Path, scale: Any, problem: str
) -> None:
    path = tmp_path / "short.h5"
    with h5py.File(path, "w") as file:
        line = file.create_dataset("line", data=np.arange(5.0))
        if isinstance(scale, str):
            write_references(file, "x", [line.ref] * 5, dtype=h5py.ref_dtype)
        else:
            file.create_dataset("x", data=scale, maxshape=(None, *scale.shape[1:]))
        file["x"].make_scale("x")
        line.dims[0].attach_scale(file["x"])
        write_references(file, "refs", [line.regionref[1:4]])
    # Opening the file may give warnings, too.
    with pytest.warns(UnreadableMemberWarning) as warned, open_h5(path) as ds:
        ragged = ds["refs"].h5ref.resolve("ragged")
    texts = [str(w.message) for w in warned]
    assert any("coordinate 'x'" in text and problem in text for text in texts)
    assert ragged["x"].values.tolist() == [1, 2, 3]


def test_a_scale_of_another_length_names_no_axis(tmp_path: Path) -> None:
    path = tmp_path / "short.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3.0)
        file["x"].make_scale("x")
        line = file.create_dataset("line", data=np.arange(5.0))
        line.dims[0].attach_scale(file["x"])
        write_references(file, "refs", [line.regionref[1:4]])
    # Opening the file gives a warning, too.
    with pytest.warns(UnreadableMemberWarning) as warned, open_h5(path) as ds:
        ragged = ds["refs"].h5ref.resolve("ragged")
    texts = [str(w.message) for w in warned]
    assert all("points at 'x'" in text and "shape (3,)" in text for text in texts)
    assert ragged["phony_dim_0"].values.tolist() == [1, 2, 3]


def test_coordinates_with_too_many_elements_are_an_error_that_names_the_option(
    tmp_path: Path,
) -> None:
    path, shape = tmp_path / "huge.h5", (1 << 31, 1 << 30)
    with h5py.File(path, "w") as file:
        regions = []
        for k in range(2):
            group = file.create_group(f"g{k}")
            for name in ("image", "lat"):
                dataset = group.create_dataset(name, shape, "f4", chunks=(1 << 10, 1 << 10))
                for axis, (dim, n) in enumerate(zip("yx", shape, strict=True)):
                    if dim not in group:
                        group.create_dataset(dim, (n,), "i1", chunks=(1 << 20,))
                        empty = "This is a netCDF dimension but not a netCDF variable."
                        group[dim].make_scale(f"{empty} {n:10}")
                    dataset.dims[axis].attach_scale(group[dim])
            group["image"].attrs["coordinates"] = "lat"
            points = listed_points([[0, 0], [1 << 30, 1 << 29]])
            regions.append(strategies.make_region(group["image"], points))
        write_references(file, "refs", regions)
    with open_h5(path) as ds:
        ragged = ds["refs"].h5ref.resolve("ragged")
        assert ragged["x"].values.tolist() == [0, 1 << 29] * 2
        with pytest.raises(xref.errors.ResultTooLargeError, match=r"lat: .*coords=False"):
            ragged["lat"].data.compute()


def test_coordinates_without_a_common_type_are_left_out_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "types.h5"
    with h5py.File(path, "w") as file:
        regions = []
        for k, values in enumerate((np.arange(5.0), np.array([b"a"] * 5))):
            group = file.create_group(f"g{k}")
            group["x"] = values
            group["x"].make_scale("x")
            line = group.create_dataset("line", data=np.arange(5.0))
            line.dims[0].attach_scale(group["x"])
            regions.append(line.regionref[1:3])
        write_references(file, "refs", regions)
    with open_h5(path) as ds, pytest.warns(UnreadableMemberWarning, match="'x'"):
        ragged = ds["refs"].h5ref.resolve("ragged")
    assert ragged["x"].values.tolist() == [1, 2, 1, 2]


def test_whole_small_datasets_have_positions(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5"
    with h5py.File(path, "w") as file:
        cells = [file.create_dataset(f"c{k}", data=np.zeros((2, k % 3))) for k in range(20)]
        cells.append(file.create_dataset("scalar", data=1.0))
        write_references(file, "refs", [c.ref for c in cells], dtype=h5py.ref_dtype)
    with open_h5(path) as ds:
        refs = ds["refs"].rename({ds["refs"].dims[0]: "cell"})
        ragged = refs.h5ref.resolve("ragged")
        index = [i for k in range(20) for i in np.ndindex(2, k % 3)] + [(-1, -1)]
        for axis in range(2):
            found = ragged[f"phony_dim_{axis}"].values.tolist()
            assert found == [i[axis] for i in index]


def test_coordinates_survive_storing(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    path = tmp_path / "c.h5"
    write_selections(path, "times", ["box", "mask"])
    with open_h5(path) as ds:
        ragged = ds["refs"][:-1].h5ref.resolve("ragged").compute()
    ragged.to_netcdf(tmp_path / "r.nc", engine="h5netcdf")
    xref.to_hdf5(ragged, tmp_path / "r.h5")
    for name, engine in (("r.nc", "h5netcdf"), ("r.h5", "h5ref")):
        with xr.open_dataset(tmp_path / name, engine=engine) as back:
            xr.testing.assert_equal(back.load(), ragged)


def test_positions_of_a_large_result_are_made_in_blocks(tmp_path: Path) -> None:
    path = tmp_path / "large.h5"
    with h5py.File(path, "w") as file:
        big = file.create_dataset("big", (1 << 20, 1 << 20), "u1", chunks=(1 << 10, 1 << 10))
        write_references(file, "refs", [big.regionref[: 1 << 16, : 1 << 16]])
    with open_h5(path) as ds:
        chunks = {"sample": 1 << 16}
        ragged = ds["refs"].h5ref.resolve("ragged", chunks=chunks)
        assert ragged.sizes["sample"] == 1 << 32
        first, second = (c for c in ragged.coords.values() if c.dims == ("sample",))
        with dask.config.set(scheduler="synchronous"):
            assert first[-3:].values.tolist() == [(1 << 16) - 1] * 3
            assert int(second[(1 << 31) + 5]) == 5


def test_two_axes_of_one_scale_have_coordinates_of_their_own(tmp_path: Path) -> None:
    """In a matrix whose value tells its row and column, so do the coordinates of each value."""
    path = tmp_path / "square.h5"
    matrix = np.arange(25).reshape(5, 5)
    with h5py.File(path, "w") as file:
        file["step"] = np.arange(5) * 10.0
        file["step"].make_scale("step")
        for name, values in (("matrix", matrix), ("lat", matrix * 100)):
            file[name] = values
            for axis in range(2):
                file[name].dims[axis].attach_scale(file["step"])
        file["matrix"].attrs["coordinates"] = "lat"
        region = file["matrix"].regionref
        write_references(file, "boxes", [region[:2, 1:4], region[3:4, 1:4], region[2:5, 1:4]])
        write_references(file, "columns", [region[1:3, :2], region[1:3, 3:4]])
        write_references(file, "points", [region[matrix % 7 == 0], region[matrix % 6 == 1]])

    def check(result: Any) -> None:
        values = result["matrix"] if isinstance(result, xr.Dataset) else result
        for name, found in (
            ("step", values // 5 * 10),
            ("step_1", values % 5 * 10),
            ("lat", values * 100),
        ):
            coordinate = result[name].variable.set_dims(
                dict(zip(values.dims, values.shape, strict=True))
            )
            np.testing.assert_array_equal(coordinate.transpose(*values.dims), found)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate dimension names")
        with open_h5(path) as ds:
            for name in ("boxes", "points", "columns"):
                check(ds[name].h5ref.resolve("ragged"))
            check(ds["points"].h5ref.resolve())
            check(ds["points"].h5ref.resolve("concat"))
            check(ds["boxes"].h5ref.resolve("concat"))
            check(ds["columns"].h5ref.resolve("concat", concat_dim="step_1"))
            check(ds["boxes"][:1].h5ref.resolve("concat", concat_dim=1))


def test_an_axis_of_a_repeated_scale_is_shared_as_often_as_all_targets_have_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mixed.h5"
    with h5py.File(path, "w") as file:
        file["step"] = np.arange(3) * 10.0
        file["step"].make_scale("step")
        for name, shape in (("square", (3, 3)), ("line", (3, 2))):
            file[name] = np.zeros(shape)
            for axis in range(shape.count(3)):
                file[name].dims[axis].attach_scale(file["step"])
        refs = [file["square"].ref, file["line"].ref]
        write_references(file, "refs", refs, dtype=h5py.ref_dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate dimension names")
        with open_h5(path) as ds:
            ragged = ds["refs"].h5ref.resolve("ragged")
            rows = np.concatenate([np.indices(shape)[0].ravel() for shape in [(3, 3), (3, 2)]])
            second = np.concatenate([np.indices(s)[1].ravel() for s in [(3, 3), (3, 2)]])
            np.testing.assert_array_equal(ragged["step"], rows * 10)
            (other,) = [
                n for n, v in ragged.coords.items() if v.dims == ("sample",) and n != "step"
            ]
            np.testing.assert_array_equal(ragged[other], second)
