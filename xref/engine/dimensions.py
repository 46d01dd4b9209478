"""Names and lengths of the axes of a group's datasets.

In: the datasets of one group. Out: the dimensions of each, and their lengths.

Names come from dimension scales (HDF5 Dimension Scale Specification and Support, 1.0;
netCDF-4 stores its dimensions that way). Axes without a scale get the name of a
dimension of the group that is as long, else ``phony_dim_N``, as in other readers of
netCDF-4. An unlimited dimension is as long as the longest dataset along it.
"""

from __future__ import annotations

import math
import posixpath
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeAlias

import numpy as np

from xref import objects, references
from xref.errors import (
    DanglingReferenceError,
    UnreadableMemberWarning,
    WrongTargetError,
    XrefError,
)
from xref.hdf5 import DatasetLayout, item_dtype
from xref.objects import StoredObject, cached_by_object
from xref.references import DEFAULT_OPTIONS, ObjectReference
from xref.storage import FileLocation

NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable"

NAME_CLASH = "_nc4_non_coord_"
"""What netCDF-4 puts before the name of a variable that only shares a dimension's."""

PHONY_DIMS = (None, "sort", "access")


@dataclass(slots=True)
class MemberDataset:
    """A dataset of a group on its way to a variable."""

    name: str
    path: str
    stored: StoredObject
    layout: DatasetLayout
    attributes: dict[str, Any]
    problems: dict[str, Exception]
    scales: list[int] = field(default_factory=list)
    """Address of the scale of each axis, 0 for none; as long as the dataset's axes."""
    type_name: str | None = None
    """Name of the type, where it is an enumeration that has one in the file."""
    is_elsewhere: bool = False
    """Whether it lives in another file than the one whose path it was opened by."""

    @property
    def own_path(self) -> str | None:
        """The path it was opened by, in the file that it lives in."""
        return None if self.is_elsewhere else self.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes of the dataset, then those of an array type."""
        return self.layout.shape + item_dtype(self.layout.dtype)[1]

    @property
    def is_scale(self) -> bool:
        """Whether the dataset is a dimension scale."""
        return label(self.attributes, "CLASS") == "DIMENSION_SCALE"

    @property
    def is_variable(self) -> bool:
        """False for a scale that only stands for its dimension."""
        return not label(self.attributes, "NAME").startswith(NO_VARIABLE)

    @property
    def is_unlimited(self) -> bool:
        """Whether the dataset is a scale without a limit."""
        return self.is_scale and self.layout.maxshape == (None,)


def label(attributes: dict[str, Any], name: str) -> str:
    """Return a text attribute, also from an array of one; empty for anything else."""
    value = attributes.get(name)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return objects.decode_name(value) if isinstance(value, str | bytes) else ""


Scope: TypeAlias = dict[str, tuple[int, ...]]
"""Addresses of what may be dimensions, by name."""


@dataclass(slots=True)
class PhonyNames:
    """Counts the names of axes without a scale, over the groups of a file.

    Attributes
    ----------
    mode : {None, "access", "sort"}
        "sort" counts dimension scales as well, as netCDF does; the others do not.
    phony, scales : int
        How many there were in the groups before.
    """

    mode: str | None = None
    phony: int = 0
    scales: int = 0
    scopes: dict[str, Scope] = field(default_factory=dict)
    """What the groups seen so far, and those above them, name."""

    def new(self) -> str:
        """Return the next name."""
        number = self.phony + (self.scales if self.mode == "sort" else 0)
        self.phony += 1
        return f"phony_dim_{number}"


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The dimensions of one group's datasets.

    Attributes
    ----------
    of : list of tuple of str
        Of each dataset.
    shape : list of tuple of int
        Of each dataset, longer than it is stored along unlimited dimensions.
    unlimited : frozenset of str
        Unlimited dimensions whose scale is in the group.
    """

    of: list[tuple[str, ...]]
    shape: list[tuple[int, ...]]
    unlimited: frozenset[str]


def name_dimensions(
    members: list[MemberDataset], location: FileLocation, path: str, phony: PhonyNames
) -> Dimensions:
    """Name the axes of all datasets of a group."""
    names = _axis_scales(members, location, path)
    lengths = _unlimited_lengths(members, names)
    sizes = {m.name: m.layout.shape[0] for m in members if m.is_scale and m.layout.shape}
    sizes |= {n: lengths[n] for n in sizes if n in lengths}
    by_size: dict[int, list[str]] = {}
    for name, size in sizes.items():
        by_size.setdefault(size, []).append(name)
    phony.scales += sum(m.is_scale for m in members)
    _add_phony(members, names, by_size, set(lengths), phony)
    _name_after_dimensions(members, names, location, path, phony)
    found: dict[str, int] = {}
    dims, shapes = [], []
    for member, axes in zip(members, names, strict=True):
        where = f"{member.stored.location.filename}: {member.path}"
        axis_names, shape = _name_axes(member, axes, lengths, found, by_size, phony, where)
        dims.append(axis_names)
        shapes.append(shape)
    own = frozenset(m.name for m in members if m.is_unlimited)
    return Dimensions(dims, shapes, own)


def count_dimensions(members: list[MemberDataset], phony: PhonyNames) -> None:
    """Count the scales and phony dimensions of a group that is not opened itself."""
    names: list[list[str | None]] = [
        [str(a) if a else None for a in axes] for axes in _scale_addresses(members)
    ]
    by_size: dict[int, list[str]] = {}
    for m in members:
        if m.is_scale and m.layout.shape and not m.is_unlimited:
            by_size.setdefault(m.layout.shape[0], []).append(m.name)
    phony.scales += sum(m.is_scale for m in members)
    _add_phony(members, names, by_size, set(), phony)


def _add_phony(
    members: list[MemberDataset],
    names: list[list[str | None]],
    by_size: dict[int, list[str]],
    unlimited: set[str],
    phony: PhonyNames,
) -> None:
    """Make the dimensions that datasets without any scale need, size by size."""
    needed: Counter[int] = Counter()
    for member, axes in zip(members, names, strict=True):
        if not member.is_scale and not any(axes):
            needed |= Counter(member.shape)
    for size, count in needed.items():
        known = by_size.setdefault(size, [])
        n_limited = sum(name not in unlimited for name in known)
        known.extend(phony.new() for _ in range(n_limited, count))


def _name_axes(
    member: MemberDataset,
    axes: list[str | None],
    lengths: dict[str, int],
    sizes: dict[str, int],
    by_size: dict[int, list[str]],
    phony: PhonyNames,
    where: str,
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Name the axes of one dataset so that it fits with those before it."""
    dims: list[str] = []
    shape: list[int] = []
    used: Counter[int] = Counter()
    for name, stored in zip(axes, member.shape, strict=True):
        size = max(stored, lengths.get(name, 0)) if name is not None else stored
        if name is not None and (name in dims or sizes.get(name, size) != size):
            if name not in dims:
                warnings.warn(
                    f"{where}: dimension {name!r} has {sizes[name]} elements elsewhere and "
                    f"{size} here; this axis is named otherwise",
                    UnreadableMemberWarning,
                    stacklevel=2,
                )
            name, size = None, stored
        if name is None:
            name = _unused(by_size.setdefault(size, []), used[size], size, dims, sizes, phony)
            used[size] += 1
        sizes[name] = size
        dims.append(name)
        shape.append(size)
    return tuple(dims), tuple(shape)


def _unused(
    known: list[str],
    occurrence: int,
    size: int,
    dims: list[str],
    sizes: dict[str, int],
    phony: PhonyNames,
) -> str:
    """Return a dimension of one size that a dataset does not have yet."""
    for name in known[occurrence:]:
        if name not in dims and sizes.get(name, size) == size:
            return name
    known.append(phony.new())
    return known[-1]


# --- scales ------------------------------------------------------------------------


def _scale_addresses(members: list[MemberDataset]) -> list[list[int]]:
    """Return the address of the scale of each axis of each member, 0 without one."""
    for home in dict.fromkeys(m.stored.location for m in members):
        part = [m for m in members if m.stored.location == home]
        found = objects.scale_addresses(
            [(m.attributes, len(m.layout.shape)) for m in part], home
        )
        for member, scales in zip(part, found, strict=True):
            member.scales = scales
    return [m.scales for m in members]


def _axis_scales(
    members: list[MemberDataset], location: FileLocation, path: str
) -> list[list[str | None]]:
    """Return the name of the scale of each axis of each member, None without one."""
    _scale_addresses(members)
    scales: dict[int, list[str | None]] = {}
    # Addresses and dimension numbers count within one file.
    for home in dict.fromkeys(m.stored.location for m in members):
        part = [m for m in members if m.stored.location == home]
        above = posixpath.dirname(path) if home == location and path != "/" else None
        found = _axis_scales_of_file(part, home, above)
        scales |= dict(zip(map(id, part), found, strict=True))
    return [scales[id(m)] for m in members]


def _axis_scales_of_file(
    members: list[MemberDataset], location: FileLocation, above: str | None
) -> list[list[str | None]]:
    wanted = set(chain(*(m.scales for m in members))) - {0}
    names = _scale_names(members, location, above, wanted)
    numbers = {m.name: _integers(m, "_Netcdf4Dimid") for m in members if m.is_scale}
    of_number = {found[0]: name for name, found in numbers.items() if found}
    scales: list[list[str | None]] = []
    for member in members:
        ndim = len(member.shape)
        own: list[str | None] = [names.get(address) for address in member.scales]
        own += [None] * (ndim - len(own))
        if member.is_scale:
            # A coordinate variable of several dimensions names them by number.
            coordinates = _integers(member, "_Netcdf4Coordinates")
            if len(coordinates) == ndim and ndim:
                own = [of_number.get(n) for n in coordinates]
            elif ndim == 1 and not any(member.scales):
                own = [member.name]
        scales.append(own)
    return scales


def _integers(member: MemberDataset, name: str) -> list[int]:
    """Return the integers of an attribute; none where it holds anything else."""
    values = np.asarray(member.attributes.get(name, ()))
    return [int(n) for n in values.reshape(-1)] if values.dtype.kind in "iu" else []


def _scale_names(
    members: list[MemberDataset], location: FileLocation, above: str | None, wanted: set[int]
) -> dict[int, str]:
    """Return the link name of each scale: from this group, else from those above it."""
    names = {m.stored.address: m.name for m in members}
    missing = wanted - set(names)
    while missing and above is not None:
        found = objects.link_addresses(objects.open_group(location, above))
        names |= {a: n for a, n in found.items() if a in missing}
        missing -= set(found)
        above = posixpath.dirname(above) if above != "/" else None
    if missing:
        paths = objects.object_paths(location, missing)
        names |= {a: posixpath.basename(paths[a]) for a in missing if a in paths}
    return names


def _name_after_dimensions(
    members: list[MemberDataset],
    names: list[list[str | None]],
    location: FileLocation,
    path: str,
    phony: PhonyNames,
) -> None:
    """Name the axis of a dataset after a dimension of a group above that it is named after.

    It is a coordinate of that dimension, as in other readers, if it is as long.
    """
    scope = _scope_above(location, path, phony)
    for member, axes in zip(members, names, strict=True):
        if axes == [None] and member.stored.location == location and member.name in scope:
            found = (_dimension_length(StoredObject(location, a)) for a in scope[member.name])
            length = next((n for n in found if n is not None), None)
            axes[0] = member.name if length == member.shape[0] else None
    here = (m for m in members if m.is_scale and m.stored.location == location)
    own = {m.name: (m.stored.address,) for m in here}
    phony.scopes[path] = scope | own if own else scope


def _scope_above(location: FileLocation, path: str, phony: PhonyNames) -> Scope:
    """Return what the groups above a group name, the nearest one's address first."""
    if path == "/":
        return {}
    above = posixpath.dirname(path)
    if above not in phony.scopes:
        scope: Scope = {}
        try:
            for group in objects.groups_along(location, above):
                for address, name in objects.link_addresses(group).items():
                    scope[name] = (address, *scope.get(name, ()))
        except (XrefError, OSError):
            scope = {}  # what cannot be opened names nothing
        phony.scopes[above] = scope
    return phony.scopes[above]


def _dimension_length(scale: StoredObject) -> int | None:
    """Return the length of a scale, None where there is none."""
    try:
        facts = scale.metadata
    except (XrefError, OSError):
        return None  # what is no dataset, or cannot be read, names nothing
    if label(facts.attributes, "CLASS") != "DIMENSION_SCALE" or not facts.layout.shape:
        return None
    return _unlimited_length(scale) or facts.layout.shape[0]


# --- unlimited dimensions ----------------------------------------------------------


def _unlimited_lengths(
    members: list[MemberDataset], names: list[list[str | None]]
) -> dict[str, int]:
    """Return the length of each unlimited dimension that the members lie along."""
    own = {m.stored: m for m in members}
    lengths: dict[str, int] = {}
    attached: Counter[str] = Counter()
    scales: dict[str, StoredObject] = {}
    for member, axes in zip(members, names, strict=True):
        if member.is_unlimited:
            scales[member.name] = member.stored
            lengths[member.name] = max(lengths.get(member.name, 0), member.shape[0])
        for name, address, size in zip(axes, member.scales, member.shape, strict=False):
            if name is None or not address:
                continue
            attached[name] += 1
            lengths[name] = max(lengths.get(name, 0), size)
            scales.setdefault(name, StoredObject(member.stored.location, address))
    unlimited = {}
    for name, scale in scales.items():
        member_scale = own.get(scale)
        if member_scale is None:
            length = _unlimited_length(scale)
        elif not member_scale.is_unlimited:
            continue
        elif _n_references(member_scale.attributes.get("REFERENCE_LIST")) == attached[name]:
            length = lengths[name]  # all that lie along it are here
        else:
            length = _unlimited_length(scale)
        if length is not None:
            unlimited[name] = max(length, lengths[name])
    return unlimited


def _n_references(listed: Any) -> int:
    if isinstance(listed, objects.RawAttributeValue):
        return math.prod(listed.shape)
    return int(listed.size) if isinstance(listed, np.ndarray) else 0


@cached_by_object(maxsize=4096)
def _unlimited_length(scale: StoredObject) -> int | None:
    """Return the length of an unlimited scale with all that lies along it, else None."""
    # Not its layout: a scale of a type that cannot be read has a length, too.
    dataset = objects.open_dataset(scale)
    if dataset.shape is None or dataset.maxshape != (None,):
        return None
    length = int(dataset.shape[0])
    if not objects.has_attribute(dataset, "REFERENCE_LIST"):
        return length
    listed = objects.read_attribute(dataset, "REFERENCE_LIST", scale)
    for address, number in _attached(listed, scale.location):
        length = max(length, _axis_length(StoredObject(scale.location, address), number))
    return length


def _attached(listed: Any, location: FileLocation) -> Iterator[tuple[int, int]]:
    """Yield address and axis of what a scale lists; nothing if it is no such list."""
    if isinstance(listed, objects.RawAttributeValue):
        what = f"{location.filename}: REFERENCE_LIST"
        listed = references.decode_elements(listed, location, what, DEFAULT_OPTIONS)
    names = listed.dtype.names if isinstance(listed, np.ndarray) else None
    if names is None or len(names) != 2 or listed.dtype[names[1]].kind not in "iu":
        return
    scales, axes = listed[names[0]].ravel().tolist(), listed[names[1]].ravel().tolist()
    if all(isinstance(r, ObjectReference) for r in scales):
        addresses = [r.address for r in scales]
    else:
        addresses = objects.reference_addresses(
            scales, objects.file_format(location).offset_size
        )
    yield from zip(addresses, axes, strict=True)


def _axis_length(dataset: StoredObject, axis: int) -> int:
    """Return the length of one axis of a dataset, 0 where there is none."""
    try:
        shape = objects.open_dataset(dataset).shape
    except (DanglingReferenceError, WrongTargetError):
        return 0  # what a scale lists may be gone
    return int(shape[axis]) if shape and 0 <= axis < len(shape) else 0
