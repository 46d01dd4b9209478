"""Selections made narrower: within their results, or onto some of their axes.

In: fitted regions. Out: regions that select less.
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
        Fitted rows whose results share one shape of full rank.
    key : sequence of (start, count, step)
        What is wanted along each axis of the results.

    Returns
    -------
    SelectionTable or None
        None when a row is of another kind, so results must be cut after reading.
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
    """Drop the axes of fitted selections that are not among ``axes``.

    What stays is the selection's shadow: the index sets of an outer product, each
    point's coordinates. Unions that are no outer product become their elements.
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
        at = regions.list_rows(row)
        outer = outer_axes(regions.block_start[at], regions.block_stop[at])
        if outer is None:
            start, length = row_runs(regions.block_start[at], regions.block_stop[at])
            points = np.repeat(start, length, axis=0)
            points[:, -1] += ragged_ranges(np.zeros(len(length), dtype=np.int64), length)
            rows.append(table_from_selections([Points(points[:, axes])]))
        else:
            low, high = outer_blocks([outer[axis] for axis in axes])
            rows.append(table_from_blocks(low[None], high[None]))
        order.append(np.array([row]))
    return concat_at(rows, order)
