"""Writes that fail, and appends of two processes, more often than the tests have them.

Run it as a program: ``python benchmarks/write_faults.py [STEP] [APPENDS]``.

1. A limit of the size of files (``RLIMIT_FSIZE``) at every STEP bytes up to the size of the
   new file, for values in memory and in Dask, and for text, sequences, attributes and
   references; each storage, mode "w" and "a". Each time the file is the old one and an
   `OSError` names it, or it is the new one; nothing hidden is beside it.
2. Two processes append APPENDS variables each to one file. What was said to be written is
   there, with its values, and nothing else.
3. A process gets SIGINT at random moments: it should end with 0 and leave nothing hidden.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from test_write_faults import append_from_two, check_appended, run_limited, write_old

LARGEST = 80_000
"""Bytes; more than the largest of the new files has."""


INTERRUPTED = """
import _thread, os, signal, sys, threading, time
import dask.array as da, numpy as np, xarray as xr, xref

mode, pause = sys.argv[1], float(sys.argv[2])
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(pause, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
done = 0
try:
    for n in range(10_000):
        values = da.full((40, 50), n, chunks=(10, 50))
        xref.to_hdf5(xr.Dataset({"v": (("t", "y"), values)}), "file.h5", mode=mode)
        done = n
except KeyboardInterrupt:
    print(done)
"""


def interrupt(times: int) -> None:
    """Press Ctrl-C at random moments; count how processes end that should end with 0."""
    seen = Counter[str]()
    for number in range(times):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", INTERRUPTED, "wa"[number % 2]]
            pause = str(random.uniform(0.25, 0.45))
            run = subprocess.run(
                [*command, pause], cwd=folder, capture_output=True, check=False, timeout=60
            )
            hidden = [name for name in os.listdir(folder) if name != "file.h5"]
            seen[f"exit {run.returncode}, hidden {len(hidden)}"] += 1
    print(f"{times} interrupts: {dict(seen)}")


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
    interrupt(20)
