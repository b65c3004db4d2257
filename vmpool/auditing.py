"""Auditing: who did what, noted for the journal, which has it a moment after the answer.

It decides how much may wait for the journal; what is worth writing down, others do.
"""

from __future__ import annotations

import contextlib
import logging
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

from vmpool.errors import VmpoolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmpool.metrics import Metrics
    from vmpool.store.audit import Audit

log = logging.getLogger(__name__)

BY: ContextVar[str | None] = ContextVar("BY", default=None)
"""The token on whose word a task acts; `None` for none. Who lets a request in says so."""

WAITING = 1024
"""Entries that may wait for the journal; what is over is told to the log alone."""


class Auditing:
    """Notes who did what."""

    def __init__(self, audit: Audit, metrics: Metrics) -> None:
        self._audit = audit
        self._metrics = metrics

    def note(
        self, owner: str, action: str, subject: str, detail: dict[str, str], *, outcome: str
    ) -> None:
        """Write an entry soon."""
        if self._audit.waiting >= WAITING:
            log.error("the audit log is behind and lost %s of %s by %s", action, subject, owner)
            return
        self._audit.note(
            action,
            subject=subject,
            tenant_id=owner,
            token_id=BY.get(),
            outcome=outcome,
            detail=dict(detail),
        )

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
