"""Heap collections full of boxes, decoded without a look at each object.

In: the bytes of collections of one size. Out: targets and boxes of all their objects,
or nothing where one of them is not as expected; `xref.hdf5.global_heap` and
`xref.hdf5.selection_decoding` then find and decode object by object, with the same result.

HDF5 writes the references of a dataset one after the other: objects of one length,
numbered from 1, each a selection of one block with the same version, rank and size of
numbers. So the bytes of a collection are a table with one row an object. What all rows
must share is compared column by column with the first row; the other columns are the
coordinates. Nothing is taken on trust: a number, a length or a header that differs
ends the table, and what follows it must be free space.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 1E - Global Heap",
"Reference Encoding (Backward Compatibility)" and "Dataspace Encoding" (H5S_SEL_HYPER
versions 1, 2 and 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays import FrozenColumns, IntArray
from xref.hdf5.global_heap import HEADER_NBYTES, MAX_OBJECTS
from xref.hdf5.selection_decoding import HYPERSLAB, MAX_RANK

_LARGEST = 2**61
"""Above it sums of coordinates are left to `xref.hdf5.selection_decoding`, which checks
them."""

_ENCODING_NBYTES = 24
"""Bytes of a selection before the numbers, at most."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeapBoxes(FrozenColumns):
    """All n objects of k collections, in the order of their collections and numbers."""

    n_objects: IntArray  # (k,), of each collection; they are numbered from 1
    address: npt.NDArray[np.uint64]  # (n,), target, bytes from the base address
    start: IntArray  # (n, ndim), elements
    shape: IntArray  # (n, ndim), elements, at least 1

    def rows(self, of: IntArray, index: IntArray) -> npt.NDArray[np.intp] | slice | None:
        """Return the rows of objects ``index`` of collections ``of``; None if any lacks."""
        last = np.cumsum(self.n_objects)
        if not len(index) or int(index.min()) < 1 or (index > self.n_objects[of]).any():
            return None
        rows: npt.NDArray[np.intp] = (last - self.n_objects - 1)[of]
        rows += index
        # Views of a few rows would keep all of them in memory.
        if 2 * len(rows) > len(self.address) and (rows[1:] - rows[:-1] == 1).all():
            return slice(int(rows[0]), int(rows[-1]) + 1)
        return rows


@dataclass(frozen=True, slots=True)
class _Encoding:
    """How a box is encoded in the data of a heap object."""

    ndim: int
    number_size: int  # bytes
    numbers_at: int  # offset of the first number; what precedes is alike in all objects
    corners: bool  # first and last corner, else start, stride, count and block by axis

    @property
    def nbytes(self) -> int:
        """Bytes up to the end of the numbers."""
        numbers = self.ndim * (2 if self.corners else 4)
        return self.numbers_at + self.number_size * numbers


def _parse_encoding(data: bytes, nbytes: int, address_size: int) -> _Encoding | None:
    """Return how an object of ``nbytes`` is encoded, None if it is no box."""

    def number(at: int, size: int = 4) -> int:
        return int.from_bytes(data[address_size + at : address_size + at + size], "little")

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
    """The objects of collections as rows of bytes, shape ``(k, m)``."""

    def __init__(
        self, buffer: npt.NDArray[np.uint8], begin: int, pitch: int, step: int, k: int, m: int
    ) -> None:
        self.buffer = buffer
        self.begin = begin
        self.strides = (pitch, step)
        self.shape = (k, m)

    def column(self, offset: int, size: int) -> npt.NDArray[Any]:
        """Return the unsigned numbers of ``size`` bytes at ``offset`` of each object."""
        return np.ndarray(
            self.shape, f"<u{size}", self.buffer, self.begin + offset, self.strides
        )


def _are_free(buffer: npt.NDArray[np.uint8], at: IntArray, stop: IntArray) -> bool:
    """Tell whether no object begins at the bytes ``at`` of collections that end at ``stop``."""
    at = at[at + HEADER_NBYTES <= stop]
    return not (buffer[at] | buffer[at + 1]).any()


def _pieces(begin: int, end: int) -> list[tuple[int, int]]:
    """Cut a range of eight bytes or more into numbers: (offset, size). They may overlap."""
    return [(at, 8) for at in (*range(begin, end - 8, 8), end - 8)]


def decode_boxes(
    buffer: npt.NDArray[np.uint8],
    base: IntArray,
    size: IntArray,
    *,
    length_size: int,
    address_size: int,
) -> HeapBoxes | None:
    """Decode all objects of collections that hold nothing but boxes encoded alike.

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
        None if the collections are of several sizes, or an object is not as the first
        one. That is no error.
    """
    k, nbytes, begin = len(base), int(size[0]), int(base[0]) + HEADER_NBYTES
    pitch = int(base[1] - base[0]) if k > 1 else nbytes
    if (size != nbytes).any() or (base[1:] - base[:-1] != pitch).any():
        return None
    head = buffer[begin : begin + HEADER_NBYTES].tobytes()
    length = int.from_bytes(head[8 : 8 + length_size], "little")
    if length > nbytes - 2 * HEADER_NBYTES:
        return None
    first = buffer[begin + HEADER_NBYTES :][: address_size + _ENCODING_NBYTES].tobytes()
    encoding = _parse_encoding(first, length, address_size)
    step = HEADER_NBYTES + (length + 7 & ~7)
    m = (nbytes - HEADER_NBYTES) // step
    if encoding is None or not 1 <= m <= MAX_OBJECTS:
        return None
    table = _Table(buffer, begin, pitch, step, k, m)

    alike = table.column(0, 2) == np.arange(1, m + 1, dtype="<u2")
    alike &= table.column(8, length_size) == length
    n_objects = np.where(alike.all(axis=1), m, alike.argmin(axis=1))
    if not _are_free(buffer, base + HEADER_NBYTES + step * n_objects, base + size):
        return None
    most = int(n_objects.max())
    if not most:
        return None
    table.shape = (k, most)
    taken = None if int(n_objects.min()) == most else np.arange(most) < n_objects[:, None]

    same = np.ones(table.shape, dtype=bool)
    for offset, width in _pieces(address_size, encoding.numbers_at):
        column = table.column(HEADER_NBYTES + offset, width)
        same &= column == column[0, 0]
    if not (same if taken is None else same | ~taken).all():
        return None

    def read(offset: int, width: int) -> npt.NDArray[Any]:
        column = table.column(HEADER_NBYTES + offset, width)
        return column if taken is None else column[taken]

    n = int(n_objects.sum())
    shape_of_columns = table.shape if taken is None else (n,)
    start = np.empty((*shape_of_columns, encoding.ndim), dtype=np.int64)
    shape = np.empty_like(start)
    width, at = encoding.number_size, encoding.numbers_at
    for axis in range(encoding.ndim):
        if encoding.corners:
            start[..., axis] = read(at + 4 * axis, 4)
            shape[..., axis] = read(at + 4 * (encoding.ndim + axis), 4)
            continue
        numbers = [read(at + width * (4 * axis + i), width) for i in range(4)]
        no_limit = int(np.iinfo(numbers[3].dtype).max)
        if (numbers[1] == 0).any() or (numbers[2] != 1).any() or (numbers[3] == no_limit).any():
            return None
        if width == 8 and any(int(numbers[i].max()) > _LARGEST for i in (0, 1, 3)):
            return None
        start[..., axis] = numbers[0]
        shape[..., axis] = numbers[3]
    if encoding.corners:
        shape -= start
        shape += 1
    if int(shape.min()) < 1:
        return None
    return HeapBoxes(
        n_objects=n_objects,
        address=read(0, address_size).astype(np.uint64).reshape(-1),
        start=start.reshape(n, -1),
        shape=shape.reshape(n, -1),
    )
