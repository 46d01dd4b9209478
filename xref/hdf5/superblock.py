"""The sizes in a file's superblock, and a file as the decoders of many objects see it.

`xref.objects.parsing` makes these values from an open file. The superblock itself is read here
to find the metadata cache image, before HDF5 opens the file.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 0A - Format Signature and
Superblock".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xref.arrays import KnownRanges
from xref.hdf5.metadata_reader import MetadataReader, Read, integer

if TYPE_CHECKING:
    from xref.arrays import RangeSource


_SIGNATURE = b"\x89HDF\r\n\x1a\n"
HEAD_NBYTES = 4096
"""First bytes of a file, read at once: the superblock, and often the root group."""

_EXTENDED_NBYTES = 28  # of a superblock with addresses of 8 bytes, up to its extension address


@dataclass(frozen=True, slots=True)
class FileFormat:
    """Sizes of a file and of its fields, in bytes."""

    offset_size: int  # of addresses ("O" in the specification)
    length_size: int  # of lengths ("L")
    base_address: int  # byte of the file from which addresses count
    file_nbytes: int


@dataclass(frozen=True, slots=True)
class FileContent:
    """Bytes, sizes and name of a file."""

    source: RangeSource
    form: FileFormat
    filename: str  # names the file in errors


def read_known_metadata(read: Read, file_nbytes: int, where: str) -> KnownRanges:
    """Read the metadata that are held in memory: the first bytes, and the cache image.

    The object header of the root group is often among the first bytes, and need not be read
    again. Where a metadata cache image has other bytes than the file, those of the image count.

    Parameters
    ----------
    read : callable
        ``read(offset, nbytes)`` returns bytes of the file.
    file_nbytes : int
    where : str
        The file, for errors.

    Raises
    ------
    CorruptFileError, UnsupportedError
        See `xref.hdf5.cache_image.read_cache_image`.
    """
    head = bytearray(read(0, min(HEAD_NBYTES, file_nbytes)))
    entries = read_image_entries(bytes(head), read, file_nbytes, where)
    starts, parts = [0], [memoryview(head)]
    for offset, data in entries:
        begin = min(max(len(head) - offset, 0), len(data))  # bytes of the entry in the head
        head[offset : offset + begin] = data[:begin]
        if begin < len(data):
            starts.append(offset + begin)
            parts.append(data[begin:])
    return KnownRanges(tuple(starts), tuple(parts), equal_file=not entries)


def read_image_entries(
    head: bytes, read: Read, file_nbytes: int, where: str
) -> list[tuple[int, memoryview]]:
    """Return the metadata that a file has in a metadata cache image.

    Parameters
    ----------
    head : bytes
        The first bytes of the file.
    read : callable
        ``read(offset, nbytes)`` returns other bytes of the file.
    file_nbytes : int
    where : str
        The file, for errors.

    Returns
    -------
    list of (int, memoryview)
        Offset in the file and bytes, ascending, without overlaps. Empty without an image.

    Raises
    ------
    CorruptFileError, UnsupportedError
        See `xref.hdf5.cache_image.read_cache_image`.
    """

    def read_any(offset: int, nbytes: int) -> bytes:
        stop = offset + nbytes
        return head[offset:stop] if stop <= len(head) else read(offset, nbytes)

    base = _find_superblock(read_any, file_nbytes)
    if base is None:
        return []
    # Signature 8, version 1, size of offsets 1, size of lengths 1, file consistency flags 1,
    # base address O, superblock extension address O, end of file address O, root group O,
    # checksum 4. Versions 0 and 1 have another order and no extension.
    start = read_any(base, min(_EXTENDED_NBYTES, file_nbytes - base))
    is_extended = len(start) == _EXTENDED_NBYTES and start[8] in (2, 3)
    if not is_extended or not {start[9], start[10]} <= {2, 4, 8}:
        return []  # no image, or no file that HDF5 opens
    size = start[9]
    source = MetadataReader(
        lambda address, nbytes: read_any(base + address, nbytes),
        size,
        start[10],
        file_nbytes - base,
        where,
    )
    extension = integer(start, 12 + size, size)
    if extension == source.undefined:
        return []
    from xref.hdf5.cache_image import read_cache_image  # few files have an extension

    return [(base + address, data) for address, data in read_cache_image(source, extension)]


def _find_superblock(read: Read, file_nbytes: int) -> int | None:
    """Return the offset of the superblock: 0, 512, 1024, 2048 and so on; None without one."""
    offset = 0
    while offset + len(_SIGNATURE) <= file_nbytes:
        if read(offset, len(_SIGNATURE)) == _SIGNATURE:
            return offset
        offset = max(2 * offset, 512)
    return None
