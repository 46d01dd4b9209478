"""Ranges that lie close are read together, and each comes to its place."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from xref.arrays.scattered_reads import GAP_NBYTES, RUN_NBYTES, read_scattered

CONTENT = np.random.default_rng(0).integers(0, 256, 3 * RUN_NBYTES, dtype=np.uint8)


@dataclass
class Recorder:
    """Bytes that count how often they are read."""

    reads: list[tuple[int, int]] = field(default_factory=list)
    remote: bool = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        assert offset + len(buffer) <= len(CONTENT)
        self.reads.append((offset, len(buffer)))
        buffer[:] = CONTENT[offset : offset + len(buffer)].data


def read(ranges: list[tuple[int, int]]) -> tuple[list[bytes], Recorder]:
    """Read ranges to places in the order of the list, with gaps of three bytes."""
    source = Recorder()
    offset, nbytes = np.array(ranges, dtype=np.int64).reshape(-1, 2).T
    at = np.cumsum(nbytes + 3) - nbytes - 3
    buffer = np.zeros(int((nbytes + 3).sum()), dtype=np.uint8)
    read_scattered(source, offset, nbytes, buffer, at)
    found = [buffer[a : a + n].tobytes() for a, n in zip(at, nbytes, strict=True)]
    assert not any(buffer[a + n : a + n + 3].any() for a, n in zip(at, nbytes, strict=True))
    return found, source


RANGES = st.tuples(st.integers(0, len(CONTENT) - 70_000), st.integers(0, 70_000))


@given(st.lists(RANGES | st.tuples(st.integers(0, 10**5), st.just(64)), max_size=30))
def test_ranges_in_any_order_and_overlapping_are_read_to_their_places(
    ranges: list[tuple[int, int]],
) -> None:
    found, source = read(ranges)
    assert found == [CONTENT[a : a + n].tobytes() for a, n in ranges]
    assert len(source.reads) <= len(ranges)


def test_close_ranges_are_read_together() -> None:
    _, source = read([(1000 * i, 100) for i in range(500)])
    assert source.reads == [(0, 499_100)]


def test_ranges_far_apart_are_read_alone() -> None:
    step = GAP_NBYTES + 101
    _, source = read([(step * i, 100) for i in range(20)])
    assert source.reads == [(step * i, 100) for i in range(20)]


def test_one_read_has_no_more_bytes_than_a_run() -> None:
    _, source = read([(100 * i, 100) for i in range(25_000)])
    assert max(n for _, n in source.reads) <= RUN_NBYTES
    assert sum(n for _, n in source.reads) == 2_500_000


def test_a_range_longer_than_a_run_is_read_whole() -> None:
    ranges = [(0, 10), (20, 2 * RUN_NBYTES), (40, 10)]
    found, _ = read(ranges)
    assert found == [CONTENT[a : a + n].tobytes() for a, n in ranges]
