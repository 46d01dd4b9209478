"""Two versions of xref on the same workloads, in turns, to measure the cost of a change.

    git worktree add /some/folder COMMIT
    python benchmarks/compare.py /some/folder . --work W1,W4 --reps 9

Each version is a checkout and has a process of its own, which imports it from
there; the processes take turns. W8 opens its files in a new process each time. The table
gives the median ratio of processor and wall time, the second version over the first,
and the peak memory of each process.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

from common import Truth, add_data_argument, median, table_lines, timed, warm
from contestants import decode_bounds, means_alone, name_cells, resolve, resolve_cells, run_xref
from contestants import resolve_two as warm_up
from files import VARIABLES, make_files
from workloads import DECODES, STACKS, WHAT, Workload

OPENINGS = tuple(f"W8.{n}" for n in VARIABLES)
NAMES = (*WHAT, *OPENINGS, "W4.means")


def use_of(work):
    """Return the function that xref runs in one workload."""
    if work.name in STACKS:
        return partial(resolve, work, chunks="auto")
    if work.name in DECODES:
        return decode_bounds
    return resolve_cells if work.name == "W7.values" else name_cells


def serve(name, data):
    """Run one workload for each line of input; print the time it took."""
    work = Workload(name.removesuffix(".means"), Truth(data))
    use = means_alone if name.endswith(".means") else use_of(work)
    if work.name in STACKS:
        run_xref(work, partial(warm_up, work))
    print("ready", flush=True)
    for _ in sys.stdin:
        warm(work.path)
        with timed() as lap:
            run_xref(work, use)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"cpu": lap.cpu, "wall": lap.wall, "peak": peak}), flush=True)


def open_once(name, data):
    """Open the file of W8 in this process and print the time it took."""
    from opening import open_here

    print("ready", flush=True)
    lap, _ = open_here(data / f"w8_{name.removeprefix('W8.')}.h5", "xref")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"cpu": lap.cpu, "wall": lap.wall, "peak": peak}))


class Version:
    """One checkout and the process that runs it."""

    def __init__(self, folder, name, data):
        self.environment = os.environ | {"PYTHONPATH": str(Path(folder).resolve())}
        self.command = [sys.executable, __file__, "--child", name, "--data", str(data)]
        self.process = None if name in OPENINGS else self.start()

    def start(self):
        """Return a new process that is ready; processes start one after the other."""
        process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        process.stdout.readline()
        return process

    def run(self):
        """Run the workload once; return the processor and wall seconds and the peak in kB."""
        process = self.process or self.start()
        process.stdin.write("\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if self.process is None:
            process.communicate()
        return json.loads(line)

    def stop(self):
        """End the process."""
        if self.process is not None:
            self.process.communicate()


def compare(folders, name, data, reps):
    """Return a row of the table."""
    versions = [Version(folder, name, data) for folder in folders]
    laps = []
    for rep in range(reps + 1):
        order = (0, 1) if rep % 2 else (1, 0)
        pair = {i: versions[i].run() for i in order}
        if rep:  # the first turn imports what is imported late
            laps.append((pair[0], pair[1]))
    for version in versions:
        version.stop()
    row = {"workload": name, "first, CPU s": f"{median([a['cpu'] for a, _ in laps]):.3f}"}
    for key, label in (("cpu", "CPU"), ("wall", "wall")):
        ratios = sorted(b[key] / a[key] for a, b in laps)
        row[f"{label} ratio"] = f"{median(ratios):.3f}"
        row[f"{label} least to most"] = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    peaks = [max(lap[i]["peak"] for lap in laps) / 1024 for i in (0, 1)]
    row["peak MiB"] = f"{peaks[0]:.0f}, {peaks[1]:.0f}"
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_argument(parser)
    parser.add_argument("folders", nargs="*", help="two checkouts: before and after")
    parser.add_argument("--work", default=",".join(NAMES), help="workloads (default: all)")
    parser.add_argument("--reps", type=int, default=7)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    data = Path(arguments.data).resolve()
    if arguments.child:
        run = open_once if arguments.child in OPENINGS else serve
        run(arguments.child, data)
        return
    if len(arguments.folders) != 2:
        parser.error("two checkouts are needed")
    make_files(data, sys.stderr)
    rows = []
    for name in arguments.work.split(","):
        rows.append(compare(arguments.folders, name, data, arguments.reps))
        print(rows[-1], file=sys.stderr, flush=True)
    print("\n".join(table_lines(rows)))


if __name__ == "__main__":
    main()
