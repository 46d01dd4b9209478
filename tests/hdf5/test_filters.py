"""Chunks decoded here equal what h5py reads; bad bytes raise and nothing else.

Chunks are written by h5py and hdf5plugin to files in memory, and taken from them
as stored. Each window lies in a canvas of sentinels that must survive.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import struct
import subprocess
import sys
import tracemalloc
import zlib
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.recfunctions import repack_fields

from xref.errors import CorruptFileError, UnsupportedError
from xref.hdf5 import filter_codecs
from xref.hdf5.filters import Filter, FilterPipeline, decode_chunk

COMPOUND = np.dtype([("a", "<i2"), ("b", ">f8"), ("c", "S3"), ("d", "u1", (2,))])
PADDED = np.dtype([("a", "u1"), ("b", "<i4")], align=True)
DTYPES = [np.dtype(d) for d in ("u1", "u2", ">i4", "f8", "bool", "S5", "V12")]
DTYPES += [COMPOUND, PADDED]
SHAPES = [(1,), (7,), (1003,), (50, 33), (64, 64), (5, 6, 7), (3, 4, 5, 6)]

BASE = {
    "none": {},
    "deflate": {"compression": "gzip"},
    "shuffle": {"shuffle": True},
    "fletcher32": {"fletcher32": True},
    "shuffle deflate": {"shuffle": True, "compression": "gzip"},
    "shuffle deflate fletcher32": {"shuffle": True, "compression": "gzip", "fletcher32": True},
}
EXTRA = {
    "lzf": {"compression": "lzf"},
    "shuffle lzf fletcher32": {"shuffle": True, "compression": "lzf", "fletcher32": True},
    "szip nn": {"compression": "szip", "compression_opts": ("nn", 16)},
    "szip ec": {"compression": "szip", "compression_opts": ("ec", 8)},
}
PLUGIN = {
    "zstd": ("Zstd", {}),
    "lz4": ("LZ4", {}),
    "lz4 in blocks": ("LZ4", {"nbytes": 1000}),
    "bitshuffle": ("Bitshuffle", {"cname": "none"}),
    "bitshuffle lz4": ("Bitshuffle", {"cname": "lz4"}),
    "bitshuffle lz4 in blocks": ("Bitshuffle", {"cname": "lz4", "nelems": 64}),
    "bitshuffle zstd": ("Bitshuffle", {"cname": "zstd"}),
    **{
        f"blosc {cname} {shuffle}": ("Blosc", {"cname": cname, "shuffle": shuffle})
        for cname in ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")
        for shuffle in (0, 1, 2)
    },
}
ALL = [*BASE, *EXTRA, *PLUGIN]

# What can be written and decoded here, for tests that draw a name: a skip within a
# drawn example would skip the whole test.
HAVE = {name for name in ("imagecodecs", "hdf5plugin") if importlib.util.find_spec(name)}
DRAWN = [*BASE, *(EXTRA if "imagecodecs" in HAVE else ()), *(PLUGIN if len(HAVE) == 2 else ())]
if not h5py.h5z.filter_avail(h5py.h5z.FILTER_SZIP):
    DRAWN = [name for name in DRAWN if not name.startswith("szip")]


@dataclass
class Chunk:
    """One chunk as stored, and what h5py reads from it."""

    data: bytes
    mask: int
    pipeline: FilterPipeline
    values: np.ndarray


def creation_options(name: str) -> dict[str, Any]:
    """What h5py is told to write ``name``, or skip."""
    if name in BASE:
        return BASE[name]
    pytest.importorskip("imagecodecs")
    if name in PLUGIN:
        cls, options = PLUGIN[name]
        return dict(getattr(pytest.importorskip("hdf5plugin"), cls)(**options))
    if name.startswith("szip") and not h5py.h5z.filter_avail(h5py.h5z.FILTER_SZIP):
        pytest.skip("this HDF5 has no szip")
    return EXTRA[name]


def supports(name: str, values: np.ndarray) -> bool:
    """Tell if HDF5 itself can write the values with the filters."""
    return not name.startswith("szip") or (
        values.dtype.kind in "uif" and values.shape[-1] >= 16 and values.size >= 32
    )


def pipeline_of(dataset: h5py.Dataset) -> FilterPipeline:
    properties = dataset.id.get_create_plist()
    entries = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    return FilterPipeline(
        filters=tuple(
            Filter(id=number, flags=flags, options=tuple(options), name=name.decode())
            for number, flags, options, name in entries
        )
    )


def write(values: np.ndarray, **options: Any) -> Chunk:
    """Write one chunk with h5py."""
    with h5py.File("memory.h5", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("d", data=values, chunks=values.shape, **options)
        mask, data = dataset.id.read_direct_chunk((0,) * values.ndim)
        return Chunk(data, mask, pipeline_of(dataset), values)


def read_by_h5py(chunk: Chunk, data: bytes, mask: int, **options: Any) -> np.ndarray:
    """What h5py makes of stored bytes."""
    shape, dtype = chunk.values.shape, chunk.values.dtype
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        dataset = file.create_dataset("d", shape, dtype, chunks=shape, **options)
        dataset.id.write_direct_chunk((0,) * len(shape), data, mask)
    # HDF5 2.0 forgets the mask until the file is opened again.
    with h5py.File(memory, "r") as file:
        return file["d"][...]


def decode(chunk: Chunk, margin: int = 0, data: bytes | None = None) -> np.ndarray:
    """Decode into a window of a canvas; check that the margin stays as it was."""
    shape, itemsize = chunk.values.shape, chunk.values.dtype.itemsize
    canvas = np.full((*(n + 2 * margin for n in shape), itemsize), 0xA5, np.uint8)
    inside = tuple(slice(margin, margin + n) for n in shape)
    window = canvas.view(chunk.values.dtype)[..., 0][inside]
    stored = chunk.data if data is None else data
    try:
        decode_chunk(memoryview(stored), window, chunk.pipeline, chunk.mask)
    finally:
        outside = np.ones(canvas.shape, bool)
        outside[inside] = False
        assert (canvas[outside] == 0xA5).all()
    return window


def make_values(shape: tuple[int, ...], dtype: np.dtype, seed: int = 0) -> np.ndarray:
    """Compressible values in which a misplaced item shows."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    if dtype.kind == "b":
        return np.repeat(rng.integers(0, 2, size // 20 + 1) == 1, 20)[:size].reshape(shape)
    steps = rng.integers(0, 256, (size // 20 + 1, dtype.itemsize), dtype=np.uint8)
    return np.repeat(steps, 20, axis=0)[:size].copy().view(dtype)[:, 0].reshape(shape)


def content(values: np.ndarray) -> bytes:
    """All bytes but the padding between fields, which HDF5 does not keep."""
    return (repack_fields(values) if values.dtype.names else values).tobytes()


def apply_filters(name: str, shape: tuple[int, ...] = (1003,), dtype: Any = "u2") -> Chunk:
    return write(make_values(shape, np.dtype(dtype)), **creation_options(name))


def make_filter(number: int, *options: int, name: str = "") -> Filter:
    return Filter(id=number, flags=0, options=options, name=name)


@pytest.fixture(params=["imagecodecs", "base packages"])
def codecs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with and without imagecodecs."""
    if request.param == "imagecodecs":
        pytest.importorskip("imagecodecs")
    else:
        monkeypatch.setattr(filter_codecs, "codec_library", lambda: None)
    return request.param


@pytest.mark.sampled(11)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_decoded_chunk_equals_what_h5py_reads(name: str, dtype: np.dtype) -> None:
    options = creation_options(name)
    for shape in SHAPES:
        values = make_values(shape, dtype)
        if not supports(name, values):
            continue
        chunk = write(values, **options)
        assert chunk.pipeline.unsupported() == ()
        for margin in (0, 2):
            assert content(decode(chunk, margin)) == content(values)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", BASE)
def test_base_packages_decode_the_filters_of_hdf5_itself(
    name: str, dtype: np.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filter_codecs, "codec_library", lambda: None)
    for shape in SHAPES:
        chunk = write(make_values(shape, dtype), **BASE[name])
        for margin in (0, 2):
            assert content(decode(chunk, margin)) == content(chunk.values)


@settings(max_examples=settings.default.max_examples // 4)
@given(data=st.data())
def test_any_shape_and_content_comes_back(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4)))
    dtype = data.draw(st.sampled_from([d for d in DTYPES if d.kind != "b"]))
    name = data.draw(st.sampled_from([n for n in DRAWN if not n.startswith("szip")]))
    nbytes = int(np.prod(shape)) * dtype.itemsize
    pattern = data.draw(st.binary(min_size=1, max_size=64))
    raw = np.resize(np.frombuffer(pattern, np.uint8), nbytes)
    chunk = write(raw.view(dtype).reshape(shape), **creation_options(name))
    decoded = decode(chunk, data.draw(st.integers(0, 2)))
    assert content(decoded) == content(chunk.values)


ORDERS = [
    order
    for n in (2, 3)
    for order in itertools.permutations(["set_shuffle", "set_deflate", "set_fletcher32"], n)
]


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_filters_are_undone_in_any_order(codecs: str, order: tuple[str, ...]) -> None:
    # A checksum before the shuffle also leaves bytes that fill no item.
    values = make_values((31, 7), np.dtype("f8"))
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(values.shape)
    for name in order:
        getattr(properties, name)()
    with h5py.File("memory.h5", "w", driver="core", backing_store=False) as file:
        space = h5py.h5s.create_simple(values.shape)
        number = h5py.h5d.create(file.id, b"d", h5py.h5t.IEEE_F64LE, space, properties)
        dataset = h5py.Dataset(number)
        dataset[...] = values
        mask, stored = dataset.id.read_direct_chunk((0, 0))
        chunk = Chunk(stored, mask, pipeline_of(dataset), values)
    for margin in (0, 3):
        np.testing.assert_array_equal(decode(chunk, margin), values)


@pytest.mark.parametrize("mask", range(4))
def test_a_masked_filter_is_not_undone(codecs: str, mask: int) -> None:
    options = BASE["shuffle deflate"]
    values = make_values((20, 30), np.dtype("<u4"))
    chunk = write(values, **options)
    stored = values.tobytes()
    if not mask & 1:
        stored = values.reshape(-1).view(np.uint8).reshape(-1, 4).T.tobytes()
    if not mask & 2:
        stored = zlib.compress(stored)
    np.testing.assert_array_equal(read_by_h5py(chunk, stored, mask, **options), values)
    chunk.mask = mask
    np.testing.assert_array_equal(decode(chunk, 2, stored), values)


def test_a_chunk_that_lzf_could_not_compress_is_read(codecs: str) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, 500).astype("u2")
    chunk = write(values, compression="lzf")
    assert chunk.mask == 1
    np.testing.assert_array_equal(decode(chunk, 1), values)


@pytest.mark.parametrize("itemsize", [*range(1, 17), 64, 65, 300])
@pytest.mark.parametrize("n_items", [0, 1, 2, 9, 100])
def test_shuffle_of_any_item_size_keeps_the_leftover(itemsize: int, n_items: int) -> None:
    leftover = itemsize - 1
    values = np.arange(n_items * itemsize + leftover or 1) % 251
    values = values.astype(np.uint8)
    whole = len(values) - len(values) % itemsize
    planes = values[:whole].reshape(-1, itemsize).T
    stored = planes.tobytes() + values[whole:].tobytes()
    pipeline = FilterPipeline(filters=(make_filter(2, itemsize),))
    chunk = Chunk(stored, 0, pipeline, values)
    for margin in (0, 3):
        np.testing.assert_array_equal(decode(chunk, margin), values)


@pytest.mark.parametrize("nbytes", [1, 2, 3, 2047, 2048, 2049, 4096, 100_001])
@pytest.mark.parametrize("kind", ["zeros", "ones", "random"])
def test_fletcher32_is_that_of_hdf5(nbytes: int, kind: str) -> None:
    random = np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)
    values = {"zeros": random * 0, "ones": random | 255, "random": random}[kind]
    chunk = write(values, fletcher32=True)
    stored = int.from_bytes(chunk.data[-4:], "little")
    assert filter_codecs.sum_by_numpy(values) == stored
    assert filter_codecs.fletcher32(values) == stored
    np.testing.assert_array_equal(decode(chunk), values)


@pytest.mark.parametrize("position", [0, 1, 999, 2005, 2009])
def test_a_changed_byte_fails_the_checksum(position: int) -> None:
    chunk = apply_filters("fletcher32")
    stored = bytearray(chunk.data)
    stored[position] ^= 0x10
    with pytest.raises(CorruptFileError, match=r"fletcher32 \(id 3\).*checksum 0x\w{8} does"):
        decode(chunk, 1, bytes(stored))


def test_the_checksum_of_hdf5_1_6_2_is_accepted() -> None:
    chunk = apply_filters("fletcher32")
    swapped = chunk.data[:-4] + bytes(chunk.data[i] for i in (-3, -4, -1, -2))
    assert swapped != chunk.data
    expected = read_by_h5py(chunk, swapped, 0, fletcher32=True)
    np.testing.assert_array_equal(expected, chunk.values)
    np.testing.assert_array_equal(decode(chunk, 0, swapped), chunk.values)


COMPRESSED = [n for n in ALL if n not in ("none", "shuffle", "fletcher32", "bitshuffle")]


@pytest.mark.parametrize("name", ALL)
def test_a_truncated_chunk_raises(name: str) -> None:
    for dtype in ("u2", "f8"):
        chunk = apply_filters(name, dtype=dtype)
        n = len(chunk.data)
        for stop in sorted({0, 1, 2, 3, 4, 5, 11, 12, 13, 17, n // 3, n // 2, n - 9}):
            with pytest.raises(CorruptFileError):
                decode(chunk, 1, chunk.data[:stop])


@pytest.mark.parametrize("name", ["deflate", "shuffle deflate"])
def test_a_deflate_stream_without_its_last_byte_raises(codecs: str, name: str) -> None:
    chunk = apply_filters(name)
    for n in (1, 2, 3, 4, 5):
        with pytest.raises(CorruptFileError, match=r"filter deflate \(id 1\)"):
            decode(chunk, 0, chunk.data[:-n])


def test_bytes_after_a_deflate_stream_are_ignored_as_in_hdf5(codecs: str) -> None:
    chunk = apply_filters("deflate")
    longer = chunk.data + b"more"
    expected = read_by_h5py(chunk, longer, 0, **BASE["deflate"])
    np.testing.assert_array_equal(decode(chunk, 1, longer), expected)


@pytest.mark.parametrize("name", ["none", "shuffle", "bitshuffle"])
def test_a_chunk_too_long_raises(name: str) -> None:
    chunk = apply_filters(name, shape=(1000,))
    for more in (1, 2, 16):
        with pytest.raises(CorruptFileError, match=r"\(id \d+\)|without filters"):
            decode(chunk, 0, chunk.data + bytes(more))


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("name", COMPRESSED)
def test_output_of_another_size_raises(name: str, change: int) -> None:
    chunk = apply_filters(name, shape=(1000,))
    smaller = write(chunk.values[:-16], **creation_options(name))
    if change < 0:
        chunk, smaller = smaller, chunk
    with pytest.raises(CorruptFileError, match=r"\(id \d+\)|without filters"):
        decode(chunk, 1, smaller.data)


@settings(max_examples=settings.default.max_examples // 2)
@given(data=st.data())
def test_mutated_bytes_decode_or_raise_corrupt_file(data: st.DataObject) -> None:
    chunk = apply_filters(data.draw(st.sampled_from(DRAWN)), shape=(300,), dtype="f8")
    stored = bytearray(chunk.data)
    places = st.one_of(
        st.integers(0, min(40, len(stored) - 1)), st.integers(0, len(stored) - 1)
    )
    changes = data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6))
    for place, byte in changes:
        stored[place] = byte
    stop = data.draw(st.integers(0, len(stored)) | st.just(len(stored)))
    with contextlib.suppress(CorruptFileError):
        decode(chunk, 1, bytes(stored[:stop]) + data.draw(st.binary(max_size=20)))


@settings(max_examples=settings.default.max_examples // 2)
@given(
    number=st.sampled_from([1, 2, 3, 4, 32000, 32001, 32004, 32008, 32015]),
    options=st.lists(st.integers(0, 40) | st.integers(0, 2**32 - 1), max_size=8),
    stored=st.binary(max_size=300),
    mask=st.integers(0, 1),
)
def test_any_bytes_and_options_decode_or_raise(
    number: int, options: list[int], stored: bytes, mask: int
) -> None:
    pipeline = FilterPipeline(filters=(make_filter(number, *options),))
    chunk = Chunk(stored, mask, pipeline, np.zeros((5, 8), "f4"))
    missing = pipeline.unsupported()
    try:
        decode(chunk, 1)
    except CorruptFileError:
        pass
    except UnsupportedError:
        assert missing


def bomb(name: str, nbytes: int) -> bytes:
    zeros = bytes(nbytes)
    if name == "deflate":
        return zlib.compress(zeros)
    imagecodecs = pytest.importorskip("imagecodecs")
    if name == "lz4 with a false header":
        return struct.pack(">QI", 4000, nbytes) + imagecodecs.lz4h5_encode(zeros)[12:]
    if name == "blosc with a false header":
        stored = bytearray(imagecodecs.blosc_encode(zeros, level=5))
        stored[4:8] = (4000).to_bytes(4, "little")
        return bytes(stored)
    return getattr(imagecodecs, f"{name}_encode")(zeros)


BOMBS = {
    "deflate": 1,
    "lzf": 32000,
    "blosc": 32001,
    "blosc with a false header": 32001,
    "lz4h5": 32004,
    "lz4 with a false header": 32004,
    "zstd": 32015,
}


@pytest.mark.parametrize(
    ("codecs", "name"),
    [("base packages", "deflate"), *(("imagecodecs", name) for name in BOMBS)],
    indirect=["codecs"],
)
def test_a_bomb_stays_within_the_size_of_the_chunk(codecs: str, name: str) -> None:
    stored = bomb(name, 50_000_000)
    pipeline = FilterPipeline(filters=(make_filter(BOMBS[name]),))
    chunk = Chunk(stored, 0, pipeline, np.zeros(1000, "f4"))
    with pytest.raises(CorruptFileError):
        decode(chunk, 1)  # what is imported and cached is not counted below
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFileError):
            decode(chunk, 1)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_szip_never_returns_memory_for_a_stream_cut_off() -> None:
    # Lines of 100 pixels are padded to 112; libaec alone takes such a stream as
    # complete and fills the rest with what it finds in its memory.
    for dtype in ("u2", "f8"):
        chunk = apply_filters("szip nn", (50, 100), dtype)
        with pytest.raises(CorruptFileError, match="cut off"):
            decode(chunk, 1, chunk.data[: len(chunk.data) // 2])


def test_szip_options_that_hdf5_never_writes_are_unsupported() -> None:
    long, odd, empty = (169, 16, 16, 2**32 - 1), (169, 3, 16, 1001), (169, 0, 16, 16)
    for options in [long, odd, empty, (169, 16, 77, 16), (169,)]:
        pipeline = FilterPipeline(filters=(make_filter(4, *options),))
        assert pipeline.unsupported() == ("filter szip (id 4)",)


def bitshuffle_frame(blocks: list[bytes], nbytes: int, block: int, rest: bytes) -> bytes:
    imagecodecs = pytest.importorskip("imagecodecs")
    stored = struct.pack(">QI", nbytes, block)
    for encoded in map(imagecodecs.lz4_encode, blocks):
        stored += struct.pack(">I", len(encoded)) + encoded
    return stored + rest


@pytest.mark.parametrize("announced", [8192, 0])
def test_a_bitshuffle_block_as_long_as_its_output_is_compressed(announced: int) -> None:
    # In the LZ4 filter, whose frame is the same, such a block is not compressed.
    hdf5plugin = pytest.importorskip("hdf5plugin")
    imagecodecs = pytest.importorskip("imagecodecs")
    noise = np.random.default_rng(0).integers(0, 256, 8192, dtype=np.uint8).tobytes()
    candidates = (noise[:n] + bytes(8192 - n) for n in range(8100, 8192))
    block = next(b for b in candidates if len(imagecodecs.lz4_encode(b)) == 8192)
    stored = bitshuffle_frame([block, block[:800]], 8997, announced, b"rest!")
    chunk = write(np.zeros(8997, "u1"), **hdf5plugin.Bitshuffle(cname="lz4"))
    expected = read_by_h5py(chunk, stored, 0, **hdf5plugin.Bitshuffle(cname="lz4"))
    np.testing.assert_array_equal(decode(chunk, 1, stored), expected)
    whole = bitshuffle_frame([block, block[:800]], 8992, announced, b"")
    chunk = write(np.zeros(8992, "u1"), **hdf5plugin.Bitshuffle(cname="lz4"))
    np.testing.assert_array_equal(decode(chunk, 1, whole), expected[:8992])


def test_filters_out_of_reach_are_named() -> None:
    pipeline = FilterPipeline(
        filters=(
            make_filter(2),  # without its item size
            make_filter(32026, 1, 0, 8, name="blosc2"),
            make_filter(305, name="LZO\x1b[31m"),
        )
    )
    labels = pipeline.unsupported()[:3]
    assert labels == (
        "filter shuffle (id 2)",
        "filter blosc2 (id 32026)",
        r"filter 'LZO\x1b[31m' (id 305)",
    )
    with pytest.raises(UnsupportedError, match=r"blosc2 \(id 32026\).*through HDF5"):
        decode_chunk(b"12345678", np.zeros(2, "f4"), pipeline)


def test_filters_that_need_imagecodecs_are_unsupported_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filter_codecs, "codec_library", lambda: None)
    needed = {4: (169, 16, 16, 64), 32000: (), 32001: (), 32004: (), 32015: ()}
    needed[32008] = (0, 4, 2, 0, 2)
    for number, options in needed.items():
        pipeline = FilterPipeline(filters=(make_filter(number, *options),))
        assert f"(id {number})" in pipeline.unsupported()[0]
    for number, options in {1: (4,), 2: (8,), 3: ()}.items():
        assert FilterPipeline(filters=(make_filter(number, *options),)).unsupported() == ()


def test_a_missing_imagecodecs_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "imagecodecs":
                tried.append(name)
                raise ImportError(name)

    monkeypatch.delitem(sys.modules, "imagecodecs", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    filter_codecs.codec_library.cache_clear()
    try:
        assert filter_codecs.codec_library() is None
        assert filter_codecs.codec_library() is None
    finally:
        filter_codecs.codec_library.cache_clear()
    assert tried == ["imagecodecs"]


def test_two_compressors_on_top_of_each_other_are_left_to_hdf5() -> None:
    pipeline = FilterPipeline(filters=(make_filter(1, 4), make_filter(3), make_filter(1, 4)))
    assert pipeline.unsupported() == ("filter deflate (id 1) over filter deflate (id 1)",)
    values = np.arange(100, dtype="f4")
    window = np.zeros(100, "f4")
    decode_chunk(zlib.compress(values.tobytes()), window, pipeline, filter_mask=0b110)
    np.testing.assert_array_equal(window, values)


def test_a_chunk_beyond_what_a_codec_counts_is_left_to_hdf5(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunk = apply_filters("lzf")
    monkeypatch.setattr(filter_codecs, "INT32_MAX", 2000)
    with pytest.raises(UnsupportedError, match="through HDF5"):
        decode(chunk)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("imagecodecs") is None, reason="an extra")
def test_imagecodecs_is_not_imported_with_the_module() -> None:
    code = "import sys, xref.hdf5.filters; assert 'imagecodecs' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_an_lz4_frame_as_long_as_its_output_is_still_decompressed(tmp_path: Any) -> None:
    hdf5plugin = pytest.importorskip("hdf5plugin")
    pytest.importorskip("imagecodecs")
    values = np.arange(20).reshape(2, 10).astype("S5")
    with h5py.File(tmp_path / "frame.h5", "w") as file:
        d = file.create_dataset("d", data=values, chunks=(2, 10), **hdf5plugin.LZ4())
        file.flush()
        _, stored = d.id.read_direct_chunk((0, 0))
    assert len(stored) == values.nbytes
    window = np.empty(values.shape, values.dtype)
    lz4 = Filter(id=32004, flags=1, options=(0,), name="lz4")
    decode_chunk(stored, window, FilterPipeline(filters=(lz4,)))
    np.testing.assert_array_equal(window, values)
