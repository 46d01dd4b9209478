"""Exceptions and warnings.

Each exception is an `XrefError` and also the matching builtin, so that callers
may catch either. `naming` adds the file, the variable and the element to the text of an error
where they are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

E = TypeVar("E", bound=Exception)


class XrefError(Exception):
    """Base class of all errors of xref."""


class CorruptFileError(XrefError, ValueError):
    """Bytes in the file contradict the HDF5 format or each other."""


class SelectionError(XrefError, IndexError):
    """A region does not fit its target: it exceeds the extent or has another rank."""


class NullReferenceError(XrefError, ValueError):
    """A null reference has no target."""


class DanglingReferenceError(XrefError, LookupError):
    """A reference points at an address or a file where no object is."""


class WrongTargetError(XrefError, TypeError):
    """A reference points at a kind of object that the operation does not accept."""


class UnsupportedError(XrefError, NotImplementedError):
    """The file has a valid feature of HDF5 that xref does not read."""


class FileChangedError(XrefError, OSError):
    """The file was replaced or changed since it was opened."""


class FileReadError(XrefError, OSError):
    """A read failed or returned too few bytes."""


class FileWriteError(XrefError, OSError):
    """A file could not be written completely; an earlier file is unchanged.

    The arguments are those of `OSError`: error number, message, filename.
    """


class ExternalFileError(XrefError, PermissionError):
    """The file refers to another file that the option ``external`` does not allow."""


class ResultTooLargeError(XrefError, MemoryError):
    """A result is much larger than the bytes that the file stores for it."""


class UnreadableMemberWarning(UserWarning):
    """A member or an attribute could not be read and was left out."""


@contextmanager
def naming(
    describe: Callable[[], str], *others: type[ValueError | TypeError | KeyError]
) -> Iterator[None]:
    """Begin the text of errors of xref, and of types ``others``, with a name.

    ``describe`` returns the name; it is called only if there is an error. The error keeps its
    type. Errors about a whole file, which name it, stay as they are.
    """
    try:
        yield
    except (FileChangedError, FileWriteError):
        raise
    except (XrefError, *others) as error:
        if not isinstance(error, XrefError) and type(error) not in others:
            raise  # a class of another package, which may need other arguments
        raise located(error, describe()) from error


def located(error: E, where: str) -> E:
    """Return an error of the same type whose text begins with ``where``.

    A filename with which both ``where`` and the text begin is written once. Errors about bytes
    of the file name ``where`` at the end.
    """
    # The text of a KeyError is that of its argument in quotes.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    filename, colon, inner = where.partition(": ")
    if where in text:
        return error
    if isinstance(error, FileReadError):  # about bytes of the file
        same = colon and text.startswith(f"{filename}: ")
        return type(error)(f"{text}; needed for {inner if same else where}")
    text = text.removeprefix(f"{filename}: ") if colon else text
    return type(error)(f"{where}: {text}")
