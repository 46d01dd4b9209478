"""Old-style groups: valid groups pass the check, and libhdf5 can list groups that pass.

This module is also a program that lists damaged files, each in a process of its own: with
file names as arguments it prints how each process ended.
"""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from forks import PATIENCE, in_fork
from h5py import h5f, h5g, h5l, h5o, h5p

from xref.errors import CorruptFileError, FileReadError, XrefError
from xref.hdf5.metadata_reader import MetadataReader
from xref.hdf5.symbol_table import check_group

UNDEFINED = (1 << 64) - 1


class Bytes:
    """Reads of a file's bytes from its base address on, counted."""

    def __init__(self, data: bytes, base: int = 0) -> None:
        self.data = bytes(data[base:])
        self.reads: list[tuple[int, int]] = []

    def __call__(self, address: int, nbytes: int) -> bytes:
        self.reads.append((address, nbytes))
        if address < 0 or address + nbytes > len(self.data):
            raise FileReadError(f"{nbytes} bytes at {address} of {len(self.data)}")
        return self.data[address : address + nbytes]


def check(
    source: Bytes,
    address: int,
    segments: dict[int, int] | None = None,
    sizes: tuple[int, int] = (8, 8),
) -> None:
    reader = MetadataReader(source, *sizes, len(source.data), "f.h5: group '/a'")
    check_group(reader, address, segments)


def root_address(file: h5py.File) -> int:
    """Address of the root group, from a call that does not walk its B-tree."""
    low, high = h5g.get_objinfo(file.id, b"/").objno
    return low | high << 32


def walk(file: h5py.File, passes: Callable[[int], bool]) -> Iterator[tuple[bytes, int]]:
    """Yield path and address of all objects, each address asked about before it is opened."""
    address = root_address(file)
    queue = [(h5g.open(file.id, b"/"), b"")]
    seen = {address}
    if not passes(address):
        return
    yield b"/", address
    for group, prefix in queue:  # grows while it is walked
        try:
            h5o.get_info(group)
            names = list(group)
        except (RuntimeError, OSError, ValueError):
            continue
        for name in names:
            try:
                link = group.links.get_info(name)
                if link.type != h5l.TYPE_HARD:
                    group.links.get_val(name)
                    continue
                if link.u in seen or not passes(link.u):
                    continue
                seen.add(link.u)
                yield prefix + b"/" + name, link.u
                item = h5o.open(group, name)
                h5o.get_info(item)
            except (KeyError, RuntimeError, OSError, ValueError, TypeError):
                continue
            if isinstance(item, h5g.GroupID):
                queue.append((item, prefix + b"/" + name))


def check_file(filename: Path | str) -> Counter[str]:
    """Check and list all objects of a file; count those that pass and those that do not."""
    counts: Counter[str] = Counter()
    with h5py.File(filename) as file:
        properties = file.id.get_create_plist()
        sizes = properties.get_sizes()
        source = Bytes(Path(filename).read_bytes(), properties.get_userblock())
        segments: dict[int, int] = {}

        def passes(address: int) -> bool:
            try:
                check(source, address, segments, sizes)
            except XrefError:
                counts["refused"] += 1
                return False
            counts["passed"] += 1
            return True

        counts["objects"] = sum(1 for _ in walk(file, passes))
    counts["heaps"] = len(segments)
    return counts


def list_file(filename: str) -> dict[str, Any]:
    """List a file; return the counts, or the error where HDF5 or the check refuses it."""
    try:
        return dict(check_file(filename))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def ending(filename: str) -> dict[str, Any]:
    """List a file in a fork; any other error counts as a death."""
    answer = in_fork(lambda: list_file(filename))
    return answer.get("result") or {"died": str(answer)}


def list_in_child(filenames: list[Path]) -> list[dict[str, Any]]:
    answer = subprocess.run(
        [sys.executable, __file__, *map(str, filenames)],
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE * len(filenames) + 60,
    )
    return [json.loads(line) for line in answer.stdout.splitlines()]


# --- valid files -------------------------------------------------------------------------


def fill(file: h5py.File, n_members: int = 20) -> None:
    for name in "ab":
        group = file.create_group(name)
        for i in range(n_members):
            group.create_group(f"member {i:02d}" + "x" * (i % 13))
    file.create_group("empty")
    deep = file.create_group("one/two/three")
    deep["data"] = np.arange(3)
    deep["soft"] = h5py.SoftLink("/one/two/three/data")
    deep["dangling"] = h5py.SoftLink("nowhere")
    file["again"] = deep
    many = file.create_group("attributes")
    for i in range(12):
        many.attrs[f"a{i}"] = np.arange(i)


def write_sizes(filename: Path, offset_size: int, length_size: int) -> h5py.File:
    properties = h5p.create(h5p.FILE_CREATE)
    properties.set_sizes(offset_size, length_size)
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_libver_bounds(h5f.LIBVER_EARLIEST, h5f.LIBVER_LATEST)
    return h5py.File(h5f.create(bytes(filename), h5f.ACC_TRUNC, properties, access))


@pytest.mark.parametrize(
    ("options", "n_heaps"),
    [
        ({"libver": "earliest"}, 27 + 20),
        ({"libver": "earliest", "userblock_size": 1024}, 27 + 20),
        ({"libver": "v108"}, 0),
        ({"libver": "latest"}, 0),
        ({"libver": "earliest", "track_order": True}, None),
    ],
    ids=str,
)
def test_written_groups_pass_the_check(
    tmp_path: Path, options: dict[str, Any], n_heaps: int | None
) -> None:
    with h5py.File(tmp_path / "f.h5", "w", **options) as file:
        fill(file)
    counts = check_file(tmp_path / "f.h5")
    assert counts["refused"] == 0
    assert counts["objects"] == counts["passed"] == 49
    if n_heaps is not None:
        assert counts["heaps"] == n_heaps + (n_heaps > 0)  # and the root group's


@pytest.mark.parametrize("sizes", [(4, 4), (4, 8), (8, 4), (8, 8)])
def test_groups_of_every_size_of_offsets_and_lengths_pass(
    tmp_path: Path, sizes: tuple[int, int]
) -> None:
    with write_sizes(tmp_path / "f.h5", *sizes) as file:
        fill(file)
    counts = check_file(tmp_path / "f.h5")
    assert counts["refused"] == 0
    assert counts["heaps"] == 48


def test_groups_pass_after_members_are_added_and_deleted(tmp_path: Path) -> None:
    # Removal merges nodes, leaves free blocks in the heap and shrinks its segment.
    rng = random.Random(7)
    with h5py.File(tmp_path / "f.h5", "w", libver="earliest") as file:
        group = file.create_group("g")
        for _ in range(4):
            for _ in range(300):
                name = f"{rng.randrange(400):x}" * rng.randrange(1, 9)
                if name in group:
                    del group[name]
                elif rng.random() < 0.5:
                    group[name] = h5py.SoftLink("/" + "v" * rng.randrange(1, 50))
                else:
                    group.create_group(name)
            for name in rng.sample(list(group), len(group) // 2):
                del group[name]
            file.flush()
            data = (tmp_path / "f.h5").read_bytes()
            check(Bytes(data), h5o.get_info(group.id).addr)
        for name in list(group):
            del group[name]
    assert check_file(tmp_path / "f.h5") == {"objects": 2, "passed": 2, "heaps": 2}


def test_an_old_group_with_a_header_of_version_2_passes(tmp_path: Path) -> None:
    properties = h5p.create(h5p.GROUP_CREATE)
    properties.set_attr_creation_order(h5p.CRT_ORDER_TRACKED)
    with h5py.File(tmp_path / "f.h5", "w", libver="earliest") as file:
        group = h5py.Group(h5g.create(file.id, b"g", gcpl=properties))
        for i in range(20):
            group.attrs[f"a{i}"] = np.arange(i)
            group[f"soft {i}"] = h5py.SoftLink("/x")
        address = h5o.get_info(group.id).addr
    source = Bytes((tmp_path / "f.h5").read_bytes())
    assert source.data[address : address + 4] == b"OHDR"
    segments: dict[int, int] = {}
    check(source, address, segments)
    assert len(segments) == 1


def test_many_members_take_few_reads(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w", libver="earliest") as file:
        group = file.create_group("g")
        for i in range(3000):
            group[f"link {i:04d}"] = h5py.SoftLink(f"/{i}") if i % 2 else file
        address = h5o.get_info(group.id).addr
    source = Bytes((tmp_path / "f.h5").read_bytes())
    check(source, address)
    assert len(source.reads) < 30
    assert sum(nbytes for _, nbytes in source.reads) < 4 * len(source.data)


def test_groups_of_the_corpus_pass_the_check(corpus: Path) -> None:
    rows = json.loads((corpus / "MANIFEST.json").read_text())["files"]
    counts: Counter[str] = Counter()
    for row in rows:
        if row["role"] in ("references", "parity"):
            found = check_file(corpus / row["file"])
            assert not found["refused"], row["file"]
            counts += found
    assert counts["heaps"] > 400
    assert counts["passed"] > 2500


# --- single damages ----------------------------------------------------------------------


class Old:
    """A file of old-style groups ``a`` and ``b``, and where its structures are."""

    def __init__(self, filename: Path) -> None:
        with h5py.File(filename, "w", libver="earliest") as file:
            fill(file)
            self.address = {n: h5o.get_info(file[n].id).addr for n in ("a", "b", "attributes")}
        self.data = filename.read_bytes()
        self.tree, self.heap = self.table("a")
        self.segment_nbytes, self.free, self.segment = self.words(self.heap + 8, 3)
        (self.node,) = self.words(self.tree + 32, 1)

    def words(self, at: int, n: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{n}Q", self.data, at)

    def table(self, name: str) -> tuple[int, ...]:
        return self.words(self.message(name, 0x11), 2)

    def message(self, name: str, wanted: int) -> int:
        """Address of the body of a message in the first block of a header."""
        at = self.address[name] + 16
        while True:
            kind, nbytes = struct.unpack_from("<HH", self.data, at)
            if kind == wanted:
                return at + 8
            at += 8 + nbytes

    def edited(self, *edits: tuple[int, str, Any]) -> Bytes:
        data = bytearray(self.data)
        for at, form, value in edits:
            struct.pack_into(f"<{form}", data, at, value)
        return Bytes(data)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Old:
    return Old(tmp_path_factory.mktemp("groups") / "old.h5")


DAMAGES: dict[str, tuple[Callable[[Old], list[tuple[int, str, Any]]], str]] = {
    "header version": (lambda o: [(o.address["a"], "B", 3)], "no object header"),
    "header size": (lambda o: [(o.address["a"] + 8, "I", 1 << 30)], "more bytes than the file"),
    "message size": (lambda o: [(o.message("a", 0x11) - 6, "H", 4096)], "4096 bytes"),
    "unaligned message": (lambda o: [(o.message("a", 0x11) - 6, "H", 17)], "17 bytes"),
    "short message": (lambda o: [(o.message("a", 0x11) - 6, "H", 8)], "has 8 of 16 bytes"),
    "tree outside": (lambda o: [(o.message("a", 0x11), "Q", UNDEFINED)], "B-tree node at"),
    "heap outside": (lambda o: [(o.message("a", 0x11) + 8, "Q", 1 << 40)], "local heap at"),
    "heap signature": (lambda o: [(o.heap, "4s", b"HEEP")], "no local heap"),
    "heap version": (lambda o: [(o.heap + 4, "B", 1)], "no local heap"),
    "empty segment": (lambda o: [(o.heap + 8, "Q", 0)], "empty data segment"),
    "long segment": (lambda o: [(o.heap + 8, "Q", 1 << 62)], "past the end of the file"),
    "segment outside": (lambda o: [(o.heap + 24, "Q", UNDEFINED)], "past the end of the"),
    "free list outside": (lambda o: [(o.heap + 16, "Q", UNDEFINED)], "free block 1 of"),
    "free block at the end": (
        lambda o: [(o.heap + 16, "Q", o.segment_nbytes - 8)],
        "free block 1 of",
    ),
    "free block too long": (
        lambda o: [(o.segment + o.free + 8, "Q", 1 << 20)],
        "1048576 bytes",
    ),
    "free block before none": (
        lambda o: [(o.segment + o.free, "Q", 0)],
        "followed by one at 0",
    ),
    "free blocks in a loop": (lambda o: [(o.segment + o.free, "Q", o.free)], "forms a loop"),
    "tree signature": (lambda o: [(o.tree, "4s", b"TREA")], "no group's B-tree node"),
    "tree of chunks": (lambda o: [(o.tree + 4, "B", 1)], "no group's B-tree node"),
    "too many children": (lambda o: [(o.tree + 6, "H", 60000)], "B-tree"),
    "level of a leaf": (lambda o: [(o.tree + 5, "B", 1)], "node of level 0"),
    "level without children": (
        lambda o: [(o.tree + 5, "B", 1), (o.tree + 6, "H", 0)],
        "has no children",
    ),
    "tree in a loop": (
        lambda o: [(o.tree + 5, "B", 1), (o.tree + 6, "H", 1), (o.tree + 32, "Q", o.tree)],
        "no group's B-tree node of level 0",
    ),
    "child twice": (lambda o: [(o.tree + 48, "Q", o.node)], "another begins at"),
    "child outside": (lambda o: [(o.tree + 32, "Q", UNDEFINED)], "past the end of the file"),
    "key outside": (lambda o: [(o.tree + 24, "Q", 1 << 33)], "a B-tree key is at byte"),
    "sibling itself": (lambda o: [(o.tree + 16, "Q", o.tree)], "right sibling"),
    "sibling elsewhere": (lambda o: [(o.tree + 16, "Q", o.table("b")[0])], "right sibling"),
    "node signature": (lambda o: [(o.node, "4s", b"SNOT")], "no symbol table node"),
    "node version": (lambda o: [(o.node + 4, "B", 2)], "no symbol table node"),
    "too many entries": (lambda o: [(o.node + 6, "H", 65535)], "symbol table node"),
    "name outside": (lambda o: [(o.node + 8, "Q", 1 << 63)], "a link's name is at byte"),
    "name empty": (lambda o: [(o.node + 8, "Q", 0)], "a link's name is empty"),
    "name without end": (
        lambda o: (
            [(o.segment + 8 + i, "B", 65) for i in range(o.segment_nbytes - 8)]
            + [(o.heap + 16, "Q", 1)]
        ),
        "without a null byte",
    ),
    "cache type": (lambda o: [(o.node + 24, "I", 3)], "cache type 3"),
    "target outside": (lambda o: [(o.node + 16, "Q", 1 << 50)], "'member 00' names the object"),
    "soft link outside": (
        lambda o: [(o.node + 24, "I", 2), (o.node + 32, "I", 1 << 30)],
        "a soft link's value",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_symbol_tables_raise_with_the_fault(old: Old, damage: str) -> None:
    edits, message = DAMAGES[damage]
    source = old.edited(*edits(old))
    with pytest.raises(CorruptFileError, match=message) as raised:
        check(source, old.address["a"])
    assert str(raised.value).startswith("f.h5: group '/a': ")
    assert len(source.reads) < 30


def test_a_header_that_continues_in_a_loop_raises(old: Old) -> None:
    at = old.message("attributes", 0x10)
    check(Bytes(old.data), old.address["attributes"])
    for address in (old.address["attributes"] + 16, UNDEFINED):
        with pytest.raises(CorruptFileError, match=r"continues at|past the end"):
            check(old.edited((at, "Q", address)), old.address["attributes"])


def test_many_links_to_one_long_name_raise(old: Old) -> None:
    # 21 names of half a segment: listing such a group would multiply its size.
    edits = [(old.segment + 8 + i, "B", 65) for i in range(old.segment_nbytes - 16)]
    edits.append((old.heap + 16, "Q", 1))
    n_nodes = struct.unpack_from("<H", old.data, old.tree + 6)[0]
    for i in range(n_nodes):
        (node,) = old.words(old.tree + 32 + 16 * i, 1)
        n_entries = struct.unpack_from("<H", old.data, node + 6)[0]
        edits += [(node + 8 + 40 * k, "Q", 8) for k in range(n_entries)]
    with pytest.raises(CorruptFileError, match="overlap"):
        check(old.edited(*edits), old.address["a"])


def test_two_heaps_with_one_segment_raise(old: Old) -> None:
    # libhdf5 2.0 gives the second heap no bytes and follows a null pointer: the cause
    # of the crash in cve-2024-32609.h5. Each group alone has no fault.
    _, heap = old.table("b")
    source = old.edited(
        *((heap + 8 + 8 * i, "Q", old.words(old.heap + 8, 3)[i]) for i in range(3))
    )
    check(source, old.address["a"])
    check(source, old.address["b"])
    segments: dict[int, int] = {}
    check(source, old.address["a"], segments)
    check(source, old.address["a"], segments)
    with pytest.raises(CorruptFileError, match="has its data segment at"):
        check(source, old.address["b"], segments)


def test_the_file_that_crashes_libhdf5_raises(corpus: Path) -> None:
    source = Bytes((corpus / "cve_hdf5" / "cve-2024-32609.h5").read_bytes())
    outer, inner = 1576, 2552  # headers of /int and /int/uint
    segments: dict[int, int] = {}
    check(source, outer, segments)
    with pytest.raises(CorruptFileError, match="has its data segment at 0x2000"):
        check(source, inner, segments)


def test_a_failed_read_raises_file_read_error(old: Old) -> None:
    source = Bytes(old.data)

    def fails(address: int, nbytes: int) -> bytes:
        raise FileReadError("the disk is gone")

    with pytest.raises(FileReadError, match="the disk is gone"):
        check_group(MetadataReader(fails, 8, 8, len(source.data), "f.h5"), old.address["a"])


# --- random damage -----------------------------------------------------------------------


def structures(data: bytes) -> list[tuple[int, int]]:
    """Begin and bytes of what a group is made of, in a file of sizes (8, 8)."""
    found = []
    for signature, nbytes in ((b"HEAP\0", 32), (b"TREE\0", 136), (b"SNOD\1", 168)):
        at = data.find(signature)
        while at >= 0:
            found.append((at, nbytes))
            if signature == b"HEAP\0":
                size, free, segment = struct.unpack_from("<QQQ", data, at + 8)
                found += [(segment, size), (segment + free % size, 16)]
            at = data.find(signature, at + 1)
    return found


def damaged(rng: random.Random, data: bytes, places: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        begin, nbytes = rng.choice(places)
        at = begin + rng.randrange(nbytes)
        aligned = at // 8 * 8
        match rng.randrange(5):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at : at + 12] = bytes(len(changed[at : at + 12]))
            case 2:
                struct.pack_into("<Q", changed, aligned, rng.choice(places)[0])
            case 3:
                value = rng.choice((0, 1, 8, 2**31, 2**63, UNDEFINED, len(data), len(data) - 8))
                struct.pack_into("<Q", changed, aligned, value)
            case 4:
                other, size = rng.choice(places)
                size = min(size, nbytes)
                changed[begin : begin + size] = data[other : other + size]
    return bytes(changed)


def test_random_damage_passes_or_raises_corrupt_file_error(old: Old) -> None:
    rng = random.Random(1)
    headers = [(address, 120) for address in old.address.values()]
    places = structures(old.data) + 20 * headers
    n_raised = 0
    for _ in range(1500):
        source = Bytes(damaged(rng, old.data, places))
        segments: dict[int, int] = {}
        for address in old.address.values():
            try:
                check(source, address, segments)
            except CorruptFileError:
                n_raised += 1
    assert n_raised > 300


def test_groups_that_pass_can_be_listed_by_libhdf5(tmp_path: Path) -> None:
    rng = random.Random(2)
    with h5py.File(tmp_path / "f.h5", "w", libver="earliest") as file:
        fill(file, n_members=5)
        headers = [
            (h5o.get_info(file[n].id).addr, 120) for n in ("/", "a", "one", "attributes")
        ]
    data = (tmp_path / "f.h5").read_bytes()
    places = structures(data) + 5 * headers
    files = [tmp_path / f"{i}.h5" for i in range(150)]
    for path in files:
        path.write_bytes(damaged(rng, data, places))
    answers = list_in_child(files)
    assert len(answers) == len(files)
    died = {path.name: a["died"] for path, a in zip(files, answers, strict=True) if "died" in a}
    assert not died
    assert sum(answer.get("passed", 0) for answer in answers) > 500
    assert sum(answer.get("refused", 0) for answer in answers) > 20


def test_groups_that_pass_in_files_known_for_crashes_can_be_listed(corpus: Path) -> None:
    files = sorted((corpus / "cve_hdf5").iterdir())
    answers = list_in_child(files)
    died = {path.name: a["died"] for path, a in zip(files, answers, strict=True) if "died" in a}
    assert files
    assert not died


if __name__ == "__main__":
    for name in sys.argv[1:]:
        sys.stdout.write(json.dumps(ending(name)) + "\n")
        sys.stdout.flush()
