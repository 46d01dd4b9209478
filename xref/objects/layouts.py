"""Types and storage of datasets through h5py.

In: open datasets of `xref.objects.objects`. Out: frozen `DatasetLayout` values, checked against
the size of the file and the option ``external``.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t, h5z

from xref import hdf5
from xref.errors import CorruptFileError, ExternalFileError, UnsupportedError, XrefError
from xref.objects.parsing import byte_source, file_format
from xref.objects.stored_object import StoredObject
from xref.storage import check_external


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
class _TypeMetadata:
    """Properties of a datatype, cached because thousands of datasets share a few types."""

    kind: str  # of reference, or ""
    holds_references: bool  # within elements
    time: np.dtype[Any] | None
    dtype: np.dtype[Any] | None  # None if h5py has none
    problem: str  # why h5py has no dtype
    why_not_direct: str  # why stored elements are not the bytes of ``dtype``


@lru_cache(maxsize=1024)
def _type_metadata(encoded: bytes) -> _TypeMetadata:
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
    return _TypeMetadata(kind, within, time, dtype, problem, why_not_direct)


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


def read_layout(dataset: h5py.Dataset, stored: StoredObject) -> hdf5.DatasetLayout:
    """Return shape, type and storage of an open dataset, whose address is known.

    Raises
    ------
    UnsupportedError
        If the elements have no NumPy type, or the extent is too large to number elements.
    CorruptFileError
        If the storage contradicts the shape, the type or the size of the file.
    ExternalFileError
        If the data are in other files that the location does not allow.
    """
    properties = dataset.id.get_create_plist()
    storage = properties.get_layout()
    if storage == h5d.VIRTUAL:  # HDF5 opens the sources to compute an unlimited extent
        _check_virtual(properties, stored)
    space = dataset.id.get_space()
    # A null dataspace holds no element: an array without elements.
    shape = (0,) if space.get_simple_extent_type() == h5s.NULL else tuple(space.shape)
    datatype = dataset.id.get_type()
    metadata = _type_metadata(datatype.encode())
    dtype, elements, itemsize = _element_type(datatype, metadata, stored)
    chunks = tuple(properties.get_chunk()) if storage == h5d.CHUNKED else None
    hdf5.check_extent(shape, chunks, stored)
    pipeline = _read_pipeline(properties, stored)
    why_not_raw = _explain_storage(dataset, properties, pipeline, elements, stored)
    # For chunked storage HDF5 would walk the whole chunk index, damaged or not.
    nbytes = 0 if storage == h5d.CHUNKED else _storage_nbytes(dataset, stored)
    why_not_direct = metadata.why_not_direct
    fill_never = properties.get_fill_time() == h5d.FILL_TIME_NEVER
    fill_undefined = not fill_never and (
        properties.fill_value_defined() == h5d.FILL_VALUE_UNDEFINED
    )
    fill_bytes = b""
    if metadata.kind or elements is not None:
        fill_value = None if dtype.hasobject else np.zeros((), dtype=dtype)[()]
        if has_fill_value(properties):
            fill_bytes = stored_fill(stored, itemsize)
        if elements is not None:
            why_not_direct = f"type {dtype}: references within elements"
    else:
        fill_value = _fill_value(properties, dtype)
        if fill_value is None and not fill_never:
            why_not_direct = why_not_direct or "fill value: not known to h5py"
    offset = None
    # Without stored bytes nothing was written yet. HDF5 still gives an offset then, if the
    # file has a user block.
    if storage == h5d.CONTIGUOUS and not properties.get_external_count() and nbytes:
        offset = dataset.id.get_offset()
    if offset is not None:
        _check_contiguous(stored, offset, nbytes, math.prod(shape) * itemsize)
    return hdf5.DatasetLayout(
        shape=shape,
        maxshape=_maxshape(space),
        dtype=dtype,
        chunks=chunks,
        offset=offset,
        pipeline=pipeline,
        fill_value=fill_value,
        stored_itemsize=itemsize,
        reference_kind=metadata.kind,
        stored_nbytes=nbytes,
        elements=elements,
        why_not_direct=why_not_direct or why_not_raw,
        why_not_raw=why_not_raw,
        virtual=storage == h5d.VIRTUAL,
        stored_fill=fill_bytes,
        fill_never=fill_never,
        fill_undefined=fill_undefined,
        has_storage=not fill_undefined or _has_storage(dataset, properties, nbytes, stored),
    )


def _element_type(
    datatype: h5t.TypeID, metadata: _TypeMetadata, stored: StoredObject
) -> tuple[np.dtype[Any], hdf5.Datatype | None, int]:
    """Return the NumPy type, the HDF5 type if elements hold references, and stored bytes."""
    itemsize = _stored_itemsize(datatype, file_format(stored.location).offset_size)
    if metadata.kind:
        return np.dtype(f"V{itemsize}"), None, itemsize  # references are bytes here
    if metadata.time is not None:
        return metadata.time, None, itemsize
    if metadata.holds_references:
        elements = stored_type(stored)
        return hdf5.element_dtype(hdf5.value_dtype(elements)), elements, elements.itemsize
    if metadata.dtype is not None:
        return hdf5.element_dtype(metadata.dtype), None, itemsize
    raise UnsupportedError(f"{stored} has a type that h5py does not read: {metadata.problem}")


def _explain_storage(
    dataset: h5py.Dataset,
    properties: h5p.PropDCID,
    pipeline: hdf5.FilterPipeline,
    elements: hdf5.Datatype | None,
    stored: StoredObject,
) -> str:
    """Say why stored bytes cannot be read without HDF5; empty if they can."""
    problem = ""
    match properties.get_layout():
        case h5d.CONTIGUOUS:
            if properties.get_external_count():
                _check_raw_external(dataset, stored)
                problem = "storage: external files"
        case h5d.COMPACT:
            problem = COMPACT
        case h5d.CHUNKED:
            missing = used_filters(pipeline, elements).unsupported()
            problem = f"filters: {', '.join(missing)}" if missing else ""
        case _:
            problem = "storage: virtual"
    return "file: open for writing" if stored.location.source.open_for_writing else problem


def _check_contiguous(stored: StoredObject, offset: int, nbytes: int, needed: int) -> None:
    """Check that the elements of a contiguous dataset lie within the file."""
    file_nbytes = stored.location.identity[2]
    if offset + needed > file_nbytes:
        raise CorruptFileError(
            f"{stored} needs {needed} bytes at {offset:#x}, past the end of the file "
            f"({file_nbytes} bytes); the file may be truncated"
        )
    if nbytes < needed:
        raise CorruptFileError(f"{stored} stores {nbytes} of the {needed} bytes it needs")


COMPACT = "storage: compact"


def _storage_nbytes(dataset: h5py.Dataset, stored: StoredObject) -> int:
    """Return the number of bytes that the file stores of unchunked data."""
    try:
        return int(dataset.id.get_storage_size())
    except XrefError:
        raise
    except (RuntimeError, OSError, ValueError) as error:
        raise CorruptFileError(
            f"{stored} has storage that HDF5 cannot read: {error}"
        ) from error


def stored_type(stored: StoredObject) -> hdf5.Datatype:
    """Decode the datatype of a dataset from its object header."""
    source = byte_source(stored.location, str(stored))
    for message in hdf5.read_messages(source, stored.address, {hdf5.DATATYPE_MESSAGE}):
        return hdf5.decode_datatype(message.body, str(stored))
    raise CorruptFileError(f"{stored} has no datatype in its object header")


def read_compact(stored: StoredObject) -> bytes:
    """Return the data of a compact dataset, which are in its object header."""
    source = byte_source(stored.location, stored.where)
    messages = hdf5.read_messages(source, stored.address, {hdf5.LAYOUT_MESSAGE})
    data = hdf5.compact_data(messages, stored.where)
    if data is None:
        raise CorruptFileError(f"{stored.where} has no compact data in its object header")
    return data


def _maxshape(space: h5s.SpaceID) -> tuple[int | None, ...]:
    if space.get_simple_extent_type() != h5s.SIMPLE:
        return () if space.get_simple_extent_type() == h5s.SCALAR else (0,)
    limits = space.get_simple_extent_dims(True)
    return tuple(None if n == h5s.UNLIMITED else int(n) for n in limits)


def _stored_itemsize(datatype: h5t.TypeID, offset_size: int) -> int:
    """Return the bytes of one element in the file; HDF5 gives the size in memory.

    The sizes differ if an element contains an address: HDF5 File Format Specification 4.0,
    "Variable-length and reference elements" in the global heap section.
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
            return reference_itemsize(reference_kind(datatype), offset_size)
    return int(datatype.get_size())


def reference_itemsize(kind: str, offset_size: int) -> int:
    """Return the bytes of one stored reference."""
    if kind == "std":
        return hdf5.std_itemsize(offset_size)
    return offset_size + (4 if kind == "region" else 0)


def pipeline_of(properties: h5p.PropDCID) -> hdf5.FilterPipeline:
    """Return the filters of a dataset."""
    n = properties.get_nfilters()
    return hdf5.FilterPipeline(filters=tuple(_filter(properties, i) for i in range(n)))


def used_filters(
    pipeline: hdf5.FilterPipeline, elements: hdf5.Datatype | None
) -> hdf5.FilterPipeline:
    """Return the filters of a dataset that HDF5 may have applied to a chunk.

    For sequences HDF5 skips the shuffle filter, which then has no options; the filter mask
    of each chunk shows it.
    """
    skipped = (hdf5.SHUFFLE, ()) if elements is not None else None
    used = tuple(f for f in pipeline.filters if (f.id, f.options) != skipped)
    return hdf5.FilterPipeline(filters=used)


@lru_cache(maxsize=1)
def _tells_all_options() -> bool:
    """Tell whether this h5py gives more than 16 client values of a filter, not zeros."""
    properties, options = h5p.create(h5p.DATASET_CREATE), tuple(range(1, 19))
    properties.set_filter(h5z.FILTER_DEFLATE, h5z.FLAG_OPTIONAL, options)
    return tuple(properties.get_filter(0)[2]) == options


def _read_pipeline(properties: h5p.PropDCID, stored: StoredObject) -> hdf5.FilterPipeline:
    """Return the filters of a dataset with all client values."""
    pipeline = pipeline_of(properties)
    if all(len(f.options) <= 16 for f in pipeline.filters) or _tells_all_options():
        return pipeline
    source = byte_source(stored.location, str(stored))
    for message in hdf5.read_messages(source, stored.address, {hdf5.FILTER_MESSAGE}):
        listed = hdf5.filter_options(message.body, str(stored))
        if [number for number, _ in listed] == [f.id for f in pipeline.filters]:
            pairs = zip(pipeline.filters, listed, strict=True)
            filters = tuple(replace(f, options=options) for f, (_, options) in pairs)
            return hdf5.FilterPipeline(filters=filters)
    raise CorruptFileError(f"{stored} has other filters in its object header than HDF5 lists")


def _filter(properties: h5p.PropDCID, index: int) -> hdf5.Filter:
    number, flags, options, name = properties.get_filter(index)
    return hdf5.Filter(
        id=number, flags=flags, options=tuple(options), name=name.decode("utf-8", "replace")
    )


def has_fill_value(properties: h5p.PropDCID) -> bool:
    """Tell whether the dataset defines a fill value."""
    return bool(properties.fill_value_defined() == h5d.FILL_VALUE_USER_DEFINED)


def _has_storage(
    dataset: h5py.Dataset, properties: h5p.PropDCID, nbytes: int, stored: StoredObject
) -> bool:
    """Tell whether storage is allocated for elements, or for an index of chunks."""
    match properties.get_layout():
        case h5d.CONTIGUOUS:
            return bool(nbytes or properties.get_external_count())
        case h5d.CHUNKED if stored.location.source.open_for_writing:
            return bool(dataset.id.get_storage_size())
        case h5d.CHUNKED:
            source = byte_source(stored.location, stored.where)
            messages = hdf5.read_messages(source, stored.address, {hdf5.LAYOUT_MESSAGE})
            undefined = 2 ** (8 * source.offset_size) - 1
            with suppress(UnsupportedError):  # a type of chunk index that only HDF5 knows
                storages = (hdf5.parse_chunk_storage(m.body, source) for m in messages)
                return all(storage.address != undefined for storage in storages)
    return True


def stored_fill(stored: StoredObject, itemsize: int) -> bytes:
    """Decode the fill value of a dataset from its object header."""
    source = byte_source(stored.location, str(stored))
    kinds = {hdf5.FILL_MESSAGE, hdf5.OLD_FILL_MESSAGE}
    messages = hdf5.read_messages(source, stored.address, kinds)
    data = hdf5.fill_data(messages, str(stored)) or b""
    if len(data) not in (0, itemsize):
        raise CorruptFileError(
            f"{stored} has a fill value of {len(data)} bytes for elements of {itemsize}"
        )
    return data


def _fill_value(properties: h5p.PropDCID, dtype: np.dtype[Any]) -> Any:
    """Return the value of unwritten elements; None if h5py cannot give it."""
    value = np.zeros(1, dtype=dtype)
    if has_fill_value(properties):
        if dtype.hasobject or hdf5.unfold_subarray(value) is not value:
            return None
        try:
            properties.get_fill_value(value)
        except (TypeError, ValueError, RuntimeError):
            return None
    return value[0]


def _check_raw_external(dataset: h5py.Dataset, stored: StoredObject) -> None:
    names = [os.fspath(name) for name, _, _ in dataset.external or ()]
    if stored.location.external != "all":
        raise ExternalFileError(
            f"{stored} keeps its data in other files ({', '.join(names)}); "
            'pass external="all" if this file is trusted'
        )
    for name in names:
        if os.path.exists(name) and not os.path.isfile(name):
            raise ExternalFileError(
                f"{stored} keeps its data in {name!r}, which is not a regular file"
            )


def _check_virtual(properties: h5p.PropDCID, stored: StoredObject) -> None:
    for i in range(properties.get_virtual_count()):
        name = properties.get_virtual_filename(i)
        if name != ".":
            check_external(stored.location, name, f"{stored} (virtual source)")
