"""The file that tests of URLs read: an image, chunked and contiguous, and boxes in both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from strategies import write_references

SIDE, CHUNK, BOX, N = 1024, 64, 24, 60
# Two values that gzip does not make small: chunks of about 4 kB.
IMAGE = np.random.default_rng(0).integers(0, 60_000, (SIDE, SIDE), dtype="u2")
CORNERS = np.random.default_rng(1).integers(0, SIDE - BOX, (N, 2))
PATCHES = np.stack([IMAGE[y : y + BOX, x : x + BOX] for y, x in CORNERS])


def write_file(path: Path, image: np.ndarray = IMAGE, **options: Any) -> Path:
    with h5py.File(path, "w", **options) as file:
        data = file.create_dataset(
            "image", data=image, chunks=(CHUNK, CHUNK), compression="gzip", shuffle=True
        )
        file.create_dataset("flat", data=image)
        file["flat"].attrs["note"] = "contiguous"
        file["texts"] = ["one", "two", "three"]
        write_references(
            file, "rois", [data.regionref[y : y + BOX, x : x + BOX] for y, x in CORNERS]
        )
        write_references(
            file,
            "flat_rois",
            [file["flat"].regionref[y : y + BOX, x : x + BOX] for y, x in CORNERS],
        )
    return path
