"""Choose how heap collections are walked: ``python benchmarks/decode.py``.

`xref.heap` walks a few collections one by one with plain integers, and more of
them in lockstep with NumPy. For 1, 2, 4, ... collections of the files W1 and W6 this
times both ways on the same bytes; FEW_COLLECTIONS belongs where they cross. Full
collections (about a thousand objects) are what matters: small ones cost nothing.
"""

import argparse
from pathlib import Path

import xarray as xr
from common import add_data_argument, describe_machine, median, print_table, timed

import xref.decode
import xref.heap

CASES = (("w1.h5", "rois"), ("w1.h5", "points"), ("w6.h5", "rois"), ("w6_latest.h5", "rois"))
MOST = 128


class _Caught(Exception):
    """Carries the heap of some references out of their decoding."""


def read_heap(path, variable):
    """Return buffer, base and size of the collections that a variable's references name."""

    def catch(buffer, base, size, length_size, describe):
        raise _Caught(buffer, base, size, length_size, describe)

    before = xref.decode.walk_collections
    xref.decode.walk_collections = catch
    try:
        with xr.open_dataset(path, engine="h5ref") as dataset:
            dataset[variable].variable.data.columns  # noqa: B018, decodes
    except _Caught as caught:
        return caught.args
    finally:
        xref.decode.walk_collections = before
    raise ValueError(f"{variable} in {path} has no heap")


def time_walks(heap, n, reps):
    """Return seconds of walking n collections one by one and in lockstep, and their objects."""
    buffer, base, size, length_size, describe = heap
    walks = {"one by one": MOST + 1, "lockstep": 0}
    seconds = {name: [] for name in walks}
    before = xref.heap.FEW_COLLECTIONS
    try:
        for _ in range(reps):
            for name, few in walks.items():
                xref.heap.FEW_COLLECTIONS = few
                with timed() as lap:
                    objects = xref.heap.walk_collections(
                        buffer, base[:n], size[:n], length_size, describe
                    )
                seconds[name].append(lap.wall)
    finally:
        xref.heap.FEW_COLLECTIONS = before
    return {name: median(laps) for name, laps in seconds.items()}, len(objects.key)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_argument(parser)
    parser.add_argument("--reps", type=int, default=7)
    arguments = parser.parse_args()
    print(describe_machine(), end="\n\n")
    rows = []
    for filename, variable in CASES:
        heap = read_heap(Path(arguments.data) / filename, variable)
        n = 1
        while n <= min(len(heap[1]), MOST):
            seconds, n_objects = time_walks(heap, n, arguments.reps)
            rows.append(
                {
                    "file": filename,
                    "variable": variable,
                    "collections": n,
                    "objects": n_objects,
                    **{f"{name}, ms": s * 1e3 for name, s in seconds.items()},
                    "faster": min(seconds, key=seconds.get),
                }
            )
            n *= 2
    print_table(rows)
    print(f"FEW_COLLECTIONS is {xref.heap.FEW_COLLECTIONS}.")


if __name__ == "__main__":
    main()
