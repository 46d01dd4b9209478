"""Coordinates of ``layout="concat"`` equal a plain loop, for files that hypothesis draws.

Each dataset has its own coordinates: along each axis, along two axes, and without axes. Numbers
are packed differently, times count from different moments.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from strategies import write_references

thorough = settings(
    max_examples=settings.default.max_examples // 2,
    phases=[p for p in Phase if p is not Phase.explain],
    suppress_health_check=[HealthCheck.too_slow],
)

DIMS = ("a", "b", "c")
KINDS = ("number", "packed", "time", "text")


@dataclass(frozen=True)
class Target:
    """One dataset, numbered; its coordinates depend on the number unless they are shared."""

    number: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """Files of datasets, and for each reference the dataset and the index of each axis."""

    files: tuple[tuple[tuple[Target, ...], tuple[tuple[int, tuple[Any, ...]], ...]], ...]
    axis: int
    kind: str  # of the coordinate along the joined axis
    shared: bool  # whether other coordinates are equal in all datasets


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))
    axis = draw(st.integers(0, rank - 1))
    cell = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    move = draw(st.booleans())  # whether regions begin anywhere along other axes
    files, number = [], 0
    for _ in range(draw(st.integers(1, 3))):
        targets = []
        for _ in range(draw(st.integers(1, 2))):
            shape = [n + 2 for n in cell]
            shape[axis] = draw(st.integers(1, 6))
            targets.append(Target(number, tuple(shape)))
            number += 1
        references = []
        for _ in range(draw(st.integers(1, 3))):
            t = draw(st.integers(0, len(targets) - 1))
            n = targets[t].shape[axis]
            key: list[Any] = [
                slice(at, at + c)
                for c in cell
                for at in [draw(st.integers(0, 2)) if move else 1]
            ]
            start = draw(st.integers(0, n))
            key[axis] = draw(
                st.one_of(
                    st.just(slice(start, draw(st.integers(start, n)))),
                    st.sets(st.integers(0, n - 1), min_size=1).map(sorted),
                )
            )
            references.append((t, tuple(key)))
        files.append((tuple(targets), tuple(references)))
    kind = draw(st.sampled_from(KINDS))
    return Case(tuple(files), axis, kind, draw(st.booleans()))


def stored_along(kind: str, number: int, n: int) -> tuple[Any, dict[str, Any], np.ndarray]:
    """Return the coordinate along the joined axis: raw values, attributes, decoded values."""
    raw = np.arange(n) * 3 + number
    match kind:
        case "packed":
            factor = 0.5 + number
            return raw.astype("i2"), {"scale_factor": factor}, raw * factor
        case "time":
            units = f"seconds since 2000-01-{number + 1:02d}"
            base = np.datetime64("2000-01-01", "ns") + np.timedelta64(number, "D")
            return raw, {"units": units}, base + raw.astype("m8[s]")
        case "text":
            texts = np.array([f"é{number}.{i}" for i in range(n)], dtype=object)
            return texts, {}, texts
    return raw.astype("f8"), {}, raw.astype("f8")


def coordinates(target: Target, case: Case) -> dict[str, tuple[tuple[int, ...], Any, Any, Any]]:
    """Return axes, raw values, attributes and decoded values of coordinates by name."""
    rank = len(target.shape)
    own = 0 if case.shared else target.number
    found: dict[str, tuple[tuple[int, ...], Any, Any, Any]] = {}
    for axis, n in enumerate(target.shape):
        if axis == case.axis:
            found[DIMS[axis]] = ((axis,), *stored_along(case.kind, target.number, n))
        else:
            values = np.arange(n) * 2.0 + own
            found[DIMS[axis]] = ((axis,), values, {}, values)
    if rank > 1:
        both = (case.axis, (case.axis + 1) % rank)
        shape = tuple(target.shape[k] for k in both)
        values = np.arange(np.prod(shape)).reshape(shape) + 100 * target.number
        found["plane"] = (both, values, {}, values)
    found["orbit"] = ((), np.int64(7 + own), {}, np.int64(7 + own))
    return found


@contextmanager
def opened(case: Case, folder: Path) -> Iterator[xr.DataArray]:
    """Write the files; give their references along one dimension ``row``."""
    with ExitStack() as stack:
        parts = []
        for k, (targets, references) in enumerate(case.files):
            path = folder / f"{k}.h5"
            with h5py.File(path, "w") as file:
                made = [
                    write_target(file.create_group(f"t{i}"), t, case)
                    for i, t in enumerate(targets)
                ]
                write_references(
                    file, "refs", [made[i].regionref[key] for i, key in references]
                )
            dataset = stack.enter_context(xr.open_dataset(path, engine="h5ref"))
            parts.append(dataset[["refs"]].rename({dataset["refs"].dims[0]: "row"}))
        yield xr.concat(parts, "row")["refs"]


def write_target(group: h5py.Group, target: Target, case: Case) -> h5py.Dataset:
    values = np.arange(np.prod(target.shape)).reshape(target.shape) + 1000 * target.number
    data = group.create_dataset("v", data=values)
    found = coordinates(target, case)
    for name, (_, raw, attributes, _) in found.items():
        dtype = h5py.string_dtype() if raw.dtype == object else None
        group.create_dataset(name, data=raw, dtype=dtype).attrs.update(attributes)
        if name in DIMS:
            group[name].make_scale(name)
    for axis in range(data.ndim):
        data.dims[axis].attach_scale(group[DIMS[axis]])
    for k, axis in enumerate(found["plane"][0] if "plane" in found else ()):
        group["plane"].dims[k].attach_scale(group[DIMS[axis]])
    data.attrs["coordinates"] = "plane orbit"
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("concat")


@given(case=cases())
@thorough
def test_joined_coordinates_equal_those_of_a_loop(case: Case, folder: Path) -> None:
    rows = [(targets[i], key) for targets, references in case.files for i, key in references]
    lengths = [len(np.arange(t.shape[case.axis])[key[case.axis]]) for t, key in rows]
    filled = [row for row, n in zip(rows, lengths, strict=True) if n]
    with opened(case, folder) as references:
        joined = references.h5ref.resolve("concat", concat_dim=case.axis)
        if not filled:
            assert joined.size == 0
            return
        assert joined.dims == DIMS[: joined.ndim]
        dim = joined.dims[case.axis]
        np.testing.assert_array_equal(joined["row"], np.repeat(np.arange(len(rows)), lengths))
        each = [coordinates(t, case) for t, _ in filled]
        counts = [n for n in lengths if n]
        for name, (axes, *_) in each[0].items():
            parts = [
                select(found[name][3], key, axes)
                for found, (_, key) in zip(each, filled, strict=True)
            ]
            coordinate = joined.coords[name]
            if case.axis in axes:
                assert coordinate.dims == tuple(DIMS[k] for k in axes)
                np.testing.assert_array_equal(coordinate, np.concatenate(parts))
                continue
            expected = np.repeat(np.stack(parts), counts, axis=0)
            if coordinate.dims and coordinate.dims[0] == dim:
                np.testing.assert_array_equal(coordinate, expected)
                assert len({part.tobytes() for part in parts}) > 1 or case.shared is False
            else:
                assert coordinate.dims == tuple(DIMS[k] for k in axes)
                for part in parts:
                    np.testing.assert_array_equal(coordinate, part)


def select(values: Any, key: tuple[Any, ...], axes: tuple[int, ...]) -> np.ndarray:
    """Select from a coordinate as a reference selects from its dataset."""
    out = np.asarray(values)
    for k, axis in enumerate(axes):
        out = out[(slice(None),) * k + (key[axis],)]
    return out
