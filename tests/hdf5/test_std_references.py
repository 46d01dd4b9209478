"""References of HDF5 1.12 and later: their bytes, by hand."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xref.errors import CorruptFileError, UnsupportedError, XrefError
from xref.hdf5.std_references import decode_std_objects, split_std_references


def element(kind: int, flags: int = 0, nbytes: int = 0, heap: int = 0, index: int = 0) -> bytes:
    return struct.pack("<BBIQI", kind, flags, nbytes, heap, index)


def inline(address: int) -> bytes:
    return struct.pack("<BBBQ", 2, 0, 8, address) + bytes(7)


def split(*elements: bytes) -> Any:
    raw = np.frombuffer(b"".join(elements), np.uint8).reshape(len(elements), -1)
    return split_std_references(raw, offset_size=8, describe="element {}".format)


def token(address: int = 0x320, size: int = 8) -> bytes:
    return bytes([size]) + address.to_bytes(size, "little")


def name(text: str) -> bytes:
    return struct.pack("<H", len(text.encode())) + text.encode()


ALL = struct.pack("<IIQ", 3, 1, 0)
POINT = struct.pack("<6I2I", 1, 1, 0, 16, 2, 1, 4, 5)


def region(selection: bytes, rank: int = 2) -> bytes:
    return struct.pack("<II", len(selection), rank) + selection


def decode(kinds: list[int], external: list[bool], *objects: bytes) -> Any:
    sizes = np.array([len(o) for o in objects])
    position = np.cumsum(sizes) - sizes
    buffer = np.frombuffer(b"".join(objects) + bytes(8), np.uint8)
    columns = np.array(kinds), np.array(external)
    return decode_std_objects(buffer, position, sizes, *columns, "object {}".format)


def test_an_object_of_the_same_file_has_its_address_in_the_element() -> None:
    found = split(inline(0x320), element(0), element(3, 0, 57, 0x1000, 7), inline(2**63))
    assert found.type.tolist() == [2, 0, 3, 2]
    assert found.in_heap.tolist() == [False, False, True, False]
    assert found.address.tolist() == [0x320, 0, 0, 2**63]
    assert (found.heap[2], found.index[2], found.nbytes[2]) == (0x1000, 7, 57)


BAD_ELEMENTS = {
    "type 1": (element(1), CorruptFileError, "reference type 1"),
    "type 5": (element(5), CorruptFileError, "reference type 5"),
    "flags": (element(3, 2, 9, 0x1000, 1), UnsupportedError, "flags 0x2"),
    "no type": (element(0, 0, 9, 0x1000, 1), CorruptFileError, "no reference type"),
    "token size": (b"\x02\x00\x09" + bytes(15), CorruptFileError, "token of 9 bytes"),
}


@pytest.mark.parametrize("case", BAD_ELEMENTS)
def test_elements_that_are_not_references_are_named(case: str) -> None:
    data, error, message = BAD_ELEMENTS[case]
    with pytest.raises(error, match=f"element 1 has .*{message}"):
        split(inline(1), data)


def test_bytes_of_a_partial_element_are_an_error() -> None:
    raw = np.zeros(19, np.uint8)
    with pytest.raises(CorruptFileError, match="not a multiple of 18"):
        split_std_references(raw, offset_size=8, describe=str)


def test_objects_of_every_kind_decode_together() -> None:
    found = decode(
        [3, 4, 2, 3, 4],
        [False, False, True, True, True],
        token(1) + region(POINT),
        token(2, 4) + name("units"),
        token(3) + name("other.h5"),
        token(4) + name("other.h5") + region(ALL) + bytes(5),
        token(5) + name("third.h5") + name("units"),
    )
    assert found.address.tolist() == [1, 2, 3, 4, 5]
    files = [found.filenames[k] if k >= 0 else None for k in found.file]
    assert files == [None, None, "other.h5", "other.h5", "third.h5"]
    names = [found.names[k] if k >= 0 else None for k in found.attribute]
    assert names == [None, "units", None, None, "units"]
    assert (len(found.filenames), len(found.names)) == (2, 1)
    assert found.region.tolist() == [0, 3]
    selections = [found.regions.selection(i) for i in range(2)]
    assert selections[0].coords.tolist() == [[4, 5]]
    assert selections[1].kind == "all"


BAD_OBJECTS = {
    "empty": (3, False, b"", "a token"),
    "token size": (3, False, bytes([3]) + bytes(20), "token of 3 bytes"),
    "token cut": (4, False, token()[:-1], "its token"),
    "no name": (4, False, token(), "the name of a attribute"),
    "name cut": (4, False, token() + name("units")[:-1], "the name of its attribute"),
    "empty name": (4, False, token() + name(""), "empty name"),
    "zero byte": (4, False, token() + name("u\0its"), "zero byte"),
    "file cut": (2, True, token() + name("other.h5")[:-2], "the name of its file"),
    "no selection": (3, False, token(), "size and rank"),
    "selection cut": (3, False, token() + region(ALL)[:-1], "its selection"),
    "small size": (3, False, token() + struct.pack("<II", 4, 2) + ALL, "header"),
    "another rank": (3, False, token() + region(POINT, 3), "2 dimensions of a dataspace of 3"),
}


@pytest.mark.parametrize("case", BAD_OBJECTS)
def test_heap_objects_with_wrong_contents_are_named(case: str) -> None:
    kind, external, data, message = BAD_OBJECTS[case]
    with pytest.raises(CorruptFileError, match=f"object 1 .*{message}"):
        decode([4, kind], [False, external], token() + name("fine"), data)


@given(st.binary(max_size=80), st.sampled_from([2, 3, 4]), st.booleans())
def test_any_bytes_decode_or_are_refused(data: bytes, kind: int, external: bool) -> None:
    try:
        found = decode([kind], [external], data)
    except XrefError:
        return
    assert len(found) == 1


@given(st.binary(min_size=36, max_size=36))
def test_any_element_decodes_or_is_refused(data: bytes) -> None:
    try:
        found = split(data[:18], data[18:])
    except XrefError:
        return
    assert set(found.type.tolist()) <= {0, 2, 3, 4}
