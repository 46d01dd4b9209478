"""Elements that hold references among other things: each is what was written."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from elements import COLOUR, FORMS, MOMENT, OBJECT, SHAPE, STORAGES, an_object, targets, written
from h5py import h5t
from samples import open_h5
from typed import (
    Form,
    array,
    boolean,
    compound,
    differences,
    fixed_text,
    number,
    sequence,
    text,
    write_attribute,
    write_dataset,
)

from xref import UnreadableMemberWarning


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FORMS)
def test_elements_of_every_type_have_the_written_values(path: Path, name: str) -> None:
    form, make = FORMS[name]
    with h5py.File(path, "w") as file:
        values = written(file, form, make)
        write_attribute(file["data"], "held", form, values, (11,))
        write_attribute(file["data"], "one", form, values[3:4], ())
        del file["gone"]
    with open_h5(path) as ds:
        assert not differences(ds["held"].values, form, values, (11,))
        assert not differences(ds["data"].attrs["held"], form, values, (11,))
        one = ds["data"].attrs["one"]
        assert form.same(one, values[3]), one


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 4), (2, 3, 2), (2, 0)])
@pytest.mark.parametrize("name", ["nested", "array in a compound", "sequence in a compound"])
def test_elements_of_any_rank(path: Path, name: str, shape: tuple[int, ...]) -> None:
    form, make = FORMS[name]
    with h5py.File(path, "w") as file:
        values = written(file, form, make, shape)
        write_attribute(file["data"], "held", form, values, shape)
        del file["gone"]
    with open_h5(path) as ds:
        assert ds["held"].shape == shape
        assert not differences(ds["held"].values, form, values, shape)
        if shape not in ((0,), (1,)):  # of one element it is the element alone
            held = np.asarray(ds["data"].attrs["held"], dtype=ds["held"].dtype)
            assert not differences(held, form, values, shape)


UNFILTERED = [("fletcher32", "sequence of std")]  # HDF5 refuses to write it


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "name", ["all three", "array in a compound", "sequence of std", "text"]
)
@pytest.mark.parametrize("storage", STORAGES)
def test_elements_in_any_storage(path: Path, name: str, storage: str) -> None:
    if (storage, name) in UNFILTERED:
        return
    form, make = FORMS[name]
    with h5py.File(path, "w") as file:
        values = written(file, form, make, SHAPE, **STORAGES[storage])
        del file["gone"]
    with open_h5(path) as ds:
        assert not differences(ds["held"].values, form, values, SHAPE)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("options", [{"libver": "latest"}, {"userblock_size": 1024}])
@pytest.mark.parametrize("name", FORMS)
def test_elements_in_any_file(path: Path, name: str, options: dict[str, Any]) -> None:
    form, make = FORMS[name]
    with h5py.File(path, "w", **options) as file:
        values = written(file, form, make, chunks=(4,))
        write_attribute(file["data"], "held", form, values, (11,))
        del file["gone"]
    with open_h5(path) as ds:
        assert not differences(ds["held"].values, form, values, (11,))
        assert not differences(ds["data"].attrs["held"], form, values, (11,))


def small_file(path: Path) -> h5py.File:
    """Create a file whose addresses have four bytes."""
    properties = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    properties.set_sizes(4, 4)
    return h5py.File(h5py.h5f.create(str(path).encode(), fcpl=properties))


def test_elements_in_a_file_of_short_addresses(path: Path) -> None:
    # HDF5 itself leaves two bytes of each reference behind what else is in a compound.
    dtype = np.dtype([("n", "<i4"), ("of", h5py.ref_dtype), ("part", h5py.regionref_dtype)])
    with small_file(path) as file:
        targets(file)
        held = file.create_dataset("held", (3,), dtype)
        data = file["data"]
        held[:2] = np.array(
            [(1, data.ref, data.regionref[2:4, 1:3]), (2, file["group"].ref, None)], dtype
        )
        lists = file.create_dataset("lists", (2,), h5py.vlen_dtype(h5py.ref_dtype))
        lists[0] = np.array([data.ref, file["group"].ref, data.ref], dtype=h5py.ref_dtype)
    with open_h5(path) as ds:
        values = ds["held"].values
        assert values["n"].tolist() == [1, 2, 0]
        assert [r.path for r in values["of"]] == ["/data", "/group", None]
        assert values["part"][0].bounds == ((2, 1), (4, 3))
        assert [r.path for r in ds["lists"].values[0]] == ["/data", "/group", "/data"]
        assert ds["lists"].values[1].shape == (0,)


@pytest.mark.parametrize("name", ["object", "array in a compound", "array of objects"])
def test_unwritten_elements_have_the_fill_value(path: Path, name: str) -> None:
    form, make = FORMS[name]
    with h5py.File(path, "w") as file:
        values = written(file, form, make, (9,), chunks=(2,), rows=4, fill=make(3))
        write_dataset(file, "nothing", form, [], (3,), chunks=(2,), rows=0)
        write_dataset(file, "filled", form, [], (3,), rows=0, fill=make(3))
        del file["gone"]
    with open_h5(path) as ds:
        assert not differences(ds["held"].values, form, values[:4] + [make(3)] * 5, (9,))
        assert not differences(ds["filled"].values, form, [make(3)] * 3, (3,))
        nothing = ds["nothing"].values
        assert nothing.dtype == ds["held"].dtype
        if name == "object":
            assert nothing["n"].tolist() == [0, 0, 0]
            assert not any(nothing["of"])


KEYS: list[Any] = [
    np.s_[2:6],
    np.s_[::3, 1],
    np.s_[-1],
    np.s_[3, 2],
    np.s_[::-2, ::-1],
    np.s_[[4, 0, 4], [1, 3]],
    np.s_[[], :],
    np.s_[:, [2]],
]


def indexed(grid: np.ndarray, key: Any) -> np.ndarray:
    """Index each axis on its own, as xarray does."""
    for axis, k in reversed(list(enumerate(key if isinstance(key, tuple) else (key,)))):
        grid = grid[(slice(None),) * axis + (k,)]
    return grid


@pytest.mark.sampled(11)
@pytest.mark.parametrize("chunks", [None, {}, "auto", {"phony_dim_2": 3, "phony_dim_3": 4}])
@pytest.mark.parametrize("storage", ["contiguous", "gzip"])
@pytest.mark.parametrize("name", ["all three", "array of objects", "sequence in a compound"])
def test_every_index_selects_as_in_numpy(
    path: Path, name: str, storage: str, chunks: Any
) -> None:
    form, make = FORMS[name]
    with h5py.File(path, "w") as file:
        values = written(file, form, make, SHAPE, **STORAGES[storage])
        del file["gone"]
    numbers = np.arange(len(values)).reshape(SHAPE)
    with open_h5(path, chunks=chunks) as ds:
        held = ds["held"]
        for key in KEYS:
            wanted = np.asarray(indexed(numbers, key))
            found = held[key].values
            chosen = [values[i] for i in wanted.flat]
            assert not differences(found, form, chosen, wanted.shape), key
        points = xr.DataArray([3, 0, 3], dims="p"), xr.DataArray([1, 1, 0], dims="p")
        wanted = numbers[[3, 0, 3], [1, 1, 0]]
        found = held[points].values
        assert not differences(found, form, [values[i] for i in wanted], (3,))


@pytest.mark.parametrize("name", ["nested", "sequence of std", "array in a compound"])
def test_elements_pickle_before_and_after_they_are_read(path: Path, name: str) -> None:
    form, make = FORMS[name]
    with h5py.File(path, "w") as file:
        values = written(file, form, make)
        write_attribute(file["data"], "held", form, values, (11,))
        del file["gone"]
    with open_h5(path) as ds, pickle.loads(pickle.dumps(ds)) as lazy:
        assert not differences(lazy["held"].values, form, values, (11,))
        again = pickle.loads(pickle.dumps(lazy.load()))
        assert not differences(again["held"].values, form, values, (11,))
        assert not differences(again["data"].attrs["held"], form, values, (11,))


@pytest.mark.slow
def test_elements_are_read_by_processes_of_dask(
    path: Path, process_pool: ProcessPoolExecutor
) -> None:
    form, make = FORMS["sequence in a compound"]
    with h5py.File(path, "w") as file:
        values = written(file, form, make, (12,), chunks=(4,))
        del file["gone"]
    with (
        open_h5(path, chunks={}) as ds,
        dask.config.set(scheduler="processes", pool=process_pool),
    ):
        assert ds["held"].chunks == ((4, 4, 4),)
        assert not differences(ds["held"].values, form, values, (12,))


def test_references_within_elements_resolve_with_the_options_of_the_file(path: Path) -> None:
    form, make = FORMS["all three"]
    with h5py.File(path, "w") as file:
        written(file, form, make)
        write_attribute(file["data"], "held", form, [make(1)], ())
    expected = np.arange(600, dtype="f4").reshape(20, 30)
    for scaled in (True, False):
        with open_h5(path, mask_and_scale=scaled) as ds:
            factor = 0.5 if scaled else 1.0
            first, second = ds["held"].values[:2]
            found = first["a"].resolve()
            assert found.dtype == "f4"
            np.testing.assert_array_equal(found, factor * expected)
            for part in (second["b"], second["c"], ds["data"].attrs["held"]["b"]):
                np.testing.assert_array_equal(part.resolve(), factor * expected[1:3, 1:4])
            assert ds["held"].values[3]["c"].resolve().item() == "K"


def test_dangling_and_null_references_within_elements(path: Path) -> None:
    form, make = FORMS["all three"]
    with h5py.File(path, "w") as file:
        written(file, form, make)
        del file["gone"]
    with open_h5(path) as ds:
        values = ds["held"].values
        assert values["a"][4].kind == "dangling"
        with pytest.raises(LookupError, match=r"file\.h5"):
            values["a"][4].resolve()
        assert not values["a"][2]
        assert not values["b"][2]
        assert not values["c"][2]


# --- virtual datasets --------------------------------------------------------------------


def write_virtual(
    path: Path, form: Form, sources: list[tuple[str, int]], n: int, fill: Any = None
) -> None:
    """Write a dataset whose n elements come from the begin of others, with a gap of one."""
    with h5py.File(path, "w") as file:
        file["data"] = [0]  # not what the sources refer to
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        datatype = form.make()
        space = h5py.h5s.create_simple((n,))
        begin = 0
        for name, length in sources:
            space.select_hyperslab((begin,), (length,))
            inner = h5py.h5s.create_simple((length,))
            properties.set_virtual(space, name.encode(), b"held", inner)
            begin += length + 1
        space.select_all()
        h5py.h5d.create(file.id, b"held", datatype, space, properties)


@pytest.mark.parametrize("name", ["all three", "array of std", "sequence in a compound"])
def test_references_within_virtual_elements_refer_to_the_file_of_their_source(
    tmp_path: Path, name: str
) -> None:
    form, make = FORMS[name]
    for source in ("one.h5", "two.h5"):
        with h5py.File(tmp_path / source, "w") as file:
            if source == "two.h5":
                file["before"] = np.arange(1000)  # addresses differ
            values = written(file, form, make, (4,))
            del file["gone"]
    write_virtual(tmp_path / "virtual.h5", form, [("one.h5", 4), ("two.h5", 4)], 10)
    with open_h5(tmp_path / "virtual.h5") as ds:
        found = ds["held"].values
        for begin in (0, 5):
            part = found[begin : begin + 4]
            assert not differences(part, form, values, (4,))
            assert not differences(ds["held"][begin : begin + 4].values, form, values, (4,))
        if name == "all three":
            assert not found["a"][4]
            files = {r.filename for r in found["a"][5:8] if r}
            assert files == {str(tmp_path / "two.h5")}
            second = ds["held"].h5ref.field("b")[5:7]
            np.testing.assert_array_equal(second.h5ref.resolve().shape, (2, 2, 3))


def test_virtual_elements_of_another_type_raise(tmp_path: Path) -> None:
    form, _ = FORMS["object"]
    other, make_other = FORMS["region"]
    with h5py.File(tmp_path / "one.h5", "w") as file:
        written(file, other, make_other, (4,))
    write_virtual(tmp_path / "virtual.h5", form, [("one.h5", 4)], 5)
    error = pytest.raises(NotImplementedError, match=r"one\.h5.* another type")
    with open_h5(tmp_path / "virtual.h5") as ds, error:
        ds["held"].load()


# --- what h5py reads ---------------------------------------------------------------------


def test_h5py_gives_the_same_references(path: Path) -> None:
    form, make = FORMS["nested"]
    with h5py.File(path, "w") as file:
        written(file, form, make, SHAPE, chunks=(3, 2))
    with open_h5(path) as ds, h5py.File(path) as file:
        stored, values = file["held"], ds["held"].values
        for index in np.ndindex(SHAPE):
            one, found = stored[index], values[index]
            inner = one["a"]["b"]
            assert found["a"]["e"] == one["a"]["e"]
            assert found["a"]["b"]["c"]["number"] == inner["c"]["number"]
            for reference, read in (
                (inner["c"]["of"], found["a"]["b"]["c"]["of"]),
                (one["f"], found["f"]),
            ):
                assert bool(reference) == bool(read)
                if reference:
                    assert file[reference] == file[read.path]
            region, read = inner["d"], found["a"]["b"]["d"]
            assert bool(region) == bool(read)
            if region:
                np.testing.assert_array_equal(read.resolve(), file["data"][region] * 0.5)


def test_members_without_references_equal_those_of_a_compound_without_references(
    path: Path,
) -> None:
    plain = {
        "text": text(),
        "ascii": text(h5t.CSET_ASCII),
        "ended": fixed_text(6, h5t.STR_NULLTERM),
        "spaces": fixed_text(6, h5t.STR_SPACEPAD),
        "colour": number(COLOUR),
        "yes": boolean(),
        "z": number("<c16"),
        "raw": number("V3"),
        "when": number(MOMENT),
        "many": sequence(number("<i2")),
        "grid": array(number(">f4"), 2),
    }

    def make(k: int) -> dict[str, Any]:
        return {
            "text": "é".encode() * k,
            "ascii": b"%d" % k,
            "ended": (b"ab\0cd", b"ab"),
            "spaces": (b" a b", b" a b"),
            "colour": 300,
            "yes": k % 2 == 0,
            "z": k + 1j,
            "raw": b"\1\0\2",
            "when": np.datetime64(k, "s"),
            "many": [1] * k,
            "grid": [k, 2],
            "of": an_object(k),
        }

    with h5py.File(path, "w") as file:
        written(file, compound(**plain, of=OBJECT), make, (3,))
        values = [make(k) for k in range(3)]
        write_dataset(file, "plain", compound(**plain), values, (3,))
    with open_h5(path) as ds:
        held, other = ds["held"].values, ds["plain"].values
        for name in plain:
            kinds = {type(x[name][1]) for x in (held, other)}
            assert len(kinds) == 1, (name, kinds)
            assert held[name].dtype.newbyteorder("=") == other[name].dtype.newbyteorder("=")
            for mine, theirs in zip(held[name], other[name], strict=True):
                np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("other", [b"efgh\0", b"\0\0\0\0\0"], ids=["same", "empty"])
def test_members_without_a_numpy_type_are_left_out(path: Path, other: bytes) -> None:
    with h5py.File(path, "w", libver="earliest") as file:
        written(file, compound(abcd=number("i4"), efgh=OBJECT), lambda _: EMPTY, (2,))
    path.write_bytes(path.read_bytes().replace(b"abcd\0", other))
    with pytest.warns(UnreadableMemberWarning, match="held"):
        ds = open_h5(path)
    with ds:
        assert "held" not in ds
        assert "data" in ds


EMPTY = {"abcd": 1, "efgh": None}
