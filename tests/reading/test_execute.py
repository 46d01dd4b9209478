"""What is read is read once, and nothing that was not asked for.

`xref.count_reads` counts; what it should count is worked out here, region by region.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import oracle
import pytest
import xarray as xr
from strategies import region_of, write_references

import xref
from xref.arrays.strides import row_strides
from xref.errors import FileReadError
from xref.hdf5.dataset_layout import ChunkIndex, DatasetLayout
from xref.hdf5.filters import FilterPipeline
from xref.reading.boxes import plan_parts
from xref.reading.execute import ChunkLoader, ContiguousLoader, read_plan
from xref.reading.plan import plan_read
from xref.selections.table_building import box_table

SIDE, CHUNK, BOX, N = 2048, 64, 32, 2000


def image() -> np.ndarray:
    return np.arange(SIDE * SIDE, dtype="u4").reshape(SIDE, SIDE)


@pytest.fixture(scope="module")
def starts() -> np.ndarray:
    """Corners of the regions, in the upper two thirds of the image."""
    return np.random.default_rng(5).integers(0, (SIDE * 2 // 3, SIDE - BOX), (N, 2))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, starts: np.ndarray) -> Path:
    """A compressed image and 2,000 regions at random places."""
    path = tmp_path_factory.mktemp("readers") / "image.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(
            "image", data=image(), chunks=(CHUNK, CHUNK), compression="gzip", compression_opts=1
        )
        space, ones = dataset.id.get_space(), (1, 1)
        regions = np.empty(N, dtype=object)
        for i, start in enumerate(starts.tolist()):
            space.select_hyperslab(tuple(start), ones, ones, (BOX, BOX))
            regions[i] = region_of(dataset, space)
        file.create_dataset("rois", data=regions, dtype=h5py.regionref_dtype)
    return path


@pytest.fixture
def rois(path: Path) -> Iterator[xr.DataArray]:
    with xr.open_dataset(path, engine="h5ref", drop_variables="image") as dataset:
        yield dataset["rois"]


def chunks_of(starts: np.ndarray) -> int:
    return oracle.distinct_chunks((CHUNK, CHUNK), starts, (BOX, BOX))


def patches(starts: np.ndarray) -> np.ndarray:
    values = image()
    return np.stack([values[y : y + BOX, x : x + BOX] for y, x in starts.tolist()])


def test_each_chunk_is_decoded_once_for_all_regions(rois, starts) -> None:
    resolved = rois.h5ref.resolve(chunks=-1)
    with xref.count_reads() as counts:
        values = resolved.compute()
    assert counts.chunks_decoded == counts.chunks_read == chunks_of(starts)
    assert counts.chunks_missing == 0
    np.testing.assert_array_equal(values, patches(starts))


def test_each_chunk_is_decoded_once_by_h5py_too(path, starts) -> None:
    with xr.open_dataset(path, engine="h5ref", reader="h5py") as dataset:
        resolved = dataset["rois"].h5ref.resolve(chunks=None)
        with xref.count_reads() as counts:
            resolved.load()
    assert counts.chunks_decoded == chunks_of(starts)


def test_each_chunk_is_decoded_once_for_ragged_values(rois, starts) -> None:
    ragged = rois.h5ref.resolve("ragged", chunks=None)
    with xref.count_reads() as counts:
        ragged.load()
    assert counts.chunks_decoded == chunks_of(starts)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_neither_values_nor_counts(rois, starts, threads) -> None:
    resolved = rois.h5ref.resolve(chunks=None)
    with xref.set_options(threads=threads), xref.count_reads() as counts:
        np.testing.assert_array_equal(resolved, patches(starts))
    assert counts.chunks_decoded == chunks_of(starts)


def test_selecting_before_resolving_reads_only_what_was_selected(rois, starts) -> None:
    rows = [1900, 3, 77]
    resolved = rois.isel({rois.dims[0]: rows}).h5ref.resolve(chunks=None)
    with xref.count_reads() as counts:
        np.testing.assert_array_equal(resolved, patches(starts[rows]))
    assert counts.chunks_decoded == chunks_of(starts[rows])


@pytest.mark.parametrize("chunks", [None, 1, 100, "auto"])
def test_computing_one_patch_of_a_stack_decodes_only_its_chunks(rois, starts, chunks) -> None:
    resolved = rois.h5ref.resolve(chunks=chunks)
    with xref.count_reads() as counts:
        np.testing.assert_array_equal(resolved[5].compute(), patches(starts[5:6])[0])
    assert counts.chunks_decoded == chunks_of(starts[5:6])


def test_slicing_every_patch_decodes_only_the_chunks_of_the_slice(rois, starts) -> None:
    resolved = rois.h5ref.resolve(chunks=None)
    with xref.count_reads() as counts:
        part = resolved[:, 4:6, 10].values
    np.testing.assert_array_equal(part, patches(starts)[:, 4:6, 10])
    assert counts.chunks_decoded == oracle.distinct_chunks(
        (CHUNK, CHUNK), starts + np.array([4, 10]), (2, 1)
    )


@pytest.mark.parametrize("blocks", [1, 10, 50])
def test_the_graph_has_one_task_for_each_block_and_few_others(rois, blocks) -> None:
    resolved = rois.h5ref.resolve(chunks=N // blocks)
    assert resolved.data.npartitions == blocks
    assert len(dict(resolved.__dask_graph__())) <= blocks + 3


def test_table_and_repr_read_no_target_data(path) -> None:
    with xref.count_reads() as counts, xr.open_dataset(path, engine="h5ref") as dataset:
        assert "RegionReference" in repr(dataset)
        assert repr(dataset["rois"].values[7])
        table = dataset["rois"].h5ref.table()
        assert repr(table)
        repr(dataset["rois"].h5ref.resolve())
    assert counts.chunks_read == counts.chunks_decoded == counts.chunks_missing == 0
    assert (table["npoints"] == BOX * BOX).all()
    assert set(table["path"].values.tolist()) == {"/image"}


def test_missing_chunks_are_counted_and_not_read(tmp_path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset(
            "t", (40, 40), "i2", chunks=(10, 10), fillvalue=-5, compression="gzip"
        )
        dataset[:10, :10] = 1
        write_references(file, "refs", [dataset.regionref[5:15, 5:15]])
    with xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as dataset:
        resolved = dataset["refs"].h5ref.resolve(chunks=None)
        with xref.count_reads() as counts:
            values = resolved.values
    assert (counts.chunks_decoded, counts.chunks_missing) == (1, 3)
    assert (values[0, :5, :5] == 1).all()
    assert (values == 1).sum() == 25
    assert (values == -5).sum() == 75


def test_nested_count_reads_blocks_count_separately(rois, starts) -> None:
    resolved = rois[:10].h5ref.resolve(chunks=None)
    with xref.count_reads() as outer:
        resolved[:5].load()
        with xref.count_reads() as inner:
            resolved[5:].load()
    resolved[:1].load()
    first, second = chunks_of(starts[:5]), chunks_of(starts[5:10])
    assert inner.chunks_decoded == second
    assert outer.chunks_decoded == first + second


# --- loaders over bytes in memory ----------------------------------------------------


class MemoryBytes:
    """A `ByteSource` over bytes that records its requests."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.requests: list[tuple[int, int]] = []
        self.remote = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.requests.append((offset, len(buffer)))
        part = self.data[offset : offset + len(buffer)]
        if len(part) < len(buffer):
            raise FileReadError("the bytes ended")
        buffer[:] = part


def layout_of(shape: tuple[int, ...], chunks: tuple[int, ...] | None) -> DatasetLayout:
    known = {
        "shape": shape,
        "maxshape": shape,
        "elements": None,
        "why_not_raw": "",
        "dtype": np.dtype("<i4"),
        "chunks": chunks,
        "offset": 100,
        "pipeline": FilterPipeline(filters=()),
        "fill_value": np.int32(-1),
        "stored_nbytes": 4 * int(np.prod(shape)),
        "why_not_direct": "",
        "stored_itemsize": 4,
        "reference_kind": "",
    }
    return DatasetLayout(**known)


def read_boxes(loader, layout: DatasetLayout, start, box: tuple[int, ...]) -> np.ndarray:
    start = np.array(start)
    shape = np.broadcast_to(np.array(box), start.shape)
    n = int(np.prod(box))
    table = box_table(start, shape)
    parts = plan_parts(table, np.arange(len(start)) * n, row_strides(shape))
    out = np.empty(len(start) * n, dtype=layout.dtype)
    read_plan(plan_read(parts, layout.shape, layout.chunks, 4), loader, out)
    return out.reshape(len(start), *box)


def never(start: tuple[int, ...], window: np.ndarray) -> None:
    raise AssertionError("chunks without filters need no other reader")


def test_neighbouring_chunks_come_with_one_request() -> None:
    values = np.arange(64 * 8, dtype="<i4").reshape(64, 8)
    layout = layout_of((64, 8), (4, 8))
    source = MemoryBytes(bytes(100) + values.tobytes())
    index = ChunkIndex(
        number=np.arange(16),
        address=100 + 128 * np.arange(16),
        nbytes=np.full(16, 128),
        filter_mask=np.zeros(16, dtype=np.uint32),
    )
    loader = ChunkLoader(layout, index, source, never, "memory")
    found = read_boxes(loader, layout, [[0, 0], [30, 2], [58, 1]], (6, 5))
    expected = [values[y : y + 6, x : x + 5] for y, x in ((0, 0), (30, 2), (58, 1))]
    np.testing.assert_array_equal(found, expected)
    assert len(source.requests) == 1


def test_contiguous_data_are_read_at_the_pieces_only() -> None:
    values = np.arange(1_000_000, dtype="<i4")
    layout = layout_of((1_000_000,), None)
    source = MemoryBytes(bytes(100) + values.tobytes())
    found = read_boxes(ContiguousLoader(layout, source), layout, [[5], [7], [900_000]], (4,))
    np.testing.assert_array_equal(found, [values[a : a + 4] for a in (5, 7, 900_000)])
    assert source.requests == [(100 + 4 * 5, 4 * 6), (100 + 4 * 900_000, 4 * 4)]


def test_a_short_read_raises_and_gives_no_data() -> None:
    layout = layout_of((1000,), None)
    source = MemoryBytes(bytes(500))
    with pytest.raises(FileReadError, match="ended"):
        read_boxes(ContiguousLoader(layout, source), layout, [[900]], (50,))
