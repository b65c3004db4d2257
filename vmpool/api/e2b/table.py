"""Table: what answers on those ports of a sandbox that are the server's own, not the guest's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmpool.api.e2b import files, filesystem, interpreter, processes, state
from vmpool.api.e2b.visit import Endpoint

if TYPE_CHECKING:
    from vmpool.api.e2b.visit import Table

ENVD_PORT: Final = 49983
"""Where E2B's own agent listens in a guest: processes and files."""

INTERPRETER_PORT: Final = 49999

SERVICES: Final[Mapping[int, Table]] = {
    ENVD_PORT: {
        **processes.ENDPOINTS,
        **filesystem.ENDPOINTS,
        **files.ENDPOINTS,
        **state.ENDPOINTS,
    },
    INTERPRETER_PORT: interpreter.ENDPOINTS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An endpoint.

    Attributes:
        path: As the table has it, with names in braces.
        parts: What a request's path has in their places.
    """

    endpoint: Endpoint
    path: str
    parts: Mapping[str, str]


def find(table: Table, method: str, path: str) -> Found | None:
    """Return what answers a request; a path without names goes before one with them.

    Args:
        path: Of the request, decoded.
    """
    exact = table.get((method, path))
    if exact is not None:
        return Found(endpoint=exact, path=path, parts={})
    for (wanted, pattern), endpoint in table.items():
        if wanted == method and (parts := _parts(pattern, path)) is not None:
            return Found(endpoint=endpoint, path=pattern, parts=parts)
    return None


def _parts(pattern: str, path: str) -> dict[str, str] | None:
    """Return what stands in the place of a pattern's names, when the rest is the same."""
    if "{" not in pattern:
        return None
    names, words = pattern.split("/"), path.split("/")
    if len(names) != len(words):
        return None
    parts: dict[str, str] = {}
    for name, word in zip(names, words, strict=True):
        if name.startswith("{") and word:
            parts[name[1:-1]] = word
        elif name != word:
            return None
    return parts
