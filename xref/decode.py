"""Stored references into columns: the bytes of a reference dataset, then its heap.

In: where a reference dataset is and which part of it is wanted. Out:
`References`, one row an element.

1. The raw elements are read with the same planner and readers as any dataset.
2. Region references name an object in a global heap collection each. The
   distinct collections are read once, in file order and in batches.
3. All objects of a batch are found and decoded together (`xref.heap`,
   `xref.encoding`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.columns import FrozenColumns, IntArray
from xref.elements import ObjectReference
from xref.encoding import decode_selections, split_heap_ids
from xref.errors import CorruptFileError, UnsupportedError
from xref.h5data import (
    chunk_index,
    dataset_layout,
    holds_references,
    is_reference_dtype,
    read_raw,
    read_values,
    reference_addresses,
    sequence_base,
)
from xref.h5file import FileBytes, FileLocation, file_format
from xref.h5objects import open_dataset
from xref.heap import HEADER_NBYTES, pack_collections, parse_collection_sizes, walk_collections
from xref.layout import DatasetLayout, items
from xref.plan import canvas_strides, plan_outer, plan_points, plan_read, regular_segments
from xref.readers import BoxLoader, ChunkLoader, ContiguousLoader, TileLoader, read_plan
from xref.regions import Kind, RegionTable, concat_tables, empty_table, in_order
from xref.virtual import StoredPart, check_sources, split_virtual

HEAP_BATCH_NBYTES = 64 << 20
"""Heap collections held in memory at a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class References(FrozenColumns):
    """n references; a null one has address 0."""

    files: tuple[FileLocation, ...]
    file: IntArray  # (n,), row of `files` that the target lives in
    address: npt.NDArray[np.uint64]  # (n,), target's object header, from the base address
    regions: RegionTable | None  # n rows; None for object references

    @classmethod
    def of_file(
        cls,
        location: FileLocation,
        address: npt.NDArray[np.uint64],
        regions: RegionTable | None = None,
    ) -> References:
        """Return references whose targets all live in one file."""
        file = np.broadcast_to(np.zeros(1, dtype=np.int64), (len(address),))
        return cls(files=(location,), file=file, address=address, regions=regions)

    def __len__(self) -> int:
        return len(self.address)

    def take(self, index: npt.NDArray[np.intp] | slice) -> References:
        """Return the rows that ``index`` selects."""
        regions = None if self.regions is None else self.regions.take(index)
        return References(
            files=self.files,
            file=self.file[index],
            address=self.address[index],
            regions=regions,
        )


def concat_references(parts: list[References]) -> References:
    """Put rows of several tables one after the other; files are listed once."""
    files = tuple(dict.fromkeys(f for part in parts for f in part.files))
    number = {f: i for i, f in enumerate(files)}
    rows = [np.array([number[f] for f in part.files] or [0]) for part in parts]
    kinds = {part.regions is None for part in parts}
    if len(kinds) > 1:
        raise TypeError("object references and region references do not mix in one array")
    regions = [part.regions for part in parts if part.regions is not None]
    return References(
        files=files,
        file=np.concatenate([r[part.file] for r, part in zip(rows, parts, strict=True)]),
        address=np.concatenate([part.address for part in parts]),
        regions=concat_tables(regions) if regions else None,
    )


@dataclass(frozen=True, slots=True)
class StoredReferences:
    """A box of elements of a reference dataset, by place: it pickles to a few hundred bytes.

    Attributes
    ----------
    location : FileLocation
        The file that the dataset lives in; its references count from there.
    address : int
        The dataset's object header, bytes from the base address.
    path : str
        Of the dataset, for messages.
    is_region : bool
        Region references rather than object references.
    slices : tuple of (start, count, step)
        The elements wanted along each axis.
    """

    location: FileLocation
    address: int
    path: str
    is_region: bool
    slices: tuple[tuple[int, int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        return tuple(count for _, count, _ in self.slices)

    def describe(self, row: int) -> str:
        """Name one element in a message, counted in C order of the box."""
        ordinals = np.unravel_index(row, self.shape) if self.shape else ()
        index = tuple(
            start + int(i) * step
            for (start, _, step), i in zip(self.slices, ordinals, strict=True)
        )
        kind = "region" if self.is_region else "object"
        element = index[0] if len(index) == 1 else index
        return f"{self.location.filename}: {kind} reference {element} of {self.path!r}"

    def read(self) -> References:
        """Read and decode the elements, in C order.

        Raises
        ------
        CorruptFileError
            If bytes of the dataset or its heap make no sense.
        """
        if dataset_layout(self.location, self.address).virtual:
            return self._read_virtual()
        return decode_references(self.location, self._read_raw(), self.is_region, self.describe)

    def _read_virtual(self) -> References:
        """Read the elements where they are stored: each counts in its own file."""
        axes = [start + np.arange(count) * step for start, count, step in self.slices]
        grid = np.meshgrid(*axes, indexing="ij")
        n = math.prod(self.shape)
        coords = np.array(grid, dtype=np.int64).reshape(len(axes), n).T
        tables = [null_references(n, self.is_region)]
        place = np.arange(n)
        used = n
        for part in split_virtual(self.location, self.address, coords):
            place[part.rows] = used + np.arange(len(part.rows))
            used += len(part.rows)
            tables.append(read_part(part, self.is_region))
        return concat_references(tables).take(place)

    def _read_raw(self) -> npt.NDArray[np.uint8]:
        """Return the elements as stored, shape ``(n, width)``."""
        layout = dataset_layout(self.location, self.address)
        n, width = math.prod(self.shape), layout.dtype.itemsize
        out = np.zeros(n, dtype=layout.dtype)
        if n:
            axes = [regular_segments(start, step, count) for start, count, step in self.slices]
            parts = plan_outer(axes, 0, np.array(canvas_strides(self.shape), dtype=np.int64))
            plan = plan_read(parts, layout.shape, layout.chunks, width)
            read_plan(plan, tile_loader(self.location, self.address, layout, raw=True), out)
        return out.view(np.uint8).reshape(n, width)


@dataclass(frozen=True, slots=True)
class BoxReader:
    """Reads boxes of one dataset through h5py, under its lock."""

    location: FileLocation
    address: int
    raw: bool = False
    virtual: bool = False

    def __call__(self, start: tuple[int, ...], window: npt.NDArray[Any]) -> None:
        """Read the box of ``window``'s shape at ``start`` into it."""
        if self.virtual:
            check_sources(self.location, self.address, start, window.shape[: len(start)])
        dataset = open_dataset(self.location, self.address)
        if self.raw:
            window[...] = read_raw(dataset, start, window.shape)
            return
        values = read_values(dataset, start, window.shape)
        if values.dtype.hasobject:
            values = self._replace_references(values, dataset.dtype.base)
        items(window)[...] = values

    def _replace_references(
        self, values: npt.NDArray[Any], dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        """Exchange h5py's references within elements of ``dtype`` for picklable ones."""
        if not holds_references(dtype):
            return values
        if dtype.names:
            out = values.copy()
            for name in dtype.names:
                out[name] = self._replace_references(values[name], dtype[name].base)
            return out
        made = np.empty(values.size, dtype=object)
        if is_reference_dtype(dtype):
            offset_size = file_format(self.location).offset_size
            addresses = reference_addresses(values.ravel().tolist(), offset_size)
            made[:] = [ObjectReference(self.location if a else None, a) for a in addresses]
        else:
            sequences = values.ravel().tolist()
            lengths = [len(sequence) for sequence in sequences]
            joined = np.concatenate([np.empty(0, sequences[0].dtype), *sequences])
            elements = self._replace_references(joined, sequence_base(dtype))
            stops = np.cumsum(lengths).tolist()
            for i, (n, stop) in enumerate(zip(lengths, stops, strict=True)):
                made[i] = elements[stop - n : stop]
        return made.reshape(values.shape)


def tile_loader(
    location: FileLocation,
    address: int,
    layout: DatasetLayout,
    *,
    raw: bool = False,
    reader: str = "auto",
) -> TileLoader:
    """Choose how the dataset at an address is read.

    Parameters
    ----------
    location, address, layout
        The dataset.
    raw : bool
        Read the elements as the bytes they are stored in.
    reader : {"auto", "direct", "h5py"}
        "auto" reads directly where it can and through h5py otherwise.

    Raises
    ------
    UnsupportedError
        If ``reader="direct"`` and the dataset needs h5py.
    """
    where = f"{location.filename}: dataset at {address:#x}"
    if reader == "direct" and layout.indirect:
        raise UnsupportedError(
            f"{where} cannot be read directly ({layout.indirect}); use reader='auto'"
        )
    read_box = BoxReader(location, address, raw, layout.virtual)
    if reader == "h5py" or layout.indirect:
        check = None
        if layout.chunks and layout.pipeline.filters and not layout.pipeline.unsupported():
            stored = replace(layout, dtype=np.dtype(f"V{layout.stored_itemsize}"))
            index = chunk_index(location, address)
            check = ChunkLoader(stored, index, FileBytes(location), read_box, where)
        return BoxLoader(layout, read_box, check)
    if layout.chunks is None:
        return ContiguousLoader(layout, FileBytes(location))
    index = chunk_index(location, address)
    return ChunkLoader(layout, index, FileBytes(location), read_box, where)


def read_part(part: StoredPart, is_region: bool) -> References:
    """Read and decode references at places of one dataset that is not virtual.

    Raises
    ------
    UnsupportedError
        If the dataset holds anything else.
    """
    location, address = part.location, part.address
    layout = dataset_layout(location, address)
    kind = "region" if is_region else "object"
    if layout.reference_kind != kind:
        raise UnsupportedError(
            f"{location.filename}: {part.path!r} holds {layout.reference_kind or 'values'!r}, "
            f"its virtual dataset {kind} references"
        )
    n, width = len(part.rows), layout.dtype.itemsize
    out = np.zeros(n, dtype=layout.dtype)
    parts = plan_points(part.coords)
    plan = plan_read(parts, layout.shape, layout.chunks, width)
    read_plan(plan, tile_loader(location, address, layout, raw=True), out)

    def describe(row: int) -> str:
        index = tuple(part.coords[row].tolist())
        element = index[0] if len(index) == 1 else index
        return f"{location.filename}: {kind} reference {element} of {part.path!r}"

    return decode_references(
        location, out.view(np.uint8).reshape(n, width), is_region, describe
    )


def null_references(n: int, is_region: bool) -> References:
    """Return n null references."""
    return References(
        files=(),
        file=np.zeros(n, dtype=np.int64),
        address=np.zeros(n, dtype=np.uint64),
        regions=empty_table(n, 0) if is_region else None,
    )


def decode_references(
    location: FileLocation,
    raw: npt.NDArray[np.uint8],
    is_region: bool,
    describe: Callable[[int], str],
) -> References:
    """Decode raw references of one file, shape ``(n, width)`` as they are stored."""
    if is_region:
        return References.of_file(location, *decode_regions(location, raw, describe))
    width = file_format(location).offset_size
    address = np.ascontiguousarray(raw).view(f"<u{width}")[:, 0].astype(np.uint64)
    return References.of_file(location, address)


def decode_regions(
    location: FileLocation, raw: npt.NDArray[np.uint8], describe: Callable[[int], str]
) -> tuple[npt.NDArray[np.uint64], RegionTable]:
    """Decode raw region references of one file.

    Parameters
    ----------
    location : FileLocation
        The file whose heap they name.
    raw : numpy.ndarray
        Shape ``(n, offset_size + 4)``, uint8.
    describe : callable
        Names row i in errors.

    Returns
    -------
    address : numpy.ndarray
        Shape ``(n,)``: targets; 0 for null references.
    regions : RegionTable
        n rows.
    """
    form = file_format(location)
    heap, index = split_heap_ids(raw, offset_size=form.offset_size)
    live = np.flatnonzero(heap)
    address = np.zeros(len(heap), dtype=np.uint64)
    if not len(live):
        return address, empty_table(len(heap), 0)
    heap, index = heap[live], index[live]
    collections, of = _distinct(heap)

    def describe_collection(k: int) -> str:
        return describe(int(live[np.flatnonzero(of == k)[0]]))

    position = collections + form.base_address
    outside = (collections <= 0) | (position > form.file_nbytes - HEADER_NBYTES)
    if outside.any():
        k = int(np.flatnonzero(outside)[0])
        named = int(collections[k]) & (2**64 - 1)
        raise CorruptFileError(
            f"{describe_collection(k)} has heap address {named:#x}, "
            f"past the end of the file ({form.file_nbytes} bytes); the file may be truncated"
        )
    source = FileBytes(location)
    heads = np.empty((len(collections), HEADER_NBYTES), dtype=np.uint8)
    at = HEADER_NBYTES * np.arange(len(collections))
    source.read_ranges(position, np.full(len(at), HEADER_NBYTES), heads.reshape(-1), at)
    size = parse_collection_sizes(heads, form.length_size, describe_collection)
    # Disjoint collections inside the file: all together no larger than it.
    limit = np.append(position[1:], form.file_nbytes)
    wrong = np.flatnonzero(position + size > limit)
    if len(wrong):
        k = int(wrong[0])
        end = "the next one" if k + 1 < len(size) else "the end of the file"
        raise CorruptFileError(
            f"{describe_collection(k)} has a global heap collection of {size[k]} bytes at "
            f"{int(position[k]):#x}, which reaches past {end}"
        )
    batch = (np.cumsum(size) - size) // HEAP_BATCH_NBYTES
    edges = np.flatnonzero(np.diff(batch, prepend=-1, append=-1))
    tables, order = [], []
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        rows = (
            np.arange(len(of))
            if len(edges) == 2
            else np.flatnonzero((of >= begin) & (of < end))
        )

        def describe_row(i: int, rows: npt.NDArray[np.intp] = rows) -> str:
            return describe(int(live[rows[i]]))

        base = pack_collections(size[begin:end])
        buffer = np.zeros(int(base[-1]) + 8, dtype=np.uint8)
        source.read_ranges(position[begin:end], size[begin:end], buffer, base[:-1])
        objects = walk_collections(
            buffer,
            base[:-1],
            size[begin:end],
            form.length_size,
            lambda k, begin=begin: describe_collection(begin + k),  # type: ignore[misc]
        )
        place, nbytes = objects.find(of[rows] - begin, index[rows], describe_row)
        found, table = decode_selections(buffer, place, nbytes, form.offset_size, describe_row)
        address[live[rows]] = found
        tables.append(table)
        order.append(live[rows])
    if len(live) == len(address) and len(tables) == 1:
        return address, table
    null = np.setdiff1d(np.arange(len(address)), live)
    tables.append(empty_table(len(null), tables[0].ndim, Kind.NULL))
    order.append(null)
    return address, in_order(tables, order)


def _distinct(values: IntArray) -> tuple[IntArray, IntArray]:
    """Return distinct values, ascending, and the row of each; fast where runs repeat."""
    head = np.flatnonzero(np.diff(values, prepend=values[0] - 1))
    distinct, inverse = np.unique(values[head], return_inverse=True)
    return distinct, np.repeat(inverse, np.diff(np.append(head, len(values))))
