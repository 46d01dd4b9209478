"""Write the files that `netcdf_files` draws, with netCDF4 or h5netcdf, then with h5py.

Data are ranges of numbers, so an element from the wrong place shows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from netcdf_files import COMPOUND, ENUMS, TEXTS, Attribute, Edit, Group, NetcdfFile, UserType


def write_netcdf(path: Path, drawn: NetcdfFile) -> Path:
    """Write a drawn file."""
    with warnings.catch_warnings():
        # Both writers warn about valid files: fill values of enumerations, extension modules.
        warnings.simplefilter("ignore")
        if drawn.writer == "netCDF4":
            import netCDF4

            with netCDF4.Dataset(str(path), "w") as file:
                _write_netcdf4(file, drawn.root, {})
        else:
            import h5netcdf

            with h5netcdf.File(path, "w") as file:
                _write_h5netcdf(file, drawn.root, {})
    with h5py.File(path, "r+", track_order=True) as file:
        if drawn.writer == "h5netcdf":
            _write_data(file, drawn.root, {})
        for edit in drawn.edits:
            _EDITS[edit.kind](file, edit)
    return path


def _write_netcdf4(group: Any, drawn: Group, types: Mapping[str, Any]) -> None:
    for dimension in drawn.dimensions:
        group.createDimension(dimension.name, dimension.size)
    types = dict(types)
    for user in drawn.types:
        create = {"enum": group.createEnumType, "vlen": group.createVLType}
        args = (ENUMS[user.base],) if user.kind == "enum" else ()
        base = COMPOUND if user.kind == "compound" else np.dtype(user.base)
        kind = create.get(user.kind, group.createCompoundType)(base, user.name, *args)
        types[user.name] = (user, kind)
    for v in drawn.variables:
        user, kind = types.get(v.type, (None, str if v.type == "str" else v.type))
        endian = {"<": "little", ">": "big"}.get(v.type[0], "native")
        variable = group.createVariable(
            v.name, kind, v.dims, fill_value=v.fill_value, endian=endian, **dict(v.storage)
        )
        variable.set_auto_maskandscale(False)
        variable.set_auto_chartostring(False)
        _write_attributes(variable.setncattr, v.attributes)
        if math.prod(v.written):
            key = tuple(slice(0, n) for n in v.written) or ...
            variable[key] = _values(v.written, v.type, user)
    _write_attributes(group.setncattr, drawn.attributes)
    for child in drawn.groups:
        _write_netcdf4(group.createGroup(child.name), child, types)


def _write_h5netcdf(group: Any, drawn: Group, types: Mapping[str, Any]) -> None:
    """Write all but the values: h5netcdf resizes all variables of an unlimited dimension."""
    for dimension in drawn.dimensions:
        group.dimensions[dimension.name] = dimension.size
    types = dict(types)
    for user in drawn.types:
        create = {"enum": group.create_enumtype, "vlen": group.create_vltype}
        args = (ENUMS[user.base],) if user.kind == "enum" else ()
        base = COMPOUND if user.kind == "compound" else np.dtype(user.base)
        types[user.name] = create.get(user.kind, group.create_cmptype)(base, user.name, *args)
    for v in drawn.variables:
        kind = h5py.string_dtype() if v.type == "str" else types.get(v.type, v.type)
        storage = dict(v.storage)
        options = {"fletcher32": True} if "fletcher32" in storage else {}
        if "zlib" in storage:
            options |= {"compression": "gzip", "compression_opts": storage["complevel"]}
            options |= {"shuffle": storage["shuffle"]}
        dims = [group._all_dimensions[d] for d in v.dims]
        chunks = storage.get("chunksizes")
        if chunks is None and any(d.isunlimited() for d in dims):
            chunks = tuple(2 if d.isunlimited() else 1 for d in dims)
        variable = group.create_variable(
            v.name, v.dims, kind, fillvalue=v.fill_value, chunks=chunks, **options
        )
        _write_attributes(variable.attrs.__setitem__, v.attributes)
    _write_attributes(group.attrs.__setitem__, drawn.attributes)
    for child in drawn.groups:
        _write_h5netcdf(group.create_group(child.name), child, types)


def _write_data(group: h5py.Group, drawn: Group, types: Mapping[str, UserType]) -> None:
    types = dict(types) | {t.name: t for t in drawn.types}
    for v in drawn.variables:
        clash = f"_nc4_non_coord_{v.name}"
        dataset = group[clash if clash in group else v.name]
        if dataset.maxshape != dataset.shape:
            dataset.resize(v.written)
        _assign(dataset, _values(v.written, v.type, types.get(v.type)))
    for child in drawn.groups:
        _write_data(group[child.name], child, types)


def _assign(dataset: h5py.Dataset, values: Any) -> None:
    if h5py.check_vlen_dtype(dataset.dtype) and dataset.shape:
        for index in np.ndindex(dataset.shape):
            dataset[index] = values[index]  # h5py mistakes an array of one sequence
    elif dataset.size:
        dataset[...] = values


def _write_attributes(write: Callable[[str, Any], None], drawn: tuple[Attribute, ...]) -> None:
    for attribute in drawn:
        write(attribute.name, attribute_value(attribute))


def _values(shape: tuple[int, ...], type_: str, user: UserType | None) -> Any:
    """Return values of a variable that differ from their neighbours."""
    n = math.prod(shape)
    number = np.arange(n)
    if user is not None and user.kind == "enum":
        known = np.array(list(ENUMS[user.base].values()), user.base)
        return known[number % len(known)].reshape(shape)
    if user is not None and user.kind == "vlen":
        out = np.empty(n, object)
        for i in range(n):
            out[i] = np.arange(i % 3 + 1).astype(user.base)
        return out.reshape(shape) if shape else np.arange(2).astype(user.base)
    if user is not None:
        records = np.zeros(n, COMPOUND)
        records["a"], records["b"], records["c"] = number, number / 2, number[:, None]
        return records.reshape(shape)[()]
    if type_ == "str":
        texts = np.array([TEXTS[i % len(TEXTS)] for i in range(n)], object)
        return texts.reshape(shape) if shape else texts[0]
    if type_ == "S1":
        return np.array([b"ab\x00-z"[i % 5 : i % 5 + 1] for i in range(n)], "S1").reshape(shape)
    return (number * 3).astype(type_).reshape(shape)


# --- attributes --------------------------------------------------------------------


def attribute_value(attribute: Attribute) -> Any:
    """Make the value of an attribute."""
    items = attribute.items
    match attribute.form:
        case "text" | "bytes":
            return items[0]
        case "texts":
            return list(items)
        case "scalar":
            return np.ones((), items[0])[()]
        case "number":
            return np.asarray(items[1], items[0])[()]
        case "array":
            return np.arange(items[1]).astype(items[0])
        case "fixed texts":
            return np.array([b"ab", b"", b"d"], items[0])[: items[1]]
        case "null":
            return h5py.Empty(items[0])
        case "numbers of shape":
            return _numbers(items[1]).astype(items[0])
        case "half":
            return _numbers(items).astype("f2")
        case "complex":
            return _numbers(items) * 1j
        case "compound":
            return _values(items, "", UserType("", "compound", ""))
        case "bool":
            return _numbers(items) > 0
        case form:
            raise ValueError(f"{form!r} is no form of an attribute")


def _numbers(shape: tuple[int, ...]) -> Any:
    return np.arange(math.prod(shape)).reshape(shape)


def _create_attribute(attributes: h5py.AttributeManager, attribute: Attribute) -> None:
    """Write an attribute with h5py."""
    items = attribute.items
    if attribute.form == "texts of shape":
        texts = np.array(TEXTS, object)[: math.prod(items)].reshape(items)
        attributes.create(attribute.name, texts, items, h5py.string_dtype())
    elif attribute.form == "enum":
        kind = h5py.enum_dtype(ENUMS["u1"], "u1")
        attributes.create(attribute.name, _numbers(items) % 2, items, kind)
    elif attribute.form == "sequences":
        values = _values(items, "", UserType("", "vlen", "i2"))
        attributes.create(attribute.name, values, items, h5py.vlen_dtype("i2"))
    else:
        attributes[attribute.name] = attribute_value(attribute)


# --- changes with h5py -------------------------------------------------------------


def _plain_values(type_: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Return the values and the type of a dataset that h5py adds."""
    match type_:
        case "enum":
            kind = h5py.enum_dtype(ENUMS["u1"], "u1")
            return _values(shape, "", UserType("", "enum", "u1")), kind
        case "text":
            return _values(shape, "str", None), h5py.string_dtype()
        case "sequences":
            return _values(shape, "", UserType("", "vlen", "i2")), h5py.vlen_dtype("i2")
        case "S1" | "S4":
            return np.array(_values(shape, "S1", None), type_), np.dtype(type_)
    return _numbers(shape).astype(type_), np.dtype(type_)


def _add_attribute(file: h5py.File, edit: Edit) -> None:
    if edit.path in file:  # not a variable beside a dimension of its name
        _create_attribute(file[edit.path].attrs, edit.attribute)


def _add_plain(file: h5py.File, edit: Edit) -> None:
    if edit.path not in file:
        type_, shape = edit.items
        values, dtype = _plain_values(type_, shape)
        dataset = file.create_dataset(edit.path, shape, dtype)
        _assign(dataset, values)


def _add_link(file: h5py.File, edit: Edit) -> None:
    if edit.path not in file and edit.other in file:
        soft = edit.kind == "soft link"
        file[edit.path] = h5py.SoftLink(edit.other) if soft else file[edit.other]


def _attach_scale(file: h5py.File, edit: Edit) -> None:
    """Attach one more scale to the first axis of a variable, if lengths are equal."""
    dataset, scale = file.get(edit.path), file.get(edit.other)
    if dataset is None or scale is None or dataset.is_scale or not scale.is_scale:
        return
    if scale.ndim == 1 and dataset.shape[:1] == scale.shape:
        dataset.dims[0].attach_scale(scale)


def _add_along(file: h5py.File, edit: Edit) -> None:
    """Add a dataset along a dimension: with a name, as its alias, or without any name."""
    scale = file[edit.other]
    if edit.path in file or not scale.is_scale or scale.ndim != 1:
        return
    is_unlimited = scale.maxshape == (None,)
    longer = 1 if edit.kind == "unnamed" else 6
    shape = (longer,) if is_unlimited else scale.shape
    values, dtype = _plain_values(edit.items[0], shape)
    if edit.kind == "unnamed":
        # A group that holds itself stays in the file, also when no other link leads to it.
        group = file.create_group("lost")
        group["self"] = group
        del file["lost"]
        edit = replace(edit, path="unnamed")
    else:
        group = file
    dataset = group.create_dataset(
        edit.path, shape, dtype, data=values, maxshape=scale.maxshape
    )
    dataset.dims[0].attach_scale(scale)


_EDITS: dict[str, Callable[[h5py.File, Edit], None]] = {
    "nothing": lambda file, edit: None,
    "attribute": _add_attribute,
    "plain": _add_plain,
    "link": _add_link,
    "soft link": _add_link,
    "attach": _attach_scale,
    "named": _add_along,
    "unnamed": _add_along,
}
