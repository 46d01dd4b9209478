"""Appending to files, and names and paths that are taken or impossible."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import pytest
import xarray as xr
from samples import open_h5
from strategies import write_references

import xref
from xref.errors import DanglingReferenceError, FileChangedError, UnsupportedError

IMAGE = np.arange(100.0).reshape(10, 10)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.h5"
    with h5py.File(path, "w") as file:
        image = file.create_dataset("image", data=IMAGE)
        for name in ("y", "x"):
            file[name] = np.arange(10)
            file[name].make_scale(name)
        image.dims[0].attach_scale(file["y"])
        image.dims[1].attach_scale(file["x"])
        write_references(file, "rois", [image.regionref[0:2, 3:5]])
        write_references(file, "objects", [image.ref], dtype=h5py.ref_dtype)
    return path


REORDERED: dict[str, Any] = {
    "backwards": lambda ds: ds.isel(y=slice(None, None, -1)),
    "sorted": lambda ds: ds.sortby("y", ascending=False),
    "turned": lambda ds: ds.transpose(),
    "list": lambda ds: ds.isel(y=[3, 1, 2, 0, 4, 5, 6, 7, 8, 9]),
    "padded": lambda ds: ds.pad(y=(2, 0)),
    "reindexed": lambda ds: ds.reindex(y=np.arange(-2, 10)),
    "twice": lambda ds: xr.concat([ds.isel(y=slice(5, None)), ds], "y"),
    "the same again": lambda ds: ds.isel(y=[0] * 10),
    "rolled": lambda ds: ds.roll(y=1, roll_coords=True),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("how", ["lazy", "dask", "in memory"])
@pytest.mark.parametrize("name", REORDERED)
def test_regions_of_a_reordered_variable_are_refused(
    source: Path, tmp_path: Path, name: str, how: str
) -> None:
    with open_h5(source, chunks={} if how == "dask" else None) as ds:
        ds = ds.load() if how == "in memory" else ds
        new = REORDERED[name](ds[["image"]]).assign(rois=ds["rois"])
        with pytest.raises(DanglingReferenceError, match="other elements"):
            xref.to_hdf5(new, tmp_path / "new.h5")
        xref.to_hdf5(new.drop_vars("rois").assign(o=ds["objects"]), tmp_path / "new.h5")


def test_a_complete_target_is_preferred_to_a_selection_of_it(
    source: Path, tmp_path: Path
) -> None:
    with open_h5(source) as ds:
        small = ds["image"][:1, :1].rename(y="y_", x="x_")
        new = xr.Dataset({"small": small, "big": ds["image"], "rois": ds["rois"]})
        xref.to_hdf5(new.assign(objects=ds["objects"]), tmp_path / "new.h5")
    with h5py.File(tmp_path / "new.h5") as file:
        assert file[file["rois"][0]].name == file[file["objects"][0]].name == "/big"


def test_a_target_of_another_file_is_not_found_by_path(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    other.write_bytes(source.read_bytes())
    with open_h5(source) as ds, open_h5(other) as others:
        new = xr.Dataset({"image": ds["image"] * 2, "a": ds["objects"], "b": others["objects"]})
        with pytest.raises(DanglingReferenceError, match=r"other\.h5"):
            xref.to_hdf5(new, tmp_path / "new.h5")


def test_targets_are_found_by_path_and_not_by_soft_links(source: Path, tmp_path: Path) -> None:
    with h5py.File(source, "a") as file:
        file["a_link"] = h5py.SoftLink("/image")
    with open_h5(source) as ds:
        new = xr.Dataset({"image": ds["image"] * 2, "rois": ds["rois"]})
        xref.to_hdf5(new, tmp_path / "new.h5")
        ds[["rois"]].h5ref.to_hdf5(tmp_path / "copy.h5", on_missing="copy")
    for name in ("new.h5", "copy.h5"):
        with h5py.File(tmp_path / name) as file:
            assert file[file["rois"][0]].name == "/image"


# --- files that are there --------------------------------------------------------------


def test_references_of_an_earlier_file_version_are_refused_everywhere(source: Path) -> None:
    with open_h5(source) as ds:
        reference = ds["image"].h5ref.reference()
    with h5py.File(source, "a") as file:
        file["more"] = 1
    held = np.empty(1, dtype=object)
    held[0] = reference
    for new in (xr.Dataset(attrs={"best": reference}), xr.Dataset({"v": ("n", held)})):
        with pytest.raises(FileChangedError, match="open it again"):
            xref.to_hdf5(new, source, mode="a")


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Write a file with links to other objects and files."""
    with h5py.File(tmp_path / "elsewhere.h5", "w") as file:
        file["d"] = np.zeros(4)
        file.create_group("g")
    path = tmp_path / "linked.h5"
    with h5py.File(path, "w") as file:
        file["d"] = np.ones(4)
        file["image"] = h5py.ExternalLink("elsewhere.h5", "/d")
        file["group"] = h5py.ExternalLink("elsewhere.h5", "/g")
        file["soft"] = h5py.SoftLink("/image")
        file["nothing"] = h5py.SoftLink("/none")
        file.create_dataset("raw", (4,), "f8", external=[("raw.bin", 0, 32)])
        virtual = h5py.VirtualLayout((4,), "f8")
        virtual[:] = h5py.VirtualSource("elsewhere.h5", "d", (4,))
        file.create_virtual_dataset("virtual", virtual)
    return path


@pytest.mark.parametrize("name", ["image", "soft", "nothing", "raw", "virtual", "group"])
@pytest.mark.parametrize("chunked", [False, True])
def test_nothing_is_written_outside_the_file(linked: Path, name: str, chunked: bool) -> None:
    before = {p.name: p.read_bytes() for p in linked.parent.iterdir() if p.name != linked.name}
    values = da.full(4, 7.0, chunks=2) if chunked else np.full(4, 7.0)
    group, name = (name, "v") if name == "group" else ("/", name)
    with pytest.raises(ValueError, match=r"other file|another file"):
        xref.to_hdf5(xr.Dataset({name: ("x", values)}), linked, mode="a", group=group)
    assert {
        p.name: p.read_bytes() for p in linked.parent.iterdir() if p.name != linked.name
    } == (before)
    with h5py.File(linked) as file:
        assert file["d"][:].tolist() == [1, 1, 1, 1]
        assert "x" not in file


def test_virtual_datasets_of_unlimited_length_are_kept(linked: Path) -> None:
    layout = h5py.VirtualLayout((4,), "f8", maxshape=(None,))
    with h5py.File(linked.parent / "abc.h5", "w") as file:
        file.create_dataset("d", (4,), "f8", maxshape=(None,))
    source = h5py.VirtualSource("abc.h5", "d", (4,), maxshape=(None,))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    with h5py.File(linked, "a") as file:
        file.create_virtual_dataset("grows", layout).make_scale("grows")
    xref.to_hdf5(xr.Dataset({"new": ("n", [1, 2])}), linked, mode="a")
    for new in ({"grows": ("m", np.zeros(4))}, {"v": ("grows", np.zeros(4))}):
        with pytest.raises(ValueError, match="other files"):
            xref.to_hdf5(xr.Dataset(new), linked, mode="a")


@pytest.mark.parametrize(
    ("encoding", "problem"),
    [
        ({"zlib": True}, "compression=None"),
        ({"compression": "lzf"}, "compression=None"),
        ({"chunksizes": (2, 2)}, r"chunksizes=\(4, 2\)"),
        ({"contiguous": True}, "contiguous=False"),
        ({"shuffle": True}, "shuffle=False"),
        ({"fletcher32": False}, "fletcher32=True"),
        ({"dtype": "f4"}, "type float64"),
    ],
)
def test_changing_the_encoding_of_an_existing_variable_raises(
    tmp_path: Path, encoding: dict[str, Any], problem: str
) -> None:
    path, ds = tmp_path / "file.h5", xr.Dataset({"v": (("a", "b"), np.zeros((4, 4)))})
    has = {"chunksizes": (4, 2), "fletcher32": True}
    xref.to_hdf5(ds, path, encoding={"v": has})
    old = path.read_bytes()
    with pytest.raises(ValueError, match=f"'/v' is there already.*{problem}"):
        xref.to_hdf5(ds + 1, path, mode="a", encoding={"v": encoding})
    assert path.read_bytes() == old
    xref.to_hdf5((ds + 1).assign(w=ds["v"]), path, mode="a", encoding={"v": has, "w": encoding})
    with h5py.File(path) as file:
        assert (file["v"][...] == 1).all()
        assert file["w"].shape == (4, 4)


def test_changing_the_compression_level_of_an_existing_variable_raises(tmp_path: Path) -> None:
    path, ds = tmp_path / "file.h5", xr.Dataset({"v": ("a", np.zeros(40))})
    xref.to_hdf5(ds, path, encoding={"v": {"zlib": True, "complevel": 3}})
    xref.to_hdf5(ds + 1, path, mode="a", encoding={"v": {"zlib": True, "complevel": 3}})
    with pytest.raises(ValueError, match="compression_opts=3, which cannot be made 7"):
        xref.to_hdf5(ds, path, mode="a", encoding={"v": {"zlib": True, "complevel": 7}})
    with pytest.raises(ValueError, match="compression='gzip', which cannot be made None"):
        xref.to_hdf5(ds, path, mode="a", encoding={"v": {"zlib": False}})


def test_failing_blocks_leave_nothing_in_the_file(source: Path) -> None:
    def fail(block: Any) -> Any:
        raise ZeroDivisionError

    bad = da.zeros(4, chunks=2).map_blocks(fail, dtype=float)
    new = xr.Dataset({"new": ("n", bad), "q": ("m", [1, 2])})
    with pytest.raises(ZeroDivisionError):
        xref.to_hdf5(new, source, mode="a", group="deep/er")
    with h5py.File(source) as file:
        assert set(file) == {"image", "x", "y", "rois", "objects"}
    assert os.listdir(source.parent) == ["source.h5"]


def test_variables_computed_from_the_file_are_appended_to_it(source: Path) -> None:
    with open_h5(source, chunks={}) as ds:
        patches = ds["rois"].h5ref.resolve(chunks=1).rename("patches").drop_attrs()
        new = xr.Dataset({"twice": ds["image"] * 2, "patches": (("p", "a", "b"), patches.data)})
        xref.to_hdf5(new, source, mode="a")
    with open_h5(source) as ds:
        np.testing.assert_array_equal(ds["twice"], 2 * IMAGE)
        np.testing.assert_array_equal(ds["patches"][0], IMAGE[:2, 3:5])


def test_existing_values_change_only_if_all_can_be_written(source: Path) -> None:
    elsewhere = source.parent / "copy.h5"
    elsewhere.write_bytes(source.read_bytes())
    with open_h5(source) as ds:
        new = xr.Dataset({"again": ds["rois"], "x": ds["x"] + 1}, attrs={"new": 1})
        with pytest.raises(DanglingReferenceError):
            xref.to_hdf5(new, elsewhere, mode="a")
    with h5py.File(elsewhere) as file:
        assert file["x"][:].tolist() == list(range(10))
        assert set(file) == {"image", "x", "y", "rois", "objects"}
        assert "new" not in file.attrs


def test_overwritten_values_are_decoded_as_written(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    packed = {"v": {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -9}}
    xref.to_hdf5(xr.Dataset({"v": ("x", [1.5, 2.5])}), path, encoding=packed)
    xref.to_hdf5(xr.Dataset({"v": ("x", np.array([15, 25], "i2"))}), path, mode="a")
    with open_h5(path) as back:
        assert back["v"].values.tolist() == [15, 25]
    with pytest.raises(ValueError, match=r"lies along \['x'\]"):
        xref.to_hdf5(xr.Dataset({"v": ("z", np.array([1, 2], "i2"))}), path, mode="a")


def test_a_plain_dataset_becomes_the_scale_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        file["time"] = np.arange(3.0)
        file["square"] = np.zeros((2, 2))
    xref.to_hdf5(xr.Dataset({"w": (("time", "y"), np.ones((3, 2)))}), path, mode="a")
    with open_h5(path) as back:
        assert back["w"].dims == ("time", "y")
        assert back["w"]["time"].values.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="something else"):
        xref.to_hdf5(xr.Dataset({"v": ("square", [1, 2])}), path, mode="a")


def test_an_unrelated_lock_file_is_left_alone(tmp_path: Path) -> None:
    path, lock = tmp_path / "file.h5", tmp_path / "file.h5.lock"
    lock.write_text("mine")
    for mode in ("w", "a"):
        new = xr.Dataset({f"v{mode}": ("x", da.zeros(4, chunks=2))})
        xref.to_hdf5(new, path, mode=mode)
    assert lock.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["file.h5", "file.h5.lock"]


@pytest.mark.parametrize("group", ["/", "h"])
def test_netcdf_dimension_ids_stay_unique_across_groups(tmp_path: Path, group: str) -> None:
    """netCDF-4 identifies dimensions by these numbers, in all groups of a file."""
    path = tmp_path / "file.nc"
    tree = {
        "/": xr.Dataset({"v": (("a", "b"), np.zeros((2, 3)))}),
        "/g": xr.Dataset({"w": (("a", "c"), np.zeros((2, 4)))}),
    }
    xref.to_hdf5(xr.DataTree.from_dict(tree), path)
    new = xr.Dataset({"q": (("d", "e"), np.ones((5, 6)))})
    xref.to_hdf5(new, path, mode="a", group=group)
    numbers: list[int] = []
    with h5py.File(path) as file:
        for where in ("/", "g", "h"):
            for item in file.get(where, {}).values():
                numbers.extend(np.ravel(item.attrs.get("_Netcdf4Dimid", [])).tolist())
    assert sorted(numbers) == [0, 1, 2, 3, 4]


# --- copies ----------------------------------------------------------------------------


def test_target_groups_are_copied_with_their_members(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "source.h5", "w") as file:
        file["g/d"] = [1, 2]
        file["g/sub/deeper/e"] = [3]
        file["g/t"] = np.dtype("f4, i2")
        file["g/sub/up"] = file["g"]  # in a circle
        file["g/sub"].attrs["up"] = file["g"].ref
        write_references(file, "refs", [file["g"].ref], dtype=h5py.ref_dtype)
    with open_h5(tmp_path / "source.h5") as ds:
        ds[["refs"]].h5ref.to_hdf5(tmp_path / "new.h5", on_missing="copy")
    with h5py.File(tmp_path / "new.h5") as file:
        group = file[file["refs"][0]]
        assert set(group) >= {"d", "sub", "t"}
        assert group["sub/deeper/e"][:].tolist() == [3]
        assert group["t"].dtype == np.dtype("f4, i2")
        assert group["sub/up"] == group
        assert file[group["sub"].attrs["up"]] == group


def test_copies_get_another_path_where_a_dataset_is_in_the_way(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "source.h5", "w") as file:
        file["a/b"] = [1, 2]
        write_references(file, "refs", [file["a/b"].ref], dtype=h5py.ref_dtype)
    with open_h5(tmp_path / "source.h5") as ds:
        new = ds[["refs"]].assign(a=("x", [1.0]))
        xref.to_hdf5(new, tmp_path / "new.h5", on_missing="copy")
    with h5py.File(tmp_path / "new.h5") as file:
        assert file[file["refs"][0]].name.startswith("/#refs#/")
        assert file[file["refs"][0]][:].tolist() == [1, 2]


# --- names, places, values -------------------------------------------------------------

WRONG: dict[str, tuple[type[Exception], str, Any]] = {
    "number": (TypeError, "variable 1 of group '/'", xr.Dataset({1: ("x", [1])})),
    "slash": (ValueError, "'a/b'", xr.Dataset({"a/b": ("x", [1])})),
    "empty": (ValueError, "variable ''", xr.Dataset({"": ("x", [1])})),
    "dimension": (ValueError, "dimension 'x/y'", xr.Dataset({"a": ("x/y", [1])})),
    "attribute": (TypeError, "attribute 1", xr.Dataset(attrs={1: 2})),
    "reserved": (ValueError, "CLASS", xr.Dataset({"a": ("x", [1], {"CLASS": "b"})})),
    "levels": (
        NotImplementedError,
        "reset_index",
        xr.Dataset({"a": (("x", "y"), np.zeros((2, 2)))}).stack(z=("x", "y")),
    ),
    "none": (TypeError, "HDF5 has no type", xr.Dataset(attrs={"a": ["b", None]})),
    "mixed": (UnsupportedError, "'a'", xr.Dataset({"a": ("x", np.array([1, "b"], object))})),
    "unknown": (
        ValueError,
        "unknown size",
        xr.Dataset({"a": ("x", da.arange(5, chunks=2)[da.arange(5, chunks=2) > 1])}),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_names_and_values_that_hdf5_cannot_hold_raise(tmp_path: Path, name: str) -> None:
    error, message, dataset = WRONG[name]
    with pytest.raises(error, match=message):
        xref.to_hdf5(dataset, tmp_path / "file.h5")
    assert not os.listdir(tmp_path)


def test_writing_to_an_impossible_path_raises(tmp_path: Path) -> None:
    ds = xr.Dataset({"a": ("x", [1])})
    os.mkfifo(tmp_path / "pipe")
    for error, message, path in (
        (UnsupportedError, "is a URL", "s3://bucket/file.h5"),
        (FileExistsError, "not a regular file", tmp_path / "pipe"),
        (FileExistsError, "not a regular file", tmp_path),
        (FileNotFoundError, "the folder", tmp_path / "none" / "file.h5"),
    ):
        with pytest.raises(error, match=message):
            xref.to_hdf5(ds, path)
    with pytest.raises(ValueError, match="unlimited_dims"):
        xref.to_hdf5(ds, tmp_path / "file.h5", unlimited_dims=["q"])
    xref.to_hdf5(ds, tmp_path / ("n" * 250))
    assert len(os.listdir(tmp_path)) == 2


OBJECTS: dict[str, Any] = {
    "missing text": np.array(["x", None], dtype=object),
    "text and NaN": np.array(["x", np.nan], dtype=object),
    "numbers": np.array([1.5, None], dtype=object),
    "integers": np.array([1, 2], dtype=object),
    "single bytes": np.array([b"a", b"b"]),
    "nothing": np.array([None, None], dtype=object),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_stored_as_xarray_stores_them(tmp_path: Path, name: str) -> None:
    pytest.importorskip("h5netcdf")
    ds = xr.Dataset({"v": ("x", OBJECTS[name])})
    xref.to_hdf5(ds, tmp_path / "ours.h5")
    ds.to_netcdf(tmp_path / "theirs.h5", engine="h5netcdf")
    with open_h5(tmp_path / "ours.h5") as ours, open_h5(tmp_path / "theirs.h5") as theirs:
        xr.testing.assert_identical(ours.load(), theirs.load())


def test_columns_of_pandas_are_stored(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"c": pd.Categorical(["a", "b", "a"]), "t": ["x", "y", "z"]})
    xref.to_hdf5(table.to_xarray(), tmp_path / "file.h5")
    with open_h5(tmp_path / "file.h5") as back:
        assert back["c"].values.tolist() == ["a", "b", "a"]
        assert back["t"].values.tolist() == ["x", "y", "z"]


def test_a_subtree_keeps_the_coordinates_it_inherits(tmp_path: Path) -> None:
    tree = xr.DataTree.from_dict(
        {"/": xr.Dataset(coords={"x": [10, 20]}), "/c": xr.Dataset({"v": ("x", [1, 2])})}
    )
    xref.to_hdf5(tree["c"], tmp_path / "file.h5")
    with open_h5(tmp_path / "file.h5") as back:
        assert back["v"]["x"].values.tolist() == [10, 20]


@pytest.mark.slow
def test_default_chunks_have_a_useful_size(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    odd = xr.Dataset({"a": ("x", da.zeros(300_000, chunks=30_000)[29_999:])})
    xref.to_hdf5(odd, path)
    with h5py.File(path) as file:
        assert file["a"].chunks == (30_000,)
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("a", (4,), "f8", chunks=(1 << 27,), maxshape=(None,))
    with open_h5(tmp_path / "huge.h5") as ds:
        xref.to_hdf5(ds, path)
    with h5py.File(path) as file:
        assert file["a"].shape == (4,)
        assert file["a"].chunks is None or file["a"].chunks[0] < 1 << 20
    big = xr.Dataset({"a": (("x", "y"), np.zeros((2000, 1000)))})
    for sizes in ((0, 10), (-1, 10)):
        with pytest.raises(ValueError, match="do not fit"):
            xref.to_hdf5(big, path, encoding={"a": {"zlib": True, "chunksizes": sizes}})
    xref.to_hdf5(big, path, encoding={"a": {"compression": 9}})
    with h5py.File(path) as file:
        assert (file["a"].compression, file["a"].compression_opts) == ("gzip", 9)


# --- ordinary use ----------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Write a file as h5py users do: no dimension scales, and references into it."""
    path = tmp_path / "plain.h5"
    with h5py.File(path, "w") as file:
        d = file.create_dataset("d", data=np.arange(10.0))
        file["e"] = np.arange(10.0)
        write_references(file, "rois", [d.regionref[2:4]])
        d.attrs["self"] = d.ref
    return path


OPENED: dict[str, Any] = {
    "lazy": lambda path: open_h5(path),
    "dask": lambda path: open_h5(path, chunks={}),
    "in memory": lambda path: open_h5(path).load(),
}


@pytest.mark.parametrize("how", OPENED)
def test_a_dataset_with_one_change_is_written_back(plain: Path, how: str) -> None:
    with OPENED[how](plain) as ds:
        xref.to_hdf5(ds.assign(d=ds["d"] + 100), plain, mode="a")
    with OPENED[how](plain) as ds:
        xref.to_hdf5(ds.assign(n=("z", [1, 2, 3])), plain, mode="a")
    with h5py.File(plain) as file:
        assert file["d"][:3].tolist() == [100, 101, 102]
        assert file["d"][file["rois"][0]].tolist() == [102, 103]
        assert file["n"][:].tolist() == [1, 2, 3]
        assert file[file["d"].attrs["self"]] == file["d"]


SAME_PLACE: dict[str, Any] = {
    "computed": lambda d: d * 2 + 1,
    "as it was": lambda d: d,
    "changed": lambda d: d.copy(data=d.values**2),
    "copied": lambda d: d.copy(),
}

OTHER_PLACE: dict[str, Any] = {
    "backwards": lambda d: d[::-1].load(),
    "rolled": lambda d: d.load().roll({d.dims[0]: 1}),
    "cut": lambda d: d[:9].load(),
}


@pytest.mark.parametrize("change", [*SAME_PLACE, *OTHER_PLACE])
def test_regions_of_unlabelled_variables_are_written_or_refused(
    plain: Path, tmp_path: Path, change: str
) -> None:
    with open_h5(plain) as ds:
        changed = (SAME_PLACE | OTHER_PLACE)[change](ds["d"]).drop_attrs()
        new = ds[["rois"]].assign(d=("n", changed.variable._data))
        new["d"].encoding = dict(ds["d"].encoding)
        if change in OTHER_PLACE:
            with pytest.raises(DanglingReferenceError, match="other elements"):
                xref.to_hdf5(new, tmp_path / "new.h5")
            return
        xref.to_hdf5(new, tmp_path / "new.h5")
        expected = changed.values[2:4]
    with h5py.File(tmp_path / "new.h5") as file:
        np.testing.assert_array_equal(file["d"][file["rois"][0]], expected)


@pytest.mark.parametrize("how", OPENED)
def test_new_labels_are_not_a_reordering(source: Path, tmp_path: Path, how: str) -> None:
    with OPENED[how](source) as ds:
        for changed in (ds.assign_coords(x=ds["x"] * 1000), ds.drop_vars("x")):
            xref.to_hdf5(changed, tmp_path / "new.h5")
            with h5py.File(tmp_path / "new.h5") as file:
                found = file["image"][file["rois"][0]]
                np.testing.assert_array_equal(found, IMAGE[:2, 3:5])


def test_attributes_that_do_not_affect_decoding_are_kept(source: Path) -> None:
    with h5py.File(source, "a") as file:
        file["image"].attrs["units"] = "K"
    xref.to_hdf5(xr.Dataset({"image": (("y", "x"), IMAGE)}), source, mode="a")
    with h5py.File(source) as file:
        assert file["image"].attrs["units"] == "K"


def test_a_failed_append_does_not_make_a_dataset_a_scale(source: Path) -> None:
    other = source.parent / "other.h5"
    with h5py.File(other, "w") as file:
        file["plain"] = [1, 2, 3]
    with open_h5(source) as ds:
        bad = xr.Dataset({"plain": ("plain", [1, 2, 3]), "r": ds["objects"]})
        with pytest.raises(DanglingReferenceError):
            xref.to_hdf5(bad, other, mode="a")
    with h5py.File(other) as file:
        assert not dict(file["plain"].attrs)


@pytest.mark.parametrize("how", OPENED)
def test_variables_along_growing_dimensions_are_appended(tmp_path: Path, how: str) -> None:
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        time = file.create_dataset("time", data=np.arange(5), maxshape=(None,))
        time.make_scale("time")
        short = file.create_dataset("v", data=np.arange(3.0), maxshape=(None,))
        short.dims[0].attach_scale(time)
        write_references(file, "rois", [short.regionref[1:3]])
    with OPENED[how](path) as ds:
        for changed in (ds, ds.assign(v=ds["v"] + 1)):
            xref.to_hdf5(changed, tmp_path / "new.h5")
            with h5py.File(tmp_path / "new.h5") as file:
                found = file["v"][file["rois"][0]]
                assert found.tolist() == changed["v"].values[1:3].tolist()
        xref.to_hdf5(ds.assign(n=("time", np.arange(5))), path, mode="a")
    with open_h5(path) as ds:
        assert ds["n"].dims == ds["v"].dims == ("time",)


def test_new_variables_are_appended_along_growing_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "file.nc"
    h5netcdf = pytest.importorskip("h5netcdf")
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"time": None, "x": 2}
        file.create_variable("v", ("time", "x"), "f8")
        file.resize_dimension("time", 5)
    xref.to_hdf5(xr.Dataset({"w": ("time", np.ones(5))}), path, mode="a")
    with open_h5(path) as ds:
        assert ds["w"].dims == ("time",)
        assert ds.sizes["time"] == 5


def test_character_arrays_stay_character_arrays(tmp_path: Path) -> None:
    path, new = tmp_path / "file.h5", tmp_path / "new.h5"
    with h5py.File(path, "w") as file:
        file["ch"] = np.array([[b"a", b"b"], [b"c", b"d"]])
        write_references(file, "rois", [file["ch"].regionref[1:, :]])
    with open_h5(path) as ds:
        xref.to_hdf5(ds, new)
    with h5py.File(new) as file:
        assert file["ch"][file["rois"][0]].ravel().tolist() == [b"c", b"d"]


def test_regions_of_elements_that_are_arrays_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "file.h5", "w") as file:
        items = file.create_dataset("items", (4,), "(2,)f4")
        write_references(file, "rois", [items.regionref[:2]])
    with (
        open_h5(tmp_path / "file.h5") as ds,
        pytest.raises(DanglingReferenceError, match=r"shape \(4,\), from which .*\(4, 2\)"),
    ):
        xref.to_hdf5(ds, tmp_path / "new.h5")
