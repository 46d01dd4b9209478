"""Selections beyond the extent of their dataset, growing with it, or larger than memory."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from strategies import everything, hyperslabs, listed_points, write_references, write_regions

import xref
from xref import SelectionError


def test_a_region_beyond_a_shrunk_dataset_is_named_in_the_error(
    path: Path, open_refs: Callable[..., xr.DataArray]
) -> None:
    values = np.arange(2000).reshape(40, 50)
    keys = [np.s_[2:6, 10:30], np.eye(40, 50, dtype=bool), np.s_[:, [1, 5, 9, 30]]]
    options = {"chunks": (10, 10), "compression": "gzip", "maxshape": (None, 50)}
    write_regions(path, {"t": values}, {"refs": [("t", key) for key in keys]}, **options)
    with h5py.File(path, "r+") as file:
        file["t"].resize((39, 50))
    regions = open_refs(path)
    for row in (1, 2):
        message = rf"file\.h5: region reference {row} of '/refs'.*\(39, 50\)"
        with pytest.raises(xref.SelectionError, match=message):
            regions[row : row + 1].h5ref.resolve()
        with pytest.raises(xref.SelectionError, match=r"\(39, 50\)"):
            regions.data[row].resolve()
    np.testing.assert_array_equal(regions.data[0].resolve(), values[2:6, 10:30])


@pytest.mark.parametrize(
    "key", [np.s_[3:7, 2:4], np.s_[:, 5], np.s_[[1, 6], :], np.s_[::3, ::2]], ids=str
)
@pytest.mark.parametrize("chunks", [(2, 3), (8, 6)])
def test_a_region_beyond_a_shrunk_dataset_is_an_error(
    path: Path, open_refs: Callable[..., xr.DataArray], key: Any, chunks: tuple[int, ...]
) -> None:
    write_regions(
        path,
        {"t": np.arange(48).reshape(8, 6)},
        {"refs": [("t", np.s_[:2, :2]), ("t", key)]},
        chunks=chunks,
        maxshape=(None, None),
    )
    with h5py.File(path, "a") as file:
        file["t"].resize((6, 5))
    refs = open_refs(path)
    for resolve in (refs.values[1].resolve, refs[1:].h5ref.resolve, refs.h5ref.resolve):
        with pytest.raises(SelectionError, match=r"beyond the extent \(6, 5\)") as caught:
            resolve()
        start, stop = refs.values[1].bounds
        assert f"from {start} to {stop}" in str(caught.value)
        assert "reference" in str(caught.value).lower()
    assert "reference 1 of" in str(caught.value)
    expected = np.arange(48).reshape(8, 6)[:2, :2]
    np.testing.assert_array_equal(refs.values[0].resolve(), expected)


def test_points_beyond_a_dataset_shrunk_by_one_row_are_an_error(
    path: Path, open_refs: Callable[..., xr.DataArray]
) -> None:
    make = listed_points([[0, 0], [7, 1]])
    values = np.arange(16).reshape(8, 2)
    write_regions(path, {"t": values}, {"refs": [("t", make)]}, maxshape=(None, 2))
    with h5py.File(path, "a") as file:
        file["t"].resize((7, 2))
    with pytest.raises(SelectionError, match=r"\(7, 2\)"):
        open_refs(path).values[0].resolve()


def test_a_region_of_all_elements_grows_with_the_dataset(
    path: Path, open_refs: Callable[..., xr.DataArray]
) -> None:
    values = np.arange(6).reshape(2, 3)
    write_regions(path, {"t": values}, {"refs": [("t", everything)]}, maxshape=(None, 3))
    with xr.open_dataset(path, engine="h5ref") as dataset:
        assert dataset["refs"].values[0].shape == (2, 3)
    with h5py.File(path, "a") as file:
        file["t"].resize((4, 3))
        file["t"][2:] = [[6, 7, 8], [9, 10, 11]]
    (reference,) = open_refs(path).values
    assert reference.bounds == ((0, 0), (4, 3))
    np.testing.assert_array_equal(reference.resolve(), np.arange(12).reshape(4, 3))


def test_distant_points_do_not_allocate_the_elements_between_them(
    path: Path, open_refs: Callable[..., xr.DataArray]
) -> None:
    side = 2**17
    spots = np.array([[i * (side // 8), side - 1 - i * (side // 9)] for i in range(8)])
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(
            "t", (side, side), dtype="u1", chunks=(256, 256), fillvalue=7
        )
        dataset[tuple(spots[3])] = 42
        write_references(file, "refs", [listed_points(spots)(dataset)])
    (reference,) = open_refs(path).values
    tracemalloc.start()
    try:
        values = reference.resolve().values
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert values.tolist() == [7, 7, 7, 42, 7, 7, 7, 7]
    assert peak < 64 << 20
    start, stop = reference.bounds
    assert math.prod(b - a for a, b in zip(start, stop, strict=True)) > 2**33


def test_corners_of_a_huge_dataset_are_a_small_outer_product(
    path: Path, open_refs: Callable[..., xr.DataArray]
) -> None:
    side = 2**17
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("t", (side, side), dtype="u1", chunks=(256, 256))
        dataset[0, side - 1] = 9
        corners = [((y, x), (1, 1)) for y in (0, side - 1) for x in (0, side - 1)]
        write_references(file, "refs", [hyperslabs(*corners)(dataset)])
    tracemalloc.start()
    try:
        values = open_refs(path).values[0].resolve().values
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert values.tolist() == [[0, 9], [0, 0]]
    assert peak < 64 << 20


def test_a_too_large_result_is_refused_before_it_is_allocated(
    path: Path, open_refs: Callable[..., xr.DataArray]
) -> None:
    side = 2**17
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("t", (side, side), dtype="u1", chunks=(256, 256))
        write_references(file, "refs", [dataset.regionref[...]])
    (reference,) = open_refs(path).values
    assert reference.shape == (side, side)
    tracemalloc.start()
    try:
        with pytest.raises(xref.XrefError, match="large_results"):
            reference.resolve().load()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20
