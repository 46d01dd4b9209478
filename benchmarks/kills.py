"""How often a killed writer leaves a file that is neither the old nor the new one.

Run it as a program: ``python benchmarks/kills.py [TIMES]``. A process writes a file with
references and compressed blocks over and over; it is killed at random moments, spread
over the time that one write takes.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

import h5py
import numpy as np

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS / "writing"), str(TESTS / "support")]

from test_killed import content, write_and_kill  # noqa: E402, found on the path above


def main(times: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder) / "source.h5", Path(folder) / "new" / "file.h5"
        path.parent.mkdir()
        with h5py.File(source, "w") as file:
            file["image"] = np.arange(100).reshape(10, 10)
        took = statistics.median(write_and_kill(path, source, 0, None) or 0 for _ in range(3))
        path.unlink()
        there, seen = None, Counter[str]()
        for value in range(1, times + 1):
            if random.random() < 0.2 and there is not None:
                path.unlink()
                there = None
            done = write_and_kill(path, source, value, random.uniform(0, 1.2 * took))
            found = content(path)
            if done:
                assert found == value
            else:
                assert found in (there, value)
            what = "complete" if found == value else "absent" if found is None else "old"
            seen[what] += 1
            there = found
    print(f"{times} kills within {1000 * took:.0f} ms: {dict(seen)}; nothing else")


if __name__ == "__main__":
    random.seed(0)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
