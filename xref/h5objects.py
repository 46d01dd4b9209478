"""Objects of a file through h5py: by address, by link, and the paths to them.

In: a `FileLocation` with an address or a path. Out: h5py objects for the caller's
immediate use, each of which keeps its file open, and plain addresses and paths.

Addresses are checked before HDF5 dereferences them, and groups before it lists
them: some that contradict each other crash it.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import h5py
import numpy as np
from h5py import h5d, h5f, h5g, h5l, h5o, h5p, h5r, h5s, h5t

from xref.errors import (
    CorruptFileError,
    DanglingReferenceError,
    WrongTargetError,
)
from xref.groups import check_group
from xref.h5file import (
    FileBytes,
    FileLocation,
    check_external,
    file_format,
    locate_file,
    open_file,
)

Object: TypeAlias = h5py.Dataset | h5py.Group | h5py.Datatype


def object_address(item: Object) -> int:
    """Return the address of an object's header, in bytes from the base address.

    Raises
    ------
    CorruptFileError
        If HDF5 cannot read the object's header.
    """
    try:
        return int(h5o.get_info(item.id).addr)
    except (RuntimeError, OSError, ValueError) as error:
        raise CorruptFileError(f"an object's header cannot be read: {error}") from error


def file_of(item: Object, outer: FileLocation) -> FileLocation:
    """Return the location of the file that an object lives in.

    Across an external link it is not the file that was opened.
    """
    filename = os.path.abspath(os.fsdecode(h5f.get_name(item.id)))
    return outer if filename == outer.filename else locate_file(filename, outer.external)


_SLOTS = 1024

_KEPT_REFERENCES = 1 << 16


@lru_cache(maxsize=1)
def _reference_image() -> tuple[bytes, int]:
    """Return a small HDF5 file of null object references, and where they begin."""
    with h5py.File("xref-references", "w", driver="core", backing_store=False) as file:
        properties = h5p.create(h5p.DATASET_CREATE)
        properties.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        space = h5s.create_simple((_SLOTS,))
        dataset = h5d.create(file.id, b"r", h5t.STD_REF_OBJ, space, dcpl=properties)
        offset = dataset.get_offset()
        file.flush()
        return file.id.get_file_image(), offset


_made: OrderedDict[int, h5py.Reference] = OrderedDict()

_made_lock = threading.Lock()


def _references(addresses: Sequence[int]) -> list[h5py.Reference]:
    """Make h5py object references from addresses.

    h5py has no constructor for them; it reads them from an image in memory whose
    slots hold the addresses. A reference is 8 bytes, bound to no file, and is kept
    for the next time.
    """
    with _made_lock:
        missing = [a for a in dict.fromkeys(addresses) if a not in _made]
        image, offset = _reference_image()
        for begin in range(0, len(missing), _SLOTS):
            part = missing[begin : begin + _SLOTS]
            patched = bytearray(image)
            struct.pack_into(f"<{len(part)}Q", patched, offset, *part)
            # h5py's File object costs more than all references of the image.
            file = h5f.open_file_image(bytes(patched))
            dataset = h5d.open(file, b"r")
            found = np.empty(_SLOTS, dtype=h5py.ref_dtype)
            dataset.read(h5s.ALL, h5s.ALL, found)
            file.close()
            _made.update(zip(part, found.tolist(), strict=False))
        out = [_made[a] for a in addresses]
        while len(_made) > _KEPT_REFERENCES:
            _made.popitem(last=False)
        return out


def prepare_references(addresses: Sequence[int]) -> None:
    """Make references to many objects at once, before they are opened one by one."""
    _references(addresses)


def header_problem(location: FileLocation, address: int) -> str:
    """Say why no object header can be at an address; empty if one may be.

    Source: HDF5 File Format Specification 4.0, "Data Object Header Prefix".
    """
    form = file_format(location)
    position = form.base_address + address
    if not 0 < address <= form.file_nbytes - form.base_address - 16:
        return f"is outside the file ({form.file_nbytes} bytes)"
    head = bytearray(16)
    FileBytes(location).read_into(position, memoryview(head))
    if head[:4] == b"OHDR":
        return "" if head[4] == 2 else f"has an object header of version {head[4]}"
    version, reserved, n_messages, n_links, nbytes = struct.unpack_from("<BBHII", head)
    if version != 1 or reserved or not n_messages or not n_links:
        return "has no object header"
    if nbytes > form.file_nbytes - position:
        return f"has an object header of {nbytes} bytes, past the end of the file"
    return ""


def open_objects(location: FileLocation, addresses: list[int]) -> Iterator[Object]:
    """Open objects by address, one after the other.

    Raises
    ------
    DanglingReferenceError
        If there is no object at an address.
    """
    file = open_file(location)
    for address in addresses:
        problem = header_problem(location, address)
        if problem:
            raise DanglingReferenceError(
                f"{location.filename}: address {address:#x} {problem}; "
                "the reference is dangling"
            )
    for address, reference in zip(addresses, _references(addresses), strict=True):
        try:
            identifier = h5r.dereference(reference, file.id)
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise DanglingReferenceError(
                f"{location.filename}: no object at address {address:#x}: {error}"
            ) from error
        if identifier is None:
            raise DanglingReferenceError(
                f"{location.filename}: no object at address {address:#x}"
            )
        yield _wrap(identifier, file)


def _wrap(identifier: Any, file: h5py.File) -> Object:
    """Make an h5py object that keeps its file open for as long as it lives."""
    item: Object
    if isinstance(identifier, h5d.DatasetID):
        item = h5py.Dataset(identifier)
    elif isinstance(identifier, h5g.GroupID):
        item = h5py.Group(identifier)
    else:
        item = h5py.Datatype(identifier)
    item._xref_file = file
    return item


def open_object(location: FileLocation, address: int) -> Object:
    """Open one object by address."""
    return next(open_objects(location, [address]))


def object_kind(location: FileLocation, address: int) -> str:
    """Return "dataset", "group", "datatype", or "dangling" if there is no object."""
    try:
        item = open_object(location, address)
    except DanglingReferenceError:
        return "dangling"
    if isinstance(item, h5py.Dataset):
        return "dataset"
    return "group" if isinstance(item, h5py.Group) else "datatype"


def open_dataset(location: FileLocation, address: int) -> h5py.Dataset:
    """Open a dataset by address.

    Raises
    ------
    DanglingReferenceError
        If there is no object.
    WrongTargetError
        If it is none.
    """
    item = open_object(location, address)
    if not isinstance(item, h5py.Dataset):
        raise WrongTargetError(
            f"{location.filename}: the object at {address:#x} is a "
            f"{type(item).__name__.lower()}, not a dataset"
        )
    return item


@lru_cache(maxsize=16)
def object_paths(location: FileLocation) -> dict[int, str]:
    """Walk all hard links once and return a path of each object, by address.

    The shortest path is taken, the first by name among equals; objects without a
    link from the root are absent. Damaged groups give their members no path.
    """
    root, address = _open_root(location)
    paths = {address: "/"}
    queue: deque[tuple[Any, str]] = deque([(root.id, "")])
    while queue:
        group, prefix = queue.popleft()
        for address, name in _hard_links(group).items():
            if address in paths:
                continue
            path = f"{prefix}/{text(name)}"
            paths[address] = path
            with contextlib.suppress(*_HDF5_ERRORS):
                # Unlike get_info, this does not walk into the group.
                if h5g.get_objinfo(group, name).type == h5g.GROUP:
                    check_listing(location, root, address, path)
                    queue.append((h5g.open(group, name), path))
    return paths


_known_paths: dict[FileLocation, dict[int, str]] = {}

_known_paths_lock = threading.Lock()


def remember_paths(location: FileLocation, paths: dict[int, str]) -> None:
    """Keep paths that were seen on the way, so that a repr can show them."""
    with _known_paths_lock:
        if location not in _known_paths and len(_known_paths) >= 256:
            _known_paths.pop(next(iter(_known_paths)))
        _known_paths.setdefault(location, {}).update(paths)


def known_path(location: FileLocation, address: int) -> str | None:
    """Return the path of an object if it has been seen; never searches the file."""
    return _known_paths.get(location, {}).get(address)


def text(value: bytes | str) -> str:
    """Decode a name or string of the file; odd bytes survive a round trip."""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


def open_group(location: FileLocation, path: str) -> h5py.Group:
    """Open a group by path, link by link, each group checked before HDF5 searches it.

    Raises
    ------
    OSError
        If there is no group of that path, as other engines do.
    CorruptFileError
        If a group on the way is damaged.
    """
    group, _ = _open_root(location)
    walked = ""
    for part in path.encode("utf-8", "surrogateescape").split(b"/"):
        if part in (b"", b"."):
            continue
        walked += f"/{text(part)}"
        try:
            item, address = _follow_link(location, group, part)
        except (*_HDF5_ERRORS, TypeError) as error:
            raise OSError(
                f"{location.filename}: group {path!r} not found: {walked!r}: {error}"
            ) from error
        if not isinstance(item, h5py.Group):
            raise OSError(
                f"{location.filename}: group {path!r} not found: {walked!r} is no group"
            )
        if address is not None:
            check_listing(location, group, address, walked)
        group = item
    return group


_HDF5_ERRORS = (KeyError, ValueError, RuntimeError, OSError)


def _open_root(location: FileLocation) -> tuple[h5py.Group, int]:
    """Open the root group, checked, and return it with its address."""
    file = open_file(location)
    low, high = h5g.get_objinfo(file.id, b"/").objno
    root = _wrap(h5g.open(file.id, b"/"), file)
    address = int(low) | int(high) << 32
    check_listing(location, root, address, "/")
    return root, address


def check_listing(location: FileLocation, item: Object, address: int, path: str) -> None:
    """Check the structures of the group at an address that listing it walks.

    HDF5 2.0 dies of some that contradict each other.
    """
    form = file_format(location)
    source = FileBytes(location)

    def read(at: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        source.read_into(form.base_address + at, memoryview(buffer))
        return bytes(buffer)

    check_group(
        read,
        address,
        offset_size=form.offset_size,
        length_size=form.length_size,
        file_nbytes=form.file_nbytes - form.base_address,
        where=f"{location.filename}: {path!r}",
        segments=item._xref_file._xref_segments,
    )


def _follow_link(
    location: FileLocation, group: h5py.Group, name: bytes
) -> tuple[Object, int | None]:
    """Open what a link leads to; its address is None where another group is searched."""
    link = group.id.links.get_info(name)
    if link.type == h5l.TYPE_EXTERNAL:
        target, _ = group.id.links.get_val(name)
        where = f"{location.filename}: link {text(name)!r}"
        check_external(location, os.fsdecode(target), where)
    address = int(link.u) if link.type == h5l.TYPE_HARD else None
    return _wrap(h5o.open(group.id, name), group._xref_file), address


def iterate_members(
    group: h5py.Group, location: FileLocation
) -> Iterator[tuple[str, Object | Exception]]:
    """Yield each member of a group, or the reason why it cannot be opened.

    External links are followed where the location allows it.
    """
    try:
        names = list(group.id)
    except (RuntimeError, OSError, ValueError) as error:
        yield "", error
        return
    for name in names:
        try:
            yield text(name), _follow_link(location, group, name)[0]
        except (*_HDF5_ERRORS, TypeError) as error:
            yield text(name), error


def group_paths(location: FileLocation, top: str) -> list[str]:
    """Return the paths of a group and all groups below it by hard links, each once.

    Parents come before their children; cycles of links end where they close.
    Damaged groups are left out: opening their parent warns of them.
    """
    group = open_group(location, top)
    seen = {object_address(group)}
    paths, queue = [top], deque([(group, top)])
    while queue:
        parent, path = queue.popleft()
        for address, name in _hard_links(parent.id).items():
            if address in seen:
                continue
            seen.add(address)
            child_path = f"{path.rstrip('/')}/{text(name)}"
            with contextlib.suppress(*_HDF5_ERRORS):
                if h5g.get_objinfo(parent.id, name).type != h5g.GROUP:
                    continue
                check_listing(location, parent, address, child_path)
                child = _wrap(h5g.open(parent.id, name), parent._xref_file)
                paths.append(child_path)
                queue.append((child, child_path))
    return paths


def link_addresses(group: h5py.Group) -> dict[int, str]:
    """Return the name of each hard-linked member by its address."""
    return {address: text(name) for address, name in _hard_links(group.id).items()}


def _hard_links(group: Any) -> dict[int, bytes]:
    """Return the first name of each hard-linked member, as bytes, by its address."""
    found: dict[int, bytes] = {}

    def visit(name: bytes, info: Any) -> None:
        if info.type == h5l.TYPE_HARD:
            found.setdefault(int(info.u), name)

    group.links.iterate(visit, info=True)
    return found


def is_dataset(item: Any) -> bool:
    """Tell whether an object is a dataset."""
    return isinstance(item, h5py.Dataset)


def is_group(item: Any) -> bool:
    """Tell whether an object is a group."""
    return isinstance(item, h5py.Group)
