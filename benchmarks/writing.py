"""The cost of storing region references, against h5py's loop.

Run it as a program: ``python benchmarks/writing.py [--counts 10000,100000,1000000]``. Boxes
of 32 x 32 elements in an image, stored as one dataset of region references:

- xref: ``.h5ref.regions`` and ``to_hdf5(mode="a")``, opening and closing included;
- h5py: one ``dataset[i] = image.regionref[...]`` after the other, for `LOOPED` references;
- h5py, listed: the references in a list, stored with one assignment.

All turns are in one run; the table gives medians. The stored references are compared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import xarray as xr

import xref

LOOPED = 5_000
SIDE, BOX = 4096, 32


def timed(function: Callable[[], None]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def write_image(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("image", (SIDE, SIDE), "u2", chunks=(256, 256))


def with_xref(path: Path, corners: np.ndarray) -> None:
    with xr.open_dataset(path, engine="h5ref") as ds:
        boxes = ds["image"].h5ref.regions(corners, (BOX, BOX))
        xref.to_hdf5(xr.Dataset({"boxes": boxes}), path, mode="a")


def with_loop(path: Path, corners: np.ndarray) -> None:
    with h5py.File(path, "a") as file:
        image = file["image"]
        boxes = file.create_dataset("boxes", (len(corners),), h5py.regionref_dtype)
        for i, (y, x) in enumerate(corners.tolist()):
            boxes[i] = image.regionref[y : y + BOX, x : x + BOX]


def with_list(path: Path, corners: np.ndarray) -> None:
    with h5py.File(path, "a") as file:
        image = file["image"]
        boxes = file.create_dataset("boxes", (len(corners),), h5py.regionref_dtype)
        boxes[...] = [image.regionref[y : y + BOX, x : x + BOX] for y, x in corners.tolist()]


def check(path: Path, corners: np.ndarray) -> None:
    with h5py.File(path) as file:
        image, boxes = file["image"], file["boxes"]
        assert len(boxes) == len(corners)
        for i in np.linspace(0, len(corners) - 1, 50).astype(int).tolist():
            low, high = h5py.h5r.get_region(boxes[i], image.id).get_select_bounds()
            assert low == tuple(corners[i])
            assert high == tuple(corners[i] + BOX - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="10000,100000,1000000")
    parser.add_argument("--reps", type=int, default=3)
    arguments = parser.parse_args()
    every = np.random.default_rng(0).integers(0, SIDE - BOX, (10**7, 2))
    print(
        "| references | xref, s | µs each | h5py, one by one, µs each | / xref "
        "| h5py, a list, µs each | / xref |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for n in map(int, arguments.counts.split(",")):
            corners = every[:n]
            found: dict[str, list[float]] = {"xref": [], "loop": [], "list": []}
            for _ in range(arguments.reps):
                for name, write, some in (
                    ("xref", with_xref, corners),
                    ("loop", with_loop, corners[:LOOPED]),
                    ("list", with_list, corners[:LOOPED]),
                ):
                    path = Path(folder) / "file.h5"
                    write_image(path)
                    took = timed(lambda w=write, p=path, s=some: w(p, s))  # type: ignore[misc]
                    check(path, some)
                    found[name].append(1e6 * took / len(some))
            ours, loop, listed = (statistics.median(found[k]) for k in ("xref", "loop", "list"))
            print(
                f"| {n} | {ours * n / 1e6:.3g} | {ours:.3g} | {loop:.3g} | {loop / ours:.3g} "
                f"| {listed:.3g} | {listed / ours:.3g} |"
            )


if __name__ == "__main__":
    main()
