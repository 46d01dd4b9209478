"""Other chunk shapes, dtypes, filters, region sizes and orders than those of W1 to W5.

There is one file for each chunk shape and filter; the dtypes alternate (`files.py`). Regions
are one element, 32 x 32 and 2,000 x 2,000, in random order and sorted by place. xref is
compared with the ``dataset[reference]`` loop (stopped early and extrapolated), the whole array
and a gather, and the limit. The tables give the median and the worst case for each property.
"""

from functools import partial

import h5py
import hdf5plugin  # noqa: F401, gives h5py its filters
import numpy as np
import xarray as xr
from common import median, table_lines
from contestants import reader_of
from files import VARY_SHAPE, VARY_SIZES, by_place, vary_cases, vary_start
from limit import run_boxes
from turns import Outcome, extrapolated, new_name, ratios, seconds, short, take_turns

BUDGET = 0.2
CODECS = {"none": "none", "lzf": "lzf", "zstd": "zstd"}  # gzip: deflate
SETTLED_NBYTES = 1 << 27
PATIENCE = 0.1
MOST_REPS = 3
WORST = 5
"""Cases that are listed one by one."""


def run_xref(path, references):
    """Open under a new name, resolve and compute."""
    with new_name(path) as link, xr.open_dataset(link, engine="h5ref") as dataset:
        return Outcome(dataset[references].h5ref.resolve(coords=False).data.compute())


def run_whole(path, start, side):
    """Read everything with h5py and gather."""
    with h5py.File(path) as file:
        image = file["img"][...]
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side))
    return Outcome(windows[tuple(start.T)])


def run_limit(path, start, shape, filters, threads):
    """Run the limit with the codec of the filter."""
    codec = CODECS.get(filters, "deflate")
    return Outcome(run_boxes(path, "img", start, shape, codec, threads)[1])


def run_loop(path, references, n):
    """Read region by region with h5py."""
    return extrapolated(reader_of(path, "img", references), range(n), BUDGET, keep=0)


def check(expected, name, outcome):
    """Compare with h5py's values; the loop is h5py's own answer."""
    if name != "loop":
        shape = expected.values.shape
        np.testing.assert_array_equal(outcome.values.reshape(shape), expected.values, name)


def measure_case(path, chunks, filters, kind, order, extent, reps, threads):
    """Return the laps of one file, kind of regions and order."""
    start, shape = vary_start(kind, extent)
    references = kind
    if order == "sorted":
        start = start[by_place(start, chunks)]
        references = f"{kind}_sorted"
    whole = partial(run_whole, path, start, int(shape[0, 0]))
    contestants = {
        "xref": partial(run_xref, path, references),
        "limit": partial(run_limit, path, start, shape, filters, threads),
        "whole": whole,
        "loop": partial(run_loop, path, references, len(start)),
    }
    return take_turns(
        contestants, reps, partial(check, whole()), SETTLED_NBYTES, PATIENCE, path
    )


def measure(data, reps, threads, _budget, extent=VARY_SHAPE):
    """Return laps by case; a case is chunks, dtype, filter, size and order."""
    found, reps = [], min(reps, MOST_REPS)
    for filename, chunks, dtype, filters in vary_cases():
        run_xref(data / filename, "element")  # imports and threads
        for kind in VARY_SIZES:
            for order in ("random", "sorted"):
                laps = measure_case(
                    data / filename, chunks, filters, kind, order, extent, reps, threads
                )
                case = {
                    "chunks": "x".join(map(str, chunks)),
                    "dtype": dtype,
                    "filter": filters,
                    "regions": kind,
                    "order": order,
                }
                found.append({"case": case, "laps": laps})
    return found


def figures(laps):
    """Return the medians of one case's ratios."""
    return {
        "limit": median(ratios(laps, "xref", "limit")),
        "whole": median(ratios(laps, "whole", "xref")),
        "loop": median(ratios(laps, "loop", "xref")),
        "ms": seconds(laps["xref"]) * 1000,
        "limit ms": seconds(laps["limit"]) * 1000,
    }


def render(section):
    """Return the section as lines of Markdown."""
    cases = [{**one["case"], **figures(one["laps"])} for one in section]
    rows = []
    for name in section[0]["case"]:
        for value in dict.fromkeys(case[name] for case in cases):
            those = [case for case in cases if case[name] == value]
            rows.append({"property": name, "is": value} | summarise(those))
    columns = ["property", "is", *summarise(cases)]
    worst = []
    for figure, sign in (("limit", -1), ("loop", 1), ("whole", 1)):
        worst += sorted(cases, key=lambda case: sign * case[figure])[:WORST]
    worst = [dict(items) for items in dict.fromkeys(tuple(case.items()) for case in worst)]
    return [
        "### Variations",
        "",
        "Median of the cases with a property (worst of them). 200 elements, 200 boxes "
        "of 32 x 32 and three of 2,000 x 2,000: small enough that opening the file counts.",
        "",
        *table_lines([*rows, {"property": "all", **summarise(cases)}], columns),
        "The worst cases by each column:",
        "",
        *table_lines([listed(case) for case in worst]),
    ]


def summarise(cases):
    """Return median and worst of each figure."""
    limit, whole, loop = ([case[name] for case in cases] for name in ("limit", "whole", "loop"))
    return {
        "cases": len(cases),
        "xref / limit": f"{short(median(limit))} ({short(max(limit))})",
        "whole / xref": f"{short(median(whole))} ({short(min(whole))})",
        "loop / xref": f"{short(median(loop))} ({short(min(loop))})",
    }


def listed(case):
    """Return one case as a row."""
    row = {name: case[name] for name in ("chunks", "dtype", "filter", "regions", "order")}
    return row | {
        "xref, ms": short(case["ms"]),
        "limit, ms": short(case["limit ms"]),
        "xref / limit": short(case["limit"]),
        "whole / xref": short(case["whole"]),
        "loop / xref": short(case["loop"]),
    }
