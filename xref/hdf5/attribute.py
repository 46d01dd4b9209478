"""Attributes of an object, from bytes: name, type, shape and raw data.

In: the address of an object header and bytes of the file. Out: `RawAttribute` values.

1. Compact attributes are messages of the object header.
2. Dense attributes lie in a fractal heap. The Attribute Info message names the heap, and a
   B-tree of the attributes' names whose records hold heap IDs.
3. Each message holds datatype, dataspace and data. Datatype and dataspace may be shared
   messages, which lie elsewhere.

Source: HDF5 File Format Specification 4.0, "The Attribute Message", "The Attribute
Info Message" and "Disk Format: Level 1A2 - Version 2 B-trees" (record type 8).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from xref.errors import CorruptFileError, UnsupportedError, XrefError
from xref.hdf5.btree2 import read_records
from xref.hdf5.dataspace import decode_dataspace
from xref.hdf5.datatype import Datatype, decode_datatype
from xref.hdf5.fractal_heap import FractalHeap
from xref.hdf5.metadata_reader import MetadataReader, ReadBudget, integer
from xref.hdf5.object_header import (
    ATTRIBUTE_INFO_MESSAGE,
    ATTRIBUTE_MESSAGE,
    DATASPACE_MESSAGE,
    DATATYPE_MESSAGE,
    IN_HEAP,
    SHARED,
    SharedMessages,
    walk_messages,
)

NAME_INDEX = 8
"""Type of the B-tree with the names of dense attributes."""

_RECORD = struct.Struct("<8sBII")  # heap ID, message flags, creation order, hash of the name
# Version, flags (reserved in version 1), sizes of name, datatype and dataspace. Version 3
# adds the name's character set, 1 byte.
_HEAD = struct.Struct("<BB3H")
_SHARED_DATATYPE, _SHARED_DATASPACE = 0x01, 0x02
_TRACKED_ORDER = 0x01  # flag of the Attribute Info message: a maximum creation index follows

OnError = Callable[[str, XrefError], None]


@dataclass(frozen=True, slots=True)
class RawAttribute:
    """An attribute with its data as stored."""

    name: str  # UTF-8; other bytes as surrogates
    datatype: Datatype
    shape: tuple[int, ...]
    is_null: bool  # a null dataspace has no elements
    data: bytes  # C order, as many bytes as type and shape need


def read_raw_attributes(
    source: MetadataReader,
    address: int,
    on_error: OnError | None = None,
    *,
    verify: bool = True,
) -> list[RawAttribute]:
    """Return all attributes of an object.

    Parameters
    ----------
    source : MetadataReader
        The file.
    address : int
        Address of the object header.
    on_error : callable, optional
        Called with the name of an attribute that cannot be decoded (empty if the name cannot be
        read) and the error; the attribute is left out. By default the error is raised.
    verify : bool
        Whether to check the checksum of the object header, as in
        `xref.hdf5.object_header.walk_messages`. Checksums of dense storage are always checked.

    Returns
    -------
    list of RawAttribute
        In the order of their messages; dense attributes in the order of their creation.

    Raises
    ------
    CorruptFileError
        If the header, or a structure to which it leads, contradicts the format.
    UnsupportedError
        If attributes lie in a heap with filters, or one has an unknown version or datatype.
    """
    shared = SharedMessages(source)
    attributes = []
    for read_body in _find_bodies(source, address, shared, verify):
        name = ""
        try:
            message = split_message(read_body(), f"{source.where}: attribute")
            name = message.name
            attributes.append(_decode(message, source, shared))
        except XrefError as error:
            if on_error is None:
                raise
            on_error(name, error)
    return attributes


def _find_bodies(
    source: MetadataReader, address: int, shared: SharedMessages, verify: bool
) -> Iterator[Callable[[], bytes]]:
    """Yield, for each attribute, a function that returns the body of its message."""
    # Bodies are read one by one, so that an error in one leaves the other attributes.
    for message_type, flags, body in walk_messages(source, address, verify=verify):
        if message_type == ATTRIBUTE_INFO_MESSAGE:
            yield from _find_dense_bodies(source, body, shared)
        elif message_type == ATTRIBUTE_MESSAGE and flags & SHARED:
            yield partial(shared.resolve, message_type, body)
        elif message_type == ATTRIBUTE_MESSAGE:
            yield partial(bytes, body)


def _find_dense_bodies(
    source: MetadataReader, info: bytes, shared: SharedMessages
) -> Iterator[Callable[[], bytes]]:
    """Yield such functions for the dense attributes of an Attribute Info message."""
    # Version 1, flags 1, maximum creation index 2 (if flag bit 0), address of the fractal
    # heap O, address of the B-tree of names O, that of creation order O (if bit 1).
    size = source.offset_size
    start = 4 if info[1:2] and info[1] & _TRACKED_ORDER else 2
    if len(info) < start + 2 * size or info[0]:
        source.fail(f"an attribute info message of {len(info)} bytes begins with {info[:2]!r}")
    heap_address, tree = integer(info, start, size), integer(info, start + size, size)
    if heap_address == source.undefined:
        return
    heap = FractalHeap(source, heap_address)
    records = [_RECORD.unpack(r) for r in read_records(source, tree, NAME_INDEX, _RECORD.size)]
    # By creation order. Where none is tracked it is equal in all records. A heap ID read from
    # its end then sorts by length and place in the heap, so that the order is reproducible.
    records.sort(key=lambda record: (record[2], record[0][::-1]))
    budget = ReadBudget(source, f"attributes in the fractal heap at {heap_address:#x}")
    for heap_id, flags, *_ in records:
        if flags & SHARED:
            yield partial(shared.resolve, ATTRIBUTE_MESSAGE, IN_HEAP + heap_id)
        else:
            yield partial(_read_object, heap, heap_id, budget)


def _read_object(heap: FractalHeap, heap_id: bytes, budget: ReadBudget) -> bytes:
    body = heap.get(heap_id)
    budget.spend(len(body))
    return body


class AttributeMessage(NamedTuple):
    """The parts of an attribute message."""

    name: str
    flags: int  # whether datatype and dataspace are shared; 0 in version 1
    datatype: bytes
    dataspace: bytes
    data: bytes  # everything behind the dataspace


def split_message(body: bytes, where: str) -> AttributeMessage:
    """Split the body of an attribute message into its parts; ``where`` begins each error."""
    if len(body) < _HEAD.size + 1:
        raise CorruptFileError(f"{where} message of {len(body)} bytes")
    version, flags, *sizes = _HEAD.unpack_from(body)
    if not 1 <= version <= 3:
        raise UnsupportedError(f"{where} message of version {version}")
    start, parts = _HEAD.size + (version == 3), []
    for size in sizes:
        parts.append(body[start : start + size])
        # Version 1 pads each part to a multiple of eight bytes, which its size leaves out.
        start += -(-size // 8) * 8 if version == 1 else size
    if start > len(body):
        raise CorruptFileError(
            f"{where} message of {len(body)} bytes has parts of {sizes} bytes"
        )
    name = parts[0].split(b"\0")[0].decode("utf-8", "surrogateescape")
    flags = 0 if version == 1 else flags
    return AttributeMessage(name, flags, parts[1], parts[2], body[start:])


def _decode(
    message: AttributeMessage, source: MetadataReader, shared: SharedMessages
) -> RawAttribute:
    where = f"{source.where}: attribute {message.name!r}"
    datatype_body, dataspace_body = message.datatype, message.dataspace
    if message.flags & _SHARED_DATATYPE:
        datatype_body = shared.resolve(DATATYPE_MESSAGE, datatype_body)
    if message.flags & _SHARED_DATASPACE:
        dataspace_body = shared.resolve(DATASPACE_MESSAGE, dataspace_body)
    datatype = decode_datatype(datatype_body, where)
    space = decode_dataspace(dataspace_body, source.length_size, where)
    nbytes = space.size * datatype.itemsize
    if nbytes > len(message.data):
        raise CorruptFileError(
            f"{where} has the shape {space.shape} and elements of {datatype.itemsize} "
            f"bytes, and {len(message.data)} bytes of data"
        )
    data = message.data[:nbytes]
    return RawAttribute(message.name, datatype, space.shape, space.is_null, data)
