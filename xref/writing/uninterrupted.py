"""Calls that Ctrl-C does not interrupt.

In: a function. Out: its result, or its exception.

Python runs signal handlers in the main thread, between any two instructions: also in
functions that HDF5 calls, and within `finally` and `with`. If an exception leaves such a
function, HDF5 cannot continue its work, and a file may never be closed. So the function runs
in another thread, and the main thread waits for it. Calls that may be interrupted (the user's
computations) are handed back to the main thread by `interruptible`.
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

    If the function calls `interruptible` or `check_interrupt`, these raise the interrupt
    in it, so that it ends early.

    Parameters
    ----------
    function : callable
    *arguments
        Arguments of the function.
    """
    if threading.current_thread() is not threading.main_thread():
        return function(*arguments)  # signal handlers run in the main thread only
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
        interrupt = failure = call.interrupted = (
            None  # no reference cycle of frame and exception
        )
    result: T = call.result
    return result


def interruptible(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in the thread that waits in `uninterrupted`, where Ctrl-C ends it.

    Outside of `uninterrupted` it is an ordinary call.
    """
    call: _Call | None = getattr(_this_thread, "call", None)
    if call is None:
        return function(*arguments)
    result: T = call.ask(_Request(function, arguments))
    return result


def find_interrupt() -> BaseException | None:
    """Return the interrupt that came during the `uninterrupted` call of this thread."""
    call: _Call | None = getattr(_this_thread, "call", None)
    return None if call is None else call.interrupted


def check_interrupt() -> None:
    """Raise the interrupt that came during the `uninterrupted` call of this thread."""
    interrupt = find_interrupt()
    if interrupt is not None:
        raise interrupt


_this_thread = threading.local()
"""``call``: the `_Call` for which a thread was started."""


class _Request:
    """A call for whose result another thread waits.

    One release of a lock ends the wait: no signal handler can run in the middle of it.
    """

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._function, self._arguments = function, arguments
        self._begun = False
        self._result: Any = None
        self._error: BaseException | None = None
        self._waiting = threading.Lock()
        self._waiting.acquire()

    def make(self) -> None:
        """Make the call once, and let the other thread continue."""
        if self._begun:
            return
        self._begun = True
        try:
            self._result = self._function(*self._arguments)
        except RuntimeError as error:
            # An interrupt in threading.Condition may end as "release unlocked lock".
            interrupt = error.__context__
            self._error = interrupt if isinstance(interrupt, KeyboardInterrupt) else error
        except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
            self._error = error
        self._end()

    def refuse(self, error: BaseException) -> None:
        """Let the other thread continue with an error, if it still waits."""
        if self._waiting.locked():
            self._error = error
            self._end()

    def _end(self) -> None:
        with suppress(RuntimeError):  # an interrupt came between the release and here
            self._waiting.release()

    def result(self) -> Any:
        """Wait for the result of the function; return it, or raise its error."""
        self._waiting.acquire()
        error, self._error = self._error, None  # no reference cycle of frame and exception
        if error is not None:
            raise error
        return self._result


class _Call:
    """A call in another thread, or one that was cancelled before it began."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._function, self._arguments = function, arguments
        self._context = contextvars.copy_context()
        self._gate = threading.Lock()
        self._begun = self._over = False
        self._request: _Request | None = None
        self._wake_up: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self.result: Any = None  # of the function
        self.interrupted: BaseException | None = None  # interrupt in the thread that waits

    def run(self) -> None:
        """Make the call, unless it was cancelled."""
        with self._gate:
            if self._over:
                return
            self._begun = True
        _this_thread.call = self
        try:
            self.result = self._context.run(self._function, *self._arguments)
        except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
            self._error = error
        finally:
            self._over = True
            self._wake_up.put(None)

    def ask(self, request: _Request) -> Any:
        """Let the waiting thread make a call; return its result."""
        self._request = request
        if self.interrupted is not None:
            raise self.interrupted
        self._wake_up.put(None)
        try:
            return request.result()
        finally:
            self._request = None

    def serve(self) -> bool:
        """Make the requested calls until the function has returned; return True."""
        while not self._over:
            request = self._request
            if request is not None and self.interrupted is None:
                request.make()
            self._wake_up.get()
        return True

    def interrupt(self, error: BaseException) -> None:
        """Let the other thread end early; cancel the call if it has not begun."""
        self.interrupted = error
        request = self._request
        if request is not None:
            request.refuse(error)
        with self._gate:
            self._over = self._over or not self._begun

    def take_error(self) -> BaseException | None:
        """Return the error of the function once; its frames would keep other objects alive."""
        error, self._error = self._error, None
        return error
