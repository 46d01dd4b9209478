"""The decoding of each target of some references.

In: references fitted to their targets, the targets' attributes, the options that the file
was opened with. Out: `Decoders`. Options given by variable are looked up under the
target's own name.
"""

from __future__ import annotations

import posixpath
from collections.abc import Hashable, Mapping, Sequence, Set
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xref import engine
from xref.arrays import IntArray
from xref.hdf5 import DatasetLayout
from xref.objects import StoredObject, object_paths, type_and_fill
from xref.reading import SmallDatasets
from xref.references import DecodeOptions, decode_values
from xref.resolving.read_results import BoundReferences
from xref.resolving.targets import TargetMetadata
from xref.storage import FileLocation

Place: TypeAlias = tuple[Hashable, ...]
"""Token of a target."""


def find_decoders(
    bound: BoundReferences, targets: tuple[TargetMetadata, ...], options: DecodeOptions
) -> tuple[engine.Decoders, dict[Place, Set[str]]]:
    """Find out how the values of each target are decoded.

    Returns
    -------
    decoders : Decoders
    used : dict
        Names of the attributes that decoding uses up, for each of ``targets``.
    """
    finder = _DecodingFinder(options)
    by_place = {t.dataset.token: t for t in targets}
    files: dict[Hashable, tuple[int, FileLocation]] = {}
    file, address, which = [], [], []
    used: dict[Place, Set[str]] = {}

    def add(location: FileLocation, addresses: npt.NDArray[np.uint64], kinds: IntArray) -> None:
        row, _ = files.setdefault(location.token, (len(files), location))
        file.append(np.full(len(addresses), row))
        address.append(addresses)
        which.append(kinds)

    for t in bound.single:
        place = t.dataset.token
        target = by_place[place]
        kind = finder.find(t.dataset, t.layout, target.attributes)
        used[place] = finder.kinds[kind].used
        add(t.dataset.location, np.array([t.dataset.address], np.uint64), np.array([kind]))
    for many in bound.small:
        witnesses = [
            by_place[many.location.token, int(many.address[k])] for k, _ in many.representatives
        ]
        # Of each type, values of the attributes, and name that options are given by.
        named = finder.number_names(many.location, many.address)
        own = _number_alone(many, witnesses)
        first, of = _number_rows([many.kind, many.representative, named, own])
        kinds = []
        for row in first.tolist():
            layout = many.kinds[int(many.kind[row])].layout
            attributes = witnesses[int(many.representative[row])].attributes
            dataset = StoredObject(many.location, int(many.address[row]))
            kinds.append(finder.find(dataset, layout, attributes))
        for witness, (row, _) in zip(witnesses, many.representatives, strict=True):
            kind = kinds[int(of[row])]
            used[witness.dataset.token] = finder.kinds[kind].used
        add(many.location, many.address, np.array(kinds)[of])
    if not file:
        return engine.Decoders(()), used
    locations = [location for _, location in files.values()]
    columns = (np.concatenate(c) for c in (file, address, which))
    return engine.Decoders(finder.kinds, locations, *columns), used


def _number_rows(columns: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """Return the first of each distinct row of some columns, and which one each row is."""
    code = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        largest = int(column.max(initial=0))
        if largest:  # most columns are all zeros
            code = code * (largest + 1) + column
    if not code.any():
        return np.zeros(1, dtype=np.int64), code
    _, first, of = np.unique(code, return_index=True, return_inverse=True)
    return first, of


def _number_alone(many: SmallDatasets, witnesses: Sequence[TargetMetadata]) -> IntArray:
    """Return a number of its own for each dataset that may hold dates, 0 for the others.

    The type of dates depends on their values.
    """
    dated = np.array([_has_dates(t.attributes) for t in witnesses], dtype=bool)
    if not dated.any():
        return np.zeros(len(many), dtype=np.int64)
    return np.where(dated[many.representative], np.arange(1, len(many) + 1), 0)


class _DecodingFinder:
    """Makes one decoding for all targets that are decoded alike."""

    def __init__(self, options: DecodeOptions) -> None:
        self.kinds: list[engine.Decoding] = []
        self._options = options
        self._names = engine.options_by_name(options)
        self._known: dict[Hashable, int] = {}
        self._rows: dict[Hashable, int] = {}

    def _name(self, dataset: StoredObject) -> Hashable | None:
        """Return the name of a target if some option is given for a variable of that name."""
        if not self._names:
            return None
        path = dataset.path
        name = posixpath.basename(path) if path is not None else None
        return name if name in self._names else None

    def number_names(self, location: FileLocation, address: npt.NDArray[np.uint64]) -> IntArray:
        """Return a number for each target, equal where options by name are the same."""
        if not self._names:
            return np.zeros(len(address), dtype=np.int64)
        numbers: dict[Hashable | None, int] = {None: 0}
        numbers |= {name: i for i, name in enumerate(sorted(map(str, self._names)), 1)}
        paths = object_paths(location, address.tolist())
        names = (posixpath.basename(paths.get(a, "")) for a in address.tolist())
        return np.array([numbers.get(name, 0) for name in names])

    def find(
        self, dataset: StoredObject, layout: DatasetLayout, attributes: Mapping[str, Any]
    ) -> int:
        """Return the row of the decoding of a target among ``kinds``.

        Of its layout only type and fill value matter, which other datasets may share.
        """
        name = self._name(dataset)
        telling = {k: v for k, v in attributes.items() if k in engine.CF_ATTRIBUTES}
        options = engine.options_of(self._options, name)
        sample = None
        if _may_be_times(layout, telling, options):
            # Each target's own: dates of some fit the type that those of others do not.
            sample = _first_and_last(dataset, options)
        told = None if sample is None else sample.tobytes()
        key = engine.decoding_key(layout.dtype, telling, layout.fill_value), name, told
        if key not in self._known:
            missing = _stored_fill(dataset, layout, options)
            decoding = engine.make_decoding(layout.dtype, telling, options, missing, sample)
            same = decoding.key, repr(decoding.missing)
            row = self._rows.setdefault(same, len(self.kinds))
            if row == len(self.kinds):
                self.kinds.append(decoding)
            self._known[key] = row
        return self._known[key]


def _may_be_times(
    layout: DatasetLayout, attributes: Mapping[str, Any], options: DecodeOptions
) -> bool:
    is_decoded = options.decode_times is not False
    return is_decoded and layout.dtype.kind in "iuf" and _has_dates(attributes)


def _has_dates(attributes: Mapping[str, Any]) -> bool:
    return "since" in str(attributes.get("units", ""))


def _first_and_last(dataset: StoredObject, options: DecodeOptions) -> npt.NDArray[Any] | None:
    """Read the values of a dataset that xarray looks at to choose the type of dates."""
    layout = dataset.layout
    if 0 in layout.shape:
        return None
    array = engine.DatasetArray(dataset, layout, options)
    ends = [tuple(0 for _ in layout.shape), tuple(n - 1 for n in layout.shape)]
    return np.stack([np.asarray(array.read(end)) for end in ends])


def _stored_fill(dataset: StoredObject, layout: DatasetLayout, options: DecodeOptions) -> Any:
    """Return the value of elements of a dataset that were never written."""
    if layout.dtype.kind != "V" or not layout.dtype.hasobject:
        return layout.fill_value
    datatype, stored = type_and_fill(dataset)
    raw = np.frombuffer(stored, dtype=np.uint8).reshape(1, -1)
    where = f"{dataset.filename}: fill value of the dataset at {dataset.address:#x}"
    return decode_values(dataset.location, datatype, raw, lambda _: where, options)[0]
