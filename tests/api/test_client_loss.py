"""What a client makes of a server that is not there, is lost, is silent or is another."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from vmpool.client import connection, repetition
from vmpool.client.asynchronous import AsyncClient
from vmpool.client.endpoint import find_endpoint
from vmpool.client.events import Exited
from vmpool.errors import (
    HostError,
    InfrastructureError,
    InvalidRequestError,
    UnauthorizedError,
    VmpoolError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import Server

Stage = Callable[["Leak"], Awaitable[None]]

BODY = '{"ok": true, "version": "1", "later": []}'
EXIT = (
    b'{"type":"exit","exit_code":0,"signal":null,"timed_out":false,"out_of_memory":false,'
    b'"duration_ms":1,"later":1}\n'
)
HEALTHY = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}".encode()


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repetition, "PAUSES", (0.0,) * len(repetition.PAUSES))


class Leak:
    """A way to a server that loses the first answers on it.

    Attributes:
        url: Of this end.
        lose: How many answers are yet to be lost.
        asked: Requests that came.
    """

    def __init__(self, server: Server, lose: int) -> None:
        self.lose = lose
        self.asked = 0
        self.url = ""
        self._port = int(server.url.rpartition(":")[2])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        forth = asyncio.create_task(self._forth(reader, far_writer))
        try:
            while data := await far_reader.read(1 << 16):
                if self.lose:
                    self.lose -= 1
                    return
                writer.write(data)
        finally:
            forth.cancel()
            await asyncio.wait((forth,))
            for end in (writer, far_writer):
                end.close()
                with contextlib.suppress(ConnectionError):
                    await end.wait_closed()

    async def _forth(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            self.asked += data.count(b" HTTP/1.1\r\n")
            writer.write(data)
        writer.close()


@contextlib.asynccontextmanager
async def leaking(server: Server, *, lose: int) -> AsyncIterator[tuple[AsyncClient, Leak]]:
    """Connect a client through a way that loses answers."""
    leak = Leak(server, lose)
    async with await asyncio.start_server(leak.serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        async with AsyncClient(f"127.0.0.1:{port}", token=server.token) as client:
            yield client, leak


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """Answer whatever is asked with some bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def failure(answer: bytes) -> VmpoolError:
    """Return the error that an answer becomes."""
    async with answering(answer) as url, AsyncClient(url, token="t") as client:
        with pytest.raises(VmpoolError) as failed:
            await client.health()
    return failed.value


async def test_a_create_whose_answer_is_lost_makes_one_sandbox(server: Server) -> None:
    async with leaking(server, lose=2) as (client, leak):
        made = await client.create()
        assert [one.id for one in server.host.sandboxes(owner=server.owner)] == [made.id]
        assert leak.asked == 3


async def test_a_run_whose_answer_is_lost_is_done_once(server: Server, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    async with leaking(server, lose=1) as (client, leak):
        result = await client.run(argv=["bash", "-c", f"echo x >> {mark}; echo done"])
    assert (result.stdout, leak.asked) == ("done\n", 2)
    assert mark.read_text() == "x\n"
    await server.is_idle()


async def test_what_is_only_read_is_asked_again(server: Server) -> None:
    async with leaking(server, lose=1) as (client, leak):
        assert [template.name for template in await client.templates()] == ["python"]
        assert leak.asked == 2


async def test_killing_is_repeated_and_found_done(server: Server) -> None:
    made = await server.make_sandbox()
    async with leaking(server, lose=1) as (client, leak):
        await client.attach(made["id"]).kill()
        assert leak.asked == 2


async def test_what_cannot_be_repeated_is_asked_once(server: Server) -> None:
    made = await server.make_sandbox()
    async with leaking(server, lose=2) as (client, leak):
        held = client.attach(made["id"])
        for call in (held.run(argv=["true"]), held.files.remove("/none")):
            with pytest.raises(InfrastructureError) as lost:
                await call
            assert lost.value.error_code == "server_lost"
        assert leak.asked == 2


async def test_an_execution_leaves_its_connection_to_the_next() -> None:
    told, connections = asyncio.Event(), 0
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(head + b"%x\r\n%s\r\n" % (len(EXIT), EXIT))
                await told.wait()
                writer.write(b"0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        async with AsyncClient(f"127.0.0.1:{port}", token="t") as client:
            async with client.attach("x").exec("1") as running:
                async for event in running:
                    assert isinstance(event, Exited)
                    told.set()
            assert (await client.attach("x").run("1")).ok
    assert connections == 1


async def test_a_server_that_loses_everything_is_given_up(server: Server) -> None:
    async with leaking(server, lose=100) as (client, leak):
        with pytest.raises(InfrastructureError) as lost:
            await client.create()
        assert lost.value.error_code == "server_lost"
        assert leak.asked == 1 + len(repetition.PAUSES)
    assert len(server.host.sandboxes(owner=server.owner)) == 1


async def test_a_retry_joins_a_create_that_still_waits(server: Server) -> None:
    limits = {"ready": 0, "total": 1}
    async with AsyncClient(server.url, token=server.token) as client:
        await client.create_template("one", "python", limits=limits)
        holder = await client.create(template="one")
        body = {"template": "one", "metadata": {"mine": "1"}}
        key = {"Idempotency-Key": "k"}
        # The first stays with the server, as one whose loss it has not heard of yet.
        first = asyncio.create_task(server.call("POST", "/v1/sandboxes", json=body, headers=key))
        while not (await client.template("one")).pool.waiting:
            pass
        second = asyncio.create_task(server.call("POST", "/v1/sandboxes", json=body, headers=key))
        first.cancel()
        await asyncio.wait((first,))
        await holder.kill()
        status, made = await second
        assert status == 201
        assert [info.id async for info in client.sandboxes()] == [made["id"]]


async def test_a_create_that_is_cancelled_makes_no_sandbox(server: Server) -> None:
    async with AsyncClient(server.url, token=server.token) as client:
        await client.create_template("one", "python", limits={"ready": 0, "total": 1})
        holder = await client.create(template="one")
        waiting = asyncio.create_task(client.create(template="one"))
        while not (await client.template("one")).pool.waiting:
            pass
        waiting.cancel()
        await asyncio.wait((waiting,))
        while (await client.template("one")).pool.waiting:
            pass
        await holder.kill()
        assert [info async for info in client.sandboxes()] == []


@pytest.mark.parametrize("times", [1, 2])
async def test_a_block_that_is_cancelled_kills_its_sandbox(server: Server, times: int) -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with AsyncClient(server.url, token=server.token) as client, client.sandbox():
            entered.set()
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await entered.wait()
    for _ in range(times):
        working.cancel()
        await asyncio.sleep(0)  # a turn, in which the kill is begun but not yet sent
    await asyncio.wait((working,))
    assert working.cancelled()
    assert server.host.sandboxes(owner=server.owner) == []


async def test_a_blocks_own_error_is_told_before_a_lost_servers(server: Server) -> None:
    async with leaking(server, lose=0) as (client, leak):

        async def lose(error: Exception | None) -> None:
            leak.lose = 0
            async with client.sandbox():
                leak.lose = 100
                if error is not None:
                    raise error

        with pytest.raises(LookupError):
            await lose(LookupError())
        with pytest.raises(InfrastructureError):
            await lose(None)


async def test_a_server_that_is_not_there_is_said_in_words() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        async with AsyncClient(f"127.0.0.1:{port}", token="t") as client:
            with pytest.raises(HostError) as missing:
                await client.run("1")
    assert missing.value.error_code == "no_server"
    said = f"no server answers at http://127.0.0.1:{port}: Connection refused"
    assert missing.value.message == said
    assert "vmpool up" in missing.value.remedy
    assert not any("aiohttp" in line for line in traceback.format_exception(missing.value))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n<html/>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 404 No\r\nContent-Length: 7\r\n\r\n<html/>",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_a_stranger_is_called_one(answer: bytes) -> None:
    assert (await failure(answer)).error_code == "not_vmpool"


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9\r\n", HEALTHY[:-1]])
async def test_an_answer_that_breaks_off_is_a_lost_server(answer: bytes) -> None:
    assert (await failure(answer)).error_code == "server_lost"


async def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_LIMIT_BYTES", 10)
    assert (await failure(HEALTHY)).error_code == "not_vmpool"


async def test_members_that_a_later_server_adds_are_passed_over() -> None:
    async with answering(HEALTHY) as url, AsyncClient(url, token="t") as client:
        assert (await client.health()).version == "1"


async def test_a_silent_server_is_given_up_when_asked_to(server: Server) -> None:
    async with AsyncClient(server.url, token=server.token, timeout=0.5) as client:
        with pytest.raises(InfrastructureError) as silent:
            await client.run(argv=["sleep", "1000"])
    assert silent.value.error_code == "server_silent"
    await server.is_idle()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b'{"type":"started","pid":1}\n', "server_lost"),
        (b'{"type":"started","pid":1}\n' + b"x" * 101 + b"\n", "not_vmpool"),
        (b"[]\n", "not_vmpool"),
        (b'{"type":"stdout"}\n', "not_vmpool"),
        (b'{"type":"exit"', "not_vmpool"),
    ],
)
async def test_a_stream_that_breaks_off_or_breaks_its_form_is_no_end(
    sent: bytes, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINE_LIMIT_BYTES", 100)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(sent)
    async with answering(head + sent) as url, AsyncClient(url, token="t") as client:
        with pytest.raises(InfrastructureError) as broken:
            await client.attach("x").run("1")
    assert broken.value.error_code == code


async def test_events_of_a_later_server_are_passed_over() -> None:
    sent = b'{"type":"weather","rain":true}\n' + EXIT
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(sent)
    async with answering(head + sent) as url, AsyncClient(url, token="t") as client:
        assert (await client.attach("x").run("1")).ok


async def test_a_token_that_cannot_be_sent_is_refused() -> None:
    async with AsyncClient("127.0.0.1:1", token="a\r\nb") as client:
        with pytest.raises(UnauthorizedError) as refused:
            await client.health()
    assert refused.value.error_code == "token_invalid"


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:port", "http://["])
async def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    async with AsyncClient(url, token="t") as client:
        with pytest.raises(InvalidRequestError) as refused:
            await client.health()
    assert refused.value.error_code == "invalid_server"


def test_a_server_is_found_by_what_is_given_before_the_environment(tmp_path: Path) -> None:
    environ = {"VMPOOL_SERVER": "there:1", "VMPOOL_TOKEN": "secret"}
    found = find_endpoint(state=tmp_path, environ=environ)
    assert (found.url, found.token) == ("http://there:1", "secret")
    found = find_endpoint(server="https://here:2/", token="mine", state=tmp_path, environ=environ)
    assert (found.url, found.token) == ("https://here:2", "mine")
    found = find_endpoint(state=tmp_path, environ={})
    assert (found.url, found.token) == ("http://127.0.0.1:8700", "")
