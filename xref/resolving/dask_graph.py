"""Dask graphs of lazy variables.

In: a variable over a lazy array of `xref.engine.lazy_arrays`, and chunks. Out: the same
variable over a Dask array. Its graph has one task for each Dask block, and one task that holds
the lazy array: the location of the references, not the references.

The tasks are made when Dask culls the graph to the blocks that are needed:

- A single block is read by its index, so that a later index of the user narrows the read.
- Several blocks that need the same HDF5 chunks are read through `xref.resolving.shuffle`, in
  batches of chunks. In one process the tasks of the blocks read the batches, unless an index
  narrows a block. On a cluster each batch is a task, and so is each piece of a batch that one
  group of blocks needs.
- A whole array that becomes one NumPy array in this process is read straight into it.

The scheduler of a cluster makes the tasks of a graph that was sent to it, and may not see the
files. So a pickled graph includes the estimated cost of its reads.
"""

from __future__ import annotations

import itertools
import math
import operator
import sys
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from typing import Any

import dask
import dask.array as da
import dask.config
import dask.local
import dask.threaded
import numpy as np
import xarray as xr
from dask._task_spec import DataNode, List, Task, TaskRef
from dask.array.core import finalize, getter, normalize_chunks
from dask.base import get_scheduler, tokenize
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph, Layer, MaterializedLayer
from dask.utils import parse_bytes

from xref.engine import LazyArray, outer_indexed
from xref.errors import XrefError
from xref.resolving.lazy_results import ReferenceResults, Spans
from xref.resolving.shuffle import (
    Decode,
    LocalShuffle,
    Shuffle,
    ShuffleCost,
    ShuffleLayout,
    assemble_block,
    assemble_group,
    estimate_cost,
    split_batch,
)

Key = tuple[Any, ...]

SHUFFLE_NBYTES = 1 << 30
"""Upper bound on the bytes of the blocks in one shuffle: they are in memory together."""


def auto_chunk_nbytes() -> int:
    """Return Dask's chunk size (``array.chunk-size``), in bytes."""
    return int(parse_bytes(dask.config.get("array.chunk-size")))


def check_chunks(chunks: Any, dims: Sequence[Hashable]) -> None:
    """Raise ValueError unless chunks are None, "auto", an int, or a dict by dimension."""
    if chunks is None or (isinstance(chunks, str) and chunks == "auto"):
        return
    if isinstance(chunks, dict):
        unknown = [d for d in chunks if d not in dims]
        if unknown:
            raise ValueError(
                f"chunks names dimensions {unknown}; there are {[str(d) for d in dims]}"
            )
        for chunk in chunks.values():
            if isinstance(chunk, int):
                check_chunks(chunk, dims)
    elif not isinstance(chunks, int) or isinstance(chunks, bool):
        raise ValueError(f"chunks is {chunks!r}; None, 'auto', an int or a dict is needed")
    elif chunks < -1 or chunks == 0:
        raise ValueError(f"chunks is {chunks}; a positive number or -1 (one block) is needed")


def chunk_variable(
    variable: xr.Variable,
    array: LazyArray,
    chunks: Any,
    operation: str,
    decode: Decode | None = None,
) -> xr.Variable:
    """Divide a lazy variable over ``array`` into Dask blocks, with chunks by dimension.

    The tasks index ``array``; ``decode`` makes values of ``variable`` from its values, if they
    differ. Task names begin with ``xref-`` and ``operation``, and end with a token of the
    array, its decoding and the chunks.
    """
    decoding = variable.attrs, variable.encoding, variable.dtype
    name = f"xref-{operation}-{tokenize(array, chunks, variable.dims, decoding)}"
    if variable.dtype.hasobject:
        # Dask cannot size objects: "auto" becomes one chunk along each axis.
        chunks = {dim: -1 if chunk == "auto" else chunk for dim, chunk in chunks.items()}
    sizes = normalize_chunks(  # type: ignore[no-untyped-call]
        tuple(chunks.get(d, n) for d, n in variable.sizes.items()),
        variable.shape,
        dtype=variable.dtype,
    )
    layer = ReadLayer(name, sizes, array, variable.dtype, decode)
    original = {layer.original: DataNode(layer.original, outer_indexed(variable))}
    graph = HighLevelGraph(
        {layer.original: MaterializedLayer(original), name: layer},
        {layer.original: set(), name: {layer.original}},
    )
    blocks = da.Array(graph, name, sizes, dtype=variable.dtype, meta=np.ndarray)  # type: ignore[no-untyped-call]
    # Set on this instance, not in a subclass: xarray does not mix classes of Dask arrays.
    vars(blocks).update(
        __dask_postcompute__=lambda: (finish_blocks, (name,)), __dask_optimize__=optimize
    )
    return variable._replace(data=blocks)


class ReadLayer(Layer):
    """The tasks that read blocks of a lazy array; made when Dask culls the graph."""

    def __init__(
        self,
        name: str,
        chunks: tuple[tuple[int, ...], ...],
        array: LazyArray,
        dtype: np.dtype[Any],
        decode: Decode | None,
    ) -> None:
        super().__init__()
        self.name, self.original = name, f"original-{name}"
        self.chunks, self.array, self.dtype, self.decode = chunks, array, dtype, decode
        self.sent = False  # to another process, perhaps to a scheduler
        self.cost: ShuffleCost | None = None  # of all blocks
        self._is_estimated = False
        self._last_shuffle: Shuffle | None = None  # kept for its plan

    def __getstate__(self) -> dict[str, Any]:
        cost = self._estimate_cost()
        return self.__dict__ | {"_last_shuffle": None, "sent": True, "cost": cost}

    def _estimate_cost(self) -> ShuffleCost | None:
        """Return the cost of reading all blocks; None where each is read by itself."""
        if self.sent or self._is_estimated:
            return self.cost
        if len(self) > 1 and isinstance(self.array, ReferenceResults):
            try:
                self.cost = estimate_cost(self.array, [self._spans(key) for key in self])
                self._is_estimated = True
            except (XrefError, OSError):
                # Pickling reads no values: the tasks will report the error of the file.
                return None
        return self.cost

    @cached_property
    def _edges(self) -> list[list[int]]:
        return [[0, *itertools.accumulate(sizes)] for sizes in self.chunks]

    def _spans(self, key: Key) -> Spans:
        return tuple((e[i], e[i + 1]) for e, i in zip(self._edges, key[1:], strict=True))

    def __len__(self) -> int:
        return math.prod(len(sizes) for sizes in self.chunks)

    def __iter__(self) -> Iterator[Key]:
        counts = (range(len(sizes)) for sizes in self.chunks)
        return ((self.name, *index) for index in itertools.product(*counts))

    def __contains__(self, key: Any) -> bool:
        if not isinstance(key, tuple) or len(key) != len(self.chunks) + 1:
            return False
        inside = (0 <= i < len(n) for i, n in zip(key[1:], self.chunks, strict=True))
        return bool(key[0] == self.name) and all(inside)

    def __getitem__(self, key: Any) -> Task:
        if key not in self:
            raise KeyError(key)
        return self._index_task(key, self.original)

    def _index_task(self, key: Key, array: str) -> Task:
        index = tuple(slice(*span) for span in self._spans(key))
        return Task(key, getter, TaskRef(array), index)

    def is_materialized(self) -> bool:
        """Return False: the tasks are made by `cull`."""
        return False

    def get_output_keys(self) -> Set[Key]:
        """Return the keys of all blocks."""
        return set(iter(self))

    def cull(
        self, keys: set[Any], all_hlg_keys: Collection[Any]
    ) -> tuple[Layer, Mapping[Any, set[Any]]]:
        """Make the tasks for some blocks; see `dask.highlevelgraph.Layer.cull`."""
        wanted = sorted(key for key in keys if key in self)
        tasks: dict[Any, Any] = {}
        is_local = _is_local(self)
        for blocks in self._memory_rounds(wanted, is_local):
            if len(blocks) < 2 or not isinstance(self.array, ReferenceResults):
                tasks |= {key: self[key] for key in blocks}
            elif is_local:
                tasks |= self._local_tasks(blocks)
            else:
                tasks |= self._cluster_tasks(blocks)
        layer = MaterializedLayer(tasks, annotations=self.annotations)
        return layer, {key: set(task.dependencies) for key, task in tasks.items()}

    def _local_tasks(self, wanted: list[Key]) -> dict[Any, Any]:
        """Make tasks for the threads of one process, which read batches for each other."""
        shuffle = self._shuffle(wanted)
        shared = f"xref-shared-{shuffle.token}"
        tasks: dict[Any, Any] = {
            shared: Task(shared, LocalShuffle, DataNode(None, shuffle), TaskRef(self.original))
        }
        return tasks | {key: self._index_task(key, shared) for key in wanted}

    def _cluster_tasks(self, wanted: list[Key]) -> dict[Any, Any]:
        """Make tasks for processes: batches of chunks, their pieces, groups of blocks."""
        cost = self._estimate_cost()
        cost = None if cost is None else cost.scaled_to(len(wanted))
        if cost is None or not cost.pays_off():
            return {key: self[key] for key in wanted}
        layout = cost.layout()
        shuffle = self._shuffle(wanted, layout)
        token = shuffle.token
        # Each task includes the shuffle. If one task held it for all others, the scheduler
        # would run the first batches on the worker of that task.
        node = DataNode(None, shuffle)
        tasks: dict[Any, Any] = {}
        batches = [(f"xref-chunks-{token}", i) for i in range(layout.n_batches)]
        for batch in batches:
            tasks[batch] = Task(batch, split_batch, node, batch[1])
        for g, block_numbers in enumerate(shuffle.block_groups):
            pieces = [(f"xref-pieces-{token}", g, i) for i in range(layout.n_batches)]
            for piece, batch in zip(pieces, batches, strict=True):
                tasks[piece] = Task(piece, operator.getitem, TaskRef(batch), g)
            inputs = List(*(TaskRef(piece) for piece in pieces))
            blocks = [wanted[i] for i in block_numbers]
            if len(blocks) == 1:
                tasks[blocks[0]] = Task(blocks[0], assemble_block, node, g, inputs)
                continue
            group = (f"xref-blocks-{token}", g)
            tasks[group] = Task(group, assemble_group, node, g, inputs)
            for i, key in enumerate(blocks):
                tasks[key] = Task(key, operator.getitem, TaskRef(group), i)
        return tasks

    def reads_whole(self) -> bool:
        """Tell whether reading the whole array at once takes no more memory than blocks."""
        in_place = isinstance(self.array, ReferenceResults) and self.array.in_place
        return len(self) == 1 or (in_place and self.decode is None)

    def _memory_rounds(self, keys: list[Key], is_local: bool) -> Iterator[list[Key]]:
        """Divide blocks into sets that fit into memory together."""
        if len(keys) < 2 or not isinstance(self.array, ReferenceResults):
            yield keys
            return
        blocks: list[Key] = []
        filled = 0
        if is_local:
            sizes = self.array.block_nbytes([self._spans(key) for key in keys])
        else:
            cost = self._estimate_cost()
            sizes = [0 if cost is None else cost.copied // cost.blocks] * len(keys)
        for key, nbytes in zip(keys, sizes, strict=True):
            if blocks and filled + nbytes > SHUFFLE_NBYTES:
                yield blocks
                blocks, filled = [], 0
            blocks.append(key)
            filled += nbytes
        yield blocks

    def _shuffle(self, keys: list[Key], layout: ShuffleLayout | None = None) -> Shuffle:
        token = tokenize(self.name, keys, layout)
        last = self._last_shuffle  # another thread may assign the attribute meanwhile
        if last is not None and last.token == token:
            return last
        array, blocks = self.array, [self._spans(key) for key in keys]
        if not isinstance(array, ReferenceResults):
            raise TypeError(f"blocks of {type(array).__name__} are not read together")
        if layout is not None:
            array, blocks = array.narrow_to_blocks(blocks)
        shuffle = Shuffle(array, blocks, self.decode, self.dtype, token, layout)
        self._last_shuffle = shuffle
        return shuffle


def optimize(graph: Any, keys: Any, **options: Any) -> Any:
    """Optimize a graph as Dask does, and read whole arrays at once."""
    if isinstance(graph, HighLevelGraph):
        graph = read_whole_arrays(graph, keys)
    return da.Array.__dask_optimize__(graph, keys, **options)


def finish_blocks(blocks: Any, name: str) -> Any:
    """Concatenate the blocks of the array of that name."""
    return finalize(blocks)  # type: ignore[no-untyped-call]


def _is_local(layer: ReadLayer) -> bool:
    """Tell whether Dask computes in this process, judging by its configured scheduler."""
    # A layer that was sent may be in the process of a scheduler of dask.distributed.
    module = sys.modules.get("distributed.scheduler") if layer.sent else None
    if module is not None and getattr(module.Scheduler, "_instances", True):
        return False
    scheduler = get_scheduler(cls=da.Array)  # type: ignore[no-untyped-call]
    return scheduler in (dask.threaded.get, dask.local.get_sync)


def read_whole_arrays(graph: HighLevelGraph, keys: Any) -> HighLevelGraph:
    """Read an array by one task if the only result is the whole array.

    Separate blocks would be copied once more, and be in memory beside the result.
    """
    layers, dependencies = dict(graph.layers), dict(graph.dependencies)
    for key in set(flatten(keys)):  # type: ignore[no-untyped-call]
        task = layers[key].get(key) if key in layers else None
        if not isinstance(task, Task) or task.func is not finish_blocks:
            continue
        name = task.args[-1]
        layer = layers.get(name)
        users = [user for user, needed in dependencies.items() if name in needed]
        if not isinstance(layer, ReadLayer) or not _is_local(layer):
            continue
        if layer.reads_whole() and users == [key]:
            index = tuple(slice(0, sum(sizes)) for sizes in layer.chunks)
            read = Task(key, getter, TaskRef(layer.original), index)
            layers[key] = MaterializedLayer({key: read})
            dependencies[key] = {layer.original}
            del layers[name], dependencies[name]
    return HighLevelGraph(layers, dependencies)
