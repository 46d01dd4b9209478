"""One selection of elements of a dataset, as a value.

In: coordinates in elements. Out: one of five frozen values: `Empty`, `All`, `Points`,
`Hyperslab` (regular: one start, stride, count and block per axis) and `Blocks` (any union of
boxes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from xref.arrays import FrozenColumns, IntArray
from xref.selections.unions import row_runs

UNLIMITED = -1
"""HDF5's ``H5S_UNLIMITED``: a count or block up to the end of the axis."""


@dataclass(frozen=True, slots=True)
class Empty:
    """No element (``H5S_SEL_NONE``)."""

    kind = "none"


@dataclass(frozen=True, slots=True)
class All:
    """Every element of the dataset, in its extent at the time of reading (``H5S_SEL_ALL``)."""

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
        # The bounds: one set of elements has many lists of blocks, but one pair of bounds.
        low, high = self.start.min(axis=0), self.stop.max(axis=0)
        return hash((self.kind, low.tobytes(), high.tobytes()))


Selection: TypeAlias = Empty | All | Points | Hyperslab | Blocks
