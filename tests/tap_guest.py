"""A guest that is no machine: frames written to a slot's tap and read from it.

What a hostile guest may send is more than its kernel's own stack would: any source, any fragment,
any protocol.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from vmpool.model import GUEST_MAC
from vmpool.network.addressing import GATEWAY_MAC, GUEST

UDP = 17
ICMP = 1
ICMP6 = 58

_ETHER_IPV4 = 0x0800
_ETHER_IPV6 = 0x86DD
_MORE_FRAGMENTS = 0x2000


class TapGuest:
    """Frames over a tap; `close` ends the listening.

    Attributes:
        frames: What came, but for ARP.
    """

    def __init__(self, tap: int) -> None:
        self._tap = tap
        self.frames: list[bytes] = []
        self._news = asyncio.Event()
        os.set_blocking(tap, False)
        asyncio.get_running_loop().add_reader(tap, self._read)

    def close(self) -> None:
        """Listen no more; the tap stays open."""
        asyncio.get_running_loop().remove_reader(self._tap)

    def send_udp(
        self,
        to: str,
        port: int,
        data: bytes,
        *,
        source: str = str(GUEST),
        mac: str = GUEST_MAC,
        source_port: int = 5555,
    ) -> None:
        """Send a datagram, from whomever."""
        datagram = struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data
        self.send_ipv4(to, UDP, datagram, source=source, mac=mac)

    def send_ipv4(
        self,
        to: str,
        protocol: int,
        payload: bytes,
        *,
        source: str = str(GUEST),
        mac: str = GUEST_MAC,
        fragment: int = 0,
        more: bool = False,
        number: int = 1,
    ) -> None:
        """Send a packet, or a fragment of one at an offset in bytes."""
        flags = fragment // 8 | (_MORE_FRAGMENTS if more else 0)
        addresses = IPv4Address(source).packed + IPv4Address(to).packed
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), number, flags, 64, protocol, 0)
        checked = struct.pack("!H", checksum(head + addresses))
        self._send(mac, _ETHER_IPV4, head[:10] + checked + addresses + payload)

    def send_ipv6(self, to: str, protocol: int, payload: bytes, *, source: str) -> None:
        """Send a packet of IPv6, to whom multicast goes."""
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 255)
        addresses = IPv6Address(source).packed + IPv6Address(to).packed
        self._send(GUEST_MAC, _ETHER_IPV6, head + addresses + payload, to="33:33:00:00:00:01")

    async def received(self, holds: Callable[[bytes], bool], timeout: float = 5.0) -> bytes:
        """Return the first frame that came, or comes, of which a condition holds.

        Raises:
            TimeoutError: None does.
        """
        async with asyncio.timeout(timeout):
            while True:
                self._news.clear()
                for frame in self.frames:
                    if holds(frame):
                        return frame
                await self._news.wait()

    def _send(self, mac: str, kind: int, packet: bytes, *, to: str = GATEWAY_MAC) -> None:
        os.write(self._tap, _packed(to) + _packed(mac) + struct.pack("!H", kind) + packet)

    def _read(self) -> None:
        frame = os.read(self._tap, 65536)
        if frame[12:14] != b"\x08\x06":
            self.frames.append(frame)
            self._news.set()


def echo_request(text: bytes) -> bytes:
    """Return an ICMP echo request."""
    head = struct.pack("!BBHHH", 8, 0, 0, 7, 1)
    return head[:2] + struct.pack("!H", checksum(head + text)) + head[4:] + text


def checksum(data: bytes) -> int:
    """Return the checksum of RFC 1071."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
