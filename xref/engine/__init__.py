"""The xarray backend ``engine="h5ref"``: HDF5 groups as Datasets of lazy variables.

In: the arguments of ``xarray.open_dataset``. Out: Datasets whose variables are read when their
values are used, and the file, dataset and position that each element comes from.
"""

from typing import TYPE_CHECKING

from xref.lazy_names import lazy_names

if TYPE_CHECKING:
    # fmt: off
    from xref.engine.attributes import (
        attribute_references, plain_attributes, warn_unreadable, warn_unusable_scale,
    )
    from xref.engine.axis_positions import ElementOrigin, index_keys
    from xref.engine.cf_variables import decode_dataset, placeholder
    from xref.engine.decoding import (
        Decoders, Decoding, common_dtype, decode_variable, decoding_key, make_decoding,
        missing_of, options_by_name, options_of, with_items,
    )
    from xref.engine.dimension_names import free_name, numbered_names
    from xref.engine.dimension_scales import (
        choose_scales, label, numbered_addresses, scale_at, scale_name,
    )
    from xref.engine.lazy_arrays import (
        Axis, DatasetArray, LazyArray, index_outer, lazily_indexed, outer_indexed,
    )
    from xref.engine.origins import (
        find_masked, find_object, find_origin, group_of, is_in_place, known_origin,
        source_locations,
    )
    from xref.engine.variables import (
        ReferenceVariable, build_variable, open_members, reference_dataarray,
    )
    # fmt: on
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
