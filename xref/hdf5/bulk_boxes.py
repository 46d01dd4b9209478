"""Heap collections full of boxes, decoded as one table.

In: the bytes of collections of one size. Out: targets and boxes of all their objects, or None
if an object is not as expected; then `xref.hdf5.global_heap` and
`xref.hdf5.selection_decoding` find and decode object by object, with the same result.

HDF5 writes the references of a dataset one after the other: objects of one length, numbered
from 1, each a selection of one block with the same version, rank and size of numbers. So the
bytes of a collection are a table with one row an object. Fields that all rows must share are
compared column by column with the first row; the other columns are the coordinates. Every
field is checked: an object number, a length or a header that differs ends the table, and free
space must follow it.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 1E - Global Heap", "Reference
Encoding (Backward Compatibility)" and "Dataspace Encoding" (H5S_SEL_HYPERSLABS, versions 1
to 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xref.arrays import FrozenColumns, IntArray
from xref.hdf5.global_heap import HEADER_NBYTES, MAX_OBJECTS
from xref.hdf5.selection_decoding import HYPERSLAB, MAX_RANK

_LARGEST = 2**61
"""Largest coordinate decoded here; `xref.hdf5.selection_decoding` checks larger ones."""

_ENCODING_NBYTES = 24
"""Most bytes of a selection before its coordinates."""

_Read: TypeAlias = Callable[[int, int], npt.NDArray[Any]]  # (offset, size) -> column


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeapBoxes(FrozenColumns):
    """All n objects of k collections, in the order of their collections and numbers."""

    n_objects: IntArray  # (k,), of each collection; they are numbered from 1
    address: npt.NDArray[np.uint64]  # (n,), target, bytes from the base address
    start: IntArray  # (n, ndim), elements
    shape: IntArray  # (n, ndim), elements, at least 1

    def rows(
        self, collection: IntArray, index: IntArray
    ) -> npt.NDArray[np.intp] | slice | None:
        """Return the row of object ``index`` of each collection; None if one is missing."""
        n_objects, last = self.n_objects, np.cumsum(self.n_objects)
        if not len(index) or int(index.min()) < 1 or (index > n_objects[collection]).any():
            return None
        rows: npt.NDArray[np.intp] = (last - n_objects - 1)[collection]
        rows += index
        # A slice gives views; a view of a few rows would keep all rows in memory.
        if 2 * len(rows) > len(self.address) and (rows[1:] - rows[:-1] == 1).all():
            return slice(int(rows[0]), int(rows[-1]) + 1)
        return rows


@dataclass(frozen=True, slots=True)
class _Encoding:
    """How a box is encoded in the data of a heap object."""

    ndim: int
    number_size: int  # bytes
    numbers_at: int  # offset of the coordinates; the bytes before them are alike in all rows
    corners: bool  # first and last corner; else start, stride, count and block by axis

    @property
    def nbytes(self) -> int:
        """Bytes up to the end of the numbers."""
        numbers = self.ndim * (2 if self.corners else 4)
        return self.numbers_at + self.number_size * numbers


def _parse_encoding(data: bytes, nbytes: int, address_size: int) -> _Encoding | None:
    """Return how an object of ``nbytes`` is encoded; None if it is not a box."""

    def number(at: int, size: int = 4) -> int:
        return int.from_bytes(data[address_size + at : address_size + at + size], "little")

    # After the address: uint32 selection type, uint32 version. Then, of hyperslabs,
    # version 1: uint32 reserved, uint32 length, uint32 rank, uint32 number of blocks, for each
    #   block the first and the last corner (uint32 an axis);
    # version 2: uint8 flags (1: regular), uint32 length, uint32 rank, for each axis start,
    #   stride, count and block (uint64);
    # version 3: uint8 flags, uint8 size of the numbers, uint32 rank, numbers as in version 2.
    if number(0) != HYPERSLAB:
        return None
    match number(4):
        case 1:
            found = _Encoding(number(16), 4, address_size + _ENCODING_NBYTES, True)
            known = number(20) == 1
        case 2:
            found = _Encoding(number(13), 8, address_size + 17, False)
            known = number(8, 1) == 1
        case 3:
            found = _Encoding(number(10), number(9, 1), address_size + 14, False)
            known = number(8, 1) == 1 and found.number_size in (2, 4, 8)
        case _:
            return None
    known &= 1 <= found.ndim <= MAX_RANK
    return found if known and found.nbytes <= nbytes else None


class _Table:
    """The objects of k collections as rows of bytes; objects have one length."""

    def __init__(
        self,
        buffer: npt.NDArray[np.uint8],
        begin: int,
        strides: tuple[int, int],
        shape: tuple[int, int],
        length: int,
    ) -> None:
        self.buffer = buffer
        self.begin = begin  # byte of the first object's header
        self.strides = strides  # bytes between collections, and between objects
        self.shape = shape  # (collections, objects of each)
        self.length = length  # bytes of the data of an object

    def first_object(self, address_size: int) -> bytes:
        """Return the data of the first object up to the coordinates."""
        begin = self.begin + HEADER_NBYTES
        return self.buffer[begin : begin + address_size + _ENCODING_NBYTES].tobytes()

    def column(self, offset: int, size: int) -> npt.NDArray[Any]:
        """Return the unsigned numbers of ``size`` bytes at ``offset`` of each object."""
        return np.ndarray(
            self.shape, f"<u{size}", self.buffer, self.begin + offset, self.strides
        )


def _are_free(buffer: npt.NDArray[np.uint8], at: IntArray, stop: IntArray) -> bool:
    """Tell whether no object is at byte ``at`` of collections that end at byte ``stop``."""
    at = at[at + HEADER_NBYTES <= stop]
    return not (buffer[at] | buffer[at + 1]).any()  # heap object index 0 is free space


def _words(begin: int, end: int) -> list[tuple[int, int]]:
    """Cover a range of eight bytes or more with (offset, size) of numbers that may overlap."""
    return [(at, 8) for at in (*range(begin, end - 8, 8), end - 8)]


def decode_boxes(
    buffer: npt.NDArray[np.uint8],
    base: IntArray,
    size: IntArray,
    *,
    length_size: int,
    address_size: int,
) -> HeapBoxes | None:
    """Decode all objects of collections whose objects are boxes, all encoded alike.

    Parameters
    ----------
    buffer : numpy.ndarray
        1-D, uint8.
    base, size : numpy.ndarray
        Shape ``(k,)``: where in the buffer each collection begins, and its bytes.
    length_size, address_size : {2, 4, 8}
        Sizes of lengths and offsets from the superblock, in bytes.

    Returns
    -------
    HeapBoxes or None
        None if the collections differ in size, or if an object differs from the first
        one. That is not an error.
    """
    table = _open_table(buffer, base, size, length_size)
    if table is None:
        return None
    encoding = _parse_encoding(table.first_object(address_size), table.length, address_size)
    if encoding is None:
        return None
    # Headers: the objects of each collection are numbered from 1, and have one length.
    alike = table.column(0, 2) == np.arange(1, table.shape[1] + 1, dtype="<u2")
    alike &= table.column(8, length_size) == table.length
    n_objects = np.where(alike.all(axis=1), table.shape[1], alike.argmin(axis=1))
    used_nbytes = HEADER_NBYTES + table.strides[1] * n_objects
    most = int(n_objects.max())
    if not most or not _are_free(buffer, base + used_nbytes, base + size):
        return None
    table.shape = (len(base), most)
    taken = None if int(n_objects.min()) == most else np.arange(most) < n_objects[:, None]
    # All bytes between the address and the numbers must be those of the first object.
    same = np.ones(table.shape, dtype=bool)
    for offset, width in _words(address_size, encoding.numbers_at):
        column = table.column(HEADER_NBYTES + offset, width)
        same &= column == column[0, 0]
    if not (same if taken is None else same | ~taken).all():
        return None

    def read(offset: int, width: int) -> npt.NDArray[Any]:
        column = table.column(HEADER_NBYTES + offset, width)
        return column if taken is None else column[taken]

    n = int(n_objects.sum())
    start = np.empty((*(table.shape if taken is None else (n,)), encoding.ndim), dtype=np.int64)
    shape = np.empty_like(start)
    decode = _decode_corners if encoding.corners else _decode_regular
    if not decode(encoding, read, start, shape) or int(shape.min()) < 1:
        return None
    return HeapBoxes(
        n_objects=n_objects,
        address=read(0, address_size).astype(np.uint64).reshape(-1),
        start=start.reshape(n, -1),
        shape=shape.reshape(n, -1),
    )


def _open_table(
    buffer: npt.NDArray[np.uint8], base: IntArray, size: IntArray, length_size: int
) -> _Table | None:
    """Return collections as a table; None unless they have one size and one distance."""
    k, nbytes, begin = len(base), int(size[0]), int(base[0]) + HEADER_NBYTES
    pitch = int(base[1] - base[0]) if k > 1 else nbytes
    if (size != nbytes).any() or (base[1:] - base[:-1] != pitch).any():
        return None
    head = buffer[begin : begin + HEADER_NBYTES].tobytes()
    length = int.from_bytes(head[8 : 8 + length_size], "little")
    step = HEADER_NBYTES + (length + 7 & ~7)  # the data are padded to eight bytes
    m = (nbytes - HEADER_NBYTES) // step
    if length > nbytes - 2 * HEADER_NBYTES or not 1 <= m <= MAX_OBJECTS:
        return None
    return _Table(buffer, begin, (pitch, step), (k, m), length)


def _decode_corners(encoding: _Encoding, read: _Read, start: IntArray, shape: IntArray) -> bool:
    """Decode first and last corner (inclusive), each one number an axis."""
    at, ndim = encoding.numbers_at, encoding.ndim
    for axis in range(ndim):
        start[..., axis] = read(at + 4 * axis, 4)
        shape[..., axis] = read(at + 4 * (ndim + axis), 4)
    shape -= start
    shape += 1
    return True


def _decode_regular(encoding: _Encoding, read: _Read, start: IntArray, shape: IntArray) -> bool:
    """Decode start, stride, count and block of each axis; False unless all counts are 1."""
    width = encoding.number_size
    for axis in range(encoding.ndim):
        at = encoding.numbers_at + 4 * width * axis
        first, stride, count, block = (read(at + width * i, width) for i in range(4))
        # All ones of any width stand for H5S_UNLIMITED.
        no_limit = int(np.iinfo(block.dtype).max)
        if (stride == 0).any() or (count != 1).any() or (block == no_limit).any():
            return False
        if width == 8 and any(int(c.max()) > _LARGEST for c in (first, stride, block)):
            return False
        start[..., axis], shape[..., axis] = first, block
    return True
