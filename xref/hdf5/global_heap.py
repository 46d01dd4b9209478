"""Global heap collections: where each object of many collections lies.

In: the bytes of collections, end to end in one buffer, each begun at a multiple
of eight. Out: position and size of every heap object asked for.

All collections are walked at once. An object says how long it is, so the next one
is found only when this one is read; but references of one dataset are nearly all
of one length. Each step guesses that the next objects of every collection are as
long as the present one, reads all their headers in one gather, and keeps the
leading ones that are: their places are then certain. A million references take
some tens of NumPy steps, not a million.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 1E - Global Heap".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xref.arrays import FrozenColumns, IntArray, row_offsets
from xref.errors import CorruptFileError

HEADER_NBYTES = 16
"""Bytes before the first object of a collection, and before each object's data."""

MAX_OBJECTS = 0xFFFF
"""Objects are numbered from 1 with 16 bits."""

OBJECTS_AHEAD = 256
"""Objects of one length that a step looks ahead at most (benchmarks/decode.py)."""

_HEADERS_AT_ONCE = 1 << 20


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
    """Every object of some collections, by ``key = collection * width + index``.

    Objects come in no particular order. ``row`` has a slot for every possible key;
    where that would be out of proportion to the objects, it is None and keys are
    searched by their ``order`` instead.
    """

    width: int  # above the largest index
    key: IntArray  # (n,)
    position: IntArray  # (n,), byte in the buffer where the object's data begin
    nbytes: IntArray  # (n,), bytes of data
    row: IntArray | None  # (slots,), -1 where there is no object
    order: IntArray  # (n,) or empty

    @classmethod
    def from_columns(
        cls,
        collection: IntArray,
        index: IntArray,
        position: IntArray,
        nbytes: IntArray,
        describe: Callable[[int], str],
    ) -> HeapObjects:
        """Index objects by key; an index may stand once in a collection."""
        width = int(index.max(initial=0)) + 1
        key = collection * width + index
        n_slots = int(key.max(initial=-1)) + 1
        order = np.zeros(0, dtype=np.int64)
        if n_slots <= 16 * len(key) + (1 << 20):
            row: IntArray | None = np.full(n_slots, -1)
            row[key] = np.arange(len(key))  # type: ignore[index]
            again = key[row[key] != np.arange(len(key))]  # type: ignore[index]
        else:
            row, order = None, np.argsort(key, kind="stable")
            sorted_key = key[order]
            again = sorted_key[1:][sorted_key[1:] == sorted_key[:-1]]
        if len(again):
            k, number = divmod(int(again[0]), width)
            raise CorruptFileError(
                f"{describe(k)} has a global heap collection with two objects {number}"
            )
        return cls(
            width=width,
            key=key,
            position=position,
            nbytes=nbytes,
            row=row,
            order=order,
        )

    def find(
        self, collection: IntArray, index: IntArray, describe: Callable[[int], str]
    ) -> tuple[IntArray, IntArray]:
        """Return position and size of one object a row.

        Raises
        ------
        CorruptFileError
            If a collection has no object of that index.
        """
        possible = (index >= 1) & (index < self.width)
        key = collection * self.width + np.where(possible, index, 0)
        if self.row is not None:
            possible &= key < len(self.row)
            at = (
                self.row[np.where(possible, key, 0)] if len(self.row) else np.full(len(key), -1)
            )
        else:
            place = np.searchsorted(self.key, key, sorter=self.order)
            at = self.order[np.minimum(place, len(self.order) - 1)]
            at = np.where(self.key[at] == key, at, -1)
        missing = np.flatnonzero((at < 0) | ~possible)
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
    words = buffer.view("<u8")
    mask = np.uint64(2 ** (8 * length_size) - 1)
    lanes, ahead = np.arange(len(base)), 1
    at, stop = (base + HEADER_NBYTES) >> 3, base + size
    n_seen = np.zeros(len(base), dtype=np.int64)
    found: list[tuple[IntArray, IntArray, IntArray, IntArray]] = []
    live = (at + 2) << 3 <= stop
    while True:
        if not live.all():
            lanes, at, stop, n_seen = lanes[live], at[live], stop[live], n_seen[live]
        if not len(lanes):
            break
        used = (words[at] & np.uint64(MAX_OBJECTS)) != 0  # 0 is free space, of any length
        length = np.where(used, words[at + 1] & mask, np.uint64(0))
        over = np.flatnonzero(length > (stop - ((at + 2) << 3)).astype(np.uint64))
        if len(over):
            lane = int(over[0])
            index = int(words[at[lane]] & np.uint64(MAX_OBJECTS))
            raise CorruptFileError(
                f"{describe(int(lanes[lane]))} has a global heap collection whose object "
                f"{index} reaches past its end"
            )
        n = max(min(ahead, _HEADERS_AT_ONCE // len(lanes)), 1)
        step = 2 + ((length.astype(np.int64) + 7) >> 3)
        place = at[:, None] + step[:, None] * np.arange(n)
        alike = np.arange(n) < (((stop >> 3) - at) // step)[:, None]
        np.minimum(place, len(words) - 2, out=place)
        numbers = words[place] & np.uint64(MAX_OBJECTS)
        alike &= (numbers != 0) & ((words[place + 1] & mask) == length[:, None])
        alike[:, 0] = used  # it fits, its padding may not
        run = np.where(alike.all(axis=1), n, alike.argmin(axis=1))
        taken = np.arange(n) < run[:, None]
        found.append(
            (
                np.repeat(lanes, run),
                numbers[taken].astype(np.int64),
                (place[taken] + 2) << 3,
                np.repeat(length.astype(np.int64), run),
            )
        )
        at, n_seen = at + step * run, n_seen + run
        if (n_seen > MAX_OBJECTS).any():
            raise CorruptFileError(
                f"{describe(int(lanes[n_seen.argmax()]))} has a global heap collection of more "
                f"than {MAX_OBJECTS} objects"
            )
        # A lane that took no object stands at free space, or at its end.
        live = (run > 0) & ((at + 2) << 3 <= stop)
        most_agreed = 2 * np.count_nonzero(run == n) >= len(run)
        ahead = min(4 * ahead, OBJECTS_AHEAD) if most_agreed else max(ahead // 2, 1)
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    collection, index_of, position, nbytes = columns or [np.zeros(0, dtype=np.int64)] * 4
    return HeapObjects.from_columns(collection, index_of, position, nbytes, describe)


def pack_collections(size: IntArray) -> IntArray:
    """Return where each collection begins in a buffer that aligns them to eight bytes.

    Shape ``(n + 1,)``; the last entry is the length of the buffer.
    """
    return row_offsets((size + 7) & ~7)
