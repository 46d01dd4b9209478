"""Global heap collections: where each object of many collections lies.

In: the bytes of collections, end to end in one buffer, each begun at a multiple
of eight. Out: position and size of every heap object asked for.

All collections are walked in lockstep: one NumPy step moves each of them to its
next object, so a million references cost about as many steps as one collection
has objects (a thousand), not a million. A handful of collections is walked with
plain integers, which is faster there.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 1E - Global Heap".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xref.columns import FrozenColumns, IntArray, row_offsets
from xref.errors import CorruptFileError

HEADER_NBYTES = 16
"""Bytes before the first object of a collection, and before each object's data."""

FEW_COLLECTIONS = 4
"""Up to so many collections are walked one by one (benchmarks/decode.py)."""

_MAX_OBJECTS = 0xFFFF


def parse_collection_sizes(
    heads: npt.NDArray[np.uint8], length_size: int, describe: Callable[[int], str]
) -> IntArray:
    """Check the signatures of collections and return their sizes.

    Parameters
    ----------
    heads : numpy.ndarray
        Shape ``(n, 16)``: the first bytes of each collection.
    length_size : {2, 4, 8}
        Size of lengths from the superblock, in bytes.
    describe : callable
        Names collection i in errors.

    Returns
    -------
    numpy.ndarray
        Shape ``(n,)``, bytes, header included.
    """
    wrong = np.flatnonzero((heads[:, :5] != np.frombuffer(b"GCOL\x01", np.uint8)).any(axis=1))
    if len(wrong):
        found = heads[wrong[0], :5].tobytes()
        raise CorruptFileError(
            f"{describe(int(wrong[0]))} has no global heap collection: the bytes there begin "
            f"with {found!r}, not with b'GCOL\\x01'"
        )
    size = np.ascontiguousarray(heads[:, 8 : 8 + length_size]).view(f"<u{length_size}")[:, 0]
    wrong = np.flatnonzero((size < HEADER_NBYTES) | (size > np.uint64(2**62)))
    if len(wrong):
        raise CorruptFileError(
            f"{describe(int(wrong[0]))} has a global heap collection of {size[wrong[0]]} bytes"
        )
    return size.astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeapObjects(FrozenColumns):
    """Every object of some collections; ``key`` is collection * 65536 + object index."""

    key: IntArray  # (n,), ascending
    position: IntArray  # (n,), byte in the buffer where the object's data begin
    nbytes: IntArray  # (n,), bytes of data

    def find(
        self, collection: IntArray, index: IntArray, describe: Callable[[int], str]
    ) -> tuple[IntArray, IntArray]:
        """Return position and size of one object a row.

        Raises
        ------
        CorruptFileError
            If a collection has no object of that index, or more than one.
        """
        key = (collection << 16) | np.minimum(index, _MAX_OBJECTS)
        n_slots = int(self.key[-1]) + 1 if len(self.key) else 0
        if n_slots <= 16 * len(self.key) + (1 << 20):
            # One slot a possible key: a plain look-up, whatever the order of rows.
            slot = np.full(max(n_slots, int(key.max()) + 1 if len(key) else 0), -1)
            slot[self.key] = np.arange(len(self.key))
            at = slot[key]
        else:
            at = np.minimum(np.searchsorted(self.key, key), len(self.key) - 1)
            at[self.key[at] != key] = -1
        missing = np.flatnonzero((at < 0) | (index > _MAX_OBJECTS) | (index < 1))
        if len(missing):
            row = int(missing[0])
            raise CorruptFileError(
                f"{describe(row)} names object {index[row]} of its global heap collection, "
                "which has none of that number"
            )
        return self.position[at], self.nbytes[at]


def walk_collections(
    buffer: npt.NDArray[np.uint8],
    base: IntArray,
    size: IntArray,
    length_size: int,
    describe: Callable[[int], str],
) -> HeapObjects:
    """Find all objects of all collections.

    Parameters
    ----------
    buffer : numpy.ndarray
        1-D, uint8, aligned to eight bytes and a multiple of eight long.
    base, size : numpy.ndarray
        Shape ``(n,)``: where in the buffer each collection begins (a multiple of
        eight), and its bytes.
    length_size : {2, 4, 8}
        Size of lengths from the superblock, in bytes.
    describe : callable
        Names collection i in errors.

    Raises
    ------
    CorruptFileError
        If an object reaches past its collection, or a number stands twice.
    """
    walk = _walk_each if len(base) <= FEW_COLLECTIONS else _walk_lockstep
    collection, index, position, nbytes = walk(buffer, base, size, length_size, describe)
    key = (collection << 16) | index
    order = np.argsort(key, kind="stable")
    key = key[order]
    twice = np.flatnonzero(key[1:] == key[:-1])
    if len(twice):
        k, i = divmod(int(key[twice[0]]), 1 << 16)
        raise CorruptFileError(
            f"{describe(k)} has a global heap collection with two objects {i}"
        )
    return HeapObjects(key=key, position=position[order], nbytes=nbytes[order])


def _walk_lockstep(
    buffer: npt.NDArray[np.uint8],
    base: IntArray,
    size: IntArray,
    length_size: int,
    describe: Callable[[int], str],
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    words = buffer.view("<u8")
    lanes = np.arange(len(base))
    at = (base + HEADER_NBYTES) >> 3
    end = (base + size) >> 3
    mask = np.uint64(2 ** (8 * length_size) - 1)
    found: list[tuple[IntArray, IntArray, IntArray, IntArray]] = []
    live = at + 2 <= end
    while True:
        lanes, at, end = (lanes, at, end) if live.all() else (lanes[live], at[live], end[live])
        if not len(lanes):
            break
        index = (words[at] & np.uint64(0xFFFF)).astype(np.int64)
        used = index != 0  # index 0 is the free space behind the last object
        if not used.all():
            lanes, at, end, index = lanes[used], at[used], end[used], index[used]
            if not len(lanes):
                break
        nbytes = words[at + 1] & mask
        over = np.flatnonzero(nbytes > ((end - at - 2) << 3).astype(np.uint64))
        if len(over):
            _raise_overrun(describe(int(lanes[over[0]])), int(index[over[0]]))
        if len(found) > _MAX_OBJECTS:
            raise CorruptFileError(
                f"{describe(int(lanes[0]))} has a global heap collection of more than "
                f"{_MAX_OBJECTS} objects"
            )
        length = nbytes.astype(np.int64)
        found.append((lanes, index, (at + 2) << 3, length))
        at = at + 2 + ((length + 7) >> 3)
        live = at + 2 <= end
    if not found:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, nothing, nothing
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    return columns[0], columns[1], columns[2], columns[3]


def _walk_each(
    buffer: npt.NDArray[np.uint8],
    base: IntArray,
    size: IntArray,
    length_size: int,
    describe: Callable[[int], str],
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    read = struct.Struct("<H6xQ").unpack_from
    data = memoryview(buffer)  # type: ignore[arg-type]
    mask = 2 ** (8 * length_size) - 1
    rows: list[tuple[int, int, int, int]] = []
    for k, (begin, length) in enumerate(zip(base.tolist(), size.tolist(), strict=True)):
        at, end, n = begin + HEADER_NBYTES, begin + length, 0
        while at + 16 <= end:
            index, nbytes = read(data, at)
            nbytes &= mask
            if index == 0:
                break
            if nbytes > end - at - 16:
                _raise_overrun(describe(k), index)
            n += 1
            if n > _MAX_OBJECTS:
                raise CorruptFileError(
                    f"{describe(k)} has a global heap collection of more than "
                    f"{_MAX_OBJECTS} objects"
                )
            rows.append((k, index, at + 16, nbytes))
            at += 16 + (nbytes + 7) // 8 * 8
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]


def _raise_overrun(where: str, index: int) -> None:
    raise CorruptFileError(
        f"{where} has a global heap collection whose object {index} reaches past its end"
    )


def pack_collections(size: IntArray) -> IntArray:
    """Return where each collection begins in a buffer that aligns them to eight bytes.

    Shape ``(n + 1,)``; the last entry is the length of the buffer.
    """
    return row_offsets((size + 7) & ~7)
