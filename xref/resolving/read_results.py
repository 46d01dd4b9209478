"""References into values: every target read once, results in one flat array.

In: `ReferenceColumns` and where each result goes. Out: the values.

References are grouped by target, each group is fitted to its target's current
extent, planned as a whole and read in one pass over the target's chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from xref import objects
from xref.arrays import IntArray, convert, ragged_ranges, row_offsets, row_strides
from xref.engine import Decoders, Decoding
from xref.errors import (
    ResultTooLargeError,
)
from xref.hdf5 import items
from xref.options import get_option
from xref.reading import SmallDatasets, plan_parts, plan_read, read_plan
from xref.references import (
    DecodeOptions,
    tile_loader,
)
from xref.resolving.bound_references import (
    BoundDataset,
    BoundReferences,
    _described,
    _only_small,
)

LARGE_RESULT_NBYTES = 4 << 30
LARGE_RESULT_RATIO = 1000


def check_size(
    n_elements: int, dtype: np.dtype[Any], bound: BoundReferences, what: str
) -> None:
    """Refuse results far out of proportion to what the file stores for them."""
    nbytes = n_elements * dtype.itemsize
    if nbytes <= LARGE_RESULT_NBYTES or get_option("large_results"):
        return
    stored = sum(objects.stored_nbytes(t.location, t.address) for t in bound.single)
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
        decoded = decoding(items(raw))
        target = part.first_target
        items(values)[...] = convert(
            decoded, items(values).dtype, partial(_described, *target) if target else str
        )
        _place_values(values, bound.shape[rows], out, dst[rows], cell)


def decoding_rows(bound: BoundReferences, decoders: Decoders) -> IntArray:
    """Return the row of ``decoders.kinds`` for each reference, -1 for null ones."""
    which = np.full(len(bound.ndim), -1, dtype=np.int64)
    for t in bound.single:
        own = decoders.which_of(t.location, np.array([t.address], dtype=np.uint64))
        which[t.rows] = own[0]
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
        loader = tile_loader(
            target.location, target.address, layout, options=DecodeOptions(reader=reader)
        )
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
