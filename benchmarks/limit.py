"""How fast the same work can go: ``python benchmarks/limit.py --work W1,W3.lz4``.

A prototype without a package around it: open the file, read the chunk index, read each
needed chunk once (neighbours in the file with one `preadv`), decompress it once
into its array, and copy the regions out. The places of the regions are given,
so references cost nothing here. It runs with one and two threads, with imagecodecs and
with zlib alone. Results are compared with h5py's.

W1, W1s, W4 and W5 hold the whole image in memory, in a buffer that is kept between
runs, because a reader that works piece by piece needs no new memory
either. W2 gathers from a memory map. W3 reads the movie in slabs of one chunk
along time. The time of W4 includes the mean of each region.
"""

import argparse
import functools
import itertools
import os
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401, gives h5py its filters, which the checks need
import numpy as np
from common import (
    CALM,
    Truth,
    add_data_argument,
    calm_laps,
    describe_machine,
    median,
    print_table,
    settle_memory,
    timed,
    wait_for_calm,
    warm,
)
from numpy.lib.stride_tricks import sliding_window_view

BOX = 32
MOVIE_BOX = 16
READ_GAP_NBYTES = 1 << 16
READ_NBYTES = 1 << 20
N_COPIES = 16
SETTLED_NBYTES = 1 << 30
MOVIE_CODECS = {"lz4": "blosc", "zstd": "zstd", "lzf": "lzf"}
WORKS = ("W1", "W1s", "W2", "W3.lz4", "W3.zstd", "W3.lzf", "W4", "W5")

_local = threading.local()


def scratch(name, nbytes):
    """Return a buffer of this thread."""
    buffer = getattr(_local, name, None)
    if buffer is None or len(buffer) < nbytes:
        buffer = np.empty(nbytes, "u1")
        setattr(_local, name, buffer)
    return buffer[:nbytes]


def plain(stored, _=None):
    """Return stored bytes that no filter changed."""
    return np.frombuffer(stored, "u1")


def find_decoder(name):
    """Return a function of stored bytes and the size that they decode to."""
    if name == "none":
        return plain
    if name == "zlib":
        return lambda stored, nbytes: np.frombuffer(zlib.decompress(stored, 15, nbytes), "u1")
    import imagecodecs

    options = {"numthreads": 1} if name == "blosc" else {}
    decode = functools.partial(getattr(imagecodecs, f"{name}_decode"), **options)
    return lambda stored, nbytes: decode(stored, out=scratch("decoded", nbytes))


def place(decoded, window, shuffled):
    """Write a chunk into its window, undoing the byte shuffle."""
    itemsize = window.dtype.itemsize
    if not shuffled or itemsize == 1:
        window[...] = decoded.view(window.dtype).reshape(window.shape)
    elif itemsize == 2:  # integers; twice as fast as storing the bytes one by one
        low, high = decoded.reshape(2, *window.shape)
        np.multiply(high, np.uint16(256), out=window, dtype="u2")
        np.add(window, low, out=window)
    else:
        items = window[..., np.newaxis].view("u1")
        for i, plane in enumerate(decoded.reshape(itemsize, *window.shape)):
            items[..., i] = plane


def chunk_index(dataset):
    """Return corner, address, size and filter mask of each stored chunk."""
    found = []
    dataset.id.chunk_iter(found.append)
    corner = np.array([chunk.chunk_offset for chunk in found])
    address = np.fromiter((chunk.byte_offset for chunk in found), "i8", len(found))
    nbytes = np.fromiter((chunk.size for chunk in found), "i8", len(found))
    mask = np.fromiter((chunk.filter_mask for chunk in found), "i8", len(found))
    return corner, address, nbytes, mask


def read_runs(address, nbytes):
    """Group chunks that lie next to each other: lists of (row, address, size)."""
    runs = []
    for row in np.argsort(address, kind="stable").tolist():
        chunk = (row, int(address[row]), int(nbytes[row]))
        if runs:
            _, first, _ = runs[-1][0]
            _, last, length = runs[-1][-1]
            gap = chunk[1] - last - length
            if gap <= READ_GAP_NBYTES and chunk[1] + chunk[2] - first <= READ_NBYTES:
                runs[-1].append(chunk)
                continue
        runs.append([chunk])
    return runs


def read_run(descriptor, run):
    """Read one run and yield each chunk's row and bytes."""
    first, end = run[0][1], run[-1][1] + run[-1][2]
    buffer = memoryview(scratch("stored", end - first))
    if os.preadv(descriptor, [buffer], first) != end - first:
        raise OSError(f"{end - first} bytes at {first} came short")
    for row, address, nbytes in run:
        yield row, buffer[address - first : address - first + nbytes]


def in_threads(function, items, threads):
    if threads == 1:
        for item in items:
            function(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(function, items):
            pass


class Laps(dict):
    """Seconds by stage."""

    def __init__(self):
        self.last = time.perf_counter()

    def end(self, stage):
        """Give the time since the last stage to this one."""
        now = time.perf_counter()
        self[stage] = now - self.last
        self.last = now


def chunks_of_boxes(start, shape, chunks, grid):
    """Mark the chunks that boxes touch."""
    marks = np.zeros(grid, bool)
    low, high = start // chunks, (start + shape - 1) // chunks
    if (high - low).max() > 1:
        for (y0, x0), (y1, x1) in zip(low.tolist(), high.tolist(), strict=True):
            marks[y0 : y1 + 1, x0 : x1 + 1] = True
        return marks
    for corner in itertools.product((0, 1), repeat=2):
        cells = np.minimum(low + corner, high)
        marks[cells[:, 0], cells[:, 1]] = True
    return marks


def needed_chunks(work, truth, chunks, grid):
    """Mark the chunks of the image that the regions of a workload touch."""
    if work == "W5":
        marks = np.zeros(grid, bool)
        cells = truth.points.reshape(-1, 2) // chunks
        marks[cells[:, 0], cells[:, 1]] = True
        return marks
    return chunks_of_boxes(*image_boxes(work, truth), chunks, grid)


def image_boxes(work, truth):
    if work == "W4":
        return truth.ragged_start, truth.ragged_shape
    start = truth.rois[:500] if work == "W1s" else truth.rois
    return start, np.full_like(start, BOX)


def load_image(path, variable, codec, threads, laps, find_needed):
    """Read and decode the needed chunks of a chunked image; the rest is left as it is.

    ``find_needed(chunks, grid)`` marks them.
    """
    decode = find_decoder(codec)
    with h5py.File(path) as file:
        dataset = file[variable]
        extent, chunks, dtype = dataset.shape, np.array(dataset.chunks), dataset.dtype
        shuffled = bool(dataset.shuffle)
        corner, address, nbytes, mask = chunk_index(dataset)
    laps.end("open, index")
    cells = corner // chunks
    marks = find_needed(chunks, -(-np.array(extent) // chunks))
    kept = np.flatnonzero(marks[cells[:, 0], cells[:, 1]])
    corners, left_out = corner[kept].tolist(), mask[kept].tolist()
    runs = read_runs(address[kept], nbytes[kept])
    laps.end("plan")
    # One buffer for all runs: fresh memory of this size costs as much as decoding.
    raw = scratch("image", int(np.prod(extent)) * dtype.itemsize)
    image = raw.view(dtype).reshape(extent)
    height, width = chunks.tolist()
    chunk_nbytes = height * width * dtype.itemsize
    descriptor = os.open(path, os.O_RDONLY)

    def load(run):
        for row, stored in read_run(descriptor, run):
            y, x = corners[row]
            window = image[y : y + height, x : x + width]
            # LZF leaves a chunk as it is where that is shorter.
            decoded = plain(stored) if left_out[row] else decode(stored, chunk_nbytes)
            place(decoded, window, shuffled)

    in_threads(load, runs, threads)
    os.close(descriptor)
    laps.end("read, decode")
    return image


def run_image(work, truth, codec, threads):
    """W1, W1s, W4, W5: return seconds by stage, and the values."""
    codec = "deflate" if codec == "best" else codec
    path = truth.data / "w1.h5"
    laps = Laps()
    find_needed = functools.partial(needed_chunks, work, truth)
    image = load_image(path, "img", codec, threads, laps, find_needed)
    if work == "W4":
        values = copy_ragged(image, *image_boxes(work, truth))
    elif work == "W5":
        y, x = truth.points.reshape(-1, 2).T
        values = image.reshape(-1)[y * image.shape[1] + x].reshape(len(truth.points), -1)
    else:
        values = copy_boxes(image, image_boxes(work, truth)[0], threads)
    laps.end("copy")
    return laps, values


def run_boxes(path, variable, start, shape, codec, threads):
    """Return boxes of one shape from any chunked image whose chunks are all whole."""
    laps = Laps()
    find_needed = functools.partial(chunks_of_boxes, start, shape)
    image = load_image(path, variable, codec, threads, laps, find_needed)
    windows = sliding_window_view(image, tuple(shape[0].tolist()))
    values = windows[tuple(start.T)]
    laps.end("copy")
    return laps, values


def copy_boxes(image, start, threads):
    windows = sliding_window_view(image, (BOX, BOX))
    out = np.empty((len(start), BOX, BOX), image.dtype)
    y, x = start.T

    def copy(rows):
        out[rows] = windows[y[rows], x[rows]]

    cuts = np.linspace(0, len(start), N_COPIES + 1).astype(int).tolist()
    in_threads(copy, [slice(a, b) for a, b in itertools.pairwise(cuts)], threads)
    return out


def copy_ragged(image, start, shape):
    """Return the values of all boxes end to end, and the mean of each."""
    sizes = shape.prod(axis=1)
    ends = np.cumsum(sizes)
    out = np.empty(ends[-1], image.dtype)
    boxes = zip(start.tolist(), shape.tolist(), (ends - sizes).tolist(), strict=True)
    for (y, x), (height, width), begin in boxes:
        box = out[begin : begin + height * width].reshape(height, width)
        box[...] = image[y : y + height, x : x + width]
    return out, np.add.reduceat(out, ends - sizes, dtype="f8") / sizes


def run_contiguous(truth, threads):
    """W2: gather from a memory map."""
    laps = Laps()
    with h5py.File(truth.data / "w2.h5") as file:
        dataset = file["img"]
        offset, extent, dtype = dataset.id.get_offset(), dataset.shape, dataset.dtype
    image = np.memmap(truth.data / "w2.h5", dtype, "r", offset, extent)
    laps.end("open, index")
    values = copy_boxes(image, truth.rois, threads)
    laps.end("copy")
    return laps, values


def run_movie(name, truth, threads):
    """W3: one slab of chunks in time after the other."""
    decode = find_decoder(MOVIE_CODECS[name])
    path = truth.data / "w3.h5"
    laps = Laps()
    with h5py.File(path) as file:
        dataset = file[name]
        extent, chunks, dtype = dataset.shape, dataset.chunks, dataset.dtype
        shuffled = bool(dataset.shuffle)
        corner, address, nbytes, _ = chunk_index(dataset)
    n_frames, height, width = chunks
    chunk_nbytes = n_frames * height * width * dtype.itemsize
    slab = corner[:, 0] // n_frames
    by_slab = [np.flatnonzero(slab == i) for i in range(slab.max() + 1)]
    y, x = truth.movie[:, 1], truth.movie[:, 2]
    laps.end("open, index")
    values = np.empty((len(y), extent[0], MOVIE_BOX, MOVIE_BOX), dtype)
    descriptor = os.open(path, os.O_RDONLY)
    copying = []

    def load(i):
        raw = scratch("slab", n_frames * extent[1] * extent[2] * dtype.itemsize)
        frames = raw.view(dtype).reshape(n_frames, *extent[1:])
        rows = by_slab[i]
        corners = corner[rows].tolist()
        for run in read_runs(address[rows], nbytes[rows]):
            for row, stored in read_run(descriptor, run):
                _, top, left = corners[row]
                window = frames[:, top : top + height, left : left + width]
                place(decode(stored, chunk_nbytes), window, shuffled)
        begin = time.perf_counter()
        windows = sliding_window_view(frames, (n_frames, MOVIE_BOX, MOVIE_BOX))[0]
        values[:, i * n_frames : (i + 1) * n_frames] = windows[y, x]
        copying.append(time.perf_counter() - begin)

    in_threads(load, range(len(by_slab)), threads)
    os.close(descriptor)
    laps.end("read, decode")
    laps["copy"] = sum(copying) / threads  # of the threads' time, in their common stage
    laps["read, decode"] -= laps["copy"]
    return laps, values


def run_limit(work, truth, codec="best", threads=2):
    """Run one workload; return seconds by stage, and the values."""
    if work == "W2":
        return run_contiguous(truth, threads)
    if work.startswith("W3."):
        return run_movie(work[3:], truth, threads)
    return run_image(work, truth, codec, threads)


@functools.cache
def whole_image(data):
    with h5py.File(Path(data) / "w1.h5") as file:
        return file["img"][...]


def check_values(work, truth, values):
    """Compare with h5py: everything of the images, four regions of the movie."""
    if work.startswith("W3."):
        with h5py.File(truth.data / "w3.h5") as file:
            movie = file[work[3:]]
            for i in np.linspace(0, len(truth.movie) - 1, 4).astype(int).tolist():
                y, x = truth.movie[i, 1:].tolist()
                expected = movie[:, y : y + MOVIE_BOX, x : x + MOVIE_BOX]
                np.testing.assert_array_equal(values[i], expected)
        return
    image = whole_image(str(truth.data))
    if work == "W4":
        flat, means = copy_ragged(image, *image_boxes(work, truth))
        np.testing.assert_array_equal(values[0], flat)
        np.testing.assert_allclose(values[1], means)
    elif work == "W5":
        np.testing.assert_array_equal(values, image[truth.points[..., 0], truth.points[..., 1]])
    else:
        start = image_boxes("W1" if work == "W2" else work, truth)[0]
        np.testing.assert_array_equal(values, copy_boxes(image, start, 1))


def data_file(work):
    return {"W2": "w2.h5", "W3": "w3.h5"}.get(work[:2], "w1.h5")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_argument(parser)
    parser.add_argument("--work", default=",".join(WORKS))
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--threads", default="1,2")
    arguments = parser.parse_args()
    truth = Truth(Path(arguments.data))
    print(describe_machine(), end="\n\n")
    rows = []
    for work in arguments.work.split(","):
        warm(truth.data / data_file(work))
        codecs = ("best", "zlib") if work in ("W1", "W1s", "W4", "W5") else ("best",)
        cases = [(c, int(n)) for c in codecs for n in arguments.threads.split(",")]
        found = {case: [] for case in cases}
        for rep in range(arguments.reps):
            for case in cases:
                wait_for_calm()
                settle_memory(SETTLED_NBYTES)
                with timed() as lap:
                    stages, values = run_limit(work, truth, *case)
                lap.stages = stages
                found[case].append(lap)
                if rep == 0:
                    check_values(work, truth, values)
                del values
        for (codec, threads), laps in found.items():
            calm = calm_laps(laps)
            row = {"work": work, "codec": codec, "threads": threads}
            for stage in ("open, index", "plan", "read, decode", "copy"):
                row[stage] = median([lap.stages.get(stage, 0.0) for lap in calm])
            row |= {
                "total, s": median([lap.wall for lap in calm]),
                "CPU, s": median([lap.cpu for lap in calm]),
                "least, s": min(lap.wall for lap in laps),
                "calm": f"{sum(lap.others < CALM for lap in laps)}/{len(laps)}",
            }
            rows.append(row)
    print_table(rows)


if __name__ == "__main__":
    main()
