"""E2B's clients by the names of a domain, over TLS that the server speaks itself.

Over guests that are local processes: what is tried is how clients reach the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from tests.certificates import Authority
from tests.e2b.local_host import local_host
from tests.e2b.sdks import JAVASCRIPT, NEWEST, OLDER, PROGRAMS, Sdk, run
from tests.fakes import FakeEngine
from vmpool.api import make_app, serve
from vmpool.config import ApiSettings, Settings
from vmpool.policy import Limits
from vmpool.scope import Role

pytestmark = [pytest.mark.tcg, pytest.mark.timeout(900)]

DOMAIN = "sbx.test"

_HEAD_BYTES = 1 << 16


@contextlib.asynccontextmanager
async def leading_to(address: tuple[str, int]) -> AsyncIterator[str]:
    """Yield the URL of a proxy that leads every name to one address, as a wildcard in DNS does.

    Clients have resolvers of their own, which no test can answer for; Node's can be replaced.
    """

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_HEAD_BYTES):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"CONNECT "), head
            further = await asyncio.open_connection(*address)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await asyncio.gather(
                carry(reader, further[1]), carry(further[0], writer), return_exceptions=True
            )

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("sdk", [NEWEST, OLDER[-1], JAVASCRIPT], ids=lambda sdk: sdk.name)
async def test_a_program_that_has_a_domain_and_a_key_needs_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, sdk: Sdk
) -> None:
    directory = tmp_path_factory.mktemp("named")  # short: paths of sockets are
    authority = Authority()
    chain, key = authority.issue(f"*.{DOMAIN}").write(directory)
    (directory / "authority.pem").write_bytes(authority.pem)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        domain = f"{DOMAIN}:{listening.getsockname()[1]}"
        settings = Settings(
            state=directory,
            run=directory / "run",
            api=ApiSettings(domain=domain, certificate=chain, certificate_key=key),
        )
        async with (
            local_host(settings, engine=FakeEngine(), limits=Limits(ready=0)) as host,
            serve(make_app(host), listening) as address,
            leading_to((address.host, address.port)) as proxy,
        ):
            token, _ = await host.store.tokens.add("of a test", Role.USE.scopes)
            pointed = {
                "E2B_API_KEY": token,
                "E2B_DOMAIN": domain,
                "HTTPS_PROXY": proxy,
                "SSL_CERT_FILE": str(directory / "authority.pem"),
            }
            if sdk is JAVASCRIPT:
                del pointed["HTTPS_PROXY"]
                pointed["NODE_OPTIONS"] = f"--require={PROGRAMS / 'everywhere.cjs'}"
                pointed["NODE_EXTRA_CA_CERTS"] = pointed.pop("SSL_CERT_FILE")
            argv = await asyncio.to_thread(sdk.program, "by_name")
            said = await asyncio.to_thread(run, argv, pointed, domain)
    assert said.lower() == "hi\nover tls\ntrue\ntrue\n"  # True is true in JavaScript
