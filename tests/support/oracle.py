"""The slow, obvious answer: what h5py reads, one reference at a time.

Nothing here is shared with xref. Values are read from the file's dataspace with the
selection into a 1-D dataspace in memory, so HDF5 gives the elements in its own order
(C order, or the stored order of points). The shape of the result comes from the flat
positions that HDF5 selects: a selection has full rank exactly when its elements are
the outer product of their shadows on the axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
import xarray as xr
from h5py import h5r, h5s


@dataclass(frozen=True)
class Answer:
    """What one reference selects."""

    values: np.ndarray  # 1-D, in the order of the result
    shape: tuple[int, ...]
    bounds: tuple[tuple[int, ...], tuple[int, ...]] | None  # stop exclusive

    @property
    def array(self) -> np.ndarray:
        """The values in their shape."""
        return self.values.reshape(self.shape)


def answer(dataset: h5py.Dataset, region: Any) -> Answer:
    """What resolving ``region`` has to give: a region or object reference, or a SpaceID."""
    if isinstance(region, h5py.Reference) and not isinstance(region, h5py.RegionReference):
        whole = read_flat(dataset, dataset.id.get_space())
        return Answer(whole, dataset.shape, None)
    space = region if isinstance(region, h5s.SpaceID) else h5r.get_region(region, dataset.id)
    places = positions(space)
    return Answer(read_flat(dataset, space), result_shape(space, places), bounds(space, places))


def read_flat(dataset: h5py.Dataset, space: h5s.SpaceID) -> np.ndarray:
    """Read the elements of a selection by one low-level call, shape ``(n,)``."""
    n = count(space)
    out = np.empty(n, dtype=dataset.dtype)
    if n:
        dataset.id.read(h5s.create_simple((n,)), space, out)
    return out


def count(space: h5s.SpaceID) -> int:
    """Number of elements, duplicates included."""
    return int(space.get_select_npoints())


def positions(space: h5s.SpaceID) -> np.ndarray:
    """Flat C-order positions of the elements: what the selection reads from a range."""
    return read_flat(_numbered(tuple(space.shape))[1], space)


@lru_cache(maxsize=256)
def _numbered(shape: tuple[int, ...]) -> tuple[h5py.File, h5py.Dataset]:
    """A dataset in memory whose elements are their own positions."""
    file = h5py.File(f"numbered-{shape}", "w", driver="core", backing_store=False)
    return file, file.create_dataset("d", data=np.arange(math.prod(shape)).reshape(shape))


def result_shape(space: h5s.SpaceID, places: np.ndarray) -> tuple[int, ...]:
    """The shape that the elements have: exact, by the mask of what is selected."""
    shape = tuple(space.shape)
    match space.get_select_type():
        case h5s.SEL_ALL:
            return shape
        case h5s.SEL_POINTS:
            return (len(places),)
    return mask_shape(mask_of(places, shape))


def mask_of(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Boolean mask of flat positions."""
    mask = np.zeros(math.prod(shape), dtype=bool)
    mask[places] = True
    return mask.reshape(shape)


def mask_shape(mask: np.ndarray) -> tuple[int, ...]:
    """Full rank when a mask is the outer product of its shadows, else 1-D."""
    shadows = [
        mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))
        for axis in range(mask.ndim)
    ]
    if not mask.any():
        return (0,) * max(mask.ndim, 1)  # a scalar has no axis to be empty along
    if (mask == outer(shadows)).all():
        return tuple(int(shadow.sum()) for shadow in shadows)
    return (int(mask.sum()),)


def outer(shadows: list[np.ndarray]) -> np.ndarray:
    """Mask of the outer product of one mask per axis."""
    mask = np.ones((), dtype=bool)
    for shadow in shadows:
        mask = mask[..., None] & shadow
    return mask


def bounds(space: h5s.SpaceID, places: np.ndarray) -> tuple[Any, Any] | None:
    """First element and one past the last along each axis; None for nothing."""
    shape = tuple(space.shape)
    if space.get_select_type() == h5s.SEL_ALL:
        return (0,) * len(shape), shape
    if not len(places):
        return None
    coords = np.stack(np.unravel_index(places, shape), axis=1) if shape else np.zeros((1, 0))
    low, high = coords.min(axis=0).tolist(), (coords.max(axis=0) + 1).tolist()
    return tuple(low), tuple(high)


def distinct_chunks(chunks: tuple[int, ...], start: np.ndarray, shape: tuple[int, ...]) -> int:
    """Number of chunks that boxes touch, by walking over them one after the other."""
    touched = set()
    for corner in start.tolist():
        ranges = [
            range(a // c, (a + n - 1) // c + 1)
            for a, n, c in zip(corner, shape, chunks, strict=True)
        ]
        grid = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1)
        touched.update(map(tuple, grid.reshape(-1, len(chunks)).tolist()))
    return len(touched)


def values_of(dataset: xr.Dataset) -> xr.DataArray:
    """The resolved values of a "ragged" or "pad" result, whatever their name."""
    (name,) = set(dataset.data_vars) - {"row_size", "row_shape", "valid"}
    return dataset[name]


def assert_same(actual: Any, expected: np.ndarray, what: Any = "") -> None:
    """Compare shape, type (but for byte order) and every value."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    native = expected.dtype.newbyteorder("=")
    assert actual.dtype.newbyteorder("=") == native, (what, actual.dtype, expected.dtype)
    if expected.dtype.hasobject or expected.dtype.names:
        assert plain(actual) == plain(expected), what
    else:
        assert (actual == expected).all(), (what, actual, expected)


def plain(values: np.ndarray) -> Any:
    """Nested lists, bytes for text."""
    return _encoded(values.tolist())


def _encoded(value: Any) -> Any:
    match value:
        case str():
            return value.encode()
        case list() | tuple():
            return [_encoded(v) for v in value]
        case np.ndarray():
            return _encoded(value.tolist())
    return value
