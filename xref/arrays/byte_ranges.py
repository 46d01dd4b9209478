"""Byte ranges of a file: those that lie close as one, those in memory read from there.

In: offsets and lengths. Out: fewer, longer ranges; the bytes of ranges that are held; what
many jobs read, asked for stage by stage.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from xref.arrays.columns import IntArray, row_offsets, run_starts
from xref.options import get_option

Range: TypeAlias = tuple[int, int]
"""First byte and the one behind the last."""


FETCH_NBYTES = 32 << 20
"""Bytes of a remote file that are asked for together; twice as many are held."""


class ByteSource(Protocol):
    """Positional reads from one file, safe to call from several threads."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on, or raise `FileReadError`."""

    @property
    def remote(self) -> bool:
        """Whether reading takes requests to a server."""

    def fetch(self, offset: IntArray, nbytes: IntArray) -> PendingRanges:
        """Begin to read ranges into memory."""


class RangeSource(ByteSource, Protocol):
    """A source that also reads many ranges in one call."""

    def read_ranges(
        self, offset: IntArray, nbytes: IntArray, buffer: npt.NDArray[np.uint8], at: IntArray
    ) -> None:
        """Read ranges of the file, each to its place ``at`` in ``buffer``."""


class PendingRanges(Protocol):
    """Ranges that are being read into memory."""

    def result(self) -> ByteSource:
        """Wait for them and return them; its errors are those of `ByteSource.read_into`."""

    def cancel(self) -> None:
        """Give them up."""


SMALL_NBYTES = 1 << 14
"""Bytes between two ranges that cost less than another request, however few are wanted."""


def gap_limits(nbytes: IntArray, gap: int) -> IntArray:
    """Return the bytes that may be taken along before each range but the first.

    No more than what is wanted on both sides, so that about twice of that is read; or
    `SMALL_NBYTES`, if that is more.
    """
    beside = np.minimum(nbytes[1:], nbytes[:-1])
    return np.minimum(np.maximum(beside, SMALL_NBYTES), gap)


def coalesce(offset: IntArray, nbytes: IntArray, gap: int) -> list[Range]:
    """Unite ranges that overlap or lie close.

    Parameters
    ----------
    offset, nbytes : numpy.ndarray
        Shape ``(n,)``, in any order; empty ranges are left out.
    gap : int
        Bytes between two ranges that are taken along, at most; see `gap_limits`.

    Returns
    -------
    list of (start, stop)
        In ascending order.
    """
    some = np.flatnonzero(nbytes)
    if not len(some):
        return []
    order = some[np.argsort(offset[some], kind="stable")]
    start = offset[order]
    reach = np.maximum.accumulate(start + nbytes[order])
    apart = start[1:] - reach[:-1] > gap_limits(nbytes[order], gap)
    first = np.append(0, np.flatnonzero(apart) + 1)
    last = np.append(first[1:], len(start)) - 1
    return list(zip(start[first].tolist(), reach[last].tolist(), strict=True))


def split(ranges: Sequence[Range], limit: int) -> list[Range]:
    """Cut ranges into pieces of about one length, at most ``limit`` bytes."""
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
        First byte of each, in ascending order.
    data : sequence of bytes
        They do not overlap.
    """

    def __init__(self, start: Sequence[int], data: Sequence[bytes]) -> None:
        self._start, self._data = list(start), list(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from byte ``offset`` on.

        Raises
        ------
        LookupError
            If not all of it is held.
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
        """Whether reading takes requests: it does not any more."""
        return False

    def fetch(self, offset: IntArray, nbytes: IntArray) -> CachedRanges:
        """Return this: all ranges that are to be had are here."""
        return self

    def result(self) -> CachedRanges:
        """Return this."""
        return self

    def cancel(self) -> None:
        """Do nothing: all is here."""


def fetch_stages(
    source: ByteSource, cut: IntArray, offset: IntArray, nbytes: IntArray
) -> Iterator[tuple[range, ByteSource]]:
    """Divide jobs into stages, and read what each stage needs while another is worked on.

    Parameters
    ----------
    source : ByteSource
        A file that takes requests.
    cut : numpy.ndarray
        Shape ``(n_jobs + 1,)``: where the ranges of each job begin.
    offset, nbytes : numpy.ndarray
        Shape ``(n,)``.

    Yields
    ------
    jobs : range
    held : ByteSource
        Their ranges, in memory.
    """
    stored = row_offsets(_spans(offset, nbytes, get_option("remote_gap")))[cut]
    edges = [*run_starts(stored[:-1] // FETCH_NBYTES).tolist(), len(cut) - 1]

    def begin(stage: int) -> PendingRanges | None:
        if stage + 1 >= len(edges):
            return None
        rows = slice(int(cut[edges[stage]]), int(cut[edges[stage + 1]]))
        return source.fetch(offset[rows], nbytes[rows])

    coming = begin(0)
    try:
        for stage, jobs in enumerate(pairwise(edges)):
            if coming is not None:
                held = coming.result()
                coming = begin(stage + 1)
                yield range(*jobs), held
    finally:
        if coming is not None:
            coming.cancel()


def _spans(offset: IntArray, nbytes: IntArray, gap: int) -> IntArray:
    """Return the bytes of each range and of what is taken along before it, at most."""
    order = np.argsort(offset, kind="stable")
    start, length = offset[order], nbytes[order]
    before = np.zeros_like(length)
    before[1:] = start[1:] - np.maximum.accumulate(start + length)[:-1]
    before[1:][before[1:] > gap_limits(length, gap)] = 0
    spans = np.empty_like(length)
    spans[order] = length + np.maximum(before, 0)
    return spans
