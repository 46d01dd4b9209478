"""Datatypes and dataspaces decode as h5py decodes the same bytes."""

from __future__ import annotations

import contextlib
import math
import struct
from typing import Any

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
from h5py import h5s, h5t
from hypothesis import given, settings
from images import LIBVERS, describe, describe_h5py, write_image

from xref.errors import CorruptFileError, UnsupportedError, XrefError
from xref.hdf5.dataspace import Dataspace, decode_dataspace
from xref.hdf5.datatype import MAX_DEPTH, Datatype, decode_datatype, reference_types
from xref.hdf5.object_header import DATASPACE_MESSAGE, DATATYPE_MESSAGE, read_messages

# --- types drawn through h5py ------------------------------------------------------------

INTEGERS = [
    *(
        getattr(h5t, f"STD_{sign}{8 * n}{o}")
        for sign in "IU"
        for n in (1, 2, 4, 8)
        for o in ("LE", "BE")
    )
]
FLOATS = [getattr(h5t, f"IEEE_F{n}{o}") for n in (16, 32, 64) for o in ("LE", "BE")]
BITFIELDS = [getattr(h5t, f"STD_B{n}{o}") for n in (8, 16, 32, 64) for o in ("LE", "BE")]
TIMES = [h5t.UNIX_D32LE, h5t.UNIX_D32BE, h5t.UNIX_D64LE, h5t.UNIX_D64BE]
REFERENCES = [h5t.STD_REF_OBJ, h5t.STD_REF_DSETREG]
COMPLEX = [
    getattr(h5t, f"COMPLEX_IEEE_F{n}{o}", None) for n in (16, 32, 64) for o in ("LE", "BE")
]

NUMBERS = [
    f"{order}{code}{size}"
    for order in "<>"
    for code, sizes in (("i", (1, 2, 4, 8)), ("u", (1, 2, 4, 8)), ("f", (2, 4, 8)))
    for size in sizes
]

MEMBER_NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12
)


@st.composite
def odd_integers(draw: st.DrawFn) -> h5t.TypeID:
    """Integers that do not use all bits, or have no size that NumPy knows."""
    size = draw(st.integers(1, 9))
    precision = draw(st.integers(1, 8 * size))
    type_id = draw(st.sampled_from(INTEGERS)).copy()
    type_id.set_size(size)
    type_id.set_precision(precision)
    type_id.set_offset(draw(st.integers(0, 8 * size - precision)))
    return type_id


@st.composite
def strings(draw: st.DrawFn, variable: bool = False) -> h5t.TypeID:
    type_id = h5t.C_S1.copy()
    type_id.set_size(h5t.VARIABLE if variable else draw(st.integers(1, 40)))
    type_id.set_cset(draw(st.sampled_from([h5t.CSET_ASCII, h5t.CSET_UTF8])))
    paddings = [h5t.STR_NULLTERM, h5t.STR_NULLPAD, h5t.STR_SPACEPAD]
    type_id.set_strpad(draw(st.sampled_from(paddings)))
    return type_id


@st.composite
def opaques(draw: st.DrawFn) -> h5t.TypeID:
    type_id = h5t.create(h5t.OPAQUE, draw(st.integers(1, 40)))
    type_id.set_tag(draw(st.text("abc:[]8", max_size=30)).encode())
    return type_id


@st.composite
def enums(draw: st.DrawFn) -> h5t.TypeID:
    base = draw(st.sampled_from(INTEGERS))
    info = np.iinfo(base.dtype)
    type_id = h5t.enum_create(base)
    members = st.dictionaries(
        MEMBER_NAMES, st.integers(int(info.min), min(int(info.max), 2**63 - 1)), max_size=5
    )
    used = set()
    for name, value in draw(members).items():
        if value not in used:
            used.add(value)
            type_id.enum_insert(name.encode(), value)
    return type_id


PLAIN = st.one_of(
    st.sampled_from([*INTEGERS, *FLOATS, *BITFIELDS, *TIMES]),
    st.sampled_from([each for each in COMPLEX if each is not None] or INTEGERS),
    odd_integers(),
    strings(),
    opaques(),
    enums().filter(lambda type_id: type_id.get_nmembers() > 0),
)

LEAVES = st.one_of(PLAIN, strings(variable=True), st.sampled_from(REFERENCES))


@st.composite
def compounds(draw: st.DrawFn, inside: st.SearchStrategy[h5t.TypeID]) -> h5t.TypeID:
    members = draw(st.dictionaries(MEMBER_NAMES, inside, min_size=1, max_size=4))
    at, places = 0, []
    for type_id in members.values():
        at += draw(st.integers(0, 3))
        places.append(at)
        at += type_id.get_size()
    compound = h5t.create(h5t.COMPOUND, at + draw(st.integers(0, 300)))
    order = draw(st.permutations(range(len(places))))
    names = list(members)
    for i in order:
        compound.insert(names[i].encode(), places[i], members[names[i]])
    return compound


def nested(inside: st.SearchStrategy[h5t.TypeID]) -> st.SearchStrategy[h5t.TypeID]:
    dims = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
    return st.one_of(
        compounds(inside),
        st.builds(lambda base, shape: h5t.array_create(base, shape), inside, dims),
        st.builds(h5t.vlen_create, inside),
    )


TYPES = st.recursive(LEAVES, nested, max_leaves=6)


def message_of(type_id: h5t.TypeID) -> bytes:
    """The datatype message behind the two bytes that an encoded type begins with."""
    return bytes(type_id.encode()[2:])


def nodes(datatype: Datatype) -> list[Datatype]:
    found = [datatype]
    for each in found:
        found += [f.datatype for f in each.fields] + [each.base] * (each.base is not None)
    return found


@settings(max_examples=3 * settings.default.max_examples)
@given(TYPES)
def test_datatypes_equal_those_that_h5py_decodes(type_id: h5t.TypeID) -> None:
    assert describe(decode_datatype(message_of(type_id), "f.h5")) == describe_h5py(type_id)


@given(TYPES, st.sampled_from(sorted(LIBVERS)))
def test_committed_datatypes_of_every_version_equal_h5py(
    type_id: h5t.TypeID, libver: str
) -> None:
    if libver in ("v108", "v110", "v112") and "complex" in str(describe_h5py(type_id)):
        libver = "latest"

    def fill(file: h5py.File) -> None:
        type_id.copy().commit(file.id, b"type")
        # libhdf5 may put members in another order when it writes a type.
        stored.append(describe_h5py(h5t.open(file.id, b"type")))

    stored: list[tuple[Any, ...]] = []
    image = write_image(fill, libver=libver)
    (message,) = read_messages(image.source(), image.addresses["type"], {DATATYPE_MESSAGE})
    datatype = decode_datatype(message.body, "f.h5")
    assert describe(datatype) == stored[0]
    for each in nodes(datatype):
        if each.type_class == "vlen":
            assert each.itemsize == 16  # in the file: length, collection, index
        if each.dtype is not None:
            assert each.dtype.itemsize == each.itemsize


@given(TYPES)
def test_reference_types_finds_references_at_any_depth(type_id: h5t.TypeID) -> None:
    text = str(describe_h5py(type_id))
    expected = {kind for kind in ("object", "region") if f"('{kind}',)" in text}
    # A tag may read like a kind, but is of bytes.
    assert reference_types(decode_datatype(message_of(type_id), "f.h5")) == expected


# --- dtypes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [
        *NUMBERS,
        "S1",
        "S9",
        [("a", "<i2"), ("b", ">f8", (2, 3)), ("c", [("d", "S3"), ("e", "u1")])],
        {"names": ["b", "a"], "formats": ["<i4", "u1"], "offsets": [4, 1], "itemsize": 11},
        ("<f4", (2, 3)),
    ],
    ids=str,
)
def test_numpy_dtypes_survive_encoding_and_decoding(dtype: Any) -> None:
    dtype = np.dtype(dtype)
    message = message_of(h5t.py_create(dtype))
    assert decode_datatype(message, "f.h5").dtype == dtype


def test_types_that_numpy_lacks_have_no_dtype() -> None:
    vax = h5t.IEEE_F64LE.copy()
    vax.set_ebias(1024)
    three = h5t.STD_I32LE.copy()
    three.set_precision(24)
    three.set_size(3)
    for type_id in (h5t.STD_REF_OBJ, h5t.IEEE_F128LE, vax, three):
        datatype = decode_datatype(message_of(type_id), "f.h5")
        assert datatype.dtype is None
        assert datatype.itemsize == type_id.get_size()
        compound = h5t.create(h5t.COMPOUND, 24)
        compound.insert(b"a", 0, h5t.IEEE_F64LE)
        compound.insert(b"b", 8, type_id)
        assert decode_datatype(message_of(compound), "f.h5").dtype is None


def test_times_decode_as_integers_of_their_size() -> None:
    for type_id, dtype in ((h5t.UNIX_D32LE, "<i4"), (h5t.UNIX_D64BE, ">i8")):
        assert decode_datatype(message_of(type_id), "f.h5").dtype == dtype


def test_compounds_beside_float64_have_a_dtype() -> None:
    # NumPy holds None and float64 equal.
    dtype = np.dtype([("a", "<f8"), ("b", "<f8")])
    assert decode_datatype(message_of(h5t.py_create(dtype)), "f.h5").dtype == dtype


@pytest.mark.parametrize("order", ["LE", "BE"])
@pytest.mark.parametrize("nbits", [32, 64])
def test_complex_numbers_of_hdf5_2_have_a_dtype(nbits: int, order: str) -> None:
    type_id = getattr(h5t, f"COMPLEX_IEEE_F{nbits}{order}", None)
    if type_id is None:
        pytest.skip("complex types came with HDF5 2.0")
    datatype = decode_datatype(message_of(type_id), "f.h5")
    code = {"LE": "<", "BE": ">"}[order]
    assert datatype.dtype == np.dtype(f"{code}c{nbits // 4}")
    assert datatype.base.dtype == np.dtype(f"{code}f{nbits // 8}")


def test_booleans_decode_as_an_enum() -> None:
    datatype = decode_datatype(message_of(h5t.py_create(np.dtype(bool), logical=True)), "f.h5")
    assert (datatype.type_class, datatype.dtype) == ("enum", np.dtype("i1"))
    assert datatype.members == (("FALSE", 0), ("TRUE", 1))


def test_version_1_members_with_dimensions_decode_as_arrays() -> None:
    # HDF5 1.2 had no array type; a member of a compound could have dimensions.
    member = b"a\0\0\0\0\0\0\0" + struct.pack("<IB11x4I", 4, 2, 3, 2, 0, 0)
    integer = struct.pack("<B3xIHH", 0x10, 2, 0, 16)
    body = struct.pack("<BHxI", 0x16, 1, 16) + member + integer
    datatype = decode_datatype(body, "f.h5")
    (field,) = datatype.fields
    assert (field.name, field.offset, field.datatype.shape) == ("a", 4, (3, 2))
    assert datatype.dtype == np.dtype(
        {"names": ["a"], "formats": [("<u2", (3, 2))], "offsets": [4], "itemsize": 16}
    )


def test_references_since_hdf5_112_decode_as_std() -> None:
    for kind in (2, 3, 4):
        datatype = decode_datatype(bytes([0x47, 0x10 | kind, 0, 0, 18, 0, 0, 0]), "f.h5")
        assert (datatype.reference, datatype.itemsize) == ("std", 18)


# --- damaged messages --------------------------------------------------------------------


def head(kind: int, flags: int, size: int, version: int = 3) -> bytes:
    return struct.pack("<BHBI", version << 4 | kind, flags & 0xFFFF, flags >> 16, size)


INT32 = head(0, 8, 4) + struct.pack("<HH", 0, 32)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "ends inside a type, at byte 0"),
        (INT32[:-1], "ends inside a type, at byte 8"),
        (head(0, 0, 4) + struct.pack("<HH", 8, 32), "32 bits at bit 8 of 4 bytes"),
        (head(0, 0, 0) + struct.pack("<HH", 0, 32), "elements of 0 bytes"),
        (head(3, 3, 4), "padding 3 and character set 0"),
        (head(5, 16, 4) + b"tag", "a tag of 16 bytes, and 3 are left"),
        (head(6, 0, 4), "a compound without members"),
        (head(6, 1, 4) + b"abc", "a name without an end"),
        (head(6, 1, 4) + b"a\0\1" + INT32, "'a' of 4 bytes at byte 1 of a compound of 4"),
        (
            head(6, 2, 9) + b"a\0\0" + INT32 + b"b\0\3" + INT32,
            "overlapping members 'a' and 'b'",
        ),
        (head(7, 5, 8), "references of type 5"),
        (head(8, 1, 2) + INT32, "an enum of 2 bytes over a integer of 4"),
        (head(8, 1, 4) + INT32 + b"a\0\0", "an enum of 1 members, and 1 bytes are left"),
        (head(9, 2, 16) + INT32, "sequences of type 2"),
        (head(10, 0, 4) + b"\0" + INT32, "an array of 0 dimensions"),
        (head(10, 0, 4) + struct.pack("<BI", 1, 0) + INT32, r"an array of the shape \(0,\)"),
        (head(10, 0, 4) + struct.pack("<BI", 1, 2) + INT32, "array of 4 bytes with 2 of 4"),
        (head(11, 0, 8, 5) + INT32, "complex numbers of 8 bytes over a integer"),
    ],
)
def test_a_contradictory_datatype_raises_with_the_fault(body: bytes, message: str) -> None:
    with pytest.raises(CorruptFileError, match=message) as raised:
        decode_datatype(body, "f.h5: '/a'")
    assert str(raised.value).startswith("f.h5: '/a': ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (head(12, 0, 4), "class 12"),
        (head(0, 0, 4, version=6), "version 6"),
        (head(7, 0x22, 18, version=4), "encoding 2"),
        (head(9, 0, 16) * (MAX_DEPTH + 1) + INT32, f"deeper than {MAX_DEPTH}"),
        (head(8, 0, 3) + head(0, 0, 3) + struct.pack("<HH", 0, 24), "an enum over"),
    ],
)
def test_unknown_classes_and_versions_raise_unsupported_error(
    body: bytes, message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        decode_datatype(body, "f.h5")


@given(TYPES, st.data())
def test_damaged_datatypes_raise_xref_errors_or_decode(
    type_id: h5t.TypeID, draw: st.DataObject
) -> None:
    body = bytearray(message_of(type_id))
    places = st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255))
    for at, value in draw.draw(st.lists(places, min_size=1, max_size=4)):
        body[at] = value
    try:
        datatype = decode_datatype(bytes(body[: draw.draw(st.integers(0, len(body)))]), "f.h5")
    except XrefError:
        return
    assert len(nodes(datatype)) <= len(body)
    for each in nodes(datatype):
        assert each.dtype is None or each.dtype.itemsize == each.itemsize
        for field in each.fields:
            assert field.offset + field.datatype.itemsize <= each.itemsize


@given(st.binary(max_size=200))
def test_random_datatype_bytes_raise_xref_errors_or_decode(body: bytes) -> None:
    with contextlib.suppress(XrefError):
        decode_datatype(body, "f.h5")
    with contextlib.suppress(XrefError):
        decode_dataspace(body, 8, "f.h5")


# --- dataspaces --------------------------------------------------------------------------

EXTENTS = st.lists(
    st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(0, 2**50))), max_size=32
)


@given(EXTENTS, st.sampled_from(sorted(LIBVERS)), st.booleans())
def test_dataspaces_equal_those_that_h5py_wrote(
    extents: list[tuple[int, int | None]], libver: str, bounded: bool
) -> None:
    shape = tuple(n for n, _ in extents)
    more = [
        None if m is None else max(n + m, 1) for n, (_, m) in zip(shape, extents, strict=True)
    ]
    most = shape if bounded else tuple(more)

    def fill(file: h5py.File) -> None:
        chunks = (1,) * len(shape) if most != shape else None
        file.create_dataset(
            "data", shape, "u1", maxshape=most if chunks else None, chunks=chunks
        )

    image = write_image(fill, libver=libver)
    (message,) = read_messages(image.source(), image.addresses["data"], {DATASPACE_MESSAGE})
    space = decode_dataspace(message.body, 8, "f.h5")
    assert space == Dataspace(shape, most, False)
    assert space.size == math.prod(shape)


def test_scalar_null_and_empty_dataspaces_differ() -> None:
    def fill(file: h5py.File) -> None:
        for name, space in (
            (b"null", h5s.create(h5s.NULL)),
            (b"scalar", h5s.create(h5s.SCALAR)),
            (b"empty", h5s.create_simple((0,))),
        ):
            h5py.h5d.create(file.id, name, h5t.STD_I32LE, space)

    image = write_image(fill)
    found = {}
    for name in ("null", "scalar", "empty"):
        (message,) = read_messages(image.source(), image.addresses[name], {DATASPACE_MESSAGE})
        found[name] = decode_dataspace(message.body, 8, "f.h5")
    assert found == {
        "null": Dataspace((), (), True),
        "scalar": Dataspace((), (), False),
        "empty": Dataspace((0,), (0,), False),
    }
    assert [found[n].size for n in found] == [0, 1, 0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\2\0\0", "begins with"),
        (bytes([3, 0, 0, 0]), "begins with"),
        (bytes([2, 0, 0, 3]), "begins with"),
        (bytes([2, 1, 0, 0]) + bytes(8), "type 0 and 12 bytes has 1 dimensions"),
        (bytes([2, 33, 0, 1]) + bytes(264), "has 33 dimensions"),
        (bytes([2, 2, 0, 1]) + bytes(15), "type 1 and 19 bytes has 2 dimensions"),
        (bytes([2, 1, 1, 1]) + struct.pack("<QQ", 3, 2), "is larger than the largest"),
    ],
)
def test_a_damaged_dataspace_raises_with_the_fault(body: bytes, message: str) -> None:
    with pytest.raises(CorruptFileError, match=message):
        decode_dataspace(body, 8, "f.h5")
