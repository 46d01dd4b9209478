"""Datasets and trees into an HDF5 file that is whole, or not there.

In: xarray objects. Out: a file.
"""

from typing import TYPE_CHECKING

from xref.lazy_names import lazy_names

if TYPE_CHECKING:
    from xref.writing.write_hdf5 import to_hdf5
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
