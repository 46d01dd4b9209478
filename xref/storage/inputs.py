"""What users open, as a source: a path, a URL, memory, a file object, h5py's objects.

In: the first argument of `xarray.open_dataset`. Out: a `FileSource` and the group in it
that is meant.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from typing import Any

import h5py

from xref.storage.sources import (
    FileObject,
    FileSource,
    LocalFile,
    MemoryFile,
    OpenFile,
    as_options,
)

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""What an HDF5 file begins with, behind its user block."""

URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*(::|://)")


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
    if isinstance(file, str) and URL.match(file):
        from xref.storage.fsspec_cache import PART_COPY, WHOLE_COPY, KeptCopy
        from xref.storage.remote import RemoteFile

        storage = as_options(storage_options)
        if WHOLE_COPY.match(file):
            return KeptCopy(file, storage, options), "/"
        kwargs = as_options(open_kwargs)
        url = PART_COPY.sub("", file)
        if url != file:
            # Of options by protocol, those of what is left; all others were the cache's.
            left = {part.partition("://")[0] for part in url.split("::")}
            kept = {k: v for k, v in (storage_options or {}).items() if k in left}
            storage = as_options(kept)
        return RemoteFile(url, storage, kwargs, options), "/"
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
