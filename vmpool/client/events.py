"""Events: what is told of a program while it runs, in the order in which it happened."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import msgspec

from vmpool.client.display import Display
from vmpool.client.problem import error_of
from vmpool.errors import InfrastructureError
from vmpool.model import Stream


@dataclass(frozen=True, slots=True)
class Started:
    """The program runs.

    Attributes:
        pid: Its process id in the guest.
        execution_count: In a context, how many its interpreter was given, this one included.
    """

    pid: int
    execution_count: int | None = None


@dataclass(frozen=True, slots=True)
class Attached:
    """A process that ran already is followed.

    Attributes:
        pid: Its process id in the guest.
        skipped_bytes: What it wrote before the output that follows.
    """

    pid: int
    skipped_bytes: int


@dataclass(frozen=True, slots=True)
class Output:
    """Something that the program wrote.

    Attributes:
        data: The bytes as they were; they end where a character does, if they are text.
    """

    stream: Stream
    data: bytes

    @property
    def text(self) -> str:
        """The output as text; what is no UTF-8 becomes U+FFFD."""
        return self.data.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Raised:
    """The exception that ended the code, as Python would have printed it."""

    name: str
    value: str
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The end; output is complete before it.

    Attributes:
        exit_code: 0 to 255, `None` when a signal ended it.
        signal: Number of the signal that ended it, `None` when it exited.
        timed_out: It was killed because its time was up.
        out_of_memory: The guest's kernel killed it for want of memory.
        duration_ms: How long it took, seen by the server.
        context_lost: The interpreter of a context ended with it, and begins anew without its state.
    """

    exit_code: int | None
    signal: int | None
    timed_out: bool
    out_of_memory: bool
    duration_ms: float
    context_lost: bool = False


Event = Started | Attached | Output | Display | Raised | Exited


def read_event(line: bytes | str) -> Event | None:
    """Return the event of a line; `None` for one that only later versions know.

    Raises:
        VmpoolError: The server broke the program off, and this is why.
        InfrastructureError: `not_vmpool` when it is no event at all.
    """
    try:
        told = msgspec.json.decode(line)
        if told["type"] == "problem":
            error = error_of(told["problem"])
        else:
            return _event(told)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, KeyError, TypeError) as err:
        raise InfrastructureError("the server's stream broke its form", code="not_vmpool") from err
    raise error


def _event(told: dict[str, Any]) -> Event | None:
    match told["type"]:
        case "started" | "attached":
            return _beginning(told)
        case "stdout" | "stderr" | "pty" as stream:
            return Output(Stream(stream), _data(told))
        case "result":
            return Display(
                told["mime"],
                is_main=told.get("is_main", False),
                display_id=told.get("display_id"),
            )
        case "error":
            return Raised(told["name"], told["value"], told["traceback"])
        case "exit":
            return Exited(
                exit_code=told["exit_code"],
                signal=told["signal"],
                timed_out=told["timed_out"],
                out_of_memory=told["out_of_memory"],
                duration_ms=told["duration_ms"],
                context_lost=told.get("context_lost", False),
            )
        case _:
            return None


def _beginning(told: dict[str, Any]) -> Started | Attached:
    if told["type"] == "started":
        return Started(told["pid"], told.get("execution_count"))
    return Attached(told["pid"], told["skipped_bytes"])


def _data(told: dict[str, Any]) -> bytes:
    if "data_base64" in told:
        return base64.b64decode(told["data_base64"])
    return str(told["data"]).encode()
