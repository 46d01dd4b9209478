"""The ``raise`` statements of the package, found by parsing it, and which of them were run.

A site is named ``module:function:exception#n``: the n-th ``raise`` of that exception in that
function. The name does not change when lines move.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType

PACKAGE = Path(__file__).resolve().parents[2] / "xref"


@cache
def raise_sites() -> dict[str, dict[int, str]]:
    """Return by file and line the name of each site that makes an error.

    A statement that passes on an error as it is (``raise``, ``raise error``) is no site: the
    text of the error is made elsewhere.
    """
    return {str(path): _sites_of(path) for path in sorted(PACKAGE.rglob("*.py"))}


def _sites_of(path: Path) -> dict[int, str]:
    counts: Counter[tuple[str, str]] = Counter()
    found: dict[int, str] = {}
    module = path.relative_to(PACKAGE).with_suffix("").as_posix()
    for function, statement in _walk(ast.parse(path.read_text()), ()):
        if not isinstance(statement.exc, ast.Call):
            continue
        made = statement.exc.func
        name = ast.unparse(made) if isinstance(made, ast.Name | ast.Attribute) else "computed"
        counts[function, name] += 1
        site = f"{module}:{function}:{name}#{counts[function, name]}"
        found |= dict.fromkeys(range(statement.lineno, (statement.end_lineno or 0) + 1), site)
    return found


def _walk(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[str, ast.Raise]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise):
            yield ".".join(names), child
        is_scope = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _walk(child, (*names, child.name) if is_scope else names)


def site_names() -> set[str]:
    """Return the names of all sites."""
    return {site for lines in raise_sites().values() for site in lines.values()}


@contextmanager
def recorded_sites() -> Iterator[set[str]]:
    """Record which sites raise; needs `sys.monitoring` (Python 3.12)."""
    monitoring, tool = sys.monitoring, 3
    sites, fired = raise_sites(), set[str]()

    def record(code: CodeType, offset: int, error: BaseException) -> None:
        lines = sites.get(code.co_filename)
        if lines is not None:
            line = next((n for a, b, n in code.co_lines() if a <= offset < b), None)
            if line in lines:
                fired.add(lines[line])

    monitoring.use_tool_id(tool, "raise sites of xref")
    try:
        monitoring.register_callback(tool, monitoring.events.RAISE, record)
        monitoring.set_events(tool, monitoring.events.RAISE)
        yield fired
    finally:
        monitoring.set_events(tool, 0)
        monitoring.register_callback(tool, monitoring.events.RAISE, None)
        monitoring.free_tool_id(tool)
