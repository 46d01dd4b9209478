"""A file as objects: groups, links, datasets and attributes, by their addresses.

In: a `FileLocation` and the address of an object header, together a `StoredObject`. Out:
layouts, chunk indices, attributes and paths.
"""

from typing import TYPE_CHECKING

from xref.lazy_names import lazy_names

if TYPE_CHECKING:
    # fmt: off
    from xref.objects.attributes import (
        AttachedScales, RawAttributeReferences, RawAttributeValue, attached_scales,
        has_attribute, read_attribute, read_attributes, reference_addresses,
    )
    from xref.objects.datasets import (
        DatasetMetadata, chunk_index, dataset_facts, dataset_kind, read_raw, read_stored_chunk,
        read_values, stored_nbytes, type_and_fill,
    )
    from xref.objects.layouts import (
        COMPACT, pipeline_of, read_compact, read_layout, used_filters,
    )
    from xref.objects.links import (
        LinkedObject, group_at, groups_along, is_hard_link, iterate_members, link_addresses,
        members_by_name, n_links, names_in_group, open_group, open_member, type_name,
    )
    from xref.objects.netcdf_names import (
        CF_ATTRIBUTES, COORDINATE_IDS, DIMENSION_ID, DIMENSION_LIST, FILL_ATTRIBUTES,
        HIDDEN_ATTRIBUTES, NAME_CLASH, NO_VARIABLE, NO_VARIABLE_OF_LENGTH, REFERENCE_LIST,
        SCALE_ATTRIBUTES,
    )
    from xref.objects.objects import (
        REFERENCE_BATCH, Object, cache_h5py_references, decode_name, kind_of, object_kind,
        object_kinds, open_dataset, open_object,
    )
    from xref.objects.parsing import dataset_table, file_content, file_format
    from xref.objects.paths import object_paths
    from xref.objects.stored_object import NamedDataset, StoredObject, cached_by_object
    from xref.objects.stored_types import reference_itemsize
    from xref.objects.trees import ObjectKey, Tree, TreeNode, list_tree, object_key
    from xref.objects.virtual_datasets import virtual_mappings
    # fmt: on
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
