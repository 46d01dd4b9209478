"""The source of a path, a URL, bytes, a file object or an open h5py object.

In: the first argument of `xarray.open_dataset`. Out: a `FileSource` and a group in it.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from typing import Any

import h5py

from xref.storage import sources

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""First bytes of an HDF5 file, after its user block."""

URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*(::|://)")


def find_source(
    file: Any,
    *,
    hdf5_options: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    open_kwargs: Mapping[str, Any] | None = None,
) -> tuple[sources.FileSource, str]:
    """Return the source of a file, and the path of the group to open.

    Parameters
    ----------
    file : str, os.PathLike, bytes, memoryview, binary file object, fsspec's OpenFile, \
h5py.File or h5py.Group
        Text with a scheme (``s3://``) is a URL.
    hdf5_options : mapping, optional
        Keywords for `h5py.File`.
    storage_options, open_kwargs : mapping, optional
        Options of the file system of a URL, and of opening a file in it.

    Raises
    ------
    ValueError
        If memory or a file object holds no HDF5 file.
    TypeError
        If ``file`` has another type.
    """
    options = sources.as_options(hdf5_options)
    if isinstance(file, h5py.Group):
        whole = file.file
        source: sources.FileSource = sources.LocalFile(os.path.abspath(whole.filename), options)
        source = source if _opens_again(whole, source) else sources.OpenFile(whole)
        return source, file.name or "/"
    if isinstance(file, bytes | memoryview | bytearray):
        source = sources.MemoryFile(bytes(file), options=options)
        _check_signature(source)
        return source, "/"
    if isinstance(file, str) and URL.match(file):
        from xref.storage.fsspec_cache import PART_COPY, WHOLE_COPY, CachedCopy
        from xref.storage.remote import RemoteFile

        storage = sources.as_options(storage_options)
        if WHOLE_COPY.match(file):
            return CachedCopy(file, storage, options), "/"
        kwargs = sources.as_options(open_kwargs)
        url = PART_COPY.sub("", file)
        if url != file:
            # Keep the options of the remaining protocols; others belonged to the cache.
            protocols = {part.partition("://")[0] for part in url.split("::")}
            kept = {k: v for k, v in (storage_options or {}).items() if k in protocols}
            storage = sources.as_options(kept)
        return RemoteFile(url, storage, kwargs, options), "/"
    if isinstance(file, str | os.PathLike):
        path = os.path.abspath(os.path.expanduser(os.fspath(file)))
        return sources.LocalFile(path, options), "/"
    if hasattr(file, "open") and hasattr(file, "fs"):
        file = file.open()  # fsspec's OpenFile; the file closes with its last reference
    if hasattr(file, "read") and hasattr(file, "seek"):
        if isinstance(file.read(0), str):
            raise TypeError(f"engine 'h5ref' cannot open {file!r}: it is not a binary file")
        path_of_file = _path_of(file)
        source = (
            sources.LocalFile(path_of_file, options)
            if path_of_file
            else sources.FileObject(file, options=options)
        )
        _check_signature(source)
        return source, "/"
    raise TypeError(
        f"engine 'h5ref' cannot open {type(file).__name__}: a path, a URL, bytes, a binary "
        "file object or an open h5py object is needed"
    )


def _opens_again(file: h5py.File, source: sources.FileSource) -> bool:
    """Tell whether a file that is open in h5py can also be opened by its path.

    It cannot if it is open for writing (data may not be in the file yet), if it is open with
    other options, such as locking (HDF5 refuses that), or if the path leads to another file.
    """
    if file.driver != "sec2" or file.id.get_intent():
        return False
    try:
        with source.open_hdf5() as again:
            return bool(again.id == file.id)
    except OSError:
        return False


def _path_of(file: Any) -> str | None:
    """Return the path of an open local file, so that it can be read in parallel."""
    name = getattr(file, "name", None)
    if type(file) is not io.BufferedReader or not isinstance(name, str):
        return None
    try:
        is_same = os.path.samestat(os.fstat(file.fileno()), os.stat(name))
    except (OSError, ValueError):
        return None
    return os.path.abspath(name) if is_same else None


def _check_signature(source: sources.FileSource) -> None:
    """Search for HDF5's signature at byte 0, 512, 1024, 2048 and so on."""
    nbytes = source.identity()[2]
    handle, candidate = source.open_bytes(), bytearray(len(SIGNATURE))
    first, offset = b"", 0
    while offset + len(candidate) <= nbytes:
        handle.read(offset, memoryview(candidate))
        if candidate == SIGNATURE:
            return
        first, offset = first or bytes(candidate), max(2 * offset, 512)
    raise ValueError(
        f"{first!r} is not the signature of a valid netCDF4 file, or other HDF5 file: "
        f"{source.name}"
    )
