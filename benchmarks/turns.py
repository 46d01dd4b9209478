"""Contestants take turns; their times become ratios with their spread.

In: contestants by name, each a function that does the same work. Out: laps, which are
plain numbers and can be stored as JSON, and rows of a table.

A ratio is taken within one turn, so that load from other processes affects both sides. The
tables report the median, the least and the greatest ratio.
"""

import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import CALM, Lap, median, settle_memory, timed, wait_for_calm, warm


@dataclass
class Outcome:
    """The results of one run of a contestant."""

    values: Any = None  # everything, if it read everything
    sample: dict[int, np.ndarray] = field(default_factory=dict)  # some regions, if it did not
    lap: Lap | None = None  # instead of the measured one, where that was extrapolated
    facts: dict[str, Any] = field(default_factory=dict)  # kept with the lap


def take_turns(contestants, reps, check=None, settle_nbytes=0, patience=1.0, path=None):
    """Let all contestants run ``reps`` times, in turn; each turn begins with another one.

    Parameters
    ----------
    contestants : dict of str to callable
        Without arguments; return an `Outcome`.
    check : callable, optional
        ``check(name, outcome)`` raises if the values are wrong; for the first turn.
    settle_nbytes : int
        See `common.settle_memory`.
    patience : float
        Seconds to wait at most for other processes, before each run.
    path : pathlib.Path, optional
        The file, which is read before each run: some systems take the page cache back
        within a minute.

    Returns
    -------
    dict of str to list of dict
        For each contestant ``wall`` and ``cpu`` in seconds, ``others`` in processors, and
        its facts, turn by turn.
    """
    names = list(contestants)
    laps = {name: [] for name in names}
    for rep in range(reps):
        first = rep % len(names)
        for name in names[first:] + names[:first]:
            wait_for_calm(patience)
            if path is not None:
                warm(path)
            settle_memory(settle_nbytes)  # last: the page cache may take what was free
            with timed() as lap:
                outcome = contestants[name]()
            laps[name].append(asdict(outcome.lap or lap) | outcome.facts)
            if rep == 0 and check is not None:
                check(name, outcome)
            del outcome
    return laps


def extrapolated(prepare, order, budget, keep=4):
    """Read one item after the other until the time is up; scale by the number of items read.

    Parameters
    ----------
    prepare : context manager
        Gives the function that does the i-th thing. What it takes itself, opening and
        reading the references, is added and not scaled.
    order : sequence of int
        All of them, in the order in which they are done.
    budget : float
        Seconds.
    keep : int
        How many of the first results to keep as the sample.
    """
    sample = {}
    with ExitStack() as stack:
        with timed() as before:
            read = stack.enter_context(prepare)
        end = time.perf_counter() + budget
        done = 0
        with timed() as lap:
            for i in order:
                result = read(i)
                if done < keep:
                    sample[i] = result
                done += 1
                if time.perf_counter() > end:
                    break
    lap = scaled(before, lap, len(order) / done)
    return Outcome(sample=sample, lap=lap, facts={"done": done, "of": len(order)})


def extrapolated_batches(prepare, n, budget, first=2, growth=4):
    """Do batches of growing size until one takes half of the budget.

    What the rest would take comes from the difference of the last two: a batch costs
    something however small it is, and the first one warms up.
    """
    done = []
    with ExitStack() as stack:
        with timed() as before:
            read = stack.enter_context(prepare)
        size = min(first, n)
        while True:
            with timed() as lap:
                values = read(size)
            done.append((size, lap))
            if size == n or (len(done) > 2 and lap.wall > budget / 2):
                break
            size = min(size * growth, n)
    sample = dict(enumerate(values[:4]))
    lap = continued(before, *done[-2:], n) if len(done) > 1 else scaled(before, lap, 1)
    return Outcome(sample=sample, lap=lap, facts={"done": size, "of": n})


def continued(before, earlier, last, n):
    """Return the lap of n from those of two sizes."""
    factor = (n - last[0]) / (last[0] - earlier[0])

    def line(what):
        a, b = getattr(earlier[1], what), getattr(last[1], what)
        return getattr(before, what) + b + max(b - a, 0) * factor

    return Lap(wall=line("wall"), cpu=line("cpu"), others=last[1].others)


def scaled(before, lap, factor):
    return Lap(
        wall=before.wall + lap.wall * factor,
        cpu=before.cpu + lap.cpu * factor,
        others=lap.others,
    )


@contextmanager
def new_name(path):
    """Give a file another name, so that no cache of it helps."""
    link = Path(tempfile.mktemp(suffix=path.suffix, dir=path.parent))
    link.hardlink_to(path)
    try:
        yield link
    finally:
        link.unlink()


def ratios(laps, name, to, what="wall"):
    """Return one contestant's times over another's, turn by turn."""
    pairs = zip(laps[name], laps[to], strict=True)
    return [a[what] / max(b[what], 1e-9) for a, b in pairs]


def spread(values):
    """Return ``median (least to most)``."""
    if not values:
        return ""
    if len(values) == 1:
        return short(values[0])
    return f"{short(median(values))} ({short(min(values))} to {short(max(values))})"


def short(value):
    """Return a number with about three digits."""
    if value >= 99.5:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 1 else f"{value:.2g}"


def seconds(laps, what="wall"):
    return median([lap[what] for lap in laps])


def calm_turns(laps):
    """Return ``calm/all`` turns of one contestant."""
    return f"{sum(lap['others'] < CALM for lap in laps)}/{len(laps)}"


def contest_rows(laps, ours="xref", label=None):
    """Return a row for each contestant: seconds, and the ratio to xref's time."""
    rows = []
    for name, taken in laps.items():
        row = {} if label is None else {"workload": label}
        row |= {
            "who": name,
            "seconds": short(seconds(taken)),
            "CPU seconds": short(seconds(taken, "cpu")),
            "times xref's": "" if name == ours else spread(ratios(laps, name, ours)),
            "CPU, times xref's": (
                "" if name == ours else short(median(ratios(laps, name, ours, "cpu")))
            ),
            "calm": calm_turns(taken),
        }
        done = [lap["done"] for lap in taken if "done" in lap]
        if done:
            row["done"] = f"{min(done)} of {taken[0]['of']}"
        rows.append(row)
    return rows
