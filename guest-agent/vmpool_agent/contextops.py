"""Context operations: what a host asks about contexts, each on a channel of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmpool_agent import execution
from vmpool_agent.cell import Cell
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool_agent import wire
    from vmpool_agent.context import Context
    from vmpool_agent.machine import Machine
    from vmpool_agent.session import Channel, Operation

    Start = Callable[[Machine, Channel, dict[str, Any]], Operation | None]


class _Waiting:
    """An operation that is answered when a context has come about as it asks."""

    def __init__(self, channel: Channel, context: Context) -> None:
        self._channel = channel
        self._context = context
        self._over = False

    def answer(self, error: OperationError | None) -> None:
        """Answer, unless the host has given up."""
        if self._over:
            return
        self._over = True
        if error is not None:
            self._channel.fail(error)
        else:
            _done(self._channel, context=self._context.info)

    def on_data(self, data: wire.Data) -> None:
        """See `session.Operation`."""
        self._channel.consumed(data)

    def on_message(self, _value: dict[str, Any]) -> None:
        """See `session.Operation`."""
        raise OperationError("bad_request", "there is nothing to say here")

    def on_finish(self) -> None:
        """See `session.Operation`."""

    def on_writable(self) -> None:
        """See `session.Operation`."""

    def on_closed(self) -> None:
        """See `session.Operation`; what was begun goes on."""
        self._over = True


class _Making(_Waiting):
    """The making of a context, which nobody would know of were it given up."""

    def on_closed(self) -> None:
        """See `session.Operation`."""
        if not self._over:
            self._over = True
            self._context.close(lambda _: None)


def _create(machine: Machine, channel: Channel, request: dict[str, Any]) -> Operation:
    context = machine.contexts.add(machine, request)
    operation = _Making(channel, context)
    context.open(operation.answer)
    return operation


def _list(machine: Machine, channel: Channel, _request: dict[str, Any]) -> None:
    _done(channel, contexts=[context.info for context in machine.contexts.all()])


def _run(machine: Machine, channel: Channel, request: dict[str, Any]) -> Operation:
    source = request.get("source")
    if not isinstance(source, str) or "\0" in source:
        raise OperationError("bad_request", "source is a string without zero")
    env = execution.read_env(request, "env")
    outer = execution.read_env(request, "outer")
    timeout = execution.read_timeout(request)
    context = _wanted(machine, request, outer)
    cell = Cell(machine, channel, context, source=source, env=env, outer=outer, timeout=timeout)
    context.add(cell)
    return cell


def _wanted(machine: Machine, request: dict[str, Any], outer: dict[str, str]) -> Context:
    """Return the context that a request names; it is made when the request says what it would be.

    Raises:
        OperationError: `context_not_found`, or it cannot be made.
    """
    name, made_of = request.get("context"), request.get("or_create")
    if machine.contexts.find(name) is None and isinstance(made_of, dict) and isinstance(name, str):
        return machine.contexts.add(machine, {**made_of, "outer": outer}, name)
    return machine.contexts.named(request)


def _interrupt(machine: Machine, channel: Channel, request: dict[str, Any]) -> None:
    _done(channel, interrupted=machine.contexts.named(request).interrupt())


def _restart(machine: Machine, channel: Channel, request: dict[str, Any]) -> Operation:
    context = machine.contexts.named(request)
    operation = _Waiting(channel, context)
    context.restart(operation.answer)
    return operation


def _close(machine: Machine, channel: Channel, request: dict[str, Any]) -> Operation:
    context = machine.contexts.named(request)
    operation = _Waiting(channel, context)
    context.close(operation.answer)
    return operation


def _done(channel: Channel, **answer: object) -> None:
    channel.send_message({"type": "done", **answer})
    channel.end()


OPERATIONS: dict[str, Start] = {
    "context_create": _create,
    "contexts": _list,
    "context_run": _run,
    "context_interrupt": _interrupt,
    "context_restart": _restart,
    "context_close": _close,
}
