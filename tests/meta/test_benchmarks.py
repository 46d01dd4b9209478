"""The benchmarks import, and a tiny run of one section gives its tables."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))

pytestmark = [
    pytest.mark.skipif(not NAMES, reason="the source distribution has no benchmarks"),
    pytest.mark.skipif(sys.platform != "linux", reason="they read /proc"),
]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a benchmark by its short name, which is forgotten afterwards."""
    pytest.importorskip("hdf5plugin")
    monkeypatch.syspath_prepend(str(FOLDER))
    before = {name: sys.modules.pop(name, None) for name in NAMES}
    yield importlib.import_module
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_imports(load: Callable[[str], Any], name: str) -> None:
    assert load(name).__doc__


@pytest.mark.slow
def test_variations_are_measured_and_shown(
    load: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("imagecodecs")
    files, variations = load("files"), load("variations")
    monkeypatch.setattr(files, "VARY_CHUNKS", ((8, 8), (16, 32)))
    for module in (files, variations):
        monkeypatch.setattr(module, "VARY_SIZES", {"element": (1, 5), "large": (40, 2)})
    monkeypatch.setattr(variations, "PATIENCE", 0)
    monkeypatch.setattr(variations, "BUDGET", 0.01)
    monkeypatch.setattr(variations, "SETTLED_NBYTES", 0)
    extent = (64, 96)
    files.make_variations(tmp_path, extent)
    section = variations.measure(tmp_path, 1, 1, None, extent)
    assert len(section) == 2 * 5 * 2 * 2  # chunk shapes, filters, kinds of regions, orders
    assert all(set(one["laps"]) == {"xref", "limit", "whole", "loop"} for one in section)
    lines = variations.render(section)
    assert any(line.startswith("| all |  | 40 |") for line in lines)


def test_wrong_values_stop_a_benchmark(load: Callable[[str], Any]) -> None:
    turns = load("turns")

    def check(name: str, outcome: Any) -> None:
        assert outcome.values == 1, name

    contestants = {"right": lambda: turns.Outcome(1), "wrong": lambda: turns.Outcome(2)}
    with pytest.raises(AssertionError, match="wrong"):
        turns.take_turns(contestants, 1, check, patience=0)


def test_tables_replace_what_the_page_shows(
    load: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = load("speed")
    page = tmp_path / "page.md"
    page.write_text(speed.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(speed, "PAGE", page)
    speed.write_docs(["| first |"])
    speed.write_docs(["| second |"])
    text = page.read_text(encoding="utf-8")
    assert "| first |" not in text
    assert text.count("| second |") == text.count(speed.BEGIN) == text.count(speed.END) == 1


def test_batches_are_extrapolated_without_what_each_costs_anyway(
    load: Callable[[str], Any],
) -> None:
    turns = load("turns")
    none = turns.Lap()
    earlier, last = (8, turns.Lap(wall=1.8)), (32, turns.Lap(wall=4.2))  # 1 s and 0.1 s each
    assert turns.continued(none, earlier, last, 100).wall == pytest.approx(11)
