"""Dataspace messages: the extent of a dataset or an attribute.

In: the body of one message, or many messages as `HeaderMessages`. Out: a `Dataspace`, or
`ExtentColumns`. Both decoders read these fields (L: size of lengths from the superblock):

- Version 1: version 1, dimensionality 1, flags 1, reserved 5.
- Version 2: version 1, dimensionality 1, flags 1, type 1 (0 scalar, 1 simple, 2 null).
- Then dimension sizes L each, and maximum sizes L each if flag bit 0 is set. A maximum with
  all bits set is unlimited. (Permutation indices, flag bit 1, were never implemented.)

Source: HDF5 File Format Specification 4.0, "The Dataspace Message".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xref.arrays import BoolArray, IntArray
from xref.errors import CorruptFileError
from xref.hdf5.metadata_reader import integer
from xref.hdf5.packed import ByteArray, integers, undefined

MAX_RANK = 32
"""Dimensions that HDF5 allows."""

MAX_EXTENT = 2**62
"""Elements of one dataset stay below this number."""

_HEAD_V1_NBYTES, _HEAD_V2_NBYTES = 8, 4
_SIMPLE, _NULL = 1, 2  # types of version 2
_HAS_MAXIMUM = 0x01


@dataclass(frozen=True, slots=True)
class Dataspace:
    """The extent of a dataset or attribute."""

    shape: tuple[int, ...]  # elements; () when scalar or null
    maxshape: tuple[int | None, ...]  # elements; None where unlimited
    is_null: bool  # a null dataspace has no elements

    @property
    def size(self) -> int:
        """Number of elements."""
        return 0 if self.is_null else math.prod(self.shape)


def decode_dataspace(body: bytes, length_size: int, where: str) -> Dataspace:
    """Decode the body of a dataspace message.

    ``length_size`` is the size of lengths from the superblock: 2, 4 or 8 bytes. ``where``
    begins each error: the file, and the object or attribute. Raises CorruptFileError if the
    bytes contradict the format.

    Examples
    --------
    >>> decode_dataspace(bytes([2, 1, 0, 1, 3, 0]), 2, "f.h5")
    Dataspace(shape=(3,), maxshape=(3,), is_null=False)
    """
    version, rank, flags, space_type = body[:4] if len(body) >= 4 else (0, 0, 0, 0)
    if version == 1:
        # Byte 3 is reserved; version 1 has no null dataspaces.
        start, space_type = _HEAD_V1_NBYTES, int(rank > 0)
    elif version == 2 and space_type <= _NULL:
        start = _HEAD_V2_NBYTES
    else:
        raise CorruptFileError(
            f"{where}: a dataspace message begins with {bytes(body[:4])!r}, which is no known "
            "version and type"
        )
    end = start + rank * length_size * (2 if flags & _HAS_MAXIMUM else 1)
    if rank > MAX_RANK or (space_type != _SIMPLE and rank) or end > len(body):
        raise CorruptFileError(
            f"{where}: a dataspace message of type {space_type} and {len(body)} bytes has "
            f"{rank} dimensions"
        )
    if not rank:
        return Dataspace((), (), space_type == _NULL)
    sizes = [integer(body, i, length_size) for i in range(start, end, length_size)]
    unlimited = (1 << 8 * length_size) - 1
    # Without maximum sizes the last ``rank`` numbers are the sizes themselves.
    shape, most = tuple(sizes[:rank]), sizes[-rank:]
    if any(n > m for n, m in zip(shape, most, strict=True)):
        raise CorruptFileError(f"{where}: the shape {shape} is larger than the largest {most}")
    return Dataspace(shape, tuple(None if m == unlimited else m for m in most), False)


class ExtentColumns(NamedTuple):
    """The extents of n datasets."""

    is_valid: BoolArray  # (n,), whether the message is understood; else the row is undefined
    ndim: IntArray  # (n,)
    shape: IntArray  # (n, widest), elements; axes past `ndim` are 1
    is_fixed: BoolArray  # (n,), whether each axis has its maximum size

    def take(self, rows: npt.NDArray[np.intp]) -> ExtentColumns:
        """Return some rows."""
        is_valid, ndim, shape, is_fixed = self
        return ExtentColumns(is_valid[rows], ndim[rows], shape[rows], is_fixed[rows])


def decode_extents(
    data: ByteArray, position: IntArray, nbytes: IntArray, length_size: int
) -> ExtentColumns:
    """Decode dataspace messages at positions of padded bytes, all at once."""
    head = integers(data, position, 4)
    version, ndim = head & 0xFF, head >> 8 & 0xFF
    flags, space_type = head >> 16 & 0xFF, head >> 24
    is_v1 = version == 1
    # Scalar (type 0) and simple (1) follow from the rank. Null dataspaces are rare: not here.
    is_valid = np.where(is_v1, space_type >= 0, (version == 2) & (space_type == (ndim > 0)))
    is_valid &= (nbytes >= 4) & (ndim <= MAX_RANK) & (flags <= _HAS_MAXIMUM)
    ndim = np.where(is_valid, ndim, 0)
    sizes = position + np.where(is_v1, _HEAD_V1_NBYTES, _HEAD_V2_NBYTES)
    is_valid &= sizes + ndim * length_size * (1 + flags) <= position + nbytes
    shape = np.ones((len(position), max(int(ndim.max(initial=0)), 1)), dtype=np.int64)
    n_elements = np.ones(len(position))
    is_fixed = np.ones(len(position), dtype=bool)
    for axis in range(int(ndim.max(initial=0))):
        rows = np.flatnonzero(is_valid & (ndim > axis))
        size_at = sizes[rows] + axis * length_size
        size = integers(data, size_at, length_size)
        # Without maximum sizes (flags 0) this reads the size once more.
        most = integers(data, size_at + ndim[rows] * length_size * flags[rows], length_size)
        most = np.where(undefined(most, length_size), MAX_EXTENT, most)
        is_valid[rows[(size < 0) | (size > most)]] = False
        is_fixed[rows[size != most]] = False
        shape[rows, axis] = size
        n_elements[rows] *= np.maximum(size, 1)
    # A product of floats may be off by rounding: half the limit is far enough from it.
    is_valid &= n_elements < MAX_EXTENT / 2
    return ExtentColumns(is_valid, ndim, shape, is_fixed)
