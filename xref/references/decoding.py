"""Stored bytes of references into columns.

In: elements as stored. Out: `ReferenceColumns`. Region references, and most references of HDF5
1.12 and later, name an object in a global heap collection. Each distinct collection is read
once, in file order and in batches; all heap objects of a batch are decoded together.
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
        Shape ``(n, width)``, uint8, as stored.
    kind : {"object", "region", "std"}
        Type of the references.
    describe : callable
        Names row i in errors.

    Raises
    ------
    CorruptFileError
        If the bytes of the references or of the heap are invalid.
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
    """Decode raw region references of one file, shape ``(n, offset_size + 4)``, uint8.

    Returns the addresses of the targets, 0 for null references, and n selections.
    """
    form = file_format(location)
    heap, index = hdf5.split_heap_ids(raw, offset_size=form.offset_size)
    not_null = np.flatnonzero(heap)
    address = np.zeros(len(heap), dtype=np.uint64)
    tables, order = [], []
    for collections in hdf5.read_collections(
        file_content(location), heap, index, not_null, describe
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
    """Decode the references to heap collections: boxes in bulk, other selections apart."""
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

    ``raw`` has the shape ``(n, offset_size + 10)``, uint8.

    Returns
    -------
    columns : ReferenceColumns
        The column ``regions`` is None if no row is a region; otherwise other rows have the
        kind `SelectionKind.OBJECT`. A file that cannot be opened raises an error only when a
        target is opened.
    """
    elements = hdf5.split_std_references(
        raw, offset_size=file_format(location).offset_size, describe=describe
    )
    n = len(elements.type)
    address, file = elements.address.copy(), np.zeros(n, dtype=np.int64)
    attribute = np.full(n, -1, dtype=np.int64)
    files, names = Interner[FileLocation]([location]), Interner[str]()
    tables, order = [], []
    in_heap = np.flatnonzero(elements.in_heap)
    for batch in hdf5.read_heap_objects(
        file_content(location), elements.heap, elements.index, in_heap, describe
    ):
        rows = batch.rows
        first, object_of_row, decoded = _decode_std_batch(elements, batch)
        address[rows] = decoded.address[object_of_row]
        if decoded.filenames:
            with_file = np.flatnonzero(decoded.file >= 0)
            _, by_name = np.unique(decoded.file[with_file], return_index=True)
            named = [
                locate_named(location, name, batch.describe(int(i)))
                for name, i in zip(decoded.filenames, first[with_file[by_name]], strict=True)
            ]
            file[rows] = np.array([*files.number(named), 0])[decoded.file[object_of_row]]
        if decoded.names:
            numbers = np.array([*names.number(decoded.names), -1])
            attribute[rows] = numbers[decoded.attribute[object_of_row]]
        is_region = np.flatnonzero(elements.type[rows] == hdf5.REGION)
        tables.append(
            decoded.regions.take(np.searchsorted(decoded.region, object_of_row[is_region]))
        )
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


def _decode_std_batch(
    elements: hdf5.StdElements, batch: hdf5.HeapBatch
) -> tuple[IntArray, IntArray, hdf5.StdObjects]:
    """Decode the heap objects of a batch, each once, however many elements name it.

    Return the first row of the batch that names each distinct heap object, the heap object
    of each row, and the distinct heap objects.
    """
    rows = batch.rows
    differ = np.flatnonzero(batch.nbytes != elements.nbytes[rows])
    if len(differ):
        i = int(differ[0])
        raise CorruptFileError(
            f"{batch.describe(i)} states {elements.nbytes[rows[i]]} bytes, its global heap "
            f"object has {batch.nbytes[i]}"
        )
    key = batch.position * 16 + 2 * elements.type[rows] + elements.external[rows]
    first, object_of_row = _first_of_each(key)
    decoded = hdf5.decode_std_objects(
        batch.buffer,
        batch.position[first],
        batch.nbytes[first],
        elements.type[rows[first]],
        elements.external[rows[first]],
        lambda i: batch.describe(int(first[i])),
    )
    return first, object_of_row, decoded


def _first_of_each(key: IntArray) -> tuple[IntArray, IntArray]:
    """Return the first row of each distinct key, and the number of the key of each row."""
    if len(key) < 2 or (np.diff(key) > 0).all():
        rows = np.arange(len(key))
        return rows, rows
    _, first, number = np.unique(key, return_index=True, return_inverse=True)
    return first, number.reshape(-1)
