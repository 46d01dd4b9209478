"""Dimension names and lengths of the axes of the datasets of a group.

In: the datasets of one group. Out: dimension names and lengths of each dataset.

Names come from dimension scales (HDF5 Dimension Scale Specification and Support, 1.0; netCDF-4
stores its dimensions as scales). An axis without a scale gets the name of a dimension of the
group with the same length, else ``phony_dim_N``, as in other readers of netCDF-4. The length of
an unlimited dimension is that of the longest dataset along it.
"""

from __future__ import annotations

import math
import posixpath
import warnings
from collections import Counter
from collections.abc import Container, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeAlias

import numpy.typing as npt

from xref import objects
from xref.engine.attributes import warn_unusable_scale
from xref.engine.dimension_scales import (
    NO_SCALES,
    ChosenScales,
    Scale,
    choose_scales,
    integers,
    label,
    numbered_scales,
    scale_at,
    scale_names,
    unlimited_length,
)
from xref.errors import UnreadableMemberWarning, XrefError
from xref.hdf5 import DatasetLayout, item_dtype
from xref.objects import StoredObject
from xref.storage import FileLocation

PHONY_DIMS = (None, "sort", "access")


@dataclass(slots=True)
class SharedValues:
    """Values of a dataset that were read for one of its names, for its other names."""

    attributes: dict[str, Any] | None = None  # as plain values
    text: npt.NDArray[Any] | None = None  # elements of a variable of text


@dataclass(slots=True)
class MemberDataset:
    """Metadata of a dataset of a group, from which its variable is made.

    A dimension scale of a type that cannot be read has no layout: it is no variable, but it has
    a name and a length.
    """

    name: str
    path: str
    stored: StoredObject
    layout: DatasetLayout | None
    attributes: dict[str, Any]
    problems: dict[str, Exception]
    scale: Scale  # the dataset as a dimension scale
    chosen: ChosenScales = NO_SCALES
    type_name: str | None = None  # of an enumeration that is a named datatype
    is_elsewhere: bool = False  # whether an external link leads to it
    is_hard: bool = True  # whether the link to it is a hard link
    shared: SharedValues | None = None  # for a dataset that has, or may have, several names

    @property
    def own_path(self) -> str | None:
        """The path in the file that has the dataset; None if another path led there."""
        return None if self.is_elsewhere else self.path

    @property
    def extent(self) -> tuple[int, ...]:
        """Lengths of the axes of the dataset; one axis without elements if it has none."""
        return (0,) if self.scale.shape is None else self.scale.shape

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes of the dataset, then of those of an array type."""
        if self.layout is None:
            return self.extent
        return self.layout.shape + item_dtype(self.layout.dtype)[1]

    @property
    def is_scale(self) -> bool:
        """Whether the dataset is a dimension scale."""
        return not self.scale.problem

    @property
    def gives_length(self) -> bool:
        """Whether the dataset is a dimension scale with a length."""
        return self.is_scale and bool(self.scale.shape)

    @property
    def is_variable(self) -> bool:
        """Whether the dataset is a variable: some scales only define a dimension."""
        is_named = not label(self.attributes, "NAME").startswith(objects.NO_VARIABLE)
        return is_named and self.layout is not None

    @property
    def is_unlimited(self) -> bool:
        """Whether the dataset is the scale of an unlimited dimension."""
        return self.is_scale and self.scale.is_unlimited


Scope: TypeAlias = dict[str, tuple[int, ...]]
"""Addresses of possible dimension scales by name, the nearest group first."""


@dataclass(slots=True)
class PhonyNames:
    """Counter of the names of axes without a scale, for the groups of a file."""

    mode: str | None = None  # or "access", or "sort", which counts scales too, as netCDF does
    phony: int = 0  # names given in the groups before
    scales: int = 0  # scales in the groups before
    scopes: dict[str, Scope] = field(default_factory=dict)  # of each group, with its parents
    # Unlimited dimensions named so far, with the length of the longest dataset along each.
    lengths: dict[StoredObject, int] = field(default_factory=dict)
    has_grown: bool = False  # whether a group was longer than the groups before it along one

    def new(self) -> str:
        """Return the next name."""
        number = self.phony + (self.scales if self.mode == "sort" else 0)
        self.phony += 1
        return f"phony_dim_{number}"


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The dimensions of the datasets of one group."""

    names: list[tuple[str, ...]]  # of each dataset
    shape: list[tuple[int, ...]]  # of each dataset, as long as its unlimited dimensions
    unlimited: frozenset[str]  # unlimited dimensions whose scale is in the group


def numbered_names(prefix: str, taken: Container[Any], first: int = 0) -> Iterator[str]:
    """Yield a prefix with the numbers from ``first`` on, without names that are taken."""
    return (name for i in count(first) if (name := f"{prefix}{i}") not in taken)


def free_name(name: Hashable, taken: Container[Hashable]) -> Hashable:
    """Return a name; if it is taken, with the first free number after it."""
    return next(numbered_names(f"{name}_", taken, 1)) if name in taken else name


def name_dimensions(
    members: list[MemberDataset], location: FileLocation, path: str, phony: PhonyNames
) -> Dimensions:
    """Name the axes of all datasets of a group."""
    _choose_scales(members, location, path)
    for member in members:
        for problem in member.chosen.problems:
            warn_unusable_scale(f"{member.stored.location.filename}: {member.path!r}", problem)
    names = _axis_names(members, location, path)
    lengths = _unlimited_lengths(members, phony)
    sizes = {
        m.name: max(m.extent[0], lengths.get(m.stored, 0)) for m in members if m.gives_length
    }
    by_size: dict[int, list[str]] = {}
    for name, size in sizes.items():
        by_size.setdefault(size, []).append(name)
    phony.scales += sum(m.is_scale for m in members)
    unlimited = {m.name for m in members if m.is_unlimited}
    _add_phony(members, by_size, unlimited, phony)
    _name_after_dimensions(members, names, location, path, phony)
    naming = _Naming(lengths, dict(sizes), frozenset(sizes), by_size, phony)
    named = [naming.name_axes(m, axes) for m, axes in zip(members, names, strict=True)]
    return Dimensions(
        [dims for dims, _ in named], [shape for _, shape in named], frozenset(unlimited)
    )


def count_dimensions(members: list[MemberDataset], phony: PhonyNames) -> None:
    """Count the scales and phony dimensions of a group whose variables are not needed."""
    _choose_attached(members)
    by_size: dict[int, list[str]] = {}
    for m in members:
        if m.gives_length and not m.is_unlimited:
            by_size.setdefault(m.extent[0], []).append(m.name)
    phony.scales += sum(m.is_scale for m in members)
    _add_phony(members, by_size, set(), phony)


def _add_phony(
    members: list[MemberDataset],
    by_size: dict[int, list[str]],
    unlimited: set[str],
    phony: PhonyNames,
) -> None:
    """Add the phony dimensions that datasets without any scale need, size by size."""
    needed: Counter[int] = Counter()
    for member in members:
        if not member.is_scale and not any(member.chosen.addresses):
            needed |= Counter(member.shape)
    for size, n_needed in needed.items():
        candidates = by_size.setdefault(size, [])
        n_limited = sum(name not in unlimited for name in candidates)
        candidates.extend(phony.new() for _ in range(n_limited, n_needed))


@dataclass(slots=True)
class _Naming:
    """Names given so far to the axes of the datasets of one group, which must agree."""

    lengths: dict[StoredObject, int]  # of the unlimited dimensions, by scale
    sizes: dict[str, int]  # of each name; those of the scales of the group come first
    scales: frozenset[str]  # names of the scales of the group
    by_size: dict[int, list[str]]  # names for axes without a scale
    phony: PhonyNames

    def name_axes(
        self, member: MemberDataset, axes: list[str | None]
    ) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Name the axes of one dataset; ``axes`` has the names of their scales."""
        dims: list[str] = []
        shape: list[int] = []
        used: dict[int, int] = {}
        taken = {name for name in axes if name is not None}
        addresses = member.chosen.addresses
        for axis, (name, stored) in enumerate(zip(axes, member.shape, strict=True)):
            size = stored
            if name is not None:
                address = addresses[axis] if axis < len(addresses) else 0
                scale = StoredObject(member.stored.location, address)
                size = max(stored, self.lengths.get(scale, 0))
                if self._size_of(name, scale, size) != size:
                    self._warn_of_size(member, name, size)
                    name, size = None, stored
            if name is None:
                unknown = axis in member.chosen.unknown
                name = self._free_name(size, used, {*dims, *taken}, unknown)
            self.sizes[name] = size
            dims.append(name)
            shape.append(size)
        return tuple(dims), tuple(shape)

    def _size_of(self, name: str, scale: StoredObject, size: int) -> int:
        """Return the size that a dimension has already, else ``size``."""
        if scale.address and scale_at(scale).shape is None:
            # In a tree, a dimension has one length in a group and in the groups below it.
            size = self.phony.lengths.setdefault(scale, size)
        return self.sizes.setdefault(name, size)

    def _free_name(
        self, size: int, used: dict[int, int], taken: Container[str], unknown: bool
    ) -> str:
        """Return the name of an axis without a scale: a dimension of its size, else phony.

        An axis of an ``unknown`` dimension must not get the name of a scale.
        """
        candidates = self.by_size.setdefault(size, [])
        first = 0 if unknown else used.get(size, 0)
        for name in candidates[first:]:
            fits = self.sizes.get(name, size) == size and name not in taken
            if fits and not (unknown and name in self.scales):
                break
        else:
            name = self.phony.new()
            candidates.append(name)
        used[size] = used.get(size, 0) + (not unknown)
        return name

    def _warn_of_size(self, member: MemberDataset, name: str, size: int) -> None:
        warnings.warn(
            f"{member.stored.location.filename}: {member.path}: dimension {name!r} has "
            f"{self.sizes[name]} elements elsewhere and {size} here; this axis gets another "
            "name",
            UnreadableMemberWarning,
            stacklevel=2,
        )


def _by_file(
    members: list[MemberDataset],
) -> Iterator[tuple[FileLocation, list[MemberDataset]]]:
    """Yield the members of each file: addresses and numbers are valid within one file."""
    first = members[0].stored.location if members else None
    if first is not None and all(m.stored.location is first for m in members):
        yield first, members  # without comparing thousands of locations
        return
    for home in dict.fromkeys(m.stored.location for m in members):
        yield home, [m for m in members if m.stored.location == home]


def _choose_attached(members: list[MemberDataset]) -> None:
    """Choose the scale of each axis of each member from its "DIMENSION_LIST"."""
    for home, part in _by_file(members):
        known = {m.stored.address: m.scale for m in part}

        def scale_of(
            address: int, known: dict[int, Scale] = known, home: FileLocation = home
        ) -> Scale:
            return known.get(address) or scale_at(StoredObject(home, address))

        lists = [(m.attributes, m.problems, len(m.extent)) for m in part]
        for member, listed in zip(part, objects.attached_scales(lists, home), strict=True):
            member.chosen = choose_scales(listed, member.extent, member.stored, scale_of)


def _choose_scales(members: list[MemberDataset], location: FileLocation, path: str) -> None:
    """Choose the scale of each axis, also of coordinate variables, which name them by number.

    A coordinate variable is itself the scale of its dimension. One of several dimensions
    refers to its dimensions by number, those of the group and of the groups above it.
    """
    _choose_attached(members)
    for home, part in _by_file(members):
        above = posixpath.dirname(path) if home == location and path != "/" else None
        numbers = _Numbers(part, home, above)
        for member in part:
            if any(member.chosen.addresses) or member.chosen.unknown or not member.extent:
                continue
            ids = integers(member.attributes, objects.COORDINATE_IDS)
            addresses = [0] * len(member.extent)
            if len(ids) == len(member.extent):
                pairs = zip(ids, member.extent, strict=True)
                addresses = [numbers.find(n, size) for n, size in pairs]
            if member.gives_length and not any(addresses):
                addresses[0] = member.stored.address
            if any(addresses):
                member.chosen = ChosenScales(tuple(addresses))


class _Numbers:
    """Dimension numbers ("_Netcdf4Dimid") of the scales of a group and the groups above it."""

    def __init__(
        self, members: list[MemberDataset], location: FileLocation, above: str | None
    ) -> None:
        self._location, self._above = location, above
        self._scales = {m.stored.address: m.scale for m in members}
        self._addresses: dict[int, int] = {}
        for member in members:
            if member.is_scale:
                for number in integers(member.attributes, objects.DIMENSION_ID)[:1]:
                    self._addresses.setdefault(number, member.stored.address)

    def find(self, number: int, size: int) -> int:
        """Return the address of the scale of an axis of ``size`` elements; 0 if none fits."""
        while number not in self._addresses and self._above is not None:
            self._addresses = {
                **numbered_scales(self._location, self._above),
                **self._addresses,
            }
            at_root = self._above == "/"
            self._above = None if at_root else posixpath.dirname(self._above)
        address = self._addresses.get(number, 0)
        scale = self._scales.get(address) or scale_at(StoredObject(self._location, address))
        return 0 if scale.reject(size) else address


def _axis_names(
    members: list[MemberDataset], location: FileLocation, path: str
) -> list[list[str | None]]:
    """Return the name of the scale of each axis of each member, None if it has none."""
    found: dict[int, list[str | None]] = {}
    for home, part in _by_file(members):
        hard: dict[int, str] = {}
        soft: dict[int, str] = {}
        for member in part:
            own = hard if member.is_hard else soft
            own.setdefault(member.stored.address, member.name)
        wanted = {a for m in part for a in m.chosen.addresses if a}
        above = posixpath.dirname(path) if home == location and path != "/" else None
        names = scale_names(home, above, wanted, hard, soft)
        for m in part:
            # A scale with several names is a coordinate of the dimension of each name.
            by_address = {**names, m.stored.address: m.name} if m.is_scale else names
            axes = [by_address.get(a) for a in m.chosen.addresses]
            found[id(m)] = axes + [None] * (len(m.shape) - len(axes))
    return [found[id(m)] for m in members]


def _name_after_dimensions(
    members: list[MemberDataset],
    names: list[list[str | None]],
    location: FileLocation,
    path: str,
    phony: PhonyNames,
) -> None:
    """Name the only axis of a dataset after a dimension of a parent group of the same name.

    The dataset is a coordinate of that dimension, as in other readers, if lengths are equal.
    """
    scope = _parent_scope(location, path, phony)
    for member, axes in zip(members, names, strict=True):
        if member.chosen.unknown or member.is_scale:
            continue
        if axes == [None] and member.stored.location == location and member.name in scope:
            lengths = (_dimension_length(StoredObject(location, a)) for a in scope[member.name])
            length = next((n for n in lengths if n is not None), None)
            axes[0] = member.name if length == member.shape[0] else None
    here = (m for m in members if m.is_scale and m.stored.location == location)
    scales = {m.name: (m.stored.address,) for m in here}
    phony.scopes[path] = scope | scales if scales else scope


def _parent_scope(location: FileLocation, path: str, phony: PhonyNames) -> Scope:
    """Return the objects in the parent groups of a group, by name."""
    if path == "/":
        return {}
    parent = posixpath.dirname(path)
    if parent not in phony.scopes:
        scope: Scope = {}
        try:
            for group in objects.groups_along(location, parent):
                if group.stored.location.identity != location.identity:
                    continue
                for address, name in objects.link_addresses(group).items():
                    scope[name] = (address, *scope.get(name, ()))
        except (XrefError, OSError):
            scope = {}  # a group that cannot be opened defines no names
        phony.scopes[parent] = scope
    return phony.scopes[parent]


def _dimension_length(stored: StoredObject) -> int | None:
    """Return the length of a scale; None if the object is not a scale, or has no length."""
    scale = scale_at(stored)
    if scale.problem or not scale.shape:
        return None
    return unlimited_length(stored) if scale.is_unlimited else scale.shape[0]


def _unlimited_lengths(
    members: list[MemberDataset], phony: PhonyNames
) -> dict[StoredObject, int]:
    """Return the length of each unlimited dimension of the members, by its scale.

    It is that of the longest dataset along it, of this group or another one. The scale lists
    the datasets that it is attached to, but not the coordinate variables of several dimensions.
    """
    own = {m.stored: m for m in members if m.is_scale}
    lengths: dict[StoredObject, int] = {}
    attached: dict[StoredObject, set[tuple[int, int]]] = {}
    for member in members:
        if member.is_unlimited:
            own_length = member.extent[0]
            lengths[member.stored] = max(lengths.get(member.stored, 0), own_length)
        for axis, address in enumerate(member.chosen.addresses):
            scale = StoredObject(member.stored.location, address)
            if address and (own[scale].scale if scale in own else scale_at(scale)).is_unlimited:
                lengths[scale] = max(lengths.get(scale, 0), member.extent[axis])
                if objects.DIMENSION_LIST in member.attributes:
                    attached.setdefault(scale, set()).add((member.stored.address, axis))
    for scale, length in lengths.items():
        # Other datasets are looked at unless all datasets along it are members of this group.
        listed = own[scale].attributes.get(objects.REFERENCE_LIST) if scale in own else None
        if scale not in own or _n_references(listed) != len(attached.get(scale, ())):
            length = max(length, unlimited_length(scale) or 0)
        known = phony.lengths.get(scale, length)
        phony.has_grown |= length > known
        lengths[scale] = phony.lengths[scale] = max(length, known)
    return lengths


def _n_references(listed: Any) -> int:
    if isinstance(listed, objects.RawAttributeValue):
        return math.prod(listed.shape)
    return int(listed.size) if hasattr(listed, "size") else 0
