"""Decoding, type, fill value and attributes of each target, with examples.

`test_targets_property` draws such files; the files here are like the files of users.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from oracle import values_of
from strategies import write_references

Open = Callable[..., xr.DataArray]

STORAGES = {
    "chunked": {"n": 1, "chunks": True},
    "contiguous": {"n": 1, "chunks": None},
    # Many small datasets are opened and read together.
    "many small": {"n": 12, "chunks": None},
    "many chunked": {"n": 12, "chunks": True},
}
SCHEDULERS = ("synchronous", "threads")


def write_cells(
    path: Path,
    cells: Sequence[tuple[Any, dict[str, Any]]],
    *,
    n: int = 1,
    chunks: bool | None = None,
    name: str = "cell",
    regions: bool = False,
) -> None:
    """Write datasets of (values, attributes), each n times, and references to whole datasets.

    All datasets have the same name, in different groups. ``refs`` lists them n times in turn.
    """
    dtype = h5py.regionref_dtype if regions else h5py.ref_dtype
    with h5py.File(path, "w") as file:
        made = []
        for k in range(n):
            for i, (values, attrs) in enumerate(cells):
                dataset = file.create_dataset(f"c{k}_{i}/{name}", data=values, chunks=chunks)
                dataset.attrs.update(attrs)
                made.append(dataset.regionref[...] if regions else dataset.ref)
        write_references(file, "refs", made, dtype=dtype)


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest) -> dict[str, Any]:
    return STORAGES[request.param]


@pytest.fixture(params=SCHEDULERS)
def scheduler(request: pytest.FixtureRequest) -> Iterator[str]:
    with dask.config.set(scheduler=request.param):
        yield request.param


# --- options by variable ------------------------------------------------------------------


@pytest.fixture
def packed(path: Path) -> Path:
    """One packed dataset, regions of three and four elements in it, and a null reference."""
    with h5py.File(path, "w") as file:
        v = file.create_dataset("v", data=np.arange(10, dtype="i2"))
        v.attrs["scale_factor"] = 0.5
        v.attrs["_FillValue"] = np.int16(3)
        write_references(file, "refs", [v.regionref[:3], v.regionref[2:6], None])
        write_references(file, "objects", [v.ref], dtype=h5py.ref_dtype)
    return path


@pytest.mark.parametrize("chunks", [None, 1, "auto"])
def test_an_option_for_the_target_holds_in_every_layout(
    packed: Path, open_refs: Open, chunks: Any
) -> None:
    refs = open_refs(packed, mask_and_scale={"v": False})
    ragged = refs[:2].h5ref.resolve("ragged", chunks=chunks)
    assert values_of(ragged).values.tolist() == [0, 1, 2, 2, 3, 4, 5]
    padded = values_of(refs[:2].h5ref.resolve("pad", chunks=chunks))
    assert padded.values.tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]
    stacked = refs[:1].h5ref.resolve(chunks=chunks)
    assert stacked.values.tolist() == [[0, 1, 2]]
    filled = refs[[0, 2]].h5ref.resolve(chunks=chunks, on_null="fill")
    assert filled.values.tolist() == [[0, 1, 2], [3, 3, 3]]
    for values in (values_of(ragged), padded, stacked, filled):
        assert values.dtype == values.values.dtype == np.int16
        assert values.attrs == {"scale_factor": 0.5, "_FillValue": 3}


def test_an_option_for_the_target_holds_in_statistics_and_functions(
    packed: Path, open_refs: Open
) -> None:
    refs = open_refs(packed, mask_and_scale={"v": False})[:2]
    assert refs.h5ref.sum().values.tolist() == [3, 14]
    assert refs.h5ref.count().values.tolist() == [3, 4]
    assert refs.h5ref.mean().values.tolist() == [1, 3.5]
    assert refs.h5ref.max().values.tolist() == [2, 5]
    for call in (refs.h5ref.map, refs.h5ref.reduce):
        assert call(np.sum).values.tolist() == [3, 14]
        assert call(lambda v: v.dtype.str[1:], dtype=object).values.tolist() == ["i2", "i2"]
    assert [v.values.tolist() for _, v in refs.h5ref.items()] == [[0, 1, 2], [2, 3, 4, 5]]


@pytest.mark.parametrize("value", [False, True])
def test_an_option_for_the_reference_variable_does_not_apply_to_targets(
    packed: Path, open_refs: Open, value: bool
) -> None:
    refs = open_refs(packed, mask_and_scale={"refs": value})[:2]
    assert refs.h5ref.sum().values.tolist() == [1.5, 5.5]
    assert refs.h5ref.count().values.tolist() == [3, 3]
    found = values_of(refs.h5ref.resolve("ragged")).values
    np.testing.assert_array_equal(found, [0, 0.5, 1, 1, np.nan, 2, 2.5])


def test_object_references_follow_the_option_for_the_target(packed: Path) -> None:
    with xr.open_dataset(packed, engine="h5ref", mask_and_scale={"v": False}) as ds:
        assert ds["objects"].h5ref.resolve().values.tolist() == [list(range(10))]
        assert ds["objects"].h5ref.sum().values.tolist() == [45]


@pytest.mark.slow
@pytest.mark.parametrize("regions", [False, True])
def test_targets_of_one_name_follow_the_option_for_it(
    path: Path, open_refs: Open, storage: dict[str, Any], regions: bool
) -> None:
    cells = [(np.arange(1, 3, dtype="i2"), {"scale_factor": 0.5}) for _ in range(2)]
    write_cells(path, cells, name="w", regions=regions, **storage)
    refs = open_refs(path, mask_and_scale={"w": False})
    raw = [[1, 2]] * refs.size
    stacked = refs.h5ref.resolve()
    assert stacked.dtype == np.int16
    assert stacked.values.tolist() == raw
    assert values_of(refs.h5ref.resolve("ragged")).values.tolist() == np.ravel(raw).tolist()
    assert refs.h5ref.sum().values.tolist() == [3] * refs.size
    assert [v.values.tolist() for _, v in refs.h5ref.items()] == raw


def test_targets_of_several_names_follow_their_own_options(path: Path, open_refs: Open) -> None:
    with h5py.File(path, "w") as file:
        made = []
        for name in ("v", "g/v", "w", "g/w"):
            dataset = file.create_dataset(name, data=np.arange(2, 4, dtype="i2"))
            dataset.attrs["scale_factor"] = 0.5
            made.append(dataset.regionref[:])
        write_references(file, "refs", made)
    refs = open_refs(path, mask_and_scale={"v": False})
    expected = [[2, 3], [2, 3], [1, 1.5], [1, 1.5]]
    assert refs.h5ref.resolve().values.tolist() == expected
    assert values_of(refs.h5ref.resolve("pad")).values.tolist() == expected
    assert refs.h5ref.sum().values.tolist() == [5, 5, 2.5, 2.5]
    types = refs.h5ref.map(lambda v: v.dtype.kind, dtype=object)
    assert types.values.tolist() == ["i", "i", "f", "f"]
    assert [v.dtype.kind for _, v in refs.h5ref.items()] == ["i", "i", "f", "f"]


def test_decoders_of_times_are_chosen_by_the_name_of_the_target(
    path: Path, open_refs: Open
) -> None:
    dated = {"units": "days since 2000-01-01"}
    with h5py.File(path, "w") as file:
        made = []
        for name in ("t", "u"):
            dataset = file.create_dataset(name, data=np.arange(3, dtype="i4"))
            dataset.attrs.update(dated)
            made.append(dataset.ref)
        write_references(file, "refs", made, dtype=h5py.ref_dtype)
    days = np.arange("2000-01-01", "2000-01-04", dtype="M8[D]")
    refs = open_refs(path, decode_times={"t": False})
    kinds = refs.h5ref.map(lambda v: v.dtype.kind, dtype=object).values.tolist()
    assert kinds == ["i", "M"]
    with pytest.raises(ValueError, match="dtype="):
        refs.h5ref.resolve()
    assert refs[:1].h5ref.resolve().values.tolist() == [[0, 1, 2]]
    assert refs[:1].h5ref.resolve().attrs == dated
    np.testing.assert_array_equal(refs[1:].h5ref.resolve(), [days])
    coder = xr.coders.CFDatetimeCoder(time_unit="s")
    refs = open_refs(path, decode_times={"t": coder})
    assert refs[:1].h5ref.resolve().dtype == np.dtype("M8[s]")
    both = refs.h5ref.resolve()
    assert both.dtype == np.dtype("M8[ns]")
    np.testing.assert_array_equal(both, [days, days])


@pytest.mark.parametrize("decoded", [{"t": True}, {"other": True}])
def test_decoders_of_durations_are_chosen_by_the_name_of_the_target(
    path: Path, open_refs: Open, decoded: dict[str, bool]
) -> None:
    """Other names have the default of xarray, which does not decode durations."""
    with h5py.File(path, "w") as file:
        file["t"] = np.arange(3)
        file["t"].attrs["units"] = "hours"
        write_references(file, "refs", [file["t"].regionref[1:]])
    refs = open_refs(path, decode_timedelta=decoded)
    with warnings.catch_warnings():
        # xarray announces that default in some versions.
        warnings.simplefilter("ignore", FutureWarning)
        with xr.open_dataset(path, engine="h5ref", decode_timedelta=decoded) as ds:
            alone = ds["t"][1:].load()
        stacked = refs.h5ref.resolve()
        ragged = values_of(refs.h5ref.resolve("ragged"))
        longest = refs.h5ref.max()
    assert stacked.dtype == ragged.dtype == alone.dtype
    assert stacked.attrs == ragged.attrs == alone.attrs
    np.testing.assert_array_equal(stacked[0], alone)
    np.testing.assert_array_equal(longest[0], alone.max())


# --- packed, dated and filled differently ---------------------------------------------------

GRANULES = np.arange(24, dtype="i2").reshape(4, 6)
BOX = np.s_[1:3, 2:5]
FACTORS = (0.1, 0.2, 0.3)


def write_granules(folder: Path, attrs: Sequence[dict[str, Any]], **options: Any) -> list[Path]:
    """Write one file for each set of attributes, with one region of ``bt`` each."""
    paths = []
    for k, own in enumerate(attrs):
        paths.append(folder / f"granule{k}.h5")
        with h5py.File(paths[-1], "w") as file:
            bt = file.create_dataset("bt", data=GRANULES, **options)
            bt.attrs.update(own)
            write_references(file, "refs", [bt.regionref[BOX]])
    return paths


def only_references(ds: xr.Dataset) -> xr.Dataset:
    return ds[["refs"]].rename({ds["refs"].dims[0]: "granule"})


@pytest.fixture
def open_granules() -> Iterator[Callable[..., xr.DataArray]]:
    opened: list[xr.Dataset] = []

    def open_them(paths: list[Path], **options: Any) -> xr.DataArray:
        options = {"combine": "nested", "concat_dim": "granule"} | options
        opened.append(
            xr.open_mfdataset(paths, engine="h5ref", preprocess=only_references, **options)
        )
        return opened[-1]["refs"]

    yield open_them
    for ds in opened:
        ds.close()


def decoded_granules(paths: list[Path], **options: Any) -> np.ndarray:
    """Return the region of each file, decoded by xarray from that file alone."""
    found = []
    for path in paths:
        with xr.open_dataset(path, engine="h5ref", **options) as ds:
            found.append(ds["bt"][BOX].values)
    return np.array(found)


@pytest.fixture(params=[{}, {"chunks": (2, 3), "compression": "gzip"}])
def granules(tmp_path: Path, request: pytest.FixtureRequest) -> list[Path]:
    attrs = [{"scale_factor": f, "add_offset": 200.0} for f in FACTORS]
    return write_granules(tmp_path, attrs, **request.param)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("chunks", [None, 1, 2, "auto"])
def test_granules_are_decoded_by_their_own_scale_factors(
    granules: list[Path], open_granules: Open, chunks: Any, scheduler: str
) -> None:
    refs = open_granules(granules)
    expected = decoded_granules(granules)
    np.testing.assert_allclose(expected[:, 0, 0], 200 + np.array(FACTORS) * 8)
    stacked = refs.h5ref.resolve(chunks=chunks)
    assert stacked.dims[0] == "granule"
    assert stacked.dtype == stacked.values.dtype == np.float64
    np.testing.assert_array_equal(stacked, expected)
    np.testing.assert_array_equal(stacked[1:, 1, ::2], expected[1:, 1, ::2])
    ragged = values_of(refs.h5ref.resolve("ragged", chunks=chunks))
    np.testing.assert_array_equal(ragged, expected.reshape(-1))
    np.testing.assert_array_equal(ragged[4:9], expected.reshape(-1)[4:9])
    padded = values_of(refs.h5ref.resolve("pad", chunks=chunks))
    np.testing.assert_array_equal(padded, expected)
    assert stacked.attrs == ragged.attrs == padded.attrs == {}


def test_statistics_and_functions_use_the_scale_factors_of_each_granule(
    granules: list[Path], open_granules: Open, scheduler: str
) -> None:
    refs = open_granules(granules)
    expected = decoded_granules(granules)
    for name in ("sum", "mean", "min", "max", "std"):
        np.testing.assert_allclose(
            getattr(refs.h5ref, name)(), getattr(expected, name)(axis=(1, 2)), err_msg=name
        )
    assert refs.h5ref.count().values.tolist() == [6, 6, 6]
    np.testing.assert_array_equal(refs.h5ref.reduce(np.max), expected.max(axis=(1, 2)))
    corners = refs.h5ref.map(lambda v: v[0, :2], output_sizes={"corner": 2})
    np.testing.assert_array_equal(corners, expected[:, 0, :2])
    np.testing.assert_array_equal([v.values for _, v in refs.h5ref.items()], expected)


@pytest.mark.parametrize("options", [{"mask_and_scale": False}, {"decode_cf": False}])
def test_raw_granules_stack_with_different_scale_factors(
    granules: list[Path], open_granules: Open, options: dict[str, Any]
) -> None:
    refs = open_granules(granules, **options)
    stacked = refs.h5ref.resolve()
    assert stacked.dtype == np.int16
    np.testing.assert_array_equal(stacked, [GRANULES[BOX]] * 3)
    assert stacked.attrs == {"add_offset": 200.0}
    assert refs.h5ref.sum().values.tolist() == [int(GRANULES[BOX].sum())] * 3


@pytest.mark.slow
def test_processes_decode_each_granule(
    granules: list[Path], open_granules: Open, process_pool: ProcessPoolExecutor
) -> None:
    refs = open_granules(granules)
    expected = decoded_granules(granules)
    with dask.config.set(scheduler="processes", pool=process_pool):
        np.testing.assert_array_equal(refs.h5ref.resolve(chunks=1), expected)
        np.testing.assert_allclose(refs.h5ref.mean(chunks=2), expected.mean(axis=(1, 2)))
        ragged = values_of(refs.h5ref.resolve("ragged", chunks=1))
        np.testing.assert_array_equal(ragged, expected.reshape(-1))


def test_packed_and_unpacked_targets_are_decoded_separately(
    tmp_path: Path, open_granules: Open
) -> None:
    paths = write_granules(tmp_path, [{}, {"scale_factor": np.float32(0.5)}])
    refs = open_granules(paths)
    expected = np.array([GRANULES[BOX], GRANULES[BOX] * 0.5])
    stacked = refs.h5ref.resolve()
    assert stacked.dtype == np.float32  # holds 16-bit integers exactly
    np.testing.assert_array_equal(stacked, expected)
    kinds = refs.h5ref.map(lambda v: v.dtype.str[1:], dtype=object).values.tolist()
    assert kinds == ["i2", "f4"]


def test_fill_values_of_each_target_are_masked(tmp_path: Path, open_granules: Open) -> None:
    fills = [int(GRANULES[1, 2]), int(GRANULES[2, 4]), None]
    attrs = [{} if f is None else {"_FillValue": np.int16(f)} for f in fills]
    paths = write_granules(tmp_path, attrs)
    refs = open_granules(paths)
    stacked = refs.h5ref.resolve()
    missing = [np.argwhere(np.isnan(v)).tolist() for v in stacked.values]
    assert missing == [[[0, 0]], [[1, 2]], []]
    assert refs.h5ref.count().values.tolist() == [5, 5, 6]
    np.testing.assert_allclose(
        refs.h5ref.mean(), np.nanmean(stacked.values, axis=(1, 2)), rtol=1e-6
    )


def test_dates_are_decoded_by_the_units_of_each_target(
    path: Path, open_refs: Open, storage: dict[str, Any]
) -> None:
    seconds = (np.array([0, 86400], "i4"), {"units": "seconds since 2000-01-01"})
    days = (np.array([1, 2], "f8"), {"units": "days since 2000-01-01"})
    write_cells(path, [seconds, days], **storage)
    refs = open_refs(path)
    n = refs.size // 2
    wanted = np.array([["2000-01-01", "2000-01-02"], ["2000-01-02", "2000-01-03"]], "M8[ns]")
    stacked = refs.h5ref.resolve()
    np.testing.assert_array_equal(stacked, np.tile(wanted, (n, 1)))
    assert stacked.attrs == {}
    np.testing.assert_array_equal(refs.h5ref.max(), np.tile(wanted[:, 1], n))
    ragged = values_of(refs.h5ref.resolve("ragged"))
    np.testing.assert_array_equal(ragged, np.tile(wanted.reshape(-1), n))


# --- the type of each target --------------------------------------------------------------


def decode_text(values: np.ndarray) -> str:
    """Decode a MATLAB cell of text; an empty one holds its size as uint64."""
    return values.tobytes().decode("utf-16le") if values.dtype == np.uint16 else ""


@pytest.mark.sampled(17)
@pytest.mark.parametrize("regions", [False, True])
def test_functions_get_cells_of_text_as_they_are_stored(
    path: Path, open_refs: Open, storage: dict[str, Any], regions: bool, scheduler: str
) -> None:
    cells = [np.frombuffer(t.encode("utf-16le"), "u2") for t in ("alpha", "be")]
    cells.insert(1, np.array([0, 0], "u8"))
    write_cells(path, [(c, {}) for c in cells], regions=regions, **storage)
    refs = open_refs(path)
    n = refs.size // 3
    for chunks in (None, 2, "auto"):
        for call in (refs.h5ref.map, refs.h5ref.reduce):
            found = call(decode_text, dtype=object, chunks=chunks)
            assert found.values.tolist() == ["alpha", "", "be"] * n
            types = call(lambda v: v.dtype.str[1:], dtype=object, chunks=chunks)
            assert types.values.tolist() == ["u2", "u8", "u2"] * n
    assert [v.dtype.str[1:] for _, v in refs.h5ref.items()] == ["u2", "u8", "u2"] * n


@pytest.mark.slow
def test_processes_get_cells_of_text_as_they_are_stored(
    path: Path, open_refs: Open, process_pool: ProcessPoolExecutor
) -> None:
    cells = [np.frombuffer("alpha".encode("utf-16le"), "u2"), np.array([0, 0], "u8")]
    write_cells(path, [(c, {}) for c in cells], n=6)
    refs = open_refs(path)
    with dask.config.set(scheduler="processes", pool=process_pool):
        found = refs.h5ref.map(decode_text, dtype=object, chunks=4)
        assert found.values.tolist() == ["alpha", ""] * 6


NUMBERS = [(np.arange(3), {}), (np.arange(4.0) / 3, {})]


@pytest.mark.slow
@pytest.mark.parametrize("regions", [False, True])
def test_int64_and_float64_targets_are_refused_only_in_one_array(
    path: Path, open_refs: Open, storage: dict[str, Any], regions: bool
) -> None:
    write_cells(path, NUMBERS, regions=regions, **storage)
    refs = open_refs(path)
    n = refs.size // 2
    np.testing.assert_allclose(refs.h5ref.mean(), [1, 0.5] * n)
    np.testing.assert_allclose(refs.h5ref.max(), [2, 1] * n)
    assert refs.h5ref.count().values.tolist() == [3, 4] * n
    assert refs.h5ref.map(len, dtype="i8").values.tolist() == [3, 4] * n
    assert refs.h5ref.map(np.size).values.tolist() == [3, 4] * n
    assert [v.dtype.kind for _, v in refs.h5ref.items()] == ["i", "f"] * n
    for layout in ("ragged", "pad"):
        with pytest.raises(ValueError, match=r"int64.*float64.*dtype="):
            refs.h5ref.resolve(layout)
    ragged = values_of(refs.h5ref.resolve("ragged", dtype="f8"))
    assert ragged.dtype == ragged.values.dtype == np.float64
    expected = np.concatenate([values for values, _ in NUMBERS] * n)
    np.testing.assert_array_equal(ragged, expected)


def test_int64_and_float64_targets_of_several_files_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for path, cell in zip(paths, NUMBERS, strict=True):
        write_cells(path, [cell])
    with xr.open_mfdataset(
        paths,
        engine="h5ref",
        combine="nested",
        concat_dim="granule",
        preprocess=only_references,
    ) as ds:
        np.testing.assert_allclose(ds["refs"].h5ref.mean(), [1, 0.5])
        with pytest.raises(ValueError, match="dtype="):
            ds["refs"].h5ref.resolve("pad")
        padded = values_of(ds["refs"].h5ref.resolve("pad", dtype="f8"))
        np.testing.assert_array_equal(padded[0], [0, 1, 2, np.nan])


@pytest.mark.parametrize("layout", ["stack", "ragged", "pad"])
def test_the_user_chooses_the_type_of_joined_values(
    path: Path, open_refs: Open, layout: str
) -> None:
    write_cells(path, [(np.arange(3), {}), (np.arange(3.0) + 0.5, {})])
    refs = open_refs(path)
    for dtype, halves in (("f4", [0.5, 1.5, 2.5]), ("i2", [0, 1, 2])):
        for chunks in (None, 1):
            found = refs.h5ref.resolve(layout, dtype=dtype, chunks=chunks)
            values = found if layout == "stack" else values_of(found)
            assert values.dtype == values.values.dtype == np.dtype(dtype)
            assert values.values.reshape(2, 3).tolist() == [[0, 1, 2], halves]


def test_bytes_of_several_lengths_take_the_longest_dtype(
    path: Path, open_refs: Open, storage: dict[str, Any]
) -> None:
    write_cells(path, [(np.array([b"north"]), {}), (np.array([b"south east"]), {})], **storage)
    refs = open_refs(path)
    n = refs.size // 2
    stacked = refs.h5ref.resolve()
    assert stacked.dtype == stacked.values.dtype == np.dtype("S10")
    assert stacked.values.tolist() == [[b"north"], [b"south east"]] * n
    ragged = values_of(refs.h5ref.resolve("ragged", chunks=1))
    assert ragged.values.tolist() == [b"north", b"south east"] * n
    texts = refs.h5ref.map(lambda v: (v.dtype.itemsize, v[0].decode()), dtype=object)
    assert texts.values.tolist() == [(5, "north"), (10, "south east")] * n


def test_utf8_and_ascii_text_are_joined_as_text(path: Path, open_refs: Open) -> None:
    with h5py.File(path, "w") as file:
        made = []
        for encoding in ("utf-8", "ascii"):
            dataset = file.create_dataset(encoding, (2,), dtype=h5py.string_dtype(encoding))
            dataset[:] = [encoding, ""]
            made.append(dataset.regionref[:])
        write_references(file, "refs", [*made, None])
    refs = open_refs(path)
    filled = refs.h5ref.resolve(on_null="fill")
    assert filled.values.tolist() == [["utf-8", ""], ["ascii", ""], ["", ""]]


@pytest.mark.parametrize("layout", ["stack", "ragged", "pad"])
def test_numbers_and_text_are_refused_in_one_array(
    path: Path, open_refs: Open, layout: str
) -> None:
    write_cells(path, [(np.arange(2.0), {}), (np.array([b"ab", b"c"]), {})])
    refs = open_refs(path)
    with pytest.raises(ValueError, match="float64"):
        refs.h5ref.resolve(layout)
    assert refs.h5ref.count().values.tolist() == [2, 2]
    assert refs.h5ref.map(len, dtype="i8").values.tolist() == [2, 2]
    with pytest.raises(TypeError, match="no mean"):
        refs.h5ref.mean()


# --- missing values -----------------------------------------------------------------------


@pytest.fixture
def sequences(path: Path) -> Path:
    """Sequences of floats; the third reference is null."""
    with h5py.File(path, "w") as file:
        hits = file.create_dataset("hits", (6,), dtype=h5py.vlen_dtype("f4"))
        for i in range(6):
            hits[i] = np.arange(i + 1, dtype="f4")
        write_references(file, "refs", [hits.regionref[0:2], hits.regionref[3:4], None])
    return path


@pytest.mark.parametrize("chunks", [None, 1, "auto"])
def test_a_missing_sequence_is_an_empty_array(
    sequences: Path, open_refs: Open, chunks: Any
) -> None:
    refs = open_refs(sequences)
    padded = values_of(refs[:2].h5ref.resolve("pad", chunks=chunks)).values
    filled = refs[[0, 2]].h5ref.resolve(on_null="fill", chunks=chunks).values
    assert padded[1, 0].tolist() == [0, 1, 2, 3]
    assert filled[0, 1].tolist() == [0, 1]
    for missing in (padded[1, 1], *filled[1]):
        assert isinstance(missing, np.ndarray)
        assert missing.shape == (0,)
        assert missing.dtype == np.float32
    # Empty sequences are values of their own: to change one leaves others as they were.
    ragged = refs.h5ref.resolve("ragged", on_null="fill", chunks=chunks)
    assert [len(v) for v in values_of(ragged).values] == [1, 2, 4]
    assert ragged["row_size"].values.tolist() == [2, 1, 0]


def test_a_given_fill_value_stands_for_missing_sequences(
    sequences: Path, open_refs: Open
) -> None:
    refs = open_refs(sequences)
    filled = refs[[0, 2]].h5ref.resolve(on_null="fill", fill_value="none").values
    assert filled[1].tolist() == ["none", "none"]


FILLS = {
    "float": (np.arange(2.0), {}, np.nan),
    "packed": (np.arange(2, dtype="i2"), {"scale_factor": 0.5}, np.nan),
    "masked": (np.arange(2, dtype="i2"), {"_FillValue": np.int16(9)}, np.nan),
    "integer": (np.arange(2, dtype="i2"), {}, 0),
    "complex": (np.arange(2) + 1j, {}, np.nan),
    "bool": (np.array([True, True]), {}, False),
    "date": (np.arange(2), {"units": "days since 2000-01-01"}, np.datetime64("NaT", "ns")),
    "bytes": (np.array([b"ab", b"c"]), {}, b""),
}


@pytest.mark.parametrize("kind", FILLS)
def test_a_missing_value_has_the_type_of_the_other_values(
    path: Path, open_refs: Open, kind: str
) -> None:
    values, attrs, missing = FILLS[kind]
    with h5py.File(path, "w") as file:
        d = file.create_dataset("d", data=values)
        d.attrs.update(attrs)
        write_references(file, "refs", [d.regionref[:], d.regionref[:1], None])
    refs = open_refs(path)
    padded = values_of(refs.h5ref.resolve("pad", on_null="fill"))
    filled = refs[::2].h5ref.resolve(on_null="fill")
    assert padded.dtype == filled.dtype == refs[:1].h5ref.resolve().dtype
    for found in (padded.values[1, 1], *padded.values[2], *filled.values[1]):
        if missing != missing:
            assert np.isnan(found)
        else:
            assert found == missing


def test_a_missing_integer_is_the_fill_value_of_its_own_target(
    path: Path, open_refs: Open
) -> None:
    with h5py.File(path, "w") as file:
        long = file.create_dataset("long", data=np.arange(3, dtype="i2"))
        made = [long.regionref[:]]
        for k in (1, 2):
            dataset = file.create_dataset(f"d{k}", data=np.arange(2, dtype="i2"))
            dataset.attrs["_FillValue"] = np.int16(-k)
            made.append(dataset.regionref[:])
        stored = file.create_dataset("d3", data=np.arange(2, dtype="i4"), fillvalue=-3)
        write_references(file, "refs", [*made, stored.regionref[:]])
    refs = open_refs(path, mask_and_scale=False)
    padded = values_of(refs.h5ref.resolve("pad"))
    assert padded.dtype == np.int32
    assert padded.values.tolist() == [[0, 1, 2], [0, 1, -1], [0, 1, -2], [0, 1, -3]]
    given = values_of(refs.h5ref.resolve("pad", fill_value=7))
    assert given.values[1:, 2].tolist() == [7, 7, 7]


# --- complex numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["c8", "c16"])
@pytest.mark.parametrize("chunks", [None, 1, "auto"])
def test_complex_values_have_sum_mean_and_std(
    path: Path, open_refs: Open, dtype: str, chunks: Any
) -> None:
    values = (np.arange(9) ** 2 + 1j * np.arange(9)).astype(dtype)
    parts = [values[:4], values[4:], values[:0]]
    with h5py.File(path, "w") as file:
        raw = file.create_dataset("raw", data=values)
        made = [raw.regionref[:4], raw.regionref[4:], None]
        write_references(file, "refs", made)
    refs = open_refs(path)
    sums = refs.h5ref.sum(chunks=chunks, on_null="fill")
    means = refs.h5ref.mean(chunks=chunks, on_null="fill")
    deviations = refs.h5ref.std(chunks=chunks, on_null="fill")
    counts = refs.h5ref.count(chunks=chunks, on_null="fill")
    assert sums.dtype == sums.values.dtype == np.dtype(dtype)
    assert means.dtype == means.values.dtype == np.dtype(dtype)
    assert deviations.dtype == deviations.values.dtype == values.real.dtype
    assert counts.values.tolist() == [4, 5, 0]
    np.testing.assert_allclose(sums, [p.sum() for p in parts], rtol=1e-6)
    np.testing.assert_allclose(means[:2], [p.mean() for p in parts[:2]], rtol=1e-6)
    np.testing.assert_allclose(deviations[:2], [p.std() for p in parts[:2]], rtol=1e-6)
    assert np.isnan(means[2])
    assert np.isnan(deviations[2])


def test_missing_complex_values_are_skipped(path: Path, open_refs: Open) -> None:
    with h5py.File(path, "w") as file:
        raw = file.create_dataset("raw", data=np.array([1 + 1j, np.nan, 3 + 3j]))
        write_references(file, "refs", [raw.regionref[:]])
    refs = open_refs(path)
    assert refs.h5ref.count().values.tolist() == [2]
    assert refs.h5ref.sum().values.tolist() == [4 + 4j]
    assert refs.h5ref.mean().values.tolist() == [2 + 2j]
    np.testing.assert_allclose(refs.h5ref.std(), [np.sqrt(2)])


def test_complex_and_real_values_are_joined(path: Path, open_refs: Open) -> None:
    write_cells(path, [(np.arange(3, dtype="f4"), {}), (np.arange(3) * 1j, {})])
    refs = open_refs(path)
    np.testing.assert_allclose(refs.h5ref.sum(), [3, 3j])
    np.testing.assert_allclose(refs.h5ref.std(), [np.sqrt(2 / 3)] * 2, rtol=1e-6)
    np.testing.assert_array_equal(refs.h5ref.resolve(), [[0, 1, 2], [0, 1j, 2j]])


# --- attributes ---------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["stack", "ragged", "pad"])
def test_different_units_give_a_warning_and_are_left_out(
    tmp_path: Path, open_granules: Open, layout: str
) -> None:
    attrs = [{"units": u, "sensor": "a", "number": k} for k, u in enumerate(("kelvin", "degC"))]
    refs = open_granules(write_granules(tmp_path, attrs))
    with pytest.warns(UserWarning, match="units") as caught:
        found = refs.h5ref.resolve(layout)
    assert len(caught) == 1
    assert "kelvin" in str(caught[0].message)
    assert "degC" in str(caught[0].message)
    values = found if layout == "stack" else values_of(found)
    assert values.attrs == {"sensor": "a"}
    np.testing.assert_array_equal(values.values.reshape(-1), [*GRANULES[BOX].flat] * 2)


def test_units_of_decoded_dates_give_no_warning(path: Path, open_refs: Open) -> None:
    units = ("seconds since 2000-01-01", "days since 2000-01-01")
    write_cells(path, [(np.arange(2), {"units": u}) for u in units])
    assert open_refs(path).h5ref.resolve().attrs == {}
    with pytest.warns(UserWarning, match="seconds since"):
        raw = open_refs(path, decode_times=False).h5ref.resolve()
    assert raw.values.tolist() == [[0, 1], [0, 1]]


def test_attributes_of_targets_are_given_by_reference(
    path: Path, open_refs: Open, storage: dict[str, Any]
) -> None:
    cells = [
        (np.arange(2, dtype="i2"), {"scale_factor": 0.5, "units": "K", "number": 1}),
        (np.arange(2, dtype="i2"), {"scale_factor": 0.25, "units": "degC"}),
    ]
    write_cells(path, cells, **storage)
    refs = open_refs(path)
    attrs = refs.h5ref.target_attrs()
    n = refs.size // 2
    assert isinstance(attrs, xr.Dataset)
    assert set(attrs.data_vars) == {"scale_factor", "units", "number"}
    assert all(variable.dims == refs.dims for variable in attrs.data_vars.values())
    assert attrs["scale_factor"].dtype == np.float64
    assert attrs["scale_factor"].values.tolist() == [0.5, 0.25] * n
    assert attrs["units"].values.tolist() == ["K", "degC"] * n
    assert attrs["number"].dtype == object
    assert attrs["number"].values.tolist() == [1, None] * n


def test_attributes_of_targets_keep_shape_and_coordinates_of_references(
    path: Path, open_refs: Open
) -> None:
    with h5py.File(path, "w") as file:
        d = file.create_dataset("d", data=np.arange(4.0))
        d.attrs["gain"] = 2
        made = [d.regionref[:2], None, d.regionref[2:], d.regionref[:]]
        write_references(file, "refs", made, (2, 2))
    refs = open_refs(path)
    refs = refs.assign_coords(place=(refs.dims[0], ["left", "right"]))
    attrs = refs.h5ref.target_attrs()
    assert attrs["gain"].values.tolist() == [[2, None], [2, 2]]
    assert attrs["place"].values.tolist() == ["left", "right"]
    assert refs[1].h5ref.target_attrs()["gain"].values.tolist() == [2, 2]
    assert refs[1].h5ref.target_attrs()["gain"].dtype.kind == "i"
    assert set(refs[0, 1:].h5ref.target_attrs().data_vars) == set()


def test_attributes_of_targets_of_many_files(tmp_path: Path, open_granules: Open) -> None:
    paths = write_granules(tmp_path, [{"scale_factor": f} for f in FACTORS])
    attrs = open_granules(paths).h5ref.target_attrs()
    assert attrs["scale_factor"].dims == ("granule",)
    assert attrs["scale_factor"].values.tolist() == list(FACTORS)


# --- nothing is changed unseen ------------------------------------------------------------


def compounds_with(base: str, values: list[float]) -> np.ndarray[Any, Any]:
    dtype = np.dtype([("hits", h5py.vlen_dtype(np.dtype(base))), ("n", "i4")])
    one = np.zeros(1, dtype=dtype)
    one["hits"][0] = np.array(values, dtype=base)
    one["n"] = 1
    return one


def test_equal_compounds_of_two_files_keep_their_own_sequence_dtype(
    tmp_path: Path, open_refs: Open
) -> None:
    found = {}
    for base, values in (("i4", [1]), ("f8", [0.5, 2.25])):
        write_cells(tmp_path / base, [(compounds_with(base, values), {})])
        result = open_refs(tmp_path / base).h5ref.resolve(chunks=None)
        kept = result.dtype["hits"].metadata
        assert h5py.check_vlen_dtype(np.dtype(object, metadata=dict(kept))) == base
        found[base] = result.values[0, 0]["hits"].tolist()
    assert found == {"i4": [1], "f8": [0.5, 2.25]}


def test_small_datasets_of_dates_are_decoded_by_their_own_units(
    path: Path, open_refs: Open
) -> None:
    lengths = [3, 2, 0, 50, 3, 2, 2, 3, 1, 4]
    units = [f"days since 2000-01-0{i % 2 + 1}" for i in range(len(lengths))]
    cells = [(np.arange(n), {"units": u}) for n, u in zip(lengths, units, strict=True)]
    write_cells(path, cells)
    found = values_of(open_refs(path).h5ref.resolve("ragged")).values
    expected = [
        np.datetime64(u.split()[-1]) + np.arange(n).astype("m8[D]")
        for n, u in zip(lengths, units, strict=True)
    ]
    np.testing.assert_array_equal(found, np.concatenate(expected).astype("M8[ns]"))


@pytest.mark.parametrize("n", [1, 12])
@pytest.mark.filterwarnings("ignore:Unable to decode time axis")
def test_the_dtype_of_dates_is_chosen_for_each_target(
    tmp_path: Path, open_refs: Open, n: int
) -> None:
    pytest.importorskip("cftime")
    units = {"units": "days since 2000-01-01"}
    near, far = (np.array([0, 1]), units), (np.array([0, 400_000]), units)
    for i, cells in enumerate(([near, far], [far, near])):
        write_cells(tmp_path / f"{i}.h5", cells, n=n)
        refs = open_refs(tmp_path / f"{i}.h5")
        kinds = refs.h5ref.map(lambda a: a.dtype.kind, dtype=object).values.tolist()
        assert kinds == n * ["M" if cell is near else "O" for cell in cells]
        with pytest.raises(ValueError, match="no one type holds exactly"):
            refs.h5ref.resolve()


def test_functions_of_sequences_and_text_need_no_dtype(path: Path, open_refs: Open) -> None:
    with h5py.File(path, "w") as file:
        hits = file.create_dataset("hits", (3,), dtype=h5py.vlen_dtype(np.dtype("f4")))
        for i in range(3):
            hits[i] = np.arange(i + 1)
        write_references(file, "refs", [hits.regionref[:2], hits.regionref[1:]])
    refs = open_refs(path)
    assert refs.h5ref.map(len).values.tolist() == [2, 2]
    assert refs.h5ref.reduce(lambda a: sum(map(len, a))).values.tolist() == [3, 5]


def test_text_returned_by_functions_is_not_truncated(path: Path, open_refs: Open) -> None:
    write_cells(path, [(np.array([b"north"]), {}), (np.array([b"south east"]), {})])
    refs = open_refs(path)
    for dtype in (None, bytes, "S", "S10", object):
        found = refs.h5ref.map(lambda a: a[0], dtype=dtype)
        assert found.values.tolist() == [b"north", b"south east"]
    with pytest.raises(ValueError, match="does not hold"):
        refs.h5ref.map(lambda a: a[0], dtype="S5").compute()


def test_results_of_another_shape_are_refused(path: Path, open_refs: Open) -> None:
    write_cells(path, [(np.arange(3), {})])
    refs = open_refs(path)
    with pytest.raises(ValueError, match=r"shape \(1,\) where \(2,\) was expected"):
        refs.h5ref.map(lambda a: a[:1], output_sizes={"k": 2}).compute()
    with pytest.raises(ValueError, match="has already"):
        refs.h5ref.map(lambda a: a, output_sizes={refs.dims[0]: 3})


SPANS = (np.array([1, 2]), {"units": "days", "dtype": "timedelta64[ns]"})
DATES = (np.array([1, 2]), {"units": "days since 2000-01-01"})
WORDS = (np.array([b"a", b"b"]), {})
PLAIN = (np.array([1, 2]), {})


@pytest.mark.parametrize("others", [SPANS, DATES, WORDS])
def test_numbers_and_other_kinds_of_values_are_not_joined(
    path: Path, open_refs: Open, others: Any
) -> None:
    write_cells(path, [PLAIN, others])
    refs = open_refs(path)
    with pytest.raises(ValueError, match="no one type holds exactly"):
        refs.h5ref.resolve()
    with pytest.raises(TypeError, match=r"no common type|no min of"):
        refs.h5ref.min()
    alone = [refs[[i]].h5ref.resolve().values[0] for i in range(2)]
    for found in (refs.h5ref.map(lambda a: a[1]), refs.h5ref.reduce(lambda a: a[1])):
        assert found.dtype == object
        assert [value == own[1] for value, own in zip(found.values, alone, strict=True)]
        assert found.values[0] == 2
        assert type(found.values[1]) is type(alone[1][1])
    pairs = refs.h5ref.map(lambda a: a, output_sizes={"k": 2}).values
    objects = refs.h5ref.resolve(dtype=object).values
    for values in (pairs[1], objects[1]):
        assert list(values) == list(alone[1])
        assert all(isinstance(alone[1][0], type(value)) for value in values)


def test_large_integers_are_not_rounded_in_results(path: Path, open_refs: Open) -> None:
    write_cells(path, [(np.array([2**53 + 1]), {}), (np.array([0.5]), {})])
    refs = open_refs(path)
    for name in ("max", "min", "sum"):
        with pytest.raises(ValueError, match="9007199254740993 has no equal"):
            getattr(refs.h5ref, name)().compute()
    with pytest.raises(ValueError, match="9007199254740993 has no equal"):
        refs.h5ref.reduce(lambda a: a[0]).compute()
    kept = refs.h5ref.reduce(lambda a: a[0], dtype=object).values.tolist()
    assert kept == [2**53 + 1, 0.5]


def test_members_of_compounds_are_matched_by_name(path: Path, open_refs: Open) -> None:
    one, other = [("x", "i4"), ("y", "f4")], [("y", "f4"), ("x", "i4")]
    cells = [(np.array([(1, 0.5)], one), {}), (np.array([(0.25, 7)], other), {})]
    write_cells(path, cells)
    refs = open_refs(path)
    with pytest.raises(ValueError, match="dtype="):
        refs.h5ref.resolve()
    found = refs.h5ref.resolve(dtype=one).values
    assert found["x"].ravel().tolist() == [1, 7]
    assert found["y"].ravel().tolist() == [0.5, 0.25]


def test_functions_get_numbers_in_the_byte_order_of_the_machine(
    path: Path, open_refs: Open
) -> None:
    big = (np.arange(3, dtype=">u2"), {})
    write_cells(path, [big, (np.arange(3.0), {})])
    refs = open_refs(path)
    for part in (refs, refs[:1]):
        assert part.h5ref.map(lambda a: a.dtype.str, dtype=object).values[0] == "<u2"


def test_references_of_datasets_with_different_options_are_not_concatenated(
    path: Path, open_refs: Open
) -> None:
    write_cells(path, [(np.arange(3, dtype="i2"), {"scale_factor": 0.5})])
    decoded, raw = open_refs(path), open_refs(path, mask_and_scale=False)
    dim = decoded.dims[0]
    with pytest.raises(ValueError, match=r"mask_and_scale True and False"):
        xr.concat([decoded, raw], dim)
    # Null references, as those of padding, have no options of their own.
    padded = raw.pad({dim: (1, 1)})
    assert padded.h5ref.resolve(on_null="drop").values.tolist() == [[0, 1, 2]]


def test_text_with_missing_values_stacks_with_other_text(path: Path, open_refs: Open) -> None:
    cells = [
        (np.array([b"ab", b"XX"]), {"_FillValue": np.bytes_(b"XX")}),
        (np.array([b"abcde", b"c"]), {}),
    ]
    write_cells(path, cells)
    found = open_refs(path).h5ref.resolve()
    assert found.dtype == object
    assert found.values[1].tolist() == [b"abcde", b"c"]
    alone = open_refs(path)[:1].h5ref.resolve()
    assert alone.dtype == object  # xarray puts missing values of text among objects
    assert found.values[0].tolist() == alone.values[0].tolist()


def test_nan_attributes_of_targets_count_as_equal(path: Path, open_refs: Open) -> None:
    attrs = {"limit": np.nan, "range": np.array([0, np.nan])}
    write_cells(path, [(np.arange(3), attrs), (np.arange(3), attrs)])
    assert open_refs(path).h5ref.resolve().attrs.keys() == attrs.keys()


def test_padding_of_array_types_and_compounds_has_their_dtype(
    path: Path, open_refs: Open
) -> None:
    text = np.dtype([("name", h5py.string_dtype()), ("n", "i4")])
    with h5py.File(path, "w") as file:
        pairs = file.create_dataset("pairs", (3,), dtype=np.dtype((np.int32, (2,))))
        pairs[...] = np.arange(6).reshape(3, 2)
        pairs.attrs["_FillValue"] = np.int32(-1)
        named = file.create_dataset("named", data=np.array([(b"x", 1)] * 3, dtype=text))
        write_references(file, "refs", [pairs.regionref[:1], pairs.regionref[1:]])
        write_references(file, "texts", [named.regionref[:1], named.regionref[1:]])
    refs = open_refs(path, mask_and_scale=False)
    padded = values_of(refs.h5ref.resolve("pad")).values
    assert padded.tolist() == [[[0, 1], [-1, -1]], [[2, 3], [4, 5]]]
    with xr.open_dataset(path, engine="h5ref") as ds:
        found = values_of(ds["texts"].h5ref.resolve("pad")).values
    assert found.tolist() == [[(b"x", 1), (b"", 0)], [(b"x", 1), (b"x", 1)]]


@pytest.mark.parametrize("chunks", [None, "auto"])
@pytest.mark.parametrize(
    "cell", [DATES, (np.array([1, 2], "i2"), {"scale_factor": 0.5}), WORDS]
)
def test_filled_results_can_be_written(
    path: Path, open_refs: Open, cell: Any, chunks: Any
) -> None:
    pytest.importorskip("h5netcdf")
    with h5py.File(path, "w") as file:
        target = file.create_dataset("v", data=cell[0])
        target.attrs.update(cell[1])
        write_references(file, "refs", [target.regionref[:1], target.regionref[:], None])
    found = open_refs(path).h5ref.resolve("pad", on_null="fill", chunks=chunks)
    found.to_netcdf(path.with_suffix(".nc"), engine="h5netcdf")
    with xr.open_dataset(path.with_suffix(".nc"), engine="h5netcdf") as again:
        values, written = values_of(found).values, values_of(again).values
    np.testing.assert_array_equal(written, values)
