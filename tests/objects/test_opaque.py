"""Opaque values with and without a tag, in attributes and datasets."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from h5py import h5a, h5d, h5s, h5t

import xref

TAGS = [b"", b"a tag", b"NUMPY", "Zeit für".encode(), b"x" * 200]


def opaque(tag: bytes, size: int = 4) -> h5t.TypeID:
    datatype = h5t.create(h5t.OPAQUE, size)
    if tag:
        datatype.set_tag(tag)
    return datatype


def compound(tag: bytes) -> h5t.TypeID:
    """Return a type with an opaque member, one in an array, and one in a compound."""
    inner = h5t.create(h5t.COMPOUND, 6)
    inner.insert(b"flag", 0, h5t.STD_U8LE)
    inner.insert(b"deep", 2, opaque(tag))
    datatype = h5t.create(h5t.COMPOUND, 28)
    datatype.insert(b"number", 0, h5t.STD_I32LE)
    datatype.insert(b"bytes", 4, opaque(tag))
    datatype.insert(b"many", 8, h5t.array_create(opaque(tag), (3,)))
    datatype.insert(b"inner", 20, inner)
    return datatype


FIELDS = np.dtype(
    {
        "names": ["number", "bytes", "many", "inner"],
        "formats": [
            "<i4",
            "V4",
            ("V4", (3,)),
            {"names": ["flag", "deep"], "formats": ["u1", "V4"], "offsets": [0, 2]},
        ],
        "offsets": [0, 4, 8, 20],
        "itemsize": 28,
    }
)


def elements(dtype: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return distinct elements."""
    dtype = np.dtype(dtype)
    n = int(np.prod(shape)) * dtype.itemsize
    data = (np.arange(n) % 251 + 1).astype("u1").tobytes()
    return np.ndarray(shape, dtype, data)


def same(one: Any, other: Any) -> bool:
    """Compare the members of two values of one type."""
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype.names is None:
        return one.shape == other.shape and one.tobytes() == other.tobytes()
    return one.dtype.names == other.dtype.names and all(
        same(one[name], other[name]) for name in one.dtype.names
    )


def write_attribute(
    item: Any, name: str, datatype: h5t.TypeID, values: np.ndarray[Any, Any]
) -> None:
    space = h5s.create_simple(values.shape) if values.shape else h5s.create(h5s.SCALAR)
    attribute = h5a.create(item.id, name.encode(), datatype, space)
    attribute.write(np.ascontiguousarray(values).reshape(values.shape), mtype=datatype)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)])
def test_opaque_attributes_are_void_values(
    tmp_path: Path, shape: tuple[int, ...], tag: bytes
) -> None:
    plain, fields = elements("V4", shape), elements(FIELDS, shape)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["d"] = np.arange(3)
        for item in (file, file["d"]):
            write_attribute(item, "plain", opaque(tag), plain)
            write_attribute(item, "fields", compound(tag), fields)
            item.attrs["other"] = 1
        if not tag:
            assert np.array_equal(file["d"].attrs["plain"], plain[()])
    with xr.open_dataset(tmp_path / "f.h5", engine="h5ref") as ds:
        for attrs in (ds.attrs, ds["d"].attrs):
            assert set(attrs) == {"plain", "fields", "other"}
            for name, values in (("plain", plain), ("fields", fields)):
                # As for other attributes, an array of one element is its element.
                expected = values[0] if shape == (1,) else values[()]
                found = attrs[name]
                assert type(found) is type(expected)
                assert np.dtype(found.dtype) == values.dtype
                assert same(found, expected)
        again = pickle.loads(pickle.dumps(ds.attrs))
        assert np.array_equal(np.asarray(again["fields"]), np.asarray(ds.attrs["fields"]))
        assert repr(ds)
        xref.to_hdf5(ds, tmp_path / "g.h5")
        with h5py.File(tmp_path / "g.h5") as file:
            for item in (file, file["d"]):
                for name in ("plain", "fields"):
                    stored = item.attrs[name]
                    assert same(stored, ds.attrs[name])


@pytest.mark.parametrize("tag", TAGS)
def test_attributes_without_elements_are_empty(tmp_path: Path, tag: bytes) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name, datatype in (("plain", opaque(tag)), ("fields", compound(tag))):
            for kind, space in (("null", h5s.NULL), ("zero", h5s.SIMPLE)):
                extent = h5s.create(space) if space == h5s.NULL else h5s.create_simple((0,))
                h5a.create(file.id, f"{name} {kind}".encode(), datatype, extent)
    with xr.open_dataset(tmp_path / "f.h5", engine="h5ref") as ds:
        assert len(ds.attrs) == 4
        assert all(value.shape == (0,) for value in ds.attrs.values())


def test_tagged_values_beside_text(tmp_path: Path) -> None:
    datatype = h5t.create(h5t.COMPOUND, 24)
    datatype.insert(b"text", 0, h5t.py_create(h5py.string_dtype(), logical=True))
    datatype.insert(b"tagged", 16, opaque(b"tag"))
    with h5py.File(tmp_path / "f.h5", "w") as file:
        space = h5s.create_simple((2,))
        h5a.create(file.id, b"pairs", datatype, space)  # zeros: empty texts
    with xr.open_dataset(tmp_path / "f.h5", engine="h5ref") as ds:
        assert ds.attrs["pairs"]["text"].tolist() == [b"", b""]
        assert ds.attrs["pairs"]["tagged"].tolist() == [bytes(4)] * 2


def test_dates_of_h5py_are_times(tmp_path: Path) -> None:
    times = np.array(["2020-01-01", "NaT"], dtype="M8[s]")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["d"] = np.arange(3)
        file["d"].attrs["times"] = times.astype(h5py.opaque_dtype(times.dtype))
        file["d"].attrs.create("time", times[0], dtype=h5py.opaque_dtype(times.dtype))
        file["d"].attrs["span"] = np.array([5], "m8[ms]").astype(h5py.opaque_dtype("m8[ms]"))
        expected = dict(file["d"].attrs)
    with xr.open_dataset(tmp_path / "f.h5", engine="h5ref") as ds:
        attrs = ds["d"].attrs
        np.testing.assert_array_equal(attrs["times"], expected["times"])
        assert attrs["time"] == expected["time"]
        assert attrs["span"] == expected["span"][0]
        xref.to_hdf5(ds, tmp_path / "g.h5")
    with h5py.File(tmp_path / "g.h5") as file:
        np.testing.assert_array_equal(file["d"].attrs["times"], expected["times"])


def test_sequences_of_tagged_opaque_values(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        untagged = h5py.vlen_dtype(np.dtype("V4"))
        values = np.empty(2, dtype=object)
        values[:] = [elements("V4", (2,)), elements("V4", (1,))]
        file["d"] = np.arange(3)
        file["d"].attrs.create("sequences", values, dtype=untagged)
        write_attribute(file["d"], "tagged", opaque(b"tag"), elements("V4", ()))
    with xr.open_dataset(tmp_path / "f.h5", engine="h5ref") as ds:
        found = ds["d"].attrs["sequences"]
        assert [f.tolist() for f in found] == [v.tolist() for v in values]
        assert ds["d"].attrs["tagged"] == elements("V4", ())[()]


@pytest.mark.parametrize("reader", ["auto", "direct", "h5py"])
@pytest.mark.parametrize("chunks", [None, (2,)])
@pytest.mark.parametrize("tag", TAGS)
def test_datasets_with_opaque_members_are_read(
    tmp_path: Path, tag: bytes, chunks: tuple[int, ...] | None, reader: str
) -> None:
    values = {"plain": elements("V4", (5,)), "fields": elements(FIELDS, (5,))}
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name, datatype in (("plain", opaque(tag)), ("fields", compound(tag))):
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            if chunks:
                properties.set_chunk(chunks)
            space = h5s.create_simple((5,))
            dataset = h5d.create(file.id, name.encode(), datatype, space, properties)
            dataset.write(h5s.ALL, h5s.ALL, values[name], mtype=datatype)
            region = h5py.Dataset(dataset).regionref[1:4]
            file.create_dataset(f"r_{name}", data=region, dtype=h5py.regionref_dtype)
    with xr.open_dataset(tmp_path / "f.h5", engine="h5ref", reader=reader) as ds:
        for name, expected in values.items():
            assert same(ds[name].values, expected)
            resolved = ds[f"r_{name}"].values.item().resolve().values
            assert same(resolved, expected[1:4])
