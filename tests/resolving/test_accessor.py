"""``.h5ref``: items one after the other, and the summary of a Dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from rois import DATA, regions_of


def test_items_resolve_references_one_by_one(rois_path: Path, rois_ds: xr.Dataset) -> None:
    for name in ("data_rois", "data_points", "data_nulls", "data_ragged"):
        items = list(rois_ds[name].h5ref.items())
        assert [index for index, _ in items] == list(range(rois_ds[name].size))
        for (_, got), expected in zip(items, regions_of(rois_path, name), strict=True):
            assert (got is None) == (expected is None)
            if got is not None:
                np.testing.assert_array_equal(got, expected)
    grid = dict(rois_ds["data_rois_grid"].h5ref.items())
    np.testing.assert_array_equal(grid[1, 0], DATA[7:11, 7:13])
    mixed = dict(rois_ds["mixed"].h5ref.items())
    assert isinstance(mixed[0], xr.DataArray)
    assert isinstance(mixed[1], xr.Dataset)
    assert mixed[2] == np.dtype("f4")
    assert mixed[3] is None


def test_summaries_list_reference_variables(rois_ds: xr.Dataset) -> None:
    listed = rois_ds.h5ref.references
    assert "data" not in listed
    assert "region" in listed["data_rois"]
    assert "object" in listed["equal"]
