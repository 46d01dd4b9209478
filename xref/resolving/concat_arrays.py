"""Lazy arrays of results that follow each other along one axis.

In: references whose results agree along all axes but one, and an index from xarray or Dask.
Out: NumPy arrays. An element along the joined axis is called a row here, on whichever axis.

1. An index of the joined axis becomes evenly spaced rows, and these are cut where one result
   ends and the next begins (`cut_rows`).
2. The selection of each reference is narrowed to its rows, so that no other elements are read.
3. Each piece is read straight to its place in the output. The output may have axes before the
   joined axis: a piece is then a box with strides in it, as in padded results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from xref.arrays import IntArray, ragged_ranges, row_offsets, row_strides
from xref.engine import Axis, index_outer
from xref.hdf5 import item_dtype, unfold_subarray
from xref.reading import SmallDatasets, plan_parts
from xref.references import ReferenceArray
from xref.resolving.bound_references import (
    Array,
    BoundDataset,
    BoundReferences,
    Shape,
    open_small,
    restrict_small,
)
from xref.resolving.lazy_results import BlockReads, CommonDecoding, ReferenceResults, Spans
from xref.resolving.read_results import check_size, read_results
from xref.resolving.sample_axis import OFFSET_STRIDE
from xref.selections import SelectionTable, concat_at, narrow_rows

MAX_PIECES = 1 << 22
"""Pieces (results that meet a Dask block) of blocks that are read together. With more, as from
many blocks along other axes, each block is read by itself."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pieces:
    """Evenly spaced rows of single results: the parts of some windows of the joined axis."""

    window: IntArray  # (p,), the window that the piece is part of
    reference: IntArray  # (p,)
    first: IntArray  # (p,), first row in the result of the reference
    count: IntArray  # (p,), rows
    step: IntArray  # (p,), distance between rows
    place: IntArray  # (p,), first row in the window


def cut_rows(offsets: IntArray, start: IntArray, count: IntArray, step: IntArray) -> Pieces:
    """Cut windows of evenly spaced rows where one result ends and the next begins.

    Parameters
    ----------
    offsets : numpy.ndarray
        Shape ``(n + 1,)``: the row with which each result begins, then the number of rows.
    start, count, step : numpy.ndarray
        Shape ``(w,)``: the rows of each window, at least one.
    """
    first = np.searchsorted(offsets, start, side="right") - 1
    last = np.searchsorted(offsets, start + (count - 1) * step, side="right") - 1
    n_each = last - first + 1
    window = np.repeat(np.arange(len(start)), n_each)
    reference = ragged_ranges(first, n_each)
    start, count, step = start[window], count[window], step[window]
    # Rows of the window before the result, and before its end; both rounded up.
    low = np.maximum(-((start - offsets[reference]) // step), 0)
    high = np.minimum(-((start - offsets[reference + 1]) // step), count)
    columns = {
        "window": window,
        "reference": reference,
        "first": start + low * step - offsets[reference],
        "count": high - low,
        "step": step,
        "place": low,
    }
    kept = np.flatnonzero(high > low)
    if len(kept) < len(low):
        columns = {name: column[kept] for name, column in columns.items()}
    return Pieces(**columns)


def axis_lengths(bound: BoundReferences, rank: int, axis: int) -> IntArray:
    """Return the number of rows of each result; results of another rank have no elements."""
    if axis >= bound.shape.shape[1]:
        return np.zeros(len(bound.ndim), dtype=np.int64)
    return np.where(bound.ndim == rank, bound.shape[:, axis], 0)


class ConcatArray(ReferenceResults):
    """Results that follow each other along one axis, in the order of their references.

    ``result_shape`` is the shape of all results together, without the axes of an HDF5 array
    type. ``axis`` is the joined one of its axes.

    Only some row offsets are kept, so that the array pickles small: one for each stretch of
    about `OFFSET_STRIDE` references. The offsets between are computed from the references.
    """

    def __init__(
        self,
        references: ReferenceArray,
        axis: int,
        result_shape: Shape,
        decoding: CommonDecoding,
        bound: BoundReferences,
    ) -> None:
        self.references, self.axis, self._bound = references, axis, bound
        self.result_shape = result_shape
        self.raw_dtype, self.dtype = decoding.dtype, decoding.values_dtype
        self.decode, self.decoders = decoding.decode, decoding.decoders
        self.shape = result_shape + item_dtype(decoding.dtype)[1]
        # A stretch is a slice of the first axis, so that it is a box of stored references.
        n_slices = references.shape[0] if references.ndim else 1
        per_slice = references.size // max(n_slices, 1)
        self.stretch = max(OFFSET_STRIDE // max(per_slice, 1), 1)
        offsets = row_offsets(axis_lengths(bound, len(result_shape), axis))
        begins = np.arange(0, n_slices, self.stretch) * per_slice
        self.coarse_offsets = offsets[begins]

    def narrow_to_blocks(self, blocks: Sequence[Spans]) -> tuple[ReferenceResults, list[Spans]]:
        """Return the array itself: the first axis is not that of references."""
        return self, list(blocks)

    def flat_blocks(self, blocks: Sequence[Spans]) -> BlockReads | None:
        """Plan the reads of some blocks; see `ReferenceResults`.

        None also if the blocks cut the axes of an array type, or meet too many results.
        """
        rank = len(self.result_shape)
        whole_items = tuple((0, n) for n in self.shape[rank:])
        bound = self._bind(self.references)
        if bound.small_by_file or any(spans[rank:] != whole_items for spans in blocks):
            return None
        spans = np.array([spans[:rank] for spans in blocks], dtype=np.int64)
        low, shape = spans[:, :, 0], spans[:, :, 1] - spans[:, :, 0]
        offsets = row_offsets(axis_lengths(bound, rank, self.axis))
        begin, end = low[:, self.axis], low[:, self.axis] + shape[:, self.axis]
        n_met = np.searchsorted(offsets, end) - np.searchsorted(offsets, begin, "right") + 1
        if (shape == 0).any() or int(n_met.sum()) > MAX_PIECES:
            return None
        pieces = cut_rows(offsets, begin, end - begin, np.ones(len(blocks), dtype=np.int64))
        bounds = row_offsets(shape.prod(axis=1))
        check_size(int(np.diff(bounds).max()), self.raw_dtype, bound, self._label)
        first, count = low[pieces.window], shape[pieces.window]
        ones = np.ones((1, rank), dtype=np.int64)
        part = self._narrow_to_pieces(bound, pieces, first, count, ones)
        strides = row_strides(shape)[pieces.window]
        dst = bounds[pieces.window] + pieces.place * strides[:, self.axis]
        reads = tuple(
            (target, plan_parts(target.regions, dst[target.rows], strides[target.rows]))
            for target in part.datasets
        )

        def finish(block: int, flat: Array) -> Array:
            return self._decode_values(flat, tuple(shape[block].tolist()))

        reader = self.references.options.reader
        return BlockReads(bounds, self.raw_dtype, reads, self.decoders, reader, finish)

    def _read(self, key: tuple[Axis, ...]) -> Array:
        rank, axis = len(self.result_shape), self.axis
        sides, rest = [], []
        for k, n in zip(key[:rank], self.result_shape, strict=True):
            side, remains = _index_axis(k, n)
            sides.append(side)
            rest.append(remains)
        windows, rest[axis] = _index_rows(key[axis], self.result_shape[axis])
        sides[axis] = (0, int(windows[1].sum()), 1)
        shape = tuple(count for _, count, _ in sides)
        values = self._decode_values(self._read_windows(windows, sides), shape)
        return index_outer(values, 0, (*rest, *key[rank:]))

    def _read_windows(
        self, windows: tuple[IntArray, ...], sides: Sequence[tuple[int, int, int]]
    ) -> Array:
        """Read windows of rows into a new flat array.

        ``windows`` and ``sides`` are start, count and step: of each window, and along each
        axis. The start along the joined axis has no meaning.
        """
        start, count, step = windows
        shape = tuple(n for _, n, _ in sides)
        if 0 in shape:
            return np.empty(0, dtype=self.raw_dtype)
        last = int((start + (count - 1) * step).max())
        bound, offsets = self.bind_stretch(int(start.min()), last + 1)
        pieces = cut_rows(offsets, start, count, step)
        box = np.array(sides, dtype=np.int64).T[:, np.newaxis]
        part = self._narrow_to_pieces(bound, pieces, *box)
        check_size(math.prod(shape), self.raw_dtype, part, self._label)
        out = np.empty(math.prod(shape), dtype=self.raw_dtype)
        row = row_offsets(count)[pieces.window] + pieces.place
        dst = row * math.prod(shape[self.axis + 1 :])
        read_results(part, out, dst, shape, self.references.options.reader, self.decoders)
        return out

    def bind_stretch(self, low: int, high: int) -> tuple[BoundReferences, IntArray]:
        """Bind the stretches of references with rows ``low:high``; return their offsets."""
        first = max(int(np.searchsorted(self.coarse_offsets, low, side="right")) - 1, 0)
        last = int(np.searchsorted(self.coarse_offsets, high, side="left"))
        part = self.references
        if first > 0 or last < len(self.coarse_offsets):
            part = part[first * self.stretch : last * self.stretch]
        bound = self._bind(part)
        lengths = axis_lengths(bound, len(self.result_shape), self.axis)
        return bound, int(self.coarse_offsets[first]) + row_offsets(lengths)

    def _narrow_to_pieces(
        self,
        bound: BoundReferences,
        pieces: Pieces,
        first: IntArray,
        count: IntArray,
        step: IntArray,
    ) -> BoundReferences:
        """Narrow the selections to pieces; row i of the result is piece i.

        ``first``, ``count`` and ``step``, shape ``(p, rank)`` or ``(1, rank)``, are the
        elements along the other axes.
        """
        rows, n = pieces.reference, len(pieces.reference)
        rank = len(self.result_shape)
        shape = np.ones((n, bound.shape.shape[1]), dtype=np.int64)
        shape[:, :rank] = count
        shape[:, self.axis] = pieces.count
        whole = np.ones(n, dtype=bool)
        for axis in range(rank):  # by columns, which is faster
            whole &= shape[:, axis] == bound.shape[rows, axis]
        small, datasets = _pieces_of_small(bound, rows, whole)
        narrowed = []
        for target, numbers, own_rows in _pieces_of_targets(datasets, bound, rows):
            regions = _take_rows(target.regions, own_rows)
            cut = np.flatnonzero(~whole[numbers])
            if len(cut):
                kept, at = np.flatnonzero(whole[numbers]), numbers[cut]
                columns = [np.broadcast_to(c, (n, rank))[at] for c in (first, count, step)]
                own = pieces.first, pieces.count, pieces.step
                for column, along in zip(columns, own, strict=True):
                    column[:, self.axis] = along[at]
                narrow = narrow_rows(regions.take(cut), *columns)
                regions = concat_at([regions.take(kept), narrow], [kept, cut])
            narrowed.append(replace(target, rows=numbers, regions=regions))
        return replace(
            bound,
            datasets=tuple(narrowed),
            small_by_file=small,
            ndim=np.full(n, rank, dtype=np.int64),
            shape=shape,
            null=np.zeros(n, dtype=bool),
            rows=rows if bound.rows is None else bound.rows[rows],
        )

    def _decode_values(self, flat: Array, shape: Shape) -> Array:
        values = unfold_subarray(flat.reshape(shape))
        return values if self.decode is None else self.decode(values)


def _take_rows(regions: SelectionTable, rows: IntArray) -> SelectionTable:
    """Return some rows; the table itself if those are all rows in their order."""
    same = len(rows) == len(regions) and bool((rows == np.arange(len(rows))).all())
    return regions if same else regions.take(rows)


def _pieces_of_small(
    bound: BoundReferences, reference: IntArray, whole: Array
) -> tuple[tuple[SmallDatasets, ...], list[BoundDataset]]:
    """Find the small datasets of whole pieces; open those that pieces cut, beside the others.

    The rows of the small datasets are numbers of pieces, and those of the opened ones are rows
    of ``bound``, as in ``bound.datasets``.
    """
    datasets = list(bound.datasets)
    if not bound.small_by_file:
        return (), datasets
    cut = np.zeros(len(bound.ndim), dtype=bool)
    cut[reference[~whole]] = True
    for few in restrict_small(bound.small_by_file, cut):
        datasets.extend(open_small(few))
    found = []
    for small in bound.small_by_file:
        which = np.full(len(bound.ndim), -1, dtype=np.int64)
        which[small.rows] = small.which
        which = np.where(whole, which[reference], -1)
        numbers = np.flatnonzero(which >= 0)
        numbers = numbers[np.argsort(which[numbers], kind="stable")]
        if len(numbers):
            found.append(replace(small, rows=numbers, which=which[numbers]))
    return tuple(found), datasets


def _pieces_of_targets(
    datasets: Sequence[BoundDataset], bound: BoundReferences, reference: IntArray
) -> list[tuple[BoundDataset, Array, Array]]:
    """Return each dataset with pieces, their numbers, and their rows in its selections."""
    owner = np.full(len(bound.ndim), -1, dtype=np.int64)
    row = np.zeros(len(bound.ndim), dtype=np.int64)
    for k, target in enumerate(datasets):
        owner[target.rows] = k
        row[target.rows] = np.arange(len(target.regions))
    owner = owner[reference]
    order = np.argsort(owner, kind="stable")
    cuts = np.searchsorted(owner[order], np.arange(len(datasets) + 1))
    found = []
    for k in np.unique(owner[owner >= 0]).tolist():
        numbers = order[cuts[k] : cuts[k + 1]]
        found.append((datasets[k], numbers, row[reference[numbers]]))
    return found


def _index_rows(key: Axis, n: int) -> tuple[tuple[IntArray, ...], Axis]:
    """Return start, count and step of ascending windows of rows, and the index that remains.

    No row is in two windows.
    """
    if isinstance(key, np.ndarray):
        rows, order = np.unique(np.where(key < 0, key + n, key), return_inverse=True)
        begin = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        count = np.diff(np.append(begin, len(rows)))
        return (rows[begin], count, np.ones_like(count)), order.reshape(-1)
    window, remains = _index_axis(key, n)
    return tuple(np.full(int(window[1] > 0), column) for column in window), remains


def _index_axis(key: Axis, n: int) -> tuple[tuple[int, int, int], Axis]:
    """Return start, count and step of elements of an axis, and the index that remains."""
    if isinstance(key, np.ndarray):
        key = np.where(key < 0, key + n, key)
        low = int(key.min(initial=n))
        return (low, int(key.max(initial=low - 1)) + 1 - low, 1), key - low
    if not isinstance(key, slice):
        return (range(n)[int(key)], 1, 1), 0
    picked = range(n)[key]
    if picked.step > 0:
        return (picked.start, len(picked), picked.step), slice(None)
    picked = picked[::-1]
    return (picked.start, len(picked), picked.step), slice(None, None, -1)
