"""Heap collections and encoded selections, written by hand.

Source of the layouts: HDF5 File Format Specification 4.0, "Disk Format: Level 1E - Global
Heap", "Reference Encoding (Backward Compatibility)" and "Dataspace Encoding".
"""

from __future__ import annotations

import struct
from typing import Any

ADDRESS = 0x1234
LETTER = {2: "H", 4: "I", 8: "Q"}


def numbers(size: int, *values: int) -> bytes:
    """Unsigned little-endian numbers; `UNLIMITED` is all ones."""
    mask = 2 ** (8 * size) - 1
    return struct.pack(f"<{len(values)}{LETTER[size]}", *(v & mask for v in values))


def header(kind: int, version: int, address_size: int = 8) -> bytes:
    return numbers(address_size, ADDRESS) + numbers(4, kind, version)


def nothing(kind: int, address_size: int = 8) -> bytes:
    return header(kind, 1, address_size) + bytes(8)


def points_v1(coords: list[tuple[int, ...]], address_size: int = 8) -> bytes:
    flat = [n for row in coords for n in row]
    body = numbers(4, len(coords[0]), len(coords), *flat)
    return header(1, 1, address_size) + bytes(4) + numbers(4, len(body)) + body


def points_v2(coords: list[tuple[int, ...]], size: int, address_size: int = 8) -> bytes:
    flat = [n for row in coords for n in row]
    body = numbers(4, len(coords[0])) + numbers(size, len(coords), *flat)
    return header(1, 2, address_size) + bytes([size]) + body


def corners(blocks: list[tuple[Any, Any]]) -> list[int]:
    """First and last element of each block; ``blocks`` have an exclusive stop."""
    return [n for low, high in blocks for n in (*low, *(h - 1 for h in high))]


def blocks_v1(blocks: list[tuple[Any, Any]], address_size: int = 8) -> bytes:
    body = numbers(4, len(blocks[0][0]), len(blocks), *corners(blocks))
    return header(2, 1, address_size) + bytes(4) + numbers(4, len(body)) + body


def blocks_v3(blocks: list[tuple[Any, Any]], size: int, address_size: int = 8) -> bytes:
    body = numbers(4, len(blocks[0][0])) + numbers(size, len(blocks), *corners(blocks))
    return header(2, 3, address_size) + bytes([0, size]) + body


def regular_v2(axes: list[tuple[int, int, int, int]], address_size: int = 8) -> bytes:
    body = numbers(4, len(axes)) + numbers(8, *(n for axis in axes for n in axis))
    return header(2, 2, address_size) + b"\x01" + numbers(4, len(body)) + body


def regular_v3(
    axes: list[tuple[int, int, int, int]], size: int, address_size: int = 8
) -> bytes:
    body = numbers(4, len(axes)) + numbers(size, *(n for axis in axes for n in axis))
    return header(2, 3, address_size) + bytes([1, size]) + body


def heap_object(index: int, data: bytes, length_size: int = 8, count: int = 1) -> bytes:
    """Object index, reference count, reserved, size, data padded to eight bytes."""
    size = len(data).to_bytes(length_size, "little").ljust(8, b"\0")
    head = index.to_bytes(2, "little") + count.to_bytes(2, "little") + bytes(4) + size
    return head + data + bytes(-len(data) % 8)


def collection(*objects: bytes, length_size: int = 8, free: int = 64) -> bytes:
    """A collection; ``free`` bytes of free space (object 0) at its end."""
    body = b"".join(objects)
    if free >= 16:
        body += (
            bytes(8) + free.to_bytes(length_size, "little").ljust(8, b"\0") + bytes(free - 16)
        )
    else:
        body += bytes(free)
    size = (16 + len(body)).to_bytes(length_size, "little").ljust(8, b"\0")
    return b"GCOL\x01\0\0\0" + size + body
