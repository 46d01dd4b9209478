"""References of one file into references of another one that is being written.

In: references as columns, and what was written where. Out: for each the address in the
new file and its region. A target that is not there is an error that names it, becomes
null, or is asked for (``on_missing``).
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
from xref.storage import FileLocation

ON_MISSING = ("raise", "null", "copy")


@dataclass(frozen=True, slots=True, eq=False)
class WrittenObject:
    """An object of the new file."""

    path: str
    address: int
    shape: tuple[int, ...] | None  # None for what is no dataset
    made_from: ObjectId | None = None
    """Which object of which file it was made from, if that is known."""
    look: Callable[[], xr.DataArray] | None = None
    """Gives what was written, to see if it has all elements of what it was made from."""


ObjectId = tuple[Any, int]
"""A file's key and an address in it."""


@dataclass(slots=True)
class ReferenceTranslator:
    """Where the objects of other files are in the new one.

    Attributes
    ----------
    own_file : tuple
        Identity of the file that is written, where it existed before; references into it
        stay.
    by_identity : dict
        By what objects were made from.
    by_path : dict
        By path in the new file.
    copy : callable
        Asks for a copy of an object of another file, of a kind as `object_kind` says;
        returns where it will be.
    """

    on_missing: str
    own_file: Any = None
    by_identity: dict[ObjectId, list[WrittenObject]] = field(default_factory=dict)
    by_path: dict[str, WrittenObject] = field(default_factory=dict)
    copy: Callable[[FileLocation, int, str], WrittenObject | None] = lambda *_: None
    _files_of_paths: dict[str, Any] = field(default_factory=dict)

    def add(self, written: WrittenObject) -> None:
        """Enter an object that was written."""
        if written.made_from is not None:
            self.by_identity.setdefault(written.made_from, []).append(written)
        self.by_path.setdefault(written.path, written)

    def is_own(self, location: FileLocation) -> bool:
        """Tell whether a file is the one that is written.

        Raises
        ------
        FileChangedError
            If it has changed since references into it were read: they may lead anywhere.
        """
        if self.own_file is None or location.key != self.own_file[:2]:
            return False
        if location.identity != self.own_file:
            raise FileChangedError(
                f"{location.filename} has changed since references into it were read; open it "
                "again"
            )
        return True

    def find(self, location: FileLocation, address: int) -> WrittenObject | None:
        """Return where an object of another file is, None where it is not.

        Of several that were made from it, the one of its path comes first, then one that
        has all of its elements.
        """
        made = self.by_identity.get((location.key, address), [])
        if len(made) == 1:
            return made[0]
        path = StoredObject(location, address).path
        for written in made:
            if written.path == path:
                return written
        if made:
            return next((w for w in made if not _cut_problem(location, address, w)), made[0])
        named = self.by_path.get(path or "")
        # One of that path that was made from another object is another object.
        if named is None or named.made_from is not None:
            return None
        # So is one that stands for an object of another file already.
        file = self._files_of_paths.setdefault(named.path, location.key)
        return named if file == location.key else None

    def remake(
        self, references: ReferenceArray, describe: Callable[[int], str]
    ) -> tuple[npt.NDArray[np.uint64], SelectionTable]:
        """Return address and region of each reference in the new file, in C order.

        Parameters
        ----------
        references : ReferenceArray
        describe : callable
            Names element i in errors.

        Raises
        ------
        DanglingReferenceError
            If a target is not in the new file, unless ``on_missing`` says otherwise.
        """
        columns = references.columns
        address = np.zeros(len(columns), dtype=np.uint64)
        regions = columns.region_table()
        found = distinct_targets(columns)
        for k in range(len(found.address)):
            if k % objects.REFERENCE_BATCH == 0:
                self._prepare(columns, found, slice(k, k + objects.REFERENCE_BATCH))
            rows = found.rows_of(k)
            location = columns.files[int(found.file[k])]
            old = int(found.address[k])
            if self.is_own(location):
                address[rows] = old
                continue
            target = self._target(location, old, rows, regions, describe)
            if target is not None:
                address[rows] = target.address
        self._refuse_attributes(columns, address, describe)
        return address, regions

    def _prepare(self, columns: ReferenceColumns, found: TargetGroups, part: slice) -> None:
        """Get ready to open targets that were not written, all at once."""
        if self.own_file is not None:
            return  # most targets are there
        keys = [location.key for location in columns.files]
        pairs = zip(found.file[part].tolist(), found.address[part].tolist(), strict=True)
        missing = [
            address for file, address in pairs if (keys[file], address) not in self.by_identity
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
        found = self.find(location, address)
        problem = "which is not among what is written"
        if found is not None:
            if found.shape is None or (regions.kind[rows] == SelectionKind.OBJECT).all():
                return found
            problem = _cut_problem(location, address, found)
            if not problem:
                return found
        kind = objects.object_kind(StoredObject(location, address))
        if kind != "dangling" and (self.on_missing == "copy" or kind == "datatype"):
            return self.copy(location, address, kind)
        if self.on_missing != "raise":
            return None
        path = StoredObject(location, address).path
        what = f"{path!r}" if path else f"the unnamed object at {address:#x}"
        if kind == "dangling":
            what, problem = f"{address:#x}", "where no object is"
        raise DanglingReferenceError(
            f"{describe(int(rows[0]))} points at {what} of {location.filename}, {problem}; "
            "write that too, or pass on_missing='copy' or on_missing='null'"
        )

    def _refuse_attributes(
        self,
        columns: ReferenceColumns,
        address: npt.NDArray[np.uint64],
        describe: Callable[[int], str],
    ) -> None:
        """Make references to attributes null, or refuse them: they have no older form."""
        rows = columns.attribute_rows
        if not len(rows):
            return
        if self.on_missing != "null":
            raise DanglingReferenceError(
                f"{describe(int(rows[0]))} points at an attribute, which references of h5py "
                "(H5T_STD_REF_OBJ) cannot; pass on_missing='null'"
            )
        address[rows] = 0


def _cut_problem(location: FileLocation, address: int, found: WrittenObject) -> str:
    """Say why regions of an object are not regions of what was made from it."""
    if found.shape is None:
        return ""
    try:
        layout = StoredObject(location, address).layout
    except XrefError:
        return ""  # a region of what is no dataset stays one
    sizes = zip(found.shape, layout.shape, layout.maxshape, strict=False)
    if len(found.shape) == len(layout.shape) and all(
        new == old or (new > old and limit is None) for new, old, limit in sizes
    ):
        if found.look is None:
            return ""
        array = found.look()
        origin = known_origin(array.variable, found.path)
        if origin is not None and origin.is_whole:
            return ""
        if origin is None and is_in_place(ObjectReference(location, address), array):
            return ""
    return (
        f"of shape {layout.shape}, from which {found.path!r} of shape {found.shape} was made "
        "by selecting, or in another order: regions of it mean other elements"
    )
