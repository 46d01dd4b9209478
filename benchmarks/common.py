"""Shared by the benchmarks: the folder of the files, the load of the machine, tables."""

import os
import platform
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

CALM = 0.25
"""CPUs that other processes may take during a run that counts as calm."""

_TICKS = os.sysconf("SC_CLK_TCK")
_WARM_NBYTES = 16 << 20


def add_data_argument(parser):
    parser.add_argument(
        "--data",
        default=os.environ.get("XREF_BENCH_DATA", "data"),
        help="folder of the files (default: $XREF_BENCH_DATA, else ./data)",
    )


@dataclass
class Lap:
    """One timed run."""

    wall: float = 0.0  # seconds
    cpu: float = 0.0  # seconds of this process, all threads
    others: float = 0.0  # CPUs that other processes took meanwhile


def _machine_and_own():
    """Return the busy seconds of all processors, and of this process."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    own = os.times()
    busy = (user + nice + system + irq + softirq + steal) / _TICKS
    return busy, own.user + own.system + own.children_user + own.children_system


@contextmanager
def timed():
    """Time a block; the `Lap` that it yields is filled in at the end."""
    lap = Lap()
    busy, own = _machine_and_own()
    cpu, wall = time.process_time(), time.perf_counter()
    yield lap
    lap.wall, lap.cpu = time.perf_counter() - wall, time.process_time() - cpu
    busy_after, own_after = _machine_and_own()
    lap.others = max(((busy_after - busy) - (own_after - own)) / max(lap.wall, 1e-9), 0.0)


def wait_for_calm(seconds=1.0):
    """Wait until other processes leave the processors idle, up to a time limit."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        with timed() as lap:
            time.sleep(0.1)
        if lap.others < CALM:
            return


def settle_memory(nbytes):
    """Touch memory and free it again, so that the next run finds mapped pages.

    Virtual machines with free page reporting give freed memory back to their host
    within seconds. Touching it again then takes twenty times as long (measured: 200
    instead of 10 ms for 100 MiB). A contestant that runs after a pause and needs much
    memory would pay for this.
    """
    memory = np.empty(nbytes, np.uint8)
    memory[:: os.sysconf("SC_PAGE_SIZE")] = 1


def calm_laps(laps):
    """Return the laps in which the machine was calm, or the calmer half."""
    calm = [lap for lap in laps if lap.others < CALM]
    return calm or sorted(laps, key=lambda lap: lap.others)[: max(len(laps) // 2, 1)]


def median(values):
    return statistics.median(values)


def warm(path):
    """Read a file, so that it is in the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(_WARM_NBYTES):
            pass


@dataclass
class Truth:
    """Where the regions of all workloads are, in elements."""

    data: Path

    def __post_init__(self):
        with np.load(self.data / "w1_truth.npz") as images:
            self.rois = images["rois"]
            self.ragged_start = images["ragged_start"]
            self.ragged_shape = images["ragged_shape"]
            self.points = images["points"]
        with np.load(self.data / "w3_truth.npz") as movie:
            self.movie = movie["rois"]


def describe_machine():
    """Return one paragraph: processor, memory, versions."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kernel = ".".join(platform.release().split(".")[:2])
    packages = []
    for name in (
        "xref",
        "h5py",
        "numpy",
        "xarray",
        "dask",
        "imagecodecs",
        "h5netcdf",
        "hidefix",
        "pyfive",
    ):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"no {name}")
    return (
        f"{len(os.sched_getaffinity(0))} processors ({model}), {memory:.0f} GiB, "
        f"{platform.system()} {kernel}, Python {platform.python_version()}, "
        f"{', '.join(packages)}; page cache warm"
    )


def table_lines(rows, columns=None):
    """Return dicts as lines of a Markdown table; empty columns are left out."""
    names = columns or list(dict.fromkeys(name for row in rows for name in row))
    names = [n for n in names if any(row.get(n) not in (None, "") for row in rows)]
    return [
        "| " + " | ".join(names) + " |",
        "|" + " --- |" * len(names),
        *("| " + " | ".join(_cell(row.get(name)) for name in names) + " |" for row in rows),
        "",
    ]


def print_table(rows, columns=None):
    """Print dicts as a Markdown table."""
    print("\n".join(table_lines(rows, columns)), flush=True)


def _cell(value):
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)
