"""Object headers of many objects at once: their messages as columns.

In: addresses of object headers. Out: `HeaderMessages`, one row a message.

1. The first bytes of all headers are read, close ones together.
2. Prefixes are decoded as columns; they tell where the messages of each begin and end.
3. All headers are walked in step: one step decodes the next message of each.
4. Blocks that messages say the header continues in are read together, and walked as
   step 3 says; so on for those that they name.

What is decoded here is what libhdf5 usually writes. An object that asks for more (long
or many blocks), or contradicts the format in any way, is marked: `xref.hdf5.object_header` or
libhdf5 are to look at it alone, and say what is wrong with it.

Source: HDF5 File Format Specification 4.0, "Level 2A1 - Version 1 Data Object Header
Prefix", "Level 2A2 - Version 2 Data Object Header Prefix" and "The Object Header
Continuation Message".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays import BoolArray, ByteSource, IntArray
from xref.hdf5.checksums import sum_blocks
from xref.hdf5.object_header import CONTINUATION_MESSAGE, SHARED
from xref.hdf5.packed import ByteArray, integers, read_blocks

FIRST_NBYTES = 512
"""Bytes of each header that are read at first. Headers of datasets without attributes
that libhdf5 writes have 272 (benchmarks/small.py)."""

MAX_BLOCK_NBYTES = 4096
"""Longest block of messages that is decoded here."""

MAX_MESSAGES = 64
"""Most messages of one block that are decoded here."""

MAX_CONTINUATION_ROUNDS = 4
"""How many times blocks that headers continue in are read, one named by the other."""


_OHDR_FLAGS = 0x3F
_OHDR_ORDERED, _OHDR_PHASES, _OHDR_TIMES = 0x04, 0x10, 0x20
_PREFIX_V1_NBYTES = 16
_CHECKSUM_NBYTES = 4
_CONTINUED = b"OCHK"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeaderMessages:
    """The messages of n object headers, in no particular order of the objects.

    Messages of marked objects may be missing or make no sense.
    """

    data: ByteArray  # bytes of all blocks, and some zeros
    marked: BoolArray  # (n,), objects to look at alone
    object: IntArray  # (m,), which object each message is of
    kind: IntArray  # (m,), message type number
    flags: ByteArray  # (m,)
    position: IntArray  # (m,), where in `data` the body begins
    nbytes: IntArray  # (m,), of the body
    offset: IntArray  # (m,), byte of the file that the body begins at


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Blocks:
    """Blocks of messages: where they lie in the file, and what is in them."""

    object: IntArray  # (b,)
    offset: IntArray  # (b,), byte of the file that `position` stands for
    position: IntArray  # (b,), in the bytes read: of the prefix or signature
    start: IntArray  # (b,), in the bytes read: of the first message
    stop: IntArray  # (b,), behind the last one
    version: IntArray  # (b,), of the header
    head_nbytes: IntArray  # (b,), of the head of each message

    def take(self, rows: npt.NDArray[Any]) -> _Blocks:
        return _Blocks(**{name: getattr(self, name)[rows] for name in self.__slots__})


def read_headers(
    source: ByteSource,
    address: IntArray,
    *,
    base_address: int,
    file_nbytes: int,
    offset_size: int,
    length_size: int,
) -> HeaderMessages:
    """Read the object headers at addresses and split them into messages.

    Parameters
    ----------
    source : ByteSource
        The file.
    address : numpy.ndarray
        Shape ``(n,)``, int64, from the base address; 0 and below are marked.
    base_address, file_nbytes : int
        Bytes.
    offset_size, length_size : {2, 4, 8}
        Sizes of offsets and of lengths from the superblock, in bytes.
    """
    n = len(address)
    end = file_nbytes - base_address
    marked = (address <= 0) | (address > end - _PREFIX_V1_NBYTES)
    good = np.flatnonzero(~marked)
    offset = base_address + address[good]
    nbytes = np.minimum(FIRST_NBYTES, file_nbytes - offset)
    data, position = read_blocks(source, offset, nbytes)
    blocks, fits, n_stated = _parse_prefixes(data, position, nbytes, offset, good, marked)
    found = [_walk(data, blocks.take(fits), marked)]
    found.append(_walk(*_read_again(source, blocks.take(~fits), file_nbytes, marked), marked))
    head_nbytes, version = np.zeros((2, n), dtype=np.int64)
    head_nbytes[blocks.object], version[blocks.object] = blocks.head_nbytes, blocks.version
    named = [np.stack([blocks.object, blocks.offset + blocks.start - blocks.position])]
    fresh = found[:]
    for number in range(MAX_CONTINUATION_ROUNDS + 1):
        nexts = [_continuations(part, offset_size, length_size, marked) for part in fresh]
        of, to, length = np.concatenate(nexts, axis=1)
        if number == MAX_CONTINUATION_ROUNDS:
            marked[of] = True
        new = version[of] == 2
        bad = (to <= 0) | (to > end) | (length > MAX_BLOCK_NBYTES) | (length > end - to)
        bad |= length < np.where(new, len(_CONTINUED) + _CHECKSUM_NBYTES + 1, 1)
        marked[of[bad]] = True
        go = ~marked[of]
        of, to, length, new = of[go], to[go], length[go], new[go]
        if not len(of):
            break
        data, position = read_blocks(source, base_address + to, length)
        signed = integers(data, position, 4) == int.from_bytes(_CONTINUED, "little")
        marked[of[new & ~signed]] = True
        start = position + np.where(new, len(_CONTINUED), 0)
        blocks = _Blocks(
            object=of,
            offset=base_address + to,
            position=position,
            start=start,
            stop=position + length - np.where(new, _CHECKSUM_NBYTES, 0),
            version=version[of],
            head_nbytes=head_nbytes[of],
        )
        named.append(np.stack([of, base_address + to + start - position]))
        fresh = [_walk(data, blocks, marked)]
        found += fresh
    if len(named) > 1:
        _mark_repeated(np.concatenate(named, axis=1), marked)
    every = _joined([part for part in found if len(part.object)] or found[:1])
    # Version 1 states how many messages there are; version 2 does not (-1 here).
    stated = np.full(n, -1, dtype=np.int64)
    stated[good] = n_stated
    marked |= (stated >= 0) & (stated != np.bincount(every.object, minlength=n))
    return every


def _read_again(
    source: ByteSource, blocks: _Blocks, file_nbytes: int, marked: BoolArray
) -> tuple[ByteArray, _Blocks]:
    """Read first blocks that are longer than what was read, as a whole."""
    nbytes = blocks.stop - blocks.position + np.where(blocks.version == 2, _CHECKSUM_NBYTES, 0)
    bad = (nbytes > MAX_BLOCK_NBYTES) | (nbytes > file_nbytes - blocks.offset)
    marked[blocks.object[bad]] = True
    blocks, nbytes = blocks.take(~bad), nbytes[~bad]
    data, position = read_blocks(source, blocks.offset, nbytes)
    moved = position - blocks.position
    return data, replace(
        blocks, position=position, start=blocks.start + moved, stop=blocks.stop + moved
    )


def _continuations(
    part: HeaderMessages, offset_size: int, length_size: int, marked: BoolArray
) -> IntArray:
    """Return object, address and length of the blocks that messages name."""
    rows = np.flatnonzero(part.kind == CONTINUATION_MESSAGE)
    of, at = part.object[rows], part.position[rows]
    bad = (part.nbytes[rows] < offset_size + length_size) | (part.flags[rows] & SHARED != 0)
    marked[of[bad]] = True
    to = integers(part.data, at, offset_size)
    return np.stack([of, to, integers(part.data, at + offset_size, length_size)])


def _mark_repeated(named: IntArray, marked: BoolArray) -> None:
    """Mark objects that have one block twice."""
    of, place = named
    order = np.lexsort((place, of))
    of, place = of[order], place[order]
    marked[of[1:][(of[1:] == of[:-1]) & (place[1:] == place[:-1])]] = True


def _joined(parts: list[HeaderMessages]) -> HeaderMessages:
    """Put messages of several readings together, and the bytes that they are in."""
    if len(parts) == 1:
        return parts[0]
    before = np.cumsum([0, *(len(part.data) for part in parts[:-1])]).tolist()
    return HeaderMessages(
        data=np.concatenate([part.data for part in parts]),
        marked=parts[0].marked,
        object=np.concatenate([part.object for part in parts]),
        kind=np.concatenate([part.kind for part in parts]),
        flags=np.concatenate([part.flags for part in parts]),
        position=np.concatenate([p.position + b for p, b in zip(parts, before, strict=True)]),
        nbytes=np.concatenate([part.nbytes for part in parts]),
        offset=np.concatenate([part.offset for part in parts]),
    )


def _parse_prefixes(
    data: ByteArray,
    position: IntArray,
    nbytes: IntArray,
    offset: IntArray,
    number: IntArray,
    marked: BoolArray,
) -> tuple[_Blocks, BoolArray, IntArray]:
    """Return the first block of each header, whether it was read, and messages stated."""
    first = integers(data, position, 4)
    new = first == int.from_bytes(b"OHDR", "little")
    flags = data[position + 5].astype(np.int64)
    at = 6 + np.where(flags & _OHDR_TIMES, 16, 0) + np.where(flags & _OHDR_PHASES, 4, 0)
    width = 1 << (flags & 3)
    size_new = integers(data, position + at, 8)
    bits = np.where(width == 8, 63, 8 * width)
    size_new = np.where((width == 8) & (size_new < 0), MAX_BLOCK_NBYTES + 1, size_new)
    size_new &= (1 << bits.astype(np.int64)) - 1
    n_stated = np.where(new, -1, first >> 16)
    old_bad = (
        (first & 0xFFFF != 1) | (first >> 16 == 0) | (integers(data, position + 4, 4) == 0)
    )
    new_bad = (data[position + 4] != 2) | (flags & ~_OHDR_FLAGS != 0)
    bad = np.where(new, new_bad, old_bad)
    size = np.where(new, size_new, integers(data, position + 8, 4))
    bad |= size > MAX_BLOCK_NBYTES
    marked[number[bad]] = True
    start = position + np.where(new, at + width, _PREFIX_V1_NBYTES)
    blocks = _Blocks(
        object=number,
        offset=offset,
        position=position,
        start=start,
        stop=start + np.where(bad, 0, size),
        version=np.where(new, 2, 1),
        head_nbytes=np.where(new, np.where(flags & _OHDR_ORDERED, 6, 4), 8),
    )
    end = blocks.stop + np.where(new, _CHECKSUM_NBYTES, 0)
    fits = end <= position + nbytes
    return blocks, fits | bad, n_stated


def _walk(data: ByteArray, blocks: _Blocks, marked: BoolArray) -> HeaderMessages:
    """Split blocks of bytes that were read into messages."""
    blocks = blocks.take(~marked[blocks.object])
    new = np.flatnonzero(blocks.version == 2)
    if len(new):
        summed = blocks.take(new)
        found = sum_blocks(data, summed.position, summed.stop - summed.position)
        marked[summed.object[found != integers(data, summed.stop, 4)]] = True
        blocks = blocks.take(~marked[blocks.object])
    columns: list[tuple[npt.NDArray[Any], ...]] = []
    at, stop, head, of = blocks.start, blocks.stop, blocks.head_nbytes, blocks.object
    old, shift = blocks.version == 1, blocks.offset - blocks.position
    every_old = bool(old.all())
    for _ in range(MAX_MESSAGES):
        live = at + head <= stop
        if not live.all():
            at, stop, head, of = at[live], stop[live], head[live], of[live]
            old, shift = old[live], shift[live]
        if not len(at):
            break
        word = integers(data, at, 4)
        kind, size, flags = word & 0xFFFF, word >> 16, data[at + 4]
        if not every_old:
            kind = np.where(old, kind, word & 0xFF)
            size = np.where(old, size, word >> 8 & 0xFFFF)
            flags = np.where(old, flags, data[at + 3])
        body = at + head
        bad = (size > stop - body) | (old & (size % 8 != 0))
        if bad.any():
            marked[of[bad]] = True
            size = np.where(bad, stop - body, size)
        columns.append((of, kind, flags, body, size, body + shift))
        at = body + size
    else:
        marked[of[at + head <= stop]] = True
    joined = [np.concatenate(c) for c in zip(*columns, strict=True)]
    if not joined:
        joined = [np.zeros(0, dtype=np.int64) for _ in range(6)]
    of, kind, flags, body, size, place = joined
    return HeaderMessages(
        data=data,
        marked=marked,
        object=of,
        kind=kind,
        flags=flags.astype(np.uint8),
        position=body,
        nbytes=size,
        offset=place,
    )
