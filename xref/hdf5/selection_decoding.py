"""Serialized dataspace selections into columns.

In: the data of heap objects, each the address of a target followed by a serialized selection.
Out: the addresses and a `SelectionTable`.

Rows are sorted into groups that share selection type, version, flags and number size; each
group is read with a few NumPy index operations. Every count is checked against the bytes of
its heap object before an array of that size is made, so the work is linear in the stored bytes.

Source: HDF5 File Format Specification 4.0, "Reference Encoding (Backward
Compatibility)" and "Dataspace Encoding" (H5S_SEL_NONE, H5S_SEL_POINTS versions 1
and 2, H5S_SEL_HYPERSLABS versions 1, 2 and 3, H5S_SEL_ALL).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from xref import selections
from xref.arrays import IntArray, ragged_ranges, row_offsets
from xref.errors import CorruptFileError, UnsupportedError

NONE, POINTS, HYPERSLAB, ALL = 0, 1, 2, 3
"""Selection types: H5S_SEL_NONE, H5S_SEL_POINTS, H5S_SEL_HYPERSLABS, H5S_SEL_ALL."""

MAX_RANK = 32
"""HDF5's ``H5S_MAX_RANK``."""

_LARGEST = 2**62  # coordinate
_REGULAR_FLAG = 1  # H5S_HYPER_REGULAR

Bytes = npt.NDArray[np.uint8]
Describe = Callable[[int], str]


class Rows:
    """Unaligned little-endian numbers, at one byte position a row.

    Call `need` before reading: it checks that each row has so many bytes.
    """

    def __init__(self, buffer: Bytes, position: IntArray, nbytes: IntArray, describe: Describe):
        self.buffer = buffer
        self.position = position
        self.nbytes = nbytes
        self.describe = describe

    def __len__(self) -> int:
        return len(self.position)

    def take(self, index: npt.NDArray[np.intp]) -> Rows:
        """Return the rows ``index``."""
        describe = self.describe
        return Rows(
            self.buffer,
            self.position[index],
            self.nbytes[index],
            lambda row: describe(int(index[row])),
        )

    def need(self, nbytes: int | IntArray, what: str) -> None:
        """Raise unless each row has ``nbytes`` bytes; ``what`` they are."""
        short = np.flatnonzero(self.nbytes < nbytes)
        if len(short):
            row = int(short[0])
            wanted = int(np.broadcast_to(nbytes, len(self))[row])
            raise CorruptFileError(
                f"{self.describe(row)} has a heap object of {self.nbytes[row]} bytes, "
                f"too short for {what} ({wanted} bytes)"
            )

    def read(self, offset: int | IntArray, size: int) -> npt.NDArray[np.int64]:
        """Return the unsigned number of ``size`` bytes at ``offset`` in each row."""
        return _read_numbers(self.buffer, self.position + offset, size, self.describe)

    def read_address(self, offset: int, size: int) -> npt.NDArray[np.uint64]:
        """Return the address at ``offset`` in each row; any number is possible."""
        return _unaligned(self.buffer, size)[self.position + offset].astype(np.uint64)

    def read_table(self, offset: int, columns: int, size: int) -> npt.NDArray[np.int64]:
        """Return ``columns`` adjacent numbers from ``offset``, shape ``(n, columns)``."""
        position = (self.position + offset)[:, None] + size * np.arange(columns)
        return _read_numbers(
            self.buffer, position, size, lambda i: self.describe(i // max(columns, 1))
        )

    def fail(self, wrong: npt.NDArray[np.bool_], problem: Callable[[int], str]) -> None:
        """Raise if a row is ``wrong``; ``problem`` words the error of the first one."""
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise CorruptFileError(f"{self.describe(row)} {problem(row)}")


def _unaligned(buffer: Bytes, size: int) -> npt.NDArray[Any]:
    """Return a view with an unsigned number of ``size`` bytes at every byte of the buffer."""
    return np.ndarray((max(len(buffer) - size + 1, 0),), f"<u{size}", buffer, strides=(1,))


def _read_numbers(
    buffer: Bytes, position: IntArray, size: int, describe: Describe
) -> npt.NDArray[np.int64]:
    """Return the numbers at positions; raise if int64 cannot hold one."""
    values = _unaligned(buffer, size)[position]
    if size == 8:
        # The only number past int64 with a meaning is H5S_UNLIMITED, all ones.
        signed = values.astype(np.int64)
        over = (signed < 0) & (signed != selections.UNLIMITED)
        if over.any():
            row = int(np.flatnonzero(over.ravel())[0])
            raise CorruptFileError(f"{describe(row)} has the number {values.ravel()[row]}")
        return signed
    return values.astype(np.int64)


def decode_selections(
    buffer: Bytes, position: IntArray, nbytes: IntArray, address_size: int, describe: Describe
) -> tuple[npt.NDArray[np.uint64], selections.SelectionTable]:
    """Decode heap objects of region references.

    Parameters
    ----------
    buffer : numpy.ndarray
        1-D, uint8.
    position, nbytes : numpy.ndarray
        Shape ``(n,)``: byte of the buffer where each object's data begin, and their size.
    address_size : {2, 4, 8}
        Size of offsets from the superblock, in bytes.
    describe : callable
        Names row i in errors.

    Returns
    -------
    address : numpy.ndarray
        Shape ``(n,)``: object header of each target, bytes from the base address.
    regions : SelectionTable
        One row a reference.

    Raises
    ------
    CorruptFileError
        If the bytes are not a selection, or count more items than the bytes can hold.
    """
    rows = Rows(buffer, position, nbytes, describe)
    rows.need(address_size + 8, "an address and a selection's header")
    return rows.read_address(0, address_size), _decode_rows(rows, address_size)


def decode_serialized(
    buffer: Bytes, position: IntArray, nbytes: IntArray, describe: Describe
) -> selections.SelectionTable:
    """Decode serialized selections that no address precedes.

    The parameters are those of `decode_selections` without ``address_size``.
    """
    rows = Rows(buffer, position, nbytes, describe)
    rows.need(8, "a selection's header")
    return _decode_rows(rows, 0)


def _decode_rows(rows: Rows, at: int) -> selections.SelectionTable:
    """Decode the selections that begin ``at`` bytes into each row."""
    # All selections begin with uint32 selection type, uint32 version.
    selection_type = rows.read(at, 4)
    version = rows.read(at + 4, 4)
    rows.fail(
        selection_type > ALL,
        lambda i: f"has selection type {selection_type[i]}; 0 to 3 are known",
    )
    rows.fail(
        (version < 1) | (version > 3), lambda i: f"has a selection of version {version[i]}"
    )
    groups = selection_type * 4 + version
    if len(groups) and (groups == groups[0]).all():
        return _decode_group(rows, int(groups[0]), at + 8)
    tables, order = [], []
    for group in np.unique(groups).tolist():
        index = np.flatnonzero(groups == group)
        tables.append(_decode_group(rows.take(index), group, at + 8))
        order.append(index)
    return selections.concat_at(tables, order)


def _decode_group(rows: Rows, group: int, at: int) -> selections.SelectionTable:
    """Decode rows of one selection type and version; ``at`` is the byte after the version."""
    selection_type, version = divmod(group, 4)
    match selection_type, version:
        case (0, 1):
            return selections.empty_table(len(rows), 0, selections.SelectionKind.NONE)
        case (3, 1):
            return selections.empty_table(len(rows), 0, selections.SelectionKind.ALL)
        case (1, 1):
            # uint32 reserved, length, rank, number of points; the points, uint32 an axis.
            rows.need(at + 16, "a point selection")
            return _decode_points(rows, at + 8, rows.read(at + 12, 4), at + 16, 4)
        case (1, 2):
            # uint8 size of the numbers, uint32 rank, number of points, the points.
            return _by_number_size(rows, at, _decode_points_v2)
        case (2, 1):
            # uint32 reserved, length, rank, number of blocks; the corners, uint32 an axis.
            rows.need(at + 16, "a hyperslab selection")
            return _decode_blocks(rows, at + 8, rows.read(at + 12, 4), at + 16, 4)
        case (2, 2):
            # uint8 flags (always regular), uint32 length, uint32 rank, uint64 numbers.
            rows.need(at + 9, "a hyperslab selection")
            flags = rows.read(at, 1)
            rows.fail(
                flags != _REGULAR_FLAG, lambda i: f"has a hyperslab with flags {flags[i]:#x}"
            )
            return _decode_regular(rows, at + 5, at + 9, 8)
        case (2, 3):
            # uint8 flags, uint8 size of the numbers, uint32 rank; regular: the numbers,
            # else: number of blocks, the corners.
            return _by_number_size(rows, at + 1, _decode_hyperslab_v3)
    raise CorruptFileError(
        f"{rows.describe(0)} has a selection of type {selection_type} and version {version}, "
        "which the format does not have"
    )


def _by_number_size(
    rows: Rows, at: int, decode: Callable[[Rows, int, int], selections.SelectionTable]
) -> selections.SelectionTable:
    """Decode rows by the size of their numbers: the byte ``at``, before the rank."""
    rows.need(at + 5, "a selection")
    size = rows.read(at, 1)
    rows.fail(
        ~np.isin(size, (2, 4, 8)), lambda i: f"has numbers of {size[i]} bytes in its selection"
    )
    sizes = np.unique(size).tolist()
    if len(sizes) == 1:
        return decode(rows, at + 1, sizes[0])
    order = [np.flatnonzero(size == s) for s in sizes]
    tables = [decode(rows.take(i), at + 1, s) for i, s in zip(order, sizes, strict=True)]
    return selections.concat_at(tables, order)


def _decode_points_v2(rows: Rows, at: int, size: int) -> selections.SelectionTable:
    rows.need(at + 4 + size, "a point selection")
    return _decode_points(rows, at, rows.read(at + 4, size), at + 4 + size, size)


def _decode_hyperslab_v3(rows: Rows, at: int, size: int) -> selections.SelectionTable:
    flags = rows.read(at - 2, 1)
    rows.fail(flags > _REGULAR_FLAG, lambda i: f"has a hyperslab with flags {flags[i]:#x}")
    order, tables = [], []
    for flag in np.unique(flags).tolist():
        index = np.flatnonzero(flags == flag)
        part = rows if len(index) == len(rows) else rows.take(index)
        if flag == _REGULAR_FLAG:
            tables.append(_decode_regular(part, at, at + 4, size))
        else:
            part.need(at + 4 + size, "a list of blocks")
            count = part.read(at + 4, size)
            tables.append(_decode_blocks(part, at, count, at + 4 + size, size))
        order.append(index)
    return selections.concat_at(tables, order)


def _read_ranks(rows: Rows, at: int) -> IntArray:
    rank = rows.read(at, 4)
    rows.fail(
        (rank < 1) | (rank > MAX_RANK),
        lambda i: f"has a selection of rank {rank[i]}; 1 to {MAX_RANK} are possible",
    )
    return rank


def _decode_regular(rows: Rows, rank_at: int, at: int, size: int) -> selections.SelectionTable:
    """Decode start, stride, count and block of axis 0, then of axis 1, and so on."""
    ranks = _read_ranks(rows, rank_at)
    rows.need(at + 4 * size * ranks, "a regular hyperslab")
    order, tables = [], []
    for rank in np.unique(ranks).tolist():
        index = np.flatnonzero(ranks == rank)
        part = rows if len(index) == len(rows) else rows.take(index)
        numbers = part.read_table(at, 4 * rank, size).reshape(-1, rank, 4)
        start, stride, count, block = np.moveaxis(numbers, 2, 0)
        if size < 8:  # HDF5 writes H5S_UNLIMITED as all ones of any size
            all_ones = 2 ** (8 * size) - 1
            count, block = (
                np.where(c == all_ones, selections.UNLIMITED, c) for c in (count, block)
            )
        tables.append(_regular_table(part, start, stride, count, block))
        order.append(index)
    return selections.concat_at(tables, order)


def _regular_table(
    rows: Rows, start: IntArray, stride: IntArray, count: IntArray, block: IntArray
) -> selections.SelectionTable:
    unlimited = (count == selections.UNLIMITED) | (block == selections.UNLIMITED)
    several = (count > 1) | (count == selections.UNLIMITED)
    wrong = (start < 0) | (stride < 1) | (count == 0) | (block == 0)
    wrong |= several & ((stride < block) | (block == selections.UNLIMITED))
    end = start + (count.astype(float) - 1) * stride + block
    wrong |= ~unlimited & (end > _LARGEST)
    rows.fail(
        wrong.any(axis=1),
        lambda i: (
            f"has a hyperslab that cannot be: start {start[i].tolist()}, stride "
            f"{stride[i].tolist()}, count {count[i].tolist()}, block {block[i].tolist()}"
        ),
    )
    touching = (count > 1) & (stride == block)
    if touching.any():
        block = np.where(touching, block * count, block)
        count = np.where(touching, 1, count)
    n, ndim = start.shape
    if (count == 1).all():
        return selections.box_table(np.ascontiguousarray(start), np.ascontiguousarray(block))
    return selections.empty_table(n, ndim, selections.SelectionKind.HYPERSLAB).replace(
        rank=np.broadcast_to(np.array([ndim]), (n,)),
        start=np.ascontiguousarray(start),
        stride=np.where(count == 1, 1, stride),
        count=np.ascontiguousarray(count),
        block=np.ascontiguousarray(block),
    )


def _check_list(rows: Rows, ranks: IntArray, n: IntArray, each: int, at: int) -> None:
    """Raise unless ``n`` items of ``each`` bytes an axis fit into each row from ``at`` on."""
    room = np.maximum(rows.nbytes - at, 0)
    rows.fail(
        (n < 1) | (n > room // (each * ranks)),
        lambda i: f"counts {n[i]} items of rank {ranks[i]} in a selection of {room[i]} bytes",
    )


def _decode_points(
    rows: Rows, rank_at: int, n: IntArray, at: int, size: int
) -> selections.SelectionTable:
    ranks = _read_ranks(rows, rank_at)
    _check_list(rows, ranks, n, size, at)
    order, tables = [], []
    for rank in np.unique(ranks).tolist():
        index = np.flatnonzero(ranks == rank)
        numbers = n[index] * rank
        byte = ragged_ranges(np.zeros(len(index), dtype=np.int64), numbers) * size
        byte += np.repeat(rows.position[index] + at, numbers)
        coords = _read_numbers(rows.buffer, byte, size, lambda _: rows.describe(0))
        coords = coords.reshape(-1, rank)
        if (coords < 0).any() or (coords > _LARGEST).any():
            raise CorruptFileError(f"{rows.describe(int(index[0]))} has a point out of range")
        tables.append(
            selections.empty_table(len(index), rank, selections.SelectionKind.POINTS).replace(
                rank=np.broadcast_to(np.array([rank]), (len(index),)),
                first=row_offsets(n[index])[:-1],
                size=n[index],
                points=coords,
            )
        )
        order.append(index)
    return selections.concat_at(tables, order)


def _decode_blocks(
    rows: Rows, rank_at: int, n: IntArray, at: int, size: int
) -> selections.SelectionTable:
    """Decode lists of blocks: first corner, last corner (inclusive), axis by axis."""
    ranks = _read_ranks(rows, rank_at)
    _check_list(rows, ranks, n, 2 * size, at)
    order, tables = [], []
    shapes = n * (MAX_RANK + 1) + ranks
    uniform = len(shapes) > 0 and bool((shapes == shapes[0]).all())
    for shape in [int(shapes[0])] if uniform else np.unique(shapes).tolist():
        n_blocks, rank = divmod(shape, MAX_RANK + 1)
        index = np.arange(len(rows)) if uniform else np.flatnonzero(shapes == shape)
        part = rows if uniform else rows.take(index)
        numbers = part.read_table(at, 2 * rank * n_blocks, size)
        corners = numbers.reshape(-1, n_blocks, 2, rank)
        low, high = corners[:, :, 0], corners[:, :, 1]
        wrong: npt.NDArray[np.bool_] = np.any(
            (low < 0) | (high < low) | (high >= _LARGEST), axis=(1, 2)
        )
        part.fail(wrong, lambda i: "has a block whose start is past its end")
        if n_blocks == 1:
            start = np.ascontiguousarray(low[:, 0])
            tables.append(selections.box_table(start, high[:, 0] + 1 - start))
        else:
            tables.append(selections.table_from_blocks(low, high + 1))
        order.append(index)
    return selections.concat_at(tables, order)


def split_heap_ids(data: Bytes, *, offset_size: int = 8) -> tuple[IntArray, IntArray]:
    """Split packed region references into global heap addresses and object indices.

    Parameters
    ----------
    data : numpy.ndarray
        uint8, ``n * (offset_size + 4)`` bytes, as stored in the dataset.
    offset_size : {2, 4, 8}
        Size of offsets from the superblock, in bytes.

    Returns
    -------
    address : numpy.ndarray
        Shape ``(n,)``, bytes from the base address; 0 in a null reference.
    index : numpy.ndarray
        Shape ``(n,)``, heap object number.

    Raises
    ------
    CorruptFileError
        If ``data`` does not hold a whole number of references.

    Notes
    -----
    HDF5 File Format Specification 4.0, "Reference Encoding (Backward
    Compatibility)" and "Global Heap".

    Examples
    --------
    >>> split_heap_ids(np.frombuffer(bytes([0, 8] + 6 * [0] + [3, 0, 0, 0]), np.uint8))
    (array([2048]), array([3]))
    """
    if offset_size not in (2, 4, 8):
        raise UnsupportedError(f"offsets of {offset_size} bytes; 2, 4 and 8 are known")
    width = offset_size + 4
    if data.size % width:
        raise CorruptFileError(
            f"{data.size} bytes of region references, not a multiple of {width}"
        )
    fields = np.dtype([("address", f"<u{offset_size}"), ("index", "<u4")])
    ids = data.reshape(-1).view(fields)
    # Addresses from 2**63 on become negative; readers report them as past the file's end.
    return ids["address"].astype(np.int64), ids["index"].astype(np.int64)
