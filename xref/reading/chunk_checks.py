"""Chunks that HDF5 is to decode are decoded here first.

In: the layout of a dataset that h5py reads, or writes to. Out: what checks its chunks before.
HDF5 hands out memory that it never wrote where a chunk inflates to too few bytes, and reads
and writes outside its memory where N-bit or scale-offset (`xref.hdf5.bit_packing`) do not fit
the chunk.

The bytes of chunks come from the file. Where only HDF5 knows where they lie, it hands them
out as they are stored; that is done for those two filters alone.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from xref import objects
from xref.arrays import IntArray
from xref.errors import CorruptFileError, UnsupportedError
from xref.hdf5 import DatasetLayout, decode_chunk
from xref.objects import StoredObject, cached_by_object
from xref.reading.execute import ChunkCheck, ChunkLoader
from xref.storage import FileBytes


def chunk_check(dataset: StoredObject, layout: DatasetLayout) -> ChunkCheck | None:
    """Choose what checks the chunks of a dataset.

    Returns
    -------
    ChunkCheck or None
        None where nothing has to be checked, or nothing can be.

    Raises
    ------
    UnsupportedError
        If the dataset has N-bit or scale-offset, and what they wrote is behind a filter that
        cannot be undone here.
    """
    if not layout.chunks or not layout.pipeline.filters:
        return None
    packers = layout.pipeline.packers
    missing = objects.used_filters(layout.pipeline, layout.elements).unsupported()
    if missing and packers:
        raise UnsupportedError(
            f"{dataset.where} is stored with {' and '.join(packers)} and {', '.join(missing)}"
            "; what HDF5 would unpack cannot be checked before. Install imagecodecs if the "
            "latter is a filter that it decodes"
        )
    if missing:
        return None
    # Where NumPy's type says what the elements are, parameters are compared with it.
    plain = not layout.dtype.hasobject and layout.dtype.itemsize == layout.stored_itemsize
    checked = layout if plain else layout.stored
    if not dataset.location.source.live:
        with suppress(UnsupportedError):  # an index of a kind that only HDF5 knows
            index = objects.chunk_index(dataset)  # HDF5 does not check it
            return ChunkLoader(
                checked, index, FileBytes(dataset.location), _read_nothing, dataset.where
            )
    return HeldChunks(dataset, checked) if packers else None


def _read_nothing(start: tuple[int, ...], window: object) -> None:
    """Refuse to read through h5py: checking does not."""
    raise UnsupportedError("chunks that are checked are not read")


@dataclass(frozen=True, slots=True)
class HeldChunks:
    """Checks chunks that HDF5 hands out as they are stored, under its lock."""

    dataset: StoredObject
    layout: DatasetLayout

    def check(self, numbers: IntArray) -> None:
        """Decode chunks and drop them, so that a wrong size or parameter raises."""
        layout = self.layout
        dataset = objects.open_dataset(self.dataset)
        window = np.empty(layout.cell, layout.dtype)
        cells = np.stack(np.unravel_index(numbers, layout.grid), axis=1)
        for corner in (cells * np.array(layout.cell)).tolist():
            found = objects.read_stored_chunk(dataset, tuple(corner))
            if found is None:
                continue
            mask, data = found
            try:
                decode_chunk(data, window, layout.pipeline, mask)
            except CorruptFileError as error:
                raise CorruptFileError(
                    f"{self.dataset.where}, chunk at {tuple(corner)}: {error}"
                ) from error


def check_packed(dataset: StoredObject) -> None:
    """Check all chunks of a dataset, if they have N-bit or scale-offset.

    HDF5 alone tells which chunks of its sources a virtual dataset reads, and which it reads
    to write a part of them. Once for each file is enough.
    """
    if dataset.layout.pipeline.packers and dataset.layout.chunks:
        if dataset.location.source.live:
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
