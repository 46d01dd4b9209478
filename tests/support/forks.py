"""Actions in forked children, so that a crash or a hang costs one action alone."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import traceback
from collections.abc import Callable
from typing import Any

SECONDS = 5  # of processor time for one action; a hundred times what it takes
PATIENCE = 60  # seconds by the clock, for what waits instead of working
NBYTES = 8 << 30  # of address space


def in_fork(action: Callable[[], Any]) -> dict[str, Any]:
    """Run an action in a fork; return its "result", its "error", or how the fork "died".

    The result goes through JSON.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(read)
            answer = _limited(action)
            with os.fdopen(write, "w") as pipe:
                json.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return {"died": f"signal {signal.Signals(os.WTERMSIG(status)).name}"}
    return json.loads(text) if text else {"died": "without an answer"}


def _limited(action: Callable[[], Any]) -> dict[str, Any]:
    """Run an action within the limits; their signals end the process."""
    gc.freeze()  # what the parent holds: looking through it takes long
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(PATIENCE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (NBYTES, NBYTES))
    try:
        return {"result": action()}
    except BaseException as error:  # noqa: BLE001 - told to the parent
        traceback.print_exception(error)
        return {"error": f"{type(error).__name__}: {error}"}
