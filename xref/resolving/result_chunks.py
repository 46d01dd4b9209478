"""Chunks."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np

from xref.arrays import IntArray
from xref.resolving.binding import BoundVariable
from xref.resolving.graph import auto_chunk_nbytes, check_chunks

STORED_NBYTES = 1 << 20
"""Bytes of a chunk of whole regions, where one region is not larger."""


def _stored_chunks(shape: tuple[int, ...], own: int, itemsize: int) -> tuple[int, ...] | None:
    """Return chunks of whole regions, for a file that results are written to."""
    if not shape or 0 in shape:
        return None
    nbytes = math.prod(shape[own:]) * max(itemsize, 1)
    n = min(max(STORED_NBYTES // nbytes, 1), shape[own - 1]) if own else 1
    return (*(1,) * (own - 1), *((n,) if own else ()), *shape[own:])


def _chunks_of_cells(
    chunks: Any,
    resolved: BoundVariable,
    inner: tuple[Hashable, ...],
    cell: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Any:
    """Turn the user's chunks into chunks of references, each with whole results."""
    outer = resolved.dims
    check_chunks(chunks, (*outer, *inner))
    whole = {**dict.fromkeys(outer, -1), **dict.fromkeys(inner, -1)}
    if chunks == "auto":
        n = len(resolved.bound.ndim)
        # Dask cuts what has no bytes to divide by, and what fits needs no cut.
        if n * math.prod(cell) * dtype.itemsize <= auto_chunk_nbytes():
            return whole
        shared = {}
        if not dtype.hasobject:
            shared = _shared_axis_chunks(resolved, inner, cell, dtype.itemsize)
        return {**whole, **dict.fromkeys(outer, "auto"), **shared}
    if isinstance(chunks, dict):
        return {**whole, **dict.fromkeys(outer, "auto"), **chunks}
    if not outer:
        return dict.fromkeys(inner, chunks)
    return {**whole, **dict.fromkeys(outer, chunks)}


def _shared_axis_chunks(
    resolved: BoundVariable, inner: tuple[Hashable, ...], cell: tuple[int, ...], itemsize: int
) -> dict[Hashable, Any]:
    """Cut a large result along an axis that all regions share, at chunk borders.

    Blocks along the references would each decode all chunks of that axis, as
    with boxes in an image over all frames of a movie.
    """
    limit = auto_chunk_nbytes()
    n = len(resolved.bound.ndim)
    if resolved.bound.n_targets != 1 or not resolved.dims:
        return {}
    (target,) = resolved.bound.targets
    chunks = target.layout.chunks
    if chunks is None or len(chunks) != len(cell) or resolved.bound.null.any():
        return {}
    start, stop = target.regions.bounds()
    whole = (stop - start == np.array(cell)).all(axis=0)
    shared = (start == start[:1]).all(axis=0) & whole
    for axis in np.flatnonzero(shared).tolist():
        first, extent = int(start[0, axis]), cell[axis]
        row_nbytes = n * math.prod(cell) // max(extent, 1) * itemsize
        n_chunks = max(limit // (row_nbytes * chunks[axis]), 1)
        step = n_chunks * chunks[axis]
        if step >= extent:
            continue
        borders = np.arange(first // step * step + step, first + extent, step) - first
        sizes = np.diff(np.concatenate([[0], borders, [extent]])).tolist()
        # References are cut too where one chunk along the axis is still too much.
        outer = "auto" if row_nbytes * chunks[axis] > limit else -1
        return {**dict.fromkeys(resolved.dims, outer), inner[axis]: tuple(sizes)}
    return {}


def _sample_chunks(
    chunks: Any,
    row_size: IntArray,
    dims: tuple[Hashable, ...],
    itemsize: int,
    sample: Hashable,
) -> Any:
    """Cut samples into blocks at row borders, or as the user says of the samples.

    An int counts references; "auto" fills dask's chunk size.
    """
    ends = np.cumsum(row_size)
    n = int(ends[-1]) if len(ends) else 0
    if isinstance(chunks, dict):
        if sample in chunks and chunks[sample] != "auto":
            return chunks[sample]
        chunks = next((chunks[d] for d in dims if d in chunks), "auto")
    if isinstance(chunks, int):
        if chunks == -1:
            return (n,)
        cuts = ends[chunks - 1 :: chunks]
    else:
        limit = max(auto_chunk_nbytes() // max(itemsize, 1), 1)
        if n <= limit:
            return (n,)
        # The last row that ends within each multiple of the limit.
        at = np.searchsorted(ends, np.arange(limit, n, limit), side="right") - 1
        cuts = ends[np.unique(np.clip(at, 0, None))]
    sizes = np.diff(np.unique(np.concatenate([[0], cuts, [n]])))
    return tuple(int(s) for s in sizes) or (0,)
