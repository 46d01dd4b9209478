"""Choose how far heap walking looks ahead: ``python benchmarks/decode.py``.

`xref.heap` guesses that the next objects of a collection are as long as the present
one, and takes as many as agree, at most OBJECTS_AHEAD in a step. This walks the heap
collections that the references of several variables name, with several values of
OBJECTS_AHEAD in turn, repetition after repetition: many references and few, full
collections (about a thousand objects of one length) and small ones, and ``mixed``,
made here, in which neighbours differ in length, so that looking ahead is in vain.

A number is the median time in milliseconds, in brackets the processor time.
"""

import argparse
import struct
from pathlib import Path

import numpy as np
import xarray as xr
from common import add_data_argument, describe_machine, median, print_table, timed

import xref.decode
import xref.heap

CASES = (
    ("w1.h5", "rois"),
    ("w1.h5", "ragged"),
    ("w1.h5", "points"),
    ("w3.h5", "rois_lz4"),
    ("w6.h5", "rois"),
    ("w6_latest.h5", "rois"),
)
VALUES = (1, 4, 16, 64, 256, 1024)
MIXED_COLLECTIONS = 50
MIXED_OBJECTS = 900


class _Caught(Exception):
    """Carries the heap of some references out of their decoding."""


def read_heap(path, variable):
    """Return the arguments that a variable's references are walked with."""

    def catch(*arguments):
        raise _Caught(*arguments)

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


def mixed_heap():
    """Return collections whose objects all differ in length from their neighbours."""
    collections = []
    for k in range(MIXED_COLLECTIONS):
        objects = bytearray()
        for i in range(MIXED_OBJECTS):
            nbytes = 8 * (4 + (i + k) % 7)
            objects += struct.pack("<HH4xQ", i + 1, 1, nbytes) + bytes(nbytes)
        objects += bytes(16)
        collections.append(b"GCOL\x01\0\0\0" + struct.pack("<Q", 16 + len(objects)) + objects)
    size = np.array([len(c) for c in collections])
    base = np.cumsum(size) - size
    return np.frombuffer(b"".join(collections), np.uint8), base, size, 8, str


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_argument(parser)
    parser.add_argument("--reps", type=int, default=9)
    arguments = parser.parse_args()
    print(describe_machine(), end="\n\n")
    heaps = {
        f"{filename} {variable}": read_heap(Path(arguments.data) / filename, variable)
        for filename, variable in CASES
    }
    heaps["mixed"] = mixed_heap()
    present, rows = xref.heap.OBJECTS_AHEAD, []
    for name, heap in heaps.items():
        laps = {value: [] for value in VALUES}
        try:
            for _ in range(arguments.reps):
                for value in VALUES:
                    xref.heap.OBJECTS_AHEAD = value
                    with timed() as lap:
                        objects = xref.heap.walk_collections(*heap)
                    laps[value].append(lap)
        finally:
            xref.heap.OBJECTS_AHEAD = present
        row = {"heap": name, "collections": len(heap[1]), "objects": len(objects.key)}
        for value, found in laps.items():
            wall, cpu = (median([getattr(lap, k) for lap in found]) for k in ("wall", "cpu"))
            row[f"{value} ahead"] = f"{wall * 1e3:.2f} ({cpu * 1e3:.2f})"
        rows.append(row)
    print_table(rows)
    print(f"OBJECTS_AHEAD is {present}.")


if __name__ == "__main__":
    main()
