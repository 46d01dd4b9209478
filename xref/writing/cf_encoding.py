"""Variables of a Dataset in the form in which xarray stores them (CF conventions).

In: a Dataset and the encodings that the user gives. Out: variables of numbers, text,
references, compounds and sequences; each is in memory, or is cut into Dask blocks.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends.common import ensure_dtype_not_object
from xarray.coding.strings import CharacterArrayCoder

from xref.engine import ReferenceVariable, placeholder
from xref.errors import UnsupportedError
from xref.hdf5 import item_dtype
from xref.references import Reference, ReferenceArray
from xref.writing.memory_layout import MemoryType, StringType, choose_memory_type
from xref.writing.storage_options import check_encoding

LAZY_NBYTES = 8 << 20
"""Larger variables are read, or compressed, block by block."""

BLOCK_NBYTES = 16 << 20
"""Upper bound on the bytes of such a block."""


@dataclass(slots=True)
class EncodedDataset:
    """The variables of one group, ready to be written."""

    variables: dict[str, xr.Variable]
    attributes: dict[Any, Any]  # of the group
    sizes: dict[str, int]  # of the dimensions
    unlimited: set[str]  # dimensions that can grow
    # Types of variables whose dtype does not determine them.
    memory_types: dict[str, MemoryType] = field(default_factory=dict)
    # Keys of the encoding that the user gives for each variable.
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
        If an encoding is given for an unknown variable, or has unknown keys or values.
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
    # xarray's encoder only handles names and attributes of these variables.
    stored_as_is = {k for k, variable in prepared.items() if _is_stored_as_is(variable)}
    inputs = {k: placeholder(v) if k in stored_as_is else v for k, v in prepared.items()}
    encoded, attributes = xr.conventions.cf_encoder(inputs, attributes)
    complete = {}
    for name, variable in encoded.items():
        before = prepared[name]
        if name in stored_as_is:
            new = before.copy(deep=False)
            new.attrs = variable.attrs
        else:
            # xarray has dropped the dtype of bytes from the encoding.
            new = _as_stored(variable, name, dataset.sizes, before.encoding.get("dtype"))
        new.encoding = {**before.encoding, **new.encoding}
        complete[str(name)] = new
    unlimited = {str(d) for d in dataset.encoding.get("unlimited_dims", ())}
    sizes = {str(k): n for k, n in dataset.sizes.items()}
    return EncodedDataset(
        variables=complete,
        attributes=dict(attributes),
        sizes=sizes | {str(d): n for v in complete.values() for d, n in v.sizes.items()},
        unlimited=unlimited & set(sizes),
        memory_types=_memory_types(complete),
        given={str(k): frozenset(v) for k, v in encodings.items()},
    )


def encode_stored(name: str, variable: xr.Variable) -> EncodedDataset:
    """Encode a variable without conversions and without dimensions."""
    variables = {name: _prepare(variable, None)}
    return EncodedDataset(variables, {}, {}, set(), _memory_types(variables))


def _prepare(variable: xr.Variable, encoding: Mapping[str, Any] | None) -> xr.Variable:
    """Return a variable in memory or in blocks, with the encoding given, else its own."""
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
        # The values decide the HDF5 type of objects that h5py's metadata does not describe
        # (references, text, sequences), and of text, which may be ASCII.
        needs_values = (
            data.dtype.kind == "O"
            or (data.dtype.hasobject and not _is_fully_typed(data.dtype))
            or _opened_as_ascii(new)
        )
        return new.copy(data=data.compute()) if needs_values else new
    in_memory = isinstance(data, np.ndarray)
    is_large = new.dtype.kind not in "OV" and new.nbytes > LAZY_NBYTES and new.ndim > 0
    # Large arrays in memory become blocks, too, if they are compressed: in parallel.
    is_compressed = bool(new.encoding.get("zlib") or new.encoding.get("compression"))
    if is_large and (is_compressed or not in_memory):
        return new.chunk(dict(zip(new.dims, _block_shape(new), strict=True)))
    return new if in_memory else new.copy(data=new.values)


def _block_shape(variable: xr.Variable) -> tuple[int, ...]:
    """Return the shape of blocks of whole chunks, for a variable that is read lazily."""
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
    """Rechunk a Dask array so that each chunk of the dataset lies within one block.

    Parameters
    ----------
    data : dask.array.Array
    chunks : tuple of int or None
        Chunk shape of the dataset.
    """
    if chunks is None:
        return data
    sides = zip(data.chunks, chunks, data.shape, strict=True)
    if all(all(b % c == 0 for b in blocks[:-1]) for blocks, c, _ in sides):
        return data
    sides = zip(data.chunks, chunks, data.shape, strict=True)
    aligned = tuple(min(max(round(b[0] / c), 1) * c, max(n, 1)) for b, c, n in sides)
    return data.rechunk(aligned)


def _is_stored_as_is(variable: xr.Variable) -> bool:
    """Tell whether no CF convention applies: references, compounds, bytes, sequences.

    Booleans that HDF5 stores as an enumeration count, too; netCDF has no such type.
    """
    if isinstance(variable, ReferenceVariable) or isinstance(variable._data, ReferenceArray):
        return True
    if variable.dtype.kind == "V":
        return True
    if variable.dtype == np.bool_:
        # netCDF marks them by the text "bool"; a dtype is an HDF5 type.
        return isinstance(variable.encoding.get("dtype"), np.dtype)
    if variable.dtype.kind != "O":
        return False
    metadata: Any = variable.dtype.metadata or {}
    if isinstance(metadata.get("vlen"), np.dtype):
        return True
    return any(
        isinstance(v, bytes | list | np.ndarray | Reference) for v in variable.values.flat
    )


def _as_stored(
    variable: xr.Variable, name: Hashable, sizes: Mapping[Hashable, int], dtype: Any
) -> xr.Variable:
    """Convert objects to text or numbers, and bytes to single bytes along a last axis.

    xarray does the same, since netCDF has single bytes only. Bytes of a fixed length stay if
    ``dtype``, from the encoding, has a fixed length, as that of an HDF5 dataset has.
    `UnsupportedError` is raised for objects of several types, or that cannot be stored.
    """
    try:
        variable = ensure_dtype_not_object(variable, name=name)
    except ValueError as error:
        raise UnsupportedError(f"variable {name!r}: {error}") from error
    encoding = dict(variable.encoding)
    char_dim = encoding.pop("char_dim_name", None)
    is_fixed = (
        isinstance(dtype, np.dtype)
        and dtype.kind == "S"
        and (dtype.itemsize > 1 or dtype == variable.dtype)
    )
    if variable.dtype.kind != "S" or (is_fixed and not char_dim):
        return variable
    without_name = variable.copy(deep=False)
    without_name.encoding = encoding
    coder: Any = CharacterArrayCoder()
    chars: xr.Variable = coder.encode(without_name, name)
    n = chars.shape[-1]
    if char_dim is None or char_dim in variable.dims or sizes.get(char_dim, n) != n:
        return chars
    return xr.Variable((*chars.dims[:-1], char_dim), chars.data, chars.attrs, chars.encoding)


def _memory_types(variables: Mapping[str, xr.Variable]) -> dict[str, MemoryType]:
    """Return the types of variables whose encoding holds a dtype with a type of h5py."""
    memory_types: dict[str, MemoryType] = {}
    for name, variable in variables.items():
        dtype = variable.encoding.get("dtype")
        if not isinstance(dtype, np.dtype):
            continue
        if _opened_as_ascii(variable):
            if _is_ascii(variable):
                memory_types[name] = StringType("ascii")
            continue
        if variable.dtype.kind not in "OV":
            # Dask drops the metadata of a dtype, and NumPy scalars drop the byte order, so
            # both are restored from the encoding.
            is_enum = "enum" in (dtype.metadata or {}) and dtype == variable.dtype
            is_swapped = dtype != variable.dtype and dtype.newbyteorder() == variable.dtype
            if is_enum or is_swapped:
                memory_types[name] = choose_memory_type(np.zeros(0, dtype=dtype), name)
            continue
        base = item_dtype(dtype)[0]
        if (base.metadata or base.names) and _is_fully_typed(base):
            memory_types[name] = choose_memory_type(np.zeros(0, dtype=base), name)
    return memory_types


def _opened_as_ascii(variable: xr.Variable) -> bool:
    """Tell whether a variable was ASCII text when it was opened; see `keep_charset`."""
    dtype = variable.encoding.get("dtype")
    if not isinstance(dtype, np.dtype):
        return False
    metadata: Any = dtype.metadata or {}
    return bool(metadata.get("charset") == "ascii")


def _is_ascii(variable: xr.Variable) -> bool:
    """Tell whether text in memory is ASCII; bytes that were not decodable are allowed."""
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
    """Tell whether h5py's metadata describe all objects of a dtype."""
    if dtype.subdtype is not None:
        return _is_fully_typed(dtype.subdtype[0])
    if dtype.names is not None:
        return all(_is_fully_typed(dtype[name]) for name in dtype.names)
    return dtype.kind != "O" or "vlen" in (dtype.metadata or {})
