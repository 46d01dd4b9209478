"""Nodes of one structure of metadata, read many at once.

In: addresses and lengths of nodes that are known at the same time, as the nodes of one
level of a tree are. Out: their bytes, in lots of bounded size, and integers in them as
columns.

A structure never has two nodes at one place, nor more bytes than the file: following its
addresses comes to an end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from xref.arrays import IntArray, RangeSource
from xref.hdf5.checksums import sum_blocks
from xref.hdf5.metadata_reader import MAX_CHECKED_NBYTES, MetadataReader, ReadBudget
from xref.hdf5.packed import ByteArray, integers, padded_buffer

LOT_NBYTES = 16 << 20
"""Bytes of nodes that are in memory at once, unless one node has more
(benchmarks/chunkindex.py)."""

CHECKSUM_NBYTES = 4

_NATIVE = (1, 2, 4, 8)


class NodeBatch(NamedTuple):
    """Some of the nodes asked for."""

    rows: slice  # which
    data: ByteArray  # their bytes, and some zeros
    position: IntArray  # where each begins in the bytes
    nbytes: IntArray  # of each


class NodeReader:
    """Reads the nodes of one structure, each of them once.

    Not safe to share between threads.

    Parameters
    ----------
    source : Source
        The file, for what is read alone, and for errors.
    file : RangeSource
        The same file.
    base_address : int
        Byte of the file that addresses count from.
    what : str
        Names the structure in errors.
    """

    def __init__(
        self, source: MetadataReader, file: RangeSource, base_address: int, what: str
    ) -> None:
        self.source = source
        self._file = file
        self._base_address = base_address
        self._what = what
        self._budget = ReadBudget(source, what)
        self._seen = np.zeros(0, dtype=np.int64)

    def read(self, address: IntArray, nbytes: IntArray, what: str) -> Iterator[NodeBatch]:
        """Read nodes and yield them in lots, in the order asked for.

        Parameters
        ----------
        address : numpy.ndarray
            Shape ``(n,)``; what is past the largest signed integer is negative here.
        nbytes : numpy.ndarray
            Shape ``(n,)``.
        what : str
            Names one node in errors.

        Raises
        ------
        CorruptFileError
            If a node is not inside the file or was read before, or if the nodes have more
            bytes than the file.
        """
        end = self.source.file_nbytes
        outside = (address < 0) | (nbytes > end) | (address > end - np.minimum(nbytes, end))
        if outside.any():
            row = int(np.argmax(outside))
            self.source.fail(
                f"the {self._what} has a {what} at {int(address[row]) % 2**64:#x} "
                f"({nbytes[row]} bytes), which reaches past the end of the file ({end} bytes)"
            )
        seen = np.sort(np.concatenate([self._seen, address]))
        twice = np.flatnonzero(seen[1:] == seen[:-1])
        if len(twice):
            self.source.fail(
                f"the {self._what} leads twice to the {what} at {int(seen[twice[0]]):#x}"
            )
        self._seen = seen
        self._budget.spend(int(nbytes.sum(dtype=float)))
        ends = np.cumsum(nbytes)
        begin = 0
        while begin < len(address):
            before = int(ends[begin - 1]) if begin else 0
            stop = int(np.searchsorted(ends, before + LOT_NBYTES, "right"))
            rows = slice(begin, max(stop, begin + 1))
            yield self._read_lot(rows, address[rows], nbytes[rows], ends[rows] - before)
            begin = rows.stop

    def _read_lot(
        self, rows: slice, address: IntArray, nbytes: IntArray, ends: IntArray
    ) -> NodeBatch:
        data, position = padded_buffer(int(ends[-1])), ends - nbytes
        order = np.argsort(address, kind="stable")
        offset = self._base_address + address[order]
        self._file.read_ranges(offset, nbytes[order], data, position[order])
        return NodeBatch(rows, data, position, nbytes)

    def check_begins(
        self, lot: NodeBatch, address: IntArray, some: IntArray, expected: bytes, what: str
    ) -> None:
        """Refuse nodes of a lot that do not begin with a signature of up to seven bytes.

        Parameters
        ----------
        lot : Lot
        address : numpy.ndarray
            Shape ``(n,)``: of all nodes that were asked for.
        some : numpy.ndarray
            Which nodes of the lot.
        expected : bytes
        what : str
            Names one node in errors.
        """
        mask = (1 << 8 * len(expected)) - 1
        found = integers(lot.data, lot.position[some], 8) & np.int64(mask)
        wrong = found != int.from_bytes(expected, "little")
        if wrong.any():
            row = int(some[np.argmax(wrong)])
            at = int(lot.position[row])
            self.source.fail(
                f"no {what} of the {self._what} is at {int(address[lot.rows][row]):#x}: the "
                f"bytes there begin with {lot.data[at : at + len(expected)].tobytes()!r}, not "
                f"with {expected!r}"
            )

    def check_sums(self, lot: NodeBatch, address: IntArray, what: str) -> None:
        """Refuse nodes whose last four bytes are not the checksum of the others.

        Of nodes of more than `xref.hdf5.metadata_reader.MAX_CHECKED_NBYTES` it is not worked
        out.
        """
        some = np.flatnonzero(lot.nbytes <= MAX_CHECKED_NBYTES)
        if not len(some):
            return
        position, covered = lot.position[some], lot.nbytes[some] - CHECKSUM_NBYTES
        stored = integers(lot.data, position + covered, CHECKSUM_NBYTES)
        found = sum_blocks(lot.data, position, covered)
        wrong = found != stored
        if wrong.any():
            row = int(np.argmax(wrong))
            self.source.fail(
                f"the {what} of the {self._what} at {int(address[lot.rows][some[row]]):#x} has "
                f"the checksum {int(stored[row]):#010x}, and its bytes give "
                f"{int(found[row]):#010x}; the file is damaged"
            )


def columns_of(data: ByteArray, position: IntArray, widths: Sequence[int]) -> list[IntArray]:
    """Return the integers of records of one form as columns.

    Parameters
    ----------
    data : numpy.ndarray
        Bytes, with zeros behind them.
    position : numpy.ndarray
        Shape ``(n,)``: where each record begins.
    widths : sequence of int
        Bytes of each little-endian unsigned integer of a record, 1 to 8.

    Returns
    -------
    list of numpy.ndarray
        Of eight bytes, values past the largest signed integer come out negative.

    Examples
    --------
    >>> data = np.arange(6, dtype=np.uint8)
    >>> [column.tolist() for column in columns_of(data, np.array([0, 3]), [1, 2])]
    [[0, 3], [513, 1284]]
    """
    step, n = sum(widths), len(position)
    if not n:
        return [np.zeros(0, dtype=np.int64) for _ in widths]
    pieces = np.ndarray((len(data) - step + 1,), f"V{step}", data, 0, (1,))
    table = np.ascontiguousarray(pieces[position]).view(np.uint8).reshape(n, step)
    found, at = [], 0
    for width in widths:
        if width in _NATIVE:
            column = np.ndarray((n,), f"<u{width}", table, at, (step,))
        else:
            wide = np.zeros((n, 8), dtype=np.uint8)
            wide[:, :width] = table[:, at : at + width]
            column = wide.view("<u8")[:, 0]
        found.append(column.astype(np.int64))
        at += width
    return found
