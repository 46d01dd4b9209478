"""Ctrl-C during a write raises KeyboardInterrupt and leaves no temporary or open file.

``benchmarks/write_faults.py`` presses it at random moments, in many processes.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import h5py
import pytest
from forkserver import run_python
from interrupts import check_after, files_open_in_hdf5, new_values, press, write_old

import xref
from xref.writing.uninterrupted import interruptible, uninterrupted

HERE = Path(__file__).parent


class Pressed:
    """Raise KeyboardInterrupt at the n-th traced line of the main thread in `xref.writing`."""

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
        """Call a function; return whether the interrupt was raised."""
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


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["w", "a"])
@pytest.mark.parametrize("kind", ["memory", "dask"])
def test_an_interrupt_at_any_line_leaves_the_old_or_the_new_file(
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


# Two faults of Python are avoided. An interrupt may hit Dask's queue while it acquires its
# lock (threading.Condition); a thread that puts a result there then logs an error. It may
# also come while Dask starts its first thread (concurrent.futures.ThreadPoolExecutor), which
# then does not learn that the process ends; so a thread is started before.
CHILD = """
import logging, signal, sys, warnings
warnings.simplefilter("error")
logging.getLogger("concurrent.futures").disabled = True
from pathlib import Path
import dask.array as da
from interrupts import press_at_each_call
da.ones(8, chunks=1).sum().compute(scheduler="threads")
signal.signal(signal.SIGINT, signal.default_int_handler)
for kind, scheduler in ("memory", "threads"), ("dask", "threads"), ("dask", "synchronous"):
    press_at_each_call(Path.cwd(), kind, sys.argv[1], scheduler)
    Path("file.h5").unlink()
print("lives on")
"""


@pytest.mark.parametrize("mode", ["w", "a"])
def test_a_process_continues_and_exits_cleanly_after_interrupts(
    tmp_path: Path, mode: str
) -> None:
    """A file that HDF5 still has open crashes the process when it exits."""
    run = run_python(CHILD, mode, folder=tmp_path)
    assert (run.returncode, run.stderr, run.stdout) == (0, "", "lives on\n")


# --- the threads themselves --------------------------------------------------------------


def test_interruptible_functions_run_in_the_main_thread(python_handler: None) -> None:
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


def test_an_interrupt_stops_the_following_calls(python_handler: None) -> None:
    done: list[str] = []

    def work() -> None:
        press()
        for _ in range(1_000_000):
            interruptible(lambda: None)
        done.append("all")

    with pytest.raises(KeyboardInterrupt):
        uninterrupted(work)
    assert done == []


def test_interrupts_are_raised_at_the_end_of_uninterrupted_work(python_handler: None) -> None:
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


def test_waiting_for_a_locked_file_can_be_interrupted(
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


def test_an_interrupt_waits_for_running_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python_handler: None
) -> None:
    """Dask raises the interrupt while its threads continue."""
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
    """As happens when the interrupt hits the condition that Dask's queue waits for."""

    def wait() -> None:
        lock = threading.Lock()
        with lock:
            lock.release()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        uninterrupted(lambda: interruptible(wait))
