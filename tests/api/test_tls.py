"""TLS on the port of the server: names of ports, renewed certificates, who speaks otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from tests.api.conftest import Serve, Server
from tests.api.port_servers import application, made, mirror
from tests.certificates import Authority, replace
from vmpool import AsyncClient
from vmpool.api import arrival
from vmpool.api.door import Door
from vmpool.api.presentation import Presentation
from vmpool.config import ApiSettings
from vmpool.errors import HostError

DOMAIN = "box.example"
GRACE = 60.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


class Wildcard(AbstractResolver):
    """Leads all names to this machine, as the operator's DNS does those of the domain."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        pass


@contextlib.asynccontextmanager
async def client(authority: Authority) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a client that checks certificates, and makes a connection for each request."""
    connector = aiohttp.TCPConnector(
        ssl=authority.client(), resolver=Wildcard(), force_close=True, enable_cleanup_closed=True
    )
    timeout = aiohttp.ClientTimeout(total=GRACE)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


@contextlib.asynccontextmanager
async def encrypted(
    serving: Serve, authority: Authority, directory: Path, **more: Any
) -> AsyncIterator[Server]:
    """Serve with a certificate for the domain."""
    chain, key = authority.issue(f"*.{DOMAIN}").write(directory)
    api = ApiSettings(domain=DOMAIN, certificate=chain, certificate_key=key, **more)
    async with serving(api=api) as server:
        yield server


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


async def shown(server: Server, authority: Authority) -> int:
    """Return the serial number of the certificate that the next client is shown."""
    _, writer = await asyncio.open_connection(
        "127.0.0.1",
        port_of(server),
        ssl=authority.client(),
        server_hostname=f"api.{DOMAIN}",
        ssl_shutdown_timeout=1.0,
    )
    with contextlib.closing(writer):
        certificate = writer.get_extra_info("peercert")
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() is None
    with contextlib.suppress(TimeoutError, OSError):
        await writer.wait_closed()
    return int(certificate["serialNumber"], 16)


async def test_the_interface_and_the_ports_of_sandboxes_have_names_of_their_own(
    serving: Serve, authority: Authority, tmp_path: Path
) -> None:
    async with (
        encrypted(serving, authority, tmp_path) as server,
        client(authority) as outside,
        application(mirror) as port,
    ):
        api = f"https://api.{DOMAIN}:{port_of(server)}"
        token = {"Authorization": f"Bearer {server.token}"}
        async with outside.post(f"{api}/v1/sandboxes", json={}, headers=token) as response:
            assert response.status == 201
            id = (await response.json())["id"]
        sandbox = f"https://{port}-{id}.{DOMAIN}:{port_of(server)}"
        async with outside.get(f"{sandbox}/hello", headers=token) as response:
            seen = await response.json(content_type=None)
        assert seen["target"] == "/hello"
        assert seen["headers"]["x-forwarded-proto"] == "https"
        async with outside.get(f"{sandbox}/hello") as response:
            assert response.status == 401
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await outside.get(f"https://other.example:{port_of(server)}/healthz")


async def test_this_host_needs_no_tls(serving: Serve, authority: Authority, tmp_path: Path) -> None:
    async with encrypted(serving, authority, tmp_path) as server:
        sandbox = await made(server)
        status, answer = await server.call("GET", f"/v1/sandboxes/{sandbox.id}")
        assert (status, answer["id"]) == (200, sandbox.id)


async def told(server: Server, *more: str, trusts: Path | None) -> tuple[int, str]:
    """Have the command line ask over TLS; return its exit code and what it wrote."""
    program = str(Path(sys.executable).with_name("vmpool"))
    url = f"https://localhost:{port_of(server)}"
    trusted = {} if trusts is None else {"SSL_CERT_FILE": str(trusts)}
    process = await asyncio.create_subprocess_exec(
        program, *more, "--server", url, "--token", server.token,
        env={**os.environ, **trusted},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(GRACE):
        said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_the_command_line_believes_whom_it_is_told_to(
    serving: Serve, authority: Authority, tmp_path: Path
) -> None:
    chain, key = authority.issue("localhost").write(tmp_path)
    (tmp_path / "authority.pem").write_bytes(authority.pem)
    async with serving(api=ApiSettings(certificate=chain, certificate_key=key)) as server:
        made = await server.make_sandbox()
        code, said = await told(server, "sandbox", "list", trusts=tmp_path / "authority.pem")
        assert (code, made["id"] in said) == (0, True), said
        code, said = await told(server, "sandbox", "list", trusts=None)
        assert code != 0
        assert "certificate" in said, said
        assert "SSL_CERT_FILE" in said, said
        assert "vmpool up" not in said
        async with AsyncClient(f"https://localhost:{port_of(server)}", token=server.token) as other:
            with pytest.raises(HostError, match="not believed") as caught:
                await other.create()
        assert caught.value.error_code == "certificate_refused"


async def test_a_renewed_certificate_is_shown_to_the_next_client(
    serving: Serve, authority: Authority, tmp_path: Path
) -> None:
    async with encrypted(serving, authority, tmp_path) as server:
        first = await shown(server, authority)
        renewed = authority.issue(f"*.{DOMAIN}")
        replace(tmp_path / "fullchain.pem", renewed.chain)
        assert await shown(server, authority) == first, "half of a renewal is none"
        replace(tmp_path / "privkey.pem", renewed.key)
        assert await shown(server, authority) == renewed.serial
        (tmp_path / "privkey.pem").unlink()
        assert await shown(server, authority) == renewed.serial


async def test_a_server_does_not_begin_with_a_certificate_that_nobody_can_use(
    serving: Serve, authority: Authority, tmp_path: Path
) -> None:
    chain, key = authority.issue(f"*.{DOMAIN}").write(tmp_path)
    key.write_text("no key")
    with pytest.raises(HostError, match="no private key") as caught:
        async with serving(api=ApiSettings(certificate=chain, certificate_key=key)):
            pytest.fail("it began")
    assert caught.value.error_code == "certificate_unusable"


@contextlib.asynccontextmanager
async def saying_nothing(server: Server) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Connect twice: without a word, and with half of a greeting."""
    async with contextlib.AsyncExitStack() as held:
        readers = []
        for said in (b"", b"\x16\x03\x01"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
            held.callback(writer.close)
            writer.write(said)
            readers.append(reader)
        yield readers


async def test_who_says_nothing_is_sent_away(
    serving: Serve, authority: Authority, tmp_path: Path
) -> None:
    async with (
        asyncio.timeout(GRACE),
        encrypted(serving, authority, tmp_path, stranger_timeout=3.0) as server,
        saying_nothing(server) as readers,
    ):
        for reader in readers:
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        assert await shown(server, authority)


async def test_who_says_nothing_counts_among_the_connections(
    serving: Serve, authority: Authority, tmp_path: Path
) -> None:
    limits = {"connections": 2, "stranger_timeout": 10 * GRACE}
    async with asyncio.timeout(GRACE), encrypted(serving, authority, tmp_path, **limits) as server:
        await server.session.close()
        async with saying_nothing(server):
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
            with contextlib.closing(writer):
                assert await reader.read() == b""


async def test_one_that_fails_as_nobody_foresaw_keeps_nobody_out(
    serving: Serve,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(_: socket.socket) -> int:
        raise ZeroDivisionError

    async with asyncio.timeout(GRACE), encrypted(serving, authority, tmp_path) as server:
        with monkeypatch.context() as broken:
            broken.setattr(arrival, "_first_byte", fail)
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
            with contextlib.closing(writer):
                assert await reader.read() == b""
        assert "in a way nobody foresaw" in caplog.text
        assert await shown(server, authority)


async def test_who_comes_from_elsewhere_without_tls_is_told_to_use_it() -> None:
    ours, theirs = socket.socketpair()
    door = Door(ApiSettings())
    shown = Presentation(Path("/nowhere"), Path("/nowhere"), domain="")
    arrivals = arrival._Arrivals(ours, None, door, shown)  # type: ignore[arg-type]
    ours.setblocking(False)
    with theirs:
        theirs.sendall(b"GET / HTTP/1.1\r\nAuthorization: Bearer secret\r\n\r\n")
        await arrivals._greet(ours, "203.0.113.7")
        assert theirs.recv(1 << 16).endswith(b"this port speaks TLS: use https://\n")
        assert theirs.recv(1) == b""


@pytest.mark.parametrize(
    ("peer", "here"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("fe80::1%eth0", False),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_which_clients_are_of_this_host(peer: str, *, here: bool) -> None:
    assert arrival._is_loopback(peer) is here


def test_tls_begins_with_the_byte_that_is_looked_for() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    talking = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        talking.do_handshake()
    assert outgoing.read()[0] == arrival._HANDSHAKE
