"""``.h5ref``: tables, items, resolving, statistics and functions, against h5py and NumPy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr

import xref

N_Y, N_X = 40, 50
DATA = np.random.default_rng(0).normal(size=(N_Y, N_X)).astype("f4")
DATA[::7, ::5] = np.nan
WHOLE = np.random.default_rng(1).integers(-100, 100, (N_Y, N_X), dtype="i2")
TIMES = np.random.default_rng(2).integers(0, 10_000, (N_Y, N_X))
PACKED = np.random.default_rng(3).integers(0, 200, (N_Y, N_X), dtype="u1")
STARTS = [(0, 0), (3, 10), (36, 41), (7, 7), (7, 7), (20, 0)]


def store(file: h5py.File, name: str, regions: list[Any], shape: Any = None) -> None:
    refs = file.create_dataset(name, (len(regions),), dtype=h5py.regionref_dtype)
    for k, region in enumerate(regions):
        if region is not None:
            refs[k] = region
    if shape:
        file.create_dataset(f"{name}_grid", data=refs[...].reshape(shape), dtype=refs.dtype)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("accessor") / "rois.h5"
    with h5py.File(path, "w") as file:
        file["y"] = np.arange(N_Y) * 10.0
        file["x"] = np.arange(N_X)
        file["area"] = np.arange(N_Y * N_X, dtype="i4").reshape(N_Y, N_X)
        stored = {"data": DATA, "whole": WHOLE, "times": TIMES, "packed": PACKED}
        for name, values in stored.items():
            file.create_dataset(name, data=values, chunks=(16, 16), compression="gzip")
        for dim in "yx":
            file[dim].make_scale()
        for name in (*stored, "area"):
            for axis, dim in enumerate("yx"):
                file[name].dims[axis].attach_scale(file[dim])
        file["data"].attrs["long_name"] = "some data"
        file["data"].attrs["coordinates"] = "area"
        file["times"].attrs["units"] = "hours since 2000-01-01"
        file["packed"].attrs.update(scale_factor=0.5, add_offset=10.0)
        file["packed"].attrs["_FillValue"] = np.uint8(7)
        for name in stored:
            item = file[name]
            boxes = [item.regionref[y : y + 4, x : x + 6] for y, x in STARTS]
            store(file, f"{name}_rois", boxes, (2, 3))
            store(file, f"{name}_rows", [item.regionref[:, x : x + 2] for x in (1, 5, 30)])
            ragged = [item.regionref[: k + 1, k : 2 * k + 1] for k in range(5)]
            store(file, f"{name}_ragged", ragged)
            mask = np.zeros((N_Y, N_X), dtype=bool)
            mask[2:9, 3] = mask[30, 40:] = True
            store(file, f"{name}_points", [item.regionref[mask], item.regionref[mask[::-1]]])
            store(file, f"{name}_nulls", [boxes[0], None, boxes[2], None])
        empty = h5py.h5s.create_simple((N_Y, N_X))
        empty.select_none()
        none = h5py.h5r.create(file["data"].id, b".", h5py.h5r.DATASET_REGION, empty)
        store(file, "empties", [none, file["data"].regionref[:2, :3], none])
        two = [file["data"].regionref[:3, :3], file["area"].regionref[4:7, 1:4]]
        store(file, "targets", two)
        for name in ("a", "b", "c"):
            file[f"parts/{name}"] = np.arange(6.0).reshape(2, 3) + ord(name)
        file["parts/long"] = np.arange(5.0)
        file["parts/text"] = ["x", "yy"]
        file["type"] = np.dtype("f4")
        file.create_group("more")["v"] = np.arange(3)

        def objects(name: str, *targets: str | None) -> None:
            refs = file.create_dataset(name, (len(targets),), dtype=h5py.ref_dtype)
            for k, target in enumerate(targets):
                if target:
                    refs[k] = file[target].ref

        objects("equal", "parts/a", "parts/b", "parts/c")
        objects("unequal", "parts/a", "parts/long")
        objects("gaps", "parts/a", None, "parts/b")
        objects("groups", "parts", "more")
        objects("mixed", "parts/a", "more", "type", None)
        objects("texts", "parts/a", "parts/text")
    return path


@pytest.fixture
def ds(path: Path) -> Iterator[xr.Dataset]:
    with xr.open_dataset(path, engine="h5ref") as opened:
        yield opened


def regions_of(path: Path, name: str) -> list[Any]:
    """Read every region with h5py, None for null references."""
    with h5py.File(path) as file:
        return [
            h5py.Dataset(h5py.h5r.dereference(reference, file.id))[reference]
            if reference
            else None
            for reference in file[name][...].ravel()
        ]


# --- table and items --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["data_rois", "data_ragged", "data_points", "data_nulls", "targets"]
)
def test_table_columns_equal_h5py(path: Path, ds: xr.Dataset, name: str) -> None:
    table = ds[name].h5ref.table()
    with h5py.File(path) as file:
        for row, reference in enumerate(file[name][...]):
            at = table.isel({ds[name].dims[0]: row})
            if not reference:
                assert at["kind"] == "null"
                assert not at["path"].item()
                assert at["npoints"] == 0
                continue
            target = h5py.Dataset(h5py.h5r.dereference(reference, file.id))
            space = h5py.h5r.get_region(reference, file.id)
            low, high = space.get_select_bounds()
            assert at["path"] == target.name
            assert at["address"] == h5py.h5o.get_info(target.id).addr
            assert (at["kind"], at["filename"]) == ("dataset", str(path))
            assert at["npoints"] == space.get_select_npoints()
            assert tuple(at["start"].values) == low
            assert tuple(at["stop"].values) == tuple(h + 1 for h in high)
            shape = target[reference].shape
            assert tuple(at["shape"].values[: at["ndim"].item()]) == shape
            points = space.get_select_type() == h5py.h5s.SEL_POINTS
            assert at["selection"] == ("points" if points else "hyperslab")


def test_tables_of_objects_and_grids_have_the_dimensions_of_the_variable(
    ds: xr.Dataset,
) -> None:
    table = ds["mixed"].h5ref.table()
    assert table["kind"].values.tolist() == ["dataset", "group", "datatype", "null"]
    assert table["path"].values.tolist() == ["/parts/a", "/more", "/type", ""]
    grid = ds["data_rois_grid"]
    assert grid.h5ref.table()["npoints"].dims == grid.dims
    assert grid.h5ref.table()["start"].shape == (2, 3, 2)
    part = grid[1, 1:]
    np.testing.assert_array_equal(part.h5ref.table()["start"], [STARTS[4], STARTS[5]])


def test_items_resolve_one_by_one(path: Path, ds: xr.Dataset) -> None:
    for name in ("data_rois", "data_points", "data_nulls", "data_ragged"):
        items = list(ds[name].h5ref.items())
        assert [index for index, _ in items] == list(range(ds[name].size))
        for (_, got), expected in zip(items, regions_of(path, name), strict=True):
            assert (got is None) == (expected is None)
            if got is not None:
                np.testing.assert_array_equal(got, expected)
    grid = dict(ds["data_rois_grid"].h5ref.items())
    np.testing.assert_array_equal(grid[1, 0], DATA[7:11, 7:13])
    mixed = dict(ds["mixed"].h5ref.items())
    assert isinstance(mixed[0], xr.DataArray)
    assert isinstance(mixed[1], xr.Dataset)
    assert mixed[2] == np.dtype("f4")
    assert mixed[3] is None


# --- resolve ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data_rois", "whole_rois", "data_rows", "data_points"])
def test_stacks_equal_h5py(path: Path, ds: xr.Dataset, name: str) -> None:
    stacked = ds[name].h5ref.resolve()
    assert dask.is_dask_collection(stacked)
    np.testing.assert_array_equal(stacked, np.stack(regions_of(path, name)))
    assert stacked.dims == (*ds[name].dims, *(("point",) if "points" in name else ("y", "x")))


def test_ragged_and_padded_layouts_equal_h5py(path: Path, ds: xr.Dataset) -> None:
    regions = regions_of(path, "data_ragged")
    ragged = ds["data_ragged"].h5ref.resolve("ragged")
    np.testing.assert_array_equal(ragged["data"], np.concatenate([r.ravel() for r in regions]))
    assert ragged["row_size"].values.tolist() == [r.size for r in regions]
    assert ragged["row_size"].attrs["sample_dimension"] == "sample"
    padded = ds["data_ragged"].h5ref.resolve("pad", fill_value=-5)
    assert padded["data"].shape == (5, 5, 5)
    for k, region in enumerate(regions):
        rows, columns = region.shape
        np.testing.assert_array_equal(padded["data"][k, :rows, :columns], region)
        assert (padded["data"][k].values[~padded["valid"][k].values] == -5).all()
        assert int(padded["valid"][k].sum()) == region.size
    with pytest.raises(ValueError, match=r"\(1, 1\).*ragged.*pad"):
        ds["data_ragged"].h5ref.resolve()


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (1, ((1,) * 6, (4,), (6,))),
        (4, ((4, 2), (4,), (6,))),
        (-1, ((6,), (4,), (6,))),
        ("auto", ((6,), (4,), (6,))),
        ({"y": 2}, ((6,), (2, 2), (6,))),
        ({"rois": 5, "x": 3}, ((5, 1), (4,), (3, 3))),
        ({"rois": (1, 5)}, ((1, 5), (4,), (6,))),
    ],
    ids=str,
)
def test_chunks_are_those_asked_for(ds: xr.Dataset, chunks: Any, expected: Any) -> None:
    rois = ds["data_rois"].rename({ds["data_rois"].dims[0]: "rois"})
    stacked = rois.h5ref.resolve(chunks=chunks)
    assert stacked.chunks == expected
    np.testing.assert_array_equal(stacked, [DATA[y : y + 4, x : x + 6] for y, x in STARTS])


def test_auto_chunks_fill_the_chunk_size_of_dask(ds: xr.Dataset) -> None:
    with dask.config.set({"array.chunk-size": "200B"}):
        stacked = ds["data_rois"].h5ref.resolve()
        assert stacked.chunks == ((2, 2, 2), (4,), (6,))
        ragged = ds["data_ragged"].h5ref.resolve("ragged")
        borders = np.cumsum(ragged["data"].chunks[0])
        assert len(borders) > 1
        assert set(borders) <= set(np.cumsum(ragged["row_size"].values))


def test_without_chunks_nothing_is_read_before_it_is_asked_for(ds: xr.Dataset) -> None:
    with xref.count_reads() as reads:
        stacked = ds["whole_rois"].h5ref.resolve(chunks=None)
        assert not dask.is_dask_collection(stacked)
        assert reads.chunks_read == 0
        one = stacked[2].values
        assert reads.chunks_read == reads.chunks_decoded == 1
    np.testing.assert_array_equal(one, WHOLE[36:40, 41:47])


def test_arguments_of_resolve_are_checked(ds: xr.Dataset) -> None:
    rois = ds["data_rois"].h5ref
    for bad, word in (
        ({"layout": "heap"}, "layout"),
        ({"chunks": "some"}, "chunks"),
        ({"chunks": {"nothing": 1}}, "nothing"),
        ({"on_null": "skip"}, "on_null"),
    ):
        with pytest.raises(ValueError, match=word):
            rois.resolve(**bad)
    with pytest.raises(TypeError, match="references"):
        ds["data"].h5ref.resolve()
    with pytest.raises(TypeError, match="references"):
        xr.DataArray([1, 2]).h5ref.table()
    with pytest.raises(ValueError, match="on_null"):
        rois.mean(on_null="x")


# --- coordinates and decoding -----------------------------------------------------------


def test_coordinates_equal_for_all_references_stay_one_dimensional(ds: xr.Dataset) -> None:
    rows = ds["data_rows"].h5ref.resolve()
    (dim,) = ds["data_rows"].dims
    assert rows["y"].dims == ("y",)
    np.testing.assert_array_equal(rows["y"], np.arange(N_Y) * 10.0)
    assert rows["x"].dims == (dim, "x")
    np.testing.assert_array_equal(rows["x"], [[1, 2], [5, 6], [30, 31]])
    assert rows["x_start"].values.tolist() == [1, 5, 30]
    assert rows["y_start"].values.tolist() == [0, 0, 0]
    assert rows.attrs["long_name"] == "some data"


def test_coordinates_that_differ_get_the_dimension_of_the_references(ds: xr.Dataset) -> None:
    rois = ds["data_rois"].h5ref.resolve()
    (dim,) = ds["data_rois"].dims
    assert rois["y"].dims == (dim, "y")
    np.testing.assert_array_equal(rois["y"], [np.arange(y, y + 4) * 10.0 for y, _ in STARTS])
    np.testing.assert_array_equal(rois["x"], [np.arange(x, x + 6) for _, x in STARTS])
    area = np.arange(N_Y * N_X).reshape(N_Y, N_X)
    assert rois["area"].dims == (dim, "y", "x")
    np.testing.assert_array_equal(rois["area"], [area[y : y + 4, x : x + 6] for y, x in STARTS])
    np.testing.assert_array_equal(rois["y_start"], [y for y, _ in STARTS])
    bare = ds["data_rois"].h5ref.resolve(coords=False)
    assert not {"y", "x", "area"} & set(bare.coords)


def test_points_carry_the_coordinates_of_their_elements(path: Path, ds: xr.Dataset) -> None:
    points = ds["data_points"].h5ref.resolve()
    y, x = np.divmod(points["area"].values, N_X)
    np.testing.assert_array_equal(points["x"], x)
    np.testing.assert_array_equal(points["y"], y * 10.0)
    np.testing.assert_array_equal(points, DATA[y, x])


def test_a_single_region_has_one_dimensional_coordinates(ds: xr.Dataset) -> None:
    one = ds["data_rois"].data[1].resolve()
    assert one.dims == ("y", "x")
    np.testing.assert_array_equal(one["y"], [30, 40, 50, 60])
    np.testing.assert_array_equal(one.sel(x=12), DATA[3:7, 12])
    same = ds["data_rois"][[3, 4]].h5ref.resolve()
    assert same["y"].dims == ("y",)


def test_several_targets_share_one_array(ds: xr.Dataset) -> None:
    two = ds["targets"].h5ref.resolve()
    area = np.arange(N_Y * N_X).reshape(N_Y, N_X)
    np.testing.assert_array_equal(two, [DATA[:3, :3], area[4:7, 1:4].astype(two.dtype)])
    assert two.dims[1:] == ("y", "x")
    assert "long_name" not in two.attrs


def test_own_coordinates_of_the_references_stay(ds: xr.Dataset) -> None:
    rois = ds["data_rois"].rename({ds["data_rois"].dims[0]: "roi"})
    rois = rois.assign_coords(roi=list("abcdef"), size=("roi", np.arange(6)))
    resolved = rois.h5ref.resolve()
    np.testing.assert_array_equal(resolved.sel(roi="c"), DATA[36:40, 41:47])
    assert resolved["size"].dims == ("roi",)
    assert rois.h5ref.mean()["roi"].values.tolist() == list("abcdef")


def test_cf_decoding_holds_for_what_is_resolved(path: Path, ds: xr.Dataset) -> None:
    unpacked = np.where(PACKED == 7, np.nan, PACKED * 0.5 + 10.0)
    boxes = [unpacked[y : y + 4, x : x + 6] for y, x in STARTS]
    np.testing.assert_allclose(ds["packed_rois"].h5ref.resolve(), boxes)
    np.testing.assert_allclose(ds["packed_rois"].h5ref.mean(), np.nanmean(boxes, axis=(1, 2)))
    np.testing.assert_allclose(ds["packed_rois"].data[2].resolve(), boxes[2])
    stamps = np.datetime64("2000-01-01", "ns") + TIMES * np.timedelta64(1, "h")
    boxes = np.array([stamps[y : y + 4, x : x + 6] for y, x in STARTS])
    np.testing.assert_array_equal(ds["times_rois"].h5ref.resolve(), boxes)
    with xr.open_dataset(path, engine="h5ref", mask_and_scale=False, decode_times=False) as raw:
        np.testing.assert_array_equal(raw["packed_rois"].data[0].resolve(), PACKED[:4, :6])
        assert raw["packed_rois"].h5ref.resolve().dtype == np.uint8
        assert raw["times_rois"].h5ref.max().dtype.kind == "i"


# --- null references --------------------------------------------------------------------


def test_null_references_raise_fill_or_drop(ds: xr.Dataset) -> None:
    nulls = ds["data_nulls"]
    with pytest.raises(xref.NullReferenceError, match=r"reference 1 of '/data_nulls' is null"):
        nulls.h5ref.resolve()
    filled = nulls.h5ref.resolve(on_null="fill")
    assert filled.shape == (4, 4, 6)
    assert np.isnan(filled[[1, 3]]).all()
    np.testing.assert_array_equal(filled[2], DATA[36:40, 41:47])
    assert (nulls.h5ref.resolve(on_null="fill", fill_value=9)[1] == 9).all()
    filled = nulls[1:3].h5ref.resolve(on_null="fill")
    np.testing.assert_array_equal(filled, [np.full((4, 6), np.nan), DATA[36:40, 41:47]])
    dropped = nulls.h5ref.resolve(on_null="drop")
    np.testing.assert_array_equal(dropped, [DATA[:4, :6], DATA[36:40, 41:47]])
    ragged = nulls.h5ref.resolve("ragged", on_null="fill")
    assert ragged["row_size"].values.tolist() == [24, 0, 24, 0]
    padded = nulls.h5ref.resolve("pad", on_null="fill")
    assert padded["valid"].any(("y", "x")).values.tolist() == [True, False, True, False]
    times = ds["times_nulls"].h5ref.resolve(on_null="fill")
    assert np.isnat(times.values[1]).all()
    packed = ds["packed_nulls"].h5ref.resolve(on_null="fill")
    assert np.isnan(packed.values[1]).all()
    whole = ds["whole_nulls"].h5ref.resolve(on_null="fill")
    assert (whole[1] == 0).all()
    assert whole.dtype == WHOLE.dtype
    with pytest.raises(ValueError, match="one dimension"):
        xr.concat([nulls, nulls], "new").h5ref.resolve(on_null="drop")


def test_statistics_of_null_references_are_missing(ds: xr.Dataset) -> None:
    nulls = ds["data_nulls"].h5ref
    assert nulls.count(on_null="fill").values[[1, 3]].tolist() == [0, 0]
    assert np.isnan(nulls.mean(on_null="fill").values[[1, 3]]).all()
    assert np.isnan(ds["whole_nulls"].h5ref.max(on_null="fill").values[1])
    assert nulls.sum(on_null="drop").shape == (2,)
    with pytest.raises(xref.NullReferenceError):
        nulls.mean()


def test_all_null_variables_resolve_to_nothing(ds: xr.Dataset) -> None:
    nulls = ds["data_nulls"][[1, 3]]
    assert nulls.h5ref.resolve(on_null="drop").size == 0
    assert nulls.h5ref.count(on_null="fill").values.tolist() == [0, 0]
    assert nulls.h5ref.table()["kind"].values.tolist() == ["null", "null"]
    assert ds["data_rois"][:0].h5ref.resolve().size == 0
    assert ds["data_rois"][:0].h5ref.mean().shape == (0,)


# --- statistics and functions -----------------------------------------------------------

STATISTICS = {
    "count": lambda v: np.isfinite(v).sum() if v.dtype.kind == "f" else v.size,
    "sum": np.nansum,
    "mean": np.nanmean,
    "min": np.nanmin,
    "max": np.nanmax,
    "std": np.nanstd,
}


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize(
    "name", ["data_rois", "data_ragged", "data_points", "whole_ragged", "whole_rois_grid"]
)
@pytest.mark.parametrize("chunks", [None, 2, "auto"])
def test_statistics_equal_numpy(
    path: Path, ds: xr.Dataset, name: str, statistic: str, chunks: Any
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy, where all are NaN
        expected = np.array(
            [STATISTICS[statistic](v.astype("f8")) for v in regions_of(path, name)]
        )
    result = getattr(ds[name].h5ref, statistic)(chunks=chunks)
    assert result.dims == ds[name].dims
    assert dask.is_dask_collection(result) is (chunks is not None)
    np.testing.assert_allclose(result.values.ravel(), expected, rtol=1e-5, atol=1e-7)


def test_statistics_have_the_dtypes_of_numpy(ds: xr.Dataset) -> None:
    whole = ds["whole_rois"].h5ref
    assert whole.sum().dtype == np.int64
    assert whole.min().dtype == WHOLE.dtype
    assert whole.mean().dtype == np.float64
    assert ds["data_rois"].h5ref.mean().dtype == DATA.dtype
    assert whole.count().dtype == np.int64
    for result in (whole.sum(), whole.min(), whole.mean(), ds["data_rois"].h5ref.mean()):
        assert result.compute().dtype == result.dtype


def test_statistics_of_empty_regions_are_missing(ds: xr.Dataset) -> None:
    empties = ds["empties"].h5ref
    assert empties.count().values.tolist() == [0, 5, 0]
    assert empties.sum().values[[0, 2]].tolist() == [0, 0]
    for statistic in ("mean", "min", "max", "std"):
        values = getattr(empties, statistic)().values
        assert np.isnan(values).tolist() == [True, False, True]


def test_datetimes_have_extremes_and_no_sum(ds: xr.Dataset) -> None:
    stamps = np.datetime64("2000-01-01", "ns") + TIMES * np.timedelta64(1, "h")
    boxes = np.array([stamps[y : y + 4, x : x + 6] for y, x in STARTS])
    np.testing.assert_array_equal(ds["times_rois"].h5ref.min(), boxes.min((1, 2)))
    np.testing.assert_array_equal(ds["times_rois"].h5ref.max(), boxes.max((1, 2)))
    assert ds["times_rois"].h5ref.count().values.tolist() == [24] * 6
    with pytest.raises(TypeError, match="sum"):
        ds["times_rois"].h5ref.sum()


def test_reduce_calls_a_function_of_each_region(path: Path, ds: xr.Dataset) -> None:
    regions = regions_of(path, "whole_ragged")
    medians = ds["whole_ragged"].h5ref.reduce(np.median)
    np.testing.assert_allclose(medians, [np.median(r) for r in regions])
    quantiles = ds["whole_ragged"].h5ref.reduce(np.quantile, 0.25, chunks=2)
    np.testing.assert_allclose(quantiles, [np.quantile(r, 0.25) for r in regions])
    shapes = ds["whole_ragged"].h5ref.reduce(lambda v: v.shape[0] * 10 + v.shape[1], dtype=int)
    assert shapes.values.tolist() == [11, 21 + 1, 33, 44, 55]


def test_map_gives_arrays_or_objects(path: Path, ds: xr.Dataset) -> None:
    regions = regions_of(path, "whole_ragged")

    def ends(values: np.ndarray, scale: int) -> np.ndarray:
        return np.array([values.flat[0], values.flat[-1]]) * scale

    both = ds["whole_ragged"].h5ref.map(ends, scale=2, output_sizes={"end": 2}, dtype="i8")
    assert both.dims == (*ds["whole_ragged"].dims, "end")
    np.testing.assert_array_equal(both, [[r.flat[0] * 2, r.flat[-1] * 2] for r in regions])
    found = ds["whole_ragged"].h5ref.map(lambda v: {"n": v.size}, dtype=object).values
    assert [f["n"] for f in found] == [r.size for r in regions]


def test_an_error_of_the_users_function_is_shown(ds: xr.Dataset) -> None:
    def fail(values: np.ndarray) -> float:
        raise RuntimeError("my own mistake")

    with pytest.raises(ValueError, match="my own mistake"):
        ds["whole_rois"].h5ref.map(fail)
    with pytest.raises(RuntimeError, match="my own mistake"):
        ds["whole_rois"].h5ref.map(fail, dtype=float).compute()


# --- object references ------------------------------------------------------------------


def test_object_references_stack_or_join(ds: xr.Dataset) -> None:
    parts = [np.arange(6.0).reshape(2, 3) + ord(name) for name in "abc"]
    assert [r.path for r in ds["equal"].values] == ["/parts/a", "/parts/b", "/parts/c"]
    stacked = ds["equal"].h5ref.resolve()
    np.testing.assert_array_equal(stacked, parts)
    np.testing.assert_array_equal(ds["equal"].values[2].resolve(), parts[2])
    np.testing.assert_array_equal(ds["equal"].h5ref.mean(), [p.mean() for p in parts])
    with pytest.raises(ValueError, match=r"different shapes \(\(2, 3\), \(5,\).*ragged"):
        ds["unequal"].h5ref.resolve()
    ragged = ds["unequal"].h5ref.resolve("ragged")
    assert ragged["row_size"].values.tolist() == [6, 5]
    np.testing.assert_array_equal(
        ragged["unequal"], np.concatenate([parts[0].ravel(), np.arange(5.0)])
    )
    filled = ds["gaps"].h5ref.resolve(on_null="fill")
    assert np.isnan(filled[1]).all()
    np.testing.assert_array_equal(filled[[0, 2]], parts[:2])
    with pytest.raises(ValueError, match="types"):
        ds["texts"].h5ref.resolve("ragged")


def test_references_to_groups_give_datasets(ds: xr.Dataset) -> None:
    groups = ds["groups"].h5ref.resolve()
    assert list(groups) == [0, 1]
    np.testing.assert_array_equal(groups[0]["long"], np.arange(5.0))
    assert set(groups[1].variables) == {"v"}
    element = ds["groups"].values[0]
    assert set(element.resolve().variables) == {"a", "b", "c", "long", "text"}
    assert element.resolve()["text"].values.tolist() == ["x", "yy"]
    assert ds["mixed"].values[2].resolve() == np.dtype("f4")
    with pytest.raises(xref.XrefError, match=r"items\(\)"):
        ds["mixed"].h5ref.resolve(on_null="drop")


def test_summaries_list_reference_variables(ds: xr.Dataset) -> None:
    listed = ds.h5ref.references
    assert "data" not in listed
    assert "region" in listed["data_rois"]
    assert "object" in listed["equal"]


def write_regions(path: Path, datasets: dict[str, Any], regions: dict[str, list[Any]]) -> None:
    """Write datasets, and one variable of region references (target, key) each."""
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            file[name] = data
        for name, pairs in regions.items():
            refs = file.create_dataset(name, (len(pairs),), dtype=h5py.regionref_dtype)
            for i, pair in enumerate(pairs):
                if pair is not None:
                    refs[i] = file[pair[0]].regionref[pair[1]]


def test_results_that_differ_have_tasks_of_different_names(tmp_path: Path) -> None:
    path = tmp_path / "names.h5"
    write_regions(path, {"d": np.arange(8)}, {"r": [("d", np.s_[0:2]), None]})
    with xr.open_dataset(path, engine="h5ref") as ds:
        r = ds["r"].h5ref
        one = r.resolve(on_null="fill", fill_value=-1)
        two = r.resolve(on_null="fill", fill_value=-2)
        assert one.data.name != two.data.name
        assert (one - two).values[1].tolist() == [1, 1]
        again = r.resolve(on_null="fill", fill_value=-1)
        assert again.data.name == one.data.name


def test_means_of_large_integers_do_not_overflow(tmp_path: Path) -> None:
    path = tmp_path / "large.h5"
    values = np.full(20, 1_700_000_000_000_000_000)
    write_regions(path, {"d": values}, {"r": [("d", np.s_[0:20])]})
    with xr.open_dataset(path, engine="h5ref") as ds:
        np.testing.assert_allclose(ds["r"].h5ref.mean(), values.mean())
        np.testing.assert_allclose(ds["r"].h5ref.std(), 0)


@pytest.mark.parametrize("name", ["valid", "row_size", "row_shape", "sample", "phony_dim_0"])
def test_targets_with_the_names_of_helpers_keep_their_values(tmp_path: Path, name: str) -> None:
    path = tmp_path / "helpers.h5"
    write_regions(path, {name: np.arange(8)}, {"r": [(name, np.s_[0:2]), (name, np.s_[2:6])]})
    with xr.open_dataset(path, engine="h5ref") as ds:
        ragged, padded = ds["r"].h5ref.resolve("ragged"), ds["r"].h5ref.resolve("pad")
        flat = [v for v in ragged.data_vars.values() if len(v.dims) == 1 and v.size == 6]
        assert [v.values.tolist() for v in flat] == [[0, 1, 2, 3, 4, 5]]
        cells = [v for v in padded.data_vars.values() if v.dtype == np.arange(1).dtype]
        assert [v.values.tolist() for v in cells] == [[[0, 1, 0, 0], [2, 3, 4, 5]]]


def test_a_coordinate_shorter_than_its_axis_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "short.h5"
    write_regions(path, {"d": np.arange(10), "t": np.arange(4)}, {"r": [("d", np.s_[6:8])]})
    with h5py.File(path, "r+") as file:
        file["t"].make_scale("t")
        file["d"].dims[0].attach_scale(file["t"])
    with pytest.warns(xref.UnreadableMemberWarning):
        ds = xr.open_dataset(path, engine="h5ref")
    with ds, pytest.warns(xref.UnreadableMemberWarning, match=r"'t'.*\(4,\)"):
        assert ds["r"].h5ref.resolve().values.tolist() == [[6, 7]]


def test_integers_that_floats_would_round_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "mixed.h5"
    data = {"i": np.array([2**62 + 1]), "u": np.array([2**63 + 1], "u8")}
    write_regions(path, data, {"r": [("i", np.s_[0:1]), ("u", np.s_[0:1])]})
    with xr.open_dataset(path, engine="h5ref") as ds, pytest.raises(ValueError, match="uint64"):
        ds["r"].h5ref.resolve()


def test_a_fill_value_that_does_not_fit_makes_the_type_wider(tmp_path: Path) -> None:
    path = tmp_path / "fill.h5"
    write_regions(path, {"d": np.arange(4)}, {"r": [("d", np.s_[0:2]), None]})
    with xr.open_dataset(path, engine="h5ref") as ds:
        filled = ds["r"].h5ref.resolve(on_null="fill", fill_value=0.5)
        assert filled.values.tolist() == [[0.0, 1.0], [0.5, 0.5]]
        filled = ds["r"].h5ref.resolve(on_null="fill", fill_value=np.nan)
        assert np.isnan(filled.values[1]).all()


def test_references_along_a_dimension_named_axis_have_a_table(tmp_path: Path) -> None:
    path = tmp_path / "axis.h5"
    write_regions(path, {"d": np.arange(8)}, {"r": [("d", np.s_[0:2]), ("d", np.s_[2:6])]})
    with xr.open_dataset(path, engine="h5ref") as ds:
        r = ds["r"].rename({ds["r"].dims[0]: "axis"})
        assert r.h5ref.table()["stop"].values.tolist() == [[2], [6]]
        assert r.h5ref.resolve("ragged")["row_size"].values.tolist() == [2, 4]


@pytest.mark.parametrize("chunks", [0, -2, "typo", {"typo": 5}, 1.5, True])
def test_chunks_that_cannot_be_are_refused_everywhere(ds: xr.Dataset, chunks: Any) -> None:
    rois = ds["data_rois"].h5ref
    for call in (
        rois.resolve,
        partial(rois.resolve, "ragged"),
        partial(rois.resolve, "pad"),
        rois.mean,
        partial(rois.map, np.median, dtype=float),
        partial(rois.reduce, np.median),
    ):
        with pytest.raises(ValueError, match="chunks"):
            call(chunks=chunks)


def test_references_through_another_path_of_one_file_are_equal(tmp_path: Path) -> None:
    path, link = tmp_path / "one.h5", tmp_path / "link.h5"
    write_regions(path, {"d": np.arange(8)}, {"r": [("d", np.s_[0:2])]})
    link.symlink_to(path)
    with xr.open_dataset(path, engine="h5ref") as a, xr.open_dataset(link, engine="h5ref") as b:
        assert a["r"].values[0] == b["r"].values[0]
        assert hash(a["r"].values[0]) == hash(b["r"].values[0])
        assert (a["r"] == b["r"]).all()


def test_functions_get_the_items_of_array_types(tmp_path: Path) -> None:
    path = tmp_path / "items.h5"
    values = np.arange(24).reshape(8, 3)
    with h5py.File(path, "w") as file:
        d = file.create_dataset("d", (8,), dtype=np.dtype(("i8", (3,))))
        d[...] = values
        refs = file.create_dataset("r", (2,), dtype=h5py.regionref_dtype)
        refs[0], refs[1] = d.regionref[0:2], d.regionref[4:8]
    with xr.open_dataset(path, engine="h5ref") as ds:
        medians = ds["r"].h5ref.reduce(np.median)
        assert medians.values.tolist() == [np.median(values[0:2]), np.median(values[4:8])]
        with pytest.raises(TypeError, match="arrays"):
            ds["r"].h5ref.mean()


def test_one_region_that_does_not_fit_leaves_the_rows_of_others(tmp_path: Path) -> None:
    path = tmp_path / "shrunk.h5"
    with h5py.File(path, "w") as file:
        d = file.create_dataset("d", data=np.arange(10), chunks=(2,), maxshape=(None,))
        refs = file.create_dataset("r", (3,), dtype=h5py.regionref_dtype)
        refs[0], refs[1] = d.regionref[0:2], d.regionref[8:10]
        space = h5py.h5s.create_simple((10,))
        space.select_all()
        refs[2] = h5py.h5r.create(d.id, b".", h5py.h5r.DATASET_REGION, space)
        d.resize((6,))
    with xr.open_dataset(path, engine="h5ref") as ds:
        table = ds["r"].h5ref.table()
    assert table["fits"].values.tolist() == [True, False, True]
    assert table["npoints"].values.tolist() == [2, 2, 6]
    assert table["stop"].values.tolist() == [[2], [10], [6]]


def test_functions_get_an_empty_array_for_null_and_results_keep_their_type(
    tmp_path: Path,
) -> None:
    path = tmp_path / "function.h5"
    write_regions(path, {"d": np.arange(8)}, {"r": [("d", np.s_[1:3]), None]})
    with xr.open_dataset(path, engine="h5ref") as ds:
        sums = ds["r"].h5ref.reduce(np.sum, on_null="fill")
        assert sums.values.tolist() == [3, 0]
        halves = ds["r"].h5ref.reduce(lambda v: 0.5 if v.sum() == 3 else 1, on_null="fill")
        with pytest.raises(TypeError, match="dtype="):
            halves.compute()


def test_coordinates_come_along_beside_nulls_and_from_several_targets(tmp_path: Path) -> None:
    path = tmp_path / "coords.h5"
    data = {"a": np.arange(40, dtype="i4").reshape(4, 10), "b": np.arange(40.0).reshape(4, 10)}
    regions = {
        "nulls": [("a", np.s_[:, 2:4]), None, ("a", np.s_[:, 5:7])],
        "both": [("a", np.s_[:, 2:4]), ("b", np.s_[:, 5:7])],
    }
    write_regions(path, {**data, "t": np.arange(4) * 2, "x": np.arange(10) + 100}, regions)
    with h5py.File(path, "r+") as file:
        for axis, name in enumerate("tx"):
            file[name].make_scale(name)
            for target in data:
                file[target].dims[axis].attach_scale(file[name])
    with xr.open_dataset(path, engine="h5ref") as ds:
        nulls = ds["nulls"].h5ref.resolve(on_null="fill")
        assert nulls["t"].values.tolist() == [0, 2, 4, 6]
        np.testing.assert_array_equal(nulls["x"], [[102, 103], [np.nan] * 2, [105, 106]])
        both = ds["both"].h5ref.resolve()
        assert both["t"].values.tolist() == [0, 2, 4, 6]
        assert both["x"].values.tolist() == [[102, 103], [105, 106]]
        along = ds["both"].rename({ds["both"].dims[0]: "x"}).h5ref.resolve()
        assert along.dims == ("x", "t", "x_1")
        assert along["x_1"].values.tolist() == [[102, 103], [105, 106]]


def test_a_scalar_coordinate_comes_along_with_any_selection(tmp_path: Path) -> None:
    path = tmp_path / "station.h5"
    image = np.arange(40).reshape(4, 10)
    regions = {"r": [("img", np.s_[:, [1, 5, 9]]), ("img", np.s_[:, 2:5])]}
    write_regions(path, {"img": image, "station": np.array(7)}, regions)
    with h5py.File(path, "r+") as file:
        file["img"].attrs["coordinates"] = "station"
    with xr.open_dataset(path, engine="h5ref") as ds:
        listed = ds["r"].values[0].resolve()
        assert listed["station"].item() == 7
        np.testing.assert_array_equal(listed, image[:, [1, 5, 9]])


def test_null_text_is_filled_with_no_text(tmp_path: Path) -> None:
    path = tmp_path / "text.h5"
    write_regions(path, {"d": np.array(["a", "bb"], object)}, {"r": [("d", np.s_[0:2]), None]})
    with xr.open_dataset(path, engine="h5ref") as ds:
        filled = ds["r"].h5ref.resolve(on_null="fill")
        assert filled.values.tolist() == [["a", "bb"], ["", ""]]
