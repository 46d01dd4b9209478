"""Where the bytes of a file come from: a path, memory, a file object, a URL, h5py.

In: what a user opens. Out: a frozen `FileSource`, which opens it with h5py, gives its
bytes by position, and tells one version of it from another. Sources travel in graphs;
those whose content lives in one process only say so when they are pickled.
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import uuid
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, TypeAlias

import h5py
from h5py import h5f

from xref.errors import DanglingReferenceError, ExternalFileError, FileReadError

Identity: TypeAlias = tuple[Any, Any, int, Any]
"""What a file is (two values that no other file has), its bytes, its version."""

SIGNATURE = b"\x89HDF\r\n\x1a\n"


class ByteHandle(Protocol):
    """Something open to read bytes from, from any thread."""

    def identity(self) -> Identity:
        """Return the identity of what is open."""

    def read(self, offset: int, buffer: memoryview) -> int:
        """Read into ``buffer`` from byte ``offset`` on; return how many bytes came."""


class FileSource(Protocol):
    """A file that can be opened again and again."""

    @property
    def token(self) -> Hashable:
        """What equal sources share; it holds no file or content."""

    @property
    def name(self) -> str:
        """Path or URL, for messages and for ``encoding["source"]``."""

    @property
    def folder(self) -> str | None:
        """Folder that the names of external files count from; None without one."""

    @property
    def live(self) -> bool:
        """Whether a writer may change the file: data are then read through HDF5 alone."""

    def identity(self) -> Identity:
        """Return the identity of the file as it is now."""

    def open_hdf5(self) -> h5py.File:
        """Open the file for reading."""

    def open_bytes(self) -> ByteHandle:
        """Open the file for positional reads."""


Options: TypeAlias = tuple[tuple[str, Any], ...]


# --- local files -------------------------------------------------------------------


class _Descriptor:
    """A file descriptor that closes when the last reader lets go of it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)

    def identity(self) -> Identity:
        return _identity(os.fstat(self.number))

    def read(self, offset: int, buffer: memoryview) -> int:
        return os.preadv(self.number, [buffer], offset)


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of this machine, by absolute path.

    Attributes
    ----------
    name : str
    options : tuple of (str, object)
        Keywords for `h5py.File`.
    """

    name: str
    options: Options = ()

    def __hash__(self) -> int:
        return hash(self.name)  # options may hold lists

    @property
    def token(self) -> Hashable:
        """The source itself."""
        return self

    @property
    def folder(self) -> str | None:
        """The folder that the file is in."""
        return os.path.dirname(os.path.realpath(self.name))

    @property
    def live(self) -> bool:
        """Whether it was opened with ``swmr``."""
        return bool(dict(self.options).get("swmr", False))

    def identity(self) -> Identity:
        """Return device, inode, bytes and modification time (ns)."""
        status = os.stat(self.name)
        if not stat.S_ISREG(status.st_mode):
            raise FileReadError(f"{self.name} is not a regular file")
        return _identity(status)

    def open_hdf5(self) -> h5py.File:
        """Open the path."""
        return h5py.File(self.name, "r", **dict(self.options))

    def open_bytes(self) -> ByteHandle:
        """Open a descriptor."""
        return _Descriptor(os.open(self.name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))


# --- memory ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Image:
    of: Identity
    content: bytes = field(repr=False)

    def identity(self) -> Identity:
        return self.of

    def read(self, offset: int, buffer: memoryview) -> int:
        part = memoryview(self.content)[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """The content of a file, in memory; it travels with its pickles."""

    content: bytes = field(repr=False, compare=False)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    options: Options = ()

    @property
    def name(self) -> str:
        """A name for messages."""
        return f"<{len(self.content)} bytes in memory>"

    @property
    def folder(self) -> str | None:
        """None: there are no files beside it."""
        return None

    @property
    def live(self) -> bool:
        """False."""
        return False

    def identity(self) -> Identity:
        """Return an identity that never changes."""
        return "memory", self.token, len(self.content), 0

    def open_hdf5(self) -> h5py.File:
        """Open the content, which is not copied."""
        return h5py.File(io.BytesIO(self.content), "r", **dict(self.options))

    def open_bytes(self) -> ByteHandle:
        """Return the content."""
        return _Image(self.identity(), self.content)


# --- file objects ------------------------------------------------------------------


class _Cursor(io.RawIOBase):
    """A position of its own in a shared file object."""

    def __init__(self, file: FileObject) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.identity()[2]}
        self._at = base[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        n = self._file.read(self._at, memoryview(buffer).cast("B"))
        self._at += n
        return n


@dataclass(frozen=True, slots=True)
class FileObject:
    """A binary file object that someone else opened, and will close.

    The lock keeps a seek and its read together: HDF5 and positional reads share the
    object.
    """

    file: Any = field(repr=False, compare=False)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    options: Options = ()
    lock: Any = field(default_factory=threading.RLock, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The object's name, if it has one."""
        name = getattr(self.file, "name", None) or getattr(self.file, "path", None)
        return name if isinstance(name, str) else f"<{type(self.file).__name__}>"

    @property
    def folder(self) -> str | None:
        """None: the object may be no file of this machine."""
        return None

    @property
    def live(self) -> bool:
        """False."""
        return False

    def identity(self) -> Identity:
        """Return an identity that changes with the size."""
        with self.lock:
            if getattr(self.file, "closed", False):
                raise FileReadError(f"{self.name}: the file object was closed by its owner")
            return "object", self.token, int(self.file.seek(0, os.SEEK_END)), 0

    def open_hdf5(self) -> h5py.File:
        """Open the object through a position of its own."""
        return h5py.File(_Cursor(self), "r", **dict(self.options))

    def open_bytes(self) -> ByteHandle:
        """Return the source itself."""
        return self

    def read(self, offset: int, buffer: memoryview) -> int:
        """Seek and read."""
        with self.lock:
            self.file.seek(offset)
            data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def __reduce__(self) -> tuple[Any, ...]:
        return FileObject, (self.file, self.token, self.options)


# --- open HDF5 files ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that is open in h5py already; it can be read in this process only."""

    file: h5py.File = field(repr=False, compare=False)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def name(self) -> str:
        """What h5py calls the file."""
        return str(self.file.filename)

    @property
    def folder(self) -> str | None:
        """The folder of a local file."""
        is_local = self.file.driver == "sec2"
        return os.path.dirname(os.path.realpath(self.name)) if is_local else None

    @property
    def live(self) -> bool:
        """Whether it is open for writing."""
        return bool(self.file.id.get_intent() & (h5f.ACC_RDWR | h5f.ACC_SWMR_READ))

    def identity(self) -> Identity:
        """Return device and inode of a local file, else an identity of its own."""
        if not self.file:
            raise FileReadError(f"{self.token}: the h5py file was closed by its owner")
        if self.file.driver == "sec2":
            return _identity(os.fstat(self.file.id.get_vfd_handle()))
        return "open", self.token, int(self.file.id.get_filesize()), 0

    def open_hdf5(self) -> h5py.File:
        """Return the file itself."""
        return self.file

    def open_bytes(self) -> ByteHandle:
        """Open the local file, or take an image of what is elsewhere."""
        if self.live:
            self.file.flush()
        if self.file.driver == "sec2":
            return _Descriptor(self._descriptor())
        # An image leaves the user block out.
        block = bytes(self.file.userblock_size)
        return _Image(self.identity(), block + self.file.id.get_file_image())

    def _descriptor(self) -> int:
        """Open the file anew: a duplicate would keep the lock of its owner.

        The path may lead to another file by now; then only a duplicate reads this one.
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


# --- URLs --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind a URL that fsspec opens.

    Attributes
    ----------
    name : str
        The URL.
    storage_options, open_kwargs : tuple of (str, object)
        For the file system and for opening a file of it.
    hdf5_options : tuple of (str, object)
        Keywords for `h5py.File`; with a ``driver`` HDF5 itself opens the URL.
    """

    name: str
    storage_options: Options = ()
    open_kwargs: Options = ()
    hdf5_options: Options = ()

    def __hash__(self) -> int:
        return hash(self.name)  # options may hold dicts

    @property
    def token(self) -> Hashable:
        """The source itself."""
        return self

    @property
    def folder(self) -> str | None:
        """None: names in a remote file are not followed."""
        return None

    @property
    def live(self) -> bool:
        """False."""
        return False

    def _filesystem(self) -> tuple[Any, str]:
        fsspec = import_fsspec(self.name)
        filesystem, path = fsspec.core.url_to_fs(self.name, **dict(self.storage_options))
        return filesystem, path

    def identity(self) -> Identity:
        """Return the bytes and what the server tells of the version."""
        filesystem, path = self._filesystem()
        info = filesystem.info(path)
        keys = ("ETag", "etag", "LastModified", "last_modified", "mtime", "created", "modified")
        version = next((str(info[k]) for k in keys if info.get(k) is not None), "")
        return "url", self.name, int(info["size"]), version

    def open_hdf5(self) -> h5py.File:
        """Open the URL as xarray does for its other engine of HDF5: in blocks of 4 MiB."""
        if "driver" in dict(self.hdf5_options):
            return h5py.File(self.name, "r", **dict(self.hdf5_options))
        from xarray.backends import h5netcdf_

        # Tests of xarray look here for what becomes of ``open_kwargs``.
        open_remote: Any = vars(h5netcdf_)["_open_remote_file"]
        import_fsspec(self.name)
        kwargs = dict(self.open_kwargs)
        kwargs.setdefault("cache_type", "blockcache")
        if kwargs["cache_type"] == "blockcache":
            kwargs.setdefault("block_size", 4 << 20)
        options = dict(self.storage_options)
        opened = open_remote(self.name, mode="rb", storage_options=options, open_kwargs=kwargs)
        return FileObject(opened, options=self.hdf5_options).open_hdf5()

    def open_bytes(self) -> ByteHandle:
        """Open the file system."""
        return _RemoteHandle(self, *self._filesystem())


@dataclass(frozen=True, slots=True)
class _RemoteHandle:
    source: RemoteFile
    filesystem: Any
    path: str

    def identity(self) -> Identity:
        return self.source.identity()

    def read(self, offset: int, buffer: memoryview) -> int:
        data = self.filesystem.cat_file(self.path, start=offset, end=offset + len(buffer))
        if len(data) > len(buffer):
            raise FileReadError(
                f"{self.source.name}: {len(buffer)} bytes asked for at {offset:#x}, "
                f"{len(data)} came"
            )
        buffer[: len(data)] = data
        return len(data)


# --- files that are not there ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UnreachableFile:
    """A file that a reference names, and that is not there or may not be opened.

    Attributes
    ----------
    name : str
    problem : str
        What is said when something asks for it.
    refused : bool
        Whether the option ``external`` does not allow it.
    """

    name: str
    problem: str
    refused: bool

    @property
    def token(self) -> Hashable:
        """The source itself."""
        return self

    @property
    def folder(self) -> str | None:
        """None."""
        return None

    @property
    def live(self) -> bool:
        """False."""
        return False

    def _fail(self) -> NoReturn:
        raise (ExternalFileError if self.refused else DanglingReferenceError)(self.problem)

    def identity(self) -> Identity:
        """Raise what is wrong with the file."""
        self._fail()

    def open_hdf5(self) -> h5py.File:
        """Raise what is wrong with the file."""
        self._fail()

    def open_bytes(self) -> ByteHandle:
        """Raise what is wrong with the file."""
        self._fail()


# --- what users give ---------------------------------------------------------------

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*(::|://)")


def find_source(
    file: Any,
    *,
    hdf5_options: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    open_kwargs: Mapping[str, Any] | None = None,
) -> tuple[FileSource, str]:
    """Return the source of what a user opens, and the group in it that is meant.

    Parameters
    ----------
    file : str, os.PathLike, bytes, memoryview, binary file object, fsspec's OpenFile, \
h5py.File or h5py.Group
        Text with a scheme (``s3://``) is a URL.
    hdf5_options : mapping, optional
        Keywords for `h5py.File`.
    storage_options, open_kwargs : mapping, optional
        For the file system of a URL, and for opening a file of it.

    Raises
    ------
    ValueError
        If memory or a file object holds no HDF5 file.
    TypeError
        If ``file`` is nothing that can be read.
    """
    options = as_options(hdf5_options)
    if isinstance(file, h5py.Group):
        whole = file.file
        source: FileSource = LocalFile(os.path.abspath(whole.filename), options)
        return source if _opens_again(whole, source) else OpenFile(whole), file.name or "/"
    if isinstance(file, bytes | memoryview | bytearray):
        source = MemoryFile(bytes(file), options=options)
        _check_signature(source)
        return source, "/"
    if isinstance(file, str) and _URL.match(file):
        kwargs = as_options(open_kwargs)
        return RemoteFile(file, as_options(storage_options), kwargs, options), "/"
    if isinstance(file, str | os.PathLike):
        path = os.path.abspath(os.path.expanduser(os.fspath(file)))
        return LocalFile(path, options), "/"
    if hasattr(file, "open") and hasattr(file, "fs"):
        file = file.open()  # fsspec's OpenFile; what it opens closes with its last user
    if hasattr(file, "read") and hasattr(file, "seek"):
        if isinstance(file.read(0), str):
            raise TypeError(f"engine 'h5ref' cannot open {file!r}: it is no binary file")
        path_of_file = _path_of(file)
        source = (
            LocalFile(path_of_file, options)
            if path_of_file
            else FileObject(file, options=options)
        )
        _check_signature(source)
        return source, "/"
    raise TypeError(
        f"engine 'h5ref' cannot open {type(file).__name__}: a path, a URL, bytes, a binary "
        "file object or an open h5py object is needed"
    )


def _opens_again(file: h5py.File, source: FileSource) -> bool:
    """Tell whether a file that is open in h5py can be read by its path as well.

    A writer's may hold what is not in the file yet; HDF5 refuses to open one file with
    different options, such as locking, at the same time; and a path may lead to another
    file by now.
    """
    if file.driver != "sec2" or file.id.get_intent():
        return False
    try:
        with source.open_hdf5() as again:
            return bool(again.id == file.id)
    except OSError:
        return False


def _path_of(file: Any) -> str | None:
    """Return the path of a plain open file of this machine, to read it in parallel."""
    name = getattr(file, "name", None)
    if type(file) is not io.BufferedReader or not isinstance(name, str):
        return None
    try:
        same = os.path.samestat(os.fstat(file.fileno()), os.stat(name))
    except (OSError, ValueError):
        return None
    return os.path.abspath(name) if same else None


def _check_signature(source: FileSource) -> None:
    """Look for HDF5's signature where it may stand: at 0, 512, 1024 and so on."""
    nbytes = source.identity()[2]
    handle, found = source.open_bytes(), bytearray(len(SIGNATURE))
    first, offset = b"", 0
    while offset + len(found) <= nbytes:
        handle.read(offset, memoryview(found))
        if found == SIGNATURE:
            return
        first, offset = first or bytes(found), max(2 * offset, 512)
    raise ValueError(
        f"{first!r} is not the signature of a valid netCDF4 file, or other HDF5 file: "
        f"{source.name}"
    )


def import_fsspec(url: str) -> Any:
    """Import fsspec, or say how to install it."""
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(
            f"{url} is a URL: reading it needs fsspec; pip install 'xref[remote]'"
        ) from error
    return fsspec


def as_options(options: Mapping[str, Any] | None) -> Options:
    """Return keywords as a tuple, in order."""
    return tuple(sorted((options or {}).items()))
