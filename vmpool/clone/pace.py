"""Pace: whether a guest that has booted counts time as fast as its host does.

A kernel that boots counts its processor's ticks against a timer. Under emulation on a busy host it
may be kept from reading the one just when it has started the other, and what it counts is too few:
its clock then runs ahead for good, many times as fast, however often it is set. It decides what is
a right pace by the host's own clock, and by nothing that the guest says of how it was found.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmpool.errors import GuestError, VmpoolError
from vmpool.model import DEFAULT_USER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.agent import Agent

TOLERANCE: Final = 0.02
"""Of the time that went by. A kernel that counts right is off by a thousandth."""

RESOLUTION: Final = 0.01
"""Seconds that what is read is cut to (proc_uptime(5))."""

_UPTIME: Final = "/proc/uptime"  # since the boot; what sets the wall clock does not change it
_LENGTH_MOST: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a guest's clock showed between two moments of the host's, all in seconds."""

    asked: float
    shown: float
    told: float


@contextlib.asynccontextmanager
async def in_step(agent: Agent, *, timeout: float) -> AsyncIterator[None]:
    """Have a guest's clock go by as much as the host's while a block runs.

    The longer the block takes, and the sooner the guest answers, the smaller is what is noticed.

    Args:
        timeout: Seconds for each of two answers.

    Raises:
        GuestError: `guest_clock_wrong`: it did not; `guest_unfit`: the guest shows no clock;
            `guest_unresponsive`, or as `Agent.read_file`.
    """
    first = await _read(agent, timeout)
    yield
    second = await _read(agent, timeout)
    least, most = bounds(first, second)
    if not least <= second.shown - first.shown <= most:
        raise GuestError(
            f"the guest's clock went on by {second.shown - first.shown:.2f} s in"
            f" {second.told - first.asked:.2f} s: its kernel has counted wrong as it booted",
            code="guest_clock_wrong",
            remedy="try again when the host is less busy",
        )


def bounds(first: Reading, second: Reading) -> tuple[float, float]:
    """Return by how much a right clock may have gone on from one reading to the next, in seconds.

    When in the time that an answer took it was read, nobody knows.
    """
    least = (second.asked - first.told) * (1 - TOLERANCE) - RESOLUTION
    most = (second.told - first.asked) * (1 + TOLERANCE) + RESOLUTION
    return least, most


async def _read(agent: Agent, timeout: float) -> Reading:
    limit = asyncio.timeout(timeout)
    asked = time.monotonic()
    try:
        async with limit:
            reading = agent.read_file(_UPTIME, user=DEFAULT_USER, length=_LENGTH_MOST)
            async with contextlib.aclosing(reading) as pieces:
                text = b"".join([piece async for piece in pieces])
    except TimeoutError as err:
        if not limit.expired():
            raise
        raise GuestError(
            f"the guest did not show its clock within {timeout} s", code="guest_unresponsive"
        ) from err
    except GuestError:
        raise
    except VmpoolError as err:  # it is not asked for its user's sake
        raise GuestError(f"the guest shows no clock: {err}", code="guest_unfit") from err
    told = time.monotonic()
    try:
        shown = float(text.split()[0])
    except (IndexError, ValueError) as err:
        raise GuestError(f"{_UPTIME} of the guest is {text!r}", code="guest_unfit") from err
    return Reading(asked=asked, shown=shown, told=told)
