"""Datasets to write, and writers in other processes that fail or that append in turns."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import xarray as xr
from forkserver import run_python
from samples import open_h5

import xref

IMAGE = np.arange(60 * 50, dtype="f8").reshape(60, 50)

STORED: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunks": {"chunksizes": (20, 25)},
    "zlib": {"zlib": True, "complevel": 1, "chunksizes": (20, 25)},
    "fletcher32": {"zlib": True, "fletcher32": True, "chunksizes": (20, 25)},
    "lzf": {"compression": "lzf", "chunksizes": (20, 25)},
}


def numbers(how: str) -> tuple[xr.Dataset, dict[str, Any]]:
    values = np.random.default_rng(0).permutation(IMAGE.ravel()).reshape(IMAGE.shape)
    ds = xr.Dataset({"v": (("t", "y"), values)}, attrs={"title": "new"})
    return ds, {"v": STORED[how]}


def everything(path: Path) -> xr.Dataset:
    """Return variables and attributes of every kind, references into a file among them."""
    with open_h5(path) as ds:
        boxes = ds["a"].h5ref.regions(np.arange(9)[:, None], 1, dim="box").load()
        best = ds["a"].h5ref.region_reference(2)
    rows = np.empty(2, dtype=object)
    rows[:] = [np.arange(3), np.arange(0)]
    return xr.Dataset(
        {
            "boxes": boxes,
            "text": ("n", np.array(["one", "two" * 50], dtype=object)),
            "rows": ("n", rows),
            "new": ("n", [1, 2], {"long": np.arange(3000.0)}),
            "a": ("x", np.arange(10) * 2),
        },
        attrs={"best": best, "text": "x" * 5000},
    )


def write_old(path: Path) -> bytes:
    """Write the file that is there before."""
    old = xr.Dataset({"a": ("x", np.arange(10))}, attrs={"title": "old"})
    xref.to_hdf5(old, path)
    return path.read_bytes()


def write_limited(kind: str, mode: str, limits: list[int]) -> None:
    """Write ``file.h5`` within limits of the size of files; print how each write ended."""
    path = Path("file.h5").resolve()
    old = path.read_bytes()
    for limit in limits:
        for how in STORED:
            ds, encoding = numbers(how) if kind != "everything" else (everything(path), {})
            ds = ds.chunk(t=20) if kind == "dask" else ds
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                xref.to_hdf5(ds, path, mode=mode, encoding=encoding, on_missing="null")
                result = "written"
            except OSError as error:
                named = str(path) in str(error) and ".part" not in str(error)
                named = named and path.read_bytes() == old and os.listdir() == ["file.h5"]
                result = "named" if named else repr(error)
            # Standard output is a file, too.
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            print(limit, how, result, flush=True)  # noqa: T201
            path.write_bytes(old)
            if kind == "everything":
                break


LIMITED = """
import sys
from failing_writes import write_limited

write_limited(sys.argv[1], sys.argv[2], [int(n) for n in sys.argv[3].split(",")])
"""


def run_limited(folder: Path, kind: str, mode: str, limits: str) -> list[list[str]]:
    """Write with limits of the size of files; return limit, storage and result of each."""
    run = run_python(LIMITED, kind, mode, limits, folder=folder)
    assert (run.returncode, run.stderr) == (0, "")
    return [line.split(maxsplit=2) for line in run.stdout.splitlines()]


def append(name: str, times: int) -> None:
    """Append variables to ``file.h5``; print for each whether it was written."""
    for n in range(times):
        values = da.full((6, 50), n, chunks=(2, 50)) if n % 2 else np.full((6, 50), n)
        ds = xr.Dataset({f"{name}{n}": ((f"{name}{n}_y", f"{name}{n}_x"), values)})
        try:
            xref.to_hdf5(ds, "file.h5", mode="a")
            print(name, n, "written", flush=True)  # noqa: T201
        except OSError as error:
            print(name, n, "not", error, flush=True)  # noqa: T201


APPENDERS = """
import os, sys, traceback
from failing_writes import append

children = []
for name in "ab":
    if not (child := os.fork()):
        status = 1
        try:
            append(name, int(sys.argv[1]))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
"""


def append_from_two(folder: Path, times: int) -> dict[str, bool]:
    """Append from two processes at once; return by variable whether it was written."""
    run = run_python(APPENDERS, str(times), folder=folder)
    assert run.returncode == 0, run.stderr
    said = {}
    for line in run.stdout.splitlines():
        name, number, what, *_ = line.split()
        said[f"{name}{number}"] = what == "written"
    return said


def check_appended(path: Path, said: dict[str, bool]) -> None:
    """See that variables are there if and only if that was said, and have their values."""
    with h5py.File(path) as file:
        there = {name for name in file if "_" not in name}
        assert there == {name for name, written in said.items() if written}
        for name in there:
            assert np.unique(file[name][...]).tolist() == [int(name[1:])]
