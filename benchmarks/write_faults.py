"""Writes that fail, and appends of two processes, more often than the tests have them.

Run it as a program: ``python benchmarks/write_faults.py [STEP] [APPENDS]``.

1. A limit of the size of files (``RLIMIT_FSIZE``) at every STEP bytes up to the size of the
   new file, for values in memory and in Dask, and for text, sequences, attributes and
   references; each storage, mode "w" and "a". Each time the file is the old one and an
   `OSError` names it, or it is the new one; nothing hidden is beside it.
2. Two processes append APPENDS variables each to one file. What was said to be written is
   there, with its values, and nothing else.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from test_write_faults import append_from_two, check_appended, run_limited, write_old

LARGEST = 80_000
"""Bytes; more than the largest of the new files has."""


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
