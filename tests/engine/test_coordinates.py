"""Resolved references have the coordinates of their targets."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from rois import DATA, N_X, N_Y, STARTS
from strategies import write_regions

import xref


def test_coordinates_equal_for_all_references_stay_one_dimensional(rois_ds: xr.Dataset) -> None:
    rows = rois_ds["data_rows"].h5ref.resolve()
    (dim,) = rois_ds["data_rows"].dims
    assert rows["y"].dims == ("y",)
    np.testing.assert_array_equal(rows["y"], np.arange(N_Y) * 10.0)
    assert rows["x"].dims == (dim, "x")
    np.testing.assert_array_equal(rows["x"], [[1, 2], [5, 6], [30, 31]])
    assert rows["x_start"].values.tolist() == [1, 5, 30]
    assert rows["y_start"].values.tolist() == [0, 0, 0]
    assert rows.attrs["long_name"] == "some data"


def test_different_coordinates_get_the_dimension_of_the_references(rois_ds: xr.Dataset) -> None:
    rois = rois_ds["data_rois"].h5ref.resolve()
    (dim,) = rois_ds["data_rois"].dims
    assert rois["y"].dims == (dim, "y")
    np.testing.assert_array_equal(rois["y"], [np.arange(y, y + 4) * 10.0 for y, _ in STARTS])
    np.testing.assert_array_equal(rois["x"], [np.arange(x, x + 6) for _, x in STARTS])
    area = np.arange(N_Y * N_X).reshape(N_Y, N_X)
    assert rois["area"].dims == (dim, "y", "x")
    np.testing.assert_array_equal(rois["area"], [area[y : y + 4, x : x + 6] for y, x in STARTS])
    np.testing.assert_array_equal(rois["y_start"], [y for y, _ in STARTS])
    bare = rois_ds["data_rois"].h5ref.resolve(coords=False)
    assert not {"y", "x", "area"} & set(bare.coords)


def test_points_carry_the_coordinates_of_their_elements(
    rois_path: Path, rois_ds: xr.Dataset
) -> None:
    points = rois_ds["data_points"].h5ref.resolve()
    y, x = np.divmod(points["area"].values, N_X)
    np.testing.assert_array_equal(points["x"], x)
    np.testing.assert_array_equal(points["y"], y * 10.0)
    np.testing.assert_array_equal(points, DATA[y, x])


def test_a_single_region_has_one_dimensional_coordinates(rois_ds: xr.Dataset) -> None:
    one = rois_ds["data_rois"].data[1].resolve()
    assert one.dims == ("y", "x")
    np.testing.assert_array_equal(one["y"], [30, 40, 50, 60])
    np.testing.assert_array_equal(one.sel(x=12), DATA[3:7, 12])
    same = rois_ds["data_rois"][[3, 4]].h5ref.resolve()
    assert same["y"].dims == ("y",)


def test_coordinates_of_the_reference_variable_stay(rois_ds: xr.Dataset) -> None:
    rois = rois_ds["data_rois"].rename({rois_ds["data_rois"].dims[0]: "roi"})
    rois = rois.assign_coords(roi=list("abcdef"), size=("roi", np.arange(6)))
    resolved = rois.h5ref.resolve()
    np.testing.assert_array_equal(resolved.sel(roi="c"), DATA[36:40, 41:47])
    assert resolved["size"].dims == ("roi",)
    assert rois.h5ref.mean()["roi"].values.tolist() == list("abcdef")


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


def test_coordinates_of_several_targets_are_kept_with_null_references(tmp_path: Path) -> None:
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


def test_a_scalar_coordinate_is_kept_with_any_selection(tmp_path: Path) -> None:
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
