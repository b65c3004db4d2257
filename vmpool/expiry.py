"""Expiry: what becomes of a sandbox whose time is up, or that was idle for too long.

One that was to be paused and cannot be runs on and is tried again: to kill it at once would lose
what its owner was promised to find, and for a full disk somebody makes room. It stays in the lists
meanwhile, and the log says why.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from vmpool.errors import NotFoundError, VmpoolError
from vmpool.lifecycle import OnExpiry

if TYPE_CHECKING:
    from vmpool.household import Holding, Household
    from vmpool.lifecycle import EndReason
    from vmpool.sandbox import Sandbox

log = logging.getLogger(__name__)

RETRY_SECONDS = 60.0
"""Until a pause that was due and failed is tried again."""

PATIENCE_SECONDS = 3600.0
"""After which a sandbox that cannot be paused is killed: a guest may see to it that it cannot."""


class _Pause(Protocol):
    async def __call__(self, id: str, *, owner: str) -> Sandbox: ...


class Expiry:
    """Ends or pauses sandboxes, as their makers chose.

    Args:
        pause: Pauses a sandbox, and counts and audits that.
    """

    def __init__(self, household: Household, *, pause: _Pause) -> None:
        self._household = household
        self._pause = pause

    def due(self, holding: Holding, reason: EndReason) -> None:
        """Do with a sandbox that runs what its maker chose."""
        match holding.sandbox.claim.on_expiry:
            case OnExpiry.KILL:
                self._household.begin_end(holding, reason)
            case OnExpiry.PAUSE:
                self._household.begin(self._pause_or_retry(holding, reason))

    async def _pause_or_retry(self, holding: Holding, reason: EndReason) -> None:
        sandbox = holding.sandbox
        try:
            await self._pause(sandbox.id, owner=sandbox.owner)
        except NotFoundError:
            return  # ended meanwhile
        except VmpoolError as err:
            now = time.monotonic()
            holding.overdue_since = holding.overdue_since or now
            log.error("sandbox=%s is to be paused and cannot be: %s", sandbox.id, err)
            if now - holding.overdue_since > PATIENCE_SECONDS:
                self._household.begin_end(holding, reason)
            elif holding.ending is None:
                self._household.set_alarm(holding, RETRY_SECONDS)
        else:
            holding.overdue_since = None
