"""References as a table: where they point and what they select.

In: a `ReferenceArray`. Out: a Dataset of plain columns. No target data are read;
one walk over the file's links names all targets.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref.arrays import IntArray, ragged_ranges, row_offsets
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
from xref.selections import KIND_NAMES, SelectionKind, SelectionTable, in_order
from xref.storage import FileLocation

AXIS_DIM = "axis"


def reference_table(
    references: ReferenceArray, dims: Sequence[Hashable], coords: dict[Hashable, Any]
) -> xr.Dataset:
    """Describe references; see `xref.resolving.accessor.ReferenceAccessor.table`."""
    columns = references.columns
    n = len(columns)
    path = np.full(n, "", dtype=object)
    kind = np.full(n, "null", dtype=object)
    filename = np.full(n, "", dtype=object)
    found = distinct_targets(columns)
    for file in np.unique(found.file).tolist():
        location, targets = columns.files[file], np.flatnonzero(found.file == file)
        counts = np.diff(found.cut)[targets]
        rows = found.rows[ragged_ranges(found.cut[targets], counts)]
        address = found.address[targets]
        path[rows] = np.repeat(_paths(location, address.tolist()), counts)
        kind[rows] = np.repeat(object_kinds(location, address), counts)
        filename[rows] = location.filename
    attribute = _describe_attributes(columns, kind)
    shape = references.shape

    axis = AXIS_DIM
    while axis in dims:
        axis += "_"

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
        table |= {name: column(values) for name, values in described.items()}
        width = described["start"].shape[1]
        steps = _steps(columns.regions, width)
        table |= {name: column(values) for name, values in steps.items()}
        first, size, low, high = _items(columns.regions, width)
        if len(low):
            item = ITEM_DIM
            while item in (*dims, axis):
                item += "_"
            table |= {"item_first": column(first), "item_count": column(size)}
            table |= {"item_start": ((item, axis), low), "item_stop": ((item, axis), high)}
    return xr.Dataset(table, coords=coords)


def _steps(regions: SelectionTable, width: int) -> dict[str, npt.NDArray[Any]]:
    """Return what, with the start, makes hyperslabs where some are no boxes."""
    slabs = regions.kind == SelectionKind.HYPERSLAB
    ranks = regions.rank[
        np.isin(
            regions.kind, (SelectionKind.HYPERSLAB, SelectionKind.POINTS, SelectionKind.BLOCKS)
        )
    ]
    found: dict[str, npt.NDArray[Any]] = {}
    if (ranks != width).any():
        found["rank"] = regions.rank
    if (regions.count[slabs] != 1).any() or (regions.block[slabs] < 0).any():
        names = ("stride", "count", "block")
        found |= {name: _widen(getattr(regions, name), width, 1) for name in names}
    return found


ITEM_DIM = "item"


def _items(
    regions: SelectionTable, width: int
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Return the points and blocks of all rows, one after the other.

    Returns
    -------
    first, size : numpy.ndarray
        Shape ``(n,)``: where those of each row begin, and how many there are.
    start, stop : numpy.ndarray
        Shape ``(sum of size, width)``, stop exclusive.
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
    cut = row_offsets(size)
    for kind, starts, stops in lists:
        rows = np.flatnonzero(regions.kind == kind)
        to = ragged_ranges(cut[rows], size[rows])
        of = ragged_ranges(regions.first[rows], size[rows])
        low[to, : regions.ndim], high[to, : regions.ndim] = starts[of], stops[of]
    return cut[:-1], size, low, high


def _paths(location: FileLocation, addresses: list[int]) -> npt.NDArray[np.object_]:
    """Return the path of each object, empty where there is none; one walk over the file."""
    paths = object_paths(location, addresses)
    return np.array([paths.get(address, "") for address in addresses], dtype=object)


def _describe_attributes(
    columns: ReferenceColumns, kind: npt.NDArray[Any]
) -> npt.NDArray[Any] | None:
    """Return the name of each row's attribute, and enter in ``kind`` whether it is there.

    None where no row refers to an attribute.
    """
    rows = columns.attribute_rows
    if columns.attribute is None or not len(rows):
        return None
    key = [columns.file[rows], columns.address[rows], columns.attribute[rows]]
    _, first, of = np.unique(
        np.stack([c.astype(np.uint64) for c in key]),
        axis=1,
        return_index=True,
        return_inverse=True,
    )
    names = columns.attribute_names()
    kinds = [
        attribute_kind(
            StoredObject(columns.files[int(columns.file[i])], int(columns.address[i])), names[i]
        )
        for i in rows[first].tolist()
    ]
    kind[rows] = np.array(kinds, dtype=object)[of.reshape(-1)]
    return np.where(names == None, "", names).astype(str)  # noqa: E711, element by element


def describe_regions(
    regions: SelectionTable, groups: Sequence[TargetRows], n: int
) -> dict[str, npt.NDArray[Any]]:
    """Return selection kind, element count, bounds and result shape of each row.

    A region that does not fit its target keeps the bounds that it states; where
    only the target could tell (a dangling reference to everything), they are -1.
    """
    start, stop = (c.copy() for c in regions.bounds())
    shape = np.full(start.shape, -1, dtype=np.int64)
    ndim = np.zeros(n, dtype=np.int64)
    npoints = np.zeros(n, dtype=np.int64)
    fits = np.zeros(n, dtype=bool)
    width = start.shape[1]
    for target, rows in groups:
        part = regions.take(rows)
        try:
            extent = target.layout.shape
        except (
            DanglingReferenceError,
            ExternalFileError,
            UnsupportedError,
            WrongTargetError,
        ):
            extent = None
        if extent is not None:
            if len(extent) > width:
                start, stop = (_widen(c, len(extent), 0) for c in (start, stop))
                shape = _widen(shape, len(extent), -1)
                width = len(extent)
            inside = part.fits(extent)
            fits[np.arange(n)[rows]] = inside
            if inside.all():
                part = part.fit(extent, str)
            elif inside.any():
                kept = [part.take(inside).fit(extent, str), part.take(~inside)]
                part = in_order(kept, [np.flatnonzero(inside), np.flatnonzero(~inside)])
        known = ~np.isin(part.kind, (SelectionKind.ALL, SelectionKind.OBJECT))
        axes, sizes = part.result_shapes()
        low, high = part.bounds()
        at = np.arange(n)[rows]
        start[at, : low.shape[1]], stop[at, : high.shape[1]] = low, high
        own_axes = np.arange(sizes.shape[1]) < axes[:, None]
        sizes_shown = np.where(own_axes & known[:, None], sizes, -1)
        shown = min(width, sizes.shape[1])
        shape[at, :shown] = sizes_shown[:, :shown]
        ndim[at] = np.where(known, axes, 0)
        npoints[at] = np.where(known, sizes.prod(axis=1), -1)
    return {
        "selection": KIND_NAMES[regions.kind],
        "npoints": npoints,
        "start": start,
        "stop": stop,
        "ndim": ndim,
        "shape": shape,
        "fits": fits,
    }


def _widen(values: Any, width: int, fill: int) -> Any:
    extra = width - values.shape[1]
    return np.pad(values, ((0, 0), (0, extra)), constant_values=fill)
