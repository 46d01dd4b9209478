"""Every way of resolving references gives the values that h5py reads one at a time (`oracle`).

Hypothesis generates whole files.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import oracle
import pytest
import strategies
import xarray as xr
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from oracle import Answer, assert_same, values_of
from strategies import READERS, Drawn

from xref import NullReferenceError
from xref.errors import UnsupportedError

# Whole files are large values for hypothesis to generate.
health = [HealthCheck.too_slow, HealthCheck.data_too_large]

thorough = settings(suppress_health_check=health)

# Each example opens the file several times.
brief = settings(thorough, max_examples=settings.default.max_examples // 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for the files of all examples; each file has a new name."""
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
        """Concatenate the values of some rows."""
        parts = [a.values for a in self.expected(rows)]
        return np.concatenate(parts) if parts else np.empty(0)


@given(drawn=strategies.files())
@thorough
def test_each_reference_has_the_kind_bounds_and_values_of_h5py(
    drawn: Drawn, folder: Path
) -> None:
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
def test_ragged_values_are_the_concatenated_results(
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
def test_stacking_needs_equal_shapes_and_names_different_ones(
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
def test_stacked_boxes_are_equal_for_every_reader_chunking_and_index(
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
                    assert drawn.why_not_direct
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
            if h5py.check_vlen_dtype(whole.dtype) is str and reader != "direct":
                # xarray makes NumPy text of what is read when the file is opened.
                whole = np.asarray(file["t0"].asstr()[()]).astype(str)
        try:
            ragged = dataset["refs"].h5ref.resolve("ragged", on_null="fill").compute()
            target = dataset["t0"].load()
        except UnsupportedError:
            assert reader == "direct"
            assert drawn.why_not_direct
            return
        assert_same(values_of(ragged), case.flat(case.live))
        assert_same(target, whole)
