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
    PAUSING = "pausing"
    """Its machine is being saved, to be ended; it may yet run on."""
    PAUSED = "paused"
    """It has no machine: what it was is in files."""
    RESUMING = "resuming"
    ROLLING_BACK = "rolling_back"
    """It runs while the machine is made that takes its machine's place."""
    ENDING = "ending"
    ENDED = "ended"


class OnExpiry(StrEnum):
    """What becomes of a sandbox whose time is up, or that was idle for too long."""

    KILL = "kill"
    PAUSE = "pause"
    PAUSE_DISK = "pause_disk"
    """It is paused with its disk alone."""


class Keep(StrEnum):
    """What a pause keeps of a sandbox."""

    MEMORY = "memory"
    """All that it is: memory, devices and disk. It goes on where it was."""
    DISK = "disk"
    """What is on its disk. It is booted anew on that."""


class AutoResume(StrEnum):
    """Whether a request wakes a paused sandbox that it needs."""

    NEVER = "never"
    ON_REQUEST = "on_request"


class OnStop(StrEnum):
    """What a server that is stopped does with the sandboxes that run."""

    KILL = "kill"
    KEEP = "keep"
    """They run on for the next server on the same directories."""


class EndReason(StrEnum):
    """Why a sandbox ended; the first reason stays."""

    KILLED = "killed"
    """Its owner asked for it."""
    FINISHED = "finished"
    """It was made for one request, and that was answered."""
    EXPIRED = "expired"
    """Its deadline passed; of a paused one, the time that it may be paused."""
    IDLE = "idle"
    """Nothing ran in it and nobody asked anything of it for its idle limit."""
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


class Turn(StrEnum):
    """What happens to the machine under a sandbox; an event like `Started`."""

    PAUSE = "pause"
    RESUME = "resume"
    ROLL_BACK = "roll back"
    HALTED = "be halted"
    """It is paused: just now, or again, for it could not be resumed."""
    RUNS = "run on"
    """It runs: on a new machine, or on the one it had, for what was begun failed."""


@dataclass(frozen=True, slots=True)
class End:
    """Somebody or something ends the sandbox."""

    reason: EndReason


@dataclass(frozen=True, slots=True)
class Reaped:
    """The clone is gone, with all it held."""


SandboxEvent = Started | Turn | End | Reaped

_TURNS: Final = {
    (SandboxState.RUNNING, Turn.PAUSE): SandboxState.PAUSING,
    (SandboxState.PAUSING, Turn.HALTED): SandboxState.PAUSED,
    (SandboxState.PAUSING, Turn.RUNS): SandboxState.RUNNING,
    (SandboxState.PAUSED, Turn.RESUME): SandboxState.RESUMING,
    (SandboxState.RESUMING, Turn.HALTED): SandboxState.PAUSED,
    (SandboxState.RESUMING, Turn.RUNS): SandboxState.RUNNING,
    (SandboxState.RUNNING, Turn.ROLL_BACK): SandboxState.ROLLING_BACK,
    (SandboxState.ROLLING_BACK, Turn.RUNS): SandboxState.RUNNING,
}


@dataclass(frozen=True, slots=True)
class Life:
    """A sandbox's state, with the reason once it ends."""

    state: SandboxState = SandboxState.STARTING
    reason: EndReason | None = None

    @property
    def over(self) -> bool:
        """Whether the sandbox takes no more requests."""
        return self.state in {SandboxState.ENDING, SandboxState.ENDED}


def advance(life: Life, event: SandboxEvent) -> Life:
    """Return the life that follows; ending is idempotent and the first reason stays.

    Raises:
        ConflictError: `illegal_transition`; the event cannot happen in this state.
    """
    match event:
        case Started():
            return _start(life)
        case Turn():
            return _turn(life, event)
        case End(reason):
            return _end(life, reason)
        case Reaped():
            return _reap(life)


def _start(life: Life) -> Life:
    if life.state is not SandboxState.STARTING:
        raise _illegal(life, "start")
    return Life(SandboxState.RUNNING)


def _turn(life: Life, turn: Turn) -> Life:
    state = _TURNS.get((life.state, turn))
    if state is None:
        raise _illegal(life, turn.value)
    return Life(state)


def _end(life: Life, reason: EndReason) -> Life:
    if life.over:
        return life
    if reason is EndReason.FAILED_START and life.state is not SandboxState.STARTING:
        raise _illegal(life, "fail to start")
    return Life(SandboxState.ENDING, reason)


def _reap(life: Life) -> Life:
    if not life.over:
        raise _illegal(life, "be reaped before anything ended it")
    return Life(SandboxState.ENDED, life.reason)


def _illegal(life: Life, event: str) -> ConflictError:
    message = f"a sandbox that is {life.state.value} cannot {event}"
    return ConflictError(message, code="illegal_transition")
