"""The sizes in a file's superblock, and a file as the decoders of many objects see it.

`xref.objects.parsing` makes these values from an open file.

Source: HDF5 File Format Specification 4.0, "Disk Format: Level 0A - Format Signature and
Superblock".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xref.arrays import RangeSource


@dataclass(frozen=True, slots=True)
class FileFormat:
    """Sizes of a file and of its fields, in bytes."""

    offset_size: int  # of addresses ("O" in the specification)
    length_size: int  # of lengths ("L")
    base_address: int  # byte of the file from which addresses count
    file_nbytes: int


@dataclass(frozen=True, slots=True)
class FileContent:
    """Bytes, sizes and name of a file."""

    source: RangeSource
    form: FileFormat
    filename: str  # names the file in errors
