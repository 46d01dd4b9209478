"""Public names of a package that are imported when they are first used.

In: the name of a package whose ``__init__`` lists imports under ``TYPE_CHECKING``. Out: its
``__getattr__``, which makes those imports one by one. So type checkers and readers see plain
imports, and a program pays for the modules that it uses.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

_IMPORT = re.compile(r"^    from (\S+) import (\([^)]*\)|.*)$", re.MULTILINE)


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    Parameters
    ----------
    package : str
        Its ``__name__``. Each import of its ``__init__`` that is indented by four spaces
        is made at the first use of one of its names.
    """
    namespace = sys.modules[package].__dict__
    source = namespace["__loader__"].get_source(package)
    origin = {
        name: module
        for module, names in _IMPORT.findall(source)
        for name in re.findall(r"\w+", names)
    }

    def __getattr__(name: str) -> Any:
        if name not in origin:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = namespace[name] = getattr(import_module(origin[name]), name)
        return value

    return __getattr__, lambda: sorted({*namespace, *origin}), sorted(origin)


class LazyClass:
    """Stands for a class that is imported when it is called, or asked for an attribute.

    Parameters
    ----------
    module, name : str
        Where the class is found.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _import(self) -> Any:
        return getattr(import_module(self._module), self._name)

    def __call__(self, *args: Any) -> Any:
        """Make an instance of the class."""
        return self._import()(*args)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._import(), attribute)
