"""Files opened with `chunks`, as many files at once, by threads, and beside a writer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

VALUES = np.arange(600.0).reshape(20, 30)
CHUNKS = [None, {}, "auto", -1, {"x": 2}]


def fill(file: h5py.File) -> None:
    file["x"] = np.arange(4)
    file["x"].make_scale()
    file["numbers"] = np.arange(4.0)
    file["text"] = ["a", "bb", "", "ünï"]
    sequences = file.create_dataset("sequences", (4,), h5py.vlen_dtype("i4"))
    for i in range(4):
        sequences[i] = np.arange(i)
    pairs = np.zeros(4, dtype=[("name", h5py.string_dtype()), ("n", ">i4")])
    pairs["n"] = np.arange(4)
    pairs["name"] = ["p", "q", "r", ""]
    file["pairs"] = pairs
    file.create_dataset("references", (4,), h5py.ref_dtype)[1] = file["numbers"].ref
    for name in ("numbers", "text", "sequences", "pairs", "references"):
        file[name].dims[0].attach_scale(file["x"])
    file["numbers"].attrs["coordinates"] = "sequences text pairs"
    file["none"] = np.zeros((0, 3))
    file["no text"] = np.zeros(0, dtype=h5py.string_dtype())
    file["scalar"] = 5
    file["scalar text"] = "ünï"
    file.create_dataset("scalar reference", data=file["numbers"].ref, dtype=h5py.ref_dtype)


def assert_filled(ds: xr.Dataset) -> None:
    assert set(ds.coords) == {"x", "sequences", "text", "pairs"}
    assert ds["numbers"].values.tolist() == [0, 1, 2, 3]
    assert ds["text"].values.tolist() == ["a", "bb", "", "ünï"]
    assert ds["sequences"].dtype == object
    assert [s.tolist() for s in ds["sequences"].values] == [[], [0], [0, 1], [0, 1, 2]]
    assert ds["pairs"].values["n"].tolist() == [0, 1, 2, 3]
    assert ds["pairs"].values["name"].tolist()[3] in (b"", "")
    assert ds["references"].values[1].resolve().values.tolist() == [0, 1, 2, 3]
    assert ds["references"].astype(bool).values.tolist() == [False, True, False, False]
    assert ds["none"].values.shape == (0, 3)
    assert ds["no text"].values.shape == (0,)
    assert ds["scalar"].values == 5
    assert ds["scalar text"].values == "ünï"
    assert ds["scalar reference"].values.item().resolve().shape == (4,)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("cache", [True, False])
def test_every_kind_of_variable_opens_with_any_chunks(
    make: Callable[..., Path], chunks: Any, cache: bool
) -> None:
    path = make(fill)
    with xr.open_dataset(path, engine="h5ref", chunks=chunks, cache=cache) as ds:
        assert (ds["numbers"].chunks is None) == (chunks is None)
        assert_filled(ds)
        assert str(ds)
        assert_filled(ds.compute())
        part = ds.isel(x=slice(1, 3))
        assert [s.tolist() for s in part["sequences"].values] == [[0], [0, 1]]
        assert part["references"].values[0]


@pytest.mark.slow
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_trees_and_groups_open_with_any_chunks(make: Callable[..., Path], chunks: Any) -> None:
    path = make(lambda file: fill(file) or fill(file.create_group("below")))
    with xr.open_datatree(path, engine="h5ref", chunks=chunks) as tree:
        assert_filled(tree["below"].to_dataset())
    groups = xr.open_groups(path, engine="h5ref", chunks=chunks)
    assert list(groups) == ["/", "/below"]
    for ds in groups.values():
        assert_filled(ds)
        ds.close()


def test_load_dataset_closes_the_file_so_that_it_can_be_written(
    make: Callable[..., Path],
) -> None:
    path = make(fill)
    ds = xr.load_dataset(path, engine="h5ref", drop_variables=["references"])
    with h5py.File(path, "r+") as file:
        file["numbers"][...] = -1
    assert ds["numbers"].values.tolist() == [0, 1, 2, 3]


def test_load_async_gives_the_same_values(make: Callable[..., Path]) -> None:
    with xr.open_dataset(make(fill), engine="h5ref", cache=False) as ds:
        loaded = asyncio.run(ds[["numbers", "text", "sequences"]].load_async())
        assert loaded["numbers"].values.tolist() == [0, 1, 2, 3]
        assert loaded["sequences"].values[2].tolist() == [0, 1]


def part(path: Path, i: int) -> Path:
    with h5py.File(path / f"part{i}.h5", "w") as file:
        file["x"] = np.arange(3) + 3 * i
        file["x"].make_scale()
        data = file.create_dataset("data", data=np.arange(3.0) + 3 * i)
        refs = file.create_dataset("refs", (3,), h5py.regionref_dtype)
        for k in range(3):
            refs[k] = data.regionref[k : k + 1]
        for name in ("data", "refs"):
            file[name].dims[0].attach_scale(file["x"])
    return path / f"part{i}.h5"


@pytest.mark.parametrize("parallel", [False, True])
def test_many_files_open_as_one(tmp_path: Path, parallel: bool) -> None:
    paths = [part(tmp_path, i) for i in range(4)]
    ds = xr.open_mfdataset(paths, engine="h5ref", parallel=parallel)
    with ds:
        assert ds["data"].values.tolist() == list(range(12))
        patches = ds["refs"].h5ref.resolve(coords=False)
        assert patches.values.reshape(-1).tolist() == list(range(12))
    del ds, patches
    for path in paths:
        h5py.File(path, "w").close()


@pytest.mark.slow
def test_threads_read_while_others_open_and_close(tmp_path: Path) -> None:
    """Threads open and close files while other threads read the same or other files."""
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"{i}.h5")
        with h5py.File(paths[-1], "w") as file:
            data = file.create_dataset("data", data=VALUES + i, chunks=(5, 5), compression=1)
            file.create_dataset("ref", data=data.regionref[2:4], dtype=h5py.regionref_dtype)
    stop = threading.Event()

    def read(i: int, reader: str) -> int:
        done = 0
        with xr.open_dataset(paths[i], engine="h5ref", reader=reader, cache=False) as ds:
            while not stop.is_set() or not done:
                np.testing.assert_array_equal(ds["data"].values, VALUES + i)
                values = ds["ref"].values.item().resolve().values
                np.testing.assert_array_equal(values, VALUES[2:4] + i)
                done += 1
        return done

    def open_and_close(i: int) -> int:
        for k in range(30):
            with xr.open_dataset(paths[(i + k) % 3], engine="h5ref", cache=False) as ds:
                assert ds["data"].values[0, 0] == (i + k) % 3
        return 1

    def write(i: int) -> int:
        for k in range(30):
            path = tmp_path / f"new{i}.h5"
            with h5py.File(path, "w") as file:
                file["data"] = np.full(10, k)
            with xr.open_dataset(path, engine="h5ref") as ds:
                assert (ds["data"].values == k).all()
        return 1

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(read, i % 3, ("direct", "h5py")[i % 2]) for i in range(4)]
        others = [pool.submit(open_and_close, i) for i in range(2)]
        others += [pool.submit(write, i) for i in range(2)]
        try:
            assert all(other.result() for other in others)
        finally:
            stop.set()
        assert all(reader.result() for reader in readers)


WRITER = """
import sys, h5py
with h5py.File(sys.argv[1], "w", libver="latest") as file:
    data = file.create_dataset("data", (2,), "i8", maxshape=(None,), chunks=(4,))
    data[...] = [0, 1]
    file.swmr_mode = True
    print("ready", flush=True)
    for line in sys.stdin:
        n = int(line)
        data.resize((n,))
        data[...] = range(n)
        data.flush()
        print("written", flush=True)
"""


def test_a_file_is_read_while_another_process_appends(tmp_path: Path) -> None:
    path = tmp_path / "live.h5"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "ready\n"
        options = {"engine": "h5ref", "cache": False, "driver_kwds": {"swmr": True}}
        for n in (3, 50, 1000):
            writer.stdin.write(f"{n}\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == "written\n"
            with xr.open_dataset(path, **options) as ds:
                assert ds["data"].values.tolist() == list(range(n))
        writer.stdin.close()
    assert writer.returncode == 0
