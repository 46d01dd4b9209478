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

from xref import engine
from xref.arrays import IntArray
from xref.errors import SelectionError
from xref.objects import open_member
from xref.references import ObjectReference, ReferenceArray, ReferenceColumns, RegionReference
from xref.selections import All, Selection, SelectionTable, box_table, table_from_selections

REGION_DIM = "region"


def object_reference(array: xr.DataArray) -> ObjectReference:
    """Return a reference to the dataset of a variable; see `xref.resolving.accessor`."""
    return engine.find_object(array)


def group_reference(dataset: xr.Dataset, path: str) -> ObjectReference:
    """Return a reference to a group, or to what is at a path from there."""
    stored = engine.group_of(dataset)
    group = ObjectReference.to(stored)
    if path in ("", "."):
        return group
    above = group.path
    if above is None and not path.startswith("/"):
        raise ValueError("the group has no path; give one that begins with '/'")
    try:
        found = open_member(
            stored.location, path if path.startswith("/") else f"{above}/{path}"
        )
    except OSError as error:
        raise KeyError(f"{stored.filename} has nothing at {path!r}: {error}") from error
    return ObjectReference.to(found.stored)


def region_reference(
    array: xr.DataArray,
    keys: tuple[Any, ...],
    points: Any = None,
    labels: Mapping[Any, Any] | None = None,
) -> RegionReference:
    """Return a reference to some elements of a variable; see `xref.resolving.accessor`."""
    given = sum((bool(keys), points is not None, bool(labels)))
    if given > 1:
        raise TypeError("a region is given by an index, by points or by labels, not by several")
    origin = (None if given else engine.find_masked(array)) or engine.find_origin(array)
    given_keys = keys[0] if len(keys) == 1 and isinstance(keys[0], tuple) else keys
    if len(given_keys) == 1 and given_keys[0] is Ellipsis and origin.is_whole:
        return RegionReference(origin.object, All())  # as in h5py, it grows with the dataset
    if points is not None:
        origin = _at_points(origin, np.asarray(points), array, ordered=True)
    elif labels:
        origin = _at_labels(origin, array, labels)
    elif keys:
        found = engine.index_keys(array, keys)
        if isinstance(found, list):
            origin = origin.outer(_without_items(origin, found, array))
        else:
            origin = _at_points(origin, found, array)
    selection = origin.selection()
    _check_extent(origin.object, selection, array.name)
    return RegionReference(origin.object, selection)


def _without_items(
    origin: engine.ElementOrigin, keys: list[Any], array: xr.DataArray
) -> list[Any]:
    """Drop the keys of axes within elements, of which nothing can be selected."""
    if any(key != slice(None) for key in keys[origin.ndim :] if isinstance(key, slice)) or any(
        not isinstance(key, slice) for key in keys[origin.ndim :]
    ):
        raise TypeError(f"the elements of {array.name!r} are arrays; regions have whole ones")
    return keys[: origin.ndim]


def _at_points(
    origin: engine.ElementOrigin,
    points: npt.NDArray[Any],
    array: xr.DataArray,
    *,
    ordered: bool = False,
) -> engine.ElementOrigin:
    """Select element by element."""
    if points.size == 0:
        points = np.zeros((0, array.ndim), dtype=np.int64)
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
    return origin.pointwise(list(points.T), ordered=ordered)


def _at_labels(
    origin: engine.ElementOrigin, array: xr.DataArray, labels: Mapping[Hashable, Any]
) -> engine.ElementOrigin:
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
    if target.stored is None or isinstance(selection, All):
        return
    shape = target.stored.layout.shape
    table_from_selections([selection]).fit(shape, lambda _: f"the region of {name!r}")


def make_regions(
    array: xr.DataArray,
    start: Any,
    shape: Any = None,
    *,
    stop: Any = None,
    dim: Hashable = REGION_DIM,
) -> xr.DataArray:
    """Return references to many boxes of a variable; see `xref.resolving.accessor`."""
    if (shape is None) == (stop is None):
        raise TypeError("boxes are given by start and shape, or by start and stop")
    origin = engine.find_origin(array)
    if origin.points is not None or origin.ndim != array.ndim:
        raise TypeError(f"the elements of {array.name!r} were selected one by one")
    what, end = ("size", shape) if stop is None else ("stop", stop)
    begin, size, dims, coords = _boxes(array, start, end, what, dim)
    flat_begin, flat_size = begin.reshape(-1, array.ndim), size.reshape(-1, array.ndim)
    _check_boxes(array, flat_begin, flat_size)
    table = _stored_boxes(origin, flat_begin, flat_size, array)
    location = origin.object.location
    if location is None:
        raise TypeError(f"{array.name!r} is of no file")
    address = np.broadcast_to(np.array([origin.object.address], np.uint64), (len(table),))
    columns = ReferenceColumns.of_file(location, address, table)
    references = ReferenceArray(
        begin.shape[:-1], kind="region", columns=columns, options=origin.object.options
    )
    name = "regions" if array.name is None else f"{array.name}_regions"
    return engine.reference_dataarray(engine.ReferenceVariable(dims, references), coords, name)


AXIS_DIM = "axis of the boxes"

COLUMNS = ("start", "size", "stop")


def _boxes(
    array: xr.DataArray, start: Any, end: Any, what: str, dim: Hashable
) -> tuple[IntArray, IntArray, tuple[Hashable, ...], dict[Hashable, Any]]:
    """Return first element and size of each box, ``(..., ndim)``, with dims and coords.

    What is labelled is brought together by label, the rest by place.
    """
    begin = _numbers(array, start, "start", (dim,))
    last = _numbers(array, end, what, begin.dims[:-1] or (dim,), plain_names=end is not start)
    try:
        last, begin = xr.align(last, begin, join="exact", copy=False)
    except ValueError as error:
        raise ValueError(
            f"the start and the {what} of boxes in {array.name!r} do not have the same labels "
            f"or length: {error}"
        ) from error
    extra = set(last.dims) - set(begin.dims)
    if extra:
        raise ValueError(
            f"the {what} of boxes in {array.name!r} lies along {sorted(map(str, extra))}, and "
            f"the start along {begin.dims[:-1]}"
        )
    last = last.broadcast_like(begin).transpose(*begin.dims)
    size = last.values - begin.values if what == "stop" else last.values
    return begin.values, size, begin.dims[:-1], dict(begin.coords)


def _numbers(
    array: xr.DataArray,
    given: Any,
    what: str,
    dims: tuple[Hashable, ...],
    *,
    plain_names: bool = True,
) -> xr.DataArray:
    """Return numbers of each box along each axis, which is the last of the result.

    Parameters
    ----------
    array : xarray.DataArray
    given : array_like, xarray.DataArray, xarray.Dataset, pandas.DataFrame or dict
    what : str
        One of `COLUMNS`.
    dims : tuple of hashable
        Of boxes that come without names of dimensions.
    plain_names : bool
        Whether columns may have the names of dimensions alone.
    """
    if hasattr(given, "to_xarray") and hasattr(given, "columns"):  # a pandas DataFrame
        given = _dataset_of(given, dims[0])
    elif hasattr(given, "to_xarray") and hasattr(given, "to_frame"):  # a pandas Series
        given = _row_or_column(given, array, what, dims[0])
    known = {str(d) for d in array.dims} | {f"{d}_{c}" for d in array.dims for c in COLUMNS}
    if isinstance(given, Mapping) and not isinstance(given, xr.Dataset):
        unknown = [name for name in given if str(name) not in known]
        if unknown:
            raise KeyError(_names_problem(array, what, unknown))
        columns = {k: np.asarray(v) for k, v in given.items()}
        given = xr.Dataset({k: (_box_dims(v.ndim, dims), v) for k, v in columns.items()})
    if isinstance(given, xr.Dataset):
        return _by_column(array, given, what, plain_names)
    if isinstance(given, xr.DataArray):
        if given.ndim == 0 or given.shape[-1] != array.ndim:
            raise ValueError(_shape_problem(array, what, given.shape))
        last = given.dims[-1]
        names = given[last].values.tolist() if last in given.coords else []
        if any(isinstance(name, str) for name in names):
            if set(names) != set(map(str, array.dims)):
                raise ValueError(f"{_shape_problem(array, what, given.shape)}; it has {names}")
            given = given.sel({last: [str(d) for d in array.dims]})
        numbers: xr.DataArray = given.copy(data=_integers(given.values, what))
        kept = [k for k, v in given.coords.items() if last in v.dims]
        return numbers.drop_vars(kept).rename({last: AXIS_DIM})
    values = np.asarray(given)
    if values.size == 0 and values.ndim == 1:
        values = np.zeros((0, array.ndim), dtype=np.int64)
    values = _integers(values, what)
    if values.ndim == 0:
        values = np.broadcast_to(values, (array.ndim,))
    elif array.ndim == 1 and values.ndim == 1 and (what == "start" or len(values) != 1):
        values = values[:, None]  # a box each
    if values.shape[-1] != array.ndim:
        raise ValueError(_shape_problem(array, what, values.shape))
    return xr.DataArray(values, dims=(*_box_dims(values.ndim - 1, dims), AXIS_DIM))


def _shape_problem(array: xr.DataArray, what: str, shape: tuple[int, ...]) -> str:
    return (
        f"the {what} of boxes in {array.name!r} has the shape {shape}; its last axis must have "
        f"{array.ndim} numbers, one for each of {array.dims}"
    )


def _box_dims(n: int, dims: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
    """Name n axes of boxes."""
    return dims if len(dims) == n else tuple(f"{dims[0]}_{i}" for i in range(n))


def _dataset_of(table: Any, dim: Hashable) -> xr.Dataset:
    """Return the columns of a pandas DataFrame along its index."""
    name = table.index.name or dim
    if table.index.nlevels > 1:
        coords = xr.Coordinates.from_pandas_multiindex(table.index, name)
    else:
        coords = xr.Coordinates({name: table.index})
    return xr.Dataset({k: (name, table[k].to_numpy()) for k in table.columns}, coords)


def _row_or_column(series: Any, array: xr.DataArray, what: str, dim: Hashable) -> Any:
    """Return one box of a pandas Series as a dict, or many along one axis as a Dataset."""
    names = series.index.tolist()
    if all(isinstance(name, str) for name in names) and set(names) & {
        text for d in array.dims for text in (str(d), f"{d}_{what}")
    }:
        return {name: series[name] for name in names}
    if array.ndim != 1:
        raise ValueError(_shape_problem(array, what, series.shape))
    return _dataset_of(series.to_frame(array.dims[0]), dim)


def _by_column(
    array: xr.DataArray, table: xr.Dataset, what: str, plain_names: bool
) -> xr.DataArray:
    """Return columns by the name of a dimension, ``y_start`` or ``y``; others are whole."""
    known = {f"{d}_{what}" for d in array.dims}
    unknown = [n for n in table if str(n).endswith(f"_{what}") and str(n) not in known]
    if unknown:
        raise KeyError(_names_problem(array, what, unknown))
    exact: dict[Hashable, Hashable] = {
        d: f"{d}_{what}" for d in array.dims if f"{d}_{what}" in table.variables
    }
    names = dict(exact)
    if plain_names and (what == "start" or not exact):
        names = {d: d for d in array.dims if d in table.variables and d not in exact} | exact
    if not names:
        raise KeyError(_names_problem(array, what, list(table.variables)))
    columns = [
        xr.DataArray(0 if what == "start" else n)
        if dim not in names
        else xr.DataArray(
            _integers(table[names[dim]].values, what), dims=table[names[dim]].dims
        )
        for dim, n in array.sizes.items()
    ]
    numbers = xr.concat(xr.broadcast(*columns), AXIS_DIM).transpose(..., AXIS_DIM)
    coords = table.coords.to_dataset()
    other = [k for k, v in coords.coords.items() if set(v.dims) - set(numbers.dims)]
    return numbers.assign_coords(coords.drop_vars(other).coords)


def _names_problem(array: xr.DataArray, what: str, found: Sequence[Any]) -> str:
    wanted = ", ".join(repr(f"{d}_{what}") for d in array.dims)
    return (
        f"{found}: no column for the {what} of boxes in {array.name!r}; these are {wanted}, or "
        "the names of its dimensions"
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
    origin: engine.ElementOrigin, start: IntArray, size: IntArray, array: xr.DataArray
) -> SelectionTable:
    """Return boxes of the dataset that a variable, perhaps a part of it, comes from."""
    n = len(start)
    starts, sizes = [], []
    for number, axis in enumerate(origin.axes):
        if isinstance(axis, int):
            starts.append(np.full(n, axis))
            sizes.append(np.ones(n, dtype=np.int64))
            continue
        shown = origin.order.index(number)
        steps = axis.step if isinstance(axis, range) else np.diff(axis)
        if len(axis) > 1 and (np.asarray(steps) != 1).any():
            raise SelectionError(
                f"{array.name!r} shows no run of elements along {array.dims[shown]!r}, but "
                "some of them; boxes can be taken of the whole variable"
            )
        starts.append(start[:, shown] + (int(axis[0]) if len(axis) else 0))
        sizes.append(size[:, shown])
    return box_table(np.stack(starts, axis=1), np.stack(sizes, axis=1))
