"""Results joined along one axis: granules into rows, trials into time.

In: a `BoundVariable`, the name of the joined dimension, the chunks. Out: a DataArray with the
dimensions of the targets, over a `ConcatArray`. An element along the joined axis is called a
row here, on whichever axis.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xref import reading
from xref.arrays import IntArray, row_offsets
from xref.resolving.binding import BoundVariable
from xref.resolving.bound_references import Shape
from xref.resolving.concat_arrays import axis_lengths
from xref.resolving.concat_coords import (
    concat_variable,
    joined_coords,
    point_coords,
    position_coords,
    repeated_coords,
)
from xref.resolving.dask_graph import auto_chunk_nbytes, check_chunks, chunk_variable
from xref.resolving.result_variables import Coords, DimNames, result_dims

STORED_NBYTES = 1 << 20
"""Bytes of a chunk in a file that the result is written to; one row may be larger."""

MAX_SHAPES_SHOWN = 3
"""Shapes that the error about shapes which do not join shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The axis along which results are joined, and the shape of all together."""

    dims: DimNames
    axis: int
    shape: Shape
    offsets: IntArray  # (n + 1,), row with which each result begins, then the number of rows

    @property
    def dim(self) -> Hashable:
        """The joined dimension."""
        return self.dims[self.axis]


def resolve_concatenated(
    refs: BoundVariable,
    reference_coords: Coords,
    concat_dim: Hashable | None,
    chunks: Any,
    coords: bool,
    dtype: Any = None,
) -> xr.DataArray:
    """Return results that follow each other along one axis of the targets.

    ``reference_coords`` are the coordinates of the reference variable. The other parameters
    are those of `xref.resolving.accessor.ReferenceAccessor.resolve`.
    """
    joined = _join(refs, concat_dim)
    offsets, axis = joined.offsets, joined.axis
    variable, data, decode = concat_variable(refs, joined.dims, axis, joined.shape, dtype)
    check_chunks(chunks, (*variable.dims, *refs.dims))
    if chunks is not None:
        itemsize = max(variable.dtype.itemsize, data.raw_dtype.itemsize)
        wanted = _choose_chunks(chunks, refs, joined, variable.dims, itemsize)
        variable = chunk_variable(variable, data, wanted, "concat", decode)
    found: Coords = {}
    positions: Coords = {}
    if coords and len(joined.dims) == 1 and max(refs.bound.ranks, default=1) > 1:
        found = point_coords(refs, joined.dim, offsets)
    elif coords:
        found = joined_coords(refs, joined.dims, axis, joined.shape, offsets)
        positions = position_coords(refs, joined.dims, axis, joined.shape, found)
    taken = {refs.name, *variable.dims, *found}
    starts_dims = joined.dims if coords else None
    found |= repeated_coords(refs, reference_coords, starts_dims, joined.dim, offsets, taken)
    values = xr.DataArray(variable, coords=found, name=refs.name)
    # Without an index: rows of several references have equal positions.
    values = values.assign_coords(xr.Coordinates(positions, indexes={}))
    values.encoding = dict(variable.encoding)
    if variable.dtype.kind != "S":  # is stored with one more axis, of characters
        values.encoding["chunksizes"] = _storage_chunks(refs, variable, axis)
    return values


def _join(refs: BoundVariable, concat_dim: Hashable | None) -> Joined:
    """Choose the axis and check that the results agree along all others."""
    bound = refs.bound
    rank = _find_rank(refs)
    if not bound.n_targets and isinstance(concat_dim, int):
        rank = max(concat_dim + 1, -concat_dim)  # no target says otherwise
    dims = result_dims(refs, rank, joined=True)
    if not bound.n_targets and isinstance(concat_dim, str):
        dims = (concat_dim,)
    axis = _find_axis(dims, concat_dim, bound.label())
    lengths = axis_lengths(bound, rank, axis)
    counted = np.flatnonzero(lengths)
    if len(counted):
        others = np.delete(bound.shape[counted, :rank], axis, axis=1)
        if (others != others[:1]).any():
            raise ValueError(_describe_shapes(refs, counted, dims, axis))
        shape = bound.shape[counted[0], :rank].tolist()
    else:
        # Nothing is selected: the first selection of that rank has the other axes.
        same_rank = np.flatnonzero(bound.ndim == rank)
        shape = bound.shape[same_rank[0], :rank].tolist() if len(same_rank) else [0] * rank
    offsets = row_offsets(lengths)
    shape[axis] = int(offsets[-1])
    return Joined(dims=dims, axis=axis, shape=tuple(shape), offsets=offsets)


def _find_rank(refs: BoundVariable) -> int:
    """Return the number of axes of all results that have elements."""
    bound = refs.bound
    filled = np.flatnonzero(~bound.null & (bound.npoints > 0))
    if not len(filled):
        return max(int(bound.ndim.max(initial=0)), 1)
    ranks, first = np.unique(bound.ndim[filled], return_index=True)
    if len(ranks) > 1:
        found = " and ".join(_describe_result(refs, int(filled[k])) for k in first)
        raise ValueError(
            f"{bound.label()}: layout='concat' joins results with equal numbers of dimensions; "
            f"the references select {found}; use layout='ragged', or select references of one "
            "kind"
        )
    if not ranks[0]:
        raise ValueError(
            f"{bound.label()}: layout='concat' joins results along one of their dimensions, "
            f"and the references point at scalars ({_describe_result(refs, int(filled[0]))}); "
            "use layout='stack' or layout='ragged'"
        )
    return int(ranks[0])


def _find_axis(dims: DimNames, concat_dim: Hashable | None, label: str) -> int:
    """Return the axis that ``concat_dim``, a dimension or an axis number, means."""
    if concat_dim is None:
        return 0
    if concat_dim in dims:
        return dims.index(concat_dim)
    try:
        axis = operator.index(concat_dim)  # type: ignore[arg-type]
    except TypeError:
        axis = None
    if axis is None or isinstance(concat_dim, bool) or not -len(dims) <= axis < len(dims):
        raise ValueError(
            f"{label}: concat_dim is {concat_dim!r}; the results have the dimensions "
            f"{[str(d) for d in dims]}, which may also be given by their number"
        )
    return axis % len(dims)


def _describe_result(refs: BoundVariable, row: int) -> str:
    """Name the shape of one result, and its reference."""
    bound = refs.bound
    shape = tuple(bound.shape[row, : int(bound.ndim[row])].tolist())
    return f"{shape} by {bound.describe(row)}"


def _describe_shapes(refs: BoundVariable, rows: IntArray, dims: DimNames, axis: int) -> str:
    """Say which shapes do not join, and which layouts and dimensions are possible."""
    shapes = refs.bound.shape[rows, : len(dims)]
    others = np.delete(shapes, axis, axis=1)
    _, first = np.unique(others, axis=0, return_index=True)
    first = np.sort(first)
    found = [_describe_result(refs, int(rows[k])) for k in first[:MAX_SHAPES_SHOWN]]
    more = f", and {len(first) - len(found)} more" if len(first) > len(found) else ""
    names = [str(d) for d in dims]
    fitting = [
        names[k]
        for k in range(len(dims))
        if k != axis and (np.delete(shapes != shapes[:1], k, axis=1) == 0).all()
    ]
    another = f"concat_dim={fitting[0]!r}, " if fitting else ""
    return (
        f"{refs.bound.label()}: the references select shapes that do not join along "
        f"{names[axis]!r}: {', '.join(found)}{more}. All dimensions but the joined one need "
        f"equal lengths; use {another}layout='ragged' or layout='pad', or select references of "
        "one shape"
    )


def _choose_chunks(
    chunks: Any, refs: BoundVariable, joined: Joined, dims: DimNames, itemsize: int
) -> Any:
    """Return Dask chunks by dimension from those of the user.

    An int is a number of references; "auto" fills the chunk size of Dask. ``dims`` includes the
    axes of array types, ``itemsize`` is that of elements with all their items.
    """
    others = [dim for dim in dims if dim != joined.dim]
    whole: dict[Hashable, Any] = dict.fromkeys(others, -1)
    n_rows = joined.shape[joined.axis]
    given: dict[Any, Any] = {}
    if isinstance(chunks, dict):
        given = {dim: chunks[dim] for dim in dims if dim in chunks}
        chunks = next((chunks[d] for d in refs.dims if d in chunks and d not in given), "auto")
    if given.get(joined.dim, "auto") != "auto":
        return whole | given
    if isinstance(chunks, int):
        ends = joined.offsets[chunks:-1:chunks] if chunks > 0 else joined.offsets[:0]
        borders = np.unique(np.concatenate([[0], ends, [n_rows]]))
        return whole | given | {joined.dim: tuple(np.diff(borders).tolist()) or (0,)}
    row_nbytes = max(math.prod(np.delete(joined.shape, joined.axis).tolist()) * itemsize, 1)
    limit = auto_chunk_nbytes() // row_nbytes
    if not limit:
        whole = dict.fromkeys(others, "auto")  # one row is too large for a block
    cuts = _cut_rows(refs, joined, max(limit, 1))
    return whole | given | {joined.dim: tuple(np.diff(cuts).tolist()) or (0,)}


def _cut_rows(refs: BoundVariable, joined: Joined, limit: int) -> list[int]:
    """Divide the rows into blocks of at most ``limit`` rows.

    Blocks end between results. A longer result is divided where one of its HDF5 chunks ends.
    """
    offsets, n_rows = joined.offsets, joined.shape[joined.axis]
    chunks_of = _chunks_of_long_results(refs, joined, limit)
    cuts = [0]
    while (row := cuts[-1]) < n_rows:
        last = int(np.searchsorted(offsets, row + limit, side="right")) - 1
        end = int(offsets[last])
        if end <= row:
            start, chunk = chunks_of.get(last, (0, limit))
            position = start + row - int(offsets[last])
            border = (position + limit) // chunk * chunk
            end = row + (border - position if border > position else limit)
        cuts.append(end)
    return cuts


def _chunks_of_long_results(
    refs: BoundVariable, joined: Joined, limit: int
) -> dict[int, tuple[int, int]]:
    """Return the first element and the chunk length of results with more rows than ``limit``.

    Both are along the joined axis of the target. Only boxes in datasets with chunks count.
    """
    axis, lengths = joined.axis, np.diff(joined.offsets)
    numbers, found = np.arange(len(lengths)), {}
    for target in refs.bound.datasets:
        rows, chunks = numbers[target.rows], target.layout.chunks
        long = np.flatnonzero(lengths[rows] > limit)
        if not len(long) or chunks is None or len(chunks) != len(joined.dims):
            continue
        start, stop = (c[:, axis] for c in target.regions.take(long).bounds())
        is_box = stop - start == lengths[rows[long]]
        for row, first in zip(rows[long][is_box].tolist(), start[is_box].tolist(), strict=True):
            found[row] = first, chunks[axis]
    return found


def _storage_chunks(refs: BoundVariable, variable: xr.Variable, axis: int) -> Shape | None:
    """Return HDF5 chunks for a file that the result is written to: those of the targets.

    If the targets differ in their chunks, they are boxes of `STORED_NBYTES`.
    """
    shape = variable.shape
    if 0 in shape:
        return None
    chunks = {target.layout.chunks for target in refs.bound.datasets}
    common = chunks.pop() if len(chunks) == 1 and not refs.bound.small_by_file else None
    itemsize = max(variable.dtype.itemsize, 1)
    if common is not None and len(common) == len(shape):
        return tuple(map(min, common, shape))
    return reading.choose_tile(shape, (1,) * len(shape), itemsize, STORED_NBYTES)
