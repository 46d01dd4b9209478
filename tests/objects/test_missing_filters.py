"""Filters that are not available: files open, and errors name the filter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from h5py import h5d, h5p, h5s, h5t, h5z

import xref
from xref.errors import FileReadError, UnsupportedError
from xref.hdf5 import filter_name, install_hint

MISSING = {
    305: r"LZO \(id 305\).*tables",
    32002: r"MAFISC \(id 32002\).*HDF5_PLUGIN_PATH",
    32099: r"without a name \(id 32099\).*HDF5_PLUGIN_PATH",
}


def write(path: Path, number: int) -> None:
    """Write datasets of floats and of references with a filter that HDF5 does not have.

    HDF5 stores an optional filter that it lacks. The second chunk skips the filter, and the
    third was never written.
    """
    with h5py.File(path, "w") as file:
        for name, dtype in (("d", h5t.IEEE_F64LE), ("refs", h5t.STD_REF_OBJ)):
            properties = h5p.create(h5p.DATASET_CREATE)
            properties.set_chunk((10,))
            properties.set_filter(number, h5z.FLAG_OPTIONAL, (1, 2))
            space = h5s.create_simple((30,))
            dataset = h5d.create(file.id, name.encode(), dtype, space, properties)
            dataset.write_direct_chunk((0,), b"not plain bytes!")
            plain = np.arange(10.0) if name == "d" else np.zeros(10)
            dataset.write_direct_chunk((10,), plain.tobytes(), filter_mask=1)
        file["group/other"] = np.arange(3)
        regions = file.create_dataset("regions", (2,), dtype=h5py.regionref_dtype)
        regions[0] = file["d"].regionref[2:5]
        regions[1] = file["d"].regionref[12:15]


@pytest.fixture(params=MISSING)
def number(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    if h5z.filter_avail(value):
        pytest.skip("HDF5 has a plugin of this filter here")
    return value


READS: dict[str, Callable[[xr.Dataset, Path], Any]] = {
    "values": lambda ds, path: ds["d"].values,
    "part": lambda ds, path: ds["d"][3:4].values,
    "dask": lambda ds, path: ds["d"].chunk(5).sum().compute(),
    "reference": lambda ds, path: ds["regions"].values[0].resolve().values,
    "resolve": lambda ds, path: ds["regions"].h5ref.resolve(coords=False).compute(),
    "mean": lambda ds, path: ds["regions"].h5ref.mean().compute(),
    "to_hdf5": lambda ds, path: xref.to_hdf5(ds[["d"]], path / "out.h5"),
}


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("reader", ["auto", "direct", "h5py"])
def test_an_error_names_file_variable_filter_and_package(
    tmp_path: Path, number: int, reader: str, how: str
) -> None:
    path = tmp_path / "f.h5"
    write(path, number)
    with xr.open_dataset(path, engine="h5ref", reader=reader) as ds:
        assert set(ds.variables) == {"d", "refs", "regions"}
        assert set(xr.open_datatree(path, engine="h5ref")["group"].variables) == {"other"}
        if reader == "direct":
            label = MISSING[number].split(".*")[0]
            with pytest.raises(UnsupportedError, match=rf"f\.h5: /d .*{label}"):
                READS[how](ds, tmp_path)
            return
        with pytest.raises(FileReadError, match=rf"f\.h5: /d: .*{MISSING[number]}"):
            READS[how](ds, tmp_path)
        # A chunk that skips the filter, and one that was never written, need no filter.
        np.testing.assert_array_equal(ds["d"][10:20], np.arange(10.0))
        np.testing.assert_array_equal(ds["d"][20:], np.zeros(10))


def test_references_behind_a_missing_filter_are_an_error_that_names_it(
    tmp_path: Path, number: int
) -> None:
    write(tmp_path / "f.h5", number)
    with (
        xr.open_dataset(tmp_path / "f.h5", engine="h5ref") as ds,
        pytest.raises((FileReadError, UnsupportedError), match=rf"/refs.*id {number}"),
    ):
        bool(ds["refs"].values[0])


def test_each_registered_filter_has_a_name_and_a_hint() -> None:
    assert filter_name(305) == "LZO"
    assert filter_name(40000, "mine") == "mine"
    assert "hdf5plugin" in install_hint(32013)
    assert "tables" in install_hint(305)


def test_the_encoding_lists_filters_without_a_key(tmp_path: Path, number: int) -> None:
    path = tmp_path / "f.h5"
    write(path, number)
    with h5py.File(path, "a") as file:
        file["gzip"] = np.arange(3)
    with xr.open_dataset(path, engine="h5ref") as ds:
        listed = ds["d"].encoding["hdf5_filters"]
        assert listed == ({"id": number, "name": filter_name(number), "options": (1, 2)},)
        assert "compression" not in ds["d"].encoding
        assert "hdf5_filters" not in ds["gzip"].encoding
        loaded = ds[["d"]].isel(phony_dim_0=slice(10, 30)).load()
    # Other writers ignore the key; h5netcdf cannot write its own encoding of this variable.
    for engine in {"h5netcdf", "netcdf4"} & set(xr.backends.list_engines()):
        loaded.to_netcdf(tmp_path / "out.nc", engine=engine)
        with xr.open_dataset(tmp_path / "out.nc", engine=engine) as again:
            np.testing.assert_array_equal(again["d"], loaded["d"])
    with pytest.warns(UserWarning, match=f"{filter_name(number)}.*written with gzip"):
        xref.to_hdf5(loaded, tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["d"].compression == "gzip"
        np.testing.assert_array_equal(file["d"], loaded["d"])
    with pytest.raises(ValueError, match=filter_name(number)):
        xref.to_hdf5(loaded, tmp_path / "out.h5", encoding={"d": {"hdf5_filters": listed}})


@pytest.mark.parametrize("name", ["Bitshuffle", "LZ4", "Blosc2", "Zstd", "Blosc", "BZip2"])
def test_lossless_filters_of_plugins_are_written_again(tmp_path: Path, name: str) -> None:
    hdf5plugin = pytest.importorskip("hdf5plugin")
    values = np.arange(1000.0)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("d", data=values, chunks=(100,), **getattr(hdf5plugin, name)())
        expected = pipeline(file["d"])
    with xr.open_dataset(tmp_path / "f.h5", engine="h5ref") as ds:
        encoding = ds["d"].encoding
        assert ("hdf5_filters" in encoding) == (name in ("Bitshuffle", "LZ4", "Blosc2"))
        xref.to_hdf5(ds, tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["d"], values)
        if "hdf5_filters" in encoding:
            assert pipeline(file["d"]) == expected
        assert [number for number, _ in pipeline(file["d"])] == [n for n, _ in expected]


def pipeline(dataset: h5py.Dataset) -> list[tuple[int, tuple[int, ...]]]:
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(k) for k in range(properties.get_nfilters())]
    return [(number, tuple(options)) for number, _, options, _ in filters]


def test_a_filter_that_loses_digits_is_not_guessed(tmp_path: Path) -> None:
    hdf5plugin = pytest.importorskip("hdf5plugin")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        options = hdf5plugin.Zfp(accuracy=0.1)
        file.create_dataset("d", data=np.arange(1000.0), chunks=(100,), **options)
        expected = file["d"][()]
    with (
        xr.open_dataset(tmp_path / "f.h5", engine="h5ref") as ds,
        pytest.warns(UserWarning, match="zfp.*written with gzip"),
    ):
        xref.to_hdf5(ds, tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["d"], expected)
