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
import numpy as np
import xarray as xr
from dask.delayed import delayed

from xref.elements import opened_from
from xref.errors import FileChangedError
from xref.h5blocks import remove_lock
from xref.h5file import FileLocation, check_unchanged, close_files
from xref.h5tree import TreeWriter
from xref.references import ReferenceArray
from xref.remake import ON_MISSING, Targets

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
        shape and type, and get new values. If something is wrong with what is added, new
        variables and groups are removed again.
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
    filename = os.path.realpath(os.path.expanduser(os.fspath(path)))
    nodes = _nodes(data, group, unlimited_dims)
    encodings = _encodings(data, group, encoding)
    appends = mode == "a" and os.path.exists(filename)
    draft = _Draft(filename, filename if appends else _draft_name(filename))
    targets = Targets(on_missing)
    if appends:
        status = os.stat(filename)
        targets.own_file = status.st_dev, status.st_ino
        nodes = {p: _read_from(node, targets.own_file, filename) for p, node in nodes.items()}
        close_files()
    try:
        options = {} if appends else {"libver": ("v108", "latest"), "track_order": True}
        with h5py.File(draft.path, "r+" if appends else "x", **options) as file:
            writer = TreeWriter(file, draft.path, targets)
            try:
                for at, node in nodes.items():
                    writer.add(at, node, encodings.get(at, {}))
                writer.finish()
            except BaseException:
                if appends:
                    writer.undo()
                raise
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
        draft.remove()
        raise
    return None


@dataclass(frozen=True, slots=True)
class _Draft:
    """A file that is being written."""

    filename: str  # that it shall have
    path: str  # that it has

    def publish(self) -> None:
        """Give the file its name, once all of it is on disk."""
        remove_lock(self.path)
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

    def remove(self) -> None:
        """Remove a new file that was not finished."""
        remove_lock(self.path)
        if self.path != self.filename:
            with suppress(FileNotFoundError):
                os.remove(self.path)


def _publish(stored: Any, draft: _Draft) -> None:
    """Finish a file whose blocks are stored."""
    del stored
    draft.publish()


def _nothing() -> None:
    """Do nothing: all is written."""


def _draft_name(filename: str) -> str:
    folder, name = os.path.split(filename)
    return os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.part")


def _nodes(data: Any, group: str, unlimited: Iterable[Hashable]) -> dict[str, xr.Dataset]:
    """Return Datasets by the path of their group, those above first."""
    if isinstance(data, xr.DataArray):
        data = data.to_dataset(name="__values__" if data.name is None else data.name)
    if isinstance(data, xr.Dataset):
        found = {_join(group, ""): data.copy(deep=False)}
    elif isinstance(data, xr.DataTree):
        found = {
            _join(group, node.path.removeprefix(data.path)): node.to_dataset(inherit=False)
            for node in data.subtree
        }
    else:
        raise TypeError(f"{type(data).__name__} is no Dataset, DataTree or DataArray")
    for node in found.values():
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


def _read_from(dataset: xr.Dataset, key: Any, filename: str) -> xr.Dataset:
    """Read what comes from a file that is about to change, and see that it has not yet."""
    found = {}
    for name, variable in dataset.variables.items():
        data = variable._data
        if isinstance(data, ReferenceArray):
            _check_version(data.columns.files, key, filename)
            continue
        origin = opened_from(variable.encoding)
        location = origin.location if origin is not None else None
        if location is not None and location.key == key and not isinstance(data, np.ndarray):
            _check_version((location,), key, filename)
            found[name] = variable.compute()
    return dataset.assign(found) if found else dataset


def _check_version(locations: Iterable[FileLocation], key: Any, filename: str) -> None:
    """Refuse references into an earlier version of a file: they may lead anywhere now."""
    for location in locations:
        if location.key != key:
            continue
        try:
            check_unchanged(location)
        except FileChangedError as error:
            raise FileChangedError(
                f"{filename} has changed since references into it were read; open it again: "
                f"{error}"
            ) from error
