"""Symbol tables: the links of old-style groups, checked before HDF5 reads them.

In: bytes of the file through a callable, and the address of an object header.
Out: the hard links, or a `CorruptFileError`. A symbol table has no checksums, and libhdf5
relies on it in places: a damaged one can crash the process or keep it busy for ever.

1. Walk the object header, block by block, and find the Symbol Table message.
2. Check the local heap with the names: its prefix, its data segment and the list of its
   free blocks.
3. Read the B-tree level by level, each level with few reads, down to the symbol table nodes.
4. Check the entries of those nodes as columns against the heap.

The size of the file bounds the work: levels fall by one from parent to child
and no two nodes share a byte.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 1A1 - Version 1
B-trees", "Level 1B - Group Symbol Table Nodes", "Level 1C - Symbol Table Entry",
"Level 1D - Local Heaps" and "The Symbol Table Message". Where that text and libhdf5 differ,
the check follows libhdf5: the name offset of an entry has the size of lengths, and 1, not the
undefined address, says that a heap has no free block.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from xref.arrays import IntArray
from xref.hdf5.metadata_reader import MetadataReader, integer
from xref.hdf5.object_header import SYMBOL_TABLE_MESSAGE, integer_pair, walk_messages
from xref.hdf5.packed import ByteArray

WordArray: TypeAlias = npt.NDArray[np.uint64]

NO_FREE_BLOCK = 1
"""Ends the list of a heap's free blocks (H5HL_FREE_NULL)."""

GROUP_NODE = 0
"""Type of B-tree nodes whose leaves point to symbol table nodes."""

NODE_HEAD_NBYTES = 8
"""Bytes of a B-tree node before its siblings (signature 4, type 1, level 1, entries used 2),
and of a symbol table node before its entries (signature 4, version 1, reserved 1, number 2)."""

SOFT_LINK = 2
"""Largest cache type of an entry: a soft link. Entries of other types are hard links."""

HEAP_ALIGNMENT = 8  # the prefix of a local heap is padded to a multiple of these bytes
SCRATCH_NBYTES = 16

MAX_SHARING = 16
"""Bytes of all names, at most, for each byte of the heap's data segment. libhdf5 writes
each name once; without a limit, many links to one long name would fill the memory."""

READ_GAP = 16 << 10
"""Most bytes between two nodes that one read takes: reading them costs about as much as
another call."""

READ_NBYTES = 256 << 10
"""Bytes after which a read of several nodes ends."""

BATCH_NODES = 1 << 16
"""Most symbol table nodes whose entries are in memory at once."""


def check_group(
    source: MetadataReader, header_address: int, segments: dict[int, int] | None = None
) -> None:
    """Check the structures that libhdf5 walks when it lists or searches an old-style group.

    Of any other object, such as a group of the new style, only the header is checked.

    Parameters
    ----------
    source : MetadataReader
        The file.
    header_address : int
        Address of the object header of the group. Take it from a link or a
        reference: `h5py.h5o.get_info` walks the B-tree itself.
    segments : dict, optional
        Address of each local heap by the address of its data segment, filled here. Pass one
        dict for all groups of one open HDF5 file: libhdf5 2.0 dereferences a null pointer in
        the second of two heaps with the same segment, and each heap alone looks valid.

    Raises
    ------
    CorruptFileError
        If a structure contradicts the format or another structure.
    """
    segments = {} if segments is None else segments
    messages = walk_messages(source, header_address, verify=False)
    for body in [m.body for m in messages if m.message_type == SYMBOL_TABLE_MESSAGE]:
        tree, heap = _parse_message(source, body, header_address)
        for _ in _check_tree(source, tree, _check_heap(source, heap, segments)):
            pass


def read_symbol_table(
    source: MetadataReader, body: bytes, header_address: int
) -> list[tuple[bytes, int]]:
    """Return the hard links of an old-style group, in no particular order.

    ``body`` is that of the symbol table message; ``header_address``, of the group's object
    header, is for errors. A link is its name, and the address of the object header that it
    names. Raises CorruptFileError if a structure contradicts the format or another structure.
    """
    tree, heap = _parse_message(source, body, header_address)
    # Shared segments do not matter here: libhdf5 does not read the group.
    names = _check_heap(source, heap, {})
    return [
        (names.get(at), address)
        for name, target in _check_tree(source, tree, names)
        for at, address in zip(name.tolist(), target.tolist(), strict=True)
    ]


def _parse_message(source: MetadataReader, body: bytes, header_address: int) -> tuple[int, int]:
    """Return the addresses of B-tree and local heap, which make up the message."""
    size = source.offset_size
    what = f"symbol table message of the object header at {header_address:#x}"
    return integer_pair(source, body, size, size, what)


class _HeapNames:
    """The data segment of a local heap, which holds null-terminated names."""

    def __init__(self, source: MetadataReader, what: str, data: bytes) -> None:
        self._source = source
        self._what = what
        self._data = data
        self._last_zero = data.rfind(0)
        self._n_copied = 0

    def check_inside(self, offset: WordArray, what: str) -> None:
        """Check that a string begins at each offset and ends inside the segment."""
        # A string has an end if and only if the segment's last null byte lies at or behind
        # the start of the string.
        inside = offset <= self._last_zero if self._last_zero >= 0 else offset < 0
        if not inside.all():
            first = int(offset[~inside][0])
            nbytes = len(self._data)
            found = "past its end" if first >= nbytes else "without a null byte before its end"
            self._source.fail(
                f"{what} is at byte {first} of the {self._what}, {found} ({nbytes})"
            )

    def check_copied(self, offset: WordArray, what: str) -> None:
        """Check the strings that libhdf5 copies, one for each link; none may be empty."""
        self.check_inside(offset, what)
        find, limit = self._data.find, MAX_SHARING * len(self._data)
        for begin in offset.tolist():
            length = find(0, begin) - begin
            if not length:
                self._source.fail(f"{what} is empty, at byte {begin} of the {self._what}")
            self._n_copied += length
            if self._n_copied > limit:
                self._source.fail(
                    f"the names in the {self._what} ({len(self._data)} bytes) overlap: they "
                    f"have more than {MAX_SHARING} times its size"
                )

    def get(self, offset: int) -> bytes:
        """Return the string at a checked offset."""
        return self._data[offset : self._data.index(0, offset)]


def _check_heap(source: MetadataReader, address: int, segments: dict[int, int]) -> _HeapNames:
    """Check a local heap's prefix, segment and free blocks; return the segment."""
    size = source.length_size
    what = f"local heap at {address:#x}"
    # Signature "HEAP" 4, version 1, reserved 3, size of the data segment L, offset of the
    # first free block L, address of the data segment O.
    used = 8 + 2 * size + source.offset_size
    padded = -(-used // HEAP_ALIGNMENT) * HEAP_ALIGNMENT
    prefix = source.take_signed(address, padded, b"HEAP\0", "local heap")
    nbytes = integer(prefix, 8, size)
    free = integer(prefix, 8 + size, size)
    segment = integer(prefix, 8 + 2 * size, source.offset_size)
    if not nbytes:
        source.fail(f"the {what} has an empty data segment")
    data = source.take(segment, nbytes, f"data segment of the {what}")
    if segments.setdefault(segment, address) != address:
        source.fail(
            f"the {what} has its data segment at {segment:#x}, as the one at "
            f"{segments[segment]:#x} has"
        )
    # A free block: offset of the next free block L, size of this block L. More blocks of that
    # smallest size than the segment has room for are a loop.
    n_free, block_nbytes = 0, 2 * size
    while free != NO_FREE_BLOCK:
        n_free += 1
        if free > nbytes - block_nbytes or n_free > nbytes // block_nbytes:
            source.fail(
                f"free block {n_free} of the {what} is at byte {free} of its data segment "
                f"({nbytes} bytes), which it leaves or where it forms a loop"
            )
        following = integer(data, free, size)
        length = integer(data, free + size, size)
        if not following or length > nbytes - free:
            source.fail(
                f"free block {n_free} of the {what}, at byte {free} of its data segment "
                f"({nbytes} bytes), has {length} bytes and is followed by one at {following}"
            )
        free = following
    return _HeapNames(source, f"data segment of the {what}", data)


def _check_tree(
    source: MetadataReader, root: int, names: _HeapNames
) -> Iterator[tuple[WordArray, WordArray]]:
    """Check a B-tree of group nodes, from its root to the entries of its leaves.

    Yields hard links of some nodes: offset of the name in the heap's segment, and address of
    the object header, each of shape ``(m,)``.
    """
    # The root tells the depth; every level below must state one less.
    level = source.take(root, NODE_HEAD_NBYTES, "B-tree node")[5]
    nodes = np.array([root], dtype=np.uint64)
    leftmost, total = root, 0
    for below in range(level, -1, -1):
        children, nbytes = _read_level(source, nodes, leftmost, below, names)
        total += nbytes
        if total > source.file_nbytes:
            source.fail(f"the nodes of the B-tree at {root:#x} overlap")
        if not len(children):
            return
        leftmost, nodes = int(children[0]), children
    nodes = np.sort(nodes)
    for begin in range(0, len(nodes), BATCH_NODES):
        yield _check_entries(source, nodes[begin : begin + BATCH_NODES], names)


def _read_level(
    source: MetadataReader, nodes: WordArray, leftmost: int, level: int, names: _HeapNames
) -> tuple[WordArray, int]:
    """Check all B-tree nodes of one level; return their children in order, and bytes read."""
    offset_size, length_size = source.offset_size, source.length_size
    head_nbytes = NODE_HEAD_NBYTES + 2 * offset_size
    # Signature "TREE" 4, type 1, level 1, entries used 2, left sibling O, right sibling O,
    # then keys and children. Nodes are read in the order of their addresses.
    order = np.argsort(nodes)
    address = _inside(source, nodes[order], head_nbytes, "B-tree node")
    head = _read_apart(source, address, np.full(len(address), head_nbytes), "B-tree node")
    table = head.reshape(-1, head_nbytes)
    expected = np.frombuffer(b"TREE" + bytes([GROUP_NODE, level]), np.uint8)
    wrong = np.flatnonzero((table[:, :6] != expected).any(axis=1))
    if len(wrong):
        source.fail(
            f"no group's B-tree node of level {level} is at {address[wrong[0]]:#x}: the bytes "
            f"there begin with {table[wrong[0], :6].tobytes()!r}, not with "
            f"{expected.tobytes()!r}"
        )
    used = _words(table, 6, 2).astype(np.int64)
    if level and not used.all():
        source.fail(
            f"the B-tree node at {address[np.flatnonzero(used == 0)[0]]:#x} of level {level} "
            "has no children"
        )
    right = _words(table, NODE_HEAD_NBYTES + offset_size, offset_size)
    _check_siblings(source, address, right, leftmost, level)

    # Key 0 (name offset) L, child 0 O, key 1 L, child 1 O, ... and one key behind the last
    # child. Nodes without children have no keys.
    record = length_size + offset_size
    nbytes = np.where(used > 0, used * record + length_size, 0)
    body = _read_apart(source, address + head_nbytes, nbytes, "B-tree node")
    start = np.cumsum(nbytes) - nbytes
    keys = _ranges(start, used + (used > 0), record)
    names.check_inside(_words(_rows(body, keys, length_size), 0, length_size), "a B-tree key")
    # Children in the order of their parents, which is the order of the names.
    by_parent = np.argsort(order)
    children = _ranges(start[by_parent] + length_size, used[by_parent], record)
    child = _words(_rows(body, children, offset_size), 0, offset_size)
    return child, len(head) + len(body)


def _check_siblings(
    source: MetadataReader, address: IntArray, right: WordArray, leftmost: int, level: int
) -> None:
    """Check the chain of right siblings, along which libhdf5 walks a level.

    Each step must lead to a node of the level that was not visited.
    """
    following = dict(zip(address.tolist(), right.tolist(), strict=True))
    at = leftmost
    while (after := following.pop(at)) != source.undefined:
        if after not in following:
            source.fail(
                f"the B-tree node at {at:#x} has its right sibling at {after:#x}, where no "
                f"other node of level {level} begins, or one before it"
            )
        at = after


def _check_entries(
    source: MetadataReader, nodes: WordArray, names: _HeapNames
) -> tuple[WordArray, WordArray]:
    """Check symbol table nodes, in ascending order, and all their entries.

    Returns name offsets and addresses of hard links, as `_check_tree` yields them.
    """
    # An entry: name offset L (see above), address of the object header O, cache type 4,
    # reserved 4, scratch pad 16. The scratch pad of a soft link holds the offset of its value
    # in the heap 4.
    offset_size, length_size = source.offset_size, source.length_size
    entry_nbytes = length_size + offset_size + 8 + SCRATCH_NBYTES
    what = "symbol table node"
    address = _inside(source, nodes, NODE_HEAD_NBYTES, what)
    head = _read_apart(source, address, np.full(len(address), NODE_HEAD_NBYTES), what)
    table = head.reshape(-1, NODE_HEAD_NBYTES)
    wrong = np.flatnonzero((table[:, :5] != np.frombuffer(b"SNOD\x01", np.uint8)).any(axis=1))
    if len(wrong):
        source.fail(
            f"no symbol table node is at {address[wrong[0]]:#x}: the bytes there begin with "
            f"{table[wrong[0], :5].tobytes()!r}, not with b'SNOD\\x01'"
        )
    n_entries = _words(table, 6, 2).astype(np.int64)
    body = _read_apart(source, address + NODE_HEAD_NBYTES, n_entries * entry_nbytes, what)
    entries = body.reshape(-1, entry_nbytes)

    name = _words(entries, 0, length_size)
    names.check_copied(name, "a link's name")
    cache_type = _words(entries, length_size + offset_size, 4)
    if (cache_type > SOFT_LINK).any():
        source.fail(
            f"a symbol table entry has cache type {cache_type.max()}, and the last is 2"
        )
    soft = cache_type == SOFT_LINK
    if soft.any():
        value = _words(entries[soft], length_size + offset_size + 8, 4)
        names.check_copied(value, "a soft link's value")
    target = _words(entries, length_size, offset_size)
    wrong = np.flatnonzero(~soft & ((target == 0) | (target >= source.file_nbytes)))
    if len(wrong):
        source.fail(
            f"link {names.get(int(name[wrong[0]]))!r} names the object header at "
            f"{target[wrong[0]]:#x}, outside the file ({source.file_nbytes} bytes)"
        )
    return name[~soft], target[~soft]


def _inside(source: MetadataReader, address: WordArray, nbytes: int, what: str) -> IntArray:
    """Check that nodes lie inside the file; return their addresses as signed integers."""
    outside = address[address > max(source.file_nbytes - nbytes, 0)]
    if len(outside):
        source.fail(
            f"a {what} is at {outside[0]:#x}, past the end of the file "
            f"({source.file_nbytes} bytes)"
        )
    return address.astype(np.int64)


def _read_apart(
    source: MetadataReader, address: IntArray, nbytes: IntArray, what: str
) -> ByteArray:
    """Read ranges of the file that ascend and do not overlap; return them end to end."""
    end = address + nbytes
    overlap = np.flatnonzero(address[1:] < end[:-1])
    if len(overlap):
        i = int(overlap[0])
        source.fail(f"a {what} reaches {end[i]:#x}, and another begins at {address[i + 1]:#x}")
    far = (address[1:] - end[:-1] > READ_GAP) | (np.diff(address // READ_NBYTES) > 0)
    begins, ends = address.tolist(), end.tolist()
    pieces = []
    for i, j in pairwise([0, *(np.flatnonzero(far) + 1).tolist(), len(begins)]):
        data = source.take(begins[i], ends[j - 1] - begins[i], what)
        for begin, stop in zip(begins[i:j], ends[i:j], strict=True):
            pieces.append(data[begin - begins[i] : stop - begins[i]])
    return np.frombuffer(b"".join(pieces), np.uint8)


def _ranges(start: IntArray, count: IntArray, step: int) -> IntArray:
    """Return ``start + step * arange(count)`` of each row, end to end."""
    before = np.cumsum(count) - count
    return np.repeat(start - step * before, count) + step * np.arange(int(count.sum()))


def _rows(data: ByteArray, position: IntArray, nbytes: int) -> ByteArray:
    """Return the bytes that begin at each position as rows."""
    result: ByteArray = data[position[:, np.newaxis] + np.arange(nbytes)]
    return result


def _words(table: ByteArray, column: int, size: int) -> WordArray:
    """Return the little-endian unsigned integers at one column of all rows."""
    words = np.ascontiguousarray(table[:, column : column + size]).view(f"<u{size}")
    return words[:, 0].astype(np.uint64)
