"""The attributes of what references point at, as columns.

In: a `ReferenceArray`. Out: a Dataset with a variable for each attribute. No target data
are read.
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
            one[()] = value  # an attribute that is an array is one value
            values[name][rows] = one
    shape = references.shape
    # The fast path keeps None: xarray would make NaN of it among text.
    variables = {
        name: xr.Variable(tuple(dims), _as_numbers(column).reshape(shape), fastpath=True)
        for name, column in values.items()
    }
    taken = set(variables)
    own = {k: v for k, v in coords.items() if set(v.dims) <= set(dims) and k not in taken}
    return xr.Dataset(variables, own)


def _as_numbers(column: npt.NDArray[np.object_]) -> npt.NDArray[Any]:
    """Return a column of numbers of one type as such; any other one as it is."""
    types = {getattr(value, "dtype", type(value)) for value in column.tolist()}
    if len(types) != 1:
        return column
    (found,) = types
    is_number = isinstance(found, np.dtype) and found.kind in "biufc"
    if is_number and all(np.ndim(value) == 0 for value in column.tolist()):
        return column.astype(found)
    return column
