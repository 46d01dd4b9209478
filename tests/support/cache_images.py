"""Files with a metadata cache image: written by libhdf5, or made from other files by hand.

h5py has no function that asks for an image, so `write_with_hdf5` calls the HDF5 library that
h5py has loaded. `move_to_image` needs no library: it moves object headers and global heaps of
a file into an image, and overwrites them at their addresses.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import pytest
from images import LIBHDF5

from xref.hdf5.checksums import lookup3

UNDEFINED = (1 << 64) - 1


class _ImageConfig(ctypes.Structure):
    """``H5AC_cache_image_config_t``."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("generate_image", ctypes.c_bool),
        ("save_resize_status", ctypes.c_bool),
        ("entry_ageout", ctypes.c_int),
    )


def write_with_hdf5(
    path: Path,
    fill: Callable[[h5py.File], None],
    *,
    userblock: int = 0,
    page: int = 0,
    old: bool = False,
) -> Path:
    """Write a file with a cache image; skip the test if HDF5 cannot write images.

    ``old`` asks for old forms of all objects; only a ``page`` size gives such a file the new
    superblock that images need.
    """
    if not hasattr(LIBHDF5, "H5Pset_mdc_image_config"):
        pytest.skip("this HDF5 library writes no cache images")
    latest = h5py.h5f.LIBVER_LATEST
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_EARLIEST if old else latest, latest)
    function = LIBHDF5.H5Pset_mdc_image_config
    function.argtypes = [ctypes.c_int64, ctypes.c_void_p]
    assert function(access.id, ctypes.byref(_ImageConfig(1, True, False, -1))) >= 0
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_userblock(userblock)
    # The links of the root group lie in its header, not in a fractal heap.
    phases = LIBHDF5.H5Pset_link_phase_change
    phases.argtypes = [ctypes.c_int64, ctypes.c_uint, ctypes.c_uint]
    assert phases(creation.id, 100, 0) >= 0
    if page:
        creation.set_file_space_strategy(h5py.h5f.FSPACE_STRATEGY_PAGE, False, 1)
        creation.set_file_space_page_size(page)
    number = h5py.h5f.create(bytes(path), h5py.h5f.ACC_TRUNC, creation, access)
    with h5py.File(number) as file:
        fill(file)
    number.close()
    assert b"MDCI" in path.read_bytes()
    return path


@dataclass(frozen=True)
class Entry:
    """An entry of an image, with fields that a test may set wrong."""

    address: int
    data: bytes
    type_id: int = 5  # H5AC_OHDR_ID
    parents: tuple[int, ...] = ()
    nbytes: int | None = None

    def encode(self) -> bytes:
        nbytes = len(self.data) if self.nbytes is None else self.nbytes
        # Type, flags (dirty, in LRU), ring, age, children, dirty children, parents, LRU rank.
        head = struct.pack("<BBBBHHHi", self.type_id, 3, 1, 0, 0, 0, len(self.parents), 1)
        places = struct.pack(f"<QQ{len(self.parents)}Q", self.address, nbytes, *self.parents)
        return head + places + self.data


def checked(data: bytes) -> bytes:
    """Return bytes with their checksum behind them."""
    return data + struct.pack("<I", lookup3(data))


def encode_image(
    entries: list[Entry], *, version: int = 0, flags: int = 0, n_entries: int | None = None
) -> bytes:
    """Return the block of an image."""
    body = b"".join(entry.encode() for entry in entries)
    n = len(entries) if n_entries is None else n_entries
    head = b"MDCI" + struct.pack("<BBQI", version, flags, 18 + len(body) + 4, n)
    return checked(head + body)


def add_image(content: bytes, block: bytes, message: bytes | None = None) -> bytes:
    """Return a file with an image block, of a file with a superblock of version 2 or 3."""
    base = content.index(b"\x89HDF\r\n\x1a\n")
    assert content[base + 8] in (2, 3)
    assert content[base + 9 : base + 11] == b"\x08\x08"
    assert struct.unpack_from("<Q", content, base + 20) == (UNDEFINED,)
    image, extension = len(content) - base, len(content) - base + len(block)
    if message is None:
        message = struct.pack("<BQQ", 0, image, len(block))
    # Object header: signature, version 2, flags 0, size of chunk #0, messages, checksum. A
    # message: type 1, size 2, flags 1 (fail if unknown, do not share).
    messages = struct.pack("<BHB", 0x18, len(message), 0x84) + message
    header = checked(b"OHDR" + struct.pack("<BBB", 2, 0, len(messages)) + messages)
    whole = bytearray(content + block + header)
    struct.pack_into("<QQ", whole, base + 20, extension, len(whole))
    whole[base : base + 48] = checked(bytes(whole[base : base + 44]))
    return bytes(whole)


def movable_entries(content: bytes) -> list[Entry]:
    """Return the object headers of one block, and the global heaps of a file."""
    base, found, at = content.index(b"\x89HDF\r\n\x1a\n"), [], 0
    while (at := content.find(b"OHDR\x02", at)) >= 0:
        flags = content[at + 5]
        start = at + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        size = int.from_bytes(content[start : start + width], "little")
        stop = start + width + size + 4
        found.append(Entry(at - base, content[at:stop]))
        at = stop
    at = 0
    while (at := content.find(b"GCOL\x01\0\0\0", at)) >= 0:
        (size,) = struct.unpack_from("<Q", content, at + 8)
        found.append(Entry(at - base, content[at : at + size], type_id=4))
        at += size
    return found


def move_to_image(content: bytes) -> bytes:
    """Move object headers and global heaps of a file into an image."""
    entries = movable_entries(content)
    base = content.index(b"\x89HDF\r\n\x1a\n")
    emptied = bytearray(content)
    for entry in entries:
        at = base + entry.address
        emptied[at : at + len(entry.data)] = b"\xa5" * len(entry.data)
    return add_image(bytes(emptied), encode_image(entries))
