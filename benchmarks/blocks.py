"""W1 divided into Dask blocks: the cost, and how often chunks are decoded.

The 50,000 references, in random order, are resolved with 1, 10, 50 and 200 blocks.
``values`` computes the stack; ``sums`` computes the sum of each region from its blocks
(``patches.sum(axis=(1, 2))``), so no block can be left out. Times are relative to the
time with one block in the same turn. `xref.count_reads` counts the decoded chunks, on
threads and in the two processes of a `distributed.LocalCluster`.
"""

import importlib.util
from contextlib import ExitStack
from functools import partial

import h5py
import numpy as np
import xarray as xr
from common import Truth, table_lines
from limit import needed_chunks
from turns import Outcome, calm_turns, new_name, ratios, seconds, short, spread, take_turns
from workloads import Workload

import xref

BLOCKS = (1, 10, 50, 200)
WHAT = {"values": lambda patches: patches, "sums": lambda patches: patches.sum(axis=(1, 2))}
N_WORKERS = 2
WORKER = {"threads_per_worker": 1, "dashboard_address": None}


def patches_in_blocks(dataset, n_blocks):
    """Return W1's stack as a Dask array of n blocks."""
    rois = dataset["rois"]
    patches = rois.h5ref.resolve(coords=False, chunks=-(-rois.size // n_blocks)).data
    assert patches.numblocks[0] == n_blocks, f"{patches.numblocks} blocks, not {n_blocks}"
    return patches


def run(work, what, n_blocks):
    """Compute on threads, from opening on, and count."""
    with (
        new_name(work.path) as path,
        xr.open_dataset(path, engine="h5ref") as dataset,
        xref.count_reads() as reads,
    ):
        values = WHAT[what](patches_in_blocks(dataset, n_blocks)).compute(scheduler="threads")
        return Outcome(values, facts={"decoded": reads.chunks_decoded})


def check(work, what, _, outcome):
    """Compare with h5py's values."""
    if what == "values":
        work.check("xref", outcome)
        return
    with h5py.File(work.path) as file:
        patches = work.pick(file["img"][...])
    np.testing.assert_array_equal(outcome.values, patches.sum(axis=(1, 2)))


_counting = ExitStack()
_counts = []


def start_counting():
    """Begin to count in this process."""
    _counts[:] = [_counting.enter_context(xref.count_reads())]


def stop_counting():
    """Return the chunks decoded in this process since."""
    _counting.close()
    return _counts[0].chunks_decoded


def count_on_cluster(work):
    """Return the chunks that all workers decoded, by computation and number of blocks."""
    from distributed import Client, LocalCluster

    found = {}
    for what, make in WHAT.items():
        for n_blocks in BLOCKS:
            # A new cluster each time: workers remember what they decoded.
            with (
                LocalCluster(N_WORKERS, **WORKER) as cluster,
                Client(cluster) as client,
                xr.open_dataset(work.path, engine="h5ref") as dataset,
            ):
                client.run(start_counting)
                make(patches_in_blocks(dataset, n_blocks)).compute()
                found[f"{what} {n_blocks}"] = sum(client.run(stop_counting).values())
    return found


def measure(data, reps, _threads, _budget):
    """Return laps by computation and number of blocks, and the counts."""
    work = Workload("W1", Truth(data))
    with h5py.File(work.path) as file:
        chunks = np.array(file["img"].chunks)
        marks = needed_chunks("W1", work.truth, chunks, np.array(file["img"].shape) // chunks)
    found = {"needed": int(marks.sum()), "laps": {}, "cluster": None}
    for what in WHAT:
        contestants = {str(n): partial(run, work, what, n) for n in BLOCKS}
        found["laps"][what] = take_turns(
            contestants, reps, partial(check, work, what), work.settled_nbytes, path=work.path
        )
    if importlib.util.find_spec("distributed"):
        found["cluster"] = count_on_cluster(work)
    return found


def render(section):
    """Return the section as lines of Markdown."""
    rows = []
    for what, laps in section["laps"].items():
        for n_blocks, taken in laps.items():
            row = {
                "W1": what,
                "blocks": n_blocks,
                "seconds": short(seconds(taken)),
                "times one block": spread(ratios(laps, n_blocks, "1")),
                "CPU, times one block": spread(ratios(laps, n_blocks, "1", "cpu")),
                "chunks decoded": max(lap["decoded"] for lap in taken),
                "calm": calm_turns(taken),
            }
            if section["cluster"]:
                row["decoded by two processes"] = section["cluster"][f"{what} {n_blocks}"]
            rows.append(row)
    lines = [
        "### Blocks",
        "",
        f"The regions touch {section['needed']:,} chunks.",
        "",
        *table_lines(rows),
    ]
    if not section["cluster"]:
        lines += ["distributed is not installed, so processes are left out.", ""]
    return lines
