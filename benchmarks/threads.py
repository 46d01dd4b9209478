"""One thread against two: W1 and W3, xref's own threads and Dask's alike."""

from functools import partial

import dask
from common import Truth, table_lines
from contestants import resolve, resolve_two, run_xref
from turns import calm_turns, ratios, seconds, short, spread, take_turns
from workloads import MOVIES, Workload

import xref

WORKS = ("W1", *MOVIES)
MANY = 2


def run(work, threads):
    """Read a workload with n threads."""
    with xref.set_options(threads=threads), dask.config.set(num_workers=threads):
        return run_xref(work, partial(resolve, work, chunks="auto"))


def measure(data, reps, _threads, _budget):
    """Return laps by workload and number of threads."""
    found = {}
    for name in WORKS:
        work = Workload(name, Truth(data))
        run_xref(work, partial(resolve_two, work))
        found[name] = take_turns(
            {str(n): partial(run, work, n) for n in (1, MANY)},
            reps,
            work.check,
            work.settled_nbytes,
            path=work.path,
        )
    return found


def render(section):
    """Return the section as lines of Markdown."""
    few, many = "1", str(MANY)
    rows = [
        {
            "workload": name,
            "one thread, s": short(seconds(laps[few])),
            "two threads, s": short(seconds(laps[many])),
            "one / two": spread(ratios(laps, few, many)),
            "CPU, two / one": spread(ratios(laps, many, few, "cpu")),
            "calm": calm_turns(laps[many]),
        }
        for name, laps in section.items()
    ]
    return ["### Two threads", "", *table_lines(rows)]
