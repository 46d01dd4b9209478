# ruff: noqa: E501, names of tests and sites are not broken into lines
"""The ``raise`` sites that the table of `error_cases` does not fire, each with a reason.

`raise_sites` describes the names of sites.
"""

from __future__ import annotations

_BY_REASON: dict[str, str] = {
    "The caller passes only what it has checked or made itself.": """
        arrays/byte_ranges:CachedRanges.read_into:LookupError#1
        engine/axis_positions:_positions:TypeError#1
        engine/lazy_arrays:_axis_segments:IndexError#1
        engine/origins:known_origin:TypeError#1
        reading/chunk_checks:_read_nothing:UnsupportedError#1
        reading/execute:ContiguousLoader.read_run:ValueError#1
        references/array:ReferenceArray.columns:TypeError#1
        references/stored:read_box_of_stored:UnsupportedError#1
        resolving/create:_regions_of_boxes:TypeError#1
        resolving/create:group_reference:ValueError#1
        resolving/dask_graph:ReadLayer._shuffle:TypeError#1
        storage/file_bytes:FileBytes.fetch.begin:TypeError#1
        storage/transport:RemotePath.ask:RuntimeError#1
        writing/dask_blocks:BlockTarget._encode:TypeError#1
        writing/dask_blocks:no_references:TypeError#1
        writing/memory_layout:_ElementType.type_id:TypeError#1
        hdf5/bulk_heaps:_split_sequences:CorruptFileError#1
        hdf5/selection_decoding:split_heap_ids:CorruptFileError#1
        hdf5/selection_decoding:split_heap_ids:UnsupportedError#1
        hdf5/std_references:split_std_references:CorruptFileError#1
        references/values:_ElementDecoder.values:UnsupportedError#1
    """,
    "Dask catches it: a mapping has no such key.": """
        resolving/dask_graph:ReadLayer.__getitem__:KeyError#1
    """,
    "The package catches it, and HDF5 lists or reads the data instead.": """
        hdf5/chunk_index/arrays:_Array.__init__:UnsupportedError#1
        hdf5/chunk_index/arrays:read_extensible_array:UnsupportedError#1
        hdf5/chunk_index/btrees:_read_v2_header:UnsupportedError#1
        hdf5/chunk_index/index:parse_chunk_storage:UnsupportedError#1
        hdf5/chunk_index/index:parse_chunk_storage:UnsupportedError#2
        hdf5/object_header:indexed_storage_k:UnsupportedError#1
        hdf5/filters:_undo:UnsupportedError#1
        hdf5/filter_codecs:decode_with_library:UnsupportedError#1
    """,
    "RemotePath.retry catches it; `FileReadError` with the URL follows.": """
        storage/transport:_check_answer:_BadAnswer#3
        storage/transport:_check_answer:_BadAnswer#4
        storage/transport:_check_answer:_BadAnswer#5
        storage/transport:_check_answer:_BadAnswer#6
    """,
    "HDF5 of this release refuses such bytes when it opens the object; others may not.": """
        hdf5/dataset_layout:check_extent:CorruptFileError#1
        hdf5/dataset_layout:check_extent:UnsupportedError#1
        hdf5/dataset_layout:fill_data:CorruptFileError#1
        hdf5/dataset_layout:fill_data:UnsupportedError#1
        hdf5/datatype:value_dtype:UnsupportedError#1
        hdf5/datatype:value_dtype:UnsupportedError#2
        hdf5/object_header:filter_options:CorruptFileError#1
        objects/layouts:_contiguous_offset:CorruptFileError#1
        objects/layouts:_contiguous_offset:CorruptFileError#2
        objects/layouts:_read_pipeline:CorruptFileError#1
        objects/layouts:_storage_nbytes:CorruptFileError#1
        objects/layouts:read_compact:CorruptFileError#1
        objects/layouts:stored_fill:CorruptFileError#1
        objects/layouts:stored_type:CorruptFileError#1
        objects/links:follow_link:UnsupportedError#2
        objects/objects:open_object:DanglingReferenceError#3
        objects/virtual_datasets:_mapped_selection:UnsupportedError#1
        objects/virtual_datasets:virtual_mappings:CorruptFileError#1
        objects/datasets:_chunk_offsets_skip_userblock:UnsupportedError#1
        references/stored:StoredReader.__call__:CorruptFileError#1
    """,
    (
        "Only damaged bytes lead here; test_damaged reads such files in other processes, "
        "where no site is recorded."
    ): """
        hdf5/attribute:split_message:CorruptFileError#1
        hdf5/bit_packing:_check_room:ValueError#1
        hdf5/bit_packing:_decode_type:UnsupportedError#2
        hdf5/dataset_layout:build_chunk_index:CorruptFileError#1
        hdf5/dataset_layout:build_chunk_index:CorruptFileError#3
        hdf5/datatype:decode_datatype:computed#1
        hdf5/filter_codecs:_decode_frame:ValueError#3
        hdf5/filters:_stated_size:CorruptFileError#1
        hdf5/filters:decode_chunk:CorruptFileError#1
        hdf5/global_heap:walk_collections:CorruptFileError#2
        objects/attributes:read_attribute:FileReadError#1
        objects/datasets:_iterate_index:CorruptFileError#2
        objects/datasets:_read_unconverted:_read_error#1
        objects/datasets:read_raw:UnsupportedError#1
        objects/datasets:read_stored_chunk:CorruptFileError#1
        objects/datasets:read_stored_chunk:_read_error#1
        objects/links:_walk:OSError#1
        reading/chunk_checks:StoredChunkCheck.check:located#1
        reading/chunk_checks:chunk_check:UnsupportedError#1
        reading/execute:ChunkLoader.check:located#1
        reading/execute:ChunkLoader.check:located#2
        reading/execute:ChunkLoader.load:located#1
        references/values:_ElementDecoder.texts:ResultTooLargeError#1
        storage/file_bytes:FileBytes._read:FileReadError#1
        storage/file_bytes:FileBytes._read:FileReadError#2
    """,
    (
        "A file, a server, the disk or another program changes at one moment; tests of "
        "faults run it in other processes."
    ): """
        resolving/shuffle:Shuffle.require_plan:RuntimeError#1
        storage/file_bytes:FileBytes._read_one_version:FileReadError#1
        storage/handle_pools:Reopenable._open:_exhausted#1
        storage/handle_pools:check_descriptors:_exhausted#1
        storage/file_bytes:FileBytes._read_one_version:FileReadError#2
        storage/open_files:_Handles._read_metadata:_changes_again#1
        storage/open_files:_open_hdf5:FileChangedError#1
        storage/open_files:_open_hdf5:FileChangedError#2
        storage/open_files:_open_version:_changes_again#1
        storage/open_files:_read_known.read:FileReadError#1
        storage/file_bytes:FileBytes._read_one_version:FileReadError#2
        storage/open_files:_open_version:_changes_again#1
        storage/open_files:_Handles._read_metadata:_changes_again#1
        storage/remote:RemoteBytes._check_inside:FileReadError#1
        storage/sources:SeekableView.readinto:FileReadError#1
        storage/transport:RangeReader._check_version:FileChangedError#1
        storage/transport:RangeReader._read_range:FileChangedError#1
        storage/transport:_check_answer:FileNotFoundError#1
        storage/transport:read_version:FileReadError#1
        writing/append_lock:_wait:BlockingIOError#1
        writing/checked_file:Overlay.__init__:OSError#1
        writing/checked_file:Overlay.commit:FileWriteError#1
        writing/checked_file:copy_bytes:OSError#1
        writing/checked_file:write_at:OSError#1
        writing/dask_blocks:BlockTarget._dataset:FileChangedError#1
        writing/datasets:_store_in_heap:OSError#1
        writing/drafts:_open_draft:FileWriteError#1
        writing/drafts:_open_exclusively:FileWriteError#1
        writing/hidden_files:naming:computed#1
        writing/hidden_files:rename_new:FileChangedError#1
        writing/hidden_files:replace_file:FileWriteError#1
    """,
    "It needs a value that is costly to make.": """
        selections/unions:row_runs:ResultTooLargeError#2
        storage/transport:RemotePath.__init__:ValueError#1
    """,
}

NOT_FROM_PUBLIC_API = {
    site: reason for reason, sites in _BY_REASON.items() for site in sites.split()
}
"""Sites that no call of a user fires, or only by chance, with the reason."""

_BY_TEST: dict[str, str] = {
    "tests/reading/test_unwritten.py::test_nothing_is_read_where_no_value_is_defined": """
        reading/execute:UndefinedLoader.load:FileReadError#1
    """,
    "tests/hdf5/test_cache_image.py::test_an_image_of_a_later_version_is_unsupported": """
        hdf5/cache_image:_read_block:UnsupportedError#1
        hdf5/cache_image:_read_block:UnsupportedError#2
    """,
    "tests/storage/test_harmless_events.py::test_a_file_without_permission_is_read_while_it_is_open": """
        storage/open_files:open_file:_not_reopened#1
    """,
    "tests/arrays/test_conversion.py::test_what_a_type_does_not_hold_is_an_error": """
        arrays/conversion:_convert_members:ValueError#1
        arrays/conversion:convert:ValueError#1
    """,
    "tests/engine/test_backend.py::test_dropped_variables_are_not_read": """
        objects/layouts:_element_type:UnsupportedError#1
    """,
    "tests/hdf5/chunk_index/test_bulk.py::test_a_damaged_chunk_is_named": """
        reading/chunked_datasets:_decode_run:CorruptFileError#1
    """,
    "tests/hdf5/chunk_index/test_index.py::test_an_index_of_an_unknown_version_is_left_to_hdf5": """
        objects/datasets:_iterate_index:CorruptFileError#1
    """,
    "tests/hdf5/chunk_index/test_index.py::test_chunks_of_a_file_that_is_being_written_are_listed_by_hdf5": """
        objects/datasets:_iterate_index:UnsupportedError#1
    """,
    "tests/hdf5/test_attribute.py::test_a_damaged_attribute_does_not_hide_the_others": """
        hdf5/datatype:_DatatypeDecoder.decode:UnsupportedError#2
    """,
    "tests/hdf5/test_attribute.py::test_attribute_data_shorter_than_its_shape_raises": """
        hdf5/attribute:_decode:CorruptFileError#1
    """,
    "tests/hdf5/test_attribute.py::test_damaged_attributes_raise_xref_errors_or_decode": """
        hdf5/attribute:split_message:CorruptFileError#2
        hdf5/attribute:split_message:UnsupportedError#1
    """,
    "tests/hdf5/test_bit_packing.py::test_large_compounds_with_n_bit_are_not_read": """
        hdf5/bit_packing:_decode_type:UnsupportedError#1
    """,
    "tests/hdf5/test_bit_packing.py::test_n_bit_refuses_a_stream_that_is_too_short": """
        hdf5/filters:_undo:CorruptFileError#3
    """,
    "tests/hdf5/test_bit_packing.py::test_n_bit_refuses_parameters": """
        hdf5/bit_packing:_decode_bits:ValueError#1
        hdf5/bit_packing:_decode_bits:ValueError#2
        hdf5/bit_packing:_decode_bits:ValueError#3
        hdf5/bit_packing:_decode_bits:ValueError#4
        hdf5/bit_packing:_decode_bits:ValueError#5
        hdf5/bit_packing:_decode_type:ValueError#1
        hdf5/bit_packing:_decode_type:ValueError#2
        hdf5/bit_packing:_refuse_size:ValueError#1
        hdf5/bit_packing:_take:ValueError#1
        hdf5/bit_packing:_take_atomic:ValueError#1
    """,
    "tests/hdf5/test_bit_packing.py::test_other_compressors_over_scale_offset": """
        hdf5/filter_codecs:_decode_frame:ValueError#2
    """,
    "tests/hdf5/test_bit_packing.py::test_scale_offset_refuses_chunks": """
        hdf5/bit_packing:_stream:ValueError#1
        hdf5/bit_packing:undo_scale_offset:ValueError#2
        hdf5/filters:_undo:CorruptFileError#1
    """,
    "tests/hdf5/test_bit_packing.py::test_scale_offset_refuses_parameters": """
        hdf5/bit_packing:_decode_scale:ValueError#1
        hdf5/bit_packing:_decode_scale:ValueError#2
        hdf5/bit_packing:check_elements:ValueError#1
        hdf5/bit_packing:check_elements:ValueError#2
        hdf5/filters:_input_sizes:CorruptFileError#1
    """,
    "tests/hdf5/test_bulk_boxes.py::test_two_objects_with_one_number_are_decoded_object_by_object": """
        hdf5/global_heap:HeapObjects.from_columns:CorruptFileError#1
    """,
    "tests/hdf5/test_datatype.py::test_a_contradictory_datatype_raises_with_the_fault": """
        hdf5/datatype:_DatatypeDecoder.fail:CorruptFileError#1
        hdf5/datatype:_DatatypeDecoder.unpack:CorruptFileError#1
    """,
    "tests/hdf5/test_datatype.py::test_a_damaged_dataspace_raises_with_the_fault": """
        hdf5/dataspace:decode_dataspace:CorruptFileError#1
        hdf5/dataspace:decode_dataspace:CorruptFileError#2
        hdf5/dataspace:decode_dataspace:CorruptFileError#3
    """,
    "tests/hdf5/test_datatype.py::test_unknown_classes_and_versions_raise_unsupported_error": """
        hdf5/datatype:_DatatypeDecoder.decode:UnsupportedError#1
        hdf5/datatype:_DatatypeDecoder.decode_enum:UnsupportedError#1
        hdf5/datatype:_DatatypeDecoder.decode_reference:UnsupportedError#1
    """,
    "tests/hdf5/test_filters.py::test_a_deflate_stream_without_its_last_byte_raises": """
        hdf5/filter_codecs:undo_deflate:ValueError#1
    """,
    "tests/hdf5/test_filters.py::test_a_truncated_chunk_raises": """
        hdf5/filter_codecs:_decode_frame:ValueError#4
        hdf5/filter_codecs:undo_bitshuffle:ValueError#1
        hdf5/filter_codecs:undo_blosc:ValueError#1
        hdf5/filter_codecs:undo_szip:ValueError#2
    """,
    "tests/hdf5/test_filters.py::test_filters_out_of_reach_are_named": """
        hdf5/filters:decode_chunk:UnsupportedError#1
    """,
    "tests/hdf5/test_filters.py::test_output_of_another_size_raises": """
        hdf5/filter_codecs:_decode_frame:ValueError#1
        hdf5/filter_codecs:undo_blosc:ValueError#2
    """,
    "tests/hdf5/test_fractal_heap.py::test_a_damaged_heap_raises_with_the_fault": """
        hdf5/fractal_heap:FractalHeap.__init__:UnsupportedError#1
    """,
    "tests/hdf5/test_global_heap.py::test_an_object_past_the_end_of_its_collection_is_refused": """
        hdf5/global_heap:walk_collections:CorruptFileError#1
    """,
    "tests/hdf5/test_object_header.py::test_a_damaged_layout_message_raises_with_the_fault": """
        hdf5/dataset_layout:compact_data:CorruptFileError#1
        hdf5/dataset_layout:compact_data:CorruptFileError#2
        hdf5/dataset_layout:compact_data:UnsupportedError#1
    """,
    "tests/hdf5/test_selection_decoding.py::test_errors_name_the_row_and_the_reason": """
        hdf5/selection_decoding:_decode_group:CorruptFileError#1
        hdf5/selection_decoding:_decode_points:CorruptFileError#1
        hdf5/selection_decoding:_read_numbers:CorruptFileError#1
    """,
    "tests/objects/test_links.py::test_devices_are_refused_as_raw_storage": """
        objects/layouts:_check_raw_external:ExternalFileError#2
    """,
    "tests/reading/test_plan.py::test_a_grid_past_62_bits_is_refused": """
        reading/plan:plan_read:UnsupportedError#1
    """,
    "tests/reading/test_virtual_sources.py::test_circles_of_virtual_datasets_are_refused": """
        reading/virtual_sources:split_virtual:_too_deep#1
    """,
    "tests/reading/test_virtual_sources.py::test_hdf5_does_not_search_the_working_folder": """
        reading/virtual_sources:_check_not_elsewhere:ExternalFileError#1
    """,
    "tests/reading/test_virtual_sources.py::test_impossible_axes_of_mappings_are_refused": """
        hdf5/virtual_layout:virtual_axis:CorruptFileError#1
    """,
    "tests/reading/test_virtual_sources.py::test_sources_of_another_type_are_refused": """
        references/stored:_read_part:UnsupportedError#1
    """,
    "tests/references/test_std_references.py::test_a_file_that_is_gone_leaves_the_other_references": """
        storage/sources:UnreachableFile._fail:computed#1
    """,
    "tests/references/test_std_references.py::test_a_pipe_or_another_format_is_no_target": """
        storage/external_files:check_external:ExternalFileError#2
        storage/external_files:locate_named:DanglingReferenceError#1
    """,
    "tests/references/test_std_references.py::test_sizes_that_differ_from_the_heap_are_refused": """
        references/decoding:_decode_std_batch:CorruptFileError#1
    """,
    "tests/references/test_values.py::test_members_without_a_numpy_type_are_left_out": """
        hdf5/datatype:_members_dtype:UnsupportedError#1
    """,
    "tests/references/test_values.py::test_virtual_elements_of_another_type_raise": """
        references/stored:read_box_of_stored:UnsupportedError#2
    """,
    "tests/resolving/test_each_target.py::test_numbers_and_other_kinds_of_values_are_not_joined": """
        resolving/region_functions:_statistic_dtype:TypeError#3
    """,
    "tests/resolving/test_element_coords.py::test_a_coordinate_that_does_not_fit_is_left_out_with_a_warning": """
        resolving/element_coords:_check_extents:SelectionError#1
        resolving/element_coords:_check_extents:SelectionError#2
        resolving/element_coords:_check_extents:UnsupportedError#1
    """,
    "tests/resolving/test_element_coords.py::test_coordinates_with_too_many_elements_are_an_error_that_names_the_option": """
        resolving/element_sources:CoordinateValues._stored_elements:ResultTooLargeError#1
    """,
    "tests/selections/test_values.py::test_a_union_of_too_many_rows_is_refused_before_they_are_made": """
        selections/unions:row_runs:ResultTooLargeError#1
    """,
    "tests/storage/test_inputs.py::test_unflushed_values_of_an_open_file_are_read": """
        references/stored:stored_loader:UnsupportedError#1
    """,
    "tests/storage/test_location.py::test_a_file_that_changed_after_opening_raises": """
        storage/open_files:check_at_path:_not_reopened#1
    """,
    "tests/storage/test_remote.py::test_changed_files_in_memory_are_detected": """
        storage/transport:RangeReader._check_version:changed#1
    """,
    "tests/storage/test_remote.py::test_refused_access_raises_instead_of_leaving_out_members": """
        storage/transport:RangeReader._read_range:FileReadError#1
    """,
    "tests/storage/test_servers.py::test_a_changed_etag_raises_or_gives_the_old_values": """
        storage/transport:_check_answer:changed#1
    """,
    "tests/storage/test_servers.py::test_a_failed_request_is_retried": """
        storage/transport:_check_length:FileReadError#1
    """,
    "tests/storage/test_servers.py::test_a_request_that_always_fails_raises": """
        storage/transport:RemotePath.retry:FileReadError#1
    """,
    "tests/storage/test_servers.py::test_a_server_without_range_requests_is_named_in_the_error": """
        storage/transport:_check_answer:_BadAnswer#2
    """,
    "tests/storage/test_servers.py::test_opening_from_a_server_that_never_answers_raises": """
        storage/transport:RemotePath._ask_info:_BadAnswer#1
    """,
    "tests/storage/test_servers.py::test_the_retry_after_header_is_respected": """
        storage/transport:_check_answer:_BadAnswer#1
    """,
    "tests/storage/test_servers.py::test_without_tags_the_size_tells_versions_apart": """
        storage/transport:_check_answer:changed#2
    """,
    "tests/storage/test_version.py::test_a_file_that_changes_during_a_read_gives_no_mixed_values": """
        objects/datasets:read_values:_read_error#1
    """,
    "tests/storage/test_version.py::test_a_file_that_this_process_writes_is_read_through_hdf5": """
        storage/open_files:open_file:FileChangedError#1
    """,
    "tests/writing/test_appending.py::test_references_of_an_earlier_file_version_are_refused_everywhere": """
        writing/translate_references:ReferenceTranslator.is_appended_file:FileChangedError#1
    """,
    "tests/writing/test_write_faults.py::test_a_failing_system_call_leaves_the_old_file": """
        writing/checked_file:CheckedFile.check:write_error#1
        writing/hidden_files:naming:write_error#1
    """,
    "tests/writing/test_write_faults.py::test_appending_to_a_file_changed_by_others_raises": """
        writing/drafts:AppendDraft._check:FileChangedError#1
    """,
}

HELD_ELSEWHERE = {site: test for test, sites in _BY_TEST.items() for site in sites.split()}
"""Sites that another test fires, with the name of the test."""
