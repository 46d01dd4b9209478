"""Variables of a Dataset as they are stored: by the CF conventions, as xarray writes them.

In: a Dataset and what the user says of its variables. Out: variables of plain numbers and
text, references, compounds and sequences, each in memory or cut into dask's blocks.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends.common import ensure_dtype_not_object
from xarray.coding.strings import CharacterArrayCoder

from xref.engine import ReferenceVariable
from xref.errors import UnsupportedError
from xref.hdf5 import item_dtype
from xref.references import Reference, ReferenceArray
from xref.writing.memory_layout import MemoryType, StringType, choose_memory_type
from xref.writing.storage_options import check_encoding

LAZY_NBYTES = 8 << 20
"""Variables of more bytes are not read, or compressed, at once."""

BLOCK_NBYTES = 16 << 20
"""Bytes of their blocks, at most."""


@dataclass(slots=True)
class EncodedDataset:
    """The variables of one group, ready to be written.

    Attributes
    ----------
    variables : dict of str to xarray.Variable
    attributes : dict
        Of the group.
    sizes : dict of str to int
        Dimensions.
    unlimited : set of str
    memory_types : dict of str to MemoryType
        Of variables whose dtype alone does not tell.
    given : dict of str to frozenset
        What the user says of which variable.
    """

    variables: dict[str, xr.Variable]
    attributes: dict[Any, Any]
    sizes: dict[str, int]
    unlimited: set[str]
    memory_types: dict[str, MemoryType] = field(default_factory=dict)
    given: dict[str, frozenset[str]] = field(default_factory=dict)

    def is_scale(self, name: str) -> bool:
        """Tell whether a variable is the coordinate of its dimension."""
        variable = self.variables.get(name)
        return variable is not None and variable.dims == (name,)


def encode_dataset(
    dataset: xr.Dataset, encodings: Mapping[Hashable, Mapping[str, Any]]
) -> EncodedDataset:
    """Encode the variables of a Dataset.

    Raises
    ------
    ValueError
        If the encoding of a variable says what cannot be, or of one that is not there.
    """
    for name, encoding in encodings.items():
        if name not in dataset.variables:
            raise ValueError(
                f"an encoding is given for {name!r}; there are {list(dataset.variables)}"
            )
        check_encoding(encoding, name)
    variables, attributes = xr.conventions.encode_dataset_coordinates(dataset)
    prepared = {
        name: _prepare(variable, encodings.get(name)) for name, variable in variables.items()
    }
    apart = {name for name, variable in prepared.items() if _is_stored_as_is(variable)}
    ordinary = {k: _placeholder(v) if k in apart else v for k, v in prepared.items()}
    encoded, attributes = xr.conventions.cf_encoder(ordinary, attributes)
    sizes = dataset.sizes
    encoded = {
        # xarray has dropped the dtype of bytes from the encoding.
        k: v if k in apart else _as_stored(v, k, sizes, prepared[k].encoding.get("dtype"))
        for k, v in encoded.items()
    }
    found = {}
    for name, variable in encoded.items():
        kept = prepared[name]
        if name in apart:
            new = kept.copy(deep=False)
            new.attrs = variable.attrs
        else:
            new = variable
        new.encoding = {**kept.encoding, **new.encoding}
        found[str(name)] = new
    unlimited = {str(d) for d in dataset.encoding.get("unlimited_dims", ())}
    return EncodedDataset(
        variables=found,
        attributes=dict(attributes),
        sizes={str(k): v for k, v in dataset.sizes.items()}
        | {str(d): n for v in found.values() for d, n in v.sizes.items()},
        unlimited=unlimited & set(map(str, dataset.sizes)),
        memory_types=_memory_types(found),
        given={str(k): frozenset(v) for k, v in encodings.items()},
    )


def encode_stored(name: str, variable: xr.Variable) -> EncodedDataset:
    """Encode a variable whose values are as they are stored, along no dimensions."""
    prepared: dict[Hashable, xr.Variable] = {name: _prepare(variable, None)}
    return EncodedDataset(
        variables={name: prepared[name]},
        attributes={},
        sizes={},
        unlimited=set(),
        memory_types=_memory_types({name: prepared[name]}),
    )


def _prepare(variable: xr.Variable, encoding: Mapping[str, Any] | None) -> xr.Variable:
    """Return a variable in memory or in blocks, with the encoding that counts."""
    source = variable.encoding.get("source")
    new = variable.copy(deep=False)
    if encoding is not None:
        new.encoding = dict(encoding)
        if "dtype" in encoding:
            new.encoding["dtype"] = np.dtype(encoding["dtype"])
        if source is not None:
            new.encoding["source"] = source
    data: Any = new._data
    if isinstance(data, ReferenceArray):
        return new
    if hasattr(data, "dask"):
        # Objects without a type of h5py must be seen: references, text or sequences. So
        # must text that is ASCII only if all of it is.
        is_seen = (
            data.dtype.kind == "O"
            or (data.dtype.hasobject and not _is_fully_typed(data.dtype))
            or _opened_as_ascii(new)
        )
        return new.copy(data=data.compute()) if is_seen else new
    in_memory = isinstance(data, np.ndarray)
    is_large = new.dtype.kind not in "OV" and new.nbytes > LAZY_NBYTES and new.ndim > 0
    # What is in memory is compressed in parallel, too.
    if is_large and (not in_memory or _is_compressed(new.encoding)):
        return new.chunk(dict(zip(new.dims, _block_shape(new), strict=True)))
    return new if in_memory else new.copy(data=new.values)


def _is_compressed(encoding: Mapping[str, Any]) -> bool:
    return bool(encoding.get("zlib") or encoding.get("compression"))


def _block_shape(variable: xr.Variable) -> tuple[int, ...]:
    """Return blocks of whole chunks of a variable that is read lazily."""
    sizes = variable.encoding.get("chunksizes")
    if sizes is None or len(sizes) != variable.ndim:
        sizes = (1,) * variable.ndim
    sides = [min(max(int(c), 1), max(n, 1)) for c, n in zip(sizes, variable.shape, strict=True)]
    for axis in reversed(range(variable.ndim)):
        while (
            sides[axis] < variable.shape[axis]
            and 2 * int(np.prod(sides)) * variable.dtype.itemsize <= BLOCK_NBYTES
        ):
            sides[axis] = min(2 * sides[axis], variable.shape[axis])
    return tuple(sides)


def align_blocks(data: Any, chunks: tuple[int, ...] | None) -> Any:
    """Cut a dask array so that no chunk of a dataset is written in parts.

    Parameters
    ----------
    data : dask.array.Array
    chunks : tuple of int or None
        Of the dataset.
    """
    if chunks is None:
        return data
    sides = zip(data.chunks, chunks, data.shape, strict=True)
    if all(all(b % c == 0 for b in blocks[:-1]) for blocks, c, _ in sides):
        return data
    sides = zip(data.chunks, chunks, data.shape, strict=True)
    wanted = tuple(min(max(round(b[0] / c), 1) * c, max(n, 1)) for b, c, n in sides)
    return data.rechunk(wanted)


def _is_stored_as_is(variable: xr.Variable) -> bool:
    """Tell whether values are stored as they are: references, compounds, bytes, sequences.

    So are truth values that were HDF5's own, which netCDF has not.
    """
    if isinstance(variable, ReferenceVariable) or isinstance(variable._data, ReferenceArray):
        return True
    if variable.dtype.kind == "V":
        return True
    if variable.dtype == np.bool_:
        # Of netCDF it is the text "bool", of HDF5 a type.
        return isinstance(variable.encoding.get("dtype"), np.dtype)
    if variable.dtype.kind != "O":
        return False
    kept: Any = variable.dtype.metadata or {}
    if isinstance(kept.get("vlen"), np.dtype):
        return True
    return any(
        isinstance(v, bytes | list | np.ndarray | Reference) for v in variable.values.flat
    )


def _as_stored(
    variable: xr.Variable, name: Hashable, sizes: Mapping[Hashable, int], wanted: Any
) -> xr.Variable:
    """Make text or numbers of objects, and single bytes along a last axis of bytes.

    So does xarray: netCDF has single bytes only. Bytes of a fixed length stay what they are
    if their encoding has such a dtype, as that of a dataset of HDF5 has.

    Raises
    ------
    UnsupportedError
        If objects are of several types, or of none that is stored.
    """
    try:
        variable = ensure_dtype_not_object(variable, name=name)
    except ValueError as error:
        raise UnsupportedError(f"variable {name!r}: {error}") from error
    dtype, encoding = variable.dtype, dict(variable.encoding)
    last = encoding.pop("char_dim_name", None)
    is_fixed = (
        isinstance(wanted, np.dtype)
        and wanted.kind == "S"
        and (wanted.itemsize > 1 or wanted == dtype)
    )
    if dtype.kind != "S" or (is_fixed and not last):
        return variable
    plain = variable.copy(deep=False)
    plain.encoding = encoding
    coder: Any = CharacterArrayCoder()
    found: xr.Variable = coder.encode(plain, name)
    n = found.shape[-1]
    if last is None or last in variable.dims or sizes.get(last, n) != n:
        return found
    return xr.Variable((*found.dims[:-1], last), found.data, found.attrs, found.encoding)


def _placeholder(variable: xr.Variable) -> xr.Variable:
    """Return a variable of numbers, for what xarray does with names and attributes."""
    numbers = np.broadcast_to(np.int8(0), variable.shape)
    return xr.Variable(variable.dims, numbers, dict(variable.attrs))


def _memory_types(variables: Mapping[str, xr.Variable]) -> dict[str, MemoryType]:
    """Return the memory_type of variables that a type of h5py in the encoding tells."""
    found: dict[str, MemoryType] = {}
    for name, variable in variables.items():
        wanted = variable.encoding.get("dtype")
        if not isinstance(wanted, np.dtype):
            continue
        if _opened_as_ascii(variable):
            if _is_ascii(variable):
                found[name] = StringType("ascii")
            continue
        if variable.dtype.kind not in "OV":
            # Dask keeps no metadata, scalars no byte order.
            is_enum = "enum" in (wanted.metadata or {}) and wanted == variable.dtype
            is_swapped = wanted != variable.dtype and wanted.newbyteorder() == variable.dtype
            if is_enum or is_swapped:
                found[name] = choose_memory_type(np.zeros(0, dtype=wanted), name)
            continue
        base = item_dtype(wanted)[0]
        if base.metadata or base.names:
            values = np.zeros(0, dtype=base)
            if _is_fully_typed(base):
                found[name] = choose_memory_type(values, name)
    return found


def _opened_as_ascii(variable: xr.Variable) -> bool:
    """Tell whether a variable was ASCII text when it was opened; see `keep_charset`."""
    dtype = variable.encoding.get("dtype")
    if not isinstance(dtype, np.dtype):
        return False
    kept: Any = dtype.metadata or {}
    return bool(kept.get("charset") == "ascii")


def _is_ascii(variable: xr.Variable) -> bool:
    """Tell whether text in memory is ASCII, besides bytes that are of no character set."""
    values = variable._data
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "OU":
        return False
    texts = values.ravel().tolist()
    if not all(isinstance(text, str) for text in texts):
        return False
    try:
        "".join(texts).encode("ascii", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def attribute_array(value: Any, label: str) -> Any:
    """Return the value of an attribute as an array."""
    if isinstance(value, ReferenceArray):
        return value
    if isinstance(value, Reference):
        return ReferenceArray.from_references(value)
    if isinstance(value, str | bytes):
        return np.array(value, dtype=object)
    has_none = isinstance(value, list | tuple) and any(v is None for v in value)
    if value is None or has_none or isinstance(value, Mapping):
        raise TypeError(f"{label} is {value!r}: HDF5 has no type for it")
    if isinstance(value, list | tuple) and any(
        isinstance(v, str | bytes | Reference | np.ndarray) for v in value
    ):
        array = np.empty(len(value), dtype=object)
        array[:] = list(value)
        return array
    return np.asarray(value)


def _is_fully_typed(dtype: np.dtype[Any]) -> bool:
    """Tell whether a dtype says all of its objects."""
    if dtype.subdtype is not None:
        return _is_fully_typed(dtype.subdtype[0])
    if dtype.names is not None:
        return all(_is_fully_typed(dtype[name]) for name in dtype.names)
    return dtype.kind != "O" or "vlen" in (dtype.metadata or {})
