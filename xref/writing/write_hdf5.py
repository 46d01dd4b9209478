"""A Dataset or a DataTree into an HDF5 file that is written completely or not at all.

In: xarray objects, references included. Out: a file that h5py, netCDF-4 and this engine
read. A new file, or the changes of an old one, are written under a hidden name in the same
folder. The file gets its name, or its changes, when all of it is on disk
(`xref.writing.drafts`). HDF5 writes through `xref.writing.checked_file`.
"""

from __future__ import annotations

import functools
import os
import posixpath
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import dask.array as da
import xarray as xr
from dask.delayed import delayed

from xref.engine import source_locations
from xref.errors import FileWriteError, UnsupportedError
from xref.errors import naming as naming_errors
from xref.objects import HIDDEN_ATTRIBUTES
from xref.references import ReferenceArray
from xref.storage import URL, LocalFile
from xref.writing.append_lock import appending
from xref.writing.cf_encoding import encode_dataset
from xref.writing.checked_file import CheckedFile
from xref.writing.dask_blocks import BlockTarget, open_stored
from xref.writing.drafts import AppendDraft, Draft, EachBlock, NewDraft, first_failure
from xref.writing.hidden_files import naming
from xref.writing.translate_references import ON_MISSING, ReferenceTranslator
from xref.writing.tree import TreeWriter
from xref.writing.uninterrupted import check_interrupt, interruptible, uninterrupted

MODES = ("w", "a")

Encodings: TypeAlias = Mapping[str, Mapping[Hashable, Mapping[str, Any]]]

Blocks: TypeAlias = list[tuple[Any, BlockTarget]]


def to_hdf5(
    data: xr.Dataset | xr.DataTree | xr.DataArray,
    path: str | os.PathLike[str],
    group: str = "/",
    mode: str = "w",
    *,
    encoding: Mapping[Any, Any] | None = None,
    unlimited_dims: Hashable | Iterable[Hashable] | None = None,
    on_missing: str = "raise",
    compute: bool = True,
) -> Any:
    """Write a Dataset or a DataTree to an HDF5 file, references included.

    References to objects that are written are translated for the new file. References into
    the file that is appended to stay as they are. Dask arrays are written block by block.

    Parameters
    ----------
    data : xarray.Dataset, xarray.DataTree or xarray.DataArray
    path : str or os.PathLike
        Path of a local file.
    group : str
        Path of the group to write.
    mode : {"w", "a"}
        "w" creates a new file. It appears when it is complete, and then replaces an earlier
        file. "a" changes an existing file in place. A variable that exists in it must have
        the same shape and type; its values are replaced. Variables that come from that file
        itself are first read into memory. After an error the file has its old bytes.
    encoding : dict, optional
        By variable, for a tree by path of the group and then by variable: the keys that
        `xarray.Dataset.to_netcdf` takes with ``engine="h5netcdf"``, such as ``zlib``,
        ``complevel``, ``shuffle``, ``chunksizes``, ``dtype``, ``_FillValue``. Reference
        variables take them, too. An encoding that differs from the storage of an existing
        variable is an error.
    unlimited_dims : hashable or iterable of hashable, optional
        Dimensions that can grow; by default those in ``data.encoding``.
    on_missing : {"raise", "null", "copy"}
        How to write references whose target is not written: raise an error, write null, or
        write a reference to a copy of the target. The copy gets the path of the target, or
        one in ``/#refs#``. Named datatypes are always copied.
    compute : bool
        False returns a `dask.delayed.Delayed` that writes the blocks of Dask arrays, and
        then finishes the file.

    Returns
    -------
    dask.delayed.Delayed or None
        A Delayed with ``compute=False``.

    Raises
    ------
    DanglingReferenceError
        If a target is not among the objects to write, with ``on_missing="raise"``.
    FileWriteError
        If the operating system could not write: no space, a quota, a disk that fails. It is
        an `OSError`.
    FileChangedError
        If another program has changed the file during an append.
    BlockingIOError
        If another program has the file open, or appends to it, for a long time.
    UnsupportedError
        If HDF5 has no type for the values of a variable or attribute.
    ValueError
        If an option or an encoding is not known, or if the file has something else at the
        path of a variable.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; it can be one of {MODES}")
    if on_missing not in ON_MISSING:
        raise ValueError(f"on_missing is {on_missing!r}; it can be one of {ON_MISSING}")
    job = _Job(
        filename=_local_file(path),
        nodes=_nodes(data, group, unlimited_dims),
        encodings=_encodings(data, group, encoding),
        translator=ReferenceTranslator(on_missing),
        compute=compute,
    )
    return uninterrupted(_write_new if mode == "w" else _write_or_append, job)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """The checked arguments of one call of `to_hdf5`."""

    nodes: dict[str, xr.Dataset]  # by path of the group
    encodings: Encodings
    translator: ReferenceTranslator
    filename: str
    compute: bool


def _write_or_append(job: _Job) -> Any:
    """Append to a file; write a new one if it does not exist."""
    with appending(job.filename):
        if not os.path.exists(job.filename):
            return _write_new(job, replaces=False)
        return _append(job)


def _write_new(job: _Job, *, replaces: bool = True) -> Any:
    """Write a new file; it may replace an existing one."""
    draft = NewDraft.of(job.filename, replaces=replaces)
    try:
        draft.create()
        blocks = _write_structure(job, draft, draft)
        if blocks and not job.compute:
            return interruptible(_delayed_blocks, blocks, draft)
        _write_blocks(blocks, draft)
        check_interrupt()
        draft.publish()
    except BaseException:
        draft.remove()
        raise
    return None if job.compute else _delayed_blocks(blocks, draft)


def _append(job: _Job) -> Any:
    """Change an existing file in place, once all changes are known."""
    draft = AppendDraft.of(job.filename)
    block_draft = draft if job.compute else EachBlock(job.filename)
    try:
        with draft.unchanged():
            before = job.translator.appended_file = LocalFile(job.filename).identity()
            nodes = interruptible(_read_nodes, job.nodes, before[:2])
            draft.create()
            blocks = _write_structure(replace(job, nodes=nodes), draft, block_draft)
            if job.compute:
                _write_blocks(blocks, draft)
        check_interrupt()
        draft.publish()
    finally:
        draft.remove()
    return None if job.compute else interruptible(_delayed_blocks, blocks, block_draft)


def _write_structure(job: _Job, draft: NewDraft | AppendDraft, block_draft: Draft) -> Blocks:
    """Write everything but the blocks of Dask arrays; return the blocks and their targets."""
    is_new = isinstance(draft, NewDraft)
    with draft.open() as stored, _open_file(stored, is_new=is_new) as file:
        writer = TreeWriter(file, stored, job.translator, block_draft, is_new=is_new)
        for group, node in job.nodes.items():
            # Interruptible: it may compute Dask arrays.
            with naming_errors(functools.partial(_group_label, job.filename, group)):
                encoded = interruptible(encode_dataset, node, job.encodings.get(group, {}))
            writer.add(group, node, encoded)
            stored.check()
        writer.finish()
        stored.check()
    return writer.blocks


def _group_label(filename: str, group: str) -> str:
    return f"{filename}: group {group!r}"


def _open_file(stored: CheckedFile, *, is_new: bool) -> Any:
    """Let HDF5 open a file (h5py.File)."""
    with naming(repr(stored)):
        file = open_stored(stored, is_new=is_new)
    try:
        stored.check()
    except BaseException:
        file.close()
        raise
    return file


def _write_blocks(blocks: Blocks, draft: Draft) -> None:
    """Write the blocks of Dask arrays; raise the error of the first block that failed."""
    if not blocks:
        return
    arrays, targets = zip(*blocks, strict=True)
    store = functools.partial(da.store, list(arrays), list(targets), lock=False)
    try:
        interruptible(store)
    except FileWriteError as error:
        first = first_failure(draft)
        if first is None or first is error:
            raise
        raise first from error


def _delayed_blocks(blocks: Blocks, draft: Draft) -> Any:
    """Return a Delayed that writes the blocks of Dask arrays, and publishes the file."""
    if not blocks:
        return delayed(_nothing)()
    arrays, targets = zip(*blocks, strict=True)
    stored = da.store(list(arrays), list(targets), lock=False, compute=False)
    return delayed(_publish, pure=False)(stored, draft)


def _local_file(path: str | os.PathLike[str]) -> str:
    """Return the absolute filename of a path; the file may not exist yet."""
    if URL.match(os.fspath(path)):
        raise UnsupportedError(f"{path} is a URL; write a local file, then copy it there")
    filename = os.path.realpath(os.path.expanduser(os.fspath(path)))
    if os.path.exists(filename) and not os.path.isfile(filename):
        raise FileExistsError(f"{filename} exists, and is not a regular file")
    folder = os.path.dirname(filename)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}, the folder of the new file, does not exist")
    return filename


def _publish(stored: Any, draft: Draft) -> None:
    """Finish a file whose blocks are stored."""
    del stored
    uninterrupted(draft.publish)


def _nothing() -> None:
    """Do nothing: everything is written."""


def _nodes(data: Any, group: str, unlimited: Any) -> dict[str, xr.Dataset]:
    """Return Datasets by the path of their group, parents first."""
    if isinstance(data, xr.DataArray):
        data = data.to_dataset(name="__values__" if data.name is None else data.name)
    if isinstance(data, xr.Dataset):
        nodes = {_join(group, ""): data.copy(deep=False)}
    elif isinstance(data, xr.DataTree):
        nodes = {
            _join(group, n.path.removeprefix(data.path)): n.to_dataset(inherit=n is data)
            for n in data.subtree
        }
    else:
        raise TypeError(f"{type(data).__name__} is not a Dataset, DataTree or DataArray")
    dims = _dimension_set(unlimited)
    unknown = dims - {dim for node in nodes.values() for dim in node.sizes}
    if unknown:
        raise ValueError(
            f"unlimited_dims has {sorted(map(str, unknown))}, which no variable has"
        )
    for path, node in nodes.items():
        _check_names(node, path)
        if unlimited is not None:
            node.encoding = {**node.encoding, "unlimited_dims": dims}
    return nodes


def _dimension_set(unlimited: Any) -> set[Hashable]:
    """Return dimensions as a set; xarray takes one name, several names, or None."""
    if unlimited is None:
        return set()
    if isinstance(unlimited, str) or not isinstance(unlimited, Iterable):
        return {unlimited}
    return set(unlimited)


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
    return {_join(group, str(path)): by_name for path, by_name in encoding.items()}


def _read_nodes(nodes: Mapping[str, xr.Dataset], file_id: Any) -> dict[str, xr.Dataset]:
    """Read all variables that come from a file that is about to change."""
    return {path: _read_variables(node, file_id) for path, node in nodes.items()}


def _read_variables(dataset: xr.Dataset, file_id: Any) -> xr.Dataset:
    """Read the variables of a Dataset that come from one file."""
    in_memory = {}
    for name, variable in dataset.variables.items():
        data = variable._data
        if isinstance(data, ReferenceArray):
            _ = data.columns  # decodes the references; the array caches them
        elif any(location.file_id == file_id for location in source_locations(data)):
            in_memory[name] = variable.compute()
    return dataset.assign(in_memory) if in_memory else dataset


def _check_names(dataset: xr.Dataset, path: str) -> None:
    """Refuse names that HDF5 or netCDF-4 would misread."""
    label = f"group {path!r}"
    for kind, names in (("variable", dataset.variables), ("dimension", dataset.sizes)):
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"{kind} {name!r} of {label} is not a str; rename it")
            if name in ("", ".") or "/" in name:
                raise ValueError(
                    f"{kind} {name!r} of {label} is not a valid HDF5 name; rename it"
                )
    owners = {label: dataset.attrs} | {
        f"variable {name!r} of {label}": v.attrs for name, v in dataset.variables.items()
    }
    for owner, attributes in owners.items():
        for name in attributes:
            if not isinstance(name, str):
                raise TypeError(f"attribute {name!r} of {owner} is not a str; rename it")
            if not name or name in HIDDEN_ATTRIBUTES:
                raise ValueError(
                    f"attribute {name!r} of {owner} is one of HDF5 or netCDF-4; rename it"
                )
    for name, index in dataset.xindexes.items():
        if isinstance(index, xr.indexes.PandasMultiIndex):
            raise NotImplementedError(
                f"{name!r} of {label} is a level of a MultiIndex; write "
                f"dataset.reset_index({index.dim!r})"
            )
    for name, variable in dataset.variables.items():
        if any(n != n for n in variable.shape):
            raise ValueError(
                f"variable {name!r} of {label} has blocks of unknown size {variable.shape}"
            )
