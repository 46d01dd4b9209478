"""Lazy arrays of the elements that references select: stacked, padded or ragged.

In: a `ReferenceArray`, and an index from xarray or Dask. Out: NumPy arrays. Each array
pickles as the location of its references and a few numbers.

One index is read by itself. For many Dask blocks at once, `ReferenceResults.flat_blocks` plans
the reads of all of them, so that `xref.resolving.shuffle` reads each chunk once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from xref.arrays import IntArray, exact_values, row_offsets
from xref.engine import Axis, Decoders, Decoding, LazyArray, index_outer
from xref.errors import naming
from xref.hdf5 import item_dtype, unfold_subarray
from xref.reading import Parts
from xref.references import ReferenceArray
from xref.resolving.bound_references import (
    Array,
    BoundDataset,
    BoundReferences,
    Rows,
    Shape,
    bind_unchanged,
    index_references,
)
from xref.resolving.padding import MissingValue, after_narrowing
from xref.resolving.read_results import check_size, plan_results, read_results
from xref.resolving.sample_axis import SampleAxis
from xref.selections import narrow

Spans: TypeAlias = tuple[tuple[int, int], ...]
"""(start, stop) of a Dask block along each axis."""

# Bound references whose results have one shape; None where each result has its own shape.
Narrowed: TypeAlias = tuple[BoundReferences, Shape | None]


@dataclass(frozen=True, slots=True, eq=False)
class BlockReads:
    """Dask blocks as stretches of one flat output, and the reads that fill it."""

    bounds: IntArray  # (b + 1,), elements
    dtype: np.dtype[Any]
    reads: tuple[tuple[BoundDataset, Parts], ...]
    decoders: Decoders | None  # for the values that are read; None for values as stored
    reader: str
    finish: Callable[[int, Array], Array]  # (block, its stretch)


@dataclass(frozen=True, slots=True)
class CommonDecoding:
    """How the values of all targets become the values of one variable.

    - Without ``decode`` and ``decoders`` they are the stored values.
    - With ``decode`` they are read as stored, and then decoded all together.
    - With ``decoders`` the values of each target are decoded as they are read.
    """

    dtype: np.dtype[Any]  # of elements in the flat array that values are read into
    decode: Decoding | None = None
    decoders: Decoders | None = None

    @property
    def is_lazily_decoded(self) -> bool:
        """Whether xarray can decode the variable lazily: the type of dates needs values."""
        return self.decode is not None and not self.decode.is_of_times

    @property
    def values_dtype(self) -> np.dtype[Any]:
        """Type of decoded values."""
        return item_dtype(self.dtype)[0] if self.decode is None else self.decode.dtype


class ReferenceResults(LazyArray):
    """Base of the arrays whose Dask blocks can be read together.

    The first axes are those of ``references``. The axes of one result follow, then the axes
    of an HDF5 array type.
    """

    references: ReferenceArray
    raw_dtype: np.dtype[Any]  # of the flat array that values are read into
    decoders: Decoders | None  # applied to the values of each target as they are read
    decode: Decoding | None = None  # applied to all values after they were read
    fill: MissingValue | None = None
    result_shape: Shape = ()
    padded = False
    _label = "the result"  # in errors
    _bound: BoundReferences | None = None  # known in the process that made the array

    @property
    def in_place(self) -> bool:
        """Whether values are read straight into the result, without a temporary array."""
        return self.decode is None and self.fill is None

    def block_nbytes(self, blocks: Sequence[Spans]) -> list[int]:
        """Return the bytes that are read for each of some blocks."""
        return [math.prod(b - a for a, b in spans) * self.dtype.itemsize for spans in blocks]

    def read_block(self, spans: Spans) -> Array:
        """Read one block by itself."""
        return self._read(tuple(slice(*span) for span in spans))

    def narrow_to_blocks(self, blocks: Sequence[Spans]) -> tuple[ReferenceResults, list[Spans]]:
        """Return an array of only the references of some blocks, and the blocks in it."""
        if not self.references.ndim:
            return self, list(blocks)
        low = min(spans[0][0] for spans in blocks)
        high = max(spans[0][1] for spans in blocks)
        if high - low == self.shape[0]:
            return self, list(blocks)
        array = copy.copy(self)  # without ``_bound``, which is for all references
        array.references = self.references[low:high]
        array.shape = (high - low, *self.shape[1:])
        moved = [((spans[0][0] - low, spans[0][1] - low), *spans[1:]) for spans in blocks]
        return array, moved

    def flat_blocks(self, blocks: Sequence[Spans]) -> BlockReads | None:
        """Plan the reads of some blocks, each (start, stop) along each axis of the array.

        None if a block holds neither whole results nor boxes of results, or if there are small
        datasets, which are read whole.
        """
        ndim = self.references.ndim
        bound = self._bind(self.references)
        rows = None if bound.small_by_file else self._rows_of_blocks(bound, blocks)
        if rows is None:
            return None
        # Blocks with equal spans behind the axes of the references are narrowed alike.
        blocks_of: dict[Spans, list[int]] = {}
        for i, spans in enumerate(blocks):
            blocks_of.setdefault(spans[ndim:], []).append(i)
        narrowed: dict[Spans, Narrowed] = {}
        for spans in blocks_of:
            narrow_part = self._narrow(bound, spans)
            if narrow_part is None:
                return None
            narrowed[spans] = narrow_part
        npoints = bound.npoints
        shapes = [narrowed[spans[ndim:]][1] for spans in blocks]
        sizes = [
            npoints[own] if shape is None else np.full(len(own), math.prod(shape))
            for own, shape in zip(rows, shapes, strict=True)
        ]
        # Results lie end to end, block after block.
        offsets = row_offsets(np.concatenate(sizes))
        first = row_offsets(np.array([len(own) for own in rows]))
        bounds = offsets[first]
        check_size(int(np.diff(bounds).max()), self.raw_dtype, bound, self._label)
        reads: list[tuple[BoundDataset, Parts]] = []
        for spans, (part, _) in narrowed.items():
            dst = np.full(len(bound.ndim), -1, dtype=np.int64)
            for i in blocks_of[spans]:
                dst[rows[i]] = offsets[first[i] : first[i + 1]]
            padded = self.result_shape if self.padded else None
            for target in part.datasets:
                starts = dst[target.rows]
                if (starts >= 0).any():
                    reads.append((target, plan_results(part, target, starts, padded)))

        def finish(block: int, flat: Array) -> Array:
            shape = tuple(stop - start for start, stop in blocks[block][:ndim])
            part, result_shape = narrowed[blocks[block][ndim:]]
            return self._finish(flat, shape, (part.shapes_of(rows[block]), result_shape))

        reader = self.references.options.reader
        return BlockReads(bounds, self.raw_dtype, tuple(reads), self.decoders, reader, finish)

    def _bind(self, references: ReferenceArray) -> BoundReferences:
        known = self._bound if references is self.references else None
        return bind_unchanged(references, known)

    def _read_flat(
        self, bound: BoundReferences, sizes: IntArray, dtype: np.dtype[Any]
    ) -> Array:
        """Read results of these sizes into a new flat array, end to end."""
        offsets = row_offsets(sizes)
        make = np.empty if self.fill is None else np.zeros
        out = make(int(offsets[-1]), dtype=dtype)
        padded_shape = self.result_shape if self.padded else None
        reader = self.references.options.reader
        read_results(bound, out, offsets[:-1], padded_shape, reader, self.decoders)
        return out

    def _rows_of_blocks(
        self, bound: BoundReferences, blocks: Sequence[Spans]
    ) -> list[Rows] | None:
        """Return the rows of the references of each block; None if it cuts a result."""
        grid = np.arange(self.references.size).reshape(self.references.shape)
        keys = [tuple(slice(*span) for span in spans[: grid.ndim]) for spans in blocks]
        return [grid[key].reshape(-1) for key in keys]

    def _narrow(self, bound: BoundReferences, spans: Spans) -> Narrowed | None:
        """Narrow results to spans of their axes; None if that is impossible."""
        return (bound, None) if spans == self._whole_result() else None

    def _whole_result(self) -> Spans:
        """Return the spans of a whole result."""
        return tuple((0, n) for n in self.shape[self.references.ndim :])

    def _finish(self, flat: Array, shape: Shape, narrowed: Narrowed) -> Array:
        """Return the values that were read for references of ``shape`` in their final form."""
        raise NotImplementedError


class StackArray(ReferenceResults):
    """Results of one shape, or padded to one shape, stacked over the references.

    The shape is that of the references, then ``result_shape``, then the axes of an HDF5 array
    type. ``fill`` is the value of elements without data.
    """

    def __init__(
        self,
        references: ReferenceArray,
        result_shape: Shape,
        decoding: CommonDecoding,
        *,
        fill: MissingValue | None = None,
        padded: bool = False,
        bound: BoundReferences | None = None,
    ) -> None:
        self.references, self.result_shape = references, result_shape
        self.raw_dtype = decoding.dtype
        self.dtype = decoding.values_dtype if fill is None else fill.dtype
        self.decode, self.decoders = decoding.decode, decoding.decoders
        self.fill, self.padded, self._bound = fill, padded, bound
        self.shape = references.shape + result_shape + item_dtype(decoding.dtype)[1]

    def _read(self, key: tuple[Axis, ...]) -> Array:
        ndim, end = self.references.ndim, self.references.ndim + len(self.result_shape)
        references = index_references(self.references, key[:ndim])
        inner, shape = key[ndim:end], self.result_shape
        bound = self._bind(references)
        narrowed = None if self.padded else _narrow_results(bound, inner, shape)
        if narrowed is not None:
            bound, shape = narrowed
            inner = after_narrowing(inner)
        sizes = np.full(references.size, math.prod(shape), dtype=np.int64)
        check_size(int(sizes.sum()), self.raw_dtype, bound, self._label)
        out = self._read_flat(bound, sizes, self.raw_dtype)
        values = self._finish(out, references.shape, (bound, shape))
        return index_outer(values, references.ndim, (*inner, *key[end:]))

    def _narrow(self, bound: BoundReferences, spans: Spans) -> Narrowed | None:
        whole, n_axes = self._whole_result(), len(self.result_shape)
        if spans == whole:
            return bound, self.result_shape
        if self.padded or spans[n_axes:] != whole[n_axes:]:
            return None
        key = tuple(slice(*span) for span in spans[:n_axes])
        return _narrow_results(bound, key, self.result_shape)

    def _finish(self, flat: Array, shape: Shape, narrowed: Narrowed) -> Array:
        bound, result_shape = narrowed[0], narrowed[1] or ()
        values = unfold_subarray(flat.reshape(shape + result_shape))
        with naming(bound.label, ValueError):
            if self.decode is not None:
                values = self.decode(values)
            if self.fill is not None:
                values = exact_values(values, self.dtype)
        if self.fill is not None:
            if not values.flags.writeable:
                values = values.copy()
            valid = bound.valid_elements([np.arange(n) for n in result_shape])
            by_reference = values.reshape(len(valid), *values.shape[len(shape) :])
            self.fill.fill(by_reference, valid, bound)
        return values


def _forward_steps(key: tuple[Axis, ...], shape: Shape) -> list[tuple[int, int, int]] | None:
    """Return (start, count, step) of integers and forward slices, None for other keys."""
    steps = []
    for k, n in zip(key, shape, strict=True):
        if isinstance(k, np.ndarray):
            return None
        picked = range(n)[k] if isinstance(k, slice) else range(int(k) % n, int(k) % n + 1)
        if picked.step < 0:
            return None
        steps.append((picked.start, len(picked), picked.step))
    return steps


def _narrow_results(
    bound: BoundReferences, key: tuple[Axis, ...], result_shape: Shape
) -> tuple[BoundReferences, Shape] | None:
    """Apply an index of the results to the selections, so that less is read.

    An axis indexed by an integer has length one afterwards. None if nothing can be narrowed.
    """
    steps = _forward_steps(key, result_shape)
    if not bound.n_targets or steps is None:
        return None
    shape = tuple(n for _, n, _ in steps)
    if shape == result_shape:
        return None
    targets = []
    for target in bound.targets:
        regions = narrow(target.regions, steps)
        if regions is None:
            return None
        targets.append(replace(target, regions=regions))
    sizes = bound.shape.copy()
    sizes[~bound.null, : len(shape)] = shape
    return replace(bound, datasets=tuple(targets), small_by_file=(), shape=sizes), shape


class RaggedArray(SampleAxis, ReferenceResults):
    """Results of any shapes, end to end along one sample dimension."""

    def __init__(
        self,
        references: ReferenceArray,
        row_size: IntArray,
        decoding: CommonDecoding,
        bound: BoundReferences,
    ) -> None:
        self.decoders = decoding.decoders
        self.raw_dtype = decoding.dtype
        self.dtype, item_shape = item_dtype(decoding.dtype)
        self.shape = (self.set_rows(references, row_size, bound), *item_shape)

    def narrow_to_blocks(self, blocks: Sequence[Spans]) -> tuple[ReferenceResults, list[Spans]]:
        """Return the array itself: the first axis is that of samples, not of references."""
        return self, list(blocks)

    def _read_samples(self, low: int, high: int) -> Array:
        """Read samples ``low:high``: the rows that cover them, then cut."""
        bound, start = self._rows_of_samples(low, high)
        sizes = bound.npoints
        check_size(int(sizes.sum()), self.raw_dtype, bound, self._label)
        values = self._read_flat(bound, sizes, self.raw_dtype)[low - start : high - start]
        return unfold_subarray(values)

    def _rows_of_blocks(
        self, bound: BoundReferences, blocks: Sequence[Spans]
    ) -> list[Rows] | None:
        offsets = row_offsets(bound.npoints)
        low, high = np.array([spans[0] for spans in blocks], dtype=np.int64).T
        first, last = np.searchsorted(offsets, low), np.searchsorted(offsets, high)
        if (offsets[first] != low).any() or (offsets[last] != high).any():
            return None
        return [np.arange(*span) for span in zip(first.tolist(), last.tolist(), strict=True)]

    def _finish(self, flat: Array, shape: Shape, narrowed: Narrowed) -> Array:
        return unfold_subarray(flat)
