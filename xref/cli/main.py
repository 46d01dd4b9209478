"""The ``xref`` command: parses arguments, and prints the output of info and demo.

Exit codes: 0 when all went well, 1 when something could not be read (said on
standard error), 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from xref import __version__
from xref.errors import XrefError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; by default those of the process.

    Returns
    -------
    int
        The exit code.
    """
    options = _parser().parse_args(arguments)
    if options.isolate and arguments is None and hasattr(os, "fork"):
        return _run_in_child(options)
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        code = int(options.run(options))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the pipe has ended (`xref info FILE | head`). Without this, Python
        # would report a second error when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return code


def _run_in_child(options: argparse.Namespace) -> int:
    """Run in a forked process, so that a crash of HDF5 on a damaged file becomes an error."""
    with warnings.catch_warnings():
        # Python 3.12 warns if there are threads; here only those of BLAS may exist.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = None
        try:
            code = _run(options)
        finally:
            if code is None:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(1 if code is None else code)
    try:
        _, status = os.waitpid(child, 0)
    except KeyboardInterrupt:
        return 130
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        crashed = number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE)
        ended = "the HDF5 library crashed on it" if crashed else "reading it was ended"
        hint = "; the file is damaged" if crashed else ""
        print(f"xref: {options.file}: {ended} (signal {number}){hint}", file=sys.stderr)
        return 1
    return os.waitstatus_to_exitcode(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xref", description="HDF5 object and region references in xarray."
    )
    parser.add_argument("--version", action="version", version=f"xref {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    info = commands.add_parser(
        "info",
        help="show the references of a file and their targets",
        description="Show the references of a file and their targets. Elements of targets are "
        "not read.",
    )
    info.add_argument("file", metavar="FILE", help="a local HDF5 file")
    info.add_argument("--group", metavar="G", help="look at this group and those below only")
    info.add_argument("--json", action="store_true", help="print JSON, with all targets")
    info.set_defaults(run=_info, isolate=True)

    demo = commands.add_parser(
        "demo",
        help="make a sample file, resolve its references and draw them",
        description="Make a sample file of a movie with regions in it, resolve them in "
        "parallel, compare with a loop over h5py, and draw them in demo.png.",
    )
    demo.add_argument(
        "--folder",
        metavar="DIR",
        type=Path,
        default=Path("xref-demo"),
        help="where demo.png goes (default: %(default)s, made if need be)",
    )
    demo.add_argument("--keep", action="store_true", help="keep the sample file, as demo.h5")
    demo.set_defaults(run=_demo, isolate=False)
    return parser


def _info(options: argparse.Namespace) -> int:
    from xref.cli.info import inspect_file, printable, report_json, report_lines

    try:
        report = inspect_file(options.file, options.group)
    except (XrefError, OSError, RuntimeError, ValueError, KeyError) as error:
        message = str(error).removeprefix(f"{os.path.abspath(options.file)}: ")
        print(printable(f"xref: {options.file}: {message}"), file=sys.stderr)
        return 1
    if options.json:
        print(report_json(report))
    else:
        for line in report_lines(report):
            print(line)
    sys.stdout.flush()  # before the problems on standard error
    for problem in report.problems:
        print(printable(f"xref: {problem}"), file=sys.stderr)
    return 1 if report.problems else 0


def _demo(options: argparse.Namespace) -> int:
    from xref.cli.demo import run_demo

    try:
        run_demo(options.folder, keep=options.keep, say=_say)
    except OSError as error:
        print(f"xref: {error}", file=sys.stderr)
        return 1
    return 0


def _say(line: str) -> None:
    print(line, flush=True)  # flushed: a progress bar writes between the lines


if __name__ == "__main__":
    sys.exit(main())
