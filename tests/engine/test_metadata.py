"""Unusual, damaged or unreadable attributes and types: a warning, and the rest is read."""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from samples import open_h5

from xref import ObjectReference, UnreadableMemberWarning, hdf5
from xref.cli.info import inspect_file
from xref.storage.open_files import locate_file


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DIMENSION_LIST", 5),
        ("DIMENSION_LIST", [1]),
        ("DIMENSION_LIST", "reference"),
        ("DIMENSION_LIST", "nulls"),
        ("_Netcdf4Dimid", "abc"),
        ("_Netcdf4Dimid", 1.5),
        ("_Netcdf4Dimid", "reference"),
        ("_Netcdf4Coordinates", "x"),
        ("_Netcdf4Coordinates", [7, 8, 9]),
        ("NAME", 5),
        ("CLASS", [1, 2]),
    ],
)
def test_invalid_dimension_attributes_give_phony_names(
    tmp_path: Path, name: str, value: Any
) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["scale"] = np.arange(3.0)
        file["scale"].make_scale("scale")
        file["data"] = np.arange(3)
        file["odd"] = np.arange(4)
        if value == "reference":
            file["odd"].attrs[name] = np.array([file["scale"].ref], dtype=h5py.ref_dtype)
        elif value == "nulls":
            lists = np.empty(1, dtype=object)
            lists[0] = np.array([h5py.Reference()], dtype=h5py.ref_dtype)
            dtype = h5py.vlen_dtype(h5py.ref_dtype)
            file["odd"].attrs.create(name, lists, dtype=dtype)
        else:
            file["odd"].attrs[name] = value
        if name != "CLASS":
            file["odd"].attrs["CLASS"] = "none"
        refs = file.create_dataset("refs", (1,), dtype=h5py.ref_dtype)
        refs[0] = file["odd"].ref
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableMemberWarning)
        ds = xr.open_dataset(tmp_path / "f.h5", engine="h5ref")
        resolved = ds["refs"].values[0].resolve()
    assert ds["scale"].dims == ("scale",)
    assert ds["odd"].dims[0].startswith("phony_dim")
    np.testing.assert_array_equal(ds["odd"], np.arange(4))
    np.testing.assert_array_equal(resolved, np.arange(4))


def damage_text(path: Path) -> None:
    """Overwrite the signature of the global heap of attributes of variable length."""
    data = path.read_bytes()
    assert data.count(b"GCOL") == 1
    path.write_bytes(data.replace(b"GCOL", b"XXXX"))


def test_resolving_warns_of_unreadable_attributes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w", libver="earliest") as file:
        file["group/data"] = np.arange(3)
        file["group/data"].attrs["scale_factor"] = "text of variable length"
        refs = file.create_dataset("refs", (1,), dtype=h5py.ref_dtype)
        refs[0] = file["group/data"].ref
    damage_text(tmp_path / "f.h5")
    ds = xr.open_dataset(tmp_path / "f.h5", engine="h5ref")
    with pytest.warns(UnreadableMemberWarning, match="attribute 'scale_factor' was left out"):
        values = ds["refs"].h5ref.resolve()
    np.testing.assert_array_equal(values[0], np.arange(3))


@pytest.mark.parametrize(
    ("name", "member", "path"),
    [("trefer_obj.h5", "Dataset3", "/Group1/Dataset1"), ("trefer_grp.h5", "dset", "/group")],
)
def test_targets_of_hdf5_1_12_references_resolve_to_references(
    corpus: Path, name: str, member: str, path: str
) -> None:
    filename = corpus / "hdf5" / name
    with h5py.File(filename) as file:
        address = h5py.h5o.get_info(file[member].id).addr
    resolved = ObjectReference(locate_file(filename), address).resolve()
    assert resolved.values.flat[0].path == path


# --- object references within elements --------------------------------------------------

WITHIN = {
    "sequence": h5py.vlen_dtype(h5py.ref_dtype),
    "compound": np.dtype([("n", "i4"), ("ref", h5py.ref_dtype)]),
    "array": np.dtype([("refs", h5py.ref_dtype, (2,))]),
    "sequence in compound": np.dtype([("refs", h5py.vlen_dtype(h5py.ref_dtype))]),
    "compound in sequence": h5py.vlen_dtype(np.dtype([("n", "i4"), ("ref", h5py.ref_dtype)])),
}


def leaves(value: Any) -> list[Any]:
    """Yield the values in nested compounds and sequences."""
    if isinstance(value, np.void):
        return [leaf for name in value.dtype.names for leaf in leaves(value[name])]
    if isinstance(value, np.ndarray):
        return [leaf for item in value.ravel() for leaf in leaves(item)]
    return [value]


@pytest.mark.parametrize("within", WITHIN)
def test_references_within_elements_are_picklable_elements(tmp_path: Path, within: str) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        target = file.create_dataset("target", data=np.arange(3)).ref
        null = h5py.Reference()
        data = file.create_dataset("data", (2,), dtype=WITHIN[within])
        pair = np.array([target, null], dtype=h5py.ref_dtype)
        compound = np.array([(7, target), (8, null)], WITHIN["compound"])
        match within:
            case "sequence":
                data[0] = pair
            case "compound":
                data[...] = compound
            case "array":
                data[0] = np.array((pair,), dtype=WITHIN[within])
            case "sequence in compound":
                data[0] = (pair,)
            case "compound in sequence":
                data[0], data[1] = compound, compound  # HDF5 fails to read empty ones
    ds = xr.open_dataset(tmp_path / "f.h5", engine="h5ref")
    values = pickle.loads(pickle.dumps(ds["data"].values))
    found = [leaf for leaf in leaves(values) if isinstance(leaf, ObjectReference)]
    assert [bool(r) for r in found][:2] == [True, False]
    assert not any(isinstance(leaf, h5py.Reference) for leaf in leaves(values))
    np.testing.assert_array_equal(found[0].resolve(), np.arange(3))


# --- output of `xref info` --------------------------------------------------------------


def test_info_reports_unreadable_attributes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w", libver="earliest") as file:
        file.attrs["text"] = "of variable length"
    damage_text(tmp_path / "f.h5")
    report = inspect_file(tmp_path / "f.h5")
    assert len(report.problems) == 1
    assert report.problems[0].startswith("/, attribute 'text': ")


def test_info_continues_after_a_damaged_group(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file["data"] = np.arange(3)
        refs = file.create_dataset("refs", (1,), dtype=h5py.ref_dtype)
        refs[0] = file["data"].ref
        file["bad/data"] = np.arange(3)
    data = path.read_bytes()
    at = data.rindex(b"HEAP\0")
    path.write_bytes(data[:at] + b"XXXX" + data[at + 4 :])
    report = inspect_file(path)
    assert [holder.path for holder in report.references] == ["/refs"]
    assert len(report.problems) == 1
    assert report.problems[0].startswith("/bad: CorruptFileError")


def test_info_counts_regions_of_a_wrong_rank_as_outside(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        flat = file.create_dataset("flat", data=np.arange(12))
        refs = file.create_dataset("refs", (2,), dtype=h5py.regionref_dtype)
        refs[0], refs[1] = flat.regionref[2:5], flat.regionref[0:5]
        file.create_dataset("data", data=np.zeros((3, 4)))
        # The same object header address, another extent.
        addresses = [h5py.h5o.get_info(file[n].id).addr for n in ("flat", "data")]
    raw = (tmp_path / "f.h5").read_bytes()
    heap = raw.index(b"GCOL")
    old, new = (a.to_bytes(8, "little") for a in addresses)
    (tmp_path / "f.h5").write_bytes(raw[:heap] + raw[heap:].replace(old, new))
    (holder,) = inspect_file(tmp_path / "f.h5").references
    (target,) = holder.targets
    assert (target.path, target.outside, target.start, target.stop) == ("/data", 2, None, None)


def test_metadata_of_many_targets_are_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        refs = file.create_dataset("refs", (50,), dtype=h5py.ref_dtype)
        for i in range(50):
            refs[i] = file.create_dataset(f"d{i}", data=[i]).ref
    images: list[int] = []
    open_image = h5py.h5f.open_file_image

    def counted(data: bytes) -> Any:
        images.append(len(data))
        return open_image(data)

    ds = xr.open_dataset(tmp_path / "f.h5", engine="h5ref")["refs"]
    assert len(ds.variable.data.columns) == 50
    monkeypatch.setattr("xref.objects.objects.h5f.open_file_image", counted)
    monkeypatch.setattr("xref.objects.objects._made", OrderedDict())
    assert (ds.h5ref.table()["kind"] == "dataset").all()
    assert len(images) == 1


def test_long_text_is_not_read_when_a_file_opens(tmp_path: Path) -> None:
    path = tmp_path / "text.h5"
    with h5py.File(path, "w") as file:
        texts = file.create_dataset("texts", (3000,), dtype=h5py.string_dtype())
        texts[0] = "a" * (1 << 16)
        texts[1:] = "b"
        file["short"] = ["one", "two"]
        offset = texts.id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset : offset + 16 * 3000] = data[offset : offset + 16] * 3000
    path.write_bytes(data)
    with open_h5(path) as ds:
        assert ds["short"].dtype.kind == "U"
        assert ds["texts"].dtype == object  # all together they are 190 MiB
        assert len(ds["texts"][2999].item()) == 1 << 16


def test_attributes_with_references_are_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "attributes.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(3)
        value = np.array((1, file["data"].ref), dtype=[("n", "i4"), ("of", h5py.ref_dtype)])
        for i in range(20):
            file["data"].attrs[f"a{i}"] = value
    calls = []
    read = hdf5.read_raw_attributes
    monkeypatch.setattr(hdf5, "read_raw_attributes", lambda *a: calls.append(a) or read(*a))
    with open_h5(path) as ds:
        assert ds["data"].attrs["a19"]["of"].path == "/data"
    assert len(calls) == 1


@pytest.mark.parametrize("beside", ["compound", "sequences", "references", "nothing"])
@pytest.mark.parametrize(
    "options", [{"decode_cf": False}, {"decode_times": False}, {}], ids=str
)
def test_bounds_get_units_only_where_times_are_decoded(
    make: Callable[..., Path], beside: str, options: dict[str, Any]
) -> None:
    def fill(file: h5py.File) -> None:
        file["time"] = np.arange(2)
        file["time"].attrs["units"] = "days since 2000-01-01"
        file["time"].attrs["bounds"] = "time_bounds"
        file["time_bounds"] = np.arange(4).reshape(2, 2)
        if beside == "compound":
            file["other"] = np.zeros(2, dtype=[("a", "i4")])
        elif beside == "sequences":
            file.create_dataset("other", (2,), h5py.vlen_dtype("i4"))
        elif beside == "references":
            file.create_dataset("other", (2,), h5py.ref_dtype)

    with xr.open_dataset(make(fill), engine="h5ref", **options) as ds:
        assert ("units" in ds["time_bounds"].encoding) == (not options)
        assert "units" not in ds["time_bounds"].attrs
