"""Files that another file names: links, virtual sources, external references.

In: the file that holds the name, and the name. Out: a path or a location, if the options
allow that file.
"""

from __future__ import annotations

import os

import h5py

from xref.errors import DanglingReferenceError, ExternalFileError
from xref.storage.location import FileLocation
from xref.storage.open_files import locate_file
from xref.storage.sources import UnreachableFile


def check_external(location: FileLocation, name: str, where: str) -> str:
    """Return the path of the file ``name``, if the file may point at it.

    Raises
    ------
    ExternalFileError
        If it may not, or if that is a device, a pipe or a folder.
    """
    folder = location.source.folder
    if folder is None:
        raise ExternalFileError(
            f"{where} names the file {name!r}, but {location.filename} has no folder that "
            "the name could count from"
        )
    target = os.path.realpath(os.path.join(folder, name))
    inside = os.path.commonpath([folder, target]) == folder
    if location.external == "all" or (location.external == "same-dir" and inside):
        if os.path.exists(target) and not os.path.isfile(target):
            raise ExternalFileError(f"{where} names {name!r}, which is no regular file")
        return target
    raise ExternalFileError(
        f'{where} names the file {name!r}, which external="{location.external}" does not '
        'allow; pass external="all" if this file is trusted'
    )


def locate_named(location: FileLocation, name: str, where: str) -> FileLocation:
    """Return the location of a file that a reference in another one names.

    HDF5 stores the name by which the writer had the file open. Here it counts from the
    folder of the file that holds the reference; where there is no such file, its last
    part is looked for in that folder, as HDF5 does for external links.

    Parameters
    ----------
    location : FileLocation
        The file that holds the reference.
    name : str
        As stored.
    where : str
        Names the reference in messages.

    Returns
    -------
    FileLocation
        ``location`` itself where the name leads back to it. One of an `UnreachableFile`
        where the file is not there or not allowed: other references are not the worse for it.
    """
    folder = location.source.folder
    try:
        there = folder is not None and os.path.lexists(os.path.join(folder, name))
        target = check_external(location, name if there else os.path.basename(name), where)
        if os.path.isfile(target) and not h5py.is_hdf5(target):
            raise DanglingReferenceError(f"{where} names {name!r}, which is no HDF5 file")
        found = locate_file(target, location.external)
    except (ExternalFileError, DanglingReferenceError) as error:
        return _unreachable(location, name, str(error), isinstance(error, ExternalFileError))
    except (OSError, ValueError) as error:
        problem = f"{where} names the file {name!r}, which cannot be opened: {error}"
        return _unreachable(location, name, problem, refused=False)
    return location if found.identity == location.identity else found


def _unreachable(
    location: FileLocation, name: str, problem: str, refused: bool
) -> FileLocation:
    source = UnreachableFile(name, problem, refused)
    return FileLocation(source, ("unreachable", name, 0, 0), location.external)
