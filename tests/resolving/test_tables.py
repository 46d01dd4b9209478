"""Tables of references: one row for each reference, without reading target data."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from rois import STARTS
from strategies import everything, write_references, write_regions


@pytest.mark.parametrize(
    "name", ["data_rois", "data_ragged", "data_points", "data_nulls", "targets"]
)
def test_table_columns_equal_h5py(rois_path: Path, rois_ds: xr.Dataset, name: str) -> None:
    table = rois_ds[name].h5ref.table()
    with h5py.File(rois_path) as file:
        for row, reference in enumerate(file[name][...]):
            at = table.isel({rois_ds[name].dims[0]: row})
            if not reference:
                assert at["kind"] == "null"
                assert not at["path"].item()
                assert at["npoints"] == 0
                continue
            target = h5py.Dataset(h5py.h5r.dereference(reference, file.id))
            space = h5py.h5r.get_region(reference, file.id)
            low, high = space.get_select_bounds()
            assert at["path"] == target.name
            assert at["address"] == h5py.h5o.get_info(target.id).addr
            assert (at["kind"], at["filename"]) == ("dataset", str(rois_path))
            assert at["npoints"] == space.get_select_npoints()
            assert tuple(at["start"].values) == low
            assert tuple(at["stop"].values) == tuple(h + 1 for h in high)
            shape = target[reference].shape
            assert tuple(at["shape"].values[: at["ndim"].item()]) == shape
            points = space.get_select_type() == h5py.h5s.SEL_POINTS
            assert at["selection"] == ("points" if points else "hyperslab")


def test_tables_of_objects_and_grids_have_the_dimensions_of_the_variable(
    rois_ds: xr.Dataset,
) -> None:
    table = rois_ds["mixed"].h5ref.table()
    assert table["kind"].values.tolist() == ["dataset", "group", "datatype", "null"]
    assert table["path"].values.tolist() == ["/parts/a", "/more", "/type", ""]
    grid = rois_ds["data_rois_grid"]
    assert grid.h5ref.table()["npoints"].dims == grid.dims
    assert grid.h5ref.table()["start"].shape == (2, 3, 2)
    part = grid[1, 1:]
    np.testing.assert_array_equal(part.h5ref.table()["start"], [STARTS[4], STARTS[5]])


def test_references_along_a_dimension_named_axis_have_a_table(tmp_path: Path) -> None:
    path = tmp_path / "axis.h5"
    write_regions(path, {"d": np.arange(8)}, {"r": [("d", np.s_[0:2]), ("d", np.s_[2:6])]})
    with xr.open_dataset(path, engine="h5ref") as ds:
        r = ds["r"].rename({ds["r"].dims[0]: "axis"})
        assert r.h5ref.table()["stop"].values.tolist() == [[2], [6]]
        assert r.h5ref.resolve("ragged")["row_size"].values.tolist() == [2, 4]


def test_a_region_that_does_not_fit_keeps_the_rows_of_others(tmp_path: Path) -> None:
    path = tmp_path / "shrunk.h5"
    with h5py.File(path, "w") as file:
        d = file.create_dataset("d", data=np.arange(10), chunks=(2,), maxshape=(None,))
        write_references(file, "r", [d.regionref[0:2], d.regionref[8:10], everything(d)])
        d.resize((6,))
    with xr.open_dataset(path, engine="h5ref") as ds:
        table = ds["r"].h5ref.table()
    assert table["fits"].values.tolist() == [True, False, True]
    assert table["npoints"].values.tolist() == [2, 2, 6]
    assert table["stop"].values.tolist() == [[2], [10], [6]]


def test_a_reference_to_a_dataset_with_ordered_attributes_has_a_table(tmp_path: Path) -> None:
    path = tmp_path / "one.h5"
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_dataset("data", data=np.arange(4.0), track_order=True)
        data.attrs["units"] = "m"
        write_references(file, "rois", [data.regionref[1:3]])
    with xr.open_dataset(path, engine="h5ref") as ds:
        assert ds["rois"].h5ref.table()["path"].values.tolist() == ["/data"]
