"""Variables that lie along one dimension twice, because their axes have one dimension scale.

xarray accepts such variables with a warning and refuses many operations on them. What xref
does with them is compared with h5py.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import xref
from xref.cli.info import inspect_file

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate dimension names")

TYPES = {
    "floats": (np.dtype("f8"), lambda k: k / 2),
    "text": (h5py.string_dtype(), lambda k: "ü" * k),
    "sequences": (h5py.vlen_dtype("<i4"), lambda k: np.arange(k, dtype="<i4")),
    "bytes": (np.dtype("S3"), lambda k: b"s%d" % k),
    "compounds": (np.dtype([("n", "i4"), ("m", "f8")]), lambda k: (k, k / 2)),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "file.h5", "w") as file:
        state = file.create_dataset("state", data=[10, 20, 30])
        t = file.create_dataset("t", data=[0.5, 1.5])
        for scale in (state, t):
            scale.make_scale(scale.name[1:])
        for name, (dtype, value) in TYPES.items():
            dataset = file.create_dataset(name, (3, 3), dtype=dtype)
            for k in range(9):
                dataset[k // 3, k % 3] = value(k)
        file.create_dataset("cov", data=np.arange(9.0).reshape(3, 3), chunks=(2, 3))
        file.create_dataset(
            "cube", data=np.arange(18).reshape(3, 2, 3), chunks=(3, 1, 2), compression="gzip"
        )
        file["other"] = np.arange(9).reshape(3, 3) * 10
        file["cov"].attrs["coordinates"] = "other"
        file.create_dataset("refs", (3, 3), dtype=h5py.ref_dtype)[1, 2] = file["cov"].ref
        for name in (*TYPES, "cov", "other", "refs"):
            file[name].dims[0].attach_scale(state)
            file[name].dims[1].attach_scale(state)
        for axis, scale in enumerate((state, t, state)):
            file["cube"].dims[axis].attach_scale(scale)
        regions = file.create_dataset("regions", (2,), dtype=h5py.regionref_dtype)
        regions[0] = file["cov"].regionref[0:2, 1:3]
        regions[1] = file["cov"].regionref[1:3, 0:2]
        regions.dims[0].attach_scale(t)
    return tmp_path / "file.h5"


def test_xarray_warns_of_the_repeated_dimension_as_with_other_engines(path: Path) -> None:
    with pytest.warns(UserWarning, match=r"Duplicate dimension names .*'state'"):
        ds = xr.open_dataset(path, engine="h5ref")
    assert ds["cov"].dims == ("state", "state")
    assert ds["cube"].dims == ("state", "t", "state")


@pytest.mark.parametrize("chunks", [None, {}, -1, "auto", {"t": 1}])
def test_values_are_those_of_h5py(path: Path, chunks: Any) -> None:
    with h5py.File(path) as file, xr.open_dataset(path, engine="h5ref", chunks=chunks) as ds:
        for name in ("cov", "cube", "floats", "bytes", "compounds"):
            np.testing.assert_array_equal(ds[name].values, file[name][()])
        assert ds["text"].values.tolist() == file["text"].asstr()[()].tolist()
        for found, expected in zip(
            ds["sequences"].values.flat, file["sequences"][()].flat, strict=True
        ):
            np.testing.assert_array_equal(found, expected)
        assert ds["refs"].values[1, 2].path == "/cov"
        if chunks == {}:
            assert ds["cube"].chunks == ((2, 1), (1, 1), (2, 1))
        loaded = pickle.loads(pickle.dumps(ds)).load()
        np.testing.assert_array_equal(loaded["cov"], file["cov"])


def test_resolved_axes_and_their_coordinates_are_told_apart(path: Path) -> None:
    with h5py.File(path) as file, xr.open_dataset(path, engine="h5ref") as ds:
        result = ds["regions"].h5ref.resolve()
        padded = ds["regions"].h5ref.resolve(layout="pad")["cov"]
        assert result.dims == padded.dims == ("t", "state", "state_1")
        assert result["other"].dims == ("t", "state", "state_1")
        for k, (rows, columns) in enumerate([np.s_[0:2, 1:3], np.s_[1:3, 0:2]]):
            np.testing.assert_array_equal(result[k], file["cov"][rows, columns])
            np.testing.assert_array_equal(padded[k], file["cov"][rows, columns])
            np.testing.assert_array_equal(result["other"][k], file["other"][rows, columns])
            np.testing.assert_array_equal(result["state"][k], file["state"][rows])
            np.testing.assert_array_equal(result["state_1"][k], file["state"][columns])
        assert ds["regions"].h5ref.mean().values.tolist() == [3.0, 5.0]


def test_one_reference_resolves_with_both_coordinates(path: Path) -> None:
    with h5py.File(path) as file, xr.open_dataset(path, engine="h5ref") as ds:
        for whole in (ds["refs"].values[1, 2].resolve(), ds["cov"].h5ref.reference().resolve()):
            assert whole.dims == ("state", "state_1")
            np.testing.assert_array_equal(whole, file["cov"])
            np.testing.assert_array_equal(whole["state_1"], file["state"])
        region = ds["regions"].values[0].resolve()
        assert region["state"].values.tolist() == [10, 20]
        assert region["state_1"].values.tolist() == [20, 30]
        cube = ds["cube"].h5ref.reference().resolve()
        assert cube.dims == ("state", "t", "state_1")
        assert cube["t"].dims == ("t",)
        references = ds["refs"].h5ref.reference().resolve()
        assert references.dims == ("state", "state_1")


def test_points_have_a_coordinate_for_each_axis(path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref") as ds:
        mask = np.zeros((3, 3), dtype=bool)
        mask[[0, 2], [1, 0]] = True
        points = ds["cov"].h5ref.region_reference(mask).resolve()
        assert points.values.tolist() == [1.0, 6.0]
        assert points["state"].values.tolist() == [10, 30]
        assert points["state_1"].values.tolist() == [20, 10]


def test_regions_of_such_variables(path: Path) -> None:
    with h5py.File(path) as file, xr.open_dataset(path, engine="h5ref") as ds:
        expected = file["cov"][1:3, 0:2]
        for array in (ds["cov"], ds["cov"].load(), ds["cov"].chunk()):
            region = array.h5ref.region_reference(slice(1, 3), slice(0, 2))
            np.testing.assert_array_equal(region.resolve(), expected)
            boxes = array.h5ref.regions(np.array([[1, 0], [0, 1]]), (2, 2))
            np.testing.assert_array_equal(boxes.values[0].resolve(), expected)
            np.testing.assert_array_equal(boxes.values[1].resolve(), file["cov"][0:2, 1:3])
        # xarray selects the same positions along both axes.
        part = ds["cov"].isel(state=slice(1, 3)).h5ref.region_reference()
        np.testing.assert_array_equal(part.resolve(), file["cov"][1:3, 1:3])
        named = ds["cov"].h5ref.regions({"state": [1], "state_1": [0]}, 2)
        np.testing.assert_array_equal(named.values[0].resolve(), expected)


@pytest.mark.parametrize("chunks", [None, {}])
def test_written_axes_are_attached_to_the_same_scale(
    path: Path, tmp_path: Path, chunks: Any
) -> None:
    copy = tmp_path / "copy.h5"
    with xr.open_dataset(path, engine="h5ref", chunks=chunks) as ds:
        xref.to_hdf5(ds, copy)
    with h5py.File(path) as old, h5py.File(copy) as new:
        for name in (*TYPES, "cov", "cube", "other", "refs"):
            scales = [[scale.name for scale in dim.values()] for dim in new[name].dims]
            assert scales == [[scale.name for scale in dim.values()] for dim in old[name].dims]
            if name not in ("refs", "sequences"):
                np.testing.assert_array_equal(new[name][()], old[name][()])
        attached = new["state"].attrs["REFERENCE_LIST"]
        assert len(attached) == 2 * (len(TYPES) + 4)
    with xr.open_dataset(copy, engine="h5ref") as ds:
        assert ds["cov"].dims == ("state", "state")
        assert ds["regions"].values[1].resolve().values.tolist() == [[3.0, 4.0], [6.0, 7.0]]


def test_info_shows_references_to_such_variables(path: Path) -> None:
    report = inspect_file(path)
    targets = {holder.path: [t.path for t in holder.targets] for holder in report.references}
    assert targets == {"/refs": ["/cov"], "/regions": ["/cov"]}
    assert not report.problems


@pytest.mark.parametrize("others", [[], ["f8"], ["S1"]])
def test_characters_join_to_text_as_with_other_engines(
    tmp_path: Path, others: list[str]
) -> None:
    pytest.importorskip("netCDF4")
    path = tmp_path / "characters.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("lev", data=np.zeros(3))
        file["lev"].make_scale(f"This is a netCDF dimension but not a netCDF variable.{3:10d}")
        for name, dtype, ndim in [("v", "S1", 2), *(("w", other, 1) for other in others)]:
            file.create_dataset(name, data=np.full((3,) * ndim, "7", dtype))
            for axis in range(ndim):
                file[name].dims[axis].attach_scale(file["lev"])
    with (
        xr.open_dataset(path, engine="netcdf4") as expected,
        xr.open_dataset(path, engine="h5ref") as found,
    ):
        assert found["v"].dims == expected["v"].dims
        np.testing.assert_array_equal(found["v"], expected["v"])
