"""Variables of objects, such as text and sequences, that Dask can divide into chunks.

In: a variable whose lazy data have a dtype with objects. Out: an `ObjectVariable` with the same
data and dtype.

Dask does not know the size of an object, so it refuses chunks of "auto" size. `ObjectVariable`
gives Dask the size of an element in the file, in the two places where chunks are chosen:
`xarray.open_dataset` and ``chunk``.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import api
from xarray.namedarray.core import NamedArray

HEAP_ID_NBYTES = 16
"""Bytes of an element in the file: a length, and a global heap ID."""

_CHOOSES_CHUNKS = getattr(getattr(api, "_chunk_ds", None), "__code__", None)
"""The function of `xarray.open_dataset` that chooses the chunks of each variable.

If xarray has no such function, Dask refuses ``chunks="auto"`` for objects; all else works.
"""


def _sized(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype of the size that an element of a dtype with objects has in the file."""
    n_objects = max(len(dtype.names or ()), 1)
    return np.dtype(f"V{HEAP_ID_NBYTES * n_objects}")


@dataclass(frozen=True, slots=True)
class _Extent:
    """Shape and element size of an array of objects, without the array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=object))


class ObjectVariable(xr.Variable):
    """A variable of objects that are read when they are used.

    It has the dtype and data of an ordinary variable. Only the function of xarray that chooses
    chunks while a file is opened gets an `_Extent` in place of the data. That function uses
    shape, dtype and size alone, asks Dask for chunks, and then calls ``chunk``, which uses the
    data.
    """

    __slots__ = ()

    @classmethod
    def of(cls, variable: xr.Variable) -> ObjectVariable:
        """Return the same variable as one that Dask can divide."""
        data: Any = variable._data
        return cls(variable.dims, data, variable.attrs, variable.encoding, fastpath=True)

    @property
    def _data(self) -> Any:
        data = _stored_data.__get__(self)
        # Neither an argument nor any state tells that xarray is choosing chunks, only the
        # calling function does. No other caller ever sees the dtype of the `_Extent`.
        if sys._getframe(1).f_code is _CHOOSES_CHUNKS:
            return _Extent(data.shape, _sized(data.dtype))
        return data

    @_data.setter
    def _data(self, data: Any) -> None:
        _stored_data.__set__(self, data)

    def to_base_variable(self) -> xr.Variable:
        """Return an `ObjectVariable`; xarray calls this method for coordinates."""
        return self._replace()

    def chunk(self, chunks: Any = {}, *args: Any, **kwargs: Any) -> Any:  # noqa: B006
        """Divide into Dask chunks; "auto" uses the size of elements in the file."""
        by_name = {d: kwargs.pop(str(d)) for d in self.dims if str(d) in kwargs}
        if by_name and isinstance(chunks, Mapping):
            chunks = {**chunks, **by_name}
        import dask.array as da

        chunks = self._without_auto(chunks)
        data: Any = self._data
        if isinstance(data, da.Array):
            # xarray would read the first element, to look for dates, and treat it as a number.
            if isinstance(chunks, Mapping):
                chunks = {self.get_axis_num(d): c for d, c in chunks.items() if d in self.dims}
            return self._replace(data=da.rechunk(data, chunks))  # type: ignore[no-untyped-call]
        return super().chunk(chunks, *args, **kwargs)

    def _without_auto(self, chunks: Any) -> Any:
        """Return chunks with numbers of elements in place of "auto" and sizes in bytes."""
        if isinstance(chunks, Mapping):
            sides: tuple[Any, ...] = tuple(chunks.get(d, -1) for d in self.dims)
        elif isinstance(chunks, tuple | list):
            sides = tuple(chunks)
        else:
            sides = (chunks,) * self.ndim
        if not any(isinstance(side, str) for side in sides):
            return chunks
        from dask.array.core import normalize_chunks

        found = normalize_chunks(  # type: ignore[no-untyped-call]
            sides, self.shape, dtype=_sized(self.dtype), previous_chunks=self.chunks
        )
        by_dim: dict[Hashable, Any] = dict(zip(self.dims, found, strict=True))
        if isinstance(chunks, Mapping):
            return {d: by_dim[d] for d in chunks if d in by_dim}
        return by_dim


_stored_data = vars(NamedArray)["_data"]
"""The slot of a variable that holds its data."""
