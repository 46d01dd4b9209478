"""Types of datasets and attributes, as h5py gives them.

In: datatypes of HDF5. Out: NumPy types, kinds of reference, sizes of stored elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from h5py import h5t

from xref import hdf5


def reference_kind(datatype: h5t.TypeID) -> str:
    """Return "object", "region", "std" (HDF5 1.12), or "" for a type without references."""
    if datatype.get_class() != h5t.REFERENCE:
        return ""
    if datatype.equal(h5t.STD_REF_OBJ):
        return "object"
    if datatype.equal(h5t.STD_REF_DSETREG):
        return "region"
    return "std"


def reference_kinds(datatype: h5t.TypeID) -> set[str]:
    """Return the kinds of reference that a type contains, at any depth."""
    match datatype.get_class():
        case h5t.REFERENCE:
            return {reference_kind(datatype)}
        case h5t.COMPOUND:
            members = range(datatype.get_nmembers())
            return set().union(*(reference_kinds(datatype.get_member_type(i)) for i in members))
        case h5t.VLEN | h5t.ARRAY:
            return reference_kinds(datatype.get_super())
    return set()


def holds_tags(datatype: h5t.TypeID) -> bool:
    """Tell whether a type is, or contains, an opaque type with a tag.

    h5py has no such type in memory, and HDF5 does not convert between tags. h5py reads only
    its own tags, those of NumPy's times.
    """
    match datatype.get_class():
        case h5t.OPAQUE:
            return not datatype.get_tag().startswith(b"NUMPY:") and bool(datatype.get_tag())
        case h5t.COMPOUND:
            members = range(datatype.get_nmembers())
            return any(holds_tags(datatype.get_member_type(i)) for i in members)
        case h5t.VLEN | h5t.ARRAY:
            return holds_tags(datatype.get_super())
    return False


def _without_tags(datatype: h5t.TypeID) -> h5t.TypeID:
    """Return a type with untagged opaque types in place of tagged ones."""
    match datatype.get_class():
        case h5t.OPAQUE:
            return h5t.create(h5t.OPAQUE, datatype.get_size())
        case h5t.COMPOUND:
            out = h5t.create(h5t.COMPOUND, datatype.get_size())
            for i in range(datatype.get_nmembers()):
                member = _without_tags(datatype.get_member_type(i))
                out.insert(datatype.get_member_name(i), datatype.get_member_offset(i), member)
            return out
        case h5t.ARRAY:
            base = _without_tags(datatype.get_super())
            return h5t.array_create(base, datatype.get_array_dims())
    return datatype


def unconverted_dtype(datatype: h5t.TypeID) -> np.dtype[Any] | None:
    """Return the NumPy type as which stored elements are read without HDF5's conversion.

    None for types that HDF5 converts to NumPy types.
    """
    time = time_dtype(datatype)
    if time is not None or not (datatype.get_class() == h5t.OPAQUE or holds_tags(datatype)):
        return time
    dtype = datatype.dtype
    return None if _indirect_type(datatype, dtype) else dtype


_TIMES = (
    (h5t.UNIX_D32LE, "<i4"),
    (h5t.UNIX_D32BE, ">i4"),
    (h5t.UNIX_D64LE, "<i8"),
    (h5t.UNIX_D64BE, ">i8"),
)


def time_dtype(datatype: h5t.TypeID) -> np.dtype[Any] | None:
    """Return the integer type in which times are stored; None for any other class.

    h5py has no NumPy type for the class "Time" of HDF5, and HDF5 does not convert this class,
    so elements are read as stored integers.
    """
    if datatype.get_class() != h5t.TIME:
        return None
    for known, dtype in _TIMES:
        if datatype.equal(known):
            return np.dtype(dtype)
    return None


@dataclass(frozen=True, slots=True)
class TypeMetadata:
    """Properties of a datatype, cached because thousands of datasets share a few types."""

    kind: str  # of reference, or ""
    holds_references: bool  # within elements
    time: np.dtype[Any] | None
    dtype: np.dtype[Any] | None  # None if h5py has none
    problem: str  # why h5py has no dtype
    why_not_direct: str  # why stored elements are not the bytes of ``dtype``


@lru_cache(maxsize=1024)
def type_metadata(encoded: bytes) -> TypeMetadata:
    """Inspect a datatype, given as HDF5 encodes it (``H5Tencode``)."""
    datatype = h5t.decode(encoded)
    kind, time = reference_kind(datatype), time_dtype(datatype)
    within = not kind and bool(reference_kinds(datatype))
    dtype, problem, why_not_direct = None, "", ""
    if not kind and not within and time is None:
        try:
            dtype = datatype.dtype
            why_not_direct = _indirect_type(datatype, dtype)
        except (TypeError, ValueError) as error:  # ValueError: no such float in NumPy
            problem = str(error)
    return TypeMetadata(kind, within, time, dtype, problem, why_not_direct)


def _indirect_type(datatype: h5t.TypeID, dtype: np.dtype[Any]) -> str:
    """Say why stored elements are not the bytes of a NumPy dtype; empty if they are."""
    if dtype.hasobject:
        return f"type {dtype}: elements of variable length"
    if dtype.itemsize != datatype.get_size():
        return f"type {dtype}: {datatype.get_size()} bytes stored"
    if datatype.get_class() == h5t.OPAQUE:
        return ""  # with any tag
    try:
        expected = h5t.py_create(dtype, logical=True)
    except TypeError:
        return f"type {dtype}: h5py has no HDF5 type for this NumPy type"
    if holds_tags(datatype):
        datatype = _without_tags(datatype)
    return "" if expected.equal(datatype) else f"type {dtype}: needs a conversion"


def stored_itemsize(datatype: h5t.TypeID, offset_size: int) -> int:
    """Return the bytes of one element in the file; HDF5 gives the size in memory.

    The sizes differ if an element contains an address: HDF5 File Format Specification 4.0,
    "Variable-length and reference elements" in the global heap section.
    """
    match datatype.get_class():
        case h5t.COMPOUND:
            members = [datatype.get_member_type(i) for i in range(datatype.get_nmembers())]
            more = sum(stored_itemsize(m, offset_size) - m.get_size() for m in members)
            return int(datatype.get_size() + more)
        case h5t.ARRAY:
            base = datatype.get_super()
            n = datatype.get_size() // base.get_size()
            return int(n * stored_itemsize(base, offset_size))
        case h5t.VLEN:
            return 4 + offset_size + 4  # length, heap collection, heap object
        case h5t.STRING if datatype.is_variable_str():
            return 4 + offset_size + 4
        case h5t.REFERENCE:
            return reference_itemsize(reference_kind(datatype), offset_size)
    return int(datatype.get_size())


def reference_itemsize(kind: str, offset_size: int) -> int:
    """Return the bytes of one stored reference."""
    if kind == "std":
        return hdf5.std_itemsize(offset_size)
    return offset_size + (4 if kind == "region" else 0)
