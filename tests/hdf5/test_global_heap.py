"""Global heap collections crafted byte by byte; bad bytes raise.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 1E - Global Heap".
"""

from __future__ import annotations

import contextlib
import tracemalloc

import numpy as np
import pytest
from heaps import collection, heap_object
from hypothesis import given, settings
from hypothesis import strategies as st

from xref.errors import CorruptFileError, XrefError
from xref.hdf5.global_heap import (
    HeapObjects,
    pack_collections,
    parse_collection_sizes,
    walk_collections,
)

# Collections are walked together: one alone, and some of which each may end first.
COPIES = pytest.mark.parametrize("copies", [1, 6])


def walk(*collections: bytes, length_size: int = 8) -> tuple[np.ndarray, HeapObjects]:
    heads = np.frombuffer(b"".join(c[:16] for c in collections), np.uint8).reshape(-1, 16)
    size = parse_collection_sizes(heads, length_size, "collection {}".format)
    present = np.array([len(c) for c in collections])
    if (size > present).any():
        raise CorruptFileError("past the end of the file")
    base = pack_collections(size)
    buffer = np.zeros(int(base[-1]) + 8, dtype=np.uint8)
    for data, at, n in zip(collections, base, size, strict=False):
        buffer[at : at + n] = np.frombuffer(data[:n], np.uint8)
    return buffer, walk_collections(
        buffer, base[:-1], size, length_size, "collection {}".format
    )


def find(buffer: np.ndarray, objects: HeapObjects, *wanted: tuple[int, int]) -> list[bytes]:
    of, index = np.array(wanted).T
    place, nbytes = objects.find(of, index, "row {}".format)
    return [buffer[a : a + n].tobytes() for a, n in zip(place, nbytes, strict=True)]


PARTS = (heap_object(1, b"first"), heap_object(3, b""), heap_object(2, b"x" * 17))


@COPIES
@pytest.mark.parametrize("length_size", [2, 4, 8])
@pytest.mark.parametrize("free", [0, 8, 16, 64])
def test_each_object_is_found_by_its_number(copies: int, length_size: int, free: int) -> None:
    parts = [heap_object(1, b"first", length_size), heap_object(7, b"x" * 17, length_size)]
    data = collection(*parts, length_size=length_size, free=free)
    buffer, objects = walk(*[data] * copies, length_size=length_size)
    last = copies - 1
    assert find(buffer, objects, (last, 7), (0, 1)) == [b"x" * 17, b"first"]


@COPIES
def test_objects_may_be_empty_and_in_any_order(copies: int) -> None:
    buffer, objects = walk(*[collection(*PARTS)] * copies)
    assert find(buffer, objects, (0, 3), (0, 2), (0, 1), (0, 3)) == [
        b"",
        b"x" * 17,
        b"first",
        b"",
    ]


@COPIES
def test_bytes_after_the_free_space_are_not_an_object(copies: int) -> None:
    data = bytearray(collection(PARTS[0], free=96))
    data[-40:] = heap_object(5, b"deleted!" * 3)
    _, objects = walk(*[bytes(data)] * copies)
    assert len(objects.position) == copies
    with pytest.raises(CorruptFileError, match="row 0 names object 5"):
        objects.find(np.array([0]), np.array([5]), "row {}".format)


@COPIES
@pytest.mark.parametrize("index", [0, 9, 65535, 65536, 2**31])
def test_an_unknown_object_number_is_an_error(copies: int, index: int) -> None:
    _, objects = walk(*[collection(*PARTS)] * copies)
    with pytest.raises(CorruptFileError, match=f"row 1 names object {index}"):
        objects.find(np.array([0, 0]), np.array([1, index]), "row {}".format)


def test_an_empty_collection_has_no_objects() -> None:
    _, objects = walk(collection(free=0))
    with pytest.raises(CorruptFileError, match="names object 1"):
        objects.find(np.array([0]), np.array([1]), "row {}".format)


@COPIES
@pytest.mark.parametrize("nbytes", [25, 2**31, 2**63, 2**64 - 1])
def test_an_object_past_the_end_of_its_collection_is_refused(copies: int, nbytes: int) -> None:
    long = bytearray(collection(heap_object(1, b"x" * 24), free=0))
    long[24:32] = nbytes.to_bytes(8, "little")
    with pytest.raises(CorruptFileError, match=r"collection 0 .*object 1 reaches past its end"):
        walk(*[bytes(long)] * copies)


@COPIES
def test_two_objects_of_one_number_are_refused(copies: int) -> None:
    with pytest.raises(CorruptFileError, match="two objects 1"):
        walk(*[collection(PARTS[0], PARTS[0])] * copies)


@COPIES
def test_a_zeroed_heap_is_refused(copies: int) -> None:
    with pytest.raises(CorruptFileError, match=r"collection 0 has no global heap"):
        walk(*[bytes(4096)] * copies)


@pytest.mark.parametrize("size", [0, 8, 15, 2**63, 2**64 - 1])
def test_a_collection_of_an_impossible_size_is_refused(size: int) -> None:
    data = b"GCOL\x01\0\0\0" + size.to_bytes(8, "little") + bytes(16)
    with pytest.raises(CorruptFileError, match=f"of {size} bytes"):
        walk(data)


@COPIES
def test_a_collection_of_empty_objects_takes_linear_time(copies: int) -> None:
    many = collection(*(heap_object(1 + i, b"") for i in range(6_000)), free=0)
    tracemalloc.start()
    try:
        _, objects = walk(*[many] * copies)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(objects.position) == 6_000 * copies
    assert peak < 400 * 6_000 * copies


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(collection(*PARTS, *(heap_object(9 + i, b"y" * i) for i in range(4))))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(8, len(data) - 1))
        data[at] = draw(st.sampled_from((0, 1, 255)) | st.integers(0, 255))
    return bytes(data)


@given(data=st.lists(damaged(), min_size=1, max_size=7), index=st.integers(0, 20))
@settings(max_examples=3 * settings.default.max_examples)
def test_damaged_collections_raise_xref_errors_or_lie_inside_the_buffer(data, index) -> None:
    with contextlib.suppress(XrefError):
        buffer, objects = walk(*data)
        assert (objects.nbytes >= 0).all()
        assert (objects.position + objects.nbytes <= len(buffer)).all()
        find(buffer, objects, (len(data) - 1, index))


def walk_plainly(data: bytes) -> dict[int, tuple[int, int]]:
    """Place and size of each object by its number, one after the other."""
    found, at, end = {}, 16, int.from_bytes(data[8:16], "little")
    if not 16 <= end <= len(data):
        raise ValueError("the collection is longer than its bytes")
    while at + 16 <= end:
        index = int.from_bytes(data[at : at + 2], "little")
        nbytes = int.from_bytes(data[at + 8 : at + 16], "little")
        if index == 0:
            break
        if nbytes > end - at - 16 or index in found:
            raise ValueError("the object is too long, or its number stands twice")
        found[index] = at + 16, nbytes
        at += 16 + (nbytes + 7) // 8 * 8
    return found


@st.composite
def runs_of_objects(draw: st.DrawFn) -> bytes:
    """Collections like those of real files: runs of objects of one length."""
    lengths = []
    for _ in range(draw(st.integers(0, 5))):
        lengths += [draw(st.sampled_from((0, 8, 33, 36, 40)))] * draw(st.integers(1, 40))
    numbers = list(range(1, len(lengths) + 1))
    if draw(st.booleans()):
        numbers.reverse()
    # Data that look like the header of a further object.
    filler = heap_object(77, b"") * 3
    parts = [heap_object(i, filler[:n]) for i, n in zip(numbers, lengths, strict=True)]
    return collection(*parts, free=draw(st.sampled_from((0, 8, 16, 48, 400))))


@given(data=st.lists(damaged() | runs_of_objects(), min_size=1, max_size=7))
@settings(max_examples=3 * settings.default.max_examples)
def test_walking_many_collections_equals_walking_each_alone(data) -> None:
    try:
        expected = [walk_plainly(one) for one in data]
    except ValueError:
        with pytest.raises(XrefError):
            walk(*data)
        return
    buffer, objects = walk(*data)
    wanted = [(k, index) for k, one in enumerate(expected) for index in one]
    assert len(objects.position) == len(wanted)
    if wanted:
        parts = [data[k][a : a + n] for k, index in wanted for a, n in [expected[k][index]]]
        assert find(buffer, objects, *wanted) == parts


@given(size=st.lists(st.integers(16, 1000), min_size=1, max_size=9))
def test_packed_collections_are_aligned_and_do_not_overlap(size) -> None:
    base = pack_collections(np.array(size))
    assert (base % 8 == 0).all()
    assert (np.diff(base) >= size).all()
