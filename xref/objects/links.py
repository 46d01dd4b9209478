"""Links of a file through h5py: objects by path, and the members of groups.

In: a `FileLocation` and a path, or a group. Out: `LinkedObject` values for immediate use, and
addresses. Each group is checked before HDF5 lists or searches it, because HDF5 crashes on some
groups whose structures contradict each other.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import h5py
from h5py import h5g, h5l, h5o

from xref import storage
from xref.errors import FileChangedError, FileReadError, UnsupportedError, XrefError
from xref.hdf5 import check_group
from xref.objects.objects import Object, decode_name, open_object, wrap_identifier
from xref.objects.parsing import byte_source
from xref.objects.stored_object import StoredObject

HDF5_ERRORS = (KeyError, ValueError, RuntimeError, OSError, TypeError)
"""Errors of h5py, and those of xref that are also one of these."""


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
        check_links(group, path)
    except XrefError:
        raise
    except HDF5_ERRORS as error:
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
    check_links(found, "/")
    yield found
    for part in path.encode("utf-8", "surrogateescape").strip(b"/").split(b"/"):
        if part:
            found = _walk(found, part, links)
            check_links(found, path)
            yield found


def _open_root(location: storage.FileLocation) -> LinkedObject:
    """Open the root group."""
    file = storage.open_file(location)
    low, high = h5g.get_objinfo(file.id, b"/").objno
    root = wrap_identifier(h5g.open(file.id, b"/"), file)
    return LinkedObject(root, StoredObject(location, int(low) | int(high) << 32))


def check_links(member: LinkedObject, path: str) -> None:
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
        check_links(found, walked or "/")
        walked += f"/{decode_name(part)}"
        try:
            if not found.item.id.links.exists(part):
                raise FileNotFoundError("there is no such link")
            found = follow_link(found, part, links)
        except XrefError:
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{walked!r}: {error}") from error
        except HDF5_ERRORS as error:
            raise OSError(f"{walked!r}: {error}") from error
    return found


def follow_link(group: LinkedObject, name: bytes, links: Iterator[int]) -> LinkedObject:
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
            storage.check_external(location, os.fsdecode(filename), where),
            location.external,
            strict=location.source.strict,
        )
        # A link into its own file stays in the file as it was opened.
        same = storage.is_same_file(other, location)
        found = _walk(_open_root(location if same else other), path, links)
        return replace(found, is_hard=False)
    raise UnsupportedError(f"{where} is of type {link.type}, which HDF5 does not define")


def iterate_members(group: LinkedObject) -> Iterator[tuple[str, LinkedObject | Exception]]:
    """Yield each member of a group, or the reason why it cannot be opened.

    External links are followed where the location allows it.
    """
    try:
        check_links(group, "")
        names = list(group.item.id)
    except (RuntimeError, OSError, ValueError) as error:
        yield "", error
        return
    for name in names:
        try:
            yield decode_name(name), follow_link(group, name, iter(range(MAX_LINKS)))
        except HDF5_ERRORS as error:
            yield decode_name(name), error


def n_links(stored: StoredObject) -> int:
    """Return the number of hard links to an object."""
    # Unlike get_info, get_objinfo does not read the chunk index of a dataset.
    return int(h5g.get_objinfo(open_object(stored).id, b".").nlink)


def is_hard_link(group: LinkedObject, name: str) -> bool:
    """Tell whether a link is a hard link, or cannot be read."""
    try:
        link = group.item.id.links.get_info(name.encode("utf-8", "surrogateescape"))
    except HDF5_ERRORS:
        return True
    return bool(link.type == h5l.TYPE_HARD)


def leads_to_group(group: LinkedObject, name: bytes) -> bool:
    """Tell whether a hard link of a checked group leads to a group."""
    # Unlike get_info, get_objinfo does not read the links of the group.
    return bool(h5g.get_objinfo(group.item.id, name).type == h5g.GROUP)


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

    The name is that of the first hard link, or the first ``soft`` link. Links come in the order
    of their creation if the group keeps that order, else by name.
    """
    names: dict[int, str] = {}
    for name, address, _ in sorted(list_links(group.item.id), key=lambda link: link[2]):
        if soft and address is None:
            with contextlib.suppress(*HDF5_ERRORS):
                if group.item.id.links.get_info(name).type == h5l.TYPE_SOFT:
                    found = follow_link(group, name, iter(range(MAX_LINKS))).stored
                    is_here = found.location == group.stored.location
                    address = found.address if is_here else None
        elif soft:
            continue
        if address is not None and address in wanted:
            names.setdefault(address, decode_name(name))
    return names


def hard_links_at(stored: StoredObject) -> list[tuple[bytes, int]]:
    """Return name and address of each hard link of a group, through HDF5, by name.

    The list is empty if the group is damaged.
    """
    group = group_at(stored)
    try:
        check_links(group, f"group at {stored.address:#x}")
        return [(name, address) for address, name in _hard_links(group.item.id).items()]
    except (FileReadError, FileChangedError):
        raise
    except HDF5_ERRORS:
        return []


@storage.cached_by_location(maxsize=256)
def members_by_name(location: storage.FileLocation, path: str) -> Mapping[str, int]:
    """Return the address of each hard-linked member of a group by each of its names."""
    group = open_group(location, path)
    check_links(group, path)
    links = list_links(group.item.id)
    return MappingProxyType({decode_name(n): a for n, a, _ in links if a is not None})


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
    for name, address, _ in list_links(group):
        if address is not None:
            names.setdefault(address, name)
    return names


def list_links(group: Any) -> list[tuple[bytes, int | None, int]]:
    """Return name, address and creation order of each link of a checked group, by name.

    The address of the member is None for soft and external links. The creation order is 0 in
    groups that do not keep it.
    """
    links: list[tuple[bytes, int | None, int]] = []

    def visit(name: bytes, info: Any) -> None:
        address = int(info.u) if info.type == h5l.TYPE_HARD else None
        links.append((name, address, info.corder if info.corder_valid else 0))

    group.links.iterate(visit, info=True)
    return links
