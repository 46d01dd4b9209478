"""Stored elements that hold references into values, without HDF5.

In: the bytes of elements and their type. Out: NumPy arrays: references, sequences and
text become objects, all else what the type says. HDF5 is asked for nothing: it takes
the bytes of region references for granted, and h5py has no form for newer ones.

Each member of a compound and each level of nesting is decoded for all elements
together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.errors import ResultTooLargeError, UnsupportedError
from xref.hdf5 import Datatype, read_sequences, std_itemsize, value_dtype
from xref.objects import RawAttributeValue, file_content, file_format, reference_itemsize
from xref.references.array import ReferenceArray
from xref.references.decoding import decode_references
from xref.references.reference import DEFAULT_OPTIONS, DecodeOptions
from xref.storage import FileLocation

RawBytes = npt.NDArray[np.uint8]
Describe = Callable[[int], str]

TEXTS_NBYTES = 64 << 20
TEXTS_RATIO = 16
"""Texts that begin alike may share their bytes; together they may take as many bytes as
this, or this many times what is stored."""


def decode_values(
    location: FileLocation,
    datatype: Datatype,
    raw: RawBytes,
    describe: Describe,
    options: DecodeOptions = DEFAULT_OPTIONS,
) -> npt.NDArray[Any]:
    """Decode stored elements of any type that NumPy can hold.

    Parameters
    ----------
    location : FileLocation
        The file that the bytes come from.
    datatype : Datatype
        Of one element.
    raw : numpy.ndarray
        Shape ``(n, itemsize)``, uint8.
    describe : callable
        Names element i in errors.
    options : DecodeOptions
        How references among the values resolve.

    Returns
    -------
    numpy.ndarray
        Shape ``(n,)``, followed by the axes of an array type; of `value_dtype`.

    Raises
    ------
    CorruptFileError
        If bytes of references, sequences or the heap make no sense.
    UnsupportedError
        If NumPy has no type for the elements.
    """
    return _Decode(location, options).values(datatype, raw, describe)


def decode_elements(
    value: RawAttributeValue, location: FileLocation, where: str, options: DecodeOptions
) -> npt.NDArray[Any]:
    """Decode the elements of an attribute, in its shape."""
    n, itemsize = math.prod(value.shape), value.datatype.itemsize
    raw = np.frombuffer(value.data, dtype=np.uint8)[: n * itemsize].reshape(n, itemsize)
    values = decode_values(location, value.datatype, raw, lambda _: where, options)
    return values.reshape(value.shape + values.shape[1:])


class _Decode:
    """Decodes elements of one file."""

    def __init__(self, location: FileLocation, options: DecodeOptions) -> None:
        self.location = location
        self.options = options

    def values(self, datatype: Datatype, raw: RawBytes, describe: Describe) -> npt.NDArray[Any]:
        match datatype:
            case Datatype(type_class="reference", reference=kind):
                return self.references(kind, raw, describe)
            case Datatype(type_class="vlen", is_string=True):
                return self.texts(raw, describe)
            case Datatype(type_class="vlen", base=Datatype() as base):
                return self.sequences(base, raw, describe)
            case Datatype(type_class="array", base=Datatype() as base, shape=shape):
                return self.arrays(base, shape, raw, describe)
            case Datatype(type_class="compound"):
                return self.compounds(datatype, raw, describe)
            case Datatype(type_class="string", padding=padding):
                return self.fixed_texts(padding, raw)
            case Datatype(dtype=np.dtype() as dtype):
                plain = np.ascontiguousarray(raw).view(dtype).reshape(len(raw))
                wanted = value_dtype(datatype)
                if datatype.type_class == "opaque":
                    return plain.view(wanted)
                return plain.astype(wanted, copy=False)
        raise UnsupportedError(
            f"{describe(0)} is of a type without NumPy's: {datatype.type_class!r}"
        )

    def references(self, kind: str, raw: RawBytes, describe: Describe) -> npt.NDArray[Any]:
        # In files of short addresses sequences leave room behind each reference.
        width = reference_itemsize(kind, file_format(self.location).offset_size)
        packed = np.ascontiguousarray(raw[:, :width])
        columns = decode_references(self.location, packed, kind, describe)
        array = ReferenceArray((len(raw),), kind=kind, columns=columns, options=self.options)
        return np.asarray(array)

    def compounds(
        self, datatype: Datatype, raw: RawBytes, describe: Describe
    ) -> npt.NDArray[Any]:
        out = np.zeros(len(raw), dtype=value_dtype(datatype))
        members = (out.real, out.imag) if out.dtype.kind == "c" else None
        for i, field in enumerate(datatype.fields):
            stop = field.offset + field.datatype.itemsize
            values = self.values(field.datatype, raw[:, field.offset : stop], describe)
            if members is None:
                out[field.name] = values
            else:
                members[i][...] = values
        return out

    def fixed_texts(self, padding: str, raw: RawBytes) -> npt.NDArray[Any]:
        """Decode text of fixed length without what pads it, as HDF5 converts it."""
        packed = np.ascontiguousarray(raw)
        if padding == "null-terminated":
            packed = np.where(np.logical_and.accumulate(packed != 0, axis=1), packed, 0)
        text = packed.astype(np.uint8).view(f"S{raw.shape[1]}").reshape(len(raw))
        return np.strings.rstrip(text, b" ").astype(text.dtype) if "space" in padding else text

    def texts(self, raw: RawBytes, describe: Describe) -> npt.NDArray[Any]:
        """Decode text of variable length: bytes, as h5py gives it within other types."""
        found = read_sequences(file_content(self.location), raw, 1, describe)
        data = found.elements.tobytes()
        known: dict[tuple[int, int], bytes] = {}
        nbytes = 0
        out = np.empty(len(raw), dtype=object)
        for i, key in enumerate(zip(found.begin.tolist(), found.length.tolist(), strict=True)):
            if key not in known:
                begin, n = key
                nbytes += n
                if nbytes > max(TEXTS_NBYTES, TEXTS_RATIO * len(data)):
                    raise ResultTooLargeError(
                        f"{describe(i)} and others are text of more than {nbytes} bytes, "
                        f"stored in {len(data)} bytes that they share; read fewer at a time"
                    )
                known[key], _, _ = data[begin : begin + n].partition(b"\0")
            out[i] = known[key]
        return out

    def sequences(self, base: Datatype, raw: RawBytes, describe: Describe) -> npt.NDArray[Any]:
        itemsize = base.itemsize
        if base.reference == "std":
            # HDF5 states the size that they have in memory, and reserves it, but stores
            # them as closely as anywhere else.
            itemsize = std_itemsize(file_format(self.location).offset_size)
        found = read_sequences(file_content(self.location), raw, itemsize, describe)
        values = self.values(base, found.elements, lambda i: describe(int(found.owner[i])))
        stop = (found.begin + found.length).tolist()
        out = np.empty(len(raw), dtype=object)
        for i, begin in enumerate(found.begin.tolist()):
            out[i] = values[begin : stop[i]]
        return out

    def arrays(
        self, base: Datatype, shape: tuple[int, ...], raw: RawBytes, describe: Describe
    ) -> npt.NDArray[Any]:
        each = math.prod(shape)
        flat = np.ascontiguousarray(raw).reshape(len(raw) * each, base.itemsize)
        values = self.values(base, flat, lambda i: describe(i // each))
        return values.reshape(len(raw), *shape, *values.shape[1:])
