"""The HDF5 file format: bytes to values and back.

In: bytes of a file and the sizes in its superblock. Out: object headers, datatypes, chunk
indices, heap objects, selections, decoded chunks. Opens no file and never imports h5py.
"""

from typing import TYPE_CHECKING

from xref.lazy_names import lazy_names

if TYPE_CHECKING:
    # fmt: off
    from xref.hdf5.attribute import read_raw_attributes
    from xref.hdf5.bulk_boxes import decode_boxes
    from xref.hdf5.bulk_attributes import NO_ATTRIBUTES, OTHER_VALUE, OWN_ATTRIBUTES
    from xref.hdf5.bulk_datasets import DatasetTable, read_datasets, unknown_datasets
    from xref.hdf5.bulk_headers import FIRST_NBYTES, read_headers
    from xref.hdf5.bulk_heaps import (
        HeapBatch, HeapCollections, read_collections, read_heap_objects, read_sequences,
    )
    from xref.hdf5.chunk_index.bulk import ChunkColumns, read_chunks
    from xref.hdf5.chunk_index.index import parse_chunk_storage, read_listed_chunks
    from xref.hdf5.chunk_index.nodes import NodeReader
    from xref.hdf5.dataset_layout import (
        UNDEFINED_ADDRESS, ChunkIndex, DatasetLayout, build_chunk_index, check_extent,
        compact_data, element_dtype, fill_data, item_dtype, unfold_subarray,
    )
    from xref.hdf5.dataspace import MAX_RANK
    from xref.hdf5.datatype import Datatype, decode_datatype, reference_types, value_dtype
    from xref.hdf5.filter_names import filter_name, install_hint
    from xref.hdf5.filters import SHUFFLE, Filter, FilterPipeline, decode_chunk
    from xref.hdf5.layout_message import CHUNKED
    from xref.hdf5.links import LINK_TYPES, is_group, read_hard_links
    from xref.hdf5.metadata_reader import MetadataReader
    from xref.hdf5.object_header import (
        DATATYPE_MESSAGE, FILL_MESSAGE, FILTER_MESSAGE, LAYOUT_MESSAGE, OLD_FILL_MESSAGE,
        Message, filter_options, indexed_storage_k, read_messages, walk_messages,
    )
    from xref.hdf5.selection_decoding import decode_selections, split_heap_ids
    from xref.hdf5.selection_encoding import encode_regions
    from xref.hdf5.std_references import (
        REGION, StdElements, StdObjects, decode_std_objects, split_std_references, std_itemsize,
    )
    from xref.hdf5.superblock import FileContent, FileFormat, read_known_metadata
    from xref.hdf5.symbol_table import check_group
    from xref.hdf5.virtual_layout import (
        AllElements, Axis, ElementRuns, MappedSelection, RegularHyperslab, VirtualMapping,
        virtual_axis,
    )
    # fmt: on
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
