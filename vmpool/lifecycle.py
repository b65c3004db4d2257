"""Lifecycle: the states of a clone and of a sandbox, and what leads from one to the next.

State tables as functions of values: an event in a state gives the next state or is illegal. They do
nothing and time nothing; who calls them does the I/O that the new state demands.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from vmpool.errors import ConflictError


class CloneState(StrEnum):
    """Where a clone is between its pool and a holder."""

    RESTORING = "restoring"
    READY = "ready"
    OFFERED = "offered"
    """Handed to a waiter that has not taken it yet; still paused, nobody has touched it."""
    ACTIVATING = "activating"
    """Its virtual CPUs may run for a caller: it never becomes ready again."""
    HELD = "held"
    RESERVED = "reserved"
    """Room that somebody has for a clone which they make themselves; it becomes held with it."""
    DYING = "dying"
    DEAD = "dead"


class CloneEvent(StrEnum):
    """What happens to a clone."""

    RESTORED = "restored"
    OFFER = "offer"
    DECLINE = "decline"
    TAKE = "take"
    ACTIVATED = "activated"
    FILL = "fill"
    DOOM = "doom"
    GONE = "gone"


class CloneEnd(StrEnum):
    """Why a clone ended."""

    RESTORE_FAILED = "restore_failed"
    DIED_READY = "died_ready"
    ACTIVATION_FAILED = "activation_failed"
    ABANDONED = "abandoned"
    """Its caller left while it was being activated."""
    RETIRED = "retired"
    POOL_CLOSED = "pool_closed"
    RELEASED = "released"
    RECALLED = "recalled"
    """Its restore was cancelled."""
    GIVEN_UP = "given_up"
    """A reserved place that never had a clone."""


_CLONE_STEPS: Final = {
    (CloneState.RESTORING, CloneEvent.RESTORED): CloneState.READY,
    (CloneState.RESTORING, CloneEvent.DOOM): CloneState.DYING,
    (CloneState.RESTORING, CloneEvent.GONE): CloneState.DEAD,
    (CloneState.READY, CloneEvent.OFFER): CloneState.OFFERED,
    (CloneState.READY, CloneEvent.TAKE): CloneState.ACTIVATING,
    (CloneState.READY, CloneEvent.DOOM): CloneState.DYING,
    (CloneState.OFFERED, CloneEvent.TAKE): CloneState.ACTIVATING,
    (CloneState.OFFERED, CloneEvent.DECLINE): CloneState.READY,
    (CloneState.OFFERED, CloneEvent.DOOM): CloneState.DYING,
    (CloneState.ACTIVATING, CloneEvent.ACTIVATED): CloneState.HELD,
    (CloneState.ACTIVATING, CloneEvent.DOOM): CloneState.DYING,
    (CloneState.HELD, CloneEvent.GONE): CloneState.DEAD,
    (CloneState.RESERVED, CloneEvent.FILL): CloneState.HELD,
    (CloneState.RESERVED, CloneEvent.GONE): CloneState.DEAD,
    (CloneState.DYING, CloneEvent.GONE): CloneState.DEAD,
}


def advance_clone(state: CloneState, event: CloneEvent) -> CloneState:
    """Return the state that follows.

    Raises:
        ConflictError: `illegal_transition`; a clone was about to be lost or given twice.
    """
    try:
        return _CLONE_STEPS[state, event]
    except KeyError:
        raise ConflictError(
            f"a clone that is {state.value} cannot take {event.value!r}", code="illegal_transition"
        ) from None


class SandboxState(StrEnum):
    """Where a sandbox is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"


class EndReason(StrEnum):
    """Why a sandbox ended; the first reason stays."""

    KILLED = "killed"
    """Its owner asked for it."""
    FINISHED = "finished"
    """It was made for one request, and that was answered."""
    EXPIRED = "expired"
    """Its deadline passed."""
    CRASHED = "crashed"
    """The guest or its hypervisor died."""
    FAILED_START = "failed_start"
    """It never ran."""
    SERVER_STOPPED = "server_stopped"
    """The server was stopped in order."""
    SERVER_LOST = "server_lost"
    """The server was gone without a word; its next start found the sandbox open."""


@dataclass(frozen=True, slots=True)
class Started:
    """The clone is the sandbox's own and answers."""


@dataclass(frozen=True, slots=True)
class End:
    """Somebody or something ends the sandbox."""

    reason: EndReason


@dataclass(frozen=True, slots=True)
class Reaped:
    """The clone is gone, with all it held."""


SandboxEvent = Started | End | Reaped


@dataclass(frozen=True, slots=True)
class Life:
    """A sandbox's state, with the reason once it ends."""

    state: SandboxState = SandboxState.STARTING
    reason: EndReason | None = None

    @property
    def over(self) -> bool:
        """Whether the sandbox takes no more requests."""
        match self.state:
            case SandboxState.STARTING | SandboxState.RUNNING:
                return False
            case SandboxState.ENDING | SandboxState.ENDED:
                return True


def advance(life: Life, event: SandboxEvent) -> Life:
    """Return the life that follows; ending is idempotent and the first reason stays.

    Raises:
        ConflictError: `illegal_transition`; the event cannot happen in this state.
    """
    match event:
        case Started():
            return _start(life)
        case End(reason):
            return _end(life, reason)
        case Reaped():
            return _reap(life)


def _start(life: Life) -> Life:
    if life.state is not SandboxState.STARTING:
        raise _illegal(life, "start")
    return Life(SandboxState.RUNNING)


def _end(life: Life, reason: EndReason) -> Life:
    match life.state:
        case SandboxState.STARTING:
            return Life(SandboxState.ENDING, reason)
        case SandboxState.RUNNING:
            if reason is EndReason.FAILED_START:
                raise _illegal(life, "fail to start")
            return Life(SandboxState.ENDING, reason)
        case SandboxState.ENDING | SandboxState.ENDED:
            return life


def _reap(life: Life) -> Life:
    match life.state:
        case SandboxState.ENDING | SandboxState.ENDED:
            return Life(SandboxState.ENDED, life.reason)
        case SandboxState.STARTING | SandboxState.RUNNING:
            raise _illegal(life, "be reaped before anything ended it")


def _illegal(life: Life, event: str) -> ConflictError:
    message = f"a sandbox that is {life.state.value} cannot {event}"
    return ConflictError(message, code="illegal_transition")
