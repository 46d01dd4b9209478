"""Members of a group into xarray variables.

In: a group of an open file, or the address of a dataset. Out: variables with
dimension names, plain attributes and lazy data; `ReferenceArray` data for
datasets of references.

Dimension names come from dimension scales (HDF5 Dimension Scale Specification
and Support, 1.0; netCDF-4 stores its dimensions that way). Axes without a scale
get ``phony_dim_N``: one name for a size, within one group, as in other readers
of netCDF-4.
"""

from __future__ import annotations

import math
import posixpath
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import xarray as xr

from xref.decode import StoredReferences, decode_references
from xref.elements import DecodeOptions
from xref.errors import UnreadableMemberWarning, UnsupportedError, XrefError
from xref.h5data import (
    DatasetFacts,
    RawReferences,
    attached_scales,
    dataset_facts,
    read_attributes,
    read_layout,
    reference_addresses,
)
from xref.h5file import FileLocation, file_format
from xref.h5objects import (
    Member,
    Object,
    iterate_members,
    kind_of,
    known_path,
    link_addresses,
    object_paths,
    open_group,
    remember_paths,
    text,
)
from xref.layout import DatasetLayout, item_dtype
from xref.lazy import DatasetArray, lazily_indexed
from xref.references import ReferenceArray

HIDDEN_ATTRIBUTES = {
    "CLASS",
    "NAME",
    "DIMENSION_LIST",
    "REFERENCE_LIST",
    "_Netcdf4Dimid",
    "_Netcdf4Coordinates",
    "_NCProperties",
    "_nc3_strict",
}

_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable"


class ReferenceVariable(xr.Variable):
    """A variable of references.

    Its data are immutable columns: xarray need not protect them from writes,
    cache them, or cut them into dask chunks when a file is opened with
    ``chunks=...`` (dask cannot size chunks of objects).
    """

    __slots__ = ()

    @property
    def _in_memory(self) -> bool:
        return True

    @property
    def data(self) -> Any:
        """The `ReferenceArray`."""
        return xr.Variable.data.fget(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, data: Any) -> None:
        if hasattr(data, "get_duck_array"):
            data = data.get_duck_array()
        xr.Variable.data.fset(self, data)  # type: ignore[attr-defined]

    def chunk(self, chunks: Any = {}, *args: Any, **kwargs: Any) -> Any:  # noqa: B006
        """Cut into dask chunks; "auto" makes one chunk, as sizes are not known."""
        if chunks == "auto":
            chunks = -1
        elif isinstance(chunks, dict):
            chunks = {d: -1 if c == "auto" else c for d, c in chunks.items()}
        return super().chunk(chunks, *args, **kwargs)


@dataclass(slots=True)
class _Member:
    """A dataset on its way to a variable."""

    name: str
    path: str
    location: FileLocation
    address: int
    layout: DatasetLayout
    attributes: dict[str, Any]
    problems: dict[str, Exception]

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes of the dataset, then those of an array type."""
        return self.layout.shape + item_dtype(self.layout.dtype)[1]


def warn_unreadable(where: str, error: Exception) -> None:
    """Tell that something was left out."""
    warnings.warn(
        f"{where} was left out: {type(error).__name__}: {error}",
        UnreadableMemberWarning,
        stacklevel=2,
    )


def attribute_values(
    item: Object, location: FileLocation, where: str, options: DecodeOptions
) -> dict[str, Any]:
    """Return an object's attributes as plain, picklable values; warn of others."""
    return plain_attributes(*read_attributes(item), location, where, options)


def plain_attributes(
    raw: dict[str, Any],
    problems: dict[str, Exception],
    location: FileLocation,
    where: str,
    options: DecodeOptions,
) -> dict[str, Any]:
    """Turn attribute values into plain, picklable ones; warn of others.

    Those that only say how the file is organised are left out.
    """
    values = {}
    for name, problem in problems.items():
        if name not in HIDDEN_ATTRIBUTES:
            warn_unreadable(f"{where}: attribute {name!r}", problem)
    for name, value in raw.items():
        if name in HIDDEN_ATTRIBUTES:
            continue
        try:
            values[name] = _plain(value, location, f"{where}: attribute {name!r}", options)
        except XrefError as error:
            warn_unreadable(f"{where}: attribute {name!r}", error)
    return values


def _plain(value: Any, location: FileLocation, where: str, options: DecodeOptions) -> Any:
    if isinstance(value, RawReferences):
        array = attribute_references(value, location, where, options)
        return array.element_at(0) if array.shape == () else np.asarray(array)
    if isinstance(value, bytes):
        return text(value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "S":
            decoded = np.char.decode(value, "utf-8", "surrogateescape") if value.size else value
            return str(decoded[0]) if decoded.shape == (1,) else decoded
        if value.dtype.hasobject:
            return _plain_objects(value)
        # A one-element array is a number to netCDF.
        return value[0] if value.shape == (1,) else value
    return value


def _plain_objects(value: Any) -> Any:
    if value.dtype.kind != "O":
        return value  # a compound with text
    if all(isinstance(v, str | bytes) for v in value.flat):
        decoded = [text(v) for v in value.flat]
        return (
            decoded[0]
            if value.shape == (1,)
            else np.array(decoded, object).reshape(value.shape)
        )
    return value


def attribute_references(
    value: RawReferences, location: FileLocation, where: str, options: DecodeOptions
) -> ReferenceArray:
    """Decode the references of an attribute."""
    is_region = value.kind == "region"
    raw = np.frombuffer(value.data, dtype=np.uint8).reshape(math.prod(value.shape), -1)
    columns = decode_references(location, raw, is_region, lambda _: where)
    return ReferenceArray(value.shape, is_region=is_region, columns=columns, options=options)


def open_members(
    location: FileLocation,
    path: str,
    options: DecodeOptions,
    drop: Iterable[str] = (),
    phony: PhonyNames | None = None,
    group: Member | None = None,
) -> tuple[dict[str, xr.Variable], dict[str, Any]]:
    """Open the datasets of a group.

    Parameters
    ----------
    location : FileLocation
        The file.
    path : str
        Of the group.
    options : DecodeOptions
        Travel with references, for what they resolve to.
    drop : iterable of str
        Names of members to leave alone.
    phony : PhonyNames, optional
        Names for axes without a scale; to be shared by the groups of a tree, where
        a child must not use a name of its parent for another size.
    group : Member, optional
        The group, where it is open already: each path is searched from the root.

    Returns
    -------
    variables : dict of str to xarray.Variable
        Not yet decoded by the CF conventions.
    attributes : dict
        The group's.
    """
    group = open_group(location, path) if group is None else group
    where = f"{location.filename}: {path}"
    attributes = attribute_values(group.item, group.location, where, options)
    dropped = set(drop)
    members: list[_Member] = []
    for name, found in iterate_members(group):
        if name in dropped:
            continue
        full = posixpath.join(path, name)
        if isinstance(found, Exception):
            warn_unreadable(f"{location.filename}: {full!r}", found)
        elif kind_of(found.item) == "dataset":
            try:
                members.append(_open_member(name, full, found))
            except (XrefError, OSError, RuntimeError, ValueError, TypeError) as error:
                warn_unreadable(f"{location.filename}: {full!r}", error)
    remember_paths(location, {m.address: m.path for m in members if m.location == location})
    scales = _axis_scales(members, location, path)
    names = phony or PhonyNames()
    sizes: dict[str, int] = {}
    variables: dict[str, xr.Variable] = {}
    for member, axes in zip(members, scales, strict=True):
        dims = _dimension_names(axes, member.shape, names, sizes, f"{where}/{member.name}")
        if _label(member.attributes, "NAME").startswith(_NO_VARIABLE):
            continue
        try:
            variables[member.name] = _build_variable(member, dims, options)
        except (XrefError, OSError, RuntimeError, ValueError, TypeError) as error:
            warn_unreadable(f"{location.filename}: {member.path!r}", error)
    return variables, attributes


def _open_member(name: str, path: str, member: Member) -> _Member:
    layout = read_layout(member.item, member.location)
    raw, problems = read_attributes(member.item)
    return _Member(name, path, member.location, member.address, layout, raw, problems)


def _label(attributes: dict[str, Any], name: str) -> str:
    """Return a text attribute, also from an array of one; empty for anything else."""
    value = attributes.get(name)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return text(value) if isinstance(value, str | bytes) else ""


def _is_scale(member: _Member) -> bool:
    return _label(member.attributes, "CLASS") == "DIMENSION_SCALE"


def _axis_scales(
    members: list[_Member], location: FileLocation, path: str
) -> list[list[str | None]]:
    """Return the name of the scale of each axis of each member, None without one."""
    scales: dict[int, list[str | None]] = {}
    # Addresses and dimension numbers count within one file.
    for home in dict.fromkeys(m.location for m in members):
        part = [m for m in members if m.location == home]
        above = posixpath.dirname(path) if home == location and path != "/" else None
        found = _axis_scales_of_file(part, home, above)
        scales |= dict(zip(map(id, part), found, strict=True))
    return [scales[id(m)] for m in members]


def _axis_scales_of_file(
    members: list[_Member], location: FileLocation, above: str | None
) -> list[list[str | None]]:
    attached = [attached_scales(m.attributes, len(m.layout.shape)) for m in members]
    addresses = iter(
        reference_addresses(list(chain(*attached)), file_format(location).offset_size)
    )
    wanted = [[next(addresses) for _ in references] for references in attached]
    names = _scale_names(members, location, above, set(chain(*wanted)) - {0})
    numbers = {m.name: _integers(m, "_Netcdf4Dimid") for m in members if _is_scale(m)}
    of_number = {found[0]: name for name, found in numbers.items() if found}
    scales: list[list[str | None]] = []
    for member, axes in zip(members, wanted, strict=True):
        ndim = len(member.shape)
        own: list[str | None] = [names.get(address) for address in axes]
        own += [None] * (ndim - len(own))
        if _is_scale(member):
            # A coordinate variable of several dimensions names them by number.
            coordinates = _integers(member, "_Netcdf4Coordinates")
            if len(coordinates) == ndim and ndim:
                own = [of_number.get(n) for n in coordinates]
            elif ndim == 1 and not any(axes):
                own = [member.name]
        scales.append(own)
    return scales


def _integers(member: _Member, name: str) -> list[int]:
    """Return the integers of an attribute; none where it holds anything else."""
    values = np.asarray(member.attributes.get(name, ()))
    return [int(n) for n in values.reshape(-1)] if values.dtype.kind in "iu" else []


def _scale_names(
    members: list[_Member], location: FileLocation, above: str | None, wanted: set[int]
) -> dict[int, str]:
    """Return the link name of each scale: from this group, else from those above it."""
    names = {m.address: m.name for m in members}
    missing = wanted - set(names)
    while missing and above is not None:
        found = link_addresses(open_group(location, above))
        names |= {a: n for a, n in found.items() if a in missing}
        missing -= set(found)
        above = posixpath.dirname(above) if above != "/" else None
    if missing:
        paths = object_paths(location)
        names |= {a: posixpath.basename(paths[a]) for a in missing if a in paths}
    return names


class PhonyNames:
    """Names for axes without a scale: one for each size, unless a variable repeats it."""

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self.names: dict[tuple[int, int], str] = {}

    def name(self, size: int, occurrence: int) -> str:
        """Return the name of the n-th axis of a size within one variable."""
        new = f"phony_dim_{self.first + len(self.names)}"
        return self.names.setdefault((size, occurrence), new)

    def following(self) -> PhonyNames:
        """Return names that go on counting, for the next group of a tree."""
        return PhonyNames(self.first + len(self.names))


def _dimension_names(
    scales: list[str | None],
    shape: tuple[int, ...],
    phony: PhonyNames,
    sizes: dict[str, int],
    where: str,
) -> tuple[str, ...]:
    """Name the axes of one variable so that it fits with those before it."""
    dims: list[str] = []
    seen: dict[int, int] = {}
    for name, size in zip(scales, shape, strict=True):
        if name is not None and (name in dims or sizes.get(name, size) != size):
            if name not in dims:
                warnings.warn(
                    f"{where}: dimension {name!r} has {sizes[name]} elements elsewhere and "
                    f"{size} here; this axis is named otherwise",
                    UnreadableMemberWarning,
                    stacklevel=2,
                )
            name = None
        if name is None:
            occurrence = seen.get(size, 0)
            seen[size] = occurrence + 1
            name = phony.name(size, occurrence)
        sizes[name] = size
        dims.append(name)
    return tuple(dims)


def _build_variable(
    member: _Member, dims: tuple[str, ...], options: DecodeOptions
) -> xr.Variable:
    location, layout = member.location, member.layout
    where = f"{location.filename}: {member.path!r}"
    attributes = plain_attributes(member.attributes, member.problems, location, where, options)
    return build_variable(location, member.address, layout, dims, attributes, options)


def build_variable(
    location: FileLocation,
    address: int,
    layout: DatasetLayout,
    dims: tuple[str, ...],
    attributes: dict[str, Any],
    options: DecodeOptions,
) -> xr.Variable:
    """Make the variable of one dataset."""
    encoding: dict[str, Any] = {
        "source": location.filename,
        "original_shape": layout.shape,
        "dtype": layout.dtype,
    }
    if layout.chunks is not None:
        encoding["chunksizes"] = layout.chunks
        encoding["preferred_chunks"] = dict(zip(dims, layout.chunks, strict=False))
    kind = layout.reference_kind
    if kind:
        stored = StoredReferences(
            location,
            address,
            known_path(location, address) or f"object at {address:#x}",
            kind == "region",
            tuple((0, n, 1) for n in layout.shape),
        )
        data = ReferenceArray(
            layout.shape, is_region=kind == "region", stored=stored, options=options
        )
        del encoding["dtype"]
        return ReferenceVariable(dims, data, attributes, encoding)
    array = DatasetArray(location, address, layout, options.reader)
    return xr.Variable(dims, lazily_indexed(array), attributes, encoding)


# --- single targets ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """A dataset by address, with what xarray needs to know of it.

    ``dims`` has None for an axis without a dimension scale. ``coords`` are the
    coordinates that the dataset names: its scales that hold values, and those in
    its ``coordinates`` attribute.
    """

    location: FileLocation
    address: int
    name: str | None
    dims: tuple[str | None, ...]
    attributes: dict[str, Any]
    coords: dict[str, tuple[int, tuple[str | None, ...]]]


def open_target(
    location: FileLocation, address: int, facts: DatasetFacts, options: DecodeOptions
) -> Target:
    """Look at one dataset: its name, dimensions, attributes and coordinates."""
    where = f"{location.filename}: dataset at {address:#x}"
    dims, scales = _target_dimensions(location, address, facts)
    attributes = plain_attributes(facts.attributes, facts.problems, location, where, options)
    coords: dict[str, tuple[int, tuple[str | None, ...]]] = {}
    for dim, scale in scales.items():
        if scale != address:
            coords[dim] = (scale, (dim,))
    name = known_path(location, address)
    if isinstance(attributes.get("coordinates"), str) and options.decode_coords:
        name = name or object_paths(location).get(address)
        if name is not None:
            coords |= _named_coordinates(
                location, name, attributes["coordinates"].split(), dims
            )
    short = posixpath.basename(name) if name else None
    return Target(location, address, short, dims, attributes, coords)


def _target_dimensions(
    location: FileLocation, address: int, facts: DatasetFacts
) -> tuple[tuple[str | None, ...], dict[str, int]]:
    """Return the axis names of a dataset, and the scales among them that hold values."""
    ndim = len(facts.layout.shape)
    if not facts.scales:
        own = known_path(location, address)
        is_scale = _label(facts.attributes, "CLASS") == "DIMENSION_SCALE"
        own_name = posixpath.basename(own) if own and is_scale and ndim == 1 else None
        return (own_name,) * ndim, {}
    dims: list[str | None] = [None] * ndim
    scales: dict[str, int] = {}
    for axis, scale in enumerate(facts.scales):
        if not scale:
            continue
        path = known_path(location, scale) or object_paths(location).get(scale)
        label = _label(dataset_facts(location, scale).attributes, "NAME")
        name = posixpath.basename(path) if path else label
        if not name or name in dims:
            continue
        dims[axis] = name
        if not label.startswith(_NO_VARIABLE):
            scales[name] = scale
    return tuple(dims), scales


def _named_coordinates(
    location: FileLocation, path: str, names: list[str], dims: tuple[str | None, ...]
) -> dict[str, tuple[int, tuple[str | None, ...]]]:
    """Find the datasets of a ``coordinates`` attribute beside their variable."""
    found: dict[str, tuple[int, tuple[str | None, ...]]] = {}
    members = {
        n: a for a, n in link_addresses(open_group(location, posixpath.dirname(path))).items()
    }
    for name in names:
        if name not in members or name in dims:
            continue
        address = members[name]
        axes, _ = _target_dimensions(location, address, dataset_facts(location, address))
        if all(axis in dims and axis is not None for axis in axes):
            found[name] = (address, axes)
    return found


def group_path(location: FileLocation, address: int) -> str:
    """Return a path of the group at an address, for opening it as a Dataset.

    Raises
    ------
    UnsupportedError
        If no link leads to it.
    """
    path = known_path(location, address) or object_paths(location).get(address)
    if path is None:
        raise UnsupportedError(
            f"{location.filename}: the group at {address:#x} has no name; open its members by "
            "their own references"
        )
    return path
