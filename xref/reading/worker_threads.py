"""Independent jobs on the threads that read, the threads of all callers in one pool.

In: a number of jobs and a function that does one. Out: nothing, once all jobs are done; or the
first error.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from xref.options import thread_count


def share_work(n_jobs: int, job: Callable[[int], None]) -> None:
    """Do independent jobs on the threads that read, the caller's among them.

    Parameters
    ----------
    n_jobs : int
        Number of jobs.
    job : callable
        Does the job of a number; safe to call from any thread. After an error no other
        job is begun, and the error is raised.
    """
    threads = min(thread_count(), n_jobs)
    if threads <= 1:
        for number in range(n_jobs):
            job(number)
        return
    work = _SharedWork(n_jobs, job)
    for _ in range(threads - 1):
        try:
            _pool().submit(work.take_part)
        except RuntimeError:  # the system cannot start another thread: the existing ones do all
            break
    # The caller works too: a pool whose threads are busy elsewhere delays nobody.
    try:
        work.take_part()
    finally:
        work.finish()


class _SharedWork:
    """Jobs that threads take one at a time; a thread that comes late finds none."""

    def __init__(self, n_jobs: int, job: Callable[[int], None]) -> None:
        self._job = job
        self._numbers = iter(range(n_jobs))
        self._changed = threading.Condition()
        self._working = 0
        self._error: BaseException | None = None

    def take_part(self) -> None:
        """Do jobs until none is left, or one has failed."""
        with self._changed:
            self._working += 1
        try:
            while (number := self._next()) is not None:
                self._job(number)
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
            raise
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def _next(self) -> int | None:
        with self._changed:
            return None if self._error is not None else next(self._numbers, None)

    def finish(self) -> None:
        """Wait for the threads that are at work, and raise the first error."""
        with self._changed:
            self._numbers = iter(())  # for threads that come later
            self._changed.wait_for(lambda: not self._working)
        error, self._error = self._error, None  # its traceback refers to this object
        if error is not None:
            raise error


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def _pool() -> ThreadPoolExecutor:
    """Return this process's threads; a forked child makes its own."""
    key = (os.getpid(), thread_count())
    with _pools_lock:
        if key not in _pools:
            _pools[key] = ThreadPoolExecutor(key[1], thread_name_prefix="xref-read")
        return _pools[key]
