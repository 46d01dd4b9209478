"""The algebra of unions of blocks equals that of boolean masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import mask_shape
from selections import axis_indices, mask_of_blocks, outer_products, unions

from xref.errors import ResultTooLargeError
from xref.selections.unions import (
    axis_intervals,
    merge_intervals,
    outer_axes,
    regular_from_blocks,
    row_runs,
    union_size,
)
from xref.selections.values import All, Blocks, Empty, Hyperslab, Points

SHAPES = {1: (20,), 2: (8, 9), 3: (5, 4, 6), 4: (4, 3, 4, 3)}


Union = tuple[tuple[int, ...], np.ndarray, np.ndarray]  # shape, start and stop


@st.composite
def shaped_unions(draw: st.DrawFn) -> Union:
    """One to eight blocks that may overlap."""
    shape = SHAPES[draw(st.integers(1, 4))]
    blocks = draw(unions(shape, most=8))
    return shape, blocks.start, blocks.stop


@st.composite
def shaped_products(draw: st.DrawFn) -> Union:
    """Blocks that are an outer product."""
    shape = SHAPES[draw(st.integers(1, 3))]
    blocks = draw(outer_products(shape))
    return shape, blocks.start, blocks.stop


def indices(intervals: tuple[np.ndarray, np.ndarray]) -> list[int]:
    return [i for a, b in zip(*intervals, strict=True) for i in range(a, b)]


@given(union=st.one_of(shaped_unions(), shaped_products()))
def test_a_union_has_the_size_of_its_mask(union) -> None:
    shape, start, stop = union
    assert union_size(start, stop) == mask_of_blocks(shape, start, stop).sum()


@given(union=st.one_of(shaped_unions(), shaped_products()))
def test_axes_are_found_exactly_when_the_mask_is_an_outer_product(union) -> None:
    shape, start, stop = union
    mask = mask_of_blocks(shape, start, stop)
    axes = outer_axes(start, stop)
    if axes is None:
        assert len(mask_shape(mask)) < mask.ndim
        return
    assert tuple(len(indices(axis)) for axis in axes) == mask_shape(mask)
    expected = np.zeros(shape, dtype=bool)
    expected[np.ix_(*map(indices, axes))] = True
    assert (mask == expected).all()


@given(product=shaped_products())
def test_an_outer_product_is_recognised_in_any_order_of_blocks(product) -> None:
    _, start, stop = product
    assert outer_axes(start, stop) is not None


@given(union=st.one_of(shaped_unions(), shaped_products()))
def test_runs_name_each_element_once_in_c_order(union) -> None:
    shape, start, stop = union
    first, length = row_runs(start, stop)
    places = np.concatenate(
        [
            np.ravel_multi_index(f, shape) + np.arange(n)
            for f, n in zip(first, length, strict=True)
        ]
    )
    expected = np.flatnonzero(mask_of_blocks(shape, start, stop))
    assert places.tolist() == expected.tolist()
    assert (first[:, -1] + length <= shape[-1]).all()


@given(
    pairs=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), min_size=1, max_size=12)
)
def test_merged_intervals_are_disjoint_and_hold_the_same_numbers(pairs) -> None:
    start = np.array([a for a, _ in pairs])
    stop = start + [n for _, n in pairs]
    low, high = merge_intervals(start, stop)
    assert indices((low, high)) == sorted(
        {i for a, b in zip(start, stop, strict=True) for i in range(a, b)}
    )
    assert (low[1:] > high[:-1]).all()


@given(
    start=st.integers(0, 9),
    gap=st.integers(0, 4),
    count=st.integers(1, 5),
    block=st.integers(1, 4),
)
def test_intervals_of_an_axis_are_its_blocks(start, gap, count, block) -> None:
    stride = block + gap
    expected = axis_indices(start, stride, count, block)
    assert indices(axis_intervals(start, stride, count, block)) == expected


@st.composite
def regular_slabs(draw: st.DrawFn) -> Hyperslab:
    rank = draw(st.integers(1, 3))
    axes = []
    for _ in range(rank):
        block = draw(st.integers(1, 3))
        stride = block + draw(st.integers(0, 2))
        axes.append((draw(st.integers(0, 4)), stride, draw(st.integers(1, 4)), block))
    return Hyperslab(*(tuple(axis[i] for axis in axes) for i in range(4)))


@given(slab=regular_slabs())
def test_blocks_of_a_regular_hyperslab_are_recognised(slab: Hyperslab) -> None:
    numbers = list(zip(slab.start, slab.stride, slab.count, slab.block, strict=True))
    corners = np.stack(
        np.meshgrid(*(a + s * np.arange(n) for a, s, n, _ in numbers), indexing="ij"), axis=-1
    ).reshape(-1, len(numbers))
    regular, *columns = regular_from_blocks(corners[None], corners[None] + slab.block)
    assert regular.all()
    found = list(zip(*(column[0].tolist() for column in columns), strict=True))
    for (start, stride, count, block), axis in zip(numbers, found, strict=True):
        assert indices(axis_intervals(*axis)) == indices(
            axis_intervals(start, stride, count, block)
        )


@given(union=st.one_of(shaped_unions(), shaped_products()))
def test_regular_hyperslabs_found_in_blocks_have_the_same_elements(union) -> None:
    shape, start, stop = union
    regular, *columns = regular_from_blocks(start[None], stop[None])
    if regular[0]:
        numbers = zip(*(column[0].tolist() for column in columns), strict=True)
        mask = np.zeros(shape, dtype=bool)
        mask[np.ix_(*(indices(axis_intervals(*axis)) for axis in numbers))] = True
        assert (mask == mask_of_blocks(shape, start, stop)).all()


@given(union=st.one_of(shaped_unions(), shaped_products()), data=st.data())
def test_unions_are_equal_exactly_when_their_elements_are(union, data) -> None:
    shape, start, stop = union
    _, other_start, other_stop = data.draw(
        st.one_of(shaped_unions(), st.just((shape, *cut_last_axis(start, stop))))
    )
    mine, theirs = Blocks(start, stop), Blocks(other_start, other_stop)
    if start.shape[1] != other_start.shape[1]:
        assert mine != theirs
        return
    equal = (
        mask_of_blocks(shape, start, stop) == mask_of_blocks(shape, other_start, other_stop)
    ).all()
    assert (mine == theirs) == equal
    if equal:
        assert hash(mine) == hash(theirs)


def cut_last_axis(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut blocks into single elements along the last axis, in reverse order."""
    lows, highs = [], []
    for low, high in zip(start.tolist(), stop.tolist(), strict=True):
        for i in range(low[-1], high[-1]):
            lows.append([*low[:-1], i])
            highs.append([*high[:-1], i + 1])
    return np.array(lows[::-1]), np.array(highs[::-1])


def test_blocks_far_apart_compare_without_memory_for_the_gap() -> None:
    far = 2**40
    start = np.array([[0, 0], [0, far], [far, 0], [far, far]])
    assert outer_axes(start, start + 1) is not None
    assert outer_axes(start[:3], start[:3] + 1) is None
    assert union_size(start, start + 5) == 100


def test_sizes_past_64_bits_are_exact() -> None:
    start = np.array([[0, 0, 0], [1, 0, 0]])
    stop = start + 2**30
    assert union_size(start, stop) == (2**30 + 1) * 2**60
    axes = outer_axes(start, stop)
    assert axes is not None
    assert math.prod(int((b - a).sum()) for a, b in axes) == (2**30 + 1) * 2**60


def test_a_union_of_too_many_rows_is_refused_before_they_are_made() -> None:
    start = np.array([[0, 0], [1, 1]])
    with pytest.raises(ResultTooLargeError, match="rows"):
        row_runs(start, start + 2**27)


def test_selections_are_values() -> None:
    points = Points(np.array([[1, 2], [3, 4]]))
    assert Empty() == Empty()
    assert All() != Empty()
    assert points == Points(np.array([[1, 2], [3, 4]]))
    assert points != Points(np.array([[3, 4], [1, 2]]))
    assert len({points, Points(points.coords.copy()), All(), All()}) == 2
    with pytest.raises(ValueError, match="read-only"):
        points.coords[0, 0] = 9
