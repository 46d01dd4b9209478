"""Values of several dtypes into one dtype: common dtypes, and conversion without loss.

In: NumPy dtypes, values of any shape. Out: the dtype that holds all values exactly, converted
values of the same shape, or an error. NumPy itself rounds, wraps and cuts text without a
warning.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

NUMBERS = frozenset("biufc")
TEXT = frozenset("SU")


def text_of(dtype: np.dtype[Any]) -> bool:
    """Tell whether an object dtype stands for text of variable length."""
    metadata: Mapping[str, Any] = dtype.metadata or {}
    return metadata.get("vlen") in (str, bytes)


def dtype_token(dtype: np.dtype[Any]) -> Hashable:
    """Return a hashable value that is equal for equal dtypes only.

    NumPy's equality ignores the metadata, in which h5py keeps the names of enumerations and
    the type of sequences, also for members of compounds.
    """
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return "array", dtype_token(base), shape
    if dtype.names is None:
        metadata = tuple((k, _metadata_token(v)) for k, v in (dtype.metadata or {}).items())
        return dtype.str, metadata
    fields: Any = dtype.fields or {}
    members = tuple((n, dtype_token(fields[n][0]), fields[n][1]) for n in dtype.names)
    return "compound", dtype.itemsize, members


def _metadata_token(value: Any) -> Hashable:
    return dtype_token(value) if isinstance(value, np.dtype) else repr(value)


def exact_dtype(dtypes: Iterable[np.dtype[Any]]) -> np.dtype[Any] | None:
    """Return the type that holds values of all these types exactly; None without one."""
    dtypes = list(dtypes)
    if len({dtype_token(d) for d in dtypes}) == 1:
        return dtypes[0]
    distinct = list(dict.fromkeys(dtypes))
    kinds = {d.kind for d in distinct}
    if kinds <= NUMBERS:
        if len(distinct) == 1:  # enumerations of different names
            return np.dtype(distinct[0].str)
        common: np.dtype[Any] = np.result_type(*distinct)
        digits = np.finfo(common).nmant + 1 if common.kind in "fc" else 64
        needed = [8 * d.itemsize - (d.kind == "i") for d in distinct if d.kind in "iu"]
        return common if max(needed, default=0) <= digits else None
    if kinds in ({"S"}, {"U"}, {"M"}, {"m"}):
        return np.result_type(*distinct)
    if kinds == {"O"}:
        return np.dtype(object)
    if kinds == {"S", "O"} and all(d.kind == "S" or text_of(d) for d in dtypes):
        return np.dtype(object)  # text of fixed and of variable length
    if kinds == {"V"}:
        return _exact_compound(dtypes)
    return None


def _exact_compound(dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any] | None:
    """Return the compound whose members hold those of the same name exactly."""
    names = dtypes[0].names
    if names is None or any(d.names != names for d in dtypes):
        return None
    members: list[Any] = []
    for name in names:
        shapes = {d[name].shape for d in dtypes}
        found = exact_dtype([d[name].base for d in dtypes]) if len(shapes) == 1 else None
        if found is None:
            return None
        members.append((name, found, shapes.pop()))
    return np.dtype(members)


def results_dtype(dtypes: Iterable[np.dtype[Any]]) -> np.dtype[Any] | None:
    """Return the dtype for results of several dtypes; None if their kinds do not mix.

    It may round numbers: check each value with `exact_values`. The dtype of text is object.
    """
    distinct = list(dict.fromkeys(dtypes))
    kinds = {d.kind for d in distinct}
    if kinds <= NUMBERS or kinds in ({"M"}, {"m"}):
        return np.result_type(*distinct)
    if kinds == {"V"}:
        return distinct[0] if len(distinct) == 1 else None
    return np.dtype(object) if kinds <= TEXT | {"O"} else None


def to_objects(values: npt.NDArray[Any]) -> npt.NDArray[np.object_]:
    """Return values as Python or NumPy objects; ``astype`` makes integers of dates in ns."""
    if values.dtype.kind not in "mM":
        return values.astype(object)
    out = np.empty(values.shape, dtype=object)
    for index in np.ndindex(values.shape):
        out[index] = values[index]
    return out


def exact_values(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Convert numbers to the common dtype of all results, or of values and fill values.

    Raises
    ------
    ValueError
        If an integer is too large for the type to hold exactly.
    """
    if dtype.kind == "O" and values.dtype.kind in "mM":
        return to_objects(values)
    converted = values.astype(dtype, copy=False)
    if values.dtype.kind in "iu" and dtype.kind in "fc" and values.dtype.itemsize > 2:
        with np.errstate(invalid="ignore", over="ignore"):
            exact = converted.real.astype(values.dtype) == values
        # 2**63 as a float converts back to the largest integer, which differs from it.
        exact &= np.abs(converted.real) < 2.0 ** (8 * values.dtype.itemsize - 1)
        if not exact.all():
            raise ValueError(
                f"{values[~exact][0]} has no equal in {dtype}, the type that all results or "
                "fill values have together; choose a type with dtype=, or select references "
                "whose targets have one type"
            )
    return converted


def convert(
    values: npt.NDArray[Any], dtype: np.dtype[Any], describe: Callable[[], str]
) -> npt.NDArray[Any]:
    """Convert values to another dtype; a value that the dtype cannot hold is an error.

    Floats are rounded to floats of fewer digits, large integers to floats, and floats to
    integers towards 0, as in NumPy. Integers that would wrap, NaN as an integer and text that
    would be cut are errors. Members of compounds are matched by name.

    Raises
    ------
    ValueError
        If a value has no equal in the type.
    """
    if values.dtype == dtype:
        return values
    if dtype.kind == "O":
        return to_objects(values)
    if dtype.names is not None and values.dtype.names is not None:
        return _convert_members(values, dtype, describe)
    with np.errstate(invalid="ignore", over="ignore"):
        try:
            if values.dtype.kind == "c" and dtype.kind in "biuf":
                converted = values.real.astype(dtype)
            else:
                converted = values.astype(dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{describe()} does not convert to {dtype}: {error}") from error
        kept = _is_kept(values, converted)
    if kept is not None and not kept.all():
        raise ValueError(
            f"{describe()} has {values[~kept][0]!s}, which {dtype} does not hold; pass another "
            "dtype="
        )
    return converted


def _is_kept(
    values: npt.NDArray[Any], converted: npt.NDArray[Any]
) -> npt.NDArray[np.bool_] | None:
    """Return which values are preserved; None if the conversion can only round them."""
    source, target = values.dtype.kind, converted.dtype.kind
    if source in "mM" and target in "mM":
        # Compared in the source dtype: in the other dtype both would overflow equally.
        same: npt.NDArray[np.bool_] = converted.astype(values.dtype) == values
        coarser = np.can_cast(converted.dtype, values.dtype, "safe")
        same |= np.isnat(values) | coarser
        return same
    if (source in TEXT and target in TEXT) or (target in "biu" and source in "biu"):
        same = converted == values
        return same
    if target in "iu" and source in "fc":
        bits = 8 * converted.dtype.itemsize - (target == "i")
        least = -(2.0**bits) if target == "i" else 0.0
        number = np.where(values.imag == 0, values.real, np.nan)
        fits: npt.NDArray[np.bool_] = (number > least - 1) & (number < 2.0**bits)
        return fits
    if target == "b":
        is_bool: npt.NDArray[np.bool_] = (values == 0) | (values == 1)
        return is_bool
    if source == "c" and target == "f":
        no_imaginary: npt.NDArray[np.bool_] = (values.imag == 0) | np.isnan(values)
        return no_imaginary
    if source == "f" and target == "f":
        kept: npt.NDArray[np.bool_] = np.isfinite(converted) | ~np.isfinite(values)
        return kept
    return None


def _convert_members(
    values: npt.NDArray[Any], dtype: np.dtype[Any], describe: Callable[[], str]
) -> npt.NDArray[Any]:
    """Convert compounds member by member; NumPy would match members by their order."""
    names = values.dtype.names or ()
    if set(names) != set(dtype.names or ()):
        raise ValueError(
            f"{describe()} has members {list(names)}, and {dtype} has others; pass another "
            "dtype="
        )
    out = np.zeros(values.shape, dtype=dtype)
    for name in names:
        out[name] = convert(values[name], out[name].dtype, describe)
    return out


def dtype_with(dtype: np.dtype[Any], value: Any) -> np.dtype[Any]:
    """Return the dtype that holds values of a dtype and the user's fill value.

    Raises
    ------
    ValueError
        If the fill value is of another kind, such as text among numbers.
    """
    if dtype.kind == "O":
        return dtype
    given = np.asarray(value)
    kind = given.dtype.kind
    fits = given.ndim == 0 and (
        (dtype.kind in NUMBERS and kind in NUMBERS)
        or (dtype.kind in TEXT and kind in TEXT)
        or (dtype.kind == "V" and kind == "V")
        or dtype.kind == kind
    )
    if dtype.kind in "mM" and kind == "O":  # datetime.datetime and the like
        try:
            given, fits = given.astype(dtype), True
        except (TypeError, ValueError):
            fits = False
    if not fits:
        raise ValueError(
            f"fill_value {value!r} is of another kind than the values, which are of {dtype}"
        )
    if dtype.kind in TEXT:
        return np.result_type(dtype, given.astype(dtype.kind).dtype)
    if dtype.kind not in NUMBERS:
        return dtype
    if kind in "fc" and np.isnan(given):
        return dtype if dtype.kind in "fc" else np.result_type(dtype, given.dtype)
    kept = _kept_number(given, dtype)
    return dtype if kept else np.result_type(dtype, given.dtype)


def _kept_number(value: npt.NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Tell whether a dtype holds a number; a float dtype may round it."""
    try:
        converted = convert(value.reshape(1), dtype, str)
    except ValueError:
        return False
    return bool(dtype.kind in "fc" or converted[0] == value)


def is_same_value(a: Any, b: Any) -> bool:
    """Tell whether two values are equal and of one type; NaN equals NaN, NaT equals NaT."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    has_missing = np.asarray(a).dtype.kind in "fcmM"
    return bool(np.array_equal(a, b, equal_nan=has_missing))
