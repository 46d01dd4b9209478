"""When to read Dask blocks together, and in what batches: ``python benchmarks/exchange.py``.

The sums of W1's regions are computed in Dask blocks of references in random order.

LOT_NBYTES
    Least number of decoded bytes in one batch of chunks: time relative to the present
    value, with 10 and with 50 blocks.
COPIED_PER_DECODED
    The regions in a corner of W1, each repeated several times, in 10 blocks. More repetitions
    mean more bytes to copy for each chunk that is not decoded again. ``copied / saved`` is
    the number of bytes copied for each byte that is not decoded again; ``together`` is
    the time of blocks read together over the time of blocks read one by one.
    Below 1, reading together is faster.

Medians over the repetitions of ratios within one repetition.
"""

import argparse
from pathlib import Path

import dask
import numpy as np
import xarray as xr
from common import add_data_argument, describe_machine, median, print_table, timed, warm

import xref
from xref.resolving import shuffle as exchange
from xref.storage.read_counts import count_reads

MIB = 1 << 20
LOTS = (4 * MIB, 8 * MIB, 16 * MIB, 32 * MIB, 64 * MIB)
BLOCKS = (10, 50)
TIMES = (1, 4, 16, 32, 64)
CORNER = 2048


def sums_in_blocks(references, blocks):
    """Return the lazy sums of regions, divided into blocks."""
    (dim,) = references.dims
    chunks = {dim: -(-references.size // blocks)}
    patches = references.h5ref.resolve(coords=False, chunks=chunks)
    return patches.data.sum(axis=(1, 2))


def timed_with(name, value, sums):
    """Return the lap of a computation while a constant of `xref.resolving.shuffle` is set."""
    before = getattr(exchange, name)
    setattr(exchange, name, value)
    try:
        with timed() as lap:
            sums.compute()
    finally:
        setattr(exchange, name, before)
    return lap.wall


def sweep_lots(references, reps):
    """Return a row for each size of batches."""
    present = exchange.LOT_NBYTES
    rows = {n: {"LOT_NBYTES": f"{n // MIB} MiB" + " (now)" * (n == present)} for n in LOTS}
    for blocks in BLOCKS:
        laps = []
        for _ in range(reps):
            # Plans are remembered with the array, so each lap has one of its own.
            found = {
                n: timed_with("LOT_NBYTES", n, sums_in_blocks(references, blocks)) for n in LOTS
            }
            laps.append({n: seconds / found[present] for n, seconds in found.items()})
        for n in LOTS:
            rows[n][f"{blocks} blocks"] = f"{median([lap[n] for lap in laps]):.2f}"
    return list(rows.values())


def compare_copies(references, reps):
    """Return a row for each number of times that regions are repeated."""
    rng = np.random.default_rng(0)
    start = references.variable.data.columns.regions.start
    corner = np.flatnonzero((start < CORNER).all(axis=1))
    rows = []
    for times in TIMES:
        picked = references[rng.permutation(np.tile(corner, times))]
        ratios, decoded = [], {}
        for _ in range(reps):
            laps = {}
            for how, factor in (("together", 1 << 30), ("alone", 0)):
                with count_reads() as counts:
                    laps[how] = timed_with(
                        "COPIED_PER_DECODED", factor, sums_in_blocks(picked, 10)
                    )
                decoded[how] = counts.chunks_decoded
            ratios.append(laps["together"] / laps["alone"])
        saved = (decoded["alone"] - decoded["together"]) * 256 * 256 * 2
        copied = picked.size * 32 * 32 * 2
        rows.append(
            {
                "regions": picked.size,
                "copied / saved": f"{copied / max(saved, 1):.2f}",
                "together": f"{median(ratios):.2f}",
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_argument(parser)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    path = Path(arguments.data) / "w1.h5"
    warm(path)
    print(f"{describe_machine()}; {arguments.threads} threads.", end="\n\n")
    with (
        xref.set_options(threads=arguments.threads),
        dask.config.set(scheduler="threads", num_workers=arguments.threads),
        xr.open_dataset(path, engine="h5ref") as dataset,
    ):
        print_table(sweep_lots(dataset["rois"], arguments.reps))
        print_table(compare_copies(dataset["rois"], arguments.reps))


if __name__ == "__main__":
    main()
