"""The metadata cache image: entries that are right, and images that contradict the file."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from cache_images import Entry, add_image, encode_image, movable_entries, move_to_image
from hypothesis import given
from hypothesis import strategies as st

from xref.errors import CorruptFileError, UnsupportedError, XrefError
from xref.hdf5.superblock import HEAD_NBYTES, read_image_entries


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a file without an image."""
    path = tmp_path_factory.mktemp("image") / "f.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["x"] = np.arange(5)
        file["text"] = np.array(["a", "bc"], dtype=object)
    return path.read_bytes()


def read(file: bytes) -> list[tuple[int, bytes]]:
    entries = read_image_entries(
        file[:HEAD_NBYTES], lambda at, n: file[at : at + n], len(file), "f.h5"
    )
    return [(offset, bytes(data)) for offset, data in entries]


def test_entries_are_offsets_and_bytes_in_ascending_order(content: bytes) -> None:
    moved = move_to_image(content)
    entries = movable_entries(content)
    assert len(entries) == 4
    expected = sorted((e.address, e.data) for e in entries)
    assert read(moved) == expected
    assert read(bytes(8192) + moved) == [(8192 + a, data) for a, data in expected]


def test_files_without_an_image_have_no_entries(content: bytes, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["x"] = 1
    page = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    page.set_file_space_strategy(h5py.h5f.FSPACE_STRATEGY_PAGE, False, 1)
    h5py.h5f.create(bytes(tmp_path / "page.h5"), h5py.h5f.ACC_TRUNC, page).close()
    for file in (
        content,
        (tmp_path / "old.h5").read_bytes(),
        (tmp_path / "page.h5").read_bytes(),  # with a superblock extension
        content[:20],
        b"",
        bytes(3000),
    ):
        assert read(file) == []


def test_a_message_without_an_address_stands_for_no_image(content: bytes) -> None:
    block = encode_image(movable_entries(content))
    message = struct.pack("<BQQ", 0, (1 << 64) - 1, 0)
    assert read(add_image(content, block, message)) == []


def block_of(content: bytes, **fields: int) -> bytes:
    return encode_image(movable_entries(content), **fields)


def flipped(block: bytes) -> bytes:
    return block[:40] + bytes([block[40] ^ 1]) + block[41:]


def hostile_images(content: bytes) -> dict[str, tuple[bytes, str]]:
    """Return a block and the error for each contradiction."""
    one, *others = movable_entries(content)
    end = len(content)
    return {
        "checksum": (flipped(block_of(content)), "has the checksum .*; the file is damaged"),
        "signature": (b"X" + block_of(content)[1:], "no metadata cache image is at"),
        "count": (block_of(content, n_entries=10**9), "1000000000 entries in"),
        "no entries": (encode_image([]), "has only|0 entries"),
        "fewer": (block_of(content, n_entries=1), "bytes follow the entries"),
        "more": (block_of(content, n_entries=5), "has|is for"),
        "long entry": (
            encode_image([Entry(one.address, one.data, nbytes=2**62)]),
            "bytes of the block are left",
        ),
        "empty entry": (encode_image([Entry(one.address, b"", nbytes=0)]), "has 0 bytes"),
        "past the end": (encode_image([Entry(2**40, one.data)]), "past the end of the file"),
        "huge address": (
            encode_image([Entry(2**64 - 2, one.data)]),
            "past the end of the file",
        ),
        "superblock": (encode_image([Entry(8, one.data)]), "in the superblock"),
        "twice": (encode_image([one, one]), "two entries .* are for"),
        "overlap": (encode_image([one, Entry(one.address + 1, one.data), *others]), "overlap"),
        "parent": (
            encode_image([Entry(one.address, one.data, parents=(4,))]),
            "depends on 0x4",
        ),
        "parents": (
            encode_image([Entry(end - 4, b"abcd", parents=tuple(range(9)))]),
            "depends on 0x0",
        ),
    }


KINDS = [
    *("checksum", "count", "empty entry", "fewer", "huge address", "long entry", "more"),
    *("no entries", "overlap", "parent", "parents", "past the end", "signature", "superblock"),
    "twice",
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_contradicts_the_file_is_refused(
    content: bytes, kind: str, tmp_path: Path
) -> None:
    images = hostile_images(content)
    assert sorted(images) == KINDS
    block, message = images[kind]
    damaged = add_image(content, block)
    with pytest.raises(CorruptFileError, match=message):
        read(damaged)
    path = tmp_path / "hostile.h5"
    path.write_bytes(damaged)
    with pytest.raises(CorruptFileError, match=r"hostile\.h5: .*metadata cache image"):
        xr.open_dataset(path, engine="h5ref")


def test_an_image_of_a_later_version_is_unsupported(content: bytes, tmp_path: Path) -> None:
    block = block_of(content)
    for damaged in (
        add_image(content, block_of(content, version=1)),
        add_image(content, block_of(content, flags=1)),
        add_image(content, block, struct.pack("<BQQ", 1, len(content), len(block))),
    ):
        path = tmp_path / "later.h5"
        path.write_bytes(damaged)
        with pytest.raises(UnsupportedError, match=r"later\.h5: .*h5repack"):
            xr.open_dataset(path, engine="h5ref")


def test_a_block_outside_the_file_is_refused(content: bytes) -> None:
    block = block_of(content)
    for address, nbytes in (
        (len(content), 2**62),
        (2**50, len(block)),
        (len(content), 21),
        (len(content) - 1, len(block)),
        (0, len(block)),
    ):
        with pytest.raises(CorruptFileError):
            read(add_image(content, block, struct.pack("<BQQ", 0, address, nbytes)))
    with pytest.raises(CorruptFileError, match=r"the message .* has 3 bytes"):
        read(add_image(content, block, b"\0ab"))


@given(st.data())
def test_random_changes_of_an_image_are_refused_or_decoded(
    content: bytes, data: st.DataObject
) -> None:
    """A few bytes change behind the file proper: the block, and the superblock extension."""
    changed = bytearray(move_to_image(content))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(len(content), len(changed) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    try:
        entries = read(bytes(changed))
    except XrefError:
        return
    assert sum(len(part) for _, part in entries) < len(changed)


def test_a_large_image_is_decoded_in_linear_time(content: bytes) -> None:
    """Counted in lines of Python, since times vary."""

    def count_lines(n: int) -> int:
        file = content + bytes(8 * n)
        entries = [Entry(len(content) + 8 * k, b"x" * 8) for k in range(n)]
        whole, lines = add_image(file, encode_image(entries)), 0

        def trace(frame: object, event: str, _: object) -> object:
            nonlocal lines
            lines += event == "line" and "cache_image" in frame.f_code.co_filename  # type: ignore[attr-defined]
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            assert len(read(whole)) == n
        finally:
            sys.settrace(before)
        return lines

    assert count_lines(400) < 3 * count_lines(200)
