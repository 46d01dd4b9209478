"""References as a table of their targets and selections.

In: a `ReferenceArray`. Out: a Dataset of plain columns. No target data are read; one walk over
the links of the file finds the paths of all targets.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref.arrays import IntArray, ragged_ranges, row_offsets
from xref.engine import free_name
from xref.errors import (
    DanglingReferenceError,
    ExternalFileError,
    UnsupportedError,
    WrongTargetError,
)
from xref.objects import StoredObject, object_kinds, object_paths
from xref.references import (
    ReferenceArray,
    ReferenceColumns,
    TargetRows,
    attribute_kind,
    distinct_targets,
    split_targets,
)
from xref.selections import KIND_NAMES, SelectionKind, SelectionTable, concat_at

AXIS_DIM, ITEM_DIM = "axis", "item"


def reference_table(
    references: ReferenceArray, dims: Sequence[Hashable], coords: dict[Hashable, Any]
) -> xr.Dataset:
    """Describe references; see `xref.resolving.accessor.ReferenceAccessor.table`."""
    columns = references.columns
    n = len(columns)
    path = np.full(n, "", dtype=object)
    kind = np.full(n, "null", dtype=object)
    filename = np.full(n, "", dtype=object)
    distinct = distinct_targets(columns)
    for file in np.unique(distinct.file).tolist():
        location, targets = columns.files[file], np.flatnonzero(distinct.file == file)
        counts = np.diff(distinct.cut)[targets]
        rows = distinct.rows[ragged_ranges(distinct.cut[targets], counts)]
        address = distinct.address[targets]
        paths = object_paths(location, address.tolist())  # one walk over the links of the file
        names = np.array([paths.get(a, "") for a in address.tolist()], dtype=object)
        path[rows] = np.repeat(names, counts)
        kind[rows] = np.repeat(object_kinds(location, address), counts)
        filename[rows] = location.filename
    attribute = _describe_attributes(columns, kind)
    shape = references.shape

    axis = free_name(AXIS_DIM, dims)

    def column(values: Any) -> tuple[tuple[Hashable, ...], Any]:
        extra = (axis,) if values.ndim == 2 else ()
        return (*dims, *extra), values.reshape(shape + values.shape[1:])

    table = {
        "path": column(path),
        "address": column(columns.address.astype(np.uint64)),
        "kind": column(kind.astype(str)),
        "filename": column(filename),
    }
    if attribute is not None:
        table["attribute"] = column(attribute)
    if columns.regions is not None and references.is_region:
        groups, _ = split_targets(columns)
        described = describe_regions(columns.regions, groups, n)
        width = described["start"].shape[1]
        described |= _steps(columns.regions, width)
        table |= {name: column(values) for name, values in described.items()}
        first, size, low, high = _items(columns.regions, width)
        if len(low):
            item = free_name(ITEM_DIM, (*dims, axis))
            table |= {"item_first": column(first), "item_count": column(size)}
            table |= {"item_start": ((item, axis), low), "item_stop": ((item, axis), high)}
    return xr.Dataset(table, coords=coords)


def _steps(regions: SelectionTable, width: int) -> dict[str, npt.NDArray[Any]]:
    """Return the columns that hyperslabs need besides their start, if not all are boxes."""
    slabs = regions.kind == SelectionKind.HYPERSLAB
    with_rank = (SelectionKind.HYPERSLAB, SelectionKind.POINTS, SelectionKind.BLOCKS)
    columns: dict[str, npt.NDArray[Any]] = {}
    if (regions.rank[np.isin(regions.kind, with_rank)] != width).any():
        columns["rank"] = regions.rank
    if (regions.count[slabs] != 1).any() or (regions.block[slabs] < 0).any():
        names = ("stride", "count", "block")
        columns |= {name: _widen(getattr(regions, name), width, 1) for name in names}
    return columns


def _items(
    regions: SelectionTable, width: int
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Return the points and blocks (items) of all rows, one row after the other.

    Returns four arrays. Of each row, ``(n,)``: the number of its first item, and its number of
    items. Of each item, ``(items, width)``: start and stop (exclusive), in elements.
    """
    lists = [
        (SelectionKind.POINTS, regions.points, regions.points + 1),
        (SelectionKind.BLOCKS, regions.block_start, regions.block_stop),
    ]
    size = np.zeros(len(regions), dtype=np.int64)
    for kind, _, _ in lists:
        size[regions.kind == kind] = regions.size[regions.kind == kind]
    low = np.zeros((int(size.sum()), width), dtype=np.int64)
    high = np.ones_like(low)
    first = row_offsets(size)
    for kind, starts, stops in lists:
        rows = np.flatnonzero(regions.kind == kind)
        to = ragged_ranges(first[rows], size[rows])
        source = ragged_ranges(regions.first[rows], size[rows])
        low[to, : regions.ndim], high[to, : regions.ndim] = starts[source], stops[source]
    return first[:-1], size, low, high


def _describe_attributes(
    columns: ReferenceColumns, kind: npt.NDArray[Any]
) -> npt.NDArray[Any] | None:
    """Return the attribute name of each row, and set ``kind`` of references to attributes.

    None if no row refers to an attribute.
    """
    rows = columns.attribute_rows
    if columns.attribute is None or not len(rows):
        return None
    key = [columns.file[rows], columns.address[rows], columns.attribute[rows]]
    stacked = np.stack([column.astype(np.uint64) for column in key])
    _, first, inverse = np.unique(stacked, axis=1, return_index=True, return_inverse=True)
    names = columns.attribute_names()
    kinds = [
        attribute_kind(
            StoredObject(columns.files[int(columns.file[i])], int(columns.address[i])), names[i]
        )
        for i in rows[first].tolist()
    ]
    kind[rows] = np.array(kinds, dtype=object)[inverse.reshape(-1)]
    return np.where(names == None, "", names).astype(str)  # noqa: E711, element by element


def describe_regions(
    regions: SelectionTable, groups: Sequence[TargetRows], n: int
) -> dict[str, npt.NDArray[Any]]:
    """Return selection kind, element count, bounds and result shape of each row.

    The bounds of a region that does not fit its target are those of its selection. They are -1
    if the selection has no bounds: "all" of a target that is not there.
    """
    start, stop = (c.copy() for c in regions.bounds())
    shape = np.full(start.shape, -1, dtype=np.int64)
    ndim = np.zeros(n, dtype=np.int64)
    npoints = np.zeros(n, dtype=np.int64)
    fits = np.zeros(n, dtype=bool)
    width = start.shape[1]
    for target, rows in groups:
        part = regions.take(rows)
        extent = _extent(target)
        if extent is not None:
            if len(extent) > width:
                start, stop = (_widen(c, len(extent), 0) for c in (start, stop))
                shape = _widen(shape, len(extent), -1)
                width = len(extent)
            inside = part.fits(extent)
            fits[rows] = inside
            part = _fit(part, inside, extent)
        has_shape = ~np.isin(part.kind, (SelectionKind.ALL, SelectionKind.OBJECT))
        axes, sizes = part.result_shapes()
        low, high = part.bounds()
        start[rows, : low.shape[1]], stop[rows, : high.shape[1]] = low, high
        is_axis = np.arange(sizes.shape[1]) < axes[:, None]
        columns = min(width, sizes.shape[1])
        shape[rows, :columns] = np.where(is_axis & has_shape[:, None], sizes, -1)[:, :columns]
        ndim[rows] = np.where(has_shape, axes, 0)
        npoints[rows] = np.where(has_shape, sizes.prod(axis=1), -1)
    described = {"selection": KIND_NAMES[regions.kind], "npoints": npoints, "start": start}
    return described | {"stop": stop, "ndim": ndim, "shape": shape, "fits": fits}


def _extent(target: StoredObject) -> tuple[int, ...] | None:
    """Return the shape of a target, None if it is not a dataset that can be opened."""
    try:
        return target.layout.shape
    except (DanglingReferenceError, ExternalFileError, UnsupportedError, WrongTargetError):
        return None


def _fit(
    part: SelectionTable, inside: npt.NDArray[np.bool_], extent: tuple[int, ...]
) -> SelectionTable:
    """Fit the selections inside an extent to it; leave the others as they are."""
    if inside.all():
        return part.bound_to(extent, str)
    if not inside.any():
        return part
    kept = [part.take(inside).bound_to(extent, str), part.take(~inside)]
    return concat_at(kept, [np.flatnonzero(inside), np.flatnonzero(~inside)])


def _widen(values: Any, width: int, fill: int) -> Any:
    extra = width - values.shape[1]
    return np.pad(values, ((0, 0), (0, extra)), constant_values=fill)
