"""Open files are kept for the next read, and dropped to make room for others.

In: a function that opens a file. Out: the open file, shared by all threads of the process.
Dropping does not close it for its readers: it is closed with its last reference.

No lock is held while a file is dropped: the garbage collector may drop files at any
instruction.
"""

from __future__ import annotations

import errno
import gc
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from xarray import get_options

from xref.errors import FileReadError
from xref.storage.spared_garbage import collect_spared, is_transport_thread

T = TypeVar("T")

EXHAUSTED = (errno.EMFILE, errno.ENFILE)
"""Errors if a process, or the system, has too many files open."""


class LRUPool:
    """Keeps the files that were used last open: ``limit()`` files, but at least one."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        # Each operation on it is atomic: its keys are plain integers.
        self._kept: OrderedDict[int, Reopenable[Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def touch(self, kept: Reopenable[Any]) -> None:
        """Mark a file as used now."""
        try:
            self._kept.move_to_end(id(kept))
        except KeyError:
            self._kept[id(kept)] = kept
            limit = max(self._limit(), 1)
            while len(self._kept) > limit:
                self._drop_oldest()

    def forget(self, kept: Reopenable[Any]) -> None:
        """Remove a file that is not open any more."""
        self._kept.pop(id(kept), None)

    def clear(self) -> None:
        """Drop all files."""
        while self._kept:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        try:
            _, oldest = self._kept.popitem(last=False)
        except KeyError:  # another thread took the last one
            return
        oldest.drop()


class Reopenable(Generic[T]):
    """A file that is opened when it is needed, and stays open while its pool has room.

    ``open_it`` opens the file, ``pool`` counts it, and ``name`` names it in errors.
    """

    def __init__(self, open_it: Callable[[], T], pool: LRUPool, name: str) -> None:
        self._open_it = open_it
        self._pool = pool
        self._name = name
        self._value: T | None = None
        self._opening = threading.Lock()  # two threads do not open it twice

    @property
    def value(self) -> T | None:
        """The open file, None if it is not open. It does not count as used now."""
        return self._value

    def get(self) -> T:
        """Return the open file; open it if it is not.

        Raises
        ------
        FileReadError
            If the system has no descriptor left, even after all pools were cleared.
        """
        _unclosed.clear()
        collect_spared()
        value = self._value
        if value is None:
            with self._opening:
                value = self._value
                if value is None:
                    value = self._value = self._open()
        self._pool.touch(self)
        return value

    def _open(self) -> T:
        try:
            return self._open_it()
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
        drop_all()
        gc.collect()  # files in reference cycles
        try:
            return self._open_it()
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            raise _exhausted(self._name, error) from error

    def drop(self) -> None:
        """Drop the open file; it is closed with its last reference."""
        self._pool.forget(self)
        value, self._value = self._value, None
        if value is not None and is_transport_thread():
            _unclosed.append(value)


_unclosed: deque[Any] = deque()
"""Files that transport threads dropped: the next thread that opens a file closes them.

Closing a file takes HDF5's lock, whose holder may be waiting for the transport thread.
"""


def _kept_by_xarray() -> int:
    return int(get_options()["file_cache_maxsize"])  # type: ignore[no-untyped-call]


FILES = LRUPool(lambda: 7 * _kept_by_xarray() // 32)
"""Files open in h5py: 28 at xarray's default limit of 128. So these, the descriptors, and the
files that eight threads are opening or dropping stay below 64. Opening a file again takes a
quarter of a millisecond, a tenth of the other costs of a file (benchmarks/manyfiles.py)."""

DESCRIPTORS = LRUPool(lambda: 3 * _kept_by_xarray() // 32)
"""Files open for positional reads: 12, since they open ten times as fast."""

REMOTE_FILES = LRUPool(lambda: _kept_by_xarray() // 2)
"""Remote files: they hold blocks of metadata, and no descriptor."""


def drop_all() -> None:
    """Drop all files that the pools of this process keep open."""
    for pool in (FILES, DESCRIPTORS, REMOTE_FILES):
        pool.clear()
    _unclosed.clear()


def check_descriptors(n: int, name: str) -> None:
    """Make sure that n more files can be opened; drop files to make room for them.

    Raises
    ------
    FileReadError
        If they cannot. ``name`` is the file that needs them.
    """
    problem = _missing(n)
    if problem is not None:
        drop_all()
        gc.collect()
        problem = _missing(n)
    if problem is not None:
        raise _exhausted(name, problem) from problem


def _missing(n: int) -> OSError | None:
    """Return the error of opening n more files, if there is one."""
    taken: list[int] = []
    try:
        for _ in range(n):
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        if error.errno not in EXHAUSTED:
            raise
        return error
    finally:
        for number in taken:
            os.close(number)
    return None


def _exhausted(name: str, error: OSError) -> FileReadError:
    return FileReadError(
        f"{name} cannot be opened or read: too many files are open in this process or "
        f"system; close others, or raise the limit (ulimit -n): {error}"
    )
