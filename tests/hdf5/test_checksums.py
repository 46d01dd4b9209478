"""Checksums from imagecodecs, from Python and from NumPy are equal."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from xref.hdf5 import checksums
from xref.hdf5.checksums import (
    IMPORT_NBYTES,
    MIN_NUMPY_BLOCKS,
    _sum_in_numpy,
    _sum_in_python,
    lookup3,
    sum_blocks,
)
from xref.hdf5.packed import PADDING_NBYTES


@pytest.fixture(params=["imagecodecs", "base packages"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with and without imagecodecs."""
    if request.param == "imagecodecs":
        pytest.importorskip("imagecodecs")
    else:
        monkeypatch.setattr(checksums, "_load_compiled", lambda: None)
    return str(request.param)


def padded(nbytes: int, seed: int = 0) -> np.ndarray:
    """Return random bytes with zeros behind them."""
    raw = np.random.default_rng(seed).bytes(nbytes) + bytes(PADDING_NBYTES)
    return np.frombuffer(raw, np.uint8)


# The first two are printed by driver5() of lookup3.c.
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xDEADBEEF),
        (b"Four score and seven years ago", 0x17770551),
        (b"\0", lookup3(b"\0")),
    ],
)
def test_checksums_are_those_of_lookup3(library: str, data: bytes, expected: int) -> None:
    assert lookup3(data) == expected


LENGTHS = (*range(101), 272, 2044, 4096, IMPORT_NBYTES, IMPORT_NBYTES + 7, 1 << 20)


@pytest.mark.parametrize("seed", range(3))
def test_imagecodecs_and_python_give_equal_checksums(seed: int) -> None:
    pytest.importorskip("imagecodecs")
    compiled = checksums._load_compiled()
    assert compiled is not None
    data = bytes(padded(1 << 20, seed))
    for nbytes in LENGTHS:
        assert compiled(data[:nbytes]) == _sum_in_python(data[:nbytes]), nbytes


def test_numpy_and_python_give_equal_checksums_for_all_lengths() -> None:
    nbytes = np.array(LENGTHS[1:-1])
    data = padded(int(nbytes.max()))
    found = _sum_in_numpy(data, np.zeros_like(nbytes), nbytes)
    assert found.tolist() == [_sum_in_python(bytes(data[:n])) for n in nbytes.tolist()]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    many=st.booleans(),
    seed=st.integers(0, 9),
)
@pytest.mark.parametrize("compiled", [True, False])
def test_checksums_of_many_blocks_equal_those_of_each_block(
    compiled: bool, lengths: list[int], many: bool, seed: int
) -> None:
    nbytes = np.array(lengths * (30 if many else 1))
    position = np.cumsum(nbytes) - nbytes
    data = padded(int(nbytes.sum()), seed)
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(checksums, "_load_compiled", lambda: None)
        found = sum_blocks(data, position, nbytes).tolist()
    pairs = zip(position.tolist(), nbytes.tolist(), strict=True)
    assert found == [lookup3(data[at : at + n].tobytes()) for at, n in pairs]


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 200)), min_size=1, max_size=20))
def test_checksums_of_overlapping_ranges_equal_those_of_each_range(
    ranges: list[tuple[int, int]],
) -> None:
    data = padded(500, 1)
    position, nbytes = np.array(ranges, dtype=np.int64).T
    expected = [lookup3(data[p : p + n].tobytes()) for p, n in ranges]
    assert _sum_in_numpy(data, position, nbytes).tolist() == expected
    assert sum_blocks(data, position, nbytes).tolist() == expected


def test_one_long_block_among_short_ones_takes_little_memory(library: str) -> None:
    nbytes = np.append(np.full(300, 10), 1 << 20)
    position = np.cumsum(nbytes) - nbytes
    data = np.zeros(int(nbytes.sum()) + PADDING_NBYTES, dtype=np.uint8)
    tracemalloc.start()
    try:
        found = sum_blocks(data, position, nbytes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found[-1] == lookup3(bytes(1 << 20))
    assert (found[:-1] == lookup3(bytes(10))).all()
    assert peak < 64 << 20


@pytest.mark.parametrize("n", [MIN_NUMPY_BLOCKS - 1, MIN_NUMPY_BLOCKS])
def test_blocks_are_summed_in_numpy_when_they_are_many(
    monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    used: list[str] = []

    def spy(name: str, function: Callable[..., object]) -> None:
        def call(*args: object) -> object:
            used.append(name)
            return function(*args)

        monkeypatch.setattr(checksums, name, call)

    spy("_sum_in_numpy", _sum_in_numpy)
    spy("_sum_in_python", _sum_in_python)
    monkeypatch.setattr(checksums, "_load_compiled", lambda: None)
    sum_blocks(padded(40 * n), np.arange(n) * 40, np.full(n, 40))
    assert used == (["_sum_in_numpy"] if n == MIN_NUMPY_BLOCKS else ["_sum_in_python"] * n)


def test_imagecodecs_is_not_imported_for_few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError

    monkeypatch.setattr(checksums, "_load_compiled", refuse)
    monkeypatch.delitem(sys.modules, "imagecodecs", raising=False)
    assert lookup3(b"Four score and seven years ago") == 0x17770551
