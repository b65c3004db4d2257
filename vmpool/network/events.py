"""Events: what a sandbox was denied on the network, the newest of it.

A log has room for so many; those that had to make way for others are counted. A reader follows it
by a cursor, which stays good when the sandbox goes on with another log: cursors are times.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

EVENTS_KEPT: Final = 1000
"""Of one sandbox; about 300 bytes each."""
NAME_SHOWN: Final = 1024
"""Characters of a name that is kept; with all of its bytes escaped one has as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """Something that a guest tried and was denied.

    Attributes:
        protocol: `tcp`, `udp`, `icmp`, `dns`, or a number of IP's.
        destination: Where it was to go; for `dns` an address that an answer held, if that is why.
        port: `None` where the protocol has none.
        name: That was asked for, or that last led to the destination; `None` when none did.
        rule: What denied it.
    """

    protocol: str
    destination: IPv4Address | IPv6Address | None
    port: int | None
    name: str | None
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A denial, and when it was.

    Attributes:
        cursor: Comes after those of all earlier events of the sandbox.
        time_ns: Unix time.
    """

    cursor: int
    time_ns: int
    denial: Denial


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Events from a cursor on.

    Attributes:
        lost: How many are not kept, of all that there were: they had to make way, or were told
            too fast to be noted.
        cursor: To go on from.
    """

    events: tuple[Event, ...]
    lost: int
    cursor: int


class EventLog:
    """The newest denials of one sandbox.

    Args:
        count: Is told the rule of each denial.
        size: Events at most.
    """

    def __init__(self, count: Callable[[str], None], *, size: int = EVENTS_KEPT) -> None:
        self._count = count
        self._events: deque[Event] = deque(maxlen=size)
        self._last = 0
        self._lost = 0
        self._news = asyncio.Event()
        self._closed = False

    def add(self, denial: Denial) -> None:
        """Note a denial, at the cost of the oldest when there is no room."""
        if self._closed:
            return
        now_ns = time.time_ns()
        self._last = max(now_ns // 1000, self._last + 1)
        if len(self._events) == self._events.maxlen:
            self._lost += 1
        self._events.append(Event(cursor=self._last, time_ns=now_ns, denial=denial))
        self._count(denial.rule)
        self._news.set()

    def lose(self) -> None:
        """Note that something was denied of which no more is known."""
        self._lost += 1

    def since(self, cursor: int) -> Page:
        """Return what is kept of what came after `cursor`; 0 for all."""
        found = tuple(event for event in self._events if event.cursor > cursor)
        last = found[-1].cursor if found else max(cursor, self._last)
        return Page(events=found, lost=self._lost, cursor=last)

    async def follow(self, cursor: int) -> AsyncGenerator[Page]:
        """Yield what is kept of what came after `cursor`, then what comes, until it is closed."""
        while True:
            self._news.clear()
            page = self.since(cursor)
            if page.events:
                cursor = page.cursor
                yield page
            elif self._closed:
                return
            else:
                await self._news.wait()

    def close(self) -> None:
        """Let followers come to an end; nothing is noted any more. *Idempotent.*"""
        self._closed = True
        self._news.set()
