"""Ports of a real guest: python's own server, one made by hand, and one that means harm."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import Any

import aiohttp
import pytest

from tests.serving import Api, until

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host]

GRACE = 200.0
MIB = 1 << 20

SERVER = r"""
import base64, hashlib, os, socketserver, struct, sys
from http.server import BaseHTTPRequestHandler

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.headers.get("Upgrade") == "websocket":
            return self.talk()
        if self.path == "/harm":
            return self.wfile.write(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 1000000)
        if self.path == "/away":
            self.send_response(307)
            self.send_header("Location", "/v1/sandboxes")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        size = int(self.path.strip("/") or 0)
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        block = bytes(range(256)) * 256
        for start in range(0, size, len(block)):
            self.wfile.write(block[: size - start])

    def do_PUT(self):
        digest = hashlib.sha256()
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                digest.update(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        else:
            digest.update(self.rfile.read(int(self.headers["Content-Length"])))
        said = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def talk(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        while True:
            first, second = self.rfile.read(2)
            size = second & 127
            if size == 126:
                size, = struct.unpack("!H", self.rfile.read(2))
            mask = self.rfile.read(4)
            said = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(size)))
            head = bytes([first]) + (
                bytes([size]) if size < 126 else bytes([126]) + struct.pack("!H", size)
            )
            self.wfile.write(head + said)
            if first & 15 == 8:
                self.close_connection = True
                return

    def log_message(self, *_):
        pass

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256

with Server(("127.0.0.1", 8000), Handler) as server:
    server.serve_forever()
"""


async def start(api: Api, sandbox: str, port: int, *argv: str) -> str:
    """Start a server in a sandbox and wait for it; return the path of its port."""
    path = f"/v1/sandboxes/{sandbox}"
    status, started = await api.call("POST", f"{path}/processes", json={"argv": argv})
    assert status == 201, started
    there = f"{path}/ports/{port}/"

    async def serves() -> bool:
        return (await api.call("GET", there))[0] == 200

    await until(serves, timeout=60)
    return there


async def test_what_pythons_own_server_serves_arrives(api: Api) -> None:
    async with asyncio.timeout(GRACE), api.sandbox() as sandbox:
        files = f"/v1/sandboxes/{sandbox}/files?path=/home/user/site/a%20b.txt"
        assert (await api.call("PUT", files, data=b"hello"))[0] == 200
        serve = ("python3", "-m", "http.server", "--directory", "/home/user/site", "8080")
        there = await start(api, sandbox, 8080, *serve)
        assert await api.call("GET", f"{there}a%20b.txt") == (200, b"hello")
        assert (await api.call("GET", f"{there}none"))[0] == 404
        async with api.session.head(f"{there}a%20b.txt") as response:
            assert response.headers["Content-Length"] == "5"
        status, problem = await api.call("GET", f"/v1/sandboxes/{sandbox}/ports/8081/")
        assert (status, problem["code"]) == (502, "port_closed")


async def test_much_at_once_and_at_length_and_with_malice(api: Api) -> None:
    async with asyncio.timeout(GRACE), api.sandbox(auto_resume=True) as sandbox:
        there = await start(api, sandbox, 8000, "python3", "-c", SERVER)
        await _go_far(api, there)
        await _talk(api, there)
        await asyncio.gather(*(_sum_up(api, there, number) for number in range(100)))
        status, problem = await api.call("GET", f"{there}harm")
        assert (status, problem["code"]) == (502, "port_answer_malformed")
        async with api.session.get(f"{there}away", allow_redirects=False) as response:
            assert response.headers["Location"] == f"{there}v1/sandboxes"
        paused, _ = await api.call("POST", f"/v1/sandboxes/{sandbox}/pause", json={})
        assert paused == 200
        assert (await api.call("GET", f"{there}10"))[0] == 200  # it wakes, and serves as before


async def _go_far(api: Api, there: str) -> None:
    """Fetch much, slowly at first."""
    block = bytes(range(256)) * 256
    async with api.session.get(f"{there}{16 * MIB}") as response:
        first = await response.content.readexactly(MIB)
        await asyncio.sleep(0.5)
        whole = first + await response.read()
    assert whole == block * 256


async def _talk(api: Api, there: str) -> None:
    async with api.session.ws_connect(there) as socket:
        for said in ("one", "x" * 10_000):
            await socket.send_str(said)
            assert await socket.receive_str() == said


async def _sum_up(api: Api, there: str, number: int) -> None:
    body = str(number).encode() * 1000
    status, said = await api.call("PUT", f"{there}{number}", data=body)
    assert (status, said) == (200, hashlib.sha256(body).hexdigest().encode())


async def test_tcp_is_carried_to_a_real_guest(api: Api) -> None:
    echo = (
        "import socket\n"
        "server = socket.create_server(('127.0.0.1', 9000))\n"
        "while True:\n"
        "    peer, _ = server.accept()\n"
        "    try: whole = b''.join(iter(lambda: peer.recv(65536), b''))\n"
        "    except ConnectionResetError: continue\n"  # whoever looked whether it listens
        "    peer.sendall(whole[::-1]); peer.close()\n"
    )
    said: dict[str, Any] = {"argv": ["python3", "-c", echo]}
    async with asyncio.timeout(GRACE), api.sandbox() as sandbox:
        path = f"/v1/sandboxes/{sandbox}"
        assert (await api.call("POST", f"{path}/processes", json=said))[0] == 201

        async def listens() -> bool:
            return (await api.call("GET", f"{path}/tcp/9000"))[0] == 426

        await until(listens, timeout=60)
        async with api.session.ws_connect(f"{path}/tcp/9000") as socket:
            await socket.send_bytes(base64.b64encode(bytes(300_000)))
            await socket.send_str('{"eof":true}')
            whole = b"".join(
                [one.data async for one in socket if one.type is aiohttp.WSMsgType.BINARY]
            )
        assert (whole, socket.close_code) == (base64.b64encode(bytes(300_000))[::-1], 1000)
