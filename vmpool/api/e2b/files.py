"""Files: files over plain HTTP, whole and signed, as E2B's clients use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vmpool.api.e2b.visit import Table

ENDPOINTS: Final[Table] = {}
