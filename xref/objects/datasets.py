"""Datasets by address: metadata, chunk indices, reads through h5py.

In: a `StoredObject`. Out: `DatasetMetadata`, `ChunkIndex`, NumPy arrays, raw bytes of
references. Storage that the direct reader cannot decode is read here, under h5py's lock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, TypeAlias

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5i, h5s, h5z

from xref import hdf5
from xref.arrays import IntArray
from xref.errors import CorruptFileError, FileReadError, UnsupportedError, XrefError
from xref.objects import layouts
from xref.objects.attributes import AttachedScales, as_stored, attached_scales, read_attributes
from xref.objects.netcdf_names import SCALE_ATTRIBUTES
from xref.objects.objects import open_dataset
from xref.objects.parsing import byte_source, file_format
from xref.objects.stored_object import StoredObject, cached_by_object
from xref.objects.stored_types import reference_kind, unconverted_dtype
from xref.storage import FileLocation, cached_by_location, check_unchanged, metadata_bytes


@dataclass(frozen=True, slots=True)
class DatasetMetadata:
    """Layout, attributes and dimension scales of a dataset that was opened once."""

    layout: hdf5.DatasetLayout
    attributes: dict[str, Any]  # from `read_attributes`, without `SCALE_ATTRIBUTES`
    problems: dict[str, Exception]  # of attributes that could not be read, by name
    scales: AttachedScales  # what the file gives as the dimension scales of the axes


@cached_by_object(maxsize=1 << 15)
def dataset_facts(stored: StoredObject) -> DatasetMetadata:
    """Open a dataset and return its layout and its attributes."""
    dataset = open_dataset(stored)
    layout = layouts.read_layout(dataset, stored)
    attributes, problems = read_attributes(dataset, stored)
    check_unchanged(stored.location)
    axes = (attributes, problems, len(layout.shape))
    (scales,) = attached_scales([axes], stored.location)
    for name in SCALE_ATTRIBUTES:
        attributes.pop(name, None)
        problems.pop(name, None)
    return DatasetMetadata(layout, attributes, problems, scales)


@cached_by_object(maxsize=256)
def type_and_fill(stored: StoredObject) -> tuple[hdf5.Datatype, bytes]:
    """Return the type of a dataset and its fill value, as stored.

    Without a defined fill value the bytes are zeros, which decode as null references, empty
    text and empty sequences.
    """
    layout = stored.layout
    dataset = open_dataset(stored)
    datatype = layout.elements or layouts.stored_type(stored)
    fill = layout.stored_fill
    if layouts.has_fill_value(dataset.id.get_create_plist()):
        fill = layouts.stored_fill(stored, layout.stored_itemsize)
    return datatype, fill or bytes(layout.stored_itemsize)


@lru_cache(maxsize=1)
def _chunk_offsets_skip_userblock() -> bool:
    """Tell whether this HDF5 counts chunk offsets from the base address.

    HDF5 releases differ, so the offset of one chunk after a user block is tested.
    """
    with h5py.File(
        "xref-userblock", "w", driver="core", backing_store=False, userblock_size=512
    ) as file:
        file.create_dataset("d", data=np.arange(1, 9, dtype="u8"), chunks=(8,))
        file.flush()
        offset = file["d"].id.get_chunk_info(0).byte_offset
        image = file.id.get_file_image()
    # Images of some releases do not contain the user block.
    position = image.find(np.arange(1, 9, dtype="<u8").tobytes())
    position += 512 if image.startswith(b"\x89HDF") else 0
    if offset not in (position, position - 512):
        raise UnsupportedError("this release of HDF5 gives chunk offsets in an unknown way")
    result: bool = offset != position
    return result


@cached_by_object(maxsize=64)
def chunk_index(stored: StoredObject) -> hdf5.ChunkIndex:
    """Return the address and size of each stored chunk of a dataset."""
    location, layout = stored.location, stored.layout
    columns = None if location.source.open_for_writing else _read_index(stored, layout)
    if columns is None:
        columns = _iterate_index(stored, layout)
    return hdf5.build_chunk_index(
        *columns, layout=layout, file_nbytes=location.identity[2], where=stored
    )


def stored_nbytes(stored: StoredObject) -> int:
    """Return the number of bytes that the file stores of the data of a dataset."""
    layout = stored.layout
    if layout.chunks is None:
        return layout.stored_nbytes
    if stored.location.source.open_for_writing:
        return int(open_dataset(stored).id.get_storage_size())
    return int(chunk_index(stored).nbytes.sum())


_IndexColumns: TypeAlias = tuple[
    IntArray, npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint32]
]
"""Of each chunk: index in the grid, offset in the file, stored bytes, and filter mask."""


def _read_index(stored: StoredObject, layout: hdf5.DatasetLayout) -> _IndexColumns | None:
    """Read the chunk index of a dataset from its bytes; None if its type is not known."""
    location = stored.location
    base = file_format(location).base_address
    source = byte_source(location, stored)
    reader = hdf5.NodeReader(source, metadata_bytes(location), base, "index of chunks")
    try:
        storage = hdf5.parse_chunk_storage(_layout_message(source, stored.address), source)
        chunks = hdf5.read_listed_chunks(
            reader, storage, layout, partial(_half_width, location)
        )
    except UnsupportedError:
        return None
    # Replace invalid addresses by one past the end of any file: `build_chunk_index` rejects
    # them, except for chunks outside the extent, which are ignored.
    inside = np.where(chunks.address < 0, 2**62, np.minimum(chunks.address, 2**62))
    offset = inside + base
    nbytes, mask = chunks.nbytes.astype(np.uint64), chunks.filter_mask.astype(np.uint32)
    return chunks.cell, offset.astype(np.uint64), nbytes, mask


def _layout_message(source: hdf5.MetadataReader, address: int) -> bytes:
    """Return the layout message of the object header at an address."""
    first = source.take(
        address, max(min(hdf5.FIRST_NBYTES, source.file_nbytes - address), 1), "object header"
    )

    def read(begin: int, nbytes: int) -> bytes:
        part = first[begin - address : begin - address + nbytes] if begin >= address else b""
        return part if len(part) == nbytes else source.read(begin, nbytes)

    # HDF5 checked the checksum of the header when it opened the dataset.
    for kind, _, body in hdf5.walk_messages(replace(source, read=read), address, verify=False):
        if kind == hdf5.LAYOUT_MESSAGE:
            return body
    source.fail(f"the object header at {address:#x} has no layout message")


@cached_by_location(maxsize=1024)
def _half_width(location: FileLocation) -> int:
    """Return the file's "Indexed Storage Internal Node K"."""
    return hdf5.indexed_storage_k(byte_source(location, location.filename))


def _iterate_index(stored: StoredObject, layout: hdf5.DatasetLayout) -> _IndexColumns:
    """Let HDF5 list the chunks of a dataset.

    HDF5 2.0 lists wrong grid positions of chunks in extensible arrays whose unlimited axis is
    not the first one; such datasets are refused.
    """
    dataset = open_dataset(stored)
    unlimited = [axis for axis, n in enumerate(layout.maxshape) if n is None]
    if len(unlimited) == 1 and unlimited != [0]:
        raise UnsupportedError(
            f"{stored} has a chunk index of a type that is not known, and HDF5 may list its "
            "chunks at wrong places"
        )
    chunks: list[Any] = []
    try:
        dataset.id.chunk_iter(chunks.append)
    except XrefError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise CorruptFileError(
            f"{stored} has a chunk index that HDF5 cannot read: {error}"
        ) from error
    n, ndim = len(chunks), len(layout.shape)
    base = file_format(stored.location).base_address
    shift = base if base and _chunk_offsets_skip_userblock() else 0
    addresses = np.fromiter((c.byte_offset for c in chunks), np.uint64, n)
    addresses[addresses != np.uint64(hdf5.UNDEFINED_ADDRESS)] += np.uint64(shift)
    origin = np.array([c.chunk_offset for c in chunks], dtype=np.int64).reshape(n, ndim)
    cell = origin // np.array(layout.cell)
    if (cell * np.array(layout.cell) != origin).any():
        raise CorruptFileError(f"{stored} has a chunk that is not on its grid")
    sizes = np.fromiter((c.size for c in chunks), np.uint64, n)
    return cell, addresses, sizes, np.fromiter((c.filter_mask for c in chunks), np.uint32, n)


def read_stored_chunk(
    dataset: h5py.Dataset, corner: tuple[int, ...]
) -> tuple[int, bytes] | None:
    """Return filter mask and stored bytes of a chunk; None if it was never written.

    Raises
    ------
    CorruptFileError, FileReadError
        If the chunk is larger than the file, or HDF5 cannot read it.
    """
    try:
        info = dataset.id.get_chunk_info_by_coord(corner)
        if info.byte_offset is None:
            return None
        file_nbytes = dataset.file.id.get_filesize()
        if info.size > file_nbytes:
            raise CorruptFileError(
                f"{dataset.file.filename}: {dataset.name or 'a dataset without a name'} has a "
                f"chunk of {info.size} bytes at {corner}, the file has {file_nbytes}"
            )
        mask, data = dataset.id.read_direct_chunk(corner)
    except XrefError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise _read_error(dataset, corner, dataset.chunks, error) from error
    return int(mask), bytes(data)


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
    """Return references as stored bytes.

    Raises
    ------
    FileReadError
        If h5py cannot read them.
    UnsupportedError
        If they are of HDF5 1.12 and later: HDF5 converts these references.
    """
    datatype = dataset.id.get_type()
    if reference_kind(datatype) == "std":
        raise UnsupportedError(
            f"{dataset._xref_stored} holds "
            "H5T_STD_REF references in storage that cannot be read directly (compact, virtual, "
            "external, or with an unknown filter)"
        )
    out = np.zeros(shape, dtype=f"V{datatype.get_size()}")
    _read_unconverted(dataset, start, out)
    offset_size, _ = h5i.get_file_id(dataset.id).get_create_plist().get_sizes()
    kind = reference_kind(datatype)
    return as_stored(out, kind, offset_size, packed=kind == "region")


def _read_unconverted(
    dataset: h5py.Dataset, start: tuple[int, ...], out: npt.NDArray[Any]
) -> None:
    """Read the box of ``out``'s shape at ``start``, in the type of the file."""
    if not out.size:
        return
    space, memory = _box_space(dataset, start, out.shape)
    try:
        dataset.id.read(memory, space, out, mtype=dataset.id.get_type())
    except XrefError:
        raise  # from reading the bytes of the file, passed on by HDF5
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise _read_error(dataset, start, out.shape, error) from error


def _read_error(
    dataset: h5py.Dataset, start: tuple[int, ...], shape: tuple[int, ...], error: Exception
) -> FileReadError:
    missing = [
        f"{stage.label} is not available here: {hdf5.install_hint(stage.id)}"
        for stage in layouts.pipeline_of(dataset.id.get_create_plist()).filters
        if not h5z.filter_avail(stage.id)
    ]
    reason = "; ".join(missing) or str(error)
    return FileReadError(
        f"{dataset._xref_stored}: h5py could not read {shape} elements at {start}: {reason}"
    )


def read_values(
    dataset: h5py.Dataset, start: tuple[int, ...], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Return elements as h5py converts them.

    Text becomes str, times become integers, and opaque elements stay as stored.

    Raises
    ------
    FileReadError
        If h5py cannot read them.
    """
    datatype = dataset.id.get_type()
    unconverted = unconverted_dtype(datatype)
    if unconverted is not None:
        out = np.zeros(shape, dtype=unconverted)
        _read_unconverted(dataset, start, out)
        return out
    key = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
    string = h5py.check_string_dtype(dataset.dtype)
    try:
        if string is not None and string.length is None:
            return np.asarray(dataset.asstr("utf-8", "surrogateescape")[key])
        result = dataset[key]
        if not shape and h5py.check_vlen_dtype(dataset.dtype) is not None:
            values = np.empty((), dtype=object)  # one sequence, not its elements
            values[()] = result
        else:
            values = np.asarray(result)
        if dataset.dtype.hasobject and _sequences_lose_byte_order():
            _restore_byte_order(values, dataset.dtype)
        return values
    except XrefError:
        raise  # from reading the bytes of the file, passed on by HDF5
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise _read_error(dataset, start, shape, error) from error


@lru_cache(maxsize=1)
def _sequences_lose_byte_order() -> bool:
    """Tell whether this h5py gives wrong numbers for sequences of foreign byte order.

    h5py up to 3.16 does: the bytes are those of the file, the dtype is the native one.
    """
    dtype = np.dtype("i2").newbyteorder()
    with h5py.File("xref-sequence", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("d", (1,), h5py.vlen_dtype(dtype))
        dataset[0] = np.array([1], dtype=dtype)
        return int(dataset[0][0]) != 1


def _restore_byte_order(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> None:
    """Give sequences of numbers the dtype of their bytes, in place and at any depth."""
    for name in dtype.names or ():
        member = dtype[name].base
        if member.hasobject:
            _restore_byte_order(values[name], member)
    base = h5py.check_vlen_dtype(dtype)
    if not isinstance(base, np.dtype):
        return  # text, of bytes or str
    swapped = not base.names and not base.isnative
    if not swapped and not base.hasobject:
        return
    for index in np.ndindex(values.shape):
        sequence = values[index]
        if isinstance(sequence, np.ndarray):
            if swapped:
                values[index] = sequence.view(base.base)
            else:
                _restore_byte_order(sequence, base)


def dataset_kind(dataset: h5py.Dataset) -> str:
    """Return the reference kind of a dataset: "object", "region", "std" or ""."""
    return reference_kind(dataset.id.get_type())
