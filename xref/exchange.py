"""Many blocks of results read together: every chunk read once, for all of them.

In: a lazy array of results and the blocks wanted of it. Out: the tasks of a graph as
two functions: `read_lot` reads a lot of chunks for all blocks, `put_together` makes
one block of what the lots hold for it. A task knows the place of the references;
what they select is worked out once in each process. `SharedBlocks` does both for the
threads of one process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.copies import copy_boxes
from xref.elements import DecodeOptions
from xref.gather import BoundTarget
from xref.h5file import check_unchanged
from xref.loaders import tile_loader
from xref.plan import choose_tile, plan_read
from xref.readers import read_plan
from xref.results import FlatBlocks, ReferenceResults, Spans
from xref.shares import Shares, count_visits, lie_in_blocks, plan_shares, storage_cell

LOT_NBYTES = 16 << 20
"""Decoded bytes that one task reads, at least (benchmarks/exchange.py)."""

FEWEST_LOTS, MOST_LOTS, MOST_PAIRS = 32, 256, 1 << 16
"""Tasks that read, at most, and pairs of them and blocks: lots of large datasets grow."""

FEW_VISITS = 1.1
"""Blocks are read one by one while that reads chunks no more often than so, on average."""

COPIED_PER_DECODED = 2
"""Bytes that are put together in the time that one takes to decode (benchmarks/exchange.py)."""

READ_PER_DECODED = 8
"""Bytes that are read in that time, where nothing is decoded."""

KEPT_EXCHANGES = 4
"""What a process remembers of what it was sent; the files of these stay open there."""

MOST_MEETINGS = 1 << 18
"""Pairs of a target and a block, at most; beyond that blocks are read one by one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExchangePlan:
    """Shares of the chunks of each target, in lots of about one size."""

    flat: FlatBlocks
    targets: tuple[tuple[BoundTarget, Shares], ...]
    lots: tuple[tuple[tuple[int, int], ...], ...]  # (target, share) of each lot


class Exchange:
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
    """

    def __init__(
        self,
        array: ReferenceResults,
        blocks: Sequence[Spans],
        decode: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None,
        dtype: np.dtype[Any],
        token: str,
    ) -> None:
        self.array = array
        self.blocks = tuple(blocks)
        self.decode = decode
        self.dtype = dtype
        self.token = token
        self._plan: ExchangePlan | None = None
        self._is_planned = False
        self._planning = threading.Lock()

    def __dask_tokenize__(self) -> str:
        return self.token

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (self.array, self.blocks, self.decode, self.dtype, self.token)

    def plan(self) -> ExchangePlan | None:
        """Return what is to be read; None where blocks are better read one by one.

        That the files are unchanged since is checked where something is read of them.
        """
        with self._planning:
            if not self._is_planned:
                for location in self.array.references.columns.used_files():
                    check_unchanged(location)
                flat = self.array.flat_blocks(self.blocks)
                self._plan = None if flat is None else _plan_exchange(flat)
                self._is_planned = True
            return self._plan

    def known_plan(self) -> ExchangePlan:
        """Return what is to be read, for blocks that are known to be read together."""
        plan = self.plan()
        if plan is None:
            raise RuntimeError("blocks that were to be read together cannot be any more")
        return plan


class SharedBlocks:
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

    def __init__(self, exchange: Exchange, array: Any) -> None:
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
        return SharedBlocks, (self.exchange, self.array)

    def __getitem__(self, index: Any) -> Any:
        block = self._find(index)
        plan = self.exchange.plan() if block is not None else None
        if block is None or plan is None:
            return self.array[index]
        values = put_together(self.exchange, block, self._read_lots(len(plan.lots)))
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
                lot = read_lot(self.exchange, number)
            finally:
                # Where it failed, another thread tries, and fails by itself.
                with self._changed:
                    self._reading.discard(number)
                    if lot is not None:
                        self._lots[number] = lot
                    self._changed.notify_all()


_received: OrderedDict[str, Exchange] = OrderedDict()
_receiving = threading.Lock()


def _receive(
    array: ReferenceResults,
    blocks: tuple[Spans, ...],
    decode: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None,
    dtype: np.dtype[Any],
    token: str,
) -> Exchange:
    """Return what other tasks of this process were sent as well, so that it is planned once."""
    with _receiving:
        if token not in _received:
            _received[token] = Exchange(array, blocks, decode, dtype, token)
            while len(_received) > KEPT_EXCHANGES:
                _received.popitem(last=False)
        _received.move_to_end(token)
        return _received[token]


def _plan_exchange(flat: FlatBlocks) -> ExchangePlan | None:
    """Divide what blocks read into lots of chunks, if that saves reading any."""
    if len(flat.reads) * len(flat.bounds) > MOST_MEETINGS:
        return None
    found = []
    visits = distinct = saved = 0
    for target, parts in flat.reads:
        layout = target.layout
        if not lie_in_blocks(parts, flat.bounds):
            return None
        itemsize = max(layout.dtype.itemsize, 1)
        cell = storage_cell(layout.shape, layout.chunks, itemsize)
        counts = count_visits(parts, flat.bounds, layout.shape, cell)
        cell_nbytes = int(np.prod(cell)) * itemsize
        visits, distinct = visits + counts[0] * cell_nbytes, distinct + counts[1] * cell_nbytes
        again = (counts[0] - counts[1]) * cell_nbytes
        saved += again if layout.pipeline.filters else again // READ_PER_DECODED
        found.append((target, parts, cell, counts[1] * cell_nbytes))
    copied = int(flat.bounds[-1]) * flat.dtype.itemsize
    if visits <= FEW_VISITS * distinct or saved * COPIED_PER_DECODED < copied:
        return None
    most_lots = min(max(MOST_PAIRS // len(flat.bounds), FEWEST_LOTS), MOST_LOTS)
    nbytes = max(LOT_NBYTES, -(-distinct // most_lots))
    targets, lots = [], []
    lot: list[tuple[int, int]] = []
    filled = 0
    for k, (target, parts, cell, read_nbytes) in enumerate(found):
        layout = target.layout
        tile = choose_tile(layout.shape, cell, max(layout.dtype.itemsize, 1), nbytes)
        shares = plan_shares(parts, flat.bounds, layout.shape, tile)
        targets.append((target, shares))
        for share in range(len(shares)):
            weight = read_nbytes // len(shares)
            if lot and filled + weight > nbytes:
                lots.append(tuple(lot))
                lot, filled = [], 0
            lot.append((k, share))
            filled += weight
    lots.append(tuple(lot))
    return ExchangePlan(flat=flat, targets=tuple(targets), lots=tuple(lots))


def read_lot(exchange: Exchange, number: int) -> list[npt.NDArray[Any]]:
    """Read one lot of chunks.

    Returns
    -------
    list of numpy.ndarray
        The elements of each share of the lot, 1-D, block after block.
    """
    plan = exchange.known_plan()
    out = []
    for k, share in plan.lots[number]:
        target, shares = plan.targets[k]
        check_unchanged(target.location)
        layout = target.layout
        values = np.empty(shares.size(share), dtype=layout.dtype)
        loader = tile_loader(
            target.location,
            target.address,
            layout,
            options=DecodeOptions(reader=plan.flat.reader),
        )
        itemsize = max(layout.dtype.itemsize, 1)
        parts = shares.share_parts(share)
        read_plan(plan_read(parts, layout.shape, layout.chunks, itemsize), loader, values)
        out.append(values.astype(plan.flat.dtype, copy=False))
    return out


def put_together(
    exchange: Exchange, block: int, lots: list[list[npt.NDArray[Any]]]
) -> npt.NDArray[Any]:
    """Make one block of what all lots hold for it, and decode it."""
    plan = exchange.known_plan()
    bounds = plan.flat.bounds
    flat = np.zeros(int(bounds[block + 1] - bounds[block]), dtype=plan.flat.dtype)
    buffers: dict[int, list[npt.NDArray[Any]]] = {}
    for lot, of_lot in zip(plan.lots, lots, strict=True):
        for (k, _), buffer in zip(lot, of_lot, strict=True):
            buffers.setdefault(k, []).append(buffer)
    for k, of_target in buffers.items():
        boxes = plan.targets[k][1].block_boxes(block, of_target, flat)
        if boxes is not None:
            copy_boxes(*boxes)
    values = plan.flat.finish(block, flat)
    if exchange.decode is not None:
        values = exchange.decode(values)
    return np.asarray(values, dtype=exchange.dtype)
