"""What references a file holds and where they point, without reading what they point at.

In: a filename. Out: a `FileReport` of plain values, and its lines of text.

Groups are walked once. Objects have their canonical paths (`xref.objects.paths`); holders of
references that have theirs outside the group asked for have the path there. Types are
looked at before values, so that what is not read is named all the same. A part
that cannot be read becomes a line of ``problems``; the rest goes on.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

from xref.arrays import IntArray
from xref.engine import attribute_references, build_variable
from xref.errors import DanglingReferenceError, ExternalFileError, XrefError
from xref.hdf5 import DatasetLayout, Datatype, reference_kinds
from xref.objects import (
    SCALE_ATTRIBUTES,
    LinkedObject,
    Object,
    RawAttributeReferences,
    RawAttributeValue,
    StoredObject,
    cache_h5py_references,
    is_hard_link,
    iterate_members,
    kind_of,
    object_paths,
    open_group,
    open_object,
    read_attributes,
    read_layout,
)
from xref.references import (
    KIND_NOUNS,
    DecodeOptions,
    Reference,
    ReferenceArray,
    StoredReferences,
    decode_elements,
    decode_values,
    read_box_of_stored,
    split_targets,
)
from xref.resolving import (
    as_reference_array,
    collect_references,
    describe_regions,
    reference_members,
)
from xref.storage import FileLocation, close_file, locate_file

TARGETS_SHOWN = 8
"""Targets of one holder that the text lists; JSON has all."""

_FAILURES = (XrefError, OSError, RuntimeError, ValueError, TypeError, LookupError)

# Kind and shape of objects by address.
Known: TypeAlias = dict[int, tuple[str, list[int] | None]]

# Path and attribute name (None for a dataset) of a holder, and what it holds.
Found: TypeAlias = tuple[str, str | None, ReferenceArray]


@dataclass(frozen=True, slots=True)
class TargetReport:
    """One object that references of a holder point at."""

    path: str | None  # canonical; None without a name; of one elsewhere its file
    address: int  # object header, bytes from the base address
    kind: str  # "dataset", "group", "datatype" or "dangling"
    count: int  # references that point here
    shape: list[int] | None  # extent of a dataset
    outside: int  # regions that reach beyond the extent
    start: list[int] | None  # box around all regions; None for object references
    stop: list[int] | None


@dataclass(frozen=True, slots=True)
class HolderReport:
    """A dataset or an attribute of references."""

    path: str
    attribute: str | None  # None for a dataset
    kind: str  # "object", "region" or "std" (H5T_STD_REF, which holds any kind)
    shape: list[int]
    count: int
    null: int
    dangling: int
    selections: dict[str, int]  # of region references: how many of each kind
    targets: list[TargetReport]


@dataclass(slots=True)
class FileReport:
    """What one file, or one group of it, holds."""

    filename: str
    nbytes: int
    group: str
    groups: int = 0
    datasets: int = 0
    references: list[HolderReport] = field(default_factory=list)
    not_read: list[str] = field(default_factory=list)
    dimension_scale_attributes: int = 0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def inspect_file(filename: str | os.PathLike[str], group: str | None = None) -> FileReport:
    """Look at every group of a file, or at one and those below it.

    Raises
    ------
    OSError
        If the file cannot be opened or has no such group.
    """
    location = locate_file(filename)
    path = posixpath.normpath(posixpath.join("/", group or "/"))
    report = FileReport(location.filename, location.identity[2], path)
    try:
        _inspect_tree(report, location, path)
    finally:
        close_file(location)
    return report


def _inspect_tree(report: FileReport, location: FileLocation, path: str) -> None:
    # HDF5 slows down with the number of open objects, so none is kept: the walk
    # collects addresses and reference columns, and the description follows it.
    known: Known = {}
    found: list[Found] = []
    top = open_group(location, path)
    known[top.stored.address] = "group", None
    stack = [path]
    while stack:
        where = stack.pop()
        try:
            group = open_group(location, where)
        except _FAILURES as error:
            report.problems.append(_problem(where, error, location))
            continue
        report.groups += 1
        found += _attribute_holders(report, group.stored, where, group.item)
        below: list[str] = []
        for name, member in iterate_members(group):
            full = posixpath.join(where, name)
            if isinstance(member, Exception):
                if isinstance(member, ExternalFileError) or not is_hard_link(group, name):
                    report.notes.append(f"{full}: not followed, or leads nowhere")
                else:
                    report.problems.append(_problem(full, member, location))
                continue
            try:
                found += _inspect_member(report, location, full, member, known, below)
            except _FAILURES as error:
                report.problems.append(_problem(full, error, location))
        stack += reversed(below)
    for where, attribute, references in found:
        try:
            report.references.append(_describe(references, where, attribute, location, known))
        except _FAILURES as error:
            label = where if attribute is None else f"{where}, attribute {attribute!r}"
            report.problems.append(_problem(label, error, location))


def _inspect_member(
    report: FileReport,
    location: FileLocation,
    where: str,
    member: LinkedObject,
    known: Known,
    below: list[str],
) -> list[Found]:
    item, stored, address = member.item, member.stored, member.stored.address
    if stored.location != location:
        report.notes.append(f"{where}: in another file, {stored.filename}")
        return []
    if address in known:
        return []
    where = _name_within(report.group, stored) or where
    if kind_of(item) == "group":
        known[address] = "group", None
        below.append(where)
        return []
    known[address] = kind_of(item), _extent(item)
    found = _attribute_holders(report, stored, where, item)
    if kind_of(item) == "datatype":
        return found
    report.datasets += 1
    layout = read_layout(item, stored)
    if layout.reference_kind:
        dims = tuple(f"dim_{i}" for i in range(len(layout.shape)))
        options = DecodeOptions()
        variable = build_variable(stored, layout, dims, {}, options, path=where)
        found.insert(0, (where, None, variable.data))
    elif layout.elements is not None:
        found = [*_element_holders(stored, where, layout), *found]
    return found


def _name_within(group: str, stored: StoredObject) -> str | None:
    """Return the canonical path of an object, if it lies in a group or below."""
    path = stored.path
    inside = path is not None and path.startswith(group.rstrip("/") + "/")
    return path if inside else None


def _element_holders(
    dataset: StoredObject, where: str, layout: DatasetLayout
) -> Iterator[Found]:
    """Yield the references within the elements of a dataset, by member."""
    known = set()
    for member in reference_members(layout.elements) if layout.elements else ():
        known.add(member.path)
        slices = tuple((0, n, 1) for n in layout.shape)
        stored = StoredReferences(
            dataset, where, member.kind, slices, member.path, member.offset
        )
        array = ReferenceArray(layout.shape, kind=member.kind, stored=stored)
        yield f"{where}[{member.path!r}]", None, array
    if layout.elements is None or not _has_inner_references(layout.elements):
        return
    # Those in arrays and sequences are found by reading the elements.
    start = (0,) * len(layout.shape)
    within: dict[str, list[Reference]] = {}
    for part in read_box_of_stored(dataset, start, layout.shape):
        values = decode_values(part.location, part.elements, part.raw, part.describe)
        for path, references in collect_references(values).items():
            if path not in known:
                within.setdefault(path, []).extend(references)
    for path, references in within.items():
        label = f"{where}[{path!r}]" if path else where
        yield label, None, _flat_array(references, label)


def _has_inner_references(datatype: Datatype) -> bool:
    """Tell whether references stand within arrays or sequences."""
    if datatype.base is not None:
        return bool(reference_kinds(datatype))
    return any(_has_inner_references(field.datatype) for field in datatype.fields)


def _flat_array(references: list[Reference], label: str) -> ReferenceArray:
    objects = np.empty(len(references), dtype=object)
    objects[:] = references
    return as_reference_array(objects, label)


def _attribute_holders(
    report: FileReport, stored: StoredObject, where: str, item: Any
) -> list[Found]:
    location = stored.location
    values, problems = read_attributes(item, stored)
    report.dimension_scale_attributes += sum(
        name in SCALE_ATTRIBUTES for name in (*values, *problems)
    )
    for name, error in problems.items():
        if name not in SCALE_ATTRIBUTES:
            label = f"{where}, attribute {name!r}"
            report.problems.append(_problem(label, error, location))
    found: list[Found] = []
    for name, value in values.items():
        if (
            not isinstance(value, RawAttributeReferences | RawAttributeValue)
            or name in SCALE_ATTRIBUTES
        ):
            continue
        label = f"{where}, attribute {name!r}"
        try:
            for part, array in _attribute_references(value, location, label):
                found.append((where, f"{name}.{part}" if part else name, array))
        except _FAILURES as error:
            report.problems.append(_problem(label, error, location))
    return found


def _attribute_references(
    value: RawAttributeReferences | RawAttributeValue, location: FileLocation, label: str
) -> Iterator[tuple[str, ReferenceArray]]:
    """Yield the references of an attribute by member of its type."""
    if isinstance(value, RawAttributeReferences):
        yield "", attribute_references(value, location, label, DecodeOptions())
        return
    values = decode_elements(value, location, label, DecodeOptions())
    for part, references in collect_references(values).items():
        yield part, _flat_array(references, label)


def _extent(item: Object) -> list[int] | None:
    """Return the extent of a dataset, None for anything else."""
    return list(item.shape or ()) if kind_of(item) == "dataset" else None


def _describe(
    references: ReferenceArray,
    path: str,
    attribute: str | None,
    location: FileLocation,
    known: Known,
) -> HolderReport:
    columns = references.columns
    groups, null = split_targets(columns)
    own = [target.address for target, _ in groups if target.location == location]
    _look_up(location, own, known)
    paths = object_paths(location, own)
    regions: dict[str, Any] = {}
    selections: dict[str, int] = {}
    if columns.regions is not None and references.is_region:
        regions = describe_regions(columns.regions, groups, len(columns))
        regions["rank"] = columns.regions.rank
        names, numbers = np.unique(regions["selection"][~null], return_counts=True)
        selections = dict(zip(names.tolist(), numbers.tolist(), strict=True))
    targets = []
    for target, rows in groups:
        if target.location == location:
            where, (kind, shape) = paths.get(target.address), known[target.address]
        else:
            where, (kind, shape) = target.filename, _look_at(target)
        start, stop, outside = _box(regions, np.arange(len(columns))[rows], shape)
        targets.append(
            TargetReport(
                path=where,
                address=target.address,
                kind=kind,
                count=len(null) if isinstance(rows, slice) else len(rows),
                shape=shape,
                outside=outside,
                start=start,
                stop=stop,
            )
        )
    return HolderReport(
        path=path,
        attribute=attribute,
        kind=references.kind,
        shape=list(references.shape),
        count=references.size,
        null=int(null.sum()),
        dangling=sum(t.count for t in targets if t.kind == "dangling"),
        selections=selections,
        targets=sorted(targets, key=lambda t: -t.count),  # first come first among equals
    )


def _look_up(location: FileLocation, addresses: list[int], known: Known) -> None:
    """Add the objects that the walk did not meet: unnamed ones, or outside its group."""
    missing = [address for address in addresses if address not in known]
    cache_h5py_references(missing)
    for address in missing:
        known[address] = _look_at(StoredObject(location, address))


def _look_at(stored: StoredObject) -> tuple[str, list[int] | None]:
    """Return the kind of an object, and the extent of a dataset."""
    try:
        item = open_object(stored)
    except (DanglingReferenceError, ExternalFileError):
        return "dangling", None
    return kind_of(item), _extent(item)


def _box(
    regions: dict[str, Any], rows: IntArray, shape: list[int] | None
) -> tuple[list[int] | None, list[int] | None, int]:
    """Return the box around regions, and how many do not fit their target."""
    if not regions:
        return None, None, 0
    ndim = regions["start"].shape[1] if shape is None else len(shape)
    # Regions of another rank than their target have no place in it.
    placed = regions["fits"] | (regions["rank"] == ndim)
    outside = 0 if shape is None else int((~regions["fits"][rows]).sum())
    rows = rows[(regions["npoints"][rows] != 0) & placed[rows]]
    if not len(rows) or not ndim:
        return None, None, outside
    start, stop = regions["start"][rows, :ndim], regions["stop"][rows, :ndim]
    return start.min(axis=0).tolist(), stop.max(axis=0).tolist(), outside


def _problem(where: str, error: Exception, location: FileLocation) -> str:
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    line = (message.strip().splitlines() or [""])[0]
    return f"{where}: {type(error).__name__}: {line.removeprefix(f'{location.filename}: ')}"


# --- text --------------------------------------------------------------------------


def report_json(report: FileReport) -> str:
    """Return a report as JSON; odd bytes of names are escaped."""
    return json.dumps(asdict(report), indent=2)


def report_lines(report: FileReport) -> Iterator[str]:
    """Yield a report as lines of text; ``problems`` are left to the caller."""
    below = "" if report.group == "/" else f" in {report.group}"
    yield printable(
        f"{os.path.basename(report.filename)}: {_nbytes(report.nbytes)}, "
        f"{_number(report.groups, 'group')}, {_number(report.datasets, 'dataset')}{below}"
    )
    if not (report.references or report.not_read):
        yield (
            "no references but those of dimension scales"
            if (report.dimension_scale_attributes)
            else "no references"
        )
    for holder in report.references:
        yield ""
        yield from map(printable, _holder_lines(holder))
    if report.dimension_scale_attributes:
        yield ""
        yield (
            f"dimension scales: {_number(report.dimension_scale_attributes, 'attribute')} "
            f"({', '.join(SCALE_ATTRIBUTES)}), which become dimension names"
        )
    for title, lines in (("not read:", report.not_read), ("links:", report.notes)):
        if lines:
            yield ""
            yield title
            yield from (printable(f"  {line}") for line in lines)


def _holder_lines(holder: HolderReport) -> Iterator[str]:
    name = holder.path
    if holder.attribute is not None:
        name += f", attribute {holder.attribute!r}"
    shape = f", shape {tuple(holder.shape)}" if len(holder.shape) != 1 else ""
    parts = [f"{_number(holder.count, KIND_NOUNS[holder.kind])}{shape}"]
    parts += [
        f"{n} {what}" for n, what in ((holder.null, "null"), (holder.dangling, "dangling")) if n
    ]
    yield f"{name}: {', '.join(parts)}"
    if holder.selections:
        yield "  selections: " + ", ".join(f"{n} {k}" for k, n in holder.selections.items())
    shown = holder.targets[:TARGETS_SHOWN]
    names = [t.path or f"(no name, at {t.address:#x})" for t in shown]
    width = min(max(map(len, names), default=0), 48)
    digits = max((len(str(t.count)) for t in shown), default=0)
    for target, label in zip(shown, names, strict=True):
        extent = f" {tuple(target.shape)}" if target.shape is not None else ""
        line = f"  -> {label:<{width}}  {target.count:>{digits}} x {target.kind}{extent}"
        if target.start is not None and target.stop is not None:
            sides = ", ".join(
                f"{a}:{b if b >= 0 else ''}"
                for a, b in zip(target.start, target.stop, strict=True)
            )
            line += f", within [{sides}]"
        if target.outside:
            line += f", {target.outside} BEYOND THE EXTENT"
        yield line
    if len(holder.targets) > len(shown):
        rest = holder.targets[len(shown) :]
        number = sum(t.count for t in rest)
        yield f"  -> {_number(len(rest), 'other target')}, {_number(number, 'reference')}"


def printable(line: str) -> str:
    """Escape what a terminal would obey or could not encode: names come from the file."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in line
    )


def _number(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _nbytes(n: int) -> str:
    size, unit = float(n), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{n} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
