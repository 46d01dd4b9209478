"""Tables of references are stored in formats without references, and read back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from samples import open_h5
from strategies import everything, files, hyperslabs, listed_points, nothing, write_references

import xref
from xref.errors import CorruptFileError, DanglingReferenceError

DATA = np.arange(20 * 30).reshape(20, 30)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Write references with selections of every kind, and to targets of every kind."""
    path = tmp_path / "mixed.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=DATA)
        line = file.create_dataset(
            "group/line", data=np.arange(9), maxshape=(None,), chunks=(3,)
        )
        write_references(
            file,
            "rois",
            [
                data.regionref[2:5, 3:9],
                None,
                data.regionref[::3, 1:9:4],
                hyperslabs(((1, 2), (3, 4)), ((2, 5), (4, 4)))(data),
                listed_points([(3, 4), (1, 2), (3, 4)])(data),
                everything(data),
                nothing(data),
                line.regionref[2:7],
            ],
            (2, 4),
        )
        write_references(file, "boxes", [data.regionref[k : k + 2, :3] for k in range(5)])
        objects = [data.ref, file["group"].ref, None, line.ref]
        write_references(file, "objects", objects, dtype=h5py.ref_dtype)
    return path


@pytest.mark.sampled(3)
@pytest.mark.parametrize("stored", ["memory", "netcdf", "zarr"])
@pytest.mark.parametrize("name", ["rois", "boxes", "objects"])
def test_a_table_becomes_the_same_references(
    mixed: Path, tmp_path: Path, name: str, stored: str
) -> None:
    with open_h5(mixed) as ds:
        table = ds[name].h5ref.table()
        if stored == "netcdf":
            pytest.importorskip("h5netcdf")
            table.to_netcdf(tmp_path / "table.nc", engine="h5netcdf")
            table = xr.open_dataset(tmp_path / "table.nc", engine="h5netcdf").load()
        elif stored == "zarr":
            pytest.importorskip("zarr")
            table.to_zarr(tmp_path / "table.zarr", zarr_format=2)
            table = xr.open_zarr(tmp_path / "table.zarr").load()
        table.close()
        back = xref.from_table(table)
        assert (back.dims, back.shape) == (ds[name].dims, ds[name].shape)
        assert back.data.kind == ds[name].data.kind
        assert (back.data == ds[name].data).all()
        for one, other in zip(back.values.ravel(), ds[name].values.ravel(), strict=True):
            assert one == other
            assert repr(one) == repr(other)
        if name == "boxes":
            np.testing.assert_array_equal(back.h5ref.resolve(), ds[name].h5ref.resolve())


def test_a_table_of_boxes_has_only_the_columns_they_need(mixed: Path) -> None:
    with open_h5(mixed) as ds:
        assert not {"stride", "item_count", "rank"} & set(ds["boxes"].h5ref.table())
        found = ds["rois"].h5ref.table()
        assert {"stride", "count", "block", "item_count", "rank"} <= set(found)
        assert found["item_start"].shape == (3 + 3, 2)  # points and blocks


def test_paths_of_a_table_are_opened_in_another_file(mixed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["first"] = 1  # addresses are others
        file["data"] = -DATA
    with open_h5(mixed) as ds:
        table = ds["boxes"].h5ref.table()
    back = xref.from_table(table, other)
    np.testing.assert_array_equal(back.h5ref.resolve()[1], -DATA[1:3, :3])
    empty = tmp_path / "empty.h5"
    h5py.File(empty, "w").close()
    with pytest.raises(DanglingReferenceError, match=r"nothing at '/data', which 5 references"):
        xref.from_table(table, empty)


def test_targets_without_a_path_are_opened_by_address(tmp_path: Path) -> None:
    path = tmp_path / "unnamed.h5"
    with h5py.File(path, "w") as file:
        file["a"] = [1, 2, 3]
        file["b"] = h5py.SoftLink("/a")
        write_references(file, "refs", [file["a"].ref], dtype=h5py.ref_dtype)
    with open_h5(path) as ds:
        table = ds["refs"].h5ref.table()
        table["path"][0] = ""
        assert xref.from_table(table)[0].item() == ds["refs"][0].item()


def short(table: xr.Dataset) -> xr.Dataset:
    return table.drop_vars(["stride", "count", "block"])


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("no column 'kind'", lambda t: t.drop_vars("kind")),
        ("no column 'path'", lambda t: t.drop_vars("path")),
        ("no column 'start'", lambda t: t.drop_vars("start")),
        ("selections", lambda t: t.assign(selection=t.selection.where(False, "odd"))),
        ("no integers", lambda t: t.assign(start=t.start - 100)),
        ("no hyperslab", lambda t: t.assign(stride=0 * t.stride)),
        ("items", lambda t: t.assign(item_count=t.item_count + 100)),
        ("items", lambda t: t.assign(item_first=t.item_first - 1)),
        ("no integers", lambda t: t.assign(start=t.start + 0.5)),
        ("no integers", lambda t: t.assign(start=t.start.astype(str))),
        ("no hyperslab", lambda t: t.assign(count=2**60 + 0 * t["count"])),
        ("'rank'", lambda t: t.assign(rank=0 * t["rank"] - 1)),
        ("kinds", lambda t: t.assign(kind=t.kind.where(False, "odd"))),
        ("lies along", lambda t: t.assign(path=t.path.isel({t.path.dims[0]: 0}))),
        ("no hyperslab", lambda t: short(t).assign(stop=t.start - 1)),
        ("start is past its end", lambda t: t.assign(item_stop=t.item_start)),
    ],
)
def test_inconsistent_columns_are_refused(mixed: Path, message: str, change: Any) -> None:
    with open_h5(mixed) as ds:
        table = change(ds["rois"].h5ref.table())
    with pytest.raises((CorruptFileError, KeyError), match=message):
        xref.from_table(table)


@given(drawn=files())
def test_random_references_survive_a_round_trip_through_a_table(
    drawn: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("plain") / "file.h5"
    drawn.write(path)
    with open_h5(path) as ds:
        back = xref.from_table(ds["refs"].h5ref.table())
        assert (back.data == ds["refs"].data).all()


def test_tables_may_be_selected_from_and_transposed(mixed: Path) -> None:
    with open_h5(mixed) as ds:
        rois = ds["rois"]
        table, (one, two) = rois.h5ref.table(), rois.dims
        for key in ({one: [1, 0]}, {one: 1, two: [2, 0, 0]}, {two: slice(None, None, 2)}):
            back = xref.from_table(table.isel(key))
            assert (back.data == rois.isel(key).data).all()
        turned = xref.from_table(table.transpose())
        assert turned.dims == (two, one)
        assert (turned.data == rois.T.data).all()
        mixed_up = table.assign(start=table["start"].transpose(..., one))
        assert (xref.from_table(mixed_up).data == rois.data).all()


def test_dangling_references_stay_dangling(mixed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    shutil.copy(mixed, copy)
    with open_h5(mixed) as ds:
        for name in ("boxes", "objects"):
            table = ds[name].h5ref.table()
            table["kind"] = table["kind"].astype(object)
            for column, value in (("kind", "dangling"), ("address", 5), ("path", "")):
                table[column][-1] = value
            last = xref.from_table(table)[-1].item()
            assert (bool(last), last.kind, last.address) == (True, "dangling", 5)
            with pytest.raises(DanglingReferenceError):
                last.resolve()
            assert not xref.from_table(table, copy)[-1].item()


def test_paths_through_external_links_open_the_other_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "real.h5", "w") as file:
        file["first"] = 1
        file["data"] = DATA
        write_references(file, "rois", [file["data"].regionref[:2, :3]])
    with h5py.File(tmp_path / "master.h5", "w") as file:
        file["other"] = -DATA
        file["data"] = h5py.ExternalLink("real.h5", "/data")
    with open_h5(tmp_path / "real.h5") as ds:
        table = ds["rois"].h5ref.table()
    back = xref.from_table(table, tmp_path / "master.h5")
    np.testing.assert_array_equal(back.h5ref.resolve()[0], DATA[:2, :3])
    assert back[0].item().filename == str(tmp_path / "real.h5")


def test_objects_without_a_path_are_not_searched_in_another_file(
    mixed: Path, tmp_path: Path
) -> None:
    with open_h5(mixed) as ds:
        table = ds["boxes"].h5ref.table()
    table["path"][:2] = ""
    assert len(xref.from_table(table)) == 5
    shutil.copy(mixed, tmp_path / "copy.h5")
    with pytest.raises(DanglingReferenceError, match="2 references of the table"):
        xref.from_table(table, tmp_path / "copy.h5")


def test_references_from_a_table_stay_columns_in_xarray(mixed: Path) -> None:
    """xarray does not cache, compare or divide them as it does with arrays of objects."""
    with open_h5(mixed) as ds:
        made = [
            xref.from_table(ds["rois"].h5ref.table()),
            ds["data"].h5ref.regions([[0, 0]], (2, 2)),
        ]
        for references in made:
            assert type(references.variable) is type(ds["rois"].variable)
            assert isinstance(references.load().variable._data, xref.ReferenceArray)
