"""Chunk indices of many datasets, as columns.

In: chunked datasets of a `DatasetTable`. Out: `ChunkColumns`, the chunks of the datasets that
have few chunks.

1. Read the index nodes of all datasets with one kind of index, close ones with one read.
2. Decode the first chunk of each dataset, then the second of each, and so on.

The indices decoded here are those that libhdf5 writes for datasets of a few chunks: a version
1 B-tree of one leaf, a single chunk, an implicit index, a fixed array without pages. A dataset
with another index, or with an index that contradicts the format or the extent, is marked as
unknown: `xref.objects.datasets.chunk_index` reads it alone.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 1A1 - Version 1 B-trees",
"The Data Layout Message" and "The Fixed Array Index".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xref.arrays import BoolArray, IntArray, ragged_ranges, row_offsets
from xref.hdf5.bulk_datasets import BATCH, DatasetTable
from xref.hdf5.checksums import sum_blocks
from xref.hdf5.layout_message import FIXED_ARRAY, IMPLICIT, SINGLE_CHUNK, V1_BTREE
from xref.hdf5.packed import ByteArray, integers, read_blocks, undefined
from xref.hdf5.superblock import FileContent, FileFormat

MAX_CHUNKS = 64
"""Most chunks in the extent of a dataset; datasets with more are read one by one, on
threads."""

# First bytes of nodes, as one little-endian number.
_LEAF = int.from_bytes(b"TREE\x01\x00", "little")  # signature, type 1: chunks, level 0
_ARRAY_HEADER = int.from_bytes(b"FAHD\0", "little")  # signature, version 0
_ARRAY_BLOCK = int.from_bytes(b"FADB\0", "little")
_CHECKSUM_NBYTES = 4

Datasets: TypeAlias = tuple[npt.NDArray[np.intp], IntArray, IntArray]
"""Datasets of one kind of index: row in the table, and two columns, named where used."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkColumns:
    """The allocated chunks of n datasets, one dataset after the other."""

    known: BoolArray  # (n,), whether the chunks of each dataset are here
    cut: IntArray  # (n + 1,), row of the first chunk of each dataset
    number: IntArray  # (m,), in C order of the grid, ascending
    offset: IntArray  # (m,), first byte in the file
    nbytes: IntArray  # (m,), as stored
    filter_mask: IntArray  # (m,), bit i set: filter i was skipped

    def take(self, rows: npt.NDArray[Any]) -> ChunkColumns:
        """Return the chunks of some datasets."""
        counts = np.diff(self.cut)[rows]
        picked = ragged_ranges(self.cut[rows], counts)
        names = ("number", "offset", "nbytes", "filter_mask")
        columns = {name: getattr(self, name)[picked] for name in names}
        return ChunkColumns(known=self.known[rows], cut=row_offsets(counts), **columns)

    def scatter_rows(self, rows: npt.NDArray[np.intp], n: int) -> ChunkColumns:
        """Scatter the datasets into ``rows`` of a table of n; the others become unknown."""
        known, counts = np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64)
        known[rows], counts[rows] = self.known, np.diff(self.cut)
        return replace(self, known=known, cut=row_offsets(counts))


class _ChunkCollector:
    """Collects chunks; the chunks of datasets that are marked bad are dropped at the end."""

    def __init__(self, n: int, form: FileFormat, limit: int) -> None:
        self.bad = np.zeros(n, dtype=bool)
        self._form = form
        self._limit = limit
        self._columns: list[tuple[IntArray, ...]] = []

    def add(
        self,
        dataset: IntArray,
        number: IntArray,
        address: IntArray,
        nbytes: IntArray,
        filter_mask: IntArray,
    ) -> None:
        """Add chunks; a chunk without an address was never written."""
        written = ~undefined(address, self._form.offset_size)
        dataset, number, address = dataset[written], number[written], address[written]
        nbytes, filter_mask = nbytes[written], filter_mask[written]
        end = self._form.file_nbytes - self._form.base_address
        fits = (nbytes > 0) & (nbytes <= min(self._limit, end)) & (address > 0)
        fits &= address <= end - np.where(fits, nbytes, 0)
        self.bad[dataset[~fits]] = True
        offset = address + self._form.base_address
        self._columns.append((dataset, number, offset, nbytes, filter_mask))

    def table(self) -> ChunkColumns:
        """Return all chunks, sorted by dataset and by number."""
        none = (np.zeros(0, dtype=np.int64),) * 5
        columns = zip(none, *self._columns, strict=True)
        dataset, number, *rest = (np.concatenate(column) for column in columns)
        good = ~self.bad[dataset]
        order = np.flatnonzero(good)[np.lexsort((number[good], dataset[good]))]
        offset, nbytes, filter_mask = (column[order] for column in rest)
        return ChunkColumns(
            known=~self.bad,
            cut=row_offsets(np.bincount(dataset[order], minlength=len(self.bad))),
            number=number[order],
            offset=offset,
            nbytes=nbytes,
            filter_mask=filter_mask,
        )


def read_chunks(file: FileContent, table: DatasetTable, limit: int) -> ChunkColumns:
    """Read the chunk indices of many datasets.

    Parameters
    ----------
    file : FileContent
        The file.
    table : DatasetTable
        Chunked datasets of it, all known.
    limit : int
        Datasets with a chunk of more bytes, stored or decoded, become unknown.
    """
    parts = [
        _read_batch(file, table.take(slice(begin, begin + BATCH)), limit)
        for begin in range(0, max(len(table), 1), BATCH)
    ]
    if len(parts) == 1:
        return parts[0]
    columns = ("known", "number", "offset", "nbytes", "filter_mask")
    return ChunkColumns(
        cut=row_offsets(np.concatenate([np.diff(part.cut) for part in parts])),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns},
    )


def _read_batch(file: FileContent, table: DatasetTable, limit: int) -> ChunkColumns:
    form = file.form
    chunks = _ChunkCollector(len(table), form, limit)
    grid = -(-table.shape // table.chunks)
    n_chunks = np.minimum(grid, MAX_CHUNKS + 1).astype(float).prod(axis=1)
    itemsize = table.nbytes // np.maximum(table.shape.prod(axis=1), 1)
    chunk_nbytes = table.chunks.prod(axis=1) * itemsize
    chunks.bad |= (n_chunks > MAX_CHUNKS) | (chunk_nbytes > limit)
    asked = ~chunks.bad & (n_chunks > 0) & (table.offset >= 0)
    n_chunks = np.where(chunks.bad, 0, n_chunks).astype(np.int64)
    seen = ~asked
    for index in (V1_BTREE, SINGLE_CHUNK, IMPLICIT, FIXED_ARRAY):
        rows = np.flatnonzero(asked & (table.index == index))
        seen[rows] = True
        if not len(rows):
            continue
        room, nbytes = n_chunks[rows], chunk_nbytes[rows]
        part = table.take(rows)
        if index == V1_BTREE:
            _read_leaves(file, part, (rows, grid[rows], room), chunks)
        elif index == FIXED_ARRAY:
            _read_arrays(file, part, (rows, room, nbytes), chunks)
        else:
            _add_in_a_row(form, part, (rows, room, nbytes), chunks)
    chunks.bad |= ~seen
    return chunks.table()


def _add_in_a_row(
    form: FileFormat, table: DatasetTable, datasets: Datasets, chunks: _ChunkCollector
) -> None:
    """Add single chunks and chunks without an index: the layout message has the address."""
    rows, room, nbytes = datasets
    single = table.index == SINGLE_CHUNK
    chunks.bad[rows[single & (room != 1)]] = True
    stored = np.where(single, table.single_nbytes, nbytes)
    address = table.offset - form.base_address
    for k in range(int(room.max())):
        has = np.flatnonzero(room > k)
        number, at = np.full(len(has), k), address[has] + k * nbytes[has]
        chunks.add(rows[has], number, at, stored[has], table.single_mask[has])


def _read_nodes(
    file: FileContent,
    rows: npt.NDArray[np.intp],
    offset: IntArray,
    nbytes: IntArray,
    chunks: _ChunkCollector,
) -> tuple[npt.NDArray[np.intp], ByteArray, IntArray]:
    """Read nodes; return which of them lie in the file, their bytes, where each begins."""
    inside = (offset > 0) & (offset <= file.form.file_nbytes - nbytes)
    chunks.bad[rows[~inside]] = True
    read = np.flatnonzero(inside)
    return read, *read_blocks(file.source, offset[read], nbytes[read])


def _read_leaves(
    file: FileContent, table: DatasetTable, datasets: Datasets, chunks: _ChunkCollector
) -> None:
    """Add the chunks of version 1 B-trees of one node, which is a leaf.

    ``datasets`` has the row, the grid of chunks and the number of its cells of each.
    """
    rows, grid, room = datasets
    # Node: char[4] "TREE", uint8 type, uint8 level, uint16 entries used, addresses of the left
    # and right siblings, then key 0, child 0, key 1, ..., key n. Key: uint32 size of the chunk,
    # uint32 filter mask, uint64 offset along each axis in elements, uint64 0.
    width = file.form.offset_size
    head_nbytes, key_nbytes = 8 + 2 * width, 8 + 8 * (table.ndim + 1)
    # Each chunk of the grid has one entry at most, and one key follows the last entry.
    nbytes = head_nbytes + room * (key_nbytes + width) + key_nbytes
    read, data, node = _read_nodes(file, rows, table.offset, nbytes, chunks)
    table, grid, step = table.take(read), grid[read], key_nbytes[read] + width
    rows, room = rows[read], room[read]
    head = integers(data, node, 8)
    n = head >> 48 & 0xFFFF
    good = (head & (1 << 48) - 1 == _LEAF) & (n > 0) & (n <= room)
    for sibling in (8, 8 + width):
        good &= undefined(integers(data, node + sibling, width), width)
    n = np.where(good, n, 0)
    entry = node + head_nbytes
    good &= _bounds_are_whole(data, entry + n * step, table)
    chunks.bad[rows[~good]] = True
    last = np.full(len(rows), -1)
    for k in range(int(n.max(initial=0))):
        has = np.flatnonzero(n > k)
        key = entry[has] + k * step[has]
        number, wrong = _key_numbers(data, key, table.ndim[has], table.chunks[has], grid[has])
        wrong |= number <= last[has]
        last[has] = number
        chunks.bad[rows[has[wrong]]] = True
        child = integers(data, key + step[has] - width, width)
        stored, mask = integers(data, key, 4), integers(data, key + 4, 4)
        chunks.add(rows[has], number, child, stored, mask)


def _bounds_are_whole(data: ByteArray, key: IntArray, table: DatasetTable) -> BoolArray:
    """Tell whether the offsets of last keys are multiples of the chunks, and of an element."""
    itemsize = np.maximum(table.nbytes // table.shape.prod(axis=1), 1)
    bound = integers(data, key + 8 + 8 * table.ndim, 8)
    good: BoolArray = (bound >= 0) & (bound % itemsize == 0)
    for axis in range(int(table.ndim.max(initial=0))):
        bound = integers(data, key + 8 + 8 * axis, 8)
        good &= (table.ndim <= axis) | ((bound >= 0) & (bound % table.chunks[:, axis] == 0))
    return good


def _key_numbers(
    data: ByteArray, key: IntArray, ndim: IntArray, chunk_shape: IntArray, grid: IntArray
) -> tuple[IntArray, BoolArray]:
    """Return the number of each key's chunk in its grid, and which keys are wrong."""
    number = np.zeros(len(key), dtype=np.int64)
    # The last offset is within an element, where a chunk begins with the first byte.
    wrong: BoolArray = integers(data, key + 8 + 8 * ndim, 8) != 0
    for axis in range(int(ndim.max())):
        origin = np.where(ndim > axis, integers(data, key + 8 + 8 * axis, 8), 0)
        cell = origin // chunk_shape[:, axis]
        wrong |= (cell * chunk_shape[:, axis] != origin) | (cell < 0) | (cell >= grid[:, axis])
        number = number * grid[:, axis] + cell
    return number, wrong


def _read_arrays(
    file: FileContent, table: DatasetTable, datasets: Datasets, chunks: _ChunkCollector
) -> None:
    """Add the chunks of fixed arrays without pages.

    ``datasets`` has the row, the number of chunks and the bytes of a chunk of each.
    """
    rows, room, chunk_nbytes = datasets
    # Header: char[4] "FAHD", uint8 version, uint8 client ID (1: with filters), uint8 element
    # size, uint8 page bits, number of elements (size of lengths), data block address, checksum.
    form = file.form
    width, length = form.offset_size, form.length_size
    head_nbytes = np.full(len(rows), 8 + length + width + _CHECKSUM_NBYTES)
    read, data, at = _read_nodes(file, rows, table.offset, head_nbytes, chunks)
    rows, room, chunk_nbytes = rows[read], room[read], chunk_nbytes[read]
    header = table.offset[read] - form.base_address
    client, entry = data[at + 5].astype(np.int64), data[at + 6].astype(np.int64)
    page = np.int64(1) << np.minimum(data[at + 7], 62).astype(np.int64)
    block = integers(data, at + 8 + length, width)
    good = _are_signed(data, at, head_nbytes[read], _ARRAY_HEADER) & (room <= page)
    good &= (integers(data, at + 8, length) == room) & (client <= 1)
    # An element: address; with filters also the chunk's size and a uint32 filter mask.
    size_nbytes = entry - width - 4
    good &= np.where(client == 0, entry == width, (size_nbytes >= 1) & (size_nbytes <= 8))
    chunks.bad[rows[~good]] = True
    some = np.flatnonzero(good & ~undefined(block, width))
    if not len(some):
        return
    # Data block: char[4] "FADB", uint8 version, uint8 client ID, header address, elements,
    # checksum.
    nbytes = 6 + width + room * entry + _CHECKSUM_NBYTES
    inside, data, at = _read_nodes(
        file, rows[some], form.base_address + block[some], nbytes[some], chunks
    )
    some = some[inside]
    good = _are_signed(data, at, nbytes[some], _ARRAY_BLOCK)
    good &= data[at + 5] == client[some]
    good &= integers(data, at + 6, width) == header[some]
    chunks.bad[rows[some[~good]]] = True
    some, at = some[good], at[good]
    for k in range(int(room[some].max(initial=0))):
        has = room[some] > k
        row = some[has]
        element = at[has] + 6 + width + k * entry[row]
        mask = (np.int64(1) << np.clip(8 * size_nbytes[row], 1, 63)) - 1
        stored = integers(data, element + width, 8) & mask
        skipped = integers(data, element + np.maximum(entry[row] - 4, 0), 4)
        plain, address = client[row] == 0, integers(data, element, width)
        stored = np.where(plain, chunk_nbytes[row], stored)
        skipped = np.where(plain, 0, skipped)
        chunks.add(rows[row], np.full(len(row), k), address, stored, skipped)


def _are_signed(data: ByteArray, at: IntArray, nbytes: IntArray, begin: int) -> BoolArray:
    """Tell which nodes have a signature, version 0, and the right checksum at their end."""
    good: BoolArray = integers(data, at, 8) & (1 << 40) - 1 == begin
    if len(at):
        covered = nbytes - _CHECKSUM_NBYTES
        good &= sum_blocks(data, at, covered) == integers(data, at + covered, 4)
    return good
