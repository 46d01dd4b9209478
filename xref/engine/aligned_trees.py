"""Datasets by path as a tree of xarray, in which dimensions agree with those of parents.

In: a Dataset for each name of each group. Out: a `xarray.DataTree`.

A group may be the child of a parent with other dimensions under one of its names. xarray
refuses such a tree. Then such names are left out, if another name of the group remains.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping

import xarray as xr

from xref.errors import UnreadableMemberWarning


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
        tree = xr.DataTree.from_dict(datasets)
    except ValueError:
        datasets, left_out = _without_misfits(datasets, groups)
        if not left_out or {groups[path] for path in datasets} != set(groups.values()):
            raise
        tree = xr.DataTree.from_dict(datasets)
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
    return tree


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
