"""Which elements of its dataset a variable shows.

In: a variable or a Dataset of the engine, whole or selected from. Out: the object that it
was opened from, and the positions of its elements.

What is read lazily knows its positions, also where Dask has it as it was opened. Of what
is in memory, or was changed in Dask, labels tell where it may come from, and its values
whether it does.
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

PHONY = "phony_dim_"
"""Begins names that axes are given in the order in which they are met."""

COMPARED_NBYTES = 1 << 28
"""Bytes of a variable in Dask that are read to see where they come from."""


def held(reference: ObjectReference) -> ObjectReference:
    """Return a reference that keeps its file open, from one that was remembered."""
    location = reference.location
    if location is None or not location.is_key:
        return reference
    return replace(reference, location=replace(location, is_key=False, held=[]))


def find_object(array: xr.DataArray) -> ObjectReference:
    """Return the dataset that a variable was opened from.

    Raises
    ------
    TypeError
        If it was not, or was computed from others.
    """
    variable = array.variable
    data = variable._data
    if isinstance(data, ReferenceArray) and data.stored is not None and not data.stored.field:
        return ObjectReference.to(data.stored.dataset, data.options)
    found = indexed_dataset(data) or indexed_dataset(dask_source(data))
    if found is not None:
        return ObjectReference.to(found[0].dataset, found[0].options)
    remembered = opened_from(variable.encoding)
    if remembered is None:
        raise TypeError(
            f"{array.name!r} is no variable of a file opened with engine='h5ref', or was "
            "computed from some; write it with xref.to_hdf5, open that file, and refer to "
            "what is there"
        )
    return held(remembered)


def find_origin(array: xr.DataArray) -> ElementOrigin:
    """Find where the elements of a variable are stored.

    Raises
    ------
    TypeError
        If the variable is not one of a file, or it cannot be told which elements it has.
    """
    target = find_object(array)
    known = known_origin(array.variable, array.name)
    if known is not None:
        return known
    found = labelled_origin(target, array)
    if found is not None and _shows(array, found):
        return found
    raise TypeError(
        f"nothing tells which elements of {target.target_text()[3:]} {array.name!r} has: it "
        "is in memory or in Dask, and its values or labels are others; select from the "
        "variable as it was opened, or refer to regions of that by index or label: "
        ".h5ref.region_reference(lat=slice(40, 50))"
    )


def known_origin(variable: xr.Variable, name: Any = None) -> ElementOrigin | None:
    """Return the positions that a variable knows itself, None where it knows none."""
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
    """Return where references are stored that are a box of one dataset."""
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
    """Return where the labels of an array are in a dataset.

    An axis of another name, or of none in the file, is the one at its place. None where an
    axis has other elements and no labels that tell which.
    """
    whole = _whole(target)
    has_names = not any(str(dim).startswith(PHONY) for dim in whole.dims)
    if has_names and set(array.dims) <= set(whole.dims):
        names = {dim: dim for dim in array.dims}
    elif array.ndim == whole.ndim:
        names = dict(zip(whole.dims, array.dims, strict=True))
    else:
        return None
    axes: list[AxisIndex] = []
    for dim, n in whole.sizes.items():
        own = names.get(dim)
        labels = _labels(array, dim if own is None else own)
        is_index = isinstance(array.variable, xr.IndexVariable) and whole.ndim == 1
        if is_index:  # the labels are its own values
            labels = array
        index = whole.to_index() if is_index else None
        if index is None and dim in whole.coords:
            index = whole[dim].to_index()
        if labels is not None and index is not None and index.is_unique:
            found = index.get_indexer(labels.values.reshape(-1))
            if (found < 0).any():
                return None
            axes.append(found.astype("int64") if own is not None else int(found[0]))
        elif own is not None and array.sizes[own] == n:
            if index is None and labels is not None and _n_stored(labels) not in (None, n):
                # The dataset is shorter than this dimension: these may be other elements.
                return None
            axes.append(range(n))
        else:
            return None
    place = {names[dim]: number for number, dim in enumerate(whole.dims) if dim in names}
    order = tuple(place[dim] for dim in array.dims)
    return ElementOrigin(target, whole.shape, tuple(axes), order)


def _labels(array: xr.DataArray, dim: Hashable) -> xr.DataArray | None:
    if dim not in array.coords:
        return None  # and not those that xarray makes up
    labels: xr.DataArray = array.coords[dim]
    return labels


def _n_stored(labels: xr.DataArray) -> int | None:
    """Return how many labels the file has that they were opened from; None without one."""
    found = opened_from(labels.encoding)
    source = None if found is None else held(found).stored
    return None if source is None else math.prod(source.layout.shape)


def _whole(target: ObjectReference) -> xr.DataArray:
    """Open a dataset; of its coordinates, those that fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableMemberWarning)
        whole: xr.DataArray = target.resolve()
    return whole


def is_in_place(target: ObjectReference, array: xr.DataArray) -> bool:
    """Tell whether an array in memory or in Dask has all elements of a dataset in place.

    The values may be others, but not the same in another order.
    """
    whole = _whole(target)
    if whole.dtype == np.dtype("S1") and whole.ndim == array.ndim + 1:
        whole = whole.isel({whole.dims[-1]: 0}, drop=True)  # characters, now one text
    if array.ndim != whole.ndim or target.stored is None:
        return False
    limits = target.stored.layout.maxshape
    sizes = zip(array.shape, whole.shape, limits, strict=False)
    if any(new != old and (new < old or limit is not None) for new, old, limit in sizes):
        return False
    has_names = not any(str(dim).startswith(PHONY) for dim in whole.dims)
    if has_names and set(array.dims) == set(whole.dims) and array.dims != whole.dims:
        return False
    decided = True
    for own, dim in zip(array.dims, whole.dims, strict=True):
        labels = _labels(array, own)
        index = whole[dim].to_index() if dim in whole.coords else None
        if labels is None or index is None or not index.is_unique:
            decided = False
            continue
        found = index.get_indexer(labels.values.reshape(-1))
        here = found[: len(index)]
        if len(here) and (found >= 0).all() and (here != np.arange(len(here))).any():
            return False  # the same labels in another order
        decided &= bool((here == np.arange(len(index))).all())
    data: Any = array.variable._data
    if decided or not isinstance(data, np.ndarray) or data.shape != whole.shape:
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


def _shows(array: xr.DataArray, origin: ElementOrigin) -> bool:
    """Tell whether the elements at some positions are those of an array."""
    shown = _elements(array, origin)
    if shown is None:
        return False
    data: Any = array.variable._data
    if isinstance(data, ReferenceArray):
        stored = shown._data
        same_shape = isinstance(stored, ReferenceArray) and stored.shape == data.shape
        return same_shape and bool(np.all(stored == data))
    expected = xr.DataArray(shown.data, dims=array.dims)
    return expected.equals(xr.DataArray(data, dims=array.dims))


def _elements(array: xr.DataArray, origin: ElementOrigin) -> xr.Variable | None:
    """Return the elements at some positions along the axes of an array, to compare them.

    None if they are too many, or have other axes.
    """
    data: Any = array.variable._data
    if hasattr(data, "dask") and not data.nbytes <= COMPARED_NBYTES:  # it may be unknown
        return None
    keys = [
        axis if isinstance(axis, int) else slice_of(axis) if isinstance(axis, range) else axis
        for axis in origin.axes
    ]
    shown = _whole(origin.object).variable[tuple(keys)]
    if shown.ndim != array.ndim:
        return None
    left = [number for number, axis in enumerate(origin.axes) if not isinstance(axis, int)]
    turned: xr.Variable = shown.transpose(*(shown.dims[left.index(n)] for n in origin.order))
    return turned


def find_masked(array: xr.DataArray) -> ElementOrigin | None:
    """Find the elements of a result of `xarray.DataArray.where` that it left.

    xarray forgets what the values were computed from. A coordinate of the result knows its
    file, and the variable of that name beside it may have the values.
    """
    if opened_from(array.encoding) or known_origin(array.variable, array.name):
        return None
    known = (coord.encoding.get("source") for coord in array.coords.values())
    opened = next((s for s in known if isinstance(s, SourceName)), None)
    source = None if opened is None else held(opened.object)
    if opened is None or source is None or source.location is None or array.name is None:
        return None
    folder = posixpath.dirname(opened.path or source.path or "")
    try:
        found = open_member(source.location, posixpath.join(folder, str(array.name)))
    except OSError:
        return None
    target = ObjectReference.to(found.stored, source.options)
    if target.kind != "dataset":
        return None
    origin = labelled_origin(target, array)
    shown = None if origin is None else _elements(array, origin)
    if origin is None or shown is None:
        return None
    present = array.variable.notnull()
    equal = xr.DataArray(shown.data, dims=array.dims) == xr.DataArray(array.variable)
    if not bool((equal.variable | ~present).all()) or not bool(present.any()):
        return None
    places = np.argwhere(present.values)
    return origin.pointwise(list(places.T)) if array.ndim > 1 else origin.outer([places[:, 0]])


def source_locations(data: Any) -> list[FileLocation]:
    """Return the files that the values of lazy data, or of blocks of dask, come from."""
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
    """Return the group that a Dataset was opened from.

    Raises
    ------
    TypeError
        If it was not.
    """
    remembered = opened_from(dataset.encoding)
    group = None if remembered is None else held(remembered).stored
    if group is not None:
        return group
    raise TypeError("the Dataset is no group of a file opened with engine='h5ref'")
