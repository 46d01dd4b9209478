"""Write a file in another process, and kill that process while it writes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO

import dask.array as da
import h5py
import numpy as np
import xarray as xr
from forkserver import run_python

import xref


def write(path: str, source: str, value: int, output: IO[str]) -> None:
    """Write a file full of a value; tell when this begins, and how many seconds it took."""
    with xr.open_dataset(source, engine="h5ref") as ds:
        boxes = ds["image"].h5ref.regions(np.zeros((2000, 2), int), (2, 2), dim="box")
        more = da.full((400, 400), value, chunks=(50, 400), dtype="i4")
        new = xr.Dataset({"image": ds["image"], "boxes": boxes, "more": (("a", "b"), more)})
        print("begin", file=output, flush=True)
        began = time.perf_counter()
        xref.to_hdf5(new, path, encoding={"more": {"zlib": True}})
        print(time.perf_counter() - began, file=output, flush=True)


PROGRAM = """
import os, signal, sys, time
from killed_writers import write

path, source, value, after = sys.argv[1:]
read_end, write_end = os.pipe()
if not (child := os.fork()):
    try:
        os.close(read_end)
        with os.fdopen(write_end, "w") as output:
            write(path, source, int(value), output)
    finally:
        os._exit(0)
os.close(write_end)
with os.fdopen(read_end) as output:
    if output.readline() != "begin\\n":
        raise RuntimeError("the writer did not begin")
    if after:
        time.sleep(float(after))
        os.kill(child, signal.SIGKILL)
    print(output.read(), end="")
os.waitpid(child, 0)
"""


def write_and_kill(path: Path, source: Path, value: int, after: float | None) -> float | None:
    """Begin to write in another process, and kill it after some seconds, or let it end.

    Returns how many seconds writing took, None if it was not done before.
    """
    seconds = "" if after is None else str(after)
    done = run_python(PROGRAM, str(path), str(source), str(value), seconds).check()
    return float(done.stdout) if done.stdout else None


def content(path: Path) -> int | None:
    """Return the value that a file is full of, None if there is no file."""
    if not path.exists():
        return None
    with h5py.File(path) as file:
        values = np.unique(file["more"][...])
        assert len(values) == 1
        assert file["image"][file["boxes"][-1]].tolist() == [[0, 1], [10, 11]]
        return int(values[0])
