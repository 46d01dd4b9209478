"""Paths of objects depend on the file alone, not on earlier operations."""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from forkserver import run_python
from hypothesis import given
from hypothesis import strategies as st
from named_objects import FORMS, HISTORIES, texts, write_example
from server import serve
from strategies import write_references

import xref
from xref.cli.info import inspect_file
from xref.errors import DanglingReferenceError, FileChangedError, UnsupportedError
from xref.objects import StoredObject
from xref.objects import paths as names
from xref.objects.attributes import read_attribute
from xref.objects.datasets import dataset_facts
from xref.objects.links import open_group, root_address
from xref.objects.objects import open_object
from xref.objects.paths import near_path, object_path, object_paths
from xref.references.reference import DEFAULT_OPTIONS, ObjectReference
from xref.resolving.targets import open_target, target_names
from xref.storage.open_files import close_file, close_files, locate_file


def address_of(item: h5py.HLObject) -> int:
    return int(h5py.h5o.get_info(item.id).addr)


def canonical_paths(file: h5py.File) -> dict[int, str]:
    """Find the path of each object with h5py: the shortest, then the first by name."""
    found = {address_of(file["/"]): "/"}
    queue = deque([("/", file["/"])])
    while queue:
        path, group = queue.popleft()
        for name in sorted(group, key=lambda n: n.encode("utf-8", "surrogateescape")):
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            item = group[name]
            full = f"{path.rstrip('/')}/{name}"
            if found.setdefault(address_of(item), full) == full and isinstance(
                item, h5py.Group
            ):
                queue.append((full, item))
    return found


# --- the canonical path ----------------------------------------------------------------


Step = tuple[str, int, int, str]


@st.composite
def trees(draw: st.DrawFn) -> tuple[dict[str, Any], list[Step]]:
    """Generate the steps that make a file: groups, datasets and links to existing objects."""
    kinds = st.sampled_from(["group", "group", "dataset", "hard", "hard", "soft", "none"])
    name = st.sampled_from(["a", "b", "B", "ä", "aa", "z", "0", ".x", "a b"])
    number = st.integers(0, 30)
    steps = draw(st.lists(st.tuples(kinds, number, number, name), max_size=40))
    return FORMS[draw(st.sampled_from(sorted(FORMS)))], steps


def write_tree(path: Path, options: dict[str, Any], steps: list[Step]) -> dict[int, str]:
    """Write a generated file; return the path of each address as h5py gives it, "" for none."""
    with h5py.File(path, "w", **options) as file:
        groups, items = [file["/"]], [file["/"]]
        for kind, where, what, name in steps:
            group = groups[where % len(groups)]
            if name in group:
                continue
            if kind == "none":  # no link from the root leads to what a lost circle holds
                lost = file.create_group("lost")
                lost["self"] = lost
                items += [lost, lost.create_dataset("d", data=np.arange(2))]
                del file["lost"]
            elif kind == "group":
                groups.append(group.create_group(name))
                items.append(groups[-1])
            elif kind == "dataset":
                items.append(group.create_dataset(name, data=np.arange(3)))
            elif kind == "hard":
                group[name] = items[what % len(items)]
            else:
                group[name] = h5py.SoftLink(items[what % len(items)].name or "/nowhere")
        everything = {address_of(item) for item in items}
        found = canonical_paths(file)
    return {address: found.get(address, "") for address in everything}


@pytest.mark.filterwarnings("ignore::xref.UnreadableMemberWarning")
@given(tree=trees(), random=st.randoms(use_true_random=False))
def test_the_canonical_path_does_not_depend_on_the_order_of_lookups(
    tmp_path_factory: pytest.TempPathFactory,
    tree: tuple[dict[str, Any], list[Step]],
    random: Any,
) -> None:
    path = tmp_path_factory.mktemp("tree") / "f.h5"
    expected = write_tree(path, *tree)
    assert object_paths(locate_file(path)) == {a: p for a, p in expected.items() if p}
    for number in range(3):
        # A copy is another file, of which nothing is cached.
        copy = path.with_name(f"{number}.h5")
        shutil.copyfile(path, copy)
        location = locate_file(copy)
        addresses = list(expected)
        random.shuffle(addresses)
        cut = random.randrange(len(addresses) + 1)
        for address in addresses[:cut]:
            assert (object_path(StoredObject(location, address)) or "") == expected[address]
            assert (near_path(StoredObject(location, address)) or "") == expected[address]
        if random.random() < 0.5:
            xr.open_groups(copy, engine="h5ref")
        some = object_paths(location, addresses)
        assert some == {a: expected[a] for a in addresses if expected[a]}


@pytest.mark.slow
@pytest.mark.parametrize("form", list(FORMS))
def test_groups_of_many_links_are_named_as_by_h5py(tmp_path: Path, form: str) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w", **FORMS[form]) as file:
        for i in range(1500):
            file[f"many/{(i * 7919) % 1500:05}"] = i
        file["many/a name of a length that takes a larger field" * 8] = 1
        file["second/hard"] = file["many/00007"]
        file["second/soft"] = h5py.SoftLink("/many/00008")
        file["first"] = file["second"]
        for i in range(20):
            file.create_group(f"many/00003x/{i}")
        expected = canonical_paths(file)
    assert object_paths(locate_file(path)) == expected
    assert "/first/hard" in expected.values()
    assert "/second" not in expected.values()


def test_links_in_heaps_with_filters_are_read_through_hdf5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # h5py cannot write such a heap, so the reader raises the error that it raises for one.
    def refuse(source: Any, address: int) -> Any:
        raise UnsupportedError(f"{source.where}: the fractal heap at {address:#x} has filters")

    monkeypatch.setattr("xref.hdf5.links.FractalHeap", refuse)
    path = tmp_path / "f.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for i in range(40):
            file[f"g/{39 - i}"] = i
        expected = canonical_paths(file)
    assert object_paths(locate_file(path)) == expected


def test_paths_of_deep_groups_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w", libver="latest") as file:
        group = file["/"]
        for _ in range(60):
            group = group.create_group("n" * 1000)
        last = address_of(group)
    location = locate_file(path)
    assert object_path(StoredObject(location, last)) == "/" + "/".join(["n" * 1000] * 60)
    walk = names._walk_of(location)
    assert sum(len(name) for _, name in walk.links.values()) == 60_000


def test_damaged_groups_do_not_hide_the_paths_of_others(tmp_path: Path) -> None:
    path = tmp_path / "damaged.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file["bad/data"] = np.arange(3)
        file["good/deep/data"] = np.arange(3)
        bad, good = address_of(file["bad/data"]), address_of(file["good/deep/data"])
        file["also/bad"] = file["bad"]
    data = bytearray(path.read_bytes())
    heaps = [i for i in range(len(data)) if data.startswith(b"HEAP\0", i)]
    data[heaps[1] : heaps[1] + 4] = b"XXXX"
    path.write_bytes(data)
    for order in ([bad, good], [good, bad]):
        copy = tmp_path / f"{order[0]}.h5"
        shutil.copyfile(path, copy)
        location = locate_file(copy)
        found = {address: object_path(StoredObject(location, address)) for address in order}
        assert found == {bad: None, good: "/good/deep/data"}


def test_groups_that_share_links_are_walked_with_bounded_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shared.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        for i in range(400):
            file.create_group(f"g{i:03}")
        trees = [address_of(file[f"g{i:03}"]) for i in range(400)]
        root = address_of(file["/"])
    data = bytearray(path.read_bytes())

    def body(address: int) -> slice:  # of the symbol table message, the first of the header
        return slice(address + 24, address + 40)

    for address in trees:
        data[body(address)] = data[body(root)]
    path.write_bytes(data)
    read: list[int] = []
    monkeypatch.setattr(names, "MAX_SHARING", 1)  # less takes a smaller file
    original = names.hdf5.read_hard_links

    def read_links(source: Any, messages: Any, address: int) -> Any:
        read.append(address)
        return original(source, messages, address)

    monkeypatch.setattr(names.hdf5, "read_hard_links", read_links)
    location = locate_file(path)
    assert len(object_paths(location)) == 401
    most = names.MAX_SHARING * len(data) // names.LINK_NBYTES
    assert len(read) <= most // 400 + 1 < 401


def test_a_path_lookup_reads_no_more_groups_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[int] = []

    def read_links(location: Any, group: Any, before: int) -> Any:
        listed.append(group.address)
        return read(location, group, before)

    read = names._read_links
    monkeypatch.setattr(names, "_read_links", read_links)
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        for i in range(9):
            file[f"g{i}/inner/data"] = i
        near, far = address_of(file["g3"]), address_of(file["g4/inner"])
    location = locate_file(path)
    assert object_path(StoredObject(location, near)) == "/g3"
    assert len(listed) == 1
    assert object_path(StoredObject(location, far)) == "/g4/inner"
    assert len(listed) == 1 + 5
    assert len(object_paths(location)) == 28
    assert len(listed) == len(set(listed)) == 19


def test_concurrent_path_lookups_give_the_same_paths(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        for i in range(200):
            file[f"a{i % 7}/b{i % 5}/c{i}"] = i
        expected = canonical_paths(file)
    location = locate_file(path)
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda a: object_path(StoredObject(location, a)), [*expected, 1, 2] * 3)
        )
    assert answers == [*expected.values(), None, None] * 3


def test_a_changed_file_has_its_own_paths(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    for name in ("one", "another"):
        with h5py.File(tmp_path / "new.h5", "w") as file:
            file[name] = 1
            address = address_of(file[name])
        os.replace(tmp_path / "new.h5", path)
        location = locate_file(path)
        assert object_path(StoredObject(location, address)) == f"/{name}"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FileChangedError):
        object_path(StoredObject(locate_file_before(location), address))


def locate_file_before(location: Any) -> Any:
    """Return a location of the same file version for which no path is cached."""
    return type(location)(location.source, location.identity, "none")


def test_objects_added_by_a_writer_have_paths(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a/data"] = np.arange(3)
        ds = xr.open_dataset(file, engine="h5ref", group="a")
        assert ds["data"].h5ref.reference().path == "/a/data"
        file["b"] = file["a/data"]
        file.flush()
        again = xr.open_dataset(file, engine="h5ref", group="a")
        assert again["data"].h5ref.reference().path == "/b"


# --- what is shown and decoded ---------------------------------------------------------


@pytest.fixture(scope="module", params=list(FORMS))
def example(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Return a file and the names and values that it shows when it is opened first."""
    folder = tmp_path_factory.mktemp("names")
    path = folder / "example.h5"
    write_example(path, **FORMS[request.param])
    # The same objects at the same addresses under other names.
    write_example(folder / "other.h5", **FORMS[request.param])
    with h5py.File(folder / "other.h5", "r+") as file:
        file.move("also", "moved")
    first = folder / "first.h5"
    shutil.copyfile(path, first)
    return path, texts(first)


@pytest.mark.sampled(53)
@pytest.mark.filterwarnings("ignore::xref.UnreadableMemberWarning")
@pytest.mark.parametrize("history", list(HISTORIES))
def test_names_and_values_do_not_depend_on_earlier_operations(
    example: tuple[Path, dict[str, Any]],
    history: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, expected = example
    copy = tmp_path / "copy.h5"  # nothing of it is known
    shutil.copyfile(path, copy)
    shutil.copyfile(path.with_name("other.h5"), tmp_path / "other.h5")
    kept = HISTORIES[history](copy)
    found = texts(copy)
    assert found.keys() == expected.keys()
    for what in expected:
        assert found[what] == expected[what], what
    del kept
    close_files()


def test_shown_names_and_values_are_right(example: tuple[Path, dict[str, Any]]) -> None:
    _, shown = example
    assert shown["regions paths"] == ["/also/BT", "/also/BT"]
    assert "<RegionReference -> /also/BT[0:3]>" in shown["regions"][0]
    assert shown["scales paths"] == ["/axes/time", "/axes/alone"]
    assert shown["group paths"] == ["/also", "/zz"]
    assert shown["unnamed paths"] == [None]
    assert "-> object at 0x" in shown["unnamed"][0]
    assert shown["dataset"].count("<RegionReference>") == 2
    name, dims, coords, *_, values = shown["regions 0"]
    assert (name, dims, values) == ("BT", ["time"], "[0, 1, 2]")  # raw, as the option says
    assert {"time", "lat", "other_lat"} <= set(coords)
    assert shown["one scale 0"][:2] == ["alone", ["alone"]]
    assert shown["unnamed 0"][:2] == [None, ["phony_dim_0"]]
    assert shown["element"].endswith("region reference 1 of '/refs/regions'")


@pytest.mark.slow
def test_two_files_with_equal_addresses_keep_their_names_apart(
    example: tuple[Path, dict[str, Any]],
) -> None:
    path, _ = example
    one = xr.open_dataset(path, engine="h5ref", group="refs")
    two = xr.open_dataset(path.with_name("other.h5"), engine="h5ref", group="refs")
    a, b = (ds["regions"].values[0] for ds in (one, two))
    assert a.address == b.address
    assert (a.path, b.path) == ("/also/BT", "/moved/BT")
    assert str(a) != str(b)


@pytest.mark.slow
def test_options_of_two_datasets_of_one_file_do_not_mix(
    example: tuple[Path, dict[str, Any]],
) -> None:
    path, _ = example
    opened = [
        xr.open_dataset(path, engine="h5ref", group="refs", mask_and_scale=option)
        for option in ({"BT": False}, True, {"BT": True}, {"other": False}, False)
    ]
    results = [ds["regions"][0].h5ref.resolve().values.tolist() for ds in opened]
    raw, decoded = [0, 1, 2], [0.0, 0.5, 1.0]
    assert results == [raw, decoded, decoded, decoded, raw]


def test_changing_attributes_of_a_result_does_not_change_later_results(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        value = file.create_dataset("v", data=np.arange(3))
        value.attrs["flags"] = [1, 2, 4]
        value.attrs["pair"] = np.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8")])
        write_references(file, "refs", [value.regionref[:2]])
    with xr.open_dataset(path, engine="h5ref") as ds:
        for _ in range(2):
            for found in (ds["refs"].h5ref.resolve(), ds["refs"][0].item().resolve()):
                assert found.attrs["flags"].tolist() == [1, 2, 4]
                assert found.attrs["pair"].tolist() == [(1, 2.0), (3, 4.0)]
                found.attrs["flags"][:] = 0
                found.attrs["pair"]["a"] = 0
                found.attrs["new"] = 1


def test_resolving_many_targets_looks_up_no_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        made = [file.create_dataset(f"g{i}/v", data=np.arange(3) + i) for i in range(20)]
        write_references(file, "refs/r", [v.ref for v in made], dtype=h5py.ref_dtype)

    def refuse(*_: Any) -> Any:
        raise AssertionError("a name was looked up")

    with monkeypatch.context() as patched:
        patched.setattr(names, "_start", refuse)
        with xr.open_dataset(path, engine="h5ref", group="refs") as ds:
            found = ds["r"].h5ref.resolve()
            np.testing.assert_array_equal(found, np.arange(3) + np.arange(20)[:, None])
            assert str(ds)
    with xr.open_dataset(path, engine="h5ref", group="refs") as ds:
        facts = [(r.location, r.address) for r in ds["r"].values]
        targets = [
            open_target(
                StoredObject(where, at), dataset_facts(StoredObject(where, at)), DEFAULT_OPTIONS
            )
            for where, at in facts
        ]
        assert target_names(targets) == [t.name for t in targets] == ["v"] * 20


@pytest.mark.slow
@pytest.mark.parametrize("before", ["nothing", "deep", "also", "a"])
def test_messages_name_a_dataset_by_its_canonical_path(tmp_path: Path, before: str) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file["a/deep/v"] = np.arange(4.0)
        file["zz"] = file["a/deep/v"]
        file["also"] = file["a"]
        address = address_of(file["zz"])
    if before != "nothing":
        xr.open_dataset(path, engine="h5ref", group={"deep": "a/deep"}.get(before, before))
    location = locate_file(path)
    opened = open_group(location, before if before in ("a", "also") else "/")
    assert str(open_object(StoredObject(location, address))._xref_stored) == f"{path}: /zz"
    assert str(StoredObject(location, address)) == f"{path}: /zz"
    with pytest.raises(
        DanglingReferenceError,
        match="attribute 'no' of /zz: there is no attribute of that name",
    ):
        read_attribute(
            open_object(StoredObject(location, address)), "no", StoredObject(location, address)
        )
    del opened


PROGRAM = """
import sys, json
import warnings; warnings.simplefilter("ignore")
from pathlib import Path
from forks import in_fork
from named_objects import HISTORIES, texts

def ask(histories):
    path = Path(sys.argv[1])
    for name in histories:
        HISTORIES[name](path)
    return texts(path)

# No fork has opened this file before.
print("\\n" + json.dumps([in_fork(lambda: ask(names)) for names in json.loads(sys.argv[2])]))
"""


def test_fresh_processes_show_the_same_names(example: tuple[Path, dict[str, Any]]) -> None:
    path, expected = example
    histories = [[], ["tree", "other name"], ["h5py", "resolved"]]
    done = run_python(PROGRAM, str(path), json.dumps(histories))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == len(histories) * [{"result": expected}]


@pytest.mark.filterwarnings("ignore::xref.UnreadableMemberWarning")
def test_reports_name_objects_by_their_canonical_paths(
    example: tuple[Path, dict[str, Any]],
) -> None:
    path, _ = example
    whole = {(h.path, h.attribute): h for h in inspect_file(path).references}
    assert ("/zz/refs too", None) not in whole
    targets = whole["/refs/regions", None].targets
    assert [t.path for t in targets] == ["/also/BT"]
    assert [t.path for t in whole["/zz", "points"].targets] == ["/also/BT"]
    # In a report about a group, holders have their path within that group.
    part = {h.path: h for h in inspect_file(path, "zz").references if h.attribute is None}
    assert set(part) == {"/zz/refs too"}
    assert [t.path for t in part["/zz/refs too"].targets] == ["/also/BT"]


def test_variables_have_the_names_of_the_links_of_the_group_that_is_opened(
    example: tuple[Path, dict[str, Any]],
) -> None:
    path, _ = example
    with xr.open_dataset(path, engine="h5ref", group="zz") as ds:
        assert set(ds.variables) >= {"BT too", "time too", "refs too"}
        assert ds["BT too"].dims == ("time too",)
        assert ds["BT too"].h5ref.reference().path == "/also/BT"
        assert ds["BT too"].h5ref.reference().resolve().name == "BT"
        assert ds["refs too"].data.describe(1).endswith("region reference 1 of '/zz/refs too'")


def test_selections_find_their_variable_in_the_opened_group(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        x = file.create_dataset("axes/x", data=np.arange(5.0))
        x.make_scale("x")
        values = file.create_dataset("values/v", data=np.arange(5) * 10)
        values.dims[0].attach_scale(x)
        file["values/x"] = x  # whose canonical path is in the other group
    with xr.open_dataset(path, engine="h5ref", group="values") as ds:
        selected = ds["v"].where(ds["v"] > 15)
        reference = selected.h5ref.region_reference()
        assert reference.path == "/values/v"
        assert reference.resolve().values.tolist() == [20, 30, 40]


# --- reprs that do not search ----------------------------------------------------------


def test_a_repr_never_fails(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(3)
        address = address_of(file["data"])
    before = locate_file(path)
    close_file(before)  # else it is read on without its path
    path.unlink()
    assert (
        str(ObjectReference(before, address)) == f"<ObjectReference -> object at {address:#x}>"
    )


def write_scattered(path: Path, n: int) -> None:
    """Write groups far apart in the file, and references to a near and a far object."""
    with h5py.File(path, "w") as file:
        near = file.create_dataset("near", data=np.arange(3))
        for i in range(n):
            file[f"g{i:03}/inner/data"] = np.arange(3)
            file[f"g{i:03}/filling"] = np.zeros(1 << 15)
        far = file[f"g{n - 1:03}/inner/data"]
        write_references(file, "refs", [near.ref, far.ref], dtype=h5py.ref_dtype)


@pytest.mark.slow
def test_reprs_of_remote_references_take_few_requests(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    write_scattered(tmp_path / "f.h5", 40)
    with (
        serve(tmp_path) as server,
        xref.count_reads() as reads,
        xr.open_dataset(server.url("f.h5"), engine="h5ref") as ds,
    ):
        before = reads.remote_requests
        first = str(ds["refs"])
        assert reads.remote_requests - before <= 2 * names.NEAR_COST
        near, far = ds["refs"].values
        assert "-> /near>" in first
        assert f"-> object at {far.address:#x}>" in first
        assert far.path == "/g039/inner/data"
        # The text stays the same after the path was looked up.
        assert str(ds["refs"]) == first
        assert near.path == "/near"


def test_references_to_the_root_group_have_its_path(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file["loop"] = file["/"]
    location = locate_file(path)
    assert object_paths(location) == {root_address(location): "/"}
    assert object_path(StoredObject(location, root_address(location))) == "/"
