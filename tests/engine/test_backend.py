"""Opening: the engine, its arguments, groups, and members that are left out."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from samples import DATA, add_regions, nested, open_h5, scaled

from xref import ReferenceArray, UnreadableMemberWarning
from xref.engine.backend import H5RefBackendEntrypoint


def test_the_engine_is_listed_and_guesses_no_file(make: Callable[..., Path]) -> None:
    engine = xr.backends.list_engines()["h5ref"]
    assert "HDF5" in engine.description
    path = make(lambda f: f.create_dataset("x", data=1))
    assert engine.guess_can_open(path) is False
    assert engine.guess_can_open(str(path)) is False


def test_the_engine_can_be_given_as_a_class(make: Callable[..., Path]) -> None:
    """In a fresh process: xarray completes the class when it lists the engines."""
    path = make(lambda f: f.create_dataset("x", data=[1, 2]))
    program = f"""
import xarray as xr
from xref.engine.backend import H5RefBackendEntrypoint as Engine
for decode_cf in (True, False):
    with xr.open_dataset({str(path)!r}, engine=Engine, decode_cf=decode_cf) as ds:
        assert ds["x"].values.tolist() == [1, 2]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_engine_lists_the_arguments_of_its_signature() -> None:
    signature = inspect.signature(H5RefBackendEntrypoint.open_dataset)
    assert ["self", *H5RefBackendEntrypoint.open_dataset_parameters] == list(
        signature.parameters
    )


def test_invalid_arguments_of_open_dataset_raise(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    path = make(lambda f: f.create_dataset("x", data=1))
    with pytest.raises(ValueError, match="reader"):
        open_h5(path, reader="quick")
    with pytest.raises(ValueError, match="external"):
        open_h5(path, external="some")
    with pytest.raises(TypeError, match="unknown"):
        open_h5(path, unknown=1)
    with pytest.raises(FileNotFoundError):
        open_h5(tmp_path / "absent.h5")
    with pytest.raises(OSError, match="is a folder, not a regular file"):
        open_h5(tmp_path)
    (tmp_path / "text.h5").write_text("no HDF5 here")
    with pytest.raises(OSError, match=r"signature.*it is no HDF5 file"):
        open_h5(tmp_path / "text.h5")
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        OSError, match=r"cut\.h5.*its end is missing: copy or download it again"
    ):
        open_h5(tmp_path / "cut.h5")
    (tmp_path / "empty.h5").write_bytes(b"")
    with pytest.raises(OSError, match="signature"):
        open_h5(tmp_path / "empty.h5")
    with pytest.raises(OSError, match="/dev/null"):
        open_h5(Path("/dev/null"))


def test_paths_may_be_strings_or_relative(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(lambda f: add_regions(f, "refs", (2,)), name="odd näme #1.h5")
    monkeypatch.chdir(path.parent)
    for given in (str(path), path, path.name):
        with open_h5(given) as ds:
            assert ds["refs"].values[0].filename == str(path)
            assert ds.encoding["source"] == str(path)


# --- groups -----------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["a/b", "/a/b", "/a/b/", "a//b", "a/b/../b"])
def test_groups_open_by_path(make: Callable[..., Path], group: str) -> None:
    with open_h5(make(nested), group=group) as ds:
        assert set(ds.variables) == {"refs", "värde"}
        np.testing.assert_array_equal(ds["refs"].data[1].resolve(), DATA[1:3, 1:4])


def test_group_attributes_and_odd_names_are_kept(make: Callable[..., Path]) -> None:
    path = make(nested)
    with open_h5(path, group="a") as ds:
        assert ds.attrs == {"title": "group a"}
        assert not ds.variables
    with open_h5(path, group="a/#refs#") as ds:
        assert ds["x"].values.tolist() == [1]
    with open_h5(path) as ds:
        assert set(ds.variables) == {"top", "data"}


@pytest.mark.parametrize("group", ["nowhere", "a/nowhere", "top", "top/x"])
def test_a_missing_group_raises_an_error_with_its_name(
    make: Callable[..., Path], group: str
) -> None:
    with pytest.raises(OSError, match=rf"file\.h5.*{group.split('/')[-1]}"):
        open_h5(make(nested), group=group)


def test_datatrees_open(make: Callable[..., Path]) -> None:
    path = make(nested)
    with xr.open_datatree(path, engine="h5ref") as tree:
        np.testing.assert_array_equal(
            tree["a/b/refs"].h5ref.resolve()[2].values, DATA[2:4, 2:5]
        )
        assert "a/b" in [node.path.strip("/") for node in tree.subtree]
    groups = xr.open_groups(path, engine="h5ref")
    assert {"/", "/a", "/a/b"} <= set(groups)
    for ds in groups.values():
        ds.close()


# --- variables --------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, {}, "auto", -1, {"phony_dim_0": 2}])
def test_chunks_of_open_dataset_divide_data_but_not_references(
    make: Callable[..., Path], chunks: Any
) -> None:
    with open_h5(
        make(lambda f: add_regions(f, "refs", (18,)), libver="latest"), chunks=chunks
    ) as ds:
        assert dask.is_dask_collection(ds["data"]) is (chunks is not None)
        assert isinstance(ds["refs"].data, ReferenceArray)
        np.testing.assert_array_equal(ds["data"].values, DATA)
        element = np.asarray(ds["refs"].compute().data)[3]
        np.testing.assert_array_equal(element.resolve(), DATA[3:5, 3:6])
        resolved = ds["refs"].h5ref.resolve()
        np.testing.assert_array_equal(resolved[3], DATA[3:5, 3:6])


def unreadable(file: h5py.File) -> None:
    add_regions(file, "refs", (3,))
    file["null"] = h5py.Empty("f4")
    opaque = h5py.h5t.create(h5py.h5t.OPAQUE, 3)
    # h5py has no type for times; outside of compounds they are read as integers.
    time_type = h5py.h5t.create(h5py.h5t.COMPOUND, 4)
    time_type.insert(b"when", 0, h5py.h5t.UNIX_D32LE)
    space = h5py.h5s.create_simple((2,))
    h5py.h5d.create(file.id, b"time", time_type, space)
    h5py.h5d.create(file.id, b"opaque", opaque, space)
    file["soft"] = h5py.SoftLink("/nowhere")
    file["soft_data"] = h5py.SoftLink("/data")


def test_dropped_variables_are_not_read(make: Callable[..., Path]) -> None:
    path = make(scaled)
    with open_h5(path, drop_variables=["refs", "square"]) as ds:
        assert set(ds.variables) == {"y", "x", "data", "plain"}
    with open_h5(path, drop_variables="data") as ds:
        assert "data" not in ds
        assert ds["refs"].data[0].path == "/data"
    path = make(unreadable, name="unreadable.h5")
    # A look at either would warn, and warnings are errors.
    with open_h5(path, drop_variables=["time", "soft"]) as ds:
        assert set(ds.variables) == {"data", "null", "opaque", "refs", "soft_data"}


def test_unreadable_members_are_left_out_with_a_warning(make: Callable[..., Path]) -> None:
    path = make(unreadable)
    with pytest.warns(UnreadableMemberWarning) as caught:
        ds = open_h5(path)
    with ds:
        assert set(ds.variables) == {"data", "null", "opaque", "refs", "soft_data"}
        assert ds["null"].size == 0
        np.testing.assert_array_equal(ds["refs"].h5ref.resolve()[2], DATA[2:4, 2:5])
    messages = [str(w.message) for w in caught]
    for name in ("time", "soft"):
        assert any(f"'/{name}'" in m and "file.h5" in m for m in messages), messages


def test_opening_a_million_references_makes_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "million.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(10)
        references = np.full(1_000_000, file["data"].ref, dtype=h5py.ref_dtype)
        file.create_dataset("refs", data=references)
    open_h5(path).close()  # what is imported and cached once
    gc.collect()
    before = len(gc.get_objects())
    tracemalloc.start()
    with open_h5(path) as ds:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert ds["refs"].shape == (1_000_000,)
        assert len(gc.get_objects()) - before < 5_000
    assert peak < 4 << 20
