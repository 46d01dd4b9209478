"""Metadata of a file that is in memory: its first bytes, and its metadata cache image.

In: an open file. Out: ranges of metadata, to be laid over the bytes of the file. The first
bytes of each file are read before HDF5 opens it, because HDF5 may crash on a damaged cache
image. The object header of the root group is often among these bytes, and need not be read
again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from xref.arrays import KnownRanges
from xref.errors import FileReadError
from xref.storage.sources import ByteHandle

HEAD_NBYTES = 4096
"""First bytes of a file, read at once: the superblock, and often the root group."""

ImageDecoder: TypeAlias = Callable[
    [bytes, Callable[[int, int], bytes], int, str], list[tuple[int, memoryview]]
]
"""The signature of `xref.hdf5.read_image_entries`."""

_decoders: list[ImageDecoder] = []


def set_image_decoder(decode: ImageDecoder) -> None:
    """Set the function that decodes cache images: `xref.objects` knows the file format."""
    _decoders[:] = [decode]


NOTHING_KNOWN = KnownRanges((), (), equal_file=True)
"""For files that a writer has open: HDF5 in the writer knows their metadata."""


def read_known_metadata(held: ByteHandle, nbytes: int, name: str) -> KnownRanges:
    """Read the first bytes of an open file, and its metadata cache image if it has one.

    Raises
    ------
    CorruptFileError, UnsupportedError
        If the image is damaged, or of an unknown version.
    FileReadError
        If the file ends before ``nbytes``.
    """

    def read(offset: int, n: int) -> bytes:
        buffer, done = bytearray(n), 0
        while done < n:
            more = held.read(offset + done, memoryview(buffer)[done:])
            if not more:
                raise FileReadError(
                    f"{name}: {n} bytes requested at {offset:#x}, the file ended after {done}"
                )
            done += more
        return bytes(buffer)

    head = bytearray(read(0, min(HEAD_NBYTES, nbytes)))
    entries = [e for decode in _decoders for e in decode(bytes(head), read, nbytes, name)]
    starts, parts = [0], [memoryview(head)]
    for offset, data in entries:
        begin = min(max(len(head) - offset, 0), len(data))  # bytes of the entry in the head
        head[offset : offset + begin] = data[:begin]
        if begin < len(data):
            starts.append(offset + begin)
            parts.append(data[begin:])
    return KnownRanges(tuple(starts), tuple(parts), equal_file=not entries)
