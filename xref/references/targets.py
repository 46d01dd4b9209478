"""The distinct targets of references, and the references to each.

In: the columns of n references. Out: one row for each distinct target object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from xref.arrays import IntArray, ragged_ranges, row_offsets
from xref.objects import StoredObject
from xref.references.columns import ReferenceColumns
from xref.selections import SelectionKind

# A target object, and the rows of the references to it.
TargetRows: TypeAlias = tuple[StoredObject, npt.NDArray[np.intp] | slice]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TargetGroups:
    """The distinct target objects of references, and the references to each."""

    file: IntArray  # (t,), row of the references' files
    address: npt.NDArray[np.uint64]  # (t,)
    rows: npt.NDArray[np.intp]  # (m,), references that are not null, by target, ascending
    cut: IntArray  # (t + 1,), first entry of `rows` for each target
    null: npt.NDArray[np.bool_]  # (n,), references without a target

    def __len__(self) -> int:
        return len(self.address)

    def rows_of(self, target: int) -> npt.NDArray[np.intp]:
        """Return the references to one target."""
        return self.rows[self.cut[target] : self.cut[target + 1]]

    @property
    def first(self) -> npt.NDArray[np.intp]:
        """The first reference to each target, shape ``(t,)``."""
        return self.rows[self.cut[:-1]]


def distinct_targets(references: ReferenceColumns) -> TargetGroups:
    """Find the distinct targets of references, in the order of first appearance."""
    null = references.address == 0
    if references.regions is not None:
        null |= references.regions.kind == SelectionKind.NULL
    valid = np.flatnonzero(~null)
    file, address = references.file[valid], references.address[valid]
    order = np.argsort(address, kind="stable")
    if len(file) and (file != file[0]).any():
        order = order[np.argsort(file[order], kind="stable")]
    file, address = file[order], address[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (file[1:] != file[:-1]) | (address[1:] != address[:-1])
    begin = np.flatnonzero(new)
    # The sorts are stable, so the first row of each target is its smallest row.
    by_first = np.argsort(order[begin], kind="stable")
    counts = np.diff(begin, append=len(order))[by_first]
    picked = ragged_ranges(begin[by_first], counts)
    return TargetGroups(
        file=file[begin[by_first]],
        address=address[begin[by_first]],
        rows=valid[order[picked]],
        cut=row_offsets(counts),
        null=null,
    )


def split_targets(
    references: ReferenceColumns,
) -> tuple[list[TargetRows], npt.NDArray[np.bool_]]:
    """Group references by target, in the order of first appearance; also mark the null ones."""
    n, address, file = len(references), references.address, references.file
    if n and address[0] and (address == address[0]).all() and (file == file[0]).all():
        null = np.zeros(n, dtype=bool)
        if references.regions is not None:
            null = references.regions.kind == SelectionKind.NULL
        if not null.any():
            stored = StoredObject(references.files[int(file[0])], int(address[0]))
            return [(stored, slice(None))], null
    groups = distinct_targets(references)
    if len(groups) == 1 and len(groups.rows) == n:
        return [(target_rows(references, groups, 0)[0], slice(None))], groups.null
    return [target_rows(references, groups, k) for k in range(len(groups))], groups.null


def target_rows(references: ReferenceColumns, groups: TargetGroups, target: int) -> TargetRows:
    """Return one distinct target and the rows of the references to it."""
    location = references.files[int(groups.file[target])]
    return StoredObject(location, int(groups.address[target])), groups.rows_of(target)
