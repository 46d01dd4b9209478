"""Counts of positional reads, bytes, chunks and requests to servers.

In: amounts, from the functions that read. Out: `ReadCounts` of a `count_reads` block.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class ReadCounts:
    """Reads of this process since counting began."""

    requests: int = 0
    nbytes: int = 0
    chunks_read: int = 0
    chunks_decoded: int = 0
    chunks_missing: int = 0
    remote_requests: int = 0
    remote_nbytes: int = 0
    remote_retries: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **amounts: int) -> None:
        """Add to the counts; safe from any thread."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)


_counting: list[ReadCounts] = []


@contextmanager
def count_reads() -> Iterator[ReadCounts]:
    """Count reads and decompressions of this process while the block runs.

    Yields
    ------
    ReadCounts
        ``requests`` (positional reads of data), ``nbytes`` (asked for by them),
        ``chunks_read``, ``chunks_decoded`` and ``chunks_missing`` (never written,
        filled with the fill value). For files behind URLs also ``remote_requests`` (for
        data, for metadata and for the version of the file, including retries),
        ``remote_nbytes`` (received) and ``remote_retries``.
    """
    counts = ReadCounts()
    _counting.append(counts)
    try:
        yield counts
    finally:
        # By identity: two counts of equal numbers compare equal.
        _counting[:] = [c for c in _counting if c is not counts]


def count(**amounts: int) -> None:
    """Add to the counts of all active `count_reads` blocks."""
    for counts in _counting:
        counts.add(**amounts)
