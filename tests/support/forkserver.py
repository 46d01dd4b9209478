"""Run short programs, each in a process of its own, without the cost of its imports.

``run_python(code, *arguments)`` does what ``python -c code arguments`` does. One server
process for each test process imports the packages once and forks for each program; the
fork runs the program and ends as an interpreter does. Tests of the imports themselves,
or of a fresh interpreter, start a process of their own.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TIMEOUT = 300  # seconds; the default limit of one program


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit status, negative for a signal, and what it printed."""

    returncode: int
    stdout: str
    stderr: str

    def check(self) -> Ended:
        """Return self; raise an error if the program failed."""
        if self.returncode:
            raise RuntimeError(f"exit status {self.returncode}: {self.stderr[-5000:]}")
        return self


def run_python(
    code: str,
    *arguments: str,
    folder: Path | None = None,
    text: str = "",
    timeout: int = TIMEOUT,
) -> Ended:
    """Run a program in a fork of the server; wait for its end.

    Parameters
    ----------
    code
        The program.
    arguments
        Its ``sys.argv[1:]``.
    folder
        Its working directory; by default the one of the server.
    text
        Its standard input.
    timeout
        Seconds by the clock, after which SIGALRM ends it.
    """
    with tempfile.TemporaryDirectory() as streams:
        stdin, stdout, stderr = (Path(streams, name) for name in ("in", "out", "err"))
        stdin.write_text(text)
        request = {
            "code": code,
            "arguments": arguments,
            "folder": str(folder) if folder else None,
            "streams": [str(stdin), str(stdout), str(stderr)],
            "timeout": timeout,
        }
        status = json.loads(_server()(json.dumps(request)))
        return Ended(status, stdout.read_text(), stderr.read_text())


@cache
def _server() -> Any:
    """Start the server; return a function that sends it a line and returns the answer."""
    command = [sys.executable, "-c", "import forkserver; forkserver.serve()"]
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    owner, lock = os.getpid(), threading.Lock()

    def ask(line: str) -> str:
        with lock:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server of forks ended with {process.wait()}")
        return answer

    @atexit.register
    def stop() -> None:
        if os.getpid() == owner:  # forks of this process inherit the function
            process.communicate()

    return ask


def serve() -> None:
    """Import the packages, then run one program for each line of standard input."""
    import dask
    import pytest  # noqa: F401
    from damaged_files import warm_up

    import xref

    # A fork has only the thread that forks, so none may be started here.
    with dask.config.set(scheduler="synchronous"), xref.set_options(threads=1):
        warm_up()
    if threading.active_count() > 1:
        raise RuntimeError(f"threads run before the forks: {threading.enumerate()}")
    for line in sys.stdin:
        request = json.loads(line)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads of the libraries
            child = os.fork()
        if not child:
            _run(request)
            return  # the interpreter ends as after any program
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _run(request: dict[str, Any]) -> None:
    """Run a program with its own streams, arguments and working directory."""
    stdin, stdout, stderr = request["streams"]
    writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, (path, flags) in enumerate(
        [(stdin, os.O_RDONLY), (stdout, writing), (stderr, writing)]
    ):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process
    sys.argv = ["-c", *request["arguments"]]
    if request["folder"]:
        os.chdir(request["folder"])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(request["timeout"])
    exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
