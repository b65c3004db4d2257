"""Peers: everything here that could run the same line of Python, started in turn.

Whoever has had less than an equal share of the time takes part in a round, so that a boot of twelve
seconds is tried a few times, spread over the run, while a process of twenty milliseconds is started
in every round: what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import peers
from bench.line import FIRST_OUTPUT
from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.peer import Arena, Peer, Start, UnavailableError
from bench.peers import python
from vmpool.errors import VmpoolError
from vmpool.model import new_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.subject import Subject

FLOOR = f"{python.NAME}: {FIRST_OUTPUT}"
FAILURES_MOST = 2
"""Failed starts after which a peer takes no more part: the others' numbers are worth keeping."""


def _found() -> tuple[Peer, ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(peers.__path__))
    return tuple(importlib.import_module(f"{peers.__name__}.{name}").PEER for name in names)


PEERS = _found()


@dataclass(slots=True, kw_only=True)
class Turn:
    """What one peer has had so far."""

    peer: Peer
    start: Start
    spent: float = 0.0
    failures: int = 0


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Open all peers, then start them in turn in an order that rotates."""
    with _arena(subject) as arena:
        async with contextlib.AsyncExitStack() as opened:
            turns = []
            for peer in PEERS:
                with contextlib.suppress(UnavailableError):
                    start = await _opened(peer, arena, opened, findings)
                    turns.append(Turn(peer=peer, start=start))
            findings.notes["peers"] = {turn.peer.name: turn.peer.summary for turn in turns}
            await _rounds(turns, pace, findings)


async def _opened(
    peer: Peer, arena: Arena, opened: contextlib.AsyncExitStack, findings: Findings
) -> Start:
    """Open a peer; say why where that cannot be.

    Raises:
        UnavailableError: It has been said.
    """
    try:
        return await opened.enter_async_context(peer.open(arena))
    except UnavailableError as err:
        findings.remark(f"{peer.name}: skipped: {err}")
        raise
    except VmpoolError as err:
        findings.remark(f"{peer.name}: skipped: {err.message}")
        raise UnavailableError(err.message) from err


async def _rounds(turns: list[Turn], pace: Pace, findings: Findings) -> None:
    for number in pace.turns():
        taking_part = [turn for turn in turns if turn.failures < FAILURES_MOST]
        if not taking_part:
            return
        shift = number % len(taking_part)
        for turn in taking_part[shift:] + taking_part[:shift]:
            fair = sum(other.spent for other in taking_part) / len(taking_part)
            if not number or turn.spent <= fair:
                await _once(turn, findings)


async def _once(turn: Turn, findings: Findings) -> None:
    began = time.monotonic()
    name = turn.peer.name
    try:
        phases = await turn.start()
    except VmpoolError as err:
        turn.failures += 1
        findings.failures.append(f"{name}: {err} [{err.error_code}]")
        return
    finally:
        turn.spent += time.monotonic() - began
    for phase, milliseconds in phases.items():
        series = f"{name}: {phase}"
        floor = FLOOR if phase == FIRST_OUTPUT and series != FLOOR else ""
        findings.series(series, floor=floor).add(milliseconds)


@contextlib.contextmanager
def _arena(subject: Subject) -> Iterator[Arena]:
    """Yield an arena; what a benchmark that was killed left of one goes first."""
    directory = subject.stand.host.settings.state / "bench"
    shutil.rmtree(directory, ignore_errors=True)
    sockets = subject.stand.clones / new_id()
    with contextlib.ExitStack() as undo:
        for made in (directory, sockets):
            made.mkdir(mode=0o700)
            undo.callback(shutil.rmtree, made, ignore_errors=True)
        yield Arena(subject=subject, directory=directory, sockets=sockets)


MEASUREMENT = Measurement(
    name="peers",
    summary="the same line of Python by everything else that is here, in turn",
    rounds=Rounds(quick=20, full=100),
    weight=20,
    measure=measure,
    chapter=Chapter.PEERS,
    conditions={"page cache": "warm", "pool": "one ready clone for vmpool's own, else empty"},
)
