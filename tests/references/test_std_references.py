"""References of HDF5 1.12 and later: what the library itself reads."""

from __future__ import annotations

import math
import os
import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from forks import in_fork
from h5py import h5s
from hypothesis import settings
from samples import open_h5
from stdrefs import (
    VALUES,
    Make,
    fill,
    read_dataset,
    select,
    to_attribute,
    to_object,
    to_region,
    write_dataset,
)

import xref
from xref import AttributeReference, ObjectReference, ReferenceArray, RegionReference
from xref.errors import (
    CorruptFileError,
    DanglingReferenceError,
    ExternalFileError,
    NullReferenceError,
    WrongTargetError,
    XrefError,
)
from xref.references.decoding import decode_references
from xref.storage.open_files import locate_file


def create(path: Path, libver: str = "earliest", **options: Any) -> h5py.File:
    return h5py.File(path, "w", libver=libver, **options)


def small_offsets(path: Path) -> h5py.File:
    """Make a file whose offsets and lengths are of four bytes."""
    properties = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    properties.set_sizes(4, 4)
    return h5py.File(h5py.h5f.create(bytes(path), h5py.h5f.ACC_TRUNC, properties))


@pytest.fixture
def std(tmp_path: Path) -> Iterator[xr.Dataset]:
    """A file with references of every kind in ``refs``."""
    with create(tmp_path / "std.h5") as file:
        write_dataset(file, "refs", fill(file))
    with open_h5(tmp_path / "std.h5") as ds:
        yield ds


def assert_as_library(found: Any, expected: dict[str, Any] | None) -> None:
    """Compare a reference with what the library reads."""
    if expected is None:
        assert not found
        assert found.kind == "null"
        return
    assert os.path.basename(found.filename) == os.path.basename(expected["filename"])
    if expected["type"] == "attribute":
        assert isinstance(found, AttributeReference)
        assert found.name == expected["name"]
        if expected["values"] is None:
            assert found.kind == "dangling"
            with pytest.raises(DanglingReferenceError, match=found.name):
                found.resolve()
        else:
            assert found.kind == "attribute"
            np.testing.assert_array_equal(found.resolve().values, expected["values"])
        return
    assert found.address == expected["address"]
    if expected["type"] == "region":
        assert isinstance(found, RegionReference)
        np.testing.assert_array_equal(found.resolve().values.ravel(), expected["values"])
    else:
        assert isinstance(found, ObjectReference)


LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": (4,)},
    "compressed": {"chunks": (5,), "compression": 4},
    "two dimensions": {"shape": (2, 7)},
}

FILES: dict[str, Any] = {
    "earliest": create,
    "latest": lambda path: create(path, "latest"),
    "v112": lambda path: create(path, "v112"),
    "user block": lambda path: create(path, userblock_size=1024),
    "four-byte offsets": small_offsets,
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", FILES)
def test_references_are_what_the_library_reads(kind: str, layout: str, tmp_path: Path) -> None:
    path = tmp_path / "std.h5"
    with FILES[kind](path) as file:
        write_dataset(file, "refs", fill(file), **LAYOUTS[layout])
        expected = read_dataset(file, "refs")
    with open_h5(path) as ds:
        array = ds["refs"]
        assert array.shape == LAYOUTS[layout].get("shape", (14,))
        found = array.values.ravel().tolist()
        for reference, other in zip(found, expected, strict=True):
            assert_as_library(reference, other)
        assert found[8].resolve()["more"].values.tolist() == [0, 1, 2]
        assert found[9].resolve() == np.dtype("f4")


def test_opening_and_printing_decode_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create(tmp_path / "std.h5") as file:
        write_dataset(file, "refs", fill(file))

    def refuse(*args: Any) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr("xref.references.stored.decode_references", refuse)
    with open_h5(tmp_path / "std.h5") as ds:
        assert "<Reference>" in str(ds)
        assert ds.h5ref.references == {"refs": "references {'phony_dim_2': 14}"}
        assert ds.isel(phony_dim_2=slice(2, 5))["refs"].shape == (3,)
        with pytest.raises(AssertionError, match="decoded"):
            ds["refs"].data.is_region  # noqa: B018


def test_elements_that_were_never_written_are_null(tmp_path: Path) -> None:
    with create(tmp_path / "std.h5") as file:
        write_dataset(file, "refs", [None] * 4)
        write_dataset(file, "chunked", [None] * 4, chunks=(2,))
    with open_h5(tmp_path / "std.h5") as ds:
        for member in ("refs", "chunked"):
            assert not ds[member].data.astype(bool).any()
            assert not ds[member].data.is_region
            assert ds[member].values[0] == ObjectReference(None, 0)


def test_compact_references_are_those_of_other_storage(tmp_path: Path) -> None:
    with create(tmp_path / "std.h5") as file:
        makers = fill(file)
        write_dataset(file, "compact", makers, compact=True)
        write_dataset(file, "refs", makers)
    with open_h5(tmp_path / "std.h5") as ds:
        assert ds["refs"].values[0].path == "/data"
        assert (ds["compact"].values == ds["refs"].values).all()


# --- arrays of mixed kinds -------------------------------------------------------------


def test_only_references_of_a_kind_are_behaved_as_such(std: xr.Dataset) -> None:
    refs = std["refs"]
    assert refs.data.is_region
    assert not refs[[0, 7, 8]].data.is_region
    assert not refs[7:10].data.is_region
    groups = refs[[8]].h5ref.resolve()
    assert list(groups) == [0]
    assert groups[0]["more"].shape == (3,)
    np.testing.assert_array_equal(refs[:1].h5ref.resolve().values, VALUES[None])
    np.testing.assert_array_equal(refs[1:2].h5ref.resolve().values, VALUES[None, 1:3, 2:5])


def test_an_object_among_regions_is_taken_whole(std: xr.Dataset) -> None:
    refs = std["refs"]
    ragged = refs[:6].h5ref.resolve(layout="ragged")
    expected = [r.resolve().values.ravel() for r in refs.values[:6]]
    np.testing.assert_array_equal(ragged["data"].values, np.concatenate(expected))
    np.testing.assert_array_equal(refs[:6].h5ref.sum().values, [e.sum() for e in expected])
    twins = refs[[0, 5]].h5ref.resolve()
    np.testing.assert_array_equal(twins.values, [VALUES, VALUES])


def test_slices_and_concatenations_keep_every_kind(std: xr.Dataset) -> None:
    refs = std["refs"]
    elements = refs.values.tolist()
    picked = [
        refs[2:12:3],
        refs[[10, 0, 1, 7]],
        xr.concat([refs[:1], refs[1:9]], "phony_dim_2"),
        xr.concat([refs[8:10], refs[10:], refs[:4]], "phony_dim_2"),
        refs.where(refs.data.astype(bool)),
    ]
    numbers = [[2, 5, 8, 11], [10, 0, 1, 7], range(9), [*range(8, 14), *range(4)], range(14)]
    for part, rows in zip(picked, numbers, strict=True):
        assert isinstance(part.data, ReferenceArray)
        assert part.values.tolist() == [elements[i] for i in rows]
        assert (part.data == refs.data.take_rows(np.array(rows))).all()


def test_elements_compare_by_kind_target_and_name(std: xr.Dataset) -> None:
    refs = std["refs"]
    elements = refs.values.tolist()
    for i, one in enumerate(elements):
        assert (refs.data == one).tolist() == [one == other for other in elements]
        assert (refs.data[i : i + 1] == refs.data).tolist() == [one == e for e in elements]
    assert len(set(elements)) == len(elements)
    # An object is not the region that selects all of it, nor an attribute of it.
    assert not (refs.data[[0]] == refs.data[[5]]).any()
    assert not (refs.data[[0]] == refs.data[[10]]).any()
    assert not (refs.data[[11]] == refs.data[[13]]).any()


def test_arrays_of_objects_keep_every_kind(std: xr.Dataset) -> None:
    elements = std["refs"].values
    made = ReferenceArray.from_references(elements)
    assert np.asarray(made).tolist() == elements.tolist()
    assert (made == std["refs"].data).all()
    with pytest.raises(TypeError, match="3 is no reference"):
        ReferenceArray.from_references([elements[10], 3])


def test_mixed_arrays_pickle_and_have_tokens_of_their_own(std: xr.Dataset) -> None:
    from dask.base import tokenize

    refs = std["refs"].data
    for part in (refs, refs[[3, 10, 7, 0]]):
        again = pickle.loads(pickle.dumps(part))
        assert np.asarray(again).tolist() == np.asarray(part).tolist()
        assert tokenize(again) == tokenize(part)
    assert tokenize(refs[[10]]) != tokenize(refs[[0]])
    assert len(pickle.dumps(refs)) < 2000


def test_the_table_tells_kinds_and_attributes(std: xr.Dataset) -> None:
    table = std["refs"].h5ref.table()
    kinds = ["dataset"] * 7 + ["null", "group", "datatype"] + ["attribute"] * 3 + ["dangling"]
    assert table["kind"].values.tolist() == kinds
    names = [""] * 10 + ["units"] * 3 + ["gone"]
    assert table["attribute"].values.tolist() == names
    paths = ["/data"] * 7 + ["", "/grp", "/type", "/data", "/grp", "/type", "/grp"]
    assert table["path"].values.tolist() == paths
    assert table["selection"].values.tolist()[:8] == [
        "object", "hyperslab", "hyperslab", "blocks", "points", "all", "none", "null",
    ]  # fmt: skip
    assert table["npoints"].values.tolist()[:8] == [48, 6, 6, 11, 3, 48, 0, 0]
    objects = std["refs"][[0, 8]].h5ref.table()
    assert "selection" not in objects
    assert "attribute" not in objects


def test_references_resolve_in_tasks(std: xr.Dataset) -> None:
    boxes = std["refs"][[1, 1, 1]]
    lazy = boxes.h5ref.resolve(chunks=1)
    assert lazy.chunks == ((1, 1, 1), (2,), (3,))
    np.testing.assert_array_equal(lazy.compute().values, [VALUES[1:3, 2:5]] * 3)
    np.testing.assert_array_equal(std["refs"][1:2].h5ref.mean(chunks=1), [15.0])


# --- attributes ------------------------------------------------------------------------


def test_attribute_references_are_plain_values(std: xr.Dataset) -> None:
    data, grp = std["refs"].values[10:12]
    assert bool(data)
    assert (data.path, data.name, data.kind) == ("/data", "units", "attribute")
    assert data.filename == std["refs"].values[0].filename
    assert data.object == std["refs"].values[0]
    assert data.address == data.object.address
    assert data == pickle.loads(pickle.dumps(data))
    assert hash(data) == hash(pickle.loads(pickle.dumps(data)))
    assert data != grp
    assert data != data.object
    assert repr(data) == "<AttributeReference -> /data @units>"
    null = AttributeReference(ObjectReference(None, 0), "")
    assert not null
    assert (null.kind, null.path, repr(null)) == ("null", None, "<AttributeReference null>")
    with pytest.raises(NullReferenceError):
        null.resolve()


def test_attributes_of_one_shape_are_stacked(std: xr.Dataset) -> None:
    refs = std["refs"].assign_coords(phony_dim_2=np.arange(14) * 10)
    values = refs[10:12].h5ref.resolve()
    assert values.name == "units"
    assert values.dims == ("phony_dim_2", "dim_0")
    assert values["phony_dim_2"].values.tolist() == [100, 110]
    np.testing.assert_array_equal(values.values, [[0, 1, 2], [10, 11, 12]])
    dropped = refs[[7, 10]].h5ref.resolve(on_null="drop")
    np.testing.assert_array_equal(dropped.values, [[0, 1, 2]])
    assert refs[12].h5ref.resolve().values == 1.5


def test_other_attributes_are_left_to_items(std: xr.Dataset) -> None:
    refs = std["refs"]
    with pytest.raises(ValueError, match=r"attribute of float64 \(\), others of int64 \(3,\)"):
        refs[10:13].h5ref.resolve()
    with pytest.raises(ValueError, match="others point at attributes; resolve one by one"):
        refs[[10, 0]].h5ref.resolve()
    with pytest.raises(ValueError, match="layout='pad'"):
        refs[[10]].h5ref.resolve(layout="pad")
    with pytest.raises(NullReferenceError, match="on_null='drop'"):
        refs[[7, 10]].h5ref.resolve()
    with pytest.raises(WrongTargetError, match="points at an attribute"):
        refs[10:12].h5ref.sum()
    with pytest.raises(
        DanglingReferenceError, match="'gone' of /grp: there is no attribute of that name"
    ):
        refs[13:].h5ref.resolve()
    found = dict(refs[10:13].h5ref.items())
    assert [found[i].values.tolist() for i in range(3)] == [[0, 1, 2], [10, 11, 12], 1.5]


def test_attributes_of_every_type_are_read(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {
        "text": "zwölf",
        "texts": np.array(["a", "bc"], dtype=h5py.string_dtype()),
        "bytes": np.array([b"a", b"bc"]),
        "one": np.array([7]),
        "table": np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
        "nothing": h5py.Empty("f4"),
    }
    with create(tmp_path / "std.h5") as file:
        file["data"] = 1
        for key, value in kinds.items():
            file["data"].attrs[key] = value
        file["data"].attrs["ref"] = file["data"].ref
        makers: list[Make | None] = [to_attribute(file, "data", key) for key in kinds]
        write_dataset(file, "refs", [*makers, to_attribute(file, "data", "ref")])
    with open_h5(tmp_path / "std.h5") as ds:
        found = {r.name: r.resolve() for r in ds["refs"].values}
        with pytest.raises(ValueError, match="attribute of references"):
            ds["refs"][6:].h5ref.resolve()
        assert all(value.name == key for key, value in found.items())
        assert found["text"].values[()] == "zwölf"
        assert found["texts"].values.tolist() == found["bytes"].values.tolist() == ["a", "bc"]
        assert found["one"].shape == (1,)
        assert found["table"].values["b"].tolist() == [2.5]
        assert found["nothing"].shape == (0,)
        assert found["ref"].values[()].path == "/data"


# --- other files -----------------------------------------------------------------------


def write_pair(folder: Path, target: str = "target.h5", holder: str = "holder.h5") -> list[Any]:
    """Write references to one file into another; return what the library reads."""
    for filename in (target, holder):
        (folder / filename).parent.mkdir(parents=True, exist_ok=True)
    with create(folder / target) as file, create(folder / holder) as other:
        other["own"] = np.arange(4)
        makers = fill(file)
        write_dataset(other, "refs", [*makers, to_object(other, "own")])
        return read_dataset(other, "refs")


def test_references_to_another_file_are_what_the_library_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = write_pair(Path())
    with open_h5(tmp_path / "holder.h5") as ds:
        for found, other in zip(ds["refs"].values, expected, strict=True):
            assert_as_library(found, other)
        values = ds["refs"][[1, 1]].h5ref.resolve(chunks=1)
        np.testing.assert_array_equal(values.compute().values, [VALUES[1:3, 2:5]] * 2)
        assert ds["refs"].values[-1].resolve().values.tolist() == [0, 1, 2, 3]
        table = ds["refs"].h5ref.table()
        names = {os.path.basename(n) for n in table["filename"].values}
        assert names == {"target.h5", "holder.h5", ""}


def test_files_that_moved_together_are_found(tmp_path: Path) -> None:
    write_pair(tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    with open_h5(tmp_path / "new" / "holder.h5") as ds:
        first = ds["refs"].values[0]
        assert first.filename == str(tmp_path / "new" / "target.h5")
        np.testing.assert_array_equal(first.resolve().values, VALUES)


def test_a_file_that_is_gone_leaves_the_other_references(tmp_path: Path) -> None:
    write_pair(tmp_path)
    (tmp_path / "target.h5").unlink()
    with open_h5(tmp_path / "holder.h5") as ds:
        refs = ds["refs"]
        assert refs.values[-1].resolve().values.tolist() == [0, 1, 2, 3]
        assert refs[-1:].h5ref.resolve().values.tolist() == [[0, 1, 2, 3]]
        gone, region, attribute = refs.values[[0, 1, 10]]
        for reference in (gone, region, attribute):
            assert reference
            assert reference.path is None
            assert reference == pickle.loads(pickle.dumps(reference))
            with pytest.raises(DanglingReferenceError, match=r"of '/refs' names .*target\.h5"):
                reference.resolve()
        assert [gone.kind, attribute.kind] == ["dangling", "dangling"]
        with pytest.raises(DanglingReferenceError, match=r"target\.h5"):
            refs[[1, 14]].h5ref.resolve(layout="ragged")
        kinds = refs.h5ref.table()["kind"].values.tolist()
        assert kinds == ["dangling"] * 7 + ["null"] + ["dangling"] * 6 + ["dataset"]


@pytest.mark.parametrize(
    ("folder", "external", "allowed"),
    [
        ("", "same-dir", True),
        ("", "all", True),
        ("", "none", False),
        ("inner/", "same-dir", False),
        ("inner/", "all", True),
    ],
)
def test_the_option_says_which_files_may_be_opened(
    folder: str, external: str, allowed: bool, tmp_path: Path
) -> None:
    write_pair(tmp_path, "target.h5", f"{folder}holder.h5")
    with open_h5(tmp_path / folder / "holder.h5", external=external) as ds:
        refs = ds["refs"].values
        assert refs[-1].resolve().values.tolist() == [0, 1, 2, 3]
        if allowed:
            np.testing.assert_array_equal(refs[0].resolve().values, VALUES)
        else:
            with pytest.raises(
                ExternalFileError, match=f'external="{external}" does not allow'
            ):
                refs[0].resolve()
            assert refs[0].kind == "dangling"


def test_a_pipe_or_another_format_is_no_target(tmp_path: Path) -> None:
    write_pair(tmp_path)
    (tmp_path / "target.h5").write_bytes(b"something else" * 100)
    holder, problem = tmp_path / "holder.h5", "not an HDF5 file"
    with open_h5(holder) as ds, pytest.raises(DanglingReferenceError, match=problem):
        ds["refs"].values[0].resolve()
    (tmp_path / "target.h5").unlink()
    os.mkfifo(tmp_path / "target.h5")
    with open_h5(holder) as ds, pytest.raises(ExternalFileError, match="not a regular file"):
        ds["refs"].values[0].resolve()


def test_a_reference_back_to_its_own_file_stays_in_it(tmp_path: Path) -> None:
    write_pair(tmp_path)
    # The holder's references name target.h5: there they lead to the file itself.
    with h5py.File(tmp_path / "target.h5", "r+") as file:
        file["data"][...] = VALUES + 1
        with create(tmp_path / "holder.h5") as other:
            write_dataset(other, "refs", [to_object(file, "data")])
    shutil.copyfile(tmp_path / "holder.h5", tmp_path / "target.h5")
    with open_h5(tmp_path / "target.h5") as ds:
        (found,) = ds["refs"].values
        assert found.location == locate_file(tmp_path / "target.h5")


# --- hyperslabs without limit ----------------------------------------------------------


def unlimited_positions(start: int, stride: int, block: int, extent: int) -> list[int]:
    """Return the elements of a hyperslab without limit: HDF5 itself does not read them."""
    return [i for i in range(start, extent) if (i - start) % stride < block]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize(
    ("start", "stride", "block"), [(0, 1, 1), (2, 3, 2), (1, 4, 3), (3, 2, 2), (9, 5, 1)]
)
def test_hyperslabs_without_limit_end_with_the_dataset(
    start: int, stride: int, block: int, libver: str, tmp_path: Path
) -> None:
    path = tmp_path / "std.h5"
    with create(path, libver) as file:
        data = file.create_dataset("data", data=np.arange(10), maxshape=(None,), chunks=(4,))
        counted = select(file, "data", ((start,), (h5s.UNLIMITED,), (stride,), (block,)))
        blocked = select(file, "data", ((start,), (1,), (1,), (h5s.UNLIMITED,)))
        write_dataset(
            file, "refs", [to_region(file, "data", counted), to_region(file, "data", blocked)]
        )
        assert data.shape == (10,)
    for extent in (10, 11, 12, 13, 25):
        with h5py.File(path, "r+") as file:
            file["data"].resize((extent,))
            file["data"][...] = np.arange(extent)
        with open_h5(path) as ds:
            counted, blocked = ds["refs"].values
            wanted = unlimited_positions(start, stride, block, extent)
            assert counted.resolve().values.tolist() == wanted
            assert counted.shape == (len(wanted),)
            assert blocked.resolve().values.tolist() == list(range(start, extent))


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_cut_block_on_one_of_two_axes_stays_an_outer_product(
    libver: str, tmp_path: Path
) -> None:
    path = tmp_path / "std.h5"
    with create(path, libver) as file:
        file.create_dataset("data", data=VALUES, maxshape=(None, 8), chunks=(2, 8))
        space = select(file, "data", ((1, 0), (h5s.UNLIMITED, 2), (3, 4), (2, 3)))
        write_dataset(file, "refs", [to_region(file, "data", space)])
    for extent in (5, 6):
        with h5py.File(path, "r+") as file:
            file["data"].resize((extent, 8))
            file["data"][...] = VALUES[:extent]
        rows = unlimited_positions(1, 3, 2, extent)
        with open_h5(path) as ds:
            found = ds["refs"].values[0].resolve().values
        np.testing.assert_array_equal(found, VALUES[np.ix_(rows, [0, 1, 2, 4, 5, 6])])


# --- damage ----------------------------------------------------------------------------


def test_many_elements_may_name_one_heap_object(tmp_path: Path) -> None:
    path = tmp_path / "std.h5"
    with create(path) as file:
        makers = fill(file)
        write_dataset(file, "refs", makers)
        offset = _offset(file, "refs")
    data = path.read_bytes()[offset : offset + 14 * 18]
    raw = np.frombuffer(data, np.uint8).reshape(14, 18)
    order = np.tile([10, 3, 11, 1, 3, 7, 0, 10], 1000)
    columns = decode_references(locate_file(path), raw[order], "std", str)
    array = ReferenceArray(order.shape, kind="std", columns=columns)
    single = decode_references(locate_file(path), raw, "std", str)
    expected = ReferenceArray((14,), kind="std", columns=single)
    assert (array == expected[order]).all()
    assert columns.names == ("units",)
    assert len(columns.regions.block_start) < 10


def _offset(file: h5py.File, name: str) -> int:
    return h5py.h5d.open(file.id, name.encode()).get_offset()


def test_sizes_that_differ_from_the_heap_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "std.h5"
    with create(path) as file:
        write_dataset(file, "refs", fill(file))
        offset = _offset(file, "refs")
    data = bytearray(path.read_bytes())
    data[offset + 18 + 2] += 1
    path.write_bytes(data)
    with open_h5(path) as ds, pytest.raises(CorruptFileError, match="reference 1 of '/refs'"):
        _ = ds["refs"].values


def read_damaged(path: Path, data: bytes, places: list[tuple[int, int]]) -> dict[str, int]:
    """Read copies of a file with single bytes changed; count decoded and refused ones."""
    counts = {"read": 0, "refused": 0}
    for place, value in places:
        damaged = bytearray(data)
        damaged[place] = value
        path.write_bytes(damaged)
        try:
            with open_h5(path) as ds:
                for reference in ds["refs"].values:
                    assert reference.kind
                    if reference:
                        resolved = reference.resolve()
                        assert math.prod(getattr(resolved, "shape", ())) <= 48
                        _ = getattr(resolved, "values", None)
        except XrefError:
            counts["refused"] += 1
        else:
            counts["read"] += 1
    return counts


@pytest.mark.slow
def test_damaged_bytes_are_decoded_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "std.h5"
    with create(path) as file:
        makers = fill(file)[:-1]
        write_dataset(file, "refs", makers)
        offset = _offset(file, "refs")
    data = path.read_bytes()
    heap = data.index(b"GCOL")
    used = data.index(b"units", heap) + 64
    places = [*range(offset, offset + 18 * len(makers)), *range(heap, used)]
    random_numbers = random.Random(0)
    changes = [(p, data[p] ^ (1 << random_numbers.randrange(8))) for p in places]
    changes += [(p, random_numbers.randrange(256)) for p in places]
    # As many of them as the profile has of other examples.
    changes = changes[:: max(200 // settings().max_examples, 1)]
    for k in range(0, len(changes), 100):
        answer = in_fork(lambda k=k: read_damaged(path, data, changes[k : k + 100]))
        assert "result" in answer, answer
        assert sum(answer["result"].values()) == len(changes[k : k + 100])


def test_the_public_class_is_exported() -> None:
    assert xref.AttributeReference is AttributeReference
