"""Values as HDF5 takes them from memory: bytes, with pointers where the length varies.

In: NumPy arrays of any type that the engine gives: numbers, text, sequences, references,
compounds and arrays of them. Out: the HDF5 type, and the bytes of the elements.

h5py makes one Python object after the other into such bytes, and none of sequences of
region references. Here each member of a compound and each level of nesting is one array:
texts lie in one buffer, the values of all sequences in another. The bytes are good as
long as the `ElementEncoder` that made them lives.
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

_SEQUENCE = np.dtype([("length", np.uintp), ("pointer", np.uintp)])
"""HDF5's ``hvl_t``."""


@dataclass(frozen=True, slots=True)
class NumPyType:
    """Elements whose bytes are those of a NumPy dtype."""

    dtype: np.dtype[Any]

    @property
    def itemsize(self) -> int:
        """Bytes of an element in memory."""
        return self.dtype.itemsize

    def type_id(self) -> h5t.TypeID:
        """Return the HDF5 type."""
        return h5t.py_create(self.dtype, logical=True)


@dataclass(frozen=True, slots=True)
class StringType:
    """StringType of variable length; in memory a pointer."""

    charset: str  # "ascii" or "utf-8"

    itemsize = np.dtype(np.uintp).itemsize

    def type_id(self) -> h5t.TypeID:
        """Return the HDF5 type."""
        found = h5t.C_S1.copy()
        found.set_size(h5t.VARIABLE)
        found.set_cset(h5t.CSET_UTF8 if self.charset == "utf-8" else h5t.CSET_ASCII)
        return found


@dataclass(frozen=True, slots=True)
class ReferenceType:
    """References to objects or to regions."""

    kind: str  # "object" or "region"

    @property
    def itemsize(self) -> int:
        """Bytes of an element in memory."""
        return int(self.type_id().get_size())

    def type_id(self) -> h5t.TypeID:
        """Return the HDF5 type."""
        return h5t.STD_REF_DSETREG if self.kind == "region" else h5t.STD_REF_OBJ


@dataclass(frozen=True, slots=True)
class VlenType:
    """Sequences of variable length; in memory a length and a pointer."""

    base: MemoryType

    itemsize = _SEQUENCE.itemsize

    def type_id(self) -> h5t.TypeID:
        """Return the HDF5 type."""
        return h5t.vlen_create(self.base.type_id())


@dataclass(frozen=True, slots=True)
class CompoundType:
    """Members one after the other."""

    members: tuple[tuple[str, MemoryType], ...]

    @property
    def itemsize(self) -> int:
        """Bytes of an element in memory."""
        return sum(memory_type.itemsize for _, memory_type in self.members)

    def type_id(self) -> h5t.TypeID:
        """Return the HDF5 type."""
        found, offset = h5t.create(h5t.COMPOUND, self.itemsize), 0
        for name, memory_type in self.members:
            found.insert(name.encode("utf-8", "surrogateescape"), offset, memory_type.type_id())
            offset += memory_type.itemsize
        return found


@dataclass(frozen=True, slots=True)
class ArrayType:
    """Arrays of one shape."""

    base: MemoryType
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of an element in memory."""
        return self.base.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def type_id(self) -> h5t.TypeID:
        """Return the HDF5 type."""
        return h5t.array_create(self.base.type_id(), self.shape)


MemoryType: TypeAlias = (
    NumPyType | StringType | ReferenceType | VlenType | CompoundType | ArrayType
)


def holds_references(memory_type: MemoryType) -> bool:
    """Tell whether elements are references, or hold some."""
    match memory_type:
        case ReferenceType():
            return True
        case VlenType(base=base) | ArrayType(base=base):
            return holds_references(base)
        case CompoundType(members=members):
            return any(holds_references(member) for _, member in members)
    return False


def choose_memory_type(values: npt.NDArray[Any] | ReferenceArray, label: str) -> MemoryType:
    """Say how values are stored.

    Parameters
    ----------
    values : numpy.ndarray or ReferenceArray
        Objects without a type of h5py must be of one kind: text, bytes, references,
        arrays. Where there are none, they are taken for text.
    label : str
        Begins errors: the variable or attribute.

    Raises
    ------
    UnsupportedError
        If HDF5 has no type for them.
    """
    if isinstance(values, ReferenceArray):
        return ReferenceType("region" if values.is_region else "object")
    return _memory_type(values.dtype, values, label)


def _memory_type(dtype: np.dtype[Any], values: npt.NDArray[Any], label: str) -> MemoryType:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return ArrayType(_memory_type(base, values, label), shape)
    if dtype.names is not None and dtype.hasobject:
        members = [
            (name, _memory_type(dtype[name], values[name], label)) for name in dtype.names
        ]
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
    """Say how objects are stored: by their type of h5py, or else by what they are."""
    kept: Any = dtype.metadata or {}
    base = kept.get("vlen")
    if isinstance(base, np.dtype):
        return _vlen_type(base, _join(values), label)
    if base is not None:
        return StringType("utf-8" if base is str else "ascii")
    found = {_object_kind(value) for value in values.flat} - {None}
    match sorted(map(str, found)):
        case [] | ["text"] | ["bytes", "text"]:
            return StringType("utf-8")
        case ["bytes"]:
            return StringType("ascii")
        case ["object"]:
            return ReferenceType("object")
        case ["region"] | ["object", "region"]:
            return ReferenceType("region")
        case ["array"]:
            joined = _join(values)
            return _vlen_type(joined.dtype, joined, label)
    kinds = sorted({type(value).__name__ for value in values.flat})
    raise UnsupportedError(
        f"{label}: HDF5 has no type for objects of {', '.join(kinds)}; text, bytes, "
        "references and arrays can be stored, of one kind"
    )


def _vlen_type(dtype: np.dtype[Any], joined: npt.NDArray[Any], label: str) -> VlenType:
    """Say how sequences are stored whose values, end to end, are given."""
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
        case ObjectReference():
            return "object"
        case RegionReference():
            return "region"
        case AttributeReference():
            return "object"  # which has no attributes: whoever makes them anew says so
        case np.ndarray() | list():
            return "array"
    return "unknown"


def _join(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the elements of all sequences, end to end."""
    parts = [np.asarray(value) for value in values.flat if value is not None]
    full = [part for part in parts if part.size] or parts
    if not full:
        return np.zeros(0)
    return np.concatenate([part.reshape(-1, *part.shape[1:]) for part in full])


ReferenceBytes: TypeAlias = Callable[[ReferenceArray, str], RawBytes]
"""Gives the bytes of references, ``(n, 8)``, or of a kind "region" ``(n, 12)``."""


class ElementEncoder:
    """Makes the bytes of elements, and keeps what they point at.

    Parameters
    ----------
    references : callable
        Gives the bytes of references, by the kind that they are stored as.
    """

    def __init__(self, references: ReferenceBytes) -> None:
        self._references = references
        self._kept: list[npt.NDArray[Any]] = []

    def encode(self, memory_type: MemoryType, values: Any) -> npt.NDArray[np.void]:
        """Return the elements of an array in memory, in its shape without those of items.

        Parameters
        ----------
        memory_type : MemoryType
            From `choose_memory_type`.
        values : numpy.ndarray or ReferenceArray
        """
        ndim = values.ndim - (
            len(memory_type.shape) if isinstance(memory_type, ArrayType) else 0
        )
        shape = values.shape[:ndim]
        flat = values.reshape((int(np.prod(shape, dtype=np.int64)), *values.shape[ndim:]))
        raw = np.ascontiguousarray(self._bytes(memory_type, flat))
        self._kept.append(raw)
        return raw.view(f"V{memory_type.itemsize}").reshape(shape)

    def _bytes(self, memory_type: MemoryType, values: Any) -> RawBytes:
        """Return the bytes of n elements, ``(n, itemsize)``."""
        n = len(values)
        match memory_type:
            case NumPyType(dtype=dtype):
                same = np.ascontiguousarray(values, dtype=dtype).reshape(n)
                return _bytes_of(same)
            case StringType():
                return self._texts(values)
            case ReferenceType(kind=kind):
                return self._pointers(values, kind)
            case VlenType(base=base):
                return self._sequences(values, base)
            case CompoundType(members=members):
                parts = [self._bytes(part, values[name]) for name, part in members]
                return np.concatenate(parts, axis=1)
            case ArrayType(base=base, shape=shape):
                each = int(np.prod(shape, dtype=np.int64))
                flat = values.reshape((n * each, *values.shape[1 + len(shape) :]))
                return self._bytes(base, flat).reshape(n, memory_type.itemsize)

    def _pointers(self, values: Any, kind: str) -> RawBytes:
        array = values
        if not isinstance(array, ReferenceArray):
            array = ReferenceArray.from_references(values, keep_kinds=True)
        return self._references(array, kind)

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
        joined = _join(values)
        lengths = [0 if value is None else len(value) for value in values.tolist()]
        length = np.array(lengths, dtype=np.int64)
        if isinstance(base, NumPyType):
            joined = joined.astype(base.dtype, copy=False)
        elements = np.ascontiguousarray(self._bytes(base, joined)).reshape(-1)
        out = np.zeros(len(values), dtype=_SEQUENCE)
        out["length"] = length
        begin = row_offsets(length)[:-1] * base.itemsize
        out["pointer"] = self._point(elements, begin).view(np.uintp)[:, 0]
        return _bytes_of(out)

    def _point(self, data: npt.NDArray[np.uint8], begin: IntArray) -> RawBytes:
        """Return pointers to places of a buffer, which is kept."""
        self._kept.append(data)
        pointers = data.ctypes.data + begin.astype(np.uintp)
        return _bytes_of(pointers.astype(np.uintp))


def _bytes_of(values: npt.NDArray[Any]) -> RawBytes:
    """Return the bytes of each element of a 1-D array, ``(n, itemsize)``."""
    itemsize = values.dtype.itemsize
    return values.view(f"V{itemsize}").view(np.uint8).reshape(len(values), itemsize)


def _encode(value: Any) -> bytes:
    """Return the bytes of one text; none for a missing one."""
    if value is None:
        return b""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
