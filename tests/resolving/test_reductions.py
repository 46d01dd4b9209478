"""Statistics of each region and functions of the user, against NumPy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from rois import DATA, STARTS, TIMES, WHOLE, regions_of
from strategies import write_references, write_regions

import xref

STATISTICS = {
    "count": lambda v: np.isfinite(v).sum() if v.dtype.kind == "f" else v.size,
    "sum": np.nansum,
    "mean": np.nanmean,
    "min": np.nanmin,
    "max": np.nanmax,
    "std": np.nanstd,
}


@pytest.mark.sampled(11)
@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize(
    "name", ["data_rois", "data_ragged", "data_points", "whole_ragged", "whole_rois_grid"]
)
@pytest.mark.parametrize("chunks", [None, 2, "auto"])
def test_statistics_equal_numpy(
    rois_path: Path, rois_ds: xr.Dataset, name: str, statistic: str, chunks: Any
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy, where all are NaN
        expected = np.array(
            [STATISTICS[statistic](v.astype("f8")) for v in regions_of(rois_path, name)]
        )
    result = getattr(rois_ds[name].h5ref, statistic)(chunks=chunks)
    assert result.dims == rois_ds[name].dims
    assert dask.is_dask_collection(result) is (chunks is not None)
    np.testing.assert_allclose(result.values.ravel(), expected, rtol=1e-5, atol=1e-7)


def test_statistics_have_the_dtypes_of_numpy(rois_ds: xr.Dataset) -> None:
    whole = rois_ds["whole_rois"].h5ref
    assert whole.sum().dtype == np.int64
    assert whole.min().dtype == WHOLE.dtype
    assert whole.mean().dtype == np.float64
    assert rois_ds["data_rois"].h5ref.mean().dtype == DATA.dtype
    assert whole.count().dtype == np.int64
    for result in (whole.sum(), whole.min(), whole.mean(), rois_ds["data_rois"].h5ref.mean()):
        assert result.compute().dtype == result.dtype


def test_statistics_of_empty_regions_are_missing(rois_ds: xr.Dataset) -> None:
    empties = rois_ds["empties"].h5ref
    assert empties.count().values.tolist() == [0, 5, 0]
    assert empties.sum().values[[0, 2]].tolist() == [0, 0]
    for statistic in ("mean", "min", "max", "std"):
        values = getattr(empties, statistic)().values
        assert np.isnan(values).tolist() == [True, False, True]


def test_statistics_of_null_references_are_missing(rois_ds: xr.Dataset) -> None:
    nulls = rois_ds["data_nulls"].h5ref
    assert nulls.count(on_null="fill").values[[1, 3]].tolist() == [0, 0]
    assert np.isnan(nulls.mean(on_null="fill").values[[1, 3]]).all()
    assert np.isnan(rois_ds["whole_nulls"].h5ref.max(on_null="fill").values[1])
    assert nulls.sum(on_null="drop").shape == (2,)
    with pytest.raises(xref.NullReferenceError):
        nulls.mean()


def test_datetimes_have_min_and_max_but_no_sum(rois_ds: xr.Dataset) -> None:
    stamps = np.datetime64("2000-01-01", "ns") + TIMES * np.timedelta64(1, "h")
    boxes = np.array([stamps[y : y + 4, x : x + 6] for y, x in STARTS])
    np.testing.assert_array_equal(rois_ds["times_rois"].h5ref.min(), boxes.min((1, 2)))
    np.testing.assert_array_equal(rois_ds["times_rois"].h5ref.max(), boxes.max((1, 2)))
    assert rois_ds["times_rois"].h5ref.count().values.tolist() == [24] * 6
    with pytest.raises(TypeError, match="sum"):
        rois_ds["times_rois"].h5ref.sum()


def test_means_of_large_integers_do_not_overflow(tmp_path: Path) -> None:
    path = tmp_path / "large.h5"
    values = np.full(20, 1_700_000_000_000_000_000)
    write_regions(path, {"d": values}, {"r": [("d", np.s_[0:20])]})
    with xr.open_dataset(path, engine="h5ref") as ds:
        np.testing.assert_allclose(ds["r"].h5ref.mean(), values.mean())
        np.testing.assert_allclose(ds["r"].h5ref.std(), 0)


def test_reduce_calls_a_function_of_each_region(rois_path: Path, rois_ds: xr.Dataset) -> None:
    regions = regions_of(rois_path, "whole_ragged")
    medians = rois_ds["whole_ragged"].h5ref.reduce(np.median)
    np.testing.assert_allclose(medians, [np.median(r) for r in regions])
    quantiles = rois_ds["whole_ragged"].h5ref.reduce(np.quantile, 0.25, chunks=2)
    np.testing.assert_allclose(quantiles, [np.quantile(r, 0.25) for r in regions])
    shapes = rois_ds["whole_ragged"].h5ref.reduce(
        lambda v: v.shape[0] * 10 + v.shape[1], dtype=int
    )
    assert shapes.values.tolist() == [11, 21 + 1, 33, 44, 55]


def test_map_gives_arrays_or_objects(rois_path: Path, rois_ds: xr.Dataset) -> None:
    regions = regions_of(rois_path, "whole_ragged")

    def ends(values: np.ndarray, scale: int) -> np.ndarray:
        return np.array([values.flat[0], values.flat[-1]]) * scale

    both = rois_ds["whole_ragged"].h5ref.map(ends, scale=2, output_sizes={"end": 2}, dtype="i8")
    assert both.dims == (*rois_ds["whole_ragged"].dims, "end")
    np.testing.assert_array_equal(both, [[r.flat[0] * 2, r.flat[-1] * 2] for r in regions])
    found = rois_ds["whole_ragged"].h5ref.map(lambda v: {"n": v.size}, dtype=object).values
    assert [f["n"] for f in found] == [r.size for r in regions]


def test_an_error_of_the_users_function_is_shown(rois_ds: xr.Dataset) -> None:
    def fail(values: np.ndarray) -> float:
        raise RuntimeError("my own mistake")

    with pytest.raises(ValueError, match="my own mistake"):
        rois_ds["whole_rois"].h5ref.map(fail)
    with pytest.raises(RuntimeError, match="my own mistake"):
        rois_ds["whole_rois"].h5ref.map(fail, dtype=float).compute()


def test_functions_get_the_items_of_array_types(tmp_path: Path) -> None:
    path = tmp_path / "items.h5"
    values = np.arange(24).reshape(8, 3)
    with h5py.File(path, "w") as file:
        d = file.create_dataset("d", (8,), dtype=np.dtype(("i8", (3,))))
        d[...] = values
        write_references(file, "r", [d.regionref[0:2], d.regionref[4:8]])
    with xr.open_dataset(path, engine="h5ref") as ds:
        medians = ds["r"].h5ref.reduce(np.median)
        assert medians.values.tolist() == [np.median(values[0:2]), np.median(values[4:8])]
        with pytest.raises(TypeError, match="arrays"):
            ds["r"].h5ref.mean()


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
