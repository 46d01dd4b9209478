"""The bytes of a file, wherever it is: paths, file objects, URLs.

In: a path, a URL or an open file. Out: a `FileLocation` that names one version of the file,
positional reads of it, and handles of h5py while there is room for them.
"""

from typing import TYPE_CHECKING

from xref.lazy_names import lazy_names

if TYPE_CHECKING:
    # fmt: off
    from xref.storage.external_files import check_external, is_same_file, locate_named
    from xref.storage.file_bytes import FileBytes, metadata_bytes, raise_transport_errors
    from xref.storage.handle_pools import check_descriptors, drop_all
    from xref.storage.inputs import URL, find_source
    from xref.storage.location import (
        FileLocation, cached_by_location, is_same_identity, without_open_file,
    )
    from xref.storage.open_files import (
        CheckedGroups, check_unchanged, close_file, close_files, locate_file, locate_source,
        open_file, set_metadata_reader,
    )
    from xref.storage.read_counts import count, count_reads
    from xref.storage.sources import Identity, LocalFile, UnreachableFile
        # fmt: on
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
