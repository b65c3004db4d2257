"""Expiry: what becomes of a sandbox whose time is up, or that was idle for too long.

One that was to be paused and cannot be runs on and is tried again: to kill it at once would lose
what its owner was promised to find, and for a full disk somebody makes room. It stays in the lists
meanwhile, and the log says why.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from vmpool import household
from vmpool.errors import NotFoundError, VmpoolError
from vmpool.lifecycle import EndReason, Keep, OnExpiry

if TYPE_CHECKING:
    from vmpool.holding import Holding
    from vmpool.household import Household
    from vmpool.sandbox import Sandbox

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 3600.0
"""After which a sandbox that cannot be paused is killed: a guest may see to it that it cannot."""


class _Pause(Protocol):
    async def __call__(self, id: str, *, owner: str, keep: Keep) -> Sandbox: ...


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
            case OnExpiry.PAUSE | OnExpiry.PAUSE_DISK as how:
                if reason is EndReason.EXPIRED and holding.overdue_since is None:
                    holding.overdue_since = time.monotonic()
                keep = Keep.MEMORY if how is OnExpiry.PAUSE else Keep.DISK
                self._household.begin(self._pause_or_retry(holding, keep))

    async def _pause_or_retry(self, holding: Holding, keep: Keep) -> None:
        """Pause a sandbox; see to it that one that is overdue is tried again, or killed at last.

        One that was only idle is asked again when it was so for another while.
        """
        sandbox = holding.sandbox
        try:
            await self._pause(sandbox.id, owner=sandbox.owner, keep=keep)
        except NotFoundError:
            return  # ended meanwhile
        except VmpoolError as err:
            log.error("sandbox=%s is to be paused and cannot be: %s", sandbox.id, err)
            since = holding.overdue_since
            if since is None:
                return
            if time.monotonic() - since > PATIENCE_SECONDS:
                self._household.begin_end(holding, EndReason.EXPIRED)
            elif holding.ending is None:
                self._household.set_alarm(holding, household.RETRY_SECONDS)
        else:
            holding.overdue_since = None
