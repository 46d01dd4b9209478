"""Stored references into columns: the bytes of a reference dataset, then its heap.

In: where a reference dataset is and which part of it is wanted. Out:
`References`, one row an element.

1. The raw elements are read with the same planner and readers as any dataset.
2. Region references, and most of HDF5 1.12 and later, name an object in a global
   heap collection each. The distinct collections are read once, in file order and in
   batches.
3. All objects of a batch are found and decoded together (`xref.hdf5.global_heap`,
   `xref.hdf5.selection_decoding`, `xref.hdf5.std_references`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from xref.arrays.columns import FrozenColumns, IntArray
from xref.errors import CorruptFileError, UnsupportedError
from xref.hdf5.box_decoding import decode_boxes
from xref.hdf5.bulk_heaps import HeapCollections, read_collections, read_heap_objects
from xref.hdf5.dataset_layout import DatasetLayout
from xref.hdf5.datatype import Datatype
from xref.hdf5.selection_decoding import decode_selections, split_heap_ids
from xref.hdf5.std_references import REGION, decode_std_objects, split_std_references
from xref.objects.dataset_layout import COMPACT, read_compact, reference_itemsize
from xref.objects.datasets import chunk_index, dataset_layout, read_raw
from xref.objects.file_content import file_content, file_format
from xref.objects.objects import open_dataset
from xref.objects.paths import object_label
from xref.reading.chunk_checks import chunk_check
from xref.reading.execute import BoxLoader, ChunkLoader, ContiguousLoader, TileLoader, read_plan
from xref.reading.parts import canvas_strides, plan_outer, plan_points, regular_segments
from xref.reading.plan import plan_read
from xref.reading.virtual_sources import StoredPart, split_virtual
from xref.selections.table import (
    Kind,
    RegionTable,
    box_table,
    concat_tables,
    empty_table,
    in_order,
)
from xref.storage.location import FileBytes, FileLocation, check_unchanged, locate_named

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
    path : str or None
        As the dataset was opened, for messages; they have its canonical path where it is
        None. It makes no difference to what is read.
    kind : {"object", "region", "std", ""}
        Which type the elements are of; "std" (``H5T_STD_REF``) holds any kind. Empty for
        elements that are no references themselves.
    slices : tuple of (start, count, step)
        The elements wanted along each axis.
    field : str
        Member of a compound type that the references are, with dots between levels.
    offset : int
        Where it begins in an element, bytes.
    extent : tuple of int, optional
        Shape of the dataset, where ``slices`` go beyond it: along an unlimited dimension
        that other datasets reach further. The rest has the dataset's fill value, which is
        a null reference unless the dataset defines one. By default all is stored.
    """

    location: FileLocation
    address: int
    path: str | None = dataclasses.field(repr=False, compare=False)
    kind: str
    slices: tuple[tuple[int, int, int], ...]
    field: str = ""
    offset: int = 0
    extent: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        return tuple(count for _, count, _ in self.slices)

    def _stored_part(self) -> StoredReferences:
        """Return the elements that are stored: the first ones along each axis."""
        if self.extent is None:
            return self
        slices = tuple(
            (start, min(count, max(-(-(n - start) // step), 0)), step)
            for (start, count, step), n in zip(self.slices, self.extent, strict=True)
        )
        return replace(self, slices=slices, extent=None)

    def describe(self, row: int) -> str:
        """Name one element in a message, counted in C order of the box."""
        ordinals = np.unravel_index(row, self.shape) if self.shape else ()
        index = tuple(
            start + int(i) * step
            for (start, _, step), i in zip(self.slices, ordinals, strict=True)
        )
        element = index[0] if len(index) == 1 else index
        noun = KIND_NOUNS[self.kind] if self.kind else "element"
        path = self.path or object_label(self.location, self.address)
        of = f"{path!r}, member {self.field!r}" if self.field else f"{path!r}"
        return f"{self.location.filename}: {noun} {element} of {of}"

    def read(self) -> References:
        """Read and decode the elements, in C order.

        Raises
        ------
        CorruptFileError
            If bytes of the dataset or its heap make no sense.
        """
        if dataset_layout(self.location, self.address).virtual:
            return self._read_virtual()
        raw = self.cut(self.read_raw())
        return decode_references(self.location, raw, self.kind, self.describe)

    def _read_virtual(self) -> References:
        """Read the elements where they are stored: each counts in its own file."""
        n = math.prod(self.shape)
        tables = [null_references(n)]
        place = np.arange(n)
        used = n
        coords = self.coords()
        inside = np.arange(n)
        if self.extent is not None:
            inside = np.flatnonzero((coords < self.extent).all(axis=1))
        for part in split_virtual(self.location, self.address, coords[inside], self.path):
            place[inside[part.rows]] = used + np.arange(len(part.rows))
            used += len(part.rows)
            tables.append(read_part(part, self))
        return concat_references(tables).take(place)

    def coords(self) -> IntArray:
        """Return the place of each element in its dataset, shape ``(n, ndim)``."""
        axes = [start + np.arange(count) * step for start, count, step in self.slices]
        grid = np.meshgrid(*axes, indexing="ij")
        n = math.prod(self.shape)
        return np.array(grid, dtype=np.int64).reshape(len(axes), n).T

    def cut(self, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the references' part of elements as stored."""
        width = reference_itemsize(self.kind, file_format(self.location).offset_size)
        return raw[:, self.offset : self.offset + width]

    def read_raw(self) -> npt.NDArray[np.uint8]:
        """Return the elements as stored, shape ``(n, width)``."""
        layout = dataset_layout(self.location, self.address)
        n, width = math.prod(self.shape), layout.stored_itemsize
        stored = self._stored_part()
        if stored.shape != self.shape:
            padded = layout.stored_elements(n).reshape(self.shape)
            corner = tuple(slice(k) for k in stored.shape)
            padded[corner] = stored.read_raw().view(f"V{width}").reshape(stored.shape)
            return padded.view(np.uint8).reshape(n, width)
        out = np.zeros(n, dtype=f"V{width}")
        raw = out.view(np.uint8).reshape(n, width)
        if not n:
            return raw
        first = self._first_of_run(layout)
        if first is not None and layout.offset is not None:
            loader = ContiguousLoader(layout.stored, FileBytes(self.location))
            loader.read_run(first, raw.reshape(-1).data)
        else:
            axes = [regular_segments(start, step, count) for start, count, step in self.slices]
            parts = plan_outer(axes, 0, np.array(canvas_strides(self.shape), dtype=np.int64))
            plan = plan_read(parts, layout.shape, layout.chunks, width)
            read_plan(plan, stored_loader(self.location, self.address, layout), out)
        return raw

    def _first_of_run(self, layout: DatasetLayout) -> int | None:
        """Return the first element, in C order, of a box that is stored as one run.

        None for any other box: reading one run needs no plan.
        """
        if layout.chunks is not None or layout.stored_indirect:
            return None
        first = last = 0
        strides = canvas_strides(layout.shape)
        for (start, count, step), stride in zip(self.slices, strides, strict=True):
            first += start * stride
            last += (start + (count - 1) * step) * stride
        return first if last - first + 1 == math.prod(self.shape) else None


@dataclass(frozen=True, slots=True)
class StoredReader:
    """Reads boxes of one dataset's elements as the bytes they are stored in."""

    location: FileLocation
    address: int

    def __call__(self, start: tuple[int, ...], window: npt.NDArray[Any]) -> None:
        """Read the box of ``window``'s shape at ``start`` into it."""
        layout = dataset_layout(self.location, self.address)
        if layout.stored_indirect == COMPACT:
            where = f"{self.location.filename}: dataset at {self.address:#x}"
            data = read_compact(self.location, self.address, where)
            n = math.prod(layout.shape)
            if len(data) < n * layout.stored_itemsize:
                raise CorruptFileError(f"{where} stores {len(data)} bytes for {n} elements")
            whole = np.frombuffer(data, f"V{layout.stored_itemsize}", n).reshape(layout.shape)
            sides = zip(start, window.shape, strict=True)
            window[...] = whole[tuple(slice(a, a + m) for a, m in sides)]
            return
        window[...] = read_raw(open_dataset(self.location, self.address), start, window.shape)
        check_unchanged(self.location)


def stored_loader(location: FileLocation, address: int, layout: DatasetLayout) -> TileLoader:
    """Choose how the elements of a dataset are read as they are stored.

    Raises
    ------
    UnsupportedError
        If only HDF5 can read the storage, and it would make something else of them.
    """
    where = f"{location.filename}: dataset at {address:#x}"
    stored = layout.stored
    read_box = StoredReader(location, address)
    if stored.indirect and stored.indirect != COMPACT:
        if layout.reference_kind not in ("object", "region"):
            raise UnsupportedError(
                f"{where} holds references in storage that is not read directly "
                f"({stored.indirect})"
            )
        return BoxLoader(stored, read_box, chunk_check(location, address, layout))
    if stored.indirect:
        return BoxLoader(stored, read_box)
    if layout.chunks is None:
        return ContiguousLoader(stored, FileBytes(location))
    return ChunkLoader(
        stored, chunk_index(location, address), FileBytes(location), read_box, where
    )


@dataclass(frozen=True, slots=True)
class StoredElements:
    """Some elements as stored, from one dataset that is not virtual."""

    location: FileLocation
    elements: Datatype
    rows: npt.NDArray[np.intp]  # (m,), which of the elements asked for
    raw: npt.NDArray[np.uint8]  # (m, itemsize)
    describe: Callable[[int], str]


def read_box_of_stored(
    location: FileLocation, address: int, start: tuple[int, ...], shape: tuple[int, ...]
) -> list[StoredElements]:
    """Read a box of elements that hold references, from the datasets that store them.

    Elements of a virtual dataset without a source are its fill value.
    """
    layout = dataset_layout(location, address)
    if layout.elements is None:
        raise UnsupportedError(
            f"{location.filename}: dataset at {address:#x} has no references"
        )
    slices = tuple((a, n, 1) for a, n in zip(start, shape, strict=True))
    place = StoredReferences(location, address, None, "", slices)
    rows = np.arange(math.prod(shape))
    if not layout.virtual:
        raw = place.read_raw()
        return [StoredElements(location, layout.elements, rows, raw, place.describe)]
    parts = []
    for part in split_virtual(location, address, place.coords()):
        source = dataset_layout(part.location, part.address)
        if source.elements != layout.elements:
            raise UnsupportedError(
                f"{part.location.filename}: {part.label!r} is of another type than its virtual "
                f"dataset {object_label(location, address)!r}"
            )
        raw = read_places(part.location, part.address, part.coords)
        describe = describe_places(part, "element")
        parts.append(StoredElements(part.location, layout.elements, part.rows, raw, describe))
    rest = np.setdiff1d(rows, np.concatenate([np.zeros(0, np.intp), *(p.rows for p in parts)]))
    fill = layout.stored_elements(len(rest)).view(np.uint8)
    fill = fill.reshape(len(rest), layout.stored_itemsize)
    return [*parts, StoredElements(location, layout.elements, rest, fill, place.describe)]


def read_places(
    location: FileLocation, address: int, coords: IntArray
) -> npt.NDArray[np.uint8]:
    """Read elements at any places as stored, shape ``(n, itemsize)``."""
    layout = dataset_layout(location, address)
    n, width = len(coords), layout.stored_itemsize
    out = np.zeros(n, dtype=f"V{width}")
    if n:
        plan = plan_read(plan_points(coords), layout.shape, layout.chunks, width)
        read_plan(plan, stored_loader(location, address, layout), out)
    return out.view(np.uint8).reshape(n, width)


def describe_places(part: StoredPart, noun: str) -> Callable[[int], str]:
    """Return what names the elements of a part in messages."""

    def describe(row: int) -> str:
        index = tuple(part.coords[row].tolist())
        element = index[0] if len(index) == 1 else index
        return f"{part.location.filename}: {noun} {element} of {part.label!r}"

    return describe


def read_part(part: StoredPart, place: StoredReferences) -> References:
    """Read and decode references at places of one dataset that is not virtual.

    Raises
    ------
    UnsupportedError
        If the dataset is of another type than the virtual one.
    """
    location, address = part.location, part.address
    layout = dataset_layout(location, address)
    virtual = dataset_layout(place.location, place.address)
    if (layout.reference_kind, layout.elements) != (virtual.reference_kind, virtual.elements):
        raise UnsupportedError(
            f"{location.filename}: {part.label!r} holds {layout.reference_kind or 'values'!r}, "
            f"its virtual dataset {KIND_NOUNS[place.kind]}s"
        )
    raw = read_places(location, address, part.coords)
    describe = describe_places(part, KIND_NOUNS[place.kind])
    return decode_references(location, place.cut(raw), place.kind, describe)


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
    for collections in read_collections(file_content(location), heap, index, live, describe):
        rows = collections.rows
        address[rows], table = _decode_collections(collections, form.offset_size)
        tables.append(table)
        order.append(np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows)
    null = np.flatnonzero(heap == 0)
    if not tables:
        return address, empty_table(len(heap), 0)
    if len(null):
        tables.append(empty_table(len(null), tables[0].ndim, Kind.NULL))
        order.append(null)
    return address, in_order(tables, order)


def _decode_collections(
    collections: HeapCollections, address_size: int
) -> tuple[npt.NDArray[np.uint64], RegionTable]:
    """Decode the references to some heap collections: together, or else one by one."""
    boxes = decode_boxes(
        collections.buffer,
        collections.base,
        collections.size,
        length_size=collections.length_size,
        address_size=address_size,
    )
    rows = None if boxes is None else boxes.rows(collections.of, collections.index)
    if boxes is not None and rows is not None:
        return boxes.address[rows], box_table(boxes.start[rows], boxes.shape[rows])
    batch = collections.find()
    return decode_selections(
        batch.buffer, batch.position, batch.nbytes, address_size, batch.describe
    )


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
    for batch in read_heap_objects(
        file_content(location), elements.heap, elements.index, live, describe
    ):
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
        is_other = np.ones(n, dtype=bool)
        is_other[np.concatenate(order)] = False
        others = np.flatnonzero(is_other)
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
