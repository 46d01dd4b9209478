"""The architecture of the package, measured by reading its sources.

Run ``python tests/support/architecture.py`` to print the report; tests/meta/test_layering.py
holds it to its limits. Sources are parsed, never imported, so an import inside a function
counts as one at the top of the module.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "xref"

# Each room, from the bottom to the top, and the rooms that it may import.
_BASE = ("errors", "options", "lazy_names")
_FILES = (*_BASE, "arrays", "selections", "hdf5", "storage")
_READ = (*_FILES, "objects", "reading")
_ENGINE = (*_READ, "references", "engine")
ROOMS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "options": (),
    "lazy_names": (),
    "arrays": _BASE,
    "selections": (*_BASE, "arrays"),
    "hdf5": (*_BASE, "arrays", "selections"),
    "storage": (*_BASE, "arrays"),
    "objects": _FILES,
    "reading": _READ,
    "references": (*_READ, "references"),
    "engine": _ENGINE,
    "writing": _ENGINE,
    "resolving": (*_ENGINE, "writing"),
    "__init__": (*_ENGINE, "writing", "resolving"),
    "cli": (*_ENGINE, "writing", "resolving", "__init__"),
}

# Imports against the order, made when a function is called.
DEFERRED_UPWARD = {("references/reference", "resolving"): "``reference.resolve()`` is public"}
DEFERRED_CIRCLES = {
    ("objects/stored_object", "objects/datasets"): "``stored.metadata``, ``stored.layout``",
    ("objects/stored_object", "objects/paths"): "``stored.path``, ``stored.label``",
    ("references/array", "references/array_functions"): "NumPy's functions for the array",
}

# The outside packages that the modules of a room may import. An entry covers what lies below
# it: "numpy" also allows numpy.typing, "xarray.get_options" that name alone. Packages of the
# extras may be imported inside functions.
OUTSIDE: dict[str, tuple[str, ...]] = {
    "arrays": ("numpy",),
    "selections": ("numpy",),
    "hdf5": ("numpy",),
    "storage": ("h5py", "numpy", "xarray.backends.h5netcdf_", "xarray.get_options"),
    "objects": ("h5py", "numpy"),
    "reading": ("numpy",),
    "references": ("numpy", "xarray"),
    "engine": ("dask", "numpy", "xarray"),
    "writing": ("dask", "h5py", "numpy", "xarray"),
    "resolving": ("dask", "numpy", "xarray"),
    "__init__": ("xarray",),
    "cli": ("dask", "h5py", "numpy", "xarray"),
}

# Who imports h5py, dask and xarray's inside, and why.
OWNERS: dict[str, dict[str, str]] = {
    "h5py": {
        "storage/sources": "opens local files, file objects and bytes",
        "storage/open_files": "the intent of an open file",
        "storage/external_files": "whether a named file is HDF5",
        "storage/inputs": "takes open h5py groups",
        "storage/fsspec_cache": "opens a local copy",
        "storage/remote": "opens remote files",
        "objects/links": "lists groups and follows links",
        "objects/objects": "opens objects by address",
        "objects/layouts": "extents and property lists",
        "objects/stored_types": "types",
        "objects/attributes": "values of attributes",
        "objects/datasets": "elements and chunks that bytes cannot give",
        "objects/virtual_datasets": "mappings of virtual datasets",
        "writing/memory_layout": "types of elements in memory and in the file",
        "writing/datasets": "creates datasets",
        "writing/dimension_scales": "creates dimension scales",
        "writing/storage_options": "chunks, filters and fill values",
        "writing/dask_blocks": "writes blocks",
        "writing/tree": "creates groups",
        "writing/copied_objects": "copies objects",
        "cli/demo": "the loop over h5py that is compared",
        "cli/demo_sample": "writes the sample",
    },
    "dask": {
        "engine/decoding": "tokens",
        "engine/lazy_arrays": "tokens",
        "engine/object_variables": "chunks of variables of objects",
        "writing/write_hdf5": "computes what is written",
        "resolving/dask_graph": "builds graphs",
        "cli/demo": "shows a graph",
    },
    "xarray.core": {
        "engine/lazy_arrays": "the indexing adapters of xarray's guide to backends",
        "resolving/compound_fields": "lazily indexed arrays",
    },
}


@dataclass(frozen=True)
class Import:
    """One name that a module imports from the package."""

    line: int
    room: str
    inner: str  # the module within the room; "" if the name comes from the room itself
    name: str
    is_deferred: bool


@dataclass(frozen=True)
class Function:
    """A function and its lines of code, without docstring, comments and blank lines."""

    place: str
    n_lines: int


@dataclass(frozen=True)
class Module:
    """One source file of the package."""

    path: Path
    source: str

    @property
    def name(self) -> str:
        """Path within the package without suffix, such as ``hdf5/filters``."""
        return self.path.relative_to(PACKAGE).with_suffix("").as_posix()

    @property
    def room(self) -> str:
        """The package, or the module, directly below the top."""
        return self.name.split("/")[0]

    @property
    def is_facade(self) -> bool:
        """Whether it lists the public names of a room."""
        return self.path.name == "__init__.py" and self.path.parent != PACKAGE

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed source."""
        return ast.parse(self.source)

    @cached_property
    def code_lines(self) -> set[int]:
        """Numbers of the lines that hold code; docstrings are no code."""
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.source).readline):
            skipped = (
                tokenize.COMMENT,
                tokenize.NL,
                tokenize.NEWLINE,
                tokenize.INDENT,
                tokenize.DEDENT,
                tokenize.ENDMARKER,
            )
            if token.type not in skipped:
                lines |= set(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                lines -= set(range(node.lineno, (node.end_lineno or 0) + 1))
        return lines

    @property
    def n_lines(self) -> int:
        """Lines of the file, blank ones included."""
        return len(self.source.splitlines())

    @property
    def n_comments(self) -> int:
        """Lines that hold a comment and nothing else."""
        return sum(line.lstrip().startswith("#") for line in self.source.splitlines())

    def imports(self) -> Iterator[tuple[int, str, bool]]:
        """Yield line, full dotted name and "inside a function?" of everything imported."""

        def visit(node: ast.AST, deferred: bool) -> Iterator[tuple[int, str, bool]]:
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name, deferred) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                # A relative import is one of the room's own.
                parts = ["xref", self.room] * (node.level > 0) + [node.module or ""]
                module = ".".join(filter(None, parts))
                yield from ((node.lineno, f"{module}.{a.name}", deferred) for a in node.names)
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, deferred or inside)

        return visit(self.tree, False)

    def own_imports(self) -> Iterator[Import]:
        """Yield the imports from the package itself."""
        for line, name, deferred in self.imports():
            top, *rest = name.split(".")
            if top != "xref":
                continue
            room = rest[0] if rest and rest[0] in ROOMS else "__init__"
            inner = rest[1:] if (PACKAGE / room).is_dir() else []
            is_module = inner and _is_module(PACKAGE.joinpath(room, *inner))
            module = "/".join(inner if is_module else inner[:-1])
            yield Import(line, room, module, name, deferred)

    def functions(self) -> Iterator[Function]:
        """Yield every function and method."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                own = set(range(node.lineno, (node.end_lineno or 0) + 1))
                yield Function(f"{self.name}:{node.name}", len(own & self.code_lines))

    def undocumented(self) -> Iterator[str]:
        """Yield what is public and has no docstring."""

        def visit(node: ast.AST, place: str) -> Iterator[str]:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    setter = any(isinstance(d, ast.Attribute) for d in child.decorator_list)
                    if child.name.startswith("_") or setter:
                        continue
                    if not ast.get_docstring(child):
                        yield f"{place}.{child.name}"
                    if isinstance(child, ast.ClassDef):
                        yield from visit(child, f"{place}.{child.name}")

        if not ast.get_docstring(self.tree):
            yield self.name
        yield from visit(self.tree, self.name)


def _is_module(path: Path) -> bool:
    return path.with_suffix(".py").exists() or path.is_dir()


def modules() -> list[Module]:
    """Return all modules of the package."""
    return [Module(p, p.read_text(encoding="utf-8")) for p in sorted(PACKAGE.rglob("*.py"))]


def entries() -> list[str]:
    """Return what lies in the package's folder."""
    return sorted(p.name for p in PACKAGE.iterdir() if p.name != "__pycache__")


def upward_imports(module: Module) -> list[str]:
    """Return the imports from rooms that the module's room may not import."""
    found = []
    for item in module.own_imports():
        deferred = item.is_deferred and (module.name, item.room) in DEFERRED_UPWARD
        if item.room not in (module.room, *ROOMS[module.room]) and not deferred:
            found.append(f"{module.name}, line {item.line}: {item.name}")
    return found


def inner_imports(module: Module) -> list[str]:
    """Return the imports of an inner module of another room."""
    return [
        f"{module.name}, line {item.line}: {item.name}"
        for item in module.own_imports()
        if item.inner and item.room != module.room
    ]


def room_arrows() -> set[tuple[str, str]]:
    """Return which room imports which; declared imports against the order left out."""
    return {
        (module.room, item.room)
        for module in modules()
        for item in module.own_imports()
        if item.room != module.room and (module.name, item.room) not in DEFERRED_UPWARD
    }


def module_arrows(room: str) -> set[tuple[str, str]]:
    """Return which module of a room imports which."""
    return {
        (module.name, f"{room}/{item.inner}")
        for module in modules()
        for item in module.own_imports()
        if module.room == item.room == room and not module.is_facade
    } - set(DEFERRED_CIRCLES)


def floors(arrows: set[tuple[str, str]]) -> dict[str, int]:
    """Return how many names lie below each in the longest chain of imports.

    Raises
    ------
    ValueError
        If there is a circle.
    """
    below: dict[str, set[str]] = {}
    for upper, lower in arrows:
        below.setdefault(upper, set()).add(lower)
        below.setdefault(lower, set())
    found: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> int:
        if name in path:
            raise ValueError(f"a circle of imports: {' -> '.join((*path, name))}")
        if name not in found:
            found[name] = 1 + max((visit(b, (*path, name)) for b in below[name]), default=0)
        return found[name]

    for name in below:
        visit(name, ())
    return found


def comments_per_100(room: str) -> float:
    """Return the lines of comments for each 100 lines of code in a room."""
    own = [module for module in modules() if module.room == room]
    n_code = sum(len(module.code_lines) for module in own)
    return 100 * sum(module.n_comments for module in own) / n_code


def wrong_outside_imports(module: Module, extras: set[str]) -> list[str]:
    """Return the imports from outside that the module's room may not make."""
    allowed = OUTSIDE.get(module.room, ())
    found = []
    for line, name, deferred in module.imports():
        top = name.split(".")[0]
        if top == "xref" or top in sys.stdlib_module_names or (deferred and top in extras):
            continue
        if not any(f"{name}.".startswith(f"{each}.") for each in allowed):
            found.append(f"{module.name}, line {line}: {name}")
    return found


def outside_imports(package: str) -> dict[str, list[str]]:
    """Return the modules that import a package from outside, and what of it."""
    found: dict[str, list[str]] = {}
    for module in modules():
        for _, name, _ in module.imports():
            if f"{name}.".startswith(f"{package}."):
                found.setdefault(module.name, []).append(name)
    return found


def facade_names(room: str) -> list[str]:
    """Return the public names of a room."""
    source = (PACKAGE / room / "__init__.py").read_text(encoding="utf-8")
    listed = re.findall(r"^    from \S+ import (\([^)]*\)|.*)$", source, re.MULTILINE)
    return sorted(name for names in listed for name in re.findall(r"\w+", names))


def report() -> Iterator[str]:
    """Yield the lines of the report."""
    everything = modules()
    code = [m for m in everything if not m.is_facade]
    yield f"entries in xref/: {len(entries())}"
    yield f"modules: {len(everything)}, lines: {sum(m.n_lines for m in everything)}"
    yield f"upward imports: {sum(len(upward_imports(m)) for m in everything)}"
    yield f"imports of another room's inner modules: {sum(len(inner_imports(m)) for m in code)}"
    levels = floors(room_arrows())
    yield f"arrows between rooms: {len(room_arrows())}, floors: {max(levels.values())}"
    for room in ROOMS:
        if (PACKAGE / room).is_dir():
            inside = floors(module_arrows(room))
            own = [m for m in everything if m.room == room]
            yield (
                f"  {room:<11} {len(own) - 1:3} modules, "
                f"{sum(m.n_lines for m in own):5} lines, "
                f"{max(inside.values(), default=1)} floors, "
                f"{len(facade_names(room)):3} public names, "
                f"{comments_per_100(room):4.1f} comments in 100 lines of code"
            )
    longest = sorted(code, key=lambda m: -m.n_lines)[:5]
    yield "longest modules: " + ", ".join(f"{m.name} {m.n_lines}" for m in longest)
    long = [f for m in everything for f in m.functions() if f.n_lines > 50]
    yield f"functions over 50 lines of code: {len(long)}"
    yield from (f"  {f.place} {f.n_lines}" for f in sorted(long, key=lambda f: -f.n_lines))
    missing = [name for m in everything for name in m.undocumented()]
    yield f"public names without a docstring: {len(missing)} {missing[:5] or ''}"


if __name__ == "__main__":
    sys.stdout.write("\n".join(report()) + "\n")
