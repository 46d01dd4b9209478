"""Variables of objects, such as text and sequences, that dask can cut into chunks.

In: a lazy array of objects. Out: an `ObjectVariable` over it. With ``chunks="auto"``
xarray asks the data of a variable for their type, and dask refuses to size objects;
until they are read, the data tell a type of the size that an object has in the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.core import indexing

HEAP_ID_NBYTES = 16
"""Bytes of an element in the file: a length and a place in the heap."""


def _sized(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a type with a size that stands for one of objects."""
    kept: Any = {"objects": dtype}
    return np.dtype(f"V{HEAP_ID_NBYTES * max(len(dtype.names or ()), 1)}", metadata=kept)


def _objects(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """Return the type of objects that a type stands for; None if it is no such type."""
    metadata: Any = dtype.metadata or {}
    found: np.dtype[Any] | None = metadata.get("objects")
    return found


class _SizedObjects(indexing.ExplicitlyIndexedNDArrayMixin):
    """A lazy array of objects under another type."""

    __slots__ = ("_dtype", "array")

    def __init__(self, array: Any, dtype: np.dtype[Any]) -> None:
        self.array = array
        self._dtype = dtype

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    def get_duck_array(self) -> Any:
        return self.array.get_duck_array()

    async def async_get_duck_array(self) -> Any:
        return await self.array.async_get_duck_array()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        del copy  # reading makes new objects
        return np.asarray(self.get_duck_array(), dtype=dtype)

    def _wrap(self, array: Any) -> Any:
        return type(self)(array, self.dtype)

    def __getitem__(self, indexer: Any) -> Any:
        return self._wrap(self.array[indexer])

    def _oindex_get(self, indexer: Any) -> Any:
        return self._wrap(self.array.oindex[indexer])

    def _vindex_get(self, indexer: Any) -> Any:
        return self._wrap(self.array.vindex[indexer])

    def transpose(self, order: Any) -> Any:
        return self._wrap(self.array.transpose(order))


class ObjectVariable(xr.Variable):
    """A variable of objects that are read when they are asked for."""

    __slots__ = ()

    @classmethod
    def of(cls, variable: xr.Variable) -> ObjectVariable:
        """Return the same variable with data that dask can size."""
        data = _SizedObjects(variable._data, _sized(variable.dtype))
        return cls(variable.dims, data, variable.attrs, variable.encoding, fastpath=True)

    def to_base_variable(self) -> xr.Variable:
        """Return the same kind of variable: xarray calls this for coordinates."""
        return self._replace()

    def to_index_variable(self) -> Any:
        """Return an index of the objects."""
        return self._plain().to_index_variable()

    def _plain(self) -> xr.Variable:
        """Return a variable whose data tell the type of objects."""
        dtype = _objects(self._data.dtype)
        data = self._data if dtype is None else _SizedObjects(self._data, dtype)
        return xr.Variable(self.dims, data, self.attrs, self.encoding, fastpath=True)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        dtype: np.dtype[Any] = self._data.dtype
        return _objects(dtype) or dtype

    def chunk(self, chunks: Any = {}, *args: Any, **kwargs: Any) -> Any:  # noqa: B006
        """Cut into dask chunks of objects."""
        return self._plain().chunk(chunks, *args, **kwargs)
