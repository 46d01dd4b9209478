"""Ctrl-C while a file is written: it is raised, nothing hidden stays, no file stays open.

``benchmarks/write_faults.py`` does it at random moments, in many processes.
"""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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
from xref.writing.uninterrupted import find_interrupt, interruptible, uninterrupted

HERE = Path(__file__).parent


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


class Pressed:
    """Ctrl-C at an instruction of the main thread in the package, by its number."""

    FILES = tuple(
        str(Path(xref.__file__).with_name("writing") / f"{name}.py")
        for name in (
            "append_lock",
            "checked_file",
            "dask_blocks",
            "drafts",
            "hidden_files",
            "uninterrupted",
            "write_hdf5",
        )
    )

    def __init__(self, number: int) -> None:
        self.number, self.count = number, 0

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in self.FILES:
            return None
        self.count += 1
        if self.count == self.number:
            sys.settrace(None)
            raise KeyboardInterrupt
        return self

    def run(self, function: Callable[[], Any]) -> bool:
        """Call a function; tell whether the interrupt came."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            function()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        assert self.count < self.number  # who gets an interrupt has to know
        return False


@pytest.mark.parametrize("mode", ["w", "a"])
@pytest.mark.parametrize("kind", ["memory", "dask"])
def test_an_interrupt_at_any_line_of_the_main_thread(
    tmp_path: Path, kind: str, mode: str
) -> None:
    path = tmp_path / "file.h5"
    old, n_open, seen = write_old(path), files_open_in_hdf5(), set[bool]()
    data = new_values(kind)
    with dask.config.set(scheduler="synchronous"):
        for number in itertools.count(1, step=1 if kind == "memory" else 3):
            if not Pressed(number).run(lambda: xref.to_hdf5(data, path, mode=mode)):
                break
            seen.add(check_after(path, old, n_open))
    assert number > 50
    assert True in seen


@pytest.fixture
def python_handler() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, however the tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
            for module in ("checked_file", "drafts", "hidden_files", "append_lock"):
                patch.setattr(f"xref.writing.{module}.os", pressing)
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


# Two faults of Python's are kept out. An interrupt may break into Dask's queue while it takes
# its lock (threading.Condition): a thread that puts something there logs an error. It may
# also come when Dask starts its first thread (concurrent.futures.ThreadPoolExecutor), which
# is not told then that the process ends: so one is started before.
CHILD = """
import logging, signal, sys
logging.getLogger("concurrent.futures").disabled = True
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import dask.array as da
from test_interrupts import press_at_each_call
da.ones(8, chunks=1).sum().compute(scheduler="threads")
signal.signal(signal.SIGINT, signal.default_int_handler)
for kind, scheduler in ("memory", "threads"), ("dask", "threads"), ("dask", "synchronous"):
    press_at_each_call(Path.cwd(), kind, sys.argv[2], scheduler)
    Path("file.h5").unlink()
print("lives on")
"""


@pytest.mark.parametrize("mode", ["w", "a"])
def test_a_process_lives_on_and_ends_after_interrupts(tmp_path: Path, mode: str) -> None:
    """What HDF5 has open at the end crashes the process when it exits."""
    command = [sys.executable, "-W", "error", "-c", CHILD, str(HERE), mode]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr, run.stdout) == (0, "", "lives on\n")


# --- the threads themselves --------------------------------------------------------------


def test_what_is_interruptible_runs_in_the_main_thread(python_handler: None) -> None:
    main = threading.main_thread()
    ended: list[BaseException] = []

    def work() -> None:
        assert threading.current_thread() is not main
        assert interruptible(threading.current_thread) is main
        assert interruptible(int, "3") == 3
        try:
            interruptible(wait_for_it)
        except BaseException as error:
            ended.append(error)
            raise

    def wait_for_it() -> None:
        press()
        threading.Event().wait()

    with pytest.raises(KeyboardInterrupt) as caught:
        uninterrupted(work)
    assert ended == [caught.value]


def test_an_interrupt_ends_what_comes_after_it(python_handler: None) -> None:
    done: list[str] = []

    def work() -> None:
        press()
        for _ in range(1_000_000):
            interruptible(lambda: None)
        done.append("all")

    with pytest.raises(KeyboardInterrupt):
        uninterrupted(work)
    assert done == []


def test_several_interrupts_wait_for_the_end(python_handler: None) -> None:
    done: list[str] = []

    def work() -> str:
        for _ in range(5):
            press()
            threading.Event().wait(0.02)
        done.append("all")
        return "result"

    with pytest.raises(KeyboardInterrupt):
        uninterrupted(work)
    assert done == ["all"]
    assert uninterrupted(lambda: "next") == "next"


def test_errors_of_both_threads_are_raised() -> None:
    def fail() -> None:
        raise ZeroDivisionError("in the main thread")

    with pytest.raises(ZeroDivisionError, match="main thread"):
        uninterrupted(lambda: interruptible(fail))
    with pytest.raises(ZeroDivisionError, match="main thread"):
        uninterrupted(fail)


def test_a_file_that_waits_for_others_can_be_interrupted(
    tmp_path: Path, python_handler: None
) -> None:
    path = tmp_path / "file.h5"
    old = write_old(path)
    timer = threading.Timer(0.2, press)
    with h5py.File(path):
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            xref.to_hdf5(new_values("memory"), path, mode="a")
    timer.join()
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["file.h5"]


def test_an_interrupt_waits_for_blocks_that_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python_handler: None
) -> None:
    """Dask raises it while its threads go on."""
    path = tmp_path / "file.h5"
    old, n_open = write_old(path), files_open_in_hdf5()
    write, pressed = xref.writing.dask_blocks.write_elements, []

    def slow(*arguments: Any) -> None:
        if not pressed:
            pressed.append(1)
            press()
            threading.Event().wait(0.3)
        write(*arguments)

    monkeypatch.setattr("xref.writing.dask_blocks.write_elements", slow)
    with dask.config.set(scheduler="threads"), pytest.raises(KeyboardInterrupt):
        xref.to_hdf5(new_values("dask"), path, mode="a")
    assert check_after(path, old, n_open)


def test_an_interrupt_that_python_hides_behind_a_lock_is_raised() -> None:
    """So it ends when it breaks into the condition that Dask's queue waits for."""

    def wait() -> None:
        lock = threading.Lock()
        with lock:
            lock.release()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        uninterrupted(lambda: interruptible(wait))
