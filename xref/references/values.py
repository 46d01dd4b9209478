"""Values of stored elements that contain references, without HDF5.

In: the bytes of elements and their type. Out: NumPy arrays. References, sequences and text
become objects, other members get the NumPy type of `value_dtype`. HDF5 is not used, because it
does not check the bytes of region references, and h5py has no type for newer references.

Each member of a compound and each level of nesting is decoded for all elements at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.errors import ResultTooLargeError, UnsupportedError
from xref.hdf5 import Datatype, read_sequences, std_itemsize, value_dtype
from xref.objects import RawAttributeValue, file_content, file_format, reference_itemsize
from xref.references.array import ReferenceArray
from xref.references.columns import KIND_NOUNS
from xref.references.decoding import decode_references
from xref.references.owners import ElementNames, Owner, box_of_shape
from xref.references.reference import DEFAULT_OPTIONS, DecodeOptions
from xref.storage import FileLocation

RawBytes = npt.NDArray[np.uint8]
Describe = Callable[[int], str]  # names element i in errors

TEXTS_NBYTES = 64 << 20
TEXTS_RATIO = 16
"""Limits on the total bytes of texts, absolute and as a multiple of the stored bytes. In a
damaged file many texts may share the same stored bytes."""


def decode_values(
    location: FileLocation,
    datatype: Datatype,
    raw: RawBytes,
    names: ElementNames,
    options: DecodeOptions = DEFAULT_OPTIONS,
) -> npt.NDArray[Any]:
    """Decode stored elements of any type that NumPy can hold.

    Parameters
    ----------
    location : FileLocation
        The file that the bytes come from.
    datatype : Datatype
        Type of one element.
    raw : numpy.ndarray
        Shape ``(n, itemsize)``, uint8.
    names : ElementNames
        Names the elements in errors; references among the values keep their names.
    options : DecodeOptions
        Options for resolving references among the values.

    Returns
    -------
    numpy.ndarray
        Shape ``(n,)``, followed by the axes of an array type; its dtype is `value_dtype`.

    Raises
    ------
    CorruptFileError
        If the bytes of references, sequences or the heap are invalid.
    UnsupportedError
        If NumPy has no type for the elements.
    """
    return _ElementDecoder(location, options).values(datatype, raw, names)


def decode_elements(
    value: RawAttributeValue, location: FileLocation, owner: Owner, options: DecodeOptions
) -> npt.NDArray[Any]:
    """Decode the elements of an attribute, in its shape; ``owner`` names the attribute."""
    n, itemsize = math.prod(value.shape), value.datatype.itemsize
    raw = np.frombuffer(value.data, dtype=np.uint8)[: n * itemsize].reshape(n, itemsize)
    owner = replace(owner, slices=box_of_shape(value.shape))
    names = ElementNames.of_owner(owner, range(n))
    values = decode_values(location, value.datatype, raw, names, options)
    return values.reshape(value.shape + values.shape[1:])


class _ElementDecoder:
    """Decodes elements of one file."""

    def __init__(self, location: FileLocation, options: DecodeOptions) -> None:
        self.location = location
        self.options = options

    def values(
        self, datatype: Datatype, raw: RawBytes, names: ElementNames
    ) -> npt.NDArray[Any]:
        match datatype:
            case Datatype(type_class="reference", reference=kind):
                return self.references(kind, raw, names)
            case Datatype(type_class="vlen", is_string=True):
                return self.texts(raw, names.describe)
            case Datatype(type_class="vlen", base=Datatype() as base):
                return self.sequences(base, raw, names)
            case Datatype(type_class="array", base=Datatype() as base, shape=shape):
                return self.arrays(base, shape, raw, names)
            case Datatype(type_class="compound"):
                return self.compounds(datatype, raw, names)
            case Datatype(type_class="string", padding=padding):
                return self.fixed_texts(padding, raw)
            case Datatype(dtype=np.dtype() as dtype):
                plain = np.ascontiguousarray(raw).view(dtype).reshape(len(raw))
                wanted = value_dtype(datatype)
                if datatype.type_class == "opaque":
                    return plain.view(wanted)
                return plain.astype(wanted, copy=False)
        raise UnsupportedError(
            f"{names.describe(0)} has a type that NumPy lacks: {datatype.type_class!r}"
        )

    def references(self, kind: str, raw: RawBytes, names: ElementNames) -> npt.NDArray[Any]:
        # In files with short addresses, elements of sequences end with unused bytes.
        width = reference_itemsize(kind, file_format(self.location).offset_size)
        packed = np.ascontiguousarray(raw[:, :width])
        columns = decode_references(self.location, packed, kind, names.describe)
        names = names.with_noun(KIND_NOUNS[kind])
        array = ReferenceArray(
            (len(raw),), kind=kind, columns=columns, options=self.options, names=names
        )
        return np.asarray(array)

    def compounds(
        self, datatype: Datatype, raw: RawBytes, names: ElementNames
    ) -> npt.NDArray[Any]:
        out = np.zeros(len(raw), dtype=value_dtype(datatype))
        members = (out.real, out.imag) if out.dtype.kind == "c" else None
        for i, field in enumerate(datatype.fields):
            stop = field.offset + field.datatype.itemsize
            member = names.within(field.name)
            values = self.values(field.datatype, raw[:, field.offset : stop], member)
            if members is None:
                out[field.name] = values
            else:
                members[i][...] = values
        return out

    def fixed_texts(self, padding: str, raw: RawBytes) -> npt.NDArray[Any]:
        """Decode text of fixed length without padding, as HDF5 converts it."""
        packed = np.ascontiguousarray(raw)
        if padding == "null-terminated":
            packed = np.where(np.logical_and.accumulate(packed != 0, axis=1), packed, 0)
        text = packed.astype(np.uint8).view(f"S{raw.shape[1]}").reshape(len(raw))
        return np.strings.rstrip(text, b" ").astype(text.dtype) if "space" in padding else text

    def texts(self, raw: RawBytes, describe: Describe) -> npt.NDArray[Any]:
        """Decode text of variable length to bytes, as h5py does within other types."""
        sequences = read_sequences(file_content(self.location), raw, 1, describe)
        data = sequences.elements.tobytes()
        texts: dict[tuple[int, int], bytes] = {}
        nbytes = 0
        out = np.empty(len(raw), dtype=object)
        for i, key in enumerate(
            zip(sequences.begin.tolist(), sequences.length.tolist(), strict=True)
        ):
            if key not in texts:
                begin, n = key
                nbytes += n
                if nbytes > max(TEXTS_NBYTES, TEXTS_RATIO * len(data)):
                    raise ResultTooLargeError(
                        f"{describe(i)} and other elements are text of more than {nbytes} "
                        f"bytes, which share {len(data)} stored bytes; read fewer at a time"
                    )
                texts[key], _, _ = data[begin : begin + n].partition(b"\0")
            out[i] = texts[key]
        return out

    def sequences(self, base: Datatype, raw: RawBytes, names: ElementNames) -> npt.NDArray[Any]:
        itemsize = base.itemsize
        if base.reference == "std":
            # HDF5 states and reserves the size in memory, but stores the elements without
            # gaps, in the size that they have in the file.
            itemsize = std_itemsize(file_format(self.location).offset_size)
        sequences = read_sequences(file_content(self.location), raw, itemsize, names.describe)
        values = self.values(base, sequences.elements, names.items(sequences.owner))
        stop = (sequences.begin + sequences.length).tolist()
        out = np.empty(len(raw), dtype=object)
        for i, begin in enumerate(sequences.begin.tolist()):
            out[i] = values[begin : stop[i]]
        return out

    def arrays(
        self, base: Datatype, shape: tuple[int, ...], raw: RawBytes, names: ElementNames
    ) -> npt.NDArray[Any]:
        each = math.prod(shape)
        flat = np.ascontiguousarray(raw).reshape(len(raw) * each, base.itemsize)
        values = self.values(base, flat, names.items(np.arange(len(flat)) // each))
        return values.reshape(len(raw), *shape, *values.shape[1:])
