"""Processes: programs that are started in a sandbox to stay; their bodies beside them.

Who attaches to one holds it back while he reads slowly, and lets it go on when he leaves.
"""

from __future__ import annotations

from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

from aiohttp import WSMsgType, web
from msgspec import Meta, Struct

from vmpool import model
from vmpool.api import bodies, codec, execs, intake, outflow, sockets, views
from vmpool.api.limits import check_arguments, check_path
from vmpool.api.route import answer
from vmpool.errors import (
    ConflictError,
    GuestError,
    InvalidRequestError,
    NotFoundError,
    VmpoolError,
)
from vmpool.model import DEFAULT_USER, Attached

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator

    from vmpool.agent.processes import Attachment
    from vmpool.api.route import Call
    from vmpool.model import Exited, ProcessInfo, TerminalSize
    from vmpool.sandbox import Sandbox

Characters = Annotated[int, Meta(ge=1, le=65_535)]
Signal = Annotated[int, Meta(ge=1, le=64)]


class WindowSize(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A terminal's size in characters."""

    rows: Characters = 24
    cols: Characters = 80


class StartProcess(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program to start, which outlives the request; with `pty` it runs at a terminal."""

    argv: bodies.Argv
    env: bodies.Env = {}
    cwd: bodies.GuestPath | None = None
    user: bodies.Account = DEFAULT_USER
    timeout: bodies.Seconds | None = None
    pty: WindowSize | None = None
    tag: Annotated[str, Meta(max_length=256)] | None = None


class StartedProcess(Struct, frozen=True, kw_only=True):
    """A process that was started."""

    pid: int
    tag: str | None


class ProcessEnd(Struct, frozen=True, kw_only=True):
    """How a process ended."""

    exit_code: int | None
    signal: int | None
    timed_out: bool
    out_of_memory: bool
    fault: Literal["task"] | None


class ProcessAnswer(Struct, frozen=True, kw_only=True):
    """A process; `ended` is null while it runs.

    `backlog_bytes` of its `output_bytes` are held. Where `cut` is true, arguments and environment
    were too large to be remembered whole.
    """

    pid: int
    tag: str | None
    argv: list[str]
    env: dict[str, str]
    cwd: str | None
    user: str
    pty: WindowSize | None
    stdin_open: bool
    started_at: str
    output_bytes: int
    backlog_bytes: int
    cut: bool
    ended: ProcessEnd | None


class ProcessList(Struct, frozen=True, kw_only=True):
    """The processes that run, and the last that ended, in the order of their starts."""

    processes: list[ProcessAnswer]


class AttachQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of what it wrote before is told first."""

    backlog_bytes: Annotated[int, Meta(ge=0, le=2**53)] = 0


class InputQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether its stdin ends behind the body."""

    eof: bool = False


class SendSignal(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A signal for the process group, as a number."""

    signal: Signal


class AttachedLine(Struct, frozen=True, kw_only=True, tag="attached", tag_field="type"):
    """The first line: `skipped_bytes` were written before what follows."""

    pid: int
    skipped_bytes: int


class ProcessInput(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A WebSocket message to a process: exactly one member is set."""

    stdin: str | None = None
    stdin_base64: bodies.Base64 | None = None
    eof: Literal[True] | None = None
    signal: Signal | None = None
    resize: WindowSize | None = None


ProcessLine = (
    AttachedLine | bodies.Stdout | bodies.Stderr | bodies.Pty | bodies.ExitLine | bodies.ProblemLine
)


async def start(call: Call, body: StartProcess) -> web.Response:
    """Start a program and let it be."""
    if body.timeout is not None:
        call.limits.check_timeout(body.timeout, call.limits.published.sandbox_seconds)
    check_arguments(body.argv, body.env)
    what = model.Command(
        argv=tuple(body.argv),
        env=body.env,
        cwd=None if body.cwd is None else check_path(body.cwd),
        user=body.user,
        timeout=body.timeout,
        stdin=True,
    )
    sandbox = await call.sandbox()
    call.host.audit(call.caller.owner, "process.start", sandbox.id, {"tag": body.tag or ""})
    terminal = None if body.pty is None else _size(body.pty)
    async with sandbox.begin(what, tag=body.tag, terminal=terminal) as attachment:
        return answer(StartedProcess(pid=attachment.pid, tag=body.tag), status=201)


async def list_all(call: Call, _: bodies.Nothing) -> web.Response:
    """List the processes of a sandbox."""
    sandbox = await call.sandbox()
    async with sandbox.attended() as agent:
        listed = await agent.processes.list()
    return answer(ProcessList(processes=[_view(each, sandbox.claim.secrets) for each in listed]))


async def follow(call: Call, query: AttachQuery) -> web.StreamResponse:
    """Stream what a process writes, until it ends or the client leaves."""
    pid = _pid(call)
    sandbox = await call.sandbox()
    response = web.StreamResponse(headers={"Content-Type": execs.NDJSON})

    async def send(line: Struct) -> None:
        if not response.prepared:
            await response.prepare(call.request)
        await outflow.send(response.write(codec.encode(line) + b"\n"), call.limits)

    try:
        async with (
            sandbox.attended() as agent,
            agent.processes.attach(pid, backlog_bytes=query.backlog_bytes) as attachment,
        ):
            await _relay(attachment, send)
    except VmpoolError as err:
        if not response.prepared or isinstance(err, outflow.StalledError):
            raise
        await send(execs.broken_off(call, err))
    await response.write_eof()
    return response


async def attach(call: Call, query: AttachQuery) -> web.StreamResponse:
    """Follow a process over a WebSocket, and give it input."""
    pid = _pid(call)

    async def serve(socket: web.WebSocketResponse, sandbox: Sandbox) -> None:
        async with (
            sandbox.attended() as agent,
            agent.processes.attach(pid, backlog_bytes=query.backlog_bytes) as attachment,
        ):
            await sockets.converse(
                _relay(attachment, lambda line: sockets.send(call, socket, line)),
                _take_input(socket, attachment),
            )

    return await sockets.hold(call, serve)


async def signal(call: Call, body: SendSignal) -> web.Response:
    """Send a signal to a process's group."""
    pid = _pid(call)
    sandbox = await call.sandbox()
    detail = {"pid": str(pid), "signal": str(body.signal)}
    call.host.audit(call.caller.owner, "process.signal", sandbox.id, detail)
    async with sandbox.attended() as agent:
        await agent.processes.signal(pid, body.signal)
    return web.Response(status=204)


async def kill(call: Call, _: bodies.Nothing) -> web.Response:
    """Kill a process's group; it is reaped when the answer comes."""
    pid = _pid(call)
    sandbox = await call.sandbox()
    call.host.audit(
        call.caller.owner, "process.signal", sandbox.id, {"pid": str(pid), "signal": "9"}
    )
    async with sandbox.attended() as agent:
        with _content_with_its_end():
            await agent.processes.signal(pid, 9)
    return web.Response(status=204)


async def resize(call: Call, body: WindowSize) -> web.Response:
    """Set the size of a process's terminal."""
    pid = _pid(call)
    sandbox = await call.sandbox()
    async with sandbox.attended() as agent:
        await agent.processes.resize(pid, _size(body))
    return web.Response(status=204)


async def write_input(call: Call, query: InputQuery) -> web.Response:
    """Hand a process input as it comes; the answer comes when the process has all of it."""
    pid = _pid(call)
    call.limits.check_file_size(call.request.content_length or 0)
    sandbox = await call.sandbox()
    call.host.audit(call.caller.owner, "process.input", sandbox.id, {"pid": str(pid)})
    content = intake.read_file(call.request, call.limits)
    async with sandbox.attended() as agent, aclosing(content) as chunks:
        await agent.processes.input(pid, chunks)
        if query.eof:
            with _content_with_its_end():
                await agent.processes.close_stdin(pid)
    return web.Response(status=204)


@contextmanager
def _content_with_its_end() -> Iterator[None]:
    """Do what has its way with a process that has ended, too."""
    try:
        yield
    except ConflictError as err:
        if err.error_code != "process_ended":
            raise


async def _relay(attachment: Attachment, send: Callable[[Struct], Awaitable[None]]) -> None:
    transcript = execs.Transcript()
    async for event in attachment:
        if isinstance(event, Attached):
            await send(AttachedLine(pid=event.pid, skipped_bytes=max(event.skipped_bytes, 0)))
            continue
        for line in transcript.lines(event):
            await send(line)
    if transcript.exited is None:
        raise GuestError("the guest broke off before the process's end", code="guest_lost")


async def _take_input(socket: web.WebSocketResponse, attachment: Attachment) -> None:
    """Hand input on until the client closes the socket; never returns."""
    while True:
        kind, data = await sockets.receive(socket)
        if kind is WSMsgType.BINARY:
            await attachment.write_stdin(data)
        else:
            await _obey(codec.decode(data, ProcessInput), attachment)


async def _obey(message: ProcessInput, attachment: Attachment) -> None:
    given = [name for name in message.__struct_fields__ if getattr(message, name) is not None]
    if len(given) != 1:
        raise InvalidRequestError(f"give exactly one of {', '.join(message.__struct_fields__)}")
    match message:
        case ProcessInput(stdin=str(text)):
            await attachment.write_stdin(text.encode())
        case ProcessInput(stdin_base64=bytes(data)):
            await attachment.write_stdin(data)
        case ProcessInput(signal=int(number)):
            await attachment.kill(number)
        case ProcessInput(resize=WindowSize() as size):
            await attachment.resize(_size(size))
        case _:
            await attachment.close_stdin()


def _pid(call: Call) -> int:
    """Return the process id of the path; what is none names no process."""
    word = call.request.match_info["pid"]
    if not (word.isascii() and word.isdecimal() and len(word) <= 10):
        raise NotFoundError(f"there is no process {word[:32]!r}", code="process_not_found")
    return int(word)


def _size(size: WindowSize) -> TerminalSize:
    return model.TerminalSize(rows=size.rows, cols=size.cols)


def _view(process: ProcessInfo, secrets: Collection[str]) -> ProcessAnswer:
    """Return a process as it is told; of secrets it was begun with not even the names."""
    env = {k: v for k, v in process.env.items() if k not in secrets}
    return ProcessAnswer(
        pid=process.pid,
        tag=None if process.tag is None else views.printable(process.tag),
        argv=[views.printable(word) for word in process.argv],
        env={views.printable(k): views.printable(v) for k, v in env.items()},
        cwd=None if process.cwd is None else views.printable(process.cwd),
        user=views.printable(process.user),
        pty=None
        if process.terminal is None
        else WindowSize(rows=process.terminal.rows, cols=process.terminal.cols),
        stdin_open=process.takes_input,
        started_at=views.rfc3339(process.started_ns),
        output_bytes=max(process.output_bytes, 0),
        backlog_bytes=max(process.backlog_bytes, 0),
        cut=process.cut,
        ended=None if process.ended is None else _end(process.ended),
    )


def _end(exited: Exited) -> ProcessEnd:
    return ProcessEnd(
        exit_code=exited.exit_code,
        signal=exited.signal,
        timed_out=exited.timed_out,
        out_of_memory=exited.out_of_memory,
        fault=views.fault(exited),
    )
