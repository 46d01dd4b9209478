"""One region of a million, against one of a thousand, and the graph of the million.

``one reference``
    ``dataset.rois[i].h5ref.resolve().compute()``: selected, then resolved.
``one of the stack``
    ``patches[i].compute()`` of a stack that was resolved lazily before.

Both are warm and use the same 20 values of i; a turn is the median of them. ``w9.h5`` holds the
million (``rois``) and the first thousand of them (``few``).
"""

import pickle
import time
from functools import partial

import h5py
import numpy as np
import xarray as xr
from common import Lap, median, table_lines, warm
from files import FEW, MILLION, SMALL_BOX
from turns import Outcome, calm_turns, ratios, seconds, short, spread, take_turns

N_PICKS = 20
MILLISECONDS = 1000
NAMES = {"1,000": "few", "1,000,000": "rois"}


def resolve_one(dataset, i, _):
    return dataset[i].h5ref.resolve(coords=False).compute().values


def pick_one(_, i, patches):
    return patches[i].compute().values


WHAT = {"one reference": resolve_one, "one of the stack": pick_one}


def run(function, references, patches, picks):
    """Return the median of the picks as a lap, and their values."""
    laps, values = [], []
    for i in picks:
        cpu, wall = time.process_time(), time.perf_counter()
        values.append(function(references, i, patches))
        laps.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = (median(column) for column in zip(*laps, strict=True))
    return Outcome(np.stack(values), lap=Lap(wall=wall, cpu=cpu))


def measure_graph(path):
    """Return the costs of the graph of the million, from a file just opened."""
    begin = time.perf_counter()
    with xr.open_dataset(path, engine="h5ref") as dataset:
        opened = time.perf_counter()
        patches = dataset["rois"].h5ref.resolve(coords=False)
        built = time.perf_counter()
        graph = dict(patches.__dask_graph__())
        nbytes = len(pickle.dumps(graph))
        return {
            "opening": opened - begin,
            "building": built - opened,
            "pickling": time.perf_counter() - built,
            "tasks": len(graph),
            "nbytes": nbytes,
            "blocks": int(np.prod(patches.data.numblocks)),
        }


def measure(data, reps, _threads, _budget):
    """Return laps by operation and number of references, and the graph's figures."""
    path = data / "w9.h5"
    warm(path)
    found = {"graph": [measure_graph(path) for _ in range(reps)], "laps": {}}
    picks = np.random.default_rng(10).choice(FEW, N_PICKS, replace=False).tolist()
    start = np.random.default_rng(9).integers(0, 8192 - SMALL_BOX, (MILLION, 2))[picks]
    with h5py.File(path) as file:
        boxes = [file["img"][y : y + SMALL_BOX, x : x + SMALL_BOX] for y, x in start.tolist()]
    with xr.open_dataset(path, engine="h5ref") as dataset:
        stacks = {n: dataset[name].h5ref.resolve(coords=False) for n, name in NAMES.items()}
        for what, function in WHAT.items():
            contestants = {
                n: partial(run, function, dataset[name], stacks[n], picks)
                for n, name in NAMES.items()
            }
            for contestant in contestants.values():
                contestant()  # warm
            found["laps"][what] = take_turns(
                contestants, reps, lambda _, o: np.testing.assert_array_equal(o.values, boxes)
            )
    return found


def render(section):
    """Return the section as lines of Markdown."""
    few, many = NAMES
    rows = [
        {
            "what": what,
            f"of {few}, ms": short(seconds(laps[few]) * MILLISECONDS),
            f"of {many}, ms": short(seconds(laps[many]) * MILLISECONDS),
            "many / few": spread(ratios(laps, many, few)),
            "calm": calm_turns(laps[many]),
        }
        for what, laps in section["laps"].items()
    ]
    graph = section["graph"]
    middle = {name: median([one[name] for one in graph]) for name in graph[0]}
    return [
        "### One of a million",
        "",
        *table_lines(rows),
        f"The graph of the million: {middle['tasks']:.0f} tasks for {middle['blocks']:.0f} "
        f"blocks, built in {short(middle['building'])} s after the file was opened in "
        f"{short(middle['opening'])} s; {middle['nbytes']:,.0f} bytes pickled.",
        "",
    ]
