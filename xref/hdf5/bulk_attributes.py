"""Attributes of many objects: which are alike, and which of them have equal values.

In: `HeaderMessages`. Out: `AttributeColumns`.

1. Each attribute message is cut into its head (name, type, extent) and its data.
2. Objects whose heads are equal, in one order, are a set.
3. Within a set, data are compared attribute by attribute; text of variable length by what
   the global heap holds, as each copy of it has a place of its own there.

Equal data of equal heads are equal values. Values of different data may be equal too, as
text is with other bytes behind its end: who uses the columns has to look at them.

Source: HDF5 File Format Specification 4.0, "The Attribute Message" and "Global Heap".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from xref.arrays import BoolArray, IntArray, ragged_ranges
from xref.errors import XrefError
from xref.hdf5.bulk_headers import HeaderMessages
from xref.hdf5.bulk_heaps import read_sequences
from xref.hdf5.dataspace import decode_dataspace
from xref.hdf5.datatype import Datatype, decode_datatype
from xref.hdf5.object_header import ATTRIBUTE_MESSAGE
from xref.hdf5.packed import ByteArray, integers, message_bytes
from xref.hdf5.superblock import FileContent

MAX_KINDS = 64
"""Distinct kinds of datasets, or heads of attributes, or sets of those, of one batch;
rarer ones are not known."""

MAX_VALUES = 8
"""Distinct values of one attribute that are told apart."""

MAX_KEY_NBYTES = 1024
"""Longest messages and values that are compared; of longer ones nothing is known."""

NO_ATTRIBUTES, OWN_ATTRIBUTES = -1, -2
"""Instead of a row: an object without attributes; one whose attributes are its own."""

OTHER_VALUE = -1

_PLAIN = ("integer", "float", "string")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttributeColumns:
    """Attributes of n objects."""

    same: IntArray  # (n,), the first object of the same set, or a negative number
    value: IntArray  # (n, widest), the first of the set with this value, or `OTHER_VALUE`
    names: dict[int, tuple[str, ...]]  # of the attributes of a set, by its first object


@dataclass(frozen=True, slots=True)
class _Head:
    """What all messages with one head say."""

    name: str
    datatype: Datatype
    nbytes: int  # of the data


# None where data are no values but point to them, or are not understood.
_Heads: TypeAlias = dict[int, _Head | None]


def group_attributes(
    file: FileContent, found: HeaderMessages, objects: npt.NDArray[np.intp], n: int
) -> AttributeColumns:
    """Compare the attributes that some objects have in their headers.

    Parameters
    ----------
    file : FileContent
        The file.
    found : HeaderMessages
        Of n objects.
    objects : numpy.ndarray
        The objects to compare; the columns count these.
    n : int
        Number of all objects.
    """
    same = np.full(len(objects), NO_ATTRIBUTES, dtype=np.int64)
    place = np.full(n, -1, dtype=np.int64)
    place[objects] = np.arange(len(objects))
    rows = np.flatnonzero((found.kind == ATTRIBUTE_MESSAGE) & (place[found.object] >= 0))
    if not len(rows):
        return AttributeColumns(
            same=same, value=np.zeros((len(objects), 1), np.int64), names={}
        )
    of = place[found.object[rows]]
    # Messages are in stored order, of one object among those of the others.
    order = np.argsort(of, kind="stable")
    rows, of = rows[order], of[order]
    at, nbytes = found.position[rows], found.nbytes[rows]
    head, head_nbytes, heads = _split_heads(file, found.data, at, nbytes)
    begins = np.flatnonzero(np.diff(of, prepend=-1))
    ordinal = np.arange(len(of)) - np.repeat(begins, np.diff(begins, append=len(of)))
    widest = int(ordinal.max()) + 1
    # Messages of each object, in their order; beyond them -1.
    message = np.full((len(objects), widest), -1, dtype=np.int64)
    message[of, ordinal] = np.arange(len(of))
    sets = np.where(message >= 0, head[message], -1)
    some = of[begins]
    first = first_equal_row(sets[some].view(np.uint8).reshape(len(some), -1))
    same[some] = np.where(first < 0, OWN_ATTRIBUTES, some[first])
    same[of[(head < 0) | (nbytes > MAX_KEY_NBYTES)]] = OWN_ATTRIBUTES
    value = np.full((len(objects), widest), OTHER_VALUE, dtype=np.int64)
    names = {}
    for number in np.unique(same[same >= 0]).tolist():
        members = np.flatnonzero(same == number)
        count = int((message[number] >= 0).sum())
        of_set = [heads[int(h)] for h in sets[number, :count]]
        names[number] = tuple("" if known is None else known.name for known in of_set)
        for axis, known in enumerate(of_set):
            own = message[members, axis]
            if known is None:
                value[members, axis] = members[0]  # all of the message is the head
                continue
            begin, room = at[own] + head_nbytes[own], nbytes[own] - head_nbytes[own]
            key = None
            if (room >= known.nbytes).all():
                key = _data_key(file, found.data, begin, known)
            if key is None:
                same[members] = OWN_ATTRIBUTES
                break
            equal = first_equal_row(key, MAX_VALUES)
            value[members, axis] = np.where(equal < 0, OTHER_VALUE, members[equal])
    return AttributeColumns(same=same, value=value, names=names)


def _split_heads(
    file: FileContent, data: ByteArray, at: IntArray, nbytes: IntArray
) -> tuple[IntArray, IntArray, _Heads]:
    """Return the number and bytes of the head of each message, and what each head says.

    Messages of equal heads have one number, a row of one of them; -1 beyond `MAX_KINDS`.
    """
    version = data[at].astype(np.int64)
    begin = np.where(version == 3, 9, 8)
    head_nbytes = begin.copy()
    for place in (2, 4, 6):
        size = integers(data, at + place, 2)
        head_nbytes += np.where(version == 1, -(-size // 8) * 8, size)
    good = (version >= 1) & (version <= 3) & (data[at + 1] == 0)
    good &= (head_nbytes <= nbytes) & (head_nbytes <= MAX_KEY_NBYTES)
    head_nbytes = np.where(good, head_nbytes, np.minimum(nbytes, MAX_KEY_NBYTES))
    head = first_equal_row(_message_key(data, at, head_nbytes, good))
    heads: _Heads = {}
    for row in np.unique(head[head >= 0]).tolist():
        body = data[at[row] : at[row] + head_nbytes[row]].tobytes()
        heads[row] = _decode_head(file, body) if good[row] else None
        if heads[row] is None:
            good[head == row] = False
    whole = np.flatnonzero(~good & (head >= 0))
    head_nbytes[whole] = np.minimum(nbytes[whole], MAX_KEY_NBYTES)
    equal = first_equal_row(_message_key(data, at[whole], head_nbytes[whole], good[whole]))
    head[whole] = np.where(equal >= 0, whole[equal], -1)
    heads |= dict.fromkeys(np.unique(head[whole]).tolist())
    return head, head_nbytes, heads


def _message_key(data: ByteArray, at: IntArray, nbytes: IntArray, flag: BoolArray) -> ByteArray:
    length = nbytes.astype("<u4").view(np.uint8).reshape(-1, 4)
    key = message_bytes(data, at, nbytes)
    return np.concatenate([length, flag.view(np.uint8)[:, None], key], axis=1)


def _decode_head(file: FileContent, body: bytes) -> _Head | None:
    """Decode a head; None where data are not to be compared by themselves."""
    version, sizes = body[0], [int.from_bytes(body[i : i + 2], "little") for i in (2, 4, 6)]
    at, pieces = 9 if version == 3 else 8, []
    for size in sizes:
        pieces.append(body[at : at + size])
        at += -(-size // 8) * 8 if version == 1 else size
    form = file.form
    try:
        datatype = decode_datatype(pieces[1], file.filename)
        space = decode_dataspace(pieces[2], form.length_size, file.filename)
    except XrefError:
        return None  # h5py is asked, which says what is wrong
    if datatype.kind not in _PLAIN and not (datatype.kind == "vlen" and datatype.is_string):
        return None
    name = pieces[0].split(b"\0")[0].decode("utf-8", "surrogateescape")
    return _Head(name, datatype, space.size * datatype.itemsize)


def _data_key(
    file: FileContent, data: ByteArray, begin: IntArray, head: _Head
) -> ByteArray | None:
    """Return bytes that are equal where the data of a head are; None where not known."""
    if head.nbytes > MAX_KEY_NBYTES:
        return None
    raw = message_bytes(data, begin, np.full(len(begin), head.nbytes))
    if head.datatype.kind != "vlen" or not head.nbytes:
        return raw
    elements = raw.reshape(-1, head.datatype.itemsize)
    try:
        texts = read_sequences(file, elements, 1, lambda _: file.filename)
    except XrefError:
        return None  # the one that is damaged is found by looking at each
    width = int(texts.length.max(initial=0))
    if (4 + width) * (len(elements) // len(raw)) > MAX_KEY_NBYTES:
        return None
    key = np.zeros((len(elements), 4 + width), dtype=np.uint8)
    key[:, :4] = elements[:, :4]
    row = np.repeat(np.arange(len(elements)), texts.length)
    column = ragged_ranges(np.zeros_like(texts.length), texts.length)
    key[row, 4 + column] = texts.elements[ragged_ranges(texts.begin, texts.length), 0]
    return key.reshape(len(raw), -1)


def first_equal_row(key: ByteArray, most: int = MAX_KINDS) -> IntArray:
    """Return the first row equal to each row; -1 beyond so many distinct ones."""
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
