"""Locks of a file that is appended to: against other appends, and against HDF5's readers.

In: the user's file. Out: nothing; a call returns when the file is locked, or raises
`BlockingIOError`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO

from xref.storage import close_files, drop_all
from xref.writing.hidden_files import is_at, naming, open_unbuffered, remove_if_there, try_lock
from xref.writing.uninterrupted import check_interrupt

APPENDS_SECONDS = 60.0
"""How long an append waits for other appends to the same file."""

READERS_SECONDS = 10.0
"""How long an append waits for readers that have the file open."""

_POLL_SECONDS = 0.005


@contextmanager
def appending(filename: str) -> Iterator[None]:
    """Wait for other appends to a file, then keep others out while the block runs.

    Other appends are calls of to_hdf5 in any thread or process. They lock a hidden file,
    which is removed at the end. HDF5's own lock is taken for an instant only, so that readers
    can go on.

    Raises
    ------
    BlockingIOError
        If another append takes longer than `APPENDS_SECONDS`.
    """
    lock = _AppendLock(filename)
    deadline = time.monotonic() + APPENDS_SECONDS
    try:
        while not lock.take():
            _wait(deadline, filename, "another thread or process appends to it")
        yield
    finally:
        lock.leave()


class _AppendLock:
    """A hidden file that an append locks, and removes at its end."""

    def __init__(self, filename: str) -> None:
        folder, name = os.path.split(filename)
        number = zlib.crc32(os.fsencode(name))
        self._filename = filename
        self._path = os.path.join(folder, f".{name[:50]}.{number:08x}.append")
        self._file: FileIO | None = None

    def take(self) -> bool:
        """Lock the file; return False if another append has locked it."""
        with naming(self._filename):
            self._file = open_unbuffered(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            if not try_lock(self._file, fcntl.LOCK_EX):
                self._file.close()
                self._file = None
                return False
            if is_at(self._file, self._path):
                return True
        self._file.close()  # the append that had the lock has removed the file
        self._file = None
        return False

    def leave(self) -> None:
        """Remove the file, if it is locked here."""
        if self._file is None:
            return
        if try_lock(self._file, fcntl.LOCK_EX):
            # Removed before it is unlocked: the next append sees that the file is gone.
            remove_if_there(self._path)
        self._file.close()
        self._file = None


def lock_for_writing(file: FileIO, filename: str) -> None:
    """Lock a file as HDF5 does to write it, until it is closed.

    Raises
    ------
    BlockingIOError
        If a reader has it open for longer than `READERS_SECONDS`.
    """
    if os.environ.get("HDF5_USE_FILE_LOCKING", "").upper() in ("FALSE", "0"):
        close_files()
        return
    drop_all()  # closes most of the handles of this process
    if try_lock(file, fcntl.LOCK_EX):
        return
    close_files()
    deadline = time.monotonic() + READERS_SECONDS
    while not try_lock(file, fcntl.LOCK_EX):
        _wait(deadline, filename, "it is open elsewhere: close it")


def _wait(deadline: float, filename: str, reason: str) -> None:
    check_interrupt()
    if time.monotonic() > deadline:
        raise BlockingIOError(errno.EAGAIN, f"nothing was appended, because {reason}", filename)
    time.sleep(_POLL_SECONDS)
