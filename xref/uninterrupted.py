"""Calls that Ctrl-C does not break off.

In: a function. Out: its result, or its exception.

Python runs signal handlers in the main thread, between any two instructions, also in
functions that HDF5 calls back. HDF5 cannot take up again what an exception broke off there.
So the function runs in a thread of its own, and the main thread waits for it.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def uninterrupted(
    function: Callable[..., T],
    *arguments: Any,
    stop: Callable[[BaseException], Any] | None = None,
) -> T:
    """Call a function; an interrupt is raised after the function has returned.

    Parameters
    ----------
    function : callable
    *arguments
        Of the function.
    stop : callable, optional
        Gets the interrupt at once, and may ask the function to end early.
    """
    if threading.current_thread() is not threading.main_thread():
        return function(*arguments)  # no signal handler runs here
    call = _Call(function, arguments)
    thread = threading.Thread(target=call.run, name="xref-uninterrupted")
    interrupt: BaseException | None = None
    try:
        thread.start()
        call.ended.wait()
    except BaseException as error:  # noqa: BLE001 - raised below
        interrupt = error
    while interrupt is not None and not call.is_over():
        try:
            if stop is not None:
                stop(interrupt)
            call.ended.wait()
        except BaseException as error:  # noqa: BLE001 - raised below
            interrupt = error
    if interrupt is not None:
        raise interrupt
    thread.join()
    found: T = call.result()
    return found


class _Call:
    """A call that is made in another thread, or is given up before it begins."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._function, self._arguments = function, arguments
        self._context = contextvars.copy_context()
        self._gate = threading.Lock()
        self._begun = self._given_up = False
        self._found: Any = None
        self._error: BaseException | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        """Make the call, unless it was given up."""
        with self._gate:
            if self._given_up:
                return
            self._begun = True
        try:
            self._found = self._context.run(self._function, *self._arguments)
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            self._error = error
        finally:
            self.ended.set()

    def is_over(self) -> bool:
        """Tell whether the call has ended; a call that has not begun never will."""
        with self._gate:
            self._given_up = not self._begun
            return self._given_up or self.ended.is_set()

    def result(self) -> Any:
        """Return what the function returned, or raise its error."""
        if self._error is not None:
            error, self._error = self._error, None  # no circle of frame and exception
            raise error
        return self._found
