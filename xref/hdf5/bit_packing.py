"""The filters N-bit and scale-offset: elements out of their significant bits.

In: the client values of a filter, the bytes that it wrote, room for the chunk. Out: the
chunk's elements. In steps:

1. Check the client values, which describe the datatype of the elements a second time. HDF5
   does not check them, and reads and writes outside its memory if they do not fit the chunk.
2. Both filters store the significant bits of all elements as one stream without gaps: the
   most significant bit of an element first, the highest bit of a byte first. Check that the
   stream is as long as the elements need.
3. Build the elements in NumPy: integers with shifts, eight elements at a time, which always
   begin at a whole byte; compounds bit by bit.

Scale-offset then adds the smallest value of the chunk. All errors are `ValueError`;
`xref.hdf5.filters` adds the name of the filter.

Notes
-----
The HDF5 File Format Specification 4.0 names the two filters in "The Data Storage - Filter
Pipeline Message" without their client values. The layouts here are those that HDF5 writes.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from xref.arrays import IntArray
from xref.errors import UnsupportedError

Bytes: TypeAlias = npt.NDArray[np.uint8]  # one axis, contiguous
Options: TypeAlias = tuple[int, ...]

N_BIT, SCALE_OFFSET = 5, 6

MOST_ADDED_NBYTES = 22
"""Most bytes by which a packed chunk is longer than its elements: the header and one more."""

_STEP = 1 << 15  # elements of one step, whose bytes stay in the processor's cache
_STEP_BITS = 1 << 21  # of compounds; a step has one byte for each bit in memory

_LITTLE, _BIG = 0, 1  # byte orders, as both filters number them

# Scale-offset. Client values: scale type, scale factor, elements of a chunk, class, size, sign,
# byte order, whether a fill value is defined, the fill value (four bytes in each).
_N_SCALE_VALUES = 20
_DECIMAL_SCALE, _INTEGER_SCALE = 0, 2
_INTEGER_CLASS, _FLOAT_CLASS = 0, 1
_FILL_AT = 8
_HEADER_NBYTES = 21  # bits of an element (4), bytes of the smallest value (1), the value (16)

# N-bit. Client values are described in `_decode_bits`; these are its classes of types.
_ATOMIC, _ARRAY, _COMPOUND, _PLAIN = 1, 2, 3, 4
_MAX_DEPTH = 32  # of types within types
_MAX_COMPOUND_NBYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class _Scale:
    """Client values of scale-offset, decoded."""

    n: int  # elements of a chunk
    size: int  # bytes of an element
    is_float: bool
    is_signed: bool
    order: str  # "<" or ">"
    fill: int | None  # bits of the fill value
    factor: int  # of floats: decimal digits; of integers: bits of an element


@dataclass(frozen=True, slots=True)
class _Integers:
    """N-bit: elements, or items of arrays, of 1, 2, 4 or 8 bytes."""

    size: int
    order: str
    precision: int  # stored bits
    offset: int  # bits below the stored ones


@dataclass(frozen=True, slots=True, eq=False)
class _Records:
    """N-bit: all other elements, such as compounds."""

    size: int
    place: IntArray  # (stored bits,), bit of the element; 0 is the highest of the first byte


@dataclass(frozen=True, slots=True, eq=False)
class _Bits:
    """Client values of N-bit, decoded."""

    n: int  # elements of a chunk
    size: int  # bytes of an element; 0 if the values do not have it
    items: _Integers | _Records | None  # None: chunks are stored unpacked
    order: str = ""  # "<" or ">" of elements that are numbers, else empty


def check_elements(number: int, options: Options, dtype: np.dtype[Any], n: int) -> None:
    """Check that a filter's client values describe the elements of its dataset.

    ``number`` is the filter identification value, 5 or 6; ``dtype`` is of kind "V" if NumPy has
    no type for the elements; a chunk has ``n`` elements. Raises ValueError if HDF5 does not
    write such values, or if they describe other elements.
    """
    values = _decode_scale(options) if number == SCALE_OFFSET else _decode_bits(options)
    if values.n != n or values.size not in (0, dtype.itemsize):
        raise ValueError(
            f"its parameters are for {values.n} elements of {values.size} bytes, a chunk has "
            f"{n} of {dtype.itemsize}"
        )
    wrong = ""
    if dtype.kind in "iuf":
        stored_order = ">" if dtype.str[0] == ">" else "<"
        if dtype.itemsize > 1 and values.order not in ("", stored_order):
            wrong = "byte order"
        elif isinstance(values, _Scale) and values.is_float != (dtype.kind == "f"):
            wrong = "class"
        elif isinstance(values, _Scale) and values.is_signed != (dtype.kind == "i"):
            wrong = "" if values.is_float else "sign"
    if wrong:
        raise ValueError(f"its parameters have another {wrong} than elements of {dtype}")


def undo_scale_offset(options: Options, stored: Bytes, out: Bytes) -> Bytes:
    """Undo scale-offset; return ``out``, or ``stored`` if the filter did not pack the chunk.

    ``options`` are the client values, ``stored`` the bytes that the filter wrote; ``out`` has
    room for exactly the elements of the chunk. Raises ValueError if the values, the stored
    bytes and the room do not fit each other.
    """
    scale = _decode_scale(options)
    _check_room(scale.n, scale.size, out)
    if not scale.is_float and scale.factor == 8 * scale.size:
        return stored
    if stored.size < _HEADER_NBYTES:
        raise ValueError(f"its header of {_HEADER_NBYTES} bytes is cut off")
    # uint32 bits of an element, uint8 bytes of the smallest value, the smallest value of the
    # chunk (16 bytes, little-endian), the stream.
    head = stored[:_HEADER_NBYTES].tobytes()
    n_bits = int.from_bytes(head[:4], "little")
    least = int.from_bytes(head[5 : 5 + min(head[4], 8)], "little")
    if n_bits > 8 * scale.size:
        raise ValueError(f"its header gives {n_bits} bits to elements of {scale.size} bytes")
    packed = _stream(stored[_HEADER_NBYTES:], scale.n * n_bits)
    result = out.view(f"{scale.order}u{scale.size}")
    if n_bits == 8 * scale.size:  # neither scaled nor packed, in the order of the machine
        result[...] = packed.view(f"<u{scale.size}")
        return out
    values = np.empty(scale.n, dtype=f"u{scale.size}")
    _unpack_integers(packed, n_bits, values)
    top = (1 << 8 * scale.size) - 1
    # If a fill value is defined, elements of all ones stand for it.
    unset = None if scale.fill is None else values == (1 << n_bits) - 1
    if scale.is_float:
        values = _scale_floats(values, scale, least & top)
    else:
        values += values.dtype.type(least & top)  # modulo the range of the type, as in HDF5
    if unset is not None and scale.fill is not None:
        values[unset] = scale.fill & top
    result[...] = values
    return out


def undo_n_bit(options: Options, stored: Bytes, out: Bytes) -> Bytes:
    """Undo N-bit; parameters, result and errors are as of `undo_scale_offset`."""
    bits = _decode_bits(options)
    if bits.items is None:
        return stored
    _check_room(bits.n, bits.size, out)
    items, n = bits.items, out.size // bits.items.size
    if isinstance(items, _Records):
        packed = _stream(stored, n * len(items.place))
        _unpack_records(packed, items, out.reshape(n, items.size))
        return out
    packed = _stream(stored, n * items.precision)
    result = out.view(f"{items.order}u{items.size}")
    _unpack_integers(packed, items.precision, result)
    if items.offset:
        result <<= result.dtype.type(items.offset)
    return out


def _check_room(n: int, size: int, out: Bytes) -> None:
    if n * size != out.size:
        raise ValueError(f"its parameters are for {n} elements of {size} bytes")


def _stream(stored: Bytes, n_bits: int) -> Bytes:
    """Cut off what follows the stream; HDF5 may write a byte more."""
    needed = -(-n_bits // 8)
    if stored.size < needed:
        raise ValueError(f"its elements take {needed} bytes, {stored.size} are stored")
    return stored[:needed]


def _decode_scale(options: Options) -> _Scale:
    if len(options) != _N_SCALE_VALUES:
        raise ValueError(f"it has {len(options)} parameters instead of {_N_SCALE_VALUES}")
    kind, factor, n, class_, size, sign, order, has_fill = options[:_FILL_AT]
    is_float = class_ == _FLOAT_CLASS
    # No release of HDF5 has scale type 1, scaling by powers of two.
    good = class_ in (_INTEGER_CLASS, _FLOAT_CLASS)
    good &= kind == (_DECIMAL_SCALE if is_float else _INTEGER_SCALE)
    good &= size in ((4, 8) if is_float else (1, 2, 4, 8))
    good &= sign in (0, 1) and order in (_LITTLE, _BIG) and has_fill in (0, 1)
    factor -= (factor >= 1 << 31) << 32  # a signed number of 32 bits
    good &= is_float or factor <= 8 * size
    if not good:
        raise ValueError(f"its parameters {options[:_FILL_AT]} are none that HDF5 writes")
    return _Scale(
        n=n,
        size=size,
        is_float=is_float,
        is_signed=sign == 1,
        order="<>"[order],
        fill=options[_FILL_AT] | options[_FILL_AT + 1] << 32 if has_fill else None,
        factor=factor,
    )


def _scale_floats(values: npt.NDArray[Any], scale: _Scale, least: int) -> npt.NDArray[Any]:
    """Return the bits of ``smallest + values / 10**factor`` as floats."""
    kind = np.dtype(f"f{scale.size}")
    smallest = np.array(least, dtype=values.dtype).view(kind)
    try:
        power = math.pow(10.0, scale.factor)
    except OverflowError:
        power = math.inf
    # As in C: too large becomes infinite, too small becomes zero, without an error.
    with np.errstate(all="ignore"):
        floats = values.view(f"i{scale.size}").astype(kind)
        floats /= kind.type(power)
        floats += smallest
    return floats.view(values.dtype)


@functools.lru_cache(maxsize=32)
def _decode_bits(options: Options) -> _Bits:
    """Decode the client values of N-bit.

    They are: the number of client values, whether chunks are stored unpacked, the elements of
    a chunk, and the tree of types. A type is a class followed by

    - atomic: size, byte order, precision, offset;
    - array: size, the type of an item;
    - compound: size, number of members, then for each the offset and the type;
    - any other: size.
    """
    if len(options) < 3 or options[0] != len(options):
        stated = options[0] if options else "no"
        raise ValueError(f"it has {len(options)} parameters, which say {stated} parameters")
    n = options[2]
    if options[1]:
        return _Bits(n, 0, None)
    class_, size = _take(options, 3, 2)
    at, depth = 4, 0
    if not size:
        raise ValueError("its elements have no bytes")
    # The items of an array are stored as if each were an element.
    item_size = size
    while class_ == _ARRAY:
        whole, class_ = _take(options, at, 2)
        at, depth = at + 2, depth + 1
        (item_size,) = _take(options, at, 1)
        if not item_size or whole % item_size or depth > _MAX_DEPTH:
            _refuse_size(whole, item_size)
    order = ""
    if class_ == _ATOMIC and item_size in (1, 2, 4, 8):
        order, precision, offset = _take_atomic(options, at)
        items: _Integers | _Records = _Integers(item_size, order, precision, offset)
        at += 4
    elif class_ == _PLAIN and depth:
        items, at = _Integers(1, "<", 8, 0), at + 1
    elif class_ == _PLAIN:  # then the second client value would say that nothing is packed
        raise ValueError("its parameters have nothing to pack")
    else:
        item_size, at, place, _ = _decode_type(options, at, class_, depth)
        if len(np.unique(place)) != len(place):
            raise ValueError("its parameters have members that overlap")
        items = _Records(item_size, place)
    if at != len(options):
        raise ValueError(f"its {len(options)} parameters describe a type with {at} of them")
    return _Bits(n, size, items, "" if depth else order)


def _take(options: Options, at: int, n: int) -> Options:
    if at + n > len(options):
        raise ValueError(f"its {len(options)} parameters end within a type")
    return options[at : at + n]


def _take_atomic(options: Options, at: int) -> tuple[str, int, int]:
    """Return byte order, precision and offset of a number."""
    size, order, precision, offset = _take(options, at, 4)
    if order not in (_LITTLE, _BIG) or not precision or precision + offset > 8 * size:
        raise ValueError(
            f"its parameters have {precision} bits from bit {offset} on of elements of {size} "
            f"bytes, in byte order {order}"
        )
    return "<>"[order], precision, offset


def _refuse_size(size: int, within: int) -> NoReturn:
    raise ValueError(f"its parameters have types of {within} bytes within {size}")


def _decode_type(
    options: Options, at: int, class_: int, depth: int
) -> tuple[int, int, IntArray, bool]:
    """Decode the parameters of a type into (size, end, place, is_lost).

    ``size``: bytes of an element. ``end``: index after its last client value. ``place``: the
    bit of the element for each stored bit. ``is_lost``: whether HDF5 continues at a wrong
    client value: after an array of arrays or of compounds it returns to the type of the items,
    when it packs and when it unpacks.
    """
    (size,) = _take(options, at, 1)
    if not size or depth > _MAX_DEPTH:
        _refuse_size(size, size)
    if size > _MAX_COMPOUND_NBYTES:
        raise UnsupportedError(
            f"compounds of {size} bytes with the filter N-bit are not read, only those of up "
            f"to {_MAX_COMPOUND_NBYTES}"
        )
    if class_ == _PLAIN:
        return size, at + 1, np.arange(8 * size), False
    if class_ == _ATOMIC:
        order, precision, offset = _take_atomic(options, at)
        bit = np.arange(offset + precision - 1, offset - 1, -1)  # 0 is the lowest
        byte = bit // 8 if order == "<" else size - 1 - bit // 8
        return size, at + 4, 8 * byte + 7 - bit % 8, False
    if class_ == _ARRAY:
        (class_,) = _take(options, at + 1, 1)
        inner, end, place, _ = _decode_type(options, at + 2, class_, depth + 1)
        if size % inner:
            _refuse_size(size, inner)
        begins = 8 * inner * np.arange(size // inner)
        place = (begins[:, None] + place).reshape(-1)
        return size, end, place, class_ in (_ARRAY, _COMPOUND)
    if class_ != _COMPOUND:
        raise ValueError(f"its parameters have a type of class {class_}")
    (n_members,) = _take(options, at + 1, 1)
    end, places, n_bits, is_lost = at + 2, [], 0, False
    for _ in range(n_members):
        if is_lost:
            raise UnsupportedError(
                "HDF5 packs other members wrongly behind an array of arrays or of compounds; "
                "such compounds with the filter N-bit are not read"
            )
        offset, class_ = _take(options, end, 2)
        inner, end, place, is_lost = _decode_type(options, end + 2, class_, depth + 1)
        n_bits += len(place)
        if offset + inner > size or n_bits > 8 * size:
            _refuse_size(size, offset + inner)
        places.append(8 * offset + place)
    if not places:
        raise ValueError("its parameters have a compound without members")
    return size, end, np.concatenate(places), is_lost


def _unpack_integers(packed: Bytes, n_bits: int, out: npt.NDArray[Any]) -> None:
    """Unpack integers of ``n_bits`` bits each.

    Eight integers take ``n_bits`` bytes. In a table with one row for eight integers, the i-th
    of the eight has the same bits in each row.
    """
    if not n_bits:
        out[...] = 0
        return
    for begin in range(0, len(out), _STEP):
        part = out[begin : begin + _STEP]
        n_rows = -(-len(part) // 8)
        table = packed[begin // 8 * n_bits : (begin // 8 + n_rows) * n_bits]
        if len(table) < n_rows * n_bits:
            table = np.concatenate([table, np.zeros(n_rows * n_bits - len(table), np.uint8)])
        table = table.reshape(n_rows, n_bits)
        for i in range(min(8, len(part))):
            begin_byte, skipped = divmod(i * n_bits, 8)
            end_byte, last = divmod((i + 1) * n_bits - 1, 8)
            below = 7 - last  # bits of the last byte that belong to the next integer
            target = part[i::8]
            rows = table[: len(target)]
            value = (rows[:, begin_byte] & np.uint8(0xFF >> skipped)).astype(out.dtype.type)
            if begin_byte == end_byte:
                value >>= value.dtype.type(below)
            else:
                for byte in range(begin_byte + 1, end_byte):
                    value <<= value.dtype.type(8)
                    value |= rows[:, byte]
                value <<= value.dtype.type(8 - below)
                value |= rows[:, end_byte] >> np.uint8(below)
            target[...] = value


def _unpack_records(packed: Bytes, records: _Records, out: npt.NDArray[np.uint8]) -> None:
    """Unpack elements bit by bit; each row of ``out`` is an element."""
    n_bits = len(records.place)
    step = max(_STEP_BITS // (8 * records.size) // 8, 1) * 8
    for begin in range(0, len(out), step):
        part = out[begin : begin + step]
        first = begin // 8 * n_bits
        stored = packed[first : first - (-len(part) * n_bits // 8)]
        bits = np.unpackbits(stored, count=len(part) * n_bits).reshape(len(part), n_bits)
        whole = np.zeros((len(part), 8 * records.size), dtype=np.uint8)
        whole[:, records.place] = bits
        part[...] = np.packbits(whole, axis=1)
