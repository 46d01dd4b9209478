"""Dimension names, lengths and coordinates are those of the engines netcdf4 and h5netcdf.

Files that both engines open are compared with both, or with one where they differ from each
other. Files whose entries for dimension scales are wrong open with a warning for each axis.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import xref
from xref import UnreadableMemberWarning

netCDF4 = pytest.importorskip("netCDF4")
pytest.importorskip("h5netcdf")

Build = Callable[[h5py.File], object]
Facts = tuple[dict[Any, tuple[tuple[Any, ...], tuple[int, ...]]], set[Any], set[Any]]

NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable.%10d"


def write(path: Path, build: Build, *, track_order: bool = False) -> Path:
    with h5py.File(path, "w", track_order=track_order) as file:
        build(file)
    return path


def make_scale(
    group: h5py.Group, name: str, data: Any, label: str | None = None, **options: Any
) -> h5py.Dataset:
    scale = group.create_dataset(name, data=data, **options)
    scale.make_scale(name if label is None else label)
    return scale


def make_variable(
    group: h5py.Group, name: str, data: Any, *scales: h5py.Dataset | None, **options: Any
) -> h5py.Dataset:
    dataset = group.create_dataset(name, data=data, **options)
    for axis, scale in enumerate(scales):
        if scale is not None:
            dataset.dims[axis].attach_scale(scale)
    return dataset


def list_scales(dataset: h5py.Dataset, entries: Sequence[Sequence[Any]]) -> None:
    """Write the attribute "DIMENSION_LIST" of a dataset as it is given."""
    lists = np.empty(len(entries), dtype=object)
    for axis, references in enumerate(entries):
        lists[axis] = np.array(references, dtype=h5py.ref_dtype)
    dtype = h5py.vlen_dtype(h5py.ref_dtype)
    dataset.attrs.create("DIMENSION_LIST", lists, lists.shape, dtype)


def facts(path: Path, engine: str, group: str | None = None) -> Facts:
    """Return dimensions and shape of each variable, coordinates, and unlimited dimensions."""
    options: dict[str, Any] = {} if engine == "netcdf4" else {"phony_dims": "sort"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate dimension names")
        with xr.open_dataset(
            path, engine=engine, group=group, decode_cf=False, **options
        ) as ds:
            found = {name: (v.dims, v.shape) for name, v in ds.variables.items()}
            return found, set(ds.coords), set(ds.encoding["unlimited_dims"])


# --- files of other writers that both engines open alike ----------------------------------


def hard_link_after(file: h5py.File) -> None:
    time = make_scale(file, "time", np.arange(3))
    make_variable(file, "v", np.ones(3), time)
    file["zeit"] = time


def hard_link_before(file: h5py.File) -> None:
    time = make_scale(file, "time", np.arange(3))
    make_variable(file, "v", np.ones(3), time)
    file["alt"] = time


def soft_link_after(file: h5py.File) -> None:
    time = make_scale(file, "time", np.arange(3))
    make_variable(file, "v", np.ones(3), time)
    file["zeit"] = h5py.SoftLink("/time")


def chain_of_soft_links(file: h5py.File) -> None:
    time = make_scale(file, "time", np.arange(3))
    make_variable(file, "v", np.ones(3), time)
    file["zeit"] = h5py.SoftLink("/zeit2")
    file["zeit2"] = h5py.SoftLink("/time")


def link_without_variable(file: h5py.File) -> None:
    x = make_scale(file, "x", np.zeros(3), NO_VARIABLE % 3)
    make_variable(file, "v", np.ones(3), x)
    file["alt"] = x


def link_in_the_parent(file: h5py.File) -> None:
    time = make_scale(file, "time", np.arange(3))
    make_variable(file.create_group("g"), "v", np.ones(3), time)
    file["alt"] = time


def equal_name_in_a_subgroup(file: h5py.File) -> None:
    x = make_scale(file, "x", np.arange(3))
    group = file.create_group("g")
    group["x"] = x
    make_variable(group, "v", np.ones(3), x)


def link_to_a_variable(file: h5py.File) -> None:
    v = make_variable(file, "v", np.ones(3), make_scale(file, "x", np.arange(3)))
    file["w"] = v
    file["y"] = h5py.SoftLink("/v")


def scale_of_a_grandparent(file: h5py.File) -> None:
    x = make_scale(file, "x", np.arange(3))
    y = make_scale(file.create_group("g"), "y", np.arange(2))
    make_variable(file.create_group("g/h"), "v", np.ones((2, 3)), y, x)


def one_scale_on_two_axes(file: h5py.File) -> None:
    x = make_scale(file, "x", np.arange(3))
    make_variable(file, "v", np.eye(3), x, x)


def one_scale_on_three_axes(file: h5py.File) -> None:
    x = make_scale(file, "x", np.arange(3))
    make_variable(file, "v", np.ones((3, 3, 3)), x, x, x)


def one_scale_on_two_of_three_axes(file: h5py.File) -> None:
    x, y = make_scale(file, "x", np.arange(3)), make_scale(file, "y", np.arange(2))
    make_variable(file, "v", np.ones((3, 2, 3)), x, y, x)


def one_unlimited_scale_on_two_axes(file: h5py.File) -> None:
    x = make_scale(file, "x", np.arange(3), maxshape=(None,))
    make_variable(file, "v", np.ones((5, 2)), x, x, maxshape=(None, None))


def dimensions_of_one_length(file: h5py.File) -> None:
    x, y = make_scale(file, "x", np.arange(3)), make_scale(file, "y", np.arange(3))
    make_variable(file, "v", np.ones((3, 3)), y, x)
    make_variable(file, "w", np.ones((3, 3)), x, y)
    file["p"] = np.ones((3, 3))


def several_scales_on_an_axis(file: h5py.File) -> None:
    x, y = make_scale(file, "x", np.arange(3)), make_scale(file, "y", np.arange(3))
    make_variable(file, "v", np.ones(3), x).dims[0].attach_scale(y)


def lengths_along_an_unlimited_dimension(file: h5py.File) -> None:
    x = make_scale(file, "x", np.arange(3), maxshape=(None,))
    make_variable(file, "u", np.ones(1), x, maxshape=(None,))
    for n in (5, 2):
        make_variable(file.require_group("g"), f"v{n}", np.ones(n), x, maxshape=(None,))
    make_variable(file, "fixed", np.ones(4), x)


def label_of_another_name(file: h5py.File) -> None:
    x = make_scale(file, "x", np.arange(3), "length")
    make_variable(file, "v", np.ones(3), x)


def scale_of_text(file: h5py.File) -> None:
    x = make_scale(file, "x", np.array(["a", "b"], dtype=object), dtype=h5py.string_dtype())
    make_variable(file, "v", np.ones(2), x)
    make_variable(file, "w", np.ones(2), make_scale(file, "y", np.array([b"a", b"b"])))


def scale_of_compounds(file: h5py.File) -> None:
    x = make_scale(file, "x", np.zeros(3, [("a", "i4"), ("b", "f8")]))
    make_variable(file, "v", np.ones(3), x)


def scale_of_enumeration(file: h5py.File) -> None:
    x = make_scale(file, "x", np.zeros(3, h5py.enum_dtype({"a": 0, "b": 1})))
    make_variable(file, "v", np.ones(3), x)


BOTH_ALIKE = [
    hard_link_after,
    hard_link_before,
    soft_link_after,
    chain_of_soft_links,
    link_without_variable,
    link_in_the_parent,
    equal_name_in_a_subgroup,
    link_to_a_variable,
    scale_of_a_grandparent,
    one_scale_on_two_axes,
    one_scale_on_three_axes,
    one_scale_on_two_of_three_axes,
    one_unlimited_scale_on_two_axes,
    dimensions_of_one_length,
    several_scales_on_an_axis,
    lengths_along_an_unlimited_dimension,
    label_of_another_name,
    scale_of_text,
    scale_of_compounds,
    scale_of_enumeration,
]


@pytest.mark.parametrize("track_order", [False, True])
@pytest.mark.parametrize("build", BOTH_ALIKE)
def test_names_are_those_that_both_engines_give(
    tmp_path: Path, build: Build, track_order: bool
) -> None:
    path = write(tmp_path / "f.h5", build, track_order=track_order)
    with h5py.File(path) as file:
        groups = ["/"]
        file.visititems(lambda name, item: isinstance(item, h5py.Group) and groups.append(name))
    for group in groups:
        expected = facts(path, "netcdf4", group)
        assert facts(path, "h5netcdf", group) == expected, "the engines agree"
        assert facts(path, "h5ref", group) == expected


# --- files of which only one of the engines gives these names -----------------------------


def soft_link_before(file: h5py.File) -> None:
    soft_link_after(file)
    file["alt"] = h5py.SoftLink("/time")


def soft_link_in_the_parent(file: h5py.File) -> None:
    time = make_scale(file, "time", np.arange(3))
    make_variable(file.create_group("g"), "v", np.ones(3), time)
    file["alt"] = h5py.SoftLink("/time")


def soft_link_in_the_group(file: h5py.File) -> None:
    time = make_scale(file, "time", np.arange(3))
    group = file.create_group("z")
    make_variable(group, "v", np.ones(3), time)
    group["zeit"] = h5py.SoftLink("/time")


def hard_link_in_the_group(file: h5py.File) -> None:
    time = make_scale(file, "time", np.arange(3))
    group = file.create_group("z")
    make_variable(group, "v", np.ones(3), time)
    group["zeit"] = time


def links_to_a_scale_of_a_subgroup(file: h5py.File) -> None:
    time = make_scale(file.create_group("g"), "time", np.arange(3))
    make_variable(file, "v", np.ones(3), time)
    file["zeit"] = h5py.SoftLink("/g/time")


def link_to_a_scale_of_a_sibling(file: h5py.File) -> None:
    time = make_scale(file.create_group("a"), "time", np.arange(3))
    make_variable(file.create_group("z"), "v", np.ones(3), time)
    file["b"] = time


def soft_link_to_a_scale_of_a_sibling(file: h5py.File) -> None:
    time = make_scale(file.create_group("a"), "time", np.arange(3))
    make_variable(file.create_group("z"), "v", np.ones(3), time)
    file["b"] = h5py.SoftLink("/a/time")


@pytest.mark.parametrize("track_order", [False, True])
@pytest.mark.parametrize(
    ("build", "group", "engine"),
    [
        # Hard links come before soft links, also before those of a nearer group.
        (soft_link_before, "/", "h5netcdf"),
        (soft_link_in_the_parent, "g", "h5netcdf"),
        (soft_link_in_the_group, "z", "h5netcdf"),
        # The nearest group that has a hard link names the dimension.
        (hard_link_in_the_group, "z", "netcdf4"),
        (links_to_a_scale_of_a_subgroup, "/", "netcdf4"),
        (link_to_a_scale_of_a_sibling, "z", "netcdf4"),
        (soft_link_to_a_scale_of_a_sibling, "z", "netcdf4"),
    ],
)
def test_names_are_those_of_one_engine_where_the_other_differs(
    tmp_path: Path, build: Build, group: str, engine: str, track_order: bool
) -> None:
    path = write(tmp_path / "f.h5", build, track_order=track_order)
    assert facts(path, "h5ref", group) == facts(path, engine, group)


# --- coordinate variables of several dimensions -------------------------------------------


def write_netcdf(path: Path, build: Callable[[Any], object]) -> Path:
    with netCDF4.Dataset(path, "w") as file:
        build(file)
    return path


def height_in_a_subgroup(file: Any) -> None:
    file.createDimension("x", 4)
    group = file.createGroup("model")
    group.createDimension("level", 3)
    group.createDimension("band", 4)
    group.createVariable("level", "f4", ("level", "x"))[:] = 1
    group.createVariable("temp", "f4", ("level", "x"))[:] = 2
    group.createVariable("flux", "f4", ("level", "band"))[:] = 3


def height_along_a_grandparent(file: Any) -> None:
    file.createDimension("x", 4)
    file.createDimension("other", 4)
    middle = file.createGroup("a")
    middle.createDimension("y", 4)
    group = middle.createGroup("b")
    group.createDimension("level", 3)
    group.createVariable("level", "f4", ("level", "y", "x"))[:] = 1
    group.createVariable("temp", "f4", ("x", "level"))[:] = 2


def height_in_the_root(file: Any) -> None:
    for name in ("a", "level", "z"):
        file.createDimension(name, 3)
    file.createVariable("level", "f4", ("level", "z"))[:] = 1
    file.createVariable("temp", "f4", ("z", "level", "a"))[:] = 2


def square_coordinate(file: Any) -> None:
    file.createDimension("x", 3)
    file.createVariable("x", "f4", ("x", "x"))[:] = 1
    file.createVariable("temp", "f4", ("x",))[:] = 2


def name_of_another_dimension(file: Any) -> None:
    """Write a variable that is named after its second dimension ("_nc4_non_coord_")."""
    file.createDimension("y", 2)
    file.createDimension("x", 3)
    file.createVariable("x", "f4", ("y", "x"))[:] = 1
    file.createVariable("temp", "f4", ("x", "y"))[:] = 2


@pytest.mark.parametrize(
    ("build", "groups"),
    [
        (height_in_a_subgroup, ["/", "model"]),
        (height_along_a_grandparent, ["/", "a", "a/b"]),
        (height_in_the_root, ["/"]),
        (name_of_another_dimension, ["/"]),
    ],
)
def test_coordinates_of_several_dimensions_find_their_dimensions(
    tmp_path: Path, build: Callable[[Any], object], groups: list[str]
) -> None:
    path = write_netcdf(tmp_path / "f.nc", build)
    for group in groups:
        expected = facts(path, "netcdf4", group)
        assert facts(path, "h5ref", group) == expected
        assert facts(path, "h5netcdf", group) == expected, "the engines agree"


@pytest.mark.parametrize("n_written", [1, 3])
@pytest.mark.parametrize("n_other", [0, 2, 5])
def test_coordinates_of_several_dimensions_along_an_unlimited_one(
    tmp_path: Path, n_written: int, n_other: int
) -> None:
    def build(file: Any) -> None:
        file.createDimension("time", None)
        file.createDimension("nv", 2)
        file.createDimension("level", 2)
        time = file.createVariable("time", "f8", ("time", "nv"))
        time[:n_written] = np.arange(2 * n_written).reshape(-1, 2)
        level = file.createVariable("level", "f8", ("level", "time"), fill_value=-5)
        level[:] = np.ones((2, n_written))
        temp = file.createVariable("temp", "f4", ("time", "nv"), fill_value=-9)
        temp[:n_other] = np.full((n_other, 2), 2)

    path = write_netcdf(tmp_path / "f.nc", build)
    assert facts(path, "h5ref") == facts(path, "netcdf4")
    with (
        xr.open_dataset(path, engine="netcdf4", decode_cf=False) as expected,
        xr.open_dataset(path, engine="h5ref", decode_cf=False) as found,
    ):
        np.testing.assert_array_equal(found["temp"], expected["temp"])
        # netCDF-C puts the values of a short variable at wrong places here (4.10.1).
        n_filled = found.sizes["time"] - n_written
        level = np.pad(np.ones((2, n_written)), [(0, 0), (0, n_filled)], constant_values=-5)
        np.testing.assert_array_equal(found["level"], level)


def test_dimensions_are_found_by_number_without_attached_scales(tmp_path: Path) -> None:
    # netCDF writes such files if its mode NC_NODIMSCALE_ATTACH is on.
    path = write_netcdf(tmp_path / "f.nc", height_in_the_root)
    with h5py.File(path, "r+") as file:
        file["temp"].attrs["_Netcdf4Coordinates"] = np.array([2, 1, 0], "i4")
        del file["temp"].attrs["DIMENSION_LIST"]
    assert facts(path, "h5ref") == facts(path, "netcdf4")
    assert facts(path, "h5ref")[0]["temp"][0] == ("z", "level", "a")


# --- entries of "DIMENSION_LIST" that are no scales of the axis ---------------------------


def copied_alone(file: h5py.File) -> None:
    with h5py.File("source", "w", driver="core", backing_store=False) as source:
        make_variable(source, "v", np.arange(3.0), make_scale(source, "x", np.arange(3)))
        source.copy("v", file)


def points_at_itself(file: h5py.File) -> None:
    dataset = file.create_dataset("v", data=np.arange(3.0))
    list_scales(dataset, [[dataset.ref]])


def points_at_another_dataset(file: h5py.File) -> None:
    dataset = file.create_dataset("v", data=np.arange(3.0))
    list_scales(dataset, [[file.create_dataset("other", data=np.arange(3)).ref]])


def points_at_another_group(file: h5py.File) -> None:
    dataset = file.create_dataset("v", data=np.arange(3.0))
    list_scales(dataset, [[file.create_dataset("g/other", data=np.arange(3)).ref]])


def points_at_a_group(file: h5py.File) -> None:
    dataset = file.create_dataset("v", data=np.arange(3.0))
    list_scales(dataset, [[file.create_group("g").ref]])


def points_at_the_root(file: h5py.File) -> None:
    dataset = file.create_dataset("v", data=np.arange(3.0))
    list_scales(dataset, [[file.ref]])


def points_at_a_datatype(file: h5py.File) -> None:
    dataset = file.create_dataset("v", data=np.arange(3.0))
    file["t"] = np.dtype("i4")
    list_scales(dataset, [[file["t"].ref]])


def holds_a_null_reference(file: h5py.File) -> None:
    list_scales(file.create_dataset("v", data=np.arange(3.0)), [[h5py.Reference()]])


def scale_was_deleted(file: h5py.File) -> None:
    make_variable(file, "v", np.arange(3.0), make_scale(file, "x", np.arange(3)))
    del file["x"]


def shorter_scale(file: h5py.File) -> None:
    make_variable(file, "v", np.arange(3.0), make_scale(file, "x", np.arange(2)))


def longer_scale(file: h5py.File) -> None:
    make_variable(file, "v", np.arange(3.0), make_scale(file, "x", np.arange(5)))


def longer_scale_of_the_parent(file: h5py.File) -> None:
    x = make_scale(file, "x", np.arange(5))
    make_variable(file.create_group("g"), "v", np.arange(3.0), x)


def scalar_scale(file: h5py.File) -> None:
    make_variable(file, "v", np.arange(3.0), make_scale(file, "x", 7))


def list_of_text(file: h5py.File) -> None:
    file["v"] = np.arange(3.0)
    file["v"].attrs["DIMENSION_LIST"] = "x"


def list_of_numbers(file: h5py.File) -> None:
    file["v"] = np.arange(3.0)
    file["v"].attrs["DIMENSION_LIST"] = [1]


def list_of_sequences_of_numbers(file: h5py.File) -> None:
    file["v"] = np.arange(3.0)
    lists = np.empty(1, dtype=object)
    lists[0] = np.arange(3)
    file["v"].attrs.create("DIMENSION_LIST", lists, dtype=h5py.vlen_dtype("i4"))


def list_without_sequences(file: h5py.File) -> None:
    file["v"] = np.arange(3.0)
    references = np.array([make_scale(file, "x", np.arange(3)).ref], dtype=h5py.ref_dtype)
    file["v"].attrs["DIMENSION_LIST"] = references


def list_of_regions(file: h5py.File) -> None:
    file["v"] = np.arange(3.0)
    x = make_scale(file, "x", np.arange(3))
    regions = np.array([x.regionref[:]], dtype=h5py.regionref_dtype)
    file["v"].attrs.create("DIMENSION_LIST", regions, dtype=h5py.regionref_dtype)


def long_list(file: h5py.File) -> None:
    file["v"] = np.arange(3.0)
    x = make_scale(file, "x", np.arange(3))
    list_scales(file["v"], [[x.ref], [x.ref]])


WRONG_ENTRIES = {
    copied_alone: "axis 0: 'DIMENSION_LIST' points at ",
    points_at_itself: "axis 0: 'DIMENSION_LIST' points at the dataset itself",
    points_at_another_dataset: "axis 0: .* points at 'other', which is no dimension scale",
    points_at_another_group: "axis 0: .* points at '/g/other', which is no dimension scale",
    points_at_a_group: "axis 0: .* points at 'g', a group",
    points_at_the_root: "axis 0: .* points at '/', a group",
    points_at_a_datatype: "axis 0: .* points at 't', a datatype",
    holds_a_null_reference: "axis 0: .* holds a null reference",
    scale_was_deleted: "axis 0: .* points at address 0x[0-9a-f]+, where no object is",
    shorter_scale: r"axis 0: .* points at 'x', a dimension scale of shape \(2,\).* has 3",
    longer_scale: r"axis 0: .* points at 'x', a dimension scale of shape \(5,\).* has 3",
    longer_scale_of_the_parent: r"axis 0: .* points at '/x', .* shape \(5,\).* has 3",
    scalar_scale: r"axis 0: .* points at 'x', a dimension scale of shape \(\)",
    list_of_text: "'DIMENSION_LIST' does not hold sequences of object references",
    list_of_numbers: "'DIMENSION_LIST' does not hold sequences of object references",
    list_of_sequences_of_numbers: "does not hold sequences of object references",
    list_without_sequences: "does not hold sequences of object references",
    list_of_regions: "does not hold sequences of object references",
    long_list: r"has shape \(2,\), and the dataset has rank 1",
}


def one_warning(action: Callable[[], Any], pattern: str) -> Any:
    with pytest.warns(UnreadableMemberWarning, match=pattern) as told:
        result = action()
    assert len(told) == 1, [str(w.message) for w in told]
    return result


@pytest.mark.parametrize("track_order", [False, True])
@pytest.mark.parametrize("build", WRONG_ENTRIES)
def test_entries_that_are_no_scales_are_ignored_with_one_warning(
    tmp_path: Path, build: Build, track_order: bool
) -> None:
    path = write(tmp_path / "f.h5", build, track_order=track_order)
    with h5py.File(path) as file:
        group = "/" if "v" in file else "g"
        scales = {n: d[()] for n, d in file.items() if n == "x"}
    pattern = rf"f\.h5: '/(g/)?v': .*{WRONG_ENTRIES[build]}"
    ds = one_warning(lambda: xr.open_dataset(path, engine="h5ref", group=group), pattern)
    (dim,) = ds["v"].dims
    assert dim.startswith("phony_dim_")
    np.testing.assert_array_equal(ds["v"], np.arange(3.0))
    if group == "/":
        for name, values in scales.items():
            np.testing.assert_array_equal(ds[name], values)
    resolve = ds["v"].h5ref.reference().resolve
    assert one_warning(resolve, WRONG_ENTRIES[build]).dims == ("phony_dim_0",)


def test_each_axis_is_named_by_itself(tmp_path: Path) -> None:
    def build(file: h5py.File) -> None:
        x, y = make_scale(file, "x", np.arange(3)), make_scale(file, "y", np.arange(3))
        dataset = file.create_dataset("v", data=np.ones((3, 3, 3, 3)))
        list_scales(dataset, [[x.ref], [dataset.ref], [x.ref, dataset.ref], []])
        assert y.shape == (3,)

    path = write(tmp_path / "f.h5", build)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ds = xr.open_dataset(path, engine="h5ref")
    messages = [str(w.message) for w in told if w.category is UnreadableMemberWarning]
    assert len(messages) == 2
    assert re.search("axis 1: .*the axis gets a phony name", messages[0])
    assert re.search("axis 2: .*another scale of the axis is used", messages[1])
    first, second, third, fourth = ds["v"].dims
    assert (first, third, fourth) == ("x", "x", "y")
    assert second.startswith("phony_dim_")


def test_a_list_of_the_wrong_length_names_no_axis(tmp_path: Path) -> None:
    def build(file: h5py.File) -> None:
        x = make_scale(file, "x", np.arange(3))
        list_scales(file.create_dataset("v", data=np.ones((3, 2))), [[x.ref]])

    path = write(tmp_path / "f.h5", build)
    pattern = r"'/v': .* has shape \(1,\), and the dataset has rank 2"
    ds = one_warning(lambda: xr.open_dataset(path, engine="h5ref"), pattern)
    assert all(dim.startswith("phony_dim_") for dim in ds["v"].dims)


def test_trees_open_although_a_scale_of_the_parent_has_another_length(tmp_path: Path) -> None:
    path = write(tmp_path / "f.h5", longer_scale_of_the_parent)
    tree = one_warning(lambda: xr.open_datatree(path, engine="h5ref"), r"'/g/v': axis 0")
    assert tree["x"].size == 5
    assert tree["g/v"].shape == (3,)


# --- scales without values that can be read -----------------------------------------------


@pytest.mark.parametrize("is_variable", [True, False])
@pytest.mark.parametrize("track_order", [False, True])
def test_a_scale_without_a_dataspace_names_its_dimension(
    tmp_path: Path, is_variable: bool, track_order: bool
) -> None:
    def build(file: h5py.File) -> None:
        x = file.create_dataset("x", data=h5py.Empty("f8"))
        x.make_scale("x" if is_variable else NO_VARIABLE % 3)
        make_variable(file, "v", np.arange(3.0), x)
        make_variable(file, "w", np.ones((3, 2)), x)
        make_variable(file.create_group("g"), "u", np.arange(4.0), x)

    path = write(tmp_path / "f.h5", build, track_order=track_order)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tree = xr.open_datatree(path, engine="h5ref")
    messages = [str(w.message) for w in told]
    assert len(messages) == is_variable + 1
    assert "/g/u: dimension 'x' has 3 elements elsewhere and 4 here" in messages[-1]
    assert ("'/x' was left out" in messages[0]) == is_variable
    assert tree["v"].dims == ("x",)
    assert tree["g/u"].dims != ("x",)
    assert tree["w"].dims[0] == "x"
    assert "x" not in tree.coords
    assert tree["v"].h5ref.reference().resolve().dims == ("x",)


def test_a_scale_without_a_dataspace_along_no_axis_is_an_empty_variable(tmp_path: Path) -> None:
    def build(file: h5py.File) -> None:
        file.create_dataset("x", data=h5py.Empty("f8")).make_scale("x")
        file["v"] = np.arange(3.0)

    ds = xr.open_dataset(write(tmp_path / "f.h5", build), engine="h5ref")
    assert ds["x"].shape == (0,)
    assert ds["v"].dims != ds["x"].dims


def unreadable_float() -> h5py.h5t.TypeFloatID:
    """Return a type of floats that NumPy does not have."""
    odd = h5py.h5t.IEEE_F64LE.copy()
    odd.set_ebias(2**24)
    return odd


@pytest.mark.parametrize("limit", [3, h5py.h5s.UNLIMITED])
@pytest.mark.parametrize("alias", [None, "a", "z"])
def test_a_scale_that_cannot_be_read_keeps_its_name_and_length(
    tmp_path: Path, alias: str | None, limit: int
) -> None:
    def build(file: h5py.File) -> None:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((3,))
        space = h5py.h5s.create_simple((3,), (limit,))
        scale = h5py.h5d.create(file.id, b"t", unreadable_float(), space, properties)
        h5py.h5ds.set_scale(scale, b"t")
        for name, n in (("v", 3), ("w", 3 if limit == 3 else 2)):
            file.create_dataset(name, data=np.arange(n), maxshape=(None,))
            h5py.h5ds.attach_scale(file[name].id, scale, 0)
        if alias is not None:
            file[alias] = h5py.SoftLink("/t") if alias == "z" else file["t"]

    path = write(tmp_path / "f.h5", build)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found, _, unlimited = facts(path, "h5ref")
    assert len(told) == (2 if alias else 1)  # one for each name
    assert all("was left out" in str(w.message) for w in told)
    expected, _, expected_unlimited = facts(path, "netcdf4")
    assert found == {name: expected[name] for name in ("v", "w")}
    assert unlimited == expected_unlimited


@pytest.mark.parametrize(
    "dtype",
    [h5py.ref_dtype, h5py.regionref_dtype, h5py.vlen_dtype("i4"), np.dtype("V4")],
    ids=["references", "regions", "sequences", "opaque"],
)
def test_scales_of_unusual_types_are_coordinates(tmp_path: Path, dtype: Any) -> None:
    def build(file: h5py.File) -> None:
        x = file.create_dataset("x", (3,), dtype=dtype)
        x.make_scale("x")
        make_variable(file, "v", np.arange(3.0), x)

    found, coords, _ = facts(write(tmp_path / "f.h5", build), "h5ref")
    assert found == {"v": (("x",), (3,)), "x": (("x",), (3,))}
    assert coords == {"x"}


# --- lengths of unlimited dimensions ------------------------------------------------------


def test_a_variable_with_two_names_counts_once_along_an_unlimited_dimension(
    tmp_path: Path,
) -> None:
    def build(file: h5py.File) -> None:
        x = make_scale(file, "x", np.arange(3), maxshape=(None,))
        file["w"] = make_variable(file, "v", np.ones(2), x, maxshape=(None,))
        make_variable(file.create_group("g"), "long", np.ones(7), x, maxshape=(None,))

    path = write(tmp_path / "f.h5", build)
    assert facts(path, "h5ref") == facts(path, "netcdf4")
    assert facts(path, "h5ref")[0]["v"][1] == (7,)


def test_trees_have_the_length_of_a_coordinate_of_a_subgroup(tmp_path: Path) -> None:
    def build(file: Any) -> None:
        file.createDimension("time", None)
        file.createVariable("u", "f4", ("time",), fill_value=-1)[:1] = 1
        group = file.createGroup("g")
        group.createDimension("level", 2)
        group.createVariable("level", "f4", ("level", "time"))[:] = np.ones((2, 4))

    path = write_netcdf(tmp_path / "f.nc", build)
    found = xr.open_datatree(path, engine="h5ref", decode_cf=False)
    expected = xr.open_datatree(path, engine="netcdf4", decode_cf=False)
    assert found.sizes == expected.sizes == {"time": 4}
    np.testing.assert_array_equal(found["u"], expected["u"])
    assert found["g"].sizes == expected["g"].sizes
    for path_of_group in ("/", "g"):
        names = found[path_of_group].encoding["unlimited_dims"]
        assert names == expected[path_of_group].encoding["unlimited_dims"]


# --- resolved references have the names that opening gives --------------------------------


@pytest.mark.parametrize("track_order", [False, True])
@pytest.mark.parametrize(
    "build",
    [
        hard_link_after,
        hard_link_before,
        soft_link_before,
        chain_of_soft_links,
        link_without_variable,
        link_in_the_parent,
        soft_link_in_the_parent,
        soft_link_in_the_group,
        hard_link_in_the_group,
        links_to_a_scale_of_a_subgroup,
        link_to_a_scale_of_a_sibling,
        soft_link_to_a_scale_of_a_sibling,
        scale_of_a_grandparent,
        dimensions_of_one_length,
        several_scales_on_an_axis,
    ],
)
def test_resolved_targets_have_the_names_that_opening_gives(
    tmp_path: Path, build: Build, track_order: bool
) -> None:
    path = write(tmp_path / "f.h5", build, track_order=track_order)
    n_compared = 0
    for ds in xr.open_groups(path, engine="h5ref").values():
        for name in {"v", "w"} & set(ds.data_vars):
            opened = ds[name]
            reference = opened.h5ref.reference()
            region = opened.h5ref.region_reference(*[slice(0, 2)] * opened.ndim)
            assert reference.resolve().dims == region.resolve().dims == opened.dims
            assert isinstance(region, xref.RegionReference)
            n_compared += 1
    assert n_compared


def test_resolved_coordinate_variables_of_several_dimensions_have_the_names_of_opening(
    tmp_path: Path,
) -> None:
    path = tmp_path / "f.nc"
    with netCDF4.Dataset(path, "w") as nc:
        nc.createDimension("x", 4)
        nc.createDimension("t", None)
        nc.createVariable("t", "f8", ("t", "x"))[:3] = np.arange(12).reshape(3, 4)
        model = nc.createGroup("model")
        model.createDimension("y", 4)
        inner = model.createGroup("inner")
        inner.createDimension("z", 3)
        inner.createVariable("z", "f4", ("z", "y", "x"))[:] = np.arange(48).reshape(3, 4, 4)
        inner.createVariable("x", "f4", ("y", "x"))[:] = np.arange(16).reshape(4, 4)
        inner.createVariable("temp", "f4", ("z", "x"))[:] = 1
        inner.createVariable("wind", "f4", ("x", "z", "y"))[:] = 1
    found = {}
    for group, ds in xr.open_groups(path, engine="h5ref").items():
        for name, opened in ds.variables.items():
            reference = ds[name].h5ref.reference()
            region = ds[name].h5ref.region_reference(*[slice(0, 2)] * opened.ndim)
            assert reference.resolve().dims == region.resolve().dims == opened.dims
            assert np.array_equal(reference.resolve().values, opened.values)
            # A coordinate variable resolves without itself as a coordinate; "x" is no scale.
            assert set(reference.resolve().coords) == set(ds[name].coords) - {name, "x"}
            found[group, name] = opened.dims
    assert found == {
        ("/", "t"): ("t", "x"),
        ("/model/inner", "z"): ("z", "y", "x"),
        ("/model/inner", "x"): ("y", "x"),
        ("/model/inner", "temp"): ("z", "x"),
        ("/model/inner", "wind"): ("x", "z", "y"),
    }
    with xr.open_dataset(path, engine="h5ref", group="model/inner") as ds:
        part = (
            ds["wind"].h5ref.region_reference(slice(1, 3), slice(0, 1), slice(2, 4)).resolve()
        )
        assert np.array_equal(part["z"].values, ds["z"].values[:1, 2:4, 1:3])


def test_a_resolved_scale_of_several_axes_without_numbers_names_its_first_axis(
    tmp_path: Path,
) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(8).reshape(4, 2)
        file["x"].make_scale()
    with xr.open_dataset(path, engine="h5ref") as ds:
        assert ds["x"].dims == ds["x"].h5ref.reference().resolve().dims == ("x", "phony_dim_0")
