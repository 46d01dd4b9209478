"""Raw attributes have the type, shape and bytes of the attributes that h5py reads."""

from __future__ import annotations

import ctypes
import json
import struct
import time
from pathlib import Path
from typing import Any

import h5py
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from h5py import h5a, h5p, h5s, h5t
from hypothesis import given, settings
from images import LIBHDF5, LIBVERS, Image, describe, read_image, write_image

from xref.errors import CorruptFileError, UnsupportedError, XrefError
from xref.hdf5.attribute import NAME_INDEX, RawAttribute, read_raw_attributes
from xref.hdf5.btree2 import read_records
from xref.hdf5.checksums import lookup3
from xref.hdf5.datatype import reference_types
from xref.hdf5.object_header import ATTRIBUTE_INFO_MESSAGE, read_messages

SECONDS = 5  # that decoding damaged bytes may take; a thousand times what it does


def check_image(image: Image) -> int:
    """Compare all attributes of all objects; return how many."""
    n_checked = 0
    for path, address in image.addresses.items():
        found = {a.name: a for a in read_raw_attributes(image.source(), address)}
        expected = image.attributes[path]
        assert found.keys() == expected.keys()
        for name, stored in expected.items():
            attribute = found[name]
            assert attribute.is_null == (stored.shape is None)
            assert attribute.shape == (stored.shape or ())
            assert describe(attribute.datatype) == stored.description
            if stored.data is not None:
                assert attribute.data == stored.data
            n_checked += 1
    return n_checked


def attributes_of(image: Image, path: str = "/") -> dict[str, RawAttribute]:
    found = read_raw_attributes(image.source(), image.addresses[path])
    return {attribute.name: attribute for attribute in found}


def values_of(attribute: RawAttribute) -> Any:
    return np.frombuffer(attribute.data, attribute.datatype.dtype).reshape(attribute.shape)


# --- valid files -------------------------------------------------------------------------

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20
).filter(lambda name: name != ".")

SCALARS = st.one_of(
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.byte_string_dtypes(min_len=1),
)

FIELDS = st.lists(st.tuples(NAMES, SCALARS), min_size=1, max_size=4, unique_by=lambda f: f[0])

DTYPES = st.one_of(SCALARS, FIELDS.map(np.dtype))

VALUES = DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, max_side=4))
)


@given(
    attributes=st.dictionaries(NAMES, VALUES, max_size=14),
    libver=st.sampled_from(sorted(LIBVERS)),
    sizes=st.sampled_from([(8, 8), (4, 4), (4, 8), (8, 4)]),
    userblock=st.sampled_from([0, 512]),
    track_order=st.booleans(),
    n_compact=st.integers(0, 8),
)
def test_attributes_equal_those_that_h5py_reads(
    attributes: dict[str, Any],
    libver: str,
    sizes: tuple[int, int],
    userblock: int,
    track_order: bool,
    n_compact: int,
) -> None:
    def fill(file: h5py.File) -> None:
        properties = h5p.create(h5p.GROUP_CREATE)
        if track_order:
            properties.set_attr_creation_order(h5p.CRT_ORDER_TRACKED | h5p.CRT_ORDER_INDEXED)
        if libver != "earliest":
            properties.set_attr_phase_change(n_compact, n_compact // 2)
        group = h5py.Group(h5py.h5g.create(file.id, b"group", gcpl=properties))
        for name, values in attributes.items():
            group.attrs.create(name, values, dtype=values.dtype)

    image = write_image(fill, libver=libver, sizes=sizes, userblock=userblock)
    assert check_image(image) == len(attributes)
    found = read_raw_attributes(image.source(), image.addresses["group"])
    for attribute in found:
        expected = attributes[attribute.name]
        assert values_of(attribute).tobytes() == expected.tobytes()
    if track_order:
        assert [attribute.name for attribute in found] == list(attributes)


def test_null_scalar_and_empty_attributes_differ() -> None:
    def fill(file: h5py.File) -> None:
        file.attrs["null"] = h5py.Empty("<f4")
        file.attrs["scalar"] = np.float32(2)
        file.attrs["empty"] = np.zeros((0, 3), "<f4")

    found = attributes_of(write_image(fill))
    assert {n: (a.shape, a.is_null, a.data) for n, a in found.items()} == {
        "null": ((), True, b""),
        "scalar": ((), False, struct.pack("<f", 2)),
        "empty": ((0, 3), False, b""),
    }


def test_names_keep_bytes_that_are_not_utf8() -> None:
    def fill(file: h5py.File) -> None:
        space = h5s.create(h5s.SCALAR)
        h5a.create(file.id, b"caf\xe9", h5t.STD_I32LE, space).write(np.array(7, "<i4"))

    assert list(attributes_of(write_image(fill))) == ["caf\udce9"]


def test_attributes_of_a_committed_type_are_read() -> None:
    def fill(file: h5py.File) -> None:
        file["type"] = np.dtype([("a", "<i2"), ("b", ">f8", (2,))])
        file["type"].attrs["own"] = 1
        for i in range(3):
            file.attrs.create(f"a{i}", np.zeros(2, file["type"].dtype), dtype=file["type"])

    for libver in LIBVERS:
        image = write_image(fill, libver=libver)
        assert check_image(image) == 4
        assert attributes_of(image)["a2"].datatype.dtype == np.dtype(
            [("a", "<i2"), ("b", ">f8", (2,))]
        )


def test_attributes_hold_object_references_as_addresses() -> None:
    def fill(file: h5py.File) -> None:
        file.create_group("a")
        file.create_group("b")
        file.attrs["refs"] = np.array([file["a"].ref, file["b"].ref], h5py.ref_dtype)

    image = write_image(fill)
    targets = np.frombuffer(attributes_of(image)["refs"].data, "<u8").tolist()
    assert targets == [image.addresses["a"], image.addresses["b"]]


def test_object_references_in_attributes_have_the_size_of_offsets() -> None:
    # One each: of several, libhdf5 2.0 writes all but the first wrong in such a file.
    def fill(file: h5py.File) -> None:
        data = file.create_dataset("data", data=np.arange(4))
        file.attrs["object"] = data.ref
        file.attrs["region"] = data.regionref[1:3]

    image = write_image(fill, sizes=(4, 4))
    found = attributes_of(image)
    assert found["object"].data == struct.pack("<I", image.addresses["data"])
    assert found["region"].datatype.itemsize == len(found["region"].data) == 8


# --- dense storage -----------------------------------------------------------------------


@pytest.mark.parametrize("track_order", [False, True])
@pytest.mark.parametrize("n", [9, 50, 700, 6000])
def test_many_dense_attributes_are_read(n: int, track_order: bool) -> None:
    def fill(file: h5py.File) -> None:
        group = file.create_group("group", track_order=track_order)
        for i in range(n):
            group.attrs[f"attribute {i:05d}"] = np.arange(i % 60)

    image = write_image(fill, libver="latest")
    found = attributes_of(image, "group")
    assert len(found) == n
    for i in range(n):
        np.testing.assert_array_equal(values_of(found[f"attribute {i:05d}"]), np.arange(i % 60))


@pytest.mark.parametrize("sizes", [(8, 8), (4, 4), (4, 8), (8, 4)])
def test_large_attributes_are_read(sizes: tuple[int, int]) -> None:
    # Objects of more than 4096 bytes are huge: a B-tree tells where they lie.
    def fill(file: h5py.File) -> None:
        for i in range(60):
            file.attrs[f"a{i}"] = np.arange(i * 3000)

    image = write_image(fill, libver="latest", sizes=sizes)
    assert check_image(image) == 60


def test_attributes_in_nested_indirect_blocks_are_read() -> None:
    # 3 MB of managed objects need indirect blocks inside the root's.
    def fill(file: h5py.File) -> None:
        for i in range(900):
            file.attrs[f"a{i:03d}"] = np.full(480, i)

    image = write_image(fill, libver="latest")
    found = attributes_of(image)
    assert image.data.count(b"FHIB") > 1
    assert [int(values_of(found[f"a{i:03d}"])[479]) for i in range(900)] == list(range(900))


def test_deleted_attributes_are_not_read() -> None:
    def fill(file: h5py.File) -> None:
        for i in range(40):
            file.attrs[f"a{i}"] = i
        for i in range(0, 40, 3):
            del file.attrs[f"a{i}"]

    for libver in ("earliest", "latest"):
        assert check_image(write_image(fill, libver=libver)) == 26


@pytest.mark.parametrize("n_compact", [0, 40])
def test_attributes_in_the_heap_of_shared_messages_are_read(n_compact: int) -> None:
    kinds = 1 << 1 | 1 << 3 | 1 << 12  # dataspaces, datatypes, attributes

    def prepare(properties: Any) -> None:
        identifier = ctypes.c_int64(properties.id)
        assert LIBHDF5.H5Pset_shared_mesg_nindexes(identifier, 1) >= 0
        assert LIBHDF5.H5Pset_shared_mesg_index(identifier, 0, kinds, 8) >= 0
        properties.set_attr_phase_change(n_compact, 0)

    def fill(file: h5py.File) -> None:
        groups = [file.create_group(name) for name in "ab"]
        for group in groups:
            for i in range(12):
                group.attrs[f"a{i}"] = np.arange(i, i + 20)

    image = write_image(fill, prepare=prepare)
    assert b"SMTB" in image.data
    assert check_image(image) == 24


# --- files of other writers --------------------------------------------------------------


def test_attributes_of_the_corpus_equal_those_that_h5py_reads(corpus: Path) -> None:
    manifest = json.loads((corpus / "MANIFEST.json").read_text())
    n_checked = sum(
        check_image(read_image(corpus / row["file"]))
        for row in manifest["files"]
        if row["role"] != "damaged"
    )
    assert n_checked > 6000


def test_std_references_in_attributes_have_their_own_type(corpus: Path) -> None:
    image = read_image(corpus / "hdf5" / "test_ds_le_new_ref.h5")
    found = {
        a.datatype.type_class
        for address in image.addresses.values()
        for a in read_raw_attributes(image.source(), address)
        if reference_types(a.datatype) == {"std"}
    }
    assert found == {"vlen", "compound"}


# --- damaged bytes -----------------------------------------------------------------------


def sample_image(libver: str, n: int) -> Image:
    def fill(file: h5py.File) -> None:
        file["type"] = np.dtype([("a", "<i2"), ("b", ">f8", (2,))])
        file.attrs.create("committed", np.zeros(2, file["type"].dtype), dtype=file["type"])
        file.attrs["enum"] = np.array([True, False])
        file.attrs["text"] = "varying"
        for i in range(n):
            file.attrs[f"a{i}"] = np.arange(i)
        if libver == "latest":
            file.attrs["huge"] = np.arange(1000)

    return write_image(fill, libver=libver)


SAMPLES = {
    "version 1": sample_image("earliest", 5),
    "compact": sample_image("v108", 3),
    "dense": sample_image("latest", 12),
    "indirect": sample_image("latest", 90),
}


def repair(data: bytearray) -> bytes:
    """Make the checksums of heap and B-tree headers right, so that damage gets further."""
    for signature, nbytes in ((b"FRHP", 146), (b"BTHD", 38), (b"OHDR", None)):
        at = data.find(signature)
        while at >= 0:
            size = nbytes or header_nbytes(data, at)
            data[at + size - 4 : at + size] = struct.pack(
                "<I", lookup3(bytes(data[at : at + size - 4]))
            )
            at = data.find(signature, at + 4)
    return bytes(data)


def header_nbytes(data: bytearray, at: int) -> int:
    flags = data[at + 5]
    begin = 6 + (16 if flags & 32 else 0) + (4 if flags & 16 else 0)
    width = 1 << (flags & 3)
    nbytes = int.from_bytes(data[at + begin : at + begin + width], "little")
    return min(begin + width + nbytes + 4, len(data) - at)


def used_bytes(image: Image) -> list[int]:
    """Positions of all bytes that are read for the attributes of the root group."""
    source, used = image.source(), set[int]()

    def read(address: int, nbytes: int) -> bytes:
        used.update(range(address, address + nbytes))
        return source.read(address, nbytes)

    counting = type(source)(read, *image.sizes, source.file_nbytes, "f.h5")
    read_raw_attributes(counting, image.addresses["/"])
    return sorted(used)


USED = {name: used_bytes(image) for name, image in SAMPLES.items()}


@settings(max_examples=2 * settings.default.max_examples)
@given(name=st.sampled_from(sorted(SAMPLES)), repaired=st.booleans(), draw=st.data())
def test_damaged_attributes_raise_xref_errors_or_decode(
    name: str, repaired: bool, draw: st.DataObject
) -> None:
    image, data = SAMPLES[name], bytearray(SAMPLES[name].data)
    places = st.sampled_from(USED[name])
    for at, value in draw.draw(
        st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)
    ):
        data[at] = value
    damaged = image.source(repair(data) if repaired else bytes(data))
    begin = time.process_time()
    errors: list[XrefError] = []
    try:
        found = read_raw_attributes(
            damaged, image.addresses["/"], lambda name, error: errors.append(error)
        )
    except XrefError:
        found = []
    assert time.process_time() - begin < SECONDS
    for attribute in found:
        n = 0 if attribute.is_null else int(np.prod(attribute.shape, dtype=object))
        assert len(attribute.data) == n * attribute.datatype.itemsize


@pytest.mark.parametrize("name", ["dense", "indirect"])
def test_a_wrong_checksum_of_dense_storage_raises(name: str) -> None:
    # Huge objects, which lie outside of blocks, have no checksum.
    image = SAMPLES[name]
    expected = repr(read_raw_attributes(image.source(), image.addresses["/"]))
    data_of_huge = np.arange(1000).tobytes()
    end = image.data.find(data_of_huge) + len(data_of_huge)
    huge = range(end - len(data_of_huge) - 64, end)  # with the head of its message
    places = [at for at in USED[name] if at not in huge]
    n_noticed = 0
    for at in np.random.default_rng(5).choice(places, 300, replace=False).tolist():
        data = bytearray(image.data)
        data[at] ^= 4
        try:
            found = repr(read_raw_attributes(image.source(bytes(data)), image.addresses["/"]))
        except XrefError:
            n_noticed += 1
        else:  # a prefix may be shorter than the 34 bytes that are read for it
            assert found == expected, f"the flip of byte {at} was not noticed"
    assert n_noticed > 290


def test_a_damaged_attribute_does_not_hide_the_others() -> None:
    def fill(file: h5py.File) -> None:
        for name in "abc":
            file.attrs[name] = np.arange(3, dtype="<i4")

    image = write_image(fill)
    data = bytearray(image.data)
    at = data.find(b"b\0\0\0\0\0\0\0") + 8
    assert data[at] == 0x10  # an integer, version 1
    data[at] = 0x1F
    source = image.source(bytes(data))
    errors = []
    found = read_raw_attributes(source, image.addresses["/"], lambda *e: errors.append(e))
    assert [attribute.name for attribute in found] == ["a", "c"]
    ((name, error),) = errors
    assert name == "b"
    with pytest.raises(
        UnsupportedError, match=r"image\.h5: attribute 'b': .*class 15"
    ) as raised:
        read_raw_attributes(source, image.addresses["/"])
    assert str(raised.value) == str(error)


def test_attribute_data_shorter_than_its_shape_raises() -> None:
    def fill(file: h5py.File) -> None:
        file.attrs["a"] = np.arange(3, dtype="<i4")

    image = write_image(fill)
    three = struct.pack("<Q", 3)
    assert image.data.count(three + three) == 1  # shape and largest shape
    large = struct.pack("<Q", 1 << 60)
    source = image.source(image.data.replace(three + three, large + large))
    with pytest.raises(
        CorruptFileError, match=r"attribute 'a' has the shape \(1152921504606846976,\)"
    ):
        read_raw_attributes(source, image.addresses["/"])


def test_many_records_with_one_heap_id_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    # A few bytes a record must not become a large attribute each.
    image = SAMPLES["indirect"]
    largest = struct.pack("<B5sH", 0, *largest_object(image))
    record = largest + struct.pack("<BII", 0, 0, 0)
    n = len(image.data) // 700 + 1
    for count, outcome in ((1, None), (n, "more bytes than the file")):
        monkeypatch.setattr(
            "xref.hdf5.attribute.read_records", lambda *_, n=count: [record] * n
        )
        if outcome is None:
            (only,) = read_raw_attributes(image.source(), image.addresses["/"])
            assert only.name == "a89"
            continue
        with pytest.raises(CorruptFileError, match=outcome):
            read_raw_attributes(image.source(), image.addresses["/"])


def largest_object(image: Image) -> tuple[bytes, int]:
    """Place and size, as in a heap ID, of the largest object inside the heap."""
    (info,) = read_messages(image.source(), image.addresses["/"], {ATTRIBUTE_INFO_MESSAGE})
    tree = int.from_bytes(info.body[10:18], "little")
    records = read_records(image.source(), tree, NAME_INDEX, 17)
    managed = [record for record in records if record[0] == 0]
    largest = max(managed, key=lambda record: record[6:8][::-1])
    return largest[1:6], int.from_bytes(largest[6:8], "little")
