"""A failing write raises OSError, keeps the old file and leaves no temporary file.

``benchmarks/write_faults.py`` makes more of them fail.
"""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import h5py
import numpy as np
import pytest
import xarray as xr
from failing_writes import (
    STORED,
    append_from_two,
    check_appended,
    everything,
    numbers,
    run_limited,
    write_old,
)
from forkserver import run_python
from samples import open_h5

import xref
from xref.errors import FileWriteError, XrefError
from xref.writing.checked_file import CheckedFile


class Failing:
    """The module `os` of the writing modules; the n-th call fails, or it and all later ones."""

    CHANGES = ("pwrite", "pwritev", "ftruncate", "fsync", "replace", "link", "open")
    OTHERS = ("preadv", "fchmod", "fchown", "fstat", "stat")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Callable[[], BaseException]):
        self.calls, self.fails_at, self.only_once = 0, sys.maxsize, False
        self._error = error
        for module in ("checked_file", "drafts", "hidden_files", "append_lock"):
            monkeypatch.setattr(f"xref.writing.{module}.os", self)

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        return self._failing(function) if name in self.CHANGES + self.OTHERS else function

    def _failing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.calls += 1
            if self.calls == self.fails_at or (
                self.calls > self.fails_at and not self.only_once
            ):
                raise self._error()
            return function(*arguments, **keywords)

        return call

    def begin(self, fails_at: int, only_once: bool) -> None:
        self.calls, self.fails_at, self.only_once = 0, fails_at, only_once


def no_room() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def quick_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xref.writing.append_lock.READERS_SECONDS", 0.1)
    monkeypatch.setattr("xref.writing.append_lock.APPENDS_SECONDS", 0.1)


WRITES: dict[str, Callable[[Path], tuple[xr.Dataset, dict[str, Any]]]] = {
    "numbers": lambda path: numbers("zlib"),
    "contiguous": lambda path: numbers("plain"),
    "dask": lambda path: (numbers("zlib")[0].chunk(t=20), numbers("fletcher32")[1]),
    "everything": lambda path: (everything(path), {}),
}


@pytest.mark.sampled(53)
@pytest.mark.parametrize("mode", ["w", "a"])
@pytest.mark.parametrize(
    ("what", "only_once"),
    [*itertools.product(WRITES, [True]), ("numbers", False), ("contiguous", False)],
)
def test_a_failing_system_call_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, mode: str, only_once: bool
) -> None:
    """Each call in turn fails: alone, or together with all later calls."""
    path = tmp_path / "file.h5"
    old = write_old(path)
    with dask.config.set(scheduler="synchronous"):
        for number in itertools.count(1):
            ds, encoding = WRITES[what](path)
            with monkeypatch.context() as context:
                failing = Failing(context, no_room)
                failing.begin(number, only_once)
                try:
                    xref.to_hdf5(ds, path, mode=mode, encoding=encoding, on_missing="null")
                except OSError as error:
                    found = error
                else:
                    break  # no call is left to fail
            assert str(path) in str(found)
            assert ".part" not in str(found)
            if path.read_bytes() != old:
                # If all later calls fail, the last step cannot be undone; the error says so.
                assert not only_once
                assert "restored" in str(found)
                path.write_bytes(old)
            assert os.listdir(tmp_path) == ["file.h5"]
    assert number > 15
    with open_h5(path) as back:
        name = "new" if what == "everything" else "v"
        np.testing.assert_array_equal(back[name], ds[name])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["w", "a"])
def test_an_interrupt_at_any_system_call_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    path = tmp_path / "file.h5"
    old = write_old(path)
    ds, encoding = numbers("zlib")
    for number in itertools.count(1, step=3):
        with monkeypatch.context() as context:
            Failing(context, KeyboardInterrupt).begin(number, only_once=True)
            try:
                xref.to_hdf5(ds.chunk(t=20), path, mode=mode, encoding=encoding)
            except KeyboardInterrupt:
                assert path.read_bytes() == old
                assert os.listdir(tmp_path) == ["file.h5"]
            else:
                break
    assert number > 15


class Full:
    """A store that is full."""

    size = 0

    def read_into(self, offset: int, buffer: memoryview) -> int:
        return 0

    def write(self, offset: int, data: memoryview) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def truncate(self, size: int) -> None:
        raise AssertionError("nothing is done after an error")


def test_unwritten_bytes_are_copied_before_hdf5_reuses_its_buffer() -> None:
    stored = CheckedFile(Full(), "f.h5")
    memory = bytearray(b"header")
    stored.seek(2)
    stored.write(memory)
    memory[:] = b"------"
    stored.truncate(8)
    stored.seek(0)
    assert stored.read(8) == b"\0\0header"
    with pytest.raises(FileWriteError, match=r"No space left.*f\.h5"):
        stored.check()


# --- limits of the operating system ------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["w", "a"])
@pytest.mark.parametrize("kind", ["memory", "dask", "everything"])
def test_exceeding_the_file_size_limit_raises_oserror(
    tmp_path: Path, kind: str, mode: str
) -> None:
    path = tmp_path / "file.h5"
    old = write_old(path)
    found = run_limited(tmp_path, kind, mode, "0,700,6000")
    assert {result for _, _, result in found} == {"named"}
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["file.h5"]


@pytest.fixture
def small_room(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 512 KiB."""
    room = tmp_path / "room"
    room.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(room)]
    if (
        os.geteuid() != 0
        or subprocess.run(command, check=False, capture_output=True).returncode
    ):
        pytest.skip("only root mounts file systems")
    yield room
    subprocess.run(["umount", str(room)], check=True)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("mode", ["w", "a"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("how", STORED)
def test_a_full_file_system_raises_oserror(
    small_room: Path, how: str, chunked: bool, mode: str
) -> None:
    path = small_room / "file.h5"
    old = write_old(path)
    values = np.random.default_rng(0).random((2000, 50))
    ds = xr.Dataset({"v": (("t", "y"), values)})
    with pytest.raises(OSError, match=r"No space left.*file\.h5"):
        xref.to_hdf5(
            ds.chunk(t=500) if chunked else ds, path, mode=mode, encoding={"v": STORED[how]}
        )
    assert path.read_bytes() == old
    assert os.listdir(small_room) == ["file.h5"]


def test_a_failing_fsync_raises_oserror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.h5"
    old = write_old(path)

    def fail(number: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    for mode in ("w", "a"):
        for ds in (numbers("zlib")[0], numbers("zlib")[0].chunk(t=20)):
            with pytest.raises(FileWriteError, match=r"Input/output error.*file\.h5") as caught:
                xref.to_hdf5(ds, path, mode=mode)
            assert caught.value.errno == errno.EIO
            assert isinstance(caught.value, XrefError)
            assert path.read_bytes() == old
            assert os.listdir(tmp_path) == ["file.h5"]


@pytest.mark.parametrize("mode", ["w", "a"])
def test_repeating_a_failed_block_raises_or_writes_it_completely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Schedulers repeat failed tasks, though the file that HDF5 had open is damaged."""
    path = tmp_path / "file.h5"
    write_old(path)
    later = xref.to_hdf5(numbers("zlib")[0].chunk(t=20), path, mode=mode, compute=False)
    before = path.read_bytes()
    with monkeypatch.context() as context:
        Failing(context, no_room).begin(8, only_once=True)
        # One by one: no other block is written before the first one fails.
        with pytest.raises(FileWriteError, match=r"No space"):
            later.compute(scheduler="synchronous")
    assert path.read_bytes() == before
    if mode == "w":
        with pytest.raises(FileWriteError, match="failed before; begin again"):
            later.compute()
        assert path.read_bytes() == before
    else:  # each block is whole, or not there
        later.compute()
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file["v"], numbers("zlib")[0]["v"])
    assert os.listdir(tmp_path) == ["file.h5"]


# --- others who have the file ------------------------------------------------------------


@pytest.mark.slow
def test_appends_of_two_processes_exclude_each_other(tmp_path: Path) -> None:
    said = append_from_two(tmp_path, 6)  # the file is made by one of them
    assert len(said) == 12
    assert any(said.values())
    check_appended(tmp_path / "file.h5", said)
    assert os.listdir(tmp_path) == ["file.h5"]


READER = "import h5py, sys; f = h5py.File(sys.argv[1]); print(f['a'][:].sum())"


@pytest.mark.slow
def test_a_reader_between_two_blocks_sees_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    write_old(path)
    sums: list[str] = []

    def look(block: Any) -> Any:
        sums.append(run_python(READER, str(path)).check().stdout.strip())
        return block + 1

    blocks = da.zeros((4, 3), chunks=(2, 3)).map_blocks(
        look, dtype=float, meta=np.zeros((0, 0))
    )
    new = xr.Dataset({"v": (("t", "y"), blocks), "a": ("x", np.arange(10) * 3)})
    xref.to_hdf5(new, path, mode="a")
    assert sums == ["45", "45"]
    with h5py.File(path) as file:
        assert np.unique(file["v"][...]).tolist() == [1]
        assert file["a"][:].sum() == 135


@pytest.mark.slow
def test_appending_to_a_file_that_is_open_elsewhere_raises(
    tmp_path: Path, quick_locks: None
) -> None:
    path = tmp_path / "file.h5"
    old = write_old(path)
    with h5py.File(path), pytest.raises(BlockingIOError, match=r"open elsewhere.*file\.h5"):
        xref.to_hdf5(numbers("plain")[0], path, mode="a")
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["file.h5"]


@pytest.mark.parametrize("how", ["changed", "replaced"])
def test_appending_to_a_file_changed_by_others_raises(tmp_path: Path, how: str) -> None:
    path = tmp_path / "file.h5"
    write_old(path)

    def disturb(block: Any) -> Any:
        if how == "replaced":
            xref.to_hdf5(xr.Dataset({"b": ("z", [1])}), path)
        else:
            path.write_bytes(path.read_bytes() + b"more")
        return block

    blocks = da.zeros(3, chunks=3).map_blocks(disturb, dtype=float, meta=np.zeros(0))
    with pytest.raises(xref.errors.FileChangedError, match="nothing was appended"):
        xref.to_hdf5(xr.Dataset({"v": ("t", blocks)}), path, mode="a")
    with h5py.File(path) as file:
        assert set(file) == ({"b", "z"} if how == "replaced" else {"a", "x"})
    assert os.listdir(tmp_path) == ["file.h5"]


# --- what an append that fails leaves ----------------------------------------------------


def test_growth_and_attributes_of_a_failed_append_are_undone(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    first = xr.Dataset({"v": ("t", [1.0, 2.0])}, {"t": [0, 1]}, {"title": "old"})
    xref.to_hdf5(first, path, unlimited_dims="t")
    old = path.read_bytes()

    def fail(block: Any) -> Any:
        raise ZeroDivisionError

    bad = da.zeros(4, chunks=2).map_blocks(fail, dtype=float, meta=np.zeros(0))
    more = xr.Dataset(
        {"v": ("t", np.arange(4.0), {"units": "m"}), "w": ("t", bad)},
        {"t": np.arange(4)},
        {"title": "new", "more": 1},
    )
    with pytest.raises(ZeroDivisionError):
        xref.to_hdf5(more, path, mode="a")
    assert path.read_bytes() == old
    xref.to_hdf5(more.drop_vars("w"), path, mode="a")
    with open_h5(path) as back:
        assert back["v"].values.tolist() == [0, 1, 2, 3]
        assert (back.attrs["title"], back["v"].attrs["units"]) == ("new", "m")


# --- owner, access rights and links ------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "a"])
def test_temporary_files_of_a_private_file_are_private(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "file.h5"
    write_old(path)
    path.chmod(0o600)
    seen: list[int] = []

    def look(block: Any) -> Any:
        seen.extend(p.stat().st_mode & 0o777 for p in tmp_path.iterdir())
        return block

    blocks = da.zeros(3, chunks=3).map_blocks(look, dtype=float, meta=np.zeros(0))
    xref.to_hdf5(xr.Dataset({"v": ("t", blocks)}), path, mode=mode)
    assert len(seen) >= 2
    assert set(seen) == {0o600}
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_keeps_its_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    write_old(path)
    os.chown(path, 1234, 2345)
    for mode in ("w", "a"):
        xref.to_hdf5(numbers("plain")[0], path, mode=mode)
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


def test_group_rights_are_dropped_where_the_group_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.h5"
    write_old(path)
    path.chmod(0o664)

    def refuse(*arguments: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchown", refuse)
    xref.to_hdf5(numbers("plain")[0], path)
    assert path.stat().st_mode & 0o777 == 0o604


def test_writing_through_symbolic_links_and_to_hard_linked_files(tmp_path: Path) -> None:
    path, hard, soft = (tmp_path / name for name in ("file.h5", "hard.h5", "soft.h5"))
    write_old(path)
    os.link(path, hard)
    soft.symlink_to(path)
    xref.to_hdf5(xr.Dataset({"b": ("y", [1])}), soft, mode="a")
    assert path.stat().st_ino == hard.stat().st_ino
    with h5py.File(hard) as file:
        assert {"a", "b"} <= set(file)
    xref.to_hdf5(xr.Dataset({"c": ("z", [1])}), soft)
    assert soft.is_symlink()
    with h5py.File(path) as new, h5py.File(hard) as kept:
        assert set(new) == {"c", "z"}
        assert {"a", "b"} <= set(kept)


def test_the_error_of_the_first_block_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later blocks find no file; the error of the first block is raised, not theirs."""
    path = tmp_path / "file.h5"
    old = write_old(path)

    def store(arrays: list[Any], places: list[Any], lock: bool) -> None:
        with pytest.raises(ZeroDivisionError), places[0].draft.open():
            raise ZeroDivisionError("the first")
        with places[0].draft.open():
            pytest.fail("its file is not there")

    monkeypatch.setattr("xref.writing.write_hdf5.da.store", store)
    for mode in ("w", "a"):
        with pytest.raises(ZeroDivisionError, match="the first"):
            xref.to_hdf5(numbers("zlib")[0].chunk(t=20), path, mode=mode)
        assert path.read_bytes() == old
        assert os.listdir(tmp_path) == ["file.h5"]
