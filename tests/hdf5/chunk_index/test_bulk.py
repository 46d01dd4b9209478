"""Chunks of many datasets lie where HDF5 says that those of each lie."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from strategies import scaled, write_references

import xref.hdf5.bulk_datasets
import xref.hdf5.chunk_index.bulk
import xref.resolving.bound_references
from xref.errors import XrefError
from xref.hdf5.bulk_attributes import MAX_GROUPS
from xref.hdf5.chunk_index.bulk import MAX_CHUNKS, ChunkColumns, read_chunks
from xref.hdf5.layout_message import CHUNKED
from xref.objects import StoredObject
from xref.objects.datasets import chunk_index
from xref.objects.parsing import dataset_table, file_content
from xref.storage.open_files import close_files, locate_file
from xref.storage.read_counts import count_reads

NUMBERS = itertools.count()
LIBVERS = ("earliest", "v108", "v110", "latest")
LIMIT = 1 << 20
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"compression": "gzip"},
    {"compression": "gzip", "shuffle": True, "fletcher32": True},
    {"compression": "lzf"},
    {"shuffle": True},
)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_files()


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """Shape, chunks and filters of a dataset, which of its elements are written, and how."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    chunks = tuple(draw(st.integers(1, n)) for n in shape)
    return {
        "shape": shape,
        "chunks": chunks,
        "maxshape": draw(
            st.sampled_from([None, shape, tuple(n + 3 for n in shape), (None, *shape[1:])])
        ),
        "filters": draw(st.sampled_from(FILTERS)),
        "written": draw(st.sampled_from(["all", "part", "none", "masked", "early"])),
        "shrunk": draw(st.integers(0, 9)) == 0,
    }


def add(group: h5py.Group, name: str, spec: dict[str, Any], value: int) -> h5py.Dataset:
    """Write a dataset whose elements tell which one it is."""
    options = dict(spec["filters"])
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if spec["written"] == "early" and not options:
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    shape, chunks = spec["shape"], spec["chunks"]
    dataset = group.create_dataset(
        name,
        shape,
        "<i4",
        chunks=chunks,
        maxshape=spec["maxshape"],
        fillvalue=-7,
        dcpl=properties,
        **options,
    )
    values = np.arange(np.prod(shape), dtype="<i4").reshape(shape) + 1000 * value
    match spec["written"]:
        case "all" | "early":
            dataset[...] = values
        case "part":
            dataset[: chunks[0]] = values[: chunks[0]]
        case "masked":
            n_filters = dataset.id.get_create_plist().get_nfilters()
            chunk = np.full(chunks, value, dtype="<i4")
            mask = (1 << n_filters) - 1
            dataset.id.write_direct_chunk((0,) * len(shape), chunk.tobytes(), mask)
    if spec["shrunk"] and spec["maxshape"] is not None:
        dataset.resize((max(shape[0] - 1, 1), *shape[1:]))
    return dataset


def write(path: Path, rows: list[dict[str, Any]], libver: str, **options: Any) -> None:
    with h5py.File(path, "w", libver=(libver, "latest"), **options) as file:
        cells = file.create_group("cells")
        made = [add(cells, f"d{i}", spec, i) for i, spec in enumerate(rows)]
        write_references(file, "refs", [d.ref for d in made], dtype=h5py.ref_dtype)


def read(path: Path) -> tuple[Any, np.ndarray, ChunkColumns]:
    """Return the file, addresses of its chunked datasets that are known, their chunks."""
    location = locate_file(path)
    with h5py.File(path) as file:
        address = np.array(
            [h5py.h5o.get_info(file[r].id).addr for r in file["refs"][...]], dtype=np.uint64
        )
    table = dataset_table(location, address)
    rows = np.flatnonzero(table.known & (table.storage == CHUNKED))
    return location, address[rows], read_chunks(file_content(location), table.take(rows), LIMIT)


def check(path: Path) -> ChunkColumns:
    """Compare the chunks of each known dataset with those that HDF5 lists."""
    location, address, found = read(path)
    for i in np.flatnonzero(found.known).tolist():
        index, rows = (
            chunk_index(StoredObject(location, int(address[i]))),
            slice(*found.cut[i : i + 2]),
        )
        assert found.number[rows].tolist() == index.number.tolist()
        assert found.offset[rows].tolist() == index.address.tolist()
        assert found.nbytes[rows].tolist() == index.nbytes.tolist()
        assert found.filter_mask[rows].tolist() == index.filter_mask.tolist()
    return found


def values_of(path: Path, one_by_one: bool, monkeypatch: pytest.MonkeyPatch) -> Any:
    """All values, read many datasets at once or each alone; or the error."""
    monkeypatch.setattr(
        xref.resolving.bound_references, "MIN_BULK_TARGETS", sys.maxsize if one_by_one else 1
    )
    try:
        with xr.open_dataset(path, engine="h5ref") as ds:
            ragged = ds["refs"].h5ref.resolve("ragged")
            return next(iter(ragged.data_vars.values())).values
    except (XrefError, ValueError) as error:
        return error


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=scaled(30))
@given(
    rows=st.lists(specs(), min_size=1, max_size=10),
    libver=st.sampled_from(LIBVERS),
    block=st.sampled_from([0, 512]),
)
def test_chunks_and_values_are_those_of_hdf5(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[dict[str, Any]],
    libver: str,
    block: int,
) -> None:
    path = tmp_path / f"{next(NUMBERS)}.h5"
    write(path, rows, libver, userblock_size=block)
    check(path)
    with h5py.File(path) as file:
        expected = np.concatenate([file[r][()].reshape(-1) for r in file["refs"][...]])
    for one_by_one in (False, True):
        np.testing.assert_array_equal(values_of(path, one_by_one, monkeypatch), expected)


def spec_of(shape: tuple[int, ...], chunks: tuple[int, ...], **more: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"maxshape": None, "filters": FILTERS[1], "written": "all"}
    return {"shape": shape, "chunks": chunks, "shrunk": False} | spec | more


@pytest.mark.sampled(7)
@pytest.mark.parametrize("libver", LIBVERS)
@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("chunks", [(6, 5), (2, 5), (4, 3), (1, 1)])
def test_indices_that_libhdf5_writes_for_few_chunks_are_decoded(
    path: Path, libver: str, filters: dict[str, Any], chunks: tuple[int, ...]
) -> None:
    kinds = ("all", "part", "none", "early")
    write(path, [spec_of((6, 5), chunks, filters=filters, written=w) for w in kinds], libver)
    assert check(path).known.all()


def test_datasets_of_many_or_large_chunks_are_marked_unknown(path: Path) -> None:
    rows = [
        spec_of((MAX_CHUNKS,), (1,)),
        spec_of((MAX_CHUNKS + 1,), (1,)),
        spec_of((LIMIT // 4,), (LIMIT // 4,)),
        spec_of((LIMIT // 4 + 1,), (LIMIT // 4 + 1,)),
    ]
    write(path, rows, "earliest")
    assert check(path).known.tolist() == [True, False, True, False]


def test_tables_of_several_batches_stay_in_order(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [spec_of((6,), (1 + i % 6,)) for i in range(20)]
    write(path, rows, "earliest")
    expected = check(path)
    monkeypatch.setattr(xref.hdf5.chunk_index.bulk, "BATCH", 3)
    monkeypatch.setattr(xref.hdf5.bulk_datasets, "BATCH", 7)
    found = check(path)
    assert found.known.all()
    assert found.cut.tolist() == expected.cut.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("libver", LIBVERS)
def test_damaged_indices_and_chunks_read_as_one_by_one_or_raise(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, libver: str
) -> None:
    path = make(lambda _: None)
    write(path, [spec_of((9,), (3 + 6 * (i % 2),)) for i in range(8)], libver)
    content = path.read_bytes()
    location, address, _ = read(path)
    table = dataset_table(location, address)
    rng = np.random.default_rng(4)
    n_errors = 0
    for k in range(45):
        damaged = bytearray(content)
        at = int(rng.choice(table.offset if k % 3 else address.astype(np.int64)))
        damaged[at + int(rng.integers(0, 120))] = int(rng.integers(0, 256))
        other = path.with_name(f"damaged{k}.h5")
        other.write_bytes(damaged)
        many = values_of(other, False, monkeypatch)
        alone = values_of(other, True, monkeypatch)
        if isinstance(many, np.ndarray):
            np.testing.assert_array_equal(many, alone)
        else:
            n_errors += 1
            assert isinstance(many, XrefError)
            assert isinstance(alone, XrefError)
    assert n_errors > 2


def test_a_damaged_chunk_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, [spec_of((9,), (3,)) for _ in range(8)], "earliest")
    _, _, found = read(path)
    content = bytearray(path.read_bytes())
    at = int(found.offset[3 * 5 + 1])
    content[at : at + 4] = b"\xff" * 4
    path.write_bytes(content)
    many = values_of(path, False, monkeypatch)
    assert "chunk at (3,): " in str(many)
    assert str(many) == str(values_of(path, True, monkeypatch))


def test_a_chunk_is_read_once_for_all_references_to_it(path: Path) -> None:
    write(path, [spec_of((9,), (4,)) for _ in range(20)], "earliest")
    with h5py.File(path, "a") as file:
        references = list(file["refs"][...]) * 3
        write_references(file, "again", references, dtype=h5py.ref_dtype)
        expected = np.stack([file[r][()] for r in references])
    with xr.open_dataset(path, engine="h5ref") as ds:
        values = ds["again"].h5ref.resolve()
        with count_reads() as counts:
            np.testing.assert_array_equal(values.values, expected)
    assert counts.chunks_read == counts.chunks_decoded == 60
    assert counts.requests <= 2


def test_elements_without_filters_are_exact_in_size(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, [spec_of((9,), (4,), filters={}) for _ in range(8)], "earliest")
    location, address, _ = read(path)
    content = bytearray(path.read_bytes())
    at = int(dataset_table(location, address).offset[2]) + 24
    content[at : at + 4] = (15).to_bytes(4, "little")
    path.write_bytes(content)
    many = values_of(path, False, monkeypatch)
    assert isinstance(many, XrefError)
    assert str(many) == str(values_of(path, True, monkeypatch))


def test_structured_and_edge_chunks_of_three_axes(path: Path) -> None:
    dtype = np.dtype([("x", "<f4"), ("y", ">i2", (3,))])
    with h5py.File(path, "w") as file:
        made = []
        for i in range(12):
            values = np.zeros((3, 4, 5), dtype)
            values["x"] = np.arange(60).reshape(3, 4, 5) + 100 * i
            made.append(
                file.create_dataset(
                    f"d{i}", data=values, chunks=(2, 3, 2 + i % 4), compression="gzip"
                )
            )
        write_references(file, "refs", [d.ref for d in made], dtype=h5py.ref_dtype)
        expected = np.stack([d[()] for d in made])
    assert check(path).known.all()
    with xr.open_dataset(path, engine="h5ref") as ds:
        np.testing.assert_array_equal(ds["refs"].h5ref.resolve().values, expected)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("libver", LIBVERS)
@pytest.mark.parametrize("filters", FILTERS)
def test_chunks_of_many_sizes_are_of_one_kind(
    path: Path, libver: str, filters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [spec_of((n,), (n,), filters=filters) for n in range(1, MAX_GROUPS + 20)]
    write(path, rows, libver)
    location, address, found = read(path)
    assert found.known.all()
    assert len(address) == len(rows)
    assert (dataset_table(location, address).first_alike == 0).all()
    with h5py.File(path) as file:
        expected = np.concatenate([file[r][()] for r in file["refs"][...]])
    np.testing.assert_array_equal(values_of(path, False, monkeypatch), expected)
