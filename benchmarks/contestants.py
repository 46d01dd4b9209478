"""The contestants: xref, ways to read with other packages, and the limit.

In: a `workloads.Workload`. Out: functions by name, which do its work and return a
`turns.Outcome`. Other packages are imported where they are used; `missing_peers` names the
packages that are not installed, `CANNOT` the workloads that an installed one cannot read.

xref
    From `xarray.open_dataset` to computed values, as a user writes it. The file is opened
    under a new name. ``chunks=None`` is the same without Dask.
xref, mean(); xref, both at once
    W4 only. ``xref`` computes the values and then their means with NumPy, as the limit does.
    These two are ``.h5ref.mean()`` alone, and values and means from one `dask.compute`.
loop; loop, sorted; loop, sorted, 2 GB cache
    ``dataset[reference]`` one after the other: in stored order, sorted by the chunk of the
    first corner, and sorted with HDF5's chunk cache set to 2 GB. Stopped after ``budget``
    seconds (twice that if chunks are cached) and extrapolated by count.
h5py, whole; hidefix, whole; pyfive, whole
    The whole dataset in memory, then one NumPy gather.
h5netcdf, vectorised; h5netcdf, one by one
    xarray with ``chunks={}`` and one `isel` of all regions, and `isel` region by region
    without Dask, both extrapolated. They are given the places of the regions for free.
limit
    `limit.py`, which is given the places of the regions for free.
"""

import importlib.util
import os
import time
from contextlib import contextmanager
from functools import partial

import dask
import h5py
import numpy as np
import xarray as xr
from limit import run_limit
from turns import Outcome, extrapolated, extrapolated_batches, new_name
from workloads import DECODES, MOVIES, STACKS

PEERS = ("h5netcdf", "hidefix", "pyfive")
CANNOT = {
    "hidefix": (MOVIES, "reads no filters but gzip and shuffle"),
    "pyfive": (MOVIES, "reads neither Blosc nor Zstandard, and failed with LZF"),
}
CACHE = {"rdcc_nbytes": 2 << 30, "rdcc_nslots": 1_000_003, "rdcc_w0": 0}


def missing_peers():
    """Return the packages that are not installed."""
    return [name for name in PEERS if importlib.util.find_spec(name) is None]


def notes():
    """Return a line for each package that is left out of a workload."""
    lines = [f"{name} is not installed and left out." for name in missing_peers()]
    for name, (works, why) in CANNOT.items():
        if name not in missing_peers():
            lines.append(f"{name} is left out of {', '.join(works)}: it {why}.")
    return lines


def contestants(work, threads, budget):
    """Return the contestants of one workload by name."""
    if work.name in STACKS:
        return stack_contestants(work, threads, budget)
    if work.name in DECODES:
        return {
            "xref": partial(run_xref, work, decode_bounds),
            "loop": partial(loop_bounds, work, budget),
        }
    if work.name == "W7.values":
        return {
            "xref": partial(run_xref, work, resolve_cells),
            "loop": partial(loop_objects, work, budget, lambda file, ref: file[ref][()]),
            "h5py, low level": partial(loop_objects, work, budget, read_low_level),
        }
    return {
        "xref": partial(run_xref, work, name_cells),
        "loop": partial(loop_objects, work, budget, lambda file, ref: file[ref].name),
        "h5py, one walk": partial(walk_names, work),
    }


def stack_contestants(work, threads, budget):
    codec = "zlib" if work.name == "W1.base" else "best"
    found = {
        "xref": partial(run_xref, work, partial(resolve, work, chunks="auto")),
        "xref, chunks=None": partial(run_xref, work, partial(resolve, work, chunks=None)),
    }
    if work.name == "W4":
        found["xref, mean()"] = partial(run_xref, work, means_alone)
        found["xref, both at once"] = partial(run_xref, work, values_and_means)
    found["limit"] = lambda: Outcome(run_limit(work.base, work.truth, codec, threads)[1])
    found["loop"] = partial(loop, work, budget)
    found["h5py, whole"] = partial(whole, work, read_h5py)
    if work.name == "W1.base":
        return found
    found["loop, sorted"] = partial(loop, work, 2 * budget, by_place=True)
    if work.name != "W2":  # contiguous data have no chunk cache
        found["loop, sorted, 2 GB cache"] = partial(
            loop, work, 2 * budget, by_place=True, options=CACHE
        )
    peers = {
        "h5netcdf": {
            "h5netcdf, vectorised": partial(isel_all, work, budget),
            "h5netcdf, one by one": partial(isel_each, work, budget),
        },
        "hidefix": {"hidefix, whole": partial(whole, work, read_hidefix)},
        "pyfive": {"pyfive, whole": partial(whole, work, read_pyfive)},
    }
    if work.name == "W4":  # regions of different shapes have no rectangular index
        del peers["h5netcdf"]["h5netcdf, vectorised"]
    for name, functions in peers.items():
        if name not in missing_peers() and work.name not in CANNOT.get(name, ((),))[0]:
            found |= functions
    return found


def run_xref(work, use):
    """Open the file under a new name and use it."""
    with new_name(work.path) as path:
        begin = time.perf_counter()
        with xr.open_dataset(path, engine="h5ref") as dataset:
            opened = time.perf_counter() - begin
            return Outcome(use(dataset), facts={"opening": opened})


def resolve(work, dataset, chunks):
    """Return the computed values of W1 to W5."""
    rois = dataset[work.references]
    if work.name == "W1s":
        rois = rois[: work.n]
    if work.name == "W4":
        ragged = rois.h5ref.resolve("ragged", coords=False, chunks=chunks)
        values = ragged[work.variable].data
        flat = np.asarray(values) if chunks is None else values.compute()
        sizes = ragged.row_size.values
        return flat, np.add.reduceat(flat, np.cumsum(sizes) - sizes, dtype="f8") / sizes
    values = rois.h5ref.resolve(coords=False, chunks=chunks)
    return values.values if chunks is None else values.data.compute()


def resolve_two(work, dataset):
    """Resolve two references, so that imports are done and threads are started."""
    dim = dataset[work.references].dims[0]
    return resolve(work, dataset.isel({dim: slice(0, 2)}), "auto")


def means_alone(dataset):
    """Return the means of W4; the values are not kept."""
    return dataset["ragged"].h5ref.mean().data.compute()


def values_and_means(dataset):
    """Return the two results of W4 from one `dask.compute`."""
    rois = dataset["ragged"]
    ragged = rois.h5ref.resolve("ragged", coords=False)
    return dask.compute(ragged["img"].data, rois.h5ref.mean().data)


def decode_bounds(dataset):
    """Return start and stop of all region references."""
    return dataset["rois"].variable.data.columns.regions.bounds()


def resolve_cells(dataset):
    """Return the values of all cells, concatenated."""
    ragged = dataset["cell"].h5ref.resolve("ragged", coords=False)
    (values,) = (v for v in ragged.data_vars.values() if "sample" in v.dims)
    return values.data.compute()


def name_cells(dataset):
    """Return the paths of all cells."""
    return dataset["cell"].h5ref.table()["path"].values


@contextmanager
def reader_of(path, variable, references, select=None, options=None):
    """Return the function that reads the i-th region by its reference.

    ``select(target, references)`` picks and orders them.
    """
    with h5py.File(path, **(options or {})) as file:
        target, found = file[variable], file[references][:]
        if select is not None:
            found = select(target, found)
        yield lambda i: target[found[i]]


def loop(work, budget, by_place=False, options=None):
    """Read region by region with h5py."""

    def select(target, references):
        references = references[: work.n]
        return references[work.order_by_place(target.chunks)] if by_place else references

    prepare = reader_of(work.path, work.variable, work.references, select, options)
    # What comes back is h5py's own answer; the sample has nothing to be checked against.
    return extrapolated(prepare, range(work.n), budget, keep=0)


@contextmanager
def bounds_reader(work):
    with h5py.File(work.path) as file:
        references = file[work.references][:]
        yield lambda i: np.stack(
            h5py.h5r.get_region(references[i], file.id).get_select_bounds()
        )


def loop_bounds(work, budget):
    """Ask h5py for the bounds of one region reference after the other."""
    with h5py.File(work.path) as file:
        n = file[work.references].size
    return extrapolated(bounds_reader(work), range(n), budget)


@contextmanager
def object_reader(work, read):
    with h5py.File(work.path) as file:
        references = file[work.references][:]
        yield lambda i: read(file, references[i])


def loop_objects(work, budget, read):
    """Call a function for one object reference after the other, in random order.

    HDF5 finds a name by a walk over the objects before it, so the first references would be
    the cheapest.
    """
    with h5py.File(work.path) as file:
        n = file[work.references].size
    order = np.random.default_rng(0).permutation(n).tolist()
    return extrapolated(object_reader(work, read), order, budget)


def read_low_level(file, reference):
    """Read a one-dimensional float64 dataset with as few calls as h5py allows."""
    dataset = h5py.h5r.dereference(reference, file.id)
    values = np.empty(dataset.shape)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


def walk_names(work):
    """Find all names by one walk over the links of a group that is given."""
    with h5py.File(work.path) as file:
        found = {}

        def remember(name, info):
            found[info.u] = b"/#refs#/" + name

        group = file["#refs#"]  # the iteration does not keep it open
        group.id.links.iterate(remember, info=True)
        raw = np.empty(file["cell"].shape, "u8")
        file["cell"].id.read(h5py.h5s.ALL, h5py.h5s.ALL, raw, h5py.h5t.STD_REF_OBJ)
        return Outcome([found[address].decode() for address in raw.tolist()])


def whole(work, read):
    """Read everything and gather."""
    return Outcome(work.pick(read(work.path, work.variable)))


def read_h5py(path, variable):
    with h5py.File(path) as file:
        return file[variable][...]


def read_hidefix(path, variable):
    import hidefix

    dataset = hidefix.Index(os.fspath(path)).dataset(variable)
    return dataset[tuple(slice(0, n) for n in dataset.shape())]


def read_pyfive(path, variable):
    import pyfive

    with pyfive.File(os.fspath(path)) as file:
        return np.asarray(file[variable][...])


@contextmanager
def opened_by_h5netcdf(work, chunks):
    options = {"engine": "h5netcdf", "phony_dims": "sort", "chunks": chunks}
    with xr.open_dataset(work.path, **options) as dataset:
        yield dataset[work.variable]


@contextmanager
def isel_one(work):
    with opened_by_h5netcdf(work, None) as variable:
        if work.name == "W5":
            yield lambda i: variable[points_index(variable.dims, work.truth.points[i])].values
        else:
            yield lambda i: variable[work.slices(i)].values


def points_index(dims, points):
    axes = ("roi", "point")[2 - (points.ndim - 1) :]
    return {dim: (axes, points[..., k]) for k, dim in enumerate(dims)}


@contextmanager
def isel_many(work):
    with opened_by_h5netcdf(work, {}) as variable:

        def read(n):
            index = vector_index(work, variable.dims, n)
            return variable.isel(index).transpose("roi", ...).values

        yield read


def vector_index(work, dims, n):
    """Return the index of the first n regions at once."""
    if work.name == "W5":
        return points_index(dims, work.truth.points[:n])
    index = {}
    shape = work.stop[0] - work.start[0]
    for k, dim in enumerate(dims):
        if not (work.name in MOVIES and k == 0):  # all frames
            elements = work.start[:n, k, np.newaxis] + np.arange(shape[k])
            index[dim] = (("roi", f"in_{dim}"), elements)
    return index


def isel_each(work, budget):
    """Index with xarray over h5netcdf, region by region."""
    return extrapolated(isel_one(work), range(work.n), budget)


def isel_all(work, budget):
    """Index with xarray over h5netcdf and dask, all regions at once."""
    return extrapolated_batches(isel_many(work), work.n, budget)
