"""The filters undone one by one: shuffle, checksums, and what compressors wrote.

In: a filter's client values ("options"), the bytes that the filter wrote, and a buffer of as
many bytes as the filter was given. Out: those bytes, in the buffer or in another array; an
exception if the stored bytes do not give exactly that. `xref.hdf5.filters` words the errors.

`imagecodecs` is optional. Where it is installed, it undoes deflate and sums Fletcher-32
faster than zlib and NumPy do, and it is the only way to undo szip, LZF, Blosc, LZ4, Zstandard
and bitshuffle.
"""

from __future__ import annotations

import functools
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.errors import UnsupportedError
from xref.hdf5.bit_packing import Bytes, Options

BITSHUFFLE_CODECS = {0: "bitshuffle", 2: "lz4", 3: "zstd"}
"""The compressor behind bitshuffle, by client value 4; 0 is none."""

LARGE_CODECS = ("bitshuffle", "deflate", "zstd")  # the others count bytes in 32 bits
INT32_MAX = 2**31 - 1
CHECKSUM_NBYTES = 4
FLETCHER_COLUMNS = 1024  # 16-bit words in a row; sums over 256 are slower by a fifth
MAX_STORES = 64  # bytes of an item; above, one transposed copy is faster than a store a byte

# LZ4 and bitshuffle write all integers big-endian:
#   uint64 bytes of all blocks together, uint32 bytes of one block (both uncompressed),
#   then for each block: uint32 bytes as stored, the stored bytes.
FRAME_HEADER = struct.Struct(">QI")
BLOCK_HEADER = struct.Struct(">I")


@functools.cache
def codec_library() -> Any:
    """Import imagecodecs, once; return None if it is not installed."""
    try:
        import imagecodecs
    except ImportError:
        return None
    return imagecodecs


def has_codec(codec: str) -> bool:
    """Tell whether imagecodecs is installed and was built with a codec."""
    return bool(getattr(getattr(codec_library(), codec.upper(), None), "available", False))


def decode_with_library(codec: str, stored: Bytes, out: Bytes, **options: int) -> Bytes:
    """Decode with imagecodecs, without the GIL; return the part of ``out`` that it filled."""
    if max(stored.size, out.size) > INT32_MAX and codec not in LARGE_CODECS:
        raise UnsupportedError(
            f"{codec} cannot decode {stored.size} bytes into {out.size}, only below 2 GiB; "
            "read the chunk through HDF5"
        )
    result: Bytes = getattr(codec_library(), f"{codec}_decode")(stored, out=out, **options)
    return result


def undo_deflate(_: Options, stored: Bytes, out: Bytes) -> Bytes:
    """Inflate a zlib stream."""
    if has_codec("deflate"):
        return decode_with_library("deflate", stored, out)
    # A decompressor object, because `zlib.decompress` has no limit for its output; it is as
    # fast. One byte more than the output lets it see the end of a stream of the right size.
    inflater = zlib.decompressobj()
    inflated = inflater.decompress(stored.data, out.size + 1)
    if len(inflated) <= out.size and not inflater.eof:
        raise ValueError(f"the stream is cut off after {len(inflated)} bytes of output")
    return np.frombuffer(inflated, np.uint8)


def undo_shuffle(options: Options, stored: Bytes, out: Bytes) -> Bytes:
    """Undo shuffle; client value 0 is the bytes of an element."""
    item = options[0]
    # Bytes after the last whole element are stored unchanged, at the end.
    whole = stored.size - stored.size % item
    if whole > item:
        unshuffle(stored[:whole], out[:whole].view(f"V{item}"))
    else:
        out[:whole] = stored[:whole]  # the bytes of a single element do not move
    out[whole:] = stored[whole:]
    return out


def unshuffle(stored: Bytes, items: npt.NDArray[np.void]) -> None:
    """Write byte planes, the plane of the elements' first bytes first, into ``items``.

    Shuffle stores byte 0 of all elements, then byte 1 of all, and so on. ``items`` may have
    any strides.
    """
    planes = stored.reshape(items.itemsize, *items.shape)
    if items.itemsize == 2:
        # Arithmetic is faster than two strided stores, but not than four or eight.
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


def undo_fletcher32(_: Options, stored: Bytes, out: Bytes) -> Bytes:
    """Compare the checksum in the last four bytes; ``out`` holds the bytes before them."""
    if stored.size < CHECKSUM_NBYTES:
        raise ValueError("the checksum is cut off")
    found = int.from_bytes(stored[-CHECKSUM_NBYTES:].tobytes(), "little")
    expected = fletcher32(out)
    # HDF5 before 1.6.3 swapped the bytes of each half on little-endian machines.
    swapped = (expected & 0x00FF00FF) << 8 | expected >> 8 & 0x00FF00FF
    if found not in (expected, swapped):
        raise ValueError(f"checksum {found:#010x} does not match {expected:#010x} of the data")
    return out


def fletcher32(data: Bytes) -> int:
    """Return HDF5's Fletcher-32 checksum.

    For chunks of a few KiB imagecodecs takes a tenth of the time that NumPy takes; from
    100 KiB on both are equally fast.
    """
    if has_codec("h5checksum"):
        return int(codec_library().h5checksum_fletcher32(data))
    return sum_by_numpy(data)


def sum_by_numpy(data: Bytes) -> int:
    """Compute the sum of all 16-bit words and the sum of its partial sums, modulo 65535.

    Word i of n counts n - i times in the second sum. In a table of words i is linear in row
    and column, so the sums of rows and of columns give both.
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
    # HDF5 sums big-endian words, and these were read as little-endian: modulo 65535 a
    # multiplication by 256 swaps the bytes. HDF5 has 65535 where others have 0.
    low, high = ((256 * value - 1) % 65535 + 1 for value in (total, weighted))
    return high << 16 | low


def undo_szip(options: Options, stored: Bytes, out: Bytes) -> Bytes:
    """Undo szip.

    Client values: options mask, pixels per block, bits per pixel, pixels per scanline. The
    stored bytes begin with the size of the output (uint32, little-endian).
    """
    mask, block, bits, line = options
    (nbytes,) = struct.unpack_from("<I", stored.data)
    if nbytes != out.size:
        raise ValueError(f"the header announces {nbytes} bytes")
    # libaec stores pixels of 32 and 64 bits as byte planes, and pads lines to whole blocks.
    # It can undo both, but then fills the output of a short stream with bytes of its own
    # memory. Without them it returns fewer bytes, so both are undone here.
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
    decoded = decode_with_library(
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
    return decoded if planes == 1 else undo_shuffle((planes,), decoded, out)


def undo_blosc(_: Options, stored: Bytes, out: Bytes) -> Bytes:
    """Undo Blosc.

    The library gets no length of its input and trusts the header: uint8 version, uint8
    version of the compressor, uint8 flags, uint8 element size, uint32 uncompressed size,
    uint32 block size, uint32 stored size, all little-endian.
    """
    nbytes, _, stored_nbytes = struct.unpack_from("<4x3I", stored.data)
    if stored_nbytes > stored.size:
        raise ValueError(f"the header announces {stored_nbytes} stored bytes")
    if nbytes != out.size:
        raise ValueError(f"the header announces {nbytes} bytes")
    return decode_with_library("blosc", stored, out, numthreads=1)


def undo_lz4(_: Options, stored: Bytes, out: Bytes) -> Bytes:
    """Undo the LZ4 filter; a block as long as its output is stored uncompressed."""
    _decode_frame("lz4", stored, out, keeps_plain=True)
    return out


def undo_bitshuffle(options: Options, stored: Bytes, out: Bytes) -> Bytes:
    """Undo bitshuffle and the compressor that it writes with.

    Client values: major and minor version of the filter, bytes of an element, elements of a
    block (0: default), compressor (`BITSHUFFLE_CODECS`).
    """
    item = options[2]
    if out.size % item:
        raise ValueError(f"items of {item} bytes do not fill the output")
    codec = bitshuffle_codec(options)
    if codec == "bitshuffle":
        shuffled, block = stored, options[3] if len(options) > 3 else 0
    else:
        shuffled = np.empty_like(out)
        default = item * max(128, 8192 // item // 8 * 8)  # of the bitshuffle library
        step = _decode_frame(codec, stored, shuffled, unit=8 * item, default=default)
        block = step // item
    opaque = f"V{item}"
    decode_with_library("bitshuffle", shuffled.view(opaque), out.view(opaque), blocksize=block)
    return out


def bitshuffle_codec(options: Options) -> str:
    """Return the compressor behind bitshuffle; an empty name if it is unknown."""
    return BITSHUFFLE_CODECS.get(options[4] if len(options) > 4 else 0, "")


def _decode_frame(
    codec: str,
    stored: Bytes,
    out: Bytes,
    *,
    unit: int = 1,
    default: int = 0,
    keeps_plain: bool = False,
) -> int:
    """Decode the frame of the LZ4 filter or of bitshuffle; return the bytes of a block.

    ``codec`` compressed each block of ``stored``, a frame (see `FRAME_HEADER`); ``out`` has
    room for exactly what it decodes to. Blocks hold whole units of ``unit`` bytes; the rest of
    the output is stored after the last block, uncompressed. ``default`` is the bytes of a block
    whose header says 0. With ``keeps_plain``, a block stored in as many bytes as it decodes to
    is uncompressed.
    """
    nbytes, block_nbytes = FRAME_HEADER.unpack_from(stored.data)
    step: int = block_nbytes or default
    if nbytes != out.size or not step or step % unit:
        raise ValueError(f"the header announces {nbytes} bytes in blocks of {block_nbytes}")
    whole = nbytes - nbytes % unit
    end = FRAME_HEADER.size
    blocks = []  # (stored bytes, their part of the output)
    for start in range(0, whole, step):
        (stored_nbytes,) = BLOCK_HEADER.unpack_from(stored.data, end)
        begin = end + BLOCK_HEADER.size
        end = begin + stored_nbytes
        if not stored_nbytes or end > stored.size:
            raise ValueError(f"the block for byte {start} announces {stored_nbytes} bytes")
        blocks.append((stored[begin:end], out[start : min(start + step, whole)]))
    # The library decodes a whole LZ4 frame two to three times as fast as block by block. The
    # sizes are checked above nevertheless: the library checks them only since 2025.8.2. It
    # takes blocks as long as their output for uncompressed, as HDF5's LZ4 filter does and
    # bitshuffle does not.
    any_plain = any(source.size == target.size for source, target in blocks)
    if codec == "lz4" and whole == nbytes and block_nbytes and not any_plain:
        blocks = [(stored[:end], out)]
        # A frame as long as its output is compressed nevertheless.
        codec, keeps_plain = "lz4h5", False
    for source, target in blocks:
        if keeps_plain and source.size == target.size:
            target[:] = source
        elif decode_with_library(codec, source, target).size != target.size:
            raise ValueError("a block is cut off")
    if end + nbytes - whole > stored.size:
        raise ValueError("what follows the last block is cut off")
    out[whole:] = stored[end : end + nbytes - whole]
    return step
