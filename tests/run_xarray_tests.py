"""Run xarray's own backend tests with this engine in the place of h5netcdf.

Files are written through h5netcdf; every read with ``engine="h5netcdf"`` goes to
``h5ref``. Run as a program::

    python tests/run_xarray_tests.py [more pytest options]

Tests that ask for h5netcdf's own wording or inside are listed with the reason, and have to
fail: what is left must pass. Needs the ``test`` extra and the dependency group
``xarray-tests``; with fewer packages fewer tests run.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from typing import Any

import pytest
from xarray.backends import plugins

from xref.engine.backend import H5RefBackendEntrypoint

MODULES = ("xarray.tests.test_backends", "xarray.tests.test_backends_datatree")

SELECTION = "H5NetCDF or h5netcdf"

NOT_FOR_US = {
    "test_h5netcdf_open_kwargs[default]": "URLs are read without a file object of fsspec",
    "test_h5netcdf_open_kwargs[empty-dict]": "URLs are read without a file object of fsspec",
    "test_phony_dims_warning": "axes without a scale need no warning here",
    "test_decode_utf8_warning": "the warning names 'h5netcdf object', ours the file",
}
"""Tests of h5netcdf's wording and of its inside, by name, with the reason."""


class Routing:
    """A pytest plugin: reads with h5netcdf are reads with h5ref."""

    def pytest_configure(self) -> None:
        """Put the engine where xarray looks engines up."""
        get_backend = plugins.get_backend

        def routed(engine: Any) -> Any:
            is_other = engine == "h5netcdf"
            return H5RefBackendEntrypoint() if is_other else get_backend(engine)

        plugins.get_backend = routed

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Expect the failure of what is not for this engine."""
        for item in items:
            name = getattr(item, "originalname", item.name)
            reason = NOT_FOR_US.get(name) or NOT_FOR_US.get(item.name)
            if reason:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def main(arguments: list[str]) -> int:
    """Run the tests; return pytest's exit code."""
    options = ["-q", "-rfE", "-p", "no:cacheprovider", "-c", "/dev/null", "-k", SELECTION]
    # xarray's own settings turn none of its warnings into errors.
    options += ["-W", "ignore", "--pyargs", *MODULES, *arguments]
    # pytest would load the conftest.py of a folder tests/ here, which is not xarray's.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return int(pytest.main(options, plugins=[Routing()]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
