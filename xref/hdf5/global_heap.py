"""Global heap collections: where each object of many collections lies.

In: the bytes of collections, one after the other in one buffer, each at a multiple of eight
bytes. Out: position and size of every heap object asked for.

All collections are walked at once. The header of an object says how long the object is, and so
where the next header lies. But references of one dataset are nearly all of one length. Each
step guesses that the next objects of a collection are as long as its present one, reads all
their headers with one index, and keeps those before the first header that differs: their
places are then certain. A million references take some tens of NumPy steps, not a million.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 1E - Global Heap".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xref.arrays import FrozenColumns, IntArray, row_offsets
from xref.errors import CorruptFileError

# Collection: char[4] "GCOL", uint8 version (1), 3 reserved bytes, collection size (size of
# lengths; it includes this header). Heap objects follow, each at a multiple of eight bytes:
# uint16 heap object index, uint16 reference count, uint32 reserved, object size (size of
# lengths; without this header), the data.
# With lengths of eight bytes both headers are 16 bytes; libhdf5 pads shorter ones to that.
HEADER_NBYTES = 16
"""Bytes before the first object of a collection, and before each object's data."""

MAX_OBJECTS = 0xFFFF
"""Objects are numbered from 1 with 16 bits."""

OBJECTS_AHEAD = 256
"""Most objects of one collection that a step takes together (benchmarks/decode.py)."""

_HEADERS_AT_ONCE = 1 << 20  # of all collections, which bounds the memory of a step


def parse_collection_sizes(
    heads: npt.NDArray[np.uint8], length_size: int, describe: Callable[[int], str]
) -> IntArray:
    """Check the signatures of collections and return their sizes, headers included.

    ``heads``, shape ``(n, 16)``, has the first bytes of each collection; ``length_size`` is the
    size of lengths from the superblock: 2, 4 or 8 bytes; ``describe`` names collection i in
    errors. The sizes, in bytes, have the shape ``(n,)``.
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

    Objects are in any order. ``row`` has an entry for every possible key. If there would be
    far more keys than objects, ``row`` is None, and keys are searched by their ``order``.
    """

    width: int  # one more than the largest index
    key: IntArray  # (n,)
    position: IntArray  # (n,), byte in the buffer where the object's data begin
    nbytes: IntArray  # (n,), bytes of data
    row: IntArray | None  # (keys,), -1 for a key without object
    order: IntArray  # (n,), sorts ``key``; empty where ``row`` is given

    @classmethod
    def from_columns(
        cls,
        collection: IntArray,
        index: IntArray,
        position: IntArray,
        nbytes: IntArray,
        describe: Callable[[int], str],
    ) -> HeapObjects:
        """Index objects by key; two objects of a collection must not share a number."""
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
        return cls(width=width, key=key, position=position, nbytes=nbytes, row=row, order=order)

    def find(
        self, collection: IntArray, index: IntArray, describe: Callable[[int], str]
    ) -> tuple[IntArray, IntArray]:
        """Return position and size of object ``index`` of ``collection``, each ``(n,)``.

        Raises CorruptFileError if a collection has no object of that index.
        """
        possible = (index >= 1) & (index < self.width)
        key = collection * self.width + np.where(possible, index, 0)
        if self.row is not None:
            possible &= key < len(self.row)
            row = self.row[np.where(possible, key, 0)] if len(self.row) else key * 0 - 1
        else:
            place = np.searchsorted(self.key, key, sorter=self.order)
            row = self.order[np.minimum(place, len(self.order) - 1)]
            row = np.where(self.key[row] == key, row, -1)
        missing = np.flatnonzero((row < 0) | ~possible)
        if len(missing):
            i = int(missing[0])
            raise CorruptFileError(
                f"{describe(i)} names object {index[i]} of its global heap collection, "
                "which has none of that number"
            )
        return self.position[row], self.nbytes[row]


def walk_collections(
    buffer: npt.NDArray[np.uint8],
    base: IntArray,
    size: IntArray,
    length_size: int,
    describe: Callable[[int], str],
) -> HeapObjects:
    """Find all objects of all collections.

    ``buffer`` is 1-D, uint8, aligned to eight bytes and a multiple of eight long. ``base`` and
    ``size``, shape ``(n,)``: where in it each collection begins (a multiple of eight), and its
    bytes. ``length_size`` is the size of lengths from the superblock: 2, 4 or 8 bytes;
    ``describe`` names collection i in errors. Raises CorruptFileError if an object reaches past
    its collection, or if two objects have one number.
    """
    words = buffer.view("<u8")
    mask = np.uint64(2 ** (8 * length_size) - 1)
    collection, ahead = np.arange(len(base)), 1
    # The word in which the next object's header begins, in each collection.
    word, stop = (base + HEADER_NBYTES) >> 3, base + size
    n_objects = np.zeros(len(base), dtype=np.int64)
    columns: list[tuple[IntArray, IntArray, IntArray, IntArray]] = []
    has_more = (word + 2) << 3 <= stop
    while True:
        if not has_more.all():
            collection, word, stop = collection[has_more], word[has_more], stop[has_more]
            n_objects = n_objects[has_more]
        if not len(collection):
            break
        # Object 0 is free space up to the end of the collection, whatever its length.
        used = (words[word] & np.uint64(MAX_OBJECTS)) != 0
        length = np.where(used, words[word + 1] & mask, np.uint64(0))
        over = np.flatnonzero(length > (stop - ((word + 2) << 3)).astype(np.uint64))
        if len(over):
            row = int(over[0])
            index = int(words[word[row]] & np.uint64(MAX_OBJECTS))
            raise CorruptFileError(
                f"{describe(int(collection[row]))} has a global heap collection whose object "
                f"{index} reaches past its end"
            )
        n = max(min(ahead, _HEADERS_AT_ONCE // len(collection)), 1)
        run, index_of, position = _take_alike(words, mask, word, stop, (used, length), n)
        nbytes = length.astype(np.int64)
        columns.append((np.repeat(collection, run), index_of, position, np.repeat(nbytes, run)))
        word, n_objects = word + (2 + ((nbytes + 7) >> 3)) * run, n_objects + run
        if (n_objects > MAX_OBJECTS).any():
            raise CorruptFileError(
                f"{describe(int(collection[n_objects.argmax()]))} has a global heap collection "
                f"of more than {MAX_OBJECTS} objects"
            )
        # A collection without a further object is at its free space, or at its end.
        has_more = (run > 0) & ((word + 2) << 3 <= stop)
        most_agreed = 2 * np.count_nonzero(run == n) >= len(run)
        ahead = min(4 * ahead, OBJECTS_AHEAD) if most_agreed else max(ahead // 2, 1)
    none = (np.zeros(0, dtype=np.int64),) * 4
    collection, index_of, position, nbytes = (
        np.concatenate(column) for column in zip(none, *columns, strict=True)
    )
    return HeapObjects.from_columns(collection, index_of, position, nbytes, describe)


def _take_alike(
    words: npt.NDArray[np.uint64],
    mask: np.uint64,
    word: IntArray,
    stop: IntArray,
    first: tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint64]],
    n: int,
) -> tuple[IntArray, IntArray, IntArray]:
    """Take up to n objects of each collection that are as long as its next one.

    ``words`` is the buffer as numbers of eight bytes; ``mask`` has the bits of a length.
    ``word`` and ``stop``, shape ``(k,)``: word of the next header, and byte at which the
    collection ends. ``first``: whether the next object is there, and its bytes, each ``(k,)``.
    Returns the objects taken of each collection, shape ``(k,)``, and of all of them the number
    and the byte at which the data begin, shape ``(run.sum(),)``.
    """
    used, length = first
    # Data are padded to whole words; a header has two.
    step = 2 + ((length.astype(np.int64) + 7) >> 3)
    places = word[:, None] + step[:, None] * np.arange(n)
    alike = np.arange(n) < (((stop >> 3) - word) // step)[:, None]
    np.minimum(places, len(words) - 2, out=places)
    numbers = words[places] & np.uint64(MAX_OBJECTS)
    alike &= (numbers != 0) & ((words[places + 1] & mask) == length[:, None])
    alike[:, 0] = used  # the first one fits, but its padding may reach past the end
    run = np.where(alike.all(axis=1), n, alike.argmin(axis=1))
    taken = np.arange(n) < run[:, None]
    return run, numbers[taken].astype(np.int64), (places[taken] + 2) << 3


def pack_collections(size: IntArray) -> IntArray:
    """Return where each collection begins in a buffer, at multiples of eight bytes.

    Shape ``(n + 1,)``; the last entry is the size of the buffer.
    """
    return row_offsets((size + 7) & ~7)
