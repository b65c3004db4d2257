"""Interpreter: the agent's end of the warm interpreter.

The warm interpreter is a child that was forked before the snapshot, did the image's imports and
waits; every run of source is a fork of it. It starts again when it dies. It speaks over a socket
that keeps messages apart; what it cannot take yet waits here.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from vmpool_agent import execution, spawn
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool_agent.execution import Execution
    from vmpool_agent.machine import Machine
    from vmpool_agent.session import Channel

_RESTART_DELAY = 0.1
_MAX_RESTART_DELAY = 5.0


class _Packet(NamedTuple):
    """A message to the warm interpreter and the descriptors that go with it."""

    value: dict[str, Any]
    descriptors: tuple[int, ...]


class Interpreter:
    """Starts the warm interpreter and has it run source.

    Args:
        warm_up: Path of the image's warm-up script, which may be missing.
    """

    def __init__(self, machine: Machine, warm_up: str) -> None:
        self._machine = machine
        self._warm_up = warm_up
        self._socket: socket.socket | None = None
        self._queue: collections.deque[_Packet] = collections.deque()
        self._number = 0
        self._runs: dict[int, Execution] = {}
        self._questions: dict[int, tuple[dict[str, Any], Callable[[dict[str, Any]], None]]] = {}
        self._delay = _RESTART_DELAY

    def start(self) -> None:
        """Fork the warm interpreter off; before the agent holds anything it should not have."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

        def body() -> int:
            # Not above: its random generator would be seeded anew in each fork of the agent.
            from vmpool_agent import zygote  # noqa: PLC0415

            return zygote.main(spawn.REPORT, self._warm_up, self._machine.system)

        pid = spawn.fork((null, 2, 2, theirs.fileno()), body)
        os.close(null)
        theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._machine.expect(pid, self._on_death)
        self._machine.reactor.watch(ours.fileno(), self._on_ready)

    def run(self, channel: Channel, request: dict[str, Any]) -> Execution:
        """Begin the operation `code`.

        Raises:
            OperationError: It cannot be run; what only the child can find out is told later.
        """
        source = request.get("source")
        if not isinstance(source, str):
            raise OperationError("bad_request", "source is a string")
        launch = execution.read_launch(self._machine, request)
        timeout = execution.read_timeout(request)
        document = os.memfd_create("request", os.MFD_CLOEXEC)
        job = {
            "source": source,
            "account": launch.account,
            "env": spawn.environment(launch.account, launch.env),
            "cwd": launch.cwd,
        }
        # Beyond a socket's buffer, and not for the warm interpreter to copy: its forks read it.
        with open(document, "wb", closefd=False) as file:
            file.write(json.dumps(job).encode("ascii"))
        pipes = execution.Pipes(stdin=request.get("stdin") is True)
        run = execution.Execution(self._machine, channel, pipes, announces=True, timeout=timeout)
        self._number += 1
        self._runs[self._number] = run
        self._send(_Packet({"run": self._number}, (document, *pipes.child)))
        return run

    def ask(self, question: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        """Put a question to the warm interpreter; it is put again if that dies meanwhile."""
        self._number += 1
        self._questions[self._number] = (question, answer)
        self._send(_Packet({**question, "ask": self._number}, ()))

    def _send(self, packet: _Packet) -> None:
        self._queue.append(packet)
        self._pump()

    def _pump(self) -> None:
        while self._queue and self._socket is not None:
            packet = self._queue[0]
            data = json.dumps(packet.value).encode("ascii")
            try:
                if packet.descriptors:
                    socket.send_fds(self._socket, [data], list(packet.descriptors))
                else:
                    self._socket.send(data)
            except BlockingIOError:
                self._machine.reactor.watch_room(self._socket.fileno())
                return
            except OSError:
                return  # it died, and we shall be told
            self._queue.popleft()
            _close_all(packet)

    def _on_ready(self) -> None:
        self._pump()
        self._drain()

    def _drain(self) -> None:
        while self._socket is not None:
            try:
                data = self._socket.recv(65536)
            except OSError:
                return
            if not data:
                return
            self._take(json.loads(data))

    def _take(self, value: dict[str, Any]) -> None:
        if "answer" in value:
            question = self._questions.pop(value["answer"], None)
            if question is not None:
                question[1](value)
            return
        number = value["run"]
        run = self._runs.get(number)
        if run is None:
            return
        if "pid" in value:
            # Should the warm interpreter die first, the child becomes ours to reap.
            self._machine.expect(value["pid"], run.relay.reaped)
            run.adopt(value["pid"])
        elif "status" in value:
            del self._runs[number]
            if run.relay.pid is not None:
                self._machine.forget(run.relay.pid)
            run.relay.reaped(value["status"])
        else:
            del self._runs[number]
            run.lose(str(value.get("error")))

    def _on_death(self, _status: int) -> None:
        """Start again; runs that it had already forked go on, the others are lost."""
        self._drain()
        if self._socket is not None:
            self._machine.reactor.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None
        waiting = {packet.value.get("run") for packet in self._queue}
        for number, run in list(self._runs.items()):
            if number in waiting:
                continue
            del self._runs[number]
            if run.relay.pid is None or not _exists(run.relay.pid):
                run.lose("the warm interpreter died")
        kept = [packet for packet in self._queue if "run" in packet.value]
        asked = [
            _Packet({**question, "ask": number}, ())
            for number, (question, _) in self._questions.items()
        ]
        self._queue = collections.deque([*asked, *kept])
        self._machine.reactor.after(self._delay, self._restart)
        self._delay = min(2 * self._delay, _MAX_RESTART_DELAY)

    def _restart(self) -> None:
        self.start()
        self._pump()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _close_all(packet: _Packet) -> None:
    for fd in packet.descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)
