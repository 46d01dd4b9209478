"""The decoding of each target of references.

In: references bound to their targets, the attributes of the targets, and the options of the
opened file. Out: `Decoders`. An option that is given by variable name applies to the targets
with that name.
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
from xref.objects import CF_ATTRIBUTES, StoredObject, object_paths, type_and_fill
from xref.reading import SmallDatasets
from xref.references import DecodeOptions, ElementNames, Owner, decode_values
from xref.resolving.bound_references import BoundReferences
from xref.resolving.targets import TargetMetadata
from xref.storage import FileLocation

TargetKey: TypeAlias = tuple[Hashable, ...]
"""Token of a target."""


def read_decoders(
    bound: BoundReferences, targets: tuple[TargetMetadata, ...], options: DecodeOptions
) -> tuple[engine.Decoders, dict[TargetKey, Set[str]]]:
    """Find the decoding of each target; the first and last dates of targets are read.

    Returns the decoders, and for the token of each target the names of the attributes that
    its decoding removes.
    """
    table = _DecodingTable(options)
    by_key = {t.dataset.token: t for t in targets}
    files: dict[Hashable, tuple[int, FileLocation]] = {}
    file, address, decoding_row = [], [], []
    used: dict[TargetKey, Set[str]] = {}

    def add(location: FileLocation, addresses: npt.NDArray[np.uint64], rows: IntArray) -> None:
        row, _ = files.setdefault(location.token, (len(files), location))
        file.append(np.full(len(addresses), row))
        address.append(addresses)
        decoding_row.append(rows)

    for t in bound.datasets:
        key = t.dataset.token
        row = table.row_of(t.dataset, t.layout, by_key[key].attributes)
        used[key] = table.decodings[row].used
        add(t.dataset.location, np.array([t.dataset.address], np.uint64), np.array([row]))
    for small in bound.small_by_file:
        known = [
            by_key[small.location.token, int(small.address[k])]
            for k, _ in small.representatives
        ]
        # Datasets with equal type, attribute values and options by name are decoded alike.
        names = table.number_names(small.location, small.address)
        dates = _number_dated(small, known)
        first, number = _number_rows([small.kind, small.representative, names, dates])
        rows = []
        for k in first.tolist():
            layout = small.kinds[int(small.kind[k])].layout
            attributes = known[int(small.representative[k])].attributes
            dataset = StoredObject(small.location, int(small.address[k]))
            rows.append(table.row_of(dataset, layout, attributes))
        for target, (k, _) in zip(known, small.representatives, strict=True):
            used[target.dataset.token] = table.decodings[rows[int(number[k])]].used
        add(small.location, small.address, np.array(rows)[number])
    if not file:
        return engine.Decoders(()), used
    locations = [location for _, location in files.values()]
    columns = (np.concatenate(c) for c in (file, address, decoding_row))
    return engine.Decoders(table.decodings, locations, *columns), used


def _number_rows(columns: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """Return the first of each distinct row of some columns, and the number of each row."""
    code = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        largest = int(column.max(initial=0))
        if largest:  # most columns are all zeros
            code = code * (largest + 1) + column
    if not code.any():
        return np.zeros(1, dtype=np.int64), code
    _, first, number = np.unique(code, return_index=True, return_inverse=True)
    return first, number


def _number_dated(small: SmallDatasets, known: Sequence[TargetMetadata]) -> IntArray:
    """Return a separate number for each dataset that may hold dates, 0 for the others.

    The type of dates depends on their values.
    """
    dated = np.array([_has_dates(t.attributes) for t in known], dtype=bool)
    if not dated.any():
        return np.zeros(len(small), dtype=np.int64)
    return np.where(dated[small.representative], np.arange(1, len(small) + 1), 0)


class _DecodingTable:
    """Distinct decodings; targets that are decoded alike share a row."""

    def __init__(self, options: DecodeOptions) -> None:
        self.decodings: list[engine.Decoding] = []
        self._options = options
        self._names = engine.options_by_name(options)
        self._row_of_input: dict[Hashable, int] = {}
        self._row_of_decoding: dict[Hashable, int] = {}

    def _name(self, dataset: StoredObject) -> Hashable | None:
        """Return the name of a target if some option is given for a variable of that name."""
        if not self._names:
            return None
        path = dataset.path
        name = posixpath.basename(path) if path is not None else None
        return name if name in self._names else None

    def number_names(self, location: FileLocation, address: npt.NDArray[np.uint64]) -> IntArray:
        """Return a number for each target, equal if their options by name are equal."""
        if not self._names:
            return np.zeros(len(address), dtype=np.int64)
        numbers: dict[Hashable | None, int] = {None: 0}
        numbers |= {name: i for i, name in enumerate(sorted(map(str, self._names)), 1)}
        paths = object_paths(location, address.tolist())
        names = (posixpath.basename(paths.get(a, "")) for a in address.tolist())
        return np.array([numbers.get(name, 0) for name in names])

    def row_of(
        self, dataset: StoredObject, layout: DatasetLayout, attributes: Mapping[str, Any]
    ) -> int:
        """Return the row in ``decodings`` for a target; add the decoding if it is new.

        ``layout`` may be that of another dataset with the same type and fill value.
        """
        name = self._name(dataset)
        cf = {k: v for k, v in attributes.items() if k in CF_ATTRIBUTES}
        options = engine.options_of(self._options, name)
        sample = None
        if _may_be_times(layout, cf, options):
            # Read for each target: the type that holds its dates depends on their values.
            sample = _read_first_and_last(dataset, options)
        sample_bytes = None if sample is None else sample.tobytes()
        key = engine.decoding_key(layout.dtype, cf, layout.fill_value), name, sample_bytes
        if key not in self._row_of_input:
            missing = _decode_fill(dataset, layout, options)
            decoding = engine.make_decoding(layout.dtype, cf, options, missing, sample)
            same = decoding.key, repr(decoding.missing)
            row = self._row_of_decoding.setdefault(same, len(self.decodings))
            if row == len(self.decodings):
                self.decodings.append(decoding)
            self._row_of_input[key] = row
        return self._row_of_input[key]


def _may_be_times(
    layout: DatasetLayout, attributes: Mapping[str, Any], options: DecodeOptions
) -> bool:
    is_decoded = options.decode_times is not False
    return is_decoded and layout.dtype.kind in "iuf" and _has_dates(attributes)


def _has_dates(attributes: Mapping[str, Any]) -> bool:
    return "since" in str(attributes.get("units", ""))


def _read_first_and_last(
    dataset: StoredObject, options: DecodeOptions
) -> npt.NDArray[Any] | None:
    """Read the two values of a dataset by which xarray chooses the type of dates."""
    layout = dataset.layout
    if 0 in layout.shape:
        return None
    array = engine.DatasetArray(dataset, layout, options)
    ends = [tuple(0 for _ in layout.shape), tuple(n - 1 for n in layout.shape)]
    return np.stack([np.asarray(array.read(end)) for end in ends])


def _decode_fill(dataset: StoredObject, layout: DatasetLayout, options: DecodeOptions) -> Any:
    """Return the fill value of a dataset: the value of elements that were never written."""
    if layout.dtype.kind != "V" or not layout.dtype.hasobject:
        return layout.fill_value
    datatype, stored = type_and_fill(dataset)
    raw = np.frombuffer(stored, dtype=np.uint8).reshape(1, -1)
    names = ElementNames.of_owner(Owner.of(dataset, None, "fill value"), range(1))
    return decode_values(dataset.location, datatype, raw, names, options)[0]
