"""Hypothesis strategy: netCDF-4 files as other programs write them.

`netcdf_files` draws a `NetcdfFile`: plain frozen values that say what the file has.
`netcdf_writing.write_netcdf` writes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

WRITERS = ("h5netcdf", "netCDF4")

NUMBERS = ("i1", "u1", "<i2", ">i2", "u2", "<i4", ">i4", "u4", "<i8", "u8", "<f4", "<f8", ">f8")
TEXTS = ("", "a", "two words", "ünï", "日本", " ends with a space ", "line\nline")

DIMENSION_NAMES = ("x", "y", "t", "lev", "été")
VARIABLE_NAMES = ("temp", "B", "a b", "_1", "lat", "lon", "x_bnds", "crs", "Ω")
GROUP_NAMES = ("model", "obs", "Éa", "0")

UNITS = ("days since 2000-01-01", "hours since 1900-01-01 12:00:00", "seconds", "m", "days")
CALENDARS = ("standard", "gregorian", "proleptic_gregorian", "julian", "noleap", "360_day")

COMPOUND = np.dtype([("a", "<i2"), ("b", "<f8"), ("c", "<i4", (2,))])
ENUMS = {
    "u1": {"clear": 0, "cloudy": 1, "missing": 255},
    "i2": {"low": -5, "zero": 0, "up": 300},
}


@dataclass(frozen=True)
class Dimension:
    """A dimension of a group; its size is None if it is unlimited."""

    name: str
    size: int | None


@dataclass(frozen=True)
class Attribute:
    """An attribute; its form says which value its items stand for."""

    name: str
    form: str
    items: tuple[Any, ...]


@dataclass(frozen=True)
class UserType:
    """An enumeration, sequence or compound that is defined in a group."""

    name: str
    kind: str  # "enum", "vlen" or "compound"
    base: str


@dataclass(frozen=True)
class Variable:
    """A variable; ``written`` is the number of elements written along each axis."""

    name: str
    type: str  # a type of NumPy, "S1", "str", or the name of a `UserType`
    dims: tuple[str, ...]
    written: tuple[int, ...]
    fill_value: Any = None
    storage: tuple[tuple[str, Any], ...] = ()  # arguments of createVariable
    attributes: tuple[Attribute, ...] = ()


@dataclass(frozen=True)
class Group:
    """A group and the groups below it."""

    name: str
    dimensions: tuple[Dimension, ...] = ()
    types: tuple[UserType, ...] = ()
    variables: tuple[Variable, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True)
class Edit:
    """A change that is made with h5py: what netCDF4 and h5netcdf cannot write."""

    kind: str
    path: str  # of the object that is changed, or of its group
    name: str = ""
    other: str = ""  # path of a second object
    items: tuple[Any, ...] = ()
    attribute: Attribute | None = None


@dataclass(frozen=True)
class NetcdfFile:
    """What one file has, and who writes it."""

    writer: str
    root: Group
    edits: tuple[Edit, ...] = ()


# --- drawing -----------------------------------------------------------------------


@dataclass
class Scope:
    """What is visible in a group: its own definitions, else those of its parents."""

    writer: str
    sizes: dict[str, int | None] = field(default_factory=dict)
    types: dict[str, UserType] = field(default_factory=dict)
    own: frozenset[str] = frozenset()  # dimensions of the group itself

    def child(self) -> Scope:
        """Return the scope of a group below."""
        return Scope(self.writer, dict(self.sizes), dict(self.types))


@st.composite
def netcdf_files(draw: st.DrawFn) -> NetcdfFile:
    """Draw a file."""
    writer = draw(st.sampled_from(WRITERS))
    root = draw(_groups("", Scope(writer), 2))
    edits = draw(st.lists(_edits(root), max_size=3)) if draw(st.booleans()) else []
    return NetcdfFile(writer, root, tuple(edits))


@st.composite
def _groups(draw: st.DrawFn, name: str, scope: Scope, depth: int) -> Group:
    dimension = st.builds(
        Dimension, st.sampled_from(DIMENSION_NAMES), st.none() | st.integers(1, 5)
    )
    dimensions = draw(st.lists(dimension, max_size=4, unique_by=lambda d: d.name))
    if draw(st.integers(0, 2)):  # else dimensions may hide those of groups above
        dimensions = [d for d in dimensions if d.name not in scope.sizes]
    scope.sizes |= {d.name: d.size for d in dimensions}
    scope.own = frozenset(d.name for d in dimensions)
    types = draw(st.lists(_types(), max_size=2, unique_by=lambda t: t.name))
    scope.types |= {t.name: t for t in types}
    taken = {t.name for t in types}
    names = draw(
        st.lists(st.sampled_from(DIMENSION_NAMES + VARIABLE_NAMES), max_size=6, unique=True)
    )
    variables = [draw(_variables(n, scope, names)) for n in names if n not in taken]
    below = []
    if depth:
        free = [n for n in GROUP_NAMES if n not in taken]
        for child in draw(st.lists(st.sampled_from(free), max_size=2, unique=True)):
            below.append(draw(_groups(child, scope.child(), depth - 1)))
    attributes = draw(_attributes(scope.writer))
    if names and draw(st.integers(0, 5)) == 0:
        attributes += (Attribute("coordinates", "text", (" ".join(names[:2]),)),)
    return Group(
        name, tuple(dimensions), tuple(types), tuple(variables), attributes, tuple(below)
    )


@st.composite
def _types(draw: st.DrawFn) -> UserType:
    kind = draw(st.sampled_from(("enum", "enum", "vlen", "compound")))
    base = draw(st.sampled_from(sorted(ENUMS)))
    return UserType(f"{kind}_t", kind, base)


@st.composite
def _variables(draw: st.DrawFn, name: str, scope: Scope, others: list[str]) -> Variable:
    kinds = ("number",) * 6 + ("text",) * 2 + ("user",) * bool(scope.types)
    kind = draw(st.sampled_from(kinds))
    if kind == "number":
        type_ = draw(st.sampled_from(NUMBERS))
    elif kind == "text":
        type_ = draw(st.sampled_from(("S1", "str")))
    else:
        type_ = draw(st.sampled_from(sorted(scope.types)))
    sizes = scope.sizes
    user = scope.types.get(type_)
    if user is not None and scope.writer == "h5netcdf":
        # h5netcdf writes an enumeration without its unlimited dimensions, named in ASCII.
        sizes = {n: s for n, s in sizes.items() if s is not None}
        name = name if name.isascii() else f"codes_{ord(name[0])}"
    dims: tuple[str, ...] = ()
    if sizes:
        # A variable named after a dimension is its coordinate, but for a few.
        own = name in sizes and draw(st.integers(0, 7)) > 0
        unique = draw(st.integers(0, 9)) > 0  # else an axis may have the name of another
        visible = sorted(sizes)
        if scope.writer == "h5netcdf" and name in sizes:
            # h5netcdf writes no coordinate along dimensions of several groups, and none of
            # several dimensions for an unlimited dimension.
            visible = [n for n in visible if own and {n, name} <= scope.own and n != name]
            visible = visible if sizes[name] is not None else []
        visible = [n for n in visible if not (own and unique and n == name)]
        n_more = draw(st.sampled_from((0, 0, 1, 2) if own else (0, 1, 1, 2, 2, 3)))
        rest = draw(_axes(visible, n_more, unique))
        dims = (name, *rest) if own else tuple(rest)
    written = tuple(s if (s := sizes[d]) is not None else draw(st.integers(0, 4)) for d in dims)
    fill = draw(st.booleans())
    attributes = draw(_attributes(scope.writer))
    present = {a.name for a in attributes}
    cf = draw(_cf_attributes(type_, [n for n in others if " " not in n] or ["crs"]))
    attributes += tuple(a for a in cf if a.name not in present)
    simple = kind == "number" or type_ == "S1"
    storage = draw(_storages(type_, dims, sizes, scope.writer)) if dims and simple else ()
    return Variable(
        name,
        type_,
        dims,
        written,
        _fill_value(type_, user) if fill else None,
        storage,
        attributes,
    )


def _axes(visible: list[str], n: int, unique: bool) -> st.SearchStrategy[list[str]]:
    """Draw names of n axes, or of as many as there are."""
    n = min(n, len(visible))
    return (
        st.lists(st.sampled_from(visible), min_size=n, max_size=n, unique=unique)
        if n
        else st.just([])
    )


def _fill_value(type_: str, user: UserType | None) -> Any:
    if user is not None:
        return max(ENUMS[user.base].values()) if user.kind == "enum" else None
    if type_ == "str":
        return "a"
    return b"-" if type_ == "S1" else 3


@st.composite
def _storages(
    draw: st.DrawFn,
    type_: str,
    dims: tuple[str, ...],
    sizes: Mapping[str, int | None],
    writer: str,
) -> tuple[tuple[str, Any], ...]:
    chosen: dict[str, Any] = {}
    is_fixed = all(sizes[d] is not None for d in dims)
    if draw(st.booleans()):
        chosen["chunksizes"] = tuple(draw(st.integers(1, sizes[d] or 3)) for d in dims)
    kinds = ["none", "zlib", "fletcher32"]
    if writer == "netCDF4":
        kinds += ["zstd", "bzip2", *(["contiguous"] if is_fixed else [])]
        kinds += ["quantized"] if type_ != "S1" else []
        kinds += ["szip"] if type_ != "S1" and is_fixed else []
    match draw(st.sampled_from(kinds)):
        case "zlib":
            chosen |= {"zlib": True, "complevel": draw(st.integers(1, 9))}
            chosen["shuffle"] = draw(st.booleans())
        case "fletcher32":
            chosen["fletcher32"] = True
        case "zstd" | "bzip2" as name:
            chosen |= {"compression": name, "complevel": draw(st.integers(1, 9))}
            chosen["shuffle"] = draw(st.booleans())
        case "szip" if math.prod(chosen.get("chunksizes", ())) >= 8:
            chosen |= {"compression": "szip", "szip_pixels_per_block": 8}
        case "contiguous":
            chosen = {"contiguous": True}
        case "quantized":
            chosen["least_significant_digit"] = 2
    return tuple(chosen.items())


# --- attributes --------------------------------------------------------------------

_texts = st.sampled_from(TEXTS)
_FORMS: dict[str, st.SearchStrategy[tuple[Any, ...]]] = {
    "text": st.tuples(_texts),
    "texts": st.lists(_texts, min_size=1, max_size=3).map(tuple),
    "scalar": st.tuples(st.sampled_from(NUMBERS)),
    "array": st.tuples(st.sampled_from(NUMBERS), st.integers(0, 3)),
}
"""Attributes that netCDF4 and h5netcdf write."""

_H5PY_FORMS: dict[str, st.SearchStrategy[tuple[Any, ...]]] = {
    "bytes": st.tuples(st.sampled_from((b"", b"abc", b"\xff\xfe", "ü".encode()))),
    "fixed texts": st.tuples(st.sampled_from(("S1", "S4")), st.integers(0, 3)),
    "texts of shape": st.sampled_from(((), (0,), (1,), (2,), (1, 1), (1, 2), (2, 1), (2, 2))),
    "null": st.tuples(st.sampled_from(("S1", "S3", "f4", "i2"))),
    "numbers of shape": st.tuples(
        st.sampled_from(NUMBERS),
        st.sampled_from(((), (0,), (1,), (2,), (1, 1), (1, 2), (2, 1))),
    ),
    "bool": st.sampled_from(((), (1,), (2,))),
    "enum": st.sampled_from(((), (1,), (2,))),
    "compound": st.sampled_from(((), (1,), (2,))),
    "sequences": st.sampled_from(((1,), (2,))),
    "half": st.sampled_from(((), (1,), (2,))),
    "complex": st.sampled_from(((), (1,), (2,))),
}
"""Attributes that only h5py writes."""

_NAMES = ("title", "no", "Ünit", "units of it", "_odd")


def _forms(forms: Mapping[str, Any]) -> st.SearchStrategy[Attribute]:
    """Draw one attribute of the forms."""
    return st.sampled_from(sorted(forms)).flatmap(
        lambda form: st.builds(Attribute, st.sampled_from(_NAMES), st.just(form), forms[form])
    )


@st.composite
def _attributes(draw: st.DrawFn, writer: str) -> tuple[Attribute, ...]:
    if draw(st.booleans()):
        return ()
    return tuple(draw(st.lists(_forms(_FORMS), max_size=3, unique_by=lambda a: a.name)))


@st.composite
def _cf_attributes(draw: st.DrawFn, type_: str, others: list[str]) -> tuple[Attribute, ...]:
    """Draw attributes of the CF conventions that fit the type of a variable."""
    named = {
        "coordinates": " ".join(others[:2]),
        "bounds": others[0],
        "grid_mapping": others[-1],
        "ancillary_variables": others[0],
    }
    out = []
    for name in draw(st.lists(st.sampled_from(sorted(named)), max_size=1)):
        out.append(Attribute(name, "text", (named[name],)))
    if type_ == "S1" and draw(st.booleans()):
        out.append(Attribute("_Encoding", "text", ("utf-8",)))
    if type_ not in NUMBERS:
        return tuple(out)
    match draw(st.sampled_from(("none", "packed", "time", "unsigned", "missing", "bool"))):
        case "packed":
            kind = draw(st.sampled_from(("<f4", "<f8")))
            out.append(Attribute("scale_factor", "number", (kind, 0.5)))
            if draw(st.booleans()):
                out.append(Attribute("add_offset", "number", (kind, 10)))
        case "time":
            out.append(Attribute("units", "text", (draw(st.sampled_from(UNITS)),)))
            if draw(st.booleans()):
                calendar = draw(st.sampled_from(CALENDARS))
                out.append(Attribute("calendar", "text", (calendar,)))
        case "unsigned":
            out.append(
                Attribute("_Unsigned", "text", (draw(st.sampled_from(("true", "false"))),))
            )
        case "missing":
            out.append(Attribute("missing_value", "number", (type_, 2)))
        case "bool" if type_ == "i1":
            out.append(Attribute("dtype", "text", ("bool",)))
    return tuple(out)


# --- changes with h5py -------------------------------------------------------------


def walk(group: Group, path: str = "") -> Iterator[tuple[str, Group]]:
    yield path or "/", group
    for child in group.groups:
        yield from walk(child, f"{path}/{child.name}")


PLAIN_TYPES = ("<f4", ">i2", "S1", "S4", "bool", "enum", "text", "sequences")
"""Types of datasets that h5py adds; netCDF4 opens no file with half precision."""


@st.composite
def _edits(draw: st.DrawFn, root: Group) -> Edit:
    groups = dict(walk(root))
    parent = draw(st.sampled_from(sorted(groups)))
    variables = [join(p, v.name) for p, g in groups.items() for v in g.variables]
    dimensions = [join(p, d.name) for p, g in groups.items() for d in g.dimensions]
    kinds = ["attribute", "plain"]
    kinds += ["link", "soft link"] if variables + dimensions else []
    kinds += ["link group", "soft link group"] if len(groups) > 1 else []
    kinds += ["unnamed", "named"] if dimensions else []
    kinds += ["attach"] if variables and dimensions else []
    kind = draw(st.sampled_from(kinds))
    match kind:
        case "attribute":
            path = draw(st.sampled_from([*groups, *variables]))
            return Edit(kind, path, attribute=draw(_forms(_H5PY_FORMS)))
        case "plain":
            # netCDF4 takes an axis without elements for an unlimited dimension.
            shape = tuple(draw(st.lists(st.integers(1, 5), max_size=3)))
            return Edit(kind, join(parent, "plain"), items=(draw(_plain_types), shape))
        case "link" | "soft link":
            target = draw(st.sampled_from(variables + dimensions))
            parent = draw(st.sampled_from(_below(groups, target)))
            return Edit(kind, join(parent, "alias"), other=target)
        case "link group" | "soft link group":
            target = draw(st.sampled_from([g for g in groups if g != "/"]))
            free = [p for p in groups if p != target and not p.startswith(f"{target}/")]
            path = join(draw(st.sampled_from(free)), "alias group")
            return Edit(kind.removesuffix(" group"), path, other=target)
        case "attach":
            other = draw(st.sampled_from(dimensions))
            near = [join(p, v.name) for p in _below(groups, other) for v in groups[p].variables]
            path = draw(st.sampled_from(near or variables))
            return Edit(kind if near else "nothing", path, other=other)
        case _:
            other = draw(st.sampled_from(dimensions))
            parent = draw(st.sampled_from(_below(groups, other)))
            return Edit(kind, join(parent, "added"), other=other, items=(draw(_plain_types),))


def _below(groups: Mapping[str, Group], path: str) -> list[str]:
    """Return the group of a path, and groups below that see the same dimensions."""
    above = path.rpartition("/")[0] or "/"
    found = [above]
    for name, group in groups.items():  # each group follows the one above it
        if (name.rpartition("/")[0] or "/") in found and name != "/" and not group.dimensions:
            found.append(name)
    return found


_plain_types = st.sampled_from(PLAIN_TYPES)


def join(path: str, name: str) -> str:
    """Return the path of a member of a group."""
    return f"{path.rstrip('/')}/{name}"
