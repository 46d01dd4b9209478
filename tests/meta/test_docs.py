"""Every Python block of README.md and docs/ runs and prints what the page says.

- Each ``python`` block is executed. The blocks of one page share one namespace
  and one empty working directory, from the top of the page to its end.
- A ``text`` block that follows a ``python`` block, with only blank lines
  between, is what that block prints. It is compared like a doctest: runs of
  white space are equal and ``...`` stands for anything.
- A ``text`` block anywhere else is a diagram or a listing and is not compared.
- ``bash`` blocks are not run here. The two commands of the README stand after
  ``<!-- command: demo -->`` and ``<!-- command: test -->``, and ``.ci/run``
  takes them from there.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import itertools
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    REPOSITORY / "README.md",
    *sorted(
        page
        for page in (REPOSITORY / "docs").rglob("*.md")
        if "_build" not in page.relative_to(REPOSITORY).parts
    ),
]

# Languages of code blocks that are not run. Python has one spelling, so that every
# Python block is found.
NOT_RUN = {"bash", "text", "toml", "{eval-rst}", "{toctree}", "{include}"}

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")
COMMAND = re.compile(
    r"^<!-- command: (?P<name>\w+) -->\n```bash\n(?P<lines>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    info: str  # what stands after the fence
    line: int  # of the first line inside, from 1
    text: str
    follows: bool  # only blank lines between it and the block before


def blocks(page: str) -> Iterator[Block]:
    lines = page.splitlines()
    i, follows = 0, False
    while i < len(lines):
        fence = FENCE.match(lines[i])
        if not fence:
            follows = follows and not lines[i].strip()
            i += 1
            continue
        indent = len(fence["indent"])
        start = i + 1
        closing = re.compile(rf"^ *{fence['fence']}{fence['fence'][0]}* *$")
        i = start
        while i < len(lines) and not closing.match(lines[i]):
            i += 1
        if i == len(lines):
            raise ValueError(f"the block that begins on line {start} does not end")
        text = "".join(f"{line[indent:]}\n" for line in lines[start:i])
        yield Block(fence["info"].strip(), start + 1, text, follows)
        i, follows = i + 1, True


def run_page(name: str, page: str) -> None:
    """Execute the page's blocks in order and compare what they print."""
    checker = doctest.OutputChecker()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = None
    for block in blocks(page):
        if block.info.split(" ")[0] == "python":
            # Blank lines in front make tracebacks point at the page's own line.
            code = compile("\n" * (block.line - 1) + block.text, name, "exec")
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(code, namespace)
            printed = output.getvalue()
        elif block.info == "text" and block.follows and printed is not None:
            if not checker.check_output(block.text, printed, flags):
                example = doctest.Example("", block.text)
                difference = checker.output_difference(example, printed, flags)
                pytest.fail(f"{name}, line {block.line}\n{difference}", pytrace=False)
            printed = None
        else:
            printed = None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_page_runs_and_prints_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(str(page), page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_code_blocks_have_a_known_language(page: Path) -> None:
    infos = {block.info.split(" ")[0] for block in blocks(page.read_text(encoding="utf-8"))}
    assert infos <= {"python", *NOT_RUN}


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_first_page_shows_code_with_its_output(page: str) -> None:
    found = list(blocks((REPOSITORY / page).read_text(encoding="utf-8")))
    assert any(
        (code.info, shown.info, shown.follows) == ("python", "text", True)
        for code, shown in itertools.pairwise(found)
    )


def test_wrong_output_fails_with_its_line() -> None:
    page = "```python\nprint(1)\n```\n\n```text\n2\n```\n"
    with pytest.raises(pytest.fail.Exception, match="a page, line 6"):
        run_page("a page", page)


def test_a_block_with_words_after_python_runs() -> None:
    with pytest.raises(SystemExit):
        run_page("a page", "```python skip\nraise SystemExit\n```\n")


def test_output_is_compared_only_with_the_preceding_block() -> None:
    run_page("a page", "```python\nx = 1\n```\n\nA diagram:\n\n```text\na -> b\n```\n")


def test_blocks_of_a_page_share_a_namespace() -> None:
    run_page(
        "a page", "```python\nx = 1\n```\nthen\n```python\nprint(x)\n```\n```text\n1\n```\n"
    )


def readme_commands() -> dict[str, str]:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    return {match["name"]: match["lines"] for match in COMMAND.finditer(readme)}


def test_readme_has_one_command_for_the_demo_and_one_for_the_tests() -> None:
    commands = readme_commands()
    assert set(commands) == {"demo", "test"}
    for lines in commands.values():
        assert lines.count("\n") == 1
        assert lines.startswith("python3.11 -m venv .venv && ")


def test_readme_names_the_pythons_that_the_package_claims() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    versions = re.findall(r":: Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert versions[0] in project["requires-python"]
    assert f"Python {', '.join(versions[:-1])} or {versions[-1]}" in readme
    assert all(f"`python{version}`" in readme for version in versions)


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    for name in readme_commands():
        assert f"readme_command {name}" in script


def test_readme_commands_use_what_the_package_declares() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    commands = readme_commands()
    assert ".venv/bin/xref demo" in commands["demo"]
    assert "xref" in project["scripts"]
    used = re.findall(r'"\.\[([\w,]+)\]"', "".join(commands.values()))
    extras = {extra for group in used for extra in group.split(",")}
    assert extras <= set(project["optional-dependencies"])
