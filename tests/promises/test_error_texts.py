"""Each error that reaches a user names the file, the variable or attribute, and the element.

`error_cases` is a table of calls that raise, each with the facts that the text must have. One
test runs the table and checks that it fires each ``raise`` of the package, except those that
`error_sites` lists with a reason.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import damaged_cases  # noqa: F401, enters its cases
import h5py
import pytest
from error_cases import CASES, Case, Files, write_good
from error_sites import HELD_ELSEWHERE, NOT_FROM_PUBLIC_API
from raise_sites import recorded_sites, site_names

import xref

INTERNAL = re.compile(
    r"\bat 0x7[0-9a-f]{11}\b|StoredObject\(|FileLocation\(|DatasetLayout\(|StoredReferences\("
    r"|<xref\.|array\(\[|dtype\(|np\.(int|float|str|bool)\w*\("
)
"""Python's text of objects that a user does not know."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The valid file of all cases."""
    path = tmp_path_factory.mktemp("errors") / "good.h5"
    with h5py.File(path, "w") as file:
        write_good(file)
    return path


@pytest.fixture
def files(tmp_path: Path, good: Path) -> Iterator[Files]:
    files = Files(tmp_path, good)
    yield files
    files.close()


def text_of(error: BaseException) -> str:
    """Return the text that a user sees: the message and the notes."""
    message = error.args[0] if isinstance(error, KeyError) else str(error)
    return "\n".join([str(message), *getattr(error, "__notes__", ())])


@pytest.mark.filterwarnings("ignore::xref.errors.UnreadableMemberWarning")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_error_names_what_it_is_about(case: Case, files: Files) -> None:
    with pytest.raises(case.error) as raised:
        case.call(files)
    text = text_of(raised.value)
    missing = [part for part in case.says if part not in text]
    assert not missing, f"{text!r} has not {missing}"
    assert text.strip()
    assert not INTERNAL.search(text), text
    assert not text.rstrip().endswith((":", ";", ","))
    if isinstance(raised.value, xref.XrefError):
        others = set(type(raised.value).__mro__) - {type(raised.value), xref.XrefError}
        assert others - {Exception, BaseException, object}, "the matching builtin is missing"


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is new in Python 3.12")
def test_every_raise_site_is_fired_or_listed(tmp_path: Path, good: Path) -> None:
    with recorded_sites() as fired, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in CASES.values():
            (tmp_path / case.name).mkdir()
            files = Files(tmp_path / case.name, good)
            with pytest.raises(case.error):
                case.call(files)
            files.close()
    unknown = site_names() - fired - set(HELD_ELSEWHERE) - set(NOT_FROM_PUBLIC_API)
    assert not unknown, (
        "raise sites without a case in error_cases.py or damaged_cases.py, and without an "
        f"entry in error_sites.py: {sorted(unknown)}"
    )
    share = len(fired & site_names()) / len(site_names())
    assert share > 0.5


def test_the_lists_of_raise_sites_are_not_stale() -> None:
    listed = {**HELD_ELSEWHERE, **NOT_FROM_PUBLIC_API}
    stale = set(listed) - site_names()
    assert not stale, f"error_sites.py lists sites that do not exist: {sorted(stale)}"
    assert not set(HELD_ELSEWHERE) & set(NOT_FROM_PUBLIC_API)
    for test in set(HELD_ELSEWHERE.values()):
        path, _, name = test.partition("::")
        source = (Path(__file__).resolve().parents[2] / path).read_text()
        assert f"def {name}(" in source, f"error_sites.py names {test}, which does not exist"


def test_each_error_is_also_the_matching_builtin() -> None:
    classes = [
        value
        for value in vars(xref.errors).values()
        if isinstance(value, type) and issubclass(value, xref.XrefError)
    ]
    assert len(classes) > 10
    for cls in classes:
        if cls is not xref.XrefError:
            others = set(cls.__mro__) - {cls, xref.XrefError, Exception, BaseException, object}
            assert others, f"{cls.__name__} is no builtin error"
