"""Files open in this process: their versions, and how long they stay open.

In: a `FileLocation`. Out: open `h5py.File` objects for immediate use; none is put into a
graph. Handles stay open while their pool has room (`xref.storage.handle_pools`). All
functions may be called from any thread.

A local file that is open stays readable after it was moved or deleted: its version is then
read from a descriptor, not from its path. Each version of a file has handles of its own.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import h5py
from h5py import h5f

from xref.arrays import KnownRanges
from xref.errors import FileChangedError, FileReadError, XrefError
from xref.options import get_option
from xref.storage import handle_pools, sources
from xref.storage.location import FileLocation, describe_difference, is_same_identity

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
    *,
    strict: bool = False,
) -> FileLocation:
    """Return the location of a local file as it is now.

    The version contains the ctime if ``strict`` or the option ``strict_version`` is True.

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
    source = sources.LocalFile(filename, sources.as_options(options), strict=strict)
    return locate_source(source, external)


def locate_source(source: sources.FileSource, external: str = "same-dir") -> FileLocation:
    """Return the location of a source as it is now; see `locate_file`.

    If this process has the file open for writing, the writer's data are flushed, and only
    HDF5 reads the file.
    """
    if external not in EXTERNAL_POLICIES:
        raise ValueError(f"external is {external!r}; it can be one of {EXTERNAL_POLICIES}")
    if get_option("strict_version"):
        source = source.with_strict_version()
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
    """Raise `FileChangedError` unless the located version of the file can still be read.

    A version that this process has open can be, wherever its path leads by now.

    Raises
    ------
    FileReadError
        If the system does not tell which version is at the path.
    ExternalFileError, DanglingReferenceError
        If a reference names the file, and it does not exist or is not allowed.
    """
    handles = _open_handles_of(location)
    if handles is None or not handles.hold(location):
        check_at_path(location)


def check_at_path(location: FileLocation) -> None:
    """Raise `FileChangedError` unless the path or URL leads to the located version.

    Files that a file names (in links, as virtual sources) are found by its path.
    """
    try:
        now = location.source.known_identity()
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        if isinstance(error, XrefError):
            raise
        raise _not_reopened(location, error) from error
    if not is_same_version(location, now):
        raise _changed(location, now)


def _not_reopened(location: FileLocation, error: OSError) -> XrefError:
    """Return the error for a file that its path does not open any more."""
    if isinstance(error, PermissionError):
        return FileReadError(f"{location.filename} cannot be opened again: {error}")
    return FileChangedError(f"{location.filename} was deleted or moved since it was opened")


def _changed(location: FileLocation, now: sources.Identity) -> FileChangedError:
    return FileChangedError(
        f"{location.filename} has changed since it was opened: "
        f"{describe_difference(location.identity, now)}; open it again"
    )


def is_same_version(location: FileLocation, identity: sources.Identity) -> bool:
    """Tell whether an identity is that of the located version."""
    if location.source.open_for_writing:
        return bool(location.identity[1] == identity[1])
    return is_same_identity(location.identity, identity)


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

    identity: sources.Identity  # when HDF5 opened it: the version of HDF5's cached metadata
    file: h5py.File
    is_written: bool  # this process also has it open for writing
    descriptor: int | None  # by which HDF5 reads a local file

    @property
    def was_closed(self) -> bool:
        """Whether it was closed because the file was opened in a later version."""
        return bool(self.file._xref_closed)

    def identity_now(self, source: sources.FileSource) -> sources.Identity:
        """Return the identity of the open file as it is now."""
        if self.descriptor is None:
            return source.known_identity()
        return sources.identify(os.fstat(self.descriptor), strict=source.strict)


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
        if before is None or before[:2] != identity[:2]:
            continue
        if not is_same_identity(before, identity):
            file._xref_closed = True
            file.close()


def _open_hdf5(source: sources.FileSource, wanted: sources.Identity | None) -> _OpenFile:
    """Open a file; raise an error if it changes meanwhile.

    ``wanted`` is the identity of a local file that must be at the path; None stands for any.
    """
    identity = source.known_identity()
    if wanted is not None and not is_same_identity(identity, wanted):
        raise FileChangedError(
            f"{source.name} has changed since it was opened: "
            f"{describe_difference(wanted, identity)}; open it again"
        )
    local = isinstance(source, sources.LocalFile) and not source.open_for_writing
    if local:
        _close_earlier(identity)
    file = _open_in_h5py(source)
    descriptor = file.id.get_vfd_handle() if local and file.driver == "sec2" else None
    opened = _OpenFile(
        identity,
        file,
        bool(file.id.get_intent() & (h5f.ACC_RDWR | h5f.ACC_SWMR_READ)),
        descriptor,
    )
    if not source.open_for_writing and opened.identity_now(source) != identity:
        raise FileChangedError(f"{source.name} changed while it was opened; open it again")
    file._xref_checks = CheckedGroups()
    file._xref_closed = False
    file._xref_identity = identity if local else None
    _opened[id(file)] = file
    return opened


def _open_in_h5py(source: sources.FileSource) -> h5py.File:
    """Open a file in h5py; say what a reader can do if a writer has it open."""
    try:
        return source.open_hdf5()
    except (XrefError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except OSError as error:
        if error.errno in handle_pools.EXHAUSTED:
            raise
        hint = _hint_for(error)
        raise FileReadError(f"{source.name}: HDF5 cannot open it: {error}{hint}") from error


def _hint_for(error: OSError) -> str:
    """Return what a user can do after an error of HDF5 that opened a file."""
    text = str(error)
    if isinstance(error, BlockingIOError) or "already open" in text:
        return "; a writer has it open: " + _WRITER_HINT
    if "signature not found" in text:
        return "; it is no HDF5 file, or was not written completely"
    if "truncated file" in text:
        return "; its end is missing: copy or download it again"
    return ""


def _open_bytes(
    source: sources.FileSource,
    wanted: sources.Identity | None,
    hdf5: handle_pools.Reopenable[_OpenFile],
) -> sources.ByteHandle:
    """Open a file for positional reads.

    If another file is at its path by now, or none, but HDF5 has the wanted version open, that
    one is opened.
    """
    opened = hdf5.value
    if not isinstance(source, sources.LocalFile) or wanted is None or opened is None:
        return source.open_bytes()
    try:
        held = source.open_bytes()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        held = None
    if held is not None and is_same_identity(held.identity(), wanted):
        return held
    if opened.descriptor is not None:
        with suppress(OSError):  # it was closed meanwhile
            again = source.reopen_bytes(opened.descriptor)
            if is_same_identity(again.identity(), wanted):
                return again
    return source.open_bytes() if held is None else held


_Key: TypeAlias = tuple[sources.FileSource, Hashable, int]
"""Source, version of a local file, and process."""


class _Handles:
    """Handles of one version of a source in this process, shared by all its locations.

    The open files are dropped with the last location.
    """

    def __init__(self, source: sources.FileSource, wanted: sources.Identity | None) -> None:
        self.pid = os.getpid()
        self.wanted = wanted
        self._known: tuple[sources.Identity, KnownRanges] | None = None
        self.hdf5: handle_pools.Reopenable[_OpenFile] = handle_pools.Reopenable(
            partial(_open_hdf5, source, wanted), handle_pools.FILES, source.name
        )
        pool = handle_pools.REMOTE_FILES if source.remote else handle_pools.DESCRIPTORS
        self.bytes: handle_pools.Reopenable[sources.ByteHandle] = handle_pools.Reopenable(
            partial(_open_bytes, source, wanted, self.hdf5), pool, source.name
        )

    def known_metadata(self, location: FileLocation) -> KnownRanges:
        """Return the metadata of the located version that is in memory.

        It is read before HDF5 opens the file.
        """
        if location.source.open_for_writing:
            return _NOTHING_KNOWN  # HDF5 in the writer knows the metadata
        known = self._known
        if known is None or not is_same_identity(known[0], location.identity):
            known = self._known = location.identity, self._read_metadata(location)
        return known[1]

    def _read_metadata(self, location: FileLocation) -> KnownRanges:
        for _ in range(ATTEMPTS):
            held = self.bytes.get()
            if is_same_version(location, held.identity()):
                found = _read_known(held, location)
                if is_same_version(location, held.identity()):
                    return found
            check_unchanged(location)
            self.bytes.drop()
        raise _changes_again(location)

    def hold(self, location: FileLocation) -> bool:
        """Tell whether a descriptor of a local file is open in the located version."""
        if not location.source.outlives_its_path:
            return False
        held = self.bytes.value
        if held is not None and is_same_version(location, held.identity()):
            return True
        opened = self.hdf5.value
        if opened is None or opened.descriptor is None or opened.was_closed:
            return False
        try:
            now = opened.identity_now(location.source)
        except OSError:  # closed meanwhile
            return False
        return is_same_version(location, now)

    def drop(self) -> None:
        self.hdf5.drop()
        self.bytes.drop()

    def __del__(self) -> None:
        self.drop()


MetadataReader: TypeAlias = Callable[[Callable[[int, int], bytes], int, str], KnownRanges]
"""The signature of `xref.hdf5.read_known_metadata`."""

_metadata_readers: list[MetadataReader] = []

_NOTHING_KNOWN = KnownRanges((), (), equal_file=True)


def set_metadata_reader(reader: MetadataReader) -> None:
    """Set the function that reads metadata before HDF5 opens a file.

    `xref.objects` sets it, which knows the file format.
    """
    _metadata_readers[:] = [reader]


def _read_known(held: sources.ByteHandle, location: FileLocation) -> KnownRanges:
    def read(offset: int, n: int) -> bytes:
        buffer, done = bytearray(n), 0
        while done < n:
            more = held.read(offset + done, memoryview(buffer)[done:])
            if not more:
                raise FileReadError(
                    f"{location.filename}: {n} bytes requested at {offset:#x}, the file ended "
                    f"after {done}"
                )
            done += more
        return bytes(buffer)

    if not _metadata_readers:
        return _NOTHING_KNOWN
    return _metadata_readers[0](read, location.identity[2], location.filename)


_handles: weakref.WeakValueDictionary[_Key, _Handles] = weakref.WeakValueDictionary()
_handles_lock = threading.Lock()


def _key_of(location: FileLocation) -> _Key:
    # Device numbers differ between machines, and the versions of a file that is being written
    # share one state in HDF5.
    source = location.source
    one_version = source.outlives_its_path and not source.open_for_writing
    return source, location.identity[1:] if one_version else None, os.getpid()


def _open_handles_of(location: FileLocation) -> _Handles | None:
    """Return the handles of a file if this process has any."""
    if location.handles and location.handles[0].pid == os.getpid():
        held: _Handles = location.handles[0]
        return held
    return _handles.get(_key_of(location))


def handles_of(location: FileLocation) -> _Handles:
    """Return the handles of a file; a location with ``holds_file`` keeps them open."""
    if location.handles and location.handles[0].pid == os.getpid():
        held: _Handles = location.handles[0]
        return held
    key = _key_of(location)
    with _handles_lock:
        handles = _handles.get(key)
        if handles is None:
            wanted = None if key[1] is None else location.identity
            handles = _handles[key] = _Handles(location.source, wanted)
    if location.holds_file:
        location.handles[:] = [handles]
    return handles


def open_file(location: FileLocation) -> h5py.File:
    """Return the open file, checked to be the version that was located."""
    try:
        opened = _open_version(location)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        if isinstance(error, XrefError):
            raise
        raise _not_reopened(location, error) from error
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
        is_open = handles.hdf5.value is not None
        if not is_open and handles.wanted is None:
            check_unchanged(location)  # before HDF5 opens another version
        if not is_open:
            handles.known_metadata(location)
        opened = handles.hdf5.get()
        if is_same_version(location, opened.identity) and not opened.was_closed:
            now = opened.identity_now(location.source) if is_open else opened.identity
            if is_same_version(location, now):
                return opened
        del opened  # else HDF5 would open the same state again
        check_at_path(location)
        handles.hdf5.drop()
    raise _changes_again(location)


def _changes_again(location: FileLocation) -> FileChangedError:
    return FileChangedError(f"{location.filename} changes again and again; open it later")


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
