"""Attributes of many objects: which objects have the same ones, and which values are equal.

In: `HeaderMessages`. Out: `AttributeColumns`.

1. Each attribute message is cut into its head (name, datatype, dataspace) and its data.
2. Objects whose heads are equal, in the same order, form a set.
3. Within a set, the data are compared attribute by attribute. Strings of variable length are
   compared by their characters in the global heap, since each copy has its own heap ID.

Equal data of equal heads are equal values. Different data may be equal values too, such as
strings with other bytes behind their end: the caller has to read those values.

Source: HDF5 File Format Specification 4.0, "The Attribute Message" and "Global Heap".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from xref.arrays import BoolArray, IntArray, ragged_ranges
from xref.errors import XrefError
from xref.hdf5.attribute import split_message
from xref.hdf5.bulk_headers import HeaderMessages
from xref.hdf5.bulk_heaps import read_sequences
from xref.hdf5.dataspace import decode_dataspace
from xref.hdf5.datatype import Datatype, decode_datatype
from xref.hdf5.object_header import ATTRIBUTE_MESSAGE
from xref.hdf5.packed import ByteArray, integers, message_bytes
from xref.hdf5.superblock import FileContent

MAX_GROUPS = 64
"""Most groups of datasets, of heads, or of sets of heads in one batch; objects of further
groups count as different from all others."""

MAX_VALUES = 8
"""Most values of one attribute that are told apart."""

MAX_KEY_NBYTES = 1024
"""Longest messages and values that are compared."""

NO_ATTRIBUTES, OWN_ATTRIBUTES = -1, -2
"""Instead of a row: the object has no attributes; it is in no set with other objects."""

OTHER_VALUE = -1
"""Instead of a row: the value is not known to equal any other."""

_COMPARED_BY_BYTES = ("integer", "float", "string")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttributeColumns:
    """Attributes of n objects."""

    same: IntArray  # (n,), the first object of the same set, or a negative number
    value: IntArray  # (n, widest), the first of the set with this value, or `OTHER_VALUE`
    names: dict[int, tuple[str, ...]]  # of the attributes of a set, by its first object


@dataclass(frozen=True, slots=True)
class _Head:
    """What all messages with one head have in common."""

    name: str
    datatype: Datatype
    nbytes: int  # of the data


# By the row of a message. None if its data cannot be compared by bytes (they are addresses,
# or the head is not understood): then the whole message counts as head.
_Heads: TypeAlias = dict[int, _Head | None]


class _AttributeMessages(NamedTuple):
    """The attribute messages of some objects, object after object, in stored order."""

    data: ByteArray
    position: IntArray  # (m,)
    nbytes: IntArray  # (m,)
    head: IntArray  # (m,), first message with an equal head; -1 beyond `MAX_GROUPS`
    head_nbytes: IntArray  # (m,)
    heads: _Heads


def group_attributes(
    file: FileContent, found: HeaderMessages, objects: npt.NDArray[np.intp], n: int
) -> AttributeColumns:
    """Compare the attributes that some of n objects have in their headers.

    ``found`` has the messages of all n objects; ``objects`` are those to compare, and the rows
    of the result count these.
    """
    same = np.full(len(objects), NO_ATTRIBUTES, dtype=np.int64)
    ordinal_of = np.full(n, -1, dtype=np.int64)
    ordinal_of[objects] = np.arange(len(objects))
    is_compared = (found.message_type == ATTRIBUTE_MESSAGE) & (ordinal_of[found.object] >= 0)
    rows = np.flatnonzero(is_compared)
    if not len(rows):
        return AttributeColumns(
            same=same, value=np.zeros((len(objects), 1), np.int64), names={}
        )
    owner = ordinal_of[found.object[rows]]
    # `found` has the messages of each object in stored order, but mixed with other objects.
    order = np.argsort(owner, kind="stable")
    rows, owner = rows[order], owner[order]
    position, nbytes = found.position[rows], found.nbytes[rows]
    head, head_nbytes, heads = _split_heads(file, found.data, position, nbytes)
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    axis = np.arange(len(owner)) - np.repeat(starts, np.diff(starts, append=len(owner)))
    # Row of each object's messages in their order; -1 behind the last one.
    message = np.full((len(objects), int(axis.max()) + 1), -1, dtype=np.int64)
    message[owner, axis] = np.arange(len(owner))
    sets = np.where(message >= 0, head[message], -1)
    with_any = owner[starts]
    first = first_equal_row(sets[with_any].view(np.uint8).reshape(len(with_any), -1))
    same[with_any] = np.where(first < 0, OWN_ATTRIBUTES, with_any[first])
    same[owner[(head < 0) | (nbytes > MAX_KEY_NBYTES)]] = OWN_ATTRIBUTES
    messages = _AttributeMessages(found.data, position, nbytes, head, head_nbytes, heads)
    return _compare_values(file, messages, message, same)


def _compare_values(
    file: FileContent, messages: _AttributeMessages, message: IntArray, same: IntArray
) -> AttributeColumns:
    """Compare the values of each set of objects; objects may leave their set in ``same``."""
    value = np.full(message.shape, OTHER_VALUE, dtype=np.int64)
    names = {}
    for first in np.unique(same[same >= 0]).tolist():
        members = np.flatnonzero(same == first)
        own_heads = messages.head[message[first][message[first] >= 0]].tolist()
        heads = [messages.heads[row] for row in own_heads]
        names[first] = tuple("" if head is None else head.name for head in heads)
        for axis, head in enumerate(heads):
            rows = message[members, axis]
            if head is None:
                value[members, axis] = members[0]  # all of the message is the head
                continue
            data_at = messages.position[rows] + messages.head_nbytes[rows]
            room = messages.nbytes[rows] - messages.head_nbytes[rows]
            key = None
            if (room >= head.nbytes).all():
                key = _data_key(file, messages.data, data_at, head)
            if key is None:
                same[members] = OWN_ATTRIBUTES
                break
            equal = first_equal_row(key, MAX_VALUES)
            value[members, axis] = np.where(equal < 0, OTHER_VALUE, members[equal])
    return AttributeColumns(same=same, value=value, names=names)


def _split_heads(
    file: FileContent, data: ByteArray, position: IntArray, nbytes: IntArray
) -> tuple[IntArray, IntArray, _Heads]:
    """Return the first message with an equal head, bytes of the head, and decoded heads.

    The number of a message is -1 beyond `MAX_GROUPS` different heads.
    """
    # Version 1, flags 1 (reserved in version 1), sizes of name, datatype and dataspace 2
    # each, in version 3 the name's character set 1; then these three. Version 1 pads each
    # to a multiple of eight bytes.
    version = data[position].astype(np.int64)
    head_nbytes = np.where(version == 3, 9, 8)
    for size_at in (2, 4, 6):
        size = integers(data, position + size_at, 2)
        head_nbytes += np.where(version == 1, -(-size // 8) * 8, size)
    # Flags tell that datatype or dataspace are shared messages, which are not looked up.
    good = (version >= 1) & (version <= 3) & (data[position + 1] == 0)
    good &= (head_nbytes <= nbytes) & (head_nbytes <= MAX_KEY_NBYTES)
    head_nbytes = np.where(good, head_nbytes, np.minimum(nbytes, MAX_KEY_NBYTES))
    head = first_equal_row(_message_key(data, position, head_nbytes, good))
    heads: _Heads = {}
    for row in np.unique(head[head >= 0]).tolist():
        body = data[position[row] : position[row] + head_nbytes[row]].tobytes()
        heads[row] = _decode_head(file, body) if good[row] else None
        if heads[row] is None:
            good[head == row] = False
    # Where heads are None, whole messages are compared instead.
    whole = np.flatnonzero(~good & (head >= 0))
    head_nbytes[whole] = np.minimum(nbytes[whole], MAX_KEY_NBYTES)
    key = _message_key(data, position[whole], head_nbytes[whole], good[whole])
    equal = first_equal_row(key)
    head[whole] = np.where(equal >= 0, whole[equal], -1)
    heads |= dict.fromkeys(np.unique(head[whole]).tolist())
    return head, head_nbytes, heads


def _message_key(
    data: ByteArray, position: IntArray, nbytes: IntArray, flag: BoolArray
) -> ByteArray:
    """Return rows that are equal where the bytes, their number and the flag are."""
    length = nbytes.astype("<u4").view(np.uint8).reshape(-1, 4)
    key = message_bytes(data, position, nbytes)
    return np.concatenate([length, flag.view(np.uint8)[:, None], key], axis=1)


def _decode_head(file: FileContent, body: bytes) -> _Head | None:
    """Decode a head; None if its data cannot be compared by bytes."""
    try:
        message = split_message(body, file.filename)
        datatype = decode_datatype(message.datatype, file.filename)
        space = decode_dataspace(message.dataspace, file.form.length_size, file.filename)
    except XrefError:
        return None  # the caller reads the attribute alone, which words the error
    is_text = datatype.type_class == "vlen" and datatype.is_string
    if datatype.type_class not in _COMPARED_BY_BYTES and not is_text:
        return None
    return _Head(message.name, datatype, space.size * datatype.itemsize)


def _data_key(
    file: FileContent, data: ByteArray, position: IntArray, head: _Head
) -> ByteArray | None:
    """Return one key per message; equal keys mean equal values.

    None if values are too long, or if values cannot be read from the global heap.
    """
    if head.nbytes > MAX_KEY_NBYTES:
        return None
    raw = message_bytes(data, position, np.full(len(position), head.nbytes))
    if head.datatype.type_class != "vlen" or not head.nbytes:
        return raw
    # An element: length 4, address of the heap collection O, index of the object 4.
    elements = raw.reshape(-1, head.datatype.itemsize)
    try:
        texts = read_sequences(file, elements, 1, lambda _: file.filename)
    except XrefError:
        return None  # the caller reads each attribute alone and finds the damaged one
    width = int(texts.length.max(initial=0))
    if (4 + width) * (len(elements) // len(raw)) > MAX_KEY_NBYTES:
        return None
    # The key replaces address and index by the characters.
    key = np.zeros((len(elements), 4 + width), dtype=np.uint8)
    key[:, :4] = elements[:, :4]
    row = np.repeat(np.arange(len(elements)), texts.length)
    column = ragged_ranges(np.zeros_like(texts.length), texts.length)
    key[row, 4 + column] = texts.elements[ragged_ranges(texts.begin, texts.length), 0]
    return key.reshape(len(raw), -1)


def first_equal_row(key: ByteArray, most: int = MAX_GROUPS) -> IntArray:
    """Return the first row equal to each row; -1 beyond ``most`` different rows."""
    # Eight bytes are compared at once.
    words = np.zeros((len(key), -(-key.shape[1] // 8)), dtype=np.uint64)
    words.view(np.uint8)[:, : key.shape[1]] = key
    out = np.full(len(key), -1, dtype=np.int64)
    left = np.arange(len(key))
    for _ in range(most):
        if not len(left):
            break
        same = (words == words[0]).all(axis=1)
        out[left[same]] = left[0]
        left, words = left[~same], words[~same]
    return out
