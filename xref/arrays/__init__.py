"""Columns, ragged ranges, strides, byte ranges and conversions: array helpers without HDF5.

In: NumPy arrays. Out: NumPy arrays. A table of n rows is a set of columns of shape ``(n,)`` or
``(n, ndim)``, int64 unless a comment says otherwise. Names tell the unit: ``offset`` and
``nbytes`` are bytes, ``start``, ``shape``, ``stride`` and ``count`` are elements.
"""

from typing import TYPE_CHECKING

from xref.lazy_names import lazy_names

if TYPE_CHECKING:
    # fmt: off
    from xref.arrays.buffers import scratch_buffer
    from xref.arrays.byte_ranges import (
        SMALL_NBYTES, ByteSource, CachedRanges, KnownRanges, OverlaidFile, Range, RangeSource,
        coalesce, fetch_stages, group_ranges, split,
    )
    from xref.arrays.columns import (
        BoolArray, FrozenColumns, IntArray, digest, ragged_ranges, ragged_take, renumber,
        row_offsets, run_starts,
    )
    from xref.arrays.conversion import (
        convert, dtype_token, dtype_with, exact_dtype, exact_values, is_same_value,
        results_dtype, text_of, to_objects,
    )
    from xref.arrays.scattered_reads import GAP_NBYTES, read_scattered
    from xref.arrays.strides import canvas_strides, linear, row_strides
    # fmt: on
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
