"""What a reference points at, as xarray needs to know it.

In: the address of a dataset. Out: a `TargetMetadata`: its name, dimensions, attributes and
coordinates; or the path of a group.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xref import objects
from xref.engine import label, plain_attributes, warn_unreadable
from xref.errors import UnsupportedError, XrefError
from xref.references import DecodeOptions
from xref.storage import FileLocation


@dataclass(frozen=True, slots=True)
class TargetMetadata:
    """A dataset by address, with what xarray needs to know of it.

    ``dims`` has None for an axis without a dimension scale. ``coords`` are the
    coordinates that the dataset names: its scales that hold values, and those in
    its ``coordinates`` attribute.
    """

    location: FileLocation
    address: int
    dims: tuple[str | None, ...]
    attributes: dict[str, Any]
    coords: dict[str, tuple[int, tuple[str | None, ...]]]

    def describe(self) -> str:
        """Name the dataset in a message."""
        return f"{self.location.filename}: {objects.object_label(self.location, self.address)}"

    @property
    def name(self) -> str | None:
        """The last part of its canonical path; None where it has no name.

        It is looked up when it is asked for: the first time, the links of the file are
        walked (`xref.objects.paths`).
        """
        return _name(self.location, self.address)


def _name(location: FileLocation, address: int) -> str | None:
    path = objects.object_path(location, address)
    return posixpath.basename(path) if path is not None else None


def target_names(targets: Sequence[TargetMetadata]) -> list[str | None]:
    """Return the name of each target, as `TargetMetadata.name` does.

    The links of each file are walked once, and each name is looked up in few steps.
    """
    found: dict[FileLocation, dict[int, str]] = {}
    for target in targets:
        found.setdefault(target.location, {})[target.address] = ""
    paths = {location: objects.object_paths(location, of) for location, of in found.items()}
    names = (paths[target.location].get(target.address) for target in targets)
    return [posixpath.basename(path) if path is not None else None for path in names]


def open_target(
    location: FileLocation, address: int, facts: objects.DatasetMetadata, options: DecodeOptions
) -> TargetMetadata:
    """Look at one dataset: its name, dimensions, attributes and coordinates."""
    where = f"{location.filename}: dataset at {address:#x}"
    dims, scales = _target_dimensions(location, address, facts)
    attributes = plain_attributes(facts.attributes, facts.problems, location, where, options)
    coords: dict[str, tuple[int, tuple[str | None, ...]]] = {}
    for dim, scale in scales.items():
        if scale != address:
            coords[dim] = (scale, (dim,))
    if isinstance(attributes.get("coordinates"), str) and options.decode_coords:
        path = objects.object_path(location, address)
        if path is not None:
            coords |= _named_coordinates(
                location, path, attributes["coordinates"].split(), dims
            )
    return TargetMetadata(location, address, dims, attributes, coords)


def _target_dimensions(
    location: FileLocation, address: int, facts: objects.DatasetMetadata
) -> tuple[tuple[str | None, ...], dict[str, int]]:
    """Return the axis names of a dataset, and the scales among them that hold values."""
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
            # The axis keeps its name, as in a group that is opened; values it has none.
            where = f"{location.filename}: {objects.object_label(location, scale)}"
            warn_unreadable(f"{where}: scale of axis {axis}", error)
            scale_label = objects.NO_VARIABLE
        name = _name(location, scale) or scale_label
        if not name or name in dims:
            continue
        dims[axis] = name
        if not scale_label.startswith(objects.NO_VARIABLE):
            scales[name] = scale
    return tuple(dims), scales


def _named_coordinates(
    location: FileLocation, path: str, names: list[str], dims: tuple[str | None, ...]
) -> dict[str, tuple[int, tuple[str | None, ...]]]:
    """Find the datasets of a ``coordinates`` attribute beside their variable."""
    found: dict[str, tuple[int, tuple[str | None, ...]]] = {}
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
            found[name] = (address, axes)
    return found


def group_path(location: FileLocation, address: int) -> str:
    """Return the canonical path of the group at an address, to open it as a Dataset.

    Raises
    ------
    UnsupportedError
        If no link leads to it.
    """
    path = objects.object_path(location, address)
    if path is None:
        raise UnsupportedError(
            f"{location.filename}: the group at {address:#x} has no name; open its members by "
            "their own references"
        )
    return path
