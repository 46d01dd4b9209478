"""On a free-threaded Python, importing xref leaves the GIL off."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig

import pytest

IMPORT = """
import sys, warnings
warnings.simplefilter("error")  # Python warns when a module turns the GIL on
before = sys._is_gil_enabled()
import xref
print(before, sys._is_gil_enabled())
"""


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python is not free-threaded"
)
def test_importing_xref_leaves_the_gil_off() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHON_GIL"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["False", "False"], done.stderr
