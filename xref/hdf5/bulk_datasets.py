"""Many datasets at once: their extents and where their data lie, as columns.

In: addresses of object headers. Out: a `DatasetTable`, one row an address.

1. `xref.hdf5.bulk_headers` splits all headers into messages.
2. Extents and storage are decoded as columns; where chunks lie, `xref.hdf5.chunk_index.bulk`
reads. 3. What decides about the type of elements (datatype, fill value, filters, storage
   class) is compared byte by byte: datasets in which all of it is equal are of one
   kind. Of each kind, one dataset has to be looked at alone, by who uses the table.
4. So are attributes (`xref.hdf5.bulk_attributes`): datasets whose attributes have the same
   names and types are a set, and values that are equal are known to be.

A row that is not known is an object to look at alone: no dataset, one in a form that
libhdf5 does not write today, or one that contradicts the format.

Source: HDF5 File Format Specification 4.0, "The Dataspace Message", "The Data Layout
Message", "The Attribute Info Message" and "The Attribute Message".
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays import BoolArray, IntArray
from xref.hdf5.bulk_attributes import (
    MAX_KEY_NBYTES,
    OWN_ATTRIBUTES,
    first_equal_row,
    group_attributes,
)
from xref.hdf5.bulk_headers import HeaderMessages, read_headers
from xref.hdf5.dataspace import MAX_RANK
from xref.hdf5.object_header import (
    ATTRIBUTE_INFO_MESSAGE,
    ATTRIBUTE_MESSAGE,
    CONTINUATION_MESSAGE,
    DATASPACE_MESSAGE,
    DATATYPE_MESSAGE,
    FILL_MESSAGE,
    LAYOUT_MESSAGE,
    OLD_FILL_MESSAGE,
    SHARED,
)
from xref.hdf5.packed import ByteArray, integers, message_bytes, undefined
from xref.hdf5.superblock import FileContent, FileFormat

BATCH = 1 << 13
"""Objects whose headers are in memory at once (benchmarks/small.py)."""

MAX_EXTENT = 2**62
"""Elements of one dataset stay below this number."""

NO_KIND = -1

COMPACT, CONTIGUOUS, CHUNKED = range(3)
"""Storage classes, as layout messages number them."""

V1_BTREE, SINGLE_CHUNK, IMPLICIT, FIXED_ARRAY, EXTENSIBLE_ARRAY, V2_BTREE = range(6)
"""Indices of chunks, as layout messages of version 4 number them; before, all have the
first."""

OTHER_INDEX = -1
"""An index of chunks that `xref.hdf5.chunk_index.bulk` does not read."""

MAX_CHUNK_NBYTES = 2**32
"""Chunks have fewer bytes."""

_INDEX_INFO_NBYTES = np.array([0, 0, 0, 1, 5, 6])
PARTIAL_UNFILTERED, SINGLE_FILTERED = 0x01, 0x02

_WITHOUT_OPTIONS = (1, 32000, 32001, 32015)  # deflate, LZF, Blosc, Zstandard
_MAX_FILTERS = 4  # of a pipeline, whose options are looked at

_NIL_MESSAGE = 0x0000
_FILTER_MESSAGE = 0x000B
_COMMENT_MESSAGE = 0x000D
_OLD_TIME_MESSAGE = 0x000E
_TIME_MESSAGE = 0x0012
_REFERENCE_COUNT_MESSAGE = 0x0016

_KNOWN = (
    _NIL_MESSAGE,
    DATASPACE_MESSAGE,
    DATATYPE_MESSAGE,
    OLD_FILL_MESSAGE,
    FILL_MESSAGE,
    LAYOUT_MESSAGE,
    _FILTER_MESSAGE,
    ATTRIBUTE_MESSAGE,
    _COMMENT_MESSAGE,
    _OLD_TIME_MESSAGE,
    CONTINUATION_MESSAGE,
    _TIME_MESSAGE,
    ATTRIBUTE_INFO_MESSAGE,
    _REFERENCE_COUNT_MESSAGE,
)
_REQUIRED = (DATASPACE_MESSAGE, DATATYPE_MESSAGE, LAYOUT_MESSAGE)
_AT_MOST_ONE = (
    *_REQUIRED,
    OLD_FILL_MESSAGE,
    FILL_MESSAGE,
    _FILTER_MESSAGE,
    ATTRIBUTE_INFO_MESSAGE,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DatasetTable:
    """n objects; columns of rows that are not known make no sense."""

    known: BoolArray  # (n,), whether the object is a dataset that is described here
    ndim: IntArray  # (n,)
    shape: IntArray  # (n, widest), elements; filled up with 1
    storage: IntArray  # (n,), storage class
    offset: IntArray  # (n,), first byte in the file; -1 where nothing was written
    nbytes: IntArray  # (n,), bytes of storage; where chunked, of all elements
    chunks: IntArray  # (n, widest), shape of chunks, elements; else 1
    index: IntArray  # (n,), of chunks, which begins at `offset`
    single_nbytes: IntArray  # (n,), of the chunk where it is single, as stored
    single_mask: IntArray  # (n,), filters that it skipped
    kind: IntArray  # (n,), row of the first dataset of the same kind
    attributes: IntArray  # (n,), row of the first of the same set, or a negative number
    values: IntArray  # (n, most), row of the first of the set with each attribute's value
    names: dict[int, tuple[str, ...]]  # of the attributes of a set, by its first row

    def __len__(self) -> int:
        return len(self.known)

    def take(self, rows: npt.NDArray[np.intp] | slice) -> DatasetTable:
        """Return some rows; kinds, attributes, and values still count rows of this table."""
        columns = {n: getattr(self, n)[rows] for n in _COLUMNS}
        return DatasetTable(**columns, names=self.names)


_COLUMNS = tuple(f.name for f in fields(DatasetTable) if f.name != "names")


def read_datasets(file: FileContent, address: npt.NDArray[np.uint64]) -> DatasetTable:
    """Read the headers of many objects of one file.

    Parameters
    ----------
    file : FileContent
        The file.
    address : numpy.ndarray
        Shape ``(n,)``, distinct, from the base address.
    """
    n = len(address)
    # What no file is as large as is marked as an address of zero is.
    signed = np.where(address < np.uint64(2**62), address, 0).astype(np.int64)
    parts = [_read_batch(file, signed[begin : begin + BATCH]) for begin in range(0, n, BATCH)]
    return _concat(parts) if parts else unknown_datasets(0)


def unknown_datasets(n: int) -> DatasetTable:
    """Return rows of n objects of which nothing is known."""
    none = np.zeros(n, dtype=np.int64)
    return DatasetTable(
        known=np.zeros(n, dtype=bool),
        ndim=none,
        shape=np.ones((n, 1), dtype=np.int64),
        storage=none,
        offset=none,
        nbytes=none,
        chunks=np.ones((n, 1), dtype=np.int64),
        index=none,
        single_nbytes=none,
        single_mask=none,
        kind=none,
        attributes=none,
        values=np.zeros((n, 1), dtype=np.int64),
        names={},
    )


def _concat(parts: list[DatasetTable]) -> DatasetTable:
    """Put tables one after the other; rows of kinds and attributes move with them."""
    if len(parts) == 1:
        return parts[0]
    widest = max(part.shape.shape[1] for part in parts)
    most = max(part.values.shape[1] for part in parts)
    columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _COLUMNS}
    names: dict[int, tuple[str, ...]] = {}
    n = 0
    for part in parts:
        more = ((0, 0), (0, widest - part.shape.shape[1]))
        names |= {row + n: those for row, those in part.names.items()}
        for name, column in columns.items():
            values = getattr(part, name)
            if name in ("shape", "chunks"):
                values = np.pad(values, more, constant_values=1)
            elif name in ("kind", "attributes", "values"):
                values = np.where(values >= 0, values + n, values)
            if name == "values":
                values = np.pad(values, ((0, 0), (0, most - values.shape[1])))
            column.append(values)
        n += len(part)
    joined = {name: np.concatenate(c) for name, c in columns.items()}
    return DatasetTable(**joined, names=names)


def _read_batch(file: FileContent, address: IntArray) -> DatasetTable:
    form = file.form
    found = read_headers(
        file.source,
        address,
        base_address=form.base_address,
        file_nbytes=form.file_nbytes,
        offset_size=form.offset_size,
        length_size=form.length_size,
    )
    of = _rows_of_single(found, len(address))
    known = ~found.marked
    for required in _REQUIRED:
        known &= of[required] >= 0
    rows = np.flatnonzero(known)
    table = unknown_datasets(len(address))
    if not len(rows):
        return table
    picked = {message: column[rows] for message, column in of.items()}
    good, ndim, shape, fixed = _decode_extents(
        found, picked[DATASPACE_MESSAGE], form.length_size
    )
    fits, columns = _decode_storage(found, picked[LAYOUT_MESSAGE], form)
    chunked = np.flatnonzero(columns["storage"] == CHUNKED)
    columns["chunks"] = np.ones_like(shape)
    fits[chunked] = _decode_chunked(
        found, picked[LAYOUT_MESSAGE], form, chunked, (ndim, shape, fixed), columns
    )
    kind = _group_kinds(found, picked)
    described = group_attributes(file, found, rows, len(address))
    attributes, values = described.same, described.value
    dense = _has_dense(found, picked[ATTRIBUTE_INFO_MESSAGE], form.offset_size)
    attributes[dense] = OWN_ATTRIBUTES
    good &= fits & (kind != NO_KIND)
    return DatasetTable(
        known=_spread(rows, good, known.shape),
        ndim=_spread(rows, ndim, known.shape),
        shape=_spread(rows, shape, (len(known), shape.shape[1])),
        **{
            name: _spread(rows, column, (len(known), *column.shape[1:]))
            for name, column in columns.items()
        },
        kind=_spread(rows, _numbered(kind, rows), known.shape),
        attributes=_spread(rows, _numbered(attributes, rows), known.shape),
        values=_spread(rows, _numbered(values, rows), (len(known), values.shape[1])),
        names={int(rows[first]): names for first, names in described.names.items()},
    )


def _numbered(places: IntArray, rows: npt.NDArray[np.intp]) -> IntArray:
    """Turn places among ``rows`` into rows; negative numbers mean something else."""
    return np.where(places >= 0, rows[np.maximum(places, 0)], places)


def _spread(
    rows: npt.NDArray[np.intp], values: npt.NDArray[Any], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Return a column of all objects from the values of some; zeros elsewhere."""
    if len(rows) == shape[0]:
        return values
    out = np.zeros(shape, dtype=values.dtype)
    out[rows] = values
    return out


def _rows_of_single(found: HeaderMessages, n: int) -> dict[int, IntArray]:
    """Return the row of each object's message of each type, -1 where there is none.

    Objects are marked that have two of a type of which there is one, messages of a type
    that datasets do not have, or shared messages; shared datatypes are common.
    """
    marked = found.marked
    marked[found.object[~np.isin(found.kind, _KNOWN)]] = True
    shared = (found.flags & SHARED != 0) & (found.kind != DATATYPE_MESSAGE)
    marked[found.object[shared]] = True
    out = {}
    for kind in _AT_MOST_ONE:
        rows = np.flatnonzero(found.kind == kind)
        of = found.object[rows]
        out[kind] = np.full(n, -1, dtype=np.int64)
        out[kind][of] = rows
        # Where an object has two, one of them was written over.
        marked[of[out[kind][of] != rows]] = True
    return out


def _decode_extents(
    found: HeaderMessages, rows: IntArray, length_size: int
) -> tuple[BoolArray, IntArray, IntArray, BoolArray]:
    """Return whether each dataspace is understood, rank, shape, and whether it is largest."""
    data, at, size = found.data, found.position[rows], found.nbytes[rows]
    head = integers(data, at, 4)
    version, ndim = head & 0xFF, head >> 8 & 0xFF
    flags, kind = head >> 16 & 0xFF, head >> 24
    old = version == 1
    # In version 2 a scalar says so; null extents, of type 2, are rare.
    good = np.where(old, kind >= 0, (version == 2) & (kind == (ndim > 0)))
    good &= (size >= 4) & (ndim <= MAX_RANK) & (flags <= 1)
    ndim = np.where(good, ndim, 0)
    first = at + np.where(old, 8, 4)
    good &= first + ndim * length_size * (1 + flags) <= at + size
    shape = np.ones((len(rows), max(int(ndim.max(initial=0)), 1)), dtype=np.int64)
    n_elements = np.ones(len(rows))
    fixed = np.ones(len(rows), dtype=bool)
    for axis in range(int(ndim.max(initial=0))):
        own = np.flatnonzero(good & (ndim > axis))
        place = first[own] + axis * length_size
        n = integers(data, place, length_size)
        most = integers(data, place + ndim[own] * length_size * flags[own], length_size)
        most = np.where(undefined(most, length_size), MAX_EXTENT, most)
        good[own[(n < 0) | (n > most)]] = False
        fixed[own[n != most]] = False
        shape[own, axis] = n
        n_elements[own] *= np.maximum(n, 1)
    # Sums of logarithms would do as well: the limit is far above what is exact here.
    good &= n_elements < MAX_EXTENT / 2
    return good, ndim, shape, fixed


def _decode_storage(
    found: HeaderMessages, rows: IntArray, form: FileFormat
) -> tuple[BoolArray, dict[str, IntArray]]:
    """Return whether each layout is understood, and columns; of chunks not the right ones."""
    data, at, size = found.data, found.position[rows], found.nbytes[rows]
    version, storage = data[at].astype(np.int64), data[at + 1].astype(np.int64)
    good = (version >= 3) & (version <= 4) & (storage <= CONTIGUOUS)
    compact = storage == COMPACT
    width = form.offset_size
    address = integers(data, at + 2, width)
    nbytes = integers(data, at + 2 + width, form.length_size)
    nbytes = np.where(compact, integers(data, at + 2, 2), nbytes)
    good &= size >= np.where(compact, 4 + nbytes, 2 + width + form.length_size)
    # The data of a compact dataset are in the message.
    offset = np.where(compact, found.offset[rows] + 4, form.base_address + address)
    absent = ~compact & undefined(address, width)
    end = form.file_nbytes
    good &= absent | compact | ((address >= 0) & (nbytes >= 0) & (nbytes <= end))
    good &= absent | (offset <= end - np.where(good, nbytes, 0))
    none = np.zeros(len(rows), dtype=np.int64)
    return good, {
        "storage": storage,
        "offset": np.where(absent | (nbytes == 0), -1, offset),
        "nbytes": nbytes,
        "index": none,
        "single_nbytes": none.copy(),
        "single_mask": none.copy(),
    }


def _decode_chunked(
    found: HeaderMessages,
    rows: IntArray,
    form: FileFormat,
    some: npt.NDArray[np.intp],
    extent: tuple[IntArray, IntArray, BoolArray],
    columns: dict[str, IntArray],
) -> BoolArray:
    """Write columns of some datasets, that are chunked; return which are understood.

    ``extent`` are ranks, shapes, and whether they can grow no more.
    """
    ndim, shape, fixed = (column[some] for column in extent)
    data, at, size = found.data, found.position[rows[some]], found.nbytes[rows[some]]
    # Version 3: version, class, rank, address, sizes of 4 bytes.
    # Version 4: version, class, flags, rank, width of a size, sizes, type of index.
    # Bytes become signed integers first: unsigned ones hold no negative number, and wrap.
    version, *head = (data[at + i].astype(np.int64) for i in (0, 2, 3, 4))
    old = version == 3
    flags = np.where(old, 0, head[0])
    n_sizes = np.where(old, head[0], head[1])
    width = np.where(old, 4, head[2])
    good: BoolArray = (version >= 3) & (version <= 5) & (n_sizes == ndim + 1) & (ndim > 0)
    good &= (width >= 1) & (width <= 8) & (flags <= PARTIAL_UNFILTERED + SINGLE_FILTERED)
    ndim, width = np.where(good, ndim, 0), np.where(good, width, 1)
    first = at + np.where(old, 3 + form.offset_size, 5)
    chunks = np.ones_like(shape)
    mask = (np.int64(1) << np.minimum(8 * width, 63)) - 1
    itemsize = integers(data, first + ndim * width, 8) & mask
    chunk_nbytes, nbytes = itemsize.astype(float), itemsize.astype(float)
    for axis in range(int(ndim.max(initial=0))):
        own = np.flatnonzero(ndim > axis)
        chunks[own, axis] = integers(data, first[own] + axis * width[own], 8) & mask[own]
        chunk_nbytes *= chunks[:, axis]
        nbytes *= shape[:, axis]
    good &= (chunks > 0).all(axis=1) & (chunk_nbytes >= 1) & (chunk_nbytes < MAX_CHUNK_NBYTES)
    good &= nbytes < MAX_EXTENT / 2
    after = first + (ndim + 1) * width
    index = np.where(old, V1_BTREE, data[after].astype(np.int64))
    good &= old | ((index >= SINGLE_CHUNK) & (index <= V2_BTREE))
    filtered = (flags & SINGLE_FILTERED != 0) & (index == SINGLE_CHUNK)
    index = np.where(good, index, 0)
    info = np.where(filtered, form.length_size + 4, _INDEX_INFO_NBYTES[index])
    place = np.where(old, at + 3, after + 1 + info)
    good &= np.where(old, after, place + form.offset_size) <= at + size
    address = integers(data, place, form.offset_size)
    absent = undefined(address, form.offset_size)
    # Behind addresses there are at least the shortest chunk or node.
    good &= absent | ((address > 0) & (address < form.file_nbytes - form.base_address))
    # Arrays of chunks have room for all that the dataset may grow to.
    unlike = ~fixed & ((index == IMPLICIT) | (index == FIXED_ARRAY))
    unlike |= (flags & PARTIAL_UNFILTERED != 0) | (index > FIXED_ARRAY)
    chunks[~good] = 1
    columns["chunks"][some] = chunks
    columns["nbytes"][some] = np.where(good, shape.prod(axis=1) * itemsize, 0)
    columns["offset"][some] = np.where(absent, -1, form.base_address + address)
    columns["index"][some] = np.where(unlike, OTHER_INDEX, index)
    stored = integers(data, after + 1, form.length_size)
    whole = chunks.prod(axis=1) * np.where(good, itemsize, 1)
    columns["single_nbytes"][some] = np.where(filtered, stored, whole)
    skipped = integers(data, after + 1 + form.length_size, 4)
    columns["single_mask"][some] = np.where(filtered, skipped, 0)
    return good


def _has_dense(found: HeaderMessages, rows: IntArray, offset_size: int) -> BoolArray:
    """Tell which objects have attributes in a heap, or in the order of creation."""
    some = np.flatnonzero(rows >= 0)
    out = np.zeros(len(rows), dtype=bool)
    at, size = found.position[rows[some]], found.nbytes[rows[some]]
    plain = integers(found.data, at, 2) == 0  # version and flags
    heap = integers(found.data, at + 2, offset_size)
    out[some] = ~plain | ~undefined(heap, offset_size) | (size < 2 + offset_size)
    return out


def _group_kinds(found: HeaderMessages, of: dict[int, IntArray]) -> IntArray:
    """Return the first dataset of the same kind as each, `NO_KIND` where there are many."""
    layout = found.data[found.position[of[LAYOUT_MESSAGE]][:, None] + np.arange(2)]
    keys = [layout]
    long = np.zeros(len(layout), dtype=bool)
    for message in (DATATYPE_MESSAGE, FILL_MESSAGE, OLD_FILL_MESSAGE, _FILTER_MESSAGE):
        rows = of[message]
        some = rows >= 0
        if not some.any():
            continue
        nbytes = np.where(some, found.nbytes[rows], -1)
        long |= nbytes > MAX_KEY_NBYTES
        key = message_bytes(
            found.data, found.position[rows], np.minimum(nbytes, MAX_KEY_NBYTES)
        )
        if message == _FILTER_MESSAGE:
            _clear_options(key)
        keys += [(nbytes + 1).astype("<u4").view(np.uint8).reshape(-1, 4), key]
        if message == DATATYPE_MESSAGE:
            keys.append(found.flags[rows][:, None])
    kind = first_equal_row(np.concatenate(keys, axis=1))
    return np.where(long, NO_KIND, kind)


def _clear_options(key: ByteArray) -> None:
    """Write zeros over options of filters that are undone without them.

    Some of them tell the size of a chunk, so that datasets of different chunks would be
    of different kinds. Source: "The Data Storage - Filter Pipeline Message".
    """
    room = key.shape[1]
    data = np.concatenate([key, np.zeros((len(key), 8), np.uint8)], axis=1).reshape(-1)
    begin = np.arange(len(key)) * (room + 8)
    old, n_filters = key[:, 0] == 1, key[:, 1]
    at = np.where(old, 8, 2)
    column = np.arange(room)
    for number in range(_MAX_FILTERS):
        at = np.minimum(at, room)
        filter_id = integers(data, begin + at, 2)
        named = old | (filter_id >= 256)
        name_nbytes = np.where(named, integers(data, begin + at + 2, 2), 0)
        n_options = integers(data, begin + at + np.where(named, 6, 4), 2)
        first = at + np.where(named, 8, 6) + name_nbytes
        end = first + 4 * n_options
        clear = np.isin(filter_id, _WITHOUT_OPTIONS) & (number < n_filters) & (end <= room)
        inside = (column >= first[:, None]) & (column < end[:, None])
        key[inside & clear[:, None]] = 0
        at = end + np.where(old & (n_options % 2 == 1), 4, 0)
