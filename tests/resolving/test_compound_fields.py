"""Members of compounds as reference variables, and compounds that stand for regions."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from elements import FORMS, PAIR, SHAPE, STORAGES, a_pair, any_reference, box, written
from oracle import values_of
from samples import open_h5
from typed import Ref, array, compound, number, reference, sequence, text, write_dataset

import xref

DATA = 0.5 * np.arange(600, dtype="f4").reshape(20, 30)

NESTED = [("a.b.c.of", "object"), ("a.b.d", "region"), ("f", "object")]


def part_of(value: dict[str, Any], name: str) -> Ref | None:
    for step in name.split("."):
        value = value[step]
    return value  # type: ignore[return-value]


def check(references: np.ndarray, expected: list[Ref | None]) -> None:
    form = reference("std")  # compares references of any kind
    for read, value in zip(references.reshape(-1), expected, strict=True):
        assert form.same(read, value), (read, value)


PICKS: dict[str, Callable[[Any], Any]] = {
    "all": lambda x: x,
    "slices": lambda x: x[1:6:2, ::3],
    "an integer": lambda x: x[2],
    "integers": lambda x: x[-1, 1],
    "backwards": lambda x: x[::-1],
    "lists": lambda x: x[[3, 0]][:, [1, 1]],
    "nothing": lambda x: x[:0],
    "twice": lambda x: x[1:][1, 1:],
}


@pytest.mark.sampled(11)
@pytest.mark.parametrize("state", ["lazy", "loaded", "chunked"])
@pytest.mark.parametrize("storage", ["contiguous", "compact", "gzip"])
@pytest.mark.parametrize("pick", PICKS)
def test_a_member_is_a_reference_variable(
    path: Path, pick: str, storage: str, state: str
) -> None:
    form, make = FORMS["nested"]
    with h5py.File(path, "w") as file:
        values = written(file, form, make, SHAPE, **STORAGES[storage])
        del file["gone"]
    chosen = PICKS[pick](np.arange(len(values)).reshape(SHAPE))
    with open_h5(path, chunks={} if state == "chunked" else None) as ds:
        if state == "loaded":
            ds = ds.load()
        held = ds["held"].assign_coords(run=("phony_dim_2", list("abcdefg")))
        for name, kind in NESTED:
            picked = PICKS[pick](held)
            found = picked.h5ref.field(name)
            assert isinstance(found.data, xref.ReferenceArray)
            assert found.name == name.rsplit(".", 1)[-1]
            assert found.dims == picked.dims
            assert set(found.coords) == set(picked.coords)
            assert found.shape == chosen.shape
            if found.size:
                assert found.data.kind == kind
            check(found.values, [part_of(values[i], name) for i in chosen.flat])


def test_a_member_is_read_lazily_and_without_the_other_members(path: Path) -> None:
    form = compound(n=number("i8"), of=reference("object"))
    with h5py.File(path, "w") as file:
        file["data"] = [1]
        values = [{"n": k, "of": Ref("/data")} for k in range(4000)]
        write_dataset(file, "held", form, values, (4000,), chunks=(1000,))
    with open_h5(path) as ds, xref.count_reads() as reads:
        member = ds["held"].h5ref.field("of")[1200:1300]
        assert repr(member)
        assert len(pickle.dumps(member)) < 3000
        before = reads.chunks_read
        assert member.data[3].path == "/data"
        assert reads.chunks_read == before + 1
    with open_h5(path) as ds, xref.count_reads() as reads:
        member = ds["held"][3500:3600:2].h5ref.field("of")
        assert reads.chunks_read == 0
        assert bool(member.astype(bool).all())
        assert reads.chunks_read == 1


def test_members_resolve_and_have_a_table(path: Path) -> None:
    form, make = FORMS["all three"]
    with h5py.File(path, "w") as file:
        values = written(file, form, make)
        del file["gone"]
    with open_h5(path) as ds:
        regions = ds["held"].h5ref.field("b")
        resolved = regions.h5ref.resolve(on_null="drop")
        expected = [
            DATA[tuple(slice(*side) for side in value["b"].region)]
            for value in values
            if value["b"] is not None
        ]
        np.testing.assert_array_equal(resolved, expected)
        table = ds["held"].h5ref.field("c").h5ref.table()
        kinds = ["dataset", "dataset", "null", "attribute", "group"]
        assert table["kind"].values.tolist() == [kinds[k % 5] for k in range(11)]
        objects = ds["held"].h5ref.field("a")
        found = dict(objects[:4].h5ref.items())
        np.testing.assert_array_equal(found[0], DATA)
        assert isinstance(found[1], xr.Dataset)
        assert found[2] is None
        np.testing.assert_array_equal(found[3], np.arange(5))
        mean = regions[:2].h5ref.mean()
        np.testing.assert_array_equal(mean, [expected[0].mean(), expected[1].mean()])


@pytest.mark.parametrize("loaded", [False, True])
def test_a_member_of_several_kinds_keeps_them(path: Path, loaded: bool) -> None:
    form = compound(of=reference("std"))
    values = [{"of": box(0)}, {"of": Ref("/data")}, {"of": None}]
    with h5py.File(path, "w") as file:
        written(file, form, lambda k: values[k], (3,))
    with open_h5(path) as ds:
        held = ds["held"].load() if loaded else ds["held"]
        check(held.h5ref.field("of").values, [v["of"] for v in values])


@pytest.mark.parametrize("chunks", [None, {}])
def test_a_member_that_is_an_array_adds_its_axes(path: Path, chunks: Any) -> None:
    form, make = FORMS["array in a compound"]
    with h5py.File(path, "w") as file:
        values = written(file, form, make, (5,))
        del file["gone"]
    with open_h5(path, chunks=chunks) as ds:
        each = ds["held"].h5ref.field("each")
        assert each.dims == (*ds["held"].dims, "each_0")
        check(each.values, [r for v in values for r in v["each"]])
        inner = ds["held"].h5ref.field("pairs.of")
        assert inner.dims == (*ds["held"].dims, "of_0", "of_1")
        check(inner.values, [p["of"] for v in values for p in v["pairs"]])


def test_members_of_an_array_of_compounds(path: Path) -> None:
    with h5py.File(path, "w") as file:
        values = written(file, array(PAIR, 2), lambda k: [a_pair(k), a_pair(k + 1)], (3,))
        del file["gone"]
    with open_h5(path) as ds:
        found = ds["held"].h5ref.field("of")
        assert found.dims == ds["held"].dims
        check(found.values, [p["of"] for v in values for p in v])


def test_a_member_whose_name_has_a_dot(path: Path) -> None:
    form = compound(**{"a.b": reference("object"), "a": compound(b=number("i4"))})
    with h5py.File(path, "w") as file:
        written(file, form, lambda _: {"a.b": Ref("/data"), "a": {"b": 1}}, (2,))
    with open_h5(path) as ds:
        for held in (ds["held"], ds["held"].load()):
            check(held.h5ref.field("a.b").values, [Ref("/data")] * 2)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("shape", [(3,), (0,)])
def test_members_that_are_no_references_raise(
    path: Path, loaded: bool, shape: tuple[int, ...]
) -> None:
    form = compound(
        n=number("i4"), name=text(), many=sequence(reference("object")), of=reference("object")
    )
    with h5py.File(path, "w") as file:
        file["plain"] = [1.0]
        make = {"n": 1, "name": b"x", "many": [], "of": None}
        written(file, form, lambda _: make, shape)
    with open_h5(path) as ds:
        held = ds["held"].load() if loaded else ds["held"]
        with pytest.raises(KeyError, match="no member 'x'; it has n, name, many, of"):
            held.h5ref.field("x")
        with pytest.raises(KeyError, match=r"no member 'of\.x'"):
            held.h5ref.field("of.x")
        with pytest.raises(TypeError, match="'n' of 'held' holds int32 values"):
            held.h5ref.field("n")
        if shape != (0,):
            with pytest.raises(TypeError, match="'name' of 'held' holds values of type bytes"):
                held.h5ref.field("name")
            with pytest.raises(TypeError, match=r"sequences.*from_references"):
                held.h5ref.field("many")
        with pytest.raises(TypeError, match="'plain' holds float64 values, no compounds"):
            ds["plain"].h5ref.field("n")


def test_errors_of_other_variables_say_what_to_do(path: Path) -> None:
    with h5py.File(path, "w") as file:
        form = sequence(reference("object"))
        written(file, form, lambda _: [Ref("/data"), Ref("/group")], (2,))
        file["texts"] = ["a", "b"]
        write_dataset(file, "pairs", PAIR, [a_pair(0)], (1,))
    with open_h5(path) as ds:
        with pytest.raises(TypeError, match=r"'data' holds float32 values, no references"):
            ds["data"].h5ref.resolve()
        with pytest.raises(TypeError, match=r"'texts' holds .* no references"):
            ds["texts"].h5ref.table()
        with pytest.raises(TypeError, match=r"field\(name\).*\(number, of\)"):
            ds["pairs"].h5ref.resolve()
        with pytest.raises(TypeError, match=r"'held' holds sequences.*from_references"):
            ds["held"].h5ref.resolve()
        array = xref.ReferenceArray.from_references(ds["held"].values[0])
        assert [r.path for r in array] == ["/data", "/group"]
        assert ds["held"].values[0][0].resolve().shape == (20, 30)


def test_arrays_of_references_resolve_without_field(path: Path) -> None:
    with h5py.File(path, "w") as file:
        written(file, array(reference("region"), 2), lambda k: [box(k), box(k + 1)], (3,))
    for chunks in (None, {}):
        with open_h5(path, chunks=chunks) as ds:
            resolved = ds["held"].h5ref.resolve()
            assert resolved.shape == (3, 2, 2, 3)
            np.testing.assert_array_equal(resolved[1, 1], DATA[2:4, 2:5])


# --- start, count, reference -------------------------------------------------------------

SERIES = compound(idx_start=number("<i4"), count=number("<i4"), timeseries=reference("object"))


def write_series(
    path: Path, rows: list[tuple[int, int, str | None]], form: Any = SERIES
) -> None:
    with h5py.File(path, "w") as file:
        for name, n in (("one", 10), ("two", 20)):
            file[f"{name}/data"] = np.arange(2.0 * n).reshape(n, 2) + n
            file[f"{name}/again"] = file[f"{name}/data"]
        file["soft/before"] = 1
        file["soft/data"] = h5py.SoftLink("/one/data")
        file["empty/other"] = 1
        file["nested/data/x"] = 1
        file["scalar/data"] = 1.0
        file["apart"] = np.arange(5.0)
        file["gone"] = 1
        values = [
            {"idx_start": start, "count": count, "timeseries": None if at is None else Ref(at)}
            for start, count, at in rows
        ]
        write_dataset(file, "held", form, values, (len(rows),))
        del file["gone"]


ROWS = [(2, 3, "/one"), (15, 3, "/two"), (0, 3, "/soft"), (7, 3, "/one/data")]


def expected_rows() -> list[np.ndarray]:
    of = {"/one": 10, "/two": 20, "/soft": 10, "/one/data": 10}
    return [
        (np.arange(2.0 * of[at]).reshape(-1, 2) + of[at])[start : start + count]
        for start, count, at in ROWS
    ]


@pytest.mark.parametrize("chunks", [None, {}])
@pytest.mark.parametrize("of", ["object", "std"])
def test_compounds_of_start_count_and_reference_are_regions(
    path: Path, of: str, chunks: Any
) -> None:
    form = compound(idx_start=number("u2"), count=number("<i8"), timeseries=reference(of))
    write_series(path, ROWS, form)
    with open_h5(path, chunks=chunks) as ds:
        held = ds["held"]
        stacked = held.h5ref.resolve()
        np.testing.assert_array_equal(stacked, expected_rows())
        np.testing.assert_array_equal(stacked[1:3].values, expected_rows()[1:3])
        np.testing.assert_array_equal(
            held[[3, 0]].h5ref.resolve(), [expected_rows()[k] for k in (3, 0)]
        )
        mean = [rows.mean() for rows in expected_rows()]
        np.testing.assert_allclose(held.h5ref.mean(), mean)
        table = held.h5ref.table()
        assert table["npoints"].values.tolist() == [6] * 4
        assert table["start"].values.tolist() == [[2, 0], [15, 0], [0, 0], [7, 0]]
        assert table["kind"].values.tolist() == ["dataset"] * 4


def test_compounds_of_different_counts_are_ragged_or_padded(path: Path) -> None:
    write_series(
        path, [(1, 2, "/apart"), (0, 0, "/apart"), (-1, -1, "/apart"), (4, 1, "/apart")]
    )
    with open_h5(path) as ds:
        held = ds["held"]
        with pytest.raises(xref.NullReferenceError):
            held.h5ref.resolve("ragged")
        ragged = held.h5ref.resolve("ragged", on_null="fill")
        assert ragged["row_size"].values.tolist() == [2, 0, 0, 1]
        padded = held.h5ref.resolve("pad", on_null="drop")
        assert padded["valid"].values.tolist() == [[True, True], [False] * 2, [True, False]]
        assert held.h5ref.table()["kind"].values.tolist() == [
            "dataset",
            "dataset",
            "null",
            "dataset",
        ]
        np.testing.assert_array_equal(held.h5ref.count(on_null="fill"), [2, 0, 0, 1])


def test_compounds_without_elements_keep_their_channels(path: Path) -> None:
    write_series(path, [(10, 0, "/one"), (3, 0, "/two")])
    with open_h5(path) as ds:
        assert ds["held"].h5ref.resolve().shape == (2, 0, 2)
        assert ds["held"].h5ref.table()["start"].values.tolist() == [[10, 0], [3, 0]]


def test_a_compound_with_a_null_reference_has_no_region(path: Path) -> None:
    write_series(path, [(0, 2, None), (1, 2, "/apart")])
    with open_h5(path) as ds:
        found = ds["held"].h5ref.resolve(on_null="drop")
        np.testing.assert_array_equal(found, [[1.0, 2.0]])


def test_null_compounds_and_no_compounds_have_tables(path: Path) -> None:
    write_series(path, [(-1, -1, None)] * 2)
    with open_h5(path) as ds:
        assert ds["held"].h5ref.table()["kind"].values.tolist() == ["null"] * 2
        assert ds["held"][:0].h5ref.table()["kind"].shape == (0,)


@pytest.mark.parametrize(
    ("row", "error", "says"),
    [
        ((8, 3, "/one"), IndexError, r"element .*1.* 3 elements from 8 of .*\(10, 2\)"),
        ((11, 0, "/one"), IndexError, "0 elements from 11"),
        ((-1, 2, "/one"), IndexError, "2 elements from -1"),
        ((2, -1, "/one"), IndexError, "-1 elements from 2"),
        ((2**31 - 1, 2**31 - 1, "/one"), IndexError, "elements from 2147483647"),
        ((0, 1, "/scalar"), IndexError, r"of shape \(\)"),
        ((0, 1, "/empty"), xref.XrefError, "group without 'data'"),
        ((0, 1, "/nested"), xref.XrefError, "'data' is a group"),
        ((0, 1, "/gone"), LookupError, "dangling"),
    ],
)
def test_compounds_of_invalid_regions_raise(
    path: Path, row: Any, error: type[Exception], says: str
) -> None:
    write_series(path, [(0, 3, "/two"), row])
    with open_h5(path) as ds:
        with pytest.raises(error, match=says.replace("element ", "reference ")) as raised:
            ds["held"].h5ref.resolve()
        assert isinstance(raised.value, xref.XrefError)
        assert "file.h5" in str(raised.value)
        np.testing.assert_array_equal(ds["held"][:1].h5ref.mean(), [22.5])


def test_numbers_too_large_to_add_raise(path: Path) -> None:
    form = compound(start=number("<i8"), count=number("<u8"), target=reference("object"))
    with h5py.File(path, "w") as file:
        file["apart"] = np.arange(5.0)
        for start, count in ((2**62, 2**62), (1, 2**64 - 1), (0, 2**63)):
            value = {"start": start, "count": count, "target": Ref("/apart")}
            write_dataset(file, f"held{count}", form, [value], (1,))
    with open_h5(path) as ds:
        for name in ("held4611686018427387904", f"held{2**64 - 1}", f"held{2**63}"):
            with pytest.raises(xref.SelectionError, match="elements from"):
                ds[name].h5ref.resolve()


def test_compounds_of_regions_or_attributes_are_no_series(path: Path) -> None:
    form = compound(start=number("i4"), count=number("i4"), target=reference("std"))
    with h5py.File(path, "w") as file:
        values = [{"start": 0, "count": 1, "target": any_reference(k)} for k in (0, 1, 3)]
        written(file, form, lambda k: values[k], (3,))
    with open_h5(path) as ds:
        np.testing.assert_array_equal(ds["held"][:1].h5ref.resolve(), DATA[None, :1])
        for rows in (slice(1, 2), slice(2, 3)):
            with pytest.raises(TypeError, match=r"regions or attributes.*field\('target'\)"):
                ds["held"][rows].h5ref.resolve()


def test_intervals_of_nwb_resolve(corpus: Path) -> None:
    path = corpus / "nwb-explorer" / "test_TimeIntervals.nwb"
    with h5py.File(path) as file:
        names: list[str] = []

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and "idx_start" in (item.dtype.names or ()):
                names.append(name)

        file.visititems(visit)
        assert names
        for name in names:
            group, short = name.rsplit("/", 1)
            rows = file[name][...]
            with open_h5(path, group=group, mask_and_scale=False) as ds:
                resolved = ds[short].h5ref.resolve("ragged")
                values = values_of(resolved).values
                expected = [
                    file[row["timeseries"]]["data"][
                        row["idx_start"] : row["idx_start"] + row["count"]
                    ]
                    for row in rows
                ]
                np.testing.assert_array_equal(values, np.concatenate(expected))
                assert resolved["row_size"].values.tolist() == [len(e) for e in expected]
