"""Soft and external links: followed, refused by the option ``external``, or left out."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from xref import UnreadableMemberWarning
from xref.errors import CorruptFileError, ExternalFileError
from xref.objects.links import MAX_LINKS, open_group
from xref.storage.open_files import locate_file


def open_quietly(path: Path, **options: Any) -> tuple[xr.Dataset, list[str]]:
    """Open a file; return the Dataset and the warnings about left-out members."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnreadableMemberWarning)
        dataset = xr.open_dataset(path, engine="h5ref", **options)
    return dataset, [str(w.message) for w in caught]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return a folder for the file and a folder that its links may not lead to."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    with h5py.File(outside / "secret.h5", "w") as file:
        file["group/data"] = np.arange(3)
    return inside, outside


# --- soft and external links ------------------------------------------------------------


def test_soft_links_lead_to_members_of_any_group(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a/b/data"] = np.arange(3)
        file["absolute"] = h5py.SoftLink("/a/b/data")
        file["relative"] = h5py.SoftLink("a/./b//data")
        file["a/beside"] = h5py.SoftLink("b/data")
        file["twice"] = h5py.SoftLink("/a/beside")
        file["a/up"] = h5py.SoftLink("/a")
    ds, left_out = open_quietly(tmp_path / "f.h5")
    assert set(ds) == {"absolute", "relative", "twice"}
    assert left_out == []
    for name in ds:
        np.testing.assert_array_equal(ds[name], np.arange(3))
    group, _ = open_quietly(tmp_path / "f.h5", group="a/up/up/b")
    np.testing.assert_array_equal(group["data"], np.arange(3))


@pytest.mark.parametrize("external", ["same-dir", "none"])
def test_soft_links_do_not_bypass_the_external_option(
    folders: tuple[Path, Path], external: str
) -> None:
    inside, _ = folders
    with h5py.File(inside / "f.h5", "w") as file:
        file["away"] = h5py.ExternalLink("../outside/secret.h5", "/group")
        file["soft"] = h5py.SoftLink("/away/data")
    ds, left_out = open_quietly(inside / "f.h5", external=external)
    assert not ds.variables
    assert [("'/away'" in m, "ExternalFileError" in m) for m in left_out] == [
        (True, True),
        (False, True),
    ]
    with pytest.raises(ExternalFileError, match=r"secret\.h5"):
        xr.open_dataset(inside / "f.h5", engine="h5ref", group="away", external=external)
    ds, left_out = open_quietly(inside / "f.h5", external="all")
    np.testing.assert_array_equal(ds["soft"], np.arange(3))


def test_the_external_option_applies_to_links_of_linked_files(
    folders: tuple[Path, Path],
) -> None:
    inside, _ = folders
    with h5py.File(inside / "near.h5", "w") as file:
        file["far"] = h5py.ExternalLink("../outside/secret.h5", "/group")
    with h5py.File(inside / "f.h5", "w") as file:
        file["data"] = h5py.ExternalLink("near.h5", "/far/data")
    ds, left_out = open_quietly(inside / "f.h5")
    assert not ds.variables
    assert "ExternalFileError" in left_out[0]
    ds, _ = open_quietly(inside / "f.h5", external="all")
    np.testing.assert_array_equal(ds["data"], np.arange(3))


def test_an_external_link_may_lead_back_into_its_own_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["data"] = np.arange(3)
        file["again"] = h5py.ExternalLink("f.h5", "/data")
        refs = file.create_dataset("refs", (1,), dtype=h5py.ref_dtype)
        refs[0] = file["data"].ref
    ds, _ = open_quietly(tmp_path / "f.h5")
    np.testing.assert_array_equal(ds["again"], np.arange(3))
    np.testing.assert_array_equal(ds["refs"].values[0].resolve(), np.arange(3))


@pytest.mark.parametrize("n_links", [MAX_LINKS, MAX_LINKS + 1])
def test_endless_chains_of_links_terminate(tmp_path: Path, n_links: int) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["link0"] = np.arange(3)
        for i in range(1, n_links + 1):
            file[f"link{i}"] = h5py.SoftLink(f"/link{i - 1}")
    ds, left_out = open_quietly(tmp_path / "f.h5")
    assert (f"link{n_links}" in ds) == (n_links <= MAX_LINKS)
    assert len(left_out) == max(n_links - MAX_LINKS, 0)


def test_links_that_branch_at_each_step_terminate(tmp_path: Path) -> None:
    # Each link contains the previous one forty times: 40 ** 11 steps, if all were followed.
    with h5py.File(tmp_path / "f.h5", "w") as file:
        group = file.create_group("g")
        group["link0"] = h5py.SoftLink("/g")
        for i in range(1, 12):
            group[f"link{i}"] = h5py.SoftLink("/".join([f"link{i - 1}"] * 40))
    _, left_out = open_quietly(tmp_path / "f.h5", group="g")
    assert len(left_out) == 11
    assert all("links lead to it" in message for message in left_out)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["/nowhere", "/data/below", "/loop", "missing.h5:/x"])
def test_dangling_links_are_left_out(tmp_path: Path, value: str) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["data"] = np.arange(3)
        filename, colon, path = value.partition(":")
        file["loop"] = h5py.ExternalLink(filename, path) if colon else h5py.SoftLink(value)
    ds, left_out = open_quietly(tmp_path / "f.h5")
    assert set(ds) == {"data"}
    assert len(left_out) == 1
    assert "'/loop'" in left_out[0]


def test_dimension_scales_are_found_in_the_file_of_the_linked_dataset(tmp_path: Path) -> None:
    def scaled(path: Path, scale: str, variable: str) -> None:
        with h5py.File(path, "w") as file:
            file[scale] = np.arange(3.0)
            file[scale].make_scale(scale)
            file[variable] = np.arange(3)
            file[variable].dims[0].attach_scale(file[scale])

    scaled(tmp_path / "near.h5", "x", "own")
    scaled(tmp_path / "far.h5", "z", "other")
    with h5py.File(tmp_path / "near.h5", "a") as file:
        file["linked"] = h5py.ExternalLink("far.h5", "/other")
    ds, _ = open_quietly(tmp_path / "near.h5")
    assert ds["own"].dims == ("x",)
    assert ds["linked"].dims == ("z",)
    assert "z" not in ds.variables


# --- damaged groups ---------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A file of old-style groups, one of which has a heap without its signature."""
    path = tmp_path / "damaged.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file["good/data"] = np.arange(3)
        file.flush()
        before = path.read_bytes().count(b"HEAP")
        file["bad/data"] = np.arange(3)
    data = path.read_bytes()
    heaps = [i for i in range(len(data)) if data.startswith(b"HEAP\0", i)]
    assert len(heaps) == before + 1
    path.write_bytes(data[: heaps[-1]] + b"XXXX" + data[heaps[-1] + 4 :])
    return path


def test_a_tree_leaves_out_damaged_groups_with_a_warning(damaged: Path) -> None:
    with pytest.warns(UnreadableMemberWarning, match="'/bad'.*CorruptFileError"):
        groups = xr.open_groups(damaged, engine="h5ref")
    assert set(groups) == {"/", "/good"}
    with pytest.raises(CorruptFileError, match="no local heap"):
        xr.open_dataset(damaged, engine="h5ref", group="bad")


def test_a_group_of_an_open_file_is_checked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    monkeypatch.setattr(
        "xref.objects.links.check_group", lambda read, address, **_: checked.append(address)
    )
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for i in range(20):
            file.create_group(f"a/b/{i}")
    location = locate_file(tmp_path / "f.h5")
    groups = [open_group(location, f"a/b/{i}") for i in range(20)]
    assert len(checked) == len(set(checked)) == 23
    assert len({group.stored.address for group in groups}) == 20


# --- versions and other kinds of file ---------------------------------------------------


@pytest.mark.parametrize("replace", [True, False])
def test_a_rewritten_file_is_read_anew(tmp_path: Path, replace: bool) -> None:
    def write(path: Path, sign: int, rows: int) -> None:
        with h5py.File(path, "w") as file:
            if rows > 100:
                file["before"] = np.zeros(77)
            file["data"] = sign * np.arange(rows)

    path = tmp_path / "f.h5"
    write(path, 1, 50)
    old = xr.open_dataset(path, engine="h5ref")
    np.testing.assert_array_equal(old["data"], np.arange(50))
    write(tmp_path / "new.h5", -1, 1000)
    if replace:
        os.replace(tmp_path / "new.h5", path)
    else:
        path.write_bytes((tmp_path / "new.h5").read_bytes())
    new = xr.open_dataset(path, engine="h5ref")
    assert set(new) == {"before", "data"}
    np.testing.assert_array_equal(new["data"], -np.arange(1000))


def test_devices_are_refused_as_raw_storage(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("data", (4,), dtype="u1", external=[("/dev/zero", 0, 4)])
    ds, left_out = open_quietly(tmp_path / "f.h5", external="all")
    assert not ds.variables
    assert "'/dev/zero', which is not a regular file" in left_out[0]
