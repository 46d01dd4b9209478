"""Objects of a file through h5py: by address and by link.

In: a `FileLocation` with an address or a path. Out: h5py objects for the caller's
immediate use, each of which keeps its file open, and plain addresses. `xref.objects.paths` has
the paths of objects.

Addresses are checked before HDF5 dereferences them, and groups before it lists
them: some that contradict each other crash it.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5f, h5g, h5p, h5r, h5s, h5t

from xref import storage
from xref.errors import (
    DanglingReferenceError,
    ExternalFileError,
    WrongTargetError,
    XrefError,
)
from xref.objects.parsing import dataset_table, file_format
from xref.objects.stored_object import StoredObject

Object: TypeAlias = h5py.Dataset | h5py.Group | h5py.Datatype


_SLOTS = 1024

_KEPT_REFERENCES = 1 << 16


REFERENCE_BATCH = 1 << 14
"""Objects to prepare references to in one go; all of them stay at hand."""


@lru_cache(maxsize=1)
def _reference_image() -> tuple[bytes, int]:
    """Return a small HDF5 file of null object references, and where they begin."""
    with h5py.File("xref-references", "w", driver="core", backing_store=False) as file:
        properties = h5p.create(h5p.DATASET_CREATE)
        properties.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        space = h5s.create_simple((_SLOTS,))
        dataset = h5d.create(file.id, b"r", h5t.STD_REF_OBJ, space, dcpl=properties)
        offset = dataset.get_offset()
        file.flush()
        return file.id.get_file_image(), offset


_made: OrderedDict[int, h5py.Reference] = OrderedDict()

_made_lock = threading.Lock()


def _references(addresses: Sequence[int]) -> list[h5py.Reference]:
    """Make h5py object references from addresses.

    h5py has no constructor for them; it reads them from an image in memory whose
    slots hold the addresses. A reference is 8 bytes, bound to no file, and is kept
    for the next time.
    """
    with _made_lock:
        missing = [a for a in dict.fromkeys(addresses) if a not in _made]
        image, offset = _reference_image()
        for begin in range(0, len(missing), _SLOTS):
            part = missing[begin : begin + _SLOTS]
            patched = bytearray(image)
            struct.pack_into(f"<{len(part)}Q", patched, offset, *part)
            # h5py's File object costs more than all references of the image.
            file = h5f.open_file_image(bytes(patched))
            dataset = h5d.open(file, b"r")
            found = np.empty(_SLOTS, dtype=h5py.ref_dtype)
            dataset.read(h5s.ALL, h5s.ALL, found)
            file.close()
            _made.update(zip(part, found.tolist(), strict=False))
        out = [_made[a] for a in addresses]
        while len(_made) > _KEPT_REFERENCES:
            _made.popitem(last=False)
        return out


def cache_h5py_references(addresses: Sequence[int]) -> None:
    """Make references to many objects at once, before they are opened one by one."""
    _references(addresses)


def _explain_header(stored: StoredObject) -> str:
    """Say why no object header can be at an address; empty if one may be.

    Source: HDF5 File Format Specification 4.0, "Data Object Header Prefix".
    """
    form = file_format(stored.location)
    position = form.base_address + stored.address
    if not 0 < stored.address <= form.file_nbytes - form.base_address - 16:
        return f"is outside the file ({form.file_nbytes} bytes)"
    head = bytearray(16)
    storage.FileBytes(stored.location).read_into(position, memoryview(head))
    if head[:4] == b"OHDR":
        return "" if head[4] == 2 else f"has an object header of version {head[4]}"
    version, reserved, n_messages, n_links, nbytes = struct.unpack_from("<BBHII", head)
    if version != 1 or reserved or not n_messages or not n_links:
        return "has no object header"
    if nbytes > form.file_nbytes - position:
        return f"has an object header of {nbytes} bytes, past the end of the file"
    return ""


def open_object(stored: StoredObject) -> Object:
    """Open one object by address.

    Raises
    ------
    DanglingReferenceError
        If there is no object.
    """
    location, address = stored.location, stored.address
    file = storage.open_file(location)
    problem = _explain_header(stored)
    if problem:
        raise DanglingReferenceError(
            f"{location.filename}: address {address:#x} {problem}; the reference is dangling"
        )
    (reference,) = _references([address])
    try:
        identifier = h5r.dereference(reference, file.id)
    except XrefError:
        raise
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise DanglingReferenceError(
            f"{location.filename}: no object at address {address:#x}: {error}"
        ) from error
    if identifier is None:
        raise DanglingReferenceError(f"{location.filename}: no object at address {address:#x}")
    item = wrap_identifier(identifier, file)
    item._xref_stored = stored.without_open_file()
    return item


def wrap_identifier(identifier: Any, file: h5py.File) -> Object:
    """Make an h5py object that keeps its file open for as long as it lives."""
    item: Object
    if isinstance(identifier, h5d.DatasetID):
        item = h5py.Dataset(identifier)
    elif isinstance(identifier, h5g.GroupID):
        item = h5py.Group(identifier)
    else:
        item = h5py.Datatype(identifier)
    item._xref_file = file
    return item


def kind_of(item: Object) -> str:
    """Return "dataset", "group" or "datatype"."""
    if isinstance(item, h5py.Dataset):
        return "dataset"
    return "group" if isinstance(item, h5py.Group) else "datatype"


def object_kind(stored: StoredObject) -> str:
    """Return "dataset", "group", "datatype", or "dangling" if there is no object.

    An object in a file that may not be opened is none.
    """
    try:
        return kind_of(open_object(stored))
    except (DanglingReferenceError, ExternalFileError):
        return "dangling"


def object_kinds(
    location: storage.FileLocation, address: npt.NDArray[np.uint64]
) -> npt.NDArray[np.object_]:
    """Return what `object_kind` says of many objects, shape ``(n,)``.

    Of datasets of one kind, only one is opened.
    """
    table = dataset_table(location, address)
    out = np.full(len(address), "", dtype=object)
    firsts = np.unique(table.kind[table.known])
    for first in firsts.tolist():
        if object_kind(StoredObject(location, int(address[first]))) == "dataset":
            out[table.known & (table.kind == first)] = "dataset"
    for begin in range(0, len(address), REFERENCE_BATCH):
        part = out[begin : begin + REFERENCE_BATCH]
        rest = np.flatnonzero(part == "")
        addresses = address[begin + rest].tolist()
        cache_h5py_references(addresses)
        part[rest] = [object_kind(StoredObject(location, a)) for a in addresses]
    return out


def open_dataset(stored: StoredObject) -> h5py.Dataset:
    """Open a dataset by address.

    Raises
    ------
    DanglingReferenceError
        If there is no object.
    WrongTargetError
        If it is none.
    """
    item = open_object(stored)
    if not isinstance(item, h5py.Dataset):
        raise WrongTargetError(
            f"{stored.filename}: the object at {stored.address:#x} is a {kind_of(item)}, "
            "not a dataset"
        )
    return item


def decode_name(value: bytes | str) -> str:
    """Decode a name or string of the file; odd bytes survive a round trip."""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")
