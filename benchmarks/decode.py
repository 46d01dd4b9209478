"""Choose constants for decoding region references: ``python benchmarks/decode.py``.

HEAP_BATCH_NBYTES
    Bytes of heap collections that `xref.hdf5.bulk_heaps` holds at a time. The references of
    several variables are read and decoded with several values in turn, repetition after
    repetition. ``one by one`` is without `xref.hdf5.bulk_boxes`, which decodes objects of
    equal form together.
OBJECTS_AHEAD
    `xref.hdf5.global_heap` guesses that the next objects of a collection are as long as the
    present one, and takes those that agree, at most this number in one step. This benchmark
    walks the heap collections of the references of several variables: many references and few,
    full collections (about a thousand objects of one length) and small ones. In ``mixed``,
    made here, neighbours differ in length, so the guess is always wrong.

A number is the median time in milliseconds, in brackets the processor time.
"""

import argparse
import struct
from pathlib import Path

import numpy as np
import xarray as xr
from common import add_data_argument, describe_machine, median, print_table, timed

import xref.hdf5
import xref.hdf5.bulk_heaps
import xref.hdf5.global_heap

CASES = (
    ("w1.h5", "rois"),
    ("w1.h5", "ragged"),
    ("w1.h5", "points"),
    ("w3.h5", "rois_lz4"),
    ("w6.h5", "rois"),
    ("w6_latest.h5", "rois"),
)
VALUES = (1, 4, 16, 64, 256, 1024)
BATCHES = tuple(1 << power for power in (16, 18, 19, 20, 21, 22, 24, 26))
MIXED_COLLECTIONS = 50
MIXED_OBJECTS = 900


class _Caught(Exception):
    """Raised to carry the heap of some references out of their decoding."""


def read_heap(path, variable):
    """Return the arguments for a walk over the heap objects of a variable's references."""

    def catch(*arguments):
        raise _Caught(*arguments)

    before = xref.hdf5.bulk_heaps.walk_collections, xref.hdf5.decode_boxes
    xref.hdf5.bulk_heaps.walk_collections, xref.hdf5.decode_boxes = (
        catch,
        lambda *_, **__: None,
    )
    batch, xref.hdf5.bulk_heaps.HEAP_BATCH_NBYTES = (
        xref.hdf5.bulk_heaps.HEAP_BATCH_NBYTES,
        1 << 40,
    )
    try:
        with xr.open_dataset(path, engine="h5ref") as dataset:
            dataset[variable].variable.data.columns  # noqa: B018, decodes
    except _Caught as caught:
        return caught.args
    finally:
        xref.hdf5.bulk_heaps.walk_collections, xref.hdf5.decode_boxes = before
        xref.hdf5.bulk_heaps.HEAP_BATCH_NBYTES = batch
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


def stored(path, variable):
    """Return the location and the address of a variable's references."""
    with xr.open_dataset(path, engine="h5ref") as dataset:
        return dataset[variable].variable.data.stored


def measure_batches(data, reps):
    """Return the table of HEAP_BATCH_NBYTES, one row a variable and way."""
    rows, together = [], xref.hdf5.decode_boxes
    present = xref.hdf5.bulk_heaps.HEAP_BATCH_NBYTES
    for filename, variable in CASES:
        place = stored(data / filename, variable)
        for way, decode in (("", together), (", one by one", lambda *_, **__: None)):
            laps = {value: [] for value in BATCHES}
            try:
                xref.hdf5.decode_boxes = decode
                for _ in range(reps):
                    for value in BATCHES:
                        xref.hdf5.bulk_heaps.HEAP_BATCH_NBYTES = value
                        with timed() as lap:
                            place.read()
                        laps[value].append(lap)
            finally:
                xref.hdf5.decode_boxes = together
                xref.hdf5.bulk_heaps.HEAP_BATCH_NBYTES = present
            row = {"references": f"{filename} {variable}{way}", "n": place.shape[0]}
            rows.append(row | {f"{value >> 10} KiB": show(laps[value]) for value in BATCHES})
    return rows


def show(laps):
    """Return the median time of laps, and of processor time."""
    wall, cpu = (median([getattr(lap, k) for lap in laps]) for k in ("wall", "cpu"))
    return f"{wall * 1e3:.2f} ({cpu * 1e3:.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_argument(parser)
    parser.add_argument("--reps", type=int, default=9)
    arguments = parser.parse_args()
    print(describe_machine(), end="\n\n")
    print_table(measure_batches(Path(arguments.data), arguments.reps))
    print(
        f"HEAP_BATCH_NBYTES is {xref.hdf5.bulk_heaps.HEAP_BATCH_NBYTES >> 10} KiB.", end="\n\n"
    )
    heaps = {
        f"{filename} {variable}": read_heap(Path(arguments.data) / filename, variable)
        for filename, variable in CASES
    }
    heaps["mixed"] = mixed_heap()
    present, rows = xref.hdf5.global_heap.OBJECTS_AHEAD, []
    for name, heap in heaps.items():
        laps = {value: [] for value in VALUES}
        try:
            for _ in range(arguments.reps):
                for value in VALUES:
                    xref.hdf5.global_heap.OBJECTS_AHEAD = value
                    with timed() as lap:
                        objects = xref.hdf5.global_heap.walk_collections(*heap)
                    laps[value].append(lap)
        finally:
            xref.hdf5.global_heap.OBJECTS_AHEAD = present
        row = {"heap": name, "collections": len(heap[1]), "objects": len(objects.key)}
        rows.append(row | {f"{value} ahead": show(found) for value, found in laps.items()})
    print_table(rows)
    print(f"OBJECTS_AHEAD is {present}.")


if __name__ == "__main__":
    main()
