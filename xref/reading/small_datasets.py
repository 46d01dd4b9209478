"""Small datasets behind references, read together.

In: addresses of many objects. Out: `SmallDatasets`, the columns of those that are ranges of
bytes or a few chunks, and the values of all of them by few reads. The others are for
`xref.resolving.read_results`, which looks at them one by one.

Of each kind of dataset (`xref.hdf5.bulk_datasets`) one is looked at through h5py; so is one
of each set of attributes (`xref.hdf5.bulk_attributes`), and one more for each attribute whose
value differs within the set: what these agree on, all do.
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
"""Datasets of more bytes, or of larger chunks, are planned one by one, so that threads share
them; up to here that takes longer even with filters (benchmarks/small.py, limits)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SmallDatasets:
    """Small datasets of one file that references select whole, as columns.

    They are contiguous or compact, have a few chunks, or nothing was written to them, and
    their elements need no conversion.
    """

    location: FileLocation
    address: npt.NDArray[np.uint64]  # (t,)
    ndim: IntArray  # (t,)
    shape: IntArray  # (t, widest), filled up with 1
    offset: IntArray  # (t,), first byte in the file; -1 where nothing was written
    nbytes: IntArray  # (t,), bytes of all elements
    chunk_shape: IntArray  # (t, widest), of the chunked; else 1
    chunks: hdf5.ChunkColumns  # of those that are chunked; others have none here
    kind: IntArray  # (t,), row of `kinds`
    kinds: tuple[DatasetMetadata, ...]  # of one dataset of each: type, fill value
    alike: tuple[
        tuple[int, DatasetMetadata], ...
    ]  # rows; others have attributes as one of these
    like: IntArray  # (t,), the row of `alike` whose values are decoded as those of each
    rows: npt.NDArray[np.intp]  # (r,), references
    which: IntArray  # (r,), the dataset that each points at, ascending

    def __len__(self) -> int:
        return len(self.address)

    @property
    def stored_nbytes(self) -> int:
        """Bytes that the file holds for the data."""
        chunked = self.chunks.known
        return int(self.nbytes[~chunked].sum() + self.chunks.nbytes.sum())

    def read(
        self, which: IntArray, layout: hdf5.DatasetLayout, out: npt.NDArray[Any], dst: IntArray
    ) -> None:
        """Read datasets of one kind, each to its place in an array of their type."""
        if layout.chunks is not None:
            self._read_chunked(which, layout, out, dst)
            return
        written = self.offset[which] >= 0
        if not written.all():
            empty = which[~written]
            npoints = self.shape[empty].prod(axis=1)
            out[ragged_ranges(dst[~written], npoints)] = layout.fill_value
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
        once, first, of = np.unique(which, return_index=True, return_inverse=True)

        def describe(k: int) -> str:
            return f"{self.location.filename}: dataset at {int(self.address[once[k]]):#x}"

        datasets = ChunkedDatasets(
            shape=self.shape[once],
            chunk_shape=self.chunk_shape[once],
            ndim=self.ndim[once],
            chunks=self.chunks.take(once),
            pipeline=layout.pipeline,
            fill_value=layout.fill_value,
            describe=describe,
        )
        read_chunked_datasets(FileBytes(self.location), datasets, out, dst[first])
        again = np.ones(len(which), dtype=bool)
        again[first] = False
        if again.any():
            npoints = self.shape[which[again]].prod(axis=1)
            begin = dst[first][of.reshape(-1)[again]]
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
        Attributes that say how values are decoded.

    Returns
    -------
    picked : numpy.ndarray
        The rows of those that can, ascending.
    small : SmallDatasets or None
        Without references to them; None where there is none.
    """
    table = dataset_table(location, address)
    good = table.known & (table.nbytes <= SMALL_NBYTES)
    kinds: dict[int, DatasetMetadata] = {}
    for k in np.unique(table.kind[good]).tolist():
        own = good & (table.kind == k)
        facts = _facts_or_none(location, int(address[k]))
        if facts is None or not _is_plain(facts.layout):
            good &= ~own
            continue
        kinds[k] = facts
        needed = table.shape.prod(axis=1) * facts.layout.stored_itemsize
        good &= ~own | (table.nbytes == needed)
    chunked = np.flatnonzero(good & (table.storage == hdf5.CHUNKED))
    chunks = hdf5.read_chunks(file_content(location), table.take(chunked), SMALL_NBYTES)
    good[chunked] = chunks.known
    chunks = chunks.spread(chunked, len(table))
    alone = good & (table.attributes == hdf5.OWN_ATTRIBUTES)
    looked: dict[int, DatasetMetadata] = {}
    like = np.arange(len(table))  # the row that is decoded as each
    for k in np.unique(table.attributes[good & (table.attributes >= 0)]).tolist():
        members = np.flatnonzero(good & (table.attributes == k))
        decoded_as, known = _group_by_decoding(table, members, decoding_attributes)
        alone[members[~known]] = True
        members, decoded_as = members[known], decoded_as[known]
        witnesses = _find_witnesses(location, address, table, members)
        more = _look_at(location, address, np.unique(decoded_as)) if witnesses else None
        if witnesses is None or more is None:
            alone[members] = True
        else:
            looked |= witnesses | more
            like[members] = decoded_as
    for row in np.flatnonzero(alone).tolist():
        facts = _facts_or_none(location, int(address[row]))
        if facts is None:
            good[row] = False
        else:
            looked[row] = facts
    picked = np.flatnonzero(good)
    if not len(picked):
        return picked, None
    part = table.take(picked)
    _, first = np.unique(part.ndim + part.attributes * (hdf5.MAX_RANK + 1), return_index=True)
    for row in picked[first[~alone[picked[first]]]].tolist():
        looked[row] = StoredObject(location, int(address[row])).metadata
    bare = np.flatnonzero(good & (table.attributes == hdf5.NO_ATTRIBUTES))
    like[bare] = bare[:1]
    if len(bare) and int(bare[0]) not in looked:
        looked[int(bare[0])] = StoredObject(location, int(address[bare[0]])).metadata
    looked = {row: facts for row, facts in looked.items() if good[row]}
    order = np.array(sorted(looked))
    alike = ((int(np.searchsorted(picked, row)), looked[row]) for row in order.tolist())
    numbers = {k: i for i, k in enumerate(kinds)}
    used = np.unique(part.kind)
    number = np.array([numbers[k] for k in used.tolist()])
    return picked, SmallDatasets(
        location=location,
        address=address[picked],
        ndim=part.ndim,
        shape=part.shape,
        offset=part.offset,
        nbytes=part.nbytes,
        chunk_shape=part.chunks,
        chunks=chunks.take(picked),
        kind=number[np.searchsorted(used, part.kind)],
        kinds=tuple(kinds.values()),
        alike=tuple(alike),
        like=np.searchsorted(order, like[picked]),
        rows=np.zeros(0, dtype=np.intp),
        which=np.zeros(0, dtype=np.int64),
    )


def _facts_or_none(location: FileLocation, address: int) -> DatasetMetadata | None:
    """Return what a dataset says of itself; None where it cannot be looked at.

    Whoever looks at it alone says why.
    """
    try:
        return StoredObject(location, address).metadata
    except XrefError:
        return None


def _is_plain(layout: hdf5.DatasetLayout) -> bool:
    """Tell whether elements are stored as the bytes of a NumPy type, and no references."""
    references = layout.reference_kind or layout.elements is not None
    return not references and layout.why_not_direct in ("", COMPACT)


def _group_by_decoding(
    table: hdf5.DatasetTable,
    members: npt.NDArray[np.intp],
    decoding_attributes: Collection[str],
) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Find the datasets of one set of attributes whose values are decoded alike.

    Returns
    -------
    decoded_as : numpy.ndarray
        The first dataset that has the same values of the decoding attributes.
    known : numpy.ndarray
        False where such a value was not compared.
    """
    names = table.names[int(table.attributes[members[0]])]
    axes = [axis for axis, name in enumerate(names) if name in decoding_attributes]
    if not axes:
        return np.full(len(members), members[0]), np.ones(len(members), dtype=bool)
    values = table.values[members][:, axes]
    _, first, of = np.unique(values, axis=0, return_index=True, return_inverse=True)
    return members[first[of.reshape(-1)]], (values != hdf5.OTHER_VALUE).all(axis=1)


def _look_at(
    location: FileLocation, address: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]
) -> dict[int, DatasetMetadata] | None:
    """Look at some datasets; None where one has to be looked at by itself."""
    looked = {}
    for row in rows.tolist():
        facts = _facts_or_none(location, int(address[row]))
        if facts is None or not _is_alike(facts):
            return None
        looked[row] = facts
    return looked


def _find_witnesses(
    location: FileLocation,
    address: npt.NDArray[np.uint64],
    table: hdf5.DatasetTable,
    members: npt.NDArray[np.intp],
) -> dict[int, DatasetMetadata] | None:
    """Look at datasets of one set of attributes until it is known which values all share.

    Returns
    -------
    dict or None
        Some of the datasets, by row: what these agree on, all members do. None where each
        has to be looked at.
    """
    if not len(members):
        return {}
    first = int(members[0])
    facts = _facts_or_none(location, int(address[first]))
    if facts is None or not _is_alike(facts):
        return None
    looked = {first: facts}
    for axis, name in enumerate(table.names[int(table.attributes[first])]):
        value = table.values[members, axis]
        distinct, where = np.unique(value, return_index=True)
        if len(distinct) == 1 and distinct[0] != hdf5.OTHER_VALUE:
            continue
        for at in np.sort(where[distinct != hdf5.OTHER_VALUE]).tolist():
            row = int(members[at])
            other = looked.get(row) or _facts_or_none(location, int(address[row]))
            if other is None or not _is_alike(other):
                return None
            looked[row] = other
            if _differ(facts.attributes.get(name), other.attributes.get(name)):
                break
        else:
            if distinct[0] == hdf5.OTHER_VALUE:
                return None
    return looked


def _differ(a: Any, b: Any) -> bool:
    return type(a) is not type(b) or not np.array_equal(a, b)


def _is_alike(facts: DatasetMetadata) -> bool:
    """Tell whether datasets with the same attributes are named and described alike."""
    named = {"CLASS", "coordinates"} & facts.attributes.keys()
    return not (named or facts.scales or facts.problems)
