"""The accessor ``.h5ref`` of variables and Datasets.

In: a variable or Dataset that was opened with ``engine="h5ref"``. Out: the public methods.
Their work is done in the other modules of `xref.resolving`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np
import xarray as xr

from xref.engine import ReferenceVariable, find_object, reference_dataarray
from xref.objects import REFERENCE_BATCH, cache_h5py_references
from xref.references import ObjectReference, ReferenceArray, RegionReference
from xref.resolving.compound_fields import as_reference_array, field_references, nwb_regions
from xref.resolving.create import REGION_DIM, make_regions, region_reference
from xref.resolving.region_functions import call_function, compute_statistic
from xref.resolving.resolve import resolve_references
from xref.resolving.tables import reference_table
from xref.resolving.targets import target_attributes


class ReferenceAccessor:
    """Methods of a reference variable.

    Select references first (``isel``, ``sel``, ``where`` with ``drop``) and resolve them then:
    only the data of the selected references are planned and read.

    Examples
    --------
    >>> ds = xr.open_dataset("rois.h5", engine="h5ref")  # doctest: +SKIP
    >>> ds["rois"].h5ref.resolve()  # doctest: +SKIP
    """

    def __init__(self, array: xr.DataArray) -> None:
        self._array = array

    @property
    def references(self) -> ReferenceArray:
        """The references of the variable, as columns.

        Raises
        ------
        TypeError
            If the variable holds no references.

        Notes
        -----
        Compounds of start, count and reference (such as ``TimeSeriesReference`` of NWB) stand
        for regions along the first axis. If both numbers are negative, the reference is null.
        """
        array = self._array
        if array.dtype.names:
            return nwb_regions(array)
        data = array.variable._data
        if isinstance(data, ReferenceArray):
            return data
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
        concat_dim: Hashable | None = None,
    ) -> Any:
        """Resolve all references into one lazy array of the elements that they select.

        Parameters
        ----------
        layout : {"stack", "ragged", "pad", "concat"}
            "stack": all selections have the same shape; the dimensions of the result are those
            of the variable, then those of the targets. "ragged": selections of any shapes
            follow each other along one ``sample`` dimension, with ``row_size`` elements of
            shape ``row_shape`` (-1 for an axis that a result does not have) for each
            reference (CF conventions 1.11, "Contiguous ragged array representation").
            "pad": each selection is padded to the largest shape with a fill value; a mask
            ``valid`` marks the selected elements. "concat": the selections are joined along
            one dimension of their targets; the other dimensions need equal lengths.
            Coordinates tell the reference of each element along the joined dimension.
        chunks : "auto", int, dict or None
            Dask blocks, each of whole regions. "auto" fills Dask's chunk size. An int is a
            number of references: along each dimension of the variable for "stack" and "pad",
            in total for "ragged" and "concat". A dict gives chunks by dimension. None gives
            lazy arrays without Dask.
        coords : bool
            Add the coordinates of the targets. "stack": 1-D if all references select the same
            part, else with the dimensions of the references. "concat": like "stack", but
            coordinates along the joined dimension are joined too. "ragged": one along
            ``sample`` for each axis of the targets: the values of the coordinate that all
            targets have, else the positions along the axis (int64). "stack" and "pad" have
            positions of points, masks, lists and slices with steps along axes without a
            coordinate, -1 without an element. ``y_start`` is the first element of each region
            along dimension ``y`` of its target.
        on_null : {"raise", "fill", "drop"}
            Null references raise an error, become fill values, or are dropped. In a ragged or
            joined result, they are without elements.
        fill_value : scalar, optional
            Value of null references and of padding. The default depends on the type: NaN, NaT,
            empty text, or an empty sequence; for integers the fill value of each target
            (``_FillValue``, else the fill value of the dataset).
        dtype : dtype-like, optional
            Type of the decoded values. The default type holds the values of all targets
            exactly.
        concat_dim : hashable or int, optional
            The joined dimension of the targets for "concat", or the number of its axis. The
            default is the first.

        Returns
        -------
        xarray.DataArray, xarray.Dataset or dict
            A DataArray for "stack" and "concat", a Dataset for "ragged" and "pad".
            References to groups give a dict from the index of each reference to a lazily
            opened Dataset. References to attributes of one shape and type give the attribute
            values, which are read at once.

        Raises
        ------
        ValueError
            If the shapes of the selections do not fit the layout, or if no single type holds
            the values of all targets exactly and ``dtype`` is not given.
        NullReferenceError
            If a reference is null and ``on_null="raise"``.
        SelectionError
            If a region does not fit the current extent of its target.

        Examples
        --------
        >>> patches = ds["rois"].h5ref.resolve(chunks={"roi": 100})  # doctest: +SKIP
        >>> patches.mean(("y", "x")).compute()  # doctest: +SKIP
        >>> ds["trials"].h5ref.resolve("concat", concat_dim="time")  # doctest: +SKIP
        """
        options = chunks, coords, on_null, fill_value, dtype, concat_dim
        return resolve_references(self._array, self.references, layout, *options)

    def reference(self) -> ObjectReference:
        """Return a reference to the dataset of the variable.

        Raises
        ------
        TypeError
            If the variable does not belong to an open file.

        Examples
        --------
        >>> ds["image"].h5ref.reference()  # doctest: +SKIP
        """
        return find_object(self._array)

    def region_reference(self, *key: Any, points: Any = None, **labels: Any) -> RegionReference:
        """Return a reference to elements of the dataset of the variable.

        Without arguments, the reference selects the elements of the variable: all elements, or
        those selected by ``isel``, ``sel`` or an index from a lazily opened variable.

        Parameters
        ----------
        *key : int, slice, sequence of int, or mask
            One for each dimension; an `Ellipsis` stands for whole dimensions. Or one tuple of
            them, such as `numpy.s_` makes. Or one mask of the shape of the variable, or a
            boolean DataArray along some of its dimensions, which selects the single elements
            where it is true. Prefer the mask to ``array.where(mask)``: the result of ``where``
            does not know the file of its values, so they are searched for by name,
            coordinates and values.
        points : array_like of int, optional
            Shape ``(n, ndim)``: single elements in any order, also repeated.
        **labels
            Labels of coordinates by dimension, as for `xarray.DataArray.sel`.

        Returns
        -------
        RegionReference
            It resolves to the elements; an integer of ``key`` gives an axis of length 1.

        Raises
        ------
        TypeError
            If the variable does not belong to an open file, or if nothing tells which
            elements of its dataset it has.
        IndexError, KeyError
            If an index or a label does not fit.
        SelectionError
            If the order of the elements differs from the order in the dataset, or if elements
            are not stored.

        Examples
        --------
        >>> ds["image"].h5ref.region_reference(slice(0, 8), slice(10, 18))  # doctest: +SKIP
        >>> ds["field"].h5ref.region_reference(lat=slice(40, 50))  # doctest: +SKIP
        """
        return region_reference(self._array, key, points, labels)

    def regions(
        self,
        start: Any,
        shape: Any = None,
        *,
        stop: Any = None,
        step: Any = None,
        dim: Hashable = REGION_DIM,
    ) -> xr.DataArray:
        """Make references to many boxes of the variable.

        They resolve like references that were read from a file; `xref.to_hdf5` stores them.

        Parameters
        ----------
        start : array_like, xarray.DataArray, pandas.DataFrame, xarray.Dataset or dict
            First element of each box: integers of shape ``(..., ndim)``, or columns named
            ``y_start`` or ``y`` for a dimension ``y``. A pandas Series with these names as
            labels gives one box. A box includes the whole of each dimension without a column.
        shape, stop : the same, or sequence of int
            Number of elements along each axis (columns ``y_size`` or ``y``), or one past the
            last element (columns ``y_stop`` or ``y``). One row is used for all boxes.
        step : the same, or int, optional
            Distance between the elements of a box along each axis (columns ``y_step`` or
            ``y``), at least 1; 1 for a dimension without a column. With ``stop``, a box has the
            elements of Python's ``slice(start, stop, step)``.
        dim : hashable
            Dimension of the boxes, if ``start`` does not name it.

        Returns
        -------
        xarray.DataArray
            A reference variable with the dimensions and coordinates of ``start``.

        Raises
        ------
        SelectionError
            If a box reaches beyond the variable, or has a negative size, a stop before its
            start, or a step less than 1.
        TypeError
            If the variable does not belong to an open file.

        Notes
        -----
        A box may be empty: a size of 0, or a stop equal to the start. It keeps its place and
        its shape, such as ``(0, 4)``. HDF5 has no encoding for them: `xref.to_hdf5` stores the
        selection "none", which has length 0 along every axis.

        Examples
        --------
        >>> boxes = ds["image"].h5ref.regions([[0, 0], [10, 20]], (8, 8))  # doctest: +SKIP
        >>> boxes.h5ref.resolve()  # doctest: +SKIP
        >>> every_second = ds["image"].h5ref.regions(  # doctest: +SKIP
        ...     [[0, 0], [10, 20]], (8, 8), step=2
        ... )
        """
        return make_regions(self._array, start, shape, stop=stop, step=step, dim=dim)

    def field(self, name: str) -> xr.DataArray:
        """Return the references in one member of a variable of compounds.

        Parameters
        ----------
        name : str
            Name of the member; a dot separates the names of nested compounds.

        Returns
        -------
        xarray.DataArray
            A reference variable. It stays lazy if the compounds were not read yet. The axes of
            a member that is an array come last, as ``name_0``, ``name_1`` ...

        Raises
        ------
        KeyError
            If the compounds have no such member.
        TypeError
            If the member holds no references.

        Examples
        --------
        >>> ds["trials"].h5ref.field("timeseries").h5ref.resolve("ragged")  # doctest: +SKIP
        """
        array = self._array
        references = field_references(array, name)
        member = name.rsplit(".", 1)[-1]
        dims = array.dims + tuple(f"{member}_{i}" for i in range(references.ndim - array.ndim))
        variable = ReferenceVariable(dims, references, array.attrs)
        return reference_dataarray(variable, array.coords, member)

    def table(self) -> xr.Dataset:
        """Describe the references without reading the data of their targets.

        Returns
        -------
        xarray.Dataset
            For each reference ``path`` (empty if the target has no name), ``address``, ``kind``
            and ``filename`` of the target. For region references also ``selection`` (the
            selection kind), ``npoints``, ``start`` and ``stop`` (elements along each axis, stop
            exclusive), ``ndim`` and ``shape`` of the resolved region (-1 beyond its axes), and
            ``fits``: whether the region lies within the current extent of its target. If some
            regions have steps, also ``stride``, ``count`` and ``block`` along each axis. If
            some references point at attributes, also ``attribute``: the name of the attribute,
            empty for other references.

        Examples
        --------
        >>> ds["rois"].h5ref.table().to_dataframe()  # doctest: +SKIP
        """
        array = self._array
        return reference_table(self.references, array.dims, dict(array.coords))

    def target_attrs(self) -> xr.Dataset:
        """Return the attributes of the target of each reference.

        Returns
        -------
        xarray.Dataset
            One variable for each attribute name, along the dimensions of the references. Its
            values are numbers if the attribute of every target is a number of the same type,
            else objects; None stands for a missing attribute and for a null reference. Values
            are as stored and include the attributes of packing, such as ``scale_factor``.

        Raises
        ------
        DanglingReferenceError, WrongTargetError
            If there is no object at the address of a reference, or no dataset.

        Examples
        --------
        >>> ds["granules"].h5ref.target_attrs()["units"]  # doctest: +SKIP
        """
        array = self._array
        return target_attributes(self.references, array.dims, dict(array.coords))

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Yield the index of each reference and the lazy object to which it resolves.

        The index is an int for a 1-D variable, else a tuple. A null reference gives None.

        Examples
        --------
        >>> for index, target in ds["cells"].h5ref.items():  # doctest: +SKIP
        ...     print(index, target.shape)
        """
        references = self.references
        for row in range(references.size):
            if row % REFERENCE_BATCH == 0:
                part = references.columns.address[row : row + REFERENCE_BATCH]
                cache_h5py_references(part.tolist())
            index = tuple(int(i) for i in np.unravel_index(row, references.shape))
            element = references.element(row)
            key = index[0] if len(index) == 1 else index
            yield key, element.resolve() if element else None

    def count(self, *, chunks: Any = "auto", on_null: str = "raise") -> xr.DataArray:
        """Count the elements of each region that are not missing (NaN or NaT), lazily.

        As in all statistics, ``chunks`` and ``on_null`` mean the same as in `resolve`.

        Examples
        --------
        >>> ds["rois"].h5ref.count().compute()  # doctest: +SKIP
        """
        return compute_statistic(self._array, self.references, "count", chunks, on_null)

    def sum(self, *, chunks: Any = "auto", on_null: str = "raise") -> xr.DataArray:
        """Return the sum of each region; missing values are skipped."""
        return compute_statistic(self._array, self.references, "sum", chunks, on_null)

    def mean(self, *, chunks: Any = "auto", on_null: str = "raise") -> xr.DataArray:
        """Return the mean of each region; missing values are skipped."""
        return compute_statistic(self._array, self.references, "mean", chunks, on_null)

    def min(self, *, chunks: Any = "auto", on_null: str = "raise") -> xr.DataArray:
        """Return the smallest value of each region; missing values are skipped."""
        return compute_statistic(self._array, self.references, "min", chunks, on_null)

    def max(self, *, chunks: Any = "auto", on_null: str = "raise") -> xr.DataArray:
        """Return the largest value of each region; missing values are skipped."""
        return compute_statistic(self._array, self.references, "max", chunks, on_null)

    def std(self, *, chunks: Any = "auto", on_null: str = "raise") -> xr.DataArray:
        """Return the standard deviation of each region (ddof=0); missing values are skipped."""
        return compute_statistic(self._array, self.references, "std", chunks, on_null)

    def reduce(
        self,
        func: Callable[..., Any],
        *args: Any,
        dtype: Any = None,
        chunks: Any = "auto",
        on_null: str = "raise",
        **kwargs: Any,
    ) -> xr.DataArray:
        """Reduce each region to one value with a function, lazily.

        The parameters are those of `map`, without ``output_sizes``; ``func`` returns one value.

        Examples
        --------
        >>> ds["rois"].h5ref.reduce(np.median)  # doctest: +SKIP
        """
        call = func, args, kwargs
        return call_function(self._array, self.references, call, dtype, {}, chunks, on_null)

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
            Called as ``func(values, *args, **kwargs)``, where ``values`` is a decoded NumPy
            array of the shape of the region; returns an array of the shape in
            ``output_sizes``, or one object.
        dtype : dtype-like, optional
            Type of the results; by default the type that ``func`` returns for ones.
        output_sizes : dict of str to int, optional
            New dimensions of the result and their sizes.
        chunks, on_null
            As in `resolve`; with ``on_null="fill"`` the region of a null reference is empty.

        Returns
        -------
        xarray.DataArray
            Lazy results with the dimensions of the variable, then those of ``output_sizes``.

        Raises
        ------
        ValueError
            If ``func`` fails for ones and there is no ``dtype``, or if the variable already
            has a dimension of ``output_sizes``.

        Examples
        --------
        >>> quantiles = ds["rois"].h5ref.map(  # doctest: +SKIP
        ...     np.quantile, [0.1, 0.9], output_sizes={"quantile": 2}
        ... )
        """
        call, sizes = (func, args, kwargs), output_sizes or {}
        return call_function(self._array, self.references, call, dtype, sizes, chunks, on_null)
