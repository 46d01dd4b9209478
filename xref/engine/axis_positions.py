"""Elements of a dataset by position, and selections of them.

In: the positions that a variable shows along each axis of its dataset, and an index. Out:
other positions, and a value of `xref.selections.values`.
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
"""Blocks that one selection may consist of."""

AxisIndex: TypeAlias = "int | range | IntArray"
"""One position of an axis that is not shown, or those of one that is, ``(n,)``."""


@dataclass(frozen=True, slots=True, eq=False)
class ElementOrigin:
    """Where the elements of a variable are stored.

    Attributes
    ----------
    object : ObjectReference
        The dataset.
    extent : tuple of int
        Elements along each axis of the dataset, as a variable of all of it has them.
    axes : tuple of (int, range or numpy.ndarray)
        Along each axis of the dataset, the positions that are shown, or the one that is.
    order : tuple of int
        The axis of the dataset that each axis of the variable is.
    points : numpy.ndarray or None
        Where elements were selected one by one, ``(..., ndim)``: the position of each.
    """

    object: ObjectReference
    extent: tuple[int, ...]
    axes: tuple[AxisIndex, ...]
    order: tuple[int, ...]
    points: IntArray | None = None

    @classmethod
    def whole(cls, reference: ObjectReference, extent: tuple[int, ...]) -> ElementOrigin:
        """Return the origin of a variable that shows all of a dataset."""
        return cls(reference, extent, tuple(map(range, extent)), tuple(range(len(extent))))

    @property
    def ndim(self) -> int:
        """Number of axes shown."""
        return len(self.order) if self.points is None else self.points.ndim - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis shown."""
        if self.points is not None:
            return self.points.shape[:-1]
        return tuple(len(_shown(self.axes[number])) for number in self.order)

    @property
    def is_whole(self) -> bool:
        """Whether all of the dataset is shown, as it is stored."""
        return (
            self.points is None
            and self.order == tuple(range(len(self.extent)))
            and all(
                np.array_equal(np.asarray(axis), np.arange(n))
                if _is_array(axis)
                else axis == range(n)
                for axis, n in zip(self.axes, self.extent, strict=True)
            )
        )

    def outer(self, keys: Sequence[Any]) -> ElementOrigin:
        """Select along each axis shown by its own integer, slice or 1-D array."""
        if self.points is not None:
            points = self.points
            for number in range(len(keys) - 1, -1, -1):
                points = points[(*(slice(None),) * number, keys[number])]
            return replace(self, points=points)
        axes, order = list(self.axes), []
        for number, key in zip(self.order, keys, strict=True):
            axes[number] = picked = _pick(_shown(axes[number]), key)
            if not isinstance(picked, int):
                order.append(number)
        return replace(self, axes=tuple(axes), order=tuple(order))

    def pointwise(self, keys: Sequence[Any], *, ordered: bool = False) -> ElementOrigin:
        """Select element by element: arrays that are broadcast together, one an axis.

        With ``ordered`` the elements are points always, which have any order and number.
        """
        if self.points is not None:
            return replace(self, points=self.points[tuple(keys)])
        arrays = [np.asarray(key) for key in keys]
        apart = None if ordered else _own_axes([key.shape for key in arrays])
        if apart is not None:  # each axis by itself, in another order of axes
            flat = [
                a.reshape(-1) if to >= 0 else int(a.reshape(()))
                for a, to in zip(arrays, apart, strict=True)
            ]
            chosen = self.outer(flat)
            place = {
                to: number for number, to in zip(self.order, apart, strict=True) if to >= 0
            }
            return replace(chosen, order=tuple(place[to] for to in sorted(place)))
        arrays = list(np.broadcast_arrays(*arrays))
        columns = [np.broadcast_to(np.int64(0), arrays[0].shape)] * len(self.axes)
        for number, axis in enumerate(self.axes):
            if isinstance(axis, int):
                columns[number] = np.broadcast_to(np.int64(axis), arrays[0].shape)
        for number, key in zip(self.order, arrays, strict=True):
            columns[number] = np.asarray(_pick(_shown(self.axes[number]), key))
        return replace(self, points=np.stack(columns, axis=-1))

    def without_last(self, n: int) -> ElementOrigin | None:
        """Drop the last axes of the dataset; None unless they are shown whole, and last."""
        kept = len(self.axes) - n
        whole = all(
            self.axes[number] == range(self.extent[number])
            for number in range(kept, len(self.axes))
            if not _is_array(self.axes[number])
        ) and not any(map(_is_array, self.axes[kept:]))
        last = tuple(range(kept, len(self.axes)))
        if self.points is not None or not whole or self.order[len(self.order) - n :] != last:
            return None
        order = self.order[: len(self.order) - n]
        return replace(self, extent=self.extent[:kept], axes=self.axes[:kept], order=order)

    def selection(self) -> selections.Selection:
        """Return what is shown as a selection of the dataset, whose axes it has.

        Raises
        ------
        SelectionError
            If the elements along an axis are not in the order of the dataset, which
            regions cannot keep.
        """
        if self.points is not None:
            coords = self.points.reshape(-1, len(self.axes))
            return (
                selections.Points(coords.astype(np.int64))
                if len(coords)
                else selections.Empty()
            )
        if not self.axes:
            return selections.All()
        axes = [_ascending(axis, number) for number, axis in enumerate(self.axes)]
        if not all(map(len, axes)):
            return selections.Empty()
        regular = [_regular(axis) for axis in axes]
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


def _shown(axis: AxisIndex) -> range | IntArray:
    if isinstance(axis, int):
        raise TypeError(f"position {axis} of an axis that is not shown")
    return axis


def _pick(axis: range | IntArray, key: Any) -> Any:
    """Return the positions that an integer, a slice or an array picks from others."""
    if isinstance(key, slice):
        return axis[key]
    wanted = np.asarray(key)
    if wanted.ndim == 0:
        return int(axis[int(wanted)])
    if isinstance(axis, range):
        wanted = np.where(wanted < 0, wanted + len(axis), wanted).astype(np.int64)
        return axis.start + axis.step * wanted
    return axis[wanted]


def _own_axes(shapes: Sequence[tuple[int, ...]]) -> list[int] | None:
    """Return the axis that each of several arrays runs along, -1 for none.

    None if one of them runs along several, or two along the same.
    """
    ndim = max(map(len, shapes), default=0)
    if any(len(shape) != ndim for shape in shapes) or ndim > len(shapes):
        return None
    along = [[axis for axis, n in enumerate(shape) if n != 1] for shape in shapes]
    used = [axis for axes in along for axis in axes]
    if any(len(axes) > 1 for axes in along) or len(set(used)) != len(used):
        return None
    free = iter(sorted(set(range(ndim)) - set(used)))  # of one element each
    return [axes[0] if axes else next(free, -1) for axes in along]


def _ascending(axis: AxisIndex, number: int) -> range | IntArray:
    """Return the positions along one axis, which must ascend."""
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
    """Return (start, stride, count, block) of runs that are alike, else None."""
    if isinstance(axis, range):
        if axis.step == 1:
            return axis.start, 1, 1, len(axis)
        return axis.start, axis.step, len(axis), 1
    low, high = _intervals(axis)
    sizes, gaps = high - low, np.diff(low)
    if (sizes != sizes[0]).any() or (len(gaps) and (gaps != gaps[0]).any()):
        return None
    return int(low[0]), int(gaps[0]) if len(gaps) else 1, len(low), int(sizes[0])


# --- indices of a user -----------------------------------------------------------------


def index_keys(array: xr.DataArray, keys: tuple[Any, ...]) -> npt.NDArray[Any] | list[Any]:
    """Return a NumPy-style index as one key an axis, or as points ``(n, ndim)``.

    Lists of several axes select their crossings, as in `xarray.DataArray.isel`.

    Raises
    ------
    IndexError
        If it does not fit the array.
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
    fill = [slice(None)] * (array.ndim - n_given)
    if any(k is Ellipsis for k in keys):
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        whole = [*keys[:at], *fill, *keys[at + 1 :]]
    else:
        whole = [*keys, *fill]
    return [_axis_key(k, n, d) for k, n, d in zip(whole, array.shape, array.dims, strict=True)]


def _is_mask(key: Any) -> bool:
    return not isinstance(key, slice) and getattr(np.asarray(key), "dtype", None) == np.bool_


def _aligned(mask: xr.DataArray, array: xr.DataArray) -> npt.NDArray[np.bool_]:
    """Return a mask by the labels of an array, False where it has none, in its axes."""
    unknown = [dim for dim in mask.dims if dim not in array.dims]
    if unknown:
        raise IndexError(f"the mask lies along {unknown}; {array.name!r} has {array.dims}")
    labels = {d: array.indexes[d] for d in mask.dims if d in array.indexes}
    known = {d: index for d, index in labels.items() if d in mask.indexes}
    mask = mask.reindex(known, fill_value=False)
    for dim in mask.dims:
        if mask.sizes[dim] != array.sizes[dim]:
            raise IndexError(
                f"a mask of {mask.sizes[dim]} elements along {dim!r}, of which {array.name!r} "
                f"has {array.sizes[dim]}"
            )
    own = mask.transpose(*(d for d in array.dims if d in mask.dims)).values
    beside = tuple(n if d in mask.dims else 1 for d, n in array.sizes.items())
    return np.broadcast_to(own.astype(bool).reshape(beside), array.shape)


def _axis_key(key: Any, n: int, dim: Any) -> Any:
    """Return an integer as an axis of one element, lists and masks as positions."""
    if isinstance(key, slice):
        return key
    if isinstance(key, xr.DataArray):
        raise IndexError(
            f"the index of {dim!r} is a DataArray; select with .isel or .sel and refer to what "
            "was selected, or pass its values"
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
