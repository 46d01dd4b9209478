"""Ranges of a remote file: requested concurrently, checked, and requested again on failure.

In: a file system of fsspec, a path, the required version, byte ranges. Out: the bytes, all of
that version, or an error with URL and range.

Requests run on fsspec's event loop. File systems without coroutines read one range after the
other on a thread. Answers of a server are checked:

- an answer that does not have exactly the requested bytes is requested again;
- over HTTP, range, size and version in the header of an answer are checked before its bytes
  are read, and no more bytes are read than requested;
- if answers do not contain the version, it is requested after all of them.

Failed requests of one file are repeated one after the other, so that a slow or busy server
answers each in time.
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
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from xref.arrays import Range
from xref.errors import FileChangedError, FileReadError
from xref.options import get_option
from xref.storage.read_counts import count
from xref.storage.spared_garbage import enter_transport

T = TypeVar("T")

_TIME_KEYS = "LastModified", "Last-Modified", "last_modified", "mtime", "modified", "created"
VERSION_KEYS = ("ETag", "etag", "VersionId", "md5", *_TIME_KEYS)
"""Keys of fsspec's file information that identify a version, the most reliable first."""

FIRST_WAIT = 0.1
"""Seconds before the first retry of a request, doubled before each further one."""

LONGEST_WAIT = 60.0
"""Upper bound on the seconds that a server may ask to wait before a retry."""

_FINAL_PROBLEMS = (
    IsADirectoryError,
    PermissionError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""Errors of file systems that a retry does not cure."""

_FINAL = (asyncio.CancelledError, FileChangedError, FileNotFoundError, *_FINAL_PROBLEMS)
"""Errors after which a request is not repeated."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class Version:
    """Size and version of a remote file, from its file system."""

    nbytes: int
    key: str  # one of `VERSION_KEYS`; empty if there is none
    value: str

    def __str__(self) -> str:
        tag = f" with {self.key} {self.value}" if self.key else ""
        return f"of {self.nbytes} bytes{tag}"


def read_version(url: str, info: Mapping[str, Any]) -> Version:
    """Return size and version of a file from a file system's ``info``.

    Raises
    ------
    FileReadError
        If it has no size.
    """
    if info.get("size") is None:
        raise FileReadError(
            f"{url}: the server does not report the size of the file, so parts of it cannot "
            f"be read; open a local copy: simplecache::{url}"
        )
    key = next((k for k in VERSION_KEYS if info.get(k) not in (None, "")), "")
    return Version(int(info["size"]), key, str(info[key]) if key else "")


class _BadAnswer(FileReadError):
    """An answer without the data; it says whether and when to retry."""

    def __init__(self, reason: str, final: bool = False, wait: float = 0) -> None:
        super().__init__(reason)
        self.final, self.wait = final, wait


_locks: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()
"""A lock for each file system, which fsspec shares among all paths of a host."""

_locks_lock = threading.Lock()


class RemotePath:
    """A path in a file system of fsspec (``fsspec.AbstractFileSystem``)."""

    def __init__(self, url: str, filesystem: Any, path: str) -> None:
        from fsspec.asyn import get_loop

        if getattr(filesystem, "asynchronous", False):
            raise ValueError(f"{url}: open it without asynchronous=True in storage_options")
        self.url, self.filesystem, self.path = url, filesystem, path
        inner = getattr(filesystem, "fs", filesystem)  # of a wrapper around a file system
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
        """Start a coroutine on the event loop of the file system."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            raise RuntimeError(f"{self.url} was requested in the event loop that would read it")

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
            If no answer has its size.
        """
        return wait_for(self.ask(self.ask_version))

    async def ask_version(self) -> Version:
        """Ask for the version; see `version`."""
        info = await self.retry(self._ask_info, f"{self.url}: its size and version")
        return read_version(self.url, info)

    async def _ask_info(self) -> Mapping[str, Any]:
        count(remote_requests=1)
        filesystem = self.filesystem
        if not self._is_async:
            return await self._on_thread(self._info_of_now)
        filesystem.invalidate_cache(filesystem._parent(self.path))
        try:
            info: Mapping[str, Any] = await filesystem._info(self.path)
        except FileNotFoundError as error:
            # fsspec's HTTP client raises this error for every problem.
            cause = error.__cause__
            status = getattr(cause, "status", None)
            if cause is None or status in _GONE:
                raise
            reason = f"{type(cause).__name__}: {cause}"
            raise _BadAnswer(reason, final=status is not None and _is_final(status)) from cause
        return info

    def _info_of_now(self) -> Mapping[str, Any]:
        self.filesystem.invalidate_cache()
        info: Mapping[str, Any] = self.filesystem.info(self.path)
        return info

    async def _on_thread(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a file system without coroutines, in one thread at a time."""

        def call() -> T:
            enter_transport()
            with self._serial:
                return function(*args, **kwargs)

        return await asyncio.to_thread(call)

    async def ask_range(self, start: int, stop: int, version: Version) -> tuple[bytes, bool]:
        """Request one range, once.

        Returns
        -------
        data : bytes
        is_named : bool
            Whether the answer contained the version; then it was the required one.
        """
        count(remote_requests=1)
        if self._is_http:
            return await self._ask_http(start, stop, version)
        if self._is_async:
            answer = await self.filesystem._cat_file(self.path, start=start, end=stop)
        else:
            answer = await self._on_thread(
                self.filesystem.cat_file, self.path, start=start, end=stop
            )
        data = bytes(answer)
        count(remote_nbytes=len(data))
        _check_length(data, stop - start)
        return data, False

    async def _ask_http(self, start: int, stop: int, version: Version) -> tuple[bytes, bool]:
        """Request a range over HTTP, in the session of fsspec's client.

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
        """Return the semaphore that limits concurrent requests."""
        limit = get_option("remote_requests")
        if self._limit[0] != limit:
            self._limit = limit, asyncio.Semaphore(limit)
        return self._limit[1]

    async def retry(self, function: Callable[[], Awaitable[T]], label: str) -> T:
        """Await a request, which ``function`` starts; repeat it a few times if it fails.

        ``label`` names the requested data in the error.

        Raises
        ------
        FileReadError
            If the last attempt failed too.
        """
        # A call on a thread cannot be cancelled.
        seconds = get_option("remote_timeout") if self._is_async else None
        outcome = await _attempt(function, seconds)
        if not isinstance(outcome, BaseException):
            return outcome
        attempts, wait = 1, FIRST_WAIT
        async with self._retrying:
            while attempts <= get_option("remote_retries") and not _ends_attempts(outcome):
                count(remote_retries=1)
                server_wait = outcome.wait if isinstance(outcome, _BadAnswer) else 0
                await asyncio.sleep(max(wait * random.uniform(1, 1.5), server_wait))
                attempts, wait = attempts + 1, 2 * wait
                outcome = await _attempt(function, seconds)
                if not isinstance(outcome, BaseException):
                    return outcome
        if isinstance(outcome, _FINAL):
            raise outcome
        reason = str(outcome) or type(outcome).__name__
        if isinstance(outcome, TimeoutError):
            reason = f"no answer within {get_option('remote_timeout')} s"
        tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        raise FileReadError(f"{label} could not be read in {tries}: {reason}") from outcome


async def _attempt(
    function: Callable[[], Awaitable[T]], seconds: float | None
) -> T | BaseException:
    async def attempt() -> T:  # sends nothing if it was cancelled before
        return await asyncio.wait_for(function(), seconds)

    (outcome,) = await asyncio.gather(attempt(), return_exceptions=True)
    return outcome


def _ends_attempts(error: BaseException) -> bool:
    return isinstance(error, _FINAL) or (isinstance(error, _BadAnswer) and error.final)


_GONE = (404, 410)


def _is_final(status: int) -> bool:
    """Tell whether a status of HTTP says that a retry is useless."""
    return 400 <= status < 500 and status not in (408, 425, 429)


def _check_length(data: bytes | bytearray, wanted: int) -> None:
    if len(data) != wanted:
        more = "more" if len(data) > wanted else len(data)
        raise FileReadError(f"{wanted} bytes were requested, {more} were received")


def _check_answer(url: str, answer: Any, wanted: Range, version: Version) -> bool:
    """Check the header of an answer; tell whether it contains the version.

    Source: RFC 9110, "206 Partial Content", "Content-Range" and "Retry-After".
    """
    status, headers = answer.status, answer.headers
    if status in _GONE:
        raise FileNotFoundError(url)
    if status >= 400:
        seconds = headers.get("Retry-After", "")
        wait = min(float(seconds), LONGEST_WAIT) if seconds.isdecimal() else 0
        raise _BadAnswer(f"status {status} {answer.reason}", _is_final(status), wait)
    named = headers.get(version.key, "") if version.key else ""
    if named and _plain_tag(named) != _plain_tag(version.value):
        raise changed(url, version, f"{version.key} {named}")
    if status == 200:
        raise _BadAnswer(
            "the server sent the whole file instead of a part of it; open a local copy: "
            f"simplecache::{url}"
        )
    if status != 206:
        raise _BadAnswer(f"status {status} {answer.reason}")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise _BadAnswer(f"the bytes are encoded: {headers['Content-Encoding']}")
    content_range = headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(content_range.strip())
    if match is None:
        raise _BadAnswer(f"the answer does not contain its range: {content_range!r}")
    first, last, size = match.groups()
    if size not in ("*", str(version.nbytes)):
        raise changed(url, version, f"of {size} bytes")
    if (int(first), int(last) + 1) != wanted:
        raise _BadAnswer(f"the answer has another range: {content_range}")
    # If only the size distinguishes versions, it is part of the range.
    return bool(named) if version.key else size != "*"


def _plain_tag(tag: str) -> str:
    """Return a tag without the prefix of a weak tag, which some answers add."""
    return tag.removeprefix("W/")


def changed(url: str, version: Version, now: object) -> FileChangedError:
    """Return the error for a file of another version."""
    return FileChangedError(
        f"{url} has changed since it was opened: it was {version} and is {now}; open it again"
    )


@dataclass(frozen=True, slots=True)
class RangeReader:
    """Reads ranges of one version of a remote file."""

    remote: RemotePath
    version: Version

    def begin(self, ranges: Sequence[Range]) -> Future[list[bytes]]:
        """Request ranges.

        Parameters
        ----------
        ranges : sequence of (start, stop)
            Each within the file, and not empty.

        Returns
        -------
        concurrent.futures.Future
            For `wait_for`: one bytes object a range. Its errors are `FileChangedError` if
            the file has another version or was deleted, and `FileReadError` if a range could
            not be read in as many attempts as the option ``remote_retries`` allows.
        """
        return self.remote.ask(lambda: self._read(ranges))

    async def _read(self, ranges: Sequence[Range]) -> list[bytes]:
        tasks = [asyncio.ensure_future(self._read_range(a, b)) for a, b in ranges]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        if not all(is_named for _, is_named in answers):
            await self._check_version()
        return [data for data, _ in answers]

    async def _read_range(self, start: int, stop: int) -> tuple[bytes, bool]:
        """Read one range; tell whether its answer contained the version."""
        try:
            async with self.remote.concurrency_limit():
                return await self.remote.retry(
                    lambda: self.remote.ask_range(start, stop, self.version),
                    f"{self.remote.url}: bytes {start} to {stop}",
                )
        except FileNotFoundError as error:
            raise FileChangedError(
                f"{self.remote.url} was deleted since it was opened"
            ) from error
        except FileChangedError:
            raise
        except FileReadError:
            # The file may have been truncated or replaced.
            with suppress(FileReadError):  # the error of the range is more precise
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
            raise FileChangedError(
                f"{self.remote.url} was deleted since it was opened"
            ) from error
        tag, old_tag = _plain_tag(now.value), _plain_tag(self.version.value)
        if replace(now, value=tag) != replace(self.version, value=old_tag):
            raise changed(self.remote.url, self.version, now)


def wait_for(future: Future[T], seconds: float | None = None) -> T:
    """Wait for a request; cancel it if the wait is interrupted.

    Raises
    ------
    TimeoutError
        If it takes longer than ``seconds``.
    """
    try:
        return future.result(seconds)
    except BaseException:
        future.cancel()
        raise
