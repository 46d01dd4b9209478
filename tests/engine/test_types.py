"""Every type that HDF5 stores: values, dtypes and attributes as h5py reads them."""

from __future__ import annotations

import itertools
import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from h5py import h5a, h5d, h5ds, h5p, h5s, h5t
from samples import open_h5

from xref import UnreadableMemberWarning

SHAPE = (4, 3)
NUMBERS = np.arange(math.prod(SHAPE)).reshape(SHAPE)


def objects(make: Callable[[int], Any]) -> np.ndarray:
    """Return an object array of ``make(number)`` for each number."""
    out = np.empty(SHAPE, dtype=object)
    for index, number in np.ndenumerate(NUMBERS):
        out[index] = make(int(number))
    return out


def fixed_text(nbytes: int, padding: int, encoding: int = h5t.CSET_ASCII) -> h5t.TypeID:
    datatype = h5t.C_S1.copy()
    datatype.set_size(nbytes)
    datatype.set_strpad(padding)
    datatype.set_cset(encoding)
    return datatype


def custom_float(nbytes: int, exponent: int, bias: int) -> h5t.TypeID:
    """Return an IEEE-like float type whose exponent has ``exponent`` bits."""
    datatype = h5t.IEEE_F32LE.copy()
    mantissa = 8 * nbytes - 1 - exponent
    datatype.set_fields(8 * nbytes - 1, mantissa, exponent, 0, mantissa)
    datatype.set_size(nbytes)
    datatype.set_ebias(bias)
    return datatype


def short_integer() -> h5t.TypeID:
    datatype = h5t.STD_I32LE.copy()
    datatype.set_precision(20)
    return datatype


PAIR = np.dtype([("number", "<i4"), ("value", ">f8")])
NESTED = np.dtype([("id", "<i2"), ("pairs", PAIR, (2,)), ("name", "S3")])
ENUM = h5py.enum_dtype({"RED": 0, "GREEN": 1, "BLUE": 300}, basetype="i2")
MOMENTS = h5py.opaque_dtype(np.dtype("M8[s]"))


def pairs(*shape: int) -> np.ndarray:
    out = np.zeros((*SHAPE, *shape), PAIR)
    out["number"] = np.arange(out.size).reshape(out.shape)
    out["value"] = out["number"] / 4
    return out


def nested() -> np.ndarray:
    out = np.zeros(SHAPE, NESTED)
    out["id"], out["pairs"], out["name"] = NUMBERS, pairs(2), NUMBERS.astype("S3")
    return out


TEXT = np.array([f"{n}".encode() for n in range(12)], "S5").reshape(SHAPE)

# Types that h5py can write from a dtype.
DTYPES: dict[str, tuple[Any, np.ndarray]] = {
    "text": (h5py.string_dtype(), objects(lambda n: "ä" * n)),
    "ascii text": (h5py.string_dtype("ascii"), objects(lambda n: f"{n}")),
    "odd bytes in text": (h5py.string_dtype("ascii"), objects(lambda n: b"\xff%d\x80" % n)),
    "enum": (ENUM, np.array([0, 1, 300], "i2")[NUMBERS % 3]),
    "bool": (np.dtype(bool), NUMBERS % 3 == 0),
    "opaque": (np.dtype("V5"), TEXT.view("V5")),
    "moments": (MOMENTS, (NUMBERS * 10**8).astype("M8[s]").astype(MOMENTS)),
    "complex": (np.dtype("<c16"), NUMBERS - 2j * NUMBERS),
    "big complex": (np.dtype(">c8"), (NUMBERS - 2j * NUMBERS).astype(">c8")),
    "half": (np.dtype("<f2"), NUMBERS.astype("f2")),
    "big half": (np.dtype(">f2"), NUMBERS.astype(">f2")),
    "long double": (np.dtype(np.longdouble), NUMBERS.astype(np.longdouble) / 3),
    "array": (np.dtype(("<i4", (2, 2))), np.arange(48).reshape(*SHAPE, 2, 2)),
    "array of compounds": (np.dtype((PAIR, (2,))), pairs(2)),
    "compound": (PAIR, pairs()),
    "nested compound": (NESTED, nested()),
    "compound with text": (
        np.dtype([("n", "i4"), ("text", h5py.string_dtype())]),
        np.array([(n, f"é{n}") for n in range(12)], [("n", "i4"), ("text", object)]).reshape(
            SHAPE
        ),
    ),
    "sequence": (h5py.vlen_dtype("<i4"), objects(lambda n: np.arange(n % 5))),
    "big sequence": (h5py.vlen_dtype(">f4"), objects(lambda n: np.arange(n % 5, dtype=">f4"))),
    "sequence of compounds": (
        h5py.vlen_dtype(PAIR),
        objects(lambda n: pairs().ravel()[: n + 1]),
    ),
    "sequence of text": (
        h5py.vlen_dtype(h5py.string_dtype()),
        objects(lambda n: np.array([f"{k}" for k in range(n + 1)], object)),
    ),
}

# Types that need an HDF5 type to be written; the last item is the type in memory.
LOW_LEVEL: dict[str, tuple[h5t.TypeID, np.ndarray, h5t.TypeID | None]] = {
    "terminated": (fixed_text(5, h5t.STR_NULLTERM), TEXT, None),
    "null-padded": (fixed_text(5, h5t.STR_NULLPAD), TEXT, None),
    "space-padded": (fixed_text(5, h5t.STR_SPACEPAD), TEXT, None),
    "fixed utf-8": (
        fixed_text(5, h5t.STR_NULLPAD, h5t.CSET_UTF8),
        np.array([f"ä{n}".encode() for n in range(12)], "S5").reshape(SHAPE),
        fixed_text(5, h5t.STR_NULLPAD, h5t.CSET_UTF8),
    ),
    "odd fixed bytes": (fixed_text(3, h5t.STR_NULLPAD), np.full(SHAPE, b"\xff\x00\x80"), None),
    "bfloat16": (custom_float(2, 8, 127), NUMBERS.astype("f4"), h5t.NATIVE_FLOAT),
    "float of 8 bits": (custom_float(1, 4, 7), NUMBERS.astype("f4"), h5t.NATIVE_FLOAT),
    "float of 24 bits": (custom_float(3, 9, 255), NUMBERS.astype("f4"), h5t.NATIVE_FLOAT),
    "integer of 20 bits": (short_integer(), -NUMBERS.astype("i4"), h5t.NATIVE_INT32),
    "bits": (h5t.STD_B8LE, NUMBERS.astype("u1"), h5t.NATIVE_B8),
    "big bits": (h5t.STD_B32BE, NUMBERS.astype("u4") << 20, h5t.NATIVE_B32),
    "sequence of sequences": (
        h5t.vlen_create(h5t.vlen_create(h5t.STD_I32LE)),
        objects(
            lambda n: np.array(
                [*(np.arange(k, dtype="i4") for k in range(n % 5 + 2)), None], object
            )[:-1]
        ),
        None,
    ),
}
if hasattr(h5t, "COMPLEX_IEEE_F32LE"):  # HDF5 2.0
    values = NUMBERS * (1 - 2j)
    LOW_LEVEL["native complex"] = (h5t.COMPLEX_IEEE_F32LE, values.astype("c8"), None)
    LOW_LEVEL["native big complex"] = (
        h5t.COMPLEX_IEEE_F64BE,
        values.astype("c16"),
        h5t.NATIVE_DOUBLE_COMPLEX,
    )


def contiguous(properties: h5p.PropDCID) -> None:
    properties.set_layout(h5d.CONTIGUOUS)


def compact(properties: h5p.PropDCID) -> None:
    properties.set_layout(h5d.COMPACT)


def compressed(properties: h5p.PropDCID) -> None:
    properties.set_chunk((3, 2))
    properties.set_deflate(4)


STORAGE = {"contiguous": contiguous, "compact": compact, "compressed": compressed}


def write(path: Path, name: str, storage: str) -> np.ndarray:
    """Write ``data``; return the values that h5py reads."""
    properties = h5p.create(h5p.DATASET_CREATE)
    STORAGE[storage](properties)
    memory = None
    if name in DTYPES:
        dtype, values = DTYPES[name]
        datatype = h5t.py_create(dtype, logical=True)
    else:
        datatype, values, memory = LOW_LEVEL[name]
    with h5py.File(path, "w") as file:
        space = h5s.create_simple(SHAPE)
        made = h5d.create(file.id, b"data", datatype, space, dcpl=properties)
        if name in DTYPES:
            for index in np.ndindex(SHAPE):  # h5py takes sequences one by one
                h5py.Dataset(made)[index] = values[index]
        else:
            made.write(h5s.ALL, h5s.ALL, np.ascontiguousarray(values), mtype=memory)
    if name == "big sequence":  # h5py reads its bytes in the wrong order
        return values
    with h5py.File(path) as file:
        return file["data"][...]


def plain(value: Any) -> Any:
    """Return nested lists that are equal if the values are; text as the bytes in the file."""
    match value:
        case str():
            return value.encode("utf-8", "surrogateescape")
        case np.ndarray() | np.void():
            return plain(value.tolist())
        case list() | tuple():
            return [plain(v) for v in value]
    return value


KEYS: list[tuple[Any, ...]] = [
    (),
    (slice(1, 3),),
    (slice(0, 4, 3), slice(None, None, 2)),
    (slice(None, None, -1), slice(2, 0, -1)),
    (2,),
    (-1, 1),
    (slice(0, 0),),
    ([3, 0, 3], [1]),
]


@pytest.mark.sampled(11)
@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("name", [*DTYPES, *LOW_LEVEL])
def test_values_of_every_type_equal_those_of_h5py(
    tmp_path: Path, name: str, storage: str
) -> None:
    expected = write(tmp_path / "f.h5", name, storage)
    with open_h5(tmp_path / "f.h5", decode_cf=False) as ds:
        data = ds["data"]
        assert data.shape == expected.shape
        if name.endswith("text") and name != "compound with text" and "seq" not in name:
            # xarray converts it to NumPy text.
            assert data.dtype.kind == "U"
        else:
            assert data.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
        for key in KEYS:
            found = data.variable[key].values
            outer = key and isinstance(key[0], list)
            wanted = expected[np.ix_(*key) if outer else (*key, ...)]
            assert found.shape == wanted.shape, key
            assert plain(found) == plain(wanted), key
        points = (xr.Variable("p", [3, 1, 1]), xr.Variable("p", [0, 2, 2]))
        assert plain(data.variable[points].values) == plain(expected[[3, 1, 1], [0, 2, 2]])
        again = pickle.loads(pickle.dumps(data))
        assert plain(again.values) == plain(expected)
        lazy = data.chunk({data.dims[0]: 3})
        assert plain(lazy.values) == plain(expected)


def test_all_values_that_were_written_differ() -> None:
    for name, (_, values, *_rest) in itertools.chain(DTYPES.items(), LOW_LEVEL.items()):
        if name not in ("enum", "bool", "odd fixed bytes"):
            found = [str(plain(values[index])) for index in np.ndindex(SHAPE)]
            assert len(set(found)) >= 4, name


TIMES = {
    "little 32": (h5t.UNIX_D32LE, "<i4"),
    "big 32": (h5t.UNIX_D32BE, ">i4"),
    "little 64": (h5t.UNIX_D64LE, "<i8"),
    "big 64": (h5t.UNIX_D64BE, ">i8"),
}


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("name", TIMES)
def test_times_are_the_integers_that_are_stored(
    tmp_path: Path, name: str, storage: str
) -> None:
    # h5py reads none of these.
    datatype, dtype = TIMES[name]
    stored = (NUMBERS * 10**8 - 5).astype(dtype)
    properties = h5p.create(h5p.DATASET_CREATE)
    STORAGE[storage](properties)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        made = h5d.create(file.id, b"data", datatype, h5s.create_simple(SHAPE), properties)
        made.write(h5s.ALL, h5s.ALL, stored, mtype=datatype)
        attribute = h5a.create(file.id, b"when", datatype, h5s.create_simple((2,)))
        attribute.write(np.ascontiguousarray(stored[0, :2]), mtype=datatype)
    with open_h5(tmp_path / "f.h5") as ds:
        assert ds["data"].dtype.newbyteorder("=") == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(ds["data"], stored)
        np.testing.assert_array_equal(ds["data"][1:4:2, ::-1], stored[1:4:2, ::-1])
        np.testing.assert_array_equal(ds.attrs["when"], stored[0, :2])


def test_variables_of_types_that_h5py_lacks_are_left_out_with_a_warning(tmp_path: Path) -> None:
    within = h5t.create(h5t.COMPOUND, 4)
    within.insert(b"when", 0, h5t.UNIX_D32LE)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        h5d.create(file.id, b"data", within, h5s.create_simple(SHAPE))
        h5a.create(file.id, b"odd", within, h5s.create_simple(SHAPE))
        file["other"] = np.arange(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnreadableMemberWarning)
        ds = open_h5(tmp_path / "f.h5")
    assert set(ds) == {"other"}
    assert sorted("'/data'" in str(w.message) for w in caught) == [False, True]
    assert sum("'odd'" in str(w.message) for w in caught) == 1
    np.testing.assert_array_equal(ds["other"], np.arange(3))


@pytest.mark.parametrize("limit", [3, h5s.UNLIMITED])
def test_a_scale_of_a_type_that_numpy_lacks_names_its_dimension(
    tmp_path: Path, limit: int
) -> None:
    odd = h5t.IEEE_F64LE.copy()
    odd.set_ebias(2**24)
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_chunk((3,))
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["good"] = np.arange(3.0)
        h5d.create(file.id, b"t", odd, h5s.create_simple((3,), (limit,)), properties)
        scale = h5d.open(file.id, b"t")
        h5ds.set_scale(scale, b"t")
        h5ds.attach_scale(file["good"].id, scale, 0)
        refs = file.create_dataset("refs", (1,), dtype=h5py.regionref_dtype)
        refs[0] = file["good"].regionref[1:]
    with pytest.warns(UnreadableMemberWarning, match="/t"):
        ds = open_h5(tmp_path / "f.h5")
    with ds:
        assert set(ds) == {"good", "refs"}
        assert ds["good"].dims == ("t",)
        assert ds["good"].values.tolist() == [0, 1, 2]
        with pytest.warns(UnreadableMemberWarning, match="/t: "):
            resolved = ds["refs"].h5ref.resolve()
        assert resolved.dims == (*ds["refs"].dims, "t")
        assert resolved.values.tolist() == [[1, 2]]


def test_enum_keeps_its_names(tmp_path: Path) -> None:
    write(tmp_path / "f.h5", "enum", "contiguous")
    with open_h5(tmp_path / "f.h5") as ds:
        for dtype in (ds["data"].dtype, ds["data"].encoding["dtype"]):
            assert h5py.check_enum_dtype(dtype) == {"RED": 0, "GREEN": 1, "BLUE": 300}


def test_datasets_have_the_dtype_of_their_committed_type(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["types/pair"] = PAIR
        file["colour"] = ENUM
        file.create_dataset("pairs", data=pairs(), dtype=file["types/pair"])
        file.create_dataset("colours", data=[1, 300], dtype=file["colour"])
        file["colour"].attrs["of"] = "a type"
    with open_h5(tmp_path / "f.h5") as ds:
        assert set(ds) == {"pairs", "colours"}
        assert plain(ds["pairs"].values) == plain(pairs())
        assert ds["colours"].values.tolist() == [1, 300]
        assert h5py.check_enum_dtype(ds["colours"].dtype) == h5py.check_enum_dtype(ENUM)


# --- datasets of odd extents ------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [*DTYPES, *LOW_LEVEL])
@pytest.mark.parametrize("shape", [(), (0,), (2, 0)], ids=str)
def test_scalars_and_empty_datasets_of_any_type(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    datatype, values, memory = (
        LOW_LEVEL[name]
        if name in LOW_LEVEL
        else (h5t.py_create(DTYPES[name][0], logical=True), DTYPES[name][1], None)
    )
    with h5py.File(tmp_path / "f.h5", "w") as file:
        space = h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)
        made = h5d.create(file.id, b"data", datatype, space)
        if not shape and name in DTYPES:
            h5py.Dataset(made)[()] = values[3, 2]
        elif not shape:
            one = np.ascontiguousarray(values[3:, 2:]).reshape(())
            made.write(h5s.ALL, h5s.ALL, one, mtype=memory)
    with h5py.File(tmp_path / "f.h5") as file:
        expected = file["data"][()]
    with open_h5(tmp_path / "f.h5", decode_cf=False) as ds:
        found = ds["data"].values
        if not shape and h5py.check_vlen_dtype(ds["data"].dtype):
            assert found.shape == ()
            found = found.item()  # h5py gives the elements of the one sequence
        assert np.shape(found) == np.shape(expected)
        assert plain(found) == plain(expected)


@pytest.mark.parametrize(
    "dtype", ["f4", "S3", h5py.string_dtype(), h5py.ref_dtype, PAIR], ids=str
)
def test_datasets_without_a_dataspace_hold_no_element(tmp_path: Path, dtype: Any) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("nothing", data=h5py.Empty(dtype))
        file["other"] = np.arange(3)
        file["nothing"].attrs["title"] = "kept"
    with open_h5(tmp_path / "f.h5") as ds:
        assert ds["nothing"].shape == (0,)
        assert np.asarray(ds["nothing"].values).shape == (0,)
        assert ds["nothing"].attrs["title"] == "kept"
        assert ds["other"].shape == (3,)


# --- attributes -------------------------------------------------------------------------

# Values as h5py reads them, except that text is always str, and a single text no array.
ATTRIBUTES: dict[str, tuple[Any, Any, Any]] = {
    "text": ("ä", None, "ä"),
    "one text": (["ä"], h5py.string_dtype(), "ä"),
    "texts": (["ä", ""], h5py.string_dtype(), ["ä", ""]),
    "no texts": (np.empty(0, object), h5py.string_dtype(), []),
    "table of texts": ([["a", "b"], ["c", "d"]], h5py.string_dtype(), [["a", "b"], ["c", "d"]]),
    "odd text": (b"a\xff", h5py.string_dtype("ascii"), "a\udcff"),
    "fixed text": (np.bytes_(b"ab"), None, "ab"),
    "one fixed text": (np.array([b"ab"]), None, "ab"),
    "fixed texts": (np.array([b"ab", "ä".encode()]), None, ["ab", "ä"]),
    "no fixed texts": (np.array([], "S3"), None, []),
    "odd fixed text": (np.bytes_(b"a\xff"), None, "a\udcff"),
    "number": (5, None, 5),
    "one number": ([5], None, 5),
    "numbers": (np.array([1, 2], ">i4"), None, [1, 2]),
    "no numbers": (np.zeros(0, "i4"), None, []),
    "table of one": ([[5]], None, [5]),
    "half": (np.float16(1.5), None, 1.5),
    "long double": (np.longdouble(1.5), None, 1.5),
    "bool": (True, None, True),
    "bools": ([True, False], None, [True, False]),
    "complex": (1 + 2j, None, 1 + 2j),
    "one complex": (np.array([1 + 2j]), None, 1 + 2j),
    "enum": (np.int16(300), ENUM, 300),
    "one enum": (np.array([300], "i2"), ENUM, 300),
    "opaque": (np.void(b"abc"), None, b"abc"),
    "moment": (np.array(86400, "M8[s]").astype(MOMENTS), MOMENTS, np.datetime64(86400, "s")),
    "compound": (np.array((1, 2.5), PAIR), None, (1, 2.5)),
    "one compound": (np.array([(1, 2.5)], PAIR), None, (1, 2.5)),
    "compounds": (np.array([(1, 2.5), (2, 3.5)], PAIR), None, [(1, 2.5), (2, 3.5)]),
    "nothing": (h5py.Empty("f4"), None, []),
    "no text": (h5py.Empty("S4"), None, []),
}


@pytest.mark.parametrize("holder", ["group", "dataset"])
def test_attributes_of_every_type_are_plain_values(tmp_path: Path, holder: str) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["data"] = np.arange(3)
        item = file if holder == "group" else file["data"]
        for name, (value, dtype, _) in ATTRIBUTES.items():
            item.attrs.create(name, value, dtype=dtype)
        lists = np.empty(2, dtype=object)
        lists[0], lists[1] = np.array([1, 2], "i4"), np.array([], "i4")
        item.attrs.create("sequences", lists, dtype=h5py.vlen_dtype("i4"))
    with open_h5(tmp_path / "f.h5") as ds:
        attributes = pickle.loads(pickle.dumps((ds if holder == "group" else ds["data"]).attrs))
    assert set(attributes) == {*ATTRIBUTES, "sequences"}
    for name, (_, _, expected) in ATTRIBUTES.items():
        found = attributes[name]
        if isinstance(found, np.ndarray | list):
            assert np.asarray(found, dtype=object).tolist() == expected, name
        else:
            same_type = isinstance(expected, np.datetime64 | str)
            assert (found if same_type else found.item()) == expected, name
    assert [v.tolist() for v in attributes["sequences"]] == [[1, 2], []]
