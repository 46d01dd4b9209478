"""Selections of elements: one selection, a table of many, their unions and projections.

In: starts, strides, counts and blocks in elements. Out: selections of the same elements in
another form, their shapes and bounds, or selections of fewer elements. Nothing here reads a
file.
"""

from typing import TYPE_CHECKING

from xref.lazy_names import lazy_names

if TYPE_CHECKING:
    # fmt: off
    from xref.selections.positions import element_positions
    from xref.selections.projection import narrow, narrow_rows, project
    from xref.selections.table import KIND_NAMES, SelectionKind, SelectionTable
    from xref.selections.table_building import (
        box_table, concat_at, concat_tables, empty_table, strided_table, table_from_blocks,
        table_from_selections,
    )
    from xref.selections.unions import merge_intervals, outer_axes, outer_blocks, row_runs
    from xref.selections.values import (
        UNLIMITED, All, Blocks, Empty, Hyperslab, Points, Selection,
    )
    # fmt: on
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
