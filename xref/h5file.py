"""Files: where they are, which version, their bytes and the handles h5py has of them.

In: filenames. Out: a `FileLocation`, which travels in graphs and is opened again in
each process; positional reads; open `h5py.File` objects for immediate use. Nothing
that h5py made is put into a graph. Handles are cached and closed by xarray's file
manager, so any call here is safe from any thread.

h5py is imported here, in `xref.h5objects`, `xref.h5data` and `xref.h5virtual`, and by
the demo that writes a file. The bytes of region references never go to HDF5: they are
decoded in `xref.encoding`.
"""

from __future__ import annotations

import gc
import os
import stat
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from xarray.backends import CachingFileManager

from xref.columns import IntArray
from xref.errors import (
    ExternalFileError,
    FileChangedError,
    FileReadError,
)

EXTERNAL_POLICIES = ("same-dir", "all", "none")


@dataclass(frozen=True, slots=True)
class FileLocation:
    """Where a file is, which version of it, and what it may point at.

    Attributes
    ----------
    filename : str
        Absolute path.
    identity : tuple of int
        Device, inode, bytes and modification time (ns) when it was opened.
    external : {"same-dir", "all", "none"}
        Which other files its links and virtual sources may name.
    """

    filename: str
    identity: tuple[int, int, int, int]
    external: str = "same-dir"


@dataclass(frozen=True, slots=True)
class FileFormat:
    """Numbers from a file's superblock, in bytes."""

    offset_size: int
    length_size: int
    base_address: int
    file_nbytes: int


def locate_file(path: str | os.PathLike[str], external: str = "same-dir") -> FileLocation:
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
    if external not in EXTERNAL_POLICIES:
        raise ValueError(f"external is {external!r}; it can be one of {EXTERNAL_POLICIES}")
    filename = os.path.abspath(os.path.expanduser(os.fspath(path)))
    return FileLocation(filename, _identity(filename), external)


def _identity(filename: str) -> tuple[int, int, int, int]:
    status = os.stat(filename)
    if not stat.S_ISREG(status.st_mode):
        raise FileReadError(f"{filename} is not a regular file")
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_unchanged(location: FileLocation) -> None:
    """Raise `FileChangedError` unless the file is still the one that was located."""
    try:
        now = _identity(location.filename)
    except FileNotFoundError as error:
        raise FileChangedError(f"{location.filename} is gone since it was opened") from error
    if now != location.identity:
        raise FileChangedError(
            f"{location.filename} has changed since it was opened: (device, inode, bytes, "
            f"modification time) were {location.identity} and are {now}; open it again"
        )


@dataclass(slots=True)
class GroupChecks:
    """What has been checked of the groups of one open file."""

    addresses: set[int] = field(default_factory=set)
    """Object headers of the groups that passed."""

    segments: dict[int, int] = field(default_factory=dict)
    """Heaps by data segment, which HDF5 must not meet twice under one address."""


class _OpenFile:
    """What the file manager closes: it drops the file, objects in use still hold it.

    h5py's own ``File.close`` would pull the file from under other threads.
    """

    def __init__(self, filename: str, pid: int) -> None:
        del pid  # keeps a forked child from its parent's handles
        self.identity = _identity(filename)
        self.held: h5py.File | None = h5py.File(filename, "r")
        if _identity(filename) != self.identity:
            raise FileChangedError(f"{filename} changed while it was opened; open it again")
        self.held._xref_checks = GroupChecks()

    def close(self) -> None:
        self.held = None


class _OpenDescriptor:
    """A file descriptor that closes when the last reader lets go of it."""

    def __init__(self, filename: str) -> None:
        self.number = os.open(filename, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class _Descriptor:
    """What the file manager closes: it drops the descriptor, readers may still hold it."""

    def __init__(self, filename: str, pid: int) -> None:
        del pid
        self.held: _OpenDescriptor | None = _OpenDescriptor(filename)

    def close(self) -> None:
        self.held = None


@lru_cache(maxsize=4096)
def _managers(
    filename: str, pid: int
) -> tuple[CachingFileManager[Any], CachingFileManager[Any]]:
    # The id makes managers of one file share one handle.
    return (
        CachingFileManager(_OpenFile, filename, pid, manager_id="xref-hdf5"),
        CachingFileManager(_Descriptor, filename, pid, manager_id="xref-bytes"),
    )


def open_file(location: FileLocation) -> h5py.File:
    """Return the open file, checked to be the version that was located.

    A handle of an earlier version is let go: HDF5 would go on using what it has read.
    """
    manager = _managers(location.filename, os.getpid())[0]
    while True:
        check_unchanged(location)
        opened = manager.acquire()
        if opened.identity == location.identity:
            file: h5py.File | None = opened.held
            if file is not None:
                return file
        manager.close()  # of another version, or closed by another thread just now


def close_file(location: FileLocation) -> None:
    """Close this process's handles of a file; a later read opens it again."""
    for manager in _managers(location.filename, os.getpid()):
        manager.close()


def close_files() -> None:
    """Close all handles of this process; a later read opens its file again."""
    _managers.cache_clear()
    gc.collect()


@dataclass(frozen=True, slots=True)
class FileBytes:
    """Positional reads of a local file (a `xref.readers.ByteSource`)."""

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
        self._read(self._descriptor(), offset, buffer)

    def _read(self, held: _OpenDescriptor, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                n = os.preadv(held.number, [buffer[done:]], offset + done)
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
        """Read many ranges, each to its place ``at`` in ``buffer``."""
        view = memoryview(buffer)  # type: ignore[arg-type]
        held = self._descriptor()
        for o, n, a in zip(offset.tolist(), nbytes.tolist(), at.tolist(), strict=True):
            self._read(held, o, view[a : a + n])

    def _descriptor(self) -> _OpenDescriptor:
        """Return a descriptor of this version of the file; the caller keeps it alive."""
        manager = _managers(self.location.filename, os.getpid())[1]
        for _ in range(8):
            held: _OpenDescriptor | None = manager.acquire().held
            if held is None:  # closed by another thread just now
                continue
            status = os.fstat(held.number)
            identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if identity == self.location.identity:
                return held
            # Written to in place, or the descriptor is older than the location.
            check_unchanged(self.location)
            manager.close()
        raise FileReadError(f"{self.location.filename} could not be opened for reading")


@lru_cache(maxsize=1024)
def file_format(location: FileLocation) -> FileFormat:
    """Return sizes and base address of a file."""
    properties = open_file(location).id.get_create_plist()
    offset_size, length_size = properties.get_sizes()
    return FileFormat(
        offset_size, length_size, properties.get_userblock(), location.identity[2]
    )


def check_external(location: FileLocation, name: str, where: str) -> str:
    """Return the path of the file ``name``, if the file may point at it.

    Raises
    ------
    ExternalFileError
        If it may not, or if that is a device, a pipe or a folder.
    """
    folder = os.path.dirname(os.path.realpath(location.filename))
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
