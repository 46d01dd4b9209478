"""Files with any names, link cycles, deep groups, and every version of groups and file."""

from __future__ import annotations

import itertools
import time
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from h5py import h5d, h5f, h5g, h5p, h5s, h5t
from samples import open_h5
from strategies import LIBVERS

from xref import UnreadableMemberWarning
from xref.objects.paths import object_paths
from xref.storage.open_files import locate_file


def small(parent: h5py.Group, name: bytes, first: int) -> None:
    """Write three numbers under a name of any bytes."""
    made = h5d.create(parent.id, name, h5t.STD_I32LE, h5s.create_simple((3,)))
    h5py.Dataset(made)[...] = first + np.arange(3)


def assert_like_h5py(path: Path, ds: xr.Dataset, group: str = "/") -> None:
    """Compare the variables of one group with h5py's datasets."""
    with h5py.File(path) as file:
        datasets = {k: v[()] for k, v in file[group].items() if isinstance(v, h5py.Dataset)}
        assert set(ds.variables) == set(datasets)
        for name, values in datasets.items():
            if h5py.check_ref_dtype(file[group][name].dtype) is None:
                np.testing.assert_array_equal(ds[name].values, values, err_msg=name)


# --- names ------------------------------------------------------------------------------

NAMES = [
    b"caf\xe9",
    "Ünï".encode(),
    "日本".encode(),
    b"two words",
    b" ",
    b"\n",
    b"a.b",
    b"..",
    b"...",
    b"%b",
    b"'q'",
    b"x" * 300,
]


@pytest.mark.slow
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_names_may_be_any_bytes_except_slashes(tmp_path: Path, libver: str) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w", libver=libver) as file:
        for i, name in enumerate(NAMES):
            small(file, name, 10 * i)
            inner = h5py.Group(h5g.create(file.id, b"g" + name))
            small(inner, name, 10 * i + 5)
        refs = file.create_dataset("refs", (len(NAMES),), dtype=h5py.ref_dtype)
        for i, name in enumerate(NAMES):
            refs[i] = h5py.h5r.create(file.id, name, h5py.h5r.OBJECT)
    groups = xr.open_groups(path, engine="h5ref")
    texts = [name.decode("utf-8", "surrogateescape") for name in NAMES]
    assert set(groups) == {"/", *(f"/g{name}" for name in texts)}
    assert set(groups["/"]) == {"refs", *texts}
    for i, name in enumerate(texts):
        assert groups["/"][name].values.tolist() == [10 * i, 10 * i + 1, 10 * i + 2]
        assert groups[f"/g{name}"][name].values[0] == 10 * i + 5
        with open_h5(path, group=f"g{name}") as ds:
            assert ds[name].values[0] == 10 * i + 5
        reference = groups["/"]["refs"].values[i]
        assert reference.path == f"/{name}"
        assert reference.resolve().values[0] == 10 * i


# --- links ------------------------------------------------------------------------------


def test_trees_with_hard_link_cycles_terminate(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        small(file.create_group("a/b/c"), b"data", 1)
        file["a/b/c/up"] = file["a"]
        file["a/b/self"] = file["a/b"]
        file["a/root"] = file["/"]
        file["z"] = file["a/b/c/data"]
    groups = xr.open_groups(path, engine="h5ref")
    assert set(groups) == {"/", "/a", "/a/b", "/a/b/c"}
    assert_like_h5py(path, groups["/a/b/c"], "a/b/c")
    assert_like_h5py(path, groups["/"])
    tree = xr.open_datatree(path, engine="h5ref")
    assert {node.path for node in tree.subtree} == set(groups)
    around = "a/b/self/c/up/root/a/b/c"
    with open_h5(path, group=around) as ds:
        assert_like_h5py(path, ds, around)
    with open_h5(path, group="a/root/a/root") as ds:
        assert_like_h5py(path, ds)
    assert set(object_paths(locate_file(path)).values()) == {"/", "/a", "/a/b", "/a/b/c", "/z"}


def test_external_links_between_two_files_may_form_a_cycle(tmp_path: Path) -> None:
    for one, other in (("a.h5", "b.h5"), ("b.h5", "a.h5")):
        with h5py.File(tmp_path / one, "w") as file:
            small(file, b"own", ord(one[0]))
            file["group/x"] = [1, 2]
            file["other"] = h5py.ExternalLink(other, "/own")
            file["loop"] = h5py.ExternalLink(other, "/loop")
            file["far"] = h5py.ExternalLink(other, "/")
            file["far_group"] = h5py.ExternalLink(other, "/group")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnreadableMemberWarning)
        ds = open_h5(tmp_path / "a.h5")
    assert ["'/loop'" in str(w.message) for w in caught] == [True]
    assert ds["own"].values[0] == ord("a")
    assert ds["other"].values[0] == ord("b")
    with open_h5(tmp_path / "a.h5", group="far_group") as group:
        assert group["x"].values.tolist() == [1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableMemberWarning)
        back = open_h5(tmp_path / "a.h5", group="far/far/far")
    assert back["own"].values[0] == ord("b")
    assert back["other"].values[0] == ord("a")


# --- depth and width --------------------------------------------------------------------


@pytest.mark.slow
def test_opening_nested_groups_takes_time_linear_in_depth(tmp_path: Path) -> None:
    def chain(depth: int) -> tuple[float, dict[str, xr.Dataset]]:
        path = tmp_path / f"{depth}.h5"
        with h5py.File(path, "w") as file:
            group = file.create_group("top")
            for _ in range(depth - 1):
                group = group.create_group("g")
            small(group, b"data", depth)
        begin = time.process_time()
        found = xr.open_groups(path, engine="h5ref")
        return time.process_time() - begin, found

    chain(10)  # imports and caches
    short, _ = chain(500)
    long, groups = chain(5000)
    assert len(groups) == 5001
    deepest = max(groups, key=len)
    assert deepest == "/top" + "/g" * 4999
    assert groups[deepest]["data"].values.tolist() == [5000, 5001, 5002]
    # Searching each path from the root would take about a hundred times as long.
    assert long < 30 * short + 2


@pytest.mark.slow
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_group_of_20_000_variables_opens(tmp_path: Path, libver: str) -> None:
    path = tmp_path / "wide.h5"
    n = 20_000
    with h5py.File(path, "w", libver=libver) as file:
        scalar = h5s.create(h5s.SCALAR)
        for i in range(n):
            made = h5d.create(file.id, b"v%d" % i, h5t.STD_I32LE, scalar)
            if i % 1000 == 7:
                h5py.Dataset(made)[()] = i
    with open_h5(path) as ds:
        assert len(ds) == n
        for i in range(7, n, 1000):
            assert int(ds[f"v{i}"]) == i
        assert int(ds["v8"]) == 0


# --- versions of groups and of the file -------------------------------------------------


def fill(file: h5py.File, *, grows: bool = True) -> None:
    """Groups with few and with many members, references, attributes and chunks."""
    for i in range(12):
        small(file, f"v{i:02d}".encode(), i)
    file.create_dataset(
        "chunked", data=np.arange(40).reshape(8, 5), chunks=(3, 2), compression=1
    )
    file.create_dataset(
        "grows", data=np.arange(9), maxshape=(None,) if grows else None, chunks=(4,)
    )
    two = file.create_dataset(
        "two",
        data=np.arange(12).reshape(3, 4),
        maxshape=(None, None) if grows else None,
        chunks=(2, 2),
    )
    refs = file.create_dataset("refs", (2,), dtype=h5py.ref_dtype)
    refs[0] = two.ref
    regions = file.create_dataset("regions", (2,), dtype=h5py.regionref_dtype)
    regions[0], regions[1] = two.regionref[1:3, 1:3], two.regionref[0:2, 2:4]
    for i in range(10):
        file.attrs[f"a{i}"] = i
    small(file.create_group("group/below"), b"data", 100)


def check(path: Path) -> None:
    with h5py.File(path) as file:
        two = file["two"][...]
    groups = xr.open_groups(path, engine="h5ref")
    assert set(groups) == {"/", "/group", "/group/below"}
    ds = groups["/"]
    assert_like_h5py(path, ds)
    assert_like_h5py(path, groups["/group/below"], "group/below")
    assert ds.attrs == {f"a{i}": i for i in range(10)}
    assert [bool(r) for r in ds["refs"].values] == [True, False]
    np.testing.assert_array_equal(ds["refs"].values[0].resolve(), two)
    resolved = ds["regions"].h5ref.resolve().values
    np.testing.assert_array_equal(resolved, [two[1:3, 1:3], two[0:2, 2:4]])


@pytest.mark.sampled(13)
@pytest.mark.parametrize(
    ("libver", "userblock", "track_order"),
    [
        *itertools.product(LIBVERS, (0, 512), (False,)),
        ("earliest", 1 << 16, True),
        ("latest", 1 << 16, True),
    ],
    ids=str,
)
def test_files_of_every_version_and_user_block_open(
    tmp_path: Path, libver: Any, userblock: int, track_order: bool
) -> None:
    path = tmp_path / "f.h5"
    options = {"libver": libver, "userblock_size": userblock, "track_order": track_order}
    with h5py.File(path, "w", **options) as file:
        fill(file)
    check(path)


def creation(**sizes: Any) -> h5p.PropFCID:
    properties = h5p.create(h5p.FILE_CREATE)
    for name, arguments in sizes.items():
        getattr(properties, f"set_{name}")(*arguments)
    return properties


CREATION = {
    "short offsets": {"sizes": (4, 8)},
    "short lengths": {"sizes": (8, 4)},
    "both short": {"sizes": (4, 4)},
    "pages": {"file_space_strategy": (h5f.FSPACE_STRATEGY_PAGE, True, 1)},
    "small pages": {
        "file_space_strategy": (h5f.FSPACE_STRATEGY_PAGE, False, 1),
        "file_space_page_size": (512,),
    },
    "free space kept": {"file_space_strategy": (h5f.FSPACE_STRATEGY_FSM_AGGR, True, 1)},
    "no free space": {"file_space_strategy": (h5f.FSPACE_STRATEGY_NONE, False, 1)},
    "small user block": {"userblock": (512,), "sizes": (4, 4)},
}


@pytest.mark.sampled(29)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("name", CREATION)
def test_files_of_every_address_size_and_space_strategy_open(
    tmp_path: Path, name: str, libver: str
) -> None:
    path = tmp_path / "f.h5"
    access = h5p.create(h5p.FILE_ACCESS)
    low = h5f.LIBVER_EARLIEST if libver == "earliest" else h5f.LIBVER_LATEST
    access.set_libver_bounds(low, h5f.LIBVER_LATEST)
    made = h5f.create(bytes(path), h5f.ACC_TRUNC, creation(**CREATION[name]), access)
    with h5py.File(made) as file:
        # HDF5 2.0 does not open again what it writes without end in lengths of 4 bytes.
        fill(file, grows=CREATION[name].get("sizes", (8, 8))[1] == 8)
    check(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("low", "high", "version"),
    [
        (h5f.LIBVER_EARLIEST, h5f.LIBVER_V18, 0),
        (h5f.LIBVER_V18, h5f.LIBVER_V18, 2),
        (h5f.LIBVER_V110, h5f.LIBVER_V110, 3),
        (h5f.LIBVER_LATEST, h5f.LIBVER_LATEST, 3),
    ],
)
def test_files_of_every_superblock_version_open(
    tmp_path: Path, low: int, high: int, version: int
) -> None:
    path = tmp_path / "f.h5"
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_libver_bounds(low, high)
    with h5py.File(h5f.create(bytes(path), h5f.ACC_TRUNC, creation(), access)) as file:
        fill(file)
    assert path.read_bytes()[8] == version
    check(path)


@pytest.mark.slow
@pytest.mark.parametrize("n_members", [3, 200])
@pytest.mark.parametrize("order", [0, h5p.CRT_ORDER_TRACKED | h5p.CRT_ORDER_INDEXED])
def test_compact_and_dense_groups_open(tmp_path: Path, n_members: int, order: int) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w", libver="latest") as file:
        properties = h5p.create(h5p.GROUP_CREATE)
        properties.set_link_creation_order(order)
        group = h5py.Group(h5g.create(file.id, b"g", gcpl=properties))
        for i in range(n_members):
            small(group, f"v{n_members - i}".encode(), i)
    with open_h5(path, group="g") as ds:
        assert len(ds) == n_members
        assert_like_h5py(path, ds, "g")
