"""Attributes of an object, from bytes: name, type, shape and raw data.

In: the address of an object header and bytes of the file. Out: `RawAttribute` values.

1. Few attributes are messages of the object header.
2. Many are dense: the Attribute Info message names a B-tree of the names, whose
   records give heap IDs, and a fractal heap of the attribute messages.
3. Each message holds datatype, dataspace and data; datatype and dataspace may be
   shared messages again.

Source: HDF5 File Format Specification 4.0, "The Attribute Message", "The Attribute
Info Message" and "Disk Format: Level 1A2 - Version 2 B-trees" (record type 8).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

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
"""Type of the B-tree that has the names of dense attributes."""

_RECORD = struct.Struct("<8sBII")  # heap ID, flags, creation order, hash of the name
_HEAD = struct.Struct("<BB3H")  # version, flags, bytes of name, datatype and dataspace
_SHARED_DATATYPE, _SHARED_DATASPACE = 0x01, 0x02
_TRACKED = 0x01  # flag of the Attribute Info message: it counts attributes

OnError = Callable[[str, XrefError], None]


@dataclass(frozen=True, slots=True)
class RawAttribute:
    """An attribute with its data as stored."""

    name: str  # UTF-8; other bytes as surrogates
    datatype: Datatype
    shape: tuple[int, ...]
    is_null: bool  # its dataspace has no elements at all
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
    source : Source
        The file.
    address : int
        Address of the object header.
    on_error : callable, optional
        Called with the name of an attribute that cannot be decoded, empty where that
        is unknown, and the error; the attribute is left out. By default the error
        is raised.
    verify : bool
        Whether to check the checksum of the object header, as in
        `xref.hdf5.object_header.walk_messages`. Those of dense storage are always checked.

    Returns
    -------
    list of RawAttribute
        In the order of their messages, or of their creation where storage is dense.

    Raises
    ------
    CorruptFileError
        If the header, or a structure that it names, contradicts the format.
    UnsupportedError
        If attributes lie in a heap with filters.

    Notes
    -----
    HDF5 File Format Specification 4.0, "The Attribute Message" and "The Attribute Info
    Message".
    """
    shared = SharedMessages(source)
    found = []
    for body in _read_bodies(source, address, shared, verify):
        decoder = _Decoder(source, shared)
        try:
            found.append(decoder.decode(body()))
        except XrefError as error:
            if on_error is None:
                raise
            on_error(decoder.name, error)
    return found


def _read_bodies(
    source: MetadataReader, address: int, shared: SharedMessages, verify: bool
) -> Iterator[Callable[[], bytes]]:
    """Yield, for each attribute, what returns the body of its message."""
    for kind, flags, body in walk_messages(source, address, verify=verify):
        if kind == ATTRIBUTE_INFO_MESSAGE:
            yield from _read_dense(source, body, shared)
        elif kind == ATTRIBUTE_MESSAGE:
            yield (
                partial(shared.resolve, kind, body) if flags & SHARED else partial(bytes, body)
            )


def _read_dense(
    source: MetadataReader, info: bytes, shared: SharedMessages
) -> Iterator[Callable[[], bytes]]:
    """Yield what `_read_bodies` does, for the attributes of an Attribute Info message."""
    size = source.offset_size
    at = 4 if info[1:2] and info[1] & _TRACKED else 2
    if len(info) < at + 2 * size or info[0]:
        source.fail(f"an attribute info message of {len(info)} bytes begins with {info[:2]!r}")
    heap_address, tree = integer(info, at, size), integer(info, at + size, size)
    if heap_address == source.undefined:
        return
    heap = FractalHeap(source, heap_address)
    records = [_RECORD.unpack(r) for r in read_records(source, tree, NAME_INDEX, _RECORD.size)]
    # Without a creation order, the place in the heap is the order of writing.
    records.sort(key=lambda record: (record[2], record[0][::-1]))
    budget = ReadBudget(source, f"attributes in the fractal heap at {heap_address:#x}")
    for heap_id, flags, *_ in records:
        if flags & SHARED:
            yield partial(shared.resolve, ATTRIBUTE_MESSAGE, IN_HEAP + heap_id)
        else:
            yield partial(_get, heap, heap_id, budget)


def _get(heap: FractalHeap, heap_id: bytes, budget: ReadBudget) -> bytes:
    body = heap.get(heap_id)
    budget.spend(len(body))
    return body


class _Decoder:
    """Decodes one attribute message; ``name`` is set as soon as it is known."""

    def __init__(self, source: MetadataReader, shared: SharedMessages) -> None:
        self._source = source
        self._shared = shared
        self.name = ""

    def decode(self, body: bytes) -> RawAttribute:
        where = f"{self._source.where}: attribute"
        if len(body) < _HEAD.size + 1:
            raise CorruptFileError(f"{where} message of {len(body)} bytes")
        version, flags, *sizes = _HEAD.unpack_from(body)
        if not 1 <= version <= 3:
            raise UnsupportedError(f"{where} message of version {version}")
        if version == 1:
            flags = 0
        at, pieces = _HEAD.size + (version == 3), []
        for size in sizes:
            pieces.append(body[at : at + size])
            at += -(-size // 8) * 8 if version == 1 else size
        if at > len(body):
            raise CorruptFileError(
                f"{where} message of {len(body)} bytes has parts of {sizes} bytes"
            )
        name, datatype_body, dataspace_body = pieces
        self.name = name.split(b"\0")[0].decode("utf-8", "surrogateescape")
        where = f"{where} {self.name!r}"
        if flags & _SHARED_DATATYPE:
            datatype_body = self._shared.resolve(DATATYPE_MESSAGE, datatype_body)
        if flags & _SHARED_DATASPACE:
            dataspace_body = self._shared.resolve(DATASPACE_MESSAGE, dataspace_body)
        datatype = decode_datatype(datatype_body, where)
        space = decode_dataspace(dataspace_body, self._source.length_size, where)
        nbytes = space.size * datatype.itemsize
        if nbytes > len(body) - at:
            raise CorruptFileError(
                f"{where} has the shape {space.shape} and elements of {datatype.itemsize} "
                f"bytes, and {len(body) - at} bytes of data"
            )
        return RawAttribute(
            self.name, datatype, space.shape, space.is_null, body[at : at + nbytes]
        )
