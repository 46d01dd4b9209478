"""Small datasets behind references, read together.

In: addresses of many objects. Out: `SmallDatasets`, the columns of the datasets that are stored
as one range of bytes or a few chunks; few reads give the values of all of them.
`xref.resolving.read_results` opens the other objects one by one.

h5py opens only representatives: one dataset of each kind (equal type, fill value and filters,
`xref.hdf5.bulk_datasets`), one of each set of attributes (`xref.hdf5.bulk_attributes`), and one
more for each attribute whose value differs within the set. An attribute value that all
representatives of a set share is shared by all datasets of the set.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xref import hdf5
from xref.arrays import IntArray, ragged_ranges, read_scattered
from xref.errors import XrefError
from xref.objects import COMPACT, DatasetMetadata, StoredObject, dataset_table, file_content
from xref.reading.chunked_datasets import ChunkedDatasets, read_chunked_datasets
from xref.storage import FileBytes, FileLocation

SMALL_NBYTES = 1 << 22
"""Datasets with more bytes or larger chunks are planned one by one, so that threads divide the
work; for smaller ones that takes longer, even with filters (benchmarks/small.py, limits)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SmallDatasets:
    """Small datasets of one file that references select whole, as columns.

    Each dataset is contiguous, compact, unwritten, or has few chunks. The elements need no
    conversion.
    """

    location: FileLocation
    address: npt.NDArray[np.uint64]  # (t,)
    ndim: IntArray  # (t,)
    shape: IntArray  # (t, widest), filled up with 1
    offset: IntArray  # (t,), first byte in the file; -1 if nothing was written
    nbytes: IntArray  # (t,), bytes of all elements
    chunk_shape: IntArray  # (t, widest); 1 if not chunked
    chunks: hdf5.ChunkColumns  # of the chunked datasets; the others have no rows
    kind: IntArray  # (t,), row of `kinds`
    kinds: tuple[DatasetMetadata, ...]  # of one dataset of each kind
    # Rows, and their metadata; every dataset has the attributes of a representative.
    representatives: tuple[tuple[int, DatasetMetadata], ...]
    representative: IntArray  # (t,), row of `representatives` with the same decoding
    rows: npt.NDArray[np.intp]  # (r,), rows of references
    which: IntArray  # (r,), the dataset of each of these references, ascending

    def __len__(self) -> int:
        return len(self.address)

    @property
    def stored_nbytes(self) -> int:
        """Bytes that the file holds for the data."""
        return int(self.nbytes[~self.chunks.known].sum() + self.chunks.nbytes.sum())

    def read(
        self, which: IntArray, layout: hdf5.DatasetLayout, out: npt.NDArray[Any], dst: IntArray
    ) -> None:
        """Read datasets of one kind into ``out``, each from element ``dst`` on."""
        if layout.chunks is not None:
            self._read_chunked(which, layout, out, dst)
            return
        written = self.offset[which] >= 0
        if not written.all():
            npoints = self.shape[which[~written]].prod(axis=1)
            out[ragged_ranges(dst[~written], npoints)] = layout.unwritten_value
            which, dst = which[written], dst[written]
        read_scattered(
            FileBytes(self.location),
            self.offset[which],
            self.nbytes[which],
            out.view(np.uint8),
            dst * out.itemsize,
        )

    def _read_chunked(
        self, which: IntArray, layout: hdf5.DatasetLayout, out: npt.NDArray[Any], dst: IntArray
    ) -> None:
        """Read chunked datasets of one kind, each once."""
        once, first, number = np.unique(which, return_index=True, return_inverse=True)

        def describe(k: int) -> str:
            return StoredObject(self.location, int(self.address[once[k]])).named

        datasets = ChunkedDatasets(
            shape=self.shape[once],
            chunk_shape=self.chunk_shape[once],
            ndim=self.ndim[once],
            chunks=self.chunks.take(once),
            pipeline=layout.pipeline,
            unwritten_value=layout.unwritten_value,
            describe=describe,
        )
        read_chunked_datasets(FileBytes(self.location), datasets, out, dst[first])
        again = np.ones(len(which), dtype=bool)
        again[first] = False
        if again.any():
            npoints = self.shape[which[again]].prod(axis=1)
            begin = dst[first][number.reshape(-1)[again]]
            out[ragged_ranges(dst[again], npoints)] = out[ragged_ranges(begin, npoints)]


def select_small_datasets(
    location: FileLocation,
    address: npt.NDArray[np.uint64],
    decoding_attributes: Collection[str],
) -> tuple[npt.NDArray[np.intp], SmallDatasets | None]:
    """Find datasets among many objects of a file that can be read together.

    Parameters
    ----------
    location : FileLocation
        The file.
    address : numpy.ndarray
        Shape ``(n,)``, distinct.
    decoding_attributes : collection of str
        Attributes that determine how values are decoded.

    Returns
    -------
    rows : numpy.ndarray
        The rows of these datasets, ascending.
    small : SmallDatasets or None
        The datasets, without references to them; None if there is no such dataset.
    """
    table = dataset_table(location, address)
    selected, kinds = _select_by_kind(location, address, table)
    chunked = np.flatnonzero(selected & (table.storage == hdf5.CHUNKED))
    chunks = hdf5.read_chunks(file_content(location), table.take(chunked), SMALL_NBYTES)
    selected[chunked] = chunks.known
    opened, decoded_as = _choose_representatives(
        location, address, table, selected, decoding_attributes
    )
    rows = np.flatnonzero(selected)
    if not len(rows):
        return rows, None
    part, order = table.take(rows), sorted(opened)
    used = np.unique(part.first_alike)
    number_of_kind = {k: i for i, k in enumerate(kinds)}
    number = np.array([number_of_kind[k] for k in used.tolist()])
    return rows, SmallDatasets(
        location=location,
        address=address[rows],
        ndim=part.ndim,
        shape=part.shape,
        offset=part.offset,
        nbytes=part.nbytes,
        chunk_shape=part.chunks,
        chunks=chunks.scatter_rows(chunked, len(table)).take(rows),
        kind=number[np.searchsorted(used, part.first_alike)],
        kinds=tuple(kinds.values()),
        representatives=tuple((int(np.searchsorted(rows, k)), opened[k]) for k in order),
        representative=np.searchsorted(order, decoded_as[rows]),
        rows=np.zeros(0, dtype=np.intp),
        which=np.zeros(0, dtype=np.int64),
    )


def _select_by_kind(
    location: FileLocation, address: npt.NDArray[np.uint64], table: hdf5.DatasetTable
) -> tuple[npt.NDArray[np.bool_], dict[int, DatasetMetadata]]:
    """Select small datasets whose elements are stored as bytes of a NumPy type.

    Returns the mask, and by the number of each kind the metadata of its first dataset.
    """
    selected = table.known & (table.nbytes <= SMALL_NBYTES)
    kinds: dict[int, DatasetMetadata] = {}
    for k in np.unique(table.first_alike[selected]).tolist():
        members = selected & (table.first_alike == k)
        metadata = _metadata_or_none(location, int(address[k]))
        if metadata is None or not _is_plain(metadata.layout):
            selected &= ~members
            continue
        if metadata.layout.fill_undefined:  # without storage there are no values to read
            selected &= ~members | (table.offset >= 0)
        kinds[k] = metadata
        needed = table.shape.prod(axis=1) * metadata.layout.stored_itemsize
        selected &= ~members | (table.nbytes == needed)
    return selected, kinds


def _choose_representatives(
    location: FileLocation,
    address: npt.NDArray[np.uint64],
    table: hdf5.DatasetTable,
    selected: npt.NDArray[np.bool_],
    decoding_attributes: Collection[str],
) -> tuple[dict[int, DatasetMetadata], npt.NDArray[np.intp]]:
    """Open the datasets that represent all selected ones by their attributes.

    A dataset that cannot be opened is removed from ``selected``. Returns the metadata of the
    opened datasets by row, and for each row the opened row that is decoded equally.
    """
    alone = selected & (table.attributes == hdf5.OWN_ATTRIBUTES)  # to be opened one by one
    opened: dict[int, DatasetMetadata] = {}
    decoded_as = np.arange(len(table))
    for k in np.unique(table.attributes[selected & (table.attributes >= 0)]).tolist():
        members = np.flatnonzero(selected & (table.attributes == k))
        first_equal, known = _group_by_decoding(table, members, decoding_attributes)
        alone[members[~known]] = True
        members, first_equal = members[known], first_equal[known]
        compared = _open_until_compared(location, address, table, members)
        decoded = _open_alike(location, address, np.unique(first_equal)) if compared else None
        if compared is None or decoded is None:
            alone[members] = True
        else:
            opened |= compared | decoded
            decoded_as[members] = first_equal
    for row in np.flatnonzero(alone).tolist():
        metadata = _metadata_or_none(location, int(address[row]))
        if metadata is None:
            selected[row] = False
        else:
            opened[row] = metadata
    # One dataset of each number of axes and set of attributes, and one without attributes.
    rows = np.flatnonzero(selected)
    form = table.ndim[rows] + table.attributes[rows] * (hdf5.MAX_RANK + 1)
    first = rows[np.unique(form, return_index=True)[1]]
    bare = np.flatnonzero(selected & (table.attributes == hdf5.NO_ATTRIBUTES))
    decoded_as[bare] = bare[:1]
    for row in {*first[~alone[first]].tolist(), *bare[:1].tolist()} - opened.keys():
        opened[row] = StoredObject(location, int(address[row])).metadata
    return {row: opened[row] for row in opened if selected[row]}, decoded_as


def _metadata_or_none(location: FileLocation, address: int) -> DatasetMetadata | None:
    """Return the metadata of a dataset; None if it cannot be opened.

    The error is raised later, when the dataset is opened by itself.
    """
    try:
        return StoredObject(location, address).metadata
    except XrefError:
        return None


def _is_plain(layout: hdf5.DatasetLayout) -> bool:
    """Tell whether elements are the bytes of a NumPy type, without references."""
    references = layout.reference_kind or layout.elements is not None
    return not references and layout.why_not_direct in ("", COMPACT)


def _group_by_decoding(
    table: hdf5.DatasetTable,
    members: npt.NDArray[np.intp],
    decoding_attributes: Collection[str],
) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Group the datasets of one set of attributes by the values that determine decoding.

    Returns for each dataset the first row with equal values, and whether they were compared.
    """
    names = table.names[int(table.attributes[members[0]])]
    axes = [axis for axis, name in enumerate(names) if name in decoding_attributes]
    if not axes:
        return np.full(len(members), members[0]), np.ones(len(members), dtype=bool)
    values = table.values[members][:, axes]
    _, first, group = np.unique(values, axis=0, return_index=True, return_inverse=True)
    return members[first[group.reshape(-1)]], (values != hdf5.OTHER_VALUE).all(axis=1)


def _open_alike(
    location: FileLocation, address: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]
) -> dict[int, DatasetMetadata] | None:
    """Open datasets that may represent others; None if one of them may not."""
    opened = {}
    for row in rows.tolist():
        metadata = _metadata_or_none(location, int(address[row]))
        if metadata is None or not _may_represent(metadata):
            return None
        opened[row] = metadata
    return opened


def _open_until_compared(
    location: FileLocation,
    address: npt.NDArray[np.uint64],
    table: hdf5.DatasetTable,
    members: npt.NDArray[np.intp],
) -> dict[int, DatasetMetadata] | None:
    """Open datasets of one set of attributes until each attribute is constant or varies.

    Return the metadata of the opened datasets, by row: all members share the values that
    these datasets share. Return None if each member must be opened.
    """
    if not len(members):
        return {}
    opened = _open_alike(location, address, members[:1])
    if opened is None:
        return None
    first = int(members[0])
    for axis, name in enumerate(table.names[int(table.attributes[first])]):
        distinct, index = np.unique(table.values[members, axis], return_index=True)
        if len(distinct) == 1 and distinct[0] != hdf5.OTHER_VALUE:
            continue
        for row in members[np.sort(index[distinct != hdf5.OTHER_VALUE])].tolist():
            if row not in opened:
                more = _open_alike(location, address, np.array([row]))
                if more is None:
                    return None
                opened |= more
            if _differ(opened[first].attributes.get(name), opened[row].attributes.get(name)):
                break
        else:
            if distinct[0] == hdf5.OTHER_VALUE:
                return None
    return opened


def _differ(a: Any, b: Any) -> bool:
    return type(a) is not type(b) or not np.array_equal(a, b)


def _may_represent(metadata: DatasetMetadata) -> bool:
    """Tell whether datasets with the same attributes have equal names and coordinates."""
    special = {"CLASS", "coordinates"} & metadata.attributes.keys()
    return not (special or metadata.scales or metadata.problems)
