"""Arrays with references into hundreds of files, and the cache of open files."""

from __future__ import annotations

import os
import pickle
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from forks import in_fork
from strategies import write_references

import xref
from xref.errors import FileReadError
from xref.resolving import bound_references, shuffle
from xref.storage import open_files
from xref.storage.handle_pools import DESCRIPTORS, FILES, LRUPool, Reopenable

N_ROIS = 4


def movie(number: int) -> np.ndarray:
    return np.arange(32 * 32, dtype="i4").reshape(32, 32) + 10_000 * number


def write_file(path: Path, number: int, decoys: int = 0) -> None:
    """Write a movie and region references; datasets before it shift its address."""
    with h5py.File(path, "w") as file:
        for k in range(decoys):
            file[f"decoy{k}"] = np.zeros(8)
        data = file.create_dataset(
            "movie", data=movie(number), chunks=(16, 16), compression="gzip"
        )
        data.attrs["number"] = number
        regions = [data.regionref[k : k + 8, 2 * k : 2 * k + 8] for k in range(N_ROIS)]
        write_references(file, "rois", regions)
        write_references(file, "objects", [data.ref], dtype=h5py.ref_dtype)
        file["t"] = np.arange(N_ROIS) + 100 * number


def read_files(paths: list[Path]) -> np.ndarray:
    """Read all regions of all files with h5py, one by one."""
    out = []
    for path in paths:
        with h5py.File(path) as file:
            out += [file[r][r].reshape(8, 8) for r in file["rois"][...]]
    return np.array(out)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"file{k:03}.h5" for k in range(30)]
    for k, path in enumerate(found):
        write_file(path, k, decoys=k % 3)
    return found


def only_rois(ds: xr.Dataset) -> xr.Dataset:
    roi = ds["rois"].dims[0]
    return ds[["rois", "t"]].rename({roi: "roi"}).set_coords("t")


@pytest.fixture
def open_many() -> Iterator[Callable[..., xr.Dataset]]:
    opened: list[xr.Dataset] = []

    def open_them(paths: list[Path], **options: Any) -> xr.Dataset:
        ds = xr.open_mfdataset(
            paths,
            engine="h5ref",
            combine="nested",
            concat_dim="roi",
            preprocess=only_rois,
            **options,
        )
        opened.append(ds)
        return ds

    yield open_them
    for ds in opened:
        ds.close()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_references_of_many_files_resolve_as_one_array(
    paths: list[Path], open_many: Callable[..., xr.Dataset], parallel: bool, scheduler: str
) -> None:
    expected = read_files(paths)
    with dask.config.set(scheduler=scheduler):
        ds = open_many(paths, parallel=parallel)
        patches = ds["rois"].h5ref.resolve()
        assert patches.dims[0] == "roi"
        np.testing.assert_array_equal(patches, expected)
        np.testing.assert_array_equal(patches.mean("roi"), expected.mean(axis=0))
        np.testing.assert_array_equal(
            patches["t"], np.add.outer(100 * np.arange(30), range(4)).ravel()
        )
        some = ds["rois"].isel(roi=[119, 3, 60, 60])
        np.testing.assert_array_equal(some.h5ref.resolve(), expected[[119, 3, 60, 60]])
        cut = ds["rois"].h5ref.resolve(chunks={"roi": 7})
        np.testing.assert_array_equal(cut, expected)
        np.testing.assert_array_equal(cut.data.sum(axis=0), expected.sum(axis=0))
        np.testing.assert_array_equal(ds["rois"].h5ref.mean(), expected.mean(axis=(1, 2)))


@pytest.mark.slow
def test_the_table_names_each_of_many_files(
    paths: list[Path], open_many: Callable[..., xr.Dataset]
) -> None:
    table = open_many(paths)["rois"].h5ref.table()
    assert table["filename"].values.tolist() == [str(p) for p in paths for _ in range(N_ROIS)]
    assert set(table["path"].values.tolist()) == {"/movie"}
    assert table["start"].values[:N_ROIS].tolist() == [[k, 2 * k] for k in range(N_ROIS)]


def test_equal_addresses_in_two_files_are_two_targets(
    tmp_path: Path, open_many: Callable[..., xr.Dataset]
) -> None:
    """Files of equal structure have their objects at equal addresses."""
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for k, path in enumerate(paths):
        write_file(path, k)
    rois = open_many(paths)["rois"]
    addresses = rois.h5ref.table()["address"].values
    assert len(set(addresses.tolist())) == 1
    assert rois.values[0] != rois.values[N_ROIS]
    np.testing.assert_array_equal(rois.h5ref.resolve(), read_files(paths))


def test_object_references_of_many_files_stack(paths: list[Path]) -> None:
    with xr.open_mfdataset(
        paths,
        engine="h5ref",
        combine="nested",
        concat_dim="file",
        preprocess=lambda ds: ds[["objects"]].rename({ds["objects"].dims[0]: "file"}),
    ) as ds:
        np.testing.assert_array_equal(
            ds["objects"].h5ref.resolve(), np.stack([movie(k) for k in range(30)])
        )


@pytest.mark.slow
def test_the_error_names_the_missing_or_damaged_file(
    paths: list[Path], open_many: Callable[..., xr.Dataset]
) -> None:
    rois = open_many(paths)["rois"]
    patches = rois.h5ref.resolve()
    expected = read_files(paths)
    open_files.close_files()
    moved = paths[17].with_suffix(".away")
    paths[17].rename(moved)
    for part in (patches, patches.mean("roi"), rois.h5ref.resolve(chunks={"roi": 10})):
        with pytest.raises(xref.FileChangedError, match=paths[17].name):
            part.compute()
    np.testing.assert_array_equal(patches[: 17 * N_ROIS], expected[: 17 * N_ROIS])
    with pytest.raises(OSError, match=paths[17].name):
        open_many(paths)
    paths[17].write_bytes(moved.read_bytes()[:3000])
    with pytest.raises(OSError, match=paths[17].name):
        open_many(paths)


@pytest.mark.slow
def test_processes_resolve_references_of_many_files(
    paths: list[Path], open_many: Callable[..., xr.Dataset], process_pool: ProcessPoolExecutor
) -> None:
    ds = open_many(paths, parallel=True)
    patches = pickle.loads(pickle.dumps(ds["rois"])).h5ref.resolve(chunks={"roi": 60})
    expected = read_files(paths)
    with dask.config.set(scheduler="processes", pool=process_pool):
        np.testing.assert_array_equal(patches.sum("roi"), expected.sum(axis=0))
        again = open_many(paths[:4], parallel=True)
        np.testing.assert_array_equal(again["rois"].h5ref.resolve(), expected[:16])


# --- handles ---------------------------------------------------------------------------


def n_descriptors() -> int:
    """Count open descriptors except sockets, which servers of earlier tests may still close."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("the system does not list open files")
    found = 0
    for link in os.scandir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # another thread closed it
            found += not os.readlink(link).startswith("socket:")
    return found


class Peak:
    """Record the largest number of open descriptors, counted whenever a file is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        original = Reopenable._open

        def watch(kept: Any) -> Any:
            value = original(kept)
            self.most = max(self.most, n_descriptors())
            return value

        monkeypatch.setattr(Reopenable, "_open", watch)


@pytest.mark.slow
def test_a_thousand_files_need_fewer_than_64_descriptors(
    tmp_path: Path, open_many: Callable[..., xr.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "0.h5", 0)
    content = (tmp_path / "0.h5").read_bytes()
    many = [tmp_path / f"{k}.h5" for k in range(1000)]  # of one structure
    for path in many[1:]:
        path.write_bytes(content)
    expected = np.tile(read_files(many[:1]), (1000, 1, 1))
    others, peak = n_descriptors(), Peak(monkeypatch)
    with dask.config.set(scheduler="threads", num_workers=8):
        ds = open_many(many, parallel=True)
        rois = ds["rois"]
        patches = rois.h5ref.resolve()
        np.testing.assert_array_equal(patches, expected)
        np.testing.assert_array_equal(patches[::9].data.sum(axis=0), expected[::9].sum(axis=0))
        assert set(rois[::40].h5ref.table()["kind"].values) == {"dataset"}
        assert all(rois.values[::100])
    assert 32 < peak.most - others < 64 - 3  # the standard streams count, too
    assert n_descriptors() - others <= 40
    ds.close()
    del ds, rois, patches
    open_files.close_files()
    assert n_descriptors() == others


@pytest.mark.slow
def test_the_file_cache_respects_file_cache_maxsize_of_xarray(
    paths: list[Path], open_many: Callable[..., xr.Dataset]
) -> None:
    for maxsize, kept in ((16, (3, 1)), (1, (1, 1))):
        with xr.set_options(file_cache_maxsize=maxsize):
            rois = open_many(paths)["rois"]
            np.testing.assert_array_equal(rois.h5ref.resolve(), read_files(paths))
            assert (len(FILES), len(DESCRIPTORS)) == kept


def test_the_most_recently_used_file_stays_open() -> None:
    room, opened = LRUPool(lambda: 2), []
    kept = [
        Reopenable(lambda k=k: opened.append(k) or object(), room, str(k)) for k in range(3)
    ]
    for k in (0, 1, 0, 2, 0):  # 2 makes 1 leave, not 0
        kept[k].get()
    assert opened == [0, 1, 2]
    kept[1].get()
    assert opened == [0, 1, 2, 1]
    kept[1].drop()
    assert len(room) == 1
    room.clear()
    assert len(room) == 0
    first = kept[0].get()
    assert kept[0].get() is first


def test_threads_open_a_file_once() -> None:
    room, opened, gate = LRUPool(lambda: 4), [], threading.Barrier(8)

    def open_it() -> object:
        opened.append(threading.get_ident())
        time.sleep(0.05)  # long enough for the others to ask for it, too
        return object()

    kept = Reopenable(open_it, room, "it")
    found = []

    def get() -> None:
        gate.wait()
        found.append(kept.get())

    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    assert len({id(value) for value in found}) == 1


def test_a_file_in_use_stays_open_after_eviction(paths: list[Path]) -> None:
    """Evicting a file does not close it while it is read."""
    with xr.set_options(file_cache_maxsize=1):
        location = open_files.locate_file(paths[0])
        file = open_files.open_file(location)
        for path in paths[1:4]:
            other = open_files.locate_file(path)
            open_files.open_file(other)
        assert len(FILES) == 1
        np.testing.assert_array_equal(file["movie"][...], movie(0))
        open_files.close_files()
        np.testing.assert_array_equal(file["movie"][...], movie(0))


# --- how much work ------------------------------------------------------------------------


@pytest.mark.slow
def test_work_grows_linearly_with_the_number_of_files(
    paths: list[Path], open_many: Callable[..., xr.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = open_many(paths)["rois"].h5ref.resolve(chunks={"roi": N_ROIS})
    checks, plans = [], []
    for module in (shuffle, bound_references):
        original = module.check_unchanged
        monkeypatch.setattr(
            module, "check_unchanged", lambda at, f=original: checks.append(at) or f(at)
        )
    plan = shuffle._plan_shuffle
    monkeypatch.setattr(shuffle, "_plan_shuffle", lambda *of: plans.append(1) or plan(*of))
    np.testing.assert_array_equal(patches.data.sum(axis=0), read_files(paths).sum(axis=0))
    assert len(plans) == 1
    assert len(paths) <= len(checks) <= 4 * len(paths)


# --- no descriptor left --------------------------------------------------------------------


def limit_descriptors(spare: int) -> None:
    """Limit the process to its open descriptors and a few more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + spare, hard))


@pytest.mark.slow
def test_files_are_closed_when_descriptors_run_out(paths: list[Path]) -> None:
    n_descriptors()
    expected = read_files(paths).tolist()

    def resolve() -> bool:
        limit_descriptors(6)
        rois = [xr.open_dataset(path, engine="h5ref")["rois"] for path in paths]
        found = [r.h5ref.resolve(chunks=None).values for r in rois]
        joined = xr.concat([r.rename({r.dims[0]: "roi"}) for r in rois], "roi")
        again = joined.h5ref.resolve(chunks=None).values
        return np.concatenate(found).tolist() == expected and again.tolist() == expected

    assert in_fork(resolve) == {"result": True}


@pytest.mark.slow
@pytest.mark.parametrize("action", ["open", "resolve", "values", "element", "kinds"])
def test_running_out_of_descriptors_raises_a_helpful_error(
    paths: list[Path], action: str
) -> None:
    n_descriptors()

    def attempt() -> str:
        ds = xr.open_dataset(paths[0], engine="h5ref")
        patches, element = ds["rois"].h5ref.resolve(chunks=None), ds["rois"].values[1]
        actions = {
            "open": lambda: xr.open_dataset(paths[1], engine="h5ref"),
            "resolve": lambda: patches.values,
            "values": lambda: ds["t"].values,
            "element": lambda: element.resolve(chunks=None).values,
            "kinds": lambda: ds["objects"].h5ref.table()["kind"].values,
        }
        open_files.close_files()
        limit_descriptors(2)  # which a file needs, once those that are taken are closed
        taken = []
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        try:
            return f"got {actions[action]()}"
        except FileReadError as error:
            for number in taken:
                os.close(number)
            found = actions[action]()
            return f"{error} | {found is not None}"

    answer = in_fork(attempt)["result"]
    assert "too many files are open" in answer
    assert answer.endswith("| True")


def test_virtual_sources_that_cannot_be_opened_are_not_read_as_fill_values(
    tmp_path: Path,
) -> None:
    """HDF5 gives fill values for source files that it cannot open for want of descriptors."""
    n_descriptors()
    layout = h5py.VirtualLayout((5, 4), "i8")
    for k in range(5):
        with h5py.File(tmp_path / f"source{k}.h5", "w") as file:
            file["d"] = np.arange(4) + 10 * k
        layout[k] = h5py.VirtualSource(f"source{k}.h5", "d", shape=(4,))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("v", layout, fillvalue=-1)
    expected = (np.arange(4) + 10 * np.arange(5)[:, None]).tolist()

    def read() -> list[str]:
        found = []
        ds = xr.open_dataset(tmp_path / "virtual.h5", engine="h5ref", cache=False)
        limit_descriptors(12)
        taken: list[int] = []
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        for _ in range(4):
            try:
                found.append("right" if ds["v"].values.tolist() == expected else "wrong")
            except FileReadError as error:
                found.append(
                    "exhausted" if "too many files are open" in str(error) else "other"
                )
            open_files.close_files()
            for _ in range(3):
                os.close(taken.pop())
        return found

    found = in_fork(read)["result"]
    assert set(found) == {"exhausted", "right"}
    assert found == sorted(found)


@pytest.mark.slow
def test_threads_share_the_descriptor_limit_for_virtual_sources(tmp_path: Path) -> None:
    n_descriptors()
    layout = h5py.VirtualLayout((40, 4), "i8")
    for k in range(40):
        with h5py.File(tmp_path / f"source{k}.h5", "w") as file:
            file["d"] = np.arange(4) + 10 * k
        layout[k] = h5py.VirtualSource(f"source{k}.h5", "d", shape=(4,))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("v", layout, fillvalue=-1)
    expected = (np.arange(4) + 10 * np.arange(40)[:, None]).tolist()

    def read() -> list[bool]:
        limit_descriptors(60)  # for the sources once
        ds = xr.open_dataset(tmp_path / "virtual.h5", engine="h5ref", cache=False)
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda _: ds["v"].values.tolist() == expected, range(8))
            return list(found)

    assert in_fork(read)["result"] == [True] * 8
