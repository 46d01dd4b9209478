"""What is known of each selected element: its position, and coordinate values at the position.

In: bound references, and a range of elements of each result, in the order of the values. Out:
one value for each element. Positions come from the selections alone; the values of a coordinate
are read where elements are, each once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from xref.arrays import IntArray, row_offsets
from xref.engine import Decoders
from xref.errors import ResultTooLargeError
from xref.objects import StoredObject
from xref.references import DecodeOptions, ReferenceArray, ReferenceColumns
from xref.resolving.bound_references import Array, BoundReferences, bind_references
from xref.resolving.lazy_results import CommonDecoding, RaggedArray
from xref.selections import (
    SelectionKind,
    SelectionTable,
    box_table,
    concat_at,
    element_positions,
    empty_table,
    project,
)
from xref.storage import FileLocation

NO_AXIS = -1
"""The position along an axis that a target does not have."""


@dataclass(frozen=True, slots=True, eq=False)
class TargetNumbers:
    """A number for each target of some references."""

    files: tuple[FileLocation, ...]
    begin: IntArray  # (files + 1,), first row of each file
    address: npt.NDArray[np.uint64]  # (t,), ascending in each file
    number: IntArray  # (t,)

    @classmethod
    def of_parts(
        cls, parts: Iterable[tuple[FileLocation, npt.NDArray[np.uint64], IntArray]]
    ) -> TargetNumbers:
        """Join the addresses and numbers of targets, with the files that hold the targets."""
        parts = list(parts)
        files = {location.token: location for location, _, _ in parts}
        row_of = {token: row for row, token in enumerate(files)}
        file = [np.full(len(a), row_of[where.token]) for where, a, _ in parts]
        address = np.concatenate([a for _, a, _ in parts])
        order = np.lexsort((address, np.concatenate(file)))
        begin = np.searchsorted(np.concatenate(file)[order], np.arange(len(files) + 1))
        number = np.concatenate([n for _, _, n in parts])
        return cls(tuple(files.values()), begin, address[order], number[order])

    def rows(self, bound: BoundReferences) -> IntArray:
        """Return the number of the target of each reference, shape ``(n,)``; -1 for null."""
        out = np.full(len(bound.ndim), -1, dtype=np.int64)
        row_of = {location.token: row for row, location in enumerate(self.files)}

        def find(location: FileLocation, address: npt.NDArray[np.uint64]) -> IntArray:
            row = row_of[location.token]
            rows = slice(int(self.begin[row]), int(self.begin[row + 1]))
            found: IntArray = self.number[rows][np.searchsorted(self.address[rows], address)]
            return found

        for t in bound.datasets:
            out[t.rows] = find(t.dataset.location, np.array([t.dataset.address], np.uint64))
        for small in bound.small_by_file:
            out[small.rows] = find(small.location, small.address)[small.which]
        out[bound.null] = -1
        return out

    def __dask_tokenize__(self) -> Any:
        columns = self.begin.tobytes(), self.address.tobytes(), self.number.tobytes()
        return [location.token for location in self.files], columns


@dataclass(frozen=True, slots=True, eq=False)
class Elements:
    """Elements ``first:first + count`` of each of n results, in the order of the values."""

    bound: BoundReferences
    regions: SelectionTable  # n rows, fitted to the targets
    extent: IntArray  # (n, widest), of the target; -1 behind its axes
    first: IntArray  # (n,)
    count: IntArray  # (n,)

    @classmethod
    def of_results(
        cls,
        bound: BoundReferences,
        first: IntArray | None = None,
        count: IntArray | None = None,
    ) -> Elements:
        """Return all elements of the results of references, or those in a range of each."""
        n, width = bound.shape.shape
        extent = np.full((n, width), -1, dtype=np.int64)
        null = np.flatnonzero(bound.null)
        tables, rows = [empty_table(len(null), width)], [null]
        for t in bound.datasets:
            tables.append(t.regions)
            rows.append(np.arange(n)[t.rows])
            extent[t.rows, : len(t.layout.shape)] = t.layout.shape
        for small in bound.small_by_file:
            shape = small.shape[small.which]
            is_axis = np.arange(shape.shape[1]) < small.ndim[small.which][:, None]
            extent[small.rows, : shape.shape[1]] = np.where(is_axis, shape, -1)
            tables.append(box_table(np.zeros_like(shape), shape))
            rows.append(small.rows)
        first = np.zeros(n, dtype=np.int64) if first is None else first
        count = bound.npoints if count is None else count
        return cls(bound, concat_at(tables, rows), extent, first, count)

    @classmethod
    def along(cls, bound: BoundReferences, axis: int) -> Elements:
        """Return what results of full rank select along one axis, as results of one axis."""
        elements = cls.of_results(bound)
        regions = project(elements.regions, [axis])
        count = np.where(bound.null, 0, bound.shape[:, axis])
        extent = elements.extent[:, axis : axis + 1]
        return cls(bound, regions, extent, elements.first, count)

    @property
    def n(self) -> int:
        """Number of elements."""
        return int(self.count.sum())

    def positions(self, axis: IntArray) -> IntArray:
        """Return where the elements lie along an axis of each target, `NO_AXIS` without it.

        ``axis``, shape ``(n,)``, may be beyond the axes of a target.
        """
        width = max(self.extent.shape[1], 1)
        known = (axis >= 0) & (axis < width)
        has_axis = known & (self.extent[np.arange(len(axis)), np.where(known, axis, 0)] >= 0)
        axis = np.where(has_axis, axis, -1)
        return element_positions(self.regions, axis, self.first, self.count)


class ElementSource(Protocol):
    """Gives one value for each of some elements."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        ...

    def __call__(self, elements: Elements) -> Array:
        """Return the values, 1-D."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """The position of each element along one axis of its target."""

    axes: tuple[int, ...]  # one for all targets, or one for each number of `numbers`
    numbers: TargetNumbers | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of positions."""
        return np.dtype(np.int64)

    def __call__(self, elements: Elements) -> Array:
        """Return the positions, `NO_AXIS` for targets without the axis."""
        if self.numbers is None:
            axis = np.full(len(elements.count), self.axes[0])
        else:
            axis = np.array([*self.axes, -1])[self.numbers.rows(elements.bound)]
        return elements.positions(axis)

    def __dask_tokenize__(self) -> Any:
        numbers = None if self.numbers is None else self.numbers.__dask_tokenize__()
        return type(self).__name__, self.axes, numbers


@dataclass(frozen=True, slots=True, eq=False)
class CoordinateDataset:
    """A dataset of a coordinate, and the axes of a target along which it lies."""

    dataset: StoredObject
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CoordinateValues:
    """The value of a coordinate at each element, from the dataset of its own target."""

    datasets: tuple[CoordinateDataset, ...]
    shapes: IntArray  # (datasets, widest), filled up with 1
    numbers: TargetNumbers  # row of `datasets` for each target
    decoders: Decoders
    read_dtype: np.dtype[Any]  # that holds the decoded values of all datasets
    options: DecodeOptions
    dtype: np.dtype[Any]  # of the values; differs for elements that are arrays

    def __call__(self, elements: Elements) -> Array:
        """Read the values, each stored value once."""
        row = self.numbers.rows(elements.bound)
        key, shape, begin = self._stored_elements(elements, row)
        wanted, which = distinct_numbers(key, int(begin[-1]))
        cuts = np.searchsorted(wanted, begin)
        size = np.diff(cuts)
        used = np.flatnonzero(size)
        rest = wanted - np.repeat(begin[:-1], size)
        coords = np.zeros((len(wanted), shape.shape[1]), dtype=np.int64)
        for axis in range(shape.shape[1] - 1, -1, -1):
            along = np.repeat(shape[:, axis], size)
            rest, coords[:, axis] = rest // along, rest % along
        return self._read(used, coords, cuts[used], size[used])[which]

    def _stored_elements(
        self, elements: Elements, row: IntArray
    ) -> tuple[IntArray, IntArray, IntArray]:
        """Return the number of the stored value of each element.

        The numbers count the elements of all datasets, one dataset after the other. The other
        results are the shape of each dataset (1 behind its axes, and for datasets that have no
        elements here), and its first number.
        """
        axes = filled_rows([d.axes for d in self.datasets], -1)
        width = axes.shape[1]
        shape = np.ones(axes.shape, dtype=np.int64)
        used = row[row >= 0]
        shape[used] = self.shapes[used]
        if shape.astype(float).prod(axis=1).sum() >= 2**62:
            raise ResultTooLargeError(
                f"{self.datasets[0].dataset}: the coordinate has too many elements, "
                f"{tuple(shape.max(axis=0).tolist())}, to find those of {elements.n} samples; "
                "resolve with coords=False"
            )
        begin = row_offsets(shape.prod(axis=1))
        key = np.repeat(np.where(row >= 0, begin[row], 0), elements.count)
        weight = np.ones(len(self.datasets), dtype=np.int64)
        for k in range(width - 1, -1, -1):
            axis = np.where(row >= 0, axes[row, k], -1)
            positions = np.maximum(elements.positions(axis), 0)
            key += positions * np.repeat(weight[row], elements.count)
            weight = weight * shape[:, k]
        return key, shape, begin

    def _read(self, used: IntArray, coords: IntArray, first: IntArray, size: IntArray) -> Array:
        """Read elements of some datasets, those of each dataset as points."""
        datasets = [self.datasets[k].dataset for k in used.tolist()]
        rank = np.array([len(self.datasets[k].axes) for k in used.tolist()], dtype=np.int64)
        kind = np.where(rank > 0, SelectionKind.POINTS, SelectionKind.ALL).astype(np.uint8)
        regions = empty_table(len(used), coords.shape[1]).replace(
            kind=kind, rank=rank, first=first, size=np.where(rank > 0, size, 0), points=coords
        )
        columns = ReferenceColumns.of_objects(datasets, regions)
        references = ReferenceArray(
            (len(used),), kind="region", columns=columns, options=self.options
        )
        bound = bind_references(references)
        common = CommonDecoding(self.read_dtype, decoders=self.decoders)
        values = RaggedArray(references, size, common, bound)
        return values.read((slice(None),) * len(values.shape))

    def __dask_tokenize__(self) -> Any:
        datasets = [(d.dataset.token, d.axes) for d in self.datasets]
        numbers, decoders = (x.__dask_tokenize__() for x in (self.numbers, self.decoders))
        return type(self).__name__, datasets, numbers, decoders, str(self.dtype)


def filled_rows(rows: Sequence[Sequence[int]], fill: int) -> IntArray:
    """Return rows of different lengths as one table, filled up behind each row."""
    width = max(map(len, rows), default=0)
    table = [(*row, *(fill,) * (width - len(row))) for row in rows]
    return np.array(table, dtype=np.int64).reshape(len(rows), width)


def distinct_numbers(numbers: IntArray, limit: int) -> tuple[IntArray, IntArray]:
    """Return the distinct numbers, ascending, and the row of each number among them.

    The numbers are from 0 to ``limit`` (exclusive).
    """
    if limit > 4 * len(numbers) + (1 << 16):
        distinct, which = np.unique(numbers, return_inverse=True)
        return distinct, which.reshape(-1)
    present = np.zeros(limit, dtype=bool)
    present[numbers] = True
    row = np.cumsum(present) - 1
    return np.flatnonzero(present), row[numbers]
