"""Many small files as one array: ``python benchmarks/manyfiles.py [--files 1000]``.

The time to open, resolve and read each file, for several limits of open file handles.
``again`` reads 24 of the files five times, as a computation over blocks
may. The last lines are the times to open one handle: they are the reason for keeping more
handles of h5py.
"""

import argparse
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import xarray as xr

from xref.storage.file_bytes import FileBytes
from xref.storage.open_files import close_files, locate_file, open_file

KEPT = (16, 64, 128, 512)  # of xarray's option; xref keeps five sixteenths
N_AGAIN = 24


def write(path: Path) -> None:
    data = np.arange(64 * 64, dtype="i4").reshape(64, 64)
    with h5py.File(path, "w") as file:
        target = file.create_dataset("movie", data=data, chunks=(32, 32), compression=1)
        rois = file.create_dataset("rois", (4,), dtype=h5py.regionref_dtype)
        for k in range(4):
            rois[k] = target.regionref[k : k + 8, k : k + 8]


def pick(ds: xr.Dataset) -> xr.Dataset:
    return ds[["rois"]].rename({ds["rois"].dims[0]: "roi"})


def lap(begin: float, n: int) -> str:
    return f"{(time.perf_counter() - begin) / n * 1e6:8.0f}"


def measure(paths: list[Path], kept: int) -> None:
    row = [f"{kept:6}"]
    with xr.set_options(file_cache_maxsize=kept):
        begin = time.perf_counter()
        ds = xr.open_mfdataset(
            paths, engine="h5ref", combine="nested", concat_dim="roi", preprocess=pick
        )
        row.append(lap(begin, len(paths)))
        begin = time.perf_counter()
        patches = ds["rois"].h5ref.resolve(chunks=None)
        row.append(lap(begin, len(paths)))
        begin = time.perf_counter()
        assert patches.values.any()
        row.append(lap(begin, len(paths)))
        some = ds["rois"][: 4 * N_AGAIN].h5ref
        begin = time.perf_counter()
        for _ in range(5):
            assert some.resolve(chunks=None).values.any()
        row.append(lap(begin, 5 * N_AGAIN))
        ds.close()
    close_files()
    print(*row)


def measure_handles(path: Path) -> None:
    location, n = locate_file(path), 200
    for name, action in (
        ("h5py", lambda: open_file(location)),
        ("descriptor", lambda: FileBytes(location).read_into(0, memoryview(bytearray(8)))),
    ):
        spent = 0.0
        for k in range(n):
            if k:
                location.held[0].drop()
            begin = time.perf_counter()
            action()
            spent += time.perf_counter() - begin
        print(f"{name}: {spent / n * 1e6:.0f} us to open and use")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "0.h5"))
        content = Path(folder, "0.h5").read_bytes()
        paths = [Path(folder, f"{k}.h5") for k in range(options.files)]
        for path in paths[1:]:
            path.write_bytes(content)
        print(f"us a file, {options.files} files")
        print("  kept     open  resolve     read    again")
        for kept in (*KEPT, *KEPT):
            measure(paths, kept)
        measure_handles(paths[0])


if __name__ == "__main__":
    main()
