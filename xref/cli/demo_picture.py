"""The picture of ``xref demo``, drawn with matplotlib.

In: the opened sample, the patches of all cells and their mean. Out: a PNG file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xref.cli.demo_sample import BOX

FRAME = 30
SHOWN_CELLS, SHOWN_FRAMES = 8, 15
GAP = 2  # pixels between two patches


def draw(ds: xr.Dataset, patches: xr.DataArray, mean: xr.DataArray, picture: Path) -> None:
    """Draw the regions on a frame, the patches of some cells, and their brightness."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    in_sight = np.flatnonzero(mean.notnull().all("time").values)
    most_varying = np.argsort(-mean[in_sight].std("time").values)[:SHOWN_CELLS]
    cells = np.sort(in_sight[most_varying])
    figure = Figure(figsize=(14, 7.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplot_mosaic(
        "AB;AC", width_ratios=(1, 1.12), height_ratios=(1.55, 1)
    )
    _draw_frame(panels["A"], ds, cells)
    _draw_patches(panels["B"], patches[cells])
    _draw_traces(panels["C"], mean[cells], float(ds["time"][FRAME]))
    for axes in (panels["B"], panels["C"]):
        axes.tick_params(axis="y", length=0)
        for k, label in enumerate(axes.get_yticklabels()):
            label.set(color=f"C{k}", weight="bold")
    figure.savefig(picture, dpi=110)


def _draw_frame(axes: Any, ds: xr.Dataset, cells: Any) -> None:
    from matplotlib.patches import Rectangle

    frame = ds["movie"][FRAME]
    axes.imshow(frame.values, cmap="gray", vmin=80, vmax=np.quantile(frame, 0.999))
    table = ds["cells"][:, FRAME].h5ref.table()
    for cell in np.flatnonzero((table["kind"] != "null").values):
        y, x = table["start"].values[cell, 1:]
        is_shown = cell in cells
        color = f"C{np.searchsorted(cells, cell)}" if is_shown else "0.6"
        axes.add_patch(
            Rectangle((x, y), BOX, BOX, fill=False, ec=color, lw=2.0 if is_shown else 0.7)
        )
        if is_shown:
            axes.text(x + 1, y + 1, str(cell), color=color, weight="bold", va="top")
    axes.set(xlabel="x (pixels)", ylabel="y (pixels)")
    axes.set_title(f"movie at {float(frame['time']):.1f} s: what ds.cells[:, {FRAME}] selects")


def _draw_patches(axes: Any, patches: xr.DataArray) -> None:
    frames = np.linspace(0, patches.sizes["time"] - 1, SHOWN_FRAMES).round().astype(int)
    values = patches.values.astype(float)[:, frames, 0]
    padded = np.pad(values, [(0, 0), (0, 0), (0, GAP), (0, GAP)], constant_values=np.nan)
    mosaic = padded.swapaxes(1, 2).reshape(len(values) * (BOX + GAP), -1)
    axes.imshow(mosaic, cmap="magma", vmin=80, aspect="auto")
    times = [f"{t:.1f}" for t in patches["time"].values[frames]]
    axes.set_xticks(np.arange(len(frames)) * (BOX + GAP) + BOX / 2, times, fontsize=8)
    axes.set_yticks(np.arange(len(values)) * (BOX + GAP) + BOX / 2, patches["cell"].values)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="time (s)", title="patches of eight cells: ds.cells.h5ref.resolve()")


def _draw_traces(axes: Any, mean: xr.DataArray, time: float) -> None:
    traces = mean.values
    bases = -0.45 * (traces.max() - traces.min()) * np.arange(len(traces))
    for k, (trace, base) in enumerate(zip(traces, bases, strict=True)):
        line = base + trace - trace.min()
        axes.fill_between(mean["time"], base, line, color=f"C{k}", alpha=0.2)
        axes.plot(mean["time"], line, color=f"C{k}", lw=1.5)
    axes.axvline(time, color="0.6", lw=1, ls="--")
    axes.set_yticks(bases, mean["cell"].values)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set(xlabel="time (s)", xlim=(0, float(mean["time"][-1])))
    axes.set_title("their brightness: ds.cells.h5ref.mean()")
