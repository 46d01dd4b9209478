"""One reference, and arrays of them as duck arrays of NumPy, xarray and dask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.base
import h5py
import numpy as np
import pytest
import xarray as xr
from strategies import region_of, write_references, write_regions

import xref
from xref import ObjectReference, ReferenceArray, RegionReference
from xref.objects import paths as names

DATA = np.arange(2000, dtype="i4").reshape(40, 50)


def write(path: Path, libver: Any = None) -> Path:
    with h5py.File(path, "w", libver=libver) as file:
        data = file.create_dataset("data", data=DATA)
        other = file.create_dataset("deep/other", data=DATA[::-1] * 2)
        regions = [data.regionref[i : i + 4, 2 * i : 2 * i + 6] for i in range(11)]
        write_references(file, "line", [*regions, None])
        grid = regions[:6] + [other.regionref[:4, :6]] * 6
        write_references(file, "grid", grid, (3, 4))
        write_references(file, "zero", [regions[3]], ())
        objects = file.create_dataset("objects", (5,), dtype=h5py.ref_dtype)
        objects[:4] = np.array(
            [data.ref, other.ref, data.ref, file["deep"].ref], h5py.ref_dtype
        )
        kinds = [np.s_[...], np.eye(40, 50, dtype=bool), np.s_[2:9:3, 1:4], np.s_[:, [1, 7]]]
        write_references(file, "kinds", [data.regionref[key] for key in kinds])
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "refs.h5")


@pytest.fixture
def ds(path: Path) -> Iterator[xr.Dataset]:
    with xr.open_dataset(path, engine="h5ref") as opened:
        yield opened


def same(array: Any, objects: Any) -> bool:
    """Compare a ReferenceArray with a NumPy array of the elements it should hold."""
    assert isinstance(array, ReferenceArray)
    assert array.shape == objects.shape
    return np.asarray(array).tolist() == objects.tolist()


# --- elements ---------------------------------------------------------------------------


def test_equal_elements_have_one_hash_and_differ_from_others(ds: xr.Dataset) -> None:
    line, objects = ds["line"].values, ds["objects"].values
    assert line[0] == ds["grid"].values[0, 0] == ds["line"].data[0]
    assert hash(line[0]) == hash(ds["grid"].values[0, 0])
    assert line[0] != line[1]
    assert line[3] == ds["zero"].values.item()
    assert objects[0] == objects[2] != objects[1]
    assert line[0].object == objects[0]
    assert line[0] != objects[0]
    assert len(set(line)) == 12
    assert len({*objects}) == 4
    assert line[0] != None  # noqa: E711
    assert objects[0] != 5


def test_two_opens_of_a_file_give_equal_elements_and_a_copy_does_not(
    path: Path, tmp_path: Path, ds: xr.Dataset
) -> None:
    copy = write(tmp_path / "copy.h5")
    with xr.open_dataset(path, engine="h5ref") as again:
        assert again["line"].values.tolist() == ds["line"].values.tolist()
    with xr.open_dataset(copy, engine="h5ref") as other:
        assert other["line"].values[0] != ds["line"].values[0]
        assert other["line"].values[11] == ds["line"].values[11]  # null


def test_references_through_another_path_of_one_file_are_equal(tmp_path: Path) -> None:
    path, link = tmp_path / "one.h5", tmp_path / "link.h5"
    write_regions(path, {"d": np.arange(8)}, {"r": [("d", np.s_[0:2])]})
    link.symlink_to(path)
    with xr.open_dataset(path, engine="h5ref") as a, xr.open_dataset(link, engine="h5ref") as b:
        assert a["r"].values[0] == b["r"].values[0]
        assert hash(a["r"].values[0]) == hash(b["r"].values[0])
        assert (a["r"] == b["r"]).all()


@pytest.mark.parametrize("libver", ["earliest", ("v110", "v110"), ("v112", "v112"), "latest"])
def test_elements_are_equal_however_the_selection_is_encoded(
    tmp_path: Path, libver: Any
) -> None:
    with h5py.File(tmp_path / "two.h5", "w", libver=libver) as file:
        data = file.create_dataset("data", data=DATA)
        regular = h5py.h5s.create_simple((40, 50))
        regular.select_hyperslab((2, 3), (2, 3), stride=(2, 3), block=(2, 3))
        written = [data.regionref[2:6, 3:12], region_of(data, regular)]
        for pieces in (  # start and shape, of rows, halves and blocks that overlap
            [((row, 3), (1, 9)) for row in range(2, 6)],
            [((4, 3), (2, 9)), ((2, 3), (2, 9))],
            [((2, 7), (4, 5)), ((2, 3), (4, 6))],
        ):
            space = h5py.h5s.create_simple((40, 50))
            space.select_none()
            for start, shape in pieces:
                space.select_hyperslab(start, shape, op=h5py.h5s.SELECT_OR)
            written.append(region_of(data, space))
        write_references(file, "refs", written)
    with xr.open_dataset(tmp_path / "two.h5", engine="h5ref") as ds:
        references = ds["refs"].values
        for reference in references:
            assert reference.bounds == ((2, 3), (6, 12))
            assert reference.shape == (4, 9)
            np.testing.assert_array_equal(reference.resolve(), DATA[2:6, 3:12])
            assert reference == references[0]
        assert len(set(references)) == 1
        assert bool((ds["refs"].data[:1] == ds["refs"].data[1:]).all())


def test_null_elements_are_falsy_and_say_so(ds: xr.Dataset) -> None:
    for null in (ds["line"].values[11], ds["objects"].values[4]):
        assert not null
        assert null.kind == "null"
        assert null.path is None
        assert null.filename is None
        assert "null" in repr(null)
        assert null == null
        with pytest.raises(xref.NullReferenceError):
            null.resolve()
    assert ds["line"].values[11].bounds is None
    assert all(ds["line"].values[:11])


def test_an_element_tells_its_target_and_selection(path: Path, ds: xr.Dataset) -> None:
    region = ds["line"].values[2]
    assert (region.filename, region.path, region.kind) == (str(path), "/data", "dataset")
    assert region.bounds == ((2, 4), (6, 10))
    assert (region.shape, region.size) == ((4, 6), 24)
    with h5py.File(path) as file:
        addresses = {
            n: h5py.h5o.get_info(file[n].id).addr for n in ("data", "deep", "deep/other")
        }
    assert region.address == addresses["data"]
    objects = ds["objects"].values
    assert [o.path for o in objects[:4]] == ["/data", "/deep/other", "/data", "/deep"]
    assert [o.address for o in objects[[1, 3]]] == [addresses["deep/other"], addresses["deep"]]
    assert [o.kind for o in objects] == ["dataset", "dataset", "dataset", "group", "null"]


@pytest.mark.parametrize(
    ("row", "bounds", "shape"),
    [
        (0, ((0, 0), (40, 50)), (40, 50)),
        (1, ((0, 0), (40, 40)), (40,)),
        (2, ((2, 1), (9, 4)), (3, 3)),
        (3, ((0, 1), (40, 8)), (40, 2)),
    ],
)
def test_bounds_and_shape_follow_the_selection(
    path: Path, ds: xr.Dataset, row: int, bounds: Any, shape: Any
) -> None:
    reference = ds["kinds"].values[row]
    assert (reference.bounds, reference.shape) == (bounds, shape)
    with h5py.File(path) as file:
        expected = file["data"][file["kinds"][row]]
    np.testing.assert_array_equal(reference.resolve(), expected)


def test_reprs_show_targets_and_bounds_after_one_walk_over_the_groups(
    ds: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("HDF5 was asked for a name")

    listed: list[int] = []

    def read_links(location: Any, group: Any, before: int) -> Any:
        listed.append(group.address)
        return read(location, group, before)

    read = names._read_links
    monkeypatch.setattr(names, "_read_links", read_links)
    monkeypatch.setattr(h5py.h5i, "get_name", refuse)
    line, objects = ds["line"].values, ds["objects"].values
    assert repr(line[2]) == "<RegionReference -> /data[2:6, 4:10]>"
    assert repr(objects[0]) == "<ObjectReference -> /data>"
    assert repr(objects[1]) == "<ObjectReference -> /deep/other>"
    assert "points" in repr(ds["kinds"].values[1])
    text = repr(ds["line"].data)
    assert "(12,) of region references" in text
    assert "/data[0:4, 0:6]" in text
    assert "RegionReference" in str(ds)
    assert "ObjectReference" in ds._repr_html_()
    assert len(listed) == len(set(listed))


def test_elements_are_scalars_to_numpy(ds: xr.Dataset) -> None:
    for element in (ds["line"].values[0], ds["objects"].values[0]):
        for name in ("__array__", "__len__", "__getitem__", "__iter__"):
            assert not hasattr(element, name)
        array = np.asarray(element)
        assert array.shape == ()
        assert array.item() is element


def test_elements_are_immutable(ds: xr.Dataset) -> None:
    with pytest.raises(AttributeError):
        ds["objects"].values[0].address = 5
    with pytest.raises((TypeError, ValueError)):
        ds["line"].data[0] = None


# --- indexing ---------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "key",
    [
        slice(None),
        slice(2, 9, 3),
        slice(None, None, -1),
        slice(9, 2, -2),
        slice(5, 5),
        -1,
        [3, 1, 1, -1],
        np.array([], dtype=int),
        np.arange(12) % 3 == 0,
        np.array([[0, 1], [2, 3]]),
        Ellipsis,
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("decoded", [False, True])
def test_indexing_equals_that_of_objects(ds: xr.Dataset, key: Any, decoded: bool) -> None:
    objects = ds["line"].values
    array = ds["line"].copy().data
    if decoded:
        assert array.columns is not None
    expected = objects[key]
    if isinstance(key, int):
        assert array[key] == expected
    else:
        assert same(array[key], expected)


@pytest.mark.parametrize(
    "key",
    [
        (1, 2),
        (-1, -4),
        1,
        (slice(None), 2),
        (slice(2, None, -1), slice(1, 3)),
        ([0, 2], [1, 3]),
        (Ellipsis, 0),
        (0, Ellipsis),
        (1, 2, Ellipsis),
        np.eye(3, 4, dtype=bool),
        (slice(None), [3, 0]),
    ],
    ids=str,
)
def test_indexing_in_two_dimensions_equals_that_of_objects(ds: xr.Dataset, key: Any) -> None:
    objects, array = ds["grid"].values, ds["grid"].data
    expected = objects[key]
    if isinstance(expected, np.ndarray):
        assert same(array[key], expected)
    else:
        assert array[key] == expected


def test_slices_of_slices_stay_places_and_read_the_right_elements(ds: xr.Dataset) -> None:
    array, objects = ds["grid"].data, ds["grid"].values
    part = array[1:][::2, 1:4][0:1, ::2]
    assert part.stored is not None
    assert same(part, objects[1:][::2, 1:4][0:1, ::2])


def test_a_0d_array_gives_its_element(ds: xr.Dataset) -> None:
    zero = ds["zero"]
    assert zero.shape == zero.data.shape == ()
    assert isinstance(zero.data, ReferenceArray)
    assert zero.data[()] == ds["line"].values[3]
    assert zero.values.item().bounds == ((3, 6), (7, 12))
    with pytest.raises(TypeError):
        len(zero.data)
    with pytest.raises(TypeError):
        iter(zero.data).__next__()


def test_bad_indices_raise_index_errors(ds: xr.Dataset) -> None:
    for key in (12, -13, (0, 0), np.zeros(3, dtype=bool), [99], ds["line"].data):
        with pytest.raises(IndexError):
            ds["line"].data[key]


def test_isel_keeps_references_as_columns(ds: xr.Dataset) -> None:
    (dim,) = ds["line"].dims
    objects = ds["line"].values
    assert same(ds["line"].isel({dim: slice(None, None, -2)}).data, objects[::-2])
    assert same(ds["line"].isel({dim: [4, 0]}).data, objects[[4, 0]])
    assert ds["line"].isel({dim: 3}).item() == objects[3]
    a, b = ds["grid"].dims
    points = xr.DataArray([0, 2], dims="p")
    picked = ds["grid"].isel({a: points, b: points})
    assert picked.dims == ("p",)
    assert same(picked.data, ds["grid"].values[[0, 2], [0, 2]])
    labelled = ds["line"].assign_coords({dim: list("abcdefghijkl")})
    assert labelled.sel({dim: "c"}).item() == objects[2]
    assert same(labelled.sel({dim: ["l", "a"]}).data, objects[[11, 0]])


# --- NumPy and xarray functions ---------------------------------------------------------


def test_concatenate_and_stack_of_numpy(ds: xr.Dataset) -> None:
    line, grid = ds["line"], ds["grid"]
    joined = np.concatenate([line.data[:3], line.data[8:], line.data[:0]])
    assert same(joined, np.concatenate([line.values[:3], line.values[8:]]))
    for axis in (0, 1, -1):
        both = np.concatenate([grid.data, grid.data], axis=axis)
        assert same(both, np.concatenate([grid.values, grid.values], axis=axis))
        both = np.stack([grid.data, grid.data[::-1]], axis=axis)
        assert same(both, np.stack([grid.values, grid.values[::-1]], axis=axis))
    with pytest.raises(TypeError, match="do not mix"):
        np.concatenate([line.data, ds["objects"].data])


def test_moving_functions_of_numpy(ds: xr.Dataset) -> None:
    grid, objects = ds["grid"].data, ds["grid"].values
    assert same(grid.T, objects.T)
    assert same(np.transpose(grid, (1, 0)), objects.T)
    assert same(grid.reshape(2, 6), objects.reshape(2, 6))
    assert same(grid.reshape((-1,)), objects.ravel())
    assert same(np.expand_dims(grid, 1), objects[:, None])
    assert same(np.squeeze(np.expand_dims(grid, 1)), objects)
    assert same(np.broadcast_to(grid, (2, 3, 4)), np.broadcast_to(objects, (2, 3, 4)))
    assert same(np.roll(grid, 1, axis=0), np.roll(objects, 1, axis=0))
    assert same(np.flip(grid, 1), objects[:, ::-1])
    assert same(np.take(grid, [2, 0], axis=0), objects[[2, 0]])
    assert same(np.repeat(grid, 2, axis=1), np.repeat(objects, 2, axis=1))
    assert same(np.moveaxis(grid, 0, 1), objects.T)


def test_concat_of_xarray(ds: xr.Dataset) -> None:
    (dim,) = ds["line"].dims
    parts = [ds["line"].isel({dim: slice(0, 5)}), ds["line"].isel({dim: slice(7, 12)})]
    joined = xr.concat(parts, dim)
    assert same(joined.data, ds["line"].values[[*range(5), *range(7, 12)]])
    stacked = xr.concat([ds["line"], ds["line"]], "new")
    assert same(stacked.data, np.stack([ds["line"].values] * 2))


def test_where_gives_nulls(ds: xr.Dataset) -> None:
    (dim,) = ds["line"].dims
    keep = xr.DataArray(np.arange(12) % 2 == 0, dims=dim)
    masked = ds["line"].where(keep)
    assert isinstance(masked.data, ReferenceArray)
    assert masked.data.astype(bool).tolist() == (keep & (np.arange(12) < 11)).values.tolist()
    assert masked.values[2] == ds["line"].values[2]
    dropped = ds["line"].where(keep, drop=True)
    assert same(dropped.data, ds["line"].values[::2])
    filled = ds["line"].where(keep, ds["line"][0])
    assert filled.values[1] == ds["line"].values[0]
    picked = np.where(keep.values, ds["line"].data, ds["line"].data[::-1])
    assert same(picked, np.where(keep.values, ds["line"].values, ds["line"].values[::-1]))


def test_comparison_gives_booleans(ds: xr.Dataset) -> None:
    line, grid, objects = ds["line"].data, ds["grid"].data, ds["objects"].data
    assert (line == line).tolist() == [True] * 12
    assert (line == line[::-1]).tolist() == (
        ds["line"].values == ds["line"].values[::-1]
    ).tolist()
    assert (line != line[::-1]).all()
    assert (line == line[3]).tolist() == [i == 3 for i in range(12)]
    assert (line[3] == line).tolist() == [i == 3 for i in range(12)]
    assert (line == None).tolist() == [False] * 11 + [True]  # noqa: E711
    assert (line == ds["line"].values).all()
    assert (grid[:, :1] == grid[:1]).shape == (3, 4)
    assert not (line[:5] == objects).any()
    assert not (line == 5).any()
    assert ((ds["objects"] == ds["objects"].values[0]).values == [1, 0, 1, 0, 0]).all()
    assert (~(ds["line"] == ds["line"])).sum() == 0
    assert ds["line"].equals(ds["line"].copy())
    assert ds["line"].identical(ds["line"].copy(deep=True))
    assert not ds["line"].equals(ds["line"][::-1])
    assert ds.equals(ds.copy())


def test_bool_is_the_mask_of_references_that_are_not_null(ds: xr.Dataset) -> None:
    assert ds["line"].astype(bool).values.tolist() == [True] * 11 + [False]
    assert ds["objects"].data.astype(bool).tolist() == [True] * 4 + [False]
    assert np.asarray(ds["objects"].data, dtype=bool).tolist() == [True] * 4 + [False]
    assert ds["line"].notnull().values.tolist() == [True] * 11 + [False]
    assert ds["line"].data.astype(object) is ds["line"].data
    with pytest.raises(TypeError):
        ds["line"].data.astype(float)
    with pytest.raises(TypeError):
        np.asarray(ds["line"].data, dtype=int)


def test_isnull_and_dropna_see_null_references(ds: xr.Dataset) -> None:
    assert ds["line"].isnull().values.tolist() == [False] * 11 + [True]
    assert ds["line"].dropna(ds["line"].dims[0]).size == 11
    assert int(ds["line"].count()) == 11


def test_copies_and_loading_keep_the_columns(ds: xr.Dataset) -> None:
    for copy in (
        ds["line"].copy(deep=True),
        ds["line"].load(),
        ds["line"].compute(),
        ds.load()["line"],
    ):
        assert same(copy.data, ds["line"].values)
    assert same(ds.copy(deep=True)["grid"].data, ds["grid"].values)


def test_reshaping_of_xarray(ds: xr.Dataset) -> None:
    grid = ds["grid"].rename(dict(zip(ds["grid"].dims, "ab", strict=True)))
    objects = grid.values
    assert same(grid.transpose("b", "a").data, objects.T)
    assert same(grid.expand_dims(c=2).data, np.stack([objects] * 2))
    stacked = grid.stack(ab=("a", "b"))
    assert same(stacked.data, objects.ravel())
    assert same(stacked.unstack("ab").data, objects)
    one, two = xr.broadcast(grid, xr.DataArray([1, 2], dims="c"))
    assert same(one.data, np.repeat(objects[..., None], 2, axis=2))
    assert two.shape == (3, 4, 2)
    assert same(grid.shift(a=1).data[1:], objects[:-1])
    assert same(grid.roll(a=1).data, np.roll(objects, 1, axis=0))


def test_groupby_keeps_references(ds: xr.Dataset) -> None:
    line = ds["line"].rename({ds["line"].dims[0]: "roi"})
    line = line.assign_coords(cell=("roi", np.arange(12) % 3))
    groups = dict(line.groupby("cell"))
    assert same(groups[1].data, line.values[1::3])
    first = line.groupby("cell").map(lambda part: part.isel(roi=0))
    assert same(first.data, line.values[:3])


def test_reindex_and_align_fill_with_nulls(ds: xr.Dataset) -> None:
    line = ds["line"].rename({ds["line"].dims[0]: "roi"}).assign_coords(roi=np.arange(12))
    wider = line.reindex(roi=[3, 50, 0])
    assert isinstance(wider.data, ReferenceArray)
    assert wider.data.astype(bool).tolist() == [True, False, True]
    assert wider.values[0] == line.values[3]
    one, two = xr.align(line[:3], line[2:5], join="outer")
    assert one.data.astype(bool).tolist() == [True] * 3 + [False] * 2
    assert two.data.astype(bool).tolist() == [False] * 2 + [True] * 3
    merged = one.combine_first(two)
    assert same(merged.data, line.values[:5])


def test_references_in_coordinates_travel_along(ds: xr.Dataset) -> None:
    line = ds["line"].rename({ds["line"].dims[0]: "roi"})
    array = xr.DataArray(np.arange(12), dims="roi", coords={"ref": line.variable})
    assert same(array[2:5].coords["ref"].data, line.values[2:5])
    assert float(array[2:5].sum()) == 9


# --- dask -------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [5, {"roi": 4}, -1, "auto"])
def test_chunked_references_compute_to_columns(ds: xr.Dataset, chunks: Any) -> None:
    line = ds["line"].rename({ds["line"].dims[0]: "roi"})
    chunked = line.chunk(chunks)
    assert dask.is_dask_collection(chunked)
    assert np.asarray(chunked.compute().data).tolist() == line.values.tolist()
    assert np.asarray(chunked[::-2].compute().data).tolist() == line.values[::-2].tolist()
    np.testing.assert_array_equal(
        chunked[:11].h5ref.resolve().values, line[:11].h5ref.resolve().values
    )


def test_tokens_are_deterministic_and_tell_arrays_apart(path: Path, ds: xr.Dataset) -> None:
    with dask.config.set({"tokenize.ensure-deterministic": True}):
        token = dask.base.tokenize(ds["line"].data)
        with xr.open_dataset(path, engine="h5ref") as again:
            assert dask.base.tokenize(again["line"].data) == token
            assert dask.base.tokenize(again["line"].data[::-1]) != token
            assert dask.base.tokenize(again["line"].data[1:]) != token
            assert dask.base.tokenize(again["grid"].data) != token
        reversed_ = dask.base.tokenize(ds["line"].data[::-1])
        assert reversed_ == dask.base.tokenize(ds["line"].data[::-1])
        assert reversed_ != dask.base.tokenize(ds["line"].data[[0, 2, 1]])
        assert dask.base.tokenize(ds["line"].values[0]) == dask.base.tokenize(
            ds["line"].values[0]
        )


@pytest.mark.parametrize("chunks", [None, {}, "auto"])
def test_open_mfdataset_joins_references_to_several_files(
    tmp_path: Path, path: Path, chunks: Any
) -> None:
    second = write(tmp_path / "second.h5")
    with h5py.File(second, "r+") as file:
        file["data"][...] = DATA + 5000
    with xr.open_dataset(path, engine="h5ref") as first:
        (dim,) = first["line"].dims
    with xr.open_mfdataset(
        [path, second],
        engine="h5ref",
        combine="nested",
        concat_dim=dim,
        chunks=chunks,
        drop_variables=["data", "grid", "zero", "objects", "kinds"],
    ) as both:
        line = both["line"]
        values = np.asarray(line.compute().data)
        assert [r.filename if r else None for r in values] == (
            [str(path)] * 11 + [None] + [str(second)] * 11 + [None]
        )
        patches = line[[0, 12]].h5ref.resolve().values
        np.testing.assert_array_equal(patches, [DATA[:4, :6], DATA[:4, :6] + 5000])


# --- making arrays ----------------------------------------------------------------------


def test_arrays_are_made_from_references(ds: xr.Dataset) -> None:
    line, objects = ds["line"].values, ds["objects"].values
    assert same(ReferenceArray.from_references(line[:3].tolist()), line[:3])
    nested = ReferenceArray.from_references([[line[0], None], [line[1], line[2]]])
    assert nested.shape == (2, 2)
    assert nested.astype(bool).tolist() == [[True, False], [True, True]]
    assert not ReferenceArray.from_references([objects[0]]).is_region
    assert ReferenceArray.nulls((2, 3), is_region=True).astype(bool).sum() == 0
    # Where object references work, so do region references: as their objects.
    mixed = ReferenceArray.from_references([line[0], objects[0]])
    assert not mixed.is_region
    assert np.asarray(mixed).tolist() == [line[0].object, objects[0]]
    with pytest.raises(TypeError):
        ReferenceArray.from_references([1, 2])
    array = xr.DataArray(line[:3], dims="roi")
    np.testing.assert_array_equal(array.h5ref.resolve()[1], DATA[1:5, 2:8])


def test_public_types_are_what_elements_are(ds: xr.Dataset) -> None:
    assert isinstance(ds["line"].values[0], RegionReference)
    assert isinstance(ds["objects"].values[0], ObjectReference)
    assert ds["line"].dtype == object
    assert ds["line"].data.nbytes == 96
