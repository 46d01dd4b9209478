"""The hard links of a group, from bytes.

In: the messages of an object header. Out: name and address of each hard link, or None
where the object is no group.

1. A Link Info message makes a group of the new style. Few links are Link messages of the
   header; many are dense: a B-tree of the names, whose records give heap IDs, and a
   fractal heap of the Link messages.
2. A Symbol Table message makes a group of the old style, which `xref.hdf5.symbol_table` reads.

Soft and external links are left out: they name a path, not an object.

Source: HDF5 File Format Specification 4.0, "The Link Info Message", "The Link Message",
"The Symbol Table Message" and "Disk Format: Level 1A2 - Version 2 B-trees" (record
type 5).
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

LINK_KINDS = (LINK_INFO_MESSAGE, LINK_MESSAGE, SYMBOL_TABLE_MESSAGE)
"""Types of the messages that `read_hard_links` looks at."""

NAME_INDEX = 5
"""Type of the B-tree that has the names of dense links."""

_HASH_NBYTES = 4  # hash of the name, at the begin of a record
_HEAP_ID_NBYTES = 7  # libhdf5 writes no other
_INDEXED_ORDER = 0x03  # flags of the Link Info message: order is tracked, and indexed
_TRACKED_ORDER = 0x01
_NAME_WIDTH = 0x03  # flags of the Link message: log2 of the bytes of the name's length
_HAS_ORDER, _HAS_TYPE, _HAS_CHARSET = 0x04, 0x08, 0x10
_LINK_FLAGS = 0x1F
_HARD = 0


def is_group(messages: Iterable[Message]) -> bool:
    """Tell whether an object header is that of a group."""
    return any(kind in (LINK_INFO_MESSAGE, SYMBOL_TABLE_MESSAGE) for kind, _, _ in messages)


def read_hard_links(
    source: MetadataReader, messages: Iterable[Message], address: int
) -> list[tuple[bytes, int]]:
    """Return the hard links of a group in the order of their names, as bytes.

    Parameters
    ----------
    source : Source
        The file.
    messages : iterable of Message
        Those of the group's object header whose type is one of `LINK_KINDS`.
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
    found = dict[int, list[bytes]]()
    for kind, flags, body in messages:
        if flags & SHARED:
            source.fail(f"a message of type {kind:#06x} of the group at {address:#x} is shared")
        found.setdefault(kind, []).append(body)
    if LINK_INFO_MESSAGE in found:
        bodies = _read_dense(source, found[LINK_INFO_MESSAGE][0], address)
        if bodies is None:
            bodies = found.get(LINK_MESSAGE, [])
        links = [_parse_link(source, body, address) for body in bodies]
    else:
        links = list[tuple[bytes, int | None]]()
        for body in found[SYMBOL_TABLE_MESSAGE]:
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
    """Return the bodies of the Link messages in dense storage; None where it is compact."""
    size = source.offset_size
    # Version, flags, largest creation index (8 bytes, if tracked), address of the fractal
    # heap, address of the B-tree of names, address of that of creation order (if indexed).
    flags = info[1] if len(info) > 1 else 0
    at = 2 + (8 if flags & _TRACKED_ORDER else 0)
    if len(info) < at + 2 * size or info[0] or flags & ~_INDEXED_ORDER:
        source.fail(
            f"the link info message of the group at {address:#x} ({len(info)} bytes) begins "
            f"with {info[:2]!r}"
        )
    heap_address, tree = integer(info, at, size), integer(info, at + size, size)
    if heap_address == source.undefined:
        return None
    heap = FractalHeap(source, heap_address)
    records = read_records(source, tree, NAME_INDEX, _HASH_NBYTES + _HEAP_ID_NBYTES)
    # In the order of the heap's space, so that links of one block come together: the place
    # follows the first byte of a heap ID. The records are in the order of hashes.
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
    """Return the name of a link, and the object that a hard one leads to."""
    # Version, flags; type (1 byte), creation order (8), character set (1), each if flags
    # say so; length of the name, name; of a hard link the address of the object header.
    flags = body[1] if len(body) > 1 else 0
    if body[:1] != b"\x01" or flags & ~_LINK_FLAGS:
        source.fail(f"a link message of the group at {address:#x} begins with {body[:2]!r}")
    at, kind = 2, _HARD
    if flags & _HAS_TYPE:
        kind, at = integer(body, at, 1), at + 1
    at += (8 if flags & _HAS_ORDER else 0) + (1 if flags & _HAS_CHARSET else 0)
    width = 1 << (flags & _NAME_WIDTH)
    length = integer(body, at, width)
    begin, end = at + width, at + width + length
    size = source.offset_size
    if end + (size if kind == _HARD else 0) > len(body):
        source.fail(
            f"a link message of the group at {address:#x} has {len(body)} bytes and a name of "
            f"{length}"
        )
    name = body[begin:end]
    if kind != _HARD:
        return name, None
    target = integer(body, end, size)
    if not 0 < target < source.file_nbytes:
        source.fail(
            f"link {name!r} names the object header at {target:#x}, outside the file "
            f"({source.file_nbytes} bytes)"
        )
    return name, target
