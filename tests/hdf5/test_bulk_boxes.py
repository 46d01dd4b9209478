"""Collections full of boxes decode together as they do one by one, and as h5py says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from heaps import blocks_v1, collection, heap_object, points_v1, regular_v2, regular_v3
from hypothesis import event, given, settings
from hypothesis import strategies as st
from strategies import region_of

import xref.hdf5
import xref.hdf5.bulk_heaps
import xref.references.columns
from xref.errors import XrefError
from xref.hdf5.bulk_boxes import HeapBoxes, decode_boxes
from xref.hdf5.global_heap import pack_collections, walk_collections
from xref.hdf5.selection_decoding import decode_selections
from xref.references.decoding import decode_references
from xref.references.stored import StoredReferences
from xref.selections.table import SelectionTable
from xref.selections.table_building import box_table

Box = tuple[tuple[int, ...], tuple[int, ...]]  # start, shape


def encode(version: int, size: int, box: Box, address_size: int = 8) -> bytes:
    """Encode a box as version 1, 2 or 3 does, the last with numbers of ``size`` bytes."""
    start, shape = box
    if version == 1:
        stop = tuple(a + n for a, n in zip(start, shape, strict=True))
        return blocks_v1([(start, stop)], address_size)
    axes = [(a, 1, 1, n) for a, n in zip(start, shape, strict=True)]
    if version == 2:
        return regular_v2(axes, address_size)
    return regular_v3(axes, size, address_size)


def heap_of(groups: list[list[bytes]], length_size: int = 8) -> list[bytes]:
    """Collections of one size, of which each holds the objects of a group."""
    bodies = [
        [heap_object(i + 1, data, length_size) for i, data in enumerate(group)]
        for group in groups
    ]
    sizes = [sum(map(len, body)) for body in bodies]
    most = max(sizes)
    return [
        collection(*body, length_size=length_size, free=16 + most - size)
        for body, size in zip(bodies, sizes, strict=True)
    ]


class Heap:
    """Collections in memory."""

    def __init__(self, collections: list[bytes], length_size: int, address_size: int) -> None:
        self.size = np.array([len(c) for c in collections])
        packed = pack_collections(self.size)
        self.base = packed[:-1]
        self.buffer = np.zeros(int(packed[-1]) + 8, dtype=np.uint8)
        for data, at in zip(collections, self.base.tolist(), strict=True):
            self.buffer[at : at + len(data)] = np.frombuffer(data, np.uint8)
        self.length_size, self.address_size = length_size, address_size

    def together(self) -> HeapBoxes | None:
        return decode_boxes(
            self.buffer,
            self.base,
            self.size,
            length_size=self.length_size,
            address_size=self.address_size,
        )

    def one_by_one(
        self, of: np.ndarray, index: np.ndarray
    ) -> tuple[np.ndarray, SelectionTable]:
        objects = walk_collections(
            self.buffer, self.base, self.size, self.length_size, "collection {}".format
        )
        place, nbytes = objects.find(of, index, "row {}".format)
        return decode_selections(self.buffer, place, nbytes, self.address_size, "row {}".format)

    def compare(self, of: np.ndarray, index: np.ndarray) -> bool:
        """Compare the two ways for some objects; tell whether all decode together."""
        boxes = self.together()
        rows = None if boxes is None else boxes.rows(of, index)
        if boxes is None or rows is None:
            return False
        address, table = self.one_by_one(of, index)
        np.testing.assert_array_equal(boxes.address[rows], address)
        mine = box_table(boxes.start[rows], boxes.shape[rows])
        assert mine.same_rows(table).all()
        for found, expected in zip(mine.bounds(), table.bounds(), strict=True):
            np.testing.assert_array_equal(found, expected)
        return True


def every_object(groups: list[list[bytes]]) -> tuple[np.ndarray, np.ndarray]:
    """Name every object of collections, in their order."""
    of = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    return of, np.concatenate([np.arange(1, len(g) + 1) for g in groups])


VERSIONS = [(1, 4), (2, 8), (3, 2), (3, 4), (3, 8)]


@st.composite
def heaps_of_boxes(draw: st.DrawFn) -> tuple[list[list[bytes]], int, int]:
    version, size = draw(st.sampled_from(VERSIONS))
    rank, sizes = draw(st.integers(1, 4)), st.sampled_from((2, 4, 8))
    address_size, length_size = draw(sizes), draw(st.sampled_from((4, 8)))
    side = st.integers(0, 200), st.integers(1, 60)
    box = st.tuples(*(st.tuples(*[s] * rank) for s in side))
    groups = draw(st.lists(st.lists(box, max_size=9), min_size=1, max_size=5))
    if not groups[0]:
        groups[0].append(((3,) * rank, (5,) * rank))
    encoded = [[encode(version, size, b, address_size) for b in g] for g in groups]
    return encoded, length_size, address_size


@given(drawn=heaps_of_boxes(), order=st.randoms(use_true_random=False))
def test_boxes_of_any_encoding_decode_together(drawn: Any, order: Any) -> None:
    groups, length_size, address_size = drawn
    heap = Heap(heap_of(groups, length_size), length_size, address_size)
    of, index = every_object(groups)
    assert heap.compare(of, index)
    some = order.choices(range(len(of)), k=len(of))
    assert heap.compare(of[some], index[some])


@given(drawn=heaps_of_boxes(), data=st.data())
@settings(max_examples=5 * settings.default.max_examples)
def test_damaged_boxes_are_refused_or_decode_as_one_by_one(drawn: Any, data: Any) -> None:
    groups, length_size, address_size = drawn
    heap = Heap(heap_of(groups, length_size), length_size, address_size)
    # Headers of collections are checked before.
    ranges = zip(heap.base.tolist(), heap.size.tolist(), strict=True)
    places = [at for base, nbytes in ranges for at in range(base + 16, base + nbytes)]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(places))
        heap.buffer[at] = data.draw(
            st.sampled_from((0, 1, 2, 3, 127, 128, 255)) | st.integers(0, 255)
        )
    event("together" if heap.compare(*every_object(groups)) else "one by one")


BOX = ((7, 5), (3, 2))


def changed(at: int, value: int, width: int = 4) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + value.to_bytes(width, "little") + data[at + width :]


ODD = {
    "start past end": (1, changed(32, 900)),
    "two blocks": (1, changed(28, 2)),
    "rank 0": (1, changed(24, 0)),
    "another version": (1, changed(12, 3)),
    "points": (1, lambda _: points_v1([(1, 2)] * 2)),
    "too short": (1, lambda data: data[:-4]),
    "longer": (1, lambda data: data + bytes(4)),
    "no stride": (3, changed(26, 0)),
    "two counts": (3, changed(30, 2)),
    "no limit": (3, changed(34, 2**32 - 1)),
    "no block": (3, changed(34, 0)),
    "a list of blocks": (3, changed(16, 0, 1)),
    "numbers of another size": (3, changed(17, 2, 1)),
    "huge": (2, changed(25, 2**61 + 1, 8)),
}


@pytest.mark.parametrize("at", [0, 4])
@pytest.mark.parametrize("what", ODD)
def test_one_different_object_is_decoded_object_by_object(what: str, at: int) -> None:
    version, change = ODD[what]
    objects = [encode(version, 4, BOX) for _ in range(5)]
    assert Heap(heap_of([objects, objects]), 8, 8).together() is not None
    odd = [*objects[:at], change(objects[at]), *objects[at + 1 :]]
    heap = Heap(heap_of([objects, odd]), 8, 8)
    assert not heap.compare(*every_object([objects, odd]))


def test_two_objects_with_one_number_are_decoded_object_by_object() -> None:
    parts = [heap_object(i, encode(1, 4, BOX)) for i in (1, 2, 2)]
    heap = Heap([collection(*parts)] * 2, 8, 8)
    assert heap.together() is None
    with pytest.raises(XrefError, match="two objects 2"):
        heap.one_by_one(np.array([0]), np.array([1]))


@pytest.mark.parametrize("free", [0, 8, 24])
def test_an_object_after_the_table_is_found(free: int) -> None:
    parts = [heap_object(i, encode(1, 4, BOX)) for i in (1, 2)]
    tail = heap_object(9, b"")
    assert Heap([collection(*parts, free=free)], 8, 8).together() is not None
    assert Heap([collection(*parts, tail, free=free)], 8, 8).together() is None


@pytest.mark.parametrize("index", [0, 3, 2**32 - 1])
def test_a_missing_object_is_decoded_object_by_object(index: int) -> None:
    objects = [encode(1, 4, BOX)] * 2
    boxes = Heap(heap_of([objects, objects]), 8, 8).together()
    assert boxes is not None
    assert boxes.rows(np.array([0, 0]), np.array([1, index])) is None
    assert boxes.rows(np.array([0, 1]), np.array([1, 2])) is not None


# --- files ---------------------------------------------------------------------------

N = 3_000
EXTENT = (500, 70_000)


@pytest.fixture(params=[("earliest", 0), ("latest", 0), ("latest", 66_000)])
def file_of_boxes(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of references to boxes, in both encodings, with small and large numbers."""
    libver, offset = request.param
    rng = np.random.default_rng(5)
    low = rng.integers(0, (400, 2_000), (N, 2)) + np.array((0, offset))
    high = low + rng.integers(1, 60, (N, 2))
    path = tmp_path / "boxes.h5"
    with h5py.File(path, "w", libver=(libver, "latest")) as file:
        target = file.create_dataset("target", EXTENT, "u1", chunks=(64, 1024))
        rows = file.create_dataset("rois", (N,), h5py.regionref_dtype)
        boxes = zip(low.tolist(), high.tolist(), strict=True)
        rows[...] = np.array(
            [target.regionref[a:c, b:d] for (a, b), (c, d) in boxes], h5py.regionref_dtype
        )
    return path


def stored(path: Path) -> StoredReferences:
    with xr.open_dataset(path, engine="h5ref") as dataset:
        place: StoredReferences = dataset["rois"].variable.data.stored
    return place


def bounds_by_h5py(path: Path) -> np.ndarray:
    """First and last element of each region."""
    with h5py.File(path) as file:
        regions = [h5py.h5r.get_region(r, file.id) for r in file["rois"][...]]
        return np.array([r.get_select_bounds() for r in regions])


def assert_bounds(
    columns: xref.references.columns.ReferenceColumns, expected: np.ndarray
) -> None:
    assert columns.regions is not None
    start, stop = columns.regions.bound_to(EXTENT, str).bounds()
    np.testing.assert_array_equal(start, expected[:, 0])
    np.testing.assert_array_equal(stop, expected[:, 1] + 1)


@pytest.fixture
def never_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        pytest.fail("decoded one by one")

    monkeypatch.setattr(xref.hdf5, "decode_selections", refuse)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("batch_nbytes", [1, 200_000, 1 << 26])
@pytest.mark.usefixtures("never_one_by_one")
def test_references_to_boxes_equal_those_of_h5py(
    file_of_boxes: Path, monkeypatch: pytest.MonkeyPatch, batch_nbytes: int
) -> None:
    monkeypatch.setattr(xref.hdf5.bulk_heaps, "HEAP_BATCH_NBYTES", batch_nbytes)
    expected = bounds_by_h5py(file_of_boxes)
    assert_bounds(stored(file_of_boxes).read(), expected)


@pytest.mark.usefixtures("never_one_by_one")
def test_any_order_of_references_and_nulls_among_them_keep_their_rows(
    file_of_boxes: Path,
) -> None:
    place, expected = stored(file_of_boxes), bounds_by_h5py(file_of_boxes)
    raw = place.read_raw()
    rng = np.random.default_rng(8)
    for order in (np.arange(N)[::-1], rng.permutation(N), rng.integers(0, N, 50)):
        columns = decode_references(
            place.dataset.location, raw[order], "region", place.describe
        )
        assert_bounds(columns, expected[order])
    null = rng.random(N) < 0.3
    raw[null] = 0
    columns = decode_references(place.dataset.location, raw, "region", place.describe)
    assert ((columns.address == 0) == null).all()
    assert_bounds(columns.take(np.flatnonzero(~null)), expected[~null])


def test_decoding_together_and_one_by_one_give_equal_columns(
    file_of_boxes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = stored(file_of_boxes)
    together = place.read()
    monkeypatch.setattr(xref.hdf5, "decode_boxes", lambda *_, **__: None)
    one_by_one = place.read()
    np.testing.assert_array_equal(together.address, one_by_one.address)
    for name in ("kind", "rank", "start", "stride", "count", "block", "first", "size"):
        a, b = (getattr(c.regions, name) for c in (together, one_by_one))
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert a.dtype == b.dtype


def test_other_kinds_of_regions_in_the_same_heap_are_found(tmp_path: Path) -> None:
    path = tmp_path / "mixed.h5"
    with h5py.File(path, "w") as file:
        target = file.create_dataset("target", (40, 50), "u1")
        boxes = [target.regionref[i : i + 3, 5:9] for i in range(20)]
        space = target.id.get_space()
        space.select_elements(np.array([(3, 4), (1, 2)]))
        points = region_of(target, space)
        rows = file.create_dataset("rois", (21,), h5py.regionref_dtype)
        for i, region in enumerate([*boxes, points]):
            rows[i] = region
    with xr.open_dataset(path, engine="h5ref") as dataset:
        references = dataset["rois"].values
    assert [r.bounds for r in references[:20]] == [((i, 5), (i + 3, 9)) for i in range(20)]
    assert references[20].selection.coords.tolist() == [[3, 4], [1, 2]]
