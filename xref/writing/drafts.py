"""Files while they are written under a hidden name, until they are published or removed.

In: the final name of a file. Out: `CheckedFile` objects for HDF5 to write through, and the
finished file, or the old one.

- `NewDraft`: a new file under a hidden name; it gets its final name when it is complete.
- `AppendDraft`: changes of a file, collected in a hidden file
  (`xref.writing.checked_file.Overlay`), and made in the file itself when they are complete.
- `EachBlock`: changes of a file that are made block by block.

Drafts hold plain names, so they can be sent to other processes, which write blocks.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from typing import TypeAlias, TypeVar

from xref.errors import FileChangedError, FileWriteError
from xref.writing import hidden_files
from xref.writing.append_lock import appending, lock_for_writing
from xref.writing.checked_file import CheckedFile, Overlay, PlainStore, Records

_DRAFTS_KEPT = 16

T = TypeVar("T")

_Version: TypeAlias = tuple[int, int, int, int]
"""Device, inode, bytes, and the time (ns) of the last write."""


@dataclass(frozen=True, slots=True)
class NewDraft:
    """A new file that is being written."""

    filename: str  # its final name
    path: str  # its hidden name
    replaces: bool  # whether it may replace an existing file

    @classmethod
    def of(cls, filename: str, *, replaces: bool) -> NewDraft:
        """Choose a hidden name."""
        return cls(filename, hidden_files.hidden_name(filename), replaces)

    def create(self) -> None:
        """Create the hidden file; if it replaces a file, for its owner alone at first."""
        is_private = os.path.exists(self.filename)
        with hidden_files.naming(self.filename):
            hidden_files.create_hidden(self.path, 0o600 if is_private else 0o666)

    @contextmanager
    def open(self) -> Iterator[CheckedFile]:
        """Open the hidden file; other threads and processes wait until it is closed."""
        with _open_exclusively(self.path, self.filename) as file:
            with hidden_files.naming(self.filename):
                stored = CheckedFile(PlainStore(file), self.filename)
            with _check_at_close(stored, file):
                yield stored

    def publish(self) -> None:
        """Give the file its final name, once all of it is on disk."""
        with hidden_files.naming(self.filename), _open_draft(self.path, self.filename) as file:
            with suppress(FileNotFoundError):
                hidden_files.copy_permissions(self.filename, file)
            os.fsync(file.fileno())
            (hidden_files.replace_file if self.replaces else hidden_files.rename_new)(
                self.path, self.filename
            )

    def remove(self) -> None:
        """Remove the hidden file, once no thread or process writes to it."""
        _remove_draft(self.path)


@dataclass(frozen=True, slots=True)
class AppendDraft:
    """Changes of a file that are being written."""

    filename: str
    path: str  # hidden name of the file of changes
    version: _Version  # of the file before the changes

    @classmethod
    def of(cls, filename: str) -> AppendDraft:
        """Choose a hidden name."""
        with hidden_files.naming(filename):
            return cls(
                filename, hidden_files.hidden_name(filename), _version(os.stat(filename))
            )

    def create(self) -> None:
        """Create the hidden file, for its owner alone."""
        with hidden_files.naming(self.filename):
            hidden_files.create_hidden(self.path, 0o600)
        _keep(_records, self.path, Records())

    @contextmanager
    def open(self) -> Iterator[CheckedFile]:
        """Open the file with its changes; other threads and processes wait meanwhile."""
        with _open_exclusively(self.path, self.filename) as changes:
            with hidden_files.naming(self.filename):
                base = FileIO(self.filename, "r")
            with base:
                with hidden_files.naming(self.filename):
                    self._check(base)
                    overlay = Overlay(base, self.version[2], changes, _records.get(self.path))
                    _keep(_records, self.path, overlay.records)
                    stored = CheckedFile(overlay, self.filename)
                with _check_at_close(stored, changes):
                    yield stored

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Keep other programs from writing the file, as HDF5's locks do; they may read it.

        Raises
        ------
        BlockingIOError
            If a reader has it open for so long that it could not be published.
        """
        with hidden_files.naming(self.filename):
            file = hidden_files.open_unbuffered(self.filename)
        with file:
            with hidden_files.naming(self.filename):
                lock_for_writing(file, self.filename)
                self._check(file)
                hidden_files.try_lock(file, fcntl.LOCK_SH)
            yield

    def publish(self) -> None:
        """Make the changes in the file, and wait until they are on disk.

        Raises
        ------
        FileChangedError
            If another program has changed the file.
        BlockingIOError
            If another program has the file open.
        """
        with (
            hidden_files.naming(self.filename),
            _open_draft(self.path, self.filename) as changes,
            hidden_files.open_unbuffered(self.filename) as target,
        ):
            lock_for_writing(target, self.filename)
            self._check(target)
            overlay = Overlay(target, self.version[2], changes, _records.get(self.path))
            overlay.commit(target, self.filename)

    def _check(self, file: FileIO) -> None:
        try:
            named = _version(os.stat(self.filename))
        except FileNotFoundError:
            named = None
        if not self.version == named == _version(os.fstat(file.fileno())):
            raise FileChangedError(
                f"{self.filename} was changed by another program during the append; nothing "
                "was appended; do it again"
            )

    def remove(self) -> None:
        """Remove the hidden file, once no thread or process writes to it."""
        _remove_draft(self.path)
        _records.pop(self.path, None)


@dataclass(frozen=True, slots=True)
class EachBlock:
    """A file that is changed block by block; each block is written completely or not at all."""

    filename: str

    @contextmanager
    def open(self) -> Iterator[CheckedFile]:
        """Open the file, and change it when the block is complete."""
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
        """Do nothing: the file existed before."""


Draft: TypeAlias = NewDraft | AppendDraft | EachBlock

_records: dict[str, Records] = {}
"""Records of the drafts that this process writes to, by their hidden names."""

_failures: dict[str, BaseException] = {}
"""First error of each draft, by its hidden name. Later writers only report a missing file."""


def first_failure(draft: Draft) -> BaseException | None:
    """Return the error that ended a draft, if it was raised in this process."""
    return None if isinstance(draft, EachBlock) else _failures.pop(draft.path, None)


def _keep(entries: dict[str, T], path: str, value: T) -> None:
    """Store a value for a draft; only the last `_DRAFTS_KEPT` entries are kept."""
    entries[path] = value
    while len(entries) > _DRAFTS_KEPT:
        del entries[next(iter(entries))]


def _remove_draft(path: str) -> None:
    hidden_files.remove_unused(path)
    _failures.pop(path, None)


@contextmanager
def _open_draft(path: str, filename: str) -> Iterator[FileIO]:
    """Open a hidden file; it does not exist any more if writing it has failed."""
    with hidden_files.naming(filename):
        try:
            file = hidden_files.open_unbuffered(path)
        except FileNotFoundError as error:
            raise FileWriteError(
                errno.ENOENT, "writing it has ended, or failed before; begin again", filename
            ) from error
    with file:
        yield file


@contextmanager
def _open_exclusively(path: str, filename: str) -> Iterator[FileIO]:
    """Open and lock a hidden file; remove it if the block fails."""
    with _open_draft(path, filename) as file:
        with hidden_files.naming(filename):
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            if not hidden_files.is_at(file, path):
                raise FileWriteError(errno.ENOENT, "writing it has failed before", filename)
        try:
            yield file
        except BaseException as error:
            # HDF5 may have written half of a block, so this file must not be used again.
            _keep(_failures, path, error)
            hidden_files.remove_if_there(path)
            raise


@contextmanager
def _check_at_close(stored: CheckedFile, file: FileIO) -> Iterator[None]:
    """Close a file after HDF5 has closed it, and raise the first error of its writes."""
    try:
        yield
    except BaseException:
        stored.check()  # HDF5's error may only be a consequence
        raise
    stored.attempt(file.close)
    stored.check()


def _version(status: os.stat_result) -> _Version:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
