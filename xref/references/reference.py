"""One reference: what it points at, and what it resolves to.

In: a file's location and an address, for regions a selection, for attributes a name.
Out: `ObjectReference`, `RegionReference` and `AttributeReference`, plain frozen
values. Neither names nor target data are read to make, compare or pickle one; to print
one, the names of its file are looked up once (`xref.objects.paths`).

They define neither ``__array__`` nor ``__len__``: xarray looks at the first
element of object variables, and NumPy would read the target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

from xref import objects, selections
from xref.errors import DanglingReferenceError, ExternalFileError, NullReferenceError
from xref.objects import StoredObject
from xref.storage import FileLocation

if TYPE_CHECKING:
    import xarray as xr


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


def common_options(options: Iterable[DecodeOptions]) -> DecodeOptions:
    """Return the options of references that are about to be put into one array.

    Raises
    ------
    ValueError
        If they differ in what values are decoded to.
    """
    found: DecodeOptions | None = None
    for each in options:
        if found is None:
            found = each
        elif each is not found:
            for field in fields(DecodeOptions):
                a, b = getattr(found, field.name), getattr(each, field.name)
                if field.name not in ("reader", "lock") and not _is_alike(a, b):
                    raise ValueError(
                        f"references were opened with different options ({field.name} "
                        f"{a!r} and {b!r}), so they do not go into one array; open the files "
                        "alike, or resolve them apart"
                    )
    return DEFAULT_OPTIONS if found is None else found


def _is_alike(a: Any, b: Any) -> bool:
    """Compare options; xarray's coders are compared by what they hold."""
    return (
        a is b
        or a == b
        or (type(a) is type(b) and getattr(a, "__dict__", a) == getattr(b, "__dict__", b))
    )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ObjectReference:
    """A reference to an object: a dataset, a group or a named datatype.

    Attributes
    ----------
    location : FileLocation or None
        The file that the target lives in; None when null.
    address : int
        The target's object header, in bytes from the file's base address; 0 when
        null.
    """

    location: FileLocation | None
    address: int
    options: DecodeOptions = DEFAULT_OPTIONS

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
        """The target as a value that opens and reads it; None when null."""
        if self.location is None or not self:
            return None
        return StoredObject(self.location, self.address)

    def _file_key(self) -> tuple[int | str, ...] | None:
        return self.location.key if self.location else None

    @property
    def filename(self) -> str | None:
        """The file that the target lives in."""
        return self.location.filename if self.location else None

    @property
    def path(self) -> str | None:
        """The canonical path of the target; None when it has no name.

        Of several hard links it is the path of fewest parts, then the first by name; soft
        and external links name nothing. The links of a file are walked once, and no
        further than to the object.
        """
        return self.stored.path if self.stored else None

    @property
    def kind(self) -> str:
        """What the target is: "dataset", "group", "datatype", "null" or "dangling"."""
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
            If there is no object at its address.
        """
        from xref.resolving import resolve_object

        return resolve_object(self, chunks=chunks)

    def __repr__(self) -> str:
        return f"<ObjectReference {self.target_text()}>"

    def target_text(self) -> str:
        """Say where the target is; the same whatever was opened or asked before.

        It is the path, or the address of an object that has none. Deep in a remote file it
        is the address: a search takes too many requests for a text.
        """
        return f"-> {self.stored.label}" if self.stored else "null"


class SourceName(str):
    """The name of a file that knows which object of the file is meant.

    It is ``encoding["source"]`` of what the engine opens, a text like any other, and what
    references to a variable are made from.

    Attributes
    ----------
    object : ObjectReference
        The dataset or the group that was opened. It does not keep the file open.
    path : str or None
        The path by which it was opened, where that is known: one of those it has.
    """

    __slots__ = ("object", "path")
    object: ObjectReference
    path: str | None

    @classmethod
    def of(
        cls, reference: ObjectReference, name: str | None = None, path: str | None = None
    ) -> SourceName:
        """Name the file of a reference, or by another name that the file has."""
        source = cls(reference.filename if name is None else name)
        source.object, source.path = reference, path
        return source

    def __reduce__(self) -> tuple[Any, ...]:
        location = self.object.location
        if location is None or not location.source.named:
            return str, (str(self),)  # content does not travel along with its name
        return SourceName.of, (self.object, str(self), self.path)

    def __deepcopy__(self, memo: dict[int, Any]) -> SourceName:
        return self


def opened_from(encoding: Mapping[Any, Any]) -> ObjectReference | None:
    """Return the object that something was opened from, by its encoding."""
    source = encoding.get("source")
    return source.object if isinstance(source, SourceName) else None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RegionReference:
    """A reference to a selection of elements of a dataset.

    Attributes
    ----------
    object : ObjectReference
        The dataset. A region reference works wherever that does.
    selection : selection or None
        What is selected, a value of `xref.selections.values`; None when null.
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

    @property
    def location(self) -> FileLocation | None:
        """The file that the target lives in; None when null."""
        return self.object.location

    @property
    def address(self) -> int:
        """The target's object header, in bytes from the file's base address."""
        return self.object.address

    @property
    def options(self) -> DecodeOptions:
        """How the resolved variable is decoded."""
        return self.object.options

    @property
    def filename(self) -> str | None:
        """The file that the target lives in."""
        return self.object.filename

    @property
    def path(self) -> str | None:
        """The canonical path of the target; None when it has no name."""
        return self.object.path

    @property
    def kind(self) -> str:
        """What the target is: "dataset", "null", or "dangling"."""
        return self.object.kind if self else "null"

    def _fitted(self) -> selections.SelectionTable:
        if self.object.stored is None or not self:
            raise NullReferenceError("a null region reference selects nothing")
        table = selections.table_from_selections([self.selection])
        return table.fit(self.object.stored.layout.shape, lambda _: repr(self))

    @property
    def bounds(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """First element and one past the last along each axis; None when nothing is selected.

        Only selections of everything, and unlimited ones, look at the target's
        extent.
        """
        if not self or self.selection is None:
            return None
        table = selections.table_from_selections([self.selection])
        start, stop = table.bounds()
        if (stop < 0).any() or table.kind[0] == selections.SelectionKind.ALL:
            table = self._fitted()
            start, stop = table.bounds()
        if table.kind[0] == selections.SelectionKind.NONE:
            return None
        return tuple(start[0].tolist()), tuple(stop[0].tolist())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape that resolving gives: full rank for outer products, else 1-D."""
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

        Raises
        ------
        NullReferenceError
            If the reference is null.
        SelectionError
            If the region reaches beyond the dataset's current extent.
        """
        from xref.resolving import resolve_region

        result: xr.DataArray = resolve_region(self, chunks=chunks)
        return result

    def __repr__(self) -> str:
        if not self or self.selection is None:
            return "<RegionReference null>"
        selection = _describe_selection(self.selection)
        return f"<RegionReference {self.object.target_text()}{selection}>"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AttributeReference:
    """A reference to an attribute of an object.

    Only references of HDF5 1.12 and later (``H5T_STD_REF``) have such targets.

    Attributes
    ----------
    object : ObjectReference
        The object that has the attribute: a dataset, a group or a named datatype.
    name : str
        Of the attribute; empty when null.
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
    def location(self) -> FileLocation | None:
        """The file that the object lives in; None when null."""
        return self.object.location

    @property
    def address(self) -> int:
        """The object's header, in bytes from the file's base address."""
        return self.object.address

    @property
    def options(self) -> DecodeOptions:
        """How references in the attribute's value resolve."""
        return self.object.options

    @property
    def filename(self) -> str | None:
        """The file that the object lives in."""
        return self.object.filename

    @property
    def path(self) -> str | None:
        """The canonical path of the object; None when it has no name."""
        return self.object.path

    @property
    def kind(self) -> str:
        """What the target is: "attribute", "null" or "dangling"."""
        stored = self.object.stored
        return "null" if stored is None or not self else attribute_kind(stored, self.name)

    def resolve(self, chunks: Any = None) -> xr.DataArray:
        """Read the attribute.

        Parameters
        ----------
        chunks : None, int, dict or "auto"
            As in `xarray.open_dataset`; the value is read at once all the same.

        Returns
        -------
        xarray.DataArray
            Named after the attribute, with dimensions ``dim_0``, ``dim_1`` ...

        Raises
        ------
        NullReferenceError
            If the reference is null.
        DanglingReferenceError
            If there is no such object, or it has no such attribute.
        """
        from xref.resolving import resolve_attribute

        result: xr.DataArray = resolve_attribute(self, chunks=chunks)
        return result

    def __repr__(self) -> str:
        if not self:
            return "<AttributeReference null>"
        return f"<AttributeReference {self.object.target_text()} @{self.name}>"


Reference: TypeAlias = ObjectReference | RegionReference | AttributeReference


def attribute_kind(stored: StoredObject, name: str) -> str:
    """Return "attribute", or "dangling" if there is no object or no such attribute."""
    try:
        found = objects.has_attribute(objects.open_object(stored), name)
    except (DanglingReferenceError, ExternalFileError):
        return "dangling"
    return "attribute" if found else "dangling"


def _describe_selection(selection: selections.Selection) -> str:
    start, stop = selections.table_from_selections([selection]).bounds()
    if selection.kind in ("all", "none"):
        return f"[{selection.kind}]"
    sides = [
        f"{a}:{b if b >= 0 else ''}"
        for a, b in zip(start[0].tolist(), stop[0].tolist(), strict=True)
    ]
    extra = "" if selection.kind == "hyperslab" else f" {selection.kind}"
    return f"[{', '.join(sides)}]{extra}"


def null_reference(is_region: bool) -> ObjectReference | RegionReference:
    """Return the null reference of a kind."""
    null = ObjectReference(None, 0)
    return RegionReference(null, None) if is_region else null
