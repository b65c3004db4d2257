"""Guests that say anything: what an agent's hostile double can do to the host.

Two ways of being one. A double that speaks the codec and answers each request with frames made up
from the protocol's own words; and one that plays back what a real agent once said, with bytes of it
changed. Either may break the link, and nothing else: what a verb raises stands in the documents, no
task is left with an exception, and nothing hangs when the double hangs up. What it costs in memory
at most, `test_agent_link` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import fake_guest
from vmpool.agent import Agent, connect
from vmpool.agent.contexts import Cell, ContextSpec
from vmpool.errors import VmpoolError
from vmpool.model import Code, Command, Identity, SerialAddress, TerminalSize, Unique
from vmpool_agent import wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

pytestmark = pytest.mark.shares_host  # a guest

USER = "user"
PATIENCE = 20.0
"""Seconds after which something hangs; a double hangs up long before."""


async def drained(events: AsyncIterator[object]) -> None:
    async for _ in events:
        pass


async def execute(agent: Agent, what: Command | Code) -> None:
    async with agent.execute(what) as execution:
        await drained(aiter(execution))


async def begin(agent: Agent) -> None:
    async with agent.processes.begin(
        Command(argv=("true",)), terminal=TerminalSize(rows=24, cols=80)
    ) as attachment:
        await attachment.write_stdin(b"x")
        await drained(aiter(attachment))


async def attach(agent: Agent) -> None:
    async with agent.processes.attach(1, backlog_bytes=100) as attachment:
        await drained(aiter(attachment))


async def cell(agent: Agent) -> None:
    what = Cell(context="default", source="1", or_create=ContextSpec())
    async with agent.contexts.run(what, outer={}) as execution:
        await drained(aiter(execution))


async def read(agent: Agent) -> None:
    await drained(agent.read_file("/x", user=USER))


async def archive(agent: Agent) -> None:
    await drained(agent.archive("/x", user=USER))


async def write(agent: Agent) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield bytes(70_000)

    await agent.write_file("/x", content(), user=USER)


async def watch(agent: Agent) -> None:
    async with agent.watch("/x", user=USER) as watching:
        await drained(aiter(watching))


async def reach(agent: Agent) -> None:
    async with agent.reach(80) as tunnel:
        await tunnel.send(b"GET / HTTP/1.0\r\n\r\n")
        while await tunnel.receive():
            pass


VERBS: dict[str, Callable[[Agent], Awaitable[object]]] = {
    "archive": archive,
    "attach": attach,
    "begin": begin,
    "cell": cell,
    "close context": lambda agent: agent.contexts.close("default"),
    "code": lambda agent: execute(agent, Code(source="1")),
    "contexts": lambda agent: agent.contexts.list(),
    "create context": lambda agent: agent.contexts.create(ContextSpec(), outer={}),
    "directory": lambda agent: agent.make_directory("/x", user=USER),
    "exec": lambda agent: execute(agent, Command(argv=("true",))),
    "identify": lambda agent: agent.identify(Identity.fresh("a"), rng=Unique(), timeout=2),
    "interrupt": lambda agent: agent.contexts.interrupt("default"),
    "link": lambda agent: agent.link("/x", "y", user=USER),
    "list": lambda agent: agent.list_directory("/x", user=USER, depth=3),
    "move": lambda agent: agent.move("/x", "/y", user=USER),
    "processes": lambda agent: agent.processes.list(),
    "quiesce": lambda agent: agent.quiesce(timeout=2),
    "reach": reach,
    "read": read,
    "release": lambda agent: agent.release(timeout=2),
    "remove": lambda agent: agent.remove("/x", user=USER),
    "resize": lambda agent: agent.processes.resize(1, TerminalSize(rows=1, cols=1)),
    "restart": lambda agent: agent.contexts.restart("default"),
    "set clock": lambda agent: agent.set_clock(timeout=2),
    "signal": lambda agent: agent.processes.signal(1, 9),
    "stat": lambda agent: agent.stat("/x", user=USER),
    "stock": lambda agent: agent.stock(timeout=2),
    "watch": watch,
    "write": write,
}

# What a double may say.

TYPES = ["done", "started", "exited", "result", "raised", "error", "info", "entries", "changes"]
TYPES += ["attached", "context", "contexts", "processes", "process", "connected", "identity"]
NAMES = ["context", "contexts"]
NAMES += ["code", "message", "pid", "mime", "name", "value", "traceback", "exit_code", "signal"]
NAMES += ["info", "entries", "changes", "count", "hostname", "machine_id", "boot_id", "clock_ns"]
NAMES += ["entropy_bits", "generators", "rng", "argv", "env", "cwd", "user", "pty", "started_ns"]
NAMES += [
    "ended",
    "context",
    "contexts",
    "id",
    "language",
    "state",
    "path",
    "kind",
    "mode",
    "owner",
]
NAMES += ["size_bytes", "modified_ns", "target", "event", "directory", "skipped_bytes", "cut"]
WORDS = ["bad_request", "file_not_found", "no_resources", "port_closed", "python", "file", "unique"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**66), 2**66)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from([*WORDS, "\udcff", "a" * 5000]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=12,
)
DOCUMENTS = (
    st.fixed_dictionaries({"type": st.sampled_from(TYPES) | VALUES}).flatmap(
        lambda kind: st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8).map(
            lambda rest: json.dumps(rest | kind).encode()
        )
    )
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=40)
    | st.sampled_from([b"[" * 20_000, b'{"type": ' * 5_000, b'{"a":1,"a":2}', b"9" * 5_000])
)
STEPS = st.one_of(
    st.tuples(st.just("message"), DOCUMENTS),
    st.tuples(st.just("data"), st.tuples(st.integers(0, 5), st.binary(max_size=50))),
    st.tuples(st.just("finish"), st.none()),
    st.tuples(st.just("close"), st.none()),
    st.tuples(st.just("raw"), st.binary(max_size=30)),
)
Step = tuple[str, Any]


class Double:
    """An agent that obeys every host, and answers its requests with the steps, in turn."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self._steps = list(steps)
        self._connection = wire.Connection(wire.Role.AGENT, lambda _: True)

    async def play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speak until all was said and heard, then hang up."""
        connection, channel = self._connection, 0
        try:
            while data := await reader.read(65536):
                for event in connection.receive(data):
                    channel = getattr(event, "channel", channel)
                    if isinstance(event, wire.Message):
                        self._say(channel)
                        writer.write(connection.take())
                        return
                writer.write(connection.take())
        except (OSError, wire.WireError):
            pass  # it hung up, or has had enough
        finally:
            with contextlib.suppress(OSError):
                await writer.drain()
                writer.close()
                await writer.wait_closed()

    def _say(self, channel: int) -> None:
        connection = self._connection
        for what, value in self._steps:
            if what == "message":
                connection.send_message(channel, memoryview(value))
            elif what == "data" and connection.capacity(channel) > len(value[1]):
                connection.send_data(channel, *value)
            elif what == "finish":
                connection.send_finish(channel)
            elif what == "close":
                connection.send_close(channel)
            elif what == "raw":
                connection.outgoing += value


async def ask(
    play: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    verbs: Iterable[Callable[[Agent], Awaitable[object]]],
) -> list[VmpoolError]:
    """Ask a double for all of `verbs`; return what was raised, each of it as documented."""
    loop, trouble, raised = asyncio.get_running_loop(), [], []
    loop.set_exception_handler(lambda _, context: trouble.append(context))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "agent"
        playing = []

        def begun(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            playing.append(asyncio.ensure_future(play(reader, writer)))

        server = await asyncio.start_unix_server(begun, path)
        try:
            async with asyncio.timeout(PATIENCE):
                address = SerialAddress(path=path)
                async with await connect(address, key=fake_guest.KEY, timeout=5) as agent:
                    for verb in verbs:
                        try:
                            await verb(agent)
                        except VmpoolError as err:
                            str(err).encode()
                            raised.append(err)
        except VmpoolError as err:
            raised.append(err)
        finally:
            server.close()
            await server.wait_closed()
            await asyncio.wait_for(asyncio.gather(*playing), PATIENCE)
    assert not trouble, trouble
    return raised


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, max_size=5))
def test_whatever_a_guest_says_the_host_fails_in_a_documented_way(
    verb: Callable[[Agent], Awaitable[object]], steps: list[Step]
) -> None:
    asyncio.run(ask(Double(steps).play, [verb]))


# What a real agent said, played back with changes.


async def recorded(guest: Path, verbs: Iterable[Callable[[Agent], Awaitable[object]]]) -> bytes:
    """Return what a real agent says when it is asked for `verbs`, after it was synchronised."""
    said = bytearray()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_unix_connection(guest)

        async def back() -> None:
            while data := await inner.read(65536):
                said.extend(data)
                writer.write(data)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(back())
            while data := await reader.read(65536):
                outer.write(data)
            task.cancel()
        outer.close()
        writer.close()

    await ask(relay, verbs)
    return bytes(said[said.index(b"vmpool\xf0\x0d") + 28 :])


RECORDED = ["stat", "list", "exec", "contexts", "processes", "directory", "read", "code", "watch"]


@pytest.fixture(scope="module")
def traffic(guest: Path) -> bytes:
    """What an agent says when it is asked for much, all of it in one piece."""
    verbs = [VERBS[name] for name in RECORDED if name != "watch"]
    return asyncio.run(recorded(guest, verbs))


def changed(traffic: bytes, chance: random.Random) -> bytes:
    """Return the same with some bytes flipped, left out, said twice or put elsewhere."""
    piece = bytearray(traffic)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        at, size = chance.randrange(len(piece)), chance.choice([1, 4, 8, 100])
        match chance.randrange(5):
            case 0:
                piece[at] ^= 1 << chance.randrange(8)
            case 1:
                piece[at : at + size] = chance.randbytes(size)
            case 2:
                del piece[at : at + size]
            case 3:
                piece[at:at] = piece[at : at + size]
            case _:
                there = chance.randrange(len(piece))
                piece[there:there] = piece[at : at + size]
        piece = piece or bytearray(1)
    return bytes(piece)


def replay(said: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Return a double that says all of it as soon as it was spoken to, and hangs up."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = wire.Connection(wire.Role.AGENT, lambda _: True)
        try:
            while not connection.synchronised:
                connection.receive(await reader.read(65536))
            writer.write(connection.take())
            await reader.read(65536)
            for at in range(0, len(said), 1000):
                writer.write(said[at : at + 1000])
                await writer.drain()
        except (OSError, wire.WireError):
            pass
        finally:
            writer.transport.abort()

    return play


def test_what_was_recorded_is_traffic(traffic: bytes) -> None:
    assert len(traffic) > 500
    assert b'"type"' in traffic


@pytest.mark.parametrize("seed", range(100))
def test_no_change_to_what_an_agent_says_does_more_than_end_its_link(
    traffic: bytes, seed: int
) -> None:
    chance = random.Random(seed)
    said = changed(traffic, chance)
    asyncio.run(ask(replay(said), [VERBS[name] for name in RECORDED]))
