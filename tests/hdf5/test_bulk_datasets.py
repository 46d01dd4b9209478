"""Many small datasets behind references give the values that each gives alone."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
import xarray as xr
from h5py import h5d, h5p, h5s, h5t
from hypothesis import HealthCheck, given, settings
from strategies import scaled, write_references

import xref.objects.objects
import xref.resolving.bound_references
from xref.errors import XrefError
from xref.hdf5.bulk_attributes import MAX_GROUPS, MAX_VALUES, OTHER_VALUE, OWN_ATTRIBUTES
from xref.hdf5.bulk_datasets import DatasetTable
from xref.hdf5.layout_message import OTHER_INDEX
from xref.objects import StoredObject
from xref.objects.parsing import dataset_table
from xref.storage.open_files import close_files, locate_file
from xref.storage.read_counts import count_reads

NUMBERS = itertools.count()
"""Names of files: one that is written again within a tick of the clock looks the same."""

LIBVERS = ("earliest", "v108", "latest")
ENUM = h5py.enum_dtype({"a": 0, "b": 5}, basetype="i2")
DTYPES: tuple[Any, ...] = (
    "<f8",
    ">f4",
    "<u2",
    ">i8",
    "?",
    "S5",
    ENUM,
    np.dtype([("x", "<f4"), ("y", ">i2", (3,))]),
    np.dtype(("f4", (2,))),
    "c16",
    h5py.string_dtype(),
    h5py.ref_dtype,
)


def add(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any, storage: str, value: int
) -> h5py.Dataset:
    """Write one small dataset; its elements tell which one it is."""
    if storage == "compact":
        properties = h5p.create(h5p.DATASET_CREATE)
        properties.set_layout(h5d.COMPACT)
        space = h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)
        type_id = h5t.py_create(np.dtype(dtype), logical=True)
        dataset = h5py.Dataset(
            h5d.create(group.id, name.encode(), type_id, space, dcpl=properties)
        )
    else:
        options: dict[str, Any] = {"dtype": dtype}
        if storage == "filled" and np.dtype(dtype).kind in "iuf":
            options["fillvalue"] = 7
        if storage in ("chunked", "gzip") and shape and 0 not in shape:
            options["chunks"] = tuple(max(n // 2, 1) for n in shape)
            options["compression"] = "gzip" if storage == "gzip" else None
        dataset = group.create_dataset(name, shape, **options)
    if storage in ("unwritten", "filled") or 0 in shape:
        return dataset
    kind = np.dtype(dtype)
    if kind.kind == "O":
        dataset[...] = group.ref if h5py.check_ref_dtype(kind) else f"text {value}"
    else:
        n = int(np.prod(dataset.shape, dtype=int)) * kind.itemsize
        raw = np.arange(value, value + n) % 120
        elements = raw.astype("u1").view(kind.base if kind.subdtype else kind)
        if kind.kind == "b":
            elements = (raw % 2).astype(bool)
        if kind.subdtype:
            dataset.id.write(h5s.ALL, h5s.ALL, elements, h5t.py_create(kind))
        else:
            dataset[...] = elements.reshape(dataset.shape)
    return dataset


STORAGES = ("contiguous", "compact", "chunked", "gzip", "unwritten", "filled")


@st.composite
def specs(draw: st.DrawFn, dtypes: Sequence[Any] = DTYPES) -> tuple[Any, ...]:
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    return (
        shape,
        draw(st.sampled_from(dtypes)),
        draw(st.sampled_from(STORAGES)),
        draw(st.sampled_from([{}, {}, {"units": np.bytes_("m")}, {"k": 1}, {"k": [2.0, 3.0]}])),
    )


def write_specs(path: Path, rows: list[tuple[Any, ...]], libver: str, **options: Any) -> None:
    with h5py.File(path, "w", libver=(libver, "latest"), **options) as file:
        cells = file.create_group("cells")
        made = []
        for i, (shape, dtype, storage, attributes) in enumerate(rows):
            try:
                made.append(add(cells, f"c{i}", shape, dtype, storage, i))
            except (ValueError, TypeError):  # of h5py: no such type in this storage
                del cells[f"c{i}"]
                made.append(add(cells, f"d{i}", shape, "f8", "contiguous", i))
            made[-1].attrs.update(attributes)
        write_references(file, "refs", [d.ref for d in made], dtype=h5py.ref_dtype)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Switch between many targets at once and one by one."""

    def switch(one_by_one: bool) -> None:
        few = sys.maxsize if one_by_one else 1
        monkeypatch.setattr(xref.resolving.bound_references, "MIN_BULK_TARGETS", few)

    yield switch
    close_files()


def addresses_of(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return np.array(
            [h5py.h5o.get_info(file[r].id).addr for r in file["refs"][...]], dtype=np.uint64
        )


def outcome(path: Path, function: Callable[[xr.DataArray], Any]) -> Any:
    """What a function makes of the references, or the error that it raises."""
    with xr.open_dataset(path, engine="h5ref") as ds:
        try:
            return function(ds["refs"])
        except (XrefError, ValueError) as error:
            return type(error), str(error)


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other), (one, other)
    if isinstance(one, xr.Dataset | xr.DataArray):
        xr.testing.assert_identical(one, other)
        assert str(one) == str(other)
    else:
        assert one == other


@pytest.mark.parametrize("maxshape", [(None,), (None, 4), (None, None)])
def test_chunk_indices_without_a_bulk_reader_are_other_index(path: Path, maxshape: Any) -> None:
    """NumPy before 2.5 wrapped -1 among unsigned bytes of messages to 255; 2.5 raises."""
    with h5py.File(path, "w", libver="latest") as file:
        shape = tuple(4 for _ in maxshape)
        refs = file.create_dataset("refs", (2,), dtype=h5py.ref_dtype)
        grows = file.create_dataset("grows", shape, "f8", chunks=shape, maxshape=maxshape)
        fixed = file.create_dataset("fixed", shape, "f8", chunks=shape)
        refs[...] = [grows.ref, fixed.ref]
    location = locate_file(path)
    table = dataset_table(location, addresses_of(path))
    assert table.known.all()
    assert (table.index == OTHER_INDEX).tolist() == [True, False]


def check_table(path: Path) -> DatasetTable:
    """Compare a table with what each dataset alone says of itself."""
    location, address = locate_file(path), addresses_of(path)
    table = dataset_table(location, address)
    for i in np.flatnonzero(table.known).tolist():
        layout = StoredObject(location, int(address[i])).layout
        first = StoredObject(location, int(address[table.first_alike[i]])).metadata
        assert tuple(table.shape[i, : table.ndim[i]].tolist()) == layout.shape
        assert (table.shape[i, table.ndim[i] :] == 1).all()
        if layout.chunks is None:
            assert table.nbytes[i] == layout.stored_nbytes or table.offset[i] == -1
        else:
            assert table.nbytes[i] == np.prod(layout.shape) * layout.stored_itemsize
            assert tuple(table.chunks[i, : table.ndim[i]].tolist()) == layout.chunks
        if layout.why_not_raw == "" and layout.chunks is None:
            assert table.offset[i] == (-1 if layout.offset is None else layout.offset)
        assert (layout.dtype, layout.why_not_direct) == (
            first.layout.dtype,
            first.layout.why_not_direct,
        )
        assert layout.dtype.metadata == first.layout.dtype.metadata
        assert layout.stored_itemsize == first.layout.stored_itemsize
        assert np.array_equal(layout.fill_value, first.layout.fill_value)
        attributes = StoredObject(location, int(address[i])).metadata.attributes
        if table.attributes[i] == OWN_ATTRIBUTES:
            assert attributes
            continue
        assert bool(attributes) == (table.attributes[i] >= 0)
        for axis, name in enumerate(table.names.get(int(table.attributes[i]), ())):
            row = int(table.values[i, axis])
            if row != OTHER_VALUE and name:
                same = StoredObject(location, int(address[row])).metadata.attributes
                assert str(attributes[name]) == str(same[name])
    return table


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=scaled(40))
@given(
    rows=st.lists(specs(), min_size=1, max_size=12),
    libver=st.sampled_from(LIBVERS),
    block=st.sampled_from([0, 512]),
)
def test_dataset_tables_equal_the_layout_of_each_dataset(
    tmp_path: Path, rows: list[tuple[Any, ...]], libver: str, block: int
) -> None:
    path = tmp_path / f"{next(NUMBERS)}.h5"
    write_specs(path, rows, libver, userblock_size=block)
    check_table(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=scaled(40))
@given(
    data=st.data(), libver=st.sampled_from(LIBVERS), layout=st.sampled_from(["ragged", "pad"])
)
def test_stacked_values_equal_those_of_each_reference(
    tmp_path: Path, alone: Callable[[bool], None], data: st.DataObject, libver: str, layout: str
) -> None:
    numbers = st.sampled_from([("<f8",), ("<f8", "<f8", ">f4", "<u2"), ("S5",), (DTYPES[7],)])
    rows = data.draw(st.lists(specs(data.draw(numbers)), min_size=2, max_size=12))
    path = tmp_path / f"{next(NUMBERS)}.h5"
    write_specs(path, rows, libver)
    picks = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=15))

    def resolve(refs: xr.DataArray) -> xr.Dataset:
        return refs[picks].h5ref.resolve(layout).load()

    alone(False)
    many = outcome(path, resolve)
    alone(True)
    assert_same(many, outcome(path, resolve))
    if isinstance(many, xr.Dataset) and layout == "ragged":
        with h5py.File(path) as file:
            values = [file[r][()].reshape(-1) for r in file["refs"][...][picks]]
        expected = np.concatenate(values)
        name = next(iter(many.data_vars))
        assert np.array_equal(many[name].values.astype(expected.dtype), expected)


@pytest.mark.sampled(53)
@pytest.mark.parametrize("dtype", DTYPES[:10], ids=str)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_stacks_of_every_type_and_storage_equal_h5py(
    path: Path, alone: Callable[[bool], None], dtype: Any, storage: str, libver: str
) -> None:
    if storage == "compact" and np.dtype(dtype).subdtype:
        pytest.skip("h5py makes no compact dataset of an array type")
    write_specs(path, [((3, 4), dtype, storage, {})] * 5, libver)
    alone(False)
    many = outcome(path, lambda refs: refs.h5ref.resolve().load())
    part = outcome(path, lambda refs: refs.h5ref.resolve()[1:, 0, ::2].load())
    alone(True)
    assert_same(many, outcome(path, lambda refs: refs.h5ref.resolve().load()))
    assert_same(part, many[1:, 0, ::2])
    with h5py.File(path) as file:
        expected = np.stack([file[r][()] for r in file["refs"][...]])
    np.testing.assert_array_equal(many.values, expected)


def test_attributes_that_all_datasets_share_are_kept(
    path: Path, alone: Callable[[bool], None]
) -> None:
    both = {"units": np.bytes_("m"), "k": np.int32(1)}
    rows = [((3,), "f8", "contiguous", both | {"n": i % 3}) for i in range(9)]
    write_specs(path, rows, "earliest")
    alone(False)
    table = check_table(path)
    assert np.unique(table.attributes).tolist() == [0]
    assert table.values.tolist() == [[0, 0, i % 3] for i in range(9)]
    values = outcome(path, lambda refs: refs.h5ref.resolve())
    assert dict(values.attrs) == {"units": "m", "k": 1}
    alone(True)
    assert_same(values, outcome(path, lambda refs: refs.h5ref.resolve()))


@pytest.mark.slow
@pytest.mark.parametrize("n_factors", [2, MAX_VALUES, MAX_VALUES + 3])
def test_different_packings_are_decoded_by_the_attributes_of_each_dataset(
    path: Path, alone: Callable[[bool], None], n_factors: int
) -> None:
    factors = [1.0 + i % n_factors for i in range(3 * MAX_VALUES)]
    rows = [((3,), "i2", "contiguous", {"scale_factor": f}) for f in factors]
    write_specs(path, rows, "earliest")
    alone(False)
    many = outcome(path, lambda refs: refs.h5ref.resolve().load())
    alone(True)
    assert_same(many, outcome(path, lambda refs: refs.h5ref.resolve().load()))
    with h5py.File(path) as file:
        raw = np.stack([file[ref][()] for ref in file["refs"][()]])
    with xr.open_dataset(path, engine="h5ref") as ds:
        found = ds["refs"].h5ref.resolve()
        np.testing.assert_array_equal(found, raw * np.array(factors)[:, None])
        np.testing.assert_array_equal(ds["refs"].h5ref.map(np.sum), found.sum(found.dims[1]))


def test_dimension_scales_keep_their_names(make: Callable[..., Path]) -> None:
    def fill(file: h5py.File) -> None:
        made = []
        for i in range(10):
            scale = file.create_dataset(f"x{i}", data=np.arange(4.0))
            scale.make_scale(f"x{i}")
            made.append(file.create_dataset(f"v{i}", data=np.arange(4.0) + i))
            made[-1].dims[0].attach_scale(file["x0"])
        write_references(file, "refs", [d.ref for d in made], dtype=h5py.ref_dtype)

    with xr.open_dataset(make(fill), engine="h5ref") as ds:
        values = ds["refs"].h5ref.resolve()
        assert values.dims[1] == "x0"
        np.testing.assert_array_equal(values["x0"], np.arange(4.0))


def test_null_and_repeated_references_are_stacked(make: Callable[..., Path]) -> None:
    def fill(file: h5py.File) -> None:
        made = [file.create_dataset(f"c/{i}", data=np.full(3, i)).ref for i in range(20)]
        cells = [made[(7 * i) % 20] if i % 4 else None for i in range(60)]
        write_references(file, "refs", cells, (6, 10), dtype=h5py.ref_dtype)

    with xr.open_dataset(make(fill), engine="h5ref") as ds:
        values = ds["refs"].h5ref.resolve(on_null="fill", fill_value=-1)
        expected = np.array([(7 * i) % 20 if i % 4 else -1 for i in range(60)])
        np.testing.assert_array_equal(values.values, np.repeat(expected, 3).reshape(6, 10, 3))


def many_cells(file: h5py.File, n: int = 3000) -> None:
    rng = np.random.default_rng(5)
    cells = file.create_group("#refs#")
    made = [
        cells.create_dataset(f"v{i}", data=rng.random(rng.integers(1, 9))) for i in range(n)
    ]
    write_references(file, "refs", [d.ref for d in made], dtype=h5py.ref_dtype)


@pytest.mark.slow
def test_h5py_opens_one_dataset_of_each_group_of_alike_datasets(
    make: Callable[..., Path], opened_objects: list[int]
) -> None:
    path = make(many_cells)
    with xr.open_dataset(path, engine="h5ref") as ds:
        before = len(opened_objects)
        ragged = ds["refs"].h5ref.resolve("ragged").load()
        table = ds["refs"].h5ref.table()
        assert 1 <= len(opened_objects) - before <= 8
    assert (table["kind"] == "dataset").all()
    assert table["path"].values.tolist() == [f"/#refs#/v{i}" for i in range(3000)]
    with h5py.File(path) as file:
        values = np.concatenate([file[r][()] for r in file["refs"][...]])
    np.testing.assert_array_equal(ragged["refs"].values, values)


def test_datasets_beyond_max_groups_are_opened_alone(
    make: Callable[..., Path], alone: Callable[[bool], None]
) -> None:
    def fill(file: h5py.File) -> None:
        made = [file.create_dataset(f"s{i}", data=np.bytes_(b"x" * (i + 1))) for i in range(90)]
        write_references(file, "refs", [d.ref for d in made], dtype=h5py.ref_dtype)

    path = make(fill)
    table = dataset_table(locate_file(path), addresses_of(path))
    assert table.known.sum() == MAX_GROUPS
    with xr.open_dataset(path, engine="h5ref") as ds:
        assert (ds["refs"].h5ref.table()["kind"] == "dataset").all()
        values = ds["refs"].h5ref.resolve("ragged")["refs"]
    assert values.dtype == "S90"
    assert values.values.tolist() == [b"x" * (i + 1) for i in range(90)]


def test_a_reference_to_a_group_among_datasets_raises_with_its_number(
    make: Callable[..., Path],
) -> None:
    def fill(file: h5py.File) -> None:
        made = [file.create_dataset(f"c{i}", data=float(i)).ref for i in range(30)]
        made[20] = file.create_group("g").ref
        write_references(file, "refs", made, dtype=h5py.ref_dtype)

    with xr.open_dataset(make(fill), engine="h5ref") as ds:
        kinds = ds["refs"].h5ref.table()["kind"].values.tolist()
        assert kinds == ["dataset"] * 20 + ["group"] + ["dataset"] * 9
        with pytest.raises(XrefError, match=r"object reference 20 of .*is a group"):
            ds["refs"].h5ref.resolve()


def test_files_open_for_writing_are_read_by_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        many_cells(file, 40)
        file["#refs#/v3"][...] = -1.0
        with xr.open_dataset(file, engine="h5ref") as ds:
            ragged = ds["refs"].h5ref.resolve("ragged").load()
            values = np.concatenate([file[r][()] for r in file["refs"][...]])
            np.testing.assert_array_equal(ragged["refs"].values, values)


@pytest.mark.slow
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_damaged_headers_give_the_same_in_bulk_and_alone(
    make: Callable[..., Path], alone: Callable[[bool], None], libver: str
) -> None:
    path = make(lambda file: many_cells(file, 12), libver=libver)
    address, content = addresses_of(path), path.read_bytes()
    rng = np.random.default_rng(8)
    for k in range(60):
        damaged = bytearray(content)
        for at in address[rng.integers(0, len(address), 2)].tolist():
            damaged[at + int(rng.integers(0, 110))] = int(rng.integers(0, 256))
        other = path.with_name(f"damaged{k}.h5")
        other.write_bytes(damaged)
        found = []
        for one_by_one in (False, True):
            alone(one_by_one)
            found.append(outcome(other, lambda refs: refs.h5ref.resolve("ragged").load()))
        assert_same(*found)


@pytest.mark.slow
def test_small_datasets_take_few_requests(make: Callable[..., Path]) -> None:
    with xr.open_dataset(make(many_cells), engine="h5ref") as ds:
        ragged = ds["refs"].h5ref.resolve("ragged", chunks=None)
        with count_reads() as counts:
            ragged.load()
        assert counts.requests < 20
