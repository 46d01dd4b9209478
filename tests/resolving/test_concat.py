"""``layout="concat"``: results joined along one axis equal a plain loop with NumPy.

Hypothesis draws files with datasets of one type that agree in all axes but one, references to
parts of them, and how the result is divided and indexed.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import h5py
import numpy as np
import oracle
import pytest
import strategies
import xarray as xr
from h5py import h5r
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from strategies import DTYPES, Selected, distinct_values, write_references

from xref.resolving import concat_arrays
from xref.resolving.dask_graph import ReadLayer

# One example writes and opens whole files, so there are fewer of them than elsewhere.
thorough = settings(
    max_examples=settings.default.max_examples // 4,
    phases=[p for p in Phase if p is not Phase.explain],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


KINDS = ("region", "points", "object")
"""Regions of one shape but for the joined axis, points of any dataset, whole datasets."""


# --- what is drawn ----------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """One dataset; ``seed`` makes its values differ from those of others."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...] | None
    seed: int


@dataclass(frozen=True)
class Case:
    """Files with datasets and references to them, as (target, selection)."""

    files: tuple[tuple[tuple[Target, ...], tuple[tuple[int, Selected], ...]], ...]
    dtype: str
    axis: int
    kind: str  # of the references, "region" or "object"
    grid: tuple[int, ...] | None  # the shape of the only variable of references


@st.composite
def lengths(draw: st.DrawFn, n: int) -> Any:
    """Elements along the joined axis: a slice, perhaps empty or with a step, or a list."""
    if draw(st.booleans()):
        return sorted(draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=5)))
    start = draw(st.integers(0, n - 1))
    return slice(start, draw(st.integers(start, n)), draw(st.sampled_from((1, 1, 2, 3))))


@st.composite
def blocks(draw: st.DrawFn, shape: tuple[int, ...], others: Any, axis: int) -> Selected:
    """A hyperslab of blocks along the joined axis: start, count, stride and block by axis."""
    along = draw(strategies.regular(shape[axis]))
    steps = [along if k == axis else (at, 1, n, n) for k, (at, n) in enumerate(others)]
    return Selected("hyper", (("set", *(tuple(s[i] for s in steps) for i in range(4))),))


@st.composite
def regions(
    draw: st.DrawFn, shape: tuple[int, ...], cell: tuple[int, ...], axis: int
) -> Selected:
    """A region that has the shape ``cell`` but for the joined axis; or nothing, or null."""
    match draw(st.integers(0, 9)):
        case 0:
            return Selected("null")
        case 1:
            return Selected("none")
        case 2 if shape == (*cell[:axis], shape[axis], *cell[axis + 1 :]):
            return Selected("all")
    others = [
        (draw(st.integers(0, max(n - c, 0))), c) for n, c in zip(shape, cell, strict=True)
    ]
    if draw(st.integers(0, 3)) == 0:
        return draw(blocks(shape, others, axis))
    key: list[Any] = [slice(at, at + n) for at, n in others]
    key[axis] = draw(lengths(shape[axis]))
    return Selected("numpy", tuple(key))


@st.composite
def points(draw: st.DrawFn, shape: tuple[int, ...]) -> Selected:
    """A selection whose result has one axis, whatever the rank of the dataset."""
    choices = [st.just(Selected("null")), st.just(Selected("none"))]
    some = [strategies.points(shape), strategies.boolean_mask(shape)]
    return draw(st.one_of(*some, *some, *choices))


@st.composite
def cases(draw: st.DrawFn, kind: str) -> Case:
    rank = draw(st.sampled_from((1, 2, 2, 3, 3, 4, 5, 6)))
    longest = 5 if rank < 4 else 2
    cell = tuple(draw(st.integers(1, longest)) for _ in range(rank))
    axis = draw(st.integers(0, rank - 1)) if kind != "points" else 0
    files = []
    n_files = draw(st.integers(1, 3))
    for _ in range(n_files):
        targets = []
        for _ in range(draw(st.sampled_from((1, 1, 2, 10 if kind == "object" else 3)))):
            grown = 0 if kind == "object" else draw(st.integers(0, 2))
            shape = [n + grown for n in cell]
            shape[axis] = draw(st.integers(0 if kind == "object" else 1, 12))
            chunks = None
            if 0 not in shape and draw(st.booleans()):
                chunks = tuple(draw(st.integers(1, n)) for n in shape)
            targets.append(Target(tuple(shape), chunks, draw(st.integers(0, 9))))
        references = []
        for k in range(draw(st.integers(1, 5)) if kind != "object" else len(targets)):
            t = k if kind == "object" else draw(st.integers(0, len(targets) - 1))
            match kind:
                case "object":
                    null = draw(st.integers(0, 7)) == 0
                    selected = Selected("null" if null else "object")
                case "points":
                    selected = draw(points(targets[t].shape))
                case _:
                    selected = draw(regions(targets[t].shape, cell, axis))
            references.append((t, selected))
        files.append((tuple(targets), tuple(references)))
    n = len(files[0][1])
    shapes = {1: ((),), 2: ((2, 1),), 4: ((2, 2), (1, 4, 1))}.get(n, ())
    grid = draw(st.sampled_from((None, *shapes))) if n_files == 1 else None
    dtype = draw(st.sampled_from([name for name in DTYPES if name != "f2"]))  # too few values
    return Case(tuple(files), dtype, axis, "object" if kind == "object" else "region", grid)


@contextmanager
def written(case: Case, folder: Path) -> Iterator[tuple[xr.DataArray, list[Read | None]]]:
    """Write the files of a case; give its references, and what h5py reads for each."""
    dtype = DTYPES[case.dtype]
    answers: list[Read | None] = []
    with ExitStack() as stack:
        opened = []
        for k, (targets, references) in enumerate(case.files):
            path = folder / f"{k}.h5"
            path.unlink(missing_ok=True)
            with h5py.File(path, "w") as file:
                datasets = []
                for i, target in enumerate(targets):
                    dataset = file.create_dataset(
                        f"t{i}", target.shape, dtype, chunks=target.chunks
                    )
                    values = distinct_values(
                        (target.seed + target.shape[0], *target.shape[1:]), dtype
                    )
                    if 0 not in target.shape:
                        start = target.seed
                        dataset[...] = values[start : start + target.shape[0]]
                    datasets.append(dataset)
                made = [strategies.select(datasets[i], s) for i, s in references]
                kind = h5py.ref_dtype if case.kind == "object" else h5py.regionref_dtype
                write_references(file, "refs", made, case.grid, dtype=kind)
                answers += [
                    None if r is None else read(datasets[i], r)
                    for (i, _), r in zip(references, made, strict=True)
                ]
            opened.append(stack.enter_context(xr.open_dataset(path, engine="h5ref")))
        arrays = [ds[["refs"]] for ds in opened]
        if len(arrays) == 1:
            yield arrays[0]["refs"], answers
        else:
            renamed = [ds.rename({ds["refs"].dims[0]: "row"}) for ds in arrays]
            yield xr.concat(renamed, "row")["refs"], answers


@dataclass(frozen=True, eq=False)
class Read:
    """The values of one reference, and where they lie along each axis of the target."""

    values: np.ndarray
    positions: tuple[np.ndarray, ...]


def read(dataset: h5py.Dataset, reference: Any) -> Read:
    """Read one reference with h5py."""
    values = oracle.answer(dataset, reference).array
    places = np.arange(dataset.size)
    if isinstance(reference, h5py.RegionReference):
        places = oracle.positions(h5r.get_region(reference, dataset.id))
    along = np.unravel_index(places.reshape(values.shape), dataset.shape)
    return Read(values, along if dataset.size else (places,) * dataset.ndim)


def join(answers: list[Read | None], axis: int) -> np.ndarray | None:
    """Concatenate with NumPy; HDF5 forgets the shape of selections without elements."""
    found = [a.values for a in answers if a is not None and a.values.size]
    return np.concatenate(found, axis=axis) if found else None


def rows_of(answers: list[Read | None], axis: int) -> np.ndarray:
    """Return the number of the reference of each row."""
    counts = [0 if a is None or not a.values.size else a.values.shape[axis] for a in answers]
    return np.repeat(np.arange(len(answers)), counts)


def check_positions(lazy: xr.DataArray, answers: list[Read | None], axis: int) -> None:
    """Check where rows lie in their targets, which have no coordinates."""
    found = [a for a in answers if a is not None and a.values.size]
    if lazy.dims == ("point",):
        names = [name for name in lazy.coords if str(name).startswith("phony_dim_")]
        for k in range(len(found[0].positions)):
            name = names[k]
            np.testing.assert_array_equal(
                lazy.coords[name], np.concatenate([a.positions[k] for a in found])
            )
        return
    first = [np.moveaxis(a.positions[axis], axis, -1) for a in found]
    expected = np.concatenate([a[(0,) * (a.ndim - 1)] for a in first])
    coordinate = lazy.coords[lazy.dims[axis]]
    np.testing.assert_array_equal(coordinate, expected)
    np.testing.assert_array_equal(coordinate[::-2], expected[::-2])


@st.composite
def chunkings(draw: st.DrawFn, dims: tuple[str, ...], shape: tuple[int, ...]) -> Any:
    """Dask chunks as a user gives them."""
    how = draw(st.sampled_from(("none", "auto", "int", "dict")))
    if how == "int":
        return draw(st.sampled_from((1, 2, 3, -1)))
    if how == "dict":
        return {d: draw(st.integers(1, max(n, 1))) for d, n in zip(dims, shape, strict=True)}
    return {"none": None, "auto": "auto"}[how]


@st.composite
def keys(draw: st.DrawFn, n: int) -> Any:
    """An index of one axis: an integer, a slice of any direction, or a list of integers."""
    kind = draw(st.sampled_from(("int", "slice", "slice", "list")))
    if kind == "int" and n:
        return draw(st.integers(-n, n - 1))
    if kind == "list" and n:
        return draw(st.lists(st.integers(-n, n - 1), max_size=6))
    bounds = st.one_of(st.none(), st.integers(-n, n))
    return slice(draw(bounds), draw(bounds), draw(st.sampled_from((None, 1, 2, 3, -1, -2))))


def index_axes(values: np.ndarray, key: dict[int, Any]) -> np.ndarray:
    """Index each axis by itself, as xarray does."""
    for axis in sorted(key, reverse=True):
        index = key[axis]
        if isinstance(index, list):
            index = np.array(index, dtype=np.int64)
        values = values[(slice(None),) * axis + (index, Ellipsis)]
    return values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("concat")


# --- properties -------------------------------------------------------------------------


stretches = st.sampled_from((1, 2, concat_arrays.OFFSET_STRIDE))
"""References between two row offsets that are kept; usually more than there are."""


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), stretch=stretches)
@thorough
def test_joined_values_equal_numpy_concatenate(
    kind: str, data: st.DataObject, stretch: int, folder: Path
) -> None:
    case = data.draw(cases(kind), "case")
    patched = mock.patch.object(concat_arrays, "OFFSET_STRIDE", stretch)
    with written(case, folder) as (references, answers), patched:
        lazy = references.h5ref.resolve(
            "concat", concat_dim=case.axis, chunks=None, on_null="fill"
        )
        expected = join(answers, case.axis)
        if expected is None:
            assert lazy.shape[case.axis] == 0
            assert lazy.values.size == 0
            event("no elements")
            return
        oracle.assert_same(lazy.values, expected)
        numbers = rows_of(answers, case.axis)
        indices = np.unravel_index(numbers, references.shape) if references.ndim else ()
        for dim, index in zip(references.dims, indices, strict=True):
            assert lazy.coords[dim].dims == (lazy.dims[case.axis],)
            np.testing.assert_array_equal(lazy.coords[dim], index)
        check_positions(lazy, answers, case.axis)
        key = data.draw(
            st.fixed_dictionaries({k: keys(n) for k, n in enumerate(lazy.shape)}), "key"
        )
        part = lazy.isel({lazy.dims[k]: index for k, index in key.items()})
        oracle.assert_same(part.values, index_axes(expected, key), key)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), stretch=stretches, scheduler=st.sampled_from(("synchronous", "threads")))
@thorough
def test_dask_blocks_equal_numpy_concatenate(
    kind: str, data: st.DataObject, stretch: int, scheduler: str, folder: Path
) -> None:
    case = data.draw(cases(kind), "case")
    patched = mock.patch.object(concat_arrays, "OFFSET_STRIDE", stretch)
    with (
        written(case, folder) as (references, answers),
        dask.config.set(scheduler=scheduler),
        patched,
    ):
        expected = join(answers, case.axis)
        if expected is None:
            return

        def resolve(chunks: Any) -> xr.DataArray:
            result = references.h5ref.resolve(
                "concat", concat_dim=case.axis, chunks=chunks, on_null="drop"
            )
            assert isinstance(result, xr.DataArray)
            return result

        lazy = resolve(None)
        chunks = data.draw(chunkings(lazy.dims, lazy.shape), "chunks")
        if chunks is None:
            return
        chunked = resolve(chunks)
        oracle.assert_same(chunked.values, expected)  # read as a whole
        oracle.assert_same(chunked.data.map_blocks(np.copy).compute(), expected)
        layer = next(v for v in chunked.data.dask.layers.values() if isinstance(v, ReadLayer))
        array = pickle.loads(pickle.dumps(layer.array))
        assert array.read((slice(None),) * chunked.ndim).shape == expected.shape
        sizes = chunks if isinstance(chunks, dict) else {}
        assert all(max(chunked.chunksizes[dim]) <= n for dim, n in sizes.items())
