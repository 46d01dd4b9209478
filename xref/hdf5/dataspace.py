"""Dataspace messages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from xref.errors import CorruptFileError
from xref.hdf5.metadata_reader import integer

MAX_RANK = 32
"""Dimensions that HDF5 allows."""


@dataclass(frozen=True, slots=True)
class Dataspace:
    """The extent of a dataset or attribute."""

    shape: tuple[int, ...]  # elements; () when scalar or null
    maxshape: tuple[int | None, ...]  # elements; None where unlimited
    is_null: bool  # no elements at all

    @property
    def size(self) -> int:
        """Number of elements."""
        return 0 if self.is_null else math.prod(self.shape)


def decode_dataspace(body: bytes, length_size: int, where: str) -> Dataspace:
    """Decode a dataspace message.

    Parameters
    ----------
    body : bytes
        Body of the message.
    length_size : {2, 4, 8}
        Size of lengths from the superblock, in bytes.
    where : str
        Begins each error: the file, and the object or attribute.

    Raises
    ------
    CorruptFileError
        If the bytes contradict the format.

    Notes
    -----
    HDF5 File Format Specification 4.0, "The Dataspace Message".

    Examples
    --------
    >>> decode_dataspace(bytes([2, 1, 0, 1, 3, 0]), 2, "f.h5")
    Dataspace(shape=(3,), maxshape=(3,), is_null=False)
    """
    version, rank, flags, kind = body[:4] if len(body) >= 4 else (0, 0, 0, 0)
    if version == 1:
        at, kind = 8, int(rank > 0)
    elif version == 2 and kind <= 2:
        at = 4
    else:
        raise CorruptFileError(
            f"{where}: a dataspace message begins with {bytes(body[:4])!r}, which is no known "
            "version and type"
        )
    has_max = flags & 1
    end = at + rank * length_size * (2 if has_max else 1)
    if rank > MAX_RANK or (kind != 1 and rank) or end > len(body):
        raise CorruptFileError(
            f"{where}: a dataspace message of type {kind} and {len(body)} bytes has {rank} "
            "dimensions"
        )
    if not rank:
        return Dataspace((), (), kind == 2)
    sizes = [integer(body, i, length_size) for i in range(at, end, length_size)]
    unlimited = (1 << 8 * length_size) - 1
    shape, most = tuple(sizes[:rank]), sizes[-rank:]
    if any(n > m for n, m in zip(shape, most, strict=True)):
        raise CorruptFileError(f"{where}: the shape {shape} is larger than the largest {most}")
    return Dataspace(shape, tuple(None if m == unlimited else m for m in most), False)
