"""Airtime: how much of a host one guest's words may take while others have something to say.

All that guests say goes through one event loop, and a guest that says as much as it can has its
hypervisor, the server and a client at work beside it. While no other guest is asked anything or
says something, it is read as fast as it comes. Otherwise what is over an allowance takes turns, at
a rate for all such guests together. Nothing is lost: what is not read waits where it is, and holds
the guest back. What is said this does not know, nor where it is read from.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from vmpool.model import Accelerator

if TYPE_CHECKING:
    from collections.abc import Callable

RATE_BYTES = {
    Accelerator.TCG: (2 << 20) * (os.cpu_count() or 1),
    Accelerator.KVM: 32 << 20,
}
"""A second, of all that are over their allowance together. A megabyte of an emulated guest's output
takes its processor 82 ms, its hypervisor's main thread 9 and the server 14 (AMD EPYC, `yes` over
HTTP): 2 MiB for each processor is a fifth of all. Under KVM, where the guest's part is small, what
others wait for is the server's one loop, of which this is half. That was counted from the server's
part under emulation, not measured on KVM."""

ALLOWANCE_BYTES = 1 << 20
"""What one says without waiting after some silence: most outputs whole, and every short answer."""

EVENT_BYTES = 8 << 10
"""What an event costs beside its bytes: the server takes as long for a short one as for these."""

SECOND_BYTES = 64 << 20
"""What a second costs that the server takes apart what was said: more than the bytes of any guest
that says it in pieces as large as they may be."""

SILENCE = 0.1
"""Seconds after which somebody who was heard last has nothing to say."""

CHUNK = 64 << 10
PORTION = 16 << 10
"""What is read of one at a time while it is alone, and beside others."""

_REST_MOST = 0.05
"""Seconds until it is looked again whether others are silent."""

_OVER_FOR = 1.0
"""Seconds after which one that is over its allowance has nothing to say: who has looks oftener."""


class Airtime:
    """What the links of one event loop share.

    Args:
        rate_bytes: A second, of all that are over their allowance together.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        *,
        rate_bytes: float = RATE_BYTES[Accelerator.TCG],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = rate_bytes
        self.clock = clock
        self._last: Share | None = None
        self._last_at = self._before_at = float("-inf")
        self._over: dict[Share, float] = {}

    @classmethod
    def under(cls, accelerator: Accelerator) -> Airtime:
        """Return what guests share on a host whose guests run under this."""
        return cls(rate_bytes=RATE_BYTES[accelerator])

    def share(self) -> Share:
        """Return a link's share; closed by the link."""
        return Share(self)

    @property
    def rate(self) -> float:
        """Bytes a second for each of those that are over their allowance and not silent since."""
        since = self.clock() - _OVER_FOR
        self._over = {share: at for share, at in self._over.items() if at > since}
        return self._rate / max(1, len(self._over))

    def heard(self, share: Share) -> None:
        """Note that one has something to say, or is asked to."""
        if self._last is not share:
            self._before_at, self._last = self._last_at, share
        self._last_at = self.clock()

    def others_talk(self, share: Share) -> bool:
        """Whether any but this one was heard just now."""
        at = self._before_at if self._last is share else self._last_at
        return self.clock() - at < SILENCE

    def mark(self, share: Share, level: float) -> None:
        """Note whether one is over its allowance; who is has nothing that others wait for."""
        if level > 0:
            self._over.pop(share, None)
        else:
            self._over[share] = self.clock()

    def forget(self, share: Share) -> None:
        """Count one no more. *Idempotent.*"""
        self._over.pop(share, None)
        if self._last is share:
            self._last = None


class Share:
    """One link's part of the airtime; made by `Airtime.share`."""

    def __init__(self, airtime: Airtime) -> None:
        self._airtime = airtime
        self._level = float(ALLOWANCE_BYTES)
        self._filled = airtime.clock()

    @property
    def portion(self) -> int:
        """How many bytes to read at most before others have their turn."""
        return PORTION if self._airtime.others_talk(self) else CHUNK

    @property
    def rest(self) -> float:
        """Seconds to wait before more is read, or to ask again; 0 when it may be read."""
        self._fill()
        if self._level > 0:
            return 0.0
        if not self._airtime.others_talk(self):
            self._level = 0.0  # what it said while it was alone it owes nobody
            return 0.0
        return min((PORTION - self._level) / self._airtime.rate, _REST_MOST)

    def asked(self) -> None:
        """Note that somebody waits for an answer."""
        self._airtime.heard(self)

    def spend(self, size_bytes: int, *, events: int, seconds: float) -> None:
        """Count what was read.

        Args:
            events: That came of it.
            seconds: Of the processor's time, until they had.
        """
        self._fill()
        cost = max(size_bytes + events * EVENT_BYTES, seconds * SECOND_BYTES)
        # Who owes more than this would be silent for minutes, and what it is asked with it.
        self._level = max(self._level - cost, -float(ALLOWANCE_BYTES))
        self._airtime.mark(self, self._level)
        if self._level > 0:
            self._airtime.heard(self)

    def close(self) -> None:
        """Count no more. *Idempotent.*"""
        self._airtime.forget(self)

    def _fill(self) -> None:
        now = self._airtime.clock()
        grown = self._level + (now - self._filled) * self._airtime.rate
        self._level = min(float(ALLOWANCE_BYTES), grown)
        self._filled = now
        self._airtime.mark(self, self._level)
