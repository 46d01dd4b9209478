"""The canonical path of each object of a file.

In: a `FileLocation` and addresses of objects. Out: their canonical paths.

Hard links may give an object many paths. Its canonical path is the first one in a
breadth-first walk of the hard links from the root, which takes the links of a group in the
byte order of their names. Thus it is the path of fewest parts, and among those the first in
order. Soft and external links do not count. The path depends on the file alone, not on earlier
calls.

1. Read the links of the root. An object without a name gets the first link that leads to it.
2. Read the headers of the objects named last, all at once, to find the groups among them.
3. Read the links of these groups, one group after the other; continue with step 2.

The walk stops when the requested objects are named, and continues at the next request, so that
a file is walked at most once. It reads bytes, without HDF5. Links of a damaged group do not
count.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from xref import hdf5
from xref.errors import CorruptFileError, UnsupportedError, XrefError
from xref.objects.links import hard_links_at, root_address
from xref.objects.objects import decode_name
from xref.objects.parsing import byte_source, file_format
from xref.objects.stored_object import StoredObject
from xref.objects.trees import walk_groups
from xref.storage import (
    FileLocation,
    Identity,
    UnreachableFile,
    cached_by_location,
    metadata_bytes,
)

BATCH = 1 << 13
"""Objects whose headers are in memory at once, as in `xref.hdf5.bulk_datasets`."""

NEAR_COST = 32
"""Largest number of reads of a remote file to name an object in a repr or a message."""

STRETCH_NBYTES = 1 << 16
"""Object headers within this many bytes of a remote file count as one read."""

GROUP_COST = 2
"""Number of reads that the links of one group count as."""

MAX_SHARING = 8
"""Largest ratio of the bytes of all links, `LINK_NBYTES` each, to the bytes of the file. In a
damaged file, groups that share links could keep a walk busy forever; files of libhdf5 have no
such groups. Links of groups after the limit do not count."""

LINK_NBYTES = 10
"""Lower bound of the stored bytes of a link: address, name, and length of the name."""


class _Counted:
    """A reader of metadata that counts the bytes that it reads."""

    def __init__(self, location: FileLocation) -> None:
        self.nbytes = 0
        source = byte_source(location, location.filename)
        self._read = source.read
        self.source = replace(source, read=self._count)

    def _count(self, address: int, nbytes: int) -> bytes:
        self.nbytes += nbytes
        return self._read(address, nbytes)


@dataclass(frozen=True, slots=True)
class _Group:
    """A group whose links have not been read."""

    address: int
    messages: list[hdf5.Message]  # of its object header, about links


@dataclass(slots=True)
class _Walk:
    """The state of the walk of one file.

    A step is computed without the lock, and applied unless another thread has applied it: its
    result depends on the file alone.

    Bytes that count for `MAX_SHARING`: `LINK_NBYTES` for each link, and the bytes read of
    damaged groups and of headers that were read one by one.
    """

    # The link that names each object found so far: address of the group, and name.
    links: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    root: int | None = None
    found: list[int] = field(default_factory=list)  # named last; their headers are not read
    groups: list[_Group] = field(default_factory=list)  # in the order in which they are read
    at: int = 0  # the groups before this one are done
    steps: int = 0  # that were applied
    nbytes: int = 0  # that count for `MAX_SHARING`
    cost: int = 0  # reads so far
    # The links that were found before the reads became too many.
    near: dict[int, tuple[int, bytes]] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_over(self) -> bool:
        """Whether the walk is complete."""
        return self.root is not None and self.at >= len(self.groups) and not self.found

    def advance(self, location: FileLocation, *, near: bool) -> bool:
        """Take one step; return False at the end, or if a ``near`` walk costs too much."""
        with self.lock:
            steps, root, at = self.steps, self.root, self.at
            groups, found, before = self.groups, self.found, self.nbytes
            if self.is_over or (near and self.near is not None):
                return False
            cost = 0
            if root is not None and location.source.remote:
                cost = GROUP_COST if at < len(groups) else _cost_of_headers(found)
                if self.near is None and self.cost + cost > NEAR_COST:
                    self.near = dict(self.links)
                    if near:
                        return False
        if root is None:
            start = root_address(location)
            nbytes = 0
        elif at < len(groups):
            links, nbytes = _read_links(location, groups[at], before)
        else:
            next_groups, nbytes = _find_groups(location, found, before)
        with self.lock:
            if self.steps != steps:
                return True
            self.steps += 1
            self.cost += cost
            self.nbytes = nbytes
            if root is None:
                self.root, self.found = start, [start]
            elif at < len(groups):
                self.name_members(groups[at].address, links)
                self.at += 1
            else:
                self.groups, self.at, self.found = next_groups, 0, []
        return True

    def name_members(self, group: int, links: list[tuple[bytes, int]]) -> None:
        """Give a name to the members of a group that have none."""
        for name, address in links:
            if address not in self.links and address != self.root:
                self.links[address] = group, name
                self.found.append(address)

    def knows(self, address: int, *, near: bool) -> bool:
        """Tell whether an object has a name; for ``near``, a name found at low cost."""
        links = self.near if near and self.near is not None else self.links
        return address in links or address == self.root

    def path(self, address: int, known: dict[int, str] | None = None) -> str | None:
        """Return the path of an object if it is named; ``known`` caches paths of groups."""
        parts, at = list[str](), address
        before = ""
        while at != self.root:
            link = self.links.get(at)
            if link is None:
                return None
            parts.append(decode_name(link[1]))
            at = link[0]
            if known is not None and at in known:
                before = known[at]
                break
        path = "/".join([before, *reversed(parts)])
        if known is not None and address in self.links:
            known[self.links[address][0]] = path[: -len(parts[0]) - 1]
        return path or "/"


def _cost_of_headers(addresses: Sequence[int]) -> int:
    return len({address // STRETCH_NBYTES for address in addresses})


@cached_by_location(maxsize=64)
def _walk_of(location: FileLocation) -> _Walk:
    """Return the walk of a file, which continues at each request."""
    return _Walk()


@cached_by_location(maxsize=4)
def _walk_of_live(location: FileLocation, identity: Identity) -> _Walk:
    """Walk a file that a writer has open, through HDF5."""
    del identity  # each version of the file has its own walk
    walk = _Walk(root=root_address(location))
    with suppress(CorruptFileError):  # of the root: then no object has a name
        for _, group, links in walk_groups(location, "/"):
            if isinstance(links, list):
                named = [(name, address) for name, address, _ in links if address is not None]
                walk.name_members(group.stored.address, named)
    walk.found = []
    return walk


def _start(location: FileLocation) -> tuple[FileLocation, _Walk]:
    """Return a location that keeps the file open during the walk, and the walk."""
    location = replace(location, holds_file=True, handles=[])
    if location.source.open_for_writing:
        return location, _walk_of_live(location, location.source.known_identity())
    return location, _walk_of(location)


def object_path(stored: StoredObject) -> str | None:
    """Return the canonical path of an object.

    Returns
    -------
    str or None
        None if no chain of hard links leads from the root to the object without a damaged
        group, or if the file cannot be opened because only a reference names the file.
    """
    if isinstance(stored.location.source, UnreachableFile):
        return None
    address, (location, walk) = stored.address, _start(stored.location)
    while not walk.knows(address, near=False):
        if not walk.advance(location, near=False):
            return None
    return walk.path(address)


def near_path(stored: StoredObject) -> str | None:
    """Return the canonical path of an object for a repr or a message; never fails.

    Unlike `object_path`, the result is None if naming the object takes more than `NEAR_COST`
    reads of a remote file, also after other requests, or if the file cannot be read any more.
    """
    if isinstance(stored.location.source, UnreachableFile):
        return None
    try:
        address, (location, walk) = stored.address, _start(stored.location)
        while not walk.knows(address, near=True):
            if not walk.advance(location, near=True):
                return None
        return walk.path(address)
    except (XrefError, OSError):
        return None


def object_paths(
    location: FileLocation, addresses: Iterable[int] | None = None
) -> dict[int, str]:
    """Return the canonical paths of many objects of a file, by address.

    Parameters
    ----------
    location : FileLocation
    addresses : iterable of int, optional
        By default all objects that have a path.

    Returns
    -------
    dict of int to str
        Objects without a path are absent.
    """
    if isinstance(location.source, UnreachableFile):
        return {}
    location, walk = _start(location)
    wanted = None if addresses is None else list(addresses)
    for address in [None] if wanted is None else wanted:
        while address is None or not walk.knows(address, near=False):
            if not walk.advance(location, near=False):
                break
    if wanted is None:
        wanted = [] if walk.root is None else [walk.root, *walk.links]
    groups = dict[int, str]()
    paths = {address: walk.path(address, groups) for address in wanted}
    return {address: path for address, path in paths.items() if path is not None}


def _find_groups(
    location: FileLocation, addresses: list[int], before: int
) -> tuple[list[_Group], int]:
    """Return the groups among objects, in order, and the bytes counted so far."""
    form, found = file_format(location), list[_Group]()
    limit, counted = MAX_SHARING * form.file_nbytes - before, _Counted(location)
    for begin in range(0, len(addresses), BATCH):
        part = addresses[begin : begin + BATCH]
        headers = hdf5.read_headers(
            metadata_bytes(location), np.array(part, dtype=np.uint64).astype(np.int64), form
        )
        messages = defaultdict[int, list[hdf5.Message]](list)
        for row in np.flatnonzero(np.isin(headers.message_type, hdf5.LINK_TYPES)).tolist():
            at, nbytes = int(headers.position[row]), int(headers.nbytes[row])
            body = headers.data[at : at + nbytes].tobytes()
            message = hdf5.Message(
                int(headers.message_type[row]), int(headers.flags[row]), body
            )
            messages[int(headers.object[row])].append(message)
        # Headers that the bulk reader does not know, and damaged ones, are read one by one.
        for number in np.flatnonzero(headers.marked).tolist():
            if counted.nbytes > limit:
                messages.pop(number, None)
                continue
            messages[number] = _link_messages(counted.source, part[number])
        found += [
            _Group(part[k], messages[k]) for k in sorted(messages) if hdf5.is_group(messages[k])
        ]
    return found, before + counted.nbytes


def _link_messages(source: hdf5.MetadataReader, address: int) -> list[hdf5.Message]:
    """Return the messages about links of one object header; none if it is damaged."""
    try:
        return [
            m for m in hdf5.walk_messages(source, address) if m.message_type in hdf5.LINK_TYPES
        ]
    except CorruptFileError:
        return []


def _read_links(
    location: FileLocation, group: _Group, before: int
) -> tuple[list[tuple[bytes, int]], int]:
    """Return name and address of each hard link of a group, and the bytes counted so far.

    A damaged group has no links here.
    """
    if before > MAX_SHARING * file_format(location).file_nbytes:
        return [], before
    counted = _Counted(location)
    try:
        links = hdf5.read_hard_links(counted.source, group.messages, group.address)
    except CorruptFileError:
        return [], before + counted.nbytes
    except UnsupportedError:  # heaps with filters, which HDF5 reads
        links = hard_links_at(StoredObject(location, group.address))
    # The bytes read do not count here, because one read includes the gap between two nodes.
    return links, before + LINK_NBYTES * len(links)
