"""Repetition: when a request whose answer was lost is sent again.

Only for requests that are safe to repeat, which is their sender's to know: they read, say the same
again, or carry an idempotency key.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmpool.errors import VmpoolError

PAUSES = (0.1, 0.3, 0.9, 2.7)
"""Seconds before each new try; a quarter more or less, so that many clients do not come at once."""


class Repetition:
    """The tries of one request."""

    def __init__(self) -> None:
        self._pauses = iter(PAUSES)
        self._lost = {"server_lost"}

    def pause_after(self, error: VmpoolError) -> float | None:
        """Return the seconds until the next try; `None` when the error is the last word.

        A server that is not there is only waited for once it was: it may be starting again.
        """
        pause = next(self._pauses, None) if error.error_code in self._lost else None
        self._lost.add("no_server")
        return None if pause is None else pause * random.uniform(0.75, 1.25)  # noqa: S311 -- no secret
