"""Bound references as stacked, padded or ragged DataArrays and Datasets.

In: a `BoundVariable`, the layout and the chunks. Out: xarray objects with the dimensions,
coordinates and CF decoding of the targets. Their lazy arrays hold the locations of references
and decode them again when values are read.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from xref import engine
from xref.arrays import IntArray
from xref.resolving.binding import BoundVariable
from xref.resolving.bound_references import Shape
from xref.resolving.dask_graph import auto_chunk_nbytes, check_chunks, chunk_variable
from xref.resolving.element_coords import element_coords, sample_coords
from xref.resolving.lazy_results import CommonDecoding, RaggedArray
from xref.resolving.padding import PaddingMask, find_result_shape
from xref.resolving.result_coords import start_coords, target_coords
from xref.resolving.result_variables import (
    Coords,
    DimNames,
    choose_common_decoding,
    item_dims,
    lazy_variable,
    result_dims,
    stack_variable,
)

SAMPLE_DIM = "sample"


def resolve_stacked(
    refs: BoundVariable,
    reference_coords: Coords,
    layout: str,
    chunks: Any,
    coords: bool,
    fill_value: Any,
    dtype: Any = None,
) -> Any:
    """Return results of one shape as a DataArray, or padded results as a Dataset.

    ``reference_coords`` are the coordinates of the reference variable. The other parameters
    are those of `xref.resolving.accessor.ReferenceAccessor.resolve`.
    """
    bound = refs.bound
    padded = layout == "pad"
    shape = find_result_shape(bound, padded)
    # A fill value of the user widens the type of padded results even if none is filled.
    fills = bool(bound.null.any()) or (padded and fill_value is not None)
    fills = fills or bool((bound.shape[:, : len(shape)] != shape).any())
    inner = result_dims(refs, len(shape))
    dims = refs.dims + inner
    variable, data, decode = stack_variable(
        refs, shape, dims, fills=fills, fill_value=fill_value, dtype=dtype, padded=padded
    )
    all_inner = inner + variable.dims[len(dims) :]
    wanted = _stacked_chunks(chunks, refs, all_inner, shape, data.raw_dtype)
    all_coords = dict(reference_coords)
    if coords:
        all_coords |= start_coords(refs, inner, reference_coords)
        if not padded:
            all_coords |= target_coords(refs, inner, shape, reference_coords)
    if chunks is not None:
        variable = chunk_variable(variable, data, wanted, "resolve", decode)
    values = xr.DataArray(variable, coords=all_coords, name=refs.name)
    if coords:
        found = element_coords(refs, inner, shape, all_coords)
        if found:
            # Without an index: results of different regions stay aligned by order.
            values = values.assign_coords(xr.Coordinates(found, indexes={}))
    values.encoding = dict(variable.encoding)
    if variable.dtype.kind != "S":  # is stored with one more axis, of characters
        values.encoding["chunksizes"] = _storage_chunks(variable, len(refs.dims))
    if not padded:
        return values
    mask = PaddingMask(refs.references, shape)
    valid = xr.Variable(dims, engine.lazily_indexed(mask))
    if chunks is not None:
        same = dict(zip(variable.dims, variable.chunks or (), strict=False))
        valid = chunk_variable(valid, mask, {d: same[d] for d in dims}, "valid")
    name = engine.free_name(refs.name or "values", dims)
    valid_name = engine.free_name("valid", (*dims, *values.coords, name))
    return xr.Dataset({name: values, valid_name: valid})


def resolve_ragged(
    refs: BoundVariable, reference_coords: Coords, chunks: Any, coords: bool, dtype: Any = None
) -> xr.Dataset:
    """Return values along one sample dimension, as CF contiguous ragged arrays."""
    bound, references, dims = refs.bound, refs.references, refs.dims
    row_size = bound.npoints.reshape(references.shape)
    name = engine.free_name(refs.name or "values", dims)
    sample = engine.free_name(SAMPLE_DIM, (*dims, name))
    check_chunks(chunks, (*dims, sample))
    common = choose_common_decoding(refs, dtype)
    if common.decode is not None and not common.is_lazily_decoded:
        common = CommonDecoding(common.decode.dtype, decoders=refs.decoders)
    data = RaggedArray(references, row_size, common, bound)
    items = item_dims(common.dtype, (*dims, sample))
    variable = lazy_variable(refs, common.decode, (sample, *items), data)
    sizes = None
    if chunks is not None:
        itemsize = common.dtype.itemsize
        sizes = _sample_chunks(chunks, row_size.reshape(-1), dims, itemsize, sample)
        wanted = {sample: sizes, **dict.fromkeys(items, -1)}
        variable = chunk_variable(variable, data, wanted, "ragged", common.decode)
    names = [engine.free_name(n, (*dims, name)) for n in ("row_size", "row_shape")]
    all_coords = dict(reference_coords)
    if coords:
        ranks = bound.ranks
        inner = result_dims(refs, ranks.pop()) if len(ranks) == 1 else ()
        all_coords |= start_coords(refs, inner, reference_coords)
        taken = (name, *names, *items)
        all_coords |= sample_coords(refs, sample, sizes, taken, all_coords)
    shape_dims = (*dims, engine.free_name("axis", (*dims, *all_coords)))
    size_attributes = {"sample_dimension": sample}
    variables = {
        name: variable,
        names[0]: (dims, row_size, size_attributes),
        names[1]: _row_shape(refs, shape_dims),
    }
    return xr.Dataset(variables, coords=all_coords)


def _row_shape(refs: BoundVariable, dims: DimNames) -> xr.Variable:
    """Return the shape of each result; -1 stands for an axis that the result does not have."""
    bound = refs.bound
    width = bound.shape.shape[1]
    shape = np.where(np.arange(width) < bound.ndim[:, None], bound.shape, -1)
    # An attribute ``_FillValue`` would turn the lengths into floats when a file is opened.
    attributes = {
        "long_name": "shape of the values of each reference",
        "comment": "-1: the values of the reference do not have the axis",
    }
    return xr.Variable(dims, shape.reshape(*refs.references.shape, width), attributes)


STORED_NBYTES = 1 << 20
"""Bytes of a chunk of whole results in a file; one result may be larger."""


def _storage_chunks(variable: xr.Variable, n_outer: int) -> Shape | None:
    """Return HDF5 chunks of whole results, for a file that results are written to."""
    shape = variable.shape
    if not shape or 0 in shape:
        return None
    nbytes = math.prod(shape[n_outer:]) * max(variable.dtype.itemsize, 1)
    last = () if not n_outer else (min(max(STORED_NBYTES // nbytes, 1), shape[n_outer - 1]),)
    return (*(1,) * (n_outer - 1), *last, *shape[n_outer:])


def _stacked_chunks(
    chunks: Any, refs: BoundVariable, inner: DimNames, result_shape: Shape, dtype: np.dtype[Any]
) -> Any:
    """Return Dask chunks of references, each with whole results, from those of the user."""
    outer = refs.dims
    check_chunks(chunks, (*outer, *inner))
    whole = {**dict.fromkeys(outer, -1), **dict.fromkeys(inner, -1)}
    if chunks == "auto":
        # Dask cannot divide elements without bytes, and results that fit stay whole.
        nbytes = len(refs.bound.ndim) * math.prod(result_shape) * dtype.itemsize
        if nbytes <= auto_chunk_nbytes():
            return whole
        shared = {}
        if not dtype.hasobject:
            shared = _shared_axis_chunks(refs, inner, result_shape, nbytes)
        return {**whole, **dict.fromkeys(outer, "auto"), **shared}
    if isinstance(chunks, dict):
        return {**whole, **dict.fromkeys(outer, "auto"), **chunks}
    if not outer:
        return dict.fromkeys(inner, chunks)
    return {**whole, **dict.fromkeys(outer, chunks)}


def _shared_axis_chunks(
    refs: BoundVariable, inner: DimNames, result_shape: Shape, nbytes: int
) -> Coords:
    """Cut a large result at chunk borders along an axis that all regions select alike.

    An example is boxes in an image over all frames of a movie. Each block along the
    references would decode all chunks along the axis of frames.
    """
    limit, bound = auto_chunk_nbytes(), refs.bound
    if bound.n_targets != 1 or not refs.dims or bound.null.any():
        return {}
    (target,) = bound.targets
    chunks = target.layout.chunks
    if chunks is None or len(chunks) != len(result_shape):
        return {}
    start, stop = target.regions.bounds()
    whole = (stop - start == np.array(result_shape)).all(axis=0)
    shared = (start == start[:1]).all(axis=0) & whole
    for axis in np.flatnonzero(shared).tolist():
        first, extent = int(start[0, axis]), result_shape[axis]
        chunk_nbytes = nbytes // max(extent, 1) * chunks[axis]  # one chunk along the axis
        step = max(limit // chunk_nbytes, 1) * chunks[axis]
        if step >= extent:
            continue
        borders = np.arange(first // step * step + step, first + extent, step) - first
        sizes = np.diff(np.concatenate([[0], borders, [extent]])).tolist()
        # References are cut too if one chunk along the axis is still too large.
        outer = "auto" if chunk_nbytes > limit else -1
        return {**dict.fromkeys(refs.dims, outer), inner[axis]: tuple(sizes)}
    return {}


def _sample_chunks(
    chunks: Any, row_size: IntArray, dims: DimNames, itemsize: int, sample: Hashable
) -> Any:
    """Return Dask chunks of samples: between rows, or as the user chose for the samples.

    An int is a number of references; "auto" fills the chunk size of Dask.
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
        rows = np.searchsorted(ends, np.arange(limit, n, limit), side="right") - 1
        cuts = ends[np.unique(np.clip(rows, 0, None))]
    sizes = np.diff(np.unique(np.concatenate([[0], cuts, [n]])))
    return tuple(int(s) for s in sizes) or (0,)
