"""Where the elements of one dataset lie in its file.

In: numbers from the file's metadata. Out: frozen values that plans and readers
use; nothing here opens a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays import FrozenColumns, IntArray
from xref.errors import CorruptFileError, UnsupportedError
from xref.hdf5.datatype import Datatype
from xref.hdf5.filters import FilterPipeline
from xref.hdf5.metadata_reader import integer
from xref.hdf5.object_header import FILL_MESSAGE, LAYOUT_MESSAGE, OLD_FILL_MESSAGE

UNDEFINED_ADDRESS = 2**64 - 1
"""HDF5's address of what has none, such as a chunk that was never written."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkIndex(FrozenColumns):
    """Each allocated chunk of one dataset; chunks are numbered in C order of their grid."""

    number: IntArray  # (n,), ascending
    address: IntArray  # (n,), byte in the file
    nbytes: IntArray  # (n,), as stored
    filter_mask: npt.NDArray[np.uint32]  # (n,), bit i set: filter i was skipped

    def find(self, number: IntArray) -> IntArray:
        """Return the row of each chunk number, -1 where the chunk was never written."""
        if not len(self.number):
            return np.full(len(number), -1)
        at = np.minimum(np.searchsorted(self.number, number), len(self.number) - 1)
        return np.where(self.number[at] == number, at, -1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DatasetLayout:
    """Shape, type and storage of one dataset.

    Attributes
    ----------
    shape : tuple of int
        Current extent, elements.
    dtype : numpy.dtype
        Of the values as they come out, byte order as stored.
    chunks : tuple of int or None
        Chunk shape, elements; None when the dataset is not chunked.
    offset : int or None
        First byte in the file of contiguous data; None when there are none yet.
    pipeline : FilterPipeline
        Filters of chunked data.
    fill_value : object
        Value of elements that were never written.
    stored_nbytes : int
        Bytes that the file holds for the data; 0 where they are chunked, as the index of
        chunks tells it (`xref.objects.datasets.stored_nbytes`).
    stored_itemsize : int
        Bytes of one element as stored.
    maxshape : tuple of (int or None)
        Largest extent; None along an axis without a limit.
    reference_kind : str
        "object", "region" or "std" for datasets of references, else empty.
    elements : Datatype or None
        Type of elements that hold references among other things.
    stored_fill : bytes
        Of references and of such elements: the fill value as stored; empty for zeros.
    indirect : str
        Why the data have to be read through h5py; empty when they need not.
    stored_indirect : str
        Why not even the bytes of elements can be read directly.
    virtual : bool
        Whether the elements are those of other datasets.
    """

    shape: tuple[int, ...]
    maxshape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] | None
    offset: int | None
    pipeline: FilterPipeline
    fill_value: Any
    stored_nbytes: int
    stored_itemsize: int
    reference_kind: str
    elements: Datatype | None
    why_not_direct: str
    why_not_raw: str
    virtual: bool = False
    stored_fill: bytes = b""

    @property
    def stored(self) -> DatasetLayout:
        """The same dataset with its elements as they are stored."""
        return replace(
            self,
            dtype=np.dtype(f"V{self.stored_itemsize}"),
            fill_value=self.stored_elements(1)[0],
            elements=None,
            why_not_direct=self.why_not_raw,
        )

    def stored_elements(self, n: int) -> npt.NDArray[np.void]:
        """Return n elements as they are stored where nothing was written."""
        fill = self.stored_fill or bytes(self.stored_itemsize)
        return np.full(n, np.void(fill), dtype=f"V{self.stored_itemsize}")

    @property
    def text(self) -> str:
        """Character set of text of variable length, "utf-8" or "ascii"; else empty."""
        metadata: Mapping[str, Any] = self.dtype.metadata or {}
        kind = metadata.get("vlen")
        return "utf-8" if kind is str else "ascii" if kind is bytes else ""

    @property
    def cell(self) -> tuple[int, ...]:
        """Chunk shape; the whole extent where data are not chunked."""
        return self.chunks or tuple(max(n, 1) for n in self.shape)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.cell, strict=True))


_ITEMS = "xref:items"


def element_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Wrap an HDF5 array type so that one element of the dataset is one item.

    NumPy unfolds a subarray dtype into more axes, which plans cannot place; a
    structured dtype of one field has the same bytes and stays whole. `items`
    unfolds it when all is read.
    """
    return np.dtype([(_ITEMS, dtype)]) if dtype.subdtype else dtype


def items(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Unfold values of an HDF5 array type into more axes; others pass as they are."""
    return values[_ITEMS] if values.dtype.names == (_ITEMS,) else values


def item_dtype(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return base dtype and added axes of what `items` gives for a dtype."""
    if dtype.names == (_ITEMS,):
        base = dtype[_ITEMS]
        return base.base, base.shape
    return dtype, ()


def check_extent(shape: tuple[int, ...], chunks: tuple[int, ...] | None, where: object) -> None:
    """Refuse extents whose elements or chunks cannot be numbered in 62 bits."""
    if math.prod(shape) >= 2**62:
        raise UnsupportedError(f"{where} has {math.prod(shape)} elements, too many to number")
    if chunks is not None and (len(chunks) != len(shape) or min(chunks, default=1) < 1):
        raise CorruptFileError(f"{where} of shape {shape} has chunks of shape {chunks}")


def build_chunk_index(
    cell: IntArray,
    address: npt.NDArray[np.uint64],
    nbytes: npt.NDArray[np.uint64],
    filter_mask: npt.NDArray[np.uint32],
    *,
    layout: DatasetLayout,
    file_nbytes: int,
    where: object,
) -> ChunkIndex:
    """Check and sort the chunks that a dataset's index lists.

    Parameters
    ----------
    cell : numpy.ndarray
        Shape ``(n, ndim)``: place of each chunk in the grid.
    address, nbytes : numpy.ndarray
        Shape ``(n,)``: byte in the file and bytes as stored.
    filter_mask : numpy.ndarray
        Shape ``(n,)``.
    layout : DatasetLayout
        Of the dataset.
    file_nbytes : int
        Size of the file.
    where : object
        Names the dataset in errors, as text; it is asked for only there.

    Raises
    ------
    CorruptFileError
        If a chunk lies off the grid or outside the file, or stands twice.
    """
    grid = np.array(layout.grid)
    # Chunks past the extent stay in the file when a dataset shrinks: not an error.
    inside = (cell < grid).all(axis=1)
    if (cell < 0).any():
        raise CorruptFileError(f"{where} has a chunk that is not on its grid")
    # A missing chunk may be listed with an undefined address.
    inside &= address != np.uint64(UNDEFINED_ADDRESS)
    cell, address, nbytes = cell[inside], address[inside], nbytes[inside]
    filter_mask = filter_mask[inside]
    end = address.astype(float) + nbytes.astype(float)
    if (end > file_nbytes).any():
        row = int(np.argmax(end))
        raise CorruptFileError(
            f"{where} has a chunk of {nbytes[row]} bytes at {int(address[row]):#x}, past the "
            f"end of the file ({file_nbytes} bytes); the file may be truncated"
        )
    weight = np.ones(len(grid), dtype=np.int64)
    weight[:-1] = np.cumprod(grid[:0:-1])[::-1]
    number = (cell * weight).sum(axis=1)
    order = np.argsort(number, kind="stable")
    number = number[order]
    if (number[1:] == number[:-1]).any():
        raise CorruptFileError(f"{where} has two chunks at one place of its grid")
    return ChunkIndex(
        number=number,
        address=address[order].astype(np.int64),
        nbytes=nbytes[order].astype(np.int64),
        filter_mask=filter_mask[order],
    )


_COMPACT = 0


_FILL_DEFINED = 0x20


def compact_data(
    messages: Iterable[tuple[int, int, bytes]], where: str = "object header"
) -> bytes | None:
    """Return the raw data that a compact dataset keeps in its object header.

    Parameters
    ----------
    messages : iterable of Message
        Messages of the dataset's object header.
    where : str
        Begins each error: the file and the dataset.

    Returns
    -------
    bytes or None
        None where the layout is not compact, or there is none.

    Raises
    ------
    CorruptFileError
        If the layout message contradicts the format.
    UnsupportedError
        If its version is unknown.
    """
    for kind, _, body in messages:
        if kind != LAYOUT_MESSAGE:
            continue
        if len(body) < 3:
            raise CorruptFileError(f"{where}: a layout message has {len(body)} bytes")
        version = body[0]
        if not 1 <= version <= 5:
            raise UnsupportedError(f"{where}: a layout message has version {version}")
        if version < 3:
            if body[2] != _COMPACT:
                return None
            at, size = 8 + 4 * body[1], 4
        else:
            if body[1] != _COMPACT:
                return None
            at, size = 2, 2
        nbytes = integer(body, at, size)
        data = body[at + size : at + size + nbytes]
        if len(body) < at + size or len(data) != nbytes:
            raise CorruptFileError(
                f"{where}: a compact layout message of {len(body)} bytes has {nbytes} bytes "
                "of data"
            )
        return data
    return None


def fill_data(
    messages: Iterable[tuple[int, int, bytes]], where: str = "object header"
) -> bytes | None:
    """Return the fill value of a dataset as it is stored.

    Parameters
    ----------
    messages : iterable of Message
        Messages of the dataset's object header.
    where : str
        Begins each error: the file and the dataset.

    Returns
    -------
    bytes or None
        None where there is none of the user's.

    Raises
    ------
    CorruptFileError
        If the message contradicts the format.
    UnsupportedError
        If its version is unknown.

    Notes
    -----
    HDF5 File Format Specification 4.0, "The Data Storage - Fill Value (Old) Message"
    and "The Data Storage - Fill Value Message".
    """
    found = dict.fromkeys((FILL_MESSAGE, OLD_FILL_MESSAGE), b"")
    found |= {kind: body for kind, _, body in messages if kind in found}
    body = found[FILL_MESSAGE]
    if not body:
        body, at = found[OLD_FILL_MESSAGE], 0
        if not body:
            return None
    elif body[0] == 3:
        if len(body) < 2 or not body[1] & _FILL_DEFINED:
            return None
        at = 2
    elif body[0] in (1, 2):
        if body[0] == 2 and not body[3:4] > b"\0":
            return None
        at = 4
    else:
        raise UnsupportedError(f"{where}: a fill value message has version {body[0]}")
    nbytes = integer(body, at, 4)
    if len(body) < at + 4 + nbytes:
        raise CorruptFileError(
            f"{where}: a fill value message of {len(body)} bytes has a value of {nbytes} bytes"
        )
    return body[at + 4 : at + 4 + nbytes] or None
