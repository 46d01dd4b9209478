"""Checksums of a few dozen blocks at once.

In: ranges of bytes. Out: the checksum of HDF5's metadata of each.

Each step of the sum needs the one before, so that one block is summed word by word. Many
blocks go side by side, each with 64 bits of its own in one large integer of Python, of
which it uses 32: Python's operations on such integers cost little more than on small ones
until there are hundreds of blocks, and NumPy's cost less then (`xref.hdf5.bulk_headers`).
"""

from __future__ import annotations

import numpy as np

from xref.arrays import IntArray
from xref.hdf5.bulk_headers import HASH_SEED, ByteArray, checksums
from xref.hdf5.metadata_reader import lookup3

MANY_BLOCKS = 384
"""As many blocks or more are summed by NumPy (benchmarks/chunkindex.py)."""

_LANE_NBYTES = 8
_STEP_NBYTES = 12
_WORD = 0xFFFFFFFF


PADDED_NBYTES = 1 << 20
"""Bytes that blocks of different lengths may take, made as long as the longest."""


def sum_blocks(data: ByteArray, position: IntArray, nbytes: IntArray) -> IntArray:
    """Return the checksums of ranges of padded bytes, none of which is empty."""
    padded = len(position) * int(nbytes.max(initial=0))
    if len(position) >= MANY_BLOCKS or padded > 4 * int(nbytes.sum()) + PADDED_NBYTES:
        return checksums(data, position, nbytes).astype(np.int64)
    if len(position) == 1:
        begin, length = int(position[0]), int(nbytes[0])
        return np.array([lookup3(data[begin : begin + length].tobytes())])
    return _sum_few(data, position, nbytes)


def _sum_few(data: ByteArray, position: IntArray, nbytes: IntArray) -> IntArray:
    """Return checksums of blocks in order of length, so that the first end first."""
    order = np.argsort(nbytes, kind="stable")
    lengths = nbytes[order]
    n, n_steps = len(order), (lengths - 1) // _STEP_NBYTES
    rows = np.zeros((n, (int(n_steps[-1]) + 1) * _STEP_NBYTES), dtype=np.uint8)
    for row, begin, length in zip(
        rows, position[order].tolist(), lengths.tolist(), strict=True
    ):
        row[:length] = data[begin : begin + length]
    words = np.ascontiguousarray(rows.view("<u4").T).astype("<u8")
    a = b = c = _as_one((HASH_SEED + lengths) & _WORD)
    found = np.empty(n, dtype=np.int64)
    done = step = 0
    while done < n:
        last = int(n_steps[done])
        going = _Lanes(n - done)
        mix = words[3 * step : 3 * last, done:].tobytes()
        a, b, c = going.mix(a, b, c, mix)
        ends = int(np.searchsorted(n_steps, last, "right"))
        x, y, z = (_as_one(words[3 * last + i, done:ends]) for i in range(3))
        ending = _Lanes(ends - done)
        sums = ending.finish(
            (a & ending.mask) + x & ending.mask,
            (b & ending.mask) + y & ending.mask,
            (c & ending.mask) + z & ending.mask,
        )
        raw = sums.to_bytes(_LANE_NBYTES * (ends - done), "little")
        found[order[done:ends]] = np.frombuffer(raw, "<i8")
        shift = 8 * _LANE_NBYTES * (ends - done)
        a, b, c = a >> shift, b >> shift, c >> shift
        done, step = ends, last
    return found


def _as_one(values: IntArray) -> int:
    """Return one integer with 64 bits for each value."""
    return int.from_bytes(values.astype("<u8").tobytes(), "little")


class _Lanes:
    """Steps of the sum of n blocks side by side."""

    def __init__(self, n: int) -> None:
        self.n = n
        ones = _as_one(np.ones(n, dtype=np.int64))
        self.mask = ones * _WORD
        self.borrow = ones << 32  # what a difference may take from the unused bits

    def mix(self, a: int, b: int, c: int, words: bytes) -> tuple[int, int, int]:
        """Mix in three words of each block, again and again."""
        m, borrow, width = self.mask, self.borrow, _LANE_NBYTES * self.n
        for at in range(0, len(words), 3 * width):
            x, y, z = (
                int.from_bytes(words[i : i + width], "little")
                for i in range(at, at + 3 * width, width)
            )
            a, b, c = a + x & m, b + y & m, c + z & m
            a = (a | borrow) - c & m ^ (c << 4 | c >> 28) & m
            c = c + b & m
            b = (b | borrow) - a & m ^ (a << 6 | a >> 26) & m
            a = a + c & m
            c = (c | borrow) - b & m ^ (b << 8 | b >> 24) & m
            b = b + a & m
            a = (a | borrow) - c & m ^ (c << 16 | c >> 16) & m
            c = c + b & m
            b = (b | borrow) - a & m ^ (a << 19 | a >> 13) & m
            a = a + c & m
            c = (c | borrow) - b & m ^ (b << 4 | b >> 28) & m
            b = b + a & m
        return a, b, c

    def finish(self, a: int, b: int, c: int) -> int:
        """Return the sums of blocks whose last words have been added."""
        m, borrow = self.mask, self.borrow
        for n in (14, 11, 25, 16, 4, 14, 24):
            turned = (b << n | b >> 32 - n) & m
            c = (c ^ b | borrow) - turned & m
            a, b, c = b, c, a
        # Seven turns by one place leave the last result in the middle.
        return b
