"""``.h5ref`` on variables and Datasets.

In: what the engine opened. Out: the public methods, over `xref.resolving.resolve`,
`xref.resolving.tables` and `xref.resolving.reductions`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref.arrays import results_dtype
from xref.engine import Decoding, ReferenceVariable, lazily_indexed, reference_dataarray
from xref.hdf5 import items
from xref.objects import REFERENCE_BATCH, cache_h5py_references
from xref.references import KIND_NOUNS, ObjectReference, ReferenceArray, RegionReference
from xref.resolving.binding import BoundVariable, bind, warn_of_units
from xref.resolving.bound_references import BoundReferences
from xref.resolving.compound_fields import as_reference_array, field_references, nwb_regions
from xref.resolving.create import (
    REGION_DIM,
    group_reference,
    make_regions,
    object_reference,
    region_reference,
)
from xref.resolving.graph import auto_chunk_nbytes, check_chunks, chunk_variable
from xref.resolving.read_results import decoding_rows
from xref.resolving.reductions import PerRegion, RegionResults, Statistic
from xref.resolving.resolve import resolve_references
from xref.resolving.tables import reference_table
from xref.resolving.targets import target_attributes
from xref.writing import to_hdf5

SAMPLE_LENGTH = 64
"""Longest axis of the ones that a function is called with to learn its dtype."""


class ReferenceAccessor:
    """What can be done with a reference variable.

    Selecting first (``isel``, ``sel``, ``where`` with ``drop``) and resolving then
    plans and reads only what was selected.
    """

    def __init__(self, array: xr.DataArray) -> None:
        self._array = array

    @property
    def references(self) -> ReferenceArray:
        """The references as columns.

        Raises
        ------
        TypeError
            If the variable holds none.

        Notes
        -----
        Compounds of start, count and reference (as NWB's ``TimeSeriesReference``)
        stand for regions along the first axis; both numbers negative for none.
        """
        array = self._array
        if array.dtype.names:
            return nwb_regions(array)
        held = array.variable._data
        if isinstance(held, ReferenceArray):
            return held
        if array.dtype != object or not array.size:
            raise TypeError(
                f"{array.name!r} holds {array.dtype} values, no references; .h5ref is for "
                "reference variables of files opened with engine='h5ref'"
            )
        return as_reference_array(array.values, f"{array.name!r}")

    def resolve(
        self,
        layout: str = "stack",
        *,
        chunks: Any = "auto",
        coords: bool = True,
        on_null: str = "raise",
        fill_value: Any = None,
        dtype: Any = None,
    ) -> Any:
        """Read what all references select, as one lazy array.

        Parameters
        ----------
        layout : {"stack", "ragged", "pad"}
            "stack": every selection has one shape; the variable's dimensions are
            followed by the target's. "ragged": selections of any shapes along one
            ``sample`` dimension, with ``row_size`` for each reference (CF
            conventions 1.11, "Contiguous ragged array representation"). "pad": up
            to the largest shape, with a fill value and a ``valid`` mask.
        chunks : "auto", int, dict or None
            Dask blocks, each of whole regions: "auto" fills dask's chunk size, an
            int counts references (along each dimension of the variable for "stack"
            and "pad", in all for "ragged"), a dict says it by dimension. None gives
            lazy arrays without dask.
        coords : bool
            Bring the target's coordinates along: 1-D where all references select
            alike, else by reference. ``y_start`` and so on say where in its target
            each region begins.
        on_null : {"raise", "fill", "drop"}
            What becomes of null references.
        fill_value : scalar, optional
            For null references and padding. By default a missing value of the kind of the
            others: NaN, NaT, empty text, an empty sequence; for integers the fill value of
            each target (``_FillValue``, else that of the dataset).
        dtype : dtype-like, optional
            Type of the decoded values. By default the one that holds the values of all
            targets exactly.

        Returns
        -------
        xarray.DataArray, xarray.Dataset or dict
            A DataArray for "stack", a Dataset otherwise. References to groups give
            a dict of lazily opened Datasets by element. References to attributes of
            one shape and type give their values, read at once.

        Raises
        ------
        ValueError
            If the shapes found do not fit the layout, or if no one type holds the values
            of all targets exactly and there is no ``dtype``.
        NullReferenceError
            If a reference is null and ``on_null="raise"``.
        SelectionError
            If a region does not fit its target's current extent.
        """
        return resolve_references(
            self._array,
            self.references,
            layout=layout,
            chunks=chunks,
            coords=coords,
            on_null=on_null,
            fill_value=fill_value,
            dtype=dtype,
        )

    def reference(self) -> ObjectReference:
        """Return a reference to the dataset of a variable.

        Raises
        ------
        TypeError
            If the variable is not one of an open file.
        """
        return object_reference(self._array)

    def region_reference(self, *key: Any, points: Any = None, **labels: Any) -> RegionReference:
        """Return a reference to some elements of a variable's dataset.

        Without arguments these are the elements of the variable: selected by ``isel``,
        ``sel`` or an index from one that was opened lazily, or all of them.

        Parameters
        ----------
        *key : int, slice, sequence of int, or mask
            For each dimension; an `Ellipsis` for those between. Or one tuple of them, as
            `numpy.s_` makes it. Or one mask of the variable's shape, or a boolean
            DataArray along some of its dimensions: the single elements where it is true.
            Give the mask rather than ``array.where(mask)``, which forgets where its values
            came from: they are looked for by its name, coordinates and values.
        points : array_like of int, optional
            Shape ``(n, ndim)``: single elements in any order, also repeated.
        **labels
            Labels of coordinates by dimension, as for `xarray.DataArray.sel`.

        Returns
        -------
        RegionReference
            It resolves to the elements, integers as axes of length 1.

        Raises
        ------
        TypeError
            If the variable is not one of an open file, or its elements are forgotten.
        IndexError, KeyError
            If an index or a label does not fit.
        SelectionError
            If the elements have another order than in the dataset, or are not stored.
        """
        return region_reference(self._array, key, points, labels)

    def regions(
        self,
        start: Any,
        shape: Any = None,
        *,
        stop: Any = None,
        dim: Hashable = REGION_DIM,
    ) -> xr.DataArray:
        """Return references to many boxes of a variable, which no file stores.

        They resolve like those that are read from a file, and `xref.to_hdf5` stores them.

        Parameters
        ----------
        start : array_like, xarray.DataArray, pandas.DataFrame, xarray.Dataset or dict
            First element of each box: integers of shape ``(..., ndim)``, or columns (of a
            pandas Series, for one box, labels) named
            ``y_start`` or ``y`` for a dimension ``y``. Dimensions without a column are
            taken whole.
        shape, stop : the same, or sequence of int
            Elements along each axis (columns ``y_size`` or ``y``), or one past the last one
            (columns ``y_stop`` or ``y``). One row holds for all boxes.
        dim : hashable
            Dimension of the boxes, if ``start`` does not name it.

        Returns
        -------
        xarray.DataArray
            A reference variable along the dimensions and coordinates of ``start``.

        Raises
        ------
        SelectionError
            If a box is empty or not within the variable.
        TypeError
            If the variable is not one of an open file.

        Examples
        --------
        >>> boxes = ds["image"].h5ref.regions([[0, 0], [10, 20]], (8, 8))  # doctest: +SKIP
        >>> boxes.h5ref.resolve()  # doctest: +SKIP
        """
        return make_regions(self._array, start, shape, stop=stop, dim=dim)

    def field(self, name: str) -> xr.DataArray:
        """Return the references in one member of a variable of compounds.

        Parameters
        ----------
        name : str
            The member; dots lead into members that are compounds themselves.

        Returns
        -------
        xarray.DataArray
            A reference variable, not read yet where the compounds are not. The axes of
            a member that is an array come last, as ``name_0``, ``name_1`` ...

        Raises
        ------
        KeyError
            If there is no such member.
        TypeError
            If it holds something else.
        """
        array = self._array
        references = field_references(array, name)
        short = name.rsplit(".", 1)[-1]
        dims = array.dims + tuple(f"{short}_{i}" for i in range(references.ndim - array.ndim))
        variable = ReferenceVariable(dims, references, array.attrs)
        return reference_dataarray(variable, array.coords, short)

    def table(self) -> xr.Dataset:
        """Describe the references without reading what they point at.

        Returns
        -------
        xarray.Dataset
            By reference: ``path`` (empty without a name), ``address``, ``kind`` and
            ``filename`` of the target. For region references also ``selection``
            (its kind), ``npoints``, ``start`` and ``stop`` (elements along each
            axis, stop exclusive), ``ndim`` and ``shape`` of what resolving gives
            (-1 past its axes), and ``fits``: whether the region lies within its
            target as it is now. With references to attributes among them also
            ``attribute``: its name, empty for other references.
        """
        array = self._array
        return reference_table(self.references, array.dims, dict(array.coords))

    def target_attrs(self) -> xr.Dataset:
        """Return the attributes of what each reference points at.

        Returns
        -------
        xarray.Dataset
            A variable for each attribute that some target has, along the dimensions of the
            references: numbers where all targets have it as a number of one type, else
            objects, with None where a target has none and for null references. Attributes
            are as stored, those of the packing included.

        Raises
        ------
        DanglingReferenceError, WrongTargetError
            If a reference points at nothing, or at no dataset.
        """
        array = self._array
        return target_attributes(self.references, array.dims, dict(array.coords))

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Yield the index of each element and what it resolves to, lazily.

        The index is an int for 1-D variables and a tuple otherwise. A null
        reference gives None.
        """
        references = self.references
        for row in range(references.size):
            if row % REFERENCE_BATCH == 0:
                part = references.columns.address[row : row + REFERENCE_BATCH]
                cache_h5py_references(part.tolist())
            index = tuple(int(i) for i in np.unravel_index(row, references.shape))
            element = references.element(row)
            yield (
                index[0] if len(index) == 1 else index,
                element.resolve() if element else None,
            )

    def count(self, *, chunks: Any = "auto", on_null: str = "raise") -> xr.DataArray:
        """Count the elements of each region that are not missing."""
        return self._statistic("count", chunks, on_null)

    def sum(self, *, chunks: Any = "auto", on_null: str = "raise") -> xr.DataArray:
        """Sum up each region; missing values are skipped."""
        return self._statistic("sum", chunks, on_null)

    def mean(self, *, chunks: Any = "auto", on_null: str = "raise") -> xr.DataArray:
        """Return the mean of each region; missing values are skipped."""
        return self._statistic("mean", chunks, on_null)

    def min(self, *, chunks: Any = "auto", on_null: str = "raise") -> xr.DataArray:
        """Return the smallest value of each region; missing values are skipped."""
        return self._statistic("min", chunks, on_null)

    def max(self, *, chunks: Any = "auto", on_null: str = "raise") -> xr.DataArray:
        """Return the largest value of each region; missing values are skipped."""
        return self._statistic("max", chunks, on_null)

    def std(self, *, chunks: Any = "auto", on_null: str = "raise") -> xr.DataArray:
        """Return the standard deviation of each region (ddof of 0), missing values skipped."""
        return self._statistic("std", chunks, on_null)

    def reduce(
        self,
        func: Callable[..., Any],
        *args: Any,
        dtype: Any = None,
        chunks: Any = "auto",
        on_null: str = "raise",
        **kwargs: Any,
    ) -> xr.DataArray:
        """Reduce each region to one value with a function.

        Parameters
        ----------
        func : callable
            ``func(values, *args, **kwargs)`` with a NumPy array of the region's
            shape, decoded; returns one value. `numpy.median`, for example.
        dtype : dtype-like, optional
            Of the results; by default what ``func`` gives for ones.
        chunks, on_null
            As in `resolve`; null references give ``func`` an empty array with
            ``on_null="fill"``.
        """
        return self._call(func, args, kwargs, dtype, (), chunks, on_null)

    def map(
        self,
        func: Callable[..., Any],
        *args: Any,
        dtype: Any = None,
        output_sizes: dict[str, int] | None = None,
        chunks: Any = "auto",
        on_null: str = "raise",
        **kwargs: Any,
    ) -> xr.DataArray:
        """Call a function with each region, in parallel.

        Parameters
        ----------
        func : callable
            ``func(values, *args, **kwargs)`` with a NumPy array of the region's
            shape, decoded; returns an array of the shape in ``output_sizes``, or
            any one object.
        dtype : dtype-like, optional
            Of the results; by default what ``func`` gives for ones.
        output_sizes : dict of str to int, optional
            New dimensions of the result and their sizes.
        chunks, on_null
            As in `resolve`; null references give ``func`` an empty array with
            ``on_null="fill"``.

        Returns
        -------
        xarray.DataArray
            The variable's dimensions, then those of ``output_sizes``.
        """
        sizes = tuple((output_sizes or {}).items())
        return self._call(func, args, kwargs, dtype, sizes, chunks, on_null)

    def _call(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        dtype: Any,
        sizes: tuple[tuple[str, int], ...],
        chunks: Any,
        on_null: str,
    ) -> xr.DataArray:
        resolved, array = self._bind(on_null)
        cell = tuple(n for _, n in sizes)
        if dtype is None:
            dtype = _infer_dtype(func, args, kwargs, resolved)
        found = np.dtype(dtype)
        if found.itemsize == 0:  # str and bytes without a length, in which NumPy cuts them
            found = np.dtype(object)
        function = PerRegion(func, args, kwargs, found, cell)
        return _results(resolved, array, found, function, sizes, chunks, "map", {})

    def _statistic(self, name: str, chunks: Any, on_null: str) -> xr.DataArray:
        resolved, array = self._bind(on_null)
        dtype = _statistic_dtype(name, resolved)
        if name != "count":
            warn_of_units(resolved)
        keep = xr.get_options()["keep_attrs"]  # type: ignore[no-untyped-call]
        attributes = resolved.attributes if keep is True else {}
        statistic = Statistic(name)
        return _results(resolved, array, dtype, statistic, (), chunks, name, attributes)

    def _bind(self, on_null: str) -> tuple[BoundVariable, xr.DataArray]:
        array = self._array
        resolved, kept = bind(self.references, array.dims, on_null, array.name)
        return resolved, array if kept is None else array[{array.dims[0]: kept}]


def _statistic_dtype(name: str, resolved: BoundVariable) -> np.dtype[Any]:
    """Return the type of a statistic of the values of all targets.

    Raises
    ------
    TypeError
        If values of some target have no such statistic, or if those of several targets
        have no common type.
    """
    any_empty = bool((resolved.bound.npoints == 0).any())
    found = []
    for dtype, item_shape in resolved.decoders.forms or [(np.dtype(float), ())]:
        if item_shape:
            raise TypeError(
                f"no {name} of elements that are arrays; resolve them, or use .h5ref.map()"
            )
        found.append(Statistic(name).result_dtype(dtype, any_empty))
    common = results_dtype(found)
    if common is None:
        names = ", ".join(str(dtype) for dtype, _ in resolved.decoders.forms)
        raise TypeError(
            f"{resolved.label} points at datasets of types {names}, whose {name} has no "
            "common type; select references of one type"
        )
    return common


def _infer_dtype(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    resolved: BoundVariable,
) -> np.dtype[Any]:
    """Call a function with ones of the shape of a region of each type, as dask does."""
    bound, decoders = resolved.bound, resolved.decoders
    which = decoding_rows(bound, decoders)
    forms = np.where(which >= 0, decoders.form_of_kinds[which], -1) if len(which) else which
    found: list[np.dtype[Any]] = []
    for form in range(max(len(decoders.forms), 1)):
        kind = next(
            (
                k
                for k, f in zip(decoders.kinds, decoders.form_of_kinds, strict=True)
                if f == form
            ),
            None,
        )
        rows = np.flatnonzero(forms == form)
        row = int(rows[np.argmax(bound.npoints[rows] > 0)]) if len(rows) else None
        shape = () if row is None else tuple(bound.shape[row, : int(bound.ndim[row])].tolist())
        element = np.ones(1) if kind is None else _sample_of(kind)
        values = _repeated(element, _sample_shape(shape))
        try:
            result = func(values, *args, **kwargs)
        except Exception as error:
            raise ValueError(
                f"the dtype of {func!r} could not be found by calling it with ones of type "
                f"{values.dtype} and shape {values.shape}: {type(error).__name__}: {error}; "
                "pass dtype="
            ) from error
        is_object = isinstance(result, dict | list | str | bytes)
        found.append(np.dtype(object) if is_object else np.asarray(result).dtype)
    common = results_dtype(found)
    # Text is as long as the sample's, and of several kinds none holds all: objects do.
    return np.dtype(object) if common is None or common.kind in "SU" else common


def _sample_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape of not many elements: large regions need not be made to learn a type."""
    longest = SAMPLE_LENGTH
    while math.prod(min(n, longest) for n in shape) > SAMPLE_LENGTH**2:
        longest -= 1
    return tuple(min(n, longest) for n in shape)


def _repeated(element: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return an array of some shape, of the one element of another."""
    values = np.empty(shape + element.shape[1:], dtype=element.dtype)
    if values.dtype.kind != "O":
        values[...] = element[0]
        return values
    for index in np.ndindex(shape):
        values[index] = element[0]  # a sequence is one value
    return values


def _sample_of(kind: Decoding) -> npt.NDArray[Any]:
    """Return one decoded element, of the value 1 where it is a number."""
    one = np.zeros(1, dtype=kind.raw_dtype)
    values = items(one)
    if values.dtype.kind in "biufc":
        values[...] = 1
    elif values.dtype.hasobject:
        missing = np.empty((), dtype=values.dtype)
        missing[()] = kind.missing
        values[...] = missing
    return kind(values)


def _results(
    resolved: BoundVariable,
    array: xr.DataArray,
    dtype: np.dtype[Any],
    function: Callable[[Any, BoundReferences], Any],
    sizes: tuple[tuple[str, int], ...],
    chunks: Any,
    what: str,
    attributes: dict[str, Any],
) -> xr.DataArray:
    """Make the lazy array of one item a reference."""
    cell = tuple(n for _, n in sizes)
    data = RegionResults(
        resolved.references, dtype, resolved.decoders, function, cell, bound=resolved.bound
    )
    taken = [name for name, _ in sizes if name in resolved.dims]
    if taken:
        raise ValueError(
            f"output_sizes names {taken}, which {resolved.label} has already; choose others"
        )
    dims = (*resolved.dims, *(d for d, _ in sizes))
    variable = xr.Variable(dims, lazily_indexed(data), attributes)
    check_chunks(chunks, dims)
    if chunks is not None:
        wanted = {**_result_chunks(chunks, resolved), **{dim: -1 for dim, _ in sizes}}
        variable = chunk_variable(variable, data, wanted, what)
    own = {k: v for k, v in array.coords.items() if set(v.dims) <= set(dims)}
    return xr.DataArray(variable, coords=own, name=array.name)


def _result_chunks(chunks: Any, resolved: BoundVariable) -> dict[Any, Any]:
    """Return chunks of references whose values fill dask's chunk size."""
    if isinstance(chunks, dict):
        return {**dict.fromkeys(resolved.dims, -1), **chunks}
    if not resolved.dims:
        return {}
    if chunks != "auto":
        return dict.fromkeys(resolved.dims, chunks)
    shape = resolved.references.shape
    nbytes = int(resolved.bound.npoints.sum()) * max(resolved.widest.itemsize, 1)
    n_blocks = max(-(-nbytes // auto_chunk_nbytes()), 1)
    return {**dict.fromkeys(resolved.dims, -1), resolved.dims[0]: max(shape[0] // n_blocks, 1)}


class DatasetAccessor:
    """What can be done with a Dataset that holds reference variables."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    @property
    def references(self) -> dict[Any, str]:
        """Reference variables by name, with their kind, shape and number."""
        out = {}
        for name, variable in self._dataset.variables.items():
            data = variable._data
            if isinstance(data, ReferenceArray):
                out[name] = f"{KIND_NOUNS[data.kind]}s {dict(variable.sizes)}"
        return out

    def reference(self, path: str = ".") -> ObjectReference:
        """Return a reference to the group that the Dataset was opened from.

        Parameters
        ----------
        path : str
            From there, to any other object: a group, a dataset, a named datatype.

        Raises
        ------
        TypeError
            If the Dataset is no group of an open file.
        KeyError
            If there is nothing at the path.
        """
        return group_reference(self._dataset, path)

    def to_hdf5(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Write the Dataset to an HDF5 file, references included; see `xref.to_hdf5`."""
        return to_hdf5(self._dataset, path, *args, **kwargs)
