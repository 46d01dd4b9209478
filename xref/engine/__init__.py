"""The xarray backend ``engine="h5ref"``: groups into datasets of lazy variables.

In: what ``xarray.open_dataset`` was given. Out: datasets whose variables read when they are
used, and the origin of each element in its file.
"""

from typing import TYPE_CHECKING

from xref.lazy_names import lazy_names

if TYPE_CHECKING:
    from xref.engine.attributes import (
        HIDDEN_ATTRIBUTES,
        attribute_references,
        plain_attributes,
        warn_unreadable,
    )
    from xref.engine.axis_positions import ElementOrigin, index_keys
    from xref.engine.cf_variables import decode_dataset
    from xref.engine.decoding import (
        CF_ATTRIBUTES,
        Decoders,
        Decoding,
        common_dtype,
        decode_variable,
        decoding_key,
        make_decoding,
        missing_of,
        options_by_name,
        options_of,
        with_items,
    )
    from xref.engine.dimensions import NO_VARIABLE, label
    from xref.engine.lazy_arrays import (
        Axis,
        DatasetArray,
        LazyArray,
        index_outer,
        lazily_indexed,
        outer_indexed,
    )
    from xref.engine.origins import (
        find_masked,
        find_object,
        find_origin,
        group_of,
        is_in_place,
        known_origin,
        source_locations,
    )
    from xref.engine.variables import (
        ReferenceVariable,
        build_variable,
        open_members,
        reference_dataarray,
    )
else:
    __getattr__, __all__ = lazy_names(__name__)
