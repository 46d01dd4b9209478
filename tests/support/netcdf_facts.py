"""What users see of a netCDF-4 file through an engine of xarray, as comparable facts.

In: a file, an engine and the options of opening. Out: a mapping of keys to names, dimensions,
sizes, types, values, attributes and encodings. `differences` compares those of engines.
`OtherProcess` opens files in another process, because netCDF4 crashes at some valid files.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

ENGINES: dict[str, dict[str, Any]] = {
    "netcdf4": {},
    "h5netcdf": {"phony_dims": "sort"},  # numbered as netCDF4 does
    "h5ref": {"phony_dims": "sort"},
}

Key = tuple[Hashable, ...]
Facts = dict[Key, Any]


@dataclass(frozen=True)
class Failed:
    """An error in place of a fact."""

    error: str


# --- facts -------------------------------------------------------------------------


def facts_of_dataset(ds: xr.Dataset) -> Facts:
    """Return what users see of a Dataset."""
    facts: Facts = {
        ("variables",): list(ds.variables),
        ("coords",): sorted(ds.coords, key=str),
        ("indexes",): sorted(ds.xindexes, key=str),
        ("sizes",): dict(sorted(ds.sizes.items())),
        ("unlimited_dims",): sorted(ds.encoding.get("unlimited_dims", ())),
        ("attrs",): list(ds.attrs),
    }
    facts |= {(f"attribute {k}",): v for k, v in ds.attrs.items()}
    for name, variable in ds.variables.items():
        facts |= {(*k[:1], name, *k[1:]): v for k, v in facts_of_variable(variable).items()}
    return facts


def facts_of_variable(variable: xr.Variable) -> Facts:
    """Return what users see of a variable."""
    encoding = dict(variable.encoding)
    encoding |= {k: str(encoding[k]) for k in {"source"} & set(encoding)}
    facts: Facts = {
        ("dims",): variable.dims,
        ("shape",): variable.shape,
        ("dtype",): str(variable.dtype.base) if variable.dtype.names is None else "compound",
        ("chunks",): variable.chunks,
        ("attrs of",): list(variable.attrs),
    }
    facts |= {("attrs of", k): v for k, v in variable.attrs.items()}
    facts |= {("encoding of", k): v for k, v in encoding.items()}
    try:
        values = variable.values
        # h5netcdf does not fill up text that is shorter than its dimension.
        same_shape = np.shape(values) == variable.shape
        facts["values",] = values if same_shape else Failed(f"of shape {np.shape(values)}")
    except Exception as error:  # noqa: BLE001, any error of any engine
        facts["values",] = Failed(repr(error))
    return facts


def facts_of(path: Path, engine: str, how: str, options: Mapping[str, Any]) -> Facts:
    """Open a file and return the facts of all its groups."""
    options = ENGINES[engine] | dict(options)
    facts: Facts = {}
    if how == "open_groups":
        opened = xr.open_groups(path, engine=engine, **options)
        datasets = {str(name): ds for name, ds in opened.items()}
        facts["", "groups"] = list(datasets)
    elif how == "open_datatree":
        tree = xr.open_datatree(path, engine=engine, **options)
        datasets = {n.path: n.to_dataset(inherit=False) for n in tree.subtree}
        facts["", "groups"] = list(datasets)
    else:
        datasets = {how: xr.open_dataset(path, engine=engine, group=how, **options)}
    for name, ds in datasets.items():
        facts |= {(name, *k): plain(v) for k, v in facts_of_dataset(ds).items()}
        ds.close()
    if how == "open_datatree":
        tree.close()
    return facts


def plain(value: Any) -> Any:
    """Return a value with its types as plain data.

    NumPy's types lose metadata, and some their byte order, on the way between processes.
    """
    match value:
        case np.dtype():
            kept = {k: v for k, v in (value.metadata or {}).items() if k in METADATA}
            fields = {
                n: (plain(t), offset) for n, (t, offset, *_) in (value.fields or {}).items()
            }
            name = str(value.base) if value.names is None else "compound"
            return name, value.itemsize, value.shape, fields, kept
        case np.ndarray() if value.dtype.kind in "OV":
            items = [plain(v) for v in value.reshape(-1).tolist()]
            name = "object" if value.dtype.kind == "O" else "void"
            return "array", name, value.shape, items
        case np.ndarray():
            native = value.astype(value.dtype.newbyteorder("="))
            return "array", str(value.dtype), value.shape, native
        case np.generic():
            return "scalar", str(value.dtype), value.item()
        case str() if any("\ud800" <= c <= "\udfff" for c in value):
            return "bytes that are not UTF-8", ascii(value)
        case list() | tuple():
            return type(value)(map(plain, value))
        case dict():
            return {k: plain(v) for k, v in value.items()}
    return value


METADATA = ("enum", "enum_name", "vlen")
"""Metadata of types that users see; h5py also keeps the character set of single bytes."""


# --- comparison --------------------------------------------------------------------


def same(a: Any, b: Any) -> bool:
    """Tell whether two facts are equal, types included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fcmM"))
    return bool(a == b or (a != a and b != b))


MISSING = Failed("missing")


def differences(
    found: Facts, others: Mapping[str, Facts | Failed]
) -> Iterator[tuple[Any, ...]]:
    """Yield key, own fact, and the others' facts where xref agrees with none that it must."""
    opened = {n: f for n, f in others.items() if not isinstance(f, Failed)}
    groups = {k[0] for k in found}
    keys = dict.fromkeys(k for facts in (found, *opened.values()) for k in facts)
    for key in keys if opened else ():
        group, _, *of = key
        if group not in groups or (of and of[0] not in found.get((group, "variables"), ())):
            continue  # the lists of groups and of variables differ
        mine = found.get(key, MISSING)
        theirs = {n: f.get(key, MISSING) for n, f in opened.items()}
        answers = [v for v in theirs.values() if v is MISSING or not isinstance(v, Failed)]
        if answers and not any(same(mine, v) for v in answers):
            yield key, mine, theirs


# --- another process ---------------------------------------------------------------


def _start() -> None:
    import hdf5plugin  # noqa: F401, lets h5py read bzip2

    warnings.simplefilter("ignore")


class OtherProcess:
    """A process that runs functions, and is replaced if it crashes."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> OtherProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return what the function returns, or `Failed` if it fails."""
        if self._pool is None:
            context = get_context("spawn")
            self._pool = ProcessPoolExecutor(1, context, _start)
        try:
            return self._pool.submit(function, *args).result()
        except BrokenProcessPool:
            self._pool.shutdown()
            self._pool = None
            return Failed("the process crashed")
        except Exception as error:  # noqa: BLE001, any error of another package
            return Failed(repr(error))
