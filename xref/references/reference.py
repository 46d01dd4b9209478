"""One reference: its target, and the lazy result that it resolves to.

In: the location of a file and an address; for a region also a selection, for an attribute its
name. Out: `ObjectReference`, `RegionReference` and `AttributeReference`, frozen values. Making,
comparing and pickling a reference reads nothing of the file. Printing a reference looks up the
paths of the file once (`xref.objects.paths`).

The classes define neither ``__array__`` nor ``__len__``: xarray inspects the first element of
object variables, and NumPy would read the target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from xref import objects, selections
from xref.errors import DanglingReferenceError, ExternalFileError, NullReferenceError, naming
from xref.objects import StoredObject
from xref.storage import FileLocation

if TYPE_CHECKING:
    import xarray as xr

    from xref.references.owners import ElementName, Owner


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """How resolved variables are decoded: the options of `xarray.open_dataset`."""

    mask_and_scale: bool = True
    decode_times: Any = True
    concat_characters: bool = True
    decode_coords: Any = True
    use_cftime: bool | None = None
    decode_timedelta: Any = None
    decode_vlen_strings: bool = True
    reader: str = "auto"
    lock: Any = None

    def __hash__(self) -> int:
        return hash(repr(self))


DEFAULT_OPTIONS = DecodeOptions()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ObjectReference:
    """A reference to an object: a dataset, a group or a named datatype.

    Attributes
    ----------
    location : FileLocation or None
        The file of the target; None for a null reference.
    address : int
        Address of the target's object header, in bytes from the base address of the file;
        0 for a null reference.
    """

    location: FileLocation | None
    address: int
    options: DecodeOptions = DEFAULT_OPTIONS
    stored_as: ElementName | None = None
    """The stored element that the reference was read from, for messages; None for others."""

    @classmethod
    def to(
        cls, target: StoredObject, options: DecodeOptions = DEFAULT_OPTIONS
    ) -> ObjectReference:
        """Make a reference to an object of a file."""
        return cls(target.location, target.address, options)

    def __bool__(self) -> bool:
        return self.address != 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ObjectReference):
            return NotImplemented
        return self.address == other.address and (
            self.address == 0 or self._file_key() == other._file_key()
        )

    def __hash__(self) -> int:
        return hash((self.address, self._file_key() if self.address else None))

    @property
    def stored(self) -> StoredObject | None:
        """The target as a value that opens and reads it; None for a null reference."""
        if self.location is None or not self:
            return None
        return StoredObject(self.location, self.address)

    def __reduce__(self) -> tuple[Any, ...]:
        # Half of the time and fewer bytes than the fields of a dataclass: arrays of
        # references are pickled element by element.
        options = None if self.options is DEFAULT_OPTIONS else self.options
        state = self.location, self.address, options
        return _restore, state if self.stored_as is None else (*state, *self.stored_as)

    def describe(self, noun: str = "object reference") -> str:
        """Name the reference in a message: where it is stored, or else its target."""
        return _describe(self, noun)

    def _file_key(self) -> tuple[int | str, ...] | None:
        return self.location.file_id if self.location else None

    @property
    def filename(self) -> str | None:
        """Path or URL of the file of the target."""
        return self.location.filename if self.location else None

    @property
    def path(self) -> str | None:
        """The canonical path of the target; None if no hard link leads to it.

        Of several paths by hard links, the canonical one has the fewest parts, and comes
        first in the order of names; soft and external links do not count. The links of a
        file are walked once, and only until the object is found.
        """
        return self.stored.path if self.stored else None

    @property
    def kind(self) -> str:
        """Kind of the target: "dataset", "group", "datatype", "null" or "dangling"."""
        return objects.object_kind(self.stored) if self.stored else "null"

    def resolve(self, chunks: Any = None) -> Any:
        """Open the target lazily.

        Parameters
        ----------
        chunks : None, int, dict or "auto"
            As in `xarray.open_dataset`: None for lazy arrays without dask.

        Returns
        -------
        xarray.DataArray, xarray.Dataset or numpy.dtype
            For a dataset, a group, a named datatype.

        Raises
        ------
        NullReferenceError
            If the reference is null.
        DanglingReferenceError
            If there is no object at the address.
        """
        from xref.resolving import resolve_object

        return resolve_object(self, chunks=chunks)

    def __repr__(self) -> str:
        return f"<ObjectReference {self.text}>"

    @property
    def text(self) -> str:
        """The target as text."""
        return self.target_text()

    def target_text(self) -> str:
        """Return the target as text: its path, or its address if it has no path.

        The text does not depend on earlier calls. It is the address, too, if a remote file
        would have to be searched with many requests.
        """
        return f"-> {self.stored.label}" if self.stored else "null"


def _restore(
    location: FileLocation | None,
    address: int,
    options: DecodeOptions | None,
    owner: Owner | None = None,
    element: int = 0,
) -> ObjectReference:
    """Make the object reference that was pickled, of the fields of its `ElementName`."""
    from xref.references.owners import ElementName  # not needed to open a file

    name = None if owner is None else ElementName(owner, element)
    return ObjectReference(location, address, options or DEFAULT_OPTIONS, name)


class SourceName(str):
    """The name of a file, together with an object of the file.

    The engine sets ``encoding["source"]`` to this string; references to a variable are made
    from it.

    Attributes
    ----------
    object : ObjectReference
        The dataset or the group that was opened. The reference does not keep the file open.
    path : str or None
        The path by which the object was opened, if known.
    """

    __slots__ = ("object", "path")
    object: ObjectReference
    path: str | None

    @classmethod
    def of(
        cls, reference: ObjectReference, name: str | None = None, path: str | None = None
    ) -> SourceName:
        """Name the file of a reference; ``name`` replaces the filename."""
        source = cls(reference.filename if name is None else name)
        source.object, source.path = reference, path
        return source

    def __reduce__(self) -> tuple[Any, ...]:
        location = self.object.location
        if location is None or not location.source.reopens_by_name:
            return str, (str(self),)  # content does not travel along with its name
        return SourceName.of, (self.object, str(self), self.path)

    def __deepcopy__(self, memo: dict[int, Any]) -> SourceName:
        return self


def opened_from(encoding: Mapping[Any, Any]) -> ObjectReference | None:
    """Return the object that a variable was opened from, as its encoding names it."""
    source = encoding.get("source")
    return source.object if isinstance(source, SourceName) else None


class _WithinObject:
    """Properties of a reference to a part of an object, given by the object reference."""

    __slots__ = ()
    object: ObjectReference

    @property
    def location(self) -> FileLocation | None:
        """The file of the object; None for a null reference."""
        return self.object.location

    @property
    def address(self) -> int:
        """Address of the object header, in bytes from the base address of the file."""
        return self.object.address

    @property
    def stored_as(self) -> ElementName | None:
        """The stored element that the reference was read from; None if it is not stored."""
        return self.object.stored_as

    @property
    def options(self) -> DecodeOptions:
        """How the resolved variable, or a reference in an attribute, is decoded."""
        return self.object.options

    @property
    def filename(self) -> str | None:
        """Path or URL of the file of the object."""
        return self.object.filename

    @property
    def path(self) -> str | None:
        """The canonical path of the object; None if no hard link leads to it."""
        return self.object.path


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RegionReference(_WithinObject):
    """A reference to a selection of elements of a dataset.

    Attributes
    ----------
    object : ObjectReference
        The dataset.
    selection : selection or None
        The selected elements, a value of `xref.selections.values`; None for a null reference.
    """

    object: ObjectReference
    selection: selections.Selection | None

    def __bool__(self) -> bool:
        return self.selection is not None

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, RegionReference):
            return NotImplemented
        return self.object == other.object and self.selection == other.selection

    def __hash__(self) -> int:
        return hash((self.object, self.selection))

    def __reduce__(self) -> tuple[Any, ...]:
        return RegionReference, (self.object, self.selection)

    @property
    def kind(self) -> str:
        """Kind of the target: "dataset", "null", or "dangling"."""
        return self.object.kind if self else "null"

    def describe(self, noun: str = "region reference") -> str:
        """Name the reference in a message: where it is stored, or else its target."""
        return _describe(self.object, noun, self._selection_text())

    def _selection_text(self) -> str:
        return "" if self.selection is None else _describe_selection(self.selection)

    def _fitted(self) -> selections.SelectionTable:
        if self.object.stored is None or not self:
            raise NullReferenceError(f"{self.describe()} is null: it selects nothing")
        table = selections.table_from_selections([self.selection])
        with naming(self.describe):
            extent = self.object.stored.layout.shape
        return table.bound_to(extent, lambda _: self.describe(), self.object.stored)

    @property
    def bounds(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """First element and one past the last along each axis; None for an empty selection.

        The target is opened only for the selection of all elements and for unlimited ones,
        whose bounds depend on its extent.
        """
        if not self or self.selection is None:
            return None
        table = selections.table_from_selections([self.selection])
        if (table.block == 0).any():  # a box without elements
            return None
        start, stop = table.bounds()
        if (stop < 0).any() or table.kind[0] == selections.SelectionKind.ALL:
            table = self._fitted()
            start, stop = table.bounds()
        if table.kind[0] == selections.SelectionKind.NONE:
            return None
        return tuple(start[0].tolist()), tuple(stop[0].tolist())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the resolved array: full rank for outer products, else 1-D."""
        ndim, shape = self._fitted().result_shapes()
        return tuple(shape[0, : int(ndim[0])].tolist())

    @property
    def size(self) -> int:
        """Number of elements selected."""
        return math.prod(self.shape)

    def resolve(self, chunks: Any = None) -> xr.DataArray:
        """Return the selected elements as a lazy DataArray.

        Parameters
        ----------
        chunks : None, int, dict or "auto"
            As in `xarray.open_dataset`: None for a lazy array without dask.

        Returns
        -------
        xarray.DataArray
            With the dimensions and coordinates of the target. Points, masks, lists and slices
            with steps have their positions along axes without a coordinate.

        Raises
        ------
        NullReferenceError
            If the reference is null.
        SelectionError
            If the region exceeds the current extent of the dataset.
        """
        from xref.resolving import resolve_region

        result: xr.DataArray = resolve_region(self, chunks=chunks)
        return result

    def __repr__(self) -> str:
        return f"<RegionReference {self.text}>"

    @property
    def text(self) -> str:
        """The target and the bounds of the selection as text."""
        return f"{self.object.text}{self._selection_text()}" if self else "null"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AttributeReference(_WithinObject):
    """A reference to an attribute of an object.

    Only references of HDF5 1.12 and later (``H5T_STD_REF``) can refer to attributes.

    Attributes
    ----------
    object : ObjectReference
        The object that has the attribute: a dataset, a group or a named datatype.
    name : str
        Name of the attribute; empty for a null reference.
    """

    object: ObjectReference
    name: str

    def __bool__(self) -> bool:
        return bool(self.object)

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, AttributeReference):
            return NotImplemented
        return self.object == other.object and (not self or self.name == other.name)

    def __hash__(self) -> int:
        return hash((self.object, self.name if self else None))

    @property
    def kind(self) -> str:
        """Kind of the target: "attribute", "null" or "dangling"."""
        stored = self.object.stored
        return "null" if stored is None or not self else attribute_kind(stored, self.name)

    def describe(self, noun: str = "attribute reference") -> str:
        """Name the reference in a message: where it is stored, or else its target."""
        return _describe(self.object, noun, f", attribute {self.name!r}")

    def resolve(self, chunks: Any = None) -> xr.DataArray:
        """Read the attribute.

        Parameters
        ----------
        chunks : None, int, dict or "auto"
            As in `xarray.open_dataset`; the value is read at once in any case.

        Returns
        -------
        xarray.DataArray
            Named after the attribute, with dimensions ``dim_0``, ``dim_1`` ...

        Raises
        ------
        NullReferenceError
            If the reference is null.
        DanglingReferenceError
            If the object or its attribute does not exist.
        """
        from xref.resolving import resolve_attribute

        result: xr.DataArray = resolve_attribute(self, chunks=chunks)
        return result

    def __repr__(self) -> str:
        return f"<AttributeReference {self.text}>"

    @property
    def text(self) -> str:
        """The object and the name of the attribute as text."""
        return f"{self.object.text} @{self.name}" if self else "null"


Reference: TypeAlias = ObjectReference | RegionReference | AttributeReference


def attribute_kind(stored: StoredObject, name: str) -> str:
    """Return "attribute", or "dangling" if the object or the attribute does not exist."""
    try:
        exists = objects.has_attribute(objects.open_object(stored), name)
    except (DanglingReferenceError, ExternalFileError):
        return "dangling"
    return "attribute" if exists else "dangling"


def _describe(target: ObjectReference, noun: str, part: str = "") -> str:
    """Name a reference in a message; ``part`` is the part of the target that it refers to."""
    if target.stored_as is not None:
        return str(target.stored_as)
    if target.stored is None:
        return f"the {noun}" if noun[-1].isalpha() else noun
    return f"{target.filename}: {noun} to {target.stored.label}{part}"


def _describe_selection(selection: selections.Selection) -> str:
    start, stop = selections.table_from_selections([selection]).bounds()
    if selection.kind in ("all", "none"):
        return f"[{selection.kind}]"
    pairs = zip(start[0].tolist(), stop[0].tolist(), strict=True)
    sides = [f"{a}:{b if b >= 0 else ''}" for a, b in pairs]
    extra = "" if selection.kind == "hyperslab" else f" {selection.kind}"
    return f"[{', '.join(sides)}]{extra}"


def null_reference(
    is_region: bool, stored_as: ElementName | None = None
) -> ObjectReference | RegionReference:
    """Return the null object reference or the null region reference."""
    null = ObjectReference(None, 0, DEFAULT_OPTIONS, stored_as)
    return RegionReference(null, None) if is_region else null
