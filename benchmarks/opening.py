"""W8: open files of many variables, each time in a fresh process.

Imports are not counted. ``h5py`` asks only for the name, shape and dtype of each dataset, the
least that any reader must know. ``h5netcdf`` needs names for dimensions that have none
(``phony_dims="sort"``).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import h5py
import xarray as xr
from common import Lap, add_data_argument, table_lines, timed
from contestants import missing_peers
from files import VARIABLES
from turns import Outcome, contest_rows, take_turns

GROUP = "g"
SLOW_REPS = 3
"""Turns at most for the largest file, which takes h5netcdf half a minute."""

OPTIONS = {
    "xref": {"engine": "h5ref"},
    "h5netcdf": {"engine": "h5netcdf", "phony_dims": "sort"},
}


def open_here(path, who):
    """Open one file in this process; return the lap and how many variables there are."""
    if who == "h5py":
        with timed() as lap, h5py.File(path) as file:
            found = [(name, item.shape, item.dtype) for name, item in file[GROUP].items()]
        return lap, len(found)
    with tempfile.TemporaryDirectory() as folder:  # imports what the engine imports late
        small = Path(folder) / "small.h5"
        with h5py.File(small, "w") as file:
            file.create_group(GROUP)["v"] = [1.0]
        xr.open_dataset(small, group=GROUP, **OPTIONS[who]).close()
    with timed() as lap, xr.open_dataset(path, group=GROUP, **OPTIONS[who]) as dataset:
        n = len(dataset.data_vars)
    return lap, n


def open_in_child(path, who):
    command = [sys.executable, __file__, "--child", str(path), who]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(output)
    return Outcome(lap=Lap(**found["lap"]), facts={"variables": found["variables"]})


def measure(data, reps, _threads, _budget):
    """Return laps by number of variables and contestant."""
    whos = [who for who in ("xref", "h5netcdf", "h5py") if who not in missing_peers()]
    found = {}
    for n in VARIABLES:
        path = data / f"w8_{n}.h5"
        turns = min(reps, SLOW_REPS) if n == VARIABLES[-1] else reps

        def check(who, outcome, n=n):
            assert outcome.facts["variables"] == n, f"{who} found {outcome.facts} of {n}"

        both = {who: partial(open_in_child, path, who) for who in whos}
        found[str(n)] = take_turns(both, turns, check, path=path)
    return found


def render(section):
    """Return the section as lines of Markdown."""
    rows = [
        row
        for n, laps in section.items()
        for row in contest_rows(laps, label=f"W8, {int(n):,} variables")
    ]
    return [
        "### Opening",
        "",
        "A fresh process each; imports and a first small file are not counted.",
        "",
        *table_lines(rows),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_argument(parser)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        lap, n = open_here(*arguments.child)
        print(json.dumps({"lap": vars(lap), "variables": n}))
    else:
        print("\n".join(render(measure(Path(arguments.data), arguments.reps, 2, None))))


if __name__ == "__main__":
    main()
