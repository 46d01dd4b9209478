"""Tables of references back into references.

In: what ``.h5ref.table()`` gave, perhaps from a Zarr store or a netCDF file since. Out: a
reference variable.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xref.columns import IntArray, row_offsets
from xref.decode import References
from xref.errors import CorruptFileError, DanglingReferenceError
from xref.h5file import FileLocation, locate_source
from xref.h5objects import open_member
from xref.inputs import find_source
from xref.references import ReferenceArray
from xref.regions import KIND_NAMES, Kind, RegionTable, empty_table
from xref.selection import UNLIMITED
from xref.variables import ReferenceVariable, reference_dataarray


def from_table(
    table: xr.Dataset, filename: Any = None, *, storage_options: dict[str, Any] | None = None
) -> xr.DataArray:
    """Make a reference variable from a table of references.

    Parameters
    ----------
    table : xarray.Dataset
        From ``.h5ref.table()``, or read from where it was stored. Needed are ``path``, or
        ``address`` where targets have no path, ``kind`` and ``filename``; of regions also
        ``selection``, ``start``, ``stop`` and, if they are there, ``stride``, ``count``,
        ``block``, ``item_count``, ``item_start`` and ``item_stop``.
    filename : str, os.PathLike or URL, optional
        The file that targets are in, if it is another one by now.
    storage_options : dict, optional
        For the file system of a URL.

    Returns
    -------
    xarray.DataArray
        References by the paths of their targets.

    Raises
    ------
    DanglingReferenceError
        If there is nothing at the path of a target.
    CorruptFileError
        If the columns do not fit together.
    """
    kind = _texts(table, "kind")
    dims, shape = table["kind"].dims, table["kind"].shape
    live = ~np.isin(kind, ["null", "dangling"])
    names = _texts(table, "filename")
    if filename is not None:
        names = np.full(len(kind), "", dtype=object)
    files: list[FileLocation] = []
    file, address = np.zeros(len(kind), dtype=np.int64), np.zeros(len(kind), dtype=np.uint64)
    for name in dict.fromkeys(names[live].tolist()):
        source, _ = find_source(
            name if filename is None else filename, storage_options=storage_options
        )
        rows = np.flatnonzero(live & (names == name))
        file[rows] = len(files)
        files.append(locate_source(source))
        address[rows] = _addresses(files[-1], table, rows)
    regions = _regions(table, kind) if "selection" in table else None
    columns = References(files=tuple(files), file=file, address=address, regions=regions)
    columns = _with_attributes(columns, table)
    noun = "object" if regions is None else "region"
    if columns.attribute is not None or (
        regions is not None and (regions.kind == Kind.OBJECT).any()
    ):
        noun = "std"
    references = ReferenceArray(shape, kind=noun, columns=columns)
    coords = {k: v for k, v in table.coords.items() if set(v.dims) <= set(dims)}
    return reference_dataarray(ReferenceVariable(dims, references), coords, "references")


def _texts(table: xr.Dataset, name: str) -> npt.NDArray[np.object_]:
    if name not in table:
        raise CorruptFileError(f"the table has no column {name!r}; it has {list(table)}")
    values = np.empty(table[name].size, dtype=object)
    values[:] = [str(value) for value in table[name].values.reshape(-1).tolist()]
    return values


def _addresses(
    location: FileLocation, table: xr.Dataset, rows: npt.NDArray[np.intp]
) -> npt.NDArray[np.uint64]:
    """Return addresses by path; of targets without one, those that the table has."""
    paths = _texts(table, "path")[rows]
    found = table["address"].values.reshape(-1)[rows].astype(np.uint64)
    known: dict[str, int] = {}
    for path in dict.fromkeys(paths.tolist()):
        if not path:
            continue
        try:
            known[path] = open_member(location, path).address
        except (KeyError, OSError) as error:
            raise DanglingReferenceError(
                f"{location.filename} has nothing at {path!r}, which "
                f"{int((paths == path).sum())} references of the table point at: {error}"
            ) from error
    named = np.flatnonzero(paths != "")
    found[named] = [known[path] for path in paths[named].tolist()]
    return found


def _with_attributes(columns: References, table: xr.Dataset) -> References:
    if "attribute" not in table:
        return columns
    texts = _texts(table, "attribute")
    names = tuple(dict.fromkeys(t for t in texts.tolist() if t))
    number = {name: i for i, name in enumerate(names)} | {"": -1}
    return References(
        files=columns.files,
        file=columns.file,
        address=columns.address,
        regions=columns.regions,
        attribute=np.array([number[t] for t in texts.tolist()], dtype=np.int64),
        names=names,
    )


def _regions(table: xr.Dataset, kind: npt.NDArray[np.object_]) -> RegionTable:
    n = len(kind)
    selection = _texts(table, "selection")
    number = {str(name): i for i, name in enumerate(KIND_NAMES)}
    unknown = sorted(set(selection.tolist()) - set(number))
    if unknown:
        raise CorruptFileError(f"the table has selections {unknown}; known are {list(number)}")
    kinds = np.array([number[s] for s in selection.tolist()], dtype=np.uint8)
    start, stop = (_numbers(table, name, n) for name in ("start", "stop"))
    ndim = start.shape[1]
    is_slab = kinds == Kind.HYPERSLAB
    stride, count = np.ones_like(start), np.ones_like(start)
    block = np.where(is_slab[:, None], stop - start, 1)
    if "block" in table:
        stride, count, block = (_numbers(table, c, n) for c in ("stride", "count", "block"))
    rank = np.full(n, ndim)
    if "rank" in table:
        rank = table["rank"].values.reshape(-1).astype(np.int64)
    _check_slabs(is_slab, rank, start, stride, count, block)
    plain = empty_table(n, ndim).replace(
        kind=kinds,
        rank=np.where(np.isin(kinds, [Kind.POINTS, Kind.HYPERSLAB, Kind.BLOCKS]), rank, 0),
        start=np.where(is_slab[:, None], start, 0),
        stride=np.where(is_slab[:, None], stride, 1),
        count=np.where(is_slab[:, None], count, 1),
        block=np.where(is_slab[:, None], block, 1),
    )
    return _with_lists(plain, table) if "item_count" in table else plain


def _numbers(table: xr.Dataset, name: str, n: int) -> IntArray:
    if name not in table:
        raise CorruptFileError(f"the table has no column {name!r}; it has {list(table)}")
    values = table[name].values
    return values.reshape(n, values.shape[-1]).astype(np.int64)


def _check_slabs(
    rows: npt.NDArray[np.bool_],
    rank: IntArray,
    start: IntArray,
    stride: IntArray,
    count: IntArray,
    block: IntArray,
) -> None:
    """Refuse numbers that are no hyperslab."""
    used = rows[:, None] & (np.arange(start.shape[1]) < rank[:, None])
    wrong = (start < 0) | (stride < 1)
    wrong |= ((count < 1) & (count != UNLIMITED)) | ((block < 1) & (block != UNLIMITED))
    wrong |= (count > 1) & (stride < block)
    bad = np.flatnonzero((wrong & used).any(axis=1))
    if len(bad):
        row = int(bad[0])
        raise CorruptFileError(
            f"row {row} of the table is no hyperslab: start {start[row].tolist()}, stride "
            f"{stride[row].tolist()}, count {count[row].tolist()}, block {block[row].tolist()}"
        )


def _with_lists(regions: RegionTable, table: xr.Dataset) -> RegionTable:
    """Add the points and blocks of rows that have lists of them."""
    n = len(regions)
    size = table["item_count"].values.reshape(-1).astype(np.int64)
    low, high = (table[c].values.astype(np.int64) for c in ("item_start", "item_stop"))
    cut = row_offsets(size)
    if (size < 0).any() or int(cut[-1]) != len(low) or low.shape != high.shape:
        raise CorruptFileError(
            f"the table has {len(low)} items, and its rows count {int(size.sum())} of them"
        )
    if (low < 0).any() or (high <= low).any():
        raise CorruptFileError("the table has an item whose start is past its end")
    is_points, is_blocks = regions.kind == Kind.POINTS, regions.kind == Kind.BLOCKS
    of_points = np.repeat(is_points, size)
    first = np.zeros(n, dtype=np.int64)
    for mask in (is_points, is_blocks):
        first[mask] = row_offsets(size[mask])[:-1]
    return regions.replace(
        first=first,
        size=np.where(is_points | is_blocks, size, 0),
        points=low[of_points],
        block_start=low[~of_points],
        block_stop=high[~of_points],
    )
