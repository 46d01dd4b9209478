"""Damaged elements that hold references give values or an error, in bounded time and memory."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from damaged_files import only_xref_errors, read_all
from elements import FORMS, targets
from forks import in_fork
from samples import open_h5
from strategies import scaled
from typed import Ref, compound, number, reference, sequence, write_attribute, write_dataset

import xref

pytestmark = pytest.mark.slow

DAMAGED = ["all three", "nested", "sequence in a compound", "sequence of sequences", "text"]


class Sample:
    """A file with elements of several types, and the byte ranges of its parts."""

    def __init__(self, path: Path, **options: Any) -> None:
        with h5py.File(path, "w", **options) as file:
            targets(file)
            for name in DAMAGED:
                form, make = FORMS[name]
                values = [make(k) for k in range(6)]
                write_dataset(file, name, form, values, (6,))
                write_attribute(file["data"], name, form, values[:3], (3,))
            file.flush()
            self.stored = [
                (file[name].id.get_offset(), file[name].id.get_storage_size())
                for name in DAMAGED
            ]
            self.headers = [(h5py.h5o.get_info(file[n].id).addr, 400) for n in DAMAGED]
        self.path, self.data = path, path.read_bytes()
        heap = self.data.find(b"GCOL")
        self.heaps = []
        while heap >= 0:
            (nbytes,) = struct.unpack_from("<Q", self.data, heap + 8)
            self.heaps.append((heap, min(nbytes, 1500)))
            heap = self.data.find(b"GCOL", heap + 4)

    def changed(self, name: str, *changes: tuple[int, bytes]) -> Path:
        data = bytearray(self.data)
        for at, new in changes:
            data[at : at + len(new)] = new
        path = self.path.with_name(f"{name}.h5")
        path.write_bytes(data)
        return path

    def flips(self, ranges: list[tuple[int, int]], n: int, seed: int) -> Iterator[Path]:
        """Write copies with one to three bytes changed."""
        chance = random.Random(seed)
        places = [at for begin, nbytes in ranges for at in range(begin, begin + nbytes)]
        for k in range(scaled(n)):
            changes = [
                (chance.choice(places), bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF))]))
                for _ in range(chance.choice((1, 1, 2, 3)))
            ]
            yield self.changed(f"flip{k}", *changes)


def test_an_undamaged_file_raises_nothing(tmp_path: Path) -> None:
    assert list(read_all([Sample(tmp_path / "sample.h5").path]).values()) == [[]]


@pytest.mark.parametrize("where", ["stored", "heaps", "headers"])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_flipped_bytes_raise_xref_errors_or_read(
    tmp_path: Path, where: str, libver: str
) -> None:
    sample = Sample(tmp_path / "sample.h5", libver=libver)
    only_xref_errors(read_all(list(sample.flips(getattr(sample, where), 20, seed=4))))


LENGTHS = [2**31 - 1, 2**31, 2**32 - 1, 4]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_sequence_longer_than_its_heap_object_raises(tmp_path: Path, length: int) -> None:
    form = compound(n=number("i8"), many=sequence(reference("object")))
    with h5py.File(tmp_path / "file.h5", "w") as file:
        targets(file)
        value = {"n": 1, "many": [Ref("/data")] * 3}
        write_dataset(file, "held", form, [value] * 2, (2,))
        file.flush()
        at = file["held"].id.get_offset() + 8
    data = bytearray((tmp_path / "file.h5").read_bytes())
    data[at : at + 4] = struct.pack("<I", length)
    (tmp_path / "file.h5").write_bytes(data)
    says = rf"element 0 of '/held'.* {length} elements"
    with open_h5(tmp_path / "file.h5") as ds, pytest.raises(xref.CorruptFileError, match=says):
        ds["held"].load()


def share_heap_object(path: Path, base: Any, value: list[Any], n: int) -> None:
    """Write n sequences that all point at the same heap object."""
    with h5py.File(path, "w") as file:
        targets(file)
        write_dataset(file, "one", sequence(base), [value], (1,))
        write_dataset(file, "held", sequence(base), [[]] * n, (n,))
        file.flush()
        one, many = (file[name].id.get_offset() for name in ("one", "held"))
    data = bytearray(path.read_bytes())
    data[many : many + 16 * n] = data[one : one + 16] * n
    path.write_bytes(data)


def test_sequences_that_share_a_heap_object_read_it_once(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    share_heap_object(path, reference("object"), [Ref("/data")] * 5000, 20000)

    def read() -> list[int]:
        with open_h5(path) as ds:
            values = ds["held"].values
            return [len(values), len(values[0]), len(values[-1]), bool(values[7][4999])]

    assert in_fork(read) == {"result": [20000, 5000, 5000, True]}


def test_texts_that_share_heap_bytes_are_limited_in_total_size(tmp_path: Path) -> None:
    # All texts begin at the same byte; each is one byte longer than the next.
    path, n = tmp_path / "file.h5", 40000
    form, _ = FORMS["text"]
    with h5py.File(path, "w") as file:
        targets(file)
        value = {"name": b"x" * 60000, "of": None, "ascii": b""}
        write_dataset(file, "held", form, [value] + [value | {"name": b""}] * (n - 1), (n,))
        file.flush()
        at, width = file["held"].id.get_offset(), file["held"].id.get_storage_size() // n
    data = bytearray(path.read_bytes())
    for k in range(n):
        data[at + k * width : at + k * width + 16] = (
            struct.pack("<I", 60000 - k) + data[at + 4 : at + 16]
        )
    path.write_bytes(data)

    def read() -> int:
        with open_h5(path) as ds:
            return len(ds["held"].values)

    answer = in_fork(read)
    assert "ResultTooLargeError" in answer["error"], answer
    assert "read fewer" in answer["error"]


def test_sequences_that_contain_themselves_terminate(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    base: Any = reference("object")
    for _ in range(20):
        base = sequence(base)
    with h5py.File(path, "w") as file:
        targets(file)
        inner: Any = [Ref("/data")]
        for _ in range(20):
            inner = [inner]
        write_dataset(file, "held", base, [inner[0]], (1,))
        file.flush()
        at = file["held"].id.get_offset()
    data = bytearray(path.read_bytes())
    # A heap object of 200 elements, each of which points at the heap object itself.
    heap_at = -(-len(data) // 8) * 8
    data += bytes(heap_at - len(data))
    element = struct.pack("<IQI", 200, heap_at, 1)
    nbytes = 16 + 16 + 200 * 16 + 1024
    data += b"GCOL\1\0\0\0" + struct.pack("<Q", nbytes)
    data += struct.pack("<HHIQ", 1, 1, 0, 200 * 16) + element * 200 + bytes(1024)
    data[at : at + 16] = element
    # The end of the file, which the superblock states.
    data[40:48] = struct.pack("<Q", len(data))
    path.write_bytes(data)

    def read() -> int:
        with open_h5(path) as ds:
            value = ds["held"].values[0]
            depth = 0
            while isinstance(value, np.ndarray) and len(value):
                value, depth = value[0], depth + 1
            return depth

    answer = in_fork(read)
    assert answer.get("result") == 20 or "XrefError" in str(answer.get("error")), answer
