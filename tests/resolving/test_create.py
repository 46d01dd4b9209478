"""References made from whole variables, by index, by label, and from tables of boxes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from samples import open_h5
from strategies import write_references

import xref
from xref.errors import SelectionError

TIME, LAT, LON = 4, 10, 20
VALUES = np.arange(TIME * LAT * LON, dtype="f4").reshape(TIME, LAT, LON)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("creating") / "field.h5"
    dataset = xr.Dataset(
        {"t": (("time", "lat", "lon"), VALUES), "n": ("time", np.arange(TIME))},
        coords={
            "time": pd.date_range("2020-01-01", periods=TIME),
            "lat": np.linspace(0, 90, LAT),
            "lon": np.arange(LON) * 10.0,
        },
    )
    xref.to_hdf5(dataset, path, encoding={"t": {"zlib": True, "chunksizes": (1, 5, 5)}})
    return path


@pytest.fixture(params=["lazy", "dask", "in memory"])
def field(path: Path, request: pytest.FixtureRequest) -> Iterator[xr.DataArray]:
    with open_h5(path, chunks={} if request.param == "dask" else None) as ds:
        yield ds["t"].load() if request.param == "in memory" else ds["t"]


def assert_region(region: Any, expected: Any) -> None:
    """Compare the resolved region, flat; an integer index gives an axis of length 1."""
    assert isinstance(region, xref.RegionReference)
    np.testing.assert_array_equal(region.resolve().values.ravel(), np.ravel(expected))
    assert pickle.loads(pickle.dumps(region)) == region


SELECTIONS: dict[str, Any] = {
    "label slice": lambda t: t.sel(lat=slice(40, 70)),
    "labels": lambda t: t.sel(time="2020-01-02", lon=[30.0, 50.0, 110.0]),
    "nearest": lambda t: t.sel(lat=33, method="nearest"),
    "slices": lambda t: t.isel(lat=slice(1, 9, 3), lon=slice(5, 9)),
    "integers": lambda t: t[1, 2, 3],
    "lists": lambda t: t.isel(lat=[0, 1, 5], lon=[2, 3, 9]),
    "twice": lambda t: t.isel(lat=slice(2, 9)).isel(lat=slice(1, 4), time=2),
    "mask of an axis": lambda t: t[:, t.lat.values > 45],
    "nothing": lambda t: t.isel(lat=slice(3, 3)),
    "whole": lambda t: t,
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_region_of_a_selection_has_the_selected_elements(
    field: xr.DataArray, name: str
) -> None:
    chosen = SELECTIONS[name](field)
    assert_region(chosen.h5ref.region_reference(), chosen.values)


def test_points_keep_their_order(path: Path) -> None:
    with open_h5(path) as ds:
        places = xr.DataArray([7, 0, 7], dims="p")
        chosen = ds["t"].isel(time=1, lat=places, lon=places + 2)
        region = chosen.h5ref.region_reference()
        assert region.selection.kind == "points"
        assert_region(region, VALUES[1, [7, 0, 7], [9, 2, 9]])


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "labels",
    [
        {"lat": slice(40, 70)},
        {"lat": [40.0, 50.0], "time": "2020-01-03"},
        {"time": slice("2020-01-02", "2020-01-03"), "lon": 30.0},
        {
            "lat": xr.DataArray([10.0, 40.0], dims="p"),
            "lon": xr.DataArray([0.0, 90.0], dims="p"),
        },
    ],
    ids=str,
)
def test_labels_select_as_in_xarray(field: xr.DataArray, labels: dict[str, Any]) -> None:
    region = field.h5ref.region_reference(**labels)
    expected = field.sel(labels)
    assert_region(region, expected.values)


def test_an_index_of_a_selection_counts_within_it(path: Path) -> None:
    with open_h5(path) as ds:
        part = ds["t"].isel(time=2, lat=slice(3, None))
        assert_region(part.h5ref.region_reference(np.s_[1:3, -2:]), VALUES[2, 4:6, -2:])
        assert_region(part.h5ref.region_reference(0, [1, 4]), VALUES[2, 3, [1, 4]])
        assert_region(part.h5ref.region_reference(..., 5), VALUES[2, 3:, 5])


def test_masks_are_points_in_c_order(field: xr.DataArray) -> None:
    mask = VALUES % 7 == 3
    for given in (mask, xr.DataArray(mask, dims=field.dims)):
        region = field.h5ref.region_reference(given)
        assert region.selection.kind == "points"
        assert_region(region, VALUES[mask])
    along = field.lat > 50
    assert_region(field.h5ref.region_reference(along), VALUES[:, along.values])


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (IndexError, "out of bounds", lambda t: t.region_reference(11)),
        (IndexError, "4 indices for 3", lambda t: t.region_reference(0, 0, 0, 0)),
        (IndexError, "no index of 'time'", lambda t: t.region_reference("a")),
        (IndexError, "a mask of shape", lambda t: t.region_reference([True, False])),
        (IndexError, r"shape \(n, 3\)", lambda t: t.region_reference(points=[[1, 2]])),
        (IndexError, "point 1", lambda t: t.region_reference(points=[[0, 0, 0], [9, 0, 0]])),
        (KeyError, "no dimensions", lambda t: t.region_reference(height=3)),
        (KeyError, "index 'lat'", lambda t: t.region_reference(lat=41.5)),
        (SelectionError, "do not ascend", lambda t: t.region_reference([2, 1])),
        (SelectionError, "do not ascend", lambda t: t.region_reference(slice(None, None, -1))),
        (TypeError, "not by several", lambda t: t.region_reference(1, lat=3)),
        (SelectionError, "box 1", lambda t: t.regions([[0, 0, 0], [3, 8, 0]], (1, 3, 2))),
        (SelectionError, "box 0", lambda t: t.regions([[0, 0, 0]], (1, -1, 2))),
        (ValueError, "must have 3 numbers", lambda t: t.regions([[0, 0]], (1, 1, 1))),
        (
            TypeError,
            "must be integers, in elements",
            lambda t: t.regions([[0.5, 0, 0]], (1, 1, 1)),
        ),
        (KeyError, "'time_start'", lambda t: t.regions({"row": [1]}, (1, 1, 1))),
        (TypeError, "start and shape", lambda t: t.regions([[0, 0, 0]])),
    ],
)
def test_invalid_indices_and_boxes_raise(
    field: xr.DataArray, error: type[Exception], message: str, make: Any
) -> None:
    with pytest.raises(error, match=message):
        make(field.h5ref)


def test_variables_without_a_file_raise_errors_that_name_to_hdf5(field: xr.DataArray) -> None:
    for computed in (field + 1, xr.DataArray([1, 2], dims="x", name="x")):
        with pytest.raises(TypeError, match="to_hdf5"):
            computed.h5ref.reference()
    with pytest.raises(TypeError, match="no group of a file"):
        xr.Dataset().h5ref.reference()


def test_references_resolve_to_the_variable(field: xr.DataArray) -> None:
    found = field.h5ref.reference().resolve()
    xr.testing.assert_equal(found.load(), field.load())
    assert found.dims == field.dims


def test_elements_that_are_not_stored_have_no_reference(tmp_path: Path) -> None:
    path = tmp_path / "grown.h5"
    with h5py.File(path, "w") as file:
        time = file.create_dataset("time", data=np.arange(5), maxshape=(None,), chunks=(5,))
        time.make_scale()
        short = file.create_dataset("short", data=np.arange(3), maxshape=(None,), chunks=(3,))
        short.dims[0].attach_scale(time)
    with open_h5(path) as ds:
        assert ds["short"].shape == (5,)
        assert ds["short"].h5ref.region_reference(slice(0, 3)).bounds == ((0,), (3,))
        assert ds["short"].h5ref.region_reference(...).selection.kind == "all"
        with pytest.raises(SelectionError, match="extent"):
            ds["short"].h5ref.region_reference(slice(0, 4))


# --- tables of boxes -------------------------------------------------------------------

STARTS = np.array([[0, 0, 0], [3, 7, 15], [1, 2, 3]])


def patches(starts: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    boxes = [tuple(slice(a, a + n) for a, n in zip(s, shape, strict=True)) for s in starts]
    return np.stack([VALUES[box] for box in boxes])


def test_boxes_from_arrays_resolve_like_stored_ones(field: xr.DataArray) -> None:
    boxes = field.h5ref.regions(STARTS, (1, 3, 5))
    assert boxes.dims == ("region",)
    resolved = boxes.h5ref.resolve()
    assert resolved.dims == ("region", "time", "lat", "lon")
    np.testing.assert_array_equal(resolved, patches(STARTS, (1, 3, 5)))
    stops = field.h5ref.regions(STARTS, stop=STARTS + np.array([1, 3, 5]), dim="roi")
    assert stops.dims == ("roi",)
    assert (stops.data == boxes.data).all()
    np.testing.assert_array_equal(
        boxes.h5ref.mean(), patches(STARTS, (1, 3, 5)).mean(axis=(1, 2, 3))
    )


def test_boxes_from_a_table_keep_its_index(field: xr.DataArray) -> None:
    table = pd.DataFrame(
        {"lat_start": [0, 7], "lon_start": [0, 15], "lat_size": 3, "lon_size": [5, 2]},
        index=pd.Index(["a", "b"], name="cell"),
    )
    boxes = field.h5ref.regions(table, table)
    assert boxes.dims == ("cell",)
    assert boxes["cell"].values.tolist() == ["a", "b"]
    assert boxes.sel(cell="b").item().bounds == ((0, 7, 15), (TIME, 10, 17))
    a, b = boxes.values
    np.testing.assert_array_equal(a.resolve(), VALUES[:, :3, :5])
    np.testing.assert_array_equal(b.resolve(), VALUES[:, 7:, 15:17])


def test_boxes_from_datasets_dicts_and_grids(field: xr.DataArray) -> None:
    grid = xr.Dataset(
        {"lat": ("row", [0, 5]), "lon": ("column", [0, 5, 10])},
        coords={"column": ["x", "y", "z"]},
    )
    boxes = field.h5ref.regions(grid, {"lat": 5, "lon": 5})
    assert boxes.dims == ("row", "column")
    assert boxes["column"].values.tolist() == ["x", "y", "z"]
    resolved = boxes.h5ref.resolve()
    np.testing.assert_array_equal(resolved[1, 2], VALUES[:, 5:10, 10:15])
    one = field.h5ref.regions({"lat": 2}, {"lat": 4})
    assert one.dims == ()
    assert one.item().bounds == ((0, 2, 0), (TIME, 6, LON))


def test_boxes_of_a_slice_are_boxes_of_its_dataset(path: Path) -> None:
    with open_h5(path) as ds:
        part = ds["t"].isel(time=2, lat=slice(3, None))
        boxes = part.h5ref.regions([[0, 0], [4, 6]], (3, 4))
        resolved = boxes.h5ref.resolve()
        np.testing.assert_array_equal(resolved[1, 0], VALUES[2, 7:10, 6:10])
        with pytest.raises(SelectionError, match="no run of elements"):
            ds["t"].isel(lat=slice(None, None, 2)).h5ref.regions([[0, 0, 0]], (1, 1, 1))


def test_a_hundred_thousand_boxes_are_columns(field: xr.DataArray) -> None:
    starts = np.random.default_rng(0).integers(0, [4, 8, 16], (100_000, 3))
    boxes = field.h5ref.regions(starts, (1, 2, 4))
    means = boxes.h5ref.mean().values
    picked = [0, 5, 99_999]
    expected = patches(starts[picked], (1, 2, 4)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means[picked], expected)


def test_references_to_groups_and_by_path(tmp_path: Path) -> None:
    path = tmp_path / "groups.h5"
    with h5py.File(path, "w") as file:
        file["a/b/x"] = [1, 2]
        write_references(file, "rois", [file["a/b/x"].regionref[:1]])
    with open_h5(path, group="a") as ds:
        assert ds.h5ref.reference().path == "/a"
        assert ds.h5ref.reference("b/x").resolve().values.tolist() == [1, 2]
        assert ds.h5ref.reference("/").kind == "group"
        for missing in ("none", "b/x/y"):
            with pytest.raises(KeyError):
                ds.h5ref.reference(missing)


def test_loaded_variables_of_files_without_a_name_have_no_reference(path: Path) -> None:
    content = path.read_bytes()
    ds = xr.open_dataset(io.BytesIO(content), engine="h5ref", chunks={})
    assert ds["t"].h5ref.reference() == ds.h5ref.reference("t")
    assert_region(ds["t"].h5ref.region_reference(1), VALUES[1])
    loaded = ds.load()
    assert content not in pickle.dumps(loaded["t"])
    with pytest.raises(TypeError, match="was computed"):
        loaded["t"].h5ref.reference()
    assert loaded.h5ref.reference().kind == "group"


def test_start_and_shape_of_boxes_are_aligned_by_label(field: xr.DataArray) -> None:
    start = xr.Dataset({"lat": ("row", [0, 5]), "lon": ("column", [0, 5])})
    size = xr.Dataset({"lat": ("column", [1, 2]), "lon": ("row", [3, 4])})
    boxes = field.h5ref.regions(start, size)
    assert boxes[0, 1].item().bounds == ((0, 0, 5), (TIME, 2, 8))
    named = xr.DataArray(STARTS, coords={"b": ["p", "q", "r"]}, dims=("b", "axis"))
    other = xr.DataArray([[1, 1, 1]] * 3, coords={"b": ["q", "p", "r"]}, dims=("b", "axis"))
    with pytest.raises(ValueError, match="the same labels"):
        field.h5ref.regions(named, other)
    assert field.h5ref.regions(named, named * 0 + 1)["b"].values.tolist() == ["p", "q", "r"]
    with pytest.raises(ValueError, match="lies along"):
        field.h5ref.regions({"lat": 2}, {"lat": [4, 5]})
    table = pd.DataFrame({"lat": [1, 2], "lat_size": [2, 3], "lon": [3, 4]})
    with pytest.raises(SelectionError, match="box 0"):  # columns of starts are no sizes
        field.h5ref.regions(table, table)
    with pytest.raises(KeyError, match="lon_strat"):
        field.h5ref.regions({"lat_start": [1], "lon_strat": [2]}, (1, 1, 1))


def test_boxes_of_a_1d_variable_may_be_lists(path: Path) -> None:
    with open_h5(path) as ds:
        line = ds["n"].h5ref
        assert line.regions([3], 1).shape == (1,)
        assert line.regions([0, 2], 2).shape == (2,)
        assert line.regions([0, 2], [2]).shape == (2,)
        assert line.regions(1, 2).shape == ()
        assert line.regions([0, 1], [2, 3]).h5ref.resolve("ragged")[
            "row_size"
        ].values.tolist() == [2, 3]
        assert ds["t"].h5ref.regions([], (1, 1, 1)).shape == (0,)
        assert line.regions([0], 1).name == "n_regions"


def test_a_table_of_boxes_may_have_a_multiindex(field: xr.DataArray) -> None:
    index = pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["kind", "number"])
    table = pd.DataFrame({"lat": [0, 7], "lon": [0, 15]}, index=index)
    boxes = field.h5ref.regions(table, (TIME, 3, 5))
    assert boxes.sel(kind="b").item().bounds == ((0, 7, 15), (TIME, 10, 20))


def test_no_points_are_an_empty_region(field: xr.DataArray) -> None:
    assert field.h5ref.region_reference(points=[]).size == 0


@pytest.mark.sampled(3)
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("chosen", [[3, 1, 2], [0, 0, 3], [2], [1, 3], [-1, 0]])
def test_points_of_one_dimension_keep_their_order_and_number(
    path: Path, tmp_path: Path, chosen: list[int], shape: tuple[int, ...]
) -> None:
    with open_h5(path) as ds:
        line = ds["n"]
        region = line.h5ref.region_reference(points=np.reshape(chosen, shape))
        expected = line.values[chosen]
        np.testing.assert_array_equal(region.resolve(), expected)
        part = line[1:].h5ref.region_reference(points=[0]).resolve()
        np.testing.assert_array_equal(part, line.values[1:2])
        stored = xref.ReferenceArray.from_references([region])
        new = xr.Dataset({"n": line, "r": ("one", stored)})
        xref.to_hdf5(new, tmp_path / "new.h5")
    with h5py.File(tmp_path / "new.h5") as file:
        np.testing.assert_array_equal(file["n"][file["r"][0]], expected)


def test_a_row_of_a_table_is_one_box(field: xr.DataArray) -> None:
    table = pd.DataFrame({"lon": [3, 5], "lat": [1, 2], "time": [0, 1]})
    size = pd.Series({"lon": 4, "time": 1, "lat": 2})
    for row in range(2):
        box = field.h5ref.regions(table.iloc[row], size)
        lon, lat, time = table.iloc[row]
        assert box.item().bounds == ((time, lat, lon), (time + 1, lat + 2, lon + 4))
    with pytest.raises(ValueError, match="must have 3 numbers"):
        field.h5ref.regions(table["lon"], (1, 1, 1))
    named = xr.DataArray(
        [[3, 1, 0]], coords={"axis": ["lon", "lat", "time"]}, dims=("b", "axis")
    )
    assert field.h5ref.regions(named, (1, 2, 4))[0].item().bounds[0] == (0, 1, 3)
    with pytest.raises(ValueError, match="it has"):
        field.h5ref.regions(named.assign_coords(axis=["a", "b", "c"]), (1, 2, 4))


def test_a_series_is_many_boxes_of_a_1d_variable(path: Path) -> None:
    with open_h5(path) as ds:
        column = pd.Series([0, 2], index=["p", "q"])
        boxes = ds["n"].h5ref.regions(column, 2)
        assert boxes["region"].values.tolist() == ["p", "q"]
        assert boxes.sel(region="q").item().bounds == ((2,), (4,))
