"""Lazy arrays for xarray: an index in, values out.

In: the location of a dataset, and an index from xarray or Dask. Out: NumPy arrays. Each class
pickles as the location and a few numbers; the metadata needed to read are decoded where an
index is applied. So the tasks of a Dask graph are small.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from xref import reading, references, selections
from xref.arrays import canvas_strides
from xref.errors import naming
from xref.hdf5 import DatasetLayout, item_dtype, unfold_subarray
from xref.objects import StoredObject, type_and_fill
from xref.references import DecodeOptions
from xref.storage import check_unchanged

_skipping_objects: ContextVar[bool] = ContextVar("_skipping_objects", default=False)


@contextmanager
def skip_object_reads() -> Iterator[None]:
    """Return None for objects while xarray decodes variables.

    xarray reads one element of each variable of objects to see whether the objects are dates.
    Objects from HDF5 files never are.
    """
    token = _skipping_objects.set(True)
    try:
        yield
    finally:
        _skipping_objects.reset(token)


Axis = int | slice | npt.NDArray[Any]


def lazily_indexed(array: BackendArray) -> indexing.LazilyIndexedArray:
    """Wrap an array so that xarray composes indices before it reads."""
    return indexing.LazilyIndexedArray(array)


def outer_indexed(variable: xr.Variable) -> indexing.ImplicitToExplicitIndexingAdapter:
    """Wrap the lazy data of a variable as an array that slices and 1-D arrays index."""
    return indexing.ImplicitToExplicitIndexingAdapter(variable._data, indexing.OuterIndexer)


def is_decoded(variable: xr.Variable, array: BackendArray) -> bool:
    """Tell whether the data of a variable are a lazy array with a decoder around it."""
    data = variable._data
    return not (isinstance(data, indexing.LazilyIndexedArray) and data.array is array)


Step = tuple[tuple[Any, ...], bool]
"""The keys of one index, and whether it is outer: each key selects along its own axis."""


def indexed_dataset(data: Any) -> tuple[DatasetArray, list[Step]] | None:
    """Return the dataset behind the data of a lazy variable, and the indices applied to it.

    None if the values are in memory or in Dask, or are not elements of one dataset.
    """
    steps: list[Step] = []
    while not isinstance(data, DatasetArray):
        key = getattr(data, "key", None)
        if isinstance(key, indexing.ExplicitIndexer):
            steps.append((key.tuple, not isinstance(key, indexing.VectorizedIndexer)))
        data = getattr(data, "array", None)
        if data is None or isinstance(data, np.ndarray):
            return None
        if type(data).__name__ == "StackedBytesArray":
            return None  # several elements form one text
    return data, steps[::-1]


def dask_source(data: Any) -> Any | None:
    """Return the lazy array that a Dask array only divides into blocks, or None."""
    sources = dask_sources(data)
    if len(sources) != 1:
        return None
    ((name, source),) = sources.items()
    reads = {name, name.removeprefix("original-")}
    others = set(data.dask.layers) - reads
    return source if all(layer.startswith("rechunk-") for layer in others) else None


def dask_sources(data: Any) -> dict[str, Any]:
    """Return the lazy arrays from which a Dask array is computed, by name of their layer."""
    layers = getattr(getattr(data, "dask", None), "layers", {})
    found = {}
    for name, layer in layers.items():
        if name.startswith("original-"):
            for source in dict(layer).values():
                found[name] = getattr(source, "value", source)
    return found


def _axis_segments(key: Axis, extent: int) -> tuple[reading.Segments, Axis | None]:
    """Return the elements of one axis in ascending order, and the index that reorders them."""
    if isinstance(key, slice):
        elements = range(extent)[key]
        forward = elements if elements.step > 0 else elements[::-1]
        order = None if elements.step > 0 else slice(None, None, -1)
        return reading.regular_segments(forward.start, forward.step, len(forward)), order
    wanted = np.atleast_1d(np.asarray(key))
    wanted = np.where(wanted < 0, wanted + extent, wanted)
    if ((wanted < 0) | (wanted >= extent)).any():
        raise IndexError(f"index {key!r} is out of bounds for an axis of {extent}")
    ascending, inverse = np.unique(wanted, return_inverse=True)
    segments = reading.interval_segments(*selections.merge_intervals(ascending, ascending + 1))
    return segments, None if np.array_equal(ascending, wanted) else inverse


class LazyArray(BackendArray):
    """Base of the lazy arrays: subclasses implement ``_read``.

    ``_read`` takes an integer, slice or 1-D array for each axis. The attributes of an array
    can be pickled; the names of Dask tasks are made from them.
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

    def read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        """Read the elements that an integer, slice or 1-D array for each axis selects."""
        return self._read(key)

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        # Attributes whose names begin with "_" are caches of this process.
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def __dask_tokenize__(self) -> Any:
        from dask.base import normalize_token

        # Dask hashes the repr of the returned value, without normalizing its items.
        return normalize_token((type(self).__name__, sorted(self.__getstate__().items())))


class DatasetArray(LazyArray):
    """The elements of one dataset; an index reads each chunk once.

    ``shape`` may exceed the extent of the dataset along unlimited dimensions. Elements beyond
    the extent are the fill value of the dataset.
    """

    def __init__(
        self,
        dataset: StoredObject,
        layout: DatasetLayout,
        options: DecodeOptions,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.dataset, self.options = dataset, options
        self.encode_text = bool(layout.text) and not options.decode_vlen_strings
        self.extent = layout.shape
        self.raw_dtype = layout.dtype
        if layout.text:
            # For ASCII and UTF-8 alike: writers trust the metadata to tell the type of values.
            metadata: Any = {"vlen": bytes if self.encode_text else str}
            self.raw_dtype = np.dtype(object, metadata=metadata)
        self.dtype, item_shape = item_dtype(self.raw_dtype)
        self.shape = layout.shape + item_shape if shape is None else shape

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        if _skipping_objects.get() and self.dtype.hasobject:
            placeholder = np.broadcast_to(np.array(None, dtype=self.dtype), self.shape)
            return index_outer(placeholder, 0, key)
        with self.options.lock or nullcontext():
            return self._read_padded(key) if self._is_padded() else self._read_stored(key)

    def _is_padded(self) -> bool:
        return self.shape[: len(self.extent)] != self.extent

    def _read_padded(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        """Read the stored elements of an index, and fill the others."""
        split = len(self.extent)
        sides = zip(self.shape[:split], key[:split], strict=True)
        positions = [np.atleast_1d(np.arange(n)[k]) for n, k in sides]
        inside = [p < n for p, n in zip(positions, self.extent, strict=True)]
        if all(i.all() for i in inside):
            return self._read_stored(key)
        stored = [p[i] for p, i in zip(positions, inside, strict=True)]
        values = self._read_stored((*stored, *key[split:]))
        shape = (*(len(p) for p in positions), *values.shape[split:])
        out = np.zeros(shape, dtype=values.dtype)
        stored_box = np.ix_(*inside)
        if self.dtype.hasobject:
            outside = np.ones(shape[:split], dtype=bool)
            outside[stored_box] = False
            fill = self._fill_of_objects(int(outside.sum()))
            out[outside] = index_outer(fill, 1, key[split:])
        else:
            layout = self.dataset.layout
            if layout.fill_value is not None:
                out[...] = unfold_subarray(np.full((), layout.fill_value, dtype=self.raw_dtype))
        out[stored_box] = values
        return _drop_integers(out, key[:split])

    def _fill_of_objects(self, n: int) -> npt.NDArray[Any]:
        """Return the fill value of a dataset of objects (text, sequences, ...) n times.

        Each is decoded separately: two elements must not share a sequence, which the user may
        change.
        """
        datatype, stored = type_and_fill(self.dataset)
        raw = np.broadcast_to(np.frombuffer(stored, dtype=np.uint8), (n, len(stored)))
        owner = references.Owner.of(self.dataset, None, "fill value")
        names = references.ElementNames.of_owner(owner, np.zeros(n, dtype=np.int64))
        fill = references.decode_values(
            self.dataset.location, datatype, raw, names, self.options
        )
        if datatype.is_string and not self.encode_text:
            # Text is str, text within other types is bytes.
            fill[:] = [text.decode("utf-8", "surrogateescape") for text in fill.tolist()]
        return fill

    @staticmethod
    def _plan(
        axes: list[reading.Segments], shape: tuple[int, ...], layout: DatasetLayout
    ) -> reading.ReadPlan:
        """Plan the read of the outer product of elements along each axis."""
        # One segment of step 1 along each axis is a box.
        if layout.chunks and all(len(a.start) == 1 and a.step[0] == 1 for a in axes):
            start = [int(a.start[0]) for a in axes]
            plan = reading.plan_chunk(start, layout.shape, layout.chunks, shape)
            if plan is not None:
                return plan
        strides = np.array(canvas_strides(shape), dtype=np.int64)
        parts = reading.plan_outer(axes, 0, strides)
        return reading.plan_read(
            parts, layout.shape, layout.chunks, max(layout.dtype.itemsize, 1)
        )

    def _read_stored(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        check_unchanged(self.dataset.location)
        layout = self.dataset.layout
        split = len(self.extent)
        axes = [_axis_segments(k, n) for k, n in zip(key[:split], self.extent, strict=True)]
        shape = tuple(int(segments.count.sum()) for segments, _ in axes)
        out = np.empty(math.prod(shape), dtype=self.raw_dtype)
        if out.size:
            with naming(self.dataset.__str__):
                plan = self._plan([segments for segments, _ in axes], shape, layout)
                loader = references.tile_loader(self.dataset, layout, options=self.options)
                reading.read_plan(plan, loader, out)
        if self.encode_text:
            out[:] = [text.encode("utf-8", "surrogateescape") for text in out.tolist()]
        values = unfold_subarray(out.reshape(shape))
        for axis, (_, order) in enumerate(axes):
            if order is not None:
                values = values[(slice(None),) * axis + (order,)]
        values = index_outer(values, split, key[split:])
        return _drop_integers(values, key[:split])


def _drop_integers(values: npt.NDArray[Any], key: tuple[Axis, ...]) -> npt.NDArray[Any]:
    """Drop the axes whose key is an integer."""
    drop = tuple(i for i, k in enumerate(key) if isinstance(k, int | np.integer))
    return values.squeeze(drop) if drop else values


def index_outer(
    values: npt.NDArray[Any], first: int, key: tuple[Axis, ...]
) -> npt.NDArray[Any]:
    """Index the axes from ``first`` on, each by its own key."""
    if all(isinstance(k, slice) and k == slice(None) for k in key):
        return values
    for axis in range(len(key) - 1, -1, -1):
        # With the ellipsis, a 0-d result stays an array and keeps its dtype.
        values = values[(*(slice(None),) * (first + axis), key[axis], Ellipsis)]
    return values
