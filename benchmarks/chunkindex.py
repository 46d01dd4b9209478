"""The time to read the chunk index of a dataset: ``python benchmarks/chunkindex.py``.

indices
    For each kind of index: time for the chunks of one dataset, as xref reads them and as
    HDF5 lists them (`chunk_iter`), in a file that was just opened.
LOT_NBYTES
    Time for a million chunks relative to the present value.
MANY_BLOCKS
    Checksums of blocks side by side: time in one integer of Python over time in NumPy.

Files are written to a temporary folder. The tables give processor time: ratios within one
repetition, and their median over the repetitions.
"""

import argparse
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from common import describe_machine, median, print_table

from xref.hdf5 import checksums
from xref.hdf5.bulk_headers import checksums as sum_in_numpy
from xref.hdf5.chunk_index import nodes
from xref.objects import StoredObject
from xref.objects import datasets as h5data
from xref.objects.datasets import chunk_index, dataset_facts
from xref.objects.objects import open_dataset
from xref.storage.open_files import close_files, locate_file

KINDS = {
    "version 1 B-tree": ("earliest", lambda n: ((n,), (n,))),
    "fixed array": ("v110", lambda n: ((n,), (n,))),
    "extensible array": ("v110", lambda n: ((n,), (None,))),
    "version 2 B-tree": ("v110", lambda n: ((1, n), (None, None))),
}
SIZES = (1, 64, 1024, 1_000_000)
MIB = 1 << 20
LOTS = (MIB // 4, MIB, 4 * MIB, 16 * MIB, 64 * MIB)
BLOCKS = (2, 16, 64, 128, 256, 512)
BLOCK_NBYTES = (600, 2044, 8192)


def write(path, libver, shape, maxshape, filtered):
    """Write a dataset of chunks of one byte; return its address."""
    with h5py.File(path, "w", libver=(libver, "latest")) as file:
        dataset = file.create_dataset(
            "d", shape, "u1", chunks=(1,) * len(shape), maxshape=maxshape, shuffle=filtered
        )
        dataset[...] = 1
        return h5py.h5o.get_info(dataset.id).addr


def time_index(path, address, listed=False):
    """Return the seconds to read the chunk index of the dataset, and the number of chunks."""
    close_files()
    location = locate_file(path)
    dataset = open_dataset(StoredObject(location, address))
    dataset_facts(StoredObject(location, address))
    ours = h5data._read_index
    if listed:
        h5data._read_index = lambda *_: None
    begin = time.process_time()
    try:
        found = chunk_index.__wrapped__(location, address)
    finally:
        h5data._read_index = ours
    seconds = time.process_time() - begin
    del dataset
    return seconds, len(found.number)


def compare_indices(folder, reps):
    """Return a row for each kind of index and number of chunks."""
    rows = []
    for name, (libver, extents) in KINDS.items():
        for filtered in (False, True):
            for n in SIZES:
                path = folder / f"{len(rows)}.h5"
                address = write(path, libver, *extents(n), filtered)
                laps = []
                for _ in range(reps):
                    (xref, found), (hdf5, same) = (
                        time_index(path, address, listed) for listed in (False, True)
                    )
                    assert found == same == n
                    laps.append((xref, hdf5))
                rows.append(
                    {
                        "index": name if n > 1 or libver == "earliest" else f"{name}, or none",
                        "filters": "yes" if filtered else "",
                        "chunks": f"{n:,}",
                        "xref (ms)": f"{1e3 * median([a for a, _ in laps]):.2f}",
                        "HDF5 (ms)": f"{1e3 * median([b for _, b in laps]):.2f}",
                        "HDF5 / xref": f"{median([b / a for a, b in laps]):.1f}",
                    }
                )
    return rows


def sweep_lots(folder, reps):
    """Return a row for each size of batches."""
    present = nodes.LOT_NBYTES
    rows = {n: {"LOT_NBYTES": f"{n / MIB:g} MiB" + " (now)" * (n == present)} for n in LOTS}
    for name, (libver, extents) in KINDS.items():
        path = folder / "lots.h5"
        address = write(path, libver, *extents(SIZES[-1]), True)
        laps = []
        for _ in range(reps):
            found = {}
            for n in LOTS:
                nodes.LOT_NBYTES = n
                found[n] = time_index(path, address)[0]
            nodes.LOT_NBYTES = present
            laps.append({n: seconds / found[present] for n, seconds in found.items()})
        for n in LOTS:
            rows[n][name] = f"{median([lap[n] for lap in laps]):.2f}"
        path.unlink()
    return list(rows.values())


def compare_sums(reps):
    """Return a row for each number of blocks."""
    rng = np.random.default_rng(0)
    rows = []
    for n in BLOCKS:
        row = {"blocks": n}
        for width in BLOCK_NBYTES:
            data = np.frombuffer(rng.bytes(n * width) + bytes(1024), np.uint8)
            nbytes = np.full(n, width)
            position = np.arange(n) * width
            laps = []
            for _ in range(reps):
                begin = time.process_time()
                found = checksums._sum_few(data, position, nbytes)
                middle = time.process_time()
                same = sum_in_numpy(data, position, nbytes)
                laps.append((middle - begin) / (time.process_time() - middle))
                assert (found == same).all()
            row[f"{width} bytes"] = f"{median(laps):.2f}"
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reps", type=int, default=7)
    reps = parser.parse_args().reps
    print(describe_machine() + "\n")
    with tempfile.TemporaryDirectory() as name:
        print_table(compare_indices(Path(name), reps))
        print_table(sweep_lots(Path(name), reps))
    print_table(compare_sums(reps))
    close_files()


if __name__ == "__main__":
    main()
