"""Targets of references: the names, dimensions, attributes and coordinates of datasets.

In: the address of a dataset or a group. Out: a `TargetMetadata`, or the path of the group.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from xref import objects
from xref.engine import NO_VARIABLE, label, plain_attributes, warn_unreadable
from xref.errors import UnsupportedError, XrefError
from xref.references import DecodeOptions
from xref.storage import FileLocation

Dims: TypeAlias = tuple[str | None, ...]
Coordinates: TypeAlias = dict[str, tuple[int, Dims]]


@dataclass(frozen=True, slots=True)
class TargetMetadata:
    """A dataset by address, with the metadata of an xarray variable.

    ``dims`` has None for an axis without a dimension scale. ``coords`` has the address and
    the dimensions of each coordinate: of the dimension scales that hold values, and of the
    datasets in the attribute ``coordinates``.
    """

    location: FileLocation
    address: int
    dims: Dims
    attributes: dict[str, Any]
    coords: Coordinates

    def describe(self) -> str:
        """Name the dataset in a message."""
        return f"{self.location.filename}: {objects.object_label(self.location, self.address)}"

    @property
    def name(self) -> str | None:
        """The last part of the canonical path of the dataset; None if no link leads to it.

        The first use of a name walks the links of the file (`xref.objects.paths`).
        """
        return _name(self.location, self.address)


def _name(location: FileLocation, address: int) -> str | None:
    path = objects.object_path(location, address)
    return posixpath.basename(path) if path is not None else None


def target_names(targets: Sequence[TargetMetadata]) -> list[str | None]:
    """Return `TargetMetadata.name` of each target; the links of each file are walked once."""
    by_file: dict[FileLocation, dict[int, str]] = {}
    for target in targets:
        by_file.setdefault(target.location, {})[target.address] = ""
    paths = {file: objects.object_paths(file, found) for file, found in by_file.items()}
    names = (paths[target.location].get(target.address) for target in targets)
    return [posixpath.basename(path) if path is not None else None for path in names]


def open_target(
    location: FileLocation, address: int, facts: objects.DatasetMetadata, options: DecodeOptions
) -> TargetMetadata:
    """Read the dimensions, attributes and coordinates of one dataset."""
    file_label = f"{location.filename}: dataset at {address:#x}"
    dims, scales = _target_dimensions(location, address, facts)
    attributes = plain_attributes(
        facts.attributes, facts.problems, location, file_label, options
    )
    coords: Coordinates = {
        dim: (scale, (dim,)) for dim, scale in scales.items() if scale != address
    }
    if isinstance(attributes.get("coordinates"), str) and options.decode_coords:
        path = objects.object_path(location, address)
        if path is not None:
            names = attributes["coordinates"].split()
            coords |= _named_coordinates(location, path, names, dims)
    return TargetMetadata(location, address, dims, attributes, coords)


def _target_dimensions(
    location: FileLocation, address: int, facts: objects.DatasetMetadata
) -> tuple[Dims, dict[str, int]]:
    """Return the axis names of a dataset, and its dimension scales that hold values."""
    ndim = len(facts.layout.shape)
    if not facts.scales:
        is_scale = label(facts.attributes, "CLASS") == "DIMENSION_SCALE"
        own_name = _name(location, address) if is_scale and ndim == 1 else None
        return (own_name,) * ndim, {}
    dims: list[str | None] = [None] * ndim
    scales: dict[str, int] = {}
    for axis, scale in enumerate(facts.scales):
        if not scale:
            continue
        try:
            scale_label = label(objects.dataset_facts(location, scale).attributes, "NAME")
        except XrefError as error:
            # The axis keeps the name of the scale but gets no coordinate, as in a group
            # that is opened.
            where = f"{location.filename}: {objects.object_label(location, scale)}"
            warn_unreadable(f"{where}: scale of axis {axis}", error)
            scale_label = NO_VARIABLE
        name = _name(location, scale) or scale_label
        if not name or name in dims:
            continue
        dims[axis] = name
        if not scale_label.startswith(NO_VARIABLE):
            scales[name] = scale
    return tuple(dims), scales


def _named_coordinates(
    location: FileLocation, path: str, names: list[str], dims: Dims
) -> Coordinates:
    """Find the datasets of a ``coordinates`` attribute in the group of their variable."""
    coords: Coordinates = {}
    members = objects.members_by_name(location, posixpath.dirname(path))
    for name in names:
        if name not in members or name in dims:
            continue
        address = members[name]
        try:
            facts = objects.dataset_facts(location, address)
        except XrefError as error:
            warn_unreadable(f"{location.filename}: coordinate {name!r} of {path!r}", error)
            continue
        axes, _ = _target_dimensions(location, address, facts)
        if all(axis in dims and axis is not None for axis in axes):
            coords[name] = (address, axes)
    return coords


def group_path(location: FileLocation, address: int) -> str:
    """Return the canonical path of the group at an address, to open it as a Dataset.

    Raises
    ------
    UnsupportedError
        If no link leads to the group.
    """
    path = objects.object_path(location, address)
    if path is None:
        raise UnsupportedError(
            f"{location.filename}: the group at {address:#x} has no name; open its members by "
            "their own references"
        )
    return path
