"""Stored references into columns: the bytes of a reference dataset, then its heap.

In: where a reference dataset is and which part of it is wanted. Out:
`References`, one row an element.

1. The raw elements are read with the same planner and readers as any dataset.
2. Region references, and most of HDF5 1.12 and later, name an object in a global
   heap collection each. The distinct collections are read once, in file order and in
   batches.
3. All objects of a batch are found and decoded together (`xref.heap`,
   `xref.encoding`, `xref.stdrefs`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

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
from xref.h5file import FileBytes, FileLocation, file_format, locate_named
from xref.h5objects import open_dataset
from xref.heapread import read_heap_objects
from xref.layout import DatasetLayout, items
from xref.plan import canvas_strides, plan_outer, plan_points, plan_read, regular_segments
from xref.readers import BoxLoader, ChunkLoader, ContiguousLoader, TileLoader, read_plan
from xref.regions import Kind, RegionTable, concat_tables, empty_table, in_order
from xref.stdrefs import REGION, decode_std_objects, split_std_references
from xref.virtual import StoredPart, check_sources, split_virtual

_T = TypeVar("_T")

KIND_NOUNS = {"object": "object reference", "region": "region reference", "std": "reference"}
"""What an element is called in messages, by the kind of its array."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class References(FrozenColumns):
    """n references; a null one has address 0."""

    files: tuple[FileLocation, ...]
    file: IntArray  # (n,), row of `files` that the target lives in
    address: npt.NDArray[np.uint64]  # (n,), target's object header, from the base address
    regions: RegionTable | None  # n rows; None where no row is a region
    attribute: IntArray | None = None  # (n,), row of `names`, -1 for none; None without any
    names: tuple[str, ...] = ()  # of attributes of the targets

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
        return References(
            files=self.files,
            file=self.file[index],
            address=self.address[index],
            regions=None if self.regions is None else self.regions.take(index),
            attribute=None if self.attribute is None else self.attribute[index],
            names=self.names,
        )

    @property
    def attribute_rows(self) -> npt.NDArray[np.intp]:
        """The rows that refer to an attribute of their target."""
        if self.attribute is None:
            return np.zeros(0, dtype=np.intp)
        return np.flatnonzero(self.attribute >= 0)

    def attribute_names(self) -> npt.NDArray[np.object_]:
        """Return the name of each row's attribute, None where it is no attribute."""
        names = np.array([*self.names, None], dtype=object)
        number = np.full(len(self), -1) if self.attribute is None else self.attribute
        found: npt.NDArray[np.object_] = names[number]
        return found

    def used_files(self) -> tuple[FileLocation, ...]:
        """Return the files that targets live in."""
        if len(self.files) < 2:
            return self.files
        return tuple(self.files[k] for k in np.unique(self.file[self.address != 0]).tolist())

    def region_table(self) -> RegionTable:
        """Return the regions; rows that are none stand for the object itself, or null."""
        return object_table(self.address) if self.regions is None else self.regions


def object_table(address: npt.NDArray[np.uint64]) -> RegionTable:
    """Return rows that select nothing within their targets; null where there is none."""
    kind = np.where(address != 0, Kind.OBJECT, Kind.NULL).astype(np.uint8)
    return empty_table(len(address), 0).replace(kind=kind)


def concat_references(parts: list[References]) -> References:
    """Put rows of several tables one after the other; files are listed once."""
    files = tuple(dict.fromkeys(f for part in parts for f in part.files))
    number = {f: i for i, f in enumerate(files)}
    rows = [np.array([number[f] for f in part.files] or [0]) for part in parts]
    names = _Numbers(name for part in parts for name in part.names)
    regions = any(part.regions is not None for part in parts)
    return References(
        files=files,
        file=np.concatenate([r[part.file] for r, part in zip(rows, parts, strict=True)]),
        address=np.concatenate([part.address for part in parts]),
        regions=concat_tables([part.region_table() for part in parts]) if regions else None,
        attribute=np.concatenate([_renumber(part, names) for part in parts]) if names else None,
        names=tuple(names),
    )


def _renumber(part: References, names: _Numbers[str]) -> IntArray:
    """Return the attribute column by the rows of other names, which contain its own."""
    if part.attribute is None:
        return np.full(len(part), -1, dtype=np.int64)
    return np.array([*names.number(part.names), -1])[part.attribute]


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
    kind : {"object", "region", "std"}
        Which type the elements are of; "std" (``H5T_STD_REF``) holds any kind.
    slices : tuple of (start, count, step)
        The elements wanted along each axis.
    """

    location: FileLocation
    address: int
    path: str
    kind: str
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
        element = index[0] if len(index) == 1 else index
        noun = KIND_NOUNS[self.kind]
        return f"{self.location.filename}: {noun} {element} of {self.path!r}"

    def read(self) -> References:
        """Read and decode the elements, in C order.

        Raises
        ------
        CorruptFileError
            If bytes of the dataset or its heap make no sense.
        """
        if dataset_layout(self.location, self.address).virtual:
            return self._read_virtual()
        return decode_references(self.location, self._read_raw(), self.kind, self.describe)

    def _read_virtual(self) -> References:
        """Read the elements where they are stored: each counts in its own file."""
        axes = [start + np.arange(count) * step for start, count, step in self.slices]
        grid = np.meshgrid(*axes, indexing="ij")
        n = math.prod(self.shape)
        coords = np.array(grid, dtype=np.int64).reshape(len(axes), n).T
        tables = [null_references(n)]
        place = np.arange(n)
        used = n
        for part in split_virtual(self.location, self.address, coords):
            place[part.rows] = used + np.arange(len(part.rows))
            used += len(part.rows)
            tables.append(read_part(part, self.kind))
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


def read_part(part: StoredPart, kind: str) -> References:
    """Read and decode references at places of one dataset that is not virtual.

    Raises
    ------
    UnsupportedError
        If the dataset holds anything else.
    """
    location, address = part.location, part.address
    layout = dataset_layout(location, address)
    if layout.reference_kind != kind:
        raise UnsupportedError(
            f"{location.filename}: {part.path!r} holds {layout.reference_kind or 'values'!r}, "
            f"its virtual dataset {KIND_NOUNS[kind]}s"
        )
    n, width = len(part.rows), layout.dtype.itemsize
    out = np.zeros(n, dtype=layout.dtype)
    parts = plan_points(part.coords)
    plan = plan_read(parts, layout.shape, layout.chunks, width)
    read_plan(plan, tile_loader(location, address, layout, raw=True), out)

    def describe(row: int) -> str:
        index = tuple(part.coords[row].tolist())
        element = index[0] if len(index) == 1 else index
        return f"{location.filename}: {KIND_NOUNS[kind]} {element} of {part.path!r}"

    return decode_references(location, out.view(np.uint8).reshape(n, width), kind, describe)


def null_references(n: int) -> References:
    """Return n null references."""
    return References(
        files=(),
        file=np.zeros(n, dtype=np.int64),
        address=np.zeros(n, dtype=np.uint64),
        regions=None,
    )


def decode_references(
    location: FileLocation,
    raw: npt.NDArray[np.uint8],
    kind: str,
    describe: Callable[[int], str],
) -> References:
    """Decode raw references of one file.

    Parameters
    ----------
    location : FileLocation
        The file that the bytes come from.
    raw : numpy.ndarray
        Shape ``(n, width)``, uint8, as they are stored.
    kind : {"object", "region", "std"}
        Their type.
    describe : callable
        Names row i in errors.

    Raises
    ------
    CorruptFileError
        If bytes of the references or of the heap make no sense.
    """
    if kind == "std":
        return decode_std_references(location, raw, describe)
    if kind == "region":
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
    tables, order = [], []
    for batch in read_heap_objects(location, heap, index, live, describe):
        address[batch.rows], table = decode_selections(
            batch.buffer, batch.position, batch.nbytes, form.offset_size, batch.describe
        )
        tables.append(table)
        order.append(batch.rows)
    if not tables:
        return address, empty_table(len(heap), 0)
    if len(live) == len(address) and len(tables) == 1:
        return address, table
    null = np.setdiff1d(np.arange(len(address)), live)
    tables.append(empty_table(len(null), tables[0].ndim, Kind.NULL))
    order.append(null)
    return address, in_order(tables, order)


def decode_std_references(
    location: FileLocation, raw: npt.NDArray[np.uint8], describe: Callable[[int], str]
) -> References:
    """Decode raw references of HDF5 1.12 and later (``H5T_STD_REF``) of one file.

    Parameters
    ----------
    location : FileLocation
        The file whose heap they name.
    raw : numpy.ndarray
        Shape ``(n, offset_size + 10)``, uint8.
    describe : callable
        Names row i in errors.

    Returns
    -------
    columns : References
        With regions only if there is one among them; rows of other kinds are then of
        `Kind.OBJECT`. A file that cannot be opened is an error when it is asked for.
    """
    elements = split_std_references(
        raw, offset_size=file_format(location).offset_size, describe=describe
    )
    n = len(elements.type)
    address, file = elements.address.copy(), np.zeros(n, dtype=np.int64)
    attribute = np.full(n, -1, dtype=np.int64)
    files, names = _Numbers[FileLocation]([location]), _Numbers[str]()
    tables, order = [], []
    live = np.flatnonzero(elements.in_heap)
    for batch in read_heap_objects(location, elements.heap, elements.index, live, describe):
        rows = batch.rows
        differ = np.flatnonzero(batch.nbytes != elements.nbytes[rows])
        if len(differ):
            i = int(differ[0])
            raise CorruptFileError(
                f"{batch.describe(i)} states {elements.nbytes[rows[i]]} bytes, its global heap "
                f"object has {batch.nbytes[i]}"
            )
        # Each heap object once, however many elements name it.
        key = batch.position * 16 + 2 * elements.type[rows] + elements.external[rows]
        first, of = _first_of_each(key)
        found = decode_std_objects(
            batch.buffer,
            batch.position[first],
            batch.nbytes[first],
            elements.type[rows[first]],
            elements.external[rows[first]],
            lambda i, batch=batch, first=first: batch.describe(int(first[i])),  # type: ignore[misc]
        )
        address[rows] = found.address[of]
        if found.filenames:
            _, by_name = np.unique(found.file[found.file >= 0], return_index=True)
            users = first[np.flatnonzero(found.file >= 0)[by_name]]
            named = [
                locate_named(location, name, batch.describe(int(i)))
                for name, i in zip(found.filenames, users, strict=True)
            ]
            file[rows] = np.array([*files.number(named), 0])[found.file[of]]
        if found.names:
            attribute[rows] = np.array([*names.number(found.names), -1])[found.attribute[of]]
        is_region = np.flatnonzero(elements.type[rows] == REGION)
        tables.append(found.regions.take(np.searchsorted(found.region, of[is_region])))
        order.append(rows[is_region])
    regions = None
    if any(len(part) for part in order):
        others = np.setdiff1d(np.arange(n), np.concatenate(order))
        regions = in_order([*tables, object_table(address[others])], [*order, others])
    return References(
        files=tuple(files),
        file=file,
        address=address,
        regions=regions,
        attribute=attribute if names else None,
        names=tuple(names),
    )


class _Numbers(dict[_T, int]):
    """Numbers things in the order in which they first come."""

    def __init__(self, things: Iterable[_T] = ()) -> None:
        super().__init__()
        self.number(things)

    def number(self, things: Iterable[_T]) -> list[int]:
        return [self.setdefault(thing, len(self)) for thing in things]


def _first_of_each(key: IntArray) -> tuple[IntArray, IntArray]:
    """Return a row of each distinct key, and for each row which of them it equals."""
    if len(key) < 2 or (np.diff(key) > 0).all():
        rows = np.arange(len(key))
        return rows, rows
    _, first, of = np.unique(key, return_index=True, return_inverse=True)
    return first, of.reshape(-1)
