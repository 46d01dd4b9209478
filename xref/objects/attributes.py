"""Attributes through h5py, and the dimension scales that they list.

In: open objects of `xref.objects.objects`. Out: plain values, raw bytes of references, and
addresses of dimension scales. The type of an attribute is inspected first: values that contain
references are read from the bytes of the object header.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5, h5a, h5i, h5p, h5s

from xref import hdf5
from xref.errors import (
    CorruptFileError,
    DanglingReferenceError,
    FileChangedError,
    FileReadError,
    XrefError,
)
from xref.objects.netcdf_names import DIMENSION_LIST, SCALE_ATTRIBUTES
from xref.objects.objects import Object, decode_name
from xref.objects.parsing import byte_source, file_content, file_format
from xref.objects.stored_object import StoredObject
from xref.objects.stored_types import (
    holds_tags,
    reference_itemsize,
    reference_kind,
    reference_kinds,
    unconverted_dtype,
)
from xref.storage import FileLocation


@dataclass(frozen=True, slots=True)
class RawAttributeReferences:
    """References of an attribute as stored bytes."""

    kind: str  # "object" or "region"
    shape: tuple[int, ...]
    data: bytes  # an address of offset size each; for regions also 4 bytes, heap index


@dataclass(frozen=True, slots=True)
class RawAttributeValue:
    """Elements of an attribute as stored, of a type that h5py does not read.

    They contain references, or opaque values with a tag.
    """

    datatype: hdf5.Datatype
    shape: tuple[int, ...]
    data: bytes


def read_attributes(
    item: Object, stored: StoredObject
) -> tuple[dict[str, Any], dict[str, Exception]]:
    """Read all attributes of an object, whose address is known.

    h5py does not read region references in variable-length sequences, because they corrupt
    its memory.

    Returns
    -------
    values : dict
        Plain values, `RawAttributeReferences` for references, an empty array for a null
        dataspace.
    problems : dict
        By name, the error of each attribute that could not be read.
    """
    values: dict[str, Any] = {}
    problems: dict[str, Exception] = {}
    raw = _RawAttributes(stored)
    names: list[bytes] = []
    try:
        # In some files of JLD2 the number of attributes is 0; iterating finds them.
        h5a.iterate(item.id, names.append)
        if len(names) > 1 and _are_ordered(item):
            names.clear()
            h5a.iterate(item.id, names.append, index_type=h5.INDEX_CRT_ORDER)
    except (RuntimeError, OSError, ValueError) as error:
        return values, {"": error}
    for key in names:
        name = decode_name(key)
        try:
            attribute = h5a.open(item.id, key)
            values[name] = _attribute_value(item, name, attribute, raw)
        except (RuntimeError, OSError, ValueError, TypeError, KeyError, UnicodeError) as error:
            problems[name] = error.with_traceback(None)  # it would keep the file open
    return values, problems


def _are_ordered(item: Object) -> bool:
    """Tell whether the file keeps the order in which attributes were created."""
    if isinstance(item, h5py.Datatype):
        return False
    return bool(item.id.get_create_plist().get_attr_creation_order() & h5p.CRT_ORDER_TRACKED)


def has_attribute(item: Object, name: str) -> bool:
    """Tell whether an object has an attribute."""
    return bool(h5a.exists(item.id, name.encode("utf-8", "surrogateescape")))


def read_attribute(item: Object, name: str, stored: StoredObject) -> Any:
    """Read one attribute, as `read_attributes` does.

    Raises
    ------
    DanglingReferenceError
        If the object has no attribute of that name.
    FileReadError
        If h5py cannot read it.
    """

    def where() -> str:
        return f"{stored.filename}: attribute {name!r} of {stored.label}"

    try:
        if not has_attribute(item, name):
            raise DanglingReferenceError(f"{where()}: there is no attribute of that name")
        attribute = h5a.open(item.id, name.encode("utf-8", "surrogateescape"))
        return _attribute_value(item, name, attribute, _RawAttributes(stored))
    except XrefError:
        raise
    except (RuntimeError, OSError, ValueError, TypeError, KeyError, UnicodeError) as error:
        raise FileReadError(f"{where()} could not be read: {error}") from error


class _RawAttributes:
    """The attributes of one object as bytes; the first use reads the object header."""

    def __init__(self, stored: StoredObject) -> None:
        self._stored = stored
        self._values: dict[str, RawAttributeValue] | None = None
        self._problems: dict[str, XrefError] = {}

    def get(self, name: str) -> RawAttributeValue:
        where = f"{self._stored.filename}: object at {self._stored.address:#x}"
        if self._values is None:
            source = byte_source(self._stored.location, where)
            raw = hdf5.read_raw_attributes(
                source, self._stored.address, self._problems.__setitem__
            )
            self._values = {
                r.name: RawAttributeValue(r.datatype, (0,) if r.is_null else r.shape, r.data)
                for r in raw
            }
        if name in self._values:
            return self._values[name]
        raise self._problems.get(name) or CorruptFileError(
            f"{where} has no attribute {name!r} in its object header"
        )


def _attribute_value(
    item: Object, name: str, attribute: h5a.AttrID, raw: _RawAttributes
) -> Any:
    datatype = attribute.get_type()
    kind = reference_kind(datatype)
    if kind in ("object", "region"):
        out = _read_unconverted(attribute, datatype, f"V{datatype.get_size()}")
        offset_size, _ = h5i.get_file_id(item.id).get_create_plist().get_sizes()
        stored = as_stored(out, kind, offset_size, packed=False)
        return RawAttributeReferences(kind, attribute.shape, stored.tobytes())
    within = reference_kinds(datatype)
    if within and not (within == {"object"} and name in SCALE_ATTRIBUTES):
        return raw.get(name)
    unconverted = unconverted_dtype(datatype)
    if unconverted is not None:
        if attribute.get_space().get_simple_extent_type() == h5s.NULL:
            return np.empty(0, dtype=unconverted)
        return _read_unconverted(attribute, datatype, unconverted)[()]
    if holds_tags(datatype):  # beside text or sequences, which HDF5 converts
        return raw.get(name)
    value = item.attrs.__getitem__(name.encode("utf-8", "surrogateescape"))
    string = h5py.check_string_dtype(attribute.dtype)
    if isinstance(value, h5py.Empty):
        # netCDF writes an empty text as a null dataspace.
        is_text = string is not None and string.length == 1
        return b"" if is_text else np.empty(0, dtype=attribute.dtype)
    if string is not None and string.length is not None and string.length > 1:
        texts = np.strings.decode(np.asarray(value, dtype="S"), "utf-8", "surrogateescape")
        # Other readers of netCDF-4 give such text as one flat list.
        return texts.astype(object).reshape(-1) if texts.ndim else str(texts[()])
    return value


def _read_unconverted(attribute: h5a.AttrID, datatype: Any, dtype: Any) -> npt.NDArray[Any]:
    out = np.zeros(attribute.shape, dtype=dtype)
    if out.size:
        attribute.read(out, mtype=datatype)
    return out


@dataclass(frozen=True, slots=True)
class AttachedScales:
    """The attribute "DIMENSION_LIST" of one dataset.

    False if no axis has an entry and the attribute follows the specification.
    """

    axes: tuple[tuple[int, ...], ...]  # addresses of each axis, as attached; 0: null reference
    problem: str = ""  # how the attribute contradicts the specification; then no axis has any

    def __bool__(self) -> bool:
        return bool(self.problem) or any(self.axes)


def attached_scales(
    datasets: Sequence[tuple[dict[str, Any], dict[str, Exception], int]], location: FileLocation
) -> list[AttachedScales]:
    """Return the addresses in the attribute "DIMENSION_LIST" of each dataset.

    ``datasets`` gives the attributes and the problems from `read_attributes`, and the number of
    axes. The objects at the addresses are not opened.
    """
    found: list[AttachedScales] = []
    listed: list[h5py.Reference] = []
    lengths: list[list[int]] = []  # of each dataset whose entries are in ``listed``
    for attributes, problems, ndim in datasets:
        value = attributes.get(DIMENSION_LIST)
        problem = _list_problem(value, problems.get(DIMENSION_LIST), ndim) if ndim else ""
        entries: list[list[h5py.Reference]] = []
        if problem or value is None or not ndim:
            found.append(AttachedScales(((),) * ndim, problem))
        elif isinstance(value, RawAttributeValue):
            found.append(_std_scales(value, ndim, location))
        else:
            entries = [axis.tolist() for axis in value]
            found.append(AttachedScales(()))
        listed += itertools.chain(*entries)
        lengths.append([len(axis) for axis in entries])
    addresses = iter(reference_addresses(listed, file_format(location).offset_size))
    for number, counts in enumerate(lengths):
        if counts:
            axes = tuple(tuple(itertools.islice(addresses, n)) for n in counts)
            found[number] = AttachedScales(axes)
    return found


def _list_problem(value: Any, unreadable: Exception | None, ndim: int) -> str:
    """Say how a "DIMENSION_LIST" contradicts the specification of dimension scales 1.0."""
    if unreadable is not None:
        return f"cannot be read: {unreadable}"
    if isinstance(value, RawAttributeValue):
        base = value.datatype.base
        is_list, shape = base is not None and base.reference == "std", value.shape
    elif isinstance(value, np.ndarray) and value.dtype.kind == "O":
        is_list, shape = all(map(_are_references, value.flat)), value.shape
    else:
        is_list, shape = value is None, (ndim,)
    if not is_list:
        return "does not hold sequences of object references"
    return "" if shape == (ndim,) else f"has shape {shape}, and the dataset has rank {ndim}"


def _are_references(axis: Any) -> bool:
    """Tell whether an element is a sequence of object references; it may be empty."""
    if not isinstance(axis, np.ndarray) or axis.ndim != 1:
        return False
    return all(type(entry) is h5py.Reference for entry in axis.tolist())


def _std_scales(value: RawAttributeValue, ndim: int, location: FileLocation) -> AttachedScales:
    """Return the entries of one "DIMENSION_LIST" of references of HDF5 1.12."""

    def describe(axis: int) -> str:
        return f"{location.filename}: dimension scale of axis {axis}"

    raw = np.frombuffer(value.data, dtype=np.uint8).reshape(ndim, -1)
    offset_size = file_format(location).offset_size
    try:
        sequences = hdf5.read_sequences(
            file_content(location), raw, hdf5.std_itemsize(offset_size), describe
        )
        elements = hdf5.split_std_references(
            sequences.elements, offset_size=offset_size, describe=describe
        )
    except (FileReadError, FileChangedError):
        raise
    except XrefError as error:
        return AttachedScales(((),) * ndim, f"cannot be read: {error}")
    begin = sequences.begin.tolist()
    ends = (sequences.begin + sequences.length).tolist()
    addresses = elements.address.tolist()
    return AttachedScales(
        tuple(tuple(addresses[a:z]) for a, z in zip(begin, ends, strict=True))
    )


_file_numbers = itertools.count()


def reference_addresses(
    references: Sequence[h5py.Reference | None], offset_size: int
) -> list[int]:
    """Return the addresses in h5py object references, 0 for None, without following them.

    h5py does not give the bytes of a reference, so references are written to a dataset in
    memory and read back as bytes. Only the first ``offset_size`` bytes have a meaning.
    """
    if not any(references):
        return [0] * len(references)
    # HDF5 tells files in memory apart by name.
    name = f"xref-addresses-{next(_file_numbers)}"
    with h5py.File(name, "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("r", (len(references),), dtype=h5py.ref_dtype)
        objects = np.empty(len(references), dtype=object)
        objects[:] = references
        dataset[...] = objects
        raw = np.zeros(len(references), dtype="V8")
        dataset.id.read(h5s.ALL, h5s.ALL, raw, mtype=dataset.id.get_type())
        addresses = raw.view("<u8")
    mask = np.uint64(2 ** (8 * offset_size) - 1)
    result: list[int] = (addresses & mask).tolist()
    return result


def as_stored(
    values: npt.NDArray[np.void], kind: str, offset_size: int, *, packed: bool
) -> npt.NDArray[np.void]:
    """Cut references read by HDF5 to their size in the file.

    HDF5 reserves 8 bytes for each address. Each element is at the beginning of its reserved
    bytes. With ``packed``, the elements follow each other without gaps.
    """
    width = reference_itemsize(kind, offset_size)
    if width == values.dtype.itemsize:
        return values
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    kept = raw[: values.size * width] if packed else raw.reshape(values.size, -1)[:, :width]
    return np.ascontiguousarray(kept).view(f"V{width}").reshape(values.shape)
