"""Object headers: their messages, and messages that several objects share.

In: the address of an object header and bytes of the file. Out: type, flags and body
of each message.

1. Read the prefix, which tells the version and the first block.
2. Walk the messages of a block; a continuation message names another block.
3. The body of a shared message tells where the message lies: in the header of a committed
   datatype, or in the heap of the file's shared messages. That message takes its place.

Comments name the fields in the order of their bytes, each with its size: O stands for the
size of offsets and L for the size of lengths, which the superblock tells.

Source: HDF5 File Format Specification 4.0, "Level 2A1 - Data Object Header Prefix",
"Level 2A2 - Data Object Header Messages", "The Object Header Continuation Message", "The
Shared Message Table Message", "Level 1I - Shared Object Header Message Table", "The
B-tree 'K' Values Message", "The Data Storage - Filter Pipeline Message" and "Disk Format:
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
"""Flag of a message whose body tells where the message lies."""

IN_HEAP = bytes([3, 1])
"""Begins the body of a message in the heap of shared messages: version 3, type 1 (in that
heap). A heap ID follows."""

MAX_MESSAGES = 1 << 18
"""Most messages of one object header. Version 1 counts them in 16 bits; in version 2 there are
at most 65535 compact links and as many compact attributes."""

# Flags of a version 2 prefix: attributes have a creation order (bit 2), limits of compact
# and dense attributes follow (bit 4), times follow (bit 5). Bits 6 and 7 are reserved.
OHDR_FLAGS = 0x3F
OHDR_ORDERED, OHDR_PHASES, OHDR_TIMES = 0x04, 0x10, 0x20

# Head of a message in version 1: type 2, size 2, flags 1, reserved 3. In version 2: type 1,
# size 2, flags 1, and creation order 2 if the header has OHDR_ORDERED.
_HEAD_V1, _HEAD_V1_NBYTES = struct.Struct("<HHB"), 8
_HEAD_V2, _HEAD_V2_NBYTES = struct.Struct("<BHB"), 4
_PREFIX_V1_NBYTES = 16
_MAX_PREFIX_NBYTES = 34  # version 2 with all of its optional fields
_HEAP_ID_NBYTES = 8
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_DEFAULT_K = 32


class Message(NamedTuple):
    """One message of an object header."""

    message_type: int
    flags: int
    body: bytes


class _Prefix(NamedTuple):
    """What the prefix of an object header tells."""

    version: int
    head: struct.Struct  # of each message
    head_nbytes: int
    first: int  # address of the first block of messages
    nbytes: int  # of that block


def walk_messages(
    source: MetadataReader, address: int, *, verify: bool = True
) -> Iterator[Message]:
    """Yield all messages of an object header; shared messages are not looked up.

    Parameters
    ----------
    source : MetadataReader
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
    prefix = _parse_prefix(source, address)
    where = f"object header at {address:#x}"
    blocks = [(prefix.first, prefix.nbytes)]
    visited = {prefix.first}
    n_messages = total = 0
    for start, nbytes in blocks:  # grows while it is walked
        total += nbytes
        if total > source.file_nbytes:
            source.fail(f"the blocks of the {where} have more bytes than the file")
        # A damaged chain of blocks may be long: only the first blocks are checked.
        verify = verify and total <= MAX_CHECKED_NBYTES
        if prefix.version == 1:
            data, at, end = source.take(start, nbytes, "object header block"), 0, nbytes
        else:
            begin = address if start == prefix.first else start
            data, at, end = _read_block_v2(source, begin, start, nbytes, verify, where)
        # In version 2, a gap that is too short for a head may end the block.
        while at + prefix.head_nbytes <= end:
            message_type, size, flags = prefix.head.unpack_from(data, at)
            at += prefix.head_nbytes
            n_messages += 1
            # Version 1 pads bodies to a multiple of eight bytes, which the size counts.
            unaligned = prefix.version == 1 and size % 8
            if size > end - at or unaligned or n_messages > MAX_MESSAGES:
                source.fail(
                    f"message {n_messages} (type {message_type:#06x}) of the {where} has "
                    f"{size} bytes, and {end - at} are left in its block"
                )
            body = data[at : at + size]
            at += size
            if message_type == CONTINUATION_MESSAGE:
                block = _parse_continuation(source, body, visited, where)
                visited.add(block[0])
                blocks.append(block)
            else:
                yield Message(message_type, flags, body)


def _parse_continuation(
    source: MetadataReader, body: bytes, visited: set[int], where: str
) -> tuple[int, int]:
    """Return address and bytes of the block that a continuation message names."""
    start, nbytes = integer_pair(
        source, body, source.offset_size, source.length_size, f"message of the {where}"
    )
    if start in visited or not nbytes:
        source.fail(
            f"the {where} continues at {start:#x} ({nbytes} bytes): the block is empty, or the "
            "header has it already"
        )
    return start, nbytes


def _read_block_v2(
    source: MetadataReader, begin: int, start: int, nbytes: int, verify: bool, where: str
) -> tuple[bytes, int, int]:
    """Return bytes of a block, and where in them its messages begin and end.

    The first block has the header's prefix before it, from ``begin`` on, and its
    checksum behind it. Other blocks include their signature "OCHK" and their checksum.
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


def _parse_prefix(source: MetadataReader, address: int) -> _Prefix:
    # The shortest prefix of version 2 has 7 bytes.
    nbytes = min(_MAX_PREFIX_NBYTES, max(7, source.file_nbytes - address))
    data = source.take(address, nbytes, "object header")
    if data[:4] != b"OHDR":
        # Version 1: version 1, reserved 1, number of messages 2, reference count 4, bytes
        # of the first block 4, padding 4.
        if data[0] != 1 or len(data) < _PREFIX_V1_NBYTES:
            source.fail(f"no object header is at {address:#x}: the bytes are {data[:16]!r}")
        first = address + _PREFIX_V1_NBYTES
        return _Prefix(1, _HEAD_V1, _HEAD_V1_NBYTES, first, integer(data, 8, 4))
    # Version 2: signature 4, version 1, flags 1, access, modification, change and birth time
    # 4 each, max. compact and min. dense attributes 2 each, size of the first block in 1, 2,
    # 4 or 8 bytes (flag bits 0 and 1).
    version, flags = data[4], data[5]
    if version != 2 or flags & ~OHDR_FLAGS:
        source.fail(
            f"the object header at {address:#x} has version {version} and flags {flags:#04x}"
        )
    size_at = 6 + (16 if flags & OHDR_TIMES else 0) + (4 if flags & OHDR_PHASES else 0)
    end = size_at + (1 << (flags & 3))
    if end > len(data):
        source.fail(f"the object header at {address:#x} reaches past the end of the file")
    head_nbytes = _HEAD_V2_NBYTES + (2 if flags & OHDR_ORDERED else 0)
    size = integer(data, size_at, end - size_at)
    return _Prefix(2, _HEAD_V2, head_nbytes, address + end, size)


def integer_pair(
    source: MetadataReader, body: bytes, size: int, second_size: int, what: str
) -> tuple[int, int]:
    """Return the two integers that begin a message body; their sizes are in bytes."""
    if len(body) < size + second_size:
        source.fail(f"a {what} has {len(body)} of {size + second_size} bytes")
    return integer(body, 0, size), integer(body, size, second_size)


def read_messages(
    source: MetadataReader,
    address: int,
    types: Collection[int] | None = None,
    *,
    verify: bool = True,
) -> list[Message]:
    """Return the messages of an object header; shared messages are looked up.

    Parameters
    ----------
    source : MetadataReader
        The file.
    address : int
        Address of the object header.
    types : collection of int, optional
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
        Message(
            message_type,
            flags & ~SHARED,
            shared.resolve(message_type, body) if flags & SHARED else body,
        )
        for message_type, flags, body in walk_messages(source, address, verify=verify)
        if types is None or message_type in types
    ]


class SharedMessages:
    """Messages that several objects share, each read once.

    Not safe to share between threads.
    """

    def __init__(self, source: MetadataReader) -> None:
        # Bytes may be read three times: a prefix is read again with its block, and a message
        # in a heap is counted once more when it is copied out of its block.
        self._budget = ReadBudget(source, "set of shared messages", times=3)

        def read(address: int, nbytes: int) -> bytes:
            self._budget.spend(nbytes)
            return source.read(address, nbytes)

        self._source = replace(source, read=read)
        self._bodies: dict[tuple[int, bytes], bytes] = {}
        self._heaps: list[tuple[int, FractalHeap]] | None = None

    def resolve(self, message_type: int, body: bytes) -> bytes:
        """Return the body of the message to which the body of a shared message leads.

        Raises as `read_messages` does.
        """
        key = message_type, body
        if key not in self._bodies:
            resolved = self._read(message_type, body)
            self._budget.spend(len(resolved))
            self._bodies[key] = resolved
        return self._bodies[key]

    def _read(self, message_type: int, body: bytes) -> bytes:
        source, size = self._source, self._source.offset_size
        # Version 1: version 1, type 1, reserved 6, then a symbol table entry: name offset
        # L (only in libhdf5, not in the specification), address of the object header O.
        # Versions 2 and 3: version 1, type 1, then the address of an object header O, or a
        # heap ID 8 (type 1 of version 3).
        version = body[0] if body else 0
        start = 8 + source.length_size if version == 1 else 2
        in_heap = body.startswith(IN_HEAP)
        end = start + (_HEAP_ID_NBYTES if in_heap else size)
        if not 1 <= version <= 3 or len(body) < end:
            source.fail(
                f"a shared message of type {message_type:#06x} has version {version} and "
                f"{len(body)} bytes"
            )
        if in_heap:
            return self._read_from_heap(message_type, body[start:end])
        address = integer(body, start, size)
        for message in walk_messages(source, address):
            if message.message_type == message_type and not message.flags & SHARED:
                return message.body
        source.fail(
            f"a shared message of type {message_type:#06x} is not in the object header at "
            f"{address:#x}"
        )

    def _read_from_heap(self, message_type: int, heap_id: bytes) -> bytes:
        """Return a message from the heap in which the file keeps messages of its type."""
        if self._heaps is None:
            self._heaps = list(self._open_heaps())
        for type_bits, heap in self._heaps:
            if type_bits >> message_type & 1:
                return heap.get(heap_id)
        self._source.fail(
            f"the file has no heap of shared messages of type {message_type:#06x}"
        )

    def _open_heaps(self) -> Iterator[tuple[int, FractalHeap]]:
        """Yield the message types and the heap of each index.

        Bit i stands for type i, as in libhdf5; the specification numbers the types from 0.
        """
        source = self._source
        size = source.offset_size
        extension = _find_extension(source, _take_superblock(source))
        if extension is None:
            source.fail("messages are shared, and the superblock has no extension")
        tables = [
            body
            for message_type, _, body in walk_messages(source, extension)
            if message_type == SHARED_TABLE_MESSAGE
        ]
        if len(tables) != 1:
            source.fail(
                "messages are shared, and the superblock extension has "
                f"{len(tables)} tables of them, not one"
            )
        # Shared Message Table message: version 1, address of the table O, number of indices 1.
        body = tables[0]
        if len(body) < size + 2:
            source.fail(f"the message of the shared message table has {len(body)} bytes")
        table, n = integer(body, 1, size), body[1 + size]
        # The table: signature "SMTB" 4, indices, checksum 4. An index: version 1, type 1,
        # message type flags 2, minimum message size 4, list cutoff 2, B-tree cutoff 2,
        # number of messages 2, address of the index O, address of the fractal heap O.
        step = 14 + 2 * size
        data = source.take_checked(table, 8 + n * step, b"SMTB", "shared message table")
        for at in range(4, 4 + n * step, step):
            heap = integer(data, at + 14 + size, size)
            if heap != source.undefined:
                yield integer(data, at + 2, 2), FractalHeap(source, heap)


def _take_superblock(source: MetadataReader) -> bytes:
    """Return the first bytes of the superblock, as many as all versions have."""
    head = source.take(0, 12 + 4 * source.offset_size + 4, "superblock")
    if head[:8] != _SIGNATURE:
        source.fail(f"no superblock is at the base address: the bytes are {head[:8]!r}")
    return head


def _find_extension(source: MetadataReader, head: bytes) -> int | None:
    """Return the address of the superblock extension, None if there is none."""
    # Versions 2 and 3: signature 8, version 1, size of offsets 1, size of lengths 1, flags 1,
    # base address O, address of the superblock extension O.
    extension = integer(head, 12 + source.offset_size, source.offset_size)
    return None if head[8] < 2 or extension == source.undefined else extension


def indexed_storage_k(source: MetadataReader) -> int:
    """Return the indexed storage K: a version 1 B-tree node of chunks has up to 2 K children.

    Raises
    ------
    CorruptFileError
        If the superblock or its extension contradicts the format.
    UnsupportedError
        If the message that holds K has an unknown version.
    """
    head = _take_superblock(source)
    if head[8] == 1:
        # Behind group leaf node K 2, group internal node K 2 and the file consistency flags 4.
        return integer(head, 24, 2)
    extension = _find_extension(source, head)
    if extension is not None:
        for message_type, _, body in walk_messages(source, extension):
            if message_type != BTREE_K_MESSAGE:
                continue
            # B-tree 'K' Values message: version 1, indexed storage internal node K 2, ...
            if body[:1] != b"\0":
                raise UnsupportedError(
                    f"{source.where}: the message of K values begins with {body[:1]!r}"
                )
            if len(body) < 3:
                source.fail(f"the message of K values has {len(body)} bytes")
            return integer(body, 1, 2)
    return _DEFAULT_K


def filter_options(body: bytes, where: str) -> list[tuple[int, tuple[int, ...]]]:
    """Return identification and client values of each filter of a filter pipeline message.

    Raises
    ------
    CorruptFileError
        If the message ends inside a filter.
    """
    try:
        # Version 1, number of filters 1, in version 1 reserved 6.
        version, n_filters = body[0], body[1]
        at, filters = 8 if version == 1 else 2, []
        for _ in range(n_filters):
            # Identification 2, name length 2, flags 2, number of client values 2, name,
            # client values 4 each. Version 2 has no name and no name length for the filters
            # of HDF5 itself, which are below 256. Version 1 pads an odd number of values.
            (filter_id,) = struct.unpack_from("<H", body, at)
            if version == 1 or filter_id >= 256:
                name_nbytes, _, n_values = struct.unpack_from("<HHH", body, at + 2)
                at += 8 + name_nbytes
            else:
                _, n_values = struct.unpack_from("<HH", body, at + 2)
                at += 6
            filters.append((filter_id, struct.unpack_from(f"<{n_values}I", body, at)))
            at += 4 * (n_values + n_values % 2 if version == 1 else n_values)
    except (IndexError, struct.error) as error:
        raise CorruptFileError(f"{where} has a filter pipeline that is cut off") from error
    return filters
