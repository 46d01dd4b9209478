"""Storage of datasets through h5py.

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
from xref.objects.stored_types import TypeMetadata, stored_itemsize, type_metadata
from xref.storage import check_external


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
    metadata = type_metadata(datatype.encode())
    dtype, elements, itemsize = _element_type(datatype, metadata, stored)
    chunks = tuple(properties.get_chunk()) if storage == h5d.CHUNKED else None
    hdf5.check_extent(shape, chunks, stored)
    pipeline = _read_pipeline(properties, stored)
    why_not_raw = _explain_storage(dataset, properties, pipeline, elements, stored)
    # For chunked storage HDF5 would walk the whole chunk index, damaged or not.
    nbytes = 0 if storage == h5d.CHUNKED else _storage_nbytes(dataset, stored)
    fill = _read_fill(
        properties, stored, dtype, itemsize, bool(metadata.kind) or elements is not None
    )
    why_not_direct = metadata.why_not_direct or fill.why_not_direct
    if elements is not None:
        why_not_direct = f"type {dtype}: references within elements"
    return hdf5.DatasetLayout(
        shape=shape,
        maxshape=_maxshape(space),
        dtype=dtype,
        chunks=chunks,
        offset=_contiguous_offset(
            dataset, properties, stored, nbytes, math.prod(shape) * itemsize
        ),
        pipeline=pipeline,
        fill_value=fill.value,
        stored_itemsize=itemsize,
        reference_kind=metadata.kind,
        stored_nbytes=nbytes,
        elements=elements,
        why_not_direct=why_not_direct or why_not_raw,
        why_not_raw=why_not_raw,
        virtual=storage == h5d.VIRTUAL,
        stored_fill=fill.stored,
        fill_never=fill.never,
        fill_undefined=fill.undefined,
        has_storage=not fill.undefined or _has_storage(dataset, properties, nbytes, stored),
    )


def _element_type(
    datatype: h5t.TypeID, metadata: TypeMetadata, stored: StoredObject
) -> tuple[np.dtype[Any], hdf5.Datatype | None, int]:
    """Return the NumPy type, the HDF5 type if elements hold references, and stored bytes."""
    itemsize = stored_itemsize(datatype, file_format(stored.location).offset_size)
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


def _contiguous_offset(
    dataset: h5py.Dataset,
    properties: h5p.PropDCID,
    stored: StoredObject,
    nbytes: int,
    needed: int,
) -> int | None:
    """Return where the elements of a contiguous dataset begin; None without stored elements.

    ``nbytes`` are stored, and ``needed`` bytes must lie within the file.
    """
    # Without stored bytes nothing was written yet. HDF5 still gives an offset then, if the
    # file has a user block.
    if (
        properties.get_layout() != h5d.CONTIGUOUS
        or properties.get_external_count()
        or not nbytes
    ):
        return None
    offset: int | None = dataset.id.get_offset()
    if offset is None:
        return None
    file_nbytes = stored.location.identity[2]
    if offset + needed > file_nbytes:
        raise CorruptFileError(
            f"{stored} needs {needed} bytes at {offset:#x}, past the end of the file "
            f"({file_nbytes} bytes); the file may be truncated"
        )
    if nbytes < needed:
        raise CorruptFileError(f"{stored} stores {nbytes} of the {needed} bytes it needs")
    return offset


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


@dataclass(frozen=True, slots=True)
class _Fill:
    """Values of elements that were never written."""

    value: Any  # None if h5py cannot give it
    stored: bytes  # of types that hold references; empty for zeros
    never: bool  # the fill time is "never"
    undefined: bool
    why_not_direct: str


def _read_fill(
    properties: h5p.PropDCID,
    stored: StoredObject,
    dtype: np.dtype[Any],
    itemsize: int,
    holds_references: bool,
) -> _Fill:
    """Return the fill value of a dataset: as stored bytes if its type holds references."""
    never = properties.get_fill_time() == h5d.FILL_TIME_NEVER
    undefined = not never and properties.fill_value_defined() == h5d.FILL_VALUE_UNDEFINED
    data, why_not_direct = b"", ""
    if holds_references:
        value = None if dtype.hasobject else np.zeros((), dtype=dtype)[()]
        if has_fill_value(properties):
            data = stored_fill(stored, itemsize)
    else:
        value = _fill_value(properties, dtype)
        if value is None and not never:
            why_not_direct = "fill value: not known to h5py"
    return _Fill(value, data, never, undefined, why_not_direct)


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
