"""References into xarray objects.

In: a `ReferenceArray` or one reference. Out: lazy DataArrays and Datasets with
the target's dimensions, coordinates, attributes and CF decoding.

The references are decoded and fitted to their targets once, here, to know the
shapes; no target data are read. The lazy arrays that come out hold places and
decode again where they are computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
import xarray as xr

from xref import engine, objects
from xref.arrays import IntArray, canvas_strides, row_strides
from xref.errors import NullReferenceError
from xref.reading import plan_parts
from xref.references import (
    AttributeReference,
    ObjectReference,
    ReferenceArray,
    ReferenceColumns,
    RegionReference,
)
from xref.resolving.binding import bind, warn_of_units
from xref.resolving.read_results import BoundReferences, bind_references
from xref.resolving.result_layouts import POINT_DIM, resolve_cells, resolve_ragged
from xref.resolving.targets import group_path, open_target
from xref.storage import check_unchanged

LAYOUTS = ("stack", "ragged", "pad")


def resolve_references(
    array: xr.DataArray,
    references: ReferenceArray,
    *,
    layout: str = "stack",
    chunks: Any = "auto",
    coords: bool = True,
    on_null: str = "raise",
    fill_value: Any = None,
    dtype: Any = None,
) -> Any:
    """Resolve a reference variable; see `xref.resolving.accessor`."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; it can be one of {LAYOUTS}")
    if len(references.columns.attribute_rows):
        return _resolve_attributes(array, references, layout, on_null)
    if not references.is_region:
        groups = _resolve_groups(references, on_null, chunks)
        if groups is not None:
            return groups
    resolved, kept = bind(references, array.dims, on_null, array.name)
    warn_of_units(resolved)
    if kept is not None:
        array = array[{array.dims[0]: kept}]
    own = {k: v for k, v in array.coords.items() if set(v.dims) <= set(array.dims)}
    if layout == "ragged":
        return resolve_ragged(resolved, own, chunks, coords, dtype)
    return resolve_cells(resolved, own, layout, chunks, coords, fill_value, dtype)


def _resolve_groups(
    references: ReferenceArray, on_null: str, chunks: Any
) -> dict[Any, Any] | None:
    """Open references to groups as Datasets by index; None when they are to datasets."""
    columns = references.columns
    live = np.flatnonzero(columns.address)
    if not len(live):
        return None
    first = references.element(int(live[0]))
    if first.kind != "group":
        return None
    if len(live) < len(columns) and on_null != "drop":
        row = int(np.flatnonzero(columns.address == 0)[0])
        raise NullReferenceError(
            f"{references.describe(row)} is null; resolve with on_null='drop'"
        )
    out: dict[Any, Any] = {}
    objects.cache_h5py_references(columns.address[live].tolist())
    for row in live.tolist():
        index = tuple(int(i) for i in np.unravel_index(row, references.shape))
        element = references.element(row)
        if element.kind != "group":
            raise ValueError(
                f"{references.describe(row)} points at a {element.kind}, others at groups; "
                "resolve one by one with .h5ref.items()"
            )
        # "auto" is for stacked results; variables of groups stay as they were stored.
        wanted = None if chunks == "auto" else chunks
        out[index[0] if len(index) == 1 else index] = element.resolve(chunks=wanted)
    return out


def _resolve_attributes(
    array: xr.DataArray, references: ReferenceArray, layout: str, on_null: str
) -> xr.DataArray:
    """Stack the values of attributes of one shape and type; they are read here."""
    hint = "resolve one by one with .h5ref.items()"
    if layout != "stack":
        raise ValueError(f"layout={layout!r} is not for references to attributes; {hint}")
    valid = references.astype(bool)
    if not valid.all():
        if on_null == "drop" and references.ndim == 1:
            return _resolve_attributes(
                array[{array.dims[0]: valid}], references[valid], layout, "raise"
            )
        row = int(np.flatnonzero(~valid.reshape(-1))[0])
        raise NullReferenceError(
            f"{references.describe(row)} is null; resolve a 1-D variable with on_null='drop', "
            "or select the others"
        )
    values: list[xr.DataArray] = []
    for row in range(references.size):
        element = references.element(row)
        if not isinstance(element, AttributeReference):
            raise ValueError(
                f"{references.describe(row)} is {element!r}, others point at attributes; {hint}"
            )
        found = element.resolve()
        if isinstance(found.variable.data, ReferenceArray):
            raise ValueError(
                f"{references.describe(row)} points at an attribute of references; {hint}"
            )
        values.append(found)
        if _cell_type(found) != _cell_type(values[0]):
            raise ValueError(
                f"{references.describe(row)} points at an attribute of {found.dtype} "
                f"{found.shape}, others of {values[0].dtype} {values[0].shape}; {hint}"
            )
    names = {found.name for found in values}
    stacked = np.stack([found.values for found in values])
    cell = values[0]
    own = {k: v for k, v in array.coords.items() if set(v.dims) <= set(array.dims)}
    return xr.DataArray(
        stacked.reshape(references.shape + cell.shape),
        dims=(*array.dims, *_numbered_dims(cell.ndim, array.dims)),
        coords=own,
        name=names.pop() if len(names) == 1 else array.name,
    )


def resolve_attribute(reference: AttributeReference, chunks: Any = None) -> xr.DataArray:
    """Read the attribute that a reference points at; see `AttributeReference.resolve`."""
    stored = reference.object.stored
    if stored is None or not reference:
        raise NullReferenceError("a null attribute reference points at nothing")
    location, item = stored.location, objects.open_object(stored)
    value = objects.read_attribute(item, reference.name, stored)
    check_unchanged(location)
    variable: xr.Variable
    if isinstance(value, objects.RawAttributeReferences):
        where = f"{location.filename}: attribute {reference.name!r}"
        data = engine.attribute_references(value, location, where, reference.options)
        variable = engine.ReferenceVariable(_numbered_dims(data.ndim), data)
        array = engine.reference_dataarray(variable, name=reference.name)
    else:
        values = _attribute_array(value)
        array = xr.DataArray(values, dims=_numbered_dims(values.ndim), name=reference.name)
    return array if chunks is None else array.chunk(chunks)


def _cell_type(value: xr.DataArray) -> tuple[Any, ...]:
    """Return what must be the same of values that are stacked; lengths of text need not."""
    return value.shape, value.dtype if value.dtype.kind == "V" else value.dtype.kind


def _numbered_dims(ndim: int, taken: Sequence[Hashable] = ()) -> tuple[str, ...]:
    free = (f"dim_{i}" for i in count() if f"dim_{i}" not in taken)
    return tuple(islice(free, ndim))


def _attribute_array(value: Any) -> np.ndarray[Any, Any]:
    """Return an attribute's value as an array, text decoded; of no element if it is null."""
    if value is None:
        return np.empty(0)
    values = np.asarray(objects.decode_name(value) if isinstance(value, bytes) else value)
    if values.dtype.kind == "S":
        return np.strings.decode(values, "utf-8", "surrogateescape") if values.size else values
    if values.dtype.kind == "O" and all(isinstance(v, str | bytes) for v in values.flat):
        decoded = np.empty(values.size, dtype=object)
        decoded[:] = [objects.decode_name(v) for v in values.flat]
        return decoded.reshape(values.shape)
    return values


def resolve_object(reference: ObjectReference, chunks: Any = None) -> Any:
    """Open what an object reference points at; see `ObjectReference.resolve`."""
    stored, options = reference.stored, reference.options
    if stored is None:
        raise NullReferenceError("a null object reference points at nothing")
    item = objects.open_object(stored)
    if objects.kind_of(item) == "group":
        members = engine.open_members(stored.location, group_path(stored), options)
        dataset = engine.decode_dataset(*members, options)
        return dataset if chunks is None else dataset.chunk(chunks)
    if objects.kind_of(item) == "datatype":
        return item.dtype
    facts = stored.metadata
    target = open_target(stored, facts, options)
    dims = _free_dims(target.dims)
    if objects.dataset_kind(item):
        variable = engine.build_variable(stored, facts.layout, dims, target.attributes, options)
        return xr.DataArray(variable, name=target.name)
    columns = ReferenceColumns.of_file(
        stored.location, np.array([stored.address], dtype=np.uint64)
    )
    array = ReferenceArray((), kind="object", columns=columns, options=options)
    return resolve_references(xr.DataArray(xr.Variable((), array)), array, chunks=chunks)


def _free_dims(dims: tuple[str | None, ...]) -> tuple[str, ...]:
    free = (f"phony_dim_{k}" for k in range(len(dims) * 2) if f"phony_dim_{k}" not in dims)
    return tuple(d if d is not None else next(free) for d in dims)


def resolve_region(reference: RegionReference, chunks: Any = None) -> Any:
    """Return what a region reference selects; see `RegionReference.resolve`."""
    stored = reference.object.stored
    if stored is None or not reference:
        raise NullReferenceError("a null region reference selects nothing")
    item = objects.open_dataset(stored)
    array = ReferenceArray.from_references(reference)
    if objects.dataset_kind(item):
        return _resolve_reference_values(reference, array)
    return resolve_references(xr.DataArray(xr.Variable((), array)), array, chunks=chunks)


def _resolve_reference_values(
    reference: RegionReference, array: ReferenceArray
) -> xr.DataArray:
    """Select within a dataset that itself holds references."""
    whole = resolve_object(reference.object)
    bound = bind_references(array.columns, array.describe)
    ndim, shape = int(bound.ndim[0]), bound.shape[0]
    # The selection picks positions as it would pick values.
    positions = select_positions(bound)
    values = whole.variable.data.take_rows(positions.reshape(shape[:ndim]))
    dims = whole.dims if ndim == whole.ndim else (POINT_DIM,)
    return xr.DataArray(type(whole.variable)(dims, values, whole.attrs), name=whole.name)


def select_positions(bound: BoundReferences) -> IntArray:
    """Return the flat C-order positions in its target that one reference selects."""
    (target,) = bound.targets
    extent = target.layout.shape
    out = np.empty(int(bound.npoints[0]), dtype=np.int64)
    parts = plan_parts(
        target.regions, np.zeros(1, dtype=np.int64), row_strides(bound.shape[:, : len(extent)])
    )
    weights = np.array(canvas_strides(extent), dtype=np.int64)
    for i in range(len(parts)):
        place, at = parts.start[i] @ weights, parts.dst[i]
        for axis, n in enumerate(parts.shape[i].tolist()):
            steps = np.arange(n)
            place = np.add.outer(place, steps * parts.step[i, axis] * weights[axis])
            at = np.add.outer(at, steps * parts.dst_stride[i, axis])
        out[np.asarray(at).reshape(-1)] = np.asarray(place).reshape(-1)
    return out
