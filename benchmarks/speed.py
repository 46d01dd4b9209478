"""All speed claims of xref in one report: ``python benchmarks/speed.py``.

Makes the files that are missing, lets xref, other packages and the limit take turns, and
prints ratios with their spread as Markdown. ``--work`` selects some of these sections:

W1 to W7 (W1.base, W1s, W3.lz4, W6.latest, W7.names ... as `workloads.WHAT` says)
    Regions, references and object references: `contestants.py`.
W8
    Opening files of many variables: `opening.py`.
blocks
    W1 cut into Dask blocks: `blocks.py`.
million
    One region of a million, and the graph of the million: `million.py`.
threads
    Two threads against one: `threads.py`.
memory
    The peak memory above the start: `memory.py`.
variations
    Chunk shapes, dtypes, filters, region sizes and orders: `variations.py`.

``--json FILE`` stores all laps by section. Sections that are already in the file and are not
measured again stay, and appear in the tables too, so that one section can be repeated.
``--write-docs`` puts the tables between the markers in docs/performance.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import blocks
import dask
import memory
import million
import opening
import threads
import variations
from common import Truth, add_data_argument, describe_machine, median, table_lines
from contestants import contestants, notes, resolve_two, run_xref
from files import make_files
from turns import calm_turns, contest_rows, ratios, seconds, short, spread, take_turns
from workloads import DECODES, OBJECTS, STACKS, WHAT, Workload

import xref

EXTRA = {
    "W8": opening,
    "blocks": blocks,
    "million": million,
    "threads": threads,
    "memory": memory,
    "variations": variations,
}
WORKS = (*WHAT, *EXTRA)
PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"

ASKED = {
    "W1": {"limit": 1.3, "loop": 120, "h5py, whole": 3, "hidefix, whole": 1},
    "W1.base": {"limit": 1.3},
    "W1s": {"limit": 1.5, "loop": 3},
    "W2": {"limit": 1.3, "loop": 100},
    "W3.lz4": {"limit": 1.3, "loop": 25},
    "W3.zstd": {"limit": 1.3, "loop": 40},
    "W3.lzf": {"limit": 1.3, "loop": 50},
    "W4": {"limit": 1.3, "loop": 40},
    "W5": {"limit": 1.5, "loop": 9},
    "W6": {"loop": 30},
    "W6.latest": {"loop": 30},
}
"""At most so many times the limit, at least so many times as fast as the others."""


def measure_workload(name, arguments):
    """Return the laps of one workload's contestants."""
    if name == "W1.base" and not arguments.child:
        return measure_in_child(name, arguments)
    work = Workload(name, Truth(Path(arguments.data)))
    if name in STACKS:
        run_xref(work, partial(resolve_two, work))
    return take_turns(
        contestants(work, arguments.threads, arguments.budget),
        arguments.reps,
        work.check,
        work.settled_nbytes,
        path=work.path,
    )


def measure_in_child(name, arguments):
    """Measure in a process that cannot import imagecodecs."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "laps.json"
        options = {
            "--data": arguments.data,
            "--work": name,
            "--reps": arguments.reps,
            "--threads": arguments.threads,
            "--budget": arguments.budget,
            "--json": out,
        }
        command = [sys.executable, __file__, "--child"]
        command += [str(word) for option in options.items() for word in option]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())["sections"][name]


def measure(name, arguments):
    """Measure one section; return plain values for JSON."""
    if name in WHAT:
        return measure_workload(name, arguments)
    return EXTRA[name].measure(
        Path(arguments.data), arguments.reps, arguments.threads, arguments.budget
    )


def summary_rows(sections):
    """Return a row for each stack: every contestant's time over xref's."""
    rows = []
    for name in STACKS:
        if name not in sections:
            continue
        laps, asked = sections[name], ASKED.get(name, {})
        limit = ratios(laps, "xref", "limit")
        row = {
            "workload": name,
            "xref, s": short(seconds(laps["xref"])),
            "xref / limit": spread(limit),
            "CPU": spread(ratios(laps, "xref", "limit", "cpu")),
        }
        for who in laps:
            if who != "limit" and not who.startswith("xref"):
                row[who] = spread(ratios(laps, who, "xref"))
        row["asked"] = ", ".join(f"{who} {n}" for who, n in asked.items())
        row["missed"] = ", ".join(missed(laps, asked))
        row["calm"] = calm_turns(laps["xref"])
        rows.append(row)
    return rows


def missed(laps, asked):
    """Yield the goals that the medians do not reach."""
    for who, n in asked.items():
        if who not in laps:
            continue
        own, other = ("xref", "limit") if who == "limit" else (who, "xref")
        middle = median(ratios(laps, own, other))
        if middle > n if who == "limit" else middle < n:
            yield who


def render(report):
    """Return the report as lines of Markdown."""
    sections = report["sections"]
    lines = [report["machine"] + ".", ""]
    stacks = [name for name in STACKS if name in sections]
    if stacks:
        lines += [
            "### Regions",
            "",
            "How many times xref's time the others take: median (least to most) of the "
            "turns. `xref / limit` the other way round; `CPU` is that in processor time.",
            "",
            *table_lines(summary_rows(sections)),
            *(f"- {note}" for note in report["notes"]),
            "",
        ]
    for title, names in (("References", DECODES), ("Object references", OBJECTS)):
        rows = [
            row
            for name in names
            if name in sections
            for row in contest_rows(sections[name], label=name)
        ]
        if rows:
            lines += [f"### {title}", "", *table_lines(rows)]
            lines += missed_lines(names, sections)
    for name, module in EXTRA.items():
        if name in sections:
            lines += module.render(sections[name])
    if stacks:
        rows = [row for name in stacks for row in contest_rows(sections[name], label=name)]
        lines += ["### All contestants", "", *table_lines(rows)]
    while not lines[-1]:
        lines.pop()
    return lines


def missed_lines(names, sections):
    lines = [
        f"{name}: {ASKED[name]['loop']} times the loop is asked for and missed."
        for name in names
        if name in sections and name in ASKED and list(missed(sections[name], ASKED[name]))
    ]
    return [*lines, ""] if lines else []


def write_docs(lines):
    """Replace the text between the markers of the page."""
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    table = "\n".join(lines)
    PAGE.write_text(f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_argument(parser)
    parser.add_argument("--work", default=",".join(WORKS), help=f"of {', '.join(WORKS)}")
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=2, help="seconds of each peer's loop")
    parser.add_argument("--json", type=Path, help="keep all laps in this file")
    parser.add_argument("--markdown", type=Path, help="write the tables into this file")
    parser.add_argument("--write-docs", action="store_true", help=f"and into {PAGE.name}")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = [name for name in arguments.work.split(",") if name]
    unknown = [name for name in names if name not in WORKS]
    if unknown:
        parser.error(f"no work {', '.join(unknown)}; there are {', '.join(WORKS)}")
    if arguments.child:
        sys.modules["imagecodecs"] = None  # importing it raises ImportError from now on
    make_files(Path(arguments.data), sys.stderr)
    report = {"sections": {}}
    if arguments.json and arguments.json.exists():
        report = json.loads(arguments.json.read_text())
    if names:
        counts = f"{arguments.threads} threads, {arguments.reps} repetitions"
        report["machine"] = f"{describe_machine()}; {counts}"
        report["notes"] = notes()
    with (
        xref.set_options(threads=arguments.threads),
        dask.config.set(num_workers=arguments.threads),
    ):
        for name in names:
            report["sections"][name] = measure(name, arguments)
            print(f"{name} done", file=sys.stderr, flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(report, indent=1))
    lines = render(report)
    print("\n".join(lines))
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if arguments.write_docs:
        write_docs(lines)


if __name__ == "__main__":
    main()
