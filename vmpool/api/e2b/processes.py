"""Processes: the RPC service `process.Process`, as E2B's clients use it.

Each program that they start is a kept process of the sandbox: it outlives the stream that began it,
and others can follow it, give it input and signal it by its process id in the guest.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from msgspec import UNSET

from vmpool.api import views
from vmpool.api.e2b import connect, environment
from vmpool.api.e2b import process_messages as messages
from vmpool.api.e2b.account import account_of
from vmpool.api.e2b.connect import NOTHING, Nothing
from vmpool.api.e2b.defaults import Defaults
from vmpool.api.limits import check_arguments
from vmpool.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    TaskTimeoutError,
)
from vmpool.model import Attached, Command, Exited, Output, Started, TerminalSize

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping

    from vmpool.agent import Agent
    from vmpool.agent.processes import ProcessEvent
    from vmpool.api.e2b.visit import Table, Visit
    from vmpool.model import ProcessInfo


async def start(visit: Visit, body: messages.Start) -> AsyncGenerator[messages.Said, None]:
    """Start a program and follow it; its time holds whether or not anybody follows."""
    argv = (body.process.cmd, *body.process.args)
    env = environment.told_by(visit.sandbox) | body.process.envs
    check_arguments(argv, env)
    what = Command(
        argv=argv,
        env=env,
        cwd=body.process.cwd or Defaults.of(visit.sandbox.environment).directory,
        user=account_of(visit),
        timeout=connect.timeout_of(visit.request),
        stdin=body.stdin,
    )
    _audit(visit, "process.start", tag=body.tag or "")
    terminal = None if body.pty is None else _size(body.pty)
    async with visit.sandbox.begin(what, tag=body.tag, terminal=terminal) as attachment:
        async for event in attachment:
            if isinstance(event, Exited):
                visit.host.metrics.execution(*views.outcome(event))
                if event.timed_out:
                    raise TaskTimeoutError(f"the command ran past its {what.timeout} s")
            yield _said(event)


async def follow(visit: Visit, body: messages.Named) -> AsyncGenerator[messages.Said, None]:
    """Follow a process from now on; of one that has ended, the end alone is told."""
    async with visit.sandbox.attended() as agent:
        pid = await _pid_of(agent, body.process)
        async with agent.processes.attach(pid) as attachment:
            async for event in attachment:
                yield _said(event)


async def list_all(visit: Visit, _: Nothing) -> messages.ProcessList:
    """List the processes that run, each with what it was given beside the sandbox's environment."""
    known = environment.told_by(visit.sandbox) | visit.sandbox.environment
    async with visit.sandbox.attended() as agent:
        listed = await agent.processes.list()
    running = [process for process in listed if process.ended is None]
    return messages.ProcessList(processes=[_view(process, known) for process in running])


async def send_input(visit: Visit, body: messages.SendInput) -> Nothing:
    """Hand a process input; answers when it has all of it."""
    content = body.input.content

    async def only() -> AsyncGenerator[bytes, None]:
        yield content

    async with visit.sandbox.attended() as agent:
        pid = await _pid_of(agent, body.process)
        _audit(visit, "process.input", pid=str(pid))
        with _running(pid):
            await agent.processes.input(pid, only())
    return NOTHING


async def stream_input(visit: Visit, frames: AsyncIterator[messages.InputFrame]) -> Nothing:
    """Hand a process input as it comes, for as long as it comes or the process is there."""
    first = await anext(frames, None)
    if first is None or first.start is None:
        raise InvalidRequestError("the first message of a stream of input names the process")
    async with visit.sandbox.attended() as agent:
        pid = await _pid_of(agent, first.start.process)
        if not any(each.pid == pid and each.ended is None for each in await agent.processes.list()):
            raise _missing(f"pid {pid}")
        _audit(visit, "process.input", pid=str(pid))
        try:
            await agent.processes.input(pid, _content(frames))
        except ConflictError as err:
            # It may have ended of what it was given, and no client is to take that for a failure.
            if err.error_code != "process_ended":
                raise
    return NOTHING


async def close_stdin(visit: Visit, body: messages.Named) -> Nothing:
    """Let a process see the end of its input."""
    async with visit.sandbox.attended() as agent:
        pid = await _pid_of(agent, body.process)
        with _running(pid):
            await agent.processes.close_stdin(pid)
    return NOTHING


async def send_signal(visit: Visit, body: messages.SendSignal) -> Nothing:
    """Send a signal to a process's group; after SIGKILL it has ended when the answer comes."""
    async with visit.sandbox.attended() as agent:
        pid = await _pid_of(agent, body.process)
        _audit(visit, "process.signal", pid=str(pid), signal=str(body.number))
        with _running(pid):
            await agent.processes.signal(pid, body.number)
    return NOTHING


async def update(visit: Visit, body: messages.Update) -> Nothing:
    """Set the size of a process's terminal."""
    if body.pty is None:
        raise InvalidRequestError("an update has a pty with its size")
    async with visit.sandbox.attended() as agent:
        pid = await _pid_of(agent, body.process)
        with _running(pid):
            await agent.processes.resize(pid, _size(body.pty))
    return NOTHING


async def _content(frames: AsyncIterator[messages.InputFrame]) -> AsyncGenerator[bytes, None]:
    async for frame in frames:
        if frame.start is not None:
            raise InvalidRequestError("a stream of input is for one process")
        if frame.data is not None:
            yield frame.data.input.content


async def _pid_of(agent: Agent, selector: messages.Selector) -> int:
    """Return the process id that is meant; of several with a tag the one that was begun last."""
    match selector:
        case messages.Selector(pid=int(pid), tag=None):
            return pid
        case messages.Selector(pid=None, tag=str(tag)):
            listed = await agent.processes.list()
            tagged = [each.pid for each in listed if each.tag == tag and each.ended is None]
            if not tagged:
                raise _missing(f"tag {tag!r}")
            return tagged[-1]
        case _:
            raise InvalidRequestError("a process is named either by its pid or by its tag")


@contextlib.contextmanager
def _running(pid: int) -> Iterator[None]:
    """Tell of a process that has ended as of one that is not there: clients know no third."""
    try:
        yield
    except ConflictError as err:
        if err.error_code != "process_ended":
            raise
        raise _missing(f"pid {pid}") from err


def _missing(which: str) -> NotFoundError:
    return NotFoundError(f"process with {which} not found", code="process_not_found")


def _said(event: ProcessEvent) -> messages.Said:
    match event:
        case Started(pid=pid) | Attached(pid=pid):
            return messages.started(pid)
        case Output():
            return messages.written(event)
        case Exited():
            return messages.ended(event)


def _view(process: ProcessInfo, known: Mapping[str, str]) -> messages.Process:
    env = {name: value for name, value in process.env.items() if known.get(name) != value}
    return messages.Process(
        config=messages.printable(process.argv, env, process.cwd),
        pid=process.pid,
        tag=UNSET if process.tag is None else views.printable(process.tag),
    )


def _size(pty: messages.Pty) -> TerminalSize:
    return TerminalSize(rows=pty.size.rows, cols=pty.size.cols)


def _audit(visit: Visit, action: str, **detail: str) -> None:
    visit.host.audit(visit.sandbox.owner, action, visit.sandbox.id, detail)


_SERVICE: Final = "/process.Process"

ENDPOINTS: Final[Table] = {
    ("POST", f"{_SERVICE}/Start"): connect.server_stream(
        messages.Start, start, keepalive=messages.KEEPALIVE
    ),
    ("POST", f"{_SERVICE}/Connect"): connect.server_stream(
        messages.Named, follow, keepalive=messages.KEEPALIVE
    ),
    ("POST", f"{_SERVICE}/List"): connect.unary(Nothing, list_all),
    ("POST", f"{_SERVICE}/SendInput"): connect.unary(messages.SendInput, send_input),
    ("POST", f"{_SERVICE}/StreamInput"): connect.client_stream(messages.InputFrame, stream_input),
    ("POST", f"{_SERVICE}/CloseStdin"): connect.unary(messages.Named, close_stdin),
    ("POST", f"{_SERVICE}/SendSignal"): connect.unary(messages.SendSignal, send_signal),
    ("POST", f"{_SERVICE}/Update"): connect.unary(messages.Update, update),
}
