"""Files opened by URL have the values of local files and need few requests."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from remotes import BOX, CHUNK, CORNERS, IMAGE, PATCHES, write_file
from server import Answer, RangeServer, serve
from strategies import write_references

import xref
from xref.errors import FileChangedError, FileReadError
from xref.storage.open_files import close_files
from xref.storage.read_counts import ReadCounts
from xref.storage.remote import BLOCK_NBYTES, HEAD_NBYTES, _opened
from xref.storage.spared_garbage import SPARED_MOST

pytest.importorskip("aiohttp")


def needed_nbytes(path: Path, name: str = "image") -> int:
    """Count the stored bytes of the chunks that the regions touch."""
    with h5py.File(path) as file:
        touched = {
            (cy, cx)
            for y, x in CORNERS.tolist()
            for cy in range(y // CHUNK, (y + BOX - 1) // CHUNK + 1)
            for cx in range(x // CHUNK, (x + BOX - 1) // CHUNK + 1)
        }
        chunks = [
            file[name].id.get_chunk_info_by_coord((y * CHUNK, x * CHUNK)) for y, x in touched
        ]
    return sum(chunk.size for chunk in chunks)


# --- values and requests -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["auto", "h5py"])
@pytest.mark.parametrize("name", ["rois", "flat_rois"])
def test_remote_values_are_those_of_the_local_file(
    server: RangeServer, name: str, reader: str
) -> None:
    with xr.open_dataset(server.url("image.h5"), engine="h5ref", reader=reader) as ds:
        np.testing.assert_array_equal(ds[name].h5ref.resolve(), PATCHES)
        assert ds["texts"].values.tolist() == ["one", "two", "three"]
        assert ds["flat"].attrs["note"] == "contiguous"
        np.testing.assert_array_equal(ds["flat"][3:5], IMAGE[3:5])


@pytest.mark.slow
def test_requests_and_bytes_are_few_and_counted(
    server: RangeServer, remote_folder: Path
) -> None:
    needed = needed_nbytes(remote_folder / "image.h5")
    with (
        xref.set_options(remote_gap=0),
        xref.count_reads() as reads,
        xr.open_dataset(server.url("image.h5"), engine="h5ref") as ds,
    ):
        patches = ds["rois"].h5ref.resolve()
        before = reads.remote_nbytes
        np.testing.assert_array_equal(patches, PATCHES)
        assert reads.remote_nbytes - before <= needed + 8 * BLOCK_NBYTES
    assert reads.remote_requests == len(server.requests)
    assert reads.remote_nbytes == server.sent
    assert before <= HEAD_NBYTES + (1 << 19)
    assert reads.remote_retries == 0
    assert sum(method == "HEAD" for method, _ in server.requests) == 1


@pytest.mark.slow
def test_a_larger_gap_means_fewer_requests_and_more_bytes(server: RangeServer) -> None:
    counts = []
    for k, gap in enumerate((0, 9_000, 1 << 20)):
        with (
            xref.set_options(remote_gap=gap),
            xr.open_dataset(server.url(f"image.h5?{k}"), engine="h5ref") as ds,
        ):
            patches = ds["rois"].h5ref.resolve()
            with xref.count_reads() as reads:
                np.testing.assert_array_equal(patches, PATCHES)
            counts.append((reads.remote_requests, reads.remote_nbytes))
    (a, less), (b, middle), (c, more) = counts
    assert a > b > c
    assert less < middle < more


def test_large_reads_are_divided_into_requests(server: RangeServer, monkeypatch: Any) -> None:
    monkeypatch.setattr("xref.arrays.byte_ranges.FETCH_NBYTES", 20_000)
    with xr.open_dataset(server.url("image.h5"), engine="h5ref") as ds:
        for name in ("rois", "flat_rois"):
            np.testing.assert_array_equal(ds[name].h5ref.resolve(), PATCHES)


def test_a_small_file_is_read_with_one_request(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "small.h5", "w") as file:
        data = file.create_dataset("data", data=np.arange(100), chunks=(10,))
        write_references(file, "rois", [data.regionref[a : a + 5] for a in (0, 13, 90)])
    with serve(tmp_path) as server:
        with xr.open_dataset(server.url("small.h5"), engine="h5ref") as ds:
            values = ds["rois"].h5ref.resolve().values
        assert [m for m, _ in server.requests] == ["HEAD", "GET"]
    assert values[:, 0].tolist() == [0, 13, 90]


def test_many_small_datasets_are_read_with_few_requests(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "cells.h5", "w") as file:
        file["away"] = np.random.default_rng(0).integers(0, 255, 1 << 20, dtype="u1")
        cells = [
            file.create_dataset(
                f"cells/{i:03}", data=np.full(50, i), chunks=(50,), compression="gzip"
            )
            for i in range(200)
        ]
        file.create_dataset("refs", data=[c.ref for c in cells], dtype=h5py.ref_dtype)
    with serve(tmp_path) as server:
        with xr.open_dataset(server.url("cells.h5"), engine="h5ref") as ds:
            values = ds["refs"].h5ref.resolve().values
        assert len(server.requests) < 30
    np.testing.assert_array_equal(values, np.repeat(np.arange(200)[:, None], 50, axis=1))


@pytest.mark.slow
def test_metadata_of_paged_files_are_read_page_by_page(tmp_path: Path) -> None:
    counts = []
    for k, options in enumerate(({}, {"fs_strategy": "page", "fs_page_size": 1 << 20})):
        path = tmp_path / f"{k}.h5"
        with h5py.File(path, "w", libver="latest", **options) as file:
            for i in range(300):
                part = file.create_dataset(f"group/{i}", data=np.full(3000, i))
                part.attrs["text"] = "x" * 500
        with serve(tmp_path) as server:
            with xr.open_dataset(server.url(path.name), engine="h5ref", group="group") as ds:
                assert ds["7"][0] == 7
            counts.append(len(server.requests))
    assert counts[1] <= 10
    assert counts[1] < counts[0]


def test_missing_chunks_are_not_requested(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "sparse.h5", "w") as file:
        for name in ("none", "some"):
            data = file.create_dataset(
                name, (40, 40), "i4", chunks=(10, 10), fillvalue=7, compression="gzip"
            )
            refs = [data.regionref[a : a + 15, 3:9] for a in (0, 8, 20)]
            write_references(file, f"{name}_rois", refs)
        file["some"][12:14, 5:8] = 1
        expected = {name: file[name][...] for name in ("none", "some")}
    with (
        serve(tmp_path) as server,
        xr.open_dataset(server.url("sparse.h5"), engine="h5ref") as ds,
    ):
        for name, values in expected.items():
            np.testing.assert_array_equal(ds[name], values)
            np.testing.assert_array_equal(
                ds[f"{name}_rois"].h5ref.resolve(),
                [values[a : a + 15, 3:9] for a in (0, 8, 20)],
            )


@pytest.mark.slow
def test_scattered_bytes_are_read_without_the_bytes_between(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "far.h5", "w") as file:
        data = file.create_dataset("data", data=np.arange(1 << 21))  # 16 MiB
        starts = np.arange(0, 1 << 21, 1 << 13)  # a value each 64 kiB
        write_references(file, "rois", [data.regionref[a : a + 1] for a in starts])
    with (
        xref.set_options(remote_gap=1 << 20),
        serve(tmp_path) as server,
        xr.open_dataset(server.url("far.h5"), engine="h5ref") as ds,
    ):
        lazy = ds["rois"].h5ref.resolve()
        with xref.count_reads() as reads:
            assert lazy.values[:, 0].tolist() == starts.tolist()
        assert reads.remote_nbytes < 1 << 20


@pytest.mark.slow
def test_the_number_of_concurrent_requests_is_bounded(server: RangeServer) -> None:
    running, most, lock = [0], [0], threading.Lock()

    def watch(number: int, method: str, answer: Answer) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.01)
        with lock:
            running[0] -= 1

    with xr.open_dataset(server.url("image.h5"), engine="h5ref") as ds:
        patches = ds["rois"].h5ref.resolve(chunks={ds["rois"].dims[0]: 10}).data + 0
        server.fault = watch
        with xref.set_options(remote_requests=3):
            np.testing.assert_array_equal(patches.compute(), PATCHES)
    assert 1 < most[0] <= 3


def collect() -> int:
    return gc.collect()


def allocate() -> int:
    """Allocate so much that Python starts a garbage collection."""
    kept = [[i] for i in range(10_000)]
    return len(kept) - 10_000


@pytest.mark.slow
@pytest.mark.parametrize("cause", [collect, allocate])
def test_garbage_collection_on_a_transport_thread_does_not_deadlock(
    server: RangeServer, cause: Callable[[], int]
) -> None:
    """Files in reference cycles are closed under HDF5's lock, never on a transport thread."""
    from h5py._objects import phil

    url = server.url("image.h5")

    async def answer() -> int:
        return cause()

    gc.collect()
    gc.disable()
    try:
        ds = xr.open_dataset(url, engine="h5ref")
        circle: list[Any] = [ds["rois"].h5ref.resolve()]
        circle.append(circle)
        left = weakref.ref(ds)
        ((opened, _), *_) = [(h, k) for k, h in _opened.items() if k[0].name == url]
        remote = opened.remote
        del ds, circle, opened
        with phil:  # as a thread has it that waits for metadata
            begun = remote.ask(answer)
            gc.enable()
            assert begun.result(30) == 0  # nothing was collected there
        gc.collect()
        assert left() is None
    finally:
        gc.enable()
    with xr.open_dataset(url, engine="h5ref") as ds:  # closes the other
        assert ds["texts"].size == 3


def test_garbage_skipped_on_transport_threads_is_collected_soon(server: RangeServer) -> None:
    with xr.open_dataset(server.url("image.h5"), engine="h5ref") as ds:
        (opened,) = {h for k, h in _opened.items() if k[0].name == server.url("image.h5")}

        async def allocate_much() -> None:
            for _ in range(2 * SPARED_MOST):
                allocate()

        circle: list[Any] = [ReadCounts()]
        circle.append(circle)
        left = weakref.ref(circle[0])
        del circle
        opened.remote.ask(allocate_much).result(30)
        assert ds["texts"].size == 3
        ds["flat"][0, 0].load()  # opens what it reads
        assert left() is None


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), True, "1"])
def test_remote_timeout_must_be_finite(seconds: Any) -> None:
    with pytest.raises(ValueError, match="remote_timeout"):
        xref.set_options(remote_timeout=seconds)


# --- other processes -----------------------------------------------------------------


def mean_of(patches: xr.DataArray) -> float:
    # A forked child lacks the threads of the pool that Dask keeps.
    return float(patches.mean().compute(scheduler="synchronous"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_other_processes_open_the_url_themselves(
    server: RangeServer, method: str, process_pool: ProcessPoolExecutor
) -> None:
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    with xr.open_dataset(server.url("image.h5"), engine="h5ref") as ds, ExitStack() as stack:
        patches = ds["rois"].h5ref.resolve()
        assert len(pickle.dumps(patches)) < 50_000
        pool = process_pool  # of spawned processes
        if method == "fork":
            pool = stack.enter_context(ProcessPoolExecutor(1, get_context("fork")))
        assert pool.submit(mean_of, patches).result(60) == pytest.approx(PATCHES.mean())


# --- other file systems ----------------------------------------------------------------


def assert_patches(url: str, **options: Any) -> None:
    with xr.open_dataset(url, engine="h5ref", **options) as ds:
        np.testing.assert_array_equal(ds["rois"].h5ref.resolve(), PATCHES)
        np.testing.assert_array_equal(ds["flat_rois"].h5ref.resolve(), PATCHES)
        assert ds["texts"].values.tolist() == ["one", "two", "three"]


def test_a_file_cached_by_fsspec_is_read(server: RangeServer) -> None:
    assert_patches(f"simplecache::{server.url('image.h5')}")
    n = len(server.requests)
    assert_patches(f"simplecache::{server.url('image.h5')}")
    assert all(method == "HEAD" for method, _ in server.requests[n:])


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["simplecache", "blockcache"])
def test_cached_copies_of_two_versions_do_not_mix(
    tmp_path: Path, other_image: bytes, cache: str
) -> None:
    write_file(tmp_path / "image.h5")
    with serve(tmp_path) as server:
        url = f"{cache}::{server.url('image.h5')}"
        fsspec = pytest.importorskip("fsspec")
        with xr.open_dataset(url, engine="h5ref") as ds:
            patches = ds["rois"].h5ref.resolve()
            (tmp_path / "image.h5").write_bytes(other_image)
            if cache == "simplecache":
                np.testing.assert_array_equal(patches, PATCHES)  # of the copy
            fsspec.implementations.cached.CachingFileSystem.clear_instance_cache()
            fsspec.implementations.cached.SimpleCacheFileSystem.clear_instance_cache()
            close_files()
            with pytest.raises(FileChangedError):  # another process has another copy
                patches.compute()
        with xr.open_dataset(url, engine="h5ref") as ds:
            expected = [IMAGE[::-1][y : y + BOX, x : x + BOX] for y, x in CORNERS]
            np.testing.assert_array_equal(ds["rois"].h5ref.resolve(), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"cache_storage": "unused"},
        {"blockcache": {"cache_storage": "unused"}},
        {"blockcache": {"cache_storage": "unused"}, "http": {"headers": {"x": "y"}}},
    ],
    ids=["flat", "by protocol", "of both"],
)
def test_options_of_an_unused_fsspec_cache_are_ignored(
    server: RangeServer, options: dict[str, Any]
) -> None:
    assert_patches(f"blockcache::{server.url('image.h5')}", storage_options=options)


def slow_class() -> type:
    """Return a synchronous file system that counts how many calls run at once."""
    spec = pytest.importorskip("fsspec.spec")

    class Slow(spec.AbstractFileSystem):
        protocol = "slow"
        cachable = False
        content = b""
        running = most = 0
        refused = False

        def __enter__(self) -> None:
            type(self).running += 1
            type(self).most = max(self.most, self.running)
            time.sleep(0.02)

        def __exit__(self, *error: object) -> None:
            type(self).running -= 1

        def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
            with self:
                return {"name": path, "size": len(self.content), "type": "file", "etag": "1"}

        def cat_file(self, path: str, start: int = 0, end: int = 0, **kwargs: Any) -> bytes:
            with self:
                if self.refused and start:
                    raise PermissionError("the token has expired")
                return self.content[start:end]

    return Slow


@pytest.fixture
def slow(remote_folder: Path) -> Any:
    fsspec = pytest.importorskip("fsspec")
    made = slow_class()
    made.content = (remote_folder / "image.h5").read_bytes()
    fsspec.register_implementation("slow", made, clobber=True)
    return made


def test_synchronous_file_systems_get_one_call_at_a_time(slow: Any) -> None:
    with xref.set_options(remote_timeout=0.1, remote_gap=0), xref.count_reads() as reads:
        assert_patches("slow://image.h5")
    assert slow.most == 1
    assert reads.remote_requests > 10
    assert reads.remote_retries == 0  # waiting for its turn counts for nobody


def test_refused_access_raises_instead_of_leaving_out_members(slow: Any) -> None:
    slow.refused = True
    with pytest.raises(FileReadError, match=r"bytes .* PermissionError: the token"):
        xr.open_dataset("slow://refused.h5", engine="h5ref")


def test_changed_files_in_memory_are_detected(remote_folder: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    content = (remote_folder / "image.h5").read_bytes()
    memory.pipe("/remote/image.h5", content)
    try:
        assert_patches("memory://remote/image.h5")
        with xr.open_dataset("memory://remote/image.h5", engine="h5ref") as ds:
            patches = ds["rois"].h5ref.resolve()
            memory.pipe("/remote/image.h5", content)  # the same bytes, at another time
            with pytest.raises(FileChangedError):
                patches.compute()
            memory.rm("/remote/image.h5")
            with pytest.raises(FileChangedError, match="was deleted"):
                ds["flat_rois"].h5ref.resolve().compute()
    finally:
        if memory.exists("/remote"):
            memory.rm("/remote", recursive=True)


@pytest.fixture(scope="module")
def bucket(remote_folder: Path) -> Iterator[dict[str, Any]]:
    pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    # In another process: a thread that waits for the answer may hold HDF5's lock in this one.
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr or ())
            address = next(line.split()[-1] for line in lines if "Running on http" in line)
            options = {
                "key": "key",
                "secret": "secret",
                "client_kwargs": {"endpoint_url": address},
            }
            files = s3fs.S3FileSystem(**options)
            files.mkdir("bucket")
            files.pipe("bucket/image.h5", (remote_folder / "image.h5").read_bytes())
            reading = threading.Thread(target=list, args=(lines,), name="moto-log")
            reading.start()  # else its log fills the pipe
            try:
                yield options
            finally:
                process.kill()
                reading.join()
        finally:
            process.kill()


@pytest.mark.slow
def test_s3_objects_are_read_with_few_requests(bucket: dict[str, Any]) -> None:
    with xref.count_reads() as reads:
        assert_patches("s3://bucket/image.h5", storage_options=bucket)
    assert 10 < reads.remote_requests < 120
    with xr.open_dataset("s3://bucket/image.h5", engine="h5ref", storage_options=bucket) as ds:
        again = pickle.loads(pickle.dumps(ds["rois"].h5ref.resolve()))
        np.testing.assert_array_equal(again, PATCHES)


@pytest.mark.slow
def test_changed_s3_objects_are_detected(bucket: dict[str, Any], remote_folder: Path) -> None:
    import s3fs

    files = s3fs.S3FileSystem(**bucket)
    content = (remote_folder / "image.h5").read_bytes()
    files.pipe("bucket/changing.h5", content)
    url = "s3://bucket/changing.h5"
    with xr.open_dataset(url, engine="h5ref", storage_options=bucket) as ds:
        patches = ds["rois"].h5ref.resolve()
        np.testing.assert_array_equal(patches[:5], PATCHES[:5])
        files.pipe("bucket/changing.h5", content[:-1] + b"x")
        with pytest.raises(FileChangedError, match="has changed"):
            patches.compute()
        files.rm("bucket/changing.h5")
        with pytest.raises(FileChangedError, match="was deleted"):
            ds["flat_rois"].h5ref.resolve().compute()
    with pytest.raises(FileNotFoundError):
        xr.open_dataset("s3://bucket/none.h5", engine="h5ref", storage_options=bucket)
