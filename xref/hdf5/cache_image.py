"""The metadata cache image: metadata that HDF5 stored in one block when it closed the file.

In: bytes of a file, and the address of its superblock extension. Out: addresses and bytes of
the metadata in the image. These bytes count, not those at the same addresses of the file, which
are out of date or were never written.

1. The superblock (version 2 or later) names its extension, an object header.
2. A message of that header names the block of the image.
3. The block contains entries: an address of the file, and the bytes that belong there.

HDF5 writes an image if the program asked for it (``H5Pset_mdc_image_config``). Releases before
2.0 copy entries without looking at the size of the block, so the image is checked here before
HDF5 opens the file.

Source: HDF5 File Format Specification 4.0, "Metadata Cache Image Message" and "Metadata Cache
Image Block"; src/H5Cimage.c of HDF5.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TypeAlias

from xref.errors import UnsupportedError
from xref.hdf5.metadata_reader import MetadataReader, integer
from xref.hdf5.object_header import walk_messages

CACHE_IMAGE_MESSAGE = 0x18

Entries: TypeAlias = list[tuple[int, memoryview]]
"""Address and bytes of each entry, ascending, without overlaps."""

_RESIZE_STATUS = 1  # bit of the flags: "Metadata cache resize status included"
_FIXED_NBYTES = 14  # of an entry, before its address
_CHECKSUM_NBYTES = 4


def read_cache_image(source: MetadataReader, extension: int) -> Entries:
    """Return the metadata in the cache image of a file; no entries if there is no image.

    Parameters
    ----------
    source : MetadataReader
        The bytes from the base address on.
    extension : int
        Address of the superblock extension.

    Raises
    ------
    CorruptFileError
        If the superblock extension or the image is damaged.
    UnsupportedError
        If the version of the image is not known.
    """
    for kind, _, body in walk_messages(source, extension):
        if kind == CACHE_IMAGE_MESSAGE:
            return _read_block(source, body, superblock_nbytes=16 + 4 * source.offset_size)
    return []


def _read_block(source: MetadataReader, body: bytes, superblock_nbytes: int) -> Entries:
    """Read the block that a message names; return address and bytes of each entry."""
    # Message: version 1, address of the block O, size of the block L.
    size, length = source.offset_size, source.length_size
    if len(body) < 1 + size + length:
        source.fail(f"the message of the metadata cache image has {len(body)} bytes")
    if body[0] != 0:
        raise UnsupportedError(
            f"{source.where}: the metadata cache image has a message of version {body[0]}; "
            "version 0 is known. Copy the file with h5repack of the HDF5 that wrote it"
        )
    address, nbytes = integer(body, 1, size), integer(body, 1 + size, length)
    if address == source.undefined or not nbytes:
        return []
    # Block: signature "MDCI" 4, version 1, flags 1, image data length L, number of entries 4,
    # entries, checksum 4.
    begin = 10 + length
    if nbytes < begin + _CHECKSUM_NBYTES:
        source.fail(f"the metadata cache image at {address:#x} has only {nbytes} bytes")
    block = source.take_checked(address, nbytes, b"MDCI", "metadata cache image")
    if block[4] != 0 or block[5] & _RESIZE_STATUS:
        raise UnsupportedError(
            f"{source.where}: the metadata cache image has version {block[4]} and flags "
            f"{block[5]:#x}; version 0 without flags is known. Copy the file with h5repack of "
            "the HDF5 that wrote it"
        )
    if integer(block, 6, length) != nbytes:
        source.fail(
            f"the metadata cache image at {address:#x} has {nbytes} bytes in the superblock "
            f"extension, and {integer(block, 6, length)} in the block"
        )
    return _decode_entries(source, block, begin, superblock_nbytes)


def _decode_entries(
    source: MetadataReader, block: bytes, begin: int, superblock_nbytes: int
) -> Entries:
    """Return address and bytes of each entry of a block, in ascending order of addresses."""
    size, length = source.offset_size, source.length_size
    n_entries, end = integer(block, begin - 4, 4), len(block) - _CHECKSUM_NBYTES
    head_nbytes = _FIXED_NBYTES + size + length
    if not n_entries or n_entries > (end - begin) // head_nbytes:
        source.fail(
            f"the metadata cache image has {n_entries} entries in {end - begin} bytes; each "
            f"has more than {head_nbytes}"
        )
    view, at, found = memoryview(block), begin, dict[int, memoryview]()
    for number in range(n_entries):
        # Entry: type 1, flags 1, ring 1, age 1, flush dependency child count 2, dirty child
        # count 2, parent count 2, LRU rank 4, address O, size L, addresses of the parents O
        # each, bytes.
        n_parents = integer(block, at + 8, 2)
        address = integer(block, at + _FIXED_NBYTES, size)
        nbytes = integer(block, at + _FIXED_NBYTES + size, length)
        data_at = at + head_nbytes + n_parents * size
        if not nbytes or data_at + nbytes > end:
            source.fail(
                f"entry {number} of the metadata cache image has {nbytes} bytes and "
                f"{n_parents} parents; "
                f"{max(end - at - head_nbytes, 0)} bytes of the block are left"
            )
        if address < superblock_nbytes or address + nbytes > source.file_nbytes:
            source.fail(
                f"entry {number} of the metadata cache image is for {nbytes} bytes at "
                f"{address:#x}, in the superblock or past the end of the file"
            )
        for k in range(n_parents):
            parent = integer(block, at + head_nbytes + k * size, size)
            if parent not in found:
                source.fail(
                    f"entry {number} of the metadata cache image depends on {parent:#x}, which "
                    "is not the address of an entry before it"
                )
        if address in found:
            source.fail(f"two entries of the metadata cache image are for {address:#x}")
        found[address], at = view[data_at : data_at + nbytes], data_at + nbytes
    if at != end:
        source.fail(f"{end - at} bytes follow the entries of the metadata cache image")
    entries = sorted(found.items())
    for (first, data), (second, _) in pairwise(entries):
        if first + len(data) > second:
            source.fail(
                f"entries of the metadata cache image for {first:#x} and {second:#x} overlap"
            )
    return entries
