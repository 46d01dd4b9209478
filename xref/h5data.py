"""Datasets and attributes through h5py: types, layouts, chunk indices, plain reads.

In: open objects of `xref.h5objects`, or their addresses. Out: frozen values, NumPy
arrays, raw bytes of references. What the direct reader cannot decode is read
here, under h5py's lock.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5a, h5d, h5i, h5p, h5s, h5t

from xref.errors import (
    CorruptFileError,
    DanglingReferenceError,
    ExternalFileError,
    FileReadError,
    UnsupportedError,
    XrefError,
)
from xref.filters import Filter, FilterPipeline
from xref.h5file import FileLocation, cached_by_location, check_external, file_format
from xref.h5objects import Object, open_dataset, text
from xref.layout import (
    UNDEFINED_ADDRESS,
    ChunkIndex,
    DatasetLayout,
    build_chunk_index,
    check_extent,
    element_dtype,
    items,
)
from xref.stdrefs import std_itemsize


def reference_kind(datatype: h5t.TypeID) -> str:
    """Return "object", "region", "std" (HDF5 1.12) or "" for what is no reference."""
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


_TIMES = (
    (h5t.UNIX_D32LE, "<i4"),
    (h5t.UNIX_D32BE, ">i4"),
    (h5t.UNIX_D64LE, "<i8"),
    (h5t.UNIX_D64BE, ">i8"),
)


def _time_dtype(datatype: h5t.TypeID) -> np.dtype[Any] | None:
    """Return the integers that times are stored as; None for any other type.

    h5py has no NumPy type for the class "Time" of HDF5, and HDF5 converts it to no
    other: its elements are read as they are stored.
    """
    if datatype.get_class() != h5t.TIME:
        return None
    for known, dtype in _TIMES:
        if datatype.equal(known):
            return np.dtype(dtype)
    return None


def _indirect_type(datatype: h5t.TypeID, dtype: np.dtype[Any]) -> str:
    """Say why stored elements are not bytes of a NumPy dtype; empty when they are."""
    if dtype.hasobject:
        return f"type {dtype}: elements of variable length"
    if dtype.itemsize != datatype.get_size():
        return f"type {dtype}: {datatype.get_size()} bytes stored"
    try:
        expected = h5t.py_create(dtype, logical=True)
    except TypeError:
        return f"type {dtype}: NumPy's form is not known to h5py"
    return "" if expected.equal(datatype) else f"type {dtype}: needs a conversion"


@dataclass(frozen=True, slots=True)
class DatasetLabel:
    """Names a dataset in messages; its path is searched for only when one is written."""

    location: FileLocation
    dataset: h5py.Dataset

    def __str__(self) -> str:
        path = self.dataset.name or "a dataset without a name"
        return f"{self.location.filename}: {path}"


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What is known of one dataset from opening it once.

    Attributes
    ----------
    layout : DatasetLayout
    attributes : dict
        As `read_attributes` gives them, without the lists of dimension scales.
    problems : dict
        Why an attribute could not be read, by name.
    scales : tuple of int
        Address of the dimension scale of each axis, 0 where there is none; empty
        when the dataset lists none.
    """

    layout: DatasetLayout
    attributes: dict[str, Any]
    problems: dict[str, Exception]
    scales: tuple[int, ...]


@cached_by_location(maxsize=1 << 15)
def dataset_facts(location: FileLocation, address: int) -> DatasetFacts:
    """Open the dataset at an address and return what it says of itself."""
    dataset = open_dataset(location, address)
    layout = read_layout(dataset, location, address)
    attributes, problems = read_attributes(dataset, location, address)
    (scales,) = scale_addresses([(attributes, len(layout.shape))], location)
    for name in SCALE_ATTRIBUTES:
        attributes.pop(name, None)
        problems.pop(name, None)
    return DatasetFacts(layout, attributes, problems, tuple(scales) if any(scales) else ())


def scale_addresses(
    datasets: Sequence[tuple[dict[str, Any], int]], location: FileLocation
) -> list[list[int]]:
    """Return the address of the scale of each axis, the last one attached.

    Parameters
    ----------
    datasets : sequence of (dict, int)
        Attributes and number of axes of each dataset.
    location : FileLocation
        The file that they are in.

    Returns
    -------
    list of list of int
        0 for an axis without a scale; for all of them where the attribute is not what
        the specification of dimension scales (1.0, "DIMENSION_LIST") says.
    """
    found: list[list[int]] = []
    attached: list[h5py.Reference | None] = []
    for attributes, ndim in datasets:
        value = attributes.get("DIMENSION_LIST")
        if isinstance(value, RawElements):
            found.append(_std_scales(value, ndim, location))
            attached += [None] * ndim
            continue
        found.append([0] * ndim)
        is_list = isinstance(value, np.ndarray) and value.shape == (ndim,)
        for axis in value if is_list else [None] * ndim:
            last = axis[-1] if isinstance(axis, np.ndarray) and axis.size else None
            attached.append(last if isinstance(last, h5py.Reference) else None)
    addresses = iter(reference_addresses(attached, file_format(location).offset_size))
    return [[next(addresses) or known for known in scales] for scales in found]


def _std_scales(value: RawElements, ndim: int, location: FileLocation) -> list[int]:
    """Return what `scale_addresses` does for one list of references of HDF5 1.12."""
    base = value.datatype.base
    if value.shape != (ndim,) or base is None or base.reference != "std":
        return [0] * ndim

    def describe(axis: int) -> str:
        return f"{location.filename}: dimension scale of axis {axis}"

    raw = np.frombuffer(value.data, dtype=np.uint8).reshape(ndim, -1)
    sequences = read_sequences(location, raw, base.itemsize, describe)
    last = np.cumsum(sequences.length)[sequences.length > 0] - 1
    elements = split_std_references(
        sequences.elements[last],
        offset_size=file_format(location).offset_size,
        describe=describe,
    )
    scales = np.zeros(ndim, dtype=np.uint64)
    scales[sequences.length > 0] = elements.address
    result: list[int] = scales.tolist()
    return result


def dataset_layout(location: FileLocation, address: int) -> DatasetLayout:
    """Return shape, type and storage of the dataset at an address."""
    return dataset_facts(location, address).layout


def read_layout(
    dataset: h5py.Dataset, location: FileLocation, address: int
) -> DatasetLayout:
    """Return shape, type and storage of an open dataset, whose address is known.

    Raises
    ------
    UnsupportedError
        If its elements have no NumPy type, or its extent cannot be numbered.
    CorruptFileError
        If its storage cannot be what it says.
    ExternalFileError
        If its data lie in other files that the location does not allow.
    """
    where = DatasetLabel(location, dataset)
    datatype = dataset.id.get_type()
    properties = dataset.id.get_create_plist()
    storage = properties.get_layout()
    if storage == h5d.VIRTUAL:  # HDF5 opens sources to tell an extent that follows them
        _check_virtual(properties, location, where)
    space = dataset.id.get_space()
    # A null dataspace holds no element: an array of none.
    shape = (0,) if space.get_simple_extent_type() == h5s.NULL else tuple(space.shape)
    kind = reference_kind(datatype)
    stored_itemsize = _stored_itemsize(datatype, file_format(location).offset_size)
    time, elements = _time_dtype(datatype), None
    if kind:
        dtype = np.dtype(f"V{stored_itemsize}")  # references are bytes here
    elif time is not None:
        dtype = time
    elif reference_kinds(datatype):
        elements = _stored_type(location, address, where)
        dtype = element_dtype(value_dtype(elements))
        stored_itemsize = elements.itemsize
    else:
        try:
            dtype = element_dtype(dataset.dtype)
        except TypeError as error:
            raise UnsupportedError(
                f"{where} has a type that h5py does not read: {error}"
            ) from error
    chunks = tuple(properties.get_chunk()) if storage == h5d.CHUNKED else None
    check_extent(shape, chunks, where)
    if elements is not None:
        indirect = f"type {dtype}: references within elements"
    else:
        indirect = "" if kind or time is not None else _indirect_type(datatype, dataset.dtype)
    storage_problem = "file: open for writing" if location.source.live else ""
    pipeline = FilterPipeline(
        filters=tuple(_filter(properties, i) for i in range(properties.get_nfilters()))
    )
    offset = None
    match storage:
        case h5d.CONTIGUOUS:
            if properties.get_external_count():
                _check_raw_external(dataset, location, where)
                storage_problem = storage_problem or "storage: external files"
            else:
                offset = dataset.id.get_offset()
        case h5d.COMPACT:
            storage_problem = storage_problem or COMPACT
        case h5d.CHUNKED:
            missing = pipeline.unsupported()
            if missing:
                storage_problem = storage_problem or f"filters: {', '.join(missing)}"
        case _:
            storage_problem = storage_problem or "storage: virtual"
    try:
        stored = int(dataset.id.get_storage_size())
    except (RuntimeError, OSError, ValueError) as error:
        raise CorruptFileError(f"{where} has storage that HDF5 cannot read: {error}") from error
    fill_value = _fill_value(properties, dtype, bool(kind))
    if fill_value is None:
        indirect = indirect or "fill value: not known to h5py"
    if stored == 0:
        offset = None  # nothing written yet; behind a user block HDF5 gives a number still
    if offset is not None:
        needed = math.prod(shape) * stored_itemsize
        if offset + needed > location.identity[2]:
            raise CorruptFileError(
                f"{where} needs {needed} bytes at {offset:#x}, past the end of the file "
                f"({location.identity[2]} bytes); the file may be truncated"
            )
        if stored < needed:
            raise CorruptFileError(f"{where} stores {stored} of the {needed} bytes it needs")
    return DatasetLayout(
        shape=shape,
        maxshape=_maxshape(space),
        dtype=dtype,
        chunks=chunks,
        offset=offset,
        pipeline=pipeline,
        fill_value=fill_value,
        stored_itemsize=stored_itemsize,
        reference_kind=kind,
        stored_nbytes=stored,
        elements=elements,
        indirect=indirect or storage_problem,
        stored_indirect=storage_problem,
        virtual=storage == h5d.VIRTUAL,
    )


COMPACT = "storage: compact"


def _stored_type(location: FileLocation, address: int, where: DatasetLabel) -> Datatype:
    """Return the type of a dataset from the bytes of its object header."""
    source = byte_source(location, str(where))
    for message in read_messages(source, address, {DATATYPE_MESSAGE}):
        return decode_datatype(message.body, str(where))
    raise CorruptFileError(f"{where} has no datatype in its object header")


def read_compact(location: FileLocation, address: int, where: str) -> bytes:
    """Return the data that a compact dataset keeps in its object header."""
    source = byte_source(location, where)
    data = compact_data(read_messages(source, address, {LAYOUT_MESSAGE}), where)
    if data is None:
        raise CorruptFileError(f"{where} has no compact data in its object header")
    return data


def _maxshape(space: h5s.SpaceID) -> tuple[int | None, ...]:
    if space.get_simple_extent_type() != h5s.SIMPLE:
        return () if space.get_simple_extent_type() == h5s.SCALAR else (0,)
    limits = space.get_simple_extent_dims(True)
    return tuple(None if n == h5s.UNLIMITED else int(n) for n in limits)


def _stored_itemsize(datatype: h5t.TypeID, offset_size: int) -> int:
    """Return the bytes of one element in the file; HDF5 tells its size in memory.

    They differ where an element holds an address: HDF5 File Format Specification
    4.0, "Variable-length and reference elements" in the global heap section.
    """
    match datatype.get_class():
        case h5t.COMPOUND:
            members = [datatype.get_member_type(i) for i in range(datatype.get_nmembers())]
            more = sum(_stored_itemsize(m, offset_size) - m.get_size() for m in members)
            return int(datatype.get_size() + more)
        case h5t.ARRAY:
            base = datatype.get_super()
            n = datatype.get_size() // base.get_size()
            return int(n * _stored_itemsize(base, offset_size))
        case h5t.VLEN:
            return 4 + offset_size + 4  # length, heap collection, heap object
        case h5t.STRING if datatype.is_variable_str():
            return 4 + offset_size + 4
        case h5t.REFERENCE:
            return _reference_itemsize(reference_kind(datatype), offset_size)
    return int(datatype.get_size())


def _reference_itemsize(kind: str, offset_size: int) -> int:
    """Return the bytes of one stored reference."""
    if kind == "std":
        return std_itemsize(offset_size)
    return offset_size + (4 if kind == "region" else 0)


def _filter(properties: h5p.PropDCID, index: int) -> Filter:
    number, flags, options, name = properties.get_filter(index)
    return Filter(
        id=number, flags=flags, options=tuple(options), name=name.decode("utf-8", "replace")
    )


def _fill_value(properties: h5p.PropDCID, dtype: np.dtype[Any], is_bytes: bool) -> Any:
    """Return the value of elements that were never written, None where h5py cannot tell."""
    value = np.zeros(1, dtype=dtype)
    defined = properties.fill_value_defined()
    if defined == h5d.FILL_VALUE_USER_DEFINED and not is_bytes:
        if dtype.hasobject or items(value) is not value:
            return None
        try:
            properties.get_fill_value(value)
        except (TypeError, ValueError, RuntimeError):
            return None
    return value[0]


def _check_raw_external(
    dataset: h5py.Dataset, location: FileLocation, where: DatasetLabel
) -> None:
    names = [os.fspath(name) for name, _, _ in dataset.external or ()]
    if location.external != "all":
        raise ExternalFileError(
            f"{where} keeps its data in other files ({', '.join(names)}); "
            'pass external="all" if this file is trusted'
        )
    for name in names:
        if os.path.exists(name) and not os.path.isfile(name):
            raise ExternalFileError(
                f"{where} keeps its data in {name!r}, which is no regular file"
            )


def _check_virtual(
    properties: h5p.PropDCID, location: FileLocation, where: DatasetLabel
) -> None:
    for i in range(properties.get_virtual_count()):
        name = properties.get_virtual_filename(i)
        if name != ".":
            check_external(location, name, f"{where} (virtual source)")


@lru_cache(maxsize=1)
def _chunk_offsets_skip_userblock() -> bool:
    """Tell whether this HDF5 counts chunk offsets from the base address.

    Releases differ, so one chunk behind a user block is looked up and compared.
    """
    with h5py.File(
        "xref-userblock", "w", driver="core", backing_store=False, userblock_size=512
    ) as file:
        file.create_dataset("d", data=np.arange(1, 9, dtype="u8"), chunks=(8,))
        file.flush()
        offset = file["d"].id.get_chunk_info(0).byte_offset
        image = file.id.get_file_image()
    # Images leave the user block out.
    position = image.find(np.arange(1, 9, dtype="<u8").tobytes())
    position += 512 if image.startswith(b"\x89HDF") else 0
    if offset not in (position, position - 512):
        raise UnsupportedError("this release of HDF5 gives chunk offsets in an unknown way")
    result: bool = offset != position
    return result


@cached_by_location(maxsize=64)
def chunk_index(location: FileLocation, address: int) -> ChunkIndex:
    """Return where each chunk of the dataset at an address lies."""
    dataset = open_dataset(location, address)
    layout = dataset_layout(location, address)
    where = DatasetLabel(location, dataset)
    found: list[Any] = []
    try:
        dataset.id.chunk_iter(found.append)
    except (RuntimeError, ValueError, OSError) as error:
        raise CorruptFileError(
            f"{where} has a chunk index that HDF5 cannot read: {error}"
        ) from error
    n, ndim = len(found), len(layout.shape)
    base = file_format(location).base_address
    shift = base if base and _chunk_offsets_skip_userblock() else 0
    addresses = np.fromiter((c.byte_offset for c in found), np.uint64, n)
    addresses[addresses != np.uint64(UNDEFINED_ADDRESS)] += np.uint64(shift)
    return build_chunk_index(
        np.array([c.chunk_offset for c in found], dtype=np.int64).reshape(n, ndim),
        addresses,
        np.fromiter((c.size for c in found), np.uint64, n),
        np.fromiter((c.filter_mask for c in found), np.uint32, n),
        layout=layout,
        file_nbytes=location.identity[2],
        where=str(where),
    )


def _box_space(
    dataset: h5py.Dataset, start: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[h5s.SpaceID, h5s.SpaceID]:
    space = dataset.id.get_space()
    if shape:
        space.select_hyperslab(start, shape)
    return space, h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)


def read_raw(
    dataset: h5py.Dataset, start: tuple[int, ...], shape: tuple[int, ...]
) -> npt.NDArray[np.void]:
    """Return references as the bytes they are stored in, without any conversion.

    Raises
    ------
    FileReadError
        If h5py cannot read them.
    UnsupportedError
        If they are of HDF5 1.12 and later: the library makes other objects of them.
    """
    datatype = dataset.id.get_type()
    if reference_kind(datatype) == "std":
        raise UnsupportedError(
            f"{dataset.file.filename}: {dataset.name or 'a dataset without a name'} holds "
            "H5T_STD_REF references in storage that is not read directly (compact, virtual, "
            "external, or with a filter that is not known)"
        )
    out = np.zeros(shape, dtype=f"V{datatype.get_size()}")
    _read_unconverted(dataset, start, out)
    offset_size, _ = h5i.get_file_id(dataset.id).get_create_plist().get_sizes()
    kind = reference_kind(datatype)
    return _as_stored(out, kind, offset_size, packed=kind == "region")


def _read_unconverted(
    dataset: h5py.Dataset, start: tuple[int, ...], out: npt.NDArray[Any]
) -> None:
    """Read the box of ``out``'s shape in the type that it has in the file."""
    if not out.size:
        return
    space, memory = _box_space(dataset, start, out.shape)
    try:
        dataset.id.read(memory, space, out, mtype=dataset.id.get_type())
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise _read_error(dataset, start, out.shape, error) from error


def _as_stored(
    values: npt.NDArray[np.void], kind: str, offset_size: int, *, packed: bool
) -> npt.NDArray[np.void]:
    """Give references read by HDF5 the width they have in the file.

    HDF5 makes room for addresses of 8 bytes. The elements stand at the beginning of
    their room, or, ``packed``, one after the other at the beginning of all of it.
    """
    width = _reference_itemsize(kind, offset_size)
    if width == values.dtype.itemsize:
        return values
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    if packed:
        kept = raw[: values.size * width]
    else:
        kept = raw.reshape(values.size, -1)[:, :width].reshape(-1)
    return np.ascontiguousarray(kept).view(f"V{width}").reshape(values.shape)


def _read_error(
    dataset: h5py.Dataset, start: tuple[int, ...], shape: tuple[int, ...], error: Exception
) -> FileReadError:
    return FileReadError(
        f"{dataset.file.filename}: {dataset.name or 'a dataset without a name'}: h5py could "
        f"not read {shape} elements at {start}: {error}"
    )


def read_values(
    dataset: h5py.Dataset, start: tuple[int, ...], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Return elements as h5py converts them; text as str, times as integers.

    Raises
    ------
    FileReadError
        If h5py cannot read them.
    """
    time = _time_dtype(dataset.id.get_type())
    if time is not None:
        out = np.zeros(shape, dtype=time)
        _read_unconverted(dataset, start, out)
        return out
    key = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
    string = h5py.check_string_dtype(dataset.dtype)
    try:
        if string is not None and string.length is None:
            return np.asarray(dataset.asstr("utf-8", "surrogateescape")[key])
        found = dataset[key]
        if not shape and h5py.check_vlen_dtype(dataset.dtype) is not None:
            one = np.empty((), dtype=object)  # one sequence, not its elements
            one[()] = found
            return one
        return np.asarray(found)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise _read_error(dataset, start, shape, error) from error


def is_reference_dtype(dtype: np.dtype[Any]) -> bool:
    """Tell whether h5py reads elements of a dtype as its object references."""
    return h5py.check_ref_dtype(dtype) is h5py.Reference


def sequence_base(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of the elements of variable-length sequences; text has none."""
    base = h5py.check_vlen_dtype(dtype)
    return np.dtype(base) if isinstance(base, np.dtype) else np.dtype(object)


def holds_references(dtype: np.dtype[Any]) -> bool:
    """Tell whether h5py reads elements of a dtype as object references, at any depth."""
    if dtype.names:
        return any(holds_references(dtype[name].base) for name in dtype.names)
    if h5py.check_vlen_dtype(dtype) is not None:
        return holds_references(sequence_base(dtype))
    return is_reference_dtype(dtype)


@dataclass(frozen=True, slots=True)
class RawReferences:
    """References of an attribute as the bytes they are stored in."""

    kind: str  # "object" or "region"
    shape: tuple[int, ...]
    data: bytes  # an address of the file's size each, for regions a heap index (4 bytes)


@dataclass(frozen=True, slots=True)
class RawElements:
    """Elements of an attribute that hold references among other things, as stored."""

    datatype: Datatype
    shape: tuple[int, ...]
    data: bytes


def read_attributes(
    item: Object, location: FileLocation, address: int
) -> tuple[dict[str, Any], dict[str, Exception]]:
    """Read all attributes of an object, whose address is known.

    The type is looked at before the value: h5py is not asked for region references
    in variable-length sequences, which corrupt its memory.

    Returns
    -------
    values : dict
        Plain values, `RawReferences` for references, an array of none for one
        without a value.
    problems : dict
        Why an attribute could not be read, by name.
    """
    values: dict[str, Any] = {}
    problems: dict[str, Exception] = {}
    try:
        n = h5a.get_num_attrs(item.id)
    except (RuntimeError, OSError, ValueError) as error:
        return values, {"": error}
    for index in range(n):
        name = f"number {index}"
        try:
            attribute = h5a.open(item.id, index=index)
            name = text(attribute.name)
            values[name] = _attribute_value(item, name, attribute, location, address)
        except (RuntimeError, OSError, ValueError, TypeError, KeyError, UnicodeError) as error:
            problems[name] = error.with_traceback(None)  # it would keep the file open
    return values, problems


def has_attribute(item: Object, name: str) -> bool:
    """Tell whether an object has an attribute."""
    return bool(h5a.exists(item.id, name.encode("utf-8", "surrogateescape")))


def read_attribute(item: Object, name: str, location: FileLocation, address: int) -> Any:
    """Read one attribute; the value is as `read_attributes` gives it.

    Raises
    ------
    DanglingReferenceError
        If the object has none of that name.
    FileReadError
        If h5py cannot read it.
    """
    where = f"{item.file.filename}: attribute {name!r} of {item.name or 'an unnamed object'}"
    try:
        if not has_attribute(item, name):
            raise DanglingReferenceError(f"{where}: there is none of that name")
        attribute = h5a.open(item.id, name.encode("utf-8", "surrogateescape"))
        return _attribute_value(item, name, attribute, location, address)
    except XrefError:
        raise
    except (RuntimeError, OSError, ValueError, TypeError, KeyError, UnicodeError) as error:
        raise FileReadError(f"{where} could not be read: {error}") from error


def _raw_elements(location: FileLocation, address: int, name: str) -> RawElements:
    """Read an attribute from the bytes of its object."""
    problems: dict[str, XrefError] = {}
    source = byte_source(location, f"{location.filename}: object at {address:#x}")
    for raw in read_raw_attributes(source, address, problems.__setitem__):
        if raw.name == name:
            return RawElements(raw.datatype, (0,) if raw.is_null else raw.shape, raw.data)
    raise problems.get(name) or CorruptFileError(
        f"{source.where} has no attribute {name!r} in its object header"
    )


def _attribute_value(
    item: Object, name: str, attribute: h5a.AttrID, location: FileLocation, address: int
) -> Any:
    datatype = attribute.get_type()
    kind = reference_kind(datatype)
    if kind in ("object", "region"):
        out = np.zeros(attribute.shape, dtype=f"V{datatype.get_size()}")
        if out.size:
            attribute.read(out, mtype=datatype)
        offset_size, _ = h5i.get_file_id(item.id).get_create_plist().get_sizes()
        stored = _as_stored(out, kind, offset_size, packed=False)
        return RawReferences(kind, attribute.shape, stored.tobytes())
    within = reference_kinds(datatype)
    if within and not (within == {"object"} and name in SCALE_ATTRIBUTES):
        return _raw_elements(location, address, name)
    time = _time_dtype(datatype)
    if time is not None:
        out = np.zeros(attribute.shape, dtype=time)
        if out.size:
            attribute.read(out, mtype=datatype)
        return out[()]
    value = item.attrs.__getitem__(name.encode("utf-8", "surrogateescape"))
    string = h5py.check_string_dtype(attribute.dtype)
    if isinstance(value, h5py.Empty):
        # What netCDF writes for a text of no character is a null dataspace.
        is_text = string is not None and string.length == 1
        return b"" if is_text else np.empty(0, dtype=attribute.dtype)
    if string is not None and string.length is not None and string.length > 1:
        texts = np.char.decode(np.asarray(value, dtype="S"), "utf-8", "surrogateescape")
        return texts.astype(object) if texts.ndim else str(texts[()])
    return value


_file_numbers = itertools.count()

SCALE_ATTRIBUTES = ("DIMENSION_LIST", "REFERENCE_LIST")


def reference_addresses(
    references: Sequence[h5py.Reference | None], offset_size: int
) -> list[int]:
    """Return the addresses in h5py object references, 0 for None, without following them.

    h5py shows no bytes of a reference; written to a dataset in memory they can be
    read back as they are. Only ``offset_size`` bytes of them have a meaning.
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
        found = read_raw(dataset, (0,), (len(references),)).view("<u8")
    mask = np.uint64(2 ** (8 * offset_size) - 1)
    result: list[int] = (found & mask).tolist()
    return result


def dataset_kind(dataset: h5py.Dataset) -> str:
    """Return the kind of reference that a dataset holds: "object", "region", "std" or ""."""
    return reference_kind(dataset.id.get_type())
