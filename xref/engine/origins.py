"""The dataset and the positions that the elements of a variable come from.

In: a variable or Dataset of the engine, or a selection from it. Out: the HDF5 object from which
it was opened, and the position of each element.

Lazy data know their positions, also inside a Dask array that only divides them into blocks. For
data in memory, or changed in Dask, labels give possible positions; then the values there must
equal the data.
"""

from __future__ import annotations

import itertools
import math
import posixpath
import warnings
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref.engine.axis_positions import AxisIndex, ElementOrigin
from xref.engine.lazy_arrays import dask_source, dask_sources, indexed_dataset
from xref.errors import UnreadableMemberWarning
from xref.objects import StoredObject, open_member
from xref.references import ObjectReference, ReferenceArray, SourceName, opened_from
from xref.storage import FileLocation

PHONY_PREFIX = "phony_dim_"
"""Prefix of the names of axes without a scale, which depend on the order of datasets."""

COMPARED_NBYTES = 1 << 28
"""Upper bound on the bytes of a variable in Dask that are read to find their positions."""


def _with_open_file(reference: ObjectReference) -> ObjectReference:
    """Return a reference that keeps its file open, from one stored in an encoding."""
    location = reference.location
    if location is None or location.holds_file:
        return reference
    return replace(reference, location=replace(location, holds_file=True, handles=[]))


def find_object(array: xr.DataArray) -> ObjectReference:
    """Return a reference to the dataset from which a variable was opened.

    TypeError if the variable was not opened from a file, or was computed.
    """
    variable = array.variable
    data = variable._data
    if isinstance(data, ReferenceArray) and data.stored is not None and not data.stored.field:
        return ObjectReference.to(data.stored.dataset, data.options)
    found = indexed_dataset(data) or indexed_dataset(dask_source(data))
    if found is not None:
        return ObjectReference.to(found[0].dataset, found[0].options)
    source = opened_from(variable.encoding)
    if source is None:
        raise TypeError(
            f"{array.name!r} is no variable of a file opened with engine='h5ref', or was "
            "computed from such variables; write it with xref.to_hdf5, open the new file, and "
            "make references to its variables"
        )
    return _with_open_file(source)


def find_origin(array: xr.DataArray) -> ElementOrigin:
    """Return the positions of the elements of a variable in its dataset.

    TypeError if the variable was not opened from a file, or its elements are not found there.
    """
    target = find_object(array)
    origin = known_origin(array.variable, array.name)
    if origin is not None:
        return origin
    origin = labelled_origin(target, array)
    if origin is not None and _has_values_of(array, origin):
        return origin
    raise TypeError(
        f"{target.filename}: nothing tells which elements of {target.target_text()[3:]} "
        f"{array.name!r} has: it is in memory or in Dask, and its values or labels differ from "
        "those of the dataset; select from the variable as it was opened, or select from it by "
        "index or label: "
        ".h5ref.region_reference(lat=slice(40, 50))"
    )


def known_origin(variable: xr.Variable, name: Any = None) -> ElementOrigin | None:
    """Return the positions of lazy data; None for data in memory or changed in Dask."""
    data = variable._data
    if isinstance(data, ReferenceArray):
        return _stored_origin(data)
    found = indexed_dataset(data) or indexed_dataset(dask_source(data))
    if found is None:
        return None
    stored, steps = found
    target = ObjectReference.to(stored.dataset, stored.options)
    origin = ElementOrigin.whole(target, stored.shape)
    for keys, is_outer in steps:
        origin = origin.outer(keys) if is_outer else origin.pointwise(keys)
    n_items = len(stored.shape) - len(stored.extent)
    whole_items = origin.without_last(n_items) if n_items else origin
    if whole_items is None:
        raise TypeError(f"the elements of {name!r} are arrays; regions have whole elements")
    return whole_items


def _stored_origin(data: ReferenceArray) -> ElementOrigin | None:
    """Return the positions of references that are a box of one dataset, else None."""
    stored = data.stored
    if stored is None or stored.field:
        return None
    target = ObjectReference.to(stored.dataset, data.options)
    counts = stored.shape
    ones = [number for number, n in enumerate(counts) if n == 1]
    for hidden in itertools.combinations(ones, len(counts) - len(data.shape)):
        order = tuple(number for number in range(len(counts)) if number not in hidden)
        if tuple(counts[number] for number in order) == data.shape:
            axes: list[AxisIndex] = [range(a, a + s * n, s) for a, n, s in stored.slices]
            for number in hidden:
                axes[number] = stored.slices[number][0]
            extent = stored.dataset.layout.shape
            return ElementOrigin(target, extent, tuple(axes), order)
    return None


def labelled_origin(target: ObjectReference, array: xr.DataArray) -> ElementOrigin | None:
    """Return the positions of the labels of an array in a dataset.

    Axes are matched by name, or by order if a name differs or the file has none. None if the
    lengths of an axis differ and it has no labels.
    """
    whole = _open_whole(target)
    repeats = len(set(array.dims)) != array.ndim  # two axes have one scale: no names tell them
    if _has_names(whole) and set(array.dims) <= set(whole.dims) and not repeats:
        names = {dim: dim for dim in array.dims}
    elif array.ndim == whole.ndim:
        names = dict(zip(whole.dims, array.dims, strict=True))
    else:
        return None
    axes: list[AxisIndex] = []
    for dim, n in whole.sizes.items():
        array_dim = names.get(dim)
        labels = _labels(array, dim if array_dim is None else array_dim)
        is_index = isinstance(array.variable, xr.IndexVariable) and whole.ndim == 1
        if is_index:  # the values of an index variable are its labels
            labels = array
        index = whole.to_index() if is_index else _index(whole, dim)
        if labels is not None and index is not None and index.is_unique:
            positions = index.get_indexer(labels.values.reshape(-1))
            if (positions < 0).any():
                return None
            is_axis = array_dim is not None
            axes.append(positions.astype("int64") if is_axis else int(positions[0]))
        elif array_dim is not None and array.sizes[array_dim] == n:
            if index is None and labels is not None and _n_stored(labels) not in (None, n):
                # The dataset is shorter than its dimension: the positions may be others.
                return None
            axes.append(range(n))
        else:
            return None
    if repeats:
        return ElementOrigin(target, whole.shape, tuple(axes), tuple(range(whole.ndim)))
    axis_of = {names[dim]: number for number, dim in enumerate(whole.dims) if dim in names}
    order = tuple(axis_of[dim] for dim in array.dims)
    return ElementOrigin(target, whole.shape, tuple(axes), order)


def _has_names(whole: xr.DataArray) -> bool:
    return not any(str(dim).startswith(PHONY_PREFIX) for dim in whole.dims)


def _index(whole: xr.DataArray, dim: Hashable) -> Any:
    return whole[dim].to_index() if dim in whole.coords else None


def _labels(array: xr.DataArray, dim: Hashable) -> xr.DataArray | None:
    if dim not in array.coords:
        return None  # array[dim] would be a default range
    labels: xr.DataArray = array.coords[dim]
    return labels


def _n_stored(labels: xr.DataArray) -> int | None:
    """Return the number of labels in the dataset they come from; None if there is none."""
    found = opened_from(labels.encoding)
    source = None if found is None else _with_open_file(found).stored
    return None if source is None else math.prod(source.layout.shape)


def _open_whole(target: ObjectReference) -> xr.DataArray:
    """Open a dataset with the coordinates that fit, without warnings of others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableMemberWarning)
        whole: xr.DataArray = target.resolve()
    return whole


def is_in_place(target: ObjectReference, array: xr.DataArray) -> bool:
    """Tell whether an array in memory or in Dask has all elements of a dataset, in order.

    The values may be new, but not the stored values in another order.
    """
    whole = _open_whole(target)
    if whole.dtype == np.dtype("S1") and whole.ndim == array.ndim + 1:
        whole = whole.isel({whole.dims[-1]: 0}, drop=True)  # characters that form one text
    if array.ndim != whole.ndim or target.stored is None:
        return False
    limits = target.stored.layout.maxshape
    sizes = zip(array.shape, whole.shape, limits, strict=False)
    if any(new != old and (new < old or limit is not None) for new, old, limit in sizes):
        return False
    is_transposed = set(array.dims) == set(whole.dims) and array.dims != whole.dims
    if is_transposed and _has_names(whole):
        return False
    have_labels = True
    for array_dim, dim in zip(array.dims, whole.dims, strict=True):
        labels, index = _labels(array, array_dim), _index(whole, dim)
        if labels is None or index is None or not index.is_unique:
            have_labels = False
            continue
        positions = index.get_indexer(labels.values.reshape(-1))
        first = positions[: len(index)]
        if len(first) and (positions >= 0).all() and (first != np.arange(len(first))).any():
            return False  # the same labels in another order
        have_labels &= bool((first == np.arange(len(index))).all())
    data: Any = array.variable._data
    if have_labels or not isinstance(data, np.ndarray) or data.shape != whole.shape:
        return True
    return not _is_reordered(data, whole.values)


def _is_reordered(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Tell whether arrays have the same numbers or texts in another order."""
    if one.dtype.kind not in "biufcSUmM" or other.dtype.kind not in "biufcSUmM":
        return False
    nan = one.dtype.kind in "fc" and other.dtype.kind in "fc"
    if np.array_equal(one, other, equal_nan=nan):
        return False
    return np.array_equal(np.sort(one, axis=None), np.sort(other, axis=None), equal_nan=nan)


def _has_values_of(array: xr.DataArray, origin: ElementOrigin) -> bool:
    """Tell whether the values of an array equal the stored values at some positions."""
    elements = _elements(array, origin)
    if elements is None:
        return False
    data: Any = array.variable._data
    if isinstance(data, ReferenceArray):
        stored = elements._data
        same_shape = isinstance(stored, ReferenceArray) and stored.shape == data.shape
        return same_shape and bool(np.all(stored == data))
    expected = xr.DataArray(elements.data, dims=array.dims)
    return expected.equals(xr.DataArray(data, dims=array.dims))


def _elements(array: xr.DataArray, origin: ElementOrigin) -> xr.Variable | None:
    """Return the stored elements at some positions, along the axes of an array.

    None if the elements are too many to compare, or have other axes.
    """
    data: Any = array.variable._data
    if hasattr(data, "dask") and not data.nbytes <= COMPARED_NBYTES:  # nbytes may be NaN
        return None
    keys = [
        axis if isinstance(axis, int) else slice_of(axis) if isinstance(axis, range) else axis
        for axis in origin.axes
    ]
    elements: xr.Variable = _open_whole(origin.object).variable[tuple(keys)]
    if elements.ndim != array.ndim:
        return None
    axes = [number for number, axis in enumerate(origin.axes) if not isinstance(axis, int)]
    return elements.transpose(*(elements.dims[axes.index(n)] for n in origin.order))


def find_masked(array: xr.DataArray) -> ElementOrigin | None:
    """Return the elements that `xarray.DataArray.where` has not replaced in its result.

    The result does not know the variable it was computed from. But its coordinates know their
    file: a dataset with the name of the result, in the group of a coordinate, is compared.
    """
    if opened_from(array.encoding) or known_origin(array.variable, array.name):
        return None
    sources = (coord.encoding.get("source") for coord in array.coords.values())
    opened = next((s for s in sources if isinstance(s, SourceName)), None)
    source = None if opened is None else _with_open_file(opened.object)
    if opened is None or source is None or source.location is None or array.name is None:
        return None
    group = posixpath.dirname(opened.path or source.path or "")
    try:
        found = open_member(source.location, posixpath.join(group, str(array.name)))
    except OSError:
        return None
    target = ObjectReference.to(found.stored, source.options)
    if target.kind != "dataset":
        return None
    origin = labelled_origin(target, array)
    elements = None if origin is None else _elements(array, origin)
    if origin is None or elements is None:
        return None
    present = array.variable.notnull()
    equal = xr.DataArray(elements.data, dims=array.dims) == xr.DataArray(array.variable)
    if not bool((equal.variable | ~present).all()) or not bool(present.any()):
        return None
    points = np.argwhere(present.values)
    return origin.pointwise(list(points.T)) if array.ndim > 1 else origin.outer([points[:, 0]])


def source_locations(data: Any) -> list[FileLocation]:
    """Return the files from which lazy data, also inside a Dask array, are read."""
    found: list[FileLocation] = []
    for source in (data, *dask_sources(data).values()):
        while source is not None:
            references = getattr(source, "references", None)
            if isinstance(references, ReferenceArray):
                found.extend(references.columns.files)
            dataset = getattr(source, "dataset", None)
            if isinstance(dataset, StoredObject):
                found.append(dataset.location)
            source = getattr(source, "array", None)
    return found


def slice_of(positions: range) -> slice:
    """Return the slice that selects a range of positions."""
    stop = positions.stop if positions.stop >= 0 else None
    return slice(positions.start, stop, positions.step)


def group_of(dataset: xr.Dataset) -> StoredObject:
    """Return the group from which a Dataset was opened; TypeError if there is none."""
    source = opened_from(dataset.encoding)
    group = None if source is None else _with_open_file(source).stored
    if group is None:
        raise TypeError("the Dataset is no group of a file opened with engine='h5ref'")
    return group
