"""Damaged N-bit and scale-offset: the values that HDF5 gives, or an error that names the chunk.

All files are read in another process, which forks for each, so that a crash costs one file.
This module is that program too: it takes file names from standard input, one a line, and
answers each with what the readers gave.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import packed
import pytest
from forks import in_fork
from forkserver import run_python
from h5py import h5t
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import N_BIT, SCALE_OFFSET, header

pytestmark = pytest.mark.slow

# --- the program that reads one file -----------------------------------------------------


def readings(path: str) -> dict[str, Callable[[], Any]]:
    """Return ways to read dataset ``d``, and what the references ``r`` and ``o`` are to."""
    import xarray as xr

    def read(source: Any, use: Callable[[xr.Dataset], Any], **options: Any) -> Any:
        with xr.open_dataset(source, engine="h5ref", **options) as ds:
            return use(ds)

    def read_open(use: Callable[[xr.Dataset], Any]) -> Any:
        with h5py.File(path, "r+") as file:  # where HDF5 alone knows the chunks
            return read(file, use)

    def read_stream(use: Callable[[xr.Dataset], Any]) -> Any:
        with io.BytesIO(Path(path).read_bytes()) as stream:
            return read(stream, use)

    def first(ds: xr.Dataset) -> Any:
        return next(iter(ds.data_vars.values())).values

    def variable(ds: xr.Dataset) -> Any:
        return ds["d"].values

    def resolved(ds: xr.Dataset) -> Any:
        return first(ds["r"].h5ref.resolve("ragged", coords=False))

    def objects(ds: xr.Dataset) -> Any:
        return first(ds["o"].h5ref.resolve("ragged", coords=False))

    def part(ds: xr.Dataset) -> Any:
        return ds["d"][5:9].values

    ways: dict[str, Callable[[], Any]] = {}
    for reader in ("auto", "h5py"):
        for use in (variable, resolved, part, objects):
            ways[f"{use.__name__}, {reader}"] = lambda u=use, r=reader: read(path, u, reader=r)
    ways["open for writing"] = lambda: read_open(variable)
    ways["resolved, open for writing"] = lambda: read_open(resolved)
    ways["stream"] = lambda: read_stream(variable)
    ways["dask"] = lambda: read(path, variable, chunks={})
    return ways


def answer(path: str, names: list[str]) -> dict[str, Any]:
    """Return the bytes that each way gives, or its error."""
    import xref

    found = {}
    for name, way in readings(path).items():
        if names and name not in names:
            continue
        try:
            found[name] = {"values": np.ascontiguousarray(way()).tobytes().hex()}
        except xref.XrefError as error:
            found[name] = {"error": type(error).__name__, "text": str(error)}
    return found


def main() -> None:
    import dask

    import xref

    warnings.simplefilter("ignore")
    dask.config.set(scheduler="synchronous")
    with xref.set_options(threads=1):
        for line in sys.stdin:
            path, names = json.loads(line)
            print(json.dumps(in_fork(lambda p=path, n=names: answer(p, n))), flush=True)  # noqa: T201


# --- the tests ---------------------------------------------------------------------------

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Read a file in the other process; fail if that ended it, or anything else was raised."""
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:

        def read(path: Path, *names: str) -> dict[str, Any]:
            child.stdin.write(json.dumps([str(path), names]) + "\n")
            child.stdin.flush()
            found = json.loads(child.stdout.readline())
            assert "result" in found, found
            return found["result"]

        yield read
        child.stdin.close()


def add_references(file: h5py.File, name: str = "d") -> None:
    dataset = file[name]
    file.create_dataset("r", (1,), dtype=h5py.regionref_dtype)[0] = dataset.regionref[5:9]
    file.create_dataset("o", (1,), dtype=h5py.ref_dtype)[0] = dataset.ref


def write_scaled(path: Path, n: int, stored: bytes, mask: int = 0, **options: Any) -> Path:
    """Write integers in one chunk, stored as these bytes."""
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("d", (n,), "<i4", chunks=(n,), scaleoffset=0, **options)
        dataset.id.write_direct_chunk((0,), stored, mask)
        add_references(file)
    return path


def write_bits(path: Path, n: int = 64) -> Path:
    with h5py.File(path, "w") as file:
        kind = packed.integer(h5t.STD_I32LE, 4, 20, 3)
        dataset = packed.create(file, "d", kind, (n,), (n,), [(N_BIT, ())])
        dataset[...] = np.arange(n, dtype="i4") - 7
        add_references(file)
    return path


def refused(found: dict[str, Any], path: Path, *, text: str = "chunk") -> None:
    """Check that every way of reading was refused, by name of file, dataset and chunk."""
    for way, one in found.items():
        assert one.get("error") == "CorruptFileError", (way, one)
        assert ("<BytesIO>" if way == "stream" else path.name) in one["text"], (way, one)
        assert "dataset at 0x" in one["text"], (way, one)
        assert "chunk" in one["text"], (way, one)
        assert text in one["text"], (way, one)


def test_what_is_right_is_read_in_all_ways(tmp_path, ask) -> None:
    expected = np.arange(64, dtype="<i4") - 7
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("d", data=expected, chunks=(10,), scaleoffset=0)
        add_references(file)
    for path in (tmp_path / "s.h5", write_bits(tmp_path / "n.h5")):
        for way, one in ask(path).items():
            part = "part" in way or "resolved" in way
            wanted = expected[5:9] if part else expected
            assert one == {"values": wanted.tobytes().hex()}, way


CHUNKS = {
    "full precision, large": (1 << 24, header(32) + bytes(16)),
    "full precision, small": (4096, header(32) + bytes(16)),
    "more bits than the type": (64, header(33) + bytes(400)),
    "bits beyond counting": (64, header(2**32 - 8) + bytes(400)),
    "truncated": (64, header(20) + bytes(159)),
    "header alone": (64, header(1)),
    "header cut off": (64, header(0)[:20]),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_scale_offset_chunks_are_refused(tmp_path, ask, name) -> None:
    n, stored = CHUNKS[name]
    path = write_scaled(tmp_path / "f.h5", n, stored)
    refused(ask(path), path, text="scaleoffset")


def test_an_inner_chunk_is_checked_after_inflating(tmp_path, ask) -> None:
    import zlib

    stored = zlib.compress(header(32) + bytes(16))
    path = write_scaled(tmp_path / "f.h5", 4096, stored, compression="gzip")
    refused(ask(path), path, text="scaleoffset")
    # One whose deflate was skipped: the mask of the chunk says so.
    path = write_scaled(tmp_path / "m.h5", 4096, header(32) + bytes(16), 2, compression="gzip")
    refused(ask(path), path, text="scaleoffset")
    # One that inflates to far more than scale-offset can have written.
    bomb = zlib.compress(header(0) + bytes(1 << 24))
    path = write_scaled(tmp_path / "b.h5", 4096, bomb, compression="gzip")
    refused(ask(path), path, text="deflate")


SCALES = {
    "no parameters": lambda o: (),
    "one parameter": lambda o: o[:1],
    "other elements": lambda o: (*o[:2], o[2] * 2, *o[3:]),
    "fewer elements": lambda o: (*o[:2], o[2] // 2, *o[3:]),
    "other size": lambda o: (*o[:4], 8, *o[5:]),
    "size and elements": lambda o: (*o[:2], o[2] // 2, o[3], 8, *o[5:]),
    "class": lambda o: (0, 2, o[2], 1, *o[4:]),
    "sign": lambda o: (*o[:5], 0, *o[6:]),
    "byte order": lambda o: (*o[:6], 1, *o[7:]),
}
BITS = {
    "no parameters": lambda o: (),
    "one parameter": lambda o: (1,),
    "as many as it says": lambda o: (5, *o[1:5]),
    "other elements": lambda o: (*o[:2], o[2] * 1000, *o[3:]),
    "other size": lambda o: (*o[:4], 4096, *o[5:]),
    "precision": lambda o: (*o[:6], 4096, *o[7:]),
    "offset": lambda o: (*o[:7], 4096),
    "an array of large items": lambda o: (*o[:3], 2, 4, 2, 1 << 30, 1),
    "a compound of many": lambda o: (*o[:3], 3, 4, 1 << 30, 0, 3),
    "a compound of compounds": lambda o: (*o[:3], 3, 4, 1, 0, 3),
    "an unknown class": lambda o: (*o[:3], 9, *o[4:]),
}


@pytest.mark.parametrize("name", SCALES)
def test_scale_offset_messages_are_refused(tmp_path, ask, name) -> None:
    path = write_scaled(tmp_path / "f.h5", 64, header(8) + bytes(64))
    with h5py.File(path) as file:
        options = packed.options_of(file["d"], SCALE_OFFSET)
    packed.change_options(path, SCALE_OFFSET, options, SCALES[name](options))
    refused(ask(path), path, text="scaleoffset")


@pytest.mark.parametrize("name", BITS)
def test_n_bit_messages_are_refused(tmp_path, ask, name) -> None:
    path = write_bits(tmp_path / "f.h5")
    with h5py.File(path) as file:
        options = packed.options_of(file["d"], N_BIT)
    packed.change_options(path, N_BIT, options, BITS[name](options))
    refused(ask(path), path, text="nbit")


def test_n_bit_chunks_that_are_cut_off_are_refused(tmp_path, ask) -> None:
    path = write_bits(tmp_path / "f.h5")
    with h5py.File(path, "r+") as file:
        mask, data = file["d"].id.read_direct_chunk((0,))
        file["d"].id.write_direct_chunk((0,), data[:100], mask)
    refused(ask(path), path, text="nbit")


BAD = header(32) + bytes(16)


def test_sources_of_virtual_datasets_are_checked(tmp_path, ask) -> None:
    write_scaled(tmp_path / "source.h5", 64, BAD)
    layout = h5py.VirtualLayout((128,), "<i4")
    layout[64:] = h5py.VirtualSource(tmp_path / "source.h5", "d", (64,))
    with h5py.File(tmp_path / "f.h5", "w", libver="latest") as file:
        file.create_virtual_dataset("d", layout)
        add_references(file)
    names = ["variable, auto", "variable, h5py", "objects, auto", "dask"]
    refused(ask(tmp_path / "f.h5", *names), tmp_path / "source.h5")


def test_targets_of_external_links_are_checked(tmp_path, ask) -> None:
    write_scaled(tmp_path / "source.h5", 64, BAD)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["d"] = h5py.ExternalLink("source.h5", "d")
    names = ["variable, auto", "variable, h5py", "dask"]
    refused(ask(tmp_path / "f.h5", *names), tmp_path / "source.h5")


def test_small_datasets_read_together_are_checked(tmp_path, ask) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        refs = file.create_dataset("o", (60,), dtype=h5py.ref_dtype)
        for i in range(60):
            data = np.arange(i, i + 8, dtype="<i4")
            one = file.create_dataset(f"v{i}", data=data, chunks=(8,), scaleoffset=0)
            refs[i] = one.ref
    names = ["objects, auto", "objects, h5py"]
    expected = (np.arange(60)[:, None] + np.arange(8)).astype("<i4").tobytes().hex()
    for way, one in ask(tmp_path / "f.h5", *names).items():
        assert one == {"values": expected}, way
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["v33"].id.write_direct_chunk((0,), BAD)
    refused(ask(tmp_path / "f.h5", *names), tmp_path / "f.h5")


def test_references_with_a_hostile_filter_are_checked(tmp_path, ask) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("x", data=np.arange(4.0))
        kind = h5t.STD_REF_OBJ
        dataset = packed.create(file, "o", kind, (8,), (8,), [(N_BIT, ())])
        dataset.id.write_direct_chunk((0,), struct.pack("<Q", 0) * 8)
    with h5py.File(tmp_path / "f.h5") as file:
        options = packed.options_of(file["o"], N_BIT)
    changed = (options[0], 0, *options[2:])
    packed.change_options(tmp_path / "f.h5", N_BIT, options, changed)
    found = ask(tmp_path / "f.h5", "objects, auto", "objects, h5py")
    refused(found, tmp_path / "f.h5", text="nbit")


def test_packed_bytes_behind_an_unknown_filter_are_not_read(tmp_path, ask) -> None:
    path = write_scaled(tmp_path / "f.h5", 64, header(8) + bytes(64), shuffle=True)
    data = path.read_bytes()
    name = struct.pack("<HHHH", 2, 8, 1, 1) + b"shuffle\0"
    assert data.count(name) == 1
    path.write_bytes(data.replace(name, struct.pack("<HHHH", 300, 8, 1, 1) + b"unknown\0"))
    for way, one in ask(path).items():
        assert one.get("error") == "UnsupportedError", (way, one)
        assert "scaleoffset" in one["text"], (way, one)


# --- drawn damage ------------------------------------------------------------------------


@st.composite
def damage(draw: st.DrawFn, data: bytes) -> bytes:
    """Change, cut off or append bytes of a chunk."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(0, 3))):
        # Headers matter more than values.
        last = min(len(data) - 1, draw(st.sampled_from([4, 20, len(data)])))
        changed[draw(st.integers(0, last))] = draw(st.sampled_from([0, 1, 8, 31, 32, 64, 255]))
    kept = draw(st.one_of(st.just(len(data)), st.integers(1, len(data))))
    return bytes(changed[:kept]) + draw(st.binary(max_size=3))


@settings(max_examples=max(settings().max_examples // 4, 25))  # each takes three forks
@given(st.data())
def test_damaged_chunks_and_messages_have_the_values_of_hdf5_or_raise(
    tmp_path_factory, ask, data
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "f.h5"
    number = data.draw(st.sampled_from([N_BIT, SCALE_OFFSET]))
    n = data.draw(st.sampled_from([1, 7, 64]))
    more = data.draw(st.sampled_from([[], [(2, ()), (1, (1,))], [(3, ())]]))
    with h5py.File(path, "w") as file:
        if number == N_BIT:
            kind = packed.integer(
                data.draw(st.sampled_from([h5t.STD_I32LE, h5t.STD_U16BE])), 4, 20
            )
            filters = [(N_BIT, ()), *more]
        else:
            kind = data.draw(st.sampled_from([h5t.STD_I16BE, h5t.STD_U64LE, h5t.IEEE_F32LE]))
            scale = (0, 2) if kind.get_class() == h5t.FLOAT else (2, 0)
            filters = [(SCALE_OFFSET, scale), *more]
        dataset = packed.create(file, "d", kind, (n,), (n,), filters)
        dataset[...] = np.arange(n) % 90
        add_references(file)
    with h5py.File(path) as file:
        options = packed.options_of(file["d"], number)
    with h5py.File(path, "r+") as file:
        mask, stored = file["d"].id.read_direct_chunk((0,))
        file["d"].id.write_direct_chunk((0,), data.draw(damage(stored)), mask)
    changed = list(options)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, min(len(options), 12) - 1))
        changed[at] = data.draw(st.sampled_from([0, 1, 2, 3, 4, 8, 16, 63, 2**31, 2**32 - 1]))
        changed = changed[: data.draw(st.sampled_from([len(changed), at + 1]))]
        packed.change_options(path, number, options, tuple(changed))
    found = ask(path, "variable, auto", "variable, h5py", "open for writing")
    assert len({json.dumps(one.get("values", "error")) for one in found.values()}) == 1, found
    for one in found.values():
        # Where a message ends early, what follows is another filter, which is not known.
        assert one.get("error", "none") in ("none", "CorruptFileError", "UnsupportedError")
    path.unlink()


# --- appending: HDF5 decodes a chunk of which it overwrites a part -------------------------

APPENDING = """
import sys
import numpy as np, xarray as xr, xref

for chunks in (None, {"x": -1}):
    n = int(sys.argv[1])
    ds = xr.Dataset({"d": ("x", np.arange(n, dtype="i4"))})
    try:
        xref.to_hdf5(ds if chunks is None else ds.chunk(chunks), "f.h5", mode="a")
        print("written")
    except xref.XrefError as error:
        print(type(error).__name__, error)
"""


def append(path: Path, n: int) -> list[str]:
    """Append n integers to a file in another process, in memory and in blocks."""
    run = run_python(APPENDING, str(n), folder=path.parent)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.splitlines()


def write_edge(path: Path, stored: bytes, corner: int) -> None:
    """Write a dataset that ends within its second chunk; one of them has these bytes."""
    size = 1 << 16
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(
            "d", (size + 9,), "<i4", chunks=(size,), maxshape=(None,), scaleoffset=0
        )
        dataset[...] = 1
        dataset.id.write_direct_chunk((corner,), stored, 0)


@pytest.mark.parametrize("n", [(1 << 16) + 9, (1 << 16) + 10])
@pytest.mark.parametrize("corner", [0, 1 << 16])
def test_hostile_chunks_are_not_appended_to(tmp_path, n, corner) -> None:
    path = tmp_path / "f.h5"
    write_edge(path, header(32) + bytes(16), corner)
    before = path.read_bytes()
    for line in append(path, n):
        assert line.startswith("CorruptFileError")
        for what in ("f.h5", "dataset at 0x", "chunk", "scaleoffset"):
            assert what in line
    assert path.read_bytes() == before


@pytest.mark.skipif(
    h5py.version.hdf5_version_tuple < (2, 0, 0),
    reason="HDF5 1.14 refuses to read a chunk whose elements have all their bits",
)
def test_packed_chunks_are_appended_to(tmp_path) -> None:
    path = tmp_path / "f.h5"
    n = (1 << 16) + 20
    write_edge(path, header(32) + bytes(4 << 16), 1 << 16)
    assert append(path, n) == ["written", "written"]
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["d"], np.arange(n))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
