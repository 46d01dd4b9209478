"""Per-region statistics and functions.

In: the values of some regions, flat and one region after the other, with their
shapes. Out: one item a region. Missing values (NaN, NaT) are skipped, as
xarray's reductions do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays import (
    convert,
    exact_values,
    row_offsets,
    to_objects,
)
from xref.engine import Axis, Decoders, index_outer, with_items
from xref.hdf5 import items
from xref.references import ReferenceArray
from xref.resolving.bound_references import BoundReferences
from xref.resolving.lazy_results import (
    BlockReads,
    ReferenceResults,
    Spans,
    _bind_unchanged,
    _pick,
    _planned,
    pick_references,
)
from xref.resolving.read_results import check_size, decoding_rows, read_results

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


class RegionResults(ReferenceResults):
    """What a function makes of each region: one item of shape ``cell`` a reference.

    ``function(values, bound)`` gets the values of some references, flat and
    decoded, with their shapes, and returns the items in that order. All values of one
    call have one type, that of their own targets: references to targets of other types
    are for another call.
    """

    def __init__(
        self,
        references: ReferenceArray,
        dtype: np.dtype[Any],
        decoders: Decoders,
        function: Callable[[npt.NDArray[Any], BoundReferences], npt.NDArray[Any]],
        cell: tuple[int, ...] = (),
        *,
        bound: BoundReferences | None = None,
    ) -> None:
        self.references = references
        self._bound = bound
        self.dtype = dtype
        self.decoders = decoders
        self.function = function
        self.cell = cell
        self.shape = references.shape + cell
        # Values of one decoding are decoded all together, after they were read.
        single = decoders.single
        self.decode = single
        forms = [with_items(*form) for form in decoders.forms]
        widest = max(forms, key=lambda d: d.itemsize, default=np.dtype(float))
        self.raw_dtype = single.raw_dtype if single else widest

    @property
    def in_place(self) -> bool:
        """False: the values of all regions are larger than what is made of them."""
        return False

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        split = self.references.ndim
        references = pick_references(self.references, key[:split])
        bound = _bind_unchanged(references)
        npoints = int(bound.npoints.sum())
        check_size(npoints, self.raw_dtype, bound, "the values to work on")
        out = np.empty((len(bound.ndim), *self.cell), dtype=self.dtype)
        decoders = None if self.decode is not None else self.decoders
        for dtype, part, rows in self._by_form(bound):
            offsets = row_offsets(bound.npoints[rows])
            begins = np.zeros(len(bound.ndim), dtype=np.int64)
            begins[rows] = offsets[:-1]
            flat = np.empty(int(offsets[-1]), dtype=dtype)
            reader = references.options.reader
            read_results(part, flat, begins, reader=reader, decoders=decoders)
            found = self._finish(flat, _pick(bound, rows))
            out[rows] = exact_values(found, self.dtype)
        return index_outer(
            out.reshape(references.shape + self.cell), references.ndim, key[split:]
        )

    def _by_form(
        self, bound: BoundReferences
    ) -> Iterator[tuple[np.dtype[Any], BoundReferences, npt.NDArray[np.intp]]]:
        """Divide references by the type of their targets' values.

        Yields
        ------
        dtype : numpy.dtype
            Of elements in the flat array that they are read into.
        part : BoundReferences
            Bound to the targets of that type.
        rows : numpy.ndarray
            Null references are among the first ones.
        """
        forms = self.decoders.forms
        if self.decode is not None or len(forms) < 2:
            yield self.raw_dtype, bound, np.arange(len(bound.ndim))
            return
        which = decoding_rows(bound, self.decoders)
        of_rows = np.where(which >= 0, self.decoders.form_of_kinds[which], 0)
        for k, form in enumerate(forms):
            rows = np.flatnonzero(of_rows == k)
            if len(rows):
                yield with_items(*form), bound.only(rows), rows

    def _finish(self, flat: npt.NDArray[Any], bound: BoundReferences) -> npt.NDArray[Any]:
        values = items(flat) if self.decode is None else self.decode(items(flat))
        return np.asarray(self.function(values, bound))

    def block_nbytes(self, blocks: Sequence[Spans]) -> list[int]:
        """Return the bytes of the values that some blocks are made of."""
        bound = _bind_unchanged(self.references, getattr(self, "_bound", None))
        itemsize = self.raw_dtype.itemsize
        return [int(bound.npoints[r].sum()) * itemsize for r in self._rows(blocks)]

    def part(self, blocks: Sequence[Spans]) -> tuple[ReferenceResults, list[Spans]]:
        """Return an array of the references of some blocks; see `ReferenceResults`."""
        return self._part_of_rows(blocks)

    def flat_blocks(self, blocks: Sequence[Spans]) -> BlockReads | None:
        """Say what is read for some blocks; see `ReferenceResults`.

        None also where targets have values of several types, which no one flat array holds.
        """
        split = self.references.ndim
        whole = tuple((0, n) for n in self.cell)
        if any(spans[split:] != whole for spans in blocks):
            return None
        if self.decode is None and len(self.decoders.forms) > 1:
            return None
        bound = _bind_unchanged(self.references, getattr(self, "_bound", None))
        if bound.small:
            return None
        rows = self._rows(blocks)
        picked = np.concatenate(rows)
        offsets = row_offsets(bound.npoints[picked])
        bounds = offsets[row_offsets(np.array([len(r) for r in rows]))]
        largest = int(np.diff(bounds).max())
        check_size(largest, self.raw_dtype, bound, "the values to work on")

        def finish(block: int, flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
            shape = tuple(stop - start for start, stop in blocks[block][:split])
            found = self._finish(flat, _pick(bound, rows[block]))
            return exact_values(found, self.dtype).reshape(shape + self.cell)

        return BlockReads(
            bounds=bounds,
            dtype=self.raw_dtype,
            reads=tuple(_planned(bound, picked, offsets[:-1])),
            decoders=None if self.decode is not None else self.decoders,
            reader=self.references.options.reader,
            finish=finish,
        )
