"""References into values: every target read once, results in one flat array.

In: `References` and where each result goes. Out: the values.

References are grouped by target, each group is fitted to its target's current
extent, planned as a whole and read in one pass over the target's chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xref.columns import IntArray, ragged_ranges, row_offsets
from xref.decode import References
from xref.elements import DecodeOptions
from xref.errors import DanglingReferenceError, ResultTooLargeError, WrongTargetError
from xref.h5data import DatasetFacts, dataset_facts
from xref.h5file import FileBytes, FileLocation
from xref.h5objects import PREPARED_AT_ONCE, prepare_references
from xref.layout import DatasetLayout
from xref.loaders import tile_loader
from xref.options import get_option
from xref.parts import plan_parts, row_strides
from xref.plan import plan_read
from xref.readers import read_plan
from xref.regions import Kind, RegionTable, empty_table

# A file, the address of a dataset in it, and the rows of the references to it.
TargetRows: TypeAlias = tuple[FileLocation, int, npt.NDArray[np.intp] | slice]

LARGE_RESULT_NBYTES = 4 << 30
LARGE_RESULT_RATIO = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoundTarget:
    """The references that point at one dataset, fitted to its extent."""

    location: FileLocation
    address: int
    facts: DatasetFacts
    rows: npt.NDArray[np.intp] | slice
    regions: RegionTable
    whole: bool = False  # every row selects the whole extent, as object references do

    @property
    def layout(self) -> DatasetLayout:
        """Shape, type and storage of the dataset."""
        return self.facts.layout


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoundReferences:
    """References with the shapes that resolving them gives."""

    targets: tuple[BoundTarget, ...]
    ndim: IntArray  # (n,), axes of each result; 0 for null
    shape: IntArray  # (n, widest), filled up with 1; null rows are all 0
    null: npt.NDArray[np.bool_]  # (n,)

    @property
    def npoints(self) -> IntArray:
        """Elements of each result, shape ``(n,)``."""
        result: IntArray = self.shape.prod(axis=1)
        return result

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


def split_targets(
    references: References,
) -> tuple[list[TargetRows], npt.NDArray[np.bool_]]:
    """Group references by target, in the order of first appearance.

    Returns
    -------
    targets : list of (location, address, rows)
    null : numpy.ndarray
        Shape ``(n,)``.
    """
    null = references.address == 0
    if references.regions is not None:
        null |= references.regions.kind == Kind.NULL
    n = len(references)
    address, file = references.address, references.file
    if not n or null.all():
        return [], null
    if not null.any() and (address == address[0]).all() and (file == file[0]).all():
        return [(references.files[int(file[0])], int(address[0]), slice(None))], null
    live = np.flatnonzero(~null)
    pairs = np.stack([file[live].astype(np.uint64), address[live]], axis=1)
    distinct, first, inverse = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(inverse.reshape(-1), kind="stable")
    cuts = np.searchsorted(inverse.reshape(-1)[order], np.arange(len(distinct) + 1))
    groups: list[TargetRows] = [
        (
            references.files[int(distinct[k, 0])],
            int(distinct[k, 1]),
            live[order[cuts[k] : cuts[k + 1]]],
        )
        for k in np.argsort(first).tolist()
    ]
    return groups, null


def bind_references(references: References, describe: Callable[[int], str]) -> BoundReferences:
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
    groups, null = split_targets(references)
    targets = []
    for k, (location, address, rows) in enumerate(groups):
        if k % PREPARED_AT_ONCE == 0:
            prepare_references([a for _, a, _ in groups[k : k + PREPARED_AT_ONCE]])

        def name_row(i: int, rows: npt.NDArray[np.intp] | slice = rows) -> str:
            return describe(i if isinstance(rows, slice) else int(rows[i]))

        try:
            facts = dataset_facts(location, address)
        except (DanglingReferenceError, WrongTargetError) as error:
            raise type(error)(
                f"{name_row(0)}: {error}; .h5ref.table() shows what all of them "
                "point at, .h5ref.items() resolves one by one"
            ) from error
        extent = facts.layout.shape
        count = n if isinstance(rows, slice) else len(rows)
        if references.regions is None:
            targets.append(
                BoundTarget(
                    location=location,
                    address=address,
                    facts=facts,
                    rows=rows,
                    regions=(
                        _whole(extent)
                        if count == 1
                        else empty_table(count, 0, Kind.ALL).fit(extent, str)
                    ),
                    whole=True,
                )
            )
            continue
        regions = references.regions.take(rows)
        fitted = regions.fit(extent, name_row)
        targets.append(
            BoundTarget(
                location=location, address=address, facts=facts, rows=rows, regions=fitted
            )
        )
    widest = max((max(len(t.layout.shape), 1) for t in targets), default=1)
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
    return BoundReferences(targets=tuple(targets), ndim=ndim, shape=shape, null=null)


@lru_cache(maxsize=256)
def _whole(extent: tuple[int, ...]) -> RegionTable:
    """Return one row that selects all of an extent; many small targets share a shape."""
    return empty_table(1, 0, Kind.ALL).fit(extent, str)


def check_size(
    n_elements: int, dtype: np.dtype[Any], bound: BoundReferences, what: str
) -> None:
    """Refuse results far out of proportion to what the file stores for them."""
    nbytes = n_elements * dtype.itemsize
    stored = sum(t.layout.stored_nbytes for t in bound.targets)
    if (
        nbytes > LARGE_RESULT_NBYTES
        and nbytes > LARGE_RESULT_RATIO * stored
        and not get_option("large_results")
    ):
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
    targets: Sequence[BoundTarget] = bound.targets
    if cell is None and reader != "h5py" and len(targets) > 1:
        targets = _read_whole(targets, out, dst)
    for target in targets:
        if target.layout.dtype == out.dtype:
            _read_target(
                target, out, dst[target.rows], result_cells(bound, target, cell), reader
            )
        else:
            _read_converted(bound, target, out, dst, cell, reader)


def _read_whole(
    targets: Sequence[BoundTarget], out: npt.NDArray[Any], dst: IntArray
) -> list[BoundTarget]:
    """Read contiguous datasets that single references select whole, without a plan.

    Many small datasets behind object references are one range of bytes each.
    Returns the targets that remain.
    """
    rest = []
    ranges: dict[FileLocation, list[tuple[int, int, int]]] = {}
    for target in targets:
        layout = target.layout
        direct = not layout.indirect and layout.offset is not None
        single = not isinstance(target.rows, slice) and len(target.rows) == 1
        if not (target.whole and single and direct and layout.dtype == out.dtype):
            rest.append(target)
            continue
        nbytes = math.prod(layout.shape) * out.itemsize
        (begin,) = (dst[target.rows] * out.itemsize).tolist()
        ranges.setdefault(target.location, []).append((layout.offset or 0, nbytes, begin))
    for location, rows in ranges.items():
        offset, nbytes_each, begins = np.array(sorted(rows), dtype=np.int64).T
        FileBytes(location).read_ranges(offset, nbytes_each, out.view(np.uint8), begins)
    return rest


def result_cells(
    bound: BoundReferences, target: BoundTarget, cell: tuple[int, ...] | None
) -> IntArray:
    """Return the box that holds each result of a target, ``(n, ndim)``."""
    ndim = len(target.layout.shape)
    sizes = bound.shape[target.rows, :ndim]
    if cell is None:
        return sizes
    # Results of lower rank lie along the first axis of their cell.
    return np.broadcast_to(np.array(cell[:ndim], dtype=np.int64), sizes.shape)


def _read_target(
    target: BoundTarget, out: npt.NDArray[Any], dst: IntArray, cells: IntArray, reader: str
) -> None:
    layout = target.layout
    parts = plan_parts(target.regions, dst, row_strides(cells))
    if len(parts):
        loader = tile_loader(
            target.location, target.address, layout, options=DecodeOptions(reader=reader)
        )
        plan = plan_read(parts, layout.shape, layout.chunks, max(layout.dtype.itemsize, 1))
        read_plan(plan, loader, out)


def _read_converted(
    bound: BoundReferences,
    target: BoundTarget,
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
    begins = dst[target.rows]
    if cell is None:
        out[ragged_ranges(begins, npoints)] = values
        return
    boxes = out.reshape(-1, *cell)
    shapes, which = np.unique(bound.shape[target.rows], axis=0, return_inverse=True)
    for k, shape in enumerate(shapes.tolist()):
        rows = np.flatnonzero(which.reshape(-1) == k)
        at = ragged_ranges(offsets[:-1][rows], npoints[rows])
        part = values[at].reshape(len(rows), *shape[: len(cell)])
        at_box: tuple[Any, ...] = (begins[rows] // max(int(np.prod(cell)), 1),)
        boxes[at_box + tuple(slice(0, n) for n in shape[: len(cell)])] = part


def common_dtype(bound: BoundReferences, what: str) -> np.dtype[Any]:
    """Return the dtype that values of all targets fit.

    Raises
    ------
    ValueError
        If there is none, such as for numbers and text.
    """
    dtypes = list(dict.fromkeys(t.layout.dtype for t in bound.targets))
    if len(dtypes) == 1:
        return dtypes[0]
    if not dtypes:
        return np.dtype(float)
    if all(d.kind in "iufcb" for d in dtypes):
        common = np.result_type(*dtypes)
        digits = np.finfo(common).nmant + 1 if common.kind in "fc" else 64
        needed = [8 * d.itemsize - (d.kind == "i") for d in dtypes if d.kind in "iu"]
        if max(needed, default=0) <= digits:
            return common
    raise ValueError(
        f"{what} points at datasets of types {', '.join(map(str, dtypes))}, which no one "
        "type holds exactly; select references of one target"
    )
