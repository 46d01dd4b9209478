"""Virtual datasets of references: each element counts in the file that stores it.

Beside each dataset of references lies one of numbers, mapped alike. HDF5 reads the
numbers of a virtual dataset; they tell which stored reference each element has to be.
"""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from h5py import h5d, h5p, h5r, h5s, h5t
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import scaled

from xref import UnreadableMemberWarning
from xref.errors import CorruptFileError, ExternalFileError, SelectionError, UnsupportedError
from xref.hdf5.virtual_layout import virtual_axis
from xref.reading.virtual_sources import MAX_DEPTH
from xref.storage.open_files import locate_file

DTYPES = {"object": h5py.ref_dtype, "region": h5py.regionref_dtype}
TYPES = {"object": h5t.STD_REF_OBJ, "region": h5t.STD_REF_DSETREG, "": h5t.NATIVE_INT64}
ENDLESS = h5s.UNLIMITED

Slab = tuple[tuple[int, ...], ...]


def space(shape: tuple[int, ...], *slabs: Slab, grows: bool = False) -> h5s.SpaceID:
    """A dataspace with (start, count, stride, block) selected; all of it without them."""
    found = h5s.create_simple(shape, tuple(ENDLESS if grows else n for n in shape))
    for i, slab in enumerate(slabs):
        found.select_hyperslab(*slab, op=h5s.SELECT_OR if i else h5s.SELECT_SET)
    return found


@dataclass
class Files:
    """Files of one test, and what their stored references are known by."""

    folder: Path
    kind: str
    stored: list[tuple[Path, str, Any]] = field(default_factory=list)

    def source(
        self, name: str, shape: tuple[int, ...], dataset: str = "", **options: Any
    ) -> None:
        """Write references to targets of the file itself, some of them null.

        The files have other targets at other addresses: a reference of one of them
        means something else in another.
        """
        path, first = self.folder / name, len(self.stored)
        with h5py.File(path, "a") as file:
            file.require_dataset("before", (sum(name.encode()),), "u1")
            dtype = DTYPES[self.kind]
            refs = file.create_dataset("refs" + dataset, shape, dtype=dtype, **options)
            numbers = file.create_dataset("numbers" + dataset, shape, "i8", **options)
            for i, index in enumerate(np.ndindex(shape)):
                numbers[index] = first + i
                self.stored.append((path, refs.name, index))
                if i % 5 == 3:
                    continue
                target = file.require_dataset(f"target{i % 3}", (7, 5), "i4")
                target[...] = first * 1000 + i % 3 * 100 + np.arange(35).reshape(7, 5)
                one = target.regionref[i % 6 :, i % 4]
                refs[index] = target.ref if self.kind == "object" else one

    def virtual(
        self,
        name: str,
        shape: tuple[int, ...],
        *mappings: tuple[h5s.SpaceID, str, str, h5s.SpaceID],
        dataset: str = "",
        grows: bool = False,
    ) -> Path:
        """Write virtual datasets; sources are named by what follows "refs" or "numbers"."""
        with h5py.File(self.folder / name, "a") as file:
            file.require_dataset("decoy", (4000,), "u1")
            for prefix, kind in (("refs", self.kind), ("numbers", "")):
                properties = h5p.create(h5p.DATASET_CREATE)
                for at, filename, source, of in mappings:
                    properties.set_virtual(
                        at, filename.encode(), f"{prefix}{source}".encode(), of
                    )
                if not kind:
                    properties.set_fill_value(np.array(-1))
                full = (prefix + dataset).encode()
                h5d.create(file.id, full, TYPES[kind], space(shape, grows=grows), properties)
        return self.folder / name

    def check(self, path: Path, **options: Any) -> np.ndarray:
        """Compare each element with the reference that HDF5 would take; return its number."""
        with h5py.File(path) as file:
            numbers = file["numbers"][...]
        with xr.open_dataset(path, engine="h5ref", **options) as ds:
            refs = ds["refs"]
            assert refs.shape == numbers.shape
            for index, number in np.ndenumerate(numbers):
                found = refs.values[index]
                assert meaning(found) == self.stored_meaning(number), (index, number)
        return numbers

    def stored_meaning(self, number: int) -> Any:
        """What one stored reference selects in its file, by h5py; None where it is null."""
        if number < 0:
            return None
        path, name, index = self.stored[number]
        with h5py.File(path) as file:
            ref = file[name][index]
            if not ref:
                return None
            target = file[h5r.get_name(ref, file.id)]
            if self.kind == "object":
                return str(path), target.name, target[...].ravel().tolist()
            selected = h5r.get_region(ref, target.id)
            out = np.empty(selected.get_select_npoints(), dtype=target.dtype)
            target.id.read(h5s.create_simple(out.shape), selected, out)
            return str(path), target.name, out.tolist()


def meaning(reference: Any) -> Any:
    """What a reference of xref selects, as `Files.stored_meaning` tells it."""
    if not reference:
        return None
    return reference.filename, reference.path, reference.resolve().values.ravel().tolist()


@pytest.fixture(params=DTYPES)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return Files(tmp_path, request.param)


def open_h5(path: Path, **options: Any) -> xr.Dataset:
    return xr.open_dataset(path, engine="h5ref", **options)


# --- mappings ---------------------------------------------------------------------------


def rows_of_files(files: Files) -> Path:
    """Three files of six references, each a row with a column free on either side."""
    mappings = []
    for row, name in enumerate(["a.h5", "b.h5", "c.h5"]):
        files.source(name, (6,), chunks=(4,) if row else None)
        mappings.append((space((3, 8), ((row, 1), (1, 6))), name, "", space((6,))))
    return files.virtual("v.h5", (3, 8), *mappings)


def test_references_of_a_virtual_dataset_refer_to_the_file_of_their_source(
    files: Files,
) -> None:
    numbers = files.check(rows_of_files(files))
    assert np.array_equal(numbers[:, 1:7].ravel(), np.arange(18))
    assert (numbers[:, [0, 7]] == -1).all()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "key",
    [
        (1,),
        (slice(None, None, 2), slice(2, 8, 3)),
        (2, 5),
        (2, 0),
        ([2, 0], [6, 3, 7]),
        (slice(1, 1),),
        (slice(None), slice(7, None)),
    ],
    ids=str,
)
def test_parts_of_a_virtual_dataset_are_read_alone(files: Files, key: tuple[Any, ...]) -> None:
    path = rows_of_files(files)
    with h5py.File(path) as file:
        numbers = file["numbers"][...]
    with open_h5(path) as ds:
        part = ds["refs"].isel(dict(zip(ds["refs"].dims, key, strict=False)))
        again = pickle.loads(pickle.dumps(part))
    wanted = numbers[np.ix_(*key) if isinstance(key[0], list) else key]
    found = np.asarray(again.values, dtype=object)
    assert found.shape == np.shape(wanted)
    for index, number in np.ndenumerate(wanted):
        assert meaning(found[index]) == files.stored_meaning(number)


def test_regions_of_a_virtual_dataset_are_stacked(tmp_path: Path) -> None:
    layout = h5py.VirtualLayout((4,), dtype=h5py.regionref_dtype)
    for i in range(2):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file["pad"] = np.zeros(100 * i)
            file["movie"] = np.arange(30).reshape(6, 5) + 100 * i
            refs = file.create_dataset("refs", (2,), dtype=h5py.regionref_dtype)
            refs[0], refs[1] = (file["movie"].regionref[k : k + 2, 1:4] for k in (0, 3))
        source = h5py.VirtualSource(f"{i}.h5", "refs", (2,), dtype=h5py.regionref_dtype)
        layout[i::2] = source
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_virtual_dataset("refs", layout)
    whole = np.stack([np.arange(30).reshape(6, 5) + 100 * i for i in range(2)])
    with open_h5(tmp_path / "v.h5") as ds:
        stacked = ds["refs"].h5ref.resolve().compute()
    expected = [whole[i % 2, k : k + 2, 1:4] for i, k in enumerate((0, 0, 3, 3))]
    np.testing.assert_array_equal(stacked, expected)


def test_a_source_may_be_in_the_same_file(files: Files) -> None:
    files.source("v.h5", (5,), "_inner")
    path = files.virtual("v.h5", (5,), (space((5,)), ".", "_inner", space((5,))))
    assert (files.check(path) >= 0).all()
    with open_h5(path) as ds:
        assert ds["refs"].variable.data.columns.files[-1:] == (locate_file(path),)


def test_mappings_pair_elements_in_c_order(files: Files) -> None:
    files.source("s.h5", (4, 6), chunks=(3, 2))
    unions = (
        space((3, 9), ((1, 0), (1, 2)), ((0, 4), (3, 1))),
        space((4, 6), ((0, 5), (3, 1)), ((0, 1), (1, 2))),
    )
    flat = files.virtual("f.h5", (12,), (space((12,)), "s.h5", "", columns_of(4, 6, 2)))
    files.check(flat)
    path = files.virtual(
        "v.h5",
        (3, 9),
        (space((3, 9), ((0, 1), (1, 3), (1, 3))), "s.h5", "", space((4, 6), ((3, 1), (1, 3)))),
        (unions[0], "s.h5", "", unions[1]),
    )
    numbers = files.check(path)
    assert (numbers >= 0).sum() == 7  # both mappings have (0, 4)


def columns_of(rows: int, columns: int, step: int) -> h5s.SpaceID:
    return space((rows, columns), ((0, 0), (1, columns // step), (1, step), (rows, 1)))


slabs = st.tuples(
    st.integers(0, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)
).filter(lambda s: s[1] == 1 or s[3] <= s[2])


@st.composite
def selections(draw: st.DrawFn, ndim: int, n_slabs: int) -> tuple[tuple[int, ...], list[Slab]]:
    """Hyperslabs of one dataset, and a shape with room for them."""
    found = [draw(st.lists(slabs, min_size=ndim, max_size=ndim)) for _ in range(n_slabs)]
    shape = tuple(
        max(s[i][0] + (s[i][1] - 1) * s[i][2] + s[i][3] for s in found) for i in range(ndim)
    )
    return shape, [
        tuple(zip(*((a, c, s, b) for a, c, s, b in slab), strict=True)) for slab in found
    ]


@given(
    virtual=st.integers(1, 3).flatmap(lambda n: selections(n, 1)),
    union=st.booleans(),
    data=st.data(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=scaled(60))
def test_any_selections_map_as_in_hdf5(
    tmp_path_factory: pytest.TempPathFactory, virtual: Any, union: bool, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("mapped")
    files = Files(folder, "object")
    shape, virtual_slabs = virtual
    n = space(shape, *virtual_slabs).get_select_npoints()
    source_shape, source_slabs = data.draw(
        st.integers(1, 2).flatmap(lambda ndim: selections(ndim, 2 if union else 1))
    )
    of = space(source_shape, *source_slabs)
    if of.get_select_npoints() != n:  # as many elements in one row, a gap between them
        source_shape = (2, 2 * n)
        of = space(source_shape, ((1, 0), (1, n), (1, 2), (1, 1)))
    files.source("s.h5", source_shape)
    path = files.virtual("v.h5", shape, (space(shape, *virtual_slabs), "s.h5", "", of))
    assert (files.check(path) >= 0).sum() == n


def test_the_last_of_overlapping_mappings_gives_the_elements(files: Files) -> None:
    files.source("a.h5", (6,))
    files.source("b.h5", (6,))
    path = files.virtual(
        "v.h5",
        (8,),
        (space((8,), ((0,), (6,))), "a.h5", "", space((6,))),
        (space((8,), ((2,), (6,))), "b.h5", "", space((6,))),
        (space((8,), ((1,), (6,))), "b.h5", "_that_is_missing", space((6,))),
    )
    assert files.check(path).tolist() == [0, 1, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("grown", ["axis 0", "axis 1"])
def test_unlimited_selections_follow_the_extent_of_their_source(
    files: Files, grown: str
) -> None:
    axis = int(grown[-1])
    files.source("s.h5", (4, 5), maxshape=(None, None), chunks=(2, 2))
    count, stride = [1, 1], [1, 1]
    count[axis], stride[axis] = ENDLESS, 3
    slab = ((0, 0), tuple(count), tuple(stride), (2, 2))
    path = files.virtual(
        "v.h5",
        (2, 2),
        (space((2, 2), slab, grows=True), "s.h5", "", space((4, 5), slab, grows=True)),
        grows=True,
    )
    numbers = files.check(path)
    assert numbers.shape[axis] == (4, 5)[axis]
    assert (numbers >= 0).any()


def test_unlimited_blocks_begin_at_any_element(files: Files) -> None:
    files.source("s.h5", (4,), maxshape=(None,), chunks=(2,))
    one, other = (((k,), (1,), (1,), (ENDLESS,)) for k in (1, 0))
    path = files.virtual(
        "v.h5",
        (4,),
        (space((4,), one, grows=True), "s.h5", "", space((4,), other, grows=True)),
        grows=True,
    )
    assert files.check(path).tolist() == [-1, 0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("filename", ["s.h5", "s%b.h5", "100%%.h5"])
def test_numbered_sources_have_a_block_each(files: Files, filename: str) -> None:
    for k in range(3):
        name = filename.replace("%b", str(k)).replace("%%", "%")
        files.source(name, (2, 2), f"_{k}")
    slab = ((0, 1), (ENDLESS, 1), (3, 1), (2, 2))
    path = files.virtual(
        "v.h5",
        (2, 4),
        (space((2, 4), slab, grows=True), filename, "_%b", space((2, 2))),
        grows=True,
    )
    numbers = files.check(path)
    assert numbers.shape == (8, 4)
    assert sorted(numbers[numbers >= 0]) == list(range(12))


# --- sources ----------------------------------------------------------------------------


def test_virtual_datasets_of_virtual_datasets_are_followed(files: Files) -> None:
    (files.folder / "sub").mkdir()
    files.source("sub/s.h5", (6,))
    files.virtual(
        "sub/inner.h5", (4,), (space((4,)), "s.h5", "", space((6,), ((1,), (2,), (2,), (2,))))
    )
    path = files.virtual(
        "v.h5", (6,), (space((6,), ((0,), (2,), (4,), (2,))), "sub/inner.h5", "", space((4,)))
    )
    assert files.check(path).tolist() == [1, 2, -1, -1, 3, 4]


def test_a_source_may_be_behind_links(files: Files) -> None:
    files.source("s.h5", (3,))
    with h5py.File(files.folder / "links.h5", "w") as file:
        for name in ("refs", "numbers"):
            file[f"group/{name}"] = h5py.ExternalLink("s.h5", f"/{name}")
            file[f"{name}_soft"] = h5py.SoftLink(f"/group/{name}")
    path = files.virtual("v.h5", (3,), (space((3,)), "links.h5", "_soft", space((3,))))
    assert files.check(path).tolist() == [0, 1, 2]


def test_elements_of_missing_sources_are_null(files: Files) -> None:
    files.source("s.h5", (2,))
    path = files.virtual(
        "v.h5",
        (6,),
        (space((6,), ((0,), (2,))), "missing.h5", "", space((2,))),
        (space((6,), ((2,), (2,))), "s.h5", "", space((2,))),
        (space((6,), ((4,), (2,))), "s.h5", "_missing", space((2,))),
    )
    assert files.check(path).tolist() == [-1, -1, 0, 1, -1, -1]


@pytest.mark.parametrize(
    ("of", "error", "message"),
    [
        (space((9,), ((1,), (6,))), SelectionError, r"has shape \(4,\).* up to \(7,\)"),
        (space((9,), ((0,), (5,)), ((8,), (1,))), SelectionError, r"up to \(9,\)"),
        (space((6,)), CorruptFileError, "gives 4 elements where .* takes 6"),
        (space((3, 2), ((0, 0), (3, 2))), CorruptFileError, "has 1 axes"),
    ],
    ids=["shrunk", "shrunk union", "size", "rank"],
)
def test_sources_of_another_shape_are_refused(
    files: Files, of: h5s.SpaceID, error: type[Exception], message: str
) -> None:
    # HDF5 fills some of these with what it finds in memory.
    files.source("s.h5", (4,))
    path = files.virtual("v.h5", (6,), (space((6,)), "s.h5", "", of))
    with open_h5(path) as ds:
        for name in ("refs", "numbers"):
            with pytest.raises(error, match=message):
                np.asarray(ds[name].values).tolist()


def test_sources_of_another_type_are_refused(files: Files) -> None:
    with h5py.File(files.folder / "s.h5", "w") as file:
        file["refs"] = file["numbers"] = np.arange(4)
        file["refs_group/x"] = 1
    path = files.virtual("v.h5", (4,), (space((4,)), "s.h5", "", space((4,))))
    with open_h5(path) as ds, pytest.raises(UnsupportedError, match="its virtual dataset"):
        ds["refs"].values.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("external", ["none", "same-dir"])
def test_virtual_sources_are_checked_like_external_links(files: Files, external: str) -> None:
    (files.folder / "inside").mkdir()
    files.source("outside.h5", (3,))
    with h5py.File(files.folder / "inside" / "links.h5", "w") as file:
        for name in ("refs", "numbers"):
            file[name] = h5py.ExternalLink("../outside.h5", f"/{name}")
    files.virtual("inside/nested.h5", (3,), (space((3,)), "../outside.h5", "", space((3,))))
    everything = (space((3,)), space((3,)))
    for name, source in (
        ("direct", "../outside.h5"),
        ("link", "links.h5"),
        ("far", "nested.h5"),
    ):
        path = files.virtual(
            f"inside/{name}.h5", (3,), (everything[0], source, "", everything[1])
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreadableMemberWarning)
            ds = open_h5(path, external=external)
        with ds:
            refused = {"refs", "numbers"} - set(ds)
            for variable in sorted({"refs", "numbers"} & set(ds)):
                with pytest.raises(ExternalFileError):
                    np.asarray(ds[variable].values).tolist()
                refused.add(variable)
        assert refused == {"refs", "numbers"}
        files.check(path, external="all")


def test_hdf5_does_not_search_the_working_folder(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files.folder / "inside").mkdir()
    files.source("s.h5", (3,))
    path = files.virtual("inside/v.h5", (3,), (space((3,)), "s.h5", "", space((3,))))
    monkeypatch.chdir(files.folder)
    with open_h5(path) as ds:
        with pytest.raises(ExternalFileError, match="would read"):
            ds["numbers"].values.tolist()
        assert not ds["refs"].variable.data.astype(bool).any()


def circle(files: Files, grows: bool) -> Path:
    """Two files whose virtual datasets are each other's sources."""
    slab = ((0,), (ENDLESS,), (1,), (1,)) if grows else ((0,), (4,))
    for one, other in (("a.h5", "b.h5"), ("b.h5", "a.h5")):
        both = (space((4,), slab, grows=grows) for _ in range(2))
        at, of = both
        files.virtual(one, (4,), (at, other, "", of), grows=grows)
    return files.folder / "a.h5"


@pytest.mark.parametrize("grows", [False, True])
def test_circles_of_virtual_datasets_are_refused(files: Files, grows: bool) -> None:
    path = circle(files, grows)
    with open_h5(path) as ds:
        for name in ("refs", "numbers"):
            assert ds[name].shape == (4,)
            with pytest.raises(UnsupportedError, match=f"{MAX_DEPTH} virtual datasets"):
                np.asarray(ds[name].values).tolist()


def test_damaged_sources_raise_an_error(files: Files) -> None:
    files.source("s.h5", (3,))
    path = files.virtual("v.h5", (3,), (space((3,)), "s.h5", "", space((3,))))
    (files.folder / "s.h5").write_bytes(b"no file of HDF5" * 100)
    with open_h5(path) as ds, pytest.raises(OSError, match="signature"):
        ds["refs"].values.tolist()


@pytest.mark.parametrize(
    "numbers", [(0, 0, 1, 1), (0, 1, 1, 0), (0, 1, 3, 2), (2**62, 1, 1, 1), (0, 2**62, 2, 1)]
)
def test_impossible_axes_of_mappings_are_refused(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(CorruptFileError, match="blocks"):
        virtual_axis(*numbers, "f.h5: '/v'")


@pytest.mark.slow
def test_thousands_of_sources_are_assembled(tmp_path: Path) -> None:
    n = 2000
    layout = h5py.VirtualLayout((n,), dtype=h5py.ref_dtype)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        for i in range(n):
            refs = file.create_dataset(f"g/{i}", (1,), dtype=h5py.ref_dtype)
            refs[0] = file.create_dataset(f"d/{i}", data=i).ref
            layout[n - 1 - i] = h5py.VirtualSource(".", f"g/{i}", (1,), dtype=h5py.ref_dtype)[0]
        file.create_virtual_dataset("refs", layout)
    with open_h5(tmp_path / "v.h5") as ds:
        found = [r.path for r in ds["refs"].values]
    assert found == [f"/d/{n - 1 - i}" for i in range(n)]
