"""Chunk indices that are arrays: fixed arrays, and extensible arrays (one unlimited axis).

In: the address of an array's header. Out: the chunks of the array, as columns.

1. Read the header and (of extensible arrays) the index block: they say how the elements are
   distributed over data blocks.
2. Read all super blocks ("secondary blocks" in the specification) together; they have the
   addresses of more data blocks.
3. Read all data blocks and their pages together. The bit of a page says whether it was ever
   written; a page that was not may have any bytes.

An element of the array is the entry of one chunk. Its number is the index of the chunk in the
grid of the largest extent, in C order; an unlimited axis counts as the first axis.

Source: HDF5 File Format Specification 4.0, "The Fixed Array Index" and "The Extensible
Array Index".
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xref.arrays import IntArray
from xref.errors import UnsupportedError
from xref.hdf5.chunk_index.btrees import (
    MASK_NBYTES,
    ListedChunks,
    concat_chunks,
    record_positions,
)
from xref.hdf5.chunk_index.nodes import CHECKSUM_NBYTES, NodeBatch, NodeReader, columns_of
from xref.hdf5.metadata_reader import integer
from xref.hdf5.packed import ByteArray, integers, undefined

_MAX_BITS = 62
"""Most bits of an element's number; libhdf5 uses 32."""

TOO_LONG = 2**62
"""A size in bytes or elements that no block and no array of a file can have."""

_PREFIX_NBYTES = 6  # signature, version, client


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid of chunks: from the number of an array's element to the chunk's index."""

    # Chunks along each axis of the largest extent; None for an unlimited axis.
    shape: tuple[int | None, ...]
    chunk_nbytes: int  # of one chunk without filters
    filtered: bool  # whether the dataset has filters

    @property
    def ndim(self) -> int:
        """Rank of the dataset."""
        return len(self.shape)

    def cells(self, number: IntArray) -> IntArray:
        """Return the index in the grid of each element's chunk, shape ``(n, ndim)``."""
        axes = sorted(range(self.ndim), key=lambda axis: self.shape[axis] is not None)
        cell = np.empty((len(number), self.ndim), dtype=np.int64)
        rest = number
        for axis in axes[:0:-1]:
            length = self.shape[axis] or 1
            # A length past int64 is larger than any number: the quotient is zero.
            before = rest // length if length < 2**63 else np.zeros_like(rest)
            cell[:, axis] = rest - before * min(length, 2**63 - 1)
            rest = before
        cell[:, axes[0]] = rest
        return cell


class _DataBlocks:
    """Data blocks and pages of them to read: where each lies, and which elements it has."""

    def __init__(self) -> None:
        self._parts: list[tuple[IntArray, ...]] = []

    def add(
        self,
        address: IntArray,
        nbytes: int,
        first: IntArray,
        n: int,
        head_nbytes: int,
        stated: IntArray | None = None,
    ) -> None:
        """Add blocks or pages of one size, each with ``nbytes`` bytes and ``n`` elements.

        ``address`` and ``first``, shape ``(k,)``: address and number of the first element of
        each. ``head_nbytes``: bytes before the elements, 0 of pages. ``stated``, shape
        ``(k,)``: "Block Offset" that the header must have, -1 for any.
        """
        rows = np.ones(len(address), dtype=np.int64)
        stated = -rows if stated is None else stated
        nbytes = min(nbytes, TOO_LONG)
        self._parts.append(
            (address, nbytes * rows, first, n * rows, head_nbytes * rows, stated)
        )

    def columns(self) -> list[IntArray]:
        """Return address, nbytes, first, n, head_nbytes and stated of all, as columns."""
        none = (np.zeros(0, dtype=np.int64),) * 6
        return [np.concatenate(column) for column in zip(none, *self._parts, strict=True)]


class _Array:
    """One array: the fields of its header that all blocks share, and checks of blocks."""

    def __init__(
        self, reader: NodeReader, grid: Grid, address: int, head: bytes, signature: bytes
    ) -> None:
        self.source = reader.source
        self.reader = reader
        self.grid = grid
        self.address = address
        self.signature = signature
        self.label = f"array of chunks at {address:#x}"
        # Both kinds of header begin with char[4] signature, uint8 version (0), uint8 client ID
        # (0: without filters, 1: with filters), uint8 element size.
        version, self.client, self.entry_nbytes = head[4:7]
        if version or self.client > 1:
            raise UnsupportedError(
                f"{self.source.where}: the {self.label} has version {version} and holds "
                f"elements of type {self.client}"
            )
        # An element: address; with filters also the chunk's size and a uint32 filter mask.
        size_nbytes = self.entry_nbytes - self.source.offset_size - MASK_NBYTES
        fits = 1 <= size_nbytes <= 8 if self.client else size_nbytes == -MASK_NBYTES
        if self.client != grid.filtered or not fits:
            self.source.fail(
                f"the {self.label} has elements of type {self.client} and "
                f"{self.entry_nbytes} bytes, and the dataset has "
                f"{'' if grid.filtered else 'no '}filters"
            )
        self.widths = [self.source.offset_size]
        if self.client:
            self.widths += [size_nbytes, MASK_NBYTES]

    def begin(self, signature: bytes) -> bytes:
        """Return the first bytes of each block; the header's address follows them."""
        return signature + bytes([0, self.client])

    def check_head(self, data: bytes, address: int, signature: bytes, what: str) -> None:
        """Raise if a block is not a block of this array."""
        size = self.source.offset_size
        owner = integer(data, _PREFIX_NBYTES, size)
        if data[:_PREFIX_NBYTES] != self.begin(signature) or owner != self.address:
            self.source.fail(
                f"the {what} at {address:#x} begins with {data[:_PREFIX_NBYTES]!r} and is of "
                f"the array at {owner:#x}, not of that at {self.address:#x}"
            )

    def elements(
        self, data: ByteArray, position: IntArray, number: IntArray, limit: int
    ) -> ListedChunks:
        """Decode the elements at ``position`` whose number is below ``limit``."""
        address, *rest = columns_of(data, position, self.widths)
        # Most elements of a sparse array are empty: leave them out before computing cells.
        keep = ~undefined(address, self.source.offset_size) & (number < limit)
        address, number = address[keep], number[keep]
        if rest:
            nbytes, mask = (column[keep] for column in rest)
        else:
            nbytes = np.full(len(address), self.grid.chunk_nbytes)
            mask = np.zeros(len(address), dtype=np.int64)
        return ListedChunks(self.grid.cells(number), address, nbytes, mask)

    def read(self, blocks: _DataBlocks, limit: int, offset_nbytes: int) -> list[ListedChunks]:
        """Read data blocks and pages; decode the elements whose number is below ``limit``.

        ``offset_nbytes`` is the width of "Block Offset" in their headers; 0 without it.
        """
        address, nbytes, first, n, head_nbytes, stated = blocks.columns()
        parts = []
        for batch in self.reader.read(address, nbytes, "data block"):
            rows = batch.rows
            self.reader.check_sums(batch, address, "data block")
            heads = np.flatnonzero(head_nbytes[rows])
            begin = self.begin(self.signature)
            self.reader.check_begins(batch, address, heads, begin, "data block")
            self._check_owners(batch, address, heads, stated, offset_nbytes)
            begins = batch.position + head_nbytes[rows]
            position = record_positions(begins, n[rows], self.entry_nbytes)
            number = record_positions(first[rows], n[rows], 1)
            parts.append(self.elements(batch.data, position, number, limit))
        return parts

    def _check_owners(
        self,
        batch: NodeBatch,
        address: IntArray,
        heads: IntArray,
        stated: IntArray,
        offset_nbytes: int,
    ) -> None:
        """Raise if a data block belongs to another array, or elsewhere in this array."""
        if not len(heads):
            return
        size = self.source.offset_size
        widths = [size, offset_nbytes] if offset_nbytes else [size]
        owner, *offset = columns_of(batch.data, batch.position[heads] + _PREFIX_NBYTES, widths)
        wrong = owner != self.address
        for column in offset:
            expected = stated[batch.rows][heads]
            wrong |= (expected >= 0) & (column != expected)
        if wrong.any():
            place = int(address[batch.rows][heads[np.argmax(wrong)]])
            self.source.fail(
                f"the data block at {place:#x} is of another array than the "
                f"{self.label}, or of another place in it"
            )


def read_fixed_array(reader: NodeReader, address: int, grid: Grid) -> ListedChunks:
    """Return the chunks of a fixed array.

    Raises CorruptFileError if a part of it contradicts the format, its checksum or the extent,
    UnsupportedError if it has an unknown version.
    """
    source, size = reader.source, reader.source.offset_size
    # char[4] "FAHD", uint8 version, uint8 client ID, uint8 element size, uint8 page bits (log2
    # of the elements of a page), number of elements (size of lengths), data block address,
    # checksum.
    head_nbytes = 8 + source.length_size + size + CHECKSUM_NBYTES
    head = source.take_checked(address, head_nbytes, b"FAHD", "array header")
    array = _Array(reader, grid, address, head, b"FADB")
    page = 1 << head[7]
    n = integer(head, 8, source.length_size)
    block = integer(head, 8 + source.length_size, size)
    room = math.prod(length or 0 for length in grid.shape)
    if n != room:
        source.fail(f"the {array.label} has {n} elements, and the dataset {room} chunks")
    if block == source.undefined or not n:
        return concat_chunks([], grid.ndim)
    # Data block: char[4] "FADB", uint8 version, uint8 client ID, header address, then
    # without pages: the elements, checksum;
    # with pages (if one page has not room for all elements): a bit for each page, highest bit
    # of a byte first, checksum, then the pages, each with a checksum of its own.
    n_pages = -(-n // page) if n > page else 0
    bits_nbytes = -(-n_pages // 8)
    head_nbytes = _PREFIX_NBYTES + size + bits_nbytes
    whole = head_nbytes + n * array.entry_nbytes + (1 + n_pages) * CHECKSUM_NBYTES
    if block > source.file_nbytes - whole:
        source.fail(
            f"the {array.label} has a data block at {block:#x} of {whole} bytes, which reaches "
            f"past the end of the file ({source.file_nbytes} bytes)"
        )
    blocks = _DataBlocks()
    if not n_pages:
        blocks.add(np.array([block]), whole, np.zeros(1, np.int64), n, head_nbytes)
        return concat_chunks(array.read(blocks, n, 0), grid.ndim)
    data = source.take_checked(block, head_nbytes + CHECKSUM_NBYTES, b"FADB", "data block")
    array.check_head(data, block, b"FADB", "data block")
    first_page = block + len(data)
    page_nbytes = page * array.entry_nbytes + CHECKSUM_NBYTES
    bits = np.frombuffer(data, np.uint8, bits_nbytes, head_nbytes - bits_nbytes)
    used = np.flatnonzero(np.unpackbits(bits)[:n_pages])
    n_last = n - (n_pages - 1) * page
    for rows, length in (used[used < n_pages - 1], page), (used[used == n_pages - 1], n_last):
        nbytes = length * array.entry_nbytes + CHECKSUM_NBYTES
        blocks.add(first_page + rows * page_nbytes, nbytes, rows * page, length, 0)
    return concat_chunks(array.read(blocks, n, 0), grid.ndim)


@dataclass(frozen=True, slots=True)
class _SuperBlock:
    """A super block: data blocks of one size, with consecutive elements."""

    n_blocks: int
    block_n: int  # elements of each data block
    first: int  # number of the first element, counted after those of the index block


@dataclass(frozen=True, slots=True)
class _Parameters:
    """Fields of an extensible array's header; comments name them as the specification does."""

    max_bits: int  # "Max Nelmts Bits": bits of an element's number
    n_in_index: int  # "Index Blk Elmts"
    least_block_n: int  # "Data Blk Min Elmts"
    least_pointers: int  # "Secondary Blk Min Data Ptrs"
    page_n: int  # elements of a page: 2 ** "Max Data Blk Page Nelmts Bits"

    @property
    def offset_nbytes(self) -> int:
        """Bytes of "Block Offset", the number of a block's first element."""
        return -(-self.max_bits // 8)

    @property
    def n_pointers(self) -> int:
        """Number of data blocks whose addresses are in the index block."""
        return 2 * (self.least_pointers - 1)

    @property
    def n_direct(self) -> int:
        """Number of super blocks that exist only as addresses in the index block."""
        return 2 * (self.least_pointers.bit_length() - 1)

    def super_blocks(self) -> list[_SuperBlock]:
        """Return all super blocks that the array has room for.

        Super block i has ``2 ** (i // 2)`` data blocks, each of
        ``least_block_n * 2 ** ((i + 1) // 2)`` elements.
        """
        blocks, first = [], 0
        for i in range(1 + self.max_bits - (self.least_block_n.bit_length() - 1)):
            n_blocks, block_n = 1 << i // 2, self.least_block_n << (i + 1) // 2
            blocks.append(_SuperBlock(n_blocks, block_n, first))
            first += n_blocks * block_n
        return blocks


def read_extensible_array(reader: NodeReader, address: int, grid: Grid) -> ListedChunks:
    """Return the chunks of an extensible array.

    Raises CorruptFileError if a part of it contradicts the format or its checksum,
    UnsupportedError if it has an unknown version, or blocks of unsupported sizes.
    """
    source, size = reader.source, reader.source.offset_size
    # char[4] "EAHD", uint8 version, uint8 client ID, uint8 element size, the five uint8 of
    # `_Parameters`, six counts (size of lengths): secondary blocks, their bytes, data blocks,
    # their bytes, "Max Index Set" (1 + the largest number of an element), elements; index
    # block address, checksum.
    head_nbytes = 12 + 6 * source.length_size + size + CHECKSUM_NBYTES
    head = source.take_checked(address, head_nbytes, b"EAHD", "array header")
    array = _Array(reader, grid, address, head, b"EADB")
    max_bits, n_in_index, least_block_n, least_pointers, page_bits = struct.unpack_from(
        "<5B", head, 7
    )
    form = _Parameters(max_bits, n_in_index, least_block_n, least_pointers, 1 << page_bits)
    limit = min(integer(head, 12 + 4 * source.length_size, source.length_size), TOO_LONG)
    index = integer(head, 12 + 6 * source.length_size, size)
    powers = least_block_n.bit_count() == 1 and least_pointers.bit_count() == 1
    supers = form.super_blocks() if powers else []
    if len(supers) < max(form.n_direct, 1):
        source.fail(
            f"the {array.label} has data blocks of {least_block_n} elements, {least_pointers} "
            f"of them in a super block, for {max_bits} bits"
        )
    longest = max(block.block_n for block in supers[: form.n_direct] or supers[:1])
    if max_bits > _MAX_BITS or longest > form.page_n:
        raise UnsupportedError(
            f"{source.where}: the {array.label} has data blocks of {longest} elements and "
            f"pages of {form.page_n} in its index block, for {max_bits} bits"
        )
    if index == source.undefined:
        return concat_chunks([], grid.ndim)
    elements, data_blocks, deeper = _read_index(array, form, index, len(supers), limit)
    blocks, no_bits = _DataBlocks(), np.zeros(0, dtype=np.uint8)
    for block in supers[: form.n_direct]:
        addresses, data_blocks = np.split(data_blocks, [block.n_blocks])
        _add_blocks(array, form, block, addresses, no_bits, blocks, direct=True)
    _read_super_blocks(array, form, supers[form.n_direct :], deeper, blocks)
    parts = array.read(blocks, limit, form.offset_nbytes)
    return concat_chunks([elements, *parts], grid.ndim)


def _read_index(
    array: _Array, form: _Parameters, address: int, n_supers: int, limit: int
) -> tuple[ListedChunks, IntArray, IntArray]:
    """Return elements of the index block, addresses of data blocks and of super blocks."""
    # char[4] "EAIB", uint8 version, uint8 client ID, header address, elements, data block
    # addresses, secondary block addresses, checksum.
    source, size = array.source, array.source.offset_size
    n_deeper = n_supers - form.n_direct
    first = _PREFIX_NBYTES + size
    places = first + form.n_in_index * array.entry_nbytes
    nbytes = places + (form.n_pointers + n_deeper) * size + CHECKSUM_NBYTES
    data = source.take_checked(address, nbytes, b"EAIB", "index block")
    array.check_head(data, address, b"EAIB", "index block")
    padded = np.frombuffer(data + bytes(8), np.uint8)
    number = np.arange(form.n_in_index)
    elements = array.elements(padded, first + number * array.entry_nbytes, number, limit)
    count = form.n_pointers + n_deeper
    addresses = integers(padded, places + np.arange(count) * size, size)
    return elements, addresses[: form.n_pointers], addresses[form.n_pointers :]


def _read_super_blocks(
    array: _Array,
    form: _Parameters,
    supers: list[_SuperBlock],
    address: IntArray,
    blocks: _DataBlocks,
) -> None:
    """Read super blocks at addresses, and add their data blocks."""
    # char[4] "EASB", uint8 version, uint8 client ID, header address, block offset, a bit for
    # each page of all data blocks (if they have pages), data block addresses, checksum.
    size = array.source.offset_size
    allocated = np.flatnonzero(~undefined(address, size))
    if not len(allocated):
        return
    supers, address = [supers[i] for i in allocated.tolist()], address[allocated]
    head_nbytes = _PREFIX_NBYTES + size + form.offset_nbytes
    bits_nbytes = [
        block.n_blocks * -(-(block.block_n // form.page_n) // 8)
        if block.block_n > form.page_n
        else 0
        for block in supers
    ]
    nbytes = [
        min(head_nbytes + bits + block.n_blocks * size + CHECKSUM_NBYTES, TOO_LONG)
        for block, bits in zip(supers, bits_nbytes, strict=True)
    ]
    lengths = np.array(nbytes, dtype=np.int64)
    for batch in array.reader.read(address, lengths, "super block"):
        every = np.arange(len(batch.position))
        array.reader.check_sums(batch, address, "super block")
        array.reader.check_begins(batch, address, every, array.begin(b"EASB"), "super block")
        for row, at in enumerate(batch.position, batch.rows.start):
            block, n_bits = supers[row], bits_nbytes[row]
            head = batch.data[at : at + head_nbytes].tobytes()
            array.check_head(head, int(address[row]), b"EASB", "super block")
            first = integer(head, head_nbytes - form.offset_nbytes, form.offset_nbytes)
            if first != block.first:
                array.source.fail(
                    f"the super block at {int(address[row]):#x} begins with element {first}, "
                    f"not {block.first}"
                )
            places = at + head_nbytes + n_bits
            addresses = integers(batch.data, places + np.arange(block.n_blocks) * size, size)
            bits = batch.data[places - n_bits : places]
            _add_blocks(array, form, block, addresses, bits, blocks, direct=False)


def _add_blocks(
    array: _Array,
    form: _Parameters,
    block: _SuperBlock,
    address: IntArray,
    bits: ByteArray,
    blocks: _DataBlocks,
    *,
    direct: bool,
) -> None:
    """Add the data blocks of one super block; of data blocks with pages the written pages.

    ``bits`` has a bit for each page; it is empty if data blocks have no pages.
    """
    # Data block: char[4] "EADB", uint8 version, uint8 client ID, header address, block offset,
    # elements, checksum. With pages: a checksum in place of the elements, then the pages, each
    # with a checksum of its own.
    size, entry = array.source.offset_size, array.entry_nbytes
    rows = np.flatnonzero(~undefined(address, size))
    first = form.n_in_index + block.first + rows * block.block_n
    # In data blocks whose address is in the index block, libhdf5 writes another block offset.
    stated = np.full(len(rows), -1) if direct else first - form.n_in_index
    head_nbytes = _PREFIX_NBYTES + size + form.offset_nbytes
    if not len(bits):
        nbytes = head_nbytes + block.block_n * entry + CHECKSUM_NBYTES
        blocks.add(address[rows], nbytes, first, block.block_n, head_nbytes, stated)
        return
    n_pages = block.block_n // form.page_n
    whole = head_nbytes + block.block_n * entry + (1 + n_pages) * CHECKSUM_NBYTES
    if len(rows) * whole > array.source.file_nbytes:
        array.source.fail(
            f"a super block of the {array.label} has {len(rows)} data blocks of {whole} bytes, "
            f"and the file {array.source.file_nbytes} bytes"
        )
    blocks.add(address[rows], head_nbytes + CHECKSUM_NBYTES, first, 0, head_nbytes, stated)
    page_nbytes = form.page_n * entry + CHECKSUM_NBYTES
    row, page = np.nonzero(_written_pages(bits, n_pages, rows))
    begin = address[rows][row] + head_nbytes + CHECKSUM_NBYTES + page * page_nbytes
    blocks.add(begin, page_nbytes, first[row] + page * form.page_n, form.page_n, 0)


def _written_pages(bits: ByteArray, n_pages: int, rows: IntArray) -> npt.NDArray[np.uint8]:
    """Return a bit for each page of the data blocks ``rows``, shape ``(n, n_pages)``.

    A super block has whole bytes for each data block, but libhdf5 writes all bits without gaps.
    """
    if n_pages < 8:
        return np.unpackbits(bits).reshape(-1, n_pages)[rows]
    return np.unpackbits(bits.reshape(-1, n_pages // 8)[rows], axis=1)
