"""Narrower selections: a part of the results, or fewer axes of the dataset.

In: a `SelectionTable` bound to an extent. Out: a table that selects less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xref.arrays import BoolArray, IntArray, ragged_ranges, row_offsets
from xref.selections.table import AXIS_COLUMNS, SelectionKind, SelectionTable
from xref.selections.table_building import concat_at, table_from_blocks, table_from_selections
from xref.selections.unions import merge_intervals, outer_axes, outer_blocks, row_runs
from xref.selections.values import Points


def narrow(
    regions: SelectionTable, key: Sequence[tuple[int, int, int]]
) -> SelectionTable | None:
    """Select within the results of boxes and evenly spaced hyperslabs.

    Parameters
    ----------
    regions : SelectionTable
        Bound rows whose results share one shape of full rank.
    key : sequence of (start, count, step)
        The elements to keep along each axis of the results.

    Returns
    -------
    SelectionTable or None
        None if a row has another kind; then cut the results after reading.
    """
    if not _are_spaced(regions).all():
        return None
    first, count, step = (np.array(c, dtype=np.int64) for c in zip(*key, strict=True))
    return _narrow_spaced(regions, first, count, step)


def _are_spaced(regions: SelectionTable) -> BoolArray:
    """Tell which rows are boxes or evenly spaced elements along each axis."""
    single = (regions.count == 1) | (regions.block == 1)
    spaced: BoolArray = (regions.kind == SelectionKind.HYPERSLAB) & single.all(axis=1)
    return spaced


def _narrow_spaced(
    regions: SelectionTable, first: IntArray, count: IntArray, step: IntArray
) -> SelectionTable:
    """Narrow boxes and evenly spaced hyperslabs, all alike or each row by itself."""
    stride = np.where(regions.count == 1, 1, regions.stride)
    start = regions.start + first * stride
    contiguous = (stride * step == 1) | (count == 1)
    return regions.replace(
        start=start,
        stride=np.where(contiguous, 1, stride * step),
        count=np.where(contiguous, 1, count),
        block=np.where(contiguous, count, 1),
    )


def narrow_rows(
    regions: SelectionTable, first: IntArray, count: IntArray, step: IntArray
) -> SelectionTable:
    """Select within the results of selections of any kind, in each row other elements.

    Parameters
    ----------
    regions : SelectionTable
        Bound rows, each with elements.
    first, count, step : numpy.ndarray
        Shape ``(n, rank)``, where ``rank`` is the number of axes of the results: the elements
        to keep along each axis, at least one.

    Returns
    -------
    SelectionTable
        Rows whose results are those parts. The elements of a union that is not an outer
        product become points, in the same order.
    """
    spaced = _are_spaced(regions)
    listed = regions.kind == SelectionKind.POINTS
    tables, order = [], []
    for rows, narrow_part in (
        (np.flatnonzero(spaced), _narrow_spaced),
        (np.flatnonzero(listed), _narrow_points),
    ):
        if len(rows):
            parts = (column[rows] for column in (first, count, step))
            tables.append(narrow_part(regions.take(rows), *parts))
            order.append(rows)
    for row in np.flatnonzero(~(spaced | listed)).tolist():
        sides = zip(first[row].tolist(), count[row].tolist(), step[row].tolist(), strict=True)
        places = [a + s * np.arange(n, dtype=np.int64) for a, n, s in sides]
        tables.append(_narrow_union(regions, row, places))
        order.append(np.array([row]))
    return concat_at(tables, order)


def _narrow_points(
    regions: SelectionTable, first: IntArray, count: IntArray, step: IntArray
) -> SelectionTable:
    """Keep some points of each row."""
    begin, size, step = regions.first + first[:, 0], count[:, 0], step[:, 0]
    ordinal = ragged_ranges(np.zeros(len(size), dtype=np.int64), size)
    kept = np.repeat(begin, size) + ordinal * np.repeat(step, size)
    return regions.replace(first=row_offsets(size)[:-1], size=size, points=regions.points[kept])


def _narrow_union(
    regions: SelectionTable, row: int, places: Sequence[IntArray]
) -> SelectionTable:
    """Keep some elements of one union of blocks; ``places`` has those of each result axis."""
    if regions.kind[row] == SelectionKind.HYPERSLAB:
        columns = zip(
            *(c[row].tolist() for c in (regions.start, regions.stride, regions.block)),
            strict=True,
        )
        coords = [
            start + at // block * stride + at % block
            for (start, stride, block), at in zip(columns, places, strict=True)
        ]
    else:
        blocks = regions.list_rows(row)
        low, high = regions.block_start[blocks], regions.block_stop[blocks]
        outer = outer_axes(low, high)
        if outer is None:
            start, length = row_runs(low, high)
            run, within = _find_places(length, places[0])
            points = start[run]
            points[:, -1] += within
            return table_from_selections([Points(points)])
        coords = []
        for (begin, end), at in zip(outer, places, strict=True):
            interval, within = _find_places(end - begin, at)
            coords.append(begin[interval] + within)
    low, high = outer_blocks([merge_intervals(c, c + 1) for c in coords])
    return table_from_blocks(low[None], high[None])


def _find_places(length: IntArray, places: IntArray) -> tuple[IntArray, IntArray]:
    """Return the run of each place, and its distance from the begin of the run."""
    offsets = row_offsets(length)
    run = np.searchsorted(offsets, places, side="right") - 1
    return run, places - offsets[run]


def project(regions: SelectionTable, axes: Sequence[int]) -> SelectionTable:
    """Keep only the axes ``axes`` of bound selections.

    An outer product keeps the index sets of these axes, a point its coordinates. The elements
    of a union that is not an outer product become points.
    """
    axes = list(axes)
    columns = {name: getattr(regions, name)[:, axes] for name in AXIS_COLUMNS}
    kept = np.isin(
        regions.kind, (SelectionKind.POINTS, SelectionKind.HYPERSLAB, SelectionKind.BLOCKS)
    )
    table = regions.replace(
        rank=np.where(kept, len(axes), 0),
        points=regions.points[:, axes],
        block_start=regions.block_start[:, axes],
        block_stop=regions.block_stop[:, axes],
        **columns,
    )
    unions = np.flatnonzero(regions.kind == SelectionKind.BLOCKS).tolist()
    if not unions:
        return table
    rows = [table.take(np.flatnonzero(regions.kind != SelectionKind.BLOCKS))]
    order = [np.flatnonzero(regions.kind != SelectionKind.BLOCKS)]
    for row in unions:
        blocks = regions.list_rows(row)
        block_start, block_stop = regions.block_start[blocks], regions.block_stop[blocks]
        outer = outer_axes(block_start, block_stop)
        if outer is None:
            start, length = row_runs(block_start, block_stop)
            points = np.repeat(start, length, axis=0)
            points[:, -1] += ragged_ranges(np.zeros(len(length), dtype=np.int64), length)
            rows.append(table_from_selections([Points(points[:, axes])]))
        else:
            low, high = outer_blocks([outer[axis] for axis in axes])
            rows.append(table_from_blocks(low[None], high[None]))
        order.append(np.array([row]))
    return concat_at(rows, order)
