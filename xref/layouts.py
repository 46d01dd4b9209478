"""Resolved references as stacked, padded or ragged lazy arrays.

In: `Resolved` references. Out: DataArrays and Datasets with the targets'
dimensions, coordinates and CF decoding. The lazy arrays hold places and decode
again where they are computed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from xref.attribute_values import warn_unreadable
from xref.bind import Decoder, Resolved, decode_variable
from xref.columns import IntArray
from xref.decode import References
from xref.errors import SelectionError
from xref.gather import BoundReferences
from xref.graph import auto_chunk_nbytes, check_chunks, chunk_variable
from xref.h5data import dataset_facts, dataset_layout
from xref.layout import item_dtype, items
from xref.lazy import is_decoded, lazily_indexed
from xref.projection import project
from xref.references import ReferenceArray
from xref.regions import concat_tables, empty_table
from xref.results import Fill, SampleArray, StackArray, ValidArray
from xref.targets import open_target

POINT_DIM = "point"
SAMPLE_DIM = "sample"


def default_fill(
    dtype: np.dtype[Any], raw_dtype: np.dtype[Any], fill_value: Any, bound: BoundReferences
) -> Any:
    """Return the decoded value for elements without data.

    NaN or NaT; for integers and the like the dataset's own fill value.
    """
    if fill_value is not None:
        return fill_value
    if dtype.kind in "fcmMO":
        return _missing(dtype)
    layout = next(bound.layouts, None)
    if layout is not None and layout.dtype == dtype == raw_dtype:
        return layout.fill_value
    return np.zeros((), dtype=dtype)[()]


def _missing(dtype: np.dtype[Any]) -> Any:
    """Return what stands for a missing value: NaT, no text, else NaN."""
    if dtype.kind in "mM":
        return np.array("NaT", dtype=dtype)[()]
    return "" if dtype.kind == "O" else np.nan


def resolve_cells(
    resolved: Resolved,
    own: dict[Hashable, Any],
    layout: str,
    chunks: Any,
    coords: bool,
    fill_value: Any,
) -> Any:
    """Return results of one shape as a DataArray, or padded ones as a Dataset.

    ``own`` are the reference variable's coordinates; the others are as in
    `xref.accessor.ReferenceAccessor.resolve`.
    """
    bound, references = resolved.bound, resolved.references
    cell = _cell(resolved, layout)
    uniform = layout == "stack"
    inner = _cell_dims(resolved, len(cell))
    item_dims = _item_dims(resolved, (*resolved.dims, *inner))
    dims = resolved.dims + inner
    if uniform and not bound.null.any():
        data = StackArray(references, cell, resolved.dtype, bound=bound)
        variable = xr.Variable(dims + item_dims, lazily_indexed(data), resolved.attributes)
        variable = decode_variable(resolved.name, variable, references.options)
        decode = _decoder(resolved, variable, data)
    else:
        decode = None
        variable, data = _filled_variable(resolved, cell, dims + item_dims, fill_value, uniform)
    ref_chunks = _chunks_of_cells(chunks, resolved, inner + item_dims, cell)
    out_coords = dict(own)
    if coords:
        out_coords |= _place_coords(resolved, inner, own)
        if uniform:
            out_coords |= _target_coords(resolved, inner, cell, own)
    if chunks is not None:
        variable = chunk_variable(variable, data, ref_chunks, "resolve", decode)
    stored = _stored_chunks(variable.shape, len(resolved.dims), variable.dtype.itemsize)
    values = xr.DataArray(variable, coords=out_coords, name=resolved.name)
    values.encoding = {**variable.encoding, "chunksizes": stored}
    if uniform:
        return values
    mask = ValidArray(references, cell)
    valid = xr.Variable(dims, lazily_indexed(mask))
    if chunks is not None:
        same = dict(zip(variable.dims, variable.chunks or (), strict=False))
        valid = chunk_variable(valid, mask, {d: same[d] for d in dims}, "valid")
    name = _free_name(resolved.name or "values", dims)
    return xr.Dataset({name: values, _free_name("valid", (*dims, name)): valid})


STORED_NBYTES = 1 << 20
"""Bytes of a chunk of whole regions, where one region is not larger."""


def _stored_chunks(shape: tuple[int, ...], own: int, itemsize: int) -> tuple[int, ...] | None:
    """Return chunks of whole regions, for a file that results are written to."""
    if not shape or 0 in shape:
        return None
    nbytes = math.prod(shape[own:]) * max(itemsize, 1)
    n = min(max(STORED_NBYTES // nbytes, 1), shape[own - 1]) if own else 1
    return (*(1,) * (own - 1), *((n,) if own else ()), *shape[own:])


def _decoder(
    resolved: Resolved, variable: xr.Variable, data: StackArray | SampleArray
) -> Decoder | None:
    """Return what makes the values of a variable of those of its lazy array."""
    if not is_decoded(variable, data):
        return None
    return Decoder(resolved.attributes, resolved.references.options)


def _filled_variable(
    resolved: Resolved,
    cell: tuple[int, ...],
    dims: tuple[Hashable, ...],
    fill_value: Any,
    uniform: bool,
) -> tuple[xr.Variable, StackArray]:
    """Return a variable some elements of which are filled, after decoding."""
    references = resolved.references
    decode = Decoder(resolved.attributes, references.options)
    sample = xr.Variable(
        ("sample",), items(np.zeros(1, dtype=resolved.dtype)).reshape(-1), resolved.attributes
    )
    decoded = decode_variable(resolved.name, sample, references.options)
    value = default_fill(decoded.dtype, resolved.dtype, fill_value, resolved.bound)
    fill = Fill(decode, value, _dtype_with(decoded.dtype, value))
    data = StackArray(references, cell, resolved.dtype, fill=fill, padded=not uniform)
    return xr.Variable(dims, lazily_indexed(data), decoded.attrs, decoded.encoding), data


def _dtype_with(dtype: np.dtype[Any], value: Any) -> np.dtype[Any]:
    """Return the dtype that holds values of ``dtype`` and a fill value, unchanged."""
    if dtype.kind not in "biufc":
        return dtype
    unfit = (TypeError, ValueError, OverflowError)
    with np.errstate(invalid="ignore"), contextlib.suppress(*unfit):
        kept = np.asarray(value).astype(dtype)
        if kept == value or (dtype.kind in "fc" and np.isnan(value)):
            return dtype
    return np.result_type(dtype, np.asarray(value).dtype)


def _cell(resolved: Resolved, layout: str) -> tuple[int, ...]:
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


def _cell_dims(resolved: Resolved, ndim: int) -> tuple[Hashable, ...]:
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


def _item_dims(resolved: Resolved, taken: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
    """Name the axes that an HDF5 array type adds behind those of the dataset."""
    names: list[Hashable] = []
    for _ in item_dtype(resolved.dtype)[1]:
        names.append(_free_name("item", (*taken, *names)))
    return tuple(names)


def _chunks_of_cells(
    chunks: Any, resolved: Resolved, inner: tuple[Hashable, ...], cell: tuple[int, ...]
) -> Any:
    """Turn the user's chunks into chunks of references, each with whole results."""
    outer = resolved.dims
    check_chunks(chunks, (*outer, *inner))
    whole = {**dict.fromkeys(outer, -1), **dict.fromkeys(inner, -1)}
    if chunks == "auto":
        n = len(resolved.bound.ndim)
        # Dask cuts what has no bytes to divide by, and what fits needs no cut.
        if n * math.prod(cell) * resolved.dtype.itemsize <= auto_chunk_nbytes():
            return whole
        shared = {} if resolved.dtype.hasobject else _shared_axis_chunks(resolved, inner, cell)
        return {**whole, **dict.fromkeys(outer, "auto"), **shared}
    if isinstance(chunks, dict):
        return {**whole, **dict.fromkeys(outer, "auto"), **chunks}
    if not outer:
        return dict.fromkeys(inner, chunks)
    return {**whole, **dict.fromkeys(outer, chunks)}


def _shared_axis_chunks(
    resolved: Resolved, inner: tuple[Hashable, ...], cell: tuple[int, ...]
) -> dict[Hashable, Any]:
    """Cut a large result along an axis that all regions share, at chunk borders.

    Blocks along the references would each decode all chunks of that axis, as
    with boxes in an image over all frames of a movie.
    """
    limit = auto_chunk_nbytes()
    n, itemsize = len(resolved.bound.ndim), resolved.dtype.itemsize
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
    resolved: Resolved, inner: tuple[Hashable, ...], own: dict[Hashable, Any]
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
    resolved: Resolved,
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
    resolved: Resolved, name: str, address: int, dims: tuple[str | None, ...]
) -> bool:
    """Tell whether a coordinate has the extent of the axes that it belongs to."""
    location = resolved.targets[0].location
    layout = dataset_layout(location, address)
    for target, bound in zip(resolved.targets, resolved.bound.targets, strict=True):
        extent = tuple(bound.layout.shape[target.dims.index(dim)] for dim in dims)
        if layout.shape != extent:
            # As where an unlimited dimension has grown for some variables only.
            problem = SelectionError(f"it has shape {layout.shape}, its axes have {extent}")
            warn_unreadable(f"{location.filename}: coordinate {name!r}", problem)
            return False
    return not layout.reference_kind


def _coordinate(
    resolved: Resolved,
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
    columns = References.of_file(location, np.where(null, 0, address).astype(np.uint64), shadow)
    references = ReferenceArray(shape, kind="region", columns=columns, options=options)
    facts = dataset_facts(location, address)
    attributes = open_target(location, address, facts, options).attributes
    dtype = facts.layout.dtype
    all_dims = (() if same else resolved.dims) + part_dims
    if not null.any():
        array = StackArray(references, part_cell, dtype)
        variable = xr.Variable(all_dims, lazily_indexed(array), attributes)
        return decode_variable(label, variable, options)
    decode = Decoder(attributes, options)
    decoded = decode(np.zeros(1, dtype=dtype)).dtype
    value = _missing(decoded)
    fill = Fill(decode, value, _dtype_with(decoded, value))
    return xr.Variable(
        all_dims, lazily_indexed(StackArray(references, part_cell, dtype, fill=fill))
    )


def resolve_ragged(
    resolved: Resolved, own: dict[Hashable, Any], chunks: Any, coords: bool
) -> xr.Dataset:
    """Return values along one sample dimension, in the CF contiguous ragged form."""
    bound, references = resolved.bound, resolved.references
    row_size = bound.npoints.reshape(references.shape)
    name = _free_name(resolved.name or "values", resolved.dims)
    sample = _free_name(SAMPLE_DIM, (*resolved.dims, name))
    check_chunks(chunks, (*resolved.dims, sample))
    data = SampleArray(references, row_size, resolved.dtype, bound=bound)
    item_dims = _item_dims(resolved, (*resolved.dims, sample))
    variable = xr.Variable(
        (sample, *item_dims), lazily_indexed(data), dict(resolved.attributes)
    )
    variable = decode_variable(resolved.name, variable, references.options)
    if chunks is not None:
        sizes = _sample_chunks(chunks, row_size.reshape(-1), resolved, sample)
        wanted = {sample: sizes, **dict.fromkeys(item_dims, -1)}
        decode = _decoder(resolved, variable, data)
        variable = chunk_variable(variable, data, wanted, "ragged", decode)
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


def _ragged_dims(resolved: Resolved) -> tuple[Hashable, ...]:
    ranks = resolved.bound.ranks
    return _cell_dims(resolved, ranks.pop()) if len(ranks) == 1 else ()


def _free_name(name: Hashable, taken: Sequence[Hashable]) -> Hashable:
    k, candidate = 1, name
    while candidate in taken:
        candidate = f"{name}_{k}"
        k += 1
    return candidate


def _sample_chunks(
    chunks: Any, row_size: IntArray, resolved: Resolved, sample: Hashable
) -> Any:
    """Cut samples into blocks at row borders, or as the user says of the samples.

    An int counts references; "auto" fills dask's chunk size.
    """
    ends = np.cumsum(row_size)
    n = int(ends[-1]) if len(ends) else 0
    if isinstance(chunks, dict):
        if sample in chunks and chunks[sample] != "auto":
            return chunks[sample]
        chunks = next((chunks[d] for d in resolved.dims if d in chunks), "auto")
    if isinstance(chunks, int):
        if chunks == -1:
            return (n,)
        cuts = ends[chunks - 1 :: chunks]
    else:
        limit = max(auto_chunk_nbytes() // max(resolved.dtype.itemsize, 1), 1)
        if n <= limit:
            return (n,)
        # The last row that ends within each multiple of the limit.
        at = np.searchsorted(ends, np.arange(limit, n, limit), side="right") - 1
        cuts = ends[np.unique(np.clip(at, 0, None))]
    sizes = np.diff(np.unique(np.concatenate([[0], cuts, [n]])))
    return tuple(int(s) for s in sizes) or (0,)
