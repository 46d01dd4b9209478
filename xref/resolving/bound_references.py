"""References bound to their targets: the selections and the shapes of results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from xref import objects
from xref.arrays import IntArray, ragged_ranges
from xref.engine import CF_ATTRIBUTES
from xref.errors import (
    DanglingReferenceError,
    WrongTargetError,
)
from xref.hdf5 import DatasetLayout
from xref.reading import SmallDatasets, select_small_datasets
from xref.references import (
    ReferenceColumns,
    TargetRows,
    distinct_targets,
    split_targets,
    target_rows,
)
from xref.selections import SelectionKind, SelectionTable, empty_table
from xref.storage import FileLocation

MIN_BULK_TARGETS = 8
"""Fewer targets are looked at one by one: with four both ways take as long, with eight
columns are faster by a third (benchmarks/small.py, limits)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoundDataset:
    """The references that point at one dataset, fitted to its extent."""

    location: FileLocation
    address: int
    facts: objects.DatasetMetadata
    rows: npt.NDArray[np.intp] | slice
    regions: SelectionTable

    @property
    def first_row(self) -> int:
        """The first reference to the dataset."""
        return 0 if isinstance(self.rows, slice) else int(self.rows[0])

    def describe(self) -> str:
        """Name the dataset in a message."""
        return _described(self.location, self.address)

    @property
    def layout(self) -> DatasetLayout:
        """Shape, type and storage of the dataset."""
        return self.facts.layout


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoundReferences:
    """References with the shapes that resolving them gives."""

    single: tuple[BoundDataset, ...]
    small: tuple[SmallDatasets, ...]
    ndim: IntArray  # (n,), axes of each result; 0 for null
    shape: IntArray  # (n, widest), filled up with 1; null rows are all 0
    null: npt.NDArray[np.bool_]  # (n,)

    @property
    def targets(self) -> tuple[BoundDataset, ...]:
        """All targets one by one, which takes long where many of them are small.

        In the order of their first references, as those of
        `xref.resolving.binding.BoundVariable` are.
        """
        small = [t for many in self.small for t in _split(many)]
        return tuple(sorted([*self.single, *small], key=lambda t: t.first_row))

    @property
    def n_targets(self) -> int:
        """Number of targets."""
        return len(self.single) + sum(len(many) for many in self.small)

    @property
    def first_target(self) -> tuple[FileLocation, int] | None:
        """File and address of one target, to name it in messages."""
        if self.single:
            return self.single[0].location, self.single[0].address
        for many in self.small:
            return many.location, int(many.address[many.which[0]])
        return None

    @property
    def layouts(self) -> Iterator[DatasetLayout]:
        """Layouts of the targets; of small ones, one layout of each kind."""
        yield from (t.layout for t in self.single)
        yield from (facts.layout for many in self.small for facts in many.kinds)

    @property
    def ranks(self) -> set[int]:
        """Numbers of axes that targets have."""
        ranks = {len(t.layout.shape) for t in self.single}
        return ranks.union(*(np.unique(many.ndim).tolist() for many in self.small))

    def with_targets(self, targets: Sequence[BoundDataset], shape: IntArray) -> BoundReferences:
        """Return the references bound to other regions of their targets, of other shapes."""
        return replace(self, single=tuple(targets), small=(), shape=shape)

    @property
    def npoints(self) -> IntArray:
        """Elements of each result, shape ``(n,)``."""
        result: IntArray = self.shape.prod(axis=1)
        return result

    def only(self, rows: npt.NDArray[np.intp]) -> BoundReferences:
        """Return the same references bound to the targets of some rows only.

        ``rows`` are all references to these targets. Rows still count all references.
        """
        own = np.zeros(len(self.ndim), dtype=bool)
        own[rows] = True
        single = tuple(t for t in self.single if own[t.first_row])
        return replace(self, single=single, small=_only_small(self.small, own, True))

    def valid(self, positions: Sequence[IntArray]) -> npt.NDArray[np.bool_]:
        """Return where results that lie in cells of one shape have data.

        Parameters
        ----------
        positions : sequence of numpy.ndarray
            The positions looked at along each axis of the cells.

        Returns
        -------
        numpy.ndarray
            Shape ``(n, len(positions[0]), ...)``; False throughout for null.
        """
        lengths = [len(p) for p in positions]
        mask = np.ones((len(self.ndim), *lengths), dtype=bool)
        # Narrower than the cells where all references are null.
        for axis, at in enumerate(positions[: self.shape.shape[1]]):
            spread = [1] * len(lengths)
            spread[axis] = len(at)
            inside = at < self.shape[:, axis : axis + 1]
            mask &= inside.reshape(len(mask), *spread)
        mask[self.null] = False
        return mask


def _split(many: SmallDatasets) -> Iterator[BoundDataset]:
    """Look at each of many small datasets by itself."""
    cuts = np.searchsorted(many.which, np.arange(len(many) + 1))
    for k, address in enumerate(many.address.tolist()):
        rows = many.rows[cuts[k] : cuts[k + 1]]
        if not len(rows):
            continue
        facts = objects.dataset_facts(many.location, address)
        regions = empty_table(len(rows), 0, SelectionKind.ALL).fit(facts.layout.shape, str)
        yield BoundDataset(
            location=many.location, address=address, facts=facts, rows=rows, regions=regions
        )


def bind_references(
    references: ReferenceColumns, describe: Callable[[int], str]
) -> BoundReferences:
    """Look at every target once and fit the references to it.

    Object references select everything.

    Parameters
    ----------
    references : References
        n references to datasets.
    describe : callable
        Names reference i in errors.

    Raises
    ------
    SelectionError
        If a region does not fit its target's current extent.
    DanglingReferenceError, WrongTargetError
        If there is no object at a target's address, or no dataset.
    """
    n = len(references)
    small, groups, null = _split_small(references)
    targets = []
    for k, (location, address, rows) in enumerate(groups):
        if k % objects.REFERENCE_BATCH == 0:
            objects.cache_h5py_references(
                [a for _, a, _ in groups[k : k + objects.REFERENCE_BATCH]]
            )

        def name_row(i: int, rows: npt.NDArray[np.intp] | slice = rows) -> str:
            return describe(i if isinstance(rows, slice) else int(rows[i]))

        try:
            facts = objects.dataset_facts(location, address)
        except (DanglingReferenceError, WrongTargetError) as error:
            raise type(error)(
                f"{name_row(0)}: {error}; .h5ref.table() shows what all of them "
                "point at, .h5ref.items() resolves one by one"
            ) from error
        extent = facts.layout.shape
        count = n if isinstance(rows, slice) else len(rows)
        if references.regions is None:
            targets.append(
                BoundDataset(
                    location=location,
                    address=address,
                    facts=facts,
                    rows=rows,
                    regions=(
                        _whole(extent)
                        if count == 1
                        else empty_table(count, 0, SelectionKind.ALL).fit(extent, str)
                    ),
                )
            )
            continue
        regions = references.regions.take(rows)
        fitted = regions.fit(extent, name_row)
        targets.append(
            BoundDataset(
                location=location, address=address, facts=facts, rows=rows, regions=fitted
            )
        )
    ranks = [len(t.layout.shape) for t in targets] + [many.shape.shape[1] for many in small]
    widest = max(ranks, default=1) or 1
    ndim = np.zeros(n, dtype=np.int64)
    shape = np.zeros((n, widest), dtype=np.int64)
    for target in targets:
        if references.regions is None:
            extent = target.layout.shape
            ndim[target.rows] = len(extent)
            shape[target.rows] = extent + (1,) * (widest - len(extent))
            continue
        axes, sizes = target.regions.result_shapes()
        ndim[target.rows] = axes
        shape[target.rows] = 1
        shape[target.rows, : sizes.shape[1]] = sizes
    for many in small:
        ndim[many.rows] = many.ndim[many.which]
        shape[many.rows] = 1
        shape[many.rows, : many.shape.shape[1]] = many.shape[many.which]
    return BoundReferences(
        single=tuple(targets), small=tuple(small), ndim=ndim, shape=shape, null=null
    )


def _split_small(
    references: ReferenceColumns,
) -> tuple[list[SmallDatasets], list[TargetRows], npt.NDArray[np.bool_]]:
    """Take out small datasets that references select whole; group the other references.

    Returns
    -------
    small : list of SmallDatasets
        One a file.
    targets : list of (location, address, rows)
    null : numpy.ndarray
        Shape ``(n,)``.
    """
    if references.regions is not None or len(references) < MIN_BULK_TARGETS:
        return [], *split_targets(references)
    found = distinct_targets(references)
    if len(found) < MIN_BULK_TARGETS:
        return [], *split_targets(references)
    small, taken = [], np.zeros(len(found), dtype=bool)
    for file in np.unique(found.file).tolist():
        targets = np.flatnonzero(found.file == file)
        location = references.files[file]
        picked, many = select_small_datasets(location, found.address[targets], CF_ATTRIBUTES)
        if many is None:
            continue
        own = targets[picked]
        taken[own] = True
        counts = np.diff(found.cut)[own]
        rows = found.rows[ragged_ranges(found.cut[own], counts)]
        small.append(replace(many, rows=rows, which=np.repeat(np.arange(len(own)), counts)))
    rest = np.flatnonzero(~taken).tolist()
    return small, [target_rows(references, found, k) for k in rest], found.null


@lru_cache(maxsize=256)
def _whole(extent: tuple[int, ...]) -> SelectionTable:
    """Return one row that selects all of an extent; many small targets share a shape."""
    return empty_table(1, 0, SelectionKind.ALL).fit(extent, str)


def _described(location: FileLocation, address: int) -> str:
    return f"{location.filename}: dataset at {address:#x}"


def _only_small(
    small: Sequence[SmallDatasets], mark: npt.NDArray[Any], wanted: Any
) -> tuple[SmallDatasets, ...]:
    """Return small datasets with those references only that are marked so."""
    found = []
    for many in small:
        picked = np.flatnonzero(mark[many.rows] == wanted)
        if len(picked):
            part = replace(many, rows=many.rows[picked], which=many.which[picked])
            found.append(part)
    return tuple(found)
