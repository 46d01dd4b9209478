"""Calls that Ctrl-C does not break off.

In: a function. Out: its result, or its exception.

Python runs signal handlers in the main thread, between any two instructions: also in
functions that HDF5 calls back, and in the middle of `finally` and `with`. HDF5 cannot take up
again what an exception broke off there, and what was opened is perhaps never closed. So the
function runs in a thread of its own, and the main thread waits for it. What may be broken off
(the user's computations) the function hands to the main thread: `interruptible`.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


def uninterrupted(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function; an interrupt is raised after the function has returned.

    It ends early where it calls `interruptible` or `check_interrupt`: they raise the
    interrupt in the function.

    Parameters
    ----------
    function : callable
    *arguments
        Of the function.
    """
    if threading.current_thread() is not threading.main_thread():
        return function(*arguments)  # no signal handler runs here
    call = _Call(function, arguments)
    thread = threading.Thread(target=call.run, name="xref-uninterrupted")
    interrupt: BaseException | None = None
    is_over = False
    try:
        while not is_over:
            try:
                if interrupt is not None:
                    call.interrupt(interrupt)
                else:
                    thread.start()
                is_over = call.serve()
            except BaseException as error:  # noqa: BLE001 - raised below
                interrupt = error
    finally:
        if not is_over:  # a second interrupt came before the first one was handled
            call.interrupt(interrupt or KeyboardInterrupt())
    if interrupt is None:
        thread.join()
    failure = call.take_error()
    try:
        if interrupt is not None:
            raise interrupt from (None if failure is interrupt else failure)
        if failure is not None:
            raise failure
    finally:
        interrupt = failure = call.interrupted = None  # no circle of frame and exception
    found: T = call.found
    return found


def interruptible(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in the thread that waits in `uninterrupted`; an interrupt ends it.

    Elsewhere it is an ordinary call.
    """
    call: _Call | None = getattr(_of_thread, "call", None)
    if call is None:
        return function(*arguments)
    found: T = call.ask(_Request(function, arguments))
    return found


def find_interrupt() -> BaseException | None:
    """Return the interrupt of the call that this thread makes, if there was one."""
    call: _Call | None = getattr(_of_thread, "call", None)
    return None if call is None else call.interrupted


def check_interrupt() -> None:
    """Raise the interrupt of the call that this thread makes, if there was one."""
    interrupt = find_interrupt()
    if interrupt is not None:
        raise interrupt


_of_thread = threading.local()
"""``call``: the `_Call` that a thread was made for."""


class _Request:
    """A call that a thread waits for.

    The waiting ends with one release of a lock, which no signal handler can break into.
    """

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._function, self._arguments = function, arguments
        self._begun = False
        self._found: Any = None
        self._error: BaseException | None = None
        self._waiting = threading.Lock()
        self._waiting.acquire()

    def make(self) -> None:
        """Make the call once, and let the other thread go on."""
        if self._begun:
            return
        self._begun = True
        try:
            self._found = self._function(*self._arguments)
        except RuntimeError as error:
            # An interrupt in threading.Condition may end as "release unlocked lock".
            interrupt = error.__context__
            self._error = interrupt if isinstance(interrupt, KeyboardInterrupt) else error
        except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
            self._error = error
        self._end()

    def refuse(self, error: BaseException) -> None:
        """Let the other thread go on with an error, if it still waits."""
        if self._waiting.locked():
            self._error = error
            self._end()

    def _end(self) -> None:
        with suppress(RuntimeError):  # an interrupt came between the release and here
            self._waiting.release()

    def result(self) -> Any:
        """Wait; return what the function returned, or raise its error."""
        self._waiting.acquire()
        error, self._error = self._error, None  # no circle of frame and exception
        if error is not None:
            raise error
        return self._found


class _Call:
    """A call that is made in another thread, or is given up before it begins.

    Attributes
    ----------
    found : object
        What the function returned.
    interrupted : BaseException or None
        What was raised in the thread that waits.
    """

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._function, self._arguments = function, arguments
        self._context = contextvars.copy_context()
        self._gate = threading.Lock()
        self._begun = self._over = False
        self._request: _Request | None = None
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self.found: Any = None
        self.interrupted: BaseException | None = None

    # --- in the other thread -----------------------------------------------------------

    def run(self) -> None:
        """Make the call, unless it was given up."""
        with self._gate:
            if self._over:
                return
            self._begun = True
        _of_thread.call = self
        try:
            self.found = self._context.run(self._function, *self._arguments)
        except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
            self._error = error
        finally:
            self._over = True
            self._news.put(None)

    def ask(self, request: _Request) -> Any:
        """Have a call made by the thread that waits."""
        self._request = request
        if self.interrupted is not None:
            raise self.interrupted
        self._news.put(None)
        try:
            return request.result()
        finally:
            self._request = None

    # --- in the thread that waits ------------------------------------------------------

    def serve(self) -> bool:
        """Make the calls that are asked for until all is over; return True."""
        while not self._over:
            request = self._request
            if request is not None and self.interrupted is None:
                request.make()
            self._news.get()
        return True

    def interrupt(self, error: BaseException) -> None:
        """Let the other thread end early; if it has not begun, it never will."""
        self.interrupted = error
        request = self._request
        if request is not None:
            request.refuse(error)
        with self._gate:
            self._over = self._over or not self._begun

    def take_error(self) -> BaseException | None:
        """Return the error of the function, and forget it: frames would keep it alive."""
        error, self._error = self._error, None
        return error
