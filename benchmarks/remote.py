"""Regions through HTTP on this machine: xref, h5py over fsspec, planned reads by hand.

    python benchmarks/remote.py [--latency 0.02] [--mbps 200] [--reps 5] [--n 200]
    python benchmarks/remote.py --sweep     # the constants and options that name this

A child process serves the file of W1; each request waits `latency` seconds and the time
of its bytes at `mbps` MB/s. "planned" reads the chunk index with h5py and then requests
all needed chunks at once, with fsspec's `cat_ranges`: a program written by
hand for regions whose places are known. xref is given the reference variable.
"""

import argparse
import json
import subprocess
import sys
import urllib.request
import zlib
from contextlib import contextmanager
from pathlib import Path

import fsspec
import h5py
import numpy as np
import xarray as xr
from common import add_data_argument, calm_laps, describe_machine, median, print_table, timed
from files import make_images

import xref
import xref.arrays.byte_ranges
import xref.storage.remote

SERVER = Path(__file__).parents[1] / "tests" / "support" / "server.py"
BOX, CHUNK = 32, 256


@contextmanager
def served(folder, latency, mbps):
    """Serve a folder from a child process; yields its address."""
    command = [sys.executable, str(SERVER), str(folder), str(latency), str(mbps)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(child.stdout.readline())}"
    finally:
        child.stdin.close()
        child.wait(10)


def stats(address):
    """Return requests and bytes since the last call."""
    with urllib.request.urlopen(f"{address}/stats") as answer:
        return json.load(answer)


def by_xref(url, corners):
    with xr.open_dataset(url, engine="h5ref") as ds:
        rois = ds["rois"]
        return rois.isel({rois.dims[0]: slice(len(corners))}).h5ref.resolve().values


def by_default(url, corners):
    """Loop over references, through the file that fsspec opens by default."""
    filesystem = fsspec.filesystem("http", skip_instance_cache=True)
    with filesystem.open(url) as opened, h5py.File(opened) as file:
        return np.stack([file["img"][ref] for ref in file["rois"][: len(corners)]])


def by_plan(url, corners):
    filesystem = fsspec.filesystem("http", skip_instance_cache=True)
    found = []
    with (
        filesystem.open(url, block_size=1 << 18, cache_type="blockcache") as opened,
        h5py.File(opened) as file,
    ):
        file["img"].id.chunk_iter(found.append)
    places = {tuple(k // CHUNK for k in c.chunk_offset): (c.byte_offset, c.size) for c in found}
    cells = sorted(
        {
            (cy, cx)
            for y, x in corners
            for cy in range(y // CHUNK, (y + BOX - 1) // CHUNK + 1)
            for cx in range(x // CHUNK, (x + BOX - 1) // CHUNK + 1)
        }
    )
    cells.sort(key=places.get)
    runs = []  # of chunks that touch in the file
    for cell in cells:
        start, nbytes = places[cell]
        if runs and runs[-1][1] == start:
            runs[-1][1] += nbytes
            runs[-1][2].append(cell)
        else:
            runs.append([start, start + nbytes, [cell]])
    starts, stops, _ = zip(*runs, strict=True)
    came = filesystem.cat_ranges([url] * len(runs), list(starts), list(stops))
    chunks = {}
    for (start, _, run), data in zip(runs, came, strict=True):
        for cell in run:
            at, nbytes = places[cell][0] - start, places[cell][1]
            stored = zlib.decompress(data[at : at + nbytes])
            low, high = np.frombuffer(stored, "u1").reshape(2, -1)
            chunks[cell] = (high.astype("u2") * 256 + low).reshape(CHUNK, CHUNK)
    out = np.empty((len(corners), BOX, BOX), "u2")
    for i, (y, x) in enumerate(corners):
        for cy in range(y // CHUNK, (y + BOX - 1) // CHUNK + 1):
            for cx in range(x // CHUNK, (x + BOX - 1) // CHUNK + 1):
                a, b = max(y, cy * CHUNK), min(y + BOX, (cy + 1) * CHUNK)
                c, d = max(x, cx * CHUNK), min(x + BOX, (cx + 1) * CHUNK)
                part = chunks[cy, cx][a - cy * CHUNK : b - cy * CHUNK]
                out[i, a - y : b - y, c - x : d - x] = part[:, c - cx * CHUNK : d - cx * CHUNK]
    return out


_turn = iter(range(10**6))


def measure(name, contestant, address, corners, want):
    """Time one contestant, on a URL that nobody has opened yet."""
    url = f"{address}/w1.h5?{next(_turn)}"
    stats(address)
    with timed() as lap:
        found = contestant(url, corners)
    assert (found == want).all(), name
    requests, nbytes = stats(address)
    return lap, requests, nbytes


def needed_nbytes(path, corners):
    """Return the stored bytes of the chunks that regions touch."""
    found = []
    with h5py.File(path) as file:
        file["img"].id.chunk_iter(found.append)
    size = {tuple(k // CHUNK for k in c.chunk_offset): c.size for c in found}
    ends = corners + BOX - 1
    touched = {
        cell
        for low, high in zip((corners // CHUNK).tolist(), (ends // CHUNK).tolist(), strict=True)
        for cell in ((y, x) for y in (low[0], high[0]) for x in (low[1], high[1]))
    }
    return sum(size[cell] for cell in touched)


def contest(address, corners, want, reps, slow):
    contestants = {"xref": by_xref, "planned": by_plan}
    if slow:
        contestants["h5py over fsspec's default file"] = by_default
    laps = {name: [] for name in contestants}
    counts = {}
    for rep in range(reps + 1):
        for name, contestant in contestants.items():
            if contestant is by_default and rep > slow:
                continue
            lap, *counts[name] = measure(name, contestant, address, corners, want)
            if rep:  # the first turn imports
                laps[name].append(lap)
    return laps, counts


def show(laps, counts, needed):
    ours = laps["xref"]
    rows = []
    for name, mine in laps.items():
        pairs = zip(mine, ours, strict=False)
        rows.append(
            {
                "what": name,
                "s": median(lap.wall for lap in mine),
                "/ xref": median(lap.wall / x.wall for lap, x in pairs),
                "requests": counts[name][0],
                "MB": counts[name][1] / 1e6,
                "/ needed": counts[name][1] / needed,
                "calm": f"{len(calm_laps(mine))} of {len(mine)}",
            }
        )
    print_table(rows)


def sweep(address, corners, want, reps):
    """Change one constant or option at a time."""
    places = {
        "HEAD_NBYTES": (xref.storage.remote, [1 << 16, 1 << 18, 1 << 20, 1 << 22]),
        "BLOCK_NBYTES": (xref.storage.remote, [1 << 12, 1 << 14, 1 << 16]),
        "AHEAD_NBYTES": (xref.storage.remote, [1 << 14, 1 << 17, 1 << 20]),
        "REQUEST_NBYTES": (xref.storage.remote, [1 << 18, 1 << 20, 1 << 22, 1 << 24]),
        "FETCH_NBYTES": (xref.arrays.byte_ranges, [2 << 20, 8 << 20, 32 << 20]),
        "remote_gap": (None, [0, 1 << 14, 1 << 16, 1 << 17, 1 << 18]),
        "remote_requests": (None, [8, 16, 32, 64, 100]),
    }
    for name, (module, values) in places.items():
        rows = []
        for value in values:
            laps = []
            for rep in range(reps + 1):
                with xref.set_options(**({} if module else {name: value})):
                    before = getattr(module, name, None)
                    if module:
                        setattr(module, name, value)
                    lap, requests, nbytes = measure(name, by_xref, address, corners, want)
                    if module:
                        setattr(module, name, before)
                if rep:
                    laps.append(lap)
            wall = median(lap.wall for lap in laps)
            rows.append({name: value, "s": wall, "requests": requests, "MB": nbytes / 1e6})
        print_table(rows)
        print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_argument(parser)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--mbps", type=float, default=200)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--slow", type=int, default=1, help="turns of the slow contestant")
    parser.add_argument("--sweep", action="store_true")
    options = parser.parse_args()
    folder = Path(options.data)
    if not (folder / "w1_truth.npz").exists():
        make_images(folder)
    corners = np.load(folder / "w1_truth.npz")["rois"][: options.n]
    with h5py.File(folder / "w1.h5") as file:
        want = np.stack([file["img"][y : y + BOX, x : x + BOX] for y, x in corners.tolist()])
    print(describe_machine())
    print(f"W1, {len(corners)} boxes, {options.latency * 1e3:g} ms a request\n")
    with served(folder, options.latency, options.mbps) as address:
        if options.sweep:
            sweep(address, corners, want, options.reps)
        else:
            laps, counts = contest(address, corners, want, options.reps, options.slow)
            show(laps, counts, needed_nbytes(folder / "w1.h5", corners))


if __name__ == "__main__":
    main()
