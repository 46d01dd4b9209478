"""A process that is killed during a write leaves the old file, the new file, or none.

``benchmarks/kills.py`` kills more often.
"""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from killed_writers import content, write_and_kill

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("killed") / "source.h5"
    with h5py.File(path, "w") as file:
        file["image"] = np.arange(100).reshape(10, 10)
    return path


def test_a_killed_writer_leaves_a_complete_file_or_none(tmp_path: Path, source: Path) -> None:
    path, there = tmp_path / "file.h5", None
    for value, after in enumerate((0.0, 0.02, 0.05, 0.1, 0.2, None), start=1):
        done = write_and_kill(path, source, value, after)
        found = content(path)
        assert found == value if done else found in (there, value)
        there = found
    assert there == 6
    leftovers = [name for name in os.listdir(tmp_path) if name != "file.h5"]
    assert all(name.startswith(".file.h5.") for name in leftovers)
