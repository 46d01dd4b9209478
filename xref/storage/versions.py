"""Versions of a file: which changes make another version, and how an error words them.

In: identities of a file at two moments. Out: whether they are one version, and the difference
in words.

A local file is another version if its inode, its size or the time of its last write (mtime)
changed; a ``strict_version`` also compares the time of the last change of the inode (ctime).
"""

from __future__ import annotations

from datetime import UTC, datetime

from xref.storage.sources import Identity


def is_same_identity(one: Identity, other: Identity) -> bool:
    """Tell whether two identities are those of one version of one file.

    The device is not compared: machines that share a file system may number its devices
    differently. If only one identity contains the ctime, it is not compared.
    """
    if one[1:] == other[1:]:
        return True
    (_, *file, times), (_, *other_file, other_times) = one, other
    if file != other_file or not (isinstance(times, tuple) and isinstance(other_times, tuple)):
        return False
    n = min(len(times), len(other_times))
    return bool(times[:n] == other_times[:n])


def describe_difference(before: Identity, now: Identity) -> str:
    """Return the differences between two identities in words."""
    times, times_now = before[3], now[3]
    if not (isinstance(times, tuple) and isinstance(times_now, tuple)):
        return f"it was {before} and is {now}"
    found = []
    if before[1] != now[1]:
        found.append(f"another file is at its path (inode {before[1]} before, {now[1]} now)")
    if before[2] != now[2]:
        found.append(f"it had {before[2]} bytes and has {now[2]}")
    if times[0] != times_now[0]:
        found.append(
            f"its last write (mtime) was at {_time(times[0])} and is at {_time(times_now[0])}"
        )
    if not found:
        found.append(
            f"the last change of its inode (ctime) was at {_time(times[-1])} and is at "
            f"{_time(times_now[-1])}, which counts because of strict_version=True"
        )
    return ", ".join(found)


def _time(ns: int) -> str:
    """Return a time in nanoseconds since 1970 as text."""
    seconds, rest = divmod(ns, 10**9)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest:09} UTC"
    except (OverflowError, OSError, ValueError):  # beyond the years that Python knows
        return f"{ns} ns since 1970"
