"""Writes that fail, and appends of two processes, in more cases than the tests have.

Run it as a program: ``python benchmarks/write_faults.py [STEP] [APPENDS] [INTERRUPTS]``.

1. A limit of file sizes (``RLIMIT_FSIZE``) at every STEP bytes up to the size of the
   new file, for values in memory and in Dask, and for text, sequences, attributes and
   references; each storage, mode "w" and "a". Each time either the file is the old one and an
   `OSError` names it, or the file is the new one. No hidden file is beside it.
2. Two processes append APPENDS variables each to one file. Every variable whose append returned
   is there, with its values, and no other.
3. A process gets SIGINT while it writes, INTERRUPTS times in each mode, from memory and from
   Dask. The interrupt is raised, no hidden file is beside the file, HDF5 has no file open,
   the values are the old or the new ones, the process writes again, and it exits with 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS / "writing"), str(TESTS / "support")]

from test_write_faults import append_from_two, check_appended, run_limited, write_old  # noqa: E402, found on the path above

LARGEST = 80_000
"""Bytes; more than the largest of the new files has."""


INTERRUPTED = """
import os, signal, sys, threading, time
import dask, dask.array as da, h5py, numpy as np, xarray as xr, xref

mode, kind, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
signal.signal(signal.SIGINT, signal.default_int_handler)
if kind == "synchronous":
    dask.config.set(scheduler="synchronous")

def write(n):
    values = da.full((40, 50), n, chunks=(10, 50))
    if kind == "memory":
        values = values.compute()
    xref.to_hdf5(xr.Dataset({"v": (("t", "y"), values)}), "file.h5", mode=mode)

def press():
    time.sleep(pause)
    os.kill(os.getpid(), signal.SIGINT)

write(0)
n_open, done = h5py.h5f.get_obj_count(), 0
threading.Thread(target=press, daemon=True).start()
try:
    for n in range(1, 10_000):
        write(n)
        done = n
except KeyboardInterrupt:
    assert os.listdir() == ["file.h5"], os.listdir()
    assert h5py.h5f.get_obj_count() == n_open
with h5py.File("file.h5") as file:
    assert np.unique(file["v"][...]).tolist() in ([done], [done + 1])
write(-1)
"""

PAUSES = (0.03, 0.2)
"""Seconds after the first write, in which there are some ten others."""


def interrupt(times: int) -> None:
    """Send SIGINT at evenly spaced times; check that each process goes on and exits with 0."""
    first, last = PAUSES
    for mode in ("w", "a"):
        for kind in ("threads", "synchronous", "memory"):
            seen = Counter[str]()
            for number in range(times):
                pause = first + (last - first) * (number + 0.5) / times
                command = [sys.executable, "-c", INTERRUPTED, mode, kind, str(pause)]
                with tempfile.TemporaryDirectory() as folder:
                    run = subprocess.run(
                        command,
                        cwd=folder,
                        capture_output=True,
                        text=True,
                        check=False,
                        timeout=60,
                    )
                seen[f"exit {run.returncode} {run.stderr[-200:]}".strip()] += 1
            print(f"{times} interrupts, {kind}, mode {mode!r}: {dict(seen)}")


def limit_sizes(step: int) -> None:
    for kind in ("memory", "dask", "everything"):
        for mode in ("w", "a"):
            seen = Counter[str]()
            for limit in range(0, LARGEST, step):
                with tempfile.TemporaryDirectory() as folder:
                    write_old(Path(folder) / "file.h5")
                    for _, _, result in run_limited(Path(folder), kind, mode, str(limit)):
                        assert result in ("named", "written"), result
                        seen[result] += 1
            print(f"{kind}, mode {mode!r}: {dict(seen)}")


def append(times: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        said = append_from_two(Path(folder), times)
        check_appended(Path(folder) / "file.h5", said)
        assert os.listdir(folder) == ["file.h5"]
    print(f"{len(said)} appends of two processes: {sum(said.values())} written; all as said")


if __name__ == "__main__":
    append(int(sys.argv[2]) if len(sys.argv) > 2 else 50)
    limit_sizes(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
    interrupt(int(sys.argv[3]) if len(sys.argv) > 3 else 100)
