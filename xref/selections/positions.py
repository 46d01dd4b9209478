"""Where the selected elements lie in their dataset.

In: a `SelectionTable` bound to an extent, and a range of elements of each row, in the order of
the values. Out: their positions along one axis, one row after the other.
"""

from __future__ import annotations

import numpy as np

from xref.arrays import IntArray, ragged_ranges, row_offsets
from xref.selections.table import SelectionKind, SelectionTable
from xref.selections.unions import outer_axes, row_runs

_ELEMENTS_AT_ONCE = 1 << 20
"""Elements for which temporary arrays are made at once."""


def element_positions(
    regions: SelectionTable, axis: IntArray, first: IntArray, count: IntArray
) -> IntArray:
    """Return the positions of selected elements along one axis of their dataset.

    Parameters
    ----------
    regions : SelectionTable
        n bound rows.
    axis : numpy.ndarray
        Shape ``(n,)``: the axis of each row; -1 for a row without it.
    first, count : numpy.ndarray
        Shape ``(n,)``: elements ``first:first + count`` of each row, in the order of the
        values.

    Returns
    -------
    numpy.ndarray
        Shape ``(count.sum(),)``; -1 for the elements of rows without the axis.
    """
    offsets = row_offsets(count)
    out = np.empty(int(offsets[-1]), dtype=np.int64)
    wanted = (axis >= 0) & (count > 0)
    if ((axis < 0) & (count > 0)).any():
        out[...] = -1
    slabs = np.flatnonzero(wanted & (regions.kind == SelectionKind.HYPERSLAB))
    if len(slabs):
        _fill_slabs(
            regions.take(slabs), axis[slabs], first[slabs], count[slabs], out, offsets[slabs]
        )
    listed = np.flatnonzero(wanted & (regions.kind == SelectionKind.POINTS))
    if len(listed):
        size = count[listed]
        source = ragged_ranges(regions.first[listed] + first[listed], size)
        out[ragged_ranges(offsets[listed], size)] = regions.points[
            source, np.repeat(axis[listed], size)
        ]
    for row in np.flatnonzero(wanted & (regions.kind == SelectionKind.BLOCKS)).tolist():
        elements = slice(int(first[row]), int(first[row] + count[row]))
        found = _union_positions(regions, row, int(axis[row]))[elements]
        out[int(offsets[row]) : int(offsets[row + 1])] = found
    return out


class _SlabAxis:
    """One axis of each of n regular hyperslabs, and the elements of its results."""

    def __init__(self, regions: SelectionTable, axis: IntArray) -> None:
        rows = np.arange(len(regions))
        shape = regions.count * regions.block
        # Elements of the result behind each axis, shape (n, ndim + 1).
        behind = np.ones((len(rows), shape.shape[1] + 1), dtype=np.int64)
        behind[:, :-1] = np.cumprod(shape[:, ::-1], axis=1)[:, ::-1]
        self.size, self.inner = behind[:, 0], behind[rows, axis + 1]
        self.along = shape[rows, axis]
        self.start = regions.start[rows, axis]
        count, self.block = regions.count[rows, axis], regions.block[rows, axis]
        # Blocks of one element and single blocks are evenly spaced elements.
        self.step = np.where(count == 1, 1, regions.stride[rows, axis])
        self.block = np.where(count == 1, 1, self.block)
        self.has_blocks = bool((self.block != 1).any())

    def place(self, ordinal: IntArray, rows: IntArray | int, sizes: IntArray | int) -> IntArray:
        """Return the positions of elements by their ordinal along the axis.

        ``sizes`` are the numbers of elements of each of ``rows``.
        """

        def of(column: IntArray) -> IntArray:
            found: IntArray = np.repeat(column[rows], sizes)
            return found

        if not self.has_blocks:
            return of(self.start) + ordinal * of(self.step)
        block = of(self.block)
        result: IntArray = of(self.start) + ordinal // block * of(self.step) + ordinal % block
        return result


def _fill_slabs(
    regions: SelectionTable,
    axis: IntArray,
    first: IntArray,
    count: IntArray,
    out: IntArray,
    offsets: IntArray,
) -> None:
    """Write the positions of hyperslabs to ``out``, those of each row from ``offsets`` on."""
    slabs = _SlabAxis(regions, axis)
    whole = (first == 0) & (count == slabs.size) & (count <= _ELEMENTS_AT_ONCE)
    rows = np.flatnonzero(whole)
    ends = np.cumsum(count[rows])
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.searchsorted(ends, np.arange(0, total, _ELEMENTS_AT_ONCE), side="left")
    edges = [*cuts.tolist(), len(rows)]
    for k in range(len(cuts)):
        part = rows[edges[k] : edges[k + 1]]
        if not len(part):
            continue
        found = _whole_results(slabs, part)
        size = count[part]
        if (offsets[part][1:] == offsets[part][:-1] + size[:-1]).all():
            out[int(offsets[part[0]]) : int(offsets[part[0]]) + len(found)] = found
        else:
            out[ragged_ranges(offsets[part], size)] = found
    for row in np.flatnonzero(~whole).tolist():
        begin, inner, along = int(first[row]), int(slabs.inner[row]), int(slabs.along[row])
        for low in range(0, int(count[row]), _ELEMENTS_AT_ONCE):
            n = min(int(count[row]) - low, _ELEMENTS_AT_ONCE)
            ordinal = np.arange(begin + low, begin + low + n) // inner % along
            at = int(offsets[row]) + low
            out[at : at + n] = slabs.place(ordinal, row, n)


def _whole_results(slabs: _SlabAxis, rows: IntArray) -> IntArray:
    """Return the positions of all elements of some rows.

    In C order the positions of an axis are repeated: each for the elements behind the axis,
    all of them for the elements before it.
    """
    along, inner = slabs.along[rows], slabs.inner[rows]
    outer = slabs.size[rows] // (along * inner)
    runs = np.repeat(along, outer)
    if (slabs.step[rows] == 1).all() and not slabs.has_blocks:
        positions = ragged_ranges(np.repeat(slabs.start[rows], outer), runs)
    else:
        ordinal = ragged_ranges(np.zeros(len(runs), dtype=np.int64), runs)
        positions = slabs.place(ordinal, rows, along * outer)
    if (inner == 1).all():
        return positions
    result: IntArray = np.repeat(positions, np.repeat(inner, along * outer))
    return result


def _union_positions(regions: SelectionTable, row: int, axis: int) -> IntArray:
    """Return the positions of all elements of a union of blocks."""
    at = regions.list_rows(row)
    low, high = regions.block_start[at], regions.block_stop[at]
    outer = outer_axes(low, high)
    if outer is None:
        start, length = row_runs(low, high)
        positions = np.repeat(start[:, axis], length)
        if axis == start.shape[1] - 1:
            positions += ragged_ranges(np.zeros(len(length), dtype=np.int64), length)
        return positions
    sizes = [int((b - a).sum()) for a, b in outer]
    a, b = outer[axis]
    inner = int(np.prod(sizes[axis + 1 :], dtype=np.int64))
    n_outer = int(np.prod(sizes[:axis], dtype=np.int64))
    return np.tile(np.repeat(ragged_ranges(a, b - a), inner), n_outer)
