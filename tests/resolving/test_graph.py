"""Dask graphs: the chunks read for Dask blocks are counted; values equal those without Dask."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from dask.callbacks import Callback
from strategies import write_references

import xref
from xref.resolving import dask_graph as graph
from xref.resolving import shuffle
from xref.storage.open_files import close_files
from xref.storage.read_counts import count_reads

SIDE, CHUNK, BOX, N = 256, 32, 12, 400
IMAGE = np.random.default_rng(0).integers(0, 60_000, (SIDE, SIDE), dtype="u2")
CORNERS = np.random.default_rng(1).integers(0, SIDE - BOX, (N, 2))
PATCHES = np.stack([IMAGE[y : y + BOX, x : x + BOX] for y, x in CORNERS])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an image and references to 400 boxes of it, in random order."""
    return write(tmp_path_factory.mktemp("graph") / "image.h5", IMAGE)


def write(path: Path, image: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        stored = file.create_dataset(
            "image", data=image, chunks=(CHUNK, CHUNK), compression="gzip", shuffle=True
        )
        file.create_dataset("plain", data=image)
        file.create_dataset("other", data=image.astype("i4"), chunks=(16, 64))
        file.create_dataset("packed", data=image, chunks=(CHUNK, CHUNK))
        file["packed"].attrs.update(scale_factor=0.5, add_offset=10.0)
        file["packed"].attrs["_FillValue"] = image[0, 0]
        boxes = [np.s_[y : y + BOX, x : x + BOX] for y, x in CORNERS]
        for name in ("image", "plain", "packed"):
            references = [file[name].regionref[box] for box in boxes]
            write_references(file, f"{name}_rois", references)
        grid = [stored.regionref[box] for box in boxes]
        both = [file["other" if k % 2 else "image"].regionref[b] for k, b in enumerate(boxes)]
        ragged = [
            stored.regionref[y : y + 1 + k % 7, x : x + 1 + k % 5]
            for k, (y, x) in enumerate(CORNERS)
        ]
        rng = np.random.default_rng(2)
        listed = []
        for _ in range(40):
            mask = np.zeros(SIDE * SIDE, dtype=bool)
            mask[rng.choice(len(mask), 30, replace=False)] = True
            listed.append(stored.regionref[mask.reshape(SIDE, SIDE)])
        steps = [stored.regionref[y : y + BOX : 5, 3::40] for y, _ in CORNERS]
        nulls = [None if k % 9 == 3 else r for k, r in enumerate(grid)]
        write_references(file, "grid", grid, (20, 20))
        gap = [None if 100 <= k < 300 else r for k, r in enumerate(grid)]
        write_references(file, "gap", gap)
        for name, references in {
            "both": both,
            "ragged": ragged,
            "points": listed,
            "nulls": nulls,
            "steps": steps,
        }.items():
            write_references(file, name, references)
    return path


@pytest.fixture
def ds(path: Path) -> Iterator[xr.Dataset]:
    with xr.open_dataset(path, engine="h5ref") as dataset:
        yield dataset


def through_blocks(array: xr.DataArray) -> np.ndarray:
    """Compute a derived array, so that Dask reads the blocks and not the whole array."""
    data = array.data.map_blocks(np.array, dtype=array.dtype)
    return np.asarray(data.compute(scheduler="synchronous"))


def counted(compute: Callable[[], Any]) -> tuple[Any, int]:
    with count_reads() as counts:
        result = compute()
    return result, counts.chunks_decoded


N_CHUNKS = (SIDE // CHUNK) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("size", [1, 7, 40, 200])
def test_blocks_of_references_in_random_order_read_each_chunk_once(
    ds: xr.Dataset, size: int, scheduler: str
) -> None:
    dim = ds["image_rois"].dims[0]
    patches = ds["image_rois"].h5ref.resolve(chunks={dim: size})
    sums = patches.data.sum(axis=(1, 2))
    result, chunks = counted(lambda: sums.compute(scheduler=scheduler))
    np.testing.assert_array_equal(result, PATCHES.sum(axis=(1, 2)))
    assert chunks == N_CHUNKS


@pytest.mark.slow
def test_blocks_without_common_chunks_are_read_one_by_one(ds: xr.Dataset) -> None:
    row = CORNERS[:, 0] // CHUNK
    picked = np.concatenate([np.flatnonzero(row == k)[:10] for k in (0, 2)])
    part = ds["image_rois"][picked]
    patches = part.h5ref.resolve(chunks={part.dims[0]: 10})
    with dask.config.set(scheduler="processes"):
        assert not any("xref-chunks" in str(key) for key in optimized(patches.data + 1))
    np.testing.assert_array_equal(through_blocks(patches), PATCHES[picked])


def test_the_cost_of_some_blocks_is_estimated_from_that_of_all(ds: xr.Dataset) -> None:
    rois = ds["image_rois"]
    array = rois.h5ref.resolve(chunks={rois.dims[0]: 20}).data
    layer = next(x for x in array.dask.layers.values() if isinstance(x, graph.ReadLayer))
    spans = [layer._spans(key) for key in layer]
    whole = shuffle.estimate_cost(layer.array, spans)
    assert whole is not None
    assert whole.distinct == IMAGE.nbytes
    assert whole.copied == PATCHES.nbytes
    assert whole.scaled_to(whole.blocks).visited == whole.visited
    assert whole.scaled_to(whole.blocks).distinct == pytest.approx(whole.distinct, rel=0.02)
    for n in (1, 2, 5, 10):
        estimated, found = whole.scaled_to(n), shuffle.estimate_cost(layer.array, spans[:n])
        assert found is not None
        assert estimated.distinct == pytest.approx(found.distinct, rel=0.15)
        assert estimated.visited == pytest.approx(found.visited, rel=0.15)
        assert estimated.copied == found.copied


@pytest.mark.slow
def test_a_pickled_array_knows_the_cost_of_its_blocks_without_its_files(tmp_path: Path) -> None:
    gone = write(tmp_path / "gone.h5", IMAGE)
    with xr.open_dataset(gone, engine="h5ref") as ds:
        array = ds["image_rois"].h5ref.resolve(chunks={ds["image_rois"].dims[0]: 20}).data
        sent = pickle.loads(pickle.dumps(array))
        gone.rename(tmp_path / "moved.h5")
        close_files()  # a file that is still open would be read on
        with dask.config.set(scheduler="processes"):
            assert any("xref-chunks" in str(key) for key in optimized(sent + 0))
        # Without a cost each block is read by itself, and reports the changed file.
        with pickle_anew(array) as unknown, dask.config.set(scheduler="processes"):
            assert not any("xref-chunks" in str(key) for key in optimized(unknown + 0))
        with pytest.raises(xref.FileChangedError):
            (sent + 0).compute()


def test_the_cost_of_blocks_that_cannot_be_read_together_is_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cells.h5"
    with h5py.File(path, "w") as file:
        cells = [file.create_dataset(f"c{k}", data=np.arange(3) + k) for k in range(40)]
        write_references(file, "refs", [c.ref for c in cells], dtype=h5py.ref_dtype)
    calls = []

    def find(*args: Any) -> Any:
        calls.append(args)
        return shuffle.estimate_cost(*args)

    monkeypatch.setattr(graph, "estimate_cost", find)
    with xr.open_dataset(path, engine="h5ref") as ds, dask.config.set(scheduler="processes"):
        cells = ds["refs"].h5ref.resolve(chunks=4).data
        assert not any("xref-chunks" in str(key) for key in optimized(cells + 0))
    assert len(calls) == 1


@contextmanager
def pickle_anew(array: Any) -> Iterator[Any]:
    """Pickle an array again, without the cost that an earlier pickle estimated."""
    layer = next(x for x in array.dask.layers.values() if isinstance(x, graph.ReadLayer))
    known = layer.cost, layer._is_estimated
    layer.cost, layer._is_estimated = None, False
    try:
        yield pickle.loads(pickle.dumps(array))
    finally:
        layer.cost, layer._is_estimated = known


@pytest.mark.sampled(29)
@pytest.mark.parametrize("name", ["grid", "both", "points", "steps", "gap", "nulls"])
@pytest.mark.parametrize("most", [PATCHES.nbytes // 3, PATCHES.nbytes])
def test_tasks_between_processes_give_the_same_values(
    ds: xr.Dataset, name: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "SHUFFLE_NBYTES", most)
    monkeypatch.setattr(shuffle, "BATCH_NBYTES", IMAGE.nbytes // 5)
    monkeypatch.setattr(shuffle, "GROUP_NBYTES", PATCHES.nbytes // 9)
    rois = ds[name]
    whole = rois.h5ref.resolve(chunks=None, on_null="fill")
    arrays = [
        (rois.h5ref.resolve(chunks=size, on_null="fill"), whole)
        for size in ({rois.dims[0]: 5}, {rois.dims[0]: 20, whole.dims[-1]: 7})
    ]
    if name not in ("nulls", "gap"):
        arrays.append((rois.h5ref.mean(chunks={rois.dims[0]: 5}), rois.h5ref.mean(chunks=None)))
    for lazy, expected in arrays:
        with dask.config.set(scheduler="processes"):
            tasks = pickle.loads(pickle.dumps(optimized(lazy.data + 0)))
        keys = list(dask.core.flatten((lazy.data + 0).__dask_keys__()))
        blocks = dask.get(tasks, keys)
        for key, block in zip(keys, blocks, strict=True):
            np.testing.assert_array_equal(block, block_of(expected.values, lazy.data, key[1:]))


KINDS = [
    np.dtype(">u2"),
    np.dtype(">f8"),
    np.dtype("S3"),
    np.dtype([("a", ">i4"), ("b", "u1")], align=True),
    np.dtype({"names": ["a"], "formats": ["<i2"], "offsets": [3], "itemsize": 8}),
]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_elements_of_every_dtype_are_shuffled_in_blocks(
    tmp_path: Path, dtype: np.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "BATCH_NBYTES", 1 << 12)
    values = np.zeros(IMAGE.shape, dtype=dtype)
    for name in dtype.names or (...,):
        values[name] = IMAGE % 200
    with h5py.File(tmp_path / "kinds.h5", "w") as file:
        data = file.create_dataset(
            "data", data=values, chunks=(CHUNK, CHUNK), compression="gzip"
        )
        boxes = [data.regionref[y : y + BOX, x : x + BOX] for y, x in CORNERS]
        write_references(file, "rois", boxes)
    expected = np.stack([values[y : y + BOX, x : x + BOX] for y, x in CORNERS])
    with xr.open_dataset(tmp_path / "kinds.h5", engine="h5ref") as ds:
        lazy = ds["rois"].h5ref.resolve(chunks={ds["rois"].dims[0]: 20}).data
        blocks = lazy.map_blocks(np.copy, dtype=lazy.dtype)
        with xref.count_reads() as reads:
            np.testing.assert_array_equal(blocks.compute(), expected)
        assert reads.chunks_decoded == (SIDE // CHUNK) ** 2
        with dask.config.set(scheduler="processes"):
            tasks = pickle.loads(pickle.dumps(optimized(blocks)))
        found = dask.get(tasks, list(dask.core.flatten(blocks.__dask_keys__())))
        np.testing.assert_array_equal(np.concatenate(found), expected)


def block_of(values: np.ndarray, data: Any, index: tuple[int, ...]) -> np.ndarray:
    stops = [np.cumsum(sizes) for sizes in data.chunks]
    return values[
        tuple(
            slice(int(stop[i]) - sizes[i], int(stop[i]))
            for stop, sizes, i in zip(stops, data.chunks, index, strict=True)
        )
    ]


def test_spans_of_blocks_pack_into_few_bytes() -> None:
    one = [((0, 3),), ((3, 6),), ((6, 7),)]
    assert shuffle._unpack_spans(shuffle._pack_spans(one), 1) == tuple(one)
    many = [((10 * i, 10 * i + 10), (5, 7), (0, 2)) for i in range(10_000)]
    packed = shuffle._pack_spans(many)
    assert len(packed) < 2_000
    assert shuffle._unpack_spans(packed, 3) == tuple(many)


def optimized(data: Any) -> dict[Any, Any]:
    (best,) = dask.optimize(data)
    return dict(best.__dask_graph__())


def test_each_block_and_each_batch_of_chunks_is_a_task(
    ds: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "BATCH_NBYTES", SIDE * SIDE * 2 // 16)
    dim = ds["image_rois"].dims[0]
    data = ds["image_rois"].h5ref.resolve(chunks={dim: 50}).data
    with dask.config.set(scheduler="processes"):
        keys = [str(key) for key in optimized(data.map_blocks(np.array, dtype=data.dtype))]
    assert sum("xref-chunks" in key for key in keys) == 16
    result, chunks = counted(lambda: data.map_blocks(np.array, dtype=data.dtype).compute())
    np.testing.assert_array_equal(result, PATCHES)
    assert chunks == N_CHUNKS


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["image", "plain", "packed"])
@pytest.mark.parametrize("size", [1, 33, 400])
def test_every_layout_and_decoding_is_read_in_blocks(
    ds: xr.Dataset, name: str, size: int
) -> None:
    rois = ds[f"{name}_rois"]
    expected = rois.h5ref.resolve(chunks=None)
    blocks = rois.h5ref.resolve(chunks={rois.dims[0]: size})
    assert blocks.dtype == expected.dtype
    np.testing.assert_array_equal(through_blocks(blocks), expected.values)
    np.testing.assert_array_equal(blocks.values, expected.values)


@pytest.mark.sampled(17)
@pytest.mark.parametrize("name", ["grid", "both", "points", "steps", "nulls", "image_rois"])
@pytest.mark.parametrize("batch_nbytes", [1, 1 << 14, 1 << 30])
def test_blocks_along_every_axis_have_the_values_of_any_selection_kind(
    ds: xr.Dataset, name: str, batch_nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "BATCH_NBYTES", batch_nbytes)
    rois = ds[name]
    expected = rois.h5ref.resolve(chunks=None, on_null="fill")
    for sizes in ((19, 5), (50,), (400, 20)):
        chunks = dict(zip(expected.dims, sizes, strict=False))
        if name != "points" and len(sizes) == 1:
            chunks |= dict.fromkeys(expected.dims[rois.ndim :], 5)
        blocks = rois.h5ref.resolve(chunks=chunks, on_null="fill")
        np.testing.assert_array_equal(through_blocks(blocks), expected.values)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 30, -1, {"sample": 17}])
def test_ragged_and_padded_results_are_read_in_blocks(ds: xr.Dataset, size: Any) -> None:
    rois = ds["ragged"]
    for layout in ("ragged", "pad"):
        if layout == "pad" and isinstance(size, dict):
            size = {rois.dims[0]: 9, "phony_dim_1": 3}
        options: dict[str, Any] = {"on_null": "fill"}
        expected = rois.h5ref.resolve(layout, chunks=None, **options)["image"]
        if layout == "pad" and isinstance(size, dict):
            size = {expected.dims[0]: 9, expected.dims[1]: 3}
        blocks = rois.h5ref.resolve(layout, chunks=size, **options)["image"]
        np.testing.assert_array_equal(through_blocks(blocks), expected.values)
        np.testing.assert_array_equal(blocks.values, expected.values)


@pytest.mark.parametrize("statistic", ["mean", "max", "count", "std"])
def test_statistics_in_blocks_read_each_chunk_once(ds: xr.Dataset, statistic: str) -> None:
    rois = ds["ragged"]
    expected = getattr(rois.h5ref, statistic)(chunks=None).values
    blocks = getattr(rois.h5ref, statistic)(chunks={rois.dims[0]: 23})
    result, chunks = counted(blocks.compute)
    np.testing.assert_array_equal(result, expected)
    assert chunks <= N_CHUNKS


def test_functions_of_the_user_read_each_chunk_once(ds: xr.Dataset) -> None:
    rois = ds["image_rois"]
    for function, expected in ((np.ptp, np.ptp), (np.median, np.median)):
        blocks = rois.h5ref.reduce(function, chunks={rois.dims[0]: 50})
        result, chunks = counted(blocks.compute)
        np.testing.assert_array_equal(result, expected(PATCHES, axis=(1, 2)))
        assert chunks == N_CHUNKS


def test_a_shuffle_holds_a_bounded_number_of_bytes(
    ds: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "SHUFFLE_NBYTES", PATCHES.nbytes // 2)
    dim = ds["image_rois"].dims[0]
    patches = ds["image_rois"].h5ref.resolve(chunks={dim: 20})
    sums = patches.data.sum(axis=(1, 2))
    result, chunks = counted(sums.compute)
    np.testing.assert_array_equal(result, PATCHES.sum(axis=(1, 2)))
    assert chunks <= 2 * N_CHUNKS


def test_only_computed_blocks_are_read_together(ds: xr.Dataset) -> None:
    dim = ds["image_rois"].dims[0]
    patches = ds["image_rois"].h5ref.resolve(chunks={dim: 10})
    (y, x), last = CORNERS[17] // CHUNK, (CORNERS[17] + BOX - 1) // CHUNK
    touched = int(np.prod(last - [y, x] + 1))
    result, chunks = counted(patches[17].compute)
    np.testing.assert_array_equal(result, PATCHES[17])
    assert chunks == touched
    np.testing.assert_array_equal(patches.chunk({dim: 200})[17], PATCHES[17])
    part, chunks = counted((patches[10:30] + 0).compute)
    np.testing.assert_array_equal(part, PATCHES[10:30])
    assert chunks <= N_CHUNKS


def test_an_index_of_one_block_narrows_its_read(ds: xr.Dataset) -> None:
    patches = ds["image_rois"].h5ref.resolve(chunks={})
    corner, last = CORNERS[5] // CHUNK, (CORNERS[5] + BOX - 1) // CHUNK
    result, chunks = counted(patches[5].compute)
    np.testing.assert_array_equal(result, PATCHES[5])
    assert chunks == np.prod(last - corner + 1)
    one, chunks = counted(patches[5, 2, 3].compute)
    assert (int(one), chunks) == (PATCHES[5, 2, 3], 1)


def test_a_whole_array_is_read_by_one_task(ds: xr.Dataset) -> None:
    dim = ds["image_rois"].dims[0]
    patches = ds["image_rois"].h5ref.resolve(chunks={dim: 10})
    tasks: list[Any] = []
    with Callback(start=lambda found: tasks.extend(found)):
        result, chunks = counted(patches.compute)
    assert len(tasks) <= 2  # one holds the location of the references, one reads
    np.testing.assert_array_equal(result, PATCHES)
    assert chunks == N_CHUNKS
    # An array that other arrays need as well is read in blocks, for both of them.
    (whole, sums), chunks = counted(
        lambda: dask.compute(patches.data, patches.data.sum(axis=(1, 2)))
    )
    np.testing.assert_array_equal(whole, PATCHES)
    np.testing.assert_array_equal(sums, PATCHES.sum(axis=(1, 2)))
    assert chunks <= 2 * N_CHUNKS


def test_results_are_writable_and_shared_with_no_cache(ds: xr.Dataset) -> None:
    kept = ds["image_rois"].h5ref.resolve(chunks={}).persist()
    for _ in range(2):
        values = kept.compute().values
        np.testing.assert_array_equal(values, PATCHES)
        values[...] = 0


def test_a_dataset_of_resolved_and_derived_variables_computes(ds: xr.Dataset) -> None:
    patches = ds["image_rois"].h5ref.resolve(chunks={ds["image_rois"].dims[0]: 50})
    means = patches.mean(patches.dims[1:])
    both = xr.Dataset({"patches": patches, "means": means}).compute()
    np.testing.assert_array_equal(both["patches"], PATCHES)
    np.testing.assert_allclose(both["means"], PATCHES.mean(axis=(1, 2)))
    doubled = xr.apply_ufunc(np.add, patches, patches * 2, dask="parallelized")
    np.testing.assert_array_equal(doubled, PATCHES * np.uint16(3))


def test_empty_targets_among_others_are_read_in_blocks(tmp_path: Path) -> None:
    path = tmp_path / "empty.h5"
    with h5py.File(path, "w") as file:
        empty = file.create_dataset("empty", (0, 0), ">i4")
        data = file.create_dataset("data", data=np.arange(8, dtype=">i4").reshape(1, 8))
        refs = [empty.regionref[...], data.regionref[:1, :1], data.regionref[:1, :1]]
        write_references(file, "rois", refs)
    with xr.open_dataset(path, engine="h5ref") as ds:
        ragged = ds["rois"].h5ref.resolve("ragged", chunks=1)
        assert ragged["row_size"].values.tolist() == [0, 1, 1]
        (values,) = [v for v in ragged.data_vars.values() if v.dims == ("sample",)]
        assert values.chunks == ((1, 1),)
        assert values.values.tolist() == [0, 0]


def test_regions_larger_than_chunks_read_each_chunk_once(tmp_path: Path) -> None:
    corners = np.stack(np.meshgrid(np.arange(0, 192, 16), np.arange(0, 192, 16)), axis=-1)
    corners = np.random.default_rng(0).permutation(corners.reshape(-1, 2))
    with h5py.File(tmp_path / "large.h5", "w") as file:
        stored = file.create_dataset("image", data=IMAGE, chunks=(16, 16), compression="gzip")
        boxes = [stored.regionref[y : y + 64, x : x + 64] for y, x in corners]
        write_references(file, "rois", boxes)
    expected = np.stack([IMAGE[y : y + 64, x : x + 64] for y, x in corners])
    with xr.open_dataset(tmp_path / "large.h5", engine="h5ref") as large:
        patches = large["rois"].h5ref.resolve(chunks={large["rois"].dims[0]: 6})
        result, chunks = counted(patches.data.sum(axis=(1, 2)).compute)
    np.testing.assert_array_equal(result, expected.sum(axis=(1, 2)))
    assert chunks == 15**2


def test_blocks_may_divide_the_axes_of_array_types(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(40, 40, 6)).astype("f4")
    with h5py.File(tmp_path / "items.h5", "w") as file:
        stored = file.create_dataset("image", (40, 40), dtype=("f4", (6,)), chunks=(8, 8))
        stored[...] = values
        corners = np.random.default_rng(1).integers(0, 32, (60, 2))
        boxes = [stored.regionref[y : y + 8, x : x + 8] for y, x in corners]
        write_references(file, "rois", boxes)
    expected = np.stack([values[y : y + 8, x : x + 8] for y, x in corners])
    with xr.open_dataset(tmp_path / "items.h5", engine="h5ref") as items:
        rois = items["rois"]
        for chunks in ({rois.dims[0]: 10}, {rois.dims[0]: 10, "item": 2}):
            np.testing.assert_array_equal(
                through_blocks(rois.h5ref.resolve(chunks=chunks)), expected
            )


def test_an_index_of_many_blocks_reads_only_the_selected_chunks(ds: xr.Dataset) -> None:
    patches = ds["image_rois"].h5ref.resolve(chunks={ds["image_rois"].dims[0]: 50})
    with count_reads() as counts:
        np.testing.assert_array_equal(patches[::50, 0], PATCHES[::50, 0])
    corners = CORNERS[::50]
    last = corners[:, 1] + BOX - 1
    touched = (last // CHUNK - corners[:, 1] // CHUNK + 1).sum()
    assert counts.chunks_decoded == touched


def test_threads_that_share_a_failing_read_all_fail(
    ds: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = ds["image_rois"].h5ref.resolve(chunks={ds["image_rois"].dims[0]: 20})

    def fail(*_: Any) -> None:
        raise OSError("no such luck")

    monkeypatch.setattr(shuffle, "read_batch", fail)
    with pytest.raises(OSError, match="no such luck"):
        patches.data.sum(axis=(1, 2)).compute(scheduler="threads", num_workers=4)


@pytest.mark.slow
def test_two_files_of_one_structure_keep_their_own_values(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{k}.h5", IMAGE + k) for k in range(2)]
    opened = [xr.open_dataset(path, engine="h5ref") for path in paths]
    for name in ("image_rois", "ragged"):
        layout = "ragged" if name == "ragged" else "stack"
        arrays = [dataset[name].h5ref.resolve(layout) for dataset in opened]
        arrays = [a["image"] if layout == "ragged" else a for a in arrays]
        assert arrays[0].data.name != arrays[1].data.name
        first, second = dask.compute(*(a.data for a in arrays))
        np.testing.assert_array_equal(second, first + 1)
    means = [dataset["ragged"].h5ref.mean() for dataset in opened]
    assert means[0].data.name != means[1].data.name
    for dataset in opened:
        dataset.close()


def test_pickled_graphs_are_small(ds: xr.Dataset) -> None:
    dim = ds["image_rois"].dims[0]
    patches = ds["image_rois"].h5ref.resolve(chunks={dim: 10})
    data = pickle.loads(pickle.dumps(patches.data))
    np.testing.assert_array_equal((data + 0).compute(), PATCHES)
    np.testing.assert_array_equal(data.compute(), PATCHES)
    culled = optimized(patches.data.map_blocks(np.array, dtype=patches.dtype))
    each = [len(pickle.dumps(task)) for task in culled.values()]
    assert max(each) < 8_000
    assert sum(each) < len(each) * 2_000


@pytest.mark.slow
def test_processes_read_each_chunk_once_for_all_blocks(
    path: Path, process_pool: ProcessPoolExecutor
) -> None:
    with xr.open_dataset(path, engine="h5ref") as ds:
        patches = ds["image_rois"].h5ref.resolve(chunks={ds["image_rois"].dims[0]: 50})
        sums = patches.data.sum(axis=(1, 2)).compute(scheduler="processes", pool=process_pool)
        np.testing.assert_array_equal(sums, PATCHES.sum(axis=(1, 2)))
        whole = patches.data.compute(scheduler="processes", pool=process_pool)
        np.testing.assert_array_equal(whole, PATCHES)


@pytest.mark.slow
def test_every_task_reports_a_changed_file(tmp_path: Path) -> None:
    changed = write(tmp_path / "changed.h5", IMAGE)
    with xr.open_dataset(changed, engine="h5ref") as ds:
        patches = ds["image_rois"].h5ref.resolve(chunks={ds["image_rois"].dims[0]: 50})
        sums = patches.data.sum(axis=(1, 2))
        sums.compute()
        write(tmp_path / "new.h5", IMAGE + 1).replace(changed)
        close_files()  # a file that is still open would be read on
        with pytest.raises(xref.FileChangedError):
            sums.compute()


def test_files_close_when_the_graph_is_deleted(tmp_path: Path) -> None:
    closed = write(tmp_path / "closed.h5", IMAGE)
    ds = xr.open_dataset(closed, engine="h5ref")
    patches = ds["image_rois"].h5ref.resolve(chunks={ds["image_rois"].dims[0]: 50})
    sums = patches.data.sum(axis=(1, 2))
    sums.compute()
    assert closed in open_files()
    del ds, patches, sums
    gc.collect()
    assert closed not in open_files()


def open_files() -> list[Path]:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("the system does not list open files")
    return [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
