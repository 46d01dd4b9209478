"""One chunk's stored bytes into a window of an array.

In: the bytes of a chunk as they lie in the file, the filter pipeline of its
dataset, the chunk's filter mask. Out: the values, written into a window of a
larger array. In steps:

1. Keep the filters that the mask does not skip; undo them from last to first.
2. Compare and cut off checksums. Give a compressor exactly the room that its
   output must fill, so that a bomb cannot grow and short output is an error.
3. Let the last step write into the window itself where it can: an unshuffle of
   the window's items always, any other step if the window is contiguous.
   Otherwise copy its output there.

zlib and NumPy undo deflate, shuffle and Fletcher-32, and with `xref.hdf5.bit_packing` N-bit and
scale-offset, whose parameters are checked first. The optional `imagecodecs`
undoes deflate at twice the speed, and szip, LZF, Blosc, LZ4, Zstandard and
bitshuffle. `FilterPipeline.unsupported` names the rest, for the caller to read
through HDF5. Any number of threads may call these functions; the steps that
take time release the GIL.
"""

from __future__ import annotations

import functools
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xref.errors import CorruptFileError, UnsupportedError
from xref.hdf5.bit_packing import (
    MOST_ADDED_NBYTES,
    N_BIT,
    SCALE_OFFSET,
    check_elements,
    undo_n_bit,
    undo_scale_offset,
)

Bytes: TypeAlias = npt.NDArray[np.uint8]  # one axis, contiguous
Options: TypeAlias = tuple[int, ...]
# Takes a filter's options, what the filter wrote, and a buffer as long as what
# it was given. Returns the latter: the buffer, less of it, or another array.
Undo: TypeAlias = Callable[[Options, Bytes, Bytes], Bytes]

SHUFFLE = 2
FLETCHER32 = 3
SZIP = 4
BLOSC = 32001
LZ4 = 32004
BITSHUFFLE = 32008
PACKERS = (N_BIT, SCALE_OFFSET)
NAMES = {
    1: "deflate",
    SHUFFLE: "shuffle",
    FLETCHER32: "fletcher32",
    SZIP: "szip",
    N_BIT: "nbit",
    SCALE_OFFSET: "scaleoffset",
    32000: "lzf",
    BLOSC: "blosc",
    LZ4: "lz4",
    BITSHUFFLE: "bitshuffle",
    32015: "zstd",
    32026: "blosc2",
}
# Filters that imagecodecs undoes as they are.
PLAIN_CODECS = {32000: "lzf", 32015: "zstd"}
# What bitshuffle compresses with, by the fifth of its options.
BITSHUFFLE_CODECS = {0: "bitshuffle", 2: "lz4", 3: "zstd"}
LARGE_CODECS = ("bitshuffle", "deflate", "zstd")  # the others count in 32 bits
INT32_MAX = 2**31 - 1
CHECKSUM_NBYTES = 4
FLETCHER_COLUMNS = 1024  # words; sums over 256 are slower by a fifth
MAX_STORES = 64  # bytes of an item; for more of them one transposed copy is faster
FRAME_HEADER = struct.Struct(">QI")  # bytes of all blocks, of one
BLOCK_HEADER = struct.Struct(">I")  # bytes as stored
SIZE_FIELDS = {  # where compressors write how many bytes they were given
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
        """What messages call the filter; a name from the file is quoted."""
        return f"filter {NAMES.get(self.id) or repr(self.name[:40])} (id {self.id})"


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
        """Names of the filters whose parameters HDF5 believes, whatever they are.

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
        If a filter cannot be undone; `FilterPipeline.unsupported` tells before.

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
    # Opaque items are copied whole, padding between fields included.
    items = window.view(f"V{window.itemsize}")
    flat = items.reshape(-1).view(np.uint8) if items.flags.c_contiguous else None
    stored: Bytes = np.frombuffer(data, np.uint8)
    given = _sizes(stages, window)
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
            _unshuffle(stored, items)
            return
        if stage.id == FLETCHER32:
            out = stored[:-CHECKSUM_NBYTES]  # compared and left where it is
        elif fits and flat is not None:
            out = flat
        else:
            slot = 1 - slot  # the other buffer may hold what this stage reads
            out = _scratch(slot, nbytes)
        stored = _undo(stage, stored, out, exact=exact)
    if stored.size != items.nbytes:
        source = stages[0].label if stages else "a chunk without filters"
        raise CorruptFileError(f"{source} gave {stored.size} bytes, chunk needs {items.nbytes}")
    if stored is not flat:
        items[...] = stored.view(items.dtype).reshape(items.shape)


def _sizes(stages: Sequence[Filter], window: npt.NDArray[Any]) -> list[tuple[int, bool]]:
    """Return how many bytes each filter was given, and whether that is exact or the most.

    What a compressor wrote is written nowhere; filters over it keep the size.
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
    """Return how many bytes a compressor says that it was given; None if it does not."""
    form = SIZE_FIELDS.get(stage.id)
    if form is None:
        return None
    if stored.size < form.size:
        raise CorruptFileError(f"{stage.label} has only {stored.size} bytes")
    nbytes: int = form.unpack_from(stored.data)[0]
    return nbytes


_local = threading.local()

KEEP_NBYTES = 64 << 20
"""Largest buffer that a thread keeps for the next chunk."""


def _scratch(slot: int, nbytes: int) -> Bytes:
    """Return this thread's buffer of a slot: fresh memory costs as much as decoding."""
    buffers: dict[int, Bytes] = _local.__dict__.setdefault("buffers", {})
    buffer = buffers.get(slot)
    if buffer is None or len(buffer) < nbytes:
        buffer = np.empty(nbytes, np.uint8)
        if nbytes <= KEEP_NBYTES:
            buffers[slot] = buffer
    return buffer[:nbytes]


def _undo(stage: Filter, stored: Bytes, out: Bytes, *, exact: bool) -> Bytes:
    """Undo one filter into room for what it was given, or for the most that this can be."""
    undo = _find_undo(stage)
    if undo is None:
        raise UnsupportedError(f"cannot undo {stage.label}; read the chunk through HDF5")
    if not stored.size:  # codecs look at the first byte without asking
        raise CorruptFileError(f"{stage.label} has no bytes to decode")
    try:
        result = undo(stage.options, stored, out)
    except UnsupportedError:
        raise
    # imagecodecs derives its errors from RuntimeError, one class a codec.
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
    # The size between two compressors is written nowhere, so nothing would cap it. What a
    # packer writes first is never much longer than the chunk.
    compressors = [stage for stage in filters if not _keeps_size(stage)]
    packed = [stage.id in PACKERS for stage in compressors[:2]]
    allowed = 2 if packed == [True, False] else 1
    over = compressors[0].label if compressors else ""
    return (*found, *(f"{stage.label} over {over}" for stage in compressors[allowed:]))


def _keeps_size(stage: Filter) -> bool:
    """Tell if output and input are equally long, but for the bytes of a checksum."""
    if stage.id == BITSHUFFLE:
        return _bitshuffle_codec(stage.options) == "bitshuffle"
    return stage.id in (SHUFFLE, FLETCHER32)


def _find_undo(stage: Filter) -> Undo | None:
    """Find what undoes a filter here; None also if its options are not understood."""
    match stage.id, stage.options:
        case 1, _:
            return _undo_deflate
        case 2, (item, *_) if item:
            return _undo_shuffle
        case 3, _:
            return _undo_fletcher32
        case 4, (_, block, bits, line) if _has("szip"):
            # What HDF5 writes. Odd blocks make libaec before 1.1.6 write out of bounds,
            # and a longer line would ask for memory out of proportion.
            known_block = block in range(2, 33, 2) and block <= line <= 4096
            known_bits = bits in range(1, 25) or bits in (32, 64)
            return _undo_szip if known_block and known_bits else None
        # Whatever the options: wrong ones are an error of each chunk.
        case 5, _:
            return undo_n_bit
        case 6, _:
            return undo_scale_offset
        case 32001, _ if _has("blosc"):
            return _undo_blosc
        case 32004, _ if _has("lz4"):
            return _undo_lz4
        case 32008, (_, _, item, *_) as options if item and _has("bitshuffle"):
            return _undo_bitshuffle if _has(_bitshuffle_codec(options)) else None
        case number, _ if (codec := PLAIN_CODECS.get(number)) and _has(codec):
            return lambda _, stored, out: _decode(codec, stored, out)
    return None


@functools.cache
def _imagecodecs() -> Any:
    """Import imagecodecs, once; None without it."""
    try:
        import imagecodecs
    except ImportError:
        return None
    return imagecodecs


def _has(codec: str) -> bool:
    """Tell if imagecodecs is here and was built with a codec."""
    return bool(getattr(getattr(_imagecodecs(), codec.upper(), None), "available", False))


def _decode(codec: str, stored: Bytes, out: Bytes, **options: int) -> Bytes:
    """Decode with imagecodecs, without the GIL; the result is part of ``out``."""
    if max(stored.size, out.size) > INT32_MAX and codec not in LARGE_CODECS:
        raise UnsupportedError(
            f"{codec} cannot decode {stored.size} bytes into {out.size}, only below 2 GiB; "
            "read the chunk through HDF5"
        )
    result: Bytes = getattr(_imagecodecs(), f"{codec}_decode")(stored, out=out, **options)
    return result


def _undo_deflate(_: Options, stored: Bytes, out: Bytes) -> Bytes:
    if _has("deflate"):
        return _decode("deflate", stored, out)
    # `zlib.decompress` has no bound; this has, and is as fast. The byte in excess
    # lets it see the end of a stream that fills the output exactly.
    inflater = zlib.decompressobj()
    inflated = inflater.decompress(stored.data, out.size + 1)
    if len(inflated) <= out.size and not inflater.eof:
        raise ValueError(f"the stream is cut off after {len(inflated)} bytes of output")
    return np.frombuffer(inflated, np.uint8)


def _undo_shuffle(options: Options, stored: Bytes, out: Bytes) -> Bytes:
    item = options[0]
    whole = stored.size - stored.size % item
    if whole > item:
        _unshuffle(stored[:whole], out[:whole].view(f"V{item}"))
    else:
        out[:whole] = stored[:whole]  # of one item nothing moves
    out[whole:] = stored[whole:]
    return out


def _unshuffle(stored: Bytes, items: npt.NDArray[np.void]) -> None:
    """Write byte planes, lowest byte first, into items of any strides."""
    planes = stored.reshape(items.itemsize, *items.shape)
    if items.itemsize == 2:
        # Arithmetic beats two strided stores, but not four or eight.
        words = items.view("<u2")
        np.multiply(planes[1], np.uint16(256), out=words)
        np.add(words, planes[0], out=words)
        return
    columns = items[..., np.newaxis].view(np.uint8)
    if items.itemsize <= MAX_STORES:
        for index, plane in enumerate(planes):
            columns[..., index] = plane
    else:
        columns[...] = np.moveaxis(planes, 0, -1)


def _undo_fletcher32(_: Options, stored: Bytes, out: Bytes) -> Bytes:
    if stored.size < CHECKSUM_NBYTES:
        raise ValueError("the checksum is cut off")
    found = int.from_bytes(stored[-CHECKSUM_NBYTES:].tobytes(), "little")
    expected = _fletcher32(out)
    # HDF5 before 1.6.3 swapped the bytes of each half on little-endian machines.
    swapped = (expected & 0x00FF00FF) << 8 | expected >> 8 & 0x00FF00FF
    if found not in (expected, swapped):
        raise ValueError(f"checksum {found:#010x} does not match {expected:#010x} of the data")
    return out


def _fletcher32(data: Bytes) -> int:
    """Compute the sum of all 16-bit words and the sum of its partial sums, modulo 65535.

    Word i of n counts n - i times in the second sum. In a table of words i is
    linear in row and column, so the sums of rows and of columns give both.
    """
    n_rows = data.size // (2 * FLETCHER_COLUMNS)
    split = 2 * FLETCHER_COLUMNS * n_rows
    table = data[:split].view("<u2").reshape(n_rows, FLETCHER_COLUMNS)
    rest = data[split:].tobytes()
    tail = np.frombuffer(rest + bytes(len(rest) % 2), "<u2").astype(np.int64)
    rows = table.sum(axis=1, dtype=np.int64)
    columns = table.sum(axis=0, dtype=np.int64)
    total = int(rows.sum() + tail.sum())
    if total == 0:
        return 0
    positions = (
        FLETCHER_COLUMNS * int(np.arange(n_rows) @ (rows % 65535))  # below 2**63 up to 4 GiB
        + int(np.arange(columns.size) @ columns)
        + int(np.arange(table.size, table.size + tail.size) @ tail)
    )
    weighted = (table.size + tail.size) * total - positions
    # The words are big-endian but were read as little-endian: modulo 65535 a
    # multiplication by 256 swaps the bytes. HDF5 has 65535 where others have 0.
    low, high = ((256 * value - 1) % 65535 + 1 for value in (total, weighted))
    return high << 16 | low


def _undo_szip(options: Options, stored: Bytes, out: Bytes) -> Bytes:
    mask, block, bits, line = options
    (nbytes,) = struct.unpack_from("<I", stored.data)
    if nbytes != out.size:
        raise ValueError(f"the header announces {nbytes} bytes")
    # libaec stores 32 and 64 bits as byte planes, and pads lines to whole blocks.
    # It would undo both, but after a short stream returns what was in its
    # memory as values; without them it returns less.
    planes = bits // 8 if bits in (32, 64) else 1
    bits = 8 if planes > 1 else bits
    pixel_nbytes = 1 if bits <= 8 else 2 if bits <= 16 else 4
    line_nbytes = line * pixel_nbytes
    padded_line = -(-line // block) * block
    if padded_line == line:
        padded = out if planes == 1 else np.empty_like(out)
    else:
        n_lines = -(-out.size // line_nbytes)
        padded = np.empty(n_lines * padded_line * pixel_nbytes, np.uint8)
    decoded = _decode(
        "szip",
        stored[4:],
        padded,
        options_mask=mask,
        pixels_per_block=block,
        bits_per_pixel=bits,
        pixels_per_scanline=padded_line,
    )
    if decoded.size != padded.size:
        raise ValueError(f"the stream is cut off after {decoded.size} bytes of output")
    if padded_line != line:
        lines = decoded.reshape(-1, padded_line * pixel_nbytes)[:, :line_nbytes]
        decoded = lines.reshape(-1)[: out.size]
    return decoded if planes == 1 else _undo_shuffle((planes,), decoded, out)


def _undo_blosc(_: Options, stored: Bytes, out: Bytes) -> Bytes:
    # Blosc is not told how long its input is and trusts the header.
    nbytes, _, stored_nbytes = struct.unpack_from("<4x3I", stored.data)
    if stored_nbytes > stored.size:
        raise ValueError(f"the header announces {stored_nbytes} stored bytes")
    if nbytes != out.size:
        raise ValueError(f"the header announces {nbytes} bytes")
    return _decode("blosc", stored, out, numthreads=1)


def _undo_lz4(_: Options, stored: Bytes, out: Bytes) -> Bytes:
    _decode_blocks("lz4", stored, out, keeps_plain=True)
    return out


def _undo_bitshuffle(options: Options, stored: Bytes, out: Bytes) -> Bytes:
    item = options[2]
    if out.size % item:
        raise ValueError(f"items of {item} bytes do not fill the output")
    codec = _bitshuffle_codec(options)
    if codec == "bitshuffle":
        shuffled, block = stored, options[3] if len(options) > 3 else 0
    else:
        shuffled = np.empty_like(out)
        default = item * max(128, 8192 // item // 8 * 8)  # of the bitshuffle library
        step = _decode_blocks(codec, stored, shuffled, unit=8 * item, default=default)
        block = step // item
    opaque = f"V{item}"
    _decode("bitshuffle", shuffled.view(opaque), out.view(opaque), blocksize=block)
    return out


def _bitshuffle_codec(options: Options) -> str:
    return BITSHUFFLE_CODECS.get(options[4] if len(options) > 4 else 0, "")


def _decode_blocks(
    codec: str,
    stored: Bytes,
    out: Bytes,
    *,
    unit: int = 1,
    default: int = 0,
    keeps_plain: bool = False,
) -> int:
    """Decode the frame of the LZ4 filter and of bitshuffle, return the bytes of a block.

    A header says how many bytes all blocks and one block decode to (``default`` if
    zero). Before each block stands its stored size. Blocks hold whole units of
    bytes; what is left at the end is not compressed. With ``keeps_plain``, nor is a
    block that is stored in as many bytes as it decodes to.
    """
    nbytes, block_nbytes = FRAME_HEADER.unpack_from(stored.data)
    step: int = block_nbytes or default
    if nbytes != out.size or not step or step % unit:
        raise ValueError(f"the header announces {nbytes} bytes in blocks of {block_nbytes}")
    whole = nbytes - nbytes % unit
    end = FRAME_HEADER.size
    blocks = []  # what to decode, where to
    for start in range(0, whole, step):
        (stored_nbytes,) = BLOCK_HEADER.unpack_from(stored.data, end)
        begin = end + BLOCK_HEADER.size
        end = begin + stored_nbytes
        if not stored_nbytes or end > stored.size:
            raise ValueError(f"the block for byte {start} announces {stored_nbytes} bytes")
        blocks.append((stored[begin:end], out[start : min(start + step, whole)]))
    # One call for all blocks is two to three times as fast as one for each. It takes
    # blocks as long as their output for plain, and before imagecodecs 2025.8.2
    # relies on the sizes checked above.
    any_plain = any(source.size == target.size for source, target in blocks)
    if codec == "lz4" and whole == nbytes and block_nbytes and not any_plain:
        blocks = [(stored[:end], out)]
        # The frame is no block: as long as its output, it is compressed still.
        codec, keeps_plain = "lz4h5", False
    for source, target in blocks:
        if keeps_plain and source.size == target.size:
            target[:] = source
        elif _decode(codec, source, target).size != target.size:
            raise ValueError("a block is cut off")
    if end + nbytes - whole > stored.size:
        raise ValueError("what follows the last block is cut off")
    out[whole:] = stored[end : end + nbytes - whole]
    return step
