"""References of HDF5 1.12 and later (``H5T_STD_REF``) into columns.

In: packed elements, and the heap objects that most of them name. Out: targets,
regions, and the names of files and attributes.

1. An element says what it refers to. An object of its own file stands in the element
   itself; anything else is in a global heap object that the element names.
2. A heap object holds a token, which is the target's address, then the name of another
   file, then a selection or an attribute's name. Rows are read together with NumPy;
   each distinct name becomes a string once.

Source: HDF5 File Format Specification 4.0, "Reference Encoding (Revised)".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from xref.arrays import BoolArray, FrozenColumns, IntArray
from xref.errors import CorruptFileError, UnsupportedError
from xref.hdf5.selection_decoding import Bytes, Rows, decode_serialized
from xref.selections import SelectionTable

NULL, OBJECT, REGION, ATTRIBUTE = 0, 2, 3, 4
"""Reference types as HDF5 numbers them; 0 fills elements that were never written."""

_EXTERNAL_FLAG = 1

Describe = Callable[[int], str]


def std_itemsize(offset_size: int) -> int:
    """Return the bytes of one stored element: type, flags, size and a global heap ID."""
    return 1 + 1 + 4 + offset_size + 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StdElements(FrozenColumns):
    """n elements as they are stored in a dataset or attribute."""

    type: npt.NDArray[np.int64]  # (n,), NULL, OBJECT, REGION or ATTRIBUTE
    external: BoolArray  # (n,), the target is in another file
    in_heap: BoolArray  # (n,), the next three columns say where
    heap: IntArray  # (n,), global heap collection, bytes from the base address
    index: IntArray  # (n,), heap object number
    nbytes: IntArray  # (n,), of that object
    address: npt.NDArray[np.uint64]  # (n,), target where it is not in the heap, else 0


def split_std_references(
    raw: npt.NDArray[np.uint8], *, offset_size: int, describe: Describe
) -> StdElements:
    """Split packed elements into their fields.

    Parameters
    ----------
    raw : numpy.ndarray
        Shape ``(n, std_itemsize(offset_size))``, uint8.
    offset_size : {2, 4, 8}
        Size of offsets from the superblock, in bytes.
    describe : callable
        Names element i in errors.

    Raises
    ------
    CorruptFileError
        If an element is no reference.
    UnsupportedError
        If it has flags that the format does not define.

    Notes
    -----
    HDF5 File Format Specification 4.0, "Reference Encoding (Revised)".
    """
    width = std_itemsize(offset_size)
    if raw.size % width:
        raise CorruptFileError(f"{raw.size} bytes of references, not a multiple of {width}")
    n = raw.size // width
    buffer = np.ascontiguousarray(raw).reshape(-1)
    at = width * np.arange(n)
    rows = Rows(buffer, at, np.full(n, width), describe)
    kind, flags = rows.read(0, 1), rows.read(1, 1)
    rows.fail(
        ~np.isin(kind, (NULL, OBJECT, REGION, ATTRIBUTE)),
        lambda i: f"has reference type {kind[i]}; 2, 3 and 4 are known",
    )
    external = (flags & _EXTERNAL_FLAG) != 0
    reserved = np.flatnonzero((flags & ~_EXTERNAL_FLAG) != 0)
    if len(reserved):
        row = int(reserved[0])
        raise UnsupportedError(f"{describe(row)} has flags {flags[row]:#x}; 0 and 1 are known")
    nbytes = rows.read(2, 4)
    # Addresses past 2**63 become negative here; they are refused as past the file's end.
    heap = rows.read_address(6, offset_size).astype(np.int64)
    index = rows.read(6 + offset_size, 4)
    null = kind == NULL
    rows.fail(null & (heap != 0), lambda i: "has data but no reference type")
    inline = (kind == OBJECT) & ~external
    address = np.zeros(n, dtype=np.uint64)
    live = np.flatnonzero(inline)
    if len(live):
        address[live], _ = _read_tokens(rows.take(live), 2)
    return StdElements(
        type=kind,
        external=external & ~null,
        in_heap=~(inline | null),
        heap=heap,
        index=index,
        nbytes=nbytes,
        address=address,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StdObjects(FrozenColumns):
    """What n heap objects of references say."""

    address: npt.NDArray[np.uint64]  # (n,), target, bytes from its file's base address
    file: IntArray  # (n,), row of `filenames`; -1 for the file of the reference
    filenames: tuple[str, ...]
    attribute: IntArray  # (n,), row of `names`; -1 where it is no attribute
    names: tuple[str, ...]
    region: IntArray  # (r,), the rows that are regions
    regions: SelectionTable  # r rows

    def __len__(self) -> int:
        return len(self.address)


def decode_std_objects(
    buffer: Bytes,
    position: IntArray,
    nbytes: IntArray,
    kind: IntArray,
    external: BoolArray,
    describe: Describe,
) -> StdObjects:
    """Decode heap objects of references.

    Parameters
    ----------
    buffer : numpy.ndarray
        1-D, uint8.
    position, nbytes : numpy.ndarray
        Shape ``(n,)``: where each object's data begin, and how many bytes they are.
        Give each object once: its data are copied.
    kind, external : numpy.ndarray
        Shape ``(n,)``, the columns of `StdElements`.
    describe : callable
        Names row i in errors.

    Raises
    ------
    CorruptFileError
        If an object is too short for what it should hold, or holds something else.

    Notes
    -----
    HDF5 File Format Specification 4.0, "Reference Encoding (Revised)". Objects may
    be longer than their contents: HDF5 2.0 sizes them before it knows how it encodes
    the selection.
    """
    rows = Rows(buffer, position, nbytes, describe)
    address, at = _read_tokens(rows, 0)
    file, filenames = _read_names(rows, at, np.flatnonzero(external), "file")
    attribute, names = _read_names(rows, at, np.flatnonzero(kind == ATTRIBUTE), "attribute")
    region = np.flatnonzero(kind == REGION)
    part, at = rows.take(region), at[region]
    part.need(at + 8, "the size and rank of a selection")
    size, rank = part.read(at, 4), part.read(at + 4, 4)
    part.need(at + 8 + size, "its selection")
    regions = decode_serialized(buffer, part.position + at + 8, size, part.describe)
    part.fail(
        (regions.rank != 0) & (regions.rank != rank),
        lambda i: f"selects in {regions.rank[i]} dimensions of a dataspace of {rank[i]}",
    )
    return StdObjects(
        address=address,
        file=file,
        filenames=filenames,
        attribute=attribute,
        names=names,
        region=region,
        regions=regions,
    )


def _read_tokens(rows: Rows, at: int) -> tuple[npt.NDArray[np.uint64], IntArray]:
    """Read a token's size and the token; return it and the byte behind it."""
    rows.need(at + 1, "a token")
    size = rows.read(at, 1)
    rows.fail(~np.isin(size, (2, 4, 8)), lambda i: f"has a token of {size[i]} bytes")
    rows.need(at + 1 + size, "its token")
    address = np.zeros(len(rows), dtype=np.uint64)
    for n in np.unique(size).tolist():
        index = np.flatnonzero(size == n)
        address[index] = rows.take(index).read_address(at + 1, n)
    return address, at + 1 + size


def _read_names(
    rows: Rows, at: IntArray, index: npt.NDArray[np.intp], what: str
) -> tuple[IntArray, tuple[str, ...]]:
    """Read the names that stand at ``at`` in some rows, and move ``at`` behind them.

    Returns
    -------
    number : numpy.ndarray
        Shape ``(n,)``: row of the names, -1 in rows that are not in ``index``.
    names : tuple of str
        Each once.
    """
    number = np.full(len(rows), -1, dtype=np.int64)
    names: list[str] = []
    part, begin = rows.take(index), at[index]
    part.need(begin + 2, f"the name of a {what}")
    length = part.read(begin, 2)
    part.need(begin + 2 + length, f"the name of its {what}")
    part.fail(length == 0, lambda _: f"has an empty name of a {what}")
    for n in np.unique(length).tolist():
        of = np.flatnonzero(length == n)
        letters = sliding_window_view(rows.buffer, n)[(part.position + begin + 2)[of]]
        zero = (letters == 0).any(axis=1)
        part.take(of).fail(zero, lambda _: f"has a zero byte in the name of its {what}")
        found, inverse = np.unique(letters.view(f"S{n}")[:, 0], return_inverse=True)
        number[index[of]] = len(names) + inverse
        names += [name.decode("utf-8", "surrogateescape") for name in found.tolist()]
    at[index] += 2 + length
    return number, tuple(names)
