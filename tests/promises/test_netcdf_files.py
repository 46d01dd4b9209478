r"""Drawn netCDF-4 files open as with the engines "netcdf4" and "h5netcdf".

Each file is opened with three engines, and what users see of it is compared fact by
fact (`netcdf_facts`). Where netCDF4 and h5netcdf agree on a fact, xref must have the same.
Where they differ, xref must agree with one of them. If one of them fails, the other one decides
the names of groups and variables, and h5py the values. `DIFFERENCES` lists the exceptions;
docs/opening.md lists them for users.

The long run compares 1,000 files, prints what it compared, and fails if an exception is no
longer needed::

    XREF_HYPOTHESIS_PROFILE=long python -m pytest -o faulthandler_timeout=0 \
        tests/promises/test_netcdf_files.py
"""

from __future__ import annotations

import importlib.util
import math
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netcdf_facts import (
    MISSING,
    Facts,
    Failed,
    Key,
    OtherProcess,
    differences,
    facts_of,
    plain,
    same,
)
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
    if key[1::2] == ("encoding of", "complevel"):
        return mine is MISSING and theirs.get("h5netcdf") in ("nn", "ec")  # szip has no level
    named = mine in ("bzip2", "zstd", "szip")
    return key[1::2] == ("encoding of", "compression") and named


def _sequences(key: Key, mine: Any, theirs: Theirs) -> bool:
    """Tell whether a scalar holds a sequence, of which others show the numbers."""
    if key[1] == "values":
        items = mine[3] if mine[:3] == ("array", "object", ()) else [()]
        return isinstance(items[0], tuple) and items[0][:1] == ("array",)
    is_type = key[1] == "dtype" or key[3:] == ("dtype",)
    return is_type and set(theirs) == {"netcdf4"} and "object" in (mine, mine[0])


def _never_written(key: Key, mine: Any, theirs: Theirs) -> bool:
    """Tell whether engines differ in values; `wrong_values` compares with h5py."""
    return key[1] == "values" and not (len(theirs) == 2 and same(*theirs.values()))


def _phony(key: Key, mine: Any, theirs: Theirs) -> bool:
    """Tell whether phony dimensions have other numbers, or stand for unlimited dimensions."""
    numbers = re.compile("phony_dim_[0-9]+")
    found = numbers.sub("phony", repr(mine))
    if any(found == numbers.sub("phony", repr(v)) for v in theirs.values()):
        return len(theirs) == 1 or not same(*theirs.values())
    # h5netcdf mixes them up: `lev(lev)` becomes `lev(phony_dim_1)`, and another axis `lev`.
    return key[1] == "sizes" and "phony" in repr(theirs)


ALIASED = "a dimension with two names keeps that of its coordinate variable"
"""In other engines, such a dimension may have the name of its alias. Then the variable that has
the name of the dimension is no coordinate there, and variables have another order."""


def names_with_alias(key: Key, mine: Any, theirs: Theirs) -> bool:
    """Tell whether a fact differs because a dimension has the name of its alias."""
    if key[1] in ("dims", "sizes", "unlimited_dims") or key[3:] == ("preferred_chunks",):
        return any("alias" in repr(v) for v in (mine, *theirs.values()))
    if key[1] == "variables":
        return any(sorted(mine) == sorted(names) for names in theirs.values())
    return key[1] in ("coords", "indexes") or (key[1] == "chunks" and mine is None)


def _of_one_engine(key: Key, mine: Any, theirs: Theirs) -> bool:
    """Tell whether one engine only can open the group, which decides names alone."""
    return len(theirs) == 1 and key[1] not in ("groups", "variables")


DIFFERENCES = [
    Difference(
        "text keeps its source in the encoding; xarray's decoder drops it", _source_of_text
    ),
    Difference(
        "filters that h5py does not know have their names; h5netcdf says unknown",
        _name_of_a_filter,
    ),
    Difference("a sequence in a scalar is an object; netCDF4 shows its numbers", _sequences),
    Difference(
        "elements that were never written are the fill value, also in text and compounds",
        _never_written,
    ),
    Difference(
        "phony dimensions have numbers of their own in each engine, and some may be unlimited",
        _phony,
    ),
    Difference("one engine cannot open the group, and xref follows that one", _of_one_engine),
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


def wrong_values(path: Path, group: str) -> Iterator[str]:
    """Say which values are not as h5py reads them, filled up with the fill value."""
    try:
        ds = xr.open_dataset(path, engine="h5ref", group=group, decode_cf=False)
    except ValueError as error:
        # xarray refuses a scalar variable that has the name of a dimension, with any engine.
        if "already exists as a scalar variable" not in str(error):
            raise
        return
    with ds, h5py.File(path) as file:
        for name, variable in ds.variables.items():
            stored = file[group].get(f"_nc4_non_coord_{name}", file[group].get(name))
            values, expected = variable.values, filled_up(stored, variable.shape)
            if expected.dtype != values.dtype:  # text, numbers of another byte order
                expected = expected.astype(values.dtype)
            if not same(plain(values), plain(expected)):
                yield f"{group}/{name}: {values} should be {expected}"


def filled_up(dataset: h5py.Dataset, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values of a dataset, filled up to a shape with the fill value."""
    base = h5py.check_vlen_dtype(dataset.dtype)
    string = h5py.check_string_dtype(dataset.dtype)
    if string is not None and string.length is None:
        out = np.full(shape, (dataset.fillvalue or b"").decode(), object)
        out[tuple(map(slice, dataset.shape))] = dataset.asstr()[()]
        return out
    if base is None:
        out = np.full(shape, dataset.fillvalue, dataset.dtype)
        out[tuple(map(slice, dataset.shape))] = dataset[()]
        return out
    out = np.empty(math.prod(shape), object)
    for i, index in enumerate(np.ndindex(shape)):
        inside = all(k < n for k, n in zip(index, dataset.shape, strict=True))
        out[i] = dataset[index] if inside else np.empty(0, base)
    return out.reshape(shape)


def wrong_facts(
    drawn: NetcdfFile,
    path: Path,
    how: str,
    options: dict[str, Any],
    other: OtherProcess,
    counts: Counter[str],
) -> Iterator[str]:
    """Open a file with three engines and say which facts are wrong."""
    others = {
        engine: other.run(facts_of, path, engine, how, options)
        for engine in ("netcdf4", "h5netcdf")
    }
    n_opened = sum(not isinstance(facts, Failed) for facts in others.values())
    counts[f"opened by {n_opened} other engines"] += 1
    has_alias = any(edit.path.endswith("/alias") for edit in drawn.edits)
    found: Facts = {}
    try:
        found = facts_of(path, "h5ref", how, options)
    except Exception as error:  # noqa: BLE001, only the errors of others are allowed
        # xarray refuses a scalar variable that has the name of a dimension, and a tree in which
        # lengths of one name differ.
        refused = "already exists as a scalar variable", "is not aligned with its parents"
        allowed = Failed(repr(error)) in others.values()
        allowed |= has_alias and any(text in str(error) for text in refused)
        if n_opened and not allowed:
            yield f"{how}: {error!r}"
        return
    counts["facts"] += len(found) if n_opened else 0
    for key, mine, theirs in differences(found, others):
        reasons = (d.reason for d in DIFFERENCES if d.applies(key, mine, theirs))
        aliased = ALIASED if has_alias and names_with_alias(key, mine, theirs) else None
        if reason := next(reasons, aliased):
            counts[reason] += 1
        else:
            yield f"{how}: {key}\n   xref: {mine}\n   others: {theirs}"


def test_drawn_files_open_as_in_netcdf4_and_h5netcdf(
    capsys: pytest.CaptureFixture[str],
) -> None:
    counts: Counter[str] = Counter()

    @settings(max_examples=N_FILES, suppress_health_check=list(HealthCheck))
    @given(netcdf_files(), st.sampled_from(OPTIONS), st.sampled_from(HOWS))
    def compare(drawn: NetcdfFile, options: dict[str, Any], how: str) -> None:
        with TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the facts show what was left out
            path = Path(folder) / "file.nc"
            written = other.run(write_netcdf, path, drawn)
            assert written == path, f"{drawn.writer} cannot write: {written}"
            counts["files"] += 1
            groups = [name for name, _ in walk(drawn.root)]
            wrong = [text for group in groups for text in wrong_values(path, group)]
            for each in groups if how == "open_dataset" else [how]:
                wrong += wrong_facts(drawn, path, each, options, other, counts)
            assert not wrong, "\n".join(wrong)

    with OtherProcess() as other:
        compare()
    with capsys.disabled():
        sys.stdout.write(f"\ndrawn netCDF-4 files: {dict(counts)}\n")
    if N_FILES >= 1000:
        unused = [r for r in (ALIASED, *(d.reason for d in DIFFERENCES)) if not counts[r]]
        assert not unused, f"exceptions that are no longer needed: {unused}"
