"""Budget: what the bodies of all requests together may hold of the server's memory.

One body has a limit of its own; a crowd of requests that wait for clones, each with its body, has
this one. An owner may hold as much as is left for all others, and no more: whoever comes next finds
room, however long the first one's programs run.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Final

from aiohttp import web

from vmpool.errors import CapacityError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Budget:
    """Bytes that are lent for as long as a request is worked on."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lent_bytes: Counter[str] = Counter()

    @contextlib.contextmanager
    def lend(self, owner: str) -> Iterator[Loan]:
        """Lend for a block; what was taken is given back at its end."""
        loan = Loan(self, owner)
        try:
            yield loan
        finally:
            self._lent_bytes[owner] -= loan.size_bytes
            if not self._lent_bytes[owner]:
                del self._lent_bytes[owner]

    def take(self, owner: str, size_bytes: int) -> None:
        """Count bytes out.

        Raises:
            CapacityError: `bodies_busy`; the owner would hold more than is left.
        """
        left_bytes = self._limit_bytes - self._lent_bytes.total() - size_bytes
        if self._lent_bytes[owner] + size_bytes > left_bytes:
            raise CapacityError(
                f"the bodies of this caller's requests are over its share of {self._limit_bytes}"
                " bytes together",
                code="bodies_busy",
                remedy="try again in a moment, or raise api.bodies_bytes",
            )
        self._lent_bytes[owner] += size_bytes


class Loan:
    """What one request's body holds."""

    def __init__(self, budget: Budget, owner: str) -> None:
        self._budget = budget
        self._owner = owner
        self.size_bytes = 0

    def grow_to(self, size_bytes: int) -> None:
        """Hold at least `size_bytes`.

        Raises:
            CapacityError: As `Budget.take`; the loan stays as it was.
        """
        more = size_bytes - self.size_bytes
        if more > 0:
            self._budget.take(self._owner, more)
            self.size_bytes = size_bytes


BUDGET: Final = web.AppKey("budget", Budget)
