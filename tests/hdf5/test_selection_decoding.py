"""Selections crafted byte by byte decode to what they say; bad bytes raise.

Source of the layouts here: HDF5 File Format Specification 4.0, "Reference Encoding
(Backward Compatibility)" and "Dataspace Encoding".
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from heaps import (
    ADDRESS,
    blocks_v1,
    blocks_v3,
    header,
    nothing,
    numbers,
    points_v1,
    points_v2,
    regular_v2,
    regular_v3,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from xref.errors import CorruptFileError, XrefError
from xref.hdf5.selection_decoding import decode_selections, split_heap_ids
from xref.selections.table import SelectionTable
from xref.selections.values import UNLIMITED, All, Blocks, Empty, Hyperslab, Points


def decode(*objects: bytes, address_size: int = 8) -> SelectionTable:
    """Decode heap objects that lie end to end, each at an odd place."""
    buffer, position = bytearray(3), []
    for data in objects:
        position.append(len(buffer))
        buffer += data + b"\xee"
    address, table = decode_selections(
        np.frombuffer(bytes(buffer), np.uint8),
        np.array(position),
        np.array([len(data) for data in objects]),
        address_size,
        "row {}".format,
    )
    assert len(address) == len(table) == len(objects)
    return table


def decode_one(data: bytes, address_size: int = 8) -> Any:
    return decode(data, address_size=address_size).selection(0)


# --- what is legal -------------------------------------------------------------------

AXES = [(1, 5, 3, 2), (4, 1, 1, 7)]
SLAB = Hyperslab((1, 4), (5, 1), (3, 1), (2, 7))
COORDS = [(3, 1), (0, 200), (3, 1)]
CORNERLESS = [((0, 0), (2, 3)), ((2, 0), (3, 2))]


@pytest.mark.parametrize("address_size", [2, 4, 8])
def test_none_and_all_are_a_header_only(address_size: int) -> None:
    assert decode_one(nothing(0, address_size), address_size) == Empty()
    assert decode_one(nothing(3, address_size), address_size) == All()


@pytest.mark.parametrize("address_size", [4, 8])
def test_points_of_version_1_keep_their_order_and_duplicates(address_size: int) -> None:
    expected = Points(np.array(COORDS))
    assert decode_one(points_v1(COORDS, address_size), address_size) == expected


@pytest.mark.parametrize("address_size", [4, 8])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_points_of_version_2_have_numbers_of_three_sizes(size: int, address_size: int) -> None:
    expected = Points(np.array(COORDS))
    assert decode_one(points_v2(COORDS, size, address_size), address_size) == expected


@pytest.mark.parametrize("address_size", [4, 8])
def test_blocks_of_version_1_have_inclusive_corners(address_size: int) -> None:
    found = decode_one(blocks_v1(CORNERLESS, address_size), address_size)
    low, high = np.moveaxis(np.array(CORNERLESS), 1, 0)
    assert found == Blocks(low, high)


def test_one_block_is_a_box() -> None:
    expected = Hyperslab((2, 3), (1, 1), (1, 1), (4, 5))
    assert decode_one(blocks_v1([((2, 3), (6, 8))])) == expected


@pytest.mark.parametrize("address_size", [4, 8])
def test_regular_hyperslabs_of_version_2_have_numbers_of_8_bytes(address_size: int) -> None:
    assert decode_one(regular_v2(AXES, address_size), address_size) == SLAB


@pytest.mark.parametrize("address_size", [4, 8])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_hyperslabs_of_version_3_are_regular_or_lists(size: int, address_size: int) -> None:
    assert decode_one(regular_v3(AXES, size, address_size), address_size) == SLAB
    low, high = np.moveaxis(np.array(CORNERLESS), 1, 0)
    found = decode_one(blocks_v3(CORNERLESS, size, address_size), address_size)
    assert found == Blocks(low, high)


def test_a_list_of_blocks_and_a_regular_hyperslab_of_the_same_elements_are_equal() -> None:
    blocks = [((i, 4), (i + 2, 11)) for i in (1, 6, 11)]
    objects = (
        blocks_v1(blocks),
        blocks_v1(blocks[::-1]),
        regular_v2(AXES),
        blocks_v3(blocks, 4),
    )
    table = decode(*objects)
    assert {table.selection(i) for i in range(4)} == {SLAB}


def test_unlimited_counts_and_blocks_are_all_ones() -> None:
    count = decode_one(regular_v2([(3, 4, UNLIMITED, 2)]))
    assert count == Hyperslab((3,), (4,), (UNLIMITED,), (2,))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_unlimited_numbers_of_version_3_are_all_ones_of_their_size(size: int) -> None:
    block = decode_one(regular_v3([(3, 1, 1, UNLIMITED)], size))
    assert block == Hyperslab((3,), (1,), (1,), (UNLIMITED,))
    count = decode_one(regular_v3([(0, 1, 1, 5), (3, 4, UNLIMITED, 2)], size))
    assert count == Hyperslab((0, 3), (1, 4), (1, UNLIMITED), (5, 2))


@pytest.mark.parametrize("size", [2, 4])
def test_the_largest_number_of_a_small_size_is_a_number(size: int) -> None:
    top = 2 ** (8 * size) - 2
    assert decode_one(points_v2([(top,)], size)) == Points(np.array([[top]]))


def test_addresses_are_read_in_their_own_size() -> None:
    for address_size in (2, 4, 8):
        data = nothing(3, address_size)
        address, _ = decode_selections(
            np.frombuffer(data, np.uint8),
            np.array([0]),
            np.array([len(data)]),
            address_size,
            str,
        )
        assert address.tolist() == [ADDRESS]


def test_objects_of_every_kind_rank_and_version_decode_together_in_order() -> None:
    objects = [
        points_v2([(1, 2, 3)], 2),
        regular_v3(AXES, 2),
        nothing(0),
        blocks_v1(CORNERLESS),
        regular_v2([(0, 1, 1, 4)]),
        points_v1(COORDS),
        nothing(3),
        blocks_v3([((5,), (6,)), ((9,), (19,))], 8),
        regular_v3([(2, 3, 4, 1)] * 6, 4),
        points_v2([(9,)], 8),
    ]
    table = decode(*objects)
    assert [table.selection(i) for i in range(len(objects))] == [decode_one(o) for o in objects]


# --- what is not ---------------------------------------------------------------------

BAD = {
    "an unknown selection type": (header(4, 1) + bytes(8), "selection type 4"),
    "version 0": (header(2, 0) + bytes(30), "version 0"),
    "version 4": (header(2, 4) + bytes(30), "version 4"),
    "none of version 2": (header(0, 2) + bytes(8), "does not have"),
    "points of version 3": (header(1, 3) + bytes(30), "does not have"),
    "too few bytes for an address": (b"\x01\x02", "too short"),
    "rank 0": (header(2, 2) + b"\x01" + numbers(4, 0, 0) + bytes(64), "rank 0"),
    "rank 33": (header(2, 2) + b"\x01" + numbers(4, 0, 33) + bytes(2000), "rank 33"),
    "numbers of 3 bytes": (header(1, 2) + b"\x03" + bytes(40), "3 bytes"),
    "more points than bytes": (points_v1(COORDS)[:-1], "counts 3 items"),
    "no points": (header(1, 1) + bytes(8) + numbers(4, 2, 0), "counts 0 items"),
    "a million blocks": (header(2, 1) + bytes(8) + numbers(4, 2, 10**6), "counts 1000000"),
    "half a hyperslab": (regular_v2(AXES)[:-8], "too short"),
    "stride 0": (regular_v2([(0, 0, 2, 1)]), "cannot be"),
    "count 0": (regular_v2([(0, 1, 0, 1)]), "cannot be"),
    "block 0": (regular_v2([(0, 1, 1, 0)]), "cannot be"),
    "blocks that overlap": (regular_v2([(0, 2, 3, 4)]), "cannot be"),
    "an unlimited start": (regular_v2([(UNLIMITED, 1, 1, 1)]), "cannot be"),
    "two unlimited numbers": (regular_v2([(0, 1, UNLIMITED, UNLIMITED)]), "cannot be"),
    "an end past 62 bits": (regular_v2([(2**61, 2**61, 9, 1)]), "cannot be"),
    "a number past 63 bits": (regular_v2([(2**63, 1, 1, 1)]), "has the number"),
    "a block whose start is past its end": (
        blocks_v1([((0, 0), (2, 2)), ((5, 5), (3, 6))]),
        "past its end",
    ),
    "a point past 62 bits": (points_v2([(2**62 + 1,)], 8), "out of range"),
    "unknown flags": (regular_v2(AXES).replace(b"\x01\x44", b"\x03\x44"), "flags 0x3"),
}


@pytest.mark.parametrize("what", BAD)
def test_errors_name_the_row_and_the_reason(what: str) -> None:
    data, message = BAD[what]
    assert b"\x01\x44" in regular_v2(AXES)  # the flags, of which one row makes others
    with pytest.raises(CorruptFileError, match=message) as caught:
        decode(nothing(3), data)
    assert "row 1" in str(caught.value)


SEEDS = [
    nothing(0),
    nothing(3),
    points_v1(COORDS),
    *(points_v2(COORDS, size) for size in (2, 4, 8)),
    blocks_v1(CORNERLESS),
    regular_v2(AXES),
    regular_v2([(3, 4, UNLIMITED, 2)]),
    *(blocks_v3(CORNERLESS, size) for size in (2, 4, 8)),
    *(regular_v3(AXES, size) for size in (2, 4, 8)),
    blocks_v1([((i, j, 0), (i + 3, j + 3, 9)) for i in range(4) for j in range(4)]),
]

MEMORY = 64 << 20


def survives(*objects: bytes) -> None:
    """Decode, bind and measure: a result or an XrefError, in bounded memory."""
    tracemalloc.start()
    try:
        table = decode(*objects)
        table.bounds()
        ranks = set(table.rank.tolist())
        for rank in ranks:
            part = table.take(table.rank == rank)
            part.bound_to((1000,) * rank, "row {}".format).result_shapes()
    except XrefError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MEMORY


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A legal object with a few bytes exchanged, cut off or put in."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data) - 1))
        data[at] = draw(
            st.sampled_from((0, 1, 2, 3, 4, 8, 32, 127, 128, 255)) | st.integers(0, 255)
        )
    end = draw(st.sampled_from((len(data), len(data), draw(st.integers(1, len(data))))))
    return bytes(data[:end]) + draw(st.sampled_from((b"", b"\xff" * 40)))


@given(objects=st.lists(mutated() | st.sampled_from(SEEDS), min_size=1, max_size=4))
@settings(max_examples=3 * settings.default.max_examples)
def test_mutated_objects_raise_xref_errors_or_decode(objects) -> None:
    survives(*objects)


@given(objects=st.lists(st.binary(max_size=120), min_size=1, max_size=4))
def test_random_bytes_raise_xref_errors_or_decode(objects) -> None:
    survives(*objects)


@given(
    body=st.binary(min_size=1, max_size=200), kind=st.integers(0, 3), version=st.integers(1, 3)
)
@settings(max_examples=2 * settings.default.max_examples)
def test_random_bodies_raise_xref_errors_or_decode(body, kind, version) -> None:
    survives(header(kind, version) + body)


def test_twenty_thousand_blocks_decode_within_memory() -> None:
    blocks = [((2 * i, 3 * (i % 100)), (2 * i + 1, 3 * (i % 100) + 2)) for i in range(20_000)]
    tracemalloc.start()
    try:
        table = decode(blocks_v1(blocks))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert table.size.tolist() == [20_000]
    assert peak < MEMORY


@pytest.mark.slow
@pytest.mark.parametrize("rank", [2, 4, 5, 6])
def test_nested_blocks_of_high_rank_decode_within_memory(rank: int) -> None:
    blocks = [((3 * i,) * rank, (60 + 2 * i,) * rank) for i in range(10)]
    blocks += [
        ((0,) * rank, (82, *(3,) * (rank - 1))),
        ((0,) * (rank - 1) + (5,), (82,) * rank),
    ]
    survives(blocks_v1(blocks), blocks_v1(blocks[::-1]))


# --- heap ids ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4, 8])
def test_heap_ids_are_an_address_and_an_index(size: int) -> None:
    data = b"".join(
        numbers(size, a) + numbers(4, i) for a, i in ((800, 1), (0, 0), (900, 70_000))
    )
    address, index = split_heap_ids(np.frombuffer(data, np.uint8), offset_size=size)
    assert address.tolist() == [800, 0, 900]
    assert index.tolist() == [1, 0, 70_000]


def test_a_broken_heap_id_is_refused() -> None:
    with pytest.raises(CorruptFileError, match="13 bytes"):
        split_heap_ids(np.zeros(13, np.uint8))
    with pytest.raises(XrefError, match="offsets of 3 bytes"):
        split_heap_ids(np.zeros(14, np.uint8), offset_size=3)
