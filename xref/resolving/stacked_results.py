"""Stacked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays import exact_values, row_offsets
from xref.engine import Axis, Decoders, Decoding, index_outer
from xref.hdf5 import item_dtype, items
from xref.reading import Parts
from xref.references import ReferenceArray
from xref.resolving.bound_references import BoundDataset, BoundReferences
from xref.resolving.lazy_results import (
    BlockReads,
    ReferenceResults,
    Spans,
    _bind_unchanged,
    _pick,
    _planned,
    pick_references,
)
from xref.resolving.padding import MissingValue
from xref.resolving.read_results import check_size, read_results
from xref.selections import narrow


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
        values = items(flat.reshape(shape + cell))
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
