"""Lazy arrays of what references select: stacked, padded, ragged, or made of each region.

In: a `ReferenceArray`, an index from xarray or dask. Out: NumPy arrays. Each class
pickles as the place of its references and a few numbers.

An index is read by itself. Where many blocks are wanted together, `flat_blocks` says
what all of them read, so that `xref.resolving.shuffle` can read every chunk once for all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xref.arrays import IntArray, row_strides
from xref.engine import Axis, Decoders, LazyArray
from xref.reading import Parts, plan_parts
from xref.references import ReferenceArray
from xref.resolving.bound_references import BoundDataset, BoundReferences, bind_references
from xref.resolving.read_results import result_cells
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
