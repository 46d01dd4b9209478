"""The chunk index of one dataset, of any kind of index.

In: the layout message of a dataset. Out: `ListedChunks`, all chunks of its index. Every kind
of index is read level by level, so that a remote file gets one request for each level.
`xref.hdf5.dataset_layout.build_chunk_index` checks the chunks and sorts them.

Source: HDF5 File Format Specification 4.0, "The Data Layout Message".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from xref.errors import UnsupportedError
from xref.hdf5.chunk_index.arrays import TOO_LONG, Grid, read_extensible_array, read_fixed_array
from xref.hdf5.chunk_index.btrees import ListedChunks, concat_chunks, read_v1_tree, read_v2_tree
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

# Bytes of "Indexing Type Information" in layout messages of version 4 and 5: parameters of the
# index that its own header repeats. A single chunk with filters has its size and filter mask.
_INFO_NBYTES = {IMPLICIT: 0, FIXED_ARRAY: 1, EXTENSIBLE_ARRAY: 5, V2_BTREE: 6}


@dataclass(frozen=True, slots=True)
class ChunkStorage:
    """The properties of chunked storage in a layout message."""

    index: int  # type of the chunk index (`layout_message`); 0 before version 4
    address: int  # of the index, of a single chunk, or of the first chunk (implicit index)
    chunks: tuple[int, ...]  # shape of chunks, elements
    itemsize: int  # bytes of an element
    partial_unfiltered: bool = False  # whether chunks that pass the extent skip all filters
    single_nbytes: int | None = None  # stored size of a single chunk with filters
    single_mask: int = 0  # filter mask of a single chunk with filters


def parse_chunk_storage(body: bytes, source: MetadataReader) -> ChunkStorage:
    """Decode a layout message of chunked storage.

    Raises
    ------
    CorruptFileError
        If it contradicts the format.
    UnsupportedError
        If its version or its chunk indexing type is unknown.
    """
    size = source.offset_size
    version = body[0] if body else 0
    if not 1 <= version <= 5:
        raise UnsupportedError(f"{source.where}: a layout message has version {version}")
    # Versions 1 and 2: uint8 version, uint8 dimensionality, uint8 layout class, 5 reserved
    #   bytes, address, then uint32 sizes.
    # Version 3: uint8 version, uint8 layout class, uint8 dimensionality, address, uint32 sizes.
    # Versions 4 and 5: uint8 version, uint8 layout class, uint8 flags, uint8 dimensionality,
    #   uint8 width of a size, the sizes, uint8 chunk indexing type, its parameters, address.
    # There is a size for each axis, in elements, and a last one: the bytes of an element.
    storage, n_sizes = (body[2:3], body[1:2]) if version < 3 else (body[1:2], body[2:3])
    if version > 3:
        n_sizes = body[3:4]
    if storage != bytes([CHUNKED]) or not n_sizes > b"\x01":
        source.fail(f"a layout message of chunks begins with {body[:4]!r}")
    n = n_sizes[0]
    if version < 4:
        begin = 8 if version < 3 else 3
        _check_length(source, body, begin + size + n * 4)
        chunks = _chunk_shape(source, body, begin + size, n, 4)
        return ChunkStorage(V1_BTREE, integer(body, begin, size), *chunks)
    flags, width = body[2], integer(body, 4, 1)
    index_at = 5 + n * width
    _check_length(source, body, index_at + 1)
    index, known = body[index_at], (SINGLE_CHUNK, *_INFO_NBYTES)
    if flags & ~(PARTIAL_UNFILTERED | SINGLE_FILTERED) or index not in known:
        raise UnsupportedError(
            f"{source.where}: a layout message has flags {flags:#04x} and chunk index {index}"
        )
    if not 1 <= width <= 8:
        source.fail(f"a layout message has chunk sizes of {width} bytes")
    filtered = index == SINGLE_CHUNK and flags & SINGLE_FILTERED
    length = source.length_size
    info_nbytes = (length + 4) if filtered else _INFO_NBYTES.get(index, 0)
    address_at = index_at + 1 + info_nbytes
    _check_length(source, body, address_at + size)
    return ChunkStorage(
        index,
        integer(body, address_at, size),
        *_chunk_shape(source, body, 5, n, width),
        partial_unfiltered=bool(flags & PARTIAL_UNFILTERED),
        single_nbytes=integer(body, index_at + 1, length) if filtered else None,
        single_mask=integer(body, index_at + 1 + length, 4) if filtered else 0,
    )


def _check_length(source: MetadataReader, body: bytes, nbytes: int) -> None:
    if len(body) < nbytes:
        source.fail(f"a layout message has {len(body)} of {nbytes} bytes")


def _chunk_shape(
    source: MetadataReader, body: bytes, begin: int, n: int, width: int
) -> tuple[tuple[int, ...], int]:
    """Decode the shape of chunks (elements) and the bytes of an element, which follow it."""
    edges = range(begin, begin + (n + 1) * width, width)
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
    """Return the chunks in the index of a dataset.

    Parameters
    ----------
    reader : NodeReader
        Of the file.
    storage : ChunkStorage
        From the dataset's layout message.
    layout : DatasetLayout
        Of the dataset.
    half_width : callable
        Returns the file's "Indexed Storage Internal Node K"; called only for a version 1
        B-tree.

    Raises
    ------
    CorruptFileError
        If the index contradicts the format, or the dataset.
    UnsupportedError
        If the index has an unknown version.
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
        return concat_chunks([], ndim)
    grid = Grid(_largest_grid(layout, storage.chunks), nbytes, filtered)
    address = storage.address
    if storage.index == V1_BTREE:
        chunks = read_v1_tree(reader, address, storage.chunks, half_width())
    elif storage.index == SINGLE_CHUNK:
        chunks = _single_chunk(source, storage, grid)
    elif storage.index == IMPLICIT:
        chunks = _implicit_chunks(source, address, layout, grid)
    elif storage.index == FIXED_ARRAY:
        _check_unlimited(source, grid, 0)
        chunks = read_fixed_array(reader, address, grid)
    elif storage.index == EXTENSIBLE_ARRAY:
        _check_unlimited(source, grid, 1)
        chunks = read_extensible_array(reader, address, grid)
    else:
        chunks = read_v2_tree(reader, address, ndim, nbytes, filtered)
    if storage.partial_unfiltered and filtered:
        # Flag bit 0: chunks that reach past the extent are stored without filters.
        beyond = chunks.cell >= np.array(layout.shape) // np.array(storage.chunks)
        mask = np.where(beyond.any(axis=1), NO_FILTER, chunks.filter_mask)
        chunks = chunks._replace(filter_mask=mask)
    return chunks


def _largest_grid(layout: DatasetLayout, chunks: tuple[int, ...]) -> tuple[int | None, ...]:
    """Return the number of chunks along each axis of the largest extent; None: unlimited."""
    pairs = zip(layout.maxshape, chunks, strict=True)
    return tuple(None if n is None else -(-n // chunk) for n, chunk in pairs)


def _check_unlimited(source: MetadataReader, grid: Grid, n: int) -> None:
    """Raise if the dataset has another number of unlimited axes than its index allows."""
    found = grid.shape.count(None)
    if found != n:
        source.fail(
            f"the chunks are in an array for {n} axes without limit, and the dataset has "
            f"{found}"
        )


def _single_chunk(source: MetadataReader, storage: ChunkStorage, grid: Grid) -> ListedChunks:
    """Return the only chunk of a dataset."""
    if any(n != 1 for n in grid.shape):
        source.fail(f"a single chunk is all that a dataset of {grid.shape} chunks has")
    nbytes = storage.single_nbytes
    return ListedChunks(
        cell=np.zeros((1, grid.ndim), dtype=np.int64),
        address=_signed(storage.address),
        nbytes=_signed(grid.chunk_nbytes if nbytes is None else nbytes),
        filter_mask=np.array([storage.single_mask]),
    )


def _implicit_chunks(
    source: MetadataReader, address: int, layout: DatasetLayout, grid: Grid
) -> ListedChunks:
    """Return chunks without an index: they follow each other in C order of the largest grid."""
    _check_unlimited(source, grid, 0)
    n_chunks = math.prod(n or 0 for n in grid.shape)
    if grid.filtered or address > source.file_nbytes - n_chunks * grid.chunk_nbytes:
        source.fail(
            f"{n_chunks} chunks of {grid.chunk_nbytes} bytes in a row at {address:#x} have "
            f"filters or reach past the end of the file ({source.file_nbytes} bytes)"
        )
    if math.prod(layout.grid) > n_chunks:
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
    """Return a column of one integer; a value past the largest int64 becomes negative."""
    return np.array([value], dtype=np.uint64).astype(np.int64)
