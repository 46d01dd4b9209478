"""Groups with several names: under each name in trees, cycles cut, few reads, a limit."""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from xref import UnreadableMemberWarning, objects
from xref.engine import variables
from xref.objects import trees
from xref.storage import locate_file


def contents(path: Path, engine: str, **options: Any) -> dict[str, Any]:
    """Return the dimensions, values and attributes of all groups of a file."""
    groups = xr.open_groups(path, engine=engine, **options)
    found = {
        name: {
            "attrs": ds.attrs,
            **{v: (x.dims, x.values.tolist(), x.attrs) for v, x in ds.variables.items()},
        }
        for name, ds in groups.items()
    }
    for ds in groups.values():
        ds.close()
    return found


def hard_and_soft(file: h5py.File) -> None:
    file["z/x"] = np.arange(3)
    file["z/inner/y"] = np.arange(2.0)
    file["z"].attrs["who"] = "z"
    file["a_soft"] = h5py.SoftLink("/z")
    file["b_hard"] = file["z"]
    file["z/x2"] = file["z/x"]
    file["z/x3"] = h5py.SoftLink("x")


def chain_of_soft_links(file: h5py.File) -> None:
    file["data/x"] = np.arange(3)
    file["first"] = h5py.SoftLink("/second")
    file["second"] = h5py.SoftLink("third/in")
    file["third/in"] = h5py.SoftLink("/data")


def scales_in_the_parent(file: h5py.File) -> None:
    file["time"] = np.arange(5)
    file["time"].make_scale("time")
    file["g/v"] = np.arange(5.0)
    file["g/v"].dims[0].attach_scale(file["time"])
    file["g/time"] = np.arange(5)
    file["h/k"] = file["g"]
    file["h/other"] = np.arange(5)


def text_and_types(file: h5py.File) -> None:
    file["g/names"] = ["ä", "bcd"]
    file["g/one"] = np.arange(4).reshape(2, 2)
    file["g/one"].attrs["units"] = "m"
    file["h/g"] = file["g"]
    file["h/names"] = file["g/names"]


@pytest.mark.parametrize("phony_dims", ["sort", "access"])
@pytest.mark.parametrize(
    "write", [hard_and_soft, chain_of_soft_links, scales_in_the_parent, text_and_types]
)
def test_a_group_is_in_the_tree_under_every_name_as_with_h5netcdf(
    tmp_path: Path, write: Callable[[h5py.File], None], phony_dims: str
) -> None:
    pytest.importorskip("h5netcdf")
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        write(file)
    expected = contents(path, "h5netcdf", phony_dims=phony_dims)
    assert contents(path, "h5ref", phony_dims=phony_dims) == expected
    with xr.open_datatree(path, engine="h5ref", phony_dims=phony_dims) as tree:
        assert {node.path for node in tree.subtree} == set(expected)
    for name in expected:
        with xr.open_dataset(path, engine="h5ref", group=name, phony_dims=phony_dims) as ds:
            values = {v: x.values.tolist() for v, x in ds.variables.items()}
        assert values == {v: x[1] for v, x in expected[name].items() if v != "attrs"}


@pytest.mark.parametrize(("home", "other"), [("a", "b"), ("b", "a")])
def test_scales_of_a_group_keep_their_names_where_its_parent_has_others(
    tmp_path: Path, home: str, other: str
) -> None:
    # h5netcdf cannot open this file: it looks for the scale by its name in the parents.
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        for group, n in ((home, 3), (other, 4)):
            file[f"{group}/time"] = np.arange(n)
            file[f"{group}/time"].make_scale("time")
        file[f"{home}/sub/v"] = np.arange(3.0)
        file[f"{home}/sub/v"].dims[0].attach_scale(file[f"{home}/time"])
        file[f"{home}/sub/below/w"] = np.arange(2)
        file[f"{other}/sub"] = file[f"{home}/sub"]
        file["c"] = h5py.SoftLink(f"/{home}/sub")
    groups = xr.open_groups(path, engine="h5ref")
    for name in ("/a/sub", "/b/sub", "/c"):
        assert groups[name]["v"].sizes == {"time": 3}
        assert groups[f"{name}/below"]["w"].shape == (2,)
    # In a tree, the subgroup of the other group would be below a dimension "time" of 4.
    label = rf"f\.h5: group '/{other}/sub' was left out"
    with pytest.warns(UnreadableMemberWarning, match=label) as caught:
        tree = xr.open_datatree(path, engine="h5ref")
    assert len(caught) == 1
    expected = set(groups) - {f"/{other}/sub", f"/{other}/sub/below"}
    assert {node.path for node in tree.subtree} == expected


@pytest.mark.parametrize("external", ["same-dir", "none"])
def test_external_links_lead_to_groups_that_the_option_allows(
    tmp_path: Path, external: str
) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["g/time"] = np.arange(5)
        file["g/time"].make_scale("time")
        file["g/s/w"] = np.arange(5.0)
        file["g/s/w"].dims[0].attach_scale(file["g/time"])
        file["g/s/back"] = h5py.ExternalLink("f.h5", "/a")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a/x"] = np.arange(2)
        file["a/away"] = h5py.ExternalLink("other.h5", "/g")
        file["short"] = h5py.SoftLink("/a/away/s")
    if external == "none":
        with pytest.warns(UnreadableMemberWarning, match="ExternalFileError"):
            groups = xr.open_groups(tmp_path / "f.h5", engine="h5ref", external=external)
        assert set(groups) == {"/", "/a"}
        return
    with xr.open_datatree(tmp_path / "f.h5", engine="h5ref", phony_dims="access") as tree:
        paths = [node.path for node in tree.subtree]
        expected = {"/", "/a", "/a/away", "/a/away/s", "/short", "/short/back"}
        assert {*paths} == {*expected, "/short/back/away"}
        assert tree["a/away/s/w"].dims == tree["short/w"].dims == ("time",)
        np.testing.assert_array_equal(tree["short/w"], np.arange(5.0))
        np.testing.assert_array_equal(tree["short/back/x"], np.arange(2))
        with xr.open_dataset(tmp_path / "f.h5", engine="h5ref", group="a/away/s") as ds:
            assert ds["w"].dims == ("time",)


def test_a_name_that_leads_back_above_itself_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file["a/x"] = np.arange(3)
        file["a/self"] = file["a"]
        file["a/top"] = h5py.SoftLink("/")
        file["a/b/back"] = h5py.SoftLink("/a")
        file["a/b/y"] = np.arange(2)
        file["c"] = file["a/b"]
        file["d"] = h5py.ExternalLink("f.h5", "/")
    groups = xr.open_groups(path, engine="h5ref")
    assert list(groups) == ["/", "/a", "/a/b", "/c", "/c/back"]
    np.testing.assert_array_equal(groups["/c/back"]["x"], np.arange(3))
    with xr.open_dataset(path, engine="h5ref", group="a/self/b/back/top/a") as ds:
        np.testing.assert_array_equal(ds["x"], np.arange(3))
    below = xr.open_groups(path, engine="h5ref", group="/a/self/b")
    assert list(below) == [".", "back", "back/top"]


@given(
    links=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=12)
)
def test_every_chain_of_links_without_a_return_is_a_name(
    tmp_path_factory: pytest.TempPathFactory, links: list[tuple[int, int, bool]]
) -> None:
    """Group i is /i. Link k leads from one group to another, and is named "l<k>"."""
    path = tmp_path_factory.mktemp("links") / "f.h5"
    below: dict[str, list[tuple[str, str]]] = {"/": []}
    with h5py.File(path, "w") as file:
        for i in range(6):
            file.create_group(str(i)).attrs["number"] = i
            below["/"].append((str(i), str(i)))
            below[str(i)] = []
        for k, (source, target, soft) in enumerate(links):
            group = file[str(source)]
            group[f"l{k:02}"] = h5py.SoftLink(f"/{target}") if soft else file[str(target)]
            below[str(source)].append((f"l{k:02}", str(target)))

    def names(group: str, path: str, above: tuple[str, ...]) -> list[tuple[str, str]]:
        out = [(path or "/", group)]
        for name, child in below[group]:
            if child not in (*above, group):
                out += names(child, f"{path}/{name}", (*above, group))
        return out

    expected = names("/", "", ())
    groups = xr.open_groups(path, engine="h5ref")
    assert list(groups) == [name for name, _ in expected]
    for name, group in expected[1:]:
        assert groups[name].attrs == {"number": int(group)}


def doubled(path: Path, n: int) -> None:
    """Write n groups; each has two links to the one before it."""
    with h5py.File(path, "w") as file:
        group = file.create_group("g0")
        group["x"] = np.arange(3)
        for i in range(1, n):
            parent = file.create_group(f"g{i}")
            parent["a"] = parent["b"] = group
            group = parent


def test_the_number_of_names_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    doubled(path, 40)  # 2 ** 40 names
    tree = objects.list_tree(locate_file(path), "/")
    assert tree.left_out
    cost = sum(trees.NODE_COST + 2 for _ in tree.nodes)
    assert len(tree.nodes) > 500
    assert cost <= trees.MORE_NAMES + 41 * 60
    with pytest.warns(UnreadableMemberWarning) as caught:
        groups = xr.open_groups(path, engine="h5ref")
    (message,) = [str(w.message) for w in caught]
    assert str(path) in message
    assert f"has {len(tree.nodes)} names" in message
    assert repr(tree.left_out) in message
    assert {f"/g{i}" for i in range(40)} < set(groups)
    # Short names come before long ones.
    assert max(name.count("/") for name in groups) < 12


def test_files_with_few_names_are_not_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubled(tmp_path / "f.h5", 6)
    monkeypatch.setattr(trees, "MORE_NAMES", 0)
    monkeypatch.setattr(trees, "MORE_NAMES_RATIO", 20)
    assert len(xr.open_groups(tmp_path / "f.h5", engine="h5ref")) == 1 + 63 + 57


def test_objects_with_several_names_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["z/x"] = np.arange(3)
        file["z/names"] = ["a", "bc"]
        file["z/inner/y"] = np.arange(2.0)
        file["z/inner/x"] = file["z/x"]
        file["z/again"] = h5py.SoftLink("x")
        for k in range(5):
            file[f"hard{k}"] = file["z"]
            file[f"soft{k}"] = h5py.SoftLink("/z")
            file[f"one{k}/x"] = file["z/x"]
        references = file.create_dataset("z/refs", (1,), dtype=h5py.ref_dtype)
        references[0] = file["z/x"].ref
        file["z/x"].attrs["ref"] = references[0]
    calls: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for name in ("read_layout", "read_attributes"):
        counted(objects, name)
    counted(variables, "attribute_values")
    counted(variables, "plain_attributes")
    counted(variables, "_is_short_text")
    groups = xr.open_groups(tmp_path / "f.h5", engine="h5ref")
    assert len(groups) == 1 + 11 * 2 + 5
    assert calls == {
        "read_layout": 4,
        "read_attributes": 4,
        "plain_attributes": 4,
        "_is_short_text": 1,
        "attribute_values": 1 + 2 + 5,
    }
    for name, ds in groups.items():
        if "x" in ds:
            np.testing.assert_array_equal(ds["x"], np.arange(3))
            assert ds["x"].attrs["ref"].path == "/hard0/x", name
    assert groups["/hard0"]["names"].values.tolist() == ["a", "bc"]
    assert groups["/soft4"]["names"].values.tolist() == ["a", "bc"]


def test_attributes_of_one_name_can_be_changed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a/x"] = np.arange(3)
        file["a/x"].attrs["units"] = "m"
        file["a"].attrs["title"] = "a"
        file["b"] = file["a"]
    groups = xr.open_groups(tmp_path / "f.h5", engine="h5ref")
    groups["/a"]["x"].attrs["units"] = "s"
    groups["/a"].attrs.clear()
    assert groups["/b"]["x"].attrs == {"units": "m"}
    assert groups["/b"].attrs == {"title": "a"}


def test_an_enumeration_keeps_the_name_of_its_type_under_each_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["g/kind"] = h5py.enum_dtype({"A": 0, "B": 1}, basetype="u1")
        file["g"].create_dataset("x", (3,), dtype=file["g/kind"])
        file["h"] = h5py.SoftLink("/g")
    groups = xr.open_groups(tmp_path / "f.h5", engine="h5ref")
    for name in ("/g", "/h"):
        metadata = groups[name]["x"].encoding["dtype"].metadata
        assert metadata["enum_name"] == "kind"


def test_a_tree_that_contradicts_itself_without_links_is_still_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for group, n in (("a", 3), ("a/b", 4)):
            file[f"{group}/time"] = np.arange(n)
            file[f"{group}/time"].make_scale("time")
        file["c"] = h5py.SoftLink("/a/b")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableMemberWarning)
        with pytest.raises(ValueError, match="not aligned with its parents"):
            xr.open_datatree(tmp_path / "f.h5", engine="h5ref", group="/a")


def contradicting_tree(path: Path, how: str) -> str:
    """Write a file that xarray refuses as a tree, and return the path of the refused group."""
    with h5py.File(path, "w") as file:
        file["a.b"] = np.arange(3.0)
        file["a.b"].make_scale("a.b")
        if how == "name":
            file.create_group("gr/odd/a.b")
            return "/gr/odd/a.b"
        file["gr/odd/a.b"] = np.arange(4.0) if how == "size" else np.arange(3.0) + 1
        file["gr/odd/a.b"].make_scale("a.b")
        return "/gr/odd"


@pytest.mark.parametrize("how", ["size", "values", "name"])
@pytest.mark.parametrize("chunks", [None, {}])
def test_the_error_of_a_refused_tree_names_file_and_group(
    tmp_path: Path, how: str, chunks: Any
) -> None:
    path = tmp_path / "f.h5"
    group = contradicting_tree(path, how)
    with pytest.raises(ValueError, match=r"xarray\.open_groups") as raised:
        xr.open_datatree(path, engine="h5ref", chunks=chunks)
    assert str(raised.value).startswith(f"{path}: ")
    assert repr(group) in str(raised.value)
    assert group in xr.open_groups(path, engine="h5ref")


@pytest.mark.parametrize("how", ["values", "name"])
def test_a_tree_without_indexes_has_groups_that_only_indexes_contradict(
    tmp_path: Path, how: str
) -> None:
    group = contradicting_tree(tmp_path / "f.h5", how)
    options = {"engine": "h5ref", "create_default_indexes": False}
    with xr.open_datatree(tmp_path / "f.h5", **options) as tree:
        assert group in tree.groups
        assert pickle.loads(pickle.dumps(tree)).identical(tree)
        assert tree.copy().identical(tree)

        def fail(ds: xr.Dataset) -> xr.Dataset:
            raise ValueError("of the user")

        with pytest.raises(ValueError, match=r"^of the user"):
            tree.map_over_datasets(fail)


def test_an_opened_tree_is_a_plain_one(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["g/x"] = np.arange(3)
    with xr.open_datatree(tmp_path / "f.h5", engine="h5ref") as tree:
        assert all(type(node) is xr.DataTree for node in tree.subtree)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("n_more", [0, 30], ids=["few links", "an index of links"])
def test_groups_are_in_order_of_creation_where_the_file_keeps_it(
    tmp_path: Path, in_order: bool, n_more: int
) -> None:
    path = tmp_path / "order.h5"
    with h5py.File(path, "w", track_order=in_order) as file:
        for name in ("z", "a", "m", *(f"n{i}" for i in range(n_more, 0, -1))):
            file.create_group(name, track_order=in_order)
        for name in ("y", "b"):
            file["m"].create_group(name)
        file["k"] = file["m"]
        file["b"] = h5py.SoftLink("/a")
    found = list(xr.open_groups(path, engine="h5ref"))
    pytest.importorskip("h5netcdf")
    assert found == list(xr.open_groups(path, engine="h5netcdf", phony_dims="sort"))
    assert (found[1] == "/z") == in_order
    assert {"/m/y", "/m/b", "/k/y", "/k/b", "/b"} <= set(found)
