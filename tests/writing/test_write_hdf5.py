"""Content of written files, references in them, and when the file appears."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import h5py
import numpy as np
import pytest
import xarray as xr
from dask.diagnostics import ProgressBar
from samples import open_h5
from strategies import write_references

import xref
from xref.errors import DanglingReferenceError, FileChangedError, UnsupportedError

IMAGE = np.arange(40 * 50, dtype="i4").reshape(40, 50)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write a file with references of every kind."""
    path = tmp_path / "source.h5"
    with h5py.File(path, "w") as file:
        image = file.create_dataset("image", data=IMAGE, chunks=(8, 10), compression="gzip")
        group = file.create_group("cells")
        group["a"] = [1.0, 2.0]
        file["type"] = np.dtype("f4, i2")
        boxes = [image.regionref[k : k + 3, 2 * k : 2 * k + 4] for k in range(5)]
        write_references(file, "rois", [*boxes, None])
        write_references(
            file, "objects", [image.ref, group.ref, group["a"].ref, None], dtype=h5py.ref_dtype
        )
        write_references(file, "grid", boxes[:4], (2, 2))
        file.create_dataset("one", (), dtype=h5py.regionref_dtype)[()] = boxes[0]
        dtype = np.dtype([("n", "i2"), ("ref", h5py.ref_dtype), ("roi", h5py.regionref_dtype)])
        rows = file.create_dataset("rows", (2,), dtype=dtype)
        rows[0], rows[1] = (1, group.ref, boxes[1]), (2, image.ref, boxes[2])
        image.attrs["self"] = image.ref
        image.attrs["best"] = boxes[3]
        group.attrs["many"] = np.array([image.ref, group.ref], dtype=h5py.ref_dtype)
    return path


def names(file: h5py.File, references: Any) -> list[str | None]:
    return [file[r].name if r else None for r in np.ravel(references)]


def test_written_references_point_into_the_new_file(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.h5"
    with xr.open_datatree(source, engine="h5ref") as tree:
        xref.to_hdf5(tree, path)
    source.unlink()
    with h5py.File(path) as file:
        image = file["image"]
        np.testing.assert_array_equal(image, IMAGE)
        for k, roi in enumerate(file["rois"][:5]):
            np.testing.assert_array_equal(image[roi], IMAGE[k : k + 3, 2 * k : 2 * k + 4])
        assert not file["rois"][5]
        assert names(file, file["objects"]) == ["/image", "/cells", "/cells/a", None]
        np.testing.assert_array_equal(image[file["grid"][1, 1]], IMAGE[3:6, 6:10])
        np.testing.assert_array_equal(image[file["one"][()]], IMAGE[:3, :4])
        assert names(file, file["rows"]["ref"]) == ["/cells", "/image"]
        np.testing.assert_array_equal(image[file["rows"]["roi"][1]], IMAGE[2:5, 4:8])
        assert file["rows"]["n"].tolist() == [1, 2]
        assert file[image.attrs["self"]] == image
        np.testing.assert_array_equal(image[image.attrs["best"]], IMAGE[3:6, 6:10])
        assert names(file, file["cells"].attrs["many"]) == ["/image", "/cells"]


@pytest.mark.parametrize("loaded", [False, True])
def test_renamed_targets_are_found_by_identity(
    source: Path, tmp_path: Path, loaded: bool
) -> None:
    with open_h5(source) as ds:
        chosen = ds[["image", "rois"]].rename(image="movie")
        chosen = chosen.load() if loaded else chosen
        xref.to_hdf5(chosen, tmp_path / "new.h5", group="deep/er")
    with h5py.File(tmp_path / "new.h5") as file:
        assert set(names(file, file["deep/er/rois"])) == {"/deep/er/movie", None}


def test_computed_targets_are_found_by_path(source: Path, tmp_path: Path) -> None:
    with open_h5(source) as ds:
        ds["image"] = ds["image"] * 2
        xref.to_hdf5(ds[["image", "rois"]], tmp_path / "new.h5")
    with h5py.File(tmp_path / "new.h5") as file:
        np.testing.assert_array_equal(file["image"][file["rois"][1]], 2 * IMAGE[1:4, 2:6])


def test_a_dataset_of_another_file_is_not_the_target(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["image"] = -IMAGE
    with open_h5(source) as ds, open_h5(other) as others:
        mixed = xr.Dataset({"image": others["image"], "rois": ds["rois"]})
        with pytest.raises(DanglingReferenceError, match="not among the objects to write"):
            xref.to_hdf5(mixed, tmp_path / "new.h5")


def test_missing_targets_are_named_in_the_error(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.h5"
    with open_h5(source) as ds:
        with pytest.raises(DanglingReferenceError, match=r"region reference 0 .*'/image' of"):
            ds[["rois"]].h5ref.to_hdf5(path)
        with pytest.raises(DanglingReferenceError, match=r"object reference 1 .*'/cells' of"):
            ds[["image", "objects"]].h5ref.to_hdf5(path)
        with pytest.raises(DanglingReferenceError, match=r"shape \(40, 50\).*\(20, 50\)"):
            ds[["image", "rois"]].isel({ds["image"].dims[0]: slice(20)}).h5ref.to_hdf5(path)
    assert os.listdir(tmp_path) == ["source.h5"]


def test_missing_targets_become_null_references_on_request(
    source: Path, tmp_path: Path
) -> None:
    with open_h5(source) as ds:
        ds[["image", "objects"]].h5ref.to_hdf5(tmp_path / "new.h5", on_missing="null")
    with h5py.File(tmp_path / "new.h5") as file:
        assert names(file, file["objects"]) == ["/image", None, None, None]


def test_missing_targets_are_copied_on_request(source: Path, tmp_path: Path) -> None:
    with open_h5(source) as ds:
        ds[["rois", "objects"]].h5ref.to_hdf5(tmp_path / "new.h5", on_missing="copy")
    source.unlink()
    with h5py.File(tmp_path / "new.h5") as file:
        assert names(file, file["objects"]) == ["/image", "/cells", "/cells/a", None]
        np.testing.assert_array_equal(file["image"][file["rois"][1]], IMAGE[1:4, 2:6])
        assert names(file, file["cells"].attrs["many"]) == ["/image", "/cells"]
        assert file[file["image"].attrs["self"]] == file["image"]


def test_copied_targets_get_another_path_where_theirs_is_taken(
    source: Path, tmp_path: Path
) -> None:
    with open_h5(source) as ds:
        small = ds[["rois"]].assign(image=("x", [1, 2]))
        # A variable at the same path with another shape.
        small.h5ref.to_hdf5(tmp_path / "new.h5", on_missing="copy")
    with h5py.File(tmp_path / "new.h5") as file:
        target = file[file["rois"][0]]
        assert target.name.startswith("/#refs#/")
        np.testing.assert_array_equal(target, IMAGE)
        assert file["image"].shape == (2,)


def test_unnamed_target_objects_are_copied(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "unnamed.h5", "w") as file:
        file["hidden"] = [1, 2, 3]
        write_references(file, "refs", [file["hidden"].ref], dtype=h5py.ref_dtype)
        write_references(file, "rois", [file["hidden"].regionref[1:]])
        h5py.h5o.link(file["hidden"].id, file.create_group("g").id, b"again")
        holder = file["g"].id
        del file["hidden"]
        assert holder.links.exists(b"again")
    with open_h5(tmp_path / "unnamed.h5", drop_variables="g") as ds:
        ds.h5ref.to_hdf5(tmp_path / "new.h5", on_missing="copy")
    with h5py.File(tmp_path / "new.h5") as file:
        assert file[file["refs"][0]].name == "/g/again"
        assert file[file["rois"][0]][file["rois"][0]].tolist() == [2, 3]


def test_named_datatypes_are_always_copied(source: Path, tmp_path: Path) -> None:
    with open_h5(source) as ds:
        refs = xref.ReferenceArray.from_references([ds.h5ref.reference("type")])
        new = xr.Dataset({"refs": ("n", refs)})
        xref.to_hdf5(new, tmp_path / "new.h5")
    with h5py.File(tmp_path / "new.h5") as file:
        found = file[file["refs"][0]]
        assert isinstance(found, h5py.Datatype)
        assert (found.name, found.dtype) == ("/type", np.dtype("f4, i2"))


# --- modes -----------------------------------------------------------------------------


def test_references_into_a_file_are_appended_to_it(source: Path) -> None:
    before = source.stat().st_ino
    with open_h5(source) as ds:
        boxes = ds["image"].h5ref.regions([[0, 0], [30, 40]], (10, 10), dim="box")
        new = xr.Dataset({"boxes": boxes}, attrs={"image": ds["image"].h5ref.reference()})
        xref.to_hdf5(new, source, mode="a")
    assert source.stat().st_ino == before
    with h5py.File(source) as file:
        np.testing.assert_array_equal(file["image"][file["boxes"][1]], IMAGE[30:, 40:])
        assert file[file.attrs["image"]] == file["image"]
        np.testing.assert_array_equal(file["image"][file["rois"][1]], IMAGE[1:4, 2:6])
    with open_h5(source) as ds:
        np.testing.assert_array_equal(ds["boxes"].h5ref.resolve()[1], IMAGE[30:, 40:])


def test_appending_references_of_an_earlier_file_version_raises(source: Path) -> None:
    with open_h5(source) as ds:
        boxes = ds["image"].h5ref.regions([[0, 0]], (10, 10))
    with h5py.File(source, "a") as file:
        file["more"] = 1
    with pytest.raises(FileChangedError, match="open it again"):
        xref.to_hdf5(xr.Dataset({"boxes": boxes}), source, mode="a")


def test_appending_keeps_existing_variables_and_refuses_other_shapes(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    first = xr.Dataset({"a": ("x", [1, 2, 3])}, coords={"x": [10, 20, 30]})
    xref.to_hdf5(first, path)
    xref.to_hdf5(xr.Dataset({"b": ("x", [4.0, 5.0, 6.0])}), path, mode="a")
    xref.to_hdf5(xr.Dataset({"c": ("y", [1])}), path, mode="a", group="sub")
    xref.to_hdf5(xr.Dataset({"a": ("x", [7, 8, 9])}), path, mode="a")
    with open_h5(path) as ds:
        assert ds["a"].values.tolist() == [7, 8, 9]
        assert ds["b"].dims == ("x",)
        assert ds["b"]["x"].values.tolist() == [10, 20, 30]
    with pytest.raises(ValueError, match="there already"):
        xref.to_hdf5(xr.Dataset({"a": ("z", [1, 2])}), path, mode="a")
    with pytest.raises(ValueError, match="dimension 'x'"):
        xref.to_hdf5(xr.Dataset({"d": ("x", [1, 2])}), path, mode="a")
    with pytest.raises(ValueError, match="is a group"):
        xref.to_hdf5(xr.Dataset({"sub": 1}), path, mode="a")


def test_a_failed_append_removes_new_variables(source: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file["old"] = 1
    with open_h5(source) as ds:
        new = ds[["rois", "grid"]].assign(a=("x", [1, 2]))
        with pytest.raises(DanglingReferenceError, match="not among the objects to write"):
            xref.to_hdf5(new, tmp_path / "file.h5", mode="a", group="deep/er")
    with h5py.File(tmp_path / "file.h5") as file:
        assert list(file) == ["old"]


def test_writing_keeps_the_symbolic_link_and_the_access_mode(tmp_path: Path) -> None:
    path, link = tmp_path / "file.h5", tmp_path / "link.h5"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    xref.to_hdf5(xr.Dataset({"a": ("x", [1, 2])}), link)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    with h5py.File(path) as file:
        assert file["a"][:].tolist() == [1, 2]


@pytest.mark.parametrize("user_block", [0, 1024])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_references_are_appended_to_files_of_every_format_version(
    tmp_path: Path, user_block: int, libver: str
) -> None:
    path = tmp_path / "file.h5"
    with h5py.File(path, "w", libver=libver, userblock_size=user_block) as file:
        file["image"] = IMAGE
        file["line"] = np.arange(9)
    with open_h5(path) as ds:
        image = ds["image"].h5ref
        new = xr.Dataset(
            {
                "boxes": image.regions([[0, 0], [30, 40]], (10, 10), dim="box"),
                "steps": ((), image.region_reference(np.s_[::3, 1::7])),
                "object": ((), ds["line"].h5ref.reference()),
            },
            attrs={"best": image.region_reference(5, slice(3, 9))},
        )
        xref.to_hdf5(new, path, mode="a")
    with h5py.File(path) as file:
        image = file["image"]
        np.testing.assert_array_equal(image[file["boxes"][1]], IMAGE[30:, 40:])
        np.testing.assert_array_equal(image[file["steps"][()]], IMAGE[::3, 1::7])
        assert file[file["object"][()]] == file["line"]
        np.testing.assert_array_equal(image[file.attrs["best"]], IMAGE[5:6, 3:9])


def test_a_file_can_be_written_over_itself(source: Path) -> None:
    with xr.open_datatree(source, engine="h5ref", chunks={}) as tree:
        xref.to_hdf5(tree, source)
    with open_h5(source) as ds:
        np.testing.assert_array_equal(ds["rois"][:5].h5ref.resolve()[1], IMAGE[1:4, 2:6])


@pytest.mark.parametrize("there", [False, True])
def test_a_failed_write_leaves_no_file(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "file.h5"
    if there:
        path.write_bytes(b"old")

    def fail(block: Any) -> Any:
        raise ZeroDivisionError

    bad = da.zeros((4,), chunks=2).map_blocks(fail, dtype=float)
    for broken in ({"x": ("n", bad)}, {"x": ("n", np.array([object()] * 2))}):
        with pytest.raises((ZeroDivisionError, UnsupportedError)):
            xref.to_hdf5(xr.Dataset(broken), path)
    assert os.listdir(tmp_path) == (["file.h5"] if there else [])
    assert not there or path.read_bytes() == b"old"


def test_unknown_write_options_raise_a_helpful_error(tmp_path: Path) -> None:
    path, ds = tmp_path / "file.h5", xr.Dataset({"a": ("x", [1, 2])})
    for message, wrong in (
        ("mode is 'r'", {"mode": "r"}),
        ("on_missing is", {"on_missing": "ignore"}),
        ("is given for 'b'", {"encoding": {"b": {}}}),
        (r"has \['speed'\]", {"encoding": {"a": {"speed": 3}}}),
        ("do not fit", {"encoding": {"a": {"chunksizes": (3,)}}}),
        ("contiguous storage", {"encoding": {"a": {"contiguous": True, "zlib": True}}}),
        ("no filter", {"encoding": {"a": {"compression": "none such"}}}),
    ):
        with pytest.raises(ValueError, match=message):
            xref.to_hdf5(ds, path, **wrong)
    with pytest.raises(TypeError, match="not a Dataset"):
        xref.to_hdf5([1, 2], path)
    with pytest.raises(TypeError, match="attribute 'x' of '/'"):
        xref.to_hdf5(ds.assign_attrs(x=None), path)
    assert not os.listdir(tmp_path)


# --- dask ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheduler", ["threads", "synchronous", pytest.param("processes", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("chunks", [(8, 10), (7, 50), (40, 50)])
def test_blocks_are_written_by_any_scheduler(
    tmp_path: Path, scheduler: str, chunks: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    image = da.from_array(IMAGE, chunks=chunks)
    ds = xr.Dataset({"image": (("y", "x"), image), "n": ("y", np.arange(40))})
    encoding = {"image": {"zlib": True, "shuffle": True, "chunksizes": (8, 10)}}
    pool = request.getfixturevalue("process_pool") if scheduler == "processes" else None
    with dask.config.set(scheduler=scheduler, pool=pool):
        xref.to_hdf5(ds, tmp_path / "file.h5", encoding=encoding)
    assert os.listdir(tmp_path) == ["file.h5"]
    with h5py.File(tmp_path / "file.h5") as file:
        assert (file["image"].chunks, file["image"].compression) == ((8, 10), "gzip")
        np.testing.assert_array_equal(file["image"], IMAGE)


def test_compute_false_writes_the_file_at_compute(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.h5"
    with open_h5(source, chunks={}) as ds:
        later = ds[["image", "rois"]].h5ref.to_hdf5(path, compute=False)
        assert not path.exists()
        later.compute()
    with open_h5(path) as ds:
        np.testing.assert_array_equal(ds["rois"][:5].h5ref.resolve()[2], IMAGE[2:5, 4:8])


def test_a_progress_bar_shows_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar(minimum=0):
        xref.to_hdf5(xr.Dataset({"a": ("x", da.zeros(100, chunks=10))}), tmp_path / "file.h5")
    assert "100%" in capsys.readouterr().out


def test_resolved_stacks_are_stored_chunked_by_region(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "patches.h5"
    with open_h5(source) as ds:
        patches = ds["rois"][:5].h5ref.resolve()
        patches = patches.drop_attrs()  # references to the image among them
        patches.encoding["zlib"] = True
        xref.to_hdf5(patches.to_dataset(name="patches"), path)
        expected = patches.load()
    with h5py.File(path) as file:
        assert file["patches"].chunks == (5, 3, 4)  # small ones together
    with open_h5(path) as back:
        np.testing.assert_array_equal(back["patches"], expected)
        assert set(back.coords) == set(expected.coords)


def test_resolved_stacks_are_stored_in_zarr_by_region_and_back(
    source: Path, tmp_path: Path
) -> None:
    pytest.importorskip("zarr")
    with open_h5(source) as ds:
        patches = ds["rois"][:5].h5ref.resolve().drop_attrs().chunk(chunks_of_regions(ds))
        patches.to_dataset(name="patches").to_zarr(tmp_path / "patches.zarr", zarr_format=2)
        expected = patches.load()
    with xr.open_zarr(tmp_path / "patches.zarr") as stored:
        assert stored["patches"].encoding["chunks"] == (1, 3, 4)
        np.testing.assert_array_equal(stored["patches"], expected)
        xref.to_hdf5(stored, tmp_path / "back.h5")
    with open_h5(tmp_path / "back.h5") as back:
        assert back["patches"].encoding["chunksizes"] == (1, 3, 4)
        np.testing.assert_array_equal(back["patches"], expected)


def chunks_of_regions(ds: xr.Dataset) -> dict[Any, int]:
    """Return chunks of one region each, along the dimension of the references."""
    return {ds["rois"].dims[0]: 1}


MEMORY = """
import resource, sys
import dask.array as da, xarray as xr, xref

ones = da.ones((64, 1 << 20), chunks=(1, 1 << 20))
xref.to_hdf5(xr.Dataset({"a": (("x", "y"), ones[:2])}), sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
encoding = {"a": {"zlib": True, "complevel": 1}} if sys.argv[2] == "zlib" else None
xref.to_hdf5(xr.Dataset({"a": (("x", "y"), ones)}), sys.argv[1], encoding=encoding)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "zlib"])
def test_few_blocks_are_in_memory_at_a_time(tmp_path: Path, how: str) -> None:
    """An array of 512 MiB in blocks of 8 MiB."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "file.h5"), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 160


def limits(path: Path, **options: Any) -> Any:
    ds = xr.Dataset({"v": (("time", "ti", "m"), np.zeros((2, 3, 1)))})
    ds.encoding["unlimited_dims"] = {"m"}
    xref.to_hdf5(ds, path, **options)
    with h5py.File(path) as file:
        return file["v"].maxshape


def test_unlimited_dims_are_given_as_in_to_netcdf(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    assert limits(path) == limits(path, unlimited_dims=None) == (2, 3, None)
    assert limits(path, unlimited_dims="time") == (None, 3, 1)
    assert limits(path, unlimited_dims=("time", "ti")) == (None, None, 1)
    assert limits(path, unlimited_dims={"ti"}) == (2, None, 1)
    assert limits(path, unlimited_dims=[]) == (2, 3, 1)
    for unknown in ("t", ["q"], 1):
        with pytest.raises(ValueError, match="unlimited_dims has"):
            limits(path, unlimited_dims=unknown)


@pytest.mark.sampled(11)
@pytest.mark.parametrize("shape", [(3, 0), (0, 0), (0, 3), (2, 0, 3)])
@pytest.mark.parametrize("encoding", [{}, {"zlib": True}, {"chunksizes": 1}])
@pytest.mark.parametrize("chunked", [False, True])
def test_empty_axes_beside_unlimited_ones_are_written(
    tmp_path: Path, shape: tuple[int, ...], encoding: dict[str, Any], chunked: bool
) -> None:
    path = tmp_path / "file.h5"
    if "chunksizes" in encoding:
        encoding = {"chunksizes": (1,) * len(shape)}
    dims = ("t", "y", "x")[: len(shape)]
    values = da.zeros(shape, chunks=2) if chunked else np.zeros(shape)
    for unlimited in dims:
        ds = xr.Dataset({"v": (dims, values)})
        xref.to_hdf5(ds, path, unlimited_dims=unlimited, encoding={"v": encoding})
        with h5py.File(path) as file:
            assert file["v"].shape == shape
            is_open = [n is None for n in file["v"].maxshape]
            assert is_open == [dim == unlimited for dim in dims]
        with open_h5(path) as back:
            xr.testing.assert_identical(back.load(), ds.load())


# --- storage ---------------------------------------------------------------------------


def test_reference_variables_are_chunked_and_compressed(source: Path, tmp_path: Path) -> None:
    many = np.random.default_rng(0).integers(0, 30, (5000, 2))
    with open_h5(source) as ds:
        boxes = ds["image"].h5ref.regions(many, (3, 4), dim="box")
        new = xr.Dataset({"image": ds["image"], "boxes": boxes})
        encoding = {"boxes": {"chunksizes": (1000,), "zlib": True, "shuffle": True}}
        xref.to_hdf5(new, tmp_path / "new.h5", encoding=encoding)
    with h5py.File(tmp_path / "new.h5") as file:
        assert (file["boxes"].chunks, file["boxes"].compression) == ((1000,), "gzip")
        assert file["boxes"].shuffle
    with open_h5(tmp_path / "new.h5") as ds:
        table = ds["boxes"].h5ref.table()
        np.testing.assert_array_equal(table["start"], many)


def test_dimensions_are_scales_that_netcdf_reads(tmp_path: Path) -> None:
    h5netcdf = pytest.importorskip("h5netcdf")
    ds = xr.Dataset(
        {
            "t": (("time", "lat"), np.arange(12.0).reshape(3, 4), {"units": "K"}),
            "name": ("lat", ["a", "bc", "d", ""]),
            "flag": ("time", [True, False, True]),
        },
        coords={
            "time": np.array(["2020-01-01", "2020-01-02", "2020-01-03"], "M8[ns]"),
            "lat": [1.0, 2.0, 3.0, 4.0],
            "height": ("lat", [5, 6, 7, 8]),
        },
        attrs={"title": "é", "numbers": [1, 2]},
    )
    path = tmp_path / "file.h5"
    xref.to_hdf5(ds, path, unlimited_dims=["time"])
    with h5netcdf.File(path) as file:
        assert file.dimensions["time"].isunlimited()
        assert file.dimensions["lat"].size == 4
        assert file["t"].dimensions == ("time", "lat")
    for engine in ("h5ref", "h5netcdf"):
        with xr.open_dataset(path, engine=engine) as back:
            xr.testing.assert_identical(back.load(), ds)
            assert back.encoding["unlimited_dims"] == {"time"}


def test_trees_share_the_dimensions_of_groups_above(tmp_path: Path) -> None:
    tree = xr.DataTree.from_dict(
        {
            "/": xr.Dataset(coords={"x": [1, 2, 3]}),
            "/a": xr.Dataset({"v": ("x", [4, 5, 6])}),
            "/a/b": xr.Dataset({"w": (("x", "y"), np.zeros((3, 2)))}),
        }
    )
    path = tmp_path / "tree.h5"
    xref.to_hdf5(tree, path, encoding={"/a": {"v": {"zlib": True}}})
    with h5py.File(path) as file:
        assert "x" not in file["a"]
        assert file["a/v"].dims[0][0] == file["x"]
        assert file["a/v"].compression == "gzip"
    with xr.open_datatree(path, engine="h5ref") as back:
        xr.testing.assert_identical(back.load(), tree)


def test_encodings_of_missing_groups_raise(tmp_path: Path) -> None:
    tree = xr.DataTree.from_dict({"/a": xr.Dataset({"v": ("x", [4])})})
    with pytest.raises(ValueError, match=r"encodings are given for \['/b'\]"):
        xref.to_hdf5(tree, tmp_path / "tree.h5", encoding={"/b": {}})


def test_sequences_of_references_come_back(source: Path, tmp_path: Path) -> None:
    with open_h5(source) as ds:
        image = ds["image"].h5ref
        rows = np.empty(2, dtype=object)
        rows[:] = [
            np.array([image.region_reference(k), image.region_reference(k + 1)], dtype=object)
            for k in range(2)
        ]
        new = xr.Dataset({"image": ds["image"], "rows": ("n", rows)})
        xref.to_hdf5(new, tmp_path / "new.h5")
    with open_h5(tmp_path / "new.h5") as ds:
        found = ds["rows"].values
        assert [len(row) for row in found] == [2, 2]
        np.testing.assert_array_equal(found[1][1].resolve(), IMAGE[2:3])
