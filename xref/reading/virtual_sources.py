"""Sources of virtual datasets: found, guarded, and cut down to single datasets.

In: a virtual dataset and elements of it. Out: the datasets that store these elements,
each with the places to read. A source may be virtual itself; that is followed to the
datasets that are not.

HDF5 reads sources wherever their names lead, and dies of virtual datasets that name
each other in a circle. Names are therefore followed here first, under the guard of
links.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xref.arrays import FrozenColumns, IntArray, canvas_strides
from xref.errors import ExternalFileError, UnsupportedError
from xref.hdf5 import VirtualMapping
from xref.objects import StoredObject, open_member, virtual_mappings
from xref.reading.chunk_checks import check_packed
from xref.storage import FileLocation, check_external, locate_file

MAX_DEPTH = 16
"""Virtual datasets between one and what stores its elements."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredPart(FrozenColumns):
    """Elements that one dataset stores, among those asked for."""

    dataset: StoredObject
    path: str | None  # as it was opened, or as the virtual dataset names it
    rows: npt.NDArray[np.intp]  # (m,), which of the elements asked for
    coords: IntArray  # (m, ndim), where in this dataset

    @property
    def label(self) -> str:
        """Its name in a message; looked up in the file where it has no path."""
        return self.path or self.dataset.label


def split_virtual(
    dataset: StoredObject, coords: IntArray, path: str | None = None
) -> Iterator[StoredPart]:
    """Find the datasets that store elements of a virtual dataset.

    Parameters
    ----------
    dataset : StoredObject
        The virtual dataset.
    coords : numpy.ndarray
        Shape ``(n, ndim)``: its elements.
    path : str, optional
        As the dataset was opened, for messages.

    Yields
    ------
    StoredPart
        No element is in two of them; those in none have no source.

    Raises
    ------
    ExternalFileError
        If a source is in a file that the location does not allow.
    CorruptFileError, SelectionError
        If a source is not what is mapped.
    UnsupportedError
        If too many virtual datasets lead to one another.
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
    """Check all that HDF5 opens to read a box of a virtual dataset.

    Returns
    -------
    int
        How many other files that are.

    Raises
    ------
    ExternalFileError
        If that includes a file that the location does not allow.
    CorruptFileError, SelectionError
        If a source is not what is mapped.
    UnsupportedError
        If the virtual datasets lead to one another in a circle, or nearly so.
    """
    first = tuple(zip(start, shape, strict=True))
    level = {dataset: first}
    files = {dataset.location.key}
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
                files.add(source.location.key)
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
    """Yield the mappings, one for each source, that touch a box: (start, size) per axis."""
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
    # Not its label: reading must not search the file for a name that no message needs.
    name = part.path or f"dataset at {part.dataset.address:#x}"
    extent = part.dataset.layout.shape
    weights = np.array(canvas_strides(extent), dtype=np.int64)
    place = coords @ weights
    order = np.argsort(place, kind="stable")
    place = place[order]
    # Where mappings overlap, the last one whose source is there counts.
    owner = np.full(len(coords), -1, dtype=np.int64)
    found: list[StoredPart] = []
    for mapping in virtual_mappings(part.dataset):
        low, high = (np.array(side, dtype=np.int64) for side in mapping.bounds(extent))
        if (low >= high).any():
            continue
        # A narrow range of C order holds all of the selection.
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
            owner[rows[at]] = len(found)
            found.append(
                StoredPart(dataset=source, path=one.dataset, rows=rows[at], coords=within)
            )
    for number, one_part in enumerate(found):
        kept = owner[one_part.rows] == number
        if kept.any():
            yield StoredPart(
                dataset=one_part.dataset,
                path=one_part.path,
                rows=part.rows[one_part.rows[kept]],
                coords=one_part.coords[kept],
            )


def _open_source(
    location: FileLocation, mapping: VirtualMapping, where: str
) -> StoredObject | None:
    """Return the dataset that is a source; None where there is none, as HDF5 has it."""
    home = location
    try:
        if mapping.filename != ".":
            other = check_external(location, mapping.filename, f"{where} (virtual source)")
            found = locate_file(other, location.external)
            # A source in its own file stays in the file as it was opened.
            home = location if found.identity == location.identity else found
        member = open_member(home, mapping.dataset)
    except FileNotFoundError:
        return None
    return member.stored


def _check_not_elsewhere(location: FileLocation, name: str, where: str) -> None:
    """Refuse a file that is missing here but found by HDF5 from the working folder."""
    searched = os.path.basename(name) if os.path.isabs(name) else name
    if name != "." and location.external != "all" and os.path.exists(searched):
        raise ExternalFileError(
            f"{where} names the file {name!r}, which is not beside {location.filename}; HDF5 "
            f'would read {os.path.abspath(searched)}. Pass external="all" if it may'
        )
