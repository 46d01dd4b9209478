"""Loaders of the values of any dataset, references included.

In: the layout of a dataset. Out: the `TileLoader` that fills the canvases of a plan
with its values: stored references, elements that hold references, or plain values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.hdf5 import DatasetLayout, unfold_subarray
from xref.objects import StoredObject
from xref.reading import BoxLoader, TileLoader, value_loader
from xref.references.reference import DecodeOptions
from xref.references.stored import read_box_of_stored, stored_loader
from xref.references.values import decode_values


def tile_loader(
    dataset: StoredObject, layout: DatasetLayout, *, options: DecodeOptions
) -> TileLoader:
    """Choose the loader of a dataset.

    ``options.reader`` "auto" reads directly if possible, otherwise through h5py. h5py never
    converts references or elements that contain references.

    Raises
    ------
    UnsupportedError
        If the reader is "direct" and the dataset needs h5py.
    """
    if layout.reference_kind:
        return stored_loader(dataset, layout)
    if layout.elements is not None:
        return BoxLoader(layout, ElementReader(dataset, options))
    return value_loader(dataset, layout, options.reader)


@dataclass(frozen=True, slots=True)
class ElementReader:
    """Reads boxes of elements that contain references, as stored, and decodes them."""

    dataset: StoredObject
    options: DecodeOptions

    def __call__(self, start: tuple[int, ...], window: npt.NDArray[Any]) -> None:
        """Read the box of ``window``'s shape at ``start`` into it."""
        shape = window.shape[: len(start)]
        flat = np.empty(math.prod(shape), dtype=window.dtype)
        for part in read_box_of_stored(self.dataset, start, shape):
            values = decode_values(
                part.location, part.elements, part.raw, part.names, self.options
            )
            unfold_subarray(flat)[part.rows] = values
        window[...] = flat.reshape(shape)
