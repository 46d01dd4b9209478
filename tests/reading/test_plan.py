"""A plan names each chunk once, and its pieces cover the output exactly once.

Plans are carried out on arrays in memory, so no file is involved.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selections import describe, elements, points, slabs, unions

from xref.arrays.columns import row_offsets
from xref.arrays.strides import canvas_strides, row_strides
from xref.errors import UnsupportedError
from xref.reading.boxes import plan_parts
from xref.reading.execute import read_plan
from xref.reading.plan import ReadPlan, choose_tile, plan_read
from xref.selections.table import SelectionTable
from xref.selections.table_building import table_from_selections
from xref.selections.values import All, Empty, Hyperslab, Points

SHAPES = ((37,), (11, 13), (5, 6, 7), (3, 4, 3, 4))


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...] | None, list[Any], int]:
    """Shape, chunks, selections, and bytes of a tile."""
    shape = draw(st.sampled_from(SHAPES))
    chunks = tuple(draw(st.integers(1, n + 2)) for n in shape)
    whole = st.sampled_from((All(), Empty()))
    some = st.one_of(slabs(shape), slabs(shape), unions(shape), points(shape), whole)
    chosen = draw(st.lists(some, min_size=1, max_size=6))
    tile_nbytes = draw(st.sampled_from((1, 64, 512, 1 << 20)))
    return shape, draw(st.sampled_from((None, chunks))), chosen, tile_nbytes


class ArrayLoader:
    """Fills canvases from an array and records what was asked for."""

    def __init__(self, values: np.ndarray, chunks: tuple[int, ...] | None) -> None:
        self.values = values
        self.chunks = chunks
        self.loaded: list[int] = []

    def load(self, plan: ReadPlan, tile: int, canvas: np.ndarray) -> None:
        canvas[...] = -1
        if self.chunks is None:
            self._copy(plan.tile_origin[tile], plan.tile_shape, plan.tile_origin[tile], canvas)
            return
        numbers = plan.chunk[plan.chunk_cut[tile] : plan.chunk_cut[tile + 1]].tolist()
        grid = [-(-n // c) for n, c in zip(self.values.shape, self.chunks, strict=True)]
        self.loaded += numbers
        for number in numbers:
            corner = np.array(np.unravel_index(number, grid)) * self.chunks
            self._copy(corner, self.chunks, plan.tile_origin[tile], canvas)

    def ranges(self, plan: ReadPlan) -> None:
        return None

    def _copy(self, start: Any, box: Any, origin: Any, canvas: np.ndarray) -> None:
        part = self.values[tuple(slice(a, a + n) for a, n in zip(start, box, strict=True))]
        at = tuple(
            slice(a - o, a - o + n) for a, o, n in zip(start, origin, part.shape, strict=True)
        )
        assert canvas[at].shape == part.shape, "a chunk of the plan lies outside its tile"
        canvas[at] = part


def plan_all(
    chosen: list[Any], shape: tuple[int, ...], chunks: tuple[int, ...] | None, tile_nbytes: int
) -> tuple[ReadPlan, SelectionTable, np.ndarray]:
    """Plan results end to end; also where each begins."""
    table = table_from_selections(chosen).bound_to(shape, describe)
    _, shapes = table.result_shapes()
    offsets = row_offsets(shapes.prod(axis=1))
    parts = plan_parts(table, offsets[:-1], row_strides(shapes[:, : len(shape)]))
    return plan_read(parts, shape, chunks, 8, tile_nbytes), table, offsets


@given(case=cases())
@settings(max_examples=2 * settings.default.max_examples)
def test_any_chunks_and_tiles_give_the_selected_values(case) -> None:
    shape, chunks, chosen, tile_nbytes = case
    values = np.arange(math.prod(shape)).reshape(shape)
    plan, _, offsets = plan_all(chosen, shape, chunks, tile_nbytes)
    out = np.full(offsets[-1], -2)
    read_plan(plan, ArrayLoader(values, chunks), out)
    expected = [int(values[spot]) for s in chosen for spot in elements(s, shape)]
    assert out.tolist() == expected


@given(case=cases())
def test_each_needed_chunk_is_named_once_and_no_other(case) -> None:
    shape, chunks, chosen, tile_nbytes = case
    if chunks is None:
        chunks = shape
    plan, _, _ = plan_all(chosen, shape, chunks, tile_nbytes)
    grid = [-(-n // c) for n, c in zip(shape, chunks, strict=True)]
    needed = {
        int(np.ravel_multi_index([i // c for i, c in zip(spot, chunks, strict=True)], grid))
        for s in chosen
        for spot in elements(s, shape)
    }
    assert sorted(plan.chunk.tolist()) == sorted(needed)


@given(case=cases())
def test_pieces_cover_the_output_exactly_once(case) -> None:
    shape, chunks, chosen, tile_nbytes = case
    plan, _, offsets = plan_all(chosen, shape, chunks, tile_nbytes)
    covered = np.zeros(offsets[-1], dtype=int)
    for place in itertools.chain.from_iterable(places(plan)):
        covered[place] += 1
    assert (covered == 1).all()


def places(plan: ReadPlan) -> list[list[int]]:
    """Output elements of each piece, one by one."""
    out = []
    for group, dst in zip(plan.group.tolist(), plan.dst.tolist(), strict=True):
        strides = plan.group_dst_stride[group].tolist()
        spots = np.ndindex(*plan.group_shape[group].tolist())
        out.append(
            [dst + sum(i * s for i, s in zip(spot, strides, strict=True)) for spot in spots]
        )
    return out


@given(case=cases())
def test_pieces_stay_within_their_tile(case) -> None:
    shape, chunks, chosen, tile_nbytes = case
    plan, _, _ = plan_all(chosen, shape, chunks, tile_nbytes)
    for tile in range(plan.n_tiles):
        rows = slice(plan.piece_cut[tile], plan.piece_cut[tile + 1])
        assert rows.stop > rows.start, "a tile without pieces is read for nothing"
        group = plan.group[rows]
        corner = np.stack(np.unravel_index(plan.src[rows], plan.tile_shape), axis=1)
        last = corner + (plan.group_shape[group] - 1) * plan.group_step[group]
        assert (last < plan.tile_shape).all()
        ranges = plan.piece_ranges(tile, 0)
        assert all(0 <= a < b <= math.prod(plan.tile_shape) for a, b in ranges)
        assert all(a[1] < b[0] for a, b in itertools.pairwise(ranges))


def test_a_step_wider_than_a_chunk_skips_the_chunks_between() -> None:
    slab = Hyperslab((1,), (40,), (5,), (1,))
    plan, _, _ = plan_all([slab], (200,), (10,), 1 << 20)
    assert plan.chunk.tolist() == [0, 4, 8, 12, 16]


@pytest.mark.parametrize("stride", range(1, 12))
@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_steps_of_any_width_against_chunks_of_any_width(stride: int, chunk: int) -> None:
    count = 60 // stride
    slab = Hyperslab((2, 1), (stride, 2), (count, 3), (1, 1))
    values = np.arange(64 * 7).reshape(64, 7)
    plan, _, offsets = plan_all([slab], (64, 7), (chunk, 2), 256)
    out = np.empty(offsets[-1], dtype=values.dtype)
    read_plan(plan, ArrayLoader(values, (chunk, 2)), out)
    expected = values[2 : 2 + stride * count : stride, 1:7:2]
    assert out.reshape(expected.shape).tolist() == expected.tolist()


def test_strided_blocks_are_planned_by_axis_not_by_element() -> None:
    image = np.arange(64 * 64).reshape(64, 64)
    slab = Hyperslab((1, 0), (3, 3), (20, 21), (2, 2))
    plan, _, offsets = plan_all([slab], image.shape, (16, 16), 1 << 20)
    assert offsets[-1] == 40 * 42
    assert len(plan.dst) == 4
    out = np.empty(offsets[-1], dtype=image.dtype)
    read_plan(plan, ArrayLoader(image, (16, 16)), out)
    rows = [y for y in range(64) if y >= 1 and (y - 1) % 3 < 2 and (y - 1) // 3 < 20]
    columns = [x for x in range(64) if x % 3 < 2 and x // 3 < 21]
    np.testing.assert_array_equal(out.reshape(40, 42), image[np.ix_(rows, columns)])


def test_points_far_apart_need_one_chunk_each() -> None:
    side = 2**17
    spots = np.array([[i * side // 8, i * side // 9] for i in range(8)])
    plan, _, _ = plan_all([Points(spots)], (side, side), (256, 256), 4 << 20)
    assert len(plan.chunk) == 8
    assert len(plan.dst) == 8


def test_many_regions_in_one_chunk_name_it_once() -> None:
    boxes = [Hyperslab((i, i), (1, 1), (1, 1), (4, 4)) for i in range(12)]
    plan, _, _ = plan_all(boxes, (16, 16), (16, 16), 1 << 20)
    assert plan.chunk.tolist() == [0]
    assert plan.n_tiles == 1


def test_nothing_selected_reads_nothing() -> None:
    plan, _, offsets = plan_all([Empty(), Empty()], (8, 8), (4, 4), 1 << 20)
    assert plan.n_tiles == len(plan.chunk) == offsets[-1] == 0


def test_a_grid_past_62_bits_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="too many"):
        plan_all([Points(np.array([[0, 0]]))], (2**40, 2**40), (1, 1), 1 << 20)


@given(
    extent=st.lists(st.integers(0, 100), min_size=1, max_size=4),
    itemsize=st.integers(1, 16),
    nbytes=st.integers(1, 1 << 16),
    data=st.data(),
)
def test_tiles_are_whole_chunks_within_their_bytes(extent, itemsize, nbytes, data) -> None:
    chunks = [data.draw(st.integers(1, max(n, 1))) for n in extent]
    tile = choose_tile(extent, chunks, itemsize, nbytes)
    assert all(t % c == 0 for t, c in zip(tile, chunks, strict=True))
    one = math.prod(chunks) * itemsize
    assert math.prod(tile) * itemsize <= max(nbytes, one)


@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_canvas_strides_equal_those_of_numpy(shape) -> None:
    expected = tuple(s // 8 for s in np.empty(shape).strides)
    assert canvas_strides(shape) == expected
    assert tuple(row_strides(np.array([shape]))[0].tolist()) == expected
