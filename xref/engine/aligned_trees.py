"""Datasets by path as a tree of xarray, in which dimensions agree with those of parents.

In: a Dataset for each name of each group. Out: a `xarray.DataTree`.

A group may be the child of a parent with other dimensions under one of its names. xarray
refuses such a tree. Then such names are left out, if another name of the group remains. The
error of any other refusal names the file and the group.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import xarray as xr

from xref.errors import UnreadableMemberWarning

MISALIGNED, SAME_NAME = "is not aligned with its parents", "already contains a variable named"
"""Parts of the messages with which xarray refuses a tree."""


class NamedTree(xr.DataTree):  # type: ignore[no-untyped-call]
    """A tree whose errors name the file of its groups.

    `xarray.open_datatree` maps a function over the tree that makes indexes, and returns a plain
    `xarray.DataTree`. Only then does xarray compare the values of coordinates, and the names of
    groups with the names of coordinates that the groups inherit.
    """

    __slots__ = ("_filename",)

    def map_over_datasets(self, *args: Any, **kwargs: Any) -> Any:
        """Map as `xarray.DataTree.map_over_datasets` does."""
        try:
            return super().map_over_datasets(*args, **kwargs)
        except (KeyError, ValueError) as error:
            filename = getattr(self, "_filename", None)  # copies have none
            text = _refusal(error, self) if filename else None
            if text is None:
                raise
            raise ValueError(f"{filename}: {text}") from error


def build_tree(
    datasets: Mapping[str, xr.Dataset], groups: Mapping[str, Hashable], filename: str
) -> xr.DataTree:
    """Make a tree of Datasets.

    Parameters
    ----------
    datasets : dict of str to xarray.Dataset
        By path; each group before its subgroups.
    groups : dict of str to hashable
        A value for each path, equal for the names of one group.
    filename : str
        Named in warnings.

    Raises
    ------
    ValueError
        If dimensions of a group contradict those of its parents under each of its names.
    """
    try:
        tree = NamedTree.from_dict(datasets)
    except ValueError as error:
        datasets, left_out = _without_misfits(datasets, groups)
        if not left_out or {groups[path] for path in datasets} != set(groups.values()):
            raise ValueError(f"{filename}: {_refusal(error) or error}") from error
        tree = NamedTree.from_dict(datasets)
        for path in left_out:
            warnings.warn(
                f"{filename}: group {path!r} was left out of the tree, because its dimensions "
                "or coordinates differ from those of the groups above it; the group is in the "
                "tree under another name. xarray.open_groups opens all names",
                UnreadableMemberWarning,
                stacklevel=2,
            )
    for path, dataset in datasets.items():
        tree[path].set_close(dataset._close)
    tree._filename = filename
    return tree


def _refusal(error: Exception, tree: xr.DataTree | None = None) -> str | None:
    """Say which group xarray refuses and what to do; None for an error of another kind."""
    problem = str(error.args[0]) if error.args else ""
    if SAME_NAME in problem:
        paths = _names_of_coordinates(tree) if tree is not None else []
        if not paths:
            return None
        problem = f"group {paths[0]!r} has the name of a coordinate that its parent inherits"
    elif MISALIGNED not in problem:
        return None
    return (
        "xarray cannot hold the groups of this file in one tree; open the groups with "
        f"xarray.open_groups, or one of them with group=... of xarray.open_dataset. {problem}"
    )


def _names_of_coordinates(tree: xr.DataTree) -> list[str]:
    """Return the paths of groups that have the name of a dimension coordinate above them."""
    return [
        child.path
        for node in tree.subtree
        for name, child in node.children.items()
        if any(
            name in above.dataset.coords and above.dataset.coords[name].dims == (name,)
            for above in (node, *node.parents)
        )
    ]


def _without_misfits(
    datasets: Mapping[str, xr.Dataset], groups: Mapping[str, Hashable]
) -> tuple[dict[str, xr.Dataset], list[str]]:
    """Leave out names of groups with several names that contradict their parents.

    Returns the other Datasets, and the names that contradict. A name below a name that is left
    out is left out as well.
    """
    n_names = Counter(groups.values())
    kept, misfits = dict[str, xr.Dataset](), list[str]()
    for path, dataset in datasets.items():
        above = list(_paths_above(path, datasets))
        if any(parent not in kept for parent in above):
            continue
        if n_names[groups[path]] > 1:
            try:
                xr.DataTree.from_dict({p: datasets[p] for p in (*above, path)})
            except ValueError:
                misfits.append(path)
                continue
        kept[path] = dataset
    return kept, misfits


def _paths_above(path: str, datasets: Mapping[str, xr.Dataset]) -> Iterator[str]:
    """Yield the paths of the parents of a group, from the top on."""
    top = "." if "." in datasets else "/"
    if path != top:
        yield top
    for at, character in enumerate(path):
        if character == "/" and at:
            yield path[:at]
