"""Objects, values and references into an HDF5 file that is open for writing.

In: an open `h5py.File`, shapes, and values in the memory_type of `xref.writing.memory_layout`. Out:
datasets, attributes and dimension scales.

Region references are made many at a time. HDF5 stores one as the place of an object in a
global heap, and has one call that puts many objects there: writing sequences of bytes.
So the data of the references (`xref.hdf5.selection_encoding`) are written as sequences to a
dataset without a name; its elements, read back as they are stored, are the references.
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
from xref.writing.memory_layout import ElementEncoder, MemoryType, RawBytes

REGIONS_AT_ONCE = 1 << 17
"""Region references whose heap data are in memory at once, some 10 MB of boxes."""

WRITTEN_AT_ONCE = 256 << 20
"""Bytes of an array in memory that HDF5 writes at once: h5py makes a copy of them.

HDF5 first fills a dataset that is written in parts, if it has a fill value.
"""

_STORED_SEQUENCE = np.dtype([("length", "<u4"), ("collection", "<u8"), ("index", "<u4")])

_REGION_NBYTES = 12


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
    file: h5py.File,
    stored: ReadBack,
    address: npt.NDArray[np.uint64],
    regions: SelectionTable,
) -> RawBytes:
    """Put region references into a file's heap; return what stands for them, ``(n, 12)``.

    Parameters
    ----------
    file : h5py.File
        Open for writing.
    stored : ReadBack
        Its bytes, with all that HDF5 has flushed.
    address : numpy.ndarray
        Shape ``(n,)``: object header of each target in this file, 0 for none.
    regions : RegionTable
        n rows.
    """
    out = np.zeros((len(address), _REGION_NBYTES), dtype=np.uint8)
    live = np.flatnonzero((address != 0) & (regions.kind != SelectionKind.NULL))
    for begin in range(0, len(live), REGIONS_AT_ONCE):
        rows = live[begin : begin + REGIONS_AT_ONCE]
        part = regions if len(rows) == len(regions) else regions.take(rows)
        data = encode_regions(address[rows], part)
        out[rows] = _heap_places(file, stored, data.buffer, data.position, data.nbytes)
    return out


def _heap_places(
    file: h5py.File,
    stored: ReadBack,
    buffer: npt.NDArray[np.uint8],
    position: IntArray,
    nbytes: IntArray,
) -> RawBytes:
    """Store pieces of a buffer as objects of global heaps; return where, ``(n, 12)``."""
    pieces = np.zeros(len(position), dtype=[("length", np.uintp), ("pointer", np.uintp)])
    pieces["length"] = nbytes
    pieces["pointer"] = buffer.ctypes.data + position.astype(np.uintp)
    kind = h5t.vlen_create(h5t.NATIVE_UINT8)
    # Without a name it is gone when it is closed; the heap objects stay.
    dataset = h5d.create(file.id, None, kind, h5s.create_simple((len(position),)))
    dataset.write(h5s.ALL, h5s.ALL, pieces.view(f"V{pieces.itemsize}"), mtype=kind)
    file.flush()
    found = np.empty(len(position), dtype=_STORED_SEQUENCE)
    view = found.data.cast("B")
    stored.seek(dataset.get_offset())
    if stored.readinto(view) != len(view):
        raise OSError(f"{file.filename}: what was just written could not be read back")
    places = np.empty(len(position), dtype=[("collection", "<u8"), ("index", "<u4")])
    places["collection"], places["index"] = found["collection"], found["index"]
    return places.view(np.uint8).reshape(len(position), _REGION_NBYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How a dataset is stored.

    Attributes
    ----------
    chunks : tuple of int, True or None
        Chunk shape; True for any, None for contiguous storage.
    maxshape : tuple of (int or None)
        None along unlimited axes.
    options : dict
        ``compression``, ``compression_opts``, ``shuffle``, ``fletcher32`` of
        `h5py.Group.create_dataset`.
    fill_value : scalar or None
        Of elements that are not written.
    """

    chunks: tuple[int, ...] | bool | None = None
    maxshape: tuple[int | None, ...] | None = None
    options: Mapping[str, Any]
    fill_value: Any = None


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
    memory: ElementEncoder,
    values: Any,
    box: tuple[slice, ...] | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Write elements in the memory_type they have in memory; all of them, or those of a box."""
    write_raw(dataset, memory_type, memory.encode(memory_type, values), box, check)


def write_raw(
    dataset: h5py.Dataset,
    memory_type: MemoryType,
    raw: npt.NDArray[np.void],
    box: tuple[slice, ...] | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Write elements that a `ElementEncoder` has made, and still holds.

    Parameters
    ----------
    dataset : h5py.Dataset
    memory_type : MemoryType
    raw : numpy.ndarray
    box : tuple of slice, optional
        Where; everywhere by default.
    check : callable, optional
        Is called after each of several parts, and raises an error if one was not written.
    """
    if not raw.size:
        return
    kind = memory_type.type_id()
    if box is None and raw.nbytes <= WRITTEN_AT_ONCE:
        dataset.id.write(h5s.ALL, h5s.ALL, raw, mtype=kind)
        return
    corner = tuple(s.start for s in box) if box else (0,) * raw.ndim
    sides = _part_shape(raw, dataset.chunks)
    space = dataset.id.get_space()
    for start in itertools.product(
        *(range(0, n, side) for n, side in zip(raw.shape, sides, strict=True))
    ):
        place = tuple(slice(at, at + side) for at, side in zip(start, sides, strict=True))
        part = np.ascontiguousarray(raw[place])
        at = tuple(c + k for c, k in zip(corner, start, strict=True))
        space.select_hyperslab(at, part.shape)
        dataset.id.write(h5s.create_simple(part.shape), space, part, mtype=kind)
        if check is not None:
            check()


def _part_shape(raw: npt.NDArray[np.void], chunks: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the shape of parts of whole chunks, which are small enough to be copied."""
    least = chunks or (1,) * raw.ndim
    sides = list(raw.shape)
    for axis, chunk in enumerate(least):
        while sides[axis] > chunk and math.prod(sides) * raw.itemsize > WRITTEN_AT_ONCE:
            sides[axis] = max(-(-sides[axis] // (2 * chunk)), 1) * chunk
    return tuple(sides)


def replace_attribute(
    item: h5py.HLObject, name: str, memory_type: MemoryType, raw: npt.NDArray[np.void]
) -> None:
    """Write an attribute that a `ElementEncoder` has made; one of that name is replaced."""
    _replace_attribute(item, name, memory_type.type_id(), raw)


def write_dimension_list(dataset: h5py.Dataset, scales: Sequence[int | None]) -> None:
    """Name the scale of each axis of a dataset by address; None for an axis without one.

    Source: HDF5 Dimension Scale Specification 1.0, "DIMENSION_LIST".
    """
    addresses = np.array([address or 0 for address in scales], dtype="<u8")
    pieces = np.zeros(len(addresses), dtype=[("length", np.uintp), ("pointer", np.uintp)])
    pieces["length"] = addresses != 0
    pieces["pointer"] = addresses.ctypes.data + 8 * np.arange(len(addresses), dtype=np.uintp)
    _replace_attribute(
        dataset, DIMENSION_LIST, h5t.vlen_create(h5t.STD_REF_OBJ), pieces.view("V16")
    )


def write_reference_list(scale: h5py.Dataset, datasets: Sequence[tuple[int, int]]) -> None:
    """Name what lies along a scale: address and axis of each.

    Source: HDF5 Dimension Scale Specification 1.0, "REFERENCE_LIST".
    """
    if not datasets:
        return
    element = np.dtype([("dataset", "<u8"), ("dimension", "<i4")])
    listed = np.array(list(datasets), dtype=element)
    kind = h5t.create(h5t.COMPOUND, element.itemsize)
    kind.insert(b"dataset", 0, h5t.STD_REF_OBJ)
    kind.insert(b"dimension", 8, h5t.STD_I32LE)
    _replace_attribute(scale, REFERENCE_LIST, kind, listed.view(f"V{element.itemsize}"))


def _replace_attribute(
    item: h5py.HLObject, name: str, kind: h5t.TypeID, raw: npt.NDArray[np.void]
) -> None:
    """Write an attribute of raw elements; one of that name is replaced."""
    key = name.encode("utf-8", "surrogateescape")
    if h5a.exists(item.id, key):
        h5a.delete(item.id, key)
    space = h5s.create_simple(raw.shape) if raw.shape else h5s.create(h5s.SCALAR)
    attribute = h5a.create(item.id, key, kind, space)
    if raw.size:
        attribute.write(raw, mtype=kind)
