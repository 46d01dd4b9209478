"""Files without references open as with ``engine="h5netcdf"``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import xref
from xref.references.reference import SourceName

h5netcdf = pytest.importorskip("h5netcdf")

TYPES = ("i1", "u1", "i2", ">i2", "u4", ">i8", "u8", "f2", "f4", ">f8", "c8", "c16", "?", "S1")


def same(a: Any, b: Any) -> bool:
    """Tell whether two attribute or encoding values are the same, types included."""
    if isinstance(a, SourceName):
        a = str(a)
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        if a.dtype.kind in "OV":
            return a.dtype == b.dtype and repr(a) == repr(b)
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, np.dtype):
        return a == b and a.metadata == b.metadata
    if isinstance(a, np.generic) and a.dtype != b.dtype:
        return False
    return bool(a == b or (a != a and b != b))


def assert_same_mapping(found: Any, expected: Any, what: str) -> None:
    assert set(found) == set(expected), what
    for name, value in expected.items():
        assert same(found[name], value), (what, name, found[name], value)


def assert_parity(path: Path, **options: Any) -> xr.Dataset:
    """Open with both engines; compare values, types, dimensions, attributes and encodings."""
    options = {"phony_dims": "access"} | options
    with (
        xr.open_dataset(path, engine="h5netcdf", **options) as expected,
        xr.open_dataset(path, engine="h5ref", **options) as found,
    ):
        assert list(found.variables) == list(expected.variables)
        assert set(found.coords) == set(expected.coords)
        assert set(found.xindexes) == set(expected.xindexes)
        assert found.sizes == expected.sizes
        assert_same_mapping(found.attrs, expected.attrs, "attributes")
        assert_same_mapping(found.encoding, expected.encoding, "encoding")
        for name, variable in expected.variables.items():
            mine = found.variables[name]
            assert mine.dims == variable.dims, name
            assert mine.dtype == variable.dtype, name
            assert_same_mapping(mine.attrs, variable.attrs, name)
            own = {k: v for k, v in mine.encoding.items() if k in variable.encoding}
            assert_same_mapping(own, variable.encoding, name)
            assert set(mine.encoding) - set(own) <= {"source"}  # lost where text is decoded
            values, wanted = mine.values, variable.values
            if wanted.ndim or wanted.dtype.kind not in "SU":
                assert values.dtype == wanted.dtype, name
            np.testing.assert_array_equal(values, wanted)
        xr.testing.assert_identical(found.load(), expected.load())
    return found


OPTIONS: list[dict[str, Any]] = [
    {},
    {"decode_cf": False},
    {"mask_and_scale": False},
    {"decode_times": False},
    {"decode_coords": False},
    {"decode_coords": "all"},
    {"concat_characters": False},
]


def every_type(file: h5py.File) -> None:
    for t in TYPES:
        name = t.replace(">", "big_").replace("?", "bool")
        values = np.array([0, 1, 2, 3]).astype(t)
        file[f"d_{name}"] = values
        file[f"s_{name}"] = values[1]
        file.create_dataset(f"e_{name}", (0, 3), t)
        file.create_dataset(f"f_{name}", (5,), t, chunks=(2,), fillvalue=values[1])
        attributes = file[f"d_{name}"].attrs
        attributes["some"] = values[:2]
        attributes["one"] = values[:1]
        attributes["scalar"] = values[1]
        attributes["grid"] = values.reshape(2, 2)
        attributes["none"] = values[:0]
    file["text"] = ["a", "ünï", ""]
    file["scalar text"] = "ünï"
    file["fixed"] = np.array([b"abc", b"d"])
    file.create_dataset("fixed utf8", data=np.array(["ä".encode()]), dtype="S2")
    file["compound"] = np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")])
    file.create_dataset("enum", data=[0, 1], dtype=h5py.enum_dtype({"A": 0, "B": 1}, "i1"))
    file["opaque"] = np.array([b"ab"], "V2")


def every_attribute(file: h5py.File) -> None:
    file["variable"] = np.arange(3.0)
    for attributes in (file.attrs, file["variable"].attrs):
        text = h5py.string_dtype()
        attributes["text"] = "ünï"
        attributes["bytes"] = np.bytes_(b"abc")
        attributes["byte"] = np.bytes_(b"a")
        attributes["characters"] = np.array([b"a", b"b"])
        attributes["character"] = np.array([b"a"])
        attributes["words"] = np.array([b"abc", b"d"])
        attributes["word"] = np.array([b"abc"])
        attributes["no words"] = np.array([], "S3")
        attributes["no characters"] = np.array([], "S1")
        attributes.create("texts", ["x", "y"], dtype=text)
        attributes.create("one text", ["x"], dtype=text)
        attributes.create("no texts", np.array([], object), dtype=text)
        attributes.create("ascii", ["x", "y"], dtype=h5py.string_dtype("ascii"))
        attributes.create("grid", np.array([["x", "y"], ["z", ""]], object), dtype=text)
        attributes["empty"] = ""
        attributes["null character"] = h5py.Empty("S1")
        attributes["null words"] = h5py.Empty("S3")
        attributes["null numbers"] = h5py.Empty("f4")
        attributes["none"] = np.array([])
        attributes["numbers"] = [1, 2]
        attributes["bool"] = True
        attributes["big-endian"] = np.arange(2, dtype=">i4")
        attributes["row"] = np.arange(3).reshape(1, 3)
        attributes["compound"] = np.array((1, 2.0), dtype=[("a", "i4"), ("b", "f8")])
        attributes.create("enum", 1, dtype=h5py.enum_dtype({"A": 0, "B": 1}, "i1"))
    file["variable"].attrs["_FillValue"] = np.array([-1.0])


def scales(file: h5py.File) -> None:
    for name, size in (("x", 3), ("y", 4), ("second x", 3)):
        file[name] = np.arange(size) * 0.5
        file[name].make_scale("long name")
    file["data"] = np.arange(12.0).reshape(3, 4)
    for name, axis in (("x", 0), ("second x", 0), ("y", 1)):
        file["data"].dims[axis].attach_scale(file[name])
    file["data"].attrs["coordinates"] = "two compound"
    file["two"] = np.arange(12).reshape(3, 4)
    file["compound"] = np.zeros((3, 4), dtype=[("a", "i4"), ("b", "f8")])
    file["without"] = np.zeros((3, 4, 5))
    file["group/data"] = np.zeros((4, 7))
    file["group/inner"] = np.zeros(4)
    file["group/inner"].dims[0].attach_scale(file["y"])
    file["group/x"] = np.arange(3)  # a coordinate by its name alone
    file["group/below/x"] = np.arange(3)
    file["group/below/other"] = np.arange(3)


@pytest.mark.sampled(11)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("fill", [every_type, every_attribute, scales])
def test_files_written_by_h5py_open_as_in_h5netcdf(
    make: Callable[..., Path], fill: Callable[[h5py.File], None], options: dict[str, Any]
) -> None:
    path = make(fill)
    with h5py.File(path) as file:
        groups = ["/", *(n for n, o in walk(file) if isinstance(o, h5py.Group))]
    for group in groups:
        assert_parity(path, group=group, **options)


def decoded(file: h5py.File) -> None:
    for name in ("a", "b"):
        file[f"packed_{name}"] = np.arange(4, dtype="i2")
        file[f"packed_{name}"].attrs["scale_factor"] = 0.5
        file[f"time_{name}"] = np.arange(4)
        file[f"time_{name}"].attrs["units"] = "days since 2000-01-01"
        file[f"span_{name}"] = np.arange(4)
        file[f"span_{name}"].attrs["units"] = "days"
        file[f"words_{name}"] = np.array([list("ab"), list("cd")], "S1")


@pytest.mark.parametrize(
    "options",
    [
        {"mask_and_scale": {"packed_a": False}},
        {"decode_times": {"time_a": False}},
        {"decode_timedelta": {"span_a": True, "span_b": False}},
        {"concat_characters": {"words_a": False}},
        {"decode_times": xr.coders.CFDatetimeCoder(time_unit="s")},
        {"decode_timedelta": xr.coders.CFTimedeltaCoder(time_unit="s")},
        {"drop_variables": ["time_a", "packed_b"]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_decoding_options_apply_to_one_variable_or_to_all(
    make: Callable[..., Path], options: dict[str, Any]
) -> None:
    assert_parity(make(decoded), **options)


def walk(file: h5py.File) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    file.visititems(lambda name, item: found.append((name, item)))
    return found


def write_netcdf4(module: Any, path: Path) -> None:
    """Write a file through the interface that netCDF4 and h5netcdf share."""
    with module.Dataset(str(path), "w") as file:
        for name, size in (("t", None), ("u", None), ("x", 3), ("y", 2), ("length", 4)):
            file.createDimension(name, size)
        time = file.createVariable("t", "f8", ("t",))
        time.units = "m"
        time[0:4] = [0, 1, 2, 3]
        when = file.createVariable("when", "f8", ("x",))
        when.units = "days since 2000-01-01"
        when[:] = [0, 1, 2]
        packed = file.createVariable("packed", "i2", ("u",), fill_value=-9)
        packed.scale_factor = 0.5
        packed[0:5] = np.arange(5)
        short = file.createVariable("short", "i4", ("u", "t"), zlib=True)
        short[0:2, 0:1] = 1
        short.coordinates = "lat"
        grid = file.createVariable("x", "i4", ("t", "x"))  # of a dimension's name, not its own
        grid[0:1] = 3
        words = file.createVariable("y", "S1", ("y", "length"))
        words[:] = np.array([list("abcd"), list("efgh")], "S1")
        file.createVariable("text", str, ("x",))[0] = "a"
        file.createVariable("scalar", "i8", ())[...] = 4
        file.createVariable("lat", "f4", ("x",))[:] = [1, 2, 3]
        group = file.createGroup("group")
        group.createDimension("p", 5)
        group.createDimension("z", None)
        group.createVariable("w", "f4", ("t", "p", "z"))[0:6, :, 0:2] = 7
        group.createVariable("q", "f4", ("t",))[0:1] = 7
        file.title = "a title"
        file.numbers = np.array([1, 2], "i2")


@pytest.fixture(params=["h5netcdf.legacyapi", "netCDF4"])
def netcdf4_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with warnings.catch_warnings():
        # netCDF4's extension modules warn about the size of NumPy's types.
        warnings.simplefilter("ignore")
        module = pytest.importorskip(request.param)
        write_netcdf4(module, tmp_path / "file.nc")
    return tmp_path / "file.nc"


@pytest.mark.sampled(13)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_files_written_by_netcdf4_open_as_in_h5netcdf(
    netcdf4_path: Path, options: dict[str, Any]
) -> None:
    root = assert_parity(netcdf4_path, **options)
    assert root.sizes["t"] == 6  # as long as what lies along it in the group
    assert root.encoding["unlimited_dims"] == {"t", "u"}
    assert_parity(netcdf4_path, group="group", **options)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"mask_and_scale": False}], ids=str)
def test_trees_open_as_in_h5netcdf(netcdf4_path: Path, options: dict[str, Any]) -> None:
    with (
        xr.open_datatree(netcdf4_path, engine="h5netcdf", **options) as expected,
        xr.open_datatree(netcdf4_path, engine="h5ref", **options) as found,
    ):
        xr.testing.assert_identical(found.load(), expected.load())


def test_enumerations_keep_the_name_of_their_type(tmp_path: Path) -> None:
    path = tmp_path / "enum.nc"
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"x": 2}
        for where, base in ((file, "u1"), (file.create_group("group"), "i2")):
            kind = file.create_enumtype(base, f"enum_{base}", {"A": 0, "B": 1})
            where.create_variable("v", ("x",), kind, fillvalue=0)[...] = [1, 0]
    for group in ("/", "group"):
        found = assert_parity(path, group=group)
        assert "enum_name" in found["v"].encoding["dtype"].metadata
        found.to_netcdf(tmp_path / "again.nc", engine="h5netcdf")
        assert_parity(tmp_path / "again.nc")


@pytest.mark.slow
def test_to_netcdf_of_a_file_gives_an_identical_file(
    netcdf4_path: Path, tmp_path: Path
) -> None:
    """The encodings of a read file suffice to write it again."""
    with xr.open_dataset(netcdf4_path, engine="h5ref", decode_coords=False) as found:
        found.to_netcdf(tmp_path / "again.nc", engine="h5netcdf")
        again = assert_parity(tmp_path / "again.nc", decode_coords=False)
        xr.testing.assert_identical(again, found.load())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["h5ref", "h5netcdf", "netcdf4"])
def test_written_trees_are_read_by_netcdf_engines(
    netcdf4_path: Path, tmp_path: Path, engine: str
) -> None:
    if engine == "netcdf4":
        pytest.importorskip("netCDF4")
    with xr.open_datatree(netcdf4_path, engine="h5ref") as tree:
        xref.to_hdf5(tree, tmp_path / "again.nc")
        with xr.open_datatree(tmp_path / "again.nc", engine=engine) as found:
            assert found.encoding["unlimited_dims"] == {"t", "u"}
            xr.testing.assert_identical(found.load(), tree.load())


CORPUS = ("netcdf-c", "netcdf4-python", "rioxarray", "l2ss-py", "pyfive")


@pytest.mark.slow
@pytest.mark.parametrize("source", CORPUS)
def test_corpus_files_open_as_in_h5netcdf(corpus: Path, source: str) -> None:
    compared = 0
    for path in sorted((corpus / source).rglob("*.nc*")):
        if not h5py.is_hdf5(path):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # h5netcdf's, of what it cannot decode
            try:
                xr.open_dataset(path, engine="h5netcdf").load().close()
            except (ValueError, TypeError, OSError, KeyError, RuntimeError, AttributeError):
                continue
        assert_parity(path)
        compared += 1
    if not compared:
        pytest.skip(f"h5netcdf opens no netCDF-4 file of {source}")
