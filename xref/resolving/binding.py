"""A reference variable bound to its targets: shapes, decodings, names and attributes.

In: a `ReferenceArray`. Out: a `BoundVariable`: the references fitted to their targets, and
the names, dimensions, attributes and decodings of the targets. Null references are dropped or
refused here. The only values read are the first and last dates of each target: the type of
dates depends on them.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from xref.arrays import BoolArray, is_same_value
from xref.engine import Decoders
from xref.errors import NullReferenceError, UnsupportedError, WrongTargetError
from xref.objects import StoredObject
from xref.references import ReferenceArray
from xref.resolving.bound_references import BoundReferences, bind_references
from xref.resolving.target_decoding import TargetKey, read_decoders
from xref.resolving.targets import TargetMetadata, open_target

ON_NULL = ("raise", "fill", "drop")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundVariable:
    """References bound to their targets, ready to become arrays."""

    references: ReferenceArray
    dims: tuple[Hashable, ...]
    bound: BoundReferences
    targets: tuple[TargetMetadata, ...]  # one for all small datasets with equal metadata
    decoders: Decoders
    attributes: dict[str, Any]  # that all targets have after decoding, with equal values
    name: Hashable | None
    variable_name: Hashable | None  # of the references
    coordinate_of: str = ""  # the references whose targets have these datasets as a coordinate

    @property
    def label(self) -> str:
        """Name the references in a message."""
        if self.coordinate_of:
            return f"coordinate {self.variable_name!r} of {self.coordinate_of}"
        if self.references.owner is not None or self.variable_name is None:
            return self.references.label
        return f"the reference variable {self.variable_name!r}"

    @property
    def widest(self) -> np.dtype[Any]:
        """The largest type of an element, as it is read or decoded, to choose block sizes."""
        dtypes = [k.raw_dtype for k in self.decoders.kinds]
        dtypes += [k.flat_dtype for k in self.decoders.kinds]
        return max(dtypes, key=lambda d: d.itemsize, default=np.dtype(float))


def bind(
    references: ReferenceArray, dims: Sequence[Hashable], on_null: str, name: Hashable | None
) -> tuple[BoundVariable, BoolArray | None]:
    """Bind references to their targets and find the decoding of each target.

    Returns the bound variable, and a mask that is True for the references that were kept; the
    mask is None if all were kept.
    """
    if on_null not in ON_NULL:
        raise ValueError(f"on_null is {on_null!r}; it can be one of {ON_NULL}")
    if len(references.columns.attribute_rows):
        row = int(references.columns.attribute_rows[0])
        raise WrongTargetError(
            f"{references.describe(row)} points at an attribute; only .h5ref.resolve() and "
            ".h5ref.items() read attributes. Select the other references by the kind in "
            ".h5ref.table()"
        )
    kept = None
    valid = references.astype(bool)
    if on_null != "fill" and not valid.all():
        _check_null(references, valid, dims, on_null)
        kept = valid
        references = references[valid]
    bound = bind_references(references)
    for t in bound.datasets:
        kind = t.layout.reference_kind.replace("std", "H5T_STD_REF")
        if kind:
            raise UnsupportedError(
                f"{references.describe(t.first_row)} points at a dataset of {kind} "
                "references; resolve it by itself, element by element (.h5ref.items())"
            )
    targets = _open_targets(references, bound)
    decoders, used = read_decoders(bound, targets, references.options)
    refs = BoundVariable(
        references=references,
        dims=tuple(dims),
        bound=bound,
        targets=targets,
        decoders=decoders,
        attributes=_common_attributes(targets, used),
        name=targets[0].name if bound.n_targets == 1 else name,
        variable_name=name,
    )
    return refs, kept


def _check_null(
    references: ReferenceArray, valid: BoolArray, dims: Sequence[Hashable], on_null: str
) -> None:
    """Refuse null references unless they can be dropped."""
    if on_null == "raise":
        row = int(np.flatnonzero(~valid.reshape(-1))[0])
        raise NullReferenceError(
            f"{references.describe(row)} is null, one of {int((~valid).sum())}; resolve "
            "with on_null='fill' or on_null='drop', or select the others"
        )
    if references.ndim != 1:
        raise ValueError(
            f"on_null='drop' needs references along one dimension, not {tuple(dims)}; "
            "stack them first, or use on_null='fill'"
        )


def _open_targets(
    references: ReferenceArray, bound: BoundReferences
) -> tuple[TargetMetadata, ...]:
    """Open the targets in the order of their first references, equal small ones once.

    The first target gives the attributes and the name of the result.
    """
    found = [(t.first_row, t.dataset, t.facts) for t in bound.datasets]
    for small in bound.small_by_file:
        for k, facts in small.representatives:
            row = int(small.rows[np.searchsorted(small.which, k)])
            found.append((row, StoredObject(small.location, int(small.address[k])), facts))
    found.sort(key=lambda item: item[0])
    return tuple(open_target(dataset, facts, references.options) for _, dataset, facts in found)


def _common_attributes(
    targets: tuple[TargetMetadata, ...], used: Mapping[TargetKey, Set[str]]
) -> dict[str, Any]:
    """Return the attributes that all targets have after decoding, with equal values."""
    first, *others = [
        {k: v for k, v in t.result_attributes.items() if k not in used[t.dataset.token]}
        for t in targets
    ] or [{}]
    return {k: v for k, v in first.items() if all(is_same_value(v, o.get(k)) for o in others)}


def warn_of_units(refs: BoundVariable) -> None:
    """Warn if values of different units are about to be put into one array."""
    first_of: dict[str, TargetMetadata] = {}  # by units
    for target in refs.targets:
        units = target.attributes.get("units")
        if isinstance(units, str) and "units" not in refs.decoders.of(target.dataset).used:
            first_of.setdefault(units, target)
    if len(first_of) > 1:
        (a, target_a), (b, target_b), *_ = first_of.items()
        warnings.warn(
            f"{refs.label} points at values of units {a!r} ({target_a.dataset}) and {b!r} "
            f"({target_b.dataset}); the values are not converted, and the result has no "
            "units. .h5ref.target_attrs() gives the units of each reference",
            UserWarning,
            stacklevel=2,
        )
