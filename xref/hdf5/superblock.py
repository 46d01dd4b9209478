"""What decoders need to know of a file: the sizes in its superblock, its bytes and its name.

In: nothing; `xref.objects.parsing` makes these values of an open file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xref.arrays import RangeSource


@dataclass(frozen=True, slots=True)
class FileFormat:
    """Numbers from a file's superblock, in bytes."""

    offset_size: int
    length_size: int
    base_address: int
    file_nbytes: int


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file as the decoders of many objects see it."""

    source: RangeSource
    form: FileFormat
    filename: str  # names the file in errors
