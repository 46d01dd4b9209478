"""Attributes of HDF5 objects as attributes of xarray objects: plain values that pickle.

In: raw attribute values from `xref.objects`. Out: numbers, text, arrays and references, as
other readers of netCDF-4 return them, and a warning for each attribute that cannot be read.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from xref import references
from xref.errors import UnreadableMemberWarning, XrefError
from xref.objects import (
    FILL_ATTRIBUTES,
    HIDDEN_ATTRIBUTES,
    Object,
    RawAttributeReferences,
    RawAttributeValue,
    StoredObject,
    read_attributes,
)
from xref.references import DecodeOptions
from xref.storage import FileLocation


def warn_unreadable(label: str, error: Exception) -> None:
    """Warn that a member or attribute was left out, and why."""
    warnings.warn(
        f"{label} was left out: {type(error).__name__}: {error}",
        UnreadableMemberWarning,
        stacklevel=2,
    )


def warn_unusable_scale(label: str, problem: str) -> None:
    """Warn that an entry of a "DIMENSION_LIST" was ignored, and why."""
    warnings.warn(f"{label}: {problem}", UnreadableMemberWarning, stacklevel=2)


def attribute_values(
    item: Object, stored: StoredObject, path: str | None, options: DecodeOptions
) -> dict[str, Any]:
    """Read the attributes of an object as plain values; warn of those that cannot be read.

    ``path`` names the object in messages; None for its canonical path.
    """
    values, problems = read_attributes(item, stored)
    return plain_attributes(values, problems, stored, path, options)


def plain_attributes(
    raw: dict[str, Any],
    problems: dict[str, Exception],
    stored: StoredObject,
    path: str | None,
    options: DecodeOptions,
) -> dict[str, Any]:
    """Convert raw attribute values to plain values; warn of those that cannot be converted.

    Attributes that only organise the file (`HIDDEN_ATTRIBUTES`) are left out.
    """
    values = {}
    for name, problem in problems.items():
        if name not in HIDDEN_ATTRIBUTES:
            warn_unreadable(_label(stored, path, name), problem)
    for name, value in raw.items():
        if name in HIDDEN_ATTRIBUTES:
            continue
        try:
            values[name] = _plain(name, value, stored, path, options)
        except (XrefError, ValueError, TypeError, IndexError) as error:
            warn_unreadable(_label(stored, path, name), error)
    return values


def _label(stored: StoredObject, path: str | None, name: str) -> str:
    return f"{references.Owner.of(stored, path)}: attribute {name!r}"


def _plain(
    name: str, value: Any, stored: StoredObject, path: str | None, options: DecodeOptions
) -> Any:
    if isinstance(value, RawAttributeReferences):
        owner = references.Owner.of(stored, path, attribute=name)
        array = attribute_references(value, stored.location, owner, options)
        return array.element_at(0) if array.shape == () else np.asarray(array)
    if isinstance(value, RawAttributeValue):
        owner = references.Owner.of(stored, path, attribute=name)
        value = references.decode_elements(value, stored.location, owner, options)[()]
    if isinstance(value, np.ndarray) and value.dtype.kind in "SO" and value.dtype.names is None:
        value = value.tolist() if _is_text(value) else value
    if isinstance(value, np.ndarray | list) and np.shape(value)[:1] == (1,):
        value = value[0]  # netCDF does not distinguish an array of one element from a number
    if isinstance(value, bytes) and name not in FILL_ATTRIBUTES:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            where = _label(stored, path, name)
            warnings.warn(f"{where}: {error}, returning bytes undecoded", UnicodeWarning, 2)
            return bytes(value)
    # A copy: raw values are cached, and the user may change an array in .attrs.
    return value.copy() if isinstance(value, np.ndarray) else value


def _is_text(value: npt.NDArray[Any]) -> bool:
    """Tell whether objects or bytes are text; for an empty array the dtype decides."""
    if value.size:
        return all(isinstance(v, str | bytes) for v in value.flat)
    metadata: Any = value.dtype.metadata or {}
    # Text of fixed length above 1 is read as objects.
    return value.dtype == "S1" or (value.dtype.kind == "O" and metadata.get("vlen", str) is str)


def attribute_references(
    value: RawAttributeReferences,
    location: FileLocation,
    owner: references.Owner,
    options: DecodeOptions,
) -> references.ReferenceArray:
    """Decode the references of an attribute; ``owner`` names the attribute."""
    n = math.prod(value.shape)
    raw = np.frombuffer(value.data, dtype=np.uint8).reshape(n, -1)
    noun, slices = references.KIND_NOUNS[value.kind], references.box_of_shape(value.shape)
    owner = references.Owner(owner.filename, owner.label, noun, slices, owner.attribute)
    names = references.ElementNames.of_owner(owner, range(n))
    columns = references.decode_references(location, raw, value.kind, names.describe)
    return references.ReferenceArray(
        value.shape, kind=value.kind, columns=columns, options=options, names=names
    )
