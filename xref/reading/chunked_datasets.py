"""Chunks of many small datasets, decoded into one flat array.

In: `ChunkedDatasets` of one type, and the first element of each in a flat array. Out: the
array, filled.

1. Compute, as columns, the position of each chunk in its dataset and in the array.
2. Sort the chunks by their offset in the file. One read takes neighbours together; it is one
   job for the threads of `xref.reading.worker_threads`.
3. Decode a chunk that lies within the extent directly into the array. Decode a chunk that
   exceeds the extent into a buffer, and copy the elements within the extent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xref import arrays
from xref.errors import CorruptFileError
from xref.hdf5 import ChunkColumns, FilterPipeline, decode_chunk
from xref.reading.worker_threads import share_work
from xref.storage import count


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkedDatasets:
    """n datasets of the same type, fill value and filter pipeline, and their chunks."""

    shape: arrays.IntArray  # (n, widest), filled up with 1
    chunk_shape: arrays.IntArray  # (n, widest), filled up with 1
    ndim: arrays.IntArray  # (n,), at least 1
    chunks: ChunkColumns  # of the n datasets
    pipeline: FilterPipeline
    unwritten_value: Any
    describe: Callable[[int], str]  # names dataset i in errors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Placement:
    """Positions of m chunks in their datasets and in the flat array, in elements."""

    owner: arrays.IntArray  # (m,), dataset
    corner: arrays.IntArray  # (m, widest), first element in the dataset
    kept: arrays.IntArray  # (m, widest), elements along each axis within the extent
    first: arrays.IntArray  # (m,), first element in the flat array
    stride: arrays.IntArray  # (n, widest), between neighbours along each axis of a dataset
    volume: arrays.IntArray  # (n,), elements of a chunk of each dataset
    whole: arrays.BoolArray  # (m,), whether the extent contains the whole chunk
    in_line: arrays.BoolArray  # (m,), whether the kept elements are contiguous


def read_chunked_datasets(
    source: arrays.ByteSource,
    datasets: ChunkedDatasets,
    out: npt.NDArray[Any],
    dst: arrays.IntArray,
) -> None:
    """Read all elements of chunked datasets.

    Parameters
    ----------
    source : ByteSource
        The file.
    datasets : ChunkedDatasets
        n datasets.
    out : numpy.ndarray
        1-D, contiguous, of the datasets' dtype.
    dst : numpy.ndarray
        Shape ``(n,)``: first element of each dataset in ``out``. Datasets do not overlap.

    Raises
    ------
    CorruptFileError
        If a chunk does not decode to exactly its size.
    """
    chunks = datasets.chunks
    _fill_missing(datasets, out, dst)
    if not len(chunks.offset):
        return
    places = _place_chunks(datasets, dst)
    order = np.argsort(chunks.offset, kind="stable")
    offset, nbytes = chunks.offset[order], chunks.nbytes[order]
    if not source.remote:
        _read_chunks(source, datasets, places, order, out)
        return
    for stage, held in arrays.fetch_stages(source, np.arange(len(order) + 1), offset, nbytes):
        _read_chunks(held, datasets, places, order[stage.start : stage.stop], out, gap=0)


def _read_chunks(
    source: arrays.ByteSource,
    datasets: ChunkedDatasets,
    places: _Placement,
    order: npt.NDArray[np.intp],
    out: npt.NDArray[Any],
    gap: int = arrays.GAP_NBYTES,
) -> None:
    """Read chunks, given in the order of the file."""
    chunks = datasets.chunks
    offset, nbytes = chunks.offset[order], chunks.nbytes[order]
    runs = arrays.group_ranges(offset, nbytes, gap)

    def read_run(number: int) -> None:
        begin, end = runs[number]
        first = int(offset[begin])
        length = int((offset[begin:end] + nbytes[begin:end]).max()) - first
        data = arrays.scratch_buffer("read", length).data
        source.read_into(first, data)
        count(requests=1, nbytes=length, chunks_read=end - begin)
        _decode_run(data, first, order[begin:end], datasets, places, out)
        count(chunks_decoded=end - begin)

    share_work(len(runs), read_run)


def _fill_missing(
    datasets: ChunkedDatasets, out: npt.NDArray[Any], dst: arrays.IntArray
) -> None:
    """Fill the datasets that lack a chunk with the value of unwritten elements."""
    room = (-(-datasets.shape // datasets.chunk_shape)).prod(axis=1)
    missing = room - np.diff(datasets.chunks.cut)
    partial = np.flatnonzero(missing)
    if len(partial):
        npoints = datasets.shape[partial].prod(axis=1)
        out[arrays.ragged_ranges(dst[partial], npoints)] = datasets.unwritten_value
        count(chunks_missing=int(missing.sum()))


def _place_chunks(datasets: ChunkedDatasets, dst: arrays.IntArray) -> _Placement:
    """Compute the positions of chunks."""
    shape, chunk, chunks = datasets.shape, datasets.chunk_shape, datasets.chunks
    owner = np.repeat(np.arange(len(shape)), np.diff(chunks.cut))
    grid = -(-shape // chunk)
    stride, corner = np.ones_like(shape), np.zeros((len(owner), shape.shape[1]), dtype=np.int64)
    left = chunks.number
    for axis in reversed(range(shape.shape[1])):
        if axis + 1 < shape.shape[1]:
            stride[:, axis] = stride[:, axis + 1] * shape[:, axis + 1]
        left, cell = np.divmod(left, grid[owner, axis])
        corner[:, axis] = cell * chunk[owner, axis]
    kept = np.minimum(chunk[owner], shape[owner] - corner)
    # Contiguous elements cover all axes after the first axis that is longer than 1.
    behind = np.cumsum(kept > 1, axis=1) - (kept > 1) > 0
    in_line = (~behind | ((kept == shape[owner]) & (kept == chunk[owner]))).all(axis=1)
    return _Placement(
        owner=owner,
        corner=corner,
        kept=kept,
        first=dst[owner] + (corner * stride[owner]).sum(axis=1),
        stride=stride,
        volume=chunk.prod(axis=1),
        whole=(kept == chunk[owner]).all(axis=1),
        in_line=in_line,
    )


def _decode_run(
    data: memoryview,
    first: int,
    rows: npt.NDArray[np.intp],
    datasets: ChunkedDatasets,
    places: _Placement,
    out: npt.NDArray[Any],
) -> None:
    """Decode chunks that were read together, from byte ``first`` of the file on."""
    chunks = datasets.chunks
    owner = places.owner[rows]
    columns = zip(
        rows.tolist(),
        owner.tolist(),
        (chunks.offset[rows] - first).tolist(),
        chunks.nbytes[rows].tolist(),
        chunks.filter_mask[rows].tolist(),
        places.first[rows].tolist(),
        places.volume[owner].tolist(),
        places.kept[rows].prod(axis=1).tolist(),
        places.whole[rows].tolist(),
        places.in_line[rows].tolist(),
        strict=True,
    )
    for row, k, buffer_offset, nbytes, mask, begin, volume, n_kept, whole, in_line in columns:
        if whole and in_line:
            window = out[begin : begin + volume]
        elif whole:
            ndim = int(datasets.ndim[k])
            shape = datasets.chunk_shape[k, :ndim].tolist()
            window = _strided_window(out, begin, shape, places.stride[k, :ndim])
        else:
            window = arrays.scratch_buffer("chunk", volume * out.itemsize).view(out.dtype)
        try:
            stored = data[buffer_offset : buffer_offset + nbytes]
            decode_chunk(stored, window, datasets.pipeline, mask)
        except CorruptFileError as error:
            element = tuple(places.corner[row, : datasets.ndim[k]].tolist())
            where = f"{datasets.describe(k)}, chunk at {element}"
            raise CorruptFileError(f"{where}: {error}") from error
        if whole:
            continue
        if in_line:
            out[begin : begin + n_kept] = window[:n_kept]
        else:
            shape = places.kept[row].tolist()
            corner = tuple(slice(0, n) for n in shape)
            target = _strided_window(out, begin, shape, places.stride[k])
            target[...] = window.reshape(datasets.chunk_shape[k])[corner]


def _strided_window(
    out: npt.NDArray[Any], begin: int, shape: list[int], stride: arrays.IntArray
) -> npt.NDArray[Any]:
    """Return a view of a flat array as a box of elements; strides in elements."""
    itemsize = out.itemsize
    strides = (stride * itemsize).tolist()
    return np.ndarray(shape, out.dtype, out.view(np.uint8), begin * itemsize, strides)
