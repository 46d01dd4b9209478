"""Coordinates of another length than their target, along an unlimited dimension.

A dataset may be shorter or longer than its coordinate. The coordinate is in a result as long
as the coordinate holds each selected element. The oracle is NumPy's index of the coordinate.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import strategies
import xarray as xr
from samples import open_h5
from strategies import listed_points, write_references

from xref.errors import UnreadableMemberWarning

N_TARGET, N_COLUMNS = 5, 3
TIMES = np.arange(8) * 10.0
PLACES = np.arange(24.0).reshape(8, 3)


def write(path: Path, n: int, *, fixed: str = "") -> None:
    """Write two targets along the scale ``t`` of n elements; ``c`` has five rows, ``d`` two.

    ``place`` is a coordinate along (t, x) with n rows. ``fixed`` names what has a fixed size.
    """
    limit = dict.fromkeys(("t", "place")) | ({fixed: n} if fixed else {})
    with h5py.File(path, "w") as file:
        t = file.create_dataset("t", data=TIMES[:n], maxshape=(limit["t"],))
        x = file.create_dataset("x", data=np.arange(N_COLUMNS) * 100.0)
        t.make_scale("t")
        x.make_scale("x")
        shapes = {"c": (N_TARGET, N_COLUMNS), "d": (2, N_COLUMNS), "line": (N_TARGET,)}
        for name, shape in shapes.items():
            data = np.arange(np.prod(shape), dtype="f8").reshape(shape)
            file.create_dataset(name, data=data, maxshape=(None, *shape[1:]))
        file.create_dataset("place", data=PLACES[:n], maxshape=(limit["place"], N_COLUMNS))
        for name in ("c", "d", "place", "line"):
            file[name].dims[0].attach_scale(t)
            if name != "line":
                file[name].dims[1].attach_scale(x)
                file[name].attrs["coordinates"] = "place"
        c, d, line = file["c"], file["d"], file["line"]
        del file["place"].attrs["coordinates"]
        write_references(file, "boxes", [c.regionref[k : k + 2, 1:] for k in (0, 1)])
        write_references(file, "two", [c.regionref[1:2, :2], d.regionref[1:2, :2]])
        write_references(file, "beyond", [c.regionref[0:2], c.regionref[3:5]])
        write_references(file, "gaps", [line.regionref[0:3:2]])
        points = listed_points([[2, 1], [0, 2], [2, 1]])
        write_references(file, "points", [strategies.make_region(c, points)])
        write_references(file, "lines", [line.regionref[0:3], line.regionref[1:2]])
        write_references(file, "objects", [line.ref], dtype=h5py.ref_dtype)
        write_references(file, "short", [d.ref], dtype=h5py.ref_dtype)


@contextmanager
def opened(path: Path) -> Iterator[xr.Dataset]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnreadableMemberWarning)
        with open_h5(path) as ds:
            yield ds


@pytest.fixture(params=[3, 8], ids=["shorter", "longer"])
def path(request: Any, tmp_path: Path) -> Path:
    """A file whose coordinates are shorter or longer than ``c``, and longer than ``d``."""
    write(tmp_path / "f.h5", request.param)
    return tmp_path / "f.h5"


def test_one_region_has_its_part_of_the_coordinate(path: Path) -> None:
    with opened(path) as ds:
        found = ds["c"].h5ref.region_reference((slice(0, 2), slice(1, 3))).resolve()
        np.testing.assert_array_equal(found["t"], [0, 10])
        np.testing.assert_array_equal(found["place"], PLACES[:2, 1:])
        first = ds["boxes"][1].h5ref.resolve()
        np.testing.assert_array_equal(first["t"], [10, 20])


@pytest.mark.parametrize("chunks", [None, "auto"])
def test_stacked_boxes(path: Path, chunks: Any) -> None:
    with opened(path) as ds:
        found = ds["boxes"].h5ref.resolve(chunks=chunks)
        np.testing.assert_array_equal(found["t"], [[0, 10], [10, 20]])
        np.testing.assert_array_equal(found["place"], [PLACES[0:2, 1:], PLACES[1:3, 1:]])
        both = ds["two"].h5ref.resolve(chunks=chunks)
        np.testing.assert_array_equal(both["t"], [10])
        np.testing.assert_array_equal(both["place"], PLACES[1:2, :2])


@pytest.mark.parametrize("name", ["boxes", "two"])
def test_ragged_samples(path: Path, name: str) -> None:
    rows = {"boxes": [0, 0, 1, 1, 1, 1, 2, 2], "two": [1, 1, 1, 1]}[name]
    columns = {"boxes": [1, 2] * 4, "two": [0, 1] * 2}[name]
    with opened(path) as ds:
        found = ds[name].h5ref.resolve("ragged")
        np.testing.assert_array_equal(found["t"], TIMES[rows])
        np.testing.assert_array_equal(found["place"], PLACES[rows, columns])
        # A part of the samples reads the same values.
        np.testing.assert_array_equal(found["place"][2:4], PLACES[rows, columns][2:4])


def test_joined_rows(path: Path) -> None:
    with opened(path) as ds:
        found = ds["boxes"].h5ref.resolve("concat", concat_dim="t")
        np.testing.assert_array_equal(found["t"], [0, 10, 10, 20])
        np.testing.assert_array_equal(found["place"], PLACES[[0, 1, 1, 2], 1:])
        both = ds["two"].h5ref.resolve("concat", concat_dim="t")
        np.testing.assert_array_equal(both["t"], [10, 10])


def test_points_and_gaps_and_padding(path: Path) -> None:
    with opened(path) as ds:
        for layout in ("stack", "pad"):
            found = ds["points"].h5ref.resolve(layout)
            np.testing.assert_array_equal(np.squeeze(found["t"]), [20, 0, 20])
            np.testing.assert_array_equal(np.squeeze(found["x"]), [100, 200, 100])
        np.testing.assert_array_equal(ds["gaps"].h5ref.resolve()["t"], [0, 20])
        lines = ds["lines"].h5ref.resolve("ragged")
        np.testing.assert_array_equal(lines["t"], [0, 10, 20, 10])


@pytest.mark.parametrize("layout", ["stack", "ragged", "concat"])
def test_a_whole_target_has_the_begin_of_a_longer_coordinate(
    tmp_path: Path, layout: str
) -> None:
    write(tmp_path / "f.h5", 8)
    with opened(tmp_path / "f.h5") as ds:
        whole = ds["objects"].h5ref.resolve(layout)
        np.testing.assert_array_equal(whole["t"], TIMES[:N_TARGET])
        short = ds["short"].h5ref.resolve(layout)
        expected = np.repeat(TIMES[:2], N_COLUMNS) if layout == "ragged" else TIMES[:2]
        np.testing.assert_array_equal(short["t"], expected)


@pytest.mark.parametrize("layout", ["stack", "ragged", "concat"])
@pytest.mark.parametrize("name", ["objects", "beyond"])
def test_a_coordinate_without_a_selected_element_is_left_out(
    tmp_path: Path, layout: str, name: str
) -> None:
    write(tmp_path / "f.h5", 3)
    with open_h5(tmp_path / "f.h5") as ds:
        with pytest.warns(UnreadableMemberWarning, match="coordinate 't'|shape") as warned:
            found = ds[name].h5ref.resolve(layout)
        assert any("(3,), its axes have (5,)" in str(w.message) for w in warned)
        positions = found["t"].values if "t" in found.coords else np.arange(5)
        assert set(np.ravel(positions)) <= set(range(5))  # positions, no values


def test_only_unlimited_dimensions_may_differ(tmp_path: Path) -> None:
    # The scale is unlimited, the coordinate along it has a fixed size: as the scale.
    write(tmp_path / "place.h5", 3, fixed="place")
    with opened(tmp_path / "place.h5") as ds:
        np.testing.assert_array_equal(ds["boxes"].h5ref.resolve()["place"][1], PLACES[1:3, 1:])
        assert "place" in ds["boxes"].h5ref.resolve("ragged").coords
    write(tmp_path / "t.h5", 3, fixed="t")
    with pytest.warns(UnreadableMemberWarning), open_h5(tmp_path / "t.h5") as ds:
        assert "t" not in ds["boxes"].h5ref.resolve().coords


@pytest.mark.parametrize("layout", ["stack", "ragged", "concat"])
def test_many_small_targets_are_shorter_than_their_coordinate(
    tmp_path: Path, layout: str
) -> None:
    # Datasets that are read together have no selections, only extents.
    n, path = 200, tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        t = file.create_dataset("t", data=TIMES, maxshape=(None,))
        t.make_scale("t")
        for k in range(n):
            file[f"s/{k}"] = np.full(2, k)
            file[f"s/{k}"].dims[0].attach_scale(t)
        refs = [file[f"s/{k}"].ref for k in range(n)]
        write_references(file, "refs", refs, dtype=h5py.ref_dtype)
    with opened(path) as ds:
        found = ds["refs"].h5ref.resolve(layout)
        expected = TIMES[:2] if layout == "stack" else np.tile(TIMES[:2], n)
        np.testing.assert_array_equal(found["t"], expected)
