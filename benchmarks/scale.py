"""The cost of a region, a chunk and a task on clusters: ``python benchmarks/scale.py``.

Boxes of 8 x 8 at random places of W1's image, in Dask blocks of references in random
order: the first 10,000, 100,000 and 1,000,000 of ``w9.h5``.

stages
    Processor time of the stages, one after the other in one process: decoding
    references, resolving them lazily, counting the chunks that blocks read (when a graph is
    pickled), planning, reading batches of chunks, putting blocks together.
clusters
    The sums of all regions on 1, 2 and 4 worker processes of one thread: wall time,
    processor time of the workers and of client and scheduler together, tasks, bytes of
    the graph and bytes between workers.
slices
    The million in slices of the reference variable, each resolved alone, all
    computed at once, on all of four workers and each on one of them.
GROUP_NBYTES
    Time relative to the present value.

Medians over the repetitions. ``--write-docs`` writes the tables into docs/scale.md.
"""

import argparse
import time
from pathlib import Path

import dask
import distributed
import numpy as np
import xarray as xr
from common import add_data_argument, describe_machine, median, table_lines, timed, warm
from dask.utils import key_split

from xref.resolving import shuffle
from xref.resolving.dask_graph import ReadLayer
from xref.storage.read_counts import count_reads

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
COUNTS = (10_000, 100_000, 1_000_000)
WORKERS = (1, 2, 4)
SLICES = (4, 16)
GROUPS = (4 << 20, 16 << 20, 64 << 20)
BLOCKS = 50
MICROSECONDS = 1e6
MIB = 1 << 20


def in_blocks(references, blocks=BLOCKS):
    """Return the lazy values of regions, divided into blocks."""
    chunks = {references.dims[0]: -(-references.size // blocks)}
    return references.h5ref.resolve(coords=False, chunks=chunks).data


def sums(references, blocks=BLOCKS):
    """Return the sums of regions, lazily."""
    return in_blocks(references, blocks).sum(axis=(1, 2))


def measure_stages(path, n):
    """Return seconds of processor time of each stage, and the bytes of the columns."""
    laps = {}
    with xr.open_dataset(path, engine="h5ref", cache=False) as dataset:
        references = dataset["rois"][:n]
        with timed() as lap:
            columns = references.variable.data.columns
        laps["decode"] = lap.cpu
        with timed() as lap:
            data = in_blocks(references)
        laps["resolve"] = lap.cpu
        layer = next(x for x in data.dask.layers.values() if isinstance(x, ReadLayer))
        blocks = [layer._spans(key) for key in layer]
        with timed() as lap:
            cost = shuffle.estimate_cost(layer.array, blocks)
        laps["count"] = lap.cpu
        made = shuffle.Shuffle(
            layer.array, blocks, None, layer.dtype, f"{path}{n}", cost.layout()
        )
        with timed() as lap:
            plan = made.require_plan()
        laps["plan"] = lap.cpu
        with timed() as lap, count_reads() as counts:
            batches = [shuffle.split_batch(made, i) for i in range(len(plan.batches))]
        laps["read"] = lap.cpu
        with timed() as lap:
            for group in range(len(made.block_groups)):
                shuffle.assemble_group(made, group, [batch[group] for batch in batches])
        laps["put together"] = lap.cpu
        table = columns.regions
        held = sum(getattr(table, name).nbytes for name in table.__dataclass_fields__)
        return laps | {"chunks": counts.chunks_decoded, "nbytes": held}


def stages_rows(path, reps):
    rows = []
    for n in COUNTS:
        runs = [measure_stages(path, n) for _ in range(reps)]
        row = {"regions": f"{n:,}", "chunks": runs[0]["chunks"]}
        for name in ("decode", "resolve", "count", "plan", "read", "put together"):
            seconds = median([run[name] for run in runs])
            row[f"{name}, us a region"] = seconds / n * MICROSECONDS
        row["columns, bytes a region"] = runs[0]["nbytes"] / n
        rows.append(row)
    return rows


def received(dask_worker):
    return sum(transfer["total"] for transfer in dask_worker.transfer_incoming_log)


def run_once(client, path, n, slices=1, one_each=False):
    """Compute sums on the cluster, or each slice on one worker; return time and counts."""
    with xr.open_dataset(path, engine="h5ref", cache=False) as dataset:
        step = -(-n // slices)
        parts = [dataset["rois"][k : min(k + step, n)] for k in range(0, n, step)]
        before = client.run(received), client.run(time.process_time), time.process_time()
        begin = time.perf_counter()
        addresses = list(before[0])
        futures = [
            client.compute(
                sums(part, BLOCKS // slices),
                workers=addresses[k % len(addresses)] if one_each else None,
            )
            for k, part in enumerate(parts)
        ]
        distributed.wait(futures)
        wall = time.perf_counter() - begin
        after = client.run(received), client.run(time.process_time), time.process_time()
        values = np.concatenate(client.gather(futures))
    names = client.run_on_scheduler(
        lambda dask_scheduler: [key_split(key) for key in dask_scheduler.tasks]
    )
    workers = [sum(x.values()) for x in (before[0], after[0], before[1], after[1])]
    return {
        "wall": wall,
        "workers": workers[3] - workers[2],
        "client": after[2] - before[2],
        "sent": workers[1] - workers[0],
        "tasks": len(names),
        "values": values,
    }


def graph_nbytes(path, n):
    """Return the bytes of all tasks."""
    with (
        xr.open_dataset(path, engine="h5ref") as dataset,
        dask.config.set(scheduler="processes"),
    ):
        (best,) = dask.optimize(sums(dataset["rois"][:n]))
        tasks = dict(best.__dask_graph__())
        return sum(len(distributed.protocol.pickle.dumps(task)) for task in tasks.values())


def clusters_rows(path, reps, threads_seconds):
    """Return rows for the clusters, and for slices on the last cluster."""
    rows, slice_rows = [], []
    for n_workers in WORKERS:
        with (
            distributed.LocalCluster(
                n_workers=n_workers,
                threads_per_worker=1,
                dashboard_address=":0",
                silence_logs=60,
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            client.run(__import__, "xref.resolving.dask_graph")
            run_once(client, path, COUNTS[0])
            for n in COUNTS:
                runs = [run_once(client, path, n) for _ in range(reps)]
                for run in runs:
                    np.testing.assert_array_equal(run["values"], threads_seconds[n][1])
                wall = median([run["wall"] for run in runs])
                rows.append(
                    {
                        "regions": f"{n:,}",
                        "workers": n_workers,
                        "seconds": wall,
                        "times two threads": wall / threads_seconds[n][0],
                        "CPU seconds of workers": median([run["workers"] for run in runs]),
                        "of client and scheduler": median([run["client"] for run in runs]),
                        "tasks": runs[0]["tasks"],
                        "graph, kB": graph_nbytes(path, n) / 1000,
                        "between workers, MB": median([run["sent"] for run in runs]) / 1e6,
                    }
                )
            for slices in SLICES if n_workers == WORKERS[-1] else ():
                for one_each in (False, True):
                    runs = [
                        run_once(client, path, COUNTS[-1], slices, one_each)
                        for _ in range(reps)
                    ]
                    slice_rows.append(
                        {
                            "slices": slices,
                            "on": "one worker each" if one_each else "all workers",
                            "seconds": median([run["wall"] for run in runs]),
                            "CPU seconds of workers": median([run["workers"] for run in runs]),
                            "tasks": runs[0]["tasks"],
                            "between workers, MB": median([run["sent"] for run in runs]) / 1e6,
                        }
                    )
    return rows, slice_rows


def with_threads(path, reps):
    """Return seconds and values of two threads of one process."""
    found = {}
    for n in COUNTS:
        laps = []
        for _ in range(reps):
            with xr.open_dataset(path, engine="h5ref", cache=False) as dataset:
                with timed() as lap:
                    values = sums(dataset["rois"][:n]).compute(
                        scheduler="threads", num_workers=2
                    )
                laps.append(lap.wall)
        found[n] = median(laps), values
    return found


def groups_rows(path, reps):
    """Return the time for each size of groups, on two workers."""
    present, laps = shuffle.GROUP_NBYTES, []
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=60
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        run_once(client, path, COUNTS[0])
        for _ in range(reps):
            lap = {}
            for nbytes in GROUPS:
                # The scheduler, in this process, makes the tasks.
                shuffle.GROUP_NBYTES = nbytes
                lap[nbytes] = run_once(client, path, COUNTS[-1])
            shuffle.GROUP_NBYTES = present
            laps.append(lap)
    return [
        {
            "GROUP_NBYTES": f"{nbytes // MIB} MiB" + " (now)" * (nbytes == present),
            "time": f"{median([x[nbytes]['wall'] / x[present]['wall'] for x in laps]):.2f}",
            "tasks": laps[0][nbytes]["tasks"],
        }
        for nbytes in GROUPS
    ]


def render(path, reps):
    lines = [f"{describe_machine()}; {reps} repetitions.", "", "### Stages", ""]
    lines += table_lines(stages_rows(path, reps))
    clusters, slices = clusters_rows(path, reps, with_threads(path, reps))
    lines += ["### Clusters", "", *table_lines(clusters)]
    lines += ["### A million in slices, on four workers", "", *table_lines(slices)]
    lines += ["### Sizes of groups, on two workers", "", *table_lines(groups_rows(path, reps))]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_argument(parser)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--write-docs", action="store_true", help=f"into {PAGE.name}")
    arguments = parser.parse_args()
    path = Path(arguments.data) / "w9.h5"
    warm(path)
    lines = render(path, arguments.reps)
    print("\n".join(lines))
    if arguments.write_docs:
        head, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        _, tail = rest.split(END)
        table = "\n".join(lines)
        PAGE.write_text(f"{head}{BEGIN}\n\n{table}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
