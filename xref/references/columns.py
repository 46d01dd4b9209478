"""Stored references into columns: the bytes of a reference dataset, then its heap.

In: where a reference dataset is and which part of it is wanted. Out:
`ReferenceColumns`, one row an element.

1. The raw elements are read with the same planner and readers as any dataset.
2. Region references, and most of HDF5 1.12 and later, name an object in a global
   heap collection each. The distinct collections are read once, in file order and in
   batches.
3. All objects of a batch are found and decoded together (`xref.hdf5.global_heap`,
   `xref.hdf5.selection_decoding`, `xref.hdf5.std_references`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from xref.arrays import FrozenColumns, IntArray
from xref.selections import SelectionKind, SelectionTable, concat_tables, empty_table
from xref.storage import FileLocation

_T = TypeVar("_T")

KIND_NOUNS = {"object": "object reference", "region": "region reference", "std": "reference"}
"""What an element is called in messages, by the kind of its array."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceColumns(FrozenColumns):
    """n references; a null one has address 0."""

    files: tuple[FileLocation, ...]
    file: IntArray  # (n,), row of `files` that the target lives in
    address: npt.NDArray[np.uint64]  # (n,), target's object header, from the base address
    regions: SelectionTable | None  # n rows; None where no row is a region
    attribute: IntArray | None = None  # (n,), row of `names`, -1 for none; None without any
    names: tuple[str, ...] = ()  # of attributes of the targets

    @classmethod
    def of_file(
        cls,
        location: FileLocation,
        address: npt.NDArray[np.uint64],
        regions: SelectionTable | None = None,
    ) -> ReferenceColumns:
        """Return references whose targets all live in one file."""
        file = np.broadcast_to(np.zeros(1, dtype=np.int64), (len(address),))
        return cls(files=(location,), file=file, address=address, regions=regions)

    def __len__(self) -> int:
        return len(self.address)

    def take(self, index: npt.NDArray[np.intp] | slice) -> ReferenceColumns:
        """Return the rows that ``index`` selects."""
        return ReferenceColumns(
            files=self.files,
            file=self.file[index],
            address=self.address[index],
            regions=None if self.regions is None else self.regions.take(index),
            attribute=None if self.attribute is None else self.attribute[index],
            names=self.names,
        )

    @property
    def attribute_rows(self) -> npt.NDArray[np.intp]:
        """The rows that refer to an attribute of their target."""
        if self.attribute is None:
            return np.zeros(0, dtype=np.intp)
        return np.flatnonzero(self.attribute >= 0)

    def attribute_names(self) -> npt.NDArray[np.object_]:
        """Return the name of each row's attribute, None where it is no attribute."""
        names = np.array([*self.names, None], dtype=object)
        number = np.full(len(self), -1) if self.attribute is None else self.attribute
        found: npt.NDArray[np.object_] = names[number]
        return found

    def used_files(self) -> tuple[FileLocation, ...]:
        """Return the files that targets live in."""
        if len(self.files) < 2:
            return self.files
        return tuple(self.files[k] for k in np.unique(self.file[self.address != 0]).tolist())

    def region_table(self) -> SelectionTable:
        """Return the regions; rows that are none stand for the object itself, or null."""
        return object_table(self.address) if self.regions is None else self.regions


def object_table(address: npt.NDArray[np.uint64]) -> SelectionTable:
    """Return rows that select nothing within their targets; null where there is none."""
    kind = np.where(address != 0, SelectionKind.OBJECT, SelectionKind.NULL).astype(np.uint8)
    return empty_table(len(address), 0).replace(kind=kind)


def concat_references(parts: list[ReferenceColumns]) -> ReferenceColumns:
    """Put rows of several tables one after the other; files are listed once."""
    files = tuple(dict.fromkeys(f for part in parts for f in part.files))
    number = {f: i for i, f in enumerate(files)}
    rows = [np.array([number[f] for f in part.files] or [0]) for part in parts]
    names = Interner(name for part in parts for name in part.names)
    regions = any(part.regions is not None for part in parts)
    return ReferenceColumns(
        files=files,
        file=np.concatenate([r[part.file] for r, part in zip(rows, parts, strict=True)]),
        address=np.concatenate([part.address for part in parts]),
        regions=concat_tables([part.region_table() for part in parts]) if regions else None,
        attribute=np.concatenate([_renumber(part, names) for part in parts]) if names else None,
        names=tuple(names),
    )


def _renumber(part: ReferenceColumns, names: Interner[str]) -> IntArray:
    """Return the attribute column by the rows of other names, which contain its own."""
    if part.attribute is None:
        return np.full(len(part), -1, dtype=np.int64)
    return np.array([*names.number(part.names), -1])[part.attribute]


def null_references(n: int) -> ReferenceColumns:
    """Return n null references."""
    return ReferenceColumns(
        files=(),
        file=np.zeros(n, dtype=np.int64),
        address=np.zeros(n, dtype=np.uint64),
        regions=None,
    )


class Interner(dict[_T, int]):
    """Numbers things in the order in which they first come."""

    def __init__(self, things: Iterable[_T] = ()) -> None:
        super().__init__()
        self.number(things)

    def number(self, things: Iterable[_T]) -> list[int]:
        """Return the number of each thing; a new one gets the next number."""
        return [self.setdefault(thing, len(self)) for thing in things]
