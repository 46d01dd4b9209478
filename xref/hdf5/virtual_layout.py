"""Mappings of virtual datasets: from which element of which source an element comes.

In: selections of a virtual dataset and of its sources, as numbers. Out: file, dataset and
coordinates of the source element for each element of the virtual dataset. Nothing here
opens a file.

Source: HDF5 File Format Specification 4.0, "Virtual Storage Layout" in the data
layout message and "Global Heap Block for Virtual Datasets". The n-th element of the
virtual selection is the n-th element of the source selection, both counted in C order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from xref.arrays import FrozenColumns, IntArray, canvas_strides, row_offsets
from xref.errors import CorruptFileError, SelectionError


@dataclass(frozen=True, slots=True)
class Axis:
    """Blocks of indices along one axis."""

    start: int  # first index
    stride: int  # distance between blocks
    block: int  # indices in a block
    n: int | None  # number of indices in all blocks; None if the blocks are unlimited

    def clip(self, extent: int) -> Axis:
        """Return the axis; if it is unlimited, end it at the extent of its dataset."""
        if self.n is not None:
            return self
        # Whole blocks with the gaps behind them, and the part of a block at the end.
        whole, rest = divmod(max(extent - self.start, 0), self.stride)
        return replace(self, n=whole * self.block + min(rest, self.block))

    @property
    def stop(self) -> int | None:
        """One past the last index; None if the axis is unlimited."""
        if not self.n:
            return None if self.n is None else self.start
        return self.index(self.n - 1) + 1

    def index(self, ordinal: int) -> int:
        """Return the index with an ordinal: its place among all indices of the axis."""
        return self.start + ordinal // self.block * self.stride + ordinal % self.block

    def block_numbers(self, index: IntArray) -> IntArray:
        """Return the ordinal of the block at or before each index; -1 before the first."""
        return np.maximum((index - self.start) // self.stride, -1)

    def ordinals(self, index: IntArray) -> IntArray:
        """Return the ordinal of each index; -1 outside the blocks."""
        block, within = np.divmod(index - self.start, self.stride)
        ordinal = block * self.block + within
        inside = (block >= 0) & (within < self.block)
        if self.n is not None:
            inside &= ordinal < self.n
        return np.where(inside, ordinal, -1)

    def indices(self, ordinal: IntArray) -> IntArray:
        """Return the index with each ordinal."""
        block, within = np.divmod(ordinal, self.block)
        return self.start + block * self.stride + within


_UNLIMITED = 2**64 - 1  # H5S_UNLIMITED, as stored


def virtual_axis(start: int, stride: int, count: int, block: int, where: object) -> Axis:
    """Return one axis of a regular hyperslab; count or block may be unlimited.

    Raises
    ------
    CorruptFileError
        If the numbers make no hyperslab.
    """
    n: int | None = count * block
    if _UNLIMITED in (count, block):
        n = None
        # One block without end has the same elements as blocks of one element without end.
        if block == _UNLIMITED:
            stride = block = 1
    if stride < 1 or block < 1 or stride < block != n or max(start, stride, n or 0) >= 2**62:
        raise CorruptFileError(
            f"{where} maps {count} blocks of {block} elements, {stride} apart from {start} on"
        )
    return Axis(start, max(stride, block), block, n)


@dataclass(frozen=True, slots=True)
class RegularHyperslab:
    """A regular hyperslab: all combinations of the indices of its axes."""

    axes: tuple[Axis, ...]

    @property
    def unlimited_axis(self) -> int | None:
        """Number of the unlimited axis; None if all axes end. HDF5 allows at most one."""
        return next((i for i, axis in enumerate(self.axes) if axis.n is None), None)

    def with_limit(self, limited: Axis) -> RegularHyperslab:
        """Return the selection with ``limited`` in place of its unlimited axis."""
        axes = (limited if axis.n is None else axis for axis in self.axes)
        return RegularHyperslab(tuple(axes))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ElementRuns(FrozenColumns):
    """Any other hyperslab: runs of elements along the last axis, in C order."""

    start: IntArray  # (m, ndim)
    length: IntArray  # (m,)

    @property
    def bounds(self) -> tuple[IntArray, IntArray]:
        """Start and stop of the smallest box around all runs."""
        stop = self.start.max(axis=0) + 1
        stop[-1] = (self.start[:, -1] + self.length).max()
        return self.start.min(axis=0), stop


@dataclass(frozen=True, slots=True)
class AllElements:
    """All elements that the dataset has when it is read."""


MappedSelection: TypeAlias = RegularHyperslab | ElementRuns | AllElements


@dataclass(frozen=True, slots=True)
class VirtualMapping:
    """A part of a virtual dataset and the source of its elements.

    If the virtual selection is unlimited and the source selection is not, ``%b`` in filename
    or path stands for the number of a block.
    """

    filename: str  # of the source; "." is the file of the virtual dataset
    dataset: str  # path of the source in its file
    virtual: MappedSelection  # the elements in the virtual dataset
    source: MappedSelection  # the elements in the source

    def bounds(self, extent: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return start and stop, along each axis, of the box around the virtual selection."""
        low, high = [0] * len(extent), list(extent)
        match self.virtual:
            case RegularHyperslab(axes):
                low = [axis.start for axis in axes]
                stops = zip((axis.stop for axis in axes), extent, strict=True)
                high = [n if stop is None else min(stop, n) for stop, n in stops]
            case ElementRuns():
                start, stop = self.virtual.bounds
                low, high = start.tolist(), np.minimum(stop, extent).tolist()
        return low, high

    def blocks(self, coords: IntArray) -> Iterator[tuple[VirtualMapping, npt.NDArray[np.intp]]]:
        """Yield a mapping for each source of the elements, and the rows of its elements.

        Parameters
        ----------
        coords : numpy.ndarray
            Shape ``(n, ndim)``: elements of the virtual dataset.
        """
        numbered = self._numbered_axis
        if numbered is None:
            yield self._of_block(0), np.arange(len(coords))
            return
        dim, axis = numbered
        number = axis.block_numbers(coords[:, dim])
        order = np.argsort(number, kind="stable")
        # Elements before the first block (-1) have no source.
        order = order[np.searchsorted(number[order], 0) :]
        cuts = np.flatnonzero(np.diff(number[order])) + 1
        for rows in np.split(order, cuts) if len(order) else []:
            yield self._of_block(int(number[rows[0]])), rows

    def of_ranges(self, ranges: Sequence[range]) -> Iterator[VirtualMapping]:
        """Yield a mapping for each source that may have elements of a box."""
        numbered = self._numbered_axis
        if numbered is None:
            yield self._of_block(0)
            return
        dim, axis = numbered
        low, high = axis.block_numbers(np.array([ranges[dim][0], ranges[dim][-1]])).tolist()
        for number in range(max(low, 0), high + 1):
            yield self._of_block(number)

    @property
    def _numbered_axis(self) -> tuple[int, Axis] | None:
        """The axis along which each block has a source of its own, and its number; or None."""
        match self.virtual, self.source:
            case RegularHyperslab(axes), source if (
                not isinstance(source, RegularHyperslab) or source.unlimited_axis is None
            ):
                return next(((i, axis) for i, axis in enumerate(axes) if axis.n is None), None)
        return None

    def _of_block(self, number: int) -> VirtualMapping:
        """Return the mapping of one block, or of all blocks if they have one source."""
        virtual, numbered = self.virtual, self._numbered_axis
        if numbered is not None and isinstance(virtual, RegularHyperslab):
            _, axis = numbered
            first = axis.start + number * axis.stride
            virtual = virtual.with_limit(Axis(first, axis.stride, axis.block, axis.block))
        return VirtualMapping(
            _numbered_name(self.filename, number),
            _numbered_name(self.dataset, number),
            virtual,
            self.source,
        )

    def fit(
        self, extent: Sequence[int], source_extent: Sequence[int], where: str
    ) -> VirtualMapping:
        """Return the mapping without unlimited axes, after checks against both datasets.

        Parameters
        ----------
        extent, source_extent : sequence of int
            Current shapes of the virtual dataset and of the source.
        where : str
            Label of the source in errors.

        Raises
        ------
        CorruptFileError
            If the two selections do not match.
        SelectionError
            If the source lacks mapped elements, because it has shrunk. HDF5 2.0 returns
            uninitialized memory for them.
        """
        virtual, source = self.virtual, self.source
        ndim = _rank(source, len(source_extent))
        if ndim != len(source_extent):
            raise CorruptFileError(
                f"{where} has {len(source_extent)} axes; the virtual dataset takes elements "
                f"of {ndim} axes"
            )
        if isinstance(source, RegularHyperslab):
            dim = source.unlimited_axis
            clipped = zip(source.axes, source_extent, strict=True)
            source = RegularHyperslab(tuple(axis.clip(n) for axis, n in clipped))
            # The virtual selection is unlimited too: it ends with the elements of the source.
            if dim is not None and isinstance(virtual, RegularHyperslab):
                n = source.axes[dim].n
                virtual = RegularHyperslab(
                    tuple(replace(a, n=n) if a.n is None else a for a in virtual.axes)
                )
        size, source_size = _size(virtual, extent), _size(source, source_extent)
        if size != source_size or size >= 2**62:
            raise CorruptFileError(
                f"{where} gives {source_size} elements where the virtual dataset takes {size}"
            )
        stops = _stops(source, source_extent)
        if size and any(stop > n for stop, n in zip(stops, source_extent, strict=True)):
            raise SelectionError(
                f"{where} has shape {tuple(source_extent)}, but the virtual dataset takes "
                f"elements of it up to {tuple(stops)}"
            )
        return replace(self, virtual=virtual, source=source)

    def source_coords(
        self, coords: IntArray, extent: Sequence[int], source_extent: Sequence[int]
    ) -> tuple[npt.NDArray[np.intp], IntArray]:
        """Return where the elements of the virtual dataset lie in the source, after `fit`.

        Parameters
        ----------
        coords : numpy.ndarray
            Shape ``(n, ndim)``: elements of the virtual dataset.
        extent, source_extent : sequence of int
            As given to `fit`.

        Returns
        -------
        rows : numpy.ndarray
            Rows of the elements that the source has.
        coords : numpy.ndarray
            Shape ``(len(rows), source_ndim)``: elements of the source.
        """
        if not _size(self.virtual, extent):
            return np.zeros(0, np.intp), np.zeros((0, len(source_extent)), np.int64)
        ordinal = _ordinals(self.virtual, coords, extent)
        rows = np.flatnonzero(ordinal >= 0)
        return rows, _coords(self.source, ordinal[rows], source_extent)


def _numbered_name(name: str, number: int) -> str:
    return re.sub("%(b|%)", lambda m: str(number) if m[1] == "b" else "%", name)


def _rank(selection: MappedSelection, otherwise: int) -> int:
    match selection:
        case RegularHyperslab(axes):
            return len(axes)
        case ElementRuns(start=start):
            return int(start.shape[1])
        case AllElements():
            return otherwise


def _size(selection: MappedSelection, extent: Sequence[int]) -> int:
    match selection:
        case RegularHyperslab(axes):
            return math.prod(axis.n or 0 for axis in axes)
        case ElementRuns(length=length):
            return int(length.sum())
        case AllElements():
            return math.prod(extent)


def _stops(selection: MappedSelection, extent: Sequence[int]) -> Sequence[int]:
    match selection:
        case RegularHyperslab(axes):
            return [axis.stop or 0 for axis in axes]
        case ElementRuns():
            stops: list[int] = selection.bounds[1].tolist()
            return stops
        case AllElements():
            return extent


def _ordinals(selection: MappedSelection, coords: IntArray, extent: Sequence[int]) -> IntArray:
    """Return the ordinal of each element in the order of a selection; -1 outside."""
    match selection:
        case RegularHyperslab(axes):
            ordinal = np.zeros(len(coords), dtype=np.int64)
            inside = np.ones(len(coords), dtype=bool)
            weights = canvas_strides([axis.n or 0 for axis in axes])
            for axis, column, weight in zip(axes, coords.T, weights, strict=True):
                part = axis.ordinals(column)
                inside &= part >= 0
                ordinal += part * weight
            return np.where(inside, ordinal, -1)
        case ElementRuns():
            return _run_ordinals(selection, coords)
        case AllElements():
            return coords @ np.array(canvas_strides(extent), dtype=np.int64)


def _run_ordinals(runs: ElementRuns, coords: IntArray) -> IntArray:
    low, high = runs.bounds
    # Coordinates as one number within the box around the runs, in C order.
    within = ((coords >= low) & (coords < high)).all(axis=1)
    weights = np.array(canvas_strides((high - low).tolist()), dtype=np.int64)
    run_start, number = (runs.start - low) @ weights, (coords - low) @ weights
    run = np.maximum(np.searchsorted(run_start, number, side="right") - 1, 0)
    in_run = number - run_start[run]
    within &= (in_run >= 0) & (in_run < runs.length[run])
    return np.where(within, row_offsets(runs.length)[run] + in_run, -1)


def _coords(selection: MappedSelection, ordinal: IntArray, extent: Sequence[int]) -> IntArray:
    """Return the coordinates of the elements with given ordinals in a selection."""
    match selection:
        case RegularHyperslab(axes):
            sizes = tuple(axis.n or 0 for axis in axes)
            parts = np.unravel_index(ordinal, sizes) if sizes else ()
            columns = [axis.indices(part) for axis, part in zip(axes, parts, strict=True)]
        case ElementRuns(start=start, length=length):
            first = row_offsets(length)
            run = np.searchsorted(first, ordinal, side="right") - 1
            columns = list(start[run].T)
            columns[-1] = columns[-1] + ordinal - first[run]
        case AllElements():
            columns = list(np.unravel_index(ordinal, tuple(extent))) if extent else []
    if not columns:
        return np.zeros((len(ordinal), 0), dtype=np.int64)
    return np.stack(columns, axis=1).astype(np.int64)
