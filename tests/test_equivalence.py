"""Every way of resolving gives what h5py reads, one reference at a time (`oracle`).

In part 1 hypothesis draws whole files; part 2 names each promise about selections and
checks it for each rank and layout.
"""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import oracle
import pytest
import strategies
import xarray as xr
from h5py import h5o, h5s
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from oracle import Answer, assert_same
from strategies import Drawn, create_dataset, distinct_values, region_of

import xref
from xref import NullReferenceError, SelectionError
from xref.errors import UnsupportedError

READERS = ("auto", "direct", "h5py")

# Files are large values to draw.
health = [HealthCheck.too_slow, HealthCheck.data_too_large]
thorough = settings(suppress_health_check=health)
# Each example opens the file several times.
brief = settings(thorough, max_examples=settings.default.max_examples // 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the files of all examples, of which each has a new name."""
    return tmp_path_factory.mktemp("equivalence")


names = (f"{i}.h5" for i in itertools.count())


class Case:
    """A drawn file, written, with the oracle's answers in C order; None for null."""

    def __init__(self, drawn: Drawn, folder: Path) -> None:
        self.path = folder / next(names)
        drawn.write(self.path)
        self.shape = drawn.holder.shape
        self.paths: list[str | None] = []
        self.answers: list[Answer | None] = []
        with h5py.File(self.path) as file:
            for reference in np.asarray(file["refs"][()], dtype=object).ravel():
                target = file[reference] if reference else None
                self.paths.append(target.name if reference else None)
                self.answers.append(oracle.answer(target, reference) if reference else None)
            self.dtype = file["t0"].dtype

    def __enter__(self) -> Case:
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink()

    def open(self, **options: Any) -> xr.Dataset:
        return xr.open_dataset(self.path, engine="h5ref", **options)

    @property
    def live(self) -> list[int]:
        """Rows that are not null."""
        return [i for i, a in enumerate(self.answers) if a is not None]

    def expected(self, rows: list[int] | np.ndarray) -> list[Answer]:
        return [a for i in rows if (a := self.answers[i]) is not None]

    def flat(self, rows: list[int] | np.ndarray) -> np.ndarray:
        """Values of some rows, end to end."""
        parts = [a.values for a in self.expected(rows)]
        return np.concatenate(parts) if parts else np.empty(0)


def values_of(dataset: xr.Dataset) -> xr.DataArray:
    """The resolved values of a "ragged" or "pad" result, whatever their name."""
    (name,) = set(dataset.data_vars) - {"row_size", "row_shape", "valid"}
    return dataset[name]


# --- part 1: whole files -------------------------------------------------------------


@given(drawn=strategies.files())
@thorough
def test_each_reference_says_and_gives_what_h5py_does(drawn: Drawn, folder: Path) -> None:
    with Case(drawn, folder) as case, case.open() as dataset:
        references = np.asarray(dataset["refs"].values, dtype=object).ravel()
        assert dataset["refs"].shape == case.shape
        for reference, path, expected in zip(references, case.paths, case.answers, strict=True):
            if expected is None:
                assert not reference
                assert reference.kind == "null"
                continue
            assert reference
            assert reference.kind == "dataset"
            assert reference.path == path
            if drawn.holder.kind == "region":
                assert reference.bounds == expected.bounds
                assert reference.shape == expected.shape
                assert reference.size == len(expected.values)
            assert_same(reference.resolve(), expected.array, reference)


@given(
    drawn=st.one_of(strategies.files(), strategies.files(n_targets=2)),
    chunks=st.sampled_from((None, 1, 2, "auto")),
)
@thorough
def test_ragged_values_are_all_results_end_to_end(
    drawn: Drawn, chunks: Any, folder: Path
) -> None:
    with Case(drawn, folder) as case, case.open() as dataset:
        ragged = dataset["refs"].h5ref.resolve("ragged", chunks=chunks, on_null="fill")
        sizes = [0 if a is None else len(a.values) for a in case.answers]
        assert ragged["row_size"].values.ravel().tolist() == sizes
        assert ragged["row_size"].shape == case.shape
        (sample,) = values_of(ragged).dims
        assert ragged["row_size"].attrs["sample_dimension"] == sample
        assert_same(values_of(ragged), case.flat(case.live))


@given(drawn=strategies.files())
@thorough
def test_stacking_takes_one_shape_and_refuses_others_by_name(
    drawn: Drawn, folder: Path
) -> None:
    with Case(drawn, folder) as case, case.open() as dataset:
        variable = dataset["refs"]
        if len(case.live) < len(case.answers):
            with pytest.raises(NullReferenceError, match="is null"):
                variable.h5ref.resolve()
        shapes = {a.shape for a in case.expected(case.live)}
        event(f"{min(len(shapes), 2)} shapes")
        if len(shapes) > 1:
            with pytest.raises(ValueError, match="ragged") as caught:
                variable.h5ref.resolve(on_null="fill")
            assert str(min(shapes)) in str(caught.value)
            return
        (shape,) = shapes
        stacked = variable.h5ref.resolve(on_null="fill")
        assert stacked.shape == case.shape + shape
        cells = stacked.values.reshape(len(case.answers), *shape)
        for row in case.live:
            assert_same(cells[row, ...], case.answers[row].array)


@given(drawn=strategies.files())
@thorough
def test_padding_keeps_each_result_in_the_corner_of_its_cell(
    drawn: Drawn, folder: Path
) -> None:
    with Case(drawn, folder) as case, case.open() as dataset:
        ranks = {len(a.shape) for a in case.expected(case.live)}
        if len(ranks) > 1:
            with pytest.raises(ValueError, match="ragged"):
                dataset["refs"].h5ref.resolve("pad", on_null="fill")
            return
        padded = dataset["refs"].h5ref.resolve("pad", on_null="fill")
        widest = np.max([a.shape for a in case.expected(case.live)], axis=0)
        cell = tuple(int(n) for n in widest)
        values, valid = values_of(padded), padded["valid"]
        assert values.shape == valid.shape == case.shape + cell
        cells = values.values.reshape(len(case.answers), *cell)
        masks = valid.values.reshape(len(case.answers), *cell)
        for row, expected in enumerate(case.answers):
            mask = np.zeros(cell, dtype=bool)
            if expected is not None:
                corner = tuple(slice(0, n) for n in expected.shape)
                mask[corner] = True
                assert_same(cells[(row, *corner, ...)], expected.array)
            assert (masks[row] == mask).all()


@given(drawn=strategies.files(n_targets=2, same_size=True), data=st.data())
@brief
def test_stacked_boxes_are_equal_by_any_reader_chunks_and_index(
    drawn: Drawn, data: st.DataObject, folder: Path
) -> None:
    with Case(drawn, folder) as case:
        cell = case.answers[0].shape
        expected = np.stack([a.array for a in case.answers]).reshape(case.shape + cell)
        for reader in READERS:
            with case.open(reader=reader) as dataset:
                try:
                    eager = dataset["refs"].h5ref.resolve(chunks=None).load()
                except UnsupportedError:
                    assert reader == "direct"
                    assert drawn.indirect
                    continue
                assert_same(eager, expected, reader)
                eager = dataset["refs"].h5ref.resolve(chunks=None)
                chunks = data.draw(st.sampled_from((1, 2, "auto")), "chunks")
                lazy = dataset["refs"].h5ref.resolve(chunks=chunks)
                assert_same(lazy, expected, (reader, chunks))
                key = data.draw(basic_index(expected.shape), "key")
                part = expected[(*key, ...)]
                assert_same(eager[key], part, (reader, key))
                assert_same(lazy[key], part, (reader, chunks, key))


@st.composite
def basic_index(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Integers and slices, whole axes backwards too.

    xarray itself reads other backward slices wrongly when they are empty.
    """
    key: list[Any] = []
    for n in shape:
        if draw(st.booleans()):
            key.append(draw(st.integers(-n, n - 1)))
        else:
            step = draw(st.sampled_from((None, 1, 2, 3, -1, -2)))
            bound = st.none() | st.integers(-n - 1, n + 1) if (step or 1) > 0 else st.none()
            key.append(slice(draw(bound), draw(bound), step))
    return tuple(key)


@given(drawn=strategies.files(), data=st.data())
@thorough
def test_selecting_references_before_resolving_selects_their_results(
    drawn: Drawn, data: st.DataObject, folder: Path
) -> None:
    with Case(drawn, folder) as case, case.open() as dataset:
        rows = np.arange(len(case.answers)).reshape(case.shape)
        variable = dataset["refs"]
        index: dict[Any, Any] = {}
        for dim, n in variable.sizes.items():
            kinds = (
                st.integers(-n, n - 1),
                st.builds(slice, st.none() | st.integers(0, n), st.none(), st.integers(1, 2)),
                st.lists(st.integers(0, n - 1), min_size=1, max_size=5),
            )
            index[dim] = data.draw(st.one_of(kinds), f"index of {dim}")
        picked = xr.DataArray(rows, dims=variable.dims).isel(index)
        ragged = variable.isel(index).h5ref.resolve("ragged", on_null="fill")
        chosen = picked.values.ravel()
        assert ragged["row_size"].shape == picked.shape
        assert_same(values_of(ragged), case.flat(chosen))


@given(drawn=strategies.files(), reader=st.sampled_from(READERS))
@thorough
def test_every_reader_gives_the_same_results(drawn: Drawn, reader: str, folder: Path) -> None:
    with Case(drawn, folder) as case, case.open(reader=reader) as dataset:
        with h5py.File(case.path) as file:
            whole = np.asarray(file["t0"][()]).astype(file["t0"].dtype)
        try:
            ragged = dataset["refs"].h5ref.resolve("ragged", on_null="fill").compute()
            target = dataset["t0"].load()
        except UnsupportedError:
            assert reader == "direct"
            assert drawn.indirect
            return
        assert_same(values_of(ragged), case.flat(case.live))
        assert_same(target, whole)


# --- part 2: the table of selections, by rank and layout -----------------------------

Make = Callable[[h5py.Dataset], Any]


# Every rank in one layout, and every layout in one rank.
CASES = [(rank, "gzip+shuffle") for rank in range(1, 7)] + [
    (3, layout) for layout in strategies.LAYOUTS if layout != "gzip+shuffle"
]


class Table:
    """Opens one dataset with one reference, and checks it in every way."""

    def __init__(self, path: Path, rank: int, layout: str) -> None:
        self.path = path
        self.shape = {1: (41,), 2: (9, 11), 3: (6, 5, 7), 4: (4, 5, 4, 5)}.get(
            rank, (4, 3, 4, 3, 4, 3)[:rank]
        )
        self.layout = layout
        chunks = tuple(max(n // 2, 1) for n in self.shape)
        self.options = {} if layout in ("contiguous", "compact") else {"chunks": chunks}

    def check(self, make: Make, shape: tuple[int, ...] | None = None) -> Answer:
        """Compare with the oracle; ``shape`` is what the table in DESIGN says."""
        with h5py.File(self.path, "w") as file:
            dtype = np.dtype("<i4")
            dataset = create_dataset(file, "t", self.shape, dtype, self.layout, **self.options)
            dataset[...] = distinct_values(self.shape, dtype)
            region = make(dataset)
            expected = oracle.answer(dataset, region)
            file.create_dataset("refs", (2,), dtype=h5py.regionref_dtype)[:] = [region, region]
        if shape is not None:
            assert expected.shape == shape
        for reader in READERS:
            with xr.open_dataset(self.path, engine="h5ref", reader=reader) as dataset:
                try:
                    one = dataset["refs"].values[1].resolve().load()
                    both = dataset["refs"].h5ref.resolve().compute()
                except UnsupportedError:
                    assert reader == "direct"
                    assert self.layout in strategies.INDIRECT
                    continue
                if len(expected.values):  # what selects nothing is given by any reader
                    assert reader != "direct" or self.layout not in strategies.INDIRECT
                assert_same(one, expected.array)
                assert_same(both, np.stack([expected.array] * 2))
        return expected


@pytest.fixture(params=CASES, ids="rank {0[0]}, {0[1]}".format)
def table(tmp_path: Path, request: pytest.FixtureRequest) -> Table:
    rank, layout = request.param
    if layout in strategies.PLUGINS:
        pytest.importorskip("hdf5plugin")
    return Table(tmp_path / "table.h5", rank, layout)


def hyperslabs(*boxes: tuple[Any, Any], op: int = h5s.SELECT_OR) -> Make:
    """Unite boxes, each of (start, shape)."""

    def make(dataset: h5py.Dataset) -> Any:
        space = dataset.id.get_space()
        for i, (start, shape) in enumerate(boxes):
            ones = (1,) * len(start)
            space.select_hyperslab(start, ones, ones, shape, op if i else h5s.SELECT_SET)
        return region_of(dataset, space)

    return make


def test_a_slice_keeps_its_rank(table: Table) -> None:
    shape = tuple(n - 1 for n in table.shape)
    table.check(lambda d: d.regionref[tuple(slice(1, n) for n in d.shape)], shape)


def test_a_strided_slice_keeps_its_rank(table: Table) -> None:
    shape = tuple(-(-n // 2) for n in table.shape)
    table.check(lambda d: d.regionref[(slice(None, None, 2),) * d.ndim], shape)


def test_a_slice_of_strides_wider_than_a_chunk_keeps_its_rank(table: Table) -> None:
    def make(dataset: h5py.Dataset) -> Any:
        return dataset.regionref[tuple(slice(0, n, n // 2 + 1) for n in dataset.shape)]

    table.check(make, (2,) * len(table.shape))


def test_a_strided_slice_of_blocks_is_an_outer_product(table: Table) -> None:
    def make(dataset: h5py.Dataset) -> Any:
        space = dataset.id.get_space()
        rank = dataset.ndim
        count = tuple((n - 2) // 3 + 1 for n in dataset.shape)
        space.select_hyperslab((0,) * rank, count, (3,) * rank, (2,) * rank)
        return region_of(dataset, space)

    table.check(make, tuple(2 * ((n - 2) // 3 + 1) for n in table.shape))


def test_an_integer_axis_is_kept_with_length_one(table: Table) -> None:
    table.check(lambda d: d.regionref[(2, ...)], (1, *table.shape[1:]))


def test_integers_on_all_axes_give_one_element_of_full_rank(table: Table) -> None:
    table.check(lambda d: d.regionref[tuple(n - 1 for n in d.shape)], (1,) * len(table.shape))


def test_a_list_of_indices_is_an_outer_product(table: Table) -> None:
    shape = (*table.shape[:-1], 3 if len(table.shape) == 1 else 2)
    picks = [0, 2, 7] if len(table.shape) == 1 else [0, 2]
    table.check(lambda d: d.regionref[(..., picks)], shape)


def test_a_union_of_blocks_that_is_an_outer_product_keeps_its_rank(table: Table) -> None:
    rank = len(table.shape)
    rest = table.shape[1:]
    boxes = [((0,) * rank, (1, *rest)), ((2, *(0,) * (rank - 1)), (2, *rest))]
    table.check(hyperslabs(*boxes), (3, *rest))


def test_a_union_of_overlapping_blocks_counts_elements_once(table: Table) -> None:
    rank = len(table.shape)
    lower, upper = (0,) * rank, tuple(n - 2 for n in table.shape)
    boxes = [(lower, tuple(n - 1 for n in table.shape)), (upper, (2,) * rank)]
    expected = table.check(hyperslabs(*boxes))
    assert len(expected.shape) == 1
    assert len(np.unique(expected.values)) == len(expected.values)


def test_a_union_with_a_hole_is_flat_in_c_order(table: Table) -> None:
    rank = len(table.shape)
    hole = ((1,) * rank, tuple(n - 2 for n in table.shape))
    expected = table.check(hyperslabs(((0,) * rank, table.shape), hole, op=h5s.SELECT_NOTB))
    assert (np.diff(expected.values) > 0).all()
    n = math.prod(table.shape) - math.prod(hole[1])
    assert expected.shape == ((n,) if rank > 1 else (2,))


def test_symmetric_differences_are_flat_in_c_order(table: Table) -> None:
    rank = len(table.shape)
    boxes = [((0,) * rank, (3,) * rank), ((1,) * rank, (2,) * rank)]
    expected = table.check(hyperslabs(*boxes, op=h5s.SELECT_XOR))
    assert expected.shape == ((3**rank - 2**rank,))


def test_points_come_in_stored_order_with_duplicates(table: Table) -> None:
    last = [n - 1 for n in table.shape]
    listed = [last, [0] * len(last), last, [1] * len(last), [0] * len(last)]

    def make(dataset: h5py.Dataset) -> Any:
        space = dataset.id.get_space()
        space.select_elements(np.array(listed, dtype=np.uint64))
        return region_of(dataset, space)

    values = distinct_values(table.shape, np.dtype("<i4"))
    expected = [values[tuple(spot)] for spot in listed]
    assert table.check(make, (5,)).values.tolist() == expected


def test_a_boolean_mask_is_flat(table: Table) -> None:
    mask = distinct_values(table.shape, np.dtype("i8")) % 3 == 0
    expected = table.check(lambda d: d.regionref[mask])
    assert len(expected.values) == mask.sum()


def test_all_has_the_shape_of_the_dataset(table: Table) -> None:
    def make(dataset: h5py.Dataset) -> Any:
        return region_of(dataset, dataset.id.get_space())

    table.check(make, table.shape)


def test_none_has_no_length_along_every_axis(table: Table) -> None:
    def make(dataset: h5py.Dataset) -> Any:
        space = dataset.id.get_space()
        space.select_none()
        return region_of(dataset, space)

    table.check(make, (0,) * len(table.shape))


@pytest.mark.parametrize("layout", ["contiguous", "compact"])
@pytest.mark.parametrize("selects", ["all", "none"])
def test_a_scalar_dataset_is_all_or_nothing(tmp_path: Path, layout: str, selects: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = create_dataset(file, "t", (), np.dtype("f8"), layout)
        dataset[...] = 2.5
        space = dataset.id.get_space()
        if selects == "none":
            space.select_none()
        file.create_dataset("refs", (), dtype=h5py.regionref_dtype)[()] = region_of(
            dataset, space
        )
    with xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as dataset:
        resolved = dataset["refs"].values[()].resolve()
        assert resolved.values.ravel().tolist() == ([2.5] if selects == "all" else [])


# --- part 2, single promises ---------------------------------------------------------


def write_references(path: Path, values: np.ndarray, makes: list[Make], **options: Any) -> None:
    """Write ``t`` and a reference of each ``make`` into ``refs``."""
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("t", data=values, **options)
        refs = file.create_dataset("refs", (len(makes),), dtype=h5py.regionref_dtype)
        for i, make in enumerate(makes):
            refs[i] = make(dataset)


opened: list[xr.Dataset] = []


def open_refs(path: Path, **options: Any) -> xr.DataArray:
    """The variable ``refs``; its file is closed when the test ends."""
    opened.append(xr.open_dataset(path, engine="h5ref", **options))
    return opened[-1]["refs"]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "file.h5"
    while opened:
        opened.pop().close()


def test_a_square_less_one_cell_is_flat(path: Path) -> None:
    make = hyperslabs(((0, 0), (4, 4)), ((2, 1), (1, 1)), op=h5s.SELECT_NOTB)
    write_references(path, np.arange(16).reshape(4, 4), [make])
    (reference,) = open_refs(path).values
    assert reference.shape == (15,)
    assert reference.resolve().values.tolist() == [i for i in range(16) if i != 9]


@pytest.mark.parametrize(
    "key", [np.s_[3:7, 2:4], np.s_[:, 5], np.s_[[1, 6], :], np.s_[::3, ::2]], ids=str
)
@pytest.mark.parametrize("chunks", [(2, 3), (8, 6)])
def test_a_region_beyond_a_shrunk_dataset_is_an_error(
    path: Path, key: Any, chunks: tuple[int, ...]
) -> None:
    inside = hyperslabs(((0, 0), (2, 2)))
    write_references(
        path,
        np.arange(48).reshape(8, 6),
        [inside, lambda d: d.regionref[key]],
        chunks=chunks,
        maxshape=(None, None),
    )
    with h5py.File(path, "a") as file:
        file["t"].resize((6, 5))
    refs = open_refs(path)
    for resolve in (refs.values[1].resolve, refs[1:].h5ref.resolve, refs.h5ref.resolve):
        with pytest.raises(SelectionError, match=r"beyond the extent \(6, 5\)") as caught:
            resolve()
        start, stop = refs.values[1].bounds
        assert f"from {start} to {stop}" in str(caught.value)
        assert "reference" in str(caught.value).lower()
    assert "reference 1 of" in str(caught.value)
    expected = np.arange(48).reshape(8, 6)[:2, :2]
    np.testing.assert_array_equal(refs.values[0].resolve(), expected)


def test_points_beyond_a_dataset_shrunk_by_one_row_are_an_error(path: Path) -> None:
    def make(dataset: h5py.Dataset) -> Any:
        space = dataset.id.get_space()
        space.select_elements(np.array([[0, 0], [7, 1]], dtype=np.uint64))
        return region_of(dataset, space)

    write_references(path, np.arange(16).reshape(8, 2), [make], maxshape=(None, 2))
    with h5py.File(path, "a") as file:
        file["t"].resize((7, 2))
    with pytest.raises(SelectionError, match=r"\(7, 2\)"):
        open_refs(path).values[0].resolve()


def test_all_grows_with_the_dataset(path: Path) -> None:
    def make(dataset: h5py.Dataset) -> Any:
        return region_of(dataset, dataset.id.get_space())

    write_references(path, np.arange(6).reshape(2, 3), [make], maxshape=(None, 3))
    with xr.open_dataset(path, engine="h5ref") as dataset:
        assert dataset["refs"].values[0].shape == (2, 3)
    with h5py.File(path, "a") as file:
        file["t"].resize((4, 3))
        file["t"][2:] = [[6, 7, 8], [9, 10, 11]]
    (reference,) = open_refs(path).values
    assert reference.bounds == ((0, 0), (4, 3))
    np.testing.assert_array_equal(reference.resolve(), np.arange(12).reshape(4, 3))


def test_points_far_apart_do_not_allocate_what_lies_between(path: Path) -> None:
    side = 2**17
    spots = np.array([[i * (side // 8), side - 1 - i * (side // 9)] for i in range(8)])
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(
            "t", (side, side), dtype="u1", chunks=(256, 256), fillvalue=7
        )
        dataset[tuple(spots[3])] = 42
        space = dataset.id.get_space()
        space.select_elements(spots.astype(np.uint64))
        refs = file.create_dataset("refs", (1,), dtype=h5py.regionref_dtype)
        refs[0] = region_of(dataset, space)
    (reference,) = open_refs(path).values
    tracemalloc.start()
    try:
        values = reference.resolve().values
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert values.tolist() == [7, 7, 7, 42, 7, 7, 7, 7]
    assert peak < 64 << 20
    start, stop = reference.bounds
    assert math.prod(b - a for a, b in zip(start, stop, strict=True)) > 2**33


def test_corners_of_a_huge_dataset_are_a_small_outer_product(path: Path) -> None:
    side = 2**17
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("t", (side, side), dtype="u1", chunks=(256, 256))
        dataset[0, side - 1] = 9
        corners = [((y, x), (1, 1)) for y in (0, side - 1) for x in (0, side - 1)]
        refs = file.create_dataset("refs", (1,), dtype=h5py.regionref_dtype)
        refs[0] = hyperslabs(*corners)(dataset)
    tracemalloc.start()
    try:
        values = open_refs(path).values[0].resolve().values
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert values.tolist() == [[0, 9], [0, 0]]
    assert peak < 64 << 20


def test_a_result_out_of_proportion_is_refused_before_it_is_made(path: Path) -> None:
    side = 2**17
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("t", (side, side), dtype="u1", chunks=(256, 256))
        refs = file.create_dataset("refs", (1,), dtype=h5py.regionref_dtype)
        refs[0] = dataset.regionref[...]
    (reference,) = open_refs(path).values
    assert reference.shape == (side, side)
    tracemalloc.start()
    try:
        with pytest.raises(xref.XrefError, match="large_results"):
            reference.resolve().load()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


def test_targets_of_several_number_types_meet_in_one_that_holds_both(path: Path) -> None:
    with h5py.File(path, "w") as file:
        small = file.create_dataset("small", data=np.arange(10, dtype="i2").reshape(2, 5))
        large = file.create_dataset("large", data=np.arange(10, dtype=">f8") + 0.5)
        refs = file.create_dataset("refs", (3,), dtype=h5py.regionref_dtype)
        refs[0], refs[1] = small.regionref[0, 1:3], large.regionref[4:7]
        refs[2] = small.regionref[:, 2]
    ragged = open_refs(path).h5ref.resolve("ragged")
    assert values_of(ragged).dtype == np.float64
    assert values_of(ragged).values.tolist() == [1, 2, 4.5, 5.5, 6.5, 2, 7]


def test_a_reference_to_a_dataset_without_a_name_resolves(path: Path) -> None:
    make = hyperslabs(((1,), (3,)))
    write_references(path, np.arange(5), [make])
    with h5py.File(path) as file:
        header = h5o.get_info(file["t"].id).addr
    # One more reference than links, so that HDF5 keeps the object when it is unlinked.
    with open(path, "r+b") as raw:
        raw.seek(header + 4)
        raw.write((2).to_bytes(4, "little"))
    with h5py.File(path, "a") as file:
        del file["t"]
    (reference,) = open_refs(path).values
    assert reference.path is None
    assert reference.kind == "dataset"
    assert reference.resolve().values.tolist() == [1, 2, 3]


def test_an_empty_reference_dataset_resolves_to_nothing(path: Path) -> None:
    write_references(path, np.arange(3), [])
    refs = open_refs(path)
    assert refs.shape == (0,)
    assert refs.h5ref.resolve().size == 0
    assert values_of(refs.h5ref.resolve("ragged")).size == 0
