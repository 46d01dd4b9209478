"""Hidden files beside the user's file: opened, locked, renamed and removed.

In: paths. Out: files of the operating system, without buffers. Errors name the user's file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO

from xref.errors import FileChangedError, FileWriteError, XrefError
from xref.writing.checked_file import write_error


def hidden_name(filename: str) -> str:
    """Return an unused path in the folder of a file."""
    folder, name = os.path.split(filename)
    return os.path.join(folder, f".{name[:50]}.{uuid.uuid4().hex[:8]}.part")


@contextmanager
def naming(filename: str) -> Iterator[None]:
    """Make errors of the operating system name the user's file."""
    try:
        yield
    except XrefError:
        raise
    except (PermissionError, BlockingIOError) as error:
        raise type(error)(error.errno, error.strerror, filename) from error
    except OSError as error:
        raise write_error(error, filename) from error


def open_unbuffered(path: str, flags: int = os.O_RDWR, mode: int = 0) -> FileIO:
    """Open a file without a buffer, with the flags of `os.open`."""
    return FileIO(path, "r+", opener=lambda name, _: os.open(name, flags | os.O_CLOEXEC, mode))


def create_hidden(path: str, mode: int) -> None:
    """Create a file that does not exist yet."""
    open_unbuffered(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode).close()


def try_lock(file: FileIO, operation: int) -> bool:
    """Lock a file without waiting; return False if another process has locked it.

    File systems without locks count as locked.
    """
    try:
        fcntl.flock(file.fileno(), operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
    return True


def is_at(file: FileIO, path: str) -> bool:
    """Tell whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def remove_if_there(path: str) -> None:
    """Remove a file, if it exists."""
    with suppress(FileNotFoundError):
        os.remove(path)


def remove_unused(path: str) -> None:
    """Remove a hidden file, and wait until no thread or process writes to it any more.

    After an interrupt, threads of a Dask scheduler finish the blocks that they have begun.
    Threads that begin later find no file.
    """
    try:
        file = open_unbuffered(path)
    except OSError:  # there is no file, or no permission to wait for it
        remove_if_there(path)
    else:
        with file:
            remove_if_there(path)
            with suppress(OSError):  # without locks no block was written
                fcntl.flock(file.fileno(), fcntl.LOCK_EX)


def copy_permissions(filename: str, file: FileIO) -> None:
    """Give an open file the owner, group, access rights and attributes of another file.

    If the owner cannot be set, the group keeps its rights only if the group can be set.
    """
    old, number = os.stat(filename), file.fileno()
    mode = old.st_mode & 0o777
    try:
        os.fchown(number, old.st_uid, old.st_gid)
    except PermissionError:
        try:
            os.fchown(number, -1, old.st_gid)
        except PermissionError:
            mode &= 0o707
    names: list[str] = []
    with suppress(OSError, AttributeError):  # not every system and file system has them
        names = os.listxattr(filename)
    for name in names:
        with suppress(OSError):  # some file systems and users cannot
            os.setxattr(number, name, os.getxattr(filename, name))
    os.fchmod(number, mode)


def replace_file(path: str, filename: str) -> None:
    """Rename a file to the name of another one; undo it if it does not reach the disk."""
    backup = f"{path}.old"
    existed = os.path.exists(filename)
    can_undo = not existed or _link(filename, backup)
    try:
        os.replace(path, filename)
        if can_undo:
            _sync_folder(filename)
    except BaseException as error:
        try:
            if existed and can_undo:
                os.replace(backup, filename)
            elif not existed:
                remove_if_there(filename)
        except OSError as undo_error:
            raise FileWriteError(
                undo_error.errno or errno.EIO,
                f"{undo_error.strerror}; the new file is there, but perhaps not after a power "
                "failure, and the old one could not be restored",
                filename,
            ) from error
        raise
    finally:
        remove_if_there(backup)


def rename_new(path: str, filename: str) -> None:
    """Rename a file to a name that no file has yet.

    Raises
    ------
    FileChangedError
        If there is a file of that name.
    """
    try:
        if not _link(path, filename):
            if os.path.exists(filename):
                raise FileExistsError
            os.rename(path, filename)
    except FileExistsError as error:
        raise FileChangedError(
            f"{filename} was created by another program meanwhile; nothing was appended to "
            "it; do it again"
        ) from error
    try:
        _sync_folder(filename)
    except BaseException:
        remove_if_there(filename)
        raise
    remove_if_there(path)


def _link(filename: str, other: str) -> bool:
    """Create a hard link; return False if the file system has none."""
    try:
        os.link(filename, other)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            return False
        raise
    return True


def _sync_folder(filename: str) -> None:
    folder = os.open(os.path.dirname(filename), os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        # Some file systems do not sync folders.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(folder)
