"""Object references to many small datasets: ``python benchmarks/small.py``.

values
    All values of 20,000 object references to datasets of 100 to 200 float64 each:
    open, resolve to ``layout="ragged"``, compute; with ``chunks="auto"`` and None. The
    loops over ``f[ref][()]`` and over h5py's low-level calls read some of the references.
chunked
    The same for 5,000 datasets of one chunk each, with gzip.
``attributes``
    The same for 2,000 contiguous datasets with three different text attributes each:
    of fixed length, and of variable length.
names
    The paths of all targets (``.h5ref.table()``), against ``f[ref].name`` of a few.
tune
    `xref.hdf5.bulk_datasets.read_datasets` with other constants.
limits
    Few datasets, and larger ones, as columns and one by one: where `MIN_BULK_TARGETS` and
    `SMALL_NBYTES` belong.

Contestants take turns. A ratio is taken within one turn, of processor time for each reference;
the tables give the median over the turns. Each turn opens the file under a new name (a hard
link), so that no cache helps.
"""

import argparse
import itertools
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import xarray as xr
from common import add_data_argument, describe_machine, median, print_table, timed, warm

import xref.arrays.byte_ranges
import xref.arrays.scattered_reads
import xref.hdf5.bulk_datasets
import xref.hdf5.bulk_headers
import xref.reading.small_datasets
import xref.resolving.bound_references
from xref.storage.open_files import locate_file

WORKS = ("values", "chunked", "attributes", "names", "tune", "limits")
N = 20_000
N_CHUNKED, N_ATTRIBUTES = 5_000, 2_000
FEW = (1, 2, 4, 8, 16, 32)
LARGE_NBYTES = tuple(1 << bits for bits in (14, 16, 18, 20, 22))
LARGE_TOTAL = 64 << 20
N_LOOP, N_NAMES = 2_000, 20


def make(path):
    """Write small datasets, and references to them."""
    rng = np.random.default_rng(7)
    with h5py.File(path, "w") as file:
        group = file.create_group("#refs#")
        references = np.empty(N, dtype=object)
        for i in range(N):
            values = rng.random(int(rng.integers(100, 201)))
            references[i] = group.create_dataset(f"v{i:05d}", data=values).ref
        file.create_dataset("cell", (N,), dtype=h5py.ref_dtype)[:] = references


def make_chunked(path):
    """Write datasets of one chunk each."""
    rng = np.random.default_rng(7)
    with h5py.File(path, "w") as file:
        made = []
        for i in range(N_CHUNKED):
            values = np.cumsum(rng.integers(-3, 4, int(rng.integers(100, 201)))).astype("f8")
            dataset = file.create_dataset(
                f"#refs#/v{i:05d}", data=values, chunks=values.shape, compression="gzip"
            )
            made.append(dataset.ref)
        write_references(file, made)


def make_attributes(path, form):
    """Write datasets with attributes of text."""
    with h5py.File(path, "w") as file:
        made = []
        for i in range(N_ATTRIBUTES):
            dataset = file.create_dataset(f"#refs#/v{i:05d}", data=np.arange(100.0) + i)
            texts = f"number {i:05d}", ("cell", "char", "real")[i % 3], "same"
            for name, text in zip("abc", texts, strict=True):
                dataset.attrs[name] = form(text)
            made.append(dataset.ref)
        write_references(file, made)


def make_sized(path, n, nbytes, **options):
    """Write datasets of one size."""
    values = np.arange(nbytes // 8, dtype="f8")
    chunks = values.shape if options else None
    with h5py.File(path, "w") as file:
        write_references(
            file,
            [
                file.create_dataset(f"#refs#/v{i}", data=values, chunks=chunks, **options).ref
                for i in range(n)
            ],
        )


def write_references(file, made):
    references = np.empty(len(made), dtype=object)
    references[:] = made
    file.create_dataset("cell", references.shape, dtype=h5py.ref_dtype)[:] = references


@contextmanager
def new_name(path):
    """Give a file another name for a while."""
    link = Path(tempfile.mktemp(suffix=".h5", dir=path.parent))
    link.hardlink_to(path)
    try:
        yield link
    finally:
        link.unlink()


def read_values(path, chunks):
    """Read all values as a user does; return the number of references."""
    with xr.open_dataset(path, engine="h5ref") as dataset:
        ragged = dataset["cell"].h5ref.resolve("ragged", chunks=chunks)
        name = next(iter(ragged.data_vars))
        assert len(ragged[name].values) == int(ragged["row_size"].sum())
        return dataset.sizes[next(iter(dataset.sizes))]


def read_names(path):
    """Read all paths."""
    with xr.open_dataset(path, engine="h5ref") as dataset:
        assert dataset["cell"].h5ref.table()["path"].values[-1] == f"/#refs#/v{N - 1:05d}"
    return N


def loop(path, n, function):
    """Call a function of the h5py file and one reference, for some of the references."""
    with h5py.File(path) as file:
        references = file["cell"][()]
        for reference in references[:: len(references) // n]:
            function(file, reference)
    return n


def low_level(file, reference):
    """Read one dataset with h5py's low-level calls."""
    dataset = h5py.h5r.dereference(reference, file.id)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, np.empty(dataset.shape, "f8"))


CONTESTANTS = {
    "values": {
        "xref": lambda path: read_values(path, "auto"),
        "xref, chunks=None": lambda path: read_values(path, None),
        "f[ref][()]": lambda path: loop(path, N_LOOP, lambda f, r: f[r][()]),
        "low-level h5py": lambda path: loop(path, N_LOOP, low_level),
    },
    "chunked": {
        "xref": lambda path: read_values(path, "auto"),
        "f[ref][()]": lambda path: loop(path, N_CHUNKED, lambda f, r: f[r][()]),
    },
    "attributes": {
        "xref": lambda path: read_values(path, "auto"),
        "f[ref][()]": lambda path: loop(path, N_ATTRIBUTES, lambda f, r: f[r][()]),
    },
    "names": {
        "xref": read_names,
        "f[ref].name": lambda path: loop(path, N_NAMES, lambda f, r: f[r].name),
    },
}


OWN_FILES = {
    "chunked": {"gzip": make_chunked},
    "attributes": {
        "fixed text": lambda path: make_attributes(path, np.bytes_),
        "variable text": lambda path: make_attributes(path, str),
    },
}


def run(work, path, reps):
    """Let the contestants take turns; return a table of rows."""
    taken = {}
    for _ in range(reps):
        for name, function in CONTESTANTS[work].items():
            with new_name(path) as link, timed() as lap:
                n = function(link)
            taken.setdefault(name, []).append(lap.cpu / n)
    rows = []
    for name, each in taken.items():
        ratios = [t / own for t, own in zip(each, taken["xref"], strict=True)]
        rows.append(
            {
                "work": work,
                "who": name,
                "us a reference": median(each) * 1e6,
                "times xref's": median(ratios),
                "spread": f"{min(ratios):.3g} to {max(ratios):.3g}",
            }
        )
    return rows


def tune(path, reps):
    """Time the reading of headers with other constants; return a table of rows."""
    with h5py.File(path) as file:
        offset = file["cell"].id.get_offset()
    address = np.fromfile(path, "<u8", N, offset=offset)
    location = locate_file(os.fspath(path))
    constants = {
        (xref.hdf5.bulk_datasets, "BATCH"): (1 << 11, 1 << 13, 1 << 15),
        (xref.hdf5.bulk_headers, "FIRST_NBYTES"): (288, 512, 1024),
        (xref.arrays.byte_ranges, "RUN_NBYTES"): (1 << 18, 1 << 20, 1 << 22),
        (xref.arrays.scattered_reads, "GAP_NBYTES"): (1 << 9, 1 << 14, 1 << 16),
    }
    rows = []
    for (module, name), values in constants.items():
        kept = getattr(module, name)
        laps = {value: [] for value in values}
        for _, value in itertools.product(range(reps), values):
            setattr(module, name, value)
            with timed() as lap:
                assert xref.objects.parsing.dataset_table(location, address).known.all()
            laps[value].append(lap.cpu / N * 1e6)
        setattr(module, name, kept)
        rows += [
            {"constant": name, "value": str(v), "us a reference": median(each)}
            for v, each in laps.items()
        ]
    return rows


def limits(folder, reps):
    """Time few and large datasets as columns and one by one; return a table of rows."""
    cases = [("datasets", n, n, 1 << 10, {}) for n in FEW]
    for nbytes in LARGE_NBYTES:
        cases.append(("bytes, contiguous", nbytes, LARGE_TOTAL // nbytes, nbytes, {}))
        gzip = {"compression": "gzip", "shuffle": True}
        cases.append(("bytes, gzip", nbytes, LARGE_TOTAL // nbytes, nbytes, gzip))
    kept = (
        xref.resolving.bound_references.MIN_BULK_TARGETS,
        xref.reading.small_datasets.SMALL_NBYTES,
    )
    xref.reading.small_datasets.SMALL_NBYTES = LARGE_TOTAL
    rows = []
    for what, size, n, nbytes, options in cases:
        path = folder / f"limits_{n}_{nbytes}_{len(options)}.h5"
        if not path.exists():
            make_sized(path, n, nbytes, **options)
        warm(path)
        ratios = {"cpu": [], "wall": []}
        for _ in range(reps):
            laps = []
            for few in (1, 1 << 62):
                xref.resolving.bound_references.MIN_BULK_TARGETS = few
                with new_name(path) as link, timed() as lap:
                    read_values(link, None)
                laps.append(lap)
            ratios["cpu"].append(laps[1].cpu / laps[0].cpu)
            ratios["wall"].append(laps[1].wall / laps[0].wall)
        rows.append(
            {"of": what, "number": str(size)}
            | {f"one by one, times ({k})": median(each) for k, each in ratios.items()}
        )
    (
        xref.resolving.bound_references.MIN_BULK_TARGETS,
        xref.reading.small_datasets.SMALL_NBYTES,
    ) = kept
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_argument(parser)
    parser.add_argument("--work", default=",".join(WORKS))
    parser.add_argument("--reps", type=int, default=5)
    arguments = parser.parse_args()
    folder = Path(arguments.data)
    folder.mkdir(exist_ok=True)
    path = folder / f"w7_{N}.h5"
    if not path.exists():
        make(path)
    warm(path)
    print(describe_machine())
    for work in arguments.work.split(","):
        reps = arguments.reps
        if work == "tune":
            print_table(tune(path, reps))
        elif work == "limits":
            print_table(limits(folder, reps))
        elif work in OWN_FILES:
            for name, write in OWN_FILES[work].items():
                own = folder / f"small_{name}.h5"
                if not own.exists():
                    write(own)
                warm(own)
                print(name)
                print_table(run(work, own, reps))
        else:
            print_table(run(work, path, reps))


if __name__ == "__main__":
    main()
