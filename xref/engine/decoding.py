"""Raw values of each target into decoded ones, and one type for the values of several.

In: the type, attributes and fill value of a dataset, and the options that it was opened
with. Out: a `Decoding`, which applies the CF conventions as xarray does, and `Decoders`,
which know the decoding of each target of some references.

Each target is decoded by its own attributes, under its own name. Only where values are
put into one array has one type to hold all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref.arrays import IntArray, dtype_token, exact_dtype, text_of
from xref.hdf5 import element_dtype, item_dtype, items
from xref.objects import StoredObject
from xref.references import DecodeOptions
from xref.storage import FileLocation

OPTION_DEFAULTS: dict[str, Any] = {
    "mask_and_scale": True,
    "decode_times": True,
    "concat_characters": True,
    "use_cftime": None,
    "decode_timedelta": None,
}
"""What xarray takes for variables that a mapping of options by name does not list."""

FILL_ATTRIBUTES = ("_FillValue", "missing_value")

CF_ATTRIBUTES = (
    *FILL_ATTRIBUTES,
    "scale_factor",
    "add_offset",
    "units",
    "calendar",
    "_Unsigned",
    "dtype",
)
"""Attributes that say what stored numbers mean."""


def option_of(options: DecodeOptions, option: str, name: Hashable | None) -> Any:
    """Return what an option says of one variable; it may be a mapping by name."""
    value = getattr(options, option)
    if isinstance(value, Mapping):
        return value.get(name, OPTION_DEFAULTS[option])
    return value


def options_by_name(options: DecodeOptions) -> frozenset[Hashable]:
    """Return the names of variables that some option is given for."""
    given = (getattr(options, option) for option in OPTION_DEFAULTS)
    return frozenset().union(*(value for value in given if isinstance(value, Mapping)))


def options_of(options: DecodeOptions, name: Hashable | None) -> DecodeOptions:
    """Return the options of one variable, without mappings by name."""
    return replace(options, **{o: option_of(options, o, name) for o in OPTION_DEFAULTS})


def decode_variable(
    variable: xr.Variable, options: DecodeOptions, *, is_text: bool = False
) -> xr.Variable:
    """Apply the CF conventions to one variable, with options that are not by name.

    Compounds and sequences have no conventions. Text has fill values, but no dates.
    """
    kind = variable.dtype.kind
    if kind == "V" or (kind == "O" and not is_text):
        return variable
    is_number = kind in "biufc"
    return xr.conventions.decode_cf_variable(
        "values",
        variable,
        concat_characters=False,
        mask_and_scale=options.mask_and_scale,
        decode_times=options.decode_times if is_number else False,
        use_cftime=options.use_cftime if is_number else None,
        decode_timedelta=options.decode_timedelta if is_number else False,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoding:
    """How raw values of some targets become decoded ones.

    Attributes
    ----------
    raw_dtype : numpy.dtype
        Of one element as it is read.
    dtype : numpy.dtype
        Of one decoded item.
    item_shape : tuple of int
        Axes that an HDF5 array type adds to each element.
    attributes : dict
        Those of `CF_ATTRIBUTES`.
    used : frozenset of str
        The attributes among them that decoding uses up, such as ``scale_factor``.
    encoding : dict
        What xarray keeps of them.
    options : DecodeOptions
        Without mappings by name.
    missing : object
        The decoded value that stands for a missing one.
    key : hashable
        Equal for decodings that differ in ``missing`` alone.
    """

    raw_dtype: np.dtype[Any]
    dtype: np.dtype[Any]
    item_shape: tuple[int, ...]
    attributes: Mapping[str, Any]
    used: frozenset[str]
    encoding: Mapping[str, Any]
    options: DecodeOptions
    missing: Any
    key: Hashable

    @property
    def encodes_text(self) -> bool:
        """Whether text is given as bytes."""
        return text_of(self.raw_dtype) and not self.options.decode_vlen_strings

    @property
    def is_text(self) -> bool:
        """Whether values are text of fixed or of variable length."""
        return self.raw_dtype.kind == "S" or text_of(self.raw_dtype)

    @property
    def is_plain(self) -> bool:
        """Whether decoded values are the raw ones, apart from their byte order."""
        same = item_dtype(self.raw_dtype)[0].newbyteorder("=") == self.dtype
        return same and not self.used and not self.encodes_text

    @property
    def is_of_times(self) -> bool:
        """Whether the type of decoded values depends on the values, as that of dates does."""
        return "units" in self.used

    @property
    def flat_dtype(self) -> np.dtype[Any]:
        """Type of one decoded element, all its items together."""
        return with_items(self.dtype, self.item_shape)

    def __call__(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Decode values of any shape, the items of array types unfolded.

        Raises
        ------
        ValueError
            If there are dates that the type of the others cannot hold.
        """
        if self.is_plain:
            return values.astype(self.dtype, copy=False)  # of this machine's byte order
        if self.encodes_text:
            values = _encode_texts(values)
        if not self.used:
            return values.astype(self.dtype, copy=False)
        dims = tuple(f"axis_{i}" for i in range(values.ndim))
        variable = xr.Variable(dims, values, dict(self.attributes))
        is_text = text_of(self.raw_dtype)
        decoded = np.asarray(decode_variable(variable, self.options, is_text=is_text).data)
        if decoded.dtype != self.dtype and values.size and self.is_of_times:
            raise ValueError(
                f"times of units {self.attributes.get('units')!r} decode to {decoded.dtype} "
                f"here and to {self.dtype} elsewhere in the dataset; open the file with "
                "use_cftime=True or decode_times=False"
            )
        return decoded.astype(self.dtype, copy=False)


def _encode_texts(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    out = np.empty(values.size, dtype=object)
    texts = values.reshape(-1).tolist()
    out[:] = [t.encode("utf-8", "surrogateescape") if isinstance(t, str) else t for t in texts]
    return out.reshape(values.shape)


def with_items(dtype: np.dtype[Any], item_shape: tuple[int, ...]) -> np.dtype[Any]:
    """Return the type of an element that holds items of a type along some axes."""
    return element_dtype(np.dtype((dtype, item_shape))) if item_shape else dtype


def make_decoding(
    raw_dtype: np.dtype[Any],
    attributes: Mapping[str, Any],
    options: DecodeOptions,
    fill_value: Any,
    sample: npt.NDArray[Any] | None = None,
) -> Decoding:
    """Find out what decoding does to values of one dataset.

    Parameters
    ----------
    raw_dtype : numpy.dtype
        Of its elements.
    attributes : mapping
        Those of `CF_ATTRIBUTES` that the dataset has.
    options : DecodeOptions
        Without mappings by name (`options_of`).
    fill_value : object
        Of the dataset: the raw value of elements that were never written.
    sample : numpy.ndarray, optional
        Some of its values. The type of dates depends on them.
    """
    told = None if sample is None else sample.tobytes()
    key = decoding_key(raw_dtype, attributes, fill_value), repr(options), told
    return _make(_Arguments(key, (raw_dtype, attributes, options, fill_value, sample)))


@dataclass(frozen=True, slots=True)
class _Arguments:
    """Arguments of a function, the same where their keys are."""

    key: Hashable
    values: tuple[Any, ...] = field(compare=False)


@lru_cache(maxsize=1024)
def _make(arguments: _Arguments) -> Decoding:
    raw_dtype, attributes, options, fill_value, sample = arguments.values
    base, item_shape = item_dtype(raw_dtype)
    values = np.zeros(1, dtype=base) if sample is None else sample.reshape(-1)
    if text_of(base):
        values[...] = ""
    variable = xr.Variable(("sample",), values, dict(attributes))
    decoded = decode_variable(variable, options, is_text=text_of(base))
    dtype = decoded.dtype.newbyteorder("=") if base.kind not in "VO" else base
    if decoded.dtype.kind == "O" != base.kind:
        dtype = np.dtype(object)
    if text_of(base):
        # Of either character set: the type says what the values are, which writers trust.
        kept: Any = {"vlen": str if options.decode_vlen_strings else bytes}
        dtype = np.dtype(object, metadata=kept)
    used = attributes.keys() - decoded.attrs.keys()
    # Units of a length are no matter of decoding; those of times are, even of times that
    # stay numbers.
    telling = {k: v for k, v in attributes.items() if k in used or _is_of_times(k, v)}
    telling = telling if used else {}
    key = (
        dtype_token(raw_dtype),
        dtype_token(dtype),
        str(decoded.dtype),
        _token(telling),
        repr(options),
    )
    decoding = Decoding(
        raw_dtype=raw_dtype,
        dtype=dtype,
        item_shape=item_shape,
        attributes=dict(attributes),
        used=frozenset(used),
        encoding=dict(decoded.encoding),
        options=options,
        missing=None,
        key=key,
    )
    return replace(decoding, missing=_missing(decoding, attributes, fill_value))


_TIME_UNITS = frozenset(
    ["days", "hours", "minutes", "seconds", "milliseconds", "microseconds", "nanoseconds"]
)


def _is_of_times(name: str, value: Any) -> bool:
    is_units = name == "units" and isinstance(value, str)
    return is_units and (value in _TIME_UNITS or "since" in value)


def decoding_key(
    raw_dtype: np.dtype[Any], attributes: Mapping[str, Any], fill_value: Any
) -> Hashable:
    """Return what is the same for datasets that `make_decoding` tells the same of."""
    return dtype_token(raw_dtype), _token(attributes), _token({"": fill_value})


def _token(values: Mapping[str, Any]) -> Hashable:
    """Return a hashable value that is equal for equal values of equal types."""
    found = []
    for name in sorted(values):
        value = values[name]
        content: Any = repr(value)
        if isinstance(value, np.ndarray | np.generic):
            # The text of a long array leaves elements out.
            told = repr(value.tolist()) if value.dtype.hasobject else value.tobytes()
            content = (str(value.dtype), value.shape, told)
        found.append((name, type(value).__name__, content))
    return tuple(found)


def _missing(decoding: Decoding, attributes: Mapping[str, Any], fill_value: Any) -> Any:
    """Return what stands for a missing value: one of the kind of the others.

    NaN or NaT; an empty sequence or text; of integers and the like the fill value that
    the attributes name, else that of the dataset.
    """
    dtype = decoding.dtype
    if dtype.kind in "fcmMSUO":
        return missing_object(decoding) if dtype.kind == "O" else missing_of(dtype)
    if dtype.kind == "V":
        return np.zeros((), dtype=dtype)[()] if fill_value is None else fill_value
    raw = item_dtype(decoding.raw_dtype)[0]
    for value in (attributes[name] for name in FILL_ATTRIBUTES if name in attributes):
        if np.ndim(value) == 0 and _fits(value, raw):
            return decoding(np.full(1, value, dtype=raw))[0]
    if fill_value is None:
        return np.zeros((), dtype=dtype)[()]
    # Of an array type the fill value is an array, one value for each item.
    stored = np.empty((), dtype=decoding.raw_dtype)
    stored[()] = fill_value
    return decoding(items(stored)[None])[0]


def _fits(value: Any, dtype: np.dtype[Any]) -> bool:
    """Tell whether a number is one of a type of integers or booleans."""
    if not isinstance(value, int | float | np.number | np.bool_):
        return False
    if dtype.kind == "b":
        return value in (0, 1)
    limits = np.iinfo(dtype)
    return bool(limits.min <= value <= limits.max) and value == int(value)


def missing_of(dtype: np.dtype[Any]) -> Any:
    """Return NaN, NaT, no text, or zeros, as the type has it; None among objects."""
    if dtype.kind == "O":
        return None
    if dtype.kind in "mM":
        return np.array("NaT", dtype=dtype)[()]
    return np.nan if dtype.kind in "fc" else np.zeros((), dtype=dtype)[()]


def missing_object(decoding: Decoding) -> Any:
    """Return an empty text, an empty sequence of the type of the others, or None."""
    metadata: Mapping[str, Any] = decoding.raw_dtype.metadata or {}
    base = metadata.get("vlen")
    if decoding.raw_dtype.kind == "S":
        return b""
    if base is None:
        return None
    if base in (str, bytes):
        return b"" if decoding.encodes_text else ""
    return np.empty(0, dtype=base)


class Decoders:
    """How the values of each target of some references are decoded.

    Parameters
    ----------
    kinds : sequence of Decoding
        Those that there are.
    files : sequence of FileLocation
    file, address, which : numpy.ndarray
        Shape ``(t,)``: row of ``files``, address and row of ``kinds`` of each target.
        Not looked at where all targets are of one kind.
    """

    def __init__(
        self,
        kinds: Sequence[Decoding],
        files: Sequence[FileLocation] = (),
        file: IntArray | None = None,
        address: npt.NDArray[np.uint64] | None = None,
        which: IntArray | None = None,
    ) -> None:
        self.kinds = tuple(kinds)
        self.files: tuple[FileLocation, ...] = ()
        if len(kinds) > 1 and file is not None and address is not None and which is not None:
            order = np.lexsort((address, file))
            self.files = tuple(files)
            self.address, self.which = address[order], which[order]
            self.begin = np.searchsorted(file[order], np.arange(len(files) + 1))

    def __getstate__(self) -> dict[str, Any]:
        cached = ("_rows", "forms", "form_of_kinds")
        return {k: v for k, v in vars(self).items() if k not in cached}

    def __dask_tokenize__(self) -> Any:
        from dask.base import normalize_token

        # What this returns is not looked into again, only printed.
        kinds = [
            normalize_token((k.raw_dtype, dict(k.attributes), k.options, repr(k.missing)))
            for k in self.kinds
        ]
        columns = [getattr(self, name, None) for name in ("address", "which", "begin")]
        return kinds, [None if c is None else c.tobytes() for c in columns]

    @cached_property
    def _rows(self) -> dict[Hashable, int]:
        return {location.token: row for row, location in enumerate(self.files)}

    def which_of(self, location: FileLocation, address: npt.NDArray[np.uint64]) -> IntArray:
        """Return the row of ``kinds`` for each of some targets of one file."""
        if len(self.kinds) < 2:
            return np.zeros(len(address), dtype=np.int64)
        row = self._rows[location.token]
        own = slice(int(self.begin[row]), int(self.begin[row + 1]))
        found: IntArray = self.which[own][np.searchsorted(self.address[own], address)]
        return found

    def of(self, target: StoredObject) -> Decoding:
        """Return the decoding of one target."""
        which = self.which_of(target.location, np.array([target.address], dtype=np.uint64))
        return self.kinds[int(which[0])]

    @cached_property
    def forms(self) -> tuple[tuple[np.dtype[Any], tuple[int, ...]], ...]:
        """The distinct types and item shapes of decoded values."""
        by_token = {
            (dtype_token(k.dtype), k.item_shape): (k.dtype, k.item_shape) for k in self.kinds
        }
        return tuple(by_token.values())

    @cached_property
    def form_of_kinds(self) -> IntArray:
        """The row of `forms` that each kind has, shape ``(kinds,)``."""
        tokens = [(dtype_token(k.dtype), k.item_shape) for k in self.kinds]
        number = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
        return np.array([number[token] for token in tokens], dtype=np.int64)

    @property
    def single(self) -> Decoding | None:
        """The decoding of all targets where it is the same but for missing values."""
        keys = {kind.key for kind in self.kinds}
        return self.kinds[0] if len(keys) == 1 else None

    @property
    def are_plain(self) -> bool:
        """Whether no target is decoded."""
        return all(kind.is_plain for kind in self.kinds)


def common_dtype(kinds: Iterable[Decoding], what: str) -> np.dtype[Any]:
    """Return the type of elements that holds the decoded values of all targets exactly.

    Raises
    ------
    ValueError
        If there is none, such as for numbers and text.
    """
    kinds = list(kinds)
    if not kinds:
        return np.dtype(float)
    item_shapes = {kind.item_shape for kind in kinds}
    found = None
    if len(item_shapes) == 1:
        found = exact_dtype([kind.dtype for kind in kinds])
        if found is None and all(kind.is_text for kind in kinds):
            found = np.dtype(object)  # text of fixed length that has missing ones among it
    if found is None:
        names = dict.fromkeys(str(_described(kind)) for kind in kinds)
        raise ValueError(
            f"{what} points at datasets of types {', '.join(names)}, which no one type holds "
            "exactly; pass dtype= to choose one, use .h5ref.map(), which handles each by "
            "itself, or select references of one target"
        )
    return with_items(found, item_shapes.pop())


def _described(kind: Decoding) -> Any:
    return np.dtype((kind.dtype, kind.item_shape)) if kind.item_shape else kind.dtype
