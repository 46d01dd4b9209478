"""Files that another file names in external links, virtual sources or references.

In: the file that contains the name, and the name. Out: a path or a location, if the option
``external`` allows it.
"""

from __future__ import annotations

import os

import h5py

from xref.errors import DanglingReferenceError, ExternalFileError, FileChangedError
from xref.storage.location import FileLocation, is_same_identity
from xref.storage.open_files import check_at_path, locate_file
from xref.storage.sources import UnreachableFile


def check_external(location: FileLocation, name: str, label: str) -> str:
    """Return the path of the file ``name``, if the file may refer to it.

    Raises
    ------
    ExternalFileError
        If it may not, or if the path is that of a device, a pipe or a folder.
    FileChangedError
        If the file that contains the name was moved or replaced: its folder is unknown then.
    """
    folder = location.source.folder
    if folder is None:
        raise ExternalFileError(
            f"{label} names the file {name!r}, but {location.filename} has no folder to "
            "which the name could be relative"
        )
    if location.source.outlives_its_path:
        check_at_path(location)
    target = os.path.realpath(os.path.join(folder, name))
    inside = os.path.commonpath([folder, target]) == folder
    if location.external == "all" or (location.external == "same-dir" and inside):
        if os.path.exists(target) and not os.path.isfile(target):
            raise ExternalFileError(f"{label} names {name!r}, which is not a regular file")
        return target
    raise ExternalFileError(
        f'{label} names the file {name!r}, which external="{location.external}" does not '
        'allow; pass external="all" if this file is trusted'
    )


def is_same_file(named: FileLocation, location: FileLocation) -> bool:
    """Tell whether a file that was found by a name is the file that contains the name."""
    same_device = named.identity[0] == location.identity[0]
    return same_device and is_same_identity(named.identity, location.identity)


def locate_named(location: FileLocation, name: str, label: str) -> FileLocation:
    """Return the location of a file that a reference in another file names.

    HDF5 stores the name with which the writer opened the file. Here the name is relative to
    the folder of the file that contains the reference. If there is no such file, the last
    part of the name is used in that folder, as HDF5 does for external links.

    Parameters
    ----------
    location : FileLocation
        The file that contains the reference.
    name : str
        The stored name.
    label : str
        Names the reference in errors.

    Returns
    -------
    FileLocation
        ``location`` itself if the name leads back to it. A location of an `UnreachableFile`
        if the file does not exist or is not allowed, so that other references stay usable.
    """
    folder = location.source.folder
    try:
        exists = folder is not None and os.path.lexists(os.path.join(folder, name))
        target = check_external(location, name if exists else os.path.basename(name), label)
        if os.path.isfile(target) and not h5py.is_hdf5(target):
            raise DanglingReferenceError(f"{label} names {name!r}, which is not an HDF5 file")
        named = locate_file(target, location.external, strict=location.source.strict)
    except FileChangedError:
        raise
    except (ExternalFileError, DanglingReferenceError) as error:
        problem, is_refused = str(error), isinstance(error, ExternalFileError)
    except (OSError, ValueError) as error:
        problem = f"{label} names the file {name!r}, which cannot be opened: {error}"
        is_refused = False
    else:
        return location if is_same_file(named, location) else named
    source = UnreachableFile(name, problem, is_refused)
    return FileLocation(source, ("unreachable", name, 0, 0), location.external)
