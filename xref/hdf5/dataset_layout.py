"""Where the elements of one dataset lie in its file.

In: numbers and messages of the file's metadata. Out: frozen values that plans and readers
use. Nothing here opens a file.

Source: HDF5 File Format Specification 4.0, "The Data Layout Message", "The Data Storage -
Fill Value (Old) Message" and "The Data Storage - Fill Value Message".
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
"""HDF5's undefined address: no bytes are allocated, as for a chunk that was never written."""


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
        row = np.minimum(np.searchsorted(self.number, number), len(self.number) - 1)
        return np.where(self.number[row] == number, row, -1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DatasetLayout:
    """Shape, type and storage of one dataset."""

    shape: tuple[int, ...]  # current extent, elements
    maxshape: tuple[int | None, ...]  # largest extent; None along an axis without a limit
    dtype: np.dtype[Any]  # of decoded values, in the byte order of the file
    chunks: tuple[int, ...] | None  # chunk shape, elements; None if data are not chunked
    offset: int | None  # first byte in the file of contiguous data; None if nothing was written
    pipeline: FilterPipeline  # filters of chunked data
    fill_value: Any  # that the dataset defines, else zero; None if it is not known
    # Bytes that the file holds for the data; 0 for chunked data, whose chunk index tells it
    # (`xref.objects.datasets.stored_nbytes`).
    stored_nbytes: int
    stored_itemsize: int  # bytes of one element as stored
    reference_kind: str  # "object", "region" or "std" for datasets of references, else empty
    # Type of elements that hold references inside a compound, array or sequence.
    elements: Datatype | None
    why_not_direct: str  # why h5py must read the data; empty if xref can read them
    why_not_raw: str  # why h5py must read even undecoded elements; empty if xref can
    virtual: bool = False  # whether the elements lie in other datasets
    # Fill value as stored, of references and of elements that hold them; empty for zeros.
    stored_fill: bytes = b""
    # Whether HDF5 does not give the fill value to elements that were never written.
    fill_never: bool = False
    # Whether the fill value is undefined, and the fill time is another one.
    fill_undefined: bool = False
    has_storage: bool = True  # False if nothing is allocated; found for undefined fill values

    @property
    def is_undefined(self) -> bool:
        """Whether no element has a value: see `unwritten_value`."""
        return self.fill_undefined and not self.has_storage

    @property
    def unwritten_value(self) -> Any:
        """The value of an element that was never written.

        It is the fill value of the dataset, or zero if the dataset defines none. With the fill
        time "never" (``H5D_FILL_TIME_NEVER``) HDF5 leaves such an element as it was in the
        buffer of the reader; here, as in h5py, it is zero. If the fill value is undefined
        (``H5D_FILL_VALUE_UNDEFINED``) and nothing at all was written, HDF5 refuses to read
        (`is_undefined`); beside chunks that were written, it is zero.

        Elements past the extent, which belong to a longer dimension, have the fill value.
        """
        return np.zeros((), dtype=self.dtype)[()] if self.fill_never else self.fill_value

    @property
    def stored(self) -> DatasetLayout:
        """The same dataset with undecoded elements, as opaque values."""
        return replace(
            self,
            dtype=np.dtype(f"V{self.stored_itemsize}"),
            fill_value=self.stored_elements(1)[0],
            elements=None,
            why_not_direct=self.why_not_raw,
        )

    def stored_elements(self, n: int) -> npt.NDArray[np.void]:
        """Return n undecoded elements with the fill value."""
        fill = self.stored_fill or bytes(self.stored_itemsize)
        return np.full(n, np.void(fill), dtype=f"V{self.stored_itemsize}")

    @property
    def text(self) -> str:
        """Character set of variable-length strings, "utf-8" or "ascii"; otherwise empty."""
        metadata: Mapping[str, Any] = self.dtype.metadata or {}
        # h5py marks such dtypes with the type of the strings.
        string_type = metadata.get("vlen")
        return "utf-8" if string_type is str else "ascii" if string_type is bytes else ""

    @property
    def cell(self) -> tuple[int, ...]:
        """Chunk shape; the extent, at least 1 along each axis, if data are not chunked."""
        return self.chunks or tuple(max(n, 1) for n in self.shape)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.cell, strict=True))


_SUBARRAY = "xref:items"


def element_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Wrap an HDF5 array type so that one element of the dataset is one item.

    NumPy turns a subarray dtype into more axes, which plans cannot place. A structured
    dtype of one field has the same bytes and adds no axes; `unfold_subarray` turns it
    into axes after reading.
    """
    return np.dtype([(_SUBARRAY, dtype)]) if dtype.subdtype else dtype


def unfold_subarray(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Turn values of an HDF5 array type into more axes; return other values unchanged."""
    return values[_SUBARRAY] if values.dtype.names == (_SUBARRAY,) else values


def item_dtype(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return the dtype and the added axes that `unfold_subarray` gives for a dtype."""
    if dtype.names == (_SUBARRAY,):
        base = dtype[_SUBARRAY]
        return base.base, base.shape
    return dtype, ()


def check_extent(shape: tuple[int, ...], chunks: tuple[int, ...] | None, where: object) -> None:
    """Raise if elements cannot be numbered in 62 bits, or chunks have an impossible shape."""
    if math.prod(shape) >= 2**62:
        raise UnsupportedError(f"{where} has {math.prod(shape)} elements, too many to number")
    if chunks is not None and (len(chunks) != len(shape) or min(chunks, default=1) < 1):
        raise CorruptFileError(f"{where} of shape {shape} has chunks of shape {chunks}")


def build_chunk_index(
    grid_index: IntArray,
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
    grid_index : numpy.ndarray
        Shape ``(n, ndim)``: index of each chunk in the grid of chunks.
    address, nbytes : numpy.ndarray
        Shape ``(n,)``: byte in the file and bytes as stored.
    filter_mask : numpy.ndarray
        Shape ``(n,)``: bit i is set if filter i was skipped.
    layout : DatasetLayout
        Layout of the dataset.
    file_nbytes : int
        Size of the file.
    where : object
        Label of the dataset in errors; it is turned into text only when one is raised.

    Raises
    ------
    CorruptFileError
        If a chunk lies off the grid or outside the file, or two chunks have one place.
    """
    grid = np.array(layout.grid)
    # When a dataset shrinks, libhdf5 may leave chunks past the extent in the file.
    inside = (grid_index < grid).all(axis=1)
    if (grid_index < 0).any():
        raise CorruptFileError(f"{where} has a chunk that is not on its grid")
    # A chunk that was never written may be listed with the undefined address.
    inside &= address != np.uint64(UNDEFINED_ADDRESS)
    grid_index, filter_mask = grid_index[inside], filter_mask[inside]
    address, nbytes = address[inside], nbytes[inside]
    # Floats, because the sum of damaged numbers may exceed 64 bits.
    end = address.astype(float) + nbytes.astype(float)
    if (end > file_nbytes).any():
        row = int(np.argmax(end))
        raise CorruptFileError(
            f"{where} has a chunk of {nbytes[row]} bytes at {int(address[row]):#x}, past the "
            f"end of the file ({file_nbytes} bytes); the file may be truncated"
        )
    weight = np.ones(len(grid), dtype=np.int64)
    weight[:-1] = np.cumprod(grid[:0:-1])[::-1]
    number = (grid_index * weight).sum(axis=1)
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


_COMPACT = 0  # layout class

_FILL_DEFINED = 0x20  # flag of a fill value message of version 3


def compact_data(
    messages: Iterable[tuple[int, int, bytes]], where: str = "object header"
) -> bytes | None:
    """Return the raw data in the object header of a compact dataset, None of other datasets.

    Parameters
    ----------
    messages : iterable of Message
        Messages of the dataset's object header.
    where : str
        Label that begins each error: the file and the dataset.

    Raises
    ------
    CorruptFileError
        If the layout message contradicts the format.
    UnsupportedError
        If its version is unknown.
    """
    for message_type, _, body in messages:
        if message_type != LAYOUT_MESSAGE:
            continue
        if len(body) < 3:
            raise CorruptFileError(f"{where}: a layout message has {len(body)} bytes")
        version = body[0]
        if not 1 <= version <= 5:
            raise UnsupportedError(f"{where}: a layout message has version {version}")
        # Versions 1 and 2: version 1, dimensionality 1, layout class 1, reserved 5, dimension
        # sizes 4 each, size of the data 4, data. Since version 3: version 1, layout class 1,
        # size of the data 2, data.
        if version < 3:
            if body[2] != _COMPACT:
                return None
            size_at, size = 8 + 4 * body[1], 4
        else:
            if body[1] != _COMPACT:
                return None
            size_at, size = 2, 2
        nbytes = integer(body, size_at, size)
        data = body[size_at + size : size_at + size + nbytes]
        if len(body) < size_at + size or len(data) != nbytes:
            raise CorruptFileError(
                f"{where}: a compact layout message of {len(body)} bytes has {nbytes} bytes "
                "of data"
            )
        return data
    return None


def fill_data(
    messages: Iterable[tuple[int, int, bytes]], where: str = "object header"
) -> bytes | None:
    """Return the fill value of a dataset as stored, None if the user gave none.

    Parameters
    ----------
    messages : iterable of Message
        Messages of the dataset's object header.
    where : str
        Label that begins each error: the file and the dataset.

    Raises
    ------
    CorruptFileError
        If the message contradicts the format.
    UnsupportedError
        If its version is unknown.
    """
    bodies = dict.fromkeys((FILL_MESSAGE, OLD_FILL_MESSAGE), b"")
    bodies |= {m_type: body for m_type, _, body in messages if m_type in bodies}
    # Old message: size 4, value. Versions 1 and 2: version 1, space allocation time 1, fill
    # value write time 1, "fill value defined" 1, size 4, value (in version 2 only if defined).
    # Version 3: version 1, flags 1 (bit 5: size and value follow), size 4, value.
    body = bodies[FILL_MESSAGE]
    if not body:
        body, at = bodies[OLD_FILL_MESSAGE], 0
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
