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
from itertools import chain, count
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

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

PHONY_DIMS = (None, "sort", "access")


@dataclass(slots=True)
class SharedValues:
    """Values of a dataset that were read for one of its names, for its other names."""

    attributes: dict[str, Any] | None = None  # as plain values
    text: npt.NDArray[Any] | None = None  # elements of a variable of text


@dataclass(slots=True)
class MemberDataset:
    """Metadata of a dataset of a group, from which its variable is made."""

    name: str
    path: str
    stored: StoredObject
    layout: DatasetLayout
    attributes: dict[str, Any]
    problems: dict[str, Exception]
    scales: list[int] = field(default_factory=list)  # address of the scale of each axis, or 0
    type_name: str | None = None  # of an enumeration that is a named datatype
    is_elsewhere: bool = False  # whether an external link leads to it
    shared: SharedValues = field(default_factory=SharedValues)

    @property
    def own_path(self) -> str | None:
        """The path in the file that has the dataset; None if another path led there."""
        return None if self.is_elsewhere else self.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes of the dataset, then of those of an array type."""
        return self.layout.shape + item_dtype(self.layout.dtype)[1]

    @property
    def is_scale(self) -> bool:
        """Whether the dataset is a dimension scale."""
        return label(self.attributes, "CLASS") == "DIMENSION_SCALE"

    @property
    def is_variable(self) -> bool:
        """Whether the dataset is a variable: some scales only define a dimension."""
        return not label(self.attributes, "NAME").startswith(objects.NO_VARIABLE)

    @property
    def is_unlimited(self) -> bool:
        """Whether the dataset is the scale of an unlimited dimension."""
        return self.is_scale and self.layout.maxshape == (None,)


def label(attributes: dict[str, Any], name: str) -> str:
    """Return a text attribute, or the text of an array of one; empty text for other values."""
    value = attributes.get(name)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return objects.decode_name(value) if isinstance(value, str | bytes) else ""


Scope: TypeAlias = dict[str, tuple[int, ...]]
"""Addresses of possible dimension scales by name, the nearest group first."""


@dataclass(slots=True)
class PhonyNames:
    """Counter of the names of axes without a scale, for the groups of a file."""

    mode: str | None = None  # or "access", or "sort", which counts scales too, as netCDF does
    phony: int = 0  # names given in the groups before
    scales: int = 0  # scales in the groups before
    scopes: dict[str, Scope] = field(default_factory=dict)  # of each group, with its parents

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
    axis_sizes: dict[str, int] = {}
    named = [
        _name_axes(member, axes, lengths, axis_sizes, by_size, phony)
        for member, axes in zip(members, names, strict=True)
    ]
    unlimited = frozenset(m.name for m in members if m.is_unlimited)
    return Dimensions([dims for dims, _ in named], [shape for _, shape in named], unlimited)


def count_dimensions(members: list[MemberDataset], phony: PhonyNames) -> None:
    """Count the scales and phony dimensions of a group whose variables are not needed."""
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
    """Add the phony dimensions that datasets without any scale need, size by size."""
    needed: Counter[int] = Counter()
    for member, axes in zip(members, names, strict=True):
        if not member.is_scale and not any(axes):
            needed |= Counter(member.shape)
    for size, n_needed in needed.items():
        candidates = by_size.setdefault(size, [])
        n_limited = sum(name not in unlimited for name in candidates)
        candidates.extend(phony.new() for _ in range(n_limited, n_needed))


def _name_axes(
    member: MemberDataset,
    axes: list[str | None],
    lengths: dict[str, int],
    sizes: dict[str, int],
    by_size: dict[int, list[str]],
    phony: PhonyNames,
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Name the axes of one dataset, consistent with ``sizes`` of the datasets before it."""
    dims: list[str] = []
    shape: list[int] = []
    used: Counter[int] = Counter()
    for name, stored in zip(axes, member.shape, strict=True):
        size = max(stored, lengths.get(name, 0)) if name is not None else stored
        if name is not None and (name in dims or sizes.get(name, size) != size):
            if name not in dims:
                warnings.warn(
                    f"{member.stored.location.filename}: {member.path}: dimension {name!r} has "
                    f"{sizes[name]} elements elsewhere and {size} here; this axis gets another "
                    "name",
                    UnreadableMemberWarning,
                    stacklevel=2,
                )
            name, size = None, stored
        if name is None:
            candidates = by_size.setdefault(size, [])
            fits = (c for c in candidates[used[size] :] if sizes.get(c, size) == size)
            name = next((c for c in fits if c not in dims), None)
            if name is None:
                name = phony.new()
                candidates.append(name)
            used[size] += 1
        sizes[name] = size
        dims.append(name)
        shape.append(size)
    return tuple(dims), tuple(shape)


def _scale_addresses(members: list[MemberDataset]) -> list[list[int]]:
    """Return the address of the scale of each axis of each member, 0 if it has none."""
    for home in dict.fromkeys(m.stored.location for m in members):
        part = [m for m in members if m.stored.location == home]
        axes = [(m.attributes, len(m.layout.shape)) for m in part]
        for member, scales in zip(part, objects.scale_addresses(axes, home), strict=True):
            member.scales = scales
    return [m.scales for m in members]


def _axis_scales(
    members: list[MemberDataset], location: FileLocation, path: str
) -> list[list[str | None]]:
    """Return the name of the scale of each axis of each member, None if it has none."""
    _scale_addresses(members)
    scales: dict[int, list[str | None]] = {}
    # Addresses and dimension numbers are valid within one file.
    for home in dict.fromkeys(m.stored.location for m in members):
        part = [m for m in members if m.stored.location == home]
        parent = posixpath.dirname(path) if home == location and path != "/" else None
        names = _axis_scales_of_file(part, home, parent)
        scales |= dict(zip(map(id, part), names, strict=True))
    return [scales[id(m)] for m in members]


def _axis_scales_of_file(
    members: list[MemberDataset], location: FileLocation, parent: str | None
) -> list[list[str | None]]:
    addresses = set(chain(*(m.scales for m in members))) - {0}
    names = _scale_names(members, location, parent, addresses)
    numbers = {
        m.name: _integer_attribute(m, objects.DIMENSION_ID) for m in members if m.is_scale
    }
    by_number = {integers[0]: name for name, integers in numbers.items() if integers}
    scales: list[list[str | None]] = []
    for member in members:
        ndim = len(member.shape)
        axes: list[str | None] = [names.get(address) for address in member.scales]
        axes += [None] * (ndim - len(axes))
        if member.is_scale:
            # A coordinate variable of several dimensions refers to them by number.
            coordinates = _integer_attribute(member, objects.COORDINATE_IDS)
            if len(coordinates) == ndim and ndim:
                axes = [by_number.get(n) for n in coordinates]
            elif ndim == 1 and not any(member.scales):
                axes = [member.name]
        scales.append(axes)
    return scales


def _integer_attribute(member: MemberDataset, name: str) -> list[int]:
    """Return the integers of an attribute; an empty list for values of other types."""
    values = np.asarray(member.attributes.get(name, ()))
    return [int(n) for n in values.reshape(-1)] if values.dtype.kind in "iu" else []


def _scale_names(
    members: list[MemberDataset], location: FileLocation, parent: str | None, scales: set[int]
) -> dict[int, str]:
    """Return the link name of each scale: from this group, else from the nearest parent."""
    names = {m.stored.address: m.name for m in members}
    missing = scales - set(names)
    while missing and parent is not None:
        group = objects.open_group(location, parent)
        # An external link may lead to another file and back.
        is_here = group.stored.location.identity == location.identity
        links = objects.link_addresses(group) if is_here else {}
        names |= {a: n for a, n in links.items() if a in missing}
        missing -= set(links)
        parent = posixpath.dirname(parent) if parent != "/" else None
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
    """Name the only axis of a dataset after a dimension of a parent group of the same name.

    The dataset is a coordinate of that dimension, as in other readers, if lengths are equal.
    """
    scope = _parent_scope(location, path, phony)
    for member, axes in zip(members, names, strict=True):
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


def _dimension_length(scale: StoredObject) -> int | None:
    """Return the length of a scale; None if the object is not a scale."""
    try:
        facts = scale.metadata
    except (XrefError, OSError):
        return None  # not a dataset, or one that cannot be read
    if label(facts.attributes, "CLASS") != "DIMENSION_SCALE" or not facts.layout.shape:
        return None
    return _unlimited_length(scale) or facts.layout.shape[0]


def _unlimited_lengths(
    members: list[MemberDataset], names: list[list[str | None]]
) -> dict[str, int]:
    """Return the length of each unlimited dimension of the members."""
    by_object = {m.stored: m for m in members}
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
        member_scale = by_object.get(scale)
        if member_scale is None:
            length = _unlimited_length(scale)
        elif not member_scale.is_unlimited:
            continue
        elif (
            _n_references(member_scale.attributes.get(objects.REFERENCE_LIST)) == attached[name]
        ):
            length = lengths[name]  # all datasets along it are members of this group
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
    """Return the length of the longest dataset along an unlimited scale, else None."""
    # The layout is not needed: even a scale of a type that cannot be read has a length.
    dataset = objects.open_dataset(scale)
    if dataset.shape is None or dataset.maxshape != (None,):
        return None
    length = int(dataset.shape[0])
    if not objects.has_attribute(dataset, objects.REFERENCE_LIST):
        return length
    listed = objects.read_attribute(dataset, objects.REFERENCE_LIST, scale)
    for address, axis in _attached_axes(listed, scale):
        length = max(length, _axis_length(StoredObject(scale.location, address), axis))
    return length


def _attached_axes(listed: Any, scale: StoredObject) -> Iterator[tuple[int, int]]:
    """Yield dataset address and axis of each entry of a REFERENCE_LIST, if it is valid."""
    location = scale.location
    if isinstance(listed, objects.RawAttributeValue):
        owner = references.Owner.of(scale, None, attribute=objects.REFERENCE_LIST)
        listed = references.decode_elements(listed, location, owner, DEFAULT_OPTIONS)
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
    """Return the length of one axis of a dataset, 0 if there is no such axis."""
    try:
        shape = objects.open_dataset(dataset).shape
    except (DanglingReferenceError, WrongTargetError):
        return 0  # the list of a scale may name deleted datasets
    return int(shape[axis]) if shape and 0 <= axis < len(shape) else 0
