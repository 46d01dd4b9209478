"""Each statement of the h5py documentation's chapter "Object and Region References".

References are written with xref and read with h5py, and the other way round.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from samples import open_h5

import xref
from xref.errors import NullReferenceError

IMAGE = np.arange(12 * 15).reshape(12, 15)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Write one object of each kind with h5py."""
    path = tmp_path / "base.h5"
    with h5py.File(path, "w") as file:
        file["image"] = IMAGE
        file["image"].attrs["units"] = "counts"
        file["group/inner"] = np.arange(3)
        file["type"] = np.dtype([("x", "f4"), ("n", "i2")])
    return path


def written_into(base: Path, references: dict[str, Any], **attributes: Any) -> h5py.File:
    """Store references to the objects of a file in it, and open it with h5py."""
    variables = {
        name: xr.DataArray(
            xref.ReferenceArray.from_references(found), dims=[name + "_n"][: np.ndim(found)]
        )
        for name, found in references.items()
    }
    xref.to_hdf5(xr.Dataset(variables, attrs=attributes), base, mode="a")
    return h5py.File(base)


@pytest.mark.parametrize("name", ["image", "group", "group/inner", "type", "/"])
def test_an_object_reference_opens_the_same_object(base: Path, name: str) -> None:
    with open_h5(base) as ds:
        reference = ds.h5ref.reference(name)
    assert bool(reference)
    with written_into(base, {"one": reference, "many": [reference, reference]}) as file:
        for found in (file["one"][()], *file["many"][:]):
            assert isinstance(found, h5py.Reference)
            assert file[found] == file[name]
            assert file[found].name == file[name].name


@pytest.mark.parametrize("name", ["image", "group", "group/inner", "type", "/"])
def test_object_references_written_by_h5py_open_the_object(base: Path, name: str) -> None:
    with h5py.File(base, "a") as file:
        refs = file.create_dataset("refs", (2,), dtype=h5py.ref_dtype)
        refs[0] = file[name].ref
    with open_h5(base) as ds:
        reference, null = ds["refs"].values
        found = reference.resolve()
        assert not null
        assert reference == ds.h5ref.reference(name)
    assert reference.path == f"/{name.strip('/')}"
    match name:
        case "type":
            assert found == np.dtype([("x", "f4"), ("n", "i2")])
        case "image" | "group/inner":
            assert isinstance(found, xr.DataArray)
        case _:
            assert isinstance(found, xr.Dataset)


def test_variables_and_groups_give_references_to_themselves(base: Path) -> None:
    with open_h5(base) as ds:
        assert ds["image"].h5ref.reference() == ds.h5ref.reference("image")
        assert ds.h5ref.reference() == ds.h5ref.reference("/")
    with open_h5(base, group="group") as ds:
        assert ds.h5ref.reference().path == "/group"
        assert ds["inner"].h5ref.reference().path == "/group/inner"


REGULAR = [
    np.s_[2:6, 3:9],
    np.s_[...],
    np.s_[3],
    np.s_[:, 4],
    np.s_[1:12:3, ::2],
    np.s_[-3:, -4:-1],
    np.s_[5, 6],
]


@pytest.mark.parametrize("key", REGULAR, ids=str)
def test_region_references_made_from_slices_are_read_by_h5py(base: Path, key: Any) -> None:
    with open_h5(base) as ds:
        region = ds["image"].h5ref.region_reference(key)
        resolved = region.resolve().values
    with written_into(base, {"region": region}) as file:
        found = file["region"][()]
        assert isinstance(found, h5py.RegionReference)
        image = file["image"]
        assert image.regionref.shape(found) == image.shape
        assert image.regionref.selection(found) == resolved.shape
        np.testing.assert_array_equal(image[found], resolved)
        np.testing.assert_array_equal(np.ravel(resolved), np.ravel(IMAGE[key]))


@pytest.mark.parametrize("key", REGULAR, ids=str)
def test_region_references_written_by_h5py_resolve(base: Path, key: Any) -> None:
    with h5py.File(base, "a") as file:
        rois = file.create_dataset("rois", (1,), dtype=h5py.regionref_dtype)
        rois[0] = file["image"].regionref[key]
    with open_h5(base) as ds:
        (region,) = ds["rois"].values
        np.testing.assert_array_equal(region.resolve().values.ravel(), IMAGE[key].ravel())
        assert region == ds["image"].h5ref.region_reference(key)


IRREGULAR = {
    "index list": np.s_[[1, 4, 5, 9], 2:5],
    "list and all": np.s_[[1, 2, 7], :],
    "mask": IMAGE % 7 == 0,
}


@pytest.mark.parametrize("key", IRREGULAR.values(), ids=list(IRREGULAR))
def test_region_references_made_from_irregular_selections_are_read_by_h5py(
    base: Path, key: Any
) -> None:
    with open_h5(base) as ds:
        region = ds["image"].h5ref.region_reference(key)
        resolved = region.resolve().values
    with written_into(base, {"region": region}) as file:
        theirs = np.ravel(file["image"][file["region"][()]])
        np.testing.assert_array_equal(theirs, IMAGE[key].ravel())
        np.testing.assert_array_equal(resolved.ravel(), theirs)


@pytest.mark.parametrize("key", IRREGULAR.values(), ids=list(IRREGULAR))
def test_irregular_region_references_written_by_h5py_resolve(base: Path, key: Any) -> None:
    with h5py.File(base, "a") as file:
        rois = file.create_dataset("rois", (2,), dtype=h5py.regionref_dtype)
        rois[0] = file["image"].regionref[key]
    with open_h5(base) as ds:
        region, null = ds["rois"].values
        assert not null
        np.testing.assert_array_equal(region.resolve().values.ravel(), IMAGE[key].ravel())


def test_point_selections_written_by_h5py_keep_their_order(base: Path) -> None:
    points = np.array([[3, 4], [0, 14], [3, 4], [11, 0]])
    with h5py.File(base, "a") as file:
        image = file["image"]
        space = image.id.get_space()
        space.select_elements(points)
        rois = file.create_dataset("rois", (1,), dtype=h5py.regionref_dtype)
        rois[0] = h5py.h5r.create(image.id, b".", h5py.h5r.DATASET_REGION, space)
    with open_h5(base) as ds:
        np.testing.assert_array_equal(ds["rois"][0].item().resolve(), IMAGE[tuple(points.T)])


def test_region_references_written_by_h5py_also_open_the_object(base: Path) -> None:
    with h5py.File(base, "a") as file:
        rois = file.create_dataset("rois", (1,), dtype=h5py.regionref_dtype)
        rois[0] = file["image"].regionref[2:4, 1:3]
        assert file["group"][rois[0]] == file["image"]  # through any object of the file
    with open_h5(base) as ds:
        region = ds["rois"][0].item()
        assert (region.path, region.kind) == ("/image", "dataset")
        assert region.object == ds["image"].h5ref.reference()
        assert region.object.resolve().shape == IMAGE.shape


def test_attributes_written_by_h5py_hold_object_and_region_references(base: Path) -> None:
    with h5py.File(base, "a") as file:
        image, attributes = file["image"], file["group"].attrs
        attributes["object"] = image.ref
        attributes["region"] = image.regionref[1:3, 4:9]
        attributes["objects"] = np.array([image.ref, file.ref], dtype=h5py.ref_dtype)
        regions = [image.regionref[k] for k in range(2)]
        attributes["regions"] = np.array(regions, dtype=h5py.regionref_dtype)
        attributes.create("null", h5py.Reference(), dtype=h5py.ref_dtype)
        attributes.create("no region", h5py.RegionReference(), dtype=h5py.regionref_dtype)
    with open_h5(base, group="group") as ds:
        found = ds.attrs
    assert found["object"].path == "/image"
    np.testing.assert_array_equal(found["region"].resolve(), IMAGE[1:3, 4:9])
    assert [r.path for r in found["objects"]] == ["/image", "/"]
    np.testing.assert_array_equal(found["regions"][1].resolve(), IMAGE[1:2])
    assert not found["null"]
    assert not found["no region"]
    with pytest.raises(NullReferenceError):
        found["null"].resolve()
    with h5py.File(base) as file, pytest.raises(ValueError, match="reference"):
        file[file["group"].attrs["null"]]


def test_region_references_made_from_points_keep_their_order(base: Path) -> None:
    points = np.array([[3, 4], [0, 14], [3, 4], [11, 0]])
    with open_h5(base) as ds:
        region = ds["image"].h5ref.region_reference(points=points)
        np.testing.assert_array_equal(region.resolve(), IMAGE[tuple(points.T)])
    with written_into(base, {"region": region}) as file:
        image, found = file["image"], file["region"][()]
        np.testing.assert_array_equal(np.ravel(image[found]), IMAGE[tuple(points.T)])


def test_a_region_reference_also_opens_the_object(base: Path) -> None:
    with open_h5(base) as ds:
        region = ds["image"].h5ref.region_reference(np.s_[2:4, 1:3])
        assert region.object == ds["image"].h5ref.reference()
        assert region.path == "/image"
    with written_into(base, {"region": region}) as file:
        assert file[file["region"][()]] == file["image"]


def test_written_datasets_and_attributes_hold_object_and_region_references(base: Path) -> None:
    with open_h5(base) as ds:
        image = ds["image"].h5ref
        objects = [image.reference(), ds.h5ref.reference("group")]
        regions = [image.region_reference(np.s_[i : i + 2]) for i in range(3)]
    names = {
        "object": objects[0],
        "region": regions[0],
        "objects": objects,
        "regions": xref.ReferenceArray.from_references(regions),
    }
    with written_into(base, {"objects": objects, "regions": regions}, **names) as file:
        assert h5py.check_ref_dtype(file["objects"].dtype) is h5py.Reference
        assert h5py.check_ref_dtype(file["regions"].dtype) is h5py.RegionReference
        assert [file[r].name for r in file["objects"]] == ["/image", "/group"]
        assert [file[r].name for r in file.attrs["objects"]] == ["/image", "/group"]
        assert file[file.attrs["object"]] == file["image"]
        for holder in (file["regions"][:], file.attrs["regions"]):
            for i, region in enumerate(holder):
                np.testing.assert_array_equal(file["image"][region], IMAGE[i : i + 2])
        np.testing.assert_array_equal(file["image"][file.attrs["region"]], IMAGE[:2])
    with open_h5(base) as ds:
        assert ds.attrs["object"].path == "/image"
        assert [r.path for r in ds.attrs["objects"]] == ["/image", "/group"]
        np.testing.assert_array_equal(ds.attrs["region"].resolve(), IMAGE[:2])
        np.testing.assert_array_equal(ds["regions"].h5ref.resolve()[2], IMAGE[2:4])


@pytest.mark.parametrize("is_region", [False, True])
def test_null_references_are_false_in_xref_and_in_h5py(base: Path, is_region: bool) -> None:
    with open_h5(base) as ds:
        image = ds["image"].h5ref
        one = image.region_reference(np.s_[:3]) if is_region else image.reference()
    null = xref.ReferenceArray.nulls((), is_region=is_region)
    with written_into(base, {"refs": [None, one], "none": null}, null=null) as file:
        assert list(map(bool, file["refs"][:])) == [False, True]
        assert not file["none"][()]
        assert not file.attrs["null"]
        kind = h5py.regionref_dtype if is_region else h5py.ref_dtype
        assert file["refs"].dtype == kind
    with h5py.File(base, "a") as file:
        file.create_dataset("theirs", (2, 2), dtype=kind)  # not written: null
    with open_h5(base) as ds:
        assert list(map(bool, ds["refs"].values)) == [False, True]
        assert not ds["none"].item()
        assert not ds.attrs["null"]
        assert not ds["theirs"].data.astype(bool).any()
