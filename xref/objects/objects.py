"""Objects of a file through h5py, by address.

In: a `StoredObject`. Out: h5py objects for the caller's immediate use; each object keeps its
file open. `xref.objects.links` opens objects by path, `xref.objects.paths` finds their paths.

The object header is checked before HDF5 dereferences an address, because HDF5 crashes on some
damaged headers.
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
from xref.errors import DanglingReferenceError, ExternalFileError, WrongTargetError, XrefError
from xref.objects.parsing import dataset_table, file_format
from xref.objects.stored_object import StoredObject

Object: TypeAlias = h5py.Dataset | h5py.Group | h5py.Datatype

_IMAGE_REFERENCES = 1024  # references that one image in memory holds
_CACHED_REFERENCES = 1 << 16

REFERENCE_BATCH = 1 << 14
"""References that are made at once; the cache holds more than these."""


@lru_cache(maxsize=1)
def _reference_image() -> tuple[bytes, int]:
    """Return a small HDF5 file of null object references, and their offset in bytes."""
    with h5py.File("xref-references", "w", driver="core", backing_store=False) as file:
        properties = h5p.create(h5p.DATASET_CREATE)
        properties.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        space = h5s.create_simple((_IMAGE_REFERENCES,))
        dataset = h5d.create(file.id, b"r", h5t.STD_REF_OBJ, space, dcpl=properties)
        offset = dataset.get_offset()
        file.flush()
        return file.id.get_file_image(), offset


_made: OrderedDict[int, h5py.Reference] = OrderedDict()  # by address
_made_lock = threading.Lock()


def _references(addresses: Sequence[int]) -> list[h5py.Reference]:
    """Make h5py object references from addresses.

    h5py has no constructor for references, so it reads them from the image of a file in
    memory, in which the addresses are written. A reference is 8 bytes, belongs to no file,
    and is cached.
    """
    with _made_lock:
        missing = [a for a in dict.fromkeys(addresses) if a not in _made]
        image, offset = _reference_image()
        for begin in range(0, len(missing), _IMAGE_REFERENCES):
            part = missing[begin : begin + _IMAGE_REFERENCES]
            patched = bytearray(image)
            struct.pack_into(f"<{len(part)}Q", patched, offset, *part)
            # h5py's File object costs more than all references of the image.
            file = h5f.open_file_image(bytes(patched))
            dataset = h5d.open(file, b"r")
            references = np.empty(_IMAGE_REFERENCES, dtype=h5py.ref_dtype)
            dataset.read(h5s.ALL, h5s.ALL, references)
            file.close()
            _made.update(zip(part, references.tolist(), strict=False))
        out = [_made[a] for a in addresses]
        while len(_made) > _CACHED_REFERENCES:
            _made.popitem(last=False)
        return out


def cache_h5py_references(addresses: Sequence[int]) -> None:
    """Make h5py references to many objects at once, before the objects are opened."""
    _references(addresses)


def _explain_header(stored: StoredObject) -> str:
    """Say why no object header can be at an address; empty if there may be one.

    Source: HDF5 File Format Specification 4.0, "Data Object Header Prefix".
    """
    form = file_format(stored.location)
    position = form.base_address + stored.address
    if not 0 < stored.address <= form.file_nbytes - form.base_address - 16:
        return f"is outside the file ({form.file_nbytes} bytes)"
    head = bytearray(16)
    storage.metadata_bytes(stored.location).read_into(position, memoryview(head))
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
        If there is no object at the address.
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
    """Make an h5py object that keeps its file open as long as the object lives."""
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

    The kind of an object in a file that may not be opened is "dangling".
    """
    try:
        return kind_of(open_object(stored))
    except (DanglingReferenceError, ExternalFileError):
        return "dangling"


def object_kinds(
    location: storage.FileLocation, address: npt.NDArray[np.uint64]
) -> npt.NDArray[np.object_]:
    """Return the `object_kind` of many objects, shape ``(n,)``.

    Of datasets with equal types, fill values and filters, only the first one is opened.
    """
    table = dataset_table(location, address)
    out = np.full(len(address), "", dtype=object)
    firsts = np.unique(table.first_alike[table.known])
    for first in firsts.tolist():
        if object_kind(StoredObject(location, int(address[first]))) == "dataset":
            out[table.known & (table.first_alike == first)] = "dataset"
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
        If the object is a group or a datatype.
    """
    item = open_object(stored)
    if not isinstance(item, h5py.Dataset):
        raise WrongTargetError(
            f"{stored.filename}: the object at {stored.address:#x} is a {kind_of(item)}, "
            "not a dataset"
        )
    return item


def decode_name(value: bytes | str) -> str:
    """Decode a name or string of the file; bytes that are not UTF-8 survive a round trip."""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")
