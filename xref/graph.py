"""Lazy variables into dask graphs.

In: a variable whose data are a lazy array of `xref.lazy`, the chunks wanted.
Out: the same variable over a dask array: one task a block and one that holds the
lazy array, which is the place of the references, not their contents.
"""

from __future__ import annotations

from typing import Any

import dask.config
import xarray as xr
from dask.base import tokenize
from dask.utils import parse_bytes

from xref.references import ReferenceArray


def auto_chunk_nbytes() -> int:
    """Return dask's chunk size (``array.chunk-size``), in bytes."""
    return int(parse_bytes(dask.config.get("array.chunk-size")))


def chunk_variable(
    variable: xr.Variable,
    chunks: Any,
    references: ReferenceArray,
    what: str,
    function: Any = None,
) -> xr.Variable:
    """Cut a lazy variable into blocks.

    Task names begin with ``xref-`` and what is done, and are the same for the
    same references, options and chunks.
    """
    token = tokenize(
        references, str(chunks), variable.dims, variable.shape, str(variable.dtype), function
    )
    if variable.dtype.hasobject:
        chunks = _objects(chunks)
    return variable.chunk(chunks, name=f"xref-{what}-{token}", inline_array=False)


def _objects(chunks: Any) -> Any:
    """Dask cannot size objects: "auto" becomes one chunk along each axis."""
    if chunks == "auto":
        return -1
    return {dim: -1 if chunk == "auto" else chunk for dim, chunk in chunks.items()}
