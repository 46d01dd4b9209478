"""Arrays along one sample dimension, on which the results of references lie end to end.

In: references, the number of samples of each, and an index of samples. Out: the references
that the samples belong to.
"""

from __future__ import annotations

import numpy as np

from xref.arrays import IntArray, row_offsets
from xref.engine import Axis, LazyArray, index_outer
from xref.references import ReferenceArray
from xref.resolving.bound_references import (
    Array,
    BoundReferences,
    bind_references,
    bind_unchanged,
)

OFFSET_STRIDE = 4096
"""References between two row offsets that a `SampleAxis` keeps."""


class SampleAxis(LazyArray):
    """Base of arrays whose first axis has the samples of references, end to end.

    Only each `OFFSET_STRIDE`-th row offset is kept, so that the array pickles small. The
    offsets between are computed from the references of that stretch.
    """

    references: ReferenceArray
    _bound: BoundReferences | None = None  # known in the process that made the array

    def set_rows(
        self, references: ReferenceArray, row_size: IntArray, bound: BoundReferences
    ) -> int:
        """Set the references and the samples of each; return the number of all samples."""
        self._bound = bound
        self.references = references.ravel() if references.ndim != 1 else references
        offsets = row_offsets(row_size.reshape(-1))
        self.coarse_offsets = offsets[:-1][::OFFSET_STRIDE].copy()
        return int(offsets[-1])

    def _read(self, key: tuple[Axis, ...]) -> Array:
        n, k = self.shape[0], key[0]
        if isinstance(k, np.ndarray):
            low = int(k.min(initial=n))
            hull = self._read((slice(low, int(k.max(initial=low)) + 1), *key[1:]))
            picks: Array = hull[k - low]
            return picks
        picked = range(n)[k] if isinstance(k, slice) else range(n)[int(k) : int(k) + 1]
        if not picked:
            values = np.empty((0, *self.shape[1:]), dtype=self.dtype)
        else:
            low, high = min(picked[0], picked[-1]), max(picked[0], picked[-1]) + 1
            values = self._read_samples(low, high)
            values = values[:: picked.step] if isinstance(k, slice) else values[0, ...]
        return index_outer(values, int(isinstance(k, slice)), key[1:])

    def _read_samples(self, low: int, high: int) -> Array:
        """Return the values of samples ``low:high``, at least one."""
        raise NotImplementedError

    def _rows_of_samples(self, low: int, high: int) -> tuple[BoundReferences, int]:
        """Return the references that samples ``low:high`` belong to, and their first sample."""
        first = max(int(np.searchsorted(self.coarse_offsets, low, side="right")) - 1, 0)
        last = int(np.searchsorted(self.coarse_offsets, high, side="left"))
        part = self.references
        if first > 0 or last < len(self.coarse_offsets):
            part = part[first * OFFSET_STRIDE : last * OFFSET_STRIDE]
        bound = bind_unchanged(part, self._bound if part is self.references else None)
        start = int(self.coarse_offsets[first])  # sample where ``part`` starts
        ends = start + np.cumsum(bound.npoints)
        first_row = int(np.searchsorted(ends, low, side="right"))
        last_row = int(np.searchsorted(ends, high, side="left")) + 1
        if first_row > 0 or last_row < len(ends):
            part = part[first_row:last_row]
            start = int(ends[first_row - 1]) if first_row else start
            bound = bind_references(part)
        return bound, start
