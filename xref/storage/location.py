"""The place of a file and its version, as a value that travels in graphs.

In: what opens the file, and its identity. Out: a `FileLocation`, and caches by it.
Nothing that h5py made is put into a location; each process opens the file again
(`xref.storage.open_files`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import lru_cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from xref.storage.sources import FileSource, Identity

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
    holds_file: bool = field(default=True, repr=False, compare=False)
    # The handles of `xref.storage.open_files` that stay open with this location.
    handles: list[Any] = field(default_factory=list, repr=False, compare=False)

    @property
    def filename(self) -> str:
        """Path or URL."""
        return self.source.name

    @property
    def file_id(self) -> tuple[Any, Any]:
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


def without_open_file(location: FileLocation) -> FileLocation:
    """Return an equal location that keeps no file open, to remember a place by."""
    return replace(location, holds_file=False, handles=[]) if location.holds_file else location


class _CacheKey:
    """A location among the arguments of a cache, let go of once the call is over."""

    __slots__ = ("location", "token")

    def __init__(self, location: FileLocation) -> None:
        self.location: FileLocation | None = location
        self.token = location.token

    def __hash__(self) -> int:
        return hash(self.token)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _CacheKey) and self.token == other.token


def cached_by_location(
    maxsize: int,
) -> Callable[
    [Callable[Concatenate[FileLocation, P], R]], Callable[Concatenate[FileLocation, P], R]
]:
    """Cache a function of a location and more, without keeping the file or its content."""

    def decorate(
        function: Callable[Concatenate[FileLocation, P], R],
    ) -> Callable[Concatenate[FileLocation, P], R]:
        def of_key(key: _CacheKey, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return function(cast(FileLocation, key.location), *args, **kwargs)

        cached: Any = lru_cache(maxsize=maxsize)(of_key)

        @wraps(function)
        def call(location: FileLocation, /, *args: P.args, **kwargs: P.kwargs) -> R:
            key = _CacheKey(without_open_file(location))
            try:
                result: R = cached(key, *args, **kwargs)
            finally:
                key.location = None
            return result

        return cast(Callable[Concatenate[FileLocation, P], R], call)

    return decorate
