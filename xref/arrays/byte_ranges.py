"""Byte ranges of a file: merge close ranges, read ranges from memory, fetch them in stages.

In: offsets and sizes, bytes, int64 of shape ``(n,)``. Out: fewer, longer ranges; the bytes of
ranges in memory; ranges in memory that count instead of the bytes of a file; the ranges of
many jobs, requested stage by stage.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from xref.arrays.columns import IntArray, row_offsets, run_starts
from xref.options import get_option

Range: TypeAlias = tuple[int, int]
"""First byte, and the byte after the last."""

FETCH_NBYTES = 32 << 20
"""Bytes of a remote file that one stage requests; two stages are in memory at a time."""

_UNLIMITED = 1 << 62  # bytes

RUN_NBYTES = 1 << 20
"""Most bytes of one read of several ranges, so that they are still in the processor's cache
when they are decoded or copied (benchmarks/small.py)."""


class ByteSource(Protocol):
    """Positional reads from one file, safe to call from several threads."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on, or raise `FileReadError`."""

    @property
    def remote(self) -> bool:
        """Whether each read is a request to a server."""

    def fetch(self, offset: IntArray, nbytes: IntArray) -> PendingRanges:
        """Start to read ranges into memory."""


class RangeSource(ByteSource, Protocol):
    """A source that also reads many ranges in one call."""

    def read_ranges(
        self, offset: IntArray, nbytes: IntArray, buffer: npt.NDArray[np.uint8], at: IntArray
    ) -> None:
        """Read ranges of the file, each to byte ``at`` of ``buffer``."""


class PendingRanges(Protocol):
    """Ranges that are being read into memory."""

    def result(self) -> ByteSource:
        """Wait for the ranges and return them; errors are those of `ByteSource.read_into`."""

    def cancel(self) -> None:
        """Stop reading; the ranges are not needed."""


SMALL_NBYTES = 1 << 14
"""A gap between two ranges that costs less than a second request, for ranges of any size."""


def gap_limits(nbytes: IntArray, gap: int) -> IntArray:
    """Return the largest gap that one request reads before each range but the first.

    At most the smaller of the ranges on both sides, so that a request reads at most about
    twice the bytes that are needed; but at least `SMALL_NBYTES`, and never more than ``gap``.
    """
    beside = np.minimum(nbytes[1:], nbytes[:-1])
    return np.minimum(np.maximum(beside, SMALL_NBYTES), gap)


def group_ranges(
    offset: IntArray, nbytes: IntArray, gap: int | IntArray, limit: int | None = None
) -> list[tuple[int, int]]:
    """Group ranges that lie close, one read for each group.

    Parameters
    ----------
    offset, nbytes : numpy.ndarray
        Shape ``(n,)``, ascending offsets. Ranges may overlap.
    gap : int or numpy.ndarray
        Most bytes between two ranges of a group; or ``(n - 1,)``, before each but the first.
    limit : int, optional
        Most bytes of a group of several ranges; default `RUN_NBYTES`.

    Returns
    -------
    list of (begin, end)
        Rows of each group.

    Examples
    --------
    >>> group_ranges(np.array([0, 12, 50]), np.array([10, 10, 10]), 4)
    [(0, 2), (2, 3)]
    """
    if len(offset) == 1:
        return [(0, 1)]
    limit = RUN_NBYTES if limit is None else limit
    reach = np.maximum.accumulate(offset + nbytes)
    apart = np.flatnonzero(offset[1:] - reach[:-1] > gap) + 1
    groups = []
    for begin, end in pairwise([0, *apart.tolist(), len(offset)]):
        while begin < end:
            last = int(np.searchsorted(reach[begin:end], offset[begin] + limit, "right"))
            stop = begin + max(last, 1)
            groups.append((begin, stop))
            begin = stop
    return groups


def coalesce(offset: IntArray, nbytes: IntArray, gap: int) -> list[Range]:
    """Merge ranges that overlap or lie close.

    Parameters
    ----------
    offset, nbytes : numpy.ndarray
        Shape ``(n,)``, in any order; empty ranges are left out.
    gap : int
        Most bytes between two ranges that become one; see `gap_limits`.

    Returns
    -------
    list of (start, stop)
        In ascending order.
    """
    used = np.flatnonzero(nbytes)
    if not len(used):
        return []
    order = used[np.argsort(offset[used], kind="stable")]
    start, length = offset[order], nbytes[order]
    groups = group_ranges(start, length, gap_limits(length, gap), _UNLIMITED)
    first, last = np.array(groups).T
    reach = np.maximum.accumulate(start + length)
    return list(zip(start[first].tolist(), reach[last - 1].tolist(), strict=True))


def split(ranges: Sequence[Range], limit: int) -> list[Range]:
    """Cut ranges into pieces of about equal length, at most ``limit`` bytes each."""
    pieces: list[Range] = []
    for start, stop in ranges:
        n = -(-(stop - start) // limit)
        edges = [start + (stop - start) * k // n for k in range(n + 1)]
        pieces += pairwise(edges)
    return pieces


class CachedRanges:
    """Byte ranges of a file that are in memory (a `ByteSource`).

    Parameters
    ----------
    start : sequence of int
        First byte of each range, in ascending order.
    data : sequence of bytes
        The bytes of each range; ranges do not overlap.
    """

    def __init__(self, start: Sequence[int], data: Sequence[bytes]) -> None:
        self._start, self._data = list(start), list(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from byte ``offset`` on.

        Raises
        ------
        LookupError
            If not all of the bytes are in memory.
        """
        k = bisect_right(self._start, offset) - 1
        done = 0
        while done < len(buffer):
            inside = offset + done - self._start[k] if 0 <= k < len(self._start) else -1
            if not 0 <= inside < len(self._data[k]):
                raise LookupError(f"byte {offset + done:#x} is not among what was read")
            part = memoryview(self._data[k])[inside : inside + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)
            k += 1

    @property
    def remote(self) -> bool:
        """Whether each read is a request to a server: False."""
        return False

    def fetch(self, offset: IntArray, nbytes: IntArray) -> CachedRanges:
        """Return self; every range is already in memory."""
        return self

    def result(self) -> CachedRanges:
        """Return self."""
        return self

    def cancel(self) -> None:
        """Do nothing; every range is already in memory."""


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


def fetch_stages(
    source: ByteSource, cut: IntArray, offset: IntArray, nbytes: IntArray
) -> Iterator[tuple[range, ByteSource]]:
    """Divide jobs into stages; read the ranges of a stage while the caller does the one before.

    Parameters
    ----------
    source : ByteSource
        A remote file.
    cut : numpy.ndarray
        Shape ``(n_jobs + 1,)``: row of the first range of each job, and n.
    offset, nbytes : numpy.ndarray
        Shape ``(n,)``: the ranges of all jobs, job after job.

    Yields
    ------
    jobs : range
        The jobs of a stage.
    source : ByteSource
        Their ranges, in memory.
    """
    stored = row_offsets(_request_nbytes(offset, nbytes, get_option("remote_gap")))[cut]
    edges = [*run_starts(stored[:-1] // FETCH_NBYTES).tolist(), len(cut) - 1]

    def start(stage: int) -> PendingRanges | None:
        if stage + 1 >= len(edges):
            return None
        rows = slice(int(cut[edges[stage]]), int(cut[edges[stage + 1]]))
        return source.fetch(offset[rows], nbytes[rows])

    pending = start(0)
    try:
        for stage, jobs in enumerate(pairwise(edges)):
            if pending is not None:
                cached = pending.result()
                pending = start(stage + 1)
                yield range(*jobs), cached
    finally:
        if pending is not None:
            pending.cancel()


def _request_nbytes(offset: IntArray, nbytes: IntArray, gap: int) -> IntArray:
    """Return an upper bound of the bytes requested for each range, with the gap before it."""
    order = np.argsort(offset, kind="stable")
    start, length = offset[order], nbytes[order]
    before = np.zeros_like(length)
    before[1:] = start[1:] - np.maximum.accumulate(start + length)[:-1]
    before[1:][before[1:] > gap_limits(length, gap)] = 0
    requested = np.empty_like(length)
    requested[order] = length + np.maximum(before, 0)
    return requested
