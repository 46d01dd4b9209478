"""Arrays of references, stored as columns.

In: `ReferenceColumns`, or the `StoredReferences` of a dataset. Out: `ReferenceArray`, the duck
array that a reference variable holds.

An array that was opened from a file keeps the location of its elements, and decodes them when
they are first needed; slicing such an array slices the location. A reference object is made
when one element is indexed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays import digest
from xref.errors import XrefError
from xref.references import reference
from xref.references.columns import (
    KIND_NOUNS,
    ReferenceColumns,
    as_slice,
    columns_from_objects,
    null_references,
    same_references,
)
from xref.references.owners import ElementName, ElementNames, Owner
from xref.references.stored import StoredReferences
from xref.selections import SelectionKind, empty_table

FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {}
"""Implementations of NumPy functions, entered by `xref.references.array_functions`."""


@dataclass(slots=True)
class _Columns:
    """Columns that are decoded once, at the first use."""

    value: ReferenceColumns | None = None
    lock: Any = field(default_factory=threading.Lock)


class ReferenceArray:
    """An immutable array of references, kept as columns.

    The attribute ``kind`` is "object", "region", or "std" for references of HDF5 1.12 and
    later (``H5T_STD_REF``), which refer to objects, regions and attributes in one array.

    NumPy and xarray see a duck array of dtype object. An integer index for each axis gives
    a reference, any other index gives a `ReferenceArray`. ``np.asarray`` makes the objects.

    Several threads may use an array; a lock guards the one-time decoding of the columns.

    Elements are equal if they have the same target; null references are equal. There is one
    exception: in ``data != data``, null references differ from themselves, because xarray finds
    missing values that way. So ``isnull``, ``dropna`` and ``combine_first`` work.

    Notes
    -----
    Made by `xarray.open_dataset` with ``engine="h5ref"``, or from references by
    `ReferenceArray.from_references`.
    """

    __slots__ = ("__weakref__", "_columns", "_names", "_options", "_shape", "_stored", "kind")

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        kind: str,
        columns: ReferenceColumns | None = None,
        stored: StoredReferences | None = None,
        options: reference.DecodeOptions = reference.DEFAULT_OPTIONS,
        names: ElementNames | None = None,
    ) -> None:
        if columns is None and stored is None:
            raise TypeError("a ReferenceArray needs columns or stored references")
        if columns is not None and len(columns) != math.prod(shape):
            raise ValueError(f"{len(columns)} references do not fill an array of shape {shape}")
        self._shape = shape
        self.kind = kind
        self._columns = _Columns(columns)
        self._stored = stored
        self._options = options
        self._names = names

    @classmethod
    def from_references(cls, references: Any, *, keep_kinds: bool = False) -> ReferenceArray:
        """Make an array from references, nested sequences of them or an object array.

        If object references and region references are given, a region reference stands for
        its object, except with ``keep_kinds``. If an attribute reference is given, every
        reference keeps its kind. None stands for a null reference.
        """
        objects = np.asarray(references, dtype=object)
        elements = objects.ravel().tolist()
        kind, columns, options = columns_from_objects(elements, keep_kinds)
        names = ElementNames.of_each([getattr(r, "stored_as", None) for r in elements])
        return cls(objects.shape, kind=kind, columns=columns, options=options, names=names)

    @classmethod
    def nulls(cls, shape: tuple[int, ...], *, is_region: bool) -> ReferenceArray:
        """Return an array of null references."""
        n = math.prod(shape)
        columns = null_references(n, empty_table(n, 0) if is_region else None)
        return cls(shape, kind="region" if is_region else "object", columns=columns)

    @property
    def columns(self) -> ReferenceColumns:
        """The references in C order, decoded at the first use."""
        if self._columns.value is None:
            with self._columns.lock:
                if self._columns.value is None:
                    if self._stored is None:
                        raise TypeError("a ReferenceArray has no columns or stored references")
                    self._columns.value = self._stored.read()
        return self._columns.value

    @property
    def is_region(self) -> bool:
        """Whether an element is a region reference; an array of kind "std" is read for it."""
        if self.kind != "std":
            return self.kind == "region"
        regions = self.columns.regions
        return regions is not None and bool((~np.isin(regions.kind, _NO_REGION)).any())

    @property
    def stored(self) -> StoredReferences | None:
        """The location of the elements in the file; None if they are no box of one dataset."""
        return self._stored

    @property
    def options(self) -> reference.DecodeOptions:
        """How variables that references resolve to are decoded."""
        return self._options

    @property
    def names(self) -> ElementNames | None:
        """The stored elements that the references were read from, in C order, for messages."""
        if self._names is None and self._stored is not None:
            self._names = self._stored.names
        return self._names

    @property
    def owner(self) -> Owner | None:
        """The dataset or attribute that stores all references; None if there is no such one."""
        names = self.names
        return names.owners[0] if names is not None and len(names.owners) == 1 else None

    @property
    def label(self) -> str:
        """Name the references in a message, by the dataset or attribute that stores them."""
        if self.size == 1:
            return self.describe(0)
        if self.owner is not None:
            return str(self.owner)
        names = sorted(location.filename for location in self.columns.used_files())
        return f"{', '.join(names) or 'no file'}: {KIND_NOUNS[self.kind]}s"

    def describe(self, row: int) -> str:
        """Name one element in a message; ``row`` counts in C order."""
        names = self.names
        name = None if names is None else names.name(row)
        if name is not None:
            return str(name)
        index = tuple(int(i) for i in np.unravel_index(row, self._shape)) if self._shape else ()
        number = f" {index[0] if len(index) == 1 else index}" if index else ""
        return self._element(row, None).describe(f"{KIND_NOUNS[self.kind]}{number}")

    def element(self, row: int) -> reference.Reference:
        """Return one element in C order; the first call decodes all elements."""
        names = self.names
        return self._element(row, None if names is None else names.name(row))

    def _element(self, row: int, name: ElementName | None) -> reference.Reference:
        return next(self._elements(slice(row, row + 1), [name]))

    def _elements(
        self, rows: slice, names: Iterable[ElementName | None]
    ) -> Iterator[reference.Reference]:
        """Make elements; ``names`` are those of the rows."""
        c, is_region, options = self.columns, self.kind == "region", self._options
        kinds = repeat(_OBJECT) if c.regions is None else c.regions.kind[rows].tolist()
        attributes = repeat(-1) if c.attribute is None else c.attribute[rows].tolist()
        # Lists: an item of a NumPy array takes as long as the reference itself.
        fields = c.file[rows].tolist(), c.address[rows].tolist(), kinds, attributes, names
        for row, (file, address, kind, attribute, name) in enumerate(
            zip(*fields, strict=False), rows.start
        ):
            if address == 0 or kind == _NULL:
                yield reference.null_reference(is_region, name)
                continue
            target = reference.ObjectReference(c.files[file], address, options, name)
            if attribute >= 0:
                yield reference.AttributeReference(target, c.names[attribute])
            elif c.regions is None or kind == _OBJECT:
                yield target
            else:
                yield reference.RegionReference(target, c.regions.selection(row))

    def __iter__(self) -> Iterator[Any]:
        if not self._shape:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(self._shape[0]))

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        return self._shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._shape)

    @property
    def size(self) -> int:
        """Number of references."""
        return math.prod(self._shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """``dtype('O')``."""
        return np.dtype(object)

    @property
    def nbytes(self) -> int:
        """Bytes of one pointer an element, as for any array of objects."""
        return 8 * self.size

    @property
    def T(self) -> ReferenceArray:
        """The array with its axes reversed."""
        return self.transpose()

    def __len__(self) -> int:
        if not self._shape:
            raise TypeError("len() of a 0-d array")
        return self._shape[0]

    def __getitem__(self, key: Any) -> Any:
        key = key if isinstance(key, tuple) else (key,)
        if any(isinstance(k, ReferenceArray) for k in key):
            raise IndexError("an array of references cannot be an index")
        box = self._basic_box(key)
        if box is not None:
            stored, shape = box
            part = ReferenceArray(shape, kind=self.kind, stored=stored, options=self._options)
            if self._columns.value is not None:
                rows = self.row_numbers()[key].reshape(-1)
                part._columns.value = self._columns.value.take(as_slice(rows))
            if shape or Ellipsis in key:
                return part
            names, whole = self.names, self._stored
            row = 0 if whole is None else whole.ordinal_of(stored)
            return part._element(0, None if names is None else names.name(row))
        rows = self.row_numbers()[key]
        if not isinstance(rows, np.ndarray):
            return self.element(int(rows))
        return self._gather(rows)

    def _gather(self, rows: npt.NDArray[np.int64]) -> ReferenceArray:
        """Return the elements of row numbers, in the shape of ``rows``."""
        index = as_slice(rows.reshape(-1))
        columns, names = self.columns.take(index), self.names
        return ReferenceArray(
            rows.shape,
            kind=self.kind,
            columns=columns,
            options=self._options,
            names=None if names is None else names.take(index),
        )

    def row_numbers(self) -> npt.NDArray[np.int64]:
        """Return the C-order number of each element, in the shape of the array."""
        return np.arange(self.size).reshape(self._shape)

    def _basic_box(
        self, key: tuple[Any, ...]
    ) -> tuple[StoredReferences, tuple[int, ...]] | None:
        """Apply integers and forward slices to the location of stored elements."""
        stored = self._stored
        basic = all(k is Ellipsis or isinstance(k, int | np.integer | slice) for k in key)
        if stored is None or not basic or self._shape != stored.shape:
            return None
        n_given = sum(k is not Ellipsis for k in key)
        if n_given > self.ndim or sum(k is Ellipsis for k in key) > 1:
            return None  # NumPy words the error
        n_before = next((i for i, k in enumerate(key) if k is Ellipsis), len(key))
        fill = (slice(None),) * (self.ndim - n_given)
        full = (*key[:n_before], *fill, *key[n_before + 1 :])
        slices, shape = [], []
        for k, (start, count, step) in zip(full, stored.slices, strict=True):
            if isinstance(k, slice):
                low, high, by = k.indices(count)
                if by < 0:
                    return None
                n = len(range(low, high, by))
                slices.append((start + low * step, n, step * by))
                shape.append(n)
            else:
                if not -count <= k < count:
                    return None
                slices.append((start + int(k) % count * step, 1, 1))
        return replace(stored, slices=tuple(slices)), tuple(shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError(
                "np.asarray makes an object of each reference: copy=False is not possible"
            )
        if dtype is not None and np.dtype(dtype) == np.bool_:
            result: npt.NDArray[Any] = self.astype(bool)
            return result
        if dtype is not None and np.dtype(dtype) != np.dtype(object):
            raise TypeError(f"references are objects and cannot be converted to {dtype}")
        out = np.empty(self.size, dtype=object)
        names = repeat(None) if self.names is None else self.names.each()
        for row, element in enumerate(self._elements(slice(0, self.size), names)):
            out[row] = element
        return out.reshape(self._shape)

    def astype(self, dtype: Any, copy: bool = True, **kwargs: Any) -> Any:
        """Return the array itself for object, the mask of non-null elements for bool."""
        del copy, kwargs
        dtype = np.dtype(dtype)
        if dtype == np.dtype(object):
            return self
        if dtype == np.bool_:
            columns = self.columns
            mask = columns.address != 0
            if columns.regions is not None:
                mask &= columns.regions.kind != SelectionKind.NULL
            return mask.reshape(self._shape)
        raise TypeError(
            f"references cannot be converted to {dtype}; bool gives the non-null mask"
        )

    def item(self, *args: Any) -> Any:
        """Return one reference, as `numpy.ndarray.item` does."""
        return self.element(int(self.row_numbers().item(*args)))

    def reshape(self, *shape: Any) -> ReferenceArray:
        """Return the elements in another shape, C order."""
        new = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return self.take_rows(self.row_numbers().reshape(new))

    def transpose(self, *axes: Any) -> ReferenceArray:
        """Return the array with its axes permuted."""
        new = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        return self.take_rows(self.row_numbers().transpose(*(new or ())))

    def ravel(self) -> ReferenceArray:
        """Return the elements in C order along one axis."""
        return self.reshape((self.size,))

    def take_rows(self, rows: npt.NDArray[np.int64]) -> ReferenceArray:
        """Return the elements of some `row_numbers`, in the shape of ``rows``."""
        if rows.shape == self._shape and rows.size == self.size:
            flat = rows.reshape(-1)
            if len(flat) < 2 or (np.diff(flat) == 1).all():
                return self
        return self._gather(rows)

    def copy(self, order: str = "C") -> ReferenceArray:
        """Return the array itself: it is immutable."""
        del order
        return self

    def __copy__(self) -> ReferenceArray:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ReferenceArray:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        columns = None if self._stored is not None else self.columns
        # Default options are left out: each task of a Dask graph has a pickled array.
        options = None if self._options == reference.DEFAULT_OPTIONS else self._options
        state = self._shape, self.kind, columns, self._stored, options
        # The names of stored elements follow from their location.
        return _restore, state if self._stored is not None else (*state, self._names)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        if self._stored is not None:
            return "xref.ReferenceArray", repr(self._stored), self._shape, repr(self._options)
        c = self.columns
        regions = c.regions
        names = () if regions is None else tuple(regions.__dataclass_fields__)
        content = digest(c.file, c.address, c.attribute, *(getattr(regions, n) for n in names))
        files, options = repr(c.files), repr(self._options)
        stored_as = None if self._names is None else self._names.token
        return "xref.ReferenceArray", files, content, c.names, self._shape, options, stored_as

    def __eq__(self, other: object) -> Any:
        return _compare(self, other)

    def __ne__(self, other: object) -> Any:
        if other is self:
            # ``data != data`` is how xarray asks a duck array for missing values.
            return ~self.astype(bool)
        return ~_compare(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method == "__call__" and not kwargs.get("out"):
            if ufunc is np.equal:
                return _compare(*inputs)
            if ufunc is np.not_equal:
                return inputs[0] != inputs[1]
            if ufunc in (np.logical_not, np.invert) and isinstance(inputs[0], ReferenceArray):
                return ~inputs[0].astype(bool)
        return NotImplemented

    def __array_function__(
        self, func: Callable[..., Any], types: Any, args: Any, kwargs: Any
    ) -> Any:
        import xref.references.array_functions  # noqa: F401, enters them

        handler = FUNCTIONS.get(func)
        return NotImplemented if handler is None else handler(*args, **kwargs)

    def _repr_inline_(self, max_width: int) -> str:
        """Describe the array on one line, for the repr of a Dataset; reads no references.

        The common target of stored references is never shown, so that the text does not
        depend on whether they were read.
        """
        text = _CLASS_NAMES[self.kind]
        columns = self._columns.value if self._stored is None else None
        has_rows = columns is not None and columns.files and len(columns)
        if columns is not None and has_rows and (columns.address == columns.address[0]).all():
            target = reference.ObjectReference(columns.files[0], int(columns.address[0]))
            text += f" {target.target_text()}"
        return f"<{text}>"[:max_width]

    def __repr__(self) -> str:
        head = f"<xref.ReferenceArray {self._shape} of {KIND_NOUNS[self.kind]}s"
        try:
            few = [f"  {self.element_at(i)!r}" for i in range(min(self.size, 3))]
        except (XrefError, OSError) as error:  # a repr must not fail
            return f"{head}: {type(error).__name__}: {error}>"
        more = ["  ..."] if self.size > 3 else []
        return "\n".join([head + ">", *few, *more])

    def element_at(self, row: int) -> Any:
        """Return one element in C order; decodes this element alone."""
        index = tuple(int(i) for i in np.unravel_index(row, self._shape)) if self._shape else ()
        return self[index]


_CLASS_NAMES = {"object": "ObjectReference", "region": "RegionReference", "std": "Reference"}
_NULL, _OBJECT = int(SelectionKind.NULL), int(SelectionKind.OBJECT)
_NO_REGION = (_NULL, _OBJECT)


def _restore(
    shape: Any, kind: str, columns: Any, stored: Any, options: Any, names: Any = None
) -> ReferenceArray:
    options = reference.DEFAULT_OPTIONS if options is None else options
    return ReferenceArray(
        shape, kind=kind, columns=columns, stored=stored, options=options, names=names
    )


def _compare(left: Any, right: Any) -> Any:
    """Compare element by element; references and sequences of them become arrays."""
    if not isinstance(left, ReferenceArray):
        left, right = right, left
    if not isinstance(right, ReferenceArray):
        single = isinstance(right, reference.Reference) or right is None
        objects = np.empty((), dtype=object)
        objects[()] = right
        if not single:
            objects = np.asarray(right, dtype=object)
        if not all(r is None or isinstance(r, reference.Reference) for r in objects.flat):
            shape = np.broadcast_shapes(left.shape, objects.shape)
            return np.zeros(shape, dtype=bool)
        if objects.size == 0 or all(r is None for r in objects.flat):
            right = ReferenceArray.nulls(objects.shape, is_region=left.kind == "region")
        else:
            right = ReferenceArray.from_references(objects)
    shape = np.broadcast_shapes(left.shape, right.shape)
    if left.kind != right.kind and "std" not in (left.kind, right.kind):
        return np.zeros(shape, dtype=bool)
    a, b = (
        x.columns.take(np.broadcast_to(x.row_numbers(), shape).reshape(-1))
        for x in (left, right)
    )
    return same_references(a, b).reshape(shape)
