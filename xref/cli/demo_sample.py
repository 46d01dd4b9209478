"""The sample file of ``xref demo``: a movie of cells that drift and flash.

In: a path. Out: an HDF5 file. Its dataset ``cells`` holds the box around each cell in each
frame, null if the cell is out of sight; ``shapes`` holds regions of different kinds, and
``links`` references to objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5r, h5s

N_FRAMES, SIDE = 60, 512
N_CELLS = 48
BOX = 32  # pixels
CHUNKS = (4, 128, 128)

Floats = npt.NDArray[np.float64]


def write_sample(path: Path) -> None:
    """Write the movie and the references into it."""
    random = np.random.default_rng(7)
    centre = _tracks(random)
    movie = _movie(random, centre, _flashes(random))
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "movie", data=movie, chunks=CHUNKS, compression=1, shuffle=True
        )
        data.attrs.update(units="counts", long_name="fluorescence")
        pixels = np.arange(SIDE) * 0.5
        _write_scale(file, "time", np.arange(N_FRAMES) * 0.1, "s", data.dims[0])
        _write_scale(file, "y", pixels, "um", data.dims[1])
        _write_scale(file, "x", pixels, "um", data.dims[2])
        _write_cells(file, centre)
        _write_shapes(file)
        session = file.create_group("session")
        session.attrs["instrument"] = "made by xref demo"
        session["dark_frame"] = np.full((SIDE, SIDE), 100, dtype="u2")
        targets = [data, file["time"], file["y"], file["x"], session]
        links = file.create_dataset("links", (len(targets) + 1,), dtype=h5py.ref_dtype)
        for i, target in enumerate(targets):
            links[i] = target.ref  # the last element stays null


def _write_scale(
    file: h5py.File, name: str, values: npt.ArrayLike, units: str, *axes: Any
) -> None:
    file[name] = values
    file[name].make_scale(name)
    if units:
        file[name].attrs["units"] = units
    for axis in axes:
        axis.attach_scale(file[name])


def _tracks(random: np.random.Generator) -> Floats:
    """Return the centre of each cell in each frame, pixels; shape (2, cell, time)."""
    begin = random.uniform(BOX, SIDE - BOX, (2, N_CELLS, 1))
    speed = random.uniform(-3.5, 3.5, (2, N_CELLS, 1))
    frames = np.arange(N_FRAMES)
    wobble = 4 * np.sin(frames / 7 + random.uniform(0, 6.3, (2, N_CELLS, 1)))
    centre: Floats = begin + speed * frames + wobble
    return centre


def _flashes(random: np.random.Generator) -> Floats:
    """Return the brightness of each cell in each frame: sudden rises that fade."""
    light = (random.random((N_CELLS, N_FRAMES)) < 0.04).astype(float)
    light[:, 0] = random.random(N_CELLS) < 0.3
    for t in range(1, N_FRAMES):
        light[:, t] += 0.85 * light[:, t - 1]
    return 120 + 500 * light


def _movie(
    random: np.random.Generator, centre: Floats, brightness: Floats
) -> npt.NDArray[np.uint16]:
    """Return frames of Gaussian spots on noise."""
    # Noise of few distinct values compresses as well as a camera's, and fast.
    movie = random.integers(90, 122, (N_FRAMES, SIDE, SIDE), dtype=np.uint8).astype(np.float32)
    width = random.uniform(3.5, 6.5, (2, N_CELLS, 1))
    for t, frame in enumerate(movie):
        distance = (np.arange(SIDE) - centre[:, :, t, None]) / width
        along_y, along_x = np.exp(-(distance**2) / 2)
        frame += (brightness[:, t] * along_y.T) @ along_x
    return movie.astype(np.uint16)


def _write_cells(file: h5py.File, centre: Floats) -> None:
    movie = file["movie"]
    cells = file.create_dataset("cells", (N_CELLS, N_FRAMES), dtype=h5py.regionref_dtype)
    _write_scale(file, "cell", np.arange(N_CELLS), "", cells.dims[0])
    cells.dims[1].attach_scale(file["time"])
    cells.attrs["long_name"] = "box around each cell in each frame"
    corner = np.rint(centre - BOX / 2).astype(int)
    is_seen = ((corner >= 0) & (corner <= SIDE - BOX)).all(axis=0)
    boxes = np.full(cells.shape, h5py.RegionReference(), dtype=object)
    for cell, t in np.argwhere(is_seen):
        y, x = corner[:, cell, t]
        boxes[cell, t] = movie.regionref[t : t + 1, y : y + BOX, x : x + BOX]
    cells[...] = boxes


def _write_shapes(file: h5py.File) -> None:
    movie = file["movie"]
    labels = ("box", "wide box", "every 8th pixel", "bright pixels", "box with a hole", "null")
    shapes = file.create_dataset("shapes", (len(labels),), dtype=h5py.regionref_dtype)
    shapes[0] = movie.regionref[5:15, 100:140, 100:140]
    shapes[1] = movie.regionref[30, 200:210, :]
    shapes[2] = movie.regionref[0, ::8, ::8]
    bright = np.argwhere(movie[30] > np.quantile(movie[30], 0.999))
    space = h5s.create_simple(movie.shape)
    space.select_elements(np.insert(bright, 0, 30, axis=1))
    shapes[3] = h5r.create(movie.id, b".", h5r.DATASET_REGION, space)
    space.select_hyperslab((30, 300, 300), (1, 60, 60))
    space.select_hyperslab((30, 320, 320), (1, 20, 20), op=h5s.SELECT_NOTB)
    shapes[4] = h5r.create(movie.id, b".", h5r.DATASET_REGION, space)
    _write_scale(file, "label", np.array(labels, dtype=h5py.string_dtype()), "", shapes.dims[0])
