"""Groups, variables, attributes and dimensions of xarray into an open HDF5 file.

In: Datasets by the path of their group. Out: the objects of the file, and the blocks of
dask arrays that are to be stored in it.

1. Groups and datasets are created, and values without references written. What every
   object was made from is noted.
2. References are made anew: now the address of everything is known. What is missing may
   be copied, which goes back to 1.
3. Dimension scales are attached, each list of references written once.

Variables along named dimensions, and text, are stored as netCDF-4 stores them.
"""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import numpy as np
import xarray as xr
from h5py import h5a, h5d, h5o, h5t

from xref.engine import CF_ATTRIBUTES
from xref.objects import StoredObject, open_object, pipeline_of
from xref.reading import check_packed
from xref.references import (
    DecodeOptions,
    ObjectReference,
    Reference,
    ReferenceArray,
    opened_from,
)
from xref.storage import FileLocation, locate_file
from xref.writing.cf_encoding import EncodedDataset, align_blocks, encode_dataset, encode_stored
from xref.writing.checked_file import CheckedFile
from xref.writing.dask_blocks import BlockTarget
from xref.writing.datasets import (
    address_of,
    create_dataset,
    region_bytes,
    replace_attribute,
    write_attribute,
    write_dimension_list,
    write_elements,
    write_raw,
    write_reference_list,
)
from xref.writing.dimension_scales import (
    NO_VARIABLE,
    Scale,
    Scales,
    existing_scales,
    has_any_size,
    next_dimension,
)
from xref.writing.drafts import Draft
from xref.writing.memory_layout import (
    ElementEncoder,
    Form,
    RawBytes,
    find_form,
    holds_references,
)
from xref.writing.storage_options import check_stored, choose_storage
from xref.writing.translate_references import ObjectId, ReferenceTranslator, WrittenObject

NAME_CLASH = "_nc4_non_coord_"
"""Begins the name of a variable in the file that is named like a dimension, and lies along
others; netCDF-4 reads it so."""

COPIES = "/#refs#"
"""Group of copied objects that have no path of their own, as MATLAB names it."""

NOT_DECODED = DecodeOptions(
    mask_and_scale=False,
    decode_times=False,
    concat_characters=False,
    decode_coords=False,
    decode_timedelta=False,
)


class TreeWriter:
    """Writes Datasets into a file that is open for writing.

    Parameters
    ----------
    file : h5py.File
    stored : CheckedFile
        What HDF5 writes the file through.
    targets : Targets
        Where references lead to.
    draft : Draft
        The file, for what is written later.
    is_new : bool
        Whether the file has nothing yet.

    Attributes
    ----------
    blocks : list of (dask.array.Array, BlockTarget)
        What is still to be stored.
    """

    def __init__(
        self,
        file: h5py.File,
        stored: CheckedFile,
        targets: ReferenceTranslator,
        draft: Draft,
        *,
        is_new: bool,
    ) -> None:
        self.file, self.stored, self.targets, self.draft = file, stored, targets, draft
        self.path = draft.filename
        self._made = set[int]()
        self._is_new = is_new
        self._n_dimensions = 0 if is_new else next_dimension(file)
        self.blocks: list[tuple[Any, BlockTarget]] = []
        self._later: list[Callable[[], None]] = []
        # What was there before changes once nothing else can fail: each gives its change.
        self._at_last: list[Callable[[], Callable[[], Any]]] = []
        self._scales: dict[str, dict[str, Scale]] = {}
        self._along: list[tuple[h5py.Dataset, int, list[str], Scales]] = []
        self._copied: dict[ObjectId, WrittenObject] = {}
        targets.copy = self._copy

    def add(self, path: str, dataset: xr.Dataset, encoded: EncodedDataset) -> None:
        """Write one group, and its variables.

        Parameters
        ----------
        path : str
            Of the group.
        dataset : xarray.Dataset
        encoded : Encoded
            Its variables as they are stored.
        """
        group = self._require_group(path)
        made_from = ident(opened_from(dataset.encoding))
        self.targets.add(WrittenObject(path, address_of(group), None, made_from))
        scales = self._add_dimensions(group, path, encoded)
        for name, variable in encoded.variables.items():
            look = functools.partial(dataset.__getitem__, name)
            self._add_variable(group, path, name, variable, encoded, scales, look)
            self.stored.check()
        self._write_attributes(group, encoded.attributes, path)

    def finish(self) -> None:
        """Write references, and attach dimensions."""
        changes: list[Callable[[], Any]] = []
        while self._at_last or self._later:
            at_last, self._at_last = self._at_last, []
            changes += [prepare() for prepare in at_last]
            waiting, self._later = self._later, []
            for write in waiting:
                write()
                self.stored.check()
        for change in changes:
            change()
            self.stored.check()
        for dataset, address, dims, known in self._along:
            scales = [known.get(dim) for dim in dims]
            if any(s is not None and s.existed for s in scales):
                for axis, scale in enumerate(scales):
                    if scale is not None:
                        dataset.dims[axis].attach_scale(scale.dataset)
                continue
            write_dimension_list(dataset, [s.address if s else None for s in scales])
            for axis, scale in enumerate(scales):
                if scale is not None:
                    scale.attached.append((address, axis))
        for group in self._scales.values():
            for scale in group.values():
                if not scale.existed:
                    write_reference_list(scale.dataset, scale.attached)

    # --- groups and dimensions ---------------------------------------------------------

    def _require_group(self, path: str) -> h5py.Group:
        group: h5py.Group = self.file["/"]
        at = "/"
        for part in [p for p in path.split("/") if p]:
            at = posixpath.join(at, part)
            found = self._member(group, part, at)
            if found is None:
                found = group.create_group(part, track_order=True)
                self._note(found)
            elif not isinstance(found, h5py.Group):
                raise ValueError(f"{self.path}: {at!r} is a dataset; no group can be there")
            group = found
        return group

    def _note(self, item: h5py.HLObject) -> None:
        """Note that an object was not there before."""
        self._made.add(address_of(item))

    def _existed(self, address: int) -> bool:
        return not self._is_new and address not in self._made

    def _member(self, group: h5py.Group, name: str, path: str) -> Any:
        """Return a member of a group, None if there is none.

        Raises
        ------
        ValueError
            If it is in another file, or a link to nothing.
        """
        link = group.get(name, getlink=True)
        if link is None:
            return None
        item = None if isinstance(link, h5py.ExternalLink) else group.get(name)
        if item is None or item.file.id != self.file.id:
            raise ValueError(
                f"{self.path}: {path!r} is a link to nothing, or to what is in another file, "
                "which is not written; write under another name"
            )
        # Also not asked for its shape: HDF5 would open its sources as it opened this file.
        if isinstance(item, h5py.Dataset) and item.is_virtual:
            raise ValueError(
                f"{self.path}: {path!r} has its elements in other files, which are not written"
            )
        return item

    def _add_dimensions(self, group: h5py.Group, path: str, encoded: EncodedDataset) -> Scales:
        """Return the scale of each dimension; those without a variable are made here."""
        own = self._scales.setdefault(path, existing_scales(group))
        scales: Scales = {}
        for dim, size in encoded.sizes.items():
            if encoded.is_scale(dim):
                continue  # comes with its variable
            found = next((s for s in self._above(path, dim)), None)
            if found is not None and (found.size == size or found.existed):
                if found.size != size and not has_any_size(found.dataset):
                    raise ValueError(
                        f"{self.path}: dimension {dim!r} of {path!r} has {found.size} elements "
                        f"there and {size} in what is written"
                    )
                scales[dim] = found
                continue
            taken = self._member(group, dim, posixpath.join(path, dim))
            if taken is not None:
                if not isinstance(taken, h5py.Dataset) or taken.shape != (size,):
                    raise ValueError(
                        f"{self.path}: dimension {dim!r} of {path!r} has the name of something "
                        "else that is there; rename it"
                    )
                own[dim] = scales[dim] = Scale(taken, address_of(taken), size, True)
                self._change(taken.make_scale, dim)
                continue
            maxshape = (None,) if dim in encoded.unlimited else None
            dataset = group.create_dataset(
                dim, (size,), ">f4", maxshape=maxshape, track_order=True
            )
            self._note(dataset)
            dataset.make_scale(NO_VARIABLE % size)
            own[dim] = scales[dim] = Scale(dataset, address_of(dataset), size, False)
            self._number(dataset)
        return scales

    def _above(self, path: str, dim: str) -> Any:
        """Yield the dimensions of a name in a group and those above it, nearest first."""
        while True:
            found = self._scales.get(path, {}).get(dim)
            if found is not None:
                yield found
            if path == "/":
                return
            path = posixpath.dirname(path)

    def _number(self, dataset: h5py.Dataset) -> None:
        """Give a dimension a number, as netCDF does to keep their order."""
        dataset.attrs.create("_Netcdf4Dimid", self._n_dimensions, dtype="<i4")
        self._n_dimensions += 1

    # --- variables ---------------------------------------------------------------------

    def _add_variable(
        self,
        group: h5py.Group,
        path: str,
        name: str,
        variable: xr.Variable,
        encoded: EncodedDataset,
        scales: Scales,
        look: Callable[[], xr.DataArray] | None = None,
    ) -> None:
        dims = [str(d) for d in variable.dims]
        stored_name = name
        if name in encoded.sizes and not encoded.is_scale(name):
            stored_name = NAME_CLASH + name
        full = posixpath.join(path, name)
        where = f"{self.path}: {full!r}"
        dataset = self._create(group, stored_name, variable, encoded, where, name)
        made_from = ident(opened_from(variable.encoding))
        known = None if made_from is None else look
        written = WrittenObject(full, address_of(dataset), dataset.shape, made_from, known)
        self.targets.add(written)
        existed = self._existed(written.address)
        if existed:
            self._drop_encoding(dataset, variable.attrs)
            dims = self._check_dimensions(dataset, dims, where)
        if encoded.is_scale(name):
            existing = self._scales[path].get(name)
            if existing is None:
                scale = Scale(dataset, written.address, variable.shape[0], existed)
                existing = self._scales[path][name] = scale
                if existed:
                    self._change(dataset.make_scale, name)
                    self._change(self._number, dataset)
                else:
                    dataset.make_scale(name)
                    self._number(dataset)
            scales[name] = existing
        elif dims:
            self._along.append((dataset, written.address, dims, scales))
        self._write_attributes(dataset, variable.attrs, full)

    def _create(
        self,
        group: h5py.Group,
        name: str,
        variable: xr.Variable,
        encoded: EncodedDataset,
        where: str,
        label: str,
    ) -> h5py.Dataset:
        """Create a dataset, and write its values or see that they will be."""
        data = variable._data
        blocks = getattr(data, "chunks", None)
        values: Any = np.zeros(0, data.dtype) if blocks else data
        form = encoded.forms.get(label) or find_form(values, where)
        existing = self._member(group, name, posixpath.join(group.name, name))
        if existing is not None:
            dataset = _fitting(existing, form, variable.shape, where)
            given = encoded.given.get(label, ())
            check_stored(dataset, form, variable.encoding, given, where)
            self._check_chunks(dataset)
            if dataset.shape != variable.shape:
                self._change(dataset.resize, variable.shape)
        else:
            storage = choose_storage(
                variable.shape,
                form,
                variable.encoding,
                given=encoded.given.get(label, ()),
                unlimited=[d in encoded.unlimited for d in variable.dims],
                blocks=blocks,
                fill_value=_fill_value(variable, form),
                what=where,
            )
            dataset = create_dataset(group, name, variable.shape, form, storage)
            self._note(dataset)
        if blocks:
            data = align_blocks(data, dataset.chunks)
            target = BlockTarget(
                draft=self.draft,
                name=posixpath.join(group.name, name),
                form=form,
                shape=variable.shape,
                chunks=dataset.chunks,
                pipeline=pipeline_of(dataset.id.get_create_plist()),
                fill_value=dataset.fillvalue,
            )
            self.blocks.append((data, target))
            return dataset
        if existing is not None:
            self._at_last.append(lambda: self._prepare_elements(dataset, form, data))
        elif holds_references(form):
            self._later.append(lambda: self._write_elements(dataset, form, data))
        else:
            self._write_elements(dataset, form, data)
        return dataset

    def _check_chunks(self, dataset: h5py.Dataset) -> None:
        """Decode chunks of an old file that HDF5 may decode to write a part of them."""
        address = address_of(dataset)
        if self._existed(address) and pipeline_of(dataset.id.get_create_plist()).packers:
            check_packed(StoredObject(locate_file(self.path), address))

    def _write_elements(self, dataset: h5py.Dataset, form: Form, data: Any) -> None:
        write_elements(dataset, form, self._memory(), data, check=self.stored.check)

    def _change(self, change: Callable[..., Any], *arguments: Any) -> None:
        """Change what was there before, at last."""
        self._at_last.append(lambda: functools.partial(change, *arguments))

    def _prepare_elements(
        self, dataset: h5py.Dataset, form: Form, data: Any
    ) -> Callable[[], None]:
        memory = self._memory()
        raw = memory.encode(form, data)

        def write(
            memory: ElementEncoder = memory,
        ) -> None:  # which holds what the bytes point at
            write_raw(dataset, form, raw, check=self.stored.check)

        return write

    def _drop_encoding(self, dataset: h5py.Dataset, attributes: Mapping[Any, Any]) -> None:
        """Remove how the values that are written over were encoded."""
        old = [name for name in CF_ATTRIBUTES if name not in attributes]
        for name in old:
            value = dataset.attrs.get(name)
            is_time = name == "units" and " since " not in str(value)
            is_type = name == "dtype" and str(value) not in ("bool", "timedelta64[ns]")
            if value is not None and not is_time and not is_type:
                self._change(dataset.attrs.__delitem__, name)

    def _check_dimensions(
        self, dataset: h5py.Dataset, dims: list[str], where: str
    ) -> list[str]:
        """Return the dimensions that a dataset still lacks: all of them, or none."""
        if "DIMENSION_LIST" not in dataset.attrs:
            return dims
        known = [posixpath.basename(d[0].name) if len(d) else None for d in dataset.dims]
        if any(
            old != new and not (old is None and new.startswith("phony_dim_"))
            for old, new in zip(known, dims, strict=True)
        ):
            raise ValueError(
                f"{where} lies along {known} in the file, and along {dims} in what is written"
            )
        return []

    # --- attributes --------------------------------------------------------------------

    def _write_attributes(
        self, item: h5py.HLObject, attributes: Mapping[Any, Any], path: str
    ) -> None:
        existed = bool(attributes) and self._existed(address_of(item))
        for key, value in attributes.items():
            name, where = str(key), f"{self.path}: attribute {key!r} of {path!r}"
            values = _attribute_array(value, where)
            form = find_form(values, where)

            def write(name: str = name, form: Form = form, values: Any = values) -> None:
                write_attribute(item, name, form, self._memory(), values)

            def prepare(
                name: str = name, form: Form = form, values: Any = values
            ) -> Callable[[], None]:
                memory = self._memory()
                raw = memory.encode(form, values)

                def change(memory: ElementEncoder = memory) -> None:
                    replace_attribute(item, name, form, raw)

                return change

            if existed:
                self._at_last.append(prepare)
            elif holds_references(form):
                self._later.append(write)
            else:
                write()

    # --- references --------------------------------------------------------------------

    def _memory(self) -> ElementEncoder:
        """Return what makes bytes of values, and keeps them until they are written."""
        return ElementEncoder(self._reference_bytes)

    def _reference_bytes(self, references: ReferenceArray, kind: str) -> RawBytes:
        address, regions = self.targets.remake(references, references.describe)
        if kind == "region":
            return region_bytes(self.file, self.stored, address, regions)
        return address.astype("<u8").view(np.uint8).reshape(len(address), 8)

    def _copy(self, location: FileLocation, address: int, kind: str) -> WrittenObject:
        """Write an object of another file here, once."""
        key = location.key, address
        if key in self._copied:
            return self._copied[key]
        path = StoredObject(location, address).path
        if not path or not self._is_free(path):
            path = f"{COPIES}/{address:x}"
            while path in self.file:
                path += "_"
        return self._copy_to(path, location, address, kind)

    def _is_free(self, path: str) -> bool:
        """Tell whether an object can be made at a path: nothing is there, groups above."""
        above, name = posixpath.split(path)
        group: h5py.Group = self.file["/"]
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
        """Write an object of another file at a path; the members of a group come later."""
        reference = ObjectReference(location, address, NOT_DECODED)
        key = ident(reference)
        if kind == "group":
            group = self._require_group(path)
            written = WrittenObject(path, address_of(group), None)
            dataset = reference.resolve()
            self.add(path, dataset, encode_dataset(dataset, {}))
            self._later.append(lambda: self._copy_members(path, location, address))
        elif kind == "datatype":
            above, name = posixpath.split(path)
            parent = self._require_group(above)
            self._copy_object(open_object(StoredObject(location, address)), parent, name)
            written = WrittenObject(path, address_of(parent[name]), None)
        else:
            above, name = posixpath.split(path)
            parent = self._require_group(above)
            source = open_object(StoredObject(location, address))
            if _is_plain(source):
                self._copy_object(source, parent, name)
            else:
                variable = reference.resolve().variable
                encoded = encode_stored(name, variable)  # its dimensions are not copied
                self._add_variable(parent, above, name, encoded.variables[name], encoded, {})
            item = parent[name]
            written = WrittenObject(path, address_of(item), item.shape)
        if key is not None:
            self._copied[key] = written
        return written

    def _copy_members(self, path: str, location: FileLocation, address: int) -> None:
        """Copy the groups and named datatypes of a group, whose datasets are there."""
        group = open_object(StoredObject(location, address))
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            item = h5o.get_info(group.id, name.encode("utf-8", "surrogateescape"))
            kind = {h5o.TYPE_GROUP: "group", h5o.TYPE_NAMED_DATATYPE: "datatype"}.get(item.type)
            at = posixpath.join(path, name)
            if kind is None or at in self.file:
                continue
            known = self._copied.get((location.key, item.addr))
            if known is None:
                self._copy_to(at, location, item.addr, kind)
            else:
                self.file[at] = self.file[known.path]

    def _copy_object(self, item: h5py.HLObject, parent: h5py.Group, name: str) -> None:
        """Copy an object of another file that leads to no others."""
        h5o.copy(item.id, b".", parent.id, name.encode("utf-8", "surrogateescape"))
        self._note(parent[name])


def _is_plain(dataset: h5py.Dataset) -> bool:
    """Tell whether HDF5 can copy a dataset as it is: numbers in one piece, no attributes."""
    properties = dataset.id.get_create_plist()
    return (
        properties.get_layout() in (h5d.CONTIGUOUS, h5d.COMPACT)
        and properties.get_external_count() == 0
        and h5a.get_num_attrs(dataset.id) == 0
        and dataset.id.get_type().get_class() in (h5t.INTEGER, h5t.FLOAT)
    )


def ident(reference: ObjectReference | None) -> ObjectId | None:
    """Return which object of which file is meant, None if none is."""
    if reference is None or reference.location is None:
        return None
    return reference.location.key, reference.address


def _fitting(found: Any, form: Form, shape: tuple[int, ...], where: str) -> h5py.Dataset:
    """Return a dataset that is there, if values of a type and shape fit into it.

    Raises
    ------
    ValueError
        If they do not, or its elements are in another file.
    """
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{where} is a group in the file; no variable can be there")
    if found.external:
        raise ValueError(f"{where} has its elements in other files, which are not written")
    sizes = zip(shape, found.shape or (), found.maxshape or (), strict=False)
    fits = len(shape) == found.ndim and all(
        new == old or (new > old and limit is None) for new, old, limit in sizes
    )
    if not fits or not found.id.get_type().equal(form.type_id()):
        raise ValueError(
            f"{where} is there already, of shape {found.shape} and type {found.dtype}; "
            f"what is written has the shape {shape}, or another type. Write it under "
            "another name, or remove what is there, and with it what references lead to"
        )
    return found


def _fill_value(variable: xr.Variable, form: Form) -> Any:
    """Return what elements are that were never written, where an attribute says so."""
    fill = variable.attrs.get("_FillValue")
    dtype = getattr(form, "dtype", None)
    if fill is None or dtype is None or dtype.kind not in "iuf" or np.size(fill) != 1:
        return None
    return np.asarray(fill, dtype=dtype).reshape(-1)[0]


def _attribute_array(value: Any, where: str) -> Any:
    """Return the value of an attribute as an array."""
    if isinstance(value, ReferenceArray):
        return value
    if isinstance(value, Reference):
        return ReferenceArray.from_references(value)
    if isinstance(value, str | bytes):
        return np.array(value, dtype=object)
    has_none = isinstance(value, list | tuple) and any(v is None for v in value)
    if value is None or has_none or isinstance(value, Mapping):
        raise TypeError(f"{where} is {value!r}: HDF5 has no type for it")
    if isinstance(value, list | tuple) and any(
        isinstance(v, str | bytes | Reference | np.ndarray) for v in value
    ):
        array = np.empty(len(value), dtype=object)
        array[:] = list(value)
        return array
    return np.asarray(value)
