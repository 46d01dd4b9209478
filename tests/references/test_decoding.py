"""Boxes of reference datasets are read as stored, whatever part of them is wanted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xref.references.stored
from xref.references.stored import StoredReferences

SHAPE = (3, 4, 5)


def write(path: Path, **options: Any) -> Path:
    """Write a dataset of references that all differ."""
    with h5py.File(path, "w") as file:
        target = file.create_dataset("target", (60,), "u1")
        references = file.create_dataset("rois", SHAPE, h5py.regionref_dtype, **options)
        for row, index in enumerate(np.ndindex(SHAPE)):
            references[index] = target.regionref[row : row + 1]
    return path


def elements_of(path: Path) -> Any:
    with xr.open_dataset(path, engine="h5ref") as dataset:
        return dataset["rois"].variable.data


@pytest.fixture(params=[{}, {"chunks": (2, 2, 2)}], ids=["contiguous", "chunked"])
def elements(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return elements_of(write(tmp_path / "rois.h5", **request.param))


def raw_of(stored: StoredReferences) -> np.ndarray:
    raw = stored.read_raw()
    return raw.reshape(*stored.shape, raw.shape[1])


@given(keys=st.tuples(*(st.slices(n) for n in SHAPE)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_box_equals_the_slice_of_all_references(elements: Any, keys: Any) -> None:
    keys = tuple(slice(k.start, k.stop, abs(k.step or 1)) for k in keys)
    part = elements[keys]
    whole = raw_of(elements.stored)
    np.testing.assert_array_equal(raw_of(part.stored), whole[keys])
    if part.size:
        rows = np.arange(math.prod(SHAPE)).reshape(SHAPE)[keys].ravel()
        np.testing.assert_array_equal(part.columns.regions.start[:, 0], rows)


@pytest.mark.parametrize(
    ("keys", "is_run"),
    [
        ((slice(None), slice(None), slice(None)), True),
        ((slice(1, 3), slice(None), slice(None)), True),
        ((1, slice(1, 3), slice(None)), True),
        ((1, 2, slice(2, 5)), True),
        ((2, 3, 4), True),
        ((slice(1, 3), slice(1, 3), slice(None)), False),
        ((1, slice(None, None, 2), slice(None)), False),
        ((1, 2, slice(None, None, 2)), False),
        ((slice(None), 1, 1), False),
    ],
)
def test_a_contiguous_run_is_read_without_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: Any, is_run: bool
) -> None:
    elements = elements_of(write(tmp_path / "rois.h5"))
    whole, planned = raw_of(elements.stored), []
    plan_read = xref.references.stored.plan_read

    def count(*arguments: Any) -> Any:
        planned.append(arguments)
        return plan_read(*arguments)

    monkeypatch.setattr(xref.references.stored, "plan_read", count)
    part = elements[(*keys, Ellipsis)].stored
    np.testing.assert_array_equal(part.read_raw(), whole[keys].reshape(-1, whole.shape[-1]))
    assert len(planned) == (0 if is_run else 1)


def test_a_dataset_that_was_never_written_has_null_references(tmp_path: Path) -> None:
    path = tmp_path / "unwritten.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("rois", SHAPE, h5py.regionref_dtype)
    elements = elements_of(path)
    assert not elements.columns.address.any()
    assert not raw_of(elements.stored).any()
