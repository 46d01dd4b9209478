"""Dimensions of a file: its dimension scales, and what netCDF-4 says with them.

In: an open HDF5 file. Out: the scales of a group, and numbers that none has yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import h5py
import numpy as np
from h5py import h5ds

from xref.objects import DIMENSION_ID, NO_VARIABLE
from xref.writing.datasets import address_of


@dataclass(slots=True)
class Scale:
    """A dimension of the file."""

    dataset: h5py.Dataset
    address: int
    size: int
    existed: bool
    attached: list[tuple[int, int]] = field(default_factory=list)


Scales: TypeAlias = dict[str, Scale]
"""By dimension."""


def next_dimension(file: h5py.File) -> int:
    """Return a number that no dimension of a file has: netCDF tells them by it."""
    numbers = [-1]

    def open_written(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and h5ds.is_scale(item.id):
            known = item.attrs.get(DIMENSION_ID)
            numbers.append(int(known) if isinstance(known, np.int32) else -1)

    file.visititems(open_written)
    return max(*numbers, len(numbers) - 2) + 1


def has_any_size(scale: h5py.Dataset) -> bool:
    """Tell whether a dimension has no variable, and grows with what lies along it."""
    name = scale.attrs.get("NAME", b"")
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return text.startswith(NO_VARIABLE) and scale.maxshape == (None,)


def existing_scales(group: h5py.Group) -> dict[str, Scale]:
    """Return the dimension scales that a group has."""
    found = {}
    for name, item in group.items():
        is_scale = isinstance(item, h5py.Dataset) and h5ds.is_scale(item.id)
        if is_scale and not item.is_virtual and item.ndim == 1:
            found[name] = Scale(item, address_of(item), item.shape[0], True)
    return found
