"""Garbage collections that do not run on the threads that carry requests.

Another thread may hold HDF5's lock while it waits for a request. A collection on the thread
of that request could need the same lock, and both would wait for ever. So these threads
leave collections out, and other threads make up for them.
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
    """Tell whether this thread carries requests, for which others may wait.

    Who waits may hold HDF5's lock: nothing that needs it may be let go of here.
    """
    return _this_thread.carries


def enter_transport() -> None:
    """Note that this thread carries requests, or answers them."""
    _this_thread.carries = True
    if _spare_garbage not in gc.callbacks:
        gc.callbacks.append(_spare_garbage)


def _spare_garbage(phase: str, info: Mapping[str, int]) -> None:
    """Let a collection of garbage that begins on a thread of requests find none.

    Objects of h5py among it would wait for HDF5's lock. All objects count as old
    afterwards, which Python looks through seldom: `collect_spared` makes up for it. What
    was frozen before is not afterwards.
    """
    if is_transport_thread():
        if phase == "start":
            gc.freeze()
        else:
            gc.unfreeze()
            _spared.append(info["generation"])


_spared: deque[int] = deque()
"""An entry for each collection that found nothing because of its thread."""


SPARED_MOST = 32
"""Collections of young objects, of some 700 each, that are left out at most."""


def collect_spared() -> None:
    """Collect the garbage that was spared, where it is much; on any other thread."""
    if len(_spared) >= SPARED_MOST and not is_transport_thread():
        _spared.clear()
        gc.collect()
