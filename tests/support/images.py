"""HDF5 files written into memory, their bytes, and what h5py says is stored in them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5f, h5o, h5p, h5s, h5t

from xref.hdf5.datatype import Datatype
from xref.hdf5.metadata_reader import MetadataReader

LIBVERS = {
    "earliest": (h5f.LIBVER_EARLIEST, h5f.LIBVER_LATEST),
    "v108": (h5f.LIBVER_V18, h5f.LIBVER_V18),
    "v110": (h5f.LIBVER_V110, h5f.LIBVER_V110),
    "v112": (h5f.LIBVER_V112, h5f.LIBVER_V112),
    "latest": (h5f.LIBVER_LATEST, h5f.LIBVER_LATEST),
}

CLASSES = {
    h5t.INTEGER: "integer",
    h5t.FLOAT: "float",
    h5t.TIME: "time",
    h5t.STRING: "string",
    h5t.BITFIELD: "bitfield",
    h5t.OPAQUE: "opaque",
    h5t.COMPOUND: "compound",
    h5t.REFERENCE: "reference",
    h5t.ENUM: "enum",
    h5t.VLEN: "vlen",
    h5t.ARRAY: "array",
}
if hasattr(h5t, "COMPLEX"):
    CLASSES[h5t.COMPLEX] = "complex"

CHARSETS = {h5t.CSET_ASCII: "ascii", h5t.CSET_UTF8: "utf-8"}
PADDINGS = {
    h5t.STR_NULLTERM: "null-terminated",
    h5t.STR_NULLPAD: "null-padded",
    h5t.STR_SPACEPAD: "space-padded",
}

# What h5py has no call for. dlsym also searches the libraries that a module needs.
LIBHDF5 = ctypes.CDLL(h5py.h5.__file__)


@dataclass
class Stored:
    """One attribute as h5py reads it without conversion."""

    description: tuple[Any, ...]  # of its type, in the words of `describe`
    shape: tuple[int, ...] | None  # None for a null dataspace
    data: bytes | None  # None where memory and file differ


@dataclass
class Image:
    """The bytes of a file, the addresses of its objects and their attributes."""

    data: bytes
    sizes: tuple[int, int]
    base: int = 0
    addresses: dict[str, int] = field(default_factory=dict)
    attributes: dict[str, dict[str, Stored]] = field(default_factory=dict)
    name: str = "image.h5"

    def source(self, data: bytes | None = None) -> MetadataReader:
        data = (self.data if data is None else data)[self.base :]
        return MetadataReader(lambda a, n: data[a : a + n], *self.sizes, len(data), self.name)


def write_image(
    fill: Callable[[h5py.File], None],
    *,
    libver: str = "earliest",
    sizes: tuple[int, int] = (8, 8),
    userblock: int = 0,
    prepare: Callable[[Any], None] = lambda properties: None,
) -> Image:
    """Write a file in memory; ``prepare`` gets its creation properties."""
    properties = h5p.create(h5p.FILE_CREATE)
    properties.set_sizes(*sizes)
    properties.set_userblock(userblock)
    prepare(properties)
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fapl_core(backing_store=False)
    access.set_libver_bounds(*LIBVERS[libver])
    with h5py.File(h5f.create(b"image.h5", h5f.ACC_TRUNC, properties, access)) as file:
        fill(file)
        file.flush()
        # The image begins behind the user block.
        return _describe_file(file, bytes(userblock) + file.id.get_file_image())


def read_image(filename: Path) -> Image:
    with h5py.File(filename) as file:
        return _describe_file(file, filename.read_bytes(), filename.name)


def _describe_file(file: h5py.File, data: bytes, name: str = "image.h5") -> Image:
    properties = file.id.get_create_plist()
    image = Image(data, properties.get_sizes(), properties.get_userblock(), name=name)
    paths = ["/"]
    h5o.visit(file.id, lambda path: paths.append(path.decode("utf-8", "surrogateescape")))
    for path in paths:
        opened = h5o.open(file.id, path.encode("utf-8", "surrogateescape"))
        image.addresses[path] = h5o.get_info(opened).addr
        image.attributes[path] = stored_attributes(opened)
    return image


def stored_attributes(opened: Any) -> dict[str, Stored]:
    """Read all attributes of an object with their own type as the type in memory."""
    names: list[bytes] = []
    h5a.iterate(opened, names.append)
    found = {}
    for name in names:
        attribute = h5a.open(opened, name)
        type_id, space = attribute.get_type(), attribute.get_space()
        is_null = space.get_simple_extent_type() == h5s.NULL
        data = None
        if not is_null and is_plain(type_id):
            values = np.zeros(space.shape, f"V{type_id.get_size()}")
            attribute.read(values, mtype=type_id)
            data = values.tobytes()
        shape = None if is_null else space.shape
        stored = Stored(describe_h5py(type_id), shape, data)
        found[name.decode("utf-8", "surrogateescape")] = stored
    return found


def parts(type_id: h5t.TypeID) -> list[h5t.TypeID]:
    """Types directly inside a type."""
    if isinstance(type_id, h5t.TypeCompoundID):
        return [type_id.get_member_type(i) for i in range(type_id.get_nmembers())]
    if type_id.get_class() in (h5t.ARRAY, h5t.ENUM, h5t.VLEN):
        return [type_id.get_super()]
    return []


def is_plain(type_id: h5t.TypeID) -> bool:
    """Whether elements have the same bytes in memory as in the file."""
    if type_id.get_class() in (h5t.VLEN, h5t.REFERENCE):
        return False
    if isinstance(type_id, h5t.TypeStringID) and type_id.is_variable_str():
        return False
    return all(is_plain(part) for part in parts(type_id))


def describe_h5py(type_id: h5t.TypeID) -> tuple[Any, ...]:
    """Say what h5py knows about a type, in the words of `describe`."""
    kind = CLASSES[type_id.get_class()]
    if kind == "string" and type_id.is_variable_str():
        kind = "vlen string"
    details: tuple[Any, ...] = ()
    if kind in ("string", "vlen string"):
        details = CHARSETS[type_id.get_cset()], PADDINGS[type_id.get_strpad()]
    elif kind == "opaque":
        details = (type_id.get_tag(),)
    elif kind == "enum":
        names = [type_id.get_member_name(i) for i in range(type_id.get_nmembers())]
        values = [type_id.get_member_value(i) for i in range(type_id.get_nmembers())]
        details = (*zip([name.decode() for name in names], values, strict=True),)
    elif kind == "array":
        details = type_id.get_array_dims()
    elif kind == "reference":
        # H5Tequal tells types in a file from types in memory; the encoded one does not.
        code = type_id.encode()[3] & 0xF
        details = ({0: "object", 1: "region"}.get(code, "std"),)
    elif kind == "compound":
        n = range(type_id.get_nmembers())
        names = [type_id.get_member_name(i).decode("utf-8", "surrogateescape") for i in n]
        offsets = [type_id.get_member_offset(i) for i in n] if is_plain(type_id) else []
        details = (*names, *offsets)
    size = type_id.get_size() if is_plain(type_id) else None
    return kind, size, details, [describe_h5py(part) for part in parts(type_id)]


def describe(datatype: Datatype) -> tuple[Any, ...]:
    """Say what was decoded; sizes only where memory and file agree on them."""
    kind = "vlen string" if datatype.is_string else datatype.type_class
    plain = has_plain_bytes(datatype)
    details: tuple[Any, ...] = ()
    inside = [f.datatype for f in datatype.fields]
    if kind in ("string", "vlen string"):
        details = datatype.charset, datatype.padding
    elif kind == "opaque":
        details = (datatype.tag.encode(),)
    elif kind == "enum":
        details = datatype.members
    elif kind == "array":
        details = datatype.shape
    elif kind == "reference":
        details = (datatype.reference,)
    elif kind == "compound":
        offsets = [f.offset for f in datatype.fields] if plain else []
        details = (*(f.name for f in datatype.fields), *offsets)
    if kind in ("array", "enum", "vlen"):
        inside = [datatype.base]
    size = datatype.itemsize if plain else None
    return kind, size, details, [describe(part) for part in inside]


def has_plain_bytes(datatype: Datatype) -> bool:
    inside = [f.datatype for f in datatype.fields] + [datatype.base] * (
        datatype.base is not None
    )
    return datatype.type_class not in ("vlen", "reference") and all(
        map(has_plain_bytes, inside)
    )
