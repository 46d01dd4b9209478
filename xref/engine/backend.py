"""The engine ``h5ref`` of `xarray.open_dataset`."""

from __future__ import annotations

import functools
import posixpath
import warnings
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, ClassVar

import xarray as xr
from xarray.backends import BackendEntrypoint

from xref import objects, storage
from xref.engine.attributes import warn_unreadable
from xref.engine.cf_variables import decode_dataset
from xref.engine.dimension_names import PHONY_DIMS, PhonyNames
from xref.engine.variables import SharedObjects, count_phony, open_members
from xref.errors import UnreadableMemberWarning
from xref.references import DecodeOptions, ObjectReference, SourceName

READERS = ("auto", "direct", "h5py")

FORMATS = (None, "NETCDF4", "NETCDF4_CLASSIC")


class H5RefBackendEntrypoint(BackendEntrypoint):
    """Opens any HDF5 file; references become variables that can be resolved."""

    description: ClassVar[str] = "Open HDF5 files, their references included, with xref"
    open_dataset_parameters: ClassVar[Any] = (
        # xarray reads the signature only of engines that it finds by their name.
        "filename_or_obj",
        "drop_variables",
        "mask_and_scale",
        "decode_times",
        "concat_characters",
        "decode_coords",
        "use_cftime",
        "decode_timedelta",
        "group",
        "external",
        "reader",
        "format",
        "lock",
        "invalid_netcdf",
        "phony_dims",
        "decode_vlen_strings",
        "driver",
        "driver_kwds",
        "storage_options",
        "open_kwargs",
    )
    supports_groups: ClassVar[bool] = True

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        mask_and_scale: Any = True,
        decode_times: Any = True,
        concat_characters: Any = True,
        decode_coords: bool | str = True,
        use_cftime: Any = None,
        decode_timedelta: Any = None,
        group: str | None = None,
        external: str = "same-dir",
        reader: str = "auto",
        format: str | None = "NETCDF4",
        lock: Any = None,
        invalid_netcdf: bool | None = None,
        phony_dims: str | None = None,
        decode_vlen_strings: bool = True,
        driver: str | None = None,
        driver_kwds: Mapping[str, Any] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        open_kwargs: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """Open one group of an HDF5 file lazily.

        Parameters
        ----------
        filename_or_obj : str, os.PathLike, bytes, memoryview, file object or h5py object
            A local path, a URL that fsspec opens, the content of a file, a binary
            file object, or an open `h5py.File` or `h5py.Group`.
        drop_variables : str or iterable of str, optional
            Names of variables to leave out.
        mask_and_scale, decode_times, concat_characters, decode_coords, use_cftime, \
decode_timedelta
            As in `xarray.open_dataset`. Resolved references are decoded the same way.
        group : str, optional
            Path of the group; the root group by default.
        external : {"same-dir", "all", "none"}
            Files that may be opened for external links and virtual datasets: files in the
            folder of this file or below, all files, or no files. Raw data in external files
            are read with "all" only.
        reader : {"auto", "direct", "h5py"}
            "auto" reads chunks directly, outside the lock of HDF5, where that is supported,
            and through h5py otherwise. "direct" and "h5py" force one of them.
        format : {"NETCDF4", "NETCDF4_CLASSIC"}, optional
            Ignored; other engines have this option.
        lock : lock, optional
            Held while data are read. No lock is needed.
        invalid_netcdf : bool, optional
            Ignored, since any HDF5 file can be opened; other engines have this option.
        phony_dims : {None, "access", "sort"}
            How the names ``phony_dim_N`` of axes without a dimension scale are numbered. None:
            from 0 in the opened group. "access": after the phony dimensions of its parent
            groups. "sort": as netCDF does, counting all dimensions of the file.
        decode_vlen_strings : bool
            False returns text of variable length as bytes.
        driver, driver_kwds
            File driver of HDF5, and keywords of `h5py.File` such as ``rdcc_nbytes``,
            ``page_buf_size``, ``libver``, ``swmr`` and ``locking``.
        storage_options, open_kwargs : dict, optional
            Options of the fsspec file system of a URL, and of its ``open`` method.

        Returns
        -------
        xarray.Dataset
            Variables that cannot be read are left out with an `UnreadableMemberWarning`.
        """
        location, top, options = _prepare(
            filename_or_obj,
            group,
            external=external,
            driver=driver,
            driver_kwds=driver_kwds,
            storage_options=storage_options,
            open_kwargs=open_kwargs,
            format=format,
            invalid_netcdf=invalid_netcdf,
            reader=reader,
            lock=lock,
            mask_and_scale=mask_and_scale,
            decode_times=decode_times,
            concat_characters=concat_characters,
            decode_coords=decode_coords,
            use_cftime=use_cftime,
            decode_timedelta=decode_timedelta,
            decode_vlen_strings=decode_vlen_strings,
        )
        with storage.raise_transport_errors(location):
            phony = _phony_names(location, top, phony_dims)
            return _open_group(location, top, options, drop_variables, phony)

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        phony_dims: str | None = None,
        **options: Any,
    ) -> dict[str, xr.Dataset]:
        """Open a group and all groups below it; options as in `open_dataset`.

        A group that several hard, soft or external links lead to is opened under each of its
        names. A name that leads back to a group above itself is left out.

        Returns
        -------
        dict of str to xarray.Dataset
            Datasets by path, each group before its subgroups. If ``group`` is given, paths are
            relative to it, and its own path is ".".
        """
        return self._open_tree(filename_or_obj, drop_variables, group, phony_dims, options)[0]

    def _open_tree(
        self,
        filename_or_obj: Any,
        drop_variables: str | Iterable[str] | None,
        group: str | None,
        phony_dims: str | None,
        options: dict[str, Any],
    ) -> tuple[dict[str, xr.Dataset], dict[str, Hashable], str]:
        """Return Datasets and groups by path, and the filename."""
        location, top, decoding = _prepare(filename_or_obj, group, **options)
        with storage.raise_transport_errors(location):
            phony = _phony_names(location, top, phony_dims)
            tree = _list_tree(location, top)
            open_all = functools.partial(
                _open_nodes, location, tree, top, decoding, drop_variables, relative=bool(group)
            )
            datasets, groups = open_all(phony)
            if phony.has_grown:
                # A dimension of a group above is longer in a group below it.
                again = _phony_names(location, top, phony_dims)
                again.lengths = phony.lengths
                datasets, groups = open_all(again)
        return datasets, groups, location.filename

    def open_datatree(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        phony_dims: str | None = None,
        **options: Any,
    ) -> xr.DataTree:
        """Open a group and all groups below it as a tree; see `open_groups_as_dict`."""
        from xref.engine.aligned_trees import build_tree  # opening one group does not need it

        opened = self._open_tree(filename_or_obj, drop_variables, group, phony_dims, options)
        return build_tree(*opened)

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return False: other engines open HDF5 files; this engine must be named."""
        return False


def _prepare(
    file: Any,
    group: str | None,
    *,
    external: str = "same-dir",
    driver: str | None = None,
    driver_kwds: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    open_kwargs: Mapping[str, Any] | None = None,
    format: str | None = None,
    invalid_netcdf: bool | None = None,
    reader: str = "auto",
    lock: Any = None,
    **decoding: Any,
) -> tuple[storage.FileLocation, str, DecodeOptions]:
    """Return the location of a file, the path of the group, and the options of decoding."""
    del invalid_netcdf  # any HDF5 file opens
    if reader not in READERS:
        raise ValueError(f"reader is {reader!r}; it can be one of {READERS}")
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; files of HDF5 are of one of {FORMATS}")
    source, base = storage.find_source(
        file,
        hdf5_options=dict(driver_kwds or {}) | ({"driver": driver} if driver else {}),
        storage_options=storage_options,
        open_kwargs=open_kwargs,
    )
    path = posixpath.normpath(posixpath.join("/", base, (group or "").strip("/")))
    # In xarray, lock=False means no lock.
    options = DecodeOptions(reader=reader, lock=lock or None, **decoding)
    return storage.locate_source(source, external), path, options


def _list_tree(location: storage.FileLocation, top: str) -> objects.Tree:
    """List the groups below a group by all names; warn of groups that are left out."""
    tree = objects.list_tree(location, top)
    for path, problem in tree.problems.items():
        warn_unreadable(f"{location.filename}: {path!r}", problem)
    if tree.left_out:
        warnings.warn(
            f"{location.filename}: groups of this file have many names. The tree has "
            f"{len(tree.nodes)} names of groups, each group at least once; {tree.left_out!r} "
            "and further names were left out. Open such a group by group=...",
            UnreadableMemberWarning,
            stacklevel=2,
        )
    return tree


def _open_nodes(
    location: storage.FileLocation,
    tree: objects.Tree,
    top: str,
    options: DecodeOptions,
    drop_variables: str | Iterable[str] | None,
    phony: PhonyNames,
    *,
    relative: bool,
) -> tuple[dict[str, xr.Dataset], dict[str, Hashable]]:
    """Open each group of a tree; their names are ``relative`` to the top."""
    datasets, groups = dict[str, xr.Dataset](), dict[str, Hashable]()
    shared = SharedObjects(tree.repeated)
    for node in tree.nodes:
        # Other engines also name them relative to the ``group`` argument.
        below = node.path.removeprefix(top.rstrip("/")).lstrip("/")
        name = (below or ".") if relative else f"/{below}"
        datasets[name] = _open_group(
            location, node.path, options, drop_variables, phony, node.group, shared
        )
        groups[name] = objects.object_key(node.group)
    return datasets, groups


def _phony_names(location: storage.FileLocation, path: str, mode: str | None) -> PhonyNames:
    """Return the counter of phony dimensions, after the groups that precede the path."""
    if mode not in PHONY_DIMS:
        raise ValueError(f"phony_dims is {mode!r}; it can be one of {PHONY_DIMS}")
    phony = PhonyNames(mode)
    if mode is None or path == "/":
        return phony
    for node in objects.list_tree(location, "/").nodes:
        if node.path == path:
            break
        if mode == "sort" or path.startswith(node.path.rstrip("/") + "/"):
            count_phony(location, node.path, objects.group_at(node.group), phony)
    return phony


def _open_group(
    location: storage.FileLocation,
    path: str,
    options: DecodeOptions,
    drop_variables: str | Iterable[str] | None,
    phony: PhonyNames,
    group: objects.StoredObject | None = None,
    shared: SharedObjects | None = None,
) -> xr.Dataset:
    drop = [drop_variables] if isinstance(drop_variables, str) else drop_variables or ()
    try:
        home = group or objects.open_group(location, path)
        members = open_members(location, path, options, drop, phony, home, shared)
        dataset = decode_dataset(*members, options)
        storage.check_unchanged(location)
    except BaseException:
        storage.close_file(location)
        raise
    stored = home if isinstance(home, objects.StoredObject) else home.stored
    opened = ObjectReference.to(stored.without_open_file(), options)
    dataset.encoding["source"] = SourceName.of(opened, location.filename)
    dataset.set_close(functools.partial(storage.close_file, location))
    return dataset
