"""Make selection tables: from columns, single selections, lists of blocks, other tables.

In: coordinates in elements, columns ``(n, ndim)``, or `xref.selections.values` values. Out: a
`SelectionTable` in which equal selections have one form, where that is cheap to find.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays import IntArray
from xref.errors import ResultTooLargeError
from xref.selections.table import SelectionKind, SelectionTable
from xref.selections.unions import outer_axes, regular_axis, regular_from_blocks, screen_unions
from xref.selections.values import All, Blocks, Empty, Hyperslab, Points, Selection


def concat_at(
    tables: Sequence[SelectionTable], order: Sequence[npt.NDArray[Any]]
) -> SelectionTable:
    """Concatenate tables; row i of table k becomes row ``order[k][i]`` of the result."""
    table = concat_tables(tables)
    place = np.concatenate(order) if order else np.zeros(0, dtype=np.int64)
    if (place[1:] > place[:-1]).all():
        return table
    back = np.empty(len(place), dtype=np.int64)
    back[place] = np.arange(len(place))
    return table.take(back)


def empty_table(n: int, ndim: int, kind: SelectionKind = SelectionKind.NULL) -> SelectionTable:
    """Return n rows of one kind, without coordinates."""
    start, shape = (np.full((1, ndim), fill, dtype=np.int64) for fill in (0, 1))
    start, shape = (np.broadcast_to(column, (n, ndim)) for column in (start, shape))
    return _table(n, kind, 0, start, shape)


def _table(
    n: int, kind: SelectionKind, rank: int, start: IntArray, block: IntArray
) -> SelectionTable:
    """Return n rows of one kind and rank, without lists; counts and strides are 1."""
    ndim = start.shape[1]
    nothing = np.zeros((0, ndim), dtype=np.int64)
    zeros = np.broadcast_to(np.zeros(1, dtype=np.int64), (n,))
    ones = np.broadcast_to(np.ones((1, ndim), dtype=np.int64), (n, ndim))
    return SelectionTable(
        kind=np.full(n, kind, dtype=np.uint8),
        rank=np.broadcast_to(np.array([rank]), (n,)),
        start=start,
        stride=ones,
        count=ones,
        block=block,
        first=zeros,
        size=zeros,
        points=nothing,
        block_start=nothing,
        block_stop=nothing,
    )


def box_table(start: IntArray, shape: IntArray) -> SelectionTable:
    """Return one box a row: ``shape`` elements from ``start``, both ``(n, ndim)``."""
    n, ndim = start.shape
    return _table(n, SelectionKind.HYPERSLAB, ndim, start, shape)


def strided_table(start: IntArray, size: IntArray, step: IntArray) -> SelectionTable:
    """Return one box a row: ``size`` elements from ``start`` on, every ``step`` elements.

    All have the shape ``(n, ndim)``; each size is at least 0, each step at least 1.
    """
    spaced = (step != 1) & (size > 1)
    if not spaced.any():
        return box_table(start, size)
    return box_table(start, np.where(spaced, 1, size)).replace(
        stride=np.where(spaced, step, 1), count=np.where(spaced, size, 1)
    )


def concat_tables(tables: Iterable[SelectionTable]) -> SelectionTable:
    """Concatenate the rows of several tables."""
    tables = list(tables)
    if not tables:
        return empty_table(0, 0)
    if len(tables) == 1:
        return tables[0]
    ndim = max(t.ndim for t in tables)
    tables = [t if t.ndim == ndim else _pad_axes(t, ndim) for t in tables]
    # Lists of later tables follow those of earlier ones, so their rows shift.
    first, n_points, n_blocks = [], 0, 0
    for t in tables:
        shift: IntArray | int = 0
        if len(t.points) + len(t.block_start):
            shift = np.where(
                t.kind == SelectionKind.POINTS,
                n_points,
                np.where(t.kind == SelectionKind.BLOCKS, n_blocks, 0),
            )
        first.append(t.first + shift if np.any(shift) else t.first)
        n_points += len(t.points)
        n_blocks += len(t.block_start)
    columns = {
        name: _concat_columns([getattr(t, name) for t in tables])
        for name in SelectionTable.__dataclass_fields__
        if name != "first"
    }
    return SelectionTable(first=_concat_columns(first), **columns)


def _concat_columns(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Concatenate columns; if all broadcast one row, the result broadcasts it too."""
    parts = [part for part in parts if len(part)] or parts[:1]
    first = parts[0]
    if (
        len(first)
        and first.strides[0] == 0
        and all(part.strides[0] == 0 and (part[:1] == first[:1]).all() for part in parts)
    ):
        return np.broadcast_to(first[:1], (sum(map(len, parts)), *first.shape[1:]))
    return np.concatenate(parts)


def _pad_axes(table: SelectionTable, ndim: int) -> SelectionTable:
    """Add axes of one element after the last axis."""
    more = ndim - table.ndim
    fills = {"start": 0, "stride": 1, "count": 1, "block": 1, "points": 0}
    fills |= {"block_start": 0, "block_stop": 1}
    return table.replace(
        **{
            name: np.pad(getattr(table, name), ((0, 0), (0, more)), constant_values=fill)
            for name, fill in fills.items()
        }
    )


def table_from_selections(selections: Sequence[Selection | None]) -> SelectionTable:
    """Return a table with one row for each selection; None becomes a null row."""
    return concat_tables([_one_row(s) for s in selections])


def _one_row(selection: Selection | None) -> SelectionTable:
    match selection:
        case None:
            return empty_table(1, 0)
        case Empty():
            return empty_table(1, 0, SelectionKind.NONE)
        case All():
            return empty_table(1, 0, SelectionKind.ALL)
        case Points(coords=coords):
            n, ndim = coords.shape
            return empty_table(1, ndim, SelectionKind.POINTS).replace(
                rank=np.array([ndim]), size=np.array([n]), points=coords
            )
        case Hyperslab(start=start, stride=stride, count=count, block=block):
            columns = {"start": start, "stride": stride, "count": count, "block": block}
            rows = {k: np.array([v], dtype=np.int64).reshape(1, -1) for k, v in columns.items()}
            return empty_table(1, len(start), SelectionKind.HYPERSLAB).replace(
                rank=np.array([len(start)]), **rows
            )
        case Blocks(start=low, stop=high):
            return table_from_blocks(low[None], high[None])
    raise TypeError(f"not a selection: {selection!r}")


def table_from_blocks(start: IntArray, stop: IntArray) -> SelectionTable:
    """Return one row for each list of blocks; regular lists become hyperslabs.

    Parameters
    ----------
    start, stop : numpy.ndarray
        Shape ``(m, n_blocks, ndim)``, elements, stop exclusive, no block empty.
    """
    m, n_blocks, ndim = start.shape
    regular, low, stride, count, block = regular_from_blocks(start, stop)
    maybe_outer, _ = screen_unions(start, stop)
    for row in np.flatnonzero(~regular & maybe_outer).tolist():
        # Blocks in another order, or cut otherwise, may still be a regular set.
        try:
            axes = outer_axes(start[row], stop[row])
        except ResultTooLargeError:
            continue  # stays a list; its `result_shapes` raises
        numbers = [regular_axis(*axis) for axis in axes] if axes is not None else [None]
        if all(numbers):
            regular[row] = True
            low[row], stride[row], count[row], block[row] = np.array(numbers).T
    table = empty_table(m, ndim, SelectionKind.HYPERSLAB).replace(
        rank=np.broadcast_to(np.array([ndim]), (m,)),
        start=low,
        stride=stride,
        count=count,
        block=block,
    )
    if regular.all():
        return table
    union = ~regular
    ones = np.ones(ndim, dtype=np.int64)
    return table.replace(
        kind=np.where(union, SelectionKind.BLOCKS, SelectionKind.HYPERSLAB).astype(np.uint8),
        start=np.where(union[:, None], 0, low),
        stride=np.where(union[:, None], ones, stride),
        count=np.where(union[:, None], ones, count),
        block=np.where(union[:, None], ones, block),
        first=np.where(union, np.cumsum(union) * n_blocks - n_blocks, 0),
        size=np.where(union, n_blocks, 0),
        block_start=start[union].reshape(-1, ndim),
        block_stop=stop[union].reshape(-1, ndim),
    )
