"""Write a file in another process, and kill that process while it writes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np

PROGRAM = """
import sys
import time
import dask.array as da
import numpy as np
import xarray as xr
import xref

path, source, value = sys.argv[1], sys.argv[2], int(sys.argv[3])
with xr.open_dataset(source, engine="h5ref") as ds:
    boxes = ds["image"].h5ref.regions(np.zeros((2000, 2), int), (2, 2), dim="box")
    more = da.full((400, 400), value, chunks=(50, 400), dtype="i4")
    new = xr.Dataset({"image": ds["image"], "boxes": boxes, "more": (("a", "b"), more)})
    print("begin", flush=True)
    began = time.perf_counter()
    xref.to_hdf5(new, path, encoding={"more": {"zlib": True}})
    print(time.perf_counter() - began, flush=True)
"""


def write_and_kill(path: Path, source: Path, value: int, after: float | None) -> float | None:
    """Begin to write in another process, and kill it after some seconds, or let it end.

    Returns how many seconds writing took, None if it was not done before.
    """
    command = [sys.executable, "-c", PROGRAM, str(path), str(source), str(value)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        output = process.stdout
        if output is None or output.readline() != "begin\n":
            raise RuntimeError("the writer did not begin")
        if after is not None:
            time.sleep(after)
            process.send_signal(signal.SIGKILL)
        took = output.read()
        return float(took) if took else None


def content(path: Path) -> int | None:
    """Return the value that a file is full of, None if there is no file."""
    if not path.exists():
        return None
    with h5py.File(path) as file:
        values = np.unique(file["more"][...])
        assert len(values) == 1
        assert file["image"][file["boxes"][-1]].tolist() == [[0, 1], [10, 11]]
        return int(values[0])
