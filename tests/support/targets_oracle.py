"""Files whose targets differ, and what a plain loop makes of them.

In: a `Case`, plain data that describes HDF5 files: datasets with their own packing, fill
values, units, types, ranks and names, and one variable of references to them in each file.
Out: the files, and for each reference the values that it stands for.

The loop shares no code with xref. It opens each target by itself: h5py reads the raw
values and the attributes, and xarray decodes them as a Dataset of that one variable, with
the options of the file and under the target's own name. h5py says which elements a region
selects (see `oracle`), and NumPy picks them.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import oracle
import xarray as xr
from h5py import h5r
from strategies import Selected, select, write_references

STATISTICS = ("count", "sum", "mean", "min", "max", "std")

ENUM = h5py.enum_dtype({"OFF": 0, "ON": 1, "BOTH": 7}, basetype="i2")
DTYPES: dict[str, Any] = {
    **{name: np.dtype(name) for name in ("i1", "u1", "i2", "u2", "i4", "i8", "u8")},
    **{name: np.dtype(name) for name in (">i2", ">f4", "f4", "f8", "c8", "c16")},
    **{name: np.dtype(name) for name in ("S3", "S5", "S10")},
    "bool": np.dtype(bool),
    "enum": ENUM,
    "utf-8": h5py.string_dtype("utf-8"),
    "ascii": h5py.string_dtype("ascii"),
    "vlen f4": h5py.vlen_dtype(np.dtype("f4")),
    "vlen i4": h5py.vlen_dtype(np.dtype("i4")),
}
SEQUENCES = ("vlen f4", "vlen i4")
TEXTS = ("utf-8", "ascii")

LARGE = 2**53
"""Added to 64-bit integers without a packing: float64 does not hold them exactly."""


# --- specifications --------------------------------------------------------------------


class Short:
    """A dataclass that prints without the fields that have their defaults."""

    def __repr__(self) -> str:
        given = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        shown = [
            f"{name}={value!r}" for name, (value, default) in given.items() if value != default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis prints all fields of a dataclass otherwise


@dataclass(frozen=True, repr=False)
class TargetMetadata(Short):
    """One dataset.

    ``attrs`` are pairs of name and value, ``fillvalue`` is the HDF5 fill value (None: the
    library's default), ``chunks`` is None for contiguous storage.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    attrs: tuple[tuple[str, Any], ...] = ()
    fillvalue: Any = None
    chunks: tuple[int, ...] | None = None
    gzip: bool = False

    @property
    def name(self) -> str:
        """The last part of the path: the name of the variable."""
        return self.path.rsplit("/", 1)[-1]

    def values(self, seed: int) -> np.ndarray:
        """Raw values that differ between neighbours and between seeds."""
        n = math.prod(self.shape)
        number = np.arange(n) + 3 * seed
        attrs = dict(self.attrs)
        if self.kind in TEXTS:
            accent = "é" if self.kind == "utf-8" else ""
            out = np.empty(n, dtype=object)
            out[:] = [f"{accent}{i}" if i % 4 else "" for i in number.tolist()]
        elif self.kind in SEQUENCES:
            out = np.empty(n, dtype=object)
            for k, i in enumerate(number.tolist()):
                out[k] = np.arange(i, i + i % 4, dtype=self.kind.removeprefix("vlen "))
        elif self.kind.startswith("S"):
            out = np.array([b"%d" % (7 * i) for i in number.tolist()], dtype=self.kind)
        elif self.kind == "enum":
            out = np.array([0, 1, 7])[number * number % 7 % 3]
        elif self.kind == "bool":
            out = number * number % 7 % 3 == 0
        elif self.kind.startswith("c"):
            out = number + 1j * (number % 5)
        else:
            out = number * 7 % 97
            if self.kind in ("i8", "u8") and not attrs:
                out = out + LARGE
        out = np.asarray(out).astype(object if out.dtype == object else DTYPES[self.kind])
        for name in ("_FillValue", "missing_value"):
            if name in attrs:
                out[number % 4 == 1] = np.asarray(attrs[name]).astype(out.dtype)
        return out.reshape(self.shape)

    def create(self, file: h5py.Group, seed: int, path: str | None = None) -> h5py.Dataset:
        """Write the dataset."""
        options: dict[str, Any] = {}
        if self.chunks is not None:
            options = {"chunks": self.chunks, "compression": "gzip" if self.gzip else None}
        dtype = DTYPES[self.kind]
        if self.fillvalue is not None:
            options["fillvalue"] = np.asarray(self.fillvalue).astype(dtype)[()]
        dataset = file.create_dataset(path or self.path, self.shape, dtype=dtype, **options)
        values = self.values(seed)
        if self.kind in SEQUENCES:
            for place in np.ndindex(self.shape):
                dataset[place] = values[place]
        elif values.size:
            dataset[...] = values
        for name, value in self.attrs:
            dataset.attrs[name] = value
        return dataset


@dataclass(frozen=True, repr=False)
class File(Short):
    """One file: its targets, and references to them as (target, selection).

    ``shape`` is that of the variable of references; None: they lie along one dimension.
    """

    targets: tuple[TargetMetadata, ...]
    references: tuple[tuple[int, Selected], ...]
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Options:
    """Options of `xarray.open_dataset`; those by variable are tuples of pairs."""

    given: tuple[tuple[str, Any], ...] = ()

    @property
    def keywords(self) -> dict[str, Any]:
        """The options as they are passed."""
        return {k: dict(v) if isinstance(v, tuple) else v for k, v in self.given}

    @property
    def decoders(self) -> dict[str, Any]:
        """The options as `xarray.decode_cf` takes them."""
        options = self.keywords
        if not options.pop("decode_cf", True):
            names = ("concat_characters", "mask_and_scale", "decode_times", "decode_coords")
            return dict.fromkeys((*names, "decode_timedelta"), False)
        return options


@dataclass(frozen=True, repr=False)
class Case(Short):
    """Files, and how they are opened; the references of several files are joined.

    With ``copies`` above 1 each target is stored so often, in groups of its own and with
    other values, and there are references to each of them, along one dimension.
    """

    files: tuple[File, ...]
    kind: str = "region"  # or "object"
    options: Options = Options()
    copies: int = 1

    def path_of(self, target: TargetMetadata, copy: int) -> str:
        """Return the path of one copy of a target."""
        return target.path if self.copies == 1 else f"copy{copy}/{target.path}"

    def write(self, folder: Path) -> list[Path]:
        """Write the files under new names."""
        return [self._write(folder / f"{next(_NUMBERS)}.h5", k) for k in range(len(self.files))]

    def _write(self, path: Path, k: int) -> Path:
        dtype = h5py.regionref_dtype if self.kind == "region" else h5py.ref_dtype
        with h5py.File(path, "w") as file:
            drawn = self.files[k]
            made = {
                (t, copy): target.create(
                    file, 11 * k + 5 * t + copy, self.path_of(target, copy)
                )
                for t, target in enumerate(drawn.targets)
                for copy in range(self.copies)
            }
            rows = [
                select(made[t, copy], selected)
                for copy in range(self.copies)
                for t, selected in drawn.references
            ]
            shape = drawn.shape if self.copies == 1 else None
            write_references(file, "refs", rows, shape, dtype=dtype)
        return path


_NUMBERS = itertools.count()


# --- the loop --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Opened:
    """A target opened by itself."""

    path: str
    name: str
    raw: np.ndarray
    values: np.ndarray  # decoded
    attrs: Mapping[str, Any]  # that decoding left
    stored: Mapping[str, Any]  # of the HDF5 dataset
    fills: tuple[Any, ...]  # each may stand for a missing integer; decoded
    is_sequence: bool  # of numbers; without elements only the type tells

    @property
    def dtype(self) -> np.dtype[Any]:
        """The decoded type in native byte order."""
        return native(self.values.dtype)


@dataclass(frozen=True, eq=False)
class Row:
    """One reference: its target and its values, None for null."""

    target: Opened | None
    values: np.ndarray | None
    raw: np.ndarray | None = None


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a type in native byte order and without HDF5's metadata."""
    return dtype if dtype.hasobject else np.dtype(dtype.newbyteorder("=").str)


def decode(
    name: str, raw: np.ndarray, attrs: Mapping[str, Any], options: Options
) -> tuple[np.ndarray, dict[str, Any]]:
    """Decode one variable with xarray, in a Dataset of its own."""
    if raw.dtype == object:
        return raw, dict(attrs)
    dims = tuple(f"d{axis}" for axis in range(raw.ndim))
    alone = xr.Dataset({name: xr.Variable(dims, raw, dict(attrs))})
    decoded = xr.decode_cf(alone, **options.decoders)[name]
    # Of an array without elements xarray makes timedeltas of another unit than it says.
    return decoded.values.astype(decoded.dtype, copy=False), dict(decoded.attrs)


def open_target(dataset: h5py.Dataset, options: Options) -> Opened:
    """Open one dataset by itself."""
    name = dataset.name.rsplit("/", 1)[-1]
    is_text = h5py.check_string_dtype(dataset.dtype) is not None and dataset.dtype == object
    found = (dataset.asstr() if is_text else dataset)[()]
    if dataset.shape == () and dataset.dtype == object:
        raw = np.empty((), dtype=object)
        raw[()] = found  # one text or one sequence
    else:
        raw = np.asarray(found, dtype=object if is_text else dataset.dtype)
    if h5py.check_enum_dtype(dataset.dtype) or raw.dtype.metadata:
        raw = raw.astype(native(raw.dtype))
    stored = dict(dataset.attrs.items())
    values, attrs = decode(name, raw, stored, options)
    fills: tuple[Any, ...] = ()
    if raw.dtype != object and values.dtype.kind in "biu":
        given = [stored[n] for n in ("_FillValue", "missing_value") if n in stored]
        candidates = given[:1] if "_FillValue" in stored else [*given, dataset.fillvalue]
        fills = tuple(
            decode(name, np.full(1, value).astype(raw.dtype), stored, options)[0][0]
            for value in candidates
        )
    is_sequence = h5py.check_vlen_dtype(dataset.dtype) not in (None, str, bytes)
    return Opened(dataset.name, name, raw, values, attrs, stored, fills, is_sequence)


def read_rows(paths: Sequence[Path], options: Options) -> list[Row]:
    """Resolve the references of some files with h5py and NumPy, one at a time."""
    rows: list[Row] = []
    for path in paths:
        with h5py.File(path) as file:
            known: dict[str, Opened] = {}
            for reference in np.asarray(file["refs"][()], dtype=object).ravel():
                if not reference:
                    rows.append(Row(None, None))
                    continue
                dataset = file[reference]
                if dataset.name not in known:
                    known[dataset.name] = open_target(dataset, options)
                target = known[dataset.name]
                if not isinstance(reference, h5py.RegionReference):
                    rows.append(Row(target, target.values, target.raw))
                    continue
                space = h5r.get_region(reference, dataset.id)
                places = oracle.positions(space)
                shape = oracle.result_shape(space, places)
                values, raw = (
                    v.reshape(-1)[places].reshape(shape) for v in (target.values, target.raw)
                )
                rows.append(Row(target, values, raw))
    return rows


# --- what is expected of values that are joined ----------------------------------------


def targets_of(rows: Sequence[Row]) -> list[Opened]:
    """Return the targets of some references, each once, in order."""
    return list({id(row.target): row.target for row in rows if row.target}.values())


def common_dtype(dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any] | None:
    """Return the type that holds values of all types exactly; None if there is none."""
    kinds = {d.kind for d in dtypes}
    if len(set(dtypes)) == 1:
        return dtypes[0]
    if kinds in ({"M"}, {"m"}, {"S"}, {"U"}, {"O"}):
        return np.result_type(*dtypes)
    if not kinds <= set("biufc"):
        return None
    common = np.result_type(*dtypes)
    for dtype in dtypes:
        if dtype.kind in "iu" and common.kind in "fc":
            bits = 8 * dtype.itemsize - (dtype.kind == "i")
            if bits > np.finfo(common).nmant + 1:
                return None
    return common


def is_unsettled(dtypes: Sequence[np.dtype[Any]]) -> bool:
    """Tell whether the contract does not say if objects join with values of other types."""
    kinds = {d.kind for d in dtypes}
    return "O" in kinds and len(kinds) > 1


def missing_values(
    row: Row, rows: Sequence[Row], dtype: np.dtype[Any], given: Any = None
) -> list[Any]:
    """Return the values that may stand for a missing element of one reference.

    A null reference has no target, so that the fill value of any target will do.
    """
    if given is not None:
        return [given]
    if dtype.kind in "fc":
        return [dtype.type(np.nan)]
    if dtype.kind in "mM":
        return [np.array("NaT", dtype)[()]]
    if dtype.kind in "SU":
        return [dtype.type()]
    targets = [row.target] if row.target else targets_of(rows)
    if dtype.hasobject:
        return [np.empty(0) if t.is_sequence else "" for t in targets]
    return [fill for t in targets for fill in t.fills]


def common_attrs(targets: Sequence[Opened], *, typed: bool = False) -> dict[str, Any]:
    """Return the decoded attributes that all targets have alike, of one type if ``typed``."""
    first, *others = (t.attrs for t in targets)
    return {
        name: value
        for name, value in first.items()
        if all(
            name in o
            and equal_attrs(o[name], value)
            and not (typed and np.asarray(o[name]).dtype != np.asarray(value).dtype)
            for o in others
        )
    }


def units_that_differ(targets: Sequence[Opened]) -> set[str]:
    """Return the units that are left after decoding, if all targets have some that differ."""
    units = [t.attrs.get("units") for t in targets]
    found = {str(u) for u in units}
    return found if None not in units and len(found) > 1 else set()


# --- statistics ------------------------------------------------------------------------


def statistic(name: str, values: np.ndarray) -> Any:
    """Return one statistic of the values of one region, as NumPy and xarray have it."""
    is_missing = np.isnan(values) if values.dtype.kind in "fcmM" else np.zeros(values.shape)
    valid = values[~is_missing.astype(bool)]
    if name == "count":
        return valid.size
    if name == "sum":
        return valid.sum()
    if not valid.size:
        return np.array("NaT", values.dtype) if values.dtype.kind in "mM" else np.nan
    # In double precision, as NumPy adds up integers.
    wide = {"f": "f8", "c": "c16"}.get(values.dtype.kind)
    if name in ("mean", "std") and wide:
        valid = valid.astype(wide)
    return getattr(valid, name)()


def has_statistic(name: str, dtype: np.dtype[Any]) -> bool | None:
    """Tell whether values of a type have a statistic; None where nobody has said it."""
    if name == "count" or dtype.kind in "biuf":
        return True
    if dtype.kind == "c":
        return None if name in ("min", "max") else True
    if dtype.kind == "M":
        return name in ("min", "max")
    if dtype.kind == "m":
        return True if name in ("min", "max") else None
    return False


def statistic_dtype(name: str, dtype: np.dtype[Any], any_empty: bool) -> np.dtype[Any]:
    """Return the type of a statistic of values of one type."""
    if name == "count":
        return np.dtype("i8")
    if name == "sum":
        return np.zeros(1, dtype).sum().dtype
    if name == "mean":
        return dtype if dtype.kind in "fc" else np.dtype("f8")
    if name == "std":
        return np.zeros(1, dtype).real.dtype if dtype.kind in "fc" else np.dtype("f8")
    return np.dtype("f8") if any_empty and dtype.kind in "biu" else dtype


# --- comparisons -----------------------------------------------------------------------


def same(actual: Any, expected: Any) -> bool:
    """Tell whether two values are equal: NaN is NaN, sequences are equal one by one."""
    if isinstance(expected, np.ndarray) and expected.ndim and expected.dtype != object:
        if not isinstance(actual, np.ndarray):
            return False
        return actual.shape == expected.shape and bool((actual == expected).all())
    if isinstance(expected, str | bytes):
        return type(actual) in (type(expected), np.str_, np.bytes_) and actual == expected
    if isinstance(actual, str | bytes) or actual is None:
        return False
    if np.isnan(expected):
        return bool(np.isnan(actual))
    return bool(actual == expected)


def assert_same(actual: Any, expected: np.ndarray, what: Any = "") -> None:
    """Compare the shape and all values of two arrays."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    if actual.dtype != object and expected.dtype != object:
        numeric = expected.dtype.kind in "fcmM"
        assert np.array_equal(actual, expected, equal_nan=numeric), (what, actual, expected)
        return
    pairs = zip(actual.reshape(-1), expected.reshape(-1), strict=True)
    assert all(same(a, e) for a, e in pairs), (what, actual, expected)


def assert_dtype(actual: np.dtype[Any], expected: np.dtype[Any], what: Any = "") -> None:
    """Compare two types but for the order of bytes; text may be objects or NumPy's."""
    if expected.hasobject and actual.kind == "U":
        return
    assert native(actual) == native(expected), (what, actual, expected)


def assert_attrs(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare names and values of attributes."""
    assert actual.keys() == expected.keys(), (actual, expected)
    for name, value in expected.items():
        assert equal_attrs(actual[name], value), (name, actual[name], value)


def equal_attrs(actual: Any, expected: Any) -> bool:
    """Tell whether two values of an attribute are equal."""
    is_float = np.asarray(expected).dtype.kind == "f"
    return np.array_equal(actual, expected, equal_nan=is_float)


class Warned:
    """Keep the warnings of a block that are about units; others stay errors."""

    def __init__(self) -> None:
        self.units: list[str] = []

    def __enter__(self) -> Warned:
        self._caught = warnings.catch_warnings(record=True)
        self._records = self._caught.__enter__()
        warnings.filterwarnings("always", message="(?s).*units")
        return self

    def __exit__(self, *details: Any) -> None:
        self._caught.__exit__(*details)
        self.units = [str(record.message) for record in self._records]
