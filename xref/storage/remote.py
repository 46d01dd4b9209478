"""Files behind URLs: one version of each file, metadata in blocks, data in ranges.

In: a URL. Out: `RemoteFile`, a source that can be in Dask graphs, and `RemoteBytes`, the
open file of one process. Positional reads of HDF5 and of the decoders of metadata go through
a cache of blocks; the first blocks are requested when the version is read. Ranges of data
are requested all at once.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from xref.arrays import CachedRanges, IntArray, Range, coalesce, ragged_ranges, split
from xref.errors import FileChangedError, FileReadError
from xref.options import get_option
from xref.storage import sources
from xref.storage.transport import RangeReader, RemotePath, Version, wait_for

HEAD_NBYTES = 1 << 18
"""Bytes at the begin of a file that are read in advance (benchmarks/remote.py)."""

BLOCK_NBYTES = 1 << 14
"""Size of the cached blocks of metadata."""

AHEAD_NBYTES = 1 << 17
"""Bytes that a read of metadata requests if its first block is not cached."""

KEPT_NBYTES = 16 << 20
"""Upper bound on the cached blocks of one file."""

REQUEST_NBYTES = 4 << 20
"""Longer ranges are requested in parts, all at once."""


@dataclass(frozen=True, slots=True)
class RemoteFile(sources.FileSource):
    """A file behind a URL that fsspec opens.

    With ``open_kwargs`` HDF5 reads through a file object of fsspec; with a ``driver`` among
    the ``hdf5_options`` (keywords of `h5py.File`) HDF5 itself opens the URL.
    """

    name: str  # the URL
    storage_options: sources.Options = field(default=(), repr=False)  # may hold access keys
    open_kwargs: sources.Options = ()
    hdf5_options: sources.Options = ()

    def __hash__(self) -> int:
        return hash(self.name)  # options may hold dicts

    @property
    def remote(self) -> bool:
        """Whether reading sends requests to a server: it does."""
        return True

    def identity(self) -> sources.Identity:
        """Ask the server for size and version."""
        return self._check_version().identity()

    def known_identity(self) -> sources.Identity:
        """Return the identity of the open file, if the version of each answer is checked.

        If HDF5 reads through a file object of fsspec or its own driver, answers are not
        checked, so the server is asked.
        """
        if self.open_kwargs or "driver" in dict(self.hdf5_options):
            return self.identity()
        opened = _opened.get((self, os.getpid()))
        return self.identity() if opened is None or opened.changed else opened.identity()

    def open_hdf5(self) -> h5py.File:
        """Open the URL; with ``open_kwargs`` as xarray does for its engine "h5netcdf"."""
        options = dict(self.hdf5_options)
        if "driver" in options:
            return h5py.File(self.name, "r", **options)
        if not self.open_kwargs:
            opened = self.open_bytes()
            file = sources.open_view(opened, self.hdf5_options)
            opened.follow_pages(file)
            return file
        from xarray.backends import h5netcdf_

        # Tests of xarray replace this function to check ``open_kwargs``.
        open_remote: Any = vars(h5netcdf_)["_open_remote_file"]
        sources.import_fsspec(self.name)
        kwargs = dict(self.open_kwargs)
        kwargs.setdefault("cache_type", "blockcache")
        if kwargs["cache_type"] == "blockcache":
            kwargs.setdefault("block_size", 4 << 20)
        options = dict(self.storage_options)
        file = open_remote(self.name, mode="rb", storage_options=options, open_kwargs=kwargs)
        return sources.FileObject(file, options=self.hdf5_options).open_hdf5()

    def open_bytes(self) -> RemoteBytes:
        """Return the open file of the version that was read last."""
        opened = _opened.get((self, os.getpid()))
        return self._check_version() if opened is None or opened.changed else opened

    def _check_version(self) -> RemoteBytes:
        """Ask for the version; if it is not open, open it and request its first blocks."""
        filesystem, path = sources.import_fsspec(self.name).core.url_to_fs(
            self.name, **dict(self.storage_options)
        )
        remote = RemotePath(self.name, filesystem, path)
        version = remote.version()
        with _opening:
            opened = _opened.get((self, os.getpid()))
            if opened is None or opened.changed or opened.version != version:
                opened = RemoteBytes(remote, version)
                _opened[self, os.getpid()] = opened
            _recently_checked.append(opened)
        return opened


_opened: weakref.WeakValueDictionary[tuple[RemoteFile, int], RemoteBytes] = (
    weakref.WeakValueDictionary()
)
_recently_checked: deque[RemoteBytes] = deque(maxlen=4)
"""The last four files whose version was checked. They stay open until a location holds them."""

_opening = threading.Lock()


def forget_remote_files() -> None:
    """Drop files that were opened recently, and that no location holds."""
    _recently_checked.clear()


class RemoteBytes:
    """One version of a remote file, open in one process; all data that are read have it."""

    def __init__(self, remote: RemotePath, version: Version) -> None:
        self.remote, self.version = remote, version
        self.changed = False
        """Whether an answer had another version."""
        self._problems: dict[int, FileReadError | FileChangedError] = {}
        self._reader = RangeReader(remote, version)
        self._ahead = AHEAD_NBYTES
        # No lock guards it, because each operation is atomic. A lock could cause a deadlock:
        # a thread takes it while it holds HDF5's lock, and a garbage collection in another
        # thread that has this lock could wait for HDF5's lock.
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        head = min(HEAD_NBYTES, version.nbytes)
        self._head = deque([self._reader.begin([(0, head)])] if head else [])

    def take_problem(self) -> FileReadError | FileChangedError | None:
        """Return the error of the last failed request of this thread, once."""
        return self._problems.pop(threading.get_ident(), None)

    def identity(self) -> sources.Identity:
        """Return the identity of the open version."""
        version = self.version
        return "url", self.remote.url, version.nbytes, f"{version.key} {version.value}".strip()

    def follow_pages(self, file: h5py.File) -> None:
        """Read metadata page by page, if the file was written in pages.

        Source: HDF5 File Format Specification 4.0, "File Space Info Message".
        """
        properties = file.id.get_create_plist()
        strategy = properties.get_file_space_strategy()[0]
        if strategy == h5py.h5f.FSPACE_STRATEGY_PAGE:
            page = int(properties.get_file_space_page_size())
            self._ahead = min(max(page, AHEAD_NBYTES), REQUEST_NBYTES)

    def read(self, offset: int, buffer: memoryview) -> int:
        """Read metadata into ``buffer`` from byte ``offset`` on, up to the end of the file."""
        n = min(len(buffer), self.version.nbytes - offset)
        if n <= 0:
            return 0
        if n > self._ahead:
            held = self.fetch(np.array([offset]), np.array([n])).result()
        else:
            first, stop = offset // BLOCK_NBYTES, -(-(offset + n) // BLOCK_NBYTES)
            held = self._read_blocks(range(first, stop), self._ahead // BLOCK_NBYTES)
        held.read_into(offset, buffer[:n])
        return n

    def read_ranges(
        self, offset: IntArray, nbytes: IntArray, buffer: npt.NDArray[np.uint8], at: IntArray
    ) -> None:
        """Read many ranges of metadata to their offsets ``at`` in ``buffer``, which is 1-D.

        ``offset``, ``nbytes`` and ``at`` have the shape ``(n,)``.

        Raises
        ------
        FileReadError
            If a range reaches past the end of the file.
        """
        not_empty = np.flatnonzero(nbytes)
        offset, nbytes, at = offset[not_empty], nbytes[not_empty], at[not_empty]
        self._check_inside(offset, nbytes)
        first = offset // BLOCK_NBYTES
        counts = -(-(offset + nbytes) // BLOCK_NBYTES) - first
        held = self._read_blocks(np.unique(ragged_ranges(first, counts)).tolist())
        view = buffer.data
        for o, n, a in zip(offset.tolist(), nbytes.tolist(), at.tolist(), strict=True):
            held.read_into(o, view[a : a + n])

    def fetch(self, offset: IntArray, nbytes: IntArray) -> FetchingRanges:
        """Begin to read ranges of data; ranges close to each other share a request.

        Raises
        ------
        FileReadError
            If a range reaches past the end of the file.
        """
        self._check_inside(offset, nbytes)
        ranges = coalesce(offset, nbytes, get_option("remote_gap"))
        cached, missing = [], []
        for start, stop in split(ranges, REQUEST_NBYTES):
            data = self._cached_range(start, stop)
            if data is None:
                missing.append((start, stop))
            else:
                cached.append((start, data))
        return FetchingRanges(self, cached, missing, self._reader.begin(missing))

    def wait(self, pending: Future[list[bytes]], seconds: float | None = None) -> list[bytes]:
        """Wait for requested ranges; with a time limit if HDF5's lock may be held."""
        try:
            return wait_for(pending, seconds)
        except TimeoutError:
            failure: FileReadError | FileChangedError = FileReadError(
                f"{self.remote.url}: metadata did not come within {seconds:g} s"
            )
        except (FileReadError, FileChangedError) as error:
            self.changed = self.changed or isinstance(error, FileChangedError)
            # The transport thread holds this error, too. It must not hold the frames of this
            # thread, which may contain objects of h5py.
            error.__traceback__ = None
            failure = type(error)(str(error))
        self._problems[threading.get_ident()] = type(failure)(str(failure))
        raise failure

    def _cached_range(self, start: int, stop: int) -> bytes | None:
        """Return the bytes of a range if all its blocks are cached."""
        first = start // BLOCK_NBYTES
        numbers = range(first, -(-stop // BLOCK_NBYTES))
        blocks = self._cached_blocks(numbers)
        if len(blocks) < len(numbers):
            return None
        base = first * BLOCK_NBYTES
        return b"".join(blocks[k] for k in numbers)[start - base : stop - base]

    def _read_blocks(self, numbers: Sequence[int], ahead: int = 0) -> CachedRanges:
        """Return blocks, given in ascending order; read the missing ones.

        ``ahead`` is the number of blocks to read from the first missing block on.
        """
        self._cache_head()
        n_blocks = -(-self.version.nbytes // BLOCK_NBYTES)
        blocks = self._cached_blocks(numbers)
        missing = [k for k in numbers if k not in blocks]
        if missing and ahead:
            stop = min(max(missing[0] + ahead, missing[-1] + 1), n_blocks)
            cached = self._cached_blocks(range(missing[0], stop))
            missing = [k for k in range(missing[0], stop) if k not in cached]
        if missing:
            start = BLOCK_NBYTES * np.array(missing, dtype=np.int64)
            nbytes = np.minimum(start + BLOCK_NBYTES, self.version.nbytes) - start
            ranges = split(coalesce(start, nbytes, get_option("remote_gap")), REQUEST_NBYTES)
            data = self.wait(self._reader.begin(ranges), _metadata_timeout(len(ranges)))
            received = CachedRanges([a for a, _ in ranges], data)
            for k, a, n in zip(missing, start.tolist(), nbytes.tolist(), strict=True):
                block = bytearray(n)
                received.read_into(a, memoryview(block))
                blocks[k] = bytes(block)
            self._cache({k: blocks[k] for k in missing})
        order = sorted(blocks)
        return CachedRanges([BLOCK_NBYTES * k for k in order], [blocks[k] for k in order])

    def _cache_head(self) -> None:
        """Wait for the first bytes of the file, and cache their blocks."""
        try:
            head = self._head.pop()
        except IndexError:
            return
        (data,) = self.wait(head, _metadata_timeout(1))
        edges = range(0, len(data), BLOCK_NBYTES)
        self._cache({k: data[a : a + BLOCK_NBYTES] for k, a in enumerate(edges)})

    def _cached_blocks(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """Return the cached blocks among those with the given numbers."""
        blocks = {}
        for number in numbers:
            block = self._blocks.get(number)
            if block is not None:
                blocks[number] = block
                with suppress(KeyError):  # another thread may have removed it
                    self._blocks.move_to_end(number)
        return blocks

    def _cache(self, blocks: Mapping[int, bytes]) -> None:
        for number, block in blocks.items():
            self._blocks[number] = block
        while len(self._blocks) > KEPT_NBYTES // BLOCK_NBYTES:
            with suppress(KeyError):
                self._blocks.popitem(last=False)

    def _check_inside(self, offset: IntArray, nbytes: IntArray) -> None:
        outside = np.flatnonzero((offset < 0) | (offset + nbytes > self.version.nbytes))
        if len(outside):
            k = int(outside[0])
            raise FileReadError(
                f"{self.remote.url}: {int(nbytes[k])} bytes requested at {int(offset[k]):#x}, "
                f"the file has {self.version.nbytes}"
            )


def _metadata_timeout(n_requests: int) -> float:
    """Return a time limit (s) for requests of metadata.

    HDF5's lock is held meanwhile, and a server in this process may be waiting for it.
    """
    attempts = 2 + get_option("remote_retries")
    rounds = 1 + n_requests / get_option("remote_requests")
    return min(float(attempts * rounds * get_option("remote_timeout")), threading.TIMEOUT_MAX)


@dataclass(frozen=True, slots=True, eq=False)
class FetchingRanges:
    """Ranges of data: some are cached, the others are being read (a `PendingRanges`)."""

    file: RemoteBytes
    cached: list[tuple[int, bytes]]  # offset and bytes
    missing: list[Range]
    pending: Future[list[bytes]]

    def result(self) -> CachedRanges:
        """Wait for all ranges."""
        starts = [start for start, _ in self.missing]
        parts = sorted([*self.cached, *zip(starts, self.file.wait(self.pending), strict=True)])
        return CachedRanges([start for start, _ in parts], [data for _, data in parts])

    def cancel(self) -> None:
        """Cancel the requests."""
        self.pending.cancel()
