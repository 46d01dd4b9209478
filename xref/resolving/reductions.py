"""Statistics and functions of each region.

In: the values of regions, flat and one region after the other, with the shapes of the
regions. Out: one result a region, as a lazy array (`RegionResults`). Statistics skip missing
values (NaN, NaT), as xarray's reductions do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xref.arrays import BoolArray, IntArray, convert, exact_values, row_offsets, to_objects
from xref.engine import Axis, Decoders, index_outer, with_items
from xref.errors import located, naming
from xref.hdf5 import unfold_subarray
from xref.references import ReferenceArray
from xref.resolving.bound_references import (
    Array,
    BoundReferences,
    Rows,
    Shape,
    index_references,
)
from xref.resolving.lazy_results import BlockReads, Narrowed, ReferenceResults, Spans
from xref.resolving.read_results import check_size, decoding_rows


@dataclass(frozen=True, slots=True)
class Statistic:
    """One statistic of each region: count, sum, mean, min, max or std."""

    name: str

    def result_dtype(self, dtype: np.dtype[Any], any_empty: bool) -> np.dtype[Any] | None:
        """Return the dtype of the results; None if values of ``dtype`` have none."""
        if self.name == "count":
            return np.dtype(np.int64)
        numeric = dtype.kind in ("biuf" if self.name in ("min", "max") else "biufc")
        if not numeric and not (self.name in ("min", "max") and dtype.kind in "mM"):
            return None
        if self.name == "sum":
            total: np.dtype[Any] = np.zeros(1, dtype).sum().dtype
            return total
        if self.name == "std" and dtype.kind == "c":  # distances from the mean are real
            return np.zeros(1, dtype).real.dtype
        if self.name in ("mean", "std"):
            return dtype if dtype.kind in "fc" else np.dtype(np.float64)
        return np.dtype(np.float64) if any_empty and dtype.kind in "biu" else dtype

    def __call__(self, values: Array, bound: BoundReferences) -> Array:
        """Return the statistic of each region."""
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
        # Means add up in double precision, as in NumPy; 64-bit integers would overflow.
        wide = np.complex128 if values.dtype.kind == "c" else np.float64
        totals = _sums(values.astype(wide, copy=False), npoints)
        with np.errstate(divide="ignore", invalid="ignore"):
            means: Array = totals / counts
            if self.name == "mean":
                return means
            deviation = values - np.repeat(means, npoints)
            if valid is not None:
                deviation[~valid] = 0
            variance = _sums((deviation * deviation.conj()).real, npoints) / counts
            return np.asarray(np.sqrt(variance))


def _find_valid(values: Array) -> BoolArray | None:
    """Return a mask of the values that are not NaN, NaT or None; None if none can be."""
    if values.dtype.kind in "fcmM":
        valid: BoolArray = ~np.isnan(values)
        return valid
    if values.dtype.kind != "O":
        return None
    # xarray replaces text that equals its fill value by NaN.
    missing = [v is None or (isinstance(v, float) and v != v) for v in values.ravel().tolist()]
    return ~np.array(missing, dtype=bool).reshape(values.shape)


def _sums(values: Array, npoints: IntArray) -> Array:
    """Sum each region: integers with 64 bits, other numbers in double precision."""
    kind = values.dtype.kind
    dtype = np.dtype({"u": "u8", "i": "i8", "b": "i8", "c": "c16"}.get(kind, "f8"))
    if len(npoints) and (npoints == npoints[0]).all():
        return np.asarray(values.reshape(len(npoints), -1).sum(axis=1, dtype=dtype))
    out = np.zeros(len(npoints), dtype=dtype)
    nonempty = np.flatnonzero(npoints)
    if len(nonempty):
        out[nonempty] = np.add.reduceat(values, row_offsets(npoints)[nonempty], dtype=dtype)
    return out


def _extreme(values: Array, npoints: IntArray, function: np.ufunc) -> Array:
    """Return the minimum or maximum of each region; NaN or NaT for an empty region."""
    nonempty = np.flatnonzero(npoints)
    starts = row_offsets(npoints)[nonempty]
    found = function.reduceat(values, starts) if len(starts) else values[:0]
    if len(nonempty) == len(npoints):
        return found
    dtype = values.dtype if values.dtype.kind in "fmM" else np.dtype(np.float64)
    missing = np.array("NaT", dtype=dtype) if dtype.kind in "mM" else np.array(np.nan, dtype)
    out = np.full(len(npoints), missing, dtype=dtype)
    if len(nonempty):
        out[nonempty] = exact_values(found, dtype)
    return out


def function_name(function: Callable[..., Any]) -> str:
    """Return the name of a function of the user, for a message."""
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__qualname__


@dataclass(frozen=True, slots=True)
class PerRegion:
    """A function of the user, called with the values of each region in their shape."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    dtype: np.dtype[Any]
    result_shape: Shape

    def __call__(self, values: Array, bound: BoundReferences) -> Array:
        """Return the result of the function for each region."""
        offsets = row_offsets(bound.npoints).tolist()
        out = np.empty((len(bound.ndim), *self.result_shape), dtype=self.dtype)
        shapes = zip(bound.ndim.tolist(), bound.shape.tolist(), strict=True)
        for row, (ndim, shape) in enumerate(shapes):
            region = values[offsets[row] : offsets[row + 1]]
            # The function gets a 1-D array without elements for a null reference.
            region_shape = shape[:ndim] if ndim or len(region) else [0]
            region = region.reshape((*region_shape, *values.shape[1:]))
            try:
                result = self.function(region, *self.args, **self.kwargs)
            except Exception as error:
                # The user may expect this type of error: it is passed on with a note.
                shape_text = f"elements of shape {region.shape}"
                error.add_note(
                    f"{self.name} was called with {shape_text}: {bound.describe(row)}"
                )
                raise
            self._store_result(out, row, result, bound)
        return out

    @property
    def name(self) -> str:
        """Name of the function in a message."""
        return function_name(self.function)

    def _store_result(self, out: Array, row: int, result: Any, bound: BoundReferences) -> None:
        """Store one result after a check of its type and its shape."""
        if self.dtype.kind == "O" and not self.result_shape:
            one = np.empty((), dtype=object)
            one[()] = result  # a sequence is one value
            out[row] = one[()]
            return
        values = np.asarray(result)
        if values.shape != self.result_shape:
            raise ValueError(
                f"{self.name} gave a result of shape {values.shape} where "
                f"{self.result_shape} was expected, for {bound.describe(row)}; output_sizes "
                "names the dimensions of the results, dtype=object keeps any result as it is"
            )
        if self.dtype.kind == "O":
            out[row] = to_objects(values)
            return
        found = self.dtype if self.dtype.hasobject else values.dtype
        if not np.can_cast(found, self.dtype, "same_kind"):
            raise TypeError(
                f"{self.name} gave a result of type {found} where {self.dtype} was expected, "
                f"for {bound.describe(row)}; pass dtype="
            )
        if self.dtype.kind in "SU":
            values = convert(
                values,
                self.dtype,
                lambda: f"the result of {self.name} for {bound.describe(row)}",
            )
        try:
            out[row] = exact_values(values, self.dtype)
        except ValueError as error:
            raise located(error, bound.describe(row)) from error


class RegionResults(ReferenceResults):
    """The results of a function of each region, each of shape ``result_shape``.

    ``function(values, bound)`` gets decoded values, flat and one region after the other, with
    the shapes of the regions. It returns the results in the same order. All values of one call
    have the type of their own targets, so targets of several types need several calls.
    """

    _label = "the values to work on"

    def __init__(
        self,
        references: ReferenceArray,
        dtype: np.dtype[Any],
        decoders: Decoders,
        function: Callable[[Array, BoundReferences], Array],
        result_shape: Shape = (),
        *,
        bound: BoundReferences | None = None,
    ) -> None:
        self.references, self._bound = references, bound
        self.dtype, self.function, self.result_shape = dtype, function, result_shape
        self.shape = references.shape + result_shape
        # Values of one decoding are decoded all together, after they were read.
        self.decode = decoders.single
        self.decoders = None if self.decode is not None else decoders
        forms = [with_items(*form) for form in decoders.forms]
        widest = max(forms, key=lambda d: d.itemsize, default=np.dtype(float))
        self.raw_dtype = widest if self.decode is None else self.decode.raw_dtype

    @property
    def in_place(self) -> bool:
        """False: the values of all regions take more memory than the results."""
        return False

    def _read(self, key: tuple[Axis, ...]) -> Array:
        ndim = self.references.ndim
        references = index_references(self.references, key[:ndim])
        bound = self._bind(references)
        npoints = bound.npoints
        check_size(int(npoints.sum()), self.raw_dtype, bound, self._label)
        out = np.empty((len(bound.ndim), *self.result_shape), dtype=self.dtype)
        for dtype, part, rows in self._split_by_dtype(bound):
            sizes = np.zeros_like(npoints)
            sizes[rows] = npoints[rows]
            flat = self._read_flat(part, sizes, dtype)
            out[rows] = self._finish(flat, (len(rows),), (bound.shapes_of(rows), None))
        values = out.reshape(references.shape + self.result_shape)
        return index_outer(values, references.ndim, key[ndim:])

    def _split_by_dtype(
        self, bound: BoundReferences
    ) -> Iterator[tuple[np.dtype[Any], BoundReferences, Rows]]:
        """Split references by the type of the values of their targets.

        Yields the type of the flat array to read into, the targets of that type, and the
        rows of their references. Null references go with the first type.
        """
        if self.decoders is None or len(self.decoders.forms) < 2:
            yield self.raw_dtype, bound, np.arange(len(bound.ndim))
            return
        decoding_row = decoding_rows(bound, self.decoders)
        form = np.where(decoding_row >= 0, self.decoders.form_of_kinds[decoding_row], 0)
        for k, (dtype, item_shape) in enumerate(self.decoders.forms):
            rows = np.flatnonzero(form == k)
            if len(rows):
                yield with_items(dtype, item_shape), bound.restrict_to(rows), rows

    def _finish(self, flat: Array, shape: Shape, narrowed: Narrowed) -> Array:
        values = unfold_subarray(flat)
        bound = narrowed[0]
        if self.decode is not None:
            with naming(bound.label, ValueError):
                values = self.decode(values)
        results = np.asarray(self.function(values, bound))
        with naming(bound.label, ValueError):
            return exact_values(results, self.dtype).reshape(shape + self.result_shape)

    def block_nbytes(self, blocks: Sequence[Spans]) -> list[int]:
        """Return the bytes of the values in the regions of each of some blocks."""
        bound = self._bind(self.references)
        npoints, itemsize = bound.npoints, self.raw_dtype.itemsize
        rows = self._rows_of_blocks(bound, blocks) or ()
        return [int(npoints[own].sum()) * itemsize for own in rows]

    def flat_blocks(self, blocks: Sequence[Spans]) -> BlockReads | None:
        """Plan the reads of some blocks; see `ReferenceResults`.

        None also if targets have values of several types, which need several flat arrays.
        """
        if self.decoders is not None and len(self.decoders.forms) > 1:
            return None
        return super().flat_blocks(blocks)
