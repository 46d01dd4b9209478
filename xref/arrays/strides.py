"""Strides in C order, in elements, of one shape and of many.

In: shapes ``(ndim,)`` or ``(n, ndim)``. Out: strides of the same shape; ordinals ``(n,)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xref.arrays.columns import IntArray


def canvas_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return C-order strides in elements.

    Examples
    --------
    >>> canvas_strides((2, 3, 4))
    (12, 4, 1)
    """
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def row_strides(shape: IntArray) -> IntArray:
    """Return C-order strides of many shapes, ``(n, ndim)`` to ``(n, ndim)``."""
    out = np.ones(shape.shape, dtype=np.int64)
    if shape.shape[1] > 1:
        out[:, :-1] = np.cumprod(shape[:, :0:-1], axis=1)[:, ::-1]
    return out


def linear(coords: IntArray, weights: Sequence[int]) -> IntArray:
    """Return ``coords @ weights``, shape ``(n,)``; by columns, because there are few."""
    out = np.zeros(len(coords), dtype=np.int64)
    for column, weight in zip(coords.T, weights, strict=True):
        out += column if weight == 1 else column * weight
    return out
