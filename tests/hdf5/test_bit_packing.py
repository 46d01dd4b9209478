"""N-bit and scale-offset, decoded here, equal what HDF5 decodes; the rest is refused."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import packed
import pytest
from h5py import h5t
from hypothesis import given
from hypothesis import strategies as st
from packed import N_BIT, SCALE_OFFSET, header

from xref.errors import CorruptFileError, UnsupportedError
from xref.hdf5.filters import Filter, FilterPipeline, decode_chunk

SHUFFLE, DEFLATE, FLETCHER, LZF = (2, ()), (1, (4,)), (3, ()), (32000, ())
AFTER: list[list[tuple[int, tuple[int, ...]]]] = [
    [],
    [DEFLATE],
    [SHUFFLE, DEFLATE],
    [FLETCHER],
    [FLETCHER, DEFLATE],
    [SHUFFLE, DEFLATE, FLETCHER],
]


def decode(dataset: h5py.Dataset, dtype: np.dtype[Any] | None = None) -> bytes:
    """Decode all chunks here, and return the elements of the dataset."""
    kind = dtype or np.dtype(f"V{dataset.id.get_type().get_size()}")
    grid = [range(0, n, c) for n, c in zip(dataset.shape, dataset.chunks, strict=True)]
    whole = np.zeros([r[-1] + c for r, c in zip(grid, dataset.chunks, strict=True)], kind)
    for corner, (mask, data) in packed.stored_chunks(dataset).items():
        place = tuple(slice(a, a + c) for a, c in zip(corner, dataset.chunks, strict=True))
        decode_chunk(data, whole[place], packed.pipeline(dataset), mask)
    return whole[tuple(slice(n) for n in dataset.shape)].tobytes()


def reopened(path: Path) -> contextlib.closing[h5py.File]:
    """Open a file anew: what HDF5 wrote itself it has in memory, not yet packed."""
    return contextlib.closing(h5py.File(path, "r"))


@given(st.data())
def test_n_bit_gives_the_bytes_that_hdf5_gives(tmp_path_factory, data) -> None:
    """Any bits are values of any type, so chunks hold random bytes.

    HDF5 does not write them: its own packing of some types ends the process.
    """
    path = tmp_path_factory.mktemp("nbit") / "n.h5"
    datatype = data.draw(packed.TYPES)
    (shape,) = chunks = (data.draw(st.integers(1, 20)),)
    random = np.random.default_rng(7)
    with h5py.File(path, "w") as file:
        dataset = packed.create(file, "d", datatype, (shape,), chunks, [(N_BIT, ())])
        dataset.id.write_direct_chunk((0,), random.bytes(shape * datatype.get_size()))
    with reopened(path) as file:
        if packed.confuses_hdf5(datatype):
            with pytest.raises(UnsupportedError, match="packs other members wrongly"):
                decode(file["d"])
        else:
            assert decode(file["d"]) == packed.read_raw(file["d"])
    path.unlink()


KINDS = {
    "integers": packed.integer(h5t.STD_I32LE, 4, 19, 3),
    "floats": packed.short_float(),
    "compounds": packed.compound(
        [(0, packed.integer(h5t.STD_U16BE, 2, 9)), (2, packed.short_float())]
    ),
    "arrays": h5t.array_create(packed.integer(h5t.STD_I16LE, 2, 9, 2), (2, 3)),
    "plain": h5t.STD_I32LE,
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", AFTER, ids=lambda more: "+".join(str(n) for n, _ in more))
def test_filters_over_n_bit(tmp_path, kind, more) -> None:
    filters, datatype = [(N_BIT, ()), *more], KINDS[kind]
    with h5py.File(tmp_path / "n.h5", "w") as file:
        dataset = packed.create(file, "d", datatype, (23, 5), (10, 3), filters)
        packed.write_raw(dataset, np.random.default_rng(2).bytes(115 * datatype.get_size()))
    with reopened(tmp_path / "n.h5") as file:
        assert decode(file["d"]) == packed.read_raw(file["d"])


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("base", [h5t.STD_U8LE, h5t.STD_I8BE], ids=["little", "big"])
def test_n_bit_integers_of_every_precision(tmp_path, size, base) -> None:
    random = np.random.default_rng(size)
    with h5py.File(tmp_path / "n.h5", "w") as file:
        for precision in range(4 * size + 1, 8 * size + 1):
            offset = (8 * size - precision) // 2
            datatype = packed.integer(base, size, precision, offset)
            dataset = packed.create(file, f"{precision}", datatype, (43,), (20,), [(N_BIT, ())])
            packed.write_raw(dataset, random.bytes(43 * size))
    with reopened(tmp_path / "n.h5") as file:
        for dataset in file.values():
            assert decode(dataset) == packed.read_raw(dataset), dataset.name


def test_n_bit_of_more_elements_than_one_step(tmp_path) -> None:
    kinds = {"integers": packed.integer(h5t.STD_I32LE, 4, 19, 3), "records": KINDS["compounds"]}
    with h5py.File(tmp_path / "n.h5", "w") as file:
        for name, kind in kinds.items():
            dataset = packed.create(file, name, kind, (70001,), (70001,), [(N_BIT, ())])
            packed.write_raw(dataset, np.random.default_rng(1).bytes(70001 * kind.get_size()))
    with reopened(tmp_path / "n.h5") as file:
        for dataset in file.values():
            assert decode(dataset) == packed.read_raw(dataset), dataset.name


INTEGERS = ["i1", "u1", "<i2", ">u2", "<u4", ">i4", "<i8", ">u8"]


@given(st.data())
def test_scale_offset_of_integers_gives_the_values_that_hdf5_gives(
    tmp_path_factory, data
) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(INTEGERS)))
    info = np.iinfo(dtype)
    bound = data.draw(st.sampled_from([0, 1, 5, 100, info.max]))
    low = data.draw(st.integers(info.min, info.max - bound))
    drawn = st.one_of(st.integers(low, low + bound), st.integers(info.min, info.max))
    values = np.array(data.draw(st.lists(drawn, min_size=1, max_size=40)), dtype=dtype)
    check_scale_offset(
        tmp_path_factory.mktemp("scale") / "s.h5",
        values,
        scaleoffset=data.draw(st.integers(0, 8 * dtype.itemsize)),
        fillvalue=data.draw(st.one_of(st.none(), drawn)),
        chunks=(data.draw(st.integers(1, 40)),),
        options=data.draw(st.sampled_from([{}, {"compression": "gzip", "shuffle": True}])),
    )


@given(st.data())
def test_scale_offset_of_floats_gives_the_values_that_hdf5_gives(
    tmp_path_factory, data
) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(["<f4", ">f4", "<f8", ">f8"])))
    size = data.draw(st.sampled_from([1.0, 1024.0, 2.0**50]))
    drawn = st.floats(-size, size, width=8 * dtype.itemsize)
    values = np.array(data.draw(st.lists(drawn, min_size=1, max_size=40)), dtype=dtype)
    check_scale_offset(
        tmp_path_factory.mktemp("scale") / "s.h5",
        values,
        scaleoffset=data.draw(st.integers(0, 12)),
        fillvalue=data.draw(st.one_of(st.none(), drawn)),
        chunks=(data.draw(st.integers(1, 40)),),
        options=data.draw(st.sampled_from([{}, {"compression": "gzip", "shuffle": True}])),
    )


def check_scale_offset(
    path: Path, values: np.ndarray, *, options: dict[str, Any], **more: Any
) -> None:
    more["chunks"] = (min(more["chunks"][0], len(values)),)
    with h5py.File(path, "w") as file:
        file.create_dataset("d", data=values, **more, **options)
    with reopened(path) as file:
        found = np.frombuffer(decode(file["d"], values.dtype), values.dtype)
        try:
            expected = file["d"][...]
        except OSError:  # HDF5 1.14.6 does not read its own chunks of full precision
            error = 10.0 ** -more["scaleoffset"]
            np.testing.assert_allclose(found, values, rtol=1e-6, atol=error)
        else:
            np.testing.assert_array_equal(found, expected)
    path.unlink()


@pytest.mark.sampled(7)
@pytest.mark.parametrize("digits", [-40, -3, 0, 3, 40])
@pytest.mark.parametrize("dtype", ["<f4", ">f8"])
@pytest.mark.parametrize("n_bits", [0, 1, 9, 31])
def test_scale_offset_of_any_factor_and_header(tmp_path, digits, dtype, n_bits) -> None:
    options = (0, digits % 2**32)
    stored = header(n_bits, np.array(1.5, dtype).view(f"{dtype[0]}u{dtype[2]}").item())
    stored += np.random.default_rng(3).bytes(40)
    kind = h5t.py_create(np.dtype(dtype))
    with h5py.File(tmp_path / "s.h5", "w") as file:
        dataset = packed.create(file, "d", kind, (10,), (10,), [(SCALE_OFFSET, options)])
        dataset.id.write_direct_chunk((0,), stored)
    with reopened(tmp_path / "s.h5") as file:
        found = np.frombuffer(decode(file["d"], np.dtype(dtype)), dtype)
        np.testing.assert_array_equal(found, file["d"][...])


def test_a_chunk_that_skipped_the_filter_is_taken_as_it_is(tmp_path) -> None:
    values = np.arange(10, dtype="<i4")
    with h5py.File(tmp_path / "s.h5", "w") as file:
        dataset = file.create_dataset("d", (10,), "<i4", chunks=(10,), scaleoffset=0)
        dataset.id.write_direct_chunk((0,), values.tobytes(), filter_mask=1)
    with reopened(tmp_path / "s.h5") as file:
        assert decode(file["d"], values.dtype) == values.tobytes()


@pytest.mark.parametrize("name", ["lzf", "zstd", "lz4", "blosc", "bitshuffle", "szip"])
def test_other_compressors_over_scale_offset(tmp_path, name) -> None:
    pytest.importorskip("imagecodecs")
    if name == "szip":
        if not h5py.h5z.filter_avail(h5py.h5z.FILTER_SZIP):
            pytest.skip("this HDF5 has no szip")
        more: dict[str, Any] = {"compression": "szip", "compression_opts": ("nn", 8)}
    elif name == "lzf":
        more = {"compression": "lzf"}
    else:
        plugin = pytest.importorskip("hdf5plugin")
        classes = {"zstd": "Zstd", "lz4": "LZ4", "blosc": "Blosc", "bitshuffle": "Bitshuffle"}
        more = dict(getattr(plugin, classes[name])())
    values = np.repeat(np.arange(1000, 1400, dtype="<i4"), 5)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("d", data=values, chunks=(2000,), scaleoffset=0, **more)
    with reopened(tmp_path / "s.h5") as file:
        ((_, (mask, data)),) = packed.stored_chunks(file["d"]).items()
        assert decode(file["d"], values.dtype) == values.tobytes()
        window = np.zeros(2000, "<i4")
        if not mask:  # else HDF5 skipped a compressor that cannot take the packed bytes
            with pytest.raises(CorruptFileError):
                decode_chunk(data[: len(data) // 2], window, packed.pipeline(file["d"]), mask)


# --- what is refused ----------------------------------------------------------------------

SCALE = (2, 0, 10, 0, 4, 1, 0, 1, 7) + 11 * (0,)  # ten integers of four bytes, fill value 7
WRONG_SCALES = {
    "no parameters": ((), "0 parameters"),
    "one": ((2,), "1 parameters"),
    "too many": ((*SCALE, 0), "21 parameters"),
    "other elements": ((2, 0, 11, *SCALE[3:]), "for 11 elements"),
    "no elements": ((2, 0, 0, *SCALE[3:]), "for 0 elements"),
    "as many bytes": ((2, 0, 5, 0, 8, *SCALE[5:]), "for 5 elements of 8 bytes"),
    "no size": ((*SCALE[:4], 0, *SCALE[5:]), "none that HDF5 writes"),
    "odd size": ((*SCALE[:4], 3, *SCALE[5:]), "none that HDF5 writes"),
    "scale type": ((0, *SCALE[1:]), "none that HDF5 writes"),
    "exponents": ((1, 0, 10, 1, *SCALE[4:]), "none that HDF5 writes"),
    "more bits than a number has": ((2, 33, *SCALE[2:]), "none that HDF5 writes"),
    "unknown class": ((*SCALE[:3], 2, *SCALE[4:]), "none that HDF5 writes"),
    "unknown sign": ((*SCALE[:5], 2, *SCALE[6:]), "none that HDF5 writes"),
    "unknown order": ((*SCALE[:6], 2, *SCALE[7:]), "none that HDF5 writes"),
    "class": ((0, 0, 10, 1, *SCALE[4:]), "another class"),
    "sign": ((*SCALE[:5], 0, *SCALE[6:]), "another sign"),
    "order": ((*SCALE[:6], 1, *SCALE[7:]), "another byte order"),
}


def decode_one(
    number: int, options: tuple[int, ...], stored: bytes, window: np.ndarray
) -> np.ndarray:
    stage = Filter(id=number, flags=0, options=options, name="")
    decode_chunk(stored, window, FilterPipeline(filters=(stage,)))
    return window


@pytest.mark.parametrize("name", WRONG_SCALES)
def test_scale_offset_refuses_parameters(name) -> None:
    options, message = WRONG_SCALES[name]
    with pytest.raises(CorruptFileError, match=message):
        decode_one(SCALE_OFFSET, options, header(3) + bytes(4), np.zeros(10, "<i4"))


WRONG_CHUNKS = {
    "nothing": (b"", "no bytes"),
    "a byte": (b"\x03", "header of 21 bytes is cut off"),
    "header cut off": (header(3)[:-1], "header of 21 bytes is cut off"),
    "no values": (header(3), "take 4 bytes, 0 are stored"),
    "a byte too few": (header(3) + bytes(3), "take 4 bytes, 3 are stored"),
    "more bits than a number has": (header(33) + bytes(60), "33 bits"),
    "bits beyond counting": (header(2**32 - 1) + bytes(60), "4294967295 bits"),
    "full precision, few bytes": (header(32) + bytes(39), "take 40 bytes, 39 are stored"),
}


@pytest.mark.parametrize("name", WRONG_CHUNKS)
def test_scale_offset_refuses_chunks(name) -> None:
    stored, message = WRONG_CHUNKS[name]
    with pytest.raises(CorruptFileError, match=message):
        decode_one(SCALE_OFFSET, SCALE, stored, np.zeros(10, "<i4"))


ATOM = (4, 0, 12, 3)  # size, byte order, precision, offset
WRONG_BITS = {
    "no parameters": ((), "0 parameters"),
    "one": ((1,), "1 parameters"),
    "another number": ((9, 0, 10, 1, *ATOM), "say 9 parameters"),
    "huge": ((70_000, 0, 10, 1, *ATOM) + 69_992 * (1,), "describe a type with 8"),
    "no type": ((3, 0, 10), "end within a type"),
    "class alone": ((4, 0, 10, 1), "end within a type"),
    "number ends early": ((7, 0, 10, 1, 4, 0, 12), "end within a type"),
    "unknown class": ((8, 0, 10, 5, *ATOM), "class 5"),
    "nothing to pack": ((5, 0, 10, 4, 4), "nothing to pack"),
    "other elements": ((8, 0, 11, 1, *ATOM), "for 11 elements"),
    "size": ((8, 0, 10, 1, 2, *ATOM[1:3], 0), "of 2 bytes"),
    "no size": ((8, 0, 10, 1, 0, 0, 0, 0), "no bytes"),
    "no precision": ((8, 0, 10, 1, 4, 0, 0, 0), "0 bits"),
    "precision": ((8, 0, 10, 1, 4, 0, 33, 0), "33 bits"),
    "offset": ((8, 0, 10, 1, 4, 0, 30, 3), "from bit 3"),
    "precision and offset wrap": ((8, 0, 10, 1, 4, 0, 2**32 - 1, 2), "from bit 2"),
    "order": ((8, 0, 10, 1, 4, 2, 12, 0), "byte order 2"),
    "another order": ((8, 0, 10, 1, 4, 1, 12, 0), "another byte order"),
    "array of nothing": ((10, 0, 10, 2, 4, 1, 0, 0, 12, 0), "0 bytes within 4"),
    "array in parts": ((10, 0, 10, 2, 4, 1, 3, 0, 12, 0), "3 bytes within 4"),
    "array without a type": ((5, 0, 10, 2, 4), "end within a type"),
    "arrays for ever": ((83, 0, 10) + 40 * (2, 4), "4 bytes within 4"),
    "compound without members": ((6, 0, 10, 3, 4, 0), "without members"),
    "members that are not there": ((13, 0, 10, 3, 4, 2, 0, 1, 2, 0, 9, 0, 0), "end within"),
    "members beyond counting": ((6, 0, 10, 3, 4, 2**32 - 1), "end within"),
    "member outside": ((12, 0, 10, 3, 4, 1, 3, 1, 2, 0, 9, 0), "5 bytes within 4"),
    "offset wraps": ((12, 0, 10, 3, 4, 1, 2**32 - 1, 1, 2, 0, 9, 0), "within 4"),
    "members overlap": (
        (18, 0, 10, 3, 4, 2, 0, 1, 2, 0, 9, 0, 1, 1, 2, 0, 9, 0),
        "members that overlap",
    ),
    "compounds for ever": ((83, 0, 10, 3) + 19 * (4, 1, 0, 3) + (4, 1, 0), "within"),
}


@pytest.mark.parametrize("name", WRONG_BITS)
def test_n_bit_refuses_parameters(name) -> None:
    options, message = WRONG_BITS[name]
    with pytest.raises(CorruptFileError, match=message):
        decode_one(N_BIT, options, bytes(200), np.zeros(10, "<i4"))


def test_types_that_contain_themselves_without_end_are_refused() -> None:
    nested = (3, 4, 1, 0)  # a compound of one member, which is a compound
    options = (0, 0, 10) + 2000 * nested
    with pytest.raises(CorruptFileError, match="within"):
        decode_one(N_BIT, (len(options), *options[1:]), bytes(200), np.zeros(10, "<i4"))


def test_n_bit_refuses_a_stream_that_is_too_short() -> None:
    options = (8, 0, 10, 1, *ATOM)
    decode_one(N_BIT, options, bytes(15), np.zeros(10, "<i4"))
    with pytest.raises(CorruptFileError, match="take 15 bytes, 14 are stored"):
        decode_one(N_BIT, options, bytes(14), np.zeros(10, "<i4"))
    plain = (8, 1, 10, 1, 4, 0, 32, 0)
    with pytest.raises(CorruptFileError, match="gave 39 bytes, chunk needs 40"):
        decode_one(N_BIT, plain, bytes(39), np.zeros(10, "<i4"))


def test_large_compounds_with_n_bit_are_not_read() -> None:
    options = (18, 0, 2, 3, 80_000, 2, 0, 1, 4, 0, 12, 0, 4, 2, 79_996, 4, 79_996, 0)
    options = (17, *options[1:17])
    with pytest.raises(UnsupportedError, match="compounds of 80000 bytes"):
        decode_one(N_BIT, options, bytes(200_000), np.zeros(2, "V80000"))


@pytest.mark.parametrize("first", [N_BIT, SCALE_OFFSET])
def test_packed_twice_or_compressed_before_is_not_supported(first) -> None:
    stages = {n: Filter(id=n, flags=0, options=(), name="") for n in (1, N_BIT, SCALE_OFFSET)}
    for below, above in itertools.product((1, N_BIT, SCALE_OFFSET), (N_BIT, SCALE_OFFSET)):
        pipeline = FilterPipeline(filters=(stages[below], stages[above]))
        assert pipeline.unsupported()
    assert not FilterPipeline(filters=(stages[first], stages[1])).unsupported()
    assert FilterPipeline(filters=(stages[first], stages[1], stages[1])).unsupported()


@given(
    st.sampled_from([N_BIT, SCALE_OFFSET]),
    st.lists(st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1)), max_size=24),
    st.binary(max_size=80),
)
def test_random_parameters_and_bytes_decode_or_raise(number, options, stored) -> None:
    if number == N_BIT and options:
        options[0] = len(options)
    with contextlib.suppress(CorruptFileError, UnsupportedError):
        decode_one(number, tuple(options), stored, np.zeros(10, "<i4"))
