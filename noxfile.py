"""The project's recipes: ``nox --list`` names them, ``nox -s test-fast`` runs one.

CI runs the same recipes (``.ci/run``, ``.github/workflows/ci.yml``). Each recipe has an
environment of its own under ``.nox``; ``-r`` reuses it. What follows ``--`` goes to the
program that the recipe runs: ``nox -s test-fast -- tests/reading -x``.
"""

from __future__ import annotations

import nox

nox.needs_version = ">=2025.2.9"  # the first with nox.project.dependency_groups
nox.options.sessions = ["lint", "types", "test-fast"]

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
PROJECT = nox.project.load_toml("pyproject.toml")

# One test process for each processor; a process without work takes tests from another one.
PARALLEL = ["-n", "auto", "--dist", "worksteal"]


def group(name: str) -> tuple[str, ...]:
    """Return the packages of a dependency group; pip 23.2 cannot install groups itself."""
    return nox.project.dependency_groups(PROJECT, name)


@nox.session(python=PYTHONS)
def test(session: nox.Session) -> None:
    """Run the whole suite on each Python that is installed, or on one: -p 3.13."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *PARALLEL, *session.posargs)


@nox.session(name="test-fast", reuse_venv=True)
def test_fast(session: nox.Session) -> None:
    """Run the suite without slow tests and with few random examples."""
    session.install("-e", ".[test]")
    session.run(
        "python",
        "-m",
        "pytest",
        *PARALLEL,
        "-m",
        "not slow",
        *session.posargs,
        env={"XREF_HYPOTHESIS_PROFILE": "fast"},
    )


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """Run the suite on the oldest Python and the oldest packages, without any extra."""
    claimed = [line.replace(">=", "==") for line in PROJECT["project"]["dependencies"]]
    session.install("-e", ".", *claimed, "pytest", "pytest-xdist", "hypothesis")
    session.run(
        "python",
        "-m",
        "pytest",
        *PARALLEL,
        # Old releases warn about newer packages below them, which no change here cures.
        "-W",
        "default::DeprecationWarning",
        "-W",
        "default::FutureWarning",
        *session.posargs,
    )


@nox.session(name="xarray-tests")
def xarray_tests(session: nox.Session) -> None:
    """Run xarray's own tests of its h5netcdf engine with this engine in its place."""
    session.install("-e", ".[test]", *group("xarray-tests"))
    # The comparison with other engines, now also with files that netCDF4 writes.
    files = ["tests/promises/test_parity.py", "tests/promises/test_netcdf_files.py"]
    session.run("python", "-m", "pytest", *files)
    session.run("python", "tests/run_xarray_tests.py", *session.posargs)


@nox.session(reuse_venv=True)
def lint(session: nox.Session) -> None:
    """Check style and format with ruff."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(reuse_venv=True)
def types(session: nox.Session) -> None:
    """Check annotations with mypy."""
    session.install("-e", ".[complete]", *group("lint"))
    session.run("mypy", "--strict", *session.posargs)


@nox.session(reuse_venv=True)
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning of Sphinx is an error."""
    session.install("-e", ".", *group("docs"))
    session.run(
        "sphinx-build", "-W", "--keep-going", "-n", "-b", "html", "docs", "docs/_build/html"
    )


@nox.session(reuse_venv=True)
def bench(session: nox.Session) -> None:
    """Run a short benchmark, or another one: -- benchmarks/speed.py --work W1."""
    session.install("-e", ".[complete]", *group("bench"))
    short = ["benchmarks/writing.py", "--counts", "1000,10000", "--reps", "1"]
    session.run("python", *(session.posargs or short))


@nox.session
def demo(session: nox.Session) -> None:
    """Make a movie with region references, resolve them and draw a picture."""
    session.install(".[plots]")
    session.run("xref", "demo", *session.posargs)
