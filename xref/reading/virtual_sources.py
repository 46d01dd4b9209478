"""Sources of virtual datasets: opened, checked, and followed to the datasets that store data.

In: a virtual dataset and elements of it. Out: the datasets that store these elements, each with
the coordinates to read. Sources that are virtual themselves are followed in turn.

HDF5 reads any file that a source names, and crashes on virtual datasets that form a circle.
Therefore the names are followed here first, with the checks of links.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from xref.arrays import FrozenColumns, IntArray, canvas_strides
from xref.errors import ExternalFileError, UnsupportedError
from xref.hdf5 import VirtualMapping
from xref.objects import StoredObject, open_member, virtual_mappings
from xref.reading.chunk_checks import check_packed
from xref.storage import FileLocation, check_external, is_same_file, locate_file

MAX_DEPTH = 16
"""Largest number of virtual datasets between a virtual dataset and its stored elements."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredPart(FrozenColumns):
    """The requested elements that one dataset stores."""

    dataset: StoredObject
    path: str | None  # by which it was opened, or which the virtual dataset names
    rows: npt.NDArray[np.intp]  # (m,), rows of the requested elements
    coords: IntArray  # (m, ndim), in this dataset

    @property
    def label(self) -> str:
        """Name in a message: the path, or a label that is looked up in the file."""
        return self.path or self.dataset.label


def split_virtual(
    dataset: StoredObject, coords: IntArray, path: str | None = None
) -> Iterator[StoredPart]:
    """Find the datasets that store elements of a virtual dataset.

    ``coords`` are its elements, shape ``(n, ndim)``; ``path`` names the dataset in messages.

    Yields
    ------
    StoredPart
        Each element is in at most one part; an element without a source is in none.

    Raises
    ------
    ExternalFileError
        If a source is in a file that the location does not allow.
    CorruptFileError, SelectionError
        If a source does not fit its mapping.
    UnsupportedError
        If more than `MAX_DEPTH` virtual datasets follow each other.
    """
    whole = StoredPart(dataset=dataset, path=path, rows=np.arange(len(coords)), coords=coords)
    level = [whole]
    for _ in range(MAX_DEPTH):
        below: list[StoredPart] = []
        for part in level:
            for found in _split_once(part):
                if found.dataset.layout.virtual:
                    below.append(found)
                else:
                    yield found
        if not below:
            return
        level = below
    raise _too_deep(dataset.filename, whole.label)


def check_sources(dataset: StoredObject, start: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Check all datasets that HDF5 opens to read a box; return the number of other files.

    Raises
    ------
    ExternalFileError
        If HDF5 would open a file that the location does not allow.
    CorruptFileError, SelectionError
        If a source does not fit its mapping.
    UnsupportedError
        If more than `MAX_DEPTH` virtual datasets follow each other.
    """
    first = tuple(zip(start, shape, strict=True))
    level = {dataset: first}
    files = {dataset.location.file_id}
    for _ in range(MAX_DEPTH):
        below: dict[StoredObject, tuple[tuple[int, int], ...]] = {}
        for virtual, box in level.items():
            home, extent = virtual.location, virtual.layout.shape
            for mapping in _mappings_of_box(virtual, box):
                where = f"{home.filename}: source {mapping.dataset!r}"
                source = _open_source(home, mapping, where)
                if source is None:
                    _check_not_elsewhere(home, mapping.filename, where)
                    continue
                files.add(source.location.file_id)
                layout = source.layout
                mapping.fit(extent, layout.shape, where)
                check_packed(source)
                if layout.virtual:
                    below[source] = tuple((0, n) for n in layout.shape)
        if not below:
            return len(files) - 1
        level = below
    raise _too_deep(dataset.filename, dataset.label)


def _too_deep(filename: str, path: str) -> UnsupportedError:
    return UnsupportedError(
        f"{filename}: {path!r} has more than {MAX_DEPTH} virtual datasets between it "
        "and its data; they may form a circle"
    )


def _mappings_of_box(
    dataset: StoredObject, box: tuple[tuple[int, int], ...]
) -> Iterator[VirtualMapping]:
    """Yield a mapping for each source that touches a box, given as (start, size) per axis."""
    extent = dataset.layout.shape
    for mapping in virtual_mappings(dataset):
        low, high = mapping.bounds(extent)
        touched = [
            range(max(a, start), min(b, start + size))
            for a, b, (start, size) in zip(low, high, box, strict=True)
        ]
        if all(touched):
            yield from mapping.of_ranges(touched)


def _split_once(part: StoredPart) -> Iterator[StoredPart]:
    """Follow the mappings of one virtual dataset."""
    location, coords = part.dataset.location, part.coords
    # No label here: reading must not search the file for a path that no message needs.
    name = part.path or f"dataset at {part.dataset.address:#x}"
    extent = part.dataset.layout.shape
    weights = np.array(canvas_strides(extent), dtype=np.int64)
    place = coords @ weights
    order = np.argsort(place, kind="stable")
    place = place[order]
    # Where mappings overlap, the last mapping with an existing source counts.
    owner = np.full(len(coords), -1, dtype=np.int64)
    sources: list[StoredPart] = []
    for mapping in virtual_mappings(part.dataset):
        low, high = (np.array(side, dtype=np.int64) for side in mapping.bounds(extent))
        if (low >= high).any():
            continue
        # In C order a narrow range contains all elements of the selection.
        begin, end = np.searchsorted(place, [low @ weights, (high - 1) @ weights + 1])
        near = order[begin:end]
        near = near[((coords[near] >= low) & (coords[near] < high)).all(axis=1)]
        for one, rows in mapping.blocks(coords[near]):
            where = f"{location.filename}: {name!r}: source {one.dataset!r}"
            source = _open_source(location, one, where) if len(rows) else None
            if source is None:
                continue
            rows = near[rows]
            shape = source.layout.shape
            fitted = one.fit(extent, shape, where)
            at, within = fitted.source_coords(coords[rows], extent, shape)
            owner[rows[at]] = len(sources)
            sources.append(
                StoredPart(dataset=source, path=one.dataset, rows=rows[at], coords=within)
            )
    for number, source_part in enumerate(sources):
        kept = owner[source_part.rows] == number
        if kept.any():
            rows, within = part.rows[source_part.rows[kept]], source_part.coords[kept]
            yield replace(source_part, rows=rows, coords=within)


def _open_source(
    location: FileLocation, mapping: VirtualMapping, where: str
) -> StoredObject | None:
    """Return the dataset of a source; None if it does not exist, which HDF5 allows."""
    home = location
    try:
        if mapping.filename != ".":
            other = check_external(location, mapping.filename, f"{where} (virtual source)")
            found = locate_file(other, location.external, strict=location.source.strict)
            # A source in the same file uses the location that is open.
            home = location if is_same_file(found, location) else found
        member = open_member(home, mapping.dataset)
    except FileNotFoundError:
        return None
    return member.stored


def _check_not_elsewhere(location: FileLocation, name: str, where: str) -> None:
    """Refuse a file that HDF5 would find from the working folder only."""
    searched = os.path.basename(name) if os.path.isabs(name) else name
    if name != "." and location.external != "all" and os.path.exists(searched):
        raise ExternalFileError(
            f"{where} names the file {name!r}, which is not beside {location.filename}; HDF5 "
            f'would read {os.path.abspath(searched)}. Pass external="all" if it may'
        )
