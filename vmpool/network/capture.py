"""Capture: the packets of one sandbox, as a file for tcpdump and Wireshark, while they pass.

Taken at the guest's link, so that what the firewall denies is in it as well. A reader who is slow
loses packets; nothing waits for him. Bounded in bytes, in time, and in what it takes of the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmpool.cancellation import opened
from vmpool.errors import HostError
from vmpool.network import plan
from vmpool.network.namespace import socket_in
from vmpool.network.pacing import Bucket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from vmpool.network.namespace import Namespace

MEDIA_TYPE: Final = "application/vnd.tcpdump.pcap"
PACKET_BYTES: Final = 65_535
"""Of one packet; the rest is cut off, and its length told."""
RATE: Final = 10_000.0
"""Packets a second; of more, some are missing."""

_BURST = 2000
_CHUNK_BYTES = 64 << 10
_BUFFER_BYTES = 2 << 20  # in the kernel, for the time between two looks
_MAGIC_NANOSECONDS = 0xA1B23C4D  # pcap-savefile(5), here and below
_ETHERNET = 1
_HEADER = struct.Struct("<IHHiIII")
_RECORD = struct.Struct("<IIII")
_ALL_PROTOCOLS = 3  # ETH_P_ALL, linux/if_ether.h
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; also the kind of the control message
_SO_RCVBUFFORCE = 33  # whatever net.core.rmem_max is
_TIMESPEC = struct.Struct("@qq")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureLimits:
    """When a capture ends by itself.

    Attributes:
        size_bytes: Of the file.
        seconds: From its beginning.
    """

    size_bytes: int
    seconds: float


class Capture:
    """A capture under way, for one reader."""

    def __init__(self, source: socket.socket, limits: CaptureLimits) -> None:
        loop = asyncio.get_running_loop()
        self._source = source
        self._left_bytes = limits.size_bytes
        self._deadline = loop.time() + limits.seconds
        self._bucket = Bucket(rate=RATE, burst=_BURST, clock=loop.time)
        self._packet = bytearray(PACKET_BYTES)
        self._wake = asyncio.Event()
        self._over = False

    def stop(self) -> None:
        """Let it end where it is. *Idempotent.*"""
        self._over = True
        self._wake.set()

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Yield the file: its header at once, then packets as they come."""
        header = _HEADER.pack(_MAGIC_NANOSECONDS, 2, 4, 0, 0, PACKET_BYTES, _ETHERNET)
        self._left_bytes -= len(header)
        yield header
        while await self._woken():
            if piece := self._read():
                yield piece
            if self._bucket.empty:
                await self._rest()

    async def _woken(self) -> bool:
        """Wait for packets; tell whether the capture goes on."""
        if self._over:
            return False
        loop = asyncio.get_running_loop()
        self._wake.clear()
        loop.add_reader(self._source, self._wake.set)
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._wake.wait()
        except TimeoutError:
            self._over = True
        finally:
            loop.remove_reader(self._source)
        return not self._over

    async def _rest(self) -> None:
        """Leave what comes to the kernel until there is an allowance again."""
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._bucket.refill_seconds):
                await self._wake.wait()

    def _read(self) -> bytes:
        """Return the records of what has come, as far as there is room and allowance."""
        piece = bytearray()
        while len(piece) < _CHUNK_BYTES and not self._over and self._bucket.take():
            record = self._record()
            if not record:
                break
            if len(record) > self._left_bytes:
                self._over = True
                break
            self._left_bytes -= len(record)
            piece += record
        return bytes(piece)

    def _record(self) -> bytes:
        """Return the next packet as a record of the file, or nothing."""
        try:
            length, ancillary, _, _ = self._source.recvmsg_into(
                [self._packet], socket.CMSG_SPACE(_TIMESPEC.size), socket.MSG_TRUNC
            )
        except BlockingIOError:
            return b""
        except OSError:  # the link is gone
            self._over = True
            return b""
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack(data)
        kept = min(length, PACKET_BYTES)
        return _RECORD.pack(seconds, nanoseconds, kept, length) + self._packet[:kept]


@contextlib.asynccontextmanager
async def capturing(namespace: Namespace, limits: CaptureLimits) -> AsyncIterator[Capture]:
    """Capture what passes the guest's link of a slot, for the time of a block.

    Raises:
        HostError: `network_failed`; the slot is gone, or the kernel refused.
    """
    source = await opened(lambda: _attach(namespace))
    with contextlib.closing(source):
        yield Capture(source, limits)


def _attach(namespace: Namespace) -> socket.socket:
    """Return a socket that is given each packet of the guest's link. Blocks."""
    try:
        source = socket_in(namespace, socket.AF_PACKET, socket.SOCK_RAW)  # of no protocol yet
        try:
            source.setblocking(False)
            source.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            source.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            source.bind((plan.TAP, _ALL_PROTOCOLS))
        except BaseException:
            source.close()
            raise
    except OSError as err:
        raise HostError(
            f"cannot capture packets in {namespace.name!r}: {err.strerror}", code="network_failed"
        ) from err
    return source
