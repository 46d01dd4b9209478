"""Selections as columns into the bytes of global heap objects.

In: addresses of targets and a `SelectionTable`. Out: the data of one heap object for each row,
one after the other in one buffer. The inverse of `xref.hdf5.selection_decoding`.

Rows are sorted into groups of one encoding; each group is written with a few NumPy stores.
Boxes, and lists of points and of blocks, have version 1, with numbers of 32 bits: every HDF5
release reads it. Regular hyperslabs of several blocks have version 2, four numbers an axis
(HDF5 1.10 and later): a list of their blocks would be long, and slow to read. Lists with
numbers past 32 bits have version 2 (points) or 3 (blocks).

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

_LARGEST = 2**32 - 1  # number of version 1
# Words of 4 bytes: the target's address; then selection type, version, reserved, length and
# (points and hyperslabs) rank and number of points or blocks.
_ADDRESS_WORDS, _HEAD_WORDS = 2, 6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeapData(FrozenColumns):
    """The data of n heap objects, bytes."""

    buffer: npt.NDArray[np.uint8]  # 1-D
    position: IntArray  # (n,), where in the buffer each begins
    nbytes: IntArray  # (n,)

    def __len__(self) -> int:
        return len(self.position)


def encode_regions(address: npt.NDArray[np.uint64], regions: SelectionTable) -> HeapData:
    """Encode region references, one heap object a row.

    Parameters
    ----------
    address : numpy.ndarray
        Shape ``(n,)``: the object header of each target, bytes from the base address.
    regions : SelectionTable
        n rows, none of them null. A row that selects a whole object is encoded as
        ``H5S_SEL_ALL``.

    Returns
    -------
    HeapData
        n rows.
    """
    n = len(address)
    position, nbytes = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    parts, n_before = [np.zeros(0, dtype=np.uint8)], 0
    for rows, encoding in _group_rows(regions):
        part, cut = _encode_group(address[rows], regions.take(rows), encoding)
        position[rows], nbytes[rows] = cut[:-1] + n_before, np.diff(cut)
        parts.append(part)
        n_before += len(part)
    return HeapData(buffer=np.concatenate(parts), position=position, nbytes=nbytes)


_ALL, _EMPTY, _BOX, _BLOCKS, _POINTS, _REGULAR, _LONG_BLOCKS, _LONG_POINTS = range(8)


def _group_rows(regions: SelectionTable) -> list[tuple[IntArray, int]]:
    """Sort rows by encoding and rank; return rows and encoding of each group."""
    encoding = np.full(len(regions), _ALL)
    kind = regions.kind
    encoding[kind == SelectionKind.NONE] = _EMPTY
    is_slab = kind == SelectionKind.HYPERSLAB
    if is_slab.any():
        encoding[is_slab] = _slab_encodings(regions, is_slab)
    _, stop = regions.bounds()
    long = (stop > _LARGEST).any(axis=1) | (regions.size > _LARGEST)
    for list_kind, short_encoding, long_encoding in (
        (SelectionKind.BLOCKS, _BLOCKS, _LONG_BLOCKS),
        (SelectionKind.POINTS, _POINTS, _LONG_POINTS),
    ):
        encoding[kind == list_kind] = short_encoding
        encoding[(kind == list_kind) & long] = long_encoding
    key = encoding * 64 + regions.rank
    return [(np.flatnonzero(key == k), int(k) // 64) for k in np.unique(key).tolist()]


def _slab_encodings(regions: SelectionTable, rows: npt.NDArray[np.bool_]) -> IntArray:
    """Return the encoding of each hyperslab."""
    start, stride, count, block = (
        c[rows] for c in (regions.start, regions.stride, regions.count, regions.block)
    )
    unlimited = ((count == UNLIMITED) | (block == UNLIMITED)).any(axis=1)
    empty = ((count == 0) | (block == 0)).any(axis=1)
    end = start + (count - 1) * stride + block
    short = ~unlimited & (end <= _LARGEST).all(axis=1)
    encoding = np.full(len(start), _REGULAR)
    encoding[short & (count == 1).all(axis=1)] = _BOX
    encoding[empty] = _EMPTY
    return encoding


def _encode_group(
    address: npt.NDArray[np.uint64], regions: SelectionTable, encoding: int
) -> tuple[npt.NDArray[np.uint8], IntArray]:
    """Encode rows of one encoding and rank; return bytes, and where each row begins."""
    rank = int(regions.rank[0])
    n = len(regions)
    if encoding in (_ALL, _EMPTY):
        selection_type, rank, counts = ALL if encoding == _ALL else NONE, 0, np.zeros(n, int)
        numbers = np.zeros((0, 0), dtype=np.int64)
    elif encoding == _BOX:
        low = regions.start[:, :rank]
        selection_type, counts = HYPERSLAB, np.ones(n, dtype=np.int64)
        numbers = np.concatenate([low, low + regions.block[:, :rank] - 1], axis=1)
    elif encoding == _BLOCKS:
        low = ragged_take(regions.block_start, regions.first, regions.size)[:, :rank]
        high = ragged_take(regions.block_stop, regions.first, regions.size)[:, :rank]
        selection_type, counts = HYPERSLAB, regions.size
        numbers = np.concatenate([low, high - 1], axis=1)
    elif encoding == _POINTS:
        selection_type, counts = POINTS, regions.size
        numbers = ragged_take(regions.points, regions.first, regions.size)[:, :rank]
    elif encoding == _REGULAR:
        return _encode_regular(address, regions, rank)
    else:
        rows = [_encode_long(address[i], regions, i, rank, encoding) for i in range(n)]
        cut = row_offsets(np.array([len(row) for row in rows], dtype=np.int64))
        return np.frombuffer(b"".join(rows), dtype=np.uint8), cut
    return _encode_words(address, selection_type, rank, counts, numbers.reshape(-1))


def _encode_words(
    address: npt.NDArray[np.uint64],
    selection_type: int,
    rank: int,
    counts: IntArray,
    numbers: IntArray,
) -> tuple[npt.NDArray[np.uint8], IntArray]:
    """Encode selections of version 1, all of which are words of 32 bits.

    ``address`` and ``counts`` (points or blocks of each) have the shape ``(n,)``; ``rank`` is 0
    for selections without coordinates; ``numbers``, 1-D, has the coordinates of all rows, one
    after the other.
    """
    n = len(address)
    has_list = selection_type in (POINTS, HYPERSLAB)
    head = _ADDRESS_WORDS + (_HEAD_WORDS if has_list else _HEAD_WORDS - 2)
    width = rank * (2 if selection_type == HYPERSLAB else 1)
    cut = row_offsets(head + counts * width)
    words = np.zeros(int(cut[-1]), dtype="<u4")
    at = cut[:-1]
    words[at], words[at + 1] = address & np.uint64(_LARGEST), address >> np.uint64(32)
    at = at + _ADDRESS_WORDS
    words[at], words[at + 1] = selection_type, 1
    if has_list:
        words[at + 3] = 8 + 4 * counts * width  # length: rank, number, coordinates
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
            ("type", "<u4"),
            ("version", "<u4"),
            ("flags", "u1"),
            ("length", "<u4"),
            ("rank", "<u4"),
            ("numbers", "<u8", (rank, 4)),
        ]
    )
    out = np.zeros(len(regions), dtype=row)
    out["address"], out["type"], out["version"] = address, HYPERSLAB, 2
    out["flags"], out["length"], out["rank"] = 1, 4 + 32 * rank, rank
    for k, name in enumerate(("start", "stride", "count", "block")):
        # `UNLIMITED` is -1 and becomes H5S_UNLIMITED: all ones.
        out["numbers"][:, :, k] = getattr(regions, name)[:, :rank].astype(np.uint64)
    cut = row.itemsize * np.arange(len(regions) + 1, dtype=np.int64)
    return out.view(np.uint8), cut


def _encode_long(
    address: np.uint64, regions: SelectionTable, row: int, rank: int, encoding: int
) -> bytes:
    """Encode a list with numbers past 32 bits.

    After the version: flags (blocks only: not regular), uint8 size of the numbers (8), uint32
    rank, uint64 number of points or blocks, the coordinates.
    """
    rows = regions.list_rows(row)
    if encoding == _LONG_POINTS:
        selection_type, version, flags = POINTS, 2, b""
        coordinates = regions.points[rows, :rank]
    else:
        selection_type, version, flags = HYPERSLAB, 3, b"\0"
        low, high = regions.block_start[rows, :rank], regions.block_stop[rows, :rank] - 1
        coordinates = np.concatenate([low, high], axis=1)
    head = int(address).to_bytes(8, "little")
    head += selection_type.to_bytes(4, "little") + version.to_bytes(4, "little") + flags
    head += b"\x08" + rank.to_bytes(4, "little") + len(coordinates).to_bytes(8, "little")
    return head + coordinates.astype("<u8").tobytes()
