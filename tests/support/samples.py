"""Small files that several tests open, and how they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from strategies import write_references

DATA = np.arange(600, dtype="f4").reshape(20, 30)


def open_h5(path: Path, **options: Any) -> xr.Dataset:
    return xr.open_dataset(path, engine="h5ref", **options)


def add_regions(file: h5py.Group, name: str, shape: tuple[int, ...], **options: Any) -> None:
    """Write ``data`` into the root group, and regions of it that lie on its diagonal."""
    data = file.file.require_dataset("data", DATA.shape, "f4")
    data[...] = DATA
    regions = [data.regionref[k : k + 2, k : k + 3] for k in range(int(np.prod(shape)))]
    write_references(file, name, regions, shape, **options)


def nested(file: h5py.File) -> None:
    file["top"] = [1, 2, 3]
    add_regions(file, "a/b/refs", (4,))
    file["a/b/värde"] = 5.0
    file["a"].attrs["title"] = "group a"
    file["a/#refs#/x"] = [1]


def scaled(file: h5py.File) -> None:
    file["y"] = np.arange(20) * 10.0
    file["x"] = np.arange(30) - 3
    file["y"].make_scale()
    file["x"].make_scale("long name")
    add_regions(file, "refs", (4,))
    for name in ("data", "group/inner"):
        item = file.require_dataset(name, (20, 30), "f4")
        item.dims[0].attach_scale(file["y"])
        item.dims[1].attach_scale(file["x"])
    file["plain"] = np.zeros((20, 7))
    file["square"] = np.zeros((7, 7))
    file["group/same"] = np.zeros(20)
