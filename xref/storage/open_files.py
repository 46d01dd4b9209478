"""Files open in this process: their versions, and how long they stay open.

In: a `FileLocation`. Out: open `h5py.File` objects for immediate use; none is put into a
graph. Handles stay open while their pool has room (`xref.storage.handle_pools`). All
functions may be called from any thread.
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
from xref.storage import handle_pools, sources
from xref.storage.location import FileLocation

EXTERNAL_POLICIES = ("same-dir", "all", "none")

ATTEMPTS = 8
"""How often a handle of another version than the located one is replaced."""

_WRITER_HINT = (
    'wait until it is closed, or pass driver_kwds={"swmr": True} where the writer is in '
    "HDF5's mode for one writer and several readers (SWMR)"
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
        If it is not a regular file, but a device, a pipe or a folder.
    ValueError
        If ``external`` is not one of its three values.
    """
    filename = os.path.abspath(os.path.expanduser(os.fspath(path)))
    return locate_source(sources.LocalFile(filename, sources.as_options(options)), external)


def locate_source(source: sources.FileSource, external: str = "same-dir") -> FileLocation:
    """Return the location of a source as it is now; see `locate_file`.

    If this process has the file open for writing, the writer's data are flushed, and only
    HDF5 reads the file.
    """
    if external not in EXTERNAL_POLICIES:
        raise ValueError(f"external is {external!r}; it can be one of {EXTERNAL_POLICIES}")
    if source.open_for_writing and isinstance(source, sources.OpenFile):
        source.file.flush()
    location = FileLocation(source, source.identity(), external)
    if source.open_for_writing or not isinstance(source, sources.LocalFile):
        return location
    opened = _open_version(location)
    if not opened.is_written:
        return location
    # All handles of a file in one process share one state in HDF5.
    opened.file.flush()
    written = replace(source, shared_with_writer=True)
    return FileLocation(written, written.identity(), external)


def check_unchanged(location: FileLocation) -> None:
    """Raise `FileChangedError` unless the file is still the one that was located.

    Raises
    ------
    ExternalFileError, DanglingReferenceError
        If a reference names the file, and it does not exist or is not allowed.
    """
    try:
        now = location.source.known_identity()
    except FileNotFoundError as error:
        raise FileChangedError(
            f"{location.filename} was deleted since it was opened"
        ) from error
    if not is_same_version(location, now):
        raise FileChangedError(
            f"{location.filename} has changed since it was opened: its identity (of a local "
            "file device, inode, bytes, times of write and change) was "
            f"{location.identity} and is {now}; open it again"
        )


def is_same_version(location: FileLocation, identity: sources.Identity) -> bool:
    """Tell whether an identity is that of the located version."""
    # The device is not compared: machines that share a file system may number its devices
    # differently.
    if location.source.open_for_writing:
        return bool(location.identity[1] == identity[1])
    return location.identity[1:] == identity[1:]


@dataclass(slots=True)
class CheckedGroups:
    """Checked groups of one open file."""

    addresses: set[int] = field(default_factory=set)
    """Addresses of the object headers of valid groups."""

    segments: dict[int, int] = field(default_factory=dict)
    """Local heaps by the address of their data segment, which must be unique for HDF5."""


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """A file open in h5py, and its version.

    It is dropped but not closed, since h5py's ``File.close`` would also close it for other
    threads. Files of an earlier version are closed.
    """

    identity: sources.Identity
    file: h5py.File
    is_written: bool  # this process also has it open for writing


_opened: weakref.WeakValueDictionary[int, h5py.File] = weakref.WeakValueDictionary()


def _close_earlier(identity: sources.Identity) -> None:
    """Close all handles of earlier versions of a file in this process.

    All handles of a file share one state in HDF5, so a new handle would use cached metadata
    of the earlier version. Readers of the earlier version get an error.
    """
    # `values` fails while other threads open files.
    for reference in _opened.valuerefs():
        file = reference()
        if file is None:
            continue
        before = file._xref_identity
        if before is not None and before[:2] == identity[:2] and before != identity:
            file.close()


def _open_hdf5(source: sources.FileSource) -> _OpenFile:
    """Open a file; raise an error if it changes meanwhile."""
    identity = source.known_identity()
    if isinstance(source, sources.LocalFile) and not source.open_for_writing:
        _close_earlier(identity)
    try:
        file = source.open_hdf5()
    except (XrefError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except OSError as error:
        if error.errno in handle_pools.EXHAUSTED:
            raise
        writer = isinstance(error, BlockingIOError) or "already open" in str(error)
        hint = "; a writer has it open: " + _WRITER_HINT if writer else ""
        raise FileReadError(f"{source.name}: HDF5 cannot open it: {error}{hint}") from error
    if not source.open_for_writing and source.known_identity() != identity:
        raise FileChangedError(f"{source.name} changed while it was opened; open it again")
    file._xref_checks = CheckedGroups()
    file._xref_identity = (
        identity
        if isinstance(source, sources.LocalFile) and not source.open_for_writing
        else None
    )
    _opened[id(file)] = file
    written = file.id.get_intent() & (h5f.ACC_RDWR | h5f.ACC_SWMR_READ)
    return _OpenFile(identity, file, bool(written))


class _Handles:
    """Handles of one source in this process, shared by all its locations.

    The open files are dropped with the last location.
    """

    def __init__(self, source: sources.FileSource, pid: int) -> None:
        self.pid = pid
        self.hdf5: handle_pools.Reopenable[_OpenFile] = handle_pools.Reopenable(
            partial(_open_hdf5, source), handle_pools.FILES, source.name
        )
        pool = handle_pools.REMOTE_FILES if source.remote else handle_pools.DESCRIPTORS
        self.bytes: handle_pools.Reopenable[sources.ByteHandle] = handle_pools.Reopenable(
            source.open_bytes, pool, source.name
        )

    def drop(self) -> None:
        self.hdf5.drop()
        self.bytes.drop()

    def __del__(self) -> None:
        self.drop()


_handles: weakref.WeakValueDictionary[tuple[sources.FileSource, int], _Handles] = (
    weakref.WeakValueDictionary()
)
_handles_lock = threading.Lock()


def handles_of(location: FileLocation) -> _Handles:
    """Return the handles of a file; a location with ``holds_file`` keeps them open."""
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
    """Return a handle of the located version.

    A handle of an earlier version is dropped: HDF5 would use its cached metadata.
    """
    handles = handles_of(location)
    for _ in range(ATTEMPTS):
        check_unchanged(location)
        opened = handles.hdf5.get()
        if is_same_version(location, opened.identity):
            return opened
        handles.hdf5.drop()
        del opened  # else HDF5 would open the same state again
    raise FileChangedError(f"{location.filename} changes again and again; open it later")


def close_file(location: FileLocation) -> None:
    """Close this process's handles of a file; a later read opens it again."""
    handles_of(location).drop()


def close_files() -> None:
    """Close all handles of this process; a later read opens its file again."""
    from xref.storage.fsspec_cache import forget_copies
    from xref.storage.remote import forget_remote_files

    handle_pools.drop_all()
    forget_remote_files()
    forget_copies()
    gc.collect()
