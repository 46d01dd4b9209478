"""Process-wide options, set for good or for a ``with`` block."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

_OPTIONS: dict[str, Any] = {"threads": None, "large_results": False}


class set_options:
    """Set options of xref, as a function or as a context manager.

    Parameters
    ----------
    threads : int or None
        Threads that decode chunks within one task. None, the default, takes the
        processors that this process may use.
    large_results : bool
        Allow results of more than 4 GiB that are also more than 1,000 times as
        large as what the file stores for them. False by default. It is looked at
        where a result is computed: on a cluster, in the workers.

    Raises
    ------
    ValueError
        If an option is not known or has a value that cannot be.
    """

    def __init__(self, **options: Any) -> None:
        for name, value in options.items():
            if name not in _OPTIONS:
                raise ValueError(f"no option {name!r}; there are {sorted(_OPTIONS)}")
            if (
                name == "threads"
                and value is not None
                and (not isinstance(value, int) or value < 1)
            ):
                raise ValueError(f"threads is {value!r}; a positive integer or None is needed")
            if name == "large_results" and not isinstance(value, bool):
                raise ValueError(f"large_results is {value!r}; True or False is needed")
        self._before = {name: _OPTIONS[name] for name in options}
        _OPTIONS.update(options)

    def __enter__(self) -> None:
        """Keep the options until the block ends."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Set the options back."""
        _OPTIONS.update(self._before)


def get_option(name: str) -> Any:
    """Return the value of an option."""
    return _OPTIONS[name]


def thread_count() -> int:
    """Return how many threads decode chunks within one task."""
    chosen = _OPTIONS["threads"]
    if chosen is not None:
        return int(chosen)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
