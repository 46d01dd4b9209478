"""CI and the contributors' guide use the recipes of noxfile.py, and name files that exist."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
GUIDE = REPOSITORY / "CONTRIBUTING.md"
WORKFLOW = REPOSITORY / ".github" / "workflows" / "ci.yml"
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CHANGELOG.md",
    GUIDE,
    *sorted((REPOSITORY / "docs").glob("*.md")),
]


def read(*parts: str) -> str:
    return REPOSITORY.joinpath(*parts).read_text(encoding="utf-8")


def recipes() -> dict[str, list[str]]:
    """Return the sessions of noxfile.py by name, with the Pythons that each one names."""
    found = {}
    tree = ast.parse(read("noxfile.py"))
    pythons = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PYTHONS"
    )
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            call = decorator if isinstance(decorator, ast.Call) else None
            assert ast.unparse(call.func if call else decorator) == "nox.session"
            options = {word.arg: word.value for word in call.keywords} if call else {}
            name = ast.literal_eval(options["name"]) if "name" in options else node.name
            given = ast.unparse(options["python"]) if "python" in options else ""
            found[name] = {"PYTHONS": pythons, "PYTHONS[0]": pythons[:1], "": []}[given]
    return found


def jobs() -> Iterator[dict[str, Any]]:
    for job in yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"].values():
        yield from job["strategy"]["matrix"]["include"]


def script_recipes() -> list[str]:
    lines = re.findall(r"^ *recipes ([a-z][a-z -]+)$", read(".ci", "run"), re.M)
    return [name for line in lines for name in line.split()]


def test_recipes_cover_the_day() -> None:
    needed = {"test", "test-fast", "oldest", "lint", "types", "docs", "bench", "xarray-tests"}
    assert needed | {"demo"} == set(recipes())


def test_ci_runs_recipes() -> None:
    assert set(script_recipes()) == {"lint", "types", "docs", "oldest", "xarray-tests"}
    assert set(script_recipes()) <= set(recipes())


def test_workflow_runs_the_recipes_of_ci_and_the_tests_on_each_python() -> None:
    pythons = recipes()["test"]
    known = {name for name in recipes() if name != "test"}
    known |= {f"test-{python}" for python in pythons}
    sessions = {job["session"]: job["python"] for job in jobs()}
    assert set(sessions) <= known
    assert {*script_recipes(), "demo"} <= set(sessions)
    for python in pythons:
        assert sessions[f"test-{python}"] == python
    assert [sessions["oldest"]] == recipes()["oldest"] == pythons[:1]


def test_recipes_know_the_pythons_that_the_package_claims() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    claimed = re.findall(r":: Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert set(claimed) <= set(recipes()["test"])
    assert project["requires-python"] == f">={recipes()['oldest'][0]}"


def test_pre_commit_runs_ruff_and_mypy() -> None:
    repositories = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    hooks = {hook["id"]: hook for place in repositories for hook in place["hooks"]}
    assert {"ruff", "ruff-format", "mypy"} <= set(hooks)
    assert hooks["mypy"]["entry"] == "nox -R -s types"


def test_guide_names_the_recipes() -> None:
    named = set(re.findall(r"nox (?:-\w )*-s ([a-z][\w-]*)", GUIDE.read_text(encoding="utf-8")))
    assert {"test", "test-fast", "lint", "types", "docs", "bench"} <= named <= set(recipes())


def test_guide_has_a_row_for_each_room() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    rooms = [path for path in (REPOSITORY / "xref").iterdir() if path.name[0] != "_"]
    rooms = [path for path in rooms if path.is_dir() or path.suffix == ".py"]
    for room in rooms:
        name = f"{room.name}/" if room.is_dir() else room.name
        assert re.search(rf"^\| .*`(xref/)?{re.escape(name)}`.* \|", guide, re.M), name


@pytest.mark.parametrize(
    "page", [GUIDE, REPOSITORY / "docs" / "design.md"], ids=lambda p: p.name
)
def test_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:xref|tests|benchmarks|docs)/[\w./*-]*)`", text)
    assert len(named) > 10
    missing = [name for name in named if not list(REPOSITORY.glob(name.rstrip("/")))]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
