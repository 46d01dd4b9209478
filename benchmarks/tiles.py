"""Choose the tuning constants of reading: ``python benchmarks/tiles.py``.

Each constant of `xref.reading.plan`, `xref.reading.execute` and `xref.reading.box_copies` is
set to several values in turn, and the workloads that depend on it are read with each value,
repetition after repetition. References are decoded before; planning and reading are timed.
A number is the median, over the repetitions, of the time relative to the present value of the
constant in the same repetition: below 1 is faster. In brackets: the same for processor time,
which other processes disturb less.

TILE_NBYTES
    Bytes of the canvas of one tile. Small tiles stay in the cache, large tiles cut fewer
    regions.
READ_GAP_NBYTES, READ_NBYTES
    Largest gap between chunks in the file that are read together, and the bytes of one read.
CONTIGUOUS_GAP_NBYTES
    The same for pieces of contiguous data. ``W2s`` reads 500 regions of W2.
MIN_BULK_BOXES, MIN_BULK_GROUPS, ROWS_NBYTES
    In tiles with more than MIN_BULK_GROUPS shapes of pieces, pieces are copied row by row if at
    most MIN_BULK_BOXES pieces have their shape and they are not larger than ROWS_NBYTES.
COPY_NBYTES
    Bytes that one fancy index copies.
"""

import argparse
import importlib
from pathlib import Path

import numpy as np
import xarray as xr
from common import add_data_argument, describe_machine, median, print_table, timed, warm

import xref
from xref.arrays.columns import row_offsets
from xref.resolving.bound_references import bind_references
from xref.resolving.read_results import read_results

KIB, MIB = 1 << 10, 1 << 20
SWEEPS = {
    ("xref.reading.plan", "TILE_NBYTES"): [
        MIB // 2,
        MIB,
        2 * MIB,
        4 * MIB,
        8 * MIB,
        16 * MIB,
        64 * MIB,
    ],
    ("xref.reading.execute", "READ_GAP_NBYTES"): [0, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB],
    ("xref.reading.execute", "READ_NBYTES"): [128 * KIB, 512 * KIB, MIB, 2 * MIB, 8 * MIB],
    ("xref.reading.plan", "CONTIGUOUS_GAP_NBYTES"): [0, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB],
    ("xref.reading.box_copies", "MIN_BULK_BOXES"): [0, 2, 4, 6, 10, 16, 32],
    ("xref.reading.box_copies", "MIN_BULK_GROUPS"): [0, 4, 8, 16, 64],
    ("xref.reading.box_copies", "ROWS_NBYTES"): [
        8 * KIB,
        32 * KIB,
        128 * KIB,
        512 * KIB,
        2 * MIB,
    ],
    ("xref.reading.box_copies", "COPY_NBYTES"): [
        64 * KIB,
        128 * KIB,
        256 * KIB,
        512 * KIB,
        MIB,
        4 * MIB,
    ],
}
WORKLOADS = {
    "W1": ("w1.h5", "rois", None),
    "W1s": ("w1.h5", "rois", 500),
    "W2": ("w2.h5", "rois", None),
    "W2s": ("w2.h5", "rois", 500),
    "W3.lz4": ("w3.h5", "rois_lz4", None),
    "W4": ("w1.h5", "ragged", None),
}
MATTERS = {
    "TILE_NBYTES": ("W1", "W1s", "W2", "W3.lz4", "W4"),
    "READ_GAP_NBYTES": ("W1s",),
    "READ_NBYTES": ("W1", "W3.lz4"),
    "CONTIGUOUS_GAP_NBYTES": ("W2", "W2s"),
    "MIN_BULK_BOXES": ("W1s", "W2s", "W4"),
    "MIN_BULK_GROUPS": ("W1s", "W2s", "W4"),
    "ROWS_NBYTES": ("W1s", "W4"),
    "COPY_NBYTES": ("W1", "W2", "W3.lz4"),
}


class constant:
    """Set a constant in every module of xref that has imported it, for a block."""

    def __init__(self, name, value):
        modules = ("plan", "execute", "box_copies", "partitions", "chunked_datasets")
        found = [importlib.import_module(f"xref.reading.{module}") for module in modules]
        self.name, self.value = name, value
        self.modules = [module for module in found if hasattr(module, name)]
        self.before = getattr(self.modules[0], name)

    def __enter__(self):
        """Set it."""
        self._set(self.value)

    def __exit__(self, *_):
        """Set it back."""
        self._set(self.before)

    def _set(self, value):
        for module in self.modules:
            setattr(module, self.name, value)
        if self.name == "TILE_NBYTES":
            # It is a default of arguments too, which were bound at import.
            plan = importlib.import_module("xref.reading.plan")
            for function in (plan.choose_tile, plan.plan_read):
                function.__defaults__ = (*(function.__defaults__ or ())[:-1], value)


def prepare(data, work):
    """Return the bound references of a workload, and where their results go."""
    filename, variable, n = WORKLOADS[work]
    warm(data / filename)
    dataset = xr.open_dataset(data / filename, engine="h5ref")
    references = dataset[variable][:n].variable.data
    bound = bind_references(references.columns, references.describe)
    return bound, row_offsets(bound.npoints)


def sweep(name, values, work, bound, offsets, reps):
    """Return (wall, processor) time of each value, relative to the present one."""
    (target,) = bound.targets
    present = constant(name, None).before
    ratios = {value: [] for value in values}
    for _ in range(reps):
        laps = {}
        for value in values:
            with constant(name, value):
                out = np.empty(int(offsets[-1]), dtype=target.layout.dtype)
                with timed() as laps[value]:
                    read_results(bound, out, offsets[:-1])
            del out
        base = laps[present]
        for value, lap in laps.items():
            ratios[value].append((lap.wall / base.wall, lap.cpu / base.cpu))
    return {
        value: tuple(map(median, zip(*pairs, strict=True))) for value, pairs in ratios.items()
    }


def show(value):
    if value >= MIB:
        return f"{value // MIB} MiB"
    return f"{value // KIB} KiB" if value >= KIB else str(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_argument(parser)
    parser.add_argument("--reps", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default=",".join(name for _, name in SWEEPS))
    arguments = parser.parse_args()
    print(f"{describe_machine()}; {arguments.threads} threads.", end="\n\n")
    data, prepared = Path(arguments.data), {}
    for (module, name), values in SWEEPS.items():
        if name not in arguments.only.split(","):
            continue
        present = getattr(importlib.import_module(module), name)
        rows = {
            value: {name: show(value) + (" (now)" if value == present else "")}
            for value in sorted({*values, present})
        }
        for work in MATTERS[name]:
            if work not in prepared:
                prepared[work] = prepare(data, work)
            with xref.set_options(threads=arguments.threads):
                found = sweep(name, sorted(rows), work, *prepared[work], arguments.reps)
            for value, (wall, cpu) in found.items():
                rows[value][work] = f"{wall:.2f} ({cpu:.2f})"
        print_table(list(rows.values()))


if __name__ == "__main__":
    main()
