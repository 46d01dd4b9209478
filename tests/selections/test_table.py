"""Operations on tables of selections equal the same on one selection at a time.

A selection is compared by the list of element coordinates that it reads.
"""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import mask_shape
from selections import describe, elements, points, slabs, unions

from xref.errors import SelectionError
from xref.selections.projection import narrow, project
from xref.selections.table import SelectionTable
from xref.selections.table_building import (
    box_table,
    concat_tables,
    empty_table,
    table_from_selections,
)
from xref.selections.values import UNLIMITED, All, Blocks, Empty, Hyperslab, Points, Selection

SHAPE = (7, 6, 5)
INF = UNLIMITED


def selections(shape: tuple[int, ...]) -> st.SearchStrategy[Selection | None]:
    whole = st.sampled_from((None, Empty(), All()))
    return st.one_of(slabs(shape), slabs(shape), unions(shape), points(shape), whole)


def tables(shape: tuple[int, ...] = SHAPE, least: int = 0) -> st.SearchStrategy[list[Any]]:
    return st.lists(selections(shape), min_size=least, max_size=8)


def rows_of(table: SelectionTable, extent: tuple[int, ...] = SHAPE) -> list[Any]:
    return [elements(table.selection(i), extent) for i in range(len(table))]


@given(chosen=tables())
def test_a_table_returns_its_selections(chosen) -> None:
    table = table_from_selections(chosen)
    assert len(table) == len(chosen)
    assert rows_of(table) == [elements(s, SHAPE) for s in chosen]
    assert rows_of(pickle.loads(pickle.dumps(table))) == rows_of(table)


@given(chosen=tables(least=1), data=st.data())
def test_taking_rows_takes_their_selections(chosen, data) -> None:
    table, n = table_from_selections(chosen), len(chosen)
    index = data.draw(
        st.one_of(
            st.lists(st.integers(0, n - 1), max_size=9).map(lambda i: np.array(i, dtype=int)),
            st.lists(st.booleans(), min_size=n, max_size=n).map(np.array),
            st.builds(slice, st.integers(0, n), st.integers(0, n), st.integers(1, 3)),
            st.just(slice(None, None, -1)),
        )
    )
    expected = [rows_of(table)[i] for i in np.arange(n)[index]]
    assert rows_of(table.take(index)) == expected
    again = table.take(index).take(slice(None, None, -1))
    assert rows_of(again) == expected[::-1]


@given(parts=st.lists(tables(), max_size=4))
def test_concatenating_tables_keeps_every_row(parts) -> None:
    whole = concat_tables(table_from_selections(part) for part in parts)
    assert rows_of(whole) == [elements(s, SHAPE) for part in parts for s in part]


@given(wide=tables(), flat=tables((9,)))
def test_tables_of_several_ranks_concatenate(wide, flat) -> None:
    whole = concat_tables([table_from_selections(wide), table_from_selections(flat)])
    n = len(wide)
    assert [elements(whole.selection(i), SHAPE) for i in range(n)] == [
        elements(s, SHAPE) for s in wide
    ]
    assert [elements(whole.selection(n + i), (9,)) for i in range(len(flat))] == [
        elements(s, (9,)) for s in flat
    ]


@given(chosen=tables())
def test_bounds_are_the_box_around_each_selection(chosen) -> None:
    start, stop = table_from_selections(chosen).bound_to(SHAPE, describe).bounds()
    for row, selection in enumerate(chosen):
        coords = np.array(elements(selection, SHAPE)).reshape(-1, len(SHAPE))
        if len(coords):
            assert start[row].tolist() == coords.min(axis=0).tolist()
            assert stop[row].tolist() == (coords.max(axis=0) + 1).tolist()
        else:
            assert (start[row] == stop[row]).all()


@given(chosen=tables())
def test_result_shapes_equal_those_of_numpy_masks(chosen) -> None:
    ndim, shape = table_from_selections(chosen).bound_to(SHAPE, describe).result_shapes()
    for row, selection in enumerate(chosen):
        found = elements(selection, SHAPE)
        assert shape[row].prod() == len(found)
        actual = tuple(shape[row, : ndim[row]].tolist())
        if isinstance(selection, Points):
            assert actual == (len(found),)
        elif found:
            mask = np.zeros(SHAPE, dtype=bool)
            mask[tuple(np.array(found).T)] = True
            assert actual == mask_shape(mask)
        else:
            assert actual == (0, 0, 0)


@given(chosen=tables(least=1), smaller=st.tuples(*(st.integers(1, n) for n in SHAPE)))
def test_bound_to_raises_exactly_for_rows_beyond_the_extent(chosen, smaller) -> None:
    table = table_from_selections(chosen)
    outside = [
        row
        for row, s in enumerate(chosen)
        if not isinstance(s, All)
        and any(
            i >= n for spot in elements(s, SHAPE) for i, n in zip(spot, smaller, strict=True)
        )
    ]
    if not outside:
        fitted = table.bound_to(smaller, describe)
        assert rows_of(fitted, smaller) == [elements(s, smaller) for s in chosen]
        return
    with pytest.raises(SelectionError, match="beyond the extent") as caught:
        table.bound_to(smaller, describe)
    assert str(caught.value).startswith(f"row {outside[0]} ")
    assert str(smaller) in str(caught.value)


def test_bound_to_raises_for_another_rank() -> None:
    table = table_from_selections([All(), Hyperslab((0,), (1,), (1,), (2,))])
    with pytest.raises(SelectionError, match="row 1 selects in 1 dimensions"):
        table.bound_to((4, 4), describe)


@given(
    start=st.integers(0, 12),
    block=st.one_of(st.integers(1, 3), st.just(INF)),
    gap=st.integers(0, 3),
    extent=st.integers(0, 10),
    rest=st.integers(1, 3),
)
def test_unlimited_hyperslabs_end_with_the_extent(start, block, gap, extent, rest) -> None:
    count = 1 if block == INF else INF
    stride = 1 if block == INF else block + gap
    slab = Hyperslab((start, 0), (stride, 1), (count, 1), (block, rest))
    fitted = table_from_selections([slab]).bound_to((extent, 3), describe)
    expected = elements(slab, (extent, 3))
    assert rows_of(fitted, (extent, 3))[0] == expected
    _, shape = fitted.result_shapes()
    assert shape.prod() == len(expected)


@st.composite
def equal_slabs(draw: st.DrawFn) -> list[Hyperslab]:
    """Hyperslabs of one shape; each axis has a count of one or a block of one."""
    count = [draw(st.integers(1, 3)) for _ in SHAPE]
    out = []
    for _ in range(draw(st.integers(1, 5))):
        axes = []
        for n, extent in zip(count, SHAPE, strict=True):
            if draw(st.booleans()):
                axes.append((draw(st.integers(0, extent - n)), 1, 1, n))
            else:
                stride = draw(st.integers(1, (extent - 1) // max(n - 1, 1)))
                last = (n - 1) * stride
                axes.append((draw(st.integers(0, extent - 1 - last)), stride, n, 1))
        out.append(Hyperslab(*(tuple(axis[i] for axis in axes) for i in range(4))))
    return out


@given(chosen=equal_slabs(), data=st.data())
def test_narrowing_selects_within_each_result(chosen, data) -> None:
    table = table_from_selections(chosen).bound_to(SHAPE, describe)
    shape = table.result_shapes()[1][0].tolist()
    key = []
    for n in shape:
        start, step = data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, 3))
        key.append((start, data.draw(st.integers(1, (n - 1 - start) // step + 1)), step))
    narrowed = narrow(table, key)
    assert narrowed is not None
    index = tuple(slice(a, a + (n - 1) * s + 1, s) for a, n, s in key)
    for row, selection in enumerate(chosen):
        spots = np.empty(math.prod(shape), dtype=object)
        spots[:] = elements(selection, SHAPE)
        expected = spots.reshape(shape)[index].ravel().tolist()
        assert elements(narrowed.selection(row), SHAPE) == expected


@given(chosen=tables(least=1))
def test_only_evenly_spaced_rows_are_narrowed(chosen) -> None:
    table = table_from_selections(chosen).bound_to(SHAPE, describe)
    fitted = [table.selection(i) for i in range(len(table))]
    even = all(
        isinstance(s, Hyperslab)
        and all(1 in pair for pair in zip(s.count, s.block, strict=True))
        for s in fitted
    )
    assert (narrow(table, [(0, 1, 1)] * len(SHAPE)) is not None) == even


@given(
    chosen=st.lists(
        st.one_of(slabs(SHAPE), unions(SHAPE), points(SHAPE)), min_size=1, max_size=6
    ),
    axes=st.sampled_from(((0,), (2,), (0, 1), (1, 2), (0, 2))),
)
def test_project_keeps_the_projection_on_the_axes(chosen, axes) -> None:
    table = table_from_selections(chosen).bound_to(SHAPE, describe)
    projected = project(table, axes)
    ndim, _ = table.result_shapes()
    extent = tuple(SHAPE[axis] for axis in axes)
    for row, selection in enumerate(chosen):
        spots = [tuple(spot[axis] for axis in axes) for spot in elements(selection, SHAPE)]
        if ndim[row] == len(SHAPE):  # an outer product: each index once
            spots = sorted(set(spots))
        assert elements(projected.selection(row), extent) == spots


@given(chosen=tables(least=1), data=st.data())
def test_rows_are_the_same_exactly_when_their_elements_are(chosen, data) -> None:
    other = data.draw(
        st.lists(st.sampled_from(chosen), min_size=len(chosen), max_size=len(chosen))
    )
    other = [in_pieces(s) if data.draw(st.booleans()) else s for s in other]
    same = table_from_selections(chosen).same_rows(table_from_selections(other))
    for row, (a, b) in enumerate(zip(chosen, other, strict=True)):
        classes = {kind_class(a), kind_class(b)}
        if len(classes) == 1:
            assert same[row] == (elements(a, SHAPE) == elements(b, SHAPE)), (a, b)
        else:
            assert not same[row]


def in_pieces(selection: Selection | None) -> Selection | None:
    """Write a hyperslab or a union as single elements."""
    if not isinstance(selection, Hyperslab | Blocks):
        return selection
    spots = np.array(elements(selection, SHAPE)[::-1])
    return Blocks(spots, spots + 1)


def kind_class(selection: Selection | None) -> str:
    if isinstance(selection, Hyperslab | Blocks):
        return "boxes"
    return "null" if selection is None else selection.kind


# --- boxes, whose columns repeat -----------------------------------------------------

SIDES = st.lists(
    st.tuples(st.integers(-1, 9), st.integers(0, 9), st.integers(-1, 9), st.integers(1, 9)),
    min_size=1,
    max_size=6,
)


def boxes_twice(sides: list[tuple[int, ...]]) -> tuple[SelectionTable, SelectionTable]:
    """The same boxes with columns that repeat one row, and with columns in full."""
    numbers = np.array(sides, dtype=np.int64)
    table = box_table(numbers[:, :2], numbers[:, 2:])
    assert table.count.strides[0] == 0
    names = ("rank", "stride", "count", "first", "size")
    return table, table.replace(**{name: getattr(table, name).copy() for name in names})


@given(sides=SIDES)
def test_boxes_have_the_bounds_and_fit_of_hyperslabs(sides) -> None:
    boxes, slabs = boxes_twice(sides)
    for found, expected in zip(boxes.bounds(), slabs.bounds(), strict=True):
        np.testing.assert_array_equal(found, expected)
    errors = []
    for table in (boxes, slabs):
        try:
            fitted = table.bound_to((9, 9), describe)
        except SelectionError as error:
            errors.append(str(error))
        else:
            assert fitted.same_rows(slabs.bound_to((9, 9), describe)).all()
    assert len(errors) in (0, 2)
    assert len(set(errors)) <= 1


@given(parts=st.lists(SIDES, min_size=1, max_size=4))
def test_tables_of_boxes_concatenate_to_a_table_of_boxes(parts) -> None:
    whole = concat_tables(boxes_twice(sides)[0] for sides in parts)
    expected = concat_tables(boxes_twice(sides)[1] for sides in parts)
    assert whole.same_rows(expected).all()
    for name in ("rank", "stride", "count", "first", "size"):
        column = getattr(whole, name)
        np.testing.assert_array_equal(column, getattr(expected, name))
        assert column.strides[0] == 0 or len(column) == 1


def test_different_broadcast_columns_concatenate_to_full_columns() -> None:
    box = np.ones((2, 2), dtype=np.int64)
    twice = box_table(box, box)
    twice = twice.replace(count=np.broadcast_to(np.array([[2, 2]]), (2, 2)))
    whole = concat_tables([box_table(box, box), empty_table(0, 2), twice])
    assert whole.count.tolist() == [[1, 1], [1, 1], [2, 2], [2, 2]]
