"""Events that leave the data of an open file alone stop no job.

Permissions, owners, times of access, links, names and copies change the inode or the folder of
a file, not its bytes. Each event happens at each moment of a lazy read; the read gives the
values of the file. A file that was moved or deleted is read on while this process has it open;
another process looks for it at its path, and says that it is not there.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
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
from xref.reading import execute as readers
from xref.storage import handle_pools
from xref.storage.handle_pools import drop_all
from xref.storage.open_files import locate_file, open_file

SHAPE = (96, 96)
DATA = np.random.default_rng(0).integers(1, 1000, SHAPE, dtype="i4")
STARTS = [(8 * k, 4 * k) for k in range(8)]
ROIS = np.array([DATA[y : y + 16, x : x + 24] for y, x in STARTS])


def write(path: Path, values: np.ndarray) -> Path:
    path.write_bytes(content(int(values[0, 0] - DATA[0, 0])))
    return path


@cache
def content(added: int) -> bytes:
    """Return a file of `DATA` and a number."""
    values, buffer = DATA + added, io.BytesIO()
    with h5py.File(buffer, "w") as file:
        data = file.create_dataset("data", data=values, chunks=(16, 16), compression="gzip")
        file["plain"] = values
        write_references(
            file, "rois", [data.regionref[y : y + 16, x : x + 24] for y, x in STARTS]
        )
    return buffer.getvalue()


@dataclass(frozen=True)
class Place:
    """A file in a folder, and a path to it through a symbolic link."""

    home: Path

    @property
    def folder(self) -> Path:
        return self.home / "folder"

    @property
    def path(self) -> Path:
        return self.folder / "file.h5"

    @property
    def link(self) -> Path:
        return self.home / "link.h5"

    @property
    def away(self) -> Path:
        return self.home / "away"

    @classmethod
    def make(cls, home: Path) -> Place:
        place = cls(home)
        place.folder.mkdir(parents=True)
        place.away.mkdir()
        write(place.path, DATA)
        write(place.away / "other.h5", DATA + 1000)
        (place.folder / "second-name.h5").hardlink_to(place.path)
        place.link.symlink_to(place.path)
        return place


# --- events ------------------------------------------------------------------------------


def mode_changed(place: Place) -> None:
    place.path.chmod(0o444)


def owner_set(place: Place) -> None:
    os.chown(place.path, os.getuid(), os.getgid())


def access_time_set(place: Place) -> None:
    """Do what ``touch -a`` does."""
    status = place.path.stat()
    os.utime(place.path, ns=(status.st_atime_ns + 10**9, status.st_mtime_ns))


def times_set_to_what_they_are(place: Place) -> None:
    status = place.path.stat()
    os.utime(place.path, ns=(status.st_atime_ns, status.st_mtime_ns))


def hard_link_added(place: Place) -> None:
    (place.away / "linked.h5").hardlink_to(place.path)


def hard_link_removed(place: Place) -> None:
    (place.folder / "second-name.h5").unlink()


def backed_up_by_links(place: Place) -> None:
    """Do what ``cp -al`` and ``rsync --link-dest`` do."""
    shutil.copytree(place.folder, place.home / "backup", copy_function=os.link)


def copied(place: Place) -> None:
    """Do what ``cp -p`` does."""
    shutil.copy2(place.path, place.away / "copy.h5")


def attribute_set(place: Place) -> None:
    try:
        os.setxattr(place.path, "user.note", b"seen")
    except (AttributeError, OSError):
        pytest.skip("the file system has no extended attributes")


def renamed(place: Place) -> None:
    place.path.rename(place.folder / "renamed.h5")


def moved(place: Place) -> None:
    place.path.rename(place.away / "file.h5")


def folder_renamed(place: Place) -> None:
    place.folder.rename(place.home / "renamed")


def deleted(place: Place) -> None:
    place.path.unlink()


def link_moved_to_another_file(place: Place) -> None:
    new = place.home / "new-link"
    new.symlink_to(place.away / "other.h5")
    new.replace(place.link)


def another_file_moved_over_it(place: Place) -> None:
    (place.away / "other.h5").replace(place.path)


def renamed_and_written_anew(place: Place) -> None:
    """Do what a recorder does that begins the next file."""
    place.path.rename(place.folder / "file.1.h5")
    write(place.path, DATA + 1000)
    with xr.open_dataset(place.path, engine="h5ref") as ds:
        assert (ds["data"] == DATA + 1000).all()


IN_PLACE = {
    f.__name__: f
    for f in (
        mode_changed,
        owner_set,
        access_time_set,
        times_set_to_what_they_are,
        hard_link_added,
        hard_link_removed,
        backed_up_by_links,
        copied,
        attribute_set,
    )
}
"""Events after which the path leads to the same file."""

MOVING = {
    f.__name__: f
    for f in (
        renamed,
        moved,
        folder_renamed,
        deleted,
        link_moved_to_another_file,
        another_file_moved_over_it,
        renamed_and_written_anew,
    )
}
"""Events after which the path leads to no file or to another one."""

EVENTS = {**IN_PLACE, **MOVING}

CASES = [
    (name, reader)
    for name in ("data", "plain", "rois")
    for reader in ("auto", "direct", "h5py")
]


def expected(name: str) -> np.ndarray:
    return ROIS if name == "rois" else DATA


def lazy(ds: xr.Dataset, name: str) -> xr.DataArray:
    """Return a Dask array of a variable, or of its resolved references."""
    if name == "rois":
        return ds[name].h5ref.resolve(chunks={ds[name].dims[0]: 2})
    return ds[name].chunk({ds[name].dims[0]: 32})


def check(array: xr.DataArray, name: str) -> None:
    np.testing.assert_array_equal(array.compute(scheduler="synchronous"), expected(name))


@contextmanager
def opened(place: Place, reader: str) -> Iterator[xr.Dataset]:
    with xr.open_dataset(place.link, engine="h5ref", reader=reader, cache=False) as ds:
        yield ds


# --- moments -----------------------------------------------------------------------------


def before_the_first_read(place: Place, event: Callable[[], None], name: str, ds: Any) -> None:
    event()
    check(ds[name] if name != "rois" else ds[name].h5ref.resolve(chunks=None), name)


def between_two_reads(place: Place, event: Callable[[], None], name: str, ds: Any) -> None:
    array = ds[name] if name != "rois" else ds[name].h5ref.resolve(chunks=None)
    np.testing.assert_array_equal(array[:2], expected(name)[:2])
    event()
    check(array, name)


def between_resolve_and_compute(
    place: Place, event: Callable[[], None], name: str, ds: Any
) -> None:
    array = lazy(ds, name)
    event()
    check(array, name)


def after_pickling(place: Place, event: Callable[[], None], name: str, ds: Any) -> None:
    text = pickle.dumps((ds[name], lazy(ds, name)))
    event()
    for array in pickle.loads(text):
        check(array if array.ndim > 1 else array.h5ref.resolve(), name)


def during_a_compute(place: Place, event: Callable[[], None], name: str, ds: Any) -> None:
    """Let the event happen between two tasks, in another task of the graph."""
    array = lazy(ds, name)
    blocks = array.data.to_delayed().ravel()
    parts = [blocks[0].compute(scheduler="synchronous")]
    happened = []

    def interrupt(block: np.ndarray) -> np.ndarray:
        if not happened:
            happened.append(True)
            event()
        return block

    mapped = array.data.map_blocks(interrupt, dtype=array.dtype, meta=array.data._meta)
    np.testing.assert_array_equal(mapped.compute(scheduler="threads"), expected(name))
    assert happened
    np.testing.assert_array_equal(parts[0], expected(name)[: len(parts[0])])


MOMENTS = {
    f.__name__: f
    for f in (
        before_the_first_read,
        between_two_reads,
        between_resolve_and_compute,
        after_pickling,
        during_a_compute,
    )
}


@pytest.mark.sampled(7)
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_event_that_leaves_the_data_alone_stops_no_read(
    tmp_path: Path, moment: str, event: str
) -> None:
    for name, reader in CASES:
        place = Place.make(tmp_path / f"{name}-{reader}")
        with opened(place, reader) as ds:
            MOMENTS[moment](place, lambda place=place: EVENTS[event](place), name, ds)


@dataclass
class Interrupted:
    """A function before whose n-th call something happens."""

    original: Callable[..., Any]
    at: int
    act: Callable[[Place], None]
    place: Place
    calls: int = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            self.act(self.place)
        return self.original(*args)


@pytest.mark.parametrize("reader", ["auto", "h5py"])
def test_an_event_during_a_read_stops_nothing(
    tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event happens before the second read of the data, or before HDF5's read."""
    monkeypatch.setattr(readers, "READ_NBYTES", 4096)  # several reads, as of a large file
    for event, act in EVENTS.items():
        place = Place.make(tmp_path / event)
        with monkeypatch.context() as patch, opened(place, reader) as ds:
            ds["data"][0, 0].load()  # the chunk index
            if reader == "auto":
                interrupted = Interrupted(os.preadv, 2, act, place)
                patch.setattr(os, "preadv", interrupted)
            else:
                module = xref.reading.loaders
                interrupted = Interrupted(module.read_values, 1, act, place)
                patch.setattr(module, "read_values", interrupted)
            with xref.set_options(threads=1):
                np.testing.assert_array_equal(ds["data"], DATA)
            assert interrupted.calls >= interrupted.at


@pytest.mark.parametrize("reader", ["auto", "h5py"])
def test_a_file_opened_by_a_relative_path_stays_open_in_another_folder(
    tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for event in ("mode_changed", "renamed", "deleted"):
        place = Place.make(tmp_path / event)
        monkeypatch.chdir(place.folder)
        with xr.open_dataset("file.h5", engine="h5ref", reader=reader, cache=False) as ds:
            monkeypatch.chdir(place.away)
            check(ds["data"], "data")
            EVENTS[event](place)
            check(ds["data"], "data")
            check(lazy(ds, "rois"), "rois")


# --- files that are not open any more -----------------------------------------------------


@pytest.mark.parametrize("event", EVENTS)
def test_a_file_that_was_closed_is_found_by_its_path(tmp_path: Path, event: str) -> None:
    """Files are closed to make room for others."""
    place = Place.make(tmp_path)
    with opened(place, "auto") as ds:
        array = lazy(ds, "rois")
        EVENTS[event](place)
        drop_all()
        if event in IN_PLACE:
            check(ds["data"], "data")
            check(array, "rois")
        else:
            for read in (ds["data"].load, array.compute):
                with pytest.raises(FileChangedError, match=r"link\.h5"):
                    read()


@pytest.mark.parametrize("event", MOVING)
def test_a_file_that_hdf5_holds_open_is_read_without_its_path(
    tmp_path: Path, event: str
) -> None:
    place = Place.make(tmp_path)
    with opened(place, "auto") as ds:
        EVENTS[event](place)
        handle_pools.DESCRIPTORS.clear()
        check(ds["data"], "data")
        check(lazy(ds, "rois"), "rois")


@pytest.mark.parametrize("event", MOVING)
def test_hdf5_does_not_open_another_file_while_a_descriptor_is_open(
    tmp_path: Path, event: str
) -> None:
    place = Place.make(tmp_path)
    with opened(place, "h5py") as ds:
        EVENTS[event](place)
        handle_pools.FILES.clear()
        with pytest.raises(FileChangedError, match=r"link\.h5"):
            ds["data"].load()


@pytest.mark.slow
@pytest.mark.parametrize("event", ["mode_changed", "renamed", "another_file_moved_over_it"])
def test_events_among_more_files_than_stay_open(tmp_path: Path, event: str) -> None:
    places = [Place.make(tmp_path / str(k)) for k in range(12)]
    with ExitStack() as stack, xr.set_options(file_cache_maxsize=16):
        opened_files = [stack.enter_context(opened(place, "auto")) for place in places]
        for place in places:
            EVENTS[event](place)
        errors = []
        for ds in opened_files:
            try:
                check(ds["data"], "data")
            except FileChangedError as error:
                errors.append(str(error))
        assert len(errors) == 0 if event in IN_PLACE else 0 < len(errors) < len(places)
        assert all("link.h5" in text for text in errors)


@pytest.mark.slow
def test_another_process_finds_the_file_by_its_path(tmp_path: Path) -> None:
    cases = {}
    for event, act in EVENTS.items():
        place = Place.make(tmp_path / event)
        with opened(place, "auto") as ds:
            cases[event] = pickle.dumps((ds["data"], lazy(ds, "rois"))).hex()
        act(place)
    code = (
        "import json, pickle, sys, xref\n"
        "def read(array):\n"
        "    try:\n"
        "        return array.compute(scheduler='synchronous').values.tolist()\n"
        "    except xref.XrefError as error:\n"
        "        return f'{type(error).__name__}: {error}'\n"
        "cases = json.load(sys.stdin)\n"
        "found = {k: [read(a) for a in pickle.loads(bytes.fromhex(v))]\n"
        "         for k, v in cases.items()}\n"
        "json.dump(found, sys.stdout)\n"
    )
    answer = run_python(code, text=json.dumps(cases), timeout=120).check()
    for event, found in json.loads(answer.stdout).items():
        if event in IN_PLACE:
            assert found == [DATA.tolist(), ROIS.tolist()], event
        else:
            for text in found:
                assert text.startswith("FileChangedError: "), event
                assert f"{event}/link.h5" in text


# --- what is found by the path of a file --------------------------------------------------


def test_sources_of_a_moved_virtual_dataset_are_not_taken_for_missing(tmp_path: Path) -> None:
    """HDF5 gives fill values for sources that it does not find."""
    for event in ("renamed", "moved", "folder_renamed", "deleted"):
        place = Place.make(tmp_path / event)
        layout = h5py.VirtualLayout(SHAPE, "i4")
        layout[...] = h5py.VirtualSource("source.h5", "data", shape=SHAPE)
        write(place.folder / "source.h5", DATA)
        with h5py.File(place.path, "a") as file:
            virtual = file.create_virtual_dataset("virtual", layout, fillvalue=-1)
            write_references(file, "into", [virtual.regionref[:4, :4]])
        with xr.open_dataset(place.path, engine="h5ref", cache=False) as ds:
            check(ds["virtual"], "data")
            rois = ds["into"].h5ref.resolve(chunks=None)
            EVENTS[event](place)
            check(ds["data"], "data")
            for read in (ds["virtual"].load, rois.load):
                with pytest.raises(FileChangedError, match=r"file\.h5 was deleted or moved"):
                    read()


def test_sources_beside_the_target_of_a_moved_link_are_not_read(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    layout = h5py.VirtualLayout(SHAPE, "i4")
    layout[...] = h5py.VirtualSource("source.h5", "data", shape=SHAPE)
    write(place.folder / "source.h5", DATA)
    write(place.away / "source.h5", DATA + 1000)
    with h5py.File(place.path, "a") as file:
        file.create_virtual_dataset("virtual", layout, fillvalue=-1)
    with opened(place, "auto") as ds:
        check(ds["virtual"], "data")
        link_moved_to_another_file(place)
        with pytest.raises(FileChangedError, match="another file is at its path"):
            ds["virtual"].load()


# --- messages -----------------------------------------------------------------------------


def test_touch_is_a_change_and_the_error_says_what_differs(tmp_path: Path) -> None:
    """That the bytes are the same could only be shown by reading the whole file."""
    place = Place.make(tmp_path)
    with opened(place, "auto") as ds:
        os.utime(place.path, ns=(0, 1_700_000_000_123_456_789))
        with pytest.raises(
            FileChangedError,
            match=r"link\.h5 has changed since it was opened: its last write \(mtime\) was at "
            r"\d{4}-\S+ \S+ UTC and is at 2023-11-14 22:13:20\.123456789 UTC; open it again",
        ):
            ds["data"].load()
    os.utime(place.path, ns=(0, -(10**19) // 2))  # far before the years of `datetime`
    with opened(place, "auto") as ds:
        os.truncate(place.path, 3000)
        with pytest.raises(FileChangedError, match=r"it had \d+ bytes and has 3000, its last"):
            ds["data"].load()


def test_the_error_says_that_another_file_is_at_the_path(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    with opened(place, "auto") as ds:
        another_file_moved_over_it(place)
        drop_all()
        with pytest.raises(FileChangedError, match=r"another file is at its path \(inode \d+"):
            ds["data"].load()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all files")
def test_a_file_without_permission_is_read_while_it_is_open(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    with opened(place, "auto") as ds:
        place.path.chmod(0)
        check(ds["data"], "data")
        handle_pools.DESCRIPTORS.clear()
        check(ds["data"], "data")
        drop_all()
        with pytest.raises(FileReadError, match=r"link\.h5 cannot be opened again"):
            ds["data"].load()
        place.path.chmod(stat.S_IRUSR)


# --- strict versions ----------------------------------------------------------------------

CHANGING_INODES = sorted(set(IN_PLACE) - {"copied"})


@pytest.mark.parametrize("event", CHANGING_INODES)
def test_a_strict_version_contains_the_ctime(tmp_path: Path, event: str) -> None:
    place = Place.make(tmp_path)
    with xref.set_options(strict_version=True), opened(place, "auto") as ds:
        made = lazy(ds, "rois")
    text = pickle.dumps(made)
    check(made, "rois")
    IN_PLACE[event](place)
    for array in (ds["data"], made, pickle.loads(text)):
        with pytest.raises(FileChangedError, match=r"\(ctime\).*strict_version=True"):
            array.compute()
    with opened(place, "auto") as again:  # not strict, of the same file
        check(again["data"], "data")
        IN_PLACE[event if event in ("mode_changed", "access_time_set") else "copied"](place)
        check(again["data"], "data")


def test_a_strict_version_notices_a_write_after_which_the_mtime_was_set_back(
    tmp_path: Path,
) -> None:
    for strict in (False, True):
        place = Place.make(tmp_path / str(strict))
        with xref.set_options(strict_version=strict), opened(place, "auto") as ds:
            status = place.path.stat()
            with h5py.File(place.path) as file:
                offset = file["plain"].id.get_offset()
            with place.path.open("r+b") as raw:
                raw.seek(offset)
                raw.write((DATA + 1000).tobytes())
            os.utime(place.path, ns=(status.st_atime_ns, status.st_mtime_ns))
            if strict:
                with pytest.raises(FileChangedError, match="ctime"):
                    ds["plain"].load()
            else:  # documented: nothing but the ctime tells that the file was written
                np.testing.assert_array_equal(ds["plain"], DATA + 1000)


def test_strict_and_other_versions_share_no_handles_that_are_out_of_date(
    tmp_path: Path,
) -> None:
    place = Place.make(tmp_path)
    with opened(place, "h5py") as usual:
        check(usual["data"], "data")
        with xref.set_options(strict_version=True), opened(place, "h5py") as strict:
            check(strict["data"], "data")
            place.path.chmod(0o444)
            with opened(place, "h5py") as again:
                for ds in (usual, again, usual):
                    check(ds["data"], "data")
        with pytest.raises(FileChangedError):
            strict["data"].load()


@pytest.mark.slow
def test_another_process_compares_the_ctime_of_a_strict_version(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    with xref.set_options(strict_version=True), opened(place, "auto") as ds:
        text = pickle.dumps(lazy(ds, "rois"))
    code = (
        "import pickle, sys, xref\n"
        "try:\n"
        "    pickle.loads(bytes.fromhex(sys.stdin.read())).compute()\n"
        "    print('read')\n"
        "except xref.FileChangedError as error:\n"
        "    print('ctime' in str(error))\n"
    )
    assert run_python(code, text=text.hex()).check().stdout == "read\n"
    place.path.chmod(0o444)
    assert run_python(code, text=text.hex()).check().stdout == "True\n"


def test_the_option_is_true_or_false() -> None:
    with pytest.raises(ValueError, match="strict_version is 1; True or False is needed"):
        xref.set_options(strict_version=1)


# --- how much work ------------------------------------------------------------------------


def test_a_read_asks_for_the_version_of_the_file_a_fixed_number_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each read of bytes, and once at the end of a batch."""
    place = Place.make(tmp_path)
    counts = {"stat": 0, "fstat": 0}
    for name in counts:
        original = getattr(os, name)

        def counted(*args: Any, original: Any = original, name: str = name, **kw: Any) -> Any:
            counts[name] += 1
            return original(*args, **kw)

        monkeypatch.setattr(os, name, counted)
    with opened(place, "auto") as ds:
        array = ds["rois"].h5ref.resolve(chunks=None)
        for what in (ds["data"], array):
            what.copy().load()  # reads the chunk index
        for what in (ds["data"], array):
            counts.update(stat=0, fstat=0)
            what.copy().load()
            # A batch: one read of bytes (two), and the check after it.
            assert counts == {"stat": 0, "fstat": 3}
    location = locate_file(place.path)
    file = open_file(location)
    counts.update(stat=0, fstat=0)
    assert open_file(location) is file
    assert counts == {"stat": 0, "fstat": 1}
