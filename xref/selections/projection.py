"""Narrower selections: a part of the results, or fewer axes of the dataset.

In: a `SelectionTable` bound to an extent. Out: a table that selects less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xref.arrays import ragged_ranges
from xref.selections.table import AXIS_COLUMNS, SelectionKind, SelectionTable
from xref.selections.table_building import concat_at, table_from_blocks, table_from_selections
from xref.selections.unions import outer_axes, outer_blocks, row_runs
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
    single = (regions.count == 1) | (regions.block == 1)
    if not ((regions.kind == SelectionKind.HYPERSLAB) & single.all(axis=1)).all():
        return None
    first, count, step = (np.array(c, dtype=np.int64) for c in zip(*key, strict=True))
    stride = np.where(regions.count == 1, 1, regions.stride)
    start = regions.start + first * stride
    contiguous = (stride * step == 1) | (count == 1)
    return regions.replace(
        start=start,
        stride=np.where(contiguous, 1, stride * step),
        count=np.where(contiguous, 1, count),
        block=np.where(contiguous, count, 1),
    )


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
