"""Object headers: their messages, and those that objects share.

In: the address of an object header and bytes of the file. Out: type, flags and body
of each message.

1. Read the prefix, which tells the version and the first block.
2. Walk the messages of a block; a continuation message names another block.
3. Where a message is shared, its body tells where it is: in the header of a committed
   datatype, or in the heap of the file's shared messages. The message there takes its
   place.

Source: HDF5 File Format Specification 4.0, "Level 2A1 - Version 1 Data Object Header
Prefix", "Level 2A2 - Version 2 Data Object Header Prefix", "The Object Header
Continuation Message", "The Data Storage - Fill Value Message", "The Data Layout
Message", "The Shared Message Table Message", "Shared Message Record" and "Disk Format:
Level 0A - Format Signature and Superblock".
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import NamedTuple

from xref.errors import CorruptFileError, UnsupportedError
from xref.hdf5.fractal_heap import FractalHeap
from xref.hdf5.metadata_reader import MAX_CHECKED_NBYTES, MetadataReader, ReadBudget, integer

DATASPACE_MESSAGE = 0x0001
LINK_INFO_MESSAGE = 0x0002
DATATYPE_MESSAGE = 0x0003
OLD_FILL_MESSAGE = 0x0004
FILL_MESSAGE = 0x0005
LINK_MESSAGE = 0x0006
LAYOUT_MESSAGE = 0x0008
FILTER_MESSAGE = 0x000B
ATTRIBUTE_MESSAGE = 0x000C
SHARED_TABLE_MESSAGE = 0x000F
CONTINUATION_MESSAGE = 0x0010
SYMBOL_TABLE_MESSAGE = 0x0011
BTREE_K_MESSAGE = 0x0013
ATTRIBUTE_INFO_MESSAGE = 0x0015

SHARED = 0x02
"""Flag of a message whose body tells where the message is."""

IN_HEAP = bytes([3, 1])
"""Begins the body of a message that is in the heap of shared ones; a heap ID follows."""

MAX_MESSAGES = 1 << 18
"""Messages of one object header; version 1 counts them in 16 bits, and compact
links and attributes of version 2 end at 65535 each."""

_HEAD_V1 = struct.Struct("<HHB")  # type, bytes and flags of a message
_HEAD_V2 = struct.Struct("<BHB")
OHDR_FLAGS = 0x3F
OHDR_ORDERED, OHDR_PHASES, OHDR_TIMES = 0x04, 0x10, 0x20
_OHDR_NBYTES = 34  # of the longest prefix of version 2
_HEAP_ID_NBYTES = 8
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_DEFAULT_K = 32


class Message(NamedTuple):
    """One message of an object header."""

    message_type: int
    flags: int
    body: bytes


def walk_messages(
    source: MetadataReader, address: int, *, verify: bool = True
) -> Iterator[Message]:
    """Yield all messages of an object header, shared ones as they are stored.

    Parameters
    ----------
    source : Source
        The file.
    address : int
        Address of the object header.
    verify : bool
        Whether to check the checksums of version 2. libhdf5 checks them itself when
        it opens an object.

    Raises
    ------
    CorruptFileError
        If a block contradicts the format, its checksum or another block.
    """
    version, head, head_nbytes, first, nbytes = _parse_prefix(source, address)
    where = f"object header at {address:#x}"
    blocks = [(first, nbytes)]
    seen = {first}
    n_messages = total = 0
    for start, nbytes in blocks:  # grows while it is walked
        total += nbytes
        if total > source.file_nbytes:
            source.fail(f"the blocks of the {where} have more bytes than the file")
        # Of blocks that go on and on, only the first have their checksums worked out.
        verify = verify and total <= MAX_CHECKED_NBYTES
        if version == 1:
            data, at, end = source.take(start, nbytes, "object header block"), 0, nbytes
        else:
            begin = address if start == first else start
            data, at, end = _read_block_v2(source, begin, start, nbytes, verify, where)
        while at + head_nbytes <= end:
            kind, size, flags = head.unpack_from(data, at)
            at += head_nbytes
            n_messages += 1
            if size > end - at or (version == 1 and size % 8) or n_messages > MAX_MESSAGES:
                source.fail(
                    f"message {n_messages} (type {kind:#06x}) of the {where} has {size} bytes, "
                    f"and {end - at} are left in its block"
                )
            body = data[at : at + size]
            at += size
            if kind == CONTINUATION_MESSAGE:
                start_next, nbytes_next = integer_pair(
                    source,
                    body,
                    source.offset_size,
                    source.length_size,
                    f"message of the {where}",
                )
                if start_next in seen or not nbytes_next:
                    source.fail(
                        f"the {where} continues at {start_next:#x} ({nbytes_next} bytes), "
                        "where no block or one of its own begins"
                    )
                seen.add(start_next)
                blocks.append((start_next, nbytes_next))
            else:
                yield Message(kind, flags, body)


def _read_block_v2(
    source: MetadataReader, begin: int, start: int, nbytes: int, verify: bool, where: str
) -> tuple[bytes, int, int]:
    """Return bytes of a block, and where in them its messages begin and end.

    The first block has the header's prefix before it, from ``begin`` on, and its
    checksum behind it; the others have both inside.
    """
    if begin < start:
        nbytes += start - begin + 4
    data = source.take(begin, nbytes, "object header block")
    if begin == start and (data[:4] != b"OCHK" or nbytes < 8):
        source.fail(
            f"the {where} continues at {start:#x} ({nbytes} bytes), where the bytes "
            f"begin with {data[:4]!r}, not with b'OCHK'"
        )
    if verify:
        source.verify(data, begin, "object header block")
    return data, max(start - begin, 4), nbytes - 4


def _parse_prefix(
    source: MetadataReader, address: int
) -> tuple[int, struct.Struct, int, int, int]:
    """Return version, layout and bytes of message heads, and the first block's place."""
    # The shortest prefix of version 1 has 16 bytes with its padding; of version 2, 7.
    nbytes = min(_OHDR_NBYTES, max(7, source.file_nbytes - address))
    head = source.take(address, nbytes, "object header")
    if head[:4] != b"OHDR":
        if head[0] != 1 or len(head) < 16:
            source.fail(f"no object header is at {address:#x}: the bytes are {head[:16]!r}")
        return 1, _HEAD_V1, 8, address + 16, integer(head, 8, 4)
    version, flags = head[4], head[5]
    if version != 2 or flags & ~OHDR_FLAGS:
        source.fail(
            f"the object header at {address:#x} has version {version} and flags {flags:#04x}"
        )
    at = 6 + (16 if flags & OHDR_TIMES else 0) + (4 if flags & OHDR_PHASES else 0)
    end = at + (1 << (flags & 3))
    if end > len(head):
        source.fail(f"the object header at {address:#x} reaches past the end of the file")
    head_nbytes = 6 if flags & OHDR_ORDERED else 4
    return 2, _HEAD_V2, head_nbytes, address + end, integer(head, at, end - at)


def integer_pair(
    source: MetadataReader, body: bytes, size: int, second_size: int, what: str
) -> tuple[int, int]:
    """Return the two integers that a message body begins with."""
    if len(body) < size + second_size:
        source.fail(f"a {what} has {len(body)} of {size + second_size} bytes")
    return integer(body, 0, size), integer(body, size, second_size)


def read_messages(
    source: MetadataReader,
    address: int,
    kinds: Collection[int] | None = None,
    *,
    verify: bool = True,
) -> list[Message]:
    """Return the messages of an object header, shared ones as they are where they are.

    Parameters
    ----------
    source : Source
        The file.
    address : int
        Address of the object header.
    kinds : collection of int, optional
        Message types to return, by default all. Shared messages of other types are
        not looked up.
    verify : bool
        As in `walk_messages`.

    Returns
    -------
    list of Message
        In stored order. The flag `SHARED` is never set.

    Raises
    ------
    CorruptFileError
        If the header, or a structure that it shares, contradicts the format.
    UnsupportedError
        If a shared message lies in a heap with filters.
    """
    shared = SharedMessages(source)
    return [
        Message(kind, flags & ~SHARED, shared.resolve(kind, body) if flags & SHARED else body)
        for kind, flags, body in walk_messages(source, address, verify=verify)
        if kinds is None or kind in kinds
    ]


class SharedMessages:
    """Messages that several objects share, each read once.

    Not safe to share between threads.
    """

    def __init__(self, source: MetadataReader) -> None:
        # The prefix of a header is read again with its block, and a message may be a
        # copy from a block of a heap.
        self._budget = ReadBudget(source, "set of shared messages", times=3)

        def read(address: int, nbytes: int) -> bytes:
            self._budget.spend(nbytes)
            return source.read(address, nbytes)

        self._source = replace(source, read=read)
        self._found: dict[tuple[int, bytes], bytes] = {}
        self._heaps: list[tuple[int, FractalHeap]] | None = None

    def resolve(self, kind: int, body: bytes) -> bytes:
        """Return the message that the body of a shared one leads to.

        Raises
        ------
        CorruptFileError
            If no such message is there.
        UnsupportedError
            If it lies in a heap with filters.
        """
        key = kind, body
        if key not in self._found:
            found = self._read(kind, body)
            self._budget.spend(len(found))
            self._found[key] = found
        return self._found[key]

    def _read(self, kind: int, body: bytes) -> bytes:
        source, size = self._source, self._source.offset_size
        version = body[0] if body else 0
        # Version 1 keeps the address as the entry of a symbol table does, after the
        # place of a name.
        at = 8 + source.length_size if version == 1 else 2
        in_heap = body.startswith(IN_HEAP)
        end = at + (_HEAP_ID_NBYTES if in_heap else size)
        if not 1 <= version <= 3 or len(body) < end:
            source.fail(
                f"a shared message of type {kind:#06x} has version {version} and "
                f"{len(body)} bytes"
            )
        if in_heap:
            return self._read_from_heap(kind, body[at:end])
        address = integer(body, at, size)
        for found in walk_messages(source, address):
            if found.message_type == kind and not found.flags & SHARED:
                return found.body
        source.fail(
            f"a shared message of type {kind:#06x} is not in the object header at {address:#x}"
        )

    def _read_from_heap(self, kind: int, heap_id: bytes) -> bytes:
        """Return a message from the heap that the file has for its type."""
        if self._heaps is None:
            self._heaps = list(self._open_heaps())
        for kinds, heap in self._heaps:
            if kinds >> kind & 1:
                return heap.get(heap_id)
        self._source.fail(f"the file has no heap of shared messages of type {kind:#06x}")

    def _open_heaps(self) -> Iterator[tuple[int, FractalHeap]]:
        """Yield the message types, one a bit, and the heap of each index."""
        source = self._source
        size = source.offset_size
        extension = _find_extension(source, _take_superblock(source))
        if extension is None:
            source.fail("messages are shared, and the superblock has no extension")
        tables = [
            body
            for kind, _, body in walk_messages(source, extension)
            if kind == SHARED_TABLE_MESSAGE
        ]
        if len(tables) != 1:
            source.fail(
                "messages are shared, and the superblock extension has "
                f"{len(tables)} tables of them, not one"
            )
        body = tables[0]
        if len(body) < size + 2:
            source.fail(f"the message of the shared message table has {len(body)} bytes")
        table, n = integer(body, 1, size), body[1 + size]
        step = 14 + 2 * size
        data = source.take_checked(table, 8 + n * step, b"SMTB", "shared message table")
        for at in range(4, 4 + n * step, step):
            heap = integer(data, at + 14 + size, size)
            if heap != source.undefined:
                yield integer(data, at + 2, 2), FractalHeap(source, heap)


def _take_superblock(source: MetadataReader) -> bytes:
    """Return the part of the superblock that all versions have."""
    head = source.take(0, 12 + 4 * source.offset_size + 4, "superblock")
    if head[:8] != _SIGNATURE:
        source.fail(f"no superblock is at the base address: the bytes are {head[:8]!r}")
    return head


def _find_extension(source: MetadataReader, head: bytes) -> int | None:
    """Return the address of the superblock extension, None where there is none."""
    extension = integer(head, 12 + source.offset_size, source.offset_size)
    return None if head[8] < 2 or extension == source.undefined else extension


def indexed_storage_k(source: MetadataReader) -> int:
    """Return half of the children that a node of a version 1 B-tree of chunks has room for.

    Raises
    ------
    CorruptFileError
        If the superblock or its extension contradicts the format.
    UnsupportedError
        If the message that tells it has a version that is not known.

    Notes
    -----
    HDF5 File Format Specification 4.0, "Disk Format: Level 0A - Format Signature and
    Superblock" and "The B-tree 'K' Values Message".
    """
    head = _take_superblock(source)
    if head[8] == 1:
        return integer(head, 24, 2)
    extension = _find_extension(source, head)
    if extension is not None:
        for kind, _, body in walk_messages(source, extension):
            if kind != BTREE_K_MESSAGE:
                continue
            if body[:1] != b"\0":
                raise UnsupportedError(
                    f"{source.where}: the message of K values begins with {body[:1]!r}"
                )
            if len(body) < 3:
                source.fail(f"the message of K values has {len(body)} bytes")
            return integer(body, 1, 2)
    return _DEFAULT_K


def filter_options(body: bytes, where: str) -> list[tuple[int, tuple[int, ...]]]:
    """Return number and client values of each filter of a filter pipeline message.

    Raises
    ------
    CorruptFileError
        If the message is cut off.

    Notes
    -----
    HDF5 File Format Specification 4.0, "The Data Storage - Filter Pipeline Message".
    """
    try:
        version, n_filters = body[0], body[1]
        at, found = 8 if version == 1 else 2, []
        for _ in range(n_filters):
            # Number, bytes of the name, flags, client values; later without a name for
            # the filters of HDF5 itself.
            (number,) = struct.unpack_from("<H", body, at)
            if version == 1 or number >= 256:
                name_nbytes, _, n = struct.unpack_from("<HHH", body, at + 2)
                at += 8 + name_nbytes
            else:
                _, n = struct.unpack_from("<HH", body, at + 2)
                at += 6
            found.append((number, struct.unpack_from(f"<{n}I", body, at)))
            at += 4 * (n + n % 2 if version == 1 else n)
    except (IndexError, struct.error) as error:
        raise CorruptFileError(f"{where} has a filter pipeline that is cut off") from error
    return found
