"""Positional reads of one version of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from xref.arrays import IntArray, OverlaidFile, RangeSource
from xref.errors import FileChangedError, FileReadError, XrefError
from xref.storage.location import FileLocation
from xref.storage.open_files import ATTEMPTS, check_unchanged, handles_of, is_same_version
from xref.storage.sources import ByteHandle

if TYPE_CHECKING:
    from xref.storage.remote import FetchingRanges, RemoteBytes


@dataclass(frozen=True, slots=True)
class FileBytes:
    """Positional reads of the bytes of a file (a `xref.arrays.byte_ranges.ByteSource`)."""

    location: FileLocation

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from byte ``offset`` on.

        Raises
        ------
        FileReadError
            If the read fails or the file ends first.
        FileChangedError
            If the file is not the located version.
        """
        self._read_one_version(lambda held: self._read(held, offset, buffer))

    def _read(self, held: ByteHandle, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                n = held.read(offset + done, buffer[done:])
            except XrefError:
                raise
            except OSError as error:
                raise FileReadError(
                    f"{self.location.filename}: reading {len(buffer)} bytes at {offset:#x} "
                    f"failed: {error}"
                ) from error
            if n == 0:
                raise FileReadError(
                    f"{self.location.filename}: {len(buffer)} bytes requested at {offset:#x}, "
                    f"the file ended after {done}"
                )
            done += n

    def read_ranges(
        self, offset: IntArray, nbytes: IntArray, buffer: npt.NDArray[np.uint8], at: IntArray
    ) -> None:
        """Read many ranges to their offsets ``at`` in ``buffer``; see `read_into`."""

        def read(held: ByteHandle) -> None:
            if self.remote:
                cast("RemoteBytes", held).read_ranges(offset, nbytes, buffer, at)
                return
            view = buffer.data
            for o, n, a in zip(offset.tolist(), nbytes.tolist(), at.tolist(), strict=True):
                self._read(held, o, view[a : a + n])

        self._read_one_version(read)

    @property
    def remote(self) -> bool:
        """Whether reading sends requests to a server."""
        return self.location.source.remote

    def fetch(self, offset: IntArray, nbytes: IntArray) -> FetchingRanges:
        """Begin to read many ranges, shape ``(n,)``, of a remote file into memory."""
        found: list[FetchingRanges] = []

        def begin(held: ByteHandle) -> None:
            if not self.remote:
                raise TypeError(f"{self.location.filename} is not a remote file")
            found.append(cast("RemoteBytes", held).fetch(offset, nbytes))

        self._read_one_version(begin)
        return found[-1]

    def _read_one_version(self, read: Callable[[ByteHandle], None]) -> None:
        """Read from a handle that has the located version before and after the read."""
        handles = handles_of(self.location)
        for _ in range(ATTEMPTS):
            try:
                held = handles.bytes.get()
            except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
                if isinstance(error, XrefError):
                    raise
                check_unchanged(self.location)
                raise FileReadError(
                    f"{self.location.filename} cannot be opened again: {error}"
                ) from error
            if is_same_version(self.location, held.identity()):
                read(held)
                if is_same_version(self.location, held.identity()):
                    return
            # The file was written to in place, or the handle is older than the location.
            check_unchanged(self.location)
            handles.bytes.drop()
        raise FileReadError(f"{self.location.filename} could not be opened for reading")


def metadata_bytes(location: FileLocation) -> RangeSource:
    """Return a source of the metadata of a file, for everything but the data of datasets.

    Its first bytes are in memory. Where the file has a metadata cache image, the image counts.
    """
    known = handles_of(location).known_metadata(location)
    return OverlaidFile(FileBytes(location), known)


@contextmanager
def raise_transport_errors(location: FileLocation) -> Iterator[None]:
    """Raise the error of a failed request instead of an error that it caused in the block.

    Damaged members are left out of a dataset, but members must not be left out because the
    network failed.
    """
    if not location.source.remote:
        yield
        return
    held = cast("RemoteBytes", handles_of(location).bytes.get())
    held.take_problem()
    try:
        yield
    except Exception as error:
        problem = held.take_problem()
        if problem is None or isinstance(error, FileChangedError):
            raise
        raise problem from error
    problem = held.take_problem()
    if problem is not None:
        raise problem
