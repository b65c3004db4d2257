"""Context: one interpreter that keeps its state from one execution to the next.

It decides what runs when: one execution at a time, those behind it in the order in which they were
asked for. An interpreter that dies is started anew, without its state, which the end of what it
ran says; so does what waited behind it. How an interpreter is spoken to is `languages`' and
`dialogue`'s.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import functools
import json
import os
import signal
from typing import TYPE_CHECKING, Any

from vmpool_agent import execution, languages, spawn
from vmpool_agent.dialogue import Dialogue
from vmpool_agent.pipes import Pipes
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool_agent.cell import Cell
    from vmpool_agent.machine import Machine

    Answer = Callable[[OperationError | None], None]

QUEUE = 64
"""Executions of one context that may wait."""


class Life(enum.Enum):
    """Where a context's interpreter is in its life."""

    DOWN = "down"
    STARTING = "starting"
    READY = "idle"


class Context:
    """One context; `open` starts its interpreter.

    Args:
        id: What the host calls it.
        outer: The sandbox's environment as the host told it last, under the context's own.
        on_close: Called when it is no more, perhaps again: closed, or its first start failed.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        id: str,
        language: str,
        launch: spawn.Launch,
        outer: dict[str, str],
        on_close: Callable[[], None],
    ) -> None:
        self.id = id
        self.language = language
        self._machine = machine
        self._launch = launch
        self._outer = outer
        self._on_close = on_close
        self._dialogue: Dialogue | None = None
        self._pid: int | None = None
        self._refill: Callable[[], None] | None = None
        self._life = Life.DOWN
        self._was_ready = False
        self._renewing = False
        self._closing = False
        self._killed = False
        self._number = 0
        self._epoch: int | None = None
        self._executions = 0
        self._current: Cell | None = None
        self._queue: collections.deque[Cell] = collections.deque()
        self._waiting: list[Answer] = []

    @property
    def over(self) -> bool:
        """Whether nobody wants its interpreter any more; see `interpreter.Taker`."""
        return self._closing

    @property
    def info(self) -> dict[str, Any]:
        """What the host is told of it."""
        return {
            "id": self.id,
            "language": self.language,
            "cwd": spawn.resolve(self._launch.cwd or "", self._launch.account),
            "user": self._launch.account.name,
            "state": "busy" if self._current is not None else self._life.value,
            "pid": self._pid,
            "executions": self._executions,
            "waiting": len(self._queue),
        }

    def open(self, answer: Answer) -> None:
        """Start its interpreter; answers when that waits for requests, or with why it does not."""
        self._waiting.append(answer)
        self._start()

    def add(self, cell: Cell) -> None:
        """Run a cell after those before it.

        Raises:
            OperationError: `context_busy`, or `bad_request`.
        """
        languages.check_env(self.language, cell.env)
        if len(self._queue) >= QUEUE:
            raise OperationError("context_busy", f"{QUEUE} executions wait in context {self.id!r}")
        self._queue.append(cell)
        if self._life is Life.DOWN:
            self._start()
        self._next()
        if cell in self._queue:
            cell.wait()

    def drop(self, cell: Cell) -> None:
        """Forget a cell that has not begun."""
        with contextlib.suppress(ValueError):
            self._queue.remove(cell)

    def is_current(self, cell: Cell) -> bool:
        """Whether it is this cell that runs."""
        return self._current is cell

    def interrupt(self) -> bool:
        """Have what runs end by SIGINT, once it has begun; return whether anything runs."""
        if self._current is None:
            return False
        self._current.interrupt()
        return True

    def listen(self, cell: Cell | None) -> None:
        """Send output to a cell's channel from now on, or throw it away."""
        if self._dialogue is not None:
            self._dialogue.listen(None if cell is None else cell.channel)

    def resume(self) -> None:
        """Go on: whoever listens has room again."""
        if self._dialogue is not None:
            self._dialogue.resume()

    def kill(self, number: int) -> None:
        """Send a signal to the interpreter's process group."""
        self._killed |= number == signal.SIGKILL
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, number)

    def restart(self, answer: Answer) -> None:
        """Begin anew without its state; what runs and what waits ends. Answers when it is ready."""
        self._waiting.append(answer)
        if self._dialogue is not None:
            self._life = Life.STARTING
            self._renewing = True
            self.kill(signal.SIGKILL)
        elif self._life is Life.DOWN:
            self._start()

    def close(self, answer: Answer) -> None:
        """End it and all that runs and waits in it. Answers when it is gone."""
        self._closing = True
        if self._dialogue is None:
            self._fail_all(self._gone())
            self._answer_waiting(self._gone())
            self._on_close()
            answer(None)
            return
        self._waiting.append(lambda _: answer(None))
        self.kill(signal.SIGKILL)

    def adopt(self, pid: int, pipes: Pipes, *, ended: Callable[[], None] | None = None) -> None:
        """Take on the interpreter, and the agent's ends of its pipes; see `interpreter.Taker`."""
        dialogue = Dialogue(self._machine.reactor, pipes, self)
        self._dialogue = dialogue
        self._pid = pid
        self._killed = False
        self._refill = ended
        self._machine.expect(pid, functools.partial(self._on_reaped, dialogue, ended))

    def lose(self, why: str) -> None:
        """Note that no interpreter came up; see `interpreter.Taker`."""
        self._fail_start(OperationError("interpreter_lost", why))

    def on_report(self, value: dict[str, Any]) -> None:
        """See `dialogue.Owner`."""
        kind = value.get("type")
        if kind == "ready" and self._life is Life.STARTING and not self._renewing:
            self._life = Life.READY
            self._was_ready = True
            if self._refill is not None:
                self._refill()
            self._answer_waiting(None)
            self._next()
        elif kind == "error" and self._life is Life.STARTING:
            self._fail_start(OperationError(str(value.get("code")), str(value.get("message"))))
        elif self._current is not None:
            self._on_report_of(self._current, value)

    def on_end(self, status: int) -> None:
        """See `dialogue.Owner`."""
        self._dialogue = self._pid = None
        again = self._renewing or self._life is Life.READY
        self._renewing = False
        self._life = Life.DOWN
        current, self._current = self._current, None
        if current is not None:
            current.die(status, out_of_memory=self._ran_out_of_memory(status))
        self._fail_all(self._gone() if self._closing else self._lost())
        if self._closing:
            self._on_close()
            self._answer_waiting(self._gone())
        elif again:
            self._start()
        else:
            self._fail_start(OperationError("interpreter_lost", "it ended before it was ready"))

    def _on_report_of(self, cell: Cell, value: dict[str, Any]) -> None:
        kind = value.get("type")
        if kind in ("result", "raised"):
            cell.show(value)
        elif value.get("number") != self._number:
            return  # told twice: an interrupt came between the end and our learning of it
        elif kind == "begun":
            cell.begin()
        elif kind == "ended":
            self._current = None
            self.listen(None)
            code = value.get("exit_code")
            cell.end(code if isinstance(code, int) else 1)
            self._next()

    def _next(self) -> None:
        """Have the next cell run, if there is one and nothing runs."""
        if self._life is not Life.READY or self._current is not None or not self._queue:
            return
        cell = self._current = self._queue.popleft()
        self._number += 1
        self._executions += 1
        assert self._dialogue is not None
        self._dialogue.listen(cell.channel)
        changes = {
            name: value
            for name, value in cell.outer.items()
            if self._outer.get(name) != value and name not in self._launch.env
        }
        self._outer = cell.outer
        request = languages.Request(
            number=self._number,
            executions=self._executions,
            source=cell.source,
            env=cell.env,
            changes=changes,
            rng=self._reseeding(),
        )
        cell.start(self._pid, self._executions)
        program = languages.PROGRAMS.get(self.language)
        phrase = languages.phrase_as_json if program is None else program.phrase
        self._dialogue.ask(phrase(request))

    def _reseeding(self) -> dict[str, Any] | None:
        """Return how generators begin anew, `None` where the interpreter last ran as this clone."""
        told = self._machine.randomness.told
        known, self._epoch = self._epoch, told["epoch"]
        return told if known != self._epoch else None

    def _start(self) -> None:
        """Start the interpreter; who waits is told when it does not come up."""
        self._life = Life.STARTING
        self._executions = 0
        told = self._machine.randomness.told
        launch = self._launch._replace(env=self._outer | self._launch.env)
        program = languages.PROGRAMS.get(self.language)
        if program is not None:
            self._epoch = None
            self._start_program(program, launch)
            return
        self._epoch = told["epoch"]
        document = {
            "account": launch.account,
            "env": spawn.environment(launch.account, launch.env),
            "cwd": launch.cwd,
            "rng": told,
        }
        self._machine.interpreter.lend(self, json.dumps(document).encode("ascii"))

    def _start_program(self, program: languages.Program, launch: spawn.Launch) -> None:
        pipes = Pipes(execution.OUTPUTS)
        try:
            pid = languages.spawn_program(self._machine.system, program, launch, pipes)
        except OperationError as err:
            pipes.close()
            self._fail_start(err)
            return
        finally:
            pipes.close_child()
        self.adopt(pid, pipes)
        assert self._dialogue is not None
        self._dialogue.ask(program.greeting)

    def _on_reaped(self, dialogue: Dialogue, ended: Callable[[], None] | None, status: int) -> None:
        # Its group dies with it: what it left running has nobody to write to.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._pid is not None:
                os.killpg(self._pid, signal.SIGKILL)
        dialogue.reaped(status)
        if ended is not None:
            ended()

    def _fail_start(self, error: OperationError) -> None:
        """Tell all who wait that it did not come up; the next execution tries again."""
        self._life = Life.DOWN
        self._fail_all(error)
        self._answer_waiting(error)
        if not self._was_ready and not self._closing:
            self._closing = True
            self._on_close()

    def _fail_all(self, error: OperationError) -> None:
        queue, self._queue = self._queue, collections.deque()
        for cell in queue:
            cell.fail(error)

    def _answer_waiting(self, error: OperationError | None) -> None:
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer(error)

    def _gone(self) -> OperationError:
        return OperationError("context_not_found", f"context {self.id!r} was closed")

    def _lost(self) -> OperationError:
        what = f"the interpreter of context {self.id!r} ended before this began; its state is lost"
        return OperationError("context_lost", what)

    def _ran_out_of_memory(self, status: int) -> bool:
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        return killed and not self._killed and self._machine.notice_oom_kill()
