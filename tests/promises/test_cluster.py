"""On a Dask cluster: right values, each chunk decoded once, few bytes between workers.

``benchmarks/chaos.py`` does the same for longer and with more faults.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dask
import dask.multiprocessing
import h5py
import numpy as np
import pytest
import xarray as xr
from dask.utils import key_split
from strategies import write_references

import xref
from xref.resolving import shuffle
from xref.storage import read_counts as counting

pytestmark = pytest.mark.slow

distributed = pytest.importorskip("distributed")

SIDE, CHUNK, BOX, N = 512, 64, 16, 600
IMAGE = np.random.default_rng(0).integers(0, 60_000, (SIDE, SIDE), dtype="u2")
CORNERS = np.random.default_rng(1).integers(0, SIDE - BOX, (N, 2))
PATCHES = np.stack([IMAGE[y : y + BOX, x : x + BOX] for y, x in CORNERS])
N_CHUNKS = (SIDE // CHUNK) ** 2


def begin_counting() -> None:
    # Kept in the module that counts: a function that was sent may have its own globals.
    stack = ExitStack()
    counts = stack.enter_context(counting.count_reads())
    vars(counting).setdefault("counting_for_tests", []).append((stack, counts))


def end_counting() -> int:
    stack, counts = vars(counting)["counting_for_tests"].pop()
    stack.close()
    return counts.chunks_decoded


def received_nbytes(dask_worker: Any) -> int:
    return sum(transfer["total"] for transfer in dask_worker.transfer_incoming_log)


def open_files() -> list[str]:
    return [os.readlink(link) for link in os.scandir("/proc/self/fd") if os.path.islink(link)]


@contextmanager
def running_cluster(n_workers: int, **options: Any) -> Iterator[Any]:
    cluster = distributed.LocalCluster(
        n_workers=n_workers,
        threads_per_worker=1,
        processes=True,
        dashboard_address=":0",
        silence_logs=60,
        **options,
    )
    with cluster, distributed.Client(cluster) as client:
        client.run(__import__, "xref.resolving.dask_graph")
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with running_cluster(2) as client:
        yield client


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("cluster") / "image.h5")


def test_workers_of_a_cluster_write_one_file(client: Any, path: Path, tmp_path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref", chunks={}) as ds:
        patches = ds["rois"].h5ref.resolve(chunks=50).rename("patches").drop_attrs()
        new = patches.to_dataset().assign(image=(("a", "b"), (ds["image"] + 1).data))
        encoding = {"patches": {"zlib": True, "chunksizes": (50, BOX, BOX)}, "image": {}}
        later = xref.to_hdf5(new, tmp_path / "new.h5", encoding=encoding, compute=False)
        client.compute(later).result()
    assert os.listdir(tmp_path) == ["new.h5"]
    with h5py.File(tmp_path / "new.h5") as file:
        np.testing.assert_array_equal(file["patches"], PATCHES)
        np.testing.assert_array_equal(file["image"], IMAGE + 1)


def write(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        image = file.create_dataset(
            "image", data=IMAGE, chunks=(CHUNK, CHUNK), compression="gzip", shuffle=True
        )
        boxes = [image.regionref[y : y + BOX, x : x + BOX] for y, x in CORNERS]
        write_references(file, "rois", boxes)
    return path


@pytest.fixture
def rois(path: Path) -> Iterator[xr.DataArray]:
    with xr.open_dataset(path, engine="h5ref") as ds:
        yield ds["rois"]


@pytest.fixture
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lots and groups as small as those of large data are large."""
    monkeypatch.setattr(shuffle, "BATCH_NBYTES", IMAGE.nbytes // 12)
    monkeypatch.setattr(shuffle, "GROUP_NBYTES", PATCHES.nbytes // 10)


def in_blocks(rois: xr.DataArray, blocks: int) -> Any:
    return rois.h5ref.resolve(chunks={rois.dims[0]: -(-N // blocks)}, coords=False).data


def counted(client: Any, compute: Callable[[], Any]) -> tuple[Any, int]:
    client.run(begin_counting)
    result = compute()
    return result, sum(client.run(end_counting).values())


def tasks_on_cluster(data: Any) -> dict[Any, Any]:
    """Return the tasks that go to processes."""
    with dask.config.set(scheduler="processes"):
        (best,) = dask.optimize(data)
    return dict(best.__dask_graph__())


@pytest.mark.usefixtures("many_tasks")
@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("blocks", [4, 8, 50])
def test_workers_together_decode_each_chunk_once(
    client: Any, tmp_path: Path, blocks: int, reduced: bool
) -> None:
    # A separate file: workers may still have batches of an earlier computation.
    with xr.open_dataset(write(tmp_path / "image.h5"), engine="h5ref") as ds:
        patches = in_blocks(ds["rois"], blocks)
        wanted, expected = patches, PATCHES
        if reduced:
            wanted, expected = patches.sum(axis=(1, 2)), PATCHES.sum(axis=(1, 2))
        result, decoded = counted(client, lambda: client.compute(wanted).result())
    np.testing.assert_array_equal(result, expected)
    assert N_CHUNKS <= decoded <= 1.1 * N_CHUNKS


@pytest.mark.parametrize("n_workers", [2, 3])
def test_workers_transfer_at_most_the_bytes_of_the_result(
    client: Any, rois: xr.DataArray, n_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        if n_workers > 2:
            client = stack.enter_context(running_cluster(n_workers))
        for blocks, group_nbytes in ((12, 1 << 24), (100, 1 << 24), (24, PATCHES.nbytes // 12)):
            monkeypatch.setattr(shuffle, "GROUP_NBYTES", group_nbytes)
            before = sum(client.run(received_nbytes).values())
            kept = client.persist(in_blocks(rois, blocks))
            distributed.wait(kept)
            after = sum(client.run(received_nbytes).values())
            assert 0 < after - before <= 1.2 * PATCHES.nbytes
            np.testing.assert_array_equal(kept.compute(), PATCHES)


def test_a_client_that_is_not_the_default_decodes_each_chunk_once(
    client: Any, rois: xr.DataArray
) -> None:
    sums = in_blocks(rois, 8).sum(axis=(1, 2))
    with distributed.Client(client.scheduler.address, set_as_default=False) as other:
        for compute in (
            lambda: other.compute(sums).result(),
            lambda: sums.compute(scheduler=other),
            lambda: dask.compute(sums, scheduler=other)[0],
        ):
            result, decoded = counted(client, compute)
            np.testing.assert_array_equal(result, PATCHES.sum(axis=(1, 2)))
            assert N_CHUNKS <= decoded <= 1.1 * N_CHUNKS


def test_a_scheduler_in_another_process_opens_no_files(
    path: Path, rois: xr.DataArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed.deploy.subprocess import SubprocessCluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    patches = in_blocks(rois, 8)
    with (
        SubprocessCluster(n_workers=1, silence_logs=60) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(1)
        client.run_on_scheduler(begin_counting)
        result, decoded = counted(client, lambda: client.compute(patches).result())
        np.testing.assert_array_equal(result, PATCHES)
        assert N_CHUNKS <= decoded <= 1.1 * N_CHUNKS
        assert client.run_on_scheduler(end_counting) == 0
        assert str(path) not in client.run_on_scheduler(open_files)


@pytest.mark.parametrize(
    ("index", "most"),
    [
        (np.s_[5], int(((CORNERS[5] + BOX - 1) // CHUNK - CORNERS[5] // CHUNK + 1).prod())),
        (np.s_[5, 2, 3], 1),
        # Each chunk of the blocks that are needed, once.
        (np.s_[::75, 0], N_CHUNKS),
        (np.s_[10:590], N_CHUNKS),
    ],
    ids=str,
)
def test_an_index_decodes_only_the_chunks_that_it_selects(
    client: Any, rois: xr.DataArray, index: Any, most: int
) -> None:
    part = in_blocks(rois, 8)[index]
    result, decoded = counted(client, lambda: client.compute(part).result())
    np.testing.assert_array_equal(result, PATCHES[index])
    assert decoded <= most


def test_persisted_results_and_statistics_are_computed_on_the_cluster(
    client: Any, rois: xr.DataArray
) -> None:
    kept = rois.h5ref.resolve(chunks={rois.dims[0]: 100}).persist()
    np.testing.assert_array_equal(kept[17], PATCHES[17])
    np.testing.assert_array_equal(kept.mean(), PATCHES.mean())
    means = rois.h5ref.mean(chunks={rois.dims[0]: 100})
    np.testing.assert_allclose(means.compute(), PATCHES.mean(axis=(1, 2)))
    spans = rois.h5ref.map(np.ptp, chunks={rois.dims[0]: 100})
    np.testing.assert_array_equal(spans.compute(), np.ptp(PATCHES, axis=(1, 2)))


class Store:
    """A file that takes assignments by index, as an array of Zarr does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __setitem__(self, index: Any, values: Any) -> None:
        np.load(self.path, mmap_mode="r+")[index] = values


def test_dask_store_writes_a_stack_from_the_cluster(
    client: Any, rois: xr.DataArray, tmp_path: Path
) -> None:
    store = Store(tmp_path / "stored.npy")
    np.save(store.path, np.zeros_like(PATCHES))
    dask.array.store(in_blocks(rois, 8), store, lock=False)
    np.testing.assert_array_equal(np.load(store.path), PATCHES)


def test_to_zarr_writes_a_stack_from_the_cluster(
    client: Any, rois: xr.DataArray, tmp_path: Path
) -> None:
    zarr = pytest.importorskip("zarr")
    patches = rois.h5ref.resolve(chunks={rois.dims[0]: 100}, coords=False)
    patches.to_dataset(name="patches").to_zarr(tmp_path / "stack.zarr", consolidated=False)
    np.testing.assert_array_equal(zarr.open(tmp_path / "stack.zarr")["patches"][:], PATCHES)


def test_an_adaptive_cluster_computes_the_same_values(rois: xr.DataArray) -> None:
    with running_cluster(0) as client:
        client.cluster.adapt(minimum=0, maximum=2, interval="100ms", wait_count=2)
        for _ in range(2):
            result = client.compute(in_blocks(rois, 8).sum(axis=(1, 2))).result()
            np.testing.assert_array_equal(result, PATCHES.sum(axis=(1, 2)))


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_forked_and_spawned_processes_compute_the_same_values(
    rois: xr.DataArray, how: str
) -> None:
    if how not in dask.multiprocessing.multiprocessing.get_all_start_methods():
        pytest.skip(f"no {how} on this system")
    patches = in_blocks(rois, 8)
    sums = patches.sum(axis=(1, 2))
    np.testing.assert_array_equal(sums.compute(scheduler="threads"), sums.compute())
    with dask.config.set({"multiprocessing.context": how, "num_workers": 2}):
        result = sums.compute(scheduler="processes")
        np.testing.assert_array_equal(result, PATCHES.sum(axis=(1, 2)))
        if how == "fork":
            with dask.config.set(scheduler="processes"):
                np.testing.assert_array_equal(sums.compute(), result)


REFUSED = (h5py.HLObject, h5py.h5d.DatasetID.__base__, socket.socket, type(threading.Lock()))


class PlainPickler(pickle.Pickler):
    """A pickler that refuses handles of one process: HDF5 objects, sockets, locks, files."""

    def reducer_override(self, obj: Any) -> Any:
        refused = (
            h5py.HLObject,
            h5py.h5d.DatasetID.__base__,
            socket.socket,
            type(threading.Lock()),
        )
        if isinstance(obj, refused) or hasattr(obj, "fileno"):
            raise AssertionError(f"{obj!r} is in the graph")
        return NotImplemented


@pytest.mark.usefixtures("many_tasks")
@pytest.mark.parametrize("blocks", [8, 50, 600])
def test_tasks_are_small_and_hold_no_handles(rois: xr.DataArray, blocks: int) -> None:
    patches = in_blocks(rois, blocks)
    patches.sum().compute(scheduler="synchronous")  # what was opened stays out
    tasks = tasks_on_cluster(patches.map_blocks(np.copy, dtype=patches.dtype))
    nbytes = {key: len(pickled(task)) for key, task in tasks.items()}
    assert max(nbytes.values()) < 3_000
    assert sum(nbytes.values()) / len(nbytes) < 1_000
    names = {key_split(key) for key in tasks}
    assert {"xref-chunks", "xref-pieces"} <= names
    assert all("xref" in name or name == "copy" for name in names)
    assert sum(key_split(key) == "xref-pieces" for key in tasks) == 12 * min(10, blocks)


def pickled(task: Any) -> bytes:
    with io.BytesIO() as file:
        PlainPickler(file).dump(task)
        return file.getvalue()


def test_the_pickler_of_these_tests_refuses_handles(path: Path) -> None:
    with path.open() as file, pytest.raises(AssertionError, match="is in the graph"):
        pickled([file])
    with pytest.raises(AssertionError, match="is in the graph"):
        pickled({"lock": threading.Lock()})


def test_dask_annotations_reach_the_scheduler(client: Any, rois: xr.DataArray) -> None:
    # Dask drops the annotations of layers when it fuses their tasks, for any array.
    with dask.config.set({"optimization.fuse.active": False}):
        with dask.annotate(priority=7, retries=3):
            patches = in_blocks(rois, 8)
        kept = client.persist(patches)
        distributed.wait(kept)

        def read(dask_scheduler: Any) -> set[Any]:
            return {
                (key_split(key), task.annotations.get("retries"))
                for key, task in dask_scheduler.tasks.items()
                if task.annotations
            }

        annotated = client.run_on_scheduler(read)
    assert ("xref-resolve", 3) in annotated


def test_a_killed_worker_is_replaced_by_another(rois: xr.DataArray, tmp_path: Path) -> None:
    expected = PATCHES.sum(axis=(1, 2))
    folder = tmp_path / "blocks"
    folder.mkdir()
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 100}),
        running_cluster(2, local_directory=tmp_path) as client,
    ):
        blocks = in_blocks(rois, 50)
        slow = blocks.map_blocks(wait_for_kill, folder, dtype="u2", meta=blocks._meta)
        future = client.compute(slow.sum(axis=(1, 2)))
        while not (waiting := list(folder.glob("* 3"))):
            assert not future.done()
            time.sleep(0.01)
        os.kill(int(waiting[0].name.split()[0]), signal.SIGKILL)
        (folder / "killed").touch()
        np.testing.assert_array_equal(future.result(timeout=60), expected)


def wait_for_kill(values: np.ndarray, folder: Path) -> np.ndarray:
    """Note each block of this worker; wait in the fourth until a worker is killed."""
    n_blocks = len(list(folder.glob(f"{os.getpid()} *")))
    (folder / f"{os.getpid()} {n_blocks}").touch()
    while n_blocks >= 3 and not (folder / "killed").exists():
        time.sleep(0.01)
    return values


def sum_file(path: Path) -> np.ndarray:
    with xr.open_dataset(path, engine="h5ref") as ds:
        return in_blocks(ds["rois"], 8).sum(axis=(1, 2)).compute(scheduler="synchronous")


def test_a_damaged_file_fails_without_stopping_the_workers(client: Any, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{k}.h5") for k in range(4)]
    paths[1].write_bytes(zero_heaps(paths[1].read_bytes()))
    before = client.run(os.getpid)
    futures = client.map(sum_file, paths)
    with pytest.raises(xref.CorruptFileError, match=r"1\.h5.*heap"):
        futures[1].result(timeout=30)
    for future in (futures[0], *futures[2:]):
        np.testing.assert_array_equal(future.result(timeout=30), PATCHES.sum(axis=(1, 2)))
    assert client.run(os.getpid) == before


def zero_heaps(content: bytes) -> bytes:
    """Replace the bytes after the signature of each global heap collection by zeros."""
    parts = content.split(b"GCOL")
    assert len(parts) > 1
    zeroed = [b"GCOL" + bytes(4096) + part[4096:] for part in parts[1:]]
    return parts[0] + b"".join(zeroed)
