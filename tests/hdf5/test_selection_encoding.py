"""Selections into bytes: decoding gives them back, and HDF5 reads what is meant."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import selections
from h5py import h5r
from hypothesis import given
from hypothesis import strategies as st

from xref.hdf5.selection_decoding import decode_selections
from xref.hdf5.selection_encoding import encode_regions
from xref.selections.table import SelectionKind
from xref.selections.table_building import box_table, empty_table, table_from_selections
from xref.selections.values import UNLIMITED, All, Blocks, Empty, Hyperslab, Points, Selection
from xref.writing.datasets import address_of, region_bytes

LARGE = 2**40

EXAMPLES: dict[str, Selection] = {
    "all": All(),
    "none": Empty(),
    "points": Points(np.array([[1, 2], [3, 4], [1, 2]])),
    "box": Hyperslab((1, 2), (1, 1), (1, 1), (3, 4)),
    "strided": Hyperslab((1, 2), (5, 1), (3, 1), (3, 4)),
    "blocks": Blocks(np.array([[0, 0], [1, 5]]), np.array([[1, 3], [2, 9]])),
    "unlimited": Hyperslab((1, 2), (5, 1), (UNLIMITED, 1), (3, 4)),
    "unlimited block": Hyperslab((1, 2), (1, 1), (1, 1), (3, UNLIMITED)),
    "long box": Hyperslab((1,), (1,), (1,), (LARGE,)),
    "far points": Points(np.array([[LARGE], [3]])),
    "far blocks": Blocks(np.array([[LARGE], [9]]), np.array([[LARGE + 1], [12]])),
    "rank 6": Hyperslab((1,) * 6, (1,) * 6, (1,) * 6, (2,) * 6),
    "last of 32 bits": Hyperslab((2**32 - 3,), (1,), (1,), (2,)),
    "first past 32 bits": Hyperslab((2**32 - 2,), (1,), (1,), (3,)),
}


def round_trip(chosen: list[Selection]) -> list[Selection | None]:
    address = np.arange(1, len(chosen) + 1, dtype=np.uint64) << np.uint64(33)
    data = encode_regions(address, table_from_selections(chosen))
    found, regions = decode_selections(
        data.buffer, data.position, data.nbytes, 8, lambda row: f"row {row}"
    )
    assert found.tolist() == address.tolist()
    return [regions.selection(row) for row in range(len(chosen))]


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_encoding_decodes_to_the_same_selection(name: str) -> None:
    assert round_trip([EXAMPLES[name]]) == [EXAMPLES[name]]


def test_all_encodings_together_keep_their_order() -> None:
    chosen = [*EXAMPLES.values(), *reversed(EXAMPLES.values())]
    assert round_trip(chosen) == chosen


@given(st.data())
def test_any_selections_encode_and_decode_to_equal_selections(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    one = st.one_of(
        selections.slabs(shape),
        selections.unions(shape),
        selections.points(shape),
        st.sampled_from((All(), Empty())),
    )
    chosen = data.draw(st.lists(one, min_size=1, max_size=8))
    for before, after in zip(chosen, round_trip(chosen), strict=True):
        # A list of blocks may be decoded as the regular hyperslab that it is.
        assert selections.elements(after, shape) == selections.elements(before, shape)


def test_boxes_are_written_in_the_form_that_any_hdf5_reads() -> None:
    boxes = box_table(np.array([[1, 2]]), np.array([[3, 4]]))
    data = encode_regions(np.array([800], dtype=np.uint64), boxes)
    kind, version = data.buffer[8:16].view("<u4").tolist()
    assert (kind, version) == (2, 1)
    assert data.nbytes.tolist() == [8 + 24 + 16]


class OnDisk:
    """The bytes of a file that HDF5 has open."""

    def __init__(self, file: h5py.File) -> None:
        self.number = file.id.get_vfd_handle()

    def seek(self, offset: int) -> int:
        return os.lseek(self.number, offset, os.SEEK_SET)

    def readinto(self, buffer: memoryview) -> int:
        return os.readv(self.number, [buffer])


def test_hdf5_reads_the_selected_elements(tmp_path: Path) -> None:
    image = np.arange(12 * 10).reshape(12, 10)
    chosen = [s for s in EXAMPLES.values() if selection_fits(s, image.shape)]
    table = table_from_selections([*chosen, None])
    with h5py.File(tmp_path / "file.h5", "w") as file:
        data = file.create_dataset("image", data=image)
        address = np.full(len(table), address_of(data), dtype=np.uint64)
        raw = region_bytes(file, OnDisk(file), address, table)
        rois = file.create_dataset("rois", (len(table),), dtype=h5py.regionref_dtype)
        rois.id.write(
            h5py.h5s.ALL, h5py.h5s.ALL, raw.view("V12")[:, 0], mtype=h5py.h5t.STD_REF_DSETREG
        )
    with h5py.File(tmp_path / "file.h5") as file:
        data, rois = file["image"], file["rois"][:]
        assert not rois[-1]
        for reference, selection in zip(rois, chosen, strict=False):
            assert file[reference] == data
            space = h5r.get_region(reference, data.id)
            expected = selections.elements(selection, image.shape)
            assert space.get_select_npoints() == len(expected)
            if expected:
                values = np.ravel(data[reference]).tolist()
                assert values == [image[e] for e in expected]


def selection_fits(selection: Selection, shape: tuple[int, ...]) -> bool:
    table = table_from_selections([selection])
    if table.kind[0] in (SelectionKind.ALL, SelectionKind.NONE):
        return True
    _, stop = table.bounds()  # negative where there is no limit: HDF5 counts no elements
    return bool(table.rank[0] == len(shape) and table.fits(shape)[0] and (stop >= 0).all())


def test_no_reference_needs_no_heap(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "file.h5", "w") as file:
        three = np.zeros(3, dtype=np.uint64)
        nothing = region_bytes(file, OnDisk(file), three, empty_table(3, 0))
        assert nothing.shape == (3, 12)
        assert not nothing.any()
        none = np.zeros(0, dtype=np.uint64)
        assert not len(region_bytes(file, OnDisk(file), none, empty_table(0, 0)))


def test_many_are_stored_in_several_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xref.writing.datasets.REGIONS_AT_ONCE", 7)
    with h5py.File(tmp_path / "file.h5", "w", userblock_size=512) as file:
        data = file.create_dataset("line", data=np.arange(100))
        start = np.arange(50)[:, None]
        boxes = box_table(start, np.broadcast_to(np.array([[3]]), start.shape))
        address = np.full(50, address_of(data), dtype=np.uint64)
        raw = region_bytes(file, OnDisk(file), address, boxes)
        rois = file.create_dataset("rois", (50,), dtype=h5py.regionref_dtype)
        rois.id.write(
            h5py.h5s.ALL, h5py.h5s.ALL, raw.view("V12")[:, 0], mtype=h5py.h5t.STD_REF_DSETREG
        )
        assert list(file) == ["line", "rois"]
    with h5py.File(tmp_path / "file.h5") as file:
        for k, reference in enumerate(file["rois"][:]):
            assert file["line"][reference].tolist() == [k, k + 1, k + 2]
