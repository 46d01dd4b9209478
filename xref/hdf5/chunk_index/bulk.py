"""Where the chunks of many datasets lie, as columns.

In: chunked datasets of a `DatasetTable`. Out: `ChunkColumns`, the chunks of those that
have few of them.

1. The node of the index is read of all datasets of one kind of index, close ones
   together.
2. The first chunk of each is decoded, then the second, and so on.

Indices are decoded here that libhdf5 writes for datasets of a few chunks: a B-tree of one
leaf, a single chunk, chunks in a row without an index, a fixed array without pages. A
dataset with any other one, or with an index that contradicts the format or the extent in
any way, is not known: `xref.objects.datasets.chunk_index` is to look at it alone.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 1A1 - Version 1 B-trees",
"The Data Layout Message" and "The Fixed Array Index".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays import BoolArray, IntArray, RangeSource, ragged_ranges, row_offsets
from xref.hdf5.bulk_datasets import BATCH, DatasetTable
from xref.hdf5.checksums import sum_blocks
from xref.hdf5.layout_message import FIXED_ARRAY, IMPLICIT, SINGLE_CHUNK, V1_BTREE
from xref.hdf5.packed import ByteArray, integers, read_blocks, undefined
from xref.hdf5.superblock import FileContent, FileFormat

MAX_CHUNKS = 64
"""Chunks that the extent of a dataset has room for, at most; those of datasets of more
are read on threads, one dataset after the other."""

_LEAF = int.from_bytes(b"TREE\x01\x00", "little")  # signature, of chunks, level
_ARRAY_HEADER = int.from_bytes(b"FAHD\0", "little")
_ARRAY_BLOCK = int.from_bytes(b"FADB\0", "little")
_CHECKSUM_NBYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkColumns:
    """The allocated chunks of n datasets, one dataset after the other."""

    known: BoolArray  # (n,), whether the chunks of each are here
    cut: IntArray  # (n + 1,), where those of each begin
    number: IntArray  # (m,), in C order of the grid, ascending
    offset: IntArray  # (m,), first byte in the file
    nbytes: IntArray  # (m,), as stored
    filter_mask: IntArray  # (m,), bit i set: filter i was skipped

    def take(self, rows: npt.NDArray[Any]) -> ChunkColumns:
        """Return the chunks of some datasets."""
        counts = np.diff(self.cut)[rows]
        picked = ragged_ranges(self.cut[rows], counts)
        return ChunkColumns(
            known=self.known[rows],
            cut=row_offsets(counts),
            number=self.number[picked],
            offset=self.offset[picked],
            nbytes=self.nbytes[picked],
            filter_mask=self.filter_mask[picked],
        )

    def spread(self, rows: npt.NDArray[np.intp], n: int) -> ChunkColumns:
        """Return the chunks as those of some of n datasets; of others none is known."""
        known, counts = np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64)
        known[rows], counts[rows] = self.known, np.diff(self.cut)
        return replace(self, known=known, cut=row_offsets(counts))


class _Found:
    """Chunks found so far; of datasets that are marked bad they make no sense."""

    def __init__(self, n: int, form: FileFormat, limit: int) -> None:
        self.bad = np.zeros(n, dtype=bool)
        self._form = form
        self._limit = limit
        self._columns: list[tuple[IntArray, ...]] = []

    def add(
        self,
        of: IntArray,
        number: IntArray,
        address: IntArray,
        nbytes: IntArray,
        filter_mask: IntArray,
    ) -> None:
        """Add chunks; those without an address were never written."""
        written = ~undefined(address, self._form.offset_size)
        of, number, address = of[written], number[written], address[written]
        nbytes, filter_mask = nbytes[written], filter_mask[written]
        end = self._form.file_nbytes - self._form.base_address
        fits = (nbytes > 0) & (nbytes <= min(self._limit, end)) & (address > 0)
        fits &= address <= end - np.where(fits, nbytes, 0)
        self.bad[of[~fits]] = True
        offset = address + self._form.base_address
        self._columns.append((of, number, offset, nbytes, filter_mask))

    def table(self) -> ChunkColumns:
        """Put the chunks of each dataset together."""
        empty = np.zeros(0, dtype=np.int64)
        none = (empty,) * 5
        of, number, *rest = (np.concatenate(c) for c in zip(none, *self._columns, strict=True))
        good = ~self.bad[of]
        order = np.flatnonzero(good)[np.lexsort((number[good], of[good]))]
        offset, nbytes, filter_mask = (column[order] for column in rest)
        return ChunkColumns(
            known=~self.bad,
            cut=row_offsets(np.bincount(of[order], minlength=len(self.bad))),
            number=number[order],
            offset=offset,
            nbytes=nbytes,
            filter_mask=filter_mask,
        )


def read_chunks(file: FileContent, table: DatasetTable, limit: int) -> ChunkColumns:
    """Read where the chunks of many datasets lie.

    Parameters
    ----------
    file : FileContent
        The file.
    table : DatasetTable
        Chunked datasets of it, all known.
    limit : int
        Datasets are not known a chunk of which has more bytes, as stored or as elements.
    """
    parts = [
        _read_batch(file, table.take(slice(begin, begin + BATCH)), limit)
        for begin in range(0, max(len(table), 1), BATCH)
    ]
    if len(parts) == 1:
        return parts[0]
    counts = np.concatenate([np.diff(part.cut) for part in parts])
    return ChunkColumns(
        known=np.concatenate([part.known for part in parts]),
        cut=row_offsets(counts),
        number=np.concatenate([part.number for part in parts]),
        offset=np.concatenate([part.offset for part in parts]),
        nbytes=np.concatenate([part.nbytes for part in parts]),
        filter_mask=np.concatenate([part.filter_mask for part in parts]),
    )


def _read_batch(file: FileContent, table: DatasetTable, limit: int) -> ChunkColumns:
    form = file.form
    found = _Found(len(table), form, limit)
    source = file.source
    grid = -(-table.shape // table.chunks)
    n_chunks = np.minimum(grid, MAX_CHUNKS + 1).astype(float).prod(axis=1)
    itemsize = table.nbytes // np.maximum(table.shape.prod(axis=1), 1)
    chunk_nbytes = table.chunks.prod(axis=1) * itemsize
    found.bad |= (n_chunks > MAX_CHUNKS) | (chunk_nbytes > limit)
    asked = ~found.bad & (n_chunks > 0) & (table.offset >= 0)
    n_chunks = np.where(found.bad, 0, n_chunks).astype(np.int64)
    seen = ~asked
    for index in (V1_BTREE, SINGLE_CHUNK, IMPLICIT, FIXED_ARRAY):
        rows = np.flatnonzero(asked & (table.index == index))
        seen[rows] = True
        if not len(rows):
            continue
        room, nbytes = n_chunks[rows], chunk_nbytes[rows]
        part = table.take(rows)
        if index == V1_BTREE:
            _read_leaves(source, form, part, (rows, grid[rows], room), found)
        elif index == FIXED_ARRAY:
            _read_arrays(source, form, part, (rows, room, nbytes), found)
        else:
            _add_in_a_row(form, part, (rows, room, nbytes), found)
    found.bad |= ~seen
    return found.table()


def _add_in_a_row(
    form: FileFormat,
    table: DatasetTable,
    of: tuple[npt.NDArray[np.intp], IntArray, IntArray],
    found: _Found,
) -> None:
    """Add chunks of which the layout message has the address."""
    rows, room, nbytes = of
    single = table.index == SINGLE_CHUNK
    found.bad[rows[single & (room != 1)]] = True
    stored = np.where(single, table.single_nbytes, nbytes)
    address = table.offset - form.base_address
    for k in range(int(room.max())):
        own = np.flatnonzero(room > k)
        found.add(
            rows[own],
            np.full(len(own), k),
            address[own] + k * nbytes[own],
            stored[own],
            table.single_mask[own],
        )


def _read_nodes(
    source: RangeSource,
    form: FileFormat,
    rows: npt.NDArray[np.intp],
    offset: IntArray,
    nbytes: IntArray,
    found: _Found,
) -> tuple[npt.NDArray[np.intp], ByteArray, IntArray]:
    """Read nodes; return which of them are in the file, their bytes, where each begins."""
    inside = (offset > 0) & (offset <= form.file_nbytes - nbytes)
    found.bad[rows[~inside]] = True
    own = np.flatnonzero(inside)
    return own, *read_blocks(source, offset[own], nbytes[own])


def _read_leaves(
    source: RangeSource,
    form: FileFormat,
    table: DatasetTable,
    of: tuple[npt.NDArray[np.intp], IntArray, IntArray],
    found: _Found,
) -> None:
    """Add the chunks of B-trees of one node."""
    rows, grid, room = of
    width = form.offset_size
    head_nbytes, key_nbytes = 8 + 2 * width, 8 + 8 * (table.ndim + 1)
    # Each chunk of the grid is there at most once; behind the last one there is a key.
    nbytes = head_nbytes + room * (key_nbytes + width) + key_nbytes
    own, data, at = _read_nodes(source, form, rows, table.offset, nbytes, found)
    rows, grid, room, step = rows[own], grid[own], room[own], key_nbytes[own] + width
    ndim, chunks = table.ndim[own], table.chunks[own]
    itemsize = np.maximum(table.nbytes[own] // table.shape[own].prod(axis=1), 1)
    head = integers(data, at, 8)
    n = head >> 48 & 0xFFFF
    good = (head & (1 << 48) - 1 == _LEAF) & (n > 0) & (n <= room)
    for sibling in (8, 8 + width):
        good &= undefined(integers(data, at + sibling, width), width)
    found.bad[rows[~good]] = True
    n = np.where(good, n, 0)
    behind = at + head_nbytes + n * step
    for axis in range(int(ndim.max(initial=0))):
        bound = integers(data, behind + 8 + 8 * axis, 8)
        found.bad[rows[(ndim > axis) & ((bound < 0) | (bound % chunks[:, axis] != 0))]] = True
    bound = integers(data, behind + 8 + 8 * ndim, 8)
    found.bad[rows[(bound < 0) | (bound % itemsize != 0)]] = True
    last = np.full(len(rows), -1)
    for k in range(int(n.max(initial=0))):
        some = np.flatnonzero(n > k)
        key = at[some] + head_nbytes + k * step[some]
        number, bad = np.zeros((2, len(some)), dtype=np.int64)
        for axis in range(int(ndim[some].max())):
            has = ndim[some] > axis
            origin = np.where(has, integers(data, key + 8 + 8 * axis, 8), 0)
            chunk = chunks[some, axis]
            cell = origin // chunk
            bad |= (cell * chunk != origin) | (cell < 0) | (cell >= grid[some, axis])
            number = number * grid[some, axis] + cell
        # Within elements, the chunk begins with the first byte.
        bad |= integers(data, key + 8 + 8 * ndim[some], 8) != 0
        bad |= number <= last[some]
        last[some] = number
        found.bad[rows[some[bad != 0]]] = True
        found.add(
            rows[some],
            number,
            integers(data, key + step[some] - width, width),
            integers(data, key, 4),
            integers(data, key + 4, 4),
        )


def _read_arrays(
    source: RangeSource,
    form: FileFormat,
    table: DatasetTable,
    of: tuple[npt.NDArray[np.intp], IntArray, IntArray],
    found: _Found,
) -> None:
    """Add the chunks of fixed arrays without pages."""
    rows, room, chunk_nbytes = of
    width, length = form.offset_size, form.length_size
    head_nbytes = np.full(len(rows), 8 + length + width + _CHECKSUM_NBYTES)
    own, data, at = _read_nodes(source, form, rows, table.offset, head_nbytes, found)
    rows, room, chunk_nbytes = rows[own], room[own], chunk_nbytes[own]
    header = table.offset[own] - form.base_address
    client, entry = data[at + 5].astype(np.int64), data[at + 6].astype(np.int64)
    pages = np.int64(1) << np.minimum(data[at + 7], 62).astype(np.int64)
    block = integers(data, at + 8 + length, width)
    good = _are_signed(data, at, head_nbytes[own], _ARRAY_HEADER) & (room <= pages)
    good &= (integers(data, at + 8, length) == room) & (client <= 1)
    # With filters, the stored size and the filter mask follow the address.
    size_nbytes = entry - width - 4
    good &= np.where(client == 0, entry == width, (size_nbytes >= 1) & (size_nbytes <= 8))
    found.bad[rows[~good]] = True
    some = np.flatnonzero(good & ~undefined(block, width))
    if not len(some):
        return
    nbytes = 6 + width + room * entry + _CHECKSUM_NBYTES
    inside, data, at = _read_nodes(
        source, form, rows[some], form.base_address + block[some], nbytes[some], found
    )
    some = some[inside]
    good = _are_signed(data, at, nbytes[some], _ARRAY_BLOCK)
    good &= data[at + 5] == client[some]
    good &= integers(data, at + 6, width) == header[some]
    found.bad[rows[some[~good]]] = True
    some, at = some[good], at[good]
    for k in range(int(room[some].max(initial=0))):
        has = room[some] > k
        row = some[has]
        place = at[has] + 6 + width + k * entry[row]
        mask = (np.int64(1) << np.clip(8 * size_nbytes[row], 1, 63)) - 1
        stored = integers(data, place + width, 8) & mask
        skipped = integers(data, place + np.maximum(entry[row] - 4, 0), 4)
        plain = client[row] == 0
        found.add(
            rows[row],
            np.full(len(row), k),
            integers(data, place, width),
            np.where(plain, chunk_nbytes[row], stored),
            np.where(plain, 0, skipped),
        )


def _are_signed(data: ByteArray, at: IntArray, nbytes: IntArray, begin: int) -> BoolArray:
    """Tell which nodes begin with a signature and version 0, and end with their checksum."""
    good: BoolArray = integers(data, at, 8) & (1 << 40) - 1 == begin
    if len(at):
        covered = nbytes - _CHECKSUM_NBYTES
        good &= sum_blocks(data, at, covered) == integers(data, at + covered, 4)
    return good
