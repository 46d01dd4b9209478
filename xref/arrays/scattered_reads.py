"""Many byte ranges of a file, read together where they lie close.

In: offsets and lengths of ranges. Out: their bytes, each at its own place of one
buffer.

Ranges are taken in the order of the file. Neighbours go with one read, into a buffer
that is used again and again, and from there to their places; a range that is far from
all others is read to its place at once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays.byte_ranges import ByteSource, fetch_stages
from xref.arrays.columns import IntArray

GAP_NBYTES = 1 << 14
"""Bytes between two ranges that one read takes along (benchmarks/small.py)."""

RUN_NBYTES = 1 << 20
"""Bytes after which a read of several ranges ends, so that they are still in the
processor's cache when they are copied (benchmarks/small.py)."""


def read_scattered(
    source: ByteSource,
    offset: IntArray,
    nbytes: IntArray,
    buffer: npt.NDArray[np.uint8],
    at: IntArray,
) -> None:
    """Read many ranges of a file, each to its place in a buffer.

    Parameters
    ----------
    source : ByteSource
        The file; a range past its end is an error there.
    offset, nbytes : numpy.ndarray
        Shape ``(n,)``: the ranges, bytes of the file. They may overlap.
    buffer : numpy.ndarray
        1-D, contiguous.
    at : numpy.ndarray
        Shape ``(n,)``: where in ``buffer`` each begins, bytes. Places do not overlap.
    """
    some = np.flatnonzero(nbytes)
    order = some[np.argsort(offset[some], kind="stable")]
    offset, nbytes, at = offset[order], nbytes[order], at[order]
    if not len(offset):
        return
    if not source.remote:
        _read_runs(source, offset, nbytes, buffer, at, GAP_NBYTES)
        return
    for rows, held in fetch_stages(source, np.arange(len(offset) + 1), offset, nbytes):
        part = slice(rows.start, rows.stop)
        _read_runs(held, offset[part], nbytes[part], buffer, at[part], 0)


def _read_runs(
    source: ByteSource,
    offset: IntArray,
    nbytes: IntArray,
    buffer: npt.NDArray[np.uint8],
    at: IntArray,
    gap: int,
) -> None:
    """Read ranges in ascending order, those that lie close together."""
    view: Any = buffer.data
    scratch = np.empty(0, dtype=np.uint8)
    for begin, end in group_ranges(offset, nbytes, gap):
        first = int(offset[begin])
        if end - begin == 1:
            place = int(at[begin])
            source.read_into(first, view[place : place + int(nbytes[begin])])
            continue
        length = int((offset[begin:end] + nbytes[begin:end]).max()) - first
        if len(scratch) < length:
            scratch = np.empty(max(length, min(RUN_NBYTES, int(nbytes.sum()))), np.uint8)
        run: Any = scratch.data[:length]
        source.read_into(first, run)
        width = int(nbytes[begin])
        if (nbytes[begin:end] == width).all():
            _copy_equal(
                scratch[:length], offset[begin:end] - first, buffer, at[begin:end], width
            )
            continue
        rows = zip(
            (offset[begin:end] - first).tolist(),
            nbytes[begin:end].tolist(),
            at[begin:end].tolist(),
            strict=True,
        )
        for a, n, place in rows:
            view[place : place + n] = run[a : a + n]


def group_ranges(
    offset: IntArray, nbytes: IntArray, gap: int = GAP_NBYTES
) -> list[tuple[int, int]]:
    """Group ranges in ascending order of offsets into one read each; return rows."""
    reach = np.maximum.accumulate(offset + nbytes)
    apart = np.flatnonzero(offset[1:] - reach[:-1] > gap) + 1
    runs = []
    edges = [0, *apart.tolist(), len(offset)]
    for begin, end in pairwise(edges):
        while begin < end:
            last = int(np.searchsorted(reach[begin:end], offset[begin] + RUN_NBYTES, "right"))
            stop = begin + max(last, 1)
            runs.append((begin, stop))
            begin = stop
    return runs


def _copy_equal(
    source: npt.NDArray[np.uint8],
    begin: IntArray,
    target: npt.NDArray[np.uint8],
    at: IntArray,
    width: int,
) -> None:
    """Copy pieces of one width; places in bytes."""
    item = np.dtype((np.void, width))
    pieces, places = (
        np.ndarray((len(array) - width + 1,), item, array, 0, (1,))
        for array in (source, target)
    )
    places[at] = pieces[begin]
