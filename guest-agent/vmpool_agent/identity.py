"""Identity: what makes a clone itself, set and read back; and making ready for a snapshot.

Everything here fails closed: what cannot be set, or reads back otherwise, is an error, and the
host discards the clone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool_agent.machine import Machine
    from vmpool_agent.session import Channel

_SEED_SIZE = 64


def identify(machine: Machine, channel: Channel, request: dict[str, Any]) -> None:
    """Set an identity and answer with what then reads back.

    Raises:
        OperationError: `identify_failed`, or the request is malformed.
    """
    hostname = _match(request, "hostname", r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
    machine_id = _match(request, "machine_id", r"[0-9a-f]{32}")
    seed = bytes.fromhex(_match(request, "seed", rf"[0-9a-f]{{{2 * _SEED_SIZE}}}"))
    system = machine.system
    try:
        system.set_clock(_clock(request))
        receipt: dict[str, Any] = {
            "type": "done",
            "entropy_bits": system.add_entropy(seed),
            "hostname": system.set_hostname(hostname),
            "machine_id": system.set_machine_id(machine_id),
            "boot_id": system.renew_boot_id(),
        }
    except OSError as err:
        raise OperationError("identify_failed", str(err)) from err

    def answer(value: dict[str, Any]) -> None:
        receipt["generators"] = value["generators"]
        receipt["clock_ns"] = system.clock()
        channel.send_message(receipt)
        channel.end()

    machine.interpreter.ask({"seed": seed.hex()}, answer)


def set_clock(machine: Machine, channel: Channel, request: dict[str, Any]) -> None:
    """Set the wall clock and answer with what it then shows.

    Raises:
        OperationError: `identify_failed`, or the request is malformed.
    """
    try:
        machine.system.set_clock(_clock(request))
    except OSError as err:
        raise OperationError("identify_failed", str(err)) from err
    channel.send_message({"type": "done", "clock_ns": machine.system.clock()})
    channel.end()


def quiesce(machine: Machine, channel: Channel, _request: dict[str, Any]) -> None:
    """Make ready for a snapshot; answers once the interpreter is warm and memory is given back."""

    def answer(_value: dict[str, Any]) -> None:
        machine.system.settle()
        channel.send_message({"type": "done"})
        channel.end()

    machine.interpreter.ask({}, answer)


OPERATIONS: dict[str, Callable[[Machine, Channel, dict[str, Any]], None]] = {
    "identify": identify,
    "set_clock": set_clock,
    "quiesce": quiesce,
}


def _match(request: dict[str, Any], name: str, pattern: str) -> str:
    value = request.get(name)
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise OperationError("bad_request", f"{name} does not match {pattern}")
    return value


def _clock(request: dict[str, Any]) -> int:
    value = request.get("clock_ns")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise OperationError("bad_request", "clock_ns is Unix time in ns")
    return value
