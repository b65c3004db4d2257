"""Auditing: who did what, written into the journal behind the answer.

It decides how much may wait for the journal; what is worth writing down, others do.
"""

from __future__ import annotations

import contextlib
import logging
import time
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from vmpool.errors import VmpoolError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from vmpool.metrics import Metrics
    from vmpool.store.audit import Audit

log = logging.getLogger(__name__)

BY: ContextVar[str | None] = ContextVar("BY", default=None)
"""The token on whose word a task acts; `None` for none. Who lets a request in says so."""

WAITING = 1024
"""Entries that may wait for the journal; what is over is told to the log alone."""


class Auditing:
    """Writes entries in the background.

    Args:
        begin: Starts a task, which it owns.
    """

    def __init__(
        self,
        audit: Audit,
        metrics: Metrics,
        *,
        begin: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._audit = audit
        self._metrics = metrics
        self._begin = begin
        self._waiting = 0

    def note(
        self, owner: str, action: str, subject: str, detail: dict[str, str], *, outcome: str
    ) -> None:
        """Write an entry soon."""
        if self._waiting >= WAITING:
            log.error("the audit log is behind and lost %s of %s by %s", action, subject, owner)
            return
        self._waiting += 1
        record = partial(
            self._audit.record,
            action,
            subject=subject,
            tenant_id=owner,
            token_id=BY.get(),
            outcome=outcome,
            detail=dict(detail),
        )
        self._begin(self._write(record, f"{action} of {subject} by {owner}"))

    @contextlib.contextmanager
    def noted(
        self, action: str, subject: str, owner: str, detail: dict[str, str] | None = None
    ) -> Iterator[None]:
        """Write an entry of what is done in the block, and count it, however it ends."""
        began, outcome = time.perf_counter_ns(), "cancelled"
        try:
            yield
            outcome = "ok"
        except VmpoolError as err:
            outcome = err.error_code
            raise
        finally:
            self._metrics.turned(action, outcome, time.perf_counter_ns() - began)
            self.note(owner, action, subject, detail or {}, outcome=outcome)

    async def _write(self, record: Callable[[], Awaitable[None]], entry: str) -> None:
        try:
            await record()
        except VmpoolError as err:
            log.error("the audit log lost %s: %s", entry, err)
        finally:
            self._waiting -= 1
