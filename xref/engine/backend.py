"""The engine ``h5ref`` of `xarray.open_dataset`."""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import xarray as xr
from xarray.backends import BackendEntrypoint

from xref import storage
from xref.engine.attributes import warn_unreadable
from xref.engine.cf_variables import decode_dataset
from xref.engine.dimension_names import PHONY_DIMS, PhonyNames
from xref.engine.variables import count_phony, open_members
from xref.objects import LinkedObject, StoredObject, group_at, open_group, walk_groups
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
        """Open a group and all groups below it, each once; options as in `open_dataset`.

        Returns
        -------
        dict of str to xarray.Dataset
            Datasets by path, each group before its subgroups. If ``group`` is given, paths are
            relative to it, and its own path is ".".
        """
        location, top, decoding = _prepare(filename_or_obj, group, **options)
        with storage.raise_transport_errors(location):
            phony = _phony_names(location, top, phony_dims)
            groups = _list_groups(location, top)
            open_all = functools.partial(
                _open_groups, groups, top, decoding, drop_variables, relative=bool(group)
            )
            datasets = open_all(phony)
            if phony.has_grown:
                # A dimension of a group above is longer in a group below it.
                again = _phony_names(location, top, phony_dims)
                again.lengths = phony.lengths
                datasets = open_all(again)
        return datasets

    def open_datatree(self, filename_or_obj: Any, **options: Any) -> xr.DataTree:
        """Open a group and all groups below it as a tree; see `open_dataset`."""
        groups = self.open_groups_as_dict(filename_or_obj, **options)
        tree = xr.DataTree.from_dict(groups)
        for path, dataset in groups.items():
            tree[path].set_close(dataset._close)
        return tree

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


def _list_groups(location: storage.FileLocation, top: str) -> dict[str, StoredObject]:
    """Return a group and all groups below it by path."""
    groups = {}
    for path, group, links in walk_groups(location, top):
        if isinstance(links, Exception):
            warn_unreadable(f"{location.filename}: {path!r}", links)
        else:
            groups[path] = group.stored
    return groups


def _depth_first(paths: Iterable[str], top: str) -> Iterable[str]:
    """Sort paths so that each group is followed by all groups below it."""
    below: dict[str, list[str]] = {}
    for path in paths:
        below.setdefault(posixpath.dirname(path) if path != top else "", []).append(path)
    stack = below.get("", [])
    while stack:
        path = stack.pop()
        yield path
        stack += reversed(below.get(path, []))


def _open_groups(
    groups: dict[str, StoredObject],
    top: str,
    options: DecodeOptions,
    drop_variables: str | Iterable[str] | None,
    phony: PhonyNames,
    *,
    relative: bool,
) -> dict[str, xr.Dataset]:
    """Open each group; their names are ``relative`` to the top, as other engines name them."""
    datasets = {}
    for path in _depth_first(groups, top):
        below = path.removeprefix(top.rstrip("/")).lstrip("/")
        name = (below or ".") if relative else f"/{below}"
        home, member = groups[path].location, group_at(groups[path])
        datasets[name] = _open_group(home, path, options, drop_variables, phony, member)
    return datasets


def _phony_names(location: storage.FileLocation, path: str, mode: str | None) -> PhonyNames:
    """Return the counter of phony dimensions, after the groups that precede the path."""
    if mode not in PHONY_DIMS:
        raise ValueError(f"phony_dims is {mode!r}; it can be one of {PHONY_DIMS}")
    phony = PhonyNames(mode)
    if mode is None or path == "/":
        return phony
    groups = _list_groups(location, "/")
    for before in _depth_first(groups, "/"):
        if before == path:
            break
        if mode == "sort" or path.startswith(before.rstrip("/") + "/"):
            count_phony(groups[before].location, before, group_at(groups[before]), phony)
    return phony


def _open_group(
    location: storage.FileLocation,
    path: str,
    options: DecodeOptions,
    drop_variables: str | Iterable[str] | None,
    phony: PhonyNames,
    group: LinkedObject | None = None,
) -> xr.Dataset:
    drop = [drop_variables] if isinstance(drop_variables, str) else drop_variables or ()
    try:
        home = group or open_group(location, path)
        members = open_members(location, path, options, drop, phony, home)
        dataset = decode_dataset(*members, options)
        storage.check_unchanged(location)
    except BaseException:
        storage.close_file(location)
        raise
    opened = ObjectReference.to(home.stored.without_open_file(), options)
    dataset.encoding["source"] = SourceName.of(opened, location.filename)
    dataset.set_close(functools.partial(storage.close_file, location))
    return dataset
