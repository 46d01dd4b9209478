"""Sources of the bytes of a file: a path, memory, a file object, an open h5py file.

In: a file of one of these kinds. Out: a frozen `FileSource`, which opens it with h5py, reads
its bytes by position, and distinguishes its versions. Sources can be in Dask graphs; pickling
a source that only exists in one process raises an error.
"""

from __future__ import annotations

import atexit
import io
import os
import stat
import traceback
import uuid
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias

import h5py
from h5py import h5f
from h5py._objects import phil

from xref.errors import DanglingReferenceError, ExternalFileError, FileReadError

Identity: TypeAlias = tuple[Any, Any, int, Any]
"""Two values that identify the file, its size in bytes, and its version.

The version of a local file is a tuple: the time of the last write (mtime, ns); with
``strict_version`` also the time of the last change of the inode (ctime, ns)."""


class ByteHandle(Protocol):
    """An open file, for positional reads from any thread."""

    def identity(self) -> Identity:
        """Return the identity of the open file."""

    def read(self, offset: int, buffer: memoryview) -> int:
        """Read into ``buffer`` from byte ``offset`` on; return the number of bytes read."""


class FileSource:
    """A file that can be opened repeatedly; base class of the sources."""

    __slots__ = ()

    @property
    def token(self) -> Hashable:
        """A value that equal sources share; it holds no open file and no content."""
        return self

    if TYPE_CHECKING:  # else the property would be the default of a field of that name

        @property
        def name(self) -> str:
            """Path or URL, for messages and for ``encoding["source"]``."""

    @property
    def folder(self) -> str | None:
        """Folder to which names of external files are relative; None if there is none."""
        return None

    @property
    def open_for_writing(self) -> bool:
        """Whether a writer may change the file; then only HDF5 reads data."""
        return False

    @property
    def remote(self) -> bool:
        """Whether reading sends requests to a server."""
        return False

    @property
    def outlives_its_path(self) -> bool:
        """Whether an open descriptor reads the file on after it was moved or deleted."""
        return False

    @property
    def strict(self) -> bool:
        """Whether the version contains the time of the last change of the inode (ctime)."""
        return False

    def with_strict_version(self) -> FileSource:
        """Return this source with a version that contains the ctime, if it has a ctime."""
        return self

    @property
    def reopens_by_name(self) -> bool:
        """Whether the name is enough to open the file again, also in other processes."""
        return self.remote

    def identity(self) -> Identity:
        """Return the identity of the file as it is now."""
        raise NotImplementedError

    def known_identity(self) -> Identity:
        """Return the identity of the open file if each of its reads would notice a change.

        Otherwise return the identity of the file as it is now.
        """
        return self.identity()

    def open_hdf5(self) -> h5py.File:
        """Open the file for reading."""
        raise NotImplementedError

    def open_bytes(self) -> ByteHandle:
        """Open the file for positional reads."""
        raise NotImplementedError


Options: TypeAlias = tuple[tuple[str, Any], ...]


class _Descriptor:
    """A file descriptor that is closed with its last reference."""

    def __init__(self, number: int, *, strict: bool = False) -> None:
        self.number = number
        self._strict = strict

    def __del__(self) -> None:
        os.close(self.number)

    def identity(self) -> Identity:
        return identify(os.fstat(self.number), strict=self._strict)

    def read(self, offset: int, buffer: memoryview) -> int:
        return os.preadv(self.number, [buffer], offset)


def identify(status: os.stat_result, *, strict: bool) -> Identity:
    """Return the identity of a local file: device, inode, bytes, and its version.

    The ctime changes with each write, and also with permissions, links and names. Programs can
    set the mtime back after a write, but not the ctime. So only ``strict`` versions notice such
    a write, and they also take a backup by hard links for a change.
    """
    device, inode, nbytes, times = _identity(status)
    return device, inode, nbytes, (*times, status.st_ctime_ns) if strict else times


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, (status.st_mtime_ns,)


def reopen_descriptor(number: int) -> int:
    """Open the file of a descriptor of this process again, whatever its path is by now.

    Linux lists open descriptors as links to their files. Elsewhere the descriptor is
    duplicated; a duplicate also holds the lock that HDF5 set on the file.
    """
    try:
        return os.open(f"/proc/self/fd/{number}", os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return os.dup(number)


@dataclass(frozen=True, slots=True)
class LocalFile(FileSource):
    """A local file, by absolute path."""

    name: str
    options: Options = ()  # keywords of `h5py.File`
    shared_with_writer: bool = False  # this process also has it open for writing
    strict: bool = False  # a change of ctime alone is another version

    def __hash__(self) -> int:
        return hash(self.name)  # options may hold lists

    def __reduce__(self) -> tuple[Any, ...]:
        # Other processes do not share the writer.
        return LocalFile, (self.name, self.options, False, self.strict)

    @property
    def outlives_its_path(self) -> bool:
        """Whether an open descriptor reads the file on after it was moved or deleted: yes."""
        return True

    def with_strict_version(self) -> LocalFile:
        """Return this source with a version that contains the ctime."""
        return replace(self, strict=True)

    @property
    def folder(self) -> str | None:
        """The folder that the file is in."""
        return os.path.dirname(os.path.realpath(self.name))

    @property
    def open_for_writing(self) -> bool:
        """Whether it was opened with ``swmr``, or is also open for writing."""
        return self.shared_with_writer or bool(dict(self.options).get("swmr", False))

    @property
    def reopens_by_name(self) -> bool:
        """Whether the name is enough to open the file again: it is."""
        return True

    def identity(self) -> Identity:
        """Return device, inode, bytes and version of the file at the path; see `identify`."""
        status = os.stat(self.name)
        if not stat.S_ISREG(status.st_mode):
            found = "a folder, " if stat.S_ISDIR(status.st_mode) else ""
            raise FileReadError(f"{self.name} is {found}not a regular file")
        return identify(status, strict=self.strict)

    def open_hdf5(self) -> h5py.File:
        """Open the path."""
        return h5py.File(self.name, "r", **dict(self.options))

    def open_bytes(self) -> ByteHandle:
        """Open a descriptor."""
        number = os.open(self.name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return _Descriptor(number, strict=self.strict)

    def reopen_bytes(self, number: int) -> ByteHandle:
        """Open the file of another descriptor of this process for positional reads."""
        return _Descriptor(reopen_descriptor(number), strict=self.strict)


@dataclass(frozen=True, slots=True)
class _BytesHandle:
    of: Identity
    content: bytes = field(repr=False)

    def identity(self) -> Identity:
        return self.of

    def read(self, offset: int, buffer: memoryview) -> int:
        part = memoryview(self.content)[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)


@dataclass(frozen=True, slots=True)
class MemoryFile(FileSource):
    """The content of a file, in memory; it is part of its pickles."""

    content: bytes = field(repr=False, compare=False)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    options: Options = ()

    @property
    def name(self) -> str:
        """A name for messages."""
        return f"<{len(self.content)} bytes in memory>"

    def identity(self) -> Identity:
        """Return an identity that never changes."""
        return "memory", self.token, len(self.content), 0

    def open_hdf5(self) -> h5py.File:
        """Open the content without a copy."""
        return open_view(self.open_bytes(), self.options)

    def open_bytes(self) -> ByteHandle:
        """Return the content."""
        return _BytesHandle(self.identity(), self.content)


class SeekableView(io.RawIOBase):
    """A seekable file object over positional reads, through which h5py reads."""

    def __init__(self, file: ByteHandle) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that its position can be set."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Set the position."""
        base = {
            os.SEEK_SET: 0,
            os.SEEK_CUR: self._position,
            os.SEEK_END: self._file.identity()[2],
        }
        self._position = base[whence] + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Read at the position, and move on.

        The buffer is filled unless the file ends: HDF5 would take missing bytes for zeros.
        """
        view, done = memoryview(buffer).cast("B"), 0
        while done < len(view):
            n = self._file.read(self._position + done, view[done:])
            if n == 0:
                break
            done += n
        if done < len(view) and self._position + done < self._file.identity()[2]:
            raise FileReadError(
                f"{len(view)} bytes requested at {self._position:#x}, the file object returned "
                f"{done}"
            )
        self._position += done
        return done


_VIEW_NAME = f"<{__name__}.{SeekableView.__qualname__} object".encode()
"""Start of the names that h5py gives to files read through a `SeekableView`."""


def open_view(file: ByteHandle, options: Options) -> h5py.File:
    """Open a file with h5py through positional reads.

    Frames of errors are cleared: HDF5's property lists must not live until Python ends.
    """
    try:
        return h5py.File(SeekableView(file), "r", **dict(options))
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        raise


@atexit.register
def _close_views() -> None:
    """Close all files that HDF5 reads through Python, before Python ends.

    Variables, or errors from reading, may still hold such files.
    """
    for number in h5f.get_obj_ids(h5f.OBJ_ALL, h5f.OBJ_FILE):
        if number.valid and number.name.startswith(_VIEW_NAME):
            h5py.File(number).close()


@dataclass(frozen=True, slots=True)
class FileObject(FileSource):
    """A binary file object that the user opened, and will close.

    Seek and read are one step under h5py's lock. HDF5 and positional reads share the object,
    and HDF5 reads under that lock, so a second lock could cause a deadlock.
    """

    file: Any = field(repr=False, compare=False)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    options: Options = ()

    @property
    def name(self) -> str:
        """The object's name, if it has one."""
        name = getattr(self.file, "name", None) or getattr(self.file, "path", None)
        return name if isinstance(name, str) else f"<{type(self.file).__name__}>"

    def identity(self) -> Identity:
        """Return an identity that changes with the size."""
        with phil:
            if getattr(self.file, "closed", False):
                raise FileReadError(f"{self.name}: the file object was closed by its owner")
            return "object", self.token, int(self.file.seek(0, os.SEEK_END)), 0

    def open_hdf5(self) -> h5py.File:
        """Open the object through a `SeekableView`."""
        return open_view(self, self.options)

    def open_bytes(self) -> ByteHandle:
        """Return the source itself."""
        return self

    def read(self, offset: int, buffer: memoryview) -> int:
        """Seek and read."""
        with phil:
            self.file.seek(offset)
            data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def __reduce__(self) -> tuple[Any, ...]:
        return FileObject, (self.file, self.token, self.options)


@dataclass(frozen=True, slots=True)
class OpenFile(FileSource):
    """A file that the user opened with h5py; only this process can read it."""

    file: h5py.File = field(repr=False, compare=False)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    known_name: str = field(init=False, compare=False)  # h5py forgets it when a file is closed
    strict: bool = False  # a change of ctime alone is another version

    def __post_init__(self) -> None:
        object.__setattr__(self, "known_name", str(self.file.filename))

    def with_strict_version(self) -> OpenFile:
        """Return this source with a version that contains the ctime."""
        return replace(self, strict=True)

    @property
    def name(self) -> str:
        """The name of the file in h5py."""
        return self.known_name

    @property
    def folder(self) -> str | None:
        """The folder of a local file."""
        is_local = self.file.driver == "sec2"
        return os.path.dirname(os.path.realpath(self.name)) if is_local else None

    @property
    def open_for_writing(self) -> bool:
        """Whether it is open for writing."""
        return bool(self.file.id.get_intent() & (h5f.ACC_RDWR | h5f.ACC_SWMR_READ))

    def identity(self) -> Identity:
        """Return the identity of a local file, else one of this object."""
        if not self.file:
            raise FileReadError(f"{self.name}: the h5py file was closed by its owner")
        if self.file.driver == "sec2":
            return identify(os.fstat(self.file.id.get_vfd_handle()), strict=self.strict)
        return "open", self.token, int(self.file.id.get_filesize()), 0

    def open_hdf5(self) -> h5py.File:
        """Return the file itself."""
        return self.file

    def open_bytes(self) -> ByteHandle:
        """Open the local file, or copy the bytes of another driver's file into memory."""
        if self.open_for_writing:
            self.file.flush()
        if self.file.driver == "sec2":
            return _Descriptor(self._descriptor(), strict=self.strict)
        # A file image does not contain the user block.
        block = bytes(self.file.userblock_size)
        return _BytesHandle(self.identity(), block + self.file.id.get_file_image())

    def _descriptor(self) -> int:
        """Open the file again, since a duplicate descriptor would keep its owner's lock.

        If the path leads to another file by now, only a duplicate can read this file.
        """
        theirs = self.file.id.get_vfd_handle()
        try:
            number = os.open(self.name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError:
            return os.dup(theirs)
        if os.path.samestat(os.fstat(number), os.fstat(theirs)):
            return number
        os.close(number)
        return os.dup(theirs)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            f"{self.name} was opened from an h5py object, which other processes do not have; "
            "open it by its path to pickle it"
        )


@dataclass(frozen=True, slots=True)
class UnreachableFile(FileSource):
    """A file named by a reference, which does not exist or may not be opened."""

    name: str
    problem: str  # message of the error when the file is used
    refused: bool  # forbidden by the option ``external``

    def _fail(self) -> NoReturn:
        raise (ExternalFileError if self.refused else DanglingReferenceError)(self.problem)

    identity = open_hdf5 = open_bytes = _fail


def import_fsspec(url: str) -> Any:
    """Import fsspec, or raise an error that says how to install it."""
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(
            f"{url} is a URL: reading it needs fsspec; pip install 'xref[remote]'"
        ) from error
    return fsspec


def as_options(options: Mapping[str, Any] | None) -> Options:
    """Return keywords as a sorted tuple."""
    return tuple(sorted((options or {}).items()))
