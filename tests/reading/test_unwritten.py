"""Elements that were never written: one rule for both readers, regions and padding."""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from h5py import h5d, h5p, h5s, h5t
from images import LIBHDF5

from xref.errors import FileReadError
from xref.reading import select_small_datasets
from xref.storage import locate_file

FILL_TIMES = {
    "never": h5d.FILL_TIME_NEVER,
    "alloc": h5d.FILL_TIME_ALLOC,
    "ifset": h5d.FILL_TIME_IFSET,
}
ALLOCATIONS = {
    "early": h5d.ALLOC_TIME_EARLY,
    "late": h5d.ALLOC_TIME_LATE,
    "incremental": h5d.ALLOC_TIME_INCR,
}
TYPES: dict[str, tuple[np.dtype[Any], Any]] = {  # and a fill value; None if h5py takes none
    "float": (np.dtype(">f4"), 4.0),
    "compound": (np.dtype([("a", "i4"), ("b", "f8")]), (1, 2.5)),
    "bytes": (np.dtype("S5"), b"ab"),
    "text": (h5py.string_dtype(), "fill"),
    "sequence": (h5py.vlen_dtype("i4"), None),
    "enum": (h5py.enum_dtype({"A": 0, "B": 7}, basetype="u1"), 7),
    "bool": (np.dtype("?"), True),
    "complex": (np.dtype("c8"), 1 + 2j),
    "opaque": (np.dtype("V3"), b"xyz"),
    "date": (h5py.opaque_dtype(np.dtype("<M8[s]")), None),
    "array": (np.dtype(("i2", (2,))), None),
    "compound of text": (np.dtype([("a", "i4"), ("s", h5py.string_dtype())]), None),
    "object reference": (h5py.ref_dtype, None),
    "region reference": (h5py.regionref_dtype, None),
}


def undefine_fill(properties: Any) -> None:
    """Call ``H5Pset_fill_value(properties, type, NULL)``, which h5py does not offer."""
    call = LIBHDF5.H5Pset_fill_value
    call.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    assert call(properties.id, h5t.NATIVE_INT32.id, None) >= 0


def create(
    file: h5py.File,
    name: str,
    dtype: np.dtype[Any],
    *,
    storage: str,
    fill_time: str = "ifset",
    allocation: str | None = None,
    fill: Any = None,
    shape: tuple[int, ...] = (8,),
) -> h5py.Dataset:
    """Create a dataset of which nothing is written; ``fill`` may be "undefined"."""
    properties = h5p.create(h5p.DATASET_CREATE)
    if storage == "chunked":
        properties.set_chunk((3,) * len(shape))
    if storage == "compact":
        properties.set_layout(h5d.COMPACT)
    properties.set_fill_time(FILL_TIMES[fill_time])
    if allocation is not None:
        properties.set_alloc_time(ALLOCATIONS[allocation])
    if isinstance(fill, str) and fill == "undefined":
        undefine_fill(properties)
    elif fill is not None:
        properties.set_fill_value(np.array(fill, dtype=dtype))
    limits = (h5s.UNLIMITED,) * len(shape) if storage == "chunked" else None
    space = h5s.create_simple(shape, limits)
    datatype = h5t.py_create(dtype, logical=True)
    return h5py.Dataset(h5d.create(file.id, name.encode(), datatype, space, properties))


def plain(values: Any) -> list[Any]:
    """Return values that can be compared with ``==``."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "O":
        return [plain(v) if isinstance(v, np.ndarray) else v for v in values.ravel()]
    if isinstance(values, np.ndarray):
        return list(values.ravel().tolist())
    return list(values)


def expected_values(dataset: h5py.Dataset) -> list[Any]:
    """Return the values that h5py gives."""
    if h5py.check_string_dtype(dataset.dtype) and dataset.dtype.hasobject:
        return plain(dataset.asstr()[()])
    if h5py.check_ref_dtype(dataset.dtype):
        # With the fill time "never", h5py gives references from memory that is not set.
        return [False] * dataset.size
    return plain(dataset[()])


def cases() -> list[tuple[str, str, str, str | None, Any]]:
    options = itertools.product(
        TYPES, ("contiguous", "chunked", "compact"), FILL_TIMES, (None, *ALLOCATIONS)
    )
    found = []
    for name, storage, fill_time, allocation in options:
        fills = [None] if TYPES[name][1] is None else [None, TYPES[name][1]]
        found += [(name, storage, fill_time, allocation, fill) for fill in fills]
    return found


def opened(path: Path, reader: str) -> xr.Dataset:
    return xr.open_dataset(
        path, engine="h5ref", reader=reader, mask_and_scale=False, decode_times=False
    )


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", TYPES)
def test_all_readers_agree_with_h5py_on_what_was_never_written(
    tmp_path: Path, name: str
) -> None:
    dtype = TYPES[name][0]
    path = tmp_path / "f.h5"
    expected, regions = {}, {}
    with h5py.File(path, "w") as file:
        for k, (_, storage, fill_time, allocation, fill) in enumerate(
            case for case in cases() if case[0] == name
        ):
            try:
                dataset = create(
                    file,
                    f"d{k}",
                    dtype,
                    storage=storage,
                    fill_time=fill_time,
                    allocation=allocation,
                    fill=fill,
                )
            except (OSError, ValueError):
                continue  # HDF5 does not allow this combination
            if k % 5 == 0 and not h5py.check_ref_dtype(dtype):
                regions[f"r{k}"] = dataset.regionref[1:5]
            expected[f"d{k}"] = expected_values(dataset)
        for key, region in regions.items():
            file.create_dataset(key, data=region, dtype=h5py.regionref_dtype)
    assert len(expected) > 10
    for reader in ("auto", "h5py", "direct"):
        if reader == "direct" and (dtype.hasobject and not h5py.check_ref_dtype(dtype)):
            continue
        with opened(path, reader) as ds:
            for key, values in expected.items():
                try:
                    found = ds[key].values
                except NotImplementedError:
                    assert reader == "direct"  # compact storage
                    continue
                if h5py.check_ref_dtype(dtype):
                    assert [bool(r) for r in found] == values, (reader, key)
                    continue
                assert plain(found) == values, (reader, key)
                if key.replace("d", "r") not in regions:
                    continue
                region = ds[key.replace("d", "r")].values.item().resolve().values
                n = len(values) // 8
                assert plain(region) == values[n : 5 * n], (reader, key)


@pytest.mark.parametrize("reader", ["auto", "direct", "h5py"])
@pytest.mark.parametrize("fill_time", ["never", "alloc", "ifset"])
def test_missing_chunks_beside_written_ones(
    tmp_path: Path, fill_time: str, reader: str
) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        for k in range(40):  # many alike datasets behind references are read together
            dataset = create(
                file, f"d{k}", np.dtype("i4"), storage="chunked", fill_time=fill_time, fill=4
            )
            dataset[: k % 7] = np.arange(k % 7) + 1
            dataset.resize((8 + k % 3,))
        references = file.create_dataset("refs", (40,), dtype=h5py.ref_dtype)
        references[:] = [file[f"d{k}"].ref for k in range(40)]
        expected = [file[f"d{k}"][()] for k in range(40)]
    with opened(path, reader) as ds:
        for k in range(40):
            np.testing.assert_array_equal(ds[f"d{k}"], expected[k])
        ragged = ds["refs"].h5ref.resolve(layout="ragged")
        values = next(v for v in ragged.data_vars.values() if v.dims == ("sample",))
        np.testing.assert_array_equal(values, np.concatenate(expected))


@pytest.mark.parametrize("reader", ["auto", "direct", "h5py"])
@pytest.mark.parametrize("storage", ["contiguous", "chunked"])
@pytest.mark.parametrize("dtype", ["f4", "V3", "object reference"])
def test_nothing_is_read_where_no_value_is_defined(
    tmp_path: Path, dtype: str, storage: str, reader: str
) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        of = h5py.ref_dtype if dtype == "object reference" else np.dtype(dtype)
        create(file, "d", of, storage=storage, fill="undefined")
        with pytest.raises(OSError, match="read"):
            file["d"][()]
        written = create(file, "e", np.dtype("f4"), storage=storage, fill="undefined")
        written[:2] = 1
        file.create_dataset("r", data=file["d"].ref, dtype=h5py.ref_dtype)
        expected = file["e"][()]
    with opened(path, reader) as ds:
        np.testing.assert_array_equal(ds["e"], expected)
        with pytest.raises(FileReadError, match=r"f\.h5.*nothing was written.*undefined"):
            np.asarray(ds["d"])
        if dtype != "object reference":
            assert ds["d"][:0].values.shape == (0,)
            with pytest.raises(FileReadError, match="nothing was written"):
                ds["r"].h5ref.resolve().compute()


def test_alike_datasets_are_read_together_where_values_are_defined(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        for k in range(4):
            dataset = create(
                file, f"d{k}", np.dtype("f4"), storage="contiguous", fill="undefined"
            )
            if k != 1:
                dataset[...] = k
        address = [h5py.h5o.get_info(file[f"d{k}"].id).addr for k in range(4)]
    rows, _ = select_small_datasets(locate_file(path), np.array(address, dtype=np.uint64), ())
    assert rows.tolist() == [0, 2, 3]


@pytest.mark.parametrize("fill_time", ["never", "alloc", "ifset"])
@pytest.mark.parametrize("mask", [False, True])
def test_elements_past_the_extent_have_the_fill_value_as_in_other_engines(
    tmp_path: Path, fill_time: str, mask: bool
) -> None:
    pytest.importorskip("h5netcdf")
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        time = file.create_dataset("t", data=np.arange(6), maxshape=(None,), chunks=(2,))
        time.make_scale("t")
        short = file.create_dataset(
            "short",
            (3,),
            "f4",
            maxshape=(None,),
            chunks=(2,),
            fillvalue=4.0,
            fill_time=fill_time,
        )
        short[:2] = 1
        short.attrs["_FillValue"] = np.float32(4)
        short.dims[0].attach_scale(time)
    with xr.open_dataset(path, engine="h5netcdf", mask_and_scale=mask) as ds:
        expected = ds["short"].values
    for reader in ("auto", "direct", "h5py"):
        with xr.open_dataset(path, engine="h5ref", reader=reader, mask_and_scale=mask) as ds:
            np.testing.assert_array_equal(ds["short"], expected)
    if not mask and "netcdf4" in xr.backends.list_engines():
        with xr.open_dataset(path, engine="netcdf4", mask_and_scale=mask) as ds:
            np.testing.assert_array_equal(ds["short"][3:], expected[3:])


@pytest.mark.parametrize("fill_time", ["never", "ifset"])
def test_integers_are_padded_with_the_fill_value_of_their_dataset(
    tmp_path: Path, fill_time: str
) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        dataset = create(
            file, "d", np.dtype("i4"), storage="chunked", fill_time=fill_time, fill=4
        )
        references = file.create_dataset("r", (2,), dtype=h5py.regionref_dtype)
        references[0] = dataset.regionref[0:1]
        references[1] = dataset.regionref[0:2]
    unwritten = 0 if fill_time == "never" else 4
    for reader in ("auto", "direct", "h5py"):
        with opened(path, reader) as ds:
            padded = ds["r"].h5ref.resolve(layout="pad", coords=False)
            values = next(v for v in padded.data_vars.values() if v.dtype == "i4")
            assert values.values.tolist() == [[unwritten, 4], [unwritten, unwritten]]


@pytest.mark.parametrize("reader", ["auto", "h5py"])
@pytest.mark.parametrize("fill_time", ["never", "ifset"])
@pytest.mark.parametrize("fill", [None, 4])
def test_virtual_datasets_without_a_source(
    tmp_path: Path, fill: Any, fill_time: str, reader: str
) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(tmp_path / "source.h5", "w") as file:
        file["here"] = np.arange(4)
        create(file, "never", np.dtype("i8"), storage="chunked", fill_time="never", fill=7)
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((16,), "i8")
        layout[:4] = h5py.VirtualSource("source.h5", "here", (4,))
        layout[4:6] = h5py.VirtualSource("gone.h5", "here", (2,))
        layout[6:14] = h5py.VirtualSource("source.h5", "never", (8,))
        dataset = file.create_virtual_dataset("d", layout, fillvalue=fill)
        del dataset
        file.create_dataset("r", data=file["d"].regionref[2:], dtype=h5py.regionref_dtype)
    with h5py.File(path) as file:
        expected = file["d"][()]
    with opened(path, reader) as ds:
        np.testing.assert_array_equal(ds["d"], expected)
        np.testing.assert_array_equal(ds["r"].values.item().resolve(), expected[2:])
