"""Files while they are written: their hidden names, who waits for whom, how they end.

In: the name that a file shall have. Out: `CheckedFile` objects for HDF5 to write through,
and the finished file, or the old one.

- `NewDraft`: a new file under a hidden name, which takes its own name when it is complete.
- `AppendDraft`: changes of a file under a hidden name (`xref.writing.checked_file.Overlay`),
  which are made in the file when they are complete.
- `EachBlock`: changes of a file that are made one block after the other.

Drafts are plain names: they travel to other processes, which write blocks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from typing import TypeAlias, TypeVar

from xref.errors import FileChangedError, FileWriteError, XrefError
from xref.storage import close_files, drop_all
from xref.writing.checked_file import CheckedFile, Overlay, PlainStore, Records, write_error
from xref.writing.uninterrupted import check_interrupt

APPENDS_SECONDS = 60.0
"""How long an append waits for other appends to the same file."""

READERS_SECONDS = 10.0
"""How long an append waits for those who have the file open."""

_POLL_SECONDS = 0.005

_DRAFTS_KEPT = 16

T = TypeVar("T")

_Version: TypeAlias = tuple[int, int, int, int]
"""Device, inode, bytes, and the time (ns) of the last write."""


@dataclass(frozen=True, slots=True)
class NewDraft:
    """A new file that is being written.

    Attributes
    ----------
    filename : str
        The name that it shall have.
    path : str
        The hidden name that it has.
    replaces : bool
        Whether it may take the place of a file that is there.
    """

    filename: str
    path: str
    replaces: bool

    @classmethod
    def of(cls, filename: str, *, replaces: bool) -> NewDraft:
        """Choose a hidden name."""
        return cls(filename, _hidden(filename), replaces)

    def create(self) -> None:
        """Make the hidden file, which no one may read who may not read the old one."""
        private = os.path.exists(self.filename)
        with naming(self.filename):
            _open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666
            ).close()

    @contextmanager
    def open(self) -> Iterator[CheckedFile]:
        """Open the hidden file; others wait until it is closed again."""
        with _used_by_one(self.path, self.filename) as file:
            with naming(self.filename):
                stored = CheckedFile(PlainStore(file), self.filename)
            with _closed_and_checked(stored, file):
                yield stored

    def publish(self) -> None:
        """Give the file its name, once all of it is on disk."""
        with naming(self.filename), _open_draft(self.path, self.filename) as file:
            with suppress(FileNotFoundError):
                _take_over(self.filename, file)
            os.fsync(file.fileno())
            if self.replaces:
                _replace(self.path, self.filename)
            else:
                _name_new(self.path, self.filename)

    def remove(self) -> None:
        """Remove the hidden file, and wait for who still writes to it."""
        _remove_unused(self.path)


@dataclass(frozen=True, slots=True)
class AppendDraft:
    """Changes of a file that are being written.

    Attributes
    ----------
    filename : str
        The file.
    path : str
        The hidden name of the changes.
    version : tuple of int
        Of the file.
    """

    filename: str
    path: str
    version: _Version

    @classmethod
    def of(cls, filename: str) -> AppendDraft:
        """Choose a hidden name."""
        with naming(filename):
            return cls(filename, _hidden(filename), _version(os.stat(filename)))

    def create(self) -> None:
        """Make the hidden file, for its owner alone."""
        with naming(self.filename):
            _open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600).close()
        _keep(_records, self.path, Records())

    @contextmanager
    def open(self) -> Iterator[CheckedFile]:
        """Open the file with its changes; others wait until it is closed again."""
        with (
            _used_by_one(self.path, self.filename) as held,
            _open_to_read(self.filename) as base,
        ):
            with naming(self.filename):
                self._check(base)
                overlay = Overlay(base, self.version[2], held, _records.get(self.path))
                _keep(_records, self.path, overlay.records)
                stored = CheckedFile(overlay, self.filename)
            with _closed_and_checked(stored, held):
                yield stored

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Keep other programs from writing the file, as HDF5's locks do; they may read it.

        Raises
        ------
        BlockingIOError
            If someone has it open for a long time: it could not be published.
        """
        with naming(self.filename):
            file = _open(self.filename, os.O_RDWR)
        with file:
            with naming(self.filename):
                _lock_for_writing(file, self.filename)
                self._check(file)
                _lock(file, fcntl.LOCK_SH)
            yield

    def publish(self) -> None:
        """Make the changes in the file, and see that they are on disk.

        Raises
        ------
        FileChangedError
            If someone else has changed the file.
        BlockingIOError
            If someone has it open.
        """
        with (
            naming(self.filename),
            _open_draft(self.path, self.filename) as held,
            _open(self.filename, os.O_RDWR) as target,
        ):
            _lock_for_writing(target, self.filename)
            self._check(target)
            overlay = Overlay(target, self.version[2], held, _records.get(self.path))
            overlay.commit(target, self.filename)

    def _check(self, file: FileIO) -> None:
        try:
            named = _version(os.stat(self.filename))
        except FileNotFoundError:
            named = None
        if not self.version == named == _version(os.fstat(file.fileno())):
            raise FileChangedError(
                f"{self.filename} was changed by another program while it was appended to; "
                "nothing was appended: do it again"
            )

    def remove(self) -> None:
        """Remove the hidden file, and wait for who still writes to it."""
        _remove_unused(self.path)
        _records.pop(self.path, None)


@dataclass(frozen=True, slots=True)
class EachBlock:
    """A file that is changed block by block, each of them complete or not there."""

    filename: str

    @contextmanager
    def open(self) -> Iterator[CheckedFile]:
        """Open the file, and change it when what was written is complete."""
        with appending(self.filename):
            draft = AppendDraft.of(self.filename)
            try:
                draft.create()
                with draft.unchanged(), draft.open() as stored:
                    yield stored
                draft.publish()
            finally:
                draft.remove()

    def publish(self) -> None:
        """Do nothing: every block is on disk."""

    def remove(self) -> None:
        """Do nothing: what is there was there before."""


Draft: TypeAlias = NewDraft | AppendDraft | EachBlock


# --- locks -----------------------------------------------------------------------------


@contextmanager
def appending(filename: str) -> Iterator[None]:
    """Append to a file after all others who do have ended.

    Others are to_hdf5 in any thread or process. They lock a hidden file, which is removed
    at the end; HDF5's own lock is taken for an instant only, so that readers can go on.

    Raises
    ------
    BlockingIOError
        If that takes too long.
    """
    lock = _AppendLock(filename)
    deadline = time.monotonic() + APPENDS_SECONDS
    try:
        while not lock.take():
            _wait(deadline, filename, "it is appended to by another thread or process")
        yield
    finally:
        lock.leave()


class _AppendLock:
    """A hidden file that whoever appends has locked, and removes."""

    def __init__(self, filename: str) -> None:
        folder, name = os.path.split(filename)
        number = zlib.crc32(os.fsencode(name))
        self._filename = filename
        self._path = os.path.join(folder, f".{name[:50]}.{number:08x}.append")
        self._file: FileIO | None = None

    def take(self) -> bool:
        """Lock the file; return False if someone else has it."""
        with naming(self._filename):
            self._file = _open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            if not _lock(self._file, fcntl.LOCK_EX):
                self._file.close()
                self._file = None
                return False
            if _is_at(self._file, self._path):
                return True
        self._file.close()  # who had it has removed it
        self._file = None
        return False

    def leave(self) -> None:
        """Remove the file, if it is locked here."""
        if self._file is None:
            return
        if _lock(self._file, fcntl.LOCK_EX):
            _remove(self._path)  # first: who gets the lock sees that the file is gone
        self._file.close()
        self._file = None


def _lock_for_writing(file: FileIO, filename: str) -> None:
    """Lock a file as HDF5 does to write it, until it is closed.

    Raises
    ------
    BlockingIOError
        If someone has it open for a long time.
    """
    if os.environ.get("HDF5_USE_FILE_LOCKING", "").upper() in ("FALSE", "0"):
        close_files()
        return
    drop_all()  # which has most of the handles of this process closed
    if _lock(file, fcntl.LOCK_EX):
        return
    close_files()
    deadline = time.monotonic() + READERS_SECONDS
    while not _lock(file, fcntl.LOCK_EX):
        _wait(deadline, filename, "it is open elsewhere: close it")


def _lock(file: FileIO, operation: int) -> bool:
    """Lock a file, if no one else has; file systems without locks are not locked."""
    try:
        fcntl.flock(file.fileno(), operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
    return True


def _wait(deadline: float, filename: str, reason: str) -> None:
    check_interrupt()
    if time.monotonic() > deadline:
        raise BlockingIOError(errno.EAGAIN, f"nothing was appended, because {reason}", filename)
    time.sleep(_POLL_SECONDS)


# --- files -----------------------------------------------------------------------------

_records: dict[str, Records] = {}
"""Of the drafts that this process writes to, by their hidden names."""


_failures: dict[str, BaseException] = {}
"""Of drafts, by their hidden names: what those who came later found no file for."""


def first_failure(draft: Draft) -> BaseException | None:
    """Return why a draft cannot be written any more, if that happened in this process."""
    return None if isinstance(draft, EachBlock) else _failures.pop(draft.path, None)


def _keep(kept: dict[str, T], path: str, value: T) -> None:
    """Keep something of a draft, and of the last few others."""
    kept[path] = value
    while len(kept) > _DRAFTS_KEPT:
        del kept[next(iter(kept))]


def _hidden(filename: str) -> str:
    folder, name = os.path.split(filename)
    return os.path.join(folder, f".{name[:50]}.{uuid.uuid4().hex[:8]}.part")


def _open(path: str, flags: int, mode: int = 0) -> FileIO:
    """Open a file without a buffer."""
    return FileIO(path, "r+", opener=lambda name, _: os.open(name, flags | os.O_CLOEXEC, mode))


def _open_to_read(filename: str) -> FileIO:
    with naming(filename):
        return FileIO(filename, "r")


@contextmanager
def naming(filename: str) -> Iterator[None]:
    """Let errors of the operating system name the user's file."""
    try:
        yield
    except XrefError:
        raise
    except (PermissionError, BlockingIOError) as error:
        raise type(error)(error.errno, error.strerror, filename) from error
    except OSError as error:
        raise write_error(error, filename) from error


@contextmanager
def _open_draft(path: str, filename: str) -> Iterator[FileIO]:
    """Open a hidden file, which is gone if writing it has failed."""
    with naming(filename):
        try:
            file = _open(path, os.O_RDWR)
        except FileNotFoundError as error:
            raise FileWriteError(
                errno.ENOENT, "writing it has ended, or failed before; begin again", filename
            ) from error
    with file:
        yield file


@contextmanager
def _used_by_one(path: str, filename: str) -> Iterator[FileIO]:
    """Open a hidden file, one process at a time; remove it if what is done with it fails."""
    with _open_draft(path, filename) as file:
        with naming(filename):
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            if not _is_at(file, path):
                raise FileWriteError(errno.ENOENT, "writing it has failed before", filename)
        try:
            yield file
        except BaseException as error:
            # HDF5 may have written half of a block: no one shall go on with this file.
            _keep(_failures, path, error)
            _remove(path)
            raise


@contextmanager
def _closed_and_checked(stored: CheckedFile, file: FileIO) -> Iterator[CheckedFile]:
    """Close a file after HDF5 has, and raise the first error of all that it wrote."""
    try:
        yield stored
    except BaseException:
        stored.check()  # HDF5's error may only be what follows from it
        raise
    stored.attempt(file.close)
    stored.check()


def _is_at(file: FileIO, path: str) -> bool:
    """Tell whether an open file is still the one of a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _version(status: os.stat_result) -> _Version:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _remove_unused(path: str) -> None:
    """Remove a hidden file, and wait until no thread or process writes to it any more.

    After an interrupt the threads of a scheduler go on with the block that they have begun.
    Those that come later find no file.
    """
    try:
        file = _open(path, os.O_RDWR)
    except OSError:  # there is none, or no one can wait for it
        _remove(path)
    else:
        with file:
            _remove(path)
            with suppress(OSError):  # there are no locks: no block has been written
                fcntl.flock(file.fileno(), fcntl.LOCK_EX)
    _failures.pop(path, None)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.remove(path)


def _take_over(filename: str, file: FileIO) -> None:
    """Give a file the owner, the group, the access rights and attributes of another one.

    Where the owner or group cannot be given away, those who get the file in their place
    may not do with it what they could not do with the other one.
    """
    old, number = os.stat(filename), file.fileno()
    mode = old.st_mode & 0o777
    try:
        os.fchown(number, old.st_uid, old.st_gid)
    except PermissionError:
        try:
            os.fchown(number, -1, old.st_gid)
        except PermissionError:
            mode &= 0o707
    for name in _extended_attributes(filename):
        with suppress(OSError):  # not every file system and user can
            os.setxattr(number, name, os.getxattr(filename, name))
    os.fchmod(number, mode)


def _extended_attributes(filename: str) -> list[str]:
    if not hasattr(os, "listxattr"):
        return []
    try:
        return os.listxattr(filename)
    except OSError:
        return []


def _replace(path: str, filename: str) -> None:
    """Rename a file to the name of another one; if that is not on disk, undo it."""
    kept = f"{path}.old"
    is_there = os.path.exists(filename)
    can_undo = not is_there or _link(filename, kept)
    try:
        os.replace(path, filename)
        if can_undo:
            _sync_folder(filename)
    except BaseException as error:
        try:
            if is_there and can_undo:
                os.replace(kept, filename)
            elif not is_there:
                _remove(filename)
        except OSError as worse:
            raise FileWriteError(
                worse.errno or errno.EIO,
                f"{worse.strerror}; the new file is there, but perhaps not after a power "
                "failure, and the old one could not be restored",
                filename,
            ) from error
        raise
    finally:
        _remove(kept)


def _name_new(path: str, filename: str) -> None:
    """Name a file if there is none of that name.

    Raises
    ------
    FileChangedError
        If there is one.
    """
    try:
        if not _link(path, filename):
            if os.path.exists(filename):
                raise FileExistsError
            os.rename(path, filename)
    except FileExistsError as error:
        raise FileChangedError(
            f"{filename} was made by another program meanwhile; nothing was appended to it: "
            "do it again"
        ) from error
    try:
        _sync_folder(filename)
    except BaseException:
        _remove(filename)
        raise
    _remove(path)


def _link(filename: str, other: str) -> bool:
    """Give a file another name; return False where the file system has no hard links."""
    try:
        os.link(filename, other)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            return False
        raise
    return True


def _sync_folder(filename: str) -> None:
    folder = os.open(os.path.dirname(filename), os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # no folders are synced there
            raise
    finally:
        os.close(folder)
