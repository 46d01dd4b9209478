"""A reference to a changed variable selects exactly its elements, or raises an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from samples import open_h5
from strategies import write_references

import xref
from xref.errors import SelectionError

CUBE = np.random.default_rng(0).permutation(4 * 10 * 6).reshape(4, 10, 6).astype("f4")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write variables with labels, without labels, and of other types."""
    path = tmp_path_factory.mktemp("origins") / "file.h5"
    field = xr.Dataset(
        {"cube": (("time", "lat", "lon"), CUBE)},
        coords={
            "time": pd.date_range("2020-01-01", periods=4),
            "lat": np.linspace(90, 0, 10),
            "lon": [1, 2, 2, 3, 4, 5],  # no labels that tell
        },
    )
    xref.to_hdf5(field, path)
    with h5py.File(path, "a") as file:
        file["square"] = np.arange(16).reshape(4, 4)
        file["names"] = np.array(["b", "a", "c", "d"], dtype=h5py.string_dtype())
        file["fixed"] = np.array([b"ab", b"cd"])
        file["arrays"] = np.zeros(3, dtype=[("x", "i4")])
        file.create_dataset("items", (3,), "(2,)i4")[:] = [[1, 2], [3, 4], [5, 6]]
        squares = [file["square"].regionref[k] for k in range(4)]
        write_references(file, "rois", squares)
    return path


KINDS = {
    "lazy": lambda x: x,
    "in memory": lambda x: x.copy().load(),
    "dask": lambda x: x.chunk(2),
    "dask, cut again": lambda x: x.chunk(2).chunk(3),
}

CHANGES: dict[str, Any] = {
    "whole": lambda x: x,
    "backwards": lambda x: x[::-1],
    "a part": lambda x: x[1:3],
    "steps": lambda x: x[::2],
    "one": lambda x: x[2],
    "list": lambda x: x[[0, 2, 3]],
    "disorder": lambda x: x[[2, 0, 1]],
    "twice the same": lambda x: x[[1, 1]],
    "rolled": lambda x: x.roll({x.dims[0]: 1}),
    "shifted": lambda x: x.shift({x.dims[0]: 1}, fill_value=0) if x.dtype.kind == "f" else x,
    "turned": lambda x: x.transpose(),
    "renamed": lambda x: x.rename({d: f"{d}_new" for d in x.dims}),
    "turned and renamed": lambda x: x.T.rename(dict(zip(x.T.dims, "pqr", strict=False))),
    "exchanged": lambda x: xr.concat([x[2:], x[:2]], x.dims[0]),
    "replaced": lambda x: x.copy(data=np.zeros(x.shape, x.dtype)),
    "computed": lambda x: x == x,
    "sorted": lambda x: x.sortby(x[(slice(None), *[0] * (x.ndim - 1))]),
    "expanded": lambda x: x.expand_dims("extra"),
    "stacked": lambda x: x.stack(all=x.dims),
    "no labels": lambda x: x.drop_vars(list(x.coords))[::-1],
    "other labels": lambda x: x.isel({x.dims[-1]: slice(1, 3)}).assign_coords(
        {x.dims[-1]: [1, 2]}
    ),
    "points": lambda x: x.isel({x.dims[0]: xr.DataArray([2, 0], dims="p")}),
}

REFUSALS = (TypeError, SelectionError)


def flat(values: Any) -> list[Any]:
    return np.ravel(np.asarray(values)).tolist()


CASES = [
    (name, kind, change)
    for name in ("cube", "square", "names", "lat", "rois")
    for kind in ("lazy", "in memory", "dask")
    for change in CHANGES
    # References are not divided into Dask blocks, and cannot be sorted.
    if (name, kind) != ("rois", "dask") and (name, change) != ("rois", "sorted")
]


@pytest.mark.sampled(53)
@pytest.mark.parametrize(("name", "kind", "change"), CASES)
def test_a_changed_variable_refers_to_its_elements_or_raises(
    path: Path, name: str, kind: str, change: str
) -> None:
    with open_h5(path) as ds:
        changed = CHANGES[change](KINDS[kind](ds[name]))
        try:
            region = changed.h5ref.region_reference()
        except REFUSALS:
            assert change != "whole"
            is_lazy = kind == "lazy" and name in ("cube", "square", "rois")
            known = {"a part", "steps", "one", "list", "turned", "renamed"}
            assert not is_lazy or change not in known - ({"list"} if name == "rois" else set())
            return
        shown = changed.values
        if change.startswith("turned"):  # by name, the axes are those of the dataset
            shown = shown.T
        assert flat(region.resolve().values) == flat(shown)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["cube", "square", "names", "fixed", "arrays", "items", "lat"])
def test_every_variable_has_a_reference(path: Path, kind: str, name: str) -> None:
    with open_h5(path) as ds:
        expected = ds.h5ref.reference(name)
        variable = KINDS[kind](ds[name])
        for changed in (variable, variable[::-1], variable.rename("other"), variable.T):
            assert changed.h5ref.reference() == expected


def test_a_variable_in_memory_keeps_its_reference(path: Path) -> None:
    with open_h5(path) as ds:
        assert ds["square"].values.sum()
        assert ds["square"].h5ref.region_reference(1).bounds == ((1, 0), (2, 4))
        changed = ds["square"].copy()
        changed[0, 0] = 99
        with pytest.raises(TypeError, match="nothing tells which elements of /square"):
            changed.h5ref.region_reference()


def test_files_with_equal_labels_are_distinguished_by_values(
    path: Path, tmp_path: Path
) -> None:
    with open_h5(path) as ds:
        xref.to_hdf5(ds[["cube"]] + 1, tmp_path / "other.h5")
        with open_h5(tmp_path / "other.h5") as other:
            for one, two in ((ds, other), (ds.chunk(), other.chunk())):
                mixed = xr.concat([one["cube"][:2], two["cube"][2:]], "time")
                with pytest.raises(TypeError, match="nothing tells"):
                    mixed.h5ref.region_reference()


def test_masks_are_aligned_by_label(path: Path) -> None:
    with open_h5(path) as ds:
        cube, mask = ds["cube"], ds["lat"] > 45
        over = (cube.copy() > 50)[:, ::-1, :]
        for given_mask in (mask, mask[::-1], mask[:7], over):
            expected = cube.copy().where(given_mask).values
            region = cube.h5ref.region_reference(given_mask)
            assert flat(region.resolve().values) == flat(expected[~np.isnan(expected)])
        line = cube[0, :, 0]
        region = line.h5ref.region_reference(mask[::-1])
        assert flat(region.resolve().values) == flat(CUBE[0, mask.values, 0])
        with pytest.raises(IndexError, match="lies along"):
            cube.h5ref.region_reference(mask.rename(lat="height"))
        with pytest.raises(IndexError, match="is a DataArray"):
            cube.h5ref.region_reference(0, xr.DataArray([1, 2], dims="p"))


@given(data=st.data())
def test_an_index_counts_within_the_selected_elements(path: Path, data: st.DataObject) -> None:
    with open_h5(path) as ds:
        kind = data.draw(st.sampled_from(("lazy", "dask", "dask, cut again")))
        part = KINDS[kind](ds["cube"])
        if kind == "lazy":
            lat = data.draw(st.sampled_from((slice(2, 9), slice(None, None, 3), [1, 5, 6])))
            part = part.isel(lat=lat).isel(lon=slice(1, None))
            part = part.transpose(*data.draw(st.permutations(part.dims)))
        key = tuple(data.draw(st.integers(-n, n - 1)) for n in part.shape)
        region = part.h5ref.region_reference(key)
        assert flat(region.resolve().values) == [part.copy().values[key]]


def test_boxes_of_a_transposed_variable_count_along_its_axes(path: Path) -> None:
    with open_h5(path) as ds:
        turned, values = ds["square"].T, np.arange(16).reshape(4, 4).T
        boxes = turned.h5ref.regions([[0, 1], [2, 0]], (2, 3))
        found = boxes.h5ref.resolve().values
        for k, (a, b) in enumerate(((0, 1), (2, 0))):
            np.testing.assert_array_equal(found[k].T, values[a : a + 2, b : b + 3])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("large") / "file.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("line", (1 << 40,), "i1", chunks=(1 << 20,))
        file.create_dataset("cube", (1 << 12,) * 3, "i1", chunks=(1 << 7,) * 3)
    return path


def test_datasets_larger_than_memory_have_references(large: Path) -> None:
    """Regular positions are ranges, which are never expanded into arrays."""
    with open_h5(large, chunks={}) as ds:
        line, cube = ds["line"].h5ref, ds["cube"].T.h5ref
        assert line.reference().path == "/line"
        assert line.region_reference(slice(5, None, 7)).size == -(-((1 << 40) - 5) // 7)
        assert line.region_reference(...).selection.kind == "all"
        assert line.regions([1 << 39], 5).shape == (1,)
        assert cube.reference().path == "/cube"
    with open_h5(large) as ds:
        assert ds["cube"].T.h5ref.region_reference(0).shape == (4096, 4096, 1)
        assert ds["line"][:: 1 << 20].h5ref.region_reference().size == 1 << 20


@pytest.mark.parametrize("chunks", [None, {}])
def test_a_region_of_a_result_of_where_has_the_elements_it_kept(
    path: Path, chunks: Any
) -> None:
    with open_h5(path, chunks=chunks) as ds:
        left = ds["cube"].where(ds["cube"] > 100)
        region = left.h5ref.region_reference()
        assert region.path == "/cube"
        assert flat(region.resolve().values) == flat(CUBE[CUBE > 100])
        part = ds["cube"].isel(lat=slice(2, 9)).where(ds["lat"] > 45, drop=True)
        region = part.h5ref.region_reference()
        assert flat(region.resolve().values) == flat(CUBE[:, 2:5])
        for computed in (left + 1, left.rename("other"), left.drop_vars(list(left.coords))):
            with pytest.raises(TypeError, match="was computed"):
                computed.h5ref.region_reference()
        with pytest.raises(TypeError, match="was computed"):
            left.h5ref.region_reference(0)
