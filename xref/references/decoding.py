"""Stored bytes of references into columns.

In: elements as stored. Out: `ReferenceColumns`. Distinct heap collections are read once, in
file order and in batches; all objects of a batch are decoded together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from xref import hdf5
from xref.arrays import IntArray
from xref.errors import CorruptFileError
from xref.objects import file_content, file_format
from xref.references.columns import Interner, ReferenceColumns, object_table
from xref.selections import SelectionKind, SelectionTable, box_table, concat_at, empty_table
from xref.storage import FileLocation, locate_named


def decode_references(
    location: FileLocation,
    raw: npt.NDArray[np.uint8],
    kind: str,
    describe: Callable[[int], str],
) -> ReferenceColumns:
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
        return ReferenceColumns.of_file(location, *decode_regions(location, raw, describe))
    width = file_format(location).offset_size
    address = np.ascontiguousarray(raw).view(f"<u{width}")[:, 0].astype(np.uint64)
    return ReferenceColumns.of_file(location, address)


def decode_regions(
    location: FileLocation, raw: npt.NDArray[np.uint8], describe: Callable[[int], str]
) -> tuple[npt.NDArray[np.uint64], SelectionTable]:
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
    heap, index = hdf5.split_heap_ids(raw, offset_size=form.offset_size)
    live = np.flatnonzero(heap)
    address = np.zeros(len(heap), dtype=np.uint64)
    tables, order = [], []
    for collections in hdf5.read_collections(
        file_content(location), heap, index, live, describe
    ):
        rows = collections.rows
        address[rows], table = _decode_collections(collections, form.offset_size)
        tables.append(table)
        order.append(np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows)
    null = np.flatnonzero(heap == 0)
    if not tables:
        return address, empty_table(len(heap), 0)
    if len(null):
        tables.append(empty_table(len(null), tables[0].ndim, SelectionKind.NULL))
        order.append(null)
    return address, concat_at(tables, order)


def _decode_collections(
    collections: hdf5.HeapCollections, address_size: int
) -> tuple[npt.NDArray[np.uint64], SelectionTable]:
    """Decode the references to some heap collections: together, or else one by one."""
    boxes = hdf5.decode_boxes(
        collections.buffer,
        collections.base,
        collections.size,
        length_size=collections.length_size,
        address_size=address_size,
    )
    rows = None if boxes is None else boxes.rows(collections.collection, collections.index)
    if boxes is not None and rows is not None:
        return boxes.address[rows], box_table(boxes.start[rows], boxes.shape[rows])
    batch = collections.find_objects()
    return hdf5.decode_selections(
        batch.buffer, batch.position, batch.nbytes, address_size, batch.describe
    )


def decode_std_references(
    location: FileLocation, raw: npt.NDArray[np.uint8], describe: Callable[[int], str]
) -> ReferenceColumns:
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
        `SelectionKind.OBJECT`. A file that cannot be opened is an error when it is asked for.
    """
    elements = hdf5.split_std_references(
        raw, offset_size=file_format(location).offset_size, describe=describe
    )
    n = len(elements.type)
    address, file = elements.address.copy(), np.zeros(n, dtype=np.int64)
    attribute = np.full(n, -1, dtype=np.int64)
    files, names = Interner[FileLocation]([location]), Interner[str]()
    tables, order = [], []
    live = np.flatnonzero(elements.in_heap)
    for batch in hdf5.read_heap_objects(
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
        found = hdf5.decode_std_objects(
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
        is_region = np.flatnonzero(elements.type[rows] == hdf5.REGION)
        tables.append(found.regions.take(np.searchsorted(found.region, of[is_region])))
        order.append(rows[is_region])
    regions = None
    if any(len(part) for part in order):
        is_other = np.ones(n, dtype=bool)
        is_other[np.concatenate(order)] = False
        others = np.flatnonzero(is_other)
        regions = concat_at([*tables, object_table(address[others])], [*order, others])
    return ReferenceColumns(
        files=tuple(files),
        file=file,
        address=address,
        regions=regions,
        attribute=attribute if names else None,
        names=tuple(names),
    )


def _first_of_each(key: IntArray) -> tuple[IntArray, IntArray]:
    """Return a row of each distinct key, and for each row which of them it equals."""
    if len(key) < 2 or (np.diff(key) > 0).all():
        rows = np.arange(len(key))
        return rows, rows
    _, first, of = np.unique(key, return_index=True, return_inverse=True)
    return first, of.reshape(-1)
