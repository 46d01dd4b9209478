"""Values of references, read into one flat array.

In: `BoundReferences` and the element of the output where each result starts. Out: the
values. The selections of each target are planned as a whole, and each of its chunks is read
once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from xref import objects
from xref.arrays import (
    IntArray,
    canvas_strides,
    convert,
    ragged_ranges,
    row_offsets,
    row_strides,
)
from xref.engine import Decoders, Decoding
from xref.errors import ResultTooLargeError, naming
from xref.hdf5 import unfold_subarray
from xref.options import get_option
from xref.reading import Parts, SmallDatasets, copy_boxes, plan_parts, plan_read, read_plan
from xref.references import DecodeOptions, tile_loader
from xref.resolving.bound_references import (
    Array,
    BoundDataset,
    BoundReferences,
    Rows,
    Shape,
    restrict_small,
)

LARGE_RESULT_NBYTES = 4 << 30
LARGE_RESULT_RATIO = 1000


def check_size(
    n_elements: int, dtype: np.dtype[Any], bound: BoundReferences, label: str
) -> None:
    """Refuse a result far larger than the data that the file stores for it."""
    nbytes = n_elements * dtype.itemsize
    if nbytes <= LARGE_RESULT_NBYTES or get_option("large_results"):
        return
    stored = sum(objects.stored_nbytes(t.dataset) for t in bound.datasets)
    stored += sum(small.stored_nbytes for small in bound.small_by_file)
    if nbytes > LARGE_RESULT_RATIO * stored:
        raise ResultTooLargeError(
            f"{bound.label()}: {label} would take {nbytes} bytes, while the file stores "
            f"{stored} bytes for it; select less, or allow it with "
            "xref.set_options(large_results=True)"
        )


def plan_results(
    bound: BoundReferences,
    target: BoundDataset,
    dst: IntArray,
    padded_shape: Shape | None = None,
) -> Parts:
    """Plan the results of one dataset.

    ``dst`` is the element of the output where each of them starts, -1 to leave it out.
    """
    ndim = len(target.layout.shape)
    regions, shapes = target.regions, bound.shape[target.rows, :ndim]
    if padded_shape is not None:
        # Results of lower rank lie along the first axis of the padded shape.
        padded = np.array(padded_shape[:ndim], dtype=np.int64)
        shapes = np.broadcast_to(padded, shapes.shape)
    planned = np.flatnonzero(dst >= 0)
    if len(planned) < len(dst):
        regions, shapes, dst = regions.take(planned), shapes[planned], dst[planned]
    return plan_parts(regions, dst, row_strides(shapes))


def _read_raw(
    bound: BoundReferences,
    out: Array,
    dst: IntArray,
    padded_shape: Shape | None = None,
    reader: str = "auto",
) -> None:
    """Read the raw values of all results; see `read_results`."""
    together = reader == "auto"
    for small in bound.small_by_file if together else ():
        _read_small(bound, small, out, dst, padded_shape)
    for target in bound.datasets if together else bound.targets:
        dtype = target.layout.dtype
        if dtype == out.dtype:
            parts = plan_results(bound, target, dst[target.rows], padded_shape)
            _read_dataset(target, parts, out, reader)
            continue
        offsets = row_offsets(bound.npoints[target.rows])
        values = np.empty(int(offsets[-1]), dtype=dtype)
        _read_dataset(target, plan_results(bound, target, offsets[:-1]), values, reader)
        _place_values(bound, target.rows, values, out, dst, padded_shape)


def _read_dataset(target: BoundDataset, parts: Parts, out: Array, reader: str) -> None:
    """Read planned results of one dataset, in the type of its elements."""
    if not len(parts):
        return
    layout, options = target.layout, DecodeOptions(reader=reader)
    itemsize = max(layout.dtype.itemsize, 1)
    with naming(target.dataset.__str__):
        loader = tile_loader(target.dataset, layout, options=options)
        read_plan(plan_read(parts, layout.shape, layout.chunks, itemsize), loader, out)


def _read_small(
    bound: BoundReferences,
    small: SmallDatasets,
    out: Array,
    dst: IntArray,
    padded_shape: Shape | None,
) -> None:
    """Read small datasets whole, all that have the same type and storage together."""
    kind = small.kind[small.which]
    for k, facts in enumerate(small.kinds):
        same = np.flatnonzero(kind == k) if len(small.kinds) > 1 else np.arange(len(kind))
        rows, which, layout = small.rows[same], small.which[same], facts.layout
        if padded_shape is None and layout.dtype == out.dtype:
            small.read(which, layout, out, dst[rows])
            continue
        offsets = row_offsets(bound.npoints[rows])
        values = np.empty(int(offsets[-1]), dtype=layout.dtype)
        small.read(which, layout, values, offsets[:-1])
        _place_values(bound, rows, values, out, dst, padded_shape)


def _place_values(
    bound: BoundReferences,
    rows: Rows | slice,
    values: Array,
    out: Array,
    dst: IntArray,
    padded_shape: Shape | None,
) -> None:
    """Convert the results of ``rows``, which lie end to end, and copy each to its place.

    ``padded_shape`` is that of `read_results`: the neighbours of an element of ``out`` are as
    far from it as in an array of this shape.
    """
    if not len(values):
        return
    shape, starts = bound.shape[rows], dst[rows]
    npoints = shape.prod(axis=1)
    if padded_shape is None:
        out[ragged_ranges(starts, npoints)] = values
        return
    offsets = row_offsets(npoints)
    filled = np.flatnonzero(npoints)
    offsets, shape = row_offsets(npoints)[filled], shape[filled, : len(padded_shape)]
    distinct, number = np.unique(shape, axis=0, return_inverse=True)
    order = np.argsort(number.reshape(-1), kind="stable")
    strides = np.array(canvas_strides(padded_shape), dtype=np.int64)
    copy_boxes(
        (values.astype(out.dtype, copy=False), offsets[order], row_strides(distinct)),
        (out, starts[filled][order], np.broadcast_to(strides, distinct.shape)),
        distinct,
        number.reshape(-1)[order],
    )


def read_results(
    bound: BoundReferences,
    out: Array,
    dst: IntArray,
    padded_shape: Shape | None = None,
    reader: str = "auto",
    decoders: Decoders | None = None,
) -> None:
    """Read all results into a flat array; decode those of each target by its own attributes.

    ``out`` is 1-D, contiguous, and has the type of decoded elements. ``dst``, shape ``(n,)``,
    is the element of ``out`` where the result of each of n references starts. ``padded_shape``
    is the shape of the array in which results are boxes: each result has an array of its own
    that it is padded to, or all are parts of one array. Without it results lie end to end.
    Without ``decoders`` of all targets, raw values are read, converted to the type of ``out``.
    """
    if decoders is None:
        _read_raw(bound, out, dst, padded_shape, reader)
        return
    starts = np.zeros(len(bound.ndim), dtype=np.int64)
    for decoding, part, rows in _split_by_decoding(bound, decoders):
        if decoding.is_plain and decoding.raw_dtype == out.dtype:
            _read_raw(part, out, dst, padded_shape, reader)
            continue
        offsets = row_offsets(bound.npoints[rows])
        starts[rows] = offsets[:-1]
        raw = np.empty(int(offsets[-1]), dtype=decoding.raw_dtype)
        _read_raw(part, raw, starts, reader=reader)
        values = np.empty(len(raw), dtype=out.dtype)
        with naming(partial(_target_name, part), ValueError):
            unfold_subarray(values)[...] = convert(
                decoding(unfold_subarray(raw)),
                unfold_subarray(values).dtype,
                partial(_target_name, part),
            )
        _place_values(bound, rows, values, out, dst, padded_shape)


def _target_name(bound: BoundReferences) -> str:
    return "" if bound.first_target is None else bound.first_target.named


def decoding_rows(bound: BoundReferences, decoders: Decoders) -> IntArray:
    """Return the row of ``decoders.kinds`` for each reference, -1 for null references."""
    decoding_row = np.full(len(bound.ndim), -1, dtype=np.int64)
    for t in bound.datasets:
        address = np.array([t.dataset.address], dtype=np.uint64)
        decoding_row[t.rows] = decoders.which_of(t.dataset.location, address)[0]
    for small in bound.small_by_file:
        rows = decoders.which_of(small.location, small.address)
        decoding_row[small.rows] = rows[small.which]
    decoding_row[bound.null] = -1
    return decoding_row


def _split_by_decoding(
    bound: BoundReferences, decoders: Decoders
) -> Iterator[tuple[Decoding, BoundReferences, Rows]]:
    """Yield each decoding, the targets that have it and the rows of their references.

    Row numbers of the targets remain those of ``bound``.
    """
    if len(decoders.kinds) == 1:
        yield decoders.kinds[0], bound, np.flatnonzero(~bound.null)
        return
    decoding_row = decoding_rows(bound, decoders)
    datasets: dict[int, list[BoundDataset]] = {}
    for t in bound.datasets:
        datasets.setdefault(int(decoding_row[t.first_row]), []).append(t)
    order = np.argsort(decoding_row, kind="stable")
    cuts = np.searchsorted(decoding_row[order], np.arange(len(decoders.kinds) + 1))
    for k in np.unique(decoding_row[decoding_row >= 0]).tolist():
        small = restrict_small(bound.small_by_file, decoding_row == k)
        part = replace(bound, datasets=tuple(datasets.get(k, ())), small_by_file=small)
        yield decoders.kinds[k], part, order[cuts[k] : cuts[k + 1]]
