"""The index of a dataset's chunks names the chunks that HDF5 reads."""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
import xarray as xr
from h5py import h5d, h5o, h5p
from hypothesis import HealthCheck, given, settings
from strategies import scaled

import xref.hdf5.chunk_index.nodes
from xref.arrays import OverlaidFile
from xref.errors import CorruptFileError, UnsupportedError, XrefError
from xref.hdf5.checksums import lookup3
from xref.hdf5.dataset_layout import ChunkIndex
from xref.objects import StoredObject
from xref.objects import datasets as h5data
from xref.objects.datasets import chunk_index, dataset_facts, stored_nbytes
from xref.storage.location import FileLocation
from xref.storage.open_files import close_files, locate_file, locate_source
from xref.storage.sources import OpenFile

NUMBERS = itertools.count()
LIBVERS = ("earliest", "v110", "latest")
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"compression": "gzip"},
    {"shuffle": True, "fletcher32": True},
)
MOST_CHUNKS = 3000
ITERATE = h5data._iterate_index


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_files()


@pytest.fixture(autouse=True)
def not_listed_by_hdf5(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves an index to HDF5 unnoticed."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the index was left to HDF5")

    monkeypatch.setattr(h5data, "_iterate_index", refuse)


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """Grid, chunks and filters of a dataset, and which of its chunks are written."""
    ndim = draw(st.integers(1, 6))
    grid, room = [], MOST_CHUNKS
    for _ in range(ndim):
        grid.append(draw(st.integers(1, max(min(room, 1500), 1))))
        room //= grid[-1]
    grid = draw(st.permutations(grid))
    chunks = tuple(draw(st.integers(1, 3)) for _ in range(ndim))
    shape = tuple(
        n * c - draw(st.integers(0, c - 1)) for n, c in zip(grid, chunks, strict=True)
    )
    growth = st.sampled_from([0, 0, 1, 40, None])
    grows = draw(st.lists(growth, min_size=ndim, max_size=ndim))
    maxshape = tuple(None if g is None else n + g for n, g in zip(shape, grows, strict=True))
    return {
        "shape": shape,
        "chunks": tuple(
            c if m is None else min(c, m) for c, m in zip(chunks, maxshape, strict=True)
        ),
        "maxshape": maxshape,
        "filters": draw(st.sampled_from(FILTERS)),
        "written": draw(st.sampled_from(["all", "few", "none", "masked", "early"])),
        "shrunk": draw(st.sampled_from([False, False, True])),
        "seed": draw(st.integers(0, 99)),
    }


def add(file: h5py.File, spec: dict[str, Any], name: str = "d") -> h5py.Dataset:
    """Write a dataset no two chunks of which are equal, as long as they are written."""
    shape, chunks = spec["shape"], spec["chunks"]
    properties = h5p.create(h5p.DATASET_CREATE)
    if spec["written"] == "early":
        properties.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    dataset = file.create_dataset(
        name,
        shape,
        "<i4",
        chunks=chunks,
        maxshape=spec["maxshape"],
        dcpl=properties,
        **spec["filters"],
    )
    values = np.arange(1, math.prod(shape) + 1, dtype="<i4").reshape(shape)
    rng = np.random.default_rng(spec["seed"])
    grid = tuple(-(-n // c) for n, c in zip(shape, chunks, strict=True))
    some = rng.integers(0, grid, (20, len(grid))) * np.array(chunks)
    match spec["written"]:
        case "all":
            dataset[...] = values
        case "few" | "early":
            for origin in some.tolist():
                dataset[tuple(origin)] = values[tuple(origin)]
        case "masked":
            n_filters = dataset.id.get_create_plist().get_nfilters()
            for number, origin in enumerate(some.tolist()):
                data = np.full(chunks, number, "<i4").tobytes()
                mask = (1 << n_filters) - 1
                dataset.id.write_direct_chunk(tuple(origin), data, mask)
    if spec["shrunk"]:
        dataset.resize(tuple(max(n - int(rng.integers(0, 4)), 1) for n in shape))
    return dataset


def index_of(path: Path, name: str = "d") -> tuple[FileLocation, int, ChunkIndex]:
    """Return file, address and chunks of a dataset."""
    location = locate_file(path)
    with h5py.File(path) as file:
        address = h5o.get_info(file[name].id).addr
    return location, address, chunk_index(StoredObject(location, address))


def lists_wrongly(dataset: h5py.Dataset) -> bool:
    """Tell whether HDF5 2.0 may list chunks at wrong places.

    It does so for extensible arrays whose axis without limit is not the first.
    """
    unlimited = [axis for axis, n in enumerate(dataset.maxshape) if n is None]
    return len(unlimited) == 1 and unlimited != [0]


def check(path: Path, name: str = "d") -> ChunkIndex:
    """Compare the index of a dataset with what HDF5 lists, and with what it reads."""
    location, address, found = index_of(path, name)
    layout = StoredObject(location, address).layout
    content = path.read_bytes()
    with h5py.File(path) as file:
        dataset = file[name]
        inside = []
        dataset.id.chunk_iter(inside.append)
        if not lists_wrongly(dataset):
            inside = [c for c in inside if (np.array(c.chunk_offset) < dataset.shape).all()]
            cells = np.array([c.chunk_offset for c in inside]).reshape(-1, len(layout.grid))
            cells = cells // np.array(layout.chunks)
            number = np.ravel_multi_index(tuple(cells.T.astype(int)), layout.grid)
            order = np.argsort(number)
            assert found.number.tolist() == number[order].tolist()
            assert found.nbytes.tolist() == [inside[i].size for i in order]
            assert found.filter_mask.tolist() == [inside[i].filter_mask for i in order]
        assert len(found.number) == len(inside)
        origins = np.stack(np.unravel_index(found.number, layout.grid), 1)
        origins = (origins * np.array(layout.chunks)).tolist()
        rows = zip(origins, found.address.tolist(), found.nbytes.tolist(), strict=True)
        for row, (origin, at, nbytes) in enumerate(rows):
            mask, data = dataset.id.read_direct_chunk(tuple(origin))
            assert content[at : at + nbytes] == data
            assert mask == found.filter_mask[row]
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=scaled(120))
@given(spec=specs(), libver=st.sampled_from(LIBVERS), block=st.sampled_from([0, 0, 512]))
def test_chunks_are_those_of_hdf5(
    tmp_path: Path, spec: dict[str, Any], libver: str, block: int
) -> None:
    path = tmp_path / f"{next(NUMBERS)}.h5"
    with h5py.File(path, "w", libver=(libver, "latest"), userblock_size=block) as file:
        add(file, spec)
    check(path)
    path.unlink()


def spec_of(shape: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Return a dataset of chunks of one element."""
    spec = {"chunks": (1,) * len(shape), "maxshape": shape, "filters": {}, "written": "all"}
    return {"shape": shape, "shrunk": False, "seed": 0} | spec | more


@pytest.mark.sampled(17)
@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize(
    ("maxshape", "n"),
    [
        ((1,), 1),
        ((1025,), 1024),  # pages
        ((9000,), 7000),
        ((None,), 7000),
        ((7, None), 1000),
        ((None, 7), 1000),
        ((3, None, 5), 500),
        ((None, None), 3000),
    ],
)
def test_every_kind_of_index_is_read(
    path: Path, maxshape: tuple[int | None, ...], n: int, filters: dict[str, Any]
) -> None:
    shape = list(maxshape)
    shape[shape.index(None) if None in shape else 0] = n
    shape = [n or 2 for n in shape]
    for libver in LIBVERS:
        path = path.with_name(f"{libver}.h5")
        with h5py.File(path, "w", libver=(libver, "latest")) as file:
            add(file, spec_of(tuple(shape), maxshape=maxshape, filters=filters))
        found = check(path)
        assert len(found.number) == math.prod(shape)


@pytest.mark.parametrize("libver", ["v110", "latest"])
def test_values_along_a_later_axis_without_limit(path: Path, libver: str) -> None:
    values = np.arange(4 * 60 * 3).reshape(4, 60, 3)
    with h5py.File(path, "w", libver=(libver, "latest")) as file:
        file.create_dataset("d", data=values, chunks=(2, 1, 2), maxshape=(4, None, 3))
    with xr.open_dataset(path, engine="h5ref") as ds:
        np.testing.assert_array_equal(ds["d"].values, values)


@pytest.mark.slow
@pytest.mark.parametrize("filters", FILTERS)
def test_pages_that_were_never_written_are_left_out(
    path: Path, filters: dict[str, Any]
) -> None:
    # Data blocks of two, four, and eight pages and more have their bits side by side.
    n = 1_200_000
    rng = np.random.default_rng(3)
    places = np.unique(np.append(rng.integers(0, n, 300), [0, n - 1])).tolist()
    for maxshape in ((None,), (n,)):
        path = path.with_name(f"{maxshape}.h5")
        with h5py.File(path, "w", libver="v110") as file:
            dataset = file.create_dataset(
                "d", (n,), "u1", chunks=(1,), maxshape=maxshape, **filters
            )
            for place in places:
                dataset[place] = 1 + place % 200
        found = check(path)
        assert found.number.tolist() == places


@pytest.mark.slow
def test_files_of_the_corpus(corpus: Path) -> None:
    manifest = json.loads((corpus / "MANIFEST.json").read_text())
    n_chunked = 0
    for path in (corpus / row["file"] for row in manifest["files"] if row["role"] != "damaged"):
        names: list[str] = []

        def see(name: str, item: Any, names: list[str] = names) -> None:
            if isinstance(item, h5py.Dataset) and item.chunks:
                names.append(name)

        with h5py.File(path) as file:
            file.visititems(see)
        for name in names:
            check(path, name)
        n_chunked += len(names)
    assert n_chunked > 100


class Reads:
    """What is read of the metadata: the calls for many ranges, and each range."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rounds = 0
        self.ranges: list[tuple[int, int]] = []
        many, one = OverlaidFile.read_ranges, OverlaidFile.read_into

        def read_ranges(file: OverlaidFile, offset: Any, nbytes: Any, *rest: Any) -> None:
            self.rounds += 1
            self.ranges += zip(offset.tolist(), nbytes.tolist(), strict=True)
            many(file, offset, nbytes, *rest)

        def read_into(file: OverlaidFile, offset: int, buffer: memoryview) -> None:
            self.ranges.append((offset, len(buffer)))
            one(file, offset, buffer)

        monkeypatch.setattr(OverlaidFile, "read_ranges", read_ranges)
        monkeypatch.setattr(OverlaidFile, "read_into", read_into)


def nodes_of(path: Path, reads: Reads) -> tuple[int, ChunkIndex, list[tuple[int, int]]]:
    """Return address and chunks of a dataset, and where the nodes of its index are."""
    location = locate_file(path)
    with h5py.File(path) as file:
        address = h5o.get_info(file["d"].id).addr
    dataset_facts(StoredObject(location, address))
    reads.ranges.clear()
    found = chunk_index(StoredObject(location, address))
    return address, found, [r for r in reads.ranges if r[0] not in (0, address)]


@pytest.mark.parametrize(
    ("libver", "shape", "maxshape", "rounds"),
    [
        ("earliest", (6000,), (6000,), 3),  # a root, nodes, leaves
        ("v110", (6, 2000), (None, None), 3),
        ("v110", (6000,), (6000,), 1),  # pages
        ("v110", (6000,), (None,), 2),  # super blocks, and all data blocks
    ],
)
def test_an_index_is_read_level_by_level(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    libver: str,
    shape: tuple[int, ...],
    maxshape: tuple[int | None, ...],
    rounds: int,
) -> None:
    with h5py.File(path, "w", libver=(libver, "latest")) as file:
        add(file, spec_of(shape, maxshape=maxshape))
    reads = Reads(monkeypatch)
    address, found, nodes = nodes_of(path, reads)
    assert len(found.number) == math.prod(shape)
    assert reads.rounds == rounds
    assert len(set(nodes)) == len(nodes)
    monkeypatch.setattr(xref.hdf5.chunk_index.nodes, "BATCH_NBYTES", 1 << 14)
    close_files()
    chunk_index(StoredObject(locate_file(path, external="none"), address))
    assert reads.rounds > 2 * rounds


# --- damaged files -----------------------------------------------------------------------

KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("earliest", spec_of((40, 60))),
    ("earliest", spec_of((50,), filters=FILTERS[1])),
    ("v110", spec_of((1500,))),
    ("v110", spec_of((60,), filters=FILTERS[2])),
    ("v110", spec_of((1500,), maxshape=(None,))),
    ("v110", spec_of((60,), maxshape=(None,), filters=FILTERS[1])),
    ("v110", spec_of((10, 30), maxshape=(None, None))),
    ("latest", spec_of((80, 60), maxshape=(None, None), filters=FILTERS[1])),
)


def columns(found: ChunkIndex) -> list[tuple[int, ...]]:
    names = ("number", "address", "nbytes", "filter_mask")
    return list(zip(*(getattr(found, name).tolist() for name in names), strict=True))


def read_slowly(content: bytes, root: int, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """List the chunks of one element that a version 1 B-tree has; nothing is checked."""
    key_nbytes = 8 + 8 * (len(shape) + 1)
    level, n = content[root + 5], int.from_bytes(content[root + 6 : root + 8], "little")
    out: list[tuple[int, ...]] = []
    for at in range(root + 24, root + 24 + n * (key_nbytes + 8), key_nbytes + 8):
        child = int.from_bytes(content[at + key_nbytes : at + key_nbytes + 8], "little")
        if level:
            out += read_slowly(content, child, shape)
            continue
        cell = struct.unpack_from(f"<{len(shape)}Q", content, at + 8)
        nbytes, mask = struct.unpack_from("<II", content, at)
        if child != 2**64 - 1 and all(a < b for a, b in zip(cell, shape, strict=True)):
            out.append((int(np.ravel_multi_index(cell, shape)), child, nbytes, mask))
    return sorted(out)


@pytest.mark.slow
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_a_damaged_index_is_read_correctly_or_raises(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    libver, spec = KINDS[kind]
    with h5py.File(path, "w", libver=(libver, "latest")) as file:
        add(file, spec)
    content = path.read_bytes()
    address, clean, nodes = nodes_of(path, Reads(monkeypatch))
    rng = np.random.default_rng(kind)
    errors = []
    for number in range(40):
        at, nbytes = nodes[int(rng.integers(len(nodes)))]
        damaged = bytearray(content)
        damaged[at + int(rng.integers(nbytes))] ^= int(rng.integers(1, 256))
        other = path.with_name(f"other{number}.h5")
        other.write_bytes(damaged)
        try:
            found = columns(chunk_index(StoredObject(locate_file(other), address)))
        except XrefError as error:
            errors.append(str(error))
        else:
            if found != columns(clean):  # no checksum
                assert libver == "earliest"
                assert found == read_slowly(bytes(damaged), nodes[0][0], spec["shape"])
    assert len(errors) > (5 if libver == "earliest" else 30)
    assert all(": /d" in error for error in errors)


@pytest.mark.slow
@pytest.mark.parametrize("kind", range(2, len(KINDS)))
def test_a_forged_index_returns_or_raises(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    def refuse(*_: Any) -> None:
        raise UnsupportedError("left to HDF5")

    monkeypatch.setattr(h5data, "_iterate_index", refuse)
    libver, spec = KINDS[kind]
    with h5py.File(path, "w", libver=(libver, "latest")) as file:
        add(file, spec)
    content = path.read_bytes()
    address, _, nodes = nodes_of(path, Reads(monkeypatch))
    rng = np.random.default_rng(kind)
    n_errors = 0
    for number in range(60):
        at, nbytes = nodes[int(rng.integers(min(len(nodes), 4)))]
        damaged = bytearray(content)
        place = at + int(rng.integers(4, min(nbytes - 4, 60)))
        damaged[place] = int(rng.choice([0, 1, 2, 63, 64, 127, 128, 254, 255]))
        sum_at = at + nbytes - 4
        damaged[sum_at : sum_at + 4] = lookup3(bytes(damaged[at:sum_at])).to_bytes(4, "little")
        other = path.with_name(f"forged{number}.h5")
        other.write_bytes(damaged)
        try:
            chunk_index(StoredObject(locate_file(other), address))
        except XrefError:
            n_errors += 1
    assert n_errors > 10


def forge(path: Path, changes: list[tuple[int, bytes]]) -> None:
    content = bytearray(path.read_bytes())
    for at, data in changes:
        content[at : at + len(data)] = data
    path.write_bytes(content)


def test_v1_nodes_that_contradict_each_other_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(path, "w") as file:
        add(file, spec_of((300,)))
    content = path.read_bytes()
    reads = Reads(monkeypatch)
    address, _, nodes = nodes_of(path, reads)
    root, first, _, other_leaf = (at for at, _ in nodes[:4])
    child = root + 24 + 24  # behind its key
    for changes, problem in (
        ([(child, other_leaf.to_bytes(8, "little"))], "leads twice"),
        ([(child, root.to_bytes(8, "little"))], "leads twice"),
        ([(child, bytes(8))], "begin with"),
        ([(child, b"\xff" * 8)], "past the end of the file"),
        ([(first + 5, b"\1")], "begin with"),
        ([(root + 5, b"\xff")], "begin with"),
        ([(first + 6, b"\xff\xff")], "65535 entries, and room for 64"),
        ([(first + 6, b"\0\0")], "has no entries"),
        ([(first + 24 + 8, b"\x07")], "not behind the one before"),
    ):
        other = path.with_name(f"{next(NUMBERS)}.h5")
        other.write_bytes(content)
        forge(other, changes)
        with pytest.raises(CorruptFileError, match=problem):
            chunk_index(StoredObject(locate_file(other), address))


def test_a_damaged_index_does_not_keep_a_file_from_opening(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(path, "w") as file:
        add(file, spec_of((300,)))
        file["other"] = np.arange(7)
    _, _, nodes = nodes_of(path, Reads(monkeypatch))
    root = nodes[0][0]
    forge(path, [(root + 24 + 24, root.to_bytes(8, "little"))])  # its own first child
    with xr.open_dataset(path, engine="h5ref", phony_dims="access") as ds:
        assert ds["other"].values.tolist() == list(range(7))
        with pytest.raises(CorruptFileError, match="leads twice"):
            ds["d"].load()


def test_a_tree_without_chunks_is_empty(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(path, "w") as file:
        add(file, spec_of((30,)))
    address, _, ((root, _),) = nodes_of(path, Reads(monkeypatch))
    other = path.with_name("empty.h5")
    other.write_bytes(path.read_bytes())
    forge(other, [(root + 6, b"\0\0")])
    assert not len(chunk_index(StoredObject(locate_file(other), address)).number)


@pytest.mark.parametrize("shuffle", [False, True])
def test_chunks_past_the_extent_that_skip_filters(path: Path, shuffle: bool) -> None:
    values = np.arange(25, dtype="<i4").reshape(5, 5) * 70000
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        dataset = file.create_dataset("d", data=values, chunks=(2, 2), shuffle=shuffle)
        at = h5o.get_info(dataset.id).addr
    content = path.read_bytes()
    flags = content[at + 5]
    begin = at + 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
    width = 1 << (flags & 3)
    end = begin + width + int.from_bytes(content[begin : begin + width], "little")
    place = content.index(b"\4\2\0", begin)  # version, chunked, flags
    forge(path, [(place + 2, b"\1")])
    header = path.read_bytes()[at:end]
    forge(path, [(end, lookup3(header).to_bytes(4, "little"))])
    with h5py.File(path) as file:
        expected = file["d"][()]
    assert (expected[:4, :4] == values[:4, :4]).all()
    assert (expected == values).all() != shuffle
    with xr.open_dataset(path, engine="h5ref") as ds:
        np.testing.assert_array_equal(ds["d"].values, expected)


# --- what is left to HDF5 ----------------------------------------------------------------


def test_chunks_of_a_file_that_is_being_written_are_listed_by_hdf5(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(h5data, "_iterate_index", ITERATE)
    with h5py.File(path, "w", libver=("v110", "latest")) as file:
        dataset = add(file, spec_of((20, 3), maxshape=(None, 3)))
        refused = add(file, spec_of((3, 20), maxshape=(3, None)), "refused")
        addresses = [h5o.get_info(d.id).addr for d in (dataset, refused)]
        location = locate_source(OpenFile(file))
        assert chunk_index(StoredObject(location, addresses[0])).number.tolist() == list(
            range(60)
        )
        assert (
            stored_nbytes(StoredObject(location, addresses[0])) == dataset.id.get_storage_size()
        )
        with pytest.raises(UnsupportedError, match="at wrong places"):
            chunk_index(StoredObject(location, addresses[1]))


def test_an_index_of_an_unknown_version_is_left_to_hdf5(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(path, "w", libver=("v110", "latest")) as file:
        add(file, spec_of((20, 3), maxshape=(None, None)))
    address, _, nodes = nodes_of(path, Reads(monkeypatch))
    at, nbytes = nodes[0]
    forge(path, [(at + 4, b"\x09")])
    header = path.read_bytes()[at : at + nbytes - 4]
    forge(path, [(at + nbytes - 4, lookup3(header).to_bytes(4, "little"))])
    asked = []

    def listed(*arguments: Any) -> Any:
        asked.append(1)
        return ITERATE(*arguments)

    monkeypatch.setattr(h5data, "_iterate_index", listed)
    with pytest.raises(CorruptFileError, match="HDF5 cannot read"):
        chunk_index(StoredObject(locate_file(path), address))
    assert asked


# --- parts -------------------------------------------------------------------------------


@pytest.mark.parametrize("filters", FILTERS)
def test_stored_bytes_equal_those_of_hdf5(path: Path, filters: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        add(file, spec_of((40, 30), filters=filters, written="few"))
        file["c"] = np.arange(5)
        expected = {name: file[name].id.get_storage_size() for name in file}
        addresses = {name: h5o.get_info(file[name].id).addr for name in file}
    location = locate_file(path)
    assert {
        n: stored_nbytes(StoredObject(location, a)) for n, a in addresses.items()
    } == expected
    assert StoredObject(location, addresses["d"]).layout.stored_nbytes == 0
