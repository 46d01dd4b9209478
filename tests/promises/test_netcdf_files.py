"""Drawn netCDF-4 files open as with the engines "netcdf4" and "h5netcdf".

Each file is opened with three engines, and what users see of it is compared fact by fact
(`netcdf_facts`). Where netCDF4 and h5netcdf agree on a fact, xref must have the same. Where they
differ, or one of them fails, xref must agree with one of them. `DIFFERENCES` lists the
exceptions; docs/opening.md lists them for users.

The long run compares 1,000 files and prints how many facts it compared::

    XREF_HYPOTHESIS_PROFILE=long pytest -s tests/promises/test_netcdf_files.py
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from netcdf_facts import MISSING, Key

for package in ("h5netcdf", "netCDF4"):
    # Imported in another process only, because netCDF4 crashes at some of the files.
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)
pytest.importorskip("hdf5plugin")  # lets h5py read bzip2

OPTIONS: list[dict[str, Any]] = [
    {"decode_cf": False},
    {},
    {"mask_and_scale": False},
    {"decode_cf": False, "chunks": {}},
    {"chunks": {}},
    {"decode_coords": "all"},
]

Theirs = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """A fact that is not as in the other engines, with the reason."""

    reason: str
    applies: Callable[[Key, Any, Theirs], bool]


def encoding(*names: str) -> Callable[[Key], bool]:
    """Return a test for the encodings of these names."""
    return lambda key: key[1] == "encoding of" and key[3] in names


DIFFERENCES = [
    Difference(
        "text keeps the source in its encoding; xarray's decoder drops it for other engines",
        lambda key, mine, theirs: encoding("source")(key) and MISSING in theirs.values(),
    ),
    Difference(
        "filters that h5py has no name for have that of netCDF-4; h5netcdf calls them unknown",
        lambda key, mine, theirs: encoding("compression", "compression_opts")(key),
    ),
    Difference(
        "complevel as in h5netcdf, only with filters that have one; netCDF4 gives 0 for all",
        lambda key, mine, theirs: (
            encoding("complevel")(key) and mine == MISSING and theirs["netcdf4"] == 0
        ),
    ),
    Difference(
        "least_significant_digit is an attribute, as in h5netcdf; netCDF4 has it as encoding",
        lambda key, mine, theirs: (
            key[1] in ("attrs of", "encoding of")
            and "least_significant_digit"
            in (*key[3:], *(mine if isinstance(mine, list) else ()))
        ),
    ),
    Difference(
        "sequences of variable length are objects; netCDF4 has the numbers of one of them",
        lambda key, mine, theirs: is_of_sequences(key, mine, theirs),
    ),
    Difference(
        "characters that were never written are the fill value; netCDF4 gives random bytes",
        lambda key, mine, theirs: key[1] == "values" and set(theirs) == {"netcdf4"},
    ),
]
