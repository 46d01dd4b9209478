"""Data layout messages of many datasets at once: where their elements lie.

In: `HeaderMessages` and extents. Out: columns of a `xref.hdf5.bulk_datasets.DatasetTable`.

The fields of a message (O: size of offsets, L: size of lengths from the superblock):

- Version 3: version 1, layout class 1. Compact: size 2, data. Contiguous: address O, size L.
  Chunked: dimensionality 1, address O, sizes 4 each.
- Versions 4 and 5 have compact and contiguous data in the same way (of version 5 only chunks
  are decoded here). Chunked: flags 1,
  dimensionality 1, encoded length of a size 1, sizes (that length each), type of the chunk
  index 1, information about the index (0 to L + 4), address O.

The dimensionality counts one more than the rank: the last size is that of an element.

Source: HDF5 File Format Specification 4.0, "The Data Layout Message".
"""

from __future__ import annotations

import numpy as np

from xref.arrays import BoolArray, IntArray
from xref.hdf5.bulk_headers import HeaderMessages
from xref.hdf5.dataspace import MAX_EXTENT, ExtentColumns
from xref.hdf5.packed import ByteArray, integers, undefined
from xref.hdf5.superblock import FileFormat

COMPACT, CONTIGUOUS, CHUNKED = range(3)
"""Layout classes."""

V1_BTREE, SINGLE_CHUNK, IMPLICIT, FIXED_ARRAY, EXTENSIBLE_ARRAY, V2_BTREE = range(6)
"""Types of chunk indices: 1 to 5 as in messages since version 4. 0 stands for the version 1
B-tree, which earlier versions always have."""

OTHER_INDEX = -1
"""A chunk index that `xref.hdf5.chunk_index.bulk` does not read."""

MAX_CHUNK_NBYTES = 2**32
"""Chunks have fewer bytes before version 5; larger ones are not described here."""

PARTIAL_UNFILTERED, SINGLE_FILTERED = 0x01, 0x02
"""Flags since version 4: chunks at the edge are not filtered; a single chunk is filtered."""

# Bytes of information, by type of index. Fixed array: page bits 1. Extensible array: max
# bits, index elements, min pointers, min elements and page bits, 1 each. Version 2 B-tree:
# node size 4, split percent 1, merge percent 1.
_INDEX_INFO_NBYTES = np.array([0, 0, 0, 1, 5, 6])


def decode_storage(
    found: HeaderMessages, rows: IntArray, form: FileFormat, extents: ExtentColumns
) -> tuple[BoolArray, dict[str, IntArray]]:
    """Decode the layout messages in ``rows``; return which are understood, and columns."""
    good, columns = _decode_unchunked(found, rows, form)
    columns["chunks"] = np.ones_like(extents.shape)
    chunked = np.flatnonzero(columns["storage"] == CHUNKED)
    good[chunked], values = _decode_chunked(found, rows[chunked], form, extents.take(chunked))
    for name, column in values.items():
        columns[name][chunked] = column
    return good, columns


def _decode_unchunked(
    found: HeaderMessages, rows: IntArray, form: FileFormat
) -> tuple[BoolArray, dict[str, IntArray]]:
    data, position, size = found.data, found.position[rows], found.nbytes[rows]
    version, storage = data[position].astype(np.int64), data[position + 1].astype(np.int64)
    good = (version >= 3) & (version <= 4) & (storage <= CONTIGUOUS)
    is_compact = storage == COMPACT
    address = integers(data, position + 2, form.offset_size)
    nbytes = integers(data, position + 2 + form.offset_size, form.length_size)
    nbytes = np.where(is_compact, integers(data, position + 2, 2), nbytes)
    needed = np.where(is_compact, 4 + nbytes, 2 + form.offset_size + form.length_size)
    good &= size >= needed
    # The data of a compact dataset lie in the message itself.
    offset = np.where(is_compact, found.offset[rows] + 4, form.base_address + address)
    absent = ~is_compact & undefined(address, form.offset_size)
    end = form.file_nbytes
    good &= absent | is_compact | ((address >= 0) & (nbytes >= 0) & (nbytes <= end))
    good &= absent | (offset <= end - np.where(good, nbytes, 0))
    zeros = np.zeros(len(rows), dtype=np.int64)
    return good, {
        "storage": storage,
        "offset": np.where(absent | (nbytes == 0), -1, offset),
        "nbytes": nbytes,
        "index": zeros,
        "single_nbytes": zeros.copy(),
        "single_mask": zeros.copy(),
    }


def _decode_chunked(
    found: HeaderMessages, rows: IntArray, form: FileFormat, extents: ExtentColumns
) -> tuple[BoolArray, dict[str, IntArray]]:
    data, position, size = found.data, found.position[rows], found.nbytes[rows]
    # Bytes become signed integers first: unsigned ones would wrap around below zero.
    version, *head = (data[position + i].astype(np.int64) for i in (0, 2, 3, 4))
    is_v3 = version == 3
    flags = np.where(is_v3, 0, head[0])
    n_sizes = np.where(is_v3, head[0], head[1])
    width = np.where(is_v3, 4, head[2])
    good: BoolArray = (version >= 3) & (version <= 5) & (n_sizes == extents.ndim + 1)
    good &= (extents.ndim > 0) & (width >= 1) & (width <= 8)
    good &= flags <= PARTIAL_UNFILTERED + SINGLE_FILTERED
    ndim, width = np.where(good, extents.ndim, 0), np.where(good, width, 1)
    sizes = position + np.where(is_v3, 3 + form.offset_size, 5)
    fits, chunks, itemsize = _decode_chunk_shapes(data, sizes, width, ndim, extents.shape)
    # Behind the sizes versions 4 and 5 have the type of the index, its information
    # and its address.
    end = sizes + (ndim + 1) * width
    index = np.where(is_v3, V1_BTREE, data[end].astype(np.int64))
    good &= fits & (is_v3 | ((index >= SINGLE_CHUNK) & (index <= V2_BTREE)))
    is_filtered = (flags & SINGLE_FILTERED != 0) & (index == SINGLE_CHUNK)
    index = np.where(good, index, 0)
    # Information about a single chunk with filters: bytes as stored L, filter mask 4.
    info_nbytes = np.where(is_filtered, form.length_size + 4, _INDEX_INFO_NBYTES[index])
    address_at = np.where(is_v3, position + 3, end + 1 + info_nbytes)
    good &= np.where(is_v3, end, address_at + form.offset_size) <= position + size
    address = integers(data, address_at, form.offset_size)
    absent = undefined(address, form.offset_size)
    # At least the shortest chunk or node lies behind an address.
    good &= absent | ((address > 0) & (address < form.file_nbytes - form.base_address))
    # The implicit index and the fixed array have room for the maximum extent, so that their
    # grid is not that of the present extent unless the dataset cannot grow.
    is_other = ~extents.is_fixed & ((index == IMPLICIT) | (index == FIXED_ARRAY))
    is_other |= (flags & PARTIAL_UNFILTERED != 0) | (index > FIXED_ARRAY)
    chunks[~good] = 1
    stored = integers(data, end + 1, form.length_size)
    chunk_nbytes = chunks.prod(axis=1) * np.where(good, itemsize, 1)
    mask = integers(data, end + 1 + form.length_size, 4)
    return good, {
        "chunks": chunks,
        "nbytes": np.where(good, extents.shape.prod(axis=1) * itemsize, 0),
        "offset": np.where(absent, -1, form.base_address + address),
        "index": np.where(is_other, OTHER_INDEX, index),
        "single_nbytes": np.where(is_filtered, stored, chunk_nbytes),
        "single_mask": np.where(is_filtered, mask, 0),
    }


def _decode_chunk_shapes(
    data: ByteArray, sizes: IntArray, width: IntArray, ndim: IntArray, shape: IntArray
) -> tuple[BoolArray, IntArray, IntArray]:
    """Return whether the sizes are possible, chunk shapes, and bytes of an element.

    ``sizes`` are the positions of the first size, each ``width`` bytes wide.
    """
    chunks = np.ones_like(shape)
    mask = (np.int64(1) << np.minimum(8 * width, 63)) - 1
    itemsize = integers(data, sizes + ndim * width, 8) & mask
    # Floats do not overflow; the limits need no exact numbers.
    chunk_nbytes, nbytes = itemsize.astype(float), itemsize.astype(float)
    for axis in range(int(ndim.max(initial=0))):
        rows = np.flatnonzero(ndim > axis)
        chunks[rows, axis] = integers(data, sizes[rows] + axis * width[rows], 8) & mask[rows]
        chunk_nbytes *= chunks[:, axis]
        nbytes *= shape[:, axis]
    good = (chunks > 0).all(axis=1) & (chunk_nbytes >= 1) & (chunk_nbytes < MAX_CHUNK_NBYTES)
    return good & (nbytes < MAX_EXTENT / 2), chunks, itemsize
