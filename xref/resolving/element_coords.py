"""Coordinates that tell which elements of their targets the values of a result are.

In: a `BoundVariable`. Out: variables by name: along the samples of a ragged result, or along
the points of stacked and padded results. A coordinate has the values of the targets' own
coordinate if all targets have one of its name, else the positions along the axis (int64).

Names are those of the targets' axes. Axes whose name not all targets have are called
``phony_dim_0`` and so on, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from xref import engine
from xref.arrays import IntArray
from xref.engine import Axis, LazyArray, index_outer
from xref.errors import SelectionError, UnsupportedError, XrefError
from xref.hdf5 import item_dtype
from xref.objects import StoredObject
from xref.references import ReferenceArray, ReferenceColumns
from xref.resolving.binding import BoundVariable, bind, warn_of_units
from xref.resolving.bound_references import (
    Array,
    BoundReferences,
    Shape,
    bind_references,
    bind_unchanged,
    index_references,
)
from xref.resolving.dask_graph import chunk_variable
from xref.resolving.element_sources import (
    NO_AXIS,
    CoordinateDataset,
    CoordinateValues,
    Elements,
    ElementSource,
    Positions,
    TargetNumbers,
    filled_rows,
)
from xref.resolving.padding import choose_missing_value
from xref.resolving.result_variables import (
    DimNames,
    axes_along,
    choose_common_decoding,
    lazy_variable,
)
from xref.resolving.sample_axis import SampleAxis
from xref.resolving.targets import Dims, TargetMetadata, unlimited_axes
from xref.selections import SelectionKind, SelectionTable


class SampleCoordinate(SampleAxis):
    """One value for each sample of a ragged result."""

    def __init__(self, refs: BoundVariable, row_size: IntArray, source: ElementSource) -> None:
        self.source, self.dtype = source, source.dtype
        self.shape = (self.set_rows(refs.references, row_size, refs.bound),)

    def _read_samples(self, low: int, high: int) -> Array:
        bound, start = self._rows_of_samples(low, high)
        ends = start + np.cumsum(bound.npoints)
        begins = ends - bound.npoints
        first = np.clip(low - begins, 0, bound.npoints)
        count = np.clip(high - begins, 0, bound.npoints) - first
        return self.source(Elements.of_results(bound, first, count))


class ResultCoordinate(LazyArray):
    """One value for each element along the only axis of results, or one for each result.

    ``n`` is the length of that axis; None for one value for each result. With ``axis`` the
    results have full rank, and the values are those along this axis of the targets. ``missing``
    is the value of null references and of padding.
    """

    _bound: BoundReferences | None = None  # known in the process that made the array

    def __init__(
        self,
        refs: BoundVariable,
        n: int | None,
        source: ElementSource,
        missing: Any,
        dtype: np.dtype[Any],
        axis: int | None = None,
    ) -> None:
        self.references, self.n, self.source, self.axis = refs.references, n, source, axis
        self.missing, self.dtype = missing, dtype
        self.shape = self.references.shape + (() if n is None else (n,))
        self._bound = refs.bound

    def _read(self, key: tuple[Axis, ...]) -> Array:
        ndim = self.references.ndim
        references = index_references(self.references, key[:ndim])
        known = self._bound if references is self.references else None
        elements = self._elements(bind_unchanged(references, known))
        width = 1 if self.n is None else self.n
        values = np.empty((references.size, width), dtype=self.dtype)
        missing = np.empty((), dtype=self.dtype)
        missing[()] = self.missing
        values[...] = missing
        valid = np.arange(width) < elements.count[:, None]
        values[valid] = self.source(elements)
        if self.n is None:
            return values.reshape(references.shape)
        return index_outer(
            values.reshape(*references.shape, width), references.ndim, key[ndim:]
        )

    def _elements(self, bound: BoundReferences) -> Elements:
        if self.axis is not None:
            return Elements.along(bound, self.axis)
        if self.n is None:
            return Elements.of_results(bound, count=(~bound.null).astype(np.int64))
        return Elements.of_results(bound)


def sample_coords(
    refs: BoundVariable,
    sample: Hashable,
    sizes: Any,
    names: Collection[Hashable],
    reference_coords: Collection[Hashable],
) -> dict[Hashable, xr.Variable]:
    """Return the coordinates of ragged results.

    ``sample`` is the dimension of the samples, ``sizes`` are its Dask chunks (None without
    Dask). A coordinate named like one of the other variables, ``names``, is renamed; one named
    like a coordinate of the references is left out.
    """
    found: dict[Hashable, xr.Variable] = {}
    row_size = refs.bound.npoints
    taken = (*refs.dims, sample, *names)
    for label, source, like in _element_sources(refs, taken, reference_coords):
        data = SampleCoordinate(refs, row_size, source)
        variable = _variable((sample,), data, like)
        if sizes is not None:
            variable = chunk_variable(variable, data, {sample: sizes}, "coordinate")
        found[label] = variable
    for name, source, like in _scalar_sources(refs, {*taken, *found, *reference_coords}):
        found[name] = _result_variable(refs, name, None, source, like)
    return found


def element_coords(
    refs: BoundVariable, inner: DimNames, shape: Shape, taken: Collection[Hashable]
) -> dict[Hashable, xr.Variable]:
    """Return the coordinates that tell which elements stacked or padded results have.

    Boxes need none: ``y_start`` tells where they lie. ``inner`` and ``shape`` are the axes of
    the results; ``taken`` are the names of other coordinates.
    """
    found: dict[Hashable, xr.Variable] = {}
    regions = refs.references.columns.regions
    if not refs.targets or not inner or regions is None or _are_runs(regions):
        return found
    dims = (*refs.dims, *inner)
    own_names = (*dims, refs.name, engine.free_name(refs.name or "values", dims))
    if refs.bound.ranks == {len(inner)}:
        for axis, dim in enumerate(inner):
            has_coordinate = any(t.dims[axis] in t.coords for t in refs.targets)
            if dim in taken or has_coordinate or _are_runs(regions, axis):
                continue
            name = engine.free_name(dim, own_names) if dim == refs.name else dim
            positions = Positions((0,))
            found[name] = _result_variable(refs, dim, shape[axis], positions, None, axis)
        return found
    for name, source, like in _element_sources(refs, own_names, taken):
        found[name] = _result_variable(refs, inner[0], shape[0], source, like)
    return found


def _are_runs(regions: SelectionTable, axis: int | None = None) -> bool:
    """Tell whether all regions have runs of elements along an axis, or along every axis."""
    if np.isin(regions.kind, (SelectionKind.POINTS, SelectionKind.BLOCKS)).any():
        return False
    axes = slice(None) if axis is None else slice(axis, axis + 1)
    is_run = (regions.count == 1) | (regions.stride == regions.block)
    return bool(is_run[:, axes].all())


def _result_variable(
    refs: BoundVariable,
    dim: Hashable,
    n: int | None,
    source: ElementSource,
    like: BoundVariable | None,
    axis: int | None = None,
) -> xr.Variable:
    """Return a coordinate along the references, or one that all references share."""
    if _select_alike(refs, source):
        row = int(np.flatnonzero(~refs.bound.null)[0])
        references = refs.references.ravel()[row : row + 1].reshape(())
        bound = bind_references(references)
        refs = replace(refs, references=references, bound=bound, dims=())
    missing: Any = NO_AXIS
    dtype = source.dtype
    fills = bool(refs.bound.null.any())
    if n is not None and axis is not None:
        fills |= bool((refs.bound.shape[:, axis] != n).any())
    elif n is not None:
        fills |= bool((refs.bound.npoints != n).any())
    if like is not None:
        # Numbers of a null reference are NaN: the fill value of the file could be a coordinate.
        value = np.nan if source.dtype.kind in "biufc" else None
        if fills:
            chosen = choose_missing_value(like.decoders, source.dtype, value, None)
            missing, dtype = chosen.values[0], chosen.dtype
        else:
            missing = np.zeros((), dtype=source.dtype)[()]
    data = ResultCoordinate(refs, n, source, missing, dtype, axis)
    return _variable(refs.dims + (() if n is None else (dim,)), data, like, fills)


def _select_alike(refs: BoundVariable, source: ElementSource) -> bool:
    """Tell whether all references have the same values of a coordinate."""
    if isinstance(source, CoordinateValues) and not any(d.axes for d in source.datasets):
        return len(source.datasets) == 1
    if refs.bound.n_targets != 1 or refs.bound.small_by_file:
        return False
    (target,) = refs.bound.datasets
    first = target.regions.take(np.zeros(len(target.regions), dtype=np.int64))
    return bool(target.regions.same_rows(first).all())


def _variable(
    dims: DimNames, data: LazyArray, like: BoundVariable | None, fills: bool = False
) -> xr.Variable:
    """Return a lazy variable with the attributes of the coordinates of targets."""
    if like is None:
        return xr.Variable(dims, engine.lazily_indexed(data))
    return lazy_variable(like, None, dims, data, fills)


@dataclass(frozen=True, slots=True)
class NamedAxis:
    """One axis of the targets."""

    name: str | None  # if all targets have it
    axes: tuple[int, ...]  # of targets with the same names of axes; -1 for targets without it
    repeat: int = 0  # axes of that name before it


def name_axes(all_dims: Sequence[Dims]) -> list[NamedAxis]:
    """Find the axes that targets share by name; the others follow by their order.

    ``all_dims`` are the distinct names of axes of targets. The order is that of the first.
    """
    first = all_dims[0]
    # A name that several axes have counts as often as all targets have it.
    n_shared = {name: min(dims.count(name) for dims in all_dims) for name in first if name}
    unnamed = []
    for dims in all_dims:
        is_shared = [
            dims[:k].count(name) < n_shared.get(name or "", 0) for k, name in enumerate(dims)
        ]
        unnamed.append([k for k, found in enumerate(is_shared) if not found])
    n_unnamed = 0
    found = []
    for k, name in enumerate(first):
        repeat = first[:k].count(name)
        if name and repeat < n_shared[name]:
            axes = tuple(axes_along((name,), dims, repeat)[0] for dims in all_dims)
            found.append(NamedAxis(name, axes, repeat))
            continue
        found.append(_unnamed_axis(unnamed, n_unnamed))
        n_unnamed += 1
    longest = max(map(len, unnamed))
    return found + [_unnamed_axis(unnamed, k) for k in range(n_unnamed, longest)]


def _unnamed_axis(unnamed: list[list[int]], k: int) -> NamedAxis:
    return NamedAxis(None, tuple(axes[k] if k < len(axes) else -1 for axes in unnamed))


Source: TypeAlias = tuple[Hashable, ElementSource, "BoundVariable | None"]
"""Name of a coordinate, its values, and the datasets of the coordinate if there are some."""


def _element_sources(
    refs: BoundVariable, taken: Sequence[Hashable], unwanted: Collection[Hashable]
) -> Iterator[Source]:
    """Yield the coordinates of single elements: of each axis, and others along axes.

    The name of an axis that is ``taken`` gets a number. No ``unwanted`` names are yielded.
    """
    if not refs.targets:
        return
    used = set(taken)
    all_dims = list(dict.fromkeys(t.dims for t in refs.targets))
    axes = name_axes(all_dims)
    used.update(axis.name for axis in axes if axis.name)
    number = {dims: k for k, dims in enumerate(all_dims)}
    for axis in axes:
        label: Hashable = axis.name
        if label is None:
            label = next(engine.numbered_names("phony_dim_", used))
        elif label in taken or axis.repeat:
            label = engine.free_name(label, used)
        used.add(label)
        if label in unwanted:
            continue
        values = None
        if axis.name is not None:
            values = _coordinate_values(refs, axis.name, axis.repeat)
        if values is not None:
            yield label, *values
        elif _is_one_axis(axis, all_dims):
            yield label, Positions((max(axis.axes),)), None
        else:
            numbers = _number_targets(refs, lambda t: number[t.dims])
            yield label, Positions(axis.axes, numbers), None
    for name, (_, dims) in refs.targets[0].coords.items():
        if not dims or name in used or name in unwanted:
            continue
        if (values := _coordinate_values(refs, name)) is not None:
            yield name, *values


def _scalar_sources(refs: BoundVariable, unwanted: Collection[Hashable]) -> Iterator[Source]:
    """Yield the coordinates without axes that are wanted."""
    for name, (_, dims) in refs.targets[0].coords.items() if refs.targets else ():
        if dims or name in unwanted:
            continue
        if (values := _coordinate_values(refs, name)) is not None:
            yield name, *values


def _is_one_axis(axis: NamedAxis, all_dims: Sequence[Dims]) -> bool:
    """Tell whether an axis has one number in all targets of sufficient rank."""
    number = max(axis.axes)
    pairs = zip(axis.axes, all_dims, strict=True)
    return all(k == number or (k < 0 and number >= len(dims)) for k, dims in pairs)


def _number_targets(
    refs: BoundVariable, number: Callable[[TargetMetadata], int]
) -> TargetNumbers:
    """Return a number for each target, equal for small datasets of equal metadata."""
    by_token = {t.dataset.token: t for t in refs.targets}
    parts = []
    for t in refs.bound.datasets:
        numbers = np.array([number(by_token[t.dataset.token])], dtype=np.int64)
        address = np.array([t.dataset.address], dtype=np.uint64)
        parts.append((t.dataset.location, address, numbers))
    for small in refs.bound.small_by_file:
        tokens = [
            (small.location.token, int(small.address[k])) for k, _ in small.representatives
        ]
        numbers = np.array([number(by_token[token]) for token in tokens], dtype=np.int64)
        parts.append((small.location, small.address, numbers[small.representative]))
    return TargetNumbers.of_parts(parts)


def _coordinate_values(
    refs: BoundVariable, name: str, repeat: int = 0
) -> tuple[CoordinateValues, BoundVariable] | None:
    """Return the values of the coordinate that all targets have, else None.

    ``repeat`` is as for `axes_along`.
    A coordinate that cannot be read, or whose values have no common type, is left out with a
    warning.
    """
    has_axes = {bool(t.coords[name][1]) if name in t.coords else None for t in refs.targets}
    if len(has_axes) != 1 or None in has_axes:
        return None
    rows: dict[Hashable, int] = {}
    datasets: list[CoordinateDataset] = []
    row_of: dict[Hashable, int] = {}
    for t in refs.targets:
        address, dims = t.coords[name]
        stored = StoredObject(t.dataset.location, address)
        axes = tuple(axes_along(dims, t.dims, repeat))
        row = rows.setdefault((stored.token, axes), len(datasets))
        if row == len(datasets):
            datasets.append(CoordinateDataset(stored, axes))
        row_of[t.dataset.token] = row
    numbers = _number_targets(refs, lambda t: row_of[t.dataset.token])
    try:
        _check_extents(refs, datasets, numbers)
        like = _bind_datasets([d.dataset for d in datasets], refs, name)
        common = choose_common_decoding(like, None)
    except (XrefError, ValueError) as error:
        engine.warn_unreadable(f"coordinate {name!r} of {refs.label}", error)
        return None
    warn_of_units(like)
    read_dtype = common.dtype if common.decode is None else common.decode.dtype
    dtype, items = item_dtype(read_dtype)
    if items:
        return None
    options = refs.references.options
    shapes = filled_rows([d.dataset.layout.shape for d in datasets], 1)
    values = CoordinateValues(
        tuple(datasets), shapes, numbers, like.decoders, read_dtype, options, dtype
    )
    return values, like


def _bind_datasets(
    datasets: Sequence[StoredObject], refs: BoundVariable, name: str
) -> BoundVariable:
    """Bind references to the datasets of a coordinate, to find the types of its values."""
    columns = ReferenceColumns.of_objects(datasets)
    references = ReferenceArray(
        (len(datasets),), kind="object", columns=columns, options=refs.references.options
    )
    bound, _ = bind(references, (name,), "fill", name)
    return replace(bound, coordinate_of=refs.label)


def _check_extents(
    refs: BoundVariable, datasets: Sequence[CoordinateDataset], numbers: TargetNumbers
) -> None:
    """Raise SelectionError unless each coordinate has the extent of the axes of its target.

    Along an unlimited dimension it suffices that the coordinate holds all selected elements.
    """
    layouts = [d.dataset.layout for d in datasets]
    for coordinate, layout in zip(datasets, layouts, strict=True):
        if layout.reference_kind:
            raise UnsupportedError(f"{coordinate.dataset.named} holds references")
        if len(layout.shape) != len(coordinate.axes):
            raise SelectionError(
                f"{coordinate.dataset.named} has shape {layout.shape}, and lies along "
                f"{len(coordinate.axes)} axes"
            )
    row = numbers.rows(refs.bound)
    known = np.flatnonzero(row >= 0)
    axes = filled_rows([d.axes for d in datasets], -1)[row[known]]
    stored = filled_rows([layout.shape for layout in layouts], -1)[row[known]]
    elements = Elements.of_results(refs.bound)

    def along(values: IntArray) -> IntArray:
        found = np.take_along_axis(values[known], np.maximum(axes, 0), axis=1)
        return np.where(axes >= 0, found, -1)

    extent = along(elements.extent)
    differs = stored != extent
    if differs.any():
        used = np.unique(row[known[differs.any(axis=1)]]).tolist()
        unlimited = np.zeros((len(datasets), axes.shape[1]), dtype=bool)
        for k in used:
            own = unlimited_axes(datasets[k].dataset)
            unlimited[k, : len(own)] = own
        holds = along(elements.regions.bounds()[1]) <= stored
        differs &= ~(unlimited[row[known]] & holds)
    wrong = np.flatnonzero(differs.any(axis=1))
    if len(wrong):
        coordinate = datasets[int(row[known[wrong[0]]])]
        raise SelectionError(
            f"{coordinate.dataset.named} has shape {coordinate.dataset.layout.shape}, its axes "
            f"have {tuple(extent[wrong[0], : len(coordinate.axes)].tolist())}"
        )
