"""Threads that carry requests skip garbage collections; other threads run them later.

Another thread may hold HDF5's lock while it waits for a request. A garbage collection on the
thread of that request could need the same lock: a deadlock. So these threads skip
collections, and other threads run them later.
"""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Mapping


class _Thread(threading.local):
    carries = False


_this_thread = _Thread()


def is_transport_thread() -> bool:
    """Tell whether this thread carries requests.

    A thread that waits for a request may hold HDF5's lock, so a transport thread must not
    drop an object that needs the lock.
    """
    return _this_thread.carries


def enter_transport() -> None:
    """Mark this thread as one that carries requests."""
    _this_thread.carries = True
    if _spare_garbage not in gc.callbacks:
        gc.callbacks.append(_spare_garbage)


def _spare_garbage(phase: str, info: Mapping[str, int]) -> None:
    """Hide all objects from a garbage collection that begins on a transport thread.

    Objects of h5py among the garbage would wait for HDF5's lock. All objects are in the
    oldest generation afterwards, which Python collects seldom, so `collect_spared` collects
    them. Objects that were frozen before are not frozen afterwards.
    """
    if is_transport_thread():
        if phase == "start":
            gc.freeze()
        else:
            gc.unfreeze()
            _spared.append(info["generation"])


_spared: deque[int] = deque()
"""Generation of each skipped collection."""

SPARED_MOST = 32
"""Upper bound on skipped collections, each of about 700 young objects."""


def collect_spared() -> None:
    """Run the skipped collections once there are many; never on a transport thread."""
    if len(_spared) >= SPARED_MOST and not is_transport_thread():
        _spared.clear()
        gc.collect()
