"""Datasets, attributes and dimension scales in an HDF5 file that is open for writing.

In: an open `h5py.File`, shapes, and elements as `xref.writing.memory_layout` encodes them.
Out: objects of the file.

Region references are created many at a time. HDF5 stores a region reference as the place of
an object in a global heap. One HDF5 call stores many heap objects: writing sequences of
bytes. So the selections (`xref.hdf5.encode_regions`) are written as sequences to a dataset
without a name. Its elements, read back as they are stored, are the references.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5a, h5d, h5o, h5s, h5t

from xref.arrays import IntArray
from xref.hdf5 import encode_regions
from xref.objects import DIMENSION_LIST, REFERENCE_LIST
from xref.selections import SelectionKind, SelectionTable
from xref.writing.memory_layout import HVL_T, ElementEncoder, MemoryType, RawBytes

REGIONS_AT_ONCE = 1 << 17
"""Region references whose heap objects are in memory at once, some 10 MB of boxes."""

WRITTEN_AT_ONCE = 256 << 20
"""Upper bound on the bytes that one call of HDF5 writes, since h5py copies them.

An array is not cut without need: HDF5 first fills a dataset that is written in parts, if it
has a fill value.
"""

_HEAP_ID = [("collection", "<u8"), ("index", "<u4")]
_STORED_SEQUENCE = np.dtype([("length", "<u4"), *_HEAP_ID])
"""A sequence in the file: its number of elements and its global heap ID."""

_REGION_NBYTES = 12
"""Bytes of a global heap ID."""


def address_of(item: h5py.HLObject) -> int:
    """Return the address of an object's header, from the file's base address."""
    return int(h5o.get_info(item.id).addr)


class ReadBack(Protocol):
    """Bytes of a file that HDF5 has open for writing."""

    def seek(self, offset: int) -> Any:
        """Go to an offset."""

    def readinto(self, buffer: memoryview) -> int | None:
        """Read into a buffer; return how many bytes came."""


def region_bytes(
    file: h5py.File, stored: ReadBack, address: npt.NDArray[np.uint64], regions: SelectionTable
) -> RawBytes:
    """Store region references in the heaps of a file; return their bytes, ``(n, 12)``.

    ``stored`` reads the bytes of ``file`` that HDF5 has flushed. ``address`` has shape
    ``(n,)``: the object header of each target in this file, 0 for a null reference.
    """
    out = np.zeros((len(address), _REGION_NBYTES), dtype=np.uint8)
    not_null = np.flatnonzero((address != 0) & (regions.kind != SelectionKind.NULL))
    for begin in range(0, len(not_null), REGIONS_AT_ONCE):
        rows = not_null[begin : begin + REGIONS_AT_ONCE]
        part = regions if len(rows) == len(regions) else regions.take(rows)
        data = encode_regions(address[rows], part)
        out[rows] = _store_in_heap(file, stored, data.buffer, data.position, data.nbytes)
    return out


def _store_in_heap(
    file: h5py.File,
    stored: ReadBack,
    buffer: npt.NDArray[np.uint8],
    position: IntArray,
    nbytes: IntArray,
) -> RawBytes:
    """Store parts of a buffer as global heap objects; return their heap IDs, ``(n, 12)``."""
    sequences = np.zeros(len(position), dtype=HVL_T)
    sequences["length"] = nbytes
    sequences["pointer"] = buffer.ctypes.data + position.astype(np.uintp)
    type_id = h5t.vlen_create(h5t.NATIVE_UINT8)
    # A dataset without a name is deleted when it is closed; the heap objects stay.
    dataset = h5d.create(file.id, None, type_id, h5s.create_simple((len(position),)))
    dataset.write(h5s.ALL, h5s.ALL, sequences.view(f"V{HVL_T.itemsize}"), mtype=type_id)
    file.flush()
    elements = np.empty(len(position), dtype=_STORED_SEQUENCE)
    view = elements.data.cast("B")
    stored.seek(dataset.get_offset())
    if stored.readinto(view) != len(view):
        raise OSError(f"{file.filename}: references just written could not be read back")
    heap_ids = np.empty(len(position), dtype=_HEAP_ID)
    heap_ids["collection"], heap_ids["index"] = elements["collection"], elements["index"]
    return heap_ids.view(np.uint8).reshape(len(position), _REGION_NBYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Chunks, extent limits, filters and fill value of a dataset."""

    chunks: tuple[int, ...] | bool | None = None  # True: h5py chooses; None: contiguous
    maxshape: tuple[int | None, ...] | None = None  # None along unlimited axes
    options: Mapping[str, Any]  # filters, as keywords of `h5py.Group.create_dataset`
    fill_value: Any = None  # of elements that are never written


def create_dataset(
    parent: h5py.Group,
    name: str,
    shape: tuple[int, ...],
    memory_type: MemoryType,
    storage: Storage,
) -> h5py.Dataset:
    """Create a dataset; its elements are not written yet."""
    datatype = h5py.Datatype(memory_type.type_id())
    return parent.create_dataset(
        name,
        shape=shape,
        dtype=datatype,
        chunks=storage.chunks,
        maxshape=storage.maxshape,
        fillvalue=storage.fill_value,
        track_order=True,
        **storage.options,
    )


def write_elements(
    dataset: h5py.Dataset,
    memory_type: MemoryType,
    encoder: ElementEncoder,
    values: Any,
    box: tuple[slice, ...] | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Encode and write all elements of a dataset, or those of a box; see `write_raw`."""
    write_raw(dataset, memory_type, encoder.encode(memory_type, values), box, check)


def write_raw(
    dataset: h5py.Dataset,
    memory_type: MemoryType,
    raw: npt.NDArray[np.void],
    box: tuple[slice, ...] | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Write encoded elements, while their `ElementEncoder` lives: all, or those of a box.

    ``check`` is called after each part of a large array; it raises an error of the write.
    """
    if not raw.size:
        return
    type_id = memory_type.type_id()
    if box is None and raw.nbytes <= WRITTEN_AT_ONCE:
        dataset.id.write(h5s.ALL, h5s.ALL, raw, mtype=type_id)
        return
    origin = tuple(s.start for s in box) if box else (0,) * raw.ndim
    sides = _part_shape(raw, dataset.chunks)
    space = dataset.id.get_space()
    starts = (range(0, n, side) for n, side in zip(raw.shape, sides, strict=True))
    for start in itertools.product(*starts):
        slices = tuple(slice(a, a + side) for a, side in zip(start, sides, strict=True))
        part = np.ascontiguousarray(raw[slices])
        corner = tuple(c + a for c, a in zip(origin, start, strict=True))
        space.select_hyperslab(corner, part.shape)
        dataset.id.write(h5s.create_simple(part.shape), space, part, mtype=type_id)
        if check is not None:
            check()


def _part_shape(raw: npt.NDArray[np.void], chunks: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the shape of parts of whole chunks, each at most `WRITTEN_AT_ONCE` bytes."""
    least = chunks or (1,) * raw.ndim
    sides = list(raw.shape)
    for axis, chunk in enumerate(least):
        while sides[axis] > chunk and math.prod(sides) * raw.itemsize > WRITTEN_AT_ONCE:
            sides[axis] = max(-(-sides[axis] // (2 * chunk)), 1) * chunk
    return tuple(sides)


def write_dimension_list(dataset: h5py.Dataset, scales: Sequence[int | None]) -> None:
    """Write the address of the scale of each axis, None for an axis without a scale.

    Source: HDF5 Dimension Scale Specification 1.0, "DIMENSION_LIST".
    """
    addresses = np.array([address or 0 for address in scales], dtype="<u8")
    sequences = np.zeros(len(addresses), dtype=HVL_T)
    sequences["length"] = addresses != 0
    sequences["pointer"] = addresses.ctypes.data + 8 * np.arange(len(addresses), dtype=np.uintp)
    type_id = h5t.vlen_create(h5t.STD_REF_OBJ)
    replace_attribute(dataset, DIMENSION_LIST, type_id, sequences.view(f"V{HVL_T.itemsize}"))


def write_reference_list(scale: h5py.Dataset, datasets: Sequence[tuple[int, int]]) -> None:
    """Write address and axis of each dataset that lies along a scale.

    Source: HDF5 Dimension Scale Specification 1.0, "REFERENCE_LIST".
    """
    if not datasets:
        return
    element = np.dtype([("dataset", "<u8"), ("dimension", "<i4")])
    listed = np.array(list(datasets), dtype=element)
    type_id = h5t.create(h5t.COMPOUND, element.itemsize)
    type_id.insert(b"dataset", 0, h5t.STD_REF_OBJ)
    type_id.insert(b"dimension", 8, h5t.STD_I32LE)
    replace_attribute(scale, REFERENCE_LIST, type_id, listed.view(f"V{element.itemsize}"))


def replace_attribute(
    item: h5py.HLObject, name: str, type_id: h5t.TypeID, raw: npt.NDArray[np.void]
) -> None:
    """Write an attribute of encoded elements; an attribute of that name is replaced."""
    key = name.encode("utf-8", "surrogateescape")
    if h5a.exists(item.id, key):
        h5a.delete(item.id, key)
    space = h5s.create_simple(raw.shape) if raw.shape else h5s.create(h5s.SCALAR)
    attribute = h5a.create(item.id, key, type_id, space)
    if raw.size:
        attribute.write(raw, mtype=type_id)
