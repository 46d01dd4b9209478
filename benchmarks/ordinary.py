"""Ordinary variables and opening against h5netcdf: ``python benchmarks/ordinary.py``.

threads
    A whole 128 MiB variable, gzip and shuffle, ``chunks={}`` on two threads: xref,
    h5netcdf, and the limit, which reads each chunk once, decompresses it with the
    codec that xref uses and unshuffles it into its place, with as many threads.
variables, groups
    `xarray.open_dataset` of 20,000 variables in one group and `xarray.open_datatree`
    of 1,000 groups; h5netcdf with ``phony_dims="sort"``.

Contestants take turns. A ratio is taken within one turn; the tables give the median over the
turns. Each turn opens the file under a new name (a hard link), so that no cache helps.
"""

import argparse
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import h5py
import numpy as np
import xarray as xr
from common import add_data_argument, describe_machine, median, print_table, timed, warm
from limit import find_decoder

WORKS = ("threads", "variables", "groups")
SHAPE, CHUNKS = (128, 512, 512), (8, 256, 256)
N_VARIABLES, N_GROUPS = 20_000, 1_000


def make_threads(path):
    """Write 128 MiB of float32 that compress to about two thirds."""
    steps = np.random.default_rng(0).normal(size=SHAPE).cumsum(axis=0) * 100
    with h5py.File(path, "w") as file:
        options = {"chunks": CHUNKS, "compression": 4, "shuffle": True}
        file.create_dataset("v", data=steps.astype("f4"), **options)


def make_variables(path):
    """Write many variables along one dimension."""
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(5.0)
        file["x"].make_scale("x")
        for i in range(N_VARIABLES):
            variable = file.create_dataset(f"v{i:05d}", data=np.arange(5.0) + i)
            variable.attrs["units"] = "m"
            if i % 100 == 0:  # a list of scales for each would make files of 80 MB
                variable.dims[0].attach_scale(file["x"])


def make_groups(path):
    """Write many groups of two variables."""
    with h5py.File(path, "w") as file:
        for i in range(N_GROUPS):
            for name in "ab":
                file.create_dataset(f"g{i:04d}/{name}", data=np.arange(5.0) + i)
                file[f"g{i:04d}/{name}"].attrs["units"] = "m"


MAKERS = {"threads": make_threads, "variables": make_variables, "groups": make_groups}


def read_whole(path, engine):
    """Read all of ``v`` through dask."""
    options = {"phony_dims": "sort"} if engine == "h5netcdf" else {}
    with xr.open_dataset(path, engine=engine, chunks={}, **options) as dataset:
        return dataset["v"].data.compute()


def read_limit(path, threads):
    """Read each chunk once, decompress it once, unshuffle it into its place."""
    with h5py.File(path) as file:
        found = []
        file["v"].id.chunk_iter(found.append)
        out = np.empty(SHAPE, "f4")
    decode = find_decoder("deflate")
    nbytes = int(np.prod(CHUNKS)) * 4
    descriptor = os.open(path, os.O_RDONLY)

    def place(chunk):
        decoded = decode(os.pread(descriptor, chunk.size, chunk.byte_offset), nbytes)
        corner = zip(chunk.chunk_offset, CHUNKS, strict=True)
        window = out[tuple(slice(a, a + n) for a, n in corner)]
        columns = window[..., np.newaxis].view("u1")
        for i, plane in enumerate(decoded.reshape(4, *CHUNKS)):
            columns[..., i] = plane

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(place, found))
    os.close(descriptor)
    return out


def open_all(path, engine, work):
    """Open a file lazily and close it."""
    options = {"phony_dims": "sort"} if engine == "h5netcdf" else {}
    opener = xr.open_datatree if work == "groups" else xr.open_dataset
    with opener(path, engine=engine, **options) as opened:
        return len(opened.variables) if work == "variables" else len(opened.children)


def contestants(work, threads):
    """Return the functions of a path that take part in one work."""
    if work == "threads":
        return {
            "xref": lambda path: read_whole(path, "h5ref"),
            "h5netcdf": lambda path: read_whole(path, "h5netcdf"),
            "limit": lambda path: read_limit(path, threads),
        }
    return {
        "xref": lambda path: open_all(path, "h5ref", work),
        "h5netcdf": lambda path: open_all(path, "h5netcdf", work),
    }


def run(work, folder, reps, threads):
    """Let the contestants take turns; return a table of rows."""
    path = folder / f"ordinary_{work}.h5"
    if not path.exists():
        MAKERS[work](path)
    warm(path)
    laps, first = {}, {}
    for turn in range(reps):
        for name, function in contestants(work, threads).items():
            link = Path(tempfile.mktemp(suffix=".h5", dir=folder))
            link.hardlink_to(path)
            try:
                with dask.config.set(scheduler="threads", num_workers=threads), timed() as lap:
                    result = function(link)
            finally:
                link.unlink()
            laps.setdefault(name, []).append(lap)
            if turn == 0:
                first[name] = result
    for name, result in first.items():
        assert np.array_equal(result, first["xref"]), f"{work}: {name} differs"
    ours = [lap.wall for lap in laps["xref"]]
    rows = []
    for name, taken in laps.items():
        ratios = [lap.wall / own for lap, own in zip(taken, ours, strict=True)]
        others = median([lap.others for lap in taken])
        wall = median([lap.wall for lap in taken])
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append(
            {
                "work": work,
                "who": name,
                "median, s": f"{wall:.3f}",
                "times xref's": f"{median(ratios):.2f}",
                "spread": spread,
                "others, CPUs": f"{others:.2f}",
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_argument(parser)
    parser.add_argument("--work", default=",".join(WORKS))
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    folder = Path(arguments.data)
    folder.mkdir(exist_ok=True)
    print(describe_machine())
    rows = []
    for work in arguments.work.split(","):
        rows += run(work, folder, arguments.reps, arguments.threads)
    print_table(rows)


if __name__ == "__main__":
    main()
