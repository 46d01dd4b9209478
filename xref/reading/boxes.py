"""Selections as boxes of evenly spaced elements (parts), with their positions in the output.

In: fitted selections of one dataset, and the first element of each result in a flat output.
Out: `Parts`, as columns. Almost every selection is one part. Functions here also cut parts at
the borders of cells, list the chunks that parts touch, and group parts by shape.

The loops run over axes, in NumPy over parts, never in Python over references.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xref.arrays import (
    FrozenColumns,
    IntArray,
    canvas_strides,
    linear,
    ragged_ranges,
    ragged_take,
    row_offsets,
)
from xref.selections import SelectionKind, SelectionTable, outer_axes, row_runs

_PAIRS_AT_ONCE = 1 << 22  # (part, chunk) pairs
_GRID_CELLS = 1 << 26  # largest grid whose cells are marked in one array
_MIN_BULK_KEYS = 1 << 10
_ROWS_AT_ONCE = 1 << 14  # so that intermediate arrays stay in the cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts(FrozenColumns):
    """Boxes of evenly spaced elements, and their positions in the output."""

    start: IntArray  # (m, ndim), first element in the dataset
    shape: IntArray  # (m, ndim), elements
    step: IntArray  # (m, ndim), distance between elements in the dataset
    dst: IntArray  # (m,), first element in the flat output
    dst_stride: IntArray  # (m, ndim), distance between elements in the output

    def __len__(self) -> int:
        return len(self.dst)

    @property
    def single_elements(self) -> bool:
        """Whether all parts are single elements that share one broadcast shape."""
        return len(self) > 1 and self.shape.strides[0] == 0 and bool((self.shape[0] == 1).all())


def locate(
    start: IntArray, cell: Sequence[int], extent: Sequence[int]
) -> tuple[IntArray, IntArray]:
    """Find elements in a grid of cells.

    Parameters
    ----------
    start : numpy.ndarray
        Shape ``(n, ndim)``, elements.
    cell, extent : sequence of int
        Shape of a cell, and of the dataset that the grid covers.

    Returns
    -------
    number : numpy.ndarray
        Shape ``(n,)``: the cell, in C order of the grid.
    place : numpy.ndarray
        Shape ``(n,)``: the number of the element in its cell, in C order.
    """
    number, place = (np.zeros(len(start), dtype=np.int64) for _ in range(2))
    grid = canvas_strides([-(-n // c) for n, c in zip(extent, cell, strict=True)])
    axes = list(zip(cell, grid, canvas_strides(cell), strict=True))
    for first in range(0, len(start), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        for column, (width, in_grid, in_cell) in zip(start[rows].T, axes, strict=True):
            along = column // width  # dividing by a scalar is faster than by an array
            number[rows] += along * in_grid
            place[rows] += (column - along * width) * in_cell
    return number, place


def plan_parts(regions: SelectionTable, dst: IntArray, dst_stride: IntArray) -> Parts:
    """Turn fitted selections into parts.

    Parameters
    ----------
    regions : SelectionTable
        Fitted to the dataset's extent, n rows.
    dst : numpy.ndarray
        Shape ``(n,)``: first element of the result of each row in the flat output.
    dst_stride : numpy.ndarray
        Shape ``(n, ndim)``: distance in the output between neighbours along each axis, for
        results of full rank. Elements of other results are contiguous.
    """
    count, block = regions.count, regions.block
    single = (count == 1) | (block == 1)
    plain = (regions.kind == SelectionKind.HYPERSLAB) & single.all(axis=1)
    found: list[Parts] = []
    rows = np.flatnonzero(plain)
    if len(rows):
        at: npt.NDArray[np.intp] | slice = slice(None) if len(rows) == len(regions) else rows
        found.append(
            Parts(
                start=regions.start[at],
                shape=count[at] * block[at],
                step=np.where(count[at] == 1, 1, regions.stride[at]),
                dst=dst[at],
                dst_stride=dst_stride[at],
            )
        )
    listed = np.flatnonzero(regions.kind == SelectionKind.POINTS)
    if len(listed):
        size = regions.size[listed]
        points = ragged_take(regions.points, regions.first[listed], size)
        found.append(_unit_parts(points, ragged_ranges(dst[listed], size)))
    several = (regions.kind == SelectionKind.BLOCKS) | (
        (regions.kind == SelectionKind.HYPERSLAB) & ~plain
    )
    for row in np.flatnonzero(several).tolist():
        found.append(_plan_row(regions, row, int(dst[row]), dst_stride[row]))
    return _concat_parts(found, regions.ndim)


def _unit_parts(start: IntArray, dst: IntArray) -> Parts:
    ones = np.broadcast_to(np.ones((1, start.shape[1]), dtype=np.int64), start.shape)
    return Parts(start=start, shape=ones, step=ones, dst=dst, dst_stride=ones)


def plan_points(coords: IntArray) -> Parts:
    """Turn single elements, shape ``(n, ndim)``, into parts; element i goes to output i."""
    return _unit_parts(coords, np.arange(len(coords)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segments(FrozenColumns):
    """Evenly spaced runs of elements of one axis, and their positions in the result."""

    start: IntArray  # (n,), first element
    count: IntArray  # (n,), elements
    step: IntArray  # (n,), distance between elements
    place: IntArray  # (n,), ordinal of the first element in the result
    place_step: IntArray  # (n,), distance between elements in the result


def regular_segments(start: int, stride: int, count: int, block: int = 1) -> Segments:
    """Return one axis of a regular hyperslab in as few segments as possible.

    There is one segment for each block, or one for each element of a block.
    """
    if stride == block or count <= 1:
        stride, count, block = 1, count * block, 1
    if count <= block:
        ordinal = np.arange(count, dtype=np.int64)
        n, first, step, place_step = block, ordinal * stride, 1, 1
        place = ordinal * block
    else:
        place = first = np.arange(block, dtype=np.int64)
        n, step, place_step = count, stride, block
    return Segments(
        start=start + first,
        count=np.full(len(first), n, dtype=np.int64),
        step=np.full(len(first), step, dtype=np.int64),
        place=place,
        place_step=np.full(len(first), place_step, dtype=np.int64),
    )


def interval_segments(start: IntArray, stop: IntArray) -> Segments:
    """Return disjoint intervals in ascending order as segments."""
    ones = np.ones(len(start), dtype=np.int64)
    count, place = stop - start, row_offsets(stop - start)[:-1]
    return Segments(start=start, count=count, step=ones, place=place, place_step=ones)


def plan_outer(axes: Sequence[Segments], dst: int, dst_stride: IntArray) -> Parts:
    """Turn an outer product of segments into parts; the result begins at ``dst``."""
    counts = [len(a.start) for a in axes]
    n = math.prod(counts)
    if not axes:
        return _unit_parts(np.zeros((n, 0), dtype=np.int64), np.full(n, dst))
    ordinals = np.unravel_index(np.arange(n), counts)

    def table(name: str) -> IntArray:
        columns = [getattr(a, name)[o] for a, o in zip(axes, ordinals, strict=True)]
        return np.stack(columns, axis=1)

    return Parts(
        start=table("start"),
        shape=table("count"),
        step=table("step"),
        dst=dst + linear(table("place"), dst_stride.tolist()),
        dst_stride=table("place_step") * dst_stride,
    )


def _plan_row(regions: SelectionTable, row: int, dst: int, dst_stride: IntArray) -> Parts:
    """Turn one union of boxes into parts."""
    if regions.kind[row] == SelectionKind.HYPERSLAB:
        columns = (regions.start, regions.stride, regions.count, regions.block)
        numbers = zip(*(c[row].tolist() for c in columns), strict=True)
        return plan_outer([regular_segments(*axis) for axis in numbers], dst, dst_stride)
    at = regions.list_rows(row)
    low, high = regions.block_start[at], regions.block_stop[at]
    outer = outer_axes(low, high)
    if outer is not None:
        return plan_outer([interval_segments(*axis) for axis in outer], dst, dst_stride)
    start, length = row_runs(low, high)
    ones = np.ones(start.shape, dtype=np.int64)
    shape = ones.copy()
    shape[:, -1] = length
    return Parts(
        start=start, shape=shape, step=ones, dst=dst + row_offsets(length)[:-1], dst_stride=ones
    )


def _concat_parts(found: list[Parts], ndim: int) -> Parts:
    if len(found) == 1:
        parts = found[0]
    elif found:
        names = Parts.__dataclass_fields__
        parts = Parts(**{k: np.concatenate([getattr(p, k) for p in found]) for k in names})
    else:
        parts = _unit_parts(np.zeros((0, ndim), dtype=np.int64), np.zeros(0, dtype=np.int64))
    if parts.single_elements:
        return parts
    filled = (parts.shape > 0).all(axis=1)
    return parts if filled.all() else take_parts(parts, np.flatnonzero(filled))


def take_parts(parts: Parts, rows: npt.NDArray[np.intp]) -> Parts:
    """Return some of the parts, in the order of ``rows``."""
    return Parts(**{n: _take(getattr(parts, n), rows) for n in Parts.__dataclass_fields__})


def _take(column: IntArray, rows: npt.NDArray[np.intp]) -> IntArray:
    """Return some rows of a column; a broadcast column stays a broadcast."""
    if len(column) > 1 and column.strides[0] == 0:
        return np.broadcast_to(column[:1], (len(rows), *column.shape[1:]))
    return np.take(column, rows, axis=0)  # fancy indexing takes several times as long


def cut_axis(parts: Parts, axis: int, width: int) -> Parts:
    """Cut parts at multiples of ``width`` along an axis.

    A part whose step is wider is cut into single elements, so that no piece spans a cell
    without one of its elements.
    """
    if parts.single_elements:
        return parts
    start, n, step = parts.start[:, axis], parts.shape[:, axis], parts.step[:, axis]
    first, last = start // width, (start + (n - 1) * step) // width
    wide = (step > width) & (n > 1)
    pieces = np.where(wide, n, last - first + 1)
    if (pieces == 1).all():
        return parts
    crossing = np.flatnonzero(pieces > 1)
    whole = np.flatnonzero(pieces == 1)
    pieces = pieces[crossing]
    origin = np.repeat(crossing, pieces)
    ordinal = ragged_ranges(np.zeros(len(pieces), dtype=np.int64), pieces)
    low = (first[origin] + ordinal) * width
    # Elements before the lower border, and before the upper one.
    skip = np.clip(-((start[origin] - low) // step[origin]), 0, None)
    end = np.minimum(-((start[origin] - low - width) // step[origin]), n[origin])
    skip = np.where(wide[origin], ordinal, skip)
    end = np.where(wide[origin], ordinal + 1, end)
    cut = {name: getattr(parts, name)[origin] for name in Parts.__dataclass_fields__}
    cut["start"][:, axis] += skip * step[origin]
    cut["shape"][:, axis] = end - skip
    cut["dst"] += skip * cut["dst_stride"][:, axis]
    kept = take_parts(parts, whole)
    return Parts(**{name: np.concatenate([getattr(kept, name), cut[name]]) for name in cut})


def part_chunks(parts: Parts, chunks: Sequence[int], extent: Sequence[int]) -> IntArray:
    """Return the numbers of all chunks that parts touch, ascending, each once.

    Parts with steps wider than a chunk have been cut, so each chunk between the first and the
    last chunk of a part contains one of its elements.
    """
    grid = [-(-n // c) for n, c in zip(extent, chunks, strict=True)]
    weight = canvas_strides(grid)
    n_cells = math.prod(grid)
    if parts.single_elements:
        number, _ = locate(parts.start, chunks, extent)
        if n_cells > _GRID_CELLS:
            return np.unique(number)
        marks = np.zeros(n_cells, dtype=bool)
        marks[number] = True
        return np.flatnonzero(marks)
    low = _divide(parts.start, chunks)
    high = _divide(parts.start + (parts.shape - 1) * parts.step, chunks)
    spans = high - low + 1
    n_each = spans.prod(axis=1) if spans.shape[1] else np.ones(len(parts), dtype=np.int64)
    ends = np.cumsum(n_each)
    n_pairs = int(ends[-1]) if len(ends) else 0
    if n_pairs > _PAIRS_AT_ONCE and n_cells <= _GRID_CELLS:
        return _mark_grid(low, high, grid)
    marked = np.zeros(n_cells, dtype=bool) if n_cells <= _GRID_CELLS else None
    found: list[IntArray] = []
    cuts = np.searchsorted(ends, np.arange(_PAIRS_AT_ONCE, n_pairs, _PAIRS_AT_ONCE))
    edges = np.unique(np.concatenate([[0], cuts, [len(parts)]]))
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        number = _pair_numbers(low[begin:end], spans[begin:end], n_each[begin:end], weight)
        if marked is not None:
            marked[number] = True
        else:
            found.append(np.unique(number))
    if marked is not None:
        return np.flatnonzero(marked)
    return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)


def _divide(table: IntArray, widths: Sequence[int]) -> IntArray:
    """Return ``table // widths`` by columns: dividing by a scalar is faster."""
    out = np.empty_like(table)
    for axis, width in enumerate(widths):
        np.floor_divide(table[:, axis], width, out=out[:, axis])
    return out


def _pair_numbers(
    low: IntArray, spans: IntArray, n_each: IntArray, weight: Sequence[int]
) -> IntArray:
    """Return the chunk number of every (part, chunk) pair."""
    number = linear(low, weight)
    if (n_each == 1).all():
        return number
    part = np.repeat(np.arange(len(low)), n_each)
    ordinal = ragged_ranges(np.zeros(len(low), dtype=np.int64), n_each)
    number = number[part]
    for axis in range(low.shape[1] - 1, -1, -1):
        span = spans[part, axis]
        number += ordinal % span * weight[axis]
        ordinal //= span
    return number


def _mark_grid(low: IntArray, high: IntArray, grid: Sequence[int]) -> IntArray:
    """Mark boxes of cells by cumulative sums of signed corners, in time parts plus cells."""
    ndim = len(grid)
    shape = tuple(n + 1 for n in grid)
    weight = canvas_strides(shape)
    marks = np.zeros(math.prod(shape), dtype=np.int64)
    for corner in range(2**ndim):
        upper = np.array([corner >> axis & 1 for axis in range(ndim)], dtype=bool)
        at = linear(np.where(upper, high + 1, low), weight)
        sign = -1 if upper.sum() % 2 else 1
        marks += sign * np.bincount(at, minlength=len(marks))
    cells = marks.reshape(shape)
    for axis in range(ndim):
        np.cumsum(cells, axis=axis, out=cells)
    inner = cells[tuple(slice(0, n) for n in grid)]
    return np.flatnonzero(inner.ravel() > 0)


def sort_pairs(major: IntArray, minor: IntArray) -> npt.NDArray[np.intp]:
    """Return the stable order by (major, minor), neither of which is negative."""
    n_minor = int(minor.max(initial=0)) + 1
    largest = (int(major.max(initial=0)) + 1) * n_minor
    if largest > 2**62:
        return np.lexsort((minor, major))
    key = major if n_minor == 1 else major * n_minor + minor
    if largest > 2**32 or len(key) < _MIN_BULK_KEYS:
        return np.argsort(key, kind="stable")
    # NumPy uses radix sort for 16-bit keys, ten times as fast as sorting 64-bit keys.
    order = np.argsort(key.astype(np.uint16), kind="stable")
    if largest > 2**16:
        order = order[np.argsort((key >> 16).astype(np.uint16)[order], kind="stable")]
    return order


def group_rows(parts: Parts) -> tuple[IntArray, npt.NDArray[np.intp]]:
    """Assign a number to each distinct (shape, step, output stride) of parts.

    Returns
    -------
    group : numpy.ndarray
        Shape ``(m,)``.
    representative : numpy.ndarray
        One row of each group.
    """
    key = np.zeros(len(parts), dtype=np.int64)
    radix = 1
    for table in (parts.shape, parts.step, parts.dst_stride):
        if table.shape[0] < 2 or table.strides[0] == 0:
            continue
        for column in table.T:
            low, high = int(column.min()), int(column.max())
            if low == high:
                continue
            width = high - low + 1
            if radix * width >= 2**62:
                distinct, key = np.unique(key, return_inverse=True)
                radix = len(distinct)
                if radix * width >= 2**62:
                    values, column = np.unique(column, return_inverse=True)
                    low, width = 0, len(values)
            key = key * width + (column - low)
            radix *= width
    if radix == 1:
        return key, np.zeros(min(len(parts), 1), dtype=np.intp)
    if radix <= 4 * len(parts) + (1 << 16):
        seen = np.full(radix, -1)
        seen[key] = np.arange(len(key))
        present = np.flatnonzero(seen >= 0)
        number = np.zeros(radix, dtype=np.int64)
        number[present] = np.arange(len(present))
        return number[key], seen[present]
    _, representative, group = np.unique(key, return_index=True, return_inverse=True)
    return group, representative
