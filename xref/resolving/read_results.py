"""References into values: every target read once, results in one flat array.

In: `ReferenceColumns` and where each result goes. Out: the values.

References are grouped by target, each group is fitted to its target's current
extent, planned as a whole and read in one pass over the target's chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from xref import objects
from xref.arrays import IntArray, convert, ragged_ranges, row_offsets, row_strides
from xref.engine import CF_ATTRIBUTES, Decoders, Decoding
from xref.errors import (
    DanglingReferenceError,
    ResultTooLargeError,
    WrongTargetError,
)
from xref.hdf5 import DatasetLayout, unfold_subarray
from xref.objects import StoredObject
from xref.options import get_option
from xref.reading import SmallDatasets, plan_parts, plan_read, read_plan, select_small_datasets
from xref.references import (
    DecodeOptions,
    ReferenceColumns,
    TargetRows,
    distinct_targets,
    split_targets,
    target_rows,
    tile_loader,
)
from xref.selections import SelectionKind, SelectionTable, empty_table

MIN_BULK_TARGETS = 8
"""Fewer targets are looked at one by one: with four both ways take as long, with eight
columns are faster by a third (benchmarks/small.py, limits)."""

LARGE_RESULT_NBYTES = 4 << 30
LARGE_RESULT_RATIO = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoundDataset:
    """The references that point at one dataset, fitted to its extent."""

    dataset: StoredObject
    facts: objects.DatasetMetadata
    rows: npt.NDArray[np.intp] | slice
    regions: SelectionTable

    @property
    def first_row(self) -> int:
        """The first reference to the dataset."""
        return 0 if isinstance(self.rows, slice) else int(self.rows[0])

    def describe(self) -> str:
        """Name the dataset in a message."""
        return self.dataset.where

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
    def first_target(self) -> StoredObject | None:
        """One target, to name it in messages."""
        if self.single:
            return self.single[0].dataset
        for many in self.small:
            return StoredObject(many.location, int(many.address[many.which[0]]))
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
        dataset = StoredObject(many.location, address)
        facts = dataset.metadata
        regions = empty_table(len(rows), 0, SelectionKind.ALL).fit(facts.layout.shape, str)
        yield BoundDataset(dataset=dataset, facts=facts, rows=rows, regions=regions)


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
    for k, (dataset, rows) in enumerate(groups):
        if k % objects.REFERENCE_BATCH == 0:
            objects.cache_h5py_references(
                [t.address for t, _ in groups[k : k + objects.REFERENCE_BATCH]]
            )

        def name_row(i: int, rows: npt.NDArray[np.intp] | slice = rows) -> str:
            return describe(i if isinstance(rows, slice) else int(rows[i]))

        try:
            facts = dataset.metadata
        except (DanglingReferenceError, WrongTargetError) as error:
            raise type(error)(
                f"{name_row(0)}: {error}; .h5ref.table() shows what all of them "
                "point at, .h5ref.items() resolves one by one"
            ) from error
        extent = facts.layout.shape
        count = n if isinstance(rows, slice) else len(rows)
        if references.regions is not None:
            fitted = references.regions.take(rows).fit(extent, name_row)
        elif count == 1:
            fitted = _whole(extent)
        else:
            fitted = empty_table(count, 0, SelectionKind.ALL).fit(extent, str)
        targets.append(BoundDataset(dataset=dataset, facts=facts, rows=rows, regions=fitted))
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
    targets : list of (object, rows)
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


def check_size(
    n_elements: int, dtype: np.dtype[Any], bound: BoundReferences, what: str
) -> None:
    """Refuse results far out of proportion to what the file stores for them."""
    nbytes = n_elements * dtype.itemsize
    if nbytes <= LARGE_RESULT_NBYTES or get_option("large_results"):
        return
    stored = sum(objects.stored_nbytes(t.dataset) for t in bound.single)
    stored += sum(many.stored_nbytes for many in bound.small)
    if nbytes > LARGE_RESULT_RATIO * stored:
        raise ResultTooLargeError(
            f"{what} would take {nbytes} bytes, while the file stores {stored} bytes for it; "
            "select less, or allow it with xref.set_options(large_results=True)"
        )


def read_into(
    bound: BoundReferences,
    out: npt.NDArray[Any],
    dst: IntArray,
    cell: tuple[int, ...] | None = None,
    reader: str = "auto",
) -> None:
    """Read all results into a flat array.

    Parameters
    ----------
    bound : BoundReferences
        n references.
    out : numpy.ndarray
        1-D, contiguous, of the targets' dtype.
    dst : numpy.ndarray
        Shape ``(n,)``: element of ``out`` where each result begins.
    cell : tuple of int, optional
        Box that each result lies in the corner of; by default each fills its own
        box exactly.
    reader : {"auto", "direct", "h5py"}
        How chunks are read.
    """
    targets = bound.single
    if reader == "auto":
        for many in bound.small:
            _read_small(bound, many, out, dst, cell)
    else:
        targets = bound.targets
    for target in targets:
        if target.layout.dtype == out.dtype:
            _read_target(
                target, out, dst[target.rows], result_cells(bound, target, cell), reader
            )
        else:
            _read_converted(bound, target, out, dst, cell, reader)


def read_results(
    bound: BoundReferences,
    out: npt.NDArray[Any],
    dst: IntArray,
    cell: tuple[int, ...] | None = None,
    reader: str = "auto",
    decoders: Decoders | None = None,
) -> None:
    """Read all results into a flat array, those of each target decoded by its own attributes.

    Parameters
    ----------
    bound, out, dst, cell, reader
        As in `read_into`; ``out`` is of the type of decoded elements.
    decoders : Decoders, optional
        Of all targets. Without them raw values are read.
    """
    if decoders is None:
        read_into(bound, out, dst, cell, reader)
        return
    begins = np.zeros(len(bound.ndim), dtype=np.int64)
    for decoding, part, rows in split_by_decoding(bound, decoders):
        if decoding.is_plain and decoding.raw_dtype == out.dtype:
            read_into(part, out, dst, cell, reader)
            continue
        npoints = bound.npoints[rows]
        offsets = row_offsets(npoints)
        begins[rows] = offsets[:-1]
        raw = np.empty(int(offsets[-1]), dtype=decoding.raw_dtype)
        read_into(part, raw, begins, reader=reader)
        values = np.empty(len(raw), dtype=out.dtype)
        decoded = decoding(unfold_subarray(raw))
        where = part.first_target.where if part.first_target else ""
        unfold_subarray(values)[...] = convert(
            decoded, unfold_subarray(values).dtype, partial(str, where)
        )
        _place_values(values, bound.shape[rows], out, dst[rows], cell)


def decoding_rows(bound: BoundReferences, decoders: Decoders) -> IntArray:
    """Return the row of ``decoders.kinds`` for each reference, -1 for null ones."""
    which = np.full(len(bound.ndim), -1, dtype=np.int64)
    for t in bound.single:
        own = np.array([t.dataset.address], dtype=np.uint64)
        which[t.rows] = decoders.which_of(t.dataset.location, own)[0]
    for many in bound.small:
        which[many.rows] = decoders.which_of(many.location, many.address)[many.which]
    which[bound.null] = -1
    return which


def split_by_decoding(
    bound: BoundReferences, decoders: Decoders
) -> Iterator[tuple[Decoding, BoundReferences, npt.NDArray[np.intp]]]:
    """Yield each decoding, the targets that have it and the rows of their references.

    The rows of the parts count the references of ``bound``.
    """
    if len(decoders.kinds) == 1:
        yield decoders.kinds[0], bound, np.flatnonzero(~bound.null)
        return
    which = decoding_rows(bound, decoders)
    single: dict[int, list[BoundDataset]] = {}
    for t in bound.single:
        single.setdefault(int(which[t.first_row]), []).append(t)
    order = np.argsort(which, kind="stable")
    cuts = np.searchsorted(which[order], np.arange(len(decoders.kinds) + 1))
    for k in np.unique(which[which >= 0]).tolist():
        rows = order[cuts[k] : cuts[k + 1]]
        small = _only_small(bound.small, which, k)
        part = replace(bound, single=tuple(single.get(k, ())), small=small)
        yield decoders.kinds[k], part, rows


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


def _read_small(
    bound: BoundReferences,
    many: SmallDatasets,
    out: npt.NDArray[Any],
    dst: IntArray,
    cell: tuple[int, ...] | None,
) -> None:
    """Read small datasets whole, those of one kind together."""
    kind = many.kind[many.which]
    for k, facts in enumerate(many.kinds):
        own = np.flatnonzero(kind == k) if len(many.kinds) > 1 else np.arange(len(kind))
        rows, which = many.rows[own], many.which[own]
        if cell is None and facts.layout.dtype == out.dtype:
            many.read(which, facts.layout, out, dst[rows])
            continue
        npoints = bound.npoints[rows]
        offsets = row_offsets(npoints)
        values = np.empty(int(offsets[-1]), dtype=facts.layout.dtype)
        many.read(which, facts.layout, values, offsets[:-1])
        _place_values(values, bound.shape[rows], out, dst[rows], cell)


def result_cells(
    bound: BoundReferences, target: BoundDataset, cell: tuple[int, ...] | None
) -> IntArray:
    """Return the box that holds each result of a target, ``(n, ndim)``."""
    ndim = len(target.layout.shape)
    sizes = bound.shape[target.rows, :ndim]
    if cell is None:
        return sizes
    # Results of lower rank lie along the first axis of their cell.
    return np.broadcast_to(np.array(cell[:ndim], dtype=np.int64), sizes.shape)


def _read_target(
    target: BoundDataset, out: npt.NDArray[Any], dst: IntArray, cells: IntArray, reader: str
) -> None:
    layout = target.layout
    parts = plan_parts(target.regions, dst, row_strides(cells))
    if len(parts):
        loader = tile_loader(target.dataset, layout, options=DecodeOptions(reader=reader))
        plan = plan_read(parts, layout.shape, layout.chunks, max(layout.dtype.itemsize, 1))
        read_plan(plan, loader, out)


def _read_converted(
    bound: BoundReferences,
    target: BoundDataset,
    out: npt.NDArray[Any],
    dst: IntArray,
    cell: tuple[int, ...] | None,
    reader: str,
) -> None:
    """Read a target in its own dtype and convert, the rows of one shape at a time."""
    npoints = bound.npoints[target.rows]
    offsets = row_offsets(npoints)
    values = np.empty(int(offsets[-1]), dtype=target.layout.dtype)
    _read_target(target, values, offsets[:-1], result_cells(bound, target, None), reader)
    _place_values(values, bound.shape[target.rows], out, dst[target.rows], cell)


def _place_values(
    values: npt.NDArray[Any],
    shape: IntArray,
    out: npt.NDArray[Any],
    begins: IntArray,
    cell: tuple[int, ...] | None,
) -> None:
    """Convert results that lie end to end, and put each where it belongs.

    ``shape`` and ``begins`` are those of the results, ``cell`` as in `read_into`.
    """
    npoints = shape.prod(axis=1)
    if not len(values):
        return
    if cell is None:
        out[ragged_ranges(begins, npoints)] = values
        return
    offsets = row_offsets(npoints)
    boxes = out.reshape(-1, *cell)
    shapes, which = np.unique(shape, axis=0, return_inverse=True)
    for k, own in enumerate(shapes.tolist()):
        rows = np.flatnonzero(which.reshape(-1) == k)
        at = ragged_ranges(offsets[:-1][rows], npoints[rows])
        part = values[at].reshape(len(rows), *own[: len(cell)])
        at_box: tuple[Any, ...] = (begins[rows] // max(int(np.prod(cell)), 1),)
        boxes[at_box + tuple(slice(0, n) for n in own[: len(cell)])] = part
