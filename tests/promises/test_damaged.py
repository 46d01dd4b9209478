"""Damaged files give values or raise an error of xref; they never crash or hang.

Each file is opened, printed, tabled and read to the end in a process of its own.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import forks
import h5py
import numpy as np
import pytest
from damaged_files import PACKED, Sample, only_xref_errors, read_all
from forks import in_fork
from strategies import scaled

pytestmark = pytest.mark.slow


def test_in_fork_reports_a_crash_a_hang_and_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang() -> None:
        while True:
            pass

    monkeypatch.setattr(forks, "SECONDS", 1)
    crash = in_fork(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert crash == {"died": "signal SIGKILL"}
    assert in_fork(hang) == {"died": "signal SIGXCPU"}
    assert in_fork(lambda: [][0]) == {"error": "IndexError: list index out of range"}


def test_damaged_corpus_files_open_or_raise_xref_errors(corpus: Path) -> None:
    manifest = json.loads((corpus / "MANIFEST.json").read_text())
    files = [corpus / row["file"] for row in manifest["files"] if row["role"] == "damaged"]
    assert len(files) == 19
    only_xref_errors(read_all(files))


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return Sample(tmp_path / "sample.h5", libver="earliest")


def test_an_undamaged_file_raises_nothing(sample: Sample) -> None:
    (raised,) = read_all([sample.path]).values()
    assert [r.split(":")[0] for r in raised] == ["resolve objects"]  # a dataset and a group


def test_truncated_files_raise_xref_errors_at_open(sample: Sample) -> None:
    files = []
    for n in [
        *range(0, 96, 8),
        *np.linspace(96, len(sample.data) - 1, 40).astype(int).tolist(),
    ]:
        files.append(sample.path.with_name(f"cut{n}.h5"))
        files[-1].write_bytes(sample.data[:n])
    raised = only_xref_errors(read_all(files))
    assert all(r and r[0].startswith("open ") for r in raised.values())


def heap_damage(sample: Sample) -> dict[str, tuple[int, bytes]]:
    """Return changes to the heap or to references, named by the part that they damage."""
    block, points, union = (sample.encoded_at(i) for i in (0, 2, 3))
    assert sample.unpack("<II", block) == (2, 1)  # a hyperslab, version 1
    assert sample.unpack("<II", points) == (1, 1)
    element = sample.regions_at
    return {
        "zeroed": (sample.heap_at, bytes(sample.heap_nbytes)),
        "heap_header_gone": (sample.heap_at, bytes(16)),
        "heap_longer_than_file": (sample.heap_at + 8, struct.pack("<Q", 2**40)),
        "heap_past_end": (element, struct.pack("<Q", 2**40)),
        "heap_address_undefined": (element, struct.pack("<Q", 2**64 - 1)),
        "heap_address_negative": (element, struct.pack("<Q", 2**63)),
        "heap_in_data": (element, struct.pack("<Q", sample.plain_at)),
        "object_missing": (element + 8, struct.pack("<I", 999)),
        "object_index_huge": (element + 8, struct.pack("<I", 2**32 - 1)),
        "object_index_zero": (element + 8, struct.pack("<I", 0)),
        "object_size_huge": (block - 16, struct.pack("<Q", 2**63 - 1)),
        "target_beyond": (block - 8, struct.pack("<Q", 2**50)),
        "target_in_data": (block - 8, struct.pack("<Q", sample.plain_at)),
        "start_past_end": (block + 24, struct.pack("<4I", 9, 40, 2, 10)),
        "blocks_beyond_extent": (block + 24, struct.pack("<4I", 2, 10, 2**31, 2**31)),
        "block_count_huge": (block + 20, struct.pack("<I", 2**31)),
        "block_rank_huge": (block + 16, struct.pack("<I", 2**31)),
        "block_rank_zero": (block + 16, struct.pack("<I", 0)),
        "point_count_huge": (points + 20, struct.pack("<I", 2**31)),
        "point_outside": (points + 24, struct.pack("<I", 40)),
        "version_9": (block + 4, struct.pack("<I", 9)),
        "kind_9": (block, struct.pack("<I", 9)),
        "kind_all_with_rest": (block, struct.pack("<I", 3)),
        "blocks_overlap": (union + 24, sample.data[union + 24 : union + 40] * 2),
    }


ANY_VALUE = {"kind_all_with_rest", "blocks_overlap"}  # legal, or the bytes behind are unused


def test_errors_of_damaged_heaps_name_file_variable_and_element(sample: Sample) -> None:
    damage = heap_damage(sample)
    files = [sample.changed(name, change) for name, change in damage.items()]
    raised = only_xref_errors(read_all(files))
    for name in set(damage) - ANY_VALUE:
        errors = [e for e in raised[f"{name}.h5"] if e.startswith("element ")]
        assert errors, f"{name} gives values"
        for error in errors:
            assert f"{name}.h5" in error, error
        named = [e for e in raised[f"{name}.h5"] if not e.startswith("element ")]
        assert any("'/regions'" in e and "reference" in e for e in named), raised[f"{name}.h5"]


def test_a_damaged_reference_leaves_other_references_readable(sample: Sample) -> None:
    damage = heap_damage(sample)
    row_of = {"version_9": 0, "start_past_end": 0, "object_missing": 0, "point_count_huge": 2}
    raised = read_all([sample.changed(name, damage[name]) for name in row_of])
    for name, row in row_of.items():
        rows = {e.split(":")[0] for e in raised[f"{name}.h5"] if e.startswith("element ")}
        assert rows == {f"element {row} of regions"}


def test_object_references_to_nothing_are_dangling(sample: Sample) -> None:
    import xarray as xr

    import xref

    addresses = [
        1,
        8,
        sample.plain_at,
        sample.heap_at,
        2**20,
        2**40,
        2**63,
        2**64 - 2,
        2**64 - 1,
    ]
    files = [
        sample.changed(f"dangling{k}", (sample.objects_at, struct.pack("<Q", address)))
        for k, address in enumerate(addresses)
    ]
    only_xref_errors(read_all(files))
    for path in files:
        with xr.open_dataset(path, engine="h5ref") as ds:
            references = ds["objects"]
            first, second = references.data[0], references.data[1]
            assert first.kind == "dangling"
            assert first.path is None
            kinds = references.h5ref.table()["kind"].values.tolist()
            assert kinds == ["dangling", "dataset", "group", "datatype", "null"]
            with pytest.raises(xref.DanglingReferenceError, match="dangling"):
                first.resolve()
            with pytest.raises(
                xref.DanglingReferenceError, match=r"dangling\d\.h5: .*dangling"
            ):
                references[:2].h5ref.resolve()
            np.testing.assert_array_equal(second.resolve().values, PACKED)


BAD_CHUNKS = {
    "one byte": b"x",
    "garbage": b"garbage, not a zlib stream",
    "short": zlib.compress(bytes(396)),
    "long": zlib.compress(bytes(404)),
    "bomb": zlib.compress(bytes(1 << 26)),
    "cut": zlib.compress(bytes(range(200)) * 2)[:-6],
}


@pytest.mark.parametrize("stored", BAD_CHUNKS.values(), ids=BAD_CHUNKS)
@pytest.mark.parametrize("reader", ["auto", "direct", "h5py"])
def test_a_chunk_with_a_wrong_decompressed_size_raises(
    sample: Sample, stored: bytes, reader: str
) -> None:
    import xarray as xr

    import xref

    with h5py.File(sample.path, "r+") as file:
        file["packed"].id.write_direct_chunk((0, 10), stored)
    with xr.open_dataset(sample.path, engine="h5ref", reader=reader) as ds:
        np.testing.assert_array_equal(ds["packed"][10:20], PACKED[10:20])
        with pytest.raises(xref.XrefError, match=r"sample\.h5"):
            ds["packed"].load()
        with pytest.raises(xref.XrefError, match=r"sample\.h5"):
            ds["regions"].data[0].resolve().load()
        with pytest.raises(xref.XrefError, match=r"sample\.h5"):
            ds["regions"][:1].h5ref.resolve().load()


def flips(sample: Sample, ranges: list[tuple[int, int]], n: int, seed: int) -> Iterator[Path]:
    """Write copies of a file with one to three bytes changed within some ranges."""
    chance = random.Random(seed)
    places = [at for begin, end in ranges for at in range(begin, end)]
    for k in range(scaled(n)):
        at = chance.choices(places, k=chance.choice((1, 1, 2, 3)))
        new = [chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))) for _ in at]
        yield sample.changed(
            f"flip{k}", *((a, bytes([b])) for a, b in zip(at, new, strict=True))
        )


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_flipped_bytes_in_references_and_heap_raise_xref_errors_or_read(
    tmp_path: Path, libver: str
) -> None:
    sample = Sample(tmp_path / "sample.h5", libver=libver)
    end = max(sample.encoded_at(i) for i in range(7)) + 400
    ranges = [
        (sample.regions_at, sample.regions_at + 96),
        (sample.objects_at, sample.objects_at + 40),
        (sample.heap_at, min(sample.heap_at + sample.heap_nbytes, end)),
    ]
    only_xref_errors(read_all(list(flips(sample, ranges, 100, seed=1))))


def test_flipped_bytes_in_chunks_raise_xref_errors_or_read(sample: Sample) -> None:
    ranges = [(at, at + size) for at, size in sample.chunks]
    only_xref_errors(read_all(list(flips(sample, ranges, 40, seed=2))))


def test_flipped_bytes_in_metadata_raise_xref_errors_or_read(sample: Sample) -> None:
    # Object headers, B-trees and local heaps.
    starts = [
        i for i in range(len(sample.data)) if sample.data[i : i + 4] in (b"TREE", b"SNOD")
    ]
    ranges = [(0, 800), *((i, i + 400) for i in starts)]
    only_xref_errors(read_all(list(flips(sample, ranges, 100, seed=3))))


def test_files_whose_end_is_zeros_open_or_raise_xref_errors(tmp_path: Path) -> None:
    whole = tmp_path / "small.h5"
    with h5py.File(whole, "w") as file:
        data = file.create_dataset("d", data=np.arange(6))
        file.create_dataset("r", (1,), dtype=h5py.regionref_dtype)[0] = data.regionref[2:4]
    data, files = whole.read_bytes(), []
    for n in np.linspace(0, len(data), 30).astype(int).tolist():
        files.append(tmp_path / f"prefix{n}.h5")
        # A sparse copy has the right length, with zeros in place of the missing end.
        files[-1].write_bytes(data[:n] + bytes(len(data) - n))
    only_xref_errors(read_all(files))
