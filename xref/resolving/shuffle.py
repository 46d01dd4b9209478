"""Many blocks of results read together: every chunk read once, for all of them.

In: a lazy array of results and the blocks wanted of it. Out: what reads them, in two
steps: `read_batch` reads a lot of chunks for all blocks, `assemble` makes one block
of what the lots hold for it. `LocalShuffle` does both for the threads of one process.

Between processes, `split_batch` cuts what a lot holds into a piece for each group of
blocks, and `assemble_group` makes the blocks of a group from its pieces, so that every
element travels once at most. These are tasks of a graph. A task knows the place of the
references; what they select is worked out once in each process. Whether any of it is
worth it, and how many tasks there are, is known from a `ShuffleCost`, without the files.
"""

from __future__ import annotations

import itertools
import math
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xref import reading
from xref.arrays import convert
from xref.hdf5 import items
from xref.references import DecodeOptions, tile_loader
from xref.resolving.bound_references import BoundDataset
from xref.resolving.lazy_results import BlockReads, ReferenceResults, Spans
from xref.storage import check_unchanged

LOT_NBYTES = 16 << 20
"""Decoded bytes that one lot holds, at least (benchmarks/exchange.py)."""

FEWEST_LOTS, MOST_LOTS, MOST_PAIRS = 32, 256, 1 << 16
"""Lots, at most, and pairs of them and blocks: lots of large datasets grow."""

GROUP_NBYTES = 16 << 20
"""Bytes that one group of blocks holds, at least (benchmarks/scale.py)."""

FEWEST_GROUPS, MOST_PIECES = 8, 1024
"""Groups (and lots), and pieces for all of them, of one exchange between processes.

Each is a task. What many tasks need of fewer than five others the scheduler of
dask.distributed takes for what every worker should have, and sends it to all.
"""

MIN_REREAD_RATIO = 1.1
"""Blocks are read one by one while that reads chunks no more often than so, on average."""

COPIED_PER_DECODED = 2
"""Bytes that are put together in the time that one takes to decode (benchmarks/exchange.py)."""

READ_PER_DECODED = 8
"""Bytes that are read in that time, where nothing is decoded."""

SHUFFLE_CACHE_SIZE = 4
"""What a process remembers of what it was sent; the files of these stay open there."""

MAX_TARGET_BLOCK_PAIRS = 1 << 18
"""Pairs of a target and a block, at most; beyond that blocks are read one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffleLayout:
    """How an exchange between processes is divided into tasks."""

    lots: int
    groups: int
    lot_nbytes: int  # decoded, about


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffleCost:
    """What blocks read, in bytes of decoded chunks: one by one, and together."""

    blocks: int
    visited: int  # where they are read one by one
    distinct: int  # each chunk once
    saved: int  # of what is read once only; less where nothing is decoded
    copied: int  # what the blocks hold

    def pays_off(self) -> bool:
        """Tell whether reading them together takes less than reading them one by one."""
        if self.visited <= MIN_REREAD_RATIO * self.distinct:
            return False
        return self.saved * COPIED_PER_DECODED >= self.copied

    def scaled_to(self, blocks: int) -> ShuffleCost:
        """Estimate the toll of some of the blocks, as if all were alike, in no order."""
        visited = self.visited * blocks // self.blocks
        alone = min(self.visited / (self.blocks * max(self.distinct, 1)), 1)
        distinct = min(int(self.distinct * (1 - (1 - alone) ** blocks)), visited)
        again = self.visited - self.distinct
        return ShuffleCost(
            blocks=blocks,
            visited=visited,
            distinct=distinct,
            saved=self.saved * (visited - distinct) // max(again, 1),
            copied=self.copied * blocks // self.blocks,
        )

    def n_lots(self) -> int:
        """Return in how many lots of chunks to read them."""
        most = min(max(MOST_PAIRS // self.blocks, FEWEST_LOTS), MOST_LOTS)
        return min(max(-(-self.distinct // LOT_NBYTES), 1), most)

    def divide(self) -> ShuffleLayout:
        """Return how to divide it between processes."""
        lots = max(self.n_lots(), FEWEST_GROUPS)
        most = max(MOST_PIECES // lots, FEWEST_GROUPS)
        groups = min(max(-(-self.copied // GROUP_NBYTES), FEWEST_GROUPS), most)
        return ShuffleLayout(
            lots=lots, groups=min(groups, self.blocks), lot_nbytes=-(-self.distinct // lots)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShufflePlan:
    """Shares of the chunks of each target, in lots of about one size."""

    flat: BlockReads
    targets: tuple[tuple[BoundDataset, reading.PartitionedBoxes], ...]
    lots: tuple[tuple[tuple[int, int], ...], ...]  # (target, share) of each lot


class Shuffle:
    """Blocks that are read together; plain data, the same in every process.

    Parameters
    ----------
    array : ReferenceResults
    blocks : sequence of tuple
        (start, stop) along each axis of each block.
    decode : callable or None
        Applied to each block, such as CF decoding.
    dtype : numpy.dtype
        Of the blocks when decoded.
    token : str
        Names all of this, for what a process remembers.
    division : Division, optional
        Between processes, where the tasks are there before the plan is.
    """

    def __init__(
        self,
        array: ReferenceResults,
        blocks: Sequence[Spans],
        decode: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None,
        dtype: np.dtype[Any],
        token: str,
        division: ShuffleLayout | None = None,
    ) -> None:
        self.array = array
        self.blocks = tuple(blocks)
        self.decode = decode
        self.dtype = dtype
        self.token = token
        self.division = division
        self._plan: ShufflePlan | None = None
        self._is_planned = False
        self._planning = threading.Lock()

    def __dask_tokenize__(self) -> str:
        return self.token

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (
            self.array,
            _pack_spans(self.blocks),
            self.decode,
            self.dtype,
            self.token,
            self.division,
        )

    @property
    def groups(self) -> list[range]:
        """The blocks of each group."""
        n, groups = len(self.blocks), self.division.groups if self.division else 1
        return [range(i * n // groups, (i + 1) * n // groups) for i in range(groups)]

    def plan(self) -> ShufflePlan | None:
        """Return what is to be read; None where blocks are better read one by one.

        That the files are unchanged since is checked where something is read of them.
        """
        with self._planning:
            if not self._is_planned:
                for location in self.array.references.columns.used_files():
                    check_unchanged(location)
                flat = self.array.flat_blocks(self.blocks)
                self._plan = None if flat is None else _plan_exchange(flat, self.division)
                self._is_planned = True
            return self._plan

    def decoded(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Decode what was read of a block."""
        if self.decode is not None:
            values = self.decode(values)
        return np.asarray(values, dtype=self.dtype)

    def read_block(self, block: int) -> npt.NDArray[Any]:
        """Read and decode one block by itself."""
        return self.decoded(self.array.read_block(self.blocks[block]))

    def require_plan(self) -> ShufflePlan:
        """Return what is to be read, for blocks that are known to be read together."""
        plan = self.plan()
        if plan is None:
            raise RuntimeError("blocks that were to be read together cannot be any more")
        return plan


class LocalShuffle:
    """The array whose blocks are read together, by the threads of one process.

    A thread that asks for a whole block reads lots of chunks until all are there, and
    takes its part of each. What is no whole block is read from the array. Lots are let go
    of when every block was taken.

    Parameters
    ----------
    exchange : Exchange
    array : array-like
        Read by index, for parts of blocks.
    """

    def __init__(self, exchange: Shuffle, array: Any) -> None:
        self.exchange = exchange
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.ndim = len(array.shape)
        self._number = {spans: i for i, spans in enumerate(exchange.blocks)}
        self._changed = threading.Condition()
        self._lots: dict[int, list[npt.NDArray[Any]]] = {}
        self._reading: set[int] = set()
        self._left = set(self._number.values())

    def __reduce__(self) -> tuple[Any, ...]:
        # In another process nobody takes the other blocks: each is read by itself.
        return _same, (self.array,)

    def __getitem__(self, index: Any) -> Any:
        block = self._find(index)
        plan = self.exchange.plan() if block is not None else None
        if block is None or plan is None:
            return self.array[index]
        values = assemble(self.exchange, block, self._read_lots(len(plan.lots)))
        with self._changed:
            self._left.discard(block)
            if not self._left:
                self._lots.clear()
                self._left.update(self._number.values())
        return values

    def _find(self, index: Any) -> int | None:
        """Return the number of the block that an index selects all of."""
        if not all(isinstance(k, slice) and k.step in (None, 1) for k in index):
            return None
        spans = tuple(k.indices(n)[:2] for k, n in zip(index, self.shape, strict=False))
        spans += tuple((0, n) for n in self.shape[len(spans) :])
        return self._number.get(spans)

    def _read_lots(self, n_lots: int) -> list[list[npt.NDArray[Any]]]:
        """Read what no other thread reads, until all lots are there."""
        while True:
            with self._changed:
                if len(self._lots) == n_lots:
                    return [self._lots[i] for i in range(n_lots)]
                free = (i for i in range(n_lots) if i not in self._lots.keys() | self._reading)
                number = next(free, None)
                if number is None:
                    self._changed.wait()
                    continue
                self._reading.add(number)
            lot = None
            try:
                lot = read_batch(self.exchange, number)
            finally:
                # Where it failed, another thread tries, and fails by itself.
                with self._changed:
                    self._reading.discard(number)
                    if lot is not None:
                        self._lots[number] = lot
                    self._changed.notify_all()


def _pack_spans(blocks: Sequence[Spans]) -> bytes:
    """Return blocks as few bytes: from one to the next, the same steps come again."""
    steps = np.diff(np.array(blocks, dtype="<i8"), axis=0, prepend=0)
    return zlib.compress(steps.tobytes())


def _unpack_spans(packed: bytes, ndim: int) -> tuple[Spans, ...]:
    steps = np.frombuffer(zlib.decompress(packed), dtype="<i8").reshape(-1, ndim, 2)
    return tuple(tuple(map(tuple, spans)) for spans in steps.cumsum(axis=0).tolist())


def _same(array: Any) -> Any:
    return array


_received: OrderedDict[str, Shuffle] = OrderedDict()
_receiving = threading.Lock()


def _receive(
    array: ReferenceResults,
    packed: bytes,
    decode: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None,
    dtype: np.dtype[Any],
    token: str,
    division: ShuffleLayout | None,
) -> Shuffle:
    """Return what other tasks of this process were sent as well, so that it is planned once."""
    with _receiving:
        if token not in _received:
            blocks = _unpack_spans(packed, len(array.shape))
            _received[token] = Shuffle(array, blocks, decode, dtype, token, division)
            while len(_received) > SHUFFLE_CACHE_SIZE:
                _received.popitem(last=False)
        _received.move_to_end(token)
        return _received[token]


def _cell_of(target: BoundDataset) -> tuple[int, ...]:
    layout = target.layout
    return reading.read_box_shape(layout.shape, layout.chunks, max(layout.dtype.itemsize, 1))


def _can_share(flat: BlockReads) -> bool:
    """Tell whether each part of what is read is for one block, and counting is quick."""
    if len(flat.reads) * len(flat.bounds) > MAX_TARGET_BLOCK_PAIRS:
        return False
    return all(reading.fit_dask_blocks(parts, flat.bounds) for _, parts in flat.reads)


def _count(flat: BlockReads) -> tuple[ShuffleCost, list[int]]:
    """Count what blocks read; also the bytes of each target's chunks."""
    visited = saved = 0
    distinct = []
    for target, parts in flat.reads:
        layout, cell = target.layout, _cell_of(target)
        counts = reading.count_chunk_reads(parts, flat.bounds, layout.shape, cell)
        cell_nbytes = math.prod(cell) * max(layout.dtype.itemsize, 1)
        visited += counts[0] * cell_nbytes
        distinct.append(counts[1] * cell_nbytes)
        again = (counts[0] - counts[1]) * cell_nbytes
        saved += again if layout.pipeline.filters else again // READ_PER_DECODED
    toll = ShuffleCost(
        blocks=len(flat.bounds) - 1,
        visited=visited,
        distinct=sum(distinct),
        saved=saved,
        copied=int(flat.bounds[-1]) * flat.dtype.itemsize,
    )
    return toll, distinct


def estimate_cost(array: ReferenceResults, blocks: Sequence[Spans]) -> ShuffleCost | None:
    """Return what some blocks read; None where they cannot be read together."""
    flat = array.flat_blocks(blocks)
    return _count(flat)[0] if flat is not None and _can_share(flat) else None


def _plan_exchange(flat: BlockReads, division: ShuffleLayout | None) -> ShufflePlan | None:
    """Divide what blocks read into lots of chunks.

    Where it is not said how, it is divided only if that saves reading any.
    """
    if not _can_share(flat):
        return None
    nbytes_of: Sequence[int | None] = [None] * len(flat.reads)
    if division is not None:
        n_lots, nbytes = division.lots, max(division.lot_nbytes, 1)
    else:
        toll, nbytes_of = _count(flat)
        if not toll.pays_off():
            return None
        n_lots = toll.n_lots()
        nbytes = -(-toll.distinct // n_lots)
    targets = []
    pairs: list[tuple[int, int]] = []
    weights: list[int] = []
    for k, ((target, parts), read_nbytes) in enumerate(zip(flat.reads, nbytes_of, strict=True)):
        shape, itemsize = target.layout.shape, max(target.layout.dtype.itemsize, 1)
        tile = reading.choose_tile(shape, _cell_of(target), itemsize, nbytes)
        shares = reading.plan_shares(parts, flat.bounds, shape, tile)
        targets.append((target, shares))
        pairs += [(k, share) for share in range(len(shares))]
        # Where chunks were not counted, all of a tile are taken to be read.
        tile_nbytes = math.prod(map(min, tile, shape)) * itemsize
        weight = tile_nbytes if read_nbytes is None else read_nbytes // max(len(shares), 1)
        weights += [weight] * len(shares)
    lots = _divide(pairs, weights, n_lots)
    return ShufflePlan(flat=flat, targets=tuple(targets), lots=lots)


def _divide(
    pairs: list[tuple[int, int]], weights: list[int], n: int
) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Divide a list into n runs of about the same weight; some may be empty."""
    if not pairs:
        return ((),) * n
    ends = np.cumsum(np.array(weights, dtype=np.float64))
    middle = ends - np.array(weights) / 2
    of = np.minimum((middle * n / max(ends[-1], 1)).astype(np.int64), n - 1)
    cuts = np.searchsorted(of, np.arange(n + 1)).tolist()
    return tuple(tuple(pairs[a:b]) for a, b in itertools.pairwise(cuts))


def read_batch(exchange: Shuffle, number: int) -> list[npt.NDArray[Any]]:
    """Read one lot of chunks.

    Returns
    -------
    list of numpy.ndarray
        The elements of each share of the lot, 1-D, block after block.
    """
    plan = exchange.require_plan()
    out = []
    for k, share in plan.lots[number]:
        target, shares = plan.targets[k]
        check_unchanged(target.dataset.location)
        layout = target.layout
        values = np.empty(shares.size(share), dtype=layout.dtype)
        options = DecodeOptions(reader=plan.flat.reader)
        loader = tile_loader(target.dataset, layout, options=options)
        itemsize = max(layout.dtype.itemsize, 1)
        parts = shares.share_parts(share)
        reading.read_plan(
            reading.plan_read(parts, layout.shape, layout.chunks, itemsize), loader, values
        )
        out.append(_decoded_elements(values, plan.flat, target))
    return out


def _decoded_elements(
    values: npt.NDArray[Any], flat: BlockReads, target: BoundDataset
) -> npt.NDArray[Any]:
    """Decode elements of one target by its own attributes, into the type of the blocks."""
    if flat.decoders is None:
        return values.astype(flat.dtype, copy=False)
    decoding = flat.decoders.of(target.dataset)
    if decoding.is_plain and values.dtype == flat.dtype:
        return values
    out = np.empty(len(values), dtype=flat.dtype)
    items(out)[...] = convert(decoding(items(values)), items(out).dtype, target.describe)
    return out


def split_batch(exchange: Shuffle, number: int) -> list[npt.NDArray[Any]]:
    """Read one lot of chunks, for other processes.

    Returns
    -------
    list of numpy.ndarray
        The elements of each group of blocks, 1-D: of each share of the lot, block after
        block.
    """
    plan = exchange.plan()
    if plan is None:
        return [np.empty(0, dtype=exchange.array.raw_dtype) for _ in exchange.groups]
    lot = plan.lots[number]
    buffers = read_batch(exchange, number)
    pieces = []
    for group in exchange.groups:
        stretches = [np.empty(0, dtype=plan.flat.dtype)]
        for (k, share), buffer in zip(lot, buffers, strict=True):
            offset = plan.targets[k][1].offset[share]
            stretches.append(buffer[offset[group.start] : offset[group.stop]])
        # A copy, also of a single stretch: a view would keep all of the lot in memory.
        pieces.append(np.concatenate(stretches, dtype=plan.flat.dtype))
    return pieces


def assemble_group(
    exchange: Shuffle, number: int, pieces: list[npt.NDArray[Any]]
) -> list[npt.NDArray[Any]]:
    """Make the blocks of one group of its piece of each lot."""
    group = exchange.groups[number]
    plan = exchange.plan()
    if plan is None:
        # Of all blocks, these are such as cannot be read together: all null, for one.
        return [exchange.read_block(block) for block in group]
    lots = []
    for lot, piece in zip(plan.lots, pieces, strict=True):
        offsets = (plan.targets[k][1].offset[share] for k, share in lot)
        sizes = [int(offset[group.stop] - offset[group.start]) for offset in offsets]
        ends = list(itertools.accumulate(sizes, initial=0))
        lots.append([piece[a:b] for a, b in itertools.pairwise(ends)])
    return [assemble(exchange, block, lots, group.start) for block in group]


def assemble_block(
    exchange: Shuffle, number: int, pieces: list[npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    """Make the one block of a group."""
    (block,) = assemble_group(exchange, number, pieces)
    return block


def assemble(
    exchange: Shuffle, block: int, lots: list[list[npt.NDArray[Any]]], first: int = 0
) -> npt.NDArray[Any]:
    """Make one block of what all lots hold for it, from block ``first`` on, and decode it."""
    plan = exchange.require_plan()
    bounds = plan.flat.bounds
    flat = np.zeros(int(bounds[block + 1] - bounds[block]), dtype=plan.flat.dtype)
    buffers: dict[int, list[npt.NDArray[Any]]] = {}
    for lot, of_lot in zip(plan.lots, lots, strict=True):
        for (k, _), buffer in zip(lot, of_lot, strict=True):
            buffers.setdefault(k, []).append(buffer)
    for k, of_target in buffers.items():
        boxes = plan.targets[k][1].block_boxes(block, of_target, flat, first)
        if boxes is not None:
            reading.copy_boxes(*boxes)
    return exchange.decoded(plan.flat.finish(block, flat))
