"""Make the files that the benchmarks read: ``python benchmarks/files.py --data DIR``.

DIR is by default the environment variable XREF_BENCH_DATA, else ``./data``. The files take
about 2.6 GB. The same seeds give the same values, so runs can be compared. Existing files stay
as they are.

w1.h5
    ``img``: 8192 x 8192 u2, 256 x 256 chunks, shuffle and gzip 4. ``rois``: 50,000
    boxes of 32 x 32. ``ragged``: 20,000 boxes with sides of 4 to 64. ``points``: 2,000
    selections of 500 points, each within 128 x 128.
w2.h5
    The same, contiguous.
w3.h5
    A movie of 2,000 x 512 x 512 u2 in chunks of 20 x 128 x 128, three times: ``lz4``
    (Blosc with bitshuffle), ``zstd`` and ``lzf`` (with shuffle). ``rois_lz4`` and so
    on: 500 boxes of 16 x 16 over all frames.
w6.h5, w6_latest.h5
    1,000,000 region references in the old file format, 100,000 in the newest.
w7_1000.h5, w7_20000.h5
    ``cell``: 1,000 or 20,000 object references to float64 datasets of 100 to 200 values in
    ``#refs#``, as in a MATLAB cell array.
w8_1000.h5, w8_20000.h5
    1,000 or 20,000 variables of 10 values in the group ``g``.
w9.h5
    W1's image. ``rois``: 1,000,000 boxes of 8 x 8; ``few``: the first 1,000.
vary_*.h5
    An image of 2,048 x 8,192, one file for each chunk shape and filter of
    `variations.py`; the dtypes alternate. References to one element, to 32 x 32 and to
    2,000 x 2,000, in random order and sorted by place.
w1_truth.npz, w3_truth.npz, w6_truth.npz
    The places of the regions.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
from common import add_data_argument

IMAGE = 8192
BOX = 32
MOVIE = (2000, 512, 512)
MOVIE_BOX = 16
FRAMES = 20
REFERENCES_AT_ONCE = 50_000
CELLS = (1_000, 20_000)
VARIABLES = (1_000, 20_000)
MILLION = 1_000_000
FEW = 1_000
SMALL_BOX = 8

VARY_SHAPE = (2048, 8192)
VARY_CHUNKS = ((64, 64), (256, 256), (1024, 512), (1, 8192))
VARY_DTYPES = ("u1", "u2", "f4", "f8")
VARY_FILTERS = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "gzip+shuffle": {"compression": "gzip", "shuffle": True},
    "lzf": {"compression": "lzf"},
    "zstd": dict(hdf5plugin.Zstd(clevel=3)),
}
VARY_SIZES = {"element": (1, 200), "box": (32, 200), "large": (2000, 3)}
"""Kinds of regions: side and how many."""


def smooth_background(n, low, high, seed):
    """Return an n x n sum of waves between ``low`` and ``high``."""
    rng = np.random.default_rng(seed)
    y = np.linspace(0, 1, n, dtype="f4")[:, None]
    x = np.linspace(0, 1, n, dtype="f4")[None, :]
    total = np.zeros((n, n), "f4")
    for _ in range(6):
        frequency_y, frequency_x = rng.uniform(0.5, 6, 2)
        phase_y, phase_x = rng.uniform(0, 6.28, 2)
        wave_y = np.sin(6.28 * frequency_y * y + phase_y)
        total += wave_y * np.cos(6.28 * frequency_x * x + phase_x)
    total -= total.min()
    total *= (high - low) / total.max()
    return total + low


def box_references(dataset, start, shape) -> Iterator[h5py.RegionReference]:
    """Yield references to boxes; the low-level calls are ten times as fast."""
    space = h5py.h5s.create_simple(dataset.shape)
    for corner, size in zip(start.tolist(), shape.tolist(), strict=True):
        space.select_hyperslab(tuple(corner), (1,) * len(corner), block=tuple(size))
        yield h5py.h5r.create(dataset.id, b".", h5py.h5r.DATASET_REGION, space)


def point_references(dataset, points) -> Iterator[h5py.RegionReference]:
    """Yield references to lists of points."""
    space = h5py.h5s.create_simple(dataset.shape)
    for each in points:
        space.select_elements(each.astype("u8"))
        yield h5py.h5r.create(dataset.id, b".", h5py.h5r.DATASET_REGION, space)


def write_references(file, name, references, n):
    """Write n region references, a batch at a time."""
    dataset = file.create_dataset(name, (n,), h5py.regionref_dtype)
    for begin in range(0, n, REFERENCES_AT_ONCE):
        batch = np.empty(min(REFERENCES_AT_ONCE, n - begin), dtype=object)
        for i in range(len(batch)):
            batch[i] = next(references)
        dataset[begin : begin + len(batch)] = batch


def make_images(folder):
    values = np.random.default_rng(1).poisson(smooth_background(IMAGE, 60, 400, 1)).astype("u2")
    rng = np.random.default_rng(2)
    rois = rng.integers(0, IMAGE - BOX, (50_000, 2))
    ragged_shape = rng.integers(4, 65, (20_000, 2))
    ragged_start = (rng.random((20_000, 2)) * (IMAGE - ragged_shape)).astype("i8")
    corners = rng.integers(0, IMAGE - 128, (2_000, 2))
    points = np.empty((2_000, 500, 2), "i8")
    for corner, out in zip(corners, points, strict=True):
        flat = rng.choice(128 * 128, 500, replace=False)
        out[:] = corner + np.stack([flat // 128, flat % 128], axis=1)
    chunked = {
        "chunks": (256, 256),
        "compression": "gzip",
        "compression_opts": 4,
        "shuffle": True,
    }
    for filename, options in (("w1.h5", chunked), ("w2.h5", {})):
        with h5py.File(folder / filename, "w") as file:
            image = file.create_dataset("img", data=values, **options)
            boxes = box_references(image, rois, np.full_like(rois, BOX))
            write_references(file, "rois", boxes, len(rois))
            boxes = box_references(image, ragged_start, ragged_shape)
            write_references(file, "ragged", boxes, len(ragged_start))
            write_references(file, "points", point_references(image, points), len(points))
    np.savez(
        folder / "w1_truth.npz",
        rois=rois,
        ragged_start=ragged_start,
        ragged_shape=ragged_shape,
        points=points,
    )


def make_movie(folder):
    n_frames, height, _ = MOVIE
    rng = np.random.default_rng(3)
    background = smooth_background(height, 40, 200, 3)
    deviation = np.sqrt(background)
    start = np.zeros((500, 3), "i8")
    start[:, 1:] = rng.integers(0, height - MOVIE_BOX, (500, 2))
    shape = np.tile([n_frames, MOVIE_BOX, MOVIE_BOX], (500, 1))
    filters = {
        "lz4": dict(
            hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.BITSHUFFLE)
        ),
        "zstd": {"shuffle": True, **hdf5plugin.Zstd(clevel=3)},
        "lzf": {"shuffle": True, "compression": "lzf"},
    }
    with h5py.File(folder / "w3.h5", "w") as file:
        movies = {
            name: file.create_dataset(name, MOVIE, "u2", chunks=(FRAMES, 128, 128), **options)
            for name, options in filters.items()
        }
        for t in range(0, n_frames, FRAMES):
            # Normal instead of Poisson numbers: as good here, and ten times as fast.
            noise = rng.standard_normal((FRAMES, *MOVIE[1:]), dtype="f4")
            frames = np.rint(noise * deviation + background).clip(0, None).astype("u2")
            for movie in movies.values():
                movie[t : t + FRAMES] = frames
        for name, movie in movies.items():
            boxes = box_references(movie, start, shape)
            write_references(file, f"rois_{name}", boxes, len(start))
    np.savez(folder / "w3_truth.npz", rois=start)


def make_references(folder):
    n = 1_000_000
    rng = np.random.default_rng(6)
    start = rng.integers(0, 4096 - 32, (n, 2))
    shape = rng.integers(1, 33, (n, 2))
    for filename, libver, n_here in (
        ("w6.h5", "earliest", n),
        ("w6_latest.h5", "latest", n // 10),
    ):
        with h5py.File(folder / filename, "w", libver=(libver, "latest")) as file:
            image = file.create_dataset("img", (4096, 4096), "u2", chunks=(256, 256))
            boxes = box_references(image, start[:n_here], shape[:n_here])
            write_references(file, "rois", boxes, n_here)
    np.savez(folder / "w6_truth.npz", start=start, shape=shape)


@contextmanager
def complete(path):
    """Give a temporary name; the file gets its real name when it is complete."""
    part = path.with_suffix(".part")
    yield part
    part.rename(path)


def make_cells(folder):
    for n in CELLS:
        rng = np.random.default_rng(7)
        with complete(folder / f"w7_{n}.h5") as path, h5py.File(path, "w") as file:
            group = file.create_group("#refs#")
            references = np.empty(n, dtype=object)
            for i in range(n):
                values = rng.random(int(rng.integers(100, 201)))
                references[i] = group.create_dataset(f"v{i:05d}", data=values).ref
            file.create_dataset("cell", (n,), h5py.ref_dtype)[:] = references


def make_variables(folder):
    for n in VARIABLES:
        with complete(folder / f"w8_{n}.h5") as path, h5py.File(path, "w") as file:
            group = file.create_group("g")
            for i in range(n):
                group.create_dataset(f"v{i:05d}", data=np.arange(10, dtype="f8"))


def make_million(folder):
    start = np.random.default_rng(9).integers(0, IMAGE - SMALL_BOX, (MILLION, 2))
    shape = np.full_like(start, SMALL_BOX)
    with complete(folder / "w9.h5") as path, h5py.File(path, "w") as file:
        with h5py.File(folder / "w1.h5") as images:
            images.copy("img", file)
        for name, n in (("rois", MILLION), ("few", FEW)):
            boxes = box_references(file["img"], start[:n], shape[:n])
            write_references(file, name, boxes, n)


def vary_cases():
    """Yield filename, chunk shape, dtype and filter of the files of `variations.py`.

    Each dtype occurs with each chunk shape and with each filter.
    """
    for row, chunks in enumerate(VARY_CHUNKS):
        for column, name in enumerate(VARY_FILTERS):
            dtype = VARY_DTYPES[(row + column) % len(VARY_DTYPES)]
            sides = "x".join(map(str, chunks))
            yield f"vary_{sides}_{dtype}_{name.replace('+', '_')}.h5", chunks, dtype, name


def vary_start(kind, extent):
    """Return the corners of one kind of regions, and their shapes."""
    side, n = VARY_SIZES[kind]
    side = min(side, *extent)
    rng = np.random.default_rng(side)
    start = np.stack([rng.integers(0, size - side + 1, n) for size in extent], axis=1)
    return start, np.full_like(start, side)


def by_place(start, chunks):
    """Return the order of regions by the chunk of their first corner."""
    return np.lexsort((start // np.asarray(chunks)).T[::-1])


def make_variations(folder, shape=VARY_SHAPE):
    noise = np.random.default_rng(4).poisson(40, shape).clip(0, 255)
    for filename, chunks, dtype, filters in vary_cases():
        with complete(folder / filename) as path, h5py.File(path, "w") as file:
            options = VARY_FILTERS[filters]
            image = file.create_dataset(
                "img", data=noise.astype(dtype), chunks=chunks, **options
            )
            for kind in VARY_SIZES:
                start, size = vary_start(kind, shape)
                order = by_place(start, chunks)
                for name, rows in ((kind, slice(None)), (f"{kind}_sorted", order)):
                    boxes = box_references(image, start[rows], size[rows])
                    write_references(file, name, boxes, len(start))


# Each maker with the files it makes; the truth comes last, so it says "complete".
MAKERS = {
    make_images: ("w1.h5", "w2.h5", "w1_truth.npz"),
    make_movie: ("w3.h5", "w3_truth.npz"),
    make_references: ("w6.h5", "w6_latest.h5", "w6_truth.npz"),
    make_cells: tuple(f"w7_{n}.h5" for n in CELLS),
    make_variables: tuple(f"w8_{n}.h5" for n in VARIABLES),
    make_million: ("w9.h5",),
    make_variations: tuple(filename for filename, *_ in vary_cases()),
}


def make_files(folder, out=sys.stdout):
    """Make the files that are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for make, names in MAKERS.items():
        label = ", ".join(names) if len(names) < 5 else f"{names[0]} and {len(names) - 1} more"
        if all((folder / name).exists() for name in names):
            print(f"{label}: there already", file=out)
            continue
        make(folder)
        sizes = sum((folder / name).stat().st_size for name in names)
        print(f"{label}: {sizes / 1e6:.0f} MB", file=out, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_argument(parser)
    make_files(Path(parser.parse_args().data))


if __name__ == "__main__":
    main()
