"""Padding: results of several shapes, or with null references among them, in one array.

In: the shapes of the results, their decoding, and the fill value of the user. Out: the padded
shape, the values of elements without data, and the mask of the elements with data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xref.arrays import BoolArray, IntArray, dtype_with, is_same_value
from xref.engine import Axis, Decoders, LazyArray, index_outer, missing_of
from xref.references import ReferenceArray
from xref.resolving.bound_references import (
    Array,
    BoundReferences,
    Shape,
    bind_unchanged,
    index_references,
)
from xref.resolving.read_results import decoding_rows


def find_result_shape(bound: BoundReferences, padded: bool) -> Shape:
    """Return the one shape of all results, or the shape that they are padded to.

    The padded shape is the largest extent along each axis. The shape is () if all references
    are null. Results that do not stack, or cannot be padded, raise a `ValueError`.
    """
    valid = ~bound.null
    ndim, shape = bound.ndim[valid], bound.shape[valid]
    if not len(ndim):
        return ()
    same_ndim = bool((ndim == ndim[0]).all())
    if padded and not same_ndim:
        raise ValueError(
            f"{bound.label()}: the results have {sorted(set(ndim.tolist()))} dimensions, and "
            "padding does not make these numbers equal; use layout='ragged'"
        )
    if not padded and not (same_ndim and (shape == shape[0]).all()):
        pairs = zip(ndim[:10_000].tolist(), shape[:10_000].tolist(), strict=True)
        found = {tuple(s[:n]) for n, s in pairs}
        some = ", ".join(map(str, sorted(found)[:5])) + (", ..." if len(found) > 5 else "")
        raise ValueError(
            f"{bound.label()}: the references select different shapes ({some}), so they do not "
            f"stack; use {_other_layouts(shape, same_ndim)}, or select references of one shape"
        )
    return tuple(shape[:, : int(ndim[0])].max(axis=0).tolist())


def _other_layouts(shape: IntArray, same_ndim: bool) -> str:
    """Name the layouts for results of these shapes, which do not stack."""
    if not same_ndim:
        return "layout='ragged'"
    differing = np.flatnonzero((shape != shape[0]).any(axis=0)).tolist()
    if len(differing) > 1:
        return "layout='ragged' or layout='pad'"
    dim = f" with concat_dim={differing[0]}" if differing[0] else ""
    return f"layout='ragged', layout='pad' or layout='concat'{dim}"


@dataclass(frozen=True, slots=True)
class MissingValue:
    """The value of elements without data, among decoded values."""

    decoders: Decoders
    # One for all targets, or one for each decoding; null references then have the first one.
    values: tuple[Any, ...]
    dtype: np.dtype[Any]  # holds decoded values and missing values

    def fill(self, values: Array, valid: BoolArray, bound: BoundReferences) -> None:
        """Fill the elements that are not valid; the first axis counts the references."""
        value_row = np.zeros(len(valid), dtype=np.int64)
        if len(self.values) > 1:
            value_row = np.maximum(decoding_rows(bound, self.decoders), 0)
        for k, value in enumerate(self.values):
            filled = ~valid
            filled[value_row != k] = False
            if values.dtype.kind == "O":
                one = np.empty((), dtype=object)
                one[()] = value  # an empty sequence is one value
                value = one
            values[filled] = value  # for array types, one for each item


def choose_missing_value(
    decoders: Decoders, decoded: np.dtype[Any], fill_value: Any, dtype: Any
) -> MissingValue:
    """Choose the value of missing elements: that of the user, or that of each target.

    It is NaN or NaT if values of type ``decoded`` are floats or dates. A `ValueError` refuses
    a fill value that does not suit the values, and a ``dtype`` without a missing value.
    """
    if fill_value is not None:
        found = dtype_with(decoded, fill_value)
        if dtype is not None and found != decoded:
            raise ValueError(f"fill_value {fill_value!r} is no value of dtype {decoded}")
        return MissingValue(decoders, (fill_value,), found)
    values = [kind.missing for kind in decoders.kinds] or [np.nan]
    if decoded.kind in "fcmM":
        values = [missing_of(decoded)]
    elif dtype is not None:
        values = [_convert_missing(value, decoded) for value in values]
    if all(is_same_value(values[0], value) for value in values):
        values = values[:1]
    return MissingValue(decoders, tuple(values), decoded)


def _convert_missing(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return the missing value of a target as a value of the dtype that the user chose."""
    if dtype.kind == "O":
        return value
    if dtype.kind in "SU":
        return missing_of(dtype)
    try:
        if dtype_with(dtype, value) == dtype:
            return value
    except ValueError:
        pass  # for instance a number among dates
    raise ValueError(f"dtype {dtype} has no missing value; choose one with fill_value=")


class PaddingMask(LazyArray):
    """True where padded results have data, with the shape and axes of the results."""

    def __init__(self, references: ReferenceArray, result_shape: Shape) -> None:
        self.references, self.result_shape = references, result_shape
        self.dtype = np.dtype(bool)
        self.shape = references.shape + result_shape

    def _read(self, key: tuple[Axis, ...]) -> Array:
        ndim = self.references.ndim
        references = index_references(self.references, key[:ndim])
        axes = zip(self.result_shape, key[ndim:], strict=True)
        positions = [np.atleast_1d(np.arange(n)[k]) for n, k in axes]
        mask = bind_unchanged(references).valid_elements(positions)
        mask = mask.reshape(references.shape + tuple(map(len, positions)))
        return index_outer(mask, references.ndim, after_narrowing(key[ndim:]))


def after_narrowing(key: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """Return the index that remains after each axis was narrowed to the elements of ``key``."""
    return tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key)
