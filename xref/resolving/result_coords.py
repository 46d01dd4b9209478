"""Coords."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from xref import engine
from xref.errors import SelectionError
from xref.objects import dataset_layout
from xref.references import ReferenceArray, ReferenceColumns
from xref.resolving.binding import BoundVariable, bind
from xref.resolving.result_layouts import POINT_DIM
from xref.resolving.result_variables import (
    _stack,
)
from xref.selections import concat_tables, empty_table, project


def _cell_dims(resolved: BoundVariable, ndim: int) -> tuple[Hashable, ...]:
    """Name the axes of results: as the targets do, else free phony names."""
    names: list[str | None] = [None] * ndim
    same_rank = [t for t in resolved.targets if len(t.dims) == ndim]
    if len(same_rank) == len(resolved.targets) and same_rank:
        first = same_rank[0].dims
        names = [
            n if all(t.dims[i] == n for t in same_rank) else None for i, n in enumerate(first)
        ]
    elif ndim == 1:
        names = [POINT_DIM]
    taken: set[Hashable] = set(resolved.dims) | {n for n in names if n}
    out: list[Hashable] = []
    for name in names:
        if name is None or name in resolved.dims or name in out:
            base, k = (name, 1) if name else ("phony_dim", 0)
            while (candidate := f"{base}_{k}") in taken:
                k += 1
            name = candidate
            taken.add(name)
        out.append(name)
    return tuple(out)


def _place_coords(
    resolved: BoundVariable, inner: tuple[Hashable, ...], own: dict[Hashable, Any]
) -> dict[Hashable, Any]:
    """Say where in its target each region lies: the start along each axis."""
    regions = resolved.references.columns.regions
    if regions is None:
        return {}
    ranks = {len(t.layout.shape) for t in resolved.bound.targets}
    if len(ranks) != 1:
        return {}
    (rank,) = ranks
    start = np.zeros((len(regions), rank), dtype=np.int64)
    for t in resolved.bound.targets:
        start[t.rows] = t.regions.bounds()[0]
    names = inner if len(inner) == rank else _cell_dims(resolved, rank)
    shape = resolved.references.shape
    return {
        f"{name}_start": (resolved.dims, start[:, axis].reshape(shape))
        for axis, name in enumerate(names)
        if f"{name}_start" not in own
    }


def _target_coords(
    resolved: BoundVariable,
    inner: tuple[Hashable, ...],
    cell: tuple[int, ...],
    own: dict[Hashable, Any],
) -> dict[Hashable, Any]:
    """Select the targets' common coordinates as the regions select their data."""
    targets = resolved.targets
    if not targets:
        return {}
    first = targets[0]
    scattered = len(inner) == 1 and len(first.dims) > 1
    out: dict[Hashable, Any] = {}
    for name, (address, dims) in first.coords.items():
        axes = [first.dims.index(dim) for dim in dims]
        part_dims = inner if scattered else tuple(inner[axis] for axis in axes)
        label = part_dims[0] if not scattered and part_dims and dims == (name,) else name
        shared = all(
            t.location == first.location and t.coords.get(name) == (address, dims)
            for t in targets
        )
        if not shared or label in own or label in resolved.dims:
            continue
        if _fits_axes(resolved, name, address, dims):
            part_cell = cell if scattered else tuple(cell[axis] for axis in axes)
            out[label] = _coordinate(resolved, label, address, dims, part_dims, part_cell)
    return out


def _fits_axes(
    resolved: BoundVariable, name: str, address: int, dims: tuple[str | None, ...]
) -> bool:
    """Tell whether a coordinate has the extent of the axes that it belongs to."""
    location = resolved.targets[0].location
    layout = dataset_layout(location, address)
    for target, bound in zip(resolved.targets, resolved.bound.targets, strict=True):
        extent = tuple(bound.layout.shape[target.dims.index(dim)] for dim in dims)
        if layout.shape != extent:
            # As where an unlimited dimension has grown for some variables only.
            problem = SelectionError(f"it has shape {layout.shape}, its axes have {extent}")
            engine.warn_unreadable(f"{location.filename}: coordinate {name!r}", problem)
            return False
    return not layout.reference_kind


def _coordinate(
    resolved: BoundVariable,
    label: Hashable,
    address: int,
    dims: tuple[str | None, ...],
    part_dims: tuple[Hashable, ...],
    part_cell: tuple[int, ...],
) -> xr.Variable:
    """Return one coordinate, once if all references select it alike, else for each."""
    bound, options = resolved.bound, resolved.references.options
    location = resolved.targets[0].location
    shadows, rows = [], []
    for target, part in zip(resolved.targets, bound.targets, strict=True):
        shadows.append(project(part.regions, [target.dims.index(dim) for dim in dims]))
        rows.append(np.arange(len(bound.ndim))[part.rows])
    shadow, row = concat_tables(shadows), np.concatenate(rows)
    live = len(shadow)
    same = bool(shadow.same_rows(shadow.take(np.zeros(live, dtype=np.int64))).all())
    shape: tuple[int, ...] = ()
    null = np.zeros(1, dtype=bool)
    if same:
        shadow = shadow.take(slice(0, 1))
    else:
        # Rows in the order of the references, a null one for each that is null.
        back = np.full(len(bound.ndim), live)
        back[row] = np.arange(live)
        shadow = concat_tables([shadow, empty_table(1, shadow.ndim)]).take(back)
        shape, null = resolved.references.shape, bound.null
    columns = ReferenceColumns.of_file(
        location, np.where(null, 0, address).astype(np.uint64), shadow
    )
    references = ReferenceArray(shape, kind="region", columns=columns, options=options)
    all_dims = (() if same else resolved.dims) + part_dims
    found, _ = bind(references, all_dims[: len(shape)], "fill", label)
    # A coordinate of a null reference is unknown; a number that counts as one would not be.
    is_number = all(kind.dtype.kind in "biufc" for kind in found.decoders.kinds)
    variable, _, _ = _stack(
        found,
        part_cell,
        all_dims,
        fills=bool(null.any()),
        fill_value=np.nan if is_number else None,
    )
    return variable
