"""Arrays of references that are columns.

In: `ReferenceColumns` columns or the place of a stored dataset. Out: `ReferenceArray`,
the duck array that a reference variable holds.

An array that was opened from a file is only a place until something asks for
what its elements say; slicing it gives a smaller place. Elements are made when
one is indexed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays import digest
from xref.errors import XrefError
from xref.references.columns import KIND_NOUNS, ReferenceColumns
from xref.references.reference import (
    DEFAULT_OPTIONS,
    AttributeReference,
    DecodeOptions,
    ObjectReference,
    Reference,
    RegionReference,
    common_options,
    null_reference,
)
from xref.references.stored import StoredReferences
from xref.selections import SelectionKind, empty_table, table_from_selections

FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {}
"""What NumPy's functions do with a `ReferenceArray`; see `xref.references.array_functions`."""


@dataclass(slots=True)
class _Columns:
    """Columns that are decoded once, when first asked for."""

    value: ReferenceColumns | None = None
    lock: Any = field(default_factory=threading.Lock)


class ReferenceArray:
    """An immutable array of references, kept as columns.

    Its ``kind`` is "object", "region", or "std" for references of HDF5 1.12 and later
    (``H5T_STD_REF``), among which may be some to objects, regions and attributes.

    To NumPy and xarray it is a duck array of dtype object. An integer index for
    each axis gives a reference, anything else another `ReferenceArray`.
    ``np.asarray`` makes the objects.

    Arrays may be used from several threads; what the lock guards is the one-time
    decoding of the columns.

    Elements compare by what they point at, null ones as equal. Only an array
    compared with itself differs where it is null: ``data != data`` is how xarray
    asks for missing values, so ``isnull``, ``dropna`` and ``combine_first`` work.

    Notes
    -----
    Made by `xarray.open_dataset` with ``engine="h5ref"``, or from references by
    `ReferenceArray.from_references`.
    """

    __slots__ = ("__weakref__", "_columns", "_options", "_shape", "_stored", "kind")

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        kind: str,
        columns: ReferenceColumns | None = None,
        stored: StoredReferences | None = None,
        options: DecodeOptions = DEFAULT_OPTIONS,
    ) -> None:
        if columns is None and stored is None:
            raise TypeError("columns or the place of stored references are needed")
        if columns is not None and len(columns) != math.prod(shape):
            raise ValueError(f"{len(columns)} references do not fill an array of shape {shape}")
        self._shape = shape
        self.kind = kind
        self._columns = _Columns(columns)
        self._stored = stored
        self._options = options

    @classmethod
    def from_references(cls, references: Any, *, keep_kinds: bool = False) -> ReferenceArray:
        """Make an array from references, nested sequences of them or an object array.

        Among object references, region references stand for their objects, unless
        ``keep_kinds`` says otherwise. With a reference to an attribute among them, all
        keep their kind. None stands for a null reference.
        """
        objects = np.asarray(references, dtype=object)
        flat = objects.ravel().tolist()
        if keep_kinds or any(isinstance(r, AttributeReference) for r in flat):
            return _mixed_array(flat, objects.shape)
        is_region = not any(isinstance(r, ObjectReference) for r in flat) and any(
            isinstance(r, RegionReference) for r in flat
        )
        if not is_region:
            # Among object references a region reference stands for its object.
            flat = [r.object if isinstance(r, RegionReference) else r for r in flat]
        wanted = RegionReference if is_region else ObjectReference
        null = null_reference(is_region)
        flat = [null if r is None else r for r in flat]
        for r in flat:
            if not isinstance(r, wanted):
                raise TypeError(f"{r!r} is no {wanted.__name__}")
        files = tuple(dict.fromkeys(r.location for r in flat if r.location is not None))
        regions = None
        if is_region:
            regions = table_from_selections([r.selection for r in flat])
        columns = ReferenceColumns(
            files=files,
            file=np.array([files.index(r.location) if r.location else 0 for r in flat], int),
            address=np.array([r.address for r in flat], dtype=np.uint64),
            regions=regions,
        )
        options = common_options(r.options for r in flat if r)
        kind = "region" if is_region else "object"
        return cls(objects.shape, kind=kind, columns=columns, options=options)

    @classmethod
    def nulls(cls, shape: tuple[int, ...], *, is_region: bool) -> ReferenceArray:
        """Return an array of null references."""
        n = math.prod(shape)
        columns = ReferenceColumns(
            files=(),
            file=np.zeros(n, dtype=np.int64),
            address=np.zeros(n, dtype=np.uint64),
            regions=empty_table(n, 0) if is_region else None,
        )
        return cls(shape, kind="region" if is_region else "object", columns=columns)

    # --- what it holds ---------------------------------------------------------

    @property
    def columns(self) -> ReferenceColumns:
        """The references in C order; decoded when first asked for."""
        columns = self._columns.value
        if columns is None:
            with self._columns.lock:
                columns = self._columns.value
                if columns is None:
                    if self._stored is None:
                        raise TypeError("an array of references without columns or a place")
                    columns = self._columns.value = self._stored.read()
        return columns

    @property
    def is_region(self) -> bool:
        """Whether it holds regions; only an array of the kind "std" must be read to tell."""
        if self.kind != "std":
            return self.kind == "region"
        regions = self.columns.regions
        return regions is not None and bool((~np.isin(regions.kind, _NO_REGION)).any())

    @property
    def stored(self) -> StoredReferences | None:
        """Where the elements are stored, if they are a box of one dataset."""
        return self._stored

    @property
    def options(self) -> DecodeOptions:
        """How resolved variables are decoded."""
        return self._options

    def describe(self, row: int) -> str:
        """Name one element in a message; ``row`` counts in C order."""
        if self._stored is not None:
            return self._stored.describe(row)
        columns = self.columns
        file = columns.files[int(columns.file[row])].filename if columns.files else "no file"
        index = tuple(int(i) for i in np.unravel_index(row, self._shape)) if self._shape else ()
        return f"{file}: {KIND_NOUNS[self.kind]} {index[0] if len(index) == 1 else index}"

    def element(self, row: int) -> Reference:
        """Return one element in C order; decodes all of them the first time."""
        columns = self.columns
        address = int(columns.address[row])
        kind = SelectionKind.OBJECT if columns.regions is None else columns.regions.kind[row]
        if address == 0 or kind == SelectionKind.NULL:
            return null_reference(self.kind == "region")
        target = ObjectReference(columns.files[int(columns.file[row])], address, self._options)
        if columns.attribute is not None and columns.attribute[row] >= 0:
            return AttributeReference(target, columns.names[int(columns.attribute[row])])
        if columns.regions is None or kind == SelectionKind.OBJECT:
            return target
        return RegionReference(target, columns.regions.selection(row))

    def __iter__(self) -> Iterator[Any]:
        if not self._shape:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(self._shape[0]))

    # --- duck array ------------------------------------------------------------

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
            raise IndexError("a reference is no index")
        box = self._basic_box(key)
        if box is not None:
            stored, shape = box
            part = ReferenceArray(shape, kind=self.kind, stored=stored, options=self._options)
            if self._columns.value is not None:
                rows = self.row_numbers()[key].reshape(-1)
                part._columns.value = self._columns.value.take(as_slice(rows))
            scalar = not shape and Ellipsis not in key
            return part.element(0) if scalar else part
        rows = self.row_numbers()[key]
        if not isinstance(rows, np.ndarray):
            return self.element(int(rows))
        return ReferenceArray(
            rows.shape,
            kind=self.kind,
            columns=self.columns.take(as_slice(rows.reshape(-1))),
            options=self._options,
        )

    def row_numbers(self) -> npt.NDArray[np.int64]:
        """Return the C-order number of each element, in the shape of the array."""
        return np.arange(self.size).reshape(self._shape)

    def _basic_box(
        self, key: tuple[Any, ...]
    ) -> tuple[StoredReferences, tuple[int, ...]] | None:
        """Apply integers and forward slices to the place of stored elements."""
        stored = self._stored
        basic = all(k is Ellipsis or isinstance(k, int | np.integer | slice) for k in key)
        if stored is None or not basic or self._shape != stored.shape:
            return None
        n_given = sum(k is not Ellipsis for k in key)
        if n_given > self.ndim or sum(k is Ellipsis for k in key) > 1:
            return None  # NumPy words the error
        at = next((i for i, k in enumerate(key) if k is Ellipsis), len(key))
        fill = (slice(None),) * (self.ndim - n_given)
        full = (*key[:at], *fill, *key[at + 1 :])
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
        place = replace(stored, slices=tuple(slices))
        return place, tuple(shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("references are made as objects: copy=False is not possible")
        if dtype is not None and np.dtype(dtype) == np.bool_:
            result: npt.NDArray[Any] = self.astype(bool)
            return result
        if dtype is not None and np.dtype(dtype) != np.dtype(object):
            raise TypeError(f"references are objects and do not convert to {dtype}")
        out = np.empty(self.size, dtype=object)
        for row in range(self.size):
            out[row] = self.element(row)
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
        raise TypeError(f"references do not convert to {dtype}; bool gives the non-null mask")

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
        return ReferenceArray(
            rows.shape,
            kind=self.kind,
            columns=self.columns.take(as_slice(rows.reshape(-1))),
            options=self._options,
        )

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
        return _restore, (self._shape, self.kind, columns, self._stored, self._options)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        if self._stored is not None:
            return "xref.ReferenceArray", repr(self._stored), self._shape, repr(self._options)
        c = self.columns
        regions = c.regions
        names = () if regions is None else tuple(regions.__dataclass_fields__)
        return (
            "xref.ReferenceArray",
            repr(c.files),
            digest(c.file, c.address, c.attribute, *(getattr(regions, n) for n in names)),
            c.names,
            self._shape,
            repr(self._options),
        )

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

    # --- text ------------------------------------------------------------------

    def _repr_inline_(self, max_width: int) -> str:
        """Describe the array on one line, for the repr of a Dataset; reads no references.

        The common target of stored references is not shown, whether they were read or not:
        the text does not depend on that.
        """
        text = _CLASS_NAMES[self.kind]
        columns = self._columns.value if self._stored is None else None
        some = columns is not None and columns.files and len(columns)
        if columns is not None and some and (columns.address == columns.address[0]).all():
            target = ObjectReference(columns.files[0], int(columns.address[0]))
            text += f" {target.target_text()}"
        return f"<{text}>"[:max_width]

    def __repr__(self) -> str:
        head = f"<xref.ReferenceArray {self._shape} of {KIND_NOUNS[self.kind]}s"
        try:
            few = [f"  {self.element_at(i)!r}" for i in range(min(self.size, 3))]
        except (XrefError, OSError) as error:  # a repr must not fail: it says what would
            return f"{head}: {type(error).__name__}: {error}>"
        more = ["  ..."] if self.size > 3 else []
        return "\n".join([head + ">", *few, *more])

    def element_at(self, row: int) -> Any:
        """Return one element in C order, decoding no more than it."""
        index = tuple(int(i) for i in np.unravel_index(row, self._shape)) if self._shape else ()
        return self[index]


_CLASS_NAMES = {"object": "ObjectReference", "region": "RegionReference", "std": "Reference"}

_NO_REGION = (SelectionKind.NULL, SelectionKind.OBJECT)


def _restore(
    shape: tuple[int, ...],
    kind: str,
    columns: ReferenceColumns | None,
    stored: StoredReferences | None,
    options: DecodeOptions,
) -> ReferenceArray:
    return ReferenceArray(shape, kind=kind, columns=columns, stored=stored, options=options)


def _mixed_array(flat: list[Any], shape: tuple[int, ...]) -> ReferenceArray:
    """Make an array of references of all kinds."""
    flat = [null_reference(False) if r is None else r for r in flat]
    for r in flat:
        if not isinstance(r, Reference):
            raise TypeError(f"{r!r} is no reference")
    files = list(dict.fromkeys(r.location for r in flat if r.location is not None))
    names = list(dict.fromkeys(r.name for r in flat if isinstance(r, AttributeReference)))
    selections = [r.selection if isinstance(r, RegionReference) else None for r in flat]
    whole = np.array([bool(r) and not isinstance(r, RegionReference) for r in flat])
    table = table_from_selections(selections)
    numbers = [names.index(r.name) if isinstance(r, AttributeReference) else -1 for r in flat]
    columns = ReferenceColumns(
        files=tuple(files),
        file=np.array([files.index(r.location) if r.location else 0 for r in flat], int),
        address=np.array([r.address for r in flat], dtype=np.uint64),
        regions=table.replace(
            kind=np.where(whole, SelectionKind.OBJECT, table.kind).astype(np.uint8)
        ),
        attribute=np.array(numbers, dtype=np.int64),
        names=tuple(names),
    )
    options = common_options(r.options for r in flat if r)
    return ReferenceArray(shape, kind="std", columns=columns, options=options)


def as_slice(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | slice:
    """Return evenly spaced ascending rows as a slice, so that columns are views."""
    if not len(rows):
        return slice(0, 0)
    step = int(rows[1] - rows[0]) if len(rows) > 1 else 1
    if step > 0 and (np.diff(rows) == step).all():
        return slice(int(rows[0]), int(rows[-1]) + 1, step)
    return rows


def _compare(left: Any, right: Any) -> Any:
    """Compare element by element, by columns where both sides are arrays."""
    if not isinstance(left, ReferenceArray):
        left, right = right, left
    if not isinstance(right, ReferenceArray):
        single = isinstance(right, Reference) or right is None
        objects = np.empty((), dtype=object)
        objects[()] = right
        if not single:
            objects = np.asarray(right, dtype=object)
        if not all(r is None or isinstance(r, Reference) for r in objects.flat):
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
    null = (a.address == 0) & (b.address == 0)
    keys = {f.file_id: i for i, f in enumerate((*a.files, *b.files))}
    numbers = [np.array([keys[f.file_id] for f in x.files] or [0]) for x in (a, b)]
    same = (a.address == b.address) & (numbers[0][a.file] == numbers[1][b.file])
    if a.regions is not None or b.regions is not None:
        same &= a.region_table().same_rows(b.region_table())
    if a.attribute is not None or b.attribute is not None:
        same &= a.attribute_names() == b.attribute_names()
    return (same | null).reshape(shape)
