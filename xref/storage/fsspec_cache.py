"""Copies that fsspec keeps of remote files: read as files of this machine.

In: a URL like ``simplecache::http://...``. Out: `KeptCopy`, a source. The copy is what is
read, so its content is its version: processes with copies of different versions do not mix
them, and a copy that is older than what the server has is still read whole.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from functools import lru_cache

import h5py

from xref.storage.sources import (
    ByteHandle,
    FileSource,
    Identity,
    LocalFile,
    Options,
    import_fsspec,
)

WHOLE_COPY = re.compile(r"^(simplecache|filecache)::")
PART_COPY = re.compile(r"^(blockcache|cached)::")
"""Caches of parts of files would mix versions: these are read past them."""


@dataclass(frozen=True, slots=True)
class KeptCopy(FileSource):
    """A file of which fsspec keeps a copy.

    Attributes
    ----------
    name : str
        The URL.
    storage_options : tuple of (str, object)
        For the file systems.
    hdf5_options : tuple of (str, object)
        Keywords for `h5py.File`.
    """

    name: str
    storage_options: Options = field(default=(), repr=False)  # keys among them
    hdf5_options: Options = ()

    def __hash__(self) -> int:
        return hash(self.name)  # options may hold dicts

    def _copy(self) -> LocalFile:
        """Return the copy, which is made where this process has none."""
        key = self, os.getpid()
        path = _paths.get(key)
        if path is None or not os.path.exists(path):
            fsspec = import_fsspec(self.name)
            path = fsspec.open_local(self.name, **dict(self.storage_options))
            path = _paths[key] = os.path.abspath(path)
        return LocalFile(path, self.hdf5_options)

    def identity(self) -> Identity:
        """Return a digest of the content."""
        return self._identity(self._copy().identity())

    def _identity(self, copy: Identity) -> Identity:
        return "copy", self.name, copy[2], _digest(self._copy().name, copy)

    def open_hdf5(self) -> h5py.File:
        """Open the copy."""
        return self._copy().open_hdf5()

    def open_bytes(self) -> ByteHandle:
        """Open a descriptor of the copy."""
        return _CopyHandle(self, self._copy().open_bytes())


_paths: dict[tuple[KeptCopy, int], str] = {}
"""Where the copies of this process are."""


def forget_copies() -> None:
    """Ask fsspec again where copies are, or to make them."""
    _paths.clear()


@dataclass(frozen=True, slots=True)
class _CopyHandle:
    source: KeptCopy
    held: ByteHandle

    def identity(self) -> Identity:
        return self.source._identity(self.held.identity())

    def read(self, offset: int, buffer: memoryview) -> int:
        return self.held.read(offset, buffer)


@lru_cache(maxsize=1024)
def _digest(path: str, copy: Identity) -> str:
    """Return a digest of a file of this machine, worked out once for each version."""
    del copy  # a part of the key
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
