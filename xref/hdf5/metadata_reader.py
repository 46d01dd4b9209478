"""Pieces of a file's metadata: inside the file, with the right signature and checksum.

In: a callable that reads bytes, and the sizes in the superblock. Out: bytes that lie inside
the file and have the length asked for. The decoders of object headers, heaps and B-trees
read through this module.

Source: HDF5 File Format Specification 4.0. Structures since version 2 begin with a signature
of four bytes and end with a checksum over all bytes before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from xref.errors import CorruptFileError
from xref.hdf5.checksums import lookup3

Read: TypeAlias = Callable[[int, int], bytes]

MAX_CHECKED_NBYTES = 1 << 20
"""Largest structure whose checksum is computed; Python takes 0.1 s for it. Object headers
and heap blocks that libhdf5 writes have a few KiB."""

_SIZES = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class MetadataReader:
    """Reads bytes of the file, and words the errors about them.

    Parameters
    ----------
    read : callable
        ``read(address, nbytes)`` returns bytes, ``address`` counted from the base
        address. Raises `xref.errors.FileReadError` if it cannot read them.
    offset_size, length_size : {2, 4, 8}
        Sizes of offsets and of lengths from the superblock, in bytes.
    file_nbytes : int
        Bytes from the base address to the end of the file.
    where : object
        Label that begins each error: the file and the object. It is turned into text
        only when an error is raised.

    Raises
    ------
    CorruptFileError
        If a size is not 2, 4 or 8.
    """

    read: Read
    offset_size: int
    length_size: int
    file_nbytes: int
    where: object

    def __post_init__(self) -> None:
        if self.offset_size not in _SIZES or self.length_size not in _SIZES:
            self.fail(
                f"offsets of {self.offset_size} bytes and lengths of {self.length_size} "
                "are unknown"
            )

    @property
    def undefined(self) -> int:
        """HDF5's undefined address: all bits set."""
        return int((1 << 8 * self.offset_size) - 1)

    def fail(self, found: str) -> NoReturn:
        """Raise a `CorruptFileError` that begins with the label."""
        raise CorruptFileError(f"{self.where}: {found}")

    def take(self, address: int, nbytes: int, what: str) -> bytes:
        """Read bytes, all of which must lie inside the file; ``what`` names them in errors."""
        if not 0 <= address <= self.file_nbytes - nbytes:
            self.fail(
                f"the {what} at {address:#x} ({nbytes} bytes) reaches past the end of the "
                f"file ({self.file_nbytes} bytes)"
            )
        data = self.read(address, nbytes) if nbytes else b""
        if len(data) != nbytes:
            self.fail(f"reading {nbytes} bytes of the {what} at {address:#x} gave {len(data)}")
        return data

    def take_checked(self, address: int, nbytes: int, signature: bytes, what: str) -> bytes:
        """Read a structure that begins with a signature and ends with its checksum.

        ``nbytes`` and the returned bytes include the checksum.
        """
        data = self.take_signed(address, nbytes, signature, what)
        self.verify(data, address, what)
        return data

    def take_signed(self, address: int, nbytes: int, signature: bytes, what: str) -> bytes:
        """Read a structure that begins with a signature, without checking a checksum."""
        data = self.take(address, nbytes, what)
        if not data.startswith(signature):
            self.fail(
                f"no {what} is at {address:#x}: the bytes there begin with "
                f"{data[: len(signature)]!r}, not with {signature!r}"
            )
        return data

    def verify(self, data: bytes, address: int, what: str) -> None:
        """Check the checksum in the last four bytes, up to `MAX_CHECKED_NBYTES`."""
        if len(data) > MAX_CHECKED_NBYTES:
            return
        stored, found = integer(data, len(data) - 4, 4), lookup3(data[:-4])
        if stored != found:
            self.fail(
                f"the {what} at {address:#x} has the checksum {stored:#010x}, and its bytes "
                f"give {found:#010x}; the file is damaged"
            )


def integer(data: bytes, position: int, size: int) -> int:
    """Return the little-endian unsigned integer of ``size`` bytes at a position."""
    return int.from_bytes(data[position : position + size], "little")


def integer_nbytes(limit: int) -> int:
    """Return the bytes that libhdf5 uses for a field whose largest value is ``limit``.

    Examples
    --------
    >>> [integer_nbytes(limit) for limit in (0, 255, 256, 65536)]
    [1, 1, 2, 3]
    """
    return max(limit.bit_length() - 1, 0) // 8 + 1


class ReadBudget:
    """Limits how many bytes are read of structures that must not overlap.

    The size of the file ``source`` is the limit, and each byte may be read ``times`` times;
    ``what`` names the structures in the error.
    """

    def __init__(self, source: MetadataReader, what: str, times: int = 1) -> None:
        self._source = source
        self._what = what
        self._left = times * source.file_nbytes

    def spend(self, nbytes: int) -> None:
        """Count bytes that are read; fail when they exceed the limit."""
        self._left -= nbytes
        if self._left < 0:
            self._source.fail(f"the {self._what} has more bytes than the file: parts overlap")
