"""Coordinates of results that are joined along one axis.

In: a `BoundVariable`, and the joined axis. Out: variables by name:

- the coordinates of the targets: joined alike if they lie along the joined axis, else once if
  they are equal for all references;
- the coordinates of the reference variable, and the place of each reference in it, repeated
  for each element along the joined axis (a row).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref import engine
from xref.arrays import IntArray, is_same_value
from xref.engine import Axis, LazyArray, index_outer
from xref.objects import StoredObject
from xref.references import ReferenceArray, ReferenceColumns
from xref.resolving.binding import BoundVariable, bind, warn_of_units
from xref.resolving.bound_references import BoundDataset, Shape
from xref.resolving.concat_arrays import ConcatArray
from xref.resolving.element_coords import sample_coords
from xref.resolving.element_sources import Elements
from xref.resolving.lazy_results import CommonDecoding
from xref.resolving.result_coords import fits_target, start_coords
from xref.resolving.result_variables import (
    Coords,
    DimNames,
    axes_along,
    choose_common_decoding,
    item_dims,
    lazy_variable,
    stack_variable,
)
from xref.resolving.targets import Dims, TargetMetadata
from xref.selections import SelectionKind, SelectionTable, concat_at, empty_table, project

_ROW = "<row>"  # a name that no dimension has

COMPARED_NBYTES = 64 << 20
"""Coordinates of several datasets are compared if they have at most this number of bytes
together. Larger ones are repeated along the joined axis, lazily."""

CF_ENCODING = ("dtype", "units", "calendar", "_FillValue", "scale_factor", "add_offset")


def concat_variable(
    refs: BoundVariable, dims: DimNames, axis: int, shape: Shape, dtype: Any = None
) -> tuple[xr.Variable, ConcatArray, engine.Decoding | None]:
    """Return joined results as a lazy variable, and the array that the variable reads.

    The third result is the decoding that xarray applies to the values of the array, if any.
    """
    common = choose_common_decoding(refs, dtype)
    decode = common.decode if common.is_lazily_decoded else None
    stored = common if decode is None else replace(common, decode=None)
    data = ConcatArray(refs.references, axis, shape, stored, refs.bound)
    all_dims = dims + item_dims(common.dtype, dims)
    return lazy_variable(refs, decode, all_dims, data), data, decode


class RepeatedArray(LazyArray):
    """Values of references, repeated for each row of their results.

    ``variable`` has some of the dimensions ``dims`` of the references, of sizes ``sizes``;
    they come first. Axis 0 of the array is that of the rows. ``offsets`` has the row with
    which each result begins, then the number of rows.
    """

    def __init__(
        self, variable: xr.Variable, dims: DimNames, sizes: Shape, offsets: IntArray
    ) -> None:
        own = [dim for dim in dims if dim in variable.dims]
        self.variable = variable.transpose(*own, ...)
        self.own, self.dims, self.sizes, self.offsets = tuple(own), dims, sizes, offsets
        self.dtype = variable.dtype
        self.shape = (int(offsets[-1]), *self.variable.shape[len(own) :])

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        rows = _positions(key[0], self.shape[0])
        reference = np.searchsorted(self.offsets, rows, side="right") - 1
        used, repeat = np.unique(reference, return_inverse=True)
        places = dict(zip(self.dims, np.unravel_index(used, self.sizes), strict=True))
        index = {dim: xr.Variable((_ROW,), places[dim]) for dim in self.own}
        values = np.asarray(self.variable.isel(index).values)[repeat.reshape(-1)]
        is_one = isinstance(key[0], int | np.integer)
        return index_outer(values, 0, (0 if is_one else slice(None), *key[1:]))


def _positions(key: Axis, n: int) -> IntArray:
    """Return the elements that a key selects along an axis, also a single one as an array."""
    if isinstance(key, slice):
        return np.arange(*key.indices(n))
    chosen = np.atleast_1d(np.asarray(key))
    return np.where(chosen < 0, chosen + n, chosen)


class JoinedPositions(ConcatArray):
    """The position of each row along the joined axis of its target."""

    def __init__(self, refs: BoundVariable, axis: int, shape: Shape) -> None:
        integers = CommonDecoding(np.dtype(np.int64))
        super().__init__(refs.references, axis, shape, integers, refs.bound)
        self.shape = (shape[axis],)

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        rows = _positions(key[0], self.shape[0])
        if not len(rows):
            return np.zeros(0, dtype=np.int64)
        low, high = int(rows.min()), int(rows.max()) + 1
        bound, offsets = self.bind_stretch(low, high)
        begin, end = (np.clip(column, low, high) for column in (offsets[:-1], offsets[1:]))
        elements = replace(
            Elements.along(bound, self.axis), first=begin - offsets[:-1], count=end - begin
        )
        values = elements.positions(np.zeros(len(begin), dtype=np.int64))[rows - low]
        return values if isinstance(key[0], np.ndarray | slice) else values[0, ...]


def position_coords(
    refs: BoundVariable, dims: DimNames, axis: int, shape: Shape, taken: Coords
) -> Coords:
    """Return the position of each row in its target, unless a coordinate has the dimension."""
    if dims[axis] in taken or not refs.targets:
        return {}
    positions = engine.lazily_indexed(JoinedPositions(refs, axis, shape))
    return {dims[axis]: xr.Variable((dims[axis],), positions)}


def point_coords(refs: BoundVariable, dim: Hashable, offsets: IntArray) -> Coords:
    """Return the coordinates of single elements of datasets of several dimensions.

    There is one for each axis of the datasets: the values of its coordinate, else positions.
    """
    found = sample_coords(refs, dim, None, (refs.name,), ())
    sizes = refs.references.shape
    return {k: _repeat(v, refs.dims, sizes, dim, offsets) for k, v in found.items()}


def repeated_coords(
    refs: BoundVariable,
    reference_coords: Coords,
    starts_along: DimNames | None,
    dim: Hashable,
    offsets: IntArray,
    taken: set[Hashable],
) -> Coords:
    """Repeat the coordinates of references for each row of their results.

    A dimension without an index coordinate gets one with the places of the references. The
    starts of regions are added if ``starts_along`` has the dimensions of the results. A name
    in ``taken`` gets a number.
    """
    shape = dict(zip(refs.dims, refs.references.shape, strict=True))
    own: Coords = {d: xr.Variable((d,), np.arange(n)) for d, n in shape.items()}
    for name, coord in reference_coords.items():
        if name not in shape or coord.variable.level_names is None:
            own[name] = coord.variable  # a MultiIndex has its levels as coordinates
    if starts_along is not None:
        starts = start_coords(refs, starts_along, reference_coords)
        own |= {name: xr.Variable(*start) for name, start in starts.items()}
    coords: Coords = {}
    for name, variable in own.items():
        label = engine.free_name(name, taken | coords.keys())
        coords[label] = _repeat(variable, refs.dims, tuple(shape.values()), dim, offsets)
    return coords


def _repeat(
    variable: xr.Variable, dims: DimNames, sizes: Shape, dim: Hashable, offsets: IntArray
) -> xr.Variable:
    """Repeat a variable along dimensions of references for each row; others stay."""
    if not set(dims) & set(variable.dims):
        return variable
    if isinstance(variable._data, ReferenceArray):  # its columns are in memory anyway
        rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        places = dict(zip(dims, np.unravel_index(rows, sizes), strict=True))
        index = {d: xr.Variable((dim,), places[d]) for d in dims if d in variable.dims}
        picked: xr.Variable = variable.isel(index)
        return picked
    if not isinstance(variable.dtype, np.dtype):  # of pandas
        variable = xr.Variable(variable.dims, np.asarray(variable.values), variable.attrs)
    array = RepeatedArray(variable, dims, sizes, offsets)
    others = tuple(d for d in variable.dims if d not in dims)
    encoding = {k: v for k, v in variable.encoding.items() if k in CF_ENCODING}
    return xr.Variable(
        (dim, *others), engine.lazily_indexed(array), dict(variable.attrs), encoding
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Target:
    """A target with rows in the result, and the selections of the references to it."""

    metadata: TargetMetadata
    bound: BoundDataset
    rows: IntArray  # references
    regions: SelectionTable

    def axes(self, name: str, dims: Dims, repeat: int) -> list[int] | None:
        """Return the axes of a coordinate; None if the target has none of these dimensions.

        ``repeat`` is as for `axes_along`.
        """
        if name not in self.metadata.coords or self.metadata.coords[name][1] != dims:
            return None
        found = axes_along(dims, self.metadata.dims, repeat)
        return found if len(found) == len(dims) else None

    def coordinate(self, name: str) -> StoredObject:
        """Return the dataset of a coordinate."""
        return StoredObject(self.metadata.dataset.location, self.metadata.coords[name][0])


def joined_coords(
    refs: BoundVariable, dims: DimNames, axis: int, shape: Shape, offsets: IntArray
) -> Coords:
    """Join the coordinates that all targets have, as their values of full rank are joined.

    Parameters
    ----------
    refs : BoundVariable
        The references.
    dims, axis, shape
        Dimensions of the result, its joined axis, and its shape.
    offsets : numpy.ndarray
        Shape ``(n + 1,)``: the row with which each result begins, then the number of rows.

    Returns
    -------
    dict
        Variables by name. A coordinate that lies along the joined axis is joined. Another one
        has its own dimensions if all references select equal values of it, else it is
        repeated for each row.
    """
    targets = _targets_with_rows(refs, np.diff(offsets))
    if not targets:
        return {}
    coords: Coords = {}
    first = targets[0].metadata
    for name, (_, own_dims) in first.coords.items():
        # A dimension scale of several axes is a coordinate of each.
        for repeat in range(first.dims.count(name) if own_dims == (name,) else 1):
            own = targets[0].axes(name, own_dims, repeat)
            if own is None or any(t.axes(name, own_dims, repeat) != own for t in targets):
                continue
            if not all(
                fits_target(t.coordinate(name), name, t.bound.layout.shape, own, t.regions)
                for t in targets
            ):
                continue
            along, sizes = tuple(dims[k] for k in own), tuple(shape[k] for k in own)
            label = along[0] if own_dims == (name,) else name
            projected = [_project(target.regions, own) for target in targets]
            coordinate = _Coordinate(refs, targets, name, along, sizes, projected, offsets)
            try:
                coords[label] = coordinate.variable(dims[axis])
            except ValueError as error:  # no one type holds the values of all
                engine.warn_unreadable(f"{refs.label}: coordinate {name!r}", error)
    return coords


def _targets_with_rows(refs: BoundVariable, lengths: IntArray) -> list[_Target]:
    """Return the targets of references with rows; all of them if there are no rows."""
    bound = refs.bound
    if len(refs.targets) != bound.n_targets:
        return []  # datasets with shared metadata have no coordinates
    is_used = lengths > 0 if lengths.any() else ~bound.null
    targets = []
    for metadata, target in zip(refs.targets, bound.targets, strict=True):
        rows = np.arange(len(lengths))[target.rows]
        kept = np.flatnonzero(is_used[rows])
        if len(kept):
            targets.append(_Target(metadata, target, rows[kept], target.regions.take(kept)))
    return targets


def _project(regions: SelectionTable, axes: list[int]) -> SelectionTable:
    """Keep the axes of a coordinate; one without axes is selected whole."""
    if not axes:
        return empty_table(len(regions), 0, SelectionKind.ALL)
    return project(regions, axes)


@dataclass(frozen=True, slots=True, eq=False)
class _Coordinate:
    """One coordinate of all targets, to be selected from as the references select data."""

    refs: BoundVariable
    targets: Sequence[_Target]
    name: str
    dims: DimNames  # in the result
    shape: Shape
    projected: Sequence[SelectionTable]  # of each target, on the axes of the coordinate
    offsets: IntArray

    def variable(self, dim: Hashable) -> xr.Variable:
        """Return the coordinate of a result that is joined along ``dim``."""
        n = len(self.offsets) - 1
        if dim not in self.dims:
            once = self._equal_for_all()
            if once is not None:
                return once
        rows = [target.rows for target in self.targets]
        coord_refs = self._bind(n, self.targets, self.projected, rows)
        warn_of_units(coord_refs)
        if dim in self.dims:
            axis = self.dims.index(dim)
            return concat_variable(coord_refs, self.dims, axis, self.shape)[0]
        each = stack_variable(coord_refs, self.shape, (_ROW, *self.dims), fills=False)[0]
        return _repeat(each, (_ROW,), (n,), dim, self.offsets)

    def _equal_for_all(self) -> xr.Variable | None:
        """Return the coordinate if all references select equal values of it, else None."""
        first: dict[Hashable, tuple[_Target, SelectionTable]] = {}  # by dataset
        for target, table in zip(self.targets, self.projected, strict=True):
            stored = target.coordinate(self.name).token
            _, known = first.setdefault(stored, (target, table.take(slice(0, 1))))
            if not table.same_rows(known.take(np.zeros(len(table), dtype=np.int64))).all():
                return None
        targets, tables = zip(*first.values(), strict=True)
        n = len(targets)
        coord_refs = self._bind(n, targets, tables, list(np.arange(n)[:, None]))
        each = stack_variable(coord_refs, self.shape, (_ROW, *self.dims), fills=False)[0]
        if n == 1:
            return each[0]
        if each.size * each.dtype.itemsize > COMPARED_NBYTES:
            return None
        values = each.load().values
        return each[0] if all(_is_equal(values[0], other) for other in values[1:]) else None

    def _bind(
        self,
        n: int,
        targets: Sequence[_Target],
        tables: Sequence[SelectionTable],
        rows: Sequence[IntArray],
    ) -> BoundVariable:
        """Bind n references to the coordinate; those in no item of ``rows`` are null."""
        members = [target.coordinate(self.name) for target in targets]
        files = {location: i for i, location in enumerate({m.location: 0 for m in members})}
        file, address = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.uint64)
        for member, own in zip(members, rows, strict=True):
            file[own], address[own] = files[member.location], member.address
        rest = np.flatnonzero(address == 0)
        regions = concat_at([*tables, empty_table(len(rest), 0)], [*rows, rest])
        columns = ReferenceColumns(
            files=tuple(files), file=file, address=address, regions=regions
        )
        options = self.refs.references.options
        references = ReferenceArray((n,), kind="region", columns=columns, options=options)
        bound, _ = bind(references, (_ROW,), "fill", self.name)
        return replace(bound, coordinate_of=self.refs.label)


def _is_equal(a: Any, b: Any) -> bool:
    """Tell whether two arrays of one type are equal; sequences in them never are."""
    try:
        return is_same_value(a, b)
    except ValueError:
        return False
