"""The workloads: files, places of the regions, and the right values.

In: the folder of the files. Out: `Workload` values, which know their file, the places of
their regions, and how to compare a contestant's values with h5py's.
"""

import functools
from dataclasses import dataclass

import h5py
import hdf5plugin  # noqa: F401, gives h5py its filters
import numpy as np
from common import Truth
from files import CELLS, by_place
from limit import BOX, MOVIE_BOX, check_values, copy_ragged, data_file, whole_image

IMAGES = ("W1", "W1s", "W2", "W4", "W5")
MOVIES = ("W3.lz4", "W3.zstd", "W3.lzf")
STACKS = ("W1", "W1.base", "W1s", "W2", *MOVIES, "W4", "W5")
DECODES = ("W6", "W6.latest")
OBJECTS = ("W7.values", "W7.names")

WHAT = {
    "W1": "50,000 boxes of 32 x 32 from 8192 x 8192 u2, gzip and shuffle",
    "W1.base": "W1 without imagecodecs, the limit with zlib",
    "W1s": "the first 500 of them",
    "W2": "W1 from contiguous data",
    "W3.lz4": "500 boxes of 16 x 16 over all 2,000 frames of a movie; Blosc-LZ4, bitshuffle",
    "W3.zstd": "the same; Zstandard, shuffle",
    "W3.lzf": "the same; LZF, shuffle",
    "W4": "20,000 boxes of 4 to 64 a side, values and means",
    "W5": "2,000 selections of 500 points",
    "W6": "where 1,000,000 region references point, no data",
    "W6.latest": "the same of 100,000 in the newest file format",
    "W7.values": f"object references to {CELLS[-1]:,} datasets of 100 to 200 values",
    "W7.names": "the paths of those datasets",
}

SETTLED_NBYTES = dict.fromkeys(("W1", "W2", "W4", "W5", "W6", "W7"), 1 << 29) | {"W3": 3 << 29}
"""What the hungriest contestant of a workload needs; see `common.settle_memory`."""


@dataclass(frozen=True)
class Workload:
    """One workload of `WHAT`."""

    name: str
    truth: Truth

    @property
    def base(self):
        """The workload whose files and regions it has."""
        return self.name.removesuffix(".base")

    @property
    def path(self):
        """The file."""
        if self.name in DECODES:
            name = "w6_latest.h5" if self.name == "W6.latest" else "w6.h5"
        elif self.name in OBJECTS:
            name = f"w7_{CELLS[-1]}.h5"
        else:
            name = data_file(self.base)
        return self.truth.data / name

    @property
    def variable(self):
        """The target of the references."""
        return self.name[3:] if self.name in MOVIES else "img"

    @property
    def references(self):
        """The reference dataset."""
        if self.name in MOVIES:
            return f"rois_{self.variable}"
        if self.name in OBJECTS:
            return "cell"
        return {"W4": "ragged", "W5": "points"}.get(self.name, "rois")

    @property
    def settled_nbytes(self):
        """Bytes of memory that the largest contestant needs."""
        return SETTLED_NBYTES[self.name[:2]]

    @functools.cached_property
    def start(self):
        """First corner of each region."""
        if self.name in MOVIES:
            return self.truth.movie
        if self.name == "W4":
            return self.truth.ragged_start
        if self.name == "W5":
            return self.truth.points.min(axis=1)
        return self.truth.rois[: 500 if self.name == "W1s" else None]

    @functools.cached_property
    def stop(self):
        """End of each region."""
        if self.name in MOVIES:
            return self.start + np.array([2000, MOVIE_BOX, MOVIE_BOX])
        if self.name == "W4":
            return self.start + self.truth.ragged_shape
        if self.name == "W5":
            return self.truth.points.max(axis=1) + 1
        return self.start + BOX

    @property
    def n(self):
        """The number of regions."""
        return len(self.start)

    def order_by_place(self, chunks):
        """Return the order of the regions by the chunk of their first corner."""
        return by_place(self.start, chunks or (256, 256)).tolist()

    def slices(self, i):
        """Return the box of region i."""
        sides = zip(self.start[i].tolist(), self.stop[i].tolist(), strict=True)
        return tuple(slice(a, b) for a, b in sides)

    def pick(self, whole):
        """Return all regions from the whole dataset, as the workload wants them."""
        truth = self.truth
        if self.name == "W4":
            return copy_ragged(whole, truth.ragged_start, truth.ragged_shape)
        if self.name == "W5":
            y, x = truth.points.reshape(-1, 2).T
            return whole.reshape(-1)[y * whole.shape[1] + x].reshape(len(truth.points), -1)
        if self.name in MOVIES:
            window = (len(whole), MOVIE_BOX, MOVIE_BOX)
            windows = np.lib.stride_tricks.sliding_window_view(whole, window)[0]
            return windows[truth.movie[:, 1], truth.movie[:, 2]]
        windows = np.lib.stride_tricks.sliding_window_view(whole, (BOX, BOX))
        return windows[tuple(self.start.T)]

    def check(self, name, outcome):
        """Compare all values, or the regions of a sample, with h5py's."""
        if outcome.values is not None:
            values = outcome.values
            if name == "xref, mean()":
                image = whole_image(str(self.truth.data))
                values = self.pick(image)[0], values
            if self.name in DECODES:
                self._check_bounds(values)
            elif self.name == "W7.values":
                np.testing.assert_array_equal(values, self._cells())
            elif self.name == "W7.names":
                expected = [f"/#refs#/v{i:05d}" for i in range(CELLS[-1])]
                assert list(values) == expected, f"{name}: wrong names"
            else:
                check_values(self.base, self.truth, self._shaped(values))
        for i, values in outcome.sample.items():
            np.testing.assert_array_equal(np.asarray(values), self.expected(i), err_msg=name)

    def _shaped(self, values):
        if self.name in MOVIES:
            return values.reshape(-1, values.shape[1], MOVIE_BOX, MOVIE_BOX)
        return values if self.name in ("W4", "W5") else values.reshape(-1, BOX, BOX)

    def _check_bounds(self, values):
        n = len(values[0])
        with np.load(self.truth.data / "w6_truth.npz") as truth:
            start, shape = truth["start"][:n], truth["shape"][:n]
        np.testing.assert_array_equal(values[0], start)
        np.testing.assert_array_equal(values[1], start + shape)

    def _cells(self):
        with h5py.File(self.path) as file:
            return np.concatenate([file["#refs#"][f"v{i:05d}"][()] for i in range(CELLS[-1])])

    def expected(self, i):
        """Return region i, or the target of reference i, read by h5py."""
        with h5py.File(self.path) as file:
            if self.name in DECODES:
                with np.load(self.truth.data / "w6_truth.npz") as truth:
                    start, shape = truth["start"][i], truth["shape"][i]
                return np.stack([start, start + shape - 1])  # as h5py counts: inclusive
            if self.name == "W7.values":
                return file[f"#refs#/v{i:05d}"][()]
            if self.name == "W7.names":
                return np.array(f"/#refs#/v{i:05d}")
            box = file[self.variable][self.slices(i)]
            if self.name != "W5":
                return box
            inside = self.truth.points[i] - self.start[i]
            return box[tuple(inside.T)]
