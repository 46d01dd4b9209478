"""Errors about a reference name where it is stored: file, variable or attribute, element."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import xref
from xref.references import ElementNames, Owner
from xref.selections import Hyperslab

PAIR = np.dtype([("weight", "f4"), ("to", h5py.regionref_dtype)])
INNER = np.dtype([("at", PAIR), ("ref", h5py.ref_dtype)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in which each region exceeds its target, stored in every place there is."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_dataset(
            "group/positions", data=np.zeros((20, 2)), maxshape=(None, 2)
        )
        region, inside = data.regionref[15:20, :], data.regionref[0:2, :]
        rois = file.create_dataset("group/rois", (2, 3), dtype=h5py.regionref_dtype)
        rois[...] = region
        rois[0, 0] = inside
        for owner in (data, file["group"], file):
            owner.attrs["one"] = region
            owner.attrs.create("many", [[inside, region]], dtype=h5py.regionref_dtype)
            owner.attrs.create("pair", np.array((1, region), dtype=PAIR), dtype=PAIR)
            nested = np.array([((1, region), data.ref)] * 2, dtype=INNER)
            owner.attrs.create("nested", nested, dtype=INNER)
            owner.attrs.create("null", None, dtype=h5py.regionref_dtype)
            owner.attrs["nothing"] = h5py.Reference()
        held = file.create_dataset("group/held", (3,), dtype=INNER)
        held[2] = np.array(((1, region), data.ref), dtype=INNER)
        cells = file.create_dataset("group/cells", (2,), dtype=h5py.vlen_dtype(h5py.ref_dtype))
        temporary = file.create_dataset("gone", data=np.zeros(3))
        cells[1] = np.array([data.ref, temporary.ref], dtype=h5py.ref_dtype)
        data.attrs["dangling"] = temporary.ref
        refs = file.create_dataset("group/refs", (4,), dtype=h5py.ref_dtype)
        refs[3] = temporary.ref
        del file["gone"]
        data.resize((12, 2))
    return path


def text_of(call: Callable[[], Any]) -> str:
    with pytest.raises(xref.XrefError) as raised:
        call()
    assert str(raised.value).count("a.h5") >= 1
    return str(raised.value).replace("\n", " ")


OWNERS = {"variable": "/group/positions", "group": "/group", "file": "/"}


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize(
    ("name", "pick", "element"),
    [
        ("one", lambda v: v, ""),
        ("many", lambda v: v.ravel()[1], "region reference 1 of "),
        ("pair", lambda v: v["to"], ""),
        ("nested", lambda v: v["at"]["to"][1], "region reference 1 of "),
    ],
)
@pytest.mark.parametrize("way", ["resolve", "shape", "pickle", "array", "variable"])
def test_regions_in_attributes_name_the_attribute(
    path: Path, owner: str, name: str, pick: Callable[[Any], Any], element: str, way: str
) -> None:
    tree = xr.open_datatree(path, engine="h5ref")
    attributes = {
        "variable": tree["group/positions"].attrs,
        "group": tree["group"].attrs,
        "file": tree.attrs,
    }[owner]
    reference = pick(attributes[name])
    match way:
        case "resolve":
            text = text_of(lambda: reference.resolve().values)
        case "shape":
            text = text_of(lambda: reference.shape)
        case "pickle":
            text = text_of(pickle.loads(pickle.dumps(reference)).resolve)
        case "array":
            joined = xref.ReferenceArray.from_references([reference, reference])
            text = text_of(np.concatenate([joined, joined])[1:].element_at(2).resolve)
        case "variable":
            joined = xref.ReferenceArray.from_references([reference, reference])
            array = xr.DataArray(xr.Variable("x", joined))
            text = text_of(array.isel(x=[1]).h5ref.resolve)
    where = f"attribute {name!r} of '{OWNERS[owner]}'"
    if name == "many":
        element = element.replace("1", "(0, 1)")
    assert f"a.h5: {element}{where}" in text
    assert "beyond the extent (12, 2) of its target" in text
    assert "/group/positions" in text
    if name in ("pair", "nested"):
        assert "member '" in text


def test_null_references_in_attributes_name_the_attribute(path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref", group="group") as ds:
        for name in ("null", "nothing"):
            for reference in (
                ds["positions"].attrs[name],
                pickle.loads(pickle.dumps(ds["positions"].attrs[name])),
            ):
                text = text_of(reference.resolve)
                assert f"a.h5: attribute {name!r} of '/group/positions' is null" in text


def test_dangling_references_name_their_place(path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref", group="group") as ds:
        text = text_of(ds["positions"].attrs["dangling"].resolve)
        assert "a.h5: attribute 'dangling' of '/group/positions': " in text
        text = text_of(ds["cells"].values[1][1].resolve)
        assert "a.h5: object reference in element 1 of '/group/cells': " in text
        for reference in (ds["refs"].values[3], ds["refs"][[3, 0]].values[0]):
            assert "a.h5: object reference 3 of '/group/refs': " in text_of(reference.resolve)


def _stacked(array: xr.DataArray) -> xr.DataArray:
    return array.stack(z=array.dims)


@pytest.mark.parametrize(
    ("change", "element"),
    [
        (lambda a: a, "(0, 1)"),
        (lambda a: a[1, 2], "(1, 2)"),
        (lambda a: a[:, ::2][1:], "(1, 0)"),
        (lambda a: a[:, [2, 1]][[1]], "(1, 2)"),
        (lambda a: a.T[1], "(0, 1)"),
        (lambda a: _stacked(a)[5], "(1, 2)"),
        (lambda a: _stacked(a)[[4, 0]], "(1, 1)"),
        (lambda a: a.where(a.isnull(), a)[1], "(1, 0)"),
        (lambda a: xr.concat([a[0, :1], a[1, 1:]], a.dims[1])[1:], "(1, 1)"),
        (lambda a: a.pad({a.dims[0]: (1, 0)})[2, 1:], "(1, 1)"),
        (lambda a: a.chunk({a.dims[0]: 1}).compute()[1], "(1, 0)"),
        (lambda a: pickle.loads(pickle.dumps(a[:, [2]]))[1], "(1, 2)"),
        (lambda a: a.dropna(a.dims[0])[1], "(1, 0)"),
        (lambda a: a.roll({a.dims[1]: 1})[1], "(1, 2)"),
        (lambda a: a.copy(data=np.asarray(a.values))[1], "(1, 0)"),
    ],
)
def test_elements_keep_their_index_in_the_dataset(
    path: Path, change: Callable[[xr.DataArray], xr.DataArray], element: str
) -> None:
    with xr.open_dataset(path, engine="h5ref", group="group") as ds:
        array = change(ds["rois"])
        text = text_of(array.h5ref.resolve)
        assert f"a.h5: region reference {element} of '/group/rois' selects" in text
        text = text_of(lambda: array.h5ref.sum().values)
        assert f"a.h5: region reference {element} of '/group/rois' selects" in text


def test_members_of_compounds_are_named(path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref", group="group") as ds:
        held = ds["held"]
        for reference in (
            held.values[2]["at"]["to"],
            held.values["at"]["to"][2],
            held.h5ref.field("at.to").values[2],
            held[1:].h5ref.field("at.to").values[1],
        ):
            text = text_of(reference.resolve)
            assert "a.h5: region reference 2 of '/group/held', member 'at.to' selects" in text


def test_references_made_in_memory_name_their_target(path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref", group="group") as ds:
        target = ds["positions"].h5ref.reference()
        beyond = xref.RegionReference(target, Hyperslab((10, 0), (1, 1), (1, 1), (5, 2)))
        text = text_of(beyond.resolve)
        assert "a.h5: region reference to /group/positions[10:15, 0:2] selects" in text
        array = xref.ReferenceArray.from_references([None, beyond])
        text = text_of(xr.DataArray(xr.Variable("x", array))[1:].h5ref.resolve)
        assert "a.h5: region reference 0 to /group/positions[10:15, 0:2] selects" in text


def test_names_take_no_part_in_comparisons(path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref", group="group") as ds:
        first, second = ds["rois"].values[1, :2]
        attribute = ds["positions"].attrs["one"]
        assert first == second == attribute
        assert len({first, second, attribute}) == 1
        assert repr(first) == repr(attribute)
        assert (ds["rois"][1].data == attribute).all()


def test_names_of_many_references_stay_small() -> None:
    owner = Owner("a.h5", "'/x'", slices=((0, 10**6, 1),))
    names = ElementNames.of_owner(owner, range(10**6))
    assert len(pickle.dumps(names)) < 1000
    assert len(pickle.dumps(names.take(slice(5, None, 7)))) < 1000
    assert names.take(slice(5, None, 7)).describe(1) == "a.h5: element 12 of '/x'"


def test_a_function_of_the_user_that_fails_names_the_reference(path: Path) -> None:
    def fail_on_two(values: np.ndarray) -> float:
        if len(values) == 2:
            raise KeyError("nothing for two")
        return 1.0

    with h5py.File(path, "r+") as file:
        file["group/positions"].resize((20, 2))
    with xr.open_dataset(path, engine="h5ref", group="group") as ds:
        rois = ds["rois"]
        for array in (rois, rois[:, [0]], rois.T, rois[0, 0]):
            for chunks in (None, "auto", 1):
                mapped = array.h5ref.map(fail_on_two, dtype=float, chunks=chunks)
                with pytest.raises(KeyError, match="nothing for two") as raised:
                    mapped.compute(scheduler="threads")
                (note,) = raised.value.__notes__
                assert "a.h5: region reference (0, 0) of '/group/rois'" in note
                assert "-> /group/positions[0:2, 0:2]" in note
                assert "fail_on_two" in note


@pytest.mark.parametrize("kind", ["object", "region"])
@pytest.mark.parametrize("mask_and_scale", [True, False])
def test_pickled_elements_keep_their_names_in_few_bytes(
    tmp_path: Path, kind: str, mask_and_scale: bool
) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        data = file.create_dataset("data", data=np.arange(2000))
        plain = {"object": h5py.ref_dtype, "region": h5py.regionref_dtype}[kind]
        refs = file.create_dataset("refs", (1000,), dtype=plain)
        one = data.ref if kind == "object" else data.regionref[2:5]
        refs[:999] = np.array([one] * 999, dtype=object)
    with xr.open_dataset(
        tmp_path / "f.h5", engine="h5ref", mask_and_scale=mask_and_scale
    ) as ds:
        elements = ds["refs"].values
        again = pickle.loads(pickle.dumps(elements))
    assert [str(r.stored_as) for r in again] == [str(r.stored_as) for r in elements]
    assert again[7].describe().endswith(f"f.h5: {kind} reference 7 of '/refs'")
    assert again.tolist() == elements.tolist()
    assert again[7].options == elements[7].options
    assert again[7].options.mask_and_scale is mask_and_scale
    assert not again[999]
    # The name adds a number, and a mark for its owner.
    named = len(pickle.dumps(elements[:999]))
    nameless = len(pickle.dumps([replace_name(r) for r in elements[:999]]))
    assert named - nameless < 999 * 6 + 400


def replace_name(element: Any) -> Any:
    """Return a reference that was not stored."""
    if isinstance(element, xref.RegionReference):
        return replace(element, object=replace_name(element.object))
    return replace(element, stored_as=None)
