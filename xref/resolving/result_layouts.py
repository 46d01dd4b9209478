"""Resolved references as stacked, padded or ragged lazy arrays.

In: `BoundVariable` references. Out: DataArrays and Datasets with the targets'
dimensions, coordinates and CF decoding. The lazy arrays hold places and decode
again where they are computed.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from xref import engine
from xref.resolving.binding import BoundVariable
from xref.resolving.graph import check_chunks, chunk_variable
from xref.resolving.padding import PaddingMask
from xref.resolving.ragged_results import RaggedArray
from xref.resolving.result_chunks import _chunks_of_cells, _sample_chunks, _stored_chunks
from xref.resolving.result_coords import _cell_dims, _place_coords, _target_coords
from xref.resolving.result_variables import (
    Form,
    _free_name,
    _item_dims,
    _stack,
    _variable_of,
    choose_form,
)

POINT_DIM = "point"
SAMPLE_DIM = "sample"


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
