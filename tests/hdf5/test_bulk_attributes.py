"""Attributes of many datasets: common values are found by opening few datasets."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
import xarray as xr
from h5py import h5a, h5s, h5t
from hypothesis import HealthCheck, given, settings
from strategies import scaled, write_references

import xref.objects.objects
import xref.resolving.bound_references
from xref.errors import XrefError
from xref.hdf5.attribute import read_raw_attributes
from xref.hdf5.bulk_attributes import MAX_VALUES, OTHER_VALUE, OWN_ATTRIBUTES, first_equal_row
from xref.hdf5.bulk_datasets import DatasetTable
from xref.objects.parsing import byte_source, dataset_table
from xref.storage.open_files import close_files, locate_file

NUMBERS = itertools.count()
LIBVERS = ("earliest", "v108", "latest")
N = 12


def write(path: Path, attributes: list[dict[str, Any]], libver: str = "earliest") -> None:
    """Write a small dataset for each set of attributes; bytes are text of fixed length."""
    with h5py.File(path, "w", libver=(libver, "latest")) as file:
        cells = file.create_group("cells")
        made = []
        for i, named in enumerate(attributes):
            made.append(cells.create_dataset(f"d{i}", data=np.arange(3.0) + i))
            for name, value in named.items():
                made[-1].attrs[name] = value
        write_references(file, "refs", [d.ref for d in made], dtype=h5py.ref_dtype)


def table_of(path: Path) -> DatasetTable:
    with h5py.File(path) as file:
        address = [h5py.h5o.get_info(file[r].id).addr for r in file["refs"][...]]
    return dataset_table(locate_file(path), np.array(address, dtype=np.uint64))


def outcome(path: Path, one_by_one: bool, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Values with their attributes, or the error and its message."""
    monkeypatch.setattr(
        xref.resolving.bound_references, "MIN_BULK_TARGETS", sys.maxsize if one_by_one else 1
    )
    with xr.open_dataset(path, engine="h5ref", mask_and_scale=False) as ds:
        try:
            return ds["refs"].h5ref.resolve().load()
        except (XrefError, ValueError) as error:
            return type(error), str(error)


def check(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compare what many datasets give together with what they give one by one."""
    many, alone = (outcome(path, one, monkeypatch) for one in (False, True))
    if isinstance(many, xr.DataArray):
        xr.testing.assert_identical(many, alone)
        assert list(many.attrs) == list(alone.attrs)
    else:
        assert many == alone
    return many


VALUES: tuple[Any, ...] = (
    np.bytes_("m"),
    np.bytes_("m   "),
    np.bytes_("km"),
    "m",
    "km",
    "",
    np.int32(1),
    np.int32(2),
    1.5,
    np.nan,
    [1.0, 2.0],
    ["a", "bc"],
    ["a", "bd"],
    h5py.Empty("f4"),
    True,
)


@pytest.mark.filterwarnings("ignore:.* points at values of units")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=scaled(40))
@given(
    attributes=st.lists(
        st.dictionaries(
            st.sampled_from(["k", "units", "scale_factor"]), st.sampled_from(VALUES)
        ),
        min_size=2,
        max_size=N,
    ),
    libver=st.sampled_from(LIBVERS),
)
def test_common_attributes_equal_those_found_one_by_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    attributes: list[dict[str, Any]],
    libver: str,
) -> None:
    path = tmp_path / f"{next(NUMBERS)}.h5"
    write(path, attributes, libver)
    check(path, monkeypatch)
    close_files()


@pytest.mark.slow
@pytest.mark.parametrize("libver", LIBVERS)
@pytest.mark.parametrize("form", [str, np.bytes_])
def test_few_datasets_are_opened_where_strings_differ(
    path: Path, opened_objects: list[int], form: Callable[[str], Any], libver: str
) -> None:
    attributes = [
        {"a": form(f"number {i:04d}"), "b": form("cell"), "c": form("xy"[i % 2])}
        for i in range(300)
    ]
    write(path, attributes, libver)
    with xr.open_dataset(path, engine="h5ref") as ds:
        before = len(opened_objects)
        values = ds["refs"].h5ref.resolve()
        assert 1 <= len(opened_objects) - before <= 6
        assert dict(values.attrs) == {"b": "cell"}


def test_equal_strings_with_different_heap_ids_are_equal_values(path: Path) -> None:
    write(path, [{"units": "metre", "long_name": "x" * 40} for _ in range(N)])
    table = table_of(path)
    assert (table.attributes == 0).all()
    assert (table.values == 0).all()
    assert table.names == {0: ("units", "long_name")}


def test_values_beyond_max_values_are_other_values(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, [{"k": np.int32(i)} for i in range(MAX_VALUES + 3)])
    table = table_of(path)
    assert table.values[:, 0].tolist() == [*range(MAX_VALUES)] + [OTHER_VALUE] * 3
    assert dict(check(path, monkeypatch).attrs) == {}


def test_strings_with_different_padding_are_a_common_attribute(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, [{} for _ in range(MAX_VALUES + 3)])
    with h5py.File(path, "a") as file:
        fixed = h5t.C_S1.copy()
        fixed.set_size(8)
        for i, reference in enumerate(file["refs"][...]):
            attribute = h5a.create(file[reference].id, b"name", fixed, h5s.create(h5s.SCALAR))
            text = np.array(b"ab\0" + bytes([65 + i]) * 4 + b"\0", dtype="S8")
            attribute.write(text, mtype=fixed)
    assert len(np.unique(table_of(path).values)) == MAX_VALUES + 1
    assert dict(check(path, monkeypatch).attrs) == {"name": "ab"}


def test_variable_length_units_are_those_of_each_target(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, [{"units": f"days since {2000 + i}-01-01"} for i in range(N)])
    years = check(path, monkeypatch).dt.year.values
    assert sorted(set(years.ravel().tolist())) == [2000 + i for i in range(N)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::xref.errors.UnreadableMemberWarning")
@pytest.mark.filterwarnings("ignore::UnicodeWarning")
def test_damaged_heaps_give_the_same_attributes_in_bulk_and_one_by_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, [{"a": f"t{i % 3}", "b": "bb"} for i in range(8)])
    content = path.read_bytes()
    begin = content.index(b"GCOL")
    rng = np.random.default_rng(6)
    for k in range(25):
        damaged = bytearray(content)
        damaged[begin + int(rng.integers(0, 300))] = int(rng.integers(0, 256))
        other = path.with_name(f"damaged{k}.h5")
        other.write_bytes(damaged)
        check(other, monkeypatch)
    close_files()


@pytest.mark.slow
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_equal_values_are_equal_in_damaged_headers_too(path: Path, libver: str) -> None:
    write(path, [{"b": np.bytes_("bb"), "k": i % 2} for i in range(8)], libver)
    content = path.read_bytes()
    with h5py.File(path) as file:
        address = [h5py.h5o.get_info(file[r].id).addr for r in file["refs"][...]]
    rng = np.random.default_rng(6)
    n_compared = 0
    for k in range(80):
        damaged = bytearray(content)
        damaged[int(rng.choice(address)) + int(rng.integers(0, 400))] ^= int(rng.integers(256))
        other = path.with_name(f"damaged{k}.h5")
        other.write_bytes(damaged)
        location = locate_file(other)
        table = dataset_table(location, np.array(address, dtype=np.uint64))
        source = byte_source(location, "f.h5")
        for i in np.flatnonzero(table.known & (table.attributes >= 0)).tolist():
            for axis, name in enumerate(table.names[int(table.attributes[i])]):
                first = int(table.values[i, axis])
                if first in (i, OTHER_VALUE) or not name:
                    continue
                mine, other_one = (
                    read_raw_attributes(source, address[row])[axis] for row in (i, first)
                )
                assert mine == other_one
                n_compared += 1
    assert n_compared > 80


def test_long_attributes_are_not_compared(path: Path) -> None:
    write(path, [{"k": np.zeros(200) + i} for i in range(3)])
    assert (table_of(path).attributes == OWN_ATTRIBUTES).all()


def test_first_equal_row_gives_up_after_most_different_rows() -> None:
    key = np.array([[3], [1], [3], [2], [1], [2]], dtype=np.uint8)
    assert first_equal_row(key, 2).tolist() == [0, 1, 0, -1, 1, -1]
    assert first_equal_row(key).tolist() == [0, 1, 0, 3, 1, 3]
