"""What is open: kept for the next read, closed again to make room.

In: a function that opens something. Out: what it returned, opened once and shared by
all threads of the process. Dropping something does not close it under a reader: it
closes when the last one lets go of it.

No lock is held while something is dropped: that may happen in the middle of anything,
since the garbage collector does it too.
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
"""What the system says when a process, or all of them, have too many files open."""


class LRUPool:
    """Room for a number of open things; those that were used last stay.

    Parameters
    ----------
    limit : callable
        Returns how many there is room for; one at least.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        # Each operation on it is atomic: its keys are plain integers.
        self._kept: OrderedDict[int, Reopenable[Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def touch(self, kept: Reopenable[Any]) -> None:
        """Note that something was used just now."""
        try:
            self._kept.move_to_end(id(kept))
        except KeyError:
            self._kept[id(kept)] = kept
            limit = max(self._limit(), 1)
            while len(self._kept) > limit:
                self._drop_oldest()

    def forget(self, kept: Reopenable[Any]) -> None:
        """Take something out that is not open any more."""
        self._kept.pop(id(kept), None)

    def clear(self) -> None:
        """Drop everything."""
        while self._kept:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        try:
            _, oldest = self._kept.popitem(last=False)
        except KeyError:  # another thread took the last one
            return
        oldest.drop()


class Reopenable(Generic[T]):
    """Something that is opened when it is asked for, and kept while there is room.

    Parameters
    ----------
    open_it : callable
        Opens it.
    pool : LRUPool
        Where it takes one place.
    name : str
        For messages.
    """

    def __init__(self, open_it: Callable[[], T], pool: LRUPool, name: str) -> None:
        self._open_it = open_it
        self._pool = pool
        self._name = name
        self._value: T | None = None
        self._opening = threading.Lock()  # two threads do not open it twice

    def get(self) -> T:
        """Return what is open, or open it.

        Raises
        ------
        FileReadError
            If the system has no descriptor left, though all that is kept was dropped.
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
        gc.collect()  # files in circles of references
        try:
            return self._open_it()
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            raise _exhausted(self._name, error) from error

    def drop(self) -> None:
        """Let go of what is open; it closes when its last user does."""
        self._pool.forget(self)
        value, self._value = self._value, None
        if value is not None and is_transport_thread():
            _unclosed.append(value)


_unclosed: deque[Any] = deque()
"""What threads let go of that carry requests: closed by the next one that opens anything.

A file waits for HDF5's lock to close, whose holder may wait for an answer to a request.
"""


def _kept_by_xarray() -> int:
    return int(get_options()["file_cache_maxsize"])  # type: ignore[no-untyped-call]


FILES = LRUPool(lambda: 7 * _kept_by_xarray() // 32)
"""Files open in h5py: 28 while xarray's limit is at its default of 128, so that these, the
descriptors and what eight threads are about to open or to let go of stay below 64.
Opening one again takes a quarter of a millisecond, a tenth of what else a file costs
(benchmarks/manyfiles.py)."""

DESCRIPTORS = LRUPool(lambda: 3 * _kept_by_xarray() // 32)
"""Files open for positional reads: 12, since they open ten times as fast."""


REMOTE_FILES = LRUPool(lambda: _kept_by_xarray() // 2)
"""Remote files: they hold no descriptor, but blocks of metadata."""


def drop_all() -> None:
    """Let go of everything that is kept in this process."""
    for pool in (FILES, DESCRIPTORS, REMOTE_FILES):
        pool.clear()
    _unclosed.clear()


def check_descriptors(n: int, name: str) -> None:
    """See that so many more files can be opened; what is kept makes room for them.

    Raises
    ------
    FileReadError
        If they cannot; ``name`` is what needs them.
    """
    problem = _missing(n)
    if problem is not None:
        drop_all()
        gc.collect()
        problem = _missing(n)
    if problem is not None:
        raise _exhausted(name, problem) from problem


def _missing(n: int) -> OSError | None:
    """Return the error that opening some more files ends with."""
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
