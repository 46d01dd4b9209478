"""Fractal heaps and version 2 B-trees: objects by heap ID, and damage to every part."""

from __future__ import annotations

import struct

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from images import write_image

from xref.errors import CorruptFileError, UnsupportedError, XrefError
from xref.hdf5.attribute import NAME_INDEX, read_raw_attributes
from xref.hdf5.btree2 import read_records
from xref.hdf5.checksums import lookup3
from xref.hdf5.fractal_heap import HUGE_INDIRECT, FractalHeap
from xref.hdf5.metadata_reader import MetadataReader
from xref.hdf5.object_header import ATTRIBUTE_INFO_MESSAGE, read_messages


def fill(file: h5py.File) -> None:
    for i in range(90):
        file.attrs[f"a{i}"] = np.arange(i)
    file.attrs["huge"] = np.arange(1000)


IMAGE = write_image(fill, libver="latest")
(INFO,) = read_messages(IMAGE.source(), IMAGE.addresses["/"], {ATTRIBUTE_INFO_MESSAGE})
HEAP, TREE = struct.unpack("<QQ", INFO.body[2:18])


def heap_ids() -> list[bytes]:
    return [record[:8] for record in read_records(IMAGE.source(), TREE, NAME_INDEX, 17)]


def test_every_heap_id_gives_an_object_of_its_size() -> None:
    heap = FractalHeap(IMAGE.source(), HEAP)
    managed = [each for each in heap_ids() if each[0] == 0]
    assert len(managed) == 90
    for heap_id in managed:
        assert len(heap.get(heap_id)) == int.from_bytes(heap_id[6:8], "little")


def test_each_block_is_read_once() -> None:
    reads = []

    def read(address: int, nbytes: int) -> bytes:
        reads.append(address)
        return IMAGE.data[address : address + nbytes]

    heap = FractalHeap(MetadataReader(read, 8, 8, len(IMAGE.data), "f.h5"), HEAP)
    for heap_id in heap_ids() * 2:
        heap.get(heap_id)
    # What lies by itself is not kept: here all of more than 4096 bytes.
    records = read_records(IMAGE.source(), huge_tree(), HUGE_INDIRECT, 24)
    apart = {int.from_bytes(record[:8], "little") for record in records}
    assert len(apart) == 1
    reads = [address for address in reads if address not in apart]
    assert len(reads) == len(set(reads))


def huge_tree() -> int:
    """Address of the B-tree of huge objects, from the heap's header."""
    return int.from_bytes(IMAGE.data[HEAP + 22 : HEAP + 30], "little")


def test_tiny_objects_are_read_from_their_heap_id() -> None:
    heap = FractalHeap(IMAGE.source(), HEAP)
    assert heap.get(bytes([0x22]) + b"abcdefg") == b"abc"


@pytest.mark.parametrize(
    ("heap_id", "message"),
    [
        (bytes(7), "a heap ID has 7 bytes"),
        (bytes([0x40]) + bytes(7), "begins with 0x40"),
        (bytes([0x30]) + bytes(7), "begins with 0x30"),
        (bytes([0x27]) + bytes(7), "a tiny object of the .* has 8 bytes"),
        (bytes([0x10]) + b"\xff" * 7, "no huge object 72057594037927935"),
        (bytes(6) + b"\1\0", "names 1 bytes at byte 0 of a block of 1024 bytes"),
        (b"\0\x40\0\0\0\0\0\0", "names 0 bytes at byte 64"),
        (b"\0\xff\3\0\0\0\2\0", "names 2 bytes at byte 1023 of a block of 1024"),
        (b"\0\0\0\0\0\x7f\1\0", "past its last row"),
    ],
)
def test_heap_ids_without_an_object_raise(heap_id: bytes, message: str) -> None:
    heap = FractalHeap(IMAGE.source(), HEAP)
    with pytest.raises(CorruptFileError, match=message):
        heap.get(heap_id)


@given(st.binary(min_size=8, max_size=8))
def test_random_heap_ids_raise_xref_errors_or_give_an_object(heap_id: bytes) -> None:
    heap = FractalHeap(IMAGE.source(), HEAP)
    try:
        data = heap.get(heap_id)
    except XrefError:
        return
    assert 0 < len(data) < len(IMAGE.data)


def change_heap_header(at: int, value: bytes) -> MetadataReader:
    """Change bytes of the heap's header and make its checksum right."""
    data, begin = bytearray(IMAGE.data), IMAGE.data.find(b"FRHP")
    data[begin + at : begin + at + len(value)] = value
    data[begin + 142 : begin + 146] = struct.pack(
        "<I", lookup3(bytes(data[begin : begin + 142]))
    )
    return IMAGE.source(bytes(data))


@pytest.mark.parametrize(
    ("at", "value", "error", "message"),
    [
        (0, b"FRHQ", CorruptFileError, "no fractal heap is at"),
        (5, b"\7", CorruptFileError, "a heap ID has 8 bytes, and those of the"),
        (7, b"\1", UnsupportedError, "has filters"),
        (110, b"\3\0", CorruptFileError, "rows of 3 blocks of 1024 to 65536 bytes"),
        (112, bytes(8), CorruptFileError, "rows of 4 blocks of 0 to 65536 bytes"),
        (128, b"\xff", CorruptFileError, "in a space of 255 bits"),
        (132, b"\xff" * 8, CorruptFileError, "reaches past the end of the file"),
        (140, b"\1\0", CorruptFileError, "indirect heap block at .* has the checksum"),
        (140, b"\0\0", CorruptFileError, "no direct heap block is at"),
    ],
)
def test_a_damaged_heap_raises_with_the_fault(
    at: int, value: bytes, error: type[XrefError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_raw_attributes(change_heap_header(at, value), IMAGE.addresses["/"])


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (5, b"\5", "has type 5 and records of 17 bytes, not type 8 and 17 bytes"),
        (6, b"\x20\0\0\0", "levels of nodes of 32 bytes"),
        (12, b"\x50\xc3", "has 50000 levels"),
        (24, bytes(2), "records and an empty root"),
        (24, b"\x20", "more than it has room for"),
        (26, b"\1", "records, its header says 1"),
    ],
)
def test_a_damaged_btree_raises_with_the_fault(at: int, value: bytes, message: str) -> None:
    data, begin = bytearray(IMAGE.data), TREE
    data[begin + at : begin + at + len(value)] = value
    data[begin + 34 : begin + 38] = struct.pack("<I", lookup3(bytes(data[begin : begin + 34])))
    with pytest.raises(CorruptFileError, match=message):
        read_raw_attributes(IMAGE.source(bytes(data)), IMAGE.addresses["/"])
