"""The attributes of the targets of references, as columns.

In: a `ReferenceArray`. Out: a Dataset with a variable for each attribute. The values of the
targets are not read.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref.objects import REFERENCE_BATCH, cache_h5py_references
from xref.references import ReferenceArray, split_targets
from xref.resolving.targets import open_target


def target_attributes(
    references: ReferenceArray, dims: Sequence[Hashable], coords: dict[Hashable, Any]
) -> xr.Dataset:
    """Collect attributes; see `xref.resolving.accessor.ReferenceAccessor.target_attrs`."""
    columns = references.columns
    values: dict[str, npt.NDArray[np.object_]] = {}
    targets, _ = split_targets(columns)
    for k, (stored, rows) in enumerate(targets):
        if k % REFERENCE_BATCH == 0:
            cache_h5py_references([t.address for t, _ in targets[k : k + REFERENCE_BATCH]])
        target = open_target(stored, stored.metadata, references.options)
        for name, value in target.attributes.items():
            if name not in values:
                values[name] = np.full(len(columns), None, dtype=object)
            one = np.empty((), dtype=object)
            one[()] = value  # an array attribute is one value
            values[name][rows] = one
    shape = references.shape
    # ``fastpath`` keeps None, which xarray would replace by NaN among text.
    variables = {
        name: xr.Variable(tuple(dims), _as_numbers(column).reshape(shape), fastpath=True)
        for name, column in values.items()
    }
    kept = {
        name: coord
        for name, coord in coords.items()
        if set(coord.dims) <= set(dims) and name not in variables
    }
    return xr.Dataset(variables, kept)


def _as_numbers(column: npt.NDArray[np.object_]) -> npt.NDArray[Any]:
    """Return a column of numbers of one type with that type; other columns unchanged."""
    types = {getattr(value, "dtype", type(value)) for value in column.tolist()}
    if len(types) != 1:
        return column
    (dtype,) = types
    is_number = isinstance(dtype, np.dtype) and dtype.kind in "biufc"
    if is_number and all(np.ndim(value) == 0 for value in column.tolist()):
        return column.astype(dtype)
    return column
