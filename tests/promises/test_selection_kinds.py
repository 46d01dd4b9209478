"""Each kind of selection, for each rank and layout, gives the values of h5py (`oracle`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import oracle
import pytest
import strategies
import xarray as xr
from h5py import h5s
from oracle import Answer, assert_same
from strategies import (
    READERS,
    Make,
    create_dataset,
    distinct_values,
    everything,
    hyperslabs,
    listed_points,
    nothing,
    region_of,
    write_references,
    write_regions,
)

from xref.errors import UnsupportedError

pytestmark = pytest.mark.sampled(5)

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
        """Compare with the oracle; ``shape`` is the documented shape of the result."""
        with h5py.File(self.path, "w") as file:
            dtype = np.dtype("<i4")
            dataset = create_dataset(file, "t", self.shape, dtype, self.layout, **self.options)
            dataset[...] = distinct_values(self.shape, dtype)
            region = make(dataset)
            expected = oracle.answer(dataset, region)
            write_references(file, "refs", [region, region])
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


def test_a_slice_keeps_its_rank(table: Table) -> None:
    shape = tuple(n - 1 for n in table.shape)
    table.check(lambda d: d.regionref[tuple(slice(1, n) for n in d.shape)], shape)


def test_a_strided_slice_keeps_its_rank(table: Table) -> None:
    shape = tuple(-(-n // 2) for n in table.shape)
    table.check(lambda d: d.regionref[(slice(None, None, 2),) * d.ndim], shape)


def test_a_slice_with_strides_wider_than_a_chunk_keeps_its_rank(table: Table) -> None:
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


def test_an_integer_index_keeps_its_axis_with_length_one(table: Table) -> None:
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

    values = distinct_values(table.shape, np.dtype("<i4"))
    expected = [values[tuple(spot)] for spot in listed]
    assert table.check(listed_points(listed), (5,)).values.tolist() == expected


def test_a_boolean_mask_is_flat(table: Table) -> None:
    mask = distinct_values(table.shape, np.dtype("i8")) % 3 == 0
    expected = table.check(lambda d: d.regionref[mask])
    assert len(expected.values) == mask.sum()


def test_an_all_selection_has_the_shape_of_the_dataset(table: Table) -> None:
    table.check(everything, table.shape)


def test_a_none_selection_has_length_zero_along_every_axis(table: Table) -> None:
    table.check(nothing, (0,) * len(table.shape))


@pytest.mark.parametrize("layout", ["contiguous", "compact"])
@pytest.mark.parametrize("selects", ["all", "none"])
def test_a_scalar_dataset_has_all_and_none_selections(
    tmp_path: Path, layout: str, selects: str
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = create_dataset(file, "t", (), np.dtype("f8"), layout)
        dataset[...] = 2.5
        region = (everything if selects == "all" else nothing)(dataset)
        write_references(file, "refs", [region], ())
    with xr.open_dataset(tmp_path / "a.h5", engine="h5ref") as dataset:
        resolved = dataset["refs"].values[()].resolve()
        assert resolved.values.ravel().tolist() == ([2.5] if selects == "all" else [])


def test_a_square_without_one_element_is_flat(
    path: Path, open_refs: Callable[..., xr.DataArray]
) -> None:
    make = hyperslabs(((0, 0), (4, 4)), ((2, 1), (1, 1)), op=h5s.SELECT_NOTB)
    write_regions(path, {"t": np.arange(16).reshape(4, 4)}, {"refs": [("t", make)]})
    (reference,) = open_refs(path).values
    assert reference.shape == (15,)
    assert reference.resolve().values.tolist() == [i for i in range(16) if i != 9]
