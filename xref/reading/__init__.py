"""Reading elements: a plan that needs no file, and its execution.

In: selections, a layout and a chunk index. Out: elements in memory; each chunk is read and
decoded once.
"""

from typing import TYPE_CHECKING

from xref.lazy_names import lazy_names

if TYPE_CHECKING:
    # fmt: off
    from xref.reading.box_copies import copy_boxes
    from xref.reading.chunk_checks import check_packed, chunk_check
    from xref.reading.execute import (
        BoxLoader, ChunkLoader, ContiguousLoader, TileLoader, UndefinedLoader, read_plan,
    )
    from xref.reading.loaders import value_loader
    from xref.reading.partitions import (
        PartitionedBoxes, count_chunk_reads, fit_dask_blocks, plan_shares, read_box_shape,
    )
    from xref.reading.boxes import (
        Parts, Segments, interval_segments, plan_outer, plan_parts, plan_points,
        regular_segments,
    )
    from xref.reading.plan import ReadPlan, choose_tile, plan_chunk, plan_read
    from xref.reading.small_datasets import SmallDatasets, select_small_datasets
    from xref.reading.virtual_sources import StoredPart, split_virtual
    # fmt: on
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
