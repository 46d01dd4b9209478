"""How a variable is stored: chunks and filters from its encoding.

In: shape, dask chunks and the encoding of a variable, in the words of netCDF-4 or h5py.
Out: `Storage`.
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

STORAGE_KEYS = frozenset(
    {
        "chunksizes",
        "contiguous",
        "zlib",
        "complevel",
        "shuffle",
        "fletcher32",
        "compression",
        "compression_opts",
    }
)

CF_KEYS = frozenset({*CF_ATTRIBUTES, "coordinates", "grid_mapping"})

LARGEST_CHUNK = 1 << 28
"""Bytes of a chunk that is taken over from another file; HDF5 allows 4 GiB."""

CHUNK_NBYTES = 1 << 20
"""Bytes of a chunk where nobody says how large it should be."""

_PLUGINS = {"zstd": 32015, "bzip2": 307, "blosc": 32001, "lz4": 32004}

_LEVEL = 4


def check_encoding(encoding: Mapping[str, Any], name: Hashable) -> None:
    """Refuse words that mean nothing here.

    Raises
    ------
    ValueError
        If there are any.
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
        Of the elements.
    encoding : dict
        What the user says, over what the file says that the variable comes from.
    given : iterable of str
        Keys that the user says; the others give way where they do not fit.
    unlimited : sequence of bool
        By axis.
    blocks : tuple of tuple of int, optional
        Dask's chunks.
    fill_value : scalar, optional
    label : str
        Names the variable in messages.

    Raises
    ------
    ValueError
        If the user wants what cannot be.
    """
    given = set(given)
    limitless = tuple(unlimited) or (False,) * len(shape)
    if not shape:
        return Storage(options={}, fill_value=fill_value)
    options = _filters(encoding, given, label)
    if memory_type.itemsize == 1:
        options.pop("shuffle", None)
    chunks = _given_chunks(shape, limitless, encoding, given, memory_type.itemsize, label)
    contiguous = bool(encoding.get("contiguous")) and not (options or any(limitless))
    if "contiguous" in given and encoding["contiguous"] and not contiguous:
        raise ValueError(f"{label}: contiguous storage has no filters and no unlimited axes")
    if chunks is None and not contiguous and (options or any(limitless) or blocks is not None):
        if blocks is not None and max(map(len, blocks), default=1) > 1:
            chunks = tuple(max(*b, 1) for b in blocks)
        elif options or any(limitless):
            chunks = tuple(max(n, 1) for n in shape)
        if chunks is not None:
            chunks = shrink(chunks, memory_type.itemsize, CHUNK_NBYTES)
    if chunks is None and (options or any(limitless)):
        chunks = shrink(tuple(max(n, 1) for n in shape), memory_type.itemsize, CHUNK_NBYTES)
    if chunks is not None and 0 in shape and not any(limitless):
        chunks, options = None, {}  # nothing to store
    guessed = any(n == 0 and not u for n, u in zip(shape, limitless, strict=True))
    maxshape = None
    if any(limitless):
        maxshape = tuple(None if u else n for n, u in zip(shape, limitless, strict=True))
    return Storage(
        # h5py takes no chunk that is longer than an axis of no elements, but makes one.
        chunks=True if chunks is not None and guessed else chunks,
        maxshape=maxshape,
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
    """Refuse an encoding that a dataset does not have, which cannot be changed any more.

    Parameters
    ----------
    dataset : h5py.Dataset
        In the file.
    memory_type : MemoryType
        Of its elements.
    encoding : dict
    given : iterable of str
        Keys that the user says.
    label : str
        Names the variable in messages.

    Raises
    ------
    ValueError
        If it has another one.
    """
    given = set(given) & STORAGE_KEYS
    if not given:
        return
    wanted = _filters(encoding, given, label)
    if memory_type.itemsize == 1:
        wanted.pop("shuffle", None)
    has: dict[str, tuple[Any, Any]] = {}
    if given & {"zlib", "compression"}:
        has["compression"] = (wanted.get("compression"), _compression(dataset))
    if given & {"complevel", "compression_opts"} and "compression" in wanted:
        has["compression_opts"] = (wanted.get("compression_opts"), _level_of(dataset))
    for key in ("shuffle", "fletcher32"):
        if key in given and not (key == "shuffle" and memory_type.itemsize == 1):
            has[key] = (bool(encoding[key]), getattr(dataset, key))
    if encoding.get("chunksizes") is not None and "chunksizes" in given:
        has["chunksizes"] = (tuple(map(int, encoding["chunksizes"])), dataset.chunks)
    if "contiguous" in given:
        has["contiguous"] = (bool(encoding["contiguous"]), dataset.chunks is None)
    for key, (new, old) in has.items():
        if new != old:
            raise ValueError(
                f"{label} is there already, with {key}={old!r}, which cannot be made {new!r}; "
                "leave it out of its encoding, or write under another name"
            )


def _compression(dataset: h5py.Dataset) -> Any:
    """Return the filter of a dataset that compresses, as `_filters` names it."""
    if dataset.compression is not None:
        return dataset.compression
    properties = dataset.id.get_create_plist()
    known = {h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}
    numbers = [properties.get_filter(k)[0] for k in range(properties.get_nfilters())]
    return next((number for number in numbers if number not in known), None)


def _level_of(dataset: h5py.Dataset) -> Any:
    if dataset.compression is not None:
        return dataset.compression_opts
    properties, wanted = dataset.id.get_create_plist(), _compression(dataset)
    values = [
        values
        for number, _, values, _ in map(properties.get_filter, range(properties.get_nfilters()))
        if number == wanted
    ]
    return tuple(values[0]) if values else None


def shrink(chunks: tuple[int, ...], itemsize: int, nbytes: int) -> tuple[int, ...]:
    """Halve the longest axis until a chunk is small enough; of three equal ones the first.

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
    """Return the chunk shape of an encoding; None where there is none, or it does not fit."""
    sizes = encoding.get("chunksizes")
    if sizes is None:
        return None
    sizes = tuple(int(n) for n in sizes)
    fits = len(sizes) == len(shape) and all(
        c >= 1 and (c <= max(n, 1) or u)
        for c, n, u in zip(sizes, shape, unlimited, strict=False)
    )
    if fits and "chunksizes" not in given and math.prod(sizes) * itemsize > LARGEST_CHUNK:
        return None  # a file may say so and have nothing in them
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
    if isinstance(name, int) and 0 <= name <= 9:  # h5py's short memory_type
        name, level = "gzip", name
    if name in ("zlib", "gzip"):
        options |= {
            "compression": "gzip",
            "compression_opts": _LEVEL if level is None else level,
        }
    elif name == "lzf":
        options["compression"] = "lzf"
    elif name is not None:
        options |= _other_filter(name, level, "compression" in given, label)
    if encoding.get("shuffle") and (options or "shuffle" in given):
        options["shuffle"] = True
    if encoding.get("fletcher32"):
        options["fletcher32"] = True
    return options


def _other_filter(name: Any, level: Any, wanted: bool, label: str) -> dict[str, Any]:
    """Return a filter that HDF5 may not have here; gzip where nobody insists."""
    number = _PLUGINS.get(str(name).split("_")[0], name)
    known = {"szip": h5z.FILTER_SZIP}.get(number, number)
    available = False
    if isinstance(known, int | np.integer):
        flags = h5z.get_filter_info(known) if h5z.filter_avail(known) else 0
        available = bool(flags & h5z.FILTER_CONFIG_ENCODE_ENABLED)
    if available:
        found: dict[str, Any] = {"compression": number}
        if level is not None:
            found["compression_opts"] = (level,) if np.isscalar(level) else tuple(level)
        return found
    if wanted:
        raise ValueError(
            f"{label}: HDF5 has no filter {name!r} here; pip install 'xref[codecs]' and import "
            "hdf5plugin brings more"
        )
    warnings.warn(
        f"{label} was compressed with {name!r}, which HDF5 has not here; it is written with "
        "gzip",
        UserWarning,
        stacklevel=2,
    )
    return {"compression": "gzip", "compression_opts": _LEVEL}
