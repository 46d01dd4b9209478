"""The peak memory above the start while a workload is resolved.

Each workload and setting has a child process. Linux records the peak resident memory of a
process. It is reset after the file was opened and two references were resolved, to leave out
the memory of imports and threads. The bytes of the result are subtracted: the rest is the
memory that reading needed in addition to the result.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import dask
import xarray as xr
from common import Truth, add_data_argument, median, table_lines, warm
from contestants import resolve, resolve_two
from turns import short
from workloads import STACKS, Workload

import xref

MIB = 2**20
WORKS = tuple(name for name in STACKS if name != "W1.base")
SETTINGS = {"auto": "auto", "None": None}


def resident(field):
    """Return a field of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {field}")


def forget_most():
    """Reset the peak resident memory to the present resident memory."""
    Path("/proc/self/clear_refs").write_text("5")


def measure_here(data, name, setting, threads):
    """Resolve one workload in this process; return bytes."""
    work = Workload(name, Truth(data))
    with (
        xref.set_options(threads=threads),
        dask.config.set(num_workers=threads),
        xr.open_dataset(work.path, engine="h5ref") as dataset,
    ):
        resolve_two(work, dataset)
        start = resident("VmRSS")
        forget_most()
        values = resolve(work, dataset, SETTINGS[setting])
        most = resident("VmHWM")
    parts = values if isinstance(values, tuple) else (values,)
    return {"above": most - start, "result": sum(part.nbytes for part in parts)}


def measure(data, reps, threads, _):
    """Return bytes of each run, by workload and setting."""
    found = {}
    for name in WORKS:
        for setting in SETTINGS:
            warm(Workload(name, Truth(data)).path)
            options = ["--data", data, "--threads", threads, "--child", name, setting]
            command = [sys.executable, __file__, *map(str, options)]
            runs = [
                subprocess.run(command, capture_output=True, text=True, check=True).stdout
                for _ in range(min(reps, 3))
            ]
            found.setdefault(name, {})[setting] = [json.loads(run) for run in runs]
    return found


def render(section):
    """Return the section as lines of Markdown."""
    rows = []
    for name, settings in section.items():
        for setting, runs in settings.items():
            beside = [run["above"] - run["result"] for run in runs]
            rows.append(
                {
                    "workload": name,
                    "chunks": setting,
                    "result, MiB": short(runs[0]["result"] / MIB),
                    "beside it, MiB": f"{max(median(beside), 0) / MIB:.0f}",
                    "most, MiB": f"{max(*beside, 0) / MIB:.0f}",
                }
            )
    return [
        "### Memory",
        "",
        "The most memory above the start, less the result: median and most of the runs.",
        "",
        *table_lines(rows),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_argument(parser)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    data = Path(arguments.data)
    if arguments.child:
        print(json.dumps(measure_here(data, *arguments.child, arguments.threads)))
    else:
        print("\n".join(render(measure(data, arguments.reps, arguments.threads, None))))


if __name__ == "__main__":
    main()
