"""Variables: dimensions, attributes, and values by every reader."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from oracle import assert_same
from samples import DATA, add_regions, open_h5, scaled

from xref import ReferenceArray
from xref.errors import UnreadableMemberWarning, UnsupportedError


def test_dimensions_without_scales_are_phony(make: Callable[..., Path]) -> None:
    path = make(scaled)
    with open_h5(path) as ds:
        assert ds["data"].dims == ("y", "x")
        assert ds["y"].dims == ("y",)
        assert set(ds.indexes) == {"y", "x"}
        seven = ds["plain"].dims[1]
        assert seven.startswith("phony_dim_")
        assert ds["square"].dims[0] == seven != ds["square"].dims[1]
        assert not {"DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME"} & {
            name for v in ds.variables.values() for name in v.attrs
        }
    with open_h5(path, group="group") as ds:
        assert ds["inner"].dims == ("y", "x")  # scales of the group above
        assert ds["same"].dims[0].startswith("phony_dim_")


def test_files_of_netcdf4_open_as_in_h5netcdf(tmp_path: Path) -> None:
    path = tmp_path / "nc.nc"
    written = xr.Dataset(
        {
            "t": (("time", "y"), np.array([[1.5, np.nan], [2.5, 3.5], [9.0, 0.1]])),
            "text": ("time", np.array(["a", "bb", ""], dtype=object)),
            "n": ((), np.int16(7)),
        },
        coords={
            "time": np.array(["2020-01-01", "2020-01-02", "2021-05-05"], "M8[ns]"),
            "y": [10, 20],
            "lat": (("y",), [0.5, 1.5]),
        },
        attrs={"title": "x", "list": [1, 2]},
    )
    encoding = {"t": {"dtype": "i2", "scale_factor": 0.1, "_FillValue": -99, "zlib": True}}
    pytest.importorskip("h5netcdf")
    written.to_netcdf(path, engine="h5netcdf", encoding=encoding, unlimited_dims=["time"])
    with xr.open_dataset(path, engine="h5netcdf") as expected, open_h5(path) as ds:
        xr.testing.assert_equal(ds, expected)
        assert ds["t"].attrs == expected["t"].attrs
        assert set(ds.coords) == set(expected.coords)
    for options in (
        {"mask_and_scale": False},
        {"decode_times": False},
        {"decode_coords": False},
    ):
        expected = xr.open_dataset(path, engine="h5netcdf", **options)
        with expected, open_h5(path, **options) as ds:
            xr.testing.assert_equal(ds, expected)


def test_attributes_that_hold_references_are_plain_elements(make: Callable[..., Path]) -> None:
    def fill(file: h5py.File) -> None:
        add_regions(file, "refs", (1,))
        data = file["data"]
        file.attrs["object"] = data.ref
        file.attrs["objects"] = np.array([data.ref, file["refs"].ref], dtype=h5py.ref_dtype)
        file.attrs.create("null", h5py.Reference(), dtype=h5py.ref_dtype)
        data.attrs["region"] = data.regionref[2:5, 3:4]
        data.attrs["regions"] = np.array([data.regionref[:2]], dtype=h5py.regionref_dtype)
        data.attrs["number"] = 5
        data.attrs["text"] = "Ünï"
        data.attrs["empty"] = h5py.Empty("f4")
        data.attrs["array"] = np.arange(3)

    with open_h5(make(fill)) as ds:
        assert ds.attrs["object"].path == "/data"
        assert [r.path for r in ds.attrs["objects"]] == ["/data", "/refs"]
        assert not ds.attrs["null"]
        attributes = ds["data"].attrs
        assert attributes["region"].bounds == ((2, 3), (5, 4))
        np.testing.assert_array_equal(attributes["region"].resolve(), DATA[2:5, 3:4])
        assert np.ravel(attributes["regions"])[0].shape == (2, 30)
        assert (attributes["number"], attributes["text"]) == (5, "Ünï")
        assert attributes["array"].tolist() == [0, 1, 2]
        again = pickle.loads(pickle.dumps((ds.attrs, attributes)))
        assert again[0]["object"] == ds.attrs["object"]
        assert again[1]["region"] == attributes["region"]
        assert str(ds)


REFERENCE_SHAPES = [(), (1,), (5,), (2, 3), (2, 2, 2), (0,), (0, 3)]

REFERENCE_STORAGE = [
    {},
    {"chunks": True},
    {"chunks": True, "compression": "gzip"},
    {"chunks": True, "shuffle": True, "fletcher32": True},
    {"maxshape": "unlimited"},
]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("shape", "options"),
    # Scalar datasets have one storage.
    [(s, o) for s in REFERENCE_SHAPES for o in REFERENCE_STORAGE if s or not o],
    ids=str,
)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_reference_datasets_of_any_shape_and_storage_open(
    make: Callable[..., Path], shape: tuple[int, ...], options: dict[str, Any], libver: str
) -> None:
    options = dict(options)
    if "chunks" in options:
        options["chunks"] = (2,) * len(shape)
        # Only axes that can grow may have chunks longer than the axis.
        options["maxshape"] = tuple(n if n >= 2 else None for n in shape)
    elif "maxshape" in options:
        options["maxshape"] = (None,) * len(shape)
    path = make(lambda f: add_regions(f, "refs", shape, **options), libver=libver)
    with open_h5(path) as ds:
        refs = ds["refs"]
        assert isinstance(refs.data, ReferenceArray)
        assert refs.shape == shape
        for k, index in enumerate(np.ndindex(shape)):
            assert refs.data[index].bounds == ((k, k), (k + 2, k + 3))
        assert refs.h5ref.table()["npoints"].values.tolist() == np.full(shape, 6).tolist()
        resolved = refs.h5ref.resolve()
        assert resolved.sizes.keys() >= set(refs.dims)
        if refs.size:
            expected = np.array([DATA[k : k + 2, k : k + 3] for k in range(refs.size)])
            assert_same(resolved, expected.reshape(*shape, 2, 3))
        else:
            assert resolved.size == 0


def test_chunks_that_were_never_written_are_null_references(make: Callable[..., Path]) -> None:
    def fill(file: h5py.File) -> None:
        refs = file.create_dataset("r", (10,), dtype=h5py.ref_dtype, chunks=(3,))
        refs[4] = file.create_dataset("x", data=1).ref

    with open_h5(make(fill)) as ds:
        assert ds["r"].data.astype(bool).tolist() == [k == 4 for k in range(10)]


# --- ordinary variables -----------------------------------------------------------------


ENUM = h5py.enum_dtype({"a": 0, "b": 1, "c": 7}, "i2")

VALUES = {
    **{
        t: (np.arange(120) % 99).astype(t) for t in ("i1", "u1", "i2", "<u4", ">i4", "i8", "u8")
    },
    **{t: np.linspace(-5, 5, 120).astype(t) for t in ("f2", "<f4", ">f4", "f8", ">f8")},
    "bool": np.arange(120) % 3 == 0,
    "complex": np.arange(120) * (1 - 2j),
    "bytes": np.array([f"s{i}" for i in range(120)], "S5"),
    "compound": np.array([(i, i / 2) for i in range(120)], [("n", ">i4"), ("v", "f4")]),
    "enum": np.array([0, 1, 7] * 40, "i2").astype(ENUM),
}

STORAGE = {
    "contiguous": {},
    "chunked": {"chunks": (4, 3, 2)},
    "gzip": {"chunks": (2, 5, 1), "compression": "gzip", "shuffle": True},
    "lzf": {"chunks": (5, 4, 3), "compression": "lzf", "fletcher32": True},
}


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ordinary") / "ordinary.h5"
    with h5py.File(path, "w") as file:
        for storage, options in STORAGE.items():
            for name, values in VALUES.items():
                file.create_dataset(
                    f"{storage}/{name}", data=values.reshape(6, 5, 4), **options
                )
            texts = np.array([f"t{'ü' * (i % 5)}{i}" for i in range(120)], object).reshape(
                6, 5, 4
            )
            options = {k: v for k, v in options.items() if k != "fletcher32"}
            file.create_dataset(
                f"{storage}/text", data=texts, dtype=h5py.string_dtype(), **options
            )
    return path


KEYS: dict[str, Any] = {
    "all": (),
    "basic": (slice(1, 5), 2, slice(None, None, 3)),
    "negative step": (slice(None, None, -1), slice(3, None, -2)),
    "integers": (3, -1, 0),
    "outer": ([4, 0, 2, 2], slice(1, 3), [3, 1]),
    "empty": (slice(2, 2),),
    "empty list": ([], slice(None), [1]),
    "boolean": (np.array([True, False] * 3),),
    "ellipsis": (Ellipsis, 1),
}


@pytest.mark.sampled(11)
@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("reader", ["auto", "direct", "h5py"])
def test_ordinary_variables_equal_those_of_h5py(
    ordinary: Path, storage: str, reader: str
) -> None:
    if (storage, reader) == ("lzf", "direct"):
        pytest.importorskip("imagecodecs")
    with h5py.File(ordinary) as file, open_h5(ordinary, group=storage, reader=reader) as ds:
        assert set(ds.variables) == {*VALUES, "text"}
        for name, variable in ds.variables.items():
            if (name, reader) == ("text", "direct"):
                with pytest.raises(UnsupportedError):
                    variable.load()
                continue
            item = file[storage][name]
            # xarray converts text that is read when the file is opened to NumPy text.
            whole = item.asstr()[...].astype(str) if name == "text" else item[...]
            for label, key in KEYS.items():
                expected = whole
                for axis, k in reversed(list(enumerate(expand(key, 3)))):
                    expected = expected[(slice(None),) * axis + (k,)]
                got = variable.copy(deep=False)[key].values
                assert_same(got, np.asarray(expected, whole.dtype), (name, label))
                assert h5py.check_enum_dtype(got.dtype) == h5py.check_enum_dtype(whole.dtype)
            p = xr.Variable("p", [3, 0, 5])
            picked = variable[p, xr.Variable("p", [1, 1, 4])].values
            np.testing.assert_array_equal(picked, whole[[3, 0, 5], [1, 1, 4]], err_msg=name)


def expand(key: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    at = next((i for i, k in enumerate(key) if k is Ellipsis), None)
    if at is not None:
        return key[:at] + (slice(None),) * (ndim - len(key) + 1) + key[at + 1 :]
    return key + (slice(None),) * (ndim - len(key))


def test_scalars_and_empty_variables_read(make: Callable[..., Path]) -> None:
    def fill(file: h5py.File) -> None:
        file["number"] = 4.5
        file["text"] = "hällo"
        file["flag"] = True
        file["empty"] = np.zeros((0, 3))
        file.create_dataset("grown", (0,), maxshape=(None,), chunks=(4,), dtype="i2")
        file.create_dataset("compound", data=np.array((1, 2.5), dtype="i4,f8"))
        file.create_dataset("filled", (3, 4), dtype="i4", chunks=(2, 2), fillvalue=7)
        file.create_dataset("late", (3,), dtype="f8", fillvalue=1.5)

    with open_h5(make(fill)) as ds:
        assert (ds["number"].item(), ds["text"].item(), ds["flag"].item()) == (
            4.5,
            "hällo",
            True,
        )
        assert ds["empty"].values.shape == (0, 3)
        assert ds["grown"].values.shape == (0,)
        assert ds["compound"].values.tolist() == (1, 2.5)
        assert (ds["filled"].values == 7).all()
        assert (ds["late"].values == 1.5).all()


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_heaps_of_texts_are_checked_before_hdf5_reads_them(tmp_path: Path, libver: str) -> None:
    path = tmp_path / "texts.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file["v"] = ["one", "two", "three"]
        file["w"] = np.arange(3)
        place = file["v"].id.get_offset()
    data = bytearray(path.read_bytes())
    data[place + 12 : place + 16] = (9999).to_bytes(4, "little")  # the heap object of "one"
    path.write_bytes(data)
    with pytest.warns(UnreadableMemberWarning, match=r"element 0 of '/v'.*object 9999"):
        dataset = xr.open_dataset(path, engine="h5ref")
    assert list(dataset) == ["w"]
    dataset.close()
