"""The accessor ``.h5ref``: references into lazy results, tables and new references.

In: variables of references. Out: xarray objects over lazy or Dask arrays.
"""

from typing import TYPE_CHECKING

from xref.lazy_names import lazy_names

if TYPE_CHECKING:
    # fmt: off
    from xref.resolving.accessor import ReferenceAccessor
    from xref.resolving.dataset_accessor import DatasetAccessor
    from xref.resolving.compound_fields import (
        as_reference_array, collect_references, reference_members,
    )
    from xref.resolving.reference_tables import from_table
    from xref.resolving.resolve import resolve_attribute, resolve_object, resolve_region
    from xref.resolving.tables import describe_regions
    # fmt: on
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
