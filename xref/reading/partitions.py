"""Parts of many Dask blocks of an output, partitioned by the chunks that they read.

In: the parts of one dataset in a flat output, which is divided into Dask blocks. Out:
`PartitionedBoxes`: the parts cut at the borders of partitions (large boxes of whole chunks),
sorted by partition, then by block. Each partition is read once, into a buffer that holds its
elements block after block; each block is assembled from its range of every buffer.

References in random order need this: one block of them touches nearly every chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xref import arrays
from xref.reading.box_copies import StridedBuffer
from xref.reading.boxes import (
    Parts,
    cut_axis,
    group_rows,
    locate,
    part_chunks,
    sort_pairs,
    take_parts,
)
from xref.reading.plan import CONTIGUOUS_GAP_NBYTES, choose_tile


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PartitionedBoxes(arrays.FrozenColumns):
    """The parts of one dataset by partition (share) and by block of the output.

    Share s reads rows ``first[s, b]:first[s, b + 1]`` for block b; they fill
    ``offset[s, b]:offset[s, b + 1]`` of the buffer of the share.
    """

    parts: Parts  # (m,), dst counts from the first element of the block
    src: arrays.IntArray  # (m,), first element in the share's buffer
    first: arrays.IntArray  # (s, b + 1)
    offset: arrays.IntArray  # (s, b + 1), elements

    def __len__(self) -> int:
        return len(self.first)

    def size(self, share: int) -> int:
        """Return the elements of one share's buffer."""
        return int(self.offset[share, -1])

    def share_parts(self, share: int) -> Parts:
        """Return the parts of one share, with dst in the buffer of the share."""
        rows = np.arange(int(self.first[share, 0]), int(self.first[share, -1]))
        parts = take_parts(self.parts, rows)
        is_shared = parts.single_elements
        dst_stride = parts.dst_stride if is_shared else arrays.row_strides(parts.shape)
        return replace(parts, dst=self.src[rows], dst_stride=dst_stride)

    def block_boxes(
        self,
        block: int,
        buffers: Sequence[npt.NDArray[Any]],
        out: npt.NDArray[Any],
        first: int = 0,
    ) -> tuple[StridedBuffer, StridedBuffer, arrays.IntArray, arrays.IntArray] | None:
        """Return the arguments of `xref.reading.box_copies.copy_boxes` to assemble one block.

        ``buffers`` has the buffer of each share, from block ``first`` on; ``out`` is the block,
        1-D. The result is None if the block has no parts.
        """
        low, high = self.first[:, block], self.first[:, block + 1]
        shares = np.flatnonzero(high > low)
        if not len(shares):
            return None
        origin = self.offset[shares, first]
        begin = (self.offset[shares, block] - origin).tolist()
        end = (self.offset[shares, block + 1] - origin).tolist()
        stretches = [
            buffers[share][a:b] for share, a, b in zip(shares.tolist(), begin, end, strict=True)
        ]
        flat = stretches[0]
        if len(stretches) > 1:  # the dtype keeps its byte order
            flat = np.concatenate(stretches, dtype=flat.dtype)
        parts = take_parts(self.parts, arrays.ragged_ranges(low[shares], (high - low)[shares]))
        src, dst = arrays.row_offsets(_sizes(parts))[:-1], parts.dst
        group, representative = group_rows(parts)
        if len(shares) > 1:
            order = np.argsort(group, kind="stable")
            group, src, dst = group[order], src[order], dst[order]
        shape, strides = parts.shape[representative], parts.dst_stride[representative]
        return (flat, src, arrays.row_strides(shape)), (out, dst, strides), shape, group


def _sizes(parts: Parts) -> arrays.IntArray:
    if parts.single_elements:
        return np.ones(len(parts), dtype=np.int64)
    sizes: arrays.IntArray = parts.shape.prod(axis=1)
    return sizes


def fit_dask_blocks(parts: Parts, bounds: arrays.IntArray) -> bool:
    """Tell whether each part lies within one block of the output.

    Parameters
    ----------
    parts : Parts
    bounds : numpy.ndarray
        Shape ``(b + 1,)``: block i is ``bounds[i]:bounds[i + 1]`` of the flat output.
    """
    last = parts.dst
    if not parts.single_elements:
        last = last + ((parts.shape - 1) * parts.dst_stride).sum(axis=1)
    return bool((last < bounds[_blocks_of(parts, bounds) + 1]).all())


def _blocks_of(parts: Parts, bounds: arrays.IntArray) -> arrays.IntArray:
    return np.searchsorted(bounds, parts.dst, side="right") - 1


def read_box_shape(
    extent: Sequence[int], chunks: tuple[int, ...] | None, itemsize: int
) -> tuple[int, ...]:
    """Return the shape of the box that is read at once: a chunk, or a range of bytes."""
    if chunks is not None:
        return chunks
    return choose_tile(extent, (1,) * len(extent), itemsize, CONTIGUOUS_GAP_NBYTES)


def count_chunk_reads(
    parts: Parts, bounds: arrays.IntArray, extent: Sequence[int], cell: Sequence[int]
) -> tuple[int, int]:
    """Count the cells that parts touch: the sum over all blocks, and the distinct ones.

    The sum is the number of reads if each block is read by itself. A part no larger than a
    cell counts only in the cell of its first element.
    """
    reach = (parts.shape - 1) * parts.step
    if parts.single_elements or (reach < np.array(cell, dtype=np.int64)).all():
        number, _ = locate(parts.start, cell, extent)
        distinct, cell_of_part = arrays.renumber(number)
        pairs, _ = arrays.renumber(_blocks_of(parts, bounds) * len(distinct) + cell_of_part)
        return len(pairs), len(distinct)
    for axis, width in enumerate(cell):
        if (parts.step[:, axis] > width).any():
            parts = cut_axis(parts, axis, width)
    block = _blocks_of(parts, bounds)
    order = np.argsort(block, kind="stable")
    cuts = np.append(arrays.run_starts(block[order]), len(order))
    visits = sum(
        len(part_chunks(take_parts(parts, order[a:b]), cell, extent))
        for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)
    )
    return visits, len(part_chunks(parts, cell, extent))


def plan_shares(
    parts: Parts, bounds: arrays.IntArray, extent: Sequence[int], tile: Sequence[int]
) -> PartitionedBoxes:
    """Cut parts at the borders of tiles and sort them by tile and block.

    Parameters
    ----------
    parts : Parts
        Each lies within one block.
    bounds : numpy.ndarray
        As in `fit_dask_blocks`.
    extent : sequence of int
        Shape of the dataset.
    tile : sequence of int
        Shape of a partition: whole chunks.
    """
    for axis, width in enumerate(tile):
        parts = cut_axis(parts, axis, width)
    n_blocks = len(bounds) - 1
    block = _blocks_of(parts, bounds)
    tiles, number = arrays.renumber(locate(parts.start, tile, extent)[0])
    place = number * n_blocks + block
    group, _ = group_rows(parts)
    order = sort_pairs(place, group)
    parts, place = take_parts(parts, order), place[order]
    edges = np.arange(len(tiles))[:, np.newaxis] * n_blocks + np.arange(n_blocks + 1)
    first = np.searchsorted(place, edges)
    ends = arrays.row_offsets(_sizes(parts))
    begins = ends[first[:, 0]]
    return PartitionedBoxes(
        parts=replace(parts, dst=parts.dst - bounds[place % n_blocks]),
        src=ends[:-1] - np.repeat(begins, first[:, -1] - first[:, 0]),
        first=first,
        offset=ends[first] - begins[:, np.newaxis],
    )
