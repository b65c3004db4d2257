"""Claim: whom an agent obeys, and nobody else.

The first key that it is shown is its host's from then on. Before a snapshot the host gives its
claim up, so that each clone is claimed anew and no key of a clone is in what clones share. It
knows no stream and no operation.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Claim:
    """One agent's claim; nobody's at first.

    Args:
        locate: Returns the machine's context id, `None` where it has none.
    """

    def __init__(self, locate: Callable[[], int | None]) -> None:
        self._locate = locate
        self._key: bytes | None = None
        self._left_at: int | None = None

    def admit(self, key: bytes) -> bool:
        """Whether a host with this key is obeyed; the first one claims the agent by asking."""
        if self._key is not None:
            return hmac.compare_digest(self._key, key)
        # Given up and not restored yet: whoever came now would be in every clone.
        if self._left_at is not None and self._left_at == self._locate():
            return False
        self._key = key
        return True

    def release(self) -> None:
        """Obey nobody until the machine has been restored, which gives it another context id.

        Where it has none, whoever holds its only stream may claim it at once.
        """
        self._left_at = self._locate()
        self._key = None
