"""Unions of blocks: exact shapes, sizes and runs of elements.

In: the first and last corners of blocks (stop exclusive), elements. Out: intervals per axis,
numbers of distinct elements, runs along the last axis, regular hyperslabs.

HDF5 stores many regular selections as a list of blocks. `regular_from_blocks` finds the
hyperslab, so that selections of the same elements are equal, whichever library wrote them.

A union of blocks has a shape of full rank exactly if it is an outer product of one index set
per axis. `outer_axes` decides that exactly:

1. Blocks on a full grid of disjoint intervals are an outer product.
2. If the volume of all blocks is below the product of the projected lengths, it is not one.
3. Otherwise compare the exact number of distinct elements with that product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xref.arrays import IntArray, ragged_ranges
from xref.errors import ResultTooLargeError

MAX_ROWS = 1 << 26
"""Most rows of elements, along the last axis, of a union of blocks."""

MAX_CELLS = 1 << 20
"""Most cells between the borders of overlapping blocks that are counted one by one."""

MAX_PAIRED_BLOCKS = 16
"""Most blocks of a union that are compared in pairs, for many unions at once."""


def merge_intervals(start: IntArray, stop: IntArray) -> tuple[IntArray, IntArray]:
    """Merge 1-D intervals that touch or overlap.

    Parameters
    ----------
    start, stop : numpy.ndarray
        Shape ``(n,)``, stop exclusive, each interval non-empty.

    Returns
    -------
    start, stop : numpy.ndarray
        Disjoint intervals in ascending order.
    """
    order = np.argsort(start, kind="stable")
    start, stop = start[order], np.maximum.accumulate(stop[order])
    first = np.ones(len(start), dtype=bool)
    first[1:] = start[1:] > stop[:-1]
    last = np.append(first[1:], True)[: len(start)]
    return start[first], stop[last]


def axis_intervals(
    start: int, stride: int, count: int, block: int
) -> tuple[IntArray, IntArray]:
    """Return the intervals of one axis of a regular hyperslab, touching ones merged."""
    if count <= 1 or stride == block:
        return np.array([start]), np.array([start + count * block])
    begin = start + stride * np.arange(count, dtype=np.int64)
    return begin, begin + block


def volumes(start: IntArray, stop: IntArray) -> int:
    """Return the summed number of elements of boxes, in exact integers."""
    sizes = stop - start
    if not len(sizes):
        return 0
    if sizes.shape[1] == 0:
        return len(sizes)
    # The product in float64 shows whether int64 can hold the sum.
    if sizes.astype(float).prod(axis=1).sum() < 2**62:
        return int(sizes.prod(axis=1).sum())
    return sum(math.prod(row) for row in sizes.tolist())


def outer_axes(start: IntArray, stop: IntArray) -> list[tuple[IntArray, IntArray]] | None:
    """Split a union of blocks into one set of intervals per axis, if it is an outer product.

    Parameters
    ----------
    start, stop : numpy.ndarray
        Shape ``(n, ndim)``, stop exclusive, each block non-empty.

    Returns
    -------
    list of (start, stop), or None
        Per axis, disjoint merged intervals in ascending order; None if the union is not an
        outer product.
    """
    axes = []
    n_cells = 1
    on_grid = True
    for axis in range(start.shape[1]):
        pairs = np.unique(np.stack([start[:, axis], stop[:, axis]], axis=1), axis=0)
        on_grid = on_grid and bool((pairs[1:, 0] >= pairs[:-1, 1]).all())
        n_cells *= len(pairs)
        axes.append(merge_intervals(pairs[:, 0], pairs[:, 1]))
    if on_grid and n_cells <= len(start):
        distinct = len(np.unique(np.concatenate([start, stop], axis=1), axis=0))
        return axes if distinct == n_cells else None
    product = math.prod(int((b - a).sum()) for a, b in axes)
    if volumes(start, stop) < product:
        return None
    return axes if union_size(start, stop) == product else None


def union_size(start: IntArray, stop: IntArray) -> int:
    """Count the distinct elements of a union of blocks, exactly.

    Coordinates of all axes but the last are replaced by the ordinal of their interval between
    block borders, so that a few large blocks are a few rows. Raises ResultTooLargeError if the
    borders of the blocks form far more cells than there are blocks.
    """
    ndim = start.shape[1]
    if len(start) < 2 or ndim == 0:
        return volumes(start[:1], stop[:1]) if ndim else min(len(start), 1)
    low, high = start.copy(), stop.copy()
    lengths = []
    for axis in range(ndim - 1):
        borders = np.unique(np.concatenate([start[:, axis], stop[:, axis]]))
        low[:, axis] = np.searchsorted(borders, start[:, axis])
        high[:, axis] = np.searchsorted(borders, stop[:, axis])
        lengths.append(np.diff(borders))
    n_cells = (high - low)[:, :-1].astype(float).prod(axis=1).sum()
    if n_cells > MAX_CELLS + 64 * len(start):
        raise ResultTooLargeError(
            f"a union of {len(start)} overlapping blocks in {ndim} dimensions crosses in "
            f"{n_cells:.0f} places, too many to count its elements"
        )
    run_start, run_length = row_runs(low, high)
    weights = np.ones(len(run_start), dtype=object)
    for axis, length in enumerate(lengths):
        weights = weights * length[run_start[:, axis]].astype(object)
    return int((weights * run_length.astype(object)).sum())


def screen_unions(start: IntArray, stop: IntArray) -> tuple[np.ndarray, IntArray]:
    """Screen many unions at once: which can be outer products, and sizes of disjoint blocks.

    ``start`` and ``stop`` (exclusive) have the shape ``(m, n_blocks, ndim)``; no block is
    empty. Returns two columns of shape ``(m,)``: a bool, False if the blocks have fewer
    elements than the product of their projections, so that the union is not an outer product;
    the number of elements if no two blocks overlap, else -1.
    """
    m, n_blocks, ndim = start.shape
    product = np.ones(m)
    for axis in range(ndim):
        order = np.argsort(start[:, :, axis], axis=1)
        low = np.take_along_axis(start[:, :, axis], order, axis=1)
        high = np.take_along_axis(stop[:, :, axis], order, axis=1)
        before = np.maximum.accumulate(high, axis=1)
        low[:, 1:] = np.maximum(low[:, 1:], before[:, :-1])
        product *= np.clip(high - low, 0, None).sum(axis=1)
    volume = (stop - start).astype(float).prod(axis=2).sum(axis=1)
    size = np.where(volume < 2**53, volume, -1).astype(np.int64)
    if n_blocks > MAX_PAIRED_BLOCKS:
        size[:] = -1
    for i in range(n_blocks if n_blocks <= MAX_PAIRED_BLOCKS else 0):
        for j in range(i):
            apart = (start[:, i] >= stop[:, j]) | (start[:, j] >= stop[:, i])
            size[~apart.any(axis=1)] = -1
    return volume >= product, size


def row_runs(start: IntArray, stop: IntArray) -> tuple[IntArray, IntArray]:
    """Cut a union of blocks into disjoint runs along the last axis, in C order.

    Parameters
    ----------
    start, stop : numpy.ndarray
        Shape ``(n, ndim)`` with ``ndim >= 1``, stop exclusive.

    Returns
    -------
    start : numpy.ndarray
        Shape ``(m, ndim)``: the first element of each run.
    length : numpy.ndarray
        Shape ``(m,)``: elements in each run.

    Raises
    ------
    ResultTooLargeError
        If the blocks hold more than `MAX_ROWS` rows.
    """
    sizes = stop - start
    rows_each = sizes[:, :-1].astype(float).prod(axis=1)
    if rows_each.sum() > MAX_ROWS:
        raise ResultTooLargeError(
            f"a union of {len(start)} blocks spans {rows_each.sum():.0f} rows of elements, "
            f"more than {MAX_ROWS}; select parts of it"
        )
    counts = rows_each.astype(np.int64)
    block_of = np.repeat(np.arange(len(start)), counts)
    ordinal = ragged_ranges(np.zeros(len(start), dtype=np.int64), counts)
    low = start.min(axis=0)
    hull = [int(n) for n in (stop.max(axis=0) - low)]
    if math.prod(hull) >= 2**62:
        raise ResultTooLargeError(
            f"a union of blocks spans a box of {hull}, too large to order; select parts of it"
        )
    # Ordinal of each row's first element in the hull's C order, axis by axis from the last.
    place = np.zeros(len(block_of), dtype=np.int64)
    weight = hull[-1]
    for axis in range(start.shape[1] - 2, -1, -1):
        size = sizes[block_of, axis]
        place += (ordinal % size + (start[block_of, axis] - low[axis])) * weight
        ordinal = ordinal // size
        weight *= hull[axis]
    first = place + (start[block_of, -1] - low[-1])
    # Runs that touch across the end of a row are merged here and cut apart below.
    begin, end = merge_intervals(first, first + sizes[block_of, -1])
    begin, end = _cut_at_rows(begin, end, hull[-1])
    coords = np.stack(np.unravel_index(begin, hull), axis=1) if len(begin) else start[:0]
    return coords + low, end - begin


def _cut_at_rows(begin: IntArray, end: IntArray, width: int) -> tuple[IntArray, IntArray]:
    """Split flat runs at multiples of ``width``."""
    n_rows = (end - 1) // width - begin // width + 1
    run_of = np.repeat(np.arange(len(begin)), n_rows)
    row = ragged_ranges(begin // width, n_rows)
    return (np.maximum(begin[run_of], row * width), np.minimum(end[run_of], (row + 1) * width))


def regular_from_blocks(
    start: IntArray, stop: IntArray
) -> tuple[np.ndarray, IntArray, IntArray, IntArray, IntArray]:
    """Find the lists of blocks that are one regular hyperslab.

    ``start`` and ``stop``, shape ``(m, n_blocks, ndim)``, are m selections of equally many
    blocks. Returns which are regular, bool of shape ``(m,)``, and start, stride, count and
    block of shape ``(m, ndim)``, valid where regular. Blocks that touch become one block; an
    axis with a count of 1 has a stride of 1.
    """
    m, n_blocks, ndim = start.shape
    block = stop[:, 0] - start[:, 0]
    regular = (stop - start == block[:, None]).all(axis=(1, 2))
    low, high = start.min(axis=1), start.max(axis=1)
    stride = np.ones((m, ndim), dtype=np.int64)
    count = np.ones((m, ndim), dtype=np.int64)
    for axis in range(ndim):
        offset = start[:, :, axis] - low[:, None, axis]
        positive = np.where(offset > 0, offset, np.iinfo(np.int64).max).min(axis=1)
        several = high[:, axis] > low[:, axis]
        stride[several, axis] = positive[several]
        count[:, axis] += (high[:, axis] - low[:, axis]) // stride[:, axis]
    fits = count.astype(float).prod(axis=1) == n_blocks
    regular &= fits & ((count == 1) | (stride >= block)).all(axis=1)
    # Every block must be where the hyperslab has it, in C order.
    rows = np.flatnonzero(regular)
    ordinal = np.arange(n_blocks)[None, :]
    for axis in range(ndim - 1, -1, -1):
        n = count[rows, axis][:, None]
        expected = low[rows, axis][:, None] + stride[rows, axis][:, None] * (ordinal % n)
        regular[rows] &= (start[rows, :, axis] == expected).all(axis=1)
        ordinal = ordinal // n
    touching = (count > 1) & (stride == block)
    block = np.where(touching, block * count, block)
    count = np.where(touching, 1, count)
    stride = np.where(count == 1, 1, stride)
    return regular, low, stride, count, block


def outer_blocks(axes: Sequence[tuple[IntArray, IntArray]]) -> tuple[IntArray, IntArray]:
    """Return every box of an outer product of intervals, in C order, shape ``(n, ndim)``."""
    if not axes:
        return np.zeros((1, 0), dtype=np.int64), np.zeros((1, 0), dtype=np.int64)
    counts = [len(low) for low, _ in axes]
    ordinals = np.unravel_index(np.arange(math.prod(counts)), counts)
    low = np.stack([a[o] for (a, _), o in zip(axes, ordinals, strict=True)], axis=1)
    high = np.stack([b[o] for (_, b), o in zip(axes, ordinals, strict=True)], axis=1)
    return low, high


def regular_axis(start: IntArray, stop: IntArray) -> tuple[int, int, int, int] | None:
    """Return (start, stride, count, block) of evenly spaced equal intervals, else None."""
    sizes, gaps = stop - start, np.diff(start)
    if (sizes != sizes[0]).any() or (len(gaps) and (gaps != gaps[0]).any()):
        return None
    return int(start[0]), int(gaps[0]) if len(gaps) else 1, len(start), int(sizes[0])
