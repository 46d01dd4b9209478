"""Groups, variables, attributes and dimensions of xarray into an open HDF5 file.

In: Datasets by the path of their group. Out: the objects of the file, and the blocks of
Dask arrays that are still to be written.

1. Groups and datasets are created, and values without references are written. The origin
   of each object (file and address) is noted.
2. References are translated: now the address of each object is known. A missing target
   may be copied, which goes back to step 1.
3. Dimension scales are attached; each REFERENCE_LIST is written once.

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

from xref import objects
from xref.errors import naming
from xref.reading import check_packed
from xref.references import ReferenceArray, opened_from
from xref.storage import locate_file
from xref.writing.cf_encoding import EncodedDataset, align_blocks, attribute_array
from xref.writing.checked_file import CheckedFile
from xref.writing.copied_objects import ObjectCopier
from xref.writing.dask_blocks import BlockTarget
from xref.writing.datasets import (
    address_of,
    create_dataset,
    region_bytes,
    replace_attribute,
    write_dimension_list,
    write_raw,
    write_reference_list,
)
from xref.writing.dimension_scales import (
    Scale,
    Scales,
    existing_scales,
    has_any_size,
    next_dimension,
)
from xref.writing.drafts import Draft
from xref.writing.memory_layout import (
    ElementEncoder,
    MemoryType,
    RawBytes,
    choose_memory_type,
    holds_references,
)
from xref.writing.storage_options import check_stored, choose_storage, fitting_dataset
from xref.writing.translate_references import ReferenceTranslator, WrittenObject, object_id


class TreeWriter:
    """Writes Datasets into a file that is open for writing.

    Parameters
    ----------
    file : h5py.File
    stored : CheckedFile
        The file object through which HDF5 writes ``file``.
    translator : ReferenceTranslator
        Learns the address of each written object.
    draft : Draft
        The file, for blocks that are written later.
    is_new : bool
        Whether the file is empty.

    Attributes
    ----------
    blocks : list of (dask.array.Array, BlockTarget)
        Dask arrays that are still to be written.
    reference_writes : list of callable
        Writes that wait until the addresses of all objects are known.
    """

    def __init__(
        self,
        file: h5py.File,
        stored: CheckedFile,
        translator: ReferenceTranslator,
        draft: Draft,
        *,
        is_new: bool,
    ) -> None:
        self.file, self.stored, self.translator, self.draft = file, stored, translator, draft
        self.filename = draft.filename
        self._is_new = is_new
        self._new_addresses = set[int]()
        self._n_dimensions = 0 if is_new else next_dimension(file)
        self.blocks: list[tuple[Any, BlockTarget]] = []
        self.reference_writes: list[Callable[[], None]] = []
        # Changes to existing objects are made last, after everything that can fail. Each
        # entry prepares one change and returns the function that makes it.
        self._final_changes: list[Callable[[], Callable[[], Any]]] = []
        self._scales: dict[str, dict[str, Scale]] = {}
        # Dataset, its address, its dimensions, and the scales of its group.
        self._unattached: list[tuple[h5py.Dataset, int, list[str], Scales]] = []
        translator.copy = ObjectCopier(self).copy

    def add(self, path: str, dataset: xr.Dataset, encoded: EncodedDataset) -> None:
        """Write the group ``path`` and its variables, which are encoded already."""
        group = self.require_group(path)
        origin = object_id(opened_from(dataset.encoding))
        self.translator.add(WrittenObject(path, address_of(group), None, origin))
        scales = self._add_dimensions(group, path, encoded)
        for name, variable in encoded.variables.items():
            open_written = functools.partial(dataset.__getitem__, name)
            self.add_variable(group, path, name, variable, encoded, scales, open_written)
            self.stored.check()
        self._write_attributes(group, encoded.attributes, path)

    def finish(self) -> None:
        """Write references, change existing objects, and attach dimension scales."""
        changes: list[Callable[[], Any]] = []
        while self._final_changes or self.reference_writes:
            preparations, self._final_changes = self._final_changes, []
            changes += [prepare() for prepare in preparations]
            writes, self.reference_writes = self.reference_writes, []
            for write in writes:
                write()
                self.stored.check()
        for change in changes:
            change()
            self.stored.check()
        for dataset, address, dims, known in self._unattached:
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

    def require_group(self, path: str) -> h5py.Group:
        """Return the group at a path; groups that are missing are created."""
        group: h5py.Group = self.file["/"]
        group_path = "/"
        for name in [p for p in path.split("/") if p]:
            group_path = posixpath.join(group_path, name)
            member = self._member(group, name, group_path)
            if member is None:
                member = group.create_group(name, track_order=True)
                self.note_new(member)
            elif not isinstance(member, h5py.Group):
                raise ValueError(
                    f"{self.filename}: {group_path!r} is a dataset, so a group cannot be "
                    "created there"
                )
            group = member
        return group

    def note_new(self, item: h5py.HLObject) -> None:
        """Note that an object was created by this writer."""
        self._new_addresses.add(address_of(item))

    def _existed(self, address: int) -> bool:
        return not self._is_new and address not in self._new_addresses

    def _member(self, group: h5py.Group, name: str, path: str) -> Any:
        """Return a member of a group, or None; refuse broken links and other files."""
        link = group.get(name, getlink=True)
        if link is None:
            return None
        item = None if isinstance(link, h5py.ExternalLink) else group.get(name)
        if item is None or item.file.id != self.file.id:
            raise ValueError(
                f"{self.filename}: {path!r} is a broken link, or a link to another file, which "
                "to_hdf5 does not write; choose another name"
            )
        # A virtual dataset is not even asked for its shape: HDF5 would open the source files
        # through the driver of this file.
        if isinstance(item, h5py.Dataset) and item.is_virtual:
            raise ValueError(
                f"{self.filename}: {path!r} has its elements in other files, which to_hdf5 "
                "does not write"
            )
        return item

    def _add_dimensions(self, group: h5py.Group, path: str, encoded: EncodedDataset) -> Scales:
        """Return the scale of each dimension; create those without a variable."""
        group_scales = self._scales.setdefault(path, existing_scales(group))
        scales: Scales = {}
        for dim, size in encoded.sizes.items():
            if encoded.is_scale(dim):
                continue  # `add_variable` creates it
            scale = self._inherited_scale(path, dim)
            if scale is not None and (scale.size == size or scale.existed):
                if scale.size != size and not has_any_size(scale.dataset):
                    raise ValueError(
                        f"{self.filename}: dimension {dim!r} of {path!r} has {scale.size} "
                        f"elements in the file and {size} in the data to be written"
                    )
                scales[dim] = scale
                continue
            member = self._member(group, dim, posixpath.join(path, dim))
            if member is not None:
                if not isinstance(member, h5py.Dataset) or member.shape != (size,):
                    raise ValueError(
                        f"{self.filename}: dimension {dim!r} of {path!r} has the name of "
                        "something else in the file; rename it"
                    )
                group_scales[dim] = scales[dim] = Scale(member, address_of(member), size, True)
                self._change(member.make_scale, dim)
                continue
            maxshape = (None,) if dim in encoded.unlimited else None
            dataset = group.create_dataset(
                dim, (size,), ">f4", maxshape=maxshape, track_order=True
            )
            self.note_new(dataset)
            dataset.make_scale(objects.NO_VARIABLE_OF_LENGTH % size)
            group_scales[dim] = scales[dim] = Scale(dataset, address_of(dataset), size, False)
            self._number(dataset)
        return scales

    def _inherited_scale(self, path: str, dim: str) -> Scale | None:
        """Return the scale of a dimension name in a group or the nearest group above it."""
        while True:
            scale = self._scales.get(path, {}).get(dim)
            if scale is not None or path == "/":
                return scale
            path = posixpath.dirname(path)

    def _number(self, dataset: h5py.Dataset) -> None:
        """Give a dimension a number, as netCDF does to keep their order."""
        dataset.attrs.create(objects.DIMENSION_ID, self._n_dimensions, dtype="<i4")
        self._n_dimensions += 1

    def add_variable(
        self,
        group: h5py.Group,
        path: str,
        name: str,
        variable: xr.Variable,
        encoded: EncodedDataset,
        scales: Scales,
        open_written: Callable[[], xr.DataArray] | None = None,
    ) -> None:
        """Write one of the variables in ``encoded``, with its attributes.

        If it is a coordinate, its scale is added to ``scales``. ``open_written`` returns the
        variable as the user has it.
        """
        dims = [str(d) for d in variable.dims]
        full_path = posixpath.join(path, name)
        label = f"{self.filename}: {full_path!r}"
        dataset = self._create(group, name, variable, encoded, label)
        origin = object_id(opened_from(variable.encoding))
        opener = None if origin is None else open_written
        written = WrittenObject(full_path, address_of(dataset), dataset.shape, origin, opener)
        self.translator.add(written)
        existed = self._existed(written.address)
        if existed:
            self._drop_encoding(dataset, variable.attrs)
            dims = self._unattached_dimensions(dataset, dims, label)
        if encoded.is_scale(name):
            scale = self._scales[path].get(name)
            if scale is None:
                scale = Scale(dataset, written.address, variable.shape[0], existed)
                self._scales[path][name] = scale
                if existed:
                    self._change(dataset.make_scale, name)
                    self._change(self._number, dataset)
                else:
                    dataset.make_scale(name)
                    self._number(dataset)
            scales[name] = scale
        elif dims:
            self._unattached.append((dataset, written.address, dims, scales))
        self._write_attributes(dataset, variable.attrs, full_path)

    def _create(
        self,
        group: h5py.Group,
        name: str,
        variable: xr.Variable,
        encoded: EncodedDataset,
        label: str,
    ) -> h5py.Dataset:
        """Create or find the dataset of a variable; write its values, now or later."""
        has_clash = name in encoded.sizes and not encoded.is_scale(name)
        stored_name = objects.NAME_CLASH + name if has_clash else name
        path = posixpath.join(group.name, stored_name)
        data = variable._data
        blocks = getattr(data, "chunks", None)
        values: Any = np.zeros(0, data.dtype) if blocks else data
        memory_type = encoded.memory_types.get(name) or choose_memory_type(values, label)
        given = encoded.given.get(name, ())
        existing = self._member(group, stored_name, path)
        if existing is not None:
            dataset = fitting_dataset(existing, memory_type, variable.shape, label)
            check_stored(dataset, memory_type, variable.encoding, given, label)
            self._check_chunks(dataset)
            if dataset.shape != variable.shape:
                self._change(dataset.resize, variable.shape)
        else:
            storage = choose_storage(
                variable.shape,
                memory_type,
                variable.encoding,
                given=given,
                unlimited=[d in encoded.unlimited for d in variable.dims],
                blocks=blocks,
                fill_value=_fill_value(variable, memory_type),
                label=label,
            )
            dataset = create_dataset(group, stored_name, variable.shape, memory_type, storage)
            self.note_new(dataset)
        if blocks:
            self._add_blocks(dataset, path, memory_type, data)
        else:
            write = functools.partial(write_raw, dataset, memory_type, check=self.stored.check)
            self._write(write, memory_type, data, existing is not None, label)
        return dataset

    def _add_blocks(
        self, dataset: h5py.Dataset, path: str, memory_type: MemoryType, data: Any
    ) -> None:
        target = BlockTarget(
            draft=self.draft,
            name=path,
            memory_type=memory_type,
            shape=data.shape,
            chunks=dataset.chunks,
            pipeline=objects.pipeline_of(dataset.id.get_create_plist()),
            fill_value=dataset.fillvalue,
        )
        self.blocks.append((align_blocks(data, dataset.chunks), target))

    def _check_chunks(self, dataset: h5py.Dataset) -> None:
        """Check old chunks that HDF5 may have to decode before it writes a part of them."""
        address = address_of(dataset)
        packers = objects.pipeline_of(dataset.id.get_create_plist()).packers
        if packers and self._existed(address):
            check_packed(objects.StoredObject(locate_file(self.filename), address))

    def _drop_encoding(self, dataset: h5py.Dataset, attributes: Mapping[Any, Any]) -> None:
        """Remove attributes that say how the old values, now overwritten, are decoded."""
        for name in objects.CF_ATTRIBUTES:
            value = None if name in attributes else dataset.attrs.get(name)
            is_time = name == "units" and " since " not in str(value)
            is_type = name == "dtype" and str(value) not in ("bool", "timedelta64[ns]")
            if value is not None and not is_time and not is_type:
                self._change(dataset.attrs.__delitem__, name)

    def _unattached_dimensions(
        self, dataset: h5py.Dataset, dims: list[str], label: str
    ) -> list[str]:
        """Return the dimensions to attach to an existing dataset: all of them, or none."""
        if objects.DIMENSION_LIST not in dataset.attrs:
            return dims
        known = [posixpath.basename(d[0].name) if len(d) else None for d in dataset.dims]
        if any(
            old != new and not (old is None and new.startswith("phony_dim_"))
            for old, new in zip(known, dims, strict=True)
        ):
            raise ValueError(
                f"{label} lies along {known} in the file, and along {dims} in the data to be "
                "written"
            )
        return []

    def _write_attributes(
        self, item: h5py.HLObject, attributes: Mapping[Any, Any], path: str
    ) -> None:
        existed = bool(attributes) and self._existed(address_of(item))
        for key, value in attributes.items():
            label = f"{self.filename}: attribute {key!r} of {path!r}"
            values = attribute_array(value, label)
            memory_type = choose_memory_type(values, label)
            write = functools.partial(replace_attribute, item, str(key), memory_type.type_id())
            self._write(write, memory_type, values, existed, label)

    def _write(
        self,
        write: Callable[[Any], None],
        memory_type: MemoryType,
        values: Any,
        existed: bool,
        label: str,
    ) -> None:
        """Encode and write values: now, after all objects, or over those of an old object.

        ``label`` names the variable or the attribute in errors.
        """

        def prepare() -> Callable[[], None]:
            encoder = ElementEncoder(self._reference_bytes)
            with naming(lambda: label):
                raw = encoder.encode(memory_type, values)

            def change(encoder: ElementEncoder = encoder) -> None:  # its buffers must live
                write(raw)

            return change

        if existed:
            self._final_changes.append(prepare)
        elif holds_references(memory_type):
            self.reference_writes.append(lambda: prepare()())
        else:
            prepare()()

    def _change(self, change: Callable[..., Any], *arguments: Any) -> None:
        """Call a function that changes an existing object, after everything that can fail."""
        self._final_changes.append(lambda: functools.partial(change, *arguments))

    def _reference_bytes(self, references: ReferenceArray, kind: str) -> RawBytes:
        address, regions = self.translator.translate(references)
        if kind == "region":
            return region_bytes(self.file, self.stored, address, regions)
        return address.astype("<u8").view(np.uint8).reshape(len(address), 8)


def _fill_value(variable: xr.Variable, memory_type: MemoryType) -> Any:
    """Return the value of elements that are never written, from the ``_FillValue``."""
    fill = variable.attrs.get("_FillValue")
    dtype = getattr(memory_type, "dtype", None)
    if fill is None or dtype is None or dtype.kind not in "iuf" or np.size(fill) != 1:
        return None
    return np.asarray(fill, dtype=dtype).reshape(-1)[0]
