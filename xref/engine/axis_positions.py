"""The positions of the elements of a variable in its dataset, and selections of them.

In: the positions along each axis of the dataset, and an index of the variable. Out: the
positions of the indexed elements, as numbers or as a selection of `xref.selections`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref import selections
from xref.arrays import IntArray
from xref.errors import ResultTooLargeError, SelectionError
from xref.references import ObjectReference

MAX_BLOCKS = 1 << 22
"""Upper bound on the blocks of one selection."""

AxisIndex: TypeAlias = "int | range | IntArray"
"""The positions along an axis, ``(n,)``; an int for an axis that the variable lacks."""


@dataclass(frozen=True, slots=True, eq=False)
class ElementOrigin:
    """The positions of the elements of a variable in its dataset."""

    object: ObjectReference  # the dataset
    extent: tuple[int, ...]  # of a variable of the whole dataset, elements
    axes: tuple[AxisIndex, ...]  # positions along each axis of the dataset
    order: tuple[int, ...]  # the dataset axis of each axis of the variable
    points: IntArray | None = None  # (..., ndim), of elements that were selected one by one

    @classmethod
    def whole(cls, reference: ObjectReference, extent: tuple[int, ...]) -> ElementOrigin:
        """Return the origin of a variable of a whole dataset."""
        return cls(reference, extent, tuple(map(range, extent)), tuple(range(len(extent))))

    @property
    def ndim(self) -> int:
        """Number of axes of the variable."""
        return len(self.order) if self.points is None else self.points.ndim - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the variable."""
        if self.points is not None:
            return self.points.shape[:-1]
        return tuple(len(_positions(self.axes[number])) for number in self.order)

    @property
    def is_whole(self) -> bool:
        """Whether the variable has all elements of the dataset, in the stored order."""
        if self.points is not None or self.order != tuple(range(len(self.extent))):
            return False
        pairs = zip(self.axes, self.extent, strict=True)
        return all(
            np.array_equal(axis, np.arange(n)) if _is_array(axis) else axis == range(n)
            for axis, n in pairs
        )

    def outer(self, keys: Sequence[Any]) -> ElementOrigin:
        """Select along each axis of the variable by an integer, slice or 1-D array."""
        if self.points is not None:
            points = self.points
            for number in range(len(keys) - 1, -1, -1):
                points = points[(*(slice(None),) * number, keys[number])]
            return replace(self, points=points)
        axes, order = list(self.axes), []
        for number, key in zip(self.order, keys, strict=True):
            axes[number] = positions = _index_positions(_positions(axes[number]), key)
            if not isinstance(positions, int):
                order.append(number)
        return replace(self, axes=tuple(axes), order=tuple(order))

    def pointwise(self, keys: Sequence[Any], *, ordered: bool = False) -> ElementOrigin:
        """Select element by element, by one array for each axis; arrays are broadcast.

        With ``ordered``, the result always has points, whose order and repetition are kept.
        """
        if self.points is not None:
            return replace(self, points=self.points[tuple(keys)])
        arrays = [np.asarray(key) for key in keys]
        new_axes = None if ordered else _separate_axes([key.shape for key in arrays])
        if new_axes is not None:  # an outer product with transposed axes
            both = zip(arrays, new_axes, strict=True)
            outer = self.outer(
                [a.reshape(-1) if i >= 0 else int(a.reshape(())) for a, i in both]
            )
            pairs = sorted(zip(new_axes, self.order, strict=True))
            return replace(outer, order=tuple(number for axis, number in pairs if axis >= 0))
        arrays = list(np.broadcast_arrays(*arrays))
        columns = [np.broadcast_to(np.int64(0), arrays[0].shape)] * len(self.axes)
        for number, axis in enumerate(self.axes):
            if isinstance(axis, int):
                columns[number] = np.broadcast_to(np.int64(axis), arrays[0].shape)
        for number, key in zip(self.order, arrays, strict=True):
            columns[number] = np.asarray(_index_positions(_positions(self.axes[number]), key))
        return replace(self, points=np.stack(columns, axis=-1))

    def without_last(self, n: int) -> ElementOrigin | None:
        """Drop the last n axes of the dataset; None unless they are whole, and last."""
        kept = len(self.axes) - n
        last = range(kept, len(self.axes))
        whole = all(
            not _is_array(self.axes[number]) and self.axes[number] == range(self.extent[number])
            for number in last
        )
        split = len(self.order) - n
        if self.points is not None or not whole or self.order[split:] != tuple(last):
            return None
        extent, axes = self.extent[:kept], self.axes[:kept]
        return replace(self, extent=extent, axes=axes, order=self.order[:split])

    def selection(self) -> selections.Selection:
        """Return the elements as a selection of the dataset, with the axes of the dataset.

        SelectionError if positions along an axis do not ascend: regions have the stored order.
        """
        if self.points is not None:
            coords = self.points.reshape(-1, len(self.axes)).astype(np.int64)
            return selections.Points(coords) if len(coords) else selections.Empty()
        if not self.axes:
            return selections.All()
        axes = [_ascending(axis, number) for number, axis in enumerate(self.axes)]
        regular = [_regular(axis) for axis in axes]
        if not all(map(len, axes)):
            # Nothing is selected, so that each axis may have any numbers of its length.
            regular = [
                r or (int(a[0]), 1, 1, len(a)) for r, a in zip(regular, axes, strict=True)
            ]
        if all(r is not None for r in regular):
            columns = zip(*[r for r in regular if r is not None], strict=True)
            return selections.Hyperslab(*(tuple(column) for column in columns))
        intervals = [_intervals(axis) for axis in axes]
        n = math.prod(len(low) for low, _ in intervals)
        if n > MAX_BLOCKS:
            raise ResultTooLargeError(
                f"the selection is a union of {n} blocks, more than {MAX_BLOCKS}; select "
                "fewer runs of elements, or make several references"
            )
        return selections.Blocks(*selections.outer_blocks(intervals))


def _is_array(axis: AxisIndex) -> bool:
    return not isinstance(axis, int | range)


def _positions(axis: AxisIndex) -> range | IntArray:
    if isinstance(axis, int):
        raise TypeError(f"the variable has no axis for position {axis} of its dataset")
    return axis


def _index_positions(axis: range | IntArray, key: Any) -> Any:
    """Index the positions along an axis by an integer, a slice or an array."""
    if isinstance(key, slice):
        return axis[key]
    wanted = np.asarray(key)
    if wanted.ndim == 0:
        return int(axis[int(wanted)])
    if isinstance(axis, range):
        wanted = np.where(wanted < 0, wanted + len(axis), wanted).astype(np.int64)
        return axis.start + axis.step * wanted
    return axis[wanted]


def _separate_axes(shapes: Sequence[tuple[int, ...]]) -> list[int] | None:
    """Return one axis for each array, all different.

    It is the axis along which the array has several elements, else an unused axis, or -1 if no
    axis is left. None if the arrays differ in rank or are fewer than their axes, if an array
    has several such axes, or if two arrays have the same one.
    """
    ndim = max(map(len, shapes), default=0)
    if any(len(shape) != ndim for shape in shapes) or ndim > len(shapes):
        return None
    along = [[axis for axis, n in enumerate(shape) if n != 1] for shape in shapes]
    used = [axis for axes in along for axis in axes]
    if any(len(axes) > 1 for axes in along) or len(set(used)) != len(used):
        return None
    free = iter(sorted(set(range(ndim)) - set(used)))  # axes of one element
    return [axes[0] if axes else next(free, -1) for axes in along]


def _ascending(axis: AxisIndex, number: int) -> range | IntArray:
    """Return the positions along axis ``number``; raise SelectionError unless they ascend."""
    if isinstance(axis, int):
        return range(axis, axis + 1)
    if isinstance(axis, range):
        descends = axis.step < 0 and len(axis) > 1
        axis = range(axis[0], axis[0] + 1) if len(axis) == 1 else axis
    else:
        descends = bool((np.diff(axis) <= 0).any())
    if descends:
        raise SelectionError(
            f"the positions along axis {number} do not ascend, and the elements of a region "
            "have the order of the file; select them ascending and once, or as points"
        )
    return axis


def _intervals(axis: range | IntArray) -> tuple[IntArray, IntArray]:
    positions = np.asarray(axis, dtype=np.int64)
    return selections.merge_intervals(positions, positions + 1)


def _regular(axis: range | IntArray) -> tuple[int, int, int, int] | None:
    """Return (start, stride, count, block) of positions in equal, regular runs, else None."""
    if len(axis) == 0:
        return max(axis.start, 0) if isinstance(axis, range) else 0, 1, 1, 0
    if isinstance(axis, range):
        if axis.step == 1 or len(axis) == 1:
            return axis.start, 1, 1, len(axis)
        return axis.start, axis.step, len(axis), 1
    low, high = _intervals(axis)
    sizes, gaps = high - low, np.diff(low)
    if (sizes != sizes[0]).any() or (len(gaps) and (gaps != gaps[0]).any()):
        return None
    return int(low[0]), int(gaps[0]) if len(gaps) else 1, len(low), int(sizes[0])


def index_keys(array: xr.DataArray, keys: tuple[Any, ...]) -> npt.NDArray[Any] | list[Any]:
    """Return a NumPy-style index as one key for each axis, or as points ``(n, ndim)``.

    Lists for several axes select the outer product, as in `xarray.DataArray.isel`. IndexError
    if the index does not fit the array.
    """
    if len(keys) == 1 and isinstance(keys[0], tuple):
        keys = keys[0]
    if len(keys) == 1 and _is_mask(keys[0]):
        mask = keys[0]
        mask = _aligned(mask, array) if isinstance(mask, xr.DataArray) else np.asarray(mask)
        if mask.shape == array.shape and array.ndim != 1:
            return np.argwhere(mask)
        keys = (mask,)
    n_given = sum(k is not Ellipsis for k in keys)
    if n_given > array.ndim or sum(k is Ellipsis for k in keys) > 1:
        raise IndexError(f"{n_given} indices for {array.ndim} dimensions of {array.name!r}")
    split = next((i for i, k in enumerate(keys) if k is Ellipsis), len(keys))
    whole = [slice(None)] * (array.ndim - n_given)
    full = [*keys[:split], *whole, *keys[split + 1 :]]
    return [_axis_key(k, n, d) for k, n, d in zip(full, array.shape, array.dims, strict=True)]


def _is_mask(key: Any) -> bool:
    return not isinstance(key, slice) and getattr(np.asarray(key), "dtype", None) == np.bool_


def _aligned(mask: xr.DataArray, array: xr.DataArray) -> npt.NDArray[np.bool_]:
    """Reindex a mask to the labels and axes of ``array``; labels it lacks are False."""
    unknown = [dim for dim in mask.dims if dim not in array.dims]
    if unknown:
        raise IndexError(f"the mask lies along {unknown}; {array.name!r} has {array.dims}")
    both = [d for d in mask.dims if d in array.indexes and d in mask.indexes]
    mask = mask.reindex({d: array.indexes[d] for d in both}, fill_value=False)
    for dim in mask.dims:
        if mask.sizes[dim] != array.sizes[dim]:
            raise IndexError(
                f"the mask has {mask.sizes[dim]} elements along {dim!r}, {array.name!r} has "
                f"{array.sizes[dim]}"
            )
    values = mask.transpose(*(d for d in array.dims if d in mask.dims)).values
    shape = tuple(n if d in mask.dims else 1 for d, n in array.sizes.items())
    return np.broadcast_to(values.astype(bool).reshape(shape), array.shape)


def _axis_key(key: Any, n: int, dim: Any) -> Any:
    """Return the key of one axis: a slice, or the positions of an integer, list or mask."""
    if isinstance(key, slice):
        return key
    if isinstance(key, xr.DataArray):
        raise IndexError(
            f"the index of {dim!r} is a DataArray; select with .isel or .sel and make a "
            "reference to the result, or pass the values of the index"
        )
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
