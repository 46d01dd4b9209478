"""A file of objects with several names, what shows their names, and what may come before."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from strategies import write_references

import xref
from xref.cli.info import inspect_file
from xref.cli.main import main

FORMS: dict[str, dict[str, Any]] = {
    "symbol tables": {"libver": "earliest"},
    "link messages": {"libver": "latest"},
    "creation order": {"libver": "latest", "track_order": True},
    "user block": {"libver": "earliest", "userblock_size": 512},
}


def write_example(path: Path, **options: Any) -> None:
    """Write a file whose references lead to other groups, and to objects of many names."""
    with h5py.File(path, "w", **options) as file:
        value = file.create_dataset("data/deep/BT", data=np.arange(10, dtype="i2"))
        value.attrs["scale_factor"] = 0.5
        value.attrs["coordinates"] = "lat other_lat"
        scale = file.create_dataset("axes/time", data=np.arange(10.0) / 4)
        scale.make_scale("time")
        value.dims[0].attach_scale(scale)
        lat = file.create_dataset("data/deep/lat", data=np.arange(10) / 10)
        lat.dims[0].attach_scale(scale)
        file["data/deep/other_lat"] = lat  # the second name of one object
        alone = file.create_dataset("axes/alone", data=np.arange(4))
        alone.make_scale("its label")
        file["zz/BT too"] = value
        file["zz/time too"] = scale
        file["also"] = file["data/deep"]  # canonical paths lead through here
        file["a soft link"] = h5py.SoftLink("/data/deep/BT")
        file["data/deep/up"] = file["data"]  # a cycle
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/data")
        lost = file.create_group("lost")
        lost["self"] = lost  # so that it stays when no link from the root leads to it
        unnamed = lost.create_dataset("unnamed", data=[7, 8, 9])
        del file["lost"]
        refs = file.create_group("refs")
        everything = (slice(None),)
        write_references(refs, "regions", [value.regionref[:3], value.regionref[4:8]])
        write_references(refs, "mixed", [value.regionref[1:3], unnamed.regionref[everything]])
        write_references(refs, "scales", [scale.ref, alone.ref], dtype=h5py.ref_dtype)
        write_references(refs, "one scale", [alone.ref], dtype=h5py.ref_dtype)
        write_references(
            refs, "group", [file["data/deep"].ref, file["zz"].ref], dtype=h5py.ref_dtype
        )
        write_references(refs, "unnamed", [unnamed.ref], dtype=h5py.ref_dtype)
        file["zz/refs too"] = refs["regions"]
        file["zz"].attrs["points"] = value.ref


OPTIONS: dict[str, Any] = {"group": "refs", "mask_and_scale": {"BT": False}}


def texts(path: Path) -> dict[str, Any]:
    """Collect all that shows names or depends on them."""
    ds = xr.open_dataset(path, engine="h5ref", **OPTIONS)
    out: dict[str, Any] = {"dataset": str(ds), "html": _without_ids(ds._repr_html_())}
    for name, array in ds.items():
        out[f"{name}"] = str(array), repr(array.data), [str(e) for e in array.values]
        out[f"{name} pickled"] = str(pickle.loads(pickle.dumps(array)))
        out[f"{name} again"] = str(array), array.data._repr_inline_(80)
        table = array.h5ref.table()
        out[f"{name} table"] = [table[c].values.tolist() for c in ("path", "kind")]
        out[f"{name} paths"] = [e.path for e in array.values]
        for row in range(array.size):
            found = (
                array[row].h5ref.resolve() if name != "group" else array.values[row].resolve()
            )
            out[f"{name} {row}"] = described(found)
        if name in ("regions", "one scale", "unnamed"):
            out[f"{name} ragged"] = described(array.h5ref.resolve("ragged"))
        out[f"{name} items"] = [described(found) for _, found in array.h5ref.items()]
    with pytest.raises(ValueError, match="shapes") as failed:
        ds["regions"].h5ref.resolve()
    out["shapes"] = str(failed.value)
    nulls = xr.concat([ds["regions"], ds["regions"].shift({ds["regions"].dims[0]: 1})], "new")
    with pytest.raises(xref.NullReferenceError) as failed:
        nulls.h5ref.resolve()
    out["null"] = str(failed.value)
    out["element"] = ds["regions"].data.describe(1)
    out["summary"] = str(ds.h5ref.references)
    out["token"] = ds["regions"].data.__dask_tokenize__()[2:]
    ds.close()
    text = json.dumps(out, default=str, indent=1)
    return json.loads(text.replace(str(path), "FILE"))


def described(found: Any) -> Any:
    """Return name, dimensions, coordinates, attributes and values of a result."""
    if isinstance(found, xr.Dataset):
        order = list(map(str, found.variables)), sorted(map(str, found.coords))
        return [order, {str(k): described(v) for k, v in found.items()}]
    coords = {str(k): (v.dims, v.values.tolist()) for k, v in found.coords.items()}
    return [found.name, found.dims, coords, str(found.attrs), str(found.values.tolist())]


def _without_ids(html: str) -> str:
    """Drop the random identifiers of HTML elements."""
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", html)


def _open(group: str, **options: Any) -> Callable[[Path], object]:
    return lambda path: xr.open_dataset(path, engine="h5ref", group=group, **options).load()


def _resolve_all(path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref", group="refs") as ds:
        for name in ds:
            list(ds[name].h5ref.items())


def _table(path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref", group="zz") as ds:
        ds["refs too"].h5ref.table()


def _paths(path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref", group="refs") as ds:
        assert [r.path for name in ds for r in ds[name].values]


def _command(path: Path) -> None:
    main(["info", str(path)])


def _open_group_object(path: Path) -> None:
    with h5py.File(path) as file:
        xr.open_dataset(file["zz"], engine="h5ref").close()
        xr.open_dataset(file["also"], engine="h5ref").close()


HISTORIES: dict[str, Callable[[Path], object]] = {
    "group": _open("data/deep"),
    "hard link": _open("also"),
    "other name": _open("zz"),
    "around a cycle": _open("data/deep/up/deep"),
    "axes": _open("axes", decode_cf=False),
    "tree": lambda path: xr.open_datatree(path, engine="h5ref", external="none"),
    "groups": lambda path: xr.open_groups(path, engine="h5ref", group="zz"),
    "resolved": _resolve_all,
    "table": _table,
    "paths": _paths,
    "info": lambda path: inspect_file(path, "zz"),
    "command": _command,
    "h5py": _open_group_object,
    "all": lambda path: [h(path) for name, h in HISTORIES.items() if name != "all"],
}
