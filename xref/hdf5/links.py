"""The hard links of a group, from bytes.

In: the messages of an object header. Out: name and address of each hard link.

1. A group of the new style has a Link Info message. Its compact links are Link messages of
   the header. Its dense links are Link messages in a fractal heap; the records of a B-tree
   of the names hold their heap IDs.
2. A group of the old style has a Symbol Table message; `xref.hdf5.symbol_table` reads it.

Soft and external links are left out: they name a path, not an object.

Source: HDF5 File Format Specification 4.0, "The Link Info Message", "The Link Message", "The
Symbol Table Message" and "Disk Format: Level 1A2 - Version 2 B-trees" (record type 5).
"""

from __future__ import annotations

from collections.abc import Iterable

from xref.hdf5.btree2 import read_records
from xref.hdf5.fractal_heap import FractalHeap
from xref.hdf5.metadata_reader import MetadataReader, ReadBudget, integer
from xref.hdf5.object_header import (
    LINK_INFO_MESSAGE,
    LINK_MESSAGE,
    SHARED,
    SYMBOL_TABLE_MESSAGE,
    Message,
)
from xref.hdf5.symbol_table import read_symbol_table

LINK_TYPES = (LINK_INFO_MESSAGE, LINK_MESSAGE, SYMBOL_TABLE_MESSAGE)
"""Types of the messages from which `read_hard_links` reads."""

NAME_INDEX = 5
"""Type of the B-tree with the names of dense links."""

# A record of that B-tree: hash of the name 4, heap ID 7.
_HASH_NBYTES, _HEAP_ID_NBYTES = 4, 7
# Flags of the Link Info message: creation order is tracked (bit 0), and indexed (bit 1).
_TRACKED_ORDER, _INFO_FLAGS = 0x01, 0x03
# Flags of the Link message: log2 of the bytes of the name's length (bits 0 and 1), creation
# order (bit 2), link type (bit 3) and character set (bit 4) are present.
_NAME_WIDTH, _HAS_ORDER, _HAS_TYPE, _HAS_CHARSET = 0x03, 0x04, 0x08, 0x10
_LINK_FLAGS = 0x1F
_HARD = 0  # link type


def is_group(messages: Iterable[Message]) -> bool:
    """Return whether the messages are those of a group."""
    return any(m.message_type in (LINK_INFO_MESSAGE, SYMBOL_TABLE_MESSAGE) for m in messages)


def read_hard_links(
    source: MetadataReader, messages: Iterable[Message], address: int
) -> list[tuple[bytes, int]]:
    """Return the hard links of a group in the order of their names, as bytes.

    Parameters
    ----------
    source : MetadataReader
        The file.
    messages : iterable of Message
        Messages of the group's object header whose type is one of `LINK_TYPES`.
    address : int
        Address of the object header, for errors.

    Returns
    -------
    list of (bytes, int)
        Name, and address of the object header that the link names. Names that no path
        can have (empty, ".", with "/") are left out.

    Raises
    ------
    CorruptFileError
        If a structure contradicts the format, or two links have one name.
    UnsupportedError
        If links lie in a heap with filters.
    """
    by_type = dict[int, list[bytes]]()
    for message_type, flags, body in messages:
        if flags & SHARED:
            source.fail(
                f"a message of type {message_type:#06x} of the group at {address:#x} is shared"
            )
        by_type.setdefault(message_type, []).append(body)
    if LINK_INFO_MESSAGE in by_type:
        bodies = _read_dense(source, by_type[LINK_INFO_MESSAGE][0], address)
        if bodies is None:
            bodies = by_type.get(LINK_MESSAGE, [])
        links = [_parse_link(source, body, address) for body in bodies]
    else:
        links = list[tuple[bytes, int | None]]()
        for body in by_type[SYMBOL_TABLE_MESSAGE]:
            links += read_symbol_table(source, body, address)
    names = {name for name, _ in links}
    if len(names) != len(links):
        source.fail(f"two links of the group at {address:#x} have one name")
    return sorted(
        (name, target)
        for name, target in links
        if target is not None and name not in (b"", b".") and b"/" not in name
    )


def _read_dense(source: MetadataReader, info: bytes, address: int) -> list[bytes] | None:
    """Return the bodies of the Link messages of dense storage; None if links are compact."""
    size = source.offset_size
    # Version 1, flags 1, maximum creation index 8 (if tracked), address of the fractal heap
    # O, address of the B-tree of names O, that of creation order O (if indexed).
    flags = info[1] if len(info) > 1 else 0
    start = 2 + (8 if flags & _TRACKED_ORDER else 0)
    if len(info) < start + 2 * size or info[0] or flags & ~_INFO_FLAGS:
        source.fail(
            f"the link info message of the group at {address:#x} ({len(info)} bytes) begins "
            f"with {info[:2]!r}"
        )
    heap_address, tree = integer(info, start, size), integer(info, start + size, size)
    if heap_address == source.undefined:
        return None
    heap = FractalHeap(source, heap_address)
    records = read_records(source, tree, NAME_INDEX, _HASH_NBYTES + _HEAP_ID_NBYTES)
    # Records come in the order of hashes. In the order of their place in the heap, links of
    # one block come together. A heap ID of a managed object: type 1, place 4, length 2.
    place = slice(_HASH_NBYTES + 1, _HASH_NBYTES + 5)
    records.sort(key=lambda record: int.from_bytes(record[place], "little"))
    budget = ReadBudget(source, f"links in the fractal heap at {heap_address:#x}")
    bodies = []
    for record in records:
        body = heap.get(record[_HASH_NBYTES:])
        budget.spend(len(body))
        bodies.append(body)
    return bodies


def _parse_link(source: MetadataReader, body: bytes, address: int) -> tuple[bytes, int | None]:
    """Return the name of a link, and the address to which a hard link leads."""
    # Version 1, flags 1, link type 1, creation order 8, character set 1 (these three if the
    # flags say so), length of the name 1 to 8, name, link information: for a hard link the
    # address of the object header O.
    flags = body[1] if len(body) > 1 else 0
    if body[:1] != b"\x01" or flags & ~_LINK_FLAGS:
        source.fail(f"a link message of the group at {address:#x} begins with {body[:2]!r}")
    at, link_type = 2, _HARD
    if flags & _HAS_TYPE:
        link_type, at = integer(body, at, 1), at + 1
    at += (8 if flags & _HAS_ORDER else 0) + (1 if flags & _HAS_CHARSET else 0)
    width = 1 << (flags & _NAME_WIDTH)
    length = integer(body, at, width)
    begin, end = at + width, at + width + length
    size = source.offset_size
    if end + (size if link_type == _HARD else 0) > len(body):
        source.fail(
            f"a link message of the group at {address:#x} has {len(body)} bytes and a name of "
            f"{length}"
        )
    name = body[begin:end]
    if link_type != _HARD:
        return name, None
    target = integer(body, end, size)
    if not 0 < target < source.file_nbytes:
        source.fail(
            f"link {name!r} names the object header at {target:#x}, outside the file "
            f"({source.file_nbytes} bytes)"
        )
    return name, target
