"""A file of which some ranges are in memory, instead of or in addition to its bytes.

In: a source of bytes, and ranges of the file with their content. Out: a source that gives this
content where it is known, and the bytes of the file elsewhere.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xref.arrays.byte_ranges import ByteSource, PendingRanges, RangeSource
from xref.arrays.columns import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class KnownRanges:
    """Content of ranges of a file, in memory."""

    start: tuple[int, ...]  # first byte of each range, ascending
    data: tuple[memoryview, ...]  # ranges do not overlap
    equal_file: bool  # whether the file has the same bytes there

    def fill(self, offset: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` from byte ``offset`` on if one range contains all of it."""
        k = bisect_right(self.start, offset) - 1
        if k < 0 or offset + len(buffer) > self.start[k] + len(self.data[k]):
            return False
        begin = offset - self.start[k]
        buffer[:] = self.data[k][begin : begin + len(buffer)]
        return True

    def patch(self, offset: int, buffer: memoryview) -> None:
        """Replace the bytes in ``buffer``, which begins at ``offset``, that are known."""
        if self.equal_file:
            return
        stop = offset + len(buffer)
        k = max(bisect_right(self.start, offset) - 1, 0)
        while k < len(self.start) and self.start[k] < stop:
            begin = max(self.start[k], offset)
            end = min(self.start[k] + len(self.data[k]), stop)
            if begin < end:
                part = self.data[k][begin - self.start[k] : end - self.start[k]]
                buffer[begin - offset : end - offset] = part
            k += 1


@dataclass(frozen=True, slots=True)
class OverlaidRanges:
    """Ranges in memory over those of a source (a `ByteSource`)."""

    source: ByteSource
    known: KnownRanges

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from byte ``offset`` on."""
        if not self.known.fill(offset, buffer):
            self.source.read_into(offset, buffer)
            self.known.patch(offset, buffer)

    @property
    def remote(self) -> bool:
        """Whether each read of the source is a request to a server."""
        return self.source.remote

    def fetch(self, offset: IntArray, nbytes: IntArray) -> PendingRanges:
        """Start to read ranges of the source into memory."""
        pending = self.source.fetch(offset, nbytes)
        return pending if self.known.equal_file else _OverlaidPending(pending, self.known)


@dataclass(frozen=True, slots=True)
class OverlaidFile(OverlaidRanges):
    """Ranges in memory over those of a file (a `RangeSource`)."""

    source: RangeSource

    def read_ranges(
        self, offset: IntArray, nbytes: IntArray, buffer: npt.NDArray[np.uint8], at: IntArray
    ) -> None:
        """Read ranges of the file, each to byte ``at`` of ``buffer``."""
        self.source.read_ranges(offset, nbytes, buffer, at)
        if self.known.equal_file:
            return
        view = buffer.data
        for o, n, a in zip(offset.tolist(), nbytes.tolist(), at.tolist(), strict=True):
            self.known.patch(o, view[a : a + n])


@dataclass(frozen=True, slots=True)
class _OverlaidPending:
    """Ranges of a source that are being read, under ranges in memory."""

    pending: PendingRanges
    known: KnownRanges

    def result(self) -> ByteSource:
        return OverlaidRanges(self.pending.result(), self.known)

    def cancel(self) -> None:
        self.pending.cancel()
