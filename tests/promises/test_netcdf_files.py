"""Drawn netCDF-4 files open as with the engines "netcdf4" and "h5netcdf".

Each file is opened with three engines, and what users see of it is compared fact by
fact (`netcdf_facts`). Where netCDF4 and h5netcdf agree on a fact, xref must have the same.
Where they differ, or one of them fails, xref must agree with one of them. `DIFFERENCES` lists
the exceptions; docs/opening.md lists them for users.

The long run compares 1,000 files, prints what it compared, and fails if an exception is no
longer needed::

    XREF_HYPOTHESIS_PROFILE=long python -m pytest -s tests/promises/test_netcdf_files.py
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netcdf_facts import MISSING, Facts, Failed, Key, OtherProcess, differences, facts_of
from netcdf_files import NetcdfFile, netcdf_files, walk
from netcdf_writing import write_netcdf
from strategies import scaled

for package in ("h5netcdf", "netCDF4"):
    # They are imported in another process only, because netCDF4 crashes at some of the files.
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)
pytest.importorskip("hdf5plugin")  # lets h5py read bzip2

Theirs = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """A fact that is not as in the other engines, with the reason."""

    reason: str
    applies: Callable[[Key, Any, Theirs], bool]


def _source_of_text(key: Key, mine: Any, theirs: Theirs) -> bool:
    dropped = all(v is MISSING for v in theirs.values())
    return key[1::2] == ("encoding of", "source") and dropped


def _name_of_a_filter(key: Key, mine: Any, theirs: Theirs) -> bool:
    if key[1::2] == ("encoding of", "compression_opts"):
        return mine is MISSING and theirs.get("h5netcdf", 0) is None
    named = mine in ("bzip2", "zstd", "szip")
    return key[1::2] == ("encoding of", "compression") and named


def _level_of_no_filter(key: Key, mine: Any, theirs: Theirs) -> bool:
    return key[1::2] == ("encoding of", "complevel") and theirs == {"netcdf4": 0}


def _digits(key: Key, mine: Any, theirs: Theirs) -> bool:
    name = "least_significant_digit"
    if key[1:2] == ("attrs of",) and len(key) == 3:
        rest = [n for n in mine if n != name]
        return set(theirs) == {"netcdf4"} and theirs["netcdf4"] == rest
    return key[3:] == (name,) and set(theirs) == {"netcdf4"}


def _byte_order(key: Key, mine: Any, theirs: Theirs) -> bool:
    """Tell whether an attribute differs from that of netCDF4 in the byte order only."""
    match mine, theirs:
        case ("array", str(dtype), shape, values), {
            "netcdf4": ("array", _, others_shape, others)
        }:
            only_order = shape == others_shape and np.array_equal(values, others)
            return set(theirs) == {"netcdf4"} and dtype.startswith(">") and only_order
    return False


def _sequences(key: Key, mine: Any, theirs: Theirs) -> bool:
    """Tell whether a scalar holds a sequence, of which others show the numbers."""
    if key[1] == "values":
        items = mine[3] if mine[:3] == ("array", "object", ()) else [()]
        return isinstance(items[0], tuple) and items[0][:1] == ("array",)
    is_type = key[1] == "dtype" or key[3:] == ("dtype",)
    return is_type and set(theirs) == {"netcdf4"} and "object" in (mine, mine[0])


def _never_written(key: Key, mine: Any, theirs: Theirs) -> bool:
    """Tell whether values differ where xref has the fill value."""
    other = theirs.get("netcdf4")
    if key[1] != "values" or not isinstance(mine, tuple) or not isinstance(other, tuple):
        return False
    only = set(theirs) == {"netcdf4"} or isinstance(theirs["h5netcdf"], Failed)
    if not only or mine[:3] != other[:3] or mine[0] != "array":
        return False
    values, others = np.asarray(mine[3], object).ravel(), np.asarray(other[3], object).ravel()
    fills = {repr(a) for a, b in zip(values, others, strict=True) if repr(a) != repr(b)}
    return len(fills) == 1


DIFFERENCES = [
    Difference(
        "text has its source in the encoding; xarray's decoder drops it", _source_of_text
    ),
    Difference(
        "filters that h5py does not know have their names; h5netcdf says unknown",
        _name_of_a_filter,
    ),
    Difference("complevel of unfiltered data is missing, as in h5netcdf", _level_of_no_filter),
    Difference("least_significant_digit is an attribute, as in h5netcdf", _digits),
    Difference(
        "arrays in attributes keep the byte order of the file, as in h5netcdf", _byte_order
    ),
    Difference("a sequence in a scalar is an object; netCDF4 shows its numbers", _sequences),
    Difference("netCDF4 gives any values for elements that were never written", _never_written),
]


# --- the test ----------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {"decode_cf": False},
    {},
    {"mask_and_scale": False},
    {"decode_cf": False, "chunks": {}},
    {"chunks": {}},
    {"decode_coords": "all"},
]

HOWS = ("open_groups", "open_datatree", "open_dataset")

N_FILES = 1000 if settings.default.max_examples >= 2000 else scaled(50)


def wrong_facts(
    path: Path, how: str, options: dict[str, Any], other: OtherProcess, counts: Counter[str]
) -> Iterator[str]:
    """Open a file with three engines and say which facts are wrong."""
    engines = ("netcdf4", "h5netcdf")
    others = {e: other.run(facts_of, path, e, how, options) for e in engines}
    n_opened = sum(not isinstance(facts, Failed) for facts in others.values())
    counts[f"opened by {n_opened} other engines"] += 1
    found: Facts = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the facts show what was left out
            found = facts_of(path, "h5ref", how, options)
    except Exception as error:  # noqa: BLE001, no error is allowed
        if n_opened:
            yield f"{how}: {error!r}"
        return
    counts["facts"] += len(found) if n_opened else 0
    for key, mine, theirs in differences(found, others):
        difference = next((d for d in DIFFERENCES if d.applies(key, mine, theirs)), None)
        if difference is None:
            yield f"{how}: {key}\n   xref: {mine}\n   others: {theirs}"
        else:
            counts[difference.reason] += 1


def test_drawn_files_open_as_in_netcdf4_and_h5netcdf(
    capsys: pytest.CaptureFixture[str],
) -> None:
    counts: Counter[str] = Counter()

    @settings(max_examples=N_FILES, suppress_health_check=list(HealthCheck))
    @given(netcdf_files(), st.sampled_from(OPTIONS), st.sampled_from(HOWS))
    def compare(drawn: NetcdfFile, options: dict[str, Any], how: str) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "file.nc"
            written = other.run(write_netcdf, path, drawn)
            assert written == path, f"{drawn.writer} cannot write: {written}"
            counts["files"] += 1
            groups = [name for name, _ in walk(drawn.root)]
            for each in groups if how == "open_dataset" else [how]:
                wrong = list(wrong_facts(path, each, options, other, counts))
                assert not wrong, "\n".join(wrong)

    with OtherProcess() as other:
        compare()
    with capsys.disabled():
        sys.stdout.write(f"\ndrawn netCDF-4 files: {dict(counts)}\n")
    if N_FILES >= 1000:
        assert all(counts[d.reason] for d in DIFFERENCES), "an exception is no longer needed"
