"""Coordinates of results: where each region starts, and the coordinates of the targets.

In: a `BoundVariable` and the names of the axes of its results. Out: variables by name.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import xarray as xr

from xref import engine
from xref.errors import SelectionError
from xref.objects import StoredObject
from xref.references import ReferenceArray, ReferenceColumns
from xref.resolving.binding import BoundVariable, bind
from xref.resolving.bound_references import Shape
from xref.resolving.result_variables import (
    Coords,
    DimNames,
    axes_along,
    result_dims,
    stack_variable,
    unique_dims,
)
from xref.resolving.targets import unlimited_axes
from xref.selections import SelectionKind, SelectionTable, concat_tables, empty_table, project


def start_coords(refs: BoundVariable, inner: DimNames, reference_coords: Coords) -> Coords:
    """Return the start of each region along each axis of its target."""
    regions = refs.references.columns.regions
    ranks = refs.bound.ranks
    if regions is None or len(ranks) != 1:
        return {}
    (rank,) = ranks
    start = np.zeros((len(regions), rank), dtype=np.int64)
    for t in refs.bound.targets:
        start[t.rows] = t.regions.bounds()[0]
    names = inner if len(inner) == rank else result_dims(refs, rank)
    shape = refs.references.shape
    return {
        f"{name}_start": (refs.dims, start[:, axis].reshape(shape))
        for axis, name in enumerate(names)
        if f"{name}_start" not in reference_coords
    }


def target_coords(
    refs: BoundVariable, inner: DimNames, result_shape: Shape, reference_coords: Coords
) -> Coords:
    """Select from the coordinates that all targets share as the regions select data."""
    targets = refs.targets
    if not targets:
        return {}
    first = targets[0]
    # Points of several dimensions lie along one axis of the result.
    scattered = len(inner) == 1 and len(first.dims) > 1
    coords: Coords = {}
    for name, (address, dims) in first.coords.items():
        shared = all(
            t.dataset.location == first.dataset.location
            and t.coords.get(name) == (address, dims)
            for t in targets
        )
        # A dimension scale of several axes is a coordinate of each.
        for repeat in range(first.dims.count(dims[0]) if dims == (name,) else 1):
            axes = [axes_along(dims, target.dims, repeat) for target in targets]
            along = axes[0]
            on_points = scattered and bool(dims)
            coord_dims = inner if on_points else tuple(inner[axis] for axis in along)
            label: Hashable = unique_dims(first.dims)[along[0]] if repeat else name
            if not scattered and coord_dims and dims == (name,):
                label = coord_dims[0]
            taken = label in reference_coords or label in refs.dims
            if not shared or taken or not all(len(found) == len(dims) for found in axes):
                continue
            if _fits_axes(refs, name, address, axes):
                shape = result_shape if on_points else tuple(result_shape[i] for i in along)
                coords[label] = _coordinate(refs, label, address, axes, coord_dims, shape)
    return coords


def _fits_axes(refs: BoundVariable, name: str, address: int, axes: list[list[int]]) -> bool:
    """Tell whether a coordinate fits its axes of all targets."""
    stored = StoredObject(refs.targets[0].dataset.location, address)
    return all(
        fits_target(stored, name, bound.layout.shape, along, bound.regions)
        for along, bound in zip(axes, refs.bound.targets, strict=True)
    )


def fits_target(
    stored: StoredObject, name: str, shape: Shape, axes: list[int], regions: SelectionTable
) -> bool:
    """Tell whether a coordinate fits some axes of a target, and holds no references.

    A coordinate fits if it has the extent of the axes. Datasets along an unlimited dimension
    may differ in length: there the coordinate fits if it holds all elements that the
    ``regions`` select. A coordinate that does not fit causes a warning.
    """
    extent = tuple(shape[axis] for axis in axes)
    if stored.layout.shape != extent and not _holds(stored, extent, axes, regions):
        problem = SelectionError(f"it has shape {stored.layout.shape}, its axes have {extent}")
        engine.warn_unreadable(f"{stored.where}: coordinate {name!r}", problem)
        return False
    return not stored.layout.reference_kind


def _holds(
    stored: StoredObject, extent: Shape, axes: list[int], regions: SelectionTable
) -> bool:
    """Tell whether a coordinate of another extent holds all elements that regions select."""
    own = stored.layout.shape
    if len(own) != len(extent):
        return False
    stop = regions.bounds()[1][:, axes].max(axis=0, initial=0).tolist()
    along = zip(own, extent, stop, unlimited_axes(stored), strict=True)
    return all(n == m or (unlimited and last <= n) for n, m, last, unlimited in along)


def _coordinate(
    refs: BoundVariable,
    label: Hashable,
    address: int,
    axes: list[list[int]],
    coord_dims: DimNames,
    shape: Shape,
) -> xr.Variable:
    """Return one coordinate: once if all references select the same of it, else for each."""
    bound, options = refs.bound, refs.references.options
    location = refs.targets[0].dataset.location
    projections, rows = [], []
    for along, fitted in zip(axes, bound.targets, strict=True):
        # A coordinate without axes has one value, whatever the regions select.
        whole = empty_table(len(fitted.regions), 0, SelectionKind.ALL)
        projections.append(project(fitted.regions, along) if along else whole)
        rows.append(np.arange(len(bound.ndim))[fitted.rows])
    projected, row = concat_tables(projections), np.concatenate(rows)
    n_valid = len(projected)
    first_row = projected.take(np.zeros(n_valid, dtype=np.int64))
    same = bool(projected.same_rows(first_row).all())
    outer_shape: Shape = ()
    null = np.zeros(1, dtype=bool)
    if same:
        projected = projected.take(slice(0, 1))
    else:
        # Rows in the order of the references, and a null row for each null reference.
        order = np.full(len(bound.ndim), n_valid)
        order[row] = np.arange(n_valid)
        projected = concat_tables([projected, empty_table(1, projected.ndim)]).take(order)
        outer_shape, null = refs.references.shape, bound.null
    columns = ReferenceColumns.of_file(
        location, np.where(null, 0, address).astype(np.uint64), projected
    )
    references = ReferenceArray(
        outer_shape,
        kind="region",
        columns=columns,
        options=options,
        names=None if same else refs.references.names,
    )
    all_dims = (() if same else refs.dims) + coord_dims
    coord_refs, _ = bind(references, all_dims[: len(outer_shape)], "fill", label)
    # Numbers of a null reference are NaN: the fill value of the file could be a coordinate.
    is_number = all(kind.dtype.kind in "biufc" for kind in coord_refs.decoders.kinds)
    fills, fill_value = bool(null.any()), np.nan if is_number else None
    return stack_variable(coord_refs, shape, all_dims, fills=fills, fill_value=fill_value)[0]
