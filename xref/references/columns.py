"""References as columns: `ReferenceColumns`, one row for each reference.

In: decoded columns, or reference objects. Out: `ReferenceColumns`, which are sliced, joined and
compared without making an object for each row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from xref.arrays import BoolArray, FrozenColumns, IntArray
from xref.objects import StoredObject
from xref.references.reference import (
    DEFAULT_OPTIONS,
    AttributeReference,
    DecodeOptions,
    ObjectReference,
    Reference,
    RegionReference,
    null_reference,
)
from xref.selections import (
    SelectionKind,
    SelectionTable,
    concat_tables,
    empty_table,
    table_from_selections,
)
from xref.storage import FileLocation

_T = TypeVar("_T")

KIND_NOUNS = {"object": "object reference", "region": "region reference", "std": "reference"}
"""The noun for an element in messages, by the kind of the array."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceColumns(FrozenColumns):
    """n references; a null one has address 0."""

    files: tuple[FileLocation, ...]
    file: IntArray  # (n,), row of `files`: the file of the target
    address: npt.NDArray[np.uint64]  # (n,), target's object header, from the base address
    regions: SelectionTable | None  # n rows; None where no row is a region
    attribute: IntArray | None = None  # (n,), row of `names`, or -1; None if all are -1
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

    @classmethod
    def of_objects(
        cls, objects: Sequence[StoredObject], regions: SelectionTable | None = None
    ) -> ReferenceColumns:
        """Return one reference to each object."""
        files = {location: row for row, location in enumerate({o.location: 0 for o in objects})}
        return cls(
            files=tuple(files),
            file=np.array([files[o.location] for o in objects], dtype=np.int64),
            address=np.array([o.address for o in objects], dtype=np.uint64),
            regions=regions,
        )

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
        """Return the name of the attribute that each row refers to, or None."""
        names = np.array([*self.names, None], dtype=object)
        number = np.full(len(self), -1) if self.attribute is None else self.attribute
        result: npt.NDArray[np.object_] = names[number]
        return result

    def used_files(self) -> tuple[FileLocation, ...]:
        """Return the files that contain a target."""
        if len(self.files) < 2:
            return self.files
        return tuple(self.files[k] for k in np.unique(self.file[self.address != 0]).tolist())

    def region_table(self) -> SelectionTable:
        """Return the selections; rows without a region have the kind OBJECT or NULL."""
        return object_table(self.address) if self.regions is None else self.regions


def object_table(address: npt.NDArray[np.uint64]) -> SelectionTable:
    """Return rows of the kind OBJECT, or NULL where the address is 0."""
    kind = np.where(address != 0, SelectionKind.OBJECT, SelectionKind.NULL).astype(np.uint8)
    return empty_table(len(address), 0).replace(kind=kind)


def concat_references(parts: list[ReferenceColumns]) -> ReferenceColumns:
    """Concatenate the rows of several tables; each file is listed once."""
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
    """Return the attribute column as rows of ``names``, which gets the new names."""
    if part.attribute is None:
        return np.full(len(part), -1, dtype=np.int64)
    return np.array([*names.number(part.names), -1])[part.attribute]


def null_references(n: int, regions: SelectionTable | None = None) -> ReferenceColumns:
    """Return n null references."""
    zeros = np.zeros(n, dtype=np.int64)
    return ReferenceColumns(
        files=(), file=zeros, address=zeros.astype(np.uint64), regions=regions
    )


def columns_from_objects(
    references: list[Any], keep_kinds: bool
) -> tuple[str, ReferenceColumns, DecodeOptions]:
    """Turn reference objects into the kind, the columns and the options of an array.

    None stands for a null reference. `ReferenceArray.from_references` describes the kinds.
    """
    kind, references = _common_kind(references, keep_kinds)
    files = tuple(dict.fromkeys(r.location for r in references if r.location is not None))
    names = Interner(r.name for r in references if isinstance(r, AttributeReference))
    table, attribute = None, None
    if kind != "object":
        table = table_from_selections(
            [r.selection if isinstance(r, RegionReference) else None for r in references]
        )
    if kind == "std" and table is not None:
        whole = [bool(r) and not isinstance(r, RegionReference) for r in references]
        selection_kind = np.where(whole, SelectionKind.OBJECT, table.kind)
        table = table.replace(kind=selection_kind.astype(np.uint8))
        attribute = np.array(
            [names[r.name] if isinstance(r, AttributeReference) else -1 for r in references],
            dtype=np.int64,
        )
    columns = ReferenceColumns(
        files=files,
        file=np.array([files.index(r.location) if r.location else 0 for r in references], int),
        address=np.array([r.address for r in references], dtype=np.uint64),
        regions=table,
        attribute=attribute,
        names=tuple(names),
    )
    return kind, columns, common_options(r.options for r in references if r)


def _common_kind(references: list[Any], keep_kinds: bool) -> tuple[str, list[Any]]:
    """Choose the kind of an array, and turn null and region references into that kind."""
    classes = {type(r) for r in references}
    wanted: Any
    if keep_kinds or AttributeReference in classes:
        kind, wanted = "std", Reference
    elif RegionReference in classes and ObjectReference not in classes:
        kind, wanted = "region", RegionReference
    else:
        kind, wanted = "object", ObjectReference
        references = [r.object if isinstance(r, RegionReference) else r for r in references]
    null = null_reference(kind == "region")
    references = [null if r is None else r for r in references]
    for r in references:
        if not isinstance(r, wanted):
            raise TypeError(f"{r!r} is no {KIND_NOUNS[kind]}")
    return kind, references


def same_references(a: ReferenceColumns, b: ReferenceColumns) -> BoolArray:
    """Tell for each row whether both references have the same target, or both are null."""
    null = (a.address == 0) & (b.address == 0)
    keys = {f.file_id: i for i, f in enumerate((*a.files, *b.files))}
    numbers = [np.array([keys[f.file_id] for f in x.files] or [0]) for x in (a, b)]
    same: BoolArray = (a.address == b.address) & (numbers[0][a.file] == numbers[1][b.file])
    if a.regions is not None or b.regions is not None:
        same &= a.region_table().same_rows(b.region_table())
    if a.attribute is not None or b.attribute is not None:
        same &= a.attribute_names() == b.attribute_names()
    result: BoolArray = same | null
    return result


def as_slice(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | slice:
    """Return evenly spaced ascending rows as a slice, so that columns become views."""
    if not len(rows):
        return slice(0, 0)
    step = int(rows[1] - rows[0]) if len(rows) > 1 else 1
    if step > 0 and (np.diff(rows) == step).all():
        return slice(int(rows[0]), int(rows[-1]) + 1, step)
    return rows


class Interner(dict[_T, int]):
    """Numbers distinct values in the order in which they first appear."""

    def __init__(self, values: Iterable[_T] = ()) -> None:
        super().__init__()
        self.number(values)

    def number(self, values: Iterable[_T]) -> list[int]:
        """Return the number of each value; a new value gets the next number."""
        return [self.setdefault(value, len(self)) for value in values]


def common_options(options: Iterable[DecodeOptions]) -> DecodeOptions:
    """Return the common options of references that are to form one array.

    Raises
    ------
    ValueError
        If the options differ in how values are decoded.
    """
    common: DecodeOptions | None = None
    for each in options:
        if common is None:
            common = each
        elif each is not common:
            for field in fields(DecodeOptions):
                a, b = getattr(common, field.name), getattr(each, field.name)
                if field.name not in ("reader", "lock") and not _are_equal(a, b):
                    raise ValueError(
                        f"references were opened with different options ({field.name} "
                        f"{a!r} and {b!r}), so they cannot form one array; open the files "
                        "with equal options, or resolve the references separately"
                    )
    return DEFAULT_OPTIONS if common is None else common


def _are_equal(a: Any, b: Any) -> bool:
    """Compare the values of an option; coders of xarray are compared by their attributes."""
    return (
        a is b
        or a == b
        or (type(a) is type(b) and getattr(a, "__dict__", a) == getattr(b, "__dict__", b))
    )
