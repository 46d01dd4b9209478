"""Resolve HDF5 object and region references lazily, in xarray and dask."""

from importlib.metadata import PackageNotFoundError, version

import xref.array_functions  # noqa: F401, enters NumPy's functions
from xref.accessor import ReferenceAccessor
from xref.counts import count_reads
from xref.elements import AttributeReference, ObjectReference, RegionReference
from xref.errors import (
    CorruptFileError,
    DanglingReferenceError,
    FileChangedError,
    NullReferenceError,
    SelectionError,
    UnreadableMemberWarning,
    XrefError,
)
from xref.options import set_options
from xref.plain import from_table
from xref.references import ReferenceArray
from xref.writing import to_hdf5

try:
    __version__ = version("xref")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "AttributeReference",
    "CorruptFileError",
    "DanglingReferenceError",
    "FileChangedError",
    "NullReferenceError",
    "ObjectReference",
    "ReferenceAccessor",
    "ReferenceArray",
    "RegionReference",
    "SelectionError",
    "UnreadableMemberWarning",
    "XrefError",
    "count_reads",
    "from_table",
    "set_options",
    "to_hdf5",
]
