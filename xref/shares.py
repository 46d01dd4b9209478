"""Parts of many blocks of an output, divided by the chunks that they read.

In: the parts of one dataset, placed in a flat output that is cut into blocks. Out:
`Shares`: the parts cut at the borders of large boxes of whole chunks, sorted by box,
then by block. Each box is read once, into a buffer that holds its elements block
after block; each block is put together from its stretch of every buffer.

References in no order need this: a block of them alone touches nearly every chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xref.columns import FrozenColumns, IntArray, row_offsets
from xref.copies import Side
from xref.parts import (
    Parts,
    canvas_strides,
    cut_axis,
    group_rows,
    linear,
    row_strides,
    sort_pairs,
    take_parts,
)
from xref.plan import CONTIGUOUS_GAP_NBYTES, choose_tile


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shares(FrozenColumns):
    """What to read of one dataset, share by share, and which block each part is for.

    Share s holds rows ``cut[s]:cut[s + 1]`` of the columns, in order of their blocks.
    """

    parts: Parts  # (m,), dst counts from the beginning of the block
    cut: IntArray  # (s + 1,)
    block: IntArray  # (m,), ascending within a share
    src: IntArray  # (m,), first element in the share's buffer
    size: IntArray  # (s,), elements of each share's buffer

    def __len__(self) -> int:
        return len(self.size)

    def share_parts(self, share: int) -> Parts:
        """Return the parts of one share, with their places in its buffer."""
        rows = np.arange(int(self.cut[share]), int(self.cut[share + 1]))
        parts = take_parts(self.parts, rows)
        stride = parts.dst_stride if parts.units else row_strides(parts.shape)
        return Parts(
            start=parts.start,
            shape=parts.shape,
            step=parts.step,
            dst=self.src[rows],
            dst_stride=stride,
        )

    def block_rows(self, share: int, block: int) -> slice:
        """Return the rows of one share that are for one block."""
        low, high = int(self.cut[share]), int(self.cut[share + 1])
        first, last = np.searchsorted(self.block[low:high], [block, block + 1]).tolist()
        return slice(low + first, low + last)

    def stretch(self, share: int, block: int) -> slice:
        """Return the elements of one share's buffer that are for one block."""
        rows = self.block_rows(share, block)
        if rows.start == rows.stop:
            return slice(0, 0)
        ends_share = rows.stop == int(self.cut[share + 1])
        stop = int(self.size[share]) if ends_share else int(self.src[rows.stop])
        return slice(int(self.src[rows.start]), stop)

    def block_boxes(
        self, block: int, flat: npt.NDArray[np.generic], out: npt.NDArray[np.generic]
    ) -> tuple[Side, Side, IntArray, IntArray]:
        """Return what `xref.copies.copy_boxes` takes to put one block together.

        Parameters
        ----------
        block : int
        flat : numpy.ndarray
            The block's stretches of all shares' buffers, one after the other.
        out : numpy.ndarray
            The block, 1-D.
        """
        found = [self.block_rows(share, block) for share in range(len(self))]
        rows = np.concatenate([np.arange(r.start, r.stop) for r in found])
        parts = take_parts(self.parts, rows)
        src = row_offsets(_sizes(parts))[:-1]
        group, representative = group_rows(parts)
        if len(found) > 1:
            order = np.argsort(group, kind="stable")
            group, src, dst = group[order], src[order], parts.dst[order]
        else:
            dst = parts.dst
        shape = parts.shape[representative]
        strides = parts.dst_stride[representative]
        return (flat, src, row_strides(shape)), (out, dst, strides), shape, group


def _sizes(parts: Parts) -> IntArray:
    if parts.units:
        return np.ones(len(parts), dtype=np.int64)
    sizes: IntArray = parts.shape.prod(axis=1)
    return sizes


def find_blocks(parts: Parts, bounds: IntArray) -> IntArray | None:
    """Return the block of the output that each part lies in; None if any lies in two.

    Parameters
    ----------
    parts : Parts
    bounds : numpy.ndarray
        Shape ``(b + 1,)``: block i is ``bounds[i]:bounds[i + 1]`` of the flat output.
    """
    block = np.searchsorted(bounds, parts.dst, side="right") - 1
    last = parts.dst
    if not parts.units:
        last = last + ((parts.shape - 1) * parts.dst_stride).sum(axis=1)
    return block if (last < bounds[block + 1]).all() else None


def storage_cell(
    extent: Sequence[int], chunks: tuple[int, ...] | None, itemsize: int
) -> tuple[int, ...]:
    """Return the box of elements that is read together: a chunk, or a range of bytes."""
    if chunks is not None:
        return chunks
    return choose_tile(extent, (1,) * len(extent), itemsize, CONTIGUOUS_GAP_NBYTES)


def count_visits(
    parts: Parts, block: IntArray, extent: Sequence[int], cell: Sequence[int]
) -> tuple[int, int]:
    """Count the cells that parts begin in.

    Returns
    -------
    visits : int
        Cells of each block, added up: what is read where blocks are read one by one.
    distinct : int
        Cells of all blocks.
    """
    grid = [-(-n // c) for n, c in zip(extent, cell, strict=True)]
    number = linear(parts.start // np.array(cell, dtype=np.int64), canvas_strides(grid))
    distinct, of = np.unique(number, return_inverse=True)
    pairs = block * len(distinct) + of.reshape(-1)
    return len(np.unique(pairs)), len(distinct)


def plan_shares(
    parts: Parts, block: IntArray, bounds: IntArray, extent: Sequence[int], tile: Sequence[int]
) -> Shares:
    """Cut parts at the borders of tiles and sort them by tile and block.

    Parameters
    ----------
    parts : Parts
    block, bounds : numpy.ndarray
        As in `find_blocks`.
    extent : sequence of int
        Shape of the dataset.
    tile : sequence of int
        Shape of a share, whole chunks.
    """
    origin = Parts(
        start=parts.start,
        shape=parts.shape,
        step=parts.step,
        # Which part a piece comes from survives the cuts in its place.
        dst=parts.dst,
        dst_stride=parts.dst_stride,
    )
    for axis, width in enumerate(tile):
        origin = cut_axis(origin, axis, width)
    if len(origin) != len(parts):
        block = np.searchsorted(bounds, origin.dst, side="right") - 1
    grid = [-(-n // t) for n, t in zip(extent, tile, strict=True)]
    cells = origin.start // np.array(tile, dtype=np.int64)
    number = linear(cells, canvas_strides(grid))
    group, _ = group_rows(origin)
    order = sort_pairs(block, group)
    order = order[np.argsort(number[order], kind="stable")]
    origin, block, number = take_parts(origin, order), block[order], number[order]
    cut = np.append(np.flatnonzero(np.diff(number, prepend=-1)), len(number))
    ends = row_offsets(_sizes(origin))
    return Shares(
        parts=Parts(
            start=origin.start,
            shape=origin.shape,
            step=origin.step,
            dst=origin.dst - bounds[block],
            dst_stride=origin.dst_stride,
        ),
        cut=cut,
        block=block,
        src=ends[:-1] - np.repeat(ends[cut[:-1]], np.diff(cut)),
        size=np.diff(ends[cut]),
    )
