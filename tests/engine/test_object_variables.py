"""Variables of objects: lazily opened, they do what loaded ones do.

Text, sequences, references, and compounds of them, are objects to NumPy. One property
test draws files and operations of xarray and compares the result on Datasets that are
opened lazily, with and without chunks, with the result on loaded ones. Another compares
elements beyond the end of a dataset, along an unlimited dimension that other variables
reach further, with the same dataset grown to that length.
"""

from __future__ import annotations

import importlib.util
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import open_h5

import xref
from xref import ReferenceArray
from xref.engine import variables
from xref.engine.object_variables import ObjectVariable
from xref.errors import NullReferenceError

# --- files --------------------------------------------------------------------------------

PAIR = np.dtype([("n", "<i4"), ("text", h5py.string_dtype())])
HITS = np.dtype([("n", "<i4"), ("hits", h5py.vlen_dtype("<i2"))])
MARK = np.dtype([("n", "<i4"), ("at", h5py.ref_dtype)])
PLAIN = np.dtype([("n", ">i4"), ("tag", "S3")])


def compound(dtype: np.dtype, *values: Any) -> Any:
    out = np.zeros(1, dtype=dtype)
    for name, value in zip(dtype.names, values, strict=True):
        out[name][0] = value
    return out


Value = Callable[[h5py.File, int], Any]

# Dtype of each kind of variable, and the value made from a number.
KINDS: dict[str, tuple[Any, Value]] = {
    "text": (h5py.string_dtype(), lambda f, k: "ü" * k),
    "ascii": (h5py.string_dtype("ascii"), lambda f, k: "a" * k),
    "fixed": ("S4", lambda f, k: b"s%d" % k),
    "sequence": (h5py.vlen_dtype("<i4"), lambda f, k: np.arange(k, dtype="<i4")),
    "big sequence": (h5py.vlen_dtype(">f4"), lambda f, k: np.arange(k, dtype=">f4")),
    "pair": (PAIR, lambda f, k: compound(PAIR, k, "é" * k)),
    "hits": (HITS, lambda f, k: compound(HITS, k, np.arange(k, dtype="<i2"))),
    "mark": (MARK, lambda f, k: compound(MARK, k, f["t"].ref)),
    "plain": (PLAIN, lambda f, k: compound(PLAIN, k, b"t%d" % k)),
    "enum": (h5py.enum_dtype({"A": 0, "B": 1, "C": 2, "D": 3}, "u1"), lambda f, k: k % 4),
    "bool": (bool, lambda f, k: k % 2 == 1),
    "object": (h5py.ref_dtype, lambda f, k: f["t" if k % 2 else "x"].ref),
    "region": (h5py.regionref_dtype, lambda f, k: f["x"].regionref[: k % 3 + 1]),
    "number": ("<f8", lambda f, k: k / 2),
    "integer": (">i4", lambda f, k: k),
}

OBJECTS = ["text", "ascii", "sequence", "big sequence", "pair", "hits", "mark"]

FILLS: dict[str, Any] = {"text": "none", "ascii": "none", "number": -9.0, "integer": -9}

N_X = 2


def write(
    path: Path,
    kinds: dict[str, tuple[str, ...]],
    stored: dict[str, int] | None = None,
    *,
    n: int = 3,
    first: int = 0,
    fills: tuple[str, ...] = (),
    grown: bool = False,
    attribute: bool = False,
) -> Path:
    """Write one variable of each kind along its dimensions.

    Parameters
    ----------
    kinds
        Dimensions of each, of "t", which is unlimited, and "x".
    stored
        Length along "t" of each that is shorter than ``n``.
    first
        Of the labels along "t".
    fills
        Kinds whose dataset has a fill value of its own.
    grown
        Whether datasets are grown to ``n`` after they were written.
    attribute
        Whether there is a ``_FillValue``, which text may have.
    """
    stored = stored or {}
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("t", data=np.arange(first, first + n), maxshape=(None,))
        file.create_dataset("x", data=np.arange(N_X) * 10)
        for name in ("t", "x"):
            file[name].make_scale(name)
        for kind, dims in kinds.items():
            dtype, value = KINDS[kind]
            shape = tuple(stored.get(kind, n) if d == "t" else N_X for d in dims)
            options: dict[str, Any] = {}
            if "t" in dims:
                options["maxshape"] = tuple(None if d == "t" else N_X for d in dims)
                options["chunks"] = tuple(2 if d == "t" else N_X for d in dims)
            if kind in fills and not grown:
                options["fillvalue"] = FILLS[kind]
            made = file.create_dataset(kind, shape, dtype, **options)
            for k, index in enumerate(np.ndindex(shape)):
                one = value(file, first + k)
                if isinstance(one, np.ndarray) and one.dtype.names:
                    made[tuple(slice(i, i + 1) for i in index)] = one.reshape((1,) * len(shape))
                else:
                    made[index] = one
            for axis, d in enumerate(dims):
                made.dims[axis].attach_scale(file[d])
            if grown:
                made.resize(tuple(n if d == "t" else N_X for d in dims))
            if attribute and kind in ("text", "ascii"):
                made.attrs["_FillValue"] = "none"
            made.attrs["kind"] = kind
    return path


def plain(value: Any) -> Any:
    """Return nested lists that are equal if the values and their types are equal."""
    if isinstance(value, xref.RegionReference | xref.ObjectReference):
        bounds = value.bounds if isinstance(value, xref.RegionReference) and value else None
        return (value.path, bounds) if value else "null"
    if isinstance(value, ReferenceArray):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype.names:
        return [(name, plain(value[name])) for name in value.dtype.names]
    if isinstance(value, np.ndarray):
        # Dask gives a single text its own width; pickling numbers may swap their bytes.
        dtype = "U" if value.dtype.kind == "U" else str(value.dtype.newbyteorder("="))
        return (dtype, value.shape, [plain(v) for v in value.ravel().tolist()])
    if isinstance(value, float) and np.isnan(value):
        return "NaN"
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return (type(value).__name__, value)


def described(ds: xr.Dataset) -> dict[Any, Any]:
    """Return all values and metadata of a Dataset in a form that can be compared."""
    return {
        name: (
            v.dims,
            name in ds.coords,
            v.dtype.newbyteorder("="),
            sorted(map(str, v.attrs)),
            plain(v.data if isinstance(v.data, ReferenceArray) else v.values),
        )
        for name, v in ds.variables.items()
    }


# --- operations ---------------------------------------------------------------------------


def numbers_only(ds: xr.Dataset) -> xr.Dataset:
    return ds[[name for name, v in ds.data_vars.items() if v.dtype.kind in "fiu"]]


def through_netcdf(a: xr.Dataset, b: xr.Dataset, folder: Path) -> xr.Dataset:
    a.to_netcdf(folder / "out.nc", engine="h5netcdf")
    with xr.open_dataset(folder / "out.nc", engine="h5netcdf") as back:
        return back.load()


def through_hdf5(a: xr.Dataset, b: xr.Dataset, folder: Path) -> xr.Dataset:
    xref.to_hdf5(a, folder / "out.h5")
    with open_h5(folder / "out.h5") as back:
        return back.load()


def through_zarr(a: xr.Dataset, b: xr.Dataset, folder: Path) -> xr.Dataset:
    a.to_zarr(folder / "out.zarr", mode="w", consolidated=False)
    return xr.open_zarr(folder / "out.zarr", consolidated=False, chunks=None).load()


Operation = Callable[[xr.Dataset, xr.Dataset, Path], Any]

OPERATIONS: dict[str, Operation] = {
    "concat": lambda a, b, _: xr.concat([a, b], "t", data_vars="minimal", join="outer"),
    "concat all": lambda a, b, _: xr.concat([a, b, a], "t", data_vars="all", join="outer"),
    "concat along new": lambda a, b, _: xr.concat([a, b], "run", data_vars="all", join="outer"),
    "merge": lambda a, b, _: xr.merge(
        [a, b.rename({n: f"{n} b" for n in b.data_vars})], join="outer"
    ),
    "merge without conflicts": lambda a, b, _: xr.merge(
        [a, b], compat="no_conflicts", join="outer"
    ),
    "combine_by_coords": lambda a, b, _: xr.combine_by_coords(
        [a, b], data_vars="minimal", coords="minimal", compat="override", join="outer"
    ),
    "combine_first": lambda a, b, _: a.combine_first(b),
    "reindex": lambda a, b, _: a.reindex(t=[1, 99, 0]),
    "reindex_like": lambda a, b, _: a.reindex_like(b),
    "align": lambda a, b, _: xr.align(a, b, join="outer")[0],
    "where": lambda a, b, _: a.where(a["t"] > 0),
    "where drop": lambda a, b, _: a.where(a["t"] > 0, drop=True),
    "where other": lambda a, b, _: a.where(a["t"] > 0, a.isel(t=slice(None, None, -1))),
    "isel": lambda a, b, _: a.isel(t=[2, 0, 2], x=slice(None, None, -1)),
    "isel one": lambda a, b, _: a.isel(t=-1),
    "points": lambda a, b, _: a.isel(t=("p", [0, 2]), x=("p", [1, 1])),
    "sel": lambda a, b, _: a.sel(t=a["t"].values[::-1]),
    "shift": lambda a, b, _: a.shift(t=1),
    "roll": lambda a, b, _: a.roll(t=1),
    "pad": lambda a, b, _: a.pad(t=1),
    "sortby": lambda a, b, _: a.sortby("t", ascending=False),
    "transpose": lambda a, b, _: a.transpose(),
    "stack": lambda a, b, _: a.stack(z=("t", "x")).reset_index("z"),
    "expand_dims": lambda a, b, _: a.expand_dims(new=2),
    "broadcast_like": lambda a, b, _: a.broadcast_like(a.rename(x="y")),
    "isnull": lambda a, b, _: a.isnull(),
    "thin": lambda a, b, _: a.thin(t=2),
    "copy": lambda a, b, _: a.copy(deep=True),
    "set_coords": lambda a, b, _: a.set_coords(list(a.data_vars)).reset_coords(),
    "rename": lambda a, b, _: a.rename({n: f"{n}_" for n in a.data_vars}, t="u"),
    "swap_dims": lambda a, b, _: a.rename(t="u").set_index(u="u").drop_indexes("u"),
    "chunk": lambda a, b, _: a.chunk("auto"),
    "chunk one": lambda a, b, _: a.chunk(t=1).chunk({"t": "auto"}),
    "to_array": lambda a, b, _: numbers_only(a).to_array().to_dataset(name="v"),
    "pickle": lambda a, b, _: pickle.loads(pickle.dumps(a)),
    "tree": lambda a, b, _: xr.DataTree.from_dict({"/": a, "/b": a})["b"].to_dataset(),
    "to_hdf5": through_hdf5,
}
if importlib.util.find_spec("h5netcdf"):
    OPERATIONS["to_netcdf"] = through_netcdf
if importlib.util.find_spec("zarr"):
    OPERATIONS["to_zarr"] = through_zarr


def outcome(operation: Operation, a: xr.Dataset, b: xr.Dataset, folder: Path) -> Any:
    """Return the result of an operation, or the type of its error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of types that Zarr 3 has no specification for
            result = operation(a, b, folder).load()
    except Exception as error:  # noqa: BLE001 - the type of any error is compared
        return type(error)
    return described(result)


CHUNKS = (None, {}, "auto", -1, {"t": 2}, {"t": 1, "x": "auto"})


def compare(operation: str, paths: list[Path], chunks: Any, cache: bool | None) -> None:
    folder = paths[0].parent
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The specified chunks separate")
        opened = [open_h5(p, chunks=chunks, cache=cache) for p in paths]
    loaded = [open_h5(p).load() for p in paths]
    try:
        found = outcome(OPERATIONS[operation], *opened, folder)
        if isinstance(found, type) and chunks is not None:
            # Dask does not support these operations for loaded values either.
            loaded = [ds.chunk() for ds in loaded]
        assert found == outcome(OPERATIONS[operation], *loaded, folder)
    finally:
        for ds in (*opened, *loaded):
            ds.close()


DIMS = st.sampled_from([("t",), ("x",), ("t", "x"), ("x", "t")])


@settings(
    max_examples=settings().max_examples // 2,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_operations_give_the_same_on_lazy_and_on_loaded_datasets(
    tmp_path: Path, data: st.DataObject
) -> None:
    kinds = data.draw(
        st.dictionaries(st.sampled_from(sorted(KINDS)), DIMS, min_size=1, max_size=4), "kinds"
    )
    lengths = st.fixed_dictionaries({kind: st.integers(1, 3) for kind in kinds})
    fills = data.draw(st.lists(st.sampled_from(sorted(FILLS)), unique=True), "fills")
    attribute = data.draw(st.booleans(), "_FillValue")
    paths = [
        write(
            tmp_path / f"{i}.h5",
            kinds,
            data.draw(lengths, "stored"),
            first=3 * i,
            fills=tuple(fills),
            attribute=attribute,
        )
        for i in range(2)
    ]
    operation = data.draw(st.sampled_from(sorted(OPERATIONS)), "operation")
    chunks = data.draw(st.sampled_from(CHUNKS), "chunks")
    cache = data.draw(st.sampled_from((None, True, False)), "cache")
    compare(operation, paths, chunks, cache)


@pytest.fixture(scope="module")
def granules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two files for each object dtype."""
    folder = tmp_path_factory.mktemp("granules")
    for kind in OBJECTS:
        for i in range(2):
            write(folder / f"{kind} {i}.h5", {kind: ("t",)}, first=3 * i)
    return folder


@pytest.mark.sampled(7)
@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize(
    "operation", ["concat", "combine_by_coords", "reindex", "where", "merge"]
)
def test_variables_of_every_object_dtype_join_and_reindex(
    granules: Path, operation: str, kind: str
) -> None:
    paths = [granules / f"{kind} {i}.h5" for i in range(2)]
    compare(operation, paths, None, None)
    compare(operation, paths, "auto", None)


# --- dtypes and chunks ----------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("chunks", [None, {}, "auto"], ids=str)
@pytest.mark.parametrize("cache", [None, True, False])
def test_lazy_data_have_the_dtype_of_their_values(
    tmp_path: Path, chunks: Any, cache: bool | None
) -> None:
    path = write(tmp_path / "f.h5", dict.fromkeys(KINDS, ("t",)), attribute=True)
    with open_h5(path, chunks=chunks, cache=cache) as ds, open_h5(path) as loaded:
        for name, variable in ds.variables.items():
            for one in (variable, variable.copy(), variable[:2], ds.copy().variables[name]):
                assert one._data.dtype == variable.dtype == loaded[name].values.dtype, name
            assert (variable.chunks is None) == (
                chunks is None or name in ("t", "x", "object", "region")
            )


def test_variables_of_objects_have_the_requested_chunks(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        for name, dtype in {"hits": h5py.vlen_dtype("i4"), "pair": PAIR}.items():
            file.create_dataset(name, (4000,), dtype, chunks=(1000,))
    with (
        dask.config.set({"array.chunk-size": "32 kB"}),
        open_h5(path, chunks="auto") as ds,
        open_h5(path) as lazy,
    ):
        # Elements of 16 and of 32 bytes.
        assert ds["hits"].chunks == ((2000, 2000),)
        assert ds["pair"].chunks == ((1000,) * 4,)
        for array in (lazy["hits"], lazy["hits"].load(), lazy["hits"].chunk(7)):
            assert set(array.chunk("auto").chunks[0]) <= {2000, 1995, 10}
            assert array.chunk({"phony_dim_0": "auto"}).chunks is not None
            assert array.chunk(phony_dim_0=1500).chunks == ((1500, 1500, 1000),)
    with open_h5(path, chunks={}) as ds:
        assert ds["pair"].chunks == ((1000,) * 4,)
    with open_h5(path, chunks={"phony_dim_0": 2000}) as ds:
        assert ds["hits"].chunks == ((2000, 2000),)
        assert isinstance(ds["hits"].variable, ObjectVariable)


@pytest.mark.parametrize("chunks", [None, {}, "auto"], ids=str)
def test_text_and_sequences_may_be_labels_of_a_dimension(tmp_path: Path, chunks: Any) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        for name in ("utf-8", "ascii"):
            file.create_dataset(name, data=["a", "bb", "c"], dtype=h5py.string_dtype(name))
            file[name].make_scale(name)
            of = file.create_dataset(f"of {name}", data=np.arange(3))
            of.dims[0].attach_scale(file[name])
    with open_h5(path, chunks=chunks) as ds:
        for name in ("utf-8", "ascii"):
            assert ds[f"of {name}"].sel({name: "bb"}).values == 1
    bare = xr.open_dataset(path, engine="h5ref", chunks=chunks, create_default_indexes=False)
    with bare:
        assert bare["ascii"].values.tolist() == ["a", "bb", "c"]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("chunks", [{}, "auto", {"t": 2}], ids=str)
def test_many_files_of_objects_open_as_one(tmp_path: Path, chunks: Any, parallel: bool) -> None:
    kinds = dict.fromkeys(KINDS, ("t",))
    paths = [write(tmp_path / f"{i}.h5", kinds, first=3 * i) for i in range(3)]
    loaded = [open_h5(p).load() for p in paths]
    expected = described(xr.concat(loaded, "t", data_vars="all"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The specified chunks separate")
        ds = xr.open_mfdataset(
            paths, engine="h5ref", chunks=chunks, parallel=parallel, data_vars="all"
        )
    with ds:
        assert ds["sequence"].chunks is not None
        assert described(ds) == expected
        assert described(ds.compute(scheduler="threads", num_workers=4)) == expected
    for one in loaded:
        one.close()


@pytest.mark.slow
def test_other_processes_read_objects_as_this_one_does(
    tmp_path: Path, process_pool: ProcessPoolExecutor
) -> None:
    kinds = dict.fromkeys(OBJECTS, ("t",))
    stored = dict.fromkeys(OBJECTS, 1)
    with open_h5(write(tmp_path / "f.h5", kinds, stored), chunks={}) as ds:
        lazy = xr.concat([ds, ds], "t", data_vars="all")
        found = lazy.compute(scheduler="processes", pool=process_pool)
        assert described(found) == described(lazy)


# --- elements beyond the end of a dataset -----------------------------------------------------


def contents(ds: xr.Dataset) -> dict[Any, Any]:
    return {name: entry for name, entry in described(ds).items() if name in KINDS}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_elements_beyond_the_end_equal_those_of_a_resized_dataset(
    tmp_path: Path, data: st.DataObject
) -> None:
    dims = st.sampled_from([("t",), ("t", "x"), ("x", "t")])
    kinds = data.draw(
        st.dictionaries(st.sampled_from(sorted(KINDS)), dims, min_size=1, max_size=4), "kinds"
    )
    stored = {kind: data.draw(st.integers(0, 4), kind) for kind in kinds}
    chunks = data.draw(st.sampled_from((None, {}, "auto", {"t": 3}, {"t": 1})), "chunks")
    options = data.draw(
        st.sampled_from(({}, {"reader": "h5py"}, {"decode_vlen_strings": False})), "options"
    )
    short = write(tmp_path / "short.h5", kinds, stored, n=4)
    grown = write(tmp_path / "grown.h5", kinds, stored, n=4, grown=True)
    key = data.draw(
        st.sampled_from(
            (slice(None), slice(None, None, -1), slice(1, None, 2), [3, 0, 3], -1, slice(3, 4))
        ),
        "key",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The specified chunks separate")
        short_ds = open_h5(short, chunks=chunks, **options)
    with short_ds, open_h5(grown, **options) as grown_ds:
        assert contents(short_ds.isel(t=key)) == contents(grown_ds.isel(t=key))
        again = pickle.loads(pickle.dumps(short_ds))
        assert contents(again) == contents(grown_ds)
        points = {"t": ("p", [3, 0]), "x": ("p", [1, 0])}
        assert contents(short_ds.isel(points)) == contents(grown_ds.isel(points))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("chunks", [None, {}, {"t": 1}], ids=str)
@pytest.mark.parametrize("charset", ["utf-8", "ascii"])
@pytest.mark.parametrize("options", [{}, {"decode_vlen_strings": False}], ids=str)
def test_elements_beyond_the_end_have_the_fill_value(
    make: Callable[..., Path], chunks: Any, charset: str, options: dict[str, Any]
) -> None:
    def fill(file: h5py.File) -> None:
        file.create_dataset("t", data=np.arange(3), maxshape=(None,))
        file["t"].make_scale("t")
        fills = {
            "text": (
                h5py.string_dtype(charset),
                ["ab"],
                "nöne" if charset == "utf-8" else "no",
            ),
            "empty": (h5py.string_dtype(charset), ["ab"], None),
            "fixed": ("S3", [b"ab"], b"xyz"),
            "number": ("i4", [1], -5),
            "plain": (PLAIN, np.array([(1, b"a")], PLAIN), np.array((7, b"q"), PLAIN)),
        }
        for name, (dtype, values, of) in fills.items():
            made = file.create_dataset(name, (1,), dtype, maxshape=(None,), fillvalue=of)
            made[...] = values
            made.dims[0].attach_scale(file["t"])

    with open_h5(make(fill), chunks=chunks, **options) as ds:
        text = ["ab", *["nöne" if charset == "utf-8" else "no"] * 2]
        empty = ["ab", "", ""]
        if options:
            text, empty = [t.encode() for t in text], [t.encode() for t in empty]
        assert ds["text"].values.tolist() == text
        assert ds["empty"].values.tolist() == empty
        assert ds["fixed"].values.tolist() == [b"ab", b"xyz", b"xyz"]
        assert ds["number"].values.tolist() == [1, -5, -5]
        assert ds["plain"].values.tolist() == [(1, b"a"), (7, b"q"), (7, b"q")]


@pytest.mark.parametrize("reader", ["auto", "direct", "h5py"])
@pytest.mark.parametrize("chunks", [None, (3,)], ids=str)
def test_elements_beyond_the_end_equal_h5py_if_fill_values_are_never_written(
    make: Callable[..., Path], chunks: tuple[int, ...] | None, reader: str
) -> None:
    def fill(file: h5py.File) -> None:
        for name, dtype, of in (("f", "f4", 4), ("s", "S2", b"x"), ("p", PLAIN, (7, b"q"))):
            value = np.array(of, dtype)
            options = {"chunks": chunks, "fillvalue": value, "fill_time": "never"}
            made = file.create_dataset(name, (6,), dtype, **options)
            if chunks:
                made[:3] = np.zeros(3, dtype)
        refs = file.create_dataset("refs", (1,), h5py.regionref_dtype)
        refs[0] = file["f"].regionref[2:5]

    path = make(fill)
    with h5py.File(path) as file, open_h5(path, reader=reader) as ds:
        for name in ("f", "s", "p"):
            assert ds[name].values.tolist() == file[name][:].tolist()
        assert ds["refs"].h5ref.resolve().values.tolist() == [[0, 0, 0]]


def test_sequences_beyond_the_end_are_separate_arrays(tmp_path: Path) -> None:
    with open_h5(write(tmp_path / "f.h5", {"sequence": ("t",)}, {"sequence": 1})) as ds:
        one, other = ds["sequence"].values[1:]
        assert one.dtype == other.dtype == np.dtype("i4")
        assert one.shape == other.shape == (0,)
        assert one is not other


def test_text_of_netcdf4_is_padded_with_empty_text(tmp_path: Path) -> None:
    netcdf4 = pytest.importorskip("netCDF4")
    with netcdf4.Dataset(tmp_path / "f.nc", "w") as file:
        file.createDimension("time", None)
        file.createVariable("temp", "f4", ("time",))[:4] = 1
        file.createVariable("remark", str, ("time",))[0] = "calm"
    with netcdf4.Dataset(tmp_path / "f.nc") as file:
        expected = file["remark"][:].tolist()
    assert expected == ["calm", "", "", ""]
    for chunks in (None, {}, "auto"):
        with open_h5(tmp_path / "f.nc", chunks=chunks) as ds:
            assert ds["remark"].values.tolist() == expected


# --- references beyond the end ----------------------------------------------------------------


@pytest.mark.parametrize("dims", [("t",), ("t", "x"), ("x", "t")], ids=str)
@pytest.mark.parametrize("kind", ["object", "region"])
def test_references_beyond_the_end_are_null(
    tmp_path: Path, kind: str, dims: tuple[str, ...]
) -> None:
    path = write(tmp_path / "f.h5", {kind: dims}, {kind: 2})
    with open_h5(path) as ds:
        refs = ds[kind].transpose("t", ...)
        expected = np.zeros(refs.shape, dtype=bool)
        expected[:2] = True
        assert refs.astype(bool).values.tolist() == expected.tolist()
        assert not np.any(np.asarray(ds[kind].isel(t=2).data).tolist())
        assert (ds[kind].h5ref.table()["kind"].isel(t=2) == "null").all()
        with pytest.raises(NullReferenceError, match="is null, one of"):
            ds[kind].h5ref.resolve()
        for chunks in (None, 1):
            ragged = ds[kind].h5ref.resolve("ragged", on_null="fill", chunks=chunks)
            row_size = ragged["row_size"].transpose("t", ...).values
            assert ((row_size > 0) == expected).all()
        within = ds[kind].isel(t=slice(0, 2)).h5ref.resolve("ragged")
        assert (within["row_size"] > 0).all()


def test_virtual_references_beyond_the_end_are_null(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("t", data=np.arange(3.0), maxshape=(None,))
        file["t"].make_scale("t")
        source = file.create_dataset("source", (2,), h5py.ref_dtype)
        source[...] = file["t"].ref
        layout = h5py.VirtualLayout((2,), h5py.ref_dtype, maxshape=(None,))
        layout[...] = h5py.VirtualSource(source)
        made = file.create_virtual_dataset("refs", layout)
        made.dims[0].attach_scale(file["t"])
    with open_h5(path) as ds:
        assert ds["refs"].astype(bool).values.tolist() == [True, True, False]
        assert [r.path for r in ds["refs"].values[:2]] == ["/t", "/t"]


def test_regions_beyond_the_end_are_refused(tmp_path: Path) -> None:
    kinds = ["number", "object", "text", "sequence", "pair"]
    path = write(tmp_path / "f.h5", dict.fromkeys(kinds, ("t",)), dict.fromkeys(kinds, 1))
    with open_h5(path) as ds:
        for name in kinds:
            for beyond in (slice(2, 3), slice(0, 3)):
                with pytest.raises((xref.XrefError, TypeError)):
                    ds[name].isel(t=beyond).h5ref.region_reference()


# --- ASCII text -------------------------------------------------------------------------------


@pytest.fixture(params=["read", "lazy"])
def text_kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tell whether text is read when a file is opened, as for small variables."""
    if request.param == "lazy":
        monkeypatch.setattr(variables, "TEXT_ELEMENTS", 0)
    return str(request.param)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("charset", ["ascii", "utf-8"])
@pytest.mark.parametrize("chunks", [None, {}, "auto"], ids=str)
def test_text_of_either_charset_follows_the_conventions(
    make: Callable[..., Path], text_kept: str, charset: str, chunks: Any
) -> None:
    def fill(file: h5py.File) -> None:
        for name in ("masked", "whole"):
            data = ["ab", "NA", "c"]
            file.create_dataset(name, data=data, dtype=h5py.string_dtype(charset))
        file["masked"].attrs["_FillValue"] = "NA"

    path = make(fill)
    new = path.with_name("new.h5")
    with open_h5(path, chunks=chunks) as ds:
        assert ds["masked"].isnull().values.tolist() == [False, True, False]
        assert ds["masked"].attrs == {}
        assert ds["masked"].encoding["_FillValue"] == "NA"
        assert ds["whole"].values.tolist() == ["ab", "NA", "c"]
        assert ds["whole"].dtype.kind == ("O" if text_kept == "lazy" else "U")
        xref.to_hdf5(ds, new)
        if importlib.util.find_spec("h5netcdf"):
            ds.compute().to_netcdf(path.with_name("new.nc"), engine="h5netcdf")
    with h5py.File(path) as before, h5py.File(new) as after:
        for name in ("masked", "whole"):
            assert h5py.check_string_dtype(after[name].dtype) == h5py.check_string_dtype(
                before[name].dtype
            )
            assert after[name].asstr()[:].tolist() == ["ab", "NA", "c"]
        assert after["masked"].attrs["_FillValue"] == "NA"
    with open_h5(path, mask_and_scale=False) as ds:
        assert ds["masked"].values.tolist() == ["ab", "NA", "c"]
    if importlib.util.find_spec("h5netcdf"):
        with xr.open_dataset(path.with_name("new.nc"), engine="h5netcdf") as back:
            assert back["whole"].values.tolist() == ["ab", "NA", "c"]
            assert back["masked"].isnull().values.tolist() == [False, True, False]


def test_ascii_text_with_new_characters_is_written_as_utf8(make: Callable[..., Path]) -> None:
    def fill(file: h5py.File) -> None:
        file.create_dataset("s", data=["ab", "c"], dtype=h5py.string_dtype("ascii"))
        file.create_dataset("odd", data=[b"\xff", b"c"], dtype=h5py.string_dtype("ascii"))

    path = make(fill)
    with open_h5(path) as ds:
        assert ds["odd"].values.tolist() == ["\udcff", "c"]
        ds["s"].values[:] = "ü"
        xref.to_hdf5(ds, path.with_name("new.h5"))
    with h5py.File(path.with_name("new.h5")) as file:
        assert h5py.check_string_dtype(file["s"].dtype).encoding == "utf-8"
        assert h5py.check_string_dtype(file["odd"].dtype).encoding == "ascii"
        assert file["odd"][:].tolist() == [b"\xff", b"c"]
        assert file["s"].asstr()[:].tolist() == ["ü", "ü"]


# --- sequences of the other byte order --------------------------------------------------------


@pytest.mark.parametrize("dtype", [">i2", "<i2", ">f4", "<f8", ">f8", ">c8", ">u4"])
def test_sequences_have_the_values_that_were_written(
    make: Callable[..., Path], dtype: str
) -> None:
    within = np.dtype([("n", "i4"), ("s", h5py.vlen_dtype(dtype))])
    values = np.array([1, 2, 300], dtype)

    def fill(file: h5py.File) -> None:
        file.create_dataset("s", (2,), h5py.vlen_dtype(dtype))[0] = values
        file.create_dataset("one", (), h5py.vlen_dtype(dtype))[()] = values
        file.create_dataset("within", data=compound(within, 1, values))

    with open_h5(make(fill)) as ds:
        for found in (ds["s"].values[0], ds["one"].item(), ds["within"].values["s"][0]):
            assert found.tolist() == values.tolist()
            assert found.dtype == np.dtype(dtype)
        assert ds["s"].values[1].shape == (0,)
