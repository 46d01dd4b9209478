"""Version 2 B-trees, read record by record.

In: the address of a B-tree's header and bytes of the file. Out: the bytes of all records.

The tree is read level by level. A node does not state how many records it has: the pointer
to a child tells the number, in as many bytes as the largest possible number needs.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 1A2 - Version 2 B-trees".
"""

from __future__ import annotations

import struct

from xref.hdf5.metadata_reader import MetadataReader, ReadBudget, integer, integer_nbytes

_NODE_OVERHEAD = 10  # of both kinds of nodes: signature 4, version 1, type 1, checksum 4
_NODE_HEAD = 6  # signature, version, type
_MAX_RECORD_BITS = 64  # records that a tree can count


def read_records(
    source: MetadataReader, address: int, btree_type: int, record_nbytes: int
) -> list[bytes]:
    """Return all records of a version 2 B-tree, in no particular order.

    ``address`` is that of the B-tree's header; ``btree_type`` tells what its records hold, each
    of ``record_nbytes`` bytes. Raises CorruptFileError if a node contradicts the format, its
    checksum or its parent, or if the B-tree has another type.
    """
    label = f"B-tree of type {btree_type} at {address:#x}"
    size = source.offset_size
    # B-tree header: signature "BTHD" 4, version 1, type 1, node size 4, record size 2,
    # depth 2, split percent 1, merge percent 1, root node address O, records in the root
    # node 2, records in the tree L, checksum 4. (O: size of offsets, L: size of lengths.)
    header = source.take_checked(
        address, 22 + size + source.length_size, b"BTHD\0", "B-tree header"
    )
    found_type, node_nbytes, found_nbytes, depth = struct.unpack_from("<BIHH", header, 5)
    if found_type != btree_type or found_nbytes != record_nbytes:
        source.fail(
            f"the B-tree at {address:#x} has type {found_type} and records of {found_nbytes} "
            f"bytes, not type {btree_type} and {record_nbytes} bytes"
        )
    root, n_root = integer(header, 16, size), integer(header, 16 + size, 2)
    n_total = integer(header, 18 + size, source.length_size)
    if not n_root:
        if n_total:
            source.fail(f"the {label} has {n_total} records and an empty root")
        return []
    pointer_sizes = child_pointer_sizes(source, node_nbytes, record_nbytes, depth, label)
    budget, records = ReadBudget(source, label), list[bytes]()
    nodes = [(root, n_root)]
    for level in range(depth, -1, -1):
        signature = (b"BTIN\0" if level else b"BTLF\0") + bytes([btree_type])
        count_nbytes, pointer_nbytes = pointer_sizes[level]
        children = list[tuple[int, int]]()
        for node, n_records in nodes:
            # Signature, version, type; n records; n + 1 child pointers; checksum. A child
            # pointer: address O, records in the child, records in the subtree (only where
            # the children are internal nodes).
            end = _NODE_HEAD + n_records * record_nbytes
            nbytes = end + (n_records + 1) * pointer_nbytes * (level > 0) + 4
            if nbytes > node_nbytes:
                source.fail(
                    f"a node of the {label} has {n_records} records, more than it has room for"
                )
            budget.spend(nbytes)
            data = source.take_checked(node, nbytes, signature, "B-tree node")
            starts = range(_NODE_HEAD, end, record_nbytes)
            records += [data[i : i + record_nbytes] for i in starts]
            if level:
                children += [
                    (integer(data, i, size), integer(data, i + size, count_nbytes))
                    for i in range(end, nbytes - 4, pointer_nbytes)
                ]
        nodes = children
    if len(records) != n_total:
        source.fail(f"the {label} has {len(records)} records, its header says {n_total}")
    return records


def child_pointer_sizes(
    source: MetadataReader, node_nbytes: int, record_nbytes: int, depth: int, label: str
) -> list[tuple[int, int]]:
    """Return, by level from the leaves, bytes of a child's record count and of its pointer."""
    most = total = (node_nbytes - _NODE_OVERHEAD) // record_nbytes
    # libhdf5 (H5B2hdr.c) writes the record count of any child in as many bytes as a leaf's
    # count needs; internal nodes have fewer records, because of their pointers.
    count_nbytes, total_nbytes = integer_nbytes(max(most, 0)), 0
    sizes = [(0, 0)]
    for _ in range(depth):
        pointer = source.offset_size + count_nbytes + total_nbytes
        most = (node_nbytes - _NODE_OVERHEAD - pointer) // (record_nbytes + pointer)
        total = (most + 1) * total + most
        if most < 1 or total >> _MAX_RECORD_BITS:
            break
        sizes.append((count_nbytes, pointer))
        total_nbytes = integer_nbytes(total)
    if len(sizes) <= depth:
        source.fail(f"the {label} has {depth} levels of nodes of {node_nbytes} bytes")
    return sizes
