"""Tables of references as reference variables again.

In: a Dataset from ``.h5ref.table()``, perhaps stored in Zarr or netCDF meanwhile. Out: a
reference variable.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref.arrays import BoolArray, IntArray, ragged_ranges, row_offsets
from xref.engine import ReferenceVariable, reference_dataarray
from xref.errors import CorruptFileError, DanglingReferenceError
from xref.objects import StoredObject, open_member
from xref.references import (
    KIND_NOUNS,
    ElementNames,
    Owner,
    ReferenceArray,
    ReferenceColumns,
    box_of_shape,
)
from xref.selections import KIND_NAMES, UNLIMITED, SelectionKind, SelectionTable, empty_table
from xref.storage import FileLocation, find_source, locate_source

KINDS = frozenset({"dataset", "group", "datatype", "attribute", "null", "dangling"})


def from_table(
    table: xr.Dataset, filename: Any = None, *, storage_options: dict[str, Any] | None = None
) -> xr.DataArray:
    """Make a reference variable from a table of references.

    Parameters
    ----------
    table : xarray.Dataset
        From ``.h5ref.table()``. It needs the columns ``path`` (``address`` for targets without
        a path), ``kind`` and ``filename``; for regions also ``selection``, ``start`` and
        ``stop``. The columns ``stride``, ``count``, ``block``, ``item_first``, ``item_count``,
        ``item_start`` and ``item_stop`` are used if the table has them. Selected rows and
        transposed dimensions are allowed.
    filename : str, os.PathLike or URL, optional
        The file of the targets, if it is not the one that the table names.
    storage_options : dict, optional
        Options of the fsspec file system of a URL.

    Returns
    -------
    xarray.DataArray
        References to the objects at the paths of the table. Dangling references stay dangling;
        with another ``filename`` they are null.

    Raises
    ------
    DanglingReferenceError
        If there is no object at the path of a target.
    CorruptFileError
        If the columns do not fit together.

    Examples
    --------
    >>> table = xr.open_zarr("rois.zarr")  # doctest: +SKIP
    >>> xref.from_table(table).h5ref.resolve()  # doctest: +SKIP
    """
    columns = TableColumns(table)
    kind = columns.texts("kind")
    _check_known("kind", kind, KINDS)
    pointing = ~np.isin(kind, ["null", "dangling"])
    names = columns.texts("filename")
    if filename is not None:
        names = np.full(len(kind), "", dtype=object)  # addresses are of no use in another file
    else:
        pointing |= kind == "dangling"
    files: dict[Any, tuple[int, FileLocation]] = {}
    file, address = np.zeros(len(kind), dtype=np.int64), np.zeros(len(kind), dtype=np.uint64)
    for name in dict.fromkeys(names[pointing].tolist()):
        source, _ = find_source(
            name if filename is None else filename, storage_options=storage_options
        )
        location = locate_source(source)
        in_file = pointing & (names == name)
        for row, target in _open_targets(location, columns, in_file, filename):
            number, _ = files.setdefault(target.location.token, (len(files), target.location))
            file[row], address[row] = number, target.address
    regions = _regions(columns) if "selection" in table else None
    attribute, attribute_names = _attributes(columns) if "attribute" in table else (None, ())
    references = ReferenceColumns(
        files=tuple(location for _, location in files.values()),
        file=file,
        address=address,
        regions=regions,
        attribute=attribute,
        names=attribute_names,
    )
    has_objects = regions is not None and (regions.kind == SelectionKind.OBJECT).any()
    reference_type = "object" if regions is None else "region"
    if attribute is not None or has_objects:
        reference_type = "std"
    files_text = ", ".join(location.filename for location in references.files) or "no file"
    noun = KIND_NOUNS[reference_type]
    owner = Owner(files_text, "the table", noun, box_of_shape(columns.shape))
    data = ReferenceArray(
        columns.shape,
        kind=reference_type,
        columns=references,
        names=ElementNames.of_owner(owner, range(len(references))),
    )
    coords = {k: v for k, v in table.coords.items() if set(v.dims) <= set(columns.dims)}
    return reference_dataarray(ReferenceVariable(columns.dims, data), coords, "references")


def _check_known(name: str, values: npt.NDArray[np.object_], known: Collection[str]) -> None:
    """Raise CorruptFileError for a text that is not among those a column may have."""
    for row, value in enumerate(values.tolist()):
        if value not in known:
            raise CorruptFileError(
                f"row {row} of the table has the {name} {value!r}; known {name}s are "
                f"{', '.join(sorted(known))}"
            )


class TableColumns:
    """The columns of a table, checked, with a row for each reference in C order."""

    def __init__(self, table: xr.Dataset) -> None:
        self._table = table
        self.dims, self.shape = self._column("kind").dims, self._column("kind").shape
        self.n = int(np.prod(self.shape, dtype=np.int64))

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def _column(self, name: str) -> xr.DataArray:
        if name not in self._table:
            raise CorruptFileError(
                f"the table has no column {name!r}; it has {list(self._table.variables)}"
            )
        return self._table[name]

    def _values(self, name: str, ndim: int) -> npt.NDArray[Any]:
        """Return a column with ``ndim`` dimensions after those of the references."""
        column = self._column(name)
        if set(self.dims) - set(column.dims) or column.ndim != len(self.dims) + ndim:
            raise CorruptFileError(
                f"column {name!r} of the table lies along {column.dims}, column 'kind' along "
                f"{self.dims}"
            )
        values = column.transpose(*self.dims, ...).values
        return values.reshape(self.n, *values.shape[len(self.dims) :])

    def texts(self, name: str) -> npt.NDArray[np.object_]:
        """Return a column of texts, shape ``(n,)``."""
        values = np.empty(self.n, dtype=object)
        values[:] = [str(value) for value in self._values(name, 0).tolist()]
        return values

    def numbers(self, name: str, ndim: int = 1) -> IntArray:
        """Return a column of integers, shape ``(n,)``, or ``(n, axes)`` if ``ndim`` is 1."""
        return _integers(self._values(name, ndim), name)

    def addresses(self) -> npt.NDArray[np.uint64]:
        """Return the addresses of the targets."""
        values = self._values("address", 0)
        if values.dtype.kind == "u":
            return values.astype(np.uint64)
        return _integers(values, "address", least=0).astype(np.uint64)

    def items(self, name: str) -> IntArray:
        """Return a column of points or blocks, shape ``(items, axes)``."""
        column = self._column(name)
        (axis,) = set(self._column("start").dims) - set(self.dims)
        if column.ndim != 2 or axis not in column.dims:
            raise CorruptFileError(
                f"column {name!r} of the table lies along {column.dims}; it must lie along "
                f"items and {axis!r}"
            )
        return _integers(column.transpose(..., axis).values, name, least=0)


LARGEST = 1 << 62
"""Upper bound on the numbers in a table: the sum of two fits into 64 bits."""


def _integers(values: npt.NDArray[Any], name: str, least: int = -1) -> IntArray:
    """Return a column as integers; integers that were stored as floats are accepted."""
    if values.dtype.kind not in "iuf":
        raise CorruptFileError(
            f"column {name!r} of the table holds no integers, but values of type {values.dtype}"
        )
    with np.errstate(invalid="ignore"):
        wrong = ~((values >= least) & (values < LARGEST) & (values == np.floor(values)))
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        raise CorruptFileError(
            f"column {name!r} of the table holds no integers from {least} to 2**62: row {row} "
            f"has {values[wrong][0]}"
        )
    return values.astype(np.int64)


def _open_targets(
    location: FileLocation, columns: TableColumns, rows: npt.NDArray[np.bool_], moved: Any
) -> Iterator[tuple[npt.NDArray[np.intp], StoredObject]]:
    """Yield the rows of each target, and the target.

    Targets are opened by path; targets without a path have the address in the table.
    """
    pointing = np.flatnonzero(rows)
    dangling = columns.texts("kind")[pointing] == "dangling"
    paths = np.where(dangling, "", columns.texts("path")[pointing])
    for path, positions in _group_equal(paths):
        if not path:
            continue
        try:
            found = open_member(location, path)
        except (KeyError, OSError) as error:
            raise DanglingReferenceError(
                f"{location.filename} has nothing at {path!r}, which {len(positions)} "
                f"references of the table point at: {error}"
            ) from error
        yield pointing[positions], found.stored
    unnamed = pointing[paths == ""]
    if not len(unnamed):
        return
    if moved is not None:
        raise DanglingReferenceError(
            f"{len(unnamed)} references of the table point at objects without a path, which "
            f"cannot be found in another file, {location.filename}"
        )
    address = columns.addresses()
    for target, positions in _group_equal(address[unnamed]):
        yield unnamed[positions], StoredObject(location, target)


def _group_equal(values: npt.NDArray[Any]) -> Iterator[tuple[Any, npt.NDArray[np.intp]]]:
    """Yield each distinct value and its positions."""
    number: dict[Any, int] = {}
    codes = np.array([number.setdefault(v, len(number)) for v in values.tolist()], dtype=int)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(number)))
    yield from zip(number, np.split(order, ends[:-1]), strict=False)


def _attributes(columns: TableColumns) -> tuple[IntArray, tuple[str, ...]]:
    """Return the row of the attribute name of each reference (-1 for none), and the names."""
    texts = columns.texts("attribute").tolist()
    names = tuple(dict.fromkeys(t for t in texts if t))
    number = {name: i for i, name in enumerate(names)} | {"": -1}
    return np.array([number[t] for t in texts], dtype=np.int64), names


def _regions(columns: TableColumns) -> SelectionTable:
    """Return the selections of the rows."""
    n = columns.n
    selection = columns.texts("selection")
    number = {str(name): i for i, name in enumerate(KIND_NAMES)}
    _check_known("selection", selection, number)
    kinds = np.array([number[s] for s in selection.tolist()], dtype=np.uint8)
    start, stop = columns.numbers("start"), columns.numbers("stop")
    ndim = start.shape[1]
    is_slab = kinds == SelectionKind.HYPERSLAB
    stride, count, block = np.ones_like(start), np.ones_like(start), stop - start
    if "block" in columns:
        stride, count, block = (columns.numbers(c) for c in ("stride", "count", "block"))
    rank = columns.numbers("rank", 0) if "rank" in columns else np.full(n, ndim)
    if any(c.shape != start.shape for c in (stop, stride, count, block)):
        raise CorruptFileError(
            "columns 'start', 'stop', 'stride', 'count', 'block' of the table differ in shape"
        )
    wrong = np.flatnonzero((rank < 0) | (rank > ndim))
    if len(wrong):
        row = int(wrong[0])
        raise CorruptFileError(
            f"row {row} of column 'rank' of the table has {rank[row]}, not a number from 0 to "
            f"{ndim}"
        )
    slab = is_slab[:, None] & (np.arange(ndim) < rank[:, None])
    _check_slabs(slab, (start, stride, count, block), "block" in columns)
    with_rank = [SelectionKind.POINTS, SelectionKind.HYPERSLAB, SelectionKind.BLOCKS]
    regions = empty_table(n, ndim).replace(
        kind=kinds,
        rank=np.where(np.isin(kinds, with_rank), rank, 0),
        start=np.where(slab, start, 0),
        stride=np.where(slab, stride, 1),
        count=np.where(slab, count, 1),
        block=np.where(slab, block, 1),
    )
    return _with_lists(regions, columns) if "item_count" in columns else regions


def _check_slabs(used: BoolArray, numbers: tuple[IntArray, ...], has_steps: bool) -> None:
    """Raise CorruptFileError unless the numbers in ``used`` places are hyperslabs."""
    start, stride, count, block = numbers
    endless = UNLIMITED if has_steps else 1  # a box has an end
    wrong = (start < 0) | (stride < 1)
    wrong |= ((count < 1) & (count != endless)) | ((block < 0) & (block != endless))
    wrong |= (count > 1) & (stride < block)
    end = start.astype(np.float64) + np.maximum(count - 1, 0) * stride.astype(float) + block
    wrong |= end >= LARGEST
    bad = np.flatnonzero((wrong & used).any(axis=1))
    if len(bad):
        row = int(bad[0])
        raise CorruptFileError(
            f"row {row} of the table is no hyperslab: start {start[row].tolist()}, stride "
            f"{stride[row].tolist()}, count {count[row].tolist()}, block {block[row].tolist()}"
        )


def _with_lists(regions: SelectionTable, columns: TableColumns) -> SelectionTable:
    """Add the points and blocks (items) of the rows that have some."""
    is_points = regions.kind == SelectionKind.POINTS
    is_blocks = regions.kind == SelectionKind.BLOCKS
    begin, size = columns.numbers("item_first", 0), columns.numbers("item_count", 0)
    low, high = columns.items("item_start"), columns.items("item_stop")
    has_list = is_points | is_blocks
    size = np.where(has_list, size, 0)
    if low.shape != high.shape or low.shape[1] != regions.ndim:
        raise CorruptFileError(
            f"columns 'item_start' and 'item_stop' of the table have the shapes {low.shape} "
            f"and {high.shape}; both need {regions.ndim} numbers for each item"
        )
    wrong = has_list & ((begin < 0) | (size < 0) | (begin > len(low) - size))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise CorruptFileError(
            f"row {row} of the table has {size[row]} items from {begin[row]} on, and the table "
            f"has {len(low)}"
        )
    empty = np.flatnonzero((high <= low).any(axis=1))
    if len(empty):
        item = int(empty[0])
        raise CorruptFileError(
            f"item {item} of the table has the start {low[item].tolist()} and the stop "
            f"{high[item].tolist()}: its start is past its end, or at its end"
        )
    first = np.zeros(len(regions), dtype=np.int64)
    items = []
    for mask in (is_points, is_blocks):
        first[mask] = row_offsets(size[mask])[:-1]
        items.append(ragged_ranges(begin[mask], size[mask]))
    points, blocks = items
    return regions.replace(
        first=first,
        size=size,
        points=low[points],
        block_start=low[blocks],
        block_stop=high[blocks],
    )
