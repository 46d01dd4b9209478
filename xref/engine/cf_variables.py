"""The Dataset of a group, decoded by the CF conventions with xarray's own decoders.

In: the variables of a group as stored. Out: a Dataset of decoded variables. Reference variables
and compounds are not decoded.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from xref.engine.decoding import option_of
from xref.engine.lazy_arrays import skip_object_reads
from xref.engine.object_variables import ObjectVariable
from xref.engine.variables import ReferenceVariable, keep_charset
from xref.references import DecodeOptions


def decode_dataset(
    variables: dict[str, xr.Variable],
    attributes: dict[str, Any],
    unlimited: frozenset[str],
    options: DecodeOptions,
) -> xr.Dataset:
    """Decode ordinary variables by the CF conventions and add the reference variables."""
    # The decoders of xarray would decode compounds of another byte order as bytes.
    untouched = {
        k: v
        for k, v in variables.items()
        if isinstance(v, ReferenceVariable) or v.dtype.kind == "V"
    }
    ordinary = {
        k: _distinct_dims(placeholder(v) if k in untouched else v) for k, v in variables.items()
    }
    objects = {k for k, v in ordinary.items() if _is_object_without_conventions(v)}
    values_only = objects | set(untouched)
    # Lazy text has missing values, just as text in memory.
    lazy_text = {k for k in objects if (ordinary[k].dtype.metadata or {}).get("vlen") is str}
    with skip_object_reads():
        decoded, new_attributes, coord_names = xr.conventions.decode_cf_variables(
            ordinary,
            attributes,
            concat_characters=_except_for(values_only, options, "concat_characters", ordinary),
            mask_and_scale=_except_for(
                values_only - lazy_text, options, "mask_and_scale", ordinary
            ),
            decode_times=_except_for(values_only, options, "decode_times", ordinary),
            decode_coords=options.decode_coords,
            use_cftime=options.use_cftime,
            decode_timedelta=_except_for(values_only, options, "decode_timedelta", ordinary),
        )
    for name, new in decoded.items():
        _restore_properties(new, variables[name])
    for name, plain in untouched.items():
        _name_coordinates(plain, decoded[name])
    merged = {name: untouched.get(name, decoded.get(name)) for name in variables}
    data: dict[Hashable, xr.Variable] = {}
    coords: dict[Hashable, xr.Variable] = {}
    for name, variable in merged.items():
        if variable is not None:
            is_coord = name in coord_names or variable.dims == (name,)
            # xarray writes a variable without a name under `_NO_NAME`.
            own_name = None if name == _NO_NAME else name
            (coords if is_coord else data)[own_name] = _as_objects(variable, variables[name])
    # xarray makes the indexes later, if the user asks for them.
    dataset = xr.Dataset(data, xr.Coordinates(coords, indexes={}), new_attributes)
    dataset.encoding["unlimited_dims"] = set(unlimited)
    return dataset


def _distinct_dims(variable: xr.Variable) -> xr.Variable:
    """Rename all but the last axis of each dimension that a variable has several times.

    Some decoders of xarray refuse such variables. The last axis keeps its name: whether xarray
    joins characters along it depends on the other variables along that dimension.
    """
    dims = variable.dims
    if len(set(dims)) == len(dims):
        return variable
    names = [
        f"<axis {axis}>" if dim in dims[axis + 1 :] else dim for axis, dim in enumerate(dims)
    ]
    return xr.Variable(names, variable._data, variable.attrs, variable.encoding, True)


_NO_NAME = "__values__"


def placeholder(variable: xr.Variable) -> xr.Variable:
    """Return a placeholder of numbers, so that xarray converts only attributes."""
    numbers = np.broadcast_to(np.int8(0), variable.shape)
    return xr.Variable(variable.dims, numbers, dict(variable.attrs))


def _restore_properties(decoded: xr.Variable, stored: xr.Variable) -> None:
    """Give a decoded variable the dimensions and the encoding that decoders change."""
    dims = stored.dims[: decoded.ndim]  # decoding drops the last axis at most
    if decoded.dims != dims:
        decoded.dims = dims
    if "source" in stored.encoding:  # decoders of text drop it
        decoded.encoding.setdefault("source", stored.encoding["source"])
    decoded.encoding.pop("charset", None)
    if "charset" in stored.encoding:
        keep_charset(decoded, stored.encoding["charset"])


def _as_objects(variable: xr.Variable, stored: xr.Variable) -> xr.Variable:
    """Return a variable of stored objects as an `ObjectVariable`, any other one as it is."""
    # Numbers decoded to objects are dates of cftime, whose size xarray knows.
    has_objects = variable.dtype.hasobject and stored.dtype.hasobject
    if has_objects and not isinstance(variable, ReferenceVariable):
        return ObjectVariable.of(variable)
    return variable


def _name_coordinates(variable: xr.Variable, decoded: xr.Variable) -> None:
    """Move attributes that name coordinates to the encoding, as in the decoded variable."""
    for name in variable.attrs.keys() - decoded.attrs.keys():
        variable.encoding[name] = variable.attrs.pop(name)


def _is_object_without_conventions(variable: xr.Variable) -> bool:
    """Tell whether values are objects without CF conventions, such as sequences."""
    return variable.dtype.kind == "O" and variable.encoding.get("dtype") is not str


def _except_for(
    names: set[str], options: DecodeOptions, option: str, variables: Mapping[str, xr.Variable]
) -> Any:
    """Return the value of an option that switches its decoder off for some variables."""
    value = getattr(options, option)
    # xarray takes a mapping for "on" where it changes several variables, such as bounds.
    if not names or value is False:
        return value
    return {
        name: False if name in names else option_of(options, option, name) for name in variables
    }
