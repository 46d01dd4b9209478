"""W1 on a `distributed.LocalCluster` of two workers of one thread, against two threads.

    python benchmarks/cluster.py [--blocks 8] [--reps 5]

The 50,000 references are in random order. Times are from opening the file until all
blocks are computed: on the cluster they stay in the workers' memory, on threads in the memory
of this process. Turns alternate; each opens the file under a new name. Chunks are counted where
they are decoded; bytes are the bytes that workers sent each other.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import xarray as xr
from blocks import patches_in_blocks
from common import add_data_argument, describe_machine, median, print_table, timed
from distributed import Client, LocalCluster, wait
from files import make_images
from turns import new_name

import xref
from xref.storage import read_counts as counting

WORKERS = 2
WHAT = {"values": lambda patches: patches, "sums": lambda patches: patches.sum(axis=(1, 2))}


def start_counting():
    """Begin to count in this process."""
    stack = ExitStack()
    vars(counting)["for_benchmark"] = stack, stack.enter_context(xref.count_reads())


def stop_counting():
    """Return the chunks decoded in this process since."""
    stack, counts = vars(counting).pop("for_benchmark")
    stack.close()
    return counts.chunks_decoded


def received_nbytes(dask_worker):
    """Return the bytes that a worker got from others."""
    return sum(entry["total"] for entry in dask_worker.transfer_incoming_log)


def on_threads(path, what, n_blocks):
    with xr.open_dataset(path, engine="h5ref") as dataset:
        lazy = WHAT[what](patches_in_blocks(dataset, n_blocks))
        return lazy.persist(scheduler="threads", num_workers=WORKERS)


def on_cluster(client, path, what, n_blocks):
    with xr.open_dataset(path, engine="h5ref") as dataset:
        kept = client.persist(WHAT[what](patches_in_blocks(dataset, n_blocks)))
        wait(kept)
        return kept


def contest(client, path, what, n_blocks, reps):
    """Take turns; yield one row for each turn."""
    for rep in range(reps + 1):
        with new_name(path) as name:
            with timed() as threads:
                expected = on_threads(name, what, n_blocks)
            client.run(start_counting)
            before = sum(client.run(received_nbytes).values())
            with timed() as cluster:
                kept = on_cluster(client, name, what, n_blocks)
            sent = sum(client.run(received_nbytes).values()) - before
            decoded = sum(client.run(stop_counting).values())
            expected = expected.compute(scheduler="threads")  # not on the cluster
            np.testing.assert_array_equal(kept.compute(), expected)
        if rep:  # the first turn imports
            yield {
                "what": what,
                "threads s": threads.wall,
                "cluster s": cluster.wall,
                "ratio": cluster.wall / threads.wall,
                "chunks decoded": decoded,
                "MB sent": sent / 1e6,
                "others": threads.others,
            }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_argument(parser)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--reps", type=int, default=5)
    options = parser.parse_args()
    folder = Path(options.data)
    if not (folder / "w1_truth.npz").exists():
        make_images(folder)
    print(describe_machine(), "\n")
    with (
        LocalCluster(WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.run(__import__, "xref.resolving.graph")
        for what in WHAT:
            rows = list(contest(client, folder / "w1.h5", what, options.blocks, options.reps))
            print_table(rows)
            ratio = median(row["ratio"] for row in rows)
            print(f"\n{what}, {options.blocks} blocks: {ratio:.2f} times two threads\n")


if __name__ == "__main__":
    main()
