"""Datasets, references and results pickle; before they are read, their pickles are small."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from forkserver import run_python

DATA = np.arange(40_000, dtype="i4").reshape(200, 200)
N = 3000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "refs.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=DATA, chunks=(32, 32), compression="gzip")
        data.attrs["units"] = "K"
        line = file.create_dataset("line", (N,), dtype=h5py.regionref_dtype)
        some = [data.regionref[i : i + 4, i : i + 6] for i in range(100)]
        line[:] = np.array(some * (N // 100), dtype=h5py.regionref_dtype)
        objects = file.create_dataset("objects", (3,), dtype=h5py.ref_dtype)
        objects[:2] = np.array([data.ref, data.ref], dtype=h5py.ref_dtype)
        data.attrs["region"] = some[5]
        data.attrs["object"] = data.ref
    return path


@pytest.fixture
def ds(path: Path) -> Iterator[xr.Dataset]:
    with xr.open_dataset(path, engine="h5ref") as opened:
        yield opened


def again(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def test_elements_pickle_to_equal_elements(ds: xr.Dataset) -> None:
    for element in (*ds["line"].values[:3], *ds["objects"].values):
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            other = pickle.loads(pickle.dumps(element, protocol))
            assert other == element
            assert hash(other) == hash(element)
            assert bool(other) == bool(element)
    assert copy.deepcopy(ds["line"].values[0]) == ds["line"].values[0]
    np.testing.assert_array_equal(again(ds["line"].values[7]).resolve(), DATA[7:11, 7:13])


def test_reference_arrays_pickle_without_their_values(ds: xr.Dataset) -> None:
    array = ds["line"].data
    assert len(pickle.dumps(array)) < 2000
    assert len(pickle.dumps(array[5:2000:3])) < 2000
    assert array.columns is not None
    assert len(pickle.dumps(array)) < 2000  # a place still, though it was decoded
    assert (again(array[5:2000:3]) == array[5:2000:3]).all()


def test_arrays_pickle_after_loading_and_after_fancy_indexing(ds: xr.Dataset) -> None:
    array = ds["line"].load().data
    for part in (array, array[::-1], array[[5, 3]], array.reshape(30, 100), array[:0]):
        other = again(part)
        assert other.shape == part.shape
        assert np.asarray(other).tolist() == np.asarray(part).tolist()
        if part.size:
            assert other.columns.regions is not None
            assert not other.columns.address.flags.writeable


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "make",
    [
        lambda ds: ds,
        lambda ds: ds.load(),
        lambda ds: ds.chunk(),
        lambda ds: ds["line"].h5ref.resolve(),
        lambda ds: ds["line"].h5ref.resolve(chunks=None),
        lambda ds: ds["line"].h5ref.resolve("ragged"),
        lambda ds: ds["line"].h5ref.resolve("pad").load(),
        lambda ds: ds["line"].h5ref.table(),
        lambda ds: ds["line"].h5ref.mean(),
        lambda ds: ds["line"].h5ref.map(np.median),
        lambda ds: ds["line"].values[3].resolve(),
        lambda ds: ds["objects"].values[0].resolve(chunks={}),
    ],
)
def test_datasets_and_results_pickle(ds: xr.Dataset, make: Callable[[xr.Dataset], Any]) -> None:
    made = make(ds)
    xr.testing.assert_identical(again(made).load(), made.load())
    xr.testing.assert_identical(again(made.load()), made.load())


def test_graphs_are_small_and_hold_no_handles(ds: xr.Dataset) -> None:
    patches = ds["line"].h5ref.resolve(chunks=100)
    graph = dict(patches.data.dask)
    assert len(graph) <= N / 100 + 3
    # The raw bytes of the references alone are 12 * N.
    assert max(len(pickle.dumps(task)) for task in graph.values()) < 1000
    assert len(pickle.dumps(graph)) < 200 * len(graph)


def test_attributes_that_hold_references_pickle(ds: xr.Dataset) -> None:
    attributes = again(ds["data"].attrs)
    assert attributes["region"] == ds["line"].values[5]
    assert attributes["object"] == ds["objects"].values[0]
    np.testing.assert_array_equal(attributes["region"].resolve(), DATA[5:9, 5:11])


@pytest.mark.slow
def test_another_process_resolves_pickled_references(ds: xr.Dataset, tmp_path: Path) -> None:
    out = tmp_path / "values.npy"
    todo = tmp_path / "todo.pickle"
    resolved = ds["line"][:50].h5ref.resolve(chunks=7)
    todo.write_bytes(pickle.dumps((ds["line"].values[9], resolved)))
    code = (
        "import pickle, sys, numpy as np\n"
        "one, many = pickle.load(open(sys.argv[1], 'rb'))\n"
        "assert (one.resolve().values == many[9].values).all()\n"
        "np.save(sys.argv[2], many.values)\n"
    )
    run_python(code, str(todo), str(out), timeout=100).check()
    np.testing.assert_array_equal(np.load(out), resolved.values)
