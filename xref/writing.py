"""A Dataset or a tree of them into an HDF5 file that is whole, or not there.

In: what xarray holds, references included. Out: a file that h5py, netCDF-4 and this
engine read. A new file is written under another name in the same folder, and takes its
own name when all of it is on disk.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import uuid
from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import dask.array as da
import h5py
import xarray as xr
from dask.delayed import delayed

from xref.attribute_values import HIDDEN_ATTRIBUTES
from xref.errors import UnsupportedError
from xref.h5file import close_files
from xref.h5tree import TreeWriter
from xref.inputs import URL
from xref.origins import source_locations
from xref.references import ReferenceArray
from xref.remake import ON_MISSING, Targets
from xref.sources import LocalFile

MODES = ("w", "a")

Encodings = Mapping[str, Mapping[Hashable, Mapping[str, Any]]]


def to_hdf5(
    data: xr.Dataset | xr.DataTree | xr.DataArray,
    path: str | os.PathLike[str],
    group: str = "/",
    mode: str = "w",
    *,
    encoding: Mapping[Any, Any] | None = None,
    unlimited_dims: Iterable[Hashable] = (),
    on_missing: str = "raise",
    compute: bool = True,
) -> Any:
    """Write a Dataset or a DataTree to an HDF5 file, references included.

    References to what is written are made anew for the new file; those into a file that
    is appended to stay. Dask arrays are written block by block.

    Parameters
    ----------
    data : xarray.Dataset, xarray.DataTree or xarray.DataArray
    path : str or os.PathLike
        Of a local file.
    group : str
        Where in the file.
    mode : {"w", "a"}
        "w" makes a new file: it appears whole, in the place of an earlier one, or not at
        all. "a" adds to a file, in place; variables that are there must have the same
        shape and type, and get new values. What comes from that file itself is read into
        memory first. If something fails, new variables and groups are removed again.
    encoding : dict, optional
        By variable, of a tree by path of the group and then by variable: what
        `xarray.Dataset.to_netcdf` takes with ``engine="h5netcdf"``, such as ``zlib``,
        ``complevel``, ``shuffle``, ``chunksizes``, ``dtype``, ``_FillValue``. Of
        reference variables, too.
    unlimited_dims : iterable of hashable
        Dimensions that can grow, besides those that ``data.encoding`` names.
    on_missing : {"raise", "null", "copy"}
        What becomes of references whose target is not written: an error, null, or a
        reference to a copy of the target, which gets its old path or one in ``/#refs#``.
        Named datatypes are always copied.
    compute : bool
        False returns what writes the blocks of dask arrays, and finishes the file.

    Returns
    -------
    dask.delayed.Delayed or None
        With ``compute=False``.

    Raises
    ------
    DanglingReferenceError
        If a target is not among what is written, with ``on_missing="raise"``.
    UnsupportedError
        If HDF5 has no type for the values of a variable or attribute.
    ValueError
        If an option or encoding is none that there is, or something else is in the file
        where a variable should be.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; it can be one of {MODES}")
    if on_missing not in ON_MISSING:
        raise ValueError(f"on_missing is {on_missing!r}; it can be one of {ON_MISSING}")
    filename = _local_file(path)
    nodes = _nodes(data, group, unlimited_dims)
    encodings = _encodings(data, group, encoding)
    appends = mode == "a" and os.path.exists(filename)
    draft = _Draft.of(filename, appends)
    targets = Targets(on_missing)
    if appends:
        targets.own_file = LocalFile(filename).identity()
        nodes = {at: _read_from(node, targets.own_file[:2]) for at, node in nodes.items()}
        close_files()
    writer = None
    try:
        options = {} if appends else {"libver": ("v108", "latest"), "track_order": True}
        with h5py.File(draft.path, "r+" if appends else "x", **options) as file:
            writer = TreeWriter(file, draft.path, targets, draft.lock, is_new=not appends)
            for at, node in nodes.items():
                writer.add(at, node, encodings.get(at, {}))
            writer.finish()
        if not writer.blocks:
            draft.publish()
            return None if compute else delayed(_nothing)()
        arrays, places = zip(*writer.blocks, strict=True)
        stored = da.store(list(arrays), list(places), lock=False, compute=False)
        done = delayed(_publish, pure=False)(stored, draft)
        if not compute:
            return done
        done.compute()
    except BaseException:
        draft.remove(writer.made if writer else [])
        raise
    return None


def _local_file(path: str | os.PathLike[str]) -> str:
    """Return the file that a path leads to, which need not be there."""
    if URL.match(os.fspath(path)):
        raise UnsupportedError(
            f"{path} is a URL; write a local file, and copy it to where it shall be"
        )
    filename = os.path.realpath(os.path.expanduser(os.fspath(path)))
    if os.path.exists(filename) and not os.path.isfile(filename):
        raise FileExistsError(f"{filename} is there, and is no regular file")
    folder = os.path.dirname(filename)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}, the folder of what is written, is not there")
    return filename


@dataclass(frozen=True, slots=True)
class _Draft:
    """A file that is being written."""

    filename: str  # that it shall have
    path: str  # that it has
    lock: str  # beside it, for those who write blocks

    @classmethod
    def of(cls, filename: str, appends: bool) -> _Draft:
        """Name a new file, or the one that is appended to."""
        folder, name = os.path.split(filename)
        hidden = os.path.join(folder, f".{name[:50]}.{uuid.uuid4().hex[:8]}.part")
        return cls(filename, filename if appends else hidden, f"{hidden}.lock")

    def publish(self) -> None:
        """Give the file its name, once all of it is on disk."""
        self._remove_lock()
        if self.path == self.filename:
            return
        with open(self.path, "rb") as file:
            if os.path.exists(self.filename):
                shutil.copymode(self.filename, self.path)
            os.fsync(file.fileno())
        os.replace(self.path, self.filename)
        folder = os.open(os.path.dirname(self.filename), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def remove(self, made: list[str]) -> None:
        """Remove a new file that was not finished, or what was made in an old one."""
        self._remove_lock()
        if self.path != self.filename:
            with suppress(FileNotFoundError):
                os.remove(self.path)
        elif made:
            with h5py.File(self.path, "r+") as file:
                for path in reversed(made):
                    del file[path]

    def _remove_lock(self) -> None:
        with suppress(FileNotFoundError):
            os.remove(self.lock)


def _publish(stored: Any, draft: _Draft) -> None:
    """Finish a file whose blocks are stored."""
    del stored
    draft.publish()


def _nothing() -> None:
    """Do nothing: all is written."""


def _nodes(data: Any, group: str, unlimited: Iterable[Hashable]) -> dict[str, xr.Dataset]:
    """Return Datasets by the path of their group, those above first."""
    if isinstance(data, xr.DataArray):
        data = data.to_dataset(name="__values__" if data.name is None else data.name)
    if isinstance(data, xr.Dataset):
        found = {_join(group, ""): data.copy(deep=False)}
    elif isinstance(data, xr.DataTree):
        found = {
            _join(group, node.path.removeprefix(data.path)): node.to_dataset(
                inherit=node is data
            )
            for node in data.subtree
        }
    else:
        raise TypeError(f"{type(data).__name__} is no Dataset, DataTree or DataArray")
    unlimited = set(unlimited)
    unknown = unlimited - {dim for node in found.values() for dim in node.sizes}
    if unknown:
        raise ValueError(
            f"unlimited_dims has {sorted(map(str, unknown))}, which no variable has"
        )
    for at, node in found.items():
        _check_names(node, at)
        limits = {*node.encoding.get("unlimited_dims", ()), *unlimited}
        node.encoding = {**node.encoding, "unlimited_dims": limits}
    return found


def _join(group: str, path: str) -> str:
    return posixpath.normpath(posixpath.join("/", group.strip("/"), path.strip("/")))


def _encodings(data: Any, group: str, encoding: Mapping[Any, Any] | None) -> Encodings:
    """Return the encodings of variables by the path of their group."""
    if not encoding:
        return {}
    if not isinstance(data, xr.DataTree):
        return {_join(group, ""): encoding}
    known = {node.path.removeprefix(data.path).strip("/") for node in data.subtree}
    unknown = [path for path in encoding if str(path).strip("/") not in known]
    if unknown:
        raise ValueError(f"encodings are given for {unknown}; the tree has {sorted(known)}")
    return {_join(group, str(path)): of for path, of in encoding.items()}


def _read_from(dataset: xr.Dataset, key: Any) -> xr.Dataset:
    """Read what comes from a file that is about to change."""
    found = {}
    for name, variable in dataset.variables.items():
        data = variable._data
        if isinstance(data, ReferenceArray):
            _ = data.columns  # decoded once, and kept
        elif any(location.key == key for location in source_locations(data)):
            found[name] = variable.compute()
    return dataset.assign(found) if found else dataset


def _check_names(dataset: xr.Dataset, path: str) -> None:
    """Refuse names that HDF5 or netCDF-4 takes for something else.

    Raises
    ------
    TypeError, ValueError
    """
    where = f"group {path!r}"
    for what, names in (("variable", dataset.variables), ("dimension", dataset.sizes)):
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"{what} {name!r} of {where} is no text; rename it")
            if name in ("", ".") or "/" in name:
                raise ValueError(f"{what} {name!r} of {where} has no name for HDF5; rename it")
    holders = {where: dataset.attrs} | {
        f"variable {name!r} of {where}": v.attrs for name, v in dataset.variables.items()
    }
    for holder, attributes in holders.items():
        for name in attributes:
            if not isinstance(name, str):
                raise TypeError(f"attribute {name!r} of {holder} is no text; rename it")
            if not name or name in HIDDEN_ATTRIBUTES:
                raise ValueError(
                    f"attribute {name!r} of {holder} has another meaning; rename it"
                )
    for name, index in dataset.xindexes.items():
        if isinstance(index, xr.indexes.PandasMultiIndex):
            raise NotImplementedError(
                f"{name!r} of {where} is a level of a MultiIndex; write "
                f"dataset.reset_index({index.dim!r})"
            )
    for name, variable in dataset.variables.items():
        shape = variable.shape
        if any(n != n for n in shape):
            raise ValueError(f"variable {name!r} of {where} has blocks of unknown size {shape}")
