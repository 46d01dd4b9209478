"""Many selections as columns.

In: decoded selections, one row a reference. Out: bounds, shapes and counts of all rows at
once, and a single row as a value of `xref.selections.values`.

Regular hyperslabs, the common case, are four ``(n, ndim)`` columns. Points and unions of
blocks are lists of different lengths: all lists are in one long table, and each row has the
begin and the length of its list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays import FrozenColumns, IntArray, ragged_ranges, ragged_take, row_offsets
from xref.errors import SelectionError
from xref.selections.unions import (
    axis_intervals,
    outer_axes,
    outer_blocks,
    screen_unions,
    union_size,
)
from xref.selections.values import UNLIMITED, All, Blocks, Empty, Hyperslab, Points, Selection


class SelectionKind(IntEnum):
    """How the elements of one row are selected."""

    NULL = 0
    NONE = 1
    ALL = 2
    OBJECT = 3  # an object reference: a group, or all elements of a dataset
    POINTS = 4
    HYPERSLAB = 5
    BLOCKS = 6


KIND_NAMES = np.array(["null", "none", "all", "object", "points", "hyperslab", "blocks"])

_WHOLE = (SelectionKind.ALL, SelectionKind.OBJECT)
AXIS_COLUMNS = ("start", "stride", "count", "block")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SelectionTable(FrozenColumns):
    """Selections of n references, in elements; ``ndim`` is the largest rank among them."""

    kind: npt.NDArray[np.uint8]  # (n,), a `SelectionKind`
    rank: IntArray  # (n,), axes of the selection; 0 if its encoding does not have it
    start: IntArray  # (n, ndim)
    stride: IntArray  # (n, ndim)
    count: IntArray  # (n, ndim), may be `UNLIMITED`
    block: IntArray  # (n, ndim), may be `UNLIMITED`
    first: IntArray  # (n,), row of `points` or `block_start` with which the list begins
    size: IntArray  # (n,), length of the list
    points: IntArray  # (p, ndim)
    block_start: IntArray  # (b, ndim)
    block_stop: IntArray  # (b, ndim), exclusive

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def ndim(self) -> int:
        """Width of the coordinate columns."""
        return int(self.start.shape[1])

    def replace(self, **columns: Any) -> SelectionTable:
        """Return a table with other values in some columns."""
        mine = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return SelectionTable(**{**mine, **columns})

    def take(self, index: Any) -> SelectionTable:
        """Return the rows that ``index`` (slice, mask or positions) selects.

        If less than half of the list entries remain, the others are dropped from memory.
        """
        columns = {
            name: _take_rows(getattr(self, name), index)
            for name in ("kind", "rank", *AXIS_COLUMNS, "first", "size")
        }
        table = self.replace(**columns)
        n_entries = len(self.points) + len(self.block_start)
        return table._compact() if 2 * int(table.size.sum()) < n_entries else table

    def _compact(self) -> SelectionTable:
        is_points = self.kind == SelectionKind.POINTS
        first = self.first.copy()
        parts = {}
        for mask, names in (
            (is_points, ("points",)),
            (self.kind == SelectionKind.BLOCKS, ("block_start", "block_stop")),
        ):
            rows = ragged_ranges(self.first[mask], self.size[mask])
            first[mask] = row_offsets(self.size[mask])[:-1]
            for name in names:
                parts[name] = getattr(self, name)[rows]
        return self.replace(first=first, **parts)

    def list_rows(self, row: int) -> slice:
        """Return the rows of the list columns that belong to ``row``."""
        begin = int(self.first[row])
        return slice(begin, begin + int(self.size[row]))

    def selection(self, row: int) -> Selection | None:
        """Return one row as a value; None for a null row and for an object reference."""
        rank = int(self.rank[row])
        match SelectionKind(int(self.kind[row])):
            case SelectionKind.NULL | SelectionKind.OBJECT:
                return None
            case SelectionKind.NONE:
                return Empty()
            case SelectionKind.ALL:
                return All()
            case SelectionKind.POINTS:
                return Points(self.points[self.list_rows(row), :rank].copy())
            case SelectionKind.HYPERSLAB:
                columns = (self.start, self.stride, self.count, self.block)
                return Hyperslab(*(tuple(c[row, :rank].tolist()) for c in columns))
            case SelectionKind.BLOCKS:
                rows = self.list_rows(row)
                low, high = self.block_start[rows, :rank], self.block_stop[rows, :rank]
                return Blocks(low.copy(), high.copy())

    def bounds(self) -> tuple[IntArray, IntArray]:
        """Return the box around each selection.

        Returns
        -------
        start, stop : numpy.ndarray
            Shape ``(n, ndim)``, elements, stop exclusive. Rows that select all, an object or
            nothing (also null rows) have a start of 0. The stop is `UNLIMITED` for all, object
            and unlimited rows, and 0 for rows without elements.
        """
        if self._are_boxes():
            return self.start, self.start + self.block
        start = self.start.copy()
        stop = self.start + (self.count - 1) * self.stride + self.block
        unlimited = (self.count == UNLIMITED) | (self.block == UNLIMITED)
        if unlimited.any():
            stop[unlimited] = UNLIMITED
        empty = (self.kind == SelectionKind.NULL) | (self.kind == SelectionKind.NONE)
        start[empty], stop[empty] = 0, 0
        whole = np.isin(self.kind, _WHOLE)
        start[whole], stop[whole] = 0, UNLIMITED
        for kind, low, high in (
            (SelectionKind.POINTS, self.points, self.points),
            (SelectionKind.BLOCKS, self.block_start, self.block_stop),
        ):
            rows = np.flatnonzero((self.kind == kind) & (self.size > 0))
            if not len(rows):
                continue
            size = self.size[rows]
            cuts = row_offsets(size)[:-1]
            lowest = ragged_take(low, self.first[rows], size)
            highest = lowest if high is low else ragged_take(high, self.first[rows], size)
            start[rows] = np.minimum.reduceat(lowest, cuts, axis=0)
            one = int(kind == SelectionKind.POINTS)
            stop[rows] = np.maximum.reduceat(highest, cuts, axis=0) + one
        return start, stop

    def _are_boxes(self) -> bool:
        """Tell whether all rows are limited boxes; False unless the counts are a broadcast."""
        count = self.count
        repeats = len(self) > 0 and self.ndim > 0 and count.strides[0] == 0
        return bool(
            repeats
            and (count[0] == 1).all()
            and (self.kind == SelectionKind.HYPERSLAB).all()
            and int(self.block.min()) != UNLIMITED
        )

    def fits(self, extent: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Tell for each row whether it lies within a dataset of this extent, shape ``(n,)``."""
        bound = self.kind >= SelectionKind.POINTS
        right = ~bound | (self.rank == len(extent))
        _, stop = self._widen(len(extent)).bounds()
        right &= ~bound | (stop <= np.array(extent, dtype=np.int64)).all(axis=1)
        result: npt.NDArray[np.bool_] = right
        return result

    def bound_to(
        self, extent: tuple[int, ...], describe: Callable[[int], str], target: object = None
    ) -> SelectionTable:
        """Bind every row to a dataset of this extent.

        Rows that select all become the box of the extent; unlimited hyperslabs end with it.

        Parameters
        ----------
        extent : tuple of int
            The dataset's current shape.
        describe : callable
            Names row i in errors: file, variable, element.
        target : object, optional
            The dataset, which errors name by its text.

        Raises
        ------
        SelectionError
            If a selection has another rank or reaches beyond the extent.
        """
        ndim = len(extent)
        if self.ndim == ndim and self._are_boxes() and self._lie_within(extent):
            return self
        bound = self.kind >= SelectionKind.POINTS
        wrong = np.flatnonzero(bound & (self.rank != ndim))
        if len(wrong):
            row = int(wrong[0])
            raise SelectionError(
                f"{describe(row)} selects in {self.rank[row]} dimensions, "
                f"its target{_target_text(target)} has {ndim} (shape {extent})"
            )
        table = self._widen(ndim)
        whole = np.isin(table.kind, _WHOLE)
        unlimited = ((table.count == UNLIMITED) | (table.block == UNLIMITED)).any(axis=1)
        if whole.any() or unlimited.any():
            table = table._limit(extent, whole, unlimited)
        start, stop = table.bounds()
        outside = bound & ((start < 0) | (stop > np.array(extent, dtype=np.int64))).any(axis=1)
        if outside.any():
            row = int(np.flatnonzero(outside)[0])
            raise SelectionError(
                f"{describe(row)} selects from {tuple(start[row].tolist())} to "
                f"{tuple(stop[row].tolist())} (exclusive), beyond the extent {extent} of its "
                f"target{_target_text(target)}; the dataset may have shrunk since the "
                "reference was written"
            )
        return table

    def _lie_within(self, extent: tuple[int, ...]) -> bool:
        """Tell whether all rows, which are limited boxes, lie within an extent."""
        if int(self.rank.min()) < len(extent) or int(self.start.min()) < 0:
            return False
        # Compared without start + block, which may overflow.
        sides = ((self.start[:, axis], self.block[:, axis]) for axis in range(len(extent)))
        return all(
            bool((block <= extent[axis]).all() and (start <= extent[axis] - block).all())
            for axis, (start, block) in enumerate(sides)
        )

    def _widen(self, ndim: int) -> SelectionTable:
        """Give the coordinate columns exactly ``ndim`` axes."""
        if self.ndim == ndim:
            return self
        n = len(self)
        if self.ndim > ndim:
            names = (*AXIS_COLUMNS, "points", "block_start", "block_stop")
            return self.replace(**{name: getattr(self, name)[:, :ndim] for name in names})
        fills = {"start": 0, "stride": 1, "count": 1, "block": 1}
        columns = {name: np.full((n, ndim), fill) for name, fill in fills.items()}
        empty = np.zeros((0, ndim), dtype=np.int64)
        return self.replace(**columns, points=empty, block_start=empty, block_stop=empty)

    def _limit(
        self, extent: tuple[int, ...], whole: np.ndarray, unlimited: np.ndarray
    ) -> SelectionTable:
        columns = {name: getattr(self, name).copy() for name in AXIS_COLUMNS}
        kind, rank = self.kind.copy(), self.rank.copy()
        kind[whole] = SelectionKind.HYPERSLAB
        rank[whole] = len(extent)
        for name, value in (("start", 0), ("stride", 1), ("count", 1), ("block", extent)):
            columns[name][whole] = value
        first, size = self.first.copy(), self.size.copy()
        block_start, block_stop = [self.block_start], [self.block_stop]
        n_blocks = len(self.block_start)
        for row in np.flatnonzero(unlimited & ~whole).tolist():
            limited = [
                _limit_axis([int(columns[name][row, axis]) for name in columns], extent[axis])
                for axis in range(len(extent))
            ]
            if all(len(axis) == 4 for axis in limited):
                for name, values in zip(columns, zip(*limited, strict=True), strict=True):
                    columns[name][row] = values
                continue
            # The end of the axis cuts the last block: the selection is not regular.
            axes = [axis_intervals(*a) if len(a) == 4 else a for a in limited]
            low, high = outer_blocks(axes)
            kind[row] = SelectionKind.BLOCKS
            first[row], size[row] = n_blocks, len(low)
            n_blocks += len(low)
            block_start.append(low)
            block_stop.append(high)
            for name, value in (("start", 0), ("stride", 1), ("count", 1), ("block", 1)):
                columns[name][row] = value
        return self.replace(
            kind=kind,
            rank=rank,
            first=first,
            size=size,
            block_start=np.concatenate(block_start),
            block_stop=np.concatenate(block_stop),
            **columns,
        )

    def result_shapes(self) -> tuple[IntArray, IntArray]:
        """Return the shape of the result of each row; the rows must be bound to an extent.

        Returns
        -------
        ndim : numpy.ndarray
            Shape ``(n,)``: full rank for outer products, 1 otherwise.
        shape : numpy.ndarray
            Shape ``(n, max(ndim, 1))``, with 1 after each row's axes, so that the product
            over a row is its number of elements. Null rows have 0.
        """
        n = len(self)
        ndim = np.full(n, self.ndim, dtype=np.int64)
        shape = np.ones((n, max(self.ndim, 1)), dtype=np.int64)
        if self.ndim:
            shape[:] = self.count * self.block
        points = self.kind == SelectionKind.POINTS
        shape[points] = 1
        shape[points, 0] = self.size[points]
        ndim[points] = 1
        empty = (self.kind == SelectionKind.NULL) | (self.kind == SelectionKind.NONE)
        shape[empty] = 0
        ndim[empty] = max(self.ndim, 1)
        unions = np.flatnonzero(self.kind == SelectionKind.BLOCKS)
        for n_blocks in np.unique(self.size[unions]).tolist():
            rows = unions[self.size[unions] == n_blocks]
            entries = self.first[rows][:, None] + np.arange(n_blocks)
            starts, stops = self.block_start[entries], self.block_stop[entries]
            maybe_outer, sizes = screen_unions(starts, stops)
            ndim[rows], shape[rows], shape[rows, 0] = 1, 1, sizes
            for k in np.flatnonzero(maybe_outer | (sizes < 0)).tolist():
                axes = outer_axes(starts[k], stops[k]) if maybe_outer[k] else None
                if axes is not None:
                    ndim[rows[k]] = self.ndim
                    shape[rows[k]] = [int((b - a).sum()) for a, b in axes]
                elif sizes[k] < 0:
                    shape[rows[k], 0] = union_size(starts[k], stops[k])
        return ndim, shape

    def same_rows(self, other: SelectionTable) -> npt.NDArray[np.bool_]:
        """Compare row by row, shape ``(n,)``; how a selection is stored makes no difference."""
        same: npt.NDArray[np.bool_] = self.kind == other.kind
        regular = np.flatnonzero(same & (self.kind == SelectionKind.HYPERSLAB))
        if len(regular):
            equal = self.rank[regular] == other.rank[regular]
            width = min(self.ndim, other.ndim)
            for name in AXIS_COLUMNS:
                mine, theirs = getattr(self, name), getattr(other, name)
                equal &= (mine[regular, :width] == theirs[regular, :width]).all(axis=1)
            same[regular] = equal
        for row in np.flatnonzero(same & (self.size + other.size > 0)).tolist():
            same[row] = self.selection(row) == other.selection(row)
        return same


def _take_rows(column: npt.NDArray[Any], index: Any) -> npt.NDArray[Any]:
    """Index rows; a broadcast column stays a broadcast."""
    if column.ndim == 2 and column.strides[0] == 0 and len(column):
        n = len(np.empty(len(column), dtype=np.bool_)[index])
        return np.broadcast_to(column[:1], (n, column.shape[1]))
    if isinstance(index, np.ndarray) and index.dtype.kind == "i":
        return np.take(column, index, axis=0)  # ``column[index]`` takes several times as long
    result: npt.NDArray[Any] = column[index]
    return result


def _target_text(target: object) -> str:
    return "" if target is None else f" ({target})"


def _limit_axis(
    numbers: list[int], extent: int
) -> tuple[int, int, int, int] | tuple[IntArray, IntArray]:
    """End one axis of an unlimited hyperslab at ``extent``.

    Returns start, stride, count and block of a regular axis, or its intervals if ``extent``
    cuts the last block.
    """
    start, stride, count, block = numbers
    room = max(extent - start, 0)
    if block == UNLIMITED:
        return min(start, extent), 1, 1, room
    if count != UNLIMITED:
        return start, stride, count, block
    if room == 0:
        return min(start, extent), 1, 1, 0
    count = -(-room // stride)
    last = start + (count - 1) * stride
    if last + block <= extent:
        return start, stride, count, block
    if stride == block:
        return start, 1, 1, room
    begin = start + stride * np.arange(count, dtype=np.int64)
    return begin, np.minimum(begin + block, extent)
