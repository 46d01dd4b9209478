"""A failing read gives the right values or an error, leaks nothing, and the next read works."""

from __future__ import annotations

import errno
import io
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
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
from xref.reading import execute as readers
from xref.reading import worker_threads
from xref.storage.open_files import close_files

SHAPE = (96, 96)
DATA = np.random.default_rng(0).integers(1, 1000, SHAPE, dtype="i4")
STARTS = [(8 * k, 4 * k) for k in range(8)]
REGIONS = np.array([DATA[y : y + 16, x : x + 24] for y, x in STARTS])


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("faults") / "file.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=DATA, chunks=(16, 16), compression="gzip")
        file["plain"] = DATA
        for name, item in (("rois", data), ("plain_rois", file["plain"])):
            regions = [item.regionref[y : y + 16, x : x + 24] for y, x in STARTS]
            write_references(file, name, regions)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "file.h5").write_bytes(content)
    return tmp_path / "file.h5"


@pytest.fixture(autouse=True)
def many_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a small file take many reads, as a large one does.

    Dask's own threads would go on with what they had begun when a block failed.
    """
    monkeypatch.setattr(readers, "READ_NBYTES", 4096)
    with dask.config.set(scheduler="synchronous"):
        yield


READS: dict[str, tuple[Callable[[xr.Dataset], Any], np.ndarray]] = {
    "data": (lambda ds: ds["data"].copy().values, DATA),
    "plain": (lambda ds: ds["plain"].copy().values, DATA),
    "rois": (lambda ds: ds["rois"].h5ref.resolve(chunks=None).values, REGIONS),
    "plain_rois": (lambda ds: ds["plain_rois"].h5ref.resolve(chunks=None).values, REGIONS),
    "blocks": (lambda ds: ds["rois"].h5ref.resolve(chunks={"phony_dim_1": 2}).values, REGIONS),
    "sums": (
        lambda ds: ds["rois"].h5ref.resolve(chunks={"phony_dim_1": 2}).data.sum(0).compute(),
        REGIONS.sum(0),
    ),
}


class Faulty:
    """Replace positional reads; the n-th read fails, or the n-th and all later ones."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, fault: Any, at: int, once: bool
    ) -> None:
        self.calls = 0
        self._fault, self._at, self._once = fault, at, once
        self._lock = threading.Lock()
        self._original = os.preadv
        monkeypatch.setattr(os, "preadv", self)

    def __call__(self, number: int, buffers: Any, offset: int) -> int:
        with self._lock:
            self.calls += 1
            wrong = self.calls == self._at or (not self._once and self.calls > self._at)
        if not wrong:
            return self._original(number, buffers, offset)
        return self._fault(lambda n: self._original(number, [buffers[0][:n]], offset), buffers)


def failing(code: int) -> Callable[..., int]:
    def fault(read: Any, buffers: Any) -> int:
        raise OSError(code, os.strerror(code))

    return fault


def short(read: Any, buffers: Any) -> int:
    return read(max(len(buffers[0]) // 3, 1))


def empty(read: Any, buffers: Any) -> int:
    return 0


def no_memory(read: Any, buffers: Any) -> int:
    raise MemoryError


FAULTS = {
    "EIO": failing(errno.EIO),
    "ESTALE": failing(errno.ESTALE),
    "EINTR": failing(errno.EINTR),
    "ENOMEM": failing(errno.ENOMEM),
    "MemoryError": no_memory,
    "short": short,
    "empty": empty,
}


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else set()


@pytest.mark.sampled(11)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("read", READS)
def test_a_failing_read_is_retried_or_raises(
    path: Path, read: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    action, expected = READS[read]
    with xr.open_dataset(path, engine="h5ref") as ds, xref.set_options(threads=3):
        np.testing.assert_array_equal(action(ds), expected)
        before = descriptors()
        with monkeypatch.context() as patch:
            n_reads = Faulty(patch, FAULTS[fault], -1, once=True)
            action(ds)
        assert n_reads.calls >= (4 if "plain" not in read else 1)
        middle = max(n_reads.calls // 2, 1)
        for at, once in ((1, True), (middle, True), (n_reads.calls, True), (1, False)):
            with monkeypatch.context() as patch:
                faulty = Faulty(patch, FAULTS[fault], at, once)
                if fault == "short":
                    np.testing.assert_array_equal(action(ds), expected)
                else:
                    kind = MemoryError if fault == "MemoryError" else FileReadError
                    with pytest.raises(kind):
                        action(ds)
                    assert not busy()
                    calls = faulty.calls
                    time.sleep(0 if once else 0.02)
                    assert faulty.calls == calls  # no thread goes on
            np.testing.assert_array_equal(action(ds), expected)
        assert descriptors() == before


def busy() -> bool:
    """Tell whether threads that read have anything left to do."""
    return any(pool._work_queue.qsize() for pool in worker_threads._pools.values())


@pytest.mark.parametrize("fault", ["EIO", "short", "empty"])
def test_opening_a_file_whose_reads_fail_raises(
    path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        counted = Faulty(patch, FAULTS[fault], -1, once=True)
        xr.open_dataset(path, engine="h5ref").close()
    before = descriptors()
    for at in range(1, counted.calls + 1):
        with monkeypatch.context() as patch:
            Faulty(patch, FAULTS[fault], at, once=True)
            if fault == "short":
                with xr.open_dataset(path, engine="h5ref") as ds:
                    np.testing.assert_array_equal(ds["data"], DATA)
            else:
                with pytest.raises((xref.XrefError, OSError)):
                    xr.open_dataset(path, engine="h5ref")
    close_files()
    assert descriptors() == before


# --- file objects ---------------------------------------------------------------------------


class FaultyObject(io.BytesIO):
    """A file object whose reads may fail or return fewer bytes than requested."""

    wrong: Callable[[int], int | None] = staticmethod(lambda number: None)
    calls = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.calls += 1
        most = self.wrong(self.calls)
        if most is None or size is None or size < 0:
            return super().read(size)
        if most < 0:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(min(size, most))


@pytest.mark.parametrize("reader", ["auto", "h5py"])
@pytest.mark.parametrize("read", ["data", "plain", "rois", "plain_rois"])
def test_short_reads_of_a_file_object_are_continued(
    content: bytes, read: str, reader: str
) -> None:
    action, expected = READS[read]
    file = FaultyObject(content)
    file.wrong = lambda number: 100
    with xr.open_dataset(file, engine="h5ref", reader=reader) as ds:
        np.testing.assert_array_equal(action(ds), expected)


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["auto", "h5py"])
@pytest.mark.parametrize("most", [-1, 0], ids=["error", "nothing"])
def test_a_failing_file_object_raises(content: bytes, reader: str, most: int) -> None:
    for read in ("data", "plain", "rois", "plain_rois"):
        action, expected = READS[read]
        file = FaultyObject(content)
        with xr.open_dataset(file, engine="h5ref", reader=reader) as ds:
            begin = file.calls
            np.testing.assert_array_equal(action(ds), expected)
            end = file.calls
        for at in {begin + 1, (begin + 1 + end) // 2, end}:
            file = FaultyObject(content)
            file.wrong = lambda number, at=at: most if number == at else None
            with xr.open_dataset(file, engine="h5ref", reader=reader) as ds:
                try:
                    values = action(ds)
                except (xref.XrefError, OSError):
                    pass
                else:
                    np.testing.assert_array_equal(values, expected)
                np.testing.assert_array_equal(action(ds), expected)


# --- memory ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_without_memory_raises_or_gives_right_values(tmp_path: Path) -> None:
    path = tmp_path / "large.h5"
    values = np.arange(1 << 23, dtype="i8").reshape(2048, 4096)  # 64 MiB
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=values, chunks=(256, 256), compression=1)
        regions = [data.regionref[k * 128 : k * 128 + 128] for k in range(16)]
        write_references(file, "rois", regions)

    def attempt() -> list[str]:
        found = []
        ds = xr.open_dataset(path, engine="h5ref")
        # The first read starts the reading threads. Python would wait for ever for a thread
        # that fails to start for want of memory.
        assert np.array_equal(ds["data"].copy().values, values)
        for what in ("data", "rois"):
            for spare in (1 << 20, 1 << 24, 1 << 26, 5 << 24, 1 << 28):
                nbytes = int(Path("/proc/self/statm").read_text().split()[0])
                nbytes *= resource.getpagesize()
                hard = resource.getrlimit(resource.RLIMIT_AS)[1]
                resource.setrlimit(resource.RLIMIT_AS, (nbytes + spare, hard))
                result = None
                try:
                    if what == "data":
                        result = ds["data"].copy().values
                    else:
                        result = ds["rois"].h5ref.resolve(chunks=None).values
                    found.append("read")
                except MemoryError:
                    found.append("MemoryError")
                except (xref.XrefError, RuntimeError, OSError) as error:
                    found.append(type(error).__name__)
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
                if result is not None and not np.array_equal(
                    result.reshape(2048, 4096), values
                ):
                    found.append("wrong")
            result = None
            assert np.array_equal(ds["data"].copy().values, values)
        return found

    if not Path("/proc/self/statm").exists():
        pytest.skip("the system does not tell how much memory is used")
    found = in_fork(attempt)
    assert "result" in found, found
    assert "MemoryError" in found["result"]
    assert found["result"].count("read") >= 2
    assert set(found["result"]) <= {"read", "MemoryError"}, found
