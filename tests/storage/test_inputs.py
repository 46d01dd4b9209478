"""Kinds of input that can be opened, their options, and when files are closed."""

from __future__ import annotations

import gc
import io
import pickle
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from forkserver import run_python

from xref.errors import FileReadError

VALUES = np.arange(48.0).reshape(6, 8)


def fill(file: h5py.File) -> None:
    image = file.create_dataset("image", data=VALUES, chunks=(3, 4), compression="gzip")
    rois = file.create_dataset("rois", (2,), dtype=h5py.regionref_dtype)
    rois[0], rois[1] = image.regionref[0:2, 1:3], image.regionref[3:5, 5:7]
    file.create_dataset("object", data=image.ref, dtype=h5py.ref_dtype)
    file["group/inner/numbers"] = np.arange(3)
    file["text"] = ["a", "ünï"]


@pytest.fixture(params=[0, 1024], ids=["plain", "user block"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "file.h5", "w", userblock_size=request.param) as file:
        fill(file)
    return tmp_path / "file.h5"


def assert_resolves(opened: Any, reader: str = "auto", **options: Any) -> None:
    with xr.open_dataset(opened, engine="h5ref", reader=reader, **options) as ds:
        expected = np.stack([VALUES[0:2, 1:3], VALUES[3:5, 5:7]])
        np.testing.assert_array_equal(ds["rois"].h5ref.resolve().values, expected)
        np.testing.assert_array_equal(ds["object"].values.item().resolve().values, VALUES)
        np.testing.assert_array_equal(ds["image"].values, VALUES)


def opened_file(path: Path, stack: ExitStack) -> Any:
    return stack.enter_context(path.open("rb"))


def at_position(path: Path, stack: ExitStack) -> Any:
    file = opened_file(path, stack)
    file.seek(77)
    return file


def unlinked(path: Path, stack: ExitStack) -> Any:
    copy = path.with_name("unlinked.h5")
    copy.write_bytes(path.read_bytes())
    file = opened_file(copy, stack)
    copy.unlink()
    return file


def renamed(path: Path, stack: ExitStack) -> Any:
    copy = path.with_name("renamed.h5")
    copy.write_bytes(path.read_bytes())
    file = stack.enter_context(h5py.File(copy))
    copy.unlink()
    return file


def through_fsspec(path: Path, stack: ExitStack) -> Any:
    fsspec = pytest.importorskip("fsspec")
    return fsspec.open(f"file://{path}")


def opened_by_fsspec(path: Path, stack: ExitStack) -> Any:
    return stack.enter_context(through_fsspec(path, stack))


def opened_by_h5py(**options: Any) -> Callable[[Path, ExitStack], Any]:
    return lambda path, stack: stack.enter_context(h5py.File(path, **options))


INPUTS: dict[str, Callable[[Path, ExitStack], Any]] = {
    "str": lambda path, stack: str(path),
    "path": lambda path, stack: path,
    "file URL": lambda path, stack: pytest.importorskip("fsspec") and f"file://{path}",
    "bytes": lambda path, stack: path.read_bytes(),
    "memoryview": lambda path, stack: memoryview(path.read_bytes()),
    "BytesIO": lambda path, stack: io.BytesIO(path.read_bytes()),
    "file": opened_file,
    "file at a position": at_position,
    "unlinked file": unlinked,
    "fsspec OpenFile": through_fsspec,
    "fsspec file": opened_by_fsspec,
    "h5py": opened_by_h5py(),
    "h5py, other locking": opened_by_h5py(locking=False),
    "h5py core": opened_by_h5py(driver="core"),
    "h5py stdio": opened_by_h5py(driver="stdio"),
    "h5py unlinked": renamed,
    "h5py file object": lambda path, stack: stack.enter_context(
        h5py.File(io.BytesIO(path.read_bytes()))
    ),
}


@pytest.mark.sampled(11)
@pytest.mark.parametrize("reader", ["direct", "h5py"])
@pytest.mark.parametrize("what", INPUTS)
def test_references_resolve_in_every_kind_of_input(path: Path, what: str, reader: str) -> None:
    with ExitStack() as stack:
        opened = INPUTS[what](path, stack)
        assert_resolves(opened, reader)
        if hasattr(opened, "closed"):
            assert not opened.closed  # it is its owner's
        if isinstance(opened, h5py.File):
            assert opened["image"].shape == VALUES.shape
        assert_resolves(opened, reader)


def test_the_home_folder_is_expanded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(path.parent))
    assert_resolves("~/file.h5")


@pytest.mark.parametrize("reader", ["direct", "h5py"])
def test_urls_open_with_options(path: Path, reader: str) -> None:
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/inputs/file.h5", path.read_bytes())
    try:
        url = "memory://inputs/file.h5"
        assert_resolves(
            url, reader, storage_options={}, open_kwargs={"cache_type": "readahead"}
        )
    finally:
        fsspec.filesystem("memory").rm("/inputs", recursive=True)


def test_unflushed_values_of_an_open_file_are_read(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["image"][...] = VALUES
        file["late"] = np.arange(5)
        assert_resolves(file)
        with xr.open_dataset(file["group"], engine="h5ref", group="inner") as ds:
            assert ds["numbers"].values.tolist() == [0, 1, 2]
        with xr.open_dataset(file, engine="h5ref") as ds:
            assert ds["late"].size == 5
        file["after"] = 1.0
    with h5py.File(path) as file:
        assert file["after"][()] == 1.0


def test_an_h5py_group_opens_as_the_root(path: Path) -> None:
    with h5py.File(path) as file, xr.open_datatree(file["group"], engine="h5ref") as tree:
        assert list(tree["inner"].data_vars) == ["numbers"]


@pytest.mark.parametrize("content", [b"", b"CDF\x01" + bytes(600), b"x" * 5000])
def test_other_file_formats_raise_a_helpful_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with open(tmp_path / "other", "rb") as file:
        for opened in (content, memoryview(content), io.BytesIO(content), file):
            with pytest.raises(ValueError, match="not the signature"):
                xr.open_dataset(opened, engine="h5ref")


def test_inputs_that_are_not_files_raise_a_helpful_error(path: Path) -> None:
    with pytest.raises(TypeError, match="engine 'h5ref' cannot open int"):
        xr.open_dataset(5, engine="h5ref")
    with open(path, encoding="latin-1") as text, pytest.raises(TypeError, match="binary"):
        xr.open_dataset(text, engine="h5ref")
    with pytest.raises(FileNotFoundError):
        xr.open_dataset(path.with_name("missing.h5"), engine="h5ref")


@pytest.mark.parametrize("what", ["path", "bytes", "memoryview", "file"])
def test_inputs_that_other_processes_can_read_pickle(path: Path, what: str) -> None:
    with ExitStack() as stack:
        ds = stack.enter_context(xr.open_dataset(INPUTS[what](path, stack), engine="h5ref"))
        again = pickle.loads(pickle.dumps(ds.chunk()))  # xarray fails at bytes with chunks=
        np.testing.assert_array_equal(again["image"].values, VALUES)
        assert again["rois"].h5ref.resolve().values.shape == (2, 2, 2)
        again.close()


def test_pickling_an_input_of_one_process_raises_a_helpful_error(path: Path) -> None:
    with (
        h5py.File(path, driver="core") as file,
        xr.open_dataset(file, engine="h5ref") as ds,
        pytest.raises(TypeError, match="opened from an h5py object"),
    ):
        pickle.dumps(ds)


def test_reading_a_file_that_its_owner_closed_raises(path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        ds = xr.open_dataset(file, engine="h5ref", cache=False)
    with ds, pytest.raises(FileReadError, match="closed by its owner"):
        ds["image"].load()
    with h5py.File(path, driver="core") as owned:
        ds = xr.open_dataset(owned, engine="h5ref", cache=False)
    with ds, pytest.raises(FileReadError, match="closed by its owner"):
        ds["image"].load()


def test_groups_open_with_and_without_a_leading_slash(path: Path) -> None:
    for group in ("group/inner", "/group/inner", "/group/inner/"):
        with xr.open_dataset(path, engine="h5ref", group=group) as ds:
            assert list(ds) == ["numbers"]
    for group in ("missing", "group/missing", "image"):
        with pytest.raises(OSError, match=group):
            xr.open_dataset(path, engine="h5ref", group=group)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("phony_dims", "sorted"),
        ("format", "NETCDF3"),
        ("reader", "fast"),
        ("external", "some"),
        ("driver", "no such driver"),
    ],
)
def test_unknown_option_values_raise_a_helpful_error(
    path: Path, option: str, value: str
) -> None:
    with pytest.raises(ValueError, match=value):
        xr.open_dataset(path, engine="h5ref", **{option: value})


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "options",
    [
        {"driver": "core"},
        {"driver": "stdio"},
        {"driver_kwds": {"rdcc_nbytes": 1 << 20, "rdcc_nslots": 101}},
        {"driver_kwds": {"libver": "latest", "locking": False}},
        {"driver": "core", "driver_kwds": {"backing_store": False}},
        {"format": None},
        {"format": "NETCDF4_CLASSIC"},
        {"invalid_netcdf": True},
        {"lock": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("reader", ["direct", "h5py"])
def test_options_of_other_engines_are_accepted(
    path: Path, options: dict[str, Any], reader: str
) -> None:
    assert_resolves(path, reader, **options)


def test_a_paged_file_is_read_with_a_page_buffer(tmp_path: Path) -> None:
    path = tmp_path / "paged.h5"
    with h5py.File(path, "w", fs_strategy="page", fs_page_size=4096) as file:
        fill(file)
    for reader in ("direct", "h5py"):
        assert_resolves(path, reader, driver_kwds={"page_buf_size": 1 << 16})


class CountedLock:
    """A lock that tells whether it is held and counts how often it was acquired."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.held = self.times = 0

    def __enter__(self) -> CountedLock:
        self.lock.acquire()
        self.held += 1
        self.times += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.held -= 1
        self.lock.release()


@pytest.mark.parametrize("chunks", [None, {}])
def test_a_lock_is_held_while_data_are_read(path: Path, chunks: Any) -> None:
    lock = CountedLock()
    with xr.open_dataset(path, engine="h5ref", lock=lock, chunks=chunks) as ds:
        before = lock.times
        np.testing.assert_array_equal(ds["image"].values, VALUES)
        assert lock.times > before
        assert not lock.held


def test_variable_length_text_is_read_as_bytes_on_request(path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref", decode_vlen_strings=False) as ds:
        assert ds["text"].values.tolist() == [b"a", "ünï".encode()]
        assert ds["text"].dtype == object
    with xr.open_dataset(path, engine="h5ref") as ds:
        assert ds["text"].values.tolist() == ["a", "ünï"]


def read_of(path: Path, how: str) -> list[Any]:
    """Open a file and read from it; the returned object keeps the file open."""
    if how == "tree":
        tree = xr.open_datatree(path, engine="h5ref")
        tree["group/inner/numbers"].load()
        return [tree]
    ds = xr.open_dataset(path, engine="h5ref")
    if how == "resolved":
        return [ds, ds["rois"].h5ref.resolve().load()]
    if how == "target":
        return [ds, ds["object"].values.item().resolve().load()]
    return [ds]


@pytest.mark.slow
def test_opened_objects_are_released(path: Path) -> None:
    """Nothing keeps the content of a file, or the file object, after the Dataset is deleted."""
    content = io.BytesIO(path.read_bytes())
    gone = weakref.ref(content)
    ds = xr.open_dataset(content, engine="h5ref")
    ds["rois"].h5ref.resolve().load()
    assert str(ds)
    del content
    assert gone() is not None
    del ds
    gc.collect()
    assert gone() is None


@pytest.mark.sampled(5)
@pytest.mark.parametrize("how", ["dataset", "tree", "resolved", "target"])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "dropped"])
def test_a_file_can_be_written_after_close_or_deletion_of_the_dataset(
    path: Path, how: str, closed: bool
) -> None:
    held = read_of(path, how)
    if closed:
        held[0].close()
    else:
        held.clear()
        gc.collect()  # trees refer to themselves
    with h5py.File(path, "w") as file:
        file["new"] = 1
    with xr.open_dataset(path, engine="h5ref") as ds:
        assert list(ds) == ["new"]


def test_a_file_open_for_writing_is_read_and_released(tmp_path: Path) -> None:
    path, rng = tmp_path / "written.h5", np.random.default_rng(0)
    file = h5py.File(path, "w")
    data = file.create_dataset("data", (64, 64), "f8", chunks=(16, 16), compression=1)
    with xr.open_dataset(file, engine="h5ref", cache=False) as ds:  # nothing flushed yet
        assert not ds["data"].values.any()
        values = rng.normal(size=(64, 64))
        data[...] = values
        np.testing.assert_array_equal(ds["data"].values, values)
        file.close()
        h5py.File(path, "a").close()  # nobody else holds a lock


@pytest.mark.parametrize("kind", ["url", "bytes", "object"])
def test_h5py_keywords_apply_to_every_kind_of_input(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(3)
    content = path.read_bytes()
    if kind == "url":
        fsspec = pytest.importorskip("fsspec")
        fsspec.filesystem("memory").pipe("/keywords.h5", content)
    calls, opened = [], h5py.File
    monkeypatch.setattr(h5py, "File", lambda *a, **kw: calls.append(kw) or opened(*a, **kw))
    given = {"url": "memory://keywords.h5", "bytes": content, "object": io.BytesIO(content)}
    with xr.open_dataset(
        given[kind], engine="h5ref", driver_kwds={"rdcc_nbytes": 1 << 20}
    ) as ds:
        assert ds["data"].values.tolist() == [0, 1, 2]
    assert all(kwargs["rdcc_nbytes"] == 1 << 20 for kwargs in calls if kwargs)
    assert any(calls)


OPENED = "builtins.kept = xarray.open_dataset(io.BytesIO(content), engine='h5ref')"
REFUSED = """
try:
    xarray.open_dataset(content[:700], engine="h5ref")
except (OSError, ValueError) as error:
    builtins.kept = error
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", [OPENED, REFUSED], ids=["open", "refused"])
def test_a_process_with_an_open_file_exits_cleanly(path: Path, what: str) -> None:
    program = (
        "import builtins, io, sys, xarray\n"
        "content = open(sys.argv[1], 'rb').read()\n"
        f"{what}\n"
        "assert builtins.kept is not None\n"
    )
    ended = run_python(program, str(path))
    assert (ended.returncode, ended.stderr) == (0, "")
