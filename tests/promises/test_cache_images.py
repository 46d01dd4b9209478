"""Files with a metadata cache image give the values that h5py gives.

The metadata of such a file lie in one block; the bytes at their own addresses are out of date.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from cache_images import move_to_image, write_with_hdf5
from strategies import write_references

import xref
from xref.cli.info import inspect_file
from xref.objects.paths import object_paths
from xref.storage.open_files import locate_file

DATA = np.arange(48 * 40, dtype="i4").reshape(48, 40)


def fill_kinds(file: h5py.File, *, dependent: bool = True) -> None:
    """Write each kind of chunk index, storage, attribute and reference.

    Without ``dependent``, no metadata depend on the order in which others are written, as
    those of extensible arrays and fractal heaps do: HDF5 2.0 refuses its own images of these.
    """
    data = file.create_dataset("data", data=DATA, chunks=(8, 8), compression="gzip")
    data.attrs["units"], data.attrs["long"] = "m", "x" * 3000
    file["plain"] = DATA
    chunks: dict[str, Any] = {
        "fixed_array": {},
        "extensible_array": {"maxshape": (None, 40)},
        "btree2": {"maxshape": (None, None)},
        "shuffled": {"shuffle": True, "fletcher32": True},
    }
    if not dependent:
        del chunks["extensible_array"]
    for name, options in chunks.items():
        file.create_dataset(name, data=DATA, chunks=(4, 4), **options)
    file.create_dataset("single_chunk", data=DATA, chunks=DATA.shape)
    compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    compact.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((40,))
    number = h5py.h5d.create(file.id, b"compact", h5py.h5t.STD_I32LE, space, compact)
    number.write(h5py.h5s.ALL, h5py.h5s.ALL, DATA[0])
    file["text"] = np.array([f"text {k}" * k for k in range(30)], dtype=object)
    file["scalar"] = 3.5
    n_attributes, n_links = (40, 60) if dependent else (8, 8)
    for k in range(n_attributes):  # more than 8: in a fractal heap
        file["plain"].attrs[f"attribute {k}"] = np.arange(k)
    group = file.create_group("group/inner")
    for k in range(n_links):  # more than 8: in a fractal heap
        group[f"member {k}"] = np.arange(k + 1)
    regions = [data.regionref[k : k + 8, 2 * k : 2 * k + 8] for k in range(16)]
    write_references(file, "rois", regions)
    write_references(file, "objects", [data.ref, group.ref], dtype=h5py.ref_dtype)


def check_file(path: Any, expected_path: Path, **options: Any) -> None:
    """Compare all variables, attributes and references of a file with h5py."""
    options = {"engine": "h5ref", "phony_dims": "sort", **options}
    with (
        h5py.File(expected_path) as file,
        xr.open_dataset(path, **options) as ds,
        xr.open_dataset(path, group="group/inner", **options) as inner,
    ):
        names = [name for name in file if isinstance(file[name], h5py.Dataset)]
        assert set(ds.variables) == set(names)
        for name in set(names) - {"rois", "objects", "text"}:
            np.testing.assert_array_equal(ds[name], file[name][()])
        assert ds["text"].values.tolist() == [t.decode() for t in file["text"][...]]
        assert set(inner.variables) == set(file["group/inner"])
        for name, member in file["group/inner"].items():
            np.testing.assert_array_equal(inner[name], member[...])
        for name in ("data", "plain"):
            assert set(ds[name].attrs) >= set(file[name].attrs) - {"units"}
            for key in set(file[name].attrs) - {"units"}:
                np.testing.assert_array_equal(ds[name].attrs[key], file[name].attrs[key])
        regions = [file["data"][r] for r in file["rois"][...]]
        np.testing.assert_array_equal(
            ds["rois"].h5ref.resolve().values.ravel(), np.concatenate(regions).ravel()
        )
        assert [r.path for r in ds["objects"].values] == ["/data", "/group/inner"]


def by_hdf5(path: Path, **options: Any) -> Path:
    return write_with_hdf5(path, partial(fill_kinds, dependent=False), **options)


def by_hdf5_as_before(path: Path, **options: Any) -> Path:
    """Write groups with symbol tables, and version 1 B-trees of chunks."""
    options = {"page": 4096, **options}
    return write_with_hdf5(path, partial(fill_kinds, dependent=False), old=True, **options)


def by_hand(path: Path, *, userblock: int = 0, page: int = 0) -> Path:
    with h5py.File(path, "w", libver="latest", userblock_size=userblock) as file:
        fill_kinds(file)
    path.write_bytes(move_to_image(path.read_bytes()))
    return path


@pytest.mark.parametrize("reader", ["auto", "h5py"])
@pytest.mark.parametrize("options", [{}, {"userblock": 8192}, {"page": 4096}])
@pytest.mark.parametrize("write", [by_hdf5, by_hdf5_as_before, by_hand])
def test_a_cache_image_holds_the_metadata(
    tmp_path: Path, write: Callable[..., Path], options: dict[str, int], reader: str
) -> None:
    path = write(tmp_path / "f.h5", **options)
    check_file(path, path, reader=reader)
    location = locate_file(path)
    assert "/group/inner/member 7" in object_paths(location).values()
    assert inspect_file(str(path), None) is not None


@pytest.mark.parametrize("write", [by_hdf5, by_hand])
def test_a_cache_image_is_read_from_memory_and_through_urls(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    fsspec = pytest.importorskip("fsspec")
    path = write(tmp_path / "f.h5")
    memory = fsspec.filesystem("memory")
    memory.pipe("/cache-image/f.h5", path.read_bytes())
    check_file("memory://cache-image/f.h5", path)
    check_file(path.read_bytes(), path)
    with path.open("rb", buffering=0) as raw:
        check_file(raw, path)
    memory.rm("/cache-image/f.h5")


@pytest.mark.parametrize("write", [by_hdf5, by_hand])
def test_a_cache_image_of_a_file_that_is_open_in_h5py(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    path = write(tmp_path / "f.h5")
    for mode in ("r", "r+"):
        with (
            h5py.File(path, mode) as file,
            xr.open_dataset(file, engine="h5ref", cache=False) as ds,
        ):
            np.testing.assert_array_equal(ds["data"], DATA)
            assert ds["text"].values[3] == "text 3" * 3
            np.testing.assert_array_equal(ds["rois"].h5ref.resolve()[3], DATA[3:11, 6:14])


def test_a_file_without_an_image_is_opened_with_no_more_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there was the check for an image, opening took 7 and 14 reads."""
    import os

    for libver, most in (("latest", 7), ("earliest", 14)):
        path = tmp_path / f"{libver}.h5"
        with h5py.File(path, "w", libver=libver) as file:
            file["x"] = np.arange(5)
            file.create_dataset("c", data=np.arange(100), chunks=(10,))
            file["g/y"] = np.ones(3)
            file["s"] = np.array(["a", "b"], dtype=object)
        calls: list[int] = []
        original = os.preadv
        with monkeypatch.context() as patch:
            patch.setattr(
                os, "preadv", lambda n, b, o, f=original, c=calls: c.append(o) or f(n, b, o)
            )
            xr.open_dataset(path, engine="h5ref").close()
        assert 0 < len(calls) <= most


def test_many_objects_in_a_cache_image(tmp_path: Path) -> None:
    """The bulk decoders of many objects see the image, too."""

    def fill(file: h5py.File) -> None:
        for k in range(400):
            file.create_dataset(f"d{k:03}", data=np.arange(6) + k, chunks=(3,))
        write_references(
            file, "objects", [file[f"d{k:03}"].ref for k in range(400)], dtype=h5py.ref_dtype
        )

    path = write_with_hdf5(tmp_path / "f.h5", fill, page=4096, old=True)
    with xr.open_dataset(path, engine="h5ref", phony_dims="sort") as ds:
        assert len(ds.variables) == 401
        table = ds["objects"].h5ref.table()
        assert table["path"].values.tolist() == [f"/d{k:03}" for k in range(400)]
        found = ds["objects"].h5ref.resolve()
        np.testing.assert_array_equal(found, np.arange(6) + np.arange(400)[:, None])


def test_appending_to_a_file_with_a_cache_image(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "f.h5")
    xref.to_hdf5(xr.Dataset({"new": ("n", np.arange(4))}), path, group="/added", mode="a")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["added/new"], np.arange(4))
        np.testing.assert_array_equal(file["data"], DATA)
    with xr.open_dataset(path, engine="h5ref") as ds:
        np.testing.assert_array_equal(ds["data"], DATA)
