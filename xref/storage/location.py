"""A file and its version, as a value that can be in Dask graphs.

In: a source and its identity. Out: a `FileLocation`, caches with a location in the key, and
whether two identities are one version of a file, or how they differ.

A location holds no object of h5py; each process opens the file again
(`xref.storage.open_files`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from xref.storage.sources import FileSource, Identity

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class FileLocation:
    """One version of a file, and the policy for files to which it refers.

    A file stays open in this process while a location with ``holds_file`` exists. It is closed
    when the last variable of the file is deleted. Locations in caches have
    ``holds_file=False``.
    """

    source: FileSource
    identity: Identity  # of a local file: device, inode, bytes, (mtime,) or (mtime, ctime)
    external: str = "same-dir"  # or "all" or "none": the files that its links may name
    holds_file: bool = field(default=True, repr=False, compare=False)
    # The `xref.storage.open_files` handles that this location holds open; at most one.
    handles: list[Any] = field(default_factory=list, repr=False, compare=False)

    @property
    def filename(self) -> str:
        """Path or URL."""
        return self.source.name

    @property
    def file_id(self) -> tuple[Any, Any]:
        """Identifies the file, which may be reached by several paths."""
        return self.identity[:2]

    @property
    def token(self) -> tuple[Hashable, ...]:
        """A value that equal locations share; unlike a location, it holds no open file."""
        return self.source.token, self.identity, self.external

    def __reduce__(self) -> tuple[Any, ...]:
        return FileLocation, (self.source, self.identity, self.external)

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        return self.token


def without_open_file(location: FileLocation) -> FileLocation:
    """Return an equal location that does not hold the file open, for caches."""
    return replace(location, holds_file=False, handles=[]) if location.holds_file else location


class _CacheKey:
    """A location as an argument of a cached function; it is dropped after the call."""

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
    """Cache a function whose first argument is a location, without holding the file open."""

    def decorate(
        function: Callable[Concatenate[FileLocation, P], R],
    ) -> Callable[Concatenate[FileLocation, P], R]:
        def call_with_key(key: _CacheKey, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return function(cast(FileLocation, key.location), *args, **kwargs)

        cached: Any = lru_cache(maxsize=maxsize)(call_with_key)

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


def is_same_identity(one: Identity, other: Identity) -> bool:
    """Tell whether two identities are those of one version of one file.

    The device is not compared: machines that share a file system may number its devices
    differently. If only one identity contains the ctime, it is not compared.
    """
    if one[1:] == other[1:]:
        return True
    (_, *file, times), (_, *other_file, other_times) = one, other
    if file != other_file or not (isinstance(times, tuple) and isinstance(other_times, tuple)):
        return False
    n = min(len(times), len(other_times))
    return bool(times[:n] == other_times[:n])


def describe_difference(before: Identity, now: Identity) -> str:
    """Return the differences between two identities in words."""
    times, times_now = before[3], now[3]
    if not (isinstance(times, tuple) and isinstance(times_now, tuple)):
        return f"it was {before} and is {now}"
    found = []
    if before[1] != now[1]:
        found.append(f"another file is at its path (inode {before[1]} before, {now[1]} now)")
    if before[2] != now[2]:
        found.append(f"it had {before[2]} bytes and has {now[2]}")
    if times[0] != times_now[0]:
        found.append(
            f"its last write (mtime) was at {_time(times[0])} and is at {_time(times_now[0])}"
        )
    if not found:
        found.append(
            f"the last change of its inode (ctime) was at {_time(times[-1])} and is at "
            f"{_time(times_now[-1])}, which counts because of strict_version=True"
        )
    return ", ".join(found)


def _time(ns: int) -> str:
    """Return a time in nanoseconds since 1970 as text."""
    seconds, rest = divmod(ns, 10**9)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest:09} UTC"
    except (OverflowError, OSError, ValueError):  # beyond the years that Python knows
        return f"{ns} ns since 1970"
