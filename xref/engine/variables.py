"""The datasets of a group as xarray variables.

In: a group of an open file, or the address of a dataset. Out: variables with dimension names,
plain attributes and lazy data. The data of a dataset of references are a `ReferenceArray`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr

from xref import hdf5, objects, references
from xref.engine.attributes import attribute_values, plain_attributes, warn_unreadable
from xref.engine.dimension_names import (
    MemberDataset,
    PhonyNames,
    SharedValues,
    count_dimensions,
    name_dimensions,
)
from xref.engine.dimension_scales import NO_SCALES, scale_of_dataset, scale_of_layout
from xref.engine.lazy_arrays import DatasetArray, lazily_indexed
from xref.errors import UnsupportedError, XrefError
from xref.hdf5 import DatasetLayout, Filter, FilterPipeline, filter_name, item_dtype
from xref.references import DecodeOptions, ObjectReference, SourceName
from xref.storage import FileLocation

_READ_ERRORS = (XrefError, OSError, RuntimeError, ValueError, TypeError)


class ReferenceVariable(xr.Variable):
    """A variable of references.

    Its data are immutable columns. So xarray does not need to copy or cache them, and does not
    divide them into Dask chunks when a file is opened with ``chunks=...``.
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

    def to_base_variable(self) -> xr.Variable:
        """Return a `ReferenceVariable`; xarray calls this method for coordinates."""
        return self._replace()

    def chunk(self, chunks: Any = {}, *args: Any, **kwargs: Any) -> Any:  # noqa: B006
        """Divide into Dask chunks; "auto" makes one chunk, as Dask cannot size objects."""
        if chunks == "auto":
            chunks = -1
        elif isinstance(chunks, dict):
            chunks = {d: -1 if c == "auto" else c for d, c in chunks.items()}
        return super().chunk(chunks, *args, **kwargs)


def reference_dataarray(
    variable: ReferenceVariable, coords: Mapping[Any, Any] | None = None, name: Any = None
) -> xr.DataArray:
    """Return a DataArray of references; its constructor would convert the variable."""
    temporary = "<references>"  # a name that no dimension has
    return xr.Dataset({temporary: variable}, coords)[temporary].rename(name)


def open_members(
    location: FileLocation,
    path: str,
    options: DecodeOptions,
    drop: Iterable[str] = (),
    phony: PhonyNames | None = None,
    group: objects.LinkedObject | objects.StoredObject | None = None,
    shared: SharedObjects | None = None,
) -> tuple[dict[str, xr.Variable], dict[str, Any], frozenset[str]]:
    """Open the datasets of the group at a path; ``group`` is the group, if it is known already.

    Variables in ``drop`` are left out, but their axes still affect the names of dimensions.
    ``phony`` is shared by the groups of a tree: a subgroup must not use a name of its parent
    for another size. ``shared`` has what was read of objects with several names. ``options``
    are also used later, to resolve the references.

    Returns the variables, not yet decoded by the CF conventions, the attributes of the group,
    and the unlimited dimensions whose scales are in the group.
    """
    group = group or objects.open_group(location, path)
    shared = shared or SharedObjects()
    dropped = set(drop)
    members, attributes = _group_contents(location, path, group, dropped, shared, options)
    dimensions = name_dimensions(members, location, path, phony or PhonyNames())
    variables: dict[str, xr.Variable] = {}
    used = {dim for dims in dimensions.names for dim in dims}
    for member, dims, shape in zip(members, dimensions.names, dimensions.shape, strict=True):
        name = member.name.replace(objects.NAME_CLASH, "")
        layout = member.layout
        if layout is None or not member.is_variable or name in dropped:
            continue
        if member.is_scale and member.scale.shape is None and name in used:
            problem = UnsupportedError("a dimension scale without a dataspace has no values")
            warn_unreadable(f"{location.filename}: {member.path!r}", problem)
            continue
        try:
            variables[name] = _build_variable(member, layout, dims, shape, options)
        except _READ_ERRORS as error:
            warn_unreadable(f"{location.filename}: {member.path!r}", error)
    return variables, attributes, dimensions.unlimited


def _group_contents(
    location: FileLocation,
    path: str,
    group: objects.LinkedObject | objects.StoredObject,
    drop: Iterable[str],
    shared: SharedObjects,
    options: DecodeOptions,
) -> tuple[list[MemberDataset], dict[str, Any]]:
    """Return the datasets and the attributes of a group, read for its first name only."""
    stored = group if isinstance(group, objects.StoredObject) else group.stored
    key = objects.object_key(stored)
    if key in shared.groups:
        members, attributes = shared.groups[key]
        members = [_renamed(m, path, posixpath.join(path, m.name)) for m in members]
        return members, dict(attributes)
    if isinstance(group, objects.StoredObject):
        group = objects.group_at(group)
    attributes = attribute_values(group.item, stored, path, options)
    members = list_datasets(location, path, group, drop, shared)
    if shared.repeated is not None and key in shared.repeated:
        for member in members:
            member.shared = member.shared or SharedValues()
        shared.groups[key] = members, dict(attributes)
    return members, attributes


def list_datasets(
    location: FileLocation,
    path: str,
    group: objects.LinkedObject,
    drop: Iterable[str] = (),
    shared: SharedObjects | None = None,
) -> list[MemberDataset]:
    """Read the metadata of the datasets of a group; warn of datasets that cannot be read.

    There is no warning for names in ``drop``. A dataset with several names is a member under
    each of them, and its metadata are read once.
    """
    dropped, known = set(drop), shared or SharedObjects()
    members: list[MemberDataset] = []
    for name, found in objects.iterate_members(group):
        full = posixpath.join(path, name)
        problem: Exception | None = None
        if isinstance(found, Exception):
            problem = found
        elif objects.kind_of(found.item) == "dataset":
            member = None
            try:
                member = _open_member(name, full, found, known)
            except _READ_ERRORS as error:
                problem = error
                with suppress(*_READ_ERRORS):
                    member = _open_unreadable_scale(name, full, found)
            if member is not None:
                home = found.stored.location
                member.is_elsewhere = home is not location and home != location
                member.is_hard = found.is_hard
                members.append(member)
        if problem is not None and name.replace(objects.NAME_CLASH, "") not in dropped:
            warn_unreadable(f"{location.filename}: {full!r}", problem)
        # The traceback of an error holds this frame. Without these names the frame does not
        # hold the error in turn, and a file is closed before the next garbage collection.
        del problem, found
    return members


def count_phony(
    location: FileLocation, path: str, group: objects.LinkedObject, phony: PhonyNames
) -> None:
    """Count the phony dimensions of a group whose variables are not opened."""
    count_dimensions(list_datasets(location, path, group), phony)


@dataclass(slots=True)
class SharedObjects:
    """What was read of the objects of a file that have several names."""

    repeated: frozenset[objects.ObjectKey] | None = None
    """Objects with several names; None if they are not known: then all datasets are kept."""

    datasets: dict[objects.ObjectKey, MemberDataset] = field(default_factory=dict)

    # Datasets and attributes of each group.
    groups: dict[objects.ObjectKey, tuple[list[MemberDataset], dict[str, Any]]] = field(
        default_factory=dict
    )


def _open_member(
    name: str, path: str, member: objects.LinkedObject, shared: SharedObjects
) -> MemberDataset:
    key = objects.object_key(member.stored)
    if key in shared.datasets:
        known = shared.datasets[key]
        known.shared = known.shared or SharedValues()
        known = replace(known, name=name, stored=member.stored)
        return _renamed(known, posixpath.dirname(path), path, member.item)
    layout = objects.read_layout(member.item, member.stored)
    raw, problems = objects.read_attributes(member.item, member.stored)
    scale = scale_of_layout(layout, member.item, raw)
    found = MemberDataset(name, path, member.stored, layout, raw, problems, scale)
    if "enum" in (layout.dtype.metadata or ()):
        found.type_name = _type_name(found, posixpath.dirname(path), member.item)
    if shared.repeated is None:
        shared.datasets[key] = found
    elif key in shared.repeated:
        found.shared = SharedValues()
        shared.datasets[key] = found
    return found


def _open_unreadable_scale(
    name: str, path: str, member: objects.LinkedObject
) -> MemberDataset | None:
    """Return a dimension scale whose values cannot be read; None if it is no scale."""
    raw, problems = objects.read_attributes(member.item, member.stored)
    scale = scale_of_dataset(member.item, raw)
    if scale.problem:
        return None
    return MemberDataset(name, path, member.stored, None, raw, problems, scale)


def _renamed(
    member: MemberDataset, group: str, path: str, item: objects.Object | None = None
) -> MemberDataset:
    """Return a dataset under another path; its values are shared."""
    type_name = _type_name(member, group, item)
    return replace(member, path=path, chosen=NO_SCALES, type_name=type_name)


def _type_name(
    member: MemberDataset, group: str, item: objects.Object | None = None
) -> str | None:
    """Return the name of the type of an enumeration; xarray writes the type by that name."""
    layout = member.layout
    if layout is None or "enum" not in (layout.dtype.metadata or ()):
        return None
    return objects.type_name(
        member.stored.location, group, item or objects.open_object(member.stored)
    )


def _build_variable(
    member: MemberDataset,
    layout: DatasetLayout,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    options: DecodeOptions,
) -> xr.Variable:
    shared = member.shared
    attributes = None if shared is None else shared.attributes
    if attributes is None:
        attributes = plain_attributes(
            member.attributes, member.problems, member.stored, member.path, options
        )
    if shared is not None:
        shared.attributes = dict(attributes)
    variable = build_variable(
        member.stored, layout, dims, attributes, options, shape, member.own_path
    )
    if member.type_name is not None:
        metadata = dict(layout.dtype.metadata or {}) | {"enum_name": member.type_name}
        variable.encoding["dtype"] = np.dtype(layout.dtype, metadata=metadata)
    if variable.encoding.get("dtype") is str:
        variable = _loaded_text(variable, member, layout, options)
        if layout.text == "ascii":
            variable.encoding["charset"] = layout.text
    return variable


def keep_charset(variable: xr.Variable, charset: str) -> None:
    """Record the character set of decoded text in its encoding, for `xref.to_hdf5`.

    Decoding leaves the dtype of text in the encoding. Other writers ignore its metadata.
    """
    dtype = np.dtype(variable.encoding.get("dtype", variable.dtype))
    metadata: Any = dict(dtype.metadata or {}) | {"charset": charset}
    variable.encoding["dtype"] = np.dtype(dtype, metadata=metadata)


TEXT_ELEMENTS = 1 << 20
"""Upper bound on the texts of a variable that is read when its file is opened.

Longer variables of text stay lazy objects.
"""

TEXT_NBYTES = 64 << 20
"""Upper bound on the bytes of all texts of such a variable, and on its size as NumPy text."""


def _loaded_text(
    variable: xr.Variable, member: MemberDataset, layout: DatasetLayout, options: DecodeOptions
) -> xr.Variable:
    """Read text: xarray makes NumPy text of it, whose length depends on the values."""
    # The direct reader does not read text: the error is raised when the text is used.
    shared = member.shared or SharedValues()
    if shared.text is not None and shared.text.shape == variable.shape:
        return variable.copy(data=shared.text)
    if options.reader != "direct" and _is_short_text(variable.size, member, layout):
        shared.text = variable.values
        return variable.copy(data=shared.text)
    variable.encoding["dtype"] = variable.dtype
    return variable


def _is_short_text(size: int, member: MemberDataset, layout: DatasetLayout) -> bool:
    """Tell whether texts are few and short enough to be read when their file is opened."""
    if size > TEXT_ELEMENTS:
        return False
    slices = tuple((0, n, 1) for n in layout.shape)
    place = references.StoredReferences(member.stored, member.own_path, "", slices)
    try:
        stored = place.read_raw()
    except UnsupportedError:
        # Only HDF5 can read this storage; a text is at most as long as the file.
        return size * member.stored.location.identity[2] <= TEXT_NBYTES
    lengths = np.ascontiguousarray(stored[:, :4]).view("<u4").astype(np.int64)
    longest = int(lengths.max(initial=0))
    if int(lengths.sum()) > TEXT_NBYTES or 4 * longest * size > TEXT_NBYTES:
        return False
    # HDF5 searches some damaged heaps forever, so the heaps are checked here first.
    hdf5.read_sequences(objects.file_content(member.stored.location), stored, 1, place.describe)
    return True


def build_variable(
    dataset: objects.StoredObject,
    layout: DatasetLayout,
    dims: tuple[str, ...],
    attributes: dict[str, Any],
    options: DecodeOptions,
    shape: tuple[int, ...] | None = None,
    path: str | None = None,
) -> xr.Variable:
    """Make the variable of one dataset.

    ``shape`` may exceed the extent of the dataset. Error messages have ``path``, by which the
    dataset was opened; its canonical path by default.
    """
    encoding = storage_encoding(layout, dims, options.decode_vlen_strings)
    source = dataset.filename
    # For other files, a `SourceName` would keep the content of the file in memory.
    if dataset.location.source.reopens_by_name:
        opened = ObjectReference.to(dataset.without_open_file(), options)
        source = SourceName.of(opened, path=path)
    encoding |= {"source": source, "original_shape": shape or layout.shape}
    kind = layout.reference_kind
    if kind:
        shape = layout.shape if shape is None else shape
        slices = tuple((0, n, 1) for n in shape)
        extent = layout.shape if shape != layout.shape else None
        stored = references.StoredReferences(dataset, path, kind, slices, extent=extent)
        data = references.ReferenceArray(shape, kind=kind, stored=stored, options=options)
        del encoding["dtype"]
        return ReferenceVariable(dims, data, attributes, encoding)
    array = DatasetArray(dataset, layout, options, shape)
    return xr.Variable(dims, lazily_indexed(array), attributes, encoding)


_NETCDF_FILTERS = {1: "zlib", 4: "szip", 307: "bzip2", 32001: "blosc", 32015: "zstd"}

# N-bit and scale-offset are part of the type in h5py, and have no key in other engines.
_FILTERS_WITH_KEYS = frozenset({*_NETCDF_FILTERS, 2, 3, 5, 6, 32000})

_BLOSC_CODECS = ("blosc_lz", "blosc_lz4", "blosc_lz4hc", "", "blosc_zlib", "blosc_zstd")

_SHUFFLE, _FLETCHER32 = 2, 3

_SZIP_NEAREST_NEIGHBOUR = 32


def storage_encoding(
    layout: DatasetLayout, dims: tuple[str, ...], as_text: bool = True
) -> dict[str, Any]:
    """Return the encoding that describes the storage of a dataset, with netCDF-4's keys."""
    encoding: dict[str, Any] = {
        "dtype": str if as_text and layout.text else item_dtype(layout.dtype)[0],
        "contiguous": layout.chunks is None,
        "chunksizes": layout.chunks,
        **_filter_encoding(layout.pipeline),
    }
    if layout.chunks is not None:
        encoding["preferred_chunks"] = dict(zip(dims, layout.chunks, strict=False))
    return encoding


def _filter_encoding(pipeline: FilterPipeline) -> dict[str, Any]:
    """Return filters with the keys of netCDF-4; other filters with those of h5py.

    Filters that neither has a key for are in "hdf5_filters", in the order of writing. Writers
    of xarray ignore this key; `xref.to_hdf5` writes the filters.
    """
    options = {f.id: f.options for f in pipeline.filters}
    encoding: dict[str, Any] = {name: i in options for i, name in _NETCDF_FILTERS.items()}
    encoding["shuffle"] = _SHUFFLE in options
    encoding["fletcher32"] = _FLETCHER32 in options
    match next((f for f in pipeline.filters if f.id not in (_SHUFFLE, _FLETCHER32)), None):
        case Filter(id=1, options=(level, *_)):
            encoding["complevel"] = level
        case Filter(id=4, options=(mask, block, *_)):
            coding = "nn" if mask & _SZIP_NEAREST_NEIGHBOUR else "ec"
            encoding |= {"compression": "szip", "compression_opts": (coding, block)}
        case Filter(id=32001, options=(_, _, _, _, level, shuffle, codec, *_)) if codec < 6:
            encoding |= {"compression": _BLOSC_CODECS[codec], "complevel": level}
            encoding["blosc_shuffle"] = shuffle
        case Filter(id=307 | 32015 as number, options=options_of):
            encoding["compression"] = _NETCDF_FILTERS[number]
            encoding |= {"complevel": options_of[0]} if options_of else {}
        case Filter(id=32000):
            encoding |= {"compression": "lzf", "compression_opts": None}
    if any(f.id not in _FILTERS_WITH_KEYS for f in pipeline.filters):
        encoding["hdf5_filters"] = tuple(
            {"id": f.id, "name": filter_name(f.id, f.name), "options": f.options}
            for f in pipeline.filters
        )
    return encoding
