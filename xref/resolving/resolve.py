"""References resolved into xarray objects.

In: a `ReferenceArray` or one reference. Out: lazy DataArrays and Datasets with the dimensions,
coordinates, attributes and CF decoding of the targets.

The references are decoded and bound to their targets once, here, to find the shapes; no target
data are read. The lazy arrays hold the location of the references, and decode the references
again where values are computed.
"""

from __future__ import annotations

from collections.abc import Container, Hashable
from itertools import islice
from typing import Any

import numpy as np
import xarray as xr

from xref import engine, objects
from xref.arrays import IntArray, canvas_strides, row_strides
from xref.errors import NullReferenceError, naming
from xref.objects import StoredObject
from xref.reading import plan_parts
from xref.references import (
    AttributeReference,
    ObjectReference,
    Owner,
    ReferenceArray,
    RegionReference,
)
from xref.resolving.binding import bind, warn_of_units
from xref.resolving.bound_references import BoundReferences, bind_references
from xref.resolving.concatenated import resolve_concatenated
from xref.resolving.result_layouts import resolve_ragged, resolve_stacked
from xref.resolving.result_variables import POINT_DIM, unique_dims
from xref.resolving.targets import group_path, open_target
from xref.storage import check_unchanged

LAYOUTS = ("stack", "ragged", "pad", "concat")


def resolve_references(
    array: xr.DataArray,
    references: ReferenceArray,
    layout: str = "stack",
    chunks: Any = "auto",
    coords: bool = True,
    on_null: str = "raise",
    fill_value: Any = None,
    dtype: Any = None,
    concat_dim: Hashable | None = None,
) -> Any:
    """Resolve a reference variable; see `xref.resolving.accessor`."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; it can be one of {LAYOUTS}")
    if concat_dim is not None and layout != "concat":
        raise ValueError(f"concat_dim={concat_dim!r} is for layout='concat', not {layout!r}")
    if len(references.columns.attribute_rows):
        return _resolve_attributes(array, references, layout, on_null)
    if not references.is_region:
        groups = _resolve_groups(references, on_null, chunks)
        if groups is not None:
            return groups
    if layout == "concat" and on_null == "drop":
        on_null = "fill"  # null references have no rows either way
    resolved, kept = bind(references, array.dims, on_null, array.name)
    warn_of_units(resolved)
    if kept is not None:
        array = array[{array.dims[0]: kept}]
    own_coords = _own_coords(array)
    if layout == "concat":
        return resolve_concatenated(resolved, own_coords, concat_dim, chunks, coords, dtype)
    if layout == "ragged":
        return resolve_ragged(resolved, own_coords, chunks, coords, dtype)
    return resolve_stacked(resolved, own_coords, layout, chunks, coords, fill_value, dtype)


def _own_coords(array: xr.DataArray) -> dict[Hashable, xr.DataArray]:
    return {k: v for k, v in array.coords.items() if set(v.dims) <= set(array.dims)}


def _resolve_groups(
    references: ReferenceArray, on_null: str, chunks: Any
) -> dict[Any, Any] | None:
    """Open references to groups as Datasets by index; None if they point at datasets."""
    columns = references.columns
    not_null = np.flatnonzero(columns.address)
    if not len(not_null) or references.element(int(not_null[0])).kind != "group":
        return None
    if len(not_null) < len(columns) and on_null != "drop":
        row = int(np.flatnonzero(columns.address == 0)[0])
        raise NullReferenceError(
            f"{references.describe(row)} is null; resolve with on_null='drop'"
        )
    # "auto" is for stacked results; the variables of groups stay as they are stored.
    chunks = None if chunks == "auto" else chunks
    datasets: dict[Any, Any] = {}
    objects.cache_h5py_references(columns.address[not_null].tolist())
    for row in not_null.tolist():
        index = tuple(int(i) for i in np.unravel_index(row, references.shape))
        element = references.element(row)
        if element.kind != "group":
            raise ValueError(
                f"{references.describe(row)} points at a {element.kind}, others at groups; "
                "resolve one by one with .h5ref.items()"
            )
        datasets[index[0] if len(index) == 1 else index] = element.resolve(chunks=chunks)
    return datasets


def _resolve_attributes(
    array: xr.DataArray, references: ReferenceArray, layout: str, on_null: str
) -> xr.DataArray:
    """Read and stack the values of attributes of one shape and type."""
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
        value = element.resolve()
        if isinstance(value.variable.data, ReferenceArray):
            raise ValueError(
                f"{references.describe(row)} points at an attribute of references; {hint}"
            )
        values.append(value)
        if _shape_and_kind(value) != _shape_and_kind(values[0]):
            raise ValueError(
                f"{references.describe(row)} points at an attribute of {value.dtype} "
                f"{value.shape}, others of {values[0].dtype} {values[0].shape}; {hint}"
            )
    names = {value.name for value in values}
    first = values[0]
    stacked = np.stack([value.values for value in values])
    return xr.DataArray(
        stacked.reshape(references.shape + first.shape),
        dims=(*array.dims, *_numbered_dims(first.ndim, array.dims)),
        coords=_own_coords(array),
        name=names.pop() if len(names) == 1 else array.name,
    )


def resolve_attribute(reference: AttributeReference, chunks: Any = None) -> xr.DataArray:
    """Read the attribute that a reference points at; see `AttributeReference.resolve`."""
    stored = reference.object.stored
    if stored is None or not reference:
        raise NullReferenceError(f"{reference.describe()} is null: it points at nothing")
    location = stored.location
    with naming(reference.describe):
        item = objects.open_object(stored)
        value = objects.read_attribute(item, reference.name, stored)
        check_unchanged(location)
    variable: xr.Variable
    if isinstance(value, objects.RawAttributeReferences):
        owner = Owner.of(stored, None, attribute=reference.name)
        data = engine.attribute_references(value, location, owner, reference.options)
        variable = engine.ReferenceVariable(_numbered_dims(data.ndim), data)
        array = engine.reference_dataarray(variable, name=reference.name)
    else:
        values = _attribute_values(value)
        array = xr.DataArray(values, dims=_numbered_dims(values.ndim), name=reference.name)
    return array if chunks is None else array.chunk(chunks)


def _shape_and_kind(value: xr.DataArray) -> tuple[Any, ...]:
    """Return what must be equal to stack values; texts may differ in length."""
    return value.shape, value.dtype if value.dtype.kind == "V" else value.dtype.kind


def _numbered_dims(ndim: int, taken: Container[Hashable] = ()) -> tuple[str, ...]:
    return tuple(islice(engine.numbered_names("dim_", taken), ndim))


def _attribute_values(value: Any) -> np.ndarray[Any, Any]:
    """Return the value of an attribute as an array with decoded text; empty if it is null."""
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
    """Open the target of an object reference; see `ObjectReference.resolve`."""
    stored = reference.stored
    if stored is None:
        raise NullReferenceError(f"{reference.describe()} is null: it points at nothing")
    with naming(reference.describe):
        return _open_target_object(reference, stored, chunks)


def _open_target_object(reference: ObjectReference, stored: StoredObject, chunks: Any) -> Any:
    options, item = reference.options, objects.open_object(stored)
    if objects.kind_of(item) == "group":
        members = engine.open_members(stored.location, group_path(stored), options)
        dataset = engine.decode_dataset(*members, options)
        return dataset if chunks is None else dataset.chunk(chunks)
    if objects.kind_of(item) == "datatype":
        return item.dtype
    if objects.dataset_kind(item):
        facts = stored.metadata
        target = open_target(stored, facts, options)
        dims = tuple(map(str, unique_dims(target.dims)))
        attributes = target.result_attributes
        variable = engine.build_variable(stored, facts.layout, dims, attributes, options)
        return xr.DataArray(variable, name=target.name)
    array = ReferenceArray.from_references(reference)
    return resolve_references(xr.DataArray(xr.Variable((), array)), array, chunks=chunks)


def resolve_region(reference: RegionReference, chunks: Any = None) -> Any:
    """Return the elements of a region reference; see `RegionReference.resolve`."""
    stored = reference.object.stored
    if stored is None or not reference:
        raise NullReferenceError(f"{reference.describe()} is null: it selects nothing")
    with naming(reference.describe):
        item = objects.open_dataset(stored)
    array = ReferenceArray.from_references(reference)
    if objects.dataset_kind(item):
        return _resolve_reference_values(reference, array)
    return resolve_references(xr.DataArray(xr.Variable((), array)), array, chunks=chunks)


def _resolve_reference_values(
    reference: RegionReference, array: ReferenceArray
) -> xr.DataArray:
    """Select elements of a dataset of references."""
    whole = resolve_object(reference.object)
    bound = bind_references(array)
    ndim, shape = int(bound.ndim[0]), bound.shape[0]
    positions = select_positions(bound)
    values = whole.variable.data.take_rows(positions.reshape(shape[:ndim]))
    dims = whole.dims if ndim == whole.ndim else (POINT_DIM,)
    return xr.DataArray(type(whole.variable)(dims, values, whole.attrs), name=whole.name)


def select_positions(bound: BoundReferences) -> IntArray:
    """Return the flat C-order positions of the elements of one region in its target."""
    (target,) = bound.targets
    extent = target.layout.shape
    out = np.empty(int(bound.npoints[0]), dtype=np.int64)
    parts = plan_parts(
        target.regions, np.zeros(1, dtype=np.int64), row_strides(bound.shape[:, : len(extent)])
    )
    weights = np.array(canvas_strides(extent), dtype=np.int64)
    for i in range(len(parts)):
        source, result = parts.start[i] @ weights, parts.dst[i]
        for axis, n in enumerate(parts.shape[i].tolist()):
            steps = np.arange(n)
            source = np.add.outer(source, steps * parts.step[i, axis] * weights[axis])
            result = np.add.outer(result, steps * parts.dst_stride[i, axis])
        out[np.asarray(result).reshape(-1)] = np.asarray(source).reshape(-1)
    return out
