"""Each error that reaches a user names the file, the variable or attribute, and the element.

`error_cases` is a table of calls that raise, each with the facts that the text must have. One
test runs the table and checks that it fires each ``raise`` of the package, except those that
`error_sites` lists with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
from error_cases import CASES, Case, Files, write_good

import xref

INTERNAL = re.compile(
    r"\bat 0x[0-9a-f]{9,}|StoredObject\(|FileLocation\(|DatasetLayout\(|StoredReferences\("
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
