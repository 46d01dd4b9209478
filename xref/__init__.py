"""Resolve HDF5 object and region references lazily, in xarray and dask."""

from importlib.metadata import PackageNotFoundError, version

import xref.references.array_functions  # noqa: F401, enters NumPy's functions
from xref.counters import count_reads
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
from xref.references.array import ReferenceArray
from xref.references.reference import AttributeReference, ObjectReference, RegionReference
from xref.resolving.accessor import ReferenceAccessor
from xref.resolving.reference_tables import from_table
from xref.writing.write_hdf5 import to_hdf5

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
