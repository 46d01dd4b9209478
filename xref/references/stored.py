"""References in a dataset of a file: their location, and reading them.

In: a dataset and a box of its elements. Out: `ReferenceColumns`, one row for each element.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xref import objects
from xref.arrays import IntArray, canvas_strides
from xref.errors import CorruptFileError, UnsupportedError, naming
from xref.hdf5 import DatasetLayout, Datatype
from xref.objects import NamedDataset, StoredObject
from xref.reading import (
    BoxLoader,
    ChunkLoader,
    ContiguousLoader,
    StoredPart,
    TileLoader,
    UndefinedLoader,
    chunk_check,
    plan_outer,
    plan_points,
    plan_read,
    read_plan,
    regular_segments,
    split_virtual,
)
from xref.references import columns
from xref.references.decoding import decode_references
from xref.references.owners import ElementNames, Owner, box_of_shape
from xref.storage import FileBytes, FileLocation, check_unchanged


@dataclass(frozen=True, slots=True)
class StoredReferences:
    """The location of a box of elements in a reference dataset; pickles to a few hundred bytes.

    Attributes
    ----------
    dataset : StoredObject
        The dataset; its references refer to objects of the same file.
    path : str or None
        The path by which the dataset was opened, for messages; None for the canonical path.
    kind : {"object", "region", "std", ""}
        Type of the elements; "std" (``H5T_STD_REF``) allows any kind. Empty for
        compounds, arrays and sequences that contain references.
    slices : tuple of (start, count, step)
        The requested elements along each axis.
    field : str
        Name of the compound member that holds the references, with dots between nested names;
        empty if the elements themselves are references.
    offset : int
        Offset of the member in an element, bytes.
    extent : tuple of int, optional
        Shape of the dataset, if ``slices`` exceed it because other datasets extend further
        along an unlimited dimension. Elements outside have the fill value of the dataset,
        which is a null reference by default.
    """

    dataset: StoredObject
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
        """Return the elements within the extent: the first ones along each axis."""
        if self.extent is None:
            return self
        slices = tuple(
            (start, min(count, max(-(-(n - start) // step), 0)), step)
            for (start, count, step), n in zip(self.slices, self.extent, strict=True)
        )
        return replace(self, slices=slices, extent=None)

    def ordinal_of(self, part: StoredReferences) -> int:
        """Return the row of the first element of a part of this box."""
        row = 0
        for (begin, count, step), (first, _, _) in zip(self.slices, part.slices, strict=True):
            row = row * count + (first - begin) // step
        return row

    @property
    def names(self) -> ElementNames:
        """The names of the elements in messages, in C order of the box."""
        noun = columns.KIND_NOUNS[self.kind] if self.kind else "element"
        owner = Owner.of(self.dataset, self.path, noun, self.slices, member=self.field)
        return ElementNames.of_owner(owner, range(math.prod(self.shape)))

    def describe(self, row: int) -> str:
        """Name one element in a message, counted in C order of the box."""
        return self.names.describe(row)

    def read(self) -> columns.ReferenceColumns:
        """Read and decode the elements, in C order.

        Raises
        ------
        CorruptFileError
            If the bytes of the dataset or of the heap are invalid.
        """
        if self.dataset.layout.virtual:
            return self._read_virtual()
        raw = self.cut(self.read_raw())
        return decode_references(self.dataset.location, raw, self.kind, self.describe)

    def _read_virtual(self) -> columns.ReferenceColumns:
        """Read the elements from the sources; each refers to objects of its own file."""
        n = math.prod(self.shape)
        tables = [columns.null_references(n)]
        place = np.arange(n)
        used = n
        coords = self.coords()
        inside = np.arange(n)
        if self.extent is not None:
            inside = np.flatnonzero((coords < self.extent).all(axis=1))
        for part in split_virtual(self.dataset, coords[inside], self.path):
            place[inside[part.rows]] = used + np.arange(len(part.rows))
            used += len(part.rows)
            tables.append(_read_part(part, self))
        return columns.concat_references(tables).take(place)

    def coords(self) -> IntArray:
        """Return the index of each element in the dataset, shape ``(n, ndim)``."""
        axes = [start + np.arange(count) * step for start, count, step in self.slices]
        grid = np.meshgrid(*axes, indexing="ij")
        return np.array(grid, dtype=np.int64).reshape(len(axes), math.prod(self.shape)).T

    def cut(self, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the bytes of the references within stored elements."""
        width = objects.reference_itemsize(
            self.kind, objects.file_format(self.dataset.location).offset_size
        )
        return raw[:, self.offset : self.offset + width]

    def read_raw(self) -> npt.NDArray[np.uint8]:
        """Return the elements as stored, shape ``(n, width)``."""
        layout = self.dataset.layout
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
            loader = ContiguousLoader(layout.stored, FileBytes(self.dataset.location))
            with naming(self.dataset.__str__):
                loader.read_run(first, raw.reshape(-1).data)
        else:
            axes = [regular_segments(start, step, count) for start, count, step in self.slices]
            parts = plan_outer(axes, 0, np.array(canvas_strides(self.shape), dtype=np.int64))
            plan = plan_read(parts, layout.shape, layout.chunks, width)
            with naming(self.dataset.__str__):
                read_plan(plan, stored_loader(self.dataset, layout), out)
        return raw

    def _first_of_run(self, layout: DatasetLayout) -> int | None:
        """Return the first element in C order if the box is contiguous in the file, else None.

        Reading a contiguous run needs no plan.
        """
        if layout.chunks is not None or layout.why_not_raw:
            return None
        first = last = 0
        strides = canvas_strides(layout.shape)
        for (start, count, step), stride in zip(self.slices, strides, strict=True):
            first += start * stride
            last += (start + (count - 1) * step) * stride
        return first if last - first + 1 == math.prod(self.shape) else None


@dataclass(frozen=True, slots=True)
class StoredReader:
    """Reads boxes of elements of one dataset as stored bytes."""

    dataset: StoredObject

    def __call__(self, start: tuple[int, ...], window: npt.NDArray[Any]) -> None:
        """Read the box of ``window``'s shape at ``start`` into it."""
        layout = self.dataset.layout
        if layout.why_not_raw == objects.COMPACT:
            data = objects.read_compact(self.dataset)
            n = math.prod(layout.shape)
            if len(data) < n * layout.stored_itemsize:
                raise CorruptFileError(
                    f"{self.dataset.named} stores {len(data)} bytes for {n} elements"
                )
            whole = np.frombuffer(data, f"V{layout.stored_itemsize}", n).reshape(layout.shape)
            sides = zip(start, window.shape, strict=True)
            window[...] = whole[tuple(slice(a, a + m) for a, m in sides)]
            return
        window[...] = objects.read_raw(objects.open_dataset(self.dataset), start, window.shape)
        check_unchanged(self.dataset.location)


def stored_loader(dataset: StoredObject, layout: DatasetLayout) -> TileLoader:
    """Choose the loader of the stored bytes of elements.

    Raises
    ------
    UnsupportedError
        If only HDF5 can read the storage, and would convert the elements.
    """
    stored, source = layout.stored, FileBytes(dataset.location)
    if layout.is_undefined:
        return UndefinedLoader(stored, NamedDataset(dataset))
    read_box = StoredReader(dataset)
    if stored.why_not_direct and stored.why_not_direct != objects.COMPACT:
        if layout.reference_kind not in ("object", "region"):
            raise UnsupportedError(
                f"{dataset.named} holds references in storage that cannot be read directly "
                f"({stored.why_not_direct})"
            )
        return BoxLoader(stored, read_box, chunk_check(dataset, layout))
    if stored.why_not_direct:
        return BoxLoader(stored, read_box)
    if layout.chunks is None:
        return ContiguousLoader(stored, source)
    return ChunkLoader(
        stored, objects.chunk_index(dataset), source, read_box, NamedDataset(dataset)
    )


@dataclass(frozen=True, slots=True)
class StoredElements:
    """Elements as stored bytes, from one dataset that is not virtual."""

    location: FileLocation
    elements: Datatype
    rows: npt.NDArray[np.intp]  # (m,), rows of the requested elements
    raw: npt.NDArray[np.uint8]  # (m, itemsize)
    names: ElementNames  # (m,), of the elements in messages


def read_box_of_stored(
    dataset: StoredObject, start: tuple[int, ...], shape: tuple[int, ...]
) -> list[StoredElements]:
    """Read a box of elements that contain references, from the datasets that store them.

    Elements of a virtual dataset without a source have its fill value.
    """
    layout = dataset.layout
    if layout.elements is None:
        raise UnsupportedError(f"{dataset.named} has no references")
    slices = tuple((a, n, 1) for a, n in zip(start, shape, strict=True))
    box = StoredReferences(dataset, None, "", slices)
    rows = np.arange(math.prod(shape))
    if not layout.virtual:
        raw = box.read_raw()
        return [StoredElements(dataset.location, layout.elements, rows, raw, box.names)]
    parts = []
    for part in split_virtual(dataset, box.coords()):
        source = part.dataset.layout
        if source.elements != layout.elements:
            raise UnsupportedError(
                f"{part.dataset.filename}: {part.label!r} is of another type than its virtual "
                f"dataset {dataset.label!r}"
            )
        raw = read_elements(part.dataset, part.coords)
        names = _names_of_part(part, "element")
        parts.append(
            StoredElements(part.dataset.location, layout.elements, part.rows, raw, names)
        )
    rest = np.setdiff1d(rows, np.concatenate([np.zeros(0, np.intp), *(p.rows for p in parts)]))
    fill = layout.stored_elements(len(rest)).view(np.uint8)
    fill = fill.reshape(len(rest), layout.stored_itemsize)
    names = box.names.take(rest)
    parts.append(StoredElements(dataset.location, layout.elements, rest, fill, names))
    return parts


def read_elements(dataset: StoredObject, coords: IntArray) -> npt.NDArray[np.uint8]:
    """Read the stored bytes of single elements, shape ``(n, itemsize)``."""
    layout = dataset.layout
    n, width = len(coords), layout.stored_itemsize
    out = np.zeros(n, dtype=f"V{width}")
    if n:
        plan = plan_read(plan_points(coords), layout.shape, layout.chunks, width)
        with naming(dataset.__str__):
            read_plan(plan, stored_loader(dataset, layout), out)
    return out.view(np.uint8).reshape(n, width)


def _names_of_part(part: StoredPart, noun: str) -> ElementNames:
    """Return the names of the elements of a part in messages."""
    shape = part.dataset.layout.shape
    owner = Owner.of(part.dataset, part.path, noun, box_of_shape(shape))
    weights = np.array(canvas_strides(shape), dtype=np.int64)
    return ElementNames.of_owner(owner, part.coords @ weights)


def _read_part(part: StoredPart, box: StoredReferences) -> columns.ReferenceColumns:
    """Read and decode the references of one part of a virtual dataset.

    Raises
    ------
    UnsupportedError
        If the type of the source differs from the type of the virtual dataset.
    """
    layout, virtual = part.dataset.layout, box.dataset.layout
    if (layout.reference_kind, layout.elements) != (virtual.reference_kind, virtual.elements):
        kind = layout.reference_kind or "values"
        raise UnsupportedError(
            f"{part.dataset.filename}: {part.label!r} holds {kind!r}, "
            f"its virtual dataset {columns.KIND_NOUNS[box.kind]}s"
        )
    raw = read_elements(part.dataset, part.coords)
    names = _names_of_part(part, columns.KIND_NOUNS[box.kind])
    return decode_references(part.dataset.location, box.cut(raw), box.kind, names.describe)
