"""New references to variables and groups of open files, and to regions of them.

In: a variable and an index, labels, or a table of boxes. Out: references like those that
are stored in files; they resolve at once, and `xref.to_hdf5` stores them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref.columns import IntArray
from xref.decode import References
from xref.elements import ObjectReference, RegionReference
from xref.errors import SelectionError
from xref.h5data import dataset_layout
from xref.h5objects import open_member
from xref.positions import Origin, find_origin, index_keys, location_of
from xref.references import ReferenceArray
from xref.regions import RegionTable, box_table, table_from_selections
from xref.selection import All, Selection
from xref.variables import ReferenceVariable, reference_dataarray

REGION_DIM = "region"


def object_reference(array: xr.DataArray) -> ObjectReference:
    """Return a reference to the dataset of a variable; see `xref.accessor`."""
    return find_origin(array).object


def group_reference(dataset: xr.Dataset, path: str) -> ObjectReference:
    """Return a reference to a group, or to what is at a path from there."""
    location, address = location_of(dataset)
    group = ObjectReference(location, address)
    if path in ("", "."):
        return group
    above = group.path
    if above is None and not path.startswith("/"):
        raise ValueError("the group has no path; give one that begins with '/'")
    try:
        found = open_member(location, path if path.startswith("/") else f"{above}/{path}")
    except FileNotFoundError as error:
        raise KeyError(f"{location.filename} has nothing at {path!r}: {error}") from error
    return ObjectReference(found.location, found.address)


def region_reference(
    array: xr.DataArray,
    keys: tuple[Any, ...],
    points: Any = None,
    labels: Mapping[Any, Any] | None = None,
) -> RegionReference:
    """Return a reference to some elements of a variable; see `xref.accessor`."""
    given = sum((bool(keys), points is not None, bool(labels)))
    if given > 1:
        raise TypeError("a region is given by an index, by points or by labels, not by several")
    origin = find_origin(array)
    given_keys = keys[0] if len(keys) == 1 and isinstance(keys[0], tuple) else keys
    if len(given_keys) == 1 and given_keys[0] is Ellipsis and _is_whole(origin):
        return RegionReference(origin.object, All())  # as in h5py, it grows with the dataset
    if points is not None:
        origin = _at_points(origin, np.asarray(points), array)
    elif labels:
        origin = _at_labels(origin, array, labels)
    elif keys:
        found = index_keys(array, keys)
        origin = (
            origin.outer(found)
            if isinstance(found, list)
            else _at_points(origin, np.asarray(found), array)
        )
    selection = origin.selection()
    _check_extent(origin.object, selection, array.name)
    return RegionReference(origin.object, selection)


def _is_whole(origin: Origin) -> bool:
    """Tell whether a variable shows all that its dataset has, in order."""
    location = origin.object.location
    if location is None or origin.points is not None:
        return False
    shape = dataset_layout(location, origin.object.address).shape
    return len(origin.axes) == len(shape) and all(
        not isinstance(axis, int) and np.array_equal(axis, np.arange(n))
        for axis, n in zip(origin.axes, shape, strict=True)
    )


def _at_points(origin: Origin, points: npt.NDArray[Any], array: xr.DataArray) -> Origin:
    """Select element by element."""
    if points.ndim == 1 and array.ndim == 1:
        points = points[:, None]
    if points.ndim != 2 or points.shape[1] != array.ndim or points.dtype.kind not in "iu":
        raise IndexError(
            f"points of {array.name!r} are integers of shape (n, {array.ndim}), not "
            f"{points.dtype} of shape {points.shape}"
        )
    extent = np.array(array.shape, dtype=np.int64)
    wrong = np.flatnonzero(((points < -extent) | (points >= extent)).any(axis=1))
    if len(wrong):
        raise IndexError(
            f"point {int(wrong[0])}, {points[wrong[0]].tolist()}, is out of bounds for the "
            f"shape {array.shape} of {array.name!r}"
        )
    points = np.where(points < 0, points + extent, points).astype(np.int64)
    return origin.pointwise(list(points.T))


def _at_labels(origin: Origin, array: xr.DataArray, labels: Mapping[Hashable, Any]) -> Origin:
    """Select by labels of coordinates, as `xarray.DataArray.sel` does."""
    unknown = [dim for dim in labels if dim not in array.dims]
    if unknown:
        raise KeyError(f"{array.name!r} has no dimensions {unknown}; it has {array.dims}")
    places = {
        dim: xr.DataArray(
            np.arange(array.sizes[dim]),
            {k: v for k, v in array.coords.items() if v.dims == (dim,)},
            dims=(dim,),
        ).sel({dim: label})
        for dim, label in labels.items()
    }
    shared = {d for place in places.values() for d in place.dims} - set(labels)
    if shared:  # DataArrays as labels select element by element
        rest = {d: np.arange(n) for d, n in array.sizes.items() if d not in labels}
        columns = xr.broadcast(
            *(
                places[d] if d in labels else xr.DataArray(rest[d], dims=(d,))
                for d in array.dims
            )
        )
        return origin.pointwise([column.values for column in columns])
    keys = [np.atleast_1d(places[d].values) if d in labels else slice(None) for d in array.dims]
    return origin.outer(keys)


def _check_extent(target: ObjectReference, selection: Selection, name: Any) -> None:
    """Refuse what is not stored: xarray pads variables along unlimited dimensions."""
    if target.location is None or isinstance(selection, All):
        return
    shape = dataset_layout(target.location, target.address).shape
    table_from_selections([selection]).fit(shape, lambda _: f"the region of {name!r}")


def make_regions(
    array: xr.DataArray,
    start: Any,
    shape: Any = None,
    *,
    stop: Any = None,
    dim: Hashable = REGION_DIM,
) -> xr.DataArray:
    """Return references to many boxes of a variable; see `xref.accessor`."""
    if (shape is None) == (stop is None):
        raise TypeError("boxes are given by start and shape, or by start and stop")
    origin = find_origin(array)
    if origin.points is not None:
        raise TypeError(f"the elements of {array.name!r} were selected one by one")
    begin, dims, coords = _columns(array, start, "start", dim, 0)
    sizes = np.array(array.shape, dtype=np.int64)
    if stop is None:
        size, _, _ = _columns(array, shape, "size", dim, sizes)
    else:
        end, _, _ = _columns(array, stop, "stop", dim, sizes)
        size = end - begin
    size = np.broadcast_to(size, begin.shape)
    flat_begin, flat_size = begin.reshape(-1, array.ndim), size.reshape(-1, array.ndim)
    _check_boxes(array, flat_begin, flat_size)
    table = _stored_boxes(origin, flat_begin, flat_size, array)
    location = origin.object.location
    if location is None:
        raise TypeError(f"{array.name!r} is of no file")
    address = np.broadcast_to(np.array([origin.object.address], np.uint64), (len(table),))
    columns = References.of_file(location, address, table)
    references = ReferenceArray(
        begin.shape[:-1], kind="region", columns=columns, options=origin.object.options
    )
    return reference_dataarray(ReferenceVariable(dims, references), coords, dim)


def _columns(
    array: xr.DataArray, given: Any, what: str, dim: Hashable, default: Any
) -> tuple[IntArray, tuple[Hashable, ...], dict[Hashable, Any]]:
    """Return numbers of each box along each axis, ``(..., ndim)``, with dims and coords."""
    if hasattr(given, "to_xarray") and hasattr(given, "columns"):  # a pandas DataFrame
        index, table = given.index, {k: given[k].to_numpy() for k in given.columns}
        columns = _by_dimension(array, table, what, default)
        name = index.name or dim
        return columns, (name,), {name: index}
    if isinstance(given, xr.Dataset):
        return _from_dataset(array, given, what, default)
    if isinstance(given, Mapping):
        columns = _by_dimension(array, given, what, default)
        return columns, _box_dims(columns, dim), {}
    if isinstance(given, xr.DataArray):
        numbers = _integers(given.values, what)
        if given.ndim == 0 or given.shape[-1] != array.ndim:
            raise ValueError(_shape_problem(array, what, given.shape))
        kept = given.dims[:-1]
        coords = {k: v for k, v in given.coords.items() if set(v.dims) <= set(kept)}
        return numbers, kept, coords
    numbers = _integers(given, what)
    if numbers.ndim == 0:
        numbers = np.broadcast_to(numbers, (array.ndim,))
    elif array.ndim == 1 and numbers.shape[-1:] != (1,):
        numbers = numbers[..., None]
    if numbers.shape[-1] != array.ndim:
        raise ValueError(_shape_problem(array, what, numbers.shape))
    return numbers, _box_dims(numbers, dim), {}


def _shape_problem(array: xr.DataArray, what: str, shape: tuple[int, ...]) -> str:
    return (
        f"the {what} of boxes in {array.name!r} has the shape {shape}; its last axis must have "
        f"{array.ndim} numbers, one for each of {array.dims}"
    )


def _box_dims(numbers: IntArray, dim: Hashable) -> tuple[Hashable, ...]:
    n = numbers.ndim - 1
    return (dim,) if n == 1 else tuple(f"{dim}_{i}" for i in range(n))


def _from_dataset(
    array: xr.DataArray, given: xr.Dataset, what: str, default: Any
) -> tuple[IntArray, tuple[Hashable, ...], dict[Hashable, Any]]:
    table = {k: given[k] for k in given.variables}
    known = [_column_of(table, d, what) for d in array.dims]
    present = [c for c in known if c is not None]
    if not present:
        raise KeyError(_names_problem(array, what, list(table)))
    arrays = xr.broadcast(*present)
    dims = arrays[0].dims
    by_name = dict(zip((id(c) for c in present), arrays, strict=True))
    columns = [
        np.full(arrays[0].shape, d) if c is None else _integers(by_name[id(c)].values, what)
        for c, d in zip(known, np.broadcast_to(default, (array.ndim,)).tolist(), strict=True)
    ]
    coords = {k: v for k, v in given.coords.items() if set(v.dims) <= set(dims)}
    return np.stack(columns, axis=-1), dims, coords


def _by_dimension(
    array: xr.DataArray, table: Mapping[Any, Any], what: str, default: Any
) -> IntArray:
    """Return columns by the name of a dimension, ``y`` or ``y_start``; others are whole."""
    known = [_column_of(table, d, what) for d in array.dims]
    if all(c is None for c in known):
        raise KeyError(_names_problem(array, what, list(table)))
    whole = np.broadcast_to(default, (array.ndim,)).tolist()
    columns = [
        np.asarray(d) if c is None else _integers(c, what)
        for c, d in zip(known, whole, strict=True)
    ]
    return np.stack(np.broadcast_arrays(*columns), axis=-1)


def _column_of(table: Mapping[Any, Any], dim: Hashable, what: str) -> Any:
    names = (f"{dim}_{what}", dim)
    return next((table[name] for name in names if name in table), None)


def _names_problem(array: xr.DataArray, what: str, found: Sequence[Any]) -> str:
    wanted = ", ".join(repr(f"{d}_{what}") for d in array.dims)
    return (
        f"none of {found} is a {what} of boxes in {array.name!r}: {wanted}, or its dimensions"
    )


def _integers(values: Any, what: str) -> IntArray:
    numbers = np.asarray(values)
    if numbers.dtype.kind == "f" and (numbers == np.floor(numbers)).all():
        numbers = numbers.astype(np.int64)
    if numbers.dtype.kind not in "iu":
        raise TypeError(
            f"the {what} of boxes is counted in elements; {numbers.dtype} was given"
        )
    return numbers.astype(np.int64)


def _check_boxes(array: xr.DataArray, start: IntArray, size: IntArray) -> None:
    """Refuse boxes that are empty or not within the variable."""
    extent = np.array(array.shape, dtype=np.int64)
    wrong = (start < 0) | (size < 1) | (start > extent - size)
    if wrong.any():
        row = int(np.flatnonzero(wrong.any(axis=1))[0])
        raise SelectionError(
            f"box {row} of {size[row].tolist()} elements from {start[row].tolist()} on is "
            f"empty or not within {array.name!r}, of shape {array.shape}"
        )


def _stored_boxes(
    origin: Origin, start: IntArray, size: IntArray, array: xr.DataArray
) -> RegionTable:
    """Return boxes of the dataset that a variable, perhaps a part of it, comes from."""
    n = len(start)
    starts, sizes, shown = [], [], 0
    for axis in origin.axes:
        if isinstance(axis, int):
            starts.append(np.full(n, axis))
            sizes.append(np.ones(n, dtype=np.int64))
            continue
        if len(axis) > 1 and (np.diff(axis) != 1).any():
            raise SelectionError(
                f"{array.name!r} shows no run of elements along {array.dims[shown]!r}, but "
                "some of them; boxes can be taken of the whole variable"
            )
        starts.append(start[:, shown] + (int(axis[0]) if len(axis) else 0))
        sizes.append(size[:, shown])
        shown += 1
    return box_table(np.stack(starts, axis=1), np.stack(sizes, axis=1))
