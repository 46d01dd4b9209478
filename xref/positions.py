"""Which elements of its dataset a variable shows, and selections of them.

In: a variable of the engine, whole or selected from, and an index of it. Out: the object
it comes from, and a value of `xref.selection`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref.columns import IntArray
from xref.elements import ObjectReference, opened_from
from xref.errors import ResultTooLargeError, SelectionError
from xref.h5data import dataset_layout
from xref.h5file import FileLocation
from xref.lazy import indexed_dataset
from xref.references import ReferenceArray
from xref.regions import outer_blocks
from xref.selection import All, Blocks, Empty, Hyperslab, Points, Selection, merge_intervals

MAX_BLOCKS = 1 << 22
"""Blocks that one selection may consist of."""

AxisPositions: TypeAlias = "int | IntArray"
"""One position of an axis that is not shown, or those of one that is, ``(n,)``."""


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where the elements of a variable are stored.

    Attributes
    ----------
    object : ObjectReference
        The dataset.
    axes : tuple of (int or numpy.ndarray)
        Along each axis of the dataset, the positions that are shown: those along the
        axes of the variable, in order, or one that was selected.
    points : numpy.ndarray or None
        Where elements were selected one by one, ``(..., ndim)``: the position of each.
    """

    object: ObjectReference
    axes: tuple[AxisPositions, ...]
    points: IntArray | None = None

    @property
    def ndim(self) -> int:
        """Number of axes shown."""
        if self.points is not None:
            return self.points.ndim - 1
        return sum(not isinstance(axis, int) for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis shown."""
        if self.points is not None:
            return self.points.shape[:-1]
        return tuple(len(axis) for axis in self.axes if not isinstance(axis, int))

    def outer(self, keys: Sequence[Any]) -> Origin:
        """Select along each axis shown by its own integer, slice or 1-D array."""
        if self.points is not None:
            points = self.points
            for number in range(len(keys) - 1, -1, -1):
                points = points[(*(slice(None),) * number, keys[number])]
            return replace(self, points=points)
        left = iter(keys)
        axes: list[AxisPositions] = []
        for axis in self.axes:
            if isinstance(axis, int):
                axes.append(axis)
                continue
            picked = np.asarray(axis[next(left)])
            axes.append(picked if picked.ndim else int(picked))
        return replace(self, axes=tuple(axes))

    def pointwise(self, keys: Sequence[Any]) -> Origin:
        """Select element by element: arrays that are broadcast together, one an axis."""
        if self.points is not None:
            return replace(self, points=self.points[tuple(keys)])
        arrays = np.broadcast_arrays(*keys)
        left = iter(arrays)
        columns = [
            np.broadcast_to(axis, arrays[0].shape)
            if isinstance(axis, int)
            else axis[next(left)]
            for axis in self.axes
        ]
        return replace(self, points=np.stack(columns, axis=-1))

    def selection(self) -> Selection:
        """Return what is shown as a selection of the dataset.

        Raises
        ------
        SelectionError
            If its order is not that of the dataset, which regions cannot keep.
        """
        if self.points is not None:
            coords = self.points.reshape(-1, len(self.axes))
            return Points(coords.astype(np.int64)) if len(coords) else Empty()
        if not self.axes:
            return All()
        intervals = [_intervals(axis, i) for i, axis in enumerate(self.axes)]
        if any(not len(low) for low, _ in intervals):
            return Empty()
        regular = [_regular(low, high) for low, high in intervals]
        if all(r is not None for r in regular):
            columns = zip(*[r for r in regular if r is not None], strict=True)
            return Hyperslab(*(tuple(column) for column in columns))
        n = math.prod(len(low) for low, _ in intervals)
        if n > MAX_BLOCKS:
            raise ResultTooLargeError(
                f"the selection is a union of {n} blocks, more than {MAX_BLOCKS}; select "
                "fewer runs of elements, or make several references"
            )
        return Blocks(*outer_blocks(intervals))


def _intervals(axis: AxisPositions, number: int) -> tuple[IntArray, IntArray]:
    """Return positions as intervals in ascending order."""
    positions = np.atleast_1d(np.asarray(axis, dtype=np.int64))
    if (np.diff(positions) <= 0).any():
        raise SelectionError(
            f"the positions along axis {number} do not ascend, and the elements of a region "
            "have the order of the file; select them ascending and once, or as points"
        )
    return merge_intervals(positions, positions + 1) if len(positions) else (positions,) * 2


def _regular(low: IntArray, high: IntArray) -> tuple[int, int, int, int] | None:
    """Return (start, stride, count, block) of intervals that are alike, else None."""
    sizes, gaps = high - low, np.diff(low)
    if (sizes != sizes[0]).any() or (len(gaps) and (gaps != gaps[0]).any()):
        return None
    return int(low[0]), int(gaps[0]) if len(gaps) else 1, len(low), int(sizes[0])


def held(reference: ObjectReference) -> ObjectReference:
    """Return a reference that keeps its file open, from one that was remembered."""
    location = reference.location
    if location is None or not location.is_key:
        return reference
    return replace(reference, location=replace(location, is_key=False, held=[]))


def find_origin(array: xr.DataArray) -> Origin:
    """Find where the elements of a variable are stored.

    A variable that was opened lazily knows what was selected from it. Of one that is in
    memory or in dask, the labels of its coordinates tell.

    Raises
    ------
    TypeError
        If the variable is not one of a file, or it cannot be told which elements it has.
    """
    variable, name = array.variable, array.name
    data = variable._data
    if isinstance(data, ReferenceArray):
        stored = data.stored
        if stored is not None and not stored.field:
            start = ObjectReference(stored.location, stored.address, data.options)
            runs = (s + step * np.arange(n) for s, n, step in stored.slices)
            return Origin(start, tuple(runs))
    else:
        found = indexed_dataset(variable)
        if found is not None:
            stored_array, steps = found
            origin = Origin(
                ObjectReference(
                    stored_array.location, stored_array.address, stored_array.options
                ),
                tuple(np.arange(n) for n in stored_array.shape),
            )
            for keys, is_outer in steps:
                origin = origin.outer(keys) if is_outer else origin.pointwise(keys)
            return _without_items(origin, len(stored_array.extent), name)
    remembered = opened_from(variable.encoding)
    if remembered is not None and remembered.location is not None:
        target = held(remembered)
        axes = _axes_by_label(target.resolve(), array)
        if axes is not None:
            return Origin(target, axes)
        shape = dataset_layout(remembered.location, remembered.address).shape
        raise TypeError(
            f"{name!r} has the shape {variable.shape}, its dataset {shape}, and nothing tells "
            "which of its elements these are; refer to regions of the whole variable, by "
            "index or label: .h5ref.region_reference(lat=slice(40, 50))"
        )
    raise TypeError(
        f"{name!r} is no variable of a file opened with engine='h5ref', or was computed from "
        "some; write it with xref.to_hdf5, open that file, and refer to what is there"
    )


def _axes_by_label(
    whole: xr.DataArray, array: xr.DataArray
) -> tuple[AxisPositions, ...] | None:
    """Return where along each axis of a dataset the labels of an array are.

    None where an axis has other elements and no labels that tell which.
    """
    if set(array.dims) - set(whole.dims):
        return None
    axes: list[AxisPositions] = []
    for dim, n in whole.sizes.items():
        has_labels = dim in whole.coords and dim in array.coords
        if has_labels and whole[dim].to_index().is_unique:
            labels = np.atleast_1d(array[dim].values)
            found = whole[dim].to_index().get_indexer(labels)
            if (found < 0).any():
                return None
            axes.append(found.astype(np.int64) if dim in array.dims else int(found[0]))
        elif dim in array.dims and array.sizes[dim] == n:
            axes.append(np.arange(n))
        else:
            return None
    order = [d for d in whole.dims if d in array.dims]
    return tuple(axes) if order == list(array.dims) else None


def _without_items(origin: Origin, ndim: int, name: Any) -> Origin:
    """Drop axes of elements that are arrays, which must be whole."""
    if len(origin.axes) == ndim:
        return origin
    layout_axes = origin.axes[ndim:]
    if origin.points is not None or any(isinstance(a, int) for a in layout_axes):
        raise TypeError(f"the elements of {name!r} are arrays; regions have whole elements")
    return Origin(origin.object, origin.axes[:ndim])


def index_keys(array: xr.DataArray, keys: tuple[Any, ...]) -> npt.NDArray[Any] | list[Any]:
    """Return a NumPy-style index as one key an axis, or as points ``(n, ndim)``.

    Raises
    ------
    IndexError
        If it does not fit the array.
    """
    if len(keys) == 1 and isinstance(keys[0], tuple):
        keys = keys[0]
    if len(keys) == 1 and _is_mask(keys[0]):
        mask = keys[0]
        if isinstance(mask, xr.DataArray):
            mask = mask.broadcast_like(array).transpose(*array.dims).values
        mask = np.asarray(mask)
        if mask.shape == array.shape and array.ndim != 1:
            return np.argwhere(mask)
    n_given = sum(k is not Ellipsis for k in keys)
    if n_given > array.ndim or sum(k is Ellipsis for k in keys) > 1:
        raise IndexError(f"{n_given} indices for {array.ndim} dimensions of {array.name!r}")
    fill = [slice(None)] * (array.ndim - n_given)
    if any(k is Ellipsis for k in keys):
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        whole = [*keys[:at], *fill, *keys[at + 1 :]]
    else:
        whole = [*keys, *fill]
    return [_axis_key(k, n, d) for k, n, d in zip(whole, array.shape, array.dims, strict=True)]


def _is_mask(key: Any) -> bool:
    return not isinstance(key, slice) and getattr(np.asarray(key), "dtype", None) == np.bool_


def _axis_key(key: Any, n: int, dim: Any) -> Any:
    """Return an integer as an axis of one element, slices and arrays as positions."""
    if isinstance(key, slice):
        return np.arange(n)[key]
    values = np.asarray(key)
    if values.dtype == np.bool_:
        if values.shape != (n,):
            raise IndexError(f"a mask of shape {values.shape} for the {n} elements of {dim!r}")
        return np.flatnonzero(values)
    if values.size == 0:
        return np.zeros(0, dtype=np.int64)
    if values.dtype.kind not in "iu" or values.ndim > 1:
        raise IndexError(f"{key!r} is no index of {dim!r}: integers, a slice, or a mask")
    if ((values < -n) | (values >= n)).any():
        raise IndexError(f"index {key!r} is out of bounds for the {n} elements of {dim!r}")
    return np.atleast_1d(np.where(values < 0, values + n, values))


def location_of(dataset: xr.Dataset) -> tuple[FileLocation, int]:
    """Return the file and the address of the group that a Dataset was opened from.

    Raises
    ------
    TypeError
        If it was not.
    """
    remembered = opened_from(dataset.encoding)
    if remembered is not None:
        location = held(remembered).location
        if location is not None:
            return location, remembered.address
    raise TypeError("the Dataset is no group of a file opened with engine='h5ref'")
