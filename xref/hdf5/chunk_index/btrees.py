"""Chunk indices that are B-trees, of version 1 and of version 2.

In: the address of a tree's root (version 1) or header (version 2). Out: the chunks of the
tree, as columns.

1. Read the root.
2. Decode all nodes of a level as columns. They have the addresses of the nodes of the next
   level, which are read together.

Keys of chunks ascend from node to node of a level; a tree in which they do not is damaged.
The keys of version 1 inner nodes only repeat keys of leaves and are not read.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 1A1 - Version 1 B-trees"
and "Disk Format: Level 1A2 - Version 2 B-trees".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from xref.arrays import BoolArray, IntArray
from xref.errors import UnsupportedError
from xref.hdf5.btree2 import child_pointer_sizes
from xref.hdf5.chunk_index.nodes import CHECKSUM_NBYTES, NodeBatch, NodeReader, columns_of
from xref.hdf5.metadata_reader import MetadataReader, integer
from xref.hdf5.packed import integers, undefined

PLAIN_CHUNKS, FILTERED_CHUNKS = 10, 11
"""Types of version 2 B-trees: chunks of datasets without and with filters."""

MASK_NBYTES = 4
"""Bytes of a filter mask."""

_SIZE_NBYTES = 4  # of a chunk's size in version 1
_OFFSET_NBYTES = 8  # of the offset of an element or a chunk along one axis
_V1_SIGNATURE = b"TREE\x01"  # with node type 1: raw data chunks
_V2_PREFIX_NBYTES = 6  # signature, version, type
_MAX_CELL = 2**62


class ListedChunks(NamedTuple):
    """The n allocated chunks of an index, in any order."""

    cell: IntArray  # (n, ndim), index of each in the grid of chunks
    address: IntArray  # (n,), bytes from the base address; none is undefined
    nbytes: IntArray  # (n,), as stored
    filter_mask: IntArray  # (n,), bit i set: filter i was skipped


def concat_chunks(parts: list[ListedChunks], ndim: int) -> ListedChunks:
    """Put chunks of several parts of an index together."""
    if len(parts) == 1:
        return parts[0]
    none = np.zeros(0, dtype=np.int64)
    empty = ListedChunks(np.zeros((0, ndim), dtype=np.int64), none, none, none)
    return ListedChunks(*(np.concatenate(column) for column in zip(empty, *parts, strict=True)))


def with_address(
    cell: IntArray, address: IntArray, nbytes: IntArray, filter_mask: IntArray, offset_size: int
) -> ListedChunks:
    """Return the chunks that have an address; the others were never written."""
    written = ~undefined(address, offset_size)
    if not written.all():
        cell, address = cell[written], address[written]
        nbytes, filter_mask = nbytes[written], filter_mask[written]
    return ListedChunks(cell=cell, address=address, nbytes=nbytes, filter_mask=filter_mask)


def record_positions(position: IntArray, counts: IntArray, step: int) -> IntArray:
    """Return where each record begins: ``counts`` records of ``step`` bytes from ``position``.

    Examples
    --------
    >>> record_positions(np.array([5, 100]), np.array([2, 1]), 10)
    array([  5,  15, 100])
    """
    before = np.cumsum(counts) - counts
    number = np.arange(int(counts.sum()), dtype=np.int64)
    begins: IntArray = np.repeat(position - before * step, counts)
    return begins + number * step


def _ascend(last: IntArray, cell: IntArray) -> BoolArray:
    """Tell which cells follow the cell before in C order; ``last`` is before the first."""
    before = np.concatenate([last[None], cell[:-1]])
    later = np.zeros(len(cell), dtype=bool)
    equal = np.ones(len(cell), dtype=bool)
    for axis in range(cell.shape[1]):
        later |= equal & (cell[:, axis] > before[:, axis])
        equal &= cell[:, axis] == before[:, axis]
    return later


class _KeyOrder:
    """Checks that the keys of one level ascend, batch by batch of its nodes."""

    def __init__(self, reader: NodeReader, ndim: int) -> None:
        self._reader = reader
        self._last = np.full(ndim, -1)

    def check(self, cell: IntArray, address: IntArray, counts: IntArray) -> None:
        """Raise if keys are out of order; the node at each address has ``counts`` keys."""
        if not len(cell):
            return
        wrong = ~_ascend(self._last, cell) | (cell >= _MAX_CELL).any(axis=1)
        if wrong.any():
            row = int(np.argmax(wrong))
            node = int(np.searchsorted(np.cumsum(counts), row, "right"))
            self._reader.source.fail(
                f"the node at {int(address[node]):#x} of the chunks' B-tree has a chunk at "
                f"{tuple(cell[row].tolist())} of the grid, which is not behind the one before"
            )
        self._last = cell[-1]


def read_v1_tree(
    reader: NodeReader, address: int, chunks: tuple[int, ...], half_width: int
) -> ListedChunks:
    """Return the chunks of a version 1 B-tree, whose root is at ``address``.

    ``chunks`` is the shape of chunks in elements, ``half_width`` the file's "Indexed Storage
    Internal Node K": a node has room for twice as many children. Raises CorruptFileError if a
    node contradicts the format or its parent.
    """
    source, ndim = reader.source, len(chunks)
    size, room = source.offset_size, 2 * half_width
    # Node: char[4] "TREE", uint8 type, uint8 level, uint16 entries used, address of the left
    # sibling, address of the right sibling, then key 0, child 0, key 1, child 1, ..., key n.
    head_nbytes = 8 + 2 * size
    # Key: uint32 size of the chunk in bytes, uint32 filter mask, uint64 offset of the chunk
    # along each axis, in elements, and a last one within the element, always 0.
    key_widths = [_SIZE_NBYTES, MASK_NBYTES, *[_OFFSET_NBYTES] * (ndim + 1)]
    step = sum(key_widths) + size
    # Libraries write nodes of full size; the used entries come first.
    whole_nbytes = head_nbytes + room * step + sum(key_widths)
    nodes, level = np.array([address], dtype=np.uint64).astype(np.int64), -1
    parts: list[ListedChunks] = []
    while len(nodes):
        keys, children = _KeyOrder(reader, ndim), []
        nbytes = np.maximum(np.minimum(source.file_nbytes - nodes, whole_nbytes), head_nbytes)
        is_root = level < 0
        for batch in reader.read(nodes, nbytes, "node"):
            if is_root:
                level = int(batch.data[batch.position[0] + len(_V1_SIGNATURE)])
            addresses = nodes[batch.rows]
            n = _count_entries(reader, batch, nodes, level, room)
            # Only a root that is a leaf may be empty.
            if (n == 0).any() and (level or not is_root):
                source.fail(
                    f"the node at {int(addresses[np.argmax(n == 0)]):#x} has no entries"
                )
            if (head_nbytes + n * step > batch.nbytes).any():
                source.fail(
                    "a node of the chunks' B-tree reaches past the end of the file "
                    f"({source.file_nbytes} bytes)"
                )
            entries = record_positions(batch.position + head_nbytes, n, step)
            columns = columns_of(batch.data, entries, [*key_widths, size])
            stored, mask, *offsets, child = columns
            if level:
                children.append(child)
                continue
            cell = np.stack(offsets[:-1], axis=1) // np.array(chunks)
            _check_on_grid(reader, offsets, cell, chunks, addresses, n)
            keys.check(cell, addresses, n)
            parts.append(with_address(cell, child, stored, mask, size))
        nodes = np.concatenate(children) if children else np.zeros(0, dtype=np.int64)
        level -= 1
    return concat_chunks(parts, ndim)


def _count_entries(
    reader: NodeReader, batch: NodeBatch, address: IntArray, level: int, room: int
) -> IntArray:
    """Return the number of entries of each node; all nodes must have this level."""
    every = np.arange(len(batch.position))
    expected = _V1_SIGNATURE + bytes([level])
    reader.check_begins(batch, address, every, expected, "node")
    n = integers(batch.data, batch.position + len(expected), 2)
    if (n > room).any():
        row = int(np.argmax(n))
        reader.source.fail(
            f"the node at {int(address[batch.rows][row]):#x} of the chunks' B-tree has "
            f"{n[row]} entries, and room for {room}"
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
    """Raise if a chunk begins within a cell of the grid, or within an element."""
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


@dataclass(frozen=True, slots=True)
class _V2Header:
    """The header of a version 2 B-tree of chunks."""

    label: str  # names the tree in errors
    type: int
    node_nbytes: int
    record_nbytes: int
    depth: int
    root: int  # address, may be undefined where the root is empty
    n_root: int  # records in the root
    n_total: int  # records in the tree
    size_nbytes: int  # width of a chunk's size in a record; 0 without filters


def _read_v2_header(
    source: MetadataReader, address: int, ndim: int, filtered: bool
) -> _V2Header:
    """Read the header of a version 2 B-tree and check it against the dataset."""
    size, label = source.offset_size, f"B-tree of chunks at {address:#x}"
    # char[4] "BTHD", uint8 version (0), uint8 type, uint32 node size, uint16 record size,
    # uint16 depth, uint8 split percent, uint8 merge percent, root node address, uint16 records
    # in the root, total number of records (size of lengths), checksum.
    head = source.take_checked(
        address, 22 + size + source.length_size, b"BTHD", "B-tree header"
    )
    if head[4]:
        raise UnsupportedError(f"{source.where}: the {label} has version {head[4]}")
    tree_type, node_nbytes, record_nbytes, depth = struct.unpack_from("<BIHH", head, 5)
    # Record of type 10: address, uint64 offset along each axis, in chunks. Type 11 has the
    # chunk's size and a uint32 filter mask between them. The size has one byte more than that
    # of an unfiltered chunk needs, at most 8 (layout version 4), or a fixed width (version 5).
    plain_nbytes = size + ndim * _OFFSET_NBYTES
    size_nbytes = record_nbytes - plain_nbytes - MASK_NBYTES if filtered else 0
    if tree_type != (FILTERED_CHUNKS if filtered else PLAIN_CHUNKS) or (
        not 1 <= size_nbytes <= 8 if filtered else record_nbytes != plain_nbytes
    ):
        source.fail(
            f"the {label} has type {tree_type} and records of {record_nbytes} bytes, and the "
            f"dataset has {ndim} dimensions and {'' if filtered else 'no '}filters"
        )
    return _V2Header(
        label,
        tree_type,
        node_nbytes,
        record_nbytes,
        depth,
        root=integer(head, 16, size),
        n_root=integer(head, 16 + size, 2),
        n_total=integer(head, 18 + size, source.length_size),
        size_nbytes=size_nbytes,
    )


def read_v2_tree(
    reader: NodeReader, address: int, ndim: int, chunk_nbytes: int, filtered: bool
) -> ListedChunks:
    """Return the chunks of a version 2 B-tree, whose header is at ``address``.

    The dataset has ``ndim`` dimensions; a chunk without filters has ``chunk_nbytes`` bytes.
    Raises CorruptFileError if a node contradicts the format, its checksum or its parent,
    UnsupportedError if the tree has an unknown version.
    """
    source, size = reader.source, reader.source.offset_size
    tree = _read_v2_header(source, address, ndim, filtered)
    if not tree.n_root:
        if tree.n_total:
            source.fail(f"the {tree.label} has {tree.n_total} records and an empty root")
        return concat_chunks([], ndim)
    nodes = np.array([tree.root], dtype=np.uint64).astype(np.int64)
    counts = np.array([tree.n_root])
    widths = [size, *([tree.size_nbytes, MASK_NBYTES] if filtered else [])]
    widths += [_OFFSET_NBYTES] * ndim
    pointers = child_pointer_sizes(
        source, tree.node_nbytes, tree.record_nbytes, tree.depth, tree.label
    )
    parts: list[ListedChunks] = []
    n_records = 0
    for level in range(tree.depth, -1, -1):
        begin = (b"BTIN\0" if level else b"BTLF\0") + bytes([tree.type])
        count_nbytes, pointer_nbytes = pointers[level]
        end, nbytes = _node_sizes(source, tree, nodes, counts, pointer_nbytes)
        keys, children = _KeyOrder(reader, ndim), []
        for batch in reader.read(nodes, nbytes, "node"):
            reader.check_begins(batch, nodes, np.arange(len(batch.position)), begin, "node")
            reader.check_sums(batch, nodes, "node")
            n = counts[batch.rows]
            records = record_positions(
                batch.position + _V2_PREFIX_NBYTES, n, tree.record_nbytes
            )
            chunk, *rest = columns_of(batch.data, records, widths)
            cell = np.stack(rest[-ndim:], axis=1)
            stored, mask = rest[:2] if filtered else _unfiltered(len(chunk), chunk_nbytes)
            keys.check(cell, nodes[batch.rows], n)
            parts.append(with_address(cell, chunk, stored, mask, size))
            n_records += len(chunk)
            if level:
                places = record_positions(
                    batch.position + end[batch.rows], n + 1, pointer_nbytes
                )
                children.append(columns_of(batch.data, places, [size, count_nbytes]))
        if level:
            nodes, counts = (np.concatenate(column) for column in zip(*children, strict=True))
    if n_records != tree.n_total:
        source.fail(f"the {tree.label} has {n_records} records, its header says {tree.n_total}")
    return concat_chunks(parts, ndim)


def _node_sizes(
    source: MetadataReader,
    tree: _V2Header,
    address: IntArray,
    counts: IntArray,
    pointer_nbytes: int,
) -> tuple[IntArray, IntArray]:
    """Return the bytes up to the end of the records, and of the whole node, of each node."""
    # Node: char[4] "BTIN" or (leaves) "BTLF", uint8 version (0), uint8 type, the records; inner
    # nodes then have one pointer more than records: address, number of records and, above the
    # lowest level of inner nodes, of all records below; checksum. Leaves have no pointers:
    # their ``pointer_nbytes`` is 0.
    end = _V2_PREFIX_NBYTES + counts * tree.record_nbytes
    nbytes = end + pointer_nbytes * (counts + 1) + CHECKSUM_NBYTES
    if (nbytes > tree.node_nbytes).any():
        row = int(np.argmax(nbytes))
        source.fail(
            f"the node at {int(address[row]):#x} of the {tree.label} has {counts[row]} "
            "records, more than it has room for"
        )
    return end, nbytes


def _unfiltered(n: int, chunk_nbytes: int) -> list[IntArray]:
    """Return sizes and filter masks of n chunks of a dataset without filters."""
    return [np.full(n, chunk_nbytes), np.zeros(n, dtype=np.int64)]
