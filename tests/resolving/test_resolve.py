"""Resolving: layouts, chunks, nulls, types and objects, against h5py and NumPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from h5py import h5o
from oracle import values_of
from rois import DATA, N_X, N_Y, PACKED, STARTS, TIMES, WHOLE, regions_of
from strategies import write_references, write_regions

import xref


@pytest.mark.parametrize("name", ["data_rois", "whole_rois", "data_rows", "data_points"])
def test_stacks_equal_h5py(rois_path: Path, rois_ds: xr.Dataset, name: str) -> None:
    stacked = rois_ds[name].h5ref.resolve()
    assert dask.is_dask_collection(stacked)
    np.testing.assert_array_equal(stacked, np.stack(regions_of(rois_path, name)))
    assert stacked.dims == (
        *rois_ds[name].dims,
        *(("point",) if "points" in name else ("y", "x")),
    )


def test_ragged_and_padded_layouts_equal_h5py(rois_path: Path, rois_ds: xr.Dataset) -> None:
    regions = regions_of(rois_path, "data_ragged")
    ragged = rois_ds["data_ragged"].h5ref.resolve("ragged")
    np.testing.assert_array_equal(ragged["data"], np.concatenate([r.ravel() for r in regions]))
    assert ragged["row_size"].values.tolist() == [r.size for r in regions]
    assert ragged["row_size"].attrs["sample_dimension"] == "sample"
    padded = rois_ds["data_ragged"].h5ref.resolve("pad", fill_value=-5)
    assert padded["data"].shape == (5, 5, 5)
    for k, region in enumerate(regions):
        rows, columns = region.shape
        np.testing.assert_array_equal(padded["data"][k, :rows, :columns], region)
        assert (padded["data"][k].values[~padded["valid"][k].values] == -5).all()
        assert int(padded["valid"][k].sum()) == region.size
    with pytest.raises(ValueError, match=r"\(1, 1\).*ragged.*pad"):
        rois_ds["data_ragged"].h5ref.resolve()


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (1, ((1,) * 6, (4,), (6,))),
        (4, ((4, 2), (4,), (6,))),
        (-1, ((6,), (4,), (6,))),
        ("auto", ((6,), (4,), (6,))),
        ({"y": 2}, ((6,), (2, 2), (6,))),
        ({"rois": 5, "x": 3}, ((5, 1), (4,), (3, 3))),
        ({"rois": (1, 5)}, ((1, 5), (4,), (6,))),
    ],
    ids=str,
)
def test_resolve_uses_the_chunks_of_the_user(
    rois_ds: xr.Dataset, chunks: Any, expected: Any
) -> None:
    rois = rois_ds["data_rois"].rename({rois_ds["data_rois"].dims[0]: "rois"})
    stacked = rois.h5ref.resolve(chunks=chunks)
    assert stacked.chunks == expected
    np.testing.assert_array_equal(stacked, [DATA[y : y + 4, x : x + 6] for y, x in STARTS])


def test_auto_chunks_fill_the_chunk_size_of_dask(rois_ds: xr.Dataset) -> None:
    with dask.config.set({"array.chunk-size": "200B"}):
        stacked = rois_ds["data_rois"].h5ref.resolve()
        assert stacked.chunks == ((2, 2, 2), (4,), (6,))
        ragged = rois_ds["data_ragged"].h5ref.resolve("ragged")
        borders = np.cumsum(ragged["data"].chunks[0])
        assert len(borders) > 1
        assert set(borders) <= set(np.cumsum(ragged["row_size"].values))


def test_without_chunks_resolve_reads_no_values(rois_ds: xr.Dataset) -> None:
    with xref.count_reads() as reads:
        stacked = rois_ds["whole_rois"].h5ref.resolve(chunks=None)
        assert not dask.is_dask_collection(stacked)
        assert reads.chunks_read == 0
        one = stacked[2].values
        assert reads.chunks_read == reads.chunks_decoded == 1
    np.testing.assert_array_equal(one, WHOLE[36:40, 41:47])


def test_arguments_of_resolve_are_checked(rois_ds: xr.Dataset) -> None:
    rois = rois_ds["data_rois"].h5ref
    for bad, word in (
        ({"layout": "heap"}, "layout"),
        ({"chunks": "some"}, "chunks"),
        ({"chunks": {"nothing": 1}}, "nothing"),
        ({"on_null": "skip"}, "on_null"),
    ):
        with pytest.raises(ValueError, match=word):
            rois.resolve(**bad)
    with pytest.raises(TypeError, match="references"):
        rois_ds["data"].h5ref.resolve()
    with pytest.raises(TypeError, match="references"):
        xr.DataArray([1, 2]).h5ref.table()
    with pytest.raises(ValueError, match="on_null"):
        rois.mean(on_null="x")


@pytest.mark.parametrize("chunks", [0, -2, "typo", {"typo": 5}, 1.5, True])
def test_invalid_chunks_are_refused_by_every_method(rois_ds: xr.Dataset, chunks: Any) -> None:
    rois = rois_ds["data_rois"].h5ref
    for call in (
        rois.resolve,
        partial(rois.resolve, "ragged"),
        partial(rois.resolve, "pad"),
        rois.mean,
        partial(rois.map, np.median, dtype=float),
        partial(rois.reduce, np.median),
    ):
        with pytest.raises(ValueError, match="chunks"):
            call(chunks=chunks)


def test_several_targets_share_one_array(rois_ds: xr.Dataset) -> None:
    two = rois_ds["targets"].h5ref.resolve()
    area = np.arange(N_Y * N_X).reshape(N_Y, N_X)
    np.testing.assert_array_equal(two, [DATA[:3, :3], area[4:7, 1:4].astype(two.dtype)])
    assert two.dims[1:] == ("y", "x")
    assert "long_name" not in two.attrs


def test_results_are_decoded_by_cf_conventions(rois_path: Path, rois_ds: xr.Dataset) -> None:
    unpacked = np.where(PACKED == 7, np.nan, PACKED * 0.5 + 10.0)
    boxes = [unpacked[y : y + 4, x : x + 6] for y, x in STARTS]
    np.testing.assert_allclose(rois_ds["packed_rois"].h5ref.resolve(), boxes)
    np.testing.assert_allclose(
        rois_ds["packed_rois"].h5ref.mean(), np.nanmean(boxes, axis=(1, 2))
    )
    np.testing.assert_allclose(rois_ds["packed_rois"].data[2].resolve(), boxes[2])
    stamps = np.datetime64("2000-01-01", "ns") + TIMES * np.timedelta64(1, "h")
    boxes = np.array([stamps[y : y + 4, x : x + 6] for y, x in STARTS])
    np.testing.assert_array_equal(rois_ds["times_rois"].h5ref.resolve(), boxes)
    with xr.open_dataset(
        rois_path, engine="h5ref", mask_and_scale=False, decode_times=False
    ) as raw:
        np.testing.assert_array_equal(raw["packed_rois"].data[0].resolve(), PACKED[:4, :6])
        assert raw["packed_rois"].h5ref.resolve().dtype == np.uint8
        assert raw["times_rois"].h5ref.max().dtype.kind == "i"


def test_results_that_differ_have_tasks_of_different_names(tmp_path: Path) -> None:
    path = tmp_path / "names.h5"
    write_regions(path, {"d": np.arange(8)}, {"r": [("d", np.s_[0:2]), None]})
    with xr.open_dataset(path, engine="h5ref") as ds:
        r = ds["r"].h5ref
        one = r.resolve(on_null="fill", fill_value=-1)
        two = r.resolve(on_null="fill", fill_value=-2)
        assert one.data.name != two.data.name
        assert (one - two).values[1].tolist() == [1, 1]
        again = r.resolve(on_null="fill", fill_value=-1)
        assert again.data.name == one.data.name


@pytest.mark.parametrize("name", ["valid", "row_size", "row_shape", "sample", "phony_dim_0"])
def test_target_names_that_equal_variables_of_the_result_keep_their_values(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "helpers.h5"
    write_regions(path, {name: np.arange(8)}, {"r": [(name, np.s_[0:2]), (name, np.s_[2:6])]})
    with xr.open_dataset(path, engine="h5ref") as ds:
        ragged, padded = ds["r"].h5ref.resolve("ragged"), ds["r"].h5ref.resolve("pad")
        flat = [v for v in ragged.data_vars.values() if len(v.dims) == 1 and v.size == 6]
        assert [v.values.tolist() for v in flat] == [[0, 1, 2, 3, 4, 5]]
        cells = [v for v in padded.data_vars.values() if v.dtype == np.arange(1).dtype]
        assert [v.values.tolist() for v in cells] == [[[0, 1, 0, 0], [2, 3, 4, 5]]]


def test_an_empty_reference_dataset_gives_an_empty_result(
    path: Path, open_refs: Callable[..., xr.DataArray]
) -> None:
    write_regions(path, {"t": np.arange(3)}, {"refs": []})
    refs = open_refs(path)
    assert refs.shape == (0,)
    assert refs.h5ref.resolve().size == 0
    assert values_of(refs.h5ref.resolve("ragged")).size == 0


# --- null references ------------------------------------------------------------------


def test_null_references_raise_fill_or_drop(rois_ds: xr.Dataset) -> None:
    nulls = rois_ds["data_nulls"]
    with pytest.raises(xref.NullReferenceError, match=r"reference 1 of '/data_nulls' is null"):
        nulls.h5ref.resolve()
    filled = nulls.h5ref.resolve(on_null="fill")
    assert filled.shape == (4, 4, 6)
    assert np.isnan(filled[[1, 3]]).all()
    np.testing.assert_array_equal(filled[2], DATA[36:40, 41:47])
    assert (nulls.h5ref.resolve(on_null="fill", fill_value=9)[1] == 9).all()
    filled = nulls[1:3].h5ref.resolve(on_null="fill")
    np.testing.assert_array_equal(filled, [np.full((4, 6), np.nan), DATA[36:40, 41:47]])
    dropped = nulls.h5ref.resolve(on_null="drop")
    np.testing.assert_array_equal(dropped, [DATA[:4, :6], DATA[36:40, 41:47]])
    ragged = nulls.h5ref.resolve("ragged", on_null="fill")
    assert ragged["row_size"].values.tolist() == [24, 0, 24, 0]
    padded = nulls.h5ref.resolve("pad", on_null="fill")
    assert padded["valid"].any(("y", "x")).values.tolist() == [True, False, True, False]
    times = rois_ds["times_nulls"].h5ref.resolve(on_null="fill")
    assert np.isnat(times.values[1]).all()
    packed = rois_ds["packed_nulls"].h5ref.resolve(on_null="fill")
    assert np.isnan(packed.values[1]).all()
    whole = rois_ds["whole_nulls"].h5ref.resolve(on_null="fill")
    assert (whole[1] == 0).all()
    assert whole.dtype == WHOLE.dtype
    with pytest.raises(ValueError, match="one dimension"):
        xr.concat([nulls, nulls], "new").h5ref.resolve(on_null="drop")


def test_a_variable_of_null_references_gives_empty_results(rois_ds: xr.Dataset) -> None:
    nulls = rois_ds["data_nulls"][[1, 3]]
    assert nulls.h5ref.resolve(on_null="drop").size == 0
    assert nulls.h5ref.count(on_null="fill").values.tolist() == [0, 0]
    assert nulls.h5ref.table()["kind"].values.tolist() == ["null", "null"]
    assert rois_ds["data_rois"][:0].h5ref.resolve().size == 0
    assert rois_ds["data_rois"][:0].h5ref.mean().shape == (0,)


def test_null_references_to_text_are_filled_with_empty_text(tmp_path: Path) -> None:
    path = tmp_path / "text.h5"
    write_regions(path, {"d": np.array(["a", "bb"], object)}, {"r": [("d", np.s_[0:2]), None]})
    with xr.open_dataset(path, engine="h5ref") as ds:
        filled = ds["r"].h5ref.resolve(on_null="fill")
        assert filled.values.tolist() == [["a", "bb"], ["", ""]]


def test_a_fill_value_outside_the_dtype_widens_the_dtype(tmp_path: Path) -> None:
    path = tmp_path / "fill.h5"
    write_regions(path, {"d": np.arange(4)}, {"r": [("d", np.s_[0:2]), None]})
    with xr.open_dataset(path, engine="h5ref") as ds:
        filled = ds["r"].h5ref.resolve(on_null="fill", fill_value=0.5)
        assert filled.values.tolist() == [[0.0, 1.0], [0.5, 0.5]]
        filled = ds["r"].h5ref.resolve(on_null="fill", fill_value=np.nan)
        assert np.isnan(filled.values[1]).all()


# --- several types and kinds of targets ------------------------------------------------


def test_large_integers_and_floats_are_not_joined(tmp_path: Path) -> None:
    path = tmp_path / "mixed.h5"
    data = {"i": np.array([2**62 + 1]), "u": np.array([2**63 + 1], "u8")}
    write_regions(path, data, {"r": [("i", np.s_[0:1]), ("u", np.s_[0:1])]})
    with xr.open_dataset(path, engine="h5ref") as ds, pytest.raises(ValueError, match="uint64"):
        ds["r"].h5ref.resolve()


def test_targets_of_several_number_dtypes_are_joined_in_a_dtype_that_holds_all(
    path: Path, open_refs: Callable[..., xr.DataArray]
) -> None:
    with h5py.File(path, "w") as file:
        small = file.create_dataset("small", data=np.arange(10, dtype="i2").reshape(2, 5))
        large = file.create_dataset("large", data=np.arange(10, dtype=">f8") + 0.5)
        regions = [small.regionref[0, 1:3], large.regionref[4:7], small.regionref[:, 2]]
        write_references(file, "refs", regions)
    ragged = open_refs(path).h5ref.resolve("ragged")
    assert values_of(ragged).dtype == np.float64
    assert values_of(ragged).values.tolist() == [1, 2, 4.5, 5.5, 6.5, 2, 7]


def test_object_references_resolve_stacked_or_ragged(rois_ds: xr.Dataset) -> None:
    parts = [np.arange(6.0).reshape(2, 3) + ord(name) for name in "abc"]
    assert [r.path for r in rois_ds["equal"].values] == ["/parts/a", "/parts/b", "/parts/c"]
    stacked = rois_ds["equal"].h5ref.resolve()
    np.testing.assert_array_equal(stacked, parts)
    np.testing.assert_array_equal(rois_ds["equal"].values[2].resolve(), parts[2])
    np.testing.assert_array_equal(rois_ds["equal"].h5ref.mean(), [p.mean() for p in parts])
    with pytest.raises(ValueError, match=r"different shapes \(\(2, 3\), \(5,\).*ragged"):
        rois_ds["unequal"].h5ref.resolve()
    ragged = rois_ds["unequal"].h5ref.resolve("ragged")
    assert ragged["row_size"].values.tolist() == [6, 5]
    np.testing.assert_array_equal(
        ragged["unequal"], np.concatenate([parts[0].ravel(), np.arange(5.0)])
    )
    filled = rois_ds["gaps"].h5ref.resolve(on_null="fill")
    assert np.isnan(filled[1]).all()
    np.testing.assert_array_equal(filled[[0, 2]], parts[:2])
    with pytest.raises(ValueError, match="types"):
        rois_ds["texts"].h5ref.resolve("ragged")


def test_references_to_groups_give_datasets(rois_ds: xr.Dataset) -> None:
    groups = rois_ds["groups"].h5ref.resolve()
    assert list(groups) == [0, 1]
    np.testing.assert_array_equal(groups[0]["long"], np.arange(5.0))
    assert set(groups[1].variables) == {"v"}
    element = rois_ds["groups"].values[0]
    assert set(element.resolve().variables) == {"a", "b", "c", "long", "text"}
    assert element.resolve()["text"].values.tolist() == ["x", "yy"]
    assert rois_ds["mixed"].values[2].resolve() == np.dtype("f4")
    with pytest.raises(xref.XrefError, match=r"items\(\)"):
        rois_ds["mixed"].h5ref.resolve(on_null="drop")


def test_a_reference_to_a_dataset_without_a_name_resolves(
    path: Path, open_refs: Callable[..., xr.DataArray]
) -> None:
    write_regions(path, {"t": np.arange(5)}, {"refs": [("t", np.s_[1:4])]})
    with h5py.File(path) as file:
        header = h5o.get_info(file["t"].id).addr
    # One more reference than links, so that HDF5 keeps the object when it is unlinked.
    with open(path, "r+b") as raw:
        raw.seek(header + 4)
        raw.write((2).to_bytes(4, "little"))
    with h5py.File(path, "a") as file:
        del file["t"]
    (reference,) = open_refs(path).values
    assert reference.path is None
    assert reference.kind == "dataset"
    assert reference.resolve().values.tolist() == [1, 2, 3]


@pytest.mark.parametrize("decode_coords", [True, "all", False])
def test_attributes_of_results_are_those_of_opened_variables(
    tmp_path: Path, decode_coords: bool | str
) -> None:
    """xarray removes the attribute ``coordinates`` when the coordinates are attached."""
    path = tmp_path / "named.h5"
    with h5py.File(path, "w") as file:
        file["image"] = np.arange(12.0).reshape(3, 4)
        file["image"].attrs.update(units="K", coordinates="lat nothing")
        file["lat"] = np.arange(12.0).reshape(3, 4)
        file["y"], file["x"] = np.arange(3), np.arange(4)
        for axis, name in enumerate("yx"):
            file[name].make_scale(name)
            for variable in ("image", "lat"):
                file[variable].dims[axis].attach_scale(file[name])
        file["lat"].attrs["coordinates"] = "y x"
        write_references(file, "regions", [file["image"].regionref[:2]] * 2)
        write_references(file, "objects", [file["image"].ref], dtype=h5py.ref_dtype)
        pointers = file.create_dataset(
            "pointers", data=[file["image"].ref], dtype=h5py.ref_dtype
        )
        pointers.attrs["coordinates"] = "lat"
        write_references(file, "of_references", [pointers.ref], dtype=h5py.ref_dtype)
    with xr.open_dataset(path, engine="h5ref", decode_coords=decode_coords) as ds:
        opened = ds["image"].attrs
        assert ("coordinates" in opened) is (decode_coords is False)
        regions, objects = ds["regions"].h5ref, ds["objects"].h5ref
        results = {
            "stack": regions.resolve(),
            "lazy": regions.resolve(chunks=None),
            "ragged": regions.resolve("ragged")["image"],
            "pad": regions.resolve("pad")["image"],
            "concat": regions.resolve("concat"),
            "object": objects.resolve(),
            "one region": ds["regions"].values[0].resolve(),
            "one object": ds["objects"].values[0].resolve(),
        }
        for layout, result in results.items():
            assert result.attrs == opened, layout
            if decode_coords and layout in ("stack", "concat", "object", "one region"):
                assert result["lat"].attrs == ds["lat"].attrs, layout
        found = ds["of_references"].values[0].resolve()
        assert found.attrs == ds["pointers"].attrs
        stored = regions.target_attrs()
        assert stored["coordinates"].values.tolist() == ["lat nothing"] * 2
