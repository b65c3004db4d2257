"""SECURITY.md promises nothing that no test looks after."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROMISES = (ROOT / "SECURITY.md").read_text()
ROW = re.compile(r"^\|(?! Threat|---| Who|-)(.+)\|$", re.MULTILINE)


def written() -> set[str]:
    """Return the names of all tests."""
    return {
        node.name
        for path in ROOT.glob("tests/**/test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def promises() -> list[list[str]]:
    """Return the cells of every row that has a threat, a protection and its tests."""
    promised = PROMISES.partition("## What is promised")[2].partition("## What is not")[0]
    return [[cell.strip() for cell in row.split("|")] for row in ROW.findall(promised)]


def test_each_test_that_a_promise_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PROMISES))
    assert len(named) > 40
    assert named <= written(), sorted(named - written())


def test_no_promise_is_without_a_test() -> None:
    assert len(promises()) > 30
    bare = [row[0] for row in promises() if "`test_" not in row[-1] and not has_section(row[-1])]
    assert not bare


def has_section(cell: str) -> bool:
    """Tell whether a cell leads to a section that names tests for each of its rows."""
    link = re.fullmatch(r"\[([^\]]+)\]\(#[a-z-]+\)", cell)
    if link is None:
        return False
    heading = re.search(rf"^###+ {re.escape(link[1])}$", PROMISES, re.MULTILINE | re.IGNORECASE)
    assert heading is not None, f"there is no section {link[1]!r}"
    section = re.split(r"^##+ ", PROMISES[heading.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    return "`test_" in section


def test_each_boundary_has_promises() -> None:
    for boundary in ("Guest and hypervisor", "Agent", "Interface", "Supply", "Networks"):
        section = PROMISES.partition(f"### {boundary}\n")[2].partition("\n### ")[0]
        assert section.count("`test_") > 3, boundary
