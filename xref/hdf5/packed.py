"""Integers and records at many positions of one byte buffer.

In: bytes with padding behind them. Out: columns.

Words of this room: an ``address`` counts from the file's base address, an ``offset`` from
the first byte of the file, and a ``position`` from the first byte of a buffer.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from xref import arrays
from xref.arrays import BoolArray, IntArray

ByteArray: TypeAlias = npt.NDArray[np.uint8]

PADDING_NBYTES = 1024
"""Zeros behind all bytes, so that columns can be decoded before lengths are checked."""


def integers(data: ByteArray, position: IntArray, nbytes: int) -> IntArray:
    """Return the little-endian unsigned integers at positions of padded bytes.

    Integers of eight bytes above 2**63 - 1 come out negative.
    """
    # A view of all overlapping integers, so that NumPy picks them at any position.
    words = np.ndarray((len(data) - nbytes + 1,), f"<u{nbytes}", data, 0, (1,))
    found: IntArray = words[position].astype(np.int64)
    return found


def undefined(values: IntArray, offset_size: int) -> BoolArray:
    """Return which addresses are HDF5's undefined address: all bits set."""
    none = -1 if offset_size == 8 else (1 << 8 * offset_size) - 1
    result: BoolArray = values == none
    return result


def padded_buffer(nbytes: int) -> ByteArray:
    """Return a buffer for ``nbytes`` bytes with `PADDING_NBYTES` zeros behind them."""
    data = np.empty(nbytes + PADDING_NBYTES, dtype=np.uint8)
    data[nbytes:] = 0
    return data


def read_blocks(
    source: arrays.ByteSource, offset: IntArray, nbytes: IntArray
) -> tuple[ByteArray, IntArray]:
    """Read ranges of the file; return their bytes and the position of each range."""
    data = padded_buffer(int(nbytes.sum()))
    position = np.cumsum(nbytes) - nbytes
    arrays.read_scattered(source, offset, nbytes, data, position)
    return data, position


def message_bytes(data: ByteArray, position: IntArray, nbytes: IntArray) -> ByteArray:
    """Return each range of bytes as a row; zeros fill the rows of shorter ranges."""
    width = int(nbytes.max(initial=0))
    windows = np.ndarray((len(data) - width + 1, width), np.uint8, data, 0, (1, 1))
    out: ByteArray = windows[position]
    if (nbytes != width).any():
        out[np.arange(width) >= nbytes[:, None]] = 0
    return out
