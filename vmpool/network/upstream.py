"""Upstream: the DNS servers that are asked on behalf of sandboxes, from the server's own namespace.

Each question has a socket, a port and an id of its own, and only an answer to it from whom it was
asked counts. How many are under way at one time is bounded, for each costs a descriptor; when there
are too many, tenants come by a place in turn, however many sandboxes and questions one of them has.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import dns.asyncquery
import dns.exception
import dns.message
import dns.name
import dns.rcode

from vmpool.errors import HostError
from vmpool.lanes import Lanes

if TYPE_CHECKING:
    from dns.rdatatype import RdataType

log = logging.getLogger(__name__)

HOST_SERVERS: Final = Path("/etc/resolv.conf")
PORT: Final = 53
PATIENCE: Final = 5.0
"""Seconds for an answer, all servers together; a guest's own resolver asks again by then."""
UNDER_WAY_MOST: Final = 256
"""Questions at one time, of all sandboxes."""

_ONE_SERVER: Final = 2.0
_FILE_BYTES: Final = 64 << 10
_SETTLED: Final = frozenset({dns.rcode.NOERROR, dns.rcode.NXDOMAIN})
"""Answers after which no other server is asked."""


class Upstream(Protocol):
    """Whoever answers what the policy lets out."""

    async def ask(self, name: str, kind: RdataType) -> dns.message.QueryMessage | None:
        """Return the answer to a question, whatever it says; `None` when there is none in time."""


@dataclass(frozen=True, slots=True)
class Server:
    """A DNS server."""

    host: str
    port: int = PORT

    @classmethod
    def parse(cls, text: str) -> Server:
        """Read `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.

        Raises:
            HostError: `invalid_settings`.
        """
        if text.startswith("["):
            host, _, rest = text[1:].partition("]")
        else:
            host, colon, rest = text.partition(":") if text.count(":") == 1 else (text, "", "")
            rest = colon + rest
        port = rest.removeprefix(":") if rest else str(PORT)
        known = port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16
        if not known or not _is_address(host):
            raise HostError(
                f"network.dns has {text!r}, not an address, with or without a port",
                code="invalid_settings",
                remedy="write it like 192.0.2.53 or [2001:db8::53]:5353",
            )
        return cls(host, int(port))


class Servers:
    """DNS servers, asked one after the other, by parties that share the lanes.

    Args:
        servers: None for those that the host itself asks, as its `resolv.conf` says at the time.
    """

    def __init__(self, servers: tuple[Server, ...] = ()) -> None:
        self._servers = servers
        self._lanes = Lanes(UNDER_WAY_MOST)

    def of(self, party: str) -> Upstream:
        """Return them as one party asks them."""
        return _Share(self, party)

    async def ask(self, name: str, kind: RdataType, party: str) -> dns.message.QueryMessage | None:
        """Return the first answer to a question; see `Upstream`."""
        query = dns.message.make_query(dns.name.from_text(name), kind, use_edns=0, payload=1232)
        last = None
        try:
            async with asyncio.timeout(PATIENCE), self._lanes.one(party):
                for server in self._servers or host_servers():
                    last = await _ask(query, server) or last
                    if last is not None and last.rcode() in _SETTLED:
                        return last
        except TimeoutError:
            log.debug("no answer from outside in %s s", PATIENCE)
        return last


@dataclass(frozen=True, slots=True)
class _Share:
    """Servers, for one party."""

    servers: Servers
    party: str

    async def ask(self, name: str, kind: RdataType) -> dns.message.QueryMessage | None:
        """Return the first answer to a question; see `Upstream`."""
        return await self.servers.ask(name, kind, self.party)


def host_servers(file: Path = HOST_SERVERS) -> tuple[Server, ...]:
    """Return the servers that the host asks; none when it names none that can be read."""
    try:
        with file.open(encoding="ascii", errors="replace") as opened:
            lines = opened.read(_FILE_BYTES).splitlines()
    except OSError as err:
        log.debug("cannot read %s: %s", file, err.strerror)
        return ()
    words = [line.split() for line in lines]
    found = [each[1] for each in words if len(each) > 1 and each[0] == "nameserver"]
    return tuple(Server(address) for address in found if _is_address(address))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])  # an interface's name may follow
    except ValueError:
        return False
    return True


async def _ask(query: dns.message.Message, server: Server) -> dns.message.QueryMessage | None:
    try:
        answer, _ = await dns.asyncquery.udp_with_fallback(
            query,
            server.host,
            timeout=_ONE_SERVER,
            port=server.port,
            ignore_unexpected=True,
            ignore_errors=True,
        )
    except (dns.exception.DNSException, OSError, EOFError) as err:
        log.debug("no answer from %s: %s", server.host, err)
        return None
    return answer if isinstance(answer, dns.message.QueryMessage) else None
