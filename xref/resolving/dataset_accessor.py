"""The accessor ``.h5ref`` of Datasets.

In: a Dataset that was opened with ``engine="h5ref"``. Out: the public methods. Their work is
done in other modules.
"""

from __future__ import annotations

import os
from typing import Any

import xarray as xr

from xref.references import KIND_NOUNS, ObjectReference, ReferenceArray
from xref.resolving.create import group_reference
from xref.writing import to_hdf5


class DatasetAccessor:
    """Methods of a Dataset of an HDF5 file."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    @property
    def references(self) -> dict[Any, str]:
        """Reference variables by name, with their kind and the sizes of their dimensions."""
        out = {}
        for name, variable in self._dataset.variables.items():
            data = variable._data
            if isinstance(data, ReferenceArray):
                out[name] = f"{KIND_NOUNS[data.kind]}s {dict(variable.sizes)}"
        return out

    def reference(self, path: str = ".") -> ObjectReference:
        """Return a reference to the group of the Dataset, or to an object at a path.

        Parameters
        ----------
        path : str
            Path of a group, dataset or named datatype, relative to the group or absolute.

        Raises
        ------
        TypeError
            If the Dataset was not opened from a group of a file.
        KeyError
            If there is no object at the path.

        Examples
        --------
        >>> ds.h5ref.reference("detector/image").resolve()  # doctest: +SKIP
        """
        return group_reference(self._dataset, path)

    def to_hdf5(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Write the Dataset to an HDF5 file, references included; see `xref.to_hdf5`."""
        return to_hdf5(self._dataset, path, *args, **kwargs)
