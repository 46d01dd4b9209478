"""Pieces of a file's metadata: read inside the file only, and checked by checksum.

In: a callable that reads bytes, and the sizes of the superblock. Out: bytes that lie
inside the file and have the length asked for. The modules that parse object headers,
heaps and B-trees share this.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 2A2 - Version 2 Data
Object Header Prefix" (which names the checksum, lookup3 of Bob Jenkins).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from xref.errors import CorruptFileError

Read: TypeAlias = Callable[[int, int], bytes]

MAX_CHECKED_NBYTES = 1 << 20
"""Bytes of one structure whose checksum is worked out; Python takes 0.1 s for them.
Object headers and heap blocks that libhdf5 writes have a few KiB."""

_SIZES = (2, 4, 8)
_WORD = 0xFFFFFFFF
_HASH_SEED = 0xDEADBEEF


@dataclass(frozen=True, slots=True)
class MetadataReader:
    """Bytes of the file, and what errors say about where they are.

    Parameters
    ----------
    read : callable
        ``read(address, nbytes)`` returns bytes, ``address`` counted from the base
        address; it raises `xref.errors.FileReadError` when it cannot.
    offset_size, length_size : {2, 4, 8}
        Sizes of offsets and of lengths from the superblock, in bytes.
    file_nbytes : int
        Bytes from the base address to the end of the file.
    where : object
        Begins each error, as text: the file and the object. It is asked for only there.

    Raises
    ------
    CorruptFileError
        If a size is unknown.
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
        """The address that means none: all bits set."""
        return int((1 << 8 * self.offset_size) - 1)

    def fail(self, found: str) -> NoReturn:
        """Raise a `CorruptFileError` that begins with the place."""
        raise CorruptFileError(f"{self.where}: {found}")

    def take(self, address: int, nbytes: int, what: str) -> bytes:
        """Return bytes that must lie inside the file."""
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
        """Return bytes that begin with a signature and end in their checksum.

        The checksum, which ``nbytes`` includes, is returned with the bytes.
        """
        data = self.take(address, nbytes, what)
        if not data.startswith(signature):
            self.fail(
                f"no {what} is at {address:#x}: the bytes there begin with "
                f"{data[: len(signature)]!r}, not with {signature!r}"
            )
        self.verify(data, address, what)
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
    """Return the bytes of a field that HDF5 makes as wide as its largest value needs.

    Examples
    --------
    >>> [integer_nbytes(limit) for limit in (0, 255, 256, 65536)]
    [1, 1, 2, 3]
    """
    return max(limit.bit_length() - 1, 0) // 8 + 1


def lookup3(data: bytes) -> int:
    """Return the checksum of HDF5's metadata.

    Examples
    --------
    >>> hex(lookup3(b"Four score and seven years ago"))
    '0x17770551'
    """
    a = b = c = (_HASH_SEED + len(data)) & _WORD
    if not data:
        return c
    # The last one to twelve bytes are mixed in otherwise; zeros fill them up. Only what
    # is shifted right must have 32 bits, so sums stay as wide as they come.
    n_words = -(-len(data) // 12) * 3
    words: tuple[int, ...] = struct.unpack(f"<{n_words}I", data.ljust(4 * n_words, b"\0"))
    each = iter(words[:-3])
    for x, y, z in zip(each, each, each, strict=True):
        a, b, c = a + x, b + y, c + z & _WORD
        a = (a - c ^ (c << 4 | c >> 28)) & _WORD
        c += b
        b = (b - a ^ (a << 6 | a >> 26)) & _WORD
        a += c
        c = (c - b ^ (b << 8 | b >> 24)) & _WORD
        b += a
        a = (a - c ^ (c << 16 | c >> 16)) & _WORD
        c += b
        b = (b - a ^ (a << 19 | a >> 13)) & _WORD
        a += c
        c = (c - b ^ (b << 4 | b >> 28)) & _WORD
        b += a
    a, b, c = a + words[-3] & _WORD, b + words[-2] & _WORD, c + words[-1] & _WORD
    c = (c ^ b) - (b << 14 | b >> 18) & _WORD
    a = (a ^ c) - (c << 11 | c >> 21) & _WORD
    b = (b ^ a) - (a << 25 | a >> 7) & _WORD
    c = (c ^ b) - (b << 16 | b >> 16) & _WORD
    a = (a ^ c) - (c << 4 | c >> 28) & _WORD
    b = (b ^ a) - (a << 14 | a >> 18) & _WORD
    return (c ^ b) - (b << 24 | b >> 8) & _WORD
