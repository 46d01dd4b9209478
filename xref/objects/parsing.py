"""The bytes of a file, with the sizes of offsets and lengths that HDF5 decoders need.

In: a `FileLocation`. Out: a `MetadataReader` for the decoders of one object, or a `FileContent`
for the decoders of many objects.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xref import hdf5
from xref.storage import (
    FileLocation,
    UnreachableFile,
    cached_by_location,
    metadata_bytes,
    open_file,
    set_metadata_reader,
)

set_metadata_reader(hdf5.read_known_metadata)


def byte_source(location: FileLocation, where: object) -> hdf5.MetadataReader:
    """Return a reader of metadata; ``where`` names the object in errors."""
    form, file = file_format(location), metadata_bytes(location)

    def read(address: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        file.read_into(form.base_address + address, memoryview(buffer))
        return bytes(buffer)

    return hdf5.MetadataReader(
        read, form.offset_size, form.length_size, form.file_nbytes - form.base_address, where
    )


@cached_by_location(maxsize=1024)
def file_format(location: FileLocation) -> hdf5.FileFormat:
    """Return the sizes of offsets and lengths, the base address and the size of a file."""
    properties = open_file(location).id.get_create_plist()
    offset_size, length_size = properties.get_sizes()
    return hdf5.FileFormat(
        offset_size, length_size, properties.get_userblock(), location.identity[2]
    )


def file_content(location: FileLocation) -> hdf5.FileContent:
    """Return the file's bytes and sizes for the decoders of many objects."""
    return hdf5.FileContent(metadata_bytes(location), file_format(location), location.filename)


def dataset_table(location: FileLocation, address: npt.NDArray[np.uint64]) -> hdf5.DatasetTable:
    """Read the headers of many objects of one file; see `read_datasets`.

    All rows are unknown for a file that is open for writing, because only HDF5 knows its
    current content, and for a file that cannot be opened.
    """
    if location.source.open_for_writing or isinstance(location.source, UnreachableFile):
        return hdf5.unknown_datasets(len(address))
    return hdf5.read_datasets(file_content(location), address)
