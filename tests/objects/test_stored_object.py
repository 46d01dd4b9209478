"""A stored object: equality, pickles, names in messages, and the file that it keeps open."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from dask.base import tokenize

from xref.objects import StoredObject, cached_by_object, open_dataset, open_member
from xref.storage import locate_file


@pytest.fixture
def stored(tmp_path: Path) -> StoredObject:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["group/data"] = np.arange(6)
    return open_member(locate_file(tmp_path / "f.h5"), "group/data").stored


def test_stored_objects_are_equal_by_file_and_address(stored: StoredObject) -> None:
    again = StoredObject(locate_file(stored.filename), stored.address)
    assert again == stored
    assert {again, stored, stored.without_open_file()} == {stored}
    assert again.token == stored.token
    assert tokenize(again) == tokenize(stored)
    other = StoredObject(stored.location, stored.address + 8)
    assert other != stored
    assert tokenize(other) != tokenize(stored)


def test_a_pickled_stored_object_opens_the_same_dataset(stored: StoredObject) -> None:
    again = pickle.loads(pickle.dumps(stored))
    assert again == stored
    assert again.layout.shape == (6,)
    np.testing.assert_array_equal(open_dataset(again), np.arange(6))


def test_a_stored_object_names_itself_by_path_or_by_address(stored: StoredObject) -> None:
    assert (stored.path, stored.label) == ("/group/data", "/group/data")
    assert str(stored) == f"{stored.filename}: /group/data"
    assert stored.where == f"{stored.filename}: dataset at {stored.address:#x}"
    unnamed = StoredObject(stored.location, 8)
    assert (unnamed.path, unnamed.label) == (None, "object at 0x8")


def test_a_cache_by_object_keeps_no_file_open(stored: StoredObject) -> None:
    seen: list[int] = []

    @cached_by_object(maxsize=2)
    def address_of(found: StoredObject) -> int:
        assert found.location.is_key
        seen.append(found.address)
        return found.address

    again = StoredObject(locate_file(stored.filename), stored.address)
    assert address_of(stored) == address_of(again) == stored.address
    assert seen == [stored.address]
