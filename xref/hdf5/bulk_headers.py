"""Object headers of many objects at once: their messages as columns.

In: addresses of object headers. Out: `HeaderMessages`, one row a message.

1. Read the first bytes of all headers; headers that lie close share a read.
2. Decode the prefixes as columns. They tell where the messages of each header begin and end.
3. Walk all headers in step: each step decodes one message of every header.
4. Read the blocks that continuation messages name, walk them as in step 3, and so on.

This module decodes the headers that libhdf5 usually writes. A header is marked if it has
long blocks, many blocks or a contradiction to the format; the caller then reads that object
alone (`xref.hdf5.object_header` or libhdf5), which also words the error.

Source: HDF5 File Format Specification 4.0, "Level 2A1 - Data Object Header Prefix",
"Level 2A2 - Data Object Header Messages" and "The Object Header Continuation Message".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays import BoolArray, ByteSource, IntArray
from xref.hdf5.checksums import sum_blocks
from xref.hdf5.object_header import (
    CONTINUATION_MESSAGE,
    OHDR_FLAGS,
    OHDR_ORDERED,
    OHDR_PHASES,
    OHDR_TIMES,
    SHARED,
)
from xref.hdf5.packed import ByteArray, integers, read_blocks
from xref.hdf5.superblock import FileFormat

FIRST_NBYTES = 512
"""Bytes of each header that are read at first. Headers of datasets without attributes
that libhdf5 writes have 272 (benchmarks/small.py)."""

MAX_BLOCK_NBYTES = 4096
"""Longest block of messages that is decoded here."""

MAX_MESSAGES = 64
"""Most messages of one block that are decoded here."""

MAX_CONTINUATION_ROUNDS = 4
"""Longest chain of continuation blocks that is followed here."""

_PREFIX_V1_NBYTES = 16
_CHECKSUM_NBYTES = 4
_CONTINUED = b"OCHK"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeaderMessages:
    """The messages of n object headers, in no particular order of the objects.

    Messages of marked objects may be missing or wrong.
    """

    data: ByteArray  # bytes of all blocks, and padding
    marked: BoolArray  # (n,), objects that must be read alone
    object: IntArray  # (m,), row of the object that has the message
    message_type: IntArray  # (m,)
    flags: ByteArray  # (m,)
    position: IntArray  # (m,), of the body in `data`
    nbytes: IntArray  # (m,), of the body
    offset: IntArray  # (m,), of the body in the file


_MESSAGE_COLUMNS = ("object", "message_type", "flags", "position", "nbytes", "offset")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Blocks:
    """Blocks of messages in a buffer."""

    object: IntArray  # (b,), row of the object
    offset: IntArray  # (b,), byte of the file that lies at `position`
    position: IntArray  # (b,), of the prefix or signature
    start: IntArray  # (b,), position of the first message
    stop: IntArray  # (b,), position behind the last message
    version: IntArray  # (b,), of the header
    head_nbytes: IntArray  # (b,), of the head of each message

    def take(self, rows: npt.NDArray[Any]) -> _Blocks:
        return _Blocks(**{name: getattr(self, name)[rows] for name in self.__slots__})

    @property
    def start_offset(self) -> IntArray:
        """Byte of the file at which the first message begins."""
        return self.offset + self.start - self.position


def read_headers(source: ByteSource, address: IntArray, form: FileFormat) -> HeaderMessages:
    """Read the object headers at addresses and split them into messages.

    Parameters
    ----------
    source : ByteSource
        The file.
    address : numpy.ndarray
        Shape ``(n,)``, int64, from the base address; 0 and below are marked.
    form : FileFormat
        Sizes of the file and of its fields.
    """
    end = form.file_nbytes - form.base_address
    marked = (address <= 0) | (address > end - _PREFIX_V1_NBYTES)
    objects = np.flatnonzero(~marked)
    offset = form.base_address + address[objects]
    nbytes = np.minimum(FIRST_NBYTES, form.file_nbytes - offset)
    data, position = read_blocks(source, offset, nbytes)
    first, is_read, n_stated = _parse_prefixes(data, position, nbytes, offset, objects, marked)
    parts = [_walk(data, first.take(is_read), marked)]
    long_blocks = _read_again(source, first.take(~is_read), form.file_nbytes, marked)
    parts.append(_walk(*long_blocks, marked))
    parts += _walk_continuations(source, parts, first, form, marked)
    messages = _concat([part for part in parts if len(part.object)] or parts[:1])
    # Version 1 states how many messages there are; version 2 does not (-1 here).
    stated = np.full(len(address), -1, dtype=np.int64)
    stated[objects] = n_stated
    marked |= (stated >= 0) & (stated != np.bincount(messages.object, minlength=len(address)))
    return messages


def _parse_prefixes(
    data: ByteArray,
    position: IntArray,
    nbytes: IntArray,
    offset: IntArray,
    objects: IntArray,
    marked: BoolArray,
) -> tuple[_Blocks, BoolArray, IntArray]:
    """Return first blocks, whether each was read whole, and numbers of messages stated."""
    first = integers(data, position, 4)
    is_v2 = first == int.from_bytes(b"OHDR", "little")
    # Version 2: signature "OHDR" 4, version 1, flags 1, four times of 4 bytes each (if flag
    # bit 5), max. compact and min. dense attributes 2 + 2 (if bit 4), size of chunk #0 in
    # 1, 2, 4 or 8 bytes (bits 0 and 1), messages, checksum 4.
    flags = data[position + 5].astype(np.int64)
    size_at = 6 + np.where(flags & OHDR_TIMES, 16, 0) + np.where(flags & OHDR_PHASES, 4, 0)
    width = 1 << (flags & 3)
    size_v2 = integers(data, position + size_at, 8)
    bits = np.where(width == 8, 63, 8 * width)
    size_v2 = np.where((width == 8) & (size_v2 < 0), MAX_BLOCK_NBYTES + 1, size_v2)
    size_v2 &= (1 << bits.astype(np.int64)) - 1
    bad_v2 = (data[position + 4] != 2) | (flags & ~OHDR_FLAGS != 0)
    # Version 1: version 1, reserved 1, number of messages 2, reference count 4, bytes of
    # the messages 4, padding 4.
    version, n_messages = first & 0xFFFF, first >> 16
    bad_v1 = (version != 1) | (n_messages == 0) | (integers(data, position + 4, 4) == 0)
    size = np.where(is_v2, size_v2, integers(data, position + 8, 4))
    bad = np.where(is_v2, bad_v2, bad_v1) | (size > MAX_BLOCK_NBYTES)
    marked[objects[bad]] = True
    start = position + np.where(is_v2, size_at + width, _PREFIX_V1_NBYTES)
    blocks = _Blocks(
        object=objects,
        offset=offset,
        position=position,
        start=start,
        stop=start + np.where(bad, 0, size),
        version=np.where(is_v2, 2, 1),
        head_nbytes=np.where(is_v2, np.where(flags & OHDR_ORDERED, 6, 4), 8),
    )
    end = blocks.stop + np.where(is_v2, _CHECKSUM_NBYTES, 0)
    return blocks, (end <= position + nbytes) | bad, np.where(is_v2, -1, n_messages)


def _read_again(
    source: ByteSource, blocks: _Blocks, file_nbytes: int, marked: BoolArray
) -> tuple[ByteArray, _Blocks]:
    """Read first blocks that are longer than `FIRST_NBYTES` as a whole."""
    nbytes = blocks.stop - blocks.position + np.where(blocks.version == 2, _CHECKSUM_NBYTES, 0)
    bad = (nbytes > MAX_BLOCK_NBYTES) | (nbytes > file_nbytes - blocks.offset)
    marked[blocks.object[bad]] = True
    blocks, nbytes = blocks.take(~bad), nbytes[~bad]
    data, position = read_blocks(source, blocks.offset, nbytes)
    moved = position - blocks.position
    return data, replace(
        blocks, position=position, start=blocks.start + moved, stop=blocks.stop + moved
    )


def _walk_continuations(
    source: ByteSource,
    parts: list[HeaderMessages],
    first: _Blocks,
    form: FileFormat,
    marked: BoolArray,
) -> list[HeaderMessages]:
    """Follow the continuation messages of the first blocks, round by round."""
    head_nbytes, version = np.zeros((2, len(marked)), dtype=np.int64)
    head_nbytes[first.object], version[first.object] = first.head_nbytes, first.version
    # Object and first byte of each block: the same pair twice is a loop.
    visited = [np.stack([first.object, first.start_offset])]
    end = form.file_nbytes - form.base_address
    found = []
    for number in range(MAX_CONTINUATION_ROUNDS + 1):
        named = [_parse_continuations(part, form, marked) for part in parts]
        objects, address, nbytes = np.concatenate(named, axis=1)
        if number == MAX_CONTINUATION_ROUNDS:
            marked[objects] = True
        # Version 2: signature "OCHK" 4, messages, checksum 4. Version 1: messages only.
        is_v2 = version[objects] == 2
        bad = (address <= 0) | (address > end)
        bad |= (nbytes > MAX_BLOCK_NBYTES) | (nbytes > end - address)
        bad |= nbytes < np.where(is_v2, len(_CONTINUED) + _CHECKSUM_NBYTES + 1, 1)
        marked[objects[bad]] = True
        rows = np.flatnonzero(~marked[objects])
        if not len(rows):
            break
        objects, nbytes, is_v2 = objects[rows], nbytes[rows], is_v2[rows]
        offset = form.base_address + address[rows]
        data, position = read_blocks(source, offset, nbytes)
        signed = integers(data, position, 4) == int.from_bytes(_CONTINUED, "little")
        marked[objects[is_v2 & ~signed]] = True
        blocks = _Blocks(
            object=objects,
            offset=offset,
            position=position,
            start=position + np.where(is_v2, len(_CONTINUED), 0),
            stop=position + nbytes - np.where(is_v2, _CHECKSUM_NBYTES, 0),
            version=version[objects],
            head_nbytes=head_nbytes[objects],
        )
        visited.append(np.stack([objects, blocks.start_offset]))
        parts = [_walk(data, blocks, marked)]
        found += parts
    if found:
        _mark_repeated(np.concatenate(visited, axis=1), marked)
    return found


def _parse_continuations(part: HeaderMessages, form: FileFormat, marked: BoolArray) -> IntArray:
    """Return object, address and bytes of each block that a message names."""
    rows = np.flatnonzero(part.message_type == CONTINUATION_MESSAGE)
    objects, position = part.object[rows], part.position[rows]
    # The body: address of the block O, its bytes L.
    bad = part.nbytes[rows] < form.offset_size + form.length_size
    marked[objects[bad | (part.flags[rows] & SHARED != 0)]] = True
    address = integers(part.data, position, form.offset_size)
    nbytes = integers(part.data, position + form.offset_size, form.length_size)
    return np.stack([objects, address, nbytes])


def _mark_repeated(visited: IntArray, marked: BoolArray) -> None:
    """Mark objects that have one block twice."""
    objects, offset = visited
    order = np.lexsort((offset, objects))
    objects, offset = objects[order], offset[order]
    marked[objects[1:][(objects[1:] == objects[:-1]) & (offset[1:] == offset[:-1])]] = True


def _walk(data: ByteArray, blocks: _Blocks, marked: BoolArray) -> HeaderMessages:
    """Check the checksums of blocks and split them into messages."""
    blocks = blocks.take(~marked[blocks.object])
    is_v2 = np.flatnonzero(blocks.version == 2)
    if len(is_v2):
        # The checksum behind the messages covers the prefix or signature too.
        summed = blocks.take(is_v2)
        found = sum_blocks(data, summed.position, summed.stop - summed.position)
        marked[summed.object[found != integers(data, summed.stop, 4)]] = True
        blocks = blocks.take(~marked[blocks.object])
    columns: list[tuple[npt.NDArray[Any], ...]] = []
    at, stop, head, objects = blocks.start, blocks.stop, blocks.head_nbytes, blocks.object
    is_v1, shift = blocks.version == 1, blocks.offset - blocks.position
    only_v1 = bool(is_v1.all())
    for _ in range(MAX_MESSAGES):
        # Behind the last message of version 2 a gap may follow that holds no whole head.
        has_more = at + head <= stop
        if not has_more.all():
            at, stop, head = at[has_more], stop[has_more], head[has_more]
            objects, is_v1, shift = objects[has_more], is_v1[has_more], shift[has_more]
        if not len(at):
            break
        # Head of a message. Version 1: type 2, size 2, flags 1, reserved 3. Version 2:
        # type 1, size 2, flags 1, creation order 2 (if flag bit 2 of the header).
        word = integers(data, at, 4)
        message_type, size, flags = word & 0xFFFF, word >> 16, data[at + 4]
        if not only_v1:
            message_type = np.where(is_v1, message_type, word & 0xFF)
            size = np.where(is_v1, size, word >> 8 & 0xFFFF)
            flags = np.where(is_v1, flags, data[at + 3])
        body = at + head
        bad = (size > stop - body) | (is_v1 & (size % 8 != 0))
        if bad.any():
            marked[objects[bad]] = True
            size = np.where(bad, stop - body, size)
        columns.append((objects, message_type, flags, body, size, body + shift))
        at = body + size
    else:
        marked[objects[at + head <= stop]] = True
    joined: Any = [np.concatenate(column) for column in zip(*columns, strict=True)]
    joined = joined or np.zeros((len(_MESSAGE_COLUMNS), 0), dtype=np.int64)
    messages = dict(zip(_MESSAGE_COLUMNS, joined, strict=True))
    messages["flags"] = messages["flags"].astype(np.uint8)
    return HeaderMessages(data=data, marked=marked, **messages)


def _concat(parts: list[HeaderMessages]) -> HeaderMessages:
    """Concatenate messages of several reads, and the buffers that hold them."""
    if len(parts) == 1:
        return parts[0]
    before = np.cumsum([0, *(len(part.data) for part in parts[:-1])]).tolist()
    parts = [replace(p, position=p.position + b) for p, b in zip(parts, before, strict=True)]
    names = ("data", *_MESSAGE_COLUMNS)
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return HeaderMessages(marked=parts[0].marked, **columns)
