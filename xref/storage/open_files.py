"""Files open in this process: which version is open, and for how long.

In: a `FileLocation`. Out: open `h5py.File` objects for immediate use. Nothing that h5py
made is put into a graph. Handles are kept while there is room for them
(`xref.storage.handle_pools`), so any call here is safe from any thread.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import h5py
from h5py import h5f

from xref.errors import FileChangedError, FileReadError, XrefError
from xref.storage.handle_pools import (
    DESCRIPTORS,
    EXHAUSTED,
    FILES,
    REMOTE_FILES,
    Reopenable,
    drop_all,
)
from xref.storage.location import FileLocation
from xref.storage.sources import (
    ByteHandle,
    FileSource,
    Identity,
    LocalFile,
    OpenFile,
    as_options,
)

EXTERNAL_POLICIES = ("same-dir", "all", "none")


ATTEMPTS = 8
"""How often a handle is replaced that is of another version than the path."""


_WRITER_HINT = (
    'wait until it is closed, or pass driver_kwds={"swmr": True} where the writer is in '
    "HDF5's mode for one writer and many readers"
)


def locate_file(
    path: str | os.PathLike[str],
    external: str = "same-dir",
    options: Mapping[str, Any] | None = None,
) -> FileLocation:
    """Return the location of a local file as it is now.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileReadError
        If it is no regular file: a device, a pipe or a folder.
    ValueError
        If ``external`` is not one of its three values.
    """
    filename = os.path.abspath(os.path.expanduser(os.fspath(path)))
    return locate_source(LocalFile(filename, as_options(options)), external)


def locate_source(source: FileSource, external: str = "same-dir") -> FileLocation:
    """Return the location of a source as it is now; see `locate_file`.

    What a writer in this process has not written yet is flushed; the file is then read
    through HDF5 alone.
    """
    if external not in EXTERNAL_POLICIES:
        raise ValueError(f"external is {external!r}; it can be one of {EXTERNAL_POLICIES}")
    if source.open_for_writing and isinstance(source, OpenFile):
        source.file.flush()
    location = FileLocation(source, source.identity(), external)
    if source.open_for_writing or not isinstance(source, LocalFile):
        return location
    opened = _open_version(location)
    if not opened.is_written:
        return location
    # HDF5 shares one state of a file among all in this process who opened it.
    opened.file.flush()
    written = replace(source, shared_with_writer=True)
    return FileLocation(written, written.identity(), external)


def check_unchanged(location: FileLocation) -> None:
    """Raise `FileChangedError` unless the file is still the one that was located.

    Raises
    ------
    ExternalFileError, DanglingReferenceError
        If it never was: the file that a reference names is not allowed, or not there.
    """
    try:
        now = location.source.known_identity()
    except FileNotFoundError as error:
        raise FileChangedError(f"{location.filename} is gone since it was opened") from error
    if not is_same_version(location, now):
        raise FileChangedError(
            f"{location.filename} has changed since it was opened: its identity (of a local "
            "file device, inode, bytes, times of write and change) was "
            f"{location.identity} and is {now}; open it again"
        )


def is_same_version(location: FileLocation, identity: Identity) -> bool:
    """Tell whether an identity is that of the located version."""
    # Not by device: machines that share a file system may number its devices each in its
    # own way.
    if location.source.open_for_writing:
        return bool(location.identity[1] == identity[1])
    return location.identity[1:] == identity[1:]


@dataclass(slots=True)
class CheckedGroups:
    """What has been checked of the groups of one open file."""

    addresses: set[int] = field(default_factory=set)
    """Object headers of the groups that passed."""

    segments: dict[int, int] = field(default_factory=dict)
    """Heaps by data segment, which HDF5 must not meet twice under one address."""


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """A file open in h5py, and which version of it.

    It is dropped and not closed, unless it is of an earlier version: h5py's ``File.close``
    would pull the file from under other threads.
    """

    identity: Identity
    file: h5py.File
    is_written: bool  # by someone in this process, too


_opened: weakref.WeakValueDictionary[int, h5py.File] = weakref.WeakValueDictionary()


def _close_earlier(identity: Identity) -> None:
    """Close what is open of earlier versions of a file, whoever holds it.

    HDF5 has one state of a file as long as anyone in the process has it open, so a new
    handle would go on with the metadata of an earlier version. What reads that is told so.
    """
    # Not `values`, which fails while other threads open files.
    for reference in _opened.valuerefs():
        file = reference()
        if file is None:
            continue
        before = file._xref_identity
        if before is not None and before[:2] == identity[:2] and before != identity:
            file.close()


def _open_hdf5(source: FileSource) -> _OpenFile:
    """Open a file, and see that it stays the same meanwhile."""
    identity = source.known_identity()
    if isinstance(source, LocalFile) and not source.open_for_writing:
        _close_earlier(identity)
    try:
        file = source.open_hdf5()
    except (XrefError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        writer = isinstance(error, BlockingIOError) or "already open" in str(error)
        hint = "; a writer has it open: " + _WRITER_HINT if writer else ""
        raise FileReadError(f"{source.name}: HDF5 cannot open it: {error}{hint}") from error
    if not source.open_for_writing and source.known_identity() != identity:
        raise FileChangedError(f"{source.name} changed while it was opened; open it again")
    file._xref_checks = CheckedGroups()
    file._xref_identity = (
        identity if isinstance(source, LocalFile) and not source.open_for_writing else None
    )
    _opened[id(file)] = file
    written = file.id.get_intent() & (h5f.ACC_RDWR | h5f.ACC_SWMR_READ)
    return _OpenFile(identity, file, bool(written))


class _Handles:
    """Handles of one source in this process, shared by all locations of it.

    What they hold is dropped when the last location lets go of them.
    """

    def __init__(self, source: FileSource, pid: int) -> None:
        self.pid = pid
        self.hdf5: Reopenable[_OpenFile] = Reopenable(
            partial(_open_hdf5, source), FILES, source.name
        )
        pool = REMOTE_FILES if source.remote else DESCRIPTORS
        self.bytes: Reopenable[ByteHandle] = Reopenable(source.open_bytes, pool, source.name)

    def drop(self) -> None:
        self.hdf5.drop()
        self.bytes.drop()

    def __del__(self) -> None:
        self.drop()


_handles: weakref.WeakValueDictionary[tuple[FileSource, int], _Handles] = (
    weakref.WeakValueDictionary()
)


_handles_lock = threading.Lock()


def handles_of(location: FileLocation) -> _Handles:
    """Return the handles of a file, held open by ``location`` unless it is a key."""
    pid = os.getpid()
    if location.handles and location.handles[0].pid == pid:
        held: _Handles = location.handles[0]
        return held
    with _handles_lock:
        handles = _handles.get((location.source, pid))
        if handles is None:
            handles = _handles[location.source, pid] = _Handles(location.source, pid)
    if location.holds_file:
        location.handles[:] = [handles]
    return handles


def open_file(location: FileLocation) -> h5py.File:
    """Return the open file, checked to be the version that was located."""
    opened = _open_version(location)
    if opened.is_written and not location.source.open_for_writing:
        raise FileChangedError(
            f"{location.filename} has been opened for writing in this process since it was "
            "opened for reading; open it again, or close the writer"
        )
    return opened.file


def _open_version(location: FileLocation) -> _OpenFile:
    """Open the version that was located.

    A handle of an earlier version is let go: HDF5 would go on using what it has read.
    """
    handles = handles_of(location)
    for _ in range(ATTEMPTS):
        check_unchanged(location)
        opened = handles.hdf5.get()
        if is_same_version(location, opened.identity):
            return opened
        handles.hdf5.drop()
        del opened  # HDF5 opens a file once as long as anyone has it open
    raise FileChangedError(f"{location.filename} changes all the time; open it again")


def close_file(location: FileLocation) -> None:
    """Close this process's handles of a file; a later read opens it again."""
    handles_of(location).drop()


def close_files() -> None:
    """Close all handles of this process; a later read opens its file again."""
    from xref.storage.fsspec_cache import forget_copies
    from xref.storage.remote import forget_remote_files

    drop_all()
    forget_remote_files()
    forget_copies()
    gc.collect()
