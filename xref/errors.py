"""Exceptions and warnings.

Each exception is an `XrefError` and also the matching builtin, so that callers
may catch either.
"""


class XrefError(Exception):
    """Base of all errors that xref raises on purpose."""


class CorruptFileError(XrefError, ValueError):
    """Bytes in the file contradict the HDF5 format or each other."""


class SelectionError(XrefError, IndexError):
    """A region does not fit its target: it leaves the extent or has another rank."""


class NullReferenceError(XrefError, ValueError):
    """A null reference was asked for what it points at."""


class DanglingReferenceError(XrefError, LookupError):
    """A reference points at no object of the file."""


class WrongTargetError(XrefError, TypeError):
    """A reference points at another kind of object than the operation works on."""


class UnsupportedError(XrefError, NotImplementedError):
    """A legal feature of HDF5 that xref does not read."""


class FileChangedError(XrefError, OSError):
    """The file is not the one that was opened: it was replaced or written to."""


class FileReadError(XrefError, OSError):
    """A read failed or came back short."""


class FileWriteError(XrefError, OSError):
    """A file could not be written completely; what was there before is still there.

    The arguments are those of `OSError`: error number, message, name of the file.
    """


class ExternalFileError(XrefError, PermissionError):
    """The file points at another file that the `external` option does not allow."""


class ResultTooLargeError(XrefError, MemoryError):
    """A result is out of proportion to the bytes that the file stores for it."""


class UnreadableMemberWarning(UserWarning):
    """A member or attribute could not be read and was left out."""
