"""Links of a file through h5py: objects by path, and the members of groups.

In: a `FileLocation` and a path, or a group. Out: `LinkedObject` values for immediate use, and
addresses. Each group is checked before HDF5 lists or searches it, because HDF5 crashes on some
groups whose structures contradict each other.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections import deque
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
from h5py import h5, h5g, h5l, h5o, h5p

from xref import storage
from xref.errors import FileChangedError, FileReadError, UnsupportedError, XrefError
from xref.hdf5 import check_group
from xref.objects.objects import Object, decode_name, open_object, wrap_identifier
from xref.objects.parsing import byte_source, dataset_table
from xref.objects.stored_object import StoredObject

MIN_BULK_LINKS = 16
"""In groups with fewer members, HDF5 tells for each member whether it is a group."""


_HDF5_ERRORS = (KeyError, ValueError, RuntimeError, OSError, TypeError)


MAX_LINKS = 16
"""Largest number of soft and external links to follow to one object, as in HDF5."""


@dataclass(frozen=True, slots=True)
class LinkedObject:
    """An object that a link leads to."""

    item: Object
    stored: StoredObject
    is_hard: bool = True  # whether the link is a hard link


def open_group(location: storage.FileLocation, path: str) -> LinkedObject:
    """Open a group by path, link by link, each group checked before HDF5 searches it.

    Raises
    ------
    OSError
        If there is no group of that path; other engines raise the same error.
    CorruptFileError
        If a group on the way is damaged.
    ExternalFileError
        If the path leads to a file that the location does not allow.
    """
    try:
        group = open_member(location, path)
        _check_group(group, path)
    except XrefError:
        raise
    except _HDF5_ERRORS as error:
        raise OSError(f"{location.filename}: group {path!r} not found: {error}") from error
    return group


def open_member(location: storage.FileLocation, path: str) -> LinkedObject:
    """Open an object by path, link by link, as `open_group` does.

    Raises
    ------
    FileNotFoundError
        If a link on the way, or the file that it names, does not exist.
    OSError
        If a link on the way does not lead to a group.
    ExternalFileError
        If the path leads to a file that the location does not allow.
    """
    name = path.encode("utf-8", "surrogateescape")
    return _walk(_open_root(location), name, iter(range(MAX_LINKS)))


def groups_along(location: storage.FileLocation, path: str) -> Iterator[LinkedObject]:
    """Yield the groups on a path, from the root on; each is checked before it is searched."""
    found, links = _open_root(location), iter(range(MAX_LINKS))
    _check_group(found, "/")
    yield found
    for part in path.encode("utf-8", "surrogateescape").strip(b"/").split(b"/"):
        if part:
            found = _walk(found, part, links)
            _check_group(found, path)
            yield found


def _open_root(location: storage.FileLocation) -> LinkedObject:
    """Open the root group."""
    file = storage.open_file(location)
    low, high = h5g.get_objinfo(file.id, b"/").objno
    root = wrap_identifier(h5g.open(file.id, b"/"), file)
    return LinkedObject(root, StoredObject(location, int(low) | int(high) << 32))


def _check_group(member: LinkedObject, path: str) -> None:
    """Check the structures that HDF5 walks to list or search a group.

    HDF5 2.0 crashes on some structures that contradict each other. Each group of an open file
    is checked once.
    """
    item, location, address = member.item, member.stored.location, member.stored.address
    if not isinstance(item, h5py.Group):
        raise OSError(f"{path!r} is not a group")
    checks: storage.CheckedGroups = item._xref_file._xref_checks
    if address in checks.addresses:
        return
    source = byte_source(location, f"{location.filename}: {path!r}")
    check_group(source, address, segments=checks.segments)
    checks.addresses.add(address)


def _walk(start: LinkedObject, path: bytes, links: Iterator[int]) -> LinkedObject:
    """Follow a path from a group; ``links`` is exhausted after `MAX_LINKS` links."""
    found, walked = start, ""
    for part in path.split(b"/"):
        if part in (b"", b"."):
            continue
        _check_group(found, walked or "/")
        walked += f"/{decode_name(part)}"
        try:
            if not found.item.id.links.exists(part):
                raise FileNotFoundError("there is no such link")
            found = _follow_link(found, part, links)
        except XrefError:
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{walked!r}: {error}") from error
        except _HDF5_ERRORS as error:
            raise OSError(f"{walked!r}: {error}") from error
    return found


def _follow_link(group: LinkedObject, name: bytes, links: Iterator[int]) -> LinkedObject:
    """Open the target of a link of a checked group.

    HDF5 itself follows hard links only: a soft link may lead through a damaged group, or
    through an external link.
    """
    location, link = group.stored.location, group.item.id.links.get_info(name)
    if link.type == h5l.TYPE_HARD:
        item = wrap_identifier(h5o.open(group.item.id, name), group.item._xref_file)
        return LinkedObject(item, StoredObject(location, int(link.u)))
    where = f"{location.filename}: link {decode_name(name)!r}"
    if next(links, None) is None:
        raise UnsupportedError(f"{where}: more than {MAX_LINKS} links lead to it")
    value = group.item.id.links.get_val(name)
    if link.type == h5l.TYPE_SOFT:
        start = _open_root(location) if value.startswith(b"/") else group
        return replace(_walk(start, value, links), is_hard=False)
    if link.type == h5l.TYPE_EXTERNAL:
        filename, path = value
        other = storage.locate_file(
            storage.check_external(location, os.fsdecode(filename), where), location.external
        )
        # A link into its own file stays in the file as it was opened.
        same = other.identity == location.identity
        found = _walk(_open_root(location if same else other), path, links)
        return replace(found, is_hard=False)
    raise UnsupportedError(f"{where} is of type {link.type}, which HDF5 does not define")


def iterate_members(group: LinkedObject) -> Iterator[tuple[str, LinkedObject | Exception]]:
    """Yield each member of a group, or the reason why it cannot be opened.

    External links are followed where the location allows it.
    """
    try:
        _check_group(group, "")
        names = list(group.item.id)
    except (RuntimeError, OSError, ValueError) as error:
        yield "", error
        return
    for name in names:
        try:
            yield decode_name(name), _follow_link(group, name, iter(range(MAX_LINKS)))
        except _HDF5_ERRORS as error:
            yield decode_name(name), error


def n_links(stored: StoredObject) -> int:
    """Return the number of hard links to an object."""
    # Unlike get_info, get_objinfo does not read the chunk index of a dataset.
    return int(h5g.get_objinfo(open_object(stored).id, b".").nlink)


def is_hard_link(group: LinkedObject, name: str) -> bool:
    """Tell whether a link is a hard link, or cannot be read."""
    try:
        link = group.item.id.links.get_info(name.encode("utf-8", "surrogateescape"))
    except _HDF5_ERRORS:
        return True
    return bool(link.type == h5l.TYPE_HARD)


def walk_groups(
    location: storage.FileLocation, top: str
) -> Iterator[tuple[str, LinkedObject, dict[int, bytes] | Exception]]:
    """Yield a group and all groups below it by hard links, each once, parents first.

    Yields
    ------
    path : str
    group : LinkedObject
        To be used before the next one is requested: HDF5 slows down with the number of
        open objects.
    links : dict or Exception
        The first name of each hard-linked member by its address, or why the group
        cannot be listed.
    """
    start = open_group(location, top)
    location, seen = start.stored.location, {start.stored.address}
    queue = deque([(start.stored.address, top)])
    while queue:
        address, path = queue.popleft()
        parent = group_at(StoredObject(location, address))
        try:
            _check_group(parent, path)
            links = _hard_links(parent.item.id)
        except _HDF5_ERRORS as error:
            yield path, parent, error
            continue
        yield path, parent, links
        plain = _plain_datasets(location, links)
        for child, name in links.items():
            if child in seen or child in plain:
                continue
            seen.add(child)
            # An object without a readable header fails when the members are opened.
            with contextlib.suppress(*_HDF5_ERRORS):
                # Unlike get_info, get_objinfo does not read the links of the group.
                if h5g.get_objinfo(parent.item.id, name).type == h5g.GROUP:
                    queue.append((child, posixpath.join(path, decode_name(name))))


def _plain_datasets(location: storage.FileLocation, links: dict[int, bytes]) -> set[int]:
    """Return the addresses of the objects whose headers are known to be datasets."""
    if len(links) < MIN_BULK_LINKS:
        return set()
    address = np.fromiter(links, np.uint64, len(links))
    return set(address[dataset_table(location, address).known].tolist())


def group_at(stored: StoredObject) -> LinkedObject:
    """Open a group by address; the caller checks the group before listing it."""
    return LinkedObject(open_object(stored), stored)


def root_address(location: storage.FileLocation) -> int:
    """Return the address of the root group."""
    return _open_root(location).stored.address


def link_addresses(group: LinkedObject) -> dict[int, str]:
    """Return the first name of each hard-linked member by its address."""
    return {address: decode_name(name) for address, name in _hard_links(group.item.id).items()}


def names_in_group(
    group: LinkedObject, wanted: Set[int], *, soft: bool = False
) -> dict[int, str]:
    """Return the name that a group gives to each wanted object, by address.

    The name is that of the first hard link, or the first ``soft`` link, in the order in which
    the group lists its links.
    """
    links = group.item.id.links
    tracked = group.item.id.get_create_plist().get_link_creation_order() & h5p.CRT_ORDER_TRACKED
    order = h5.INDEX_CRT_ORDER if tracked else h5.INDEX_NAME
    names: dict[int, str] = {}
    soft_links: list[bytes] = []

    def visit(name: bytes, info: Any) -> None:
        if info.type == h5l.TYPE_SOFT:
            soft_links.append(name)
        elif info.type == h5l.TYPE_HARD and not soft and int(info.u) in wanted:
            names.setdefault(int(info.u), decode_name(name))

    links.iterate(visit, idx_type=order, info=True)
    for name in soft_links if soft else ():
        with contextlib.suppress(*_HDF5_ERRORS):
            found = _follow_link(group, name, iter(range(MAX_LINKS))).stored
            if found.address in wanted and found.location == group.stored.location:
                names.setdefault(found.address, decode_name(name))
    return names


def hard_links_at(stored: StoredObject) -> list[tuple[bytes, int]]:
    """Return name and address of each hard link of a group, through HDF5, by name.

    The list is empty if the group is damaged.
    """
    group = group_at(stored)
    try:
        _check_group(group, f"group at {stored.address:#x}")
        return [(name, address) for address, name in _hard_links(group.item.id).items()]
    except (FileReadError, FileChangedError):
        raise
    except _HDF5_ERRORS:
        return []


@storage.cached_by_location(maxsize=256)
def members_by_name(location: storage.FileLocation, path: str) -> Mapping[str, int]:
    """Return the address of each hard-linked member of a group by each of its names."""
    addresses: dict[str, int] = {}

    def visit(name: bytes, info: Any) -> None:
        if info.type == h5l.TYPE_HARD:
            addresses[decode_name(name)] = int(info.u)

    group = open_group(location, path)
    _check_group(group, path)
    group.item.id.links.iterate(visit, info=True)
    return MappingProxyType(addresses)


def type_name(location: storage.FileLocation, path: str, dataset: h5py.Dataset) -> str | None:
    """Return the name of the named datatype that equals the type of a dataset.

    The group at ``path`` is searched first, then the groups above it.
    """
    datatype = dataset.id.get_type()
    above: str | None = path
    while above is not None:
        try:
            for name, address in _named_types(location, above):
                item = open_object(StoredObject(location, address))
                if isinstance(item, h5py.Datatype) and item.id.equal(datatype):
                    return name
        except (XrefError, OSError, KeyError):
            return None  # a damaged group, or a link to a group of another file
        above = posixpath.dirname(above) if above != "/" else None
    return None


@storage.cached_by_location(maxsize=256)
def _named_types(location: storage.FileLocation, path: str) -> tuple[tuple[str, int], ...]:
    """Return name and address of the named datatypes of a group."""
    group = open_group(location, path).item.id
    return tuple(
        (decode_name(name), address)
        for address, name in _hard_links(group).items()
        # h5o.get_info would walk the chunk index of a dataset, damaged or not.
        if h5g.get_objinfo(group, name).type == h5g.TYPE
    )


def _hard_links(group: Any) -> dict[int, bytes]:
    """Return the first name of each hard-linked member, as bytes, by its address."""
    names: dict[int, bytes] = {}

    def visit(name: bytes, info: Any) -> None:
        if info.type == h5l.TYPE_HARD:
            names.setdefault(int(info.u), name)

    group.links.iterate(visit, info=True)
    return names
