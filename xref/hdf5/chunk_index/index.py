"""Where the chunks of one dataset lie: its index, whatever its kind.

In: the layout message of a dataset. Out: `ListedChunks`, all chunks that its index lists.
Each kind of index is read level by level, so that a remote file is asked as many times as
the index is deep. `xref.hdf5.dataset_layout.build_chunk_index` checks the chunks, and sorts
them.

Source: HDF5 File Format Specification 4.0, "The Data Layout Message".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from xref.errors import UnsupportedError
from xref.hdf5.chunk_index.arrays import TOO_LONG, Grid, read_extensible_array, read_fixed_array
from xref.hdf5.chunk_index.btrees import ListedChunks, joined, read_v1_tree, read_v2_tree
from xref.hdf5.chunk_index.nodes import NodeReader
from xref.hdf5.dataset_layout import DatasetLayout
from xref.hdf5.layout_message import (
    CHUNKED,
    EXTENSIBLE_ARRAY,
    FIXED_ARRAY,
    IMPLICIT,
    PARTIAL_UNFILTERED,
    SINGLE_CHUNK,
    SINGLE_FILTERED,
    V1_BTREE,
    V2_BTREE,
)
from xref.hdf5.metadata_reader import MetadataReader, integer

NO_FILTER = 2**32 - 1
"""The filter mask of a chunk that skipped all filters."""

_INFO_NBYTES = {IMPLICIT: 0, FIXED_ARRAY: 1, EXTENSIBLE_ARRAY: 5, V2_BTREE: 6}


@dataclass(frozen=True, slots=True)
class ChunkStorage:
    """What a layout message says of chunks.

    Attributes
    ----------
    index : int
        Kind of index, as layout messages of version 4 number them.
    address : int
        Of the index; of the chunk where it is single; of the first where there is none.
    chunks : tuple of int
        Shape of chunks, elements.
    itemsize : int
        Bytes of an element.
    partial_unfiltered : bool
        Whether chunks that reach past the extent skip all filters.
    single_nbytes : int or None
        Size as stored of a single chunk with filters.
    single_mask : int
        Its filter mask.
    """

    index: int
    address: int
    chunks: tuple[int, ...]
    itemsize: int
    partial_unfiltered: bool = False
    single_nbytes: int | None = None
    single_mask: int = 0


def parse_chunk_storage(body: bytes, source: MetadataReader) -> ChunkStorage:
    """Decode a layout message of chunked storage.

    Raises
    ------
    CorruptFileError
        If it contradicts the format.
    UnsupportedError
        If its version, or the kind of its index, is unknown.
    """
    size = source.offset_size
    version = body[0] if body else 0
    if not 1 <= version <= 5:
        raise UnsupportedError(f"{source.where}: a layout message has version {version}")
    storage, n_sizes = (body[2:3], body[1:2]) if version < 3 else (body[1:2], body[2:3])
    if version > 3:
        n_sizes = body[3:4]
    if storage != bytes([CHUNKED]) or not n_sizes > b"\x01":
        source.fail(f"a layout message of chunks begins with {body[:4]!r}")
    n = n_sizes[0]
    if version < 4:
        begin, width = (8, 4) if version < 3 else (3, 4)
        _check_length(source, body, begin + size + n * width)
        chunks = _sizes(source, body, begin + size, n, width)
        return ChunkStorage(V1_BTREE, integer(body, begin, size), *chunks)
    flags, width = body[2], integer(body, 4, 1)
    after = 5 + n * width
    _check_length(source, body, after + 1)
    index = body[after]
    if flags & ~(PARTIAL_UNFILTERED | SINGLE_FILTERED) or index not in (
        SINGLE_CHUNK,
        *_INFO_NBYTES,
    ):
        raise UnsupportedError(
            f"{source.where}: a layout message has flags {flags:#04x} and chunk index {index}"
        )
    if not 1 <= width <= 8:
        source.fail(f"a layout message has chunk sizes of {width} bytes")
    filtered = index == SINGLE_CHUNK and flags & SINGLE_FILTERED
    length = source.length_size
    info_nbytes = (length + 4) if filtered else _INFO_NBYTES.get(index, 0)
    at = after + 1 + info_nbytes
    _check_length(source, body, at + size)
    found = ChunkStorage(
        index,
        integer(body, at, size),
        *_sizes(source, body, 5, n, width),
        partial_unfiltered=bool(flags & PARTIAL_UNFILTERED),
    )
    if filtered:
        found = replace(
            found,
            single_nbytes=integer(body, after + 1, length),
            single_mask=integer(body, after + 1 + length, 4),
        )
    return found


def _check_length(source: MetadataReader, body: bytes, nbytes: int) -> None:
    if len(body) < nbytes:
        source.fail(f"a layout message has {len(body)} of {nbytes} bytes")


def _sizes(
    source: MetadataReader, body: bytes, at: int, n: int, width: int
) -> tuple[tuple[int, ...], int]:
    """Return the shape of chunks, and the bytes of an element, which stand behind it."""
    edges = range(at, at + (n + 1) * width, width)
    *chunks, itemsize = (int.from_bytes(body[a:b], "little") for a, b in pairwise(edges))
    if min(*chunks, itemsize) < 1:
        source.fail(f"a layout message has chunks of {chunks} elements of {itemsize} bytes")
    return tuple(chunks), itemsize


def read_listed_chunks(
    reader: NodeReader,
    storage: ChunkStorage,
    layout: DatasetLayout,
    half_width: Callable[[], int],
) -> ListedChunks:
    """Return the chunks that the index of a dataset lists.

    Parameters
    ----------
    reader : NodeReader
        Of the file.
    storage : ChunkStorage
        From the dataset's layout message.
    layout : DatasetLayout
        Of the dataset.
    half_width : callable
        Returns the file's "Indexed Storage Internal Node K"; asked for only where nodes
        have it.

    Raises
    ------
    CorruptFileError
        If the index contradicts the format, or the dataset.
    UnsupportedError
        If the index is of a version that is not known.
    """
    source = reader.source
    nbytes = math.prod(storage.chunks) * storage.itemsize
    if storage.chunks != layout.chunks or nbytes >= TOO_LONG:
        source.fail(
            f"the layout message has chunks of {storage.chunks} elements of "
            f"{storage.itemsize} bytes, and the dataset chunks of {layout.chunks} elements"
        )
    ndim, filtered = len(storage.chunks), bool(layout.pipeline.filters)
    if storage.address == source.undefined:
        return joined([], ndim)
    grid = Grid(_largest_grid(layout, storage.chunks), nbytes, filtered)
    address = storage.address
    if storage.index == V1_BTREE:
        found = read_v1_tree(reader, address, storage.chunks, half_width())
    elif storage.index == SINGLE_CHUNK:
        found = _single(source, storage, grid)
    elif storage.index == IMPLICIT:
        found = _in_a_row(source, address, layout, grid)
    elif storage.index == FIXED_ARRAY:
        _check_unlimited(source, grid, 0)
        found = read_fixed_array(reader, address, grid)
    elif storage.index == EXTENSIBLE_ARRAY:
        _check_unlimited(source, grid, 1)
        found = read_extensible_array(reader, address, grid)
    else:
        found = read_v2_tree(reader, address, ndim, nbytes, filtered)
    if storage.partial_unfiltered and filtered:
        beyond = found.cell >= np.array(layout.shape) // np.array(storage.chunks)
        partial = beyond.any(axis=1)
        found = found._replace(filter_mask=np.where(partial, NO_FILTER, found.filter_mask))
    return found


def _largest_grid(layout: DatasetLayout, chunks: tuple[int, ...]) -> tuple[int | None, ...]:
    """Return the chunks along each axis of the largest extent."""
    pairs = zip(layout.maxshape, chunks, strict=True)
    return tuple(None if n is None else -(-n // chunk) for n, chunk in pairs)


def _check_unlimited(source: MetadataReader, grid: Grid, n: int) -> None:
    """Refuse arrays of datasets with another number of axes without limit."""
    found = grid.shape.count(None)
    if found != n:
        source.fail(
            f"the chunks are in an array for {n} axes without limit, and the dataset has "
            f"{found}"
        )


def _single(source: MetadataReader, storage: ChunkStorage, grid: Grid) -> ListedChunks:
    """Return the chunk of a dataset that has room for one."""
    if any(n != 1 for n in grid.shape):
        source.fail(f"a single chunk is all that a dataset of {grid.shape} chunks has")
    nbytes = storage.single_nbytes
    return ListedChunks(
        cell=np.zeros((1, grid.ndim), dtype=np.int64),
        address=_signed(storage.address),
        nbytes=_signed(grid.chunk_nbytes if nbytes is None else nbytes),
        filter_mask=np.array([storage.single_mask]),
    )


def _in_a_row(
    source: MetadataReader, address: int, layout: DatasetLayout, grid: Grid
) -> ListedChunks:
    """Return chunks that follow each other in the order of the largest grid."""
    _check_unlimited(source, grid, 0)
    every = math.prod(n or 0 for n in grid.shape)
    if grid.filtered or address > source.file_nbytes - every * grid.chunk_nbytes:
        source.fail(
            f"{every} chunks of {grid.chunk_nbytes} bytes in a row at {address:#x} have "
            f"filters or reach past the end of the file ({source.file_nbytes} bytes)"
        )
    if math.prod(layout.grid) > every:
        source.fail(f"the extent {layout.shape} is larger than the largest, {layout.maxshape}")
    cell = np.indices(layout.grid).reshape(grid.ndim, -1).T
    number = np.zeros(len(cell), dtype=np.int64)
    for axis, length in enumerate(grid.shape):
        number = number * (length or 1) + cell[:, axis]
    return ListedChunks(
        cell=cell,
        address=address + number * grid.chunk_nbytes,
        nbytes=np.full(len(cell), grid.chunk_nbytes),
        filter_mask=np.zeros(len(cell), dtype=np.int64),
    )


def _signed(value: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return an integer as a column; what is past the largest one comes out negative."""
    return np.array([value], dtype=np.uint64).astype(np.int64)
