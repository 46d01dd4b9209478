"""Chunks that arrays list: fixed arrays, which cannot grow, and extensible ones.

In: the address of an array's header. Out: the chunks that it lists, as columns.

1. Header and index block tell how elements are spread over data blocks.
2. All super blocks are read together; they have the addresses of more data blocks.
3. All data blocks and pages of data blocks are read together. A page that was never
   written is not there, and a bit says so.

An element's number is the place of its chunk in the grid of the largest extent, in C
order; where an extensible array has an axis without limit, that axis counts as the first.

Source: HDF5 File Format Specification 4.0, "The Fixed Array Index" and "The Extensible
Array Index".
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from xref.arrays import BoolArray, IntArray
from xref.errors import UnsupportedError
from xref.hdf5.chunk_index.btrees import MASK_NBYTES, ListedChunks, joined, spans, with_address
from xref.hdf5.chunk_index.nodes import CHECKSUM_NBYTES, NodeBatch, NodeReader, columns_of
from xref.hdf5.metadata_reader import integer
from xref.hdf5.packed import ByteArray, integers, undefined

_MAX_BITS = 62
"""Elements of one array are numbered below two to this power; libhdf5 uses 32."""

TOO_LONG = 2**62
"""Bytes of no block, and elements of no array: what is as long is refused as such."""

_PREFIX_NBYTES = 6  # signature, version, client


@dataclass(frozen=True, slots=True)
class Grid:
    """Where in a dataset the chunk of each element of an array lies.

    Parameters
    ----------
    shape : tuple of (int or None)
        Chunks along each axis of the largest extent; None for the one without limit.
    chunk_nbytes : int
        Bytes of one chunk without filters.
    filtered : bool
        Whether the dataset has filters.
    """

    shape: tuple[int | None, ...]
    chunk_nbytes: int
    filtered: bool

    @property
    def ndim(self) -> int:
        """Rank of the dataset."""
        return len(self.shape)

    def cells(self, number: IntArray) -> IntArray:
        """Return the cell of each element, shape ``(n, ndim)``."""
        axes = sorted(range(self.ndim), key=lambda axis: self.shape[axis] is not None)
        cell = np.empty((len(number), self.ndim), dtype=np.int64)
        rest = number
        for axis in axes[:0:-1]:
            length = self.shape[axis] or 1
            # One past the largest integer is more than any number.
            before = rest // length if length < 2**63 else np.zeros_like(rest)
            cell[:, axis] = rest - before * min(length, 2**63 - 1)
            rest = before
        cell[:, axes[0]] = rest
        return cell


@dataclass(slots=True)
class _Pieces:
    """Data blocks and pages of them: where each lies, and which elements it holds."""

    address: list[IntArray] = field(default_factory=list)
    nbytes: list[IntArray] = field(default_factory=list)
    first: list[IntArray] = field(default_factory=list)  # number of the first element
    n: list[IntArray] = field(default_factory=list)  # elements
    head_nbytes: list[IntArray] = field(default_factory=list)  # 0 of pages
    stated: list[IntArray] = field(default_factory=list)  # first element in the head, or -1

    def add(
        self,
        address: IntArray,
        nbytes: int,
        first: IntArray,
        n: int,
        head_nbytes: int,
        stated: IntArray | None = None,
    ) -> None:
        """Add pieces of one length; ``stated`` is what data blocks say of their place."""
        self.address.append(address)
        self.stated.append(np.full(len(address), -1) if stated is None else stated)
        self.first.append(first)
        nbytes = min(nbytes, TOO_LONG)
        rows = (self.nbytes, nbytes), (self.n, n), (self.head_nbytes, head_nbytes)
        for column, value in rows:
            column.append(np.full(len(address), value, dtype=np.int64))


class _Array:
    """What the data blocks of one array have in common."""

    def __init__(
        self, reader: NodeReader, grid: Grid, address: int, head: bytes, signature: bytes
    ) -> None:
        self.source = reader.source
        self.reader = reader
        self.grid = grid
        self.address = address
        self.signature = signature
        self.what = f"array of chunks at {address:#x}"
        version, self.client, self.entry_nbytes = head[4:7]
        if version or self.client > 1:
            raise UnsupportedError(
                f"{self.source.where}: the {self.what} has version {version} and holds "
                f"elements of type {self.client}"
            )
        size_nbytes = self.entry_nbytes - self.source.offset_size - MASK_NBYTES
        fits = 1 <= size_nbytes <= 8 if self.client else size_nbytes == -MASK_NBYTES
        if self.client != grid.filtered or not fits:
            self.source.fail(
                f"the {self.what} has elements of type {self.client} and "
                f"{self.entry_nbytes} bytes, and the dataset has "
                f"{'' if grid.filtered else 'no '}filters"
            )
        self.widths = [self.source.offset_size]
        if self.client:
            self.widths += [size_nbytes, MASK_NBYTES]

    def begin(self, signature: bytes) -> bytes:
        """Return what each block of the array begins with: then comes its address."""
        return signature + bytes([0, self.client])

    def check_head(self, data: bytes, address: int, signature: bytes, what: str) -> None:
        """Refuse a block that is of another array, or of none."""
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
        """Decode elements of which numbers are below a limit."""
        address, *rest = columns_of(data, position, self.widths)
        # Most elements of a sparse array are empty: they go before cells are worked out.
        keep = ~undefined(address, self.source.offset_size) & (number < limit)
        address, number = address[keep], number[keep]
        if rest:
            nbytes, mask = (column[keep] for column in rest)
        else:
            nbytes = np.full(len(address), self.grid.chunk_nbytes)
            mask = np.zeros(len(address), dtype=np.int64)
        return with_address(
            self.grid.cells(number), address, nbytes, mask, self.source.offset_size
        )

    def read(self, pieces: _Pieces, limit: int, offset_nbytes: int) -> list[ListedChunks]:
        """Read data blocks and pages; decode elements with numbers below a limit."""
        if not pieces.address:
            return []
        address, nbytes, first, n, head_nbytes, stated = (
            np.concatenate(column)
            for column in (
                pieces.address,
                pieces.nbytes,
                pieces.first,
                pieces.n,
                pieces.head_nbytes,
                pieces.stated,
            )
        )
        found = []
        for lot in self.reader.read(address, nbytes, "data block"):
            rows = lot.rows
            self.reader.check_sums(lot, address, "data block")
            heads = np.flatnonzero(head_nbytes[rows])
            self.reader.check_begins(
                lot, address, heads, self.begin(self.signature), "data block"
            )
            self._check_owners(lot, address, heads, stated, offset_nbytes)
            position = spans(lot.position + head_nbytes[rows], n[rows], self.entry_nbytes)
            found.append(
                self.elements(lot.data, position, spans(first[rows], n[rows], 1), limit)
            )
        return found

    def _check_owners(
        self,
        lot: NodeBatch,
        address: IntArray,
        heads: IntArray,
        stated: IntArray,
        offset_nbytes: int,
    ) -> None:
        """Refuse data blocks of another array, or of another place in it."""
        if not len(heads):
            return
        size = self.source.offset_size
        widths = [size, offset_nbytes] if offset_nbytes else [size]
        owner, *offset = columns_of(lot.data, lot.position[heads] + _PREFIX_NBYTES, widths)
        wrong = owner != self.address
        for column in offset:
            expected = stated[lot.rows][heads]
            wrong |= (expected >= 0) & (column != expected)
        if wrong.any():
            row = int(heads[np.argmax(wrong)])
            self.source.fail(
                f"the data block at {int(address[lot.rows][row]):#x} is of another array than "
                f"the {self.what}, or of another place in it"
            )


# --- fixed arrays ------------------------------------------------------------------------


def read_fixed_array(reader: NodeReader, address: int, grid: Grid) -> ListedChunks:
    """Return the chunks that a fixed array lists.

    Raises
    ------
    CorruptFileError
        If a part of it contradicts the format, its checksum or the extent.
    UnsupportedError
        If it has a version that is not known.
    """
    source, size = reader.source, reader.source.offset_size
    head = source.take_checked(
        address, 8 + source.length_size + size + CHECKSUM_NBYTES, b"FAHD", "array header"
    )
    array = _Array(reader, grid, address, head, b"FADB")
    page = 1 << head[7]
    n = integer(head, 8, source.length_size)
    block = integer(head, 8 + source.length_size, size)
    room = math.prod(length or 0 for length in grid.shape)
    if n != room:
        source.fail(f"the {array.what} has {n} elements, and the dataset {room} chunks")
    if block == source.undefined or not n:
        return joined([], grid.ndim)
    n_pages = -(-n // page) if n > page else 0
    bits_nbytes = -(-n_pages // 8)
    head_nbytes = _PREFIX_NBYTES + size + bits_nbytes
    whole = head_nbytes + n * array.entry_nbytes + (1 + n_pages) * CHECKSUM_NBYTES
    if block > source.file_nbytes - whole:
        source.fail(
            f"the {array.what} has a data block at {block:#x} of {whole} bytes, which reaches "
            f"past the end of the file ({source.file_nbytes} bytes)"
        )
    pieces = _Pieces()
    if not n_pages:
        pieces.add(np.array([block]), whole, np.zeros(1, np.int64), n, head_nbytes)
        return joined(array.read(pieces, n, 0), grid.ndim)
    data = source.take_checked(block, head_nbytes + CHECKSUM_NBYTES, b"FADB", "data block")
    array.check_head(data, block, b"FADB", "data block")
    first_page = block + len(data)
    page_nbytes = page * array.entry_nbytes + CHECKSUM_NBYTES
    bits = np.frombuffer(data, np.uint8, bits_nbytes, head_nbytes - bits_nbytes)
    used = np.flatnonzero(np.unpackbits(bits)[:n_pages])
    n_last = n - (n_pages - 1) * page
    for rows, length in (used[used < n_pages - 1], page), (used[used == n_pages - 1], n_last):
        pieces.add(
            first_page + rows * page_nbytes,
            length * array.entry_nbytes + CHECKSUM_NBYTES,
            rows * page,
            length,
            0,
        )
    return joined(array.read(pieces, n, 0), grid.ndim)


# --- extensible arrays -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _SuperBlock:
    """Data blocks of one length, which follow each other."""

    n_blocks: int
    block_n: int  # elements of each data block
    first: int  # number of the first element; those in the index block do not count


@dataclass(frozen=True, slots=True)
class _Parameters:
    """What the header of an extensible array says of its blocks."""

    max_bits: int  # of an element's number
    n_in_index: int  # elements in the index block
    least_block_n: int  # elements of the first data blocks
    least_pointers: int  # data blocks of the first super block
    page_n: int  # elements of a page

    @property
    def offset_nbytes(self) -> int:
        """Bytes of an element's number."""
        return -(-self.max_bits // 8)

    @property
    def n_pointers(self) -> int:
        """Data blocks whose addresses are in the index block."""
        return 2 * (self.least_pointers - 1)

    @property
    def n_direct(self) -> int:
        """Super blocks that are not there: their data blocks' addresses are in the index."""
        return 2 * (self.least_pointers.bit_length() - 1)

    def super_blocks(self) -> list[_SuperBlock]:
        """Return all super blocks that the array may come to have."""
        found, first = [], 0
        for i in range(1 + self.max_bits - (self.least_block_n.bit_length() - 1)):
            n_blocks, block_n = 1 << i // 2, self.least_block_n << (i + 1) // 2
            found.append(_SuperBlock(n_blocks, block_n, first))
            first += n_blocks * block_n
        return found


def read_extensible_array(reader: NodeReader, address: int, grid: Grid) -> ListedChunks:
    """Return the chunks that an extensible array lists.

    Raises
    ------
    CorruptFileError
        If a part of it contradicts the format or its checksum.
    UnsupportedError
        If it has a version or a shape that is not known.
    """
    source, size = reader.source, reader.source.offset_size
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
            f"the {array.what} has data blocks of {least_block_n} elements, {least_pointers} "
            f"of them in a super block, for {max_bits} bits"
        )
    longest = max(block.block_n for block in supers[: form.n_direct] or supers[:1])
    if max_bits > _MAX_BITS or longest > form.page_n:
        raise UnsupportedError(
            f"{source.where}: the {array.what} has data blocks of {longest} elements and pages "
            f"of {form.page_n} in its index block, for {max_bits} bits"
        )
    if index == source.undefined:
        return joined([], grid.ndim)
    elements, data_blocks, deeper = _read_index(array, form, index, len(supers), limit)
    pieces, none = _Pieces(), np.zeros(0, dtype=np.uint8)
    at = 0
    for block in supers[: form.n_direct]:
        addresses = data_blocks[at : at + block.n_blocks]
        at += block.n_blocks
        _add_blocks(array, form, block, addresses, none, pieces, direct=True)
    _read_super_blocks(array, form, supers[form.n_direct :], deeper, pieces)
    found = array.read(pieces, limit, form.offset_nbytes)
    return joined([elements, *found], grid.ndim)


def _read_index(
    array: _Array, form: _Parameters, address: int, n_supers: int, limit: int
) -> tuple[ListedChunks, IntArray, IntArray]:
    """Return elements of the index block, addresses of data blocks and of super blocks."""
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
    pieces: _Pieces,
) -> None:
    """Read super blocks at addresses, and add their data blocks."""
    size = array.source.offset_size
    there = np.flatnonzero(~undefined(address, size))
    if not len(there):
        return
    own, address = [supers[i] for i in there.tolist()], address[there]
    head_nbytes = _PREFIX_NBYTES + size + form.offset_nbytes
    bits_nbytes = [
        block.n_blocks * -(-(block.block_n // form.page_n) // 8)
        if block.block_n > form.page_n
        else 0
        for block in own
    ]
    nbytes = [
        min(head_nbytes + bits + block.n_blocks * size + CHECKSUM_NBYTES, TOO_LONG)
        for block, bits in zip(own, bits_nbytes, strict=True)
    ]
    lengths = np.array(nbytes, dtype=np.int64)
    for lot in array.reader.read(address, lengths, "super block"):
        every = np.arange(len(lot.position))
        array.reader.check_sums(lot, address, "super block")
        array.reader.check_begins(lot, address, every, array.begin(b"EASB"), "super block")
        for row, at in zip(range(lot.rows.start, lot.rows.stop), lot.position, strict=True):
            block, n_bits = own[row], bits_nbytes[row]
            head = lot.data[at : at + head_nbytes].tobytes()
            array.check_head(head, int(address[row]), b"EASB", "super block")
            first = integer(head, head_nbytes - form.offset_nbytes, form.offset_nbytes)
            if first != block.first:
                array.source.fail(
                    f"the super block at {int(address[row]):#x} begins with element {first}, "
                    f"not {block.first}"
                )
            places = at + head_nbytes + n_bits
            addresses = integers(lot.data, places + np.arange(block.n_blocks) * size, size)
            bits = lot.data[places - n_bits : places]
            _add_blocks(array, form, block, addresses, bits, pieces, direct=False)


def _add_blocks(
    array: _Array,
    form: _Parameters,
    block: _SuperBlock,
    address: IntArray,
    bits: ByteArray,
    pieces: _Pieces,
    *,
    direct: bool,
) -> None:
    """Add the data blocks of one super block, or the pages of them that were written.

    ``bits`` are the bytes that say which; there are none where blocks have no pages.
    """
    size, entry = array.source.offset_size, array.entry_nbytes
    there: BoolArray = ~undefined(address, size)
    rows = np.flatnonzero(there)
    first = form.n_in_index + block.first + rows * block.block_n
    # libhdf5 counts the place of a data block that the index block names from another one.
    stated = np.full(len(rows), -1) if direct else first - form.n_in_index
    head_nbytes = _PREFIX_NBYTES + size + form.offset_nbytes
    if not len(bits):
        nbytes = head_nbytes + block.block_n * entry + CHECKSUM_NBYTES
        pieces.add(address[rows], nbytes, first, block.block_n, head_nbytes, stated)
        return
    n_pages = block.block_n // form.page_n
    whole = head_nbytes + block.block_n * entry + (1 + n_pages) * CHECKSUM_NBYTES
    if len(rows) * whole > array.source.file_nbytes:
        array.source.fail(
            f"a super block of the {array.what} has {len(rows)} data blocks of {whole} bytes, "
            f"and the file {array.source.file_nbytes} bytes"
        )
    pieces.add(address[rows], head_nbytes + CHECKSUM_NBYTES, first, 0, head_nbytes, stated)
    page_nbytes = form.page_n * entry + CHECKSUM_NBYTES
    own, page = np.nonzero(_written_pages(bits, n_pages, rows))
    begin = address[rows][own] + head_nbytes + CHECKSUM_NBYTES + page * page_nbytes
    pieces.add(begin, page_nbytes, first[own] + page * form.page_n, form.page_n, 0)


def _written_pages(bits: ByteArray, n_pages: int, rows: IntArray) -> npt.NDArray[np.uint8]:
    """Return a bit for each page of some data blocks, shape ``(n, n_pages)``.

    There is room for whole bytes for each block, but the bits follow each other.
    """
    if n_pages < 8:
        return np.unpackbits(bits).reshape(-1, n_pages)[rows]
    return np.unpackbits(bits.reshape(-1, n_pages // 8)[rows], axis=1)
