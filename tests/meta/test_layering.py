"""The architecture holds: rooms, what each may import, and the limits of their size.

The sources are parsed, never imported, so an import hidden in a function or under
``TYPE_CHECKING`` counts too. ``python tests/support/architecture.py`` prints the figures.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import architecture
import h5py
import pytest
from architecture import PACKAGE, ROOMS, Module

MODULES = architecture.modules()
PACKAGES = [room for room in ROOMS if (PACKAGE / room).is_dir()]


def optional_packages() -> set[str]:
    """Packages of the extras for users, which any function may import."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    lines = [
        line
        for extra, lines in project["optional-dependencies"].items()
        if extra not in {"complete", "test"}  # made of the others; for developers
        for line in lines
    ]
    return {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in lines}


EXTRAS = optional_packages()


def violations(module: Module) -> list[str]:
    return [
        *architecture.upward_imports(module),
        *([] if module.is_facade else architecture.inner_imports(module)),
        *architecture.wrong_outside_imports(module, EXTRAS),
    ]


def test_the_folder_list_shows_the_architecture() -> None:
    assert {m.room for m in MODULES} == set(ROOMS)
    assert len(architecture.entries()) <= 16, architecture.entries()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_module_imports_only_from_rooms_below(module: Module) -> None:
    assert violations(module) == []


def test_rooms_have_no_circle_and_few_floors() -> None:
    assert max(architecture.floors(architecture.room_arrows()).values()) <= 12


@pytest.mark.parametrize("room", PACKAGES)
def test_modules_of_a_room_have_no_circle(room: str) -> None:
    architecture.floors(architecture.module_arrows(room))


def test_a_circle_of_imports_is_found() -> None:
    with pytest.raises(ValueError, match="a circle of imports: "):
        architecture.floors({("a", "b"), ("b", "c"), ("c", "a")})


def test_declared_imports_against_the_order_exist() -> None:
    by_name = {module.name: module for module in MODULES}
    for name, room in architecture.DEFERRED_UPWARD:
        assert any(i.is_deferred and i.room == room for i in by_name[name].own_imports())
    for name, other in architecture.DEFERRED_CIRCLES:
        inner = other.split("/", 1)[1]
        assert any(i.is_deferred and i.inner == inner for i in by_name[name].own_imports())


@pytest.mark.parametrize("package", list(architecture.OWNERS))
def test_few_modules_import_h5py_dask_and_the_inside_of_xarray(package: str) -> None:
    assert set(architecture.outside_imports(package)) == set(architecture.OWNERS[package])


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("reading/plan", "import h5py"),
        ("reading/plan", "def f():\n    import h5py"),
        ("reading/plan", "from dask.array import Array"),
        ("reading/plan", "from xref.resolving import build_graph"),
        ("reading/plan", "from xref import resolving"),
        ("hdf5/filters", "from xref.storage import FileBytes"),
        ("reading/plan", "def f():\n    from xref.resolving import build_graph"),
        ("reading/plan", "import xref"),
        ("reading/plan", "from xref import RegionReference"),
        ("reading/plan", "from xref.selections.values import Points"),
        ("reading/plan", "from xref.hdf5.chunk_index.index import read_listed_chunks"),
        ("reading/plan", "import xref.hdf5.filters"),
        (
            "reading/plan",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import xarray",
        ),
        ("hdf5/filters", "import imagecodecs"),
        ("storage/location", "from xarray.backends import BackendArray"),
        ("storage/location", "import xarray"),
    ],
)
def test_an_import_from_above_or_outside_is_found(module: str, source: str) -> None:
    assert len(violations(Module(PACKAGE / f"{module}.py", source))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("reading/plan", "import zlib, numpy.typing as npt\nfrom numpy import ndarray"),
        (
            "reading/plan",
            "from xref.selections import Points\nfrom xref.errors import XrefError",
        ),
        ("reading/plan", "from xref import errors, selections"),
        ("reading/plan", "from .parts import Parts\nfrom . import parts"),
        ("hdf5/filters", "def f():\n    import imagecodecs"),
        ("storage/handle_pools", "from xarray import get_options"),
        ("references/reference", "def f():\n    from xref.resolving import resolve_object"),
        ("cli/main", "import argparse\nimport xref"),
    ],
)
def test_an_import_that_the_room_may_make_is_not_reported(module: str, source: str) -> None:
    assert violations(Module(PACKAGE / f"{module}.py", source)) == []


@pytest.mark.parametrize("room", PACKAGES)
def test_public_names_of_a_room_are_no_modules_of_it(room: str) -> None:
    names = set(architecture.facade_names(room))
    assert not names & {path.stem for path in (PACKAGE / room).iterdir()}


def test_public_names_of_each_room_can_be_imported() -> None:
    """In a fresh process: another test may have imported the modules before."""
    names = {"xref": architecture.facade_names("")}
    names |= {f"xref.{room}": architecture.facade_names(room) for room in PACKAGES}
    program = f"""
from importlib import import_module
for package, names in {names!r}.items():
    module = import_module(package)
    assert set(names) <= set(dir(module)), package
    assert all(getattr(module, name) is not None for name in names), package
    assert getattr(module, "__all__", []) == names, package
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_modules_are_short() -> None:
    too_long = [m.name for m in MODULES if m.n_lines > 500]
    assert too_long == []


def test_few_functions_are_long() -> None:
    long = [f for module in MODULES for f in module.functions() if f.n_lines > 50]
    assert len(long) <= 5, long


def test_decoders_explain_what_they_decode() -> None:
    assert architecture.comments_per_100("hdf5") >= 6


def test_everything_public_has_a_docstring() -> None:
    assert [name for module in MODULES for name in module.undocumented()] == []


IMPORTED = """
import sys, xarray as xr
{work}
print(*(name for name in sys.modules if name.split(".")[0] in {{"xref", "dask", "scipy"}}))
"""


def imported_modules(work: str) -> set[str]:
    """Return the modules that a fresh process has imported after some work."""
    program = IMPORTED.format(work=work)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return set(done.stdout.decode().split())


def test_importing_the_package_imports_little() -> None:
    assert imported_modules("import xref") == {"xref", "xref.lazy_names"}


def test_opening_a_small_file_imports_a_third_of_the_package(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        file["v"] = [1.0, 2.0]
        file["v"].attrs["units"] = "m"
    found = imported_modules(f"xr.open_dataset({str(path)!r}, engine='h5ref')")
    assert not [name for name in found if name.split(".")[0] != "xref"]
    rooms = {name.split(".")[1] for name in found if name.count(".") > 1}
    assert not rooms & {"reading", "resolving", "writing", "cli"}
    assert len(found) <= 60
