"""Datatype messages, decoded from bytes.

In: the body of a message. Out: a tree of `Datatype` values, with the NumPy dtype of
the stored bytes where NumPy has one.

A datatype nests: members of compounds, and the base types of arrays, sequences, enums and
complex numbers are datatypes that lie inside it. Each decoder returns where its type ends,
so that decoding goes once over the bytes, in a recursion of limited depth.

Source: HDF5 File Format Specification 4.0, "The Datatype Message". Complex numbers (class 11,
version 5) came with HDF5 2.0.
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
"""Deepest nesting that is decoded; files in use nest less than ten types."""

MAX_DTYPE_NBYTES = 2**31 - 1
"""Largest element that NumPy can describe."""

CACHED_NBYTES = 256
"""Longest message whose type is cached: the attributes of a file have few different types."""

_HEAD_NBYTES = 8
_VERSIONS = 5
_REFERENCE_ENCODING = 1

# Values of class bit fields, as names.
_PADDINGS = ("null-terminated", "null-padded", "space-padded")
_CHARSETS = ("ascii", "utf-8")
# Object and region references, then the three kinds since HDF5 1.12: object, region, attribute.
_REFERENCES = ("object", "region", "std", "std", "std")

# IEEE formats by their bytes: sign location, exponent location, exponent size, mantissa
# location, mantissa size (all in bits), exponent bias.
_IEEE = {2: (15, 10, 5, 0, 10, 15), 4: (31, 23, 8, 0, 23, 127), 8: (63, 52, 11, 0, 52, 1023)}
_IMPLIED_BIT = 2  # mantissa normalization: the most significant bit is not stored
_BIG_ENDIAN, _SIGNED, _VAX_ENDIAN = 0x01, 0x08, 0x40


@dataclass(frozen=True, slots=True)
class Datatype:
    """A datatype as it is stored, and the types inside it."""

    type_class: str  # "integer", "float", "time", "string", "bitfield", "opaque", ...
    itemsize: int  # bytes of one element as stored
    dtype: np.dtype[Any] | None  # of the stored bytes; None if NumPy has no such type
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
        Label that begins each error: the file, and the object or attribute.

    Returns
    -------
    Datatype
        The type, with the types inside it.

    Raises
    ------
    CorruptFileError
        If the bytes contradict the format.
    UnsupportedError
        If the class or the version is unknown, or types nest deeper than `MAX_DEPTH`.

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
    return _DatatypeDecoder(body).decode(0, 0)[0]


_decode_cached = lru_cache(maxsize=1024)(_decode)


def reference_types(datatype: Datatype) -> set[str]:
    """Return the reference types that a type holds, at any depth.

    Examples
    --------
    >>> reference_types(decode_datatype(bytes([0x17, 1, 0, 0, 12, 0, 0, 0]), "f.h5"))
    {'region'}
    """
    types = [datatype]
    for each in types:  # grows while it is walked
        types += [field.datatype for field in each.fields]
        if each.base is not None:
            types.append(each.base)
    return {each.reference for each in types} - {""}


def value_dtype(datatype: Datatype) -> np.dtype[Any]:
    """Return the NumPy dtype of decoded elements.

    References, sequences and strings of variable length are objects.

    Raises
    ------
    UnsupportedError
        If NumPy has no such type.
    """
    try:
        dtype = _value_dtype(datatype)
    except ValueError as error:  # of NumPy: too many axes, too large, two equal names
        raise UnsupportedError(f"NumPy has no such type: {error}") from error
    if dtype is None:
        raise UnsupportedError(
            f"NumPy has no type for elements of class {datatype.type_class!r}, "
            f"{datatype.itemsize} bytes"
        )
    return dtype


def _value_dtype(datatype: Datatype) -> np.dtype[Any] | None:
    match datatype:
        case Datatype(type_class="reference" | "vlen"):
            return np.dtype(object)
        case Datatype(type_class="array", base=Datatype() as base):
            return np.dtype((value_dtype(base), datatype.shape))
        case Datatype(type_class="compound", fields=fields):
            return _complex_dtype(fields) or _members_dtype(fields)
        case Datatype(type_class="enum", members=members, dtype=np.dtype() as dtype):
            # h5py writes booleans as such an enum, and reads other enums with this metadata.
            if dict(members) == {"FALSE": 0, "TRUE": 1} and dtype.itemsize == 1:
                return np.dtype(bool)
            metadata: Any = {"enum": dict(members)}
            return np.dtype(dtype, metadata=metadata)
        case Datatype(type_class="opaque", tag=tag) if _NUMPY_TIME.fullmatch(tag):
            return np.dtype(tag.removeprefix("NUMPY:"))
        case Datatype(dtype=dtype):
            return dtype


_NUMPY_TIME = re.compile(r"NUMPY:[<>]?[mM]8\[(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\]")
"""Tag with which h5py writes datetime64 and timedelta64 as opaque types."""


def _complex_dtype(fields: tuple[Field, ...]) -> np.dtype[Any] | None:
    """Return the dtype of complex numbers as h5py writes them, None for other compounds."""
    types = {field.datatype for field in fields}
    if [field.name for field in fields] != ["r", "i"] or len(types) > 1:
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


class _DatatypeDecoder:
    """Decodes one datatype message. Methods `decode...` return a type and where it ends."""

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
        # Class (bits 0 to 3) and version (bits 4 to 7) 1, class bit field 3, size 4, then the
        # properties of the class.
        first, flags_low, flags_high, size = self.unpack("<BBHI", at)
        version, type_class, flags = first >> 4, first & 0xF, flags_low | flags_high << 8
        if not 1 <= version <= _VERSIONS or type_class >= len(_CLASSES):
            raise UnsupportedError(f"the datatype has class {type_class} of version {version}")
        if not size:
            self.fail("elements of 0 bytes")
        return _CLASSES[type_class](self, version, flags, size, at + _HEAD_NBYTES, depth)

    def name(self, at: int, padded: bool) -> tuple[str, int]:
        """Return a null-terminated name and where it ends.

        With padding, the end is at a multiple of eight bytes from the start.
        """
        end = self._body.find(0, at)
        if end < 0:
            self.fail("a name without an end")
        nbytes = end - at + 1
        name = self._body[at:end].decode("utf-8", "surrogateescape")
        return name, at + (-(-nbytes // 8) * 8 if padded else nbytes)

    # Classes without other types inside.

    def decode_integer(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        code = "i" if flags & _SIGNED else "u"
        return Datatype("integer", size, self.bits(flags, size, at, code)), at + 4

    def decode_bitfield(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        return Datatype("bitfield", size, self.bits(flags, size, at, "u")), at + 4

    def bits(self, flags: int, size: int, at: int, code: str) -> np.dtype[Any] | None:
        """Return the dtype of integers; None unless all 1, 2, 4 or 8 bytes are used."""
        # Properties: bit offset 2, bit precision 2.
        offset, precision = self.unpack("<HH", at)
        if not precision or offset + precision > 8 * size:
            self.fail(f"{precision} bits at bit {offset} of {size} bytes")
        if size not in (1, 2, 4, 8) or precision != 8 * size:
            return None
        return np.dtype(f"{'>' if flags & _BIG_ENDIAN else '<'}{code}{size}")

    def decode_float(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        # Properties: bit offset 2, bit precision 2, exponent location 1, exponent size 1,
        # mantissa location 1, mantissa size 1, exponent bias 4. Bits 8 to 15 of the bit field
        # are the sign location, bits 4 and 5 the mantissa normalization.
        offset, precision, *layout, bias = self.unpack("<HH4BI", at)
        if not precision or offset + precision > 8 * size:
            self.fail(f"{precision} bits at bit {offset} of {size} bytes")
        dtype = None
        float_format = (flags >> 8 & 0xFF, *layout, bias)
        is_ieee = _IEEE.get(size) == float_format and flags >> 4 & 3 == _IMPLIED_BIT
        if is_ieee and precision == 8 * size and not flags & _VAX_ENDIAN:
            dtype = np.dtype(f"{'>' if flags & _BIG_ENDIAN else '<'}f{size}")
        return Datatype("float", size, dtype), at + 12

    def decode_time(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        (precision,) = self.unpack("<H", at)  # property: bit precision 2
        dtype = None
        if size in (4, 8) and precision == 8 * size:
            dtype = np.dtype(f"{'>' if flags & _BIG_ENDIAN else '<'}i{size}")
        return Datatype("time", size, dtype), at + 2

    def decode_string(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        # No properties; the bit field tells padding (bits 0 to 3) and character set (4 to 7).
        padding, charset = self.string_form(flags & 0xF, flags >> 4 & 0xF)
        dtype = np.dtype(f"S{size}") if size <= MAX_DTYPE_NBYTES else None
        return Datatype("string", size, dtype, padding=padding, charset=charset), at

    def string_form(self, padding: int, charset: int) -> tuple[str, str]:
        if padding >= len(_PADDINGS) or charset >= len(_CHARSETS):
            self.fail(f"strings of padding {padding} and character set {charset}")
        return _PADDINGS[padding], _CHARSETS[charset]

    def decode_opaque(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        # Property: the tag, as long as the low byte of the bit field says.
        end = at + (flags & 0xFF)
        if end > len(self._body):
            self.fail(f"a tag of {flags & 0xFF} bytes, and {len(self._body) - at} are left")
        tag = self._body[at:end].split(b"\0")[0].decode("utf-8", "surrogateescape")
        dtype = np.dtype(f"V{size}") if size <= MAX_DTYPE_NBYTES else None
        return Datatype("opaque", size, dtype, tag=tag), end

    def decode_reference(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        # No properties; the bit field tells type (bits 0 to 3) and, since version 4, the
        # version of the encoding (bits 4 to 7).
        number, encoding = flags & 0xF, flags >> 4 & 0xF
        if number >= len(_REFERENCES):
            self.fail(f"references of type {number}")
        reference = _REFERENCES[number]
        if reference == "std" and encoding != _REFERENCE_ENCODING:
            raise UnsupportedError(f"the datatype has references of encoding {encoding}")
        return Datatype("reference", size, None, reference=reference), at

    # Classes with other types inside.

    def decode_compound(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        # Members, as many as the low bits of the bit field say. Each: name (padded to a
        # multiple of eight bytes before version 3), byte offset (4; since version 3 as
        # wide as the size needs), in version 1 dimensions (see `member_dims`), datatype.
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
        by_offset = sorted(fields, key=lambda field: field.offset)
        for before, after in pairwise(by_offset):
            if before.offset + before.datatype.itemsize > after.offset:
                self.fail(f"overlapping members {before.name!r} and {after.name!r}")
        return Datatype("compound", size, _record_dtype(fields, size), tuple(fields)), at

    def member_dims(self, at: int) -> tuple[int, ...]:
        """Return the dimensions of a member of version 1, which has no array types."""
        # Dimensionality 1, reserved 3, permutation 4, reserved 4, four dimension sizes 4 each.
        rank, *dims = self.unpack("<B11x4I", at)
        if rank > len(dims):
            self.fail(f"a member of {rank} dimensions")
        return tuple(dims[:rank])

    def decode_enum(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        # Base type; names of all members (padded to multiples of eight bytes before
        # version 3); values.
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
        # Base type. The bit field tells type (bits 0 to 3: sequence or string), and of strings
        # padding (4 to 7) and character set (8 to 11).
        number = flags & 0xF
        if number > 1:
            self.fail(f"sequences of type {number}")
        base, end = self.decode(at, depth + 1)
        if not number:
            return Datatype("vlen", size, None, base=base), end
        padding, charset = self.string_form(flags >> 4 & 0xF, flags >> 8 & 0xF)
        return Datatype(
            "vlen", size, None, base=base, is_string=True, padding=padding, charset=charset
        ), end

    def decode_array(
        self, version: int, flags: int, size: int, at: int, depth: int
    ) -> tuple[Datatype, int]:
        # Dimensionality 1, in version 2 reserved 3, dimension sizes 4 each, in version 2
        # permutation indices 4 each (never used), base type.
        (rank,) = self.unpack("<B", at)
        at += 1 if version > 2 else 4
        if not 0 < rank <= MAX_RANK:
            self.fail(f"an array of {rank} dimensions")
        dims = self.unpack(f"<{rank}I", at)
        at += 4 * rank * (1 if version > 2 else 2)
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
        # Base type: a real and an imaginary part of it make one element. The bit field says
        # whether both parts have it (bit 0), and the form (bits 1 and 2: 0 rectangular, the
        # only one in use); it is not checked.
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
    """Return the dtype of a compound; None if a member has none or two names are equal."""
    formats = [field.datatype.dtype for field in fields]
    names = [field.name for field in fields]
    # Not "None in formats": to NumPy the dtype float64 equals None.
    missing = any(dtype is None for dtype in formats)
    if missing or len(set(names)) < len(names) or size > MAX_DTYPE_NBYTES:
        return None
    offsets = [field.offset for field in fields]
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


_DecodeClass = Callable[[_DatatypeDecoder, int, int, int, int, int], tuple[Datatype, int]]

_CLASSES: tuple[_DecodeClass, ...] = (
    _DatatypeDecoder.decode_integer,
    _DatatypeDecoder.decode_float,
    _DatatypeDecoder.decode_time,
    _DatatypeDecoder.decode_string,
    _DatatypeDecoder.decode_bitfield,
    _DatatypeDecoder.decode_opaque,
    _DatatypeDecoder.decode_compound,
    _DatatypeDecoder.decode_reference,
    _DatatypeDecoder.decode_enum,
    _DatatypeDecoder.decode_vlen,
    _DatatypeDecoder.decode_array,
    _DatatypeDecoder.decode_complex,
)
