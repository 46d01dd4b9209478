"""Many byte ranges of a file, close ones with one read.

In: offsets and sizes of ranges, bytes. Out: their bytes, each at its own place in one buffer.

Ranges are read in the order of the file. Close ranges are read together into a scratch buffer
and copied from there to their places; a range far from all others is read directly to its
place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays.byte_ranges import RUN_NBYTES, ByteSource, fetch_stages, group_ranges
from xref.arrays.columns import IntArray

GAP_NBYTES = 1 << 14
"""Most bytes between two ranges of one read, local files (benchmarks/small.py)."""


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
        Shape ``(n,)``: byte of ``buffer`` where each begins. Places do not overlap.
    """
    used = np.flatnonzero(nbytes)
    order = used[np.argsort(offset[used], kind="stable")]
    offset, nbytes, at = offset[order], nbytes[order], at[order]
    if not len(offset):
        return
    if not source.remote:
        _read_runs(source, offset, nbytes, buffer, at, GAP_NBYTES)
        return
    for rows, cached in fetch_stages(source, np.arange(len(offset) + 1), offset, nbytes):
        part = slice(rows.start, rows.stop)
        _read_runs(cached, offset[part], nbytes[part], buffer, at[part], 0)


def _read_runs(
    source: ByteSource,
    offset: IntArray,
    nbytes: IntArray,
    buffer: npt.NDArray[np.uint8],
    at: IntArray,
    gap: int,
) -> None:
    """Read ranges in ascending order of offsets, close ones with one read."""
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


def _copy_equal(
    source: npt.NDArray[np.uint8],
    begin: IntArray,
    target: npt.NDArray[np.uint8],
    at: IntArray,
    width: int,
) -> None:
    """Copy pieces of one width with one index; ``begin`` and ``at`` are bytes."""
    # Items of ``width`` bytes that begin at every byte: overlapping, no copy.
    item = np.dtype((np.void, width))
    pieces, places = (
        np.ndarray((len(array) - width + 1,), item, array, 0, (1,))
        for array in (source, target)
    )
    places[at] = pieces[begin]
