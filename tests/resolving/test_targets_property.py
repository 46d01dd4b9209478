"""Values of each target: all ways of resolving equal a plain loop (`targets_oracle`).

Hypothesis draws files whose targets differ in packing, fill values, units, types, ranks and
names, the options that they are opened with, and how their references are joined.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import strategies
import targets_oracle as loop
import xarray as xr
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from oracle import values_of
from strategies import Selected
from targets_oracle import Case, File, Options, Row, TargetMetadata, Warned

# One example writes and opens whole files, so there are fewer of them than elsewhere.
MOST = settings.default.max_examples // 2  # 1,000 in the long profile, 100 in CI's
thorough = settings(
    max_examples=MOST,
    phases=[p for p in Phase if p is not Phase.explain],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the files of all examples."""
    return tmp_path_factory.mktemp("targets")


# --- what is drawn ----------------------------------------------------------------------

INTEGERS = ("i1", "u1", "i2", "u2", ">i2", "i4")
FLOATS = ("f4", "f8", ">f4")
FAMILIES: dict[str, tuple[str, ...]] = {
    "packed": (*INTEGERS, *FLOATS),
    "numbers": (*INTEGERS, *FLOATS, "i8", "u8", "c8", "c16", "bool", "enum"),
    "dates": ("i2", "i4", "i8", "f8"),
    "bytes": ("S3", "S5", "S10"),
    "text": loop.TEXTS,
    "sequences": loop.SEQUENCES,
    "mixed": tuple(loop.DTYPES),
}
PATHS = ("v", "w", "run0/v", "run1/v", "run1/w", "a/b/v")
NAMES = ("v", "w", "refs")
DATES = ("seconds since 2000-01-01", "days since 1970-01-01", "hours since 2000-01-01 12:00")
TIMES = ("seconds", "days")
SECONDS = xr.coders.CFDatetimeCoder(time_unit="s")


def rarely(n: int) -> st.SearchStrategy[bool]:
    """True once in n draws; shrinks to False."""
    return st.sampled_from((False,) * (n - 1) + (True,))


@st.composite
def attributes(draw: st.DrawFn, kind: str, dated: bool) -> tuple[tuple[str, Any], ...]:
    """CF attributes that suit a type, and attributes without a CF meaning."""
    dtype = loop.DTYPES[kind]
    found: dict[str, Any] = {}
    if kind in (*INTEGERS, *FLOATS, "i8", "u8") and draw(st.booleans()):
        scalar = dtype.newbyteorder("=").type
        fills = [scalar(v) for v in (101, 102, *([np.nan] if dtype.kind == "f" else []))]
        name = draw(st.sampled_from(("_FillValue", "missing_value")))
        found[name] = draw(st.sampled_from(fills))
    if dated:
        found["units"] = draw(st.sampled_from((*DATES, *TIMES)))
        return tuple(found.items())
    if kind in (*INTEGERS, *FLOATS):
        # Factors are of a type of their own, and NumPy or Python numbers.
        number = draw(st.sampled_from((float, np.float32, np.float64)))
        if draw(st.booleans()):
            found["scale_factor"] = number(draw(st.sampled_from((0.5, 2.0, 0.1))))
        if draw(rarely(3)):
            found["add_offset"] = number(draw(st.sampled_from((200.0, -1.25))))
    if kind in ("i1", "i2", "u1") and draw(rarely(4)):
        found["_Unsigned"] = "false" if kind == "u1" else "true"
    if draw(st.booleans()):
        found["units"] = draw(st.sampled_from(("K", "degC")))
    if draw(rarely(4)):
        found["number"] = draw(st.sampled_from((1, 2)))
    return tuple(found.items())


ranks = st.sampled_from((1, 0, 1, 1, 2, 2, 3, 4))


@st.composite
def shapes(draw: st.DrawFn, rank: int, least: int = 0) -> tuple[int, ...]:
    return tuple(draw(st.integers(least, 5 if rank < 3 else 3)) for _ in range(rank))


@st.composite
def targets(
    draw: st.DrawFn, family: str, cell: tuple[int, ...] | None, grown: int
) -> TargetMetadata:
    """Datasets at least as large as ``cell``, at most ``grown`` longer, or of any shape."""
    path = draw(st.sampled_from(PATHS))
    kind = draw(st.sampled_from(FAMILIES[family]))
    if cell is None:
        shape = draw(shapes(draw(ranks)))
    else:
        shape = tuple(n + draw(st.integers(0, grown)) for n in cell)
    dated = family == "dates" or (
        family == "mixed" and kind in FAMILIES["dates"] and draw(st.booleans())
    )
    fillvalue = None
    if kind in (*INTEGERS, *FLOATS, "i8", "u8", "c8", "c16"):
        fillvalue = draw(st.sampled_from((None, None, 99, 3)))
    chunks = None
    if shape and 0 not in shape and draw(st.booleans()):
        chunks = tuple(draw(st.integers(1, n)) for n in shape)
    return TargetMetadata(
        path=path,
        kind=kind,
        shape=shape,
        attrs=draw(attributes(kind, dated)),
        fillvalue=fillvalue,
        chunks=chunks,
        gzip=chunks is not None and draw(st.booleans()),
    )


@st.composite
def options(draw: st.DrawFn) -> Options:
    """Options for all variables, for variables by name, or no options."""
    if draw(rarely(6)):
        return Options((("decode_cf", False),))
    given: list[tuple[str, Any]] = []
    choices: dict[str, tuple[Any, ...]] = {
        "mask_and_scale": (False, True),
        "decode_times": (False, True, SECONDS),
        "decode_timedelta": (False, True),
    }
    for option, values in choices.items():
        match draw(st.sampled_from(("default", "one", "by name"))):
            case "one":
                given.append((option, draw(st.sampled_from(values))))
            case "by name":
                names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
                given.append((option, tuple((n, draw(st.sampled_from(values))) for n in names)))
    return Options(tuple(given))


@st.composite
def references(
    draw: st.DrawFn, targets: list[TargetMetadata], kind: str, cell: tuple[int, ...] | None
) -> tuple[int, Selected]:
    """One reference: null, to an object, or to a region with all, no or some elements."""
    t = draw(st.integers(0, len(targets) - 1))
    shape = targets[t].shape
    if draw(rarely(8)):
        return t, Selected("null")
    if kind == "object":
        return t, Selected("object")
    if cell is None:
        return t, draw(strategies.selections(shape, nulls=False))
    return t, draw(strategies.boxes(shape, cell)) if shape else Selected("all")


@st.composite
def files(draw: st.DrawFn, family: str, kind: str, cell: tuple[int, ...] | None) -> File:
    one = targets(family, cell, 0 if kind == "object" else 2)
    drawn = draw(st.lists(one, min_size=1, max_size=3, unique_by=lambda t: t.path))
    found = draw(st.lists(references(drawn, kind, cell), min_size=1, max_size=4))
    return File(tuple(drawn), tuple(found))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """One or two files with targets and references of one shape, or of any shapes."""
    family = draw(st.sampled_from(("packed", *FAMILIES)))
    kind = draw(st.sampled_from(("region", "region", "object")))
    cell = draw(shapes(draw(ranks), 1)) if draw(st.booleans()) else None
    drawn = draw(st.lists(files(family, kind, cell), min_size=1, max_size=2))
    copies = 9 if kind == "object" and draw(st.booleans()) else 1
    if len(drawn) == 1:
        n = len(drawn[0].references)
        shape = draw(
            st.sampled_from((None, *{1: ((),), 2: ((2, 1),), 4: ((2, 2),)}.get(n, ())))
        )
        drawn = [File(drawn[0].targets, drawn[0].references, shape)]
    return Case(tuple(drawn), kind, draw(options()), copies)


@st.composite
def joinable_cases(draw: st.DrawFn) -> tuple[Case, int]:
    """One or two files whose references select equal lengths along all axes but one."""
    family = draw(st.sampled_from(("packed", *FAMILIES)))
    kind = draw(st.sampled_from(("region", "region", "object")))
    cell = draw(shapes(draw(st.sampled_from((1, 1, 2, 2, 3, 4))), 1))
    axis = draw(st.integers(0, len(cell) - 1))

    def longer(shape: tuple[int, ...], n: int) -> tuple[int, ...]:
        return (*shape[:axis], n, *shape[axis + 1 :])

    drawn = []
    for _ in range(draw(st.integers(1, 2))):
        one = targets(family, cell, 0 if kind == "object" else 2)
        made = draw(st.lists(one, min_size=1, max_size=3, unique_by=lambda t: t.path))
        grown = [st.integers(t.shape[axis], t.shape[axis] + 6) for t in made]
        made = [
            replace(t, shape=longer(t.shape, draw(n))) for t, n in zip(made, grown, strict=True)
        ]
        rows = []
        for _ in range(draw(st.integers(1, 4))):
            t = draw(st.integers(0, len(made) - 1))
            if draw(rarely(8)):
                rows.append((t, Selected("null")))
            elif kind == "object":
                rows.append((t, Selected("object")))
            else:
                shape = made[t].shape
                size = longer(cell, draw(st.integers(0, shape[axis])))
                rows.append((t, draw(strategies.boxes(shape, size))))
        drawn.append(File(tuple(made), tuple(rows)))
    copies = 9 if kind == "object" and draw(st.booleans()) else 1
    return Case(tuple(drawn), kind, draw(options()), copies), axis


chunkings = st.sampled_from((None, "auto", 1, 2))
schedulers = st.sampled_from(("synchronous", "threads"))
joins = st.sampled_from(("concat", "open_mfdataset"))
readers = st.sampled_from(("auto", "h5py"))


# --- opening ----------------------------------------------------------------------------


class WrittenObject:
    """A case on disk, the references of all its files, and the rows that the loop reads."""

    def __init__(self, references: xr.DataArray, rows: list[Row]) -> None:
        self.references = references
        self.rows = rows
        self.targets = loop.targets_of(rows)
        self.dtypes = [t.dtype for t in self.targets]
        self.live = [row for row in rows if row.values is not None]

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        """The shapes that references select."""
        return {row.values.shape for row in self.live}


@contextmanager
def written(
    case: Case, folder: Path, join: str = "concat", **options: Any
) -> Iterator[WrittenObject]:
    """Write the files of a case and open them."""
    paths = case.write(folder)
    keywords = {"engine": "h5ref", **case.options.keywords, **options}
    with ExitStack() as stack:
        for path in paths:
            stack.callback(path.unlink)
        if len(paths) == 1:
            references = stack.enter_context(xr.open_dataset(paths[0], **keywords))["refs"]
        elif join == "concat":
            each = [stack.enter_context(xr.open_dataset(p, **keywords)) for p in paths]
            references = xr.concat([only_references(ds)["refs"] for ds in each], "row")
        else:
            references = stack.enter_context(
                xr.open_mfdataset(
                    paths,
                    combine="nested",
                    concat_dim="row",
                    preprocess=only_references,
                    **keywords,
                )
            )["refs"]
        yield WrittenObject(references, loop.read_rows(paths, case.options))


def only_references(dataset: xr.Dataset) -> xr.Dataset:
    return dataset[["refs"]].rename({dataset["refs"].dims[0]: "row"})


# --- layouts ----------------------------------------------------------------------------


def refused(resolve: Any) -> None:
    """Check that resolving fails for want of a common type, and that the error tells a way."""
    with Warned(), pytest.raises(ValueError, match="dtype="):
        resolve()


def check_common(
    case: WrittenObject, result: xr.DataArray, dtype: np.dtype[Any] | None
) -> None:
    """Check the type and the attributes of joined values."""
    if dtype is not None:
        loop.assert_dtype(result.dtype, dtype)
        if result.size:  # without elements xarray makes timedeltas of another unit
            loop.assert_dtype(result.values.dtype, dtype)
    # Equal numbers of several types may count as different, or not.
    alike = loop.common_attrs(case.targets)
    assert loop.common_attrs(case.targets, typed=True).keys() <= result.attrs.keys()
    assert result.attrs.keys() <= alike.keys()
    loop.assert_attrs(result.attrs, {name: alike[name] for name in result.attrs})


def check_units(case: WrittenObject, warned: Warned) -> None:
    """Check that different units give a warning that names two of them."""
    units = loop.units_that_differ(case.targets)
    have_units = [t for t in case.targets if "units" in t.attrs]
    if units:
        words = [rf"(?<!\w){re.escape(unit)}(?!\w)" for unit in units]
        named = [sum(bool(re.search(w, m)) for w in words) for m in warned.units]
        assert max(named, default=0) >= 2, (units, warned.units)
    elif len(have_units) == len(case.targets) or not have_units:
        assert not warned.units


def check_missing(
    case: WrittenObject, row: Row, values: np.ndarray, dtype: np.dtype[Any], given: Any
) -> None:
    """Check the elements of one reference that have no data."""
    accepted = loop.missing_values(row, case.rows, dtype, given)
    for value in values.reshape(-1):
        assert any(loop.same(value, a) for a in accepted), (value, accepted)


def joined_dtype(case: WrittenObject, resolve: Any) -> np.dtype[Any] | None:
    """Return the common type of the targets; if there is none, check the error, return None."""
    dtype = loop.common_dtype(case.dtypes)
    if dtype is None and not loop.is_unsettled(case.dtypes):
        refused(resolve)
        event("no common type")
    return dtype


def fill_values(dtype: np.dtype[Any], sequences: bool) -> st.SearchStrategy[Any]:
    """Fill values of a user that suit a type; None for the default."""
    given: Any = None
    match dtype.kind:
        case "i" | "u" | "f" | "c":
            given = -7
        case "M":
            given = np.datetime64("1970-01-02", "s")
        case "m":
            given = np.timedelta64(5, "s")
        case "S":
            given = b"-"
        case "O" if not sequences:
            given = "none"
    return st.sampled_from((None, given))


@given(case=cases(), chunks=chunkings, scheduler=schedulers, join=joins, reader=readers)
@thorough
def test_ragged_values_equal_the_values_of_each_target(
    case: Case, chunks: Any, scheduler: str, join: str, reader: str, folder: Path
) -> None:
    with (
        dask.config.set(scheduler=scheduler),
        written(case, folder, join, reader=reader) as found,
    ):

        def resolve() -> Any:
            return found.references.h5ref.resolve("ragged", chunks=chunks, on_null="fill")

        if not found.live or (dtype := joined_dtype(found, resolve)) is None:
            return
        with Warned() as warned:
            ragged = resolve()
        check_units(found, warned)
        sizes = [0 if row.values is None else row.values.size for row in found.rows]
        assert ragged["row_size"].values.reshape(-1).tolist() == sizes
        values = values_of(ragged)
        check_common(found, values, dtype)
        parts = np.split(values.values, np.cumsum(sizes)[:-1])
        for row, part in zip(found.rows, parts, strict=True):
            if row.values is not None:
                loop.assert_same(part, row.values.reshape(-1), row.target.path)


@given(case=cases(), chunks=chunkings, scheduler=schedulers, join=joins, data=st.data())
@thorough
def test_stacked_values_equal_the_values_of_each_target(
    case: Case, chunks: Any, scheduler: str, join: str, data: st.DataObject, folder: Path
) -> None:
    with dask.config.set(scheduler=scheduler), written(case, folder, join) as found:
        references = found.references
        if len(found.shapes) != 1:
            return
        given = data.draw(fills_of(found), "fill_value")

        def resolve() -> Any:
            return references.h5ref.resolve(chunks=chunks, on_null="fill", fill_value=given)

        if (dtype := joined_dtype(found, resolve)) is None:
            return
        with Warned() as warned:
            stacked = resolve()
        check_units(found, warned)
        (cell,) = found.shapes
        has_null = len(found.live) < len(found.rows)
        check_common(found, stacked, None if given is not None and has_null else dtype)
        assert stacked.shape == references.shape + cell
        values = stacked.values.reshape(len(found.rows), *cell)
        for k, row in enumerate(found.rows):
            part = values[k, ...]
            if row.values is None:
                check_missing(found, row, part, dtype, given)
            else:
                loop.assert_same(part, row.values, row.target.path)
        key = data.draw(indices(stacked.shape), "key")
        loop.assert_same(resolve_quietly(resolve)[key], stacked.values[(*key, ...)], key)


def fills_of(found: WrittenObject) -> st.SearchStrategy[Any]:
    """Fill values that suit the joined type, if there is one."""
    dtype = loop.common_dtype(found.dtypes)
    if dtype is None:
        return st.none()
    return fill_values(dtype, any(t.is_sequence for t in found.targets))


def resolve_quietly(resolve: Any) -> Any:
    with Warned():
        return resolve()


@st.composite
def indices(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """An integer or a slice along each axis."""
    return tuple(
        draw(st.integers(0, n - 1) if draw(st.booleans()) and n else slices(n)) for n in shape
    )


def slices(n: int) -> st.SearchStrategy[slice]:
    return st.builds(slice, st.integers(0, n), st.none(), st.sampled_from((1, 2)))


@given(case=cases(), chunks=chunkings, scheduler=schedulers, join=joins, data=st.data())
@thorough
def test_padded_values_equal_the_values_of_each_target(
    case: Case, chunks: Any, scheduler: str, join: str, data: st.DataObject, folder: Path
) -> None:
    with dask.config.set(scheduler=scheduler), written(case, folder, join) as found:
        references = found.references
        if len({len(shape) for shape in found.shapes}) != 1:
            return
        given = data.draw(fills_of(found), "fill_value")

        def resolve() -> Any:
            return references.h5ref.resolve(
                "pad", chunks=chunks, on_null="fill", fill_value=given
            )

        if (dtype := joined_dtype(found, resolve)) is None:
            return
        with Warned() as warned:
            padded = resolve()
        check_units(found, warned)
        cell = tuple(max(sides) for sides in zip(*found.shapes, strict=True))
        array = values_of(padded)
        assert array.shape == padded["valid"].shape == references.shape + cell
        valid = padded["valid"].values.reshape(len(found.rows), *cell)
        check_common(found, array, None if given is not None else dtype)
        values = array.values.reshape(len(found.rows), *cell)
        for k, row in enumerate(found.rows):
            part = values[k, ...]
            mask = np.zeros(cell, dtype=bool)
            if row.values is not None:
                corner = tuple(slice(0, n) for n in row.values.shape)
                mask[corner] = True
                loop.assert_same(part[(*corner, ...)], row.values, row.target.path)
            assert (valid[k] == mask).all()
            check_missing(found, row, part[~mask], dtype, given)


@given(case=joinable_cases(), chunks=chunkings, scheduler=schedulers, join=joins)
@thorough
def test_joined_values_equal_the_values_of_each_target(
    case: tuple[Case, int], chunks: Any, scheduler: str, join: str, folder: Path
) -> None:
    drawn, axis = case
    with dask.config.set(scheduler=scheduler), written(drawn, folder, join) as found:

        def resolve() -> Any:
            return found.references.h5ref.resolve(
                "concat", concat_dim=axis, chunks=chunks, on_null="fill"
            )

        if not found.live or (dtype := joined_dtype(found, resolve)) is None:
            return
        with Warned() as warned:
            joined = resolve()
        check_units(found, warned)
        filled = [row for row in found.live if row.values.size]
        sizes = [
            row.values.shape[axis] if row.values is not None and row.values.size else 0
            for row in found.rows
        ]
        assert joined.shape[axis] == sum(sizes)
        check_common(found, joined, dtype if filled else None)
        np.testing.assert_array_equal(
            joined.coords["row" if len(drawn.files) > 1 else found.references.dims[0]],
            np.repeat(np.arange(len(sizes)), sizes),
        )
        begin = 0
        for row, n in zip(found.rows, sizes, strict=True):
            if n:
                key = (*(slice(None),) * axis, slice(begin, begin + n), ...)
                loop.assert_same(joined.values[key], row.values, row.target.path)
                begin += n


@given(case=cases(), chunks=chunkings)
@thorough
def test_null_references_are_refused_or_dropped(case: Case, chunks: Any, folder: Path) -> None:
    with written(case, folder) as found:
        references = found.references
        if not found.live or loop.common_dtype(found.dtypes) is None:
            return
        if len(found.live) < len(found.rows):
            for call in (references.h5ref.resolve, references.h5ref.count):
                with Warned(), pytest.raises(ValueError, match="is null"):
                    call()
        if references.ndim != 1:
            return
        with Warned():
            ragged = references.h5ref.resolve("ragged", chunks=chunks, on_null="drop")
        sizes = [row.values.size for row in found.live]
        assert ragged["row_size"].values.tolist() == sizes
        parts = np.split(values_of(ragged).values, np.cumsum(sizes)[:-1])
        for row, part in zip(found.live, parts, strict=True):
            loop.assert_same(part, row.values.reshape(-1), row.target.path)
        with Warned():
            counts = references.h5ref.count(on_null="drop", chunks=chunks)
        expected = [loop.statistic("count", row.values) for row in found.live]
        assert counts.values.tolist() == expected


CASTS = {"f": "f8", "S": "S20", "M": "M8[ms]", "m": "m8[ms]"}


@given(case=cases(), chunks=chunkings, scheduler=schedulers)
@thorough
def test_dtype_argument_converts_joined_values(
    case: Case, chunks: Any, scheduler: str, folder: Path
) -> None:
    with dask.config.set(scheduler=scheduler), written(case, folder) as found:
        kinds = {"f" if d.kind in "biuf" else d.kind for d in found.dtypes}
        if len(kinds) != 1 or not kinds <= CASTS.keys():
            return
        dtype = np.dtype(CASTS[kinds.pop()])
        event(dtype.str)
        with Warned():
            ragged = found.references.h5ref.resolve(
                "ragged", chunks=chunks, on_null="fill", dtype=dtype
            )
        values = values_of(ragged)
        loop.assert_dtype(values.dtype, dtype)
        expected = [row.values.reshape(-1).astype(dtype) for row in found.live]
        loop.assert_same(values.values, np.concatenate(expected))
        if len(found.shapes) == 1:
            with Warned():
                stacked = found.references.h5ref.resolve(
                    chunks=chunks, on_null="fill", dtype=dtype
                )
            (cell,) = found.shapes
            loop.assert_dtype(stacked.dtype, dtype)
            parts = stacked.values.reshape(len(found.rows), *cell)
            for k, row in enumerate(found.rows):
                if row.values is not None:
                    loop.assert_same(parts[k, ...], row.values.astype(dtype))


# --- by reference -----------------------------------------------------------------------


@given(
    case=cases(),
    name=st.sampled_from(loop.STATISTICS),
    chunks=chunkings,
    scheduler=schedulers,
    join=joins,
)
@thorough
def test_statistics_equal_the_statistics_of_each_target(
    case: Case, name: str, chunks: Any, scheduler: str, join: str, folder: Path
) -> None:
    with dask.config.set(scheduler=scheduler), written(case, folder, join) as found:
        if not found.live:
            return

        def compute() -> xr.DataArray:
            with Warned():
                result = getattr(found.references.h5ref, name)(chunks=chunks, on_null="fill")
            return result.compute()

        known = [loop.has_statistic(name, dtype) for dtype in found.dtypes]
        if False in known:
            with pytest.raises(TypeError, match=f"no {name} of"):
                compute()
            return
        any_empty = any(row.values is None or not row.values.size for row in found.rows)
        types = [loop.statistic_dtype(name, dtype, any_empty) for dtype in found.dtypes]
        kinds = {"n" if d.kind in "biufc" else d.kind for d in types}
        if None in known or len(kinds) > 1:
            return
        result = compute()
        assert result.shape == found.references.shape
        if len(set(found.dtypes)) == 1:
            loop.assert_dtype(result.dtype, types[0])
        else:
            assert result.dtype.kind == np.result_type(*types).kind, (result.dtype, types)
        for row, value in zip(found.rows, result.values.reshape(-1), strict=True):
            check_statistic(name, row, types, value)


def check_statistic(name: str, row: Row, types: list[np.dtype[Any]], value: Any) -> None:
    """Compare one statistic: missing for null and empty regions, zero for sums."""
    if row.values is None:
        expected = {"count": 0, "sum": 0}.get(name)
        assert np.isnan(value) if expected is None else value == 0  # isnan: NaT, too
        return
    expected = loop.statistic(name, row.values)
    if name == "count" or types[0].kind in "mM":
        assert loop.same(value, expected), (value, expected)
        return
    # Single-precision results are rounded; a deviation is as exact as its values are large.
    rtol = 2e-6 if any(t in ("f4", "c8") for t in types) else 1e-12
    finite = np.abs(row.values[np.isfinite(row.values)].astype("c16"))
    atol = rtol * float(finite.max(initial=0)) if name == "std" else 1e-9
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol, err_msg=row.target.path)


def describe(values: np.ndarray) -> dict[str, Any]:
    """Return the dtype, shape and values of the argument of a function."""
    return {"dtype": values.dtype, "shape": values.shape, "values": values.copy()}


def total(values: np.ndarray) -> float:
    """Return a number for values of any type."""
    return float(np.nansum(values.real)) if values.dtype.kind in "biufc" else values.size


@given(
    case=cases(),
    method=st.sampled_from(("map", "reduce")),
    chunks=chunkings,
    scheduler=schedulers,
    join=joins,
    reader=readers,
)
@thorough
def test_functions_get_values_in_the_dtype_of_each_target(
    case: Case, method: str, chunks: Any, scheduler: str, join: str, reader: str, folder: Path
) -> None:
    with (
        dask.config.set(scheduler=scheduler),
        written(case, folder, join, reader=reader) as found,
    ):
        if not found.live:
            return
        call = getattr(found.references.h5ref, method)
        with Warned():
            seen = call(describe, dtype=object, chunks=chunks, on_null="fill")
            totals = call(total, dtype="f8", chunks=chunks, on_null="fill")
        assert seen.shape == found.references.shape
        for row, got in zip(found.rows, seen.values.reshape(-1), strict=True):
            if row.values is None:
                assert got["values"].size == 0
                continue
            if row.values.size or row.target.dtype.kind != "m":
                loop.assert_dtype(got["dtype"], row.target.dtype, row.target.path)
            loop.assert_same(got["values"], row.values, row.target.path)
        expected = [0.0 if row.values is None else total(row.values) for row in found.rows]
        np.testing.assert_allclose(totals.values.reshape(-1), expected, rtol=1e-6, atol=1e-9)


@given(case=cases(), method=st.sampled_from(("map", "reduce")), chunks=chunkings)
@thorough
def test_results_of_functions_have_a_dtype_for_all_targets(
    case: Case, method: str, chunks: Any, folder: Path
) -> None:
    """Without ``dtype=`` the results have a type that holds those of all targets."""
    with written(case, folder) as found:
        if not found.live or any(d.kind not in "iuf" for d in found.dtypes):
            return
        call = getattr(found.references.h5ref, method)
        with Warned():
            result = call(np.sum, chunks=chunks, on_null="fill")
        types = [np.sum(np.zeros(1, d)).dtype for d in found.dtypes]
        joined = np.result_type(*types)
        loop.assert_dtype(result.dtype, joined)
        expected = [0 if row.values is None else np.sum(row.values) for row in found.rows]
        if any(
            int(joined.type(n)) != int(n) for n in expected if np.asarray(n).dtype.kind in "iu"
        ):
            with pytest.raises(ValueError, match="has no equal"):
                result.compute()
            return
        np.testing.assert_allclose(result.values.reshape(-1), expected, rtol=1e-5)


@given(case=cases(), join=joins)
@thorough
def test_items_equal_the_targets_resolved_one_by_one(
    case: Case, join: str, folder: Path
) -> None:
    with written(case, folder, join) as found:
        items = list(found.references.h5ref.items())
        assert len(items) == len(found.rows)
        places = np.ndindex(found.references.shape)
        for row, place, (index, item) in zip(found.rows, places, items, strict=True):
            assert index == (place[0] if len(place) == 1 else place)
            if row.values is None:
                assert item is None
                continue
            assert item.name == row.target.name
            loop.assert_dtype(item.dtype, row.target.dtype, row.target.path)
            loop.assert_same(item.values, row.values, row.target.path)
            loop.assert_attrs(item.attrs, row.target.attrs)


@given(case=cases(), join=joins)
@thorough
def test_target_attrs_equal_the_attributes_in_the_file(
    case: Case, join: str, folder: Path
) -> None:
    with written(case, folder, join) as found:
        attrs = found.references.h5ref.target_attrs()
        stored = [row.target.stored if row.target else {} for row in found.rows]
        names = {name for each in stored for name in each}
        assert set(attrs.data_vars) == names
        assert attrs.coords.keys() == found.references.coords.keys()
        for name in names:
            assert attrs[name].dims == found.references.dims
            values = attrs[name].values.reshape(-1)
            expected = [each.get(name) for each in stored]
            for value, wanted in zip(values, expected, strict=True):
                if wanted is None:
                    assert value is None
                else:
                    assert loop.same(value, wanted), (name, value, wanted)
            types = {np.asarray(value).dtype for value in expected}
            if None not in expected and len(types) == 1 and (t := types.pop()).kind in "iufb":
                assert attrs[name].dtype == t


# --- the loop itself ----------------------------------------------------------------------


@given(case=cases(), data=st.data())
@thorough
def test_the_plain_loop_equals_xarray_for_files_of_one_target(
    case: Case, data: st.DataObject, folder: Path
) -> None:
    """xarray opens a file with only the target, with h5netcdf, and gives the same values."""
    pytest.importorskip("h5netcdf")
    drawn = data.draw(st.sampled_from(case.files)).targets
    target = data.draw(st.sampled_from(drawn))
    if target.kind in (*loop.SEQUENCES, "enum", "bool", "c8", "c16"):
        return  # no types of netCDF-4, or user-defined ones of it
    alone = TargetMetadata(
        target.name, target.kind, target.shape, target.attrs, target.fillvalue
    )
    one = Case((File((alone,), ((0, Selected("object")),)),), "object", case.options)
    (path,) = one.write(folder)
    (row,) = loop.read_rows([path], case.options)

    with h5py.File(path, "a") as file:
        del file["refs"]
    keywords = case.options.keywords
    with xr.open_dataset(path, engine="h5netcdf", phony_dims="sort", **keywords) as dataset:
        array = dataset[target.name]
        loop.assert_dtype(array.dtype, row.target.dtype)
        loop.assert_same(array.values, row.values)
        loop.assert_attrs(array.attrs, row.target.attrs)
    path.unlink()
