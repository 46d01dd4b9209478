"""Raw values of each target into decoded ones, and one type for the values of several.

In: the type, attributes and fill value of a dataset, and the options that it was opened
with. Out: a `Decoding`, which applies the CF conventions as xarray does, and `Decoders`,
which know the decoding of each target of some references.

Each target is decoded by its own attributes, under its own name. Only where values are
put into one array has one type to hold all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import normalize_token

from xref.columns import IntArray
from xref.elements import DecodeOptions
from xref.h5file import FileLocation
from xref.layout import element_dtype, item_dtype

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


def text_of(dtype: np.dtype[Any]) -> bool:
    """Tell whether objects of a type are text of variable length."""
    metadata: Mapping[str, Any] = dtype.metadata or {}
    return metadata.get("vlen") in (str, bytes)


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
            return values
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
    key = (base, str(base.metadata), item_shape, dtype, _token(telling), repr(options))
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
    return raw_dtype, str(raw_dtype.metadata), _token(attributes), _token({"": fill_value})


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
    if dtype.kind == "V" or decoding.item_shape:
        same = decoding.raw_dtype == dtype
        return fill_value if same and fill_value is not None else np.zeros((), dtype=dtype)[()]
    raw = decoding.raw_dtype
    candidates = [attributes.get(name) for name in FILL_ATTRIBUTES]
    for value in [*candidates, fill_value]:
        if np.ndim(value) == 0 and _fits(value, raw):
            return decoding(np.full(1, value, dtype=raw))[0]
    return np.zeros((), dtype=dtype)[()]


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
        return {k: v for k, v in vars(self).items() if k != "_rows"}

    def __dask_tokenize__(self) -> Any:
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

    def of(self, location: FileLocation, address: int) -> Decoding:
        """Return the decoding of one target."""
        which = self.which_of(location, np.array([address], dtype=np.uint64))
        return self.kinds[int(which[0])]

    @cached_property
    def forms(self) -> tuple[tuple[np.dtype[Any], tuple[int, ...]], ...]:
        """The distinct types and item shapes of decoded values."""
        return tuple(dict.fromkeys(self.form_of_kinds))

    @property
    def form_of_kinds(self) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
        """Type and item shape of decoded values, of each kind."""
        return [(k.dtype, k.item_shape) for k in self.kinds]

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
    found = exact_dtype([kind.dtype for kind in kinds]) if len(item_shapes) == 1 else None
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


def exact_dtype(dtypes: Iterable[np.dtype[Any]]) -> np.dtype[Any] | None:
    """Return the type that holds values of all these types exactly; None without one."""
    dtypes = list(dtypes)
    distinct = list(dict.fromkeys(dtypes))
    if len(distinct) == 1:
        return _common_metadata(dtypes)
    kinds = {d.kind for d in distinct}
    if kinds <= set("iufcb"):
        common: np.dtype[Any] = np.result_type(*distinct)
        digits = np.finfo(common).nmant + 1 if common.kind in "fc" else 64
        needed = [8 * d.itemsize - (d.kind == "i") for d in distinct if d.kind in "iu"]
        return common if max(needed, default=0) <= digits else None
    if kinds in ({"S"}, {"U"}, {"M"}, {"m"}):
        return np.result_type(*distinct)
    if kinds == {"S", "O"} and all(d.kind == "S" or text_of(d) for d in dtypes):
        return np.dtype(object)  # text of fixed and of variable length
    if kinds == {"V"}:
        return _exact_compound(distinct)
    return None


def _common_metadata(dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """Return one of equal types; an enumeration or text only where all are that one."""
    first = dtypes[0]
    if all(str(d.metadata) == str(first.metadata) for d in dtypes[1:]):
        return first
    return np.dtype(first.str) if first.kind != "V" else first


def _exact_compound(dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any] | None:
    """Return the compound whose members hold those of the same name exactly."""
    names = dtypes[0].names
    if names is None or any(d.names != names or d.itemsize == 0 for d in dtypes):
        return None
    members: list[Any] = []
    for name in names:
        shapes = {d[name].shape for d in dtypes}
        found = exact_dtype([d[name].base for d in dtypes]) if len(shapes) == 1 else None
        if found is None:
            return None
        members.append((name, found, shapes.pop()))
    return np.dtype(members)


def convert(
    values: npt.NDArray[Any], dtype: np.dtype[Any], describe: Callable[[], str]
) -> npt.NDArray[Any]:
    """Convert values to a type that was chosen to hold them.

    Raises
    ------
    ValueError
        If a date is out of the range that the resolution of the type has.
    """
    if values.dtype == dtype:
        return values
    converted = values.astype(dtype)
    if values.dtype.kind in "mM" and dtype.kind in "mM":
        same = (converted == values) | np.isnat(values)
        if not same.all():
            raise ValueError(
                f"{describe()} has {values[~same][0]!s}, which {dtype} does not hold; "
                "pass dtype=, or open the file with decode_times=False"
            )
    return converted
