"""Chunks that B-trees list, of version 1 and of version 2.

In: the address of a tree's root or header. Out: the chunks that it lists, as columns.

1. Read the root.
2. Decode all nodes of a level as columns; they name the nodes of the next level, which
   are read together.

Keys of chunks ascend from node to node of a level: trees in which they do not are damaged.
Inner nodes of version 1 have keys that no chunk needs; they are not looked at.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 1A1 - Version 1 B-trees"
and "Disk Format: Level 1A2 - Version 2 B-trees".
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from xref.arrays import BoolArray, IntArray
from xref.errors import UnsupportedError
from xref.hdf5.btree2 import child_pointer_sizes
from xref.hdf5.chunk_index.nodes import CHECKSUM_NBYTES, NodeBatch, NodeReader, columns_of
from xref.hdf5.metadata_reader import integer
from xref.hdf5.packed import integers, undefined

PLAIN_CHUNKS, FILTERED_CHUNKS = 10, 11
"""Types of version 2 B-trees."""

MASK_NBYTES = 4
"""Bytes of a filter mask."""

_SIZE_NBYTES = 4  # of a chunk's size in version 1
_OFFSET_NBYTES = 8  # of an element's or a chunk's place along one axis
_V1_SIGNATURE = b"TREE\x01"  # and the type of trees of chunks
_V2_PREFIX_NBYTES = 6
_MAX_PLACE = 2**62


class ListedChunks(NamedTuple):
    """The n chunks that an index lists, in no particular order."""

    cell: IntArray  # (n, ndim), place of each in the grid of chunks
    address: IntArray  # (n,), from the base address; none is undefined
    nbytes: IntArray  # (n,), as stored
    filter_mask: IntArray  # (n,), bit i set: filter i was skipped


def joined(parts: list[ListedChunks], ndim: int) -> ListedChunks:
    """Put chunks of several parts of an index together."""
    if len(parts) == 1:
        return parts[0]
    none = np.zeros(0, dtype=np.int64)
    cells = [np.zeros((0, ndim), dtype=np.int64), *(part.cell for part in parts)]
    return ListedChunks(
        cell=np.concatenate(cells),
        address=np.concatenate([none, *(part.address for part in parts)]),
        nbytes=np.concatenate([none, *(part.nbytes for part in parts)]),
        filter_mask=np.concatenate([none, *(part.filter_mask for part in parts)]),
    )


def with_address(
    cell: IntArray,
    address: IntArray,
    nbytes: IntArray,
    filter_mask: IntArray,
    offset_size: int,
) -> ListedChunks:
    """Return chunks without those that have no address: they were never written."""
    written = ~undefined(address, offset_size)
    if not written.all():
        cell, address = cell[written], address[written]
        nbytes, filter_mask = nbytes[written], filter_mask[written]
    return ListedChunks(cell=cell, address=address, nbytes=nbytes, filter_mask=filter_mask)


def spans(position: IntArray, counts: IntArray, step: int) -> IntArray:
    """Return where records of one length begin that lie in runs.

    Examples
    --------
    >>> spans(np.array([5, 100]), np.array([2, 1]), 10)
    array([  5,  15, 100])
    """
    before = np.cumsum(counts) - counts
    number = np.arange(int(counts.sum()), dtype=np.int64)
    begins: IntArray = np.repeat(position - before * step, counts)
    return begins + number * step


def _ascend(last: IntArray, cell: IntArray) -> BoolArray:
    """Tell which cells come after the one before, in C order; ``last`` before the first."""
    before = np.concatenate([last[None], cell[:-1]])
    later = np.zeros(len(cell), dtype=bool)
    equal = np.ones(len(cell), dtype=bool)
    for axis in range(cell.shape[1]):
        later |= equal & (cell[:, axis] > before[:, axis])
        equal &= cell[:, axis] == before[:, axis]
    return later


class _Keys:
    """Checks that keys of one level ascend, a lot after the other."""

    def __init__(self, reader: NodeReader, ndim: int) -> None:
        self._reader = reader
        self._last = np.full(ndim, -1)

    def check(self, cell: IntArray, address: IntArray, counts: IntArray) -> None:
        """Refuse keys that are out of order; nodes at addresses have ``counts`` of them."""
        if not len(cell):
            return
        wrong = ~_ascend(self._last, cell) | (cell >= _MAX_PLACE).any(axis=1)
        if wrong.any():
            row = int(np.argmax(wrong))
            node = int(np.searchsorted(np.cumsum(counts), row, "right"))
            self._reader.source.fail(
                f"the node at {int(address[node]):#x} of the chunks' B-tree has a chunk at "
                f"{tuple(cell[row].tolist())} of the grid, which is not behind the one before"
            )
        self._last = cell[-1]


# --- version 1 ---------------------------------------------------------------------------


def read_v1_tree(
    reader: NodeReader, address: int, chunks: tuple[int, ...], half_width: int
) -> ListedChunks:
    """Return the chunks that a version 1 B-tree lists.

    Parameters
    ----------
    reader : NodeReader
    address : int
        Address of the root.
    chunks : tuple of int
        Shape of chunks, elements.
    half_width : int
        Half of the children that a node has room for: the file's "Indexed Storage
        Internal Node K".

    Raises
    ------
    CorruptFileError
        If a node contradicts the format or its parent.
    """
    source, ndim = reader.source, len(chunks)
    size, room = source.offset_size, 2 * half_width
    head_nbytes = 8 + 2 * size
    key_widths = [_SIZE_NBYTES, MASK_NBYTES, *[_OFFSET_NBYTES] * (ndim + 1)]
    step = sum(key_widths) + size
    # Libraries write nodes whole; used ones are at their begin.
    whole_nbytes = head_nbytes + room * step + sum(key_widths)
    nodes, level = np.array([address], dtype=np.uint64).astype(np.int64), -1
    parts: list[ListedChunks] = []
    while len(nodes):
        keys, below = _Keys(reader, ndim), []
        nbytes = np.maximum(np.minimum(source.file_nbytes - nodes, whole_nbytes), head_nbytes)
        is_root = level < 0
        for lot in reader.read(nodes, nbytes, "node"):
            if is_root:
                level = int(lot.data[lot.position[0] + len(_V1_SIGNATURE)])
            own = nodes[lot.rows]
            n = _count_entries(reader, lot, nodes, level, room)
            if (not is_root and (n == 0).any()) or (level and (n == 0).any()):
                source.fail(f"the node at {int(own[np.argmax(n == 0)]):#x} has no entries")
            if (head_nbytes + n * step > lot.nbytes).any():
                source.fail(
                    "a node of the chunks' B-tree reaches past the end of the file "
                    f"({source.file_nbytes} bytes)"
                )
            entries = spans(lot.position + head_nbytes, n, step)
            stored, mask, *offsets, child = columns_of(lot.data, entries, [*key_widths, size])
            if level:
                below.append(child)
                continue
            cell = np.stack(offsets[:-1], axis=1) // np.array(chunks)
            _check_on_grid(reader, offsets, cell, chunks, own, n)
            keys.check(cell, own, n)
            parts.append(with_address(cell, child, stored, mask, size))
        nodes = np.concatenate(below) if below else np.zeros(0, dtype=np.int64)
        level -= 1
    return joined(parts, ndim)


def _count_entries(
    reader: NodeReader, lot: NodeBatch, address: IntArray, level: int, room: int
) -> IntArray:
    """Return the entries of each node of a lot, all of which must have one level."""
    every = np.arange(len(lot.position))
    expected = _V1_SIGNATURE + bytes([level])
    reader.check_begins(lot, address, every, expected, "node")
    n = integers(lot.data, lot.position + len(expected), 2)
    if (n > room).any():
        row = int(np.argmax(n))
        reader.source.fail(
            f"the node at {int(address[lot.rows][row]):#x} of the chunks' B-tree has {n[row]} "
            f"entries, and room for {room}"
        )
    return n


def _check_on_grid(
    reader: NodeReader,
    offsets: list[IntArray],
    cell: IntArray,
    chunks: tuple[int, ...],
    address: IntArray,
    counts: IntArray,
) -> None:
    """Refuse chunks that begin within a cell of the grid, or within an element."""
    # Behind the places along the axes there is the byte within an element.
    wrong = offsets[-1] != 0
    for axis, chunk in enumerate(chunks):
        wrong |= (offsets[axis] < 0) | (cell[:, axis] * chunk != offsets[axis])
    if wrong.any():
        row = int(np.argmax(wrong))
        node = int(np.searchsorted(np.cumsum(counts), row, "right"))
        place = tuple(int(column[row]) for column in offsets)
        reader.source.fail(
            f"the node at {int(address[node]):#x} of the chunks' B-tree has a chunk at "
            f"{place}, which is not on the grid of chunks of {chunks} elements"
        )


# --- version 2 ---------------------------------------------------------------------------


def read_v2_tree(
    reader: NodeReader, address: int, ndim: int, chunk_nbytes: int, filtered: bool
) -> ListedChunks:
    """Return the chunks that a version 2 B-tree lists.

    Parameters
    ----------
    reader : NodeReader
    address : int
        Address of the header.
    ndim : int
        Rank of the dataset.
    chunk_nbytes : int
        Bytes of one chunk without filters.
    filtered : bool
        Whether the dataset has filters.

    Raises
    ------
    CorruptFileError
        If a node contradicts the format, its checksum or its parent.
    UnsupportedError
        If the tree has a version that is not known.
    """
    source, size = reader.source, reader.source.offset_size
    what = f"B-tree of chunks at {address:#x}"
    head = source.take_checked(
        address, 22 + size + source.length_size, b"BTHD", "B-tree header"
    )
    if head[4]:
        raise UnsupportedError(f"{source.where}: the {what} has version {head[4]}")
    kind, node_nbytes, record_nbytes, depth = struct.unpack_from("<BIHH", head, 5)
    plain_nbytes = size + ndim * _OFFSET_NBYTES
    size_nbytes = record_nbytes - plain_nbytes - MASK_NBYTES if filtered else 0
    if kind != (FILTERED_CHUNKS if filtered else PLAIN_CHUNKS) or (
        not 1 <= size_nbytes <= 8 if filtered else record_nbytes != plain_nbytes
    ):
        source.fail(
            f"the {what} has type {kind} and records of {record_nbytes} bytes, and the "
            f"dataset has {ndim} dimensions and {'' if filtered else 'no '}filters"
        )
    nodes = np.array([integer(head, 16, size)], dtype=np.uint64).astype(np.int64)
    counts = np.array([integer(head, 16 + size, 2)])
    n_total = integer(head, 18 + size, source.length_size)
    if not counts[0]:
        if n_total:
            source.fail(f"the {what} has {n_total} records and an empty root")
        return joined([], ndim)
    widths = [size, *([size_nbytes, MASK_NBYTES] if filtered else [])]
    widths += [_OFFSET_NBYTES] * ndim
    pointers = child_pointer_sizes(source, node_nbytes, record_nbytes, depth, what)
    parts: list[ListedChunks] = []
    n_found = 0
    for level in range(depth, -1, -1):
        begin = (b"BTIN\0" if level else b"BTLF\0") + bytes([kind])
        count_nbytes, pointer_nbytes = pointers[level]
        children = counts + 1 if level else np.zeros_like(counts)
        end = _V2_PREFIX_NBYTES + counts * record_nbytes
        nbytes = end + children * pointer_nbytes + CHECKSUM_NBYTES
        if (nbytes > node_nbytes).any():
            row = int(np.argmax(nbytes))
            source.fail(
                f"the node at {int(nodes[row]):#x} of the {what} has {counts[row]} records, "
                "more than it has room for"
            )
        keys, below = _Keys(reader, ndim), []
        for lot in reader.read(nodes, nbytes, "node"):
            reader.check_begins(lot, nodes, np.arange(len(lot.position)), begin, "node")
            reader.check_sums(lot, nodes, "node")
            own, n = nodes[lot.rows], counts[lot.rows]
            records = spans(lot.position + _V2_PREFIX_NBYTES, n, record_nbytes)
            chunk, *rest = columns_of(lot.data, records, widths)
            cell = np.stack(rest[-ndim:], axis=1)
            stored, mask = rest[:2] if filtered else _unfiltered(len(chunk), chunk_nbytes)
            keys.check(cell, own, n)
            parts.append(with_address(cell, chunk, stored, mask, size))
            n_found += len(chunk)
            if level:
                places = spans(lot.position + end[lot.rows], n + 1, pointer_nbytes)
                below.append(columns_of(lot.data, places, [size, count_nbytes]))
        if level:
            nodes, counts = (np.concatenate(column) for column in zip(*below, strict=True))
    if n_found != n_total:
        source.fail(f"the {what} has {n_found} records, its header says {n_total}")
    return joined(parts, ndim)


def _unfiltered(n: int, chunk_nbytes: int) -> list[IntArray]:
    """Return sizes and filter masks of chunks of a dataset without filters."""
    return [np.full(n, chunk_nbytes), np.zeros(n, dtype=np.int64)]
