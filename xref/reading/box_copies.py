"""Many boxes of elements from one flat array into another.

In: where boxes begin in two flat arrays, their strides and shapes. Out: the second
array, filled. Boxes of one shape go with one fancy index of windows, boxes of shapes
that few others have row by row, rows of one width together. All of it releases the
GIL but the calls themselves.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xref.arrays import IntArray, ragged_ranges, run_starts

COPY_NBYTES = 1 << 19
"""Bytes copied by one fancy index, so that its temporary stays in the cache."""

MIN_BULK_BOXES = 6
"""Up to so many boxes of one shape are no group of windows (benchmarks/tiles.py)."""

MIN_BULK_GROUPS = 8
"""Up to so many shapes are copied box by box, not by rows."""

ROWS_NBYTES = 1 << 15
"""Larger boxes are copied one by one: the copy outweighs the call."""

# A flat array, the first element of each box, and the distance between neighbours
# along each axis: of each group of boxes, or of each box.
StridedBuffer: TypeAlias = tuple[npt.NDArray[Any], IntArray, IntArray]


def copy_boxes(
    source: StridedBuffer, target: StridedBuffer, shape: IntArray, group: IntArray
) -> None:
    """Copy boxes; those of one group have one shape and one stride on either side.

    Parameters
    ----------
    source, target : tuple
        A 1-D, contiguous array; the first element of each box, ``(n,)``; the distance
        between neighbours along each axis by group, ``(g, ndim)``. All in elements.
        No element is written twice.
    shape : numpy.ndarray
        Shapes by group, ``(g, ndim)``.
    group : numpy.ndarray
        The group of each box, ``(n,)``, boxes of one group next to each other.
    """
    (flat, src, src_stride), (out, dst, dst_stride) = source, target
    cuts = np.append(run_starts(group), len(group))
    sizes = np.diff(cuts)
    of_cut = group[cuts[:-1]]
    rest = np.ones(len(sizes), dtype=bool)
    if len(sizes) > MIN_BULK_GROUPS and shape.shape[1] and not out.dtype.hasobject:
        by_rows = (sizes <= MIN_BULK_BOXES) & (src_stride[of_cut, -1] == 1)
        by_rows &= shape[of_cut].prod(axis=1) * out.dtype.itemsize <= ROWS_NBYTES
        by_rows &= dst_stride[of_cut, -1] == 1
        rest = ~by_rows
        boxes = np.flatnonzero(np.repeat(by_rows, sizes))
        if len(boxes):
            of = group[boxes]
            _copy_rows(
                (flat, src[boxes], src_stride[of]), (out, dst[boxes], dst_stride[of]), shape[of]
            )
    for k in np.flatnonzero(rest).tolist():
        a, b, g = int(cuts[k]), int(cuts[k + 1]), int(of_cut[k])
        _copy_group(
            (flat, src[a:b], tuple((src_stride[g] * out.dtype.itemsize).tolist())),
            (out, dst[a:b], tuple((dst_stride[g] * out.dtype.itemsize).tolist())),
            tuple(shape[g].tolist()),
        )


def _copy_rows(source: StridedBuffer, target: StridedBuffer, shape: IntArray) -> None:
    """Copy boxes of many shapes row by row, rows of one width together.

    Parameters
    ----------
    source, target : tuple
        Flat array, first element of each box (``(n,)``) and distance between its
        elements along each axis (``(n, ndim)``), all in elements. Rows are
        contiguous on both sides.
    shape : numpy.ndarray
        Shape ``(n, ndim)``.
    """
    order = np.argsort(shape[:, -1], kind="stable")
    shape = shape[order]
    n_rows = shape[:, :-1].prod(axis=1)
    box = np.repeat(np.arange(len(order)), n_rows)
    ordinal = ragged_ranges(np.zeros(len(order), dtype=np.int64), n_rows)
    places = [first[order][box] for _, first, _ in (source, target)]
    for axis in range(shape.shape[1] - 2, -1, -1):
        step = ordinal
        if axis > 0:
            ordinal, step = np.divmod(ordinal, shape[box, axis])
        for place, (_, _, strides) in zip(places, (source, target), strict=True):
            place += step * strides[order, axis][box]
    widths = shape[:, -1]
    new = run_starts(widths)
    row_cuts = np.append(np.append(0, np.cumsum(n_rows))[new], len(box)).tolist()
    itemsize = source[0].dtype.itemsize
    views = [array.view(np.uint8) for array, _, _ in (source, target)]
    for k, width in enumerate(widths[new].tolist()):
        # A row is one opaque item that may begin at any element.
        item = np.dtype((np.void, width * itemsize))
        rows_from, rows_to = (
            np.ndarray(((v.size - item.itemsize) // itemsize + 1,), item, v, 0, (itemsize,))
            for v in views
        )
        batch = max(COPY_NBYTES // item.itemsize, 1)
        for a in range(row_cuts[k], row_cuts[k + 1], batch):
            at = slice(a, min(a + batch, row_cuts[k + 1]))
            rows_to[places[1][at]] = rows_from[places[0][at]]


def _copy_group(
    origin: tuple[npt.NDArray[Any], IntArray, tuple[int, ...]],
    goal: tuple[npt.NDArray[Any], IntArray, tuple[int, ...]],
    shape: tuple[int, ...],
) -> None:
    """Copy windows of one shape; strides in bytes, places in elements."""
    (flat, src, src_strides), (out, dst, dst_strides) = origin, goal
    itemsize = out.dtype.itemsize
    if math.prod(shape) == 1:
        out[dst] = flat[src]
        return
    if out.dtype.hasobject:
        # No views of objects from a buffer: index element by element.
        out[_element_index(dst, dst_strides, shape, itemsize)] = flat[
            _element_index(src, src_strides, shape, itemsize)
        ]
        return
    # Views through ndarray's constructor: it costs a tenth of as_strided and takes
    # compounds that as_strided refuses. Over bytes, as not every dtype is a buffer.
    source, target, dtype = flat.view(np.uint8), out.view(np.uint8), out.dtype
    if len(src) <= MIN_BULK_BOXES:
        for s, d in zip(src.tolist(), dst.tolist(), strict=True):
            to = np.ndarray(shape, dtype, target, d * itemsize, dst_strides)
            to[...] = np.ndarray(shape, dtype, source, s * itemsize, src_strides)
        return
    windows, places = (
        np.ndarray(
            (len(array) - _reach(shape, strides) // itemsize, *shape),
            dtype,
            buffer,
            0,
            (itemsize, *strides),
        )
        for array, buffer, strides in ((flat, source, src_strides), (out, target, dst_strides))
    )
    batch = max(COPY_NBYTES // max(math.prod(shape) * itemsize, 1), 1)
    for i in range(0, len(src), batch):
        places[dst[i : i + batch]] = windows[src[i : i + batch]]


def _reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return the bytes from the first to the last element of a window."""
    return sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def _element_index(
    first: IntArray, strides: tuple[int, ...], shape: tuple[int, ...], itemsize: int
) -> IntArray:
    """Return the place of every element of windows, strides in bytes."""
    index = first
    for n, stride in zip(shape, strides, strict=True):
        index = np.add.outer(index, np.arange(n) * (stride // itemsize))
    return index
