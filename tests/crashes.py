"""Crashes: the places in the code where a server can be told to die, and what must be true then.

A place is named after its verb and what of it is done. What the journal has taken is promised;
what it has not must never have been.
"""

from __future__ import annotations

import ast
from pathlib import Path

_PACKAGE = Path(__file__).parents[1] / "vmpool"

_PROMISED = frozenset({"recorded", "killed", "discarded"})


def places() -> list[str]:
    """Return every place in the code, so that no new one goes untried."""
    found = []
    for module in sorted(_PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "faults.reach":
                (place,) = node.args
                assert isinstance(place, ast.Constant), "a place is named where it stands"
                found.append(str(place.value))
    assert len(found) == len(set(found))
    return found


def verb_of(place: str) -> str:
    """Return what was being done."""
    return place.partition(".")[0]


def is_promised(place: str) -> bool:
    """Whether what was being done is to be found done; of a kill, its machine is gone."""
    return place.partition(".")[2] in _PROMISED
