"""One chunk's stored bytes into a window of an array.

In: the bytes of a chunk as they lie in the file, the filter pipeline of its dataset, the
chunk's filter mask. Out: the values, written into a window of a larger array. In steps:

1. Keep the filters that the mask does not skip; undo them from last to first
   (`xref.hdf5.filter_codecs` and `xref.hdf5.bit_packing` have one function for each).
2. Compare and cut off checksums. Give a decompressor exactly the room that its output must
   fill: a bomb cannot grow, and short output is an error.
3. Let the last step write into the window itself where it can: shuffle of the window's
   items always, any other filter if the window is contiguous. Otherwise copy its output.

`FilterPipeline.unsupported` names the filters that cannot be undone, so that the caller reads
the dataset through HDF5. Any number of threads may call these functions; the steps that take
time release the GIL.

How to add a filter: CONTRIBUTING.md, "Add a filter".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xref.arrays import scratch_buffer
from xref.errors import CorruptFileError, UnsupportedError
from xref.hdf5.bit_packing import (
    MOST_ADDED_NBYTES,
    N_BIT,
    SCALE_OFFSET,
    Bytes,
    Options,
    check_elements,
    undo_n_bit,
    undo_scale_offset,
)
from xref.hdf5.filter_codecs import (
    CHECKSUM_NBYTES,
    FRAME_HEADER,
    bitshuffle_codec,
    decode_with_library,
    has_codec,
    undo_bitshuffle,
    undo_blosc,
    undo_deflate,
    undo_fletcher32,
    undo_lz4,
    undo_shuffle,
    undo_szip,
    unshuffle,
)
from xref.hdf5.filter_names import filter_name

# (client values, stored bytes, output buffer of the decoded size) -> decoded bytes: the
# buffer, a part of it, or another array.
Undo: TypeAlias = Callable[[Options, Bytes, Bytes], Bytes]

# Filter identification values, as the Filter Pipeline message has them. Below 256 they are
# HDF5's own; others are registered with The HDF Group.
DEFLATE, SHUFFLE, FLETCHER32, SZIP = 1, 2, 3, 4
LZF, BLOSC, LZ4, BITSHUFFLE, ZSTD, BLOSC2 = 32000, 32001, 32004, 32008, 32015, 32026
PACKERS = (N_BIT, SCALE_OFFSET)
# Filters that `xref.hdf5.filter_codecs` knows: their names in a file are not shown.
KNOWN = frozenset(
    {DEFLATE, SHUFFLE, FLETCHER32, SZIP, *PACKERS, LZF, BLOSC, LZ4, BITSHUFFLE, ZSTD, BLOSC2}
)
# Filters whose stored bytes imagecodecs decodes as they are, without client values.
PLAIN_CODECS = {LZF: "lzf", ZSTD: "zstd"}
# Where the stored bytes say how many bytes the compressor was given.
SIZE_FIELDS = {
    SZIP: struct.Struct("<I"),
    BLOSC: struct.Struct("<4xI"),
    LZ4: FRAME_HEADER,
    BITSHUFFLE: FRAME_HEADER,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """One entry of an HDF5 filter pipeline."""

    id: int
    flags: int
    options: tuple[int, ...]
    name: str

    @property
    def label(self) -> str:
        """Name of the filter in messages; a name from the file is quoted."""
        is_quoted = self.name and self.id not in KNOWN
        name = repr(self.name[:40]) if is_quoted else filter_name(self.id)
        return f"filter {name} (id {self.id})"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterPipeline:
    """The filters of one dataset."""

    filters: tuple[Filter, ...]  # in the order of writing

    def unsupported(self) -> tuple[str, ...]:
        """Name the filters that `decode_chunk` cannot undo with the codecs installed.

        Returns
        -------
        tuple of str
            One entry for each such filter; empty if all can be undone.
        """
        return _unsupported(self.filters)

    @property
    def packers(self) -> tuple[str, ...]:
        """Names of the filters whose client values HDF5 does not check.

        Chunks with such filters are decoded here before HDF5 sees them.
        """
        return tuple(stage.label for stage in self.filters if stage.id in PACKERS)


def decode_chunk(
    data: bytes | memoryview,
    window: npt.NDArray[Any],
    pipeline: FilterPipeline,
    filter_mask: int = 0,
) -> None:
    """Undo the filters of one chunk and write its values into a window.

    Parameters
    ----------
    data : bytes-like
        The chunk as stored.
    window : numpy.ndarray
        A writable view with the shape of the whole chunk and the dtype of the
        file, of fixed size. The last axis is contiguous, the others may be
        strided. Its bytes are undefined after an error.
    pipeline : FilterPipeline
        The filters of the dataset.
    filter_mask : int
        Bit i is set if the i-th filter, in the order of writing, was skipped.

    Raises
    ------
    CorruptFileError
        If a filter fails, a checksum differs, or the output has not exactly the
        size of the window. The message names the filter, not the file.
    UnsupportedError
        If a filter cannot be undone; `FilterPipeline.unsupported` tells so beforehand.

    Notes
    -----
    HDF5 File Format Specification 4.0, "The Data Storage - Filter Pipeline
    Message" and "Version 1 B-trees", on the filter mask.
    """
    stages = [s for i, s in enumerate(pipeline.filters) if not filter_mask >> i & 1]
    if missing := _unsupported(stages):
        raise UnsupportedError(
            f"cannot undo {', '.join(missing)}; read the chunk through HDF5, "
            "or install imagecodecs if the filter is one that it decodes"
        )
    # As opaque items: NumPy copies them whole, with the padding between fields.
    items = window.view(f"V{window.itemsize}")
    flat = items.reshape(-1).view(np.uint8) if items.flags.c_contiguous else None
    stored: Bytes = np.frombuffer(data, np.uint8)
    given = _input_sizes(stages, window)
    slot = 0
    for index in reversed(range(len(stages))):
        stage = stages[index]
        nbytes, exact = given[index]
        if _keeps_size(stage):
            nbytes, exact = stored.size, True
        elif not exact and (stated := _stated_size(stage, stored)) is not None:
            if stated > nbytes:
                raise CorruptFileError(
                    f"{stage.label} announces {stated} bytes, chunk has at most {nbytes}"
                )
            nbytes, exact = stated, True
        fits = index == 0 and nbytes == items.nbytes
        if fits and stage.id == SHUFFLE and stage.options[0] == items.itemsize:
            unshuffle(stored, items)
            return
        if stage.id == FLETCHER32:
            out = stored[:-CHECKSUM_NBYTES]  # the checksum is compared; no byte moves
        elif fits and flat is not None:
            out = flat
        else:
            slot = 1 - slot  # two buffers in turns: this filter may read from the other one
            out = scratch_buffer(f"filter {slot}", nbytes)
        stored = _undo(stage, stored, out, exact=exact)
    if stored.size != items.nbytes:
        source = stages[0].label if stages else "a chunk without filters"
        raise CorruptFileError(f"{source} gave {stored.size} bytes, chunk needs {items.nbytes}")
    if stored is not flat:
        items[...] = stored.view(items.dtype).reshape(items.shape)


def _input_sizes(stages: Sequence[Filter], window: npt.NDArray[Any]) -> list[tuple[int, bool]]:
    """Return the bytes that each filter was given when writing, and whether that is exact.

    A size that is not exact is an upper bound. The size that a compressor wrote is stored
    nowhere, but a filter after a compressor gives as many bytes as it gets.
    """
    nbytes, exact = window.nbytes, True
    given = []
    for stage in stages:
        given.append((nbytes, exact))
        if stage.id == FLETCHER32:
            nbytes += CHECKSUM_NBYTES
        elif stage.id in PACKERS:
            try:
                check_elements(stage.id, stage.options, window.dtype, window.size)
            except ValueError as error:
                raise CorruptFileError(f"{stage.label}: {error}") from error
            nbytes, exact = nbytes + MOST_ADDED_NBYTES, False
    return given


def _stated_size(stage: Filter, stored: Bytes) -> int | None:
    """Return the bytes that the compressor was given; None if the stored bytes do not say."""
    form = SIZE_FIELDS.get(stage.id)
    if form is None:
        return None
    if stored.size < form.size:
        raise CorruptFileError(f"{stage.label} has only {stored.size} bytes")
    nbytes: int = form.unpack_from(stored.data)[0]
    return nbytes


def _undo(stage: Filter, stored: Bytes, out: Bytes, *, exact: bool) -> Bytes:
    """Undo one filter. ``out`` has the size of the result if ``exact``, else an upper bound."""
    undo = _find_undo(stage)
    if undo is None:
        raise UnsupportedError(f"cannot undo {stage.label}; read the chunk through HDF5")
    if not stored.size:  # codecs look at the first byte without a check
        raise CorruptFileError(f"{stage.label} has no bytes to decode")
    try:
        result = undo(stage.options, stored, out)
    except UnsupportedError:
        raise
    # imagecodecs has an error class for each codec, derived from RuntimeError.
    except (RuntimeError, ValueError, OverflowError, struct.error, zlib.error) as error:
        raise CorruptFileError(
            f"{stage.label} cannot decode {stored.size} bytes into {out.size}: {error}"
        ) from error
    if result.size > out.size or (exact and result.size != out.size):
        raise CorruptFileError(
            f"{stage.label} gave {result.size} bytes, chunk needs {out.size}"
        )
    return result


def _unsupported(filters: Sequence[Filter]) -> tuple[str, ...]:
    found = [stage.label for stage in filters if _find_undo(stage) is None]
    # The size between two compressors is stored nowhere, so a bomb would have no limit. Only
    # N-bit and scale-offset may come before a compressor: their output is at most
    # `MOST_ADDED_NBYTES` longer than the chunk.
    compressors = [stage for stage in filters if not _keeps_size(stage)]
    packed = [stage.id in PACKERS for stage in compressors[:2]]
    allowed = 2 if packed == [True, False] else 1
    over = compressors[0].label if compressors else ""
    return (*found, *(f"{stage.label} over {over}" for stage in compressors[allowed:]))


def _keeps_size(stage: Filter) -> bool:
    """Tell whether output and input have one length, apart from the bytes of a checksum."""
    if stage.id == BITSHUFFLE:
        return bitshuffle_codec(stage.options) == "bitshuffle"
    return stage.id in (SHUFFLE, FLETCHER32)


def _find_undo(stage: Filter) -> Undo | None:
    """Return the function that undoes a filter; None if there is none for its options."""
    match stage.id, stage.options:
        case 1, _:  # deflate
            return undo_deflate
        case 2, (item, *_) if item:  # shuffle
            return undo_shuffle
        case 3, _:  # fletcher32
            return undo_fletcher32
        case 4, (_, block, bits, line) if has_codec("szip"):  # szip
            # Values that HDF5 writes. Odd blocks make libaec before 1.1.6 write out of
            # bounds; a longer line would ask for memory out of proportion.
            known_block = block in range(2, 33, 2) and block <= line <= 4096
            known_bits = bits in range(1, 25) or bits in (32, 64)
            return undo_szip if known_block and known_bits else None
        # With any client values: wrong ones are an error of each chunk.
        case 5, _:  # N-bit
            return undo_n_bit
        case 6, _:  # scale-offset
            return undo_scale_offset
        case 32001, _ if has_codec("blosc"):
            return undo_blosc
        case 32004, _ if has_codec("lz4"):
            return undo_lz4
        case 32008, (_, _, item, *_) as options if item and has_codec("bitshuffle"):
            return undo_bitshuffle if has_codec(bitshuffle_codec(options)) else None
        case number, _ if (codec := PLAIN_CODECS.get(number)) and has_codec(codec):
            return lambda _, stored, out: decode_with_library(codec, stored, out)
    return None
