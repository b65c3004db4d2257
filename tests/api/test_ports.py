"""Ports of a sandbox through the server: HTTP and WebSockets, with servers that mean no good."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from yarl import URL

from tests.api import port_servers
from tests.api.conftest import Serve
from tests.api.port_servers import (
    Sandbox,
    application,
    listening,
    made,
    mirror,
    saying,
    websocket_echo,
)
from vmpool.config import ApiSettings

GRACE = 20.0
MIB = 1 << 20


sandbox = port_servers.sandbox
impatient = port_servers.impatient


async def test_a_request_is_handed_on_as_it_was_written(sandbox: Sandbox) -> None:
    async with application(mirror) as port:
        path = URL(sandbox.path(port, "a%2Fb/..%2F;d?q=%20x&q=y"), encoded=True)
        async with sandbox.server.session.request(
            "PATCH", URL(sandbox.server.url).join(path), data=b"body", headers={"X-Own": "1"}
        ) as response:
            seen = json.loads(await response.read())
    assert response.status == 200
    assert (seen["method"], seen["body"]) == ("PATCH", "body")
    assert seen["target"] == "/a%2Fb/..%2F;d?q=%20x&q=y"
    headers = seen["headers"]
    assert headers["host"] == f"localhost:{port}"
    assert headers["x-own"] == "1"
    assert headers["x-forwarded-prefix"] == sandbox.path(port).rstrip("/")
    assert headers["content-length"] == "4"
    assert sandbox.server.token not in json.dumps(seen)
    assert "authorization" not in headers


async def test_a_body_of_unknown_length_is_streamed_both_ways(sandbox: Sandbox) -> None:
    first = asyncio.Event()

    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for chunk in request.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await first.wait()  # the answer begins before the request is whole
        yield b"second"

    async with application(echo) as port, sandbox.ask("POST", port, data=pieces()) as response:
        assert await response.content.read(5) == b"first"
        first.set()
        assert await response.read() == b"second"


async def test_much_goes_up_and_down_whole(sandbox: Sandbox) -> None:
    block = bytes(range(256)) * 4096

    async def sum_up(request: web.BaseRequest) -> web.StreamResponse:
        digest = hashlib.sha256()
        async for chunk in request.content.iter_any():
            digest.update(chunk)
        response = web.StreamResponse(headers={"Content-Length": str(len(block) * 16)})
        response.headers["X-Digest"] = digest.hexdigest()
        await response.prepare(request)
        for _ in range(16):
            await response.write(block)
        return response

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(16):
            yield block

    async with application(sum_up) as port, sandbox.ask("PUT", port, data=blocks()) as response:
        assert response.headers["X-Digest"] == hashlib.sha256(block * 16).hexdigest()
        assert hashlib.sha256(await response.read()).digest() == hashlib.sha256(block * 16).digest()


ANSWERS = [
    ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", (200, b"")),
    ("GET", b"HTTP/1.1 204 No\r\n\r\n", (204, b"")),
    ("GET", b"HTTP/1.1 304 No\r\nETag: x\r\nContent-Length: 9\r\n\r\n", (304, b"")),
    ("GET", b"HTTP/1.0 200 OK\r\n\r\nto the end", (200, b"to the end")),
    (
        "GET",
        b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
        (200, b"x"),
    ),
    (
        "GET",
        b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n0\r\nTrailer: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\nsmuggled",
        (200, b"abc"),
    ),
    ("GET", b"HTTP/1.1 599 Odd\r\nContent-Length: 0\r\n\r\n", (599, b"")),
]


async def test_answers_of_all_forms_arrive(sandbox: Sandbox) -> None:
    for method, answer, expected in ANSWERS:
        async with saying(answer) as port:
            for _ in range(2):
                async with sandbox.ask(method, port) as response:
                    assert (response.status, await response.read()) == expected


NO_ANSWERS = [
    b"",
    b"SSH-2.0-OpenSSH\r\n",
    b"HTTP/1.1 200 OK\r\nA: " + b"x" * (1 << 18),
    b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (1 << 16),
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA\0: b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: b\rSet-Cookie: c\r\n\r\n",
    b"HTTP/1.1 999 OK\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n",
    b"HTTP/1.1 100 Go\r\n\r\n" * 20,
    b"HTTP/1.1 200 OK\r\n",
]


async def test_what_is_no_answer_is_told_as_a_problem(sandbox: Sandbox) -> None:
    for answer in NO_ANSWERS:
        async with asyncio.timeout(GRACE), saying(answer) as port:
            status, problem = await sandbox.call("GET", port)
        assert (status, problem["code"]) == (502, "port_answer_malformed"), answer[:100]
        assert problem["fault"] == "task"


HALVES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * (1 << 18),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * (1 << 16),
]


async def test_half_an_answer_is_never_taken_for_a_whole_one(sandbox: Sandbox) -> None:
    for answer in HALVES:
        async with asyncio.timeout(GRACE), saying(answer) as port:
            with pytest.raises(aiohttp.ClientError):
                async with sandbox.ask("GET", port) as response:
                    await response.read()


async def test_a_port_on_which_nothing_listens_is_told_in_words(sandbox: Sandbox) -> None:
    async with saying(b"") as port:
        pass
    status, problem = await sandbox.call("GET", port)
    assert (status, problem["code"], problem["fault"]) == (502, "port_closed", "task")


async def test_a_silent_server_is_given_up(impatient: Sandbox) -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with asyncio.timeout(GRACE), listening(wait) as port:
        status, problem = await impatient.call("GET", port)
    assert (status, problem["code"]) == (504, "port_silent")


async def test_events_arrive_as_they_are_sent(sandbox: Sandbox) -> None:
    heard = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await heard.wait()
        writer.write(b"data: 2\n\n")
        await writer.drain()

    async with listening(talk) as port, sandbox.ask("GET", port) as response:
        assert response.content_type == "text/event-stream"
        assert await response.content.readuntil(b"\n\n") == b"data: 1\n\n"
        heard.set()
        assert await response.read() == b"data: 2\n\n"


async def test_a_caller_that_leaves_ends_the_connection_in_the_guest(sandbox: Sandbox) -> None:
    left: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nx")
        try:
            left.set_result(await reader.read())
        except ConnectionResetError:
            left.set_result(b"reset")

    async with asyncio.timeout(GRACE), listening(talk) as port:
        async with sandbox.ask("GET", port) as response:
            await response.content.read(1)
            response.close()
        assert await left == b"reset"


async def test_a_slow_reader_holds_the_guest_back(sandbox: Sandbox) -> None:
    sent = 0
    full = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while sent < 256 * MIB:
            writer.write(bytes(1 << 16))
            try:
                async with asyncio.timeout(3.0):
                    await writer.drain()
            except TimeoutError:
                full.set()
                await writer.drain()
            sent += 1 << 16

    async with (
        asyncio.timeout(GRACE),
        listening(talk) as port,
        sandbox.ask("GET", port) as response,
    ):
        await full.wait()
        assert sent < 64 * MIB
        assert await response.content.read(10) == bytes(10)


async def test_a_websocket_is_spliced(sandbox: Sandbox) -> None:
    big = bytes(range(256)) * 12_000
    async with application(websocket_echo) as port:
        url = sandbox.server.url + sandbox.path(port, "live")
        async with (
            asyncio.timeout(GRACE),
            sandbox.server.session.ws_connect(url, protocols=("chat",), compress=15) as opened,
        ):
            assert opened.protocol == "chat"
            for word in ("one", "two"):
                await opened.send_str(word)
                assert await opened.receive_str() == f"/live: {word}"
            await opened.send_bytes(big)
            assert await opened.receive_bytes() == big
            await opened.ping()
        assert opened.close_code == 1000


async def test_a_websocket_that_the_guest_refuses_is_an_ordinary_answer(sandbox: Sandbox) -> None:
    async with application(mirror) as port:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with sandbox.server.session.ws_connect(sandbox.server.url + sandbox.path(port)):
                pytest.fail("it was opened")
        assert caught.value.status == 200


async def test_a_socket_over_which_nothing_goes_is_given_up(impatient: Sandbox) -> None:
    async with application(websocket_echo) as port, asyncio.timeout(GRACE):
        url = impatient.server.url + impatient.path(port)
        async with impatient.server.session.ws_connect(url, autoping=False) as opened:
            assert (await opened.receive()).type in {WSMsgType.CLOSED, WSMsgType.ERROR}


async def test_a_hundred_at_once_do_not_mix(sandbox: Sandbox) -> None:
    async def ask(port: int, number: int) -> None:
        said = str(number) * 5_000
        status, seen = await sandbox.call("POST", port, f"{number}", data=said)
        assert (status, seen["target"], seen["body"]) == (200, f"/{number}", said)

    async with application(mirror) as port, asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(ask(port, number))


async def test_too_many_at_once_are_told_to_come_again(serving: Serve) -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await reader.read()

    async with (
        asyncio.timeout(GRACE),
        serving(api=ApiSettings(port_connections=2)) as server,
        listening(wait) as port,
    ):
        sandbox = await made(server)
        async with sandbox.ask("GET", port), sandbox.ask("GET", port):
            status, problem = await sandbox.call("GET", port)
            assert (status, problem["code"]) == (503, "port_connections_full")
            other = await made(server)
            async with other.ask("GET", port) as response:
                assert response.status == 200
