"""References bound to their targets: fitted selections and the shapes of results.

In: a `ReferenceArray` or the columns of references. Out: `BoundReferences`. The metadata of
each target are read once, and the selections are fitted to the present extent of the target.
No values are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xref import objects
from xref.arrays import BoolArray, IntArray, ragged_ranges
from xref.engine import Axis
from xref.errors import DanglingReferenceError, WrongTargetError, naming
from xref.hdf5 import DatasetLayout
from xref.objects import CF_ATTRIBUTES, StoredObject
from xref.reading import SmallDatasets, select_small_datasets
from xref.references import (
    ReferenceArray,
    ReferenceColumns,
    TargetRows,
    distinct_targets,
    split_targets,
    target_rows,
)
from xref.selections import SelectionKind, SelectionTable, empty_table
from xref.storage import check_unchanged

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]
Rows: TypeAlias = npt.NDArray[np.intp]
"""Row numbers of references, in C order."""

MIN_BULK_TARGETS = 8
"""Fewer targets are opened one by one: with four both ways take as long, with eight columns
are faster by a third (benchmarks/small.py, limits)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoundDataset:
    """The references that point at one dataset, fitted to its extent."""

    dataset: StoredObject
    facts: objects.DatasetMetadata
    rows: Rows | slice
    regions: SelectionTable

    @property
    def first_row(self) -> int:
        """The first reference to the dataset."""
        return 0 if isinstance(self.rows, slice) else int(self.rows[0])

    def describe(self) -> str:
        """Name the dataset in a message."""
        return self.dataset.named

    @property
    def layout(self) -> DatasetLayout:
        """Shape, type and storage of the dataset."""
        return self.facts.layout


@dataclass(frozen=True, slots=True, eq=False)
class BoundReferences:
    """References with the shapes of their results."""

    datasets: tuple[BoundDataset, ...]  # targets that are read one by one
    small_by_file: tuple[SmallDatasets, ...]  # targets that are read together, one item a file
    ndim: IntArray  # (n,), axes of each result; 0 for null
    shape: IntArray  # (n, widest), filled up with 1; null rows are all 0
    null: BoolArray  # (n,)
    references: ReferenceArray
    rows: Rows | None = None  # (n,), rows of `references`; None: all of them

    def label(self) -> str:
        """Name the references in a message."""
        return self.references.label

    def describe(self, row: int) -> str:
        """Name a reference and its target in a message, by its row among the results."""
        row = row if self.rows is None else int(self.rows[row])
        return f"{self.references.describe(row)} ({self.references.element(row).text})"

    @property
    def targets(self) -> tuple[BoundDataset, ...]:
        """All targets one by one, in the order of their first references.

        The small datasets among them are opened one by one, which takes long for many.
        `xref.resolving.binding.BoundVariable` lists targets in the same order.
        """
        small = [t for datasets in self.small_by_file for t in open_small(datasets)]
        return tuple(sorted([*self.datasets, *small], key=lambda t: t.first_row))

    @property
    def n_targets(self) -> int:
        """Number of targets."""
        return len(self.datasets) + sum(map(len, self.small_by_file))

    @property
    def first_target(self) -> StoredObject | None:
        """One target, to name it in messages."""
        if self.datasets:
            return self.datasets[0].dataset
        for small in self.small_by_file:
            return StoredObject(small.location, int(small.address[small.which[0]]))
        return None

    @property
    def ranks(self) -> set[int]:
        """The numbers of axes of the targets."""
        ranks = {len(t.layout.shape) for t in self.datasets}
        return ranks.union(*(np.unique(s.ndim).tolist() for s in self.small_by_file))

    @property
    def npoints(self) -> IntArray:
        """Elements of each result, shape ``(n,)``."""
        result: IntArray = self.shape.prod(axis=1)
        return result

    def shapes_of(self, rows: Rows) -> BoundReferences:
        """Return the shapes of some results, without their targets."""
        columns = {name: getattr(self, name)[rows] for name in ("ndim", "shape", "null")}
        rows = rows if self.rows is None else self.rows[rows]
        return replace(self, datasets=(), small_by_file=(), rows=rows, **columns)

    def restrict_to(self, rows: Rows) -> BoundReferences:
        """Return the references bound only to the targets of ``rows``.

        ``rows`` holds every reference to these targets. Row numbers do not change.
        """
        selected = np.zeros(len(self.ndim), dtype=bool)
        selected[rows] = True
        datasets = tuple(t for t in self.datasets if selected[t.first_row])
        small = restrict_small(self.small_by_file, selected)
        return replace(self, datasets=datasets, small_by_file=small)

    def valid_elements(self, positions: Sequence[IntArray]) -> BoolArray:
        """Return a mask of the elements that have data, if all results are padded alike.

        ``positions`` are along each axis of the padded results. The mask has the shape
        ``(n, len(positions[0]), ...)``, and is False for null references.
        """
        lengths = [len(p) for p in positions]
        mask = np.ones((len(self.ndim), *lengths), dtype=bool)
        # ``shape`` may have fewer columns if all references are null.
        for axis, along in enumerate(positions[: self.shape.shape[1]]):
            others = tuple(k + 1 for k in range(len(lengths)) if k != axis)
            inside: Array = along < self.shape[:, axis : axis + 1]
            mask &= np.expand_dims(inside, others)
        mask[self.null] = False
        return mask


def restrict_small(
    small_by_file: Sequence[SmallDatasets], selected: BoolArray
) -> tuple[SmallDatasets, ...]:
    """Return small datasets with the selected references only."""
    restricted = []
    for small in small_by_file:
        kept = np.flatnonzero(selected[small.rows])
        if len(kept):
            rows, which = small.rows[kept], small.which[kept]
            restricted.append(replace(small, rows=rows, which=which))
    return tuple(restricted)


def open_small(small: SmallDatasets) -> Iterator[BoundDataset]:
    """Open each of many small datasets by itself."""
    cuts = np.searchsorted(small.which, np.arange(len(small) + 1))
    for k, address in enumerate(small.address.tolist()):
        rows = small.rows[cuts[k] : cuts[k + 1]]
        if not len(rows):
            continue
        dataset = StoredObject(small.location, address)
        facts = dataset.metadata
        regions = _select_all(facts.layout.shape, len(rows))
        yield BoundDataset(dataset=dataset, facts=facts, rows=rows, regions=regions)


def _select_all(extent: Shape, n: int) -> SelectionTable:
    """Return n rows that select all elements of an extent."""
    return empty_table(n, 0, SelectionKind.ALL).bound_to(extent, str)


# One row for each of many targets that have the same shape.
_select_all_once = lru_cache(maxsize=256)(_select_all)


def bind_references(array: ReferenceArray) -> BoundReferences:
    """Read the metadata of each target once and fit the references to it.

    Object references select all elements.

    Raises
    ------
    SelectionError
        If a region does not fit the present extent of its target.
    DanglingReferenceError, WrongTargetError
        If there is no object at the address of a target, or no dataset.
    """
    references, describe = array.columns, array.describe
    small_by_file, groups, null = _take_small(references)
    datasets = []
    for k, (dataset, rows) in enumerate(groups):
        if k % objects.REFERENCE_BATCH == 0:
            batch = groups[k : k + objects.REFERENCE_BATCH]
            objects.cache_h5py_references([stored.address for stored, _ in batch])

        def row_label(i: int, rows: Rows | slice = rows) -> str:
            return describe(i if isinstance(rows, slice) else int(rows[i]))

        try:
            with naming(lambda: row_label(0)):
                facts = dataset.metadata
        except (DanglingReferenceError, WrongTargetError) as error:
            raise type(error)(
                f"{error}; .h5ref.table() shows the targets of all references, "
                ".h5ref.items() resolves them one by one"
            ) from error
        extent = facts.layout.shape
        if references.regions is not None:
            regions = references.regions.take(rows).bound_to(extent, row_label, dataset)
        else:
            n = len(references) if isinstance(rows, slice) else len(rows)
            regions = _select_all_once(extent, 1) if n == 1 else _select_all(extent, n)
        datasets.append(BoundDataset(dataset=dataset, facts=facts, rows=rows, regions=regions))
    with naming(lambda: array.label):  # a union may be too large to count
        ndim, shape = _result_shapes(references, datasets, small_by_file)
    return BoundReferences(tuple(datasets), tuple(small_by_file), ndim, shape, null, array)


def _result_shapes(
    references: ReferenceColumns,
    datasets: Sequence[BoundDataset],
    small_by_file: Sequence[SmallDatasets],
) -> tuple[IntArray, IntArray]:
    """Return the columns ``ndim`` and ``shape`` of `BoundReferences`."""
    ranks = [len(t.layout.shape) for t in datasets] + [s.shape.shape[1] for s in small_by_file]
    widest = max(ranks, default=1) or 1
    ndim = np.zeros(len(references), dtype=np.int64)
    shape = np.zeros((len(references), widest), dtype=np.int64)
    for target in datasets:
        if references.regions is None:
            extent = target.layout.shape
            ndim[target.rows] = len(extent)
            shape[target.rows] = extent + (1,) * (widest - len(extent))
            continue
        axes, sizes = target.regions.result_shapes()
        ndim[target.rows] = axes
        shape[target.rows] = 1
        shape[target.rows, : sizes.shape[1]] = sizes
    for small in small_by_file:
        ndim[small.rows] = small.ndim[small.which]
        shape[small.rows] = 1
        shape[small.rows, : small.shape.shape[1]] = small.shape[small.which]
    return ndim, shape


def _take_small(
    references: ReferenceColumns,
) -> tuple[list[SmallDatasets], list[TargetRows], BoolArray]:
    """Return small datasets that are read together by file, other targets, and a null mask."""
    is_few = references.regions is not None or len(references) < MIN_BULK_TARGETS
    if is_few or len(found := distinct_targets(references)) < MIN_BULK_TARGETS:
        return [], *split_targets(references)
    small_by_file, taken = [], np.zeros(len(found), dtype=bool)
    for file in np.unique(found.file).tolist():
        targets = np.flatnonzero(found.file == file)
        location = references.files[file]
        picked, small = select_small_datasets(location, found.address[targets], CF_ATTRIBUTES)
        if small is None:
            continue
        picked = targets[picked]
        taken[picked] = True
        counts = np.diff(found.cut)[picked]
        rows = found.rows[ragged_ranges(found.cut[picked], counts)]
        which = np.repeat(np.arange(len(picked)), counts)
        small_by_file.append(replace(small, rows=rows, which=which))
    rest = np.flatnonzero(~taken).tolist()
    return small_by_file, [target_rows(references, found, k) for k in rest], found.null


def bind_unchanged(
    references: ReferenceArray, known: BoundReferences | None = None
) -> BoundReferences:
    """Bind references after a check that their files are unchanged since they were opened.

    ``known`` is an earlier result for the same references in this process.
    """
    for location in references.columns.used_files():
        check_unchanged(location)
    return bind_references(references) if known is None else known


def index_references(references: ReferenceArray, key: tuple[Axis, ...]) -> ReferenceArray:
    """Index references by integers, slices and arrays, each for its own axis."""
    axes = zip(key, references.shape, strict=True)
    if all(isinstance(k, slice) and k.indices(n) == (0, n, 1) for k, n in axes):
        return references
    if all(isinstance(k, int | np.integer | slice) for k in key):
        picked: ReferenceArray = references[(*key, Ellipsis)]
        return picked
    for axis in range(len(key) - 1, -1, -1):
        references = references[(slice(None),) * axis + (key[axis], Ellipsis)]
    return references
