"""Lazy variables of results: their type, decoding, encoding and dimension names.

In: a `BoundVariable`. Out: an `xarray.Variable` over a lazy array of
`xref.resolving.lazy_results`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from xref import engine
from xref.arrays import is_same_value
from xref.hdf5 import item_dtype
from xref.resolving.binding import BoundVariable
from xref.resolving.bound_references import Shape
from xref.resolving.lazy_results import CommonDecoding, StackArray
from xref.resolving.padding import choose_missing_value
from xref.resolving.targets import Dims

POINT_DIM = "point"

DimNames: TypeAlias = tuple[Hashable, ...]
Coords: TypeAlias = dict[Hashable, Any]


def choose_common_decoding(refs: BoundVariable, dtype: Any) -> CommonDecoding:
    """Choose a type that holds the values of all targets, and how they are decoded.

    ``dtype`` is the choice of the user, or None. A `ValueError` is raised if no one type holds
    the values of all targets exactly, or if ``dtype`` has no size.
    """
    decoders = refs.decoders
    if dtype is not None:
        chosen = np.dtype(dtype)
        if chosen.itemsize == 0:
            raise ValueError(f"dtype={dtype!r} has no length; name it ('U20'), or use object")
        item_shapes = {kind.item_shape for kind in decoders.kinds}
        if len(item_shapes) > 1:
            engine.common_dtype(decoders.kinds, refs.label)  # raises
        item_shape = item_shapes.pop() if item_shapes else ()
        return CommonDecoding(engine.with_items(chosen, item_shape), decoders=decoders)
    common = engine.common_dtype(decoders.kinds, refs.label)
    single = decoders.single
    if single is not None and single.raw_dtype.kind in "biufc":
        as_stored = single.is_plain and single.raw_dtype == common
        return CommonDecoding(single.raw_dtype, decode=None if as_stored else single)
    return CommonDecoding(common, decoders=None if decoders.are_plain else decoders)


def stack_variable(
    refs: BoundVariable,
    result_shape: Shape,
    dims: DimNames,
    *,
    fills: bool,
    fill_value: Any = None,
    dtype: Any = None,
    padded: bool = False,
) -> tuple[xr.Variable, StackArray, engine.Decoding | None]:
    """Return results of one shape as a lazy variable, and the array that the variable reads.

    The third result is the decoding that xarray applies to the values of the array, if any.
    """
    common = choose_common_decoding(refs, dtype)
    fill = None
    if fills:
        fill = choose_missing_value(refs.decoders, common.values_dtype, fill_value, dtype)
    lazily = common.is_lazily_decoded and fill is None
    data = StackArray(
        refs.references,
        result_shape,
        replace(common, decode=None) if lazily else common,
        fill=fill,
        padded=padded,
        bound=None if fills else refs.bound,
    )
    all_dims = dims + item_dims(common.dtype, dims)
    decode = common.decode if lazily else None
    return lazy_variable(refs, decode, all_dims, data, fills), data, decode


def lazy_variable(
    refs: BoundVariable,
    decode: engine.Decoding | None,
    dims: DimNames,
    data: engine.LazyArray,
    fills: bool = False,
) -> xr.Variable:
    """Return the variable of a lazy array, with the attributes that all targets share.

    xarray applies ``decode`` to the values of the array lazily.
    """
    attributes = dict(refs.attributes)
    if decode is None:
        encoding = _common_encoding(refs.decoders, data.dtype, fills)
        return xr.Variable(dims, engine.lazily_indexed(data), attributes, encoding)
    attributes |= decode.attributes  # xarray removes them again as it decodes
    variable = xr.Variable(dims, engine.lazily_indexed(data), attributes)
    decoded = engine.decode_variable(variable, decode.options)
    decoded.attrs = {k: v for k, v in decoded.attrs.items() if k in refs.attributes}
    return decoded


def _common_encoding(
    decoders: engine.Decoders, dtype: np.dtype[Any], fills: bool
) -> dict[str, Any]:
    """Return the encoding that all targets share, if the values can be stored with it.

    Integers without a fill value cannot store NaN and NaT.
    """
    if not decoders.kinds:
        return {}
    first, *others = (dict(kind.encoding) for kind in decoders.kinds)
    same = (
        k for k, v in first.items() if all(k in o and is_same_value(v, o[k]) for o in others)
    )
    common = {name: first[name] for name in same}
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


def result_dims(refs: BoundVariable, ndim: int, *, joined: bool = False) -> DimNames:
    """Name the axes of results: the names that all targets use, else free phony names.

    The results have the dimensions of the references too, except if they are ``joined``.
    """
    names: list[str | None] = [None] * ndim
    if refs.targets and all(len(t.dims) == ndim for t in refs.targets):
        by_axis = zip(*(t.dims for t in refs.targets), strict=True)
        names = [dims[0] if len(set(dims)) == 1 else None for dims in by_axis]
    elif ndim == 1:
        names = [POINT_DIM]
    others = tuple(dim for dim in refs.dims if not (joined and dim in names))
    return unique_dims(names, others)


def axes_along(dims: Dims, target_dims: Dims, repeat: int = 0) -> list[int]:
    """Return the axis of a target for each axis of a coordinate.

    A target may have a dimension several times. Axes of that dimension are taken in order,
    after the first ``repeat`` ones; the list is empty if the target has too few.
    """
    free = {dim: [axis for axis, d in enumerate(target_dims) if d == dim] for dim in dims}
    axes: list[int] = []
    for dim in dims:
        if len(free[dim]) <= repeat:
            return []
        axes.append(free[dim].pop(repeat))
    return axes


def unique_dims(names: Sequence[Hashable | None], others: DimNames = ()) -> DimNames:
    """Make the names of axes differ from each other and from ``others``.

    A name that two axes have, because they share a dimension scale, gets a number on the second
    one. None becomes a phony name.
    """
    taken: set[Hashable] = set(others) | {name for name in names if name}
    dims: list[Hashable] = []
    for name in names:
        dim: Hashable = name
        if name is None:
            dim = next(engine.numbered_names("phony_dim_", taken))
        elif name in others or name in dims:
            dim = engine.free_name(name, taken)
        taken.add(dim)
        dims.append(dim)
    return tuple(dims)


def item_dims(dtype: np.dtype[Any], taken: DimNames) -> DimNames:
    """Name the axes that an HDF5 array type adds behind the axes of the dataset."""
    names: list[Hashable] = []
    for _ in item_dtype(dtype)[1]:
        names.append(engine.free_name("item", (*taken, *names)))
    return tuple(names)
