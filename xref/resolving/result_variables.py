"""Vars."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xref import engine
from xref.arrays import is_same_value
from xref.hdf5 import item_dtype
from xref.resolving.binding import BoundVariable
from xref.resolving.padding import fill_values
from xref.resolving.ragged_results import RaggedArray
from xref.resolving.stacked_results import StackArray


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


def _item_dims(dtype: np.dtype[Any], taken: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
    """Name the axes that an HDF5 array type adds behind those of the dataset."""
    names: list[Hashable] = []
    for _ in item_dtype(dtype)[1]:
        names.append(_free_name("item", (*taken, *names)))
    return tuple(names)


def _free_name(name: Hashable, taken: Sequence[Hashable]) -> Hashable:
    k, candidate = 1, name
    while candidate in taken:
        candidate = f"{name}_{k}"
        k += 1
    return candidate
