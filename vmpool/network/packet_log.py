"""Packet log: what the firewall of a namespace denied, as the kernel tells it over netlink.

The rules give a packet to a group with a word why (`plan.LOG_GROUP`), so many a second and no more;
of a packet the first bytes come. They are a guest's: they are looked at, never believed in.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, Self

from vmpool.errors import HostError
from vmpool.network import plan
from vmpool.network.events import Denial
from vmpool.network.namespace import socket_in
from vmpool.network.pacing import Bucket, PacedReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from vmpool.network.namespace import Namespace

log = logging.getLogger(__name__)

RATE: Final = 100.0
"""Packets a second that are looked at; the rules tell of half as many."""
BURST: Final = 400
PACKET_BYTES: Final = 128
"""Of each packet: enough for addresses and ports behind the longest header of IPv4."""

_NETLINK_NETFILTER = 12  # linux/netlink.h
_NFNL_SUBSYS_ULOG = 4 << 8  # linux/netfilter/nfnetlink.h
_PACKET, _CONFIG = _NFNL_SUBSYS_ULOG | 0, _NFNL_SUBSYS_ULOG | 1  # nfnetlink_log.h, here and below
_CONFIG_COMMAND, _CONFIG_MODE, _CONFIG_TIMEOUT, _CONFIG_THRESHOLD = 1, 2, 4, 5
_COMMAND_BIND, _MODE_COPY = 1, 2
_PAYLOAD, _PREFIX = 9, 10
_REQUEST_AND_ACK = 1 | 4  # linux/netlink.h
_ERROR = 2
_DATAGRAM_BYTES = 16 << 10
_PATIENCE = 5.0

_NAMES: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}  # IANA's numbers
_WITH_PORTS: Final = frozenset({6, 17})


class PacketLog:
    """Tells of denied packets, from entering to leaving; their names are not known here.

    Args:
        source: As `listen` returns it; the log's to close once it was entered.
        note: Told each denial.
        lose: Told when there was more than could be told, each time.
    """

    def __init__(
        self, source: socket.socket, note: Callable[[Denial], None], *, lose: Callable[[], None]
    ) -> None:
        self._source = source
        self._note = note
        self._lose = lose
        self._reader: PacedReader | None = None

    def __enter__(self) -> Self:
        """Begin to tell."""
        bucket = Bucket(rate=RATE, burst=BURST, clock=asyncio.get_running_loop().time)
        self._reader = PacedReader(self._source.fileno(), self._read, bucket, on_pause=self._lose)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tell no more."""
        if self._reader is not None:
            self._reader.close()
        self._source.close()

    def _read(self) -> bool:
        try:
            data = self._source.recv(_DATAGRAM_BYTES)
        except BlockingIOError:
            return False
        except OSError as err:
            if err.errno != errno.ENOBUFS:
                log.warning("cannot read what a firewall denied: %s", err.strerror)
            self._lose()
            return err.errno == errno.ENOBUFS
        for denial in denials(data):
            self._note(denial)
        return True


def denials(data: bytes) -> Iterator[Denial]:
    """Yield what a datagram of the kernel's tells; nothing of what it does not hold whole."""
    for kind, message in _messages(data):
        if kind == _PACKET:
            attributes = dict(_attributes(message[4:]))  # behind struct nfgenmsg
            reason = attributes.get(_PREFIX, b"").rstrip(b"\0").decode("ascii", "replace")
            denial = _denial(attributes.get(_PAYLOAD, b""), reason)
            if denial is not None:
                yield denial


def _denial(packet: bytes, rule: str) -> Denial | None:
    """Return what a packet was, `None` for one without as much as an address."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        protocol, behind = packet[9], (packet[0] & 15) * 4
        fragment = int.from_bytes(packet[6:8]) & 0x1FFF  # only the first one has ports
        destination: IPv4Address | IPv6Address = IPv4Address(packet[16:20])
    elif len(packet) >= 40 and packet[0] >> 4 == 6:
        protocol, behind, fragment = packet[6], 40, 0
        destination = IPv6Address(packet[24:40])
    else:
        return None
    ports = packet[behind + 2 : behind + 4] if protocol in _WITH_PORTS and not fragment else b""
    return Denial(
        protocol=_NAMES.get(protocol, str(protocol)),
        destination=destination,
        port=int.from_bytes(ports) if len(ports) == 2 else None,
        name=None,
        rule=rule,
    )


def listen(namespace: Namespace) -> socket.socket:
    """Return a socket that the kernel tells of a namespace's denied packets. Blocks.

    Raises:
        HostError: `network_failed`; the kernel did not take the group.
    """
    try:
        source = socket_in(namespace, socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        try:
            source.settimeout(_PATIENCE)
            source.bind((0, 0))
            for kind, value in (
                (_CONFIG_COMMAND, struct.pack("B", _COMMAND_BIND)),
                (_CONFIG_MODE, struct.pack(">IBB", PACKET_BYTES, _MODE_COPY, 0)),
                (_CONFIG_TIMEOUT, struct.pack(">I", 0)),
                (_CONFIG_THRESHOLD, struct.pack(">I", 1)),  # each packet at once
            ):
                source.send(_request(kind, value))
                _acknowledged(source.recv(_DATAGRAM_BYTES))
            source.setblocking(False)
        except BaseException:
            source.close()
            raise
    except OSError as err:
        raise HostError(
            f"the kernel does not tell what the firewall of {namespace.name!r} denies:"
            f" {err.strerror or err}",
            code="network_failed",
        ) from err
    return source


def _request(kind: int, value: bytes) -> bytes:
    attribute = struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    body = struct.pack(">BBH", socket.AF_UNSPEC, 0, plan.LOG_GROUP) + attribute
    return struct.pack("=IHHII", 16 + len(body), _CONFIG, _REQUEST_AND_ACK, 0, 0) + body


def _acknowledged(data: bytes) -> None:
    for kind, message in _messages(data):
        if kind == _ERROR:
            number = -int.from_bytes(message[:4], "little", signed=True)
            if number:
                raise OSError(number, os.strerror(number))


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and body of the netlink messages in a datagram."""
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if not 16 <= length <= len(data):
            return
        yield kind, data[16:length]
        data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and value of the netlink attributes in a body."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if not 4 <= length <= len(data):
            return
        yield kind & 0x3FFF, data[4:length]  # without the bits for nesting and byte order
        data = data[(length + 3) & ~3 :]
