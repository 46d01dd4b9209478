"""Lazy variables into dask graphs.

In: a variable whose data are a lazy array of `xref.lazy`, the chunks wanted.
Out: the same variable over a dask array: one task a block and one that holds the
lazy array, which is the place of the references, not their contents.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import dask.config
import xarray as xr
from dask.base import tokenize
from dask.utils import parse_bytes

from xref.lazy import LazyArray


def auto_chunk_nbytes() -> int:
    """Return dask's chunk size (``array.chunk-size``), in bytes."""
    return int(parse_bytes(dask.config.get("array.chunk-size")))


def check_chunks(chunks: Any, dims: Sequence[Hashable]) -> None:
    """Refuse chunks that are no way to cut these dimensions.

    Raises
    ------
    ValueError
        Unless they are None, "auto", an int or a dict by dimension.
    """
    if chunks is None or (isinstance(chunks, str) and chunks == "auto"):
        return
    if isinstance(chunks, dict):
        unknown = [d for d in chunks if d not in dims]
        if unknown:
            raise ValueError(
                f"chunks names dimensions {unknown}; there are {[str(d) for d in dims]}"
            )
        for chunk in chunks.values():
            if isinstance(chunk, int):
                check_chunks(chunk, dims)
    elif not isinstance(chunks, int) or isinstance(chunks, bool):
        raise ValueError(f"chunks is {chunks!r}; None, 'auto', an int or a dict is needed")
    elif chunks < -1 or chunks == 0:
        raise ValueError(f"chunks is {chunks}; a positive number or -1 (one block) is needed")


def chunk_variable(
    variable: xr.Variable, array: LazyArray, chunks: Any, what: str
) -> xr.Variable:
    """Cut a lazy variable into blocks.

    Task names begin with ``xref-`` and what is done. They are the same when, and
    only when, array, decoding and chunks are.

    Parameters
    ----------
    variable : xarray.Variable
        Over ``array``, decoded or not.
    array : LazyArray
        What the tasks hold.
    chunks : dict
        By dimension.
    what : str
        Part of the task names.
    """
    decoding = str(variable.attrs), str(variable.encoding), str(variable.dtype)
    token = tokenize(array, str(chunks), variable.dims, decoding)
    if variable.dtype.hasobject:
        chunks = _objects(chunks)
    return variable.chunk(chunks, name=f"xref-{what}-{token}", inline_array=False)


def _objects(chunks: dict[Hashable, Any]) -> dict[Hashable, Any]:
    """Dask cannot size objects: "auto" becomes one chunk along each axis."""
    return {dim: -1 if chunk == "auto" else chunk for dim, chunk in chunks.items()}
