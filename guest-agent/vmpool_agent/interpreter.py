"""Interpreter: the agent's end of the warm interpreter, and the spares that wait beside it.

The warm interpreter is a child that was forked before the snapshot and did the image's imports. A
spare is a fork of it that has already done what every run does and waits for its request, so that
a run costs neither a fork nor the first touch of its pages. A spare runs once. Most clones of a
snapshot run once too, and a spare that waits in vain is memory that the clone shares with nobody:
the next is forked when a run found none, and from then on one waits again. Either starts again
when it dies.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import socket
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vmpool_agent import execution, spawn
from vmpool_agent.pipes import Pipes
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool_agent.execution import Execution, Foreground
    from vmpool_agent.machine import Machine
    from vmpool_agent.session import Channel

STOCK = 2
"""Spares in a snapshot: one for the run that warms a clone up, one for its holder's first."""

_RESTART_DELAY = 0.1
_MAX_RESTART_DELAY = 5.0
_MAX_FAILED_ROUNDS = 3
"""After so many the fault is not one of a moment; the first may be that of a death not yet seen."""
_MAX_DEATHS = 3
"""Spares that may die under one run before it began, until it is given up."""
_REFILL_DELAY = 0.01
"""Seconds after a run's end until the next spare is forked: first the end is told."""
_LEISURE = 0.1
"""Seconds after a clone became somebody until a spare is forked for it where none waits: whoever
has woken it asks for something first, and that is seldom a run."""


class _Request(NamedTuple):
    """What a spare is told to run, and whether the host writes to its stdin."""

    document: bytes
    stdin: bool


class Taker(Protocol):
    """Who waits for a spare."""

    @property
    def over(self) -> bool:
        """Whether it waits no more."""

    def adopt(self, pid: int, pipes: Pipes, *, ended: Callable[[], None] | None = None) -> None:
        """Take on the process and its pipes, and call `ended` once a spare may be made again."""

    def lose(self, why: str) -> None:
        """Learn that none comes."""


class _Spare:
    """A fork of the warm interpreter that runs one request.

    Attributes:
        pipes: Its own since it was forked; they become its run's.
        pid: Its process id, `None` until it has said that it is ready.
    """

    def __init__(self, connection: socket.socket, pipes: Pipes) -> None:
        self.connection = connection
        self.pipes = pipes
        self.pid: int | None = None


class Interpreter:
    """Starts the warm interpreter, keeps spares and has them run source.

    Args:
        warm_up: Path of the image's warm-up script, which may be missing.
    """

    def __init__(self, machine: Machine, warm_up: str) -> None:
        self._machine = machine
        self._warm_up = warm_up
        self._socket: socket.socket | None = None
        self._coming: set[_Spare] = set()
        self._ready: list[_Spare] = []
        self._runs: collections.deque[tuple[Taker, _Request]] = collections.deque()
        self._kept = 1
        self._questions: list[Callable[[], None]] = []
        self._wishes: list[tuple[int, Callable[[list[str]], None]]] = []
        self._generators: list[str] = []
        self._delay = _RESTART_DELAY
        self._failed_rounds = 0

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
        self._machine.reactor.watch(ours.fileno(), self._on_answer)
        for _ in self._questions:
            self._send(spawn.COLLECT, [])
        self._refill()

    def run(self, channel: Channel, request: dict[str, Any]) -> Foreground:
        """Begin the operation `code`.

        Raises:
            OperationError: It cannot be run; what only the child can find out is told later.
        """
        source = request.get("source")
        if not isinstance(source, str):
            raise OperationError("bad_request", "source is a string")
        launch = execution.read_launch(self._machine, request)
        timeout = execution.read_timeout(request)
        document = json.dumps(
            {
                "source": source,
                "account": launch.account,
                "env": spawn.environment(launch.account, launch.env),
                "cwd": launch.cwd,
                "rng": self._machine.randomness.told,
            }
        ).encode("ascii")
        wanted = _Request(document, stdin=request.get("stdin") is True)
        deaths = 0

        def begin_anew(run: Execution) -> None:
            nonlocal deaths
            deaths += 1
            if deaths < _MAX_DEATHS:
                self._runs.appendleft((run, wanted))
                self._assign()
            else:
                run.lose("the interpreter died before it began, again and again")

        run = execution.Execution(self._machine, channel, timeout=timeout, begin_anew=begin_anew)
        self._runs.append((run, wanted))
        self._assign()
        return execution.Foreground(run, channel)

    def lend(self, taker: Taker, document: bytes) -> None:
        """Have a spare become the interpreter of a context; its stdin takes requests."""
        self._runs.append((taker, _Request(document, stdin=True)))
        self._assign()

    def quiesce(self, answer: Callable[[], None]) -> None:
        """Have the warm interpreter collect its garbage once it is warm; spares are made anew."""

        def renew() -> None:
            # Those that wait share less with it than its next forks will.
            while self._ready:
                self._drop(self._ready.pop())
            self._refill()
            answer()

        self._questions.append(renew)
        self._send(spawn.COLLECT, [])

    def await_spares(self, count: int, answer: Callable[[list[str]], None]) -> None:
        """Answer once so many spares wait, with the generators that each seeds before it runs."""
        self._wishes.append((count, answer))
        self._refill()
        self._grant()

    def tell_generators(self, answer: Callable[[list[str]], None]) -> None:
        """Answer with the generators that each fork seeds before it runs: at once, if one has said.

        All forks of one warm interpreter seed the same. None that waits is needed to know it; where
        there is none, the next is forked when whoever asks has had time for something else.
        """
        if not self._generators:
            self.await_spares(1, answer)
            return
        answer(self._generators)
        if not self._ready and not self._coming:
            self._machine.reactor.after(_LEISURE, self._stand_by)

    def _stand_by(self) -> None:
        if self._socket is not None and not self._ready and not self._coming:
            self._fork(spawn.FORK)

    def expect_one_run(self) -> None:
        """Keep no further spares than there are until a run finds none: a snapshot is due."""
        self._kept = 0

    def _refill(self) -> None:
        """Have as many spares forked as are wished for, and those kept for whoever comes next."""
        wished = max([self._kept, len(self._runs), *(count for count, _ in self._wishes)])
        while self._socket is not None and len(self._ready) + len(self._coming) < wished:
            urgent = len(self._ready) + len(self._coming) < len(self._runs)
            if not self._fork(spawn.FORK_AT_ONCE if urgent else spawn.FORK):
                return

    def _fork(self, order: bytes) -> bool:
        """Have a spare forked; return whether the warm interpreter was told."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pipes = Pipes(execution.OUTPUTS)
        asked = self._send(order, [theirs.fileno(), *pipes.child])
        theirs.close()
        pipes.close_child()
        if not asked:
            ours.close()
            pipes.close()
            return False
        ours.setblocking(False)
        spare = _Spare(ours, pipes)
        self._coming.add(spare)
        self._machine.reactor.watch(ours.fileno(), functools.partial(self._on_spare, spare))
        return True

    def _assign(self) -> None:
        """Give waiting runs to waiting spares."""
        while self._runs and self._ready:
            run, request = self._runs.popleft()
            if run.over:
                continue
            spare = self._ready.pop()
            assert spare.pid is not None
            self._machine.reactor.forget(spare.connection.fileno())
            if not _hand_over(spare, request):
                spare.pipes.close()
                self._runs.appendleft((run, request))  # that one died while it waited
                continue
            run.adopt(spare.pid, spare.pipes, ended=self._on_run_end)
        if self._runs:
            self._kept = 1
            self._refill()

    def _on_run_end(self) -> None:
        if len(self._ready) < self._kept:
            self._machine.reactor.after(_REFILL_DELAY, self._refill)

    def _on_spare(self, spare: _Spare) -> None:
        """Take a spare's word that it is ready, or note that it has died."""
        try:
            data = spare.connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        said = json.loads(data) if data else {}
        if spare in self._coming and "pid" in said:
            self._coming.remove(spare)
            self._ready.append(spare)
            spare.pid = said["pid"]
            self._generators = said["generators"]
            self._delay = _RESTART_DELAY
            self._failed_rounds = 0
            self._assign()
            self._grant()
            return
        why = _last_word(spare)
        self._drop(spare)
        if spare in self._ready:
            self._ready.remove(spare)
        elif spare in self._coming:
            self._coming.remove(spare)
            if not self._coming:
                self._on_failed_round(why)

    def _on_failed_round(self, why: str) -> None:
        """Try again when no spare came up of those asked for; in the end give up who waits."""
        self._failed_rounds += 1
        if self._failed_rounds >= _MAX_FAILED_ROUNDS:
            self._failed_rounds = 0
            self._lose_all(f"no fork of the warm interpreter came up: {why}")
        self._machine.reactor.after(self._delay, self._refill)
        self._delay = min(2 * self._delay, _MAX_RESTART_DELAY)

    def _drop(self, spare: _Spare) -> None:
        """Let a spare go, which then ends."""
        self._machine.reactor.forget(spare.connection.fileno())
        spare.connection.close()
        spare.pipes.close()

    def _lose_all(self, why: str) -> None:
        while self._runs:
            run, _ = self._runs.popleft()
            run.lose(why)

    def _grant(self) -> None:
        for wish in list(self._wishes):
            count, answer = wish
            if len(self._ready) >= count:
                self._wishes.remove(wish)
                answer(self._generators)

    def _send(self, order: bytes, descriptors: list[int]) -> bool:
        """Tell the warm interpreter what to do; return whether it was told."""
        if self._socket is None:
            return False
        try:
            socket.send_fds(self._socket, [order], descriptors)
        except OSError:
            return False  # it died, and we shall be told; or it has more to do than we could ask
        return True

    def _on_answer(self) -> None:
        while self._socket is not None and self._questions:
            try:
                data = self._socket.recv(1)
            except OSError:
                return
            if not data:
                return
            self._questions.pop(0)()

    def _on_death(self, _status: int) -> None:
        """Start again; spares and runs that it had already forked go on."""
        if self._socket is not None:
            self._machine.reactor.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._generators = []
        self._machine.reactor.after(self._delay, self.start)
        self._delay = min(2 * self._delay, _MAX_RESTART_DELAY)


def _hand_over(spare: _Spare, request: _Request) -> bool:
    """Send a spare its request, and close the connection; return whether it still took it."""
    document, descriptors = request.document, []
    if len(document) > spawn.PACKET:
        descriptors.append(_file_of(document))
        document = spawn.ENCLOSED
    if request.stdin:
        descriptors.append(spare.pipes.add_stdin())
    try:
        with spare.connection:
            if descriptors:
                socket.send_fds(spare.connection, [document], descriptors)
            else:
                spare.connection.send(document)
    except OSError:
        return False
    finally:
        for fd in descriptors:
            os.close(fd)
    return True


def _last_word(spare: _Spare) -> str:
    """Return why a spare that did not come up did not."""
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads(os.read(spare.pipes.report, spawn.PACKET))["message"])
    return "it died"


def _file_of(document: bytes) -> int:
    """Return a descriptor of a file in memory: what is too large for a packet."""
    fd = os.memfd_create("request", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(document)
    return fd
