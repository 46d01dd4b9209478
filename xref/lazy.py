"""Lazy arrays for xarray: an index in, values out.

In: a place in a file, an index from xarray or dask. Out: NumPy arrays. Each
class pickles as the place and its numbers; what is needed to read is decoded
where the index is applied, so a task of a graph stays small.

xarray's indexing internals are imported here and in `xref.backend` only.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from xarray.backends import BackendArray
from xarray.core import indexing

from xref.columns import row_offsets
from xref.elements import DecodeOptions
from xref.gather import BoundReferences, bind_references, check_size, read_into
from xref.h5data import dataset_layout
from xref.h5file import FileLocation, check_unchanged
from xref.layout import DatasetLayout, item_dtype, items
from xref.loaders import tile_loader
from xref.plan import (
    ReadPlan,
    Segments,
    canvas_strides,
    interval_segments,
    plan_chunk,
    plan_outer,
    plan_read,
    regular_segments,
)
from xref.readers import read_plan
from xref.references import ReferenceArray
from xref.regions import narrow
from xref.selection import merge_intervals
from xref.values import decode_values

_holding_back: ContextVar[bool] = ContextVar("_holding_back", default=False)


@contextmanager
def hold_back_objects() -> Iterator[None]:
    """Give None for objects while xarray decodes.

    It reads one element of each object variable, to see whether they are dates, which
    no HDF5 file holds.
    """
    token = _holding_back.set(True)
    try:
        yield
    finally:
        _holding_back.reset(token)


Axis = int | slice | npt.NDArray[Any]


def lazily_indexed(array: BackendArray) -> indexing.LazilyIndexedArray:
    """Wrap an array so that xarray composes indices before it reads."""
    return indexing.LazilyIndexedArray(array)


def _axis_segments(key: Axis, extent: int) -> tuple[Segments, Axis | None]:
    """Return the elements of one axis in ascending order, and how to reorder them after."""
    if isinstance(key, slice):
        picked = range(extent)[key]
        forward = picked if picked.step > 0 else picked[::-1]
        after = None if picked.step > 0 else slice(None, None, -1)
        return regular_segments(forward.start, forward.step, len(forward)), after
    wanted = np.atleast_1d(np.asarray(key))
    wanted = np.where(wanted < 0, wanted + extent, wanted)
    if ((wanted < 0) | (wanted >= extent)).any():
        raise IndexError(f"index {key!r} is out of bounds for an axis of {extent}")
    ascending, back = np.unique(wanted, return_inverse=True)
    low, high = merge_intervals(ascending, ascending + 1)
    return interval_segments(low, high), None if np.array_equal(ascending, wanted) else back


class LazyArray(BackendArray):
    """Base of the lazy arrays: what an index of xarray selects comes from ``_read``.

    ``_read`` takes integers, slices and 1-D arrays, each for its own axis. The state
    of an array is plain: it pickles, and names dask's tasks.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Read the elements of an xarray index."""
        if isinstance(key, indexing.VectorizedIndexer):
            return indexing.explicit_indexing_adapter(
                key, self.shape, indexing.IndexingSupport.OUTER, self._read
            )
        return self._read(key.tuple)

    async def async_getitem(self, key: indexing.ExplicitIndexer) -> Any:
        """Read the elements of an xarray index in a thread."""
        return await asyncio.to_thread(self.__getitem__, key)

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        # What a name begins with "_" for is at hand in this process only.
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return type(self).__name__, tuple(sorted(self.__getstate__().items()))


class DatasetArray(LazyArray):
    """One dataset; reads what an index selects, each chunk once.

    ``shape`` may be longer than what is stored, along unlimited dimensions: the
    dataset's fill value stands for the rest.
    """

    def __init__(
        self,
        location: FileLocation,
        address: int,
        layout: DatasetLayout,
        options: DecodeOptions,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.location = location
        self.address = address
        self.options = options
        self.encode_text = bool(layout.text) and not options.decode_vlen_strings
        self.extent = layout.shape
        self.raw_dtype = layout.dtype
        self.dtype, item_shape = item_dtype(layout.dtype)
        self.shape = layout.shape + item_shape if shape is None else shape

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        if _holding_back.get() and self.dtype.hasobject:
            nothing = np.broadcast_to(np.array(None, dtype=self.dtype), self.shape)
            return _index_outer(nothing, 0, key)
        with self.options.lock or nullcontext():
            return self._read_padded(key) if self._is_padded() else self._read_stored(key)

    def _is_padded(self) -> bool:
        return self.shape[: len(self.extent)] != self.extent

    def _read_padded(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        """Read what is stored of an index, and fill up the rest."""
        split = len(self.extent)
        sides = zip(self.shape[:split], key[:split], strict=True)
        positions = [np.atleast_1d(np.arange(n)[k]) for n, k in sides]
        inside = [p < n for p, n in zip(positions, self.extent, strict=True)]
        if all(i.all() for i in inside):
            return self._read_stored(key)
        stored = [p[i] for p, i in zip(positions, inside, strict=True)]
        values = self._read_stored((*stored, *key[split:]))
        layout = dataset_layout(self.location, self.address)
        shape = (*(len(p) for p in positions), *values.shape[split:])
        out = np.zeros(shape, dtype=values.dtype)
        if layout.elements is not None:
            raw = layout.stored_elements(1).view(np.uint8).reshape(1, -1)
            where = f"{self.location.filename}: fill value of the dataset at {self.address:#x}"
            out[...] = decode_values(
                self.location, layout.elements, raw, lambda _: where, self.options
            )
        elif layout.fill_value is not None:
            out[...] = items(np.full((), layout.fill_value, dtype=self.raw_dtype))
        out[np.ix_(*inside)] = values
        return _drop_integers(out, key[:split])

    @staticmethod
    def _plan(axes: list[Segments], shape: tuple[int, ...], layout: DatasetLayout) -> ReadPlan:
        """Plan the outer product of elements along each axis."""
        # One segment without steps along each axis is a box.
        if layout.chunks and all(len(a.start) == 1 and a.step[0] == 1 for a in axes):
            start = [int(a.start[0]) for a in axes]
            plan = plan_chunk(start, layout.shape, layout.chunks, shape)
            if plan is not None:
                return plan
        strides = np.array(canvas_strides(shape), dtype=np.int64)
        parts = plan_outer(axes, 0, strides)
        return plan_read(parts, layout.shape, layout.chunks, max(layout.dtype.itemsize, 1))

    def _read_stored(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        check_unchanged(self.location)
        layout = dataset_layout(self.location, self.address)
        split = len(self.extent)
        axes = [_axis_segments(k, n) for k, n in zip(key[:split], self.extent, strict=True)]
        shape = tuple(int(segments.count.sum()) for segments, _ in axes)
        out = np.empty(math.prod(shape), dtype=self.raw_dtype)
        if out.size:
            plan = self._plan([segments for segments, _ in axes], shape, layout)
            loader = tile_loader(self.location, self.address, layout, options=self.options)
            read_plan(plan, loader, out)
        if self.encode_text:
            out[:] = [text.encode("utf-8", "surrogateescape") for text in out.tolist()]
        values = items(out.reshape(shape))
        for axis, (_, order) in enumerate(axes):
            if order is not None:
                values = values[(slice(None),) * axis + (order,)]
        values = _index_outer(values, split, key[split:])
        return _drop_integers(values, key[:split])


def _drop_integers(values: npt.NDArray[Any], key: tuple[Axis, ...]) -> npt.NDArray[Any]:
    """Drop the axes that an integer selects."""
    drop = tuple(i for i, k in enumerate(key) if isinstance(k, int | np.integer))
    return values.squeeze(drop) if drop else values


@dataclass(frozen=True, slots=True)
class Fill:
    """What stands for elements without data, among decoded values."""

    decode: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
    value: Any
    dtype: np.dtype[Any]  # of decoded values


class ValidArray(LazyArray):
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
        return _index_outer(mask, references.ndim, picked)


class StackArray(LazyArray):
    """Results of one shape stacked over the references; also padded ones.

    Shape: the references' shape, then ``cell``. With ``fill``, values are decoded
    here, since what stands for missing data is a decoded value.
    """

    def __init__(
        self,
        references: ReferenceArray,
        cell: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        fill: Fill | None = None,
        padded: bool = False,
        bound: BoundReferences | None = None,
    ) -> None:
        self.references = references
        self.cell = cell
        self.raw_dtype = dtype
        self.dtype, item_shape = item_dtype(dtype)
        if fill is not None:
            self.dtype = fill.dtype
        self.fill = fill
        self.padded = padded
        self.shape = references.shape + cell + item_shape
        self._bound = bound

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        split = self.references.ndim
        references = pick_references(self.references, key[:split])
        inner, item_key = key[split : split + len(self.cell)], key[split + len(self.cell) :]
        known = getattr(self, "_bound", None) if references is self.references else None
        bound = _bind_unchanged(references, known)
        cell = self.cell
        narrowed = None if self.padded else _narrowed(bound, inner, cell)
        if narrowed is not None:
            bound, cell = narrowed
            inner = tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in inner)
        n_cell = math.prod(cell)
        n = references.size
        check_size(n * n_cell, self.raw_dtype, bound, "the result")
        make = np.empty if self.fill is None else np.zeros
        out = make(n * n_cell, dtype=self.raw_dtype)
        read_into(
            bound,
            out,
            np.arange(n, dtype=np.int64) * n_cell,
            cell if self.padded else None,
            references.options.reader,
        )
        values = items(out.reshape(references.shape + cell))
        if self.fill is not None:
            values = np.array(self.fill.decode(values), dtype=self.fill.dtype)
            valid = bound.valid([np.arange(n) for n in cell])
            values[~valid.reshape(references.shape + cell)] = self.fill.value
        return _index_outer(values, references.ndim, (*inner, *item_key))


def pick_references(references: ReferenceArray, key: tuple[Axis, ...]) -> ReferenceArray:
    """Index references by integers, slices and arrays, each on its own axis."""
    sides = zip(key, references.shape, strict=True)
    if all(isinstance(k, slice) and k.indices(n) == (0, n, 1) for k, n in sides):
        return references
    if all(isinstance(k, int | np.integer | slice) for k in key):
        picked: ReferenceArray = references[(*key, Ellipsis)]
        return picked
    for axis in range(len(key) - 1, -1, -1):
        references = references[(slice(None),) * axis + (key[axis], Ellipsis)]
    return references


def _index_outer(
    values: npt.NDArray[Any], first: int, key: tuple[Axis, ...]
) -> npt.NDArray[Any]:
    if all(isinstance(k, slice) and k == slice(None) for k in key):
        return values
    for axis in range(len(key) - 1, -1, -1):
        # The ellipsis keeps a 0-d result an array, of its own dtype.
        values = values[(*(slice(None),) * (first + axis), key[axis], Ellipsis)]
    return values


def _forward_steps(
    key: tuple[Axis, ...], shape: tuple[int, ...]
) -> list[tuple[int, int, int]] | None:
    """Return (start, count, step) of integers and forward slices, None for other keys."""
    out = []
    for k, n in zip(key, shape, strict=True):
        if isinstance(k, slice):
            start, stop, step = k.indices(n)
            if step < 0:
                return None
            out.append((start, len(range(start, stop, step)), step))
        elif isinstance(k, int | np.integer):
            out.append((int(k) % n, 1, 1))
        else:
            return None
    return out


def _narrowed(
    bound: BoundReferences, key: tuple[Axis, ...], cell: tuple[int, ...]
) -> tuple[BoundReferences, tuple[int, ...]] | None:
    """Apply an index of the cells to the regions, so that less is read.

    Returns
    -------
    bound : BoundReferences
        With narrower regions of one shape.
    cell : tuple of int
        That shape; an integer of ``key`` leaves an axis of one element.
    """
    steps = _forward_steps(key, cell)
    if not bound.n_targets or steps is None:
        return None
    shape = tuple(n for _, n, _ in steps)
    if shape == cell:
        return None
    targets = []
    for target in bound.targets:
        regions = narrow(target.regions, steps)
        if regions is None:
            return None
        targets.append(replace(target, regions=regions))
    sizes = bound.shape.copy()
    sizes[~bound.null, : len(shape)] = shape
    return bound.with_targets(targets, sizes), shape


def _bind_unchanged(
    references: ReferenceArray, known: BoundReferences | None = None
) -> BoundReferences:
    """Bind references of files that are still those that were opened.

    ``known`` is what binding these references gave before, in this process.
    """
    columns = references.columns
    for location in columns.used_files():
        check_unchanged(location)
    return bind_references(columns, references.describe) if known is None else known


COARSE_ROWS = 4096
"""References between two row offsets that a `SampleArray` keeps."""


class SampleArray(LazyArray):
    """Results of any shapes, one after the other along one sample dimension.

    Only every `COARSE_ROWS`-th row offset is kept; the ones between are worked out
    from the references of that stretch, so the array pickles small.
    """

    def __init__(
        self,
        references: ReferenceArray,
        row_size: npt.NDArray[Any],
        dtype: np.dtype[Any],
        *,
        bound: BoundReferences | None = None,
    ) -> None:
        self.references = references.ravel() if references.ndim != 1 else references
        offsets = row_offsets(row_size.reshape(-1))
        self.coarse = offsets[:-1][::COARSE_ROWS].copy()
        self.raw_dtype = dtype
        self.dtype, item_shape = item_dtype(dtype)
        self.shape = (int(offsets[-1]), *item_shape)
        self._bound = bound

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        n, k = self.shape[0], key[0]
        if isinstance(k, np.ndarray):
            low = int(k.min(initial=n))
            hull = self._read((slice(low, int(k.max(initial=low)) + 1), *key[1:]))
            picks: npt.NDArray[Any] = hull[k - low]
            return picks
        picked = range(n)[k] if isinstance(k, slice) else range(n)[int(k) : int(k) + 1]
        if not picked:
            values = items(np.empty(0, dtype=self.raw_dtype))
        else:
            low, high = min(picked[0], picked[-1]), max(picked[0], picked[-1]) + 1
            values = items(self._read_samples(low, high))
            values = values[:: picked.step] if isinstance(k, slice) else values[0, ...]
        return _index_outer(values, int(isinstance(k, slice)), key[1:])

    def _read_samples(self, low: int, high: int) -> npt.NDArray[Any]:
        """Read samples ``low:high``: the rows that cover them, then cut."""
        first = max(int(np.searchsorted(self.coarse, low, side="right")) - 1, 0)
        last = int(np.searchsorted(self.coarse, high, side="left"))
        whole = first == 0 and last == len(self.coarse)
        known = getattr(self, "_bound", None) if whole else None
        part = self.references[first * COARSE_ROWS : last * COARSE_ROWS]
        bound = _bind_unchanged(part, known)
        ends = int(self.coarse[first]) + np.cumsum(bound.npoints)
        begin = int(np.searchsorted(ends, low, side="right"))
        end = int(np.searchsorted(ends, high, side="left")) + 1
        if begin > 0 or end < len(ends):
            part = part[begin:end]
            before = int(ends[begin - 1]) if begin else int(self.coarse[first])
            bound = bind_references(part.columns, part.describe)
        else:
            before = int(self.coarse[first])
        offsets = row_offsets(bound.npoints)
        check_size(int(offsets[-1]), self.raw_dtype, bound, "the result")
        out = np.empty(int(offsets[-1]), dtype=self.raw_dtype)
        read_into(bound, out, offsets[:-1], reader=part.options.reader)
        return out[low - before : high - before]


class RegionResults(LazyArray):
    """What a function makes of each region: one item of shape ``cell`` a reference.

    ``function(values, bound)`` gets the values of some references, flat and
    decoded, with their shapes, and returns the items in that order.
    """

    def __init__(
        self,
        references: ReferenceArray,
        dtype: np.dtype[Any],
        raw_dtype: np.dtype[Any],
        decode: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
        function: Callable[[npt.NDArray[Any], BoundReferences], npt.NDArray[Any]],
        cell: tuple[int, ...] = (),
    ) -> None:
        self.references = references
        self.dtype = dtype
        self.raw_dtype = raw_dtype
        self.decode = decode
        self.function = function
        self.cell = cell
        self.shape = references.shape + cell

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        split = self.references.ndim
        references = pick_references(self.references, key[:split])
        bound = _bind_unchanged(references)
        offsets = row_offsets(bound.npoints)
        check_size(int(offsets[-1]), self.raw_dtype, bound, "the values to work on")
        flat = np.empty(int(offsets[-1]), dtype=self.raw_dtype)
        read_into(bound, flat, offsets[:-1], reader=references.options.reader)
        result = np.asarray(self.function(self.decode(items(flat)), bound), dtype=self.dtype)
        result = result.reshape(references.shape + self.cell)
        return _index_outer(result, references.ndim, key[split:])
