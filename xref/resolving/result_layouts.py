"""Resolved references as stacked, padded or ragged lazy arrays.

In: `BoundVariable` references. Out: DataArrays and Datasets with the targets'
dimensions, coordinates and CF decoding. The lazy arrays hold places and decode
again where they are computed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xref import engine
from xref.arrays import IntArray, dtype_with, is_same_value
from xref.errors import SelectionError
from xref.hdf5 import item_dtype
from xref.objects import StoredObject
from xref.references import ReferenceArray, ReferenceColumns
from xref.resolving.binding import BoundVariable, bind
from xref.resolving.dask_graph import auto_chunk_nbytes, check_chunks, chunk_variable
from xref.resolving.lazy_results import MissingValue, PaddingMask, RaggedArray, StackArray
from xref.selections import concat_tables, empty_table, project

POINT_DIM = "point"
SAMPLE_DIM = "sample"


@dataclass(frozen=True, slots=True)
class Form:
    """How the values of all targets become those of one variable.

    - Without ``decode`` and ``decoders`` they are the stored values.
    - With ``decode`` they are read as stored, and then decoded all together.
    - With ``decoders`` those of each target are decoded by itself, as they are read.
    """

    dtype: np.dtype[Any]  # of elements in the flat array that values are read into
    decode: engine.Decoding | None = None
    decoders: engine.Decoders | None = None

    @property
    def is_lazily_decoded(self) -> bool:
        """Whether xarray can decode the variable: the type of dates depends on values."""
        return self.decode is not None and not self.decode.is_of_times

    @property
    def values_dtype(self) -> np.dtype[Any]:
        """Type of decoded values."""
        return item_dtype(self.dtype)[0] if self.decode is None else self.decode.dtype


def choose_form(resolved: BoundVariable, dtype: Any) -> Form:
    """Choose the type that holds the values of all targets, and how they are decoded.

    Parameters
    ----------
    resolved : Resolved
    dtype : dtype-like or None
        The user's choice.

    Raises
    ------
    ValueError
        If no one type holds the values of all targets exactly, or if the user's has no size.
    """
    decoders = resolved.decoders
    if dtype is not None:
        wanted = np.dtype(dtype)
        if wanted.itemsize == 0:
            raise ValueError(f"dtype={dtype!r} has no length; name it ('U20'), or use object")
        item_shapes = {kind.item_shape for kind in decoders.kinds}
        if len(item_shapes) > 1:
            engine.common_dtype(decoders.kinds, resolved.what)  # raises
        item_shape = item_shapes.pop() if item_shapes else ()
        return Form(engine.with_items(wanted, item_shape), decoders=decoders)
    found = engine.common_dtype(decoders.kinds, resolved.what)
    single = decoders.single
    if single is not None and single.raw_dtype.kind in "biufc":
        as_stored = single.is_plain and single.raw_dtype == found
        return Form(single.raw_dtype, decode=None if as_stored else single)
    return Form(found, decoders=None if decoders.are_plain else decoders)


def fill_values(
    resolved: BoundVariable, form: Form, fill_value: Any, dtype: Any
) -> MissingValue:
    """Return what stands for missing values: the user's value, or each target's own.

    Among values that were joined as floats or dates it is NaN or NaT.

    Raises
    ------
    ValueError
        If the user's value is of another kind than the values, or no value of the user's
        type; or if that has no missing value.
    """
    decoders, base = resolved.decoders, form.values_dtype
    if fill_value is not None:
        found = dtype_with(base, fill_value)
        if dtype is not None and found != base:
            raise ValueError(f"fill_value {fill_value!r} is no value of dtype {base}")
        return MissingValue(decoders, (fill_value,), found)
    values = [kind.missing for kind in decoders.kinds] or [np.nan]
    if base.kind in "fcmM":
        values = [engine.missing_of(base)]
    elif dtype is not None:
        values = [_missing_in(value, base) for value in values]
    if all(is_same_value(values[0], value) for value in values):
        values = values[:1]
    return MissingValue(decoders, tuple(values), base)


def _missing_in(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return a missing value as one of a type of the user's."""
    if dtype.kind == "O":
        return value
    if dtype.kind in "SU":
        return engine.missing_of(dtype)
    try:
        if dtype_with(dtype, value) == dtype:
            return value
    except ValueError:
        pass  # of another kind
    raise ValueError(f"dtype {dtype} has no missing value; choose one with fill_value=")


def resolve_cells(
    resolved: BoundVariable,
    own: dict[Hashable, Any],
    layout: str,
    chunks: Any,
    coords: bool,
    fill_value: Any,
    dtype: Any = None,
) -> Any:
    """Return results of one shape as a DataArray, or padded ones as a Dataset.

    ``own`` are the reference variable's coordinates; the others are as in
    `xref.resolving.accessor.ReferenceAccessor.resolve`.
    """
    bound, references = resolved.bound, resolved.references
    cell = _cell(resolved, layout)
    uniform = layout == "stack"
    # A fill value that the user gives counts for the type, also where nothing is filled.
    fills = bool(bound.null.any()) or (not uniform and fill_value is not None)
    fills = fills or bool((bound.shape[:, : len(cell)] != cell).any())
    inner = _cell_dims(resolved, len(cell))
    dims = resolved.dims + inner
    variable, data, decode = _stack(
        resolved,
        cell,
        dims,
        fills=fills,
        fill_value=fill_value,
        dtype=dtype,
        padded=not uniform,
    )
    item_dims = variable.dims[len(dims) :]
    ref_chunks = _chunks_of_cells(chunks, resolved, inner + item_dims, cell, data.raw_dtype)
    out_coords = dict(own)
    if coords:
        out_coords |= _place_coords(resolved, inner, own)
        if uniform:
            out_coords |= _target_coords(resolved, inner, cell, own)
    if chunks is not None:
        variable = chunk_variable(variable, data, ref_chunks, "resolve", decode)
    values = xr.DataArray(variable, coords=out_coords, name=resolved.name)
    values.encoding = dict(variable.encoding)
    if variable.dtype.kind != "S":  # which is stored with one more axis, of characters
        itemsize = variable.dtype.itemsize
        values.encoding["chunksizes"] = _stored_chunks(
            variable.shape, len(resolved.dims), itemsize
        )
    if uniform:
        return values
    mask = PaddingMask(references, cell)
    valid = xr.Variable(dims, engine.lazily_indexed(mask))
    if chunks is not None:
        same = dict(zip(variable.dims, variable.chunks or (), strict=False))
        valid = chunk_variable(valid, mask, {d: same[d] for d in dims}, "valid")
    name = _free_name(resolved.name or "values", dims)
    return xr.Dataset({name: values, _free_name("valid", (*dims, name)): valid})


def _stack(
    resolved: BoundVariable,
    cell: tuple[int, ...],
    dims: tuple[Hashable, ...],
    *,
    fills: bool,
    fill_value: Any = None,
    dtype: Any = None,
    padded: bool = False,
) -> tuple[xr.Variable, StackArray, engine.Decoding | None]:
    """Return results in cells of one shape as a lazy variable.

    Returns
    -------
    variable : xarray.Variable
    data : StackArray
        What it reads.
    decode : Decoding or None
        What xarray does to these values.
    """
    form = choose_form(resolved, dtype)
    fill = fill_values(resolved, form, fill_value, dtype) if fills else None
    lazily = form.is_lazily_decoded and fill is None
    data = StackArray(
        resolved.references,
        cell,
        form.dtype,
        decode=None if lazily else form.decode,
        decoders=form.decoders,
        fill=fill,
        padded=padded,
        bound=None if fills else resolved.bound,
    )
    all_dims = dims + _item_dims(form.dtype, dims)
    decode = form.decode if lazily else None
    return _variable_of(resolved, decode, all_dims, data, fills), data, decode


def _variable_of(
    resolved: BoundVariable,
    decode: engine.Decoding | None,
    dims: tuple[Hashable, ...],
    data: StackArray | RaggedArray,
    fills: bool = False,
) -> xr.Variable:
    """Return the variable of a lazy array, with what all targets' decoded attributes say.

    ``decode`` is what xarray does to the values of the array, lazily.
    """
    attributes = dict(resolved.attributes)
    if decode is None:
        encoding = _common_encoding(resolved.decoders, data.dtype, fills)
        return xr.Variable(dims, engine.lazily_indexed(data), attributes, encoding)
    attributes |= decode.attributes  # for xarray to use them up
    variable = xr.Variable(dims, engine.lazily_indexed(data), attributes)
    decoded = engine.decode_variable(variable, decode.options)
    decoded.attrs = {k: v for k, v in decoded.attrs.items() if k in resolved.attributes}
    return decoded


def _common_encoding(
    decoders: engine.Decoders, dtype: np.dtype[Any], fills: bool
) -> dict[str, Any]:
    """Return what all targets' encodings agree on, if values can still be stored so.

    Integers without a fill value have no place for NaN and NaT.
    """
    if not decoders.kinds:
        return {}
    first, *others = (dict(kind.encoding) for kind in decoders.kinds)
    common = {
        name: value
        for name, value in first.items()
        if all(name in o and is_same_value(value, o[name]) for o in others)
    }
    packing = {"scale_factor", "add_offset", "_FillValue", "missing_value", "units"}
    same_packing = all(
        (name in common) or not any(name in o for o in (first, *others)) for name in packing
    )
    if not same_packing or dtype not in {kind.dtype for kind in decoders.kinds}:
        return {}
    stored = np.dtype(common.get("dtype", dtype))
    if fills and stored.kind in "iub" and stored != dtype and "_FillValue" not in common:
        # xarray stores missing values of floats as NaN.
        common["dtype"] = np.dtype(np.float64)
    return common


STORED_NBYTES = 1 << 20
"""Bytes of a chunk of whole regions, where one region is not larger."""


def _stored_chunks(shape: tuple[int, ...], own: int, itemsize: int) -> tuple[int, ...] | None:
    """Return chunks of whole regions, for a file that results are written to."""
    if not shape or 0 in shape:
        return None
    nbytes = math.prod(shape[own:]) * max(itemsize, 1)
    n = min(max(STORED_NBYTES // nbytes, 1), shape[own - 1]) if own else 1
    return (*(1,) * (own - 1), *((n,) if own else ()), *shape[own:])


def _cell(resolved: BoundVariable, layout: str) -> tuple[int, ...]:
    """Return the shape that every result has, or the largest extents for padding."""
    bound = resolved.bound
    live = np.flatnonzero(~bound.null)
    if not len(live):
        return ()
    ndim, shape = bound.ndim[live], bound.shape[live]
    if layout == "pad":
        if (ndim != ndim[0]).any():
            raise ValueError(
                f"the results have {sorted(set(ndim.tolist()))} dimensions, which no padding "
                "makes equal; use layout='ragged'"
            )
        return tuple(shape[:, : int(ndim[0])].max(axis=0).tolist())
    if (ndim != ndim[0]).any() or (shape != shape[0]).any():
        found = {
            tuple(s[:n])
            for n, s in zip(ndim[:10_000].tolist(), shape[:10_000].tolist(), strict=True)
        }
        some = ", ".join(map(str, sorted(found)[:5])) + (", ..." if len(found) > 5 else "")
        pad = "" if (ndim != ndim[0]).any() else " or layout='pad'"
        raise ValueError(
            f"the references select different shapes ({some}), so they do not stack; use "
            f"layout='ragged'{pad}, or select references of one shape"
        )
    return tuple(shape[0, : int(ndim[0])].tolist())


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


def _item_dims(dtype: np.dtype[Any], taken: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
    """Name the axes that an HDF5 array type adds behind those of the dataset."""
    names: list[Hashable] = []
    for _ in item_dtype(dtype)[1]:
        names.append(_free_name("item", (*taken, *names)))
    return tuple(names)


def _chunks_of_cells(
    chunks: Any,
    resolved: BoundVariable,
    inner: tuple[Hashable, ...],
    cell: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Any:
    """Turn the user's chunks into chunks of references, each with whole results."""
    outer = resolved.dims
    check_chunks(chunks, (*outer, *inner))
    whole = {**dict.fromkeys(outer, -1), **dict.fromkeys(inner, -1)}
    if chunks == "auto":
        n = len(resolved.bound.ndim)
        # Dask cuts what has no bytes to divide by, and what fits needs no cut.
        if n * math.prod(cell) * dtype.itemsize <= auto_chunk_nbytes():
            return whole
        shared = {}
        if not dtype.hasobject:
            shared = _shared_axis_chunks(resolved, inner, cell, dtype.itemsize)
        return {**whole, **dict.fromkeys(outer, "auto"), **shared}
    if isinstance(chunks, dict):
        return {**whole, **dict.fromkeys(outer, "auto"), **chunks}
    if not outer:
        return dict.fromkeys(inner, chunks)
    return {**whole, **dict.fromkeys(outer, chunks)}


def _shared_axis_chunks(
    resolved: BoundVariable, inner: tuple[Hashable, ...], cell: tuple[int, ...], itemsize: int
) -> dict[Hashable, Any]:
    """Cut a large result along an axis that all regions share, at chunk borders.

    Blocks along the references would each decode all chunks of that axis, as
    with boxes in an image over all frames of a movie.
    """
    limit = auto_chunk_nbytes()
    n = len(resolved.bound.ndim)
    if resolved.bound.n_targets != 1 or not resolved.dims:
        return {}
    (target,) = resolved.bound.targets
    chunks = target.layout.chunks
    if chunks is None or len(chunks) != len(cell) or resolved.bound.null.any():
        return {}
    start, stop = target.regions.bounds()
    whole = (stop - start == np.array(cell)).all(axis=0)
    shared = (start == start[:1]).all(axis=0) & whole
    for axis in np.flatnonzero(shared).tolist():
        first, extent = int(start[0, axis]), cell[axis]
        row_nbytes = n * math.prod(cell) // max(extent, 1) * itemsize
        n_chunks = max(limit // (row_nbytes * chunks[axis]), 1)
        step = n_chunks * chunks[axis]
        if step >= extent:
            continue
        borders = np.arange(first // step * step + step, first + extent, step) - first
        sizes = np.diff(np.concatenate([[0], borders, [extent]])).tolist()
        # References are cut too where one chunk along the axis is still too much.
        outer = "auto" if row_nbytes * chunks[axis] > limit else -1
        return {**dict.fromkeys(resolved.dims, outer), inner[axis]: tuple(sizes)}
    return {}


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
            t.dataset.location == first.dataset.location
            and t.coords.get(name) == (address, dims)
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
    location = resolved.targets[0].dataset.location
    layout = StoredObject(location, address).layout
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
    location = resolved.targets[0].dataset.location
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


def resolve_ragged(
    resolved: BoundVariable,
    own: dict[Hashable, Any],
    chunks: Any,
    coords: bool,
    dtype: Any = None,
) -> xr.Dataset:
    """Return values along one sample dimension, in the CF contiguous ragged form."""
    bound, references = resolved.bound, resolved.references
    row_size = bound.npoints.reshape(references.shape)
    name = _free_name(resolved.name or "values", resolved.dims)
    sample = _free_name(SAMPLE_DIM, (*resolved.dims, name))
    check_chunks(chunks, (*resolved.dims, sample))
    form = choose_form(resolved, dtype)
    if form.decode is not None and not form.is_lazily_decoded:
        form = Form(form.decode.dtype, decoders=resolved.decoders)
    data = RaggedArray(references, row_size, form.dtype, decoders=form.decoders, bound=bound)
    item_dims = _item_dims(form.dtype, (*resolved.dims, sample))
    variable = _variable_of(resolved, form.decode, (sample, *item_dims), data)
    if chunks is not None:
        itemsize = form.dtype.itemsize
        sizes = _sample_chunks(chunks, row_size.reshape(-1), resolved.dims, itemsize, sample)
        wanted = {sample: sizes, **dict.fromkeys(item_dims, -1)}
        variable = chunk_variable(variable, data, wanted, "ragged", form.decode)
    widest = bound.shape.shape[1]
    shape = bound.shape.reshape(*references.shape, widest)
    out_coords = dict(own)
    if coords:
        out_coords |= _place_coords(resolved, _ragged_dims(resolved), own)
    return xr.Dataset(
        {
            name: variable,
            _free_name("row_size", (*resolved.dims, name)): (
                resolved.dims,
                row_size,
                {"sample_dimension": sample},
            ),
            _free_name("row_shape", (*resolved.dims, name)): (
                (*resolved.dims, _free_name("axis", resolved.dims)),
                shape,
            ),
        },
        coords=out_coords,
    )


def _ragged_dims(resolved: BoundVariable) -> tuple[Hashable, ...]:
    ranks = resolved.bound.ranks
    return _cell_dims(resolved, ranks.pop()) if len(ranks) == 1 else ()


def _free_name(name: Hashable, taken: Sequence[Hashable]) -> Hashable:
    k, candidate = 1, name
    while candidate in taken:
        candidate = f"{name}_{k}"
        k += 1
    return candidate


def _sample_chunks(
    chunks: Any,
    row_size: IntArray,
    dims: tuple[Hashable, ...],
    itemsize: int,
    sample: Hashable,
) -> Any:
    """Cut samples into blocks at row borders, or as the user says of the samples.

    An int counts references; "auto" fills dask's chunk size.
    """
    ends = np.cumsum(row_size)
    n = int(ends[-1]) if len(ends) else 0
    if isinstance(chunks, dict):
        if sample in chunks and chunks[sample] != "auto":
            return chunks[sample]
        chunks = next((chunks[d] for d in dims if d in chunks), "auto")
    if isinstance(chunks, int):
        if chunks == -1:
            return (n,)
        cuts = ends[chunks - 1 :: chunks]
    else:
        limit = max(auto_chunk_nbytes() // max(itemsize, 1), 1)
        if n <= limit:
            return (n,)
        # The last row that ends within each multiple of the limit.
        at = np.searchsorted(ends, np.arange(limit, n, limit), side="right") - 1
        cuts = ends[np.unique(np.clip(at, 0, None))]
    sizes = np.diff(np.unique(np.concatenate([[0], cuts, [n]])))
    return tuple(int(s) for s in sizes) or (0,)
