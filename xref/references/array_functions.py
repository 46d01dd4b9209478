"""NumPy's functions on arrays of references (NEP 18).

In: `ReferenceArray`s. Out: `ReferenceArray`s. Each function only moves elements, so NumPy
applies the function to row numbers, and the columns are taken once by the resulting rows.
Importing this module enters the functions in `xref.references.array.FUNCTIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.references.array import FUNCTIONS, ReferenceArray
from xref.references.columns import as_slice, common_options, concat_references
from xref.references.owners import concat_names


def _concatenate(arrays: Any, axis: int | None = 0, **kwargs: Any) -> ReferenceArray:
    del kwargs
    parts = _same_kind(arrays)
    if axis is None:
        parts, axis = [p.ravel() for p in parts], 0
    begins = np.cumsum([0, *(p.size for p in parts)])
    rows = np.concatenate(
        [p.row_numbers() + begin for p, begin in zip(parts, begins[:-1], strict=True)],
        axis=axis,
    )
    return _gather(parts, rows)


def _gather(parts: list[ReferenceArray], rows: npt.NDArray[np.int64]) -> ReferenceArray:
    """Take rows of the concatenation of several arrays."""
    columns = concat_references([p.columns for p in parts])
    names = concat_names([p.names for p in parts], [p.size for p in parts])
    index = as_slice(rows.reshape(-1))
    # Null references, such as padding, have no file and no options of their own.
    options = common_options(p.options for p in parts if p.columns.files)
    return ReferenceArray(
        rows.shape,
        kind="std" if any(p.kind == "std" for p in parts) else parts[0].kind,
        columns=columns.take(index),
        options=options,
        names=None if names is None else names.take(index),
    )


def _same_kind(arrays: Any) -> list[ReferenceArray]:
    """Turn all operands into arrays of one kind; missing values become null references.

    Arrays of the kind "std" (HDF5 1.12 and later) may be combined with any other kind.
    """
    arrays = list(arrays)
    kind = next(a.kind for a in arrays if isinstance(a, ReferenceArray))
    out = []
    for array in arrays:
        if not isinstance(array, ReferenceArray):
            objects = np.asarray(array, dtype=object)
            missing = all(_is_missing(o) for o in objects.flat)
            array = (
                ReferenceArray.nulls(objects.shape, is_region=kind == "region")
                if missing
                else ReferenceArray.from_references(objects)
            )
        out.append(array)
    kinds = {array.kind for array in out}
    if len(kinds) > 1 and "std" not in kinds:
        raise TypeError("object references and region references do not mix in one array")
    return out


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _stack(arrays: Any, axis: int = 0, **kwargs: Any) -> ReferenceArray:
    del kwargs
    parts = _same_kind(arrays)
    rows = [np.expand_dims(p.row_numbers(), axis) for p in parts]
    return _concatenate([p.take_rows(r) for p, r in zip(parts, rows, strict=True)], axis=axis)


def _where(condition: Any, x: Any, y: Any) -> ReferenceArray:
    first, second = _same_kind([x, y])
    condition = np.asarray(condition)
    rows = np.where(condition, first.row_numbers(), second.row_numbers() + first.size)
    return _gather([first, second], rows)


def _pad(a: ReferenceArray, pad_width: Any, mode: str = "constant", **kwargs: Any) -> Any:
    """Pad with null references, or with elements in modes that repeat elements."""
    if mode != "constant":
        return a.take_rows(np.pad(a.row_numbers(), pad_width, mode=mode, **kwargs))  # type: ignore[call-overload]
    fill = kwargs.get("constant_values")
    if not all(_is_missing(v) for v in np.asarray(fill, dtype=object).flat):
        raise TypeError(
            f"an array of references is padded with null references, not with {fill!r}"
        )
    rows = np.pad(a.row_numbers(), pad_width, constant_values=a.size)
    return _gather([a, ReferenceArray.nulls((1,), is_region=a.kind == "region")], rows)


def _take(a: ReferenceArray, indices: Any, axis: int | None = None, **kwargs: Any) -> Any:
    del kwargs
    return a.take_rows(np.asarray(np.take(a.row_numbers(), indices, axis=axis)))


def _by_index_function(function: Callable[..., Any]) -> Callable[..., ReferenceArray]:
    """Apply a NumPy function that only moves elements to the row numbers."""

    def apply(a: ReferenceArray, *args: Any, **kwargs: Any) -> ReferenceArray:
        return a.take_rows(function(a.row_numbers(), *args, **kwargs))

    return apply


_SHAPES = np.broadcast_to, np.reshape, np.ravel, np.expand_dims, np.squeeze, np.atleast_1d
_ORDERS = np.transpose, np.moveaxis, np.swapaxes, np.rollaxis, np.flip, np.roll

FUNCTIONS |= {
    np.concatenate: _concatenate,
    np.stack: _stack,
    np.where: _where,
    np.take: _take,
    np.pad: _pad,
    np.array_equal: lambda a, b, **_: bool(np.shape(a) == np.shape(b) and np.all(a == b)),
    np.shape: lambda a: a.shape,
    np.result_type: lambda *_: np.dtype(object),
    np.ndim: lambda a: a.ndim,
    np.size: lambda a, axis=None: a.size if axis is None else a.shape[axis],
    np.copy: lambda a, **_: a,
    np.empty_like: lambda a, dtype=None, order="K", subok=True, shape=None, **_: (
        ReferenceArray.nulls(
            a.shape if shape is None else tuple(np.atleast_1d(shape).tolist()),
            is_region=a.kind == "region",
        )
    ),
    np.full_like: lambda a, fill_value, dtype=None, order="K", subok=True, shape=None, **_: (
        _same_kind([a, np.full(a.shape if shape is None else shape, fill_value, object)])[1]
    ),
}
FUNCTIONS.update(
    (function, _by_index_function(function))
    for function in (*_SHAPES, *_ORDERS, np.repeat, np.tile)
)
