"""Lazy arrays of what references select: stacked, padded, ragged, or made of each region.

In: a `ReferenceArray`, an index from xarray or dask. Out: NumPy arrays. Each class
pickles as the place of its references and a few numbers.

An index is read by itself. Where many blocks are wanted together, `flat_blocks` says
what all of them read, so that `xref.resolving.shuffle` can read every chunk once for all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xref.arrays import IntArray, exact_values, ragged_ranges, row_offsets, row_strides
from xref.engine import Axis, Decoders, Decoding, LazyArray, index_outer, with_items
from xref.hdf5 import item_dtype, unfold_subarray
from xref.reading import Parts, plan_parts
from xref.references import ReferenceArray
from xref.resolving.read_results import (
    BoundDataset,
    BoundReferences,
    bind_references,
    check_size,
    decoding_rows,
    read_results,
    result_cells,
)
from xref.selections import narrow
from xref.storage import check_unchanged

Spans: TypeAlias = tuple[tuple[int, int], ...]
"""First and last position of a block, plus one, along each axis."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockReads:
    """Blocks of an array as stretches of one flat output, and what is read into it."""

    bounds: IntArray  # (b + 1,), elements
    dtype: np.dtype[Any]
    reads: tuple[tuple[BoundDataset, Parts], ...]
    decoders: Decoders | None  # of what is read; None for values as stored
    reader: str
    finish: Callable[[int, npt.NDArray[Any]], npt.NDArray[Any]]  # block, its stretch


class ReferenceResults(LazyArray):
    """Base of the arrays whose blocks can be read together."""

    references: ReferenceArray
    raw_dtype: np.dtype[Any]

    @property
    def in_place(self) -> bool:
        """Whether values are read where they stay, so that reading takes no more memory."""
        return True

    def block_nbytes(self, blocks: Sequence[Spans]) -> list[int]:
        """Return the bytes that are read for each of some blocks."""
        return [
            math.prod(stop - start for start, stop in spans) * self.dtype.itemsize
            for spans in blocks
        ]

    def read_block(self, spans: Spans) -> npt.NDArray[Any]:
        """Read one block by itself."""
        return self._read(tuple(slice(*span) for span in spans))

    def flat_blocks(self, blocks: Sequence[Spans]) -> BlockReads | None:
        """Say what is read for some blocks of the array.

        Parameters
        ----------
        blocks : sequence of tuple
            (start, stop) along each axis of the array.

        Returns
        -------
        FlatBlocks or None
            None where a block does not hold whole results, nor boxes of them, and where
            there are small datasets, each read whole.
        """
        raise NotImplementedError

    def part(self, blocks: Sequence[Spans]) -> tuple[ReferenceResults, list[Spans]]:
        """Return an array of the references of some blocks only, and the blocks in it."""
        return self, list(blocks)

    def _part_of_rows(self, blocks: Sequence[Spans]) -> tuple[ReferenceResults, list[Spans]]:
        """Do so for an array whose first axis is that of the references."""
        if not self.references.ndim:
            return self, list(blocks)
        low = min(spans[0][0] for spans in blocks)
        high = max(spans[0][1] for spans in blocks)
        if high - low == self.shape[0]:
            return self, list(blocks)
        array = copy.copy(self)  # without what is known of all references
        array.references = self.references[low:high]
        array.shape = (high - low, *self.shape[1:])
        moved = [((spans[0][0] - low, spans[0][1] - low), *spans[1:]) for spans in blocks]
        return array, moved

    def _rows(self, blocks: Sequence[Spans]) -> list[npt.NDArray[np.intp]]:
        """Return which references, in C order, each block is of."""
        grid = np.arange(self.references.size).reshape(self.references.shape)
        sides = [tuple(slice(*span) for span in spans[: grid.ndim]) for spans in blocks]
        return [grid[side].reshape(-1) for side in sides]


def _planned(
    bound: BoundReferences,
    rows: npt.NDArray[np.intp],
    dst: IntArray,
    cell: tuple[int, ...] | None = None,
) -> list[tuple[BoundDataset, Parts]]:
    """Plan some of the references, each with its place in a flat output."""
    place = np.full(len(bound.ndim), -1, dtype=np.int64)
    place[rows] = dst
    found = []
    for target in bound.single:
        at = place[target.rows]
        kept = np.flatnonzero(at >= 0)
        if len(kept):
            regions, cells = target.regions, result_cells(bound, target, cell)
            if len(kept) < len(at):
                regions, cells, at = regions.take(kept), cells[kept], at[kept]
            found.append((target, plan_parts(regions, at, row_strides(cells))))
    return found


def _pick(bound: BoundReferences, rows: npt.NDArray[np.intp]) -> BoundReferences:
    """Return the shapes of some results, without their targets."""
    shapes = {name: getattr(bound, name)[rows] for name in ("ndim", "shape", "null")}
    return replace(bound, single=(), small=(), **shapes)


@dataclass(frozen=True, slots=True)
class MissingValue:
    """What stands for elements without data, among decoded values.

    Attributes
    ----------
    decoders : Decoders
    values : tuple
        One for all targets, or one for those of each decoding, in the order of the
        decodings: null references have the first one then.
    dtype : numpy.dtype
        That holds decoded values and these.
    """

    decoders: Decoders
    values: tuple[Any, ...]
    dtype: np.dtype[Any]

    def put(
        self,
        values: npt.NDArray[Any],
        valid: npt.NDArray[np.bool_],
        bound: BoundReferences,
    ) -> None:
        """Fill the elements that are not valid; the first axis counts the references."""
        if not self.values:
            return
        which = np.zeros(len(valid), dtype=np.int64)
        if len(self.values) > 1:
            which = decoding_rows(bound, self.decoders)
            which[which < 0] = 0
        for k, value in enumerate(self.values):
            own = ~valid
            if len(self.values) > 1:
                own[which != k] = False
            if values.dtype.kind == "O":
                one = np.empty((), dtype=object)
                one[()] = value  # an empty sequence is one value
                values[own] = one
            else:
                values[own] = value  # for array types, one for each item


class PaddingMask(LazyArray):
    """Where padded results have data; shape and index as of their `StackArray`."""

    def __init__(self, references: ReferenceArray, cell: tuple[int, ...]) -> None:
        self.references = references
        self.cell = cell
        self.dtype = np.dtype(bool)
        self.shape = references.shape + cell

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        split = self.references.ndim
        references = pick_references(self.references, key[:split])
        bound = _bind_unchanged(references)
        inner = key[split:]
        positions = [
            np.atleast_1d(np.arange(n)[k]) for n, k in zip(self.cell, inner, strict=True)
        ]
        mask = bound.valid(positions)
        mask = mask.reshape(references.shape + tuple(len(p) for p in positions))
        picked = tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in inner)
        return index_outer(mask, references.ndim, picked)


class StackArray(ReferenceResults):
    """Results of one shape stacked over the references; also padded ones.

    Shape: the references' shape, then ``cell``. Values are decoded

    - not at all: ``dtype`` is that of the stored values;
    - all together by ``decode``, after they were read: so is ``dtype``;
    - those of each target by itself, as they are read, by ``decoders``: ``dtype`` is the
      one that holds all of them.

    ``fill`` says what stands for elements without data.
    """

    def __init__(
        self,
        references: ReferenceArray,
        cell: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        decode: Decoding | None = None,
        decoders: Decoders | None = None,
        fill: MissingValue | None = None,
        padded: bool = False,
        bound: BoundReferences | None = None,
    ) -> None:
        self.references = references
        self.cell = cell
        self.raw_dtype = dtype
        self.dtype, item_shape = item_dtype(dtype)
        self.decode = decode
        self.decoders = decoders
        if decode is not None:
            self.dtype = decode.dtype
        if fill is not None:
            self.dtype = fill.dtype
        self.fill = fill
        self.padded = padded
        self.shape = references.shape + cell + item_shape
        self._bound = bound

    @property
    def in_place(self) -> bool:
        """Whether nothing is decoded or filled; see `ReferenceResults`."""
        return self.fill is None and self.decode is None

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        split = self.references.ndim
        references = pick_references(self.references, key[:split])
        inner, item_key = key[split : split + len(self.cell)], key[split + len(self.cell) :]
        known = getattr(self, "_bound", None) if references is self.references else None
        bound = _bind_unchanged(references, known)
        cell = self.cell
        narrowed = None if self.padded else _narrowed(bound, inner, cell)
        if narrowed is not None:
            bound, cell = narrowed
            inner = tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in inner)
        n_cell = math.prod(cell)
        n = references.size
        check_size(n * n_cell, self.raw_dtype, bound, "the result")
        make = np.empty if self.fill is None else np.zeros
        out = make(n * n_cell, dtype=self.raw_dtype)
        read_results(
            bound,
            out,
            np.arange(n, dtype=np.int64) * n_cell,
            cell if self.padded else None,
            references.options.reader,
            self.decoders,
        )
        values = self._finish(out, references.shape, cell, bound)
        return index_outer(values, references.ndim, (*inner, *item_key))

    def _finish(
        self,
        flat: npt.NDArray[Any],
        shape: tuple[int, ...],
        cell: tuple[int, ...],
        bound: BoundReferences,
    ) -> npt.NDArray[Any]:
        """Shape what was read for references of ``shape``; fill what has no data."""
        values = unfold_subarray(flat.reshape(shape + cell))
        if self.decode is not None:
            values = self.decode(values)
        if self.fill is not None:
            values = exact_values(values, self.dtype)
            if not values.flags.writeable:
                values = values.copy()
            valid = bound.valid([np.arange(n) for n in cell])
            by_reference = values.reshape(len(valid), *values.shape[len(shape) :])
            self.fill.put(by_reference, valid, bound)
        return values

    def part(self, blocks: Sequence[Spans]) -> tuple[ReferenceResults, list[Spans]]:
        """Return an array of the references of some blocks; see `ReferenceResults`."""
        return self._part_of_rows(blocks)

    def flat_blocks(self, blocks: Sequence[Spans]) -> BlockReads | None:
        """Say what is read for some blocks; see `ReferenceResults`."""
        split = self.references.ndim
        end = split + len(self.cell)
        bound = _bind_unchanged(self.references, getattr(self, "_bound", None))
        items_whole = tuple((0, n) for n in self.shape[end:])
        if bound.small or any(spans[end:] != items_whole for spans in blocks):
            return None
        parts_of: dict[Spans, tuple[BoundReferences, tuple[int, ...]]] = {}
        for spans in blocks:
            inner = spans[split:end]
            if inner in parts_of:
                continue
            if inner == tuple((0, n) for n in self.cell):
                parts_of[inner] = bound, self.cell
                continue
            key = tuple(slice(*span) for span in inner)
            narrowed = None if self.padded else _narrowed(bound, key, self.cell)
            if narrowed is None:
                return None
            parts_of[inner] = narrowed
        rows = self._rows(blocks)
        cells = [parts_of[spans[split:end]][1] for spans in blocks]
        n_cell = [math.prod(cell) for cell in cells]
        sizes = [len(r) * n for r, n in zip(rows, n_cell, strict=True)]
        bounds = row_offsets(np.array(sizes, dtype=np.int64))
        check_size(max(sizes), self.raw_dtype, bound, "the result")
        reads: list[tuple[BoundDataset, Parts]] = []
        for inner, (part, cell) in parts_of.items():
            of = [i for i, spans in enumerate(blocks) if spans[split:end] == inner]
            dst = [int(bounds[i]) + np.arange(len(rows[i])) * n_cell[i] for i in of]
            picked = np.concatenate([rows[i] for i in of])
            reads += _planned(part, picked, np.concatenate(dst), cell if self.padded else None)

        def finish(block: int, flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
            spans = blocks[block]
            shape = tuple(stop - start for start, stop in spans[:split])
            part = parts_of[spans[split:end]][0]
            return self._finish(flat, shape, cells[block], _pick(part, rows[block]))

        return BlockReads(
            bounds=bounds,
            dtype=self.raw_dtype,
            reads=tuple(reads),
            decoders=self.decoders,
            reader=self.references.options.reader,
            finish=finish,
        )


def pick_references(references: ReferenceArray, key: tuple[Axis, ...]) -> ReferenceArray:
    """Index references by integers, slices and arrays, each on its own axis."""
    sides = zip(key, references.shape, strict=True)
    if all(isinstance(k, slice) and k.indices(n) == (0, n, 1) for k, n in sides):
        return references
    if all(isinstance(k, int | np.integer | slice) for k in key):
        picked: ReferenceArray = references[(*key, Ellipsis)]
        return picked
    for axis in range(len(key) - 1, -1, -1):
        references = references[(slice(None),) * axis + (key[axis], Ellipsis)]
    return references


def _forward_steps(
    key: tuple[Axis, ...], shape: tuple[int, ...]
) -> list[tuple[int, int, int]] | None:
    """Return (start, count, step) of integers and forward slices, None for other keys."""
    out = []
    for k, n in zip(key, shape, strict=True):
        if isinstance(k, slice):
            start, stop, step = k.indices(n)
            if step < 0:
                return None
            out.append((start, len(range(start, stop, step)), step))
        elif isinstance(k, int | np.integer):
            out.append((int(k) % n, 1, 1))
        else:
            return None
    return out


def _narrowed(
    bound: BoundReferences, key: tuple[Axis, ...], cell: tuple[int, ...]
) -> tuple[BoundReferences, tuple[int, ...]] | None:
    """Apply an index of the cells to the regions, so that less is read.

    Returns
    -------
    bound : BoundReferences
        With narrower regions of one shape.
    cell : tuple of int
        That shape; an integer of ``key`` leaves an axis of one element.
    """
    steps = _forward_steps(key, cell)
    if not bound.n_targets or steps is None:
        return None
    shape = tuple(n for _, n, _ in steps)
    if shape == cell:
        return None
    targets = []
    for target in bound.targets:
        regions = narrow(target.regions, steps)
        if regions is None:
            return None
        targets.append(replace(target, regions=regions))
    sizes = bound.shape.copy()
    sizes[~bound.null, : len(shape)] = shape
    return bound.with_targets(targets, sizes), shape


def _bind_unchanged(
    references: ReferenceArray, known: BoundReferences | None = None
) -> BoundReferences:
    """Bind references of files that are still those that were opened.

    ``known`` is what binding these references gave before, in this process.
    """
    columns = references.columns
    for location in columns.used_files():
        check_unchanged(location)
    return bind_references(columns, references.describe) if known is None else known


OFFSET_STRIDE = 4096
"""References between two row offsets that a `RaggedArray` keeps."""


class RaggedArray(ReferenceResults):
    """Results of any shapes, one after the other along one sample dimension.

    Only every `OFFSET_STRIDE`-th row offset is kept; the ones between are worked out
    from the references of that stretch, so the array pickles small.
    """

    def __init__(
        self,
        references: ReferenceArray,
        row_size: npt.NDArray[Any],
        dtype: np.dtype[Any],
        *,
        decoders: Decoders | None = None,
        bound: BoundReferences | None = None,
    ) -> None:
        self.decoders = decoders
        self.references = references.ravel() if references.ndim != 1 else references
        offsets = row_offsets(row_size.reshape(-1))
        self.coarse = offsets[:-1][::OFFSET_STRIDE].copy()
        self.raw_dtype = dtype
        self.dtype, item_shape = item_dtype(dtype)
        self.shape = (int(offsets[-1]), *item_shape)
        self._bound = bound

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        n, k = self.shape[0], key[0]
        if isinstance(k, np.ndarray):
            low = int(k.min(initial=n))
            hull = self._read((slice(low, int(k.max(initial=low)) + 1), *key[1:]))
            picks: npt.NDArray[Any] = hull[k - low]
            return picks
        picked = range(n)[k] if isinstance(k, slice) else range(n)[int(k) : int(k) + 1]
        if not picked:
            values = unfold_subarray(np.empty(0, dtype=self.raw_dtype))
        else:
            low, high = min(picked[0], picked[-1]), max(picked[0], picked[-1]) + 1
            values = unfold_subarray(self._read_samples(low, high))
            values = values[:: picked.step] if isinstance(k, slice) else values[0, ...]
        return index_outer(values, int(isinstance(k, slice)), key[1:])

    def flat_blocks(self, blocks: Sequence[Spans]) -> BlockReads | None:
        """Say what is read for some blocks; see `ReferenceResults`."""
        bound = _bind_unchanged(self.references, getattr(self, "_bound", None))
        items_whole = tuple((0, n) for n in self.shape[1:])
        if bound.small or any(spans[1:] != items_whole for spans in blocks):
            return None
        offsets = row_offsets(bound.npoints)
        low, high = np.array([spans[0] for spans in blocks], dtype=np.int64).T
        first, last = np.searchsorted(offsets, low), np.searchsorted(offsets, high)
        if (offsets[first] != low).any() or (offsets[last] != high).any():
            return None
        bounds = row_offsets(high - low)
        check_size(int((high - low).max()), self.raw_dtype, bound, "the result")
        rows = ragged_ranges(first, last - first)
        shift = np.repeat(bounds[:-1] - low, last - first)
        return BlockReads(
            bounds=bounds,
            dtype=self.raw_dtype,
            reads=tuple(_planned(bound, rows, offsets[rows] + shift)),
            decoders=self.decoders,
            reader=self.references.options.reader,
            finish=lambda _, flat: unfold_subarray(flat),
        )

    def _read_samples(self, low: int, high: int) -> npt.NDArray[Any]:
        """Read samples ``low:high``: the rows that cover them, then cut."""
        first = max(int(np.searchsorted(self.coarse, low, side="right")) - 1, 0)
        last = int(np.searchsorted(self.coarse, high, side="left"))
        whole = first == 0 and last == len(self.coarse)
        known = getattr(self, "_bound", None) if whole else None
        part = self.references[first * OFFSET_STRIDE : last * OFFSET_STRIDE]
        bound = _bind_unchanged(part, known)
        ends = int(self.coarse[first]) + np.cumsum(bound.npoints)
        begin = int(np.searchsorted(ends, low, side="right"))
        end = int(np.searchsorted(ends, high, side="left")) + 1
        if begin > 0 or end < len(ends):
            part = part[begin:end]
            before = int(ends[begin - 1]) if begin else int(self.coarse[first])
            bound = bind_references(part.columns, part.describe)
        else:
            before = int(self.coarse[first])
        offsets = row_offsets(bound.npoints)
        check_size(int(offsets[-1]), self.raw_dtype, bound, "the result")
        out = np.empty(int(offsets[-1]), dtype=self.raw_dtype)
        read_results(
            bound,
            out,
            offsets[:-1],
            reader=part.options.reader,
            decoders=self.decoders,
        )
        return out[low - before : high - before]


class RegionResults(ReferenceResults):
    """What a function makes of each region: one item of shape ``cell`` a reference.

    ``function(values, bound)`` gets the values of some references, flat and
    decoded, with their shapes, and returns the items in that order. All values of one
    call have one type, that of their own targets: references to targets of other types
    are for another call.
    """

    def __init__(
        self,
        references: ReferenceArray,
        dtype: np.dtype[Any],
        decoders: Decoders,
        function: Callable[[npt.NDArray[Any], BoundReferences], npt.NDArray[Any]],
        cell: tuple[int, ...] = (),
        *,
        bound: BoundReferences | None = None,
    ) -> None:
        self.references = references
        self._bound = bound
        self.dtype = dtype
        self.decoders = decoders
        self.function = function
        self.cell = cell
        self.shape = references.shape + cell
        # Values of one decoding are decoded all together, after they were read.
        single = decoders.single
        self.decode = single
        forms = [with_items(*form) for form in decoders.forms]
        widest = max(forms, key=lambda d: d.itemsize, default=np.dtype(float))
        self.raw_dtype = single.raw_dtype if single else widest

    @property
    def in_place(self) -> bool:
        """False: the values of all regions are larger than what is made of them."""
        return False

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        split = self.references.ndim
        references = pick_references(self.references, key[:split])
        bound = _bind_unchanged(references)
        npoints = int(bound.npoints.sum())
        check_size(npoints, self.raw_dtype, bound, "the values to work on")
        out = np.empty((len(bound.ndim), *self.cell), dtype=self.dtype)
        decoders = None if self.decode is not None else self.decoders
        for dtype, part, rows in self._by_form(bound):
            offsets = row_offsets(bound.npoints[rows])
            begins = np.zeros(len(bound.ndim), dtype=np.int64)
            begins[rows] = offsets[:-1]
            flat = np.empty(int(offsets[-1]), dtype=dtype)
            reader = references.options.reader
            read_results(part, flat, begins, reader=reader, decoders=decoders)
            found = self._finish(flat, _pick(bound, rows))
            out[rows] = exact_values(found, self.dtype)
        return index_outer(
            out.reshape(references.shape + self.cell), references.ndim, key[split:]
        )

    def _by_form(
        self, bound: BoundReferences
    ) -> Iterator[tuple[np.dtype[Any], BoundReferences, npt.NDArray[np.intp]]]:
        """Divide references by the type of their targets' values.

        Yields
        ------
        dtype : numpy.dtype
            Of elements in the flat array that they are read into.
        part : BoundReferences
            Bound to the targets of that type.
        rows : numpy.ndarray
            Null references are among the first ones.
        """
        forms = self.decoders.forms
        if self.decode is not None or len(forms) < 2:
            yield self.raw_dtype, bound, np.arange(len(bound.ndim))
            return
        which = decoding_rows(bound, self.decoders)
        of_rows = np.where(which >= 0, self.decoders.form_of_kinds[which], 0)
        for k, form in enumerate(forms):
            rows = np.flatnonzero(of_rows == k)
            if len(rows):
                yield with_items(*form), bound.only(rows), rows

    def _finish(self, flat: npt.NDArray[Any], bound: BoundReferences) -> npt.NDArray[Any]:
        values = (
            unfold_subarray(flat) if self.decode is None else self.decode(unfold_subarray(flat))
        )
        return np.asarray(self.function(values, bound))

    def block_nbytes(self, blocks: Sequence[Spans]) -> list[int]:
        """Return the bytes of the values that some blocks are made of."""
        bound = _bind_unchanged(self.references, getattr(self, "_bound", None))
        itemsize = self.raw_dtype.itemsize
        return [int(bound.npoints[r].sum()) * itemsize for r in self._rows(blocks)]

    def part(self, blocks: Sequence[Spans]) -> tuple[ReferenceResults, list[Spans]]:
        """Return an array of the references of some blocks; see `ReferenceResults`."""
        return self._part_of_rows(blocks)

    def flat_blocks(self, blocks: Sequence[Spans]) -> BlockReads | None:
        """Say what is read for some blocks; see `ReferenceResults`.

        None also where targets have values of several types, which no one flat array holds.
        """
        split = self.references.ndim
        whole = tuple((0, n) for n in self.cell)
        if any(spans[split:] != whole for spans in blocks):
            return None
        if self.decode is None and len(self.decoders.forms) > 1:
            return None
        bound = _bind_unchanged(self.references, getattr(self, "_bound", None))
        if bound.small:
            return None
        rows = self._rows(blocks)
        picked = np.concatenate(rows)
        offsets = row_offsets(bound.npoints[picked])
        bounds = offsets[row_offsets(np.array([len(r) for r in rows]))]
        largest = int(np.diff(bounds).max())
        check_size(largest, self.raw_dtype, bound, "the values to work on")

        def finish(block: int, flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
            shape = tuple(stop - start for start, stop in blocks[block][:split])
            found = self._finish(flat, _pick(bound, rows[block]))
            return exact_values(found, self.dtype).reshape(shape + self.cell)

        return BlockReads(
            bounds=bounds,
            dtype=self.raw_dtype,
            reads=tuple(_planned(bound, picked, offsets[:-1])),
            decoders=None if self.decode is not None else self.decoders,
            reader=self.references.options.reader,
            finish=finish,
        )
