"""A Dataset or a tree of them into an HDF5 file that is whole, or not there.

In: what xarray holds, references included. Out: a file that h5py, netCDF-4 and this
engine read. A new file, and the changes of an old one, are written under a hidden name in
the same folder; the file has its name, or its changes, when all of it is on disk
(`xref.writing.drafts`). HDF5 writes through `xref.writing.checked_file`.
"""

from __future__ import annotations

import functools
import os
import posixpath
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeAlias

import dask.array as da
import xarray as xr
from dask.delayed import delayed

from xref.engine import source_locations
from xref.errors import FileWriteError, UnsupportedError
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
        memory first. If something fails, the file has the bytes that it had.
    encoding : dict, optional
        By variable, of a tree by path of the group and then by variable: what
        `xarray.Dataset.to_netcdf` takes with ``engine="h5netcdf"``, such as ``zlib``,
        ``complevel``, ``shuffle``, ``chunksizes``, ``dtype``, ``_FillValue``. Of
        reference variables, too. Storage that a variable of the file does not have is an
        error.
    unlimited_dims : hashable or iterable of hashable, optional
        Dimensions that can grow; by default those that ``data.encoding`` names.
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
    FileWriteError
        If the operating system did not write: no room, a limit, a disk that fails. It is
        an `OSError`.
    FileChangedError
        If another program has changed the file that is appended to.
    BlockingIOError
        If another program has it open, or appends to it, for a long time.
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
    translator = ReferenceTranslator(on_missing)
    write = _write_new if mode == "w" else _write_or_append
    return uninterrupted(write, nodes, encodings, translator, filename, compute)


def _write_or_append(
    nodes: Mapping[str, xr.Dataset],
    encodings: Encodings,
    translator: ReferenceTranslator,
    filename: str,
    compute: bool,
) -> Any:
    """Change a file, or write it if there is none."""
    with appending(filename):
        if not os.path.exists(filename):
            return _write_new(nodes, encodings, translator, filename, compute, replaces=False)
        return _append(nodes, encodings, translator, filename, compute)


def _write_new(
    nodes: Mapping[str, xr.Dataset],
    encodings: Encodings,
    translator: ReferenceTranslator,
    filename: str,
    compute: bool,
    *,
    replaces: bool = True,
) -> Any:
    """Write a new file, which replaces one that is there, or is the first."""
    draft = NewDraft.of(filename, replaces=replaces)
    try:
        draft.create()
        blocks = _write_structure(nodes, encodings, translator, draft, draft)
        if blocks and not compute:
            return interruptible(_later, blocks, draft)
        _write_blocks(blocks, draft)
        check_interrupt()
        draft.publish()
    except BaseException:
        draft.remove()
        raise
    return None if compute else _later(blocks, draft)


def _append(
    nodes: Mapping[str, xr.Dataset],
    encodings: Encodings,
    translator: ReferenceTranslator,
    filename: str,
    compute: bool,
) -> Any:
    """Change a file that is there, in place, once all changes are known."""
    draft = AppendDraft.of(filename)
    for_blocks = draft if compute else EachBlock(filename)
    try:
        with draft.unchanged():
            translator.appended_file = LocalFile(filename).identity()
            nodes = interruptible(_read_nodes, nodes, translator.appended_file[:2])
            draft.create()
            blocks = _write_structure(nodes, encodings, translator, draft, for_blocks)
            if compute:
                _write_blocks(blocks, draft)
        check_interrupt()
        draft.publish()
    finally:
        draft.remove()
    return None if compute else interruptible(_later, blocks, for_blocks)


def _write_structure(
    nodes: Mapping[str, xr.Dataset],
    encodings: Encodings,
    translator: ReferenceTranslator,
    draft: NewDraft | AppendDraft,
    for_blocks: Draft,
) -> Blocks:
    """Write all but the blocks of dask arrays; return these, and where they go."""
    is_new = isinstance(draft, NewDraft)
    with draft.open() as stored, _open_file(stored, is_new=is_new) as file:
        writer = TreeWriter(file, stored, translator, for_blocks, is_new=is_new)
        for at, node in nodes.items():
            # which may compute
            encoded = interruptible(encode_dataset, node, encodings.get(at, {}))
            writer.add(at, node, encoded)
            stored.check()
        writer.finish()
        stored.check()
    return writer.blocks


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
    """Write the blocks of dask arrays; raise the error of the one that failed first."""
    if not blocks:
        return
    arrays, places = zip(*blocks, strict=True)
    store = functools.partial(da.store, list(arrays), list(places), lock=False)
    try:
        interruptible(store)
    except FileWriteError as error:
        first = first_failure(draft)
        if first is None or first is error:
            raise
        raise first from error


def _later(blocks: Blocks, draft: Draft) -> Any:
    """Return what writes the blocks of dask arrays, and publishes the file."""
    if not blocks:
        return delayed(_nothing)()
    arrays, places = zip(*blocks, strict=True)
    stored = da.store(list(arrays), list(places), lock=False, compute=False)
    return delayed(_publish, pure=False)(stored, draft)


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


def _publish(stored: Any, draft: Draft) -> None:
    """Finish a file whose blocks are stored."""
    del stored
    uninterrupted(draft.publish)


def _nothing() -> None:
    """Do nothing: all is written."""


def _nodes(data: Any, group: str, unlimited: Any) -> dict[str, xr.Dataset]:
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
    given = _given_dimensions(unlimited)
    unknown = given - {dim for node in found.values() for dim in node.sizes}
    if unknown:
        raise ValueError(
            f"unlimited_dims has {sorted(map(str, unknown))}, which no variable has"
        )
    for at, node in found.items():
        _check_names(node, at)
        if unlimited is not None:
            node.encoding = {**node.encoding, "unlimited_dims": given}
    return found


def _given_dimensions(unlimited: Any) -> set[Hashable]:
    """Return dimensions as xarray takes them: one or several, or None."""
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
    return {_join(group, str(path)): of for path, of in encoding.items()}


def _read_nodes(nodes: Mapping[str, xr.Dataset], key: Any) -> dict[str, xr.Dataset]:
    """Read what comes from a file that is about to change."""
    return {at: _read_from(node, key) for at, node in nodes.items()}


def _read_from(dataset: xr.Dataset, key: Any) -> xr.Dataset:
    """Read the variables that come from a file that is about to change."""
    found = {}
    for name, variable in dataset.variables.items():
        data = variable._data
        if isinstance(data, ReferenceArray):
            _ = data.columns  # decoded once, and kept
        elif any(location.file_id == key for location in source_locations(data)):
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
