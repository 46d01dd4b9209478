"""Fractal heaps: the objects of dense storage, by heap ID.

In: the address of a heap's header and bytes of the file. Out: the object of each heap ID. A
fractal heap numbers the bytes of all its blocks in one space; blocks of equal size form a
row of its doubling table. The first two rows have blocks of one size; from the third row on,
blocks are twice as large as in the row before.

1. Take a heap ID apart: the object lies in a block (managed), by itself in the file
   (huge) or in the ID (tiny).
2. Walk from the root block to the block that has the object's offset in the heap's space;
   each indirect block on the way leads to a smaller part of the space.

The size of the file bounds the work: no structure may read more bytes than the file has.
Comments name the fields in the order of their bytes: O stands for the size of offsets and L
for the size of lengths, which the superblock tells.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 1G - Fractal Heap".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from xref.errors import UnsupportedError
from xref.hdf5.btree2 import read_records
from xref.hdf5.metadata_reader import (
    MAX_CHECKED_NBYTES,
    MetadataReader,
    ReadBudget,
    integer,
    integer_nbytes,
)

HUGE_INDIRECT = 1
"""Type of the B-tree of huge objects whose heap IDs have no room for an address."""

MAX_CHECKED_BLOCKS_NBYTES = 16 << 20
"""Most bytes of one heap's blocks whose checksums are computed; Python takes 2 s for them."""

_MANAGED, _HUGE, _TINY = 0, 1, 2  # types of heap IDs
_CHECKED_BLOCKS = 0x02  # flag of the header: direct blocks have checksums
_MAX_BITS = 64  # of an offset in the heap's space


@dataclass(frozen=True, slots=True)
class _DoublingTable:
    """The sizes of the blocks in the heap's space.

    Blocks of rows 0 and 1 have the starting size, those of row 2 twice as much, and so on:
    row r > 0 begins at the same offset as it is long.
    """

    width: int  # blocks in a row
    start_bits: int  # log2 of the starting block size, bytes
    first_row_bits: int  # log2 of the bytes of the first row
    n_direct_rows: int  # rows of direct blocks; the rows behind have indirect blocks

    def locate(self, offset: int) -> tuple[int, int, int, int]:
        """Return row, column, offset and log2 of the bytes of the block that has a byte."""
        if not offset >> self.first_row_bits:
            column = offset >> self.start_bits
            return 0, column, column << self.start_bits, self.start_bits
        high = offset.bit_length() - 1
        row = high - self.first_row_bits + 1
        bits = self.start_bits + row - 1
        column = (offset - (1 << high)) >> bits
        return row, column, (1 << high) + (column << bits), bits


class FractalHeap:
    """The objects of one fractal heap, by heap ID; ``address`` is that of the heap's header.

    Blocks are cached, so that each is read once. Many IDs may name the same bytes: a caller
    that gets many objects needs a `ReadBudget` for them. Not safe to share between threads.
    Raises UnsupportedError if the heap's blocks are filtered, CorruptFileError if the header
    contradicts the format or its checksum.
    """

    def __init__(self, source: MetadataReader, address: int) -> None:
        self._source = source
        self._address = address
        self._label = f"fractal heap at {address:#x}"
        self._budget = ReadBudget(source, self._label)
        self._blocks: dict[int, bytes] = {}
        self._n_checked = 0  # bytes
        self._huge: dict[int, tuple[int, int]] | None = None
        # The direct block of the last object: offsets of its first object byte, of its end
        # and of its start (all in the heap's space), and its bytes.
        self._last = (0, 0, 0, b"")
        size, length = source.offset_size, source.length_size
        nbytes = 26 + 3 * size + 12 * length
        # Signature "FRHP" 4, version 1, heap ID length 2, encoded length of filters 2, flags
        # 1, maximum size of managed objects 4, next huge object ID L, address of the B-tree
        # of huge objects O, free space in managed blocks L, address of the free-space manager
        # O, eight numbers of the heap's space and objects L each, table width 2, starting
        # block size L, maximum direct block size L, maximum heap size 2 (log2), starting
        # number of rows in the root 2, address of the root block O, current number of rows in
        # the root 2, checksum 4. Filters make the header longer, so that they are refused
        # before the checksum is checked.
        head = source.take_signed(address, nbytes, b"FRHP\0", "fractal heap")
        self._id_nbytes, filters_nbytes, self._flags, self._max_managed = struct.unpack_from(
            "<HHBI", head, 5
        )
        if filters_nbytes:
            raise UnsupportedError(f"{source.where}: the {self._label} has filters")
        source.verify(head, address, "fractal heap")
        self._huge_tree = integer(head, 14 + length, size)
        at = 14 + 2 * size + 10 * length
        width = integer(head, at, 2)
        start, largest = integer(head, at + 2, length), integer(head, at + 2 + length, length)
        self._space_bits = integer(head, at + 2 + 2 * length, 2)
        # No rows: the root block is a direct block.
        at += 6 + 2 * length
        self._root, self._n_rows = integer(head, at, size), integer(head, at + size, 2)
        self._table = self._parse_table(width, start, largest)
        # Heap IDs and blocks have offsets as wide as the maximum heap size needs, and lengths
        # as wide as the smaller of the two limits of a managed object needs.
        self._offset_nbytes = -(-self._space_bits // 8)
        self._length_nbytes = min(
            -(-(largest.bit_length() - 1) // 8), integer_nbytes(self._max_managed)
        )

    def _parse_table(self, width: int, start: int, largest: int) -> _DoublingTable:
        sizes = width, start, largest
        if any(n.bit_count() != 1 for n in sizes) or start > largest:
            self._source.fail(
                f"the {self._label} has rows of {width} blocks of {start} to {largest} bytes"
            )
        width_bits, start_bits, largest_bits = (n.bit_length() - 1 for n in sizes)
        first_row_bits = start_bits + width_bits
        max_rows = self._space_bits - first_row_bits + 1
        if self._space_bits > _MAX_BITS or not self._n_rows <= max_rows:
            self._source.fail(
                f"the {self._label} has {self._n_rows} rows in a space of {self._space_bits} "
                "bits"
            )
        return _DoublingTable(width, start_bits, first_row_bits, largest_bits - start_bits + 2)

    def get(self, heap_id: bytes) -> bytes:
        """Return the object that a heap ID names.

        Raises CorruptFileError if the ID names no object, or leads through a damaged block.
        """
        if len(heap_id) != self._id_nbytes:
            self._source.fail(
                f"a heap ID has {len(heap_id)} bytes, and those of the {self._label} have "
                f"{self._id_nbytes}"
            )
        # First byte: version (bits 6 and 7), type (bits 4 and 5). A managed object: offset in
        # the heap's space, length.
        version, id_type = heap_id[0] >> 6, heap_id[0] >> 4 & 3
        if version or id_type > _TINY:
            self._source.fail(f"a heap ID of the {self._label} begins with {heap_id[0]:#04x}")
        if id_type == _MANAGED:
            end = 1 + self._offset_nbytes
            offset = integer(heap_id, 1, self._offset_nbytes)
            return self._get_managed(offset, integer(heap_id, end, self._length_nbytes))
        if id_type == _HUGE:
            address, nbytes = self._find_huge(heap_id)
            return self._source.take(address, nbytes, f"object of the {self._label}")
        return self._get_tiny(heap_id)

    def _get_tiny(self, heap_id: bytes) -> bytes:
        # The length less one has four bits in IDs of up to 18 bytes, twelve in longer IDs.
        begin, nbytes = 1, (heap_id[0] & 0xF) + 1
        if self._id_nbytes > 18:
            begin, nbytes = 2, ((heap_id[0] & 0xF) << 8 | heap_id[1]) + 1
        if begin + nbytes > self._id_nbytes:
            self._source.fail(f"a tiny object of the {self._label} has {nbytes} bytes")
        return heap_id[begin : begin + nbytes]

    def _find_huge(self, heap_id: bytes) -> tuple[int, int]:
        """Return address and bytes of a huge object."""
        size, length = self._source.offset_size, self._source.length_size
        if size + length < self._id_nbytes:  # the ID has room for address and length
            return integer(heap_id, 1, size), integer(heap_id, 1 + size, length)
        if self._huge is None:
            records = read_records(
                self._source, self._huge_tree, HUGE_INDIRECT, size + 2 * length
            )
            # A record: address of the object O, its length L, its ID L.
            self._huge = {
                integer(r, size + length, length): (
                    integer(r, 0, size),
                    integer(r, size, length),
                )
                for r in records
            }
        number = integer(heap_id, 1, self._id_nbytes - 1)
        if number not in self._huge:
            self._source.fail(f"the {self._label} has no huge object {number}")
        return self._huge[number]

    def _get_managed(self, offset: int, nbytes: int) -> bytes:
        """Return an object by its offset in the heap's space."""
        first, end, begin, data = self._last
        if nbytes and first <= offset and offset + nbytes <= end:
            return data[offset - begin : offset - begin + nbytes]
        source, size = self._source, self._source.offset_size
        # `begin` is the offset of the block in the heap's space.
        block, begin, bits, n_rows = self._root, 0, self._table.start_bits, self._n_rows
        while n_rows:  # an indirect block has rows, a direct block has none
            row, column, place, bits = self._table.locate(offset - begin)
            if row >= n_rows:
                source.fail(
                    f"a heap ID names byte {offset} of the {self._label}, past its last row"
                )
            # Signature "FHIB" 4, version 1, address of the heap's header O, offset of the
            # block, then addresses of child blocks O, row by row.
            data = self._read_indirect(block, begin, n_rows)
            entry = 5 + size + self._offset_nbytes + (row * self._table.width + column) * size
            block, begin = integer(data, entry, size), begin + place
            n_rows = 0
            if row >= self._table.n_direct_rows:
                # A child indirect block has as many rows as fill its share of the space.
                n_rows = bits - self._table.first_row_bits + 1
                if n_rows < 1:
                    source.fail(f"the {self._label} has an indirect block of {1 << bits} bytes")
        return self._read_direct(block, begin, 1 << bits, offset - begin, nbytes)

    def _read_indirect(self, address: int, begin: int, n_rows: int) -> bytes:
        data = self._blocks.get(address)
        size = self._source.offset_size
        nbytes = 9 + size + self._offset_nbytes + n_rows * self._table.width * size
        if data is None:
            self._budget.spend(nbytes)
            data = self._source.take_checked(address, nbytes, b"FHIB\0", "indirect heap block")
            self._blocks[address] = data
        self._check_block(data, address, begin, nbytes)
        return data

    def _read_direct(
        self, address: int, begin: int, block_nbytes: int, position: int, nbytes: int
    ) -> bytes:
        """Return bytes of a direct block; ``position`` counts from the start of the block."""
        source = self._source
        # Signature "FHDB" 4, version 1, address of the heap's header O, offset of the block,
        # checksum 4 (if the heap's flags say so), object data.
        checked = bool(self._flags & _CHECKED_BLOCKS)
        head_nbytes = 5 + source.offset_size + self._offset_nbytes + 4 * checked
        if position < head_nbytes or position + nbytes > block_nbytes or not nbytes:
            source.fail(
                f"a heap ID names {nbytes} bytes at byte {position} of a block of "
                f"{block_nbytes} bytes of the {self._label}"
            )
        data = self._blocks.get(address)
        if data is None:
            # Of a large block only the head is cached; objects are read one by one.
            whole = block_nbytes <= MAX_CHECKED_NBYTES
            take = block_nbytes if whole else head_nbytes
            self._budget.spend(take)
            data = source.take_signed(address, take, b"FHDB\0", "direct heap block")
            self._n_checked += take
            if whole and checked and self._n_checked <= MAX_CHECKED_BLOCKS_NBYTES:
                # The checksum lies before the data, and was computed with zeros in its place.
                at = head_nbytes - 4
                plain = data[:at] + bytes(4) + data[head_nbytes:] + data[at:head_nbytes]
                source.verify(plain, address, "direct heap block")
            self._blocks[address] = data
        whole = len(data) > head_nbytes
        self._check_block(data, address, begin, block_nbytes if whole else head_nbytes)
        if whole:
            self._last = begin + head_nbytes, begin + block_nbytes, begin, data
            return data[position : position + nbytes]
        return source.take(address + position, nbytes, f"object of the {self._label}")

    def _check_block(self, data: bytes, address: int, begin: int, nbytes: int) -> None:
        """Check that a block states this heap, and the offset by which it was reached."""
        size = self._source.offset_size
        heap, offset = integer(data, 5, size), integer(data, 5 + size, self._offset_nbytes)
        if (heap, offset, len(data)) != (self._address, begin, nbytes):
            self._source.fail(
                f"the heap block at {address:#x} is for byte {offset} of the heap at "
                f"{heap:#x}, and was reached as byte {begin} of the heap at {self._address:#x}"
            )
