"""Datatype and dataspace messages, decoded from bytes.

In: the body of a message. Out: a tree of `Datatype` values, with the NumPy dtype of
the stored bytes where NumPy has one, or a `Dataspace`.

A datatype nests: members of compounds, the base types of arrays, sequences, enums and
complex numbers are datatypes that stand inside it. Each says where it ends, so
decoding goes once over the bytes, in a recursion of limited depth.

Source: HDF5 File Format Specification 4.0, "The Datatype Message" and "The Dataspace
Message". Complex numbers (class 11, version 5) are of HDF5 2.0 and not in that text.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np

from xref.errors import CorruptFileError, UnsupportedError
from xref.hdf5.dataspace import MAX_RANK
from xref.hdf5.metadata_reader import integer, integer_nbytes

MAX_DEPTH = 64
"""Types inside types that are followed; files in use nest less than ten."""


MAX_DTYPE_NBYTES = 2**31 - 1
"""Bytes of one element that NumPy can describe."""

CACHED_NBYTES = 256
"""Bytes of a message up to which its type is kept for the next one that is equal:
attributes of a file have few types."""

_HEAD_NBYTES = 8
_VERSIONS = 5
_PADDINGS = ("null-terminated", "null-padded", "space-padded")
_CHARSETS = ("ascii", "utf-8")
_REFERENCES = ("object", "region", "std", "std", "std")
_REFERENCE_ENCODING = 1

# The fields of a floating point type that is one of IEEE: bits of sign, exponent and
# mantissa, each by position and width, and the bias.
_IEEE = {
    2: (15, 10, 5, 0, 10, 15),
    4: (31, 23, 8, 0, 23, 127),
    8: (63, 52, 11, 0, 52, 1023),
}
_IMPLIED_BIT = 2


@dataclass(frozen=True, slots=True)
class Datatype:
    """A datatype as it is stored, and the types inside it."""

    type_class: (
        str  # the class: "integer", "float", "time", "string", "bitfield", "opaque", ...
    )
    itemsize: int  # bytes of one element as stored
    dtype: np.dtype[Any] | None  # of the stored bytes; None where NumPy has none
    fields: tuple[Field, ...] = ()  # of a compound, in stored order
    base: Datatype | None = None  # of vlen, array, enum, complex
    shape: tuple[int, ...] = ()  # of an array
    reference: str = ""  # "object", "region" or, since HDF5 1.12, "std"
    is_string: bool = False  # whether a vlen holds characters
    charset: str = "ascii"  # of strings: "ascii" or "utf-8"
    padding: str = ""  # of strings: "null-terminated", "null-padded" or "space-padded"
    members: tuple[tuple[str, int], ...] = ()  # of an enum
    tag: str = ""  # of an opaque type


@dataclass(frozen=True, slots=True)
class Field:
    """One member of a compound type."""

    name: str  # UTF-8; other bytes as surrogates
    offset: int  # bytes from the start of the stored element
    datatype: Datatype


def decode_datatype(body: bytes, where: str) -> Datatype:
    """Decode a datatype message.

    Parameters
    ----------
    body : bytes
        Body of the message; bytes after the type are padding.
    where : str
        Begins each error: the file, and the object or attribute.

    Returns
    -------
    Datatype
        The type with all types inside it.

    Raises
    ------
    CorruptFileError
        If the bytes contradict the format.
    UnsupportedError
        If the class or the version is unknown, or types nest deeper than `MAX_DEPTH`.

    Notes
    -----
    HDF5 File Format Specification 4.0, "The Datatype Message".

    Examples
    --------
    >>> decode_datatype(bytes([0x10, 8, 0, 0, 4, 0, 0, 0, 0, 0, 32, 0]), "f.h5").dtype
    dtype('int32')
    """
    try:
        return (_decode_cached if len(body) <= CACHED_NBYTES else _decode)(body)
    except (CorruptFileError, UnsupportedError) as error:
        raise type(error)(f"{where}: {error}") from error


def _decode(body: bytes) -> Datatype:
    return _Decoder(body).decode(0, 0)[0]


_decode_cached = lru_cache(maxsize=1024)(_decode)


def reference_kinds(datatype: Datatype) -> set[str]:
    """Return which references a type holds, at any depth.

    Examples
    --------
    >>> reference_kinds(decode_datatype(bytes([0x17, 1, 0, 0, 12, 0, 0, 0]), "f.h5"))
    {'region'}
    """
    found, inside = set(), [datatype]
    for each in inside:  # grows while it is walked
        inside += [field.datatype for field in each.fields]
        if each.base is not None:
            inside.append(each.base)
        if each.reference:
            found.add(each.reference)
    return found


def value_dtype(datatype: Datatype) -> np.dtype[Any]:
    """Return the NumPy dtype of decoded elements.

    References, sequences and text of variable length are objects.

    Raises
    ------
    UnsupportedError
        If NumPy has no such type.
    """
    try:
        found = _value_dtype(datatype)
    except ValueError as error:  # of NumPy: too many axes, too large, two names alike
        raise UnsupportedError(f"NumPy has no such type: {error}") from error
    if found is None:
        raise UnsupportedError(
            f"NumPy has no type for elements of class {datatype.type_class!r}, "
            f"{datatype.itemsize} bytes"
        )
    return found


def _value_dtype(datatype: Datatype) -> np.dtype[Any] | None:
    match datatype:
        case Datatype(type_class="reference" | "vlen"):
            return np.dtype(object)
        case Datatype(type_class="array", base=Datatype() as base):
            return np.dtype((value_dtype(base), datatype.shape))
        case Datatype(type_class="compound", fields=fields):
            return _complex_dtype(fields) or _members_dtype(fields)
        case Datatype(type_class="enum", members=members, dtype=np.dtype() as dtype):
            if dict(members) == {"FALSE": 0, "TRUE": 1} and dtype.itemsize == 1:
                return np.dtype(bool)
            kept: Any = {"enum": dict(members)}
            return np.dtype(dtype, metadata=kept)
        case Datatype(type_class="opaque", tag=tag) if _MOMENT.fullmatch(tag):
            return np.dtype(tag.removeprefix("NUMPY:"))
        case Datatype(dtype=dtype):
            return dtype


_MOMENT = re.compile(r"NUMPY:[<>]?[mM]8\[(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\]")
"""Tag with which h5py writes times of NumPy."""


def _complex_dtype(fields: tuple[Field, ...]) -> np.dtype[Any] | None:
    """Return the dtype of complex numbers as h5py writes them, None for other compounds."""
    kinds = {field.datatype for field in fields}
    if [field.name for field in fields] != ["r", "i"] or len(kinds) > 1:
        return None
    dtype = fields[0].datatype.dtype
    if dtype is None or dtype.kind != "f" or dtype.itemsize not in (4, 8):
        return None
    return np.dtype(f"c{2 * dtype.itemsize}").newbyteorder(dtype.byteorder)


def _members_dtype(fields: tuple[Field, ...]) -> np.dtype[Any]:
    names = [field.name for field in fields]
    if len(set(names)) < len(names) or "" in names:
        raise UnsupportedError(f"a compound type has members that NumPy cannot tell: {names}")
    return np.dtype([(f.name, value_dtype(f.datatype)) for f in fields])


class _Decoder:
    """Decodes one datatype message; each method returns a type and where it ends."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def fail(self, found: str) -> NoReturn:
        raise CorruptFileError(f"the datatype has {found}")

    def unpack(self, layout: str, at: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(layout, self._body, at)
        except struct.error as error:
            raise CorruptFileError(
                f"a datatype message of {len(self._body)} bytes ends inside a "
                f"type, at byte {at}"
            ) from error

    def decode(self, at: int, depth: int) -> tuple[Datatype, int]:
        if depth > MAX_DEPTH:
            raise UnsupportedError(f"the datatype nests deeper than {MAX_DEPTH} types")
        first, flags_low, flags_high, size = self.unpack("<BBHI", at)
        version, kind, flags = first >> 4, first & 0xF, flags_low | flags_high << 8
        if not 1 <= version <= _VERSIONS or kind >= len(_CLASSES):
            raise UnsupportedError(f"the datatype has class {kind} of version {version}")
        if not size:
            self.fail("elements of 0 bytes")
        return _CLASSES[kind](self, version, flags, size, at + _HEAD_NBYTES, depth)

    def name(self, at: int, padded: bool) -> tuple[str, int]:
        """Return a null-terminated name and where it ends, padded to eight bytes."""
        end = self._body.find(0, at)
        if end < 0:
            self.fail("a name without an end")
        nbytes = end - at + 1
        name = self._body[at:end].decode("utf-8", "surrogateescape")
        return name, at + (-(-nbytes // 8) * 8 if padded else nbytes)

    # --- types without others inside -----------------------------------------------------

    def decode_integer(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        code = "i" if flags & 8 else "u"
        return Datatype("integer", size, self.bits(flags, size, at, code)), at + 4

    def decode_bitfield(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        return Datatype("bitfield", size, self.bits(flags, size, at, "u")), at + 4

    def bits(self, flags: int, size: int, at: int, code: str) -> np.dtype[Any] | None:
        """Return the dtype of integers whose bits are all in use."""
        offset, precision = self.unpack("<HH", at)
        if not precision or offset + precision > 8 * size:
            self.fail(f"{precision} bits at bit {offset} of {size} bytes")
        if size not in (1, 2, 4, 8) or precision != 8 * size:
            return None
        return np.dtype(f"{'>' if flags & 1 else '<'}{code}{size}")

    def decode_float(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        offset, precision, *layout, bias = self.unpack("<HH4BI", at)
        if not precision or offset + precision > 8 * size:
            self.fail(f"{precision} bits at bit {offset} of {size} bytes")
        dtype = None
        found = (flags >> 8 & 0xFF, *layout, bias)
        is_vax = flags & 0x40
        is_ieee = _IEEE.get(size) == found and flags >> 4 & 3 == _IMPLIED_BIT
        if is_ieee and precision == 8 * size and not is_vax:
            dtype = np.dtype(f"{'>' if flags & 1 else '<'}f{size}")
        return Datatype("float", size, dtype), at + 12

    def decode_time(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        (precision,) = self.unpack("<H", at)
        dtype = None
        if size in (4, 8) and precision == 8 * size:
            dtype = np.dtype(f"{'>' if flags & 1 else '<'}i{size}")
        return Datatype("time", size, dtype), at + 2

    def decode_string(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        padding, charset = self.text(flags & 0xF, flags >> 4 & 0xF)
        dtype = np.dtype(f"S{size}") if size <= MAX_DTYPE_NBYTES else None
        return Datatype("string", size, dtype, padding=padding, charset=charset), at

    def text(self, padding: int, charset: int) -> tuple[str, str]:
        if padding >= len(_PADDINGS) or charset >= len(_CHARSETS):
            self.fail(f"strings of padding {padding} and character set {charset}")
        return _PADDINGS[padding], _CHARSETS[charset]

    def decode_opaque(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        end = at + (flags & 0xFF)
        if end > len(self._body):
            self.fail(f"a tag of {flags & 0xFF} bytes, and {len(self._body) - at} are left")
        tag = self._body[at:end].split(b"\0")[0].decode("utf-8", "surrogateescape")
        dtype = np.dtype(f"V{size}") if size <= MAX_DTYPE_NBYTES else None
        return Datatype("opaque", size, dtype, tag=tag), end

    def decode_reference(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        kind, encoding = flags & 0xF, flags >> 4 & 0xF
        if kind >= len(_REFERENCES):
            self.fail(f"references of type {kind}")
        reference = _REFERENCES[kind]
        if reference == "std" and encoding != _REFERENCE_ENCODING:
            raise UnsupportedError(f"the datatype has references of encoding {encoding}")
        return Datatype("reference", size, None, reference=reference), at

    # --- types with others inside --------------------------------------------------------

    def decode_compound(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        n, offset_nbytes = flags & 0xFFFF, integer_nbytes(size)
        if not n:
            self.fail("a compound without members")
        fields = []
        for _ in range(n):
            name, at = self.name(at, padded=version < 3)
            dims: tuple[int, ...] = ()
            if version < 3:
                (offset,) = self.unpack("<I", at)
                at += 4
            else:
                offset, at = integer(self._body, at, offset_nbytes), at + offset_nbytes
            if version == 1:
                dims, at = self.member_dims(at), at + 28
            datatype, at = self.decode(at, depth + 1)
            if dims:
                datatype = self.array_of(datatype, dims)
            if offset + datatype.itemsize > size:
                self.fail(
                    f"the member {name!r} of {datatype.itemsize} bytes at byte {offset} of a "
                    f"compound of {size}"
                )
            fields.append(Field(name, offset, datatype))
        in_order = sorted(fields, key=lambda field: field.offset)
        for before, after in pairwise(in_order):
            if before.offset + before.datatype.itemsize > after.offset:
                self.fail(f"overlapping members {before.name!r} and {after.name!r}")
        return Datatype("compound", size, _record_dtype(fields, size), tuple(fields)), at

    def member_dims(self, at: int) -> tuple[int, ...]:
        """Return the dimensions that a member of version 1 has without an array type."""
        rank, *dims = self.unpack("<B11x4I", at)
        if rank > len(dims):
            self.fail(f"a member of {rank} dimensions")
        return tuple(dims[:rank])

    def decode_enum(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        n = flags & 0xFFFF
        base, at = self.decode(at, depth + 1)
        if base.type_class != "integer" or base.itemsize != size:
            self.fail(f"an enum of {size} bytes over a {base.type_class} of {base.itemsize}")
        if base.dtype is None:
            raise UnsupportedError(
                "the datatype has an enum over an integer that is not of 1, "
                "2, 4 or 8 bytes, or does not use all bits"
            )
        names = []
        for _ in range(n):
            name, at = self.name(at, padded=version < 3)
            names.append(name)
        end = at + n * size
        if end > len(self._body):
            self.fail(f"an enum of {n} members, and {len(self._body) - at} bytes are left")
        values = np.frombuffer(self._body[at:end], base.dtype).tolist()
        members = tuple(zip(names, values, strict=True))
        return Datatype("enum", size, base.dtype, base=base, members=members), end

    def decode_vlen(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        kind = flags & 0xF
        if kind > 1:
            self.fail(f"sequences of type {kind}")
        base, end = self.decode(at, depth + 1)
        if not kind:
            return Datatype("vlen", size, None, base=base), end
        padding, charset = self.text(flags >> 4 & 0xF, flags >> 8 & 0xF)
        return Datatype(
            "vlen", size, None, base=base, is_string=True, padding=padding, charset=charset
        ), end

    def decode_array(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        (rank,) = self.unpack("<B", at)
        at += 1 if version > 2 else 4
        if not 0 < rank <= MAX_RANK:
            self.fail(f"an array of {rank} dimensions")
        dims = self.unpack(f"<{rank}I", at)
        at += 4 * rank * (1 if version > 2 else 2)  # permutations follow, never used
        base, at = self.decode(at, depth + 1)
        datatype = self.array_of(base, dims)
        if datatype.itemsize != size:
            self.fail(f"an array of {size} bytes with {math.prod(dims)} of {base.itemsize}")
        return datatype, at

    def array_of(self, base: Datatype, dims: tuple[int, ...]) -> Datatype:
        size = math.prod(dims) * base.itemsize
        if not size:
            self.fail(f"an array of the shape {dims}")
        dtype = None
        if base.dtype is not None and size <= MAX_DTYPE_NBYTES:
            dtype = np.dtype((base.dtype, dims))
        return Datatype("array", size, dtype, base=base, shape=dims)

    def decode_complex(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        base, at = self.decode(at, depth + 1)
        if base.type_class != "float" or 2 * base.itemsize != size:
            self.fail(
                f"complex numbers of {size} bytes over a {base.type_class} of {base.itemsize}"
            )
        dtype = None
        if base.dtype is not None and base.itemsize in (4, 8):
            dtype = np.dtype(f"c{size}").newbyteorder(base.dtype.byteorder)
        return Datatype("complex", size, dtype, base=base), at


def _record_dtype(fields: list[Field], size: int) -> np.dtype[Any] | None:
    """Return the dtype of a compound of types that have one and names that differ."""
    formats = [field.datatype.dtype for field in fields]
    names = [field.name for field in fields]
    # Not "None in formats": to NumPy the dtype float64 equals None.
    missing = any(dtype is None for dtype in formats)
    if missing or len(set(names)) < len(names) or size > MAX_DTYPE_NBYTES:
        return None
    offsets = [field.offset for field in fields]
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


_Decode = Callable[[_Decoder, int, int, int, int, int], tuple[Datatype, int]]

_CLASSES: tuple[_Decode, ...] = (
    _Decoder.decode_integer,
    _Decoder.decode_float,
    _Decoder.decode_time,
    _Decoder.decode_string,
    _Decoder.decode_bitfield,
    _Decoder.decode_opaque,
    _Decoder.decode_compound,
    _Decoder.decode_reference,
    _Decoder.decode_enum,
    _Decoder.decode_vlen,
    _Decoder.decode_array,
    _Decoder.decode_complex,
)
