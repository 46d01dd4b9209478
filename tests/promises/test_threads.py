"""Threads that open, resolve and close files at once get the values that one thread gets."""

from __future__ import annotations

import pickle
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from forks import in_fork
from strategies import write_references

import xref
from xref.reading.worker_threads import share_work

DATA = np.random.default_rng(0).integers(0, 1000, (300, 200), dtype="i4")
N = 200
STARTS = np.random.default_rng(1).integers(0, [290, 190], (N, 2))
PATCHES = np.array([DATA[y : y + 8, x : x + 9] for y, x in STARTS.tolist()])
THREADS = 12


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "refs.h5"
    with h5py.File(path, "w") as file:
        stored = {
            "gzip": {"compression": "gzip", "shuffle": True},
            "raw": {},
            "lzf": {"compression": "lzf"},
        }
        for name, options in stored.items():
            data = file.create_dataset(
                name, data=DATA, chunks=None if name == "raw" else (32, 32), **options
            )
            regions = [data.regionref[y : y + 8, x : x + 9] for y, x in STARTS.tolist()]
            write_references(file, f"{name}_rois", regions)
        file["texts"] = np.array(["a", "bb", "ccc"] * 10, dtype=object)
        objects = file.create_dataset("objects", (3,), dtype=h5py.ref_dtype)
        objects[:] = np.array([file[n].ref for n in stored], dtype=h5py.ref_dtype)
    return path


def run(tasks: list[Callable[[], Any]]) -> list[Any]:
    """Run tasks on threads that begin together; raise the first error of any thread."""
    barrier = threading.Barrier(min(THREADS, len(tasks)))

    def begin(task: Callable[[], Any], first: bool) -> Any:
        if first:
            barrier.wait(60)
        return task()

    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(begin, t, i < barrier.parties) for i, t in enumerate(tasks)]
        return [f.result(120) for f in futures]


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["auto", "h5py"])
def test_threads_share_one_dataset(path: Path, reader: str) -> None:
    with xr.open_dataset(path, engine="h5ref", reader=reader) as ds:

        def resolve(name: str, part: slice) -> None:
            rois = ds[f"{name}_rois"][part]
            np.testing.assert_array_equal(rois.h5ref.resolve(chunks=None).values, PATCHES[part])
            means = rois.h5ref.mean(chunks=None)
            np.testing.assert_allclose(means, PATCHES[part].mean((1, 2)))

        parts = [slice(k, None, k + 1) for k in range(8)]
        run([lambda n=n, p=p: resolve(n, p) for n in ("gzip", "raw", "lzf") for p in parts])


def test_threads_decode_the_columns_of_references_once(path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref") as ds:
        array = ds["gzip_rois"].data
        columns = run([lambda: array.columns] * THREADS)
        assert all(c is columns[0] for c in columns)
        elements = run([lambda i=i: array[i] for i in range(N)])
        assert elements == np.asarray(array).tolist()


@pytest.mark.slow
def test_threads_open_and_close_the_same_file(path: Path) -> None:
    def open_and_read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(4):
            name = chance.choice(["gzip", "raw", "lzf"])
            with xr.open_dataset(path, engine="h5ref", chunks=chance.choice([None, {}])) as ds:
                row = chance.randrange(N)
                got = ds[f"{name}_rois"].data[row].resolve().values
                np.testing.assert_array_equal(got, PATCHES[row])
                np.testing.assert_array_equal(ds[name][5:40, ::3].values, DATA[5:40, ::3])
                assert ds["texts"].values[:3].tolist() == ["a", "bb", "ccc"]

    run([lambda s=s: open_and_read(s) for s in range(24)])


def test_closing_a_dataset_while_threads_read_leaves_their_values_right(path: Path) -> None:
    done = threading.Event()
    ds = xr.open_dataset(path, engine="h5ref")

    def close_often() -> None:
        while not done.is_set():
            xr.open_dataset(path, engine="h5ref").close()

    def read(k: int) -> None:
        rois = ds["gzip_rois"][k::5]
        np.testing.assert_array_equal(rois.h5ref.resolve(chunks=None).values, PATCHES[k::5])
        np.testing.assert_array_equal(ds["raw"][k::7].values, DATA[k::7])
        np.testing.assert_array_equal(ds["objects"].data[2].resolve().values, DATA)

    closer = threading.Thread(target=close_often)
    closer.start()
    try:
        run([lambda k=k: read(k) for k in range(15)])
    finally:
        done.set()
        closer.join()
        ds.close()


@pytest.mark.parametrize(
    "scheduler", ["threads", "synchronous", pytest.param("processes", marks=pytest.mark.slow)]
)
def test_schedulers_give_equal_values(
    path: Path, scheduler: str, request: pytest.FixtureRequest
) -> None:
    with xr.open_dataset(path, engine="h5ref") as ds:
        stacked = ds["gzip_rois"].h5ref.resolve(chunks=50)
        ragged = ds["gzip_rois"].h5ref.resolve("ragged", chunks=50)["gzip"]
        means = ds["gzip_rois"].h5ref.mean(chunks=50)
        medians = ds["gzip_rois"].h5ref.reduce(np.median, chunks=50)
        options: dict[str, Any] = {"scheduler": scheduler}
        if scheduler == "processes":
            options["pool"] = request.getfixturevalue("process_pool")
        np.testing.assert_array_equal(stacked.compute(**options), PATCHES)
        np.testing.assert_array_equal(ragged.compute(**options), PATCHES.ravel())
        means, medians = dask.compute(means, medians, **options)
        np.testing.assert_allclose(means, PATCHES.mean((1, 2)))
        np.testing.assert_array_equal(medians, np.median(PATCHES, (1, 2)))


def test_many_threads_read_with_many_decoding_threads(path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref") as ds:
        for threads in (1, 3):
            with xref.set_options(threads=threads):
                stacked = ds["lzf_rois"].h5ref.resolve(chunks=20)
                results = run([lambda s=stacked: s.compute(num_workers=4)] * 4)
            for result in results:
                np.testing.assert_array_equal(result, PATCHES)


def test_pickled_copies_are_read_by_threads_at_once(path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref") as ds:
        text = pickle.dumps(ds["raw_rois"].h5ref.resolve(chunks=40))
        for result in run([lambda: pickle.loads(text).compute()] * 8):
            np.testing.assert_array_equal(result, PATCHES)


@pytest.mark.slow
def test_an_error_in_one_thread_leaves_the_values_of_others_right(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["gzip"].id.write_direct_chunk((64, 64), b"garbage")
    with xr.open_dataset(path, engine="h5ref") as ds:
        y, x = STARTS.T
        hit = (y < 96) & (y + 8 > 64) & (x < 96) & (x + 9 > 64)
        assert hit.any()

        def read(row: int) -> None:
            if hit[row]:
                with pytest.raises(xref.CorruptFileError):
                    ds["gzip_rois"].data[row].resolve().load()
            else:
                got = ds["gzip_rois"].data[row].resolve().values
                np.testing.assert_array_equal(got, PATCHES[row])

        run([lambda r=r: read(r) for r in range(N)])


def test_a_forked_process_reads_files_that_its_parent_opened(path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref") as ds:

        def matches() -> bool:
            rois = ds["gzip_rois"].h5ref.resolve(chunks=None).values
            return bool((rois == PATCHES).all() and (ds["lzf"].values == DATA).all())

        with xref.set_options(threads=3):
            assert matches()  # with threads, which a fork does not inherit
            assert in_fork(matches) == {"result": True}
            assert matches()


def test_files_evicted_from_the_cache_by_each_other_are_read_right(tmp_path: Path) -> None:
    for k in range(3):
        with h5py.File(tmp_path / f"{k}.h5", "w") as file:
            data = file.create_dataset("data", data=DATA + 1000 * k, chunks=(32, 32))
            regions = [data.regionref[y : y + 8, x : x + 9] for y, x in STARTS.tolist()]
            write_references(file, "rois", regions)
    with xr.set_options(file_cache_maxsize=1):
        datasets = [xr.open_dataset(tmp_path / f"{k}.h5", engine="h5ref") for k in range(3)]

        def read(task: int) -> None:
            file, part = task % 3, slice(task, None, 5)
            rois = datasets[file]["rois"][part].h5ref.resolve(chunks=None)
            np.testing.assert_array_equal(rois, PATCHES[part] + 1000 * file)
            np.testing.assert_array_equal(
                datasets[file]["data"][part], DATA[part] + 1000 * file
            )

        run([lambda t=t: read(t) for t in range(24)])
        for ds in datasets:
            ds.close()


def test_reading_works_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Callable[[], None]] = []

    class FullPool:
        def submit(self, work: Callable[[], None]) -> None:
            started.append(work)
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr("xref.reading.worker_threads._pool", FullPool)
    done: list[int] = []
    with xref.set_options(threads=4):
        share_work(10, done.append)
    (late,) = started
    late()  # finds nothing to do
    assert done == list(range(10))


def test_a_read_error_stops_all_threads_and_is_raised_once() -> None:
    done: list[int] = []
    barrier = threading.Barrier(3)

    def job(number: int) -> None:
        barrier.wait(10)
        done.append(number)
        raise ValueError(f"job {number}")

    with xref.set_options(threads=3), pytest.raises(ValueError, match="job"):
        share_work(100, job)
    assert len(done) == 3
