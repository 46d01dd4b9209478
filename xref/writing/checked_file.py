"""Files that HDF5 writes through Python, so that no write fails inside HDF5.

In: reads and writes of HDF5, by offset. Out: bytes in a file, and the first error.

HDF5 writes much of its caches when a dataset or file is closed. It does not report all
errors of that time, and may crash after one. So HDF5 never sees an error here: `CheckedFile`
notes the first one, and keeps what could not be written in memory. Whoever wrote calls
`CheckedFile.check` after HDF5 has closed the file, and between two steps.

`Overlay` is a file of changes to another file, which stays as it is until `Overlay.commit`.
It is a sequence of records, each of start and number of bytes (two little-endian 64-bit
integers), then the bytes. Records do not overlap: bytes that a record has are replaced in it.
"""

from __future__ import annotations

import bisect
import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from typing import Protocol

from xref.errors import FileWriteError
from xref.writing.uninterrupted import find_interrupt

COPIED_AT_ONCE = 1 << 20
"""Bytes that are in memory while one file is copied to another."""

_HEADER_NBYTES = 16


class ByteStore(Protocol):
    """Where the bytes of a file are."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read into ``buffer``; return how many bytes there were."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``."""

    def truncate(self, size: int) -> None:
        """Give the file a size."""


@dataclass(frozen=True, slots=True)
class PlainStore:
    """The bytes of one open file."""

    file: FileIO

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self.file.fileno()).st_size

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read into ``buffer``; return how many bytes there were."""
        return read_at(self.file, offset, buffer)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``."""
        write_at(self.file, offset, data)

    def truncate(self, size: int) -> None:
        """Give the file a size."""
        os.ftruncate(self.file.fileno(), size)


class CheckedFile:
    """A file object for h5py's driver ``fileobj``, whose writes do not fail.

    One thread at a time uses it: HDF5 does so under its lock.

    Parameters
    ----------
    store : ByteStore
    filename : str
        What errors name.
    """

    def __init__(self, store: ByteStore, filename: str) -> None:
        self._store = store
        self._filename = filename
        self._position = 0
        self._size = store.size
        self._error: BaseException | None = None
        self._unwritten: list[tuple[int, bytes]] = []

    def __repr__(self) -> str:
        return self._filename  # which is in messages of h5py

    def check(self) -> None:
        """Raise the first error, if there was one.

        Raises
        ------
        FileWriteError
            If the operating system did not write.
        """
        error = self._error or find_interrupt()
        if isinstance(error, OSError):
            raise write_error(error, self._filename) from error
        if error is not None:
            raise error

    def stop(self, error: BaseException) -> None:
        """Write nothing more; `check` raises this error."""
        if self._error is None:
            self._error = error

    def attempt(self, function: object, *arguments: object) -> None:
        """Call a function; note its error."""
        try:
            function(*arguments)  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - HDF5 must not see it; check() raises it
            self.stop(error)

    # --- what h5py calls ---------------------------------------------------------------

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset."""
        self._position = offset + (self._size if whence == os.SEEK_END else 0)
        return self._position

    def tell(self) -> int:
        """Return the offset."""
        return self._position

    def read(self, size: int) -> bytearray:
        """Read bytes; past the end they are 0, as in HDF5's own drivers."""
        out = bytearray(size)
        self.readinto(out)
        return out

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Read into a buffer; return its length.

        Reading may fail: nothing is lost that HDF5 has to write.
        """
        view = memoryview(buffer).cast("B")
        begin, stop = self._position, self._position + len(view)
        self._position = stop
        try:
            n = self._store.read_into(begin, view)
        except BaseException as error:
            self.stop(error)
            raise  # h5py takes a short read for a whole one
        view[n:] = bytes(len(view) - n)
        for start, data in self._unwritten:
            low, high = max(start, begin), min(start + len(data), stop)
            if low < high:
                view[low - begin : high - begin] = data[low - start : high - start]
        return len(view)

    def write(self, data: bytes | bytearray) -> int:
        """Write bytes, or keep them where that fails."""
        begin, view = self._position, memoryview(data).cast("B")
        self._position = begin + len(view)
        self._size = max(self._size, self._position)
        if self._error is None:
            self._error = find_interrupt()
        if self._error is None:
            try:
                self._store.write(begin, view)
            except BaseException as error:  # noqa: BLE001 - HDF5 must not see it; check() raises it
                self.stop(error)
        if self._error is not None:
            self._unwritten.append((begin, bytes(view)))  # HDF5 uses its memory again
        return len(view)

    def truncate(self, size: int) -> int:
        """Give the file a size."""
        self._size = size
        if self._error is None:
            self.attempt(self._store.truncate, size)
        return size

    def flush(self) -> None:
        """Do nothing: all that was written is in the file."""


def write_error(error: OSError, filename: str) -> FileWriteError:
    """Return the error of a write that failed, with the name of the user's file."""
    if isinstance(error, FileWriteError):
        return error
    reason = error.strerror or str(error) or type(error).__name__
    return FileWriteError(
        error.errno or errno.EIO,
        f"{reason}; it could not be written and is as it was",
        filename,
    )


def read_at(file: FileIO, offset: int, buffer: memoryview) -> int:
    """Read into ``buffer`` from byte ``offset`` on; return how many bytes there were."""
    done = 0
    while done < len(buffer):
        n = os.preadv(file.fileno(), [buffer[done:]], offset + done)
        if n == 0:
            break
        done += n
    return done


def write_at(file: FileIO, offset: int, data: memoryview) -> None:
    """Write all of ``data`` from byte ``offset`` on."""
    done = 0
    while done < len(data):
        n = os.pwrite(file.fileno(), data[done:], offset + done)
        if n == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # what else takes no byte?
        done += n


def copy_bytes(source: FileIO, position: int, target: FileIO, offset: int, nbytes: int) -> None:
    """Copy bytes of a file to another one."""
    buffer = memoryview(bytearray(min(nbytes, COPIED_AT_ONCE)))
    for done in range(0, nbytes, COPIED_AT_ONCE):
        part = buffer[: nbytes - done]
        if read_at(source, position + done, part) != len(part):
            raise OSError(errno.EIO, "a temporary file became shorter")
        write_at(target, offset + done, part)


@dataclass(slots=True)
class Records:
    """Where the records of an overlay are, in the order of what they replace.

    Attributes
    ----------
    starts, stops : list of int
        Bytes of the file that is changed.
    positions : list of int
        Of their new values in the overlay.
    end : int
        Where the next record goes in the overlay.
    """

    starts: list[int] = field(default_factory=list)
    stops: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    end: int = 0

    def add(self, start: int, nbytes: int) -> int:
        """Enter a record; return where its bytes are."""
        position = self.end + _HEADER_NBYTES
        at = bisect.bisect_left(self.starts, start)
        self.starts.insert(at, start)
        self.stops.insert(at, start + nbytes)
        self.positions.insert(at, position)
        self.end = position + nbytes
        return position

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int | None]]:
        """Cut a range where records begin and end: start, stop, place in the overlay."""
        found: list[tuple[int, int, int | None]] = []
        at = max(bisect.bisect_right(self.starts, start) - 1, 0)
        while start < stop:
            if at == len(self.starts) or self.starts[at] >= stop:
                found.append((start, stop, None))
                break
            begin, end = self.starts[at], self.stops[at]
            if start < begin:
                found.append((start, begin, None))
                start = begin
            if start < end:
                last = min(end, stop)
                found.append((start, last, self.positions[at] + start - begin))
                start = last
            at += 1
        return iter(found)  # what follows may add records


class Overlay:
    """A file with changes that are kept in another file until they are committed.

    Parameters
    ----------
    base : io.FileIO
        The file; it is only read.
    base_size : int
        Bytes of the file.
    held : io.FileIO
        The changes.
    records : Records
        What is known of ``held``; what others have added is read.
    """

    def __init__(
        self, base: FileIO, base_size: int, held: FileIO, records: Records | None = None
    ) -> None:
        self._base, self._base_size, self._held = base, base_size, held
        self.records = Records() if records is None else records
        header = bytearray(_HEADER_NBYTES)
        size = os.fstat(held.fileno()).st_size
        while self.records.end < size:
            if read_at(held, self.records.end, memoryview(header)) != _HEADER_NBYTES:
                raise OSError(errno.EIO, "a temporary file ends in a record")
            self.records.add(
                int.from_bytes(header[:8], "little"), int.from_bytes(header[8:], "little")
            )

    @property
    def size(self) -> int:
        """Bytes of the changed file."""
        return max([self._base_size, *self.records.stops[-1:]])

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read into ``buffer``; return how many bytes there were."""
        n = max(0, min(len(buffer), self.size - offset))
        for start, stop, position in self.records.pieces(offset, offset + n):
            part = buffer[start - offset : stop - offset]
            if position is not None:
                done = read_at(self._held, position, part)
            else:
                done = read_at(self._base, start, part[: max(0, self._base_size - start)])
            part[done:] = bytes(len(part) - done)
        return n

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``, over what the records have or into new ones."""
        for start, stop, position in self.records.pieces(offset, offset + len(data)):
            part = data[start - offset : stop - offset]
            if position is None:
                self._append(start, part)
            else:
                write_at(self._held, position, part)

    def _append(self, start: int, data: memoryview) -> None:
        header = start.to_bytes(8, "little") + len(data).to_bytes(8, "little")
        end = self.records.end
        n = os.pwritev(self._held.fileno(), [header, data], end)
        if n < _HEADER_NBYTES:
            write_at(self._held, end, memoryview(header))
            n = _HEADER_NBYTES
        write_at(self._held, end + n, data[n - _HEADER_NBYTES :])
        self.records.add(start, len(data))

    def truncate(self, size: int) -> None:
        """Make the file larger; it is never made smaller than it was."""
        if size > self.size:
            self._append(size - 1, memoryview(b"\0"))

    def commit(self, target: FileIO, filename: str) -> None:
        """Make the changes in the file itself, all of them or none.

        Parameters
        ----------
        target : io.FileIO
            The file, open for writing.
        filename : str
            What errors name.

        Raises
        ------
        FileWriteError
            If it failed, and what was there could not be restored.
        OSError
            If it failed, and the file is as it was.
        """
        before = os.fstat(target.fileno())
        end = self._base_size
        ranges = list(
            zip(self.records.starts, self.records.stops, self.records.positions, strict=True)
        )
        saved: list[tuple[int, int, int]] = []
        try:
            # What HDF5 does not see yet comes first: behind the end of the old file.
            for start, stop, position in ranges:
                low = max(start, end)
                if low < stop:
                    copy_bytes(self._held, position + low - start, target, low, stop - low)
            os.fsync(target.fileno())
            inside = [
                (start, min(stop, end), position)
                for start, stop, position in ranges
                if start < end
            ]
            place = self.records.end
            for start, stop, _ in inside:
                copy_bytes(target, start, self._held, place, stop - start)
                saved.append((start, stop, place))
                place += stop - start
            for start, stop, position in inside:
                copy_bytes(self._held, position, target, start, stop - start)
            os.fsync(target.fileno())
        except BaseException as error:
            try:
                self._restore(target, saved, before)
            except OSError as worse:
                raise FileWriteError(
                    worse.errno or errno.EIO,
                    f"{worse.strerror}; it could not be written, nor restored: take a copy",
                    filename,
                ) from error
            raise

    def _restore(
        self, target: FileIO, saved: list[tuple[int, int, int]], before: os.stat_result
    ) -> None:
        """Undo a commit that failed."""
        number = target.fileno()
        for start, stop, place in saved:
            copy_bytes(self._held, place, target, start, stop - start)
        os.ftruncate(number, before.st_size)
        # Whoever has the file open sees the version that it was.
        os.utime(number, ns=(before.st_atime_ns, before.st_mtime_ns))
        with suppress(OSError):  # it may be the reason; the error is raised already
            os.fsync(number)
