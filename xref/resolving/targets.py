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
from xref.engine import NO_VARIABLE, label, plain_attributes, warn_unreadable
from xref.errors import UnsupportedError, XrefError
from xref.objects import StoredObject
from xref.references import DecodeOptions
from xref.storage import FileLocation


@dataclass(frozen=True, slots=True)
class TargetMetadata:
    """A dataset by address, with what xarray needs to know of it.

    ``dims`` has None for an axis without a dimension scale. ``coords`` are the
    coordinates that the dataset names: its scales that hold values, and those in
    its ``coordinates`` attribute.
    """

    dataset: StoredObject
    dims: tuple[str | None, ...]
    attributes: dict[str, Any]
    coords: dict[str, tuple[int, tuple[str | None, ...]]]

    def describe(self) -> str:
        """Name the dataset in a message."""
        return str(self.dataset)

    @property
    def name(self) -> str | None:
        """The last part of its canonical path; None where it has no name.

        It is looked up when it is asked for: the first time, the links of the file are
        walked (`xref.objects.paths`).
        """
        return _name(self.dataset)


def _name(stored: StoredObject) -> str | None:
    path = stored.path
    return posixpath.basename(path) if path is not None else None


def target_names(targets: Sequence[TargetMetadata]) -> list[str | None]:
    """Return the name of each target, as `TargetMetadata.name` does.

    The links of each file are walked once, and each name is looked up in few steps.
    """
    datasets = [target.dataset for target in targets]
    found: dict[FileLocation, dict[int, str]] = {}
    for dataset in datasets:
        found.setdefault(dataset.location, {})[dataset.address] = ""
    paths = {location: objects.object_paths(location, of) for location, of in found.items()}
    names = (paths[d.location].get(d.address) for d in datasets)
    return [posixpath.basename(path) if path is not None else None for path in names]


def open_target(
    dataset: StoredObject, facts: objects.DatasetMetadata, options: DecodeOptions
) -> TargetMetadata:
    """Look at one dataset: its name, dimensions, attributes and coordinates."""
    dims, scales = _target_dimensions(dataset, facts)
    attributes = plain_attributes(
        facts.attributes, facts.problems, dataset.location, dataset.where, options
    )
    coords: dict[str, tuple[int, tuple[str | None, ...]]] = {}
    for dim, scale in scales.items():
        if scale != dataset.address:
            coords[dim] = (scale, (dim,))
    if isinstance(attributes.get("coordinates"), str) and options.decode_coords:
        path = dataset.path
        if path is not None:
            coords |= _named_coordinates(
                dataset.location, path, attributes["coordinates"].split(), dims
            )
    return TargetMetadata(dataset, dims, attributes, coords)


def _target_dimensions(
    dataset: StoredObject, facts: objects.DatasetMetadata
) -> tuple[tuple[str | None, ...], dict[str, int]]:
    """Return the axis names of a dataset, and the scales among them that hold values."""
    ndim = len(facts.layout.shape)
    if not facts.scales:
        is_scale = label(facts.attributes, "CLASS") == "DIMENSION_SCALE"
        own_name = _name(dataset) if is_scale and ndim == 1 else None
        return (own_name,) * ndim, {}
    dims: list[str | None] = [None] * ndim
    scales: dict[str, int] = {}
    for axis, address in enumerate(facts.scales):
        if not address:
            continue
        scale = StoredObject(dataset.location, address)
        try:
            scale_label = label(scale.metadata.attributes, "NAME")
        except XrefError as error:
            # The axis keeps its name, as in a group that is opened; values it has none.
            warn_unreadable(f"{scale}: scale of axis {axis}", error)
            scale_label = NO_VARIABLE
        name = _name(scale) or scale_label
        if not name or name in dims:
            continue
        dims[axis] = name
        if not scale_label.startswith(NO_VARIABLE):
            scales[name] = address
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
        member = StoredObject(location, members[name])
        try:
            facts = member.metadata
        except XrefError as error:
            warn_unreadable(f"{location.filename}: coordinate {name!r} of {path!r}", error)
            continue
        axes, _ = _target_dimensions(member, facts)
        if all(axis in dims and axis is not None for axis in axes):
            found[name] = (member.address, axes)
    return found


def group_path(group: StoredObject) -> str:
    """Return the canonical path of a group, to open it as a Dataset.

    Raises
    ------
    UnsupportedError
        If no link leads to it.
    """
    path = group.path
    if path is None:
        raise UnsupportedError(
            f"{group.filename}: the group at {group.address:#x} has no name; open its "
            "members by their own references"
        )
    return path
