"""Statistics and functions of each region, as lazy arrays.

In: a reference variable, and a statistic by name or a function of the user. Out: a lazy
DataArray with one result for each reference. The dtype of the results of a function is found by
calling it with a small array of ones, as Dask does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref.arrays import results_dtype
from xref.engine import Decoding, lazily_indexed
from xref.hdf5 import unfold_subarray
from xref.references import ReferenceArray
from xref.resolving.binding import BoundVariable, bind, warn_of_units
from xref.resolving.bound_references import BoundReferences
from xref.resolving.dask_graph import auto_chunk_nbytes, check_chunks, chunk_variable
from xref.resolving.read_results import decoding_rows
from xref.resolving.reductions import PerRegion, RegionResults, Statistic, function_name

Call: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function of the user, its further arguments and its keyword arguments."""

SAMPLE_LENGTH = 64
"""Longest axis of the array of ones with which a function is called to find its dtype."""


def call_function(
    array: xr.DataArray,
    references: ReferenceArray,
    call: Call,
    dtype: Any,
    sizes: dict[str, int],
    chunks: Any,
    on_null: str,
) -> xr.DataArray:
    """Call a function with each region; see `xref.resolving.accessor`."""
    resolved, array = _bind(array, references, on_null)
    if dtype is None:
        dtype = _infer_dtype(*call, resolved)
    dtype = np.dtype(dtype)
    if dtype.itemsize == 0:  # str and bytes without a length: NumPy would truncate the values
        dtype = np.dtype(object)
    function = PerRegion(*call, dtype, tuple(sizes.values()))
    return _results(resolved, array, dtype, function, sizes, chunks, "map", {})


def compute_statistic(
    array: xr.DataArray, references: ReferenceArray, name: str, chunks: Any, on_null: str
) -> xr.DataArray:
    """Compute a statistic of each region; see `xref.resolving.accessor`."""
    resolved, array = _bind(array, references, on_null)
    dtype = _statistic_dtype(name, resolved)
    if name != "count":
        warn_of_units(resolved)
    keep = xr.get_options()["keep_attrs"]  # type: ignore[no-untyped-call]
    attributes = resolved.attributes if keep is True else {}
    return _results(resolved, array, dtype, Statistic(name), {}, chunks, name, attributes)


def _bind(
    array: xr.DataArray, references: ReferenceArray, on_null: str
) -> tuple[BoundVariable, xr.DataArray]:
    resolved, kept = bind(references, array.dims, on_null, array.name)
    return resolved, array if kept is None else array[{array.dims[0]: kept}]


def _statistic_dtype(name: str, resolved: BoundVariable) -> np.dtype[Any]:
    """Return the dtype of a statistic of the values of all targets.

    TypeError if values of a target have no such statistic, or if there is no common dtype.
    """
    any_empty = bool((resolved.bound.npoints == 0).any())
    dtypes = []
    for dtype, item_shape in resolved.decoders.forms or [(np.dtype(float), ())]:
        if item_shape:
            raise TypeError(
                f"{resolved.label}: there is no {name} of elements that are arrays; resolve "
                "the references, or use .h5ref.map()"
            )
        result_dtype = Statistic(name).result_dtype(dtype, any_empty)
        if result_dtype is None:
            raise TypeError(
                f"{resolved.label}: there is no {name} of values of type {dtype}; select other "
                "references, or use .h5ref.map()"
            )
        dtypes.append(result_dtype)
    common = results_dtype(dtypes)
    if common is None:
        names = ", ".join(str(dtype) for dtype, _ in resolved.decoders.forms)
        raise TypeError(
            f"{resolved.label} points at datasets of types {names}, whose {name} has no "
            "common type; select references of one type"
        )
    return common


def _infer_dtype(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    resolved: BoundVariable,
) -> np.dtype[Any]:
    """Call a function with ones of the shape of one region of each type, as Dask does."""
    bound, decoders = resolved.bound, resolved.decoders
    which = decoding_rows(bound, decoders)
    forms = np.where(which >= 0, decoders.form_of_kinds[which], -1) if len(which) else which
    dtypes: list[np.dtype[Any]] = []
    for form in range(max(len(decoders.forms), 1)):
        kinds = zip(decoders.kinds, decoders.form_of_kinds, strict=True)
        decoding = next((kind for kind, number in kinds if number == form), None)
        rows = np.flatnonzero(forms == form)
        row = int(rows[np.argmax(bound.npoints[rows] > 0)]) if len(rows) else None
        shape = () if row is None else tuple(bound.shape[row, : int(bound.ndim[row])].tolist())
        element = np.ones(1) if decoding is None else _sample_of(decoding)
        values = _repeated(element, _sample_shape(shape))
        try:
            result = func(values, *args, **kwargs)
        except Exception as error:
            raise ValueError(
                f"the dtype of the results of {function_name(func)} for {resolved.label} could "
                f"not be found by calling it with ones of type {values.dtype} and shape "
                f"{values.shape}: {type(error).__name__}: {error}; pass dtype="
            ) from error
        is_object = isinstance(result, dict | list | str | bytes)
        dtypes.append(np.dtype(object) if is_object else np.asarray(result).dtype)
    common = results_dtype(dtypes)
    # NumPy text has the length of the sample, and a common dtype may not exist: use objects.
    return np.dtype(object) if common is None or common.kind in "SU" else common


def _sample_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a smaller shape: finding a dtype needs no array as large as a large region."""
    longest = SAMPLE_LENGTH
    while math.prod(min(n, longest) for n in shape) > SAMPLE_LENGTH**2:
        longest -= 1
    return tuple(min(n, longest) for n in shape)


def _repeated(element: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return an array of a shape that repeats the only element of another array."""
    values = np.empty(shape + element.shape[1:], dtype=element.dtype)
    if values.dtype.kind != "O":
        values[...] = element[0]
        return values
    for index in np.ndindex(shape):
        values[index] = element[0]  # the element may be a sequence, which is one value
    return values


def _sample_of(decoding: Decoding) -> npt.NDArray[Any]:
    """Return one decoded element: 1 if elements are numbers, else a missing value."""
    one = np.zeros(1, dtype=decoding.raw_dtype)
    values = unfold_subarray(one)
    if values.dtype.kind in "biufc":
        values[...] = 1
    elif values.dtype.hasobject:
        missing = np.empty((), dtype=values.dtype)
        missing[()] = decoding.missing
        values[...] = missing
    return decoding(values)


def _results(
    resolved: BoundVariable,
    array: xr.DataArray,
    dtype: np.dtype[Any],
    function: Callable[[Any, BoundReferences], Any],
    sizes: dict[str, int],
    chunks: Any,
    operation: str,
    attributes: dict[str, Any],
) -> xr.DataArray:
    """Make the lazy array that has one result of shape ``sizes`` for each reference."""
    references, decoders, bound = resolved.references, resolved.decoders, resolved.bound
    shape = tuple(sizes.values())
    data = RegionResults(references, dtype, decoders, function, shape, bound=bound)
    taken = [name for name in sizes if name in resolved.dims]
    if taken:
        raise ValueError(
            f"output_sizes names {taken}, which {resolved.label} has already; choose others"
        )
    dims = (*resolved.dims, *sizes)
    variable = xr.Variable(dims, lazily_indexed(data), attributes)
    check_chunks(chunks, dims)
    if chunks is not None:
        by_dim = {**_result_chunks(chunks, resolved), **dict.fromkeys(sizes, -1)}
        variable = chunk_variable(variable, data, by_dim, operation)
    coords = {k: v for k, v in array.coords.items() if set(v.dims) <= set(dims)}
    return xr.DataArray(variable, coords=coords, name=array.name)


def _result_chunks(chunks: Any, resolved: BoundVariable) -> dict[Any, Any]:
    """Return chunks by dimension; for "auto", the regions of a block fill Dask's chunk size."""
    if isinstance(chunks, dict):
        return {**dict.fromkeys(resolved.dims, -1), **chunks}
    if not resolved.dims:
        return {}
    if chunks != "auto":
        return dict.fromkeys(resolved.dims, chunks)
    shape = resolved.references.shape
    nbytes = int(resolved.bound.npoints.sum()) * max(resolved.widest.itemsize, 1)
    n_blocks = max(-(-nbytes // auto_chunk_nbytes()), 1)
    return {**dict.fromkeys(resolved.dims, -1), resolved.dims[0]: max(shape[0] // n_blocks, 1)}
