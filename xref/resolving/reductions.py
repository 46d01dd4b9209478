"""Per-region statistics and functions.

In: the values of some regions, flat and one region after the other, with their
shapes. Out: one item a region. Missing values (NaN, NaT) are skipped, as
xarray's reductions do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays import convert, exact_values, row_offsets, to_objects
from xref.resolving.read_results import BoundReferences

STATISTICS = ("count", "sum", "mean", "min", "max", "std")


@dataclass(frozen=True, slots=True)
class Statistic:
    """One of `STATISTICS` for each region."""

    name: str

    def result_dtype(self, dtype: np.dtype[Any], any_empty: bool) -> np.dtype[Any]:
        """Return the dtype of the results for values of ``dtype``.

        Raises
        ------
        TypeError
            If values of that type have no such statistic.
        """
        if self.name == "count":
            return np.dtype(np.int64)
        numeric = dtype.kind in ("biuf" if self.name in ("min", "max") else "biufc")
        if not numeric and not (self.name in ("min", "max") and dtype.kind in "mM"):
            raise TypeError(f"no {self.name} of values of type {dtype}")
        if self.name == "sum":
            total: np.dtype[Any] = np.zeros(1, dtype).sum().dtype
            return total
        if self.name == "std" and dtype.kind == "c":  # distances from the mean are real
            return np.zeros(1, dtype).real.dtype
        if self.name in ("mean", "std"):
            return dtype if dtype.kind in "fc" else np.dtype(np.float64)
        return np.dtype(np.float64) if any_empty and dtype.kind in "biu" else dtype

    def __call__(self, values: npt.NDArray[Any], bound: BoundReferences) -> npt.NDArray[Any]:
        """Return one number a region."""
        npoints = bound.npoints
        if self.name in ("min", "max"):
            return _extreme(values, npoints, np.fmin if self.name == "min" else np.fmax)
        valid = _find_valid(values)
        if valid is not None and valid.all():
            valid = None
        counts = npoints if valid is None else _sums(valid, npoints)
        if self.name == "count":
            return counts
        if valid is not None:
            values = np.where(valid, values, 0)
        if self.name == "sum":
            return _sums(values, npoints)
        # Like NumPy's, means add up in double precision: integers would overflow.
        wide = np.complex128 if values.dtype.kind == "c" else np.float64
        totals = _sums(values.astype(wide, copy=False), npoints)
        with np.errstate(divide="ignore", invalid="ignore"):
            means: npt.NDArray[Any] = totals / counts
            if self.name == "mean":
                return means
            deviation = values - np.repeat(means, npoints)
            if valid is not None:
                deviation[~valid] = 0
            variance = _sums((deviation * deviation.conj()).real, npoints) / counts
            return np.asarray(np.sqrt(variance))


def _find_valid(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """Return where values are not missing (NaN, NaT, None); None where all count."""
    if values.dtype.kind in "fcmM":
        valid: npt.NDArray[np.bool_] = ~np.isnan(values)
        return valid
    if values.dtype.kind != "O":
        return None
    # Text that equals its fill value is NaN among objects.
    missing = [v is None or (isinstance(v, float) and v != v) for v in values.ravel().tolist()]
    return ~np.array(missing, dtype=bool).reshape(values.shape)


def _sums(values: npt.NDArray[Any], npoints: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Sum each region; integers in 64 bits, others in double precision."""
    kind = values.dtype.kind
    dtype = np.dtype({"u": "u8", "i": "i8", "b": "i8", "c": "c16"}.get(kind, "f8"))
    if len(npoints) and (npoints == npoints[0]).all():
        return np.asarray(values.reshape(len(npoints), -1).sum(axis=1, dtype=dtype))
    out = np.zeros(len(npoints), dtype=dtype)
    filled = np.flatnonzero(npoints)
    if len(filled):
        out[filled] = np.add.reduceat(values, row_offsets(npoints)[filled], dtype=dtype)
    return out


def _extreme(
    values: npt.NDArray[Any], npoints: npt.NDArray[np.int64], function: np.ufunc
) -> npt.NDArray[Any]:
    filled = np.flatnonzero(npoints)
    if len(filled) == len(npoints):
        return (
            function.reduceat(values, row_offsets(npoints)[:-1]) if len(npoints) else values[:0]
        )
    dtype = values.dtype if values.dtype.kind in "fmM" else np.dtype(np.float64)
    missing = np.array("NaT", dtype=dtype) if dtype.kind in "mM" else np.array(np.nan, dtype)
    out = np.full(len(npoints), missing, dtype=dtype)
    if len(filled):
        found = function.reduceat(values, row_offsets(npoints)[filled])
        out[filled] = exact_values(found, dtype)
    return out


@dataclass(frozen=True, slots=True)
class PerRegion:
    """A function of the user's, called with each region's values in their shape."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    dtype: np.dtype[Any]
    cell: tuple[int, ...]

    def __call__(self, values: npt.NDArray[Any], bound: BoundReferences) -> npt.NDArray[Any]:
        """Return one item a region."""
        offsets = row_offsets(bound.npoints).tolist()
        out = np.empty((len(bound.ndim), *self.cell), dtype=self.dtype)
        shapes = zip(bound.ndim.tolist(), bound.shape.tolist(), strict=True)
        for row, (ndim, shape) in enumerate(shapes):
            region = values[offsets[row] : offsets[row + 1]]
            # A null reference has no axes of its own, and no element: it is an empty row.
            own = shape[:ndim] if ndim or len(region) else [0]
            region = region.reshape((*own, *values.shape[1:]))
            self._put(out, row, self.function(region, *self.args, **self.kwargs))
        return out

    def _put(self, out: npt.NDArray[Any], row: int, result: Any) -> None:
        """Store one result, if it has the type and the shape that were expected."""
        if self.dtype.kind == "O" and not self.cell:
            one = np.empty((), dtype=object)
            one[()] = result  # a sequence is one value
            out[row] = one[()]
            return
        values = np.asarray(result)
        if values.shape != self.cell:
            raise ValueError(
                f"{self.function!r} gave a result of shape {values.shape} where {self.cell} "
                "was expected; output_sizes names its dimensions, dtype=object keeps any "
                "result as it is"
            )
        if self.dtype.kind == "O":
            out[row] = to_objects(values)
            return
        found = self.dtype if self.dtype.hasobject else values.dtype
        if not np.can_cast(found, self.dtype, "same_kind"):
            raise TypeError(
                f"{self.function!r} gave a result of type {found} where {self.dtype} was "
                "expected; pass dtype="
            )
        if self.dtype.kind in "SU":
            values = convert(values, self.dtype, lambda: f"the result of {self.function!r}")
        out[row] = exact_values(values, self.dtype)
