"""Ranges of a remote file: asked for at once, tried again, checked answer by answer.

In: a file system of fsspec, a path, the version that is wanted, byte ranges. Out: their
bytes, all of that version, or an error that names URL and range.

Requests run on fsspec's event loop. File systems without coroutines are asked one range
after the other on a thread. What a server says is not trusted:

- an answer has exactly the bytes asked for, or it is asked for again;
- over HTTP each answer names range, size and version of the file, which are looked at
  before its bytes are taken;
- where answers do not name the version, it is asked for again after they all came.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from xref.counts import count
from xref.errors import FileChangedError, FileReadError
from xref.options import get_option
from xref.ranges import Range

T = TypeVar("T")

VERSION_KEYS = (
    "ETag",
    "etag",
    "VersionId",
    "md5",
    "LastModified",
    "Last-Modified",
    "last_modified",
    "mtime",
    "modified",
    "created",
)
"""What file systems call that which changes with a file, the most telling first."""

FIRST_WAIT = 0.1
"""Seconds before a request is tried again; twice as long before each further time."""

_FINAL = (
    asyncio.CancelledError,
    FileChangedError,
    FileNotFoundError,
    PermissionError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""What trying again does not cure."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class Version:
    """Size and version of a remote file, as its file system tells them."""

    nbytes: int
    key: str  # of `VERSION_KEYS`; empty where there is none
    value: str


def read_version(url: str, info: Mapping[str, Any]) -> Version:
    """Return what a file system's ``info`` tells of the version of a file.

    Raises
    ------
    FileReadError
        If it does not tell the size.
    """
    if info.get("size") is None:
        raise FileReadError(
            f"{url}: the server does not tell the size of the file, so that parts of it "
            f"cannot be read; open a local copy: simplecache::{url}"
        )
    key = next((k for k in VERSION_KEYS if info.get(k) not in (None, "")), "")
    return Version(int(info["size"]), key, str(info[key]) if key else "")


@dataclass(frozen=True, slots=True)
class RemotePath:
    """A path in a file system of fsspec."""

    url: str
    filesystem: Any
    path: str
    _one_by_one: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False)

    @property
    def is_http(self) -> bool:
        """Whether answers are those of fsspec's HTTP client, which can be looked at."""
        protocols = self.filesystem.protocol
        names = {protocols} if isinstance(protocols, str) else set(protocols)
        return bool(self.filesystem.async_impl) and "http" in names

    def ask(self, function: Callable[[], Awaitable[T]]) -> Future[T]:
        """Begin a coroutine on the event loop of the file system."""
        from fsspec.asyn import get_loop

        loop = self.filesystem.loop if self.filesystem.async_impl else get_loop()

        async def run() -> T:
            return await function()

        return asyncio.run_coroutine_threadsafe(run(), loop)

    def version(self) -> Version:
        """Ask for the version of the file as it is now.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        FileReadError
            If there is no answer that tells its size.
        """
        return wait_for(self.ask(self.ask_version))

    async def ask_version(self) -> Version:
        """Ask for the version; see `version`."""
        found = await try_again(self._ask_info, f"{self.url}: its size and version")
        return read_version(self.url, found)

    async def _ask_info(self) -> Mapping[str, Any]:
        count(remote_requests=1)
        filesystem = self.filesystem
        if not filesystem.async_impl:
            # That of a cache tells of the copy, not of the file.
            original = getattr(filesystem, "fs", filesystem) if _caches(filesystem) else None
            asked = original or filesystem
            asked.invalidate_cache()
            return await self._on_thread(asked.info, self.path)
        filesystem.invalidate_cache(filesystem._parent(self.path))
        try:
            info: Mapping[str, Any] = await filesystem._info(self.path)
        except FileNotFoundError as error:
            # fsspec's HTTP client says so of every problem.
            cause = error.__cause__
            if cause is None or getattr(cause, "status", None) in (404, 410):
                raise
            raise FileReadError(f"{type(cause).__name__}: {cause}") from cause
        return info

    async def _on_thread(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call what may not be called twice at a time."""
        async with self._one_by_one:
            return await asyncio.to_thread(function, *args, **kwargs)

    async def ask_range(
        self, start: int, stop: int, check: Callable[[Any], Awaitable[None]] | None
    ) -> bytes:
        """Ask for one range, once."""
        count(remote_requests=1)
        if not self.filesystem.async_impl:
            found = await self._on_thread(
                self.filesystem.cat_file, self.path, start=start, end=stop
            )
        else:
            more: dict[str, Any] = {}
            if check is not None:
                own = self.filesystem.kwargs.get("headers") or {}
                more = {
                    "headers": {**own, "Accept-Encoding": "identity"},
                    "raise_for_status": check,
                }
            found = await self.filesystem._cat_file(self.path, start=start, end=stop, **more)
        data = bytes(found)
        count(remote_nbytes=len(data))
        if len(data) != stop - start:
            raise FileReadError(f"{stop - start} bytes were asked for, {len(data)} came")
        return data


def _caches(filesystem: Any) -> bool:
    from fsspec.implementations.cached import CachingFileSystem

    return isinstance(filesystem, CachingFileSystem)


@dataclass(frozen=True, slots=True)
class RangeReader:
    """Reads ranges of one version of a remote file."""

    remote: RemotePath
    version: Version

    def begin(self, ranges: Sequence[Range]) -> Future[list[bytes]]:
        """Begin to read ranges.

        Parameters
        ----------
        ranges : sequence of (start, stop)
            Each within the file, and not empty.

        Returns
        -------
        concurrent.futures.Future
            Of one bytes object a range; `wait_for` waits for it. Its errors are
            `FileChangedError` where the file is of another version or gone, and
            `FileReadError` where a range could not be read in as many attempts as the
            option ``remote_retries`` allows.
        """
        return self.remote.ask(lambda: self._read(ranges))

    async def _read(self, ranges: Sequence[Range]) -> list[bytes]:
        at_once = asyncio.Semaphore(get_option("remote_requests"))
        unnamed: list[Range] = []  # ranges whose answers did not tell the version

        async def read_one(start: int, stop: int) -> bytes:
            async with at_once:
                return await self._read_range(start, stop, unnamed)

        tasks = [asyncio.ensure_future(read_one(start, stop)) for start, stop in ranges]
        try:
            found = list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
        if unnamed:
            await self._check_version()
        return found

    async def _read_range(self, start: int, stop: int, unnamed: list[Range]) -> bytes:
        check = None
        if self.remote.is_http:
            check = self._answer_check(start, stop, unnamed)
        else:
            unnamed.append((start, stop))
        try:
            return await try_again(
                lambda: self.remote.ask_range(start, stop, check),
                f"{self.remote.url}: bytes {start} to {stop}",
            )
        except FileNotFoundError as error:
            raise FileChangedError(f"{self.remote.url} is gone since it was opened") from error
        except FileReadError:
            # What cannot be read may be cut off, or be another file by now.
            await self._check_version()
            raise

    async def _check_version(self) -> None:
        try:
            now = await self.remote.ask_version()
        except FileNotFoundError as error:
            raise FileChangedError(f"{self.remote.url} is gone since it was opened") from error
        if now != self.version:
            raise self._changed(now)

    def _changed(self, now: object) -> FileChangedError:
        return FileChangedError(
            f"{self.remote.url} has changed since it was opened: it was {self.version} and "
            f"is {now}; open it again"
        )

    def _answer_check(
        self, start: int, stop: int, unnamed: list[Range]
    ) -> Callable[[Any], Awaitable[None]]:
        """Return what looks at the head of one HTTP answer before its bytes are taken."""

        async def check(response: Any) -> None:
            try:
                self._check_answer(response.status, response.headers, start, stop)
            except (FileReadError, FileChangedError):
                response.close()
                raise
            # Where nothing but the size tells versions apart, the range told it.
            if self.version.key and self.version.key not in response.headers:
                unnamed.append((start, stop))

        return check

    def _check_answer(
        self, status: int, headers: Mapping[str, str], start: int, stop: int
    ) -> None:
        """Look at status and headers of an answer.

        Source: RFC 9110, "206 Partial Content" and "Content-Range".
        """
        if status >= 400:
            return  # fsspec says what that means
        told = headers.get(self.version.key, self.version.value)
        if self.version.key and told != self.version.value:
            raise self._changed(f"{self.version.key} {told}")
        if status != 206:
            raise FileReadError(
                f"status {status} and not 206: the server does not send parts of files; "
                f"open a local copy: simplecache::{self.remote.url}"
            )
        if headers.get("Content-Encoding", "identity") != "identity":
            raise FileReadError(f"the bytes came encoded: {headers['Content-Encoding']}")
        content_range = headers.get("Content-Range", "")
        found = _CONTENT_RANGE.fullmatch(content_range.strip())
        if found is None:
            raise FileReadError(f"the answer does not name its range: {content_range!r}")
        first, last, size = found.groups()
        if size not in ("*", str(self.version.nbytes)):
            raise self._changed(f"of {size} bytes")
        if (int(first), int(last) + 1) != (start, stop):
            raise FileReadError(f"the answer is of another range: {content_range}")


async def try_again(function: Callable[[], Awaitable[T]], what: str) -> T:
    """Await something until it comes, a few times.

    Parameters
    ----------
    function : callable
        Begins one attempt.
    what : str
        Names what is asked for in the error.

    Raises
    ------
    FileReadError
        If the last attempt failed too.
    """
    attempts = 1 + get_option("remote_retries")
    limit = get_option("remote_timeout")
    problem: BaseException | None = None
    for attempt in range(attempts):
        if attempt:
            count(remote_retries=1)
            await asyncio.sleep(FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(1, 1.5))
        (found,) = await asyncio.gather(
            asyncio.wait_for(function(), limit), return_exceptions=True
        )
        if not isinstance(found, BaseException):
            return found
        if isinstance(found, _FINAL):
            raise found
        problem = found
    said = str(problem) or type(problem).__name__
    if isinstance(problem, TimeoutError):
        said = f"no answer within {limit} s"
    raise FileReadError(f"{what} could not be read in {attempts} attempts: {said}") from problem


def wait_for(future: Future[T]) -> T:
    """Wait for what was begun; an interrupted wait ends it."""
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
