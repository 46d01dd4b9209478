"""Nodes of one metadata structure (a tree, an array), many with one read.

In: addresses and sizes of nodes that are known at the same time, such as all nodes of one
level of a tree. Out: their bytes, in batches of bounded size, and integers in them as columns.

A structure never has two nodes at one address, nor more bytes than the file. These two checks
end the walk through a damaged structure whose addresses form a circle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from xref.arrays import IntArray, RangeSource
from xref.hdf5.checksums import sum_blocks
from xref.hdf5.metadata_reader import MAX_CHECKED_NBYTES, MetadataReader, ReadBudget
from xref.hdf5.packed import ByteArray, integers, padded_buffer

BATCH_NBYTES = 16 << 20
"""Bytes of nodes in memory at a time, unless one node has more (benchmarks/chunkindex.py)."""

CHECKSUM_NBYTES = 4

_NATIVE = (1, 2, 4, 8)


class NodeBatch(NamedTuple):
    """The bytes of m consecutive nodes of a request."""

    rows: slice  # which of the nodes
    data: ByteArray  # their bytes, then `PADDING_NBYTES` zeros
    position: IntArray  # (m,), byte of ``data`` where each begins
    nbytes: IntArray  # (m,)


class NodeReader:
    """Reads the nodes of one structure, each of them once.

    Not safe to share between threads.

    Parameters
    ----------
    source : MetadataReader
        The file, to read single blocks and to raise errors.
    file : RangeSource
        The same file, to read many ranges.
    base_address : int
        Byte of the file from which addresses count.
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
        """Read nodes and yield them in batches, in the order of ``address``.

        Parameters
        ----------
        address : numpy.ndarray
            Shape ``(n,)``; an address past the largest int64 is negative here.
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
            stop = int(np.searchsorted(ends, before + BATCH_NBYTES, "right"))
            rows = slice(begin, max(stop, begin + 1))
            yield self._read_batch(rows, address[rows], nbytes[rows], ends[rows] - before)
            begin = rows.stop

    def _read_batch(
        self, rows: slice, address: IntArray, nbytes: IntArray, ends: IntArray
    ) -> NodeBatch:
        data, position = padded_buffer(int(ends[-1])), ends - nbytes
        order = np.argsort(address, kind="stable")
        offset = self._base_address + address[order]
        self._file.read_ranges(offset, nbytes[order], data, position[order])
        return NodeBatch(rows, data, position, nbytes)

    def check_begins(
        self, batch: NodeBatch, address: IntArray, some: IntArray, expected: bytes, what: str
    ) -> None:
        """Raise unless nodes of a batch begin with ``expected``, up to seven bytes.

        Parameters
        ----------
        batch : NodeBatch
        address : numpy.ndarray
            Shape ``(n,)``: of all nodes of the request.
        some : numpy.ndarray
            Which nodes of the batch.
        expected : bytes
            Signature, and further bytes that all nodes share.
        what : str
            Names one node in errors.
        """
        mask = (1 << 8 * len(expected)) - 1
        found = integers(batch.data, batch.position[some], 8) & np.int64(mask)
        wrong = found != int.from_bytes(expected, "little")
        if wrong.any():
            row = int(some[np.argmax(wrong)])
            at = int(batch.position[row])
            self.source.fail(
                f"no {what} of the {self._what} is at {int(address[batch.rows][row]):#x}: the "
                f"bytes there begin with {batch.data[at : at + len(expected)].tobytes()!r}, "
                f"not with {expected!r}"
            )

    def check_sums(self, batch: NodeBatch, address: IntArray, what: str) -> None:
        """Raise unless the last four bytes of each node are the checksum of the others.

        Nodes larger than `xref.hdf5.metadata_reader.MAX_CHECKED_NBYTES` are not checked.
        """
        some = np.flatnonzero(batch.nbytes <= MAX_CHECKED_NBYTES)
        if not len(some):
            return
        position, covered = batch.position[some], batch.nbytes[some] - CHECKSUM_NBYTES
        stored = integers(batch.data, position + covered, CHECKSUM_NBYTES)
        found = sum_blocks(batch.data, position, covered)
        wrong = found != stored
        if wrong.any():
            row = int(np.argmax(wrong))
            place = int(address[batch.rows][some[row]])
            self.source.fail(
                f"the {what} of the {self._what} at {place:#x} has the checksum "
                f"{int(stored[row]):#010x}, and its bytes give "
                f"{int(found[row]):#010x}; the file is damaged"
            )


def columns_of(data: ByteArray, position: IntArray, widths: Sequence[int]) -> list[IntArray]:
    """Return the integers of records of one layout as columns of shape ``(n,)``.

    ``data`` is 1-D, uint8, padded with zeros; ``position``, shape ``(n,)``, is where each
    record begins; ``widths`` are the bytes of each little-endian unsigned integer of a record,
    1 to 8, without gaps. Values past the largest int64 become negative.

    Examples
    --------
    >>> data = np.arange(6, dtype=np.uint8)
    >>> [column.tolist() for column in columns_of(data, np.array([0, 3]), [1, 2])]
    [[0, 3], [513, 1284]]
    """
    step, n = sum(widths), len(position)
    if not n:
        return [np.zeros(0, dtype=np.int64) for _ in widths]
    # A record of ``step`` bytes at every byte of the data: overlapping items, no copy.
    windows = np.ndarray((len(data) - step + 1,), f"V{step}", data, 0, (1,))
    table = np.ascontiguousarray(windows[position]).view(np.uint8).reshape(n, step)
    columns, offset = [], 0
    for width in widths:
        if width in _NATIVE:
            column = np.ndarray((n,), f"<u{width}", table, offset, (step,))
        else:
            wide = np.zeros((n, 8), dtype=np.uint8)
            wide[:, :width] = table[:, offset : offset + width]
            column = wide.view("<u8")[:, 0]
        columns.append(column.astype(np.int64))
        offset += width
    return columns
