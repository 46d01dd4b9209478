"""Checksums of HDF5's metadata: lookup3 of Bob Jenkins.

In: bytes, or many ranges of them. Out: the 32-bit checksum of each.

1. imagecodecs (extra ``codecs``) computes checksums where it is installed.
2. Otherwise few blocks are summed in Python, many side by side in NumPy: each step of the
   checksum needs the step before, so that only different blocks can go together.

Source: HDF5 File Format Specification 4.0, "Level 2A1 - Data Object Header
Prefix", which names the algorithm.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xref.arrays import IntArray
from xref.hdf5.packed import ByteArray

WordArray: TypeAlias = npt.NDArray[np.uint32]

IMPORT_NBYTES = 1 << 16
"""Bytes to sum from which importing imagecodecs (8 ms) is faster than summing in Python."""

MIN_NUMPY_BLOCKS = 16
"""Blocks of one length from which NumPy is faster than Python (benchmarks/chunkindex.py)."""

_INITIAL = 0xDEADBEEF  # H5_checksum_lookup3 adds the number of bytes and ``initval``, 0 here
_WORD = 0xFFFFFFFF
_STEP_NBYTES = 12  # three words, one each for a, b and c

# Bits by which mix() and final() of lookup3.c rotate, in the order of their lines.
_MIX = (4, 6, 8, 16, 19, 4)
_FINAL = (14, 11, 25, 16, 4, 14, 24)
# The same for NumPy: shifts to the left and to the right that make one rotation.
_MIX_SHIFTS = [(np.uint32(n), np.uint32(32 - n)) for n in _MIX]
_FINAL_SHIFTS = [(np.uint32(n), np.uint32(32 - n)) for n in _FINAL]


def sum_blocks(data: ByteArray, position: IntArray, nbytes: IntArray) -> IntArray:
    """Return the checksum of each range of padded bytes; no range may be empty."""
    total = int(nbytes.sum())
    compiled = _find_compiled(total)
    # NumPy takes as many steps as the longest block needs, Python those of all blocks.
    if compiled is None and total >= MIN_NUMPY_BLOCKS * int(nbytes.max(initial=0)):
        return _sum_in_numpy(data, position, nbytes).astype(np.int64)
    lookup, raw = compiled or _sum_in_python, memoryview(data)
    ranges = zip(position.tolist(), (position + nbytes).tolist(), strict=True)
    return np.array([lookup(raw[start:stop]) for start, stop in ranges], dtype=np.int64)


def lookup3(data: bytes) -> int:
    """Return the checksum of bytes.

    Examples
    --------
    >>> hex(lookup3(b"Four score and seven years ago"))
    '0x17770551'
    """
    return (_find_compiled(len(data)) or _sum_in_python)(data)


def _find_compiled(nbytes: int) -> Callable[[Any], int] | None:
    """Return the function of imagecodecs, None if it is missing or not worth the import."""
    return _load_compiled() if nbytes >= IMPORT_NBYTES or "imagecodecs" in sys.modules else None


@lru_cache(maxsize=1)
def _load_compiled() -> Callable[[Any], int] | None:
    try:
        import imagecodecs
    except ImportError:
        return None
    codec = getattr(imagecodecs, "H5CHECKSUM", None)  # a build may lack it
    return imagecodecs.h5checksum_lookup3 if getattr(codec, "available", False) else None


def _sum_in_python(data: bytes | memoryview) -> int:
    a = b = c = (_INITIAL + len(data)) & _WORD
    if not data:
        return c
    # The last one to twelve bytes are mixed by final(); zeros fill them up. Only values
    # that are shifted right must be cut to 32 bits, so that the others stay wider.
    n_words = -(-len(data) // _STEP_NBYTES) * 3
    padded = bytes(data).ljust(4 * n_words, b"\0")
    words: tuple[int, ...] = struct.unpack(f"<{n_words}I", padded)
    each = iter(words[:-3])
    for x, y, z in zip(each, each, each, strict=True):
        a, b, c = a + x, b + y, c + z & _WORD
        a = (a - c ^ (c << 4 | c >> 28)) & _WORD
        c += b
        b = (b - a ^ (a << 6 | a >> 26)) & _WORD
        a += c
        c = (c - b ^ (b << 8 | b >> 24)) & _WORD
        b += a
        a = (a - c ^ (c << 16 | c >> 16)) & _WORD
        c += b
        b = (b - a ^ (a << 19 | a >> 13)) & _WORD
        a += c
        c = (c - b ^ (b << 4 | b >> 28)) & _WORD
        b += a
    a, b, c = a + words[-3] & _WORD, b + words[-2] & _WORD, c + words[-1] & _WORD
    for n in _FINAL:
        c = (c ^ b) - (b << n | b >> 32 - n) & _WORD
        a, b, c = b, c, a
    # Seven turns by one place leave the last result in the middle.
    return b


def _sum_in_numpy(data: ByteArray, position: IntArray, nbytes: IntArray) -> WordArray:
    """Return the checksums of blocks that advance side by side, one step at a time."""
    # By falling length, the blocks that still have full steps are always the first ones.
    order = np.argsort(-nbytes, kind="stable")
    start, nbytes = position[order], nbytes[order]
    n_steps = (nbytes - 1) // _STEP_NBYTES
    n_active = len(order) - np.searchsorted(n_steps[::-1], np.arange(1, n_steps.max() + 1))
    steps = np.ndarray((len(data) - _STEP_NBYTES + 1,), f"V{_STEP_NBYTES}", data, 0, (1,))
    a = (_INITIAL + nbytes).astype(np.uint32)
    b, c, shifted = a.copy(), a.copy(), np.empty_like(a)
    for n in n_active.tolist():
        words = steps[start[:n]].view("<u4").reshape(n, 3)
        x, y, z, part = a[:n], b[:n], c[:n], shifted[:n]
        x += words[:, 0]
        y += words[:, 1]
        z += words[:, 2]
        for left, right in _MIX_SHIFTS:
            x -= z
            x ^= np.left_shift(z, left, out=part)
            x ^= np.right_shift(z, right, out=part)
            z += y
            x, y, z = y, z, x
        start[:n] += _STEP_NBYTES
    # The one to twelve bytes left of each block, with zeros in place of bytes behind it.
    left_over = steps[start].view(np.uint8).reshape(-1, _STEP_NBYTES)
    left_over[np.arange(_STEP_NBYTES) >= (nbytes - _STEP_NBYTES * n_steps)[:, None]] = 0
    a, b, c = (np.stack([a, b, c]) + left_over.view("<u4").T).astype(np.uint32)
    for left, right in _FINAL_SHIFTS:
        c ^= b
        c -= (b << left) | (b >> right)
        a, b, c = b, c, a
    out = np.empty(len(order), dtype=np.uint32)
    out[order] = b
    return out
