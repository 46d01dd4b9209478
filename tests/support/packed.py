"""Files whose chunks went through N-bit or scale-offset, and the bytes that describe them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t
from hypothesis import strategies as st

from xref.hdf5.filters import Filter, FilterPipeline
from xref.hdf5.object_header import FILTER_MESSAGE, filter_options, read_messages
from xref.objects.parsing import byte_source
from xref.storage.open_files import locate_file

N_BIT, SCALE_OFFSET = 5, 6
NAMES = {N_BIT: b"nbit", SCALE_OFFSET: b"scaleoffset"}


def integer(base: h5t.TypeID, size: int, precision: int, offset: int = 0) -> h5t.TypeID:
    """Return an integer type with fewer bits than its bytes have."""
    found = base.copy()
    found.set_size(size)
    found.set_offset(0)
    found.set_precision(precision)
    found.set_offset(offset)
    return found


def short_float(offset: int = 7) -> h5t.TypeID:
    """Return a float of 20 bits, within 4 bytes."""
    found = h5t.IEEE_F32LE.copy()
    found.set_fields(19, 13, 6, 0, 13)
    found.set_precision(20)
    found.set_offset(offset)
    return found


def compound(members: Sequence[tuple[int, h5t.TypeID]]) -> h5t.TypeID:
    """Return a compound of types, each with the bytes that lie before it."""
    size = sum(gap + member.get_size() for gap, member in members)
    found = h5t.create(h5t.COMPOUND, size)
    at = 0
    for i, (gap, member) in enumerate(members):
        found.insert(f"m{i}".encode(), at + gap, member)
        at += gap + member.get_size()
    return found


@st.composite
def integers(draw: st.DrawFn) -> h5t.TypeID:
    size = draw(st.sampled_from([1, 2, 3, 4, 7, 8, 12]))
    base = draw(st.sampled_from([h5t.STD_I8LE, h5t.STD_U32LE, h5t.STD_I64BE, h5t.STD_U16BE]))
    # HDF5 takes files with more bits unused than used for damaged ones.
    precision = draw(st.integers(4 * size + 1, 8 * size))
    return integer(base, size, precision, draw(st.integers(0, 8 * size - precision)))


@st.composite
def opaque(draw: st.DrawFn) -> h5t.TypeID:
    found = h5t.create(h5t.OPAQUE, draw(st.integers(1, 5)))
    found.set_tag(b"any")
    return found


SCALARS = st.one_of(integers(), opaque(), st.builds(short_float, st.integers(0, 12)))


def types_over(base: st.SearchStrategy[h5t.TypeID]) -> st.SearchStrategy[h5t.TypeID]:
    members = st.lists(st.tuples(st.integers(0, 3), base), min_size=1, max_size=4)
    shapes = st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple)
    return st.one_of(members.map(compound), st.builds(h5t.array_create, base, shapes))


TYPES = st.recursive(SCALARS, types_over, max_leaves=6)


def confuses_hdf5(datatype: h5t.TypeID) -> bool:
    """Tell whether N-bit goes on at wrong parameters: behind arrays of arrays or compounds."""
    packs = any(c in (h5t.INTEGER, h5t.FLOAT) for c, _ in walk(datatype))
    return packs and any(lost for _, lost in walk(datatype))


def walk(datatype: h5t.TypeID) -> list[tuple[int, bool]]:
    """Return class of a type and of those within, and whether a member follows such an array.

    The last entry is of the type itself.
    """
    kind = datatype.get_class()
    if kind == h5t.ARRAY:
        return [*walk(datatype.get_super()), (kind, False)]
    found, lost = [], False
    if kind == h5t.COMPOUND:
        for i in range(datatype.get_nmembers()):
            found.append((kind, lost))
            member = datatype.get_member_type(i)
            found += walk(member)
            lost = ends_lost(member)
    return [*found, (kind, False)]


def ends_lost(datatype: h5t.TypeID) -> bool:
    kind = datatype.get_class()
    if kind == h5t.ARRAY:
        return datatype.get_super().get_class() in (h5t.ARRAY, h5t.COMPOUND)
    if kind == h5t.COMPOUND:
        return ends_lost(datatype.get_member_type(datatype.get_nmembers() - 1))
    return False


def create(
    file: h5py.File,
    name: str,
    datatype: h5t.TypeID,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    filters: Sequence[tuple[int, tuple[int, ...]]],
) -> h5py.Dataset:
    """Create a dataset of any type and filters."""
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_chunk(chunks)
    for number, options in filters:
        properties.set_filter(number, 0, options)
    space = h5s.create_simple(shape)
    return h5py.Dataset(h5d.create(file.id, name.encode(), datatype, space, properties))


def write_raw(dataset: h5py.Dataset, raw: bytes) -> None:
    """Write elements without a conversion, from the bytes that they have in memory."""
    kind = dataset.id.get_type()
    values = np.frombuffer(raw, dtype=f"V{kind.get_size()}").reshape(dataset.shape)
    dataset.id.write(h5s.ALL, h5s.ALL, np.ascontiguousarray(values), mtype=kind)


def read_raw(dataset: h5py.Dataset) -> bytes:
    """Return elements as HDF5 decodes them, without a conversion."""
    kind = dataset.id.get_type()
    out = np.zeros(dataset.shape, dtype=f"V{kind.get_size()}")
    dataset.id.read(h5s.ALL, h5s.ALL, out, mtype=kind)
    return out.tobytes()


def pipeline(dataset: h5py.Dataset) -> FilterPipeline:
    """Return the filters of a dataset from its object header.

    Some releases of h5py give zeros for the 17th client value and those behind.
    """
    location = locate_file(dataset.file.filename)
    (message,) = read_messages(
        byte_source(location, "test"), h5py.h5o.get_info(dataset.id).addr, {FILTER_MESSAGE}
    )
    found = filter_options(message.body, "test")
    return FilterPipeline(
        filters=tuple(Filter(id=i, flags=0, options=options, name="") for i, options in found)
    )


def options_of(dataset: h5py.Dataset, number: int) -> tuple[int, ...]:
    """Return the client values of a filter, as HDF5 completed them; zeros from the 17th on.

    They come from h5py, which keeps no file open.
    """
    properties = dataset.id.get_create_plist()
    found = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    return next(tuple(options) for n, _, options, _ in found if n == number)


def change_options(
    path: Path, number: int, options: tuple[int, ...], changed: tuple[int, ...]
) -> None:
    """Write other client values of a filter, no more than there were, into a file."""
    data = bytearray(path.read_bytes())
    name = NAMES[number] + bytes(8 - len(NAMES[number]) % 8)
    head = struct.pack("<H", len(options)) + name
    assert data.count(head) == 1
    new = struct.pack("<H", len(changed)) + name + struct.pack(f"<{len(changed)}I", *changed)
    at = data.index(head)
    data[at : at + len(new)] = new
    path.write_bytes(data)


def header(n_bits: int, least: int = 0, size: int = 8) -> bytes:
    """Return the header of a scale-offset chunk."""
    return struct.pack("<IBQ8x", n_bits, size, least)


def stored_chunks(dataset: h5py.Dataset) -> dict[tuple[int, ...], tuple[int, bytes]]:
    """Return filter mask and stored bytes of each chunk."""
    infos: list[Any] = []
    dataset.id.chunk_iter(infos.append)
    return {i.chunk_offset: dataset.id.read_direct_chunk(i.chunk_offset) for i in infos}
