"""What references a file holds and where they point, without reading what they point at.

In: a filename. Out: a `FileReport` of plain values, and its lines of text.

Groups are walked once, each object at the first path that leads to it. Types are
looked at before values, so that what is not read is named all the same. A part
that cannot be read becomes a line of ``problems``; the rest goes on.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from xref.elements import DecodeOptions
from xref.errors import ExternalFileError, UnsupportedError, XrefError
from xref.h5data import (
    SCALE_ATTRIBUTES,
    RawReferences,
    dataset_kind,
    dataset_layout,
    read_attributes,
    reference_kinds,
)
from xref.h5file import (
    FileLocation,
    close_file,
    file_of,
    is_dataset,
    is_group,
    iterate_members,
    locate_file,
    object_address,
    open_group,
    remember_paths,
)
from xref.references import ReferenceArray
from xref.table import reference_table
from xref.variables import _attribute_references, build_variable

TARGETS_SHOWN = 8
"""Targets of one holder that the text lists; JSON has all."""

_FAILURES = (XrefError, OSError, RuntimeError, ValueError, TypeError, KeyError, LookupError)


@dataclass(frozen=True, slots=True)
class TargetReport:
    """One object that references of a holder point at."""

    path: str | None  # None for an object without a name
    address: int  # object header, bytes from the base address
    kind: str  # "dataset", "group", "datatype" or "dangling"
    filename: str | None
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
    kind: str  # "object" or "region"
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
    top = open_group(location, path)
    seen = {object_address(top)}
    # Paths first: what the references point at is then shown by the name of the walk.
    found: list[tuple[str, Any]] = []
    stack: list[tuple[str, Any]] = [(path, top)]
    while stack:
        where, item = stack.pop()
        found.append((where, item))
        if not is_group(item):
            continue
        report.groups += 1
        below = list(_members(report, location, where, item, seen))
        stack += reversed(below)
    remember_paths(location, {object_address(item): where for where, item in found})
    for where, item in found:
        try:
            _inspect_object(report, location, where, item)
        except _FAILURES as error:
            report.problems.append(f"{where}: {_first_line(error)}")


def _members(
    report: FileReport, location: FileLocation, where: str, group: Any, seen: set[int]
) -> Iterator[tuple[str, Any]]:
    for name, item in iterate_members(group, location):
        full = posixpath.join(where, name)
        if isinstance(item, Exception):
            if isinstance(item, ExternalFileError) or _is_soft(group, name):
                report.notes.append(f"{full}: a link that is not followed or leads nowhere")
            else:
                report.problems.append(f"{full}: {_first_line(item)}")
            continue
        try:
            if file_of(item, location) != location:
                report.notes.append(
                    f"{full}: in another file, {file_of(item, location).filename}"
                )
                continue
            address = object_address(item)
        except _FAILURES as error:
            report.problems.append(f"{full}: {_first_line(error)}")
            continue
        if address not in seen:
            seen.add(address)
            yield full, item


def _is_soft(group: Any, name: str) -> bool:
    """Tell whether a link is soft or external: one that leads nowhere is no damage."""
    try:
        link = group.get(name.encode("utf-8", "surrogateescape"), getlink=True)
    except _FAILURES:
        return False
    return type(link).__name__ in ("SoftLink", "ExternalLink")


def _inspect_object(report: FileReport, location: FileLocation, where: str, item: Any) -> None:
    if is_dataset(item):
        report.datasets += 1
        try:
            _inspect_dataset(report, location, where, item)
        except _FAILURES as error:
            report.problems.append(f"{where}: {_first_line(error)}")
    values, problems = read_attributes(item)
    report.dimension_scale_attributes += sum(
        name in SCALE_ATTRIBUTES for name in (*values, *problems)
    )
    for name, error in problems.items():
        label = f"{where}, attribute {name!r}"
        if isinstance(error, UnsupportedError):
            report.not_read.append(f"{label}: {_first_line(error)}")
        elif name not in SCALE_ATTRIBUTES:
            report.problems.append(f"{label}: {_first_line(error)}")
    for name, value in values.items():
        if isinstance(value, RawReferences) and name not in SCALE_ATTRIBUTES:
            label = f"{where}, attribute {name!r}"
            try:
                references = _attribute_references(value, location, label, DecodeOptions())
                report.references.append(_describe(references, where, name))
            except _FAILURES as error:
                report.problems.append(f"{label}: {_first_line(error)}")


def _inspect_dataset(report: FileReport, location: FileLocation, where: str, item: Any) -> None:
    kind = dataset_kind(item)
    if kind == "std":
        report.not_read.append(f"{where}: references of HDF5 1.12 and later (H5T_STD_REF)")
    elif kind:
        dims = tuple(f"dim_{i}" for i in range(len(item.shape)))
        address = object_address(item)
        variable = build_variable(location, address, item, dims, {}, DecodeOptions())
        report.references.append(_describe(variable.data, where, None))
    else:
        inside = reference_kinds(item.id.get_type())
        if inside:
            kinds = " and ".join(sorted(inside)).replace("std", "HDF5 1.12")
            report.not_read.append(
                f"{where}: {kinds} references within a compound, array or sequence type"
            )


def _describe(references: ReferenceArray, path: str, attribute: str | None) -> HolderReport:
    dims = tuple(f"dim_{i}" for i in range(references.ndim))
    table = reference_table(references, dims, {})
    n = references.size
    flat = {
        name: v.values.reshape((n, *v.shape[references.ndim :])) for name, v in table.items()
    }
    kind = flat["kind"]
    live = np.flatnonzero(kind != "null")
    columns = references.columns
    pairs = np.stack([columns.file[live].astype(np.uint64), columns.address[live]], axis=1)
    _, first, inverse, counts = np.unique(
        pairs, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(inverse.reshape(-1), kind="stable")
    rows_of = np.split(live[order], np.cumsum(counts)[:-1]) if len(counts) else []
    targets = [
        _describe_target(references, flat, rows_of[k])
        for k in np.lexsort((first, -counts)).tolist()
    ]
    selections: dict[str, int] = {}
    if references.is_region:
        names, numbers = np.unique(flat["selection"], return_counts=True)
        selections = {
            str(name): int(number)
            for name, number in zip(names, numbers, strict=True)
            if name != "null"
        }
    return HolderReport(
        path=path,
        attribute=attribute,
        kind="region" if references.is_region else "object",
        shape=list(references.shape),
        count=n,
        null=n - len(live),
        dangling=int((kind == "dangling").sum()),
        selections=selections,
        targets=targets,
    )


def _describe_target(
    references: ReferenceArray, flat: dict[Any, Any], rows: Any
) -> TargetReport:
    row = int(rows[0])
    path, kind = flat["path"][row], str(flat["kind"][row])
    columns = references.columns
    address = int(columns.address[row])
    location = columns.files[int(columns.file[row])]
    shape = start = stop = None
    outside = 0
    if kind == "dataset":
        try:
            shape = list(dataset_layout(location, address).shape)
        except _FAILURES:
            shape = None  # storage that is not read; the references are shown all the same
    if references.is_region:
        selected = rows[flat["npoints"][rows] != 0]
        low, high = flat["start"][selected], flat["stop"][selected]
        if len(selected):
            start, stop = low.min(axis=0).tolist(), high.max(axis=0).tolist()
        if shape is not None and len(shape) == high.shape[1]:
            outside = int((high > np.array(shape, dtype=np.int64)).any(axis=1).sum())
        elif shape is not None and len(selected):
            start, stop = (None, None) if len(shape) > high.shape[1] else (start, stop)
            start, stop = (c[: len(shape)] if c else c for c in (start, stop))
    return TargetReport(
        path=path if isinstance(path, str) else None,
        address=address,
        kind=kind,
        filename=location.filename,
        count=len(rows),
        shape=shape,
        outside=outside,
        start=start,
        stop=stop,
    )


def _first_line(error: Exception) -> str:
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    line = (message.strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}"


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
    parts = [f"{_number(holder.count, f'{holder.kind} reference')}{shape}"]
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
        yield f"  -> {_number(len(rest), 'other target')}, {sum(t.count for t in rest)} references"


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
