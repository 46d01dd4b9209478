"""A file that changes after it was opened gives its old values or raises an error.

Each kind of change happens at each moment of a lazy read, for contiguous and chunked
storage, for variables and for resolved references. A read gives all values of the version
that was opened, or an `XrefError`; never new values, nor a mixture.

A write after which the writer set the time of the last write back is noticed with
``strict_version=True`` alone. Changes that leave the data alone are in test_harmless_events.py.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from forkserver import run_python
from strategies import write_references

import xref
from xref.errors import FileChangedError, FileReadError
from xref.objects import StoredObject
from xref.objects.objects import open_dataset
from xref.reading import execute as readers
from xref.storage import sources
from xref.storage.handle_pools import drop_all
from xref.storage.open_files import close_files, locate_file, open_file

SHAPE = (96, 96)
OLD = np.random.default_rng(0).integers(1, 1000, SHAPE, dtype="i4")
NEW = OLD + 1000
STARTS = [(8 * k, 4 * k) for k in range(8)]
STORAGE = {"contiguous": {}, "gzip": {"chunks": (16, 16), "compression": "gzip"}}


def write(path: Path, values: np.ndarray, storage: str, more: int = 0) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=values, **STORAGE[storage])
        write_references(
            file, "rois", [data.regionref[y : y + 16, x : x + 24] for y, x in STARTS]
        )
        if more:
            file["more"] = np.ones(more)
    return path


def expected(what: str) -> np.ndarray:
    if what == "data":
        return OLD
    return np.array([OLD[y : y + 16, x : x + 24] for y, x in STARTS])


def lazy(ds: xr.Dataset, what: str, chunks: Any = None) -> xr.DataArray:
    if what == "data":
        return ds["data"] if chunks is None else ds["data"].chunk({ds["data"].dims[0]: 32})
    return ds["rois"].h5ref.resolve(chunks=chunks)


# --- changes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Contents:
    """The bytes of a file: as opened, with other values, and with more datasets."""

    old: bytes
    new: bytes
    grown: bytes


@pytest.fixture(scope="module", params=list(STORAGE))
def contents(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Contents:
    return make_contents(tmp_path_factory.mktemp("contents") / "file.h5", request.param)


def make_contents(path: Path, storage: str) -> Contents:
    return Contents(
        write(path, OLD, storage).read_bytes(),
        write(path, NEW, storage).read_bytes(),
        write(path, NEW, storage, more=3000).read_bytes(),
    )


def overwrite(path: Path, content: bytes) -> None:
    """Replace the content of a file in place."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate(len(content))


def renamed_over(path: Path, contents: Contents) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(contents.new)
    other.replace(path)


def rewritten(path: Path, contents: Contents) -> None:
    overwrite(path, contents.new)


def truncated(path: Path, contents: Contents) -> None:
    os.truncate(path, len(contents.old) // 3)


def grown(path: Path, contents: Contents) -> None:
    overwrite(path, contents.grown)


def deleted(path: Path, contents: Contents) -> None:
    del contents
    path.unlink()


def written_anew(path: Path, contents: Contents) -> None:
    """Truncate the file and write it again, as ``open(path, "wb")`` does."""
    path.write_bytes(contents.new)


def written_by_h5py(path: Path, contents: Contents) -> None:
    del contents
    with opened_alone(path) as file:
        file["data"][...] = NEW


def appended(path: Path, contents: Contents) -> None:
    """Add a dataset, which moves the end of the file and the metadata of the root group."""
    del contents
    with opened_alone(path) as file:
        file["data"][...] = NEW
        file["more"] = np.ones(1000)


def mapped(path: Path, contents: Contents) -> None:
    """Write through a memory map."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        n = min(len(contents.new), len(memory))
        memory[:n] = contents.new[:n]
        memory.flush()


def opened_alone(path: Path) -> h5py.File:
    """Open a file for writing in HDF5, as another process would, without its lock."""
    fapl = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    # The driver "core" keeps a state of its own, also if "sec2" has the file open.
    fapl.set_fapl_core(1 << 16, True)
    fapl.set_file_locking(False, True)
    return h5py.File(h5py.h5f.open(bytes(path), h5py.h5f.ACC_RDWR, fapl))


def patched(path: Path, contents: Contents) -> None:
    """Change the middle of the file and restore its modification time."""
    status, n = path.stat(), len(contents.new)
    with path.open("r+b") as file:
        file.seek(n // 4)
        file.write(contents.new[n // 4 : n // 4 * 3])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CASES = [(what, reader) for what in ("data", "rois") for reader in ("auto", "h5py")]

CHANGES = {
    f.__name__: f
    for f in (
        renamed_over,
        rewritten,
        truncated,
        grown,
        deleted,
        patched,
        written_anew,
        written_by_h5py,
        appended,
        mapped,
    )
}


def noticing(change: str) -> xref.set_options:
    """Return the option with which a change is noticed."""
    return xref.set_options(strict_version=change == "patched")


def outcome(read: Callable[[], Any], what: str) -> str:
    """Return "raised" or "old"; fail on any other values."""
    try:
        values = read()
    except xref.XrefError:
        return "raised"
    np.testing.assert_array_equal(values, expected(what))
    return "old"


# --- moments -----------------------------------------------------------------------------


@pytest.mark.sampled(5)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moment", ["open", "evicted", "pickled", "graph"])
def test_a_changed_file_raises_or_gives_the_values_at_open(
    tmp_path: Path, contents: Contents, moment: str, change: str
) -> None:
    for what, reader in CASES:
        path = tmp_path / f"{what}-{reader}.h5"
        path.write_bytes(contents.old)
        with noticing(change), xr.open_dataset(path, engine="h5ref", reader=reader) as ds:
            made = lazy(ds, what, "auto") if moment == "graph" else None
            text = pickle.dumps(ds) if moment == "pickled" else b""
            if moment in ("evicted", "pickled"):
                close_files()
            CHANGES[change](path, contents)
            if moment == "pickled":
                ds = pickle.loads(text)

            def read(ds: xr.Dataset = ds, what: str = what, made: Any = made) -> Any:
                array = lazy(ds, what) if made is None else made
                return array.compute(scheduler="synchronous").values

            # While its descriptor is open, a file without a path is read on.
            is_held = change in ("renamed_over", "deleted") and moment in ("open", "graph")
            assert outcome(read, what) == ("old" if is_held else "raised")
            drop_all()
            assert outcome(read, what) == "raised"


@pytest.mark.slow
def test_another_process_raises_for_a_file_that_changed(tmp_path: Path) -> None:
    cases = {}
    for storage in STORAGE:
        contents = make_contents(tmp_path / "contents.h5", storage)
        for name, change in CHANGES.items():
            path = tmp_path / f"{storage}-{name}.h5"
            path.write_bytes(contents.old)
            with noticing(name), xr.open_dataset(path, engine="h5ref") as ds:
                both = ds["data"], lazy(ds, "rois", "auto")
                cases[f"{storage}-{name}"] = pickle.dumps(both).hex()
            change(path, contents)
    same = write(tmp_path / "same.h5", OLD, "gzip")
    with xr.open_dataset(same, engine="h5ref") as ds:
        cases["same"] = pickle.dumps((ds["data"], lazy(ds, "rois", "auto"))).hex()
    code = (
        "import json, pickle, sys, xref\n"
        "def read(array):\n"
        "    try:\n"
        "        return array.compute(scheduler='synchronous').values.tolist()\n"
        "    except xref.XrefError as error:\n"
        "        return type(error).__name__\n"
        "cases = json.load(sys.stdin)\n"
        "found = {k: [read(a) for a in pickle.loads(bytes.fromhex(v))]\n"
        "         for k, v in cases.items()}\n"
        "json.dump(found, sys.stdout)\n"
    )
    answer = run_python(code, text=json.dumps(cases), timeout=120).check()
    found = json.loads(answer.stdout)
    assert found.pop("same") == [OLD.tolist(), expected("rois").tolist()]
    assert len(found) == 2 * len(CHANGES)
    assert all(v == ["FileChangedError"] * 2 for v in found.values()), found


# --- in the middle of a read ----------------------------------------------------------------


class Interrupted:
    """Call a function once, before or after the n-th positional read or read of h5py."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, at: int, after: bool, act: Callable[[], None]
    ) -> None:
        self.calls = 0
        self._at, self._after, self._act = at, after, act
        self._wrap(monkeypatch, os, "preadv")
        self._wrap(monkeypatch, xref.reading.loaders, "read_values")

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any) -> Any:
            self.calls += 1
            mine = self.calls == self._at
            if mine and not self._after:
                self._act()
            result = original(*args)
            if mine and self._after:
                self._act()
            return result

        monkeypatch.setattr(owner, name, call)


@pytest.mark.sampled(11)
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_during_a_read_gives_no_mixed_values(
    tmp_path: Path, contents: Contents, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "READ_NBYTES", 4096)  # several reads, as of a large file

    def read_while(what: str, reader: str, at: int, after: bool) -> tuple[str, int]:
        """Change a new file at a read; return the outcome and how many reads there were."""
        path = tmp_path / f"{what}-{reader}-{at}-{after}.h5"
        path.write_bytes(contents.old)

        def compute() -> Any:
            with xref.set_options(threads=1):
                return lazy(ds, what, "auto").compute(scheduler="synchronous").values

        with (
            monkeypatch.context() as patch,
            noticing(change),
            xr.open_dataset(path, engine="h5ref", reader=reader) as ds,
        ):
            torn = Interrupted(patch, at, after, lambda: CHANGES[change](path, contents))
            return outcome(compute, what), torn.calls

    for what, reader in CASES:
        unchanged, n_reads = read_while(what, reader, -1, after=False)
        assert unchanged == "old"
        assert n_reads >= (2 if reader == "auto" else 1)
        for at in range(max(n_reads - 1, 1), n_reads + 1):
            for after in (False, True):
                found, reads = read_while(what, reader, at, after)
                assert reads >= at
                if change in ("renamed_over", "deleted"):
                    assert found == "old"
                elif change != "truncated":  # an error, or an answer before the change
                    assert found == "raised"


# --- writers ------------------------------------------------------------------------------


WRITER = """
import sys
import h5py
path, swmr, locking = sys.argv[1], sys.argv[2] == "swmr", sys.argv[3] == "locking"
with h5py.File(path, "r+", libver="latest", locking=locking) as file:
    if swmr:
        file.swmr_mode = True
    print("open", flush=True)
    for line in sys.stdin:
        file["data"][...] = int(line)
        file.flush()
        print("written", flush=True)
"""


@pytest.fixture
def start_writer(tmp_path: Path) -> Iterator[Callable[..., Callable[[int], None]]]:
    """Start a process that opens a file for writing; return a function that makes it write."""
    processes = []

    def start(path: Path, *options: str) -> Callable[[int], None]:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "open\n"

        def write_value(value: int) -> None:
            process.stdin.write(f"{value}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "written\n"

        return write_value

    yield start
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0


def make_latest(path: Path) -> Path:
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("data", data=OLD, chunks=(16, 16), maxshape=(None, 96))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["swmr", "alone"])
@pytest.mark.parametrize("locking", ["locking", "unlocked"])
def test_a_file_that_another_process_writes_is_refused(
    tmp_path: Path, start_writer: Callable[..., Any], mode: str, locking: str
) -> None:
    path = make_latest(tmp_path / "written.h5")
    start_writer(path, mode, locking)
    with pytest.raises(FileReadError, match=r"written\.h5: .*a writer has it open: .*swmr"):
        xr.open_dataset(path, engine="h5ref")
    if mode == "alone":
        with pytest.raises(FileReadError, match=r"written\.h5: HDF5 cannot open it"):
            xr.open_dataset(path, engine="h5ref", driver_kwds={"swmr": True})


def test_a_file_of_a_swmr_writer_is_read_through_hdf5(
    tmp_path: Path, start_writer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_latest(tmp_path / "written.h5")
    write_value = start_writer(path, "swmr", "locking")
    options = {"engine": "h5ref", "driver_kwds": {"swmr": True}, "cache": False}
    with xr.open_dataset(path, **options) as ds:
        offsets: list[int] = []
        read = os.preadv
        monkeypatch.setattr(
            os, "preadv", lambda n, b, offset: offsets.append(offset) or read(n, b, offset)
        )
        np.testing.assert_array_equal(ds["data"], OLD)
        write_value(7)
        values = ds["data"].values
        assert ((values == 7) | (values == OLD)).all()
    with xr.open_dataset(path, **options) as ds:
        assert (ds["data"] == 7).all()
    with h5py.File(path, swmr=True) as file:
        first = file["data"].id.get_chunk_info(0).byte_offset
    assert not any(offset >= first for offset in offsets)


@pytest.mark.parametrize("reader", ["auto", "h5py"])
def test_a_writer_that_starts_after_open_is_detected(
    tmp_path: Path, start_writer: Callable[..., Any], reader: str
) -> None:
    path = make_latest(tmp_path / "written.h5")
    with xr.open_dataset(path, engine="h5ref", reader=reader, cache=False) as ds:
        np.testing.assert_array_equal(ds["data"], OLD)
        close_files()  # else HDF5 refuses the writer
        write_value = start_writer(path, "alone", "locking")
        for value in (5, 6):
            with pytest.raises(xref.XrefError, match=r"written\.h5"):
                ds["data"].load()
            write_value(value)


@pytest.mark.parametrize("reader", ["auto", "h5py"])
@pytest.mark.parametrize("storage", STORAGE)
def test_a_file_that_this_process_writes_is_read_through_hdf5(
    tmp_path: Path, reader: str, storage: str
) -> None:
    path = write(tmp_path / "shared.h5", OLD, storage)
    with h5py.File(path, "r+") as writer:
        ds = xr.open_dataset(path, engine="h5ref", reader=reader, cache=False)
        np.testing.assert_array_equal(ds["data"], OLD)
        writer["data"][...] = NEW  # not flushed
        np.testing.assert_array_equal(ds["data"], NEW)
        rois = ds["rois"].h5ref.resolve()
        writer["data"][...] = OLD
        np.testing.assert_array_equal(rois, expected("rois"))
        again = pickle.loads(pickle.dumps(ds))
        with pytest.raises(xref.FileChangedError, match=r"shared\.h5"):
            again["data"].load()
        writer.flush()
        unchanged = pickle.loads(pickle.dumps(xr.open_dataset(path, engine="h5ref")))
        with pytest.raises(xref.FileChangedError, match="for writing in this process"):
            unchanged["data"].load()
        ds.close()
    h5py.File(path, "r+").close()  # nobody has it open any more


@pytest.mark.parametrize("reader", ["auto", "h5py"])
@pytest.mark.parametrize("storage", STORAGE)
def test_a_writer_of_this_process_that_starts_after_open_is_detected(
    tmp_path: Path, reader: str, storage: str
) -> None:
    path = write(tmp_path / "shared.h5", OLD, storage)
    with xr.open_dataset(path, engine="h5ref", reader=reader, cache=False) as ds:
        rois = ds["rois"].h5ref.resolve()
        close_files()
        with h5py.File(path, "r+") as writer:
            writer["data"][...] = NEW
            assert outcome(ds["data"].copy().load, "data") in ("raised", "old")
            assert outcome(rois.compute, "rois") in ("raised", "old")
            writer.flush()
            assert outcome(ds["data"].copy().load, "data") == "raised"
        assert outcome(rois.compute, "rois") == "raised"


@pytest.mark.parametrize("reader", ["auto", "h5py"])
def test_a_replaced_file_is_reopened_while_an_error_keeps_the_old_one_open(
    tmp_path: Path, reader: str
) -> None:
    """HDF5 shares one state of a file among all that have it open."""
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("d", data=np.full(2000, 1), chunks=(100,)).attrs["version"] = 1
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file.create_dataset("d", data=np.full(2000, 2), chunks=(100,)).attrs["version"] = 2
    ds = xr.open_dataset(path, engine="h5ref", reader=reader, cache=False)
    assert (ds["d"][:300] == 1).all()
    location = locate_file(path)
    address = int(h5py.h5o.get_info(open_file(location)["d"].id).addr)
    held = open_dataset(StoredObject(location, address))  # as frames of an error hold it
    close_files()
    overwrite(path, other.read_bytes())
    with pytest.raises(FileChangedError):
        ds["d"].load()
    with xr.open_dataset(path, engine="h5ref", reader=reader) as again:
        assert again["d"].attrs["version"] == 2
        assert (again["d"] == 2).all()
    assert not held  # closed


def test_a_different_device_number_on_another_machine_is_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "file.h5", OLD, "gzip")
    with xr.open_dataset(path, engine="h5ref") as ds:
        content = pickle.dumps(ds["rois"].h5ref.resolve())
        expected = ds["rois"].h5ref.resolve().values
    close_files()
    identity = sources._identity

    def elsewhere(status: os.stat_result) -> Any:
        device, *rest = identity(status)
        return device + 7, *rest

    monkeypatch.setattr(sources, "_identity", elsewhere)
    np.testing.assert_array_equal(pickle.loads(content), expected)
    path.touch()
    with pytest.raises(FileChangedError):
        pickle.loads(content).compute()
