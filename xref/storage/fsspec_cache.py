"""Local copies of remote files, which fsspec downloads.

In: a URL like ``simplecache::http://...``. Out: `CachedCopy`, a source. Only the copy is
read, so a digest of its content is its version: processes with different copies do not mix
their data, and a copy stays readable after the file on the server has changed.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from functools import lru_cache

import h5py

from xref.storage import sources

WHOLE_COPY = re.compile(r"^(simplecache|filecache)::")
PART_COPY = re.compile(r"^(blockcache|cached)::")
"""A cache of parts of files could mix versions, so these prefixes are removed."""


@dataclass(frozen=True, slots=True)
class CachedCopy(sources.FileSource):
    """A remote file of which fsspec keeps a local copy."""

    name: str  # the URL
    storage_options: sources.Options = field(default=(), repr=False)  # may hold access keys
    hdf5_options: sources.Options = ()  # keywords of `h5py.File`

    def __hash__(self) -> int:
        return hash(self.name)  # options may hold dicts

    def _copy(self) -> sources.LocalFile:
        """Return the local copy; download it if this process has none."""
        key = self, os.getpid()
        path = _paths.get(key)
        if path is None or not os.path.exists(path):
            fsspec = sources.import_fsspec(self.name)
            path = fsspec.open_local(self.name, **dict(self.storage_options))
            path = _paths[key] = os.path.abspath(path)
        return sources.LocalFile(path, self.hdf5_options)

    def identity(self) -> sources.Identity:
        """Return a digest of the content."""
        return self._identity(self._copy().identity())

    def _identity(self, copy: sources.Identity) -> sources.Identity:
        return "copy", self.name, copy[2], _digest(self._copy().name, copy)

    def open_hdf5(self) -> h5py.File:
        """Open the copy."""
        return self._copy().open_hdf5()

    def open_bytes(self) -> sources.ByteHandle:
        """Open a descriptor of the copy."""
        return _CopyHandle(self, self._copy().open_bytes())


_paths: dict[tuple[CachedCopy, int], str] = {}
"""Paths of the copies that this process uses."""


def forget_copies() -> None:
    """Forget the paths of copies; later reads ask fsspec again."""
    _paths.clear()


@dataclass(frozen=True, slots=True)
class _CopyHandle:
    source: CachedCopy
    held: sources.ByteHandle

    def identity(self) -> sources.Identity:
        return self.source._identity(self.held.identity())

    def read(self, offset: int, buffer: memoryview) -> int:
        return self.held.read(offset, buffer)


@lru_cache(maxsize=1024)
def _digest(path: str, copy: sources.Identity) -> str:
    """Return a digest of a local file, computed once for each version."""
    del copy  # only a part of the cache's key
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
