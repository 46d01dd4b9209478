"""New references to variables and groups of open files, and to regions of variables.

In: a variable, and an index, labels, or a table of boxes. Out: references like those in files.
They can be resolved, and `xref.to_hdf5` stores them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref import engine
from xref.arrays import BoolArray, IntArray
from xref.errors import SelectionError, naming
from xref.objects import open_member
from xref.references import (
    ElementNames,
    ObjectReference,
    Owner,
    ReferenceArray,
    ReferenceColumns,
    RegionReference,
    box_of_shape,
)
from xref.resolving.result_variables import unique_dims
from xref.selections import (
    All,
    Selection,
    SelectionKind,
    SelectionTable,
    empty_table,
    strided_table,
    table_from_selections,
)

REGION_DIM, BOX_AXIS_DIM = "region", "axis of the boxes"

COLUMNS = ("start", "size", "stop", "step")
"""Roles of numbers of boxes: a column ``y_start`` has the start of boxes along ``y``."""


def group_reference(dataset: xr.Dataset, path: str) -> ObjectReference:
    """Return a reference to the group of a Dataset, or to the object at a path."""
    stored = engine.group_of(dataset)
    group = ObjectReference.to(stored)
    if path in ("", "."):
        return group
    parent = group.path
    if parent is None and not path.startswith("/"):
        raise ValueError("the group has no path; give a path that begins with '/'")
    try:
        full = path if path.startswith("/") else f"{parent}/{path}"
        return ObjectReference.to(open_member(stored.location, full).stored)
    except OSError as error:
        raise KeyError(f"{stored.filename} has nothing at {path!r}: {error}") from error


def region_reference(
    array: xr.DataArray,
    keys: tuple[Any, ...],
    points: Any = None,
    labels: Mapping[Any, Any] | None = None,
) -> RegionReference:
    """Return a reference to elements of a variable; see `xref.resolving.accessor`."""
    if (given := sum((bool(keys), points is not None, bool(labels)))) > 1:
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
    with naming(lambda: f"{origin.object.filename}: the region of {array.name!r}"):
        selection = origin.selection()
    _check_extent(origin.object, selection, array.name)
    return RegionReference(origin.object, selection)


def _without_items(
    origin: engine.ElementOrigin, keys: list[Any], array: xr.DataArray
) -> list[Any]:
    """Drop the keys of the axes of an array type; they must select whole elements."""
    if any(not isinstance(k, slice) or k != slice(None) for k in keys[origin.ndim :]):
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
    positions = {
        dim: xr.DataArray(
            np.arange(array.sizes[dim]),
            {k: v for k, v in array.coords.items() if v.dims == (dim,)},
            dims=(dim,),
        ).sel({dim: label})
        for dim, label in labels.items()
    }
    if any(set(found.dims) - set(labels) for found in positions.values()):
        # Labels that are DataArrays with other dimensions select element by element.
        whole = {d: xr.DataArray(np.arange(n), dims=(d,)) for d, n in array.sizes.items()}
        columns = xr.broadcast(*(positions.get(d, whole[d]) for d in array.dims))
        return origin.pointwise([column.values for column in columns])
    keys = (positions[d].values if d in labels else slice(None) for d in array.dims)
    return origin.outer([k if isinstance(k, slice) else np.atleast_1d(k) for k in keys])


def _check_extent(target: ObjectReference, selection: Selection, name: Any) -> None:
    """Raise SelectionError for elements that are not stored.

    The engine pads variables along unlimited dimensions.
    """
    if target.stored is None or isinstance(selection, All):
        return
    table_from_selections([selection]).bound_to(
        target.stored.layout.shape,
        lambda _: f"{target.filename}: the region of {name!r}",
        target.stored,
    )


def make_regions(
    array: xr.DataArray,
    start: Any,
    shape: Any = None,
    *,
    stop: Any = None,
    step: Any = None,
    dim: Hashable = REGION_DIM,
) -> xr.DataArray:
    """Make references to many boxes of a variable; see `xref.resolving.accessor`."""
    if (shape is None) == (stop is None):
        raise TypeError("boxes are given by start and shape, or by start and stop")
    origin = engine.find_origin(array)
    if origin.points is not None or origin.ndim != array.ndim:
        raise TypeError(
            f"{origin.object.filename}: the elements of {array.name!r} were selected one by one"
        )
    given = {"start": start} | ({"size": shape} if stop is None else {"stop": stop})
    if step is not None:
        given["step"] = step
    with naming(lambda: str(origin.object.filename), ValueError, TypeError, KeyError):
        return _regions_of_boxes(array, origin, given, dim)


def _regions_of_boxes(
    array: xr.DataArray, origin: engine.ElementOrigin, given: dict[str, Any], dim: Hashable
) -> xr.DataArray:
    """Return references to boxes of a variable; ``given`` is as for `_aligned_boxes`."""
    if len(set(array.dims)) != array.ndim:
        # Two axes have one dimension scale: numbers tell them apart, as in resolved results.
        array = xr.DataArray(
            xr.Variable(unique_dims(array.dims), array.variable._data), name=array.name
        )
    numbers, dims, coords = _aligned_boxes(array, given, dim)
    outer_shape = numbers["start"].shape[:-1]
    flat_shape = math.prod(outer_shape), array.ndim
    numbers = {role: n.reshape(flat_shape) for role, n in numbers.items()}
    boxes = _check_boxes(array, numbers, outer_shape)
    table = _stored_boxes(origin, boxes, array)
    location = origin.object.location
    if location is None:
        raise TypeError(f"{array.name!r} does not belong to a file")
    address = np.broadcast_to(np.array([origin.object.address], np.uint64), (len(table),))
    columns = ReferenceColumns.of_file(location, address, table)
    owner = Owner(location.filename, repr(array.name), "box", box_of_shape(outer_shape))
    references = ReferenceArray(
        outer_shape,
        kind="region",
        columns=columns,
        options=origin.object.options,
        names=ElementNames.of_owner(owner, range(len(table))),
    )
    name = "regions" if array.name is None else f"{array.name}_regions"
    return engine.reference_dataarray(engine.ReferenceVariable(dims, references), coords, name)


def _aligned_boxes(
    array: xr.DataArray, given: dict[str, Any], dim: Hashable
) -> tuple[dict[str, IntArray], tuple[Hashable, ...], dict[Hashable, Any]]:
    """Return the numbers of each box by role, each ``(..., ndim)``, with dims and coords.

    ``given`` has the arguments of the user by role, "start" among them. Arguments with labels
    are aligned by label, others by position.
    """
    begin = _box_columns(array, given["start"], "start", (dim,))
    numbers: dict[str, IntArray] = {}
    for role, argument in given.items():
        if role == "start":
            continue
        # Bare names in a table of several roles are the starts.
        is_shared = any(argument is other for key, other in given.items() if key != role)
        dims = begin.dims[:-1] or (dim,)
        column = _box_columns(array, argument, role, dims, bare_names=not is_shared)
        numbers[role] = _like_starts(array, begin, column, role)
    return {"start": begin.values} | numbers, begin.dims[:-1], dict(begin.coords)


def _like_starts(
    array: xr.DataArray, begin: xr.DataArray, column: xr.DataArray, role: str
) -> IntArray:
    """Return numbers of boxes in the order and with the dimensions of their starts."""
    try:
        column, begin = xr.align(column, begin, join="exact", copy=False)
    except ValueError as error:
        raise ValueError(
            f"the start and the {role} of boxes in {array.name!r} do not have the same labels "
            f"or length: {error}"
        ) from error
    extra = set(column.dims) - set(begin.dims)
    if extra:
        raise ValueError(
            f"the {role} of boxes in {array.name!r} lies along {sorted(map(str, extra))}, and "
            f"the start along {begin.dims[:-1]}"
        )
    values: IntArray = column.broadcast_like(begin).transpose(*begin.dims).values
    return values


def _box_columns(
    array: xr.DataArray,
    given: Any,
    role: str,
    dims: tuple[Hashable, ...],
    *,
    bare_names: bool = True,
) -> xr.DataArray:
    """Return numbers of each box; the last axis has one number for each dimension.

    ``role`` is the meaning of the numbers, one of `COLUMNS`. ``dims`` are the dimensions of the
    boxes, if ``given`` (array_like, xarray, pandas or dict) does not name them. ``bare_names``:
    whether names of dimensions alone, without ``role``, are names of columns.
    """
    if hasattr(given, "to_xarray") and hasattr(given, "columns"):  # a pandas DataFrame
        given = _dataset_of(given, dims[0])
    elif hasattr(given, "to_xarray") and hasattr(given, "to_frame"):  # a pandas Series
        given = _row_or_column(given, array, role, dims[0])
    valid = {str(d) for d in array.dims} | {f"{d}_{c}" for d in array.dims for c in COLUMNS}
    is_dict = isinstance(given, Mapping) and not isinstance(given, xr.Dataset)
    if is_dict:
        unknown = [name for name in given if str(name) not in valid]
        if unknown:
            raise KeyError(_explain_names(array, role, unknown))
        columns = {k: np.asarray(v) for k, v in given.items()}
        given = xr.Dataset({k: (_box_dims(v.ndim, dims), v) for k, v in columns.items()})
    if isinstance(given, xr.Dataset):
        return _by_column(array, given, role, bare_names, mixed=is_dict or role == "start")
    if isinstance(given, xr.DataArray):
        if given.ndim == 0 or given.shape[-1] != array.ndim:
            raise ValueError(_explain_shape(array, role, given.shape))
        last = given.dims[-1]
        names = given[last].values.tolist() if last in given.coords else []
        if any(isinstance(name, str) for name in names):
            if set(names) != set(map(str, array.dims)):
                raise ValueError(f"{_explain_shape(array, role, given.shape)}; it has {names}")
            given = given.sel({last: [str(d) for d in array.dims]})
        numbers: xr.DataArray = given.copy(data=_as_integers(given.values, role))
        along_axis = [k for k, v in given.coords.items() if last in v.dims]
        return numbers.drop_vars(along_axis).rename({last: BOX_AXIS_DIM})
    values = np.asarray(given)
    if values.size == 0 and values.ndim == 1:
        values = np.zeros((0, array.ndim), dtype=np.int64)
    values = _as_integers(values, role)
    if values.ndim == 0:
        values = np.broadcast_to(values, (array.ndim,))
    elif array.ndim == 1 and values.ndim == 1 and (role == "start" or len(values) != 1):
        values = values[:, None]  # one number for each box
    if values.shape[-1] != array.ndim:
        raise ValueError(_explain_shape(array, role, values.shape))
    return xr.DataArray(values, dims=(*_box_dims(values.ndim - 1, dims), BOX_AXIS_DIM))


def _explain_shape(array: xr.DataArray, role: str, shape: tuple[int, ...]) -> str:
    return (
        f"the {role} of boxes in {array.name!r} has the shape {shape}; its last axis must have "
        f"{array.ndim} numbers, one for each of {array.dims}"
    )


def _box_dims(n: int, dims: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
    """Name n axes of boxes."""
    return dims if len(dims) == n else tuple(f"{dims[0]}_{i}" for i in range(n))


def _dataset_of(table: Any, dim: Hashable) -> xr.Dataset:
    """Return a pandas DataFrame as a Dataset along its index."""
    name = table.index.name or dim
    if table.index.nlevels > 1:
        coords = xr.Coordinates.from_pandas_multiindex(table.index, name)
    else:
        coords = xr.Coordinates({name: table.index})
    return xr.Dataset({k: (name, table[k].to_numpy()) for k in table.columns}, coords)


def _row_or_column(series: Any, array: xr.DataArray, role: str, dim: Hashable) -> Any:
    """Return a pandas Series as a dict (one box) or a Dataset (many boxes of one axis)."""
    names = series.index.tolist()
    if all(isinstance(name, str) for name in names) and set(names) & {
        text for d in array.dims for text in (str(d), f"{d}_{role}")
    }:
        return {name: series[name] for name in names}
    if array.ndim != 1:
        raise ValueError(_explain_shape(array, role, series.shape))
    return _dataset_of(series.to_frame(array.dims[0]), dim)


def _by_column(
    array: xr.DataArray, table: xr.Dataset, role: str, bare_names: bool, mixed: bool
) -> xr.DataArray:
    """Return columns named ``y_start`` or ``y``; a dimension without a column is whole.

    ``mixed``: whether names without the role count beside names with the role.
    """
    valid = {f"{d}_{role}" for d in array.dims}
    unknown = [n for n in table if str(n).endswith(f"_{role}") and str(n) not in valid]
    if unknown:
        raise KeyError(_explain_names(array, role, unknown))
    exact: dict[Hashable, Hashable] = {
        d: f"{d}_{role}" for d in array.dims if f"{d}_{role}" in table.variables
    }
    names = dict(exact)
    if bare_names and (mixed or not exact):
        names = {d: d for d in array.dims if d in table.variables and d not in exact} | exact
    if not names:
        raise KeyError(_explain_names(array, role, list(table.variables)))
    default = {"start": 0, "step": 1}
    columns = [xr.DataArray(default.get(role, n)) for n in array.shape]
    for axis, dim in enumerate(array.dims):
        if dim in names:
            column = table[names[dim]]
            columns[axis] = xr.DataArray(_as_integers(column.values, role), dims=column.dims)
    numbers = xr.concat(xr.broadcast(*columns), BOX_AXIS_DIM).transpose(..., BOX_AXIS_DIM)
    coords = table.coords.to_dataset()
    unrelated = [k for k, v in coords.coords.items() if set(v.dims) - set(numbers.dims)]
    return numbers.assign_coords(coords.drop_vars(unrelated).coords)


def _explain_names(array: xr.DataArray, role: str, found: Sequence[Any]) -> str:
    wanted = ", ".join(repr(f"{d}_{role}") for d in array.dims)
    return (
        f"{found}: no column for the {role} of boxes in {array.name!r}; columns are named "
        f"{wanted}, or like the dimensions"
    )


def _as_integers(values: Any, role: str) -> IntArray:
    numbers = np.asarray(values)
    kind = numbers.dtype.kind
    are_integers = kind in "iu" or (kind == "f" and (numbers == np.floor(numbers)).all())
    if are_integers and kind in "uf":  # may be beyond the range of int64
        are_integers = bool((np.abs(numbers).astype(np.float64) < 2.0**63).all())
    if not are_integers:
        raise TypeError(
            f"the {role} of boxes must be integers, in elements, below 2**63; {numbers.dtype} "
            "was given"
        )
    return numbers.astype(np.int64)


def _check_boxes(
    array: xr.DataArray, numbers: dict[str, IntArray], outer_shape: tuple[int, ...]
) -> dict[str, IntArray]:
    """Return start, size and step of each box; SelectionError for boxes that do not fit.

    A box may be empty. All arrays have the shape ``(n, ndim)``.
    """
    start, step = numbers["start"], numbers.get("step", np.ones(1, dtype=np.int64))
    extent = np.array(array.shape, dtype=np.int64)

    def refuse(wrong: BoolArray, problem: str) -> None:
        if not wrong.any():
            return
        row = int(np.flatnonzero(wrong.any(axis=1))[0])
        index = ", ".join(str(int(i)) for i in np.unravel_index(row, outer_shape))
        found = ", ".join(f"{role} {n[row].tolist()}" for role, n in numbers.items())
        raise SelectionError(
            f"{f'box {index}' if index else 'the box'} of {array.name!r} has {found}: "
            f"{problem}; the shape of {array.name!r} is {array.shape}"
        )

    if "step" in numbers:
        refuse(step < 1, "a step is at least 1")
    refuse(start < 0, "a start is at least 0")
    if "stop" in numbers:
        stop = numbers["stop"]
        refuse(stop < start, "the stop lies before the start")
        refuse(stop > extent, "the box reaches beyond the variable")
        size = -((start - stop) // step)
    else:
        size = numbers["size"]
        refuse(size < 0, "a size is at least 0")
        # Compared without start + size * step, which may overflow.
        last = np.where(size > 0, (extent - 1 - start) // step, size)
        refuse((start > extent) | (size - 1 > last), "the box reaches beyond the variable")
    return {"start": start, "size": size, "step": np.broadcast_to(step, start.shape)}


def _stored_boxes(
    origin: engine.ElementOrigin, boxes: dict[str, IntArray], array: xr.DataArray
) -> SelectionTable:
    """Return boxes of a variable as boxes of its dataset, of which it may be a part."""
    n = len(boxes["start"])
    ones = np.broadcast_to(np.int64(1), (n,))
    starts, sizes, steps = [], [], []
    for number, axis in enumerate(origin.axes):
        if isinstance(axis, int):
            starts.append(np.full(n, axis))
            sizes.append(ones)
            steps.append(ones)
            continue
        own_axis = origin.order.index(number)
        gaps = axis.step if isinstance(axis, range) else np.diff(axis)
        if len(axis) > 1 and (np.asarray(gaps) != 1).any():
            raise SelectionError(
                f"{array.name!r} is no run of elements along {array.dims[own_axis]!r}: its "
                "elements have gaps or another order; make boxes of the whole variable"
            )
        starts.append(boxes["start"][:, own_axis] + (int(axis[0]) if len(axis) else 0))
        sizes.append(boxes["size"][:, own_axis])
        steps.append(boxes["step"][:, own_axis])
    if not starts:  # HDF5 has no hyperslabs of a scalar
        return empty_table(n, 0, SelectionKind.ALL)
    columns = (np.stack(c, axis=1) for c in (starts, sizes, steps))
    return strided_table(*columns)
