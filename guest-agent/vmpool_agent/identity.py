"""Identity: what makes a clone itself, set and read back; and making ready for a snapshot.

Everything here fails closed: what cannot be set, or reads back otherwise, is an error, and the
host discards the clone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmpool_agent import interpreter
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool_agent.machine import Machine
    from vmpool_agent.session import Channel

_SEED_SIZE = 64
_HEX = "0123456789abcdef"
_LABEL = "abcdefghijklmnopqrstuvwxyz0123456789-"


def identify(machine: Machine, channel: Channel, request: dict[str, Any]) -> None:
    """Set an identity and answer with what then reads back.

    Raises:
        OperationError: `identify_failed`, or the request is malformed.
    """
    hostname = _label(request)
    machine_id = _hex(request, "machine_id", 16)
    seed = bytes.fromhex(_hex(request, "seed", _SEED_SIZE))
    rng = request.get("rng", "unique")
    machine.randomness.wake(rng)
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

    def answer(generators: list[str]) -> None:
        receipt["generators"] = machine.randomness.started_anew(generators)
        receipt["rng"] = rng
        receipt["clock_ns"] = system.clock()
        channel.send_message(receipt)
        channel.end()

    machine.interpreter.tell_generators(answer)


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
    """Give memory back; answers once the interpreter is warm and has, too."""

    def answer() -> None:
        machine.system.settle()
        channel.send_message({"type": "done"})
        channel.end()

    machine.interpreter.quiesce(answer)


def stock(machine: Machine, channel: Channel, _request: dict[str, Any]) -> None:
    """Answer once as many forks of the interpreter wait as a snapshot should hold."""

    def answer(_generators: list[str]) -> None:
        machine.interpreter.expect_one_run()
        machine.system.clear_free_memory()
        channel.send_message({"type": "done"})
        channel.end()

    machine.interpreter.await_spares(interpreter.STOCK, answer)


def release(machine: Machine, channel: Channel, _request: dict[str, Any]) -> None:
    """Give the claim up; this stream stays the host's, and the next claim is a clone's."""
    machine.claim.release()
    channel.send_message({"type": "done"})
    channel.end()


OPERATIONS: dict[str, Callable[[Machine, Channel, dict[str, Any]], None]] = {
    "identify": identify,
    "set_clock": set_clock,
    "quiesce": quiesce,
    "stock": stock,
    "release": release,
}


def _label(request: dict[str, Any]) -> str:
    """Return the host name, a label as in RFC 1123."""
    # No regular expressions here: each clone would translate their machinery for this alone.
    value = request.get("hostname")
    if isinstance(value, str) and 0 < len(value) < 64 and not value.strip(_LABEL):  # noqa: SIM102
        if value[0] != "-" and value[-1] != "-":
            return value
    raise OperationError("bad_request", "hostname is a label of a-z, 0-9 and dashes")


def _hex(request: dict[str, Any], name: str, size: int) -> str:
    value = request.get(name)
    if isinstance(value, str) and len(value) == 2 * size and not value.strip(_HEX):
        return value
    raise OperationError("bad_request", f"{name} is {2 * size} lower-case hex digits")


def _clock(request: dict[str, Any]) -> int:
    value = request.get("clock_ns")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise OperationError("bad_request", "clock_ns is Unix time in ns")
    return value
