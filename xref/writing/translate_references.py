"""References into other files become references into the file that is being written.

In: references as columns, and the objects written so far. Out: the address of each target
in the new file, and its region. If a target is missing there, the option ``on_missing``
decides: an error that names the target, a null reference, or a copy of the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref import objects
from xref.engine import is_in_place, known_origin
from xref.errors import DanglingReferenceError, FileChangedError, XrefError
from xref.objects import StoredObject
from xref.references import (
    ObjectReference,
    ReferenceArray,
    ReferenceColumns,
    TargetGroups,
    distinct_targets,
)
from xref.selections import SelectionKind, SelectionTable
from xref.storage import FileLocation, is_same_identity

ON_MISSING = ("raise", "null", "copy")


@dataclass(frozen=True, slots=True, eq=False)
class WrittenObject:
    """An object of the new file."""

    path: str
    address: int
    shape: tuple[int, ...] | None  # None unless it is a dataset
    origin: ObjectId | None = None
    """The object of a file from which it was made, if that is known."""
    open_written: Callable[[], xr.DataArray] | None = None
    """Returns the written variable, to compare its elements with those of the origin."""


ObjectId = tuple[Any, int]
"""``FileLocation.file_id`` and the address of an object header."""


def object_id(reference: ObjectReference | None) -> ObjectId | None:
    """Return file and address of a referenced object, or None."""
    if reference is None or reference.location is None:
        return None
    return reference.location.file_id, reference.address


@dataclass(slots=True)
class ReferenceTranslator:
    """Finds the objects of other files in the new file."""

    on_missing: str
    # Identity of the file that is appended to; references into it stay as they are.
    appended_file: Any = None
    by_origin: dict[ObjectId, list[WrittenObject]] = field(default_factory=dict)
    by_path: dict[str, WrittenObject] = field(default_factory=dict)
    # Copies an object of another file, of a kind as `object_kind` returns it.
    copy: Callable[[FileLocation, int, str], WrittenObject | None] = lambda *_: None
    _files_of_paths: dict[str, Any] = field(default_factory=dict)

    def add(self, written: WrittenObject) -> None:
        """Register a written object."""
        if written.origin is not None:
            self.by_origin.setdefault(written.origin, []).append(written)
        self.by_path.setdefault(written.path, written)

    def is_appended_file(self, location: FileLocation) -> bool:
        """Tell whether a file is the one that is appended to.

        Raises
        ------
        FileChangedError
            If it has changed since its references were read: they may lead anywhere.
        """
        if self.appended_file is None or location.file_id != self.appended_file[:2]:
            return False
        if not is_same_identity(location.identity, self.appended_file):
            raise FileChangedError(
                f"{location.filename} has changed since references into it were read; open it "
                "again"
            )
        return True

    def find(self, location: FileLocation, address: int) -> WrittenObject | None:
        """Return the written object that replaces an object of another file, or None.

        If several were made from it, the one with its path is preferred, then one with all
        of its elements.
        """
        made = self.by_origin.get((location.file_id, address), [])
        if len(made) == 1:
            return made[0]
        path = StoredObject(location, address).path
        for written in made:
            if written.path == path:
                return written
        if made:
            whole = (w for w in made if not _explain_mismatch(location, address, w))
            return next(whole, made[0])
        # An object at the same path counts, unless it was made from another object, or
        # already replaces an object of another file.
        same_path = self.by_path.get(path or "")
        if same_path is None or same_path.origin is not None:
            return None
        file_id = self._files_of_paths.setdefault(same_path.path, location.file_id)
        return same_path if file_id == location.file_id else None

    def translate(
        self, references: ReferenceArray
    ) -> tuple[npt.NDArray[np.uint64], SelectionTable]:
        """Return address and region of each reference in the new file, in C order.

        Raises
        ------
        DanglingReferenceError
            If a target is not in the new file, unless ``on_missing`` says otherwise.
        """
        columns = references.columns
        address = np.zeros(len(columns), dtype=np.uint64)
        regions = columns.region_table()
        groups = distinct_targets(columns)
        for k in range(len(groups.address)):
            if k % objects.REFERENCE_BATCH == 0:
                self._cache_missing(columns, groups, slice(k, k + objects.REFERENCE_BATCH))
            rows = groups.rows_of(k)
            location = columns.files[int(groups.file[k])]
            old = int(groups.address[k])
            if self.is_appended_file(location):
                address[rows] = old
                continue
            target = self._target(location, old, rows, regions, references.describe)
            if target is not None:
                address[rows] = target.address
        self._refuse_attributes(references, address)
        return address, regions

    def _cache_missing(
        self, columns: ReferenceColumns, groups: TargetGroups, part: slice
    ) -> None:
        """Prepare to open many targets that are not written."""
        if self.appended_file is not None:
            return  # most targets are in that file
        file_ids = [location.file_id for location in columns.files]
        pairs = zip(groups.file[part].tolist(), groups.address[part].tolist(), strict=True)
        missing = [
            address
            for file, address in pairs
            if (file_ids[file], address) not in self.by_origin
        ]
        objects.cache_h5py_references(missing)

    def _target(
        self,
        location: FileLocation,
        address: int,
        rows: npt.NDArray[np.intp],
        regions: SelectionTable,
        describe: Callable[[int], str],
    ) -> WrittenObject | None:
        written = self.find(location, address)
        problem = "which is not among the objects to write"
        if written is not None:
            if written.shape is None or (regions.kind[rows] == SelectionKind.OBJECT).all():
                return written
            problem = _explain_mismatch(location, address, written)
            if not problem:
                return written
        kind = objects.object_kind(StoredObject(location, address))
        if kind != "dangling" and (self.on_missing == "copy" or kind == "datatype"):
            return self.copy(location, address, kind)
        if self.on_missing != "raise":
            return None
        path = StoredObject(location, address).path
        target = f"{path!r}" if path else f"the unnamed object at {address:#x}"
        if kind == "dangling":
            target, problem = f"{address:#x}", "where no object is"
        raise DanglingReferenceError(
            f"{describe(int(rows[0]))} points at {target} of {location.filename}, {problem}; "
            "write it too, or pass on_missing='copy' or on_missing='null'"
        )

    def _refuse_attributes(
        self, references: ReferenceArray, address: npt.NDArray[np.uint64]
    ) -> None:
        """Make references to attributes null, or refuse them: H5T_STD_REF_OBJ has none."""
        rows = references.columns.attribute_rows
        if not len(rows):
            return
        if self.on_missing != "null":
            raise DanglingReferenceError(
                f"{references.describe(int(rows[0]))} points at an attribute, which references "
                "of h5py (H5T_STD_REF_OBJ) cannot; pass on_missing='null'"
            )
        address[rows] = 0


def _explain_mismatch(location: FileLocation, address: int, written: WrittenObject) -> str:
    """Say why a region of an object selects other elements of the object made from it."""
    if written.shape is None:
        return ""
    try:
        layout = StoredObject(location, address).layout
    except XrefError:
        return ""  # not a dataset, so no region of it has elements
    sizes = zip(written.shape, layout.shape, layout.maxshape, strict=False)
    if len(written.shape) == len(layout.shape) and all(
        new == old or (new > old and limit is None) for new, old, limit in sizes
    ):
        if written.open_written is None:
            return ""
        array = written.open_written()
        origin = known_origin(array.variable, written.path)
        if origin is not None and origin.is_whole:
            return ""
        if origin is None and is_in_place(ObjectReference(location, address), array):
            return ""
    return (
        f"of shape {layout.shape}, from which {written.path!r} of shape {written.shape} was "
        "made by selecting or reordering elements: its regions would select other elements"
    )
