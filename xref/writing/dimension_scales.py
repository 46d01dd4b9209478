"""Dimension scales of a file, and the numbers that netCDF-4 gives them.

In: an open HDF5 file. Out: the scales of a group, and the next free number.
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
    existed: bool  # before the file was opened for writing
    # Address and axis of each dataset along a new scale.
    attached: list[tuple[int, int]] = field(default_factory=list)


Scales: TypeAlias = dict[str, Scale]
"""Scales by dimension name."""


def next_dimension(file: h5py.File) -> int:
    """Return the next free number: netCDF identifies dimensions by numbers."""
    numbers = [-1]

    def add_number(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and h5ds.is_scale(item.id):
            number = item.attrs.get(DIMENSION_ID)
            numbers.append(int(number) if isinstance(number, np.int32) else -1)

    file.visititems(add_number)
    return max(*numbers, len(numbers) - 2) + 1


def has_any_size(scale: h5py.Dataset) -> bool:
    """Tell whether a dimension has no variable, and grows with the datasets along it."""
    name = scale.attrs.get("NAME", b"")
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return text.startswith(NO_VARIABLE) and scale.maxshape == (None,)


def existing_scales(group: h5py.Group) -> dict[str, Scale]:
    """Return the dimension scales of a group."""
    scales = {}
    for name, item in group.items():
        is_scale = isinstance(item, h5py.Dataset) and h5ds.is_scale(item.id)
        if is_scale and not item.is_virtual and item.ndim == 1:
            scales[name] = Scale(item, address_of(item), item.shape[0], True)
    return scales
