"""Which type holds values of several types, and conversion that loses nothing unseen."""

from __future__ import annotations

from typing import Any

import h5py
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from xref.arrays.conversion import (
    convert,
    dtype_token,
    dtype_with,
    exact_dtype,
    exact_values,
    results_dtype,
    to_objects,
)

TEXT = h5py.string_dtype()
SEQUENCES = {name: h5py.vlen_dtype(np.dtype(name)) for name in ("i4", "f8")}
LETTERS = {first: h5py.enum_dtype({first: 0, "Z": 1}, "i1") for first in "AB"}

NUMBERS = ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16")

JOINED = {
    "the same": (("i4", "i4"), "i4"),
    "integers of both signs": (("u4", "i1"), "i8"),
    "small integers beside floats": (("i2", "f4"), "f4"),
    "large integers beside floats": (("i8", "f8"), None),
    "both kinds of 64 bits": (("u8", "i8"), None),
    "booleans beside integers": (("?", "i2"), "i2"),
    "complex beside floats": (("c8", "f8"), "c16"),
    "text of two lengths": (("S5", "S10"), "S10"),
    "text beside numbers": (("S5", "i4"), None),
    "dates of two resolutions": (("M8[s]", "M8[ns]"), "M8[ns]"),
    "dates beside spans": (("M8[ns]", "m8[ns]"), None),
    "text of both kinds": ((TEXT, "S5"), "O"),
    "sequences beside bytes": ((SEQUENCES["i4"], "S5"), None),
    "sequences of two types": (tuple(SEQUENCES.values()), "O"),
    "members of two types": (([("a", "i2")], [("a", "f4")]), [("a", "f4")]),
    "members of other names": (([("a", "i2")], [("b", "i2")]), None),
    "members in another order": (
        ([("a", "i2"), ("b", "i2")], [("b", "i2"), ("a", "i2")]),
        None,
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_the_joined_type_holds_all_or_there_is_none(name: str) -> None:
    dtypes, expected = JOINED[name]
    found = exact_dtype([np.dtype(d) for d in dtypes])
    assert found == (None if expected is None else np.dtype(expected))


@given(data=st.data(), a=st.sampled_from(NUMBERS), b=st.sampled_from(NUMBERS))
def test_the_joined_type_of_numbers_loses_no_value(data: st.DataObject, a: str, b: str) -> None:
    joined = exact_dtype([np.dtype(a), np.dtype(b)])
    if joined is None:
        return
    values = data.draw(hnp.arrays(np.dtype(a), 3))
    converted = values.astype(joined)
    if values.dtype.kind != "c":
        converted = converted.real
    np.testing.assert_array_equal(converted.astype(values.dtype), values)


def test_types_that_numpy_takes_for_equal_are_told_apart() -> None:
    for one, other in (LETTERS.values(), SEQUENCES.values()):
        for wrap in (lambda d: d, lambda d: np.dtype([("member", d)])):
            a, b = wrap(one), wrap(other)
            assert a == b
            assert dtype_token(a) != dtype_token(b)
            joined = exact_dtype([a, b])
            assert joined is not None
            inner = joined["member"] if joined.names else joined
            assert not inner.metadata


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([300]), "i1"),
        (np.array([-1]), "u8"),
        (np.array([2**63], "u8"), "i8"),
        (np.array([1.0, np.nan]), "i4"),
        (np.array([2.0**63]), "i8"),
        (np.array([1e300]), "f4"),
        (np.array([1 + 2j]), "f8"),
        (np.array([1 + 2j]), "i4"),
        (np.array([2]), "?"),
        (np.array([b"north"]), "S3"),
        (np.array([b"\xff"]), "U1"),
        (np.array(["2500-01-01"], "M8[D]"), "M8[ns]"),
        (np.array([b"x"]), "i4"),
        (np.array([(1,)], [("a", "i4")]), [("b", "i4")]),
        (np.array([(300,)], [("a", "i4")]), [("a", "i1")]),
    ],
)
def test_what_a_type_does_not_hold_is_an_error(values: Any, dtype: Any) -> None:
    with pytest.raises(ValueError, match="the dataset"):
        convert(values, np.dtype(dtype), lambda: "the dataset")


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (np.array([2**53 + 1]), "f8", [2.0**53]),
        (np.array([0.5, -1.5]), "i4", [0, -1]),
        (np.array([-0.5]), "u1", [0]),
        (np.array([0.1]), "f4", [np.float32(0.1)]),
        (np.array([np.nan, np.inf]), "f4", [np.nan, np.inf]),
        (np.array([1 + 0j]), "f8", [1.0]),
        (np.array([0, 1]), "?", [False, True]),
        (np.array([b"abc"]), "S5", [b"abc"]),
        (np.array(["NaT", "2000-01-01"], "M8[s]"), "M8[ns]", None),
        (np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]), [("b", "f4"), ("a", "i2")], None),
    ],
)
def test_rounding_is_that_of_numpy(values: Any, dtype: Any, expected: Any) -> None:
    found = convert(values, np.dtype(dtype), str)
    assert found.dtype == np.dtype(dtype)
    if expected is not None:
        np.testing.assert_array_equal(found, expected)
    elif found.dtype.names:
        assert found[["a", "b"]].tolist() == values.tolist()
    else:
        np.testing.assert_array_equal(found, values)


def test_dates_among_objects_stay_dates() -> None:
    dates = np.array(["2000-01-01", "NaT"], "M8[ns]")
    for found in (to_objects(dates), convert(dates, np.dtype(object), str)):
        assert [type(value) for value in found] == [np.datetime64] * 2
        assert found[0] == dates[0]


@pytest.mark.parametrize("largest", [2**53 + 1, 2**63 - 1, -(2**53) - 1])
def test_results_that_are_too_large_for_floats_are_errors(largest: int) -> None:
    with pytest.raises(ValueError, match=f"{largest} has no equal in float64"):
        exact_values(np.array([1, largest]), np.dtype(float))
    assert exact_values(np.array([2**53]), np.dtype(float)).tolist() == [2.0**53]


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("i8", "f8"), "f8"),
        (("S1", "S5"), "O"),
        (("M8[ns]", "M8[s]"), "M8[ns]"),
        (("i8", "m8[ns]"), None),
        (("M8[ns]", "m8[ns]"), None),
        (("i8", "S1"), None),
    ],
)
def test_results_of_several_kinds_have_no_type(dtypes: Any, expected: Any) -> None:
    found = results_dtype([np.dtype(d) for d in dtypes])
    assert found == (None if expected is None else np.dtype(expected))


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("i2", -1, "i2"),
        ("u1", -1, "i8"),
        ("i4", np.nan, "f8"),
        ("i4", 1.5, "f8"),
        ("f4", 0.1, "f4"),
        ("f4", np.nan, "f4"),
        ("f8", 1 + 2j, "c16"),
        ("S3", b"missing", "S7"),
        ("M8[ns]", np.datetime64("2000-01-01"), "M8[ns]"),
        ("O", [1, 2], "O"),
    ],
)
def test_a_fill_value_widens_the_type(dtype: str, value: Any, expected: str) -> None:
    assert dtype_with(np.dtype(dtype), value) == np.dtype(expected)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("i4", "missing"),
        ("f8", np.datetime64("NaT", "ns")),
        ("M8[ns]", 0),
        ("M8[ns]", np.nan),
        ("i4", np.datetime64("2000-01-01")),
        ("i4", [1, 2]),
        ("S3", 1),
    ],
)
def test_a_fill_value_of_another_kind_is_an_error(dtype: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"fill_value .* is of another kind"):
        dtype_with(np.dtype(dtype), value)
