"""The engine ``h5ref`` of `xarray.open_dataset`."""

from __future__ import annotations

import functools
import os
import posixpath
from collections.abc import Iterable
from typing import Any, ClassVar

import xarray as xr
from xarray.backends import BackendEntrypoint

from xref.bind import decode_dataset
from xref.elements import DecodeOptions
from xref.h5file import FileLocation, close_file, locate_file
from xref.h5objects import Member, walk_groups
from xref.variables import PhonyNames, open_members, warn_unreadable

READERS = ("auto", "direct", "h5py")


class H5RefBackendEntrypoint(BackendEntrypoint):
    """Opens any HDF5 file; references become variables that resolve."""

    description: ClassVar[str] = "Open HDF5 files, their references included, with xref"
    open_dataset_parameters: ClassVar[Any] = (
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
    )
    supports_groups: ClassVar[bool] = True

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        mask_and_scale: bool = True,
        decode_times: Any = True,
        concat_characters: bool = True,
        decode_coords: bool | str = True,
        use_cftime: bool | None = None,
        decode_timedelta: Any = None,
        group: str | None = None,
        external: str = "same-dir",
        reader: str = "auto",
    ) -> xr.Dataset:
        """Open one group of an HDF5 file lazily.

        Parameters
        ----------
        filename_or_obj : str or os.PathLike
            A local file.
        drop_variables : str or iterable of str, optional
            Members to leave out.
        mask_and_scale, decode_times, concat_characters, decode_coords, use_cftime, \
decode_timedelta
            As in `xarray.open_dataset`; they hold for what references resolve to as
            well.
        group : str, optional
            Path of the group; the root by default.
        external : {"same-dir", "all", "none"}
            Which other files this one may name, in external links and virtual
            datasets: those in its own folder or below, any, or none. Raw data in
            external files are read with "all" only.
        reader : {"auto", "direct", "h5py"}
            "auto" reads chunks directly, outside HDF5's lock, wherever it can and
            through h5py otherwise. The others force one.

        Returns
        -------
        xarray.Dataset
            Members that cannot be read are left out with an
            `UnreadableMemberWarning`.
        """
        location = _locate(filename_or_obj, external)
        options = _options(
            mask_and_scale=mask_and_scale,
            decode_times=decode_times,
            concat_characters=concat_characters,
            decode_coords=decode_coords,
            use_cftime=use_cftime,
            decode_timedelta=decode_timedelta,
            reader=reader,
        )
        return _open_group(location, _group_path(group), options, drop_variables)

    def open_groups_as_dict(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        external: str = "same-dir",
        reader: str = "auto",
        **decoding: Any,
    ) -> dict[str, xr.Dataset]:
        """Open a group and all groups below it, each once; options as in `open_dataset`.

        Returns
        -------
        dict of str to xarray.Dataset
            By path, relative to ``group``.
        """
        location = _locate(filename_or_obj, external)
        options = _options(reader=reader, **decoding)
        top, phony = _group_path(group), PhonyNames()
        found = {}
        for path, member, links in walk_groups(location, top):
            if isinstance(links, Exception):
                warn_unreadable(f"{location.filename}: {path!r}", links)
                continue
            name = path.removeprefix(top.rstrip("/")) or "/"
            found[name] = _open_group(location, path, options, drop_variables, phony, member)
            phony = phony.following()
        return found

    def open_datatree(self, filename_or_obj: Any, **options: Any) -> xr.DataTree:
        """Open a group and all groups below it as a tree; see `open_dataset`."""
        return xr.DataTree.from_dict(self.open_groups_as_dict(filename_or_obj, **options))

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return False: HDF5 files have other engines, this one is asked for by name."""
        return False


def _locate(filename_or_obj: Any, external: str) -> FileLocation:
    if not isinstance(filename_or_obj, str | os.PathLike):
        raise TypeError(
            f"engine 'h5ref' opens local files by path, not {type(filename_or_obj).__name__}"
        )
    return locate_file(filename_or_obj, external)


def _options(*, reader: str, **options: Any) -> DecodeOptions:
    if reader not in READERS:
        raise ValueError(f"reader is {reader!r}; it can be one of {READERS}")
    return DecodeOptions(reader=reader, **options)


def _group_path(group: str | None) -> str:
    return posixpath.normpath(posixpath.join("/", group or "/"))


def _open_group(
    location: FileLocation,
    path: str,
    options: DecodeOptions,
    drop_variables: str | Iterable[str] | None,
    phony: PhonyNames | None = None,
    group: Member | None = None,
) -> xr.Dataset:
    drop = [drop_variables] if isinstance(drop_variables, str) else drop_variables or ()
    try:
        variables, attributes = open_members(location, path, options, drop, phony, group)
        dataset = decode_dataset(variables, attributes, options)
    except BaseException:
        close_file(location)
        raise
    dataset.encoding["source"] = location.filename
    dataset.set_close(functools.partial(close_file, location))
    return dataset
