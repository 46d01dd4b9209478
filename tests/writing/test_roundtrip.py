"""Generated Datasets and files of the corpus are identical after write and read."""

from __future__ import annotations

import itertools
import posixpath
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from manifest import RAW, rows
from samples import open_h5
from strategies import Drawn, files

import xref
from xref.errors import CorruptFileError

thorough = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

whole_files = settings(thorough, max_examples=max(thorough.max_examples // 4, 10))
"""Files take longer than Datasets."""

names = (f"{i}.h5" for i in itertools.count())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for the files of all examples; each file has a new name."""
    return tmp_path_factory.mktemp("roundtrip")


# --- drawn files -----------------------------------------------------------------------


@given(drawn=st.one_of(files(), files(n_targets=2)), chunks=st.sampled_from((None, {})))
@whole_files
def test_generated_files_are_identical_after_write_and_read(
    drawn: Drawn, chunks: Any, folder: Path
) -> None:
    first, second = folder / next(names), folder / next(names)
    drawn.write(first)
    with open_h5(first, chunks=chunks, **RAW_OPTIONS) as before:
        xref.to_hdf5(before, second)
        with open_h5(second, **RAW_OPTIONS) as after:
            assert_same_dataset(after, before)
    with h5py.File(first) as theirs, h5py.File(second) as ours:
        for old, new in zip(*(np.ravel(f["refs"][()]) for f in (theirs, ours)), strict=True):
            assert_same_target(ours, new, theirs, old)
    first.unlink()
    second.unlink()


RAW_OPTIONS = {name: value for name, value in RAW.items() if name != "engine"}


def assert_same_dataset(after: xr.Dataset, before: xr.Dataset) -> None:
    assert after.sizes == before.sizes
    assert set(after.variables) == set(before.variables)
    for name, variable in before.variables.items():
        assert after[name].dims == variable.dims
        if variable.dtype == object and isinstance(variable.data, xref.ReferenceArray):
            pairs = zip(after[name].values.flat, variable.values.flat, strict=True)
            for new, old in pairs:
                assert (bool(new), new.path) == (bool(old), old.path)
                assert getattr(new, "selection", None) == getattr(old, "selection", None)
        else:
            np.testing.assert_array_equal(after[name].values, variable.values)
            assert after[name].dtype.kind == variable.dtype.kind


def assert_same_target(ours: h5py.File, new: Any, theirs: h5py.File, old: Any) -> None:
    """Compare what h5py gives for a reference in two files."""
    assert bool(new) == bool(old)
    if not old:
        return
    assert type(new) is type(old)
    found, expected = ours[new], theirs[old]
    assert type(found) is type(expected)
    assert found.name == expected.name
    if isinstance(expected, h5py.Dataset) and expected.shape is not None:
        key = new if isinstance(new, h5py.RegionReference) else ()
        a = np.ravel(found[key])
        b = np.ravel(expected[old if isinstance(old, h5py.RegionReference) else ()])
        assert_same_values(a, b)


def assert_same_values(found: Any, expected: Any) -> None:
    if not expected.dtype.hasobject:
        np.testing.assert_array_equal(found, expected)
        return
    assert len(found) == len(expected)
    for a, b in zip(found.tolist(), expected.tolist(), strict=True):
        assert_same_element(a, b)


def assert_same_element(found: Any, expected: Any) -> None:
    """Compare numbers, texts, compounds and sequences; of references only their truth value."""
    if isinstance(expected, np.ndarray):
        expected, found = expected.tolist(), found.tolist()
    if isinstance(expected, tuple | list):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same_element(a, b)
    elif isinstance(expected, h5py.Reference):
        assert bool(found) == bool(expected)
    else:
        np.testing.assert_equal(found, expected)


# --- drawn Datasets --------------------------------------------------------------------

scalars = st.one_of(
    npst.integer_dtypes(endianness="="),
    npst.unsigned_integer_dtypes(endianness="="),
    npst.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
    npst.complex_number_dtypes(endianness="=", sizes=(64, 128)),
    st.just(np.dtype(bool)),
)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=5)


@st.composite
def datasets(draw: st.DrawFn) -> xr.Dataset:
    """Datasets of numbers and text, with coordinates and attributes, some in dask."""
    sizes = {d: draw(st.integers(1, 5)) for d in ("x", "y", "z")}
    attributes = st.dictionaries(
        st.text("abcé_1", min_size=1, max_size=4),
        st.one_of(
            st.integers(-(2**40), 2**40),
            st.floats(allow_nan=False),
            texts,
            st.lists(st.integers(0, 9), min_size=2, max_size=4),
        ),
        max_size=3,
    )
    variables = {}
    for k in range(draw(st.integers(1, 4))):
        dims = tuple(draw(st.permutations(list(sizes))))[: draw(st.integers(0, 3))]
        shape = tuple(sizes[d] for d in dims)
        if draw(st.integers(0, 4)) == 0:
            values: Any = draw(npst.arrays(object, shape, elements=texts)).astype(str)
        else:
            # netCDF-4 has no missing integers; missing values become NaN.
            values = draw(npst.arrays(draw(scalars), shape))
        variable = xr.Variable(dims, values, draw(attributes))
        if dims and values.dtype.kind != "U" and draw(st.booleans()):
            variable = variable.chunk(2)
        variables[f"v{k}"] = variable
    coords = {d: np.arange(n) * 0.5 for d, n in sizes.items() if draw(st.booleans())}
    return xr.Dataset(variables, coords, draw(attributes))


@given(dataset=datasets(), group=st.sampled_from(("/", "a/b")))
@thorough
def test_generated_datasets_are_identical_after_write_and_read(
    dataset: xr.Dataset, group: str, folder: Path
) -> None:
    path = folder / next(names)
    xref.to_hdf5(dataset, path, group=group)
    with open_h5(path, group=group) as back:
        xr.testing.assert_identical(back.load(), dataset.compute())
    path.unlink()


# --- files of others -------------------------------------------------------------------

NOT_WRITTEN = {
    # Holds the bytes 1, 2, 3 ... where references should be; its values cannot be read.
    "hdfview/bug1604_CompoundTest.h5": CorruptFileError
}

MISSING = {"hdf5/trefer_attr.h5": "null"}  # references to attributes have no older form

# A group that another one links to is written once, at its first path.
LINKED_GROUPS = "a group that is linked from several is a member of the first"


@pytest.mark.slow
def test_corpus_files_are_written_with_equal_references(corpus: Path, tmp_path: Path) -> None:
    compared = Counter[str]()
    for row in rows(corpus, "references"):
        source, path = corpus / row["file"], tmp_path / "new.h5"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of members that cannot be read
            with xr.open_datatree(source, **RAW) as tree:
                if row["file"] in NOT_WRITTEN:
                    with pytest.raises(NOT_WRITTEN[row["file"]]):
                        xref.to_hdf5(tree, path, on_missing="copy")
                    continue
                xref.to_hdf5(tree, path, on_missing=MISSING.get(row["file"], "copy"))
        with h5py.File(source) as theirs, h5py.File(path) as ours:
            for holder in [*row["datasets"], *row["attributes"]]:
                where = f"{row['file']}: {holder['path']} {holder.get('name', '')}"
                if holder["type"] == "std":
                    compared["std"] += compare_newer(source, ours, holder["path"], where)
                    continue
                old, new = (held_by(file, holder) for file in (theirs, ours))
                for a, b in zip(references_in(new), references_in(old), strict=True):
                    assert_resolves_alike(ours, a, theirs, b, where)
                    what = "dataset" if "name" not in holder else "attribute"
                    compared[what] += 1
        path.unlink()
    assert compared == COMPARED


COMPARED = {"dataset": 13945, "attribute": 189, "std": 7}


def held_by(file: h5py.File, holder: dict[str, Any]) -> Any:
    """Return the value of a dataset or attribute."""
    item = file[holder["path"]]
    return item.attrs[holder["name"]] if "name" in holder else item[()]


def references_in(value: Any) -> Iterator[Any]:
    """Yield the references of an array, also of those in compounds and sequences."""
    if isinstance(value, h5py.Reference):
        yield value
    elif isinstance(value, np.void | tuple | list) or (
        isinstance(value, np.ndarray) and value.dtype.hasobject
    ):
        for one in value.tolist() if isinstance(value, np.ndarray | np.void) else value:
            yield from references_in(one)


def compare_newer(source: Path, ours: h5py.File, holder: str, where: str) -> int:
    """Compare references that h5py cannot read with the references written from them."""
    group, name = posixpath.split(holder)
    with open_h5(source, group=group, **RAW_OPTIONS) as ds:
        old = list(ds[name].values.flat)
    new = list(np.ravel(ours[holder][()]))
    assert len(new) == len(old), where
    for a, b in zip(new, old, strict=True):
        assert bool(a) == (bool(b) and not isinstance(b, xref.AttributeReference)), where
        if not a or b.kind != "dataset":
            continue
        key = a if isinstance(b, xref.RegionReference) else ()
        assert_same_values(np.ravel(ours[a][key]), np.ravel(b.resolve().values))
    return len(new)


def assert_resolves_alike(
    ours: h5py.File, new: Any, theirs: h5py.File, old: Any, where: str
) -> None:
    try:
        expected = theirs[old] if old else None
    except (ValueError, RuntimeError, OSError, KeyError):
        assert not new, where  # a dangling reference becomes null
        return
    assert bool(new) == bool(old), where
    if not old:
        return
    found = ours[new]
    assert type(found) is type(expected), where
    if isinstance(expected, h5py.Group):
        members = {k for k, v in expected.items() if isinstance(v, h5py.Dataset)}
        assert members <= set(found), where
    elif isinstance(expected, h5py.Datatype):
        assert found.dtype == expected.dtype, where
    elif expected.shape is not None:
        regions = isinstance(old, h5py.RegionReference)
        a, b = (
            np.ravel(found[new if regions else ()]),
            np.ravel(expected[old if regions else ()]),
        )
        assert_same_values(a, b)
    else:
        assert found.shape == (0,), where  # no dataspace, here one without elements
