"""The dimension scale of each axis of a dataset: which one it is, its name and its length.

In: the attribute "DIMENSION_LIST" of a dataset, and the group that names the scales. Out: for
each axis the address of its scale, or why the file gives none; names and lengths of scales.

Source: HDF5 Dimension Scale Specification and Support, 1.0. An axis may have several scales;
the last one attached counts, as in netCDF. An entry that is no scale, or a scale of another
length than its axis, is ignored. Copying a dataset to another file leaves such entries behind.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np

from xref import objects, references
from xref.errors import (
    CorruptFileError,
    DanglingReferenceError,
    FileReadError,
    UnsupportedError,
    WrongTargetError,
    XrefError,
)
from xref.hdf5 import DatasetLayout
from xref.objects import AttachedScales, StoredObject, cached_by_object
from xref.references import DEFAULT_OPTIONS, ObjectReference
from xref.storage import FileLocation, cached_by_location


def label(attributes: Mapping[str, Any], name: str) -> str:
    """Return a text attribute, or the text of an array of one; empty text for other values."""
    value = attributes.get(name)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return objects.decode_name(value) if isinstance(value, str | bytes) else ""


def is_scale(attributes: Mapping[str, Any]) -> bool:
    """Tell whether a dataset with these attributes is a dimension scale."""
    return label(attributes, "CLASS") == "DIMENSION_SCALE"


def integers(attributes: Mapping[str, Any], name: str) -> list[int]:
    """Return the integers of an attribute; an empty list for values of other types."""
    if name not in attributes:
        return []
    values = np.asarray(attributes[name])
    return [int(n) for n in values.reshape(-1)] if values.dtype.kind in "iu" else []


NO_SCALE = "which is no dimension scale"
NO_OBJECT = "no object"


@dataclass(frozen=True, slots=True)
class Scale:
    """The object that an entry of a "DIMENSION_LIST" points at."""

    problem: str = ""  # says what the object is, if it is no dimension scale
    shape: tuple[int, ...] | None = None  # None without a dataspace: the scale has no length
    is_unlimited: bool = False

    def reject(self, size: int) -> str:
        """Say why an axis of ``size`` elements cannot have this scale; empty if it can."""
        if self.problem or self.shape is None or self.is_unlimited or self.shape[:1] == (size,):
            return self.problem
        return f"a dimension scale of shape {self.shape}, and the axis has {size} elements"


@dataclass(frozen=True, slots=True)
class ChosenScales:
    """The scale of each axis of one dataset."""

    addresses: tuple[int, ...]  # 0 for an axis without a scale
    problems: tuple[str, ...] = ()  # entries that were ignored, as the end of a warning
    # Axes whose entries were all ignored. The file says nothing of their dimensions.
    unknown: frozenset[int] = frozenset()


NO_SCALES = ChosenScales(())


@lru_cache(maxsize=64)
def _without_scales(rank: int) -> ChosenScales:
    return ChosenScales((0,) * rank)


def choose_scales(
    listed: AttachedScales,
    shape: tuple[int, ...],
    dataset: StoredObject,
    scale_of: Callable[[int], Scale] | None = None,
) -> ChosenScales:
    """Choose the scale of each axis of a dataset, and list the entries that are ignored.

    ``scale_of`` describes the object at an address; by default the object is opened.
    """
    if listed.problem:
        text = f"the attribute 'DIMENSION_LIST' {listed.problem}; each axis gets a phony name"
        return ChosenScales((0,) * len(shape), (text,), frozenset(range(len(shape))))
    if not any(listed.axes):
        return _without_scales(len(shape))
    addresses, problems, unknown = [], [], []
    for axis, (entries, size) in enumerate(zip(listed.axes, shape, strict=True)):
        chosen, reason = 0, ""
        for address in reversed(entries):
            scale = (scale_of or _opener(dataset.location))(address)
            found = scale.reject(size)
            if not found:
                chosen = address
                break
            reason = reason or _describe(found, dataset, address)
        addresses.append(chosen)
        if reason:
            unknown += [] if chosen else [axis]
            instead = (
                "another scale of the axis is used" if chosen else "the axis gets a phony name"
            )
            problems.append(f"axis {axis}: 'DIMENSION_LIST' {reason}; {instead}")
    return ChosenScales(tuple(addresses), tuple(problems), frozenset(unknown))


def _opener(location: FileLocation) -> Callable[[int], Scale]:
    return lambda address: scale_at(StoredObject(location, address))


def _describe(what: str, dataset: StoredObject, address: int) -> str:
    if not address:
        return "holds a null reference"
    if what == NO_OBJECT:
        return f"points at address {address:#x}, where {what} is"
    own, path = dataset.label, StoredObject(dataset.location, address).label
    if address == dataset.address:
        return f"points at the dataset itself, {what}"
    beside = path != "/" and posixpath.dirname(own) == posixpath.dirname(path)
    return f"points at {(posixpath.basename(path) if beside else path)!r}, {what}"


def scale_of_dataset(dataset: objects.Object, attributes: Mapping[str, Any]) -> Scale:
    """Describe an open dataset, whose attributes were read, as a dimension scale.

    The layout is not needed: even a scale of a type that cannot be read has a length.
    """
    shape = dataset.shape
    problem = "" if is_scale(attributes) else NO_SCALE
    is_unlimited = bool(shape) and dataset.maxshape[0] is None
    return Scale(problem, shape, is_unlimited)


def scale_of_layout(
    layout: DatasetLayout, dataset: objects.Object, attributes: Mapping[str, Any]
) -> Scale:
    """Describe a dataset whose layout is known; see `scale_of_dataset`."""
    if layout.shape == layout.maxshape == (0,) and is_scale(attributes):
        return scale_of_dataset(dataset, attributes)  # it may have no dataspace
    problem = "" if is_scale(attributes) else NO_SCALE
    is_unlimited = bool(layout.maxshape) and layout.maxshape[0] is None
    return _shared_scale(problem, layout.shape, is_unlimited)


# Thousands of datasets have few shapes.
_shared_scale = lru_cache(maxsize=256)(Scale)


@cached_by_object(maxsize=4096)
def scale_at(stored: StoredObject) -> Scale:
    """Describe the object at the address of an entry of a "DIMENSION_LIST"."""
    if not stored.address:
        return Scale(NO_OBJECT)
    try:
        dataset = objects.open_dataset(stored)
    except WrongTargetError:
        return Scale(f"a {objects.object_kind(stored)}")
    except DanglingReferenceError:
        return Scale(NO_OBJECT)
    attributes = {}
    if objects.has_attribute(dataset, "CLASS"):
        with suppress(FileReadError, CorruptFileError, UnsupportedError):
            attributes["CLASS"] = objects.read_attribute(dataset, "CLASS", stored)
    return scale_of_dataset(dataset, attributes)


def scale_names(
    location: FileLocation,
    path: str | None,
    scales: Set[int],
    hard: Mapping[int, str] = MappingProxyType({}),
    soft: Mapping[int, str] = MappingProxyType({}),
) -> dict[int, str]:
    """Return the name of each scale for the datasets of one group.

    The nearest group that has a hard link to the scale gives the name, from the group of the
    datasets up to the root; else the nearest group that has a soft link; else the canonical
    path of the scale. A scale without any path has no name.

    Parameters
    ----------
    location : FileLocation
    path : str or None
        The group where the search begins.
    scales : set of int
        Addresses.
    hard, soft : dict of int to str
        The names in groups that are nearer than ``path``, by address.
    """
    names: dict[int, str] = {}
    for found, is_soft in ((hard, False), (soft, True)):
        names |= {a: found[a] for a in scales - set(names) if a in found}
        missing, above = scales - set(names), path
        while missing and above is not None:
            group = objects.open_group(location, above)
            # An external link may lead to another file and back.
            if group.stored.location.identity == location.identity:
                names |= objects.names_in_group(group, missing, soft=is_soft)
                missing -= set(names)
            above = posixpath.dirname(above) if above != "/" else None
    missing = scales - set(names)
    if missing:
        paths = objects.object_paths(location, missing)
        names |= {a: posixpath.basename(paths[a]) for a in missing if a in paths}
    return names


def scale_name(scale: StoredObject, dataset: StoredObject) -> str | None:
    """Return the name of a scale as it is in the group that the dataset is opened with.

    That is the group of the canonical path of the dataset. A scale in the root with one hard
    link has one name in all groups.
    """
    path = scale.path
    if path is not None and posixpath.dirname(path) == "/" and not _has_aliases(scale):
        return posixpath.basename(path)
    own = dataset.path
    if own is None:
        return None if path is None else posixpath.basename(path)
    try:
        found = scale_names(scale.location, posixpath.dirname(own), {scale.address})
    except (XrefError, OSError):
        return None if path is None else posixpath.basename(path)
    return found.get(scale.address)


@cached_by_object(maxsize=4096)
def _has_aliases(stored: StoredObject) -> bool:
    """Tell whether several hard links lead to an object."""
    return objects.n_links(stored) > 1


@cached_by_location(maxsize=256)
def numbered_scales(location: FileLocation, path: str) -> Mapping[int, int]:
    """Return the address of each scale of a group by its dimension number ("_Netcdf4Dimid").

    Groups without such numbers cost one look at each dataset.
    """
    found: dict[int, int] = {}
    for _, member in objects.iterate_members(objects.open_group(location, path)):
        if isinstance(member, Exception) or objects.kind_of(member.item) != "dataset":
            continue
        stored = member.stored
        if stored.location != location:
            continue
        name = objects.DIMENSION_ID
        if objects.has_attribute(member.item, name) and not scale_at(stored).problem:
            value = objects.read_attribute(member.item, name, stored)
            for number in integers({name: value}, name)[:1]:
                found.setdefault(number, stored.address)
    return MappingProxyType(found)


def numbered_addresses(
    dataset: StoredObject, attributes: Mapping[str, Any], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the address of the scale of each axis of a dataset that has no "DIMENSION_LIST".

    A coordinate variable of several dimensions refers to them by number: those of its group and
    of the groups above it. Without numbers, a scale is that of its first axis. 0 for an axis
    without a scale.
    """
    addresses = [0] * len(shape)
    ids = integers(attributes, objects.COORDINATE_IDS)
    is_own = is_scale(attributes) and bool(shape)
    if len(ids) == len(shape) and not (is_own and len(shape) == 1):
        for axis, size in enumerate(shape):
            addresses[axis] = _numbered_address(dataset, ids[axis], size)
    if is_own and not any(addresses):
        addresses[0] = dataset.address
    return tuple(addresses)


def _numbered_address(dataset: StoredObject, number: int, size: int) -> int:
    """Return the address of the scale with a number for a dataset; 0 if none fits the axis."""
    above = dataset.path
    while above is not None and above != "/":
        above = posixpath.dirname(above)
        address = numbered_scales(dataset.location, above).get(number, 0)
        if address:
            scale = scale_at(StoredObject(dataset.location, address))
            return 0 if scale.reject(size) else address
    return 0


@cached_by_object(maxsize=4096)
def unlimited_length(scale: StoredObject) -> int | None:
    """Return the length of the longest dataset along an unlimited scale, else None."""
    dataset = objects.open_dataset(scale)
    if not dataset.shape or dataset.maxshape[0] is not None:
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
