"""References of HDF5 1.12 and later (``H5T_STD_REF``) into columns.

In: packed elements, and the heap objects that most of them name. Out: targets, regions, and
the names of files and attributes.

1. An element has the type of the reference. If the target is an object of the same file, the
   element has its address too; everything else is in a global heap object.
2. A heap object has a token, which is the target's address, then (external references) the
   name of another file, then a selection or an attribute's name. Rows are read together with
   NumPy; each distinct name becomes a string once.

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
"""Reference types (H5R_type_t); 0 is an element that was never written."""

_EXTERNAL_FLAG = 1  # the target is in another file

Describe = Callable[[int], str]


def std_itemsize(offset_size: int) -> int:
    """Return the bytes of one stored element: type, flags, size and a global heap ID."""
    return 1 + 1 + 4 + offset_size + 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StdElements(FrozenColumns):
    """n elements as they are stored in a dataset or attribute."""

    type: IntArray  # (n,), NULL, OBJECT, REGION or ATTRIBUTE
    external: BoolArray  # (n,), the target is in another file
    in_heap: BoolArray  # (n,), the rest of the reference is in a heap object
    heap: IntArray  # (n,), global heap collection, bytes from the base address
    index: IntArray  # (n,), heap object index
    nbytes: IntArray  # (n,), size of the heap object
    address: npt.NDArray[np.uint64]  # (n,), target; 0 for references in the heap


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
        If an element is not a reference.
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
    rows = Rows(buffer, width * np.arange(n), np.full(n, width), describe)
    # uint8 reference type, uint8 flags, then either a token (object references to the same
    # file) or uint32 size, collection address (size of offsets), uint32 heap object index.
    # libhdf5 writes the size; the specification leaves it out.
    reference_type, flags = rows.read(0, 1), rows.read(1, 1)
    rows.fail(
        ~np.isin(reference_type, (NULL, OBJECT, REGION, ATTRIBUTE)),
        lambda i: f"has reference type {reference_type[i]}; 2, 3 and 4 are known",
    )
    external = (flags & _EXTERNAL_FLAG) != 0
    reserved = np.flatnonzero((flags & ~_EXTERNAL_FLAG) != 0)
    if len(reserved):
        row = int(reserved[0])
        raise UnsupportedError(f"{describe(row)} has flags {flags[row]:#x}; 0 and 1 are known")
    nbytes = rows.read(2, 4)
    # Addresses from 2**63 on become negative; readers report them as past the file's end.
    heap = rows.read_address(6, offset_size).astype(np.int64)
    index = rows.read(6 + offset_size, 4)
    null = reference_type == NULL
    rows.fail(null & (heap != 0), lambda i: "has data but no reference type")
    inline = (reference_type == OBJECT) & ~external
    address = np.zeros(n, dtype=np.uint64)
    with_token = np.flatnonzero(inline)
    if len(with_token):
        address[with_token], _ = _read_tokens(rows.take(with_token), 2)
    return StdElements(
        type=reference_type,
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
    reference_type: IntArray,
    external: BoolArray,
    describe: Describe,
) -> StdObjects:
    """Decode heap objects of references.

    Parameters
    ----------
    buffer : numpy.ndarray
        1-D, uint8.
    position, nbytes : numpy.ndarray
        Shape ``(n,)``: byte of the buffer where each object's data begin, and their size.
        Pass each object once: its data are copied.
    reference_type, external : numpy.ndarray
        Shape ``(n,)``, the columns of `StdElements`.
    describe : callable
        Names row i in errors.

    Raises
    ------
    CorruptFileError
        If an object is too short, or has contents that the format does not allow.

    Notes
    -----
    HDF5 File Format Specification 4.0, "Reference Encoding (Revised)". Objects may be longer
    than their contents: HDF5 2.0 chooses the size before the encoding of the selection.
    """
    rows = Rows(buffer, position, nbytes, describe)
    address, at = _read_tokens(rows, 0)
    file, filenames = _read_names(rows, at, np.flatnonzero(external), "file")
    attribute, names = _read_names(
        rows, at, np.flatnonzero(reference_type == ATTRIBUTE), "attribute"
    )
    region = np.flatnonzero(reference_type == REGION)
    # uint32 bytes of the selection, uint32 rank of the dataspace, the selection.
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
    """Read tokens (uint8 size, the token); return addresses and the byte after each token."""
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
    """Read names (uint16 length, the name) at byte ``at`` of the rows ``index``.

    Moves ``at`` of these rows to the byte after the name. Returns the index of each row into
    the names, shape ``(n,)``, -1 in rows that are not in ``index``, and the distinct names.
    """
    number = np.full(len(rows), -1, dtype=np.int64)
    names: list[str] = []
    part, begin = rows.take(index), at[index]
    part.need(begin + 2, f"the name of a {what}")
    length = part.read(begin, 2)
    part.need(begin + 2 + length, f"the name of its {what}")
    part.fail(length == 0, lambda _: f"has an empty name of a {what}")
    for n in np.unique(length).tolist():
        same = np.flatnonzero(length == n)
        letters = sliding_window_view(rows.buffer, n)[(part.position + begin + 2)[same]]
        zero = (letters == 0).any(axis=1)
        part.take(same).fail(zero, lambda _: f"has a zero byte in the name of its {what}")
        distinct, inverse = np.unique(letters.view(f"S{n}")[:, 0], return_inverse=True)
        number[index[same]] = len(names) + inverse
        names += [name.decode("utf-8", "surrogateescape") for name in distinct.tolist()]
    at[index] += 2 + length
    return number, tuple(names)
