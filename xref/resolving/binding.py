"""References and their targets: shapes, decodings, names and attributes.

In: a `ReferenceArray`. Out: `BoundVariable`: the references fitted to their targets,
with the targets' names, dimensions, attributes and decodings. This is where null
references are dropped or refused; of the targets' data only the first and last dates
are read, which decide about the type of dates.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xref.arrays import is_same_value
from xref.engine import Decoders
from xref.errors import NullReferenceError, UnsupportedError, WrongTargetError
from xref.objects import StoredObject
from xref.references import ReferenceArray
from xref.resolving.read_results import BoundReferences, bind_references
from xref.resolving.target_decoding import Place, find_decoders
from xref.resolving.targets import TargetMetadata, open_target

ON_NULL = ("raise", "fill", "drop")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundVariable:
    """References bound to their targets, ready to become arrays."""

    references: ReferenceArray
    dims: tuple[Hashable, ...]
    bound: BoundReferences
    targets: tuple[TargetMetadata, ...]  # those of small datasets that are alike once
    decoders: Decoders
    attributes: dict[str, Any]  # that all targets have after decoding, with equal values
    name: Hashable | None
    what: str  # names the references in messages

    @property
    def widest(self) -> np.dtype[Any]:
        """The largest type of elements as they are read or decoded, to size blocks by."""
        found = [k.raw_dtype for k in self.decoders.kinds]
        found += [k.flat_dtype for k in self.decoders.kinds]
        return max(found, key=lambda d: d.itemsize, default=np.dtype(float))


def bind(
    references: ReferenceArray, dims: Sequence[Hashable], on_null: str, name: Hashable | None
) -> tuple[BoundVariable, npt.NDArray[np.bool_] | None]:
    """Decode references, look at their targets and agree on one type.

    Returns
    -------
    resolved : Resolved
    kept : numpy.ndarray or None
        Mask of the references that stayed, where null ones were dropped.
    """
    if on_null not in ON_NULL:
        raise ValueError(f"on_null is {on_null!r}; it can be one of {ON_NULL}")
    if len(references.columns.attribute_rows):
        row = int(references.columns.attribute_rows[0])
        raise WrongTargetError(
            f"{references.describe(row)} points at an attribute; only .h5ref.resolve() and "
            ".h5ref.items() read those, select the others by the kind in .h5ref.table()"
        )
    kept = None
    valid = references.astype(bool)
    if not valid.all():
        if on_null == "raise":
            row = int(np.flatnonzero(~valid.reshape(-1))[0])
            raise NullReferenceError(
                f"{references.describe(row)} is null, one of {int((~valid).sum())}; resolve "
                "with on_null='fill' or on_null='drop', or select the others"
            )
        if on_null == "drop":
            if references.ndim != 1:
                raise ValueError(
                    f"on_null='drop' needs references along one dimension, not {tuple(dims)}; "
                    "stack them first, or use on_null='fill'"
                )
            kept = valid
            references = references[valid]
    bound = bind_references(references.columns, references.describe)
    for t in bound.single:
        kind = t.layout.reference_kind.replace("std", "H5T_STD_REF")
        if kind:
            raise UnsupportedError(
                f"{references.describe(t.first_row)} points at a dataset of {kind} "
                "references; resolve it by itself, element by element (.h5ref.items())"
            )
    # Attributes and names are those of the first target: in the order of references.
    looks = [(t.first_row, t.dataset, t.facts) for t in bound.single]
    for many in bound.small:
        for k, facts in many.representatives:
            row = int(many.rows[np.searchsorted(many.which, k)])
            looks.append((row, StoredObject(many.location, int(many.address[k])), facts))
    looks.sort(key=lambda look: look[0])
    targets = tuple(
        open_target(dataset, facts, references.options) for _, dataset, facts in looks
    )
    what = f"the reference variable {name!r}" if name is not None else "the references"
    decoders, used = find_decoders(bound, targets, references.options)
    resolved = BoundVariable(
        references=references,
        dims=tuple(dims),
        bound=bound,
        targets=targets,
        decoders=decoders,
        attributes=_common_attributes(targets, used),
        name=targets[0].name if bound.n_targets == 1 else name,
        what=what,
    )
    return resolved, kept


def _common_attributes(
    targets: tuple[TargetMetadata, ...], used: Mapping[Place, Set[str]]
) -> dict[str, Any]:
    """Return the attributes that all targets have after decoding, with equal values."""
    left = [
        {
            name: value
            for name, value in t.attributes.items()
            if name not in used[t.dataset.token]
        }
        for t in targets
    ]
    if not left:
        return {}
    first, *others = left
    return {k: v for k, v in first.items() if all(is_same_value(v, o.get(k)) for o in others)}


def warn_of_units(resolved: BoundVariable) -> None:
    """Warn where values of different units are about to be put into one array."""
    decoders = resolved.decoders
    found: dict[str, TargetMetadata] = {}
    for target in resolved.targets:
        units = target.attributes.get("units")
        used = decoders.of(target.dataset).used
        if isinstance(units, str) and "units" not in used:
            found.setdefault(units, target)
    if len(found) > 1:
        (a, of_a), (b, of_b), *_ = found.items()
        warnings.warn(
            f"{resolved.what} points at values of units {a!r} ({of_a.describe()}) and {b!r} "
            f"({of_b.describe()}); they are put together as they are, and the result has no "
            "units. .h5ref.target_attrs() tells the units by reference",
            UserWarning,
            stacklevel=2,
        )
