"""References: one, an array of them, and stored bytes into both.

In: elements of a reference dataset as stored. Out: `ReferenceArray`, and the objects that one
element gives.
"""

from typing import TYPE_CHECKING

from xref.lazy_names import lazy_names

if TYPE_CHECKING:
    # fmt: off
    from xref.references.array import ReferenceArray
    from xref.references.columns import KIND_NOUNS, ReferenceColumns
    from xref.references.decoding import decode_references
    from xref.references.loaders import tile_loader
    from xref.references.owners import ElementNames, Owner, box_of_shape
    from xref.references.reference import (
        DEFAULT_OPTIONS, AttributeReference, DecodeOptions, ObjectReference, Reference,
        RegionReference, SourceName, attribute_kind, opened_from,
    )
    from xref.references.stored import StoredReferences, read_box_of_stored
    from xref.references.targets import (
        TargetGroups, TargetRows, distinct_targets, split_targets, target_rows,
    )
    from xref.references.values import decode_elements, decode_values
    # fmt: on
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
