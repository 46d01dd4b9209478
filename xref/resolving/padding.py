"""Padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xref import engine
from xref.arrays import (
    dtype_with,
    is_same_value,
)
from xref.engine import Axis, Decoders, LazyArray, index_outer
from xref.references import ReferenceArray
from xref.resolving.binding import BoundVariable
from xref.resolving.bound_references import BoundReferences
from xref.resolving.lazy_results import _bind_unchanged, pick_references
from xref.resolving.read_results import decoding_rows
from xref.resolving.result_variables import Form


@dataclass(frozen=True, slots=True)
class MissingValue:
    """What stands for elements without data, among decoded values.

    Attributes
    ----------
    decoders : Decoders
    values : tuple
        One for all targets, or one for those of each decoding, in the order of the
        decodings: null references have the first one then.
    dtype : numpy.dtype
        That holds decoded values and these.
    """

    decoders: Decoders
    values: tuple[Any, ...]
    dtype: np.dtype[Any]

    def put(
        self,
        values: npt.NDArray[Any],
        valid: npt.NDArray[np.bool_],
        bound: BoundReferences,
    ) -> None:
        """Fill the elements that are not valid; the first axis counts the references."""
        if not self.values:
            return
        which = np.zeros(len(valid), dtype=np.int64)
        if len(self.values) > 1:
            which = decoding_rows(bound, self.decoders)
            which[which < 0] = 0
        for k, value in enumerate(self.values):
            own = ~valid
            if len(self.values) > 1:
                own[which != k] = False
            if values.dtype.kind == "O":
                one = np.empty((), dtype=object)
                one[()] = value  # an empty sequence is one value
                values[own] = one
            else:
                values[own] = value  # for array types, one for each item


class PaddingMask(LazyArray):
    """Where padded results have data; shape and index as of their `StackArray`."""

    def __init__(self, references: ReferenceArray, cell: tuple[int, ...]) -> None:
        self.references = references
        self.cell = cell
        self.dtype = np.dtype(bool)
        self.shape = references.shape + cell

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        split = self.references.ndim
        references = pick_references(self.references, key[:split])
        bound = _bind_unchanged(references)
        inner = key[split:]
        positions = [
            np.atleast_1d(np.arange(n)[k]) for n, k in zip(self.cell, inner, strict=True)
        ]
        mask = bound.valid(positions)
        mask = mask.reshape(references.shape + tuple(len(p) for p in positions))
        picked = tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in inner)
        return index_outer(mask, references.ndim, picked)


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
