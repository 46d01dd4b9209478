"""Files behind URLs: one version of each, its metadata in blocks, data range by range.

In: a URL. Out: `RemoteFile`, a source that travels in graphs, and `RemoteBytes`, what is
open of it in one process: positional reads for HDF5 and for the decoders of metadata go
through a cache of blocks, whose first ones are on their way as soon as the URL is looked
at; ranges of data come all at once.
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
from xref.storage.sources import (
    FileObject,
    FileSource,
    Identity,
    Options,
    import_fsspec,
    open_view,
)
from xref.storage.transport import RangeReader, RemotePath, Version, wait_for

HEAD_NBYTES = 1 << 18
"""What is read of a file before anybody asks (benchmarks/remote.py)."""

BLOCK_NBYTES = 1 << 14
"""Blocks of metadata that are kept."""

AHEAD_NBYTES = 1 << 17
"""What one read of metadata takes along, where nothing of it is there."""

KEPT_NBYTES = 16 << 20
"""Blocks that are kept of one file."""

REQUEST_NBYTES = 4 << 20
"""Longer ranges come with several requests at once."""


@dataclass(frozen=True, slots=True)
class RemoteFile(FileSource):
    """A file behind a URL that fsspec opens.

    Attributes
    ----------
    name : str
        The URL.
    storage_options, open_kwargs : tuple of (str, object)
        For the file system and for opening a file of it. With ``open_kwargs`` HDF5 reads
        through a file that fsspec opens so.
    hdf5_options : tuple of (str, object)
        Keywords for `h5py.File`; with a ``driver`` HDF5 itself opens the URL.
    """

    name: str
    storage_options: Options = field(default=(), repr=False)  # keys among them
    open_kwargs: Options = ()
    hdf5_options: Options = ()

    def __hash__(self) -> int:
        return hash(self.name)  # options may hold dicts

    @property
    def remote(self) -> bool:
        """Whether reading takes requests to a server: it does."""
        return True

    def identity(self) -> Identity:
        """Ask for the bytes and what the server tells of the version."""
        return self._check_version().identity()

    def known_identity(self) -> Identity:
        """Return the identity of what is open, where each answer to its reads is checked.

        What HDF5 reads through a file of fsspec or a driver of its own is not.
        """
        if self.open_kwargs or "driver" in dict(self.hdf5_options):
            return self.identity()
        opened = _opened.get((self, os.getpid()))
        return self.identity() if opened is None or opened.changed else opened.identity()

    def open_hdf5(self) -> h5py.File:
        """Open the URL; with ``open_kwargs`` as xarray does for its other engine of HDF5."""
        options = dict(self.hdf5_options)
        if "driver" in options:
            return h5py.File(self.name, "r", **options)
        if not self.open_kwargs:
            opened = self.open_bytes()
            file = open_view(opened, self.hdf5_options)
            opened.follow_pages(file)
            return file
        from xarray.backends import h5netcdf_

        # Tests of xarray look here for what becomes of ``open_kwargs``.
        open_remote: Any = vars(h5netcdf_)["_open_remote_file"]
        import_fsspec(self.name)
        kwargs = dict(self.open_kwargs)
        kwargs.setdefault("cache_type", "blockcache")
        if kwargs["cache_type"] == "blockcache":
            kwargs.setdefault("block_size", 4 << 20)
        of_storage = dict(self.storage_options)
        found = open_remote(
            self.name, mode="rb", storage_options=of_storage, open_kwargs=kwargs
        )
        return FileObject(found, options=self.hdf5_options).open_hdf5()

    def open_bytes(self) -> RemoteBytes:
        """Return what is open of the latest version that was looked at."""
        opened = _opened.get((self, os.getpid()))
        return self._check_version() if opened is None or opened.changed else opened

    def _check_version(self) -> RemoteBytes:
        """Ask for the version, and begin to read the head of one that is not open yet."""
        filesystem, path = import_fsspec(self.name).core.url_to_fs(
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
"""Those that were looked at last, open until somebody holds them."""

_opening = threading.Lock()


def forget_remote_files() -> None:
    """Let go of files that were looked at, and that nobody holds."""
    _recently_checked.clear()


class RemoteBytes:
    """One version of a remote file, as one process has it open.

    Parameters
    ----------
    remote : RemotePath
    version : Version
        All that is read is of this version.
    """

    def __init__(self, remote: RemotePath, version: Version) -> None:
        self.remote, self.version = remote, version
        self.changed = False
        """Whether an answer was of another version."""
        self._problems: dict[int, FileReadError | FileChangedError] = {}
        self._reader = RangeReader(remote, version)
        self._ahead = AHEAD_NBYTES
        # Each operation on it is atomic. A lock would be taken under HDF5's, and elsewhere
        # where garbage is collected, which takes HDF5's.
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        head = min(HEAD_NBYTES, version.nbytes)
        self._head = deque([self._reader.begin([(0, head)])] if head else [])

    def take_problem(self) -> FileReadError | FileChangedError | None:
        """Return the last request of this thread that failed in the end, once."""
        return self._problems.pop(threading.get_ident(), None)

    def identity(self) -> Identity:
        """Return the identity of the version that is open."""
        version = self.version
        return "url", self.remote.url, version.nbytes, f"{version.key} {version.value}".strip()

    def follow_pages(self, file: h5py.File) -> None:
        """Read metadata by the pages that the file was written in, if it was.

        Source: HDF5 File Format Specification 4.0, "File Space Info Message".
        """
        properties = file.id.get_create_plist()
        strategy = properties.get_file_space_strategy()[0]
        if strategy == h5py.h5f.FSPACE_STRATEGY_PAGE:
            page = int(properties.get_file_space_page_size())
            self._ahead = min(max(page, AHEAD_NBYTES), REQUEST_NBYTES)

    def read(self, offset: int, buffer: memoryview) -> int:
        """Read metadata into ``buffer`` from byte ``offset`` on, up to the file's end."""
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
        """Read many ranges of metadata, each to its place in ``buffer``.

        Parameters
        ----------
        offset, nbytes : numpy.ndarray
            Shape ``(n,)``.
        buffer : numpy.ndarray
            1-D.
        at : numpy.ndarray
            Shape ``(n,)``, bytes.

        Raises
        ------
        FileReadError
            If a range reaches past the end of the file.
        """
        some = np.flatnonzero(nbytes)
        offset, nbytes, at = offset[some], nbytes[some], at[some]
        self._check_inside(offset, nbytes)
        first = offset // BLOCK_NBYTES
        counts = -(-(offset + nbytes) // BLOCK_NBYTES) - first
        held = self._read_blocks(np.unique(ragged_ranges(first, counts)).tolist())
        view = buffer.data
        for o, n, a in zip(offset.tolist(), nbytes.tolist(), at.tolist(), strict=True):
            held.read_into(o, view[a : a + n])

    def fetch(self, offset: IntArray, nbytes: IntArray) -> FetchingRanges:
        """Begin to read ranges of data, close ones with one request.

        Raises
        ------
        FileReadError
            If a range reaches past the end of the file.
        """
        self._check_inside(offset, nbytes)
        ranges = coalesce(offset, nbytes, get_option("remote_gap"))
        held, missing = [], []
        for piece in split(ranges, REQUEST_NBYTES):
            data = self._cached_range(*piece)
            if data is None:
                missing.append(piece)
            else:
                held.append((piece[0], data))
        return FetchingRanges(self, held, missing, self._reader.begin(missing))

    def wait(self, begun: Future[list[bytes]], seconds: float | None = None) -> list[bytes]:
        """Wait for ranges that were begun, at most so many seconds if HDF5 may wait too."""
        try:
            return wait_for(begun, seconds)
        except TimeoutError:
            own: FileReadError | FileChangedError = FileReadError(
                f"{self.remote.url}: metadata did not come within {seconds:g} s"
            )
        except (FileReadError, FileChangedError) as error:
            self.changed = self.changed or isinstance(error, FileChangedError)
            # The thread that answers holds this one too: it must not get hold of the frames
            # here, which may have objects of h5py.
            error.__traceback__ = None
            own = type(error)(str(error))
        self._problems[threading.get_ident()] = type(own)(str(own))
        raise own

    def _cached_range(self, start: int, stop: int) -> bytes | None:
        """Return a range if all blocks of it are kept."""
        first = start // BLOCK_NBYTES
        numbers = range(first, -(-stop // BLOCK_NBYTES))
        found = self._cached_blocks(numbers)
        if len(found) < len(numbers):
            return None
        base = first * BLOCK_NBYTES
        return b"".join(found[k] for k in numbers)[start - base : stop - base]

    def _read_blocks(self, numbers: Sequence[int], ahead: int = 0) -> CachedRanges:
        """Return blocks, in ascending order; read those that are not kept, and some more.

        Parameters
        ----------
        numbers : sequence of int
        ahead : int
            Blocks that are read from the first missing one on, if there is one.
        """
        self._cache_head()
        n_blocks = -(-self.version.nbytes // BLOCK_NBYTES)
        found = self._cached_blocks(numbers)
        missing = [k for k in numbers if k not in found]
        if missing and ahead:
            until = min(max(missing[0] + ahead, missing[-1] + 1), n_blocks)
            more = range(missing[0], until)
            kept = self._cached_blocks(more)
            missing = [k for k in more if k not in kept]
        if missing:
            start = BLOCK_NBYTES * np.array(missing, dtype=np.int64)
            nbytes = np.minimum(start + BLOCK_NBYTES, self.version.nbytes) - start
            ranges = split(coalesce(start, nbytes, get_option("remote_gap")), REQUEST_NBYTES)
            data = self.wait(self._reader.begin(ranges), _metadata_timeout(len(ranges)))
            came = CachedRanges([a for a, _ in ranges], data)
            for k, a, n in zip(missing, start.tolist(), nbytes.tolist(), strict=True):
                block = bytearray(n)
                came.read_into(a, memoryview(block))
                found[k] = bytes(block)
            self._cache({k: found[k] for k in missing})
        held = sorted(found)
        return CachedRanges([BLOCK_NBYTES * k for k in held], [found[k] for k in held])

    def _cache_head(self) -> None:
        """Keep the blocks of the file's head, once it is there."""
        try:
            head = self._head.pop()
        except IndexError:
            return
        (data,) = self.wait(head, _metadata_timeout(1))
        edges = range(0, len(data), BLOCK_NBYTES)
        self._cache({k: data[a : a + BLOCK_NBYTES] for k, a in enumerate(edges)})

    def _cached_blocks(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """Return those of some blocks that are kept."""
        found = {}
        for number in numbers:
            block = self._blocks.get(number)
            if block is not None:
                found[number] = block
                with suppress(KeyError):  # another thread may have let go of it
                    self._blocks.move_to_end(number)
        return found

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
                f"{self.remote.url}: {int(nbytes[k])} bytes wanted at {int(offset[k]):#x}, the "
                f"file has {self.version.nbytes}"
            )


def _metadata_timeout(n_requests: int) -> float:
    """Return the seconds that requests for metadata take at most.

    HDF5's lock is held meanwhile, which a server in this process may be waiting for.
    """
    attempts = 2 + get_option("remote_retries")
    rounds = 1 + n_requests / get_option("remote_requests")
    return min(float(attempts * rounds * get_option("remote_timeout")), threading.TIMEOUT_MAX)


@dataclass(frozen=True, slots=True, eq=False)
class FetchingRanges:
    """Ranges of data that are being read, and those that were there (a `PendingRanges`)."""

    of: RemoteBytes
    held: list[tuple[int, bytes]]
    missing: list[Range]
    begun: Future[list[bytes]]

    def result(self) -> CachedRanges:
        """Wait for them."""
        came = zip((start for start, _ in self.missing), self.of.wait(self.begun), strict=True)
        parts = sorted([*self.held, *came])
        return CachedRanges([start for start, _ in parts], [data for _, data in parts])

    def cancel(self) -> None:
        """Give them up."""
        self.begun.cancel()
