"""Object headers: messages of every version, continuation blocks, shared messages, damage."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t
from hypothesis import given
from images import LIBVERS, Image, write_image

from xref.errors import CorruptFileError, UnsupportedError, XrefError
from xref.hdf5.checksums import lookup3
from xref.hdf5.dataset_layout import compact_data
from xref.hdf5.metadata_reader import MAX_CHECKED_NBYTES, MetadataReader
from xref.hdf5.object_header import (
    ATTRIBUTE_MESSAGE,
    DATASPACE_MESSAGE,
    DATATYPE_MESSAGE,
    LAYOUT_MESSAGE,
    SHARED,
    Message,
    SharedMessages,
    read_messages,
    walk_messages,
)


def kinds_of(image: Image, path: str) -> list[int]:
    return [
        message.message_type for message in read_messages(image.source(), image.addresses[path])
    ]


def source_of(data: bytes, sizes: tuple[int, int] = (8, 8)) -> MetadataReader:
    return MetadataReader(lambda a, n: data[a : a + n], *sizes, len(data), "f.h5")


def with_checksum(data: bytes) -> bytes:
    return data + struct.pack("<I", lookup3(data))


def header_v2(*messages: bytes, flags: int = 2) -> bytes:
    body = b"".join(messages)
    return with_checksum(b"OHDR\x02" + bytes([flags]) + struct.pack("<I", len(body)) + body)


def message_v2(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("<BHB", kind, len(body), flags) + body


def header_v1(*messages: bytes) -> bytes:
    body = b"".join(messages)
    return struct.pack("<BxHII4x", 1, len(messages), 1, len(body)) + body


def message_v1(kind: int, body: bytes, flags: int = 0) -> bytes:
    body += bytes(-len(body) % 8)
    return struct.pack("<HHB3x", kind, len(body), flags) + body


# --- valid headers -----------------------------------------------------------------------


@pytest.mark.parametrize("libver", sorted(LIBVERS))
@pytest.mark.parametrize("sizes", [(8, 8), (4, 4)])
@pytest.mark.parametrize("track_order", [False, True])
def test_header_messages_of_a_dataset_are_read(
    libver: str, sizes: tuple[int, int], track_order: bool
) -> None:
    def fill(file: h5py.File) -> None:
        data = file.create_dataset("data", data=np.arange(5), track_order=track_order)
        data.attrs["a"] = 1

    kinds = kinds_of(write_image(fill, libver=libver, sizes=sizes), "data")
    for kind in (DATASPACE_MESSAGE, DATATYPE_MESSAGE, LAYOUT_MESSAGE, ATTRIBUTE_MESSAGE):
        assert kinds.count(kind) == 1


@pytest.mark.parametrize("libver", sorted(LIBVERS))
def test_continuation_blocks_are_read(libver: str) -> None:
    def fill(file: h5py.File) -> None:
        for i in range(7):
            file.attrs[f"a{i}"] = np.arange(10 * i)
            file.create_group(f"g{i}")  # takes the place after the header

    image = write_image(fill, libver=libver)
    assert kinds_of(image, "/").count(ATTRIBUTE_MESSAGE) == 7
    if libver != "earliest":
        assert b"OCHK" in image.data


def test_read_messages_returns_the_requested_types() -> None:
    image = write_image(lambda file: file.create_dataset("data", data=np.arange(5)))
    source, address = image.source(), image.addresses["data"]
    (only,) = read_messages(source, address, {DATATYPE_MESSAGE})
    assert only.message_type == DATATYPE_MESSAGE
    assert only in read_messages(source, address)


@pytest.mark.parametrize("libver", sorted(LIBVERS))
def test_a_committed_datatype_replaces_the_shared_message(libver: str) -> None:
    def fill(file: h5py.File) -> None:
        file["type"] = np.dtype([("a", "<i2"), ("b", ">f8")])
        file.create_dataset("data", 3, dtype=file["type"])

    image = write_image(fill, libver=libver)
    stored = list(walk_messages(image.source(), image.addresses["data"]))
    assert [m.flags & SHARED for m in stored if m.message_type == DATATYPE_MESSAGE] == [SHARED]
    (shared,) = read_messages(image.source(), image.addresses["data"], {DATATYPE_MESSAGE})
    (own,) = read_messages(image.source(), image.addresses["type"], {DATATYPE_MESSAGE})
    assert shared.body == own.body
    assert not shared.flags & SHARED


@pytest.mark.parametrize(
    "body",
    [
        bytes([1, 0]) + bytes(6) + bytes(8) + struct.pack("<Q", 64),
        bytes([2, 0]) + struct.pack("<Q", 64),
        bytes([3, 2]) + struct.pack("<Q", 64),
    ],
)
def test_shared_messages_of_every_version_are_resolved(body: bytes) -> None:
    data = bytes(64) + header_v1(message_v1(DATATYPE_MESSAGE, b"the type"))
    assert SharedMessages(source_of(data)).resolve(DATATYPE_MESSAGE, body) == b"the type"


# --- checks ------------------------------------------------------------------------------


def test_every_flipped_bit_in_a_version_2_header_raises() -> None:
    header = header_v2(message_v2(DATATYPE_MESSAGE, b"abcd"), message_v2(1, b"efgh"))
    assert len(list(walk_messages(source_of(header), 0))) == 2
    for i in range(8 * len(header)):
        damaged = bytearray(header)
        damaged[i // 8] ^= 1 << i % 8
        with pytest.raises(CorruptFileError):
            list(walk_messages(source_of(bytes(damaged)), 0))


def test_a_flipped_bit_in_a_continuation_block_raises() -> None:
    block = with_checksum(b"OCHK" + message_v2(DATATYPE_MESSAGE, b"abcd"))
    continuation = message_v2(0x10, struct.pack("<QQ", 128, len(block)))
    data = header_v2(continuation).ljust(128, b"\0") + block
    (message,) = walk_messages(source_of(data), 0)
    assert message == Message(DATATYPE_MESSAGE, 0, b"abcd")
    damaged = data.replace(b"abcd", b"abce")
    with pytest.raises(CorruptFileError, match="block at 0x80 has the checksum"):
        list(walk_messages(source_of(damaged), 0))
    (message,) = walk_messages(source_of(damaged), 0, verify=False)
    assert message.body == b"abce"


def test_checksums_are_not_checked_after_many_blocks() -> None:
    # Each block has less than the limit; only the second takes all beyond it.
    filler = [message_v2(0, bytes(60000)) for _ in range(12)]
    block = with_checksum(b"OCHK" + b"".join(filler))
    place = 900_000
    first = header_v2(message_v2(0x10, struct.pack("<QQ", place, len(block))), *filler)
    data = first.ljust(place, b"\0") + block
    messages = list(walk_messages(source_of(data), 0))
    assert list(walk_messages(source_of(data[:-1] + b"!"), 0)) == messages
    assert len(messages) == 24


def test_checksums_of_very_large_blocks_are_not_checked() -> None:
    many = [message_v2(0, bytes(60000)) for _ in range(MAX_CHECKED_NBYTES // 60000 + 1)]
    damaged = header_v2(*many)[:-1] + b"!"
    assert len(list(walk_messages(source_of(damaged), 0))) == len(many)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\3" + bytes(40), "no object header is at 0x0"),
        (b"OHDR\3" + bytes(40), "has version 3 and flags 0x00"),
        (b"OHDR\2\x40" + bytes(40), "has version 2 and flags 0x40"),
        (b"OHDR\2\x33" + bytes(10), "reaches past the end of the file"),
        (header_v1(message_v1(1, bytes(8)))[:-1], "reaches past the end of the file"),
        (header_v1(struct.pack("<HHB3x", 1, 16, 0) + bytes(8)), "has 16 bytes, and 8 are left"),
        (
            header_v1(message_v1(0x10, struct.pack("<QQ", 16, 24))),
            "the block is empty, or the header has it already",
        ),
        (header_v1(message_v1(0x10, struct.pack("<Q", 16))), "has 8 of 16 bytes"),
        (
            header_v2(message_v2(0x10, struct.pack("<QQ", 0, 12))),
            r"begin with b'OHDR', not with b'OCHK'",
        ),
        (header_v2(message_v2(1, b"abc"))[:-1], "reaches past the end of the file"),
    ],
)
def test_a_damaged_header_raises_with_the_fault(data: bytes, message: str) -> None:
    with pytest.raises(CorruptFileError, match=message) as raised:
        list(walk_messages(source_of(data), 0))
    assert str(raised.value).startswith("f.h5: ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "version 0 and 0 bytes"),
        (bytes([4, 2]) + bytes(8), "version 4 and 10 bytes"),
        (bytes([3, 2]) + bytes(7), "version 3 and 9 bytes"),
        (bytes([3, 1]) + bytes(7), "version 3 and 9 bytes"),
        (bytes([3, 2]) + struct.pack("<Q", 64), "is not in the object header at 0x40"),
        (bytes([3, 2]) + struct.pack("<Q", 1 << 40), "reaches past the end of the file"),
        (bytes([3, 1]) + bytes(8), "no superblock is at the base address"),
    ],
)
def test_a_shared_message_without_a_target_raises_with_the_fault(
    body: bytes, message: str
) -> None:
    # The header at 64 has a message of the type, which is shared itself.
    data = bytes(64) + header_v2(message_v2(DATATYPE_MESSAGE, body, SHARED)) + bytes(64)
    with pytest.raises(CorruptFileError, match=message):
        read_messages(source_of(data), 64)


def test_overlapping_shared_messages_raise() -> None:
    # The block of each header reaches to the end of the file.
    message = message_v1(DATATYPE_MESSAGE, b"the type")
    data = b"".join(
        struct.pack("<BxHII4x", 1, 1, 1, 32 * n - 16) + message for n in range(200, 0, -1)
    )
    shared = SharedMessages(source_of(data))
    bodies = [bytes([3, 2]) + struct.pack("<Q", 32 * i) for i in range(200)]
    assert shared.resolve(DATATYPE_MESSAGE, bodies[0]) == b"the type"
    with pytest.raises(CorruptFileError, match="more bytes than the file: parts overlap"):
        [shared.resolve(DATATYPE_MESSAGE, body) for body in bodies]


def test_unknown_sizes_of_offsets_and_lengths_raise() -> None:
    for sizes in [(3, 8), (8, 16), (0, 8)]:
        with pytest.raises(CorruptFileError, match=f"offsets of {sizes[0]} bytes"):
            source_of(b"", sizes)


def test_a_short_read_raises() -> None:
    source = MetadataReader(lambda address, nbytes: bytes(nbytes - 1), 8, 8, 100, "f.h5")
    with pytest.raises(CorruptFileError, match="gave 33"):
        list(walk_messages(source, 0))


def sample(libver: str) -> Image:
    def fill(file: h5py.File) -> None:
        file["type"] = np.dtype([("a", "<i2")])
        data = file.create_dataset("data", 3, dtype=file["type"], track_order=True)
        for i in range(6):
            data.attrs[f"a{i}"] = i

    return write_image(fill, libver=libver)


SAMPLES = {libver: sample(libver) for libver in ("earliest", "latest")}


@given(st.sampled_from(sorted(SAMPLES)), st.booleans(), st.data())
def test_damaged_headers_raise_xref_errors_or_are_read(
    libver: str, verify: bool, draw: st.DataObject
) -> None:
    image = SAMPLES[libver]
    address = image.addresses["data"]
    places = st.integers(address, min(address + 400, len(image.data) - 1))
    data = bytearray(image.data)
    changes = st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=5)
    for at, value in draw.draw(changes):
        data[at] = value
    try:
        messages = list(walk_messages(image.source(bytes(data)), address, verify=verify))
    except XrefError:
        return
    assert sum(len(message.body) for message in messages) <= len(data)


@given(st.binary(min_size=1, max_size=300), st.sampled_from([b"", b"OHDR\2", b"\1\0\1\0"]))
def test_random_header_bytes_raise_xref_errors_or_are_read(data: bytes, start: bytes) -> None:
    data = start + data
    try:
        messages = list(walk_messages(source_of(data), 0, verify=False))
    except XrefError:
        return
    assert sum(len(message.body) for message in messages) <= len(data)


# --- compact data ------------------------------------------------------------------------


def fill_compact(values: Any, layout: int) -> Callable[[h5py.File], None]:
    def fill(file: h5py.File) -> None:
        properties = h5p.create(h5p.DATASET_CREATE)
        properties.set_layout(layout)
        space = h5s.create_simple(values.shape) if values.shape else h5s.create(h5s.SCALAR)
        data = h5d.create(file.id, b"data", h5t.py_create(values.dtype), space, properties)
        data.write(h5s.ALL, h5s.ALL, values)

    return fill


@pytest.mark.parametrize("libver", sorted(LIBVERS))
@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (0,)])
def test_compact_data_equals_the_written_data(libver: str, shape: tuple[int, ...]) -> None:
    values = np.arange(5, 5 + np.prod(shape, dtype=int), dtype=">i4").reshape(shape)
    image = write_image(fill_compact(values, h5d.COMPACT), libver=libver)
    messages = read_messages(image.source(), image.addresses["data"])
    assert compact_data(messages) == values.tobytes()


@pytest.mark.parametrize("libver", sorted(LIBVERS))
def test_other_layouts_have_no_compact_data(libver: str) -> None:
    image = write_image(fill_compact(np.arange(7), h5d.CONTIGUOUS), libver=libver)
    assert compact_data(read_messages(image.source(), image.addresses["data"])) is None
    assert compact_data([]) is None


@pytest.mark.parametrize("version", [1, 2])
def test_compact_data_of_layout_versions_1_and_2_is_found(version: int) -> None:
    dims = struct.pack("<3I", 2, 3, 4)
    body = bytes([version, 3, 0]) + bytes(5) + dims + struct.pack("<I", 4) + b"data" + bytes(4)
    assert compact_data([Message(LAYOUT_MESSAGE, 0, body)]) == b"data"
    contiguous = bytes([version, 3, 1]) + bytes(5) + bytes(8) + dims
    assert compact_data([Message(LAYOUT_MESSAGE, 0, contiguous)]) is None


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"\3", CorruptFileError, "has 1 bytes"),
        (b"\3\0\4\0dat", CorruptFileError, "of 7 bytes has 4 bytes of data"),
        (b"\2\1\0" + bytes(8), CorruptFileError, "of 11 bytes"),
        (b"\6\0\0", UnsupportedError, "version 6"),
    ],
)
def test_a_damaged_layout_message_raises_with_the_fault(
    body: bytes, error: type[XrefError], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        compact_data([Message(LAYOUT_MESSAGE, 0, body)], "f.h5: '/a'")
    assert str(raised.value).startswith("f.h5: '/a': ")
