"""Frozen columns (read-only arrays of frozen dataclasses), and ragged rows.

In: columns, shape ``(n,)`` or ``(n, ndim)``. Out: columns. Ragged rows are ``counts`` items
each, one row after the other.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def readonly(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a read-only view of ``array``; the caller's array stays as it was."""
    view = array.view()
    view.flags.writeable = False
    return view


class FrozenColumns:
    """Base of slotted, frozen dataclasses whose array fields are read-only.

    Unpickling calls the constructor, so the arrays are frozen again.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray) and value.flags.writeable:
                object.__setattr__(self, field.name, readonly(value))

    def __reduce__(self) -> tuple[Any, ...]:
        values = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray) and 0 in value.strides and value.size > 1:
                # A broadcast column pickles without its repetitions.
                value = _Broadcast.of(value)
            values.append(value)
        return _rebuild, (type(self), values)


def _rebuild(cls: type[FrozenColumns], values: list[Any]) -> FrozenColumns:
    """Restore a pickled instance; its arrays are frozen again."""
    unpacked = (
        np.broadcast_to(v.base, v.shape) if isinstance(v, _Broadcast) else v for v in values
    )
    return cls(**dict(zip((f.name for f in fields(cls)), unpacked, strict=True)))  # type: ignore[arg-type]


class _Broadcast:
    """A broadcast array as its base and shape, for pickling."""

    __slots__ = ("base", "shape")

    def __init__(self, base: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
        self.base = base
        self.shape = shape

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> _Broadcast:
        key = tuple(slice(0, 1) if s == 0 else slice(None) for s in array.strides)
        return cls(np.ascontiguousarray(array[key]), array.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Broadcast, (self.base, self.shape)


def digest(*arrays: npt.NDArray[Any] | None) -> str:
    """Return a hash of dtype, shape and contents of arrays: 32 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        if array is None:
            state.update(b"none")
            continue
        state.update(f"{array.dtype.str}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def ragged_ranges(starts: IntArray, counts: IntArray) -> IntArray:
    """Concatenate ``arange(start, start + count)`` over rows, without a loop.

    Examples
    --------
    >>> ragged_ranges(np.array([5, 0]), np.array([2, 3]))
    array([5, 6, 0, 1, 2])
    """
    total = int(counts.sum())
    ends = np.cumsum(counts)
    out = np.arange(total, dtype=np.int64)
    out += np.repeat(starts - (ends - counts), counts)
    return out


def ragged_take(
    table: npt.NDArray[Any], starts: IntArray, counts: IntArray
) -> npt.NDArray[Any]:
    """Concatenate ``table[start : start + count]`` over rows; a view if rows are adjacent.

    Examples
    --------
    >>> ragged_take(np.array([4, 5, 6, 7]), np.array([2, 0]), np.array([2, 1]))
    array([6, 7, 4])
    """
    offsets = row_offsets(counts)
    if len(starts) and (starts == starts[0] + offsets[:-1]).all():
        return table[int(starts[0]) : int(starts[0]) + int(offsets[-1])]
    return np.take(table, ragged_ranges(starts, counts), axis=0)


def renumber(values: IntArray) -> tuple[IntArray, IntArray]:
    """Return the distinct values, ascending, and the index of each value among them.

    Equals `numpy.unique`, which takes ten times as long for values close to each other. No
    value may be negative.

    Examples
    --------
    >>> renumber(np.array([7, 3, 7]))
    (array([3, 7]), array([1, 0, 1]))
    """
    top = int(values.max(initial=-1)) + 1
    if top > 4 * len(values) + (1 << 20):
        distinct, place = np.unique(values, return_inverse=True)
        return distinct, place.reshape(-1)
    seen = np.zeros(top, dtype=bool)
    seen[values] = True
    places: IntArray = np.cumsum(seen) - 1
    return np.flatnonzero(seen), places[values]


def run_starts(column: npt.NDArray[Any]) -> IntArray:
    """Return the row in which each run of equal values begins.

    Examples
    --------
    >>> run_starts(np.array([7, 7, 2, 7]))
    array([0, 2, 3])
    """
    if not len(column):
        return np.zeros(0, dtype=np.int64)
    return np.append(0, np.flatnonzero(column[1:] != column[:-1]) + 1)


def row_offsets(counts: IntArray) -> IntArray:
    """Return the item with which each ragged row begins, then the total: shape ``(n + 1,)``."""
    out = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=out[1:])
    return out
