"""References in compound types: members as reference variables, rows as regions.

In: a variable of compounds. Out: the references of one member, as columns; or, where
each compound is start, count and reference, the regions that it stands for.

The second is how NWB 2 stores a part of a time series (``TimeSeriesReference``): the
reference is to a group, whose dataset ``data`` has the values along its first axis.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.core import indexing

from xref.arrays import IntArray
from xref.engine import DatasetArray
from xref.errors import DanglingReferenceError, SelectionError, WrongTargetError
from xref.hdf5 import Datatype
from xref.objects import StoredObject, kind_of, object_kind, open_member
from xref.references import (
    AttributeReference,
    DecodeOptions,
    ObjectReference,
    Reference,
    ReferenceArray,
    ReferenceColumns,
    RegionReference,
    StoredReferences,
)
from xref.resolving.targets import group_path
from xref.selections import SelectionKind, box_table, empty_table, in_order

REFERENCES = (ObjectReference, RegionReference, AttributeReference)

SERIES_DATA = "data"
"""Dataset of a group that a compound of start, count and reference selects from."""


@dataclass(frozen=True, slots=True)
class ReferenceMember:
    """A member of a compound type that is a reference."""

    path: str  # with dots between levels
    offset: int  # bytes from the start of the stored element
    kind: str  # "object", "region" or "std"


def reference_members(
    datatype: Datatype, path: str = "", offset: int = 0
) -> Iterator[ReferenceMember]:
    """Yield the references of a compound type, at any depth of compounds."""
    for field in datatype.fields:
        where = f"{path}.{field.name}" if path else field.name
        if field.datatype.kind == "reference":
            yield ReferenceMember(where, offset + field.offset, field.datatype.reference)
        yield from reference_members(field.datatype, where, offset + field.offset)


def collect_references(values: npt.NDArray[Any], path: str = "") -> dict[str, list[Reference]]:
    """Collect references among decoded values, by member; "" for those in no compound."""
    found: dict[str, list[Reference]] = {}
    parts: list[tuple[str, Any]] = []
    if values.dtype.names:
        parts = [(f"{path}.{n}" if path else n, values[n]) for n in values.dtype.names]
    elif values.dtype.hasobject:
        for value in values.flat:
            if isinstance(value, REFERENCES):
                found.setdefault(path, []).append(value)
            elif isinstance(value, np.ndarray):
                parts.append((path, value))
    for where, part in parts:
        for name, references in collect_references(part, where).items():
            found.setdefault(name, []).extend(references)
    return found


def field_references(array: xr.DataArray, name: str) -> ReferenceArray:
    """Return one member of a variable of compounds as references.

    Parameters
    ----------
    array : xarray.DataArray
        Of a compound type.
    name : str
        The member; dots lead into members that are compounds themselves.

    Raises
    ------
    KeyError
        If there is no such member.
    TypeError
        If it holds something else.

    Notes
    -----
    A member that is an array of references adds its axes behind those of the variable.
    """
    if array.dtype.names is None:
        raise TypeError(
            f"{array.name!r} holds {array.dtype} values, no compounds: there is no member "
            f"{name!r}"
        )
    place = _find_place(array)
    if place is not None:
        lazy, slices = place
        layout = lazy.dataset.layout
        members = reference_members(layout.elements) if layout.elements else iter(())
        for member in members:
            if member.path == name:
                stored = StoredReferences(
                    lazy.dataset, None, member.kind, slices, member.path, member.offset
                )
                return _narrowed(array, stored, lazy.options)
    values = _member(array.values, name, array.name)
    if values.dtype != object:
        raise TypeError(
            f"member {name!r} of {array.name!r} holds {values.dtype} values, no references; "
            "they are in .values"
        )
    return as_reference_array(values, f"member {name!r} of {array.name!r}")


def _member(values: npt.NDArray[Any], name: str, of: Any) -> npt.NDArray[Any]:
    """Return one member of decoded compounds; names of members may have dots themselves."""
    known = values.dtype.names or ()
    if name in known:
        found: npt.NDArray[Any] = values[name]
        return found
    for head in known:
        if name.startswith(f"{head}.") and values.dtype[head].base.names:
            return _member(values[head], name.removeprefix(f"{head}."), of)
    raise KeyError(f"{of!r} has no member {name!r}; it has {', '.join(known) or 'none'}")


def as_reference_array(values: npt.NDArray[Any], what: str) -> ReferenceArray:
    """Return decoded objects as references.

    Raises
    ------
    TypeError
        If they are something else.
    """
    kinds = {type(value) for value in values.flat}
    other = kinds - {*REFERENCES, type(None)}
    if np.ndarray in other:
        raise TypeError(
            f"{what} holds sequences, each an array of its own: take one of them from .values "
            "and make it xref.ReferenceArray.from_references(...)"
        )
    if other:
        names = ", ".join(sorted(kind.__name__ for kind in other))
        raise TypeError(f"{what} holds values of type {names}, no references")
    # References of HDF5 1.12 are of several kinds; others all of one.
    return ReferenceArray.from_references(values, keep_kinds=len(kinds & {*REFERENCES}) > 1)


def _narrowed(
    array: xr.DataArray, stored: StoredReferences, options: DecodeOptions
) -> ReferenceArray:
    references = ReferenceArray(stored.shape, kind=stored.kind, stored=stored, options=options)
    # An integer in the index of the compounds drops its axis.
    return references if references.shape == array.shape else references.reshape(array.shape)


def _find_place(
    array: xr.DataArray,
) -> tuple[DatasetArray, tuple[tuple[int, int, int], ...]] | None:
    """Return the dataset behind a variable that was not read, and the box of it."""
    data: Any = array.variable._data
    key = None
    while not isinstance(data, DatasetArray):
        if isinstance(data, indexing.LazilyIndexedArray):
            if key is not None:
                return None
            key = data.key.tuple
        data = getattr(data, "array", None)
        if data is None:
            return None
    if key is None or data.shape[: len(data.extent)] != data.extent:
        return None
    slices = []
    for k, n in zip(key, data.extent, strict=False):
        if isinstance(k, slice):
            start, stop, step = k.indices(n)
            if step < 0:
                return None
            slices.append((start, len(range(start, stop, step)), step))
        elif isinstance(k, int | np.integer):
            slices.append((int(k) % n, 1, 1))
        else:
            return None
    return (data, tuple(slices)) if len(slices) == len(data.extent) else None


# --- start, count, reference -------------------------------------------------------


def selection_members(dtype: np.dtype[Any]) -> tuple[str, str, str] | None:
    """Return the members for start, count and reference; None if it is no such compound."""
    names = dtype.names or ()
    integers = [n for n in names if dtype[n].kind in "iu"]
    starts = [n for n in integers if "start" in n.lower()]
    counts = [n for n in integers if "count" in n.lower()]
    objects = [n for n in names if dtype[n] == np.dtype(object)]
    if len(names) == 3 and len(starts) == len(counts) == len(objects) == 1:
        return starts[0], counts[0], objects[0]
    return None


def nwb_regions(array: xr.DataArray) -> ReferenceArray:
    """Return the regions that compounds of start, count and reference stand for.

    Negative integers stand for no region: a null reference.

    Raises
    ------
    TypeError
        If the variable holds no such compounds.
    WrongTargetError
        If a reference is neither to a dataset nor to a group with one named ``data``.
    SelectionError
        If a region reaches beyond its dataset.
    """
    members = selection_members(array.dtype)
    if members is None:
        names = ", ".join(array.dtype.names or ())
        raise TypeError(
            f"{array.name!r} holds no compounds of start, count and reference, which stand for "
            f"regions; .h5ref.field(name) gives the references of one member ({names})"
        )
    start_name, count_name, reference_name = members
    values = array.values.reshape(-1)
    start, count = _whole_numbers(values[start_name]), _whole_numbers(values[count_name])
    references = field_references(array, reference_name).ravel()
    columns = references.columns
    if references.is_region or len(columns.attribute_rows):
        raise WrongTargetError(
            f"member {reference_name!r} of {array.name!r} has references to regions or "
            f"attributes, which have no elements to count; .h5ref.field({reference_name!r}) "
            "gives them"
        )
    null = ((start < 0) & (count < 0)) | (columns.address == 0)
    address = np.where(null, np.uint64(0), columns.address).astype(np.uint64)
    file, files = np.array(columns.file), dict.fromkeys(columns.files)
    tables, order = (
        [empty_table(int(null.sum()), 0, SelectionKind.NULL)],
        [np.flatnonzero(null)],
    )
    live = np.flatnonzero(~null)
    pairs = np.stack([columns.file[live].astype(np.uint64), columns.address[live]], axis=1)
    targets, of = np.unique(pairs, axis=0, return_inverse=True)
    by_target = np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of))[:-1])
    for (number, target), picked in zip(targets.tolist(), by_target, strict=False):
        rows = live[picked]
        what = references.describe(int(rows[0]))
        dataset = _series_data(StoredObject(columns.files[int(number)], int(target)), what)
        shape = dataset.layout.shape
        _check_rows(rows, start[rows], count[rows], shape, references)
        full = np.broadcast_to(np.array(shape, dtype=np.int64), (len(rows), len(shape))).copy()
        begin = np.zeros_like(full)
        begin[:, 0], full[:, 0] = start[rows], count[rows]
        empty = full[:, 0] == 0
        tables += [
            box_table(begin[~empty], full[~empty]),
            empty_table(int(empty.sum()), 0, SelectionKind.NONE),
        ]
        order += [rows[~empty], rows[empty]]
        address[rows] = dataset.address
        files.setdefault(dataset.location)
        file[rows] = list(files).index(dataset.location)
    found = ReferenceColumns(
        files=tuple(files),
        file=file,
        address=address,
        regions=in_order(tables, order),
    )
    return ReferenceArray(array.shape, kind="region", columns=found, options=references.options)


def _whole_numbers(values: npt.NDArray[Any]) -> IntArray:
    """Return integers as signed ones; those too large for that are large still."""
    if values.dtype.kind == "u":
        values = np.minimum(values.astype(np.uint64), np.uint64(np.iinfo(np.int64).max))
    return values.astype(np.int64)


def _series_data(target: StoredObject, what: str) -> StoredObject:
    """Return the dataset that a reference of a series leads to."""
    kind, address = object_kind(target), target.address
    if kind == "dataset":
        return target
    if kind == "dangling":
        raise DanglingReferenceError(f"{what} is dangling: there is no object at {address:#x}")
    if kind == "group":
        path = posixpath.join(group_path(target), SERIES_DATA)
        try:
            found = open_member(target.location, path)
        except FileNotFoundError:
            kind = f"group without {SERIES_DATA!r}"
        else:
            kind = f"group whose {SERIES_DATA!r} is a {kind_of(found.item)}"
            if kind_of(found.item) == "dataset":
                return found.stored
    raise WrongTargetError(
        f"{what} points at a {kind}; a dataset is needed, or a group with one named "
        f"{SERIES_DATA!r}"
    )


def _check_rows(
    rows: IntArray,
    start: IntArray,
    count: IntArray,
    shape: tuple[int, ...],
    references: ReferenceArray,
) -> None:
    n = shape[0] if shape else -1  # a scalar has no elements to count
    wrong = np.flatnonzero((start < 0) | (count < 0) | (start > n) | (count > n - start))
    if len(wrong):
        i = int(wrong[0])
        raise SelectionError(
            f"{references.describe(int(rows[i]))} stands for {count[i]} elements from "
            f"{start[i]} of a dataset of shape {shape}"
        )
