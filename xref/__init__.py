"""Resolve HDF5 object and region references lazily, in xarray and dask."""

from typing import TYPE_CHECKING, Any

import xarray as xr

from xref.lazy_names import LazyClass, lazy_names

if TYPE_CHECKING:
    # fmt: off
    from xref.errors import (
        CorruptFileError, DanglingReferenceError, FileChangedError, NullReferenceError,
        SelectionError, UnreadableMemberWarning, XrefError,
    )
    from xref.options import set_options
    from xref.references import (
        AttributeReference, ObjectReference, ReferenceArray, RegionReference,
    )
    from xref.resolving import ReferenceAccessor, from_table
    from xref.storage import count_reads
    from xref.writing import to_hdf5

    __version__: str
else:
    _import_name, __dir__, __all__ = lazy_names(__name__)

    def __getattr__(name: str) -> Any:
        if name != "__version__":
            return _import_name(name)
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("xref")
        except PackageNotFoundError:  # a source tree that is not installed
            return "0+unknown"


_register = xr.register_dataarray_accessor("h5ref")  # type: ignore[no-untyped-call]
_register(LazyClass("xref.resolving", "ReferenceAccessor"))
_register = xr.register_dataset_accessor("h5ref")  # type: ignore[no-untyped-call]
_register(LazyClass("xref.resolving", "DatasetAccessor"))
