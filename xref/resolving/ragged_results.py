"""Ragged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays import ragged_ranges, row_offsets
from xref.engine import Axis, Decoders, index_outer
from xref.hdf5 import item_dtype, items
from xref.references import ReferenceArray
from xref.resolving.bound_references import BoundReferences, bind_references
from xref.resolving.lazy_results import (
    BlockReads,
    ReferenceResults,
    Spans,
    _bind_unchanged,
    _planned,
)
from xref.resolving.read_results import check_size, read_results

OFFSET_STRIDE = 4096
"""References between two row offsets that a `RaggedArray` keeps."""


class RaggedArray(ReferenceResults):
    """Results of any shapes, one after the other along one sample dimension.

    Only every `OFFSET_STRIDE`-th row offset is kept; the ones between are worked out
    from the references of that stretch, so the array pickles small.
    """

    def __init__(
        self,
        references: ReferenceArray,
        row_size: npt.NDArray[Any],
        dtype: np.dtype[Any],
        *,
        decoders: Decoders | None = None,
        bound: BoundReferences | None = None,
    ) -> None:
        self.decoders = decoders
        self.references = references.ravel() if references.ndim != 1 else references
        offsets = row_offsets(row_size.reshape(-1))
        self.coarse = offsets[:-1][::OFFSET_STRIDE].copy()
        self.raw_dtype = dtype
        self.dtype, item_shape = item_dtype(dtype)
        self.shape = (int(offsets[-1]), *item_shape)
        self._bound = bound

    def _read(self, key: tuple[Axis, ...]) -> npt.NDArray[Any]:
        n, k = self.shape[0], key[0]
        if isinstance(k, np.ndarray):
            low = int(k.min(initial=n))
            hull = self._read((slice(low, int(k.max(initial=low)) + 1), *key[1:]))
            picks: npt.NDArray[Any] = hull[k - low]
            return picks
        picked = range(n)[k] if isinstance(k, slice) else range(n)[int(k) : int(k) + 1]
        if not picked:
            values = items(np.empty(0, dtype=self.raw_dtype))
        else:
            low, high = min(picked[0], picked[-1]), max(picked[0], picked[-1]) + 1
            values = items(self._read_samples(low, high))
            values = values[:: picked.step] if isinstance(k, slice) else values[0, ...]
        return index_outer(values, int(isinstance(k, slice)), key[1:])

    def flat_blocks(self, blocks: Sequence[Spans]) -> BlockReads | None:
        """Say what is read for some blocks; see `ReferenceResults`."""
        bound = _bind_unchanged(self.references, getattr(self, "_bound", None))
        items_whole = tuple((0, n) for n in self.shape[1:])
        if bound.small or any(spans[1:] != items_whole for spans in blocks):
            return None
        offsets = row_offsets(bound.npoints)
        low, high = np.array([spans[0] for spans in blocks], dtype=np.int64).T
        first, last = np.searchsorted(offsets, low), np.searchsorted(offsets, high)
        if (offsets[first] != low).any() or (offsets[last] != high).any():
            return None
        bounds = row_offsets(high - low)
        check_size(int((high - low).max()), self.raw_dtype, bound, "the result")
        rows = ragged_ranges(first, last - first)
        shift = np.repeat(bounds[:-1] - low, last - first)
        return BlockReads(
            bounds=bounds,
            dtype=self.raw_dtype,
            reads=tuple(_planned(bound, rows, offsets[rows] + shift)),
            decoders=self.decoders,
            reader=self.references.options.reader,
            finish=lambda _, flat: items(flat),
        )

    def _read_samples(self, low: int, high: int) -> npt.NDArray[Any]:
        """Read samples ``low:high``: the rows that cover them, then cut."""
        first = max(int(np.searchsorted(self.coarse, low, side="right")) - 1, 0)
        last = int(np.searchsorted(self.coarse, high, side="left"))
        whole = first == 0 and last == len(self.coarse)
        known = getattr(self, "_bound", None) if whole else None
        part = self.references[first * OFFSET_STRIDE : last * OFFSET_STRIDE]
        bound = _bind_unchanged(part, known)
        ends = int(self.coarse[first]) + np.cumsum(bound.npoints)
        begin = int(np.searchsorted(ends, low, side="right"))
        end = int(np.searchsorted(ends, high, side="left")) + 1
        if begin > 0 or end < len(ends):
            part = part[begin:end]
            before = int(ends[begin - 1]) if begin else int(self.coarse[first])
            bound = bind_references(part.columns, part.describe)
        else:
            before = int(self.coarse[first])
        offsets = row_offsets(bound.npoints)
        check_size(int(offsets[-1]), self.raw_dtype, bound, "the result")
        out = np.empty(int(offsets[-1]), dtype=self.raw_dtype)
        read_results(
            bound,
            out,
            offsets[:-1],
            reader=part.options.reader,
            decoders=self.decoders,
        )
        return out[low - before : high - before]
