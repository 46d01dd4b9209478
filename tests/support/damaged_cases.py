"""Reads of damaged, changed and unusual files that raise, for the table of `error_cases`."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest
import stdrefs
import xarray as xr
from error_cases import Files, raises
from heaps import header, numbers

import xref
from xref.errors import (
    CorruptFileError,
    DanglingReferenceError,
    ExternalFileError,
    FileChangedError,
    FileReadError,
    ResultTooLargeError,
    SelectionError,
    UnreadableMemberWarning,
    UnsupportedError,
    WrongTargetError,
)

ALLOW = 'external="all"'


def change(path: Path, offset: int, new: bytes) -> Path:
    """Overwrite bytes of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(new)
    return path


def replace(path: Path, old: bytes, new: bytes, nth: int = 0) -> Path:
    """Overwrite bytes that are found in a file."""
    data, at = path.read_bytes(), -1
    for _ in range(nth + 1):
        at = data.index(old, at + 1)
    return change(path, at, new)


# Heaps of references.


def write_regions(at: Files) -> tuple[Path, int, int]:
    """Write three regions; return the file, where they are stored, and their heap."""

    def fill(file: h5py.File) -> None:
        data = file.create_dataset("data", data=np.arange(60.0).reshape(6, 10))
        cells = file.create_dataset("cells", (2,), dtype=h5py.vlen_dtype(h5py.ref_dtype))
        cells[1] = np.array([data.ref], dtype=h5py.ref_dtype)
        rois = file.create_dataset("rois", (3,), dtype=h5py.regionref_dtype)
        rois.attrs["region"] = data.regionref[:1, :1]
        for k in range(3):
            rois[k] = data.regionref[k : k + 2, 3:5]

    path = at.write("d.h5", fill)
    with h5py.File(path) as file:
        offset = file["rois"].id.get_offset()
    heap = struct.unpack_from("<Q", path.read_bytes(), offset)[0]
    return path, offset, heap


def resolve_damaged(at: Files, path: Path) -> Any:
    return at.open(path).rois.h5ref.resolve()


@raises(CorruptFileError, "d.h5: region reference 0 of '/rois'", "b'XXXX", "GCOL")
def a_heap_without_its_signature(at: Files) -> Any:
    path, _, heap = write_regions(at)
    return resolve_damaged(at, change(path, heap, b"XXXX"))


@raises(CorruptFileError, "d.h5: region reference 1 of '/rois'", "0x10000000000", "truncated")
def a_heap_past_the_end(at: Files) -> Any:
    path, offset, _ = write_regions(at)
    return resolve_damaged(at, change(path, offset + 12, struct.pack("<Q", 1 << 40)))


@raises(CorruptFileError, "d.h5: region reference 0 of '/rois'", "5 bytes")
def a_heap_of_an_impossible_size(at: Files) -> Any:
    path, _, heap = write_regions(at)
    return resolve_damaged(at, change(path, heap + 8, struct.pack("<Q", 5)))


@raises(CorruptFileError, "d.h5: region reference 0 of '/rois'", "reaches past")
def a_heap_that_is_too_long(at: Files) -> Any:
    path, _, heap = write_regions(at)
    return resolve_damaged(at, change(path, heap + 8, struct.pack("<Q", 1 << 30)))


@raises(CorruptFileError, "d.h5: region reference 2 of '/rois'", "object 99")
def a_heap_without_the_object(at: Files) -> Any:
    path, offset, _ = write_regions(at)
    return resolve_damaged(at, change(path, offset + 2 * 12 + 8, struct.pack("<I", 99)))


@raises(CorruptFileError, "d.h5: region reference 1 of '/rois'", "object 99")
def one_element_of_a_heap_without_the_object(at: Files) -> Any:
    path, offset, _ = write_regions(at)
    path = change(path, offset + 12 + 8, struct.pack("<I", 99))
    return at.open(path).rois[[2, 1]].values


def with_object(at: Files, data: bytes, nbytes: int | None = None) -> Path:
    """Overwrite the heap object of region 2, the last one, behind the address of its target."""
    path, offset, heap = write_regions(at)
    content = path.read_bytes()
    wanted = struct.unpack_from("<I", content, offset + 2 * 12 + 8)[0]
    position = heap + 16
    while struct.unpack_from("<H", content, position)[0] != wanted:
        size = struct.unpack_from("<Q", content, position + 8)[0]
        position += 16 + -(-size // 8) * 8
    if nbytes is not None:
        change(path, position + 8, struct.pack("<Q", nbytes))
    return change(path, position + 16 + 8, data)


@raises(CorruptFileError, "d.h5: region reference 2 of '/rois'", "selection type 9")
def a_selection_of_an_unknown_type(at: Files) -> Any:
    return resolve_damaged(at, with_object(at, header(9, 1)[8:]))


@raises(CorruptFileError, "d.h5: region reference 2 of '/rois'", "version 9")
def a_selection_of_an_unknown_version(at: Files) -> Any:
    return resolve_damaged(at, with_object(at, header(2, 9)[8:]))


@raises(CorruptFileError, "d.h5: region reference 2 of '/rois'", "too short", "10 bytes")
def a_selection_that_is_cut_off(at: Files) -> Any:
    return resolve_damaged(at, with_object(at, b"", nbytes=10))


@raises(CorruptFileError, "d.h5: region reference 2 of '/rois'")
def a_selection_of_more_points_than_are_stored(at: Files) -> Any:
    data = header(1, 1)[8:] + numbers(4, 0, 100, 2, 1 << 20)
    return resolve_damaged(at, with_object(at, data))


@raises(CorruptFileError, "d.h5: attribute 'region' of '/rois'")
def a_heap_of_an_attribute(at: Files) -> Any:
    path, _, heap = write_regions(at)
    change(path, heap, b"XXXX")
    with pytest.warns(UnreadableMemberWarning, match="'/rois': attribute 'region'") as warned:
        at.open(path)
    raise CorruptFileError(str(warned[0].message).partition("CorruptFileError: ")[2])


@raises(CorruptFileError, "d.h5: ", "element 1 of '/cells'", "5 elements of 8 bytes")
def a_sequence_that_is_longer_than_its_heap_object(at: Files) -> Any:
    path, _, _ = write_regions(at)
    with h5py.File(path) as file:
        offset = file["cells"].id.get_offset()
    change(path, offset + 16, struct.pack("<I", 5))
    return at.open(path).cells.values


# Data of datasets.


def open_stored(at: Files, fill: Callable[[h5py.File], Any], **options: Any) -> xr.DataArray:
    """Write a dataset named image, and open it."""
    return at.open(at.write("d.h5", fill), **options).image


def write_chunk(
    at: Files, data: bytes, corner: tuple[int, ...] = (4, 6), **options: Any
) -> Any:
    """Write one chunk as it is stored, and read all."""

    def fill(file: h5py.File) -> None:
        values = np.arange(144, dtype="i4").reshape(12, 12)
        image = file.create_dataset("image", data=values, chunks=(4, 6), **options)
        image.id.write_direct_chunk((4, 6), data)

    return open_stored(at, fill).values


IN_CHUNK = "d.h5: /image (dataset at 0x", "chunk at (4, 6)"


@raises(CorruptFileError, *IN_CHUNK, "deflate", "7 bytes")
def a_chunk_that_is_no_deflate_stream(at: Files) -> Any:
    return write_chunk(at, b"garbage", compression="gzip")


@raises(CorruptFileError, *IN_CHUNK, "lzf")
def a_chunk_that_is_no_lzf_stream(at: Files) -> Any:
    pytest.importorskip("imagecodecs")
    return write_chunk(at, b"garbage", compression="lzf")


@raises(CorruptFileError, *IN_CHUNK, "szip")
def a_chunk_that_is_no_szip_stream(at: Files) -> Any:
    pytest.importorskip("imagecodecs")
    return write_chunk(at, struct.pack("<I", 9999) + b"garbage", compression="szip")


@raises(CorruptFileError, *IN_CHUNK, "fletcher32", "checksum")
def a_chunk_with_a_wrong_checksum(at: Files) -> Any:
    return write_chunk(at, bytes(96) + b"1234", fletcher32=True)


@raises(CorruptFileError, *IN_CHUNK, "fletcher32", "cut off")
def a_chunk_without_its_checksum(at: Files) -> Any:
    return write_chunk(at, b"1", fletcher32=True)


@raises(CorruptFileError, *IN_CHUNK, "scaleoffset", "header")
def a_chunk_without_its_packing(at: Files) -> Any:
    return write_chunk(at, b"1", scaleoffset=4)


@raises(CorruptFileError, *IN_CHUNK, "gave 95 bytes", "needs 96")
def a_chunk_of_too_few_bytes(at: Files) -> Any:
    return write_chunk(at, bytes(95))


@raises(CorruptFileError, *IN_CHUNK)
def a_region_in_a_damaged_chunk(at: Files) -> Any:
    def fill(file: h5py.File) -> None:
        values = np.arange(144, dtype="i4").reshape(12, 12)
        image = file.create_dataset("image", data=values, chunks=(4, 6), compression="gzip")
        image.id.write_direct_chunk((4, 6), b"garbage")
        file.create_dataset("rois", (1,), dtype=h5py.regionref_dtype)[0] = image.regionref[
            5:7, 7:9
        ]

    path = at.write("d.h5", fill)
    return at.open(path).rois.h5ref.resolve().compute(scheduler="threads")


def write_indexed(at: Files) -> tuple[Path, int]:
    """Write a dataset with a B-tree of chunks; return the offset of its second chunk."""

    def fill(file: h5py.File) -> None:
        values = np.arange(40.0)
        file.create_dataset("image", data=values, chunks=(10,))

    path = at.write("d.h5", fill, libver="earliest")
    with h5py.File(path) as file:
        return path, file["image"].id.get_chunk_info(1).byte_offset


@raises(CorruptFileError, "d.h5: /image", "chunk", "past the end of the file", "truncated")
def a_chunk_past_the_end(at: Files) -> Any:
    path, offset = write_indexed(at)
    path = replace(path, struct.pack("<Q", offset), struct.pack("<Q", 1 << 40))
    return at.open(path).image.values


@raises(CorruptFileError, "d.h5: /image", "(13, 0)", "grid of chunks")
def a_chunk_that_is_not_on_the_grid(at: Files) -> Any:
    path, _ = write_indexed(at)
    key = struct.pack("<IIQQ", 80, 0, 10, 0)
    return at.open(replace(path, key, struct.pack("<IIQQ", 80, 0, 13, 0))).image.values


@raises(CorruptFileError, "d.h5: /image")
def two_chunks_at_one_place(at: Files) -> Any:
    path, _ = write_indexed(at)
    key = struct.pack("<IIQQ", 80, 0, 10, 0)
    return at.open(replace(path, key, struct.pack("<IIQQ", 80, 0, 0, 0))).image.values


@raises(CorruptFileError, "d.h5: /image", "index of chunks", "b'TREE")
def an_index_without_its_signature(at: Files) -> Any:
    path, _ = write_indexed(at)
    data = path.read_bytes()
    return at.open(change(path, data.rindex(b"TREE"), b"XXXX")).image.values


def data_past_the_end(at: Files) -> Path:
    def fill(file: h5py.File) -> None:
        image = file.create_dataset("image", data=np.arange(40.0))
        file.create_dataset("refs", (1,), dtype=h5py.ref_dtype)[0] = image.ref

    path = at.write("d.h5", fill, libver="earliest")
    with h5py.File(path) as file:
        offset = file["image"].id.get_offset()
    layout = struct.pack("<QQ", offset, 320)
    return replace(path, layout, struct.pack("<QQ", path.stat().st_size - 100, 320))


@raises(xref.XrefError, "d.h5: object reference 0 of '/refs'", "corruption")
def contiguous_data_past_the_end(at: Files) -> Any:
    return at.open(data_past_the_end(at)).refs.h5ref.resolve()


@raises(UnsupportedError, "d.h5: /image (dataset at 0x", "directly", "reader='auto'")
def text_with_the_direct_reader(at: Files) -> Any:
    def fill(file: h5py.File) -> None:
        file.create_dataset("image", data=["a", "b"], dtype=h5py.string_dtype())

    return open_stored(at, fill, reader="direct").values


@raises(
    ResultTooLargeError, "d.h5: object reference 0 of '/refs'", "bytes", "large_results=True"
)
def a_result_that_is_not_stored(at: Files) -> Any:
    def fill(file: h5py.File) -> None:
        image = file.create_dataset("image", (1 << 17, 1 << 17), "f8", chunks=(1 << 9, 1 << 9))
        file.create_dataset("refs", (1,), dtype=h5py.ref_dtype)[0] = image.ref

    return at.open(at.write("d.h5", fill)).refs.h5ref.resolve(chunks=None)[0].values


@raises(
    ValueError,
    "d.h5: region reference 0 of '/rois'",
    "days since 2000-01-01",
    "use_cftime=True",
)
def dates_that_decode_to_other_types(at: Files) -> Any:
    pytest.importorskip("cftime")

    def fill(file: h5py.File) -> None:
        times = file.create_dataset("times", data=np.array([0, 10**5, 1, 2]))
        times.attrs["units"] = "days since 2000-01-01"
        file.create_dataset("rois", (1,), dtype=h5py.regionref_dtype)[0] = times.regionref[:2]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xr.SerializationWarning)  # of dates without a type
        return at.open(at.write("d.h5", fill)).rois.h5ref.resolve().values


# Other files.


@raises(ExternalFileError, "d.h5: object reference 0 of '/refs'", "/raw", "raw.bin", ALLOW)
def raw_data_in_another_file(at: Files) -> Any:
    def fill(file: h5py.File) -> None:
        storage = [(str(at.folder / "raw.bin"), 0, 32)]
        raw = file.create_dataset("raw", (4,), "f8", external=storage)
        file.create_dataset("refs", (1,), dtype=h5py.ref_dtype)[0] = raw.ref

    return at.open(at.write("d.h5", fill)).refs.h5ref.resolve()


@raises(ExternalFileError, "d.h5: ", "link 'other'", "elsewhere.h5", ALLOW)
def a_link_to_a_file_elsewhere(at: Files) -> Any:
    def fill(file: h5py.File) -> None:
        file["other"] = h5py.ExternalLink("/elsewhere.h5", "/")

    return at.open(at.write("d.h5", fill), group="/other/inner")


@raises(ExternalFileError, "link 'other'", "elsewhere.h5", "no folder")
def a_link_from_a_file_in_memory(at: Files) -> Any:
    def fill(file: h5py.File) -> None:
        file["other"] = h5py.ExternalLink("elsewhere.h5", "/")

    return at.open(at.write("d.h5", fill).read_bytes(), group="/other/inner")


@raises(UnsupportedError, "d.h5", "'a'", "links")
def links_in_a_circle(at: Files) -> Any:
    def fill(file: h5py.File) -> None:
        file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")

    return at.open(at.write("d.h5", fill), group="/a/inner")


def write_virtual(
    at: Files, source: str, shape: tuple[int, ...] = (4,), start: Any = None
) -> Path:
    """Write a virtual dataset, and a source; with ``start``, a part of it is mapped."""

    def fill(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((4,), "f8")
        whole = h5py.VirtualSource(source, "v", (4 if start is None else 8,))
        layout[:] = whole if start is None else whole[start : start + 4]
        dataset = file.create_virtual_dataset("v", layout)
        file.create_dataset("refs", (1,), dtype=h5py.ref_dtype)[0] = dataset.ref

    at.write("s.h5", lambda file: file.create_dataset("v", data=np.zeros(shape)))
    return at.write("d.h5", fill)


@raises(
    ExternalFileError, "d.h5: object reference 0 of '/refs'", "/v", "/elsewhere/s.h5", ALLOW
)
def a_virtual_source_elsewhere(at: Files) -> Any:
    return at.open(write_virtual(at, "/elsewhere/s.h5")).refs.h5ref.resolve()


@raises(CorruptFileError, "d.h5: /v", "source 'v'", "3 elements", "takes 4")
def a_virtual_source_with_too_few_elements(at: Files) -> Any:
    return at.open(write_virtual(at, "s.h5", (3,))).v.values


@raises(SelectionError, "d.h5: /v", "source 'v'", "(5,)", "(7,)")
def a_virtual_source_that_is_too_short(at: Files) -> Any:
    return at.open(write_virtual(at, "s.h5", (5,), start=3)).v.values


@raises(CorruptFileError, "d.h5: /v", "source 'v'", "2 axes", "1 axes")
def a_virtual_source_of_another_rank(at: Files) -> Any:
    return at.open(write_virtual(at, "s.h5", (8, 8), start=0)).v.values


@raises(UnsupportedError, "d.h5: /v", "16 virtual datasets", "circle")
def virtual_datasets_in_a_circle(at: Files) -> Any:
    return at.open(write_virtual(at, ".")).v.values


@raises(ImportError, "https://example.org/a.h5", "fsspec", "pip install 'xref[remote]'")
def a_url_without_fsspec(at: Files) -> Any:
    with mock.patch.dict(sys.modules, {"fsspec": None}):
        return at.open("https://example.org/a.h5")


# Files that change or close.


@raises(FileChangedError, "d.h5 has changed since it was opened", "open it again")
def a_file_that_was_written_again(at: Files) -> Any:
    path, _, _ = write_regions(at)
    ds = at.open(path)
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b"more")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    return ds.data.values


@raises(FileReadError, "d.h5: the h5py file was closed by its owner")
def an_h5py_file_that_was_closed(at: Files) -> Any:
    path, _, _ = write_regions(at)
    with h5py.File(path, "r", driver="core") as file:
        ds = xr.open_dataset(file, engine="h5ref")
    return ds.data.values


@raises(TypeError, "d.h5 was opened from an h5py object", "open it by its path")
def pickling_an_h5py_file(at: Files) -> Any:
    path, _, _ = write_regions(at)
    with h5py.File(path, "r", driver="core") as file:
        return pickle.dumps(xr.open_dataset(file, engine="h5ref").rois.values[0])


@raises(FileReadError, "the file object was closed by its owner")
def a_file_object_that_was_closed(at: Files) -> Any:
    path, _, _ = write_regions(at)
    with io.BytesIO(path.read_bytes()) as stream:
        ds = xr.open_dataset(stream, engine="h5ref")
    return ds.data.values


@raises(FileReadError, "is a folder, not a regular file")
def a_folder(at: Files) -> Any:
    (at.folder / "folder.h5").mkdir()
    return at.open(at.folder / "folder.h5")


# References of HDF5 1.12, and compounds that stand for regions.


def write_std(at: Files) -> Path:
    def fill(file: h5py.File) -> None:
        file["line"] = np.arange(3)
        for name, value in (("one", 1), ("three", [1, 2, 3]), ("gone", 1)):
            file["line"].attrs[name] = value
        makers = [
            stdrefs.to_attribute(file, "/line", name) for name in ("one", "three", "gone")
        ]
        stdrefs.write_dataset(file, "refs", makers)
        del file["line"].attrs["gone"]
        file["line"].attrs["number"] = 5

    return at.write("std.h5", fill)


@raises(DanglingReferenceError, "std.h5: reference 2 of '/refs'", "'gone'", "/line")
def a_reference_to_an_attribute_that_was_deleted(at: Files) -> Any:
    return at.open(write_std(at)).refs[[2]].h5ref.resolve()


@raises(ValueError, "std.h5: reference 1 of '/refs'", "(3,)", "()", ".items()")
def attributes_of_other_shapes(at: Files) -> Any:
    return at.open(write_std(at)).refs[:2].h5ref.resolve()


@raises(UnsupportedError, "std.h5: reference 1 of '/refs'", "flags 0x9")
def a_reference_with_unknown_flags(at: Files) -> Any:
    path = write_std(at)
    with h5py.File(path) as file:
        # h5py has no dtype for these references.
        offset = h5py.h5d.open(file.id, b"refs").get_offset()
    return at.open(change(path, offset + 18 + 1, b"\x09")).refs.h5ref.table()


def write_series(at: Files, target: str) -> Path:
    dtype = np.dtype([("start", "i4"), ("count", "i4"), ("series", h5py.ref_dtype)])

    def fill(file: h5py.File) -> None:
        file["line"], file["gone"] = np.arange(5), [1]
        file.create_group("group")
        rows = np.array([(0, 2, file["line"].ref), (1, 2, file[target].ref)], dtype=dtype)
        file.create_dataset("series", data=rows, dtype=dtype)
        del file["gone"]

    return at.write("d.h5", fill)


SERIES = "d.h5: object reference 1 of '/series', member 'series'"


@raises(DanglingReferenceError, SERIES, "dangling")
def a_compound_with_a_dangling_reference(at: Files) -> Any:
    return at.open(write_series(at, "gone")).series.h5ref.resolve()


@raises(WrongTargetError, SERIES, "group without 'data'")
def a_compound_with_a_reference_to_a_group(at: Files) -> Any:
    return at.open(write_series(at, "group")).series.h5ref.resolve()


@raises(WrongTargetError, "/series', member 'series'", ".h5ref.field('series')")
def a_compound_with_a_reference_to_a_region(at: Files) -> Any:
    dtype = np.dtype([("start", "i4"), ("count", "i4"), ("series", h5py.regionref_dtype)])

    def fill(file: h5py.File) -> None:
        line = file.create_dataset("line", data=np.arange(5))
        rows = np.array([(0, 2, line.regionref[:2])], dtype=dtype)
        file.create_dataset("series", data=rows, dtype=dtype)

    return at.open(at.write("d.h5", fill)).series.h5ref.resolve()


@raises(UnsupportedError, "d.h5: object reference 0 of '/refs'", "no name")
def a_group_without_a_name(at: Files) -> Any:
    def fill(file: h5py.File) -> None:
        refs = file.create_dataset("refs", (1,), dtype=h5py.ref_dtype)
        # The groups keep each other, so that they stay in the file without a path.
        file["outer/inner/back"] = file.create_group("outer")
        refs[0] = file["outer/inner"].ref
        del file["outer"]

    return at.open(at.write("d.h5", fill)).refs.h5ref.resolve()
