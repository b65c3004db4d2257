"""Trouble: why a pool's clones fail now, and when the next may be tried.

It keeps the last failures and how many there were in a row; what a failure is, the pool says. It
reads no clock and starts nothing.
"""

from __future__ import annotations

from vmpool import policy


class Trouble:
    """What keeps clones from coming, until one comes all the same."""

    def __init__(self) -> None:
        self._restore: Exception | None = None
        self._clone: Exception | None = None
        self._setback = policy.Setback()

    @property
    def cause(self) -> Exception | None:
        """Why clones fail now; `None` once one was restored, or activated, since."""
        return self._restore or self._clone

    @property
    def retry_at(self) -> float:
        """Nothing is restored before this; on the clock of those who told of the failures."""
        return self._setback.retry_at

    def restore_failed(self, error: Exception, *, now: float, jitter: float) -> None:
        """Note a restore that failed; `jitter` as in `policy.backoff`."""
        self._restore = error
        self._setback = self._setback.worse(now=now, jitter=jitter)

    def clone_failed(self, error: Exception, *, now: float, jitter: float) -> None:
        """Note a restored clone that died, or did not wake; `jitter` as in `policy.backoff`."""
        self._clone = error
        self._setback = self._setback.worse(now=now, jitter=jitter)

    def restored(self) -> None:
        """Note a restore that succeeded; whether its clone is worth anything is not known yet."""
        self._restore = None
        if self._clone is None:
            self._setback = self._setback.over()

    def activated(self) -> None:
        """Note a clone that woke."""
        self._clone = None
        self._setback = self._setback.over()
