"""Workers that die while they read, and a damaged file: ``python benchmarks/chaos.py``.

Run by hand. On a cluster of processes:

kills
    Sums of regions in 4,000 blocks, in random order, while one worker after the other is
    killed with SIGKILL. The sums are compared with h5py's image in memory.
segfaults
    The same while every worker has a segmentation fault some seconds after its start.
damaged
    Twenty good files and one file with zeroed global heaps at once: the time until the error,
    and whether the results of all other files are right.

After each run, no worker may leave a file beside the data, a lock on the data, or a
temporary file.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import distributed
import h5py
import numpy as np
import xarray as xr
from distributed.chaos import KillWorker
from files import box_references, write_references

import xref

SIDE, CHUNK, BOX, REGIONS, BLOCKS = 2048, 64, 16, 40_000, 4_000
N_FILES = 21


def write(path: Path, seed: int, n: int = REGIONS) -> np.ndarray:
    """Write an image and boxes in it; return their sums."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 1000, (SIDE, SIDE), dtype="u2")
    corners = rng.integers(0, SIDE - BOX, (n, 2))
    with h5py.File(path, "w") as file:
        stored = file.create_dataset(
            "image", data=image, chunks=(CHUNK, CHUNK), compression="gzip", shuffle=True
        )
        boxes = box_references(stored, corners, np.full_like(corners, BOX))
        write_references(file, "rois", boxes, n)
    patches = np.lib.stride_tricks.sliding_window_view(image, (BOX, BOX))
    return patches[corners[:, 0], corners[:, 1]].sum(axis=(1, 2))


def slowly(values: np.ndarray, seconds: float) -> np.ndarray:
    """Take long, so that the worker can be killed meanwhile."""
    time.sleep(seconds)
    return values


def sums(dataset: xr.Dataset, blocks: int, seconds: float = 0) -> Any:
    """Return the sums of regions, lazily, in blocks."""
    rois = dataset["rois"]
    chunks = {rois.dims[0]: -(-rois.size // blocks)}
    data = rois.h5ref.resolve(coords=False, chunks=chunks).data
    if seconds:
        data = data.map_blocks(slowly, seconds, dtype=data.dtype)
    return data.sum(axis=(1, 2))


@contextmanager
def cluster(arguments: argparse.Namespace, folder: Path) -> Iterator[Any]:
    """Run a cluster whose tasks survive the death of workers; check what it leaves behind."""
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    before = sorted(folder.iterdir())
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 10_000}),
        distributed.LocalCluster(
            n_workers=arguments.workers,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=60,
            local_directory=scratch,
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client
    if sorted(folder.iterdir()) != before:
        raise AssertionError(f"files were left: {set(folder.iterdir()) - set(before)}")
    for path in folder.glob("*.h5"):
        with path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # The locks of a folder that all clusters of a machine share are dask's own.
    left = [path for path in scratch.rglob("*") if path.is_file() and path.suffix != ".lock"]
    if left:
        raise AssertionError(f"temporary files were left: {left}")


def kill_in_turn(
    client: Any, arguments: argparse.Namespace, killed: list[int], done: threading.Event
) -> None:
    """Kill a worker at regular intervals."""
    chance = random.Random(arguments.seed)
    while len(killed) < arguments.kills and not done.wait(arguments.every):
        # A nanny whose worker dies while it starts gives up: another one takes its place.
        client.cluster.loop.add_callback(client.cluster.scale, arguments.workers)
        alive = client.cluster.scheduler.workers.copy()
        nannies = [w for w in client.cluster.workers.values() if w.worker_address in alive]
        pids = [w.process.pid for w in nannies if w.process is not None and w.process.pid]
        if pids:
            pid = chance.choice(pids)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)


def run_kills(arguments: argparse.Namespace, folder: Path) -> None:
    expected = write(folder / "image.h5", arguments.seed)
    killed: list[int] = []
    with (
        cluster(arguments, folder) as client,
        xr.open_dataset(folder / "image.h5", engine="h5ref") as dataset,
    ):
        done = threading.Event()
        begin = time.monotonic()
        killer = threading.Thread(target=kill_in_turn, args=(client, arguments, killed, done))
        killer.start()
        try:
            run = 0
            while not run or killer.is_alive():
                run += 1
                future = client.compute(sums(dataset, BLOCKS, arguments.slow))
                np.testing.assert_array_equal(
                    future.result(timeout=arguments.patience), expected
                )
        finally:
            done.set()
            killer.join()
    print(
        f"kills: {len(killed)} workers killed, {run} times {REGIONS} regions in {BLOCKS} "
        f"blocks right, {time.monotonic() - begin:.0f} s",
        flush=True,
    )


def stop_killing(client: Any) -> None:
    """Remove the plugin; distributed raises if a worker dies meanwhile."""
    for _ in range(20):
        try:
            client.unregister_worker_plugin("kill")
        except OSError:
            time.sleep(0.5)
        except ValueError:
            return  # an earlier attempt took it off, and failed afterwards
        else:
            return
    raise RuntimeError("the plugin that kills workers cannot be taken off")


def run_segfaults(arguments: argparse.Namespace, folder: Path) -> None:
    expected = write(folder / "image.h5", arguments.seed)
    begin = time.monotonic()
    with (
        cluster(arguments, folder) as client,
        xr.open_dataset(folder / "image.h5", engine="h5ref") as dataset,
    ):
        for number in range(arguments.rounds):
            before = set(client.scheduler_info(n_workers=-1)["workers"])
            plugin = KillWorker(delay=arguments.delay, mode="segfault")
            client.register_plugin(plugin, name="kill")
            future = client.compute(sums(dataset, BLOCKS, arguments.slow))
            time.sleep(3 * arguments.delay)
            stop_killing(client)
            np.testing.assert_array_equal(future.result(timeout=arguments.patience), expected)
            del future
            after = set(client.scheduler_info(n_workers=-1)["workers"])
            print(f"segfaults: round {number}: right; {len(before - after)} workers died")
    print(f"segfaults: {arguments.rounds} rounds, {time.monotonic() - begin:.0f} s", flush=True)


def damage(path: Path) -> None:
    """Overwrite the contents of global heaps with zeros."""
    first, *rest = path.read_bytes().split(b"GCOL")
    path.write_bytes(first + b"".join(b"GCOL" + bytes(4096) + part[4096:] for part in rest))


def sum_file(path: Path) -> Any:
    """Open, resolve and sum one file, in a worker."""
    with xr.open_dataset(path, engine="h5ref") as dataset:
        return sums(dataset, 20).compute(scheduler="synchronous")


def run_damaged(arguments: argparse.Namespace, folder: Path) -> None:
    paths = [folder / f"{number}.h5" for number in range(N_FILES)]
    expected = [write(path, number, 2_000) for number, path in enumerate(paths)]
    bad = N_FILES // 2
    damage(paths[bad])
    with cluster(arguments, folder) as client:
        client.run(__import__, "xref.resolving.graph")
        before = client.run(os.getpid)
        begin = time.monotonic()
        futures = client.map(sum_file, paths)
        error = futures[bad].exception(timeout=arguments.patience)
        took = time.monotonic() - begin
        if not isinstance(error, xref.CorruptFileError):
            raise AssertionError(f"the damaged file gave {error!r}")
        right = 0
        for number, future in enumerate(futures):
            if number != bad:
                values = future.result(timeout=arguments.patience)
                right += np.array_equal(values, expected[number])
        lost = client.run(os.getpid) != before
    print(f"damaged: {type(error).__name__} after {took:.2f} s: {error}")
    print(f"damaged: {right} of {N_FILES - 1} good files right; a worker was lost: {lost}")
    if right != N_FILES - 1 or lost:
        raise AssertionError("good files failed with the damaged one")


RUNS = {"kills": run_kills, "segfaults": run_segfaults, "damaged": run_damaged}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", default=list(RUNS), help=", ".join(RUNS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between kills")
    parser.add_argument("--rounds", type=int, default=3, help="of segmentation faults")
    parser.add_argument("--delay", type=float, default=3.0, help="seconds until they come")
    parser.add_argument("--slow", type=float, default=0.005, help="seconds for each block")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=180.0, help="seconds for a result")
    arguments = parser.parse_args()
    for name in arguments.runs:
        with tempfile.TemporaryDirectory() as folder:
            RUNS[name](arguments, Path(folder))


if __name__ == "__main__":
    main()
