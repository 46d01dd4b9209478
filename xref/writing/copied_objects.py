"""Copies of referenced objects of other files (``on_missing="copy"``).

In: location and address of a target that is not among the written objects. Out: a copy of
it in the new file, with its attributes and, for a group, its members.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import Any, Protocol

import h5py
import xarray as xr
from h5py import h5a, h5d, h5o, h5t

from xref.objects import StoredObject, open_object
from xref.references import DecodeOptions, ObjectReference
from xref.storage import FileLocation
from xref.writing.cf_encoding import EncodedDataset, encode_dataset, encode_stored
from xref.writing.datasets import address_of
from xref.writing.translate_references import ObjectId, WrittenObject

COPIES = "/#refs#"
"""Group of copied objects that have no path of their own, as MATLAB names it."""

NOT_DECODED = DecodeOptions(
    mask_and_scale=False,
    decode_times=False,
    concat_characters=False,
    decode_coords=False,
    decode_timedelta=False,
)


class ObjectWriter(Protocol):
    """What a copy needs of `xref.writing.tree.TreeWriter`."""

    file: h5py.File
    reference_writes: list[Callable[[], None]]

    def require_group(self, path: str) -> h5py.Group:
        """Return the group at a path; groups that are missing are created."""

    def note_new(self, item: h5py.HLObject) -> None:
        """Note that an object was created."""

    def add(self, path: str, dataset: xr.Dataset, encoded: EncodedDataset) -> None:
        """Write one group and its variables."""

    def add_variable(
        self, group: h5py.Group, path: str, name: str, variable: xr.Variable, *others: Any
    ) -> None:
        """Write one variable."""


class ObjectCopier:
    """Copies objects of other files into the file of a writer, each of them once.

    Parameters
    ----------
    writer : ObjectWriter
    """

    def __init__(self, writer: ObjectWriter) -> None:
        self._writer = writer
        self._copied: dict[ObjectId, WrittenObject] = {}

    def copy(self, location: FileLocation, address: int, kind: str) -> WrittenObject:
        """Return the copy of an object; it is made at the first call.

        Parameters
        ----------
        location : FileLocation
        address : int
        kind : {"dataset", "group", "datatype"}
        """
        known = self._copied.get((location.file_id, address))
        if known is not None:
            return known
        path = StoredObject(location, address).path
        if not path or not self._is_free(path):
            path = f"{COPIES}/{address:x}"
            while path in self._writer.file:
                path += "_"
        return self._copy_to(path, location, address, kind)

    def _is_free(self, path: str) -> bool:
        """Tell whether an object can be created at a path: no link, and only groups above."""
        above, name = posixpath.split(path)
        group: h5py.Group = self._writer.file["/"]
        for part in [p for p in above.split("/") if p]:
            link = group.get(part, getlink=True)
            if link is None:
                return True
            is_group = group.get(part, getclass=True) is h5py.Group
            if isinstance(link, h5py.ExternalLink) or not is_group:
                return False
            group = group[part]
        return group.get(name, getlink=True) is None

    def _copy_to(
        self, path: str, location: FileLocation, address: int, kind: str
    ) -> WrittenObject:
        """Copy an object to a path; the members of a group are copied later."""
        writer = self._writer
        reference = ObjectReference(location, address, NOT_DECODED)
        if kind == "group":
            written = WrittenObject(path, address_of(writer.require_group(path)), None)
            dataset = reference.resolve()
            writer.add(path, dataset, encode_dataset(dataset, {}))
            writer.reference_writes.append(lambda: self._copy_members(path, location, address))
        else:
            above, name = posixpath.split(path)
            parent = writer.require_group(above)
            source = open_object(StoredObject(location, address))
            if kind == "datatype" or _is_plain(source):
                h5o.copy(source.id, b".", parent.id, _stored_name(name))
                writer.note_new(parent[name])
            else:
                # Without dimensions: those of the other file are not copied.
                encoded = encode_stored(name, reference.resolve().variable)
                writer.add_variable(parent, above, name, encoded.variables[name], encoded, {})
            item = parent[name]
            written = WrittenObject(path, address_of(item), getattr(item, "shape", None))
        self._copied[location.file_id, address] = written
        return written

    def _copy_members(self, path: str, location: FileLocation, address: int) -> None:
        """Copy groups and named datatypes below a group, whose datasets are written."""
        group = open_object(StoredObject(location, address))
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            item = h5o.get_info(group.id, _stored_name(name))
            kind = {h5o.TYPE_GROUP: "group", h5o.TYPE_NAMED_DATATYPE: "datatype"}.get(item.type)
            member_path = posixpath.join(path, name)
            file = self._writer.file
            if kind is None or member_path in file:
                continue
            known = self._copied.get((location.file_id, item.addr))
            if known is None:
                self._copy_to(member_path, location, item.addr, kind)
            else:
                file[member_path] = file[known.path]


def _stored_name(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _is_plain(dataset: h5py.Dataset) -> bool:
    """Tell whether HDF5 may copy a dataset: contiguous numbers without attributes."""
    properties = dataset.id.get_create_plist()
    return (
        properties.get_layout() in (h5d.CONTIGUOUS, h5d.COMPACT)
        and properties.get_external_count() == 0
        and h5a.get_num_attrs(dataset.id) == 0
        and dataset.id.get_type().get_class() in (h5t.INTEGER, h5t.FLOAT)
    )
