"""``xref demo``: make a sample file, resolve its references, compare, draw.

In: a folder. Out: lines of text and ``demo.png``.

The sample is a movie of cells that drift and flash. ``cells`` holds the box around
each cell in each frame, null where the cell is out of sight. ``shapes`` holds
regions of different shapes and kinds, ``links`` references to objects.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.diagnostics.progress import ProgressBar
from h5py import h5r, h5s

from xref.options import thread_count
from xref.storage import count_reads

N_FRAMES, SIDE = 60, 512
N_CELLS = 48
BOX = 32
CHUNKS = (4, 128, 128)
WIDTH = 88  # columns of text

Floats = npt.NDArray[np.float64]


def run_demo(folder: Path, *, keep: bool, say: Callable[[str], None]) -> None:
    """Run the demonstration.

    Parameters
    ----------
    folder : pathlib.Path
        Where ``demo.png`` goes, and ``demo.h5`` if it is kept.
    keep : bool
        Keep the sample file.
    say : callable
        Takes each line of text.

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
        size = path.stat().st_size / 1e6
        if keep:
            path = path.replace(folder / "demo.h5")
        _title(say, f"A sample file: {size:.0f} MB in {time.perf_counter() - began:.1f} s")
        _show(path, folder, say)
        if keep:
            say(f"The sample file is {path}; try: xref info {path}")
        else:
            say("With --keep the sample file stays, for `xref info`.")


def _show(path: Path, folder: Path, say: Callable[[str], None]) -> None:
    with xr.open_dataset(path, engine="h5ref", chunks={}) as ds:
        say('ds = xr.open_dataset("demo.h5", engine="h5ref", chunks={})')
        say("")
        _say_all(say, ds)
        cells = ds["cells"]

        _title(say, "Where the references point: ds.cells.h5ref.table()")
        _table(say, cells)

        _title(say, "All boxes at once, on Dask")
        say('patches = ds.cells.h5ref.resolve(on_null="fill", chunks={"time": 12})')
        patches = cells.h5ref.resolve(on_null="fill", chunks={"time": 12})
        say(f"{dict(patches.sizes)}, {patches.dtype}, {patches.data.npartitions} blocks")
        bar = ProgressBar(width=40)  # type: ignore[no-untyped-call]  # dask says no types
        with count_reads() as reads, bar:
            patches = patches.compute()
        live = int(cells.astype(bool).sum())
        say(
            f"{reads.chunks_decoded} chunks were decompressed for {live} regions; "
            f"the movie has {ds['movie'].data.npartitions}"
        )

        _title(say, "Statistics of each region, without keeping the regions")
        mean = cells.h5ref.mean(on_null="fill").compute()
        std = cells.h5ref.std(on_null="fill").compute()
        _statistics(say, mean, std)

        _title(say, 'Regions of any shape: ds.shapes.h5ref.resolve(layout="ragged")')
        _ragged(say, ds["shapes"])

        _title(say, "References to objects: ds.links")
        _links(say, ds["links"])

    _title(say, "Speed: every live reference of cells, from opening the file to the values")
    _race(say, path)

    picture = folder / "demo.png"
    _title(say, "A picture")
    try:
        with xr.open_dataset(path, engine="h5ref") as ds:
            draw(ds, patches, mean, picture)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        say('Not drawn: matplotlib is missing; pip install "xref[plots]" brings it.')
    else:
        say(f"Saved {picture}")


# --- the sample --------------------------------------------------------------------


def write_sample(path: Path) -> None:
    """Write the movie and the references into it."""
    random = np.random.default_rng(7)
    y, x = _tracks(random)
    brightness = _flashes(random)
    movie = _movie(random, y, x, brightness)
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "movie",
            data=movie,
            chunks=CHUNKS,
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )
        data.attrs["units"] = "counts"
        data.attrs["long_name"] = "fluorescence"
        scales = {
            "time": (np.arange(N_FRAMES) * 0.1, "s"),
            "y": (np.arange(SIDE) * 0.5, "um"),
            "x": (np.arange(SIDE) * 0.5, "um"),
            "cell": (np.arange(N_CELLS), ""),
        }
        for name, (values, units) in scales.items():
            file[name] = values
            file[name].make_scale(name)
            if units:
                file[name].attrs["units"] = units
        for axis, name in enumerate(("time", "y", "x")):
            data.dims[axis].attach_scale(file[name])
        _write_cells(file, y, x)
        _write_shapes(file)
        session = file.create_group("session")
        session.attrs["instrument"] = "made by xref demo"
        session["dark_frame"] = np.full((SIDE, SIDE), 100, dtype="u2")
        targets = [data, file["time"], file["y"], file["x"], session]
        links = file.create_dataset("links", (len(targets) + 1,), dtype=h5py.ref_dtype)
        for i, target in enumerate(targets):
            links[i] = target.ref  # the last one stays null


def _tracks(random: np.random.Generator) -> tuple[Floats, Floats]:
    """Return the centre of each cell in each frame, pixels; shape (cell, time)."""
    begin = random.uniform(BOX, SIDE - BOX, (2, N_CELLS, 1))
    speed = random.uniform(-3.5, 3.5, (2, N_CELLS, 1))
    frames = np.arange(N_FRAMES)
    wobble = 4 * np.sin(frames / 7 + random.uniform(0, 6.3, (2, N_CELLS, 1)))
    y, x = begin + speed * frames + wobble
    return y, x


def _flashes(random: np.random.Generator) -> Floats:
    """Return the brightness of each cell in each frame: sudden rises that fade."""
    starts = random.random((N_CELLS, N_FRAMES)) < 0.04
    starts[:, 0] = random.random(N_CELLS) < 0.3
    light = np.zeros((N_CELLS, N_FRAMES))
    level = np.zeros(N_CELLS)
    for t in range(N_FRAMES):
        level = 0.85 * level + starts[:, t]
        light[:, t] = level
    return 120 + 500 * light


def _movie(
    random: np.random.Generator, y: Floats, x: Floats, brightness: Floats
) -> npt.NDArray[np.uint16]:
    # Few distinct values of noise: it compresses like a camera's, and fast.
    movie = random.integers(90, 122, (N_FRAMES, SIDE, SIDE), dtype=np.uint8).astype(np.float32)
    width = random.uniform(3.5, 6.5, (2, N_CELLS))
    for cell in range(N_CELLS):
        for t in range(N_FRAMES):
            rows = _near(y[cell, t])
            columns = _near(x[cell, t])
            if not (len(rows) and len(columns)):
                continue
            profile_y = np.exp(-(((rows - y[cell, t]) / width[0, cell]) ** 2) / 2)
            profile_x = np.exp(-(((columns - x[cell, t]) / width[1, cell]) ** 2) / 2)
            light = brightness[cell, t] * np.outer(profile_y, profile_x)
            movie[t, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += light
    return movie.astype(np.uint16)


def _near(centre: float) -> npt.NDArray[np.int64]:
    begin, end = int(centre) - BOX, int(centre) + BOX
    return np.arange(max(begin, 0), max(min(end, SIDE), 0))


def _write_cells(file: h5py.File, y: Floats, x: Floats) -> None:
    movie = file["movie"]
    cells = file.create_dataset("cells", (N_CELLS, N_FRAMES), dtype=h5py.regionref_dtype)
    cells.dims[0].attach_scale(file["cell"])
    cells.dims[1].attach_scale(file["time"])
    cells.attrs["long_name"] = "box around each cell in each frame"
    top, left = (np.rint(c - BOX / 2).astype(int) for c in (y, x))
    seen = (top >= 0) & (top <= SIDE - BOX) & (left >= 0) & (left <= SIDE - BOX)
    boxes = np.empty(cells.shape, dtype=object)
    for cell, t in np.ndindex(*cells.shape):
        a, b = top[cell, t], left[cell, t]
        boxes[cell, t] = (
            movie.regionref[t : t + 1, a : a + BOX, b : b + BOX]
            if seen[cell, t]
            else h5py.RegionReference()
        )
    cells[...] = boxes


def _write_shapes(file: h5py.File) -> None:
    movie = file["movie"]
    kinds = ("box", "wide box", "every 8th pixel", "bright pixels", "box with a hole", "null")
    shapes = file.create_dataset("shapes", (len(kinds),), dtype=h5py.regionref_dtype)
    shapes[0] = movie.regionref[5:15, 100:140, 100:140]
    shapes[1] = movie.regionref[30, 200:210, :]
    shapes[2] = movie.regionref[0, ::8, ::8]
    frame = movie[30]
    bright = np.argwhere(frame > np.quantile(frame, 0.999))
    space = h5s.create_simple(movie.shape)
    space.select_elements(np.insert(bright, 0, 30, axis=1))
    shapes[3] = h5r.create(movie.id, b".", h5r.DATASET_REGION, space)
    space = h5s.create_simple(movie.shape)
    space.select_hyperslab((30, 300, 300), (1, 60, 60))
    space.select_hyperslab((30, 320, 320), (1, 20, 20), op=h5s.SELECT_NOTB)
    shapes[4] = h5r.create(movie.id, b".", h5r.DATASET_REGION, space)
    file["label"] = np.array(kinds, dtype=h5py.string_dtype())
    file["label"].make_scale("label")
    shapes.dims[0].attach_scale(file["label"])


# --- what is printed ---------------------------------------------------------------


def _title(say: Callable[[str], None], text: str) -> None:
    say("")
    say(text)
    say("-" * min(len(text), WIDTH))


def _say_all(say: Callable[[str], None], value: Any) -> None:
    for line in str(value).splitlines():
        say(line)


def _table(say: Callable[[str], None], cells: xr.DataArray) -> None:
    table = cells.h5ref.table()
    say(
        f"{'cell':>4} {'frame':>5}  {'path':<8} {'selection':<10} {'npoints':>7}  start -> stop"
    )
    null = (table["kind"] == "null").values
    gone = np.argwhere(null)[:1].tolist()
    for cell, t in [[0, 0], [0, 1], [N_CELLS - 1, 0], *gone]:
        row = table[{"cell": cell, "time": t}]
        if null[cell, t]:
            say(f"{cell:>4} {t:>5}  {'-':<8} {'null':<10} {0:>7}  -")
            continue
        say(
            f"{cell:>4} {t:>5}  {row['path'].item():<8} {row['selection'].item():<10} "
            f"{row['npoints'].item():>7}  {tuple(row['start'].values.tolist())} -> "
            f"{tuple(row['stop'].values.tolist())}"
        )
    say(f"... {null.size} references in all, {int(null.sum())} of them null")


def _statistics(say: Callable[[str], None], mean: xr.DataArray, std: xr.DataArray) -> None:
    seen = mean.notnull().sum("time")
    say("mean, std = ds.cells.h5ref.mean(on_null='fill'), ds.cells.h5ref.std(on_null='fill')")
    say(f"{'cell':>4}  {'frames':>6}  {'mean':>6}  {'std':>6}  brightest at")
    for cell in range(4):
        trace = mean[cell]
        brightest = trace["time"][trace.argmax("time")].item()
        say(
            f"{cell:>4}  {seen[cell].item():>6}  {trace.mean().item():>6.1f}  "
            f"{std[cell].mean().item():>6.1f}  {brightest:.1f} s"
        )


def _ragged(say: Callable[[str], None], shapes: xr.DataArray) -> None:
    ragged = shapes.h5ref.resolve(layout="ragged", on_null="drop")
    table = shapes.h5ref.table()
    means = shapes.h5ref.mean(on_null="drop").values
    say(f"{'label':<16} {'selection':<10} {'row_size':>8}  {'row_shape':<14} {'mean':>6}")
    for i, name in enumerate(ragged["label"].values):
        size = int(ragged["row_size"][i])
        kind, ndim = table["selection"].values[i], int(table["ndim"][i])
        sides = tuple(ragged["row_shape"].values[i, :ndim].tolist())
        say(f"{name:<16} {kind:<10} {size:>8}  {sides!s:<14} {means[i]:>6.1f}")
    values = ragged["movie"]
    say(f"all values: {values.sizes['sample']} along 'sample', {values.dtype}, lazy")


def _links(say: Callable[[str], None], links: xr.DataArray) -> None:
    for i, target in links.h5ref.items():
        what = "null"
        if isinstance(target, xr.Dataset):
            what = f"Dataset of {', '.join(map(str, target.data_vars))}"
        elif target is not None:
            units = target.attrs.get("units", "no units")
            what = f"DataArray {dict(target.sizes)}, {target.dtype}, {units}"
        path = links.values[i].path or "-"
        say(f"{i}  {path:<9} {what}")


def _race(say: Callable[[str], None], path: Path) -> None:
    with _timed() as ours, xr.open_dataset(path, engine="h5ref") as ds:
        patches = ds["cells"].h5ref.resolve(on_null="fill", fill_value=0).values
    with _timed() as theirs, h5py.File(path, "r") as file:
        movie, references = file["movie"], file["cells"][...]
        expected = np.zeros(patches.shape, dtype=movie.dtype)
        for place in np.ndindex(*references.shape):
            if references[place]:
                expected[place] = movie[references[place]]
    n = sum(map(bool, references.flat))
    equal = "equal values" if np.array_equal(patches, expected) else "DIFFERENT VALUES"
    loop = "h5py: for ref in cells: movie[ref]"
    for name, (seconds,) in ((loop, theirs), ("xref: ds.cells.h5ref.resolve()", ours)):
        say(f"{name:<36} {seconds:7.3f} s   {seconds / n * 1e6:6.0f} us a region")
    say(f"{theirs[0] / ours[0]:.1f} times as fast on {thread_count()} threads; {equal}")


@contextmanager
def _timed() -> Iterator[list[float]]:
    out: list[float] = []
    began = time.perf_counter()
    yield out
    out.append(time.perf_counter() - began)


# --- the picture -------------------------------------------------------------------


def draw(ds: xr.Dataset, patches: xr.DataArray, mean: xr.DataArray, picture: Path) -> None:
    """Draw the regions on a frame, the patches of some cells, and their brightness."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    at, shown = 30, 8
    seen = np.flatnonzero(mean.notnull().all("time").values)
    liveliest = np.argsort(-mean[seen].std("time").values)[:shown]
    chosen = np.sort(seen[liveliest])
    frames = np.linspace(0, N_FRAMES - 1, 15).round().astype(int)
    colours = [f"C{i}" for i in range(len(chosen))]

    figure = Figure(figsize=(14, 7.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subfigures(1, 2, width_ratios=(1, 1.12))
    left, right = panels
    time_at = float(ds["time"][at])

    frame = ds["movie"][at].values
    axes = left.subplots()
    low, high = 80, np.quantile(frame, 0.999)
    axes.imshow(frame, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    table = ds["cells"][:, at].h5ref.table()
    for cell in np.flatnonzero((table["kind"] != "null").values):
        y, x = table["start"].values[cell, 1:]
        mine = cell in chosen
        colour = colours[int(np.searchsorted(chosen, cell))] if mine else "0.6"
        width = 2.0 if mine else 0.7
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), BOX, BOX, fill=False, ec=colour, lw=width))
        if mine:
            axes.text(
                x + 1, y + 1, str(cell), color=colour, weight="bold", fontsize=9, va="top"
            )
    axes.set(xlabel="x (pixels)", ylabel="y (pixels)")
    axes.set_title(f"movie at {time_at:.1f} s: what ds.cells[:, {at}] selects")

    top, bottom = right.subfigures(2, 1, height_ratios=(1.55, 1))
    strips = top.subplots(
        len(chosen), 1, sharex=True, gridspec_kw={"hspace": 0.05}, squeeze=False
    )[:, 0]
    values = patches.values.reshape(N_CELLS, N_FRAMES, BOX, BOX)
    for axes, cell, colour in zip(strips, chosen, colours, strict=True):
        # Side by side, with a thin gap.
        strip = np.full((BOX, len(frames) * (BOX + 2)), np.nan)
        for k, t in enumerate(frames):
            strip[:, k * (BOX + 2) : k * (BOX + 2) + BOX] = values[cell, t]
        axes.imshow(strip, cmap="magma", vmin=low, vmax=high, interpolation="nearest")
        axes.set_yticks([])
        axes.tick_params(bottom=False)
        axes.set_ylabel(
            str(cell), color=colour, weight="bold", rotation=0, ha="right", va="center"
        )
        axes.spines[:].set_visible(False)
    centres = np.arange(len(frames)) * (BOX + 2) + BOX / 2
    strips[-1].set_xticks(centres, [f"{float(ds['time'][t]):.1f}" for t in frames], fontsize=8)
    strips[-1].set_xlabel("time (s)")
    top.suptitle("patches of eight cells: ds.cells.h5ref.resolve()", fontsize=12)

    axes = bottom.subplots()
    traces = mean[chosen].values
    step = 0.45 * (traces.max() - traces.min())
    for k, (trace, colour) in enumerate(zip(traces, colours, strict=True)):
        base = -k * step
        axes.fill_between(
            mean["time"], base, base + trace - trace.min(), color=colour, alpha=0.2
        )
        axes.plot(mean["time"], base + trace - trace.min(), color=colour, lw=1.5)
    axes.axvline(time_at, color="0.6", lw=1, ls="--")
    axes.set_yticks([-k * step for k in range(len(chosen))], [str(c) for c in chosen])
    for label, colour in zip(axes.get_yticklabels(), colours, strict=True):
        label.set(color=colour, weight="bold")
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="time (s)", xlim=(0, float(mean["time"][-1])))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title("their brightness: ds.cells.h5ref.mean()")
    figure.savefig(picture, dpi=110)
