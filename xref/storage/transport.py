"""Ranges of a remote file: asked for at once, tried again, checked answer by answer.

In: a file system of fsspec, a path, the version that is wanted, byte ranges. Out: their
bytes, all of that version, or an error that names URL and range.

Requests run on fsspec's event loop. File systems without coroutines are asked one range
after the other on a thread. What a server says is not trusted:

- an answer has exactly the bytes asked for, or it is asked for again;
- over HTTP each answer names range, size and version of the file, which are looked at
  before its bytes are taken, and no more bytes are taken than were asked for;
- where answers do not name the version, it is asked for again after they all came.

What failed is tried again by one range of the file after the other, so that a slow or busy
server answers one of them in time.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from xref.arrays import Range
from xref.errors import FileChangedError, FileReadError
from xref.options import get_option
from xref.storage.read_counts import count
from xref.storage.spared_garbage import enter_transport

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

LONGEST_WAIT = 60.0
"""Seconds that a server may ask to wait before a request is tried again."""

_FINAL_PROBLEMS = (
    IsADirectoryError,
    PermissionError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""What file systems say that trying again does not cure."""

_FINAL = (asyncio.CancelledError, FileChangedError, FileNotFoundError, *_FINAL_PROBLEMS)
"""What ends the attempts."""

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


class _BadAnswer(FileReadError):
    """An answer that is no data: whether and when to try again."""

    def __init__(self, said: str, final: bool = False, wait: float = 0) -> None:
        super().__init__(said)
        self.final, self.wait = final, wait


_locks: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()
"""Of each file system, which fsspec shares among all paths of a host."""

_locks_lock = threading.Lock()


class RemotePath:
    """A path in a file system of fsspec.

    Parameters
    ----------
    url : str
    filesystem : fsspec.AbstractFileSystem
    path : str
    """

    def __init__(self, url: str, filesystem: Any, path: str) -> None:
        from fsspec.asyn import get_loop

        if getattr(filesystem, "asynchronous", False):
            raise ValueError(f"{url}: open it without asynchronous=True in storage_options")
        self.url, self.filesystem, self.path = url, filesystem, path
        inner = getattr(filesystem, "fs", filesystem)  # of a file system around another
        self._is_async = bool(filesystem.async_impl and inner.async_impl)
        self._loop = filesystem.loop if self._is_async else get_loop()
        protocols = filesystem.protocol
        names = {protocols} if isinstance(protocols, str) else set(protocols)
        self._is_http = self._is_async and "http" in names
        with _locks_lock:
            self._serial = _locks.setdefault(filesystem, threading.Lock())
        self._retrying = asyncio.Lock()
        self._limit = 0, asyncio.Semaphore()

    def ask(self, function: Callable[[], Awaitable[T]]) -> Future[T]:
        """Begin a coroutine on the event loop of the file system."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            raise RuntimeError(f"{self.url} was asked for in the event loop that would read it")

        async def run() -> T:
            enter_transport()
            return await function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop)

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
        found = await self.retry(self._ask_info, f"{self.url}: its size and version")
        return read_version(self.url, found)

    async def _ask_info(self) -> Mapping[str, Any]:
        count(remote_requests=1)
        filesystem = self.filesystem
        if not self._is_async:
            return await self._on_thread(self._info_of_now)
        filesystem.invalidate_cache(filesystem._parent(self.path))
        try:
            info: Mapping[str, Any] = await filesystem._info(self.path)
        except FileNotFoundError as error:
            # fsspec's HTTP client says so of every problem.
            cause = error.__cause__
            status = getattr(cause, "status", None)
            if cause is None or status in _GONE:
                raise
            said = f"{type(cause).__name__}: {cause}"
            raise _BadAnswer(said, final=status is not None and _is_final(status)) from cause
        return info

    def _info_of_now(self) -> Mapping[str, Any]:
        self.filesystem.invalidate_cache()
        info: Mapping[str, Any] = self.filesystem.info(self.path)
        return info

    async def _on_thread(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a file system without coroutines, which may not be called twice at a time."""

        def call() -> T:
            enter_transport()
            with self._serial:
                return function(*args, **kwargs)

        return await asyncio.to_thread(call)

    async def ask_range(self, start: int, stop: int, version: Version) -> tuple[bytes, bool]:
        """Ask for one range, once.

        Returns
        -------
        data : bytes
        is_named : bool
            Whether the answer named the version, and it is the one given.
        """
        count(remote_requests=1)
        if self._is_http:
            return await self._ask_http(start, stop, version)
        if self._is_async:
            found = await self.filesystem._cat_file(self.path, start=start, end=stop)
        else:
            found = await self._on_thread(
                self.filesystem.cat_file, self.path, start=start, end=stop
            )
        data = bytes(found)
        count(remote_nbytes=len(data))
        _check_length(data, stop - start)
        return data, False

    async def _ask_http(self, start: int, stop: int, version: Version) -> tuple[bytes, bool]:
        """Ask for a range over HTTP, in the session of fsspec's client.

        Source: RFC 9110, "Range Requests".
        """
        filesystem = self.filesystem
        keywords = dict(filesystem.kwargs)
        headers = {
            **(keywords.pop("headers", None) or {}),
            "Accept-Encoding": "identity",
            "Range": f"bytes={start}-{stop - 1}",
        }
        session = await filesystem.set_session()
        url = filesystem.encode_url(self.path)
        async with session.get(url, headers=headers, **keywords) as answer:
            is_named = _check_answer(self.url, answer, (start, stop), version)
            data = bytearray()
            while len(data) <= stop - start:
                part = await answer.content.read(stop - start + 1 - len(data))
                if not part:
                    break
                data += part
            if len(data) != stop - start:
                answer.close()
        count(remote_nbytes=len(data))
        _check_length(data, stop - start)
        return bytes(data), is_named

    def concurrency_limit(self) -> asyncio.Semaphore:
        """Return what bounds the requests that are under way."""
        limit = get_option("remote_requests")
        if self._limit[0] != limit:
            self._limit = limit, asyncio.Semaphore(limit)
        return self._limit[1]

    async def retry(self, function: Callable[[], Awaitable[T]], what: str) -> T:
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
        # What runs on a thread cannot be given up.
        seconds = get_option("remote_timeout") if self._is_async else None
        found = await _attempt(function, seconds)
        if not isinstance(found, BaseException):
            return found
        attempts, wait = 1, FIRST_WAIT
        async with self._retrying:
            while attempts <= get_option("remote_retries") and not _ends_attempts(found):
                count(remote_retries=1)
                asked = found.wait if isinstance(found, _BadAnswer) else 0
                await asyncio.sleep(max(wait * random.uniform(1, 1.5), asked))
                attempts, wait = attempts + 1, 2 * wait
                found = await _attempt(function, seconds)
                if not isinstance(found, BaseException):
                    return found
        if isinstance(found, _FINAL):
            raise found
        said = str(found) or type(found).__name__
        if isinstance(found, TimeoutError):
            said = f"no answer within {get_option('remote_timeout')} s"
        tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        raise FileReadError(f"{what} could not be read in {tries}: {said}") from found


async def _attempt(
    function: Callable[[], Awaitable[T]], seconds: float | None
) -> T | BaseException:
    async def attempt() -> T:  # begins nothing if it is cancelled before
        return await asyncio.wait_for(function(), seconds)

    (found,) = await asyncio.gather(attempt(), return_exceptions=True)
    return found


def _ends_attempts(error: BaseException) -> bool:
    return isinstance(error, _FINAL) or (isinstance(error, _BadAnswer) and error.final)


_GONE = (404, 410)


def _is_final(status: int) -> bool:
    """Tell whether a status of HTTP stays the same however often one asks."""
    return 400 <= status < 500 and status not in (408, 425, 429)


def _check_length(data: bytes | bytearray, wanted: int) -> None:
    if len(data) != wanted:
        more = "more" if len(data) > wanted else len(data)
        raise FileReadError(f"{wanted} bytes were asked for, {more} came")


def _check_answer(url: str, answer: Any, wanted: Range, version: Version) -> bool:
    """Look at the head of an answer; tell whether it names the version.

    Source: RFC 9110, "206 Partial Content", "Content-Range" and "Retry-After".
    """
    status, headers = answer.status, answer.headers
    if status in _GONE:
        raise FileNotFoundError(url)
    if status >= 400:
        asked = headers.get("Retry-After", "")
        wait = min(float(asked), LONGEST_WAIT) if asked.isdecimal() else 0
        raise _BadAnswer(f"status {status} {answer.reason}", _is_final(status), wait)
    told = headers.get(version.key, "") if version.key else ""
    if told and _plain_tag(told) != _plain_tag(version.value):
        raise changed(url, version, f"{version.key} {told}")
    if status == 200:
        raise _BadAnswer(
            "the server sent the whole file instead of a part of it; open a local copy: "
            f"simplecache::{url}"
        )
    if status != 206:
        raise _BadAnswer(f"status {status} {answer.reason}")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise _BadAnswer(f"the bytes came encoded: {headers['Content-Encoding']}")
    content_range = headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(content_range.strip())
    if found is None:
        raise _BadAnswer(f"the answer does not name its range: {content_range!r}")
    first, last, size = found.groups()
    if size not in ("*", str(version.nbytes)):
        raise changed(url, version, f"of {size} bytes")
    if (int(first), int(last) + 1) != wanted:
        raise _BadAnswer(f"the answer is of another range: {content_range}")
    # Where nothing but the size tells versions apart, the range has told it.
    return bool(told) if version.key else size != "*"


def _plain_tag(tag: str) -> str:
    """Return a tag without the mark of a weak one, which some answers have."""
    return tag.removeprefix("W/")


def changed(url: str, version: Version, now: object) -> FileChangedError:
    """Return the error that says that a file is of another version."""
    return FileChangedError(
        f"{url} has changed since it was opened: it was {version} and is {now}; open it again"
    )


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
        tasks = [asyncio.ensure_future(self._read_range(a, b)) for a, b in ranges]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        if not all(is_named for _, is_named in found):
            await self._check_version()
        return [data for data, _ in found]

    async def _read_range(self, start: int, stop: int) -> tuple[bytes, bool]:
        """Read one range; tell whether its answer named the version."""
        try:
            async with self.remote.concurrency_limit():
                return await self.remote.retry(
                    lambda: self.remote.ask_range(start, stop, self.version),
                    f"{self.remote.url}: bytes {start} to {stop}",
                )
        except FileNotFoundError as error:
            raise FileChangedError(f"{self.remote.url} is gone since it was opened") from error
        except FileChangedError:
            raise
        except FileReadError:
            # What cannot be read may be cut off, or be another file by now.
            with suppress(FileReadError):  # the error of the range says more
                await self._check_version()
            raise
        except _FINAL_PROBLEMS as error:
            raise FileReadError(
                f"{self.remote.url}: bytes {start} to {stop} could not be read: "
                f"{type(error).__name__}: {error}"
            ) from error

    async def _check_version(self) -> None:
        try:
            now = await self.remote.ask_version()
        except FileNotFoundError as error:
            raise FileChangedError(f"{self.remote.url} is gone since it was opened") from error
        if (now.nbytes, now.key, _plain_tag(now.value)) != (
            self.version.nbytes,
            self.version.key,
            _plain_tag(self.version.value),
        ):
            raise changed(self.remote.url, self.version, now)


def wait_for(future: Future[T], seconds: float | None = None) -> T:
    """Wait for what was begun; an interrupted wait ends it.

    Raises
    ------
    TimeoutError
        If it takes longer than so many seconds, if they are given.
    """
    try:
        return future.result(seconds)
    except BaseException:
        future.cancel()
        raise
