"""Names of axes without a dimension scale are those of h5netcdf."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import scaled

pytest.importorskip("h5netcdf")


@dataclass
class Node:
    """A group to write: scales by size, shapes of datasets, whether they have scales."""

    scales: list[tuple[int, bool]] = field(default_factory=list)
    datasets: list[tuple[tuple[int, ...], bool]] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)


SIZES = st.integers(1, 4)
SHAPES = st.lists(SIZES, min_size=0, max_size=3).map(tuple)
LEAVES = st.builds(
    Node,
    scales=st.lists(st.tuples(SIZES, st.booleans()), max_size=3),
    datasets=st.lists(st.tuples(SHAPES, st.booleans()), max_size=4),
)
TREES = st.recursive(
    LEAVES,
    lambda children: st.builds(
        Node,
        scales=st.lists(st.tuples(SIZES, st.booleans()), max_size=2),
        datasets=st.lists(st.tuples(SHAPES, st.booleans()), max_size=3),
        children=st.lists(children, max_size=3),
    ),
    max_leaves=4,
)


def write_node(group: h5py.Group, node: Node, above: list[h5py.Dataset], depth: int) -> None:
    known = list(above)
    for i, (size, unlimited) in enumerate(node.scales):
        limit = (None,) if unlimited else None
        name = f"{'zs'[i % 2]}{depth}{i}"  # before and after the datasets in the listing
        scale = group.create_dataset(name, data=np.arange(size), maxshape=limit)
        scale.make_scale()
        known.append(scale)
    for i, (shape, has_scales) in enumerate(node.datasets):
        dataset = group.create_dataset(f"v{depth}{i}", data=np.zeros(shape))
        fitting = [[s for s in known if s.shape == (n,)] for n in shape]
        if has_scales and all(fitting) and len(set(shape)) == len(shape):
            for axis, scales in enumerate(fitting):
                dataset.dims[axis].attach_scale(scales[-1])
    for i, child in enumerate(node.children):
        write_node(group.create_group(f"g{depth}{i}"), child, known, depth + 1)


def written(tree: Node) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        write_node(file, tree, [], 0)
    return content.getvalue()


def paths_of(tree: Node, path: str = "/", depth: int = 0) -> list[str]:
    found = [path]
    for i, child in enumerate(tree.children):
        found += paths_of(child, f"{path.rstrip('/')}/g{depth}{i}", depth + 1)
    return found


def names(dataset: xr.Dataset) -> dict[object, tuple[object, ...]]:
    return {name: variable.dims for name, variable in dataset.variables.items()}


@pytest.mark.parametrize("mode", ["sort", "access"])
@settings(max_examples=scaled(60))
@given(tree=TREES)
def test_every_group_has_the_names_of_h5netcdf(mode: str, tree: Node) -> None:
    content = written(tree)
    for path in paths_of(tree):
        expected = xr.open_dataset(content, engine="h5netcdf", group=path, phony_dims=mode)
        found = xr.open_dataset(content, engine="h5ref", group=path, phony_dims=mode)
        assert names(found) == names(expected)
        assert found.encoding["unlimited_dims"] == expected.encoding["unlimited_dims"]
        expected.close()
        found.close()


@pytest.mark.parametrize("mode", ["sort", "access"])
@settings(max_examples=scaled(60))
@given(tree=TREES, below=st.booleans())
def test_trees_have_the_names_of_h5netcdf(mode: str, tree: Node, below: bool) -> None:
    content = written(tree)
    group = paths_of(tree)[-1] if below else None
    expected = xr.open_groups(content, engine="h5netcdf", group=group, phony_dims=mode)
    found = xr.open_groups(content, engine="h5ref", group=group, phony_dims=mode)
    assert list(found) == list(expected)
    for path, dataset in found.items():
        assert names(dataset) == names(expected[path])
        dataset.close()
        expected[path].close()


@settings(max_examples=scaled(60))
@given(tree=TREES)
def test_without_a_mode_every_group_and_tree_opens(tree: Node) -> None:
    content = written(tree)
    for path in paths_of(tree):
        xr.open_dataset(content, engine="h5ref", group=path).close()
    xr.open_datatree(content, engine="h5ref").close()


@pytest.mark.parametrize("mode", ["sort", "access"])
def test_dropped_variables_leave_the_names_of_others_as_they_are(mode: str) -> None:
    tree = Node(scales=[(3, True)], datasets=[((5,), False), ((7, 2), False), ((3,), True)])
    content = written(tree)
    for drop in ("v00", ["v01", "z00"], ["v02"], ["nothing"]):
        options = {"phony_dims": mode, "drop_variables": drop}
        with (
            xr.open_dataset(content, engine="h5netcdf", **options) as expected,
            xr.open_dataset(content, engine="h5ref", **options) as found,
        ):
            assert names(found) == names(expected)
            assert found.encoding["unlimited_dims"] == expected.encoding["unlimited_dims"]
