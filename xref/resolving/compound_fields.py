"""References in compound types: members as reference variables, compounds as regions.

In: a variable of compounds. Out: the references of one member, as columns; or the regions of
compounds of start, count and reference.

NWB 2 stores a part of a time series as such a compound (``TimeSeriesReference``): the reference
points at a group, whose dataset ``data`` has the values along its first axis.
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
    ObjectReference,
    Reference,
    ReferenceArray,
    ReferenceColumns,
    RegionReference,
    StoredReferences,
    split_targets,
)
from xref.resolving.targets import group_path
from xref.selections import SelectionKind, SelectionTable, box_table, concat_at, empty_table

REFERENCES = (ObjectReference, RegionReference, AttributeReference)

SERIES_DATA = "data"
"""Name of the dataset of a group from which compounds of start, count and reference select."""


@dataclass(frozen=True, slots=True)
class ReferenceMember:
    """A reference among the members of a compound type."""

    path: str  # names of nested members, separated by dots
    offset: int  # bytes from the start of the stored element
    kind: str  # "object", "region" or "std"


def reference_members(
    datatype: Datatype, path: str = "", offset: int = 0
) -> Iterator[ReferenceMember]:
    """Yield the references of a compound type, at any depth of compounds."""
    for field in datatype.fields:
        name = f"{path}.{field.name}" if path else field.name
        if field.datatype.type_class == "reference":
            yield ReferenceMember(name, offset + field.offset, field.datatype.reference)
        yield from reference_members(field.datatype, name, offset + field.offset)


def collect_references(values: npt.NDArray[Any], path: str = "") -> dict[str, list[Reference]]:
    """Collect the references in decoded values by member, "" outside of compounds."""
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
    for member, part in parts:
        for name, references in collect_references(part, member).items():
            found.setdefault(name, []).extend(references)
    return found


def field_references(array: xr.DataArray, name: str) -> ReferenceArray:
    """Return the references in one member of a variable of compounds, lazily if possible.

    A member that is an array of references adds its axes after those of the variable. See
    `xref.resolving.accessor.ReferenceAccessor.field`.
    """
    if array.dtype.names is None:
        raise TypeError(
            f"{array.name!r} holds {array.dtype} values, no compounds: there is no member "
            f"{name!r}"
        )
    unread = _unread_box(array)
    if unread is not None:
        lazy, slices = unread
        layout = lazy.dataset.layout
        members = reference_members(layout.elements) if layout.elements else iter(())
        for member in members:
            if member.path == name:
                stored = StoredReferences(
                    lazy.dataset, None, member.kind, slices, member.path, member.offset
                )
                references = ReferenceArray(
                    stored.shape, kind=stored.kind, stored=stored, options=lazy.options
                )
                # An integer in the index of the compounds drops its axis.
                same = references.shape == array.shape
                return references if same else references.reshape(array.shape)
    values = _member(array.values, name, array.name)
    if values.dtype != object:
        raise TypeError(
            f"member {name!r} of {array.name!r} holds {values.dtype} values, no references; "
            "they are in .values"
        )
    return as_reference_array(values, f"member {name!r} of {array.name!r}")


def _member(values: npt.NDArray[Any], name: str, variable: Any) -> npt.NDArray[Any]:
    """Return one member of decoded compounds; the name of a member may contain dots."""
    names = values.dtype.names or ()
    if name in names:
        member: npt.NDArray[Any] = values[name]
        return member
    for outer in names:
        if name.startswith(f"{outer}.") and values.dtype[outer].base.names:
            return _member(values[outer], name.removeprefix(f"{outer}."), variable)
    raise KeyError(f"{variable!r} has no member {name!r}; it has {', '.join(names) or 'none'}")


def as_reference_array(values: npt.NDArray[Any], label: str) -> ReferenceArray:
    """Return decoded objects as references; raise TypeError if there are other objects."""
    kinds = {type(value) for value in values.flat}
    other = kinds - {*REFERENCES, type(None)}
    if np.ndarray in other:
        raise TypeError(
            f"{label} holds sequences, each an array of its own: take one of them from .values "
            "and make it xref.ReferenceArray.from_references(...)"
        )
    if other:
        names = ", ".join(sorted(kind.__name__ for kind in other))
        raise TypeError(f"{label} holds values of type {names}, no references")
    # Only references of HDF5 1.12 can be of several kinds in one array.
    return ReferenceArray.from_references(values, keep_kinds=len(kinds & {*REFERENCES}) > 1)


def _unread_box(
    array: xr.DataArray,
) -> tuple[DatasetArray, tuple[tuple[int, int, int], ...]] | None:
    """Return the dataset of a variable that was not read yet, and the box of its elements."""
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


def selection_members(dtype: np.dtype[Any]) -> tuple[str, str, str] | None:
    """Return the names of the members for start, count and reference; None without them."""
    names = dtype.names or ()
    integers = [n for n in names if dtype[n].kind in "iu"]
    starts = [n for n in integers if "start" in n.lower()]
    counts = [n for n in integers if "count" in n.lower()]
    objects = [n for n in names if dtype[n] == np.dtype(object)]
    if len(names) == 3 and len(starts) == len(counts) == len(objects) == 1:
        return starts[0], counts[0], objects[0]
    return None


def nwb_regions(array: xr.DataArray) -> ReferenceArray:
    """Return the regions of compounds of start, count and reference.

    Where both numbers are negative, the reference is null. Raises TypeError if the variable
    does not hold such compounds, WrongTargetError if a target is neither a dataset nor a group
    with a dataset ``data``, and SelectionError if a region reaches beyond its dataset.
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
            f"{references.label}: member {reference_name!r} of {array.name!r} has references "
            "to regions or attributes, which have no elements to count; "
            f".h5ref.field({reference_name!r}) gives them"
        )
    null = ((start < 0) & (count < 0)) | (columns.address == 0)
    tables = [empty_table(int(null.sum()), 0, SelectionKind.NULL)]
    order = [np.flatnonzero(null)]
    address = np.where(null, np.uint64(0), columns.address).astype(np.uint64)
    file, files = np.array(columns.file), dict.fromkeys(columns.files)
    valid = ReferenceColumns(files=columns.files, file=file, address=address, regions=None)
    for target, target_rows in split_targets(valid)[0]:
        rows = np.arange(len(null))[target_rows]
        dataset = _series_data(target, references.describe(int(rows[0])))
        shape = dataset.layout.shape
        _check_rows(rows, start[rows], count[rows], shape, references)
        tables.append(_boxes_along_first_axis(start[rows], count[rows], shape))
        order.append(rows)
        address[rows] = dataset.address
        files.setdefault(dataset.location)
        file[rows] = list(files).index(dataset.location)
    regions = concat_at(tables, order)
    columns = ReferenceColumns(files=tuple(files), file=file, address=address, regions=regions)
    options = references.options
    return ReferenceArray(
        array.shape, kind="region", columns=columns, options=options, names=references.names
    )


def _boxes_along_first_axis(
    start: IntArray, count: IntArray, shape: tuple[int, ...]
) -> SelectionTable:
    size = np.tile(np.array(shape, dtype=np.int64), (len(start), 1))
    begin = np.zeros_like(size)
    begin[:, 0], size[:, 0] = start, count
    return box_table(begin, size)


def _whole_numbers(values: npt.NDArray[Any]) -> IntArray:
    """Return integers as signed integers; larger ones become the largest signed integer."""
    if values.dtype.kind == "u":
        values = np.minimum(values.astype(np.uint64), np.uint64(np.iinfo(np.int64).max))
    return values.astype(np.int64)


def _series_data(target: StoredObject, label: str) -> StoredObject:
    """Return the dataset of a target: the target itself, or ``data`` of a group."""
    kind, address = object_kind(target), target.address
    if kind == "dataset":
        return target
    if kind == "dangling":
        raise DanglingReferenceError(f"{label} is dangling: there is no object at {address:#x}")
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
        f"{label} points at a {kind}; a dataset is needed, or a group with one named "
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
            f"{references.describe(int(rows[i]))} selects {count[i]} elements from {start[i]} "
            f"of a dataset of shape {shape}"
        )
