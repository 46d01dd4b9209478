"""Datasets and attributes of any type that HDF5 has, and what their elements are.

A `Form` is a type with the bytes that its values have in memory; `write_dataset` and
`write_attribute` hand those to the HDF5 library of h5py's wheel (`stdrefs.call`), so
that types are written which h5py cannot write. Values are plain: numbers, text, lists
for arrays and sequences, dictionaries for compounds, and a `Ref` or None for references.
`differences` compares what xref reads with them.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
import stdrefs
from h5py import h5a, h5d, h5p, h5s, h5t

import xref


@dataclass(frozen=True)
class Ref:
    """A reference, by what it points at."""

    path: str
    region: tuple[tuple[int, int], ...] | None = None  # start and stop along each axis
    attribute: str | None = None
    dangling: bool = False


class ElementEncoder:
    """What values point at while they are written, and the references among them."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self.kept: list[Any] = []
        self.slots: list[int] = []
        self.known: dict[tuple[str, Ref], bytes] = {}

    def __enter__(self) -> ElementEncoder:
        return self

    def __exit__(self, *error: object) -> None:
        for at in self.slots:
            stdrefs.call("H5Rdestroy", at)

    def keep(self, data: bytes) -> int:
        """Return the address of a copy of bytes."""
        buffer = ctypes.create_string_buffer(data, max(len(data), 1))
        self.kept.append(buffer)
        return ctypes.addressof(buffer)

    def old_reference(self, ref: Ref, kind: str) -> bytes:
        """Return a reference of HDF5 before 1.12 as it is in memory."""
        key = (kind, ref)
        if key not in self.known:
            target = self.file[ref.path]
            dtype = h5py.ref_dtype if kind == "object" else h5py.regionref_dtype
            value = target.ref
            if kind == "region":
                assert ref.region is not None
                value = target.regionref[tuple(slice(*side) for side in ref.region)]
            helper = h5d.create(
                self.file.id, None, h5t.py_create(dtype, logical=True), h5s.create(h5s.SCALAR)
            )
            given = np.empty((), dtype=dtype)
            given[()] = value
            helper.write(h5s.ALL, h5s.ALL, given)
            raw = np.zeros((), dtype=f"V{helper.get_type().get_size()}")
            helper.read(h5s.ALL, h5s.ALL, raw, mtype=helper.get_type())
            self.known[key] = raw.tobytes()
        return self.known[key]

    def std_reference(self, ref: Ref) -> bytes:
        """Return an ``H5T_STD_REF`` as it is in memory."""
        if ref.attribute is not None:
            make = stdrefs.to_attribute(self.file, ref.path, ref.attribute)
        elif ref.region is not None:
            make = stdrefs.to_region(self.file, ref.path, self.space(ref))
        else:
            make = stdrefs.to_object(self.file, ref.path)
        at = self.keep(bytes(stdrefs.REFERENCE_NBYTES))
        make(at)
        self.slots.append(at)
        return ctypes.string_at(at, stdrefs.REFERENCE_NBYTES)

    def space(self, ref: Ref) -> h5s.SpaceID:
        """Return the selection of a region."""
        assert ref.region is not None
        space = self.file[ref.path].id.get_space()
        space.select_hyperslab(
            tuple(a for a, _ in ref.region), tuple(b - a for a, b in ref.region)
        )
        return space


@dataclass(frozen=True)
class Form:
    """A type, how its values are put into memory, and how read ones are compared."""

    make: Callable[[], h5t.TypeID]
    put: Callable[[Any, ElementEncoder], bytes]
    same: Callable[[Any, Any], bool]
    nbytes: int  # in memory
    members: dict[str, Form] = field(default_factory=dict)


def number(dtype: Any) -> Form:
    """Numbers, times of NumPy and opaque bytes, by their NumPy type."""
    dtype = np.dtype(dtype)

    def same(read: Any, value: Any) -> bool:
        read = np.asarray(read)
        native = read.dtype.newbyteorder("=") == dtype.newbyteorder("=")
        return native and read == np.asarray(value, dtype)

    return Form(
        lambda: h5t.py_create(dtype, logical=True),
        lambda value, _: np.asarray(value, dtype).tobytes(),
        same,
        dtype.itemsize,
    )


def boolean() -> Form:
    return Form(
        lambda: h5t.py_create(np.dtype(bool), logical=True),
        lambda value, _: bytes([value]),
        lambda read, value: isinstance(read, np.bool_) and bool(read) == value,
        1,
    )


def fixed_text(nbytes: int, padding: int) -> Form:
    """Text of fixed length: the value is its bytes as stored, and the ones that count."""

    def make() -> h5t.TypeID:
        datatype = h5t.C_S1.copy()
        datatype.set_size(nbytes)
        datatype.set_strpad(padding)
        return datatype

    return Form(
        make,
        lambda value, _: value[0].ljust(nbytes, b" " if padding == h5t.STR_SPACEPAD else b"\0"),
        lambda read, value: isinstance(read, bytes) and read == value[1],
        nbytes,
    )


def text(charset: int = h5t.CSET_UTF8) -> Form:
    """Text of variable length, given as bytes; None is a null pointer."""

    def make() -> h5t.TypeID:
        datatype = h5t.C_S1.copy()
        datatype.set_size(h5t.VARIABLE)
        datatype.set_cset(charset)
        return datatype

    def put(value: bytes | None, memory: ElementEncoder) -> bytes:
        return struct.pack("<Q", 0 if value is None else memory.keep(value + b"\0"))

    return Form(make, put, lambda read, value: read == (value or b""), 8)


def reference(kind: str) -> Form:
    """References: "object", "region" or "std"."""
    make = {
        "object": lambda: h5t.STD_REF_OBJ.copy(),
        "region": lambda: h5t.STD_REF_DSETREG.copy(),
        "std": stdrefs.std_type,
    }[kind]
    nbytes = {"object": 8, "region": 12, "std": stdrefs.REFERENCE_NBYTES}[kind]

    def put(value: Ref | None, memory: ElementEncoder) -> bytes:
        if value is None:
            return bytes(nbytes)
        if kind == "std":
            return memory.std_reference(value)
        return memory.old_reference(value, kind)

    def same(read: Any, value: Ref | None) -> bool:
        if value is None:
            return isinstance(read, REFERENCES) and not read and read.kind == "null"
        if value.dangling:
            return read.kind == "dangling"
        if read.path != value.path:
            return False
        if value.attribute is not None:
            return isinstance(read, xref.AttributeReference) and read.name == value.attribute
        if value.region is None:
            return isinstance(read, xref.ObjectReference)
        box = tuple(zip(*value.region, strict=True))
        return isinstance(read, xref.RegionReference) and read.bounds == box

    return Form(make, put, same, nbytes)


REFERENCES = (xref.ObjectReference, xref.RegionReference, xref.AttributeReference)


def compound(**members: Form) -> Form:
    """Compounds; members begin at multiples of eight bytes, so there are gaps."""
    offsets, size = {}, 0
    for name, form in members.items():
        offsets[name], size = size, size + -(-form.nbytes // 8) * 8

    def make() -> h5t.TypeID:
        made = stdrefs.call("H5Tcreate", h5t.COMPOUND, size)
        for name, form in members.items():
            member = form.make()  # closed with its last name
            stdrefs.call("H5Tinsert", made, name.encode(), offsets[name], member.id)
        return h5t.TypeID(made)

    def put(value: dict[str, Any], memory: ElementEncoder) -> bytes:
        out = bytearray(size)
        for name, form in members.items():
            out[offsets[name] : offsets[name] + form.nbytes] = form.put(value[name], memory)
        return bytes(out)

    def same(read: Any, value: dict[str, Any]) -> bool:
        if not isinstance(read, np.void) or read.dtype.names != tuple(members):
            return False
        return all(form.same(read[name], value[name]) for name, form in members.items())

    return Form(make, put, same, size, members)


def array(base: Form, *shape: int) -> Form:
    """Arrays of one shape; the value is a flat list."""

    def same(read: Any, value: Sequence[Any]) -> bool:
        if not isinstance(read, np.ndarray) or read.shape[: len(shape)] != shape:
            return False
        places = list(np.ndindex(shape))
        return all(base.same(read[i], v) for i, v in zip(places, value, strict=True))

    return Form(
        lambda: h5t.array_create(base.make(), shape),
        lambda value, memory: b"".join(base.put(v, memory) for v in value),
        same,
        math.prod(shape) * base.nbytes,
    )


def sequence(base: Form) -> Form:
    """Sequences of any length."""

    def make() -> h5t.TypeID:
        inner = base.make()  # closed with its last name
        return h5t.TypeID(stdrefs.call("H5Tvlen_create", inner.id))

    def put(value: Sequence[Any], memory: ElementEncoder) -> bytes:
        data = b"".join(base.put(v, memory) for v in value)
        return struct.pack("<QQ", len(value), memory.keep(data) if value else 0)

    def same(read: Any, value: Sequence[Any]) -> bool:
        return (
            isinstance(read, np.ndarray)
            and read.shape[:1] == (len(value),)
            and all(base.same(r, v) for r, v in zip(read, value, strict=True))
        )

    return Form(make, put, same, 16)


def space_of(shape: tuple[int, ...]) -> h5s.SpaceID:
    """Return a dataspace that cannot grow."""
    return h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)


def write_dataset(
    group: h5py.Group,
    name: str,
    form: Form,
    values: Sequence[Any],
    shape: tuple[int, ...],
    *,
    chunks: tuple[int, ...] | None = None,
    filters: Sequence[str] = (),
    compact: bool = False,
    rows: int | None = None,
    fill: Any = None,
) -> None:
    """Write a dataset of the first elements in C order; ``rows`` of its first axis only."""
    properties = h5p.create(h5p.DATASET_CREATE)
    if chunks:
        properties.set_chunk(chunks)
    for each in filters:
        arguments = {"deflate": (4,)}.get(each, ())
        getattr(properties, f"set_{each}")(*arguments)
    if compact:
        properties.set_layout(h5d.COMPACT)
    datatype = form.make()
    with ElementEncoder(group.file) as memory:
        if fill is not None:
            at = memory.keep(form.put(fill, memory))
            stdrefs.call("H5Pset_fill_value", properties.id, datatype.id, at)
        dataset = h5d.create(group.id, name.encode(), datatype, space_of(shape), properties)
        inside, written = dataset.get_space(), shape
        if rows is not None:
            written = (rows, *shape[1:])
            inside.select_hyperslab((0,) * len(shape), written)
        n = math.prod(written)
        data = memory.keep(b"".join(form.put(v, memory) for v in values[:n]))
        if n:
            in_memory = space_of(written)
            stdrefs.call("H5Dwrite", dataset.id, datatype.id, in_memory.id, inside.id, 0, data)


def write_attribute(
    item: Any, name: str, form: Form, values: Sequence[Any], shape: tuple[int, ...]
) -> None:
    """Write an attribute."""
    datatype = form.make()
    attribute = h5a.create(item.id, name.encode(), datatype, space_of(shape))
    with ElementEncoder(item.file) as memory:
        data = b"".join(form.put(v, memory) for v in values[: math.prod(shape)])
        stdrefs.call("H5Awrite", attribute.id, datatype.id, memory.keep(data))


def differences(read: Any, form: Form, values: Sequence[Any], shape: tuple[int, ...]) -> str:
    """Say which element is not what was written; empty when there is none."""
    read = np.asarray(read)
    if read.shape[: len(shape)] != shape:
        return f"shape {read.shape}, not {shape}"
    for place, value in zip(np.ndindex(shape), values, strict=True):
        element = read[place]
        if not form.same(element, value):
            return f"{element!r} at {place}, not {value!r}"
    return ""
