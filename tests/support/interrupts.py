"""Press Ctrl-C while a file is written, and check the file afterwards."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import h5py
import numpy as np
import pytest
import xarray as xr
from h5py import h5f

import xref
from xref.storage.open_files import close_files
from xref.writing.uninterrupted import find_interrupt


def new_values(kind: str) -> xr.Dataset:
    values = np.full((40, 50), 1)
    in_blocks = da.from_array(values, chunks=(10, 50))
    return xr.Dataset({"v": (("t", "y"), values if kind == "memory" else in_blocks)})


def write_old(path: Path) -> bytes:
    xref.to_hdf5(xr.Dataset({"v": (("t", "y"), np.full((40, 50), 0))}), path)
    # Files of earlier tests do not close while those of this one are counted.
    close_files()
    gc.collect()
    return path.read_bytes()


def files_open_in_hdf5() -> int:
    return int(h5f.get_obj_count(h5f.OBJ_ALL, h5f.OBJ_FILE))


def check_after(path: Path, old: bytes, n_open: int) -> bool:
    """See that a file is the old one or the new one; tell whether it is the old one."""
    assert os.listdir(path.parent) == [path.name]
    assert files_open_in_hdf5() == n_open
    if path.read_bytes() == old:
        return True
    with h5py.File(path) as file:
        assert np.unique(file["v"][...]).tolist() == [1]
    path.write_bytes(old)
    return False


def press() -> None:
    """Send SIGINT to the main thread."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


class Pressing:
    """The module `os` for those who write; Ctrl-C is pressed at one of its calls."""

    CALLS = ("pwrite", "pwritev", "ftruncate", "fsync", "replace", "link", "open", "preadv")

    def __init__(self, number: int) -> None:
        self.number, self.count = number, 0

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in self.CALLS:
            return function

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.count += 1
            if self.count == self.number:
                press()
                for _ in range(20):  # till it is known here, if it ever is
                    if find_interrupt() is None:
                        time.sleep(0.001)
            return function(*arguments, **keywords)

        return call


def press_at_each_call(folder: Path, kind: str, mode: str, scheduler: str) -> None:
    """Press Ctrl-C at each call of the operating system in turn."""
    path = folder / "file.h5"
    old, n_open, seen = write_old(path), files_open_in_hdf5(), set[bool]()
    data = new_values(kind)
    for number in itertools.count(1, step=2 if kind == "dask" else 1):
        with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler=scheduler):
            pressing = Pressing(number)
            for name in ("checked_file", "drafts", "hidden_files", "append_lock"):
                module = f"xref.writing.{name}"
                patch.setattr(f"{module}.os", pressing)
            try:
                xref.to_hdf5(data, path, mode=mode)
            except KeyboardInterrupt:
                pass
            else:
                assert pressing.count < number
                break
        seen.add(check_after(path, old, n_open))
    assert number > 15
    assert seen == {True, False}  # it is too late at the last call
