"""Elements as HDF5 takes them from memory: bytes, with pointers if the length varies.

In: NumPy arrays of any type that the engine returns: numbers, text, sequences, references,
compounds and arrays of them. Out: the HDF5 type, and the bytes of the elements.

h5py converts one Python object after the other, and cannot convert sequences of region
references. Here each member of a compound and each level of nesting is one array: all texts
lie in one buffer, the values of all sequences in another. The bytes are valid as long as
the `ElementEncoder` that returned them lives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5t

from xref.arrays import IntArray, row_offsets
from xref.errors import UnsupportedError
from xref.references import AttributeReference, ObjectReference, ReferenceArray, RegionReference

RawBytes: TypeAlias = npt.NDArray[np.uint8]

HVL_T = np.dtype([("length", np.uintp), ("pointer", np.uintp)])
"""HDF5's C type ``hvl_t``, a sequence of variable length."""


class _ElementType:
    __slots__ = ()

    def type_id(self) -> h5t.TypeID:
        """Return the HDF5 type."""
        match self:
            case NumPyType(dtype=dtype):
                return h5t.py_create(dtype, logical=True)
            case StringType(charset=charset):
                type_id = h5t.C_S1.copy()
                type_id.set_size(h5t.VARIABLE)
                type_id.set_cset(h5t.CSET_UTF8 if charset == "utf-8" else h5t.CSET_ASCII)
                return type_id
            case ReferenceType(kind=kind):
                return h5t.STD_REF_DSETREG if kind == "region" else h5t.STD_REF_OBJ
            case VlenType(base=base):
                return h5t.vlen_create(base.type_id())
            case ArrayType(base=base, shape=shape):
                return h5t.array_create(base.type_id(), shape)
            case CompoundType(members=members):
                type_id = h5t.create(h5t.COMPOUND, sum(part.itemsize for _, part in members))
                offset = 0
                for name, part in members:
                    key = name.encode("utf-8", "surrogateescape")
                    type_id.insert(key, offset, part.type_id())
                    offset += part.itemsize
                return type_id
        raise TypeError(f"{self!r} is not a memory type")

    @property
    def itemsize(self) -> int:
        """Bytes of an element in memory."""
        return int(self.type_id().get_size())


@dataclass(frozen=True, slots=True)
class NumPyType(_ElementType):
    """Elements whose bytes are those of a NumPy dtype."""

    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class StringType(_ElementType):
    """Text of variable length; in memory a ``char *``."""

    charset: str  # "ascii" or "utf-8"


@dataclass(frozen=True, slots=True)
class ReferenceType(_ElementType):
    """References to objects or to regions."""

    kind: str  # "object" or "region"


@dataclass(frozen=True, slots=True)
class VlenType(_ElementType):
    """Sequences of variable length; in memory an ``hvl_t``."""

    base: MemoryType


@dataclass(frozen=True, slots=True)
class CompoundType(_ElementType):
    """Members without gaps between them."""

    members: tuple[tuple[str, MemoryType], ...]


@dataclass(frozen=True, slots=True)
class ArrayType(_ElementType):
    """Arrays of one shape."""

    base: MemoryType
    shape: tuple[int, ...]


MemoryType: TypeAlias = (
    NumPyType | StringType | ReferenceType | VlenType | CompoundType | ArrayType
)


def holds_references(memory_type: MemoryType) -> bool:
    """Tell whether elements are references or contain references."""
    match memory_type:
        case ReferenceType():
            return True
        case VlenType(base=base) | ArrayType(base=base):
            return holds_references(base)
        case CompoundType(members=members):
            return any(holds_references(member) for _, member in members)
    return False


def choose_memory_type(values: npt.NDArray[Any] | ReferenceArray, label: str) -> MemoryType:
    """Return the type with which values are stored.

    Parameters
    ----------
    values : numpy.ndarray or ReferenceArray
        Objects without a type of h5py must all be text, bytes, references or arrays. If there
        are none, the type is text.
    label : str
        Names the variable or attribute in errors.

    Raises
    ------
    UnsupportedError
        If HDF5 has no type for the values.
    """
    if isinstance(values, ReferenceArray):
        return ReferenceType("region" if values.is_region else "object")
    return _memory_type(values.dtype, values, label)


def _memory_type(dtype: np.dtype[Any], values: npt.NDArray[Any], label: str) -> MemoryType:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return ArrayType(_memory_type(base, values, label), shape)
    if dtype.names is not None and dtype.hasobject:
        members = ((n, _memory_type(dtype[n], values[n], label)) for n in dtype.names)
        return CompoundType(tuple(members))
    if dtype.kind == "O":
        return _object_memory_type(dtype, values, label)
    if dtype.kind in "UT":
        return StringType("utf-8")
    if dtype.kind in "mM":
        dtype = h5py.opaque_dtype(dtype)
    memory_type = NumPyType(dtype)
    try:
        memory_type.type_id()
    except (TypeError, ValueError) as error:
        raise UnsupportedError(f"{label}: HDF5 has no type for {dtype}: {error}") from error
    return memory_type


def _object_memory_type(
    dtype: np.dtype[Any], values: npt.NDArray[Any], label: str
) -> MemoryType:
    """Choose a type from h5py's metadata, or else from the classes of the objects."""
    metadata: Any = dtype.metadata or {}
    base = metadata.get("vlen")
    if isinstance(base, np.dtype):
        return _vlen_type(base, _concatenate(values), label)
    if base is not None:
        return StringType("utf-8" if base is str else "ascii")
    kinds = {_object_kind(value) for value in values.flat} - {None}
    match sorted(map(str, kinds)):
        case [] | ["text"] | ["bytes", "text"]:
            return StringType("utf-8")
        case ["bytes"]:
            return StringType("ascii")
        case ["object"]:
            return ReferenceType("object")
        case ["region"] | ["object", "region"]:
            return ReferenceType("region")
        case ["array"]:
            joined = _concatenate(values)
            return _vlen_type(joined.dtype, joined, label)
    classes = sorted({type(value).__name__ for value in values.flat})
    raise UnsupportedError(
        f"{label}: HDF5 has no type for objects of {', '.join(classes)}; text, bytes, "
        "references and arrays can be stored, but only one kind of them"
    )


def _vlen_type(dtype: np.dtype[Any], joined: npt.NDArray[Any], label: str) -> VlenType:
    """Choose the type of sequences whose concatenated values are given."""
    memory_type = _memory_type(dtype, joined, label)
    if dtype.subdtype is None and joined.ndim > 1:
        memory_type = ArrayType(memory_type, joined.shape[1:])
    return VlenType(memory_type)


def _object_kind(value: Any) -> str | None:
    match value:
        case None:
            return None
        case str():
            return "text"
        case bytes():
            return "bytes"
        case ObjectReference() | AttributeReference():
            return "object"  # ReferenceTranslator makes the latter null, or refuses it
        case RegionReference():
            return "region"
        case np.ndarray() | list():
            return "array"
    return "unknown"


def _concatenate(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the elements of all sequences in one array."""
    parts = [np.asarray(value) for value in values.flat if value is not None]
    parts = [part for part in parts if part.size] or parts
    if not parts:
        return np.zeros(0)
    return np.concatenate([part.reshape(-1, *part.shape[1:]) for part in parts])


ReferenceBytes: TypeAlias = Callable[[ReferenceArray, str], RawBytes]
"""Returns the bytes of references: ``(n, 8)`` of kind "object", ``(n, 12)`` of "region"."""


class ElementEncoder:
    """Converts elements to bytes, and keeps the buffers at which they point.

    Parameters
    ----------
    references : callable
        Returns the bytes of references, given the kind with which they are stored.
    """

    def __init__(self, references: ReferenceBytes) -> None:
        self._references = references
        self._buffers: list[npt.NDArray[Any]] = []

    def encode(self, memory_type: MemoryType, values: Any) -> npt.NDArray[np.void]:
        """Return the bytes of an array's elements; axes of an `ArrayType` become bytes, too.

        Parameters
        ----------
        memory_type : MemoryType
            From `choose_memory_type`.
        values : numpy.ndarray or ReferenceArray
        """
        inner = len(memory_type.shape) if isinstance(memory_type, ArrayType) else 0
        shape = values.shape[: values.ndim - inner]
        n = int(np.prod(shape, dtype=np.int64))
        flat = values.reshape((n, *values.shape[values.ndim - inner :]))
        raw = np.ascontiguousarray(self._bytes(memory_type, flat))
        self._buffers.append(raw)
        return raw.view(f"V{memory_type.itemsize}").reshape(shape)

    def _bytes(self, memory_type: MemoryType, values: Any) -> RawBytes:
        """Return the bytes of n elements, ``(n, itemsize)``."""
        n = len(values)
        match memory_type:
            case NumPyType(dtype=dtype):
                return _bytes_of(np.ascontiguousarray(values, dtype=dtype).reshape(n))
            case StringType():
                return self._texts(values)
            case ReferenceType(kind=kind):
                if not isinstance(values, ReferenceArray):
                    values = ReferenceArray.from_references(values, keep_kinds=True)
                return self._references(values, kind)
            case VlenType(base=base):
                return self._sequences(values, base)
            case CompoundType(members=members):
                parts = [self._bytes(part, values[name]) for name, part in members]
                return np.concatenate(parts, axis=1)
            case ArrayType(base=base, shape=shape):
                n_items = int(np.prod(shape, dtype=np.int64))
                flat = values.reshape((n * n_items, *values.shape[1 + len(shape) :]))
                return self._bytes(base, flat).reshape(n, memory_type.itemsize)

    def _texts(self, values: npt.NDArray[Any]) -> RawBytes:
        encoded = [_encode(value) for value in values.tolist()]
        if any(b"\0" in text for text in encoded):
            row = next(i for i, text in enumerate(encoded) if b"\0" in text)
            raise UnsupportedError(
                f"text {row}, {encoded[row][:40]!r}, has a null character, which ends text of "
                "variable length in HDF5; store bytes of one length (dtype 'S')"
            )
        data = b"\0".join([*encoded, b""])
        lengths = np.array([len(text) + 1 for text in encoded], dtype=np.int64)
        return self._point(np.frombuffer(data, dtype=np.uint8), row_offsets(lengths)[:-1])

    def _sequences(self, values: npt.NDArray[Any], base: MemoryType) -> RawBytes:
        joined = _concatenate(values)
        lengths = [0 if value is None else len(value) for value in values.tolist()]
        length = np.array(lengths, dtype=np.int64)
        if isinstance(base, NumPyType):
            joined = joined.astype(base.dtype, copy=False)
        elements = np.ascontiguousarray(self._bytes(base, joined)).reshape(-1)
        out = np.zeros(len(values), dtype=HVL_T)
        out["length"] = length
        offset = row_offsets(length)[:-1] * base.itemsize
        out["pointer"] = self._point(elements, offset).view(np.uintp)[:, 0]
        return _bytes_of(out)

    def _point(self, buffer: npt.NDArray[np.uint8], offset: IntArray) -> RawBytes:
        """Return pointers to byte offsets of a buffer, and keep the buffer."""
        self._buffers.append(buffer)
        pointers = buffer.ctypes.data + offset.astype(np.uintp)
        return _bytes_of(pointers.astype(np.uintp))


def _bytes_of(values: npt.NDArray[Any]) -> RawBytes:
    """Return the bytes of each element of a 1-D array, ``(n, itemsize)``."""
    itemsize = values.dtype.itemsize
    return values.view(f"V{itemsize}").view(np.uint8).reshape(len(values), itemsize)


def _encode(value: Any) -> bytes:
    """Return the bytes of one text; a missing text is empty."""
    if value is None:
        return b""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
