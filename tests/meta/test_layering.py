"""Each module imports only from the rows above it, and only its own outside packages.

The sources are parsed, never imported, so an import hidden in a function or
under ``TYPE_CHECKING`` counts too.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "xref"

# From the bottom of the package to its top: the outside packages that each
# module may import. An entry covers what lies below it: "numpy" also allows
# numpy.typing, "xarray.get_options" that name alone.
LAYERS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "options": (),
    "counts": (),
    "columns": ("numpy",),
    "ranges": ("numpy",),
    "selection": ("numpy",),
    "regions": ("numpy",),
    "projection": ("numpy",),
    "conversion": ("numpy",),
    "heap": ("numpy",),
    "structures": (),
    "dense": (),
    "headers": (),
    "datatypes": ("numpy",),
    "attributes": (),
    "groups": ("numpy",),
    "links": (),
    "encoding": ("numpy",),
    "serialized": ("numpy",),
    "boxes": ("numpy",),
    "stdrefs": ("numpy",),
    "bitpacking": ("numpy",),
    "filters": ("numpy",),
    "layout": ("numpy",),
    "parts": ("numpy",),
    "plan": ("numpy",),
    "copies": ("numpy",),
    "shares": ("numpy",),
    "mappings": ("numpy",),
    "readers": ("numpy",),
    "sources": ("h5py",),
    "keptcopy": ("h5py",),
    "transport": (),
    "remote": ("h5py", "numpy", "xarray.backends.h5netcdf_"),
    "inputs": ("h5py",),
    "handles": ("xarray.get_options",),
    "h5file": ("h5py", "numpy"),
    "scattered": ("numpy",),
    "manyheaders": ("numpy",),
    "checksums": ("numpy",),
    "nodes": ("numpy",),
    "chunktrees": ("numpy",),
    "chunkarrays": ("numpy",),
    "heapread": ("numpy",),
    "manyattributes": ("numpy",),
    "manydatasets": ("numpy",),
    "chunkindex": ("numpy",),
    "manychunks": ("numpy",),
    "chunkreads": ("numpy",),
    "h5objects": ("h5py", "numpy"),
    "names": ("numpy",),
    "h5layout": ("h5py", "numpy"),
    "h5attributes": ("h5py", "numpy"),
    "h5data": ("h5py", "numpy"),
    "chunkchecks": ("numpy",),
    "h5virtual": ("h5py", "numpy"),
    "virtual": ("numpy",),
    "elements": ("xarray",),
    "decode": ("numpy",),
    "references": ("numpy",),
    "array_functions": ("numpy",),
    "h5memory": ("h5py", "numpy"),
    "uninterrupted": (),
    "checkedfile": (),
    "drafts": (),
    "h5write": ("h5py", "numpy"),
    "h5scales": ("h5py", "numpy"),
    "h5storage": ("h5py", "numpy"),
    "h5blocks": ("h5py", "numpy"),
    "values": ("numpy",),
    "loaders": ("numpy",),
    "decoding": ("dask.base.normalize_token", "numpy", "xarray"),
    "small": ("numpy",),
    "gather": ("numpy",),
    "lazy": (
        "dask.base.normalize_token",
        "numpy",
        "xarray",
        "xarray.backends.BackendArray",
        "xarray.core.indexing",
    ),
    "positions": ("numpy", "xarray"),
    "origins": ("numpy", "xarray"),
    "results": ("numpy",),
    "exchange": ("numpy",),
    "attribute_values": ("numpy",),
    "dimensions": ("numpy",),
    "targets": (),
    "object_variables": (
        "dask.array",
        "numpy",
        "xarray",
        "xarray.backends",
        "xarray.namedarray.core",
    ),
    "variables": ("numpy", "xarray"),
    "create": ("numpy", "xarray"),
    "remake": ("numpy", "xarray"),
    "plain": ("numpy", "xarray"),
    "cfencode": ("numpy", "xarray"),
    "h5tree": ("h5py", "numpy", "xarray"),
    "writing": ("dask", "xarray"),
    "graph": ("dask", "numpy", "xarray"),
    "target_decoding": ("numpy",),
    "bind": ("numpy", "xarray"),
    "layouts": ("numpy", "xarray"),
    "resolve": ("numpy", "xarray"),
    "fields": ("numpy", "xarray", "xarray.core.indexing"),
    "table": ("numpy", "xarray"),
    "target_attributes": ("numpy", "xarray"),
    "reduce": ("numpy", "xarray"),
    "accessor": ("numpy", "xarray"),
    "backend": ("xarray",),
    "__init__": (),
    "info": ("numpy",),
    "demo": ("dask", "h5py", "numpy", "xarray"),
    "cli": (),
}

# A reference resolves itself, into what is built from references: the one circle,
# closed when `resolve` is called.
DEFERRED_UPWARD = {("elements", "resolve")}


def optional_packages() -> set[str]:
    """Packages of the extras for users, which any function may import."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = [
        line
        for extra, lines in project["optional-dependencies"].items()
        if extra not in {"complete", "test"}  # made of the others; for developers
        for line in lines
    ]
    return {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in lines}


EXTRAS = optional_packages()


def imports(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Line, full dotted name and "inside a function?" of everything imported."""

    def visit(node: ast.AST, deferred: bool) -> Iterator[tuple[int, str, bool]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, deferred
        elif isinstance(node, ast.ImportFrom):
            # Every module lies directly in the package: one dot is xref itself.
            parts = ["xref"] * (node.level > 0) + [node.module] * (node.module is not None)
            for alias in node.names:
                yield node.lineno, ".".join([*parts, alias.name]), deferred
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, deferred or inside)

    return visit(tree, False)


def violations(module: str, source: str) -> list[str]:
    """What ``module`` imports against the table, with line numbers."""
    order = list(LAYERS)
    above = set(order[: order.index(module)])
    found = []
    for line, name, deferred in imports(ast.parse(source)):
        top, *rest = name.split(".")
        if top in sys.stdlib_module_names:
            continue
        if top == "xref":
            # `from xref import X` with X no module is an import from __init__.
            imported = rest[0] if rest and rest[0] in LAYERS else "__init__"
            if imported not in above and not (
                deferred and (module, imported) in DEFERRED_UPWARD
            ):
                found.append(f"line {line}: {imported} is not above {module}")
        elif deferred and top in EXTRAS:
            continue
        elif not any(f"{name}.".startswith(f"{allowed}.") for allowed in LAYERS[module]):
            found.append(f"line {line}: {name} is not allowed in {module}")
    return found


def modules() -> list[str]:
    return sorted(
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
    )


def test_the_table_lists_every_module() -> None:
    assert set(modules()) == set(LAYERS)


@pytest.mark.parametrize("module", modules())
def test_module_imports_only_from_above(module: str) -> None:
    if module not in LAYERS:
        pytest.fail(f"xref/{module}.py is not in the table")
    source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    assert violations(module, source) == []


def test_h5py_and_dask_are_imported_in_few_modules() -> None:
    owners = {
        package: [name for name, allowed in LAYERS.items() if package in allowed]
        for package in ("h5py", "dask")
    }
    assert owners == {
        "h5py": [
            "sources",
            "keptcopy",
            "remote",
            "inputs",
            "h5file",
            "h5objects",
            "h5layout",
            "h5attributes",
            "h5data",
            "h5virtual",
            "h5memory",
            "h5write",
            "h5scales",
            "h5storage",
            "h5blocks",
            "h5tree",
            "demo",
        ],
        "dask": ["writing", "graph", "demo"],
    }


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("plan", "import h5py"),
        ("plan", "def f():\n    import h5py"),
        ("plan", "from dask.array import Array"),
        ("plan", "from xref.resolving.graph import build_graph"),
        ("plan", "from xref import graph"),
        ("plan", "from . import graph"),
        ("plan", "from .graph import build_graph"),
        ("plan", "def f():\n    from xref.resolving.graph import build_graph"),
        ("plan", "import xref"),
        ("plan", "from xref import RegionReference"),
        ("plan", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import xarray"),
        ("filters", "import imagecodecs"),
        ("h5file", "from xarray.backends import BackendArray"),
        ("h5file", "import xarray"),
    ],
)
def test_an_import_from_below_or_outside_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("plan", "import zlib, numpy.typing as npt\nfrom numpy import ndarray"),
        ("plan", "from xref.selections.values import Points\nfrom .errors import XrefError"),
        ("plan", "from xref import errors"),
        ("filters", "def f():\n    import imagecodecs"),
        ("handles", "from xarray import get_options"),
        ("cli", "import argparse\nimport xref"),
    ],
)
def test_an_import_the_table_allows_is_not_reported(module: str, source: str) -> None:
    assert violations(module, source) == []
