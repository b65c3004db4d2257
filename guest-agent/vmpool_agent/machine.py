"""Machine: the guest as the agent's operations see it, and the table of operations.

It holds what they share (the loop, the system, the warm interpreter, who waits for which child)
and finds the operation that a request names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmpool_agent import contextops, fileops, identity, ports, processops, program, spawn
from vmpool_agent.claim import Claim
from vmpool_agent.contexts import Contexts
from vmpool_agent.interpreter import Interpreter
from vmpool_agent.processes import Processes
from vmpool_agent.randomness import Randomness
from vmpool_agent.reactor import Reactor
from vmpool_agent.session import OperationError, Service

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool_agent.session import Channel, Operation
    from vmpool_agent.system import Account, System

    Start = Callable[["Machine", Channel, dict[str, Any]], Operation | None]

_OPERATIONS: dict[Any, Start] = {
    **contextops.OPERATIONS,
    **identity.OPERATIONS,
    **ports.OPERATIONS,
    **processops.OPERATIONS,
}


class Machine:
    """What all operations of one agent share.

    Args:
        warm_up: Path of the image's warm-up script, run in the warm interpreter if it exists.
    """

    def __init__(self, system: System, warm_up: str) -> None:
        spawn.widen_limits()
        self.system = system
        self.claim = Claim(system.cid)
        self.randomness = Randomness()
        self.reactor = Reactor(self._on_child)
        self._expected: dict[int, Callable[[int], None]] = {}
        self.interpreter = Interpreter(self, warm_up)
        self.processes = Processes()
        self.contexts = Contexts()
        self._oom_kills = system.oom_kills()

    @property
    def service(self) -> Service:
        """What the streams of this agent offer."""
        return Service(self.claim.admit, self.start)

    def expect(self, pid: int, callback: Callable[[int], None]) -> None:
        """Call back with a child's wait status when it is reaped."""
        self._expected[pid] = callback

    def notice_oom_kill(self) -> bool:
        """Whether the kernel has killed for want of memory since this was last asked.

        Asked when a process was killed and we did not do it, and not for each that starts: the
        answer is dear to come by.
        """
        known, self._oom_kills = self._oom_kills, self.system.oom_kills()
        return self._oom_kills > known

    def account(self, request: dict[str, Any]) -> Account:
        """Return the account that a request names.

        Raises:
            OperationError: There is none.
        """
        name = request.get("user")
        try:
            if isinstance(name, str) and name and "\0" not in name:
                return self.system.account(name)
        except KeyError:
            pass
        raise OperationError("unknown_user", f"invalid username: '{name}'")

    def start(self, channel: Channel, request: dict[str, Any]) -> Operation | None:
        """Begin the operation that a request asks for; see `session.Start`."""
        name = request.get("op")
        if name == "exec":
            return program.run(self, channel, request)
        if name == "code":
            return self.interpreter.run(channel, request)
        if name in fileops.OPERATIONS:
            return fileops.run(self, channel, request)
        if name in _OPERATIONS:
            return _OPERATIONS[name](self, channel, request)
        raise OperationError("bad_request", f"there is no operation {name!r}")

    def _on_child(self, pid: int, status: int) -> None:
        # What nobody expects is an orphan: reaping it was all there is to do.
        callback = self._expected.pop(pid, None)
        if callback is not None:
            callback(status)
