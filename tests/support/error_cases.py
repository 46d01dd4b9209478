"""Calls of the public API that raise, each with the facts that the text must have.

A case is a function that gets `Files` and makes one call that raises. The decorator `raises`
enters it in `CASES` with the type of the error and the parts of its text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import pandas as pd
import stdrefs
import xarray as xr

import xref
from xref.selections import Blocks, Hyperslab, Points

TIMESERIES = np.dtype([("start", "i4"), ("count", "i4"), ("series", h5py.ref_dtype)])
HELD = np.dtype([("weight", "f4"), ("to", h5py.regionref_dtype), ("text", "S3")])


@dataclass(frozen=True)
class Case:
    """One call that raises."""

    name: str
    call: Callable[[Files], Any]
    error: type[Exception]
    says: tuple[str, ...]


CASES: dict[str, Case] = {}


def _is_same(known: Callable[[Files], Any], call: Callable[[Files], Any]) -> bool:
    return known.__code__.co_filename == call.__code__.co_filename


def raises(
    error: type[Exception], *says: str
) -> Callable[[Callable[[Files], Any]], Callable[[Files], Any]]:
    """Enter a function in the table of cases."""

    def enter(call: Callable[[Files], Any]) -> Callable[[Files], Any]:
        known = CASES.get(call.__name__)
        # A collection of doctests imports the modules of cases a second time.
        assert known is None or _is_same(known.call, call), call.__name__
        CASES[call.__name__] = Case(call.__name__, call, error, says)
        return call

    return enter


@dataclass
class Files:
    """A folder with a file of references of every kind, and what was opened from it."""

    folder: Path
    good: Path
    opened: list[Any] = field(default_factory=list)

    @cached_property
    def ds(self) -> xr.Dataset:
        """The root group of the valid file."""
        return self.open(self.good)

    def write(self, name: str, fill: Callable[[h5py.File], Any], **options: Any) -> Path:
        """Write a file."""
        path = self.folder / name
        with h5py.File(path, "w", **options) as file:
            fill(file)
        return path

    def open(self, path: Any, **options: Any) -> xr.Dataset:
        """Open a group of a file; it is closed after the case."""
        self.opened.append(xr.open_dataset(path, engine="h5ref", **options))
        return self.opened[-1]

    def close(self) -> None:
        """Close all files."""
        for ds in self.opened:
            ds.close()


def write_good(file: h5py.File) -> None:
    """Fill the valid file."""
    image = file.create_dataset("image", data=np.arange(600.0).reshape(20, 30), chunks=(5, 10))
    line = file.create_dataset("line", data=np.arange(12, dtype="i4"), maxshape=(None,))
    file["y"], file["x"] = np.arange(20) * 10, np.arange(30)
    for axis, dim in enumerate("yx"):
        file[dim].make_scale(dim)
        image.dims[axis].attach_scale(file[dim])
    file["group/inner"] = np.arange(3)
    file["named_type"] = np.dtype("f4")
    file["words"] = ["a", "bb"]
    file.create_dataset("arrays", (4,), dtype=np.dtype(("f4", (2,))))
    file["times"] = np.arange(3)
    file["times"].attrs["units"] = "days since 2000-01-01"
    file["gone"] = [1]
    file["scalar"] = 5.0
    file["small"] = np.arange(6, dtype="u1").reshape(2, 3)

    def regions(name: str, *values: Any) -> None:
        dataset = file.create_dataset(name, (len(values),), dtype=h5py.regionref_dtype)
        for i, value in enumerate(values):
            if value is not None:
                dataset[i] = value

    def objects(name: str, *paths: str | None) -> None:
        dataset = file.create_dataset(name, (len(paths),), dtype=h5py.ref_dtype)
        for i, path in enumerate(paths):
            if path is not None:
                dataset[i] = file[path].ref

    boxes = [image.regionref[k : k + 2, 3 : 3 + k] for k in range(1, 5)]
    regions("rois", *(image.regionref[k : k + 2, :4] for k in range(4)))
    regions("unequal", *boxes)
    regions("ranks", boxes[0], line.regionref[2:5])
    regions("nulls", boxes[0], None, boxes[2])
    regions("strided", image.regionref[0:9:3, :4])
    regions("beyond", line.regionref[:3], line.regionref[8:12])
    regions("words_of", file["words"].regionref[:1])
    regions("arrays_of", file["arrays"].regionref[:2])
    regions("kinds_of", image.regionref[:1, :2], file["words"].regionref[:2])
    objects("objects", "image", "line", "words")
    objects("groups", "group", "/")
    objects("mixed", "group", "line", "named_type", None)
    objects("null_group", "group", None)
    objects("dangling", "image", "gone")
    objects("of_references", "rois")
    objects("one_type", "named_type")
    objects("scalars", "scalar")
    held = file.create_dataset("held", (3,), dtype=HELD)
    held[1] = np.array((1, line.regionref[8:12], b"xy"), dtype=HELD)
    series = np.array([(0, 3, line.ref), (11, 9, line.ref)], dtype=TIMESERIES)
    file.create_dataset("series", data=series, dtype=TIMESERIES)
    cells = file.create_dataset("cells", (2,), dtype=h5py.vlen_dtype(h5py.ref_dtype))
    cells[0] = np.array([line.ref], dtype=h5py.ref_dtype)
    line.attrs["region"] = line.regionref[8:12]
    line.attrs["object"] = file["gone"].ref
    line.attrs["null"] = h5py.Reference()
    file.attrs["region"] = line.regionref[8:12]
    stdrefs.write_dataset(
        file,
        "attributes",
        [
            stdrefs.to_attribute(file, "/times", "units"),
            stdrefs.to_attribute(file, "/line", "region"),
            stdrefs.to_object(file, "/line"),
            None,
        ],
    )
    line.resize((10,))
    del file["gone"]


# Arguments: the text has the name of the argument, its value and what is allowed.


@raises(ValueError, "layout", "'stac'", "'stack'", "'ragged'", "'pad'")
def an_unknown_layout(at: Files) -> Any:
    return at.ds.rois.h5ref.resolve("stac")


@raises(ValueError, "on_null", "'skip'", "'raise'", "'fill'", "'drop'")
def an_unknown_treatment_of_null(at: Files) -> Any:
    return at.ds.rois.h5ref.resolve(on_null="skip")


@raises(ValueError, "reader", "'fast'", "'auto'", "'direct'", "'h5py'")
def an_unknown_reader(at: Files) -> Any:
    return at.open(at.good, reader="fast")


@raises(ValueError, "format", "'NETCDF3'", "'NETCDF4'")
def an_unknown_format(at: Files) -> Any:
    return at.open(at.good, format="NETCDF3")


@raises(ValueError, "phony_dims", "'none'", "'sort'")
def an_unknown_naming_of_dimensions(at: Files) -> Any:
    return at.open(at.good, phony_dims="none")


@raises(ValueError, "external", "'some'", "'same-dir'", "'all'", "'none'")
def an_unknown_policy_for_other_files(at: Files) -> Any:
    return at.open(at.good, external="some")


@raises(ValueError, "no option 'big_results'", "'large_results'")
def an_unknown_option(at: Files) -> Any:
    return xref.set_options(big_results=True)


@raises(ValueError, "large_results is 3")
def a_wrong_value_of_an_option(at: Files) -> Any:
    return xref.set_options(large_results=3)


@raises(TypeError, "'h5ref' cannot open", "int", "a path, a URL")
def a_file_that_is_a_number(at: Files) -> Any:
    return at.open(5)


@raises(ValueError, "signature", "netCDF4")
def bytes_of_another_format(at: Files) -> Any:
    return at.open(b"no HDF5 here")


@raises(xref.errors.FileReadError, "signature", "text.txt")
def a_file_of_another_format(at: Files) -> Any:
    (at.folder / "text.txt").write_text("no HDF5 here")
    return at.open(at.folder / "text.txt")


@raises(TypeError, "is not a binary file")
def a_text_file_object(at: Files) -> Any:
    (at.folder / "text.txt").write_text("no HDF5 here")
    with (at.folder / "text.txt").open() as file:
        return at.open(file)


@raises(FileNotFoundError, "nowhere.h5")
def a_file_that_does_not_exist(at: Files) -> Any:
    return at.open(at.folder / "nowhere.h5")


@raises(OSError, "good.h5: group '/no/group' not found", "/no")
def a_group_that_does_not_exist(at: Files) -> Any:
    return at.open(at.good, group="/no/group")


def _write_scales(file: h5py.File, n: int) -> None:
    """Write a group whose scale of n elements has the name of a scale above it."""
    for path, values in (("x", np.arange(3.0)), ("run/trial/x", np.arange(n) + 5.0)):
        file[path] = values
        file[path].make_scale("x")


@raises(ValueError, "sizes.h5", "group '/run/trial'", "xarray.open_groups")
def a_tree_of_contradicting_dimensions(at: Files) -> Any:
    path = at.write("sizes.h5", lambda file: _write_scales(file, 4))
    return xr.open_datatree(path, engine="h5ref")


@raises(ValueError, "values.h5", "group '/run/trial'", "xarray.open_groups")
def a_tree_of_contradicting_coordinates(at: Files) -> Any:
    path = at.write("values.h5", lambda file: _write_scales(file, 3))
    return xr.open_datatree(path, engine="h5ref")


@raises(OSError, "good.h5: group '/image' not found", "not a group")
def a_dataset_opened_as_a_group(at: Files) -> Any:
    return at.open(at.good, group="/image")


@raises(TypeError, "'image' holds float64 values", "reference variables")
def values_without_references(at: Files) -> Any:
    return at.ds.image.h5ref.resolve()


@raises(TypeError, "'words_of' holds values of type str", "no references")
def objects_that_are_no_references(at: Files) -> Any:
    array = xr.DataArray(np.array(["a", 1.5], dtype=object)[:1], dims="k", name="words_of")
    return array.h5ref.resolve()


@raises(TypeError, "'cells' holds sequences", "from_references")
def sequences_of_references(at: Files) -> Any:
    return at.ds.cells.h5ref.resolve()


@raises(TypeError, "'y' holds int64 values", "'to'")
def a_member_of_numbers(at: Files) -> Any:
    return at.ds.y.h5ref.field("to")


@raises(KeyError, "'held'", "'two'", "weight, to, text")
def a_member_that_does_not_exist(at: Files) -> Any:
    return at.ds.held.h5ref.field("two")


@raises(TypeError, "member 'weight' of 'held' holds float32 values", ".values")
def a_member_without_references(at: Files) -> Any:
    return at.ds.held.h5ref.field("weight")


@raises(TypeError, "'held' holds no compounds of start, count and reference", "weight")
def compounds_that_are_no_regions(at: Files) -> Any:
    return at.ds.held.h5ref.resolve()


@raises(
    IndexError,
    "good.h5: object reference 1 of '/series', member 'series'",
    "9 elements from 11",
)
def compounds_beyond_their_target(at: Files) -> Any:
    return at.ds.series.h5ref.resolve("ragged")


@raises(ValueError, "chunks", "'z'", "'y'")
def chunks_along_an_unknown_dimension(at: Files) -> Any:
    return at.ds.rois.h5ref.resolve(chunks={"z": 3})


@raises(ValueError, "chunks is 'many'", "'auto'")
def chunks_of_a_wrong_type(at: Files) -> Any:
    return at.ds.rois.h5ref.resolve(chunks="many")


@raises(ValueError, "chunks is -3", "positive")
def chunks_of_a_negative_size(at: Files) -> Any:
    return at.ds.rois.h5ref.resolve(chunks=-3)


@raises(ValueError, "fill_value 'x'", "float64")
def a_fill_value_of_another_kind(at: Files) -> Any:
    return at.ds.unequal.h5ref.resolve("pad", fill_value="x")


@raises(
    ValueError, "good.h5", "/unequal", "different shapes", "layout='ragged'", "layout='pad'"
)
def shapes_that_do_not_stack(at: Files) -> Any:
    return at.ds.unequal.h5ref.resolve()


@raises(ValueError, "good.h5", "/ranks", "dimensions", "layout='ragged'")
def ranks_that_do_not_pad(at: Files) -> Any:
    return at.ds.ranks.h5ref.resolve("pad")


@raises(ValueError, "good.h5: '/kinds_of'", "float64", "dtype=")
def types_without_a_common_type(at: Files) -> Any:
    return at.ds.kinds_of.h5ref.resolve("ragged")


@raises(ValueError, "dtype='U'", "no length", "'U20'")
def a_dtype_without_a_length(at: Files) -> Any:
    return at.ds.words_of.h5ref.resolve(dtype="U")


@raises(ValueError, "int8", "300", "good.h5", "/image")
def a_dtype_that_does_not_hold_the_values(at: Files) -> Any:
    region = at.ds.image.h5ref.region_reference(slice(10, 15), slice(0, 3))
    array = xr.DataArray(xr.Variable("k", xref.ReferenceArray.from_references([region])))
    return array.h5ref.resolve(dtype="i1").values


@raises(ValueError, "fill_value 1.5", "int32")
def a_fill_value_that_the_dtype_does_not_hold(at: Files) -> Any:
    return at.ds.unequal.h5ref.resolve("pad", fill_value=1.5, dtype="i4")


@raises(ValueError, "layout='concat'", "good.h5: region reference 1 of '/ranks'", "(3,)")
def ranks_that_do_not_join(at: Files) -> Any:
    return at.ds.ranks.h5ref.resolve("concat")


@raises(ValueError, "'y'", "good.h5: region reference 1 of '/unequal'", "(2, 2)", "'ragged'")
def shapes_that_do_not_join(at: Files) -> Any:
    return at.ds.unequal.h5ref.resolve("concat")


@raises(ValueError, "concat_dim='y'", "layout='concat'", "'stack'")
def joining_in_another_layout(at: Files) -> Any:
    return at.ds.rois.h5ref.resolve(concat_dim="y")


@raises(ValueError, "dtype int32 has no missing value", "fill_value=")
def padding_with_a_dtype_without_a_missing_value(at: Files) -> Any:
    return at.ds.unequal.h5ref.resolve("pad", dtype="i4")


@raises(ValueError, "concat_dim is 'z'", "'y'", "'x'")
def joining_along_an_unknown_dimension(at: Files) -> Any:
    return at.ds.rois.h5ref.resolve("concat", concat_dim="z")


@raises(ValueError, "layout='concat'", "good.h5: object reference 0 of '/scalars'", "scalars")
def joining_scalars(at: Files) -> Any:
    return at.ds.scalars.h5ref.resolve("concat")


@raises(AttributeError, "module 'xref' has no attribute 'nothing'")
def a_name_that_the_package_does_not_have(at: Files) -> Any:
    return xref.nothing


# References of files: the text has the file, the variable or attribute, and the element.


@raises(
    xref.errors.NullReferenceError,
    "good.h5: region reference 1 of '/nulls' is null",
    "on_null='drop'",
)
def a_null_reference(at: Files) -> Any:
    return at.ds.nulls.h5ref.resolve("ragged")


@raises(ValueError, "on_null='drop'", "one dimension", "'a'", "'b'")
def null_references_of_two_dimensions(at: Files) -> Any:
    array = at.ds.nulls.expand_dims(a=2)
    return array.rename({array.dims[1]: "b"}).h5ref.resolve(on_null="drop")


@raises(xref.errors.NullReferenceError, "good.h5: object reference 1 of '/null_group' is null")
def a_null_reference_among_groups(at: Files) -> Any:
    return at.ds.null_group.h5ref.resolve()


@raises(
    ValueError,
    "good.h5: object reference 1 of '/mixed' points at a dataset",
    "groups",
    ".items()",
)
def groups_and_datasets(at: Files) -> Any:
    return at.ds.mixed[:3].h5ref.resolve(on_null="drop")


@raises(
    xref.errors.WrongTargetError,
    "good.h5: object reference 0 of '/one_type'",
    "datatype",
    ".items()",
)
def a_reference_to_a_named_datatype(at: Files) -> Any:
    return at.ds.one_type.h5ref.resolve()


@raises(
    xref.errors.SelectionError,
    "good.h5: region reference 1 of '/beyond'",
    "(8,) to (12,)",
    "(10,)",
    "/line",
)
def a_region_beyond_the_extent(at: Files) -> Any:
    return at.ds.beyond[::-1][:1].h5ref.resolve()


@raises(xref.errors.SelectionError, "good.h5: region reference 1 of '/beyond'", "(10,)")
def a_statistic_of_a_region_beyond_the_extent(at: Files) -> Any:
    return at.ds.beyond.h5ref.mean()


@raises(
    xref.errors.SelectionError,
    "good.h5: attribute 'region' of '/line'",
    "(8,) to (12,)",
    "(10,)",
)
def a_region_in_an_attribute(at: Files) -> Any:
    return at.ds.line.attrs["region"].resolve()


@raises(xref.errors.SelectionError, "good.h5: attribute 'region' of '/'", "(10,)")
def a_region_in_an_attribute_of_the_file(at: Files) -> Any:
    return at.ds.attrs["region"].shape


@raises(
    xref.errors.SelectionError, "good.h5: region reference 1 of '/held', member 'to'", "(10,)"
)
def a_region_in_a_compound(at: Files) -> Any:
    return at.ds.held.h5ref.field("to")[1:2].h5ref.resolve()


@raises(
    xref.errors.DanglingReferenceError, "good.h5: object reference 1 of '/dangling'", ".table()"
)
def a_dangling_reference(at: Files) -> Any:
    return at.ds.dangling.h5ref.resolve("ragged")


@raises(xref.errors.DanglingReferenceError, "good.h5: attribute 'object' of '/line'")
def a_dangling_reference_in_an_attribute(at: Files) -> Any:
    return at.ds.line.attrs["object"].resolve()


@raises(xref.errors.DanglingReferenceError, "good.h5: object reference 1 of '/dangling'")
def attributes_of_a_dangling_target(at: Files) -> Any:
    return at.ds.dangling.h5ref.target_attrs()


@raises(xref.errors.NullReferenceError, "good.h5: attribute 'null' of '/line' is null")
def a_null_reference_in_an_attribute(at: Files) -> Any:
    return at.ds.line.attrs["null"].resolve()


@raises(xref.errors.NullReferenceError, "good.h5: region reference 1 of '/nulls' is null")
def a_null_region(at: Files) -> Any:
    return at.ds.nulls.values[1].resolve()


@raises(xref.errors.NullReferenceError, "good.h5: region reference 1 of '/nulls' is null")
def the_shape_of_a_null_region(at: Files) -> Any:
    return at.ds.nulls.values[1].shape


@raises(xref.errors.NullReferenceError, "attribute reference is null")
def a_null_attribute_reference(at: Files) -> Any:
    return xref.AttributeReference(xref.ObjectReference(None, 0), "").resolve()


@raises(
    xref.errors.SelectionError,
    "good.h5: region reference to /image",
    "3 dimensions",
    "(20, 30)",
)
def a_region_of_another_rank(at: Files) -> Any:
    slab = Hyperslab((0, 0, 0), (1, 1, 1), (1, 1, 1), (2, 2, 2))
    return xref.RegionReference(at.ds.image.h5ref.reference(), slab).resolve()


@raises(xref.errors.ResultTooLargeError, "wide.h5", "/image", "100000 overlapping blocks")
def a_union_of_too_many_blocks(at: Files) -> Any:
    start = np.random.default_rng(0).integers(0, 10**9, (100_000, 2))
    union = Blocks(start, start + 10**6)
    path = at.write(
        "wide.h5",
        lambda file: file.create_dataset("image", (2 * 10**9,) * 2, "u1", chunks=(1000, 1000)),
    )
    return xref.RegionReference(at.open(path).image.h5ref.reference(), union).resolve()


@raises(xref.errors.SelectionError, "good.h5: region reference to /line", "(10,)")
def points_beyond_the_extent(at: Files) -> Any:
    points = Points(np.array([[3], [50]]))
    return xref.RegionReference(at.ds.line.h5ref.reference(), points).resolve()


@raises(
    xref.errors.UnsupportedError,
    "good.h5: object reference 0 of '/of_references'",
    "region references",
    ".items()",
)
def references_to_references(at: Files) -> Any:
    return at.ds.of_references.h5ref.resolve()


@raises(
    xref.errors.WrongTargetError,
    "good.h5: reference 0 of '/attributes'",
    "attribute",
    ".h5ref.table()",
)
def a_statistic_of_attributes(at: Files) -> Any:
    return at.ds.attributes[:1].h5ref.count()


@raises(ValueError, "layout='ragged'", "attributes", ".items()")
def attributes_in_another_layout(at: Files) -> Any:
    return at.ds.attributes[:1].h5ref.resolve("ragged")


@raises(xref.errors.NullReferenceError, "good.h5: reference 3 of '/attributes' is null")
def a_null_reference_among_attributes(at: Files) -> Any:
    return at.ds.attributes[[0, 3]].h5ref.resolve()


@raises(ValueError, "good.h5: reference 2 of '/attributes'", "/line", "attributes", ".items()")
def an_object_among_attributes(at: Files) -> Any:
    return at.ds.attributes[[0, 2]].h5ref.resolve()


@raises(
    ValueError, "good.h5: reference 1 of '/attributes'", "attribute of references", ".items()"
)
def attributes_of_references(at: Files) -> Any:
    return at.ds.attributes[[0, 1]].h5ref.resolve()


# Statistics and functions of the user.


@raises(TypeError, "good.h5: region reference 0 of '/words_of'", "no mean of values", "map")
def the_mean_of_text(at: Files) -> Any:
    return at.ds.words_of.h5ref.mean()


@raises(
    TypeError,
    "good.h5: region reference 0 of '/arrays_of'",
    "no mean of elements that are arrays",
)
def the_mean_of_arrays(at: Files) -> Any:
    return at.ds.arrays_of.h5ref.mean()


def fail(values: Any) -> Any:
    raise ArithmeticError("it never works")


@raises(ValueError, "fail", "good.h5: '/rois'", "ArithmeticError: it never works", "dtype=")
def a_function_whose_dtype_is_not_found(at: Files) -> Any:
    return at.ds.rois.h5ref.map(fail)


@raises(
    ArithmeticError,
    "it never works",
    "good.h5: region reference 0 of '/rois'",
    "/image[0:2, 0:4]",
)
def a_function_that_fails(at: Files) -> Any:
    return at.ds.rois.h5ref.map(fail, dtype=float).compute(scheduler="synchronous")


@raises(ValueError, "(2, 4)", "()", "good.h5: region reference 0 of '/rois'", "output_sizes")
def a_function_with_results_of_another_shape(at: Files) -> Any:
    return at.ds.rois.h5ref.map(np.array, dtype=float).compute(scheduler="synchronous")


@raises(TypeError, "<U1", "float64", "good.h5: region reference 0 of '/rois'", "dtype=")
def a_function_with_results_of_another_type(at: Files) -> Any:
    return at.ds.rois.h5ref.map(lambda v: "x", dtype=float).compute(scheduler="synchronous")


@raises(ValueError, "the result of", "good.h5: region reference 0 of '/rois'", "dtype=")
def a_function_with_longer_text(at: Files) -> Any:
    return at.ds.rois.h5ref.map(lambda v: "xyz", dtype="U2").compute(scheduler="synchronous")


@raises(ValueError, "good.h5: region reference 0 of '/rois'", str(2**60 + 1), "float64")
def a_function_with_results_that_floats_do_not_hold(at: Files) -> Any:
    mapped = at.ds.rois.h5ref.map(lambda values: np.int64(2**60 + 1), dtype=float)
    return mapped.compute(scheduler="synchronous")


@raises(ValueError, "output_sizes", "good.h5: '/rois'")
def a_function_with_a_dimension_twice(at: Files) -> Any:
    rois = at.ds.rois
    return rois.h5ref.map(np.array, dtype=float, output_sizes={rois.dims[0]: 3})


# New references.


@raises(TypeError, "'image'", "xref.to_hdf5")
def a_reference_to_computed_values(at: Files) -> Any:
    array = xr.DataArray(np.zeros(3), dims="k", name="image")
    return array.h5ref.reference()


@raises(TypeError, "which elements of /image", "'image'", "region_reference")
def a_region_of_changed_values(at: Files) -> Any:
    image = at.ds.image
    return image.copy(data=image.values + 1).h5ref.region_reference()


@raises(TypeError, "by an index, by points or by labels")
def a_region_given_twice(at: Files) -> Any:
    return at.ds.image.h5ref.region_reference(3, y=20)


@raises(IndexError, "3 indices for 2 dimensions of 'image'")
def a_region_with_too_many_indices(at: Files) -> Any:
    return at.ds.image.h5ref.region_reference(1, 2, 3)


@raises(IndexError, "the mask lies along ['z']", "'image'")
def a_mask_along_another_dimension(at: Files) -> Any:
    return at.ds.image.h5ref.region_reference(xr.DataArray([True], dims="z"))


@raises(IndexError, "the mask has 3 elements along 'y'", "'image' has 20")
def a_mask_of_another_length(at: Files) -> Any:
    mask = xr.DataArray(np.ones(3, dtype=bool), dims="y")
    return at.ds.drop_vars("y").image.h5ref.region_reference(mask)


@raises(IndexError, "the index of 'y' is a DataArray", ".isel")
def an_index_that_is_a_dataarray(at: Files) -> Any:
    return at.ds.image.h5ref.region_reference(xr.DataArray([1, 2], dims="k"), 3)


@raises(IndexError, "a mask of shape (3,)", "20 elements of 'y'")
def a_mask_of_an_axis_of_another_length(at: Files) -> Any:
    return at.ds.image.h5ref.region_reference(np.ones(3, dtype=bool), 3)


@raises(IndexError, "'a' is no index of 'y'")
def an_index_that_is_text(at: Files) -> Any:
    return at.ds.image.h5ref.region_reference("a", 3)


@raises(IndexError, "index 99 is out of bounds for the 20 elements of 'y'")
def an_index_out_of_bounds(at: Files) -> Any:
    return at.ds.image.h5ref.region_reference(99, 3)


@raises(TypeError, "'arrays' are arrays")
def a_region_of_parts_of_elements(at: Files) -> Any:
    return at.ds.arrays.h5ref.region_reference(slice(0, 2), 1)


@raises(IndexError, "points of 'image'", "(n, 2)", "(3,)")
def points_of_a_wrong_shape(at: Files) -> Any:
    return at.ds.image.h5ref.region_reference(points=[1, 2, 3])


@raises(IndexError, "point 1, [40, 0]", "(20, 30)", "'image'")
def points_out_of_bounds(at: Files) -> Any:
    return at.ds.image.h5ref.region_reference(points=[[1, 2], [40, 0]])


@raises(KeyError, "'image' has no dimensions ['z']", "'y'")
def labels_of_an_unknown_dimension(at: Files) -> Any:
    return at.ds.image.h5ref.region_reference(z=3)


@raises(xref.errors.SelectionError, "good.h5", "'image'", "do not ascend", "points")
def positions_that_descend(at: Files) -> Any:
    return at.ds.image.isel(y=[3, 1]).h5ref.region_reference()


@raises(xref.errors.ResultTooLargeError, "wide.h5", "'image'", "blocks", "several references")
def a_region_of_too_many_blocks(at: Files) -> Any:
    path = at.write("wide.h5", lambda file: file.create_dataset("image", (9000, 9000), "u1"))
    scattered = 3 * np.arange(2900) + np.arange(2900) % 2
    return at.open(path).image.h5ref.region_reference(scattered, scattered)


@raises(TypeError, "start and shape")
def boxes_without_a_size(at: Files) -> Any:
    return at.ds.image.h5ref.regions([[0, 0]])


@raises(ValueError, "the size of boxes in 'image'", "(1, 3)", "2 numbers")
def boxes_of_another_rank(at: Files) -> Any:
    return at.ds.image.h5ref.regions([[0, 0]], [[1, 2, 3]])


@raises(KeyError, "'z'", "'image'", "'y_start'")
def boxes_with_an_unknown_column(at: Files) -> Any:
    return at.ds.image.h5ref.regions({"z": [1]}, (2, 2))


@raises(KeyError, "'z_start'", "'image'", "'y_start'")
def boxes_with_an_unknown_column_of_a_dataset(at: Files) -> Any:
    return at.ds.image.h5ref.regions(xr.Dataset({"z_start": ("k", [1])}), (2, 2))


@raises(KeyError, "'other'", "'image'", "'y_start'")
def boxes_without_a_column(at: Files) -> Any:
    return at.ds.image.h5ref.regions(pd.DataFrame({"other": [1]}), (2, 2))


@raises(ValueError, "'image'", "(2,)", "2 numbers")
def boxes_of_a_series_for_two_dimensions(at: Files) -> Any:
    return at.ds.image.h5ref.regions(pd.Series([1, 2]), (2, 2))


@raises(ValueError, "'image'", "'a'", "2 numbers")
def boxes_with_other_axis_labels(at: Files) -> Any:
    start = xr.DataArray([[1, 2]], dims=("k", "axis"), coords={"axis": ["a", "b"]})
    return at.ds.image.h5ref.regions(start, (2, 2))


@raises(ValueError, "'image'", "(1, 3)")
def boxes_of_a_dataarray_of_another_rank(at: Files) -> Any:
    return at.ds.image.h5ref.regions(xr.DataArray([[1, 2, 3]], dims=("k", "axis")), (2, 2))


@raises(ValueError, "'image'", "same labels or length")
def boxes_with_other_labels(at: Files) -> Any:
    start = xr.DataArray([[1, 2]], dims=("k", "a"), coords={"k": [5]})
    size = xr.DataArray([[1, 2]], dims=("k", "a"), coords={"k": [6]})
    return at.ds.image.h5ref.regions(start, size)


@raises(ValueError, "'image'", "['z']", "('k',)")
def boxes_along_other_dimensions(at: Files) -> Any:
    size = xr.DataArray([[1, 2]], dims=("z", "a"))
    return at.ds.image.h5ref.regions(xr.DataArray([[1, 2]], dims=("k", "a")), size)


@raises(TypeError, "the start of boxes must be integers", "float64")
def boxes_of_fractions(at: Files) -> Any:
    return at.ds.image.h5ref.regions([[0.5, 0]], (2, 2))


@raises(xref.errors.SelectionError, "box 1 of 'image'", "[19, 0]", "(20, 30)")
def boxes_beyond_the_variable(at: Files) -> Any:
    return at.ds.image.h5ref.regions([[0, 0], [19, 0]], (2, 2))


@raises(TypeError, "'image' were selected one by one")
def boxes_of_points(at: Files) -> Any:
    picks = xr.DataArray([1, 2], dims="k")
    return at.ds.image.isel(y=picks, x=picks).h5ref.regions([[0]], [[1]])


@raises(xref.errors.SelectionError, "'image'", "'y'", "gaps or another order")
def boxes_of_a_variable_with_gaps(at: Files) -> Any:
    return at.ds.image.isel(y=[1, 5, 7]).h5ref.regions([[0, 0]], (2, 2))


@raises(KeyError, "good.h5", "'nothing'")
def a_reference_to_a_path_that_does_not_exist(at: Files) -> Any:
    return at.ds.h5ref.reference("nothing")


@raises(TypeError, "no group of a file", "h5ref")
def a_reference_to_a_dataset_in_memory(at: Files) -> Any:
    return xr.Dataset({"a": 1}).h5ref.reference("a")


# Arrays of references.


@raises(TypeError, "object reference", "3.5")
def a_number_as_a_reference(at: Files) -> Any:
    return xref.ReferenceArray.from_references([3.5])


@raises(TypeError, "0-d")
def the_length_of_a_scalar_of_references(at: Files) -> Any:
    return len(at.ds.rois[0].data)


@raises(TypeError, "0-d")
def iterating_over_a_scalar_of_references(at: Files) -> Any:
    return list(at.ds.rois[0].data)


@raises(IndexError, "cannot be an index")
def references_as_an_index(at: Files) -> Any:
    return at.ds.rois.data[at.ds.rois.data]


@raises(ValueError, "copy=False")
def references_without_a_copy(at: Files) -> Any:
    return np.asarray(at.ds.rois.data, copy=False)


@raises(TypeError, "cannot be converted to float64")
def references_as_numbers(at: Files) -> Any:
    return np.asarray(at.ds.rois.data, dtype=float)


@raises(TypeError, "cannot be converted to int64", "bool")
def references_as_integers(at: Files) -> Any:
    return at.ds.rois.astype("i8").values


@raises(TypeError, "object references and region references do not mix")
def references_of_two_kinds(at: Files) -> Any:
    return np.concatenate([at.ds.rois.data, at.ds.objects.data])


@raises(TypeError, "padded with null references", "5")
def references_padded_with_a_number(at: Files) -> Any:
    return np.pad(at.ds.rois.data, 1, constant_values=5)


@raises(ValueError, "mask_and_scale", "True", "False", "equal options")
def references_opened_with_different_options(at: Files) -> Any:
    other = at.open(at.good, mask_and_scale=False)
    return xr.concat([at.ds.rois, other.rois], at.ds.rois.dims[0])


@raises(TypeError, "columns or stored references")
def an_array_of_references_without_references(at: Files) -> Any:
    return xref.ReferenceArray((3,), kind="object")


@raises(ValueError, "3 references", "(5,)")
def an_array_of_references_of_another_size(at: Files) -> Any:
    return xref.ReferenceArray((5,), kind="object", columns=at.ds.objects.data.columns)


@raises(TypeError, "not a selection", "5")
def a_region_without_a_selection(at: Files) -> Any:
    selection: Any = 5
    return xref.RegionReference(at.ds.image.h5ref.reference(), selection).resolve()


# Tables.


def table_with(at: Files, name: str = "rois", **columns: Any) -> xr.Dataset:
    table = at.ds[name].h5ref.table()
    return table.assign({k: change(table[k]) for k, change in columns.items()})


@raises(xref.errors.CorruptFileError, "no column 'kind'", "path")
def a_table_without_a_column(at: Files) -> Any:
    return xref.from_table(at.ds.rois.h5ref.table().drop_vars("kind"))


@raises(xref.errors.CorruptFileError, "column 'path' of the table lies along")
def a_table_with_a_column_along_other_dimensions(at: Files) -> Any:
    return xref.from_table(table_with(at, path=lambda c: c.isel({c.dims[0]: 0})))


@raises(xref.errors.CorruptFileError, "row 2 of the table", "'odd'", "dataset")
def a_table_with_an_unknown_kind(at: Files) -> Any:
    return xref.from_table(table_with(at, kind=lambda c: c.where(np.arange(4) != 2, "odd")))


@raises(xref.errors.CorruptFileError, "row 2 of the table", "'odd'", "hyperslab")
def a_table_with_an_unknown_selection(at: Files) -> Any:
    odd = table_with(at, selection=lambda c: c.where(np.arange(4) != 2, "odd"))
    return xref.from_table(odd)


@raises(xref.errors.CorruptFileError, "column 'start' of the table", "row 0", "-5")
def a_table_with_a_negative_start(at: Files) -> Any:
    return xref.from_table(table_with(at, start=lambda c: c * 0 - 5))


@raises(xref.errors.CorruptFileError, "column 'start' of the table", "<U")
def a_table_with_text_for_numbers(at: Files) -> Any:
    return xref.from_table(table_with(at, start=lambda c: c.astype(str)))


@raises(xref.errors.CorruptFileError, "row 0 of the table is no hyperslab", "stride [0, 0]")
def a_table_without_a_hyperslab(at: Files) -> Any:
    return xref.from_table(table_with(at, "strided", stride=lambda c: c * 0))


@raises(xref.errors.CorruptFileError, "row 0 of column 'rank'", "-1")
def a_table_with_a_wrong_rank(at: Files) -> Any:
    return xref.from_table(table_with(at, "ranks", rank=lambda c: c * 0 - 1))


@raises(xref.errors.CorruptFileError, "'start'", "'stop'", "differ in shape")
def a_table_with_columns_of_other_widths(at: Files) -> Any:
    table = at.ds.rois.h5ref.table()
    narrow = table["stop"].isel({table["stop"].dims[1]: slice(0, 1)})
    narrow = narrow.rename({narrow.dims[1]: "narrow"})
    return xref.from_table(table.assign(stop=narrow))


def table_of_points(at: Files) -> xr.Dataset:
    one = at.ds.image.h5ref.region_reference(points=[[1, 2], [3, 4], [2, 2]])
    array = xr.DataArray(xr.Variable("k", xref.ReferenceArray.from_references([one])))
    table: xr.Dataset = array.h5ref.table()
    return table


@raises(xref.errors.CorruptFileError, "row 0 of the table has 103 items")
def a_table_with_too_few_items(at: Files) -> Any:
    table = table_of_points(at)
    return xref.from_table(table.assign(item_count=table.item_count + 100))


@raises(xref.errors.CorruptFileError, "item 0 of the table", "start is past its end")
def a_table_with_an_item_without_elements(at: Files) -> Any:
    table = table_of_points(at)
    return xref.from_table(table.assign(item_stop=table.item_start))


@raises(xref.errors.CorruptFileError, "'item_start'", "'item_stop'", "2 numbers")
def a_table_with_items_of_another_shape(at: Files) -> Any:
    table = table_of_points(at)
    stop = table.item_stop.isel({table.item_stop.dims[0]: slice(0, 2)})
    return xref.from_table(table.assign(item_stop=stop.rename({stop.dims[0]: "fewer"})))


@raises(xref.errors.CorruptFileError, "column 'item_stop' of the table lies along")
def a_table_with_items_along_one_dimension(at: Files) -> Any:
    table = table_of_points(at)
    stop = table.item_stop
    return xref.from_table(table.assign(item_stop=stop.isel({stop.dims[1]: 0})))


@raises(
    xref.errors.DanglingReferenceError, "good.h5", "'/nowhere'", "4 references of the table"
)
def a_table_with_a_path_that_does_not_exist(at: Files) -> Any:
    return xref.from_table(table_with(at, path=lambda c: c.where(False, "/nowhere")))


@raises(xref.errors.DanglingReferenceError, "good.h5", "without a path")
def a_table_without_paths_for_another_file(at: Files) -> Any:
    return xref.from_table(table_with(at, path=lambda c: c.where(False, "")), at.good)


@raises(
    xref.errors.SelectionError, "good.h5: region reference 1 of the table", "(10,)", "/line"
)
def a_region_of_a_table_beyond_the_extent(at: Files) -> Any:
    return xref.from_table(at.ds.beyond.h5ref.table()).h5ref.resolve()


# Writing.


@raises(
    xref.errors.DanglingReferenceError,
    "b.h5: attribute 'object' of '/raw'",
    "good.h5: attribute 'object' of '/line'",
    "no object",
    "on_missing=",
)
def writing_an_attribute_without_its_target(at: Files) -> Any:
    raw = xr.DataArray(np.zeros(2), dims="k", attrs={"object": at.ds.line.attrs["object"]})
    return xref.to_hdf5(xr.Dataset({"raw": raw}), at.folder / "b.h5")


@raises(
    xref.errors.DanglingReferenceError,
    "b.h5: '/rois'",
    "good.h5: region reference 0 of '/rois'",
    "'/image'",
    "on_missing=",
)
def writing_references_without_their_target(at: Files) -> Any:
    return xref.to_hdf5(at.ds[["rois"]], at.folder / "b.h5")


@raises(
    xref.errors.DanglingReferenceError,
    "b.h5: '/attributes'",
    "good.h5: reference 0 of '/attributes'",
    "attribute",
    "on_missing='null'",
)
def writing_references_to_attributes(at: Files) -> Any:
    return xref.to_hdf5(
        at.ds[["attributes", "times", "line"]].isel({at.ds.attributes.dims[0]: [0]}),
        at.folder / "b.h5",
    )


@raises(ValueError, "mode", "'x'", "'w'", "'a'")
def writing_in_an_unknown_mode(at: Files) -> Any:
    return xref.to_hdf5(at.ds[["line"]], at.folder / "b.h5", mode="x")


@raises(ValueError, "on_missing", "'skip'", "'raise'")
def writing_with_an_unknown_treatment_of_missing_targets(at: Files) -> Any:
    return xref.to_hdf5(at.ds[["line"]], at.folder / "b.h5", on_missing="skip")


@raises(xref.errors.UnsupportedError, "s3://bucket/b.h5", "URL")
def writing_to_a_url(at: Files) -> Any:
    return xref.to_hdf5(at.ds[["line"]], "s3://bucket/b.h5")


@raises(FileExistsError, "folder.h5", "not a regular file")
def writing_to_a_folder(at: Files) -> Any:
    (at.folder / "folder.h5").mkdir()
    return xref.to_hdf5(at.ds[["line"]], at.folder / "folder.h5")


@raises(FileNotFoundError, "missing", "folder of the new file")
def writing_into_a_folder_that_does_not_exist(at: Files) -> Any:
    return xref.to_hdf5(at.ds[["line"]], at.folder / "missing" / "b.h5")


@raises(TypeError, "dict", "Dataset, DataTree or DataArray")
def writing_a_dict(at: Files) -> Any:
    return xref.to_hdf5({}, at.folder / "b.h5")


@raises(ValueError, "unlimited_dims", "'z'")
def writing_an_unknown_unlimited_dimension(at: Files) -> Any:
    return xref.to_hdf5(at.ds[["line"]], at.folder / "b.h5", unlimited_dims="z")


@raises(ValueError, "'/z'", "tree")
def writing_an_encoding_of_an_unknown_group(at: Files) -> Any:
    tree = xr.DataTree(xr.Dataset({"a": 1}))
    return xref.to_hdf5(tree, at.folder / "b.h5", encoding={"/z": {}})


@raises(ValueError, "encoding", "'z'", "'a'")
def writing_an_encoding_of_an_unknown_variable(at: Files) -> Any:
    return xref.to_hdf5(xr.Dataset({"a": 1}), at.folder / "b.h5", encoding={"z": {}})


@raises(ValueError, "encoding of 'a'", "'squash'")
def writing_an_unknown_encoding(at: Files) -> Any:
    encoding = {"a": {"squash": 1}}
    return xref.to_hdf5(xr.Dataset({"a": 1}), at.folder / "b.h5", encoding=encoding)


def written(at: Files, values: Any, dims: Any = "k", mode: str = "w", **encoding: Any) -> None:
    ds = xr.Dataset({"a": (dims, values)})
    path = at.folder / "b.h5"
    xref.to_hdf5(ds, path, mode=mode, encoding={"a": encoding} if encoding else None)


@raises(ValueError, "b.h5: '/a'", "contiguous", "filters")
def writing_contiguous_with_filters(at: Files) -> Any:
    return written(at, [1.0], contiguous=True, zlib=True)


@raises(ValueError, "b.h5: '/a'", "(0,)", "(1,)")
def writing_chunks_that_do_not_fit(at: Files) -> Any:
    return written(at, [1.0], chunksizes=(0,))


@raises(ValueError, "b.h5: '/a'", "'squash'", "hdf5plugin")
def writing_with_an_unknown_filter(at: Files) -> Any:
    return written(at, [1.0], compression="squash")


@raises(xref.errors.UnsupportedError, "b.h5: '/a'", "bytes", "only one kind")
def writing_objects_of_several_types(at: Files) -> Any:
    return written(at, np.array([b"x", at.ds.rois.values[0], 5], dtype=object))


@raises(xref.errors.UnsupportedError, "b.h5: group '/'", "variable 'a'", "int, str")
def writing_text_and_numbers(at: Files) -> Any:
    return written(at, np.array(["x", 5], dtype=object))


@raises(xref.errors.UnsupportedError, "b.h5: '/a'", "no type for")
def writing_a_type_without_an_hdf5_type(at: Files) -> Any:
    return written(at, np.zeros(1, dtype=[("a", "V0")]))


@raises(xref.errors.UnsupportedError, "b.h5: '/a'", "text 1", "null character", "'S'")
def writing_text_with_a_null_character(at: Files) -> Any:
    return written(at, np.array(["x", "y\0z"], dtype=object))


@raises(xref.errors.UnsupportedError, "b.h5: '/a', block at [2]", "text 1", "null character")
def writing_blocks_of_text_with_a_null_character(at: Files) -> Any:
    return written(at, da.from_array(np.array(["x", "y", "z", "y\0z"]), chunks=2))


@raises(TypeError, "b.h5: attribute 'none' of '/a' is {}")
def writing_an_attribute_of_none(at: Files) -> Any:
    ds = xr.Dataset({"a": ("k", [1], {"none": {}})})
    return xref.to_hdf5(ds, at.folder / "b.h5")


@raises(TypeError, "variable 5", "group '/'", "rename")
def writing_a_variable_whose_name_is_a_number(at: Files) -> Any:
    return xref.to_hdf5(xr.Dataset({5: 1}), at.folder / "b.h5")


@raises(ValueError, "variable 'a/b'", "group '/'", "rename")
def writing_a_variable_with_a_slash_in_its_name(at: Files) -> Any:
    return xref.to_hdf5(xr.Dataset({"a/b": 1}), at.folder / "b.h5")


@raises(TypeError, "attribute 5 of variable 'a'", "rename")
def writing_an_attribute_whose_name_is_a_number(at: Files) -> Any:
    return xref.to_hdf5(xr.Dataset({"a": ("k", [1], {5: 1})}), at.folder / "b.h5")


@raises(ValueError, "attribute 'DIMENSION_LIST' of variable 'a'", "rename")
def writing_an_attribute_of_hdf5(at: Files) -> Any:
    return xref.to_hdf5(
        xr.Dataset({"a": ("k", [1], {"DIMENSION_LIST": 1})}), at.folder / "b.h5"
    )


@raises(NotImplementedError, "'m' of group '/'", "reset_index")
def writing_a_multiindex(at: Files) -> Any:
    index = pd.MultiIndex.from_product([[1, 2], [3, 4]], names=["p", "q"])
    coords = xr.Coordinates.from_pandas_multiindex(index, "m")
    return xref.to_hdf5(xr.Dataset(coords=coords), at.folder / "b.h5")


@raises(ValueError, "variable 'a' of group '/'", "unknown size")
def writing_blocks_of_unknown_size(at: Files) -> Any:
    blocks = da.arange(5, chunks=2)
    return xref.to_hdf5(xr.Dataset({"a": ("k", blocks[blocks > 1])}), at.folder / "b.h5")


def appended(
    at: Files, before: Callable[[h5py.File], Any], values: Any, dims: Any = "k"
) -> None:
    at.write("b.h5", before)
    written(at, values, dims, mode="a")


@raises(ValueError, "b.h5: '/a' is a group")
def appending_over_a_group(at: Files) -> Any:
    return appended(at, lambda file: file.create_group("a"), [1.0])


@raises(ValueError, "b.h5: '/a' is there already", "(7,)", "float32", "Choose another name")
def appending_over_another_shape(at: Files) -> Any:
    return appended(at, lambda file: file.create_dataset("a", (7,), "f4"), [1.0])


@raises(ValueError, "b.h5: '/a'", "dataset", "group")
def appending_a_group_over_a_dataset(at: Files) -> Any:
    at.write("b.h5", lambda file: file.create_dataset("a", (7,), "f4"))
    return xref.to_hdf5(xr.Dataset({"x": 1}), at.folder / "b.h5", group="/a", mode="a")


@raises(ValueError, "b.h5: '/a' is a broken link", "choose another name")
def appending_over_a_broken_link(at: Files) -> Any:
    def before(file: h5py.File) -> None:
        file["a"] = h5py.SoftLink("/nowhere")

    return appended(at, before, [1.0])


@raises(ValueError, "b.h5: '/a'", "elements in other files")
def appending_over_a_virtual_dataset(at: Files) -> Any:
    def before(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((1,), "f8")
        layout[:] = h5py.VirtualSource("good.h5", "line", (1,))
        file.create_virtual_dataset("a", layout)

    return appended(at, before, [1.0])


@raises(ValueError, "b.h5: dimension 'k' of '/'", "5 elements in the file", "1 in the data")
def appending_along_a_dimension_of_another_length(at: Files) -> Any:
    xref.to_hdf5(xr.Dataset({"k": np.arange(5)}), at.folder / "b.h5")
    return written(at, [1.0], mode="a")


@raises(ValueError, "b.h5: dimension 'k' of '/'", "something else")
def appending_a_dimension_named_like_a_group(at: Files) -> Any:
    return appended(at, lambda file: file.create_group("k"), [1.0])


@raises(ValueError, "b.h5: '/a' lies along ['j'] in the file", "['k']")
def appending_along_another_dimension(at: Files) -> Any:
    written(at, [1.0], "j")
    return written(at, [1.0], "k", mode="a")


@raises(ValueError, "b.h5: '/a' is there already", "compression=None", "'gzip'")
def appending_with_another_filter(at: Files) -> Any:
    written(at, [1.0])
    return written(at, [1.0], mode="a", zlib=True)


@raises(ValueError, "b.h5: '/a'", "in other files")
def appending_over_external_storage(at: Files) -> Any:
    return appended(
        at,
        lambda file: file.create_dataset("a", (1,), "f8", external=[("raw.bin", 0, 8)]),
        [1.0],
    )
