"""Columns, ragged ranges, strides and byte ranges: helpers that know nothing of HDF5.

In: NumPy arrays. Out: NumPy arrays.
"""

from typing import TYPE_CHECKING

from xref.lazy_names import lazy_names

if TYPE_CHECKING:
    from xref.arrays.buffers import scratch_buffer
    from xref.arrays.byte_ranges import (
        SMALL_NBYTES,
        ByteSource,
        CachedRanges,
        Range,
        RangeSource,
        coalesce,
        fetch_stages,
        split,
    )
    from xref.arrays.columns import (
        BoolArray,
        FrozenColumns,
        IntArray,
        digest,
        ragged_ranges,
        ragged_take,
        renumber,
        row_offsets,
        run_starts,
    )
    from xref.arrays.conversion import (
        convert,
        dtype_token,
        dtype_with,
        exact_dtype,
        exact_values,
        is_same_value,
        results_dtype,
        text_of,
        to_objects,
    )
    from xref.arrays.scattered_reads import GAP_NBYTES, group_ranges, read_scattered
    from xref.arrays.strides import canvas_strides, linear, row_strides
else:
    __getattr__, __all__ = lazy_names(__name__)
