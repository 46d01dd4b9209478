"""Checks of chunks before HDF5 decodes them.

In: the layout of a dataset that h5py reads or writes. Out: a `ChunkCheck`. HDF5 returns
uninitialized memory if a chunk inflates to too few bytes, and reads and writes outside its
memory if the parameters of N-bit or scale-offset (`xref.hdf5.bit_packing`) do not fit.

The bytes of chunks are read from the file. If only HDF5 knows their addresses, HDF5 returns the
stored bytes; this is done only for N-bit and scale-offset.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from xref import objects
from xref.arrays import IntArray
from xref.errors import CorruptFileError, UnsupportedError, located
from xref.hdf5 import DatasetLayout, decode_chunk
from xref.objects import NamedDataset, StoredObject, cached_by_object
from xref.reading.execute import ChunkCheck, ChunkLoader
from xref.storage import FileBytes


def chunk_check(dataset: StoredObject, layout: DatasetLayout) -> ChunkCheck | None:
    """Choose the check of the chunks of a dataset; None if no check is needed or possible.

    Raises
    ------
    UnsupportedError
        If the dataset has N-bit or scale-offset together with a filter that is not supported.
    """
    if not layout.chunks or not layout.pipeline.filters:
        return None
    packers = layout.pipeline.packers
    missing = objects.used_filters(layout.pipeline, layout.elements).unsupported()
    if missing and packers:
        raise UnsupportedError(
            f"{dataset.named} is stored with {' and '.join(packers)} and {', '.join(missing)}"
            "; the packed bytes cannot be checked before HDF5 unpacks them. Install "
            "imagecodecs if it decodes the latter filter"
        )
    if missing:
        return None
    # If elements are the bytes of a NumPy type, filter parameters are compared with the type.
    plain = not layout.dtype.hasobject and layout.dtype.itemsize == layout.stored_itemsize
    checked = layout if plain else layout.stored
    if not dataset.location.source.open_for_writing:
        with suppress(UnsupportedError):  # a type of chunk index that only HDF5 knows
            index = objects.chunk_index(dataset)  # HDF5 does not check it
            return ChunkLoader(
                checked,
                index,
                FileBytes(dataset.location),
                _read_nothing,
                NamedDataset(dataset),
            )
    return StoredChunkCheck(dataset, checked) if packers else None


def _read_nothing(start: tuple[int, ...], window: object) -> None:
    """Refuse to read: a check only decodes chunks."""
    raise UnsupportedError("a check of chunks does not read elements")


@dataclass(frozen=True, slots=True)
class StoredChunkCheck:
    """Checks chunks whose stored bytes HDF5 returns, under its lock."""

    dataset: StoredObject
    layout: DatasetLayout

    def check(self, numbers: IntArray) -> None:
        """Decode chunks and drop them, so that a wrong size or parameter raises."""
        layout = self.layout
        dataset = objects.open_dataset(self.dataset)
        window = np.empty(layout.cell, layout.dtype)
        cells = np.stack(np.unravel_index(numbers, layout.grid), axis=1)
        for corner in (cells * np.array(layout.cell)).tolist():
            chunk = objects.read_stored_chunk(dataset, tuple(corner))
            if chunk is None:
                continue
            mask, data = chunk
            try:
                decode_chunk(data, window, layout.pipeline, mask)
            except CorruptFileError as error:
                raise located(
                    error, f"{self.dataset.named}, chunk at {tuple(corner)}"
                ) from error


def check_packed(dataset: StoredObject) -> None:
    """Check all chunks of a dataset with N-bit or scale-offset, once for each file.

    Only HDF5 knows which chunks a virtual dataset reads of its sources, and which chunks it
    reads in order to write a part of them.
    """
    if dataset.layout.pipeline.packers and dataset.layout.chunks:
        if dataset.location.source.open_for_writing:
            _check_all(dataset)
        else:
            _check_all_once(dataset)


@cached_by_object(maxsize=1024)
def _check_all_once(dataset: StoredObject) -> None:
    _check_all(dataset)


def _check_all(dataset: StoredObject) -> None:
    check = chunk_check(dataset, dataset.layout)
    if check is not None:
        check.check(objects.chunk_index(dataset).number)
