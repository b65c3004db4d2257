"""The tour in docs/e2b.md: its programs run as they stand there, and say what stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2b.conftest import Programs
from tests.e2b.sdks import JAVASCRIPT, NEWEST, PROGRAMS, Sdk

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host, pytest.mark.timeout(900)]

DOCUMENT = Path(__file__).parents[2] / "docs/e2b.md"
TOUR = re.compile(
    r"^### ([^\n]+)\n\n```(\w+)\n(.*?)```\n\n```\n(.*?)```\n", re.MULTILINE | re.DOTALL
)
"""A heading, a program, and what it wrote."""


def documented(language: str) -> tuple[str, str]:
    """Return a program of the document, and what it says that this wrote."""
    found = {
        which: (program, said) for _, which, program, said in TOUR.findall(DOCUMENT.read_text())
    }
    return found[language]


@pytest.mark.parametrize(
    ("sdk", "language", "file"),
    [(NEWEST, "python", "quickstart.py"), (JAVASCRIPT, "javascript", "quickstart.mjs")],
    ids=lambda value: value.name if isinstance(value, Sdk) else "",
)
def test_the_tour_says_what_the_document_says(
    programs: Programs, sdk: Sdk, language: str, file: str
) -> None:
    program, said = documented(language)
    assert program == (PROGRAMS / file).read_text()
    assert programs.run("quickstart", sdk=sdk) == said
