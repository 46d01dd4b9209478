"""References of a file and their targets, without reading the targets.

In: a filename. Out: a `FileReport` of plain values, and its lines of text.

Groups are walked once. Objects are named by their canonical paths (`xref.objects.paths`). If
the canonical path of a holder of references is outside the requested group, the path of the
walk is used. If a part cannot be read, a line of ``problems`` says so; the walk continues.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

from xref import objects, resolving
from xref.arrays import IntArray
from xref.engine import attribute_references, build_variable
from xref.errors import DanglingReferenceError, ExternalFileError, XrefError
from xref.hdf5 import DatasetLayout, Datatype, reference_types
from xref.references import (
    KIND_NOUNS,
    DecodeOptions,
    Owner,
    Reference,
    ReferenceArray,
    StoredReferences,
    decode_elements,
    decode_values,
    read_box_of_stored,
    split_targets,
)
from xref.storage import FileLocation, close_file, locate_file

TARGETS_SHOWN = 8
"""Upper bound on the targets of one holder that the text lists; JSON has all."""

_FAILURES = (XrefError, OSError, RuntimeError, ValueError, TypeError, LookupError)

# Path and attribute name (None for a dataset) of a holder, and its references.
Holder: TypeAlias = tuple[str, str | None, ReferenceArray]


@dataclass(frozen=True, slots=True)
class TargetReport:
    """One object that references of a holder point at."""

    path: str | None  # canonical path; None without a name; in another file its filename
    address: int  # object header, bytes from the base address
    kind: str  # "dataset", "group", "datatype" or "dangling"
    count: int  # references that point here
    shape: list[int] | None  # extent of a dataset
    outside: int  # number of regions that reach beyond the extent
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
    """The references of a file, or of one group and those below it."""

    filename: str
    nbytes: int
    group: str
    groups: int = 0
    datasets: int = 0
    references: list[HolderReport] = field(default_factory=list)
    not_read: list[str] = field(default_factory=list)
    dimension_scale_attributes: int = 0
    notes: list[str] = field(default_factory=list)
    # Paths of links to groups and datasets with another path, and their canonical paths.
    further_names: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def inspect_file(filename: str | os.PathLike[str], group: str | None = None) -> FileReport:
    """Inspect all groups of a file, or one group and those below it.

    Raises
    ------
    OSError
        If the file cannot be opened or has no such group.
    """
    location = locate_file(filename)
    path = posixpath.normpath(posixpath.join("/", group or "/"))
    try:
        return _Inspection(location, path).run()
    finally:
        close_file(location)


class _Inspection:
    """The walk through one file, and the description of the references that it finds."""

    def __init__(self, location: FileLocation, path: str) -> None:
        self.location, self.path = location, path
        self.report = FileReport(location.filename, location.identity[2], path)
        # Kind of each visited object, and extent of a dataset, by address.
        self.known: dict[int, tuple[str, list[int] | None]] = {}

    def run(self) -> FileReport:
        """Return the report."""
        # HDF5 slows down with the number of open objects, so none is kept open: the walk
        # collects addresses and reference columns, which are described afterwards.
        holders: list[Holder] = []
        self.known[objects.open_group(self.location, self.path).stored.address] = "group", None
        stack = [self.path]
        while stack:
            path = stack.pop()
            try:
                group = objects.open_group(self.location, path)
            except _FAILURES as error:
                self._add_problem(path, error)
                continue
            self.report.groups += 1
            holders += self._attributes(group.stored, path, group.item)
            subgroups: list[str] = []
            for name, member in objects.iterate_members(group):
                member_path = posixpath.join(path, name)
                try:
                    if not isinstance(member, Exception):
                        holders += self._member(member_path, member, subgroups)
                    elif isinstance(member, ExternalFileError) or not objects.is_hard_link(
                        group, name
                    ):
                        self.report.notes.append(
                            f"{member_path}: not followed, or leads nowhere"
                        )
                    else:
                        self._add_problem(member_path, member)
                except _FAILURES as error:
                    self._add_problem(member_path, error)
            stack += reversed(subgroups)
        for path, attribute, references in holders:
            try:
                self.report.references.append(self._describe(references, path, attribute))
            except _FAILURES as error:
                label = path if attribute is None else f"{path}, attribute {attribute!r}"
                self._add_problem(label, error)
        return self.report

    def _add_problem(self, label: str, error: Exception) -> None:
        is_key_error = isinstance(error, KeyError) and error.args
        message = str(error.args[0]) if is_key_error else str(error)
        line = (message.strip().splitlines() or [""])[0]
        line = line.removeprefix(f"{self.location.filename}: ")
        self.report.problems.append(f"{label}: {type(error).__name__}: {line}")

    def _member(
        self, path: str, member: objects.LinkedObject, subgroups: list[str]
    ) -> list[Holder]:
        """Return the references in an object that was not visited; collect groups."""
        item, stored, address = member.item, member.stored, member.stored.address
        if stored.location != self.location:
            self.report.notes.append(f"{path}: in another file, {stored.filename}")
            return []
        if address in self.known:
            if objects.kind_of(item) != "datatype":
                self.report.further_names.append(f"{path}: {stored.label}")
            return []
        canonical = stored.path
        if canonical is not None and canonical.startswith(self.path.rstrip("/") + "/"):
            path = canonical
        self.known[address] = objects.kind_of(item), _extent(item)
        if objects.kind_of(item) == "group":
            subgroups.append(path)
            return []
        holders = self._attributes(stored, path, item)
        if objects.kind_of(item) == "datatype":
            return holders
        self.report.datasets += 1
        layout = objects.read_layout(item, stored)
        if layout.reference_kind:
            dims = tuple(f"dim_{i}" for i in range(len(layout.shape)))
            variable = build_variable(stored, layout, dims, {}, DecodeOptions(), path=path)
            return [(path, None, variable.data), *holders]
        if layout.elements is None:
            return holders
        return [*_element_holders(stored, path, layout, layout.elements), *holders]

    def _attributes(self, stored: objects.StoredObject, path: str, item: Any) -> list[Holder]:
        """Return the references in the attributes of an object."""
        values, problems = objects.read_attributes(item, stored)
        holders: list[Holder] = []
        for name, value in (*problems.items(), *values.items()):
            if name in objects.SCALE_ATTRIBUTES:
                self.report.dimension_scale_attributes += 1
                continue
            label = f"{path}, attribute {name!r}"
            owner = Owner.of(stored, path, attribute=name)
            if isinstance(value, Exception):
                self._add_problem(label, value)
                continue
            try:
                for part, array in _attribute_references(value, stored.location, owner):
                    holders.append((path, f"{name}.{part}" if part else name, array))
            except _FAILURES as error:
                self._add_problem(label, error)
        return holders

    def _describe(
        self, references: ReferenceArray, path: str, attribute: str | None
    ) -> HolderReport:
        columns = references.columns
        groups, is_null = split_targets(columns)
        addresses = [o.address for o, _ in groups if o.location == self.location]
        # Objects that the walk did not visit have no name, or are outside the group.
        unvisited = [address for address in addresses if address not in self.known]
        objects.cache_h5py_references(unvisited)
        for address in unvisited:
            self.known[address] = _kind_and_extent(objects.StoredObject(self.location, address))
        paths = objects.object_paths(self.location, addresses)
        regions: dict[str, Any] = {}
        selections: dict[str, int] = {}
        if columns.regions is not None and references.is_region:
            regions = resolving.describe_regions(columns.regions, groups, len(columns))
            regions["rank"] = columns.regions.rank
            names, numbers = np.unique(regions["selection"][~is_null], return_counts=True)
            selections = dict(zip(names.tolist(), numbers.tolist(), strict=True))
        targets = []
        for stored, rows in groups:
            address = stored.address
            if stored.location == self.location:
                target_path, (kind, shape) = paths.get(address), self.known[address]
            else:
                target_path, (kind, shape) = stored.filename, _kind_and_extent(stored)
            start, stop, outside = _bounds(regions, np.arange(len(columns))[rows], shape)
            count = len(is_null) if isinstance(rows, slice) else len(rows)
            targets.append(
                TargetReport(target_path, address, kind, count, shape, outside, start, stop)
            )
        return HolderReport(
            path=path,
            attribute=attribute,
            kind=references.kind,
            shape=list(references.shape),
            count=references.size,
            null=int(is_null.sum()),
            dangling=sum(t.count for t in targets if t.kind == "dangling"),
            selections=selections,
            targets=sorted(targets, key=lambda t: -t.count),  # stable: first come first
        )


def _element_holders(
    dataset: objects.StoredObject, path: str, layout: DatasetLayout, datatype: Datatype
) -> Iterator[Holder]:
    """Yield the references within the elements of a dataset, by member."""
    known = set()
    for member in resolving.reference_members(datatype):
        known.add(member.path)
        slices = tuple((0, n, 1) for n in layout.shape)
        stored = StoredReferences(
            dataset, path, member.kind, slices, member.path, member.offset
        )
        array = ReferenceArray(layout.shape, kind=member.kind, stored=stored)
        yield f"{path}[{member.path!r}]", None, array
    if not _has_inner_references(datatype):
        return
    # References in arrays and sequences are found by reading the elements.
    origin = (0,) * len(layout.shape)
    inner: dict[str, list[Reference]] = {}
    for part in read_box_of_stored(dataset, origin, layout.shape):
        values = decode_values(part.location, part.elements, part.raw, part.names)
        for member_path, references in resolving.collect_references(values).items():
            if member_path not in known:
                inner.setdefault(member_path, []).extend(references)
    for member_path, references in inner.items():
        label = f"{path}[{member_path!r}]" if member_path else path
        yield label, None, _flat_array(references, label)


def _has_inner_references(datatype: Datatype) -> bool:
    """Tell whether arrays or sequences contain references."""
    if datatype.base is not None:
        return bool(reference_types(datatype))
    return any(_has_inner_references(field.datatype) for field in datatype.fields)


def _attribute_references(
    value: Any, location: FileLocation, owner: Owner
) -> Iterator[tuple[str, ReferenceArray]]:
    """Yield the references of an attribute by member of its type."""
    if isinstance(value, objects.RawAttributeReferences):
        yield "", attribute_references(value, location, owner, DecodeOptions())
    elif isinstance(value, objects.RawAttributeValue):
        values = decode_elements(value, location, owner, DecodeOptions())
        for part, references in resolving.collect_references(values).items():
            yield part, _flat_array(references, str(owner))


def _flat_array(references: list[Reference], label: str) -> ReferenceArray:
    array = np.empty(len(references), dtype=object)
    array[:] = references
    return resolving.as_reference_array(array, label)


def _kind_and_extent(stored: objects.StoredObject) -> tuple[str, list[int] | None]:
    try:
        item = objects.open_object(stored)
    except (DanglingReferenceError, ExternalFileError):
        return "dangling", None
    return objects.kind_of(item), _extent(item)


def _extent(item: objects.Object) -> list[int] | None:
    """Return the extent of a dataset, None for other objects."""
    return list(item.shape or ()) if objects.kind_of(item) == "dataset" else None


def _bounds(
    regions: dict[str, Any], rows: IntArray, shape: list[int] | None
) -> tuple[list[int] | None, list[int] | None, int]:
    """Return the bounding box of regions, and the number of those that do not fit."""
    if not regions:
        return None, None, 0
    ndim = regions["start"].shape[1] if shape is None else len(shape)
    # A region of another rank than its target has no position in it.
    has_rank = regions["fits"] | (regions["rank"] == ndim)
    outside = 0 if shape is None else int((~regions["fits"][rows]).sum())
    rows = rows[(regions["npoints"][rows] != 0) & has_rank[rows]]
    if not len(rows) or not ndim:
        return None, None, outside
    start, stop = regions["start"][rows, :ndim], regions["stop"][rows, :ndim]
    return start.min(axis=0).tolist(), stop.max(axis=0).tolist(), outside


def report_json(report: FileReport) -> str:
    """Return a report as JSON; undecodable bytes of names are escaped."""
    return json.dumps(asdict(report), indent=2)


def report_lines(report: FileReport) -> Iterator[str]:
    """Yield a report as lines of text, without ``problems``."""
    below = "" if report.group == "/" else f" in {report.group}"
    yield printable(
        f"{os.path.basename(report.filename)}: {_nbytes(report.nbytes)}, "
        f"{_number(report.groups, 'group')}, {_number(report.datasets, 'dataset')}{below}"
    )
    if not (report.references or report.not_read):
        scales = " but those of dimension scales" if report.dimension_scale_attributes else ""
        yield f"no references{scales}"
    for holder in report.references:
        yield ""
        yield from map(printable, _holder_lines(holder))
    if report.dimension_scale_attributes:
        yield ""
        yield (
            f"dimension scales: {_number(report.dimension_scale_attributes, 'attribute')} "
            f"({', '.join(objects.SCALE_ATTRIBUTES)}), which become dimension names"
        )
    sections = (
        ("not read:", report.not_read),
        ("links:", report.notes),
        ("further names of groups and datasets:", report.further_names),
    )
    for title, lines in sections:
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
    parts += [f"{n} {key}" for key in ("null", "dangling") if (n := getattr(holder, key))]
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
            pairs = zip(target.start, target.stop, strict=True)
            sides = ", ".join(f"{a}:{b if b >= 0 else ''}" for a, b in pairs)
            line += f", within [{sides}]"
        if target.outside:
            line += f", {target.outside} BEYOND THE EXTENT"
        yield line
    if len(holder.targets) > len(shown):
        rest = holder.targets[len(shown) :]
        number = sum(t.count for t in rest)
        yield f"  -> {_number(len(rest), 'other target')}, {_number(number, 'reference')}"


def printable(line: str) -> str:
    """Escape characters that a terminal would interpret or could not encode."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in line
    )


def _number(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _nbytes(n: int) -> str:
    size, unit = float(n), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{n} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
