"""What ``layout="concat"`` gives: coordinates, names, chunks, reads, files written, errors."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import oracle
import pandas as pd
import pytest
import xarray as xr
from stdrefs import select, to_object, to_region, write_dataset
from strategies import listed_points, nothing, write_references

import xref
from xref.resolving import concat_coords
from xref.storage.read_counts import count_reads

LINES = (40, 25, 0, 60, 1, 33)  # of the granules
COLUMNS = 8


def write_granule(path: Path, k: int, n: int) -> None:
    """Write a swath with a margin of 3 lines, its coordinates, and a reference to the rest."""
    shape = n + 3, COLUMNS
    with h5py.File(path, "w") as file:
        values = np.arange(shape[0] * COLUMNS, dtype="i2").reshape(shape)
        swath = file.create_dataset(
            "swath", data=values, chunks=(10, 4), compression="gzip", maxshape=(None, COLUMNS)
        )
        swath.attrs.update(scale_factor=0.5 + k, units="K", coordinates="lat orbit")
        file["time"] = np.arange(shape[0], dtype="i4")
        file["time"].attrs["units"] = f"seconds since 2000-01-0{k + 1}"
        file["column"] = np.arange(COLUMNS) * 2.0
        file["lat"] = values + 0.25 * k
        file["orbit"] = 100 + k
        for axis, name in enumerate(("time", "column")):
            file[name].make_scale(name)
            for variable in ("swath", "lat"):
                file[variable].dims[axis].attach_scale(file[name])
        write_references(file, "granule", [swath.regionref[3:]])


@pytest.fixture(scope="module")
def granules(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("granules")
    paths = [folder / f"granule{k}.h5" for k in range(len(LINES))]
    for k, path in enumerate(paths):
        write_granule(path, k, LINES[k])
    return paths


def only_granule(dataset: xr.Dataset) -> xr.Dataset:
    alone = dataset[["granule"]].reset_coords(drop=True)
    return alone.rename_dims({dataset["granule"].dims[0]: "file"})


@pytest.fixture
def swaths(granules: list[Path]) -> Iterator[xr.DataArray]:
    """References to the granules in six files."""
    with xr.open_mfdataset(
        granules, engine="h5ref", combine="nested", concat_dim="file", preprocess=only_granule
    ) as dataset:
        yield dataset["granule"]


def read_loop(granules: list[Path], name: str) -> list[np.ndarray]:
    """Read a variable of each file with xarray's own engine, without the margin."""
    parts = []
    for path in granules:
        with xr.open_dataset(path, engine="h5netcdf", phony_dims="sort") as dataset:
            parts.append(dataset[name].values[3:])
    return parts


def write_trials(path: Path) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Write a signal of two channels, the regions of four trials of both, and of each."""
    signal = np.arange(200.0).reshape(2, 100)
    spans = [(3, 20), (20, 27), (60, 61), (40, 80)]
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("signal", data=signal, chunks=(1, 16))
        file["time"] = np.arange(100) * 0.01
        file["channel"] = [7, 9]
        for axis, name in enumerate(("channel", "time")):
            file[name].make_scale(name)
            stored.dims[axis].attach_scale(file[name])
        both = write_references(file, "trials", [stored.regionref[:, a:b] for a, b in spans])
        each = [stored.regionref[c, a:b] for c in range(2) for a, b in spans]
        single = write_references(file, "single", each, (2, 4))
        file["trial"] = [11, 12, 13, 14]
        file["probe"] = [5, 6]
        for name in ("trial", "probe"):
            file[name].make_scale(name)
        both.dims[0].attach_scale(file["trial"])
        single.dims[0].attach_scale(file["probe"])
        single.dims[1].attach_scale(file["trial"])
    return signal, spans


# --- granules into rows, trials into time ----------------------------------------------------


def test_granules_of_six_files_are_joined_into_rows(
    swaths: xr.DataArray, granules: list[Path]
) -> None:
    pytest.importorskip("h5netcdf")
    rows = swaths.h5ref.resolve("concat")
    assert rows.dims == ("time", "column")
    assert rows.units == "K"
    assert "scale_factor" not in rows.attrs
    np.testing.assert_array_equal(rows, np.concatenate(read_loop(granules, "swath")))
    files = np.repeat(np.arange(len(LINES)), LINES)
    np.testing.assert_array_equal(rows["file"], files)
    assert rows["file"].dims == ("time",)
    for name in ("time", "lat"):
        assert rows[name].dims == ("time", "column")[: rows[name].ndim]
        np.testing.assert_array_equal(rows[name], np.concatenate(read_loop(granules, name)))
    assert isinstance(rows.indexes["time"], pd.DatetimeIndex)
    assert rows["column"].dims == ("column",)
    np.testing.assert_array_equal(rows["column"], np.arange(COLUMNS) * 2.0)
    np.testing.assert_array_equal(rows["orbit"], 100 + files)
    np.testing.assert_array_equal(rows["time_start"], np.full(sum(LINES), 3))


def test_joined_granules_are_selected_by_time_and_by_file(swaths: xr.DataArray) -> None:
    rows = swaths.h5ref.resolve("concat")
    assert rows.sel(time="2000-01-04").sizes["time"] == LINES[3]
    counts = rows.groupby("file").count("time").isel(column=0)
    assert dict(zip(counts["file"].values, counts.values, strict=True)) == {
        k: n for k, n in enumerate(LINES) if n
    }


def test_trials_of_two_channels_are_joined_into_time(tmp_path: Path) -> None:
    signal, spans = write_trials(tmp_path / "trials.h5")
    expected = np.concatenate([signal[:, a:b] for a, b in spans], axis=1)
    trials = np.repeat([11, 12, 13, 14], [b - a for a, b in spans])
    with xr.open_dataset(tmp_path / "trials.h5", engine="h5ref") as ds:
        for dim in ("time", 1, -1):
            joined = ds["trials"].h5ref.resolve("concat", concat_dim=dim)
            assert joined.dims == ("channel", "time")
            assert joined.name == "signal"
            np.testing.assert_array_equal(joined, expected)
            np.testing.assert_array_equal(joined["trial"], trials)
            times = np.concatenate([np.arange(a, b) * 0.01 for a, b in spans])
            np.testing.assert_array_equal(joined["time"], times)
            np.testing.assert_array_equal(joined["channel"], [7, 9])
            assert joined["trial"].dims == ("time",)


def test_references_along_two_dimensions_are_joined_in_c_order(tmp_path: Path) -> None:
    signal, spans = write_trials(tmp_path / "trials.h5")
    parts = [signal[c : c + 1, a:b] for c in range(2) for a, b in spans]
    sizes = [b - a for a, b in spans]
    with xr.open_dataset(tmp_path / "trials.h5", engine="h5ref") as ds:
        joined = ds["single"].h5ref.resolve("concat", concat_dim="time")
        np.testing.assert_array_equal(joined, np.concatenate(parts, axis=1))
        np.testing.assert_array_equal(joined["probe"], np.repeat([5, 6], sum(sizes)))
        np.testing.assert_array_equal(
            joined["trial"], np.tile(np.repeat([11, 12, 13, 14], sizes), 2)
        )
        # The channels are not alike for all references: they lie along both dimensions.
        assert joined["channel"].dims == ("time", "channel")
        np.testing.assert_array_equal(
            joined["channel"].isel(channel=0), np.repeat([7, 9], sum(sizes))
        )
        one = ds["single"].sel(probe=6).h5ref.resolve("concat", concat_dim="time")
        np.testing.assert_array_equal(one, np.concatenate(parts[4:], axis=1))
        assert one["probe"].item() == 6
        np.testing.assert_array_equal(one["channel"], [9])


# --- coordinates -----------------------------------------------------------------------------


def write_pair(path: Path, columns: list[Any], extra: dict[str, Any] | None = None) -> None:
    """Write datasets in groups, each with ``y`` and ``x``, and references to them."""
    with h5py.File(path, "w") as file:
        refs = []
        for k, column in enumerate(columns):
            n = 2 + k
            group = file.create_group(f"run{k}")
            group["v"] = np.arange(n * 3).reshape(n, 3) + 100 * k
            group["y"], group["x"] = np.arange(n) + 10 * k, column
            for axis, name in enumerate("yx"):
                group[name].make_scale(name)
                group["v"].dims[axis].attach_scale(group[name])
            refs.append(group["v"].ref)
        write_references(file, "run", refs, dtype=h5py.ref_dtype)
        for name, values in (extra or {}).items():
            file[name] = values


def test_equal_coordinates_of_other_datasets_are_kept_once(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.h5", [[1.0, 2.0, np.nan]] * 2)
    with xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as ds:
        joined = ds["run"].h5ref.resolve("concat")
        assert joined["x"].dims == ("x",)
        np.testing.assert_array_equal(joined["x"], [1.0, 2.0, np.nan])
        np.testing.assert_array_equal(joined["y"], [0, 1, 10, 11, 12])


@pytest.mark.parametrize("bound", [0, 1 << 20])
def test_coordinates_that_differ_are_repeated_for_each_row(
    tmp_path: Path, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also equal ones that are too large to compare: they are never silently wrong."""
    monkeypatch.setattr(concat_coords, "COMPARED_NBYTES", bound)
    write_pair(tmp_path / "a.h5", [[1.0, 2.0, 3.0], [1.0, 2.0, 4.0]])
    with xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as ds:
        joined = ds["run"].h5ref.resolve("concat")
        assert joined["x"].dims == ("y", "x")
        np.testing.assert_array_equal(joined["x"][:, 2], [3.0, 3.0, 4.0, 4.0, 4.0])
        part = joined.isel(y=[4, 0], x=2)
        np.testing.assert_array_equal(part["x"], [4.0, 3.0])


def test_coordinates_without_a_common_type_are_left_out_with_a_warning(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.h5", [[1.0, 2.0, 3.0], np.array([b"a", b"b", b"c"])])
    with xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as ds:
        with pytest.warns(xref.errors.UnreadableMemberWarning, match="coordinate 'x'"):
            joined = ds["run"].h5ref.resolve("concat")
        assert "x" not in joined.coords
        assert "y" in joined.coords


def test_coordinates_that_some_targets_lack_are_left_out(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.h5", [[1.0, 2.0, 3.0]] * 2)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["bare"] = np.zeros((1, 3), dtype="i8")
        refs = [*file["run"][()], file["bare"].ref]
        write_references(file, "three", refs, dtype=h5py.ref_dtype)
    with xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as ds:
        joined = ds["three"].h5ref.resolve("concat")
        assert set(joined.coords) == {ds["three"].dims[0], joined.dims[0]}
        assert joined.shape == (6, 3)
        # Instead of a coordinate, each row has its position in its target.
        np.testing.assert_array_equal(joined[joined.dims[0]], [0, 1, 0, 1, 2, 0])
        assert joined.dims[0] not in joined.indexes


def test_a_scalar_coordinate_that_some_targets_lack_is_left_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for k in range(2):
            file[f"run{k}/values"] = np.arange(4.0) + k
            file[f"run{k}/values"].attrs["coordinates"] = "orbit"
        file["run0/orbit"] = 5
        regions = [file[f"run{k}/values"].regionref[1:3] for k in range(2)]
        write_references(file, "runs", regions)
        write_references(file, "reverse", regions[::-1])
    with xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as ds:
        for name in ("runs", "reverse"):
            joined = ds[name].h5ref.resolve("concat")
            assert "orbit" not in joined.coords
            assert sorted(joined.values) == [1, 2, 2, 3]
        assert ds["runs"][:1].h5ref.resolve("concat")["orbit"] == 5


def test_points_of_an_image_keep_their_coordinates(tmp_path: Path) -> None:
    points = [[(1, 2), (0, 0)], [(1, 1), (1, 1), (0, 2)]]
    write_pair(tmp_path / "a.h5", [[1.0, 2.0, 3.0]])
    with h5py.File(tmp_path / "a.h5", "a") as file:
        made = [listed_points(p)(file["run0/v"]) for p in points]
        write_references(file, "points", [made[0], nothing(file["run0/v"]), made[1]])
    with xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as ds:
        joined = ds["points"].h5ref.resolve("concat")
        assert joined.dims == ("point",)
        np.testing.assert_array_equal(joined, [5, 0, 4, 4, 2])
        np.testing.assert_array_equal(joined["y"], [1, 0, 1, 1, 0])
        np.testing.assert_array_equal(joined["x"], [3.0, 1.0, 2.0, 2.0, 3.0])
        np.testing.assert_array_equal(joined[ds["points"].dims[0]], [0, 0, 2, 2, 2])


def test_all_coordinates_of_the_references_are_repeated(tmp_path: Path) -> None:
    write_trials(tmp_path / "trials.h5")
    with xr.open_dataset(tmp_path / "trials.h5", engine="h5ref") as ds:
        array = ds["single"].assign_coords(
            mouse=("trial", ["a", "b", "c", "d"]),
            onset=("trial", pd.date_range("2000", periods=4)),
            score=(("trial", "probe"), np.arange(8.0).reshape(4, 2)),
            lab="x",
            origin=ds["trials"],
        )
        joined = array.h5ref.resolve("concat", concat_dim="time")
        probe = np.searchsorted([5, 6], joined["probe"])
        trial = np.searchsorted([11, 12, 13, 14], joined["trial"])
        for name in ("mouse", "onset", "score"):
            place = {
                d: xr.DataArray(i, dims="time")
                for d, i in {"probe": probe, "trial": trial}.items()
                if d in array[name].dims
            }
            expected = array[name].isel(place)
            assert joined[name].dims == ("time",)
            np.testing.assert_array_equal(joined[name], expected)
        assert joined["lab"].item() == "x"
        assert isinstance(joined["origin"].variable._data, xref.ReferenceArray)
        assert joined["origin"].values[-1] == ds["trials"].values[-1]
        assert set(joined.coords) >= {"mouse", "onset", "score", "lab", "origin"}
        assert joined.isel(time=-1)["score"].item() == 7.0
        pickled = pickle.loads(pickle.dumps(joined))
        xr.testing.assert_identical(pickled.drop_vars("origin"), joined.drop_vars("origin"))


def test_a_multiindex_of_references_is_repeated_by_levels(tmp_path: Path) -> None:
    write_trials(tmp_path / "trials.h5")
    with xr.open_dataset(tmp_path / "trials.h5", engine="h5ref") as ds:
        single = ds["single"]
        stacked = single.stack(row=("probe", "trial"))
        joined = stacked.h5ref.resolve("concat", concat_dim="time")
        flat = single.h5ref.resolve("concat", concat_dim="time")
        for name in ("probe", "trial"):
            np.testing.assert_array_equal(joined[name], flat[name])
        assert joined["row"].dtype == np.int64
        assert joined["row"].values[[0, -1]].tolist() == [0, 7]


def test_dimensions_of_targets_keep_their_names(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.h5", [[1.0, 2.0, 3.0]] * 2, {"y": [5, 6]})
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["y"].make_scale("y")
        file["run"].dims[0].attach_scale(file["y"])
    with xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as ds:
        assert ds["run"].dims == ("y",)
        joined = ds["run"].h5ref.resolve("concat", concat_dim="y")
        assert joined.dims == ("y", "x")
        np.testing.assert_array_equal(joined["y"], [0, 1, 10, 11, 12])
        np.testing.assert_array_equal(joined["y_1"], [5, 5, 6, 6, 6])
        bare = ds["run"].h5ref.resolve("concat", coords=False)
        np.testing.assert_array_equal(bare["y_1"], [5, 5, 6, 6, 6])
        assert set(bare.coords) == {"y_1"}


# --- which references ------------------------------------------------------------------------


def test_null_and_empty_references_have_no_rows(tmp_path: Path) -> None:
    data = np.arange(24.0).reshape(6, 4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        image = file.create_dataset("image", data=data)
        parts = [None, image.regionref[1:3], nothing(image), image.regionref[5:], None]
        write_references(file, "parts", parts)
        write_references(file, "nulls", [image.regionref[:1], None, None])
        write_references(file, "grid", [*parts, parts[1]], (3, 2))
    with xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as ds:
        with pytest.raises(xref.NullReferenceError, match=r"\b0\b.* is null"):
            ds["parts"].h5ref.resolve("concat")
        for on_null in ("fill", "drop"):
            joined = ds["parts"].h5ref.resolve("concat", on_null=on_null)
            np.testing.assert_array_equal(joined, data[[1, 2, 5]])
            np.testing.assert_array_equal(joined[ds["parts"].dims[0]], [1, 1, 3])
            grid = ds["grid"].h5ref.resolve("concat", on_null=on_null)
            np.testing.assert_array_equal(grid, data[[1, 2, 5, 1, 2]])
        nothing_left = ds["nulls"][1:].h5ref.resolve("concat", on_null="drop")
        assert nothing_left.shape == (0,)
        assert ds["parts"][:0].h5ref.resolve("concat", concat_dim="y").sizes == {"y": 0}
        empty = ds["parts"][2:3].h5ref.resolve("concat")
        assert empty.shape[0] == 0
        assert empty.dtype == data.dtype
        assert empty.compute().size == 0


def test_a_reference_without_dimensions_is_joined_alone(tmp_path: Path) -> None:
    signal, spans = write_trials(tmp_path / "trials.h5")
    with xr.open_dataset(tmp_path / "trials.h5", engine="h5ref") as ds:
        one = ds["trials"].sel(trial=12).h5ref.resolve("concat", concat_dim="time")
        np.testing.assert_array_equal(one, signal[:, slice(*spans[1])])
        assert one["trial"].item() == 12
        made = ds["signal"].h5ref.regions({"time": [0, 50]}, {"time": [5, 1]})
        joined = made.h5ref.resolve("concat", concat_dim="time")
        np.testing.assert_array_equal(joined, signal[:, [0, 1, 2, 3, 4, 50]])


def test_many_small_datasets_are_joined(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 99, (n, 3)) for n in rng.integers(0, 9, 50)]
    with h5py.File(tmp_path / "cells.h5", "w") as file:
        refs = []
        for k, part in enumerate(parts):
            options = {"chunks": (2, 2)} if k % 3 == 0 and len(part) > 1 else {}
            cell = file.create_dataset(f"cell{k}", data=part, **options)
            if k % 5 == 0:
                cell.attrs["scale_factor"] = 0.5
            refs.append(cell.ref)
        write_references(file, "cells", refs, dtype=h5py.ref_dtype)
    expected = np.concatenate([p * (0.5 if k % 5 == 0 else 1) for k, p in enumerate(parts)])
    with xr.open_dataset(tmp_path / "cells.h5", engine="h5ref") as ds:
        for chunks in (None, "auto", 7):
            joined = ds["cells"].h5ref.resolve("concat", chunks=chunks, dtype="f8")
            np.testing.assert_array_equal(joined, expected)
            for key in (np.s_[5:90:7, 1:], np.s_[::-1, 2], np.s_[[3, 99, 3, 40], :2]):
                np.testing.assert_array_equal(joined[key], expected[key])
        cut = ds["cells"].h5ref.resolve("concat", chunks={joined.dims[0]: 11}, dtype="f8")
        np.testing.assert_array_equal(cut.data.map_blocks(np.copy).compute(), expected)


def test_std_references_are_joined(tmp_path: Path) -> None:
    """References of HDF5 1.12 to regions and to whole datasets, in one variable."""
    with h5py.File(tmp_path / "std.h5", "w") as file:
        data = np.arange(40.0).reshape(8, 5)
        file["data"] = data
        box = select(file, "data", ((2, 0), (1, 1), (1, 1), (3, 5)))
        makers = [to_region(file, "data", box), None, to_object(file, "data")]
        write_dataset(file, "refs", makers)
    with xr.open_dataset(tmp_path / "std.h5", engine="h5ref") as ds:
        joined = ds["refs"].h5ref.resolve("concat", on_null="drop")
        np.testing.assert_array_equal(joined, np.concatenate([data[2:5], data]))
        np.testing.assert_array_equal(joined[joined.dims[0]], [2, 3, 4, *range(8)])


def test_series_of_nwb_are_joined_into_time(tmp_path: Path) -> None:
    series = np.dtype([("idx_start", "i4"), ("count", "i4"), ("timeseries", h5py.ref_dtype)])
    with h5py.File(tmp_path / "series.h5", "w") as file:
        for name, k in (("trace", 0), ("other", 1000)):
            file[f"{name}/data"] = np.arange(200.0).reshape(100, 2) + k
        spans = [("trace", 20, 2), ("other", 70, 3), (None, -1, -1), ("trace", 5, 0)]
        rows = [(a, n, name and file[name].ref) for name, a, n in spans]
        file.create_dataset("trials", data=np.array(rows, series), dtype=series)
        parts = [file[f"{name}/data"][a : a + n] for name, a, n in spans[:2]]
    with xr.open_dataset(tmp_path / "series.h5", engine="h5ref") as ds:
        joined = ds["trials"].h5ref.resolve("concat", on_null="drop")
        np.testing.assert_array_equal(joined, np.concatenate(parts))
        np.testing.assert_array_equal(joined[ds["trials"].dims[0]], [0, 0, 1, 1, 1])


# --- blocks and reads ------------------------------------------------------------------------


def write_windows(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write 40 overlapping windows in random order of 20 chunks of one dataset."""
    rng = np.random.default_rng(0)
    data = np.arange(16_000.0).reshape(1000, 16)
    starts, lengths = rng.integers(0, 960, 40), rng.integers(1, 40, 40)
    with h5py.File(path, "w") as file:
        big = file.create_dataset("big", data=data, chunks=(50, 16), compression="gzip")
        spans = list(zip(starts.tolist(), lengths.tolist(), strict=True))
        write_references(file, "windows", [big.regionref[a : a + n] for a, n in spans])
    return np.concatenate([data[a : a + n] for a, n in spans]), np.cumsum(lengths)


def counted(compute: Callable[[], Any]) -> tuple[np.ndarray, int]:
    with count_reads() as counts:
        result = compute()
    return np.asarray(result), counts.chunks_decoded


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_blocks_that_share_chunks_read_each_chunk_once(tmp_path: Path, scheduler: str) -> None:
    expected, ends = write_windows(tmp_path / "windows.h5")
    with xr.open_dataset(tmp_path / "windows.h5", engine="h5ref") as ds:
        windows = ds["windows"].h5ref
        rows, columns = windows.resolve("concat").dims
        for chunks in (3, {rows: 17}, {rows: 17, columns: 5}):
            blocks = windows.resolve("concat", chunks=chunks).data
            assert blocks.npartitions > 10
            values, n = counted(
                lambda b=blocks: b.map_blocks(np.copy).compute(scheduler=scheduler)
            )
            np.testing.assert_array_equal(values, expected)
            assert n <= 20
        assert windows.resolve("concat", chunks=3).chunks[0] == tuple(
            np.diff([0, *ends[2:39:3], ends[-1]])
        )


def test_an_index_reads_only_the_chunks_of_its_rows(tmp_path: Path) -> None:
    expected, _ = write_windows(tmp_path / "windows.h5")
    with xr.open_dataset(tmp_path / "windows.h5", engine="h5ref") as ds:
        lazy = ds["windows"].h5ref.resolve("concat", chunks=None)
        for key, most in (
            (7, 1),
            (slice(0, 3), 1),
            ([800, 3, 400, 3], 3),
            (slice(0, 30, 9), 4),
        ):
            values, n = counted(lambda k=key: lazy[k].values)
            np.testing.assert_array_equal(values, expected[key])
            assert n <= most
        blocks = ds["windows"].h5ref.resolve("concat", chunks={lazy.dims[0]: 100})
        values, n = counted(lambda: blocks[110:112].values)
        np.testing.assert_array_equal(values, expected[110:112])
        assert n <= 2
        _, n = counted(lambda: lazy.compute())
        assert n <= 20


def test_auto_blocks_end_between_references_or_between_chunks(
    swaths: xr.DataArray, granules: list[Path]
) -> None:
    pytest.importorskip("h5netcdf")
    row_nbytes = COLUMNS * 8
    with dask.config.set({"array.chunk-size": 26 * row_nbytes}):
        rows = swaths.h5ref.resolve("concat")
        # The regions begin with line 3; chunks end before lines 10, 20, 30, ...
        assert rows.chunks == ((17, 23, 25, 17, 20, 24, 17, 16), (COLUMNS,))
        np.testing.assert_array_equal(
            rows.data.map_blocks(np.copy).compute(),
            np.concatenate(read_loop(granules, "swath")),
        )
    with dask.config.set({"array.chunk-size": 4 * 8}):
        rows = swaths.h5ref.resolve("concat")
        assert set(rows.chunks[0]) == {1}
        assert max(rows.chunks[1]) <= 4


def test_chunks_of_the_user(swaths: xr.DataArray) -> None:
    def chunks(given: Any) -> Any:
        return swaths.h5ref.resolve("concat", chunks=given).chunks

    n = sum(LINES)
    assert chunks("auto") == chunks(-1) == ((n,), (COLUMNS,))
    assert chunks(1) == (tuple(k for k in LINES if k), (COLUMNS,))
    assert chunks(4) == chunks({"file": 4}) == ((125, 34), (COLUMNS,))
    assert chunks({"time": 100, "column": 5}) == ((100, 59), (5, 3))
    assert chunks({"time": (9, 150)}) == ((9, 150), (COLUMNS,))
    assert chunks(None) is None
    for wrong in ({"row": 1}, 0, "big"):
        with pytest.raises(ValueError, match="chunks"):
            chunks(wrong)


def test_chunks_divide_the_axes_of_array_types(tmp_path: Path) -> None:
    values = np.arange(5 * 3 * 4).reshape(5, 3, 4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", (5, 3), np.dtype(("i4", (4,))))
        data[...] = values
        write_references(file, "parts", [data.regionref[:2], data.regionref[1:]])
    expected = np.concatenate([values[:2], values[1:]])
    with xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as ds:
        joined = ds["parts"].h5ref.resolve("concat", chunks=1)
        assert joined.chunks == ((2, 4), (3,), (4,))
        np.testing.assert_array_equal(joined, expected)
        chunks = dict(zip(joined.dims, (4, 2, 3), strict=True))
        joined = ds["parts"].h5ref.resolve("concat", chunks=chunks)
        np.testing.assert_array_equal(joined.data.map_blocks(np.copy).compute(), expected)
        np.testing.assert_array_equal(joined[::-2, 1, 1:3], expected[::-2, 1, 1:3])


def test_tasks_are_small_for_references_along_two_dimensions(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", data=np.arange(9000.0), chunks=(100,))
        grid = file.create_dataset("grid", (90, 100), dtype=h5py.regionref_dtype)
        for k in range(90):
            grid[k] = [data.regionref[i : i + 1] for i in range(k * 100, k * 100 + 100)]
    with xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as ds:
        joined = ds["grid"].h5ref.resolve("concat", chunks={"phony_dim_2": 500})
        assert len(pickle.dumps(joined.data)) < 10_000
        np.testing.assert_array_equal(joined, np.arange(9000.0))
        part = pickle.loads(pickle.dumps(joined.data))[4321:8765:3]
        np.testing.assert_array_equal(part.compute(), np.arange(9000.0)[4321:8765:3])


@pytest.mark.slow
def test_processes_give_the_same_values(tmp_path: Path) -> None:
    expected, _ = write_windows(tmp_path / "windows.h5")
    with (
        xr.open_dataset(tmp_path / "windows.h5", engine="h5ref") as ds,
        dask.config.set(scheduler="processes", num_workers=2),
    ):
        dim = ds["windows"].h5ref.resolve("concat").dims[0]
        blocks = ds["windows"].h5ref.resolve("concat", chunks={dim: 17}).data
        (optimized,) = dask.optimize(blocks + 0)
        assert any("xref-chunks" in str(key) for key in dict(optimized.dask))
        np.testing.assert_array_equal((blocks + 0).compute(), expected)


# --- written again ---------------------------------------------------------------------------


def test_joined_granules_are_written_and_read_again(
    swaths: xr.DataArray, tmp_path: Path
) -> None:
    pytest.importorskip("h5netcdf")
    rows = swaths.h5ref.resolve("concat", chunks=3)
    assert rows.encoding["chunksizes"] == (10, 4)
    path = tmp_path / "rows.h5"
    rows.to_dataset(name="swath").h5ref.to_hdf5(path)
    with h5py.File(path) as file:
        assert file["swath"].chunks == (10, 4)
    with xr.open_dataset(path, engine="h5ref") as again:
        xr.testing.assert_equal(again["swath"].compute(), rows.rename("swath").compute())
    other = tmp_path / "rows.nc"
    rows.to_netcdf(other, engine="h5netcdf")
    with xr.open_dataset(other, engine="h5netcdf") as again:
        np.testing.assert_array_equal(again[rows.name], rows)
        np.testing.assert_array_equal(again["time"], rows["time"])


def test_a_packing_that_all_targets_share_is_kept(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        parts = []
        for k in range(2):
            part = file.create_dataset(f"p{k}", data=np.arange(6, dtype="i2") + 10 * k)
            part.attrs.update(scale_factor=0.5, _FillValue=np.int16(3))
            parts.append(part.regionref[1:5])
        write_references(file, "parts", parts)
    expected = [0.5, 1, np.nan, 2, 5.5, 6, 6.5, 7]
    with xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as ds:
        joined = ds["parts"].h5ref.resolve("concat")
        np.testing.assert_array_equal(joined, expected)
        joined.to_dataset(name="v").h5ref.to_hdf5(tmp_path / "b.h5")
    with h5py.File(tmp_path / "b.h5") as file:
        assert file["v"].dtype == "i2"
        np.testing.assert_array_equal(file["v"], [1, 2, 3, 4, 11, 12, 13, 14])


# --- errors ----------------------------------------------------------------------------------


@pytest.fixture
def shapes(tmp_path: Path) -> Iterator[xr.Dataset]:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        image = file.create_dataset("image", data=np.arange(48).reshape(6, 8))
        file["scalar"], file["line"] = 1.0, np.arange(3)
        for axis, name in enumerate("yx"):
            file[name] = np.arange(image.shape[axis])
            file[name].make_scale(name)
            image.dims[axis].attach_scale(file[name])
        keys = (np.s_[:2, :3], np.s_[:2, :5], np.s_[2:4, :3], np.s_[:1, :3])
        write_references(file, "widths", [image.regionref[key] for key in keys[:3]])
        write_references(file, "both", [image.regionref[key] for key in keys])
        mixed = [image.regionref[:2], listed_points([(0, 1)])(image)]
        write_references(file, "mixed", mixed)
        scalars = [file["scalar"].ref] * 2
        write_references(file, "scalars", scalars, dtype=h5py.ref_dtype)
    with xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as ds:
        yield ds


def test_shapes_that_do_not_join_are_named_with_their_references(shapes: xr.Dataset) -> None:
    with pytest.raises(ValueError, match="do not join along 'y'") as caught:
        shapes["widths"].h5ref.resolve("concat")
    message = str(caught.value)
    for words in ("(2, 3)", "reference 0 of", "(2, 5)", "reference 1 of", "/image[0:2, 0:5]"):
        assert words in message
    assert "concat_dim='x', layout='ragged' or layout='pad'" in message
    assert shapes["widths"].h5ref.resolve("concat", concat_dim="x").shape == (2, 11)
    with pytest.raises(ValueError, match="use layout='ragged' or layout='pad'"):
        shapes["both"].h5ref.resolve("concat")


def test_the_error_of_stacking_names_the_layouts_that_fit(shapes: xr.Dataset) -> None:
    one_axis = "layout='ragged', layout='pad' or layout='concat' with concat_dim=1, or"
    with pytest.raises(ValueError, match=one_axis):
        shapes["widths"].h5ref.resolve()
    with pytest.raises(ValueError, match="use layout='ragged' or layout='pad', or"):
        shapes["both"].h5ref.resolve()
    with pytest.raises(ValueError, match="use layout='ragged', or"):
        shapes["mixed"].h5ref.resolve()


def test_results_of_different_ranks_do_not_join(shapes: xr.Dataset) -> None:
    with pytest.raises(ValueError, match=re.escape("(2, 8)")) as caught:
        shapes["mixed"].h5ref.resolve("concat")
    assert "(1,)" in str(caught.value)
    assert "layout='ragged'" in str(caught.value)


def test_scalars_do_not_join(shapes: xr.Dataset) -> None:
    with pytest.raises(ValueError, match=r"scalars .* use layout='stack' or layout='ragged'"):
        shapes["scalars"].h5ref.resolve("concat")


@pytest.mark.parametrize("dim", ["z", 2, -3, 1.0, True, ("y",)])
def test_an_unknown_dimension_is_refused_with_the_known_ones(
    shapes: xr.Dataset, dim: Any
) -> None:
    with pytest.raises(ValueError, match=re.escape("['y', 'x']")):
        shapes["widths"].h5ref.resolve("concat", concat_dim=dim)


def test_a_dimension_is_for_joined_results_only(shapes: xr.Dataset) -> None:
    for layout in ("stack", "ragged", "pad"):
        with pytest.raises(ValueError, match="layout='concat'"):
            shapes["widths"].h5ref.resolve(layout, concat_dim="x")
    with pytest.raises(ValueError, match="'concat'"):
        shapes["widths"].h5ref.resolve("join")


def test_units_that_differ_give_a_warning(tmp_path: Path) -> None:
    write_pair(tmp_path / "a.h5", [[1.0, 2.0, 3.0]] * 2)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        for k, units in enumerate(("K", "degC")):
            file[f"run{k}/v"].attrs["units"] = units
    with (
        xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as ds,
        pytest.warns(UserWarning, match=r"'K'.*'degC'"),
    ):
        assert "units" not in ds["run"].h5ref.resolve("concat").attrs


def test_values_equal_the_oracle(tmp_path: Path) -> None:
    write_trials(tmp_path / "trials.h5")
    with h5py.File(tmp_path / "trials.h5") as file:
        parts = [oracle.answer(file["signal"], ref).array for ref in file["trials"][()]]
    with xr.open_dataset(tmp_path / "trials.h5", engine="h5ref") as ds:
        joined = ds["trials"].h5ref.resolve("concat", concat_dim=1)
        oracle.assert_same(joined.values, np.concatenate(parts, axis=1))
