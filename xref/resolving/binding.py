"""References and their targets: shapes, decodings, names and attributes.

In: a `ReferenceArray`. Out: `Resolved`: the references fitted to their targets,
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
import xarray as xr

from xref.arrays.conversion import is_same_value
from xref.engine.decoding import Decoders, option_of
from xref.engine.lazy_arrays import hold_back_objects
from xref.engine.object_variables import ObjectVariable
from xref.engine.variables import ReferenceVariable, keep_charset
from xref.errors import NullReferenceError, UnsupportedError, WrongTargetError
from xref.references.array import ReferenceArray
from xref.references.reference import DecodeOptions
from xref.resolving.read_results import BoundReferences, bind_references
from xref.resolving.target_decoding import Place, find_decoders
from xref.resolving.targets import Target, open_target

ON_NULL = ("raise", "fill", "drop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """References bound to their targets, ready to become arrays."""

    references: ReferenceArray
    dims: tuple[Hashable, ...]
    bound: BoundReferences
    targets: tuple[Target, ...]  # those of small datasets that are alike once
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
) -> tuple[Resolved, npt.NDArray[np.bool_] | None]:
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
    looks = [(t.first_row, t.location, t.address, t.facts) for t in bound.single]
    for many in bound.small:
        for k, facts in many.alike:
            row = int(many.rows[np.searchsorted(many.which, k)])
            looks.append((row, many.location, int(many.address[k]), facts))
    looks.sort(key=lambda look: look[0])
    targets = tuple(
        open_target(location, address, facts, references.options)
        for _, location, address, facts in looks
    )
    what = f"the reference variable {name!r}" if name is not None else "the references"
    decoders, used = find_decoders(bound, targets, references.options)
    resolved = Resolved(
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
    targets: tuple[Target, ...], used: Mapping[Place, Set[str]]
) -> dict[str, Any]:
    """Return the attributes that all targets have after decoding, with equal values."""
    left = [
        {
            name: value
            for name, value in t.attributes.items()
            if name not in used[t.location.token, t.address]
        }
        for t in targets
    ]
    if not left:
        return {}
    first, *others = left
    return {k: v for k, v in first.items() if all(is_same_value(v, o.get(k)) for o in others)}


def warn_of_units(resolved: Resolved) -> None:
    """Warn where values of different units are about to be put into one array."""
    decoders = resolved.decoders
    found: dict[str, Target] = {}
    for target in resolved.targets:
        units = target.attributes.get("units")
        used = decoders.of(target.location, target.address).used
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


def decode_dataset(
    variables: dict[str, xr.Variable],
    attributes: dict[str, Any],
    unlimited: frozenset[str],
    options: DecodeOptions,
) -> xr.Dataset:
    """Decode ordinary variables by the CF conventions and add the reference variables."""
    # xarray's decoders take compounds of another byte order for bytes.
    untouched = {
        k: v
        for k, v in variables.items()
        if isinstance(v, ReferenceVariable) or v.dtype.kind == "V"
    }
    ordinary = {k: _stand_in(v) if k in untouched else v for k, v in variables.items()}
    objects = {k for k, v in ordinary.items() if _has_no_conventions(v)}
    values_only = objects | set(untouched)
    # Text that stays lazy has missing values, as text that is read has.
    lazy_text = {k for k in objects if (ordinary[k].dtype.metadata or {}).get("vlen") is str}
    with hold_back_objects():
        decoded, new_attributes, coord_names = xr.conventions.decode_cf_variables(
            ordinary,
            attributes,
            concat_characters=_except_for(values_only, options, "concat_characters", ordinary),
            mask_and_scale=_except_for(
                values_only - lazy_text, options, "mask_and_scale", ordinary
            ),
            decode_times=_except_for(values_only, options, "decode_times", ordinary),
            decode_coords=options.decode_coords,
            use_cftime=options.use_cftime,
            decode_timedelta=_except_for(values_only, options, "decode_timedelta", ordinary),
        )
    for name, new in decoded.items():
        if "source" in variables[name].encoding:  # which decoders of text leave out
            new.encoding.setdefault("source", variables[name].encoding["source"])
        new.encoding.pop("charset", None)
        if "charset" in variables[name].encoding:
            keep_charset(new, variables[name].encoding["charset"])
    for name, plain in untouched.items():
        _name_coordinates(plain, decoded[name])
    merged = {name: untouched.get(name, decoded.get(name)) for name in variables}
    data: dict[Hashable, xr.Variable] = {}
    coords: dict[Hashable, xr.Variable] = {}
    for name, variable in merged.items():
        if variable is not None:
            is_coord = name in coord_names or variable.dims == (name,)
            # Numbers decoded to objects are cftime's dates, which xarray itself can size.
            has_objects = variable.dtype.hasobject and variables[name].dtype.hasobject
            if has_objects and not isinstance(variable, ReferenceVariable):
                variable = ObjectVariable.of(variable)
            # xarray writes a variable without a name under one of its own.
            known = None if name == _NO_NAME else name
            (coords if is_coord else data)[known] = variable
    # Indexes are left to xarray, which makes them if the user wants them.
    dataset = xr.Dataset(data, xr.Coordinates(coords, indexes={}), new_attributes)
    dataset.encoding["unlimited_dims"] = set(unlimited)
    return dataset


_NO_NAME = "__values__"


def _stand_in(variable: xr.Variable) -> xr.Variable:
    """Return a variable of numbers, for what xarray does with names and attributes."""
    numbers = np.broadcast_to(np.int8(0), variable.shape)
    return xr.Variable(variable.dims, numbers, dict(variable.attrs))


def _name_coordinates(variable: xr.Variable, decoded: xr.Variable) -> None:
    """Move attributes that name coordinates to the encoding, as in a decoded variable."""
    for name in variable.attrs.keys() - decoded.attrs.keys():
        variable.encoding[name] = variable.attrs.pop(name)


def _has_no_conventions(variable: xr.Variable) -> bool:
    """Tell whether values are objects that CF says nothing about, such as sequences."""
    return variable.dtype.kind == "O" and variable.encoding.get("dtype") is not str


def _except_for(
    names: set[str], options: DecodeOptions, option: str, variables: Mapping[str, xr.Variable]
) -> Any:
    """Switch a decoder off for some variables."""
    if not names:
        return getattr(options, option)
    return {
        name: False if name in names else option_of(options, option, name) for name in variables
    }
