"""One selection of elements of a dataset, and the exact algebra of unions of blocks.

In: coordinates in elements. Out: shapes, bounds, counts and index arrays.

A selection is one of five frozen values: `Empty`, `All`, `Points`, `Hyperslab`
(regular: one start, stride, count and block per axis) and `Blocks` (any union
of boxes). HDF5 stores many regular selections as a list of blocks, so
`regular_from_blocks` brings those back to one form, and equality works across
writers.

A union of blocks has a shape of full rank exactly when it is an outer product
of one index set per axis. `outer_axes` decides that without guessing:

1. blocks that stand on a full grid of disjoint intervals are an outer product;
2. a total volume below the product of the projected lengths rules it out;
3. otherwise the exact number of distinct elements is compared with that product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from xref.arrays import FrozenColumns, IntArray
from xref.selections.unions import row_runs

UNLIMITED = -1
"""Stands for HDF5's ``H5S_UNLIMITED`` in a count or block."""


@dataclass(frozen=True, slots=True)
class Empty:
    """No element (``H5S_SEL_NONE``)."""

    kind = "none"


@dataclass(frozen=True, slots=True)
class All:
    """Every element of the dataset, as large as it is when read (``H5S_SEL_ALL``)."""

    kind = "all"


@dataclass(frozen=True, slots=True, eq=False)
class Points(FrozenColumns):
    """Single elements in stored order, duplicates kept (``H5S_SEL_POINTS``)."""

    coords: IntArray  # (n, ndim), elements

    kind = "points"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Points) and np.array_equal(self.coords, other.coords)

    def __hash__(self) -> int:
        return hash((self.kind, self.coords.shape, self.coords.tobytes()))


@dataclass(frozen=True, slots=True)
class Hyperslab:
    """A regular hyperslab: ``count`` blocks of ``block`` elements every ``stride``.

    A count or block of `UNLIMITED` reaches to the end of the axis.
    """

    start: tuple[int, ...]
    stride: tuple[int, ...]
    count: tuple[int, ...]
    block: tuple[int, ...]

    kind = "hyperslab"


@dataclass(frozen=True, slots=True, eq=False)
class Blocks(FrozenColumns):
    """A union of boxes, in C order, each element once."""

    start: IntArray  # (n, ndim), elements
    stop: IntArray  # (n, ndim), elements, exclusive

    kind = "blocks"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Blocks) or self.start.shape[1] != other.start.shape[1]:
            return False
        mine, theirs = row_runs(self.start, self.stop), row_runs(other.start, other.stop)
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def __hash__(self) -> int:
        # Only what is the same for every way of writing one set as blocks.
        low, high = self.start.min(axis=0), self.stop.max(axis=0)
        return hash((self.kind, low.tobytes(), high.tobytes()))


Selection: TypeAlias = Empty | All | Points | Hyperslab | Blocks
