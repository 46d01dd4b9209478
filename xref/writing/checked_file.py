"""Files that HDF5 writes through Python, so that no write fails inside HDF5.

In: reads and writes of HDF5, by offset. Out: bytes in a file, and the first error.

HDF5 writes much of its caches when a dataset or a file is closed. It does not report all
errors that occur then, and may crash after an error. So HDF5 never sees an error here:
`CheckedFile` stores the first error, and keeps bytes that could not be written in memory.
The caller calls `CheckedFile.check` after HDF5 has closed the file, and between two steps.

`Overlay` is a file of changes to another file, which does not change until `Overlay.commit`.
It is a sequence of records: offset and number of bytes (two little-endian 64-bit integers),
then the new bytes. Records do not overlap: a later write of the same bytes changes the record.
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
"""Bytes of the buffer with which one file is copied to another."""

_HEADER_NBYTES = 16
"""Bytes of the two integers of a record."""


class ByteStore(Protocol):
    """The bytes of a file."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read into ``buffer``; return the number of bytes read."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``."""

    def truncate(self, size: int) -> None:
        """Set the size of the file."""


@dataclass(frozen=True, slots=True)
class PlainStore:
    """The bytes of one open file."""

    file: FileIO

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self.file.fileno()).st_size

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read into ``buffer``; return the number of bytes read."""
        return read_at(self.file, offset, buffer)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``."""
        write_at(self.file, offset, data)

    def truncate(self, size: int) -> None:
        """Set the size of the file."""
        os.ftruncate(self.file.fileno(), size)


class CheckedFile:
    """A file object for h5py's driver ``fileobj``, whose writes do not raise errors.

    It is used by one thread at a time: HDF5 calls it under its lock.

    Parameters
    ----------
    store : ByteStore
    filename : str
        The user's file, for errors.
    """

    def __init__(self, store: ByteStore, filename: str) -> None:
        self._store = store
        self._filename = filename
        self._position = 0
        self._size = store.size
        self._error: BaseException | None = None
        self._unwritten: list[tuple[int, bytes]] = []

    def __repr__(self) -> str:
        return self._filename  # for errors of h5py

    def check(self) -> None:
        """Raise the first error or interrupt, if there was one.

        Raises
        ------
        FileWriteError
            If the operating system could not write.
        """
        error = self._error or find_interrupt()
        if isinstance(error, OSError):
            raise write_error(error, self._filename) from error
        if error is not None:
            raise error

    def stop(self, error: BaseException) -> None:
        """Write no more bytes; `check` will raise this error."""
        if self._error is None:
            self._error = error

    def attempt(self, function: object, *arguments: object) -> None:
        """Call a function; `check` will raise its error."""
        try:
            function(*arguments)  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - HDF5 must not see it; check() raises it
            self.stop(error)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset."""
        self._position = offset + (self._size if whence == os.SEEK_END else 0)
        return self._position

    def tell(self) -> int:
        """Return the offset."""
        return self._position

    def read(self, size: int) -> bytearray:
        """Read bytes; those past the end are 0, as in HDF5's own drivers."""
        out = bytearray(size)
        self.readinto(out)
        return out

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Read into a buffer; return its length.

        Errors are raised here: a failed read loses no bytes that HDF5 has to write.
        """
        view = memoryview(buffer).cast("B")
        begin, stop = self._position, self._position + len(view)
        self._position = stop
        try:
            n = self._store.read_into(begin, view)
        except BaseException as error:
            self.stop(error)
            raise  # h5py would not notice a short read
        view[n:] = bytes(len(view) - n)
        for start, data in self._unwritten:
            low, high = max(start, begin), min(start + len(data), stop)
            if low < high:
                view[low - begin : high - begin] = data[low - start : high - start]
        return len(view)

    def write(self, data: bytes | bytearray) -> int:
        """Write bytes; keep them in memory if that fails."""
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
            self._unwritten.append((begin, bytes(view)))  # copied: HDF5 reuses the buffer
        return len(view)

    def truncate(self, size: int) -> int:
        """Set the size of the file."""
        self._size = size
        if self._error is None:
            self.attempt(self._store.truncate, size)
        return size

    def flush(self) -> None:
        """Do nothing: all bytes are in the file."""


def write_error(error: OSError, filename: str) -> FileWriteError:
    """Return the error of a failed write, with the name of the user's file."""
    if isinstance(error, FileWriteError):
        return error
    reason = error.strerror or str(error) or type(error).__name__
    message = f"{reason}; the file could not be written and is unchanged"
    return FileWriteError(error.errno or errno.EIO, message, filename)


def read_at(file: FileIO, offset: int, buffer: memoryview) -> int:
    """Read into ``buffer`` from byte ``offset`` on; return the number of bytes read."""
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
            # The usual reason to write nothing.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done += n


def copy_bytes(source: FileIO, position: int, target: FileIO, offset: int, nbytes: int) -> None:
    """Copy bytes of one file to another."""
    buffer = memoryview(bytearray(min(nbytes, COPIED_AT_ONCE)))
    for done in range(0, nbytes, COPIED_AT_ONCE):
        part = buffer[: nbytes - done]
        if read_at(source, position + done, part) != len(part):
            raise OSError(errno.EIO, "a temporary file became shorter")
        write_at(target, offset + done, part)


@dataclass(slots=True)
class Records:
    """The records of an overlay, in the order of the bytes that they replace."""

    starts: list[int] = field(default_factory=list)  # first byte in the changed file
    stops: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)  # of the new bytes in the overlay
    end: int = 0  # offset of the next record in the overlay

    def add(self, start: int, nbytes: int) -> int:
        """Register a new record; return the offset of its bytes in the overlay."""
        position = self.end + _HEADER_NBYTES
        k = bisect.bisect_left(self.starts, start)
        self.starts.insert(k, start)
        self.stops.insert(k, start + nbytes)
        self.positions.insert(k, position)
        self.end = position + nbytes
        return position

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int | None]]:
        """Cut a range where records begin and end.

        Yields start, stop, and offset in the overlay (None outside of all records).
        """
        pieces: list[tuple[int, int, int | None]] = []
        k = max(bisect.bisect_right(self.starts, start) - 1, 0)
        while start < stop:
            if k == len(self.starts) or self.starts[k] >= stop:
                pieces.append((start, stop, None))
                break
            begin, end = self.starts[k], self.stops[k]
            if start < begin:
                pieces.append((start, begin, None))
                start = begin
            if start < end:
                last = min(end, stop)
                pieces.append((start, last, self.positions[k] + start - begin))
                start = last
            k += 1
        return iter(pieces)  # a list: the caller may add records meanwhile


class Overlay:
    """A file (``base``, only read) with changes in another file until they are committed.

    ``records`` are known records of ``changes``; records that other processes added are read.
    """

    def __init__(
        self, base: FileIO, base_size: int, changes: FileIO, records: Records | None = None
    ) -> None:
        self._base, self._base_size, self._changes = base, base_size, changes
        self.records = Records() if records is None else records
        header = bytearray(_HEADER_NBYTES)
        size = os.fstat(changes.fileno()).st_size
        while self.records.end < size:
            if read_at(changes, self.records.end, memoryview(header)) != _HEADER_NBYTES:
                raise OSError(errno.EIO, "a temporary file ends in a record")
            self.records.add(
                int.from_bytes(header[:8], "little"), int.from_bytes(header[8:], "little")
            )

    @property
    def size(self) -> int:
        """Bytes of the file with its changes."""
        return max([self._base_size, *self.records.stops[-1:]])

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read into ``buffer``; return the number of bytes read."""
        n = max(0, min(len(buffer), self.size - offset))
        for start, stop, position in self.records.pieces(offset, offset + n):
            part = buffer[start - offset : stop - offset]
            if position is not None:
                done = read_at(self._changes, position, part)
            else:
                done = read_at(self._base, start, part[: max(0, self._base_size - start)])
            part[done:] = bytes(len(part) - done)
        return n

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``, into existing records or new ones."""
        for start, stop, position in self.records.pieces(offset, offset + len(data)):
            part = data[start - offset : stop - offset]
            if position is None:
                self._append(start, part)
            else:
                write_at(self._changes, position, part)

    def _append(self, start: int, data: memoryview) -> None:
        header = start.to_bytes(8, "little") + len(data).to_bytes(8, "little")
        end = self.records.end
        n = os.pwritev(self._changes.fileno(), [header, data], end)
        if n < _HEADER_NBYTES:
            write_at(self._changes, end, memoryview(header))
            n = _HEADER_NBYTES
        write_at(self._changes, end + n, data[n - _HEADER_NBYTES :])
        self.records.add(start, len(data))

    def truncate(self, size: int) -> None:
        """Enlarge the file; a smaller size has no effect."""
        if size > self.size:
            self._append(size - 1, memoryview(b"\0"))

    def commit(self, target: FileIO, filename: str) -> None:
        """Make the changes in the file itself (``target``), all of them or none.

        Raises
        ------
        FileWriteError
            If it failed, and the old bytes could not be restored.
        OSError
            If it failed, and the file is unchanged.
        """
        before = os.fstat(target.fileno())
        end = self._base_size
        ranges = list(
            zip(self.records.starts, self.records.stops, self.records.positions, strict=True)
        )
        saved: list[tuple[int, int, int]] = []
        try:
            # Bytes behind the end of the old file come first: readers do not see them yet.
            for start, stop, position in ranges:
                low = max(start, end)
                if low < stop:
                    copy_bytes(self._changes, position + low - start, target, low, stop - low)
            os.fsync(target.fileno())
            inside = [
                (start, min(stop, end), position)
                for start, stop, position in ranges
                if start < end
            ]
            place = self.records.end
            for start, stop, _ in inside:
                copy_bytes(target, start, self._changes, place, stop - start)
                saved.append((start, stop, place))
                place += stop - start
            for start, stop, position in inside:
                copy_bytes(self._changes, position, target, start, stop - start)
            os.fsync(target.fileno())
        except BaseException as error:
            try:
                self._restore(target, saved, before)
            except OSError as undo_error:
                raise FileWriteError(
                    undo_error.errno or errno.EIO,
                    f"{undo_error.strerror}; the file could not be written, nor its old bytes "
                    "restored: restore it from a copy",
                    filename,
                ) from error
            raise

    def _restore(
        self, target: FileIO, saved: list[tuple[int, int, int]], before: os.stat_result
    ) -> None:
        """Undo a commit that failed."""
        number = target.fileno()
        for start, stop, place in saved:
            copy_bytes(self._changes, place, target, start, stop - start)
        os.ftruncate(number, before.st_size)
        # Readers that have the file open compare its times.
        os.utime(number, ns=(before.st_atime_ns, before.st_mtime_ns))
        with suppress(OSError):  # it may have failed before; that error is raised
            os.fsync(number)
