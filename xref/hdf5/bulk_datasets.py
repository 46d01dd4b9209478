"""Many datasets at once: their extents and where their data lie, as columns.

In: addresses of object headers. Out: a `DatasetTable`, one row an address.

1. `xref.hdf5.bulk_headers` splits all headers into messages.
2. `xref.hdf5.dataspace` decodes extents and `xref.hdf5.layout_message` storage, as columns;
   `xref.hdf5.chunk_index.bulk` reads where chunks lie.
3. Datatype, fill value, filters and layout class are not decoded. Datasets in which their
   bytes are equal are alike; the caller reads one dataset of each such group alone.
4. Attributes are compared in the same way (`xref.hdf5.bulk_attributes`): which datasets have
   attributes of the same names and types, and which of the values are equal.

A row is unknown if the object is no dataset, has a form that libhdf5 does not write today, or
contradicts the format. The caller reads such an object alone.

Source: HDF5 File Format Specification 4.0, "Data Object Header Messages", "The Attribute
Info Message" and "The Data Storage - Filter Pipeline Message".
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
from xref.hdf5.dataspace import decode_extents
from xref.hdf5.layout_message import decode_storage
from xref.hdf5.object_header import (
    ATTRIBUTE_INFO_MESSAGE,
    ATTRIBUTE_MESSAGE,
    CONTINUATION_MESSAGE,
    DATASPACE_MESSAGE,
    DATATYPE_MESSAGE,
    FILL_MESSAGE,
    FILTER_MESSAGE,
    LAYOUT_MESSAGE,
    OLD_FILL_MESSAGE,
    SHARED,
)
from xref.hdf5.packed import ByteArray, integers, message_bytes, undefined
from xref.hdf5.superblock import FileContent

BATCH = 1 << 13
"""Objects whose headers are in memory at once (benchmarks/small.py)."""

UNGROUPED = -1
"""Instead of a row: the dataset is not known to be like any other."""

# Filters that are undone without their options: deflate, LZF, Blosc, Zstandard.
_WITHOUT_OPTIONS = (1, 32000, 32001, 32015)
_MAX_FILTERS = 4  # filters of a pipeline whose options are compared or cleared

_REQUIRED = (DATASPACE_MESSAGE, DATATYPE_MESSAGE, LAYOUT_MESSAGE)
_COMPARED = (DATATYPE_MESSAGE, FILL_MESSAGE, OLD_FILL_MESSAGE, FILTER_MESSAGE)
_AT_MOST_ONE = {*_REQUIRED, *_COMPARED, ATTRIBUTE_INFO_MESSAGE}

# Other messages that the header of a dataset may have: NIL, object comment, old and new
# modification time, reference count. They do not matter here.
_IGNORED = (0x0000, 0x000D, 0x000E, 0x0012, 0x0016)
_KNOWN = (*_AT_MOST_ONE, ATTRIBUTE_MESSAGE, CONTINUATION_MESSAGE, *_IGNORED)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DatasetTable:
    """What is known of n objects. The other columns of unknown rows are undefined."""

    known: BoolArray  # (n,), whether the object is a dataset that is described here
    ndim: IntArray  # (n,)
    shape: IntArray  # (n, widest), elements; filled up with 1
    storage: IntArray  # (n,), layout class
    offset: IntArray  # (n,), first byte in the file; -1 where nothing was written
    nbytes: IntArray  # (n,), bytes of storage; of chunked datasets, of all elements
    chunks: IntArray  # (n, widest), shape of chunks, elements; else 1
    index: IntArray  # (n,), type of the chunk index, which begins at `offset`
    single_nbytes: IntArray  # (n,), bytes of a single chunk as stored
    single_mask: IntArray  # (n,), filter mask of a single chunk
    first_alike: IntArray  # (n,), first row with equal type, fill value, filters and class
    attributes: IntArray  # (n,), first row with the same attributes, or a negative number
    values: IntArray  # (n, most), first row of the set with an equal value, by attribute
    names: dict[int, tuple[str, ...]]  # of the attributes of a set, by its first row

    def __len__(self) -> int:
        return len(self.known)

    def take(self, rows: npt.NDArray[np.intp] | slice) -> DatasetTable:
        """Return some rows; columns of row numbers still refer to this table."""
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
    # No file is that large: such addresses are marked as an address of 0 is.
    signed = np.where(address < np.uint64(2**62), address, 0).astype(np.int64)
    batches = range(0, len(address), BATCH)
    parts = [_read_batch(file, signed[begin : begin + BATCH]) for begin in batches]
    return _concat(parts) if parts else unknown_datasets(0)


def unknown_datasets(n: int) -> DatasetTable:
    """Return rows of n objects of which nothing is known."""
    ones, zeros = np.ones((n, 1), dtype=np.int64), np.zeros(n, dtype=np.int64)
    columns: dict[str, npt.NDArray[Any]] = dict.fromkeys(_COLUMNS, zeros)
    columns |= {"known": zeros.astype(bool), "shape": ones, "chunks": ones.copy()}
    return DatasetTable(**columns | {"values": zeros[:, None].copy()}, names={})


def _concat(parts: list[DatasetTable]) -> DatasetTable:
    """Concatenate tables; columns of row numbers are shifted."""
    if len(parts) == 1:
        return parts[0]
    widest = max(part.shape.shape[1] for part in parts)
    most = max(part.values.shape[1] for part in parts)
    columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _COLUMNS}
    names: dict[int, tuple[str, ...]] = {}
    n = 0
    for part in parts:
        missing_axes = ((0, 0), (0, widest - part.shape.shape[1]))
        names |= {row + n: those for row, those in part.names.items()}
        for name, column in columns.items():
            values = getattr(part, name)
            if name in ("shape", "chunks"):
                values = np.pad(values, missing_axes, constant_values=1)
            elif name in ("first_alike", "attributes", "values"):
                values = np.where(values >= 0, values + n, values)
            if name == "values":
                values = np.pad(values, ((0, 0), (0, most - values.shape[1])))
            column.append(values)
        n += len(part)
    joined = {name: np.concatenate(c) for name, c in columns.items()}
    return DatasetTable(**joined, names=names)


def _read_batch(file: FileContent, address: IntArray) -> DatasetTable:
    form = file.form
    found = read_headers(file.source, address, form)
    message_rows = _rows_of_single(found, len(address))
    known = ~found.marked
    for required in _REQUIRED:
        known &= message_rows[required] >= 0
    rows = np.flatnonzero(known)
    if not len(rows):
        return unknown_datasets(len(address))
    # From here on, columns count the rows of datasets; `_scatter` counts all objects again.
    picked = {message: column[rows] for message, column in message_rows.items()}
    spaces = picked[DATASPACE_MESSAGE]
    extents = decode_extents(
        found.data, found.position[spaces], found.nbytes[spaces], form.length_size
    )
    fits, columns = decode_storage(found, picked[LAYOUT_MESSAGE], form, extents)
    alike = _group_alike(found, picked)
    described = group_attributes(file, found, rows, len(address))
    attributes = described.same
    has_dense = _has_dense(found, picked[ATTRIBUTE_INFO_MESSAGE], form.offset_size)
    attributes[has_dense] = OWN_ATTRIBUTES
    columns |= {
        "known": extents.is_valid & fits & (alike != UNGROUPED),
        "ndim": extents.ndim,
        "shape": extents.shape,
        "first_alike": _to_table_rows(alike, rows),
        "attributes": _to_table_rows(attributes, rows),
        "values": _to_table_rows(described.value, rows),
    }
    return DatasetTable(
        **{name: _scatter(rows, column, len(address)) for name, column in columns.items()},
        names={int(rows[first]): names for first, names in described.names.items()},
    )


def _to_table_rows(ordinal: IntArray, rows: npt.NDArray[np.intp]) -> IntArray:
    """Turn ordinals among ``rows`` into rows; negative numbers stay as they are."""
    return np.where(ordinal >= 0, rows[np.maximum(ordinal, 0)], ordinal)


def _scatter(rows: npt.NDArray[np.intp], values: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    """Return a column of n objects from the values of some; zeros elsewhere."""
    if len(rows) == n:
        return values
    out = np.zeros((n, *values.shape[1:]), dtype=values.dtype)
    out[rows] = values
    return out


def _rows_of_single(found: HeaderMessages, n: int) -> dict[int, IntArray]:
    """Return the row of each object's message, by message type; -1 where it has none.

    Marks objects with two messages of a type that occurs once, with messages that datasets
    do not have, and with shared messages other than datatypes, which are common.
    """
    marked = found.marked
    marked[found.object[~np.isin(found.message_type, _KNOWN)]] = True
    shared = (found.flags & SHARED != 0) & (found.message_type != DATATYPE_MESSAGE)
    marked[found.object[shared]] = True
    out = {}
    for message_type in _AT_MOST_ONE:
        rows = np.flatnonzero(found.message_type == message_type)
        owner = found.object[rows]
        row_of_object = out[message_type] = np.full(n, -1, dtype=np.int64)
        row_of_object[owner] = rows
        # Of two messages of one object, the later assignment has replaced the earlier.
        marked[owner[row_of_object[owner] != rows]] = True
    return out


def _has_dense(found: HeaderMessages, rows: IntArray, offset_size: int) -> BoolArray:
    """Return which objects have dense attributes, or track their creation order."""
    has_info = np.flatnonzero(rows >= 0)
    out = np.zeros(len(rows), dtype=bool)
    position, size = found.position[rows[has_info]], found.nbytes[rows[has_info]]
    # Version 1, flags 1, maximum creation index 2 (if flag bit 0), address of the fractal
    # heap O: with version and flags of 0 the address is at byte 2.
    is_plain = integers(found.data, position, 2) == 0
    heap = integers(found.data, position + 2, offset_size)
    out[has_info] = ~is_plain | ~undefined(heap, offset_size) | (size < 2 + offset_size)
    return out


def _group_alike(found: HeaderMessages, message_rows: dict[int, IntArray]) -> IntArray:
    """Return the first dataset that is alike, by bytes of messages; or `UNGROUPED`."""
    # Version and class of the layout: addresses and sizes behind them may differ.
    layout = found.data[found.position[message_rows[LAYOUT_MESSAGE]][:, None] + np.arange(2)]
    keys = [layout]
    is_long = np.zeros(len(layout), dtype=bool)
    for message_type in _COMPARED:
        rows = message_rows[message_type]
        is_there = rows >= 0
        if not is_there.any():
            continue
        nbytes = np.where(is_there, found.nbytes[rows], -1)
        is_long |= nbytes > MAX_KEY_NBYTES
        key = message_bytes(
            found.data, found.position[rows], np.minimum(nbytes, MAX_KEY_NBYTES)
        )
        if message_type == FILTER_MESSAGE:
            _clear_options(key)
        # The length, plus 1 and so 0 for no message, keeps short and padded keys apart.
        keys += [(nbytes + 1).astype("<u4").view(np.uint8).reshape(-1, 4), key]
        if message_type == DATATYPE_MESSAGE:
            keys.append(found.flags[rows][:, None])
    return np.where(is_long, UNGROUPED, first_equal_row(np.concatenate(keys, axis=1)))


def _clear_options(key: ByteArray) -> None:
    """Write zeros over the options of filters that are undone without them.

    Some options hold the size of a chunk, so that otherwise datasets with different chunks
    would not be alike. Source: "The Data Storage - Filter Pipeline Message".
    """
    width = key.shape[1]
    # Eight zeros behind each row, for integers that begin in its last bytes.
    data = np.concatenate([key, np.zeros((len(key), 8), np.uint8)], axis=1).reshape(-1)
    row_start = np.arange(len(key)) * (width + 8)
    # Version 1, number of filters 1, then in version 1 of the message reserved 6.
    is_v1, n_filters = key[:, 0] == 1, key[:, 1]
    at = np.where(is_v1, 8, 2)
    column = np.arange(width)
    for number in range(_MAX_FILTERS):
        # A filter: identification 2, name length 2 (absent in version 2 below 256), flags 2,
        # number of client values 2, name, client values 4 each; version 1 pads their number
        # to an even one.
        at = np.minimum(at, width)
        filter_id = integers(data, row_start + at, 2)
        is_named = is_v1 | (filter_id >= 256)
        name_nbytes = np.where(is_named, integers(data, row_start + at + 2, 2), 0)
        n_values = integers(data, row_start + at + np.where(is_named, 6, 4), 2)
        first = at + np.where(is_named, 8, 6) + name_nbytes
        end = first + 4 * n_values
        clear = np.isin(filter_id, _WITHOUT_OPTIONS) & (number < n_filters) & (end <= width)
        inside = (column >= first[:, None]) & (column < end[:, None])
        key[inside & clear[:, None]] = 0
        at = end + np.where(is_v1 & (n_values % 2 == 1), 4, 0)
