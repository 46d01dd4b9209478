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

from xref.columns import row_offsets
from xref.datatypes import Datatype, value_dtype
from xref.decode import decode_references
from xref.elements import DEFAULT_OPTIONS, DecodeOptions
from xref.errors import UnsupportedError
from xref.h5attributes import RawElements
from xref.h5file import FileLocation, file_format
from xref.h5layout import reference_itemsize
from xref.heapread import read_sequences
from xref.references import ReferenceArray

RawBytes = npt.NDArray[np.uint8]
Describe = Callable[[int], str]


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
    decode = _Decode(location, options)
    return decode.values(datatype, raw, describe)


def decode_elements(
    value: RawElements, location: FileLocation, where: str, options: DecodeOptions
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
            case Datatype(kind="reference", reference=kind):
                return self.references(kind, raw, describe)
            case Datatype(kind="vlen", is_string=True, charset=charset):
                return self.texts(charset, raw, describe)
            case Datatype(kind="vlen", base=Datatype() as base):
                return self.sequences(base, raw, describe)
            case Datatype(kind="array", base=Datatype() as base, shape=shape):
                return self.arrays(base, shape, raw, describe)
            case Datatype(kind="compound", fields=fields):
                out = np.zeros(len(raw), dtype=value_dtype(datatype))
                for field in fields:
                    stop = field.offset + field.datatype.itemsize
                    out[field.name] = self.values(
                        field.datatype, raw[:, field.offset : stop], describe
                    )
                return out
            case Datatype(dtype=np.dtype() as dtype):
                plain = np.ascontiguousarray(raw).view(dtype).reshape(len(raw))
                return plain.astype(value_dtype(datatype), copy=False)
        raise UnsupportedError(f"{describe(0)} is of a type without NumPy's: {datatype.kind!r}")

    def references(self, kind: str, raw: RawBytes, describe: Describe) -> npt.NDArray[Any]:
        # Some writers leave room behind each reference, as much as it has in memory.
        width = reference_itemsize(kind, file_format(self.location).offset_size)
        packed = np.ascontiguousarray(raw[:, :width])
        columns = decode_references(self.location, packed, kind, describe)
        array = ReferenceArray((len(raw),), kind=kind, columns=columns, options=self.options)
        return np.asarray(array)

    def texts(self, charset: str, raw: RawBytes, describe: Describe) -> npt.NDArray[Any]:
        del charset  # odd bytes survive either way
        found = read_sequences(self.location, raw, 1, describe)
        data = found.elements.tobytes()
        stops = np.cumsum(found.length).tolist()
        out = np.empty(len(raw), dtype=object)
        for i, (n, stop) in enumerate(zip(found.length.tolist(), stops, strict=True)):
            text, _, _ = data[stop - n : stop].partition(b"\0")
            out[i] = text.decode("utf-8", "surrogateescape")
        return out

    def sequences(self, base: Datatype, raw: RawBytes, describe: Describe) -> npt.NDArray[Any]:
        found = read_sequences(self.location, raw, base.itemsize, describe)
        owner = np.repeat(np.arange(len(raw)), found.length)
        values = self.values(base, found.elements, lambda i: describe(int(owner[i])))
        offsets = row_offsets(found.length).tolist()
        out = np.empty(len(raw), dtype=object)
        for i in range(len(raw)):
            out[i] = values[offsets[i] : offsets[i + 1]]
        return out

    def arrays(
        self, base: Datatype, shape: tuple[int, ...], raw: RawBytes, describe: Describe
    ) -> npt.NDArray[Any]:
        each = math.prod(shape)
        flat = np.ascontiguousarray(raw).reshape(len(raw) * each, base.itemsize)
        values = self.values(base, flat, lambda i: describe(i // each))
        return values.reshape(len(raw), *shape, *values.shape[1:])
