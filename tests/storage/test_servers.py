"""Servers that fail, and files that change behind their URL."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from remotes import BOX, CORNERS, IMAGE, PATCHES, write_file
from server import Answer, RangeServer, serve

import xref
from xref.errors import FileChangedError, FileReadError
from xref.storage.open_files import close_files
from xref.storage.remote import _opened

pytest.importorskip("aiohttp")


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> Iterator[None]:
    """Time out soon if the fault delays answers; else late, as the machine may be busy."""
    is_late = request.node.callspec.params["fault"] in (cut_off, late)
    with xref.set_options(remote_timeout=0.5 if is_late else 30, remote_retries=2):
        yield


# --- servers that go wrong -------------------------------------------------------------


def short(answer: Answer) -> None:
    answer.body = answer.body[:-1]
    answer.headers["Content-Length"] = str(len(answer.body))


def cut_off(answer: Answer) -> None:
    answer.body = answer.body[: len(answer.body) // 2]  # of the length announced


def too_long(answer: Answer) -> None:
    answer.body += b"more"
    answer.headers["Content-Length"] = str(len(answer.body))


def whole_file(answer: Answer) -> None:
    answer.status = 200
    del answer.headers["Content-Range"]


def other_range(answer: Answer) -> None:
    first, rest = answer.headers["Content-Range"].removeprefix("bytes ").split("-", 1)
    last, size = rest.split("/")
    answer.headers["Content-Range"] = f"bytes {int(first) + 1}-{int(last) + 1}/{size}"
    answer.body = answer.body[1:] + b"x"


def no_range(answer: Answer) -> None:
    del answer.headers["Content-Range"]


def encoded(answer: Answer) -> None:
    answer.headers["Content-Encoding"] = "deflate"


def error_500(answer: Answer) -> None:
    answer.status, answer.body = 500, b"out of order"
    answer.headers["Content-Length"] = str(len(answer.body))


def endless(answer: Answer) -> None:
    del answer.headers["Content-Length"]
    answer.headers["Connection"] = "close"
    answer.body += bytes(1 << 22)


def hang_up(answer: Answer) -> None:
    raise ConnectionError


def late(answer: Answer) -> None:
    answer.closing.wait(1)


FAULTS: list[Callable[[Answer], None]] = [
    short,
    cut_off,
    too_long,
    whole_file,
    other_range,
    no_range,
    encoded,
    error_500,
    endless,
    hang_up,
    late,
]


def on_data(fault: Callable[[Answer], None], often: int) -> Callable[[int, str, Answer], None]:
    """Apply a fault to the next few answers to requests for data."""
    left = [often]

    def apply(number: int, method: str, answer: Answer) -> None:
        if method == "GET" and left[0] > 0:
            left[0] -= 1
            fault(answer)

    return apply


@pytest.mark.sampled(17)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_request_is_retried(server: RangeServer, fault: Any) -> None:
    with xr.open_dataset(server.url("image.h5"), engine="h5ref") as ds:
        patches = ds["rois"].h5ref.resolve()
        server.fault = on_data(fault, 2)
        with xref.count_reads() as reads:
            np.testing.assert_array_equal(patches, PATCHES)
        # The HTTP client itself retries after a broken connection, and on a busy machine
        # other answers may be late as well.
        retries = reads.remote_retries
        assert retries >= 2 or fault is hang_up
        assert retries <= 2 or fault in (cut_off, late)


@pytest.mark.sampled(17)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_request_that_always_fails_raises(server: RangeServer, fault: Any) -> None:
    with xr.open_dataset(server.url("image.h5"), engine="h5ref") as ds:
        patches = ds["rois"].h5ref.resolve()
        said = r"image\.h5: bytes \d+ to \d+ could not be read"
        server.fault = on_data(fault, 10**6)
        with pytest.raises(FileReadError, match=said):
            patches.compute()
        if fault is error_500:  # nor does the server tell its version
            server.fault = lambda number, method, answer: fault(answer)
            with pytest.raises(FileReadError, match=said):
                patches.compute()
        server.fault = None
        np.testing.assert_array_equal(patches, PATCHES)


def test_the_retry_after_header_is_respected(server: RangeServer) -> None:
    def busy(answer: Answer) -> None:
        answer.status, answer.body = 503, b""
        answer.headers["Retry-After"] = "1"

    with xr.open_dataset(server.url("image.h5"), engine="h5ref") as ds:
        patches = ds["rois"].h5ref.resolve()
        server.fault = on_data(busy, 1)
        began = time.monotonic()
        np.testing.assert_array_equal(patches, PATCHES)
        assert time.monotonic() - began >= 1


def test_a_refused_request_is_not_retried(server: RangeServer) -> None:
    def forbid(answer: Answer) -> None:
        answer.status, answer.body = 403, b""

    with xr.open_dataset(server.url("image.h5"), engine="h5ref") as ds:
        patches = ds["rois"].h5ref.resolve()
        server.fault = on_data(forbid, 10**6)
        with (
            xref.count_reads() as reads,
            pytest.raises(FileReadError, match=r"in 1 attempt: status 403"),
        ):
            patches.compute()
        assert reads.remote_retries == 0


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", [hang_up, late, error_500])
def test_opening_from_a_server_that_never_answers_raises(
    server: RangeServer, fault: Any
) -> None:
    server.fault = lambda number, method, answer: fault(answer)
    with pytest.raises(FileReadError, match=r"image\.h5"):
        xr.open_dataset(server.url("image.h5"), engine="h5ref")


def test_a_failing_server_raises_instead_of_leaving_out_members(server: RangeServer) -> None:
    failing = [False]

    def fail_behind_the_head(number: int, method: str, answer: Answer) -> None:
        if "bytes 0-" not in answer.headers.get("Content-Range", "bytes 0-"):
            failing[0] = True
            error_500(answer)

    server.fault = fail_behind_the_head
    said = r"image\.h5: bytes \d+ to \d+ could not be read in 1 attempt: status 500"
    with xref.set_options(remote_retries=0):
        for open_it in (xr.open_dataset, xr.open_datatree):
            with pytest.raises(FileReadError, match=said):
                open_it(server.url("image.h5"), engine="h5ref")
    assert failing[0]


def test_a_url_without_a_file_raises_file_not_found(server: RangeServer) -> None:
    with pytest.raises(FileNotFoundError):
        xr.open_dataset(server.url("none.h5"), engine="h5ref")


def test_a_server_without_range_requests_is_named_in_the_error(server: RangeServer) -> None:
    server.fault = lambda number, method, answer: (
        whole_file(answer) if "Content-Range" in answer.headers else None
    )
    with (
        xref.set_options(remote_retries=0),
        pytest.raises((FileReadError, OSError), match="simplecache::"),
    ):
        xr.open_dataset(server.url("image.h5"), engine="h5ref")


# --- one version of the file -----------------------------------------------------------


@pytest.mark.slow
def test_a_changed_remote_file_is_detected_before_its_bytes_are_used(
    tmp_path: Path, other_image: bytes
) -> None:
    write_file(tmp_path / "image.h5")
    with serve(tmp_path) as server:
        url = server.url("image.h5")
        with xr.open_dataset(url, engine="h5ref") as ds:
            patches = ds["rois"].h5ref.resolve()
            (tmp_path / "image.h5").write_bytes(other_image)
            with pytest.raises(FileChangedError, match="has changed"):
                patches.compute()
        with xr.open_dataset(url, engine="h5ref") as ds:
            expected = [IMAGE[::-1][y : y + BOX, x : x + BOX] for y, x in CORNERS]
            np.testing.assert_array_equal(ds["rois"].h5ref.resolve(), expected)
        (tmp_path / "image.h5").unlink()
        with pytest.raises(FileChangedError, match="was deleted"):
            ds["rois"].h5ref.resolve().compute()


@pytest.mark.sampled(11)
@pytest.mark.parametrize("name", ["rois", "flat_rois", "flat"])
@pytest.mark.parametrize("moment", ["open", "evicted", "pickled", "graph built", "mid-compute"])
def test_a_changed_etag_raises_or_gives_the_old_values(
    tmp_path: Path, moment: str, name: str, other_image: bytes, monkeypatch: Any
) -> None:
    path = write_file(tmp_path / "image.h5")
    monkeypatch.setattr("xref.arrays.byte_ranges.FETCH_NBYTES", 50_000)
    expected = IMAGE if name == "flat" else PATCHES

    def lazy(ds: xr.Dataset) -> xr.DataArray:
        return ds["flat"] if name == "flat" else ds[name].h5ref.resolve()

    def change(number: int, method: str, answer: Answer) -> None:
        if number >= began + 2:
            path.write_bytes(other_image)

    with (
        serve(tmp_path) as server,
        xr.open_dataset(server.url("image.h5"), engine="h5ref", chunks={}) as ds,
    ):
        wanted: Any = ds
        if moment in ("graph built", "mid-compute"):
            wanted = lazy(ds)
        if moment == "pickled":
            wanted = pickle.dumps(ds)
        if moment == "mid-compute":
            began = len(server.requests)
            server.fault = change
        else:
            path.write_bytes(other_image)
        if moment == "evicted":
            close_files()
        try:
            wanted = pickle.loads(wanted) if moment == "pickled" else wanted
            wanted = lazy(wanted) if isinstance(wanted, xr.Dataset) else wanted
            found = wanted.values
        except FileChangedError:
            return
        assert moment == "mid-compute"
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none", "blockcache"])
def test_reads_of_hdf5_through_fsspec_detect_a_changed_file(
    tmp_path: Path, cache: str, other_image: bytes
) -> None:
    path = write_file(tmp_path / "image.h5")
    with (
        serve(tmp_path) as server,
        xr.open_dataset(
            server.url("image.h5"),
            engine="h5ref",
            reader="h5py",
            cache=False,
            open_kwargs={"cache_type": cache},
        ) as ds,
    ):
        np.testing.assert_array_equal(ds["flat"][:8], IMAGE[:8])
        path.write_bytes(other_image)
        with pytest.raises(FileChangedError):
            ds["flat"].load()


def test_without_tags_the_size_tells_versions_apart(tmp_path: Path) -> None:
    content = write_file(tmp_path / "image.h5").read_bytes()

    def no_size(number: int, method: str, answer: Answer) -> None:
        range_ = answer.headers.get("Content-Range")
        if range_ and number % 2:  # a server may leave the size out of the range
            answer.headers["Content-Range"] = range_.partition("/")[0] + "/*"

    for fault in (None, no_size):
        with (
            serve(tmp_path, tag=False, fault=fault) as server,
            xr.open_dataset(server.url("image.h5"), engine="h5ref") as ds,
        ):
            patches = ds["rois"].h5ref.resolve()
            np.testing.assert_array_equal(patches[:3], PATCHES[:3])
            (tmp_path / "image.h5").write_bytes(content + bytes(8))
            with pytest.raises(FileChangedError):
                patches.compute()
            (tmp_path / "image.h5").write_bytes(content)


def test_errors_of_requests_keep_no_stack_frames(server: RangeServer) -> None:
    """Frames hold objects of h5py, which a transport thread must not release."""
    url = server.url("image.h5")
    with xref.set_options(remote_retries=0), xr.open_dataset(url, engine="h5ref") as ds:
        (opened,) = [opened for key, opened in _opened.items() if key[0].name == url]
        server.fault = on_data(error_500, 1)
        coming = opened.fetch(np.array([opened.version.nbytes - 10]), np.array([10]))
        with pytest.raises(FileReadError, match="status 500"):
            coming.result()
        failed = coming.pending.exception()
        assert failed is not None
        assert failed.__traceback__ is None
        assert ds["texts"].size == 3
