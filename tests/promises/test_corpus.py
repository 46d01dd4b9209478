"""Corpus files, from other writers: each reference gives the values recorded with h5py.

``MANIFEST.json`` of the corpus holds, for every element, its target's paths, its
bounds and a hash of its values. The hash is worked out here anew, from what xref
reads, as the manifest's ``conventions`` say.
"""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from manifest import RAW, rows
from oracle import assert_same, plain
from samples import open_h5

import xref

pytestmark = pytest.mark.slow

# (file, holder, element): the error that is expected. An entry that passes is an error.
EXPECTED_FAILURES: dict[tuple[str, str, tuple[Any, ...]], str] = {
    # Holds the bytes 1, 2, 3 ... where references should be.
    ("hdfview/bug1604_CompoundTest.h5", "/CompoundTest", (0, "Data")): "CorruptFileError",
    ("hdfview/bug1604_CompoundTest.h5", "/CompoundTest", (1, "Data")): "CorruptFileError",
}

REFERENCES = (xref.ObjectReference, xref.RegionReference, xref.AttributeReference)


def digest(values: Any, first_paths: dict[str, str]) -> str:
    """Hash values as the manifest does; ``first_paths`` gives an object's first name."""
    values = np.asarray(values)
    stream = bytearray()
    feed(stream, values, first_paths)
    return hashlib.sha256(stream).hexdigest()


def feed(stream: bytearray, values: Any, first_paths: dict[str, str]) -> None:
    values = np.ascontiguousarray(values)
    if not values.dtype.hasobject:
        stream += values.tobytes()
    elif values.dtype.names:
        for element in values.reshape(-1):
            for name in values.dtype.names:
                feed(stream, np.asarray(element[name], values.dtype[name].base), first_paths)
    else:
        for item in values.reshape(-1).tolist():
            feed_object(stream, item, first_paths)


def feed_object(stream: bytearray, item: Any, first_paths: dict[str, str]) -> None:
    if item is None:
        stream += b"0"
    elif isinstance(item, str | bytes):
        item = item.encode("utf-8", "surrogateescape") if isinstance(item, str) else item
        stream += b"S" + len(item).to_bytes(8, "little") + item
    elif isinstance(item, REFERENCES):
        path = item.path if item else None
        stream += b"R" + first_paths.get(path, path or "").encode() if item else b"N"
    elif isinstance(item, np.ndarray):
        stream += b"V" + item.dtype.str.encode() + len(item).to_bytes(8, "little")
        feed(stream, item, first_paths)
    else:
        raise TypeError(f"{type(item).__module__}.{type(item).__name__} is no plain value")


def first_names(filename: Path) -> dict[str, str]:
    """Map every path of an object to its first, sorted by name."""
    by_address: dict[int, list[str]] = {}
    with h5py.File(filename) as file:

        def walk(group: h5py.Group, prefix: str, above: tuple[int, ...]) -> None:
            for name in group:
                if group.get(name, getlink=True).__class__ is not h5py.HardLink:
                    continue
                info = h5py.h5o.get_info(group.id, name.encode())
                path = f"{prefix}/{name}"
                by_address.setdefault(info.addr, []).append(path)
                if info.type == h5py.h5o.TYPE_GROUP and info.addr not in above:
                    walk(group[name], path, (*above, info.addr))

        walk(file, "", (h5py.h5o.get_info(file.id).addr,))
    return {path: min(paths) for paths in by_address.values() for path in paths}


def element_problem(
    reference: Any, element: dict[str, Any], first_paths: dict[str, str]
) -> str | None:
    """Describe how a reference differs from its record; None if it is equal."""
    if element.get("null"):
        return None if not reference and reference.kind == "null" else "is not null"
    if not reference:
        return "is null"
    if "attribute" in element:
        return attribute_problem(reference, element, first_paths)
    if element.get("dangling"):
        return None if reference.kind == "dangling" else f"has kind {reference.kind}"
    kind = {"named type": "datatype"}.get(element["target_type"], element["target_type"])
    if reference.kind != kind:
        return f"has kind {reference.kind}, not {kind}"
    paths = element["target_paths"]
    if reference.path not in (paths or [None]):
        return f"has path {reference.path!r}, not one of {paths}"
    if not paths and reference.address != element["target_addr"]:
        return f"has address {reference.address}, not {element['target_addr']}"
    if "bounds" in element:
        low, high = element["bounds"]
        if reference.bounds != (tuple(low), tuple(stop + 1 for stop in high)):
            return f"has bounds {reference.bounds}, inclusive {low}, {high} were recorded"
    if kind == "dataset":
        return values_problem(reference, element, first_paths)
    resolved = reference.resolve()
    if kind == "group":
        return group_problem(resolved, reference, element)
    return None if isinstance(resolved, np.dtype) else f"resolves to {type(resolved)}"


def attribute_problem(
    reference: Any, element: dict[str, Any], first_paths: dict[str, str]
) -> str | None:
    """Compare the target, name and value of an attribute."""
    found = (reference.path, reference.name)
    if found != (element["target"], element["attribute"]):
        return f"points at {found}"
    if "error" in element:
        return None if reference.kind == "dangling" else f"has kind {reference.kind}"
    if reference.kind != "attribute":
        return f"has kind {reference.kind}"
    return values_problem(reference, element, first_paths)


def values_problem(
    reference: Any, element: dict[str, Any], first_paths: dict[str, str]
) -> str | None:
    """Compare the values of a dataset or region."""
    recorded = element["value"]
    if recorded["shape"] is None:
        # A null dataspace has no shape and no elements.
        resolved = reference.resolve()
        return None if resolved.size == 0 else f"has {resolved.size} elements"
    values = reference.resolve().values
    shape = element.get("h5py_shape", recorded["shape"])
    if list(values.shape) != shape:
        return f"has shape {values.shape}, not {shape}"
    if values.dtype.kind in "iuf":
        # xarray makes values native.
        if values.dtype != np.dtype(recorded["dtype"]).newbyteorder("="):
            return f"has dtype {values.dtype.str}, not {recorded['dtype']}"
        values = values.astype(recorded["dtype"])
    if digest(values, first_paths) != recorded["sha256"]:
        return f"has other values: {str(values)[:80]} of {recorded['dtype']}"
    return None


def group_problem(resolved: Any, reference: Any, element: dict[str, Any]) -> str | None:
    """Compare the datasets of a group; a Dataset of xarray holds no subgroups."""
    if not isinstance(resolved, xr.Dataset):
        return f"resolves to {type(resolved)}"
    unknown = set(resolved.variables) - set(element["members"])
    if unknown and element["n_members"] == len(element["members"]):
        return f"has members {unknown} that h5py does not know"
    with h5py.File(reference.filename) as file:
        group = file[reference.path]
        sets = {n for n in element["members"] if group.get(n, getclass=True) is h5py.Dataset}
    missing = sets - set(resolved.variables)
    return f"lacks the datasets {missing}" if missing else None


def held_by(tree: dict[str, xr.Dataset], holder: dict[str, Any]) -> Any:
    """Return the variable or attribute that holds references."""
    path, attribute = holder["path"], holder.get("name")
    group, name = posixpath.split(path)
    if attribute is None:
        return tree[group][name]
    return (tree[path] if path in tree else tree[group][name]).attrs[attribute]


def reference_at(held: Any, holder: dict[str, Any], element: dict[str, Any]) -> Any:
    """Return one reference of a variable or attribute."""
    index, member = tuple(element["index"]), element.get("member")
    if isinstance(held, xr.DataArray):
        array = held.h5ref.field(member) if member else held
        found = array.data[index] if isinstance(array.data, xref.ReferenceArray) else array
        return found.values[index] if isinstance(found, xr.DataArray) else found
    for part in member.split(".") if member else ():
        held = held[part]
    # An attribute of one element is that element, not an array.
    is_one = math.prod(holder["shape"]) == 1
    alone = is_one and ("k" in element or np.shape(held) != tuple(holder["shape"]))
    found = held if alone or isinstance(held, REFERENCES) else held[index]
    for k in element.get("k", ()):
        found = found[k]
    return found


def holder_problems(
    tree: dict[str, xr.Dataset], holder: dict[str, Any], first_paths: dict[str, str]
) -> dict[tuple[Any, ...], str]:
    """Return what is wrong, by index and member, with the recorded elements of one holder."""
    problems: dict[tuple[Any, ...], str] = {}
    try:
        held = held_by(tree, holder)
    except KeyError as error:
        return {(): f"is not there: {error}"}
    if isinstance(held, xr.DataArray):
        if list(held.shape) != holder["shape"]:
            problems[()] = f"has shape {held.shape}, not {holder['shape']}"
        if isinstance(held.variable._data, xref.ReferenceArray):
            n_null = int((~held.data.astype(bool)).sum())
            if n_null != holder["n_null"]:
                problems[()] = f"has {n_null} nulls, not {holder['n_null']}"
    for element in holder["elements"]:
        key = (*element["index"], *element.get("member", "").split(), *element.get("k", ()))
        try:
            found = reference_at(held, holder, element)
            problem = element_problem(found, element, first_paths)
        except Exception as error:  # noqa: BLE001 - each is listed
            problem = f"raises {type(error).__name__}: {error}"
        if problem:
            problems[key] = problem
    return problems


@pytest.mark.filterwarnings("ignore::xref.UnreadableMemberWarning")
def test_every_corpus_reference_resolves_to_the_recorded_values(corpus: Path) -> None:
    problems, checked = {}, Counter()
    damaged = [row for row in rows(corpus, "damaged") if row["file"] in DAMAGED_ELSEWHERE]
    for row in rows(corpus, "references", "parity") + damaged:
        filename = corpus / row["file"]
        first_paths = first_names(filename)
        # Other members may be unreadable; datasets and attributes with references may not.
        tree = xr.open_groups(filename, **RAW)
        for what in ("datasets", "attributes"):
            for holder in row.get(what, ()):
                if row in damaged and any("error" in e for e in holder["elements"][-1:]):
                    continue  # what HDF5 does not read either
                kind = "within" if holder["type"] not in PLAIN else holder["type"]
                checked[what, kind] += len(holder["elements"])
                label = holder["path"] + (f"@{holder['name']}" if "name" in holder else "")
                found = holder_problems(tree, holder, first_paths)
                problems |= {(row["file"], label, k): p for k, p in found.items()}
        for ds in tree.values():
            ds.close()
    unexpected = {
        k: p
        for k, p in problems.items()
        if k not in EXPECTED_FAILURES or EXPECTED_FAILURES[k] not in p
    }
    listed = "\n".join(f"{' '.join(map(str, k))}: {p}" for k, p in unexpected.items())
    assert not unexpected, f"{len(unexpected)} of {sum(checked.values())} fail:\n{listed}"
    passed = set(EXPECTED_FAILURES) - set(problems)
    assert not passed, f"these were expected to fail and pass: {passed}"
    assert checked == {
        ("datasets", "object"): 736,
        ("datasets", "region"): 16,
        ("datasets", "std"): 7,
        ("datasets", "within"): 52,
        ("attributes", "object"): 161,
        ("attributes", "region"): 20,
        ("attributes", "within"): 17,
    }


PLAIN = ("object", "region", "std")

# Files whose attributes hold compounds and sequences of references, most of them sound.
DAMAGED_ELSEWHERE = [
    f"cve_hdf5/cve-{number}.h5" for number in ("2024-32611", "2024-32623", "2025-2309")
]


# How many members and attributes of a root group are left out, and why.
LEFT_OUT = {
    "hdf5/h5repack_objs.h5": 2  # links to nothing
}


def test_every_corpus_file_opens(corpus: Path) -> None:
    manifest = json.loads((corpus / "MANIFEST.json").read_text())
    left_out = {}
    for row in manifest["files"]:
        if row["role"] == "damaged":
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")  # of xarray, about odd times, as well
            with open_h5(corpus / row["file"], decode_times=False) as ds:
                assert str(ds)
                assert ds._repr_html_()
        n = sum(issubclass(w.category, xref.UnreadableMemberWarning) for w in caught)
        left_out |= {row["file"]: n} if n else {}
    assert left_out == LEFT_OUT


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("trefer_obj.h5", {"Dataset3", "Dataset4", "Dataset5", "Dataset6"}),
        ("trefer_grp.h5", {"dset"}),
        ("trefer_attr.h5", {"Dataset3"}),
    ],
)
def test_std_references_of_hdf5_1_12_are_variables_among_others(
    corpus: Path, name: str, kept: set[str]
) -> None:
    path = corpus / "hdf5" / name
    with open_h5(path) as ds:
        assert set(ds.variables) == kept
        assert all(isinstance(v.data, xref.ReferenceArray) for v in ds.variables.values())
    if name == "trefer_grp.h5":
        return
    with h5py.File(path) as file, open_h5(path, group="Group1") as ds:
        for member in ("Dataset1", "Dataset2"):
            assert_same(ds[member], file["Group1"][member][...], member)


# Differences from h5netcdf in files that it opens: only dimensions. In xref a dataset has
# one dimension for each axis of its values.
NULL = "h5netcdf gives a null dataspace no axis, and no value"
ARRAY = "h5netcdf gives elements of an array type no axes"
DIFFERENT = {
    "HDF5.jl/h5ex_t_objrefatt.h5": NULL,
    "h5serv/objref_dset.h5": NULL,
    "h5serv/regionref_attr.h5": NULL,
    "hdf5/h5diff_dset1.h5": ARRAY,
    "hdf5/tattrreg.h5": NULL,
    "hdf5/tnullspace.h5": NULL,
}


ANY_REFERENCE = (*REFERENCES, h5py.Reference, h5py.RegionReference)


def holds_references(values: Any) -> bool:
    """Tell whether a variable or attribute holds references, also within elements."""
    if isinstance(values, ANY_REFERENCE):
        return True
    values = np.asarray(values)
    if values.dtype.names:
        return any(holds_references(values[name]) for name in values.dtype.names)
    return values.dtype == object and any(
        holds_references(v) for v in values.flat if isinstance(v, (np.ndarray, *ANY_REFERENCE))
    )


def differs(read: Any, expected: Any) -> str:
    """Describe how values differ in shape, type or value; empty if they are equal."""
    read, expected = np.asarray(read), np.asarray(expected)
    if (read.shape, read.dtype) != (expected.shape, expected.dtype):
        return f"{read.dtype}{read.shape}, not {expected.dtype}{expected.shape}"
    if read.dtype.hasobject:
        return "" if plain(read) == plain(expected) else "other values"
    same = np.array_equal(read, expected, equal_nan=read.dtype.kind in "fcmM")
    return "" if same else "other values"


def group_differences(ds: xr.Dataset, expected: xr.Dataset) -> Iterator[str]:
    """Yield how the ordinary variables and attributes of a group differ."""
    if set(ds.variables) != set(expected.variables):
        yield f"variables {set(ds.variables) ^ set(expected.variables)}"
    for name in set(ds.variables) & set(expected.variables):
        variable, other = ds[name], expected[name]
        if variable.dims != other.dims:
            yield f"{name}: dimensions {variable.dims}, not {other.dims}"
        for problem in attribute_differences(variable.attrs, other.attrs):
            yield f"{name}: {problem}"
        try:
            values = other.values
        except (TypeError, OSError):  # a null dataspace, or a type that h5py does not read
            continue
        if holds_references(values):
            continue
        if variable.dtype.kind == "U" and values.dtype == object:
            # ASCII text: objects in h5netcdf, in netCDF4 NumPy text as all other text.
            values = values.astype(str)
        if problem := differs(variable.values, values):
            yield f"{name}: {problem}"
    yield from attribute_differences(ds.attrs, expected.attrs)


def attribute_differences(
    attributes: dict[str, Any], expected: dict[str, Any]
) -> Iterator[str]:
    for name in sorted(set(attributes) | set(expected)):
        if name not in attributes or name not in expected:
            yield f"attribute {name}: {'more' if name in attributes else 'missing'}"
            continue
        problem = differs(attributes[name], expected[name])
        if problem and not holds_references(attributes[name]):
            yield f"attribute {name}: {problem}"


def test_corpus_files_have_the_variables_of_h5netcdf(corpus: Path) -> None:
    pytest.importorskip("h5netcdf")
    problems, n_opened = set(), 0
    for row in rows(corpus, "references", "parity"):
        filename = corpus / row["file"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = xr.open_groups(filename, engine="h5netcdf", phony_dims="sort")
            except Exception:  # noqa: BLE001 - a file that it refuses
                continue
            tree = xr.open_groups(filename, engine="h5ref")
            n_opened += 1
            if set(tree) != set(expected):
                problems.add((row["file"], f"groups {set(tree) ^ set(expected)}"))
            for path in set(tree) & set(expected):
                for problem in group_differences(tree[path], expected[path]):
                    problems.add((row["file"], f"{path}: {problem}"))
        for ds in (*tree.values(), *expected.values()):
            ds.close()
    assert n_opened == 48
    listed = "\n".join(f"{file} {problem}" for file, problem in sorted(problems))
    assert {file for file, _ in problems} == set(DIFFERENT), listed
    assert all(": dimensions " in problem for _, problem in problems), listed
