"""The groups of a file as a tree.

In: a `FileLocation` and the path of a group. Out: the groups below it, each once
(`walk_groups`), or each under every name that it has (`list_tree`).

Hard, soft and external links may give a group many names:

1. Read the links of each group once. `walk_groups` follows hard links, breadth first. Then
   `list_tree` follows soft and external links, and continues at the groups that no hard link
   led to. So each group has a first name, which depends on the file alone.
2. Go through the tree of names, breadth first, without I/O. A name that leads back to a group
   above itself is left out, so that cycles end. Names after the first ones are limited,
   because k groups can have 2**k names.
3. Sort the names, so that each group is followed by all groups below it.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np

from xref import storage
from xref.objects.links import (
    HDF5_ERRORS,
    MAX_LINKS,
    LinkedObject,
    check_links,
    follow_link,
    group_at,
    leads_to_group,
    list_links,
    open_group,
)
from xref.objects.objects import decode_name, kind_of
from xref.objects.parsing import dataset_table
from xref.objects.stored_object import StoredObject

MIN_BULK_LINKS = 16
"""In groups with fewer members, HDF5 tells for each member whether it is a group."""

MORE_NAMES = 20_000
"""Bound on the cost of all names after the first ones, in links of groups."""

MORE_NAMES_RATIO = 4
"""The same bound for large files, as a multiple of the cost of the first names."""

NODE_COST = 10
"""Cost of a name of a group, beside 1 for each link of the group and each part of the name."""

Links: TypeAlias = list[tuple[bytes, int | None, int]]
"""From `xref.objects.links.list_links`."""

ObjectKey: TypeAlias = tuple[Any, int]
"""Version of a file, and address: equal for one object, whatever names lead to it."""


def object_key(stored: StoredObject) -> ObjectKey:
    """Return a key of an object that does not depend on the name of its file."""
    return stored.location.identity, stored.address


def walk_groups(
    location: storage.FileLocation, top: str
) -> Iterator[tuple[str, LinkedObject, Links | Exception]]:
    """Yield a group and all groups below it by hard links, each once, parents first.

    Yields
    ------
    path : str
    group : LinkedObject
        To be used before the next one is requested: HDF5 slows down with the number of
        open objects.
    links : list or Exception
        The links of the group, or why the group cannot be listed.
    """
    return _walk_from(open_group(location, top).stored, top, set())


def _walk_from(
    start: StoredObject, top: str, seen: set[ObjectKey]
) -> Iterator[tuple[str, LinkedObject, Links | Exception]]:
    """Walk from a group, without the objects in ``seen``, to which objects are added."""
    location, identity = start.location, start.location.identity
    seen.add(object_key(start))
    queue = deque([(start.address, top)])
    while queue:
        address, path = queue.popleft()
        parent = group_at(StoredObject(location, address))
        try:
            check_links(parent, path)
            links = list_links(parent.item.id)
        except HDF5_ERRORS as error:
            yield path, parent, error
            continue
        yield path, parent, links
        plain = _plain_datasets(location, links)
        for name, child, _ in links:
            if child is None or child in plain or (identity, child) in seen:
                continue
            seen.add((identity, child))
            # An object without a readable header fails when the members are opened.
            with contextlib.suppress(*HDF5_ERRORS):
                if leads_to_group(parent, name):
                    queue.append((child, posixpath.join(path, decode_name(name))))


def _plain_datasets(location: storage.FileLocation, links: Links) -> set[int]:
    """Return the addresses of the objects whose headers are known to be datasets."""
    addresses = {address for _, address, _ in links if address is not None}
    if len(addresses) < MIN_BULK_LINKS:
        return set()
    address = np.fromiter(addresses, np.uint64, len(addresses))
    address.sort()
    return set(address[dataset_table(location, address).known].tolist())


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A name of a group."""

    path: str
    group: StoredObject
    is_first: bool  # False for further names of the group


@dataclass(frozen=True, slots=True)
class Tree:
    """The names of all groups below a group."""

    nodes: list[TreeNode]  # each is followed by all nodes below it
    # Objects to which several links lead, and groups with several names.
    repeated: frozenset[ObjectKey]
    problems: Mapping[str, Exception]  # why a group cannot be listed, by its first name
    left_out: str  # first name that the limit left out, or ""


@dataclass(slots=True)
class _Listing:
    """The links of each group below a group."""

    links: dict[ObjectKey, Links] = field(default_factory=dict)
    groups: dict[ObjectKey, StoredObject] = field(default_factory=dict)
    first_path: dict[ObjectKey, str] = field(default_factory=dict)
    problems: dict[str, Exception] = field(default_factory=dict)
    # Object to which each soft or external link leads, by group and name.
    targets: dict[tuple[ObjectKey, bytes], ObjectKey] = field(default_factory=dict)

    def members(self, group: ObjectKey) -> Iterator[tuple[bytes, ObjectKey]]:
        """Yield name and object of each link of a group that leads to an object.

        The order is that of creation, as in other engines, where the group keeps it, else by
        name.
        """
        for name, address, _ in sorted(self.links[group], key=itemgetter(2)):
            if address is not None:
                yield name, (group[0], address)
            elif (group, name) in self.targets:
                yield name, self.targets[group, name]


def list_tree(location: storage.FileLocation, top: str) -> Tree:
    """List the groups below a group under every name that hard, soft or external links give.

    A name that leads back to a group above itself is left out. Names after the first one of
    each group are limited to `MORE_NAMES`, or `MORE_NAMES_RATIO` times the size of the tree
    without them; short names come first.

    Raises
    ------
    OSError
        If there is no group at ``top``.
    """
    listing = _list_groups(location, top)
    nodes, left_out = _name_groups(listing, top)
    n_links = Counter(key for group in listing.links for _, key in listing.members(group))
    repeated = {key for key, n in n_links.items() if n > 1}
    repeated |= {object_key(node.group) for node in nodes if not node.is_first}
    return Tree(_depth_first(nodes, top), frozenset(repeated), listing.problems, left_out)


def _list_groups(location: storage.FileLocation, top: str) -> _Listing:
    """Read the links of each group once."""
    listing, seen = _Listing(), set[ObjectKey]()
    starts = deque([(open_group(location, top).stored, top)])
    while starts:
        start, path_of_start = starts.popleft()
        if object_key(start) in seen:
            continue
        indirect: list[tuple[ObjectKey, bytes, str]] = []
        for path, group, links in _walk_from(start, path_of_start, seen):
            if isinstance(links, Exception):
                listing.problems[path] = links
                continue
            key = object_key(group.stored)
            listing.links[key], listing.groups[key] = links, group.stored
            listing.first_path[key] = path
            indirect += [(key, name, path) for name, address, _ in links if address is None]
        for key, name, path in indirect:
            # Links that lead nowhere are named when the members of the group are opened.
            with contextlib.suppress(*HDF5_ERRORS):
                found = follow_link(group_at(listing.groups[key]), name, iter(range(MAX_LINKS)))
                listing.targets[key, name] = object_key(found.stored)
                if kind_of(found.item) == "group":
                    starts.append((found.stored, posixpath.join(path, decode_name(name))))
    return listing


def _name_groups(listing: _Listing, top: str) -> tuple[list[TreeNode], str]:
    """Name all groups, breadth first; also return the first name over the limit, or ""."""
    first = listing.first_path
    costs = (_cost(listing, key, path) for key, path in first.items())
    left = max(MORE_NAMES, MORE_NAMES_RATIO * sum(costs))
    nodes: list[TreeNode] = []
    left_out = ""
    # Key of the group of each node, and number of the node above it.
    chain: list[tuple[ObjectKey, int]] = []
    queue = deque((key, path, -1) for key, path in first.items() if path == top)
    taken = {top}  # a damaged group may have several links of one name
    while queue:
        key, path, parent = queue.popleft()
        nodes.append(TreeNode(path, listing.groups[key], first[key] == path))
        chain.append((key, parent))
        above: set[ObjectKey] | None = None
        for name, child in listing.members(key):
            if child not in first:
                continue  # not a group, or one that cannot be listed
            child_path = posixpath.join(path, decode_name(name))
            if child_path in taken:
                continue
            if first[child] != child_path:
                above = _groups_above(chain) if above is None else above
                if child in above:
                    continue
                left -= _cost(listing, child, child_path)
                if left < 0:
                    left_out = left_out or child_path
                    continue
            taken.add(child_path)
            queue.append((child, child_path, len(nodes) - 1))
    return nodes, left_out


def _cost(listing: _Listing, key: ObjectKey, path: str) -> int:
    return NODE_COST + len(listing.links[key]) + path.count("/")


def _groups_above(chain: list[tuple[ObjectKey, int]]) -> set[ObjectKey]:
    """Return the groups of the last node and of the nodes above it."""
    found, number = set(), len(chain) - 1
    while number >= 0:
        key, number = chain[number]
        found.add(key)
    return found


def _depth_first(nodes: list[TreeNode], top: str) -> list[TreeNode]:
    """Sort nodes so that each one is followed by all nodes below it."""
    below: dict[str, list[TreeNode]] = {}
    for node in nodes:
        above = "" if node.path == top else posixpath.dirname(node.path)
        below.setdefault(above, []).append(node)
    stack, out = below.get("", []), list[TreeNode]()
    while stack:
        node = stack.pop()
        out.append(node)
        stack += reversed(below.get(node.path, []))
    return out
