"""Link: one synchronised byte stream to an agent, and the channels on it.

It moves bytes between a socket and the codec, and keeps for each channel no more than its window
and one message. It knows no operation. The guest is hostile: what it sends is bounded before it
is kept, and whatever it does ends the link at worst.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import secrets
import socket
import time
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from vmpool.agent.airtime import CHUNK, Airtime
from vmpool.errors import CapacityError, GuestError, TooLargeError
from vmpool.model import AgentAddress, SerialAddress
from vmpool_agent import wire
from vmpool_agent.message import encode

if TYPE_CHECKING:
    from types import TracebackType

_IN_A_ROW = 16
"""Events that one operation takes of what waits for it, before others of the loop have a turn."""
_RETRY = 0.005
_MAX_RETRY = 0.1
_CONNECT = 0.25
"""Seconds for the first try to connect; the next gets twice as many."""
_RESYNC = 1.0
_CLOSE_TIMEOUT = 2.0
_FAREWELL = 0.05
"""Seconds that the end of what is over for the agent may wait for something else to go with."""
_MAX_HELD = wire.MAX_CHANNELS * wire.WINDOW + 32 * wire.MAX_ANSWER
"""Bytes that may wait on all channels of a link: each one's window, and some large messages."""


class LinkChannel:
    """One channel as the host's operations see it.

    Leaving its block closes it; on a normal exit it waits, for a bounded time, until the agent
    agrees that the operation is over.
    """

    def __init__(self, link: Link, number: int) -> None:
        self._link = link
        self._number = number
        self._events: collections.deque[wire.Data | wire.Message] = collections.deque()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._closed = asyncio.Event()
        self._finished = False
        self._sending = asyncio.Lock()
        self._given_up = False
        self._in_a_row = 0

    async def __aenter__(self) -> LinkChannel:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        # A guest that broke its word is not waited for, nor by one who is being cancelled.
        if kind is None or not issubclass(kind, (asyncio.CancelledError, GuestError)):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await self._closed.wait()

    @property
    def closed(self) -> bool:
        """Whether the agent has ended the channel, or the link is gone."""
        return self._closed.is_set()

    async def receive(self) -> wire.Data | wire.Message | None:
        """Return the next event, `None` when the agent sends no more or has ended the channel.

        Raises:
            GuestError: The link is gone.
        """
        # Taking what is there already does not yield: a flood of small events would go first.
        self._in_a_row += 1
        if self._in_a_row > _IN_A_ROW:
            self._in_a_row = 1
            await asyncio.sleep(0)
        while not self._events:
            self._in_a_row = 1
            if self.closed or self._finished:
                self._link.check()
                return None
            self._readable.clear()
            await self._readable.wait()
        event = self._events.popleft()
        self._link.held -= _size(event)
        self._link.consumed(event)
        return event

    async def send_message(self, value: dict[str, Any]) -> None:
        """Send a message; returns when the window has taken it.

        Raises:
            TooLargeError: The message is over the protocol's limit.
            GuestError: The link is gone.
        """
        try:
            rest = encode(value)
        except wire.MisuseError as err:
            raise TooLargeError(str(err), code="message_too_large") from err
        async with self._sending:
            while True:
                rest = self._link.send_message(self._number, rest)
                if not rest or not await self._room():
                    return

    async def send_data(self, stream: int, data: bytes) -> bool:
        """Send bytes as the window allows; return whether the agent still takes them.

        Raises:
            GuestError: The link is gone.
        """
        view = memoryview(data)
        async with self._sending:
            while view:
                if not await self._room():
                    return False
                view = await self._link.send_data(self._number, stream, view)
        return not self.closed

    def finish(self) -> None:
        """Tell the agent that no more is sent. *Idempotent.*"""
        self._link.finish(self._number)

    def close(self) -> None:
        """Give the operation up. *Idempotent*; what it still sends is discarded."""
        self._link.held -= sum(map(_size, self._events))
        self._events.clear()
        self._given_up = True
        if self.closed:
            self._link.confirm_close(self._number)
        else:
            self._link.close_channel(self._number)

    async def _room(self) -> bool:
        """Wait until the window is open; return false when the channel has ended."""
        while not self.closed:
            if self._link.capacity(self._number):
                return True
            self._writable.clear()
            await self._writable.wait()
        self._link.check()
        return False

    def put(self, event: wire.Event) -> None:
        """Take an event; the link calls this."""
        if isinstance(event, (wire.Data, wire.Message)):
            if self._given_up:
                return
            self._link.held += _size(event)
            self._events.append(event)
            self._readable.set()
        elif isinstance(event, wire.Credited):
            self._writable.set()
        elif isinstance(event, wire.Finished):
            self._finished = True
            self._readable.set()
        elif isinstance(event, wire.Closed):
            self.end()

    def end(self) -> None:
        """Wake whoever waits: nothing more will come; the link calls this."""
        self._closed.set()
        self._readable.set()
        self._writable.set()


class Link:
    """A synchronised stream; owns its reader task and its socket."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        connection: wire.Connection,
        airtime: Airtime,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._connection = connection
        self._share = airtime.share()
        self._channels: dict[int, LinkChannel] = {}
        self._error: GuestError | None = None
        self.held = 0
        """Bytes that wait on the channels for their readers; those keep count."""
        self._task = asyncio.create_task(self._run(), name="agent-link")

    def check(self) -> None:
        """Raise what ended the link, if it has ended.

        Raises:
            GuestError: `guest_lost` or `guest_protocol`.
        """
        if self._error is not None:
            raise GuestError(self._error.message, code=self._error.error_code)

    def open(self) -> LinkChannel:
        """Open a channel.

        Raises:
            GuestError: The link is gone.
            CapacityError: Too many are open.
        """
        self.check()
        try:
            number = self._connection.open()
        except wire.MisuseError as err:
            raise CapacityError(str(err), code="too_many_channels") from err
        channel = LinkChannel(self, number)
        self._channels[number] = channel
        self._share.asked()
        return channel  # the agent is told with the request that follows

    async def wait_closed(self) -> None:
        """Return when the link is lost or closed."""
        await asyncio.wait([self._task])

    async def close(self) -> None:
        """Close the stream and reap the reader. *Idempotent.*"""
        self._fail("link closed", "guest_lost")
        # Here and not in the task alone, which may be cancelled before its first step.
        self._writer.transport.abort()
        self._task.cancel()
        await asyncio.wait([self._task])
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def capacity(self, number: int) -> int:
        """Return how many bytes a channel may send at once."""
        return self._connection.capacity(number)

    def send_message(self, number: int, document: memoryview) -> memoryview:
        """Send as much of a message as the window allows; return the rest."""
        self.check()
        rest = self._connection.send_message(number, document)
        self._flush()
        return rest

    async def send_data(self, number: int, stream: int, data: memoryview) -> memoryview:
        """Send one frame; return the rest. Waits while the transport is full."""
        self.check()
        room = self._connection.capacity(number)
        self._connection.send_data(number, stream, data[:room])
        self._flush()
        try:
            await self._writer.drain()
        except OSError:
            self._fail("agent hung up", "guest_lost")
            self.check()
        return data[room:]

    def finish(self, number: int) -> None:
        """Send the end of a channel's data. *Idempotent.*"""
        self._connection.send_finish(number)
        self._flush()

    def close_channel(self, number: int) -> None:
        """Send the end of a channel. *Idempotent.*"""
        self._connection.send_close(number)
        self._flush()

    def confirm_close(self, number: int) -> None:
        """Send the end of a channel that the agent has ended, with what goes next. *Idempotent.*

        On its own it would wake the guest when most clones are about to be given their request.
        """
        self._connection.send_close(number)
        asyncio.get_running_loop().call_later(_FAREWELL, self._flush)

    def consumed(self, event: wire.Data | wire.Message) -> None:
        """Let the agent send as much again."""
        self._connection.consumed(event)
        self._flush()

    def _flush(self) -> None:
        if self._connection.outgoing and self._error is None:
            self._writer.write(self._connection.take())

    async def _run(self) -> None:
        try:
            while data := await self._reader.read(self._share.portion):
                self._take(data)
                # Reading what is there already does not yield: a flood would starve the others.
                await asyncio.sleep(0)
                while rest := self._share.rest:  # noqa: ASYNC110 - time passes, and has no event
                    await asyncio.sleep(rest)
            self._fail("agent hung up", "guest_lost")
        except OSError as err:
            self._fail(f"agent hung up: {err}", "guest_lost")
        except wire.PeerError as err:
            self._fail(f"agent broke the protocol: {err}", "guest_protocol")
        finally:
            self._fail("link closed", "guest_lost")
            self._writer.transport.abort()
            self._share.close()

    def _take(self, data: bytes) -> None:
        began = time.thread_time()
        events = self._connection.receive(data)
        for event in events:
            self._dispatch(event)
        took = time.thread_time() - began
        self._share.spend(len(data), events=len(events), seconds=took)
        self._flush()
        self._check_held()

    def _check_held(self) -> None:
        if self.held + self._connection.assembling > _MAX_HELD:
            raise wire.PeerError(f"over {_MAX_HELD} bytes wait to be read")

    def _dispatch(self, event: wire.Event) -> None:
        assert not isinstance(event, (wire.Synchronised, wire.Opened))  # the codec forbids them
        channel = self._channels.get(event.channel)
        if channel is not None:
            channel.put(event)
        if isinstance(event, wire.Closed):
            self._channels.pop(event.channel, None)

    def _fail(self, message: str, code: str) -> None:
        if self._error is None:
            self._error = GuestError(message, code=code)
            channels, self._channels = self._channels, {}
            for channel in channels.values():
                channel.end()


def _size(event: wire.Data | wire.Message) -> int:
    return wire.FRAME_COST + len(event.payload if isinstance(event, wire.Data) else event.document)


def new_key() -> bytes:
    """Return what an agent tells its host by: 256 random bits."""
    return secrets.token_bytes(wire.KEY_SIZE)


class Peer(Enum):
    """What an agent's stream was used for before."""

    NEW = auto()
    """Nothing, or it was closed in good order before the snapshot."""
    USED = auto()
    """A host used it that is gone; what it sent last may have been half a frame."""


async def open_link(
    address: AgentAddress,
    *,
    key: bytes,
    timeout: float,
    peer: Peer = Peer.NEW,
    airtime: Airtime | None = None,
) -> Link:
    """Connect and synchronise; tries again until the deadline.

    Args:
        key: An agent that obeys nobody yet obeys who has this key from now on.
        peer: Decides whether half a frame is ended first.
        airtime: What it shares with others; `None` for as much as it takes.

    Raises:
        GuestError: `guest_unreachable`: no agent answered in time; `guest_protocol`: it speaks
            no version that we do.
    """
    last: list[str] = ["nothing answered"]
    try:
        async with asyncio.timeout(timeout):
            return await _open_until_synchronised(
                address, key, last, _flush_for(address, peer), airtime or Airtime()
            )
    except TimeoutError as err:
        raise GuestError(
            f"no agent at {address!r} within {timeout} s: {last[0]}", code="guest_unreachable"
        ) from err


def _flush_for(address: AgentAddress, peer: Peer) -> bytes:
    """Return what must go before the first SYNC."""
    # Each connection over vsock is a stream of its own.
    used = peer is Peer.USED and isinstance(address, SerialAddress)
    return wire.FLUSH if used else b""


async def _open_until_synchronised(
    address: AgentAddress, key: bytes, last: list[str], flush: bytes, airtime: Airtime
) -> Link:
    delay, patience = _RETRY, _CONNECT
    while True:
        try:
            async with asyncio.timeout(patience):
                reader, writer = await _open_stream(address)
            async with _Aborting(writer) as aborting:
                connection = await _synchronise(reader, writer, key, flush)
                aborting.release()
                return Link(reader, writer, connection, airtime)
        except (OSError, EOFError) as err:
            # Refused, or accepted and then reset: the guest is not up, or finds its new CID. What
            # it answers before that, our kernel drops: then the connection hangs.
            last[0] = f"{type(err).__name__}: {err}"
        except wire.PeerError as err:
            raise GuestError(f"agent broke the protocol: {err}", code="guest_protocol") from err
        await asyncio.sleep(delay)
        delay, patience = min(2 * delay, _MAX_RETRY), 2 * patience


class _Aborting:
    """Ends a stream when its block is left, unless it was released."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer: asyncio.StreamWriter | None = writer

    def release(self) -> None:
        """Leave the stream to another owner."""
        self._writer = None

    async def __aenter__(self) -> _Aborting:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()


async def _open_stream(
    address: AgentAddress,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(address, SerialAddress):
        return await asyncio.open_unix_connection(str(address.path), limit=CHUNK)
    connecting = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connecting, (address.cid, address.port))
        return await asyncio.open_connection(sock=connecting, limit=CHUNK)
    except BaseException:
        connecting.close()
        raise


async def _synchronise(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes, flush: bytes
) -> wire.Connection:
    """Return a synchronised codec for a new stream.

    Where a SYNC stays unanswered the agent may be inside a frame that its last host never ended,
    so the next goes behind a flush, whatever the first did.
    """
    connection = wire.Connection(wire.Role.HOST)
    patience = _RESYNC
    while True:
        connection.synchronise(secrets.token_bytes(wire.NONCE_SIZE), key)
        writer.write(flush + connection.take())
        try:
            async with asyncio.timeout(patience):
                while not connection.synchronised:
                    data = await reader.read(CHUNK)
                    if not data:
                        raise EOFError("agent hung up before it answered")
                    connection.receive(data)
                return connection
        except TimeoutError:
            flush = wire.FLUSH
            patience *= 2
