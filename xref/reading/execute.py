"""Execution of a plan: each chunk is read once, decompressed once, and copied out.

In: a `ReadPlan`, a loader that fills the canvas of one tile, the flat output. Out: the output,
filled.

Tiles are independent, so each thread takes one tile at a time. The thread fills its canvas
(one positional read takes chunks that are neighbours in the file), then copies all pieces of
one shape with one fancy index. Reading, decompressing and copying release the GIL.

Every thread has its own canvas and read buffer; loaders have no mutable state. No two pieces
share an element of the output, so threads write to the output without a lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from xref.arrays import (
    SMALL_NBYTES,
    ByteSource,
    IntArray,
    canvas_strides,
    fetch_stages,
    group_ranges,
    row_offsets,
    scratch_buffer,
)
from xref.errors import CorruptFileError, FileReadError, UnsupportedError, located
from xref.hdf5 import ChunkIndex, DatasetLayout, decode_chunk
from xref.reading.box_copies import copy_boxes
from xref.reading.plan import CONTIGUOUS_GAP_NBYTES, ReadPlan
from xref.reading.worker_threads import share_work
from xref.storage import count

READ_GAP_NBYTES = 1 << 16
"""Largest gap in bytes between two chunks of one read (benchmarks/tiles.py)."""

READ_NBYTES = 1 << 20
"""Largest number of bytes of one read, unless a chunk is larger."""


class TileLoader(Protocol):
    """Fills the canvas of one tile, at least the elements of the plan's pieces."""

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """Chunk shape of the dataset; None if it is not chunked."""

    def load(self, plan: ReadPlan, tile: int, canvas: npt.NDArray[Any]) -> None:
        """Write the tile's values into ``canvas``, of shape ``plan.tile_shape``."""

    def ranges(self, plan: ReadPlan) -> TileRanges | None:
        """Return the byte ranges of tiles; None if they need not be fetched beforehand."""

    def with_source(self, source: ByteSource) -> TileLoader:
        """Return the same loader over another source, such as fetched ranges."""


class ChunkCheck(Protocol):
    """Decodes chunks before HDF5 does."""

    def check(self, numbers: IntArray) -> None:
        """Raise if the chunks of these numbers do not decode to exactly their size."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileRanges:
    """The byte ranges that the tiles of a plan read from a remote file."""

    source: ByteSource
    cut: IntArray  # (t + 1,), first range of each tile
    offset: IntArray  # (n,), bytes
    nbytes: IntArray  # (n,)


class _OfLayout:
    """Base of the loaders: it gives the chunk shape from the layout."""

    __slots__ = ()
    layout: DatasetLayout

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """Chunk shape of the dataset."""
        return self.layout.chunks


@dataclass(frozen=True, slots=True)
class ChunkLoader(_OfLayout):
    """Reads and decompresses chunks without HDF5."""

    layout: DatasetLayout
    index: ChunkIndex
    source: ByteSource
    read_box: Callable[[tuple[int, ...], npt.NDArray[Any]], None]
    where: object  # becomes text in errors
    gap_nbytes: int = READ_GAP_NBYTES

    def load(self, plan: ReadPlan, tile: int, canvas: npt.NDArray[Any]) -> None:
        """Decode the tile's chunks, each once, into the canvas."""
        numbers = plan.chunk[plan.chunk_cut[tile] : plan.chunk_cut[tile + 1]]
        chunks = np.array(self.layout.cell, dtype=np.int64)
        cells = np.stack(np.unravel_index(numbers, self.layout.grid), axis=1)
        corners = (cells * chunks - plan.tile_origin[tile]).tolist()
        rows = self.index.find(numbers)
        for i in np.flatnonzero(rows < 0).tolist():
            self._window(canvas, corners[i])[...] = self.layout.unwritten_value
            count(chunks_missing=1)
        stored = np.flatnonzero(rows >= 0)
        rows = rows[stored]
        order = np.argsort(self.index.address[rows], kind="stable")
        stored, rows = stored[order].tolist(), rows[order]
        offset, sizes = self.index.address[rows], self.index.nbytes[rows]
        runs = group_ranges(offset, sizes, self.gap_nbytes, READ_NBYTES)
        address, nbytes = offset.tolist(), sizes.tolist()
        masks = self.index.filter_mask[rows].tolist()
        for begin, end in runs:
            first = address[begin]
            length = max(address[i] + nbytes[i] for i in range(begin, end)) - first
            data = scratch_buffer("read", length).data
            self.source.read_into(first, data)
            count(requests=1, nbytes=length, chunks_read=end - begin)
            for i in range(begin, end):
                at = address[i] - first
                try:
                    decode_chunk(
                        data[at : at + nbytes[i]],
                        self._window(canvas, corners[stored[i]]),
                        self.layout.pipeline,
                        masks[i],
                    )
                except UnsupportedError as error:
                    # The chunk is too large for the codec, which only its size shows.
                    if self.layout.pipeline.packers:
                        element = tuple((cells[stored[i]] * chunks).tolist())
                        raise located(error, f"{self.where}, chunk at {element}") from error
                    self._read_box(cells[stored[i]] * chunks, canvas, corners[stored[i]])
                except CorruptFileError as error:
                    element = tuple((cells[stored[i]] * chunks).tolist())
                    raise located(error, f"{self.where}, chunk at {element}") from error
            count(chunks_decoded=end - begin)

    def ranges(self, plan: ReadPlan) -> TileRanges | None:
        """Return the byte ranges of the chunks of tiles."""
        if not self.source.remote:
            return None
        rows = self.index.find(plan.chunk)
        stored = np.flatnonzero(rows >= 0)
        offset, nbytes = np.zeros((2, len(rows)), dtype=np.int64)  # missing chunks have 0 bytes
        offset[stored] = self.index.address[rows[stored]]
        nbytes[stored] = self.index.nbytes[rows[stored]]
        return TileRanges(source=self.source, cut=plan.chunk_cut, offset=offset, nbytes=nbytes)

    def with_source(self, source: ByteSource) -> ChunkLoader:
        """Return the same loader over ``source``, which has the bytes of chunks only."""
        return replace(self, source=source, gap_nbytes=0)

    def check(self, numbers: IntArray) -> None:
        """Decode chunks and drop them, so that a wrong size or checksum raises."""
        shape = self.layout.cell
        nbytes = math.prod(shape) * self.layout.dtype.itemsize
        window = np.ndarray(shape, self.layout.dtype, scratch_buffer("canvas", nbytes).data)
        rows = self.index.find(numbers)
        for row in rows[rows >= 0].tolist():
            stored = scratch_buffer("read", int(self.index.nbytes[row]))
            data = stored.data
            self.source.read_into(int(self.index.address[row]), data)
            mask = int(self.index.filter_mask[row])
            try:
                decode_chunk(data, window, self.layout.pipeline, mask)
            except UnsupportedError as error:
                if self.layout.pipeline.packers:
                    raise located(error, self._name_chunk(row)) from error
                continue  # the chunk is too large for the codec: only HDF5 can decode it
            except CorruptFileError as error:
                raise located(error, self._name_chunk(row)) from error

    def _name_chunk(self, row: int) -> str:
        """Name a chunk in an error by its first element."""
        cell = np.unravel_index(int(self.index.number[row]), self.layout.grid)
        sides = zip(cell, self.layout.cell, strict=True)
        return f"{self.where}, chunk at {tuple(int(c) * n for c, n in sides)}"

    def _read_box(self, start: IntArray, canvas: npt.NDArray[Any], corner: list[int]) -> None:
        stop = np.minimum(start + self.layout.cell, self.layout.shape)
        sides = zip(corner, (stop - start).tolist(), strict=True)
        self.read_box(tuple(start.tolist()), canvas[tuple(slice(c, c + n) for c, n in sides)])

    def _window(self, canvas: npt.NDArray[Any], corner: list[int]) -> npt.NDArray[Any]:
        cell = self.layout.cell
        return canvas[tuple(slice(c, c + n) for c, n in zip(corner, cell, strict=True))]


@dataclass(frozen=True, slots=True)
class ContiguousLoader(_OfLayout):
    """Reads ranges of contiguous data straight into the canvas."""

    layout: DatasetLayout
    source: ByteSource
    gap_nbytes: int = CONTIGUOUS_GAP_NBYTES

    def load(self, plan: ReadPlan, tile: int, canvas: npt.NDArray[Any]) -> None:
        """Read the elements of the tile's pieces; a tile is one range of the file."""
        if self.layout.offset is None:
            canvas[...] = self.layout.unwritten_value
            return
        itemsize = self.layout.dtype.itemsize
        origin = np.array(canvas_strides(self.layout.shape), dtype=np.int64)
        first = int((plan.tile_origin[tile] * origin).sum())
        flat = canvas.reshape(-1).view(np.uint8).data
        for start, stop in plan.piece_ranges(tile, self.gap_nbytes // max(itemsize, 1)):
            self.read_run(first + start, flat[start * itemsize : stop * itemsize])

    def ranges(self, plan: ReadPlan) -> TileRanges | None:
        """Return the byte ranges of the pieces of tiles."""
        if not self.source.remote or self.layout.offset is None:
            return None
        itemsize = self.layout.dtype.itemsize
        strides = np.array(canvas_strides(self.layout.shape), dtype=np.int64)
        first = (plan.tile_origin * strides).sum(axis=1).tolist()
        gap = SMALL_NBYTES // max(itemsize, 1)
        ranges = [plan.piece_ranges(tile, gap) for tile in range(plan.n_tiles)]
        flat = [(a + p, b - a) for p, tile in zip(first, ranges, strict=True) for a, b in tile]
        columns = np.array(flat, dtype=np.int64).reshape(-1, 2) * itemsize
        return TileRanges(
            source=self.source,
            cut=row_offsets(np.array([len(tile) for tile in ranges], dtype=np.int64)),
            offset=self.layout.offset + columns[:, 0],
            nbytes=columns[:, 1],
        )

    def with_source(self, source: ByteSource) -> ContiguousLoader:
        """Return the same loader over ``source``."""
        return replace(self, source=source, gap_nbytes=SMALL_NBYTES)

    def read_run(self, first: int, data: memoryview) -> None:
        """Fill ``data`` with stored elements, from element ``first`` in C order on."""
        if self.layout.offset is None:
            raise ValueError("a dataset without storage has no elements to read")
        self.source.read_into(self.layout.offset + first * self.layout.dtype.itemsize, data)
        count(requests=1, nbytes=len(data))


@dataclass(frozen=True, slots=True)
class BoxLoader(_OfLayout):
    """Reads boxes of whole chunks by a function that calls h5py, under its lock."""

    layout: DatasetLayout
    read_box: Callable[[tuple[int, ...], npt.NDArray[Any]], None]
    check: ChunkCheck | None = None

    def load(self, plan: ReadPlan, tile: int, canvas: npt.NDArray[Any]) -> None:
        """Read each needed chunk once; neighbours along the last axis together."""
        chunks = self.layout.chunks
        origin = plan.tile_origin[tile]
        if chunks is None:
            self._read(origin.tolist(), plan.tile_shape, origin, canvas)
            return
        numbers = plan.chunk[plan.chunk_cut[tile] : plan.chunk_cut[tile + 1]]
        if self.check is not None:
            self.check.check(numbers)
        # A run of chunks ends where the numbers jump, or at the end of a row of the grid.
        new = (np.diff(numbers, prepend=-2) != 1) | (numbers % self.layout.grid[-1] == 0)
        begins = np.flatnonzero(new)
        lengths = np.diff(np.append(begins, len(numbers)))
        cells = np.stack(np.unravel_index(numbers[begins], self.layout.grid), axis=1)
        for cell, length in zip(cells.tolist(), lengths.tolist(), strict=True):
            start = [c * n for c, n in zip(cell, chunks, strict=True)]
            self._read(start, (*chunks[:-1], chunks[-1] * length), origin, canvas)
            count(chunks_read=length, chunks_decoded=length, requests=1)

    def ranges(self, plan: ReadPlan) -> TileRanges | None:
        """Return None: HDF5 itself requests the bytes."""

    def with_source(self, source: ByteSource) -> BoxLoader:
        """Return the loader itself, which reads through HDF5."""
        return self

    def _read(
        self, start: list[int], box: tuple[int, ...], origin: IntArray, canvas: npt.NDArray[Any]
    ) -> None:
        stop = [min(s + n, e) for s, n, e in zip(start, box, self.layout.shape, strict=True)]
        sides = zip(start, stop, origin.tolist(), strict=True)
        corner: tuple[Any, ...] = tuple(slice(a - o, b - o) for a, b, o in sides)
        window = canvas[(*corner, Ellipsis)]  # an array even without axes
        self.read_box(tuple(start), window)


@dataclass(frozen=True, slots=True)
class UndefinedLoader(_OfLayout):
    """Refuses to read a dataset of which no element has a value.

    `DatasetLayout.unwritten_value` has the rule. A selection without elements has no tiles.
    """

    layout: DatasetLayout
    where: object  # becomes text in errors

    def load(self, plan: ReadPlan, tile: int, canvas: npt.NDArray[Any]) -> None:
        """Raise `FileReadError`."""
        raise FileReadError(
            f"{self.where} has no values: nothing was written to it, and its fill value is "
            "undefined"
        )

    def ranges(self, plan: ReadPlan) -> TileRanges | None:
        """Return None: there is nothing to fetch."""

    def with_source(self, source: ByteSource) -> UndefinedLoader:
        """Return the loader itself."""
        return self


def read_plan(plan: ReadPlan, loader: TileLoader, out: npt.NDArray[Any]) -> None:
    """Carry out a plan.

    Parameters
    ----------
    plan : ReadPlan
        From `xref.reading.plan.plan_read`.
    loader : TileLoader
        Loader of the dataset of the plan.
    out : numpy.ndarray
        1-D and contiguous, of the dataset's dtype; the pieces of the plan are written.
    """
    ranges = loader.ranges(plan)
    if ranges is None:
        _read_tiles(plan, loader, range(plan.n_tiles), out)
        return
    for tiles, held in fetch_stages(ranges.source, ranges.cut, ranges.offset, ranges.nbytes):
        _read_tiles(plan, loader.with_source(held), tiles, out)


def _read_tiles(
    plan: ReadPlan, loader: TileLoader, tiles: range, out: npt.NDArray[Any]
) -> None:
    share_work(len(tiles), lambda i: _read_tile(plan, loader, tiles[i], out))


def _whole_chunks(
    plan: ReadPlan, chunks: tuple[int, ...] | None, tile: int
) -> tuple[IntArray, tuple[int, ...]] | None:
    """Return origin and shape of a tile's piece if it is a box of whole chunks."""
    begin = int(plan.piece_cut[tile])
    if int(plan.piece_cut[tile + 1]) - begin != 1 or chunks is None:
        return None
    group = int(plan.group[begin])
    shape = plan.group_shape[group]
    inside = np.unravel_index(int(plan.src[begin]), plan.tile_shape)
    origin = plan.tile_origin[tile] + np.array(inside, dtype=np.int64)
    cell = np.array(chunks, dtype=np.int64)
    if (plan.group_step[group] != 1).any() or (origin % cell).any() or (shape % cell).any():
        return None
    n_chunks = int(plan.chunk_cut[tile + 1] - plan.chunk_cut[tile])
    return (origin, tuple(shape.tolist())) if n_chunks == (shape // cell).prod() else None


def _load_in_place(
    plan: ReadPlan, loader: TileLoader, tile: int, out: npt.NDArray[Any]
) -> bool:
    """Decode a tile of whole chunks into the output, without a canvas and a copy."""
    whole = _whole_chunks(plan, loader.chunks, tile)
    if whole is None or out.dtype.hasobject:
        return False
    origin, shape = whole
    strides = plan.group_dst_stride[int(plan.group[int(plan.piece_cut[tile])])]
    if strides[-1] != 1:
        return False
    itemsize, first = out.dtype.itemsize, int(plan.dst[int(plan.piece_cut[tile])])
    window = np.ndarray(
        shape, out.dtype, out.view(np.uint8), first * itemsize, (strides * itemsize).tolist()
    )
    origins = plan.tile_origin.copy()
    origins[tile] = origin
    loader.load(replace(plan, tile_shape=shape, tile_origin=origins), tile, window)
    return True


def _read_tile(plan: ReadPlan, loader: TileLoader, tile: int, out: npt.NDArray[Any]) -> None:
    if _load_in_place(plan, loader, tile, out):
        return
    n_elements = math.prod(plan.tile_shape)
    if out.dtype.hasobject:
        canvas = np.empty(plan.tile_shape, dtype=out.dtype)
    else:
        raw = scratch_buffer("canvas", n_elements * out.dtype.itemsize)
        canvas = np.ndarray(plan.tile_shape, out.dtype, raw.data)
    loader.load(plan, tile, canvas)
    rows = slice(int(plan.piece_cut[tile]), int(plan.piece_cut[tile + 1]))
    strides = np.array(canvas_strides(plan.tile_shape), dtype=np.int64)
    copy_boxes(
        (canvas.reshape(-1), plan.src[rows], plan.group_step * strides),
        (out, plan.dst[rows], plan.group_dst_stride),
        plan.group_shape,
        plan.group[rows],
    )
