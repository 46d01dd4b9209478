"""A file of images, coordinates and references to parts of them, for many tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import oracle
from strategies import nothing, write_references

N_Y, N_X = 40, 50
DATA = np.random.default_rng(0).normal(size=(N_Y, N_X)).astype("f4")
DATA[::7, ::5] = np.nan
WHOLE = np.random.default_rng(1).integers(-100, 100, (N_Y, N_X), dtype="i2")
TIMES = np.random.default_rng(2).integers(0, 10_000, (N_Y, N_X))
PACKED = np.random.default_rng(3).integers(0, 200, (N_Y, N_X), dtype="u1")
STARTS = [(0, 0), (3, 10), (36, 41), (7, 7), (7, 7), (20, 0)]


def write_rois(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["y"] = np.arange(N_Y) * 10.0
        file["x"] = np.arange(N_X)
        file["area"] = np.arange(N_Y * N_X, dtype="i4").reshape(N_Y, N_X)
        stored = {"data": DATA, "whole": WHOLE, "times": TIMES, "packed": PACKED}
        for name, values in stored.items():
            file.create_dataset(name, data=values, chunks=(16, 16), compression="gzip")
        for dim in "yx":
            file[dim].make_scale()
        for name in (*stored, "area"):
            for axis, dim in enumerate("yx"):
                file[name].dims[axis].attach_scale(file[dim])
        file["data"].attrs["long_name"] = "some data"
        file["data"].attrs["coordinates"] = "area"
        file["times"].attrs["units"] = "hours since 2000-01-01"
        file["packed"].attrs.update(scale_factor=0.5, add_offset=10.0)
        file["packed"].attrs["_FillValue"] = np.uint8(7)
        for name in stored:
            item = file[name]
            boxes = [item.regionref[y : y + 4, x : x + 6] for y, x in STARTS]
            _store(file, f"{name}_rois", boxes, (2, 3))
            _store(file, f"{name}_rows", [item.regionref[:, x : x + 2] for x in (1, 5, 30)])
            ragged = [item.regionref[: k + 1, k : 2 * k + 1] for k in range(5)]
            _store(file, f"{name}_ragged", ragged)
            mask = np.zeros((N_Y, N_X), dtype=bool)
            mask[2:9, 3] = mask[30, 40:] = True
            _store(file, f"{name}_points", [item.regionref[mask], item.regionref[mask[::-1]]])
            _store(file, f"{name}_nulls", [boxes[0], None, boxes[2], None])
        none = nothing(file["data"])
        _store(file, "empties", [none, file["data"].regionref[:2, :3], none])
        two = [file["data"].regionref[:3, :3], file["area"].regionref[4:7, 1:4]]
        _store(file, "targets", two)
        for name in ("a", "b", "c"):
            file[f"parts/{name}"] = np.arange(6.0).reshape(2, 3) + ord(name)
        file["parts/long"] = np.arange(5.0)
        file["parts/text"] = ["x", "yy"]
        file["type"] = np.dtype("f4")
        file.create_group("more")["v"] = np.arange(3)

        def objects(name: str, *targets: str | None) -> None:
            refs = [target and file[target].ref for target in targets]
            write_references(file, name, refs, dtype=h5py.ref_dtype)

        objects("equal", "parts/a", "parts/b", "parts/c")
        objects("unequal", "parts/a", "parts/long")
        objects("gaps", "parts/a", None, "parts/b")
        objects("groups", "parts", "more")
        objects("mixed", "parts/a", "more", "type", None)
        objects("texts", "parts/a", "parts/text")


def _store(
    file: h5py.File, name: str, regions: list[Any], shape: tuple[int, ...] | None = None
) -> None:
    write_references(file, name, regions)
    if shape:
        write_references(file, f"{name}_grid", regions, shape)


def regions_of(path: Path, name: str) -> list[np.ndarray | None]:
    """Read every region with h5py, None for null references."""
    with h5py.File(path) as file:
        return [
            oracle.answer(file[reference], reference).array if reference else None
            for reference in file[name][...].ravel()
        ]
