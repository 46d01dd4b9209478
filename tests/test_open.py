"""Opening: which variables, dimensions, attributes and errors a file gives."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from oracle import assert_same

import xref
from xref import ReferenceArray, UnreadableMemberWarning
from xref.errors import UnsupportedError

DATA = np.arange(600, dtype="f4").reshape(20, 30)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write a file with a function of its h5py.File."""

    def write(fill: Callable[[h5py.File], None], name: str = "file.h5", **options: Any) -> Path:
        with h5py.File(tmp_path / name, "w", **options) as file:
            fill(file)
        return tmp_path / name

    return write


def open_h5(path: Path, **options: Any) -> xr.Dataset:
    return xr.open_dataset(path, engine="h5ref", **options)


def add_regions(file: h5py.Group, name: str, shape: tuple[int, ...], **options: Any) -> None:
    data = file.file.require_dataset("data", (20, 30), "f4")
    data[...] = DATA
    refs = file.create_dataset(name, shape, dtype=h5py.regionref_dtype, **options)
    for k, index in enumerate(np.ndindex(shape)):
        refs[index] = data.regionref[k : k + 2, k : k + 3]


# --- the engine -------------------------------------------------------------------------


def test_the_engine_is_listed_and_never_guesses(make: Callable[..., Path]) -> None:
    engine = xr.backends.list_engines()["h5ref"]
    assert "HDF5" in engine.description
    path = make(lambda f: f.create_dataset("x", data=1))
    assert engine.guess_can_open(path) is False
    assert engine.guess_can_open(str(path)) is False


def test_arguments_are_checked(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(lambda f: f.create_dataset("x", data=1))
    with pytest.raises(ValueError, match="reader"):
        open_h5(path, reader="quick")
    with pytest.raises(ValueError, match="external"):
        open_h5(path, external="some")
    with pytest.raises(TypeError, match="unknown"):
        open_h5(path, unknown=1)
    with pytest.raises(FileNotFoundError):
        open_h5(tmp_path / "absent.h5")
    with pytest.raises(OSError, match="not a regular file"):
        open_h5(tmp_path)
    (tmp_path / "text.h5").write_text("no HDF5 here")
    with pytest.raises(OSError, match="signature"):
        open_h5(tmp_path / "text.h5")
    (tmp_path / "empty.h5").write_bytes(b"")
    with pytest.raises(OSError, match="signature"):
        open_h5(tmp_path / "empty.h5")
    with pytest.raises(OSError, match="/dev/null"):
        open_h5(Path("/dev/null"))


def test_paths_may_be_strings_or_relative(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(lambda f: add_regions(f, "refs", (2,)), name="odd näme #1.h5")
    monkeypatch.chdir(path.parent)
    for given in (str(path), path, path.name):
        with open_h5(given) as ds:
            assert ds["refs"].values[0].filename == str(path)
            assert ds.encoding["source"] == str(path)


# --- groups -----------------------------------------------------------------------------


def nested(file: h5py.File) -> None:
    file["top"] = [1, 2, 3]
    add_regions(file, "a/b/refs", (4,))
    file["a/b/värde"] = 5.0
    file["a"].attrs["title"] = "group a"
    file["a/#refs#/x"] = [1]


@pytest.mark.parametrize("group", ["a/b", "/a/b", "/a/b/", "a//b", "a/b/../b"])
def test_groups_open_by_path(make: Callable[..., Path], group: str) -> None:
    with open_h5(make(nested), group=group) as ds:
        assert set(ds.variables) == {"refs", "värde"}
        np.testing.assert_array_equal(ds["refs"].data[1].resolve(), DATA[1:3, 1:4])


def test_group_attributes_and_odd_names_are_kept(make: Callable[..., Path]) -> None:
    path = make(nested)
    with open_h5(path, group="a") as ds:
        assert ds.attrs == {"title": "group a"}
        assert not ds.variables
    with open_h5(path, group="a/#refs#") as ds:
        assert ds["x"].values.tolist() == [1]
    with open_h5(path) as ds:
        assert set(ds.variables) == {"top", "data"}


@pytest.mark.parametrize("group", ["nowhere", "a/nowhere", "top", "top/x"])
def test_a_missing_group_is_an_error_that_names_it(
    make: Callable[..., Path], group: str
) -> None:
    with pytest.raises(OSError, match=rf"file\.h5.*{group.split('/')[-1]}"):
        open_h5(make(nested), group=group)


# --- reference datasets -----------------------------------------------------------------


REFERENCE_SHAPES = [(), (1,), (5,), (2, 3), (2, 2, 2), (0,), (0, 3)]
REFERENCE_STORAGE = [
    {},
    {"chunks": True},
    {"chunks": True, "compression": "gzip"},
    {"chunks": True, "shuffle": True, "fletcher32": True},
    {"maxshape": "unlimited"},
]


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
        # Only axes that can grow take chunks longer than they are.
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


@pytest.mark.parametrize("chunks", [None, {}, "auto", -1, {"phony_dim_0": 2}])
def test_chunks_of_open_dataset_cut_data_and_leave_references(
    make: Callable[..., Path], chunks: Any
) -> None:
    with open_h5(
        make(lambda f: add_regions(f, "refs", (18,)), libver="latest"), chunks=chunks
    ) as ds:
        assert dask.is_dask_collection(ds["data"]) is (chunks is not None)
        assert isinstance(ds["refs"].data, ReferenceArray)
        np.testing.assert_array_equal(ds["data"].values, DATA)
        element = np.asarray(ds["refs"].compute().data)[3]
        np.testing.assert_array_equal(element.resolve(), DATA[3:5, 3:6])
        resolved = ds["refs"].h5ref.resolve()
        np.testing.assert_array_equal(resolved[3], DATA[3:5, 3:6])


# --- dimensions -------------------------------------------------------------------------


def scaled(file: h5py.File) -> None:
    file["y"] = np.arange(20) * 10.0
    file["x"] = np.arange(30) - 3
    file["y"].make_scale()
    file["x"].make_scale("long name")
    add_regions(file, "refs", (4,))
    for name in ("data", "group/inner"):
        item = file.require_dataset(name, (20, 30), "f4")
        item.dims[0].attach_scale(file["y"])
        item.dims[1].attach_scale(file["x"])
    file["plain"] = np.zeros((20, 7))
    file["square"] = np.zeros((7, 7))
    file["group/same"] = np.zeros(20)


def test_dimensions_come_from_scales_and_else_are_phony(make: Callable[..., Path]) -> None:
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


def test_parity_files_of_the_corpus_open_as_in_h5netcdf(corpus: Path) -> None:
    pytest.importorskip("h5netcdf")
    for name in ("kerchunk/air.nc", "rioxarray/PLANET_SCOPE_3D.nc", "pyfive/issue23_A.nc"):
        expected = xr.open_dataset(corpus / name, engine="h5netcdf")
        with expected, open_h5(corpus / name) as ds:
            xr.testing.assert_equal(ds, expected)


def test_variables_that_are_dropped_are_not_looked_at(make: Callable[..., Path]) -> None:
    path = make(scaled)
    with open_h5(path, drop_variables=["refs", "square"]) as ds:
        assert set(ds.variables) == {"y", "x", "data", "plain"}
    with open_h5(path, drop_variables="data") as ds:
        assert "data" not in ds
        assert ds["refs"].data[0].path == "/data"
    path = make(unreadable, name="unreadable.h5")
    # A look at either would warn, and warnings are errors.
    with open_h5(path, drop_variables=["time", "soft"]) as ds:
        assert set(ds.variables) == {"data", "null", "opaque", "refs", "soft_data"}


# --- members that cannot be read --------------------------------------------------------


def unreadable(file: h5py.File) -> None:
    add_regions(file, "refs", (3,))
    file["null"] = h5py.Empty("f4")
    opaque = h5py.h5t.create(h5py.h5t.OPAQUE, 3)
    time_type = h5py.h5t.UNIX_D32LE
    space = h5py.h5s.create_simple((2,))
    h5py.h5d.create(file.id, b"time", time_type, space)
    h5py.h5d.create(file.id, b"opaque", opaque, space)
    file["soft"] = h5py.SoftLink("/nowhere")
    file["soft_data"] = h5py.SoftLink("/data")


def test_unreadable_members_are_left_out_with_a_warning(make: Callable[..., Path]) -> None:
    path = make(unreadable)
    with pytest.warns(UnreadableMemberWarning) as caught:
        ds = open_h5(path)
    with ds:
        assert set(ds.variables) == {"data", "null", "opaque", "refs", "soft_data"}
        assert ds["null"].size == 0
        np.testing.assert_array_equal(ds["refs"].h5ref.resolve()[2], DATA[2:4, 2:5])
    messages = [str(w.message) for w in caught]
    for name in ("time", "soft"):
        assert any(f"'/{name}'" in m and "file.h5" in m for m in messages), messages


@pytest.mark.parametrize(
    ("name", "left_out", "kept"),
    [
        ("trefer_obj.h5", ["/Dataset3", "/Dataset5"], {"Dataset4", "Dataset6"}),
        ("trefer_grp.h5", ["/dset"], set()),
        ("trefer_attr.h5", ["/Dataset3"], set()),
    ],
)
def test_references_of_hdf5_112_do_not_stop_the_rest(
    corpus: Path, name: str, left_out: list[str], kept: set[str]
) -> None:
    path = corpus / "hdf5" / name
    with pytest.warns(UnreadableMemberWarning) as caught:
        ds = open_h5(path)
    with ds:
        assert set(ds.variables) == kept
        assert all(isinstance(v.data, ReferenceArray) for v in ds.variables.values())
    named = [re.search(r"'(/[^']*)'", str(w.message)).group(1) for w in caught]
    assert sorted(named) == left_out
    if name == "trefer_grp.h5":
        return
    with h5py.File(path) as file, open_h5(path, group="Group1") as ds:
        for member in ("Dataset1", "Dataset2"):
            assert_same(ds[member], file["Group1"][member][...], member)


# How many members and attributes of a root group are left out, and why.
LEFT_OUT = {
    "hdf5/h5diff_attr1.h5": 6,  # opaque attributes, which h5py cannot read
    "hdf5/tattr2.h5": 6,  # the same
    "hdf5/h5repack_objs.h5": 2,  # links to nothing
    "hdf5/trefer_attr.h5": 1,  # references of HDF5 1.12
    "hdf5/trefer_grp.h5": 1,
    "hdf5/trefer_obj.h5": 2,
    "hdfview/bug1604_CompoundTest.h5": 1,  # region references in compounds
    "hdfview/h5ex_t_cpxcmpd.h5": 1,
}


def test_every_file_of_the_corpus_opens(corpus: Path) -> None:
    import json

    manifest = json.loads((corpus / "MANIFEST.json").read_text())
    left_out = {}
    for row in manifest["files"]:
        if row["role"] == "damaged":
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")  # of xarray, about odd times, as well
            with open_h5(corpus / row["file"], decode_times=False) as ds:
                assert str(ds)
                assert ds._repr_html_()
        n = sum(issubclass(w.category, UnreadableMemberWarning) for w in caught)
        left_out |= {row["file"]: n} if n else {}
    assert left_out == LEFT_OUT


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
            whole = item.asstr()[...] if name == "text" else item[...]
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


# --- identity and other files -----------------------------------------------------------


def test_a_file_that_changed_after_opening_raises(make: Callable[..., Path]) -> None:
    path = make(lambda f: add_regions(f, "refs", (3,)))
    ds = open_h5(path)
    resolved = ds["refs"].h5ref.resolve()
    element = ds["refs"].values[0]
    ds.close()
    with h5py.File(path, "r+") as file:
        file["more"] = np.arange(1000)
    for action in (
        lambda: ds["data"].load(),
        lambda: ds["refs"].h5ref.resolve().load(),
        resolved.compute,
        element.resolve,
    ):
        with pytest.raises(xref.FileChangedError, match=r"file\.h5 has changed"):
            action()
    path.unlink()
    with pytest.raises(xref.FileChangedError, match="gone"):
        ds["data"].load()
    add = make(lambda f: add_regions(f, "refs", (3,)))
    with open_h5(add) as again:
        np.testing.assert_array_equal(again["refs"].h5ref.resolve()[1], DATA[1:3, 1:4])


def test_a_closed_dataset_opens_its_file_again_when_read(make: Callable[..., Path]) -> None:
    path = make(lambda f: add_regions(f, "refs", (3,)))
    ds = open_h5(path)
    ds.close()
    np.testing.assert_array_equal(ds["data"].values, DATA)
    np.testing.assert_array_equal(ds["refs"].h5ref.resolve()[1], DATA[1:3, 1:4])
    ds.close()


def linked(tmp_path: Path) -> dict[str, Path]:
    """Write a file with links and virtual data of other files: beside, below, elsewhere."""
    (tmp_path / "home" / "below").mkdir(parents=True)
    places = {
        "beside": tmp_path / "home" / "other.h5",
        "below": tmp_path / "home" / "below" / "other.h5",
        "outside": tmp_path / "other.h5",
    }
    for number, path in enumerate(places.values()):
        with h5py.File(path, "w") as file:
            file["d"] = np.arange(5) + 10 * number
            file["decoy"] = np.zeros(1000)
            file.create_dataset("r", data=np.array([file["d"].ref], h5py.ref_dtype))
    with h5py.File(tmp_path / "home" / "main.h5", "w") as file:
        file["own"] = 1
        for name, path in places.items():
            relative = (
                str(Path("..") / path.name)
                if name == "outside"
                else str(path.relative_to(tmp_path / "home"))
            )
            file[f"link_{name}"] = h5py.ExternalLink(relative, "/d")
            file[f"refs_{name}"] = h5py.ExternalLink(str(path), "/r")
            layout = h5py.VirtualLayout((5,), "i8")
            layout[...] = h5py.VirtualSource(relative, "d", shape=(5,))
            file.create_virtual_dataset(f"virtual_{name}", layout)
    return places


@pytest.mark.parametrize(
    ("external", "allowed"),
    [
        ("none", set()),
        ("same-dir", {"beside", "below"}),
        ("all", {"beside", "below", "outside"}),
    ],
)
def test_other_files_are_read_only_where_allowed(
    tmp_path: Path, external: str, allowed: set[str]
) -> None:
    places = linked(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ds = open_h5(tmp_path / "home" / "main.h5", external=external)
    with ds:
        kinds = ("link", "refs", "virtual")
        wanted = {f"{kind}_{place}" for kind in kinds for place in allowed}
        assert set(ds.variables) == wanted | {"own"}
        denied = [w for w in caught if "external=" in str(w.message)]
        assert len(denied) == 9 - len(wanted)
        for number, place in enumerate(places):
            if place in allowed:
                assert ds[f"link_{place}"].values.tolist() == list(
                    range(10 * number, 10 * number + 5)
                )
                assert ds[f"virtual_{place}"].values.tolist() == list(
                    range(10 * number, 10 * number + 5)
                )
                # References resolve in the file that they are stored in.
                reference = ds[f"refs_{place}"].values[0]
                assert reference.filename == str(places[place])
                assert (
                    reference.resolve().values.tolist() == ds[f"link_{place}"].values.tolist()
                )
    for location in places.values():
        open_h5(location).close()  # closes the handles that following links opened


def test_raw_external_storage_is_read_only_when_asked_for(make: Callable[..., Path]) -> None:
    def fill(file: h5py.File) -> None:
        raw = Path(file.filename).with_name("raw.bin")
        raw.write_bytes(np.arange(4, dtype="i4").tobytes())
        file.create_dataset("d", (4,), "i4", external=[(str(raw), 0, 16)])
        file.create_dataset("secret", (8,), "S1", external=[("/etc/passwd", 0, 8)])

    path = make(fill)
    with pytest.warns(UnreadableMemberWarning, match="external="), open_h5(path) as ds:
        assert not ds.variables
    with open_h5(path, external="all") as ds:
        assert ds["d"].values.tolist() == [0, 1, 2, 3]


def test_hard_link_cycles_and_doubles_open(make: Callable[..., Path]) -> None:
    def fill(file: h5py.File) -> None:
        add_regions(file, "refs", (2,))
        file["again"] = file["data"]
        file.create_group("g")["up"] = file["/"]
        file.create_dataset("objects", data=np.array([file["g"].ref, file.ref], h5py.ref_dtype))

    with open_h5(make(fill)) as ds:
        np.testing.assert_array_equal(ds["again"], DATA)
        assert ds["refs"].values[0].path in ("/data", "/again")
        assert [r.path for r in ds["objects"].values] == ["/g", "/"]
        assert set(ds["objects"].values[1].resolve().variables) == set(ds.variables)


def test_user_blocks_are_counted(make: Callable[..., Path]) -> None:
    path = make(lambda f: add_regions(f, "refs", (4,), chunks=(2,)), userblock_size=1024)
    with open_h5(path) as ds:
        np.testing.assert_array_equal(ds["refs"].h5ref.resolve()[3], DATA[3:5, 3:6])
        assert ds["refs"].data[0].path == "/data"


def test_datatrees_open(make: Callable[..., Path]) -> None:
    path = make(nested)
    with xr.open_datatree(path, engine="h5ref") as tree:
        np.testing.assert_array_equal(
            tree["a/b/refs"].h5ref.resolve()[2].values, DATA[2:4, 2:5]
        )
        assert "a/b" in [node.path.strip("/") for node in tree.subtree]
    groups = xr.open_groups(path, engine="h5ref")
    assert {"/", "/a", "/a/b"} <= set(groups)
    for ds in groups.values():
        ds.close()


@pytest.mark.parametrize("offset_size", [2, 4])
def test_files_with_short_addresses_open_whole(tmp_path: Path, offset_size: int) -> None:
    path = tmp_path / "short.h5"
    properties = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    properties.set_sizes(offset_size, offset_size)
    identifier = h5py.h5f.create(bytes(path), h5py.h5f.ACC_TRUNC, fcpl=properties)
    values = np.arange(20).reshape(4, 5)
    with h5py.File(identifier) as file:
        d = file.create_dataset("d", data=values)
        for axis, name in enumerate("yx"):
            file[name] = np.arange(values.shape[axis])
            file[name].make_scale(name)
            d.dims[axis].attach_scale(file[name])
        for name, options in {"r": {}, "packed": {"chunks": (2,), "compression": 4}}.items():
            refs = file.create_dataset(name, (3,), dtype=h5py.regionref_dtype, **options)
            refs[0], refs[1] = d.regionref[1:3, 2:4], d.regionref[0:2, 0:2]
        file.create_dataset("o", (2,), dtype=h5py.ref_dtype)[0] = d.ref
        d.attrs["region"], d.attrs["object"] = d.regionref[0:2], file["y"].ref
        record = np.dtype([("n", "i4"), ("target", h5py.ref_dtype)])
        file.create_dataset("record", (1,), dtype=record)[0] = (3, d.ref)
    identifier.close()
    for reader in ("auto", "h5py"):
        with xr.open_dataset(path, engine="h5ref", reader=reader) as ds:
            assert ds["d"].dims == ("y", "x")
            for name in ("r", "packed"):
                patches = ds[name][:2].h5ref.resolve()
                np.testing.assert_array_equal(patches, [values[1:3, 2:4], values[0:2, 0:2]])
                assert not ds[name].values[2]
            assert ds["o"].values[0].path == "/d"
            assert ds["d"].attrs["region"].bounds == ((0, 0), (2, 5))
            assert ds["d"].attrs["object"].path == "/y"
            assert ds["record"].values["target"][0].path == "/d"
