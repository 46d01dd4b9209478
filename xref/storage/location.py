"""Files: where they are, which version, their bytes and the handles h5py has of them.

In: filenames. Out: a `FileLocation`, which travels in graphs and is opened again in
each process; positional reads; open `h5py.File` objects for immediate use. Nothing
that h5py made is put into a graph. Handles are kept while there is room for them
(`xref.storage.open_files`), so any call here is safe from any thread.

h5py is imported where files are opened (`xref.storage.sources`, `xref.storage.fsspec_cache`,
`xref.storage.remote`, `xref.storage.inputs`, `xref.writing.write_hdf5`), in modules whose name
begins with ``h5``, and by the demo that writes a file. The bytes of region references never go
to HDF5: they are decoded in `xref.hdf5.selection_decoding`.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5f

from xref.arrays.columns import IntArray
from xref.errors import (
    DanglingReferenceError,
    ExternalFileError,
    FileChangedError,
    FileReadError,
    XrefError,
)
from xref.storage.fsspec_cache import forget_copies
from xref.storage.open_files import DESCRIPTORS, EXHAUSTED, FILES, SERVED, Kept, drop_all
from xref.storage.remote import ComingRanges, RemoteBytes, forget_remote_files
from xref.storage.sources import (
    ByteHandle,
    FileSource,
    Identity,
    LocalFile,
    OpenFile,
    UnreachableFile,
    as_options,
)

EXTERNAL_POLICIES = ("same-dir", "all", "none")

_ATTEMPTS = 8
"""How often a handle is replaced that is of another version than the path."""

_WRITER_HINT = (
    'wait until it is closed, or pass driver_kwds={"swmr": True} where the writer is in '
    "HDF5's mode for one writer and many readers"
)

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class FileLocation:
    """Where a file is, which version of it, and what it may point at.

    Attributes
    ----------
    source : FileSource
        What opens it.
    identity : tuple
        Two values that no other file has, bytes, version: device, inode, bytes and the
        times (ns) of last write and last change of a local file.
    external : {"same-dir", "all", "none"}
        Which other files its links and virtual sources may name.

    Notes
    -----
    The file stays open in this process as long as a location of it lives, so that
    dropping all variables of a file closes it. A key of a cache is no such location.
    """

    source: FileSource
    identity: Identity
    external: str = "same-dir"
    is_key: bool = field(default=False, repr=False, compare=False)
    held: list[_Handles] = field(default_factory=list, repr=False, compare=False)

    @property
    def filename(self) -> str:
        """Path or URL."""
        return self.source.name

    @property
    def key(self) -> tuple[Any, Any]:
        """What tells the file from others: it may be reached by several paths."""
        return self.identity[:2]

    @property
    def token(self) -> tuple[Hashable, ...]:
        """What equal locations share; unlike a location, it holds no file or content."""
        return self.source.token, self.identity, self.external

    def __reduce__(self) -> tuple[Any, ...]:
        return FileLocation, (self.source, self.identity, self.external)

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        return self.token


def unheld(location: FileLocation) -> FileLocation:
    """Return an equal location that keeps no file open, to remember a place by."""
    return location if location.is_key else replace(location, is_key=True, held=[])


class _Key:
    """A location among the arguments of a cache, let go of once the call is over."""

    __slots__ = ("location", "token")

    def __init__(self, location: FileLocation) -> None:
        self.location: FileLocation | None = location
        self.token = location.token

    def __hash__(self) -> int:
        return hash(self.token)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.token == other.token


def cached_by_location(
    maxsize: int,
) -> Callable[
    [Callable[Concatenate[FileLocation, P], R]], Callable[Concatenate[FileLocation, P], R]
]:
    """Cache a function of a location and more, without keeping the file or its content."""

    def decorate(
        function: Callable[Concatenate[FileLocation, P], R],
    ) -> Callable[Concatenate[FileLocation, P], R]:
        def of_key(key: _Key, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return function(cast(FileLocation, key.location), *args, **kwargs)

        cached: Any = lru_cache(maxsize=maxsize)(of_key)

        @wraps(function)
        def call(location: FileLocation, /, *args: P.args, **kwargs: P.kwargs) -> R:
            key = _Key(unheld(location))
            try:
                result: R = cached(key, *args, **kwargs)
            finally:
                key.location = None
            return result

        return cast(Callable[Concatenate[FileLocation, P], R], call)

    return decorate


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
    if source.live and isinstance(source, OpenFile):
        source.file.flush()
    location = FileLocation(source, source.identity(), external)
    if source.live or not isinstance(source, LocalFile):
        return location
    opened = _open_version(location)
    if not opened.is_written:
        return location
    # HDF5 shares one state of a file among all in this process who opened it.
    opened.file.flush()
    written = replace(source, shared=True)
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
    if not _same_version(location, now):
        raise FileChangedError(
            f"{location.filename} has changed since it was opened: its identity (of a local "
            "file device, inode, bytes, times of write and change) was "
            f"{location.identity} and is {now}; open it again"
        )


def _same_version(location: FileLocation, identity: Identity) -> bool:
    # Not by device: machines that share a file system may number its devices each in its
    # own way.
    if location.source.live:
        return bool(location.identity[1] == identity[1])
    return location.identity[1:] == identity[1:]


@dataclass(slots=True)
class GroupChecks:
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
    if isinstance(source, LocalFile) and not source.live:
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
    if not source.live and source.known_identity() != identity:
        raise FileChangedError(f"{source.name} changed while it was opened; open it again")
    file._xref_checks = GroupChecks()
    file._xref_identity = (
        identity if isinstance(source, LocalFile) and not source.live else None
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
        self.hdf5: Kept[_OpenFile] = Kept(partial(_open_hdf5, source), FILES, source.name)
        room = SERVED if source.remote else DESCRIPTORS
        self.bytes: Kept[ByteHandle] = Kept(source.open_bytes, room, source.name)

    def drop(self) -> None:
        self.hdf5.drop()
        self.bytes.drop()

    def __del__(self) -> None:
        self.drop()


_handles: weakref.WeakValueDictionary[tuple[FileSource, int], _Handles] = (
    weakref.WeakValueDictionary()
)

_handles_lock = threading.Lock()


def _hold(location: FileLocation) -> _Handles:
    """Return the handles of a file, held open by ``location`` unless it is a key."""
    pid = os.getpid()
    if location.held and location.held[0].pid == pid:
        return location.held[0]
    with _handles_lock:
        handles = _handles.get((location.source, pid))
        if handles is None:
            handles = _handles[location.source, pid] = _Handles(location.source, pid)
    if not location.is_key:
        location.held[:] = [handles]
    return handles


def open_file(location: FileLocation) -> h5py.File:
    """Return the open file, checked to be the version that was located."""
    opened = _open_version(location)
    if opened.is_written and not location.source.live:
        raise FileChangedError(
            f"{location.filename} has been opened for writing in this process since it was "
            "opened for reading; open it again, or close the writer"
        )
    return opened.file


def _open_version(location: FileLocation) -> _OpenFile:
    """Open the version that was located.

    A handle of an earlier version is let go: HDF5 would go on using what it has read.
    """
    handles = _hold(location)
    for _ in range(_ATTEMPTS):
        check_unchanged(location)
        opened = handles.hdf5.get()
        if _same_version(location, opened.identity):
            return opened
        handles.hdf5.drop()
        del opened  # HDF5 opens a file once as long as anyone has it open
    raise FileChangedError(f"{location.filename} changes all the time; open it again")


def close_file(location: FileLocation) -> None:
    """Close this process's handles of a file; a later read opens it again."""
    _hold(location).drop()


def close_files() -> None:
    """Close all handles of this process; a later read opens its file again."""
    drop_all()
    forget_remote_files()
    forget_copies()
    gc.collect()


@dataclass(frozen=True, slots=True)
class FileBytes:
    """Positional reads of a file (a `xref.arrays.byte_ranges.ByteSource`)."""

    location: FileLocation

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from byte ``offset`` on.

        Raises
        ------
        FileReadError
            If the read fails or the file ends first.
        FileChangedError
            If the file is another than the one located.
        """
        self._of_one_version(lambda held: self._read(held, offset, buffer))

    def _read(self, held: ByteHandle, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                n = held.read(offset + done, buffer[done:])
            except XrefError:
                raise
            except OSError as error:
                raise FileReadError(
                    f"{self.location.filename}: reading {len(buffer)} bytes at {offset:#x} "
                    f"failed: {error}"
                ) from error
            if n == 0:
                raise FileReadError(
                    f"{self.location.filename}: {len(buffer)} bytes wanted at {offset:#x}, the "
                    f"file ended after {done}"
                )
            done += n

    def read_ranges(
        self, offset: IntArray, nbytes: IntArray, buffer: npt.NDArray[np.uint8], at: IntArray
    ) -> None:
        """Read many ranges, each to its place ``at`` in ``buffer``; see `read_into`."""

        def read(held: ByteHandle) -> None:
            if isinstance(held, RemoteBytes):
                held.read_ranges(offset, nbytes, buffer, at)
                return
            view = buffer.data
            for o, n, a in zip(offset.tolist(), nbytes.tolist(), at.tolist(), strict=True):
                self._read(held, o, view[a : a + n])

        self._of_one_version(read)

    @property
    def remote(self) -> bool:
        """Whether reading takes requests to a server."""
        return self.location.source.remote

    def fetch(self, offset: IntArray, nbytes: IntArray) -> ComingRanges:
        """Begin to read many ranges of a remote file into memory.

        Parameters
        ----------
        offset, nbytes : numpy.ndarray
            Shape ``(n,)``.
        """
        found: list[ComingRanges] = []

        def begin(held: ByteHandle) -> None:
            if not isinstance(held, RemoteBytes):
                raise TypeError(f"{self.location.filename} is read without requests")
            found.append(held.fetch(offset, nbytes))

        self._of_one_version(begin)
        return found[-1]

    def _of_one_version(self, read: Callable[[ByteHandle], None]) -> None:
        """Read from a handle that is of the version that was located, before and after."""
        handles = _hold(self.location)
        for _ in range(_ATTEMPTS):
            held = handles.bytes.get()
            if _same_version(self.location, held.identity()):
                read(held)
                if _same_version(self.location, held.identity()):
                    return
            # Written to in place, or the handle is older than the location.
            check_unchanged(self.location)
            handles.bytes.drop()
        raise FileReadError(f"{self.location.filename} could not be opened for reading")


@contextmanager
def answered(location: FileLocation) -> Iterator[None]:
    """Raise what a server did not answer in the block, where it would pass as damage.

    A member that cannot be read is left out of a dataset: not because a network failed.
    """
    held = _hold(location).bytes.get() if location.source.remote else None
    if not isinstance(held, RemoteBytes):
        yield
        return
    held.take_problem()
    try:
        yield
    except Exception as error:
        problem = held.take_problem()
        if problem is None or isinstance(error, FileChangedError):
            raise
        raise problem from error
    problem = held.take_problem()
    if problem is not None:
        raise problem


def check_external(location: FileLocation, name: str, where: str) -> str:
    """Return the path of the file ``name``, if the file may point at it.

    Raises
    ------
    ExternalFileError
        If it may not, or if that is a device, a pipe or a folder.
    """
    folder = location.source.folder
    if folder is None:
        raise ExternalFileError(
            f"{where} names the file {name!r}, but {location.filename} has no folder that "
            "the name could count from"
        )
    target = os.path.realpath(os.path.join(folder, name))
    inside = os.path.commonpath([folder, target]) == folder
    if location.external == "all" or (location.external == "same-dir" and inside):
        if os.path.exists(target) and not os.path.isfile(target):
            raise ExternalFileError(f"{where} names {name!r}, which is no regular file")
        return target
    raise ExternalFileError(
        f'{where} names the file {name!r}, which external="{location.external}" does not '
        'allow; pass external="all" if this file is trusted'
    )


def locate_named(location: FileLocation, name: str, where: str) -> FileLocation:
    """Return the location of a file that a reference in another one names.

    HDF5 stores the name by which the writer had the file open. Here it counts from the
    folder of the file that holds the reference; where there is no such file, its last
    part is looked for in that folder, as HDF5 does for external links.

    Parameters
    ----------
    location : FileLocation
        The file that holds the reference.
    name : str
        As stored.
    where : str
        Names the reference in messages.

    Returns
    -------
    FileLocation
        ``location`` itself where the name leads back to it. One of an `UnreachableFile`
        where the file is not there or not allowed: other references are not the worse for it.
    """
    folder = location.source.folder
    try:
        there = folder is not None and os.path.lexists(os.path.join(folder, name))
        target = check_external(location, name if there else os.path.basename(name), where)
        if os.path.isfile(target) and not h5py.is_hdf5(target):
            raise DanglingReferenceError(f"{where} names {name!r}, which is no HDF5 file")
        found = locate_file(target, location.external)
    except (ExternalFileError, DanglingReferenceError) as error:
        return _unreachable(location, name, str(error), isinstance(error, ExternalFileError))
    except (OSError, ValueError) as error:
        problem = f"{where} names the file {name!r}, which cannot be opened: {error}"
        return _unreachable(location, name, problem, refused=False)
    return location if found.identity == location.identity else found


def _unreachable(
    location: FileLocation, name: str, problem: str, refused: bool
) -> FileLocation:
    source = UnreachableFile(name, problem, refused)
    return FileLocation(source, ("unreachable", name, 0, 0), location.external)
