"""Options of the process, set permanently or for a ``with`` block."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# Default of each option, a function that accepts values, and the text of the error.
_KNOWN: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "threads": (
        None,
        lambda v: v is None or (_is_integer(v) and v >= 1),
        "a positive integer or None is needed",
    ),
    "large_results": (False, lambda v: isinstance(v, bool), "True or False is needed"),
    "strict_version": (False, lambda v: isinstance(v, bool), "True or False is needed"),
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

    Options belong to one process; ``client.run(xref.set_options, ...)`` sets them on the
    workers of a cluster.

    Parameters
    ----------
    threads : int or None
        Number of threads that decode chunks within one task. None, the default, uses
        all processors of this process.
    large_results : bool
        Allow results of more than 4 GiB that are also more than 1,000 times as
        large as the bytes that the file stores for them. False by default. The process
        that computes a result checks it: on a cluster, a worker.
    strict_version : bool
        For files that are opened from now on: a local file whose inode changed (ctime) is
        another version of the file, although its size and the time of its last write (mtime)
        are the same. So a write is noticed after which a program set the mtime back; but
        chmod, a new hard link or a renaming raise `FileChangedError`, too. False by default.
        Variables and graphs carry the choice to other processes.
    remote_gap : int
        Largest gap (bytes) between two ranges of a remote file that share one request;
        64 KiB by default. A larger gap means fewer requests and more bytes.
    remote_requests : int
        Number of concurrent requests for one remote file, 64 by default.
    remote_timeout : float
        Seconds after which a request is cancelled, 60 by default.
    remote_retries : int
        How often a failed request is repeated, 3 by default.

    Raises
    ------
    ValueError
        If an option is unknown or its value is not accepted.
    """

    def __init__(self, **options: Any) -> None:
        for name, value in options.items():
            if name not in _KNOWN:
                raise ValueError(f"no option {name!r}; there are {sorted(_KNOWN)}")
            _, accepts, needed = _KNOWN[name]
            if not accepts(value):
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
        """Restore the options."""
        _OPTIONS.update(self._before)


def get_option(name: str) -> Any:
    """Return the value of an option."""
    return _OPTIONS[name]


def thread_count() -> int:
    """Return the number of threads that decode chunks within one task."""
    chosen = _OPTIONS["threads"]
    if chosen is not None:
        return int(chosen)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
