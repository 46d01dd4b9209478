"""Buffers that a thread uses again and again: fresh memory costs as much as decoding a chunk.

In: a name and a number of bytes. Out: memory of this thread, valid until the thread asks for
the same name again.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

KEEP_NBYTES = 64 << 20
"""Largest buffer that a thread keeps, bytes."""

_buffers = threading.local()


def scratch_buffer(name: str, nbytes: int) -> npt.NDArray[np.uint8]:
    """Return this thread's buffer ``name``: shape ``(nbytes,)``, undefined contents."""
    buffer: npt.NDArray[np.uint8] | None = getattr(_buffers, name, None)
    if buffer is None or len(buffer) < nbytes:
        buffer = np.empty(nbytes, dtype=np.uint8)
        if nbytes <= KEEP_NBYTES:
            setattr(_buffers, name, buffer)
    return buffer[:nbytes]
