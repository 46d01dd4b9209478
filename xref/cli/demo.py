"""``xref demo``: write a sample file, resolve its references, compare with h5py, draw.

In: a folder. Out: lines of text and ``demo.png``.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import xarray as xr
from dask.diagnostics.progress import ProgressBar

from xref.cli.demo_picture import draw
from xref.cli.demo_sample import N_CELLS, write_sample
from xref.options import thread_count
from xref.storage import count_reads

WIDTH = 88  # columns of text


def run_demo(folder: Path, *, keep: bool, say: Callable[[str], None]) -> None:
    """Run the demonstration.

    Parameters
    ----------
    folder : pathlib.Path
        Folder of ``demo.png``, and of ``demo.h5`` if it is kept.
    keep : bool
        Keep the sample file.
    say : callable
        Prints a line of text.

    Raises
    ------
    OSError
        If the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".demo-", dir=folder) as scratch,
        xr.set_options(display_width=WIDTH),  # type: ignore[no-untyped-call]  # xarray's gap
    ):
        path = Path(scratch) / "demo.h5"
        began = time.perf_counter()
        write_sample(path)
        nbytes = path.stat().st_size
        if keep:
            path = path.replace(folder / "demo.h5")
        seconds = time.perf_counter() - began
        _title(say, f"A sample file: {nbytes / 1e6:.0f} MB in {seconds:.1f} s")
        patches, mean = _show_references(path, say)
        _title(say, "Speed: every live reference of cells, from opening the file to the values")
        _compare_with_h5py(path, say)
        _title(say, "A picture")
        picture = folder / "demo.png"
        try:
            with xr.open_dataset(path, engine="h5ref") as ds:
                draw(ds, patches, mean, picture)
        except ModuleNotFoundError as error:
            if error.name != "matplotlib":
                raise
            say('Not drawn: matplotlib is missing; pip install "xref[plots]" brings it.')
        else:
            say(f"Saved {picture}")
        if keep:
            say(f"The sample file is {path}; try: xref info {path}")
        else:
            say("With --keep the sample file stays, for `xref info`.")


def _show_references(
    path: Path, say: Callable[[str], None]
) -> tuple[xr.DataArray, xr.DataArray]:
    """Show tables of the references and of their values; return patches and means."""
    with xr.open_dataset(path, engine="h5ref", chunks={}) as ds:
        cells = ds["cells"]
        say('ds = xr.open_dataset("demo.h5", engine="h5ref", chunks={})\n')
        say(str(ds))
        _title(say, "Where the references point: ds.cells.h5ref.table()")
        _say_table(say, cells)
        _title(say, "All boxes at once, on Dask")
        say('patches = ds.cells.h5ref.resolve(on_null="fill", chunks={"time": 12})')
        patches = cells.h5ref.resolve(on_null="fill", chunks={"time": 12})
        say(f"{dict(patches.sizes)}, {patches.dtype}, {patches.data.npartitions} blocks")
        bar = ProgressBar(width=40)  # type: ignore[no-untyped-call]  # dask says no types
        with count_reads() as reads, bar:
            patches = patches.compute()
        say(
            f"{reads.chunks_decoded} chunks were decompressed for "
            f"{int(cells.astype(bool).sum())} regions; "
            f"the movie has {ds['movie'].data.npartitions}"
        )
        _title(say, "Statistics of each region, without keeping the regions")
        mean = cells.h5ref.mean(on_null="fill").compute()
        _say_statistics(say, mean, cells.h5ref.std(on_null="fill").compute())
        _title(say, 'Regions of any shape: ds.shapes.h5ref.resolve(layout="ragged")')
        _say_ragged(say, ds["shapes"])
        _title(say, "References to objects: ds.links")
        _say_links(say, ds["links"])
    return patches, mean


def _title(say: Callable[[str], None], text: str) -> None:
    say(f"\n{text}\n{'-' * min(len(text), WIDTH)}")


def _say_table(say: Callable[[str], None], cells: xr.DataArray) -> None:
    row = "{:>4} {:>5}  {:<8} {:<10} {:>7}  {}".format
    say(row("cell", "frame", "path", "selection", "npoints", "start -> stop"))
    table = cells.h5ref.table()
    is_null = (table["kind"] == "null").values
    first_null = np.argwhere(is_null)[:1].tolist()
    for cell, t in [[0, 0], [0, 1], [N_CELLS - 1, 0], *first_null]:
        values = table[{"cell": cell, "time": t}]
        box = " -> ".join(str(tuple(values[key].values.tolist())) for key in ("start", "stop"))
        texts = [values[key].item() for key in ("path", "selection", "npoints")]
        say(row(cell, t, *(("-", "null", 0, "-") if is_null[cell, t] else (*texts, box))))
    say(f"... {is_null.size} references in all, {int(is_null.sum())} of them null")


def _say_statistics(say: Callable[[str], None], mean: xr.DataArray, std: xr.DataArray) -> None:
    say("mean, std = ds.cells.h5ref.mean(on_null='fill'), ds.cells.h5ref.std(on_null='fill')")
    row = "{:>4}  {:>6}  {:>6}  {:>6}  {}".format
    say(row("cell", "frames", "mean", "std", "brightest at"))
    for cell in range(4):
        trace = mean[cell]
        means = [f"{values.mean().item():.1f}" for values in (trace, std[cell])]
        brightest = trace["time"][trace.argmax("time")].item()
        say(row(cell, trace.notnull().sum().item(), *means, f"{brightest:.1f} s"))


def _say_ragged(say: Callable[[str], None], shapes: xr.DataArray) -> None:
    ragged = shapes.h5ref.resolve(layout="ragged", on_null="drop")
    table = shapes.h5ref.table()
    means = shapes.h5ref.mean(on_null="drop").values
    row = "{:<16} {:<10} {:>8}  {:<14} {:>6}".format
    say(row("label", "selection", "row_size", "row_shape", "mean"))
    for i, label in enumerate(ragged["label"].values):
        shape = tuple(ragged["row_shape"].values[i, : int(table["ndim"][i])].tolist())
        size, selection = int(ragged["row_size"][i]), table["selection"].values[i]
        say(row(label, selection, size, str(shape), f"{means[i]:.1f}"))
    values = ragged["movie"]
    say(f"all values: {values.sizes['sample']} along 'sample', {values.dtype}, lazy")


def _say_links(say: Callable[[str], None], links: xr.DataArray) -> None:
    for i, target in links.h5ref.items():
        text = "null"
        if isinstance(target, xr.Dataset):
            text = f"Dataset of {', '.join(map(str, target.data_vars))}"
        elif target is not None:
            units = target.attrs.get("units", "no units")
            text = f"DataArray {dict(target.sizes)}, {target.dtype}, {units}"
        say(f"{i}  {links.values[i].path or '-':<9} {text}")


def _compare_with_h5py(path: Path, say: Callable[[str], None]) -> None:
    with _timed() as xref_time, xr.open_dataset(path, engine="h5ref") as ds:
        patches = ds["cells"].h5ref.resolve(on_null="fill", fill_value=0).values
    with _timed() as h5py_time, h5py.File(path, "r") as file:
        movie, references = file["movie"], file["cells"][...]
        expected = np.zeros(patches.shape, dtype=movie.dtype)
        for index in np.ndindex(*references.shape):
            if references[index]:
                expected[index] = movie[references[index]]
    n = sum(map(bool, references.flat))
    loop = "h5py: for ref in cells: movie[ref]"
    for name, (seconds,) in ((loop, h5py_time), ("xref: ds.cells.h5ref.resolve()", xref_time)):
        say(f"{name:<36} {seconds:7.3f} s   {seconds / n * 1e6:6.0f} us a region")
    equal = "equal values" if np.array_equal(patches, expected) else "DIFFERENT VALUES"
    say(f"{h5py_time[0] / xref_time[0]:.1f} times as fast on {thread_count()} threads; {equal}")


@contextmanager
def _timed() -> Iterator[list[float]]:
    """Append the seconds that the block takes to the list."""
    seconds: list[float] = []
    began = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - began)
