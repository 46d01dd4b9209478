"""Mappings of virtual datasets through h5py.

In: a virtual dataset. Out: `VirtualMapping` values.
"""

from __future__ import annotations

import numpy as np
from h5py import h5s

from xref import hdf5
from xref.errors import CorruptFileError, UnsupportedError, XrefError
from xref.objects.objects import decode_name, open_dataset
from xref.objects.stored_object import StoredObject, cached_by_object
from xref.selections import row_runs


@cached_by_object(maxsize=64)
def virtual_mappings(stored: StoredObject) -> tuple[hdf5.VirtualMapping, ...]:
    """Return the mappings of a virtual dataset to its sources."""
    properties = open_dataset(stored).id.get_create_plist()
    try:
        return tuple(
            hdf5.VirtualMapping(
                decode_name(properties.get_virtual_filename(i)),
                decode_name(properties.get_virtual_dsetname(i)),
                _mapped_selection(properties.get_virtual_vspace(i), stored),
                _mapped_selection(properties.get_virtual_srcspace(i), stored),
            )
            for i in range(properties.get_virtual_count())
        )
    except (OSError, RuntimeError, ValueError, TypeError, UnicodeError) as error:
        if isinstance(error, XrefError):
            raise
        raise CorruptFileError(
            f"{stored} has a mapping that HDF5 cannot read: {error}"
        ) from error


def _mapped_selection(space: h5s.SpaceID, where: StoredObject) -> hdf5.MappedSelection:
    match space.get_select_type():
        case h5s.SEL_ALL:
            return hdf5.AllElements()
        case h5s.SEL_HYPERSLABS if space.is_regular_hyperslab():
            axes = zip(*space.get_regular_hyperslab(), strict=True)
            sides = (hdf5.virtual_axis(a, s, n, b, where) for a, s, n, b in axes)
            return hdf5.RegularHyperslab(tuple(sides))
        case h5s.SEL_HYPERSLABS:
            blocks = np.array(space.get_select_hyper_blocklist(), dtype=np.int64)
            start, length = row_runs(blocks[:, 0], blocks[:, 1] + 1)
            return hdf5.ElementRuns(start=start, length=length)
        case h5s.SEL_NONE:
            ndim = space.get_simple_extent_ndims()
            return hdf5.RegularHyperslab((hdf5.Axis(0, 1, 1, 0),) * ndim)
    raise UnsupportedError(f"{where} maps selections of a type that HDF5 does not define")
