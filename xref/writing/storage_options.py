"""Chunks and filters of a variable, from its encoding.

In: shape, Dask chunks and encoding of a variable, with the keys of netCDF-4 or h5py. Out:
`Storage`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from h5py import h5z

from xref.objects import CF_ATTRIBUTES
from xref.writing.datasets import Storage
from xref.writing.memory_layout import MemoryType

_FILTER_KEYS = (
    "zlib",
    "complevel",
    "shuffle",
    "fletcher32",
    "compression",
    "compression_opts",
    "hdf5_filters",
)
STORAGE_KEYS = frozenset({"chunksizes", "contiguous", *_FILTER_KEYS})

CF_KEYS = frozenset({*CF_ATTRIBUTES, "coordinates", "grid_mapping"})

LARGEST_CHUNK = 1 << 28
"""Upper bound on the bytes of a chunk shape from another file; HDF5 allows 4 GiB."""

CHUNK_NBYTES = 1 << 20
"""Upper bound on the bytes of a chunk whose shape nobody gives."""

_PLUGINS = {"zstd": 32015, "bzip2": 307, "blosc": 32001, "lz4": 32004}
"""Numbers of registered HDF5 filters."""

_GIVEN_OPTIONS = {
    305: slice(None),
    307: slice(None),
    32001: slice(None, 7),
    32004: slice(None),
    32008: slice(3, None),
    32015: slice(None),
    32026: slice(None, 7),
}
"""Which stored options of a filter a writer gives it, by number; the filter adds the others.

Filters that lose digits (zfp, SZ) are not listed: their stored options have another form.
"""

_LEVEL = 4
"""Compression level of gzip if none is given, as in netCDF-4."""


def check_encoding(encoding: Mapping[str, Any], name: Hashable) -> None:
    """Refuse unknown keys.

    Raises
    ------
    ValueError
        If the encoding has any.
    """
    unknown = sorted(map(str, set(encoding) - STORAGE_KEYS - CF_KEYS))
    if unknown:
        known = sorted(STORAGE_KEYS | CF_KEYS)
        raise ValueError(f"the encoding of {name!r} has {unknown}; known are {known}")


def choose_storage(
    shape: tuple[int, ...],
    memory_type: MemoryType,
    encoding: Mapping[str, Any],
    *,
    given: Iterable[str] = (),
    unlimited: Sequence[bool] = (),
    blocks: tuple[tuple[int, ...], ...] | None = None,
    fill_value: Any = None,
    label: str = "",
) -> Storage:
    """Choose chunks and filters.

    Parameters
    ----------
    shape : tuple of int
    memory_type : MemoryType
        Type of the elements.
    encoding : dict
        Keys that the user gives, and keys of the file from which the variable comes.
    given : iterable of str
        Keys that the user gives. Other keys are ignored if they do not fit.
    unlimited : sequence of bool
        One for each axis.
    blocks : tuple of tuple of int, optional
        Chunks of the Dask array.
    fill_value : scalar, optional
    label : str
        Names the variable in errors.

    Raises
    ------
    ValueError
        If a key that the user gives does not fit.
    """
    given = set(given)
    is_unlimited = tuple(unlimited) or (False,) * len(shape)
    if not shape:
        return Storage(options={}, fill_value=fill_value)
    options = _filters(encoding, given, label)
    if memory_type.itemsize == 1:
        options.pop("shuffle", None)
    chunks = _given_chunks(shape, is_unlimited, encoding, given, memory_type.itemsize, label)
    needs_chunks = bool(options) or any(is_unlimited)
    contiguous = bool(encoding.get("contiguous")) and not needs_chunks
    if "contiguous" in given and encoding["contiguous"] and not contiguous:
        raise ValueError(
            f"{label}: contiguous storage cannot have filters or unlimited dimensions"
        )
    if chunks is None and not contiguous:
        if blocks is not None and max(map(len, blocks), default=1) > 1:
            chunks = tuple(max(*b, 1) for b in blocks)
        elif needs_chunks:
            chunks = tuple(max(n, 1) for n in shape)
        if chunks is not None:
            chunks = shrink(chunks, memory_type.itemsize, CHUNK_NBYTES)
    if chunks is not None and 0 in shape and not any(is_unlimited):
        chunks, options = None, {}  # no elements
    # h5py refuses a chunk shape for an axis without elements, but can choose one.
    is_chosen_by_h5py = any(n == 0 and not u for n, u in zip(shape, is_unlimited, strict=True))
    maxshape = tuple(None if u else n for n, u in zip(shape, is_unlimited, strict=True))
    return Storage(
        chunks=True if chunks is not None and is_chosen_by_h5py else chunks,
        maxshape=maxshape if any(is_unlimited) else None,
        options=options if chunks is not None else {},
        fill_value=fill_value,
    )


def fitting_dataset(
    found: Any, memory_type: MemoryType, shape: tuple[int, ...], label: str
) -> h5py.Dataset:
    """Return an existing dataset, if values of a type and shape can be written to it.

    Raises
    ------
    ValueError
        If they cannot, or the elements of the dataset are in other files.
    """
    if not isinstance(found, h5py.Dataset):
        raise ValueError(
            f"{label} is a group in the file, so a variable cannot be written there"
        )
    if found.external:
        raise ValueError(
            f"{label} has its elements in other files, which to_hdf5 does not write"
        )
    sizes = zip(shape, found.shape or (), found.maxshape or (), strict=False)
    fits = len(shape) == found.ndim and all(
        new == old or (new > old and limit is None) for new, old, limit in sizes
    )
    if not fits or not found.id.get_type().equal(memory_type.type_id()):
        raise ValueError(
            f"{label} is there already, with shape {found.shape} and type {found.dtype}; the "
            f"new values have the shape {shape}, or another type. Choose another name, or "
            "delete the old dataset (references to it will then dangle)"
        )
    return found


def check_stored(
    dataset: h5py.Dataset,
    memory_type: MemoryType,
    encoding: Mapping[str, Any],
    given: Iterable[str],
    label: str,
) -> None:
    """Refuse an encoding that differs from the storage of an existing dataset.

    Only the keys that the user gives are compared (see `choose_storage`).

    Raises
    ------
    ValueError
        If it differs: HDF5 cannot change the storage of a dataset.
    """
    given = set(given) & STORAGE_KEYS
    if not given:
        return
    new = _filters(encoding, given, label)
    compression, level = _compression(dataset)
    pairs: dict[str, tuple[Any, Any]] = {}
    if given & {"zlib", "compression"}:
        pairs["compression"] = (new.get("compression"), compression)
    if given & {"complevel", "compression_opts"} and "compression" in new:
        pairs["compression_opts"] = (new.get("compression_opts"), level)
    for key in ("shuffle", "fletcher32"):
        if key in given and not (key == "shuffle" and memory_type.itemsize == 1):
            pairs[key] = (bool(encoding[key]), getattr(dataset, key))
    if encoding.get("chunksizes") is not None and "chunksizes" in given:
        pairs["chunksizes"] = (tuple(map(int, encoding["chunksizes"])), dataset.chunks)
    if "contiguous" in given:
        pairs["contiguous"] = (bool(encoding["contiguous"]), dataset.chunks is None)
    for key, (wanted, stored) in pairs.items():
        if wanted != stored:
            raise ValueError(
                f"{label} is there already, with {key}={stored!r}, which cannot be made "
                f"{wanted!r}; leave it out of its encoding, or choose another name"
            )


def _compression(dataset: h5py.Dataset) -> tuple[Any, Any]:
    """Return the compression filter of a dataset and its options, as `_filters` does."""
    if dataset.compression is not None:
        return dataset.compression, dataset.compression_opts
    properties = dataset.id.get_create_plist()
    for k in range(properties.get_nfilters()):
        number, _, values, _ = properties.get_filter(k)
        if number not in (h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32):
            return number, tuple(values)
    return None, None


def shrink(chunks: tuple[int, ...], itemsize: int, nbytes: int) -> tuple[int, ...]:
    """Halve the longest axis, or the first of several, until a chunk is small enough.

    Examples
    --------
    >>> shrink((1000, 30), 8, 100_000)
    (250, 30)
    """
    sides = list(chunks)
    while math.prod(sides) * itemsize > nbytes and max(sides) > 1:
        axis = sides.index(max(sides))
        sides[axis] = -(-sides[axis] // 2)
    return tuple(sides)


def _given_chunks(
    shape: tuple[int, ...],
    unlimited: tuple[bool, ...],
    encoding: Mapping[str, Any],
    given: set[str],
    itemsize: int,
    label: str,
) -> tuple[int, ...] | None:
    """Return the chunk shape of an encoding; None if it has none, or it does not fit."""
    sizes = encoding.get("chunksizes")
    if sizes is None:
        return None
    sizes = tuple(int(n) for n in sizes)
    fits = len(sizes) == len(shape) and all(
        c >= 1 and (c <= max(n, 1) or u)
        for c, n, u in zip(sizes, shape, unlimited, strict=False)
    )
    if fits and "chunksizes" not in given and math.prod(sizes) * itemsize > LARGEST_CHUNK:
        return None  # the dataset of the other file may be empty
    if fits:
        return sizes
    if "chunksizes" in given:
        raise ValueError(f"{label}: chunks of shape {sizes} do not fit into the shape {shape}")
    return None


def _filters(encoding: Mapping[str, Any], given: set[str], label: str) -> dict[str, Any]:
    """Return filters as keywords of `h5py.Group.create_dataset`."""
    options: dict[str, Any] = {}
    name, level = encoding.get("compression"), encoding.get("complevel")
    level = encoding.get("compression_opts", level)
    if name is None and encoding.get("zlib"):
        name = "gzip"
    if isinstance(name, int) and 0 <= name <= 9:  # h5py: compression=4 means gzip, level 4
        name, level = "gzip", name
    if name in ("zlib", "gzip"):
        level = _LEVEL if level is None else level
        options |= {"compression": "gzip", "compression_opts": level}
    elif name == "lzf":
        options["compression"] = "lzf"
    elif name is not None:
        options |= _other_filter(name, level, "compression" in given, label)
    elif encoding.get("hdf5_filters"):
        options |= _listed_filter(encoding["hdf5_filters"], "hdf5_filters" in given, label)
    if encoding.get("shuffle") and (options or "shuffle" in given):
        options["shuffle"] = True
    if encoding.get("fletcher32"):
        options["fletcher32"] = True
    return options


def _listed_filter(
    filters: Iterable[Mapping[str, Any]], is_required: bool, label: str
) -> dict[str, Any]:
    """Return the compressor of a pipeline that an encoding lists (``hdf5_filters``)."""
    plain = (h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32)
    compressors = [f for f in filters if f["id"] not in plain]
    if not compressors:
        return {}
    number, names = int(compressors[0]["id"]), " over ".join(f["name"] for f in compressors)
    if len(compressors) > 1 or number not in _GIVEN_OPTIONS:
        return _gzip_instead(names, is_required, label)
    level = tuple(compressors[0]["options"])[_GIVEN_OPTIONS[number]]
    return _other_filter(number, level or None, is_required, label, names)


def _other_filter(
    name: Any, level: Any, is_required: bool, label: str, shown: str = ""
) -> dict[str, Any]:
    """Return a filter that HDF5 may lack here; gzip if it lacks it and none is required."""
    number = _PLUGINS.get(str(name).split("_")[0], name)
    filter_id = {"szip": h5z.FILTER_SZIP}.get(number, number)
    is_available = False
    if isinstance(filter_id, int | np.integer):
        flags = h5z.get_filter_info(filter_id) if h5z.filter_avail(filter_id) else 0
        is_available = bool(flags & h5z.FILTER_CONFIG_ENCODE_ENABLED)
    if is_available:
        options: dict[str, Any] = {"compression": number}
        if level is not None:
            options["compression_opts"] = (level,) if np.isscalar(level) else tuple(level)
        return options
    return _gzip_instead(shown or name, is_required, label)


def _gzip_instead(name: Any, is_required: bool, label: str) -> dict[str, Any]:
    """Return gzip in place of a filter that cannot be written; refuse a required filter."""
    if is_required:
        raise ValueError(
            f"{label}: HDF5 has no filter {name!r} here, or to_hdf5 does not know its options; "
            "for more filters pip install 'xref[codecs]' and import hdf5plugin"
        )
    warnings.warn(
        f"{label} was compressed with the filter {name!r}, which HDF5 does not have here, or "
        "whose options to_hdf5 does not know; it is written with gzip",
        UserWarning,
        stacklevel=2,
    )
    return {"compression": "gzip", "compression_opts": _LEVEL}
