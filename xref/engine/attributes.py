"""Attributes as xarray holds them: plain values that pickle.

In: what `xref.objects.datasets` read of an object's attributes. Out: numbers, text, arrays and
references, in the forms that other readers of netCDF-4 give; a warning for each
attribute that cannot be had.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from xref import references
from xref.engine.decoding import FILL_ATTRIBUTES
from xref.errors import UnreadableMemberWarning, XrefError
from xref.objects import (
    Object,
    RawAttributeReferences,
    RawAttributeValue,
    StoredObject,
    read_attributes,
)
from xref.references import DecodeOptions
from xref.storage import FileLocation

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


def warn_unreadable(where: str, error: Exception) -> None:
    """Tell that something was left out."""
    warnings.warn(
        f"{where} was left out: {type(error).__name__}: {error}",
        UnreadableMemberWarning,
        stacklevel=2,
    )


def attribute_values(
    item: Object, stored: StoredObject, where: str, options: DecodeOptions
) -> dict[str, Any]:
    """Return an object's attributes as plain, picklable values; warn of others."""
    values, problems = read_attributes(item, stored)
    return plain_attributes(values, problems, stored.location, where, options)


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
        what = f"{where}: attribute {name!r}"
        try:
            values[name] = _plain(name, value, location, what, options)
        except (XrefError, ValueError, TypeError, IndexError) as error:
            warn_unreadable(what, error)
    return values


def _plain(
    name: str, value: Any, location: FileLocation, where: str, options: DecodeOptions
) -> Any:
    if isinstance(value, RawAttributeReferences):
        array = attribute_references(value, location, where, options)
        return array.element_at(0) if array.shape == () else np.asarray(array)
    if isinstance(value, RawAttributeValue):
        value = references.decode_elements(value, location, where, options)[()]
    if isinstance(value, np.ndarray) and value.dtype.kind in "SO" and value.dtype.names is None:
        value = value.tolist() if _is_text(value) else value
    if isinstance(value, np.ndarray | list) and np.shape(value)[:1] == (1,):
        value = value[0]  # an array of one element is a number to netCDF
    if isinstance(value, bytes) and name not in FILL_ATTRIBUTES:
        return _decoded(value, where)
    # What was read is kept for others: whoever changes an array in .attrs changes a copy.
    return value.copy() if isinstance(value, np.ndarray) else value


def _is_text(value: npt.NDArray[Any]) -> bool:
    """Tell whether objects or bytes are text; where there are none, the type tells."""
    if value.size:
        return all(isinstance(v, str | bytes) for v in value.flat)
    kept: Any = value.dtype.metadata or {}
    # Bytes of a length beyond 1 are read as objects.
    return value.dtype == "S1" or (value.dtype.kind == "O" and kept.get("vlen", str) is str)


def _decoded(value: bytes, where: str) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        warnings.warn(f"{where}: {error}, returning bytes undecoded", UnicodeWarning, 2)
        return bytes(value)


def attribute_references(
    value: RawAttributeReferences, location: FileLocation, where: str, options: DecodeOptions
) -> references.ReferenceArray:
    """Decode the references of an attribute."""
    raw = np.frombuffer(value.data, dtype=np.uint8).reshape(math.prod(value.shape), -1)
    columns = references.decode_references(location, raw, value.kind, lambda _: where)
    return references.ReferenceArray(
        value.shape, kind=value.kind, columns=columns, options=options
    )
