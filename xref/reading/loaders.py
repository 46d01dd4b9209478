"""Loaders of the values of one dataset: directly, or through h5py.

In: the layout of a dataset. Out: the `TileLoader` that fills the canvases of a plan
with its values.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from xref.errors import UnsupportedError
from xref.hdf5 import DatasetLayout, unfold_subarray
from xref.objects import NamedDataset, StoredObject, chunk_index, open_dataset, read_values
from xref.reading.chunk_checks import chunk_check
from xref.reading.execute import (
    BoxLoader,
    ChunkLoader,
    ContiguousLoader,
    TileLoader,
    UndefinedLoader,
)
from xref.reading.virtual_sources import check_sources
from xref.storage import FileBytes, check_descriptors, check_unchanged


def value_loader(dataset: StoredObject, layout: DatasetLayout, reader: str) -> TileLoader:
    """Return the loader of the values of a dataset without references.

    Parameters
    ----------
    dataset : StoredObject
    layout : DatasetLayout
        Its shape, type and storage.
    reader : {"auto", "direct", "h5py"}
        "auto" reads directly if possible, otherwise through h5py.

    Raises
    ------
    UnsupportedError
        If the reader is "direct" and the dataset needs h5py.
    """
    if reader == "direct" and layout.why_not_direct:
        raise UnsupportedError(
            f"{dataset.named} cannot be read directly ({layout.why_not_direct}); "
            "use reader='auto'"
        )
    if layout.is_undefined:
        return UndefinedLoader(layout, NamedDataset(dataset))
    read_box = BoxReader(dataset)
    if reader == "h5py" or layout.why_not_direct:
        return BoxLoader(layout, read_box, chunk_check(dataset, layout))
    if layout.chunks is None:
        return ContiguousLoader(layout, FileBytes(dataset.location))
    source = FileBytes(dataset.location)
    return ChunkLoader(layout, chunk_index(dataset), source, read_box, NamedDataset(dataset))


@dataclass(frozen=True, slots=True)
class BoxReader:
    """Reads boxes of one dataset through h5py, under its lock."""

    dataset: StoredObject

    def __call__(self, start: tuple[int, ...], window: npt.NDArray[Any]) -> None:
        """Read the box of ``window``'s shape at ``start`` into it."""
        if self.dataset.layout.virtual:
            self._read_virtual(start, window)
        else:
            dataset = open_dataset(self.dataset)
            unfold_subarray(window)[...] = read_values(dataset, start, window.shape)
        check_unchanged(self.dataset.location)

    def _read_virtual(self, start: tuple[int, ...], window: npt.NDArray[Any]) -> None:
        """Read sources in other files, and check the free descriptors before and after.

        If HDF5 cannot open a source, it gives fill values as for a missing source. HDF5 opens
        one descriptor more than it keeps open.
        """
        shape, name = window.shape, self.dataset.filename
        sources = check_sources(self.dataset, start, shape[: len(start)])
        # The lock keeps other threads from taking the descriptors that were checked. Sources
        # stay open as long as an object of the dataset exists.
        with _virtual:
            check_descriptors(sources + 1, name)
            dataset = open_dataset(self.dataset)
            unfold_subarray(window)[...] = read_values(dataset, start, shape)
            check_descriptors(1, name)  # while HDF5 still has the sources open
            del dataset


_virtual = threading.Lock()
