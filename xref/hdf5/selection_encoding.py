"""Selections as columns into the bytes that HDF5 stores in a global heap.

In: addresses of targets and a `SelectionTable`. Out: the data of one heap object a row,
end to end in one buffer. The opposite of `xref.hdf5.selection_decoding`.

Rows are sorted into groups of one form; each group is written with a few NumPy stores.
Boxes, and lists of points and of blocks, have the form that HDF5 of any age reads, with
numbers of 32 bits (version 1). Regular hyperslabs of several blocks are four numbers an
axis (version 2, HDF5 1.10 and later): a list of their blocks is long, and slow to read.
Lists with numbers past 32 bits have version 2 or 3.

Source: HDF5 File Format Specification 4.0, "Reference Encoding (Backward
Compatibility)" and "Dataspace Encoding".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xref.arrays import FrozenColumns, IntArray, ragged_ranges, ragged_take, row_offsets
from xref.hdf5.selection_decoding import ALL, HYPERSLAB, NONE, POINTS
from xref.selections import UNLIMITED, SelectionKind, SelectionTable

_LARGEST = 2**32 - 1
_ADDRESS_WORDS, _HEAD_WORDS = 2, 6  # of 4 bytes; a head is kind, version, 0, length, ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeapData(FrozenColumns):
    """The data of n heap objects."""

    buffer: npt.NDArray[np.uint8]  # 1-D
    position: IntArray  # (n,), where in the buffer each begins
    nbytes: IntArray  # (n,)

    def __len__(self) -> int:
        return len(self.position)


def encode_regions(address: npt.NDArray[np.uint64], regions: SelectionTable) -> HeapData:
    """Encode references to regions, one heap object a row.

    Parameters
    ----------
    address : numpy.ndarray
        Shape ``(n,)``: the object header of each target, bytes from the base address.
    regions : SelectionTable
        n rows, none of them null. A row that stands for a whole object selects all.

    Returns
    -------
    HeapData
        n rows.
    """
    n = len(address)
    position, nbytes = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    parts, n_before = [], 0
    for rows, part in _group_rows(regions):
        buffer, cut = _encode_group(address[rows], regions.take(rows), part)
        position[rows], nbytes[rows] = cut[:-1] + n_before, np.diff(cut)
        parts.append(buffer)
        n_before += len(buffer)
    buffer = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint8)
    return HeapData(buffer=buffer, position=position, nbytes=nbytes)


_WHOLE, _EMPTY, _BOX, _LIST, _POINTS, _REGULAR, _LONG_LIST, _LONG_POINTS = range(8)


def _group_rows(regions: SelectionTable) -> list[tuple[IntArray, int]]:
    """Sort rows by the form that they are written in, and by rank."""
    form = np.full(len(regions), _WHOLE)
    kind = regions.kind
    form[kind == SelectionKind.NONE] = _EMPTY
    is_slab = kind == SelectionKind.HYPERSLAB
    if is_slab.any():
        form[is_slab] = _slab_forms(regions, is_slab)
    _, stop = regions.bounds()
    long = (stop > _LARGEST).any(axis=1) | (regions.size > _LARGEST)
    for listed, short_form, long_form in (
        (SelectionKind.BLOCKS, _LIST, _LONG_LIST),
        (SelectionKind.POINTS, _POINTS, _LONG_POINTS),
    ):
        form[kind == listed] = short_form
        form[(kind == listed) & long] = long_form
    key = form * 64 + regions.rank
    return [(np.flatnonzero(key == k), int(k) // 64) for k in np.unique(key).tolist()]


def _slab_forms(regions: SelectionTable, rows: npt.NDArray[np.bool_]) -> IntArray:
    """Return the form of each hyperslab."""
    start, stride, count, block = (
        c[rows] for c in (regions.start, regions.stride, regions.count, regions.block)
    )
    unlimited = ((count == UNLIMITED) | (block == UNLIMITED)).any(axis=1)
    empty = ((count == 0) | (block == 0)).any(axis=1)
    end = start + (count - 1) * stride + block
    short = ~unlimited & (end <= _LARGEST).all(axis=1)
    form = np.full(len(start), _REGULAR)
    form[short & (count == 1).all(axis=1)] = _BOX
    form[empty] = _EMPTY
    return form


def _encode_group(
    address: npt.NDArray[np.uint64], regions: SelectionTable, form: int
) -> tuple[npt.NDArray[np.uint8], IntArray]:
    """Encode rows of one form and rank; return bytes, and where each row is cut."""
    rank = int(regions.rank[0])
    n = len(regions)
    match form:
        case 0 | 1:  # everything, nothing
            none = np.zeros(n, dtype=np.int64)
            kind = ALL if form == _WHOLE else NONE
            return _encode_words(address, kind, 0, none, np.zeros(0, dtype=np.int64))
        case 2:  # a box
            low, high = regions.start[:, :rank], regions.start[:, :rank]
            high = high + regions.block[:, :rank] - 1
            numbers = np.concatenate([low, high], axis=1)
            return _encode_words(
                address, HYPERSLAB, rank, np.ones(n, dtype=np.int64), numbers.reshape(-1)
            )
        case 3:  # blocks
            low = ragged_take(regions.block_start, regions.first, regions.size)[:, :rank]
            high = ragged_take(regions.block_stop, regions.first, regions.size)[:, :rank]
            numbers = np.concatenate([low, high - 1], axis=1)
            return _encode_words(address, HYPERSLAB, rank, regions.size, numbers.reshape(-1))
        case 4:  # points
            points = ragged_take(regions.points, regions.first, regions.size)[:, :rank]
            return _encode_words(address, POINTS, rank, regions.size, points.reshape(-1))
        case 5:
            return _encode_regular(address, regions, rank)
    rows = [_encode_long(address[i], regions, i, rank, form) for i in range(n)]
    cut = row_offsets(np.array([len(row) for row in rows], dtype=np.int64))
    return np.frombuffer(b"".join(rows), dtype=np.uint8), cut


def _encode_words(
    address: npt.NDArray[np.uint64], kind: int, rank: int, counts: IntArray, numbers: IntArray
) -> tuple[npt.NDArray[np.uint8], IntArray]:
    """Encode selections of version 1, all of which are words of 32 bits.

    Parameters
    ----------
    address : numpy.ndarray
        Shape ``(n,)``.
    kind : int
        Selection type.
    rank : int
        0 for selections without coordinates.
    counts : numpy.ndarray
        Shape ``(n,)``: points or blocks of each.
    numbers : numpy.ndarray
        1-D: the coordinates of all, end to end.
    """
    n = len(address)
    has_list = kind in (POINTS, HYPERSLAB)
    head = _ADDRESS_WORDS + (_HEAD_WORDS if has_list else _HEAD_WORDS - 2)
    width = rank * (2 if kind == HYPERSLAB else 1)
    cut = row_offsets(head + counts * width)
    words = np.zeros(int(cut[-1]), dtype="<u4")
    at = cut[:-1]
    words[at], words[at + 1] = address & np.uint64(_LARGEST), address >> np.uint64(32)
    at = at + _ADDRESS_WORDS
    words[at], words[at + 1] = kind, 1
    if has_list:
        words[at + 3] = 8 + 4 * counts * width  # what follows: rank, number, coordinates
        words[at + 4], words[at + 5] = rank, counts
    if len(counts) and (counts == counts[0]).all():
        words.reshape(n, -1)[:, head:] = numbers.reshape(n, -1)
    else:
        words[ragged_ranges(cut[:-1] + head, counts * width)] = numbers
    return words.view(np.uint8), 4 * cut


def _encode_regular(
    address: npt.NDArray[np.uint64], regions: SelectionTable, rank: int
) -> tuple[npt.NDArray[np.uint8], IntArray]:
    """Encode start, stride, count and block of each axis (version 2)."""
    row = np.dtype(
        [
            ("address", "<u8"),
            ("kind", "<u4"),
            ("version", "<u4"),
            ("flags", "u1"),
            ("length", "<u4"),
            ("rank", "<u4"),
            ("numbers", "<u8", (rank, 4)),
        ]
    )
    out = np.zeros(len(regions), dtype=row)
    out["address"], out["kind"], out["version"] = address, HYPERSLAB, 2
    out["flags"], out["length"], out["rank"] = 1, 4 + 32 * rank, rank
    for k, name in enumerate(("start", "stride", "count", "block")):
        # `UNLIMITED`, -1, becomes all ones: HDF5's H5S_UNLIMITED.
        out["numbers"][:, :, k] = getattr(regions, name)[:, :rank].astype(np.uint64)
    cut = row.itemsize * np.arange(len(regions) + 1, dtype=np.int64)
    return out.view(np.uint8), cut


def _encode_long(
    address: np.uint64, regions: SelectionTable, row: int, rank: int, form: int
) -> bytes:
    """Encode a list with numbers past 32 bits."""
    rows = regions.list_rows(row)
    if form == _LONG_POINTS:
        kind, version, flags = POINTS, 2, b""
        coordinates = regions.points[rows, :rank]
    else:
        kind, version, flags = HYPERSLAB, 3, b"\0"
        low, high = regions.block_start[rows, :rank], regions.block_stop[rows, :rank] - 1
        coordinates = np.concatenate([low, high], axis=1)
    head = int(address).to_bytes(8, "little")
    head += kind.to_bytes(4, "little") + version.to_bytes(4, "little") + flags
    head += b"\x08" + rank.to_bytes(4, "little") + len(coordinates).to_bytes(8, "little")
    return head + coordinates.astype("<u8").tobytes()
