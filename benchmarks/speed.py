"""Compare xref with h5py and with the limit: ``python benchmarks/speed.py``.

For each workload the contestants take turns, repetition after repetition, in one
process:

xref
    From `xarray.open_dataset` to computed values, as a user writes it. Every
    repetition opens the file under a new name (a hard link), so nothing that xref
    remembers of a file helps the next one. ``without open`` leaves out the opening
    alone; the references are still decoded.
xref, chunks=None
    The same without dask, which copies what it computes once more.
xref, mean(); xref, both at once
    W4 only. ``xref`` takes the values and then NumPy's means of them, as the limit does;
    these are ``.h5ref.mean()`` alone, and values and means from one `dask.compute`.
loop
    ``dataset[reference]`` one after the other. It is cut after ``--budget`` seconds
    and extrapolated by count; the regions lie at random, so the first are as good
    as any. W6 and W6.latest: `h5py.h5r.get_region` and `get_select_bounds`.
whole
    h5py reads the whole dataset and NumPy gathers, where that is simple.
limit
    `limit.py` with as many threads; it is given where the regions are.

Values are compared with h5py's in the first repetition (all of them for the image,
a sample for the movie). Ratios are medians over the repetitions of ratios within one
repetition: load from other processes then hits both sides. Before each run memory is
touched and freed, so that none of them waits for the host of a virtual machine. ``calm`` counts
repetitions of xref in which other processes took less than a quarter of a
processor. Where there are none, look at the ratios of processor time, all threads
together.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import dask
import h5py
import hdf5plugin  # noqa: F401, gives h5py its filters
import numpy as np
import psutil
import xarray as xr
from common import (
    CALM,
    Lap,
    Truth,
    add_data_argument,
    describe_machine,
    median,
    print_table,
    settle_memory,
    timed,
    wait_for_calm,
    warm,
)
from limit import (
    BOX,
    MOVIE_BOX,
    check_values,
    copy_boxes,
    copy_ragged,
    data_file,
    run_limit,
    whole_image,
)
from numpy.lib.stride_tricks import sliding_window_view

import xref

WORKS = ("W1", "W1s", "W2", "W3.lz4", "W3.zstd", "W3.lzf", "W4", "W5", "W6", "W6.latest")
SETTLED_NBYTES = dict.fromkeys(("W1", "W2", "W4", "W5", "W6"), 1 << 29) | {"W3": 5 << 29}
"""What the hungriest contestant of a workload needs; see `common.settle_memory`."""

MEMORY_ROOM_NBYTES = 300 << 20
MEMORY_SAMPLE_SECONDS = 0.002


@dataclass
class Contest:
    """One workload: who takes part, and what they needed."""

    work: str
    truth: Truth
    threads: int
    budget: float
    laps: dict[str, list[Lap]] = field(default_factory=dict)
    opening: dict[str, list[float]] = field(default_factory=dict)
    loop_regions: int = 0

    @property
    def path(self):
        """The file of this workload."""
        decoded = {"W6": "w6.h5", "W6.latest": "w6_latest.h5"}
        return self.truth.data / (decoded.get(self.work) or data_file(self.work))

    @property
    def variable(self):
        """The target of the references."""
        return self.work[3:] if self.work.startswith("W3.") else "img"

    @property
    def references(self):
        """The reference dataset."""
        if self.work.startswith("W3."):
            return f"rois_{self.variable}"
        return {"W4": "ragged", "W5": "points"}.get(self.work, "rois")

    def resolve(self, dataset, chunks):
        """Return the computed values with xref."""
        rois = dataset[self.references]
        if self.work.startswith("W6"):
            table = rois.variable.data.columns.regions
            return table.bounds()
        if self.work == "W1s":
            rois = rois[:500]
        if self.work == "W4":
            ragged = rois.h5ref.resolve("ragged", coords=False, chunks=chunks)
            values = ragged[self.variable].data
            flat = np.asarray(values) if chunks is None else values.compute()
            sizes = ragged.row_size.values
            return flat, np.add.reduceat(flat, np.cumsum(sizes) - sizes, dtype="f8") / sizes
        values = rois.h5ref.resolve(coords=False, chunks=chunks)
        return values.values if chunks is None else values.data.compute()

    def means_alone(self, dataset):
        """Return the means of W4 as `xref` gives them; the values are not kept."""
        return dataset[self.references].h5ref.mean().data.compute()

    def values_and_means(self, dataset):
        """Return the two results of W4 from one `dask.compute`."""
        rois = dataset[self.references]
        ragged = rois.h5ref.resolve("ragged", coords=False)
        return dask.compute(ragged[self.variable].data, rois.h5ref.mean().data)

    def run_xref(self, resolve, folder):
        """Open the file under a new name and resolve."""
        link = Path(tempfile.mktemp(suffix=".h5", dir=folder))
        link.hardlink_to(self.path)
        try:
            begin = time.perf_counter()
            with xr.open_dataset(link, engine="h5ref") as dataset:
                opened = time.perf_counter() - begin
                return opened, resolve(dataset)
        finally:
            link.unlink()

    def run_loop(self):
        """Read region by region with h5py; return a lap for all of them.

        The loop alone is extrapolated, not opening and reading the references.
        """
        with timed() as before:
            file = h5py.File(self.path)
            references = self.loop_references(file)
            target = file[self.variable]
        end = time.perf_counter() + self.budget
        with file, timed() as lap:
            done = 0
            for reference in references:
                if self.work.startswith("W6"):
                    h5py.h5r.get_region(reference, file.id).get_select_bounds()
                else:
                    target[reference]
                done += 1
                if time.perf_counter() > end:
                    break
        self.loop_regions = done
        scale = len(references) / done
        return Lap(
            wall=before.wall + lap.wall * scale,
            cpu=before.cpu + lap.cpu * scale,
            others=lap.others,
        )

    def loop_references(self, file):
        """Return the references as h5py's objects."""
        references = file[self.references]
        return references[:500] if self.work == "W1s" else references[:]

    def run_whole(self):
        """Read everything with h5py and gather."""
        truth = self.truth
        with h5py.File(self.path) as file:
            values = file[self.variable][...]
        if self.work == "W4":
            return copy_ragged(values, truth.ragged_start, truth.ragged_shape)
        if self.work == "W5":
            return values[truth.points[..., 0], truth.points[..., 1]]
        if self.work.startswith("W3."):
            windows = sliding_window_view(values, (len(values), MOVIE_BOX, MOVIE_BOX))[0]
            return windows[truth.movie[:, 1], truth.movie[:, 2]]
        return copy_boxes(values, truth.rois[: 500 if self.work == "W1s" else None], 1)

    def check(self, values, name):
        """Compare with h5py's values."""
        if name == "xref, mean()":
            values = copy_ragged_values(self.truth), values
        if self.work.startswith("W6"):
            with np.load(self.truth.data / "w6_truth.npz") as truth:
                start, stop = truth["start"], truth["start"] + truth["shape"]
            n = len(values[0])  # the file in the latest format has a tenth of them
            np.testing.assert_array_equal(values[0], start[:n])
            np.testing.assert_array_equal(values[1], stop[:n])
            return
        if self.work.startswith("W3."):
            values = values.reshape(-1, values.shape[1], MOVIE_BOX, MOVIE_BOX)
        elif self.work not in ("W4", "W5"):
            values = values.reshape(-1, BOX, BOX)
        check_values(self.work, self.truth, values)

    def contestants(self):
        """Return names and functions; each returns seconds of opening or of all, and values."""
        both = {
            "xref": partial(self.run_xref, partial(self.resolve, chunks="auto")),
            "xref, chunks=None": partial(self.run_xref, partial(self.resolve, chunks=None)),
        }
        if self.work == "W4":
            both["xref, mean()"] = partial(self.run_xref, self.means_alone)
            both["xref, both at once"] = partial(self.run_xref, self.values_and_means)
        if self.work.startswith("W6"):
            del both["xref, chunks=None"]
        else:
            both["limit"] = lambda _: (
                None,
                run_limit(self.work, self.truth, "best", self.threads)[1],
            )
            both["whole"] = lambda _: (None, self.run_whole())
        return both

    def repeat(self, n):
        """Let everyone run n times, in turn."""
        warm(self.path)
        contestants = self.contestants()
        with tempfile.TemporaryDirectory(dir=self.truth.data) as folder:
            for rep in range(n):
                names = list(contestants)
                for name in names[rep % len(names) :] + names[: rep % len(names)]:
                    wait_for_calm()
                    settle_memory(SETTLED_NBYTES[self.work[:2]])
                    with timed() as lap:
                        opened, values = contestants[name](folder)
                    self.laps.setdefault(name, []).append(lap)
                    self.opening.setdefault(name, []).append(opened or 0.0)
                    if rep == 0:
                        self.check(values, name)
                    del values
                self.laps.setdefault("loop", []).append(self.run_loop())

    def ratio(self, name, to, what="wall"):
        """Return the median of one contestant's time over another's, in one repetition."""
        pairs = zip(self.laps[name], self.laps[to], strict=True)
        return median([getattr(a, what) / getattr(b, what) for a, b in pairs])

    def rows(self):
        """Return the table, one row a contestant."""
        out = []
        for name, laps in self.laps.items():
            seconds = sorted(lap.wall for lap in laps)
            row = {
                "workload": self.work,
                "who": name,
                "median, s": median(seconds),
                "least, s": seconds[0],
                "most, s": seconds[-1],
                "CPU, s": median([lap.cpu for lap in laps]),
                "others' CPUs": median([lap.others for lap in laps]),
            }
            if any(self.opening.get(name, ())):
                row["without open, s"] = median(
                    [
                        lap.wall - opened
                        for lap, opened in zip(laps, self.opening[name], strict=True)
                    ]
                )
            if "limit" in self.laps and name != "limit":
                row["of the limit"] = self.ratio(name, "limit")
                row["of the limit, CPU"] = self.ratio(name, "limit", "cpu")
            if name != "loop":
                row["loop takes"] = self.ratio("loop", name)
            if name == "loop":
                row["regions read"] = self.loop_regions
            out.append(row)
        return out

    def summary(self, target):
        """Return one row: what xref needs against the others."""
        first = self.laps["xref"]
        limited = "limit" in self.laps
        row = {
            "workload": self.work,
            "xref, s": median([lap.wall for lap in first]),
            "of the limit": self.ratio("xref", "limit") if limited else None,
            "(CPU)": self.ratio("xref", "limit", "cpu") if limited else None,
            "loop / xref": self.ratio("loop", "xref"),
            "whole / xref": self.ratio("whole", "xref") if limited else None,
            "calm": f"{sum(lap.others < CALM for lap in first)}/{len(first)}",
        }
        if target:
            row["target"] = target
        return row


def copy_ragged_values(truth):
    return copy_ragged(whole_image(str(truth.data)), truth.ragged_start, truth.ragged_shape)[0]


def measure_memory(data):
    """Return bytes of the result and of the most memory above the start, for W1."""
    output = subprocess.run(
        [sys.executable, __file__, "--memory-child", "--data", str(data)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


def memory_child(data):
    """Resolve W1 while a thread watches this process's resident memory."""
    import threading

    process = psutil.Process()
    with xr.open_dataset(data / "w1.h5", engine="h5ref") as dataset:
        small = dataset.rois[:2].h5ref.resolve(coords=False)
        small.data.compute()  # imports and threads are not what is measured
        start = most = process.memory_info().rss
        ended = threading.Event()

        def watch():
            nonlocal most
            while not ended.wait(MEMORY_SAMPLE_SECONDS):
                most = max(most, process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        values = dataset.rois.h5ref.resolve(coords=False).data.compute()
        ended.set()
        watcher.join()
        most = max(most, process.memory_info().rss)
    print(json.dumps({"result": values.nbytes, "above start": most - start}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_argument(parser)
    parser.add_argument("--work", default=",".join(WORKS))
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=2, help="seconds of each h5py loop")
    parser.add_argument(
        "--target", action="append", default=[], help="a cell of the table: W1='2 x limit'"
    )
    parser.add_argument("--json", help="write all laps into this file")
    parser.add_argument("--memory-child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    data = Path(arguments.data)
    if arguments.memory_child:
        memory_child(data)
        return
    targets = dict(target.split("=", 1) for target in arguments.target)
    machine = describe_machine()
    print(f"{machine}; {arguments.threads} threads, {arguments.reps} repetitions.", end="\n\n")
    truth = Truth(data)
    details, summaries, record = [], [], {}
    with (
        xref.set_options(threads=arguments.threads),
        dask.config.set(num_workers=arguments.threads),
    ):
        for work in arguments.work.split(","):
            contest = Contest(work, truth, arguments.threads, arguments.budget)
            contest.repeat(arguments.reps)
            details += contest.rows()
            summaries.append(contest.summary(targets.get(work)))
            record[work] = {
                name: [vars(lap) for lap in laps] for name, laps in contest.laps.items()
            }
            print(f"{work} done", file=sys.stderr, flush=True)
    print_table(summaries)
    print_table(details)
    if "W1" in record:
        memory = measure_memory(data)
        above, result = memory["above start"], memory["result"]
        print(
            f"Memory of W1 above the start: {above / 2**20:.0f} MiB, of which the result is "
            f"{result / 2**20:.0f} MiB; {(above - result) / 2**20:.0f} MiB beside it, "
            f"{MEMORY_ROOM_NBYTES / 2**20:.0f} MiB and the chunks in flight are allowed."
        )
        record["memory"] = memory
    if arguments.json:
        report = {"machine": machine, "threads": arguments.threads, "laps": record}
        Path(arguments.json).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
