"""Hypothesis strategies: datasets, selections, and files that hold both.

Everything drawn is plain data; `write_file` turns a drawn file into HDF5 with h5py,
and `select` a drawn selection into a dataspace. Datasets hold a range of values, so an
element from the wrong place shows.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5r, h5s, h5t
from hypothesis import assume, settings
from hypothesis import strategies as st

MAX_ELEMENTS = 4096


def scaled(n: int) -> int:
    """Return how many examples of its own making a test takes, where CI's profile takes n."""
    return max(n * settings.default.max_examples // 200, 5)


COLOURS = h5py.enum_dtype({"RED": 0, "GREEN": 1, "BLUE": 300}, basetype="i2")
COMPOUND = np.dtype(
    [("a", "<i2"), ("n", [("x", ">f8"), ("s", "S3")]), ("pair", "u1", (2,)), ("z", "f4")]
)
WITH_TEXT = np.dtype([("a", "<i4"), ("s", h5py.string_dtype())])
DTYPES: dict[str, Any] = {
    "u1": np.dtype("u1"),
    "i2": np.dtype("<i2"),
    "big i4": np.dtype(">i4"),
    "u8": np.dtype("<u8"),
    "f4": np.dtype("<f4"),
    "big f8": np.dtype(">f8"),
    "f2": np.dtype("<f2"),
    "complex": np.dtype("<c16"),
    "bool": np.dtype(bool),
    "enum": COLOURS,
    "compound": COMPOUND,
    "compound with text": WITH_TEXT,
    "S5": np.dtype("S5"),
    "text": h5py.string_dtype(),
    "opaque": np.dtype("V6"),
}

FILTERS: dict[str, dict[str, Any]] = {
    "chunked": {},
    "gzip": {"compression": "gzip"},
    "gzip+shuffle": {"compression": "gzip", "shuffle": True},
    "lzf": {"compression": "lzf"},
    "fletcher32": {"fletcher32": True},
    "gzip+shuffle+fletcher32": {"compression": "gzip", "shuffle": True, "fletcher32": True},
}
PLUGINS = {
    "zstd": ("Zstd", {}),
    "lz4": ("LZ4", {}),
    "bitshuffle": ("Bitshuffle", {}),
    "blosc": ("Blosc", {}),
    "blosc2": ("Blosc2", {}),
}
LAYOUTS = ("contiguous", "compact", *FILTERS, *PLUGINS)
INDIRECT = ("compact", "blosc2")
if importlib.util.find_spec("imagecodecs") is None:
    INDIRECT += ("lzf", "zstd", "blosc", "lz4", "bitshuffle")
"""Layouts that reader="direct" refuses and others leave to h5py."""

READERS = ("auto", "direct", "h5py")
HAVE_PLUGINS = importlib.util.find_spec("hdf5plugin") is not None

LIBVERS = ("earliest", "latest", ("earliest", "v108"), ("v108", "v110"), ("v110", "latest"))
USER_BLOCKS = (0, 512, 1024)


# --- values ------------------------------------------------------------------------


def distinct_values(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Values that differ from their neighbours, and from all others where they can."""
    n = math.prod(shape)
    number = np.arange(n)
    if h5py.check_string_dtype(dtype) and dtype.hasobject:
        out = np.array([f"text {i}" for i in range(n)], dtype=object)
    elif h5py.check_enum_dtype(dtype):
        out = np.array([0, 1, 300])[number * number % 7 % 3].astype(dtype)
    elif dtype.names:
        out = np.zeros(n, dtype=dtype)
        for k, name in enumerate(dtype.names):
            field = dtype[name]
            inner = (n, *field.shape)
            out[name] = distinct_values(inner, field.base) if k else number.astype(dtype[name])
    elif dtype.kind == "b":
        out = number * number % 7 % 3 == 0
    elif dtype.kind == "S":
        out = np.array([b"%d" % i for i in range(n)], dtype=dtype)
    elif dtype.kind == "V":
        raw = np.zeros((n, dtype.itemsize), np.uint8)
        raw[:, :4] = (number + 1).astype("<u4").view(np.uint8).reshape(n, 4)
        out = raw.reshape(-1).view(dtype)
    elif dtype.kind == "c":
        out = number + 1j * (number + 0.5)
    else:
        # Odd factors keep 256 neighbours apart in one byte.
        out = (number * 7 + 1).astype(dtype)
    return np.asarray(out, dtype=dtype).reshape(shape)


def fill_value(dtype: np.dtype[Any]) -> Any:
    """A fill value that stands out, or None for types that h5py gives none."""
    if dtype.kind in "iufc" and not h5py.check_enum_dtype(dtype):
        return np.asarray(99).astype(dtype)[()]
    return None


# --- selections --------------------------------------------------------------------

HYPER_OPS = {
    "set": h5s.SELECT_SET,
    "or": h5s.SELECT_OR,
    "xor": h5s.SELECT_XOR,
    "not b": h5s.SELECT_NOTB,
    "and": h5s.SELECT_AND,
}


@dataclass(frozen=True)
class Selected:
    """A drawn selection.

    ``kind`` is "null", "object" (no selection, a reference to the dataset), "all",
    "none", "points" (``data``: coordinates), "hyper" (``data``: steps of operation,
    start, count, stride and block), or "numpy" (``data``: an index for
    ``dataset.regionref``).
    """

    kind: str
    data: Any = None


def select(dataset: h5py.Dataset, selected: Selected) -> h5py.Reference | None:
    """Make the reference of a drawn selection; None for a null one."""
    if selected.kind == "null":
        return None
    if selected.kind == "object":
        return dataset.ref
    if selected.kind == "numpy":
        return dataset.regionref[selected.data]
    space = dataset.id.get_space()
    match selected.kind:
        case "all":
            space.select_all()
        case "none":
            space.select_none()
        case "points":
            space.select_elements(np.array(selected.data, dtype=np.uint64))
        case "hyper":
            for op, start, n, stride, block in selected.data:
                space.select_hyperslab(start, n, stride, block, HYPER_OPS[op])
            assume(not has_inverted_block(space))
    return region_of(dataset, space)


def has_inverted_block(space: h5s.SpaceID) -> bool:
    """Whether HDF5 itself made a block whose start is past its end.

    HDF5 does so where "xor" takes away a part of a single block, stores such bytes, and
    reads another selection back than it was told: no oracle for that one.
    """
    if space.get_select_type() != h5s.SEL_HYPERSLABS or not space.get_select_npoints():
        return False
    blocks = space.get_select_hyper_blocklist()
    return bool((blocks[:, 0] > blocks[:, 1]).any())


def region_of(dataset: h5py.Dataset, space: h5s.SpaceID) -> h5py.RegionReference:
    """Make a region reference from a dataspace."""
    return h5r.create(dataset.id, b".", h5r.DATASET_REGION, space)


Make = Callable[[h5py.Dataset], h5py.RegionReference]


def hyperslabs(*boxes: tuple[Any, Any], op: int = h5s.SELECT_OR) -> Make:
    """Unite boxes, each of (start, shape)."""

    def make(dataset: h5py.Dataset) -> h5py.RegionReference:
        space = dataset.id.get_space()
        for i, (start, shape) in enumerate(boxes):
            ones = (1,) * len(start)
            space.select_hyperslab(start, ones, ones, shape, op if i else h5s.SELECT_SET)
        return region_of(dataset, space)

    return make


def listed_points(points: Any) -> Make:
    """Select elements by their coordinates, in that order."""

    def make(dataset: h5py.Dataset) -> h5py.RegionReference:
        space = dataset.id.get_space()
        space.select_elements(np.array(points, dtype=np.uint64))
        return region_of(dataset, space)

    return make


def everything(dataset: h5py.Dataset) -> h5py.RegionReference:
    """Select "all", which grows with the dataset."""
    return region_of(dataset, dataset.id.get_space())


def nothing(dataset: h5py.Dataset) -> h5py.RegionReference:
    """Select "none"."""
    space = dataset.id.get_space()
    space.select_none()
    return region_of(dataset, space)


@st.composite
def regular(draw: st.DrawFn, extent: int) -> tuple[int, int, int, int]:
    """Start, count, stride and block of one axis with at least one element."""
    block = draw(st.integers(1, min(extent, 3)))
    start = draw(st.integers(0, extent - block))
    stride = draw(st.integers(block, max(block, 5)))
    most = (extent - start - block) // stride + 1
    return start, draw(st.integers(1, most)), stride, block


@st.composite
def hyper_step(draw: st.DrawFn, shape: tuple[int, ...], op: str) -> tuple[Any, ...]:
    axes = [draw(regular(n)) for n in shape]
    return (op, *(tuple(axis[i] for axis in axes) for i in range(4)))


@st.composite
def hyper(draw: st.DrawFn, shape: tuple[int, ...], ops: tuple[str, ...], most: int) -> Selected:
    steps = [draw(hyper_step(shape, "set"))]
    for _ in range(draw(st.integers(0, most))):
        steps.append(draw(hyper_step(shape, draw(st.sampled_from(ops)))))
    return Selected("hyper", tuple(steps))


@st.composite
def points(draw: st.DrawFn, shape: tuple[int, ...]) -> Selected:
    """Points in any order; few places, so that some stand twice."""
    point = st.tuples(*(st.integers(0, n - 1) for n in shape))
    return Selected("points", draw(st.lists(point, min_size=1, max_size=12)))


@st.composite
def numpy_index(draw: st.DrawFn, shape: tuple[int, ...]) -> Selected:
    """What users write between brackets: integers, slices, and one list of indices."""
    listed = draw(st.integers(-1, len(shape) - 1))
    key: list[Any] = []
    for axis, n in enumerate(shape):
        if axis == listed:
            key.append(sorted(draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=6))))
        elif draw(st.integers(0, 3)) == 0:
            key.append(draw(st.integers(0, n - 1)))
        else:
            start = draw(st.integers(0, n - 1))
            step = draw(st.integers(1, 3))
            key.append(slice(start, draw(st.integers(start + 1, n)), step))
    return Selected("numpy", tuple(key))


@st.composite
def boolean_mask(draw: st.DrawFn, shape: tuple[int, ...]) -> Selected:
    n = math.prod(shape)
    places = draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=10))
    mask = np.zeros(n, dtype=bool)
    mask[list(places)] = True
    return Selected("numpy", mask.reshape(shape))


def selections(shape: tuple[int, ...], *, nulls: bool = True) -> st.SearchStrategy[Selected]:
    """Any selection of a dataset of that shape."""
    whole = [st.just(Selected("all")), st.just(Selected("none"))]
    if nulls:
        whole.append(st.just(Selected("null")))
    if not shape or 0 in shape:
        return st.one_of(whole)
    some = [
        hyper(shape, ("or",), 0),
        hyper(shape, ("or",), 4),
        hyper(shape, ("or", "xor", "not b", "and"), 4),
        points(shape),
        numpy_index(shape),
        boolean_mask(shape),
    ]
    return st.one_of(*some, *some, *whole)


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...], size: tuple[int, ...]) -> Selected:
    """A box of one size anywhere in the dataset."""
    key = []
    for n, side in zip(shape, size, strict=True):
        start = draw(st.integers(0, n - side))
        key.append(slice(start, start + side))
    return Selected("numpy", tuple(key))


# --- datasets ----------------------------------------------------------------------


@dataclass(frozen=True)
class TargetMetadata:
    """A drawn dataset."""

    shape: tuple[int, ...]
    dtype: str
    layout: str
    chunks: tuple[int, ...] | None
    written: float  # part of the chunks that are written

    def create(self, group: h5py.Group, name: str) -> h5py.Dataset:
        """Write the dataset."""
        dtype = DTYPES[self.dtype]
        dataset = create_dataset(group, name, self.shape, dtype, self.layout, self.chunks)
        if math.prod(self.shape):
            write_part(dataset, distinct_values(self.shape, dtype), self.written)
        return dataset


def layout_options(layout: str) -> dict[str, Any]:
    """What h5py is told to make a layout or filter."""
    if layout in PLUGINS:
        import hdf5plugin

        cls, options = PLUGINS[layout]
        return dict(getattr(hdf5plugin, cls)(**options))
    return dict(FILTERS.get(layout, {}))


def create_dataset(
    group: h5py.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    layout: str,
    chunks: tuple[int, ...] | None = None,
    **options: Any,
) -> h5py.Dataset:
    """Create a dataset of a layout; contiguous and compact ones take no chunks."""
    if layout == "compact":
        properties = h5p.create(h5p.DATASET_CREATE)
        properties.set_layout(h5d.COMPACT)
        space = h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)
        stored = h5t.py_create(dtype, logical=True)
        return h5py.Dataset(h5d.create(group.id, name.encode(), stored, space, properties))
    if layout == "contiguous":
        chunks = None
    options = {"fillvalue": fill_value(dtype), "chunks": chunks} | options
    if 0 in shape:
        # Only axes that can grow take chunks longer than they are.
        options = {"maxshape": (None,) * len(shape) if chunks else None} | options
    return group.create_dataset(name, shape, dtype=dtype, **options, **layout_options(layout))


def write_part(dataset: h5py.Dataset, values: np.ndarray, part: float) -> None:
    """Write a part of the chunks, spread over the dataset."""
    if dataset.chunks is None or part == 1:
        if part:
            dataset[...] = values
        return
    grid = [range(0, n, c) for n, c in zip(dataset.shape, dataset.chunks, strict=True)]
    for i, corner in enumerate(itertools.product(*grid)):
        if i * 0.618 % 1 < part:
            box = tuple(slice(a, a + c) for a, c in zip(corner, dataset.chunks, strict=True))
            dataset[box] = values[box]


@st.composite
def shapes(draw: st.DrawFn, *, empty: bool = True, rank: int | None = None) -> tuple[int, ...]:
    """Shapes of rank 0 to 6 with few elements."""
    if rank is None:
        rank = draw(st.sampled_from((0, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6)))
    longest = {1: 60, 2: 24, 3: 12}.get(rank, 5 if rank < 6 else 4)
    least = 0 if empty and draw(st.integers(0, 9)) == 0 else 1
    return tuple(draw(st.integers(least, longest)) for _ in range(rank))


@st.composite
def targets(
    draw: st.DrawFn,
    *,
    empty: bool = True,
    rank: int | None = None,
    dtypes: tuple[str, ...] = tuple(DTYPES),
) -> TargetMetadata:
    shape = draw(shapes(empty=empty, rank=rank))
    dtype = draw(st.sampled_from(dtypes))
    known = tuple(name for name in LAYOUTS if name not in PLUGINS or HAVE_PLUGINS)
    if not shape or 0 in shape:
        known = ("contiguous", "compact") if not shape else ("contiguous", "chunked", "gzip")
    if DTYPES[dtype].hasobject:
        known = tuple(n for n in known if n not in PLUGINS and "fletcher32" not in n)
    layout = draw(st.sampled_from(known))
    chunks = None
    if layout not in ("contiguous", "compact"):
        chunks = tuple(draw(st.integers(1, max(n, 1))) for n in shape)
        # Thousands of chunks take long to write and show nothing more.
        while math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True)) > 200:
            chunks = tuple(min(2 * c, max(n, 1)) for n, c in zip(shape, chunks, strict=True))
    written = draw(st.sampled_from((1.0, 1.0, 0.5, 0.0)))
    return TargetMetadata(shape, dtype, layout, chunks, written)


@dataclass(frozen=True)
class Holder:
    """A drawn dataset of references."""

    shape: tuple[int, ...]
    layout: str  # "contiguous", "chunked", "gzip+shuffle" or "resizable"
    kind: str  # "region" or "object"

    @property
    def size(self) -> int:
        """Number of references."""
        return math.prod(self.shape)

    def create(self, group: h5py.Group, name: str, references: list[Any]) -> h5py.Dataset:
        """Write the references; None leaves a null one."""
        options: dict[str, Any] = {}
        if self.layout != "contiguous" and self.shape:
            options = {"chunks": tuple(max(n // 2, 1) for n in self.shape)}
        if self.layout == "gzip+shuffle" and self.shape:
            options |= {"compression": "gzip", "shuffle": True}
        if self.layout == "resizable" and self.shape:
            options |= {"maxshape": (None,) * len(self.shape)}
        dtype = h5py.regionref_dtype if self.kind == "region" else h5py.ref_dtype
        return write_references(group, name, references, self.shape, dtype=dtype, **options)


def write_references(
    group: h5py.Group,
    name: str,
    references: Sequence[h5py.Reference | None],
    shape: tuple[int, ...] | None = None,
    **options: Any,
) -> h5py.Dataset:
    """Write references, of regions unless ``dtype`` says so; None leaves a null one."""
    shape = (len(references),) if shape is None else shape
    dataset = group.create_dataset(name, shape, **{"dtype": h5py.regionref_dtype} | options)
    for place, reference in zip(np.ndindex(shape), references, strict=True):
        if reference is not None:
            dataset[place] = reference
    return dataset


def write_regions(
    path: Path,
    datasets: dict[str, Any],
    regions: dict[str, list[tuple[str, Any] | None]],
    **options: Any,
) -> None:
    """Write datasets and variables of region references, each of (target, key) or null.

    A key that is a function gets the dataset and returns the reference. The options
    are those of the datasets.
    """
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            file.create_dataset(name, data=data, **options)
        for name, pairs in regions.items():
            made = [pair and make_region(file[pair[0]], pair[1]) for pair in pairs]
            write_references(file, name, made)


def make_region(dataset: h5py.Dataset, key: Any) -> h5py.RegionReference:
    return key(dataset) if callable(key) else dataset.regionref[key]


@st.composite
def holders(draw: st.DrawFn, kinds: tuple[str, ...]) -> Holder:
    shape = draw(
        st.one_of(
            st.just(()),
            st.tuples(st.integers(1, 8)),
            st.tuples(st.integers(1, 4), st.integers(1, 3)),
            st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
        )
    )
    layouts = ("contiguous", "chunked", "gzip+shuffle", "resizable")
    return Holder(shape, draw(st.sampled_from(layouts)), draw(st.sampled_from(kinds)))


# --- files -------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """A drawn file: targets ``t0``, ``t1``..., and one dataset ``refs``."""

    targets: tuple[TargetMetadata, ...]
    holder: Holder
    references: tuple[tuple[int, Selected], ...]  # row of ``targets``, what is selected
    libver: Any
    user_block: int

    @property
    def why_not_direct(self) -> bool:
        """Whether reader="direct" refuses a target."""
        return any(DTYPES[t.dtype].hasobject or t.layout in INDIRECT for t in self.targets)

    def write(self, path: Path) -> None:
        """Write the file."""
        with h5py.File(path, "w", libver=self.libver, userblock_size=self.user_block) as file:
            datasets = [t.create(file, f"t{i}") for i, t in enumerate(self.targets)]
            made = [select(datasets[i], selected) for i, selected in self.references]
            if all(r is None for r in made):
                region = self.holder.kind == "region"
                made[0] = datasets[0].regionref[...] if region else datasets[0].ref
            self.holder.create(file, "refs", made)


@st.composite
def files(draw: st.DrawFn, *, n_targets: int = 1, same_size: bool = False) -> Drawn:
    """Files of one or more targets and references to them.

    All targets have one type. The references are to regions, and in a quarter of the
    files to objects. With ``same_size`` the targets have one rank too and every
    reference selects a box of one shape, so that the results stack.
    """
    kinds = ("region",) if same_size else ("region", "region", "region", "object")
    holder = draw(holders(kinds))
    if same_size:
        first = draw(targets(empty=False))
        chosen = [first] + [
            draw(targets(empty=False, rank=len(first.shape), dtypes=(first.dtype,)))
            for _ in range(n_targets - 1)
        ]
    else:
        first = draw(targets())
        others = [draw(targets(dtypes=(first.dtype,))) for _ in range(n_targets - 1)]
        chosen = [first, *others]
    size: tuple[int, ...] = ()
    if same_size:
        least = [min(t.shape[axis] for t in chosen) for axis in range(len(chosen[0].shape))]
        size = tuple(draw(st.integers(1, n)) for n in least)
    references = []
    for _ in range(holder.size):
        at = draw(st.integers(0, n_targets - 1))
        shape = chosen[at].shape
        if holder.kind == "object":
            selected = st.sampled_from(
                [Selected(kind) for kind in ("object", "object", "null")]
            )
        else:
            selected = boxes(shape, size) if same_size else selections(shape)
        references.append((at, draw(selected)))
    return Drawn(
        tuple(chosen),
        holder,
        tuple(references),
        draw(st.sampled_from(LIBVERS)),
        draw(st.sampled_from(USER_BLOCKS)),
    )
