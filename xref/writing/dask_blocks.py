"""Dask blocks into datasets of a file that several threads or processes write.

In: a block, and its place in a dataset. Out: nothing; the elements are in the file.

Chunks that lie completely within a block are compressed here, outside HDF5's lock, and
written as they are stored. HDF5 writes all other elements, and compresses them under its
lock. The file is opened for each block, under a lock between processes, so the scheduler may
run a task anywhere, and no object of h5py is in a graph. A block is written when HDF5 has
closed the file without an error of the operating system.
"""

from __future__ import annotations

import itertools
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5f, h5fd, h5p

from xref.errors import FileChangedError, naming
from xref.hdf5 import SHUFFLE, FilterPipeline
from xref.references import ReferenceArray
from xref.writing.checked_file import CheckedFile
from xref.writing.datasets import write_elements
from xref.writing.drafts import Draft
from xref.writing.memory_layout import ElementEncoder, MemoryType, NumPyType, RawBytes
from xref.writing.uninterrupted import uninterrupted

DEFLATE = 1
"""Number of HDF5's gzip filter."""

_threads = threading.Lock()


@contextmanager
def open_to_write(draft: Draft) -> Iterator[h5py.File]:
    """Open the file of a draft for writing, one thread of one process at a time."""
    with _threads, draft.open() as stored, open_stored(stored) as file:
        yield file


def open_stored(stored: CheckedFile, *, is_new: bool = False) -> h5py.File:
    """Let HDF5 open a file that it reads and writes through Python."""
    access = h5p.create(h5p.FILE_ACCESS)
    try:
        access.set_fileobj_driver(h5fd.fileobj_driver, stored)
        access.set_fclose_degree(h5f.CLOSE_STRONG)
        name = os.fsencode(repr(stored))
        if not is_new:
            access.set_libver_bounds(h5f.LIBVER_EARLIEST, h5f.LIBVER_LATEST)
            return h5py.File(h5f.open(name, h5f.ACC_RDWR, fapl=access))
        access.set_libver_bounds(h5f.LIBVER_V18, h5f.LIBVER_LATEST)
        creation = h5p.create(h5p.FILE_CREATE)
        order = h5p.CRT_ORDER_TRACKED | h5p.CRT_ORDER_INDEXED
        creation.set_link_creation_order(order)
        creation.set_attr_creation_order(order)
        creation.set_obj_track_times(False)
        return h5py.File(h5f.create(name, h5f.ACC_TRUNC, fapl=access, fcpl=creation))
    finally:
        # An exception could keep the property list alive until Python has ended; HDF5 would
        # then call Python.
        access.close()


def no_references(references: ReferenceArray, kind: str) -> RawBytes:
    """Refuse references, which cannot be in blocks."""
    raise TypeError("references are written before the blocks of Dask arrays")


@dataclass(frozen=True, slots=True)
class BlockTarget:
    """A dataset that `dask.array.store` writes to."""

    draft: Draft
    name: str  # path of the dataset
    memory_type: MemoryType
    shape: tuple[int, ...]
    chunks: tuple[int, ...] | None
    pipeline: FilterPipeline
    fill_value: Any

    def __setitem__(self, key: tuple[slice, ...], block: Any) -> None:
        """Write one block."""
        values = np.asarray(block)
        box = tuple(slice(*k.indices(n)[:2]) for k, n in zip(key, self.shape, strict=True))
        if self._is_direct(box):
            self._write_chunks(box, values)
            return
        uninterrupted(self._write_elements, box, values)

    def _write_elements(self, box: tuple[slice, ...], values: npt.NDArray[Any]) -> None:
        """Let HDF5 write a block."""
        encoder = ElementEncoder(no_references)
        with naming(partial(self._label, box)), open_to_write(self.draft) as file:
            write_elements(self._dataset(file), self.memory_type, encoder, values, box)

    def _label(self, box: tuple[slice, ...]) -> str:
        return f"{self.draft.filename}: {self.name!r}, block at {[s.start for s in box]}"

    def _dataset(self, file: h5py.File) -> h5py.Dataset:
        """Return the dataset, unless another program has removed, replaced or resized it."""
        dataset = file.get(self.name)
        if not isinstance(dataset, h5py.Dataset) or dataset.shape != self.shape:
            raise FileChangedError(
                f"{self.draft.filename}: {self.name!r} was changed by another program before "
                "all of its blocks were written"
            )
        return dataset

    def _is_direct(self, box: tuple[slice, ...]) -> bool:
        """Tell whether a block consists of whole chunks, with filters of this module."""
        if self.chunks is None or not isinstance(self.memory_type, NumPyType) or not self.shape:
            return False
        if [f.id for f in self.pipeline.filters] not in ([DEFLATE], [SHUFFLE, DEFLATE]):
            return False
        sides = zip(box, self.chunks, self.shape, strict=True)
        return all(
            s.start % c == 0 and (s.stop % c == 0 or s.stop == n) and s.stop > s.start
            for s, c, n in sides
        )

    def _write_chunks(self, box: tuple[slice, ...], values: npt.NDArray[Any]) -> None:
        """Compress the chunks of a block, then store them."""
        starts = [
            range(s.start, s.stop, c) for s, c in zip(box, self.chunks or (), strict=True)
        ]
        encoded = []
        for corner in itertools.product(*starts):
            slices = tuple(
                slice(a - s.start, a - s.start + c)
                for a, s, c in zip(corner, box, self.chunks or (), strict=True)
            )
            encoded.append((corner, self._encode(values[slices])))
        uninterrupted(self._store_chunks, encoded)

    def _store_chunks(self, encoded: list[tuple[tuple[int, ...], bytes]]) -> None:
        """Write encoded chunks to the file."""
        with open_to_write(self.draft) as file:
            dataset = self._dataset(file)
            for corner, data in encoded:
                dataset.id.write_direct_chunk(corner, data)

    def _encode(self, part: npt.NDArray[Any]) -> bytes:
        """Return the stored bytes of a chunk; elements outside the extent are fill values."""
        if not isinstance(self.memory_type, NumPyType):
            raise TypeError(f"chunks of {self.memory_type} are encoded by HDF5")
        chunks, dtype = self.chunks or (), self.memory_type.dtype
        whole = np.ascontiguousarray(part, dtype=dtype)
        if part.shape != chunks:
            whole = np.full(chunks, self.fill_value, dtype=dtype)
            whole[tuple(slice(n) for n in part.shape)] = part
        raw = whole.reshape(-1).view(np.uint8)
        *shuffle, deflate = self.pipeline.filters
        if shuffle and dtype.itemsize > 1:
            raw = np.ascontiguousarray(raw.reshape(-1, dtype.itemsize).T).reshape(-1)
        return zlib.compress(raw.data, deflate.options[0])
