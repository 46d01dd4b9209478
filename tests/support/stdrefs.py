"""Files of references of HDF5 1.12 and later (``H5T_STD_REF``), which h5py cannot write.

The HDF5 library that h5py's wheel brings is called through ctypes. It is the one that
h5py itself has loaded, so identifiers of both may be mixed. Also the answers of that
library, which the tests compare with.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5a, h5d, h5g, h5i, h5o, h5p, h5s, h5t

REFERENCE_NBYTES = 64
"""``H5R_REF_BUF_SIZE``: bytes of a reference in memory."""

TYPES = {0: "object1", 1: "region1", 2: "object", 3: "region", 4: "attribute"}

Slot = ctypes.c_void_p
Make = Callable[[int], None]
"""Makes a reference at an address in memory; None in its place stands for null."""

_ID = ctypes.c_int64
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    # name: (result, arguments ...)
    "H5Rcreate_object": (ctypes.c_int, _ID, ctypes.c_char_p, _ID, Slot),
    "H5Rcreate_region": (ctypes.c_int, _ID, ctypes.c_char_p, _ID, _ID, Slot),
    "H5Rcreate_attr": (ctypes.c_int, _ID, ctypes.c_char_p, ctypes.c_char_p, _ID, Slot),
    "H5Rdestroy": (ctypes.c_int, Slot),
    "H5Rget_type": (ctypes.c_int, Slot),
    "H5Rget_attr_name": (ctypes.c_ssize_t, Slot, ctypes.c_char_p, ctypes.c_size_t),
    "H5Rget_file_name": (ctypes.c_ssize_t, Slot, ctypes.c_char_p, ctypes.c_size_t),
    "H5Ropen_object": (_ID, Slot, _ID, _ID),
    "H5Ropen_region": (_ID, Slot, _ID, _ID),
    "H5Ropen_attr": (_ID, Slot, _ID, _ID),
    "H5Dwrite": (ctypes.c_int, _ID, _ID, _ID, _ID, _ID, Slot),
    "H5Dread": (ctypes.c_int, _ID, _ID, _ID, _ID, _ID, Slot),
    "H5Awrite": (ctypes.c_int, _ID, _ID, Slot),
    "H5Tcreate": (_ID, ctypes.c_int, ctypes.c_size_t),
    "H5Tinsert": (ctypes.c_int, _ID, ctypes.c_char_p, ctypes.c_size_t, _ID),
    "H5Tvlen_create": (_ID, _ID),
    "H5Treclaim": (ctypes.c_int, _ID, _ID, _ID, Slot),
    "H5Iget_type": (ctypes.c_int, _ID),
    "H5Pset_fill_value": (ctypes.c_int, _ID, _ID, Slot),
    "H5Eset_auto2": (ctypes.c_int, _ID, Slot, Slot),
}


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """Return the HDF5 library of h5py's wheel; the test is skipped where there is none."""
    folder = Path(h5py.__file__).parents[1] / "h5py.libs"
    found = sorted(folder.glob("libhdf5-*.so*"))
    if not found:
        pytest.skip("h5py brings no HDF5 library of its own")
    loaded = ctypes.CDLL(str(found[0]))
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    loaded.H5Eset_auto2(0, None, None)
    return loaded


def call(name: str, *arguments: Any) -> int:
    """Call a function of the library; raise where it reports failure."""
    with h5py._hl.base.phil:
        result: int = getattr(library(), name)(*arguments)
    if result < 0:
        raise RuntimeError(f"{name} failed")
    return result


def std_type() -> h5t.TypeID:
    """Return ``H5T_STD_REF``."""
    return h5t.TypeID(_ID.in_dll(library(), "H5T_STD_REF_g").value)


def compound_type() -> h5t.TypeID:
    """Return a compound of an integer ``number`` and a reference ``ref``."""
    compound = call("H5Tcreate", h5t.COMPOUND, 8 + REFERENCE_NBYTES)
    call("H5Tinsert", compound, b"number", 0, h5t.NATIVE_INT64.id)
    call("H5Tinsert", compound, b"ref", 8, std_type().id)
    return h5t.TypeID(compound)


def vlen_type() -> h5t.TypeID:
    """Return sequences of references."""
    return h5t.TypeID(call("H5Tvlen_create", std_type().id))


def to_object(file: h5py.File, path: str) -> Make:
    """Refer to an object of an open file."""
    return lambda at: _create("H5Rcreate_object", file.id.id, path.encode(), 0, at)


def to_region(file: h5py.File, path: str, space: h5s.SpaceID) -> Make:
    """Refer to what is selected in ``space``, a dataspace of the dataset."""
    return lambda at: _create("H5Rcreate_region", file.id.id, path.encode(), space.id, 0, at)


def to_attribute(file: h5py.File, path: str, name: str) -> Make:
    """Refer to an attribute of an object."""
    return lambda at: _create("H5Rcreate_attr", file.id.id, path.encode(), name.encode(), 0, at)


def _create(name: str, *arguments: Any) -> None:
    call(name, *arguments)


class Slots:
    """References in memory, destroyed at the end of a ``with`` block."""

    def __init__(self, makers: Sequence[Make | None]) -> None:
        self.buffer = ctypes.create_string_buffer(max(REFERENCE_NBYTES * len(makers), 1))
        self.live = []
        for i, make in enumerate(makers):
            if make is not None:
                make(self.at(i))
                self.live.append(i)

    def at(self, i: int) -> int:
        return ctypes.addressof(self.buffer) + REFERENCE_NBYTES * i

    def __enter__(self) -> Slots:
        return self

    def __exit__(self, *error: object) -> None:
        for i in self.live:
            call("H5Rdestroy", self.at(i))


def write_dataset(
    group: h5py.Group,
    name: str,
    makers: Sequence[Make | None],
    *,
    shape: tuple[int, ...] | None = None,
    chunks: tuple[int, ...] | None = None,
    compression: int | None = None,
    compact: bool = False,
) -> None:
    """Write a dataset of ``H5T_STD_REF``."""
    properties = h5p.create(h5p.DATASET_CREATE)
    if chunks:
        properties.set_chunk(chunks)
    if compression:
        properties.set_deflate(compression)
    if compact:
        properties.set_layout(h5d.COMPACT)
    shape = (len(makers),) if shape is None else shape
    space = h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)
    dataset = h5d.create(group.id, name.encode(), std_type(), space, dcpl=properties)
    with Slots(makers) as slots:
        call("H5Dwrite", dataset.id, std_type().id, 0, 0, 0, slots.at(0))


def write_attribute(item: Any, name: str, makers: Sequence[Make | None]) -> None:
    """Write an attribute of ``H5T_STD_REF``; of one reference it is a scalar."""
    n = len(makers)
    space = h5s.create(h5s.SCALAR) if n == 1 else h5s.create_simple((n,))
    attribute = h5a.create(item.id, name.encode(), std_type(), space)
    with Slots(makers) as slots:
        call("H5Awrite", attribute.id, std_type().id, slots.at(0))


def _compounds(slots: Slots, n: int) -> Any:
    """Return elements of `compound_type`, numbered from 0."""
    rows = np.zeros((n, 8 + REFERENCE_NBYTES), dtype=np.uint8)
    rows[:, :8] = np.arange(n, dtype="<i8").view(np.uint8).reshape(n, 8)
    stored = np.frombuffer(slots.buffer, np.uint8)[: n * REFERENCE_NBYTES]
    rows[:, 8:] = stored.reshape(n, REFERENCE_NBYTES)
    return rows


def write_compounds(group: h5py.Group, name: str, makers: Sequence[Make | None]) -> None:
    """Write a dataset of `compound_type`, elements numbered from 0."""
    n = len(makers)
    datatype = compound_type()
    dataset = h5d.create(group.id, name.encode(), datatype, h5s.create_simple((n,)))
    with Slots(makers) as slots:
        rows = _compounds(slots, n)
        call("H5Dwrite", dataset.id, datatype.id, 0, 0, 0, rows.ctypes.data)


def write_compound_attribute(item: Any, name: str, makers: Sequence[Make | None]) -> None:
    """Write an attribute of `compound_type`, elements numbered from 0."""
    n = len(makers)
    datatype = compound_type()
    attribute = h5a.create(item.id, name.encode(), datatype, h5s.create_simple((n,)))
    with Slots(makers) as slots:
        rows = _compounds(slots, n)
        call("H5Awrite", attribute.id, datatype.id, rows.ctypes.data)


def _sequences(slots: Slots, lengths: Sequence[int]) -> Any:
    """Return ``hvl_t`` values: a length and a pointer each."""
    rows = np.zeros((len(lengths), 2), dtype=np.uint64)
    begin = 0
    for row, n in zip(rows, lengths, strict=True):
        row[:] = n, slots.at(begin)
        begin += n
    return rows


def write_sequences(
    group: h5py.Group, name: str, sequences: Sequence[Sequence[Make | None]]
) -> None:
    """Write a dataset of `vlen_type`."""
    datatype = vlen_type()
    space = h5s.create_simple((len(sequences),))
    dataset = h5d.create(group.id, name.encode(), datatype, space)
    with Slots([make for sequence in sequences for make in sequence]) as slots:
        rows = _sequences(slots, [len(sequence) for sequence in sequences])
        call("H5Dwrite", dataset.id, datatype.id, 0, 0, 0, rows.ctypes.data)


def write_sequence_attribute(
    item: Any, name: str, sequences: Sequence[Sequence[Make | None]]
) -> None:
    """Write an attribute of `vlen_type`."""
    datatype = vlen_type()
    space = h5s.create_simple((len(sequences),))
    attribute = h5a.create(item.id, name.encode(), datatype, space)
    with Slots([make for sequence in sequences for make in sequence]) as slots:
        rows = _sequences(slots, [len(sequence) for sequence in sequences])
        call("H5Awrite", attribute.id, datatype.id, rows.ctypes.data)


# --- what the library itself reads -------------------------------------------------


def _text_of(name: str, at: int) -> str:
    text = ctypes.create_string_buffer(1024)
    call(name, at, text, len(text))
    return text.value.decode()


def read_dataset(group: h5py.Group, name: str) -> list[dict[str, Any] | None]:
    """Read a dataset of ``H5T_STD_REF`` through the library, element by element.

    Returns
    -------
    list of dict or None
        None for null. Else ``type`` and ``filename``, for objects and regions the
        ``address``, for regions the ``values`` (see `_read_region`), for
        attributes ``name`` and ``values`` (None where it cannot be opened).
    """
    dataset = h5d.open(group.id, name.encode())
    n = dataset.get_space().get_simple_extent_npoints()
    slots = Slots([None] * n)
    call("H5Dread", dataset.id, std_type().id, 0, 0, 0, slots.at(0))
    slots.live = [
        i
        for i in range(n)
        if any(slots.buffer[REFERENCE_NBYTES * i : REFERENCE_NBYTES * (i + 1)])
    ]
    with slots:
        live = set(slots.live)
        return [_read_reference(slots.at(i)) if i in live else None for i in range(n)]


def _read_reference(at: int) -> dict[str, Any]:
    kind = TYPES[call("H5Rget_type", at)]
    found: dict[str, Any] = {"type": kind, "filename": _text_of("H5Rget_file_name", at)}
    if kind == "attribute":
        found["name"] = _text_of("H5Rget_attr_name", at)
        found["values"] = _read_attribute(at)
        return found
    opened = call("H5Ropen_object", at, 0, 0)
    item = _CLASSES[call("H5Iget_type", opened)](opened)
    found["address"] = h5o.get_info(item).addr
    if kind == "region":
        space = h5s.SpaceID(call("H5Ropen_region", at, 0, 0))
        found["values"] = _read_region(item, space)
    return found


def _read_region(dataset: h5d.DatasetID, space: h5s.SpaceID) -> Any:
    """Return selected values; None where the library does not count an unlimited selection."""
    if space.get_select_type() == h5s.SEL_HYPERSLABS and space.is_regular_hyperslab():
        numbers = space.get_regular_hyperslab()
        if any(n == h5s.UNLIMITED for axis in numbers for n in axis):
            return None
    n = space.get_select_npoints()
    values = np.zeros(n, dtype=dataset.dtype)
    if n:
        dataset.read(h5s.create_simple((n,)), space, values)
    return values


_CLASSES = {h5i.GROUP: h5g.GroupID, h5i.DATATYPE: h5t.TypeID, h5i.DATASET: h5d.DatasetID}


def _read_attribute(at: int) -> Any:
    try:
        attribute = h5a.AttrID(call("H5Ropen_attr", at, 0, 0))
    except RuntimeError:
        return None
    values = np.zeros(attribute.shape, dtype=attribute.dtype)
    attribute.read(values)
    return values


# --- targets ----

VALUES = np.arange(48).reshape(6, 8)


def select(file: h5py.File, path: str, *slabs: tuple[Any, ...]) -> h5s.SpaceID:
    """Return the union of hyperslabs (start, count, stride, block)."""
    space = file[path].id.get_space()
    for i, slab in enumerate(slabs):
        op = h5s.SELECT_OR if i else h5s.SELECT_SET
        space.select_hyperslab(*slab, op=op)
    return space


def select_points(file: h5py.File, path: str, points: Any) -> h5s.SpaceID:
    space = file[path].id.get_space()
    space.select_elements(np.array(points, dtype="u8"))
    return space


def select_none(file: h5py.File, path: str) -> h5s.SpaceID:
    space = file[path].id.get_space()
    space.select_none()
    return space


def fill(file: h5py.File) -> list[Make | None]:
    """Write targets; return references of every kind to them."""
    file["data"] = VALUES
    file["grp/more"] = np.arange(3.0)
    file["type"] = np.dtype("f4")
    for item, value in (("data", np.arange(3)), ("grp", np.arange(3) + 10), ("type", 1.5)):
        file[item].attrs["units"] = value
    box = select(file, "data", ((1, 2), (1, 1), (1, 1), (2, 3)))
    strided = select(file, "data", ((0, 1), (2, 3), (3, 2), (1, 1)))
    union = select(
        file, "data", ((0, 0), (1, 1), (1, 1), (2, 3)), ((1, 2), (1, 1), (1, 1), (3, 2))
    )
    return [
        to_object(file, "data"),
        to_region(file, "data", box),
        to_region(file, "data", strided),
        to_region(file, "data", union),
        to_region(file, "data", select_points(file, "data", [[5, 7], [0, 0], [5, 7]])),
        to_region(file, "data", file["data"].id.get_space()),
        to_region(file, "data", select_none(file, "data")),
        None,
        to_object(file, "grp"),
        to_object(file, "type"),
        to_attribute(file, "data", "units"),
        to_attribute(file, "grp", "units"),
        to_attribute(file, "type", "units"),
        to_attribute(file, "grp", "gone"),
    ]
