"""Many Dask blocks of results read together: every HDF5 chunk is read once for all of them.

In: a lazy array of results and some of its Dask blocks. Out: the values of each block, in two
steps: `read_batch` reads a batch of chunks for all blocks, `assemble` makes one block from its
elements in all batches. `LocalShuffle` does both for the threads of one process.

Between processes, both steps are tasks of a graph: `split_batch` splits a batch into one piece
for each group of blocks, and `assemble_group` makes the blocks of a group from its pieces, so
that every element is sent at most once. A task holds the location of the references; each
process decodes the references once. A `ShuffleCost` tells without the files whether a shuffle
pays off, and how many tasks it has.
"""

from __future__ import annotations

import itertools
import math
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xref import reading
from xref.arrays import convert
from xref.errors import naming
from xref.hdf5 import unfold_subarray
from xref.references import DecodeOptions, tile_loader
from xref.resolving.bound_references import BoundDataset
from xref.resolving.lazy_results import BlockReads, ReferenceResults, Spans
from xref.storage import check_unchanged

Values: TypeAlias = npt.NDArray[Any]

Decode: TypeAlias = Callable[[Values], Values]

BATCH_NBYTES = 16 << 20
"""Lower bound on the decoded bytes of one batch of chunks (benchmarks/exchange.py)."""

MIN_BATCH_LIMIT, MAX_BATCHES, MAX_BATCH_BLOCK_PAIRS = 32, 256, 1 << 16
"""Bounds on the number of batches, and on (batch, Dask block) pairs: beyond, batches grow."""

GROUP_NBYTES = 16 << 20
"""Lower bound on the bytes of one group of Dask blocks (benchmarks/scale.py)."""

MIN_GROUPS, MAX_PIECES = 8, 1024
"""Lower bound on groups (and batches), upper bound on pieces, of a shuffle between processes.

Each group is a task. A large task group that depends on fewer than five tasks counts as
"root-ish" in dask.distributed: it is spread over all workers, and those dependencies are
copied to each of them. So there are at least eight.
"""

MIN_REREAD_RATIO = 1.1
"""A shuffle pays off only if blocks that read alone read a chunk more often than this."""

COPIED_PER_DECODED = 2
"""Bytes that are copied in the time in which one byte is decoded (benchmarks/exchange.py)."""

READ_PER_DECODED = 8
"""Bytes that are read in the time in which one byte is decoded, for chunks without filters."""

SHUFFLE_CACHE_SIZE = 4
"""Shuffles whose plan a process caches; their files stay open meanwhile."""

MAX_TARGET_BLOCK_PAIRS = 1 << 18
"""Upper bound on (dataset, Dask block) pairs; beyond it each block is read by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffleLayout:
    """Numbers of tasks of a shuffle between processes."""

    n_batches: int
    n_groups: int
    batch_nbytes: int  # decoded, about


@dataclass(frozen=True, slots=True)
class ShuffleCost:
    """Decoded bytes of the chunks that blocks read, each block alone or all together."""

    blocks: int  # number of Dask blocks
    visited: int  # where each block reads its chunks alone
    distinct: int  # each chunk once
    saved: int  # visited - distinct; chunks without filters count less
    copied: int  # bytes of the blocks

    def pays_off(self) -> bool:
        """Tell whether reading blocks together costs less than reading each alone."""
        if self.visited <= MIN_REREAD_RATIO * self.distinct:
            return False
        return self.saved * COPIED_PER_DECODED >= self.copied

    def scaled_to(self, blocks: int) -> ShuffleCost:
        """Estimate the cost of ``blocks`` of these Dask blocks.

        The estimate assumes that each block reads a random, equally large part of the chunks.
        """
        visited = self.visited * blocks // self.blocks
        fraction = min(self.visited / (self.blocks * max(self.distinct, 1)), 1)
        distinct = min(int(self.distinct * (1 - (1 - fraction) ** blocks)), visited)
        saved = self.saved * (visited - distinct) // max(self.visited - self.distinct, 1)
        copied = self.copied * blocks // self.blocks
        return ShuffleCost(blocks, visited, distinct, saved, copied)

    def n_batches(self) -> int:
        """Return the number of batches in which the chunks are read."""
        limit = min(max(MAX_BATCH_BLOCK_PAIRS // self.blocks, MIN_BATCH_LIMIT), MAX_BATCHES)
        return min(max(-(-self.distinct // BATCH_NBYTES), 1), limit)

    def layout(self) -> ShuffleLayout:
        """Return the numbers of tasks of a shuffle between processes."""
        n_batches = max(self.n_batches(), MIN_GROUPS)
        limit = min(max(MAX_PIECES // n_batches, MIN_GROUPS), self.blocks)
        n_groups = min(max(-(-self.copied // GROUP_NBYTES), MIN_GROUPS), limit)
        batch_nbytes = -(-self.distinct // n_batches)
        return ShuffleLayout(n_batches=n_batches, n_groups=n_groups, batch_nbytes=batch_nbytes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShufflePlan:
    """The chunks of each target in partitions, and batches of partitions of about one size."""

    flat: BlockReads
    targets: tuple[tuple[BoundDataset, reading.PartitionedBoxes], ...]
    batches: tuple[tuple[tuple[int, int], ...], ...]  # (target, partition) pairs of each batch


class Shuffle:
    """Dask blocks that are read together; plain data, the same in every process.

    ``blocks`` has (start, stop) along each axis of each block. ``decode``, such as CF decoding,
    is applied to each block and gives values of ``dtype``. ``token`` identifies the shuffle in
    the cache of a process. ``task_layout`` is needed between processes, where the tasks are
    made before the plan.
    """

    def __init__(
        self,
        array: ReferenceResults,
        blocks: Sequence[Spans],
        decode: Decode | None,
        dtype: np.dtype[Any],
        token: str,
        task_layout: ShuffleLayout | None = None,
    ) -> None:
        self.array, self.blocks = array, tuple(blocks)
        self.decode, self.dtype = decode, dtype
        self.token, self.task_layout = token, task_layout
        self._plan: ShufflePlan | None = None
        self._is_planned = False
        self._planning = threading.Lock()

    def __dask_tokenize__(self) -> str:
        return self.token

    def __reduce__(self) -> tuple[Any, ...]:
        packed = _pack_spans(self.blocks)
        rest = self.decode, self.dtype, self.task_layout
        return _cached_shuffle, (self.token, packed, self.array, *rest)

    @property
    def block_groups(self) -> list[range]:
        """The numbers of the blocks of each group."""
        n, n_groups = len(self.blocks), self.task_layout.n_groups if self.task_layout else 1
        return [range(i * n // n_groups, (i + 1) * n // n_groups) for i in range(n_groups)]

    def plan(self) -> ShufflePlan | None:
        """Return the plan; None where it is better to read each block by itself.

        `read_batch` checks once more that the files are unchanged.
        """
        with self._planning:
            if not self._is_planned:
                for location in self.array.references.columns.used_files():
                    check_unchanged(location)
                flat = self.array.flat_blocks(self.blocks)
                self._plan = None if flat is None else _plan_shuffle(flat, self.task_layout)
                self._is_planned = True
            return self._plan

    def require_plan(self) -> ShufflePlan:
        """Return the plan of blocks that were found to be worth reading together."""
        plan = self.plan()
        if plan is None:
            raise RuntimeError(
                "the plan for reading these Dask blocks together is gone: the references "
                "changed since the graph was built"
            )
        return plan

    def decoded(self, values: Values) -> Values:
        """Decode the values of a block."""
        if self.decode is not None:
            values = self.decode(values)
        return np.asarray(values, dtype=self.dtype)

    def read_block(self, block: int) -> Values:
        """Read and decode one block by itself."""
        return self.decoded(self.array.read_block(self.blocks[block]))


class LocalShuffle:
    """An array whose Dask blocks are read together by the threads of one process.

    A thread that asks for a whole block reads batches of chunks until every batch is in
    memory, and assembles its block from them. An index that is not a whole block is read from
    the array. The batches are dropped when every block has been assembled.

    Any method may be called from any thread; ``_changed`` guards the batches, the numbers of
    the batches being read, and the numbers of the blocks left to assemble.
    """

    def __init__(self, shuffle: Shuffle, array: Any) -> None:
        self.shuffle = shuffle
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.ndim = len(array.shape)
        self._number = {spans: i for i, spans in enumerate(shuffle.blocks)}
        self._changed = threading.Condition()
        self._batches: dict[int, list[Values]] = {}
        self._reading: set[int] = set()
        self._unassembled = set(self._number.values())

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process does not compute the other blocks, so it reads each block alone.
        return _same, (self.array,)

    def __getitem__(self, index: Any) -> Any:
        block = self._block_number(index)
        plan = self.shuffle.plan() if block is not None else None
        if block is None or plan is None:
            return self.array[index]
        values = assemble(self.shuffle, block, self._read_batches(len(plan.batches)))
        with self._changed:
            self._unassembled.discard(block)
            if not self._unassembled:
                self._batches.clear()
                self._unassembled.update(self._number.values())
        return values

    def _block_number(self, index: Any) -> int | None:
        """Return the number of the block that an index selects as a whole, or None."""
        if not all(isinstance(k, slice) and k.step in (None, 1) for k in index):
            return None
        spans = tuple(k.indices(n)[:2] for k, n in zip(index, self.shape, strict=False))
        spans += tuple((0, n) for n in self.shape[len(spans) :])
        return self._number.get(spans)

    def _read_batches(self, n: int) -> list[list[Values]]:
        """Read batches that no other thread reads, until all n are in memory."""
        while True:
            with self._changed:
                if len(self._batches) == n:
                    return [self._batches[i] for i in range(n)]
                taken = self._batches.keys() | self._reading
                number = next((i for i in range(n) if i not in taken), None)
                if number is None:
                    self._changed.wait()
                    continue
                self._reading.add(number)
            batch = None
            try:
                batch = read_batch(self.shuffle, number)
            finally:
                # After a failed read, another thread reads the batch and gets its own error.
                with self._changed:
                    self._reading.discard(number)
                    if batch is not None:
                        self._batches[number] = batch
                    self._changed.notify_all()


def _pack_spans(blocks: Sequence[Spans]) -> bytes:
    """Compress the spans of blocks: differences of consecutive blocks repeat."""
    steps = np.diff(np.array(blocks, dtype="<i8"), axis=0, prepend=0)
    return zlib.compress(steps.tobytes())


def _unpack_spans(packed: bytes, ndim: int) -> tuple[Spans, ...]:
    steps = np.frombuffer(zlib.decompress(packed), dtype="<i8").reshape(-1, ndim, 2)
    return tuple(tuple(map(tuple, spans)) for spans in steps.cumsum(axis=0).tolist())


def _same(array: Any) -> Any:
    return array


_cached: OrderedDict[str, Shuffle] = OrderedDict()
_caching = threading.Lock()  # guards `_cached`


def _cached_shuffle(token: str, packed: bytes, array: ReferenceResults, *rest: Any) -> Shuffle:
    """Unpickle a shuffle: all tasks of a process get one object, which is planned once."""
    with _caching:
        if token not in _cached:
            blocks = _unpack_spans(packed, len(array.shape))
            decode, dtype, task_layout = rest
            _cached[token] = Shuffle(array, blocks, decode, dtype, token, task_layout)
            while len(_cached) > SHUFFLE_CACHE_SIZE:
                _cached.popitem(last=False)
        _cached.move_to_end(token)
        return _cached[token]


def _read_box_shape(target: BoundDataset) -> tuple[int, ...]:
    layout = target.layout
    return reading.read_box_shape(layout.shape, layout.chunks, max(layout.dtype.itemsize, 1))


def _can_share(flat: BlockReads) -> bool:
    """Tell whether each box that is read is for one block, and counting reads is quick."""
    if len(flat.reads) * len(flat.bounds) > MAX_TARGET_BLOCK_PAIRS:
        return False
    return all(reading.fit_dask_blocks(parts, flat.bounds) for _, parts in flat.reads)


def _count_reads(flat: BlockReads) -> tuple[ShuffleCost, list[int]]:
    """Return the cost of blocks, and the bytes of the distinct chunks of each target."""
    visited = saved = 0
    distinct = []
    for target, parts in flat.reads:
        layout, box = target.layout, _read_box_shape(target)
        n_reads, n_distinct = reading.count_chunk_reads(parts, flat.bounds, layout.shape, box)
        box_nbytes = math.prod(box) * max(layout.dtype.itemsize, 1)
        visited += n_reads * box_nbytes
        distinct.append(n_distinct * box_nbytes)
        reread = (n_reads - n_distinct) * box_nbytes
        saved += reread if layout.pipeline.filters else reread // READ_PER_DECODED
    copied = int(flat.bounds[-1]) * flat.dtype.itemsize
    return ShuffleCost(len(flat.bounds) - 1, visited, sum(distinct), saved, copied), distinct


def estimate_cost(array: ReferenceResults, blocks: Sequence[Spans]) -> ShuffleCost | None:
    """Return the cost of reading some blocks; None where they cannot be read together."""
    flat = array.flat_blocks(blocks)
    return _count_reads(flat)[0] if flat is not None and _can_share(flat) else None


def _plan_shuffle(flat: BlockReads, task_layout: ShuffleLayout | None) -> ShufflePlan | None:
    """Divide the chunks that blocks read into batches.

    Without a layout of tasks, there is a plan only if reading together pays off.
    """
    if not _can_share(flat):
        return None
    read_nbytes: Sequence[int | None] = [None] * len(flat.reads)
    if task_layout is not None:
        n_batches, batch_nbytes = task_layout.n_batches, max(task_layout.batch_nbytes, 1)
    else:
        cost, read_nbytes = _count_reads(flat)
        if not cost.pays_off():
            return None
        n_batches = cost.n_batches()
        batch_nbytes = -(-cost.distinct // n_batches)
    targets = []
    pairs: list[tuple[int, int]] = []
    weights: list[int] = []
    for k, ((target, parts), nbytes) in enumerate(zip(flat.reads, read_nbytes, strict=True)):
        shape, itemsize = target.layout.shape, max(target.layout.dtype.itemsize, 1)
        tile = reading.choose_tile(shape, _read_box_shape(target), itemsize, batch_nbytes)
        boxes = reading.plan_shares(parts, flat.bounds, shape, tile)
        targets.append((target, boxes))
        pairs += [(k, partition) for partition in range(len(boxes))]
        # Where chunks were not counted, every chunk of a tile is assumed to be read.
        tile_nbytes = math.prod(map(min, tile, shape)) * itemsize
        weight = tile_nbytes if nbytes is None else nbytes // max(len(boxes), 1)
        weights += [weight] * len(boxes)
    batches = _divide(pairs, weights, n_batches)
    return ShufflePlan(flat=flat, targets=tuple(targets), batches=batches)


def _divide(
    pairs: list[tuple[int, int]], weights: list[int], n: int
) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Divide a list into n consecutive runs of about equal weight; some may be empty."""
    if not pairs:
        return ((),) * n
    ends = np.cumsum(np.array(weights, dtype=np.float64))
    middle = ends - np.array(weights) / 2
    run = np.minimum((middle * n / max(ends[-1], 1)).astype(np.int64), n - 1)
    cuts = np.searchsorted(run, np.arange(n + 1)).tolist()
    return tuple(tuple(pairs[a:b]) for a, b in itertools.pairwise(cuts))


def read_batch(shuffle: Shuffle, number: int) -> list[Values]:
    """Read a batch of chunks: the elements of each partition, 1-D, block after block."""
    plan = shuffle.require_plan()
    options = DecodeOptions(reader=plan.flat.reader)
    out = []
    for k, partition in plan.batches[number]:
        target, boxes = plan.targets[k]
        check_unchanged(target.dataset.location)
        layout = target.layout
        values = np.empty(boxes.size(partition), dtype=layout.dtype)
        itemsize = max(layout.dtype.itemsize, 1)
        parts = boxes.share_parts(partition)
        with naming(target.dataset.__str__):
            loader = tile_loader(target.dataset, layout, options=options)
            read_plan = reading.plan_read(parts, layout.shape, layout.chunks, itemsize)
            reading.read_plan(read_plan, loader, values)
        out.append(_decode_elements(values, plan.flat, target))
    return out


def _decode_elements(values: Values, flat: BlockReads, target: BoundDataset) -> Values:
    """Decode elements of one target by its own attributes, into the type of the blocks."""
    if flat.decoders is None:
        return values.astype(flat.dtype, copy=False)
    decoding = flat.decoders.of(target.dataset)
    if decoding.is_plain and values.dtype == flat.dtype:
        return values
    out = np.empty(len(values), dtype=flat.dtype)
    with naming(target.describe, ValueError):
        unfold_subarray(out)[...] = convert(
            decoding(unfold_subarray(values)), unfold_subarray(out).dtype, target.describe
        )
    return out


def split_batch(shuffle: Shuffle, number: int) -> list[Values]:
    """Read a batch of chunks, and split it into one piece for each group of blocks.

    A piece is 1-D: the elements of the group in each partition, block after block.
    """
    plan = shuffle.plan()
    if plan is None:
        return [np.empty(0, dtype=shuffle.array.raw_dtype) for _ in shuffle.block_groups]
    buffers = read_batch(shuffle, number)
    pieces = []
    for group in shuffle.block_groups:
        stretches = [np.empty(0, dtype=plan.flat.dtype)]
        for (k, partition), buffer in zip(plan.batches[number], buffers, strict=True):
            offset = plan.targets[k][1].offset[partition]
            stretches.append(buffer[offset[group.start] : offset[group.stop]])
        # A copy even of a single stretch: a view would keep the whole batch in memory.
        pieces.append(np.concatenate(stretches, dtype=plan.flat.dtype))
    return pieces


def assemble_group(shuffle: Shuffle, number: int, pieces: list[Values]) -> list[Values]:
    """Make the blocks of one group from its piece of each batch."""
    group = shuffle.block_groups[number]
    plan = shuffle.plan()
    if plan is None:
        # These blocks cannot be read together, though most can: all their references are null.
        return [shuffle.read_block(block) for block in group]
    batches = []
    for batch, piece in zip(plan.batches, pieces, strict=True):
        offsets = (plan.targets[k][1].offset[partition] for k, partition in batch)
        sizes = [int(offset[group.stop] - offset[group.start]) for offset in offsets]
        ends = list(itertools.accumulate(sizes, initial=0))
        batches.append([piece[a:b] for a, b in itertools.pairwise(ends)])
    return [assemble(shuffle, block, batches, group.start) for block in group]


def assemble_block(shuffle: Shuffle, number: int, pieces: list[Values]) -> Values:
    """Make the only block of a group."""
    return assemble_group(shuffle, number, pieces)[0]


def assemble(
    shuffle: Shuffle, block: int, batches: list[list[Values]], first: int = 0
) -> Values:
    """Make one block from its elements in all batches, which start with block ``first``."""
    plan = shuffle.require_plan()
    bounds = plan.flat.bounds
    flat = np.zeros(int(bounds[block + 1] - bounds[block]), dtype=plan.flat.dtype)
    buffers: dict[int, list[Values]] = {}
    for batch, values in zip(plan.batches, batches, strict=True):
        for (k, _), buffer in zip(batch, values, strict=True):
            buffers.setdefault(k, []).append(buffer)
    for k, target_buffers in buffers.items():
        boxes = plan.targets[k][1].block_boxes(block, target_buffers, flat, first)
        if boxes is not None:
            reading.copy_boxes(*boxes)
    return shuffle.decoded(plan.flat.finish(block, flat))
