"""CF decoding of the values of each target, and the common dtype of several targets.

In: the dtype, attributes and fill value of a dataset, and the options with which its file was
opened. Out: a `Decoding`, which applies the CF conventions as xarray does, and `Decoders`,
which map each target of some references to its decoding.

Each target is decoded by its own attributes, under its own name. A common dtype is needed only
where the values of several targets are put into one array.
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
from xref.hdf5 import element_dtype, item_dtype, unfold_subarray
from xref.objects import FILL_ATTRIBUTES, StoredObject
from xref.references import DecodeOptions
from xref.storage import FileLocation

OPTION_DEFAULTS: dict[str, Any] = {
    "mask_and_scale": True,
    "decode_times": True,
    "concat_characters": True,
    "use_cftime": None,
    "decode_timedelta": None,
}
"""xarray's defaults, for variables that are not in a mapping of options by name."""


def option_of(options: DecodeOptions, option: str, name: Hashable | None) -> Any:
    """Return the value of an option for one variable; the option may be a mapping by name."""
    value = getattr(options, option)
    if isinstance(value, Mapping):
        return value.get(name, OPTION_DEFAULTS[option])
    return value


def options_by_name(options: DecodeOptions) -> frozenset[Hashable]:
    """Return the names of the variables in the options that are mappings by name."""
    given = (getattr(options, option) for option in OPTION_DEFAULTS)
    return frozenset().union(*(value for value in given if isinstance(value, Mapping)))


def options_of(options: DecodeOptions, name: Hashable | None) -> DecodeOptions:
    """Return the options of one variable, in which no option is a mapping by name."""
    return replace(options, **{o: option_of(options, o, name) for o in OPTION_DEFAULTS})


def decode_variable(
    variable: xr.Variable, options: DecodeOptions, *, is_text: bool = False
) -> xr.Variable:
    """Apply the CF conventions to one variable; no option may be a mapping by name.

    There are no conventions for compounds and sequences. Text has fill values, but no dates.
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


@dataclass(frozen=True, slots=True, eq=False)
class Decoding:
    """The decoding of the raw values of a dataset; datasets may share it."""

    raw_dtype: np.dtype[Any]  # of one element as read
    dtype: np.dtype[Any]  # of one decoded item
    item_shape: tuple[int, ...]  # axes that an HDF5 array type adds to each element
    attributes: Mapping[str, Any]  # of `CF_ATTRIBUTES`
    used: frozenset[str]  # attributes that decoding removes, such as ``scale_factor``
    encoding: Mapping[str, Any]  # where xarray keeps the removed attributes
    options: DecodeOptions  # no option is a mapping by name
    missing: Any  # the decoded missing value
    key: Hashable  # equal for decodings that differ in ``missing`` only

    @property
    def encodes_text(self) -> bool:
        """Whether text is decoded to bytes."""
        return text_of(self.raw_dtype) and not self.options.decode_vlen_strings

    @property
    def is_text(self) -> bool:
        """Whether values are text of fixed or variable length."""
        return self.raw_dtype.kind == "S" or text_of(self.raw_dtype)

    @property
    def is_plain(self) -> bool:
        """Whether decoded values equal the raw values, apart from the byte order."""
        same = item_dtype(self.raw_dtype)[0].newbyteorder("=") == self.dtype
        return same and not self.used and not self.encodes_text

    @property
    def is_of_times(self) -> bool:
        """Whether values are times: their decoded dtype depends on the values."""
        return "units" in self.used

    @property
    def flat_dtype(self) -> np.dtype[Any]:
        """Dtype of one decoded element with all its items."""
        return with_items(self.dtype, self.item_shape)

    def __call__(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Decode values of any shape, with the items of array types as further axes.

        ValueError if the decoded dtype of dates in ``values`` is not `dtype`.
        """
        if self.is_plain:
            return values.astype(self.dtype, copy=False)  # to the native byte order
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
    """Return the dtype of an element of items of a dtype, of shape ``item_shape``."""
    return element_dtype(np.dtype((dtype, item_shape))) if item_shape else dtype


def make_decoding(
    raw_dtype: np.dtype[Any],
    attributes: Mapping[str, Any],
    options: DecodeOptions,
    fill_value: Any,
    sample: npt.NDArray[Any] | None = None,
) -> Decoding:
    """Return the decoding of one dataset, with elements of ``raw_dtype``.

    ``attributes`` are its attributes among `CF_ATTRIBUTES`. ``options`` are from `options_of`:
    no option is a mapping by name. ``fill_value`` is the raw value of elements that were never
    written. ``sample`` has raw values of dates, on which their decoded dtype depends.
    """
    sample_bytes = None if sample is None else sample.tobytes()
    key = decoding_key(raw_dtype, attributes, fill_value), repr(options), sample_bytes
    return _make(_Arguments(key, (raw_dtype, attributes, options, fill_value, sample)))


@dataclass(frozen=True, slots=True)
class _Arguments:
    """Arguments of a cached function, compared by a key."""

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
        # For ASCII and UTF-8 alike: writers trust the metadata to tell the type of the values.
        metadata: Any = {"vlen": str if options.decode_vlen_strings else bytes}
        dtype = np.dtype(object, metadata=metadata)
    used = frozenset(attributes.keys() - decoded.attrs.keys())
    # Units such as "m" do not affect decoding; units of times do, even if times stay numbers.
    relevant = {k: v for k, v in attributes.items() if k in used or _is_of_times(k, v)}
    dtypes = dtype_token(raw_dtype), dtype_token(dtype), str(decoded.dtype)
    key = (*dtypes, _token(relevant if used else {}), repr(options))
    encoding = dict(decoded.encoding)
    decoding = Decoding(
        raw_dtype, dtype, item_shape, dict(attributes), used, encoding, options, None, key
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
    """Return a value that is equal for datasets for which `make_decoding` gives the same."""
    return dtype_token(raw_dtype), _token(attributes), _token({"": fill_value})


def _token(values: Mapping[str, Any]) -> Hashable:
    """Return a hashable value that is equal for equal values of equal types."""
    tokens = []
    for name in sorted(values):
        value = values[name]
        content: Any = repr(value)
        if isinstance(value, np.ndarray | np.generic):
            # The repr of a long array omits elements.
            data = repr(value.tolist()) if value.dtype.hasobject else value.tobytes()
            content = (str(value.dtype), value.shape, data)
        tokens.append((name, type(value).__name__, content))
    return tuple(tokens)


def _missing(decoding: Decoding, attributes: Mapping[str, Any], fill_value: Any) -> Any:
    """Return the decoded missing value.

    It is NaN or NaT, or an empty sequence or text. For integers and booleans it is the fill
    value in the attributes, else the fill value of the dataset.
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
    # The fill value of an array type is an array with one value for each item.
    stored = np.empty((), dtype=decoding.raw_dtype)
    stored[()] = fill_value
    return decoding(unfold_subarray(stored)[None])[0]


def _fits(value: Any, dtype: np.dtype[Any]) -> bool:
    """Tell whether an integer or boolean dtype can hold a number exactly."""
    if not isinstance(value, int | float | np.number | np.bool_):
        return False
    if dtype.kind == "b":
        return value in (0, 1)
    limits = np.iinfo(dtype)
    return bool(limits.min <= value <= limits.max) and value == int(value)


def missing_of(dtype: np.dtype[Any]) -> Any:
    """Return the missing value of a dtype: NaN, NaT, empty text, zeros; None for objects."""
    if dtype.kind == "O":
        return None
    if dtype.kind in "mM":
        return np.array("NaT", dtype=dtype)[()]
    return np.nan if dtype.kind in "fc" else np.zeros((), dtype=dtype)[()]


def missing_object(decoding: Decoding) -> Any:
    """Return the missing value of a dtype of objects: empty text, empty sequence, or None."""
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
    """The decoding of each target of some references.

    ``kinds`` are the distinct decodings. ``file``, ``address`` and ``which``, shape ``(t,)``,
    are the row of ``files``, the address, and the row of ``kinds`` of each of t targets. They
    are ignored if there is only one decoding.
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

        # Dask hashes the repr of the returned value, without normalizing its items.
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
        file = slice(int(self.begin[row]), int(self.begin[row + 1]))
        rows: IntArray = self.which[file][np.searchsorted(self.address[file], address)]
        return rows

    def of(self, target: StoredObject) -> Decoding:
        """Return the decoding of one target."""
        which = self.which_of(target.location, np.array([target.address], dtype=np.uint64))
        return self.kinds[int(which[0])]

    @cached_property
    def forms(self) -> tuple[tuple[np.dtype[Any], tuple[int, ...]], ...]:
        """The distinct dtypes and item shapes of decoded values."""
        by_token = {
            (dtype_token(k.dtype), k.item_shape): (k.dtype, k.item_shape) for k in self.kinds
        }
        return tuple(by_token.values())

    @cached_property
    def form_of_kinds(self) -> IntArray:
        """The row of `forms` of each decoding, shape ``(kinds,)``."""
        tokens = [(dtype_token(k.dtype), k.item_shape) for k in self.kinds]
        number = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
        return np.array([number[token] for token in tokens], dtype=np.int64)

    @property
    def single(self) -> Decoding | None:
        """The decoding of all targets, if they differ at most in the missing value."""
        keys = {kind.key for kind in self.kinds}
        return self.kinds[0] if len(keys) == 1 else None

    @property
    def are_plain(self) -> bool:
        """Whether no target is decoded."""
        return all(kind.is_plain for kind in self.kinds)


def common_dtype(kinds: Iterable[Decoding], label: str) -> np.dtype[Any]:
    """Return the dtype of elements that holds the decoded values of all targets exactly.

    ValueError if there is no such dtype, as for numbers and text.
    """
    kinds = list(kinds)
    if not kinds:
        return np.dtype(float)
    item_shapes = {kind.item_shape for kind in kinds}
    dtype = None
    if len(item_shapes) == 1:
        dtype = exact_dtype([kind.dtype for kind in kinds])
        if dtype is None and all(kind.is_text for kind in kinds):
            dtype = np.dtype(object)  # text of fixed length, with missing values
    if dtype is None:
        names = dict.fromkeys(str(np.dtype((k.dtype, k.item_shape))) for k in kinds)
        raise ValueError(
            f"{label} points at datasets of types {', '.join(names)}, which no one type holds "
            "exactly; pass dtype= to choose one, use .h5ref.map(), which handles each by "
            "itself, or select references of one target"
        )
    return with_items(dtype, item_shapes.pop())
