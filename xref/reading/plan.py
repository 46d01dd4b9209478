"""A plan that names each chunk once, from selections and a chunk grid.

In: `Parts` of one dataset and the chunk shape. Out: a `ReadPlan`. No file is opened.

1. Selections are *parts*: boxes of evenly spaced elements with their positions in the output.
2. The dataset is divided into *tiles*, boxes of whole chunks of a few MiB, and the parts are
   cut at the borders of tiles into *pieces*.
3. Pieces are sorted by tile, and within a tile by shape, so that a reader fills one canvas for
   each tile and copies all pieces of one shape in one NumPy call.

The loops run over axes and tiles, never over references.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xref.arrays import FrozenColumns, IntArray, canvas_strides, linear, run_starts
from xref.errors import UnsupportedError
from xref.reading.boxes import Parts, cut_axis, group_rows, locate, part_chunks, sort_pairs

TILE_NBYTES = 4 << 20
"""Bytes of the canvas of one tile (benchmarks/tiles.py)."""

CONTIGUOUS_GAP_NBYTES = 1 << 16
"""Largest gap in bytes between two pieces that one read includes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadPlan(FrozenColumns):
    """The chunks to read by tile, and the position of every element in the output.

    Tile t holds chunks ``chunk_cut[t]:chunk_cut[t + 1]`` and pieces
    ``piece_cut[t]:piece_cut[t + 1]``. Pieces of one group have one shape, one
    step and one stride in the output.
    """

    tile_shape: tuple[int, ...]  # elements
    tile_origin: IntArray  # (t, ndim), elements
    chunk_cut: IntArray  # (t + 1,)
    chunk: IntArray  # (c,), chunk number in C order of the grid; each once
    piece_cut: IntArray  # (t + 1,)
    src: IntArray  # (p,), first element in the tile's canvas
    dst: IntArray  # (p,), first element in the flat output
    group: IntArray  # (p,), row of the group columns; ascending within a tile
    group_shape: IntArray  # (g, ndim)
    group_step: IntArray  # (g, ndim)
    group_dst_stride: IntArray  # (g, ndim)

    @property
    def n_tiles(self) -> int:
        """Number of tiles."""
        return len(self.tile_origin)

    def piece_ranges(self, tile: int, gap: int) -> list[tuple[int, int]]:
        """Return the flat ranges of a tile's canvas that its pieces touch.

        Ranges with a gap of at most ``gap`` elements are merged.
        """
        rows = slice(int(self.piece_cut[tile]), int(self.piece_cut[tile + 1]))
        strides = np.array(canvas_strides(self.tile_shape), dtype=np.int64)
        reach = ((self.group_shape - 1) * self.group_step * strides).sum(axis=1)
        start = self.src[rows]
        stop = start + reach[self.group[rows]] + 1
        order = np.argsort(start, kind="stable")
        start, stop = start[order], np.maximum.accumulate(stop[order])
        first = np.ones(len(start), dtype=bool)
        first[1:] = start[1:] > stop[:-1] + gap
        last = np.append(first[1:], True)
        return list(zip(start[first].tolist(), stop[last].tolist(), strict=True))


def plan_chunk(
    start: Sequence[int], shape: Sequence[int], chunks: Sequence[int], box: Sequence[int]
) -> ReadPlan | None:
    """Plan the box ``start, box`` of a dataset if it is exactly one chunk; else return None.

    Dask reads chunked variables chunk by chunk, and `plan_read` would take a quarter of the
    time of decoding.
    """
    if tuple(box) != tuple(chunks) or not chunks:
        return None
    number = 0
    for first, extent, chunk in zip(start, shape, chunks, strict=True):
        if first % chunk or first + chunk > extent:
            return None
        number = number * -(-extent // chunk) + first // chunk
    zero, one = np.zeros(1, dtype=np.int64), np.ones((1, len(chunks)), dtype=np.int64)
    return ReadPlan(
        tile_shape=tuple(chunks),
        tile_origin=np.array([start], dtype=np.int64),
        chunk_cut=np.array([0, 1]),
        chunk=np.array([number]),
        piece_cut=np.array([0, 1]),
        src=zero,
        dst=zero,
        group=zero,
        group_shape=np.array([chunks], dtype=np.int64),
        group_step=one,
        group_dst_stride=np.array([canvas_strides(chunks)], dtype=np.int64),
    )


def choose_tile(
    extent: Sequence[int], chunks: Sequence[int], itemsize: int, nbytes: int = TILE_NBYTES
) -> tuple[int, ...]:
    """Choose the shape of tiles: whole chunks, longest along the last axes.

    Parameters
    ----------
    extent : sequence of int
        Shape that the tiles cover, elements.
    chunks : sequence of int
        Chunk shape, elements.
    itemsize : int
        Bytes an element.
    nbytes : int
        Largest tile, unless one chunk is larger.

    Examples
    --------
    >>> choose_tile((8192, 8192), (256, 256), 2)
    (256, 8192)
    """
    tile = list(chunks)
    for axis in range(len(tile) - 1, -1, -1):
        n_chunks = -(-extent[axis] // chunks[axis])
        room = max(nbytes // max(math.prod(tile) * itemsize, 1), 1)
        if room < n_chunks:
            # Tiles of equal length, instead of a short one at the end.
            n_tiles = -(-n_chunks // room)
            tile[axis] *= -(-n_chunks // n_tiles)
            break
        tile[axis] *= max(n_chunks, 1)
    return tuple(tile)


def plan_read(
    parts: Parts,
    extent: tuple[int, ...],
    chunks: tuple[int, ...] | None,
    itemsize: int,
    tile_nbytes: int = TILE_NBYTES,
) -> ReadPlan:
    """Plan the reading of parts of one dataset.

    Parameters
    ----------
    parts : Parts
        From `plan_parts`.
    extent : tuple of int
        Shape of the dataset.
    chunks : tuple of int or None
        Chunk shape; None for contiguous data, whose tiles are ranges of bytes.
    itemsize : int
        Bytes an element.
    tile_nbytes : int
        Largest canvas of one tile, unless one chunk is larger.
    """
    ndim = len(extent)
    cell = chunks if chunks is not None else (1,) * ndim
    tile = choose_tile(extent, cell, itemsize, tile_nbytes)
    grid = tuple(-(-n // c) for n, c in zip(extent, cell, strict=True))
    if math.prod(grid) >= 2**62:
        raise UnsupportedError(f"a grid of {grid} chunks has too many chunks to number")
    chunk_number = np.zeros(0, dtype=np.int64)
    if chunks is not None:
        # A step wider than a chunk would count chunks that hold no element of the part.
        for axis, width in enumerate(chunks):
            if (parts.step[:, axis] > width).any():
                parts = cut_axis(parts, axis, width)
        chunk_number = part_chunks(parts, chunks, extent)
    for axis in range(ndim):
        parts = cut_axis(parts, axis, tile[axis])
    tile_number, src = locate(parts.start, tile, extent)
    group, representative = group_rows(parts)
    order = sort_pairs(tile_number, group)
    tile_number = tile_number[order]
    new_tile = run_starts(tile_number)
    tiles = tile_number[new_tile]
    chunk_cut = np.zeros(len(tiles) + 1, dtype=np.int64)
    if chunks is not None:
        chunk_number, chunk_cut = _sort_chunks(chunk_number, extent, chunks, tile, tiles)
    return ReadPlan(
        tile_shape=tile,
        tile_origin=_grid_cells(tiles, extent, tile) * np.array(tile, dtype=np.int64),
        chunk_cut=chunk_cut,
        chunk=chunk_number,
        piece_cut=np.append(new_tile, len(order)),
        src=src[order],
        dst=parts.dst[order],
        group=group[order] if len(representative) > 1 else group,
        group_shape=parts.shape[representative],
        group_step=parts.step[representative],
        group_dst_stride=parts.dst_stride[representative],
    )


def _grid_cells(number: IntArray, extent: Sequence[int], cell: Sequence[int]) -> IntArray:
    """Return the index of numbered cells of a grid along each axis, shape ``(n, ndim)``."""
    if not extent:
        return np.zeros((len(number), 0), dtype=np.int64)
    grid = [-(-n // c) for n, c in zip(extent, cell, strict=True)]
    return np.stack(np.unravel_index(number, grid), axis=1)


def _sort_chunks(
    number: IntArray,
    extent: Sequence[int],
    chunks: Sequence[int],
    tile: Sequence[int],
    tiles: IntArray,
) -> tuple[IntArray, IntArray]:
    """Sort chunks by tile; return their numbers, and the first chunk of each tile."""
    corner = _grid_cells(number, extent, chunks) * np.array(chunks)
    tile_grid = [-(-n // t) for n, t in zip(extent, tile, strict=True)]
    tile_of_chunk = linear(corner // np.array(tile), canvas_strides(tile_grid))
    order = np.argsort(tile_of_chunk, kind="stable")
    return number[order], np.append(np.searchsorted(tile_of_chunk[order], tiles), len(number))
