"""Values and attributes of every type are equal after write and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from samples import open_h5

import xref

VALUES: dict[str, Any] = {
    "bool": np.array([True, False]),
    "int8": np.array([1, -2], dtype="i1"),
    "big endian": np.array([1, -2], dtype=">i4"),
    "half": np.array([1.5, -2], dtype="f2"),
    "complex": np.array([1 + 2j, 3]),
    "bytes": np.array([b"ab", b"c"]),
    "text": np.array(["ab", "ünï"]),
    "text objects": np.array(["ab", "c"], dtype=object),
    "byte objects": np.array([b"ab", b"\xff"], dtype=object),
    "compound": np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "i4"), ("b", "f8")]),
    "nested": np.array([((1, 2),), ((3, 4),)], dtype=[("p", [("x", "i2"), ("y", "i2")])]),
    "compound of arrays": np.array([([1, 2],), ([3, 4],)], dtype=[("p", "i4", (2,))]),
    "opaque": np.array([b"abc", b"de"], dtype="V3"),
    "time": np.array(["2020-01-01", "2021-05-06T01"], dtype="M8[ns]"),
    "duration": np.array([3, 4], dtype="m8[s]"),
    "empty": np.zeros((0,), dtype="f4"),
    "scalar": np.array(3.5),
}


@pytest.mark.parametrize("chunks", [None, {}])
def test_hdf5_types_are_kept_when_written_again(tmp_path: Path, chunks: Any) -> None:
    path, new = tmp_path / "file.h5", tmp_path / "new.h5"
    types = {
        "bool": bool,
        "enum": h5py.enum_dtype({"A": 0, "B": 5}, "u2"),
        "compound": np.dtype([("x", h5py.enum_dtype({"A": 0}, "u2")), ("y", bool)]),
        "big": ">i4",
        "half": "f2",
        "complex": "c8",
        "fixed": "S5",
        "fixed utf-8": h5py.string_dtype("utf-8", 6),
        "text": h5py.string_dtype(),
        "ascii": h5py.string_dtype("ascii"),
        "sequence": h5py.vlen_dtype("i2"),
    }
    with h5py.File(path, "w") as file:
        for name, dtype in types.items():
            file.create_dataset(name, (2,), dtype)
            file.create_dataset(f"one {name}", (), dtype)
            file.attrs.create(name, np.zeros(2, bool), dtype=dtype if name == "bool" else "i4")
    with open_h5(path, chunks=chunks) as ds:
        xref.to_hdf5(ds, new)
    with h5py.File(path) as before, h5py.File(new) as after:
        for name in types:
            for held in (name, f"one {name}"):
                assert after[held].id.get_type().equal(before[held].id.get_type()), held
        assert after.attrs["bool"].dtype == bool


def test_booleans_are_stored_as_in_netcdf_or_in_hdf5(tmp_path: Path) -> None:
    ds = xr.Dataset({"a": ("x", [True, False]), "b": ("x", [True, False])})
    xref.to_hdf5(ds, tmp_path / "file.h5", encoding={"b": {"dtype": "bool"}})
    with h5py.File(tmp_path / "file.h5") as file:
        assert (file["a"].dtype, file["b"].dtype) == (np.int8, bool)
    with open_h5(tmp_path / "file.h5") as back:
        xr.testing.assert_identical(back.load(), ds)


def as_text(values: np.ndarray) -> np.ndarray:
    return np.array([v.decode("utf-8", "surrogateescape") for v in values], dtype=object)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", VALUES)
def test_values_of_every_type_come_back(tmp_path: Path, name: str) -> None:
    values = VALUES[name]
    ds = xr.Dataset({"v": (("x",)[: values.ndim], values)})
    xref.to_hdf5(ds, tmp_path / "file.h5")
    with open_h5(tmp_path / "file.h5", decode_timedelta=True) as back:
        found = back["v"].load()
    assert found.dims == ds["v"].dims
    expected = as_text(values) if name == "byte objects" else ds["v"].values
    np.testing.assert_array_equal(found.values, expected)
    if values.dtype.kind not in "OU":
        assert found.dtype == ds["v"].dtype.newbyteorder("=")


@pytest.mark.parametrize(
    "name", sorted(set(VALUES) - {"time", "duration", "compound of arrays"})
)
def test_attributes_of_every_type_come_back(tmp_path: Path, name: str) -> None:
    values = VALUES[name]
    xref.to_hdf5(xr.Dataset(attrs={"v": values}), tmp_path / "file.h5")
    with h5py.File(tmp_path / "file.h5") as file:
        found = file.attrs["v"]
    np.testing.assert_array_equal(found, as_text(values) if "byte ob" in name else values)


def test_sequences_of_all_kinds_come_back(tmp_path: Path) -> None:
    rows = np.empty(3, dtype=object)
    rows[:] = [np.array([1, 2], "i2"), np.array([], "i2"), np.array([3], "i2")]
    xref.to_hdf5(xr.Dataset({"v": ("x", rows)}, attrs={"v": rows}), tmp_path / "file.h5")
    with h5py.File(tmp_path / "file.h5") as file:
        for holder in (file["v"][:], file.attrs["v"]):
            assert [row.tolist() for row in holder] == [[1, 2], [], [3]]
            assert holder[0].dtype == np.int16


def test_attributes_larger_than_64_kib_are_written(tmp_path: Path) -> None:
    long = np.arange(50_000)
    ds = xr.Dataset(
        {"v": ("x", [1], {"long": long})}, attrs={"long": long, "text": "x" * 99_999}
    )
    xref.to_hdf5(ds, tmp_path / "file.h5")
    with open_h5(tmp_path / "file.h5") as back:
        np.testing.assert_array_equal(back.attrs["long"], long)
        np.testing.assert_array_equal(back["v"].attrs["long"], long)
        assert back.attrs["text"] == "x" * 99_999


def test_clashing_names_of_dimensions_and_variables_are_written(tmp_path: Path) -> None:
    ds = xr.Dataset({"v": ("x", [1, 2, 3])}, coords={"z": ("x", [1, 2, 3])})
    ds["w"] = ("v_", [1.0])
    xref.to_hdf5(ds, tmp_path / "file.h5")
    with open_h5(tmp_path / "file.h5") as back:
        xr.testing.assert_identical(back.load(), ds)


def test_missing_data_are_written_as_the_fill_value(tmp_path: Path) -> None:
    ds = xr.Dataset({"v": ("x", [1.5, np.nan, 3])})
    encoding = {"v": {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -9}}
    xref.to_hdf5(ds, tmp_path / "file.h5", encoding=encoding)
    with h5py.File(tmp_path / "file.h5") as file:
        assert file["v"][:].tolist() == [3, -9, 6]
        assert file["v"].fillvalue == -9
    with open_h5(tmp_path / "file.h5") as back:
        xr.testing.assert_identical(back.load(), ds)


@pytest.mark.parametrize("chunks", [None, {}])
def test_bytes_are_read_as_bytes_by_netcdf(tmp_path: Path, chunks: Any) -> None:
    ds = xr.Dataset(
        {"s": ("x", np.array([b"ab", b"cdef"])), "one": ((), np.array(b"abc", dtype="S4"))}
    )
    xref.to_hdf5(ds if chunks is None else ds.chunk(), tmp_path / "file.nc")
    for engine, package in (
        ("h5ref", "h5py"),
        ("h5netcdf", "h5netcdf"),
        ("netcdf4", "netCDF4"),
    ):
        pytest.importorskip(package)
        with xr.open_dataset(tmp_path / "file.nc", engine=engine) as back:
            xr.testing.assert_identical(back.load().drop_encoding(), ds)
            assert back["s"].dtype == np.dtype("S4")


def test_fixed_length_bytes_are_written_on_request(tmp_path: Path) -> None:
    ds = xr.Dataset({"s": ("x", np.array([b"ab", b"cdef"]))})
    xref.to_hdf5(ds, tmp_path / "file.h5", encoding={"s": {"dtype": "S4"}})
    with h5py.File(tmp_path / "file.h5") as file:
        assert (file["s"].dtype, file["s"].shape) == (np.dtype("S4"), (2,))
