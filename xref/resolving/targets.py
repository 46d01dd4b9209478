"""Targets of references: the names, dimensions, attributes and coordinates of datasets.

In: an object of a file, or a `ReferenceArray`. Out: a `TargetMetadata`, the path of a group, or
a Dataset with a variable for each attribute. The values of the targets are not read.
"""

from __future__ import annotations

import posixpath
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref import engine, objects
from xref.engine import label, plain_attributes, warn_unreadable
from xref.errors import UnsupportedError, XrefError, naming
from xref.objects import StoredObject
from xref.references import DecodeOptions, ReferenceArray, split_targets
from xref.storage import FileLocation

Dims: TypeAlias = tuple[str | None, ...]
Coordinates: TypeAlias = dict[str, tuple[int, Dims]]


@dataclass(frozen=True, slots=True)
class TargetMetadata:
    """A dataset by address, with the metadata of an xarray variable.

    ``dims`` has None for an axis without a dimension scale. ``attributes`` are as stored.
    ``coords`` has the address and the dimensions of each coordinate: of the dimension scales
    that hold values, and of the datasets in the attribute ``coordinates``, if
    ``names_coords``.
    """

    dataset: StoredObject
    dims: Dims
    attributes: dict[str, Any]
    coords: Coordinates
    names_coords: bool = False  # the attribute ``coordinates`` was decoded

    @property
    def result_attributes(self) -> dict[str, Any]:
        """The attributes of a result: those that xarray leaves in an opened variable.

        xarray removes ``coordinates`` because the coordinates are then part of the Dataset.
        """
        return {
            name: value
            for name, value in self.attributes.items()
            if name != "coordinates" or not self.names_coords
        }

    @property
    def name(self) -> str | None:
        """The last part of the canonical path of the dataset; None if no link leads to it.

        The first use of a name walks the links of the file (`xref.objects.paths`).
        """
        return _name(self.dataset)


def _name(stored: StoredObject) -> str | None:
    path = stored.path
    return posixpath.basename(path) if path is not None else None


def target_names(targets: Sequence[TargetMetadata]) -> list[str | None]:
    """Return `TargetMetadata.name` of each target; the links of each file are walked once."""
    datasets = [target.dataset for target in targets]
    by_file: dict[FileLocation, dict[int, str]] = {}
    for dataset in datasets:
        by_file.setdefault(dataset.location, {})[dataset.address] = ""
    paths = {file: objects.object_paths(file, found) for file, found in by_file.items()}
    names = (paths[dataset.location].get(dataset.address) for dataset in datasets)
    return [posixpath.basename(path) if path is not None else None for path in names]


def open_target(
    dataset: StoredObject, facts: objects.DatasetMetadata, options: DecodeOptions
) -> TargetMetadata:
    """Read the dimensions, attributes and coordinates of one dataset."""
    location = dataset.location
    dims, scales = _target_dimensions(dataset, facts)
    attributes = plain_attributes(facts.attributes, facts.problems, dataset, None, options)
    coords: Coordinates = {}
    for name, address in scales.items():
        axes = _scale_axes(StoredObject(location, address), name)
        if set(axes) <= set(dims):
            coords[name] = (address, axes)
    names_coords = isinstance(attributes.get("coordinates"), str) and options.decode_coords
    if names_coords:
        path = dataset.path
        if path is not None:
            names = attributes["coordinates"].split()
            coords |= _named_coordinates(location, path, names, dims)
    return TargetMetadata(dataset, dims, attributes, coords, bool(names_coords))


def _target_dimensions(
    dataset: StoredObject, facts: objects.DatasetMetadata
) -> tuple[Dims, dict[str, int]]:
    """Return the axis names of a dataset, and its other dimension scales that hold values."""
    ndim = len(facts.layout.shape)
    addresses, problems = _axis_scales(dataset, facts)
    for problem in problems:
        engine.warn_unusable_scale(str(dataset), problem)
    dims: list[str | None] = [None] * ndim
    scales: dict[str, int] = {}
    for axis, address in enumerate(addresses):
        if not address:
            continue
        if address == dataset.address:
            dims[axis] = _name(dataset)
            continue
        scale = StoredObject(dataset.location, address)
        try:
            scale_label = label(scale.metadata.attributes, "NAME")
            has_values = scale.layout.maxshape != (0,)  # without a dataspace it has none
        except XrefError as error:
            # The axis keeps the name of the scale but gets no coordinate, as in a group
            # that is opened.
            warn_unreadable(f"{scale}: scale of axis {axis}", error)
            scale_label, has_values = objects.NO_VARIABLE, False
        name = engine.scale_name(scale, dataset) or scale_label
        if not name:
            continue
        dims[axis] = name
        if has_values and not scale_label.startswith(objects.NO_VARIABLE):
            scales[name] = address
    return tuple(dims), scales


def _axis_scales(
    dataset: StoredObject, facts: objects.DatasetMetadata
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the address of the scale of each axis (0 without one), and ignored entries."""
    if facts.scales:
        chosen = engine.choose_scales(facts.scales, facts.layout.shape, dataset)
        return chosen.addresses, chosen.problems
    return engine.numbered_addresses(dataset, facts.attributes, facts.layout.shape), ()


def unlimited_axes(dataset: StoredObject) -> tuple[bool, ...]:
    """Tell which axes of a dataset have no limit, or have the scale of such a dimension."""
    facts = dataset.metadata
    addresses, _ = _axis_scales(dataset, facts)
    return tuple(
        limit is None
        or bool(
            address and engine.scale_at(StoredObject(dataset.location, address)).is_unlimited
        )
        for limit, address in zip(facts.layout.maxshape, addresses, strict=True)
    )


def _scale_axes(scale: StoredObject, name: str) -> Dims:
    """Return the axis names of the dimension scale of a dataset, where it has this name.

    A scale of several axes that have no names does not fit; reading it gives a warning.
    """
    if len(scale.layout.shape) <= 1:
        return (name,)
    dims, _ = _target_dimensions(scale, scale.metadata)
    return (name,) if None in dims else dims


def _named_coordinates(
    location: FileLocation, path: str, names: list[str], dims: Dims
) -> Coordinates:
    """Find the datasets of a ``coordinates`` attribute in the group of their variable."""
    coords: Coordinates = {}
    members = objects.members_by_name(location, posixpath.dirname(path))
    for name in names:
        if name not in members or name in dims:
            continue
        member = StoredObject(location, members[name])
        try:
            facts = member.metadata
        except XrefError as error:
            warn_unreadable(f"{location.filename}: coordinate {name!r} of {path!r}", error)
            continue
        axes, _ = _target_dimensions(member, facts)
        if all(axis in dims and axis is not None for axis in axes):
            coords[name] = (member.address, axes)
    return coords


def group_path(group: StoredObject) -> str:
    """Return the canonical path of a group; UnsupportedError if no link leads to it."""
    path = group.path
    if path is None:
        raise UnsupportedError(
            f"{group.filename}: the group at {group.address:#x} has no name; open its members "
            "by their own references"
        )
    return path


def target_attributes(
    references: ReferenceArray, dims: Sequence[Hashable], coords: dict[Hashable, Any]
) -> xr.Dataset:
    """Collect attributes; see `xref.resolving.accessor.ReferenceAccessor.target_attrs`."""
    columns = references.columns
    values: dict[str, npt.NDArray[np.object_]] = {}
    targets, _ = split_targets(columns)
    for k, (stored, rows) in enumerate(targets):
        if k % objects.REFERENCE_BATCH == 0:
            batch = targets[k : k + objects.REFERENCE_BATCH]
            objects.cache_h5py_references([stored.address for stored, _ in batch])
        first = 0 if isinstance(rows, slice) else int(rows[0])
        with naming(partial(references.describe, first)):
            facts = stored.metadata
        target = open_target(stored, facts, references.options)
        for name, value in target.attributes.items():
            if name not in values:
                values[name] = np.full(len(columns), None, dtype=object)
            one = np.empty((), dtype=object)
            one[()] = value  # an array attribute is one value
            values[name][rows] = one
    shape = references.shape
    # ``fastpath`` keeps None, which xarray would replace by NaN among text.
    variables = {
        name: xr.Variable(tuple(dims), _as_numbers(column).reshape(shape), fastpath=True)
        for name, column in values.items()
    }
    kept = {k: c for k, c in coords.items() if set(c.dims) <= set(dims) and k not in variables}
    return xr.Dataset(variables, kept)


def _as_numbers(column: npt.NDArray[np.object_]) -> npt.NDArray[Any]:
    """Return a column of numbers of one type with that type; other columns unchanged."""
    types = {getattr(value, "dtype", type(value)) for value in column.tolist()}
    if len(types) != 1:
        return column
    (dtype,) = types
    is_number = isinstance(dtype, np.dtype) and dtype.kind in "biufc"
    if is_number and all(np.ndim(value) == 0 for value in column.tolist()):
        return column.astype(dtype)
    return column
