"""Copies of many boxes of elements from one flat array into another.

In: the first elements of boxes in two flat arrays, their strides and shapes. Out: the second
array, filled. One fancy index of windows copies all boxes of one shape. Boxes of rare shapes
are copied by rows, rows of one width together. NumPy releases the GIL while it copies.
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
"""Shapes with at most this number of boxes are not copied by one fancy index. They are copied
by rows if there are more than `MIN_BULK_GROUPS` shapes, otherwise box by box
(benchmarks/tiles.py)."""

MIN_BULK_GROUPS = 8
"""With up to this number of shapes, no boxes are copied by rows."""

ROWS_NBYTES = 1 << 15
"""Boxes of more bytes are not copied by rows: the copy takes longer than the call."""

# A flat array, the first element of each box, and the distance between neighbours
# along each axis: of each group of boxes, or of each box.
StridedBuffer: TypeAlias = tuple[npt.NDArray[Any], IntArray, IntArray]


def copy_boxes(
    source: StridedBuffer, target: StridedBuffer, shape: IntArray, group: IntArray
) -> None:
    """Copy boxes; boxes of one group have the same shape, and the same strides on each side.

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
    cut_group = group[cuts[:-1]]
    rest = np.ones(len(sizes), dtype=bool)
    if len(sizes) > MIN_BULK_GROUPS and shape.shape[1] and not out.dtype.hasobject:
        by_rows = (sizes <= MIN_BULK_BOXES) & (src_stride[cut_group, -1] == 1)
        by_rows &= shape[cut_group].prod(axis=1) * out.dtype.itemsize <= ROWS_NBYTES
        by_rows &= dst_stride[cut_group, -1] == 1
        rest = ~by_rows
        boxes = np.flatnonzero(np.repeat(by_rows, sizes))
        if len(boxes):
            groups = group[boxes]
            target = out, dst[boxes], dst_stride[groups]
            _copy_rows((flat, src[boxes], src_stride[groups]), target, shape[groups])
    for k in np.flatnonzero(rest).tolist():
        a, b, g = int(cuts[k]), int(cuts[k + 1]), int(cut_group[k])
        origin = flat, src[a:b], tuple((src_stride[g] * out.dtype.itemsize).tolist())
        place = out, dst[a:b], tuple((dst_stride[g] * out.dtype.itemsize).tolist())
        _copy_group(origin, place, tuple(shape[g].tolist()))


def _copy_rows(source: StridedBuffer, target: StridedBuffer, shape: IntArray) -> None:
    """Copy boxes of many shapes by rows, rows of one width together.

    Strides and shapes are of each box, ``(n, ndim)``. Rows are contiguous on both sides.
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
        # A row is one opaque item, which may begin at any element.
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
    """Copy windows of one shape; strides in bytes, first elements in elements."""
    (flat, src, src_strides), (out, dst, dst_strides) = origin, goal
    itemsize = out.dtype.itemsize
    if math.prod(shape) == 1:
        out[dst] = flat[src]
        return
    if out.dtype.hasobject:
        # NumPy makes no object array over a buffer, so index element by element.
        out[_element_index(dst, dst_strides, shape, itemsize)] = flat[
            _element_index(src, src_strides, shape, itemsize)
        ]
        return
    # The constructor of ndarray takes a tenth of the time of as_strided, and accepts compound
    # types that as_strided refuses. The buffer is bytes because some dtypes have no buffer.
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
    """Return the flat index of every element of windows; strides in bytes."""
    index = first
    for n, stride in zip(shape, strides, strict=True):
        index = np.add.outer(index, np.arange(n) * (stride // itemsize))
    return index
