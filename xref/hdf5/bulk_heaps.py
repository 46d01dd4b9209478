"""Global heap objects of a file, read for many references at once.

In: the global heap IDs of references (address of a collection, heap object index). Out:
batches of collections, or of objects, in one buffer each. Every collection is read once, in
file order; `xref.hdf5.global_heap` finds the objects in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from xref.arrays import IntArray, RangeSource, row_offsets, run_starts
from xref.errors import CorruptFileError
from xref.hdf5.global_heap import (
    HEADER_NBYTES,
    pack_collections,
    parse_collection_sizes,
    walk_collections,
)
from xref.hdf5.selection_decoding import split_heap_ids
from xref.hdf5.superblock import FileContent

HEAP_BATCH_NBYTES = 4 << 20
"""Bytes of collections in memory at a time: few enough that decoding finds most of them in a
cache of the processor (benchmarks/decode.py)."""

_MAX_SIZE_CHANGES = 4
"""Batches also end where the size of collections changes, if it changes at most so many times,
or at most once in eight collections: a batch costs some 100 us."""


@dataclass(frozen=True, slots=True)
class HeapBatch:
    """Heap objects of some references, in memory."""

    rows: npt.NDArray[np.intp]  # (m,), which references
    buffer: npt.NDArray[np.uint8]
    position: IntArray  # (m,), byte of the buffer where the object's data begin
    nbytes: IntArray  # (m,)
    describe: Callable[[int], str]  # names reference i of the batch


@dataclass(frozen=True, slots=True)
class HeapCollections:
    """k global heap collections in memory, and all m references to their objects."""

    rows: npt.NDArray[np.intp] | slice  # m of them, which references
    collection: IntArray  # (m,), row of the collection that each names
    index: IntArray  # (m,), heap object index
    buffer: npt.NDArray[np.uint8]
    base: IntArray  # (k,), byte of the buffer where each collection begins
    size: IntArray  # (k,), bytes
    length_size: int
    describe: Callable[[int], str]  # names reference i of the m
    describe_collection: Callable[[int], str]  # names collection i of the k

    def find_objects(self) -> HeapBatch:
        """Return the objects that the references name.

        Raises
        ------
        CorruptFileError
            If there is no such object.
        """
        objects = walk_collections(
            self.buffer, self.base, self.size, self.length_size, self.describe_collection
        )
        position, nbytes = objects.find(self.collection, self.index, self.describe)
        rows = self.rows
        if isinstance(rows, slice):
            rows = np.arange(rows.start, rows.stop)
        return HeapBatch(rows, self.buffer, position, nbytes, self.describe)


def read_heap_objects(
    file: FileContent,
    heap: IntArray,
    index: IntArray,
    live: npt.NDArray[np.intp],
    describe: Callable[[int], str],
) -> Iterator[HeapBatch]:
    """Read the global heap objects that references name, each collection once.

    Parameters and errors are those of `read_collections`. A heap object index that no object
    has is an error too.

    Yields
    ------
    HeapBatch
        Objects of collections of up to `HEAP_BATCH_NBYTES` together, in file order.
    """
    for collections in read_collections(file, heap, index, live, describe):
        yield collections.find_objects()


def read_collections(
    file: FileContent,
    heap: IntArray,
    index: IntArray,
    live: npt.NDArray[np.intp],
    describe: Callable[[int], str],
) -> Iterator[HeapCollections]:
    """Read the global heap collections that references name, each once.

    Parameters
    ----------
    file : FileContent
        The file of the heap.
    heap, index : numpy.ndarray
        Shape ``(n,)``: address of the collection and index of the object.
    live : numpy.ndarray
        The rows that name an object; the others are null.
    describe : callable
        Names row i in errors.

    Yields
    ------
    HeapCollections
        Up to `HEAP_BATCH_NBYTES` together, in file order.

    Raises
    ------
    CorruptFileError
        If there is no such collection.
    """
    if not len(live):
        return
    form = file.form
    everything = len(live) == len(heap)
    if not everything:
        heap, index = heap[live], index[live]
    address, collection = _distinct(heap)

    def describe_collection(k: int) -> str:
        return describe(int(live[np.flatnonzero(collection == k)[0]]))

    position, size = _read_sizes(file, address, describe_collection)
    ordered = bool((collection[1:] >= collection[:-1]).all())
    by_collection = None if ordered else np.argsort(collection, kind="stable")
    edges = _batch_edges(size)
    cuts = np.searchsorted(collection, edges, sorter=by_collection).tolist()
    for i, (begin, end) in enumerate(pairwise(edges.tolist())):
        part: npt.NDArray[np.intp] | slice = slice(cuts[i], cuts[i + 1])
        if by_collection is not None:
            part = by_collection[part]

        def describe_row(i: int, part: npt.NDArray[np.intp] | slice = part) -> str:
            return describe(int(live[part][i]))

        base = pack_collections(size[begin:end])
        buffer = np.zeros(int(base[-1]) + 8, dtype=np.uint8)
        _read_merged(file.source, position[begin:end], size[begin:end], buffer, base[:-1])
        yield HeapCollections(
            part if everything else live[part],
            collection[part] - begin,
            index[part],
            buffer,
            base[:-1],
            size[begin:end],
            form.length_size,
            describe_row,
            lambda k, begin=begin: describe_collection(begin + k),  # type: ignore[misc]
        )


def _read_sizes(
    file: FileContent, address: IntArray, describe: Callable[[int], str]
) -> tuple[IntArray, IntArray]:
    """Read the headers of collections; return where each begins in the file, and its size.

    The collections must be disjoint and inside the file, so that all of them together are
    not larger than the file.
    """
    form = file.form
    position = address + form.base_address
    outside = (address <= 0) | (position > form.file_nbytes - HEADER_NBYTES)
    if outside.any():
        k = int(np.flatnonzero(outside)[0])
        named = int(address[k]) & (2**64 - 1)
        raise CorruptFileError(
            f"{describe(k)} has heap address {named:#x}, "
            f"past the end of the file ({form.file_nbytes} bytes); the file may be truncated"
        )
    heads = np.empty((len(address), HEADER_NBYTES), dtype=np.uint8)
    places = HEADER_NBYTES * np.arange(len(address))
    file.source.read_ranges(
        position, np.full(len(address), HEADER_NBYTES), heads.reshape(-1), places
    )
    size = parse_collection_sizes(heads, form.length_size, describe)
    limit = np.append(position[1:], form.file_nbytes)
    wrong = np.flatnonzero(position + size > limit)
    if len(wrong):
        k = int(wrong[0])
        end = "the next one" if k + 1 < len(size) else "the end of the file"
        raise CorruptFileError(
            f"{describe(k)} has a global heap collection of {size[k]} bytes at "
            f"{int(position[k]):#x}, which reaches past {end}"
        )
    return position, size


def _batch_edges(size: IntArray) -> npt.NDArray[np.intp]:
    """Return where batches begin: by bytes, and where the size changes if it seldom changes.

    Collections of one size may be decoded as one table (`xref.hdf5.bulk_boxes`).
    """
    batch = (np.cumsum(size) - size) // HEAP_BATCH_NBYTES
    is_edge = np.diff(batch, prepend=-1, append=-1) != 0
    changes = np.flatnonzero(size[1:] != size[:-1]) + 1
    if len(changes) <= max(_MAX_SIZE_CHANGES, len(size) // 8):
        is_edge[changes] = True
    return np.flatnonzero(is_edge)


def _read_merged(
    source: RangeSource,
    position: IntArray,
    size: IntArray,
    buffer: npt.NDArray[np.uint8],
    at: IntArray,
) -> None:
    """Read ranges of the file; ranges adjacent in the file and in the buffer with one read."""
    end = position + size
    apart = (end[:-1] != position[1:]) | (at[:-1] + size[:-1] != at[1:])
    first = np.flatnonzero(np.concatenate([[True], apart]))
    last = np.append(first[1:], len(position)) - 1
    source.read_ranges(position[first], end[last] - position[first], buffer, at[first])


@dataclass(frozen=True, slots=True)
class Sequences:
    """Elements of n variable-length sequences; those of a heap object are here once."""

    length: IntArray  # (n,), elements of each sequence
    begin: IntArray  # (n,), row of `elements` of its first element
    elements: npt.NDArray[np.uint8]  # (m, itemsize), as stored
    owner: npt.NDArray[np.intp]  # (m,), a sequence that has this element


def read_sequences(
    file: FileContent, raw: npt.NDArray[np.uint8], itemsize: int, describe: Callable[[int], str]
) -> Sequences:
    """Read the elements of variable-length sequences.

    Sequences that share a heap object share its elements, so the result is never larger than
    the file.

    Parameters
    ----------
    file : FileContent
        The file of the heap.
    raw : numpy.ndarray
        Shape ``(n, offset_size + 8)``, uint8, as stored.
    itemsize : int
        Bytes of one element of a sequence, as stored.
    describe : callable
        Names row i in errors.

    Raises
    ------
    CorruptFileError
        If there is no such heap object, or it is shorter than its sequence.

    Notes
    -----
    HDF5 File Format Specification 4.0, "Global Heap" and "The Datatype Message" (class
    variable-length).
    """
    length, heap, index = _split_sequences(file, raw, describe)
    begin = np.zeros(len(length), dtype=np.int64)
    live = np.flatnonzero(length)
    # Sequences sorted by heap object, the longest of each object first: it is read.
    order = live[np.lexsort((-length[live], index[live], heap[live]))]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (np.diff(heap[order]) != 0) | (np.diff(index[order]) != 0)
    longest = np.sort(order[is_first])
    data, owner, n_elements = [], [], 0
    named = heap[longest], index[longest], np.arange(len(longest))
    for batch in read_heap_objects(file, *named, lambda i: describe(int(longest[i]))):
        sequences = longest[batch.rows]
        count = length[sequences]
        short = np.flatnonzero(batch.nbytes // itemsize < count)
        if len(short):
            i = int(short[0])
            raise CorruptFileError(
                f"{batch.describe(i)} has a sequence of {count[i]} elements of {itemsize} "
                f"bytes in a heap object of {batch.nbytes[i]} bytes"
            )
        begin[sequences] = n_elements + row_offsets(count)[:-1]
        n_elements += int(count.sum())
        owner.append(np.repeat(sequences, count))
        memory = batch.buffer.data
        starts, stops = batch.position, batch.position + count * itemsize
        data += [memory[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
    begin[order] = begin[order[is_first]][np.cumsum(is_first) - 1]
    elements = np.frombuffer(b"".join(data), dtype=np.uint8).reshape(n_elements, itemsize)
    owners = np.concatenate([np.zeros(0, dtype=np.intp), *owner])
    return Sequences(length, begin, elements, owners)


def _split_sequences(
    file: FileContent, raw: npt.NDArray[np.uint8], describe: Callable[[int], str]
) -> tuple[IntArray, IntArray, IntArray]:
    """Return length, heap address and heap object index of variable-length elements."""
    # An element: uint32 sequence length, collection address (size of offsets), uint32 heap
    # object index. An address of 0 is an empty sequence, whatever the length says.
    offset_size = file.form.offset_size
    packed = np.ascontiguousarray(raw)
    if packed.shape[1] != offset_size + 8:
        raise CorruptFileError(
            f"{describe(0)} has sequences of {packed.shape[1]} bytes in an element; "
            f"{offset_size + 8} are needed"
        )
    length = packed[:, :4].copy().view("<u4")[:, 0].astype(np.int64)
    ids = np.ascontiguousarray(packed[:, 4:]).reshape(-1)
    heap, index = split_heap_ids(ids, offset_size=offset_size)
    length[heap == 0] = 0
    return length, heap, index


def _distinct(values: IntArray) -> tuple[IntArray, IntArray]:
    """Return distinct values, ascending, and the row of each; fast for runs of one value."""
    head = run_starts(values)
    distinct, inverse = np.unique(values[head], return_inverse=True)
    return distinct, np.repeat(inverse, np.diff(np.append(head, len(values))))
