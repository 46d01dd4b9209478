"""Selections as xref holds them: how to draw them, and their elements one by one.

`strategies` draws selections that h5py writes and knows nothing of xref; these here are
values of `xref.selections.values`, for the tests of what is worked out from them.
"""

from __future__ import annotations

import itertools

import numpy as np
import strategies
from hypothesis import strategies as st

from xref.selections.values import UNLIMITED, All, Blocks, Empty, Hyperslab, Points, Selection


def describe(row: int) -> str:
    return f"row {row}"


# --- strategies ----------------------------------------------------------------------


@st.composite
def slabs(draw: st.DrawFn, shape: tuple[int, ...]) -> Hyperslab:
    """Hyperslabs as decoding gives them: blocks do not touch, a single one has stride 1."""
    axes = []
    for n in shape:
        block = draw(st.integers(1, min(n, 2)))
        start = draw(st.integers(0, n - block))
        stride = draw(st.integers(block + 1, 4))
        count = draw(st.integers(1, (n - start - block) // stride + 1))
        axes.append((start, stride if count > 1 else 1, count, block))
    return Hyperslab(*(tuple(axis[i] for axis in axes) for i in range(4)))


@st.composite
def unions(draw: st.DrawFn, shape: tuple[int, ...], most: int = 4) -> Blocks:
    """One block or more; they may overlap."""
    blocks = []
    for _ in range(draw(st.integers(1, most))):
        low = [draw(st.integers(0, n - 1)) for n in shape]
        high = [draw(st.integers(a + 1, n)) for a, n in zip(low, shape, strict=True)]
        blocks.append((low, high))
    return Blocks(*np.moveaxis(np.array(blocks), 1, 0))


@st.composite
def outer_products(draw: st.DrawFn, shape: tuple[int, ...]) -> Blocks:
    """Blocks that are an outer product, in any order, some of them twice."""
    cuts = []
    for n in shape:
        borders = sorted(draw(st.sets(st.integers(0, n), min_size=2, max_size=6)))
        pairs = list(itertools.pairwise(borders))
        cuts.append(draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True)))
    blocks = list(itertools.product(*cuts))
    blocks += draw(st.lists(st.sampled_from(blocks), max_size=2))
    table = np.array(draw(st.permutations(blocks)))
    return Blocks(table[:, :, 0], table[:, :, 1])


def points(shape: tuple[int, ...]) -> st.SearchStrategy[Points]:
    drawn = strategies.points(shape)
    return drawn.map(lambda selected: Points(np.array(selected.data)))


# --- elements ------------------------------------------------------------------------


def axis_indices(
    start: int, stride: int, count: int, block: int, extent: int | None = None
) -> list[int]:
    """Indices along one axis; an extent cuts them off, and ends what is unlimited."""
    if count == UNLIMITED:
        count = max(-(-(extent - start) // stride), 0)
    if block == UNLIMITED:
        block = max(extent - start, 0)
    spots = [start + i * stride + j for i in range(count) for j in range(block)]
    return [i for i in spots if extent is None or i < extent]


def mask_of_blocks(shape: tuple[int, ...], start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for low, high in zip(start, stop, strict=True):
        mask[tuple(map(slice, low, high))] = True
    return mask


def elements(selection: Selection | None, extent: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Coordinates of the elements in the order of the result."""
    match selection:
        case None | Empty():
            return []
        case All():
            return list(np.ndindex(extent))
        case Points(coords=coords):
            return [tuple(row) for row in coords.tolist()]
        case Hyperslab():
            columns = (selection.start, selection.stride, selection.count, selection.block)
            axes = zip(*columns, extent, strict=True)
            return list(itertools.product(*(axis_indices(*axis) for axis in axes)))
        case Blocks(start=start, stop=stop):
            mask = mask_of_blocks(extent, start, stop)
            return [tuple(row) for row in np.argwhere(mask).tolist()]
    raise AssertionError(selection)
