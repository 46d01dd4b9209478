"""Process-wide options, set for good or for a ``with`` block."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# Each option: its default, whether a value can be, and what is needed.
_KNOWN: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "threads": (
        None,
        lambda v: v is None or (_is_integer(v) and v >= 1),
        "a positive integer or None is needed",
    ),
    "large_results": (False, lambda v: isinstance(v, bool), "True or False is needed"),
    "remote_gap": (1 << 16, lambda v: _is_integer(v) and v >= 0, "a number of bytes is needed"),
    "remote_requests": (
        64,
        lambda v: _is_integer(v) and v >= 1,
        "a positive integer is needed",
    ),
    "remote_timeout": (
        60.0,
        lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 < v <= 1e6,
        "a number of seconds is needed, a million at most",
    ),
    "remote_retries": (
        3,
        lambda v: _is_integer(v) and v >= 0,
        "an integer of at least 0 is needed",
    ),
}

_OPTIONS: dict[str, Any] = {name: default for name, (default, _, _) in _KNOWN.items()}


class set_options:
    """Set options of xref, as a function or as a context manager.

    They are those of this process; ``client.run(xref.set_options, ...)`` sets them on the
    workers of a cluster.

    Parameters
    ----------
    threads : int or None
        Threads that decode chunks within one task. None, the default, takes the
        processors that this process may use.
    large_results : bool
        Allow results of more than 4 GiB that are also more than 1,000 times as
        large as what the file stores for them. False by default. It is looked at
        where a result is computed: on a cluster, in the workers.
    remote_gap : int
        Bytes between two ranges of a remote file that one request takes along; 64 KiB by
        default. More means fewer requests and more bytes.
    remote_requests : int
        Requests for one remote file that are under way at once, 64 by default.
    remote_timeout : float
        Seconds after which one request is given up, 60 by default.
    remote_retries : int
        How often a request that failed is tried again, 3 by default.

    Raises
    ------
    ValueError
        If an option is not known or has a value that cannot be.
    """

    def __init__(self, **options: Any) -> None:
        for name, value in options.items():
            if name not in _KNOWN:
                raise ValueError(f"no option {name!r}; there are {sorted(_KNOWN)}")
            _, can_be, needed = _KNOWN[name]
            if not can_be(value):
                raise ValueError(f"{name} is {value!r}; {needed}")
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
