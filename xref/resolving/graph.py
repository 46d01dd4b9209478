"""Lazy variables into dask graphs.

In: a variable whose data are a lazy array of `xref.engine.lazy_arrays`, the chunks wanted.
Out: the same variable over a dask array: one task a block and one that holds the
lazy array, which is the place of the references, not their contents.

How blocks are read is decided where dask drops the tasks that nobody wants:

- one block by itself, by its index, so that an index of the user's narrows it;
- several that need the same chunks through `xref.resolving.shuffle`: lots of chunks are read
  for all blocks, and each block takes its part of each lot. In one process the tasks of
  blocks read the lots, unless an index narrows a block; on a cluster lots are tasks, and
  so are the pieces of them that groups of blocks take;
- the whole array, wanted as one NumPy array in this process, straight into that.

A cluster's scheduler makes the tasks of a graph that was sent to it, and may not see the
files. What has to be known of them goes with the graph when it is pickled.
"""

from __future__ import annotations

import itertools
import math
import operator
import sys
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from typing import Any

import dask
import dask.array as da
import dask.config
import dask.local
import dask.threaded
import numpy as np
import numpy.typing as npt
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
Decode = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]

TOGETHER_NBYTES = 1 << 30
"""Blocks that are read together hold so many bytes at most; they wait for each other."""


def auto_chunk_nbytes() -> int:
    """Return dask's chunk size (``array.chunk-size``), in bytes."""
    return int(parse_bytes(dask.config.get("array.chunk-size")))


def check_chunks(chunks: Any, dims: Sequence[Hashable]) -> None:
    """Refuse chunks that are no way to cut these dimensions.

    Raises
    ------
    ValueError
        Unless they are None, "auto", an int or a dict by dimension.
    """
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
    what: str,
    decode: Decode | None = None,
) -> xr.Variable:
    """Cut a lazy variable into blocks.

    Task names begin with ``xref-`` and what is done. They are the same when, and
    only when, array, decoding and chunks are.

    Parameters
    ----------
    variable : xarray.Variable
        Over ``array``, decoded or not.
    array : LazyArray
        What the tasks hold.
    chunks : dict
        By dimension.
    what : str
        Part of the task names.
    decode : callable, optional
        Makes of values of ``array`` those of ``variable``; by default they are the same.
    """
    decoding = variable.attrs, variable.encoding, variable.dtype
    name = f"xref-{what}-{tokenize(array, chunks, variable.dims, decoding)}"
    if variable.dtype.hasobject:
        chunks = _objects(chunks)
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
    # Of this array alone, not of a class: xarray does not mix classes of dask arrays.
    vars(blocks).update(
        __dask_postcompute__=lambda: (finish_blocks, (name,)), __dask_optimize__=optimize
    )
    return variable._replace(data=blocks)


def _objects(chunks: dict[Hashable, Any]) -> dict[Hashable, Any]:
    """Dask cannot size objects: "auto" becomes one chunk along each axis."""
    return {dim: -1 if chunk == "auto" else chunk for dim, chunk in chunks.items()}


class ReadLayer(Layer):
    """The tasks that read blocks of a lazy array, made where it is known which are wanted."""

    def __init__(
        self,
        name: str,
        chunks: tuple[tuple[int, ...], ...],
        array: LazyArray,
        dtype: np.dtype[Any],
        decode: Decode | None,
    ) -> None:
        super().__init__()
        self.name = name
        self.original = f"original-{name}"
        self.chunks = chunks
        self.array = array
        self.dtype = dtype
        self.decode = decode
        self.sent = False  # to another process, perhaps to a scheduler
        self.toll: ShuffleCost | None = None  # of all blocks
        self._is_counted = False  # whether the toll was found out
        self._exchange: Shuffle | None = None  # the last one: its plan serves again

    def __getstate__(self) -> dict[str, Any]:
        toll = self._find_toll()
        return self.__dict__ | {"_exchange": None, "sent": True, "toll": toll}

    def _find_toll(self) -> ShuffleCost | None:
        """Return what reading all blocks takes; None where each is read by itself."""
        if self.sent or self._is_counted:
            return self.toll
        if len(self) > 1 and isinstance(self.array, ReferenceResults):
            try:
                self.toll = estimate_cost(self.array, [self._spans(key) for key in self])
                self._is_counted = True
            except (XrefError, OSError):
                # Pickling reads no values: the tasks say what is wrong with the file.
                return None
        return self.toll

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
        index = tuple(slice(*span) for span in self._spans(key))
        return Task(key, getter, TaskRef(self.original), index)

    def is_materialized(self) -> bool:
        """Tell that the tasks are not made yet."""
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
        for together in self._together(wanted, is_local):
            if len(together) < 2 or not isinstance(self.array, ReferenceResults):
                tasks |= {key: self[key] for key in together}
            elif is_local:
                tasks |= self._share(together)
            else:
                tasks |= self._spread(together)
        layer = MaterializedLayer(tasks, annotations=self.annotations)
        return layer, {key: set(task.dependencies) for key, task in tasks.items()}

    def _share(self, wanted: list[Key]) -> dict[Any, Any]:
        """Make tasks for the threads of one process, which read lots for each other."""
        exchange = self._exchange_of(wanted)
        place = f"xref-shared-{exchange.token}"
        tasks: dict[Any, Any] = {
            place: Task(place, LocalShuffle, DataNode(None, exchange), TaskRef(self.original))
        }
        for key in wanted:
            index = tuple(slice(*span) for span in self._spans(key))
            tasks[key] = Task(key, getter, TaskRef(place), index)
        return tasks

    def _spread(self, wanted: list[Key]) -> dict[Any, Any]:
        """Make tasks for processes: lots of chunks, pieces of them, groups of blocks."""
        toll = self._find_toll()
        toll = None if toll is None else toll.scaled_to(len(wanted))
        if toll is None or not toll.pays_off():
            return {key: self[key] for key in wanted}
        division = toll.divide()
        exchange = self._exchange_of(wanted, division)
        token = exchange.token
        # Each task has the place of the references for itself: one that all of them needed
        # would draw the first lots to the worker that has it.
        place = DataNode(None, exchange)
        tasks: dict[Any, Any] = {}
        lots = [(f"xref-chunks-{token}", i) for i in range(division.lots)]
        for lot in lots:
            tasks[lot] = Task(lot, split_batch, place, lot[1])
        for g, group in enumerate(exchange.groups):
            pieces = [(f"xref-pieces-{token}", g, i) for i in range(division.lots)]
            for piece, lot in zip(pieces, lots, strict=True):
                tasks[piece] = Task(piece, operator.getitem, TaskRef(lot), g)
            held = List(*(TaskRef(piece) for piece in pieces))
            blocks = [wanted[i] for i in group]
            if len(blocks) == 1:
                key = blocks[0]
                tasks[key] = Task(key, assemble_block, place, g, held)
                continue
            together = (f"xref-blocks-{token}", g)
            tasks[together] = Task(together, assemble_group, place, g, held)
            for i, key in enumerate(blocks):
                tasks[key] = Task(key, operator.getitem, TaskRef(together), i)
        return tasks

    def reads_whole(self) -> bool:
        """Tell whether reading all of the array at once takes no more memory than blocks."""
        in_place = isinstance(self.array, ReferenceResults) and self.array.in_place
        return len(self) == 1 or (in_place and self.decode is None)

    def _together(self, keys: list[Key], is_local: bool) -> Iterator[list[Key]]:
        """Divide blocks into sets that may be held at once."""
        if len(keys) < 2 or not isinstance(self.array, ReferenceResults):
            yield keys
            return
        wanted: list[Key] = []
        filled = 0
        if is_local:
            sizes = self.array.block_nbytes([self._spans(key) for key in keys])
        else:
            toll = self._find_toll()
            sizes = [0 if toll is None else toll.copied // toll.blocks] * len(keys)
        for key, nbytes in zip(keys, sizes, strict=True):
            if wanted and filled + nbytes > TOGETHER_NBYTES:
                yield wanted
                wanted, filled = [], 0
            wanted.append(key)
            filled += nbytes
        yield wanted

    def _exchange_of(self, keys: list[Key], division: ShuffleLayout | None = None) -> Shuffle:
        token = tokenize(self.name, keys, division)
        known = self._exchange  # another thread may put another one there
        if known is not None and known.token == token:
            return known
        array, blocks = self.array, [self._spans(key) for key in keys]
        if not isinstance(array, ReferenceResults):
            raise TypeError(f"blocks of {type(array).__name__} are not read together")
        if division is not None:
            array, blocks = array.narrow_to_blocks(blocks)
        exchange = Shuffle(array, blocks, self.decode, self.dtype, token, division)
        self._exchange = exchange
        return exchange


def optimize(graph: Any, keys: Any, **options: Any) -> Any:
    """Optimize a graph as dask does, and read whole arrays at once."""
    if isinstance(graph, HighLevelGraph):
        graph = read_whole_arrays(graph, keys)
    return da.Array.__dask_optimize__(graph, keys, **options)


def finish_blocks(blocks: Any, name: str) -> Any:
    """Concatenate the blocks of the array of that name."""
    return finalize(blocks)  # type: ignore[no-untyped-call]


def _is_local(layer: ReadLayer) -> bool:
    """Tell whether dask computes in this process, as far as one can see from within."""
    if layer.sent and _is_scheduler():
        return False
    scheduler = get_scheduler(cls=da.Array)  # type: ignore[no-untyped-call]
    return scheduler in (dask.threaded.get, dask.local.get_sync)


def _is_scheduler() -> bool:
    """Tell whether a scheduler of dask.distributed runs in this process."""
    module = sys.modules.get("distributed.scheduler")
    return module is not None and bool(getattr(module.Scheduler, "_instances", True))


def read_whole_arrays(graph: HighLevelGraph, keys: Any) -> HighLevelGraph:
    """Read arrays that are wanted as a whole, and nothing else of them, by one task.

    Blocks would be copied once more, and be held beside the result.
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
            layers[key] = MaterializedLayer(
                {key: Task(key, getter, TaskRef(layer.original), index)}
            )
            dependencies[key] = {layer.original}
            del layers[name], dependencies[name]
    return HighLevelGraph(layers, dependencies)
