"""Headers of many objects give the messages that each header gives alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from xref.errors import XrefError
from xref.hdf5.bulk_headers import MAX_BLOCK_NBYTES, HeaderMessages, read_headers
from xref.hdf5.object_header import CONTINUATION_MESSAGE, walk_messages
from xref.objects.parsing import byte_source, file_format
from xref.storage.file_bytes import FileBytes
from xref.storage.open_files import locate_file

LIBVERS = ("earliest", "v108", "latest")


def variety(file: h5py.File) -> None:
    """Write objects with short and long headers, one and several blocks."""
    file["plain"] = np.arange(7.0)
    file["scalar"] = np.int16(3)
    file.create_dataset("chunked", (9, 9), "f4", chunks=(3, 3), compression="gzip")
    file["compound"] = np.zeros(3, dtype=[(f"field {i}", "f8") for i in range(30)])
    for n in (1, 5, 12):
        file[f"attributes {n}"] = np.arange(4, dtype=">i2")
        for i in range(n):
            file[f"attributes {n}"].attrs[f"a{i}"] = np.arange(i)
    file["long"] = 1
    file["long"].attrs["a"] = np.zeros(MAX_BLOCK_NBYTES // 8 + 1)
    file["type"] = np.dtype("i4")
    file.create_dataset("of type", (2,), dtype=file["type"])
    for i in range(12):
        file[f"group/member {i}"] = [i]
    file.create_group("timed", track_order=True)["d"] = 1


def addresses_of(path: Path) -> np.ndarray:
    found: list[int] = []
    with h5py.File(path) as file:
        file.visititems(lambda _, item: found.append(h5py.h5o.get_info(item.id).addr))
    return np.array(found)


def read_many(path: Path, address: np.ndarray) -> HeaderMessages:
    location = locate_file(path)
    form = file_format(location)
    return read_headers(FileBytes(location), address, form)


def messages_of(found: HeaderMessages, number: int, content: bytes) -> list[Any]:
    """The messages of one object; bodies are also looked up in the file."""
    out = []
    for row in np.flatnonzero(found.object == number).tolist():
        at, n = int(found.position[row]), int(found.nbytes[row])
        body = found.data[at : at + n].tobytes()
        assert content[int(found.offset[row]) :][:n] == body
        if found.message_type[row] != CONTINUATION_MESSAGE:
            out.append((int(found.message_type[row]), int(found.flags[row]), body))
    return out


@pytest.mark.parametrize("options", [{}, {"userblock_size": 512}])
@pytest.mark.parametrize("libver", LIBVERS)
def test_bulk_messages_equal_those_of_each_header(
    make: Callable[..., Path], libver: str, options: dict[str, int]
) -> None:
    path = make(variety, libver=libver, **options)
    address = addresses_of(path)
    found = read_many(path, address)
    source = byte_source(locate_file(path), "f.h5")
    alone = [list(map(tuple, walk_messages(source, a))) for a in address.tolist()]
    content = path.read_bytes()
    for i in np.flatnonzero(~found.marked).tolist():
        assert messages_of(found, i, content) == alone[i]
    # Only what is long is left to others.
    marked = [alone[i] for i in np.flatnonzero(found.marked).tolist()]
    assert len(marked) <= 1
    assert all(max(len(body) for *_, body in each) >= MAX_BLOCK_NBYTES for each in marked)


def test_addresses_without_a_header_are_marked(make: Callable[..., Path]) -> None:
    path = make(variety)
    size = path.stat().st_size
    address = np.array([0, -1, 8, size - 16, size - 15, size, 2**62, addresses_of(path)[0]])
    assert read_many(path, address).marked.tolist() == [True] * 7 + [False]


def test_no_addresses_give_no_messages(make: Callable[..., Path]) -> None:
    found = read_many(make(variety), np.zeros(0, dtype=np.int64))
    assert len(found.object) == len(found.marked) == 0


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_damaged_headers_are_marked_or_equal_the_scalar_reader(
    make: Callable[..., Path], libver: str
) -> None:
    path = make(variety, libver=libver)
    address, content = addresses_of(path), path.read_bytes()
    rng = np.random.default_rng(3)
    n_marked = 0
    for k in range(150):
        damaged = bytearray(content)
        for at in address[rng.integers(0, len(address), 3)]:
            damaged[at + rng.integers(0, 120)] = rng.integers(0, 256)
        other = path.with_name(f"damaged{k}.h5")
        other.write_bytes(damaged)
        found = read_many(other, address)
        n_marked += int(found.marked.sum())
        source = byte_source(locate_file(other), "f.h5")
        for i in np.flatnonzero(~found.marked).tolist():
            alone = list(map(tuple, walk_messages(source, int(address[i]))))
            assert messages_of(found, i, bytes(damaged)) == alone
    assert n_marked > 150


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_headers_that_continue_in_a_loop_are_marked(
    make: Callable[..., Path], libver: str
) -> None:
    path = make(variety, libver=libver)
    address = addresses_of(path)
    found = read_many(path, address)
    rows = np.flatnonzero(found.message_type == CONTINUATION_MESSAGE)
    assert len(rows)
    content = bytearray(path.read_bytes())
    for row in rows.tolist():  # back to the header's own first block
        first = int(address[found.object[row]])
        begin = first + (16 if content[first] == 1 else 0)
        at = int(found.offset[row])
        content[at : at + 8] = begin.to_bytes(8, "little")
    path.write_bytes(content)
    again = read_many(path, address)
    assert again.marked[np.unique(found.object[rows])].all()
    source = byte_source(locate_file(path), "f.h5")
    for i in np.unique(found.object[rows]).tolist():
        with pytest.raises(XrefError):
            list(walk_messages(source, int(address[i])))
