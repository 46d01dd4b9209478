"""Fixtures of all tests: the corpus, leak checks, hypothesis profiles, shared processes.

Environment variables:

- ``XREF_CORPUS``: folder of files from other writers; by default
  ``shared/corpus`` beside the repository. Tests that need it skip without it, and
  fail where the variable names no folder.
- ``XREF_HYPOTHESIS_PROFILE``: ``fast`` (10 examples a test), ``few`` (50), ``ci`` (200, the
  default) or ``long`` (2,000).
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import pytest
import remotes
import xarray as xr
from hypothesis import settings
from rois import write_rois
from server import RangeServer, serve

from xref.objects import StoredObject
from xref.objects import objects as h5objects
from xref.storage.open_files import close_files

with suppress(ImportError):
    # Blosc of hdf5plugin works with h5py only if hdf5plugin is imported before netCDF4, which
    # has an HDF5 library of its own.
    import hdf5plugin  # noqa: F401

REPOSITORY = Path(__file__).resolve().parents[1]

# Assertions of these modules say what they compared, as those of tests do.
pytest.register_assert_rewrite(
    "damaged_files", "failing_writes", "interrupts", "killed_writers", "named_objects"
)

# No deadlines: the first example of a test opens files and warms caches, and
# the machine may be busy. The same commit always gets the same examples; new ones are
# the work of the long profile. `print_blob` makes its failures reproducible.
settings.register_profile(
    "ci", deadline=None, max_examples=200, derandomize=True, print_blob=True
)
settings.register_profile(
    "long", settings.get_profile("ci"), max_examples=2000, derandomize=False
)
settings.register_profile("few", settings.get_profile("ci"), max_examples=50)
settings.register_profile("fast", settings.get_profile("ci"), max_examples=10)
# Processes that tests start find the modules that tests share.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(REPOSITORY / "tests" / "support"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

settings.load_profile(os.environ.get("XREF_HYPOTHESIS_PROFILE", "ci"))

# Pools that outlive a test by design; their idle threads are not leaks.
SHARED_POOLS = (
    "xref-read",  # the pools of xref.reading.execute, kept for the process
    "ThreadPoolExecutor-",  # dask's default pool, which has no name of its own
)

shared_threads: set[threading.Thread] = set()  # of `process_pool`, which is not a leak either

THREAD_GRACE = 30.0  # seconds for threads that are on their way out
FILE_GRACE = 5.0  # seconds for files that threads of the shared pools are closing

passed = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Folder of files from other writers; skip without it, fail if it was named."""
    named = os.environ.get("XREF_CORPUS")
    folder = Path(named or REPOSITORY.parent / "shared" / "corpus")
    if not folder.is_dir():
        if named:
            pytest.fail(f"XREF_CORPUS names {folder}, which is no folder")
        pytest.skip(f"no corpus at {folder}; XREF_CORPUS names it")
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the file that a test writes."""
    return tmp_path / "file.h5"


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a file by calling ``fill`` with its h5py.File."""

    def write(fill: Callable[[h5py.File], None], name: str = "file.h5", **options: Any) -> Path:
        with h5py.File(tmp_path / name, "w", **options) as file:
            fill(file)
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def rois_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of `rois`; no test writes to it."""
    path = tmp_path_factory.mktemp("rois") / "rois.h5"
    write_rois(path)
    return path


@pytest.fixture
def rois_ds(rois_path: Path) -> Iterator[xr.Dataset]:
    with xr.open_dataset(rois_path, engine="h5ref") as opened:
        yield opened


@pytest.fixture
def open_refs() -> Iterator[Callable[..., xr.DataArray]]:
    """Open the variable ``refs`` of a file, which is closed when the test ends."""
    opened: list[xr.Dataset] = []

    def open_file(path: Path, **options: Any) -> xr.DataArray:
        opened.append(xr.open_dataset(path, engine="h5ref", **options))
        return opened[-1]["refs"]

    yield open_file
    for dataset in opened:
        dataset.close()


@pytest.fixture(scope="session")
def process_pool() -> Iterator[ProcessPoolExecutor]:
    """Two processes that the tests of Dask's scheduler "processes" share, as its ``pool``."""
    before = set(threading.enumerate())
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(abs, range(2)))  # starts the processes and the threads of the pool
        shared_threads.update(set(threading.enumerate()) - before)
        yield pool


@pytest.fixture(scope="session")
def remote_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the file of `remotes`."""
    folder = tmp_path_factory.mktemp("remote")
    remotes.write_file(folder / "image.h5")
    return folder


@pytest.fixture(scope="session")
def other_image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a file of equal names and size with other values."""
    path = tmp_path_factory.mktemp("other") / "image.h5"
    return remotes.write_file(path, remotes.IMAGE[::-1].copy()).read_bytes()


@pytest.fixture
def server(remote_folder: Path) -> Iterator[RangeServer]:
    """Serve that folder over HTTP."""
    with serve(remote_folder) as server:
        yield server


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow the cases of a test that its marker ``sampled`` does not keep."""
    seen: Counter[Any] = Counter()
    for item in items:
        if (sampled := item.get_closest_marker("sampled")) is None:
            continue
        test = item.parent, getattr(item, "originalname", item.name)
        if seen[test] % sampled.args[0]:
            item.add_marker("slow")
        seen[test] += 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if report.when == "call":
        item.stash[passed] = report.passed
    return report


@pytest.fixture(scope="module", autouse=True)
def frozen_imports() -> None:
    """Exempt what is imported by now from garbage collections, which take less time then.

    Threads that carry requests undo this (`xref.storage.transport`), hence for each module.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a passing test that leaves threads, or descriptors of temporary files.

    A failing test is not checked: its traceback keeps its objects alive.
    """
    before = set(threading.enumerate())
    yield
    if not request.node.stash.get(passed, False):
        return
    assert not (threads := leaked_threads(before)), f"threads still run: {threads}"
    if factory := request.node.funcargs.get("tmp_path_factory"):
        files = leaked_files(factory.getbasetemp())
        assert not files, f"files still open: {files}"


def leaked_threads(before: set[threading.Thread]) -> list[str]:
    """Names of new threads that would keep the interpreter from ending."""
    deadline = time.monotonic() + THREAD_GRACE
    leaked = []
    for thread in set(threading.enumerate()) - before - shared_threads:
        if thread.daemon or thread.name.startswith(SHARED_POOLS):
            continue
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            leaked.append(thread.name)
    return leaked


def leaked_files(folder: Path) -> list[str]:
    """Files in ``folder`` that stay open once nothing refers to them.

    Handles wait in xarray's cache of open files for the next read. They are
    dropped from it here, so what stays open is held by something that leaks.
    """
    if not open_files(folder):
        return []
    close_files()
    deadline = time.monotonic() + FILE_GRACE
    while found := open_files(folder):
        gc.collect()  # only now: a collection takes longer than most tests
        close_files()
        if time.monotonic() > deadline:
            return found
        time.sleep(0.01)  # a thread of a pool may be about to close it
    return []


def open_files(folder: Path) -> list[str]:
    """Files in ``folder`` that this process has open; none where /proc is missing."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        return []
    found = []
    for descriptor in descriptors.iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:  # closed meanwhile, as the one that lists them is
            continue
        if target.startswith(f"{folder.resolve()}{os.sep}"):
            found.append(target)
    return found


@pytest.fixture
def opened_objects(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the address of each object that HDF5 opens."""
    opened: list[int] = []
    original = h5objects.open_object

    def record(stored: StoredObject) -> Any:
        opened.append(stored.address)
        return original(stored)

    monkeypatch.setattr(h5objects, "open_object", record)
    return opened
